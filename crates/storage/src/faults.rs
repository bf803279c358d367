//! A disk that fails on command, for the fault harness. Compiled only with the feature `chaos`.
//!
//! [`FaultyFs`] stands in front of another file system, [`FaultyState`] in front of a state store;
//! both ask one [`DiskSwitch`] before they touch the disk. A switch that holds unsynced writes
//! back keeps what was written since a file's last sync in this process's memory, so that killing
//! the process loses it, as a power cut does. Of each write, some sectors reach the file at once
//! all the same: a disk is free to write early, and in any order.
//!
//! Not here: who turns the switch (`server::chaos`).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Weak;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::fs::{File, FileLock, FileSystem};
use crate::state_store::{StateError, StateLayer, StateStore};

/// What the disk does wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskFaults {
    /// No space is left for new files and longer ones. What was allocated before can be written.
    pub full: bool,
    /// Writes fail.
    pub write_error: bool,
    /// Syncs fail.
    pub sync_error: bool,
    /// Each write and each sync takes this much longer, or until the disk is well again.
    pub stall: Duration,
}

/// How often each fault met someone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskHits {
    /// Calls that found the disk full.
    pub full: u64,
    /// Writes that failed.
    pub write_error: u64,
    /// Syncs that failed.
    pub sync_error: u64,
    /// Writes and syncs that took longer.
    pub stall: u64,
    /// Writes that were held back in part.
    pub held: u64,
}

/// Turns faults on and off while the node runs.
#[derive(Debug, Default)]
pub struct DiskSwitch {
    faults: Mutex<DiskFaults>,
    changed: Condvar,
    hits: Mutex<DiskHits>,
    holds_unsynced: bool,
}

impl DiskSwitch {
    /// A switch with nothing wrong. `holds_unsynced` keeps unsynced writes in memory.
    pub fn new(holds_unsynced: bool) -> Arc<Self> {
        Arc::new(Self { holds_unsynced, ..Self::default() })
    }

    /// What is wrong from now on. Calls that wait for a stalled disk look again.
    pub fn set(&self, faults: DiskFaults) {
        *self.faults.lock() = faults;
        self.changed.notify_all();
    }

    /// How often each fault met someone.
    pub fn hits(&self) -> DiskHits {
        *self.hits.lock()
    }

    /// Waits while the disk stalls, and says what is wrong after that.
    fn wait(&self) -> DiskFaults {
        let mut faults = self.faults.lock();
        let stall = faults.stall;
        if !stall.is_zero() {
            self.hits.lock().stall += 1;
            self.changed.wait_while_for(&mut faults, |now| now.stall == stall, stall);
        }
        *faults
    }

    fn before_write(&self) -> io::Result<()> {
        // A full disk does not hinder writes to what was allocated before.
        if self.wait().write_error {
            self.hits.lock().write_error += 1;
            return Err(io::Error::other("input/output error (injected at a write)"));
        }
        Ok(())
    }

    fn before_sync(&self) -> io::Result<()> {
        if self.wait().sync_error {
            self.hits.lock().sync_error += 1;
            return Err(io::Error::other("input/output error (injected at a sync)"));
        }
        Ok(())
    }

