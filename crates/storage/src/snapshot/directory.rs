//! Which snapshot files there are, by group: read from the disk once, and kept in step with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::store::group_of;
use crate::log_store::GroupId;

/// A directory of snapshot files.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// A node has thousands of groups: none of them reads the names of all others' files.
    files: RwLock<BTreeMap<GroupId, BTreeSet<PathBuf>>>,
    /// Nothing is removed while somebody looks at files or gives one its name.
    removal: RwLock<()>,
}

impl Directory {
    /// Reads which files there are, unfinished ones included; those of groups are kept.
    pub(super) fn read(path: &Path) -> io::Result<(Self, Vec<PathBuf>)> {
        let entries = fs::read_dir(path)?.map(|entry| Ok(entry?.path()));
        let all = entries.collect::<io::Result<Vec<_>>>()?;
        let (files, removal) = (RwLock::default(), RwLock::default());
        let this = Self { path: path.to_owned(), files, removal };
        all.iter().for_each(|path| this.note(path));
        Ok((this, all))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// As long as this lives, no file is removed.
    pub(super) fn stays(&self) -> RwLockReadGuard<'_, ()> {
        self.removal.read()
    }

    /// For whoever removes files.
    pub(super) fn changes(&self) -> RwLockWriteGuard<'_, ()> {
        self.removal.write()
    }

    /// Notes that a file has its final name.
    pub(super) fn note(&self, path: &Path) {
        if let Some(group) = group_of(path) {
            self.files.write().entry(group).or_default().insert(path.to_owned());
        }
    }

    /// Notes that a file is gone.
    pub(super) fn forget(&self, path: &Path) {
        let Some(group) = group_of(path) else { return };
        let mut files = self.files.write();
        if let Some(of_group) = files.get_mut(&group) {
            of_group.remove(path);
            if of_group.is_empty() {
                files.remove(&group);
            }
        }
    }

    /// A group's files, in the order of their names.
    pub(super) fn of(&self, group: GroupId) -> Vec<PathBuf> {
        self.files
            .read()
            .get(&group)
            .map(|files| files.iter().cloned().collect())
            .unwrap_or_default()
    }

    /// All groups that have a file, in order.
    pub(super) fn groups(&self) -> Vec<GroupId> {
        self.files.read().keys().copied().collect()
    }
}
