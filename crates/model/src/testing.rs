//! What the tests of this crate share: a shard in memory, and arbitrary entries.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;

use anchorhold_geometry::{GeoPoint, Orientation};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use crate::digest::{StateDigest, StateDigester};
use crate::row::{self, RowKey};
use crate::{
    AccountNumber, Accuracy, Anchor, AnchorId, AnchorPatch, Changes, ClassId, Command, Entry,
    Epoch, Frozen, KeyRange, LocalPosition, MergeStep, NodeId, OperationId, OperationRecord,
    Outcome, Pose, Records, RequestId, RowTotals, ShardDescriptor, ShardId, ShardState, Stamp,
    Timestamp, Version, Write,
};

/// The account of all test anchors.
pub(crate) const ACCOUNT: AccountNumber = AccountNumber(1);
/// Anchors that arbitrary entries speak of.
const ANCHORS: u32 = 5;
const MINUTE_MS: u64 = 60_000;

/// How many cases a property is tried on: always the same ones, or those of `PROPTEST_RNG_SEED`.
pub(crate) fn cases(cases: u32) -> ProptestConfig {
    let mut config =
        ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) };
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(20_261_123);
    }
    config
}

/// A shard in memory.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MemoryShard {
    pub(crate) state: ShardState,
    pub(crate) anchors: BTreeMap<AnchorId, Arc<Anchor>>,
    pub(crate) operations: BTreeMap<(AnchorId, OperationId), OperationRecord>,
}

impl Records for MemoryShard {
    type Error = Infallible;

    fn shard(&self) -> &ShardState {
        &self.state
    }

    fn anchor(&self, id: AnchorId) -> Result<Option<Arc<Anchor>>, Infallible> {
        Ok(self.anchors.get(&id).cloned())
    }

    fn operation(
        &self,
        id: AnchorId,
        operation: OperationId,
    ) -> Result<Option<OperationRecord>, Infallible> {
        Ok(self.operations.get(&(id, operation)).cloned())
    }

    fn totals(&self, range: KeyRange) -> Result<RowTotals, Infallible> {
        let mut totals = RowTotals::default();
        for (key, value) in self.rows() {
            totals.bytes += match RowKey::parse(&key).unwrap() {
                RowKey::Anchor(id) if range.contains_id(id) => {
                    totals.anchors += 1;
                    (key.len() + value.len()) as u64
                }
                RowKey::Operation(id, _) if range.contains_id(id) => {
                    totals.operations += 1;
                    (key.len() + value.len()) as u64
                }
                RowKey::Anchor(_) | RowKey::Operation(..) => 0,
            };
        }
        Ok(totals)
    }
}

impl MemoryShard {
    /// A new shard that owns the test account.
    pub(crate) fn new() -> Self {
        let (anchors, operations) = (BTreeMap::new(), BTreeMap::new());
        Self { state: shard_state(), anchors, operations }
    }

    /// Applies an entry.
    pub(crate) fn apply(&mut self, entry: &Entry) -> Vec<Outcome> {
        let (outcomes, changes) = match crate::apply(self, entry) {
            Ok(applied) => applied,
            Err(never) => match never {},
        };
        self.absorb(changes);
        outcomes
    }

    /// Applies an entry that may split the shard; gives the child with its rows.
    pub(crate) fn apply_and_split(&mut self, entry: &Entry) -> (Vec<Outcome>, Option<Self>) {
        let (outcomes, mut changes) = match crate::apply(self, entry) {
            Ok(applied) => applied,
            Err(never) => match never {},
        };
        let child = changes.child.take();
        self.absorb(changes);
        let child = child.map(|state| {
            let at = state.descriptor.range.start;
            let inside = |id: &AnchorId| at <= id.key();
            let (anchors, left) =
                std::mem::take(&mut self.anchors).into_iter().partition(|(id, _)| inside(id));
            self.anchors = left;
            let (operations, left) = std::mem::take(&mut self.operations)
                .into_iter()
                .partition(|((id, _), _)| inside(id));
            self.operations = left;
            Self { state: *state, anchors, operations }
        });
        (outcomes, child)
    }

    /// Takes another shard's rows over, as a node does when this shard has absorbed it.
    pub(crate) fn take_in(&mut self, other: Self) {
        self.anchors.extend(other.anchors);
        self.operations.extend(other.operations);
    }

    /// Applies one command at a time.
    pub(crate) fn run(&mut self, time: u64, operation: u32, write: Write) -> Outcome {
        let epoch = self.state.descriptor.epoch;
        let command = Command { operation: self::operation(operation), epoch, write };
        let stamp = Stamp { time: Timestamp(time) };
        self.apply(&Entry { stamp, commands: vec![command] }).remove(0)
    }

    pub(crate) fn absorb(&mut self, changes: Changes) {
        for (id, anchor) in changes.anchors {
            match anchor {
                Some(anchor) => self.anchors.insert(id, anchor),
                None => self.anchors.remove(&id),
            };
        }
        for (id, record) in changes.operations {
            match record {
                Some(record) => self.operations.insert(id, record),
                None => self.operations.remove(&id),
            };
        }
        self.state = changes.shard;
    }

