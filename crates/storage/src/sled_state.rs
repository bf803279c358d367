//! The state store on disk: one `sled` tree per node.
//!
//! sled's own `flush` does not survive a power loss. Nothing here is trusted as the only durable
//! copy, and no acknowledgement waits for it; a *checkpoint* is what can be relied on: flush, then
//! `fdatasync` of sled's file, then a marker that names the checkpoint. A store that does not open,
//! lacks a checkpoint that its marker names, or turned out to be damaged, is discarded at the next
//! start, which says so ([`Opened::Discarded`]); the caller rebuilds it from snapshots and the log.
//!
//! # Files
//!
//! | path | content |
//! |---|---|
//! | `lock` | empty; locked while the store is open |
//! | `current/sled/` | sled's files. `blobs/` stays empty: sled never syncs what it puts there |
//! | `current/checkpoint` | the marker |
//! | `current/opening` | only while sled opens: starts that tried, in decimal. From the third start that was killed there on, the state is discarded |
//! | `current/damaged` | why the next start must discard the state: what was found damaged, a failed write, or the message of a panic inside sled. Written by a panic hook, because a release build aborts |
//! | `discarded-N/` | being deleted |
//!
//! # The marker, format 1
//!
//! | bytes | field |
//! |---|---|
//! | 0–7 | `AHSTATE\0` |
//! | 8–11 | format of this file and of the rows, `u32` little-endian |
//! | 12–19 | sequence number of the newest completed checkpoint, `u64` little-endian |
//! | 20–23 | CRC32C of bytes 0–19, little-endian |
//!
//! # The tree, format 1
//!
//! | key | value |
//! |---|---|
//! | `00` "checkpoint" | sequence number of the newest checkpoint begun, `u64` little-endian |
//! | `01` caller's key | `00` value: at most 2048 bytes, stored whole |
//! | `01` caller's key | `01`, length `u32`, CRC32C `u32`, chunk id `u64`, all little-endian: a longer value |
//! | `02` chunk id `u64` big-endian, number `u32` big-endian | up to 2048 bytes of that value |
//!
//! A small row costs two bytes and no extra access. A long value gets a fresh chunk id each time it
//! is written, in the same batch that removes the old chunks: a reader who finds them gone was
//! overtaken and looks again while writers wait, so it never mixes two values. As long as a store
//! holds no long value, a write does not look for old chunks.
//!
//! Not here: when to checkpoint (`consensus`), what the rows mean (`model`).

mod layout;
mod marker;
mod open;
mod panic_note;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use self::layout::{ChunkRef, Stored};
use self::open::Paths;
use crate::state_store::{Batch, StateError, StateStats, StateStore};

/// How the store works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SledConfig {
    /// Memory for cached pages, in bytes. sled may exceed it by a factor of two or three.
    pub cache_bytes_max: u64,
    /// Reads every row when the store is opened and discards it if one is damaged. A node that
    /// rebuilds its indexes from the rows finds the same by itself.
    pub verify_at_open: bool,
}

impl Default for SledConfig {
    fn default() -> Self {
        Self { cache_bytes_max: 128 << 20, verify_at_open: false }
    }
}

/// What was found when the store was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// There was no store.
    New,
    /// It holds everything up to this checkpoint, and a prefix of what came after.
    Intact {
        /// Sequence number of the newest checkpoint in it, complete or not.
        checkpoint: u64,
    },
    /// It could not be used and is empty now: rebuild it from snapshots and the log.
    Discarded {
        /// What was wrong with it.
        reason: String,
    },
}

/// Ordered rows in sled.
#[derive(Debug)]
pub struct SledState {
    db: sled::Db,
    tree: sled::Tree,
    paths: Paths,
    /// sled's data file, opened once more for its `fdatasync`.
    file: File,
    /// Held for writing by commits, for reading by those who re-read a long value.
    writer: RwLock<Writer>,
    checkpointer: Mutex<Checkpointer>,
    /// Whether something was committed since the last checkpoint began.
    dirty: AtomicBool,
    /// Set by the first failed write or sync; the store then takes nothing any more.
    failed: AtomicBool,
    checkpoints: AtomicU64,
    /// Dropped last.
    _lock: File,
}

#[derive(Debug)]
struct Writer {
    chunk_id_next: u64,
    /// Whether the tree may hold chunks. Never goes back to `false` while the store is open.
    has_chunks: bool,
}

#[derive(Debug)]
struct Checkpointer {
    sequence: u64,
}

