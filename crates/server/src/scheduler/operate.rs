//! Sees an operator through. The node that leads the catalog asks the shard's leader, again and
//! again; that one reads off its own group how far the operator has come and takes the next step.
//!
//! Nothing is lost if either dies: the operator is in the catalog, its progress in the shard. The
//! shard's leader takes steps only of the operator that its own copy of the catalog has under way,
//! and each step only if the members are still those that it looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anchorhold_consensus::{MemberChange, Replica};
use anchorhold_model::catalog::{CatalogCommand, OperatorRecord, Step};
use anchorhold_model::{NodeId, ReplicaRole, ShardId};
use anchorhold_placement::{ShardNow, progress};
use anchorhold_proto::Reason;
use metrics::counter;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::core::Core;
use crate::merge::NotMerged;
use crate::request::{self, NodeReply, NodeRequest};
use crate::telemetry::name;

/// Time between two questions.
const ASK_INTERVAL: Duration = Duration::from_millis(100);
/// Wait after a step that could not be taken.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How long the shard's leader may take to answer; it does not wait for the step.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one attempt at a split may take: counting what moves is most of it.
const SPLIT_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for the catalog.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How an operator stands, as the shard's leader says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// All its steps are taken.
    Through,
    /// A step is being taken, or waited for.
    Working {
        /// Which, and what was in the way last.
        what: String,
    },
    /// Another replica leads.
    NotLeader {
        /// Its node, if known.
        leader: Option<NodeId>,
    },
    /// The shard is not what it was planned for any more.
    Moved,
    /// A step cannot be taken, now or later.
    Impossible {
        /// Why not.
        why: String,
    },
    /// This node's copy of the catalog does not have the operator.
    Unknown,
}

/// Steps that are being taken on this node, and what was in the way of the last ones.
#[derive(Default)]
pub struct Steps {
    running: Mutex<BTreeMap<(ShardId, u64), Standing>>,
}

/// How operators ended since the last look.
#[derive(Default)]
pub(super) struct Ends {
    /// Shards for which a step was found impossible.
    pub(super) hopeless: Mutex<BTreeSet<ShardId>>,
    /// Operators that were ended by who saw to them: all others were canceled.
    pub(super) ended: Mutex<BTreeSet<(ShardId, u64)>>,
}

/// Counts an operator that has come to an end.
pub(super) fn count(record: &OperatorRecord, result: &'static str) {
    let reason = record.operator.reason.name();
    counter!(name::OPERATORS_TOTAL, "reason" => reason, "result" => result).increment(1);
}

/// Sees to it that an operator comes to its end, and takes it out of the catalog then. How it
/// ended is noted in `ends` before another can be planned for the shard.
pub(super) async fn see_through(core: Arc<Core>, record: OperatorRecord, ends: Arc<Ends>) {
    let shard = record.operator.shard_id;
    let mut hint = None;
    let mut said = String::new();
    loop {
        let leader = hint.take().or_else(|| core.routes.leader(shard));
        let standing = match leader.or_else(|| some_member(&core, shard)) {
            Some(node) => ask(&core, node, &record).await,
            None => None,
        };
        match standing {
            Some(Standing::Through) => {
                tracing::info!(operator = %record.operator, "done");
                count(&record, "done");
                break;
            }
            Some(Standing::Moved) => {
                tracing::info!(operator = %record.operator, "the shard has moved on");
                count(&record, "overtaken");
                break;
            }
            Some(Standing::Impossible { why }) => {
                tracing::warn!(operator = %record.operator, why, "given up: it cannot be done");
                count(&record, "impossible");
                ends.hopeless.lock().insert(shard);
                break;
            }
            Some(Standing::NotLeader { leader }) => {
                core.routes.set_leader(shard, leader);
                hint = leader;
            }
            Some(Standing::Working { what }) => {
                hint = leader;
                if said != what {
                    tracing::info!(operator = %record.operator, what, "under way");
                }
                said = what;
            }
            Some(Standing::Unknown) => hint = leader,
            None => core.routes.set_leader(shard, None),
        }
        tokio::time::sleep(ASK_INTERVAL).await;
    }
    ends.ended.lock().insert((shard, record.number));
    let command = CatalogCommand::FinishOperator { shard_id: shard, number: record.number };
    if let Err(error) = core.host.propose_catalog(command, PROPOSE_TIMEOUT).await {
        // The next look finds it under way still and asks again.
        tracing::debug!(%error, "an operator that is through stays in the catalog");
    }
}

