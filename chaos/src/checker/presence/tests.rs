use anchorhold_model::Version;

use super::nearest::{distance, ecef_m};
use super::*;
use crate::history::Served;

const NOWHERE: Position = Position { latitude_deg: 0.0, longitude_deg: 0.0, height_m: 0.0 };

fn version(revision: u64) -> Version {
    Version { incarnation: 0, revision }
}

fn at(start_ns: u64, end_ns: u64, action: Action, outcome: Outcome) -> Operation {
    let served = Served::default();
    Operation { client: 1, start_ns, end_ns, resolved: false, served, action, outcome }
}

/// Creates value `value` under id `value + 100`.
fn create(start_ns: u64, end_ns: u64, value: u64) -> Operation {
    create_at(start_ns, end_ns, value, NOWHERE)
}

fn create_at(start_ns: u64, end_ns: u64, value: u64, position: Position) -> Operation {
    let request = u128::from(value);
    let action = Action::Create { request, item: 0, value, position, expire_ns: None };
    let outcome = Outcome::Written { id: u128::from(value) + 100, version: Some(version(value)) };
    at(start_ns, end_ns, action, outcome)
}

fn delete(start_ns: u64, end_ns: u64, value: u64, outcome: Outcome) -> Operation {
    let request = u128::from(value) + 1_000;
    at(start_ns, end_ns, Action::Delete { request, id: u128::from(value) + 100 }, outcome)
}

fn unknown() -> Outcome {
    Outcome::Unknown { reason: "COMMIT_UNKNOWN".to_owned() }
}

fn row(value: u64) -> Row {
    Row { id: u128::from(value) + 100, version: version(value), value, distance_m: 0.0 }
}

fn get(start_ns: u64, value: u64, outcome: Outcome) -> Operation {
    let action = Action::Get { id: u128::from(value) + 100, level: Level::Linearizable };
    at(start_ns, start_ns + 5, action, outcome)
}

fn found(value: u64) -> Outcome {
    Outcome::Found { version: version(value), value }
}

fn list(start_ns: u64, end_ns: u64, values: &[u64]) -> Operation {
    let rows = values.iter().map(|value| row(*value)).collect();
    let action = Action::List { level: Level::Linearizable };
    at(start_ns, end_ns, action, Outcome::Rows { rows, complete: true })
}

fn findings(operations: &[Operation], back: &[ReadBack]) -> Findings {
    let mut presence = Presence::default();
    operations.iter().for_each(|operation| presence.add(operation));
    back.iter().for_each(|back| presence.add_read_back(back.clone()));
    presence.finish()
}

fn back(node: Option<&str>, values: &[u64]) -> ReadBack {
    let rows = values.iter().map(|value| row(*value)).collect();
    ReadBack { node: node.map(str::to_owned), start_ns: 1_000, end_ns: 1_100, rows }
}

/// Exactly one violation, of this invariant.
#[track_caller]
fn assert_broken(findings: &Findings, invariant: Invariant) {
    assert_eq!(findings.broken, BTreeMap::from([(invariant, 1)]), "{:#?}", findings.violations);
    assert!(!findings.violations[0].evidence.is_empty());
}

#[test]
fn what_is_there_in_the_end_as_acknowledged_is_fine() {
    let operations = [
        create(0, 10, 1),
        create(0, 10, 2),
        delete(20, 30, 2, Outcome::Deleted),
        get(40, 1, found(1)),
        get(40, 2, Outcome::Absent),
    ];
    let back = [back(None, &[1]), back(Some("a1"), &[1])];
    let findings = findings(&operations, &back);
    assert!(findings.is_clean(), "{findings:?}");
    assert_eq!(findings.checked[&Invariant::ReplicasComplete], 1);
}

#[test]
fn a_lost_acknowledgement_is_caught_through_the_api_on_a_replica_and_by_a_read() {
    let operations = [create(0, 10, 1)];
    assert_broken(&findings(&operations, &[back(None, &[])]), Invariant::NothingLost);
    let replica = findings(&operations, &[back(None, &[1]), back(Some("a1"), &[])]);
    assert_broken(&replica, Invariant::ReplicasComplete);
    let read = findings(&[create(0, 10, 1), get(20, 1, Outcome::Absent)], &[]);
    assert_broken(&read, Invariant::NothingLost);
    let deleted = findings(&[create(0, 10, 1), delete(20, 30, 1, Outcome::Absent)], &[]);
    assert_broken(&deleted, Invariant::NothingLost);
}

#[test]
fn a_read_that_overlaps_a_change_may_see_either() {
    for outcome in [found(1), Outcome::Absent] {
        let early = [create(0, 10, 1), get(8, 1, outcome.clone())];
        assert!(findings(&early, &[]).is_clean(), "{outcome:?}");
        let late = [create(0, 10, 1), delete(20, 30, 1, Outcome::Deleted), get(28, 1, outcome)];
        assert!(findings(&late, &[]).is_clean());
    }
}

#[test]
fn a_resurrected_anchor_is_caught() {
    let operations = [create(0, 10, 1), delete(20, 30, 1, Outcome::Deleted)];
    assert_broken(&findings(&operations, &[back(None, &[1])]), Invariant::NothingResurrected);
    let seen = [operations.to_vec(), vec![get(40, 1, found(1))]].concat();
    assert_broken(&findings(&seen, &[]), Invariant::NothingResurrected);
}

#[test]
fn an_anchor_that_nobody_wrote_or_whose_creation_was_refused_is_caught() {
    assert_broken(&findings(&[], &[back(None, &[7])]), Invariant::NothingResurrected);
    let mut refused = create(0, 10, 7);
    refused.outcome = Outcome::Failed { reason: "ANCHOR_EXISTS".to_owned() };
    assert_broken(&findings(&[refused], &[back(None, &[7])]), Invariant::NothingResurrected);
}

