mod merge;
mod split;

use proptest::prelude::*;

use super::*;
use crate::testing::{self, MemoryShard, anchor, any_log, create, geo, local, operation};
use crate::{AnchorPatch, Command, KeyRange, Pose, Rejection, Stamp, Version, Write, row};

const MINUTE_MS: u64 = 60_000;
const DAY_MS: u64 = 24 * 60 * MINUTE_MS;

fn update(number: u32, patch: AnchorPatch, if_version: Option<Version>) -> Write {
    Write::Update { id: anchor(number).id, patch: Box::new(patch), if_version }
}

fn delete(number: u32) -> Write {
    Write::Delete { id: anchor(number).id, if_version: None }
}

fn pose(pose: Pose) -> AnchorPatch {
    AnchorPatch { pose: Some(pose), ..AnchorPatch::default() }
}

#[test]
fn a_shard_is_retired_when_nobody_can_retry_what_it_held() {
    let mut shard = MemoryShard::new();
    let kept = create(0);
    let first = shard.run(100, 1, kept.clone());
    let not_empty =
        |anchors, operations| Outcome::Rejected(Rejection::NotEmpty { anchors, operations });
    assert_eq!(shard.run(100, 2, Write::Retire), not_empty(1, 0));
    shard.run(100, 3, delete(0));
    // A retry of the create that comes late would bring the anchor back in the next shard.
    assert_eq!(shard.run(100, 4, Write::Retire), not_empty(0, 2));
    assert_eq!(revision(&shard.run(100, 1, kept)), revision(&first));
    let later = 100 + OPERATION_KEEP_MS + 1;
    shard.run(later, 5, Write::Tick);
    let operations = vec![(anchor(0).id, operation(1)), (anchor(0).id, operation(3))];
    let swept = shard.run(later, 6, Write::Sweep { anchors: Vec::new(), operations });
    assert!(matches!(swept, Outcome::Swept { operations: 2, .. }), "{swept:?}");
    let retired = Outcome::Retired { revision: shard.state.revision };
    assert_eq!(shard.run(later, 7, Write::Retire), retired);
    assert_eq!(shard.run(later, 8, Write::Retire), retired);
    let late = shard.run(later, 9, create(2));
    assert_eq!(late, Outcome::Rejected(Rejection::Retired));
    assert!(shard.state.retired);
}

fn expiry(expire_time: Option<u64>) -> AnchorPatch {
    AnchorPatch { expire_time: Some(expire_time.map(Timestamp)), ..AnchorPatch::default() }
}

fn revision(outcome: &Outcome) -> u64 {
    match outcome {
        Outcome::Written { version, .. } | Outcome::Deleted { version } => version.revision,
        Outcome::Ticked
        | Outcome::Retired { .. }
        | Outcome::Swept { .. }
        | Outcome::SplitPrepared
        | Outcome::Merged(_)
        | Outcome::Split { .. }
        | Outcome::Rejected(_) => panic!("{outcome:?}"),
    }
}

fn rejection(outcome: Outcome) -> Rejection {
    let Outcome::Rejected(rejection) = outcome else { panic!("{outcome:?}") };
    rejection
}

#[test]
fn created_anchor_carries_shard_time_and_version() {
    let mut shard = MemoryShard::new();
    let Outcome::Written { version, time, anchor: Some(written) } = shard.run(70, 1, create(1))
    else {
        panic!()
    };
    assert_eq!((version, time), (Version { incarnation: 1, revision: 1 }, Timestamp(70)));
    assert_eq!((written.create_time, written.update_time), (Timestamp(70), Timestamp(70)));
    assert_eq!(shard.anchors[&anchor(1).id].as_ref(), written.as_ref());
    assert_eq!((shard.state.anchors, shard.state.operations, shard.state.revision), (1, 0, 1));
}

