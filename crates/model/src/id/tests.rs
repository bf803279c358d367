use anchorhold_geometry::{GeoPoint, Orientation};
use expect_test::expect;
use proptest::prelude::*;

use super::*;
use crate::LocalPosition;

fn geo(latitude_deg: f64, longitude_deg: f64) -> Pose {
    let point = GeoPoint::new(latitude_deg, longitude_deg, 0.0).unwrap();
    Pose::Geo { point, orientation: Orientation::IDENTITY }
}

fn local(space: u32, x: f64, y: f64) -> Pose {
    let position = LocalPosition::new([x, y, 0.0]).unwrap();
    Pose::Local { space, position, orientation: Orientation::IDENTITY }
}

fn any_geo() -> impl Strategy<Value = Pose> {
    let latitude = prop_oneof![8 => -90.0..=90.0, 1 => Just(-90.0), 1 => Just(90.0)];
    let longitude = prop_oneof![8 => -180.0..=180.0, 1 => Just(180.0), 1 => -1e-6..1e-6];
    (latitude, longitude).prop_map(|(latitude, longitude)| geo(latitude, longitude))
}

fn any_local() -> impl Strategy<Value = Pose> {
    let space = prop_oneof![0..=SPACES, 0_u32..3, SPACES - 2..=SPACES];
    (space, -1e6..1e6, -1e6..1e6).prop_map(|(space, x, y)| local(space, x, y))
}

const SPACES: u32 = cell::SPACE_NUMBER_MAX;

fn any_pose() -> impl Strategy<Value = Pose> {
    prop_oneof![3 => any_geo(), 1 => any_local()]
}

fn any_account() -> impl Strategy<Value = AccountNumber> {
    prop_oneof![any::<u32>(), 0_u32..4, u32::MAX - 3..=u32::MAX].prop_map(AccountNumber)
}

fn any_id() -> impl Strategy<Value = AnchorId> {
    (any_account(), any_pose(), any::<u128>(), any::<u32>(), 0_u32..3).prop_map(
        |(account, pose, request_id, item, attempt)| {
            AnchorId::derive(account, &pose, RequestId(request_id), item, attempt)
        },
    )
}

/// The S2 leaf cell's id, by S2's own way from latitude and longitude.
fn leaf(pose: &Pose) -> Option<u64> {
    let Pose::Geo { point, .. } = pose else { return None };
    Some(cell::leaf_of(*point).0)
}

