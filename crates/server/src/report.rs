//! What a node says of itself, and how it says only what has changed.
//!
//! ```text
//! asker: known up to mark 7 ─▶ node: changed after 7, gone after 7, mark 9 ─▶ asker: applies it
//! ```
//!
//! One table ([`Ledger`]) serves every asker, because the asker says what it knows. See
//! docs/decisions/2026-12-01-reports-as-differences.md.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use anchorhold_consensus::Trouble;
use anchorhold_model::{NodeId, ReplicaId, ShardDescriptor, ShardId, Timestamp};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::scheduler::ShardPast;

/// Removed replicas that a node remembers; who knows less is told everything.
const GONE_MAX: usize = 1_024;

/// How a node and its replicas are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeReport {
    /// The node.
    pub node: NodeId,
    /// Wall-clock time when the process started.
    pub started: Timestamp,
    /// Bytes that the data directory takes on disk, the ballast aside.
    pub disk_bytes: u64,
    /// Bytes free on the disk; 0 if unknown.
    pub disk_bytes_free: u64,
    /// Bytes that can be given back by removing the ballast.
    pub ballast_bytes: u64,
    /// How full the disk is: the number of a `storage::DiskState`.
    pub disk: u8,
    /// Why the node should not lead; empty if it may.
    pub troubles: Vec<Trouble>,
    /// Its clock minus the median of all, in milliseconds; `None` if it knows no other.
    pub clock_offset_ms: Option<i64>,
    /// What the last round of scrubbing found damaged, for people.
    pub damage: Vec<String>,
    /// What it has seen of the shards over time, if it leads the catalog.
    pub seen: BTreeMap<ShardId, ShardPast>,
    /// The 99th percentile of the log's last fsyncs in microseconds; `None` before the first.
    pub fsync_p99_micros: Option<u64>,
    /// Its replicas, the catalog's first.
    pub replicas: BTreeMap<ShardId, Arc<ReplicaReport>>,
}

/// How one replica is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaReport {
    /// The shard.
    pub shard: ShardId,
    /// The replica.
    pub replica: ReplicaId,
    /// Whether it leads.
    pub leads: bool,
    /// Whether it counts in the quorum.
    pub votes: bool,
    /// Whether it has stopped, or takes part in nothing.
    pub stopped: bool,
    /// Whether it has to be replaced, and so has stopped: it may have forgotten a vote.
    pub lost: bool,
    /// Whether a joint change of the shard's members was begun and not finished.
    pub is_joint: bool,
    /// Requests per second that it served of late.
    pub load: u64,
    /// Why it does less than the others, in words.
    pub problem: Option<String>,
    /// The leader that it follows.
    pub leader: Option<NodeId>,
    /// Raft's term.
    pub term: u64,
    /// Last index in the log.
    pub last_index: Option<u64>,
    /// Applied index.
    pub applied_index: Option<u64>,
    /// On a leader: each other replica's matched index.
    pub matched: Vec<(ReplicaId, Option<u64>)>,
    /// The shard's count of changes here.
    pub revision: u64,
    /// Anchors stored.
    pub anchors: u64,
    /// Bytes stored.
    pub bytes: u64,
    /// The shard as known here.
    pub descriptor: ShardDescriptor,
}

/// Up to which of a node's reports somebody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportMark {
    /// Drawn when the node's process started.
    pub process: u64,
    /// Counts changes since then.
    pub number: u64,
}

/// A node's report as far as it was not known.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReportDifference {
    /// The report; of its replicas those that have changed.
    pub report: NodeReport,
    /// What who applies this knows then.
    pub mark: ReportMark,
    /// What it is a difference from; `None` if it is everything.
    pub base: Option<ReportMark>,
    /// Shards of which the node had a replica and has none, unless a changed one is of them.
    pub gone: Vec<ShardId>,
}

impl ReportDifference {
    /// The whole report, if this is a difference from `known` or from nothing.
    fn apply(mut self, known: Option<&Known>) -> Option<Known> {
        if let Some(base) = self.base {
            let known = known.filter(|known| known.mark == base)?;
            let mut replicas = known.report.replicas.clone();
            replicas.retain(|shard_id, _| !self.gone.contains(shard_id));
            replicas.append(&mut self.report.replicas);
            self.report.replicas = replicas;
        }
        Some(Known { mark: self.mark, report: self.report })
    }
}

/// What a node has said of its replicas so far.
pub struct Ledger {
    mark: ReportMark,
    /// Each replica as of the last report, and the report in which it last changed.
    replicas: BTreeMap<ShardId, (u64, Arc<ReplicaReport>)>,
    /// Replicas that went, and in which report; oldest first.
    gone: VecDeque<(u64, ShardId)>,
    /// The last report of which some that went were forgotten.
    forgotten: u64,
}