#[test]
fn commands_of_one_entry_see_each_other() {
    let mut shard = MemoryShard::new();
    let epoch = shard.state.descriptor.epoch;
    let writes = [create(1), create(1), update(1, expiry(None), None), delete(1), delete(1)];
    let commands = (0..).zip(writes).map(|(number, write)| Command {
        operation: operation(number),
        epoch,
        write,
    });
    let outcomes =
        shard.apply(&Entry { stamp: Stamp { time: Timestamp(1) }, commands: commands.collect() });
    assert_eq!(revision(&outcomes[0]), 1);
    assert_eq!(outcomes[1], Outcome::Rejected(Rejection::AnchorExists));
    assert_eq!(revision(&outcomes[2]), 2);
    assert_eq!(revision(&outcomes[3]), 3);
    assert_eq!(outcomes[4], Outcome::Rejected(Rejection::AnchorNotFound));
    assert_eq!((shard.state.anchors, shard.state.operations), (0, 3));
}

#[test]
fn epoch_must_match_in_incarnation_and_version_only() {
    let mut shard = MemoryShard::new();
    let mut try_with = |change: fn(&mut crate::Epoch)| {
        let mut epoch = shard.state.descriptor.epoch;
        change(&mut epoch);
        let command = Command { operation: operation(1), epoch, write: create(1) };
        let entry = Entry { stamp: Stamp { time: Timestamp(1) }, commands: vec![command] };
        shard.apply(&entry).remove(0)
    };
    let is_stale =
        |outcome| matches!(outcome, Outcome::Rejected(Rejection::StaleEpoch { descriptor: _ }));
    assert!(is_stale(try_with(|epoch| epoch.incarnation += 1)));
    assert!(is_stale(try_with(|epoch| epoch.version -= 1)));
    assert_eq!(revision(&try_with(|epoch| epoch.conf_version += 5)), 1);
}

#[test]
fn key_of_another_shard_is_refused() {
    let mut shard = MemoryShard::new();
    shard.state.descriptor.range.end = Some(anchor(1).id.key());
    let is_stale = matches!(
        rejection(shard.run(1, 1, create(1))),
        Rejection::StaleEpoch { descriptor } if *descriptor == shard.state.descriptor
    );
    assert!(is_stale);
    assert_eq!(revision(&shard.run(1, 1, create(2))), 1);
}

#[test]
fn retry_gets_the_first_outcome_and_the_anchor_of_now() {
    let mut shard = MemoryShard::new();
    let first = shard.run(1, 1, create(1));
    shard.run(2, 2, update(1, expiry(Some(9_000)), None));
    let Outcome::Written { version, time, anchor: Some(now) } = shard.run(3, 1, create(1)) else {
        panic!()
    };
    assert_eq!((version.revision, time), (revision(&first), Timestamp(1)));
    assert_eq!((now.version.revision, now.expire_time), (2, Some(Timestamp(9_000))));
    let deleted = shard.run(4, 3, delete(1));
    assert_eq!(shard.run(5, 3, delete(1)), deleted);
    let is_gone = matches!(shard.run(6, 1, create(1)), Outcome::Written { anchor: None, .. });
    assert!(is_gone);
    assert_eq!(shard.state.revision, 3);
}

#[test]
fn retry_over_another_node_may_carry_other_times() {
    let mut shard = MemoryShard::new();
    shard.run(1, 1, create(1));
    let later = Anchor { create_time: Timestamp(9), update_time: Timestamp(9), ..anchor(1) };
    assert_eq!(revision(&shard.run(2, 1, Write::Create(Box::new(later)))), 1);
}

#[test]
fn another_write_under_a_used_request_id_is_refused() {
    let mut shard = MemoryShard::new();
    shard.run(1, 1, create(1));
    let mut other = anchor(1);
    other.creator.push('x');
    let outcome = shard.run(2, 1, Write::Create(Box::new(other)));
    assert_eq!(rejection(outcome), Rejection::RequestIdReused);
    assert_eq!(rejection(shard.run(2, 1, delete(1))), Rejection::RequestIdReused);
}

#[test]
fn rejected_write_is_judged_anew() {
    let mut shard = MemoryShard::new();
    assert_eq!(rejection(shard.run(1, 9, delete(1))), Rejection::AnchorNotFound);
    assert_eq!(shard.state.operations, 0);
    shard.run(2, 1, create(1));
    assert_eq!(revision(&shard.run(3, 9, delete(1))), 2);
}

