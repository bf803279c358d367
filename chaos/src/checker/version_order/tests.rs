use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;
use crate::checker::wgl::{self, Effect, Step, Verdict};
use crate::history::Served;

const ID: u128 = 77;

fn version(revision: u64) -> Version {
    Version { incarnation: 0, revision }
}

fn at(start_ns: u64, end_ns: u64, action: Action, outcome: Outcome) -> Operation {
    let served = Served { shard: 1, ..Served::default() };
    Operation { client: 1, start_ns, end_ns, resolved: false, served, action, outcome }
}

fn write(start_ns: u64, end_ns: u64, value: u64, revision: Option<u64>) -> Operation {
    let request = u128::from(value);
    let action = Action::Update { request, id: ID, value, expected: None };
    at(start_ns, end_ns, action, Outcome::Written { id: ID, version: revision.map(version) })
}

fn swap(start_ns: u64, end_ns: u64, value: u64, expected: (u64, u64), revision: u64) -> Operation {
    let mut operation = write(start_ns, end_ns, value, Some(revision));
    if let Action::Update { expected: slot, .. } = &mut operation.action {
        *slot = Some((version(expected.0), expected.1));
    }
    operation
}

fn read(start_ns: u64, end_ns: u64, value: u64, revision: u64) -> Operation {
    let action = Action::Get { id: ID, level: Level::Linearizable };
    at(start_ns, end_ns, action, Outcome::Found { version: version(revision), value })
}

fn findings(operations: &[Operation]) -> Findings {
    let mut order = VersionOrder::default();
    operations.iter().for_each(|operation| order.add(operation));
    order.finish()
}

#[track_caller]
fn assert_broken(operations: &[Operation], invariant: Invariant) {
    let findings = findings(operations);
    let is_broken = 0 < findings.count(invariant);
    assert!(is_broken && findings.broken.len() == 1, "{:#?}", findings.violations);
    assert!(!findings.violations[0].evidence.is_empty());
}

#[test]
fn a_history_that_follows_its_versions_is_fine() {
    let operations = [
        write(0, 10, 1, Some(5)),
        read(5, 20, 1, 5),
        swap(20, 30, 2, (5, 1), 6),
        read(40, 50, 2, 6),
    ];
    let findings = findings(&operations);
    assert!(findings.is_clean(), "{findings:?}");
}

#[test]
fn a_stale_read_is_caught() {
    let operations = [write(0, 10, 1, Some(5)), write(20, 30, 2, Some(6)), read(40, 50, 1, 5)];
    assert_broken(&operations, Invariant::Linearizable);
}

#[test]
fn reads_that_go_back_in_time_are_caught_although_the_write_is_still_under_way() {
    let operations = [
        write(0, 10, 1, Some(5)),
        write(20, 100, 2, Some(6)),
        read(30, 40, 2, 6),
        read(50, 60, 1, 5),
    ];
    assert_broken(&operations, Invariant::Linearizable);
}

#[test]
fn a_write_that_is_ordered_before_what_was_acknowledged_is_caught() {
    let operations = [write(0, 10, 1, Some(6)), write(20, 30, 2, Some(5))];
    assert_broken(&operations, Invariant::Linearizable);
}

#[test]
fn a_lost_update_by_compare_and_set_is_caught() {
    let operations =
        [write(0, 10, 1, Some(5)), write(12, 30, 2, Some(6)), swap(12, 30, 3, (5, 1), 7)];
    assert_broken(&operations, Invariant::Linearizable);
}

#[test]
fn a_compare_and_set_that_is_refused_although_it_matches_is_caught() {
    let mut refused = swap(20, 30, 2, (5, 1), 9);
    refused.outcome = Outcome::Mismatch { current: Some(version(5)) };
    assert_broken(&[write(0, 10, 1, Some(5)), refused.clone()], Invariant::Linearizable);
    let seen = [write(0, 10, 1, Some(5)), write(12, 15, 4, Some(6)), {
        refused.outcome = Outcome::Mismatch { current: Some(version(6)) };
        refused
    }];
    assert!(findings(&seen).is_clean());
    let taken = [seen.to_vec(), vec![read(40, 50, 2, 7)]].concat();
    assert!(0 < findings(&taken).count(Invariant::Linearizable), "a refused write took effect");
}

#[test]
fn a_value_out_of_nowhere_or_from_the_future_is_caught() {
    assert_broken(&[write(0, 10, 1, Some(5)), read(20, 30, 9, 6)], Invariant::Linearizable);
    let future = [write(0, 10, 1, Some(5)), read(20, 30, 2, 6), write(40, 50, 2, Some(6))];
    assert!(0 < findings(&future).count(Invariant::Linearizable));
}

