//! Keeps the derived indexes of every replica on this node: positions and expiries.
//!
//! Input is what consensus applies ([`Listener`]); output are answers about one shard: its nearest
//! anchors, what is due for a sweep. Everything here is derived state: built from the records in
//! the background, changed with each applied entry, thrown away when a snapshot replaces them.
//!
//! Invariants: a query sees every change up to the view it waited for ([`ShardIndex::reach`]); an
//! anchor that is expired at the reached shard time is in no forest; one forest holds one account's
//! anchors in one space.
//!
//! Not here: records, filters by content (`serve`), which shards to ask (`locate`).

pub mod contents;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use anchorhold_consensus::seams::BoxFuture;
use anchorhold_consensus::{Listener, Offload, Replica};
use anchorhold_geometry::Ecef;
use anchorhold_localization::{ForestConfig, Neighbor, PositionError};
use anchorhold_model::{
    AccountNumber, Anchor, AnchorId, Changes, Frozen, KeyRange, OperationId, ShardId, ShardState,
    Space, Timestamp,
};
use anchorhold_storage::StateError;
use metrics::gauge;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use self::contents::{Contents, Due, FrameMerge, Inheritance, Inherited, Loaded};
use crate::telemetry::name;

/// The indexes of all shards of this node.
pub struct Indexes {
    shards: RwLock<BTreeMap<ShardId, Arc<ShardIndex>>>,
    offload: Arc<dyn Offload>,
    config: ForestConfig,
}

/// The indexes of one shard.
pub struct ShardIndex {
    contents: Mutex<Contents>,
    reached: watch::Sender<Reached>,
    /// Where the records are, to build the index again after a split.
    source: OnceLock<Weak<dyn Source>>,
}

/// How long the sides of a split or a merged shard search what was there before they build their
/// own: the handing over comes first.
const BUILD_AFTER_SPLIT: Duration = Duration::from_secs(1);

/// How far an index has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// Whether it is built.
    pub ready: bool,
    /// The shard's revision.
    pub revision: u64,
    /// The shard's time.
    pub shard_time: Timestamp,
}

impl Reached {
    fn includes(&self, revision: u64, shard_time: Timestamp) -> bool {
        self.ready && revision <= self.revision && shard_time <= self.shard_time
    }
}

/// Whose anchors in which space: what one forest holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frame {
    /// The account.
    pub account: AccountNumber,
    /// The space.
    pub space: Space,
}

/// What an index is built from.
pub trait Source: Send + Sync + 'static {
    /// The shard's applied state.
    fn state(&self) -> Arc<ShardState>;

    /// Visits all stored anchors and dedup entries.
    ///
    /// # Errors
    /// If the state cannot be read.
    fn scan(
        &self,
        visit_anchor: &mut dyn FnMut(Arc<Anchor>),
        visit_operation: &mut dyn FnMut(AnchorId, OperationId, Timestamp),
    ) -> Result<(), StateError>;
}

impl Source for Replica {
    fn state(&self) -> Arc<ShardState> {
        Self::state(self)
    }

    fn scan(
        &self,
        visit_anchor: &mut dyn FnMut(Arc<Anchor>),
        visit_operation: &mut dyn FnMut(AnchorId, OperationId, Timestamp),
    ) -> Result<(), StateError> {
        self.scan_records(visit_anchor, visit_operation)
    }
}

impl Listener for Indexes {
    fn opened(&self, replica: &Arc<Replica>) {
        self.open(replica.shard_id(), Arc::clone(replica) as Arc<dyn Source>);
    }

    fn applied(&self, shard: ShardId, changes: &Changes) {
        let Some(index) = self.shard(shard) else { return };
        let merges = index.absorb(changes);
        for merge in merges {
            self.run_merge(&index, merge);
        }
        if let Some(child) = &changes.child {
            self.split(&index, &changes.shard, child);
        }
        if let Some(source) = &changes.absorbed {
            self.merge(&index, &changes.shard, source);
        }
    }

    fn replaced(&self, replica: &Arc<Replica>) {
        self.open(replica.shard_id(), Arc::clone(replica) as Arc<dyn Source>);
    }

    fn removed(&self, shard: ShardId) {
        self.shards.write().remove(&shard);
    }
}

impl Indexes {
    /// No indexes yet. `offload` builds and merges them.
    pub fn new(offload: Arc<dyn Offload>, config: ForestConfig) -> Self {
        Self { shards: RwLock::default(), offload, config }
    }

