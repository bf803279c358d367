use std::collections::BTreeMap;

use anchorhold_geometry::{Ecef, GeoPoint};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;

/// Small levels, so that a few hundred updates pass through several of them.
const SMALL: ForestConfig = ForestConfig { buffer_max: 8, factor: 2, dead_share_max: 0.2 };

type Positions = BTreeMap<u16, Ecef>;

/// The answer by definition: everything, sorted by (distance, item).
fn brute_force(
    positions: &Positions,
    query: Ecef,
    k: usize,
    radius_m: f64,
    filter: impl Fn(u16) -> bool,
) -> Vec<Neighbor<u16>> {
    let all = positions.iter().filter(|(item, _)| filter(**item));
    let all = all.map(|(item, at)| Neighbor { item: *item, distance_m: query.distance_m(*at) });
    let mut found: Vec<_> = all.filter(|neighbor| neighbor.distance_m <= radius_m).collect();
    found.sort_by(|a, b| a.distance_m.total_cmp(&b.distance_m).then(a.item.cmp(&b.item)));
    found.truncate(k);
    found
}

/// Compares a snapshot with brute force, for several k, radii and filters around one point.
fn check_query(snapshot: &PositionSnapshot<u16>, positions: &Positions, query: Ecef) {
    for (k, modulus) in [(1, 1), (3, 1), (10, 1), (10, 3), (5, 50), (1_000, 1), (1_000, 7)] {
        let passes = |item: u16| item.is_multiple_of(modulus);
        for radius_m in [f64::INFINITY, 0.0, 3.5, 100.0, 5e5] {
            let expected = brute_force(positions, query, k, radius_m, passes);
            let mut asked = Vec::new();
            let mut filter = |item| {
                asked.push(item);
                passes(item)
            };
            let limit = radius_m.is_finite().then_some(radius_m);
            let found = snapshot.nearest(query, k, limit, &mut filter).unwrap();
            assert_eq!(found, expected, "k={k} modulus={modulus} radius={radius_m} {query:?}");
            let asks = asked.len();
            asked.sort_unstable();
            asked.dedup();
            assert_eq!(asked.len(), asks, "the filter saw an item twice");
        }
    }
}

fn check_contents(snapshot: &PositionSnapshot<u16>, positions: &Positions) {
    let contents: Vec<(u16, Ecef)> = snapshot.iter().collect();
    assert_eq!(contents.len(), positions.len(), "an item lives in more than one place");
    assert_eq!(contents.into_iter().collect::<Positions>(), *positions);
    assert_eq!(snapshot.len(), positions.len());
    for item in 0..300 {
        assert_eq!(snapshot.position(item), positions.get(&item).copied());
    }
}

/// Places that are hard for a k-d tree or for geography.
fn places() -> impl Strategy<Value = Ecef> {
    let geo =
        |latitude, longitude, height| GeoPoint::new(latitude, longitude, height).unwrap().to_ecef();
    let jitter = -5.0..5.0f64;
    prop_oneof![
        // A few coordinates that many items share.
        3 => (0..3u8).prop_map(move |n| geo(48.0, 11.0, f64::from(n) * 3.5)),
        // Floors of a building in a local frame: only z tells them apart.
        3 => (0..4u8, 0..4u8, 0..8u8).prop_map(|(x, y, floor)| {
            Ecef::new([f64::from(x), f64::from(y), f64::from(floor) * 3.5])
        }),
        // A dense cluster far from the origin.
        2 => (jitter.clone(), jitter.clone(), jitter).prop_map(|(x, y, z)| {
            Ecef::new([4_177_000.0 + x, 855_000.0 + y, 4_727_000.0 + z])
        }),
        // Both poles, where longitudes meet.
        1 => (prop_oneof![Just(-1.0), Just(1.0)], 89.9999..90.0f64, -180.0..180.0f64)
            .prop_map(move |(sign, latitude, longitude)| geo(sign * latitude, longitude, 0.0)),
        // Both sides of the antimeridian.
        1 => (-80.0..80.0f64, -0.001..0.001f64).prop_map(move |(latitude, offset)| {
            let longitude = if offset < 0.0 { 180.0 + offset } else { -180.0 + offset };
            geo(latitude, longitude, 10.0)
        }),
        // Anywhere.
        1 => (-90.0..90.0f64, -180.0..180.0f64, -100.0..9_000.0f64)
            .prop_map(move |(latitude, longitude, height)| geo(latitude, longitude, height)),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Upsert(u16, Ecef),
    Remove(u16),
    /// Hands out a merge job if one is due; it runs later.
    Start,
    /// Runs the job that is out and installs the result.
    Install,
    /// Loses the job that is out.
    Abandon,
    Settle,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        60 => (0..300u16, places()).prop_map(|(item, at)| Step::Upsert(item, at)),
        20 => (0..300u16).prop_map(Step::Remove),
        4 => Just(Step::Start),
        4 => Just(Step::Install),
        1 => Just(Step::Abandon),
        1 => Just(Step::Settle),
    ];
    prop::collection::vec(step, 0..600)
}

