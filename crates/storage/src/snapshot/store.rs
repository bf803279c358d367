//! The snapshot files of a node: one directory, all groups.
//!
//! | name | content |
//! |---|---|
//! | `<shard>-<incarnation>-<term>-<index>.snap` | a complete snapshot; 16, 8, 16 and 16 hex digits; `none` stands for term and index before the first entry |
//! | `<such a name>.tmp` | being written |
//! | `<shard>-<incarnation>-<digest>.part` | being received, or what a broken transfer left |
//! | `<shard>-<incarnation>.card` | what the node knows of its replica, see `card` |

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::directory::Directory;
use super::receiver::{self, Receiving};
use super::{
    SnapshotDigest, SnapshotError, SnapshotFile, SnapshotHeader, SnapshotReceiver, SnapshotWriter,
    reader,
};
use crate::durable;
use crate::log_store::GroupId;

/// The snapshot files of a node.
#[derive(Debug)]
pub struct SnapshotStore {
    directory: Arc<Directory>,
    receiving: Receiving,
    /// The snapshot of each group that was received last: it may have been broken off.
    last_received: Mutex<BTreeMap<GroupId, SnapshotDigest>>,
}

/// A group's files as they were found at one time.
struct Listing {
    /// Those that have a header and a footer, from the oldest to the newest position.
    intact: Vec<SnapshotFile>,
    /// All of them.
    paths: Vec<PathBuf>,
}

impl SnapshotStore {
    /// Opens the directory, makes it if needed, and removes what was not finished.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn open(dir: &Path) -> Result<Self, SnapshotError> {
        let open = || {
            fs::create_dir_all(dir)?;
            Directory::read(dir)
        };
        let (directory, paths) =
            open().map_err(|source| SnapshotError::Io { path: dir.to_owned(), source })?;
        let store = Self {
            directory: Arc::new(directory),
            receiving: Receiving::default(),
            last_received: Mutex::default(),
        };
        for path in paths {
            if path.extension().is_some_and(|extension| extension == "tmp" || extension == "part") {
                durable::remove_if_present(&path).map_err(|source| store.io(&path, source))?;
            }
        }
        Ok(store)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        self.directory.path()
    }

    /// Begins a new snapshot.
    ///
    /// # Errors
    /// [`SnapshotError::Io`], also if one of the same group and position is being written;
    /// [`SnapshotError::TooLong`] for the metadata.
    pub fn create(&self, header: SnapshotHeader) -> Result<SnapshotWriter, SnapshotError> {
        SnapshotWriter::create(&self.directory, header)
    }

    /// Begins to receive a snapshot of `bytes` bytes, or goes on where an earlier receiver of the
    /// same one stopped. What is left of the group's other broken transfers is removed.
    ///
    /// # Errors
    /// [`SnapshotError::Busy`] while another receiver of the same snapshot exists;
    /// [`SnapshotError::Io`].
    pub fn receive(
        &self,
        group: GroupId,
        digest: SnapshotDigest,
        bytes: u64,
    ) -> Result<SnapshotReceiver, SnapshotError> {
        let (directory, receiving) = (&self.directory, &self.receiving);
        let receiver = SnapshotReceiver::open(directory, group, digest, bytes, receiving)?;
        let ended = {
            let before = self.last_received.lock().insert(group, digest);
            before.filter(|before| *before != digest && !receiving.lock().contains(before))
        };
        if let Some(ended) = ended {
            let path = receiver::part_path(directory, group, ended);
            durable::remove_if_present(&path).map_err(|source| self.io(&path, source))?;
        }
        Ok(receiver)
    }

    /// How many bytes a broken transfer of a snapshot has left here: where its sender may go on. 0
    /// while it is being received.
    pub fn held_bytes(&self, group: GroupId, digest: SnapshotDigest) -> u64 {
        if self.receiving.lock().contains(&digest) {
            return 0;
        }
        let part = fs::metadata(receiver::part_path(&self.directory, group, digest));
        part.map_or(0, |part| part.len())
    }

    /// Verifies a complete file that lies on the same file system and moves it here.
    ///
    /// # Errors
    /// As [`super::verify`]; the file stays where it was then. It is removed if it cannot be synced.
    pub fn adopt(&self, path: &Path) -> Result<SnapshotFile, SnapshotError> {
        let found = reader::verify(path)?;
        let file = File::open(path).map_err(|source| self.io(path, source))?;
        take_over(&self.directory, &file, found)
    }

    /// A group's snapshot files from the oldest to the newest position. Header and footer of each
    /// were read, the rows were not: [`super::verify`] does that. A file that does not even
    /// have those is reported and left out.
    ///
    /// # Errors
    /// [`SnapshotError::Io`]; [`SnapshotError::UnknownFormat`].
    pub fn list(&self, group: GroupId) -> Result<Vec<SnapshotFile>, SnapshotError> {
        self.listing(group).map(|listing| listing.intact)
    }

    fn listing(&self, group: GroupId) -> Result<Listing, SnapshotError> {
        let _looking = self.directory.stays();
        let mut paths = Vec::new();
        let mut intact = Vec::new();
        for path in self.directory.of(group) {
            let path = &path;
            paths.push(path.clone());
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            match reader::describe(path) {
                Ok(file) if file_name(&file.header) == name => intact.push(file),
                Ok(_) => {
                    tracing::warn!(path = %path.display(), "a snapshot does not fit its name");
                }
                Err(SnapshotError::Damaged { offset, reason, .. }) => {
                    tracing::warn!(path = %path.display(), offset, reason, "a snapshot is damaged");
                }
                Err(SnapshotError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), "somebody has removed a snapshot");
                    self.directory.forget(path);
                    paths.pop();
                }
                Err(error) => return Err(error),
            }
        }
        intact.sort_by_key(|file| file.header.position);
        Ok(Listing { intact, paths })
    }

    /// A group's newest snapshot file, as `list` gives it.
    ///
    /// # Errors
    /// As `list`.
    pub fn latest(&self, group: GroupId) -> Result<Option<SnapshotFile>, SnapshotError> {
        Ok(self.list(group)?.pop())
    }

    /// All groups that have a snapshot file, in order.
    pub fn groups(&self) -> Vec<GroupId> {
        self.directory.groups()
    }

    /// Removes all of a group's files but the newest intact one, damaged ones included, and says
    /// how many. The rows of the newest are read and verified first; nothing is removed if none is
    /// intact. Files that come meanwhile stay.
    ///
    /// # Errors
    /// As `list` and [`super::verify`].
    pub fn retain_latest(&self, group: GroupId) -> Result<usize, SnapshotError> {
        loop {
            let Listing { mut intact, mut paths } = self.listing(group)?;
            let Some(latest) = intact.pop() else { return Ok(0) };
            match reader::verify(&latest.path) {
                Ok(_) => {}
                // Another call found a newer one meanwhile.
                Err(SnapshotError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                    continue;
                }
                Err(error) => return Err(error),
            }
            paths.retain(|path| *path != latest.path);
            return self.remove(&paths);
        }
    }

    /// Removes all files of a group and says how many.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn remove_group(&self, group: GroupId) -> Result<usize, SnapshotError> {
        let broken = self.last_received.lock().remove(&group);
        let broken = broken.filter(|digest| !self.receiving.lock().contains(digest));
        if let Some(digest) = broken {
            let path = receiver::part_path(&self.directory, group, digest);
            durable::remove_if_present(&path).map_err(|source| self.io(&path, source))?;
        }
        self.remove(&self.directory.of(group))
    }

    fn remove(&self, paths: &[PathBuf]) -> Result<usize, SnapshotError> {
        let removing = self.directory.changes();
        for path in paths {
            durable::remove_if_present(path).map_err(|source| self.io(path, source))?;
            self.directory.forget(path);
        }
        drop(removing);
        if !paths.is_empty() {
            durable::sync_dir(self.dir()).map_err(|source| self.io(self.dir(), source))?;
        }
        Ok(paths.len())
    }

    #[expect(clippy::unused_self, reason = "reads as one word at its many uses")]
    fn io(&self, path: &Path, source: std::io::Error) -> SnapshotError {
        SnapshotError::Io { path: path.to_owned(), source }
    }
}

