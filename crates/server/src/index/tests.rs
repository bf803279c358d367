use std::collections::BTreeMap;
use std::sync::mpsc;

use anchorhold_consensus::seams::BoxFuture;
use anchorhold_geometry::{GeoPoint, Orientation};
use anchorhold_model::apply::OperationRecord;
use anchorhold_model::{
    ClassId, KeyRange, NodeId, Outcome, Pose, RequestId, ShardDescriptor, Version,
};
use anchorhold_proto::convert::AnchorDraft;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::contents::SweepRules;
use super::*;

const SHARD: ShardId = ShardId(5);
const ACCOUNT: AccountNumber = AccountNumber(1);
const EARTH: Frame = Frame { account: ACCOUNT, space: Space::Earth };

/// Keeps background work until a test runs it.
struct Held(Mutex<mpsc::Sender<Box<dyn FnOnce() + Send>>>);

impl Offload for Held {
    fn in_place(&self, work: &mut dyn FnMut()) {
        work();
    }

    fn spawn(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        self.0.lock().send(work).unwrap();
        Box::pin(async {})
    }
}

struct Stored {
    state: ShardState,
    anchors: Vec<Arc<Anchor>>,
    operations: Vec<(AnchorId, OperationId, Timestamp)>,
}

impl Source for Stored {
    fn state(&self) -> Arc<ShardState> {
        Arc::new(self.state.clone())
    }

    fn scan(
        &self,
        visit_anchor: &mut dyn FnMut(Arc<Anchor>),
        visit_operation: &mut dyn FnMut(AnchorId, OperationId, Timestamp),
    ) -> Result<(), StateError> {
        self.anchors.iter().for_each(|anchor| visit_anchor(Arc::clone(anchor)));
        self.operations.iter().for_each(|(id, name, time)| visit_operation(*id, *name, *time));
        Ok(())
    }
}

/// The indexes of a node, and its background work.
struct Bench {
    indexes: Indexes,
    work: mpsc::Receiver<Box<dyn FnOnce() + Send>>,
    state: ShardState,
}

fn operation(item: u32) -> OperationId {
    OperationId { request_id: RequestId(9), item }
}

fn anchor(item: u32, latitude_deg: f64, expire_time: Option<u64>) -> Arc<Anchor> {
    let point = GeoPoint::new(latitude_deg, 11.0, 0.0).unwrap();
    let home = GeoPoint::new(48.0, 11.0, 0.0).unwrap();
    let orientation = Orientation::IDENTITY;
    let home = Pose::Geo { point: home, orientation };
    let id = AnchorId::derive(ACCOUNT, &home, RequestId(1), item, 0);
    let draft = AnchorDraft {
        pose: Pose::Geo { point, orientation },
        accuracy: anchorhold_model::Accuracy::default(),
        properties: BTreeMap::new(),
        tags: std::collections::BTreeSet::new(),
        expire_time: expire_time.map(Timestamp),
        creator: String::new(),
        quality: None,
    };
    Arc::new(draft.into_anchor(id))
}

/// Anchors at random places, in key order.
fn scattered(random: &mut StdRng) -> BTreeMap<AnchorId, Arc<Anchor>> {
    let anchors = (0..300).map(|item| anchor(item, random.random_range(-80.0..80.0), None));
    anchors.map(|anchor| (anchor.id, anchor)).collect()
}

fn no_changes(shard: &ShardState) -> Changes {
    let (anchors, operations) = (BTreeMap::new(), BTreeMap::new());
    Changes { anchors, operations, shard: shard.clone(), child: None, absorbed: None }
}

impl Bench {
    fn new() -> Self {
        let (sender, work) = mpsc::channel();
        let range = KeyRange::of_account(ACCOUNT);
        let state = ShardState::new(ShardDescriptor::found(SHARD, range, ClassId(1), &[NodeId(1)]));
        let config = ForestConfig { buffer_max: 8, ..ForestConfig::default() };
        Self { indexes: Indexes::new(Arc::new(Held(Mutex::new(sender))), config), work, state }
    }

