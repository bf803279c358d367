//! A cluster of hosts in this process.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anchorhold_consensus::seams::BoxFuture;
use anchorhold_consensus::{
    CallHandler, Clock, ConsensusConfig, Exit, Host, HostStart, Identity, Listener,
    NodeRegistration, Offload, ProposeError, Replica, Seams, founder, join,
};
use anchorhold_geometry::{GeoPoint, Orientation};
use anchorhold_model::catalog::{ApiKey, CatalogCommand, CatalogOutcome, DEFAULT_CLASS};
use anchorhold_model::{
    AccountNumber, Accuracy, Anchor, AnchorId, Changes, Command, Key, NodeId, OperationId, Outcome,
    Pose, RequestId, ShardId, Timestamp, Version, Write,
};
use anchorhold_storage::fs::MemoryFs;
use anchorhold_storage::snapshot::SnapshotStore;
use anchorhold_storage::{
    Batch, Completion, LogConfig, LogLayer, LogStore, LogWrite, MemoryLog, MemoryState,
    SegmentedLog, SledConfig, SledState, StateError, StateLayer, StateStore,
};
use bytes::Bytes;
use tokio::runtime::Runtime;
use tonic::transport::Server;

use crate::wires::{WireDial, Wires};

/// Longest wait for anything in these tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

#[expect(clippy::disallowed_methods, reason = "the clock that these tests pass in")]
fn monotonic_now() -> std::time::Instant {
    std::time::Instant::now()
}

/// The clocks of one node; `wall_ahead_ms` can be moved.
pub(crate) struct TestClock {
    start: std::time::Instant,
    wall_ahead_ms: Arc<AtomicU64>,
}

/// All nodes' wall clocks start at the same moment, as those of real machines have.
fn clocks_start() -> std::time::Instant {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    *START.get_or_init(monotonic_now)
}

impl Clock for TestClock {
    fn wall(&self) -> Timestamp {
        let elapsed = monotonic_now().duration_since(clocks_start()).as_millis();
        let ahead = self.wall_ahead_ms.load(Ordering::Relaxed);
        Timestamp(1_700_000_000_000 + ahead + u64::try_from(elapsed).unwrap())
    }

    fn monotonic(&self) -> Duration {
        monotonic_now().duration_since(self.start)
    }
}

struct Inline;

impl Offload for Inline {
    fn in_place(&self, work: &mut dyn FnMut()) {
        work();
    }

    fn spawn(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            tokio::task::spawn_blocking(work).await.unwrap();
        })
    }
}

/// Remembers that the node wanted to end.
#[derive(Default)]
pub(crate) struct Ended(pub(crate) AtomicBool);

impl Exit for Ended {
    fn exit(&self, reason: &str) {
        eprintln!("a node ends: {reason}");
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Counts what it is told.
#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) anchors: parking_lot::Mutex<BTreeMap<(ShardId, AnchorId), bool>>,
    pub(crate) replaced: parking_lot::Mutex<Vec<ShardId>>,
}

impl Listener for Heard {
    fn opened(&self, _replica: &Arc<Replica>) {}

    fn applied(&self, shard: ShardId, changes: &Changes) {
        let mut anchors = self.anchors.lock();
        for (id, anchor) in &changes.anchors {
            anchors.insert((shard, *id), anchor.is_some());
        }
    }

    fn replaced(&self, replica: &Arc<Replica>) {
        self.replaced.lock().push(replica.shard_id());
    }

    fn removed(&self, _shard: ShardId) {}
}

struct Echo;

impl CallHandler for Echo {
    fn call(&self, from: NodeId, content: Bytes) -> BoxFuture<'static, Bytes> {
        Box::pin(async move {
            let mut answer = from.0.to_be_bytes().to_vec();
            answer.extend_from_slice(&content);
            answer.into()
        })
    }
}

/// A log whose disk can be told to answer nothing for a while.
pub(crate) struct StallingLog {
    log: Arc<dyn LogStore>,
    stall: Arc<Stall>,
}

/// The answers that are held back; `None` while none is.
#[derive(Default)]
pub(crate) struct Stall(parking_lot::Mutex<Option<Vec<Answer>>>);

type Answer = Box<dyn FnOnce() + Send>;

impl Stall {
    pub(crate) fn begin(&self) {
        self.0.lock().get_or_insert_default();
    }

