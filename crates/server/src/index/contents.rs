//! What the index of one shard holds, without locks and threads.
//!
//! Invariants: an expiry is in the queue iff its anchor's row is stored; an anchor whose expiry is
//! at or before the shard time last absorbed is in no forest; dedup entries are queued in the order
//! of their time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use anchorhold_geometry::Ecef;
use anchorhold_localization::{
    ForestConfig, MergeJob, MergedTree, Neighbor, PositionError, PositionIndex, PositionSnapshot,
};
use anchorhold_model::{
    Anchor, AnchorId, Changes, Key, KeyRange, OperationId, RequestId, Timestamp,
};
use anchorhold_storage::StateError;

use super::{Frame, Source};

/// Positions, expiries and dedup entries of one shard.
pub struct Contents {
    config: ForestConfig,
    forests: BTreeMap<Frame, PositionIndex<AnchorId>>,
    expiries: Expiries,
    operations: VecDeque<KeptOperation>,
    /// Changes met while the records are scanned; `None` once built.
    pending: Option<BTreeMap<AnchorId, Option<Place>>>,
    /// What is searched beside `pending` until this index is built; of the shard before its split.
    inherited: Inheritance,
}

/// What is searched of a frame before an index is built: what the shard had before its split, both
/// sides' anchors, or what the shards had that it was merged from.
pub type Inheritance = Arc<BTreeMap<Frame, Vec<Inherited>>>;

/// One snapshot, and the keys that it counts for: it may hold older positions of others.
#[derive(Clone)]
pub struct Inherited {
    range: KeyRange,
    snapshot: PositionSnapshot<AnchorId>,
}

impl Inherited {
    fn whole(snapshot: PositionSnapshot<AnchorId>) -> Self {
        Self { range: KeyRange::FULL, snapshot }
    }

    /// The same for the keys of a range only.
    pub fn within(&self, range: &KeyRange) -> Self {
        Self { range: self.range.intersect(range), snapshot: self.snapshot.clone() }
    }
}

/// What can be found in one frame at one moment.
pub struct View {
    snapshots: Vec<Inherited>,
    /// Anchors that the snapshots are wrong about, and where they are now.
    changed: BTreeMap<AnchorId, Option<Ecef>>,
}

impl View {
    /// The nearest anchors that pass, nearest first, ties by id.
    ///
    /// # Errors
    /// [`PositionError`] if the position or the distance is none.
    pub fn nearest(
        &self,
        position: Ecef,
        k: usize,
        distance_m_max: f64,
        filter: &mut dyn FnMut(AnchorId) -> bool,
    ) -> Result<Vec<Neighbor<AnchorId>>, PositionError> {
        let mut found = Vec::new();
        for Inherited { range, snapshot } in &self.snapshots {
            let mut unchanged = |id: AnchorId| {
                range.contains_id(id) && !self.changed.contains_key(&id) && filter(id)
            };
            found.extend(snapshot.nearest(position, k, Some(distance_m_max), &mut unchanged)?);
        }
        if self.changed.is_empty() && self.snapshots.len() <= 1 {
            return Ok(found);
        }
        let moved = self.changed.iter().filter_map(|(id, at)| Some((*id, (*at)?)));
        let moved = moved.map(|(item, at)| Neighbor { item, distance_m: at.distance_m(position) });
        let moved = moved.filter(|moved| moved.distance_m <= distance_m_max);
        found.extend(moved.filter(|moved| filter(moved.item)));
        found.sort_by(|a, b| a.distance_m.total_cmp(&b.distance_m).then(a.item.cmp(&b.item)));
        found.truncate(k);
        Ok(found)
    }
}

/// A merge of one forest's trees, to run off the lock.
pub struct FrameMerge {
    /// Which forest.
    pub frame: Frame,
    /// What to run.
    pub job: MergeJob<AnchorId>,
}

/// What a sweep may erase.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Anchors whose expiry lies a grace back.
    pub anchors: Vec<AnchorId>,
    /// Dedup entries past their keep time.
    pub operations: Vec<(AnchorId, OperationId)>,
}

