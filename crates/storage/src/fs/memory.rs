//! A file system in memory that forgets what was not synced.
//!
//! Every call is counted. A test can let a chosen call fail, or cut the power at it: from then on
//! every call fails, and [`MemoryFs::after_crash`] gives the disk as the next start finds it. What
//! was synced is there. Of the rest, the seed decides: each unsynced sector of 512 bytes is kept or
//! lost, and so is each created, removed or renamed name since its directory was synced.
//! The bytes of a file that no name and no handle leads to are freed, as a disk frees them: a long run
//! takes the memory of what it keeps, not of all it ever wrote.
//! A failed `sync_data` drops what it should have made durable: reads still see it, the disk never
//! will, as on Linux.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{File, FileLock, FileSystem};

const SECTOR: usize = 512;

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// With an I/O error. A write is done by half, a sync drops the data.
    Io,
    /// For want of space. A write is done by half.
    NoSpace,
    /// With everything after it: the power is cut. Whether the call itself had its effect, the
    /// seed decides.
    PowerCut,
}

/// The file system; clones are the same one.
#[derive(Clone, Default)]
pub struct MemoryFs {
    disk: Arc<Mutex<Disk>>,
}

/// Which file each name leads to.
type Names = BTreeMap<PathBuf, usize>;

#[derive(Default)]
struct Disk {
    files: Vec<Content>,
    /// Names as running programs see them, and as they would be found after a crash.
    names: Names,
    durable_names: Names,
    dirs: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
    /// Bytes that may still be allocated; `None` means any number.
    space: Option<u64>,
    calls: u64,
    fault: Option<(u64, Fault)>,
    /// The call at which the power is cut, beside any other fault.
    cut: Option<u64>,
    power_cut: bool,
    ids: u64,
    /// What the counted calls were, once somebody wants to know.
    trace: Option<Vec<String>>,
    before_calls: Option<Arc<dyn Fn() + Send + Sync>>,
}

#[derive(Clone, Default)]
struct Content {
    /// As running programs see it.
    seen: Vec<u8>,
    /// As on disk.
    durable: Vec<u8>,
    /// Sectors that differ and that the next sync makes durable.
    dirty: BTreeSet<usize>,
    length_dirty: bool,
    /// Sectors that cannot be read until they are written again.
    unreadable: BTreeSet<usize>,
    /// Open handles. They keep the bytes of a removed file.
    handles: usize,
}

struct MemoryFile {
    disk: Arc<Mutex<Disk>>,
    id: usize,
}

struct MemoryLock {
    disk: Arc<Mutex<Disk>>,
    path: PathBuf,
}

impl FileLock for MemoryLock {}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.disk.lock().locks.remove(&self.path);
    }
}

