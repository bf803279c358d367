//! Three etcd processes behind the harness's proxies.
//!
//! etcd knows one address of each member, whoever dials it, and the proxies need to know who does.
//! So each member has a router in front: it finds out whose process holds the other end of a new
//! connection, and passes it on to the proxy of that pair.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anchorhold_cluster::{NodeSpec, ProcessIdentity, Topology, pick_ports};
use anyhow::Context as _;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::api::Member;
use crate::cut::Cut;
use crate::driver::PauseGuard;
use crate::judge::{FinalNode, FinalState};
use crate::network::{Network, Party};
use crate::proxy::{LinkId, Mesh};

/// How long a call to one member may take before another one is asked.
pub(super) const ATTEMPT_MAX: Duration = Duration::from_millis(250);
/// How long the members may take to elect a leader at the start.
const READY_MAX: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How long a token has to not come through a cut link, beside the time that it would take.
const SILENCE: Duration = Duration::from_millis(60);

/// Process ids of the members, for whoever must know who dials.
type Pids = Arc<Mutex<BTreeMap<String, u32>>>;

/// A running cluster.
pub(super) struct EtcdCluster {
    nodes: Vec<Node>,
    children: BTreeMap<String, Child>,
    guards: BTreeMap<String, PauseGuard>,
    pids: Pids,
    mesh: Mesh,
    /// The links while nothing is wrong.
    base: Network,
    cuts: BTreeMap<u32, Cut>,
    routers: Vec<JoinHandle<()>>,
}

/// One member.
struct Node {
    spec: NodeSpec,
    command: EtcdCommand,
    /// Through the proxy.
    client_address: SocketAddr,
    /// Past it, for the harness's own questions.
    status: Member,
}

/// How to start a member.
struct EtcdCommand {
    binary: PathBuf,
    arguments: Vec<String>,
    log_file: PathBuf,
}

impl EtcdCommand {
    fn spawn(&self) -> anyhow::Result<Child> {
        let log = File::options().create(true).append(true).open(&self.log_file)?;
        // A member ends with the harness, however that ends.
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&self.binary)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))
    }
}

