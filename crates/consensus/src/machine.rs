//! The state machine of one replica: applies committed entries, one atomic batch each.
//!
//! A batch holds the changed rows together with the applied position, so that the state always
//! says itself how far it has come. Nothing is applied before this node's own log has fsynced it:
//! after a power loss the state would otherwise be ahead of the log.
//!
//! Not here: deciding what an entry changes (`model`), snapshot files (`crate::snapshot`).

use std::io;
use std::sync::Arc;

use anchorhold_model::apply::OperationRecord;
use anchorhold_model::catalog::{self, CatalogState};
use anchorhold_model::{
    Anchor, AnchorId, KeyRange, NodeId, OperationId, Outcome, Records, Replica, ReplicaId,
    ReplicaRole, RowTotals, ShardDescriptor, ShardId, ShardState, Write, row,
};
use anchorhold_storage::snapshot::{SnapshotFile, SnapshotStore};
use anchorhold_storage::{Batch, GroupId, LogPosition, LogStore, StateError, StateStore};
use arc_swap::ArcSwap;
use futures::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::storage::{EntryResponder, RaftStateMachine};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use crate::birth::{self, Births};
use crate::digest::Wanted;
use crate::host::Listener;
use crate::keys;
use crate::merge::Merges;
use crate::row_count::RowCount;
use crate::seams::{Exit, Offload};
use crate::snapshot::{Cut, SnapshotBuilder};
use crate::types::{
    Entry, EntryPayload, LogId, Membership, Payload, Reply, Snapshot, SnapshotMeta,
    StoredMembership, TypeConfig, log_id,
};
use crate::wire::{self, WireLogId, WireStoredMembership};

/// What the header row says: how far the state has come and what it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) applied: Option<WireLogId>,
    pub(crate) membership: WireStoredMembership,
    /// `None` for the catalog.
    pub(crate) shard: Option<ShardState>,
}

/// How long a count for a split is kept right when no split comes, in milliseconds of shard time.
const PREPARATION_KEEP_MS: u64 = 60_000;

/// How far a replica has come, as others wait for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    /// One past the applied index.
    pub(crate) end: u64,
    /// The shard's revision.
    pub(crate) revision: u64,
}

/// What the apply task shares with readers and with the snapshot builder.
pub(crate) struct MachineShared {
    pub(crate) group: GroupId,
    pub(crate) shard_id: ShardId,
    pub(crate) log: Arc<dyn LogStore>,
    pub(crate) state: Arc<dyn StateStore>,
    pub(crate) snapshots: Arc<SnapshotStore>,
    pub(crate) offload: Arc<dyn Offload>,
    pub(crate) exit: Arc<dyn Exit>,
    /// Guards every commit of this replica's rows against a snapshot's cut.
    pub(crate) cut: Mutex<Option<Cut>>,
    /// Who waits for a cut at an index to come.
    pub(crate) wanted: Mutex<Option<Wanted>>,
    /// A count of the rows behind the key of a split that is near. Locked after `cut`.
    pub(crate) count: Mutex<Option<RowCount>>,
    pub(crate) births: Arc<Births>,
    pub(crate) merges: Arc<Merges>,
    pub(crate) header: ArcSwap<Header>,
    /// The shard's state alone, for readers. Of no meaning in the catalog.
    pub(crate) shard: ArcSwap<ShardState>,
    pub(crate) applied: watch::Sender<Applied>,
    /// Set when the replica stops: nothing that is waited for comes any more.
    pub(crate) stopping: watch::Sender<bool>,
    /// The catalog's state; `None` in a shard.
    pub(crate) catalog: Option<Arc<watch::Sender<Arc<CatalogState>>>>,
    #[cfg(feature = "chaos")]
    pub(crate) hooks: crate::hooks::Hooks,
}

impl MachineShared {
    /// A failed state store is never written again: the process ends and recovery rebuilds it.
    pub(crate) fn fail(&self, error: &StateError) -> io::Error {
        self.exit.exit(&format!("the state of {:?} cannot be used: {error}", self.shard_id));
        io::Error::other(error.to_string())
    }

    /// Commits rows and the header in one batch, then publishes the header.
    fn commit(&self, mut rows: Vec<(Vec<u8>, Option<Vec<u8>>)>, header: Header) -> io::Result<()> {
        rows.push((keys::header(self.shard_id), Some(wire::encode(&header).to_vec())));
        let result = self.write(Batch { rows }, &header);
        result.map_err(|error| self.fail(&error))?;
        self.publish(header);
        Ok(())
    }

