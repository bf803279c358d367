use anchorhold_geometry::{Ecef, Orientation};
use nalgebra::Vector3;
use proptest::prelude::*;

use super::*;
use crate::{AnchorId, LocalPosition, RequestId};

const ACCOUNT: AccountNumber = AccountNumber(9);

fn geo(point: GeoPoint) -> Pose {
    Pose::Geo { point, orientation: Orientation::IDENTITY }
}

fn local(space: u32, xyz: [f64; 3]) -> Pose {
    let position = LocalPosition::new(xyz).unwrap();
    Pose::Local { space, position, orientation: Orientation::IDENTITY }
}

fn id_at(pose: &Pose, request_id: u128) -> AnchorId {
    AnchorId::derive(ACCOUNT, pose, RequestId(request_id), 0, 0)
}

fn is_covered(ranges: &[KeyRange], id: AnchorId) -> bool {
    ranges.iter().any(|range| range.contains_id(id))
}

/// Points everywhere, often at the poles, the antimeridian, the equator and the cube's corners.
fn any_point() -> impl Strategy<Value = GeoPoint> {
    let corner = 35.264_389_682_754_654;
    let latitude = prop_oneof![
        6 => -90.0..=90.0,
        1 => prop_oneof![Just(-90.0), Just(90.0), Just(0.0), Just(corner), Just(-corner)],
        1 => 89.99..=90.0,
        1 => -90.0..=-89.99,
    ];
    let longitude = prop_oneof![
        6 => -180.0..=180.0,
        1 => prop_oneof![Just(-180.0), Just(0.0), Just(45.0), Just(-135.0)],
        1 => 179.99..=180.0,
        1 => -180.0..=-179.99,
    ];
    let height = prop_oneof![4 => -100.0..1_000.0, 1 => -11_000.0..=100_000.0];
    (latitude, longitude, height).prop_map(|(latitude, longitude, height)| {
        GeoPoint::new(latitude, longitude, height).unwrap()
    })
}

/// A point some meters away in a straight line; `None` if it is no point on Earth.
fn moved(from: GeoPoint, direction: [f64; 3], meters: f64) -> Option<GeoPoint> {
    let direction = Vector3::from(direction).try_normalize(1e-9)?;
    let step = from.ecef_from_enu() * direction * meters;
    let [x, y, z] = from.to_ecef().xyz_m();
    GeoPoint::from_ecef(Ecef::new([x + step.x, y + step.y, z + step.z])).ok()
}

fn any_direction() -> impl Strategy<Value = [f64; 3]> {
    let unit = || -1.0..1.0;
    prop_oneof![
        3 => (unit(), unit(), -0.01..0.01).prop_map(|(east, north, up)| [east, north, up]),
        1 => (unit(), unit(), unit()).prop_map(|(east, north, up)| [east, north, up]),
    ]
}

/// An anchor around a point, perhaps drifted from the home that its id tells.
#[derive(Clone, Copy, Debug)]
struct Placed {
    there: [f64; 3],
    far_m: f64,
    drift: [f64; 3],
    drift_m: f64,
    request_id: u128,
}

impl Placed {
    /// The anchor's id and its pose, if `apply` would let that pass.
    fn place(&self, from: GeoPoint) -> Option<(AnchorId, GeoPoint)> {
        let pose = moved(from, self.there, self.far_m)?;
        let home = moved(pose, self.drift, self.drift_m)?;
        let id = id_at(&geo(home), self.request_id);
        (id.home_distance_m(&geo(pose))? <= DRIFT_M_MAX).then_some((id, pose))
    }
}

fn any_placed(radius_m: f64) -> impl Strategy<Value = Placed> {
    let drift_m = prop_oneof![Just(0.0), 0.0..150.0, 99.0..101.0];
    (any_direction(), 0.0..=1.0_f64, any_direction(), drift_m, any::<u128>()).prop_map(
        move |(there, share, drift, drift_m, request_id)| Placed {
            there,
            far_m: share * radius_m,
            drift,
            drift_m,
            request_id,
        },
    )
}

fn any_radius() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), 0.0..10.0, 10.0..10_000.0, 1e4..1e6, 1e6..1.3e7]
}

fn any_case() -> impl Strategy<Value = (GeoPoint, f64, Vec<Placed>)> {
    (any_point(), any_radius()).prop_flat_map(|(point, radius_m)| {
        let anchors = prop::collection::vec(any_placed(radius_m), 1..20);
        (Just(point), Just(radius_m), anchors)
    })
}

