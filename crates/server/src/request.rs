//! What nodes ask each other, and the answers: one shard, one request, one reply.
//!
//! A request is made by the node that a client talks to, is executed by a node that has a suitable
//! replica, here or elsewhere, and carries what is needed to judge it there: the epoch it was
//! routed by, the time left. Encoded by postcard behind one byte of format version;
//! an unknown version is refused, never guessed at.

use std::sync::Arc;
use std::time::Duration;

use anchorhold_geometry::Ecef;
use anchorhold_model::{
    Anchor, AnchorId, Command, Epoch, Key, KeyRange, MergeStep, Merged, NodeId, Outcome,
    ReplicaRole, ShardDescriptor, ShardId, Space, Timestamp,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use anchorhold_proto::convert::{FilterSpec, RegionSpec};

use crate::report::{ReportDifference, ReportMark};
use crate::scheduler::operate::Standing;

/// Version of this module's encoding.
pub const FORMAT_VERSION: u8 = 8;

/// A question to another node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum NodeRequest {
    /// Something of a shard.
    Shard(Box<ShardCall>),
    /// How the node and its replicas are, as far as it is not known.
    Status {
        /// What is known: the mark of the last report; `None` if there is none.
        known: Option<ReportMark>,
    },
    /// Give the ballast's space back.
    ReleaseBallast,
    /// Take the next step of a shard's operator.
    Operate {
        /// The shard.
        shard: ShardId,
        /// The operator's number.
        number: u64,
    },
    /// Digest the replica of a shard.
    Digest {
        /// The shard.
        shard: ShardId,
        /// As of this applied index.
        index: u64,
        /// Milliseconds that the sender will wait for the index.
        patience_ms: u64,
        /// Bytes per second that may be read.
        bytes_per_second: u64,
    },
}

/// The answer to a [`NodeRequest`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum NodeReply {
    /// What the shard answered.
    Shard(Result<ShardReply, ShardError>),
    /// How the node is.
    Status(Box<ReportDifference>),
    /// How many bytes the ballast gave back, or why it could not.
    BallastReleased(Result<u64, String>),
    /// How the operator stands.
    Operated(Standing),
    /// What the replica holds at the index, or why that is not known.
    Digested(Result<HeldDigest, String>),
}

/// What a replica holds at one applied index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldDigest {
    /// Last log index applied.
    pub applied_index: u64,
    /// The shard's count of changes; 0 for the catalog.
    pub revision: u64,
    /// Anchors; 0 for the catalog.
    pub anchors: u64,
    /// 32 hexadecimal digits.
    pub digest: String,
}

/// A request and what it was routed by.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShardCall {
    /// The shard.
    pub shard: ShardId,
    /// Its epoch as the sender knows it.
    pub epoch: Epoch,
    /// Its keys as the sender knows them.
    pub range: KeyRange,
    /// Milliseconds that the sender will wait.
    pub budget_ms: u64,
    /// What is asked.
    pub request: ShardRequest,
}

/// What is asked of one shard.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ShardRequest {
    /// Do these, in order. Needs the leader.
    Write {
        /// The writes.
        commands: Vec<Command>,
    },
    /// Let shard time pass this moment if the leader's wall clock has. Needs the leader.
    Tick {
        /// A due expiry.
        due: Timestamp,
    },
    /// These anchors.
    Get {
        /// Which; answered in this order.
        ids: Vec<AnchorId>,
        /// How to read.
        read: Read,
    },
    /// Visible anchors in id order.
    List(ListQuery),
    /// The nearest anchors to a position.
    Nearest(NearestQuery),
    /// Become two. Needs the leader.
    Split {
        /// The first key of the new shard; `None`: the median.
        at: Option<Key>,
        /// The new shard's id, reserved for a split of this shard at the call's epoch.
        child: ShardId,
    },
    /// Take a step of a merge. Needs the leader.
    Merge(MergeStep),
}

/// Visible anchors of a range, in id order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListQuery {
    /// Ranges of keys to look through, ascending and disjoint.
    pub ranges: Vec<KeyRange>,
    /// Only this space.
    pub space: Option<Space>,
    /// Only anchors inside.
    pub region: Option<RegionSpec>,
    /// Only anchors that pass.
    pub filter: FilterSpec,
    /// Anchors in the answer, at most.
    pub limit: usize,
    /// How to read.
    pub read: Read,
}

