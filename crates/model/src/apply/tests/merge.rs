//! What a merge must not change, and in which orders its steps may come.

use proptest::prelude::*;

use super::*;
use crate::{Frozen, Key, KeyRange, MergeStep, Merged, Merging, RequestId, ShardId};

const MERGE: RequestId = RequestId(77);
const SOURCE: ShardId = ShardId(9);

fn step(shard: &mut MemoryShard, step: MergeStep) -> Outcome {
    let time = shard.state.shard_time.0;
    shard.run(time, 3_000, Write::Merge(step))
}

/// Two neighbours: what a shard with these anchors became by a split in its middle.
fn neighbours(numbers: u32) -> (MemoryShard, MemoryShard) {
    let mut shard = MemoryShard::new();
    for number in 0..numbers {
        shard.run(10 + u64::from(number), number, create(number));
    }
    let mut ids: Vec<_> = shard.anchors.keys().copied().collect();
    ids.sort();
    let at = ids[ids.len() / 2].key();
    split_at(shard, at)
}

fn split_at(mut shard: MemoryShard, at: Key) -> (MemoryShard, MemoryShard) {
    let epoch = shard.state.descriptor.epoch;
    let write = Write::Split { at, child: SOURCE };
    let commands = vec![Command { operation: operation(2_000), epoch, write }];
    let stamp = Stamp { time: shard.state.shard_time };
    let (_, child) = shard.apply_and_split(&Entry { stamp, commands });
    (shard, child.unwrap())
}

fn await_source(target: &mut MemoryShard) -> Outcome {
    step(target, MergeStep::Await { merge: MERGE, source: SOURCE })
}

fn freeze(source: &mut MemoryShard) -> Outcome {
    step(source, MergeStep::Freeze { merge: MERGE, target: ShardId(1) })
}

fn absorb(target: &mut MemoryShard, source: &MemoryShard) -> Outcome {
    let conf_version = target.state.descriptor.epoch.conf_version;
    let frozen = Box::new(Frozen { state: source.state.clone(), term: 1, index: 9 });
    step(target, MergeStep::Absorb { merge: MERGE, source: frozen, conf_version })
}

const READY: Outcome = Outcome::Merged(Merged::Ready);

#[test]
fn the_target_owns_everything_that_both_had() {
    let (mut target, mut source) = neighbours(6);
    source.run(500, 90, delete(source_number(&source)));
    let before = (target.state.clone(), source.state.clone());
    assert_eq!(await_source(&mut target), READY);
    assert_eq!(freeze(&mut source), READY);
    let Outcome::Merged(Merged::Absorbed { descriptor }) = absorb(&mut target, &source) else {
        panic!("not merged")
    };
    target.take_in(source);
    let state = &target.state;
    assert_eq!(*descriptor, state.descriptor);
    assert_eq!(descriptor.range, KeyRange::of_account(testing::ACCOUNT));
    let version = before.0.descriptor.epoch.version.max(before.1.descriptor.epoch.version) + 1;
    assert_eq!(descriptor.epoch.version, version);
    assert!(descriptor.supersedes(&before.1.descriptor));
    assert!(!before.1.descriptor.supersedes(descriptor.as_ref()));
    assert_eq!(state.revision, before.0.revision.max(before.1.revision) + 1);
    assert_eq!(state.shard_time, Timestamp(500));
    assert_eq!((state.merging, state.anchors), (None, 5));
    let counted = target.totals(state.descriptor.range).unwrap();
    let RowTotals { anchors, operations, bytes } = counted;
    assert_eq!((state.anchors, state.operations, state.bytes), (anchors, operations, bytes));
}

/// The number of an anchor that lies in the source.
fn source_number(source: &MemoryShard) -> u32 {
    (0..6).find(|number| source.anchors.contains_key(&anchor(*number).id)).unwrap()
}