#[test]
fn a_write_that_took_effect_twice_is_caught() {
    let operations = [write(0, 10, 1, Some(5)), read(20, 30, 1, 5), read(40, 50, 1, 8)];
    assert_broken(&operations, Invariant::NothingDoubled);
    let shared = [write(0, 10, 1, Some(5)), write(0, 10, 2, Some(5))];
    assert!(0 < findings(&shared).count(Invariant::NothingDoubled));
}

#[test]
fn an_anchor_that_is_gone_is_caught() {
    let gone = at(20, 30, Action::Get { id: ID, level: Level::Linearizable }, Outcome::Absent);
    assert_broken(&[write(0, 10, 1, Some(5)), gone], Invariant::NothingLost);
}

#[test]
fn a_bounded_read_may_be_as_stale_as_it_says_and_no_staler() {
    const MS: u64 = 1_000_000;
    let bounded = |start_ms: u64, revision, stated_ms: Option<u64>| {
        let level = Level::Bounded { staleness_max_ms: 100 };
        let action = Action::Get { id: ID, level };
        let outcome = Outcome::Found { version: version(revision), value: revision };
        let mut read = at(start_ms * MS, (start_ms + 5) * MS, action, outcome);
        read.served.staleness_ns = stated_ms.map(|ms| ms * MS);
        read
    };
    let writes = [write(0, 10 * MS, 5, Some(5)), write(20 * MS, 30 * MS, 6, Some(6))];
    let with = |read: Operation| findings(&[writes.to_vec(), vec![read]].concat());
    assert!(with(bounded(60, 5, Some(50))).is_clean());
    assert!(with(bounded(60, 6, Some(0))).is_clean());
    for wrong in [
        bounded(60, 5, Some(20)),
        bounded(140, 5, Some(100)),
        bounded(60, 6, Some(101)),
        bounded(60, 6, None),
    ] {
        let findings = with(wrong);
        assert_eq!(findings.count(Invariant::StalenessBounded), 1, "{findings:?}");
        assert_eq!(findings.broken.len(), 1);
    }
}

#[test]
fn two_anchors_of_a_shard_that_share_a_revision_or_run_backwards_are_caught() {
    let mut other = write(20, 30, 2, Some(5));
    if let (Action::Update { id, .. }, Outcome::Written { id: written, .. }) =
        (&mut other.action, &mut other.outcome)
    {
        (*id, *written) = (ID + 1, ID + 1);
    }
    let shared = findings(&[write(0, 10, 1, Some(5)), other.clone()]);
    assert_eq!(shared.count(Invariant::NothingDoubled), 1);
    if let Outcome::Written { version: found, .. } = &mut other.outcome {
        *found = Some(version(4));
    }
    assert_broken(&[write(0, 10, 1, Some(5)), other], Invariant::Linearizable);
}

#[test]
fn an_outcome_that_was_never_found_out_is_left_open_and_a_resolved_one_is_not() {
    let mut open = write(0, 10, 1, None);
    open.outcome = Outcome::Unknown { reason: "COMMIT_UNKNOWN".to_owned() };
    assert_eq!(findings(std::slice::from_ref(&open)).open.len(), 1);
    let mut resolved = write(0, 500, 1, Some(5));
    resolved.resolved = true;
    assert!(findings(&[open, resolved, read(600, 610, 1, 5)]).is_clean());
}

/// A history as a store makes it: each operation takes effect at one moment within its time. With
/// `mistakes`, now and then a read is served from the past or a write is acknowledged and dropped.
fn simulated(seed: u64, count: usize, clients: usize, mistakes: bool) -> Vec<Operation> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut states = vec![(0_u64, 0_u64)];
    let mut operations = vec![write(0, 1, 0, Some(0))];
    let mut free_at = vec![2_u64; clients];
    let mut moment = 2;
    for number in 1..=count as u64 {
        let client = (0..clients).min_by_key(|client| free_at[*client]).unwrap_or_default();
        // Effects are strictly ordered: each takes place after the one before.
        moment = moment.max(free_at[client]) + rng.random_range(1..4);
        let start = free_at[client].min(moment);
        let end = moment + rng.random_range(0..12);
        free_at[client] = end + 1;
        let (revision, held) = *states.last().unwrap_or(&(0, 0));
        let is_wrong = mistakes && rng.random_bool(0.15);
        let next = (revision + 1, number);
        let kind = rng.random_range(0..10);
        let (operation, is_stored) = match kind {
            0..5 => {
                let back =
                    if is_wrong { rng.random_range(0..states.len()) } else { states.len() - 1 };
                let (revision, value) = states[back];
                (read(start, end, value, revision), false)
            }
            5..8 => (write(start, end, number, Some(next.0)), !is_wrong),
            _ => (swap(start, end, number, (revision, held), next.0), !is_wrong),
        };
        if is_stored {
            states.push(next);
        }
        operations.push(Operation { client: u32::try_from(client).unwrap(), ..operation });
    }
    operations
}