/// The nearest anchors to a position.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NearestQuery {
    /// Whose anchors: a shard may hold several accounts.
    pub keys: KeyRange,
    /// The space that is searched.
    pub space: Space,
    /// The position in that space's meters.
    pub position: Ecef,
    /// How many.
    pub k: usize,
    /// Only anchors at most this far away, in meters; may be infinite.
    pub distance_m_max: f64,
    /// Only anchors that pass.
    pub filter: FilterSpec,
    /// How to read.
    pub read: Read,
}

/// How to read one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// How fresh.
    pub level: Level,
    /// What a session has seen: the answer must be at least as new.
    pub at_least: Option<Seen>,
}

/// [`anchorhold_consensus::ReadLevel`] as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Level {
    /// Sees every write acknowledged before the read arrived.
    Linearizable,
    /// Misses at most the writes of this last while.
    BoundedStaleness {
        /// How old the view may be.
        staleness_max: Duration,
    },
    /// Whatever the replica has applied.
    Local,
}

/// A moment in a shard's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The shard's incarnation.
    pub incarnation: u32,
    /// Its count of changes.
    pub revision: u64,
}

/// What a shard answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ShardReply {
    /// One for each command.
    Written {
        /// In order.
        outcomes: Vec<Outcome>,
        /// Who served.
        served: Served,
    },
    /// Shard time is past the asked moment, or the leader's clock is not.
    Ticked,
    /// One for each id; `None` if there is no visible anchor.
    Got {
        /// In the order of the ids.
        anchors: Vec<Option<Arc<Anchor>>>,
        /// Who served.
        served: Served,
    },
    /// A part of a listing.
    Listed {
        /// In id order.
        anchors: Vec<Arc<Anchor>>,
        /// Where to go on; `None` if the ranges are exhausted.
        next: Option<Key>,
        /// Who served.
        served: Served,
    },
    /// The nearest anchors.
    Found {
        /// Nearest first, ties by id, with the distance in meters.
        anchors: Vec<(f64, Arc<Anchor>)>,
        /// Who served.
        served: Served,
    },
    /// The shard is two.
    Split {
        /// With what lies before the key.
        parent: Box<ShardDescriptor>,
        /// With the rest.
        child: Box<ShardDescriptor>,
    },
    /// The step of a merge was taken.
    Merged(Merged),
}

/// Which view of which replica an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Served {
    /// The shard.
    pub shard: ShardId,
    /// Its keys.
    pub range: KeyRange,
    /// Its incarnation.
    pub incarnation: u32,
    /// Its count of changes, not below anything in the answer.
    pub revision: u64,
    /// How old the view is at most; `None` when unknown.
    pub staleness: Option<Duration>,
    /// The node.
    pub node: NodeId,
    /// The replica's role.
    pub role: ReplicaRole,
    /// Whether it led.
    pub leader: bool,
    /// The level that was kept.
    pub level: Level,
}

/// Why a shard gave no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error, Serialize, Deserialize)]
pub enum ShardError {
    /// The node has no replica of the shard, or none that may serve this.
    #[error("the node has no replica of the shard")]
    NoReplica,
    /// Another replica leads; nothing was done.
    #[error("another node leads the shard")]
    NotLeader {
        /// Which, if known.
        leader: Option<NodeId>,
    },
    /// The shard's bounds or members have changed; this try has done nothing.
    #[error("the shard has changed")]
    StaleEpoch {
        /// Every shard that owns a part of the routed range now, as far as the node knows.
        descriptors: Vec<ShardDescriptor>,
        /// Whether an earlier try of the same write may have taken effect.
        maybe_done: bool,
    },
    /// The shard cannot be split, or not yet; nothing was done.
    #[error("the shard cannot be split: {reason}")]
    NotSplit {
        /// Why.
        reason: String,
        /// Whether it may be possible later.
        is_early: bool,
    },
    /// The shard becomes part of another one at this moment; nothing was done.
    #[error("the shard is being merged")]
    Merging,
    /// A step of a merge does not fit what the shard is, or not yet; nothing was done.
    #[error("the shard cannot be merged: {reason}")]
    NotMerged {
        /// Why.
        reason: String,
    },
    /// Too much is waiting; nothing was done.
    #[error("too many writes wait for the shard")]
    Busy,
    /// The disks have no room for more data; nothing was done.
    #[error("the disks of the shard's nodes have no room for more data")]
    DiskFull,
    /// Whether the write took effect is not known.
    #[error("whether the write took effect is not known")]
    OutcomeUnknown,
    /// No leader confirmed in time; nothing was done.
    #[error("the shard has no leader that answers")]
    NoLeader,
    /// The replica is behind what was asked for.
    #[error("the replica is behind")]
    Behind,
    /// The replica or its disk has failed.
    #[error("the replica has failed: {reason}")]
    Failed {
        /// Why.
        reason: String,
    },
    /// The time was up; nothing was done.
    #[error("the time was up")]
    TimeUp,
    /// The node did not answer a question that has no effect.
    #[error("the node did not answer")]
    Unreachable,
    /// The other node does not understand the question.
    #[error("the other node does not understand the request: {reason}")]
    Misunderstood {
        /// What it did not understand.
        reason: String,
    },
}