    /// All rows, in key order.
    pub(crate) fn rows(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let anchors = self.anchors.iter();
        let anchors =
            anchors.map(|(id, anchor)| (row::anchor_key(*id).to_vec(), row::encode_anchor(anchor)));
        let operations = self.operations.iter().map(|((id, operation), record)| {
            (row::operation_key(*id, *operation).to_vec(), row::encode_operation(record))
        });
        anchors.chain(operations).collect()
    }

    /// The shard that a snapshot's rows make.
    pub(crate) fn restore(state: &[u8], rows: &BTreeMap<Vec<u8>, Vec<u8>>) -> Self {
        let mut shard = Self { state: row::decode_shard_state(state).unwrap(), ..Self::new() };
        for (key, value) in rows {
            match RowKey::parse(key).unwrap() {
                RowKey::Anchor(id) => {
                    shard.anchors.insert(id, Arc::new(row::decode_anchor(value).unwrap()));
                }
                RowKey::Operation(id, operation) => {
                    let record = row::decode_operation(value).unwrap();
                    shard.operations.insert((id, operation), record);
                }
            }
        }
        shard
    }

    pub(crate) fn digest(&self) -> StateDigest {
        let mut digester = StateDigester::default();
        for (key, value) in self.rows() {
            digester.add_row(&key, &value);
        }
        digester.finish(&self.state)
    }
}

pub(crate) fn shard_state() -> ShardState {
    let range = KeyRange::of_account(ACCOUNT);
    ShardState::new(ShardDescriptor::found(ShardId(1), range, ClassId(1), &[NodeId(1), NodeId(2)]))
}

pub(crate) fn operation(number: u32) -> OperationId {
    OperationId { request_id: RequestId(u128::from(number / 4)), item: number % 4 }
}

pub(crate) fn geo(latitude_deg: f64, longitude_deg: f64) -> Pose {
    let point = GeoPoint::new(latitude_deg, longitude_deg, 10.0).unwrap();
    Pose::Geo { point, orientation: Orientation::IDENTITY }
}

pub(crate) fn local(space: u32, x: f64, y: f64) -> Pose {
    let position = LocalPosition::new([x, y, 1.0]).unwrap();
    Pose::Local { space, position, orientation: Orientation::IDENTITY }
}

/// The n-th test anchor: even ones on Earth, odd ones in a local space.
pub(crate) fn anchor(number: u32) -> Anchor {
    let far = f64::from(number) * 1e-3;
    let pose = if number.is_multiple_of(2) { geo(51.5 + far, -far) } else { local(3, far, 7.0) };
    let request_id = RequestId(u128::from(number));
    Anchor {
        id: AnchorId::derive(ACCOUNT, &pose, request_id, 0, 0),
        pose,
        accuracy: Accuracy::default(),
        properties: BTreeMap::new(),
        tags: BTreeSet::new(),
        expire_time: None,
        create_time: Timestamp(0),
        update_time: Timestamp(0),
        creator: String::new(),
        quality: None,
        version: Version::default(),
        created_by: None,
    }
}

pub(crate) fn create(number: u32) -> Write {
    Write::Create(Box::new(anchor(number)))
}

pub(crate) fn any_pose() -> impl Strategy<Value = Pose> {
    prop_oneof![
        3 => (51.499..51.51, -0.01..0.01).prop_map(|(latitude, longitude)| geo(latitude, longitude)),
        1 => (-90.0..=90.0, -180.0..=180.0)
            .prop_map(|(latitude, longitude)| geo(latitude, longitude)),
        3 => (2_u32..4, -200.0..200.0, -200.0..200.0).prop_map(|(space, x, y)| local(space, x, y)),
    ]
}

pub(crate) fn any_id() -> impl Strategy<Value = AnchorId> {
    let strange =
        (any::<u32>(), any_pose(), any::<u128>()).prop_map(|(account, pose, request_id)| {
            AnchorId::derive(AccountNumber(account), &pose, RequestId(request_id), 0, 0)
        });
    prop_oneof![9 => (0..ANCHORS).prop_map(|number| anchor(number).id), 1 => strange]
}

/// Times around those that entries carry.
fn any_time() -> impl Strategy<Value = Timestamp> {
    prop_oneof![
        4 => (0..40 * MINUTE_MS).prop_map(Timestamp),
        1 => (0..3000 * MINUTE_MS).prop_map(Timestamp),
        1 => any::<u64>().prop_map(Timestamp),
    ]
}

fn any_properties() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map("[a-c]", "[a-z]{0,8}", 0..3)
}