proptest! {
    #![proptest_config(crate::testing::cases(2_000))]

    #[test]
    fn id_survives_bytes_text_and_key(id in any_id()) {
        prop_assert_eq!(AnchorId::from_bytes(id.to_bytes()).unwrap(), id);
        prop_assert_eq!(id.to_string().parse::<AnchorId>().unwrap(), id);
        prop_assert_eq!(id.to_string().to_uppercase().parse::<AnchorId>().unwrap(), id);
        prop_assert_eq!(AnchorId::try_from(Key::from(id)).unwrap(), id);
        let text = id.to_string();
        prop_assert_eq!(&text[14..15], "8");
        prop_assert!(matches!(&text[19..20], "8" | "9" | "a" | "b"));
    }

    #[test]
    fn id_tells_account_and_home(
        account in any_account(), pose in any_pose(), request_id in any::<u128>(),
    ) {
        let id = AnchorId::derive(account, &pose, RequestId(request_id), 0, 0);
        prop_assert_eq!(id.account(), account);
        prop_assert_eq!(id.space(), Some(pose.space()));
        match (&pose, id.home_cell()) {
            (Pose::Geo { .. }, HomeCell::Earth(cell)) => {
                let parent = s2::cellid::CellID(leaf(&pose).unwrap()).parent(14);
                prop_assert_eq!(u64::from(cell) << 32, parent.0);
            }
            (Pose::Local { space, .. }, HomeCell::Local(number)) => {
                prop_assert_eq!(*space, number);
            }
            (pose, home) => prop_assert!(false, "{pose:?} has home {home:?}"),
        }
        prop_assert_eq!(id.home_distance_m(&pose), Some(0.0));
    }

    #[test]
    fn ids_sort_by_account_then_level_22_cell(
        a in (any_account(), any_geo()), b in (any_account(), any_geo()), request in any::<u128>(),
    ) {
        let of = |(account, pose): &(AccountNumber, Pose), item| {
            let id = AnchorId::derive(*account, pose, RequestId(request), item, 0);
            (id, (*account, leaf(pose).unwrap() >> 17))
        };
        let ((id_a, place_a), (id_b, place_b)) = (of(&a, 0), of(&b, 1));
        if place_a != place_b {
            prop_assert_eq!(id_a.cmp(&id_b), place_a.cmp(&place_b));
        }
        prop_assert_eq!(id_a.cmp(&id_b), id_a.to_bytes().cmp(&id_b.to_bytes()));
    }

    #[test]
    fn same_arguments_make_the_same_id_and_others_another(
        account in any_account(), pose in any_pose(), request_id in any::<u128>(),
        item in 0..u32::MAX,
    ) {
        let derive = |request_id, item, attempt| {
            AnchorId::derive(account, &pose, RequestId(request_id), item, attempt)
        };
        let id = derive(request_id, item, 0);
        prop_assert_eq!(derive(request_id, item, 0), id);
        for other in [
            derive(request_id, item, 1), derive(request_id, item + 1, 0),
            derive(request_id ^ 1, item, 0),
        ] {
            prop_assert_ne!(other, id);
            prop_assert_eq!(other.cell_index(), id.cell_index());
        }
    }

    #[test]
    fn range_of_a_cell_holds_the_ids_within_and_no_other(
        account in any_account(), pose in any_geo(), other in any_geo(), level in 0_u64..=30,
        request_id in any::<u128>(),
    ) {
        let ancestor = s2::cellid::CellID(leaf(&pose).unwrap()).parent(level);
        let range = KeyRange::of_s2_cell(account, ancestor.0).unwrap();
        let id = |pose| AnchorId::derive(account, pose, RequestId(request_id), 0, 0);
        prop_assert!(range.contains_id(id(&pose)));
        let reach = ancestor.parent(level.min(22));
        let is_within = reach.contains(&s2::cellid::CellID(leaf(&other).unwrap()));
        prop_assert_eq!(range.contains_id(id(&other)), is_within);
        prop_assert!(KeyRange::of_account(account).contains_range(&range));
    }

    #[test]
    fn neighbouring_cells_make_touching_ranges(
        account in any_account(), pose in any_geo(), level in 0_u64..=22,
    ) {
        let first = s2::cellid::CellID(leaf(&pose).unwrap()).parent(level);
        let second = first.next();
        let first = KeyRange::of_s2_cell(account, first.0).unwrap();
        match KeyRange::of_s2_cell(account, second.0) {
            Some(second) => prop_assert_eq!(first.end, Some(second.start)),
            None => prop_assert_eq!(
                first.end,
                Some(KeyRange::of_space(account, Space::Local(0)).start)
            ),
        }
    }

    #[test]
    fn cells_of_a_range_are_those_of_its_ids(
        account in any_account(), ends in any::<[u128; 2]>(), id in any_id(), near in any::<bool>(),
        pose in any_pose(),
    ) {
        // Ends far and near, inside cells and across accounts.
        let ends = if near {
            let id = AnchorId::derive(account, &pose, RequestId(7), 0, 0).key().0;
            [id.saturating_sub(ends[0] >> 64), id.saturating_add(ends[1] >> 70)]
        } else {
            ends
        };
        let (start, end) = (ends[0].min(ends[1]), ends[0].max(ends[1]));
        let range = KeyRange { start: Key(start), end: Some(Key(end)) };
        let own = AnchorId::derive(account, &pose, RequestId(9), 0, 0);
        for id in [id, own].into_iter().filter(|id| range.contains_id(*id)) {
            let (first, last) = range.cells(id.account()).unwrap();
            prop_assert!((first..=last).contains(&id.cell_index()));
        }
        if let Some((first, last)) = range.cells(account) {
            // Tight: the ends' cells do reach into the range.
            prop_assert!(range.overlaps(&KeyRange::of_cells(account, first, first)));
            prop_assert!(range.overlaps(&KeyRange::of_cells(account, last, last)));
        }
    }

    #[test]
    fn range_that_starts_inside_a_cell_reaches_into_it(
        account in any_account(), pose in any_pose(), request_id in any::<u128>(),
    ) {
        let id = AnchorId::derive(account, &pose, RequestId(request_id), 0, 0);
        let only = KeyRange { start: id.key(), end: id.key().next() };
        prop_assert_eq!(only.cells(account), Some((id.cell_index(), id.cell_index())));
        let before = KeyRange { end: Some(id.key()), ..KeyRange::of_account(account) };
        let (_, last) = before.cells(account).unwrap();
        prop_assert_eq!(last, id.cell_index());
    }

    #[test]
    fn intersection_holds_what_both_hold(
        ends in any::<[u8; 4]>(), open in any::<[bool; 2]>(), key in any::<u8>(),
    ) {
        let range = |start: u8, end: u8, open: bool| KeyRange {
            start: Key(start.into()),
            end: (!open).then_some(Key(end.into())),
        };
        let (a, b) = (range(ends[0], ends[1], open[0]), range(ends[2], ends[3], open[1]));
        let (both, key) = (a.intersect(&b), Key(key.into()));
        prop_assert_eq!(both.contains(key), a.contains(key) && b.contains(key));
        prop_assert_eq!(a.overlaps(&b), (0..=255).any(|k| a.contains(Key(k)) && b.contains(Key(k)))
            || (open[0] && open[1]));
        prop_assert_eq!(a.overlaps(&b), b.overlaps(&a));
    }

    #[test]
    fn drift_is_never_above_the_true_distance(
        pose in any_geo(), north_m in -150.0..150.0, east_m in -150.0..150.0,
    ) {
        let Pose::Geo { point, .. } = pose else { unreachable!() };
        let step = point.ecef_from_enu() * nalgebra_vector(east_m, north_m);
        let [x, y, z] = point.to_ecef().xyz_m();
        let moved = anchorhold_geometry::Ecef::new([x + step[0], y + step[1], z + step[2]]);
        let there = GeoPoint::from_ecef(moved).unwrap();
        let id = AnchorId::derive(AccountNumber(1), &pose, RequestId(0), 0, 0);
        let distance_m = id
            .home_distance_m(&Pose::Geo { point: there, orientation: Orientation::IDENTITY })
            .unwrap();
        let true_m = north_m.hypot(east_m);
        // The home cell is some 2 m wide, so the pose it was made for is within 4 m of its edge.
        prop_assert!(distance_m <= true_m + 1e-6, "{distance_m} above {true_m}");
        prop_assert!(true_m * 0.985 - 4.0 <= distance_m, "{distance_m} far below {true_m}");
    }

    #[test]
    fn local_drift_repeats_every_kilometer(
        x in -1e5..1e5, y in -1e5..1e5, dx in -400.0..400.0_f64, dy in -400.0..400.0_f64, turns in -3..3_i8,
    ) {
        let id = AnchorId::derive(AccountNumber(1), &local(5, x, y), RequestId(0), 0, 0);
        let there = local(5, x + dx + 1024.0 * f64::from(turns), y + dy);
        let distance_m = id.home_distance_m(&there).unwrap();
        prop_assert!(distance_m <= dx.hypot(dy) + 1e-6);
        prop_assert!(dx.hypot(dy) - 2.0_f64.sqrt() * 4.0 - 1e-6 <= distance_m);
        prop_assert_eq!(id.home_distance_m(&local(6, x, y)), None);
        prop_assert_eq!(id.home_distance_m(&geo(0.0, 0.0)), None);
    }
}

