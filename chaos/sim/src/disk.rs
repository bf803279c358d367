//! One node's disk: a log and a state in memory that lose unsynced tails, snapshot files in a
//! directory.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[cfg(feature = "mutants")]
use anchorhold_consensus::hooks::{HookedLog, HookedState, Hooks};
use anchorhold_server::node::OpenStores;
use anchorhold_server::{NodeError, Stores};
use anchorhold_storage::fs::{FileSystem, MemoryFs};
use anchorhold_storage::snapshot::SnapshotStore;
use anchorhold_storage::{
    Completion, LogLayer, LogStore, LogWrite, MemoryLog, MemoryState, StateStore,
};
use rand::Rng;
use rand::rngs::StdRng;
use tempfile::TempDir;
use tokio::sync::Notify;

use crate::world::World;

/// What survives a process.
pub(crate) struct Disk {
    pub(crate) log: MemoryLog,
    pub(crate) state: Arc<MemoryState>,
    pub(crate) directory: TempDir,
}

impl Disk {
    /// An empty disk. Files lie in memory where the machine has a file system for that.
    pub(crate) fn new() -> std::io::Result<Self> {
        let memory = Path::new("/dev/shm");
        let directory =
            if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        Ok(Self {
            log: MemoryLog::with_manual_sync(),
            state: Arc::new(MemoryState::new()),
            directory: directory?,
        })
    }

    /// Ends what a process has not synced: of the log, and of the state, some first part survives.
    pub(crate) fn crash(&self, random: &mut StdRng) {
        let unsynced = self.log.unsynced();
        // Most often nothing: a disk that writes early hides mistakes.
        let survivors = if random.random_bool(0.7) { 0 } else { random.random_range(0..=unsynced) };
        self.log.sync_first(survivors);
        self.log.crash();
        let batches = self.state.unsynced_batches();
        let survivors = if random.random_bool(0.5) { 0 } else { random.random_range(0..=batches) };
        self.state.crash_keeping(survivors);
    }
}

/// Opens one node's stores.
pub(crate) struct SimStores {
    pub(crate) world: Arc<World>,
    pub(crate) node: usize,
    pub(crate) waiting: Arc<Notify>,
    #[cfg(feature = "mutants")]
    pub(crate) hooks: Hooks,
}

impl SimStores {
    /// The log as the node's mutants let it be.
    #[cfg(feature = "mutants")]
    fn log(&self) -> Arc<dyn LogStore> {
        let log = self.world.sites[self.node].disk.log.clone();
        Arc::new(HookedLog::new(Arc::new(log), self.hooks.clone()))
    }

    #[cfg(not(feature = "mutants"))]
    fn log(&self) -> Arc<dyn LogStore> {
        Arc::new(self.world.sites[self.node].disk.log.clone())
    }

    /// The state as the node's mutants let it be.
    #[cfg(feature = "mutants")]
    fn state(&self) -> Result<Arc<dyn StateStore>, NodeError> {
        let state = Arc::clone(&self.world.sites[self.node].disk.state);
        let opened = HookedState::open(state, self.hooks.clone());
        let opened = opened
            .map_err(|error| NodeError::Store { store: "state", reason: error.to_string() })?;
        Ok(Arc::new(opened))
    }

    #[cfg(not(feature = "mutants"))]
    #[expect(clippy::unnecessary_wraps, reason = "the other one can fail")]
    fn state(&self) -> Result<Arc<dyn StateStore>, NodeError> {
        Ok(Arc::clone(&self.world.sites[self.node].disk.state) as Arc<dyn StateStore>)
    }
}

impl OpenStores for SimStores {
    fn open(&self, data_dir: &Path, _free_bytes: u64) -> Result<Stores, NodeError> {
        let disk = &self.world.sites[self.node].disk;
        let snapshots = SnapshotStore::open(&data_dir.join("snapshots"))
            .map_err(|error| NodeError::Store { store: "snapshots", reason: error.to_string() })?;
        let log = SimLog {
            world: Arc::clone(&self.world),
            node: self.node,
            waiting: Arc::clone(&self.waiting),
            memory: disk.log.clone(),
            log: self.log(),
        };
        Ok(Stores {
            log: Arc::new(log),
            state: self.state()?,
            renewable: None,
            snapshots: Arc::new(snapshots),
        })
    }

    fn file_system(&self) -> Arc<dyn FileSystem> {
        // Only asked how much space there is: plenty.
        Arc::new(MemoryFs::new())
    }

    fn used_bytes(&self, _data_dir: &Path) -> u64 {
        0
    }
}

/// The log of one process: everything that it is told is seen by the invariants.
struct SimLog {
    world: Arc<World>,
    node: usize,
    waiting: Arc<Notify>,
    /// What the log holds.
    memory: MemoryLog,
    /// The way to it.
    log: Arc<dyn LogStore>,
}

impl LogLayer for SimLog {
    fn inner(&self) -> &dyn LogStore {
        &*self.log
    }

    fn submit_through(&self, write: LogWrite, done: Completion) {
        self.world.saw_write(self.node, &self.memory, &write);
        let vote = match &write {
            LogWrite::SaveHardState { group, hard_state } => Some((*group, *hard_state)),
            LogWrite::Append { .. }
            | LogWrite::Truncate { .. }
            | LogWrite::Purge { .. }
            | LogWrite::Drop { .. }
            | LogWrite::MarkLost { .. } => None,
        };
        let (world, node) = (Arc::clone(&self.world), self.node);
        let done: Completion = Box::new(move |result| {
            if let (Some((group, vote)), Ok(())) = (vote, &result) {
                world.saw_durable_vote(node, group, vote);
            }
            done(result);
        });
        self.log.submit(write, done);
        self.waiting.notify_one();
    }
}

/// The log's writer: what waits when a sync begins is durable when it ends.
pub(crate) async fn sync_forever(
    world: Arc<World>,
    node: usize,
    waiting: Arc<Notify>,
    mut random: StdRng,
) {
    let site = &world.sites[node];
    loop {
        let count = site.disk.log.unsynced();
        if count == 0 {
            waiting.notified().await;
            continue;
        }
        let usual = if random.random_bool(0.02) { 10..60 } else { 1..4 };
        let millis = random.random_range(usual) + site.sync_delay_ms.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(millis)).await;
        site.disk.log.sync_first(count);
    }
}