pub(crate) fn any_anchor() -> impl Strategy<Value = Anchor> {
    let place = prop_oneof![
        8 => (0..ANCHORS).prop_map(|number| (anchor(number).id, anchor(number).pose)),
        1 => (any_id(), any_pose()),
    ];
    let expire_time = prop::option::weighted(0.3, any_time());
    let rest = (any_properties(), expire_time, any::<Option<f32>>(), any::<u8>());
    (place, rest).prop_map(|((id, pose), (properties, expire_time, quality, number))| Anchor {
        id,
        pose,
        properties,
        expire_time,
        quality: quality.filter(|quality| !quality.is_nan()),
        tags: [format!("tag{}", number % 3)].into(),
        creator: "tests".to_owned(),
        // A careless sender may set what `apply` sets.
        version: Version { incarnation: 0, revision: u64::from(number % 2) },
        ..anchor(0)
    })
}

fn any_patch() -> impl Strategy<Value = AnchorPatch> {
    (
        prop::option::of(any_pose()),
        prop::option::of(any_properties()),
        prop::option::of(prop::option::of(any_time())),
        prop::option::of(prop::option::of(0.0_f32..1.0)),
    )
        .prop_map(|(pose, properties, expire_time, quality)| AnchorPatch {
            pose,
            properties,
            expire_time,
            quality,
            ..AnchorPatch::default()
        })
}

fn any_version() -> impl Strategy<Value = Option<Version>> {
    let version = (0..=1_u32, 0_u64..12)
        .prop_map(|(incarnation, revision)| Version { incarnation, revision });
    prop::option::weighted(0.3, version)
}

pub(crate) fn any_write() -> impl Strategy<Value = Write> {
    let ids = prop::collection::vec(any_id(), 0..4);
    let operations = prop::collection::vec((any_id(), any_operation()), 0..8);
    prop_oneof![
        4 => any_anchor().prop_map(|anchor| Write::Create(Box::new(anchor))),
        4 => (any_id(), any_patch(), any_version()).prop_map(|(id, patch, if_version)| {
            Write::Update { id, patch: Box::new(patch), if_version }
        }),
        2 => (any_id(), any_version()).prop_map(|(id, if_version)| Write::Delete { id, if_version }),
        1 => Just(Write::Tick),
        1 => Just(Write::Retire),
        1 => any_id().prop_map(|id| Write::PrepareSplit { at: id.key() }),
        2 => (ids, operations)
            .prop_map(|(anchors, operations)| Write::Sweep { anchors, operations }),
    ]
}

pub(crate) fn any_merge_step() -> impl Strategy<Value = MergeStep> {
    let merge = (0..3_u128).prop_map(RequestId);
    let neighbour = (1..4_u64).prop_map(ShardId);
    prop_oneof![
        (merge.clone(), neighbour.clone())
            .prop_map(|(merge, source)| MergeStep::Await { merge, source }),
        (merge.clone(), neighbour).prop_map(|(merge, target)| MergeStep::Freeze { merge, target }),
        (merge.clone(), 0..3_u32).prop_map(|(merge, conf_version)| {
            let source = Box::new(Frozen { state: shard_state(), term: 1, index: 1 });
            MergeStep::Absorb { merge, source, conf_version }
        }),
        merge.clone().prop_map(|merge| MergeStep::Forgo { merge }),
        merge.prop_map(|merge| MergeStep::Thaw { merge }),
    ]
}

fn any_operation() -> impl Strategy<Value = OperationId> {
    (0_u32..40).prop_map(operation)
}

fn any_command() -> impl Strategy<Value = Command> {
    let epoch = prop_oneof![
        12 => Just(Epoch::FIRST),
        1 => (0..3_u32, 0..3_u32, 0..3_u32).prop_map(|(incarnation, version, conf_version)| {
            Epoch { incarnation, version, conf_version }
        }),
    ];
    (any_operation(), epoch, any_write()).prop_map(|(operation, epoch, write)| Command {
        operation,
        epoch,
        write,
    })
}

pub(crate) fn any_entry() -> impl Strategy<Value = Entry> {
    (any_time(), prop::collection::vec(any_command(), 0..6))
        .prop_map(|(time, commands)| Entry { stamp: Stamp { time }, commands })
}

/// A log whose time goes on in small and large steps, and back at times.
pub(crate) fn any_log(entries: usize) -> impl Strategy<Value = Vec<Entry>> {
    let step = prop_oneof![
        10 => 0..MINUTE_MS,
        2 => 10 * MINUTE_MS..20 * MINUTE_MS,
        1 => 20 * 60 * MINUTE_MS..30 * 60 * MINUTE_MS,
    ];
    let entry = (step, any::<bool>(), prop::collection::vec(any_command(), 0..6));
    prop::collection::vec(entry, 0..entries).prop_map(|entries| {
        let mut time = 0;
        let stamped = entries.into_iter().map(|(step, is_behind, commands)| {
            time += step;
            let behind = if is_behind { step / 2 } else { 0 };
            Entry { stamp: Stamp { time: Timestamp(time - behind) }, commands }
        });
        stamped.collect()
    })
}
