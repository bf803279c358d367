//! Random changes against a plain map, with a stop and a start now and then.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::log_store::GroupLog;

/// The log as one would write it down.
#[derive(Clone, Default, Debug)]
struct Plain {
    hard_state: Option<HardState>,
    purged: Option<LogPosition>,
    entries: BTreeMap<u64, LogEntry>,
}

impl Plain {
    fn last(&self) -> Option<LogPosition> {
        self.entries.values().next_back().map(|entry| entry.position).or(self.purged)
    }

    fn next(&self) -> Option<u64> {
        self.last().map(|last| last.index + 1)
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Entries, their length, and by how much the first one misses its place.
    Append {
        shard: u64,
        count: u64,
        length: usize,
        miss: i64,
    },
    Truncate {
        shard: u64,
        keep: u64,
    },
    Vote {
        shard: u64,
    },
    Purge {
        shard: u64,
        ahead: u64,
    },
    Drop {
        shard: u64,
    },
    /// Wait until everything is durable.
    Wait,
    Reopen,
    /// Stop without closing.
    Kill,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let shard = 1..4_u64;
    let step = prop_oneof![
        8 => (shard.clone(), 1..6_u64, 0..400_usize).prop_map(|(shard, count, length)| {
            Step::Append { shard, count, length, miss: 0 }
        }),
        1 => (shard.clone(), -2..3_i64).prop_map(|(shard, miss)| {
            Step::Append { shard, count: 2, length: 10, miss }
        }),
        2 => (shard.clone(), 0..12_u64).prop_map(|(shard, keep)| Step::Truncate { shard, keep }),
        2 => shard.clone().prop_map(|shard| Step::Vote { shard }),
        3 => (shard.clone(), 0..12_u64).prop_map(|(shard, ahead)| Step::Purge { shard, ahead }),
        1 => shard.prop_map(|shard| Step::Drop { shard }),
        2 => Just(Step::Wait),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
    ];
    proptest::collection::vec(step, 1..60)
}

struct Run {
    fs: MemoryFs,
    config: LogConfig,
    log: Option<SegmentedLog>,
    plain: BTreeMap<GroupId, Plain>,
    term: u64,
    /// Outcomes that are still to come, with what they must be.
    due: Vec<(bool, mpsc::Receiver<Result<(), LogError>>)>,
}

impl Run {
    fn submit(&mut self, change: LogWrite, accepted: bool) {
        let (sender, receiver) = mpsc::channel();
        let done = Box::new(move |outcome| sender.send(outcome).unwrap());
        self.log.as_ref().unwrap().submit(change, done);
        self.due.push((accepted, receiver));
    }

    fn wait(&mut self) {
        for (accepted, receiver) in self.due.drain(..) {
            assert_eq!(receiver.recv().unwrap().is_ok(), accepted);
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Append { shard, count, length, miss } => {
                self.term += 1;
                let plain = self.plain.get(&group(shard)).cloned().unwrap_or_default();
                let first = plain.next().unwrap_or(5).saturating_add_signed(miss);
                let accepted = plain.next().is_none_or(|next| next == first);
                let change = append(group(shard), self.term, first..first + count, length);
                if let (true, LogWrite::Append { entries, .. }) = (accepted, &change) {
                    let plain = self.plain.entry(group(shard)).or_default();
                    plain.entries.extend(entries.iter().map(|e| (e.position.index, e.clone())));
                }
                self.submit(change, accepted);
            }
            Step::Truncate { shard, keep } => {
                let plain = self.plain.get_mut(&group(shard));
                let first = plain.as_ref().and_then(|p| p.entries.keys().next().copied());
                let from = first.unwrap_or(0) + keep;
                let accepted = plain
                    .as_ref()
                    .is_none_or(|plain| plain.purged.is_none_or(|mark| mark.index < from));
                if let (true, Some(plain)) = (accepted, plain) {
                    plain.entries.split_off(&from);
                }
                self.submit(LogWrite::Truncate { group: group(shard), from }, accepted);
            }
            Step::Vote { shard } => {
                self.term += 1;
                let change = vote(group(shard), self.term, shard);
                if let LogWrite::SaveHardState { hard_state, .. } = change {
                    self.plain.entry(group(shard)).or_default().hard_state = Some(hard_state);
                }
                self.submit(change, true);
            }
            Step::Purge { shard, ahead } => {
                let plain = self.plain.entry(group(shard)).or_default();
                let first = plain.entries.keys().next().copied();
                let index = first.or(plain.next()).unwrap_or(3) + ahead;
                let term = plain.entries.get(&index).map_or(self.term, |e| e.position.term);
                let up_to = at(term, index);
                plain.purged = Some(up_to);
                plain.entries = plain.entries.split_off(&(index + 1));
                self.submit(LogWrite::Purge { group: group(shard), up_to }, true);
            }
            Step::Drop { shard } => {
                self.plain.remove(&group(shard));
                self.submit(LogWrite::Drop { group: group(shard) }, true);
            }
            Step::Wait => self.wait(),
            Step::Reopen => {
                self.log = None;
                self.wait();
                self.log = Some(open(&self.fs, self.config).unwrap());
            }
            Step::Kill => {
                self.wait();
                self.fs = self.fs.after_kill();
                self.log = Some(open(&self.fs, self.config).unwrap());
            }
        }
    }

    fn check(&self) {
        let log = self.log.as_ref().unwrap();
        let known: Vec<GroupId> = self.plain.keys().copied().collect();
        assert_eq!(log.groups(), known);
        for (group, plain) in &self.plain {
            let Plain { hard_state, purged, .. } = *plain;
            let expected = GroupLog { hard_state, purged, last: plain.last(), lost: None };
            assert_eq!(log.group(*group), Some(expected));
            let (Some(first), Some(last)) =
                (plain.entries.keys().next(), plain.entries.keys().next_back())
            else {
                continue;
            };
            let entries = log.read(*group, *first..last + 1, usize::MAX).unwrap();
            assert!(entries.iter().eq(plain.entries.values()));
        }
    }
}

fn play(steps: &[Step], config: LogConfig) {
    let fs = MemoryFs::new();
    let log = Some(open(&fs, config).unwrap());
    let mut run = Run { fs, config, log, plain: BTreeMap::new(), term: 0, due: vec![] };
    for step in steps {
        run.step(step);
        run.check();
    }
    run.step(&Step::Kill);
    run.check();
    run.step(&Step::Reopen);
    run.check();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn the_log_agrees_with_a_plain_map(steps in steps()) {
        play(&steps, small());
    }

    #[test]
    fn the_log_agrees_with_a_plain_map_when_it_copies_forward_all_the_time(steps in steps()) {
        let config = LogConfig {
            recent_bytes_max: 500,
            disk_bytes_target: 8192,
            copy_bytes_max: 512,
            batch_bytes_max: 600,
            ..small()
        };
        play(&steps, config);
    }
}