/// Key ranges as shards have them: between ids, whole accounts, cells.
fn any_range() -> impl Strategy<Value = KeyRange> {
    let id = || (any_point(), any::<u128>()).prop_map(|(point, id)| id_at(&geo(point), id).key());
    let near = (any_point(), any_direction(), 0.0..10_000.0).prop_map(|(point, there, meters)| {
        let other = moved(point, there, meters).unwrap_or(point);
        let keys = [id_at(&geo(point), 1).key(), id_at(&geo(other), 2).key()];
        KeyRange { start: keys[0].min(keys[1]), end: keys[0].max(keys[1]).next() }
    });
    prop_oneof![
        1 => (id(), id()).prop_map(|(a, b)| KeyRange { start: a.min(b), end: Some(a.max(b)) }),
        4 => near,
        1 => id().prop_map(|start| KeyRange { start, end: None }),
        1 => id().prop_map(|end| KeyRange { end: Some(end), ..KeyRange::FULL }),
        1 => (any_point(), 0_u64..=22).prop_map(|(point, level)| {
            KeyRange::of_s2_cell(ACCOUNT, cell::leaf_of(point).parent(level).0).unwrap()
        }),
    ]
}

proptest! {
    #![proptest_config(crate::testing::cases(1_000))]

    #[test]
    fn covering_of_a_ball_misses_no_anchor_in_it((point, radius_m, anchors) in any_case()) {
        for (cover, ranges_max) in [(cover_near as fn(_, &_, _) -> Vec<_>, 16), (bound_near, 6)] {
            let ranges = cover(ACCOUNT, &geo(point), radius_m);
            prop_assert!(ranges.is_sorted() && ranges.len() <= ranges_max, "{}", ranges.len());
            for (id, pose) in anchors.iter().filter_map(|anchor| anchor.place(point)) {
                let distance_m = pose.to_ecef().distance_m(point.to_ecef());
                prop_assert!(
                    radius_m < distance_m || is_covered(&ranges, id),
                    "anchor {id} at {pose:?}, {distance_m} m away, is not covered"
                );
            }
        }
    }

    #[test]
    fn covering_of_a_rectangle_misses_no_anchor_in_it(
        (corner, reach_m, anchors) in any_case(), size in (0.0..40.0_f64, 0.0..200.0_f64),
    ) {
        let south = corner.latitude_deg();
        let north = (south + size.0 * (reach_m / 1e7).min(1.0)).min(90.0);
        let west = corner.longitude_deg();
        let east = west + size.1 * (reach_m / 1e7).min(1.0);
        let east = if 180.0 < east { east - 360.0 } else { east };
        let rect = GeoRect::new(south, west, north, east).unwrap();
        let ranges = cover_rect(ACCOUNT, &rect);
        for (id, pose) in anchors.iter().filter_map(|anchor| anchor.place(corner)) {
            prop_assert!(
                !rect.contains(pose) || is_covered(&ranges, id),
                "anchor {id} at {pose:?} is not covered by {rect:?}"
            );
        }
    }

    #[test]
    fn bound_is_never_above_a_true_distance(
        range in any_range(), from in any_point(),
        placed in prop::collection::vec((any_point(), any_placed(20_000.0)), 1..20),
        share in prop::collection::vec(any::<u64>(), 8),
    ) {
        let bounds = RangeBounds::new(ACCOUNT, &range);
        let bound_m = bounds.lower_bound_from_point_m(from);
        prop_assert_eq!(bounds.lower_bound_m(&geo(from)), bound_m);
        let rough_m = bounds.rough_lower_bound_m(&geo(from));
        prop_assert!(rough_m <= bound_m, "the rough bound {rough_m} m is above {bound_m} m");
        // Anchors anywhere and near the query, and some in cells of the range.
        let anywhere = placed.iter().filter_map(|(point, placed)| placed.place(*point));
        let near = placed.iter().filter_map(|(_, placed)| placed.place(from));
        let inside = range.cells(ACCOUNT).into_iter().flat_map(|(first, last)| {
            let placed = &placed;
            share.iter().zip(placed.iter().cycle()).filter_map(move |(share, (_, placed))| {
                point_of_cell(first, last, *share).and_then(|point| placed.place(point))
            })
        });
        for (id, pose) in anywhere.chain(near).chain(inside) {
            let true_m = pose.to_ecef().distance_m(from.to_ecef());
            prop_assert!(
                !range.contains_id(id) || bound_m <= true_m,
                "bound {bound_m} m is above {true_m} m to {id} at {pose:?}"
            );
        }
    }

    #[test]
    fn bound_is_zero_where_an_anchor_may_have_drifted(
        home in any_point(), drift in any_direction(), drift_m in 90.0..101.0,
    ) {
        let placed = Placed { there: drift, far_m: 0.0, drift, drift_m, request_id: 1 };
        let Some((id, pose)) = placed.place(home) else { return Ok(()) };
        let only = KeyRange { start: id.key(), end: id.key().next() };
        let bounds = RangeBounds::new(ACCOUNT, &only);
        prop_assert_eq!(bounds.lower_bound_from_point_m(pose), 0.0);
    }

    #[test]
    fn bound_of_a_cell_is_close_to_the_truth(
        point in any_point(), level in 4_u64..=22, there in any_direction(), far_m in 0.0..1e5,
    ) {
        // From the ground, the nearest of many points of the cell is not much farther.
        let on_ground = |point: GeoPoint| {
            GeoPoint::new(point.latitude_deg(), point.longitude_deg(), 0.0).unwrap()
        };
        let (point, there) = (on_ground(point), [there[0], there[1], 0.0]);
        let Some(from) = moved(point, there, far_m).map(on_ground) else { return Ok(()) };
        let range = KeyRange::of_s2_cell(ACCOUNT, cell::leaf_of(point).parent(level).0).unwrap();
        let bound_m = RangeBounds::new(ACCOUNT, &range).lower_bound_from_point_m(from);
        let true_m = point.to_ecef().distance_m(from.to_ecef());
        prop_assert!(bound_m <= true_m);
        let side_m = 1.5e7 / f64::from(1_u32 << level);
        prop_assert!(
            true_m * 0.98 - 1.5 * side_m - 101.0 <= bound_m,
            "bound {bound_m} m, truth {true_m} m, side {side_m} m"
        );
    }

    #[test]
    fn covering_in_a_local_space_misses_no_anchor(
        x in -2_000.0..2_000.0, y in -2_000.0..2_000.0, radius_m in prop_oneof![0.0..30.0, 0.0..600.0],
        there in any_direction(), drift in any_direction(), share in 0.0..1.0_f64,
        drift_m in 0.0..104.0,
    ) {
        let offset = |direction: [f64; 3], meters: f64| {
            let unit = Vector3::from(direction).try_normalize(1e-9).unwrap_or(Vector3::x());
            unit * meters
        };
        let query = Vector3::new(x, y, 2.0);
        let pose = query + offset(there, share * radius_m);
        let home = pose + offset(drift, drift_m);
        let at = |v: Vector3<f64>| local(5, [v.x, v.y, v.z]);
        let id = id_at(&at(home), 1);
        prop_assume!(id.home_distance_m(&at(pose)).unwrap() <= DRIFT_M_MAX);
        let ranges = cover_near(ACCOUNT, &at(query), radius_m);
        prop_assert!(is_covered(&ranges, id));
        prop_assert!(!is_covered(&ranges, id_at(&local(6, [x, y, 0.0]), 1)));
        for range in &ranges {
            let bounds = RangeBounds::new(ACCOUNT, range);
            prop_assert_eq!(bounds.lower_bound_m(&at(query)), 0.0);
            prop_assert_eq!(bounds.lower_bound_m(&local(6, [x, y, 0.0])), f64::INFINITY);
            prop_assert_eq!(bounds.lower_bound_from_point_m(
                GeoPoint::new(0.0, 0.0, 0.0).unwrap()), f64::INFINITY);
        }
    }

    #[test]
    fn merged_ranges_hold_the_same_keys(
        ends in prop::collection::vec(any::<(u8, Option<u8>)>(), 0..8),
    ) {
        let ranges: Vec<KeyRange> = ends
            .into_iter()
            .map(|(start, end)| KeyRange {
                start: crate::Key(start.into()),
                end: end.map(|end| crate::Key(end.into())),
            })
            .collect();
        let joined = merged(ranges.clone());
        for key in (0..=256).map(crate::Key) {
            let holds = |ranges: &[KeyRange]| ranges.iter().any(|range| range.contains(key));
            prop_assert_eq!(holds(&joined), holds(&ranges));
        }
        for pair in joined.windows(2) {
            prop_assert!(pair[0].end.is_some_and(|end| end < pair[1].start));
        }
    }
}