    /// Brings a batch into the state. In the common case that only touches memory, and is done on
    /// this thread: handing the thread's other tasks over to another one, as blocking work must,
    /// costs more than the batch itself.
    fn write(&self, batch: Batch, header: &Header) -> Result<(), StateError> {
        if let Some(mut cut) = self.cut.try_lock()
            && cut.is_none()
            && self.count.try_lock().is_some_and(|count| count.is_none())
            && !self.state.commit_may_wait()
        {
            self.state.commit(batch)?;
            self.begin_wanted(&mut cut, header);
            return Ok(());
        }
        let mut batch = Some(batch);
        let mut result = Ok(());
        self.offload.in_place(&mut || {
            let mut cut = self.cut.lock();
            if let (Some(cut), Some(batch)) = (cut.as_mut(), batch.as_ref()) {
                result = cut.keep_before_images(&*self.state, &batch.rows);
            }
            let mut count = self.count.lock();
            if let (Ok(()), Some(count), Some(batch)) = (&result, count.as_mut(), batch.as_ref()) {
                result = count.follow(&*self.state, &batch.rows);
            }
            if result.is_ok() {
                result = self.state.commit(batch.take().unwrap_or_default());
            }
            if result.is_ok() {
                self.begin_wanted(&mut cut, header);
            }
        });
        result
    }

    /// Counts in the background, chunk by chunk: commits go on between them.
    fn count_rows(&self) {
        loop {
            let mut count = self.count.lock();
            let Some(counting) = count.as_mut() else { return };
            match counting.step(&*self.state) {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    self.fail(&error);
                    return;
                }
            }
            drop(count);
            std::thread::yield_now();
        }
    }

    /// Comes back when the replica stops.
    pub(crate) async fn stopped(&self) -> io::Error {
        // The sender lies beside: it does not go before.
        drop(self.stopping.subscribe().wait_for(|stops| *stops).await);
        io::Error::other("the replica stops")
    }

    /// Makes a header visible to readers and wakes who waits for it.
    pub(crate) fn publish(&self, header: Header) {
        let applied = Applied {
            end: header.applied.map_or(0, |(_, index)| index + 1),
            revision: header.shard.as_ref().map_or(0, |shard| shard.revision),
        };
        if let Some(shard) = &header.shard {
            self.shard.store(Arc::new(shard.clone()));
        }
        self.header.store(Arc::new(header));
        self.applied.send_replace(applied);
    }
}

/// A shard's rows, as `model::apply` reads them.
pub(crate) struct StoredRecords<'a> {
    pub(crate) state: &'a dyn StateStore,
    pub(crate) shard: &'a ShardState,
    pub(crate) count: &'a Mutex<Option<RowCount>>,
}

pub(crate) fn damaged(error: impl ToString) -> StateError {
    StateError::Damaged { reason: error.to_string() }
}

impl Records for StoredRecords<'_> {
    type Error = StateError;

    fn shard(&self) -> &ShardState {
        self.shard
    }

    fn anchor(&self, id: AnchorId) -> Result<Option<Arc<Anchor>>, StateError> {
        let row = self.state.get(&keys::record(&row::anchor_key(id)))?;
        row.map(|row| row::decode_anchor(&row).map(Arc::new).map_err(damaged)).transpose()
    }

    fn operation(
        &self,
        id: AnchorId,
        operation: OperationId,
    ) -> Result<Option<OperationRecord>, StateError> {
        let row = self.state.get(&keys::record(&row::operation_key(id, operation)))?;
        row.map(|row| row::decode_operation(&row).map_err(damaged)).transpose()
    }

    fn totals(&self, range: KeyRange) -> Result<RowTotals, StateError> {
        match self.count.lock().as_mut().filter(|count| count.range == range) {
            Some(count) => count.finish(self.state),
            None => RowCount::new(range, self.shard.shard_time).finish(self.state),
        }
    }
}

/// The state machine as openraft drives it.
pub(crate) struct Machine {
    shared: Arc<MachineShared>,
    listener: Arc<dyn Listener>,
    durable: watch::Receiver<u64>,
    /// Told when a snapshot has replaced the records as a whole.
    replaced: Box<dyn Fn() + Send + Sync>,
    /// Dropped with the machine: from then on nothing is applied.
    _alive: Option<oneshot::Sender<()>>,
}

impl Machine {
    pub(crate) fn new(
        shared: Arc<MachineShared>,
        listener: Arc<dyn Listener>,
        durable: watch::Receiver<u64>,
        replaced: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        Self { shared, listener, durable, replaced, _alive: None }
    }

    /// Gives what ends when nothing is applied by this machine any more: openraft lets one that is shut
    /// down go through what was handed to it before.
    pub(crate) fn watched(mut self) -> (Self, oneshot::Receiver<()>) {
        let (alive, ended) = oneshot::channel();
        self._alive = Some(alive);
        (self, ended)
    }