    pub(crate) fn end(&self) {
        let held = self.0.lock().take();
        held.into_iter().flatten().for_each(|answer| answer());
    }
}

impl LogLayer for StallingLog {
    fn inner(&self) -> &dyn LogStore {
        &*self.log
    }

    fn submit_through(&self, write: LogWrite, done: Completion) {
        let stall = self.stall.clone();
        let answer = move |result| {
            let mut held = stall.0.lock();
            match held.as_mut() {
                Some(held) => held.push(Box::new(move || done(result))),
                None => {
                    drop(held);
                    done(result);
                }
            }
        };
        self.log.submit(write, Box::new(answer));
    }
}

/// A state whose next commit of one shard can be held up; later ones pass, slowly from then on.
pub(crate) struct HoldingState {
    state: Arc<dyn StateStore>,
    hold: Arc<Hold>,
}

#[derive(Default)]
pub(crate) struct Hold {
    step: parking_lot::Mutex<HoldStep>,
    changed: parking_lot::Condvar,
}

#[derive(Default)]
enum HoldStep {
    #[default]
    Off,
    /// The header row of the shard is waited for.
    Armed(Vec<u8>),
    /// It has come.
    Holding(Vec<u8>),
    Slow(Vec<u8>),
}

/// Time that a commit takes after one was held up.
const SLOW_COMMIT: Duration = Duration::from_millis(3);

impl Hold {
    pub(crate) fn arm(&self, shard: ShardId) {
        let header = [&[1][..], &shard.0.to_be_bytes(), &[0]].concat();
        *self.step.lock() = HoldStep::Armed(header);
    }

    pub(crate) fn is_holding(&self) -> bool {
        matches!(*self.step.lock(), HoldStep::Holding(_))
    }

    pub(crate) fn release(&self) {
        let mut step = self.step.lock();
        if let HoldStep::Holding(header) = &*step {
            *step = HoldStep::Slow(header.clone());
        }
        self.changed.notify_all();
    }
}

impl StateLayer for HoldingState {
    fn inner(&self) -> &dyn StateStore {
        &*self.state
    }

    fn commit_through(&self, batch: Batch) -> Result<(), StateError> {
        let is_of = |header: &Vec<u8>| {
            batch.rows.iter().any(|(key, value)| key == header && value.is_some())
        };
        let mut step = self.hold.step.lock();
        match &*step {
            HoldStep::Armed(header) if is_of(header) => {
                *step = HoldStep::Holding(header.clone());
                let holds = |step: &mut HoldStep| matches!(step, HoldStep::Holding(_));
                self.hold.changed.wait_while(&mut step, holds);
                drop(step);
            }
            HoldStep::Slow(header) if is_of(header) => {
                drop(step);
                std::thread::sleep(SLOW_COMMIT);
            }
            HoldStep::Off | HoldStep::Armed(_) | HoldStep::Holding(_) | HoldStep::Slow(_) => {
                drop(step)
            }
        }
        self.state.commit(batch)
    }
}

/// What survives a node's crash.
pub(crate) struct Disk {
    pub(crate) log: Arc<MemoryLog>,
    pub(crate) stall: Arc<Stall>,
    pub(crate) state: Arc<MemoryState>,
    pub(crate) hold: Arc<Hold>,
    /// How far the machine's wall clock is ahead of the others'.
    pub(crate) wall_ahead_ms: Arc<AtomicU64>,
    pub(crate) dir: tempfile::TempDir,
    /// Stands in for `log` and `state` if it is there.
    pub(crate) durable: Option<DurableDisk>,
    /// Where its node is reached, and the wires between all nodes.
    address: String,
    wires: Wires,
}

/// The stores of a real node: the log on a file system that loses power, the state in sled.
pub(crate) struct DurableDisk {
    pub(crate) fs: MemoryFs,
    pub(crate) state: tempfile::TempDir,
    /// The mistake of answering before the fsync.
    pub(crate) answers_early: bool,
}

/// Small, so that segments are turned over and removed under a test's load.
pub(crate) const SMALL_LOG: LogConfig = LogConfig {
    segment_bytes: 2 << 20,
    segment_bytes_max: 2 << 20,
    batch_bytes_max: 1 << 20,
    queued_bytes_max: 8 << 20,
    recent_bytes_max: 1 << 20,
    disk_bytes_target: 16 << 20,
    disk_bytes_max: 1 << 30,
    copy_bytes_max: 64 << 10,
    idle_marker: Duration::from_millis(20),
};

