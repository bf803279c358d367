//! Taking snapshots beside a running apply, and loading them.
//!
//! A snapshot is a file of one group's rows as of one applied position. The state store has no
//! snapshots of its own, so a [`Cut`] makes one: rows are copied out in chunks, and every commit
//! that changes a row which is not copied yet keeps the row's image from before. Apply waits for
//! one chunk at most.
//!
//! Loading is redone until it is finished: the header row is written last, and at start a replica
//! whose header is missing, marked or older than the latest file loads that file again.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use anchorhold_model::catalog::CatalogState;
use anchorhold_model::{KeyRange, ShardDescriptor, ShardId, ShardState};
use anchorhold_storage::snapshot::{
    SnapshotError, SnapshotFile, SnapshotHeader, SnapshotReader, SnapshotRow, SnapshotWriter,
};
use anchorhold_storage::{Batch, StateError, StateStore};
use openraft::RaftSnapshotBuilder;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::keys;
use crate::machine::{Header, MachineShared, damaged, position};
use crate::types::{Snapshot, SnapshotMeta, TypeConfig};
use crate::wire::{self, WireStoredMembership};

/// Rows copied while apply waits, at most.
const CHUNK_ROWS_MAX: usize = 512;

/// What stands in a snapshot file's header beside its position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SnapshotContent {
    pub(crate) membership: WireStoredMembership,
    /// `None` for the catalog.
    pub(crate) shard: Option<ShardState>,
}

/// What a cut is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A snapshot file.
    Snapshot,
    /// A digest: slow on purpose, and of no weight on the disk.
    Digest,
}

/// A consistent view in the making.
pub(crate) struct Cut {
    header: Header,
    /// What it is made for.
    pub(crate) purpose: Purpose,
    /// Next key to copy; everything from here to `end` is not copied yet.
    cursor: Vec<u8>,
    end: Vec<u8>,
    /// Rows in `[cursor, end)` that changed since the cut, as they were at the cut; and all rows from
    /// `end` on that were not copied when a split gave them away.
    before: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl Cut {
    pub(crate) fn new(shard_id: ShardId, header: Header, purpose: Purpose) -> Self {
        let (cursor, end) = content_bounds(shard_id, header.shard.as_ref());
        Self { header, purpose, cursor, end, before: BTreeMap::new() }
    }

    /// The replica's header at the cut.
    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// Called before a commit: keeps what it is about to change.
    pub(crate) fn keep_before_images(
        &mut self,
        state: &dyn StateStore,
        rows: &[(Vec<u8>, Option<Vec<u8>>)],
    ) -> Result<(), StateError> {
        for (key, _) in rows {
            if self.cursor <= *key && *key < self.end && !self.before.contains_key(key) {
                self.before.insert(key.clone(), state.get(key)?);
            }
        }
        Ok(())
    }

    /// Called before the shard's split is committed: keeps all that its child is about to own, whose
    /// changes are not seen here.
    pub(crate) fn detach(
        &mut self,
        state: &dyn StateStore,
        child: KeyRange,
    ) -> Result<(), StateError> {
        let (start, end) = keys::records(child);
        let from = start.max(self.cursor.clone());
        if self.end <= from || end <= from {
            return Ok(());
        }
        let before = &mut self.before;
        state.scan(&from[..]..&end[..], &mut |key, value| {
            if !before.contains_key(key) {
                before.insert(key.to_vec(), Some(value.to_vec()));
            }
            ControlFlow::Continue(())
        })?;
        self.end = from;
        Ok(())
    }

    /// Copies the next chunk: rows as they were at the cut. Empty at the end.
    pub(crate) fn next_chunk(
        &mut self,
        state: &dyn StateStore,
    ) -> Result<Vec<SnapshotRow>, StateError> {
        let mut rows = BTreeMap::new();
        while rows.is_empty() && self.cursor < self.end {
            state.scan(&self.cursor[..]..&self.end[..], &mut |key, value| {
                rows.insert(key.to_vec(), value.to_vec());
                if rows.len() < CHUNK_ROWS_MAX {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            })?;
            let chunk_end = match rows.last_key_value() {
                Some((last, _)) if rows.len() == CHUNK_ROWS_MAX => successor(last),
                _ => self.end.clone(),
            };
            let later = self.before.split_off(&chunk_end);
            for (key, value) in std::mem::replace(&mut self.before, later) {
                match value {
                    Some(value) => drop(rows.insert(key, value)),
                    None => drop(rows.remove(&key)),
                }
            }
            self.cursor = chunk_end;
        }
        if rows.is_empty() {
            while rows.len() < CHUNK_ROWS_MAX {
                let Some((key, value)) = self.before.pop_first() else { break };
                value.into_iter().for_each(|value| drop(rows.insert(key.clone(), value)));
            }
        }
        Ok(rows.into_iter().collect())
    }
}

/// The smallest key greater than `key`.
fn successor(key: &[u8]) -> Vec<u8> {
    let mut next = key.to_vec();
    next.push(0);
    next
}

pub(crate) fn content_bounds(shard_id: ShardId, shard: Option<&ShardState>) -> (Vec<u8>, Vec<u8>) {
    match shard {
        Some(shard) => keys::records(shard.descriptor.range),
        None => {
            debug_assert_eq!(shard_id, ShardId::CATALOG);
            keys::catalog_rows()
        }
    }
}

/// Builds one snapshot file.
pub(crate) struct SnapshotBuilder {
    shared: Arc<MachineShared>,
    /// Whether this builder owns the replica's cut.
    owns_cut: bool,
}

impl SnapshotBuilder {
    /// Starts a cut at the applied position; `None` while another one is being copied.
    pub(crate) fn begin(shared: &Arc<MachineShared>) -> Option<Self> {
        let mut cut = shared.cut.lock();
        // A newborn's beginning lies in this replica's file and log as they are.
        let stops = *shared.stopping.borrow();
        if cut.is_some() || stops || shared.births.is_parent(shared.shard_id) {
            return None;
        }
        let header = Header::clone(&shared.header.load());
        *cut = Some(Cut::new(shared.shard_id, header, Purpose::Snapshot));
        Some(Self { shared: shared.clone(), owns_cut: true })
    }

    /// A builder that refuses to build.
    pub(crate) fn busy(shared: &Arc<MachineShared>) -> Self {
        Self { shared: shared.clone(), owns_cut: false }
    }
}

impl Drop for SnapshotBuilder {
    fn drop(&mut self) {
        if self.owns_cut {
            *self.shared.cut.lock() = None;
        }
    }
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        if !self.owns_cut {
            return Err(io::Error::other("another snapshot of this replica is being built"));
        }
        let (done, built) = oneshot::channel();
        let shared = self.shared.clone();
        let work =
            self.shared.offload.spawn(Box::new(move || drop(done.send(write_file(&shared)))));
        work.await;
        match built.await.map_err(io::Error::other)? {
            Ok(file) => to_snapshot(file),
            // Raft would end over it. The one before it is as good as it was.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                let shard = self.shared.shard_id.0;
                tracing::warn!(%error, shard, "no room for a snapshot: the one before it stays");
                latest(&self.shared)?.ok_or(error)
            }
            Err(error) => Err(error),
        }
    }
}