    fn open(&self, anchors: Vec<Arc<Anchor>>) {
        let operations = anchors.iter().map(|anchor| (anchor.id, operation(0), Timestamp(3)));
        let operations = operations.collect();
        let source = Stored { state: self.state.clone(), anchors, operations };
        self.indexes.open(SHARD, Arc::new(source));
    }

    fn run_work(&self) {
        while let Ok(work) = self.work.try_recv() {
            work();
        }
    }

    /// Applies changes at a shard time.
    fn apply(&mut self, time: u64, anchors: &[(AnchorId, Option<Arc<Anchor>>)]) {
        self.state.revision += 1;
        self.state.shard_time = Timestamp(time);
        let anchors = anchors.iter().cloned().collect();
        let changes = Changes { anchors, ..no_changes(&self.state) };
        self.indexes.applied(SHARD, &changes);
    }

    fn put(&mut self, time: u64, anchor: &Arc<Anchor>) {
        self.apply(time, &[(anchor.id, Some(Arc::clone(anchor)))]);
    }

    /// Ids of all that is found, nearest to the equator first.
    fn found(&self) -> Vec<AnchorId> {
        let index = self.indexes.shard(SHARD).unwrap();
        let equator = GeoPoint::new(0.0, 11.0, 0.0).unwrap().to_ecef();
        let found = index.nearest(EARTH, equator, 1_000, f64::INFINITY, &mut |_| true).unwrap();
        found.into_iter().map(|neighbor| neighbor.item).collect()
    }

    fn ready(&self) -> bool {
        self.indexes.ready()
    }
}

#[test]
fn changes_met_while_the_records_are_scanned_win_over_the_scan() {
    let mut bench = Bench::new();
    let (kept, moved, gone, new) =
        (anchor(1, 10.0, None), anchor(2, 20.0, None), anchor(3, 30.0, None), anchor(4, 5.0, None));
    bench.open(vec![kept.clone(), moved.clone(), gone.clone()]);
    let mut far = Anchor::clone(&moved);
    far.pose = anchor(2, 1.0, None).pose;
    bench.put(1, &Arc::new(far));
    bench.apply(1, &[(gone.id, None)]);
    bench.put(1, &new);
    assert!(!bench.ready());
    bench.run_work();
    assert!(bench.ready());
    assert_eq!(bench.found(), [moved.id, new.id, kept.id]);
}

#[test]
fn an_anchor_disappears_when_shard_time_reaches_its_expiry_and_comes_back_if_prolonged() {
    let mut bench = Bench::new();
    bench.open(vec![anchor(1, 10.0, Some(100)), anchor(2, 20.0, None)]);
    bench.run_work();
    let (expiring, lasting) = (anchor(1, 10.0, Some(100)), anchor(2, 20.0, None));
    bench.apply(99, &[]);
    assert_eq!(bench.found(), [expiring.id, lasting.id]);
    bench.apply(100, &[]);
    assert_eq!(bench.found(), [lasting.id]);
    bench.put(101, &anchor(1, 10.0, Some(500)));
    assert_eq!(bench.found(), [expiring.id, lasting.id]);
    bench.put(500, &anchor(3, 30.0, Some(400)));
    assert_eq!(bench.found(), [lasting.id]);
}

#[test]
fn sweeps_take_what_is_due_and_no_more_than_they_may() {
    let mut bench = Bench::new();
    bench.open((0..10).map(|item| anchor(item, 10.0, Some(100 + u64::from(item)))).collect());
    bench.run_work();
    let index = bench.indexes.shard(SHARD).unwrap();
    let rules = SweepRules { grace_ms: 50, operations_keep_ms: 40, rows_max: 6 };
    assert_eq!(index.due(Timestamp(42), &rules), Due::default());
    let due = index.due(Timestamp(43), &rules);
    assert_eq!((due.anchors.len(), due.operations.len()), (0, 6));
    index.forget_operations(&due.operations);
    assert_eq!(index.due(Timestamp(43), &rules).operations.len(), 4);
    let due = index.due(Timestamp(152), &rules);
    assert_eq!((due.anchors.len(), due.operations.len()), (3, 3));
    let swept: Vec<_> = due.anchors.iter().map(|id| (*id, None)).collect();
    bench.apply(152, &swept);
    assert_eq!(index.due(Timestamp(152), &rules).anchors.len(), 0);
}

