//! Changes of shards that are under way: what is to be done, and why.
//!
//! An operator is intent only: how far it has come is read off the shard's members
//! (`placement::progress`). Invariant: one operator a shard.
//!
//! Not here: which operators there should be, what their steps do.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{CatalogChange, CatalogOutcome, CatalogRejection, Draft};
use crate::{Epoch, NodeId, ReplicaId, ShardId, Timestamp};

/// Replica ids that one operator can give out: its number times this, and the step's position.
const STEPS_MAX: u64 = 16;
/// Operators that are under way at once, at most.
pub const OPERATORS_MAX: usize = 8_192;

/// One step of an operator. To take a step again that was taken already changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Step {
    /// Let a node follow.
    AddLearner(NodeId),
    /// Wait until a learner has what the leader has.
    WaitCaughtUp(NodeId),
    /// One joint change of the voters. Who is taken out becomes a learner.
    ChangeVoters {
        /// Learners that vote from then on.
        add: Vec<NodeId>,
        /// Voters that do not.
        remove: Vec<NodeId>,
    },
    /// Finish a joint change that someone began.
    LeaveJoint,
    /// Take a learner away, and its copy with it.
    RemoveReplica(NodeId),
    /// Let a voter lead.
    TransferLeader(NodeId),
    /// Cut the shard in two at the key that its leader finds best.
    Split,
    /// Become part of the neighbour on the left, which lives on the same nodes.
    MergeInto(ShardId),
}

/// Why an operator was planned. How urgent each is, the planner says; stored operators name it by
/// its place here, so new ones come last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reason {
    /// A replica lies outside the class's residency set.
    Residency(NodeId),
    /// A joint change was begun and not finished.
    UnfinishedJoint,
    /// A replica's node is dead.
    DeadReplica(NodeId),
    /// The leader's node should not lead.
    LeaderOnBadNode(NodeId),
    /// A replica's node is to leave.
    Decommission(NodeId),
    /// A voter lies in a region where none should.
    MisplacedVoter(NodeId),
    /// There are fewer voters than the class wants.
    MissingVoter,
    /// There are fewer learners in the paired region than the class wants.
    MissingLearner,
    /// There are more voters than the class wants.
    ExtraVoter(NodeId),
    /// A learner that no class wants.
    ExtraLearner(NodeId),
    /// Replicas share a zone or region although they need not.
    Diversity(NodeId),
    /// The shard holds too many bytes or anchors.
    SplitSize,
    /// The shard serves too many requests.
    SplitLoad,
    /// The leader is outside the class's home.
    LeaderRegion,
    /// A node holds more than others.
    ReplicaBalance(NodeId),
    /// A node or zone leads more than others.
    LeaderBalance(NodeId),
    /// Two small neighbours.
    Merge,
    /// A replica's node lives, but what the replica must know is lost.
    LostReplica(NodeId),
}

/// A change of one shard.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Operator {
    /// The shard.
    pub shard_id: ShardId,
    /// The epoch that it was planned at: if the shard has another when it starts, it is dropped.
    pub epoch: Epoch,
    /// What to do, one after the other.
    pub steps: Vec<Step>,
    /// Why.
    pub reason: Reason,
    /// Voters that were alive: of equally urgent operators, those with fewer go first.
    pub live_voters: usize,
}

/// An operator under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorRecord {
    /// Its number: given out once, from 1.
    pub number: u64,
    /// What to do.
    pub operator: Operator,
    /// When it was started, by the clock of the catalog's leader.
    pub start_time: Timestamp,
    /// When it is given up if it is not through.
    pub deadline: Timestamp,
}

impl OperatorRecord {
    /// The id of the replica that a step adds: no other step of any operator has it, and the same
    /// step has it always.
    pub fn replica_id(&self, step: usize) -> ReplicaId {
        let step = (step as u64).min(STEPS_MAX - 1);
        let incarnation = u16::try_from(self.operator.epoch.incarnation).unwrap_or(u16::MAX);
        ReplicaId::new(incarnation, self.number * STEPS_MAX + step)
    }
}

/// Which changes are made without an operator's command, and how many at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedulerRecord {
    /// Nothing is planned while this is set; what is under way goes on.
    pub is_paused: bool,
    /// Operators at once, at most; the configuration's number if unset.
    pub operators_max: Option<u32>,
    /// Replicas built on a node at once, at most; the configuration's number if unset.
    pub incoming_max: Option<u32>,
}

impl Draft<'_> {
    /// Starts those whose shard has no operator and is not past the epoch that it was planned at.
    /// A retry finds them started.
    pub(super) fn start_operators(
        &mut self,
        operators: &[Operator],
        deadline: Timestamp,
    ) -> Result<CatalogOutcome, CatalogRejection> {
        let mut started = Vec::new();
        for operator in operators {
            let known = self.state.shards.get(&operator.shard_id);
            let is_current = known.is_some_and(|shard| shard.epoch <= operator.epoch);
            let is_free = !self.state.operators.contains_key(&operator.shard_id)
                && !started.contains(&operator.shard_id);
            let has_room = self.state.operators.len() + started.len() < OPERATORS_MAX;
            if !is_current || !is_free || !has_room || STEPS_MAX < operator.steps.len() as u64 {
                continue;
            }
            self.changes.push(CatalogChange::Operator(OperatorRecord {
                number: self.counters.next_operator,
                operator: operator.clone(),
                start_time: self.time,
                deadline,
            }));
            self.counters.next_operator += 1;
            started.push(operator.shard_id);
        }
        Ok(CatalogOutcome::OperatorsStarted { shards: started })
    }

    pub(super) fn finish_operator(
        &mut self,
        shard_id: ShardId,
        number: u64,
    ) -> Result<CatalogOutcome, CatalogRejection> {
        let known = self.state.operators.get(&shard_id);
        if known.is_some_and(|known| known.number == number) {
            self.changes.push(CatalogChange::OperatorFinished(shard_id));
        }
        Ok(CatalogOutcome::OperatorFinished)
    }

    pub(super) fn set_scheduler(
        &mut self,
        scheduler: SchedulerRecord,
    ) -> Result<CatalogOutcome, CatalogRejection> {
        if self.state.scheduler != scheduler {
            self.changes.push(CatalogChange::Scheduler(scheduler));
        }
        Ok(CatalogOutcome::SchedulerSet)
    }
}

