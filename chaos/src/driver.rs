//! A cluster that can be broken: real node processes on loopback, a proxy on every link.
//!
//! The driver owns what it started: node processes, the proxies, the control files, and one guard
//! for each paused node, which lets it go on if the harness itself dies. It ends nothing else.
//! What is wrong with the network is kept as one [`Cut`] for each fault that is on; the network is
//! the sum of them and of the topology's latencies.
//!
//! Not here: which faults there are and when (`fault`, `run`).

mod cuts;
mod fabric;
mod files;
mod guard;
mod namespaces;
mod survey;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anchorhold_client::{AdminClient, ClientConfig};
use anchorhold_cluster::{
    Event as ClusterEvent, LaunchConfig, NodeExtras, ProcessCluster, ProcessIdentity, Topology,
    wait_until_ready,
};
use anyhow::Context as _;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use self::cuts::Cuts;
pub use self::fabric::{DriverKind, Fabric, Packets};
pub use self::files::Damage;
pub(crate) use self::guard::PauseGuard;
pub use self::namespaces::{INSIDE_VARIABLE, available as namespaces_available};
use self::namespaces::{NAMESPACE_VARIABLE, Namespaces};
pub use self::survey::Survey;
use crate::control::{CONTROL_VARIABLE, Control, FAILPOINT};
use crate::cut::Cut;
use crate::mutants::NodeMutant;
use crate::network::{Network, Party};
use crate::proxy::Mesh;
use crate::workload::{ClusterAccess, NodeAccess};

/// How to start a cluster to break.
#[derive(Clone, Debug)]
pub struct DriverConfig {
    /// How nodes are run.
    pub kind: DriverKind,
    /// The node binary.
    pub binary: PathBuf,
    /// Which nodes.
    pub topology: Topology,
    /// Where data, logs and control files go.
    pub directory: PathBuf,
    /// Jitter and loss follow from it.
    pub seed: u64,
    /// Whether the nodes take a control file: the binary was built for that.
    pub has_hooks: bool,
    /// Whether nodes keep unsynced writes in memory, so that a kill loses them.
    pub holds_unsynced: bool,
    /// Bugs that are put into nodes.
    pub mutants: Vec<NodeMutant>,
    /// More arguments for every node's `start`.
    pub node_arguments: Vec<String>,
}

/// One node, as the harness knows it.
#[derive(Clone, Debug)]
pub struct NodeHandle {
    /// Its name in the topology.
    pub name: String,
    /// Its region.
    pub region: String,
    /// Its zone.
    pub zone: String,
    /// Where it really listens to clients.
    pub client_address: SocketAddr,
    /// Where it really listens to other nodes.
    pub peer_address: SocketAddr,
    /// Its probes.
    pub http_address: SocketAddr,
    /// Its data.
    pub data_dir: PathBuf,
    /// Its log lines.
    pub log_file: PathBuf,
}

/// A running cluster to break.
pub struct ProcessDriver {
    nodes: Vec<NodeHandle>,
    cluster: Mutex<ProcessCluster>,
    fabric: Fabric,
    cuts: Mutex<Cuts>,
    controls: BTreeMap<String, Control>,
    /// Frozen nodes, each with the fault that froze it.
    guards: Mutex<BTreeMap<(String, u32), PauseGuard>>,
    /// Nodes that may end by themselves, and how many faults say so.
    excused: Mutex<BTreeMap<String, u32>>,
    admins: BTreeMap<String, AdminClient>,
    admin_key: String,
    extras: BTreeMap<String, NodeExtras>,
}

/// How long all nodes together may take to become ready.
const READY_MAX: Duration = Duration::from_secs(60);
/// How long a stopping node may take until it is killed.
pub const STOP_MAX: Duration = Duration::from_secs(15);
/// How long one node may take to answer the operators.
const ADMIN_DEADLINE: Duration = Duration::from_millis(1_800);
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// Characters of a node's last line that are shown.
const LAST_WORDS_MAX: usize = 400;