/// Somebody to ask when nobody is known to lead: one member after the other.
fn some_member(core: &Core, shard: ShardId) -> Option<NodeId> {
    let catalog = core.catalog();
    let members = &catalog.shards.get(&shard)?.replicas;
    let turn = usize::from(core.random::<u16>());
    members.get(turn % members.len().max(1)).map(|replica| replica.node_id)
}

async fn ask(core: &Arc<Core>, node: NodeId, record: &OperatorRecord) -> Option<Standing> {
    let (shard, number) = (record.operator.shard_id, record.number);
    if node == core.place.node {
        return Some(core.operate(shard, number));
    }
    let question = request::encode(&NodeRequest::Operate { shard, number }).ok()?;
    let answer = core.host.call(node, question, ASK_TIMEOUT).await.ok()?;
    match request::decode::<NodeReply>(&answer).ok()? {
        NodeReply::Operated(standing) => Some(standing),
        NodeReply::Shard(_)
        | NodeReply::Status(_)
        | NodeReply::BallastReleased(_)
        | NodeReply::Digested(_) => None,
    }
}

impl Core {
    /// Takes the next step of a shard's operator, if this node leads the shard and no step is being
    /// taken. Does not wait for it.
    pub fn operate(self: &Arc<Self>, shard: ShardId, number: u64) -> Standing {
        if self.catalog().removed_shards.contains(&shard) {
            // Merged, and the catalog has ended the operator with it.
            return Standing::Through;
        }
        let Some(record) = self.catalog().operators.get(&shard).cloned() else {
            return Standing::Unknown;
        };
        if record.number != number {
            return Standing::Unknown;
        }
        let Some(replica) = self.host.replica(shard) else {
            return Standing::NotLeader { leader: None };
        };
        if !replica.is_leader() {
            return Standing::NotLeader { leader: replica.leader().map(|leader| leader.node_id) };
        }
        if let Some(standing) = self.steps.running.lock().get(&(shard, number)).cloned() {
            return standing;
        }
        let epoch = replica.state().descriptor.epoch;
        let planned = record.operator.epoch;
        if (epoch.incarnation, epoch.version) != (planned.incarnation, planned.version) {
            // A split is over when the shard has other bounds, whoever took it.
            let is_split = record.operator.splits() && epoch.incarnation == planned.incarnation;
            return if is_split { Standing::Through } else { Standing::Moved };
        }
        let Some(now) = shard_now(&replica, self.place.node) else {
            return Standing::NotLeader { leader: None };
        };
        let Some(position) = progress(&record.operator.steps, &now) else {
            return Standing::Through;
        };
        if position == 0 && epoch != planned {
            return Standing::Moved;
        }
        let step = record.operator.steps.get(position).map(ToString::to_string);
        let what = step.unwrap_or_default();
        match next_move(&record, position, &now, |node| self.host.may_lead(node)) {
            Move::Change(change) => self.take_step(&replica, &record, change),
            Move::Split => self.take_split(&record),
            Move::Merge(target) => self.take_merge(&record, target),
            Move::Wait => {}
        }
        Standing::Working { what }
    }

    fn take_step(
        self: &Arc<Self>,
        replica: &Arc<Replica>,
        record: &OperatorRecord,
        change: MemberChange,
    ) {
        let key = (record.operator.shard_id, record.number);
        let expected = replica.state().descriptor.epoch;
        let what = format!("{change:?}");
        let core = Arc::clone(self);
        self.attempt(key, what, async move {
            let result = core.host.change_members(key.0, expected, &change).await;
            result.err().map(|error| Standing::Working { what: error.to_string() })
        });
    }

    /// Splits the shard, which takes effect once however often it is begun: the epoch is that of the
    /// plan, and the child has the id that was reserved for it.
    fn take_split(self: &Arc<Self>, record: &OperatorRecord) {
        let key = (record.operator.shard_id, record.number);
        let version = record.operator.epoch.version;
        let core = Arc::clone(self);
        self.attempt(key, Step::Split.to_string(), async move {
            let deadline = core.deadline(SPLIT_TIMEOUT);
            let failure = core.split_shard(key.0, Some(version), None, &deadline).await.err()?;
            let what = failure.message;
            let is_hopeless = failure.reason == Reason::SplitImpossible;
            Some(if is_hopeless {
                Standing::Impossible { why: what }
            } else {
                Standing::Working { what }
            })
        });
    }

