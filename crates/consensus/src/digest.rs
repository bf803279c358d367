//! The digest of what a replica holds at one applied index, to compare replicas.
//!
//! It is read beside a running apply, as a snapshot is: from a [`Cut`]. The cut begins when exactly
//! the wanted entry has been applied, so replicas that are asked for the same index have digested
//! the same state, or one of them is wrong.

use std::sync::Arc;
use std::time::Duration;

use anchorhold_model::digest::{StateDigest, StateDigester};
use anchorhold_storage::StateError;
use anchorhold_storage::snapshot::SnapshotRow;
use tokio::sync::oneshot;

use crate::keys;
use crate::machine::{Header, MachineShared, damaged};
use crate::replica::Replica;
use crate::snapshot::{Cut, Purpose};
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

/// Why there is no digest.
#[derive(Debug, thiserror::Error)]
pub enum DigestError {
    /// A snapshot or another digest of the replica is under way, or it was given a new state.
    #[error("a snapshot or another digest of the replica is under way")]
    Busy,
    /// It has applied more than that already.
    #[error("the replica has applied more than that: up to {applied}")]
    Passed {
        /// The last index that it has applied.
        applied: u64,
    },
    /// It has not come as far in time.
    #[error("the replica has not applied that much")]
    NotReached,
    /// The state cannot be read.
    #[error("the replica's state cannot be read")]
    State(#[source] StateError),
}

/// Someone who waits for a cut at an index.
pub(crate) struct Wanted {
    index: u64,
    begun: oneshot::Sender<Option<CutOwner>>,
    owner: CutOwner,
}

/// Ends the replica's cut when it is dropped, if it owns it.
pub(crate) struct CutOwner {
    shared: Arc<MachineShared>,
    owns: bool,
}

impl Drop for CutOwner {
    fn drop(&mut self) {
        if self.owns {
            *self.shared.cut.lock() = None;
        }
    }
}

impl MachineShared {
    /// Begins the cut that is wanted, if the state has just come to its index. Called under the
    /// lock of the cut.
    pub(crate) fn begin_wanted(&self, cut: &mut Option<Cut>, header: &Header) {
        let applied = header.applied.map_or(0, |(_, index)| index);
        let mut wanted = self.wanted.lock();
        if wanted.as_ref().is_none_or(|wanted| applied < wanted.index) {
            return;
        }
        let Some(Wanted { index, begun, mut owner }) = wanted.take() else { return };
        let begins = applied == index && cut.is_none();
        if begins {
            *cut = Some(Cut::new(self.shard_id, header.clone(), Purpose::Digest));
            owner.owns = true;
        }
        if let Err(Some(mut owner)) = begun.send(begins.then_some(owner)) {
            // Nobody waits any more. The lock is held: its drop must not take it again.
            owner.owns = false;
            *cut = None;
        }
    }
}

impl Replica {
    /// Digests everything that the replica holds, as of `index`, or as of now. Reads every row, at
    /// so many bytes per second at most: for checks, not for every day. Waits for the index as long
    /// as `patience`.
    ///
    /// # Errors
    /// [`DigestError`].
    pub async fn digest(
        &self,
        index: Option<u64>,
        patience: Duration,
        bytes_per_second: u64,
    ) -> Result<ReplicaDigest, DigestError> {
        let shared = self.shared();
        let waiting = begin(shared, index)?;
        let begun = tokio::time::timeout(patience, waiting).await;
        let Ok(begun) = begun else {
            *shared.wanted.lock() = None;
            return Err(DigestError::NotReached);
        };
        // The header of the cut, not the replica's own, which goes on.
        let owner = begun.ok().flatten().ok_or(DigestError::Busy)?;
        let digested = read(shared, bytes_per_second).await;
        drop(owner);
        digested
    }
}

/// Begins a cut, or leaves word that it is wanted.
fn begin(
    shared: &Arc<MachineShared>,
    index: Option<u64>,
) -> Result<oneshot::Receiver<Option<CutOwner>>, DigestError> {
    let mut cut = shared.cut.lock();
    let mut wanted = shared.wanted.lock();
    if wanted.as_ref().is_some_and(|wanted| !wanted.begun.is_closed()) || cut.is_some() {
        return Err(DigestError::Busy);
    }
    // As committed: what others see of the header may be a moment behind the rows.
    let stored = shared.state.get(&keys::header(shared.shard_id)).map_err(DigestError::State)?;
    let stored = stored.ok_or(DigestError::NotReached)?;
    let header: Header =
        wire::decode("header", &stored).map_err(|error| DigestError::State(damaged(error)))?;
    let applied = header.applied.map_or(0, |(_, index)| index);
    let index = index.unwrap_or(applied);
    if index < applied {
        return Err(DigestError::Passed { applied });
    }
    let (begun, waiting) = oneshot::channel();
    let owner = CutOwner { shared: Arc::clone(shared), owns: false };
    *wanted = Some(Wanted { index, begun, owner });
    drop(wanted);
    if index == applied {
        shared.begin_wanted(&mut cut, &header);
    }
    Ok(waiting)
}

/// Reads the cut to its end.
async fn read(
    shared: &Arc<MachineShared>,
    bytes_per_second: u64,
) -> Result<ReplicaDigest, DigestError> {
    let header = match shared.cut.lock().as_ref() {
        Some(cut) => cut.header().clone(),
        None => return Err(DigestError::Busy),
    };
    let prefix = keys::content_prefix(shared.shard_id).len();
    let mut digester = StateDigester::default();
    loop {
        let (done, chunk) = oneshot::channel();
        let worker = Arc::clone(shared);
        let work = Box::new(move || drop(done.send(next_chunk(&worker))));
        shared.offload.spawn(work).await;
        let rows = chunk.await.map_err(|_| DigestError::Busy)??;
        if rows.is_empty() {
            break;
        }
        let mut bytes = 0;
        for (key, value) in &rows {
            bytes += (key.len() + value.len()) as u64;
            digester.add_row(key.get(prefix..).unwrap_or_default(), value);
        }
        let micros = bytes.saturating_mul(1_000_000) / bytes_per_second.max(1);
        tokio::time::sleep(Duration::from_micros(micros)).await;
    }
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

fn next_chunk(shared: &MachineShared) -> Result<Vec<SnapshotRow>, DigestError> {
    match shared.cut.lock().as_mut() {
        Some(cut) => cut.next_chunk(&*shared.state).map_err(DigestError::State),
        // A new state was loaded meanwhile.
        None => Err(DigestError::Busy),
    }
}