#[test]
fn dedup_entries_that_a_sweep_erased_are_not_swept_again() {
    let mut bench = Bench::new();
    bench.open(Vec::new());
    bench.run_work();
    let id = anchor(1, 1.0, None).id;
    let record = |time| OperationRecord {
        time: Timestamp(time),
        write_digest: 0,
        outcome: Outcome::Deleted { version: Version::default() },
    };
    let with = |bench: &mut Bench, operations: Vec<(u32, Option<OperationRecord>)>| {
        let operations = operations.into_iter().map(|(item, kept)| ((id, operation(item)), kept));
        let operations = operations.collect();
        let shard = bench.state.clone();
        bench.indexes.applied(
            SHARD,
            &Changes { anchors: BTreeMap::new(), operations, shard, child: None, absorbed: None },
        );
    };
    with(&mut bench, (0..5).map(|item| (item, Some(record(10)))).collect());
    with(&mut bench, vec![(3, None), (1, None)]);
    let rules = SweepRules { grace_ms: 0, operations_keep_ms: 0, rows_max: 100 };
    let left = bench.indexes.shard(SHARD).unwrap().due(Timestamp(10), &rules).operations;
    let items: Vec<_> = left.into_iter().map(|(_, operation)| operation.item).collect();
    assert_eq!(items, [0, 2, 4]);
}