/// A point in a cell of a range of cells on Earth.
fn point_of_cell(first: CellIndex, last: CellIndex, share: u64) -> Option<GeoPoint> {
    let (first, end) = cell::leaves(first, last)?;
    let leaf = CellID((first.0 + share % (end.0 - first.0)) | 1);
    let direction = Point::from(leaf).0;
    let latitude = direction.z.asin().to_degrees();
    GeoPoint::new(latitude, direction.y.atan2(direction.x).to_degrees(), 0.0).ok()
}

#[test]
fn small_circle_touches_few_keys() {
    let point = GeoPoint::new(51.5, -0.12, 0.0).unwrap();
    let ranges = cover_near_point(ACCOUNT, point, 20.0);
    let cells: u64 = ranges
        .iter()
        .filter_map(|range| range.cells(ACCOUNT))
        .map(|(first, last)| last.0 - first.0 + 1)
        .sum();
    // A circle of 120 m has some 10,000 cells of level 22; a covering may have a few times that.
    assert!((5_000..60_000).contains(&cells), "{cells} cells");
    assert!(ranges.len() <= CELLS_MAX);
}

#[test]
fn far_shards_are_known_to_be_far() {
    let of = |latitude, longitude| GeoPoint::new(latitude, longitude, 0.0).unwrap();
    let london = cell::leaf_of(of(51.5, -0.12)).parent(10);
    let bounds = RangeBounds::new(ACCOUNT, &KeyRange::of_s2_cell(ACCOUNT, london.0).unwrap());
    let paris_m = bounds.lower_bound_from_point_m(of(48.857, 2.352));
    assert!((320_000.0..345_000.0).contains(&paris_m), "{paris_m}");
    // A range of one cell: its ball is the cell's own.
    let rough_m = bounds.rough_lower_bound_m(&geo(of(48.857, 2.352)));
    assert!((310_000.0..=paris_m).contains(&rough_m), "{rough_m}");
    assert_eq!(bounds.lower_bound_from_point_m(of(51.5, -0.12)), 0.0);
    let other = RangeBounds::new(AccountNumber(10), &KeyRange::of_account(ACCOUNT));
    assert_eq!(other.lower_bound_from_point_m(of(51.5, -0.12)), f64::INFINITY);
}