#[test]
fn stale_version_is_refused_and_the_current_one_told() {
    let mut shard = MemoryShard::new();
    shard.run(1, 1, create(1));
    let wrong = Version { incarnation: 1, revision: 7 };
    let current = Version { incarnation: 1, revision: 1 };
    let outcome = shard.run(2, 2, update(1, expiry(None), Some(wrong)));
    assert_eq!(rejection(outcome), Rejection::VersionMismatch { current });
    let refused = Write::Delete { id: anchor(1).id, if_version: Some(wrong) };
    assert_eq!(rejection(shard.run(2, 3, refused)), Rejection::VersionMismatch { current });
    assert_eq!(revision(&shard.run(2, 4, update(1, expiry(None), Some(current)))), 2);
}

#[test]
fn expired_anchor_is_invisible_and_its_id_stays_taken() {
    let mut shard = MemoryShard::new();
    let mut short = anchor(1);
    short.expire_time = Some(Timestamp(100));
    shard.run(10, 1, Write::Create(Box::new(short)));
    assert_eq!(revision(&shard.run(99, 2, update(1, expiry(Some(100)), None))), 2);
    assert_eq!(shard.run(100, 3, Write::Tick), Outcome::Ticked);
    assert_eq!(rejection(shard.run(0, 4, delete(1))), Rejection::AnchorNotFound);
    let revived = shard.run(0, 5, update(1, expiry(None), None));
    assert_eq!(rejection(revived), Rejection::AnchorNotFound);
    assert_eq!(rejection(shard.run(0, 6, create(1))), Rejection::AnchorExists);
    assert_eq!(shard.state.anchors, 1);
}

#[test]
fn expiry_in_the_past_is_refused() {
    let mut shard = MemoryShard::new();
    let mut past = anchor(1);
    past.expire_time = Some(Timestamp(50));
    let outcome = shard.run(50, 1, Write::Create(Box::new(past)));
    assert_eq!(rejection(outcome), Rejection::AlreadyExpired);
    shard.run(50, 1, create(1));
    let outcome = shard.run(40, 2, update(1, expiry(Some(50)), None));
    assert_eq!(rejection(outcome), Rejection::AlreadyExpired);
}

#[test]
fn sweep_erases_a_day_after_expiry_and_forgets_after_a_quarter_of_an_hour() {
    let mut shard = MemoryShard::new();
    let mut short = anchor(1);
    short.expire_time = Some(Timestamp(100));
    shard.run(0, 1, Write::Create(Box::new(short)));
    shard.run(0, 2, create(2));
    shard.run(0, 3, update(1, AnchorPatch::default(), None));
    let sweep = || Write::Sweep {
        anchors: vec![anchor(1).id, anchor(2).id, anchor(3).id],
        // A dedup entry, a create in its anchor's row, and one that never was.
        operations: [(1, 3), (2, 2), (2, 7)]
            .map(|(number, name)| (anchor(number).id, operation(name)))
            .to_vec(),
    };
    let swept = |anchors, operations| Outcome::Swept { anchors, operations };
    assert_eq!(shard.run(15 * MINUTE_MS - 1, 4, sweep()), swept(0, 0));
    assert_eq!(shard.run(15 * MINUTE_MS, 4, sweep()), swept(0, 1));
    assert_eq!(shard.state.revision, 3);
    assert_eq!(shard.run(DAY_MS + 99, 4, sweep()), swept(0, 0));
    assert_eq!(shard.run(DAY_MS + 100, 4, sweep()), swept(1, 0));
    assert_eq!((shard.state.revision, shard.state.anchors, shard.state.operations), (4, 1, 1));
}

#[test]
fn sweep_leaves_another_shards_rows_alone() {
    let mut shard = MemoryShard::new();
    let mut short = anchor(1);
    short.expire_time = Some(Timestamp(100));
    shard.run(0, 1, Write::Create(Box::new(short)));
    let range = KeyRange { start: anchor(1).id.key().next().unwrap(), end: None };
    shard.state.descriptor.range = range;
    let sweep = Write::Sweep {
        anchors: vec![anchor(1).id],
        operations: vec![(anchor(1).id, operation(1))],
    };
    assert_eq!(shard.run(3 * DAY_MS, 2, sweep), Outcome::Swept { anchors: 0, operations: 0 });
}

