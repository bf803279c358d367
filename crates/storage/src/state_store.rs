//! The seam of the applied state.
//!
//! A [`StateStore`] holds ordered rows and applies atomic [`Batch`]es. It decides nothing: which rows
//! there are is `model`'s business, when to checkpoint is `consensus`'s. [`crate::SledState`] keeps
//! the rows on disk, [`crate::MemoryState`] in memory for simulations; `conformance` holds both to
//! the same contract.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;

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
    /// A row is longer than [`KEY_BYTES_MAX`] or [`VALUE_BYTES_MAX`]; nothing was written. Only a
    /// bug can cause this.
    #[error("a key of {key_bytes} bytes with a value of {value_bytes} is too long")]
    TooLong {
        /// Length of the key.
        key_bytes: usize,
        /// Length of the value.
        value_bytes: usize,
    },
    /// Another process or another handle has the store open.
    #[error("the state in {path} is in use")]
    InUse {
        /// The store's directory.
        path: std::path::PathBuf,
    },
    /// Written by a version of this program that knows more. Nothing was touched.
    #[error("the state has format {found}, this program knows {known}")]
    UnknownFormat {
        /// The format found on disk.
        found: u32,
        /// The newest format that can be read.
        known: u32,
    },
    /// No room on the disk. Nothing is lost; the same call may succeed later.
    #[error("no space left for the state; free some and the node goes on")]
    NoSpace,
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

/// What a scan calls with the key and the value of each row, until it breaks.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// Rows that [`StateStore::clear`] removes at a time.
const CLEAR_BATCH_ROWS_MAX: usize = 512;

/// Longest key in bytes. Keys of this length still fit 256 times in one index page of sled without
/// becoming a file of its own, which sled would never sync.
pub const KEY_BYTES_MAX: usize = 256;

/// Longest value in bytes. Far above any row there is; it keeps lengths in 32 bits.
pub const VALUE_BYTES_MAX: usize = 64 << 20;

impl Batch {
    /// Checks the lengths of keys and values. Every store refuses the same batches.
    ///
    /// # Errors
    /// [`StateError::TooLong`] for a key above [`KEY_BYTES_MAX`] or a value above
    /// [`VALUE_BYTES_MAX`].
    pub(crate) fn check_lengths(&self) -> Result<(), StateError> {
        for (key, value) in &self.rows {
            let value_bytes = value.as_ref().map_or(0, Vec::len);
            if KEY_BYTES_MAX < key.len() || VALUE_BYTES_MAX < value_bytes {
                return Err(StateError::TooLong { key_bytes: key.len(), value_bytes });
            }
        }
        Ok(())
    }
}

/// Ordered rows with atomic batches; one per node.
///
/// Contract: a batch is visible to every read that starts after `commit` returned, and durable
/// after the next `checkpoint` that starts then. After a crash the store holds a prefix of the
/// batches that includes every checkpointed one, or says that it is damaged.
///
/// No method has a default, so that no store answers by mistake for one that it stands in front of.
/// Such a one is a [`StateLayer`].
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
    fn scan(&self, range: Range<&[u8]>, visit: Visit<'_>) -> Result<(), StateError>;

    /// Applies a batch atomically.
    ///
    /// # Errors
    /// [`StateError`] if it cannot be written; the process must then end.
    fn commit(&self, batch: Batch) -> Result<(), StateError>;

    /// Whether a commit that starts now may wait for the disk: such a one belongs off the async
    /// threads. Another one may crowd the store meanwhile, so this is no promise.
    fn commit_may_wait(&self) -> bool;

    /// Makes everything committed before this call durable. Blocks; call it off the async threads.
    ///
    /// # Errors
    /// [`StateError::NoSpace`] after some seconds on a full disk. Any other one if the disk failed;
    /// the process must then end.
    fn checkpoint(&self) -> Result<(), StateError>;

    /// Removes all rows of a range in bounded batches and says how many there were.
    ///
    /// Not atomic: a reader may see a part of the range gone, a crash may leave a part of it. Mark
    /// the range as garbage first and call it again after a crash. Rows written into the range
    /// meanwhile may or may not survive.
    ///
    /// # Errors
    /// [`StateError`] as for `scan` and `commit`.
    fn clear(&self, range: Range<&[u8]>) -> Result<u64, StateError>;

    /// Sizes of the store.
    fn stats(&self) -> StateStats;
}

/// How a store without a way of its own clears a range: by scans and commits.
pub(crate) fn clear_in_batches(
    store: &dyn StateStore,
    range: Range<&[u8]>,
) -> Result<u64, StateError> {
    let mut cleared: u64 = 0;
    let mut start = range.start.to_vec();
    loop {
        let mut batch = Batch::default();
        store.scan(&start..range.end, &mut |key, _| {
            batch.rows.push((key.to_vec(), None));
            if batch.rows.len() < CLEAR_BATCH_ROWS_MAX {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        // The next batch starts behind this one, so that it does not wade through what the
        // engine keeps of the removed rows.
        let Some((last, _)) = batch.rows.last() else { return Ok(cleared) };
        start.clone_from(last);
        start.push(0);
        cleared += batch.rows.len() as u64;
        store.commit(batch)?;
    }
}

/// A store in front of another one that has its own way with commits or checkpoints.
///
/// It is a [`StateStore`] by the one delegation below: a method that the seam gains does not
/// compile until it is passed on there, for all layers.
pub trait StateLayer: Send + Sync + 'static {
    /// The store behind it.
    fn inner(&self) -> &dyn StateStore;

    /// Stands in for the inner store's [`StateStore::commit`].
    ///
    /// # Errors
    /// As for the inner store.
    fn commit_through(&self, batch: Batch) -> Result<(), StateError> {
        self.inner().commit(batch)
    }

    /// Stands in for the inner store's [`StateStore::checkpoint`].
    ///
    /// # Errors
    /// As for the inner store.
    fn checkpoint_through(&self) -> Result<(), StateError> {
        self.inner().checkpoint()
    }
}

impl<L: StateLayer> StateStore for L {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        self.inner().get(key)
    }

    fn scan(&self, range: Range<&[u8]>, visit: Visit<'_>) -> Result<(), StateError> {
        self.inner().scan(range, visit)
    }

    fn commit(&self, batch: Batch) -> Result<(), StateError> {
        self.commit_through(batch)
    }

    fn commit_may_wait(&self) -> bool {
        self.inner().commit_may_wait()
    }

    fn checkpoint(&self) -> Result<(), StateError> {
        self.checkpoint_through()
    }

    fn clear(&self, range: Range<&[u8]>) -> Result<u64, StateError> {
        self.inner().clear(range)
    }

    fn stats(&self) -> StateStats {
        self.inner().stats()
    }
}
