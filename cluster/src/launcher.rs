//! Starts a topology's nodes as processes and keeps them as they are wanted.
//!
//! One `anchorhold start` process for each node, on loopback ports that are picked once for a data
//! directory. The first node founds the cluster, the others join it. What runs and what is wanted
//! stands in `cluster.json`; [`ProcessCluster::reconcile`] makes the first follow the second.
//!
//! Not here: deciding when a cluster is caught up (ask it through `client`).

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rand::TryRngCore;
use tokio::time::sleep;

use crate::process::ProcessIdentity;
use crate::state::{ClusterState, FORMAT, NodeState, StateError, StateFile, Wanted};
use crate::topology::{NodeSpec, Topology};

/// What to start, with what, and where.
#[derive(Clone, Debug)]
pub struct LaunchConfig {
    /// The `anchorhold` binary.
    pub binary: PathBuf,
    /// Which nodes.
    pub topology: Topology,
    /// Where everything is kept. A directory that held this topology before is continued.
    pub data_dir: PathBuf,
    /// More arguments for every node's `start`.
    pub node_arguments: Vec<String>,
    /// More environment for every node.
    pub node_environment: Vec<(String, String)>,
    /// How long all nodes together may take to become ready.
    pub ready_timeout: Duration,
    /// Whether the data directory is removed in the end.
    pub is_temporary: bool,
}

/// What tokio reads the width of its runtime from.
const WORKER_THREADS: &str = "TOKIO_WORKER_THREADS";

/// What one node's process is given beside what all are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeExtras {
    /// More arguments for its `start`.
    pub arguments: Vec<String>,
    /// More environment.
    pub environment: Vec<(String, String)>,
    /// Whether it joins the others even if it is the first, which founds the cluster otherwise.
    pub joins: bool,
}

/// A cluster of processes, ended when this is dropped.
#[derive(Debug)]
pub struct ProcessCluster {
    config: LaunchConfig,
    extras: BTreeMap<String, NodeExtras>,
    file: StateFile,
    /// One for each node of the state, in its order; `None` while it is down.
    children: Vec<Option<Child>>,
}

/// How far a start has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Nodes that are ready.
    pub ready: usize,
    /// Nodes in all.
    pub nodes: usize,
}

/// What [`ProcessCluster::reconcile`] saw or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A node was stopped from another terminal.
    Stopped {
        /// Its name.
        node: String,
    },
    /// A node's process ended although it was wanted.
    Died {
        /// Its name.
        node: String,
        /// How it ended, for people.
        how: String,
    },
    /// A node was started because it was wanted again.
    Started {
        /// Its name.
        node: String,
    },
}

/// Why a cluster cannot be started or changed.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The cluster file.
    #[error(transparent)]
    State(#[from] StateError),
    /// A file or directory.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// No ports.
    #[error("cannot find free ports for the nodes")]
    Ports(#[source] std::io::Error),
    /// Someone else runs this cluster.
    #[error(
        "the cluster in {data_dir} is run by process {pid}; stop that one, or choose another --data-dir"
    )]
    AlreadyRuns {
        /// Which cluster.
        data_dir: PathBuf,
        /// Who runs it.
        pid: u32,
    },
    /// The directory holds another cluster.
    #[error(
        "{data_dir} holds the cluster {found}, not {wanted}; choose another --data-dir or the same shape"
    )]
    OtherTopology {
        /// Which directory.
        data_dir: PathBuf,
        /// The nodes there.
        found: String,
        /// The nodes wanted.
        wanted: String,
    },
    /// A process ended instead of becoming ready.
    #[error("node {node} ended at start ({how}). The end of its log, {log_file}:\n{log_tail}")]
    Ended {
        /// Which node.
        node: String,
        /// How it ended.
        how: String,
        /// Its log.
        log_file: PathBuf,
        /// The last lines of it.
        log_tail: String,
    },
    /// A node did not become ready in time.
    #[error(
        "node {node} was not ready after {} s: {reason}. The end of its log, {log_file}:\n{log_tail}",
        timeout.as_secs()
    )]
    NotReady {
        /// Which node.
        node: String,
        /// How long it had.
        timeout: Duration,
        /// What it said last.
        reason: String,
        /// Its log.
        log_file: PathBuf,
        /// The last lines of it.
        log_tail: String,
    },
}

