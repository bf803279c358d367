//! The snapshot files of a node: one directory, all groups.
//!
//! | name | content |
//! |---|---|
//! | `<shard>-<incarnation>-<term>-<index>.snap` | a complete snapshot; 16, 8, 16 and 16 hex digits; `none` stands for term and index before the first entry |
//! | `<such a name>.tmp` | being written |
//! | `<digest>.part` | being received |
//! | `<shard>-<incarnation>.card` | what the node knows of its replica, see `card` |

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use parking_lot::RwLock;

use super::receiver::Receiving;
use super::{
    SnapshotDigest, SnapshotError, SnapshotFile, SnapshotHeader, SnapshotReceiver, SnapshotWriter,
    reader,
};
use crate::durable;
use crate::log_store::GroupId;

/// The snapshot files of a node.
#[derive(Debug)]
pub struct SnapshotStore {
    dir: PathBuf,
    receiving: Receiving,
    /// Nothing is removed while somebody looks for files: a directory is not read at one moment, and
    /// what was there at its beginning must be there until its end.
    removal: RwLock<()>,
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
        let store = Self {
            dir: dir.to_owned(),
            receiving: Receiving::default(),
            removal: RwLock::default(),
        };
        fs::create_dir_all(dir).map_err(|source| store.io(dir, source))?;
        for path in store.paths()? {
            if path.extension().is_some_and(|extension| extension == "tmp" || extension == "part") {
                durable::remove_if_present(&path).map_err(|source| store.io(&path, source))?;
            }
        }
        Ok(store)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Begins a new snapshot.
    ///
    /// # Errors
    /// As [`SnapshotWriter::create`].
    pub fn create(&self, header: SnapshotHeader) -> Result<SnapshotWriter, SnapshotError> {
        SnapshotWriter::create(&self.dir, header)
    }

    /// Begins to receive a snapshot of `bytes` bytes, or goes on where an earlier receiver of the
    /// same one stopped.
    ///
    /// # Errors
    /// [`SnapshotError::Busy`] while another receiver of the same snapshot exists;
    /// [`SnapshotError::Io`].
    pub fn receive(
        &self,
        digest: SnapshotDigest,
        bytes: u64,
    ) -> Result<SnapshotReceiver, SnapshotError> {
        SnapshotReceiver::open(&self.dir, digest, bytes, &self.receiving)
    }

    /// Verifies a complete file that lies on the same file system and moves it here.
    ///
    /// # Errors
    /// As [`super::verify`]; the file stays where it was then.
    pub fn adopt(&self, path: &Path) -> Result<SnapshotFile, SnapshotError> {
        let found = reader::verify(path)?;
        let file = File::open(path).map_err(|source| self.io(path, source))?;
        take_over(&self.dir, &file, found)
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
        let _looking = self.removal.read();
        let mut paths = self.paths()?;
        paths.retain(|path| group_of(path) == Some(group));
        let mut intact = Vec::new();
        for path in &paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            match reader::describe(path) {
                Ok(file) if file_name(&file.header) == name => intact.push(file),
                Ok(_) => {
                    tracing::warn!(path = %path.display(), "a snapshot does not fit its name");
                }
                Err(SnapshotError::Damaged { offset, reason, .. }) => {
                    tracing::warn!(path = %path.display(), offset, reason, "a snapshot is damaged");
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
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn groups(&self) -> Result<Vec<GroupId>, SnapshotError> {
        let mut groups: Vec<GroupId> =
            self.paths()?.iter().filter_map(|path| group_of(path)).collect();
        groups.sort_unstable();
        groups.dedup();
        Ok(groups)
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
        let mut paths = self.paths()?;
        paths.retain(|path| group_of(path) == Some(group));
        self.remove(&paths)
    }

    fn remove(&self, paths: &[PathBuf]) -> Result<usize, SnapshotError> {
        let removing = self.removal.write();
        for path in paths {
            durable::remove_if_present(path).map_err(|source| self.io(path, source))?;
        }
        drop(removing);
        if !paths.is_empty() {
            durable::sync_dir(&self.dir).map_err(|source| self.io(&self.dir, source))?;
        }
        Ok(paths.len())
    }

    /// All files, in the order of their names.
    fn paths(&self) -> Result<Vec<PathBuf>, SnapshotError> {
        let list = || {
            let entries = fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.path()));
            let mut paths = entries.collect::<std::io::Result<Vec<_>>>()?;
            paths.sort_unstable();
            Ok(paths)
        };
        list().map_err(|source| self.io(&self.dir, source))
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
fn group_of(path: &Path) -> Option<GroupId> {
    let name = path.file_name()?.to_str()?.strip_suffix(".snap")?;
    let mut parts = name.split('-');
    let shard = u64::from_str_radix(parts.next()?, 16).ok()?;
    let incarnation = u32::from_str_radix(parts.next()?, 16).ok()?;
    let group = GroupId { shard, incarnation };
    name.starts_with(&group_prefix(group)).then_some(group)
}

/// Moves a verified file to its final name, durably.
pub(super) fn take_over(
    dir: &Path,
    file: &File,
    found: SnapshotFile,
) -> Result<SnapshotFile, SnapshotError> {
    let path = dir.join(file_name(&found.header));
    let take_over = || {
        file.sync_all()?;
        fs::rename(&found.path, &path)?;
        durable::sync_dir(dir)
    };
    match take_over() {
        Ok(()) => Ok(SnapshotFile { path, ..found }),
        Err(source) => Err(SnapshotError::Io { path, source }),
    }
}