impl ProcessDriver {
    /// Starts all nodes behind proxies and waits until each is ready.
    ///
    /// # Errors
    /// If one does not start; nothing is left behind then.
    pub async fn start(config: DriverConfig) -> anyhow::Result<Self> {
        let mut cluster = ProcessCluster::prepare(LaunchConfig {
            binary: match config.kind {
                DriverKind::Process => config.binary.clone(),
                DriverKind::Namespaces => wrapper(&config)?,
            },
            topology: config.topology.clone(),
            data_dir: config.directory.clone(),
            node_arguments: config.node_arguments.clone(),
            node_environment: Vec::new(),
            ready_timeout: READY_MAX,
            is_temporary: false,
        })?;
        let (nodes, fabric) = join_up(&config, &mut cluster).await?;
        let cuts = Cuts::new(Network::of(&config.topology));
        fabric.set(cuts.network())?;
        let (mut controls, mut extras) = (BTreeMap::new(), BTreeMap::new());
        for node in &nodes {
            let control = if config.has_hooks {
                let path = config.directory.join(format!("{}.control.json", node.name));
                let here = config.mutants.iter().filter(|mutant| mutant.is_of(&node.name));
                let mutants = here.map(|mutant| mutant.mutant.clone()).collect();
                Some(Control::create(&path, config.holds_unsynced, mutants)?)
            } else {
                None
            };
            let given = extras_of(node, &nodes, &fabric, control.as_ref())?;
            cluster.set_extras(&node.name, given.clone());
            extras.insert(node.name.clone(), given);
            controls.extend(control.map(|control| (node.name.clone(), control)));
        }
        cluster.start_all(|_| {}).await?;
        // Canaries in good times: a one-way fault is seen on a connection that is there already.
        fabric.probe(&fabric.links(), READY_MAX).await;
        let admin_key = cluster.admin_key()?;
        let admin = |node: &NodeHandle| {
            let client = AdminClient::new(ClientConfig {
                endpoints: vec![node.client_address.to_string()],
                api_key: admin_key.clone(),
                deadline: ADMIN_DEADLINE,
                direct: false,
                ..ClientConfig::default()
            });
            client.map(|client| (node.name.clone(), client))
        };
        Ok(Self {
            admins: nodes.iter().map(admin).collect::<Result<_, _>>()?,
            cluster: Mutex::new(cluster),
            fabric,
            cuts: Mutex::new(cuts),
            controls,
            guards: Mutex::default(),
            excused: Mutex::default(),
            admin_key,
            extras,
            nodes,
        })
    }

    /// All nodes, in the topology's order.
    pub fn nodes(&self) -> &[NodeHandle] {
        &self.nodes
    }

    /// A node by name.
    ///
    /// # Errors
    /// If there is none.
    pub fn node(&self, name: &str) -> anyhow::Result<&NodeHandle> {
        let found = self.nodes.iter().find(|node| node.name == name);
        found.with_context(|| format!("there is no node {name}"))
    }