#[test]
fn a_frozen_shard_is_the_same_at_any_later_position() {
    let (_, mut source) = neighbours(6);
    let kept = source_number(&source);
    assert_eq!(freeze(&mut source), READY);
    let frozen = source.clone();
    assert_eq!(rejection(source.run(9_000, 50, create(kept + 40))), Rejection::Merging);
    assert_eq!(rejection(source.run(9_000, 51, delete(kept))), Rejection::Merging);
    const NOT_EMPTY: Rejection = Rejection::NotEmpty { anchors: 3, operations: 0 };
    assert_eq!(rejection(source.run(9_000, 52, Write::Retire)), NOT_EMPTY);
    source.run(u64::MAX / 2, 53, Write::Tick);
    let ids: Vec<_> = source.anchors.keys().copied().collect();
    let at = ids[1].key();
    source.run(9_000, 54, Write::Sweep { anchors: ids, operations: Vec::new() });
    let split = source.run(9_000, 55, Write::Split { at, child: ShardId(12) });
    assert_eq!(rejection(split), Rejection::Merging);
    let other = MergeStep::Freeze { merge: RequestId(78), target: ShardId(1) };
    assert_eq!(rejection(step(&mut source, other)), Rejection::Merging);
    assert_eq!(source, frozen);
    // A retry of what took effect is answered still.
    let retried = source.run(9_000, kept, create(kept));
    assert!(matches!(retried, Outcome::Written { .. }), "{retried:?}");
    assert_eq!(step(&mut source, MergeStep::Thaw { merge: RequestId(78) }), READY);
    assert!(source.state.is_frozen(), "thawed by another attempt");
    assert_eq!(step(&mut source, MergeStep::Thaw { merge: MERGE }), READY);
    assert!(matches!(source.run(9_000, 56, delete(kept)), Outcome::Deleted { .. }));
}

#[test]
fn the_targets_log_decides_and_says_the_same_ever_after() {
    let (target, mut source) = neighbours(6);
    freeze(&mut source);
    let forgo = |shard: &mut MemoryShard| step(shard, MergeStep::Forgo { merge: MERGE });
    // Forgone first: what comes late does not merge.
    let mut forgone = target.clone();
    await_source(&mut forgone);
    assert_eq!(forgo(&mut forgone), Outcome::Merged(Merged::Forgone));
    assert_eq!((forgone.state.merging, &forgone.state.forgone[..]), (None, &[MERGE][..]));
    let is_forgone = Outcome::Merged(Merged::Forgone);
    assert_eq!(absorb(&mut forgone, &source), is_forgone);
    // Nor does it wait again: a step of the attempt that was sent twice comes late.
    assert_eq!(await_source(&mut forgone), is_forgone);
    assert_eq!(absorb(&mut forgone, &source), is_forgone);
    assert_eq!(forgone.state.merging, None);
    // Absorbed first: whoever gives up hears that it is done, also when the shard has gone on.
    let mut merged = target;
    await_source(&mut merged);
    absorb(&mut merged, &source);
    let is_absorbed = |outcome| matches!(outcome, Outcome::Merged(Merged::Absorbed { .. }));
    assert!(is_absorbed(absorb(&mut merged, &source)), "asked again");
    merged.take_in(source.clone());
    let at = merged.anchors.keys().nth(1).unwrap().key();
    let (mut merged, _) = split_at(merged, at);
    let unchanged = merged.clone();
    assert!(is_absorbed(forgo(&mut merged)));
    assert!(is_absorbed(absorb(&mut merged, &source)));
    assert_eq!(merged, unchanged);
}

