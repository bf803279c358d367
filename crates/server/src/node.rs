//! Builds a node from its configuration and its seams, serves its ports, stops it.
//!
//! Order at the start: lock the directory, open the stores, bind the ports (so that the addresses
//! are known), find out who this node is (restart, bootstrap or join), start consensus, serve. Order
//! at the end: say NOT_SERVING, let open calls finish, hand leaderships over, checkpoint.

mod cors;
mod ports;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anchorhold_consensus::{
    Clock, Dial, Exit, Host, HostStart, Identity, JoinError, NodeRegistration, Offload, Seams,
    founder, join,
};
use anchorhold_localization::ForestConfig;
use anchorhold_model::NodeId;
use anchorhold_model::catalog::CatalogState;
use anchorhold_storage::fs::FileSystem;
use anchorhold_storage::snapshot::SnapshotStore;
use anchorhold_storage::{LogStore, RenewableState, StateError, StateStore};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::authorize::Access;
use crate::config::{ConfigError, NodeConfig};
use crate::core::{Calls, Core, CoreParts, Place};
use crate::dial_map::DialMap;
use crate::disk::Disk;
use crate::identity::{DataDir, DataDirError};
use crate::index::Indexes;
use crate::listen::{Listen, Listening};
use crate::renew::Renewal;
use crate::scrub::Scrub;

/// Everything that differs between a real node and a simulated one.
#[derive(Clone)]
pub struct NodeSeams {
    /// Connects to peers.
    pub dial: Arc<dyn Dial>,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// Runs blocking work.
    pub offload: Arc<dyn Offload>,
    /// Ends the process.
    pub exit: Arc<dyn Exit>,
    /// Everything random is derived from this, secrets of keys included.
    pub seed: [u8; 32],
    /// Opens the stores in a data directory.
    pub open: Arc<dyn OpenStores>,
    /// Listens to the client and the peer port.
    pub listen: Arc<dyn Listen>,
    /// Bugs and stops on command.
    #[cfg(feature = "chaos")]
    pub hooks: anchorhold_consensus::hooks::Hooks,
}

/// Opens the stores of a node.
pub trait OpenStores: Send + Sync + 'static {
    /// Opens the stores below a data directory in which so many bytes may still be written: what
    /// they set aside ahead stays small beside that.
    ///
    /// # Errors
    /// [`NodeError::Store`] if one of them cannot be used.
    fn open(&self, data_dir: &Path, free_bytes: u64) -> Result<Stores, NodeError>;

    /// The file system that data directories lie on.
    fn file_system(&self) -> Arc<dyn FileSystem>;

    /// Bytes that a data directory takes; what cannot be read does not count.
    fn used_bytes(&self, data_dir: &Path) -> u64;
}

/// What a node keeps on disk.
#[derive(Clone)]
pub struct Stores {
    /// The shared log.
    pub log: Arc<dyn LogStore>,
    /// The applied state.
    pub state: Arc<dyn StateStore>,
    /// What lies below the state, if it can be written anew.
    pub renewable: Option<Arc<RenewableState>>,
    /// Snapshot files.
    pub snapshots: Arc<SnapshotStore>,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A setting is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A store cannot be used.
    #[error("the {store} in the data directory cannot be used: {reason}")]
    Store {
        /// Which.
        store: &'static str,
        /// Why.
        reason: String,
    },
    /// A port cannot be listened to.
    #[error("{setting}: cannot listen to {address}")]
    Listen {
        /// The setting.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The node belongs to no cluster and was not told to found or join one.
    #[error(
        "{data_dir} belongs to no cluster yet: start with `bootstrap` to found one, or with `join` \
         to enter one"
    )]
    Homeless {
        /// The data directory.
        data_dir: String,
    },
    /// No member took the node in.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The replicas could not be opened.
    #[error("the replicas could not be opened")]
    Replicas(#[from] StateError),
}

/// Where a node listens, with the ports that were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// For clients.
    pub client: SocketAddr,
    /// For other nodes.
    pub peer: SocketAddr,
    /// For metrics and probes.
    pub http: Option<SocketAddr>,
}