    /// Merges the shard; an attempt that fails is undone, and another one follows.
    fn take_merge(self: &Arc<Self>, record: &OperatorRecord, target: ShardId) {
        let key = (record.operator.shard_id, record.number);
        let core = Arc::clone(self);
        self.attempt(key, Step::MergeInto(target).to_string(), async move {
            match core.merge_shard(key.0, target).await {
                Ok(()) => None,
                Err(NotMerged::Yet(what)) => Some(Standing::Working { what }),
                Err(NotMerged::Ever(why)) => Some(Standing::Impossible { why }),
            }
        });
    }

    /// Begins to take a step; what was in the way is said to whoever asks within a moment, then it
    /// may be tried again.
    fn attempt(
        self: &Arc<Self>,
        key: (ShardId, u64),
        what: String,
        work: impl Future<Output = Option<Standing>> + Send + 'static,
    ) {
        self.steps.running.lock().insert(key, Standing::Working { what });
        let core = Arc::clone(self);
        tokio::spawn(async move {
            if let Some(standing) = work.await {
                core.steps.running.lock().insert(key, standing);
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            core.steps.running.lock().remove(&key);
        });
    }
}

/// A shard's members as its leader sees them, the last entry of its log included.
fn shard_now(replica: &Replica, own: NodeId) -> Option<ShardNow> {
    let status = replica.status();
    let descriptor = replica.state().descriptor.clone();
    let is_close = |id| {
        let matched = status.matched.iter().find(|(other, _)| *other == id).and_then(|(_, at)| *at);
        let last = status.last_index.unwrap_or(0);
        matched.is_some_and(|matched| last <= matched + LAG_ENTRIES_MAX)
    };
    let members = descriptor.replicas.iter();
    let close = members.clone().filter(|member| is_close(member.replica_id));
    (status.leader?.node_id == own).then(|| ShardNow {
        members: members.map(|member| (member.node_id, member.role)).collect(),
        is_joint: status.is_joint,
        leader: own,
        caught_up: close.map(|member| member.node_id).collect(),
    })
}

/// Entries that a replica may lack and still count as caught up.
const LAG_ENTRIES_MAX: u64 = 128;

/// What taking a step means for the shard's leader.
enum Move {
    Change(MemberChange),
    Split,
    Merge(ShardId),
    Wait,
}

fn next_move(
    record: &OperatorRecord,
    position: usize,
    now: &ShardNow,
    may_lead: impl Fn(NodeId) -> bool,
) -> Move {
    let steps = &record.operator.steps;
    let change = match steps.get(position) {
        Some(Step::AddLearner(node)) => {
            let replica_id = record.replica_id(position);
            MemberChange::AddLearner { node: *node, replica_id }
        }
        Some(Step::ChangeVoters { remove, .. }) if remove.contains(&now.leader) => {
            // The lead may have come here since the plan was made; only who stays takes others out.
            match heir(now, remove, &may_lead) {
                Some(node) => MemberChange::TransferLeader { node },
                None => return Move::Wait,
            }
        }
        Some(Step::ChangeVoters { add, remove }) => {
            MemberChange::ChangeVoters { add: add.clone(), remove: remove.clone() }
        }
        Some(Step::LeaveJoint) => MemberChange::LeaveJoint,
        Some(Step::RemoveReplica(node)) => MemberChange::RemoveLearner { node: *node },
        Some(Step::TransferLeader(node)) => {
            // Where it only has to leave those that go, another one does as well.
            let is_ready = now.caught_up.contains(node) && may_lead(*node);
            let is_means = position + 1 < steps.len();
            let other = (is_means && !is_ready)
                .then(|| heir(now, &leaving(steps, position), &may_lead))
                .flatten();
            MemberChange::TransferLeader { node: other.unwrap_or(*node) }
        }
        Some(Step::WaitCaughtUp(_)) | None => return Move::Wait,
        Some(Step::Split) => return Move::Split,
        Some(Step::MergeInto(target)) => return Move::Merge(*target),
    };
    Move::Change(change)
}

/// Whose votes the steps after one take away.
fn leaving(steps: &[Step], position: usize) -> Vec<NodeId> {
    let later = steps.iter().skip(position + 1);
    let removed = later.filter_map(|step| match step {
        Step::ChangeVoters { remove, .. } => Some(remove.iter().copied()),
        Step::AddLearner(_)
        | Step::WaitCaughtUp(_)
        | Step::LeaveJoint
        | Step::RemoveReplica(_)
        | Step::TransferLeader(_)
        | Step::Split
        | Step::MergeInto(_) => None,
    });
    removed.flatten().collect()
}

/// A voter that stays, is close enough to lead, and may.
fn heir(now: &ShardNow, remove: &[NodeId], may_lead: &impl Fn(NodeId) -> bool) -> Option<NodeId> {
    let voters = now.members.iter().filter(|(_, role)| *role == ReplicaRole::Voter);
    let mut nodes = voters.map(|(node, _)| *node);
    nodes.find(|node| !remove.contains(node) && now.caught_up.contains(node) && may_lead(*node))
}

#[cfg(test)]
mod tests {
    use anchorhold_model::catalog::{Operator, Reason};
    use anchorhold_model::{Epoch, Timestamp};

