//! Measures of recovery, and the budgets on them.

use std::collections::{BTreeMap, BTreeSet};

use super::collect::FinalState;
use super::gaps::{Streams, Window};
use super::names::{BUDGETS, Budget};
use super::timeline::Story;
use super::traffic::Traffic;
use crate::events::{Canary, FaultEvent, Sample};
use crate::report::{BudgetResult, FaultResult, RecoveryRow, Spread};

/// How long before a fault a gap may begin.
const BEFORE_NS: u64 = 200_000_000;
/// How long before a fault its writes are what is usual.
const USUAL_NS: u64 = 8_000_000_000;
/// How long after the heal a fault is looked at, if nothing else comes.
pub(super) const AFTER_NS: u64 = 10_000_000_000;

/// Measures every fault.
pub(super) fn faults(story: &Story, traffic: &Traffic, state: &FinalState) -> Vec<FaultResult> {
    let streams = Streams::new(&traffic.writes);
    let ids: BTreeMap<&str, u64> =
        state.nodes.iter().map(|node| (node.name.as_str(), node.node_id)).collect();
    let zones: BTreeSet<&String> =
        story.samples.iter().flat_map(|(_, sample)| sample.leaders_per_zone.keys()).collect();
    let last_ack_ns = traffic.writes.iter().map(|write| write.end_ns).max().unwrap_or_default();
    let measured = story.faults.values().map(|fault| {
        let window = window(fault, story, last_ack_ns);
        let hit: BTreeSet<u64> =
            fault.nodes.iter().filter_map(|name| ids.get(name.as_str()).copied()).collect();
        let gaps = streams.gaps(window, fault.asked_ns, &hit);
        let applied_ns = fault.applied_ns.unwrap_or(fault.asked_ns);
        let are_led = |sample: &Sample| sample.shards_without_leader == 0;
        let leaders = story.time_until_again(applied_ns, window.until_ns, are_led);
        let replication = fault.healed_ns.and_then(|healed_ns| {
            story.time_until(healed_ns, window.until_ns, |sample| sample.replicas_missing == 0)
        });
        let rebuilt = rebuilt(fault, story);
        let spread = rebuilt.and(fault.healed_ns).and_then(|healed_ns| {
            let until_ns = next_fault_ns(fault, story).unwrap_or(u64::MAX);
            story.time_until(healed_ns, until_ns, |sample| is_even(sample, zones.len()))
        });
        let spreading = spread.zip(fault.healed_ns).and_then(|(took, healed_ns)| {
            traffic.times_in(healed_ns, healed_ns.saturating_add(took))
        });
        let before = spreading.and_then(|_| {
            traffic.times_in(fault.asked_ns.saturating_sub(USUAL_NS), fault.asked_ns)
        });
        let measures = [
            ("write_gap_ms", gaps.all),
            ("client_gap_ms", gaps.worst_client),
            ("shard_gap_ms", gaps.worst_shard),
            ("unaffected_shard_gap_ms", gaps.worst_unaffected_shard),
            ("leaders_ms", leaders),
            ("replication_ms", replication),
            ("rebuilt_ms", rebuilt),
            ("spread_ms", spread),
        ];
        let times = [("before_p99_ms", before), ("spreading_p99_ms", spreading)]
            .map(|(name, spread)| (name, spread.map(|spread| spread.p99)));
        let measures = measures.map(|(name, ns)| (name, ns.map(|ns| ns as f64 / 1e6)));
        let measures = measures.into_iter().chain(times);
        let measures = measures.filter_map(|(name, ms)| Some((name.to_owned(), ms?)));
        FaultResult {
            id: fault.id,
            fault: fault.fault.clone(),
            target: fault.target.clone(),
            nodes: fault.nodes.clone(),
            asked_ns: fault.asked_ns,
            applied_ns: fault.applied_ns,
            healed_ns: fault.healed_ns,
            took: match fault.canary {
                Canary::Took => Some(true),
                Canary::DidNotTake | Canary::Overtaken => Some(false),
                Canary::None => None,
            },
            detail: fault.detail.clone(),
            acknowledged_writes: gaps.acknowledged,
            measures: measures.collect(),
        }
    });
    measured.collect()
}

/// From shortly before a fault until a while after its heal, the next fault after that, or the end.
fn window(fault: &FaultEvent, story: &Story, last_ack_ns: u64) -> Window {
    let healed_ns = fault.healed_ns.unwrap_or(u64::MAX);
    let until_ns = healed_ns
        .saturating_add(AFTER_NS)
        .min(next_fault_ns(fault, story).unwrap_or(u64::MAX))
        .min(last_ack_ns.max(fault.asked_ns));
    Window { from_ns: fault.asked_ns.saturating_sub(BEFORE_NS), until_ns }
}

