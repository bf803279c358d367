//! The digest of what a replica holds, to compare replicas.
//!
//! Rows are read beside a running apply. Every batch of the apply rewrites the header row together
//! with the rows that it changes, so a scan between two equal headers has seen one state.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use anchorhold_model::digest::{StateDigest, StateDigester};
use anchorhold_storage::StateError;

use crate::keys;
use crate::machine::{Header, MachineShared, damaged};
use crate::replica::Replica;
use crate::snapshot::content_bounds;
use crate::wire;

/// What a replica held at one applied position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaDigest {
    /// Last log index applied.
    pub applied_index: u64,
    /// The shard's count of changes; 0 for the catalog.
    pub revision: u64,
    /// Anchors; 0 for the catalog.
    pub anchors: u64,
    /// Of all its rows, and of the shard's own state.
    pub digest: StateDigest,
}

/// Scans that are begun before a busy replica is given up.
const TRIES_MAX: usize = 5;

impl Replica {
    /// Digests everything that the replica holds. `None` if it changed during every try, or has no
    /// state yet. Reads every row: for checks, not for every day.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub async fn digest(&self) -> io::Result<Option<ReplicaDigest>> {
        let shared = Arc::clone(self.shared());
        let (done, digested) = tokio::sync::oneshot::channel();
        let work = Box::new(move || drop(done.send(digest(&shared))));
        self.shared().offload.spawn(work).await;
        let digested = digested.await.map_err(io::Error::other)?;
        digested.map_err(|error| io::Error::other(error.to_string()))
    }
}

fn digest(shared: &MachineShared) -> Result<Option<ReplicaDigest>, StateError> {
    for _ in 0..TRIES_MAX {
        let Some(before) = shared.state.get(&keys::header(shared.shard_id))? else {
            return Ok(None);
        };
        let digest = digest_at(shared, &before)?;
        if shared.state.get(&keys::header(shared.shard_id))?.as_ref() == Some(&before) {
            return Ok(Some(digest));
        }
    }
    Ok(None)
}

fn digest_at(shared: &MachineShared, header: &[u8]) -> Result<ReplicaDigest, StateError> {
    let header: Header = wire::decode("header", header).map_err(damaged)?;
    let (start, end) = content_bounds(shared.shard_id, header.shard.as_ref());
    let prefix = keys::content_prefix(shared.shard_id).len();
    let mut digester = StateDigester::default();
    shared.state.scan(&start[..]..&end[..], &mut |key, value| {
        digester.add_row(key.get(prefix..).unwrap_or_default(), value);
        ControlFlow::Continue(())
    })?;
    let shard = header.shard.as_ref();
    Ok(ReplicaDigest {
        applied_index: header.applied.map_or(0, |(_, index)| index),
        revision: shard.map_or(0, |shard| shard.revision),
        anchors: shard.map_or(0, |shard| shard.anchors),
        digest: match shard {
            Some(shard) => digester.finish(shard),
            None => digester.finish_rows(),
        },
    })
}