    fn before_growth(&self) -> io::Result<()> {
        if self.faults.lock().full {
            self.hits.lock().full += 1;
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

/// A file system in front of another one.
pub struct FaultyFs {
    inner: Arc<dyn FileSystem>,
    switch: Arc<DiskSwitch>,
    /// Files that are open: a second handle must see what the first one holds back.
    open: Mutex<BTreeMap<PathBuf, Weak<FaultyFile>>>,
}

impl FaultyFs {
    /// Puts a switch in front of `inner`.
    pub fn new(inner: Arc<dyn FileSystem>, switch: Arc<DiskSwitch>) -> Self {
        Self { inner, switch, open: Mutex::default() }
    }

    fn wrap(&self, path: &Path, inner: Arc<dyn File>) -> Arc<dyn File> {
        let switch = Arc::clone(&self.switch);
        let file = Arc::new(FaultyFile { inner, switch, held: Mutex::default() });
        let mut open = self.open.lock();
        open.retain(|_, file| 0 < file.strong_count());
        open.insert(path.to_owned(), Arc::downgrade(&file));
        file
    }
}

impl FileSystem for FaultyFs {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.inner.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.inner.list(dir)
    }

    fn create(&self, path: &Path, length: u64) -> io::Result<Arc<dyn File>> {
        self.switch.before_growth()?;
        let inner = self.inner.create(path, length)?;
        Ok(self.wrap(path, inner))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let known = self.open.lock().get(path).and_then(Weak::upgrade);
        if let Some(file) = known {
            return Ok(file);
        }
        let inner = self.inner.open(path)?;
        Ok(self.wrap(path, inner))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)?;
        let mut open = self.open.lock();
        open.remove(to);
        if let Some(file) = open.remove(from) {
            open.insert(to.to_owned(), file);
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)?;
        self.open.lock().remove(path);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.switch.before_sync()?;
        self.inner.sync_dir(dir)
    }

    fn space(&self, dir: &Path) -> io::Result<u64> {
        if self.switch.before_growth().is_err() {
            return Ok(0);
        }
        self.inner.space(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn FileLock>> {
        self.inner.lock(path)
    }

    fn unique_id(&self) -> io::Result<u64> {
        self.inner.unique_id()
    }
}

/// A file whose unsynced writes may be in this process's memory only.
struct FaultyFile {
    inner: Arc<dyn File>,
    switch: Arc<DiskSwitch>,
    /// Offsets and bytes that are not in the file yet, oldest first.
    held: Mutex<Vec<(u64, Vec<u8>)>>,
}

/// What a disk writes at once or not at all.
const SECTOR_BYTES: usize = 512;

/// Whether a sector is written early. A fixed pattern: about one in four.
fn is_early(offset: u64) -> bool {
    let sector = offset / SECTOR_BYTES as u64;
    sector.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 62 == 0
}

impl File for FaultyFile {
    fn length(&self) -> io::Result<u64> {
        self.inner.length()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        // Locked over both, or a sync in between would hide what it writes.
        let held = self.held.lock();
        self.inner.read_at(buffer, offset)?;
        for (at, bytes) in held.iter() {
            overlay(buffer, offset, bytes, *at);
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.switch.before_write()?;
        let end = offset + bytes.len() as u64;
        // A write that lengthens the file goes through: the length must be right at once.
        if !self.switch.holds_unsynced || self.inner.length()? < end {
            return self.inner.write_at(bytes, offset);
        }
        self.switch.hits.lock().held += 1;
        let mut held = self.held.lock();
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let sector_end = (at / SECTOR_BYTES as u64 + 1) * SECTOR_BYTES as u64;
            let length = usize::try_from(sector_end - at).unwrap_or(SECTOR_BYTES).min(rest.len());
            let (sector, behind) = rest.split_at(length);
            if is_early(at) {
                self.inner.write_at(sector, at)?;
            }
            at += length as u64;
            rest = behind;
        }
        held.push((offset, bytes.to_vec()));
        Ok(())
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        self.switch.before_growth()?;
        self.inner.allocate(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.switch.before_sync()?;
        let mut held = self.held.lock();
        for (at, bytes) in held.drain(..) {
            self.inner.write_at(&bytes, at)?;
        }
        self.inner.sync_data()
    }
}

/// Copies what `bytes` at `at` has of the window `buffer` at `offset`.
fn overlay(buffer: &mut [u8], offset: u64, bytes: &[u8], at: u64) {
    let start = offset.max(at);
    let end = (offset + buffer.len() as u64).min(at + bytes.len() as u64);
    if start < end {
        let index =
            |base: u64, position: u64| usize::try_from(position - base).unwrap_or(usize::MAX);
        let from = &bytes[index(at, start)..index(at, end)];
        buffer[index(offset, start)..index(offset, end)].copy_from_slice(from);
    }
}

/// A state store whose writes and checkpoints wait while the disk stalls.
pub struct FaultyState {
    inner: Arc<dyn StateStore>,
    switch: Arc<DiskSwitch>,
}

impl FaultyState {
    /// Puts a switch in front of `inner`.
    pub fn new(inner: Arc<dyn StateStore>, switch: Arc<DiskSwitch>) -> Self {
        Self { inner, switch }
    }
}

impl StateLayer for FaultyState {
    fn inner(&self) -> &dyn StateStore {
        &*self.inner
    }

    // Commits go through: the engine writes to memory and to its file later, so only its file
    // system could be full.

    fn checkpoint_through(&self) -> Result<(), StateError> {
        self.switch.before_sync().map_err(StateError::Io)?;
        self.inner.checkpoint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::RealFs;

    fn file(switch: &Arc<DiskSwitch>, dir: &Path) -> Arc<dyn File> {
        let fs = FaultyFs::new(Arc::new(RealFs), Arc::clone(switch));
        fs.create(&dir.join("file"), 64 << 10).unwrap()
    }

    fn read(file: &dyn File, length: usize, offset: u64) -> Vec<u8> {
        let mut buffer = vec![0; length];
        file.read_at(&mut buffer, offset).unwrap();
        buffer
    }

    #[test]
    fn what_was_not_synced_is_readable_and_not_on_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let switch = DiskSwitch::new(true);
        let file = file(&switch, dir.path());
        let bytes: Vec<u8> = (0..40_000_u32).map(|n| (n % 251) as u8 + 1).collect();
        file.write_at(&bytes, 100).unwrap();
        assert_eq!(read(&*file, bytes.len(), 100), bytes);
        assert_eq!(read(&*file, 10, 105), bytes[5..15]);
        let on_disk = std::fs::read(dir.path().join("file")).unwrap();
        let missing = on_disk[100..40_100].iter().filter(|byte| **byte == 0).count();
        assert!((10_000..40_000).contains(&missing), "{missing} bytes are missing");
        file.sync_data().unwrap();
        let on_disk = std::fs::read(dir.path().join("file")).unwrap();
        assert_eq!(on_disk[100..40_100], bytes);
        assert_eq!(switch.hits().held, 1);
    }

    #[test]
    fn later_writes_win_over_earlier_ones() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(&DiskSwitch::new(true), dir.path());
        file.write_at(&[1; 1_000], 0).unwrap();
        file.write_at(&[2; 10], 500).unwrap();
        assert_eq!(read(&*file, 12, 499), [1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1]);
        file.sync_data().unwrap();
        assert_eq!(read(&*file, 12, 499), [1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1]);
    }

    #[test]
    fn faults_meet_their_calls_and_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let switch = DiskSwitch::new(false);
        let file = file(&switch, dir.path());
        switch.set(DiskFaults { full: true, ..DiskFaults::default() });
        file.write_at(&[1], 0).unwrap();
        assert_eq!(file.allocate(9).unwrap_err().kind(), io::ErrorKind::StorageFull);
        file.sync_data().unwrap();
        switch.set(DiskFaults { sync_error: true, ..DiskFaults::default() });
        file.write_at(&[1], 0).unwrap();
        file.sync_data().unwrap_err();
        switch.set(DiskFaults { write_error: true, ..DiskFaults::default() });
        file.write_at(&[1], 0).unwrap_err();
        switch.set(DiskFaults::default());
        file.write_at(&[1], 0).unwrap();
        let hits = DiskHits { full: 1, write_error: 1, sync_error: 1, stall: 0, held: 0 };
        assert_eq!(switch.hits(), hits);
    }

    #[test]
    fn a_stalled_call_goes_on_when_the_disk_is_well_again() {
        let dir = tempfile::tempdir().unwrap();
        let switch = DiskSwitch::new(false);
        let file = file(&switch, dir.path());
        // Longer than any test run: only the heal can end it.
        let stall = Duration::from_secs(86_400);
        switch.set(DiskFaults { stall, ..DiskFaults::default() });
        let writer = std::thread::spawn(move || file.sync_data());
        while switch.hits().stall == 0 {
            std::thread::yield_now();
        }
        switch.set(DiskFaults::default());
        writer.join().unwrap().unwrap();
    }
}
