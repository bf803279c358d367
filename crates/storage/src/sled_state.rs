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
//! # The marker, format 2
//!
//! | bytes | field |
//! |---|---|
//! | 0–7 | `AHSTATE\0` |
//! | 8–11 | format of this file and of the rows, `u32` little-endian |
//! | 12–19 | sequence number of the newest completed checkpoint, `u64` little-endian |
//! | 20–23 | CRC32C of bytes 0–19, little-endian |
//!
//! # The tree, format 2
//!
//! | key | value |
//! |---|---|
//! | `00` "checkpoint" | sequence number of the newest checkpoint begun, `u64` little-endian |
//! | `00` "sum" | sum of the hashes of all rows, `u64` little-endian: XXH3 of the value as stored, seeded with that of the key with its `01`; none before the first batch |
//! | `01` caller's key | `00` value: at most 2048 bytes, stored whole |
//! | `01` caller's key | `01`, length `u32`, CRC32C `u32`, chunk id `u64`, all little-endian: a longer value |
//! | `02` chunk id `u64` big-endian, number `u32` big-endian | up to 2048 bytes of that value |
//!
//! A small row costs two bytes and no extra access. A long value gets a fresh chunk id each time it
//! is written, in the same batch that removes the old chunks: a reader who finds them gone was
//! overtaken and looks again. As long as a store holds no long value, a write does not look for old
//! chunks.
//!
//! Batches do not go to sled one by one: a thread gathers them (see `buffer`), and reads look at
//! what is gathered first. A crash loses it, as it loses everything after the last checkpoint.
//!
//! Not here: when to checkpoint (`consensus`), what the rows mean (`model`).

mod buffer;
mod engine;
mod layout;
mod marker;
mod open;
mod panic_note;
mod room;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::ops::{ControlFlow, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use self::buffer::Buffer;
use self::engine::{Engine, Found, Written};
use self::open::Paths;
use self::room::Room;
use crate::state_store::{
    Batch, KEY_BYTES_MAX, StateError, StateStats, StateStore, Visit, clear_in_batches,
};

/// Gathered rows that a scan copies at a time.
const SCAN_ROWS_MAX: usize = 512;

/// Looks that a reader of a long value takes before it calls the value damaged. Each look but the
/// last was overtaken by a write of the same row, which takes a whole batch of sled.
const LOOKS_MAX: usize = 100;

/// Between two looks at a full disk.
const ROOM_PAUSE: Duration = Duration::from_millis(100);
/// Looks of a checkpoint that waits for room.
const ROOM_LOOKS_MAX: u32 = 20;

/// How the store works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SledConfig {
    /// Memory for cached pages, in bytes. sled may exceed it by a factor of two or three.
    pub cache_bytes_max: u64,
}

impl Default for SledConfig {
    fn default() -> Self {
        Self { cache_bytes_max: 128 << 20 }
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

/// Ordered rows in sled. Dropping it writes what is gathered, without making it durable.
#[derive(Debug)]
pub struct SledState {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    /// The sequence number of the last checkpoint.
    checkpointer: Mutex<u64>,
    /// Whether something was committed since the last checkpoint began.
    dirty: AtomicBool,
    checkpoints: AtomicU64,
    /// Dropped last.
    _lock: File,
}

#[derive(Debug)]
struct Shared {
    engine: Engine,
    buffer: Buffer,
    room: Mutex<Room>,
}

impl Shared {
    /// Brings groups into the tree until the store is dropped or fails. On a full disk they stay
    /// where they are, visible and not durable, until there is room.
    fn write_groups(&self, mut written: Written) {
        let mut is_waiting = false;
        while let Some(group) = self.buffer.next() {
            match self.room.lock().has(group.bytes() as u64) {
                Ok(true) => {}
                Ok(false) => {
                    if !std::mem::replace(&mut is_waiting, true) {
                        tracing::warn!("the disk is full: the state waits for room");
                    }
                    if self.buffer.postpone(ROOM_PAUSE) {
                        continue;
                    }
                    return; // The store is dropped: as after a crash, the log has it all.
                }
                Err(error) => return self.buffer.fail(&error.to_string()),
            }
            if std::mem::take(&mut is_waiting) {
                tracing::info!("the disk has room again: the state goes on");
            }
            match self.engine.apply(&mut written, &group.rows) {
                Ok(()) => self.buffer.done(&group),
                Err(error) => self.buffer.fail(&error.to_string()),
            }
        }
    }
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
        let (opening, opened) = open::open(&paths, &config)?;
        let sequence = opening.sequence;
        let room = Room::new(&paths.engine.join("db")).map_err(StateError::Io)?;
        let (engine, written) = Engine::new(opening, paths)?;
        let room = Mutex::new(room);
        let shared = Arc::new(Shared { engine, buffer: Buffer::default(), room });
        let writer = std::thread::Builder::new().name("state-writer".to_owned());
        let writer = writer.spawn({
            let shared = Arc::clone(&shared);
            move || {
                let ended = catch_unwind(AssertUnwindSafe(|| shared.write_groups(written)));
                if ended.is_err() {
                    // Only in a build that unwinds. Those who wait must not wait for ever.
                    shared.engine.condemn("the engine panicked while it wrote");
                    shared.buffer.fail("the engine panicked");
                }
            }
        });
        let store = Self {
            shared,
            writer: Some(writer.map_err(StateError::Io)?),
            checkpointer: Mutex::new(sequence),
            dirty: AtomicBool::new(true),
            checkpoints: AtomicU64::new(0),
            _lock: lock,
        };
        Ok((store, opened))
    }

    /// Bytes of keys and values, counted by reading them all.
    ///
    /// # Errors
    /// [`StateError`] if a row cannot be read.
    pub fn live_bytes(&self) -> Result<u64, StateError> {
        let mut bytes = 0;
        self.scan(&[][..]..&[u8::MAX; KEY_BYTES_MAX][..], &mut |key, value| {
            bytes += (key.len() + value.len()) as u64;
            ControlFlow::Continue(())
        })?;
        Ok(bytes)
    }

    /// Removes the store in `dir`, which must not be open: the next open finds none. For one that
    /// takes far more room than its rows need, as sled never gives any back.
    ///
    /// # Errors
    /// [`StateError::InUse`], [`StateError::Io`].
    pub fn discard(dir: &Path) -> Result<(), StateError> {
        let paths = Paths::new(dir);
        let _lock = open::lock(&paths)?;
        open::discard(&paths).map_err(StateError::Io)
    }

    /// Brings everything into the tree and makes that durable, if the disk has the room.
    fn make_durable(&self, sequence: u64) -> Result<(), StateError> {
        for _ in 0..ROOM_LOOKS_MAX {
            if self.shared.room.lock().has(0).map_err(StateError::Io)?
                && self.shared.buffer.drain(ROOM_PAUSE)?
            {
                return self.shared.engine.checkpoint(sequence);
            }
            if !self.shared.buffer.pause(ROOM_PAUSE) {
                break;
            }
        }
        Err(StateError::NoSpace)
    }

    /// A row that a scan found as a long value whose chunks may have been replaced meanwhile.
    fn get_settled(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        for _ in 0..LOOKS_MAX {
            if let Some(gathered) = self.shared.buffer.get(key) {
                return Ok(gathered.map(Vec::from));
            }
            match self.shared.engine.read(key)? {
                None => return Ok(None),
                Some(Some(value)) => return Ok(Some(value)),
                Some(None) => {}
            }
        }
        Err(self.shared.engine.damaged("the chunks of a long value do not fit its row"))
    }
}

impl Drop for SledState {
    fn drop(&mut self) {
        self.shared.buffer.end();
        if let Some(writer) = self.writer.take() {
            // It catches its own panics.
            let _ = writer.join();
        }
    }
}

impl StateStore for SledState {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        self.get_settled(key)
    }