/// When rows may be erased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweepRules {
    /// Milliseconds that an expired anchor's row is kept.
    pub grace_ms: u64,
    /// Milliseconds that a dedup entry is kept.
    pub operations_keep_ms: u64,
    /// Rows of one sweep, at most.
    pub rows_max: usize,
}

/// What a scan of the records found.
pub struct Loaded {
    forests: BTreeMap<Frame, PositionIndex<AnchorId>>,
    expiries: Expiries,
    operations: Vec<KeptOperation>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    position: Ecef,
    expire_time: Option<Timestamp>,
}

#[derive(Default)]
struct Expiries {
    /// By key, so that a range can begin at a time.
    queue: BTreeSet<(Timestamp, Key)>,
    of: BTreeMap<AnchorId, Timestamp>,
    /// Everything up to here is hidden from the forests already.
    hidden_up_to: Timestamp,
}

/// A dedup entry in 48 bytes: many are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct KeptOperation {
    time: Timestamp,
    id: [u8; 16],
    request_id: [u8; 16],
    item: u32,
}

impl Contents {
    /// An index whose records are still to be scanned.
    pub fn building(config: ForestConfig) -> Self {
        Self {
            config,
            forests: BTreeMap::new(),
            expiries: Expiries::default(),
            operations: VecDeque::new(),
            pending: Some(BTreeMap::new()),
            inherited: Inheritance::default(),
        }
    }

    /// An index whose records are still to be scanned, and that searches what the shard had before
    /// its split until then.
    pub fn inheriting(config: ForestConfig, inherited: Inheritance) -> Self {
        Self { inherited, ..Self::building(config) }
    }

    /// Whether the records are still to be scanned.
    pub fn is_building(&self) -> bool {
        self.pending.is_some()
    }

    /// What can be searched now, for the sides of a split. If this index is itself not built yet,
    /// what changed meanwhile is put on top of what it inherited.
    pub fn inheritance(&self) -> Inheritance {
        let Some(pending) = &self.pending else {
            let forests = self.forests.iter();
            let snapshots =
                forests.map(|(frame, forest)| (*frame, vec![Inherited::whole(forest.snapshot())]));
            return Arc::new(snapshots.collect());
        };
        if pending.is_empty() {
            return Arc::clone(&self.inherited);
        }
        let mut points: BTreeMap<Frame, BTreeMap<AnchorId, Ecef>> = BTreeMap::new();
        for (frame, snapshots) in self.inherited.iter() {
            let own = snapshots
                .iter()
                .flat_map(|one| one.snapshot.iter().filter(|(id, _)| one.range.contains_id(*id)));
            points.entry(*frame).or_default().extend(own);
        }
        for (id, place) in pending {
            let Some(frame) = Frame::of(*id) else { continue };
            let points = points.entry(frame).or_default();
            match place {
                Some(place) => points.insert(*id, place.position),
                None => points.remove(id),
            };
        }
        let forest = |(frame, points): (Frame, BTreeMap<AnchorId, Ecef>)| {
            // Positions are checked before they are stored.
            let forest = PositionIndex::from_points(self.config, points.into_iter().collect());
            forest.ok().map(|forest| (frame, vec![Inherited::whole(forest.snapshot())]))
        };
        Arc::new(points.into_iter().filter_map(forest).collect())
    }

    /// Takes in what one entry changed. Returns the merges that the forests now need.
    pub fn absorb(&mut self, changes: &Changes) -> Vec<FrameMerge> {
        self.absorb_operations(changes);
        if let Some(pending) = &mut self.pending {
            let places = changes.anchors.iter();
            pending.extend(places.map(|(id, anchor)| (*id, anchor.as_deref().map(Place::of))));
            return Vec::new();
        }
        let shard_time = changes.shard.shard_time;
        let mut touched = BTreeSet::new();
        for (id, anchor) in &changes.anchors {
            touched.extend(Frame::of(*id));
            self.set(*id, anchor.as_deref().map(Place::of), shard_time);
        }
        self.hide_expired(shard_time);
        touched.into_iter().filter_map(|frame| self.next_merge(frame)).collect()
    }