impl SledState {
    /// Opens the store in `dir`, which is made if it does not exist. Blocks for as long as sled
    /// recovers.
    ///
    /// # Errors
    /// [`StateError::InUse`], [`StateError::UnknownFormat`], or [`StateError::Io`] if the disk does
    /// not let it be opened or made. Damage is no error: see [`Opened::Discarded`].
    pub fn open(dir: &Path, config: SledConfig) -> Result<(Self, Opened), StateError> {
        let paths = Paths::new(dir);
        let lock = open::lock(&paths)?;
        let (engine, opened) = open::open(&paths, &config)?;
        let file = File::open(paths.engine.join("db")).map_err(StateError::Io)?;
        let writer = Writer {
            chunk_id_next: engine.chunk_id_last.map_or(0, |last| last + 1),
            has_chunks: engine.chunk_id_last.is_some(),
        };
        let store = Self {
            db: engine.db,
            tree: engine.tree,
            paths,
            file,
            writer: RwLock::new(writer),
            checkpointer: Mutex::new(Checkpointer { sequence: engine.sequence }),
            dirty: AtomicBool::new(true),
            failed: AtomicBool::new(false),
            checkpoints: AtomicU64::new(0),
            _lock: lock,
        };
        Ok((store, opened))
    }

    /// Calls the engine so that a panic in it leaves a note for the next start.
    fn call<T>(&self, call: impl FnOnce() -> T) -> T {
        panic_note::noting(&self.paths.note, call)
    }

