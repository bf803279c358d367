//! Phases, faults and samples out of the list of events.

use std::collections::BTreeMap;

use crate::events::{Canary, Event, EventKind, FaultEvent, FaultStage, Sample};
use crate::report::{PhaseSpan, Second};

/// What the events of a run say.
#[derive(Debug, Default)]
pub(super) struct Story {
    pub(super) phases: Vec<PhaseSpan>,
    /// Each fault as its last event has it.
    pub(super) faults: BTreeMap<u32, FaultEvent>,
    pub(super) samples: Vec<(u64, Sample)>,
    /// 99th percentile of lateness in milliseconds, by time.
    pub(super) lateness_ms: Vec<(u64, f64)>,
    pub(super) harness_errors: Vec<String>,
    pub(super) deaths: Vec<String>,
    /// Recoveries that were waited for and did not come in time.
    pub(super) missed: Vec<String>,
    /// How often each failpoint was reached; empty if the nodes have none.
    pub(super) failpoints: BTreeMap<String, u64>,
    /// Splits, merges and moves.
    pub(super) shard_changes: [u64; 3],
    pub(super) end_ns: u64,
}

impl Story {
    pub(super) fn of(events: &[Event]) -> Self {
        let mut story = Self::default();
        for event in events {
            story.end_ns = story.end_ns.max(event.t_ns);
            story.add(event);
        }
        story
    }

    fn add(&mut self, event: &Event) {
        let t_ns = event.t_ns;
        match &event.kind {
            EventKind::PhaseBegin { name } => {
                let name = name.clone();
                self.phases.push(PhaseSpan {
                    name,
                    begin_ns: t_ns,
                    end_ns: t_ns,
                    write_p99_ms: 0.0,
                });
            }
            EventKind::PhaseEnd { name } => {
                let open = self.phases.iter_mut().rev().find(|phase| phase.name == *name);
                if let Some(open) = open {
                    open.end_ns = t_ns;
                }
            }
            EventKind::Fault(fault) => self.add_fault(fault),
            EventKind::Sample(sample) => self.samples.push((t_ns, sample.clone())),
            EventKind::Lateness { p99_us, .. } => {
                self.lateness_ms.push((t_ns, *p99_us as f64 / 1_000.0));
            }
            EventKind::Progress { .. } => {}
            EventKind::ShardsChanged { splits, merges, moves } => {
                let all = &mut self.shard_changes;
                *all = [all[0] + splits, all[1] + merges, all[2] + moves];
            }
            EventKind::Failpoints { hits } => self.failpoints.clone_from(hits),
            EventKind::NodeDied { node, how } => {
                self.deaths.push(format!("node {node} ended by itself: {how}"));
            }
            EventKind::WaitMissed { text } => self.missed.push(format!("no recovery {text}")),
            EventKind::HarnessError { text } => self.harness_errors.push(text.clone()),
        }
    }

    fn add_fault(&mut self, fault: &FaultEvent) {
        let known = self.faults.entry(fault.id).or_insert_with(|| fault.clone());
        known.stage = fault.stage;
        known.applied_ns = fault.applied_ns.or(known.applied_ns);
        known.healed_ns = fault.healed_ns.or(known.healed_ns);
        if fault.stage != FaultStage::Asked && !fault.detail.is_empty() {
            known.detail.clone_from(&fault.detail);
        }
        if fault.canary != Canary::None {
            known.canary = fault.canary;
        }
        if !fault.nodes.is_empty() {
            known.nodes.clone_from(&fault.nodes);
        }
    }

    /// Writes what was sampled into the seconds.
    pub(super) fn fill(&self, seconds: &mut [Second]) {
        let mut samples = self.samples.iter().peekable();
        let mut last = None;
        for (number, second) in (0_u64..).zip(seconds.iter_mut()) {
            while let Some((_, sample)) =
                samples.next_if(|(t_ns, _)| *t_ns < (number + 1) * 1_000_000_000)
            {
                last = Some(sample);
            }
            if let Some(sample) = last.filter(|sample| sample.answered) {
                let leaders = sample.leaders_per_zone.iter();
                second.leaders = leaders.map(|(zone, count)| (zone.clone(), *count)).collect();
                second.leaderless = sample.shards_without_leader;
                second.missing = sample.replicas_missing;
            }
        }
        for (t_ns, late_ms) in &self.lateness_ms {
            let index = usize::try_from(t_ns / 1_000_000_000).unwrap_or(usize::MAX);
            if let Some(second) = seconds.get_mut(index) {
                second.lateness_ms = second.lateness_ms.max(*late_ms);
            }
        }
    }