    /// Puts the scanned records in and the changes met meanwhile on top.
    pub fn finish_build(&mut self, loaded: Loaded, shard_time: Timestamp) {
        self.forests = loaded.forests;
        self.expiries = loaded.expiries;
        // Entries that were applied during the scan are newer than what it saw, or the same.
        let met: BTreeSet<KeptOperation> = self.operations.iter().copied().collect();
        let mut operations: Vec<_> =
            loaded.operations.into_iter().filter(|operation| !met.contains(operation)).collect();
        operations.extend(met);
        operations.sort_unstable();
        self.operations = operations.into();
        for (id, place) in self.pending.take().unwrap_or_default() {
            self.set(id, place, shard_time);
        }
        self.hide_expired(shard_time);
        self.inherited = Inheritance::default();
    }

    /// Puts a merged tree in. Returns the next merge of that forest.
    pub fn install(&mut self, frame: Frame, merged: MergedTree<AnchorId>) -> Option<FrameMerge> {
        self.forests.get_mut(&frame)?.install(merged);
        self.next_merge(frame)
    }

    /// What can be found in a frame now.
    pub fn view(&self, frame: Frame) -> View {
        let Some(pending) = &self.pending else {
            let snapshot = self.forests.get(&frame).map(PositionIndex::snapshot);
            let snapshots = snapshot.into_iter().map(Inherited::whole).collect();
            return View { snapshots, changed: BTreeMap::new() };
        };
        let changed = pending.iter().filter(|(id, _)| Frame::of(**id) == Some(frame));
        let changed = changed.map(|(id, place)| (*id, place.map(|place| place.position)));
        let snapshots = self.inherited.get(&frame).cloned().unwrap_or_default();
        View { snapshots, changed: changed.collect() }
    }

    /// Points in all forests.
    pub fn points(&self) -> usize {
        self.forests.values().map(PositionIndex::len).sum()
    }

    /// What may be erased at a shard time, the longest due first.
    pub fn due(&self, now: Timestamp, rules: &SweepRules) -> Due {
        if self.pending.is_some() {
            return Due::default();
        }
        let is_due = |time: Timestamp, keep_ms: u64| time.0.saturating_add(keep_ms) <= now.0;
        let anchors = self.expiries.queue.iter();
        let anchors = anchors.take_while(|(time, _)| is_due(*time, rules.grace_ms));
        let anchors = anchors.filter_map(|(_, key)| AnchorId::from_key(*key).ok());
        let anchors: Vec<_> = anchors.take(rules.rows_max).collect();
        let operations = self.operations.iter();
        let operations =
            operations.take_while(|operation| is_due(operation.time, rules.operations_keep_ms));
        let operations = operations.filter_map(KeptOperation::name);
        let operations = operations.take(rules.rows_max - anchors.len()).collect();
        Due { anchors, operations }
    }

    /// Forgets dedup entries, which are near the front of the queue.
    pub fn forget_operations(&mut self, gone: &[(AnchorId, OperationId)]) {
        let gone: BTreeSet<_> = gone.iter().copied().collect();
        self.drop_operations(&gone);
    }

    fn absorb_operations(&mut self, changes: &Changes) {
        let mut gone = BTreeSet::new();
        for ((id, operation), record) in &changes.operations {
            match record {
                Some(record) => {
                    self.operations.push_back(KeptOperation::new(*id, *operation, record.time));
                }
                None => {
                    gone.insert((*id, *operation));
                }
            }
        }
        self.drop_operations(&gone);
    }

    /// Sweeps take the oldest first: only as much of the queue's front is looked at as can hold
    /// them. One that is missed is dropped when this replica leads and finds nothing to sweep.
    fn drop_operations(&mut self, gone: &BTreeSet<(AnchorId, OperationId)>) {
        if gone.is_empty() {
            return;
        }
        let front = self.operations.len().min(2 * gone.len() + OPERATIONS_SLACK);
        let kept: Vec<_> = self
            .operations
            .drain(..front)
            .filter(|operation| operation.name().is_some_and(|name| !gone.contains(&name)))
            .collect();
        for operation in kept.into_iter().rev() {
            self.operations.push_front(operation);
        }
    }

