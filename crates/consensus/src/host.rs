//! All replicas of one node: opening, creating and destroying them, and the node's part in the
//! catalog.
//!
//! Which replicas a node has is what its snapshot files say: a replica is founded by writing a
//! file without a position, and is gone when its last file is. The catalog says which ones it
//! should have; `membership` and `reconcile` below bring the two together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use anchorhold_model::catalog::{CatalogCommand, CatalogOutcome, CatalogState};
use anchorhold_model::{
    Changes, KeyRange, NodeId, ReplicaId, ShardDescriptor, ShardId, ShardState,
};
use anchorhold_proto::peer_v1::peer_server::PeerServer;
use anchorhold_proto::peer_v1::{JoinReply, JoinRequest, PeerEndpoint as KnownPeer};
use anchorhold_storage::snapshot::SnapshotHeader;
use anchorhold_storage::{Batch, DiskState, GroupId, LogWrite, StateError};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::Status;

use crate::catalog_calls::{self, CatalogAnswer};
use crate::error::{CallError, ProposeError};
use crate::fence;
use crate::fitness::{self, Fitness, FitnessReport};
use crate::keys;
use crate::link::{CallKind, MESSAGE_BYTES_MAX, PeerEndpoint, Peers};
use crate::log_watch::WatchedLog;
use crate::machine::damaged;
use crate::membership;
use crate::replica::{NodeParts, Replica};
use crate::seams::BoxFuture;
use crate::snapshot::SnapshotContent;
use crate::stamp::Stamper;
use crate::upkeep;
use crate::wire::{self, WireStoredMembership};
use crate::{ConsensusConfig, Identity, Seams};

/// The catalog's group.
pub(crate) const CATALOG_GROUP: GroupId = GroupId { shard: ShardId::CATALOG.0, incarnation: 1 };
/// The cluster epoch of a cluster that never lost its home region.
pub const FIRST_CLUSTER_EPOCH: u16 = 1;
/// Wait before the preferred first leader founds a group: the others need to hear of it too.
const FOUND_PREFERRED_AFTER: Duration = Duration::from_millis(150);
/// Wait before any other voter founds it in its place.
const FOUND_OTHERS_AFTER: Duration = Duration::from_secs(5);
/// Longest wait for the founding of a cluster.
const FOUND_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for one catalog command of the node itself.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(10);

/// Follows what is applied on this node, to keep derived indexes. Called from the apply path in
/// log order, per shard: must be quick.
pub trait Listener: Send + Sync + 'static {
    /// A replica is open: its records are as `replica.scan_anchors` gives them, and every later
    /// change will be reported.
    fn opened(&self, replica: &Arc<Replica>);
    /// An entry was applied and committed to the state.
    fn applied(&self, shard: ShardId, changes: &Changes);
    /// The records were replaced as a whole (a snapshot was installed): derived state is void.
    fn replaced(&self, replica: &Arc<Replica>);
    /// The replica is gone from this node.
    fn removed(&self, shard: ShardId);
}

/// Answers calls of other nodes' servers.
pub trait CallHandler: Send + Sync + 'static {
    /// Answers one call.
    fn call(&self, from: NodeId, content: Bytes) -> BoxFuture<'static, Bytes>;
}

/// What a host starts with.
#[derive(Clone, Debug)]
pub struct HostStart {
    /// Who this node is.
    pub identity: Identity,
    /// What the catalog should say about this node. A changed address or version is announced.
    pub node: NodeRegistration,
    /// Found the catalog here, with this cluster name, if this node has none yet.
    pub found: Option<String>,
    /// Peer addresses known beside those in the catalog (`host:port`).
    pub peers: Vec<(NodeId, String)>,
    /// Timers and bounds.
    pub config: ConsensusConfig,
}

/// What a node says about itself when it joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRegistration {
    /// Geography.
    pub region: String,
    /// Failure domain.
    pub zone: String,
    /// Where peers reach it (`host:port`).
    pub peer_address: String,
    /// Where clients reach it (`host:port`).
    pub client_address: String,
    /// The binary's version.
    pub version: String,
}

