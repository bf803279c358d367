//! What clients ask of a shard, and the answers.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    Anchor, AnchorId, AnchorPatch, Epoch, Key, ShardDescriptor, ShardId, ShardState, Version,
};

/// Milliseconds since the Unix epoch.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Timestamp(pub u64);

/// A client's name for one request: 128 random bits, the same at every retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u128);

/// One item of one request: what idempotency is counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OperationId {
    /// The request.
    pub request_id: RequestId,
    /// The item within a batch, 0 for a single write.
    pub item: u32,
}

/// When the leader proposed an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The leader's time.
    pub time: Timestamp,
}

/// One Raft entry of a shard: everything that waited when it was proposed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Written by the proposer, so that replicas agree on time.
    pub stamp: Stamp,
    /// In the order in which they arrived.
    pub commands: Vec<Command>,
}

/// One write, as routed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Command {
    /// Names the write, so that a retry has one effect.
    pub operation: OperationId,
    /// The epoch that the sender routed by.
    pub epoch: Epoch,
    /// What to do.
    pub write: Write,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Write {
    /// Store a new anchor. `create_time`, `update_time`, `version` and `created_by` are set by
    /// `apply`.
    Create(Box<Anchor>),
    /// Change an anchor's parts.
    Update {
        /// Which.
        id: AnchorId,
        /// What changes.
        patch: Box<AnchorPatch>,
        /// Only if this is its current version.
        if_version: Option<Version>,
    },
    /// Remove an anchor.
    Delete {
        /// Which.
        id: AnchorId,
        /// Only if this is its current version.
        if_version: Option<Version>,
    },
    /// Let shard time move on to the stamp's, so that due expiries take effect.
    Tick,
    /// Take no write any more, if the shard is empty: another layout is to take its place. Nothing
    /// undoes this but that layout.
    Retire,
    /// Erase rows that are due: anchors whose expiry lies a grace back, and old dedup entries.
    /// Each is checked again when applied; one that is not due is left alone.
    Sweep {
        /// Expired anchors.
        anchors: Vec<AnchorId>,
        /// Dedup entries past their keep time.
        operations: Vec<(AnchorId, OperationId)>,
    },
    /// A split at this key is near: replicas may begin to count what lies behind it. Changes
    /// nothing.
    PrepareSplit {
        /// The child's first key.
        at: Key,
    },
    /// Give the keys from `at` on to a new shard.
    Split {
        /// The child's first key.
        at: Key,
        /// The child's id, reserved in the catalog for a split of this shard at this epoch.
        child: ShardId,
    },
    /// A step of a merge.
    Merge(MergeStep),
}

/// A step towards one shard of two neighbours, in the log of one of them. The target's log decides
/// what becomes of an attempt: `Absorb` or `Forgo`, whichever comes first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum MergeStep {
    /// Target: wait for the right neighbour. Its members and bounds stay from now on.
    Await {
        /// The attempt.
        merge: RequestId,
        /// The neighbour.
        source: ShardId,
    },
    /// Source: change nothing any more.
    Freeze {
        /// The attempt.
        merge: RequestId,
        /// The left neighbour, which waits.
        target: ShardId,
    },
    /// Target: own the source's keys. All its replicas hold its log up to the position.
    Absorb {
        /// The attempt.
        merge: RequestId,
        /// The source as it stands still.
        source: Box<Frozen>,
        /// The target's members that were compared with the source's.
        conf_version: u32,
    },
    /// Target: do not wait any more.
    Forgo {
        /// The attempt.
        merge: RequestId,
    },
    /// Source: go on. The target has forgone the attempt.
    Thaw {
        /// The attempt.
        merge: RequestId,
    },
}

/// A source of a merge: frozen, so that this is what every replica has that applied the position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Frozen {
    /// Its state.
    pub state: ShardState,
    /// Term of an entry of its log at or after the freeze.
    pub term: u64,
    /// That entry's index.
    pub index: u64,
}

/// What a step of a merge did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Merged {
    /// The target waits, or the source is frozen or goes on: now, or by an earlier try.
    Ready,
    /// The source is part of the target, now or by an earlier try.
    Absorbed {
        /// The target as it is now.
        descriptor: Box<ShardDescriptor>,
    },
    /// The attempt is over: the source may go on.
    Forgone,
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// The anchor was created or updated, now or by an earlier try of the same operation.
    Written {
        /// Its version after that operation.
        version: Version,
        /// Shard time of that operation.
        time: Timestamp,
        /// The anchor as written; for a retry, the stored anchor, which may be newer, or `None` if
        /// it is gone since.
        anchor: Option<Arc<Anchor>>,
    },
    /// The anchor was deleted, now or by an earlier try of the same operation.
    Deleted {
        /// Version of the deletion.
        version: Version,
    },
    /// Shard time moved on.
    Ticked,
    /// The shard takes no write any more.
    Retired {
        /// Its last revision.
        revision: u64,
    },
    /// Rows were erased.
    Swept {
        /// Anchors erased.
        anchors: u32,
        /// Dedup entries erased.
        operations: u32,
    },
    /// Nothing changed.
    Rejected(Rejection),
    /// Replicas count what lies behind the key.
    SplitPrepared,
    /// The shard is two.
    Split {
        /// The shard as it is now.
        parent: Box<ShardDescriptor>,
        /// The new one.
        child: Box<ShardDescriptor>,
    },
    /// A step of a merge was taken.
    Merged(Merged),
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Rejection {
    /// Routed by an epoch that is not the shard's, or to a shard that does not own the key.
    StaleEpoch {
        /// The shard as it is.
        descriptor: Box<ShardDescriptor>,
    },
    /// No such anchor, or it has expired.
    AnchorNotFound,
    /// Another operation made an anchor with this id.
    AnchorExists,
    /// The anchor has changed since.
    VersionMismatch {
        /// Its version now.
        current: Version,
    },
    /// The operation id was used for another write.
    RequestIdReused,
    /// Too many dedup entries are kept; retry later.
    OperationsFull {
        /// How many are kept.
        operations: u64,
    },
    /// The shard was retired: the account is being laid out anew, retry soon.
    Retired,
    /// The shard holds something and cannot be retired.
    NotEmpty {
        /// Anchors.
        anchors: u64,
        /// Dedup entries: whoever retries one of these must still get its outcome.
        operations: u64,
    },
    /// The new pose is farther from the home cell than an anchor may drift.
    DriftTooFar {
        /// Distance from the home cell in meters.
        distance_m: f64,
    },
    /// The new pose lies in another space.
    SpaceChanged,
    /// The expiry lies in the past.
    AlreadyExpired,
    /// A split must leave keys on both sides.
    InvalidSplit,
    /// The shard is being merged with a neighbour: retry soon.
    Merging,
    /// The step does not fit what the shard is or waits for.
    InvalidMerge,
}