/// How long a node may take to end by itself once its standard input is closed.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// Between two looks at a process.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Lines of a log that an error shows.
const LOG_TAIL_LINES: usize = 12;

impl ProcessCluster {
    /// Starts all nodes and waits until each is ready.
    ///
    /// # Errors
    /// [`LaunchError`]; no process is left behind then.
    pub async fn start(
        config: LaunchConfig,
        progress: impl FnMut(Progress),
    ) -> Result<Self, LaunchError> {
        let mut cluster = Self::prepare(config)?;
        cluster.start_all(progress).await?;
        Ok(cluster)
    }

    /// Makes or takes over a cluster, ports included, without starting any node.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn prepare(config: LaunchConfig) -> Result<Self, LaunchError> {
        let file = StateFile::of(&config.data_dir);
        create_dir(&config.data_dir)?;
        let state = match file.read()? {
            Some(state) => taken_over(state, &config)?,
            None => founded(&config)?,
        };
        file.create(&state)?;
        let children = state.nodes.iter().map(|_| None).collect();
        Ok(Self { config, extras: BTreeMap::new(), file, children })
    }

    /// Starts all nodes and waits until each is ready.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub async fn start_all(
        &mut self,
        mut progress: impl FnMut(Progress),
    ) -> Result<(), LaunchError> {
        let nodes = self.state()?.nodes;
        let names: Vec<String> = nodes.into_iter().map(|node| node.name).collect();
        for name in &names {
            self.start_node(name)?;
        }
        self.wait_ready(&names, &mut progress).await
    }

    /// A node listens at this address, at the ports it has, from its next start on. It has to be an
    /// address of whatever network the node's process runs in.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn move_to(&mut self, name: &str, address: IpAddr) -> Result<(), LaunchError> {
        self.file.update(|state| {
            let node = state.node_mut(name)?;
            for at in [&mut node.client_address, &mut node.peer_address, &mut node.http_address] {
                at.set_ip(address);
            }
            Ok(())
        })?;
        Ok(())
    }

    /// What a node is given beside what all are, from its next start on.
    pub fn set_extras(&mut self, name: &str, extras: NodeExtras) {
        self.extras.insert(name.to_owned(), extras);
    }

    /// The process of a node, if it runs.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn process(&mut self, name: &str) -> Result<Option<ProcessIdentity>, LaunchError> {
        let (index, node) = position(&mut self.state()?, name)?;
        Ok(node.process.filter(|_| self.is_running(index)))
    }

    /// Tells a node to stop, as its operator does. Does not wait until it has.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn ask_to_stop(&mut self, name: &str) -> Result<(), LaunchError> {
        let (index, _) = position(&mut self.state()?, name)?;
        self.file.update(|state| {
            state.node_mut(name)?.wanted = Wanted::Stopped;
            Ok(())
        })?;
        if let Some(child) = self.children.get_mut(index).and_then(Option::as_mut) {
            drop(child.stdin.take());
        }
        Ok(())
    }

    /// Where everything is kept.
    pub fn data_dir(&self) -> &Path {
        &self.config.data_dir
    }

    /// The file that other processes read.
    pub fn file(&self) -> &StateFile {
        &self.file
    }

    /// What is known of the cluster now.
    ///
    /// # Errors
    /// [`LaunchError::State`].
    pub fn state(&self) -> Result<ClusterState, LaunchError> {
        self.file.update(|state| Ok(state.clone())).map_err(LaunchError::from)
    }

    /// The key that opens the admin services.
    ///
    /// # Errors
    /// [`LaunchError::File`] if its file is gone.
    pub fn admin_key(&self) -> Result<String, LaunchError> {
        let path = self.state()?.admin_key_file;
        let text = fs::read_to_string(&path).map_err(|source| file_error("read", &path, source))?;
        Ok(text.trim().to_owned())
    }

    /// Starts a node that is down. Does not wait until it is ready.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn start_node(&mut self, name: &str) -> Result<(), LaunchError> {
        let mut state = self.state()?;
        let (index, node) = position(&mut state, name)?;
        if self.is_running(index) {
            return Ok(());
        }
        let child = self.spawn(&state, index, &node)?;
        let process = ProcessIdentity::of(child.id());
        if let Some(slot) = self.children.get_mut(index) {
            *slot = Some(child);
        }
        self.file.update(|state| {
            let node = state.node_mut(name)?;
            node.wanted = Wanted::Running;
            node.process = process;
            Ok(())
        })?;
        Ok(())
    }

    /// Kills a node with SIGKILL and waits until it is gone. Returns whether it ran.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn kill_node(&mut self, name: &str) -> Result<bool, LaunchError> {
        let (index, _) = position(&mut self.state()?, name)?;
        let was_running = self.is_running(index);
        // Wanted is written first, or `reconcile` in between would call it a death.
        self.file.update(|state| {
            state.node_mut(name)?.wanted = Wanted::Stopped;
            Ok(())
        })?;
        if let Some(mut child) = self.children.get_mut(index).and_then(Option::take) {
            // It may have ended by itself meanwhile, which is as good.
            drop(child.kill());
            drop(child.wait());
        }
        Ok(was_running)
    }

    /// Kills all nodes of a zone with SIGKILL, as a power cut does.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn kill_zone(&mut self, zone: &str) -> Result<(), LaunchError> {
        for name in self.zone_nodes(zone)? {
            self.kill_node(&name)?;
        }
        Ok(())
    }

    /// Starts all nodes of a zone and waits until they are ready.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub async fn start_zone(&mut self, zone: &str) -> Result<(), LaunchError> {
        let names = self.zone_nodes(zone)?;
        for name in &names {
            self.start_node(name)?;
        }
        self.wait_ready(&names, &mut |_| {}).await
    }

    /// The names of a zone's nodes.
    ///
    /// # Errors
    /// [`StateError::UnknownZone`].
    pub fn zone_nodes(&self, zone: &str) -> Result<Vec<String>, LaunchError> {
        let mut state = self.state()?;
        Ok(state.zone_mut(zone)?.into_iter().map(|node| node.name.clone()).collect())
    }

    /// Waits until all named nodes are ready, together at most the configured time.
    ///
    /// # Errors
    /// [`LaunchError::Ended`] or [`LaunchError::NotReady`], with the end of the node's log.
    pub async fn wait_ready(
        &mut self,
        names: &[String],
        progress: &mut impl FnMut(Progress),
    ) -> Result<(), LaunchError> {
        let timeout = self.config.ready_timeout;
        let deadline = tokio::time::Instant::now() + timeout;
        for (ready, name) in names.iter().enumerate() {
            progress(Progress { ready, nodes: names.len() });
            let (index, node) = position(&mut self.state()?, name)?;
            loop {
                self.check_alive(index, &node)?;
                let left = deadline.saturating_duration_since(tokio::time::Instant::now());
                let slice = left.min(Duration::from_millis(250));
                match crate::wait_until_ready(node.http_address, slice).await {
                    Ok(()) => break,
                    Err(reason) if left.is_zero() => {
                        let log_tail = log_tail(&node.log_file);
                        let (node, log_file) = (node.name, node.log_file);
                        return Err(LaunchError::NotReady {
                            node,
                            timeout,
                            reason,
                            log_file,
                            log_tail,
                        });
                    }
                    Err(_) => {}
                }
            }
        }
        progress(Progress { ready: names.len(), nodes: names.len() });
        Ok(())
    }

    /// Looks after the processes once: notes which have ended, and starts those that are wanted
    /// again. Call it a few times a second while the cluster is to be controlled from elsewhere.
    ///
    /// # Errors
    /// [`LaunchError`] if the file cannot be used or a process cannot be started.
    pub fn reconcile(&mut self) -> Result<Vec<Event>, LaunchError> {
        let mut events = Vec::new();
        for (index, node) in self.state()?.nodes.into_iter().enumerate() {
            let ended = match self.children.get_mut(index).and_then(Option::as_mut) {
                Some(child) => child.try_wait().ok().flatten(),
                None => None,
            };
            if let Some(status) = ended {
                self.children[index] = None;
                events.push(self.note_end(&node.name, status.to_string())?);
            } else if node.wanted == Wanted::Running && self.children[index].is_none() {
                self.start_node(&node.name)?;
                events.push(Event::Started { node: node.name });
            }
        }
        Ok(events)
    }

    /// Ends all nodes: asks first, kills after a grace.
    pub async fn stop(mut self) {
        self.close_inputs();
        let deadline = tokio::time::Instant::now() + STOP_GRACE;
        while self.any_running() && tokio::time::Instant::now() < deadline {
            sleep(POLL_INTERVAL).await;
        }
        // Dropping kills and reaps what is left.
    }

    fn note_end(&self, name: &str, how: String) -> Result<Event, LaunchError> {
        let node = name.to_owned();
        let event = self.file.update(|state| {
            let noted = state.node_mut(name)?;
            // Whoever kills a node forgets its process, and it may be wanted again since.
            let was_killed = noted.process.take().is_none();
            if was_killed || noted.wanted == Wanted::Stopped {
                return Ok(Event::Stopped { node });
            }
            noted.wanted = Wanted::Stopped;
            Ok(Event::Died { node, how })
        })?;
        Ok(event)
    }

    fn spawn(
        &self,
        state: &ClusterState,
        index: usize,
        node: &NodeState,
    ) -> Result<Child, LaunchError> {
        create_dir(&node.data_dir)?;
        let log_error = |source| file_error("open the log", &node.log_file, source);
        let log = OpenOptions::new().create(true).append(true).open(&node.log_file);
        let log = log.map_err(log_error)?;
        let errors = log.try_clone().map_err(log_error)?;
        let mut command = Command::new(&self.config.binary);
        command
            .arg("start")
            .arg("--data-dir")
            .arg(&node.data_dir)
            .args(["--region", &node.region, "--zone", &node.zone])
            .arg(format!("--client-address={}", node.client_address))
            .arg(format!("--peer-address={}", node.peer_address))
            .arg(format!("--http-address={}", node.http_address))
            .arg("--admin-key-file")
            .arg(&state.admin_key_file)
            .args(["--exit-with-stdin", "--log-format", "json"]);
        let extras = self.extras.get(&node.name).cloned().unwrap_or_default();
        if index == 0 && !extras.joins {
            command.arg(format!("--bootstrap={}", state.topology));
        } else {
            let others = state.nodes.iter().filter(|other| other.name != node.name);
            command.args(others.map(|other| format!("--join={}", other.peer_address)));
        }
        // Nodes of one machine share its cores: a runtime as wide as the machine in each of them
        // spends its time on waking threads that then wait for a core.
        if std::env::var_os(WORKER_THREADS).is_none() {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            command.env(WORKER_THREADS, (cores / state.nodes.len()).max(1).to_string());
        }
        command
            .args(&self.config.node_arguments)
            .args(extras.arguments)
            .envs(self.config.node_environment.iter().cloned())
            .envs(extras.environment)
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(errors);
        // A group of its own, so that Ctrl-C reaches the launcher alone, which then ends the nodes.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.spawn().map_err(|source| file_error("run", &self.config.binary, source))
    }

    fn check_alive(&mut self, index: usize, node: &NodeState) -> Result<(), LaunchError> {
        let ended = match self.children.get_mut(index).and_then(Option::as_mut) {
            Some(child) => child.try_wait().ok().flatten().map(|status| status.to_string()),
            None => Some("it is stopped".to_owned()),
        };
        let Some(how) = ended else { return Ok(()) };
        let (log_file, log_tail) = (node.log_file.clone(), log_tail(&node.log_file));
        Err(LaunchError::Ended { node: node.name.clone(), how, log_file, log_tail })
    }

    fn is_running(&mut self, index: usize) -> bool {
        let child = self.children.get_mut(index).and_then(Option::as_mut);
        child.is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    fn any_running(&mut self) -> bool {
        (0..self.children.len()).any(|index| self.is_running(index))
    }

    /// A node ends by itself once its standard input is closed.
    fn close_inputs(&mut self) {
        for child in self.children.iter_mut().flatten() {
            drop(child.stdin.take());
        }
    }
}

