//! What a split must not change: counts, digests, versions, and what a retry does.

use proptest::prelude::*;

use super::*;
use crate::apply::split::split_key;
use crate::{AnchorId, Epoch, Key, ShardDescriptor, ShardId};

const CHILD: ShardId = ShardId(9);

fn command(epoch: Epoch, number: u32, write: Write) -> Command {
    Command { operation: operation(number), epoch, write }
}

fn entry(time: u64, commands: Vec<Command>) -> Entry {
    Entry { stamp: Stamp { time: Timestamp(time) }, commands }
}

fn split(shard: &mut MemoryShard, at: Key) -> (Outcome, Option<MemoryShard>) {
    let epoch = shard.state.descriptor.epoch;
    let entry = entry(0, vec![command(epoch, 2_000, Write::Split { at, child: CHILD })]);
    let (mut outcomes, child) = shard.apply_and_split(&entry);
    (outcomes.remove(0), child)
}

/// The same log for whoever owns what it speaks of now.
fn route(entry: &Entry, parent: &MemoryShard, child: &MemoryShard) -> (Entry, Entry) {
    let side = |shard: &MemoryShard| {
        let epoch = shard.state.descriptor.epoch;
        let is_mine = |write: &Write| match write {
            Write::Create(anchor) => shard.state.descriptor.range.contains_id(anchor.id),
            Write::Update { id, .. } | Write::Delete { id, .. } => {
                shard.state.descriptor.range.contains_id(*id)
            }
            Write::Tick
            | Write::Retire
            | Write::Sweep { .. }
            | Write::PrepareSplit { .. }
            | Write::Merge(_)
            | Write::Split { .. } => true,
        };
        let commands = entry.commands.iter().filter(|command| is_mine(&command.write));
        let commands = commands.map(|command| Command { epoch, ..command.clone() });
        Entry { stamp: entry.stamp, commands: commands.collect() }
    };
    (side(parent), side(child))
}

#[test]
fn both_sides_take_over_what_the_shard_was() {
    let mut shard = MemoryShard::new();
    for number in 0..6 {
        shard.run(10 + u64::from(number), number, create(number));
    }
    let before = shard.state.clone();
    let mut ids: Vec<AnchorId> = shard.anchors.keys().copied().collect();
    ids.sort();
    let at = ids[3].key();
    let (outcome, child) = split(&mut shard, at);
    let (Outcome::Split { parent, child: descriptor }, Some(child)) = (outcome, child) else {
        panic!("not split")
    };
    assert_eq!((&*parent, &*descriptor), (&shard.state.descriptor, &child.state.descriptor));
    assert_eq!(parent.range.end, Some(at));
    assert_eq!((descriptor.range.start, descriptor.range.end), (at, before.descriptor.range.end));
    assert_eq!(descriptor.epoch, Epoch { incarnation: 1, version: 2, conf_version: 1 });
    assert_eq!(descriptor.replicas.len(), before.descriptor.replicas.len());
    assert_eq!(
        (child.state.revision, child.state.shard_time),
        (before.revision, before.shard_time)
    );
    assert_eq!((child.anchors.len(), shard.anchors.len()), (3, 3));
    assert_eq!(child.state.bytes + shard.state.bytes, before.bytes);
}

#[test]
fn a_split_that_comes_again_has_no_second_effect() {
    let mut shard = MemoryShard::new();
    shard.run(1, 0, create(0));
    shard.run(1, 1, create(2));
    let epoch = shard.state.descriptor.epoch;
    let at = shard.anchors.keys().next_back().unwrap().key();
    let again = command(epoch, 7, Write::Split { at, child: CHILD });
    let twice = entry(2, vec![again.clone(), again.clone()]);
    let (outcomes, child) = shard.apply_and_split(&twice);
    assert!(matches!(outcomes[0], Outcome::Split { .. }));
    assert!(matches!(outcomes[1], Outcome::Rejected(Rejection::StaleEpoch { .. })));
    assert!(child.is_some());
    let (outcomes, child) = shard.apply_and_split(&entry(3, vec![again]));
    assert!(matches!(outcomes[0], Outcome::Rejected(Rejection::StaleEpoch { .. })));
    assert!(child.is_none());
}

#[test]
fn a_split_leaves_keys_on_both_sides_and_no_retired_shard() {
    let mut shard = MemoryShard::new();
    let range = shard.state.descriptor.range;
    for at in [range.start, range.end.unwrap(), Key(range.start.0 - 1)] {
        let (outcome, child) = split(&mut shard, at);
        assert_eq!(rejection(outcome), Rejection::InvalidSplit);
        assert!(child.is_none());
    }
    shard.run(1, 1, Write::Retire);
    let (outcome, _) = split(&mut shard, Key(range.start.0 + 1));
    assert_eq!(rejection(outcome), Rejection::Retired);
}

#[test]
fn the_middle_is_a_cells_border_where_that_is_fair() {
    let cells: Vec<AnchorId> = (0..8).map(|number| anchor(2 * number * 40).id).collect();
    let mut sorted = cells.clone();
    sorted.sort();
    let at = split_key(&sorted).unwrap();
    let left = sorted.iter().filter(|id| id.key() < at).count();
    assert!((2..=6).contains(&left), "{left}");
    assert!(!sorted.iter().any(|id| id.key() == at), "no border");
    // All in one cell: at an anchor.
    let mut one_cell: Vec<AnchorId> = (0..9_u128)
        .map(|request| {
            AnchorId::derive(testing::ACCOUNT, &geo(1.0, 2.0), crate::RequestId(request), 0, 0)
        })
        .collect();
    one_cell.sort();
    assert_eq!(split_key(&one_cell), Some(one_cell[4].key()));
    assert_eq!(split_key(&one_cell[..1]), None);
    assert_eq!(split_key(&[]), None);
}