impl Operator {
    /// Nodes that get a replica.
    pub fn added(&self) -> impl Iterator<Item = NodeId> {
        self.steps.iter().filter_map(|step| match step {
            Step::AddLearner(node_id) => Some(*node_id),
            Step::WaitCaughtUp(_)
            | Step::ChangeVoters { .. }
            | Step::LeaveJoint
            | Step::RemoveReplica(_)
            | Step::TransferLeader(_)
            | Step::Split
            | Step::MergeInto(_) => None,
        })
    }

    /// The node that leads afterwards, if that changes.
    pub fn leader_after(&self) -> Option<NodeId> {
        self.steps.iter().rev().find_map(|step| match step {
            Step::TransferLeader(node_id) => Some(*node_id),
            Step::AddLearner(_)
            | Step::WaitCaughtUp(_)
            | Step::ChangeVoters { .. }
            | Step::LeaveJoint
            | Step::RemoveReplica(_)
            | Step::Split
            | Step::MergeInto(_) => None,
        })
    }

    /// The shard that this one becomes part of.
    pub fn merges_into(&self) -> Option<ShardId> {
        match self.steps.last() {
            Some(Step::MergeInto(shard_id)) => Some(*shard_id),
            Some(_) | None => None,
        }
    }

    /// Whether it makes two shards of one.
    pub fn splits(&self) -> bool {
        self.steps.contains(&Step::Split)
    }
}

impl Reason {
    /// A stable name without ids, for counting.
    pub fn name(self) -> &'static str {
        match self {
            Self::Residency(_) => "residency",
            Self::UnfinishedJoint => "unfinished_joint",
            Self::DeadReplica(_) => "dead_replica",
            Self::LeaderOnBadNode(_) => "leader_on_bad_node",
            Self::Decommission(_) => "decommission",
            Self::MisplacedVoter(_) => "misplaced_voter",
            Self::MissingVoter => "missing_voter",
            Self::MissingLearner => "missing_learner",
            Self::ExtraVoter(_) => "extra_voter",
            Self::ExtraLearner(_) => "extra_learner",
            Self::Diversity(_) => "diversity",
            Self::SplitSize => "split_size",
            Self::SplitLoad => "split_load",
            Self::LeaderRegion => "leader_region",
            Self::ReplicaBalance(_) => "replica_balance",
            Self::LeaderBalance(_) => "leader_balance",
            Self::Merge => "merge",
            Self::LostReplica(_) => "lost_replica",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddLearner(node_id) => write!(f, "add {node_id}"),
            Self::WaitCaughtUp(node_id) => write!(f, "wait {node_id}"),
            Self::ChangeVoters { add, remove } => {
                write!(f, "voters")?;
                add.iter().try_for_each(|node_id| write!(f, " +{node_id}"))?;
                remove.iter().try_for_each(|node_id| write!(f, " -{node_id}"))
            }
            Self::LeaveJoint => write!(f, "leave joint"),
            Self::RemoveReplica(node_id) => write!(f, "remove {node_id}"),
            Self::TransferLeader(node_id) => write!(f, "lead {node_id}"),
            Self::Split => write!(f, "split"),
            Self::MergeInto(shard_id) => write!(f, "merge into {shard_id}"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Residency(node_id) => write!(f, "{node_id} is outside the residency set"),
            Self::UnfinishedJoint => write!(f, "unfinished joint change"),
            Self::DeadReplica(node_id) => write!(f, "{node_id} is dead"),
            Self::LeaderOnBadNode(node_id) => write!(f, "{node_id} should not lead"),
            Self::Decommission(node_id) => write!(f, "{node_id} is to leave"),
            Self::MisplacedVoter(node_id) => write!(f, "voter {node_id} is in another region"),
            Self::MissingVoter => write!(f, "too few voters"),
            Self::MissingLearner => write!(f, "too few learners"),
            Self::ExtraVoter(node_id) => write!(f, "voter {node_id} is one too many"),
            Self::ExtraLearner(node_id) => write!(f, "learner {node_id} is one too many"),
            Self::Diversity(node_id) => write!(f, "{node_id} shares its zone or region"),
            Self::SplitSize => write!(f, "too large"),
            Self::SplitLoad => write!(f, "too much load"),
            Self::LeaderRegion => write!(f, "leader away from home"),
            Self::ReplicaBalance(node_id) => write!(f, "{node_id} holds more than others"),
            Self::LeaderBalance(node_id) => write!(f, "{node_id} leads more than others"),
            Self::Merge => write!(f, "small neighbours"),
            Self::LostReplica(node_id) => write!(f, "the replica on {node_id} is lost"),
        }
    }
}

/// `s7@1.1.4 add n5, wait n5, voters +n5 -n3, remove n3: n3 is dead`.
impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps: Vec<String> = self.steps.iter().map(ToString::to_string).collect();
        write!(f, "{}@{} {}: {}", self.shard_id, self.epoch, steps.join(", "), self.reason)
    }
}
