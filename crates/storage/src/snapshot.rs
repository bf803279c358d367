//! Snapshot files: checksummed copies of one group's rows at an applied index.
//!
//! [`SnapshotWriter`] writes one, [`SnapshotReader`] reads one, [`verify`] reads all of one,
//! [`SnapshotReceiver`] takes one from another node, and [`SnapshotStore`] keeps those of a node.
//! A file under its final name is complete and durable: it was written under another name, synced,
//! renamed, and its directory synced. What any byte of it lost, gained or changed is an error,
//! never other rows.
//!
//! # The file, format 1
//!
//! All numbers are little-endian.
//!
//! | bytes | field |
//! |---|---|
//! | 0–7 | `AHSNAP\0\0` |
//! | 8–11 | format of this file, `u32` |
//! | 12–15 | length *m* of the caller's metadata, `u32` |
//! | 16–19 | format of the rows, `u32`: the caller's |
//! | 20–27 | shard, `u64` |
//! | 28–31 | incarnation, `u32` |
//! | 32 | 1 if there is a position, else 0 |
//! | 33–40 | term of the position, `u64` |
//! | 41–48 | index of the position, `u64` |
//! | 49–48+*m* | metadata |
//! | next 4 | CRC32C of all bytes before |
//!
//! Then blocks follow, the last of which is the footer; nothing follows the footer.
//!
//! | bytes of a block | field |
//! |---|---|
//! | 0 | 1: rows, 2: footer |
//! | 1–4 | length *n* of the payload, `u32` |
//! | 5–4+*n* | payload |
//! | next 4 | CRC32C of this block's bytes before, continued from the checksum in front of the block |
//!
//! Rows are each: length of the key `u32`, length of the value `u32`, key, value. The footer:
//!
//! | bytes of the footer's payload | field |
//! |---|---|
//! | 0–7 | number of rows, `u64` |
//! | 8–15 | payload bytes of all row blocks, `u64` |
//! | 16–47 | digest: SHA-256 of the bytes before the first block and the payloads of all row blocks |
//!
//! Not here: what rows and metadata mean, when to take a snapshot, how it travels (`consensus`).

mod card;
mod directory;
mod format;
mod reader;
mod receiver;
mod store;
mod writer;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use crate::log_store::{GroupId, LogPosition};

pub use reader::{SnapshotReader, SnapshotRow, SnapshotSource, verify};
pub use receiver::SnapshotReceiver;
pub use store::SnapshotStore;
pub use writer::SnapshotWriter;

/// What a snapshot is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// Format of the rows and of the metadata. The caller refuses what it does not know.
    pub format: u32,
    /// The group.
    pub group: GroupId,
    /// The last log position whose effect is in the rows; `None` before the first entry.
    pub position: Option<LogPosition>,
    /// Opaque here: membership and the like.
    pub meta: Vec<u8>,
}

/// SHA-256 of a snapshot's header and rows. Equal digests mean equal snapshots.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotDigest(pub [u8; 32]);

impl std::fmt::Display for SnapshotDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for SnapshotDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SnapshotDigest({self})")
    }
}

/// A complete snapshot file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it is of.
    pub header: SnapshotHeader,
    /// Number of rows.
    pub rows: u64,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// What is in it.
    pub digest: SnapshotDigest,
}

/// Why a snapshot could not be written, read or received.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The disk failed.
    #[error("snapshot file {path} could not be used")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what was written.
    #[error("snapshot file {path} is damaged at byte {offset}: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the part that does not fit begins.
        offset: u64,
        /// What does not fit.
        reason: &'static str,
    },
    /// Written by a version of this program that knows more.
    #[error("snapshot file {path} has format {found}, this program knows {known}")]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// The format found.
        found: u32,
        /// The newest format that can be read.
        known: u32,
    },
    /// A row or the metadata is longer than a block may be. Only a bug can cause this.
    #[error("{bytes} bytes do not fit into one part of a snapshot")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Bytes arrived that do not follow those that are there. Go on at `expected`.
    #[error("bytes for offset {offset} arrived while {expected} was expected")]
    Gap {
        /// The offset given.
        offset: u64,
        /// The number of bytes that are there.
        expected: u64,
    },
    /// What arrived is not what was announced.
    #[error("the received snapshot is not the announced one: {reason}")]
    NotAnnounced {
        /// The difference.
        reason: String,
    },
    /// Another receiver works on the same snapshot.
    #[error("snapshot {digest} is being received already")]
    Busy {
        /// The snapshot.
        digest: SnapshotDigest,
    },
}

impl SnapshotError {
    /// Whether the file is of no use, as far as its disk lets it be read. An unreadable sector is no
    /// better than a rotten one.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Io { source, .. } => {
                source.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
            }
            Self::UnknownFormat { .. }
            | Self::TooLong { .. }
            | Self::Gap { .. }
            | Self::NotAnnounced { .. }
            | Self::Busy { .. } => false,
        }
    }
}