impl NodeRegistration {
    fn command(&self, instance: u128) -> CatalogCommand {
        CatalogCommand::RegisterNode {
            instance,
            region: self.region.clone(),
            zone: self.zone.clone(),
            peer_address: self.peer_address.clone(),
            client_address: self.client_address.clone(),
            version: self.version.clone(),
        }
    }
}

/// The identity of the node that founds a cluster.
pub fn founder(cluster_id: u128, instance: u128) -> Identity {
    Identity {
        cluster_id,
        cluster_epoch: FIRST_CLUSTER_EPOCH,
        node_id: NodeId::new(FIRST_CLUSTER_EPOCH, 1),
        instance,
    }
}

/// All replicas of one node, and its links to the others. Cheap to clone.
#[derive(Clone)]
pub struct Host {
    inner: Arc<Inner>,
}

struct Inner {
    identity: Identity,
    node: NodeRegistration,
    parts: NodeParts,
    calls: Arc<dyn CallHandler>,
    replicas: RwLock<BTreeMap<ShardId, Arc<Replica>>>,
    catalog: Arc<Replica>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Host {
    /// Opens every replica that the disk knows of and starts them. `listener` and `calls` are told
    /// from the first moment on. Serve [`Host::peer_service`] on the peer port right after.
    ///
    /// # Errors
    /// If the state or a snapshot file cannot be read.
    pub async fn start(
        start: HostStart,
        mut seams: Seams,
        listener: Arc<dyn Listener>,
        calls: Arc<dyn CallHandler>,
    ) -> Result<Self, StateError> {
        let peers = Peers::new(
            start.identity.clone(),
            start.node.peer_address.clone(),
            seams.dial.clone(),
            start.config.link_messages_max,
        );
        for (node, address) in &start.peers {
            peers.set_address(*node, address);
        }
        let log = Arc::new(WatchedLog::new(seams.log.clone(), seams.clock.clone()));
        seams.log = log.clone();
        let fitness = Fitness::new(seams.clock.clone(), log, &start.config);
        let parts = NodeParts {
            config: start.config,
            fitness: Arc::new(fitness),
            stamper: Arc::new(Stamper::new(seams.clock.clone())),
            seams,
            peers,
            listener,
            node_bytes: Arc::new(AtomicUsize::new(0)),
            sessions: Arc::default(),
        };
        let catalog = open_catalog(&parts, &start.identity).await?;
        let host = Self {
            inner: Arc::new(Inner {
                identity: start.identity,
                node: start.node,
                calls,
                replicas: RwLock::default(),
                catalog,
                tasks: Mutex::default(),
                parts,
            }),
        };
        host.learn_addresses();
        host.open_known_replicas().await?;
        host.spawn(|host| host.reconcile_forever());
        host.spawn(membership::keep);
        host.spawn(upkeep::keep);
        host.spawn(fitness::keep::ask_others);
        host.spawn(fitness::keep::act);
        host.spawn(fitness::gone::replace_gone);
        host.spawn(move |host| host.found_and_announce(start.found));
        Ok(host)
    }

    fn spawn<F>(&self, task: impl FnOnce(Self) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.inner.tasks.lock().push(tokio::spawn(task(self.clone())));
    }

    /// The gRPC service that other nodes talk to; to be served on the peer port.
    pub fn peer_service(&self) -> PeerServer<PeerEndpoint> {
        PeerServer::new(PeerEndpoint::new(self.clone()))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Who this node is.
    pub fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    /// The catalog as applied here, and its changes.
    ///
    /// # Panics
    /// Never: the catalog's replica always has a catalog.
    pub fn catalog(&self) -> watch::Receiver<Arc<CatalogState>> {
        let sender = self.inner.catalog.shared().catalog.as_ref();
        sender.map(watch::Sender::subscribe).expect("the catalog's replica has a catalog")
    }

    /// This node's replica of a shard.
    pub fn replica(&self, shard: ShardId) -> Option<Arc<Replica>> {
        self.inner.replicas.read().get(&shard).cloned()
    }

    /// All replicas on this node but the catalog's, in shard order.
    pub fn replicas(&self) -> Vec<Arc<Replica>> {
        self.inner.replicas.read().values().cloned().collect()
    }

    /// The catalog's replica on this node.
    pub fn catalog_replica(&self) -> Arc<Replica> {
        self.inner.catalog.clone()
    }

    /// Notes how full this node's disk is; its replicas act on it at once.
    pub fn set_disk_state(&self, disk: DiskState) {
        self.fitness().set_disk(disk);
    }

    /// How this node is.
    pub fn fitness_report(&self) -> FitnessReport {
        self.fitness().report()
    }

    /// Whether a node's disk has room for more replicas, as far as is known here.
    pub fn has_room(&self, node: NodeId) -> bool {
        let disk = if node == self.inner.identity.node_id {
            Some(self.fitness().report().disk)
        } else {
            self.fitness().other(node).map(|other| other.disk)
        };
        disk.is_none_or(|disk| disk == DiskState::Normal)
    }

    pub(crate) fn fitness(&self) -> &Fitness {
        &self.inner.parts.fitness
    }

    pub(crate) fn parts(&self) -> &NodeParts {
        &self.inner.parts
    }

    pub(crate) fn peers(&self) -> &Arc<Peers> {
        &self.inner.parts.peers
    }

    pub(crate) fn replica_of_group(&self, group: GroupId) -> Option<Arc<Replica>> {
        let replica = if group == CATALOG_GROUP {
            self.inner.catalog.clone()
        } else {
            self.replica(ShardId(group.shard))?
        };
        (replica.group() == group).then_some(replica)
    }

    /// Proposes a catalog command, at its leader wherever that is, and waits for the outcome.
    ///
    /// # Errors
    /// [`ProposeError`].
    pub async fn propose_catalog(
        &self,
        command: CatalogCommand,
        timeout: Duration,
    ) -> Result<CatalogOutcome, ProposeError> {
        catalog_calls::propose(self, command, timeout).await
    }

    pub(crate) async fn answer_catalog_call(&self, content: &[u8]) -> Bytes {
        let answer = match wire::decode("a catalog command", content) {
            Ok(command) => catalog_calls::propose_here(self, command, ANNOUNCE_TIMEOUT).await,
            Err(error) => CatalogAnswer::Failed(error.to_string()),
        };
        wire::encode(&answer)
    }

    pub(crate) async fn answer_call(&self, from: NodeId, content: Bytes) -> Bytes {
        self.inner.calls.call(from, content).await
    }

    /// Asks another node's [`CallHandler`].
    ///
    /// # Errors
    /// [`CallError`] if there is no answer in time.
    pub async fn call(
        &self,
        node: NodeId,
        content: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        self.peers().call(node, CallKind::Server, content, timeout).await
    }

    /// Takes a node into the cluster.
    pub(crate) async fn admit(&self, request: JoinRequest) -> Result<JoinReply, Status> {
        let identity = self.identity();
        let cluster_id = Bytes::copy_from_slice(&identity.cluster_id.to_be_bytes());
        if request.cluster_id.as_ref().is_some_and(|expected| *expected != cluster_id) {
            return Err(Status::failed_precondition("this is another cluster"));
        }
        let instance: [u8; 16] = request
            .instance
            .as_ref()
            .try_into()
            .map_err(|_| Status::invalid_argument("instance must be 16 bytes"))?;
        let node = NodeRegistration {
            region: request.region,
            zone: request.zone,
            peer_address: request.peer_address,
            client_address: request.client_address,
            version: request.version,
        };
        // The founder may be asked before it has finished founding, and is to get the first id.
        let mut catalog = self.catalog();
        let founded = catalog.wait_for(|catalog| catalog.nodes.contains_key(&identity.node_id));
        if !matches!(tokio::time::timeout(ANNOUNCE_TIMEOUT, founded).await, Ok(Ok(_))) {
            return Err(Status::unavailable("the cluster is not founded yet"));
        }
        let command = node.command(u128::from_be_bytes(instance));
        let node_id = match self.propose_catalog(command, ANNOUNCE_TIMEOUT).await {
            Ok(CatalogOutcome::NodeRegistered { node_id }) => node_id,
            Ok(CatalogOutcome::Rejected(rejection)) => {
                return Err(Status::failed_precondition(rejection.to_string()));
            }
            Ok(_) => return Err(Status::internal("the catalog answered something else")),
            Err(error) => return Err(Status::unavailable(error.to_string())),
        };
        self.peers().set_address(node_id, &node.peer_address);
        let known = |(id, address): (NodeId, String)| KnownPeer { node_id: id.0, address };
        let own = (identity.node_id, self.inner.node.peer_address.clone());
        let mut peers = self.peers().addresses();
        peers.push(own);
        peers.retain(|(id, _)| *id != node_id);
        Ok(JoinReply {
            cluster_id,
            cluster_epoch: u32::from(identity.cluster_epoch),
            node_id: node_id.0,
            peers: peers.into_iter().map(known).collect(),
        })
    }

    /// Notes where a peer can be reached, beside what the catalog and handshakes say.
    pub fn learn_peer(&self, node: NodeId, address: &str) {
        self.peers().set_address(node, address);
    }

    fn learn_addresses(&self) {
        for node in self.catalog().borrow().nodes.values() {
            self.peers().set_address(node.node_id, &node.peer_address);
        }
    }

    async fn open_known_replicas(&self) -> Result<(), StateError> {
        let snapshots = &self.inner.parts.seams.snapshots;
        for group in snapshots.groups().map_err(damaged)? {
            if group == CATALOG_GROUP {
                continue;
            }
            match own_replica_id(&self.inner.parts, &self.inner.identity, group)? {
                Some(replica_id) => {
                    fence::close_if_forgotten(&self.inner.parts.seams.log, group).await?;
                    self.open(group, replica_id).await?;
                }
                None => {
                    tracing::warn!(shard = group.shard, "a snapshot file names no replica here")
                }
            }
        }
        Ok(())
    }

    async fn open(&self, group: GroupId, replica_id: ReplicaId) -> Result<(), StateError> {
        let replica = Replica::open(&self.inner.parts, group, replica_id).await?;
        self.inner.replicas.write().insert(ShardId(group.shard), replica.clone());
        tokio::spawn(found_if_nobody_did(replica));
        Ok(())
    }

    /// Founds the cluster if that was asked for, then sees to it that the catalog knows this
    /// node's present addresses.
    async fn found_and_announce(self, found: Option<String>) {
        if let Some(name) = found {
            self.found_cluster(name).await;
        }
        loop {
            let known = {
                let catalog = self.catalog();
                let catalog = catalog.borrow();
                let node = catalog.nodes.get(&self.inner.identity.node_id);
                node.map(|node| NodeRegistration {
                    region: node.region.clone(),
                    zone: node.zone.clone(),
                    peer_address: node.peer_address.clone(),
                    client_address: node.client_address.clone(),
                    version: node.version.clone(),
                })
            };
            if known.as_ref() == Some(&self.inner.node) {
                return;
            }
            let command = self.inner.node.command(self.inner.identity.instance);
            match self.propose_catalog(command, ANNOUNCE_TIMEOUT).await {
                Ok(CatalogOutcome::NodeRegistered { node_id }) => {
                    if node_id != self.inner.identity.node_id {
                        self.inner.parts.seams.exit.exit(&format!(
                            "the catalog knows this data directory as {node_id:?}, its identity \
                             file says {:?}; it was copied or restored: start with an empty one",
                            self.inner.identity.node_id
                        ));
                    }
                    return;
                }
                Ok(outcome) => {
                    tracing::error!(?outcome, "the catalog refuses this node");
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "this node could not announce itself, trying again");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
        }
    }

    async fn found_cluster(&self, name: String) {
        let catalog = &self.inner.catalog;
        let identity = &self.inner.identity;
        if catalog.raft().is_initialized().await.unwrap_or(true) {
            return;
        }
        let node = crate::types::PeerNode { node_id: identity.node_id.0 };
        let members = BTreeMap::from([(catalog.replica_id().0, node)]);
        if let Err(error) = catalog.raft().initialize(members).await {
            tracing::error!(%error, "the catalog could not be founded");
            return;
        }
        let command = CatalogCommand::Bootstrap { cluster_id: identity.cluster_id, name };
        match self.propose_catalog(command, FOUND_TIMEOUT).await {
            Ok(CatalogOutcome::Bootstrapped { .. }) => tracing::info!("the cluster is founded"),
            Ok(outcome) => tracing::error!(?outcome, "the cluster could not be founded"),
            Err(error) => tracing::error!(%error, "the cluster could not be founded"),
        }
    }

    async fn reconcile_forever(self) {
        let mut catalog = self.catalog();
        loop {
            self.learn_addresses();
            let wanted = catalog.borrow_and_update().clone();
            if let Err(error) = self.reconcile(&wanted).await {
                self.inner.parts.seams.exit.exit(&format!("a replica cannot be kept: {error}"));
                return;
            }
            if catalog.changed().await.is_err() {
                return;
            }
        }
    }

    /// Destroys replicas of shards that are gone, creates those that should be here.
    async fn reconcile(&self, catalog: &CatalogState) -> Result<(), StateError> {
        for replica in self.replicas() {
            if catalog.removed_shards.contains(&replica.shard_id()) {
                self.destroy(&replica).await?;
            }
        }
        for descriptor in catalog.shards.values() {
            let here = descriptor.replica_on(self.inner.identity.node_id);
            let Some(own) = here else { continue };
            if self.replica(descriptor.shard_id).is_none() {
                self.create(descriptor, own.replica_id).await?;
            }
        }
        Ok(())
    }

    async fn create(
        &self,
        descriptor: &ShardDescriptor,
        replica_id: ReplicaId,
    ) -> Result<(), StateError> {
        let shard_id = descriptor.shard_id;
        let group = GroupId { shard: shard_id.0, incarnation: descriptor.epoch.incarnation };
        write_founding_file(&self.inner.parts, group, Some(ShardState::new(descriptor.clone())))?;
        self.open(group, replica_id).await
    }

    /// Removes a replica for good. Its file goes last: until then a restart does this again.
    async fn destroy(&self, replica: &Arc<Replica>) -> Result<(), StateError> {
        let shard = replica.shard_id();
        tracing::info!(?shard, "removing the replica of a shard that is gone");
        self.inner.replicas.write().remove(&shard);
        replica.stop("the shard is gone").await;
        self.inner.parts.listener.removed(shard);
        self.clear_rows(shard, replica.state().descriptor.range).await?;
        let (done, waiting) = tokio::sync::oneshot::channel();
        let write = LogWrite::Drop { group: replica.group() };
        self.inner.parts.seams.log.submit(write, Box::new(move |result| drop(done.send(result))));
        if let Ok(Err(error)) = waiting.await {
            return Err(damaged(error));
        }
        self.inner.parts.seams.snapshots.remove_group(replica.group()).map_err(damaged)?;
        Ok(())
    }

    /// Removes a replica's rows, off the async threads: a large range takes seconds. The mark of an
    /// unfinished load is durable first, so that whatever a crash leaves of the range is garbage.
    async fn clear_rows(&self, shard: ShardId, range: KeyRange) -> Result<(), StateError> {
        let state = self.inner.parts.seams.state.clone();
        let (done, cleared) = tokio::sync::oneshot::channel();
        let clear = move || {
            state.commit(Batch { rows: vec![(keys::installing(shard), Some(vec![1]))] })?;
            state.checkpoint()?;
            let (start, end) = keys::records(range);
            let rows = state.clear(&start[..]..&end[..])?;
            let marks = vec![(keys::header(shard), None), (keys::installing(shard), None)];
            state.commit(Batch { rows: marks })?;
            state.checkpoint()?;
            Ok(rows)
        };
        let work = Box::new(move || drop(done.send(clear())));
        self.inner.parts.seams.offload.spawn(work).await;
        let rows = cleared.await.map_err(damaged)??;
        tracing::info!(?shard, rows, "the rows of a shard that is gone are removed");
        Ok(())
    }

    /// Stops all replicas: leaders hand over first where another voter is ready, the state is
    /// checkpointed.
    pub async fn shutdown(&self) {
        for task in self.inner.tasks.lock().drain(..) {
            task.abort();
        }
        let mut all = self.replicas();
        all.push(self.catalog_replica());
        for replica in &all {
            membership::hand_over(replica).await;
        }
        let left = all.iter().filter(|replica| replica.is_leader()).count();
        if 0 < left {
            tracing::debug!(left, "some leaderships were not taken over");
        }
        for replica in &all {
            replica.stop("the node is stopping").await;
        }
        let state = self.inner.parts.seams.state.clone();
        let checkpoint = Box::new(move || {
            if let Err(error) = state.checkpoint() {
                tracing::warn!(%error, "no last checkpoint; the log has everything");
            }
        });
        self.inner.parts.seams.offload.spawn(checkpoint).await;
    }
}

/// Founds a group that has no members yet: its preferred first leader does so at once, any other
/// voter if that one does not. Done at every start, because a crash may have come before it.
async fn found_if_nobody_did(replica: Arc<Replica>) {
    let preferred = replica.state().descriptor.replicas.first().map(|first| first.replica_id);
    let is_preferred = preferred == Some(replica.replica_id());
    tokio::time::sleep(if is_preferred { FOUND_PREFERRED_AFTER } else { FOUND_OTHERS_AFTER }).await;
    if replica.fence().is_some() {
        return; // What it knows of the group is lost, not missing.
    }
    if !replica.raft().is_initialized().await.unwrap_or(true) {
        replica.found().await;
    }
}

/// The replica of this node that a group's snapshot file names.
fn own_replica_id(
    parts: &NodeParts,
    identity: &Identity,
    group: GroupId,
) -> Result<Option<ReplicaId>, StateError> {
    let Some(file) = parts.seams.snapshots.latest(group).map_err(damaged)? else { return Ok(None) };
    let content: SnapshotContent =
        wire::decode("a snapshot's header", &file.header.meta).map_err(damaged)?;
    let descriptor = content.shard.map(|shard| shard.descriptor);
    let own = descriptor.and_then(|descriptor| descriptor.replica_on(identity.node_id));
    Ok(own.map(|replica| replica.replica_id))
}

/// Writes the file that makes a group exist on this node.
fn write_founding_file(
    parts: &NodeParts,
    group: GroupId,
    shard: Option<ShardState>,
) -> Result<(), StateError> {
    let content = SnapshotContent { membership: WireStoredMembership::default(), shard };
    let header = SnapshotHeader {
        format: wire::FORMAT_VERSION,
        group,
        position: None,
        meta: wire::encode(&content).to_vec(),
    };
    let writer = parts.seams.snapshots.create(header).map_err(damaged)?;
    writer.finish().map_err(damaged).map(drop)
}

async fn open_catalog(parts: &NodeParts, identity: &Identity) -> Result<Arc<Replica>, StateError> {
    if parts.seams.snapshots.latest(CATALOG_GROUP).map_err(damaged)?.is_none() {
        write_founding_file(parts, CATALOG_GROUP, None)?;
    } else {
        fence::close_if_forgotten(&parts.seams.log, CATALOG_GROUP).await?;
    }
    let replica_id = membership::catalog_replica_id(identity.node_id);
    Replica::open(parts, CATALOG_GROUP, replica_id).await
}