impl MemoryFs {
    /// An empty file system without bounds.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls that change something or sync, so far. Reads, opens and lists do not count.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.disk.lock().calls
    }

    /// Notes each counted call from now on, for [`MemoryFs::trace`].
    pub fn keep_trace(&self) {
        self.disk.lock().trace.get_or_insert_default();
    }

    /// What the counted calls were, in order, since [`MemoryFs::keep_trace`].
    #[must_use]
    pub fn trace(&self) -> Vec<String> {
        self.disk.lock().trace.clone().unwrap_or_default()
    }

    /// Bytes of all files that a name or a handle leads to, as running programs see them.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.disk.lock().files.iter().map(|content| content.seen.len() as u64).sum()
    }

    /// Lets the call with this number (the first is 0) fail.
    pub fn fail_at(&self, call: u64, fault: Fault) {
        self.disk.lock().fault = Some((call, fault));
    }

    /// Lets the power be cut at the call with this number, whatever fails before.
    pub fn cut_power_at(&self, call: u64) {
        self.disk.lock().cut = Some(call);
    }

    /// Lets `look` run in front of every counted call, on the thread that makes the call. It may
    /// read files.
    pub fn before_each_call(&self, look: impl Fn() + Send + Sync + 'static) {
        self.disk.lock().before_calls = Some(Arc::new(look));
    }

    /// Whether the power was cut.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.disk.lock().power_cut
    }

    /// As [`MemoryFs::after_kill`], with calls counted on and the power still to be cut.
    #[must_use]
    pub fn after_kill_counting(&self) -> Self {
        let next = self.after_kill();
        let (calls, cut) = {
            let disk = self.disk.lock();
            (disk.calls, disk.cut)
        };
        let mut disk = next.disk.lock();
        (disk.calls, disk.cut) = (calls, cut);
        drop(disk);
        next
    }

    /// Sets the bytes that may still be allocated; `None` means any number.
    pub fn set_space(&self, bytes: Option<u64>) {
        self.disk.lock().space = bytes;
    }

    /// Changes one byte of a file, behind everyone's back.
    ///
    /// # Errors
    /// `NotFound`, and `UnexpectedEof` if the file is shorter.
    pub fn flip(&self, path: &Path, offset: usize, mask: u8) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let id = disk.find(path)?;
        let content = &mut disk.files[id];
        for bytes in [&mut content.seen, &mut content.durable] {
            *bytes.get_mut(offset).ok_or(io::ErrorKind::UnexpectedEof)? ^= mask;
        }
        Ok(())
    }

    /// Lets the sectors of a range of bytes fail every read until they are written again.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn make_unreadable(&self, path: &Path, bytes: std::ops::Range<usize>) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let id = disk.find(path)?;
        disk.files[id].unreadable.extend(bytes.start / SECTOR..bytes.end.div_ceil(SECTOR));
        Ok(())
    }

    /// Overwrites or shortens a file, behind everyone's back.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn replace(&self, path: &Path, bytes: Vec<u8>) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let id = disk.find(path)?;
        let handles = disk.files[id].handles;
        disk.files[id] =
            Content { durable: bytes.clone(), seen: bytes, handles, ..Content::default() };
        Ok(())
    }

    /// A file's bytes.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn bytes(&self, path: &Path) -> io::Result<Vec<u8>> {
        let disk = self.disk.lock();
        let id = disk.find(path)?;
        Ok(disk.files[id].seen.clone())
    }

    /// A copy of everything as running programs see it: what a killed process leaves behind.
    #[must_use]
    pub fn after_kill(&self) -> Self {
        let disk = self.disk.lock();
        let closed = |content: &Content| Content { handles: 0, ..content.clone() };
        let files = disk.files.iter().map(closed).collect();
        disk.left_with(files, disk.names.clone(), disk.durable_names.clone())
    }

    /// A copy of what the disk holds after a power cut. What was not synced is kept or lost by
    /// the seed; seed 0 loses all of it, seed 1 keeps all of it.
    #[must_use]
    pub fn after_crash(&self, seed: u64) -> Self {
        let disk = self.disk.lock();
        let mut choice = Choice { seed, state: seed };
        let files: Vec<Content> =
            disk.files.iter().map(|content| content.survivor(&mut choice)).collect();
        let mut names = disk.durable_names.clone();
        for path in disk.names.keys().chain(disk.durable_names.keys()) {
            let (now, before) = (disk.names.get(path), disk.durable_names.get(path));
            if now != before && choice.keeps() {
                match now {
                    Some(id) => names.insert(path.clone(), *id),
                    None => names.remove(path),
                };
            }
        }
        disk.left_with(files, names.clone(), names)
    }
}

/// Decisions that follow from a seed (splitmix64).
struct Choice {
    seed: u64,
    state: u64,
}

impl Choice {
    fn keeps(&mut self) -> bool {
        if self.seed < 2 {
            return self.seed == 1;
        }
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) & 1 == 1
    }
}

impl Content {
    fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        if self.seen.len() < end {
            self.resize(end);
        }
        self.seen[offset..end].copy_from_slice(bytes);
        for sector in offset / SECTOR..end.div_ceil(SECTOR) {
            self.unreadable.remove(&sector);
        }
        self.dirty.extend(offset / SECTOR..end.div_ceil(SECTOR));
    }

    fn resize(&mut self, length: usize) {
        self.seen.resize(length, 0);
        self.length_dirty = true;
    }

    fn sync(&mut self) {
        self.durable.resize(self.seen.len(), 0);
        for sector in std::mem::take(&mut self.dirty) {
            self.persist(sector);
        }
        self.length_dirty = false;
    }

    /// The sync failed: the kernel has marked the pages clean, the disk has not got them.
    fn lose_sync(&mut self) {
        self.dirty.clear();
        self.length_dirty = false;
    }

    fn persist(&mut self, sector: usize) {
        let end = ((sector + 1) * SECTOR).min(self.seen.len()).min(self.durable.len());
        let start = (sector * SECTOR).min(end);
        self.durable[start..end].copy_from_slice(&self.seen[start..end]);
    }

    fn survivor(&self, choice: &mut Choice) -> Self {
        let mut left = self.clone();
        if left.length_dirty && choice.keeps() {
            left.durable.resize(left.seen.len(), 0);
        }
        for sector in std::mem::take(&mut left.dirty) {
            if choice.keeps() {
                left.persist(sector);
            }
        }
        let unreadable = left.unreadable;
        Self { seen: left.durable.clone(), durable: left.durable, unreadable, ..Self::default() }
    }
}

