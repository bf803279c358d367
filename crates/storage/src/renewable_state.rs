//! A state that can be written anew while it is used.
//!
//! sled never gives room back. [`RenewableState::renew`] copies all rows into a second store beside
//! the first one, piece by piece, while commits go to both; once the copy is durable it takes the
//! first one's place.
//!
//! # Files, beside those of [`SledState`]
//!
//! | path | content |
//! |---|---|
//! | `owner` | empty; locked while the state is open |
//! | `renewed-N/` | a [`SledState`]: the copy that is being made, or the one that is in use |
//! | `renewed-N/complete` | empty; the copy holds everything and has taken over |
//!
//! States of a copy: begun → copying → complete (the marker is durable; no commit happens between
//! its last checkpoint and that) → in use → at the next start, moved to where a state is expected.
//! One that is not complete is removed at the next start.
//!
//! Invariant: whatever was committed is in the store that the next start finds, as far as a
//! checkpoint promises it.
//!
//! Not here: when a state is to be renewed (`server::renew`).

use std::fs::{self, File, TryLockError};
use std::io;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};

use crate::durable;
use crate::sled_state::{Opened, SledConfig, SledState};
use crate::state_store::{
    Batch, KEY_BYTES_MAX, StateError, StateStats, StateStore, Visit, clear_in_batches,
};

/// Bytes of rows that are copied while commits wait.
const PIECE_BYTES: u64 = 128 << 10;
/// Between two looks at something that is waited for.
const PAUSE: Duration = Duration::from_millis(20);

/// Says whether a renewal may go on, after so many more bytes were copied; may wait before it does.
pub type Pace<'a> = &'a mut dyn FnMut(u64) -> ControlFlow<()>;

/// What a renewal has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewed {
    /// Bytes of keys and values.
    pub row_bytes: u64,
    /// Bytes on disk before.
    pub disk_bytes_before: u64,
    /// Bytes on disk now.
    pub disk_bytes: u64,
}

