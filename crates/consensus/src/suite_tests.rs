//! openraft's own storage suite, on the stores in memory and on the ones on disk, and what it does
//! not ask of a state machine.

use std::sync::Arc;

use anchorhold_model::catalog::CatalogState;
use anchorhold_model::{Changes, ClassId, Key, KeyRange, ShardDescriptor, ShardId, ShardState};
use anchorhold_storage::fs::RealFs;
use anchorhold_storage::snapshot::SnapshotStore;
use anchorhold_storage::{
    GroupId, LogConfig, LogStore, MemoryLog, MemoryState, SegmentedLog, SledConfig, SledState,
    StateStore,
};
use arc_swap::ArcSwap;
use futures::stream;
use openraft::StorageError;
use openraft::storage::RaftStateMachine as _;
use openraft::testing::log::{StoreBuilder, Suite};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::host::Listener;
use crate::log::GroupLogStorage;
use crate::machine::{Applied, Header, Machine, MachineShared};
use crate::replica::Replica;
use crate::seams::{BoxFuture, Exit, Offload};
use crate::types::{Entry, EntryPayload, TypeConfig, log_id};

struct Silent;

impl Listener for Silent {
    fn opened(&self, _replica: &Arc<Replica>) {}
    fn applied(&self, _shard: ShardId, _changes: &Changes) {}
    fn replaced(&self, _replica: &Arc<Replica>) {}
    fn removed(&self, _shard: ShardId) {}
}

impl Exit for Silent {
    fn exit(&self, reason: &str) {
        panic!("{reason}");
    }
}

impl Offload for Silent {
    fn in_place(&self, work: &mut dyn FnMut()) {
        work();
    }

    fn spawn(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        Box::pin(async move { work() })
    }
}

/// Makes empty stores, in memory or on disk.
struct Builder {
    on_disk: bool,
    /// How far apply believes the log to be on disk.
    durable_end: u64,
}

impl StoreBuilder<TypeConfig, GroupLogStorage, Machine, tempfile::TempDir> for Builder {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, GroupLogStorage, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let group = GroupId { shard: 5, incarnation: 1 };
        let (log, state): (Arc<dyn LogStore>, Arc<dyn StateStore>) = if self.on_disk {
            let fs = Arc::new(RealFs);
            let config = LogConfig { segment_bytes: 1 << 20, ..LogConfig::default() };
            let log = SegmentedLog::open(fs, &dir.path().join("log"), config).unwrap();
            let state = SledState::open(&dir.path().join("state"), SledConfig::default());
            (Arc::new(log), Arc::new(state.unwrap().0))
        } else {
            (Arc::new(MemoryLog::new()), Arc::new(MemoryState::new()))
        };
        let range = KeyRange { start: Key(0), end: None };
        let descriptor = ShardDescriptor::found(ShardId(5), range, ClassId(1), &[]);
        let shard = ShardState::new(descriptor);
        let shared = Arc::new(MachineShared {
            group,
            shard_id: ShardId(5),
            log: log.clone(),
            state,
            snapshots: Arc::new(SnapshotStore::open(&dir.path().join("snapshots")).unwrap()),
            offload: Arc::new(Silent),
            exit: Arc::new(Silent),
            cut: Mutex::new(None),
            wanted: Mutex::new(None),
            count: Mutex::new(None),
            births: Arc::default(),
            merges: Arc::default(),
            shard: ArcSwap::from_pointee(shard.clone()),
            header: ArcSwap::from_pointee(Header { shard: Some(shard), ..Header::default() }),
            applied: watch::Sender::new(Applied::default()),
            stopping: watch::Sender::new(false),
            catalog: None::<Arc<watch::Sender<Arc<CatalogState>>>>,
            #[cfg(feature = "chaos")]
            hooks: crate::hooks::Hooks::default(),
        });
        let log = GroupLogStorage::new(log, group, Arc::new(Silent));
        let durable = watch::Sender::new(self.durable_end).subscribe();
        let machine = Machine::new(shared, Arc::new(Silent), durable, Box::new(|| {}));
        Ok((dir, log, machine))
    }
}

/// The suite applies entries that it never appended: here apply must not wait for the log.
const OPEN: u64 = u64::MAX;

#[tokio::test]
async fn an_entry_that_does_not_follow_the_last_one_is_refused() {
    let builder = Builder { on_disk: false, durable_end: 100 };
    let (_dir, _log, mut machine) = builder.build().await.unwrap();
    let mut apply = async |index| {
        let entry = Entry { log_id: log_id(1, index), payload: EntryPayload::Blank };
        machine.apply(stream::iter([Ok((entry, None))])).await
    };
    apply(7).await.unwrap();
    apply(8).await.unwrap();
    for wrong in [8, 10, 7] {
        let error = apply(wrong).await.unwrap_err().to_string();
        assert!(error.contains("after entry 8"), "{error}");
    }
    apply(9).await.unwrap();
}

#[tokio::test]
async fn openrafts_suite_passes_in_memory() {
    Suite::test_all(Builder { on_disk: false, durable_end: OPEN }).await.unwrap();
}

#[tokio::test]
async fn openrafts_suite_passes_on_disk() {
    Suite::test_all(Builder { on_disk: true, durable_end: OPEN }).await.unwrap();
}