    pub(crate) async fn apply_entry(&mut self, entry: Entry) -> io::Result<Reply> {
        let index = entry.log_id.index;
        // Nearly always there already: waiting costs more.
        let known_end = *self.durable.borrow();
        let durable_end = if index < known_end {
            known_end
        } else {
            tokio::select! {
                biased;
                waited = self.durable.wait_for(|end| index < *end) => {
                    waited.map(|end| *end).map_err(|_| io::Error::other("the log was closed"))?
                }
                stopped = self.shared.stopped() => return Err(stopped),
            }
        };
        let mut header = Header::clone(&self.shared.header.load());
        // openraft's suite applies entries that no log has; its gate is open beyond all of them.
        let has_log = durable_end != u64::MAX;
        let skipped = header.applied.filter(|(_, applied)| has_log && applied + 1 != index);
        if let Some((_, applied)) = skipped {
            let message = format!("entry {index} cannot be applied after entry {applied}");
            return Err(io::Error::other(message));
        }
        header.applied = Some(wire::to_wire_log_id(&entry.log_id));
        match entry.payload {
            EntryPayload::Blank => {
                self.shared.commit(Vec::new(), header)?;
                Ok(Reply::None)
            }
            EntryPayload::Membership(membership) => {
                failpoint!(self.shared.hooks, "membership.apply");
                header.membership = (&StoredMembership::new(
                    Some(log_id(entry.log_id.leader_id.term, index)),
                    membership.clone(),
                ))
                    .into();
                if let Some(shard) = &header.shard {
                    let replicas = replicas_of(&membership);
                    header.shard = Some(anchorhold_model::shard::apply_membership(shard, replicas));
                }
                self.shared.commit(Vec::new(), header)?;
                Ok(Reply::None)
            }
            EntryPayload::Normal(payload) => self.apply_normal(&payload, header).await,
        }
    }

    async fn apply_normal(&mut self, payload: &Payload, header: Header) -> io::Result<Reply> {
        let content = payload.0.get(1..).unwrap_or_default();
        match &self.shared.catalog {
            Some(_) => self.apply_catalog(content, header),
            None => self.apply_shard(content, header).await,
        }
    }

    async fn apply_shard(&self, content: &[u8], mut header: Header) -> io::Result<Reply> {
        let entry = row::decode_entry(content).map_err(io::Error::other)?;
        let Some(shard) = header.shard.take() else {
            return Err(io::Error::other("a shard's entry reached a group without a shard"));
        };
        #[cfg(feature = "chaos")]
        let entry = self.shared.hooks.reroute(entry, &shard);
        let (state, count) = (&*self.shared.state, &self.shared.count);
        let records = StoredRecords { state, shard: &shard, count };
        let mut applied = None;
        let mut run = || applied = Some(anchorhold_model::apply(&records, &entry));
        if entry.commands.iter().any(|command| matches!(command.write, Write::Split { .. })) {
            // It may have to count rows: that takes a while.
            self.shared.offload.in_place(&mut run);
        } else {
            run();
        }
        let applied = applied.ok_or_else(|| io::Error::other("nothing was applied"))?;
        let (outcomes, changes) = applied.map_err(|error| self.shared.fail(&error))?;
        header.shard = Some(changes.shard.clone());
        let mut rows: Vec<_> =
            changes.rows().map(|(key, value)| (keys::record(&key), value)).collect();
        let birth = changes.child.as_deref().map(|child| {
            let index = header.applied.map_or(0, |(_, index)| index);
            let (birth, child_rows) = birth::rows(self.shared.shard_id, index, child);
            rows.extend(child_rows);
            birth
        });
        let is_split = birth.is_some();
        if let Some(source) = &changes.absorbed {
            tokio::select! {
                biased;
                taken = self.shared.merges.take_in(self.shared.group, source) => taken?,
                stopped = self.shared.stopped() => return Err(stopped),
            }
            let index = header.applied.map_or(0, |(_, index)| index);
            let source = &source.state.descriptor;
            rows.extend(self.shared.births.adopt(source.shard_id, self.shared.shard_id));
            rows.extend(self.shared.merges.note(self.shared.group, index, source));
        }
        if let Some(child) = &changes.child {
            let mut kept = Ok(());
            self.shared.offload.in_place(&mut || {
                if let Some(cut) = self.shared.cut.lock().as_mut() {
                    kept = cut.detach(&*self.shared.state, child.descriptor.range);
                }
            });
            kept.map_err(|error| self.shared.fail(&error))?;
        }
        // Known before the parent's range shrinks: nobody else may take the child's keys.
        birth.into_iter().for_each(|birth| self.shared.births.add(birth));
        self.shared.commit(rows, header)?;
        self.listener.applied(self.shared.shard_id, &changes);
        if is_split {
            *self.shared.count.lock() = None;
            self.shared.births.announce();
        }
        if let Some(source) = &changes.absorbed {
            *self.shared.count.lock() = None;
            self.shared.merges.taken_in(source.state.descriptor.shard_id);
        }
        self.follow_preparations(&entry, &outcomes, &changes.shard);
        Ok(Reply::Shard(Arc::new(outcomes)))
    }