#[test]
fn children_of_children_get_fresh_replicas_and_later_versions() {
    let found = MemoryShard::new().state.descriptor;
    let (parent, child) = found.split(Key(found.range.start.0 + 1_000), ShardId(5));
    let (child, grandchild) = child.split(Key(found.range.start.0 + 2_000), ShardId(6));
    let versions = |shard: &ShardDescriptor| (shard.epoch.version, shard.epoch.conf_version);
    assert_eq!([&parent, &child, &grandchild].map(versions), [(2, 1), (3, 1), (3, 1)]);
    assert!(!parent.range.overlaps(&child.range) && !child.range.overlaps(&grandchild.range));
    assert_eq!(grandchild.next_replica, 3);
}

proptest! {
    #![proptest_config(crate::testing::cases(300))]

    /// Splits anywhere in a log, goes on with both sides, and takes one replica over snapshots.
    #[test]
    fn a_split_anywhere_replays_to_equal_digests_and_exact_counts(
        before in any_log(15), after in any_log(15), at in testing::any_id(),
        snapshot_at in any::<prop::sample::Index>(), alone in any::<bool>(),
    ) {
        let range = MemoryShard::new().state.descriptor.range;
        prop_assume!(range.start < at.key() && range.contains(at.key()));
        let snapshot_at = snapshot_at.index(before.len() + after.len() + 2);
        let run = |with_snapshot: bool| {
            let restore = |shard: MemoryShard| {
                MemoryShard::restore(&row::encode_shard_state(&shard.state), &shard.rows())
            };
            let mut parent = MemoryShard::new();
            let mut log = before.clone();
            let epoch = parent.state.descriptor.epoch;
            let split = command(epoch, 3_000, Write::Split { at: at.key(), child: CHILD });
            match log.last_mut() {
                Some(last) if !alone => last.commands.push(split),
                _ => log.push(entry(0, vec![split])),
            }
            let mut child = None;
            for (index, entry) in log.iter().enumerate() {
                if with_snapshot && index == snapshot_at {
                    parent = restore(parent);
                }
                child = parent.apply_and_split(entry).1;
            }
            let mut child = child.unwrap_or_else(|| {
                // Retired by the log: nothing to split.
                assert!(parent.state.retired);
                parent.clone()
            });
            for (index, entry) in after.iter().enumerate() {
                if with_snapshot && log.len() + index == snapshot_at {
                    parent = restore(parent);
                    child = restore(child);
                }
                let (left, right) = route(entry, &parent, &child);
                parent.apply(&left);
                child.apply(&right);
            }
            (parent, child)
        };
        let (one, other) = (run(false), run(true));
        prop_assert_eq!(one.0.digest(), other.0.digest());
        prop_assert_eq!(one.1.digest(), other.1.digest());
        check_counters(&one.0)?;
        check_counters(&one.1)?;
    }

    #[test]
    fn any_command_routed_by_the_epoch_before_is_refused_by_both_sides(
        before in any_log(10), at in testing::any_id(), write in testing::any_write(),
    ) {
        let mut shard = MemoryShard::new();
        for entry in &before {
            shard.apply(entry);
        }
        let old = shard.state.descriptor.epoch;
        let is_split = matches!(split(&mut shard, at.key()), (Outcome::Split { .. }, Some(_)));
        prop_assume!(is_split && !matches!(write, Write::Tick | Write::Sweep { .. }));
        let before = shard.clone();
        let outcome = shard.apply(&entry(0, vec![command(old, 4_000, write)])).remove(0);
        let is_stale = matches!(outcome, Outcome::Rejected(Rejection::StaleEpoch { .. }));
        prop_assert!(is_stale);
        prop_assert_eq!(shard, before);
    }

    #[test]
    fn a_command_retried_across_a_split_has_one_effect(
        before in any_log(10), write in testing::any_write(), at in testing::any_id(),
    ) {
        let mut shard = MemoryShard::new();
        for entry in &before {
            shard.apply(entry);
        }
        let start = shard.state.shard_time.0;
        let first = shard.run(start, 1_000, write.clone());
        let (Outcome::Written { version, .. } | Outcome::Deleted { version }) = &first else {
            return Ok(());
        };
        let version = *version;
        let id = match &write {
            Write::Create(anchor) => anchor.id,
            Write::Update { id, .. } | Write::Delete { id, .. } => *id,
            Write::Tick
            | Write::Retire
            | Write::Sweep { .. }
            | Write::PrepareSplit { .. }
            | Write::Merge(_)
            | Write::Split { .. } => return Ok(()),
        };
        let (_, child) = split(&mut shard, at.key());
        let mut owner = match child {
            Some(child) if child.state.descriptor.range.contains_id(id) => child,
            _ => shard,
        };
        let unchanged = owner.clone();
        let retried = owner.run(start, 1_000, write);
        let (Outcome::Written { version: again, .. } | Outcome::Deleted { version: again }) =
            &retried
        else {
            return Err(TestCaseError::fail(format!("{retried:?} after {first:?}")));
        };
        prop_assert_eq!(*again, version);
        prop_assert_eq!(owner, unchanged);
    }
}