impl ShardRequest {
    /// Whether only the leader can do this.
    pub fn needs_leader(&self) -> bool {
        match self {
            Self::Write { .. } | Self::Tick { .. } | Self::Split { .. } | Self::Merge(_) => true,
            Self::Get { .. } | Self::List(_) | Self::Nearest(_) => false,
        }
    }

    /// Whether doing it changes anything.
    pub fn is_write(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Split { .. } | Self::Merge(_))
    }

    /// How to read; `None` for writes.
    pub fn read(&self) -> Option<&Read> {
        match self {
            Self::Write { .. } | Self::Tick { .. } | Self::Split { .. } | Self::Merge(_) => None,
            Self::Get { read, .. } => Some(read),
            Self::List(query) => Some(&query.read),
            Self::Nearest(query) => Some(&query.read),
        }
    }

    /// A word for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Write { .. } => "write",
            Self::Tick { .. } => "tick",
            Self::Get { .. } => "get",
            Self::List(_) => "list",
            Self::Nearest(_) => "nearest",
            Self::Split { .. } => "split",
            Self::Merge(_) => "merge",
        }
    }
}

impl ShardReply {
    /// Who served; `None` for ticks.
    pub fn served(&self) -> Option<&Served> {
        match self {
            Self::Ticked | Self::Split { .. } | Self::Merged(_) => None,
            Self::Written { served, .. }
            | Self::Got { served, .. }
            | Self::Listed { served, .. }
            | Self::Found { served, .. } => Some(served),
        }
    }
}

impl Level {
    /// The level as `consensus` takes it.
    pub fn to_read_level(self) -> anchorhold_consensus::ReadLevel {
        match self {
            Self::Linearizable => anchorhold_consensus::ReadLevel::Linearizable,
            Self::BoundedStaleness { staleness_max } => {
                anchorhold_consensus::ReadLevel::BoundedStaleness { staleness_max }
            }
            Self::Local => anchorhold_consensus::ReadLevel::Local,
        }
    }
}

/// Why bytes are no message of this version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Nothing at all.
    #[error("an empty message")]
    Empty,
    /// Written by another version.
    #[error("format version {0}, not {FORMAT_VERSION}")]
    Version(u8),
    /// Not what that version writes.
    #[error("malformed: {0}")]
    Malformed(String),
}

/// The message behind its format version.
///
/// # Errors
/// [`ShardError::Misunderstood`] if it cannot be encoded, which no value of these types causes.
pub fn encode<T: Serialize>(message: &T) -> Result<Bytes, ShardError> {
    postcard::to_extend(message, vec![FORMAT_VERSION])
        .map(Bytes::from)
        .map_err(|error| ShardError::Misunderstood { reason: error.to_string() })
}

/// The message in bytes from another node.
///
/// # Errors
/// [`DecodeError`] if they are not a whole message of this version.
pub fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (version, content) = bytes.split_first().ok_or(DecodeError::Empty)?;
    if *version != FORMAT_VERSION {
        return Err(DecodeError::Version(*version));
    }
    postcard::from_bytes(content).map_err(|error| DecodeError::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_the_way() {
        let call = NodeRequest::Shard(Box::new(ShardCall {
            shard: ShardId(7),
            epoch: Epoch { incarnation: 1, version: 2, conf_version: 3 },
            range: KeyRange::FULL,
            budget_ms: 900,
            request: ShardRequest::Tick { due: Timestamp(5) },
        }));
        let bytes = encode(&call).unwrap();
        let NodeRequest::Shard(back) = decode(&bytes).unwrap() else { panic!() };
        assert_eq!((back.shard, back.budget_ms), (ShardId(7), 900));
    }

    #[test]
    fn another_version_and_broken_bytes_are_refused() {
        let mut bytes = encode(&NodeRequest::Status { known: None }).unwrap().to_vec();
        bytes[0] = 9;
        assert_eq!(decode::<NodeRequest>(&bytes).unwrap_err(), DecodeError::Version(9));
        assert_eq!(decode::<NodeRequest>(&[]).unwrap_err(), DecodeError::Empty);
        let error = decode::<NodeRequest>(&[FORMAT_VERSION, 200, 1]).unwrap_err();
        assert!(matches!(error, DecodeError::Malformed(_)));
    }
}
