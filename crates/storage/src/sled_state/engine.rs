//! The tree and the files around it: reads, batches of rows, checkpoints.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::buffer::Rows;
use super::layout::{self, ChunkRef, RowSum, Stored};
use super::open::{Opening, Paths};
use super::{marker, panic_note};
use crate::state_store::StateError;

/// An opened tree.
#[derive(Debug)]
pub(super) struct Engine {
    db: sled::Db,
    pub(super) tree: sled::Tree,
    paths: Paths,
    /// sled's data file, opened once more for its `fdatasync`.
    file: File,
    /// Set when the state is known to be damaged; nothing is written any more.
    condemned: AtomicBool,
}

/// What is in the tree. Belongs to the only thread that writes rows.
#[derive(Debug)]
pub(super) struct Written {
    chunk_id_next: u64,
    sum: RowSum,
}

/// A row as a scan finds it.
pub(super) enum Found {
    Whole(sled::IVec),
    Long(ChunkRef),
}

impl Engine {
    pub(super) fn new(opening: Opening, paths: Paths) -> Result<(Self, Written), StateError> {
        let written = Written {
            chunk_id_next: opening.chunk_id_last.map_or(0, |last| last + 1),
            sum: opening.sum,
        };
        let file = File::open(paths.engine.join("db")).map_err(StateError::Io)?;
        let condemned = AtomicBool::new(false);
        Ok((Self { db: opening.db, tree: opening.tree, paths, file, condemned }, written))
    }

    /// Calls sled so that a panic in it leaves a note for the next start.
    pub(super) fn call<T>(&self, call: impl FnOnce() -> T) -> T {
        panic_note::noting(&self.paths.note, call)
    }

    /// Makes sure that the next start discards this state.
    pub(super) fn condemn(&self, reason: &str) {
        self.condemned.store(true, Ordering::Release);
        if let Err(error) = panic_note::write(&self.paths.note, reason) {
            // No room for a note. A store without a marker is discarded as well.
            tracing::warn!(%error, "the note about a damaged state could not be written");
            if let Err(error) = fs::remove_file(&self.paths.marker) {
                tracing::error!(%error, "the damaged state could not be marked");
            }
        }
    }

    /// Refuses to write to a state that is known to be damaged.
    pub(super) fn check(&self) -> Result<(), StateError> {
        if self.condemned.load(Ordering::Acquire) {
            let reason = "it is damaged and will be discarded at the next start".to_owned();
            return Err(StateError::Engine { reason });
        }
        Ok(())
    }

    /// A value; a long one only if all its chunks are there.
    pub(super) fn read(&self, key: &[u8]) -> Result<Option<Option<Vec<u8>>>, StateError> {
        let stored = self.call(|| self.tree.get(layout::row_key(key)));
        let Some(stored) = stored.map_err(|error| self.failure(error))? else { return Ok(None) };
        match self.decode(&stored)? {
            Stored::Whole(value) => Ok(Some(Some(value.to_vec()))),
            Stored::Chunked(reference) => Ok(Some(self.read_long(reference)?)),
        }
    }

    /// A long value; `None` if its chunks are not all there.
    pub(super) fn read_long(&self, reference: ChunkRef) -> Result<Option<Vec<u8>>, StateError> {
        let value = self.call(|| read_chunks(&self.tree, reference));
        value.map_err(|error| self.failure(error))
    }

    /// The rows of a range: keys of the tree, with their prefix.
    pub(super) fn range(
        &self,
        range: Range<&[u8]>,
    ) -> impl Iterator<Item = Result<(sled::IVec, Found), StateError>> {
        let mut rows = self.tree.range(layout::row_key(range.start)..layout::row_key(range.end));
        std::iter::from_fn(move || {
            let row = self.call(|| rows.next())?;
            Some(row.map_err(|error| self.failure(error)).and_then(|(key, stored)| {
                match self.decode(&stored)? {
                    Stored::Whole(_) => Ok((key, Found::Whole(stored))),
                    Stored::Chunked(reference) => Ok((key, Found::Long(reference))),
                }
            }))
        })
    }

    /// Writes and removes rows in one batch.
    pub(super) fn apply(&self, written: &mut Written, rows: &Rows) -> Result<(), StateError> {
        self.check()?;
        let batch = self.lay_out(written, rows)?;
        self.call(|| self.tree.apply_batch(batch)).map_err(|error| {
            let failure = self.failure(error);
            self.condemn(&format!("a batch may be torn: {failure}"));
            failure
        })
    }