    /// The names of all nodes, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.nodes.iter().map(|node| node.name.clone()).collect();
        names.sort_unstable();
        names
    }

    /// What lies between the nodes.
    pub fn fabric(&self) -> &Fabric {
        &self.fabric
    }

    /// A node's control file.
    ///
    /// # Errors
    /// If the binary was not built for that.
    pub fn control(&self, name: &str) -> anyhow::Result<&Control> {
        self.controls.get(name).context("this node cannot be broken from inside: its binary was built without the feature `chaos`")
    }

    /// The way in for workloads: through the proxies. Operators go straight to the nodes.
    ///
    /// # Errors
    /// If no node says who is who.
    pub async fn access(&self) -> anyhow::Result<ClusterAccess> {
        let ids = self.node_ids().await?;
        let node = |node: &NodeHandle| {
            let endpoint = self.fabric.address(&Party::Clients, &node.name)?.to_string();
            let named = ids.iter().rev().find(|(_, name)| **name == node.name);
            Some(NodeAccess {
                node_id: *named?.0,
                name: node.name.clone(),
                region: node.region.clone(),
                zone: node.zone.clone(),
                endpoint,
            })
        };
        let nodes: Option<Vec<NodeAccess>> = self.nodes.iter().map(node).collect();
        let admin = self.nodes.iter().map(|node| node.client_address.to_string());
        Ok(ClusterAccess {
            nodes: nodes.context("a node is not in the cluster's list")?,
            admin_endpoints: admin.collect(),
            admin_key: self.admin_key.clone(),
            // The nodes announce the proxies' addresses.
            is_direct: true,
        })
    }

    /// The process of a node, if it runs.
    ///
    /// # Errors
    /// If the cluster's file cannot be used.
    pub fn process(&self, name: &str) -> anyhow::Result<Option<ProcessIdentity>> {
        Ok(self.cluster.lock().process(name)?)
    }

    /// Kills nodes at once. Their ports refuse from then on.
    ///
    /// # Errors
    /// If one cannot be killed.
    pub fn kill(&self, names: &[String]) -> anyhow::Result<()> {
        self.cut_power(names)?;
        self.set_down(names, true);
        Ok(())
    }

    /// Kills nodes at once and leaves their ports as they are.
    ///
    /// # Errors
    /// If one cannot be killed.
    pub fn cut_power(&self, names: &[String]) -> anyhow::Result<()> {
        {
            // One lock over all of it: a look at the processes in between would take the deaths
            // for accidents and start the nodes again.
            let mut cluster = self.cluster.lock();
            // Signalled first and reaped after: together, not one after the other.
            for name in names {
                if let Some(process) = cluster.process(name)? {
                    process.kill()?;
                }
            }
            for name in names {
                cluster.kill_node(name)?;
            }
        }
        self.guards.lock().retain(|(name, _), _| !names.contains(name));
        Ok(())
    }

    /// Tells a node to stop and waits until it has. Returns whether it did by itself.
    ///
    /// # Errors
    /// If it cannot be told, or cannot be killed in the end.
    pub async fn stop_node(&self, name: &str) -> anyhow::Result<bool> {
        self.cluster.lock().ask_to_stop(name)?;
        let give_up = Instant::now() + STOP_MAX;
        while self.process(name)?.is_some() && Instant::now() < give_up {
            sleep(LOOK_INTERVAL).await;
        }
        let was_stuck = self.process(name)?.is_some();
        // Reaps it either way.
        self.kill(&[name.to_owned()])?;
        Ok(!was_stuck)
    }

    /// Starts a node that is down; returns when its ports are open again, or it has ended.
    ///
    /// # Errors
    /// If the process cannot be made.
    pub async fn start_node(&self, name: &str) -> anyhow::Result<()> {
        let peer_address = self.node(name)?.peer_address;
        self.cluster.lock().start_node(name)?;
        let give_up = Instant::now() + READY_MAX;
        while Instant::now() < give_up && self.process(name)?.is_some() {
            if TcpStream::connect(peer_address).await.is_ok() {
                break;
            }
            sleep(LOOK_INTERVAL).await;
        }
        if self.process(name)?.is_some() {
            self.set_down(&[name.to_owned()], false);
        }
        Ok(())
    }

    /// Waits until a node says that it is ready. Returns whether it did.
    pub async fn wait_ready(&self, name: &str, wait: Duration) -> bool {
        let Ok(node) = self.node(name) else { return false };
        let give_up = Instant::now() + wait;
        while Instant::now() < give_up {
            if wait_until_ready(node.http_address, Duration::from_millis(250)).await.is_ok() {
                return true;
            }
            if !matches!(self.process(name), Ok(Some(_))) {
                return false;
            }
        }
        false
    }

    /// Empties a node's disk. It joins the others as a new one when it is started.
    ///
    /// # Errors
    /// If it runs, or its directory cannot be removed.
    pub fn wipe(&self, name: &str) -> anyhow::Result<()> {
        anyhow::ensure!(self.process(name)?.is_none(), "{name} runs: its disk is in use");
        let node = self.node(name)?;
        std::fs::remove_dir_all(&node.data_dir)
            .with_context(|| format!("cannot remove {}", node.data_dir.display()))?;
        let extras = self.extras.get(name).cloned().unwrap_or_default();
        self.cluster.lock().set_extras(name, NodeExtras { joins: true, ..extras });
        Ok(())
    }

    /// Freezes a node. Returns whether it is frozen.
    ///
    /// # Errors
    /// If it does not run.
    pub fn pause(&self, fault: u32, name: &str) -> anyhow::Result<bool> {
        let process = self.process(name)?.with_context(|| format!("{name} does not run"))?;
        // The guard first: whatever happens to the harness, the node goes on afterwards.
        let guard = PauseGuard::start(process.clone())?;
        self.guards.lock().insert((name.to_owned(), fault), guard);
        process.pause()?;
        // The signal is delivered when the process is next scheduled.
        for _ in 0..200 {
            if process.is_paused() {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(false)
    }

    /// Whether a fault has frozen a node.
    fn is_frozen(&self, name: &str) -> bool {
        self.guards.lock().keys().any(|(frozen, _)| frozen == name)
    }

    /// Lets a node go on that a fault froze, unless another fault has frozen it too.
    pub fn resume(&self, fault: u32, name: &str) {
        let mut guards = self.guards.lock();
        // Its end lets the process go on.
        drop(guards.remove(&(name.to_owned(), fault)));
        if guards.keys().any(|(frozen, _)| frozen == name)
            && let Ok(Some(process)) = self.process(name)
        {
            // One that has just ended needs nothing.
            drop(process.pause());
        }
    }

    /// The cut of a fault is on from now on; `None` heals it.
    pub fn set_cut(&self, fault: u32, cut: Option<Cut>) {
        let mut cuts = self.cuts.lock();
        cuts.set(fault, cut);
        self.show(&cuts);
    }

    fn show(&self, cuts: &Cuts) {
        if let Err(error) = self.fabric.set(cuts.network()) {
            // The fault's proof will find that it did not take.
            eprintln!("the links are not as they shall be: {error:#}");
        }
    }

    fn set_down(&self, names: &[String], is_down: bool) {
        let mut cuts = self.cuts.lock();
        cuts.set_down(names, is_down);
        self.show(&cuts);
    }

    /// Nodes whose processes ended by themselves since the last look, and how.
    ///
    /// # Errors
    /// If the cluster's file cannot be used.
    pub fn look(&self) -> anyhow::Result<Vec<(String, String)>> {
        let events = self.cluster.lock().reconcile()?;
        let mut died = Vec::new();
        for event in events {
            if let ClusterEvent::Died { node, how } = event {
                self.set_down(std::slice::from_ref(&node), true);
                died.push((node, how));
            }
        }
        Ok(died)
    }

    /// Whether a node's death is expected from now on.
    pub fn excuse(&self, names: &[String], is_excused: bool) {
        let mut excused = self.excused.lock();
        for name in names {
            let count = excused.entry(name.clone()).or_default();
            *count = if is_excused { *count + 1 } else { count.saturating_sub(1) };
        }
    }

    /// Whether a node's death is expected now.
    pub fn is_excused(&self, name: &str) -> bool {
        self.excused.lock().get(name).is_some_and(|count| 0 < *count)
    }

    /// How often each failpoint was reached, by process, as each node said last.
    pub fn failpoint_hits(&self) -> BTreeMap<(String, u32), BTreeMap<String, u64>> {
        let of = |(name, control): (&String, &Control)| {
            let applied = control.applied()?;
            let hits = applied
                .hits
                .iter()
                .filter_map(|(hit, count)| Some((hit.strip_prefix(FAILPOINT)?.to_owned(), *count)));
            Some(((name.clone(), applied.pid), hits.collect()))
        };
        self.controls.iter().filter_map(of).collect()
    }

    /// The last line that a node wrote.
    pub fn last_words(&self, name: &str) -> String {
        let text = self.node(name).ok().and_then(|node| std::fs::read(&node.log_file).ok());
        let text = String::from_utf8_lossy(&text.unwrap_or_default()).into_owned();
        let last = text.lines().rev().find(|line| !line.trim().is_empty());
        last.unwrap_or("it said nothing").chars().take(LAST_WORDS_MAX).collect()
    }

    /// Takes everything back that a fault can leave behind, and ends all nodes.
    pub async fn stop(self) {
        self.guards.lock().clear();
        {
            let mut cuts = self.cuts.lock();
            cuts.clear();
            self.show(&cuts);
        }
        self.cluster.into_inner().stop().await;
    }
}

impl NodeHandle {
    fn of(node: &anchorhold_cluster::NodeState) -> Self {
        Self {
            name: node.name.clone(),
            region: node.region.clone(),
            zone: node.zone.clone(),
            client_address: node.client_address,
            peer_address: node.peer_address,
            http_address: node.http_address,
            data_dir: node.data_dir.clone(),
            log_file: node.log_file.clone(),
        }
    }
}

/// Links the nodes up, and says where each is then.
async fn join_up(
    config: &DriverConfig,
    cluster: &mut ProcessCluster,
) -> anyhow::Result<(Vec<NodeHandle>, Fabric)> {
    let handles = |cluster: &ProcessCluster| -> anyhow::Result<Vec<NodeHandle>> {
        Ok(cluster.state()?.nodes.iter().map(NodeHandle::of).collect())
    };
    let nodes = handles(cluster)?;
    if config.kind == DriverKind::Process {
        let known: Vec<_> = nodes
            .iter()
            .map(|node| (node.name.clone(), node.peer_address, node.client_address))
            .collect();
        return Ok((nodes, Fabric::Proxies(Box::new(Mesh::start(&known, config.seed).await?))));
    }
    let names: Vec<String> = nodes.into_iter().map(|node| node.name).collect();
    let namespaces = Namespaces::build(&names)?;
    for name in &names {
        let (address, _) = namespaces.of(name).context("a node has no namespace")?;
        cluster.move_to(name, address)?;
    }
    let nodes = handles(cluster)?;
    let packets = Packets::new(namespaces, &nodes);
    Ok((nodes, Fabric::Packets(packets)))
}

/// What starts a node within its namespace.
fn wrapper(config: &DriverConfig) -> anyhow::Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;

    std::fs::create_dir_all(&config.directory)?;
    let path = config.directory.join("anchorhold-in-its-namespace");
    let binary = std::fs::canonicalize(&config.binary)?;
    let script = format!(
        "#!/bin/sh\nexec nsenter --target \"${NAMESPACE_VARIABLE}\" --net -- '{}' \"$@\"\n",
        binary.display()
    );
    std::fs::write(&path, script)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// What a node is told so that everything goes through the proxies, or stays in its namespace.
fn extras_of(
    node: &NodeHandle,
    nodes: &[NodeHandle],
    fabric: &Fabric,
    control: Option<&Control>,
) -> anyhow::Result<NodeExtras> {
    let path = |path: &Path| path.display().to_string();
    let environment = control.map(|control| (CONTROL_VARIABLE.to_owned(), path(control.path())));
    if let Fabric::Packets(packets) = fabric {
        let (_, holder) = packets.namespaces.of(&node.name).context("a node has no namespace")?;
        let namespace = (NAMESPACE_VARIABLE.to_owned(), holder.to_string());
        return Ok(NodeExtras {
            // The bridge is a network of the harness's own, which nobody else is on.
            arguments: vec!["--insecure".to_owned()],
            environment: environment.into_iter().chain([namespace]).collect(),
            joins: false,
        });
    }
    let for_clients =
        fabric.address(&Party::Clients, &node.name).context("no proxy for clients")?;
    let others = nodes.iter().filter(|other| other.name != node.name);
    let dial = others.map(|other| {
        let proxy = fabric.address(&Party::node(&node.name), &other.name);
        let proxy = proxy.context("no proxy between two nodes")?;
        Ok(format!("\"{}\" = \"{proxy}\"", other.peer_address))
    });
    let dial: Vec<String> = dial.collect::<anyhow::Result<_>>()?;
    Ok(NodeExtras {
        arguments: vec![
            format!("--client-advertised={for_clients}"),
            format!("--set=peer_dial={{ {} }}", dial.join(", ")),
        ],
        environment: environment.into_iter().collect(),
        joins: false,
    })
}