    use super::*;

    #[test]
    fn a_leader_that_is_to_leave_hands_over_first() {
        let [n1, n2, n3, n4] = [1, 2, 3, 4].map(NodeId);
        let steps = vec![Step::ChangeVoters { add: vec![n4], remove: vec![n1] }];
        let operator = Operator {
            shard_id: ShardId(1),
            epoch: Epoch::FIRST,
            steps,
            reason: Reason::Diversity(n1),
            live_voters: 3,
        };
        let (start_time, deadline) = (Timestamp(0), Timestamp(1));
        let record = OperatorRecord { number: 1, operator, start_time, deadline };
        let next_of = |record: &OperatorRecord, leader, caught_up: &[NodeId], silent: &[NodeId]| {
            let now = ShardNow {
                members: [n1, n2, n3]
                    .map(|node| (node, ReplicaRole::Voter))
                    .into_iter()
                    .chain([(n4, ReplicaRole::Learner)])
                    .collect(),
                is_joint: false,
                leader,
                caught_up: caught_up.iter().copied().collect(),
            };
            match next_move(record, 0, &now, |node| !silent.contains(&node)) {
                Move::Change(change) => Some(format!("{change:?}")),
                Move::Split | Move::Merge(_) | Move::Wait => None,
            }
        };
        let next = |leader, caught_up: &[NodeId]| next_of(&record, leader, caught_up, &[]);
        let change = |change: MemberChange| Some(format!("{change:?}"));
        let leave = || MemberChange::ChangeVoters { add: vec![n4], remove: vec![n1] };
        assert_eq!(next(n2, &[n1, n3, n4]), change(leave()));
        // Not to the newcomer, which does not vote yet, nor to one that lags.
        assert_eq!(next(n1, &[n3, n4]), change(MemberChange::TransferLeader { node: n3 }));
        assert_eq!(next(n1, &[n4]), None);
        // A voter of a shard at rest has everything even if it is dead.
        let to = |node| change(MemberChange::TransferLeader { node });
        assert_eq!(next_of(&record, n1, &[n2, n3, n4], &[n2]), to(n3));
        // The heir of the plan is dead: another one does, unless it was the aim.
        let leave_by = |steps: Vec<Step>| {
            let operator = Operator { steps, ..record.operator.clone() };
            OperatorRecord { operator, ..record.clone() }
        };
        let last = Step::ChangeVoters { add: vec![n4], remove: vec![n1] };
        let means = leave_by(vec![Step::TransferLeader(n2), last]);
        assert_eq!(next_of(&means, n1, &[n2, n3], &[n2]), to(n3));
        assert_eq!(next_of(&means, n1, &[n2, n3], &[]), to(n2));
        let aim = leave_by(vec![Step::TransferLeader(n2)]);
        assert_eq!(next_of(&aim, n1, &[n2, n3], &[n2]), to(n2));
    }
}