    fn scan(&self, range: Range<&[u8]>, visit: Visit<'_>) -> Result<(), StateError> {
        let mut start = range.start.to_vec();
        while start.as_slice() < range.end {
            // What is gathered comes first: what leaves it meanwhile is in the tree before.
            let page = self.shared.buffer.page(start.as_slice()..range.end, SCAN_ROWS_MAX);
            let end = page.next.as_deref().unwrap_or(range.end);
            if self.scan_page(start.as_slice()..end, page.rows, visit)?.is_break() {
                break;
            }
            match page.next {
                Some(next) => start = next,
                None => break,
            }
        }
        Ok(())
    }

    fn commit(&self, batch: Batch) -> Result<(), StateError> {
        batch.check_lengths()?;
        self.shared.engine.check()?;
        self.shared.buffer.commit(batch)?;
        self.dirty.store(true, Ordering::Release);
        Ok(())
    }

    fn commit_may_wait(&self) -> bool {
        self.shared.buffer.is_crowded()
    }

    fn checkpoint(&self) -> Result<(), StateError> {
        // Held to the end, so that a second caller does not return before its rows are durable.
        let mut sequence = self.checkpointer.lock();
        if self.dirty.swap(false, Ordering::AcqRel) {
            let next = *sequence + 1;
            self.make_durable(next).inspect_err(|error| {
                self.dirty.store(true, Ordering::Release);
                // A failed sync may have dropped pages: it is never retried.
                if !matches!(error, StateError::NoSpace) {
                    self.shared.buffer.fail(&error.to_string());
                }
            })?;
            *sequence = next;
        }
        self.checkpoints.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn clear(&self, range: Range<&[u8]>) -> Result<u64, StateError> {
        clear_in_batches(self, range)
    }

    fn stats(&self) -> StateStats {
        StateStats {
            disk_bytes: self.shared.engine.disk_bytes(),
            checkpoints: self.checkpoints.load(Ordering::Relaxed),
        }
    }
}

impl SledState {
    /// Merges gathered rows with those in the tree; a gathered row hides the tree's.
    fn scan_page(
        &self,
        range: Range<&[u8]>,
        gathered: Vec<(Bytes, Option<Bytes>)>,
        visit: Visit<'_>,
    ) -> Result<ControlFlow<()>, StateError> {
        let mut gathered = gathered.into_iter().peekable();
        let mut show = |key: &[u8], value: Option<&[u8]>| match value {
            Some(value) => visit(key, value),
            None => ControlFlow::Continue(()),
        };
        for row in self.shared.engine.range(range) {
            let (row_key, found) = row?;
            let key = &row_key[1..];
            while let Some((earlier, value)) = gathered.next_if(|(gathered, _)| gathered < key) {
                if show(&earlier, value.as_deref()).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            let flow = if let Some((_, value)) = gathered.next_if(|(gathered, _)| gathered == key) {
                show(key, value.as_deref())
            } else {
                match found {
                    Found::Whole(stored) => show(key, Some(Found::whole(&stored))),
                    Found::Long(reference) => match self.shared.engine.read_long(reference)? {
                        Some(value) => show(key, Some(&value)),
                        None => show(key, self.get_settled(key)?.as_deref()),
                    },
                }
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        for (key, value) in gathered {
            if show(&key, value.as_deref()).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}
