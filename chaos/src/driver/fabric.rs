//! What lies between the nodes: proxies, or a network of packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::NodeHandle;
use super::namespaces::{self, Namespaces};
use crate::network::{Network, Party};
use crate::proxy::{LinkCounters, LinkId, Mesh, Probe};
use crate::scenario::FaultKind;

/// How nodes are run, and what can therefore be done to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DriverKind {
    /// Processes on loopback, a proxy on every link.
    #[default]
    Process,
    /// Processes in network namespaces, packets dropped on a bridge between them.
    Namespaces,
}

impl DriverKind {
    /// As commands and reports write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Namespaces => "netns",
        }
    }

    /// Why it cannot do a fault; `None` if it can.
    pub fn cannot(self, kind: FaultKind) -> Option<&'static str> {
        match self {
            Self::Process => None,
            Self::Namespaces => namespaces::cannot(kind),
        }
    }

    /// Why it cannot keep a topology's latencies; `None` if it can.
    pub fn cannot_delay(self) -> Option<&'static str> {
        // A slow link is what a distant one is.
        self.cannot(FaultKind::Slow)
    }
}

/// The links of a running cluster.
pub enum Fabric {
    /// A proxy on each.
    Proxies(Box<Mesh>),
    /// One bridge.
    Packets(Packets),
}

/// A bridge with all nodes on it.
pub struct Packets {
    pub(super) namespaces: Namespaces,
    links: BTreeMap<LinkId, SocketAddr>,
}

impl Packets {
    pub(super) fn new(namespaces: Namespaces, nodes: &[NodeHandle]) -> Self {
        let mut links = BTreeMap::new();
        for to in nodes {
            let id = |from| LinkId { from, to: to.name.clone() };
            links.insert(id(Party::Clients), to.client_address);
            for from in nodes.iter().filter(|from| from.name != to.name) {
                links.insert(id(Party::node(&from.name)), to.peer_address);
            }
        }
        Self { namespaces, links }
    }
}

impl Fabric {
    /// Where a party connects to in order to reach a node.
    pub fn address(&self, from: &Party, to: &str) -> Option<SocketAddr> {
        match self {
            Self::Proxies(mesh) => mesh.address(from, to),
            Self::Packets(packets) => {
                packets.links.get(&LinkId { from: from.clone(), to: to.to_owned() }).copied()
            }
        }
    }

    /// All links.
    pub fn links(&self) -> Vec<LinkId> {
        match self {
            Self::Proxies(mesh) => mesh.links().cloned().collect(),
            Self::Packets(packets) => packets.links.keys().cloned().collect(),
        }
    }

    /// What went through a link's proxy so far.
    pub fn counters(&self, link: &LinkId) -> Option<&LinkCounters> {
        match self {
            Self::Proxies(mesh) => mesh.counters(link),
            Self::Packets(_) => None,
        }
    }

    /// All links are like this from now on.
    ///
    /// # Errors
    /// If the kernel refuses the rules.
    pub fn set(&self, network: Network) -> anyhow::Result<()> {
        match self {
            Self::Proxies(mesh) => {
                mesh.set(network);
                Ok(())
            }
            Self::Packets(packets) => packets.namespaces.set(network),
        }
    }

    /// What all links are like now.
    pub fn network(&self) -> Arc<Network> {
        match self {
            Self::Proxies(mesh) => mesh.network(),
            Self::Packets(packets) => packets.namespaces.network(),
        }
    }

    /// Closes all connections of some links with a TCP reset, where there are proxies to do it.
    pub fn reset(&self, links: BTreeSet<LinkId>) {
        if let Self::Proxies(mesh) = self {
            mesh.reset(links);
        }
    }

    /// Sends a token over each of some links, where there are proxies that know one.
    pub async fn probe(&self, links: &[LinkId], wait: Duration) -> BTreeMap<LinkId, Probe> {
        match self {
            Self::Proxies(mesh) => mesh.probe(links, wait).await,
            Self::Packets(_) => BTreeMap::new(),
        }
    }

    /// Packets that were dropped from one party to another since the network was last set; `None`
    /// where there are no packets.
    ///
    /// # Errors
    /// If nftables do not answer.
    pub fn dropped(&self) -> anyhow::Result<Option<BTreeMap<(Party, Party), u64>>> {
        match self {
            Self::Proxies(_) => Ok(None),
            Self::Packets(packets) => packets.namespaces.dropped().map(Some),
        }
    }
}
