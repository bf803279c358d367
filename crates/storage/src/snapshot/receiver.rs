//! Takes a snapshot file from another node, piece by piece.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::directory::Directory;
use super::{SnapshotDigest, SnapshotError, SnapshotFile, reader, store};
use crate::durable;
use crate::log_store::GroupId;

/// Snapshots that are being received.
pub(super) type Receiving = Arc<Mutex<BTreeSet<SnapshotDigest>>>;

/// Where a snapshot lies while it arrives.
pub(super) fn part_path(directory: &Directory, group: GroupId, digest: SnapshotDigest) -> PathBuf {
    directory.path().join(format!("{}{digest}.part", store::group_prefix(group)))
}

/// A snapshot that arrives in pieces, each of which directly follows what is there or overlaps it.
///
/// Dropped before [`SnapshotReceiver::finish`], it leaves what arrived: a new receiver of the same
/// snapshot goes on there. Opening the [`super::SnapshotStore`] again removes it.
#[derive(Debug)]
pub struct SnapshotReceiver {
    directory: Arc<Directory>,
    path: PathBuf,
    file: File,
    digest: SnapshotDigest,
    /// Announced length.
    bytes: u64,
    written: u64,
    receiving: Receiving,
}

impl SnapshotReceiver {
    pub(super) fn open(
        directory: &Arc<Directory>,
        group: GroupId,
        digest: SnapshotDigest,
        bytes: u64,
        receiving: &Receiving,
    ) -> Result<Self, SnapshotError> {
        if !receiving.lock().insert(digest) {
            return Err(SnapshotError::Busy { digest });
        }
        let path = part_path(directory, group, digest);
        let open = || {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).open(&path)?;
            let mut written = file.metadata()?.len();
            if bytes < written {
                file.set_len(0)?;
                written = 0;
            }
            Ok((file, written))
        };
        match open() {
            Ok((file, written)) => Ok(Self {
                directory: Arc::clone(directory),
                path,
                file,
                digest,
                bytes,
                written,
                receiving: Arc::clone(receiving),
            }),
            Err(source) => {
                receiving.lock().remove(&digest);
                Err(SnapshotError::Io { path, source })
            }
        }
    }

    /// Bytes that are there: where the sender goes on.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Whether all announced bytes are there.
    pub fn is_complete(&self) -> bool {
        self.written == self.bytes
    }

    /// Stores bytes of the file that begin at `offset`. What is there already is skipped.
    ///
    /// # Errors
    /// [`SnapshotError::Gap`] if they begin behind what is there; [`SnapshotError::NotAnnounced`]
    /// if they go beyond the announced length; [`SnapshotError::Io`].
    pub fn write_at(&mut self, offset: u64, piece: &[u8]) -> Result<(), SnapshotError> {
        if self.written < offset {
            return Err(SnapshotError::Gap { offset, expected: self.written });
        }
        let end = offset.saturating_add(piece.len() as u64);
        if self.bytes < end {
            let reason = format!("it is longer than {} bytes", self.bytes);
            return Err(SnapshotError::NotAnnounced { reason });
        }
        let known = usize::try_from(self.written - offset).unwrap_or(usize::MAX);
        let Some(fresh) = piece.get(known..) else { return Ok(()) };
        self.file
            .write_all_at(fresh, self.written)
            .map_err(|source| SnapshotError::Io { path: self.path.clone(), source })?;
        self.written += fresh.len() as u64;
        Ok(())
    }

    /// Verifies the whole file and takes it over under its final name; durable when this returns.
    ///
    /// # Errors
    /// [`SnapshotError::Gap`] if bytes are missing: what arrived stays. [`SnapshotError::Damaged`],
    /// [`SnapshotError::UnknownFormat`] or [`SnapshotError::NotAnnounced`] if it is not what it
    /// should be: it is removed, begin again. [`SnapshotError::Io`]; if it cannot be synced it is
    /// removed too.
    pub fn finish(self) -> Result<SnapshotFile, SnapshotError> {
        if !self.is_complete() {
            return Err(SnapshotError::Gap { offset: self.bytes, expected: self.written });
        }
        let announced = reader::verify(&self.path).and_then(|found| {
            if found.digest == self.digest {
                Ok(found)
            } else {
                let reason = format!("it is {}, not {}", found.digest, self.digest);
                Err(SnapshotError::NotAnnounced { reason })
            }
        });
        match announced {
            Ok(found) => store::take_over(&self.directory, &self.file, found),
            Err(error) => {
                self.abandon()?;
                Err(error)
            }
        }
    }

    /// Gives up and removes what arrived.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn abandon(self) -> Result<(), SnapshotError> {
        durable::remove_if_present(&self.path)
            .map_err(|source| SnapshotError::Io { path: self.path.clone(), source })
    }
}

impl Drop for SnapshotReceiver {
    fn drop(&mut self) {
        self.receiving.lock().remove(&self.digest);
    }
}