/// When the first fault came after a fault's heal.
fn next_fault_ns(fault: &FaultEvent, story: &Story) -> Option<u64> {
    let healed_ns = fault.healed_ns?;
    story.faults.values().map(|other| other.asked_ns).filter(|ns| healed_ns <= *ns).min()
}

/// How long replicas were missing that others then stood in for; `None` if none was missing, or if
/// some were for as long as the fault was on.
fn rebuilt(fault: &FaultEvent, story: &Story) -> Option<u64> {
    let (applied_ns, healed_ns) = (fault.applied_ns?, fault.healed_ns?);
    let during = |at: &u64| (applied_ns..healed_ns).contains(at);
    let samples = story.samples.iter().filter(|(at, sample)| during(at) && sample.answered);
    let missing = |sample: &Sample| 0 < sample.replicas_missing;
    let was_missing = samples.clone().any(|(_, sample)| missing(sample));
    let is_missing = samples.clone().next_back().is_none_or(|(_, sample)| missing(sample));
    let whole = |sample: &Sample| sample.replicas_missing == 0;
    (was_missing && !is_missing).then(|| story.time_until(applied_ns, healed_ns, whole)).flatten()
}

/// Whether each of so many zones leads its share, give or take a tenth or one shard.
fn is_even(sample: &Sample, zones: usize) -> bool {
    let led: u32 = sample.leaders_per_zone.values().sum();
    let share = f64::from(led) / zones.max(1) as f64;
    let is_near = |led: &u32| (f64::from(*led) - share).abs() <= (share / 10.0).max(1.0);
    sample.leaders_per_zone.len() == zones && sample.leaders_per_zone.values().all(is_near)
}

/// Sums the faults up by kind.
pub(super) fn recovery(faults: &[FaultResult]) -> Vec<RecoveryRow> {
    let mut kinds: BTreeMap<&str, Vec<&FaultResult>> = BTreeMap::new();
    for fault in faults {
        kinds.entry(&fault.fault).or_default().push(fault);
    }
    let row = |(kind, faults): (&str, Vec<&FaultResult>)| {
        let measure = |budget: &Budget| {
            let values = faults.iter().filter_map(|fault| measure_of(fault, budget.name));
            (budget.name.to_owned(), Spread::of(values.collect()))
        };
        let measures = BUDGETS.iter().filter(|budget| is_per_fault(budget)).map(measure);
        RecoveryRow { fault: kind.to_owned(), count: faults.len(), measures: measures.collect() }
    };
    kinds.into_iter().map(row).collect()
}

pub(super) fn measure_of(fault: &FaultResult, name: &str) -> Option<f64> {
    fault.measures.iter().find(|(measure, _)| measure == name).map(|(_, value)| *value)
}

/// Whether a measure has one value a fault; the others are of all operations.
fn is_per_fault(budget: &Budget) -> bool {
    !matches!(budget.name, "write_ms" | "read_ms")
}

/// Holds the measures against the budgets that were asked for.
pub(super) fn budgets(
    asked: &BTreeMap<String, f64>,
    faults: &[FaultResult],
    writes_ms: Vec<f64>,
    reads_ms: Vec<f64>,
) -> Vec<BudgetResult> {
    let (writes, reads) = (Spread::of(writes_ms), Spread::of(reads_ms));
    let mut results = Vec::new();
    for (name, bound) in asked {
        let Some((budget, statistic)) = Budget::named(name) else { continue };
        let spread = match budget.name {
            "write_ms" => writes,
            "read_ms" => reads,
            name => Spread::of(faults.iter().filter_map(|fault| measure_of(fault, name)).collect()),
        };
        results.push(BudgetResult {
            name: budget.name.to_owned(),
            statistic,
            bound: *bound,
            value: spread.map(|spread| spread.statistic(statistic)),
            count: spread.map_or(0, |spread| spread.count),
        });
    }
    results
}

#[cfg(test)]
mod tests {
    use super::super::traffic::AckedWrite;
    use super::*;
    use crate::events::{Event, EventKind, FaultStage};

    const SECOND_NS: u64 = 1_000_000_000;

    fn sample(at_s: u64, missing: u32, led: [u32; 3]) -> Event {
        let zones = ["a", "b", "c"].map(str::to_owned);
        let sample = Sample {
            replicas_missing: missing,
            leaders_per_zone: zones.into_iter().zip(led).filter(|(_, led)| 0 < *led).collect(),
            answered: true,
            ..Sample::default()
        };
        Event { t_ns: at_s * SECOND_NS, kind: EventKind::Sample(sample) }
    }

