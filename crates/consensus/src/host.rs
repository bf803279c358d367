//! All replicas of one node, and the node's part in the catalog.
//!
//! Which replicas there are, how they come and go: `replicas`; which may be open at once: `opening`.

mod opening;
mod replicas;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use anchorhold_model::catalog::{CatalogCommand, CatalogOutcome, CatalogState};
use anchorhold_model::{Changes, KeyRange, NodeId, ReplicaId, ShardDescriptor, ShardId};
use anchorhold_proto::peer_v1::peer_server::PeerServer;
use anchorhold_proto::peer_v1::{JoinReply, JoinRequest, PeerEndpoint as KnownPeer};
use anchorhold_storage::{DiskState, GroupId, StateError};
use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::Status;

use crate::birth::Births;
use crate::catalog_calls::{self, CatalogAnswer};
use crate::error::{CallError, ProposeError};
use crate::fence;
use crate::fitness::{self, Fitness, FitnessReport};
use crate::link::{CallKind, MESSAGE_BYTES_MAX, PeerEndpoint, Peers};
use crate::log_watch::WatchedLog;
use crate::machine::damaged;
use crate::members::MemberCall;
use crate::membership;
use crate::merge::{self, Merges};
use crate::pace::Pace;
use crate::quiescence;
use crate::renewal::{self, Told};
use crate::replica::{NodeParts, Replica, Standing};
use crate::seams::BoxFuture;
use crate::shard_index;
use crate::shard_upkeep;
use crate::stamp::Stamper;
use crate::upkeep;
use crate::wire;
use crate::{ConsensusConfig, Identity, Seams};

/// The catalog's group.
pub(crate) const CATALOG_GROUP: GroupId = GroupId { shard: ShardId::CATALOG.0, incarnation: 1 };
/// The cluster epoch of a cluster that never lost its home region.
pub const FIRST_CLUSTER_EPOCH: u16 = 1;
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

/// A replica that a node has and cannot open: what it rests on is damaged.
#[derive(Clone, Debug)]
pub struct BrokenReplica {
    /// The replica.
    pub replica_id: ReplicaId,
    /// Its shard, as last known.
    pub descriptor: ShardDescriptor,
    /// Why.
    pub reason: String,
    /// Keys whose rows may be its own: more than the shard's if it was being replaced.
    pub(crate) held: KeyRange,
}