fn write_file(shared: &MachineShared) -> io::Result<SnapshotFile> {
    let header = match shared.cut.lock().as_ref() {
        Some(cut) => cut.header.clone(),
        None => return Err(io::Error::other("the cut is gone")),
    };
    let content = SnapshotContent { membership: header.membership, shard: header.shard };
    let mut writer = shared
        .snapshots
        .create(SnapshotHeader {
            format: wire::FORMAT_VERSION,
            group: shared.group,
            position: header.applied.map(position),
            meta: wire::encode(&content).to_vec(),
        })
        .map_err(keep_kind)?;
    copy_rows(shared, &mut writer)?;
    let file = writer.finish().map_err(keep_kind)?;
    failpoint!(shared.hooks, "snapshot.written");
    shared.snapshots.retain_latest(shared.group).map_err(io::Error::other)?;
    settle(shared).map_err(|error| shared.fail(&error))?;
    Ok(file)
}

/// The replica has a verified file: if a split made it, it does not need its parent any more.
fn settle(shared: &MachineShared) -> Result<(), StateError> {
    shared.births.settle(&*shared.state, shared.shard_id)
}

fn copy_rows(shared: &MachineShared, writer: &mut SnapshotWriter) -> io::Result<()> {
    let prefix = keys::content_prefix(shared.shard_id).len();
    loop {
        let chunk = match shared.cut.lock().as_mut() {
            Some(cut) => cut.next_chunk(&*shared.state).map_err(|error| shared.fail(&error))?,
            None => return Err(io::Error::other("the cut is gone")),
        };
        if chunk.is_empty() {
            return Ok(());
        }
        for (key, value) in chunk {
            writer.push(&key[prefix..], &value).map_err(keep_kind)?;
        }
    }
}

/// The error as one of the file system, so that a full disk can be told from a failed one.
fn keep_kind(error: SnapshotError) -> io::Error {
    let kind = if let SnapshotError::Io { source, .. } = &error {
        source.kind()
    } else {
        io::ErrorKind::Other
    };
    io::Error::new(kind, error)
}

fn to_snapshot(file: SnapshotFile) -> io::Result<Snapshot> {
    Ok(Snapshot { meta: meta_of(&file)?, snapshot: file })
}

