//! What is known of a running cluster, in a file that several processes share.
//!
//! `cluster.json` lists the nodes, their ports and their processes, and what is wanted of each.
//! The launcher writes it; `anchorhold zone kill|start` in another terminal changes what is wanted
//! and the launcher follows. Every change is made under a lock file and replaces the file whole.

use std::fs::{File, OpenOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::process::ProcessIdentity;

/// A cluster of processes on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterState {
    /// Version of this file's format.
    pub format: u32,
    /// The topology's name, which is the cluster's.
    pub topology: String,
    /// The process that started the nodes and starts them again.
    pub owner: Option<ProcessIdentity>,
    /// File with the admin key.
    pub admin_key_file: PathBuf,
    /// File with the API key of the demo's account, once there is one.
    pub api_key_file: Option<PathBuf>,
    /// In the order of [`crate::Topology::nodes`].
    pub nodes: Vec<NodeState>,
}

/// One node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    /// Zone and counter: `a1`.
    pub name: String,
    /// Its region.
    pub region: String,
    /// Its zone.
    pub zone: String,
    /// Where clients reach it.
    pub client_address: SocketAddr,
    /// Where other nodes reach it.
    pub peer_address: SocketAddr,
    /// Where `/metrics`, `/livez` and `/readyz` are.
    pub http_address: SocketAddr,
    /// Its data.
    pub data_dir: PathBuf,
    /// Its log.
    pub log_file: PathBuf,
    /// What it should be doing.
    pub wanted: Wanted,
    /// Its process, the last one that was started; forgotten when it is killed or has ended.
    pub process: Option<ProcessIdentity>,
}

/// What a node should be doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wanted {
    /// It runs, or is about to be started.
    Running,
    /// It was stopped on purpose, or died, and stays down.
    Stopped,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be read, locked or written.
    #[error("cannot use the cluster file {path}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not a cluster file.
    #[error("{path} is not a cluster file; start the cluster with a fresh --data-dir")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// Another version wrote it.
    #[error(
        "{path} has format {found}, this version reads {FORMAT}; use the version that wrote it"
    )]
    Format {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The cluster has no such zone.
    #[error("there is no zone {zone:?}; this cluster has {known}")]
    UnknownZone {
        /// What was asked for.
        zone: String,
        /// The zones there are.
        known: String,
    },
    /// The cluster has no such node.
    #[error("there is no node {node:?}; this cluster has {known}")]
    UnknownNode {
        /// What was asked for.
        node: String,
        /// The nodes there are.
        known: String,
    },
}

/// The file in a cluster's data directory.
#[derive(Clone, Debug)]
pub struct StateFile {
    path: PathBuf,
}

/// Version of the file's format that this code reads and writes.
pub(crate) const FORMAT: u32 = 1;

impl StateFile {
    /// The file of the cluster that keeps its data in `data_dir`.
    pub fn of(data_dir: &Path) -> Self {
        Self { path: data_dir.join("cluster.json") }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The state; `None` if there is no file.
    ///
    /// # Errors
    /// [`StateError`] if the file is there and cannot be used.
    pub fn read(&self) -> Result<Option<ClusterState>, StateError> {
        match std::fs::read(&self.path) {
            Ok(bytes) => self.parse(&bytes).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.io(source)),
        }
    }

    /// Changes the state while no other process does. Nothing is written if `change` fails.
    ///
    /// # Errors
    /// [`StateError`] if the file is missing or cannot be used, or what `change` returns.
    pub fn update<T>(
        &self,
        change: impl FnOnce(&mut ClusterState) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        let lock = self.lock()?;
        let bytes = std::fs::read(&self.path).map_err(|source| self.io(source))?;
        let before = self.parse(&bytes)?;
        let mut state = before.clone();
        let result = change(&mut state)?;
        if state != before {
            self.write(&state)?;
        }
        drop(lock);
        Ok(result)
    }

    /// Writes the state of a cluster that is being started.
    pub(crate) fn create(&self, state: &ClusterState) -> Result<(), StateError> {
        let lock = self.lock()?;
        self.write(state)?;
        drop(lock);
        Ok(())
    }

    fn write(&self, state: &ClusterState) -> Result<(), StateError> {
        let text = serde_json::to_vec_pretty(state)
            .map_err(|source| StateError::Malformed { path: self.path.clone(), source })?;
        crate::files::replace(&self.path, &text).map_err(|source| self.io(source))
    }

    fn parse(&self, bytes: &[u8]) -> Result<ClusterState, StateError> {
        #[derive(Deserialize)]
        struct Header {
            format: u32,
        }
        let malformed = |source| StateError::Malformed { path: self.path.clone(), source };
        let header: Header = serde_json::from_slice(bytes).map_err(malformed)?;
        if header.format != FORMAT {
            return Err(StateError::Format { path: self.path.clone(), found: header.format });
        }
        serde_json::from_slice(bytes).map_err(malformed)
    }

