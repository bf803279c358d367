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
use anchorhold_model::{ShardId, ShardState};
use anchorhold_storage::snapshot::{
    SnapshotFile, SnapshotHeader, SnapshotReader, SnapshotRow, SnapshotWriter,
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

/// A consistent view in the making.
pub(crate) struct Cut {
    header: Header,
    /// Next key to copy; everything from here to `end` is not copied yet.
    cursor: Vec<u8>,
    end: Vec<u8>,
    /// Rows in `[cursor, end)` that changed since the cut, as they were at the cut.
    before: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl Cut {
    fn new(shard_id: ShardId, header: Header) -> Self {
        let (cursor, end) = content_bounds(shard_id, header.shard.as_ref());
        Self { header, cursor, end, before: BTreeMap::new() }
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

    /// Copies the next chunk: rows as they were at the cut. Empty at the end.
    fn next_chunk(&mut self, state: &dyn StateStore) -> Result<Vec<SnapshotRow>, StateError> {
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
        if cut.is_some() {
            return None;
        }
        *cut = Some(Cut::new(shared.shard_id, Header::clone(&shared.header.load())));
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
        let file = built.await.map_err(io::Error::other)??;
        to_snapshot(file)
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
        .map_err(io::Error::other)?;
    copy_rows(shared, &mut writer)?;
    let file = writer.finish().map_err(io::Error::other)?;
    failpoint!(shared.hooks, "snapshot.written");
    shared.snapshots.retain_latest(shared.group).map_err(io::Error::other)?;
    Ok(file)
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
            writer.push(&key[prefix..], &value).map_err(io::Error::other)?;
        }
    }
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
    let latest = shared.snapshots.latest(shared.group).map_err(io::Error::other)?;
    match latest {
        Some(file) if file.header.position.is_some() => to_snapshot(file).map(Some),
        Some(_) | None => Ok(None),
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
    let (done, loaded) = oneshot::channel();
    let worker = shared.clone();
    let work = shared.offload.spawn(Box::new(move || {
        failpoint!(worker.hooks, "snapshot.received");
        let result = take_over(&worker, file).and_then(|file| load(&worker, &file));
        let _ = worker
            .snapshots
            .retain_latest(worker.group)
            .inspect_err(|error| tracing::warn!(%error, "an old snapshot file stays"));
        drop(done.send(result));
    }));
    work.await;
    let header = loaded.await.map_err(io::Error::other)?.map_err(|error| shared.fail(&error))?;
    publish(shared, header)
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