#[test]
fn pose_may_drift_a_hundred_meters_and_no_farther() {
    let mut shard = MemoryShard::new();
    shard.run(1, 1, create(2));
    let meters_north = |meters: f64| pose(geo(51.502 + meters / 111_260.0, -0.002));
    assert_eq!(revision(&shard.run(2, 2, update(2, meters_north(95.0), None))), 2);
    // From the home cell, not from where it is now.
    let outcome = rejection(shard.run(3, 3, update(2, meters_north(130.0), None)));
    let is_too_far = matches!(
        outcome,
        Rejection::DriftTooFar { distance_m } if (125.0..131.0).contains(&distance_m)
    );
    assert!(is_too_far, "{outcome:?}");
    let mut elsewhere = anchor(4);
    elsewhere.pose = geo(10.0, 10.0);
    let outcome = rejection(shard.run(3, 4, Write::Create(Box::new(elsewhere))));
    assert!(matches!(outcome, Rejection::DriftTooFar { distance_m } if 1e6 < distance_m));
}

#[test]
fn pose_stays_in_its_space() {
    let mut shard = MemoryShard::new();
    shard.run(1, 1, create(2));
    shard.run(1, 2, create(3));
    for (number, there) in [(2, local(3, 0.0, 0.0)), (3, local(2, 0.0, 7.0)), (3, geo(0.0, 0.0))] {
        let outcome = shard.run(2, 5, update(number, pose(there), None));
        assert_eq!(rejection(outcome), Rejection::SpaceChanged);
    }
}

#[test]
fn full_dedup_refuses_changes_but_takes_creates_and_answers_retries() {
    let mut shard = MemoryShard::new();
    let mut run = |time, number: u32, write| {
        let epoch = shard.state.descriptor.epoch;
        let command = Command { operation: operation(number), epoch, write };
        let stamp = Stamp { time: Timestamp(time) };
        let entry = Entry { stamp, commands: vec![command] };
        let (mut outcomes, changes) = apply_bounded(&shard, &entry, 3).unwrap();
        shard.absorb(changes);
        outcomes.remove(0)
    };
    let change = |number| update(number, AnchorPatch::default(), None);
    (1..4).for_each(|number| assert_eq!(revision(&run(1, number, create(number))), number.into()));
    assert_eq!(revision(&run(1, 5, change(1))), 4);
    assert_eq!(rejection(run(1, 6, change(2))), Rejection::OperationsFull { operations: 2 });
    assert_eq!(rejection(run(1, 6, delete(2))), Rejection::OperationsFull { operations: 2 });
    assert_eq!(revision(&run(2, 5, change(1))), 4);
    // Creates need no entry: they are taken, and their retries answered.
    assert_eq!(revision(&run(2, 7, create(4))), 5);
    assert_eq!(revision(&run(2, 7, create(4))), 5);
    let sweep = Write::Sweep { anchors: vec![], operations: vec![(anchor(1).id, operation(5))] };
    let outcome = run(1 + OPERATION_KEEP_MS, 8, sweep);
    assert_eq!(outcome, Outcome::Swept { anchors: 0, operations: 1 });
    // The create of anchor 2 lies too far back to be kept with its first change.
    assert_eq!(revision(&run(1, 6, change(2))), 6);
    assert_eq!(shard.state.operations, 2);
}

#[test]
fn a_create_is_kept_in_its_anchors_row_until_the_first_change() {
    let mut shard = MemoryShard::new();
    shard.run(1, 1, create(1));
    assert_eq!((shard.state.operations, shard.rows().len()), (0, 1));
    // As late as it comes: the anchor is as it was created.
    let late = shard.run(3 * DAY_MS, 1, create(1));
    assert!(matches!(late, Outcome::Written { anchor: Some(_), time: Timestamp(1), .. }));
    shard.run(3 * DAY_MS, 2, delete(1));
    assert_eq!(shard.state.operations, 1);

    shard.run(3 * DAY_MS, 3, create(2));
    shard.run(3 * DAY_MS + 14 * MINUTE_MS, 4, delete(2));
    assert_eq!(shard.state.operations, 3);
    let retried = shard.run(3 * DAY_MS + 14 * MINUTE_MS, 3, create(2));
    assert!(matches!(retried, Outcome::Written { anchor: None, .. }));
    assert_eq!(rejection(shard.run(0, 3, delete(2))), Rejection::RequestIdReused);
}

