//! What every request of one node shares.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use anchorhold_consensus::seams::BoxFuture;
use anchorhold_consensus::{CallHandler, Clock, Host, Offload};
use anchorhold_model::catalog::CatalogState;
use anchorhold_model::{NodeId, ShardId, Timestamp};
use anchorhold_storage::{LogStore, StateStore};
use bytes::Bytes;
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::sync::watch;

use crate::authorize::Access;
use crate::catalog_view::CatalogView;
use crate::clock::Deadline;
use crate::config::{Limits, PlacementSettings};
use crate::disk::Disk;
use crate::index::Indexes;
use crate::load::LoadMeter;
use crate::report::{KnownReports, Ledger};
use crate::request::{self, NodeReply, NodeRequest, ShardError};
use crate::route::Routes;
use crate::scheduler::ShardPast;
use crate::scheduler::operate::Steps;

/// The node as its services see it.
pub struct Core {
    /// Replicas, catalog and links to the other nodes.
    pub host: Host,
    /// Derived indexes of the replicas here.
    pub indexes: Arc<Indexes>,
    /// Where the shards are.
    pub routes: Routes,
    /// What keys are checked against beside the catalog.
    pub access: Access,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// Runs blocking work.
    pub offload: Arc<dyn Offload>,
    /// The shared log, for its figures.
    pub log: Arc<dyn LogStore>,
    /// The applied state, for its figures.
    pub state: Arc<dyn StateStore>,
    /// Bounds of what clients may ask.
    pub limits: Limits,
    /// Where the node stands.
    pub place: Place,
    /// Wall-clock time when the process started.
    pub started: Timestamp,
    /// The data directory's disk.
    pub disk: Arc<Disk>,
    /// What the last round of scrubbing found damaged, for people.
    pub damage: Mutex<Vec<String>>,
    pub(crate) catalog_view: CatalogView,
    /// Timers and limits of moving replicas and leaders.
    pub placement: PlacementSettings,
    /// How often the shards here are asked.
    pub load: LoadMeter,
    pub(crate) steps: Steps,
    /// What this node has seen of the shards since it leads the catalog; empty if it does not.
    pub(crate) seen: Mutex<BTreeMap<ShardId, ShardPast>>,
    /// What this node has said of itself.
    pub(crate) ledger: Mutex<Ledger>,
    /// What the others have said of themselves.
    pub(crate) known_reports: KnownReports,
    /// Calls of clients that are worked on.
    pub open_calls: AtomicUsize,
    catalog: watch::Receiver<Arc<CatalogState>>,
    random: Mutex<StdRng>,
}

/// Where a node stands.
#[derive(Clone, Debug)]
pub struct Place {
    /// The node.
    pub node: NodeId,
    /// Its region.
    pub region: String,
    /// Its zone.
    pub zone: String,
}

/// What [`Core::new`] is made of.
pub struct CoreParts {
    /// See [`Core::host`].
    pub host: Host,
    /// See [`Core::indexes`].
    pub indexes: Arc<Indexes>,
    /// See [`Core::access`].
    pub access: Access,
    /// See [`Core::clock`].
    pub clock: Arc<dyn Clock>,
    /// See [`Core::offload`].
    pub offload: Arc<dyn Offload>,
    /// See [`Core::log`].
    pub log: Arc<dyn LogStore>,
    /// See [`Core::state`].
    pub state: Arc<dyn StateStore>,
    /// See [`Core::limits`].
    pub limits: Limits,
    /// See [`Core::place`].
    pub place: Place,
    /// See [`Core::placement`].
    pub placement: PlacementSettings,
    /// See [`Core::disk`].
    pub disk: Arc<Disk>,
    /// Request ids of clients that send none, and secrets, come from this.
    pub random: StdRng,
}

