//! What a plan says: operators (`model::catalog` has them), and why something was not done.

use std::collections::BTreeMap;
use std::fmt;

use anchorhold_model::catalog::{Operator, Reason};
use anchorhold_model::{ClassId, NodeId, ShardId};

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
    /// Splits.
    Splits,
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
    /// Its last operator was given up a moment ago.
    Resting,
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
            Self::Resting => "resting",
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
            Self::Resting => "wait; the node that leads the catalog logs why it was given up",
            Self::BelowTimer(_) => "wait for the node or its timer, or decommission it",
            Self::NoRoom => {
                "bring nodes that are not up back, or add a node or a disk, in a zone of the class's regions"
            }
            Self::NoRoomInRegion => "add nodes to the region, or bring the lost ones back",
            Self::ResidencyForbids => "add a node inside the class's residency set",
            Self::CatchingUp(_) => "wait until the replica has caught up",
            Self::NoLeaderTarget => "bring back a node that may lead",
            Self::Hysteresis => "nothing: it is balanced well enough",
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
                    Limit::Splits => "splits",
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
            | Self::Settling
            | Self::Resting => f.write_str(self.name()),
        }
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