#[test]
fn random_changes_with_merges_in_between_give_what_brute_force_gives() {
    const SEED: u64 = 7;
    println!("seed {SEED}");
    let mut random = StdRng::seed_from_u64(SEED);
    let mut bench = Bench::new();
    bench.open(Vec::new());
    bench.run_work();
    let mut expected: BTreeMap<AnchorId, Arc<Anchor>> = BTreeMap::new();
    for step in 0..2_000_u64 {
        let item = random.random_range(0..300);
        if random.random_bool(0.3) {
            let id = anchor(item, 0.0, None).id;
            bench.apply(step, &[(id, None)]);
            expected.remove(&id);
        } else {
            let changed = anchor(item, random.random_range(0.0..80.0), None);
            bench.put(step, &changed);
            expected.insert(changed.id, changed);
        }
        if random.random_bool(0.1) {
            bench.run_work();
        }
    }
    let equator = GeoPoint::new(0.0, 11.0, 0.0).unwrap().to_ecef();
    let mut brute: Vec<_> = expected
        .values()
        .map(|anchor| (anchor.pose.position().distance_m(equator), anchor.id))
        .collect();
    brute.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    assert_eq!(bench.found(), brute.into_iter().map(|(_, id)| id).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_query_waits_until_the_index_has_seen_its_view() {
    let mut bench = Bench::new();
    bench.open(Vec::new());
    let index = bench.indexes.shard(SHARD).unwrap();
    let soon = Duration::from_millis(1);
    assert!(!index.reach(0, Timestamp(0), soon).await, "not built yet");
    bench.run_work();
    assert!(index.reach(0, Timestamp(0), soon).await);
    assert!(!index.reach(1, Timestamp(0), soon).await);
    bench.apply(5, &[]);
    assert!(index.reach(1, Timestamp(5), soon).await);
    assert!(!index.reach(1, Timestamp(6), soon).await);
}

#[tokio::test]
async fn both_sides_of_a_split_find_what_is_theirs_before_and_after_their_own_index_is_built() {
    let mut random = StdRng::seed_from_u64(7);
    let mut stored = scattered(&mut random);
    let mut bench = Bench::new();
    let whole: Arc<dyn Source> = Arc::new(Stored {
        state: bench.state.clone(),
        anchors: stored.values().cloned().collect(),
        operations: Vec::new(),
    });
    bench.indexes.open(SHARD, Arc::clone(&whole));
    bench.run_work();
    let at = stored.keys().nth(150).unwrap().key();
    let (parent, child) = bench.state.descriptor.split(at, ShardId(6));
    let child_state = ShardState { descriptor: child.clone(), ..bench.state.clone() };
    bench.state.descriptor = parent.clone();
    let mut changes = no_changes(&bench.state);
    changes.child = Some(Box::new(child_state.clone()));
    bench.indexes.applied(SHARD, &changes);
    // Some move, some go, on either side.
    for item in (0..300).step_by(7) {
        let moved = anchor(item, random.random_range(-80.0..80.0), None);
        let (shard, state) = match child.range.contains_id(moved.id) {
            true => (ShardId(6), child_state.clone()),
            false => (SHARD, bench.state.clone()),
        };
        let change = (item % 2 == 0).then(|| Arc::clone(&moved));
        match &change {
            Some(moved) => stored.insert(moved.id, Arc::clone(moved)),
            None => stored.remove(&moved.id),
        };
        let anchors = [(moved.id, change)].into();
        let changes = Changes { anchors, ..no_changes(&state) };
        bench.indexes.applied(shard, &changes);
    }
    let check = |bench: &Bench, when: &str| {
        for (shard, range) in [(SHARD, parent.range), (ShardId(6), child.range)] {
            let index = bench.indexes.shard(shard).unwrap();
            assert!(index.reached.borrow().ready, "{when}: {shard} cannot be searched");
            let equator = GeoPoint::new(0.0, 11.0, 0.0).unwrap().to_ecef();
            let mut is_own = |id: AnchorId| range.contains_id(id);
            let found = index.nearest(EARTH, equator, 40, f64::INFINITY, &mut is_own).unwrap();
            let own = stored.values().filter(|anchor| range.contains_id(anchor.id));
            let mut expected: Vec<_> =
                own.map(|anchor| (anchor.pose.position().distance_m(equator), anchor.id)).collect();
            expected.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            let found: Vec<_> = found.into_iter().map(|neighbor| neighbor.item).collect();
            let expected: Vec<_> = expected.into_iter().map(|(_, id)| id).take(40).collect();
            assert_eq!(found, expected, "{when}, {shard}");
        }
    };
    check(&bench, "inherited");
    // Each builds its own from its records.
    for (shard, state) in [(SHARD, bench.state.clone()), (ShardId(6), child_state)] {
        let range = state.descriptor.range;
        let own = stored.values().filter(|anchor| range.contains_id(anchor.id));
        let anchors = own.cloned().collect();
        let source = Stored { state, anchors, operations: Vec::new() };
        let index = bench.indexes.shard(shard).unwrap();
        assert!(index.is_inheriting());
        index.build(&source, bench.indexes.config);
        assert!(!index.is_inheriting());
    }
    check(&bench, "built");
}

#[tokio::test]
async fn a_merged_shard_finds_what_both_had_before_and_after_its_own_index_is_built() {
    let mut random = StdRng::seed_from_u64(8);
    let mut stored = scattered(&mut random);
    let mut bench = Bench::new();
    let at = stored.keys().nth(150).unwrap().key();
    let (left, right) = bench.state.descriptor.split(at, ShardId(6));
    let right_state = ShardState { descriptor: right.clone(), ..bench.state.clone() };
    bench.state.descriptor = left.clone();
    for state in [&bench.state, &right_state] {
        let range = state.descriptor.range;
        let own = stored.values().filter(|anchor| range.contains_id(anchor.id));
        let source = Stored {
            state: state.clone(),
            anchors: own.cloned().collect(),
            operations: Vec::new(),
        };
        bench.indexes.open(state.descriptor.shard_id, Arc::new(source));
    }
    bench.run_work();
    bench.state.descriptor = left.merge(&right);
    let frozen = anchorhold_model::Frozen { state: right_state, term: 1, index: 7 };
    let mut changes = no_changes(&bench.state);
    changes.absorbed = Some(Box::new(frozen));
    bench.indexes.applied(SHARD, &changes);
    bench.indexes.removed(ShardId(6));
    // Some of either side move, some go.
    for item in (0..300).step_by(7) {
        let moved = anchor(item, random.random_range(-80.0..80.0), None);
        let change = (item % 2 == 0).then(|| Arc::clone(&moved));
        match &change {
            Some(moved) => stored.insert(moved.id, Arc::clone(moved)),
            None => stored.remove(&moved.id),
        };
        bench.apply(5, &[(moved.id, change)]);
    }
    let check = |bench: &Bench, when: &str| {
        let index = bench.indexes.shard(SHARD).unwrap();
        assert!(index.reached.borrow().ready, "{when}: it cannot be searched");
        let equator = GeoPoint::new(0.0, 11.0, 0.0).unwrap().to_ecef();
        let found = index.nearest(EARTH, equator, 40, f64::INFINITY, &mut |_| true).unwrap();
        let mut expected: Vec<_> = stored
            .values()
            .map(|anchor| (anchor.pose.position().distance_m(equator), anchor.id))
            .collect();
        expected.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let found: Vec<_> = found.into_iter().map(|neighbor| neighbor.item).collect();
        let expected: Vec<_> = expected.into_iter().map(|(_, id)| id).take(40).collect();
        assert_eq!(found, expected, "{when}");
    };
    check(&bench, "of both");
    let index = bench.indexes.shard(SHARD).unwrap();
    assert!(index.is_inheriting());
    let anchors = stored.values().cloned().collect();
    let source = Stored { state: bench.state.clone(), anchors, operations: Vec::new() };
    index.build(&source, bench.indexes.config);
    assert!(!index.is_inheriting());
    check(&bench, "built");
}

/// Each side of a split searches what both had: where the other side's anchors were then is not where
/// they are when both are one again.
#[tokio::test]
async fn what_a_split_left_of_the_other_sides_places_is_not_found_after_a_merge() {
    let mut random = StdRng::seed_from_u64(9);
    let mut stored = scattered(&mut random);
    let mut bench = Bench::new();
    bench.open(stored.values().cloned().collect());
    bench.run_work();
    let at = stored.keys().nth(150).unwrap().key();
    let (left, right) = bench.state.descriptor.split(at, ShardId(6));
    let mut right_state = ShardState { descriptor: right.clone(), ..bench.state.clone() };
    bench.state.descriptor = left.clone();
    let mut changes = no_changes(&bench.state);
    changes.child = Some(Box::new(right_state.clone()));
    bench.indexes.applied(SHARD, &changes);
    // All of the right side go somewhere else, and one of the left.
    let left_id = *stored.keys().next().unwrap();
    for item in 0..300 {
        let moved = anchor(item, random.random_range(-80.0..80.0), None);
        let is_right = right.range.contains_id(moved.id);
        if !is_right && moved.id != left_id {
            continue;
        }
        stored.insert(moved.id, Arc::clone(&moved));
        let anchors = [(moved.id, Some(moved))].into();
        let (shard, state) =
            if is_right { (ShardId(6), &right_state) } else { (SHARD, &bench.state) };
        bench.indexes.applied(shard, &Changes { anchors, ..no_changes(state) });
    }
    right_state.revision += 200;
    bench.state.descriptor = left.merge(&right);
    let frozen = anchorhold_model::Frozen { state: right_state, term: 1, index: 7 };
    let mut changes = no_changes(&bench.state);
    changes.absorbed = Some(Box::new(frozen));
    bench.indexes.applied(SHARD, &changes);
    bench.indexes.removed(ShardId(6));
    let equator = GeoPoint::new(0.0, 11.0, 0.0).unwrap().to_ecef();
    let mut expected: Vec<_> = stored
        .values()
        .map(|anchor| (anchor.pose.position().distance_m(equator), anchor.id))
        .collect();
    expected.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let expected: Vec<AnchorId> = expected.into_iter().map(|(_, id)| id).collect();
    assert_eq!(bench.found(), expected, "each once, where it is now");
}