impl Core {
    /// A node's core; its routes and keys are those of the catalog as applied here.
    pub fn new(mut parts: CoreParts) -> Self {
        let core = Self {
            catalog: parts.host.catalog(),
            host: parts.host,
            indexes: parts.indexes,
            routes: Routes::default(),
            access: parts.access,
            started: parts.clock.wall(),
            clock: parts.clock,
            offload: parts.offload,
            log: parts.log,
            state: parts.state,
            limits: parts.limits,
            place: parts.place,
            disk: parts.disk,
            damage: Mutex::default(),
            catalog_view: CatalogView::default(),
            placement: parts.placement,
            load: LoadMeter::default(),
            steps: Steps::default(),
            seen: Mutex::default(),
            ledger: Mutex::new(Ledger::new(parts.random.random())),
            known_reports: KnownReports::default(),
            open_calls: AtomicUsize::default(),
            random: Mutex::new(parts.random),
        };
        let catalog = core.catalog();
        core.take_catalog(&catalog);
        core
    }

    /// The catalog as applied here.
    pub fn catalog(&self) -> Arc<CatalogState> {
        Arc::clone(&self.catalog.borrow())
    }

    /// A random number.
    pub fn random<T>(&self) -> T
    where
        rand::distr::StandardUniform: rand::distr::Distribution<T>,
    {
        self.random.lock().random()
    }

    /// A deadline from now.
    pub fn deadline(&self, budget: Duration) -> Deadline {
        Deadline::after(&self.clock, budget)
    }

    /// Follows the catalog until the host is gone.
    pub async fn follow_catalog(self: Arc<Self>) {
        let mut catalog = self.host.catalog();
        while catalog.changed().await.is_ok() {
            let state = Arc::clone(&catalog.borrow_and_update());
            self.take_catalog(&state);
        }
    }

    fn take_catalog(&self, catalog: &CatalogState) {
        self.routes.set_catalog(catalog.shards.values().cloned(), &catalog.removed_shards);
    }
}

/// Answers other nodes. Made before the core, because the host needs it at its start.
#[derive(Clone, Default)]
pub struct Calls {
    /// Not owned: the core owns the host, which owns this.
    core: Arc<OnceLock<Weak<Core>>>,
}

impl Calls {
    /// From now on calls are answered.
    pub fn set_core(&self, core: &Arc<Core>) {
        // Set once, by the node that made it.
        let _ = self.core.set(Arc::downgrade(core));
    }

    async fn answer(self, content: Bytes) -> Bytes {
        let core = self.core.get().and_then(Weak::upgrade);
        let reply = match (core, request::decode::<NodeRequest>(&content)) {
            (None, _) => NodeReply::Shard(Err(ShardError::NoReplica)),
            (_, Err(error)) => {
                let reason = error.to_string();
                NodeReply::Shard(Err(ShardError::Misunderstood { reason }))
            }
            (Some(core), Ok(NodeRequest::Status { known })) => {
                NodeReply::Status(Box::new(core.report_since(known)))
            }
            (Some(core), Ok(NodeRequest::ReleaseBallast)) => {
                NodeReply::BallastReleased(core.release_ballast())
            }
            (Some(core), Ok(NodeRequest::Operate { shard, number })) => {
                NodeReply::Operated(core.operate(shard, number))
            }
            (
                Some(core),
                Ok(NodeRequest::Digest { shard, index, patience_ms, bytes_per_second }),
            ) => {
                let patience = Duration::from_millis(patience_ms);
                NodeReply::Digested(
                    core.digest(shard, Some(index), patience, bytes_per_second).await,
                )
            }
            (Some(core), Ok(NodeRequest::Shard(call))) => {
                let deadline = core.deadline(Duration::from_millis(call.budget_ms));
                NodeReply::Shard(core.serve(*call, &deadline).await)
            }
        };
        request::encode(&reply).unwrap_or_default()
    }
}

impl CallHandler for Calls {
    fn call(&self, _from: NodeId, content: Bytes) -> BoxFuture<'static, Bytes> {
        Box::pin(self.clone().answer(content))
    }
}
