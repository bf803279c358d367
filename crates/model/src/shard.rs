//! Shards: one Raft group over one key range, and what describes them.

use serde::{Deserialize, Serialize};

use crate::{KeyRange, Timestamp};

/// A shard's id: (cluster epoch: 16, counter: 48). The catalog is shard 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardId(pub u64);

/// A node's id, given by the catalog. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u64);

/// A replica's id within its shard: (incarnation: 16, counter: 48). Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaId(pub u64);

/// A placement class's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClassId(pub u32);

/// What a replica may do in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ReplicaRole {
    /// Counts in the quorum.
    Voter,
    /// Receives the log only.
    Learner,
}

/// A shard's copy on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Replica {
    /// Its id in the group.
    pub replica_id: ReplicaId,
    /// Where it lives.
    pub node_id: NodeId,
    /// What it may do.
    pub role: ReplicaRole,
}

/// Version of a shard's bounds and members.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch {
    /// Rises when the shard is re-founded after losing its quorum.
    pub incarnation: u32,
    /// Rises with each split and merge.
    pub version: u32,
    /// Rises with each membership entry.
    pub conf_version: u32,
}

/// What a shard says about itself, in its own replicated state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardDescriptor {
    /// Its id.
    pub shard_id: ShardId,
    /// The keys it owns.
    pub range: KeyRange,
    /// Where its replicas must live.
    pub class: ClassId,
    /// Its replicas, ordered by replica id.
    pub replicas: Vec<Replica>,
    /// The next replica id's counter.
    pub next_replica: u64,
    /// Version of all of the above.
    pub epoch: Epoch,
}

/// The replicated state of a shard beside its records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardState {
    /// Bounds, members, epoch.
    pub descriptor: ShardDescriptor,
    /// Count of changes.
    pub revision: u64,
    /// The largest leader's time seen.
    pub shard_time: Timestamp,
    /// Anchors stored, expired ones that still have their row included.
    pub anchors: u64,
    /// Bytes of the stored rows, keys included.
    pub bytes: u64,
    /// Dedup entries stored.
    pub operations: u64,
}

impl ShardId {
    /// The shard that holds the cluster's own facts.
    pub const CATALOG: Self = Self(0);
}
