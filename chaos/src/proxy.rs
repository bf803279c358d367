//! A TCP proxy on every link: between any two nodes, and between the clients and each node.
//!
//! Each ordered pair of parties has a port of its own on loopback. What the links shall be like is
//! one [`Network`], swapped at once for all of them. A stalled flow holds its bytes (and the news
//! that the sender has closed) until it is healed; a node that refuses has no listening ports, so
//! that the kernel itself refuses.
//!
//! What a proxy cannot do: lose, double or reorder packets; let a SYN vanish (a connection to a
//! silent host is accepted and then held); hide itself from the kernel's keepalives.
//!
//! The mesh runs on a thread of its own, so that busy clients do not slow the links down; another one
//! wakes it, because its own timers are no finer than a millisecond.

mod alarm;
mod canary;
mod pump;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{broadcast, watch};

use self::alarm::Alarms;
pub use self::canary::Probe;
use self::canary::{Canaries, EchoServer};
use self::pump::{Ended, Pump};
use crate::network::{Network, Party};

/// One link: who connects, and to which node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId {
    /// Who connects.
    pub from: Party,
    /// The node that is connected to.
    pub to: String,
}

/// What went through a link, to be compared between two moments.
#[derive(Debug, Default)]
pub struct LinkCounters {
    /// Bytes delivered to the node.
    pub forward_bytes: AtomicU64,
    /// Bytes delivered to the one that connected.
    pub backward_bytes: AtomicU64,
    /// Writes that waited for a retransmission.
    pub losses: AtomicU64,
    /// Connections made.
    pub connections: AtomicU64,
}

/// All proxies of a cluster. Dropping it closes everything.
pub struct Mesh {
    addresses: BTreeMap<LinkId, SocketAddr>,
    counters: BTreeMap<LinkId, Arc<LinkCounters>>,
    network: watch::Sender<Arc<Network>>,
    resets: broadcast::Sender<Arc<BTreeSet<LinkId>>>,
    canaries: Canaries,
    alarms: Arc<Alarms>,
    /// Dropped last; taken out so that it can be dropped within another runtime.
    runtime: Option<Runtime>,
}

/// What a connection needs to know.
#[derive(Clone)]
struct Link {
    id: LinkId,
    upstream: SocketAddr,
    echo: SocketAddr,
    canary_ports: Arc<Mutex<BTreeSet<u16>>>,
    network: watch::Receiver<Arc<Network>>,
    resets: broadcast::Sender<Arc<BTreeSet<LinkId>>>,
    counters: Arc<LinkCounters>,
    alarms: Arc<Alarms>,
    seed: u64,
}

/// Resets that a connection may lag behind, at most; one that does is reset.
const RESETS_MAX: usize = 64;
/// Between two tries to listen again on a port that was closed.
const LISTEN_AGAIN: Duration = Duration::from_millis(5);