/// openraft's meta of a snapshot file.
pub(crate) fn meta_of(file: &SnapshotFile) -> io::Result<SnapshotMeta> {
    let content: SnapshotContent =
        wire::decode("a snapshot's header", &file.header.meta).map_err(io::Error::other)?;
    let last_log_id =
        file.header.position.map(|position| crate::types::log_id(position.term, position.index));
    let last_membership = content.membership.into_stored().map_err(io::Error::other)?;
    Ok(SnapshotMeta { last_log_id, last_membership })
}

/// The replica's latest snapshot. The file that a replica was founded with has no position and is
/// no snapshot in openraft's sense.
pub(crate) fn current(shared: &MachineShared) -> io::Result<Option<Snapshot>> {
    let latest = latest(shared)?;
    let index = latest.as_ref().and_then(|found| found.meta.last_log_id.map(|id| id.index));
    let purged = shared.log.group(shared.group).and_then(|log| log.purged).map(|mark| mark.index);
    // Where damage has cost the log its entries up to what is applied, an older file leads nowhere,
    // and openraft makes another of the state. The parent of newborns makes none: they begin with
    // the one that is there.
    let leads_nowhere = index < purged && !shared.births.is_parent(shared.shard_id);
    Ok(latest.filter(|_| !leads_nowhere))
}

fn latest(shared: &MachineShared) -> io::Result<Option<Snapshot>> {
    let latest = shared.snapshots.latest(shared.group).map_err(io::Error::other)?;
    match latest {
        Some(file) if file.header.position.is_some() => to_snapshot(file).map(Some),
        Some(_) | None => shared.births.of(shared.shard_id).map(|birth| birth.handle()).transpose(),
    }
}

/// Replaces the replica's state by a received, verified file.
pub(crate) async fn install(
    shared: &Arc<MachineShared>,
    meta: &SnapshotMeta,
    file: SnapshotFile,
) -> io::Result<()> {
    let index = meta.last_log_id.as_ref().map_or(0, |id| id.index);
    tracing::info!(shard = shared.shard_id.0, index, rows = file.rows, "loading a snapshot");
    let content: SnapshotContent =
        wire::decode("a snapshot's header", &file.header.meta).map_err(io::Error::other)?;
    let ended = match &content.shard {
        Some(shard) => tokio::select! {
            biased;
            ended = shared.merges.give_up(&shard.descriptor) => ended?,
            stopped = shared.stopped() => return Err(stopped),
        },
        None => Vec::new(),
    };
    let ended_ids: Vec<ShardId> = ended.iter().map(|shard| shard.shard_id).collect();
    let (done, loaded) = oneshot::channel();
    let worker = shared.clone();
    let work = shared.offload.spawn(Box::new(move || {
        failpoint!(worker.hooks, "snapshot.received");
        *worker.count.lock() = None;
        let result = take_over(&worker, file)
            .and_then(|file| note_ended(&worker, &ended, index).map(|()| file))
            .and_then(|file| load(&worker, &file))
            .and_then(|header| settle(&worker).map(|()| header));
        let _ = worker
            .snapshots
            .retain_latest(worker.group)
            .inspect_err(|error| tracing::warn!(%error, "an old snapshot file stays"));
        drop(done.send(result));
    }));
    work.await;
    let header = loaded.await.map_err(io::Error::other)?.map_err(|error| shared.fail(&error))?;
    publish(shared, header)?;
    ended_ids.into_iter().for_each(|shard| shared.merges.taken_in(shard));
    Ok(())
}

/// Notes what a snapshot ends, once its file lies where a start finds it.
fn note_ended(
    shared: &MachineShared,
    ended: &[ShardDescriptor],
    index: u64,
) -> Result<(), StateError> {
    ended.iter().for_each(|shard| shared.births.forget(shard.shard_id));
    let mut rows = Vec::new();
    for shard in ended {
        rows.extend(shared.births.adopt(shard.shard_id, shared.shard_id));
        rows.extend(shared.merges.note(shared.group, index, shard));
    }
    if rows.is_empty() { Ok(()) } else { shared.state.commit(Batch { rows }) }
}

/// The file where the replica's own files lie: a received one is there already.
fn take_over(shared: &MachineShared, file: SnapshotFile) -> Result<SnapshotFile, StateError> {
    if file.path.parent() == Some(shared.snapshots.dir()) {
        return Ok(file);
    }
    shared.snapshots.adopt(&file.path).map_err(damaged)
}

/// Publishes a loaded header, and the catalog's state with it.
pub(crate) fn publish(shared: &MachineShared, header: Header) -> io::Result<()> {
    if let Some(catalog) = &shared.catalog {
        let state = read_catalog(&*shared.state).map_err(|error| shared.fail(&error))?;
        catalog.send_replace(Arc::new(state));
    }
    shared.publish(header);
    Ok(())
}