/// Why a renewal failed.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// Rows could not be read, or the copy could not be written. Nothing has changed.
    #[error("the state could not be written anew")]
    Failed(#[from] StateError),
    /// The disk does not say whether the copy has taken over. The next start finds everything that
    /// was committed until now, and nothing that is committed later: the process must end.
    #[error("the disk does not say which state the next start will find")]
    Undecided(#[source] io::Error),
}

/// A [`SledState`] that another one can take the place of.
pub struct RenewableState {
    dir: PathBuf,
    config: SledConfig,
    /// Whom reads ask.
    current: ArcSwap<SledState>,
    /// Commits hold it together, a piece that is copied and the change-over alone. The copy, if
    /// commits go to one.
    copy: RwLock<Option<Copy>>,
    /// Checkpoints that the caller asked for.
    checkpoints: AtomicU64,
    /// Held by a renewal. Where the store in use lies.
    place: Mutex<PathBuf>,
    /// Dropped last.
    _owner: File,
}

struct Copy {
    state: Arc<SledState>,
    /// Whether it has missed a commit.
    is_broken: AtomicBool,
}

impl RenewableState {
    /// Opens the state in `dir`, which is made if it does not exist.
    ///
    /// # Errors
    /// As [`SledState::open`].
    pub fn open(dir: &Path, config: SledConfig) -> Result<(Self, Opened), StateError> {
        let owner = own(dir)?;
        settle(dir).map_err(StateError::Io)?;
        let (state, opened) = SledState::open(dir, config)?;
        let renewable = Self {
            dir: dir.to_owned(),
            config,
            current: ArcSwap::from_pointee(state),
            copy: RwLock::default(),
            checkpoints: AtomicU64::new(0),
            place: Mutex::new(dir.to_owned()),
            _owner: owner,
        };
        Ok((renewable, opened))
    }

    /// Bytes of keys and values, counted by reading them all.
    ///
    /// # Errors
    /// [`StateError`] if a row cannot be read.
    pub fn live_bytes(&self) -> Result<u64, StateError> {
        self.current.load_full().live_bytes()
    }

    /// Writes the state anew. Blocks for as long as that takes; `pace` is asked after each piece.
    /// `None` if it broke off, or the copy could not take a commit: then nothing has changed.
    ///
    /// # Errors
    /// [`RenewError`].
    pub fn renew(&self, pace: Pace<'_>) -> Result<Option<Renewed>, RenewError> {
        let mut place = self.place.lock();
        let (path, state) = self.begin(&place)?;
        let disk_bytes_before = self.stats().disk_bytes;
        match self.fill(&path, &state, pace) {
            Ok(Some(row_bytes)) => {
                drop(state);
                let old = std::mem::replace(&mut *place, path);
                self.remove(&old, pace);
                let disk_bytes = self.stats().disk_bytes;
                Ok(Some(Renewed { row_bytes, disk_bytes_before, disk_bytes }))
            }
            Err(error @ RenewError::Undecided(_)) => Err(error),
            not_done @ (Ok(None) | Err(RenewError::Failed(_))) => {
                *self.copy.write() = None;
                drop(state);
                // The next start removes what this does not.
                drop(fs::remove_dir_all(&path));
                not_done.map(|_| None)
            }
        }
    }

    /// Copies everything and lets the copy take over; how many bytes of rows that were.
    fn fill(
        &self,
        path: &Path,
        state: &Arc<SledState>,
        pace: Pace<'_>,
    ) -> Result<Option<u64>, RenewError> {
        let Some(row_bytes) = self.copy_all(state, pace)? else { return Ok(None) };
        Ok(self.take_over(path, state)?.then_some(row_bytes))
    }

    /// Makes an empty store that takes all commits from now on.
    fn begin(&self, place: &Path) -> Result<(PathBuf, Arc<SledState>), StateError> {
        let number = number_of(place).unwrap_or(0) + 1;
        let path = self.dir.join(format!("renewed-{number}"));
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StateError::Io(error));
            }
            Ok(()) | Err(_) => {}
        }
        let state = Arc::new(SledState::open(&path, self.config)?.0);
        let copy = Copy { state: Arc::clone(&state), is_broken: AtomicBool::new(false) };
        *self.copy.write() = Some(copy);
        Ok((path, state))
    }

    /// Copies all rows; how many bytes they have.
    fn copy_all(&self, to: &SledState, pace: Pace<'_>) -> Result<Option<u64>, StateError> {
        let (mut start, mut row_bytes) = (Vec::new(), 0);
        loop {
            // What the copy cannot take at once would be waited for by all commits.
            while to.commit_may_wait() {
                if pace(0).is_break() {
                    return Ok(None);
                }
                std::thread::sleep(PAUSE);
            }
            let (next, bytes) = self.copy_piece(to, &start)?;
            row_bytes += bytes;
            if pace(bytes).is_break() {
                return Ok(None);
            }
            match next {
                Some(next) => start = next,
                None => return Ok(Some(row_bytes)),
            }
        }
    }

    /// Copies the next rows, while nobody commits; where the ones after them begin.
    fn copy_piece(
        &self,
        to: &SledState,
        start: &[u8],
    ) -> Result<(Option<Vec<u8>>, u64), StateError> {
        let _alone = self.copy.write();
        let (mut batch, mut bytes) = (Batch::default(), 0);
        let mut is_whole = true;
        self.current.load().scan(start..&[u8::MAX; KEY_BYTES_MAX], &mut |key, value| {
            if PIECE_BYTES <= bytes {
                is_whole = false;
                return ControlFlow::Break(());
            }
            bytes += (key.len() + value.len()) as u64;
            batch.rows.push((key.to_vec(), Some(value.to_vec())));
            ControlFlow::Continue(())
        })?;
        let next = batch.rows.last().filter(|_| !is_whole).map(|(last, _)| {
            let mut next = last.clone();
            next.push(0);
            next
        });
        to.commit(batch)?;
        Ok((next, bytes))
    }

    /// Puts a copy that holds all rows in the place of the store. False if it missed a commit.
    fn take_over(&self, path: &Path, state: &Arc<SledState>) -> Result<bool, RenewError> {
        // Nearly all of it, while commits go on.
        state.checkpoint()?;
        let mut copy = self.copy.write();
        let is_broken = |copy: &Copy| copy.is_broken.load(Ordering::Relaxed);
        if copy.as_ref().is_none_or(is_broken) {
            return Ok(false);
        }
        state.checkpoint()?;
        let complete = || {
            durable::replace_file(&path.join("complete"), &[])?;
            durable::sync_dir(&self.dir)
        };
        complete().map_err(RenewError::Undecided)?;
        let old = self.current.swap(Arc::clone(state));
        *copy = None;
        drop(copy);
        // Its writer is waited for.
        drop(old);
        Ok(true)
    }

    /// Waits until nobody reads the old store any more, and removes it. A start does what is left.
    fn remove(&self, old: &Path, pace: Pace<'_>) {
        // `current` has another one: what still counts are readers.
        while self.is_locked(old) {
            if pace(0).is_break() {
                return;
            }
            std::thread::sleep(PAUSE);
        }
        let removed = if old == self.dir {
            SledState::discard(old)
        } else {
            fs::remove_dir_all(old).map_err(StateError::Io)
        };
        if let Err(error) = removed {
            tracing::warn!(%error, path = %old.display(), "an old state could not be removed");
        }
    }

    fn is_locked(&self, store: &Path) -> bool {
        File::open(store.join("lock"))
            .is_ok_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
    }
}