impl Disk {
    fn find(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn alive(&self) -> io::Result<()> {
        if self.power_cut { Err(io::Error::other("the power is cut")) } else { Ok(()) }
    }

    /// Counts a call; returns the fault that it meets.
    fn call(&mut self, what: &str, path: &dyn std::fmt::Debug) -> io::Result<Option<Fault>> {
        self.alive()?;
        let number = self.calls;
        self.calls += 1;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{what} {path:?}"));
        }
        let fault = self.fault.filter(|(call, _)| *call == number).map(|(_, fault)| fault);
        let fault = if self.cut == Some(number) { Some(Fault::PowerCut) } else { fault };
        self.power_cut |= fault == Some(Fault::PowerCut);
        Ok(fault)
    }

    fn take_space(&mut self, bytes: u64) -> io::Result<()> {
        if let Some(space) = &mut self.space {
            *space = space.checked_sub(bytes).ok_or(io::ErrorKind::StorageFull)?;
        }
        Ok(())
    }

    /// The disk that the next start finds, with these files and names.
    fn left_with(&self, files: Vec<Content>, names: Names, durable_names: Names) -> MemoryFs {
        let mut left = Self {
            files,
            names,
            durable_names,
            dirs: self.dirs.clone(),
            space: self.space,
            ids: self.ids,
            ..Self::default()
        };
        left.free_unreachable();
        MemoryFs { disk: Arc::new(Mutex::new(left)) }
    }

    /// Frees the bytes of files that no name, no durable name and no handle leads to.
    fn free_unreachable(&mut self) {
        let named: BTreeSet<usize> =
            self.names.values().chain(self.durable_names.values()).copied().collect();
        for (id, content) in self.files.iter_mut().enumerate() {
            if content.handles == 0 && !content.seen.is_empty() && !named.contains(&id) {
                *content = Content::default();
            }
        }
    }

    fn give_space(&mut self, id: usize) {
        let used = self.names.values().any(|other| *other == id);
        let length = self.files[id].seen.len() as u64;
        if let (Some(space), false) = (&mut self.space, used) {
            *space += length;
        }
    }
}

/// Not under the disk's lock: whoever looks may use the disk.
fn look_before(disk: &Mutex<Disk>) {
    let look = disk.lock().before_calls.clone();
    if let Some(look) = look {
        look();
    }
}

fn outcome(fault: Option<Fault>) -> io::Result<()> {
    match fault {
        None => Ok(()),
        Some(Fault::Io) => Err(io::Error::other("injected I/O error")),
        Some(Fault::NoSpace) => Err(io::ErrorKind::StorageFull.into()),
        Some(Fault::PowerCut) => Err(io::Error::other("the power is cut")),
    }
}

fn position(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(io::Error::other)
}

impl FileSystem for MemoryFs {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.alive()?;
        disk.dirs.extend(dir.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let disk = self.disk.lock();
        disk.alive()?;
        if !disk.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inside = disk.names.keys().filter(|path| path.parent() == Some(dir));
        let names = inside.filter_map(|path| path.file_name());
        Ok(names.map(|name| name.to_string_lossy().into_owned()).collect())
    }

