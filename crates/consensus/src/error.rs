use anchorhold_model::{ShardDescriptor, ShardId};

use crate::LeaderHint;

/// Why a proposal gave no outcome.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProposeError {
    /// This node does not lead the shard; nothing was proposed.
    #[error("shard {shard:?} is not led here")]
    NotLeader {
        /// The shard.
        shard: ShardId,
        /// Who leads it, if known.
        leader: Option<LeaderHint>,
    },
    /// Routed by a stale epoch; nothing was proposed.
    #[error("shard {shard:?} has another epoch")]
    StaleEpoch {
        /// The shard.
        shard: ShardId,
        /// The shard as it is here.
        descriptor: Box<ShardDescriptor>,
    },
    /// Too much is waiting; nothing was proposed.
    #[error("shard {shard:?} has {waiting_bytes} bytes of writes waiting")]
    Busy {
        /// The shard.
        shard: ShardId,
        /// Bytes that wait.
        waiting_bytes: usize,
    },
    /// The disks of the shard's nodes have no room for more data; nothing was proposed.
    #[error("the disks of shard {shard:?} have no room for more data")]
    DiskFull {
        /// The shard.
        shard: ShardId,
    },
    /// Proposed, but the outcome did not become known in time. Safe to retry with the same id.
    #[error("the outcome of a write to shard {shard:?} is unknown")]
    OutcomeUnknown {
        /// The shard.
        shard: ShardId,
    },
    /// The replica has stopped.
    #[error("the replica of shard {shard:?} has stopped: {reason}")]
    Stopped {
        /// The shard.
        shard: ShardId,
        /// Why.
        reason: String,
    },
}

/// Why a read may not be served here now.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// No leader answered in time.
    #[error("no leader of shard {shard:?} confirmed the read in time")]
    NoLeader {
        /// The shard.
        shard: ShardId,
    },
    /// This replica could not catch up in time.
    #[error("this replica of shard {shard:?} is behind: at {applied:?}, needs {needed}")]
    Behind {
        /// The shard.
        shard: ShardId,
        /// Applied index here.
        applied: Option<u64>,
        /// Needed index.
        needed: u64,
    },
    /// The replica has stopped.
    #[error("the replica of shard {shard:?} has stopped: {reason}")]
    Stopped {
        /// The shard.
        shard: ShardId,
        /// Why.
        reason: String,
    },
}

/// Why a call to another node gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// No address of the node is known.
    #[error("no address of node {node} is known")]
    UnknownNode {
        /// The node.
        node: u64,
    },
    /// The node did not answer. `sent` says whether it may have acted.
    #[error("node {node} did not answer: {reason}")]
    Unreachable {
        /// The node.
        node: u64,
        /// Whether the call may have arrived.
        sent: bool,
        /// The transport's words.
        reason: String,
    },
}