impl Drop for ProcessCluster {
    fn drop(&mut self) {
        self.close_inputs();
        for mut child in self.children.iter_mut().filter_map(Option::take) {
            // Ended already, or ended now: either way it is gone and reaped.
            drop(child.kill());
            drop(child.wait());
        }
        if self.config.is_temporary {
            // Left-over temporary files do no harm.
            drop(fs::remove_dir_all(&self.config.data_dir));
        } else {
            let cleared = self.file.update(|state| {
                state.owner = None;
                Ok(())
            });
            // Without it the next start finds a dead owner, which it takes over from as well.
            drop(cleared);
        }
    }
}

/// The state of a cluster that is continued in its directory.
fn taken_over(mut state: ClusterState, config: &LaunchConfig) -> Result<ClusterState, LaunchError> {
    if let Some(owner) = state.owner.as_ref().filter(|owner| owner.is_alive()) {
        let (data_dir, pid) = (config.data_dir.clone(), owner.pid);
        return Err(LaunchError::AlreadyRuns { data_dir, pid });
    }
    let wanted: Vec<NodeSpec> = config.topology.nodes();
    let found = state.nodes.iter().map(|node| NodeSpec {
        name: node.name.clone(),
        region: node.region.clone(),
        zone: node.zone.clone(),
    });
    let found: Vec<NodeSpec> = found.collect();
    if found != wanted {
        let (data_dir, found) = (config.data_dir.clone(), names(&found));
        return Err(LaunchError::OtherTopology { data_dir, found, wanted: names(&wanted) });
    }
    state.owner = ProcessIdentity::current();
    for node in &mut state.nodes {
        node.wanted = Wanted::Running;
        node.process = None;
    }
    Ok(state)
}

