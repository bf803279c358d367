//! Measures of recovery, and the budgets on them.

use std::collections::{BTreeMap, BTreeSet};

use super::collect::FinalState;
use super::gaps::{Streams, Window};
use super::names::{BUDGETS, Budget};
use super::timeline::Story;
use super::traffic::Traffic;
use crate::events::{Canary, FaultEvent};
use crate::report::{BudgetResult, FaultResult, RecoveryRow, Spread};

/// How long before a fault a gap may begin.
const BEFORE_NS: u64 = 200_000_000;
/// How long after the heal a fault is looked at, if nothing else comes.
const AFTER_NS: u64 = 10_000_000_000;

/// Measures every fault.
pub(super) fn faults(story: &Story, traffic: &Traffic, state: &FinalState) -> Vec<FaultResult> {
    let streams = Streams::new(&traffic.writes);
    let ids: BTreeMap<&str, u64> =
        state.nodes.iter().map(|node| (node.name.as_str(), node.node_id)).collect();
    let last_ack_ns = traffic.writes.iter().map(|write| write.end_ns).max().unwrap_or_default();
    let measured = story.faults.values().map(|fault| {
        let window = window(fault, story, last_ack_ns);
        let hit: BTreeSet<u64> =
            fault.nodes.iter().filter_map(|name| ids.get(name.as_str()).copied()).collect();
        let gaps = streams.gaps(window, fault.asked_ns, &hit);
        let applied_ns = fault.applied_ns.unwrap_or(fault.asked_ns);
        let leaders = story
            .time_until(applied_ns, window.until_ns, |sample| sample.shards_without_leader == 0);
        let replication = fault.healed_ns.and_then(|healed_ns| {
            story.time_until(healed_ns, window.until_ns, |sample| sample.replicas_missing == 0)
        });
        let measures = [
            ("write_gap_ms", gaps.all),
            ("client_gap_ms", gaps.worst_client),
            ("shard_gap_ms", gaps.worst_shard),
            ("unaffected_shard_gap_ms", gaps.worst_unaffected_shard),
            ("leaders_ms", leaders),
            ("replication_ms", replication),
        ];
        let measures =
            measures.into_iter().filter_map(|(name, ns)| Some((name.to_owned(), ns? as f64 / 1e6)));
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
                Canary::DidNotTake => Some(false),
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
    let next =
        story.faults.values().map(|other| other.asked_ns).filter(|ns| healed_ns <= *ns).min();
    let until_ns = healed_ns
        .saturating_add(AFTER_NS)
        .min(next.unwrap_or(u64::MAX))
        .min(last_ack_ns.max(fault.asked_ns));
    Window { from_ns: fault.asked_ns.saturating_sub(BEFORE_NS), until_ns }
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

fn measure_of(fault: &FaultResult, name: &str) -> Option<f64> {
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