    /// Held until dropped. The lock is a file of its own because the state file is replaced.
    fn lock(&self) -> Result<File, StateError> {
        let path = self.path.with_extension("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let file = file.map_err(|source| self.io(source))?;
        file.lock().map_err(|source| self.io(source))?;
        Ok(file)
    }

    fn io(&self, source: std::io::Error) -> StateError {
        StateError::Io { path: self.path.clone(), source }
    }
}

impl ClusterState {
    /// Client addresses of all nodes, as the client library takes them.
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("http://{}", node.client_address)).collect()
    }

    /// Whether the process that starts and stops the nodes still runs.
    pub fn is_owned(&self) -> bool {
        self.owner.as_ref().is_some_and(ProcessIdentity::is_alive)
    }

    /// The nodes of a zone, at least one.
    ///
    /// # Errors
    /// [`StateError::UnknownZone`].
    pub fn zone_mut(&mut self, zone: &str) -> Result<Vec<&mut NodeState>, StateError> {
        if !self.nodes.iter().any(|node| node.zone == zone) {
            let known = listed(self.nodes.iter().map(|node| node.zone.as_str()));
            return Err(StateError::UnknownZone { zone: zone.to_owned(), known });
        }
        Ok(self.nodes.iter_mut().filter(|node| node.zone == zone).collect())
    }

    /// A node by name.
    ///
    /// # Errors
    /// [`StateError::UnknownNode`].
    pub fn node_mut(&mut self, name: &str) -> Result<&mut NodeState, StateError> {
        let known = listed(self.nodes.iter().map(|node| node.name.as_str()));
        self.nodes
            .iter_mut()
            .find(|node| node.name == name)
            .ok_or(StateError::UnknownNode { node: name.to_owned(), known })
    }
}

impl NodeState {
    /// Whether its process runs.
    pub fn is_alive(&self) -> bool {
        self.process.as_ref().is_some_and(ProcessIdentity::is_alive)
    }

    /// Wants it down and kills its process with SIGKILL: no shutdown, as in a power cut.
    ///
    /// Returns whether a process was killed.
    ///
    /// # Errors
    /// If the system refuses the signal.
    pub fn kill(&mut self) -> std::io::Result<bool> {
        self.wanted = Wanted::Stopped;
        let Some(process) = &self.process else { return Ok(false) };
        let killed = process.kill()?;
        self.process = None;
        Ok(killed == crate::Killed::Signalled)
    }
}

/// Names for a message: each once, in order, separated by commas.
fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> ClusterState {
        let node = |name: &str, zone: &str| NodeState {
            name: name.to_owned(),
            region: "local".to_owned(),
            zone: zone.to_owned(),
            client_address: "127.0.0.1:1".parse().unwrap(),
            peer_address: "127.0.0.1:2".parse().unwrap(),
            http_address: "127.0.0.1:3".parse().unwrap(),
            data_dir: PathBuf::from("a"),
            log_file: PathBuf::from("b"),
            wanted: Wanted::Running,
            process: None,
        };
        ClusterState {
            format: FORMAT,
            topology: "t".to_owned(),
            owner: None,
            admin_key_file: PathBuf::from("k"),
            api_key_file: None,
            nodes: vec![node("a1", "a"), node("b1", "b"), node("b2", "b")],
        }
    }

    #[test]
    fn a_state_comes_back_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let file = StateFile::of(directory.path());
        assert_eq!(file.read().unwrap(), None);
        file.create(&state()).unwrap();
        assert_eq!(file.read().unwrap(), Some(state()));
    }

    #[test]
    fn a_failed_change_writes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = StateFile::of(directory.path());
        file.create(&state()).unwrap();
        let result = file.update(|state| {
            state.nodes.clear();
            state.zone_mut("x").map(|_| ())
        });
        assert!(matches!(result, Err(StateError::UnknownZone { .. })));
        assert_eq!(file.read().unwrap(), Some(state()));
    }

    #[test]
    fn an_unknown_zone_is_answered_with_the_known_ones() {
        let error = state().zone_mut("z").map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), "there is no zone \"z\"; this cluster has a, b");
        let error = state().node_mut("z9").map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), "there is no node \"z9\"; this cluster has a1, b1, b2");
    }

    #[test]
    fn another_format_is_refused_before_it_is_misread() {
        let directory = tempfile::tempdir().unwrap();
        let file = StateFile::of(directory.path());
        std::fs::write(file.path(), br#"{"format": 9, "of": "the future"}"#).unwrap();
        assert!(matches!(file.read(), Err(StateError::Format { found: 9, .. })));
        std::fs::write(file.path(), b"{").unwrap();
        assert!(matches!(file.read(), Err(StateError::Malformed { .. })));
    }

    #[test]
    fn changes_of_many_writers_are_all_kept() {
        let directory = tempfile::tempdir().unwrap();
        let file = StateFile::of(directory.path());
        file.create(&state()).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let add = |state: &mut ClusterState| {
                        state.topology.push('+');
                        Ok(())
                    };
                    (0..10).for_each(|_| file.update(add).unwrap());
                });
            }
        });
        assert_eq!(file.read().unwrap().unwrap().topology.len(), 81);
    }

    #[test]
    fn killing_a_node_that_has_no_process_only_wants_it_down() {
        let mut state = state();
        let node = state.node_mut("a1").unwrap();
        assert!(!node.kill().unwrap());
        assert_eq!(node.wanted, Wanted::Stopped);
    }
}
