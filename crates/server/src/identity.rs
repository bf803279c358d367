//! Who this node is, on disk, and the lock that keeps a second process out of its directory.
//!
//! The identity is one line of JSON and its checksum, replaced atomically: written beside, synced,
//! renamed, directory synced. A damaged one is an error, never a fresh start: a node that forgets
//! who it was could vote twice.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anchorhold_consensus::Identity;
use anchorhold_model::NodeId;
use sha2::{Digest, Sha256};

/// A locked data directory.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Held until the process ends or this is dropped.
    lock: File,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process has it.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// What it says about the node cannot be trusted.
    #[error(
        "{} is damaged: {reason}. Restore it, or empty the whole directory to let the node join as a new one",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The disk failed.
    #[error("{} cannot be used", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The failure.
        #[source]
        source: std::io::Error,
    },
}

impl Drop for DataDir {
    fn drop(&mut self) {
        // By name: a process that is being started right now holds a copy of the file for a moment, and
        // closing this one would not do.
        drop(self.lock.unlock());
    }
}

impl DataDir {
    /// Creates the directory if needed and locks it.
    ///
    /// # Errors
    /// [`DataDirError`] if another process holds it or the disk fails.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let io = |source| DataDirError::Io { path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(io)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join("LOCK"))
            .map_err(io)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), lock }),
            Err(fs::TryLockError::WouldBlock) => Err(DataDirError::InUse { path: path.to_owned() }),
            Err(fs::TryLockError::Error(source)) => Err(io(source)),
        }
    }

    /// Where the directory is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The node that the directory belongs to; `None` if it never belonged to a cluster.
    ///
    /// # Errors
    /// [`DataDirError::Damaged`] if the file is not what was written.
    pub fn identity(&self) -> Result<Option<Identity>, DataDirError> {
        self.read(IDENTITY_FILE)
    }

    /// Writes who this node is.
    ///
    /// # Errors
    /// [`DataDirError::Io`] if the disk fails; the old identity is then still there.
    pub fn set_identity(&self, identity: &Identity) -> Result<(), DataDirError> {
        self.write(IDENTITY_FILE, identity)
    }

    /// The directory's own random id, made at the first call from `fresh`. It survives a crash
    /// between asking for admission and being told the node id.
    ///
    /// # Errors
    /// [`DataDirError`] if it cannot be read or written.
    pub fn instance(&self, fresh: u128) -> Result<u128, DataDirError> {
        if let Some(instance) = self.read::<u128>(INSTANCE_FILE)? {
            return Ok(instance);
        }
        self.write(INSTANCE_FILE, &fresh)?;
        Ok(fresh)
    }

    /// Where the other nodes were last known to be. A hint only: one that cannot be read is none.
    pub fn peers(&self) -> Vec<(NodeId, String)> {
        self.read(PEERS_FILE)
            .unwrap_or_else(|error| {
                tracing::warn!(%error, "the addresses of the other nodes are forgotten");
                None
            })
            .unwrap_or_default()
    }

    /// Writes where the other nodes are.
    ///
    /// # Errors
    /// [`DataDirError::Io`] if the disk fails; the old addresses are then still there.
    pub fn set_peers(&self, peers: &[(NodeId, String)]) -> Result<(), DataDirError> {
        self.write(PEERS_FILE, &peers)
    }

    fn read<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>, DataDirError> {
        let path = self.path.join(name);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(DataDirError::Io { path, source }),
        };
        let damaged = |reason: &str| DataDirError::Damaged {
            path: self.path.join(name),
            reason: reason.to_owned(),
        };
        let (content, sum) =
            text.trim_end().rsplit_once('\n').ok_or_else(|| damaged("it is cut off"))?;
        if checksum(content) != sum {
            return Err(damaged("its checksum is wrong"));
        }
        let value = serde_json::from_str(content).map_err(|error| damaged(&error.to_string()))?;
        Ok(Some(value))
    }

    fn write<T: serde::Serialize>(&self, name: &str, value: &T) -> Result<(), DataDirError> {
        let path = self.path.join(name);
        let io = |source| DataDirError::Io { path: path.clone(), source };
        let content = serde_json::to_string(value).map_err(|error| io(error.into()))?;
        let beside = self.path.join(format!("{name}.new"));
        let mut file = File::create(&beside).map_err(io)?;
        file.write_all(format!("{content}\n{}\n", checksum(&content)).as_bytes()).map_err(io)?;
        file.sync_all().map_err(io)?;
        fs::rename(&beside, &path).map_err(io)?;
        File::open(&self.path).and_then(|directory| directory.sync_all()).map_err(io)
    }
}

const IDENTITY_FILE: &str = "identity";
const INSTANCE_FILE: &str = "instance";
const PEERS_FILE: &str = "peers";

fn checksum(content: &str) -> String {
    let digest: [u8; 32] = Sha256::digest(content.as_bytes()).into();
    crate::authorize::to_hex(&digest)
}

#[cfg(test)]
mod tests {
    use anchorhold_model::NodeId;

    use super::*;

    fn identity() -> Identity {
        Identity { cluster_id: u128::MAX - 7, cluster_epoch: 1, node_id: NodeId(3), instance: 9 }
    }

    #[test]
    fn an_identity_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        assert!(data.identity().unwrap().is_none());
        data.set_identity(&identity()).unwrap();
        drop(data);
        let data = DataDir::open(dir.path()).unwrap();
        assert_eq!(data.identity().unwrap(), Some(identity()));
    }

    #[test]
    fn an_instance_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        assert_eq!(data.instance(5).unwrap(), 5);
        assert_eq!(data.instance(6).unwrap(), 5);
    }

    #[test]
    fn a_second_process_is_kept_out() {
        let dir = tempfile::tempdir().unwrap();
        let _data = DataDir::open(dir.path()).unwrap();
        assert!(matches!(DataDir::open(dir.path()), Err(DataDirError::InUse { .. })));
    }

    #[test]
    fn a_damaged_identity_is_an_error_and_no_fresh_start() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        data.set_identity(&identity()).unwrap();
        let path = dir.path().join("identity");
        let whole = fs::read_to_string(&path).unwrap();
        for damaged in [whole.replace('3', "4"), whole[..whole.len() / 2].to_owned(), String::new()]
        {
            fs::write(&path, damaged).unwrap();
            assert!(matches!(data.identity(), Err(DataDirError::Damaged { .. })));
        }
    }
}
