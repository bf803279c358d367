//! What a plan says: operators, and why something was not done.

use std::collections::BTreeMap;
use std::fmt;

use anchorhold_model::{ClassId, Epoch, NodeId, ShardId};

/// One step of an operator. To take a step again that was taken already changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

/// Why an operator was planned, in order of urgency: a plan serves earlier ones first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
}

/// A change of one shard.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    /// Operators of the cluster.
    Operators,
    /// Replicas built on the nodes in question, or in their zone.
    Incoming,
    /// Replicas built from the leader's node.
    Outgoing,
    /// Leaderships given or taken by a node.
    Transfers,
    /// Merges.
    Merges,
}

/// Why something that a shard could use was not planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WhyNot {
    /// The shard's class is not in the view.
    ClassUnknown(ClassId),
    /// Most of its voters are away: nobody may decide that they never return but an operator.
    QuorumLost,
    /// Nobody leads it; an election is under way.
    NoLeader,
    /// An operator runs on it.
    OperatorInFlight,
    /// A node is silent, for less time than its timer asks for.
    BelowTimer(NodeId),
    /// No node that may hold it has room.
    NoRoom,
    /// The survivors of the region could not carry what was lost.
    NoRoomInRegion,
    /// Nodes have room, but only where the class forbids them.
    ResidencyForbids,
    /// A limit is reached.
    LimitReached(Limit),
    /// A voter that is needed is still behind.
    CatchingUp(NodeId),
    /// No voter may lead instead.
    NoLeaderTarget,
    /// A change would make too little difference.
    Hysteresis,
    /// It was moved or split a short while ago.
    Settling,
}

/// Something that was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// For which shard.
    pub shard_id: ShardId,
    /// What it could use; `None` if it was not looked at.
    pub need: Option<Reason>,
    /// Why it was not done.
    pub why: WhyNot,
}

/// What to do now, and what not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The most urgent first; at most one per shard.
    pub operators: Vec<Operator>,
    /// Shards that could use a change and get none, in the order in which they were looked at; as
    /// many as the configuration asks for.
    pub refusals: Vec<Refusal>,
    /// How many there are, by their [`WhyNot::name`].
    pub refused: BTreeMap<&'static str, u64>,
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
}

impl WhyNot {
    /// A stable name, for counting.
    pub fn name(self) -> &'static str {
        match self {
            Self::ClassUnknown(_) => "class unknown",
            Self::QuorumLost => "quorum lost",
            Self::NoLeader => "no leader",
            Self::OperatorInFlight => "operator in flight",
            Self::BelowTimer(_) => "below timer",
            Self::NoRoom => "no room",
            Self::NoRoomInRegion => "no room in region",
            Self::ResidencyForbids => "residency forbids",
            Self::LimitReached(_) => "limit reached",
            Self::CatchingUp(_) => "catching up",
            Self::NoLeaderTarget => "no leader target",
            Self::Hysteresis => "hysteresis",
            Self::Settling => "settling",
        }
    }

    /// What would make it possible.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::ClassUnknown(_) => "create the class, or move the shard to another",
            Self::QuorumLost => "bring its nodes back, or recover it by hand",
            Self::NoLeader | Self::OperatorInFlight | Self::LimitReached(_) | Self::Settling => {
                "wait"
            }
            Self::BelowTimer(_) => "wait for the node or its timer, or decommission it",
            Self::NoRoom => "add a node, or a disk, in a zone of the class's regions",
            Self::NoRoomInRegion => "add nodes to the region, or bring the lost ones back",
            Self::ResidencyForbids => "add a node inside the class's residency set",
            Self::CatchingUp(_) => "wait until the replica has caught up",
            Self::NoLeaderTarget => "bring back a node that may lead",
            Self::Hysteresis => "nothing: it is balanced well enough",
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
        }
    }
}

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClassUnknown(class_id) => write!(f, "class {class_id} unknown"),
            Self::BelowTimer(node_id) => write!(f, "{node_id} below its timer"),
            Self::LimitReached(limit) => {
                let limit = match limit {
                    Limit::Operators => "operators",
                    Limit::Incoming => "incoming",
                    Limit::Outgoing => "outgoing",
                    Limit::Transfers => "transfers",
                    Limit::Merges => "merges",
                };
                write!(f, "limit of {limit} reached")
            }
            Self::CatchingUp(node_id) => write!(f, "{node_id} catching up"),
            Self::QuorumLost
            | Self::NoLeader
            | Self::OperatorInFlight
            | Self::NoRoom
            | Self::NoRoomInRegion
            | Self::ResidencyForbids
            | Self::NoLeaderTarget
            | Self::Hysteresis
            | Self::Settling => f.write_str(self.name()),
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

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} not: ", self.shard_id)?;
        if let Some(need) = self.need {
            write!(f, "{need}: ")?;
        }
        write!(f, "{}", self.why)
    }
}
