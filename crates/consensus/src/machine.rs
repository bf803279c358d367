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
    Anchor, AnchorId, NodeId, OperationId, Records, Replica, ReplicaId, ReplicaRole,
    ShardDescriptor, ShardId, ShardState, row,
};
use anchorhold_storage::snapshot::{SnapshotFile, SnapshotStore};
use anchorhold_storage::{Batch, GroupId, LogPosition, StateError, StateStore};
use arc_swap::ArcSwap;
use futures::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::storage::{EntryResponder, RaftStateMachine};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::host::Listener;
use crate::keys;
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
    pub(crate) state: Arc<dyn StateStore>,
    pub(crate) snapshots: Arc<SnapshotStore>,
    pub(crate) offload: Arc<dyn Offload>,
    pub(crate) exit: Arc<dyn Exit>,
    /// Guards every commit of this replica's rows against a snapshot's cut.
    pub(crate) cut: Mutex<Option<Cut>>,
    pub(crate) header: ArcSwap<Header>,
    /// The shard's state alone, for readers. Of no meaning in the catalog.
    pub(crate) shard: ArcSwap<ShardState>,
    pub(crate) applied: watch::Sender<Applied>,
    /// The catalog's state; `None` in a shard.
    pub(crate) catalog: Option<watch::Sender<Arc<CatalogState>>>,
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
        let mut batch = Some(Batch { rows });
        let mut result = Ok(());
        self.offload.in_place(&mut || {
            let mut cut = self.cut.lock();
            if let (Some(cut), Some(batch)) = (cut.as_mut(), batch.as_ref()) {
                result = cut.keep_before_images(&*self.state, &batch.rows);
            }
            if result.is_ok() {
                result = self.state.commit(batch.take().unwrap_or_default());
            }
        });
        result.map_err(|error| self.fail(&error))?;
        self.publish(header);
        Ok(())
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
}

/// The state machine as openraft drives it.
pub(crate) struct Machine {
    shared: Arc<MachineShared>,
    listener: Arc<dyn Listener>,
    durable: watch::Receiver<u64>,
    /// Told when a snapshot has replaced the records as a whole.
    replaced: Box<dyn Fn() + Send + Sync>,
}

impl Machine {
    pub(crate) fn new(
        shared: Arc<MachineShared>,
        listener: Arc<dyn Listener>,
        durable: watch::Receiver<u64>,
        replaced: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        Self { shared, listener, durable, replaced }
    }

    async fn apply_entry(&mut self, entry: Entry) -> io::Result<Reply> {
        let index = entry.log_id.index;
        let waited = self.durable.wait_for(|end| index < *end).await;
        waited.map_err(|_| io::Error::other("the log was closed"))?;
        let mut header = Header::clone(&self.shared.header.load());
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
            EntryPayload::Normal(payload) => self.apply_normal(&payload, header),
        }
    }

    fn apply_normal(&mut self, payload: &Payload, header: Header) -> io::Result<Reply> {
        let content = payload.0.get(1..).unwrap_or_default();
        match &self.shared.catalog {
            Some(_) => self.apply_catalog(content, header),
            None => self.apply_shard(content, header),
        }
    }

    fn apply_shard(&self, content: &[u8], mut header: Header) -> io::Result<Reply> {
        let entry = row::decode_entry(content).map_err(io::Error::other)?;
        let Some(shard) = header.shard.take() else {
            return Err(io::Error::other("a shard's entry reached a group without a shard"));
        };
        #[cfg(feature = "chaos")]
        let entry = self.shared.hooks.reroute(entry, &shard);
        let records = StoredRecords { state: &*self.shared.state, shard: &shard };
        let (outcomes, changes) =
            anchorhold_model::apply(&records, &entry).map_err(|error| self.shared.fail(&error))?;
        header.shard = Some(changes.shard.clone());
        let rows = changes.rows().map(|(key, value)| (keys::record(&key), value)).collect();
        self.shared.commit(rows, header)?;
        self.listener.applied(self.shared.shard_id, &changes);
        Ok(Reply::Shard(Arc::new(outcomes)))
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