impl Ledger {
    /// Nothing said yet, by a process with this number.
    pub fn new(process: u64) -> Self {
        Self {
            mark: ReportMark { process, number: 0 },
            replicas: BTreeMap::new(),
            gone: VecDeque::new(),
            forgotten: 0,
        }
    }

    /// The difference between the newest report and what is known.
    pub fn difference(
        &mut self,
        report: NodeReport,
        known: Option<ReportMark>,
    ) -> ReportDifference {
        self.note(&report);
        let is_known = |known: &ReportMark| {
            known.process == self.mark.process
                && (self.forgotten..=self.mark.number).contains(&known.number)
        };
        let base = known.filter(is_known);
        let Some(ReportMark { number: since, .. }) = base else {
            return ReportDifference { report, mark: self.mark, base, gone: Vec::new() };
        };
        let changed = self.replicas.iter().filter(|(_, (at, _))| since < *at);
        let changed = changed.map(|(shard_id, (_, replica))| (*shard_id, Arc::clone(replica)));
        let gone = self.gone.iter().filter(|(at, _)| since < *at).map(|(_, shard_id)| *shard_id);
        ReportDifference {
            report: NodeReport { replicas: changed.collect(), ..report },
            mark: self.mark,
            base,
            gone: gone.collect(),
        }
    }

    /// Notes what has changed since the last report.
    fn note(&mut self, report: &NodeReport) {
        let number = self.mark.number + 1;
        let mut has_changed = false;
        self.replicas.retain(|shard_id, _| {
            let stays = report.replicas.contains_key(shard_id);
            if !stays {
                self.gone.push_back((number, *shard_id));
                has_changed = true;
            }
            stays
        });
        for (shard_id, replica) in &report.replicas {
            let before = self.replicas.get(shard_id);
            if before.is_none_or(|(_, before)| before != replica) {
                self.replicas.insert(*shard_id, (number, Arc::clone(replica)));
                has_changed = true;
            }
        }
        if has_changed {
            self.mark.number = number;
        }
        while GONE_MAX < self.gone.len() {
            self.forgotten = self.gone.pop_front().map_or(self.forgotten, |(at, _)| at);
        }
    }
}

/// A node's last report, and what to ask it with for the next one.
struct Known {
    mark: ReportMark,
    report: NodeReport,
}

/// The last reports of the nodes that were asked.
#[derive(Default)]
pub struct KnownReports {
    nodes: Mutex<BTreeMap<NodeId, Arc<Known>>>,
}

/// A question on its way: what was known when it was asked.
pub struct Asked {
    node: NodeId,
    known: Option<Arc<Known>>,
}

impl Asked {
    /// What to tell the node.
    pub fn mark(&self) -> Option<ReportMark> {
        self.known.as_ref().map(|known| known.mark)
    }
}

impl KnownReports {
    /// Begins to ask a node.
    pub fn ask(&self, node: NodeId) -> Asked {
        Asked { node, known: self.nodes.lock().get(&node).cloned() }
    }

    /// Takes the answer. `None` if it is not the node's, or a difference from something else; the
    /// next question then asks for everything.
    pub fn answer(&self, asked: &Asked, difference: ReportDifference) -> Option<NodeReport> {
        let is_its_own = difference.report.node == asked.node;
        let known = is_its_own.then(|| difference.apply(asked.known.as_deref())).flatten();
        let mut nodes = self.nodes.lock();
        let Some(known) = known else {
            nodes.remove(&asked.node);
            return None;
        };
        let report = known.report.clone();
        // Another question may have been answered meanwhile, by more.
        let has_newer = nodes.get(&asked.node).is_some_and(|held| {
            held.mark.process == known.mark.process && known.mark.number < held.mark.number
        });
        if !has_newer {
            nodes.insert(asked.node, Arc::new(known));
        }
        Some(report)
    }

    /// Forgets the nodes that are not among these.
    pub fn keep(&self, is_there: impl Fn(NodeId) -> bool) {
        self.nodes.lock().retain(|node, _| is_there(*node));
    }
}

#[cfg(test)]
mod tests {
    use anchorhold_model::KeyRange;
    use anchorhold_model::catalog::DEFAULT_CLASS;
    use proptest::prelude::*;

    use super::*;
    use crate::survey::tests::{replica, survey};

    /// What node 1 says that has these shards, each at a revision.
    fn report(replicas: &BTreeMap<u64, u64>) -> NodeReport {
        let replicas = replicas.iter().map(|(shard, revision)| {
            let shard = ShardId(*shard);
            let descriptor =
                ShardDescriptor::found(shard, KeyRange::FULL, DEFAULT_CLASS, &[NodeId(1)]);
            let found = replica(&descriptor, 1, false);
            (shard, Arc::new(ReplicaReport { revision: *revision, ..found }))
        });
        let mut said = survey(&[1]).reports.remove(&NodeId(1)).unwrap();
        said.replicas = replicas.collect();
        said
    }