impl EtcdCluster {
    /// Starts all members and waits for a leader.
    ///
    /// # Errors
    /// If one does not start, or nobody leads in time.
    pub(super) async fn start(
        binary: &Path,
        topology: &Topology,
        directory: &Path,
        seed: u64,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(directory)?;
        let specs = topology.nodes();
        let ports = pick_ports(2 * specs.len())?;
        let known: Vec<_> = specs
            .iter()
            .zip(ports.chunks(2))
            .map(|(spec, ports)| (spec.name.clone(), ports[0], ports[1]))
            .collect();
        let mesh = Mesh::start(&known, seed).await?;
        let pids = Pids::default();
        let (mut routers, mut entries) = (Vec::new(), Vec::new());
        for spec in &specs {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            entries.push(listener.local_addr()?);
            let ways = ways_to(&spec.name, &specs, &mesh)?;
            routers.push(tokio::spawn(route_forever(listener, ways, pids.clone())));
        }
        let members = specs.iter().zip(&entries);
        let members: Vec<String> =
            members.map(|(spec, entry)| format!("{}=http://{entry}", spec.name)).collect();
        let mut nodes = Vec::new();
        for ((spec, (_, peer, client)), entry) in specs.into_iter().zip(known).zip(entries) {
            let client_address =
                mesh.address(&Party::Clients, &spec.name).context("no proxy for clients")?;
            let arguments = vec![
                format!("--name={}", spec.name),
                format!("--data-dir={}", directory.join(&spec.name).display()),
                format!("--listen-peer-urls=http://{peer}"),
                format!("--initial-advertise-peer-urls=http://{entry}"),
                format!("--listen-client-urls=http://{client}"),
                format!("--advertise-client-urls=http://{client_address}"),
                format!("--initial-cluster={}", members.join(",")),
                "--initial-cluster-state=new".to_owned(),
                "--logger=zap".to_owned(),
            ];
            let log_file = directory.join(format!("{}.log", spec.name));
            let command = EtcdCommand { binary: binary.to_owned(), arguments, log_file };
            let status = Member::new(&client.to_string(), ATTEMPT_MAX)?;
            nodes.push(Node { spec, command, client_address, status });
        }
        let (children, guards, cuts) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let base = Network::of(topology);
        let mut cluster = Self { nodes, children, guards, pids, mesh, base, cuts, routers };
        cluster.start_nodes(&cluster.names())?;
        let begun = Instant::now();
        while !cluster.is_healthy().await {
            anyhow::ensure!(begun.elapsed() < READY_MAX, "etcd elects no leader: see its logs");
            sleep(LOOK_INTERVAL).await;
        }
        let links: Vec<LinkId> = cluster.mesh.links().cloned().collect();
        cluster.mesh.probe(&links, READY_MAX).await;
        Ok(cluster)
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.spec.name.clone()).collect()
    }

    pub(super) fn zone_of(&self, name: &str) -> String {
        let node = self.nodes.iter().find(|node| node.spec.name == name);
        node.map(|node| node.spec.zone.clone()).unwrap_or_default()
    }

    /// Clients of all members, through the proxies.
    pub(super) fn members(&self, timeout: Duration) -> anyhow::Result<Vec<Member>> {
        let addresses = self.nodes.iter().map(|node| node.client_address.to_string());
        addresses.map(|address| Member::new(&address, timeout)).collect()
    }

    /// What each member says of itself and its leader; those that do not answer left out.
    async fn statuses(&self) -> Vec<(String, u64, u64)> {
        let asked = self.nodes.iter().map(|node| async {
            // A frozen one only costs time.
            if self.guards.contains_key(&node.spec.name) {
                return None;
            }
            let status = node.status.status().await.ok()?;
            Some((node.spec.name.clone(), status.header?.member_id, status.leader))
        });
        futures::future::join_all(asked).await.into_iter().flatten().collect()
    }

    /// The member that most others follow.
    pub(super) async fn leader(&self) -> Option<String> {
        let statuses = self.statuses().await;
        let votes = |id: u64| statuses.iter().filter(|(.., leader)| *leader == id).count();
        let led = statuses.iter().filter(|(_, id, leader)| id == leader);
        led.max_by_key(|(_, id, _)| votes(*id)).map(|(name, ..)| name.clone())
    }

    /// Whether all members answer and follow one leader.
    pub(super) async fn is_healthy(&self) -> bool {
        let statuses = self.statuses().await;
        let leader = statuses.first().map(|(.., leader)| *leader);
        statuses.len() == self.nodes.len()
            && leader.is_some_and(|leader| leader != 0)
            && statuses.iter().all(|(.., of)| Some(*of) == leader)
    }

    /// Kills members at once. Returns whether they are gone.
    pub(super) fn kill(&mut self, names: &[String]) -> anyhow::Result<bool> {
        for name in names {
            if let Some(child) = self.children.get_mut(name) {
                child.kill()?;
            }
        }
        for name in names {
            if let Some(mut child) = self.children.remove(name) {
                child.wait()?;
            }
            self.pids.lock().remove(name);
        }
        self.set_network();
        Ok(true)
    }

    /// Starts members that are down.
    pub(super) fn start_nodes(&mut self, names: &[String]) -> anyhow::Result<()> {
        for node in self.nodes.iter().filter(|node| names.contains(&node.spec.name)) {
            let child = node.command.spawn()?;
            self.pids.lock().insert(node.spec.name.clone(), child.id());
            self.children.insert(node.spec.name.clone(), child);
        }
        self.set_network();
        Ok(())
    }

    /// Freezes members. Returns whether they are.
    pub(super) fn pause(&mut self, names: &[String]) -> anyhow::Result<bool> {
        let mut are_frozen = true;
        for name in names {
            let child = self.children.get(name).with_context(|| format!("{name} does not run"))?;
            let process = ProcessIdentity::of(child.id()).context("it has just ended")?;
            self.guards.insert(name.clone(), PauseGuard::start(process.clone())?);
            process.pause()?;
            are_frozen &= (0..200).any(|_| {
                std::thread::sleep(Duration::from_millis(1));
                process.is_paused()
            });
        }
        Ok(are_frozen)
    }

    pub(super) fn resume(&mut self, names: &[String]) {
        names.iter().for_each(|name| drop(self.guards.remove(name)));
    }

    /// The cut of a fault is on, or healed. Returns whether links are as they should be.
    pub(super) async fn set_cut(&mut self, fault: u32, cut: Option<Cut>) -> bool {
        match cut {
            Some(cut) => self.cuts.insert(fault, cut),
            None => self.cuts.remove(&fault),
        };
        self.set_network();
        let network = self.mesh.network();
        let is_cut = |link: &&LinkId| network.flow(&link.from, &Party::node(&link.to)).stalled;
        let links: Vec<LinkId> = self.mesh.links().filter(is_cut).cloned().collect();
        let takes = |link: &LinkId| network.round_trip_max(&link.from, &Party::node(&link.to));
        let wait = SILENCE + links.iter().map(takes).max().unwrap_or_default();
        let probes = self.mesh.probe(&links, wait).await;
        probes.iter().all(|(_, probe)| !probe.arrived)
    }

    fn set_network(&self) {
        let mut network = self.base.clone();
        self.cuts.values().for_each(|cut| cut.add_to(&mut network));
        for node in &self.nodes {
            if !self.children.contains_key(&node.spec.name) {
                network.refuse(&node.spec.name);
            }
        }
        self.mesh.set(network);
    }

    /// Who was there in the end. There are no shards to look at.
    pub(super) fn final_state(&self) -> FinalState {
        let node = |(number, node): (u64, &Node)| FinalNode {
            node_id: number,
            name: node.spec.name.clone(),
            region: node.spec.region.clone(),
            zone: node.spec.zone.clone(),
        };
        FinalState { nodes: (1..).zip(&self.nodes).map(node).collect(), ..FinalState::default() }
    }

    /// Ends all members.
    pub(super) fn stop(mut self) {
        self.guards.clear();
        for child in self.children.values_mut() {
            // One that has ended is what is wanted.
            drop(child.kill());
            drop(child.wait());
        }
        self.routers.iter().for_each(JoinHandle::abort);
    }
}