    fn fault() -> Event {
        let fault = FaultEvent {
            id: 1,
            fault: "kill".to_owned(),
            target: "zone=c".to_owned(),
            nodes: vec!["c1".to_owned()],
            stage: FaultStage::Healed,
            asked_ns: SECOND_NS,
            applied_ns: Some(SECOND_NS),
            healed_ns: Some(6 * SECOND_NS),
            canary: Canary::Took,
            detail: String::new(),
        };
        Event { t_ns: SECOND_NS, kind: EventKind::Fault(fault) }
    }

    #[track_caller]
    fn check(samples: [(u32, [u32; 3]); 8], rebuilt_ms: Option<f64>, spread_ms: Option<f64>) {
        let mut events = vec![fault()];
        let each = (2..).zip(samples);
        events.extend(each.map(|(at_s, (missing, led))| sample(at_s, missing, led)));
        let story = Story::of(&events);
        let found = faults(&story, &Traffic::default(), &FinalState::default());
        assert_eq!(measure_of(&found[0], "rebuilt_ms"), rebuilt_ms);
        assert_eq!(measure_of(&found[0], "spread_ms"), spread_ms);
    }

    #[test]
    fn leaders_that_change_again_later_are_not_waited_for() {
        let without = |at_s: u64, count: u32| {
            let Event { t_ns, kind: EventKind::Sample(sample) } = sample(at_s, 0, [8, 8, 8]) else {
                panic!("no sample")
            };
            let sample = Sample { shards_without_leader: count, ..sample };
            Event { t_ns, kind: EventKind::Sample(sample) }
        };
        let check = |counts: [u32; 5], leaders_ms: f64| {
            let mut events = vec![fault()];
            events.extend((1..).zip(counts).map(|(at_s, count)| without(at_s, count)));
            let mut traffic = Traffic::default();
            let ns = 30 * SECOND_NS;
            let (client, shard, node, resolved) = ((0, 0), 1, 1, false);
            traffic.writes.push(AckedWrite {
                start_ns: ns,
                end_ns: ns,
                client,
                shard,
                node,
                resolved,
            });
            let found = faults(&Story::of(&events), &traffic, &FinalState::default());
            assert_eq!(measure_of(&found[0], "leaders_ms"), Some(leaders_ms), "{counts:?}");
        };
        check([0, 9, 0, 0, 0], 2_000.0);
        check([0, 9, 2, 0, 1], 3_000.0);
        check([0, 0, 0, 0, 0], 0.0);
        check([0, 9, 9, 9, 9], 4_000.0);
    }

    #[test]
    fn writes_while_leaders_spread_are_held_against_those_before_the_fault() {
        let whole = [(0, [12, 12, 0]), (8, [12, 12, 0]), (0, [12, 12, 0])];
        let mut events = vec![fault()];
        let back = [(0, [12, 11, 1]), (0, [8, 8, 8]), (0, [8, 8, 8])];
        events.extend(
            (3..)
                .zip(whole.into_iter().chain(back))
                .map(|(at_s, (missing, led))| sample(at_s, missing, led)),
        );
        let write = |start_ms: u64, took_ms: u64| AckedWrite {
            start_ns: start_ms * 1_000_000,
            end_ns: (start_ms + took_ms) * 1_000_000,
            client: (0, 0),
            shard: 1,
            node: 1,
            resolved: false,
        };
        // The fault comes at 1 s and is healed at 6 s; all lead their share from 7 s on.
        let writes =
            [(100, 3), (500, 2), (999, 50), (3_000, 700), (6_000, 9), (6_500, 8), (6_990, 90)];
        let mut traffic = Traffic::default();
        traffic.writes.extend(writes.map(|(start, took)| write(start, took)));
        let found = faults(&Story::of(&events), &traffic, &FinalState::default());
        assert_eq!(measure_of(&found[0], "spread_ms"), Some(1_000.0));
        assert_eq!(measure_of(&found[0], "before_p99_ms"), Some(3.0));
        assert_eq!(measure_of(&found[0], "spreading_p99_ms"), Some(9.0));
    }

    #[test]
    fn what_the_rest_stood_in_for_is_rebuilt_and_what_came_back_is_spread_to() {
        let lost = (8, [12, 12, 0]);
        let whole = (0, [12, 12, 0]);
        let back = [(0, [12, 11, 1]), (0, [10, 7, 7]), (0, [8, 8, 8]), (0, [8, 8, 8])];
        check(
            [lost, lost, whole, whole, back[0], back[1], back[2], back[3]],
            Some(3_000.0),
            Some(2_000.0),
        );
        // Who waits for the lost node to come back has rebuilt nothing.
        check([lost, lost, lost, lost, back[0], back[1], back[2], back[3]], None, None);
    }
}