    fn create(&self, path: &Path, length: u64) -> io::Result<Arc<dyn File>> {
        look_before(&self.disk);
        let mut disk = self.disk.lock();
        let fault = disk.call("create", &path)?;
        if disk.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let id = disk.files.len();
        disk.files.push(Content::default());
        disk.names.insert(path.to_owned(), id);
        outcome(fault)?;
        disk.take_space(length)?;
        disk.files[id].resize(position(length)?);
        disk.files[id].handles += 1;
        Ok(Arc::new(MemoryFile { disk: Arc::clone(&self.disk), id }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut disk = self.disk.lock();
        disk.alive()?;
        let id = disk.find(path)?;
        disk.files[id].handles += 1;
        Ok(Arc::new(MemoryFile { disk: Arc::clone(&self.disk), id }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        look_before(&self.disk);
        let mut disk = self.disk.lock();
        let fault = disk.call("rename", &from)?;
        if !matches!(fault, None | Some(Fault::PowerCut)) {
            return outcome(fault);
        }
        let id = disk.find(from)?;
        disk.names.remove(from);
        disk.names.insert(to.to_owned(), id);
        outcome(fault)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        look_before(&self.disk);
        let mut disk = self.disk.lock();
        let fault = disk.call("remove", &path)?;
        if !matches!(fault, None | Some(Fault::PowerCut)) {
            return outcome(fault);
        }
        let id = disk.find(path)?;
        disk.names.remove(path);
        disk.give_space(id);
        outcome(fault)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        look_before(&self.disk);
        let mut disk = self.disk.lock();
        let fault = disk.call("sync_dir", &dir)?;
        outcome(fault)?;
        let Disk { names, durable_names, .. } = &mut *disk;
        durable_names.retain(|path, _| path.parent() != Some(dir));
        let inside = names.iter().filter(|(path, _)| path.parent() == Some(dir));
        durable_names.extend(inside.map(|(path, id)| (path.clone(), *id)));
        disk.free_unreachable();
        Ok(())
    }

    fn space(&self, _dir: &Path) -> io::Result<u64> {
        let disk = self.disk.lock();
        disk.alive()?;
        Ok(disk.space.unwrap_or(u64::MAX))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn FileLock>> {
        let mut disk = self.disk.lock();
        disk.alive()?;
        if !disk.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(MemoryLock { disk: Arc::clone(&self.disk), path: path.to_owned() }))
    }

    fn unique_id(&self) -> io::Result<u64> {
        let mut disk = self.disk.lock();
        disk.alive()?;
        disk.ids += 1;
        Ok(disk.ids.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        let mut disk = self.disk.lock();
        disk.files[self.id].handles -= 1;
        if disk.files[self.id].handles == 0 {
            disk.free_unreachable();
        }
    }
}

impl File for MemoryFile {
    fn length(&self) -> io::Result<u64> {
        let disk = self.disk.lock();
        disk.alive()?;
        Ok(disk.files[self.id].seen.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let disk = self.disk.lock();
        disk.alive()?;
        let start = position(offset)?;
        let content = &disk.files[self.id];
        let sectors = start / SECTOR..(start + buffer.len()).div_ceil(SECTOR);
        if content.unreadable.range(sectors).next().is_some() {
            return Err(io::Error::other("injected read error"));
        }
        let bytes = content.seen.get(start..start + buffer.len());
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        look_before(&self.disk);
        let mut disk = self.disk.lock();
        let fault = disk.call("write", &(self.id, offset, bytes.len()))?;
        let start = position(offset)?;
        let half = match fault {
            None | Some(Fault::PowerCut) => bytes,
            Some(Fault::Io | Fault::NoSpace) => &bytes[..bytes.len() / 2],
        };
        disk.files[self.id].write(half, start);
        outcome(fault)
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        look_before(&self.disk);
        let mut disk = self.disk.lock();
        let fault = disk.call("allocate", &(self.id, length))?;
        outcome(fault)?;
        let before = disk.files[self.id].seen.len();
        let length = position(length)?;
        if before < length {
            disk.take_space((length - before) as u64)?;
            disk.files[self.id].resize(length);
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        look_before(&self.disk);
        let mut disk = self.disk.lock();
        let fault = disk.call("sync", &self.id)?;
        match fault {
            None => disk.files[self.id].sync(),
            Some(Fault::PowerCut) => {}
            Some(Fault::Io | Fault::NoSpace) => disk.files[self.id].lose_sync(),
        }
        outcome(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: u64 = 64 << 10;

    fn made(fs: &MemoryFs, name: &str) -> Arc<dyn File> {
        let file = fs.create(Path::new(name), BYTES).unwrap();
        file.write_at(&[7; 100], 0).unwrap();
        file.sync_data().unwrap();
        fs.sync_dir(Path::new("/")).unwrap();
        file
    }

    #[test]
    fn a_removed_file_takes_memory_only_as_long_as_something_leads_to_it() {
        let fs = MemoryFs::new();
        let file = made(&fs, "/a");
        fs.remove(Path::new("/a")).unwrap();
        fs.sync_dir(Path::new("/")).unwrap();
        let mut byte = [0];
        file.read_at(&mut byte, 99).unwrap();
        assert_eq!((byte, fs.kept_bytes()), ([7], BYTES));
        assert_eq!(fs.after_crash(1).kept_bytes(), 0);
        drop(file);
        assert_eq!(fs.kept_bytes(), 0);
    }

    #[test]
    fn a_removed_file_comes_back_until_its_removal_is_synced() {
        let fs = MemoryFs::new();
        drop(made(&fs, "/a"));
        fs.remove(Path::new("/a")).unwrap();
        assert_eq!(fs.after_crash(0).bytes(Path::new("/a")).unwrap()[..100], [7; 100]);
        assert_eq!(fs.after_crash(1).kept_bytes(), 0);
        fs.sync_dir(Path::new("/")).unwrap();
        assert_eq!(fs.kept_bytes(), 0);
    }

    #[test]
    fn calls_are_counted_always_and_noted_on_request() {
        let fs = MemoryFs::new();
        drop(made(&fs, "/a"));
        assert_eq!((fs.calls(), fs.trace().len()), (4, 0));
        fs.keep_trace();
        fs.remove(Path::new("/a")).unwrap();
        assert_eq!((fs.calls(), fs.trace()), (5, vec!["remove \"/a\"".to_owned()]));
    }
}