#[test]
fn everything_is_covered_by_a_huge_circle() {
    let point = GeoPoint::new(0.0, 0.0, 0.0).unwrap();
    for radius_m in [2e7, f64::INFINITY, f64::NAN] {
        let ranges = cover_near_point(ACCOUNT, point, radius_m);
        assert_eq!(ranges, vec![KeyRange::of_space(ACCOUNT, Space::Earth)]);
    }
}

#[test]
fn edges_of_a_rectangle_are_checked() {
    for (south, west, north, east) in [
        (1.0, 0.0, 0.0, 1.0),
        (-91.0, 0.0, 0.0, 1.0),
        (0.0, 0.0, f64::NAN, 1.0),
        (0.0, -181.0, 1.0, 1.0),
        (0.0, 0.0, 1.0, f64::NAN),
    ] {
        assert!(GeoRect::new(south, west, north, east).is_err());
    }
    let rect = GeoRect::new(-10.0, 170.0, 10.0, -170.0).unwrap();
    let at = |longitude| GeoPoint::new(0.0, longitude, 0.0).unwrap();
    assert!(rect.contains(at(180.0)) && rect.contains(at(-170.0)) && !rect.contains(at(0.0)));
    let east = GeoRect::new(-10.0, 170.0, 10.0, 180.0).unwrap();
    assert!(east.contains(at(180.0)));
}

#[test]
fn cells_told_to_people_hold_every_range_and_are_few() {
    let point = GeoPoint::new(48.1, 11.5, 500.0).unwrap();
    for radius_m in [1.0, 5_000.0, 400_000.0, 9_000_000.0, f64::INFINITY] {
        let ranges = cover_near_point(ACCOUNT, point, radius_m);
        for cells_max in [1, 6, 64] {
            let cells = s2_cells(ACCOUNT, &ranges, cells_max);
            assert!(
                !cells.is_empty() && cells.len() <= cells_max.max(6),
                "{radius_m} m: {cells:?}"
            );
            let told: Vec<_> =
                cells.iter().filter_map(|cell| KeyRange::of_s2_cell(ACCOUNT, *cell)).collect();
            let told = merged(told);
            for range in &ranges {
                assert!(told.iter().any(|told| told.contains_range(range)), "{radius_m} m");
            }
        }
    }
    let room = KeyRange::of_space(ACCOUNT, Space::Local(3));
    assert_eq!(s2_cells(ACCOUNT, &[room], 64), Vec::<u64>::new());
}
