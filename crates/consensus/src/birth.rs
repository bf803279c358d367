//! Replicas that a split made and that have no snapshot file of their own yet.
//!
//! ```text
//! split applied ──> birth row, child's header ──> log begun ──> replica open ──> first file: settled
//!                   (one batch of the parent)     (each part if it is missing)   (birth row removed)
//! ```
//!
//! Until it is settled a newborn's beginning lies in its parent's snapshot file and log. Invariants:
//! a parent of newborns makes no snapshot, takes none in and is not destroyed; an existing log of
//! the child wins over the one that it would begin with.
//!
//! Not here: what a split changes (`model`), when files are made (`crate::upkeep`).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use anchorhold_model::row::Row;
use anchorhold_model::{ShardDescriptor, ShardId, ShardState};
use anchorhold_storage::snapshot::{SnapshotDigest, SnapshotFile, SnapshotHeader};
use anchorhold_storage::{
    GroupId, HardState, LogError, LogPosition, LogStore, LogWrite, StateError, StateStore,
};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, oneshot};

use crate::card::Birthplace;
use crate::keys;
use crate::machine::{Header, damaged, membership_of};
use crate::types::{Snapshot, SnapshotMeta};
use crate::wire::{self, WireLogId, WireStoredMembership};

/// Where every child's log begins: a position that no founded group's first entry has, so that a
/// replica with nothing never looks equal.
const FIRST: WireLogId = (5, 5);

/// What a birth row says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Birth {
    pub(crate) parent: ShardId,
    /// The child as it was born.
    pub(crate) child: ShardDescriptor,
    /// The split: of which shard, at which index of its log.
    pub(crate) place: Birthplace,
}

/// The newborns of a node.
#[derive(Default)]
pub(crate) struct Births {
    unsettled: Mutex<BTreeMap<ShardId, Birth>>,
    /// Parents whose newborns are all settled, and whose own file is from before the split.
    renewing: Mutex<BTreeSet<ShardId>>,
    /// Told when a child was born or a replica's range has changed.
    pub(crate) changed: Notify,
    /// Told when the catalog should hear of it.
    pub(crate) told: Notify,
    /// Told when a parent is free again.
    pub(crate) settled: Notify,
}

impl Birth {
    fn group(&self) -> GroupId {
        group_of(&self.child)
    }

    fn membership(&self) -> WireStoredMembership {
        WireStoredMembership { log_id: Some(FIRST), membership: membership_of(&self.child) }
    }

    /// What stands for the newborn's snapshot until there is a file: a position without content.
    pub(crate) fn handle(&self) -> std::io::Result<Snapshot> {
        let last_membership = self.membership().into_stored().map_err(std::io::Error::other)?;
        let meta =
            SnapshotMeta { last_log_id: Some(wire::from_wire_log_id(FIRST)), last_membership };
        let header = SnapshotHeader {
            format: wire::FORMAT_VERSION,
            group: self.group(),
            position: Some(LogPosition { term: FIRST.0, index: FIRST.1 }),
            meta: Vec::new(),
        };
        let digest = SnapshotDigest([0; 32]);
        let path = std::path::PathBuf::new();
        let snapshot = SnapshotFile { path, header, rows: 0, bytes: 0, digest };
        Ok(Snapshot { meta, snapshot })
    }
}

/// Whether a snapshot is a newborn's handle, which nothing can be read from.
pub(crate) fn is_handle(file: &SnapshotFile) -> bool {
    file.path.as_os_str().is_empty()
}

/// The group of a shard.
pub(crate) fn group_of(descriptor: &ShardDescriptor) -> GroupId {
    GroupId { shard: descriptor.shard_id.0, incarnation: descriptor.epoch.incarnation }
}

/// The birth that a split's batch tells of, and the rows that it adds to its parent's.
pub(crate) fn rows(parent: ShardId, index: u64, child: &ShardState) -> (Birth, Vec<Row>) {
    let place = Birthplace { parent: parent.0, index };
    let birth = Birth { parent, child: child.descriptor.clone(), place };
    let header =
        Header { applied: Some(FIRST), membership: birth.membership(), shard: Some(child.clone()) };
    let shard_id = child.descriptor.shard_id;
    let rows = vec![
        (keys::header(shard_id), Some(wire::encode(&header).to_vec())),
        (keys::birth(shard_id), Some(wire::encode(&birth).to_vec())),
    ];
    (birth, rows)
}