fn nalgebra_vector(east_m: f64, north_m: f64) -> nalgebra::Vector3<f64> {
    nalgebra::Vector3::new(east_m, north_m, 0.0)
}

#[test]
fn layout_of_an_id_is_fixed() {
    let id = |pose: &Pose| {
        AnchorId::derive(AccountNumber(0x0102_0304), pose, RequestId(42), 1, 0).to_string()
    };
    let ids = [
        geo(37.789, -122.39),
        geo(90.0, 0.0),
        geo(0.0, -180.0),
        local(0, 0.0, 0.0),
        local(SPACES, 5.0, -1.0),
    ]
    .map(|pose| id(&pose))
    .join("\n");
    expect![[r#"
        01020304-8085-8807-84ef-6d4d48f017ee
        01020304-5000-8000-8400-014d48f017ee
        01020304-7000-8000-8400-014d48f017ee
        01020304-c000-8000-8400-014d48f017ee
        01020304-dfff-8fff-beaa-ad4d48f017ee"#]]
    .assert_eq(&ids);
}

#[test]
fn unreadable_ids_say_why() {
    let error = |text: &str| text.parse::<AnchorId>().unwrap_err().to_string();
    let errors = [
        error(""),
        error("01020304-8085-880f-9a"),
        error("01020304-8085-880f-9a5e-0123456789ag"),
        error("01020304x8085-880f-9a5e-0123456789ab"),
        error("010203048-085-880f-9a5e-0123456789ab"),
        error("01020304-8085-480f-9a5e-0123456789ab"),
        error("01020304-8085-880f-ca5e-0123456789ab"),
        error("01020304-8085-880f-8000-0123456789ab"),
        error("01020304-8085-880f-9a5e-0123456789aé"),
    ]
    .join("\n");
    expect![[r#"
        an anchor id has 36 characters, not 0
        an anchor id has 36 characters, not 21
        an anchor id has no 'g' at position 35
        an anchor id has no 'x' at position 8
        an anchor id has no '8' at position 8
        an anchor id is a UUID of version 8, not 4
        an anchor id is a UUID of variant 10, not 11
        the cell in the anchor id is not valid
        an anchor id has no 'é' at position 35"#]]
    .assert_eq(&errors);
}

#[test]
fn ranges_read_short() {
    let account = KeyRange::of_account(AccountNumber(7));
    let half = KeyRange { start: Key(account.start.0 | 0x8 << 92), end: account.end };
    let all = [KeyRange::FULL, account, half, KeyRange::of_account(AccountNumber(u32::MAX))];
    expect![[r#"
        [00000000..)
        [00000007..00000008)
        [00000007-8..00000008)
        [ffffffff..)"#]]
    .assert_eq(&all.map(|range| range.to_string()).join("\n"));
    assert!(KeyRange::EMPTY.is_empty() && !KeyRange::FULL.is_empty());
    assert!(KeyRange::of_account(AccountNumber(u32::MAX)).contains(Key(u128::MAX)));
}
