//! Looks at a data directory without its node and without changing it.
//!
//! The log is opened on an overlay that keeps every write in memory, so that what is said here is
//! what a start would find. The state engine cannot be opened without writing: a copy is. A running
//! node is never disturbed: its directory is refused.
//!
//! Not here: showing it (`cli`), repairing anything (a node's start does).

use std::fs::{self, File, TryLockError};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anchorhold_consensus::inspect::{self, EntrySummary, StateSummary};
use anchorhold_storage::log_store::{GroupId, GroupLog, LogEntry, LogStore, ReadError};
use anchorhold_storage::overlay_fs::OverlayFs;
use anchorhold_storage::snapshot::{self, SnapshotError};
use anchorhold_storage::{
    LogConfig, LostGroup, OpenError, OpenReport, Opened, RenewableState, SegmentedLog, SledConfig,
};

use crate::seams_real::with_causes;

/// Something that is not as it was written, in plain words.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Damage {
    /// What is wrong, and where.
    pub what: String,
    /// What to do about it.
    pub next: String,
}

/// Why a directory was not looked at.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// It is no node's.
    #[error("{} is no node's data directory: there is no {missing} in it", dir.display())]
    NoDataDir {
        /// The directory.
        dir: PathBuf,
        /// What is missing.
        missing: &'static str,
    },
    /// Its node runs.
    #[error("a node runs on {}: stop it, or inspect a copy of the directory", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// It cannot be read, or the copy cannot be made.
    #[error("{} cannot be used", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The failure.
        #[source]
        source: io::Error,
    },
}

/// A data directory whose node does not run. The node cannot start while this exists.
#[derive(Debug)]
pub struct Inspection {
    dir: PathBuf,
    _lock: File,
}

/// A log that opens.
pub struct InspectedLog {
    log: SegmentedLog,
}

/// One group in a log.
#[derive(Clone, Debug)]
pub struct GroupReport {
    /// Which.
    pub group: GroupId,
    /// What the log remembers of it.
    pub state: GroupLog,
    /// Index of its first entry; `None` if it has none.
    pub first: Option<u64>,
    /// Its entries.
    pub entries: u64,
    /// Bytes of their contents.
    pub bytes: u64,
}

/// One snapshot file.
#[derive(Clone, Debug)]
pub struct SnapshotReport {
    /// Its name.
    pub name: String,
    /// What it holds, or what is wrong with it.
    pub found: Result<SnapshotContents, Damage>,
}

/// What a snapshot file holds.
#[derive(Clone, Debug)]
pub struct SnapshotContents {
    /// The group.
    pub group: GroupId,
    /// Index up to which it has everything; `None` before the first entry.
    pub index: Option<u64>,
    /// Rows.
    pub rows: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Anchors; `None` for the catalog.
    pub anchors: Option<u64>,
    /// SHA-256 over header and rows: equal on every replica at the same index.
    pub digest: String,
}

/// What to do about a damaged log.
const LOG_NEXT: &str = "No crash and no bad disk does that: these may be files of another node, so \
    the node will not start with them. Keep a copy. If the other nodes are well, empty the whole data directory and start the node \
    with `join`: it comes back as a new one and gets everything from them. If they are not, do not \
    delete anything.";
/// What to do about a damaged state.
const STATE_NEXT: &str = "Nothing: the state is never the only copy. The node's next start \
    discards it by itself and rebuilds it from snapshots and log.";
/// What to do about a damaged snapshot file.
const SNAPSHOT_NEXT: &str = "Start the node: as long as its state is intact (`debug state verify`) \
    it goes on, and its next snapshot replaces this one. If the state is damaged too, empty the data \
    directory and start the node with `join`.";

/// Entries that one read gives, at most.
const READ_BYTES_MAX: usize = 4 << 20;

