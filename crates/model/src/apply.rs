//! Decides what committed commands change.
//!
//! Input is what a shard holds ([`Records`]) and one [`Entry`]; output is an [`Outcome`] for each
//! command and the [`Changes`] of all. Commands see the changes of those before them in the entry.
//!
//! A keyed write goes through these checks, in this order: its epoch, its operation (a retry gets
//! the outcome of its first try), room for one more dedup entry, then what the write itself asks
//! for. A rejection is not kept: it changed nothing, so a retry is judged anew.
//!
//! The operation of a create is kept in the anchor's own row while the anchor is as it was created,
//! and becomes a dedup entry with the first change; all others become one at once.
//!
//! Invariants: one operation has one effect while it is kept; `revision` rises by one
//! with each write that took effect, and with each sweep that erased an anchor; `anchors`, `bytes`
//! and `operations` are those of the rows; an id is not given to another anchor while its row
//! stands, expired or not.
//!
//! Not here: what is acceptable from a client (`server`), when to sweep (`consensus`).

mod merge;
mod overlay;
pub mod split;
mod write;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::overlay::Overlay;
use crate::{
    Anchor, AnchorId, Entry, Frozen, KeyRange, OperationId, Outcome, ShardState, Timestamp,
};

/// How long a dedup entry is kept, in milliseconds of shard time. Clients stop retrying before.
pub const OPERATION_KEEP_MS: u64 = 15 * 60 * 1000;
/// How long an expired anchor's row is kept, in milliseconds of shard time, so that a clock that
/// jumped cannot destroy anything at once.
pub const EXPIRED_KEEP_MS: u64 = 24 * 60 * 60 * 1000;
/// Dedup entries kept by one shard, at most: beyond it changes and deletions are refused, creates
/// need none. Enough for 4,400 per second without end, and for more in bursts.
pub const OPERATIONS_MAX: u64 = 4_000_000;

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

    /// The dedup entry of an operation on this anchor, if one is stored.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn operation(
        &self,
        id: AnchorId,
        operation: OperationId,
    ) -> Result<Option<OperationRecord>, Self::Error>;

    /// What the rows of a part of the shard's range add up to.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn totals(&self, range: KeyRange) -> Result<RowTotals, Self::Error>;
}

/// What rows add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowTotals {
    /// Anchors, visible or not.
    pub anchors: u64,
    /// Dedup entries.
    pub operations: u64,
    /// Bytes of all rows, keys included.
    pub bytes: u64,
}

/// What an operation did, kept under its anchor's key so that a retry gets the same answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperationRecord {
    /// Shard time from which it is kept: when it was applied, or for a create when the anchor was
    /// first changed.
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
    /// The state in which a child begins, if the entry has split the shard. Its rows are those that
    /// lie in its range after this entry's changes.
    pub child: Option<Box<ShardState>>,
    /// The neighbour whose rows are the shard's from now on, if the entry has merged them.
    pub absorbed: Option<Box<Frozen>>,
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
    apply_bounded(records, entry, OPERATIONS_MAX)
}

/// Whether a sweep may erase an anchor's row: it expired a grace ago.
pub fn is_anchor_due(anchor: &Anchor, shard_time: Timestamp) -> bool {
    let is_past = |time: Timestamp| time.0.saturating_add(EXPIRED_KEEP_MS) <= shard_time.0;
    anchor.expire_time.is_some_and(is_past)
}

/// Whether a sweep may erase a dedup entry: no retry comes any more.
pub fn is_operation_due(record: &OperationRecord, shard_time: Timestamp) -> bool {
    record.time.0.saturating_add(OPERATION_KEEP_MS) <= shard_time.0
}

fn apply_bounded<R: Records>(
    records: &R,
    entry: &Entry,
    operations_max: u64,
) -> Result<(Vec<Outcome>, Changes), R::Error> {
    let mut overlay = Overlay::new(records, operations_max);
    overlay.advance_time(entry.stamp.time);
    let outcomes: Result<Vec<Outcome>, R::Error> =
        entry.commands.iter().map(|command| overlay.run(command)).collect();
    Ok((outcomes?, overlay.changes))
}

#[cfg(test)]
mod tests;