    #[test]
    fn what_has_not_changed_is_not_told_again() {
        let (mut ledger, known) = (Ledger::new(7), KnownReports::default());
        let mut tell = |held: &[(u64, u64)]| {
            let asked = known.ask(NodeId(1));
            let held = held.iter().copied().collect();
            let difference = ledger.difference(report(&held), asked.mark());
            let told = difference.report.replicas.len();
            let whole = known.answer(&asked, difference).unwrap();
            (told, whole.replicas.keys().map(|shard| shard.0).collect::<Vec<_>>())
        };
        assert_eq!(tell(&[(1, 1), (2, 1)]), (2, vec![1, 2]));
        assert_eq!(tell(&[(1, 1), (2, 1)]), (0, vec![1, 2]));
        assert_eq!(tell(&[(1, 1), (2, 2), (3, 1)]), (2, vec![1, 2, 3]));
        assert_eq!(tell(&[(2, 2), (3, 1)]), (0, vec![2, 3]));
        assert_eq!(tell(&[(1, 1), (2, 2), (3, 1)]), (1, vec![1, 2, 3]));
    }

    #[test]
    fn a_process_that_was_started_again_tells_everything() {
        let known = KnownReports::default();
        let held = BTreeMap::from([(1, 1)]);
        let mut before = Ledger::new(7);
        let asked = known.ask(NodeId(1));
        known.answer(&asked, before.difference(report(&held), asked.mark())).unwrap();
        let asked = known.ask(NodeId(1));
        let difference = Ledger::new(8).difference(report(&held), asked.mark());
        assert_eq!((difference.base, difference.report.replicas.len()), (None, 1));
        assert_eq!(known.answer(&asked, difference).unwrap().replicas.len(), 1);
    }

    #[test]
    fn who_knows_less_than_what_went_is_remembered_is_told_everything() {
        let mut ledger = Ledger::new(7);
        let first = ledger.difference(report(&BTreeMap::from([(1, 1)])), None).mark;
        for round in 0..GONE_MAX as u64 {
            let marks = [BTreeMap::from([(1, 1), (2 + round, 1)]), BTreeMap::from([(1, 1)])];
            marks.iter().for_each(|held| drop(ledger.difference(report(held), Some(first))));
        }
        let held = BTreeMap::from([(1, 1)]);
        assert_eq!(ledger.difference(report(&held), Some(first)).base, Some(first));
        ledger.difference(report(&BTreeMap::new()), None);
        assert_eq!(ledger.difference(report(&held), Some(first)).base, None);
    }

    #[test]
    fn an_answer_that_fits_nothing_known_is_refused_and_asked_for_anew() {
        let (mut ledger, known) = (Ledger::new(7), KnownReports::default());
        let held = BTreeMap::from([(1, 1)]);
        let asked = known.ask(NodeId(1));
        known.answer(&asked, ledger.difference(report(&held), None)).unwrap();
        let asked = known.ask(NodeId(1));
        let mut wrong = ledger.difference(report(&held), asked.mark());
        wrong.base = Some(ReportMark { process: 9, number: 1 });
        assert!(known.answer(&asked, wrong).is_none());
        assert_eq!(known.ask(NodeId(1)).mark(), None);
    }

    proptest! {
        /// Whatever changed, and in whatever order several questions at once were answered, each
        /// asker has the report as the node made it.
        #[test]
        fn differences_add_up_to_the_report(
            rounds in prop::collection::vec(
                (prop::collection::btree_map(0_u64..12, 0_u64..3, 0..12), any::<bool>(), any::<bool>()),
                1..40,
            ),
        ) {
            let (mut ledger, known) = (Ledger::new(7), KnownReports::default());
            let mut late: Option<(Asked, ReportDifference, NodeReport)> = None;
            for (held, is_lost, is_late) in rounds {
                let asked = known.ask(NodeId(1));
                let made = report(&held);
                let difference = ledger.difference(made.clone(), asked.mark());
                if is_lost {
                    continue;
                }
                if is_late && late.is_none() {
                    late = Some((asked, difference, made));
                    continue;
                }
                prop_assert_eq!(known.answer(&asked, difference).unwrap().replicas, made.replicas);
                if let Some((asked, difference, made)) = late.take() {
                    prop_assert_eq!(
                        known.answer(&asked, difference).unwrap().replicas,
                        made.replicas,
                    );
                }
            }
        }
    }
}