/// A running node.
pub struct Node {
    core: Arc<Core>,
    addresses: Addresses,
    /// Set once to stop the ports.
    stop: watch::Sender<bool>,
    ports: Mutex<Vec<JoinHandle<()>>>,
    /// The peer port, and what runs in the background.
    upkeep: Mutex<Vec<JoinHandle<()>>>,
    /// Unlocks the directory last.
    _data_dir: Arc<DataDir>,
}

/// How long open calls may take to finish when the node stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a joining node keeps asking: the members may be starting too.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Time between two rounds of asking.
const JOIN_PAUSE: Duration = Duration::from_millis(500);

/// The ports of a node, bound and not yet served.
struct Bound {
    client: Listening,
    peer: Listening,
    http: Option<TcpListener>,
}

impl Node {
    /// Starts a node and serves its ports.
    ///
    /// # Errors
    /// [`NodeError`]; nothing runs then.
    pub async fn build(config: NodeConfig, seams: NodeSeams) -> Result<Self, NodeError> {
        config.validate()?;
        let seams = seams.with_peer_dial(&config);
        let mut random = StdRng::from_seed(seams.seed);
        let data_dir = Arc::new(DataDir::open(&config.data_dir)?);
        let (disk, stores) = open_stores(&config, &seams).await?;
        let bound = bind(&config, &*seams.listen).await?;
        let addresses = bound.addresses(&config)?;
        let registration = registration(&config, &addresses);
        let consensus_seams = seams.consensus(&stores, random.random());
        let (snapshots, exit) = (Arc::clone(&stores.snapshots), Arc::clone(&seams.exit));
        let (identity, peers) =
            identify(&config, &data_dir, &registration, &consensus_seams, &mut random).await?;
        let forests = ForestConfig::default();
        let indexes = Arc::new(Indexes::new(Arc::clone(&seams.offload), forests));
        let calls = Calls::default();
        let start = HostStart {
            identity: identity.clone(),
            node: registration,
            found: config.bootstrap.clone(),
            peers,
            config: config.consensus.clone(),
        };
        let listener = Arc::clone(&indexes) as Arc<dyn anchorhold_consensus::Listener>;
        let host = Host::start(start, consensus_seams, listener, Arc::new(calls.clone())).await?;
        disk.tell(&host);
        let core = Arc::new(Core::new(CoreParts {
            host,
            indexes,
            access: Access::new(config.admin_key.digest()?),
            clock: seams.clock,
            offload: seams.offload,
            log: stores.log,
            state: stores.state,
            limits: config.limits.clone(),
            placement: config.placement.clone(),
            place: Place {
                node: identity.node_id,
                region: config.region.clone(),
                zone: config.zone.clone(),
            },
            disk: Arc::clone(&disk),
            random,
        }));
        calls.set_core(&core);
        let (stop, stopping) = watch::channel(false);
        let Bound { client, peer, http } = bound;
        let ports = ports::serve(&core, client, http, &config, &stopping);
        let scrub = Scrub::new(Arc::clone(&core), snapshots, Arc::clone(&exit), &config.disk);
        let mut upkeep = start_upkeep(&core, peer, &data_dir, disk, scrub);
        upkeep.extend(stores.renewable.map(|state| {
            tokio::spawn(Renewal::new(Arc::clone(&core), state, exit, config.disk.clone()).run())
        }));
        tracing::info!(
            node = %identity.node_id,
            client = %addresses.client,
            peer = %addresses.peer,
            version = crate::VERSION,
            "this node serves"
        );
        Ok(Self {
            core,
            addresses,
            stop,
            ports: Mutex::new(ports),
            upkeep: Mutex::new(upkeep),
            _data_dir: data_dir,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Its id.
    pub fn id(&self) -> NodeId {
        self.core.place.node
    }

    /// What its services share.
    pub fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Stops it: no new calls, open ones finish, leaderships are handed over, the state is
    /// checkpointed.
    pub async fn shutdown(self) {
        tracing::info!("this node stops");
        self.stop.send_replace(true);
        let ports = std::mem::take(&mut *self.ports.lock());
        for port in ports {
            let abort = port.abort_handle();
            if tokio::time::timeout(DRAIN_TIMEOUT, port).await.is_err() {
                abort.abort();
            }
        }
        // Until here open calls and hand-overs still need the other nodes.
        self.core.host.shutdown().await;
        let upkeep = std::mem::take(&mut *self.upkeep.lock());
        for task in upkeep {
            task.abort();
            // Ends as aborted.
            let _ = task.await;
        }
    }
}

impl NodeSeams {
    fn with_peer_dial(mut self, config: &NodeConfig) -> Self {
        if !config.peer_dial.is_empty() {
            self.dial = Arc::new(DialMap { inner: self.dial, addresses: config.peer_dial.clone() });
        }
        self
    }

    fn consensus(&self, stores: &Stores, seed: u64) -> Seams {
        Seams {
            dial: Arc::clone(&self.dial),
            clock: Arc::clone(&self.clock),
            seed,
            offload: Arc::clone(&self.offload),
            log: Arc::clone(&stores.log),
            state: Arc::clone(&stores.state),
            snapshots: Arc::clone(&stores.snapshots),
            exit: Arc::clone(&self.exit),
            #[cfg(feature = "chaos")]
            hooks: self.hooks.clone(),
        }
    }
}

impl Bound {
    fn addresses(&self, config: &NodeConfig) -> Result<Addresses, NodeError> {
        let local = |listener: &TcpListener, address| {
            let setting = "http_address";
            listener.local_addr().map_err(|source| NodeError::Listen { setting, address, source })
        };
        let http = self.http.as_ref().zip(config.http_address);
        Ok(Addresses {
            client: self.client.address,
            peer: self.peer.address,
            http: http.map(|(bound, address)| local(bound, address)).transpose()?,
        })
    }
}

async fn bind(config: &NodeConfig, listen: &dyn Listen) -> Result<Bound, NodeError> {
    let bind = |setting, address| async move {
        let bound = listen.listen(address).await;
        bound.map_err(|source| NodeError::Listen { setting, address, source })
    };
    let bind_http = |address| async move {
        let bound = TcpListener::bind(address).await;
        bound.map_err(|source| NodeError::Listen { setting: "http_address", address, source })
    };
    Ok(Bound {
        client: bind("client_address", config.client_address).await?,
        peer: bind("peer_address", config.peer_address).await?,
        http: match config.http_address {
            Some(address) => Some(bind_http(address).await?),
            None => None,
        },
    })
}

/// Starts the peer port and what runs in the background.
fn start_upkeep(
    core: &Arc<Core>,
    peer: Listening,
    data_dir: &Arc<DataDir>,
    disk: Arc<Disk>,
    scrub: Scrub,
) -> Vec<JoinHandle<()>> {
    let (catalog, offload) = (core.host.catalog(), Arc::clone(&core.offload));
    vec![
        tokio::spawn(ports::serve_peers(Arc::clone(core), peer)),
        tokio::spawn(Arc::clone(core).follow_catalog()),
        tokio::spawn(Arc::clone(core).confirm_catalog_first()),
        tokio::spawn(remember_peers(catalog, Arc::downgrade(data_dir), offload)),
        tokio::spawn(Arc::clone(core).sweep_forever()),
        tokio::spawn(Arc::clone(core).settle_merges_forever()),
        tokio::spawn(Arc::clone(core).schedule_forever()),
        tokio::spawn(scrub.run()),
        tokio::spawn(disk.watch(core.host.clone(), Arc::clone(&core.offload))),
    ]
}

/// Opens the stores, once there is room for that.
async fn open_stores(
    config: &NodeConfig,
    seams: &NodeSeams,
) -> Result<(Arc<Disk>, Stores), NodeError> {
    let disk = Disk::new(Arc::clone(&seams.open), &config.data_dir, config.disk.clone());
    disk.prepare().await;
    let stores = seams.open.open(&config.data_dir, disk.free())?;
    Ok((Arc::new(disk), stores))
}

fn registration(config: &NodeConfig, addresses: &Addresses) -> NodeRegistration {
    let peer = config.peer_advertised.clone();
    let client = config.client_advertised.clone();
    NodeRegistration {
        region: config.region.clone(),
        zone: config.zone.clone(),
        peer_address: peer.unwrap_or_else(|| addresses.peer.to_string()),
        client_address: client.unwrap_or_else(|| addresses.client.to_string()),
        version: crate::VERSION.to_owned(),
    }
}

/// Who this node is: as its directory says; else the founder of a new cluster, or a new member of
/// one. Also the peers that it was told of.
async fn identify(
    config: &NodeConfig,
    data_dir: &DataDir,
    registration: &NodeRegistration,
    seams: &Seams,
    random: &mut StdRng,
) -> Result<(Identity, Vec<(NodeId, String)>), NodeError> {
    if let Some(identity) = data_dir.identity()? {
        return Ok((identity, data_dir.peers()));
    }
    let instance = data_dir.instance(random.random())?;
    let (identity, peers) = if config.bootstrap.is_some() {
        (founder(random.random(), instance), Vec::new())
    } else if config.join.is_empty() {
        return Err(NodeError::Homeless { data_dir: config.data_dir.display().to_string() });
    } else {
        let joined = join_cluster(config, instance, registration, seams).await?;
        if let Some(former) = former_at(&joined.1, joined.0.node_id, &registration.peer_address) {
            tracing::warn!(
                "this data directory was empty, and the cluster knows node {former} at this \
                 address: this is a new node, {}, and what {former} held is built again from its \
                 other replicas. If {former}'s directory still exists, stop this node, start that \
                 one instead, and decommission {}",
                joined.0.node_id,
                joined.0.node_id
            );
        }
        joined
    };
    data_dir.set_identity(&identity)?;
    Ok((identity, peers))
}

/// The last node that had this one's address: this one took its place without what it held.
fn former_at(peers: &[(NodeId, String)], own: NodeId, address: &str) -> Option<NodeId> {
    let there = peers.iter().filter(|(node, known)| *node != own && known == address);
    there.map(|(node, _)| *node).max()
}

/// Keeps the addresses of the catalog's nodes on disk too. The catalog itself may have to be rebuilt
/// from the log, which takes a leader, which takes knowing where the others are.
async fn remember_peers(
    mut catalog: watch::Receiver<Arc<CatalogState>>,
    data_dir: Weak<DataDir>,
    offload: Arc<dyn Offload>,
) {
    let mut written = Vec::new();
    loop {
        let peers: Vec<(NodeId, String)> = {
            let state = catalog.borrow_and_update();
            state.nodes.values().map(|node| (node.node_id, node.peer_address.clone())).collect()
        };
        if !peers.is_empty() && peers != written {
            let Some(data_dir) = data_dir.upgrade() else { return };
            let hints = peers.clone();
            let (done, result) = oneshot::channel();
            offload.spawn(Box::new(move || drop(done.send(data_dir.set_peers(&hints))))).await;
            match result.await {
                Ok(Ok(())) => written = peers,
                Ok(Err(error)) => tracing::warn!(%error, "the other nodes' addresses are not kept"),
                Err(_) => return,
            }
        }
        if catalog.changed().await.is_err() {
            return;
        }
    }
}

async fn join_cluster(
    config: &NodeConfig,
    instance: u128,
    registration: &NodeRegistration,
    seams: &Seams,
) -> Result<(Identity, Vec<(NodeId, String)>), NodeError> {
    let begun = seams.clock.monotonic();
    loop {
        match join(&config.join, instance, registration, seams).await {
            Ok(member) => return Ok(member),
            Err(error) if JOIN_TIMEOUT < seams.clock.monotonic().saturating_sub(begun) => {
                return Err(error.into());
            }
            Err(error) => {
                tracing::warn!(%error, "trying again");
                tokio::time::sleep(JOIN_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_with_an_empty_directory_learns_whose_place_it_took() {
        let peers = [(1, "a:1"), (2, "b:1"), (4, "b:1"), (5, "c:1"), (6, "b:1")];
        let peers = peers.map(|(node, address)| (NodeId(node), address.to_owned()));
        assert_eq!(former_at(&peers, NodeId(6), "b:1"), Some(NodeId(4)));
        assert_eq!(former_at(&peers, NodeId(5), "c:1"), None, "its own registration");
    }
}