    /// Makes sure that the next start discards this state.
    fn condemn(&self, reason: &str) {
        self.failed.store(true, Ordering::Release);
        if let Err(error) = panic_note::write(&self.paths.note, reason) {
            // No room for a note. A store without a marker is discarded as well.
            tracing::warn!(%error, "the note about a damaged state could not be written");
            if let Err(error) = fs::remove_file(&self.paths.marker) {
                tracing::error!(%error, "the damaged state could not be marked");
            }
        }
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

    fn damaged(&self, reason: &str) -> StateError {
        self.condemn(reason);
        StateError::Damaged { reason: reason.to_owned() }
    }

    /// Refuses to go on after a failed write: what sled holds in memory may be torn.
    fn check_usable(&self) -> Result<(), StateError> {
        if self.failed.load(Ordering::Acquire) {
            let reason = "it failed earlier and takes no more writes".to_owned();
            return Err(StateError::Engine { reason });
        }
        Ok(())
    }

    fn read_row(&self, row_key: &[u8]) -> Result<Option<sled::IVec>, StateError> {
        self.call(|| self.tree.get(row_key)).map_err(|error| self.failure(error))
    }

    fn decode<'a>(&self, stored: &'a [u8]) -> Result<Stored<'a>, StateError> {
        layout::decode(stored).map_err(|error| self.damaged(&error.to_string()))
    }

    /// The long value behind a row that was just read; what replaced it if it is gone.
    fn long_value(&self, row_key: &[u8], found: ChunkRef) -> Result<Option<Vec<u8>>, StateError> {
        let read = |at: ChunkRef| {
            self.call(|| read_chunks(&self.tree, at)).map_err(|error| self.failure(error))
        };
        if let Some(value) = read(found)? {
            return Ok(Some(value));
        }
        // Overwritten between the two reads, or damaged. With writers held off it shows which.
        let _held_off = self.writer.read();
        let Some(stored) = self.read_row(row_key)? else { return Ok(None) };
        match self.decode(&stored)? {
            Stored::Whole(value) => Ok(Some(value.to_vec())),
            Stored::Chunked(current) => match read(current)? {
                Some(value) => Ok(Some(value)),
                None => Err(self.damaged("the chunks of a long value do not fit its row")),
            },
        }
    }

    /// The batch as the tree sees it: long values cut, the chunks of replaced ones removed.
    fn lay_out(&self, writer: &mut Writer, batch: Batch) -> Result<sled::Batch, StateError> {
        let is_long = |value: &Option<Vec<u8>>| {
            value.as_ref().is_some_and(|value| layout::PART_BYTES_MAX < value.len())
        };
        let mut out = sled::Batch::default();
        if !writer.has_chunks && !batch.rows.iter().any(|(_, value)| is_long(value)) {
            for (key, value) in batch.rows {
                match value {
                    Some(value) => out.insert(layout::row_key(&key), layout::whole(&value)),
                    None => out.remove(layout::row_key(&key)),
                }
            }
            return Ok(out);
        }
        // Later rows win, before any of them gets chunks.
        let rows: BTreeMap<Vec<u8>, Option<Vec<u8>>> = batch.rows.into_iter().collect();
        for (key, value) in rows {
            let row_key = layout::row_key(&key);
            if writer.has_chunks
                && let Some(before) = self.read_row(&row_key)?
                && let Stored::Chunked(before) = self.decode(&before)?
            {
                for number in 0..before.count() {
                    out.remove(before.chunk_key(number));
                }
            }
            match value {
                None => out.remove(row_key),
                Some(value) if value.len() <= layout::PART_BYTES_MAX => {
                    out.insert(row_key, layout::whole(&value));
                }
                Some(value) => {
                    let reference = ChunkRef::of(writer.chunk_id_next, &value)?;
                    writer.chunk_id_next += 1;
                    for (number, part) in (0..).zip(value.chunks(layout::PART_BYTES_MAX)) {
                        out.insert(reference.chunk_key(number), part);
                    }
                    out.insert(row_key, reference.encode());
                }
            }
        }
        // Set even if nothing long was written: what it costs is a look-up per row.
        writer.has_chunks = true;
        Ok(out)
    }

    fn write_checkpoint(&self, sequence: u64) -> Result<(), StateError> {
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
        marker::write(&self.paths.marker, sequence).map_err(StateError::Io)
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

/// Reads all rows and their chunks, before anybody writes.
fn read_all(tree: &sled::Tree) -> Result<(), StateError> {
    let failure = |error: sled::Error| StateError::Engine { reason: error.to_string() };
    for row in tree.range(layout::all_rows()) {
        let (_, stored) = row.map_err(failure)?;
        if let Stored::Chunked(reference) = layout::decode(&stored)?
            && read_chunks(tree, reference).map_err(failure)?.is_none()
        {
            let reason = "the chunks of a long value do not fit its row".to_owned();
            return Err(StateError::Damaged { reason });
        }
    }
    Ok(())
}

impl StateStore for SledState {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        let row_key = layout::row_key(key);
        let Some(stored) = self.read_row(&row_key)? else { return Ok(None) };
        match self.decode(&stored)? {
            Stored::Whole(value) => Ok(Some(value.to_vec())),
            Stored::Chunked(reference) => self.long_value(&row_key, reference),
        }
    }

    fn scan(
        &self,
        range: Range<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        if range.end <= range.start {
            return Ok(());
        }
        let bounds = layout::row_key(range.start)..layout::row_key(range.end);
        let mut rows = self.tree.range(bounds);
        while let Some(row) = self.call(|| rows.next()) {
            let (row_key, stored) = row.map_err(|error| self.failure(error))?;
            let key = &row_key[1..];
            let flow = match self.decode(&stored)? {
                Stored::Whole(value) => visit(key, value),
                Stored::Chunked(reference) => match self.long_value(&row_key, reference)? {
                    Some(value) => visit(key, &value),
                    None => ControlFlow::Continue(()),
                },
            };
            if flow.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn commit(&self, batch: Batch) -> Result<(), StateError> {
        batch.check_lengths()?;
        let mut writer = self.writer.write();
        self.check_usable()?;
        let batch = self.lay_out(&mut writer, batch)?;
        if let Err(error) = self.call(|| self.tree.apply_batch(batch)) {
            let failure = self.failure(error);
            self.condemn(&format!("a batch may be torn: {failure}"));
            return Err(failure);
        }
        self.dirty.store(true, Ordering::Release);
        Ok(())
    }

    fn checkpoint(&self) -> Result<(), StateError> {
        // Held to the end, so that a second caller does not return before its rows are durable.
        let mut checkpointer = self.checkpointer.lock();
        self.check_usable()?;
        if self.dirty.swap(false, Ordering::AcqRel) {
            let sequence = checkpointer.sequence + 1;
            // A failed sync may have dropped pages: it is never retried.
            self.write_checkpoint(sequence)
                .inspect_err(|_| self.failed.store(true, Ordering::Release))?;
            checkpointer.sequence = sequence;
        }
        self.checkpoints.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn stats(&self) -> StateStats {
        StateStats {
            // Only a directory that cannot be listed has no size.
            disk_bytes: self.db.size_on_disk().unwrap_or(0),
            checkpoints: self.checkpoints.load(Ordering::Relaxed),
        }
    }
}