    /// Rows as the tree sees them: long values cut, the chunks of replaced ones removed; and what
    /// all rows come to then.
    fn lay_out(&self, written: &mut Written, rows: &Rows) -> Result<sled::Batch, StateError> {
        let mut batch = sled::Batch::default();
        for (key, value) in rows {
            let row_key = layout::row_key(key);
            let before = self.call(|| self.tree.get(&row_key));
            if let Some(before) = before.map_err(|error| self.failure(error))? {
                written.sum.remove(&row_key, &before);
                if let Stored::Chunked(before) = self.decode(&before)? {
                    for number in 0..before.count() {
                        batch.remove(before.chunk_key(number));
                    }
                }
            }
            let stored = match value {
                None => {
                    batch.remove(row_key);
                    continue;
                }
                Some(value) if value.len() <= layout::PART_BYTES_MAX => layout::whole(value),
                Some(value) => {
                    let reference = ChunkRef::of(written.chunk_id_next, value)?;
                    written.chunk_id_next += 1;
                    for (number, part) in (0..).zip(value.chunks(layout::PART_BYTES_MAX)) {
                        batch.insert(reference.chunk_key(number), part);
                    }
                    reference.encode()
                }
            };
            written.sum.add(&row_key, &stored);
            batch.insert(row_key, stored);
        }
        batch.insert(layout::SUM_KEY, &written.sum.encode());
        Ok(batch)
    }

    /// Makes what is in the tree durable and publishes it as checkpoint `sequence`.
    pub(super) fn checkpoint(&self, sequence: u64) -> Result<(), StateError> {
        self.check()?;
        let flushed = self.call(|| {
            self.tree.insert(layout::SEQUENCE_KEY, &sequence.to_le_bytes())?;
            self.db.flush()
        });
        flushed.map_err(|error| self.failure(error))?;
        self.file.sync_data().map_err(StateError::Io)?;
        let mut blobs = fs::read_dir(self.paths.engine.join("blobs")).map_err(StateError::Io)?;
        if blobs.next().is_some() {
            // Only a bug can bring one about: rows are too small.
            return Err(self.damaged("sled put a page into a file that it never syncs"));
        }
        // The rows are durable. What names them may follow when there is room for it.
        marker::write(&self.paths.marker, sequence).map_err(|error| {
            let is_full = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
            if is_full { StateError::NoSpace } else { StateError::Io(error) }
        })
    }

    /// Bytes of sled's files.
    pub(super) fn disk_bytes(&self) -> u64 {
        // Only a directory that cannot be listed has no size.
        self.db.size_on_disk().unwrap_or(0)
    }

    /// Condemns the state for a reason found by the caller.
    pub(super) fn damaged(&self, reason: &str) -> StateError {
        self.condemn(reason);
        StateError::Damaged { reason: reason.to_owned() }
    }

    fn decode<'a>(&self, stored: &'a [u8]) -> Result<Stored<'a>, StateError> {
        layout::decode(stored).map_err(|error| self.damaged(&error.to_string()))
    }

    /// Turns the engine's error into ours and condemns a damaged store.
    fn failure(&self, error: sled::Error) -> StateError {
        match error {
            sled::Error::Io(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => {
                StateError::Io(error)
            }
            sled::Error::Io(_) | sled::Error::Corruption { .. } => self.damaged(&error.to_string()),
            sled::Error::CollectionNotFound(_)
            | sled::Error::Unsupported(_)
            | sled::Error::ReportableBug(_) => StateError::Engine { reason: error.to_string() },
        }
    }
}

impl Found {
    /// The value of a row stored whole.
    pub(super) fn whole(stored: &sled::IVec) -> &[u8] {
        // `range` has decoded it before.
        stored.get(1..).unwrap_or_default()
    }
}

/// Reads the chunks of a long value; `None` if they are not all there.
fn read_chunks(tree: &sled::Tree, reference: ChunkRef) -> Result<Option<Vec<u8>>, sled::Error> {
    let mut value = Vec::with_capacity(reference.bytes as usize);
    for (number, chunk) in (0..).zip(tree.scan_prefix(reference.prefix())) {
        let (key, part) = chunk?;
        if *key != reference.chunk_key(number) || (reference.bytes as usize) < value.len() {
            return Ok(None);
        }
        value.extend_from_slice(&part);
    }
    let complete =
        value.len() == reference.bytes as usize && crc32c::crc32c(&value) == reference.crc;
    Ok(complete.then_some(value))
}

/// Reads all rows and their chunks, before anybody writes. Gives what they come to.
pub(super) fn read_all(tree: &sled::Tree) -> Result<RowSum, StateError> {
    let failure = |error: sled::Error| StateError::Engine { reason: error.to_string() };
    let mut sum = RowSum::default();
    for row in tree.range(layout::all_rows()) {
        let (row_key, stored) = row.map_err(failure)?;
        sum.add(&row_key, &stored);
        if let Stored::Chunked(reference) = layout::decode(&stored)?
            && read_chunks(tree, reference).map_err(failure)?.is_none()
        {
            let reason = "the chunks of a long value do not fit its row".to_owned();
            return Err(StateError::Damaged { reason });
        }
    }
    Ok(sum)
}