    /// The index of a shard, if this node has a replica of it.
    pub fn shard(&self, shard: ShardId) -> Option<Arc<ShardIndex>> {
        self.shards.read().get(&shard).cloned()
    }

    /// Starts to build a shard's index, in the place of an older one. Changes that are absorbed
    /// while the records are scanned are kept and win over what the scan saw.
    fn open(&self, shard: ShardId, source: Arc<dyn Source>) {
        let born = self.shard(shard).filter(|index| index.source.get().is_none());
        if let Some(index) = born {
            // A split's child searches what its parent had until its own index is built.
            self.build_later(index, source);
            return;
        }
        let index =
            Arc::new(ShardIndex::new(Contents::building(self.config), &source.state(), false));
        // Set once, here: the index is new.
        let _ = index.source.set(Arc::downgrade(&source));
        // Who waits for the older index learns that it is gone, and asks again.
        self.shards.write().insert(shard, Arc::clone(&index));
        // The work runs whether or not its end is awaited.
        drop(build(&*self.offload, self.config, index, source));
    }

    /// Builds an index that can be searched meanwhile.
    fn build_later(&self, index: Arc<ShardIndex>, source: Arc<dyn Source>) {
        // Set once, here: an index that has a source is never given to this.
        let _ = index.source.set(Arc::downgrade(&source));
        let (offload, config) = (Arc::clone(&self.offload), self.config);
        tokio::spawn(async move {
            tokio::time::sleep(BUILD_AFTER_SPLIT).await;
            build(&*offload, config, index, source).await;
        });
    }

    /// Gives each side of a split an index of its own, which searches what the shard's had before
    /// beside what changes from now on, until it is built from the records.
    fn split(&self, index: &ShardIndex, parent: &ShardState, child: &ShardState) {
        let inherited = index.contents.lock().inheritance();
        // One that was not built itself has nothing to be searched yet.
        let ready = index.reached.borrow().ready;
        let heir = |state: &ShardState| {
            let contents = Contents::inheriting(self.config, inherited.clone());
            Arc::new(ShardIndex::new(contents, state, ready))
        };
        let (parent_index, child_index) = (heir(parent), heir(child));
        {
            let mut shards = self.shards.write();
            shards.insert(parent.descriptor.shard_id, Arc::clone(&parent_index));
            shards.insert(child.descriptor.shard_id, child_index);
        }
        // The child's comes with its replica, which is about to open.
        if let Some(source) = index.source.get().and_then(Weak::upgrade) {
            self.build_later(parent_index, source);
        }
    }

    /// Gives a shard that has taken another one in an index that searches what both had beside what
    /// changes from now on, until it is built from the records.
    fn merge(&self, index: &ShardIndex, merged: &ShardState, source: &Frozen) {
        let (left, right) = (index.contents.lock().inheritance(), source.state.descriptor.range);
        let own = KeyRange { end: Some(right.start), ..merged.descriptor.range };
        // A split a moment ago may have left each with old positions of the other's anchors.
        let mut both: BTreeMap<Frame, Vec<Inherited>> = BTreeMap::new();
        let mut add = |inherited: &Inheritance, range: &KeyRange| {
            for (frame, parts) in inherited.iter() {
                both.entry(*frame).or_default().extend(parts.iter().map(|one| one.within(range)));
            }
        };
        add(&left, &own);
        let mut ready = index.reached.borrow().ready;
        match self.shard(source.state.descriptor.shard_id) {
            Some(other) => {
                add(&other.contents.lock().inheritance(), &right);
                ready &= other.reached.borrow().ready;
            }
            None => ready = false,
        }
        let contents = Contents::inheriting(self.config, Arc::new(both));
        let merged_index = Arc::new(ShardIndex::new(contents, merged, ready));
        self.shards.write().insert(merged.descriptor.shard_id, Arc::clone(&merged_index));
        if let Some(source) = index.source.get().and_then(Weak::upgrade) {
            self.build_later(merged_index, source);
        }
    }

    fn run_merge(&self, index: &Arc<ShardIndex>, merge: FrameMerge) {
        let index = Arc::clone(index);
        let work = move || {
            let mut next = Some(merge);
            while let Some(FrameMerge { frame, job }) = next {
                let merged = job.run();
                next = index.contents.lock().install(frame, merged);
            }
        };
        drop(self.offload.spawn(Box::new(work)));
    }