impl DurableDisk {
    pub(crate) fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        Self { fs: MemoryFs::new(), state, answers_early: false }
    }

    fn open(&self) -> (Arc<dyn LogStore>, Arc<dyn StateStore>) {
        let fs = Arc::new(self.fs.clone());
        let log = SegmentedLog::open(fs, Path::new("/log"), SMALL_LOG).unwrap();
        let config = SledConfig { cache_bytes_max: 8 << 20 };
        let (state, _) = SledState::open(self.state.path(), config).unwrap();
        if self.answers_early {
            return (Arc::new(EarlyLog(log)), Arc::new(state));
        }
        (Arc::new(log), Arc::new(state))
    }
}

/// A log that says "durable" before it is.
struct EarlyLog(SegmentedLog);

impl LogLayer for EarlyLog {
    fn inner(&self) -> &dyn LogStore {
        &self.0
    }

    fn submit_through(&self, write: LogWrite, done: Completion) {
        self.0.submit(write, Box::new(drop));
        done(Ok(()));
    }
}

impl Disk {
    fn new() -> Self {
        Self {
            log: Arc::new(MemoryLog::new()),
            stall: Arc::default(),
            state: Arc::new(MemoryState::new()),
            hold: Arc::default(),
            wall_ahead_ms: Arc::default(),
            dir: tempfile::tempdir().unwrap(),
            durable: None,
            address: String::new(),
            wires: Wires::default(),
        }
    }
}

/// One node.
pub(crate) struct TestNode {
    pub(crate) identity: Identity,
    pub(crate) disk: Disk,
    pub(crate) heard: Arc<Heard>,
    pub(crate) ended: Arc<Ended>,
    pub(crate) address: String,
    pub(crate) running: Option<Running>,
    zone: String,
}

/// A node's running parts, on threads of their own: a crash ends every task and connection.
pub(crate) struct Running {
    pub(crate) host: Host,
    runtime: Option<Runtime>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Several nodes, one per zone.
pub(crate) struct TestCluster {
    pub(crate) nodes: Vec<TestNode>,
    pub(crate) config: ConsensusConfig,
    pub(crate) wires: Wires,
}

fn seams(disk: &Disk, exit: Arc<Ended>) -> Seams {
    let (log, state): (Arc<dyn LogStore>, Arc<dyn StateStore>) = match &disk.durable {
        Some(durable) => durable.open(),
        None => (disk.log.clone(), disk.state.clone()),
    };
    Seams {
        dial: Arc::new(WireDial { own: disk.address.clone(), wires: disk.wires.clone() }),
        clock: Arc::new(TestClock {
            start: monotonic_now(),
            wall_ahead_ms: disk.wall_ahead_ms.clone(),
        }),
        seed: 1,
        offload: Arc::new(Inline),
        log: Arc::new(StallingLog { log, stall: disk.stall.clone() }),
        state: Arc::new(HoldingState { state, hold: disk.hold.clone() }),
        snapshots: Arc::new(SnapshotStore::open(disk.dir.path()).unwrap()),
        exit,
        #[cfg(feature = "chaos")]
        hooks: anchorhold_consensus::hooks::Hooks::default(),
    }
}

fn registration(zone: &str, address: &str) -> NodeRegistration {
    NodeRegistration {
        region: "home".into(),
        zone: zone.into(),
        peer_address: address.into(),
        client_address: address.into(),
        version: "test".into(),
    }
}

impl TestNode {
    /// Binds, joins where needed, and starts.
    async fn first_start(
        zone: &str,
        join_at: Option<&str>,
        config: &ConsensusConfig,
        instance: u128,
        durable: Option<DurableDisk>,
        wires: &Wires,
    ) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let wires = wires.clone();
        let disk = Disk { durable, address: address.clone(), wires, ..Disk::new() };
        let ended = Arc::new(Ended::default());
        let node = registration(zone, &address);
        let (identity, peers, found) = match join_at {
            None => (founder(fresh_cluster_id(), instance), Vec::new(), Some("test".to_owned())),
            Some(at) => {
                let seams = seams(&disk, ended.clone());
                let joined = join(&[at.to_owned()], instance, &node, &seams).await.unwrap();
                (joined.0, joined.1, None)
            }
        };
        let mut this = Self {
            identity,
            disk,
            heard: Arc::default(),
            ended,
            address,
            running: None,
            zone: zone.into(),
        };
        this.run(listener, peers, found, config).await;
        this
    }

