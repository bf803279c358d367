//! A file system that shows another one and never changes it: what is written stays in memory.
//!
//! The log opens on it as on a disk, with all its checks and repairs, and the disk is as it was
//! afterwards. So an inspection says exactly what a start would find.
//!
//! Not here: keeping a node from starting meanwhile. [`OverlayFs::lock`] locks nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::fs::{File, FileLock, FileSystem};

const PAGE_BYTES: u64 = 4096;

/// The operating system's files, with changes on top that only this value sees.
#[derive(Clone, Default)]
pub struct OverlayFs {
    names: Arc<Mutex<Names>>,
}

#[derive(Default)]
struct Names {
    /// Files that were opened or made here, by the name they have here.
    known: BTreeMap<PathBuf, Arc<OverlayFile>>,
    /// Names that are on the disk and were removed here.
    removed: BTreeSet<PathBuf>,
}

/// A file on the disk, or none, with pages on top.
struct OverlayFile {
    below: Option<fs::File>,
    state: Mutex<Pages>,
}

struct Pages {
    length: u64,
    /// Bytes of `below` from here on do not count: what lies there was made here.
    below_length: u64,
    changed: BTreeMap<u64, Vec<u8>>,
}

struct NoLock;

impl FileLock for NoLock {}

impl OverlayFs {
    /// The files as they are on the disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Names {
    fn find(&mut self, path: &Path) -> io::Result<Arc<OverlayFile>> {
        if let Some(file) = self.known.get(path) {
            return Ok(Arc::clone(file));
        }
        if self.removed.contains(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let below = fs::File::open(path)?;
        let length = below.metadata()?.len();
        let pages = Pages { length, below_length: length, changed: BTreeMap::new() };
        let file = Arc::new(OverlayFile { below: Some(below), state: Mutex::new(pages) });
        self.known.insert(path.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        if self.known.contains_key(path) {
            return Ok(true);
        }
        Ok(!self.removed.contains(path) && path.try_exists()?)
    }
}

impl FileSystem for OverlayFs {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let names = self.names.lock();
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if !names.removed.contains(&entry.path()) {
                found.insert(entry.file_name().to_string_lossy().into_owned());
            }
        }
        let here = names.known.keys().filter(|path| path.parent() == Some(dir));
        let here = here.filter_map(|path| path.file_name());
        found.extend(here.map(|name| name.to_string_lossy().into_owned()));
        Ok(found.into_iter().collect())
    }

    fn create(&self, path: &Path, length: u64) -> io::Result<Arc<dyn File>> {
        let mut names = self.names.lock();
        if names.exists(path)? {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let pages = Pages { length, below_length: 0, changed: BTreeMap::new() };
        let file = Arc::new(OverlayFile { below: None, state: Mutex::new(pages) });
        names.known.insert(path.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.names.lock().find(path)?)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut names = self.names.lock();
        let file = names.find(from)?;
        names.known.remove(from);
        names.removed.insert(from.to_owned());
        names.known.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut names = self.names.lock();
        names.find(path)?;
        names.known.remove(path);
        names.removed.insert(path.to_owned());
        Ok(())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn space(&self, _dir: &Path) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    fn lock(&self, _path: &Path) -> io::Result<Box<dyn FileLock>> {
        Ok(Box::new(NoLock))
    }

    fn unique_id(&self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

impl OverlayFile {
    /// One page as it is seen here.
    fn page(&self, pages: &Pages, number: u64) -> io::Result<Vec<u8>> {
        if let Some(page) = pages.changed.get(&number) {
            return Ok(page.clone());
        }
        let mut page = vec![0; usize::try_from(PAGE_BYTES).map_err(io::Error::other)?];
        let start = number * PAGE_BYTES;
        let there = pages.below_length.saturating_sub(start).min(PAGE_BYTES);
        if let (Some(below), 1..) = (&self.below, there) {
            let there = usize::try_from(there).map_err(io::Error::other)?;
            below.read_exact_at(&mut page[..there], start)?;
        }
        Ok(page)
    }
}

/// The parts of `length` bytes at `offset` by page: page number, start in the page, part's range.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if length <= done {
            return None;
        }
        let at = offset + done as u64;
        let within = usize::try_from(at % PAGE_BYTES).unwrap_or(0);
        let room = usize::try_from(PAGE_BYTES).unwrap_or(usize::MAX) - within;
        let part = done..(done + room).min(length);
        done = part.end;
        Some((at / PAGE_BYTES, within, part))
    })
}