#[test]
fn a_doubled_create_is_caught_in_the_acknowledgements_and_in_what_is_there() {
    let mut again = create(0, 30, 1);
    again.resolved = true;
    again.outcome = Outcome::Written { id: 999, version: None };
    assert_broken(&findings(&[create(0, 10, 1), again], &[]), Invariant::NothingDoubled);
    let mut twice = back(None, &[1]);
    twice.rows.push(Row { id: 999, ..row(1) });
    let found = findings(&[create(0, 10, 1)], &[twice]);
    assert!(0 < found.count(Invariant::NothingDoubled));
}

#[test]
fn an_open_outcome_excuses_both_and_is_left_open_until_it_is_found_out() {
    let mut open = create(0, 10, 1);
    open.outcome = unknown();
    for values in [&[][..], &[1]] {
        let findings = findings(&[open.clone()], &[back(None, values)]);
        assert!(findings.broken.is_empty());
        assert_eq!(findings.open.len(), 1);
    }
    let mut resolved = create(0, 500, 1);
    resolved.resolved = true;
    assert!(findings(&[open.clone(), resolved.clone()], &[back(None, &[1])]).is_clean());
    let lost = findings(&[open, resolved], &[back(None, &[])]);
    assert_broken(&lost, Invariant::NothingLost);
    let half = [create(0, 10, 1), delete(20, 30, 1, unknown())];
    assert!(findings(&half, &[back(None, &[])]).broken.is_empty());
    let resurrected = [create(0, 10, 1), delete(20, 30, 1, unknown()), {
        let mut resolved = delete(20, 600, 1, Outcome::Deleted);
        resolved.resolved = true;
        resolved
    }];
    let found = findings(&resurrected, &[back(None, &[1])]);
    assert_broken(&found, Invariant::NothingResurrected);
}

#[test]
fn a_list_that_skips_repeats_or_mixes_up_anchors_is_caught() {
    let operations = [create(0, 10, 1), create(0, 10, 2), create(0, 10, 3)];
    let with = |values: &[u64]| {
        findings(&[operations.to_vec(), vec![list(100, 200, values)]].concat(), &[])
    };
    assert!(with(&[1, 2, 3]).is_clean());
    assert_broken(&with(&[1, 3]), Invariant::ListedOnce);
    assert_eq!(with(&[1, 2, 2, 3]).count(Invariant::ListedOnce), 1);
    assert_broken(&with(&[1, 3, 2]), Invariant::ListedOnce);
    assert_broken(&with(&[1, 2, 3, 4]), Invariant::NothingResurrected);
}

#[test]
fn what_comes_and_goes_while_pages_are_read_may_or_may_not_be_listed() {
    let operations = [create(0, 10, 1), create(150, 160, 2), delete(150, 160, 1, Outcome::Deleted)];
    for values in [&[][..], &[1], &[2], &[1, 2]] {
        let all = [operations.to_vec(), vec![list(100, 200, values)]].concat();
        assert!(findings(&all, &[]).is_clean(), "{values:?}");
    }
}

fn nearest(rows: Vec<Row>, k: u32, complete: bool) -> Operation {
    let action = Action::Nearest { position: NOWHERE, k };
    at(100, 110, action, Outcome::Rows { rows, complete })
}

/// Value `n` lies `n` thousandths of a degree away.
fn neighbour(value: u64) -> (Operation, Row) {
    let position =
        Position { latitude_deg: 0.0, longitude_deg: value as f64 / 1_000.0, height_m: 0.0 };
    let distance_m = distance(ecef_m(NOWHERE), ecef_m(position));
    (create_at(0, 10, value, position), Row { distance_m, ..row(value) })
}

#[test]
fn a_wrong_neighbour_is_caught() {
    let anchors: Vec<(Operation, Row)> = (1..=4).map(neighbour).collect();
    let with = |rows: &[u64], complete| {
        let rows: Vec<Row> = rows.iter().map(|value| neighbour(*value).1).collect();
        let creates = anchors.iter().map(|(create, _)| create.clone());
        findings(&creates.chain([nearest(rows, 2, complete)]).collect::<Vec<_>>(), &[])
    };
    assert!(with(&[1, 2], true).is_clean());
    assert_broken(&with(&[1, 3], true), Invariant::NearestExact);
    assert_eq!(with(&[1], true).count(Invariant::NearestExact), 3);
    assert!(with(&[1], false).is_clean(), "an answer that says it is incomplete may miss some");
    assert_broken(&with(&[2, 1], true), Invariant::NearestExact);
    let mut wrong = neighbour(1).1;
    wrong.distance_m += 1.0;
    let creates = anchors.iter().map(|(create, _)| create.clone());
    let rows = vec![wrong, neighbour(2).1];
    let found = findings(&creates.chain([nearest(rows, 2, true)]).collect::<Vec<_>>(), &[]);
    assert!(0 < found.count(Invariant::NearestExact));
}

#[test]
fn a_degree_on_the_equator_is_as_long_as_wgs84_says() {
    let position = Position { latitude_deg: 0.0, longitude_deg: 1.0, height_m: 0.0 };
    let chord_m = 2.0 * 6_378_137.0 * 0.5_f64.to_radians().sin();
    assert!((distance(ecef_m(NOWHERE), ecef_m(position)) - chord_m).abs() < 1e-6);
    let pole = Position { latitude_deg: 90.0, longitude_deg: 0.0, height_m: 0.0 };
    assert!((ecef_m(pole)[2] - 6_356_752.314_245).abs() < 1e-3);
}