fn steps(operations: &[Operation]) -> Vec<Step> {
    let steps = operations.iter().map(|operation| {
        let what = match (&operation.action, &operation.outcome) {
            (Action::Update { value, expected: Some((_, expected)), .. }, _) => {
                Effect::CompareAndSet { expected: *expected, value: *value }
            }
            (Action::Update { value, .. }, _) => Effect::Write(*value),
            (_, Outcome::Found { value, .. }) => Effect::Read(*value),
            other => panic!("{other:?}"),
        };
        Step { start_ns: operation.start_ns, end_ns: operation.end_ns, what }
    });
    steps.collect()
}

/// The same history, as if the store had given its versions in this order of the written values.
fn with_versions(operations: &[Operation], order: &[u64]) -> Vec<Operation> {
    let of = |value: u64| version(order.iter().position(|one| *one == value).unwrap() as u64);
    let mut operations = operations.to_vec();
    for operation in &mut operations {
        match (&mut operation.action, &mut operation.outcome) {
            (Action::Update { value, expected, .. }, Outcome::Written { version, .. }) => {
                *version = Some(of(*value));
                if let Some((version, value)) = expected {
                    *version = of(*value);
                }
            }
            (_, Outcome::Found { version, value }) => *version = of(*value),
            other => panic!("{other:?}"),
        }
    }
    operations
}

fn written(operation: &Operation) -> Option<u64> {
    let Action::Update { value, .. } = operation.action else { return None };
    Some(value)
}

/// All orders of the values.
fn orders(values: &[u64]) -> Vec<Vec<u64>> {
    if values.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (index, first) in values.iter().enumerate() {
        let mut rest = values.to_vec();
        rest.remove(index);
        all.extend(orders(&rest).into_iter().map(|order| [vec![*first], order].concat()));
    }
    all
}

proptest! {
    #[test]
    fn what_a_correct_store_does_passes_both_checks(seed: u64, clients in 1_usize..8) {
        let operations = simulated(seed, 200, clients, false);
        let findings = findings(&operations);
        prop_assert!(findings.is_clean(), "{:?}", findings.violations.first());
        let verdict = wgl::check(&steps(&operations), None, 1_000_000);
        prop_assert_eq!(verdict, Verdict::Linearizable);
    }

    /// The two checks know nothing of each other: one follows versions, the other searches by
    /// value. A history is linearizable if some order of versions makes the first one pass.
    #[test]
    fn the_search_finds_an_order_exactly_if_some_order_of_versions_passes(
        seed: u64, clients in 1_usize..5, count in 1_usize..9, mistakes: bool,
    ) {
        let operations = simulated(seed, count, clients, mistakes);
        let values: Vec<u64> = operations.iter().filter_map(written).collect();
        prop_assume!(values.len() <= 6);
        let passes = orders(&values)
            .iter()
            .any(|order| findings(&with_versions(&operations, order)).is_clean());
        let verdict = wgl::check(&steps(&operations), None, 1_000_000);
        prop_assert_eq!(verdict == Verdict::Linearizable, passes, "{:?}", operations);
    }

    #[test]
    fn windows_of_a_correct_history_never_accuse_it(seed: u64, clients in 1_usize..8) {
        let operations = simulated(seed, 300, clients, false);
        let limits = wgl::Limits { window: 20, period: 20, steps_max: 1_000_000 };
        let mut sampler = wgl::Sampler::new(limits);
        let mut recorded = operations;
        recorded.sort_by_key(|operation| operation.end_ns);
        recorded.iter().for_each(|operation| sampler.add(operation));
        let findings = sampler.finish();
        prop_assert!(findings.is_clean(), "{:?}", findings.violations.first());
    }
}

#[test]
fn wrong_histories_are_caught_by_both_checks_far_more_often_than_not() {
    let (mut by_version, mut by_value) = (0, 0);
    for seed in 0..100 {
        let operations = simulated(seed, 60, 4, true);
        by_version += u32::from(!findings(&operations).is_clean());
        by_value +=
            u32::from(wgl::check(&steps(&operations), None, 1_000_000) == Verdict::Violation);
    }
    assert!(90 <= by_version, "{by_version} of 100");
    assert!(75 <= by_value, "{by_value} of 100");
}