/// The final name of a snapshot.
pub(super) fn file_name(header: &SnapshotHeader) -> String {
    let prefix = group_prefix(header.group);
    match header.position {
        Some(at) => format!("{prefix}{:016x}-{:016x}.snap", at.term, at.index),
        None => format!("{prefix}none.snap"),
    }
}

pub(super) fn group_prefix(group: GroupId) -> String {
    format!("{:016x}-{:08x}-", group.shard, group.incarnation)
}

/// The group in a final name.
pub(super) fn group_of(path: &Path) -> Option<GroupId> {
    let name = path.file_name()?.to_str()?.strip_suffix(".snap")?;
    let mut parts = name.split('-');
    let shard = u64::from_str_radix(parts.next()?, 16).ok()?;
    let incarnation = u32::from_str_radix(parts.next()?, 16).ok()?;
    let group = GroupId { shard, incarnation };
    name.starts_with(&group_prefix(group)).then_some(group)
}

/// Moves a verified file to its final name, durably.
pub(super) fn take_over(
    directory: &Directory,
    file: &File,
    found: SnapshotFile,
) -> Result<SnapshotFile, SnapshotError> {
    let path = directory.path().join(file_name(&found.header));
    if let Err(source) = file.sync_all() {
        // It may have dropped pages that memory still shows: nobody goes on with this file.
        drop(durable::remove_if_present(&found.path));
        return Err(SnapshotError::Io { path: found.path, source });
    }
    let take_over = || {
        let _staying = directory.stays();
        fs::rename(&found.path, &path)?;
        directory.note(&path);
        durable::sync_dir(directory.path())
    };
    match take_over() {
        Ok(()) => Ok(SnapshotFile { path, ..found }),
        Err(source) => Err(SnapshotError::Io { path, source }),
    }
}