impl Inspection {
    /// Takes a directory for looking at it.
    ///
    /// # Errors
    /// [`InspectError`].
    pub fn open(dir: &Path) -> Result<Self, InspectError> {
        let dir = dir.to_owned();
        let lock_path = dir.join("LOCK");
        let lock = match File::open(&lock_path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(InspectError::NoDataDir { dir, missing: "LOCK" });
            }
            Err(source) => return Err(InspectError::Io { path: lock_path, source }),
        };
        match lock.try_lock_shared() {
            Ok(()) => Ok(Self { dir, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(InspectError::InUse { dir }),
            Err(TryLockError::Error(source)) => Err(InspectError::Io { path: lock_path, source }),
        }
    }

    /// Reads and verifies the whole log, every byte that counts.
    ///
    /// # Errors
    /// [`InspectError::NoDataDir`] if there is none.
    pub fn log(&self) -> Result<Result<InspectedLog, Damage>, InspectError> {
        let dir = self.dir.join("log");
        if !dir.join("identity").exists() && !dir.is_dir() {
            return Err(InspectError::NoDataDir { dir: self.dir.clone(), missing: "log" });
        }
        let has_replicas = fs::read_dir(self.dir.join("snapshots")).is_ok_and(|mut entries| {
            entries.any(|one| one.is_ok_and(|file| is_snapshot(&file.path())))
        });
        let fs = Arc::new(OverlayFs::new());
        let opened = SegmentedLog::open_known(fs, &dir, LogConfig::default(), has_replicas);
        Ok(match opened {
            Ok(log) if log.report().damages.is_empty() => Ok(InspectedLog { log }),
            Ok(log) => Err(contained_damage(log.report())),
            Err(error) => Err(log_damage(&error)),
        })
    }

    /// Reads and verifies every snapshot file, in the order of their names.
    ///
    /// # Errors
    /// [`InspectError::Io`] if the directory cannot be listed.
    pub fn snapshots(&self) -> Result<Vec<SnapshotReport>, InspectError> {
        let dir = self.dir.join("snapshots");
        let failed = |source| InspectError::Io { path: dir.clone(), source };
        let entries = fs::read_dir(&dir).map_err(failed)?;
        let mut paths = entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<Vec<_>>>()
            .map_err(failed)?;
        paths.retain(|path| is_snapshot(path));
        paths.sort_unstable();
        Ok(paths.iter().map(|path| report_snapshot(path)).collect())
    }

    /// Copies the state to `scratch`, an empty directory, for [`verify_state_copy`].
    ///
    /// # Errors
    /// [`InspectError`].
    pub fn copy_state(&self, scratch: &Path) -> Result<(), InspectError> {
        let dir = self.dir.join("state");
        if !dir.is_dir() {
            return Err(InspectError::NoDataDir { dir: self.dir.clone(), missing: "state" });
        }
        copy(&dir, scratch).map_err(|source| InspectError::Io { path: dir, source })
    }
}

/// Opens a copy of a state and reads all of it. Changes the copy. sled may panic over what it finds,
/// which ends a released process: run it in one of its own.
///
/// # Errors
/// [`InspectError::Io`] if the copy cannot be used at all.
pub fn verify_state_copy(copy: &Path) -> Result<Result<StateSummary, Damage>, InspectError> {
    let config = SledConfig::default();
    let damage = |what: String| Damage { what, next: STATE_NEXT.to_owned() };
    let state = match RenewableState::open(copy, config) {
        Ok((_, Opened::Discarded { reason })) => return Ok(Err(damage(reason))),
        Ok((state, Opened::New | Opened::Intact { .. })) => state,
        Err(anchorhold_storage::StateError::Io(source)) => {
            return Err(InspectError::Io { path: copy.to_owned(), source });
        }
        Err(error) => return Ok(Err(damage(error.to_string()))),
    };
    Ok(inspect::read_state(&state).map_err(|error| damage(error.to_string())))
}

/// What is said of a state whose check ended the process that made it.
pub fn state_check_ended(how: &str) -> Damage {
    let what = format!("the state engine does not survive opening it ({how})");
    Damage { what, next: STATE_NEXT.to_owned() }
}

impl InspectedLog {
    /// The groups, in order.
    ///
    /// # Errors
    /// [`Damage`] if an entry cannot be read back.
    pub fn groups(&self) -> Result<Vec<GroupReport>, Damage> {
        self.log.groups().into_iter().map(|group| self.group(group)).collect()
    }

    fn group(&self, group: GroupId) -> Result<GroupReport, Damage> {
        let state = self.log.group(group).unwrap_or_default();
        let (mut first, mut entries, mut bytes) = (None, 0, 0);
        self.read(group, 0..u64::MAX, &mut |entry, _| {
            first.get_or_insert(entry.position.index);
            entries += 1;
            bytes += entry.content.len() as u64;
        })?;
        Ok(GroupReport { group, state, first, entries, bytes })
    }