impl Births {
    /// Reads what the state has of earlier births.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn load(&self, state: &dyn StateStore) -> Result<(), StateError> {
        *self.unsettled.lock() = marks(state, "a birth row", |place| {
            if let keys::Place::Birth(shard) = place { Some(shard) } else { None }
        })?;
        Ok(())
    }

    /// Takes a birth in that is about to be committed.
    pub(crate) fn add(&self, birth: Birth) {
        self.unsettled.lock().insert(birth.child.shard_id, birth);
    }

    /// Has newborns opened, and the catalog told: their births are committed.
    pub(crate) fn announce(&self) {
        self.changed.notify_one();
        self.told.notify_one();
    }

    /// The birth of a shard that is not settled.
    pub(crate) fn of(&self, shard: ShardId) -> Option<Birth> {
        self.unsettled.lock().get(&shard).cloned()
    }

    /// Those that are not settled.
    pub(crate) fn all(&self) -> Vec<Birth> {
        self.unsettled.lock().values().cloned().collect()
    }

    /// Whether others depend on a shard's file and log.
    pub(crate) fn is_parent(&self, shard: ShardId) -> bool {
        self.unsettled.lock().values().any(|birth| birth.parent == shard)
    }

    /// A newborn's file is verified: it does not need its parent any more.
    pub(crate) fn settle(&self, state: &dyn StateStore, shard: ShardId) -> Result<(), StateError> {
        let Some(birth) = self.of(shard) else { return Ok(()) };
        state.commit(anchorhold_storage::Batch { rows: vec![(keys::birth(shard), None)] })?;
        self.unsettled.lock().remove(&shard);
        if !self.is_parent(birth.parent) {
            self.renewing.lock().insert(birth.parent);
        }
        self.settled.notify_one();
        tracing::info!(
            shard = shard.0,
            parent = birth.parent.0,
            "a split's child stands by itself"
        );
        Ok(())
    }

    /// Makes the newborns of a shard that is merged those of its target: their beginning lies in the
    /// source's file and log, which stay as long as the target makes no file. Gives the rows.
    pub(crate) fn adopt(&self, source: ShardId, target: ShardId) -> Vec<Row> {
        let mut unsettled = self.unsettled.lock();
        let own = unsettled.iter_mut().filter(|(_, birth)| birth.parent == source);
        let adopted = own.map(|(shard, birth)| {
            birth.parent = target;
            (keys::birth(*shard), Some(wire::encode(birth).to_vec()))
        });
        adopted.collect()
    }

    /// Forgets a newborn that is destroyed.
    pub(crate) fn forget(&self, shard: ShardId) {
        self.unsettled.lock().remove(&shard);
        self.settled.notify_one();
    }

    /// Notes that a shard's file should be made anew, because it is damaged.
    pub(crate) fn ask_for_file(&self, shard: ShardId) {
        self.renewing.lock().insert(shard);
    }

    /// Whether a shard's file should be made anew: it still holds what a child owns, or is damaged.
    pub(crate) fn take_renewal(&self, shard: ShardId) -> bool {
        self.renewing.lock().remove(&shard)
    }
}

/// The marks of one kind that the state has, by shard.
///
/// # Errors
/// If they cannot be read.
pub(crate) fn marks<T: DeserializeOwned>(
    state: &dyn StateStore,
    what: &'static str,
    shard_of: impl Fn(keys::Place<'_>) -> Option<ShardId>,
) -> Result<BTreeMap<ShardId, T>, StateError> {
    let (mut marks, mut failed) = (BTreeMap::new(), None);
    let (start, end) = keys::replicas();
    state.scan(&start[..]..&end[..], &mut |key, value| {
        let Some(shard) = keys::place(key).and_then(&shard_of) else {
            return ControlFlow::Continue(());
        };
        match wire::decode(what, value) {
            Ok(mark) => {
                marks.insert(shard, mark);
                ControlFlow::Continue(())
            }
            Err(error) => {
                failed = Some(damaged(error));
                ControlFlow::Break(())
            }
        }
    })?;
    failed.map_or(Ok(marks), Err)
}

/// Begins a newborn's log, as far as that is missing. Raft starts after this only, so whatever else
/// is in the log is newer.
///
/// # Errors
/// If the log cannot be written.
pub(crate) async fn begin_log(log: &Arc<dyn LogStore>, birth: &Birth) -> Result<(), StateError> {
    let group = birth.group();
    let known = log.group(group).unwrap_or_default();
    let voted_for = birth.child.voters().next().map(|voter| voter.replica_id.0);
    let hard_state = HardState { term: FIRST.0, voted_for, committed: true };
    let begin = LogWrite::Purge { group, up_to: LogPosition { term: FIRST.0, index: FIRST.1 } };
    let vote = LogWrite::SaveHardState { group, hard_state };
    // Both are under way before either is waited for: one fsync.
    let begin = known.last.is_none().then(|| submit(log, begin));
    let vote = known.hard_state.is_none().then(|| submit(log, vote));
    for written in [begin, vote].into_iter().flatten() {
        finish(written).await?;
    }
    Ok(())
}

type Written = oneshot::Receiver<Result<(), LogError>>;

fn submit(log: &Arc<dyn LogStore>, write: LogWrite) -> Written {
    let (done, waiting) = oneshot::channel();
    log.submit(write, Box::new(move |result| drop(done.send(result))));
    waiting
}

async fn finish(written: Written) -> Result<(), StateError> {
    match written.await {
        Ok(result) => result.map_err(damaged),
        Err(_) => Err(damaged("the log's writer has stopped")),
    }
}

/// Has the log written, and waits for it.
///
/// # Errors
/// If it cannot be.
pub(crate) async fn write(log: &Arc<dyn LogStore>, write: LogWrite) -> Result<(), StateError> {
    finish(submit(log, write)).await
}
