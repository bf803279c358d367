//! The seam of the applied state.

use std::ops::{ControlFlow, Range};

/// A set of row changes that take effect together or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Rows to write (`Some`) or remove (`None`), in order; later ones win.
    pub rows: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// Why the state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The engine failed.
    #[error("the state store failed: {reason}")]
    Engine {
        /// The engine's own words.
        reason: String,
    },
    /// A row is not what was written: the state must be discarded and rebuilt.
    #[error("the state is damaged: {reason}")]
    Damaged {
        /// What does not fit.
        reason: String,
    },
    /// The disk failed.
    #[error("the state's files could not be used")]
    Io(#[source] std::io::Error),
}

/// Sizes of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateStats {
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Checkpoints made since it was opened.
    pub checkpoints: u64,
}

/// Ordered rows with atomic batches; one per node.
///
/// Contract: a batch is visible to every read that starts after `commit` returned, and durable
/// after the next `checkpoint` that starts then. After a crash the store holds a prefix of the
/// batches that includes every checkpointed one, or says that it is damaged.
pub trait StateStore: Send + Sync + 'static {
    /// One row.
    ///
    /// # Errors
    /// [`StateError`] if it cannot be read.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError>;

    /// Visits the rows of a range in key order until `visit` breaks. Beside writers the view is
    /// fuzzy: hold the group's apply for a consistent one.
    ///
    /// # Errors
    /// [`StateError`] if a row cannot be read.
    fn scan(
        &self,
        range: Range<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StateError>;

    /// Applies a batch atomically.
    ///
    /// # Errors
    /// [`StateError`] if it cannot be written; the process must then end.
    fn commit(&self, batch: Batch) -> Result<(), StateError>;

    /// Makes everything committed before this call durable. Blocks; call it off the async threads.
    ///
    /// # Errors
    /// [`StateError`] if the disk failed; the process must then end.
    fn checkpoint(&self) -> Result<(), StateError>;

    /// Sizes of the store.
    fn stats(&self) -> StateStats;
}