    /// Bytes and number of the segment files.
    pub fn size(&self) -> (u64, u64) {
        let stats = self.log.stats();
        (stats.disk_bytes, stats.segments)
    }

    /// Visits a group's entries with these indexes, as many as there are.
    ///
    /// # Errors
    /// [`Damage`] if one cannot be read back.
    pub fn read(
        &self,
        group: GroupId,
        indexes: Range<u64>,
        visit: &mut dyn FnMut(&LogEntry, Result<EntrySummary, String>),
    ) -> Result<(), Damage> {
        let state = self.log.group(group).unwrap_or_default();
        let Some(last) = state.last else { return Ok(()) };
        let purged_end = state.purged.map_or(0, |purged| purged.index + 1);
        let mut start = indexes.start.max(purged_end);
        let end = indexes.end.min(last.index + 1);
        while start < end {
            match self.log.read(group, start..end, READ_BYTES_MAX) {
                Ok(read) if read.is_empty() => break,
                Ok(read) => {
                    for entry in &read {
                        visit(entry, inspect::read_entry(group, entry));
                        start = entry.position.index + 1;
                    }
                }
                // A log that began at a later index, as after a snapshot.
                Err(ReadError::Unknown { .. }) => start += 1,
                Err(error) => {
                    return Err(Damage { what: with_causes(&error), next: LOG_NEXT.to_owned() });
                }
            }
        }
        Ok(())
    }
}

fn is_snapshot(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "snap")
}

fn log_damage(error: &OpenError) -> Damage {
    let next = match error {
        OpenError::Version { .. } => "It was written by a later version: use that one.",
        OpenError::Io { .. } => "The disk or its permissions are at fault: look at the kernel log.",
        OpenError::Locked { .. } => "Another process uses it: wait until it ends.",
        OpenError::Damaged { .. } | OpenError::Identity => LOG_NEXT,
    };
    Damage { what: with_causes(error), next: next.to_owned() }
}

/// Damage that a start survives: where it is, and whom it costs what.
fn contained_damage(report: &OpenReport) -> Damage {
    let places = report.damages.iter().map(|damage| match damage.segment {
        0 => damage.reason.to_owned(),
        segment => {
            format!("segment {segment} is damaged at offset {}: {}", damage.offset, damage.reason)
        }
    });
    let costs = report.lost.iter().map(|LostGroup { group, from, lost }| {
        let vote = if lost.hard_state_known { "" } else { ", and may have lost its vote" };
        format!("the replica of shard {} has lost its entries from {from} on{vote}", group.shard)
    });
    let unknown = report.unknown_groups_may_be_lost.then(|| {
        "replicas of which the log knows nothing may have lost everything, their votes too"
            .to_owned()
    });
    let what: Vec<String> = places.chain(costs).chain(unknown).collect();
    let next = if report.lost.is_empty() && !report.unknown_groups_may_be_lost {
        "Nothing that is still needed is lost: the node starts. Check its disk."
    } else {
        "The node starts. A replica that lost entries gets them from its peers; one that may have \
         lost its vote is replaced by the cluster, if most of the others live. Check its disk."
    };
    Damage { what: what.join("; "), next: next.to_owned() }
}

fn report_snapshot(path: &Path) -> SnapshotReport {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let damage = |what: String, next: &str| Damage { what, next: next.to_owned() };
    let found = match snapshot::verify(path) {
        Ok(file) => match inspect::snapshot_anchors(&file.header) {
            Ok(anchors) => Ok(SnapshotContents {
                group: file.header.group,
                index: file.header.position.map(|position| position.index),
                rows: file.rows,
                bytes: file.bytes,
                anchors,
                digest: file.digest.to_string(),
            }),
            Err(reason) => Err(damage(reason, SNAPSHOT_NEXT)),
        },
        Err(error @ SnapshotError::UnknownFormat { .. }) => {
            Err(damage(with_causes(&error), "It was written by a later version: use that one."))
        }
        Err(error) => Err(damage(with_causes(&error), SNAPSHOT_NEXT)),
    };
    SnapshotReport { name, found }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.metadata()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