struct Inner {
    identity: Identity,
    node: NodeRegistration,
    parts: NodeParts,
    calls: Arc<dyn CallHandler>,
    replicas: RwLock<BTreeMap<ShardId, Arc<Replica>>>,
    catalog: ArcSwap<Replica>,
    /// What nodes have said of their replicas of the catalog.
    told: Told,
    /// Replicas with a file whose range an open one still owns a part of.
    waiting: Mutex<BTreeSet<GroupId>>,
    /// Replicas that cannot be opened, until their shards replace them.
    broken: Mutex<BTreeMap<ShardId, BrokenReplica>>,
    /// What destroyed replicas owned, while their rows are being removed.
    clearing: Mutex<BTreeMap<ShardId, KeyRange>>,
    /// Held while a replica is opened: its range is judged and taken in one step.
    opening: tokio::sync::Mutex<()>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    /// Held while replicas come or go.
    changing: tokio::sync::Mutex<()>,
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
            snapshot_pace: Arc::new(Pace::new(start.config.snapshot_bytes_per_second_max)),
            config: start.config,
            fitness: Arc::new(fitness),
            stamper: Arc::new(Stamper::new(seams.clock.clone())),
            seams,
            peers,
            listener,
            node_bytes: Arc::new(AtomicUsize::new(0)),
            sessions: Arc::default(),
            births: Arc::default(),
            merges: Arc::default(),
            catalog: Arc::default(),
        };
        parts.births.load(&*parts.seams.state)?;
        parts.merges.load(&*parts.seams.state)?;
        let catalog = open_catalog(&parts, &start.identity).await?;
        let host = Self {
            inner: Arc::new(Inner {
                identity: start.identity,
                node: start.node,
                calls,
                replicas: RwLock::default(),
                catalog: ArcSwap::new(catalog),
                told: Told::default(),
                waiting: Mutex::default(),
                broken: Mutex::default(),
                clearing: Mutex::default(),
                opening: tokio::sync::Mutex::default(),
                tasks: Mutex::default(),
                changing: tokio::sync::Mutex::default(),
                parts,
            }),
        };
        host.learn_addresses();
        host.open_known_replicas().await?;
        // Only now: a source that is not open yet is not missing.
        host.spawn(merge::keep);
        host.parts().seams.log.unknown_groups_are_noted();
        host.spawn(|host| host.reconcile_forever());
        host.spawn(membership::keep);
        host.spawn(renewal::keep);
        host.spawn(upkeep::keep);
        host.spawn(fitness::keep::ask_others);
        host.spawn(fitness::keep::act);
        host.spawn(fitness::gone::replace_gone);
        host.spawn(quiescence::keep);
        host.spawn(shard_upkeep::keep);
        host.spawn(|host| host.open_forever());
        host.spawn(shard_index::keep);
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
    pub fn catalog(&self) -> watch::Receiver<Arc<CatalogState>> {
        self.inner.parts.catalog.subscribe()
    }

    /// This node's replica of a shard.
    pub fn replica(&self, shard: ShardId) -> Option<Arc<Replica>> {
        self.inner.replicas.read().get(&shard).cloned()
    }

    /// All replicas on this node but the catalog's, in shard order.
    pub fn replicas(&self) -> Vec<Arc<Replica>> {
        self.inner.replicas.read().values().cloned().collect()
    }

    /// What the replicas here say of their shards, those included that a split has made and that are
    /// not open yet: with the side that a parent kept the other side is always there too.
    pub fn descriptors(&self) -> Vec<ShardDescriptor> {
        let mut descriptors: Vec<_> =
            self.replicas().iter().map(|replica| replica.state().descriptor.clone()).collect();
        // Read last: a birth is noted before its parent's range shrinks.
        for birth in self.births().all() {
            if descriptors.iter().all(|known| known.shard_id != birth.child.shard_id) {
                descriptors.push(birth.child);
            }
        }
        descriptors
    }

    /// The catalog's replica on this node.
    pub fn catalog_replica(&self) -> Arc<Replica> {
        self.inner.catalog.load_full()
    }

    pub(crate) fn set_catalog(&self, replica: Arc<Replica>) {
        self.inner.catalog.store(replica);
    }

    pub(crate) fn told(&self) -> &Told {
        &self.inner.told
    }

    /// Notes how full this node's disk is, and how many bytes it may write before it is full; its
    /// replicas act on it at once.
    pub fn set_disk_state(&self, disk: DiskState, spare_bytes: u64) {
        self.fitness().set_disk(disk, spare_bytes);
    }

    /// How this node is.
    pub fn fitness_report(&self) -> FitnessReport {
        self.fitness().report()
    }

    /// Whether another node is heard, and says that it may lead.
    pub fn may_lead(&self, node: NodeId) -> bool {
        self.fitness().other(node).is_some_and(|other| other.is_fit)
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

    pub(crate) fn births(&self) -> &Births {
        &self.inner.parts.births
    }

    pub(crate) fn merges(&self) -> &Merges {
        &self.inner.parts.merges
    }

    pub(crate) fn parts(&self) -> &NodeParts {
        &self.inner.parts
    }

    pub(crate) fn peers(&self) -> &Arc<Peers> {
        &self.inner.parts.peers
    }

    pub(crate) fn replica_of_group(&self, group: GroupId) -> Option<Arc<Replica>> {
        let replica = if group == CATALOG_GROUP {
            self.catalog_replica()
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

    pub(crate) async fn answer_member_call(&self, from: NodeId, content: &[u8]) -> Bytes {
        let answer: Result<(), String> = match wire::decode("a member call", content) {
            Ok(MemberCall::Create { descriptor, replica_id }) => {
                self.create_replica(&descriptor, replica_id).await
            }
            Ok(MemberCall::Removed { descriptor }) => self.remove_replica(&descriptor).await,
            Ok(MemberCall::CatalogStands { replica_id, is_lost }) => {
                self.note_catalog_stand(from, replica_id, is_lost)
            }
            Err(error) => Err(error.to_string()),
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
        let catalog = self.catalog_replica();
        let identity = &self.inner.identity;
        if !renewal::may_found(&catalog) || catalog.fence().is_some() {
            return; // What it knows of the cluster is lost, not missing.
        }
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

async fn open_catalog(parts: &NodeParts, identity: &Identity) -> Result<Arc<Replica>, StateError> {
    if parts.seams.snapshots.latest(CATALOG_GROUP).map_err(damaged)?.is_none() {
        replicas::write_founding_file(parts, CATALOG_GROUP, None)?;
    } else {
        fence::close_if_forgotten(&parts.seams.log, CATALOG_GROUP).await?;
    }
    let seams = &parts.seams;
    let member = Standing::read(parts, CATALOG_GROUP)?.catalog_member(identity.node_id);
    let replica_id =
        renewal::settled_id(&seams.log, &seams.snapshots, identity.node_id, member).await?;
    Replica::open(parts, CATALOG_GROUP, replica_id, false).await
}