impl Mesh {
    /// Listens for every ordered pair of nodes, and for the clients of each node.
    ///
    /// `nodes` has the name, the peer address and the client address of each. Jitter and loss
    /// follow from the seed.
    ///
    /// # Errors
    /// If no port can be had.
    pub async fn start(
        nodes: &[(String, SocketAddr, SocketAddr)],
        seed: u64,
    ) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("proxy")
            .enable_all()
            .build()
            .context("cannot start the proxies' thread")?;
        let (network, _) = watch::channel(Arc::new(Network::default()));
        let (resets, _) = broadcast::channel(RESETS_MAX);
        let canary_ports = Arc::<Mutex<BTreeSet<u16>>>::default();
        let echo = EchoServer::start(&runtime).await?;
        let mut mesh = Self {
            addresses: BTreeMap::new(),
            counters: BTreeMap::new(),
            canaries: Canaries::new(Arc::clone(&canary_ports), echo.arrivals()),
            network,
            resets,
            alarms: Arc::new(Alarms::start().context("cannot start the alarms' thread")?),
            runtime: Some(runtime),
        };
        for (number, (id, upstream)) in links(nodes).into_iter().enumerate() {
            let link = Link {
                id: id.clone(),
                upstream,
                echo: echo.address(),
                canary_ports: Arc::clone(&canary_ports),
                network: mesh.network.subscribe(),
                resets: mesh.resets.clone(),
                counters: Arc::default(),
                alarms: Arc::clone(&mesh.alarms),
                seed: seed.wrapping_add(1_000_003 * number as u64),
            };
            mesh.counters.insert(id.clone(), Arc::clone(&link.counters));
            let address = mesh.listen(link).await?;
            mesh.addresses.insert(id, address);
        }
        Ok(mesh)
    }

    async fn listen(&self, link: Link) -> anyhow::Result<SocketAddr> {
        let runtime = self.runtime.as_ref().context("the mesh is closed")?;
        // Bound in the runtime that will accept from it.
        let bound = runtime.spawn(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).await?;
        let listener = bound.context("no port for a proxy")?;
        let address = listener.local_addr()?;
        runtime.spawn(accept_forever(link, listener, address));
        Ok(address)
    }

    /// Where a party connects to in order to reach a node.
    pub fn address(&self, from: &Party, to: &str) -> Option<SocketAddr> {
        self.addresses.get(&LinkId { from: from.clone(), to: to.to_owned() }).copied()
    }

    /// All links.
    pub fn links(&self) -> impl Iterator<Item = &LinkId> {
        self.addresses.keys()
    }

    /// What went through a link so far.
    pub fn counters(&self, link: &LinkId) -> Option<&LinkCounters> {
        self.counters.get(link).map(Arc::as_ref)
    }

    /// All links are like this from now on.
    pub fn set(&self, network: Network) {
        self.network.send_replace(Arc::new(network));
    }

    /// What all links are like now.
    pub fn network(&self) -> Arc<Network> {
        Arc::clone(&self.network.borrow())
    }

    /// Closes all connections of some links with a TCP reset.
    pub fn reset(&self, links: BTreeSet<LinkId>) {
        // Nobody listens if there is no connection.
        let _ = self.resets.send(Arc::new(links));
    }

    /// Sends a token over each of some links, through the same proxies as the nodes' bytes, and
    /// says what became of it within `wait`.
    pub async fn probe(&self, links: &[LinkId], wait: Duration) -> BTreeMap<LinkId, Probe> {
        let probes = links.iter().filter_map(|link| {
            let address = *self.addresses.get(link)?;
            Some(async move { (link.clone(), self.canaries.probe(link, address, wait).await) })
        });
        futures::future::join_all(probes).await.into_iter().collect()
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn links(nodes: &[(String, SocketAddr, SocketAddr)]) -> Vec<(LinkId, SocketAddr)> {
    let mut links = Vec::new();
    for (to, peer, client) in nodes {
        links.push((LinkId { from: Party::Clients, to: to.clone() }, *client));
        for (from, ..) in nodes.iter().filter(|(from, ..)| from != to) {
            links.push((LinkId { from: Party::node(from), to: to.clone() }, *peer));
        }
    }
    links
}

async fn accept_forever(link: Link, listener: TcpListener, address: SocketAddr) {
    let mut network = link.network.clone();
    let mut listener = Some(listener);
    let mut number = 0_u64;
    loop {
        let is_refusing = network.borrow_and_update().is_refusing(&link.id.to);
        match &listener {
            Some(_) if is_refusing => listener = None,
            Some(bound) => tokio::select! {
                accepted = bound.accept() => if let Ok((stream, peer)) = accepted {
                    number += 1;
                    tokio::spawn(serve(link.clone(), stream, peer, number));
                },
                changed = network.changed() => if changed.is_err() { return },
            },
            None if is_refusing => {
                if network.changed().await.is_err() {
                    return;
                }
            }
            None => match TcpListener::bind(address).await {
                Ok(bound) => listener = Some(bound),
                // Someone has the port for a moment, as the source of a connection.
                Err(_) => tokio::time::sleep(LISTEN_AGAIN).await,
            },
        }
    }
}

/// One connection, to its end.
async fn serve(link: Link, mut down: TcpStream, peer: SocketAddr, number: u64) {
    let mut resets = link.resets.subscribe();
    let reset = async {
        while let Ok(links) = resets.recv().await {
            if links.contains(&link.id) {
                return;
            }
        }
    };
    let mut up = None;
    let is_reset = tokio::select! {
        () = reset => true,
        ended = connect_and_pump(&link, &mut down, &mut up, peer, number) => match ended {
            Ok(ended) => ended == Ended::Reset,
            Err(_) => true, // Nobody is there, or not any more.
        },
    };
    for stream in [Some(&down), up.as_ref()].into_iter().flatten().filter(|_| is_reset) {
        // Dropped with this set, a socket resets its connection. One that is gone cannot be told.
        let _ = stream.set_zero_linger();
    }
}

async fn connect_and_pump(
    link: &Link,
    down: &mut TcpStream,
    up: &mut Option<TcpStream>,
    peer: SocketAddr,
    number: u64,
) -> io::Result<Ended> {
    let is_canary = link.canary_ports.lock().remove(&peer.port());
    let (from, to) = (link.id.from.clone(), Party::Node(link.id.to.clone()));
    // A handshake takes both directions. The kernel has accepted; what follows is held.
    let mut network = link.network.clone();
    let is_open = |network: &Arc<Network>| {
        !network.flow(&from, &to).stalled && !network.flow(&to, &from).stalled
    };
    network.wait_for(is_open).await.map_err(io::Error::other)?;
    let upstream = if is_canary { link.echo } else { link.upstream };
    let up = up.insert(TcpStream::connect(upstream).await?);
    down.set_nodelay(true)?;
    up.set_nodelay(true)?;
    // A canary's bytes do not count.
    let uncounted = AtomicU64::new(0);
    let counted = |bytes| if is_canary { &uncounted } else { bytes };
    counted(&link.counters.connections).fetch_add(1, Ordering::Relaxed);
    let seed = link.seed.wrapping_mul(31).wrapping_add(number);
    let pump = |from: &Party, to: &Party, bytes, seed| Pump {
        from: from.clone(),
        to: to.clone(),
        network: link.network.clone(),
        bytes: counted(bytes),
        losses: &link.counters.losses,
        alarm: link.alarms.alarm(),
        seed,
    };
    let (down_read, down_write) = down.split();
    let (up_read, up_write) = up.split();
    let forward = pump(&from, &to, &link.counters.forward_bytes, seed);
    let backward = pump(&to, &from, &link.counters.backward_bytes, !seed);
    let mut forward = std::pin::pin!(forward.run(down_read, up_write));
    let mut backward = std::pin::pin!(backward.run(up_read, down_write));
    // One direction may be closed while the other goes on; a reset ends both.
    tokio::select! {
        ended = &mut forward => match ended {
            Ended::Reset => Ok(Ended::Reset),
            Ended::Closed => Ok(backward.await),
        },
        ended = &mut backward => match ended {
            Ended::Reset => Ok(Ended::Reset),
            Ended::Closed => Ok(forward.await),
        },
    }
}

#[cfg(test)]
mod tests;