    async fn run(
        &mut self,
        listener: tokio::net::TcpListener,
        peers: Vec<(NodeId, String)>,
        found: Option<String>,
        config: &ConsensusConfig,
    ) {
        let start = HostStart {
            identity: self.identity.clone(),
            node: registration(&self.zone, &self.address),
            found,
            peers,
            config: config.clone(),
        };
        let seams = seams(&self.disk, self.ended.clone());
        let heard = self.heard.clone();
        let listener = listener.into_std().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let started = runtime.spawn(async move {
            let host = Host::start(start, seams, heard, Arc::new(Echo)).await.unwrap();
            let service = host.peer_service();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let incoming = tonic::transport::server::TcpIncoming::from(listener);
            tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
            host
        });
        let host = started.await.unwrap();
        self.running = Some(Running { host, runtime: Some(runtime) });
    }

    pub(crate) fn host(&self) -> &Host {
        &self.running.as_ref().unwrap().host
    }

    /// Ends the node at once; with `power`, what was not durable is lost as well.
    pub(crate) async fn crash(&mut self, power: bool) {
        let runtime = self.running.take().unwrap().runtime.take().unwrap();
        let ended = tokio::task::spawn_blocking(|| runtime.shutdown_timeout(PATIENCE));
        ended.await.unwrap();
        if power && self.disk.durable.is_none() {
            self.disk.log.crash();
            self.disk.state.crash();
        }
    }
}

impl TestCluster {
    pub(crate) async fn start(count: usize) -> Self {
        Self::start_with(count, ConsensusConfig::default()).await
    }

    pub(crate) async fn start_with(count: usize, config: ConsensusConfig) -> Self {
        Self::start_on(count, config, || None).await
    }

    /// Nodes on disks that `durable` makes.
    pub(crate) async fn start_on(
        count: usize,
        config: ConsensusConfig,
        durable: impl Fn() -> Option<DurableDisk>,
    ) -> Self {
        // `RUST_LOG=debug` shows what a failing test went through.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer();
        drop(log.try_init());
        let mut nodes: Vec<TestNode> = Vec::new();
        let wires = Wires::default();
        for number in 0..count {
            let zone = format!("zone-{}", number % 3);
            let join_at = nodes.first().map(|first| first.address.clone());
            let instance = 1 + number as u128;
            let (join_at, disk) = (join_at.as_deref(), durable());
            let node = TestNode::first_start(&zone, join_at, &config, instance, disk, &wires);
            let node = node.await;
            nodes.push(node);
        }
        let cluster = Self { nodes, config, wires };
        // Two voters survive no more than one does, so a second node only follows.
        cluster.wait_for_voters(if count < 3 { 1 } else { 3 }).await;
        cluster
    }

    async fn wait_for_voters(&self, count: usize) {
        eventually("the catalog has its voters", || {
            let known = self
                .nodes
                .iter()
                .filter(|node| node.host().catalog().borrow().nodes.len() == self.nodes.len());
            let status = self.nodes[0].host().catalog_replica().status();
            (known.count() == self.nodes.len() && count <= status.voters.max(1)).then_some(())
        })
        .await;
    }

    pub(crate) async fn restart(&mut self, number: usize) {
        let config = self.config.clone();
        let peers: Vec<_> =
            self.nodes.iter().map(|n| (n.identity.node_id, n.address.clone())).collect();
        let node = &mut self.nodes[number];
        let listener = tokio::net::TcpListener::bind(&node.address).await.unwrap();
        node.run(listener, peers, None, &config).await;
    }

    /// Waits until another node than this one leads a shard.
    pub(crate) async fn led_by_another(&self, shard: ShardId, than: usize) -> usize {
        eventually("another node leads", || {
            let others = self.nodes.iter().enumerate().filter(|(number, _)| *number != than);
            let mut leads = others.filter(|(_, node)| {
                node.running
                    .as_ref()
                    .and_then(|running| running.host.replica(shard))
                    .is_some_and(|replica| replica.is_leader())
            });
            leads.next().map(|(number, _)| number)
        })
        .await
    }