/// The catalog as its rows say it.
pub(crate) fn read_catalog(state: &dyn StateStore) -> Result<CatalogState, StateError> {
    let (start, end) = keys::catalog_rows();
    let prefix = keys::content_prefix(ShardId::CATALOG).len();
    let mut rows = Vec::new();
    state.scan(&start[..]..&end[..], &mut |key, value| {
        rows.push((key[prefix..].to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    })?;
    CatalogState::from_rows(rows).map_err(damaged)
}

/// Loads a file's rows in place of the replica's. May be cut anywhere and done again.
pub(crate) fn load(shared: &MachineShared, file: &SnapshotFile) -> Result<Header, StateError> {
    let content: SnapshotContent =
        wire::decode("a snapshot's header", &file.header.meta).map_err(damaged)?;
    // Nobody copies on from a state that is being replaced.
    *shared.cut.lock() = None;
    let mark = keys::installing(shared.shard_id);
    let state = &*shared.state;
    state.commit(Batch { rows: vec![(mark.clone(), Some(vec![1]))] })?;
    state.checkpoint()?;
    if let Some(old) = &shared.header.load().shard {
        let (start, end) = keys::records(old.descriptor.range);
        state.clear(&start[..]..&end[..])?;
    }
    let (start, end) = content_bounds(shared.shard_id, content.shard.as_ref());
    state.clear(&start[..]..&end[..])?;

    let prefix = keys::content_prefix(shared.shard_id);
    let mut batch = Batch::default();
    for row in SnapshotReader::open(&file.path).map_err(damaged)? {
        let (key, value) = row.map_err(damaged)?;
        let mut full = prefix.clone();
        full.extend_from_slice(&key);
        batch.rows.push((full, Some(value)));
        if batch.rows.len() == CHUNK_ROWS_MAX {
            state.commit(std::mem::take(&mut batch))?;
        }
    }
    let header = Header {
        applied: file.header.position.map(|position| (position.term, position.index)),
        membership: content.membership,
        shard: content.shard,
    };
    batch.rows.push((keys::header(shared.shard_id), Some(wire::encode(&header).to_vec())));
    batch.rows.push((mark, None));
    state.commit(batch)?;
    state.checkpoint()?;
    Ok(header)
}

#[cfg(test)]
mod tests {
    use anchorhold_model::{ClassId, Key};
    use anchorhold_storage::MemoryState;

    use super::*;

    fn key(number: u128) -> Vec<u8> {
        keys::record(&(number << 64).to_be_bytes())
    }

    /// The child changes its rows as soon as it is born, and the parent's cut does not see it.
    #[test]
    fn a_cut_that_a_split_overtakes_still_holds_what_was_there() {
        for copied_chunks in 0..4 {
            let state = MemoryState::new();
            let rows: Vec<_> = (0..1_400_u128).map(|one| (key(one), Some(vec![7; 9]))).collect();
            state.commit(Batch { rows: rows.clone() }).unwrap();
            let range = KeyRange { start: Key(0), end: Some(Key(1_400 << 64)) };
            let descriptor = ShardDescriptor::found(ShardId(5), range, ClassId(1), &[]);
            let (_, child) = descriptor.split(Key(800 << 64), ShardId(6));
            let shard = Some(ShardState::new(descriptor));
            let header = Header { shard, ..Header::default() };
            let mut cut = Cut::new(ShardId(5), header, Purpose::Snapshot);
            let mut copied = Vec::new();
            for _ in 0..copied_chunks {
                copied.extend(cut.next_chunk(&state).unwrap());
            }
            cut.detach(&state, child.range).unwrap();
            // The child's own commits, and one of the parent's.
            let changed = vec![
                (key(801), None),
                (key(1_399), Some(vec![1])),
                (keys::record(&((900 << 64) + 1_u128).to_be_bytes()), Some(vec![2])),
            ];
            state.commit(Batch { rows: changed }).unwrap();
            let own = vec![(key(799), Some(vec![3]))];
            cut.keep_before_images(&state, &own).unwrap();
            state.commit(Batch { rows: own }).unwrap();
            loop {
                let chunk = cut.next_chunk(&state).unwrap();
                if chunk.is_empty() {
                    break;
                }
                copied.extend(chunk);
            }
            let copied: Vec<_> =
                copied.into_iter().map(|(key, value)| (key, Some(value))).collect();
            assert_eq!(copied.len(), rows.len(), "after {copied_chunks} chunks");
            assert!(copied == rows, "after {copied_chunks} chunks");
        }
    }
}