    fn set(&mut self, id: AnchorId, place: Option<Place>, shard_time: Timestamp) {
        let Some(frame) = Frame::of(id) else { return };
        let expire_time = place.and_then(|place| place.expire_time);
        self.expiries.set(id, expire_time);
        let visible = expire_time.is_none_or(|expire_time| shard_time < expire_time);
        match place {
            Some(place) if visible => {
                let forests = self.forests.entry(frame);
                let forest = forests.or_insert_with(|| PositionIndex::new(self.config));
                if let Err(error) = forest.upsert(id, place.position) {
                    // Positions are checked before they are stored: only a bug gets here.
                    tracing::error!(%error, "a stored position cannot be indexed");
                }
            }
            Some(_) | None => self.remove_point(frame, id),
        }
    }

    fn remove_point(&mut self, frame: Frame, id: AnchorId) {
        if let Some(forest) = self.forests.get_mut(&frame) {
            forest.remove(id);
            if forest.is_empty() {
                self.forests.remove(&frame);
            }
        }
    }

    fn hide_expired(&mut self, shard_time: Timestamp) {
        for id in self.expiries.newly_past(shard_time) {
            if let Some(frame) = Frame::of(id) {
                self.remove_point(frame, id);
            }
        }
    }

    fn next_merge(&mut self, frame: Frame) -> Option<FrameMerge> {
        let job = self.forests.get_mut(&frame)?.maintain()?;
        Some(FrameMerge { frame, job })
    }
}

/// Entries behind the swept ones that are looked at too: those of the same moment may have another
/// order on another replica.
const OPERATIONS_SLACK: usize = 1_024;

impl Loaded {
    /// Scans all records of a shard.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn scan(source: &dyn Source, config: ForestConfig) -> Result<Self, StateError> {
        let mut points: BTreeMap<Frame, Vec<(AnchorId, Ecef)>> = BTreeMap::new();
        let mut expiries = Expiries::default();
        let mut operations = Vec::new();
        source.scan(
            &mut |anchor| {
                if let Some(frame) = Frame::of(anchor.id) {
                    points.entry(frame).or_default().push((anchor.id, anchor.pose.position()));
                    expiries.set(anchor.id, anchor.expire_time);
                }
            },
            &mut |id, operation, time| operations.push(KeptOperation::new(id, operation, time)),
        )?;
        let mut forests = BTreeMap::new();
        for (frame, points) in points {
            let forest = PositionIndex::from_points(config, points)
                .map_err(|error| StateError::Damaged { reason: error.to_string() })?;
            forests.insert(frame, forest);
        }
        Ok(Self { forests, expiries, operations })
    }
}

impl Place {
    fn of(anchor: &Anchor) -> Self {
        Self { position: anchor.pose.position(), expire_time: anchor.expire_time }
    }
}

impl Expiries {
    fn set(&mut self, id: AnchorId, expire_time: Option<Timestamp>) {
        let before = match expire_time {
            Some(expire_time) => self.of.insert(id, expire_time),
            None => self.of.remove(&id),
        };
        if let Some(before) = before {
            self.queue.remove(&(before, id.key()));
        }
        if let Some(expire_time) = expire_time {
            self.queue.insert((expire_time, id.key()));
        }
    }

    /// Anchors whose expiry has passed since the last call.
    fn newly_past(&mut self, now: Timestamp) -> Vec<AnchorId> {
        if now <= self.hidden_up_to {
            return Vec::new();
        }
        // From the last moment itself: hiding twice does no harm.
        let from = (self.hidden_up_to, Key::FIRST);
        let until = (Timestamp(now.0.saturating_add(1)), Key::FIRST);
        self.hidden_up_to = now;
        self.queue.range(from..until).filter_map(|(_, key)| AnchorId::from_key(*key).ok()).collect()
    }
}

impl KeptOperation {
    fn new(id: AnchorId, operation: OperationId, time: Timestamp) -> Self {
        let request_id = operation.request_id.0.to_be_bytes();
        Self { time, id: id.to_bytes(), request_id, item: operation.item }
    }

    fn name(&self) -> Option<(AnchorId, OperationId)> {
        let id = AnchorId::from_bytes(self.id).ok()?;
        let request_id = RequestId(u128::from_be_bytes(self.request_id));
        Some((id, OperationId { request_id, item: self.item }))
    }
}