    /// Begins to count for a split that is near, and gives up a count that nobody came for. The lock
    /// is not held where the work is handed out: in a simulation it is done at once.
    fn follow_preparations(
        &self,
        entry: &anchorhold_model::Entry,
        outcomes: &[Outcome],
        shard: &ShardState,
    ) {
        let is_old = |count: &RowCount| {
            count.since.0.saturating_add(PREPARATION_KEEP_MS) < shard.shard_time.0
        };
        let mut begins = false;
        let mut count = self.shared.count.lock();
        if count.as_ref().is_some_and(is_old) {
            *count = None;
        }
        for (command, outcome) in entry.commands.iter().zip(outcomes) {
            let Write::PrepareSplit { at } = command.write else { continue };
            let range = KeyRange { start: at, end: shard.descriptor.range.end };
            let is_counted = count.as_ref().is_some_and(|count| count.range == range);
            if *outcome == Outcome::SplitPrepared && !is_counted {
                *count = Some(RowCount::new(range, shard.shard_time));
                begins = true;
            }
        }
        drop(count);
        if begins {
            let shared = self.shared.clone();
            tokio::spawn(self.shared.offload.spawn(Box::new(move || shared.count_rows())));
        }
    }

    fn apply_catalog(&self, content: &[u8], header: Header) -> io::Result<Reply> {
        let entry = row::decode_catalog_entry(content).map_err(io::Error::other)?;
        let Some(sender) = &self.shared.catalog else {
            return Err(io::Error::other("a catalog entry reached a shard"));
        };
        let mut next = CatalogState::clone(&sender.borrow());
        let (mut outcomes, changes) = catalog::apply_entry(&mut next, &entry);
        let mut rows = Vec::with_capacity(changes.len());
        for change in &changes {
            let (key, value) = change.row();
            let mut full = keys::content_prefix(ShardId::CATALOG);
            full.extend_from_slice(&key);
            rows.push((full, value));
        }
        self.shared.commit(rows, header)?;
        sender.send_replace(Arc::new(next));
        // A node proposes one command an entry.
        Ok(outcomes.pop().map_or(Reply::None, |outcome| Reply::Catalog(Arc::new(outcome))))
    }
}

fn replicas_of(membership: &Membership) -> Vec<Replica> {
    let voters: std::collections::BTreeSet<u64> = membership.voter_ids().collect();
    let replica = |(id, node): (&u64, &crate::types::PeerNode)| Replica {
        replica_id: ReplicaId(*id),
        node_id: NodeId(node.node_id),
        role: if voters.contains(id) { ReplicaRole::Voter } else { ReplicaRole::Learner },
    };
    membership.nodes().map(replica).collect()
}

/// The membership that a descriptor names, as the group's first entry.
pub(crate) fn membership_of(descriptor: &ShardDescriptor) -> crate::wire::WireMembership {
    let node = |replica: &Replica| {
        (replica.replica_id.0, crate::types::PeerNode { node_id: replica.node_id.0 })
    };
    let nodes = descriptor.replicas.iter().map(node).collect();
    let voters = descriptor.voters().map(|replica| replica.replica_id.0).collect();
    crate::wire::WireMembership { configs: vec![voters], nodes }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let header = self.shared.header.load();
        let membership = header.membership.clone().into_stored().map_err(io::Error::other)?;
        Ok((header.applied.map(wire::from_wire_log_id), membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let reply = self.apply_entry(entry).await?;
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<SnapshotBuilder> {
        SnapshotBuilder::begin(&self.shared)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        // openraft asks through `try_create_snapshot_builder` only.
        SnapshotBuilder::begin(&self.shared).unwrap_or_else(|| SnapshotBuilder::busy(&self.shared))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> Result<(), io::Error> {
        crate::snapshot::install(&self.shared, meta, snapshot).await?;
        (self.replaced)();
        // Its range may be another now: room for replicas that wait.
        self.shared.births.changed.notify_one();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        crate::snapshot::current(&self.shared)
    }
}

/// The position of a log id as the storage names it.
pub(crate) fn position(id: WireLogId) -> LogPosition {
    LogPosition { term: id.0, index: id.1 }
}

/// An encoded entry with its kind byte in front.
pub(crate) fn normal_payload(encoded: &[u8]) -> Payload {
    let mut bytes = Vec::with_capacity(1 + encoded.len());
    bytes.push(wire::KIND_NORMAL);
    bytes.extend_from_slice(encoded);
    Payload(bytes.into())
}