    /// Points in all indexes of this node.
    pub fn points(&self) -> usize {
        let shards: Vec<_> = self.shards.read().values().cloned().collect();
        shards.iter().map(|index| index.contents.lock().points()).sum()
    }

    /// Whether every index is built.
    pub fn ready(&self) -> bool {
        self.shards.read().values().all(|index| index.reached.borrow().ready)
    }
}

/// Builds an index from its records, off the async threads.
fn build(
    offload: &dyn Offload,
    config: ForestConfig,
    index: Arc<ShardIndex>,
    source: Arc<dyn Source>,
) -> BoxFuture<'static, ()> {
    gauge!(name::INDEX_BUILDS).increment(1);
    let work = move || {
        index.build(&*source, config);
        gauge!(name::INDEX_BUILDS).decrement(1);
    };
    offload.spawn(Box::new(work))
}

impl ShardIndex {
    fn new(contents: Contents, state: &ShardState, ready: bool) -> Self {
        let reached = Reached { ready, revision: state.revision, shard_time: state.shard_time };
        let contents = Mutex::new(contents);
        Self { contents, reached: watch::Sender::new(reached), source: OnceLock::new() }
    }

    fn absorb(&self, changes: &Changes) -> Vec<FrameMerge> {
        let mut contents = self.contents.lock();
        let merges = contents.absorb(changes);
        // Under the lock, so that a build that ends now does not publish an older moment.
        self.reached.send_modify(|reached| {
            reached.revision = changes.shard.revision;
            reached.shard_time = changes.shard.shard_time;
        });
        merges
    }

    fn build(&self, source: &dyn Source, config: ForestConfig) {
        let loaded = match Loaded::scan(source, config) {
            Ok(loaded) => loaded,
            Err(error) => {
                // Queries of this shard go on to other replicas; consensus deals with the store.
                tracing::error!(%error, "a position index could not be built");
                return;
            }
        };
        let mut contents = self.contents.lock();
        let shard_time = self.reached.borrow().shard_time;
        contents.finish_build(loaded, shard_time);
        self.reached.send_modify(|reached| reached.ready = true);
    }

    /// Whether the index is built and has seen a moment of its shard.
    pub fn has_reached(&self, revision: u64, shard_time: Timestamp) -> bool {
        self.reached.borrow().includes(revision, shard_time)
    }

    /// Waits until the index is built and has seen a moment of its shard. False if the index was
    /// replaced or the time was up.
    pub async fn reach(&self, revision: u64, shard_time: Timestamp, timeout: Duration) -> bool {
        if self.has_reached(revision, shard_time) {
            return true;
        }
        let is_there = |reached: &Reached| reached.includes(revision, shard_time);
        let mut receiver = self.reached.subscribe();
        let waited = tokio::time::timeout(timeout, receiver.wait_for(is_there)).await;
        matches!(waited, Ok(Ok(_)))
    }

    /// The nearest anchors of a frame that pass, nearest first, ties by id.
    ///
    /// # Errors
    /// [`PositionError`] if the position or the distance is none.
    pub fn nearest(
        &self,
        frame: Frame,
        position: Ecef,
        k: usize,
        distance_m_max: f64,
        filter: &mut dyn FnMut(AnchorId) -> bool,
    ) -> Result<Vec<Neighbor<AnchorId>>, PositionError> {
        // A view is a pointer per tree: the search itself holds no lock.
        let view = self.contents.lock().view(frame);
        view.nearest(position, k, distance_m_max, filter)
    }

    /// Whether what is searched may show anchors that have expired since the shard was split.
    pub fn is_inheriting(&self) -> bool {
        self.contents.lock().is_building()
    }

    /// What a sweep may erase at a shard time, at most `rows_max` rows.
    pub fn due(&self, now: Timestamp, rules: &contents::SweepRules) -> Due {
        self.contents.lock().due(now, rules)
    }

    /// Forgets dedup entries that a sweep has dealt with.
    pub fn forget_operations(&self, operations: &[(AnchorId, OperationId)]) {
        self.contents.lock().forget_operations(operations);
    }
}

impl Frame {
    /// The frame that an anchor lies in; `None` for reserved ids, which no anchor has.
    pub fn of(id: AnchorId) -> Option<Self> {
        id.space().map(|space| Self { account: id.account(), space })
    }
}

#[cfg(test)]
mod tests;