    /// Creates an account with shards on all nodes, and waits until each is led.
    pub(crate) async fn create_account(&self, name: &str, cuts: Vec<Key>) -> Vec<ShardId> {
        let shards = self.create_account_unled(name, cuts).await;
        for shard in &shards {
            self.leader_of(*shard).await;
        }
        shards
    }

    /// Creates an account with shards on all nodes.
    pub(crate) async fn create_account_unled(&self, name: &str, cuts: Vec<Key>) -> Vec<ShardId> {
        let nodes: Vec<NodeId> = self.nodes.iter().map(|node| node.identity.node_id).collect();
        let placements = (0..=cuts.len())
            .map(|shard| {
                let mut voters = nodes.clone();
                voters.rotate_left(shard % nodes.len());
                voters.truncate(3);
                voters
            })
            .collect();
        let command = CatalogCommand::CreateAccount {
            request_id: RequestId(name.bytes().fold(1, |id, byte| id * 31 + u128::from(byte))),
            name: name.into(),
            class: DEFAULT_CLASS,
            keys: Vec::<ApiKey>::new(),
            cuts,
            placements,
        };
        let runs = self.nodes.iter().find(|node| node.running.is_some()).unwrap();
        let outcome = runs.host().propose_catalog(command, PATIENCE).await.unwrap();
        let CatalogOutcome::AccountCreated { shards, .. } = outcome else {
            panic!("not created: {outcome:?}");
        };
        shards
    }

    /// The number of the running node that leads a shard.
    pub(crate) async fn leader_of(&self, shard: ShardId) -> usize {
        eventually("the shard is led", || {
            self.nodes.iter().position(|node| {
                node.running.as_ref().is_some_and(|running| {
                    running.host.replica(shard).is_some_and(|replica| replica.is_leader())
                })
            })
        })
        .await
    }

    /// Writes through whoever leads, until there is an outcome.
    pub(crate) async fn write(&self, shard: ShardId, item: u64) -> AnchorId {
        let anchor = anchor(item);
        let id = anchor.id;
        loop {
            let leader = self.leader_of(shard).await;
            let Some(replica) = self.nodes[leader].host().replica(shard) else { continue };
            let command = Command {
                operation: OperationId { request_id: RequestId(u128::from(item)), item: 0 },
                epoch: replica.state().descriptor.epoch,
                write: Write::Create(Box::new(anchor.clone())),
            };
            match replica.propose(vec![command], Duration::from_secs(5)).await {
                Ok(outcomes) => match &outcomes[..] {
                    [Outcome::Written { .. }] => return id,
                    other => panic!("not written: {other:?}"),
                },
                Err(ProposeError::NotLeader { .. } | ProposeError::OutcomeUnknown { .. }) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// An anchor of the first account, near a place that `item` chooses.
pub(crate) fn anchor(item: u64) -> Anchor {
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let longitude = -170.0 + (item % 3_400) as f64 / 10.0;
    let point = GeoPoint::new(10.0, longitude, 0.0).unwrap();
    let pose = Pose::Geo { point, orientation: Orientation::IDENTITY };
    Anchor {
        id: AnchorId::derive(FIRST_ACCOUNT, &pose, RequestId(u128::from(item)), 0, 0),
        pose,
        accuracy: Accuracy::default(),
        properties: BTreeMap::from([("item".into(), item.to_string())]),
        tags: Default::default(),
        expire_time: None,
        create_time: Timestamp(0),
        update_time: Timestamp(0),
        creator: String::new(),
        quality: None,
        version: Version::default(),
        created_by: None,
    }
}

/// The number that the first account of a cluster gets.
const FIRST_ACCOUNT: AccountNumber = AccountNumber(1);

/// Polls until there is an answer; fails after [`PATIENCE`].
pub(crate) async fn eventually<T>(what: &'static str, mut poll: impl FnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(answer) = poll() {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// Clusters of one test are strangers to each other.
fn fresh_cluster_id() -> u128 {
    static NEXT: AtomicU64 = AtomicU64::new(7);
    u128::from(NEXT.fetch_add(1, Ordering::Relaxed))
}