/// The state of a new cluster: ports picked, admin key made.
fn founded(config: &LaunchConfig) -> Result<ClusterState, LaunchError> {
    let data_dir = fs::canonicalize(&config.data_dir)
        .map_err(|source| file_error("use", &config.data_dir, source))?;
    let specs = config.topology.nodes();
    let ports = crate::ports::pick(3 * specs.len()).map_err(LaunchError::Ports)?;
    let admin_key_file = data_dir.join("admin.key");
    crate::write_secret(&admin_key_file, &format!("aha_{}\n", random_key()?))
        .map_err(|source| file_error("write", &admin_key_file, source))?;
    let nodes = specs.into_iter().zip(ports.chunks_exact(3));
    Ok(ClusterState {
        format: FORMAT,
        topology: config.topology.name.clone(),
        owner: ProcessIdentity::current(),
        admin_key_file,
        api_key_file: None,
        nodes: nodes.map(|(spec, ports)| new_node(spec, ports, &data_dir)).collect(),
    })
}

fn new_node(spec: NodeSpec, ports: &[SocketAddr], data_dir: &Path) -> NodeState {
    let node_dir = data_dir.join(&spec.name);
    NodeState {
        client_address: ports[0],
        peer_address: ports[1],
        http_address: ports[2],
        log_file: data_dir.join(format!("{}.log", spec.name)),
        data_dir: node_dir,
        name: spec.name,
        region: spec.region,
        zone: spec.zone,
        wanted: Wanted::Running,
        process: None,
    }
}

/// 256 random bits in hexadecimal digits.
fn random_key() -> Result<String, LaunchError> {
    let mut bytes = [0_u8; 32];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).map_err(|error| {
        let source = std::io::Error::other(error.to_string());
        file_error("read random bytes from", Path::new("the system"), source)
    })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn position(state: &mut ClusterState, name: &str) -> Result<(usize, NodeState), LaunchError> {
    let node = state.node_mut(name)?.clone();
    let index = state.nodes.iter().position(|other| other.name == name).unwrap_or_default();
    Ok((index, node))
}

fn names(nodes: &[NodeSpec]) -> String {
    let names = nodes.iter().map(|node| format!("{}/{}", node.region, node.name));
    names.collect::<Vec<_>>().join(", ")
}

fn create_dir(path: &Path) -> Result<(), LaunchError> {
    fs::create_dir_all(path).map_err(|source| file_error("create", path, source))
}

fn file_error(action: &'static str, path: &Path, source: std::io::Error) -> LaunchError {
    LaunchError::File { action, path: path.to_owned(), source }
}

fn log_tail(path: &Path) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let text = text.unwrap_or_else(|error| format!("(cannot be read: {error})"));
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests;