impl File for OverlayFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.state.lock().length)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let pages = self.state.lock();
        if pages.length < offset.saturating_add(buffer.len() as u64) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let end = offset + buffer.len() as u64;
        if let (Some(below), true) = (&self.below, pages.changed.is_empty())
            && end <= pages.below_length
        {
            return below.read_exact_at(buffer, offset);
        }
        for (number, within, part) in parts(offset, buffer.len()) {
            let page = self.page(&pages, number)?;
            let length = part.len();
            buffer[part].copy_from_slice(&page[within..within + length]);
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut pages = self.state.lock();
        for (number, within, part) in parts(offset, bytes.len()) {
            let mut page = self.page(&pages, number)?;
            let length = part.len();
            page[within..within + length].copy_from_slice(&bytes[part]);
            pages.changed.insert(number, page);
        }
        pages.length = pages.length.max(offset.saturating_add(bytes.len() as u64));
        Ok(())
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        let mut pages = self.state.lock();
        pages.length = pages.length.max(length);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::RealFs;
    use crate::log_store::{GroupId, LogEntry, LogPosition, LogStore, LogWrite};
    use crate::{LogConfig, SegmentedLog};

    fn bytes_of(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        files.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    }

    fn append(log: &SegmentedLog, group: GroupId, index: u64) {
        let entry =
            LogEntry { position: LogPosition { term: 1, index }, content: vec![7; 900].into() };
        let (done, waiting) = std::sync::mpsc::channel();
        let write = LogWrite::Append { group, entries: vec![entry] };
        log.submit(write, Box::new(move |result| done.send(result).unwrap()));
        waiting.recv().unwrap().unwrap();
    }

    #[test]
    fn a_log_opens_and_takes_entries_and_the_disk_stays_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig { segment_bytes: 16 << 10, ..LogConfig::default() };
        let group = GroupId { shard: 3, incarnation: 1 };
        let log = SegmentedLog::open(Arc::new(RealFs), dir.path(), config).unwrap();
        (0..40).for_each(|index| append(&log, group, index));
        drop(log);
        let before = bytes_of(dir.path());

        let log = SegmentedLog::open(Arc::new(OverlayFs::new()), dir.path(), config).unwrap();
        let last = |log: &SegmentedLog| log.group(group).unwrap().last.unwrap().index;
        assert_eq!(last(&log), 39);
        (40..100).for_each(|index| append(&log, group, index));
        let read = log.read(group, 0..100, usize::MAX).unwrap();
        assert_eq!(read.len(), 100);
        drop(log);
        assert_eq!(bytes_of(dir.path()), before);
        let log = SegmentedLog::open(Arc::new(RealFs), dir.path(), config).unwrap();
        assert_eq!(last(&log), 39);
    }

    #[test]
    fn writes_across_pages_are_seen_here_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, vec![1; 10_000]).unwrap();
        let overlay = OverlayFs::new();
        let file = overlay.open(&path).unwrap();
        file.write_at(&[2; 5_000], 4_000).unwrap();
        file.allocate(12_000).unwrap();
        let mut seen = vec![9; 12_000];
        file.read_at(&mut seen, 0).unwrap();
        let expected = [vec![1; 4_000], vec![2; 5_000], vec![1; 1_000], vec![0; 2_000]].concat();
        assert_eq!(seen, expected);
        assert!(file.read_at(&mut [0], 12_000).is_err());
        overlay.rename(&path, &dir.path().join("other")).unwrap();
        assert_eq!(overlay.list(dir.path()).unwrap(), ["other"]);
        overlay.remove(&dir.path().join("other")).unwrap();
        assert_eq!(overlay.list(dir.path()).unwrap(), Vec::<String>::new());
        assert!(overlay.open(&path).is_err());
        overlay.create(&path, 5).unwrap();
        assert_eq!(overlay.open(&path).unwrap().length().unwrap(), 5);
        assert_eq!(fs::read(&path).unwrap(), vec![1; 10_000]);
    }
}