fn run(index: &mut PositionIndex<u16>, positions: &mut Positions, steps: &[Step]) {
    let mut job = None;
    for step in steps {
        match step {
            Step::Upsert(item, at) => {
                index.upsert(*item, *at).unwrap();
                positions.insert(*item, *at);
            }
            Step::Remove(item) => {
                assert_eq!(index.remove(*item), positions.remove(item).is_some());
            }
            Step::Start => job = index.maintain().or(job),
            Step::Install => {
                if let Some(job) = job.take() {
                    index.install(job.run());
                }
            }
            Step::Abandon => index.abandon_merge(),
            Step::Settle => index.settle(),
        }
    }
}

/// A fixed seed, so that a failure comes back; `PROPTEST_RNG_SEED` and `PROPTEST_CASES` override.
fn config() -> ProptestConfig {
    let fixed = ProptestConfig {
        cases: 128,
        rng_seed: RngSeed::Fixed(0xA2C4),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest::test_runner::contextualize_config(fixed)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_history_answers_like_brute_force(
        first in prop::collection::vec((0..300u16, places()), 0..200),
        steps in steps(),
        queries in prop::collection::vec(places(), 1..4),
    ) {
        let mut index = PositionIndex::from_points(SMALL, first.clone()).unwrap();
        let mut positions: Positions = first.into_iter().collect();
        run(&mut index, &mut positions, &steps);
        check_contents(index.current(), &positions);
        for query in &queries {
            check_query(index.current(), &positions, *query);
        }
        index.abandon_merge();
        index.settle();
        check_contents(index.current(), &positions);
        for query in queries {
            check_query(index.current(), &positions, query);
        }
    }

    #[test]
    fn a_snapshot_keeps_its_answers_while_the_index_goes_on(
        before in steps(),
        after in steps(),
        query in places(),
    ) {
        let mut index = PositionIndex::new(SMALL);
        let mut positions = Positions::new();
        run(&mut index, &mut positions, &before);
        index.abandon_merge();
        let (snapshot, then) = (index.snapshot(), positions.clone());
        run(&mut index, &mut positions, &after);
        check_contents(&snapshot, &then);
        check_query(&snapshot, &then, query);
    }

    #[test]
    fn searching_shard_after_shard_with_the_bound_equals_searching_all(
        points in prop::collection::btree_map(0..300u16, places(), 1..200),
        query in places(),
        k in 1..20usize,
    ) {
        let (near, far): (Vec<_>, Vec<_>) = points.iter().partition(|(item, _)| **item % 3 == 0);
        let shard = |points: Vec<(&u16, &Ecef)>| {
            let points = points.into_iter().map(|(item, at)| (*item, *at)).collect();
            PositionIndex::from_points(SMALL, points).unwrap()
        };
        let mut found = shard(near).current().nearest(query, k, None, &mut |_| true).unwrap();
        let bound_m = (k <= found.len()).then(|| found[k - 1].distance_m);
        let more = shard(far).current().nearest(query, k, bound_m, &mut |_| true).unwrap();
        found.extend(more);
        found.sort_by(|a, b| a.distance_m.total_cmp(&b.distance_m).then(a.item.cmp(&b.item)));
        found.truncate(k);
        prop_assert_eq!(found, brute_force(&points, query, k, f64::INFINITY, |_| true));
    }
}

#[test]
fn a_city_of_ten_thousand_anchors_answers_like_brute_force() {
    let center = GeoPoint::new(48.137, 11.575, 520.0).unwrap().to_ecef().xyz_m();
    // Low-discrepancy sequences: even, fixed, no two points alike.
    let share = |n: u16, step: f64| (f64::from(n) * step).fract();
    let at = |n: u16, offset_m: f64| {
        let block = f64::from(n % 97) * 60.0;
        let [x, y] = [share(n, 0.618_033_988_7), share(n, 0.754_877_666_2)].map(|s| s * 30.0);
        let floor = f64::from(n % 8) * 3.5;
        Ecef::new([center[0] + block + x, center[1] + offset_m + y, center[2] + floor])
    };
    let mut positions: Positions = (0..10_000).map(|item| (item, at(item, 0.0))).collect();
    let points = positions.iter().map(|(item, at)| (*item, *at)).collect();
    let mut index = PositionIndex::from_points(ForestConfig::default(), points).unwrap();
    for item in (0..10_000).step_by(7) {
        positions.insert(item, at(item, 3.0));
        index.upsert(item, at(item, 3.0)).unwrap();
    }
    assert!(1 < index.current().stats().trees && 0 < index.current().stats().buffered);
    for item in (0..10_000).step_by(4_001) {
        check_query(index.current(), &positions, at(item, 1.0));
    }
}

#[test]
fn updates_during_a_merge_survive_its_installation() {
    let at = |n: u16| Ecef::new([f64::from(n % 20), f64::from(n / 20), 0.0]);
    let mut positions: Positions = (0..200).map(|item| (item, at(item))).collect();
    let mut index = PositionIndex::new(SMALL);
    for (item, at) in &positions {
        index.upsert(*item, *at).unwrap();
    }
    let job = index.maintain().expect("200 points in trees of 16 need a merge");
    assert!(index.maintain().is_none(), "one merge at a time");
    for item in (0..200).step_by(3) {
        positions.insert(item, at(item + 1_000));
        index.upsert(item, at(item + 1_000)).unwrap();
    }
    for item in (1..200).step_by(3) {
        positions.remove(&item);
        assert!(index.remove(item));
        assert!(!index.remove(item));
    }
    let before = index.snapshot();
    let merged = job.run();
    check_contents(&before, &positions);
    assert!(index.install(merged));
    for snapshot in [index.current(), &before] {
        check_contents(snapshot, &positions);
        check_query(snapshot, &positions, at(57));
    }
}

#[test]
fn a_late_result_of_an_abandoned_merge_is_refused() {
    let mut index = PositionIndex::new(SMALL);
    for item in 0..200 {
        index.upsert(item, Ecef::new([f64::from(item), 0.0, 0.0])).unwrap();
    }
    let late = index.maintain().unwrap();
    index.abandon_merge();
    index.settle();
    let stats = index.current().stats();
    assert!(!index.install(late.run()));
    assert_eq!(index.current().stats(), stats);
}

#[test]
fn a_result_from_another_index_is_refused() {
    let [mut index, mut other] = [0.0, 1.0].map(|y| {
        let mut index = PositionIndex::new(SMALL);
        for item in 0..200u16 {
            index.upsert(item, Ecef::new([f64::from(item), y, 0.0])).unwrap();
        }
        index
    });
    let (own, foreign) = (index.maintain().unwrap(), other.maintain().unwrap());
    assert!(!index.install(foreign.run()));
    assert!(index.install(own.run()));
    assert_eq!(index.position(7), Some(Ecef::new([7.0, 0.0, 0.0])));
}

#[test]
fn a_settled_forest_has_few_trees_and_few_dead_entries() {
    let mut index = PositionIndex::new(SMALL);
    for round in 0..4u16 {
        for item in 0..3_000u16 {
            index.upsert(item, Ecef::new([f64::from(item), f64::from(round), 0.0])).unwrap();
            if let Some(job) = index.maintain() {
                index.install(job.run());
            }
        }
    }
    index.settle();
    let stats = index.current().stats();
    assert_eq!(stats.live, 3_000);
    assert!(stats.trees <= 9, "{stats:?}");
    assert!(stats.dead <= 900, "{stats:?}");
    for item in 0..3_000 {
        assert!(index.remove(item));
    }
    assert_eq!(index.current().stats(), ForestStats::default());
}

#[test]
fn a_hundred_thousand_items_on_one_coordinate_are_one_leaf() {
    let place = Ecef::new([4_177_000.0, 855_000.0, 4_727_000.0]);
    let points = (0..100_000u32).rev().map(|item| (item, place)).collect();
    let mut index = PositionIndex::from_points(ForestConfig::default(), points).unwrap();
    index.remove(1);
    let mut asked = 0;
    let mut even = |item: u32| {
        asked += 1;
        item.is_multiple_of(2)
    };
    let found = index.current().nearest(place, 3, None, &mut even).unwrap();

    let items: Vec<_> = found.iter().map(|neighbor| (neighbor.item, neighbor.distance_m)).collect();
    assert_eq!(items, vec![(0, 0.0), (2, 0.0), (4, 0.0)]);
    assert_eq!(asked, 4, "0, 2, 3, 4: the search stops once nothing can improve");
}

#[test]
fn equal_distances_are_ordered_by_item_across_trees_and_buffer() {
    // Six places at a distance of exactly 5 m, twenty items on each.
    let ring: [[f64; 2]; 6] =
        [[3.0, 4.0], [-3.0, 4.0], [4.0, -3.0], [-4.0, -3.0], [5.0, 0.0], [0.0, -5.0]];
    let mut index = PositionIndex::new(SMALL);
    let mut positions = Positions::new();
    for item in (0..120u16).rev() {
        let [x, y] = ring[usize::from(item) % ring.len()];
        let at = Ecef::new([x, y, 0.0]);
        index.upsert(item, at).unwrap();
        positions.insert(item, at);
    }
    check_query(index.current(), &positions, Ecef::new([0.0; 3]));
}

#[test]
fn what_is_no_position_is_refused_and_changes_nothing() {
    let mut index = PositionIndex::new(SMALL);
    index.upsert(1u16, Ecef::new([1.0, -0.0, 0.0])).unwrap();
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, -2.0 * COORDINATE_M_MAX] {
        for axis in 0..3 {
            let mut xyz_m = [0.0; 3];
            xyz_m[axis] = bad;
            let bad = Ecef::new(xyz_m);
            assert!(matches!(index.upsert(1, bad), Err(PositionError::Coordinates(_))));
            assert!(index.current().nearest(bad, 1, None, &mut |_| true).is_err());
            assert!(PositionIndex::from_points(SMALL, vec![(1u16, bad)]).is_err());
        }
    }
    let here = Ecef::new([1.0, 0.0, 0.0]);
    for radius_m in [f64::NAN, -1.0] {
        assert!(matches!(
            index.current().within(here, radius_m, 1, &mut |_| true),
            Err(PositionError::Radius(_))
        ));
    }
    assert_eq!(index.position(1), Some(here));
    assert_eq!(index.current().within(here, 0.0, 1, &mut |_| true).unwrap().len(), 1);
}

#[test]
fn an_empty_index_and_a_k_of_zero_answer_nothing() {
    let mut index = PositionIndex::new(SMALL);
    let here = Ecef::new([0.0; 3]);
    assert!(index.current().nearest(here, 10, None, &mut |_: u16| true).unwrap().is_empty());
    assert!(!index.remove(1) && index.is_empty() && index.maintain().is_none());
    index.upsert(1, here).unwrap();
    assert!(index.current().nearest(here, 0, None, &mut |_| true).unwrap().is_empty());
}