    /// From a moment on, how long it took until samples showed what is wanted, in nanoseconds; if they
    /// never did, how long it was looked at, which is too little. Samples that nobody answered show
    /// nothing. `None` if there is no sample.
    pub(super) fn time_until(
        &self,
        from_ns: u64,
        until_ns: u64,
        is_reached: impl Fn(&Sample) -> bool,
    ) -> Option<u64> {
        let after = self.samples.iter().filter(|(t_ns, _)| from_ns <= *t_ns && *t_ns <= until_ns);
        let (mut reached, mut last) = (None, None);
        for (t_ns, sample) in after {
            // What was reached and lost again was not reached.
            let is_there = sample.answered && is_reached(sample);
            reached = if is_there { reached.or(Some(t_ns - from_ns)) } else { None };
            last = Some(t_ns - from_ns);
        }
        reached.or(last)
    }

    /// As [`Self::time_until`] for what a fault takes away at once: how long until it was there again
    /// for the first time. What is lost later, as leaders are when they spread again, counts no more.
    pub(super) fn time_until_again(
        &self,
        from_ns: u64,
        until_ns: u64,
        is_there: impl Fn(&Sample) -> bool,
    ) -> Option<u64> {
        let after = || {
            let inside = |(t_ns, _): &&(u64, Sample)| (from_ns..=until_ns).contains(t_ns);
            self.samples.iter().filter(inside)
        };
        let is_there = |sample: &Sample| sample.answered && is_there(sample);
        let lost_ns = after().find(|(_, sample)| !is_there(sample)).map_or(0, |(t_ns, _)| *t_ns);
        let again = after().find(|(t_ns, sample)| lost_ns <= *t_ns && is_there(sample));
        let found = again.or_else(|| after().next_back());
        found.map(|(t_ns, _)| t_ns - from_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at_s: u64, leaderless: u32, missing: u32) -> Event {
        let sample = Sample {
            shards_without_leader: leaderless,
            replicas_missing: missing,
            answered: true,
            ..Sample::default()
        };
        Event { t_ns: at_s * 1_000_000_000, kind: EventKind::Sample(sample) }
    }

    #[test]
    fn what_is_reached_and_lost_again_counts_from_the_last_time() {
        let story =
            Story::of(&[sample(1, 0, 0), sample(2, 3, 1), sample(3, 0, 1), sample(4, 0, 0)]);
        let leaders = |sample: &Sample| sample.shards_without_leader == 0;
        assert_eq!(story.time_until(0, u64::MAX, leaders), Some(3_000_000_000));
        let whole = |sample: &Sample| sample.replicas_missing == 0;
        assert_eq!(story.time_until(2_000_000_000, u64::MAX, whole), Some(2_000_000_000));
        let never = story.time_until(2_000_000_000, 3_500_000_000, whole);
        assert_eq!(never, Some(1_000_000_000), "at least as long as it was looked at");
        assert_eq!(story.time_until(3_100_000_000, 3_500_000_000, whole), None);
    }

    #[test]
    fn a_faults_three_events_become_one() {
        let event = |stage, applied_ns, healed_ns, canary| Event {
            t_ns: 9,
            kind: EventKind::Fault(FaultEvent {
                id: 1,
                fault: "kill".to_owned(),
                target: "zone=a".to_owned(),
                nodes: vec!["a1".to_owned()],
                stage,
                asked_ns: 5,
                applied_ns,
                healed_ns,
                canary,
                detail: String::new(),
            }),
        };
        let story = Story::of(&[
            event(FaultStage::Asked, None, None, Canary::None),
            event(FaultStage::Applied, Some(6), None, Canary::Took),
            event(FaultStage::Healed, None, Some(8), Canary::None),
        ]);
        let fault = &story.faults[&1];
        assert_eq!(
            (fault.applied_ns, fault.healed_ns, fault.canary),
            (Some(6), Some(8), Canary::Took)
        );
    }
}