/// The proxies that lead to a member, by the name of who dials.
fn ways_to(
    name: &str,
    specs: &[NodeSpec],
    mesh: &Mesh,
) -> anyhow::Result<BTreeMap<String, SocketAddr>> {
    let others = specs.iter().filter(|other| other.name != name);
    let way = |other: &NodeSpec| {
        let proxy = mesh.address(&Party::node(&other.name), name);
        Ok((other.name.clone(), proxy.context("no proxy between two nodes")?))
    };
    others.map(way).collect()
}

async fn route_forever(listener: TcpListener, ways: BTreeMap<String, SocketAddr>, pids: Pids) {
    let Ok(to) = listener.local_addr() else { return };
    while let Ok((mut incoming, from)) = listener.accept().await {
        let (ways, pids) = (ways.clone(), pids.clone());
        tokio::spawn(async move {
            let known = pids.lock().clone();
            let ports = (from.port(), to.port());
            let found = tokio::task::spawn_blocking(move || owner(ports, &known)).await;
            // Of nobody's: a member that ended meanwhile.
            let Ok(Some(name)) = found else { return };
            let Some(way) = ways.get(&name) else { return };
            if let Ok(mut outgoing) = TcpStream::connect(way).await {
                // However it ends, both ends are closed.
                drop(incoming.set_nodelay(true));
                drop(outgoing.set_nodelay(true));
                drop(tokio::io::copy_bidirectional(&mut incoming, &mut outgoing).await);
            }
        });
    }
}

/// How often the table of connections is read, at most: it is read piece by piece, and a row can
/// slip through while others come and go.
const TABLE_READS_MAX: usize = 5;

/// Whose process holds the local end of a loopback connection between these ports.
fn owner(ports: (u16, u16), pids: &BTreeMap<String, u32>) -> Option<String> {
    let read = || inode_of(&fs::read_to_string("/proc/net/tcp").ok()?, ports);
    let inode = (0..TABLE_READS_MAX).find_map(|_| read())?;
    let link = format!("socket:[{inode}]");
    let holds = |pid: &u32| {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let mut targets = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        targets.any(|target| target.as_os_str() == link.as_str()).then_some(())
    };
    pids.iter().find(|(_, pid)| holds(pid).is_some()).map(|(name, _)| name.clone())
}

/// The inode of the socket with these ports, its own and the other end's, out of `/proc/net/tcp`.
/// Its own alone is not enough: it may be that of a connection elsewhere, or of one that is over.
fn inode_of(table: &str, (from, to): (u16, u16)) -> Option<u64> {
    let wanted = [from, to].map(|port| format!("0100007F:{port:04X}"));
    let row = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let ends = [fields.next()?, fields.next()?];
        let inode = fields.nth(6)?;
        (ends == wanted).then(|| inode.parse().ok()).flatten()
    };
    table.lines().skip(1).find_map(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_connection_is_found_by_its_socket() {
        // The same port is another connection's, which is over, the listener's of somebody, and ours.
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1F90 0100007F:0050 06 00000000:00000000 03:00000176 00000000     0        0 0 3 0\n\
             1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4241 1 0 100 0 0 10 0\n\
             2: 0100007F:1F90 0100007F:0051 01 00000000:00000000 00:00000000 00000000     0        0 4242 1 0 100 0 0 10 0\n";
        assert_eq!(inode_of(table, (8_080, 81)), Some(4_242));
        assert_eq!(inode_of(table, (8_080, 82)), None);
        assert_eq!(inode_of(table, (81, 8_080)), None);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ports = (stream.local_addr().unwrap().port(), listener.local_addr().unwrap().port());
        let pids = BTreeMap::from([("me".to_owned(), std::process::id())]);
        assert_eq!(owner(ports, &pids).as_deref(), Some("me"));
        assert_eq!(owner(ports, &BTreeMap::new()), None);
    }
}