/// Takes the directory for this process.
fn own(dir: &Path) -> Result<File, StateError> {
    fs::create_dir_all(dir).map_err(StateError::Io)?;
    let file = File::create(dir.join("owner")).map_err(StateError::Io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StateError::InUse { path: dir.to_owned() }),
        Err(TryLockError::Error(error)) => Err(StateError::Io(error)),
    }
}

/// The N of `renewed-N`.
fn number_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix("renewed-")?.parse().ok()
}

/// Moves the newest complete copy to where a state is expected, and removes the others.
fn settle(dir: &Path) -> io::Result<()> {
    let mut copies: Vec<(u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        copies.extend(number_of(&path).map(|number| (number, path)));
    }
    copies.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
    let mut is_settled = false;
    for (_, copy) in copies {
        if !is_settled && copy.join("complete").try_exists()? {
            is_settled = true;
            // Without content it was moved by a start that then ended.
            let (content, expected) = (copy.join("current"), dir.join("current"));
            if content.try_exists()? {
                if expected.try_exists()? {
                    fs::remove_dir_all(&expected)?;
                }
                fs::rename(&content, &expected)?;
                durable::sync_dir(dir)?;
            }
        }
        fs::remove_dir_all(&copy)?;
    }
    Ok(())
}

impl StateStore for RenewableState {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        self.current.load().get(key)
    }

    fn scan(&self, range: Range<&[u8]>, visit: Visit<'_>) -> Result<(), StateError> {
        self.current.load_full().scan(range, visit)
    }

    fn commit(&self, batch: Batch) -> Result<(), StateError> {
        let copy = self.copy.read();
        if let Some(copy) = copy.as_ref().filter(|copy| !copy.is_broken.load(Ordering::Relaxed))
            && let Err(error) = copy.state.commit(batch.clone())
        {
            copy.is_broken.store(true, Ordering::Relaxed);
            tracing::warn!(%error, "the copy of the state misses a commit: it is given up");
        }
        self.current.load().commit(batch)
    }

    fn commit_may_wait(&self) -> bool {
        // A piece that is being copied is waited for.
        self.current.load().commit_may_wait()
            || self
                .copy
                .try_read()
                .is_none_or(|copy| copy.as_ref().is_some_and(|copy| copy.state.commit_may_wait()))
    }

    fn checkpoint(&self) -> Result<(), StateError> {
        self.current.load_full().checkpoint()?;
        self.checkpoints.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn clear(&self, range: Range<&[u8]>) -> Result<u64, StateError> {
        clear_in_batches(self, range)
    }

    fn stats(&self) -> StateStats {
        let checkpoints = self.checkpoints.load(Ordering::Relaxed);
        StateStats { checkpoints, ..self.current.load().stats() }
    }
}

#[cfg(test)]
mod tests;