/// Recounts what the shard's state says about its rows.
fn check_counters(shard: &MemoryShard) -> Result<(), TestCaseError> {
    let rows = shard.rows();
    let bytes: usize = rows.iter().map(|(key, value)| key.len() + value.len()).sum();
    prop_assert_eq!(shard.state.anchors, shard.anchors.len() as u64);
    prop_assert_eq!(shard.state.operations, shard.operations.len() as u64);
    prop_assert_eq!(shard.state.bytes, bytes as u64);
    Ok(())
}

proptest! {
    #![proptest_config(crate::testing::cases(400))]

    #[test]
    fn replay_over_a_snapshot_gives_the_same_state(
        log in any_log(30), cut in any::<prop::sample::Index>(),
    ) {
        let (mut one, mut other) = (MemoryShard::new(), MemoryShard::new());
        let cut = cut.index(log.len() + 1);
        for (index, entry) in log.iter().enumerate() {
            if index == cut {
                let state = row::encode_shard_state(&other.state);
                other = MemoryShard::restore(&state, &other.rows());
            }
            let entry = row::decode_entry(&row::encode_entry(entry)).unwrap();
            prop_assert_eq!(one.apply(&entry), other.apply(&entry));
        }
        prop_assert_eq!(one.digest(), other.digest());
        prop_assert_eq!(one, other);
    }

    #[test]
    fn rows_of_the_changes_make_the_state_of_the_records(log in any_log(20)) {
        let mut shard = MemoryShard::new();
        let mut rows = BTreeMap::new();
        for entry in &log {
            let (_, changes) = apply(&shard, entry).unwrap();
            for (key, value) in changes.rows() {
                match value {
                    Some(value) => rows.insert(key, value),
                    None => rows.remove(&key),
                };
            }
            shard.absorb(changes);
        }
        prop_assert_eq!(rows, shard.rows());
    }

    #[test]
    fn counters_are_those_of_the_rows(log in any_log(30)) {
        let mut shard = MemoryShard::new();
        for entry in &log {
            let before = shard.state.clone();
            let outcomes = shard.apply(entry);
            prop_assert_eq!(outcomes.len(), entry.commands.len());
            check_counters(&shard)?;
            prop_assert_eq!(shard.state.shard_time, before.shard_time.max(entry.stamp.time));
            prop_assert!(before.revision <= shard.state.revision);
        }
    }

    #[test]
    fn one_entry_of_many_commands_equals_many_entries(log in any_log(20)) {
        let (mut batched, mut single) = (MemoryShard::new(), MemoryShard::new());
        for entry in &log {
            let outcomes = batched.apply(entry);
            for (command, outcome) in entry.commands.iter().zip(outcomes) {
                let alone = Entry { stamp: entry.stamp, commands: vec![command.clone()] };
                prop_assert_eq!(single.apply(&alone), vec![outcome]);
            }
            let tick = Entry { stamp: entry.stamp, commands: vec![] };
            single.apply(&tick);
        }
        prop_assert_eq!(batched.digest(), single.digest());
    }

    #[test]
    fn retried_command_has_one_effect(
        before in any_log(10), write in testing::any_write(), between in any_log(10),
        restarts in any::<bool>(),
    ) {
        let mut shard = MemoryShard::new();
        for entry in &before {
            shard.apply(entry);
        }
        // An operation of its own, so that no command of the logs is taken for it.
        let start = shard.state.shard_time.0;
        let first = shard.run(start, 1000, write.clone());
        let (Outcome::Written { version, .. } | Outcome::Deleted { version }) = &first else {
            return Ok(());
        };
        let version = *version;
        for entry in &between {
            // Whatever happens within the time for which operations are kept.
            let time = Timestamp((start + entry.stamp.time.0).min(start + OPERATION_KEEP_MS - 1));
            shard.apply(&Entry { stamp: Stamp { time }, commands: entry.commands.clone() });
        }
        if restarts {
            let state = row::encode_shard_state(&shard.state);
            shard = MemoryShard::restore(&state, &shard.rows());
        }
        let before_retry = shard.clone();
        let retried = shard.run(start, 1000, write);
        let (Outcome::Written { version: again, .. } | Outcome::Deleted { version: again }) =
            &retried
        else {
            return Err(TestCaseError::fail(format!("{retried:?} after {first:?}")));
        };
        prop_assert_eq!(*again, version);
        prop_assert_eq!(shard, before_retry);
    }
}