#[test]
fn only_who_is_awaited_as_it_is_is_absorbed() {
    let (target, source) = neighbours(6);
    let mut frozen = source.clone();
    freeze(&mut frozen);
    let refused = |target: &MemoryShard, source: &MemoryShard| {
        let mut target = target.clone();
        rejection(absorb(&mut target, source))
    };
    assert_eq!(refused(&target, &frozen), Rejection::InvalidMerge, "not awaited");
    let mut awaiting = target;
    await_source(&mut awaiting);
    assert_eq!(refused(&awaiting, &source), Rejection::InvalidMerge, "not frozen");
    let mut farther = frozen.clone();
    farther.state.descriptor.range.start.0 += 1;
    assert_eq!(refused(&awaiting, &farther), Rejection::InvalidMerge, "no neighbour");
    let mut elsewhere = frozen.clone();
    elsewhere.state.descriptor.class = crate::ClassId(9);
    assert_eq!(refused(&awaiting, &elsewhere), Rejection::InvalidMerge, "another class");
    let stale = MergeStep::Absorb {
        merge: MERGE,
        source: Box::new(Frozen { state: frozen.state.clone(), term: 1, index: 9 }),
        conf_version: awaiting.state.descriptor.epoch.conf_version - 1,
    };
    assert_eq!(rejection(step(&mut awaiting, stale)), Rejection::InvalidMerge, "other members");
    let mut aside = frozen.clone();
    aside.state.descriptor.replicas.pop();
    assert_eq!(refused(&awaiting, &aside), Rejection::InvalidMerge, "on other nodes");
    let at = awaiting.anchors.keys().nth(1).unwrap().key();
    let split = awaiting.run(600, 60, Write::Split { at, child: ShardId(12) });
    assert_eq!(rejection(split), Rejection::Merging);
    assert_eq!(awaiting.state.merging, Some(Merging::Awaits { merge: MERGE, source: SOURCE }));
    // It serves meanwhile.
    assert!(matches!(awaiting.run(600, 61, delete_first(&awaiting)), Outcome::Deleted { .. }));
}

fn delete_first(shard: &MemoryShard) -> Write {
    Write::Delete { id: *shard.anchors.keys().next().unwrap(), if_version: None }
}

proptest! {
    #![proptest_config(testing::cases(256))]

    /// Any step may come at any time: it has an outcome, and what is frozen stays as it is.
    #[test]
    fn steps_in_any_order_leave_a_frozen_shard_alone(
        log in prop::collection::vec((testing::any_entry(), testing::any_merge_step()), 0..16),
    ) {
        let mut shard = MemoryShard::new();
        for (entry, merge_step) in log {
            let frozen = shard.state.is_frozen().then(|| shard.clone());
            shard.apply(&entry);
            if let Some(frozen) = frozen {
                prop_assert_eq!(&shard, &frozen);
            }
            step(&mut shard, merge_step);
            let counted = shard.totals(shard.state.descriptor.range).unwrap();
            prop_assert_eq!(shard.state.anchors, counted.anchors);
        }
    }

    /// Split anywhere, written to on both sides, merged again: the rows are those of both, the
    /// counts are those of the rows, and every retry has the effect that it had.
    #[test]
    fn a_merge_keeps_rows_counts_and_dedup(
        before in prop::collection::vec(testing::any_entry(), 0..12),
        after in prop::collection::vec(testing::any_entry(), 0..12),
        cut in 1_u128..u128::MAX,
    ) {
        let mut shard = MemoryShard::new();
        for entry in &before {
            shard.apply(entry);
        }
        shard.state.merging = None;
        shard.state.retired = false;
        let range = shard.state.descriptor.range;
        let at = Key(range.start.0 + 1 + cut % (range.end.unwrap().0 - range.start.0 - 1));
        let (mut target, mut source) = split_at(shard, at);
        for entry in &after {
            for side in [&mut target, &mut source] {
                let mut entry = entry.clone();
                for command in &mut entry.commands {
                    command.epoch = side.state.descriptor.epoch;
                }
                entry.commands.retain(|one| !matches!(one.write, Write::Merge(_) | Write::Retire));
                side.apply(&entry);
            }
        }
        let mut rows = target.rows();
        rows.extend(source.rows());
        prop_assert_eq!(await_source(&mut target), READY);
        prop_assert_eq!(freeze(&mut source), READY);
        let outcome = absorb(&mut target, &source);
        let is_absorbed = matches!(outcome, Outcome::Merged(Merged::Absorbed { .. }));
        prop_assert!(is_absorbed, "{outcome:?}");
        target.take_in(source);
        prop_assert_eq!(target.rows(), rows);
        let counted = target.totals(target.state.descriptor.range).unwrap();
        let RowTotals { anchors, operations, bytes } = counted;
        let state = &target.state;
        prop_assert_eq!((state.anchors, state.operations, state.bytes), (anchors, operations, bytes));
    }
}
