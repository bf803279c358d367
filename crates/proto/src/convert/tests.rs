use std::collections::{BTreeMap, BTreeSet};

use anchorhold_geometry::{GeoPoint, Orientation};
use anchorhold_model::{
    AccountNumber, Accuracy, Anchor, AnchorId, LocalPosition, Pose, RequestId, Timestamp, Version,
};
use proptest::prelude::*;
use prost::Message;
use prost_types::FieldMask;

use super::*;
use crate::{Reason, v1};

fn any_pose() -> impl Strategy<Value = Pose> {
    let orientation = prop::array::uniform4(-1.0..1.0_f64)
        .prop_filter("not a direction", |xyzw| xyzw.iter().any(|c| c.abs() > 0.1))
        .prop_map(|xyzw| {
            let norm = xyzw.iter().map(|c| c * c).sum::<f64>().sqrt();
            Orientation::new(xyzw.map(|c| c / norm)).unwrap()
        });
    let geo = (-90.0..=90.0, -180.0..180.0, -11_000.0..=100_000.0_f64).prop_map(
        |(latitude, longitude, height)| GeoPoint::new(latitude, longitude, height).unwrap(),
    );
    let local = (0..1_u32 << 28, prop::array::uniform3(-1e6..=1e6_f64))
        .prop_map(|(space, xyz_m)| (space, LocalPosition::new(xyz_m).unwrap()));
    prop_oneof![
        (geo, orientation.clone())
            .prop_map(|(point, orientation)| Pose::Geo { point, orientation }),
        (local, orientation).prop_map(|((space, position), orientation)| Pose::Local {
            space,
            position,
            orientation
        }),
    ]
}

prop_compose! {
    fn any_anchor()(
        pose in any_pose(),
        horizontal_m in prop::option::of(0.0..1e6_f64),
        vertical_m in prop::option::of(0.0..1e6_f64),
        properties in prop::collection::btree_map("[a-zä]{1,9}", ".{0,9}", 0..9),
        tags in prop::collection::btree_set("[a-zä]{1,9}", 0..9),
        times in (any::<u32>(), any::<u32>(), prop::option::of(0..253_402_300_799_999_u64)),
        quality in prop::option::of(0.0..=1.0_f32),
        (account, request, incarnation, revision) in any::<(u32, u128, u32, u64)>(),
    ) -> Anchor {
        let id = AnchorId::derive(AccountNumber(account), &pose, RequestId(request), 0, 0);
        Anchor {
            id,
            pose,
            accuracy: Accuracy { horizontal_m, vertical_m },
            properties,
            tags,
            expire_time: times.2.map(Timestamp),
            create_time: Timestamp(u64::from(times.0)),
            update_time: Timestamp(u64::from(times.1)),
            creator: "a device".to_owned(),
            quality,
            version: Version { incarnation, revision },
            created_by: None,
        }
    }
}

/// Equal but for the last bits of the rotation, which is normalized again when it is read.
fn assert_same(a: &Anchor, b: &Anchor) {
    let orientation = |anchor: &Anchor| match anchor.pose {
        Pose::Geo { orientation, .. } | Pose::Local { orientation, .. } => orientation.xyzw(),
    };
    for (a, b) in orientation(a).into_iter().zip(orientation(b)) {
        assert!((a - b).abs() < 1e-12);
    }
    let mut b = b.clone();
    match (&a.pose, &mut b.pose) {
        (Pose::Geo { orientation: from, .. }, Pose::Geo { orientation: to, .. })
        | (Pose::Local { orientation: from, .. }, Pose::Local { orientation: to, .. }) => {
            *to = *from
        }
        (Pose::Geo { .. }, Pose::Local { .. }) | (Pose::Local { .. }, Pose::Geo { .. }) => {}
    }
    assert_eq!(*a, b);
}

proptest! {
    #[test]
    fn an_anchor_comes_back_from_the_wire(anchor in any_anchor()) {
        let bytes = anchor_to_wire(&anchor).encode_to_vec();
        let received = anchor_from_wire(v1::Anchor::decode(&bytes[..]).unwrap()).unwrap();
        assert_same(&anchor, &received);
    }

    #[test]
    fn any_bytes_are_converted_without_a_panic(bytes: Vec<u8>) {
        if let Ok(anchor) = v1::Anchor::decode(&bytes[..]) {
            let _ = anchor_from_wire(anchor.clone());
            let _ = AnchorDraft::from_wire(anchor);
        }
        if let Ok(request) = v1::UpdateAnchorRequest::decode(&bytes[..]) {
            let _ = anchor_update_from_wire(request);
        }
        if let Ok(request) = v1::ListAnchorsRequest::decode(&bytes[..]) {
            let _ = list_from_wire(1, request);
        }
        if let Ok(request) = v1::LocateRequest::decode(&bytes[..]) {
            let _ = locate_from_wire(request);
        }
        if let Ok(range) = v1::KeyRange::decode(&bytes[..]) {
            let _ = range_from_wire(&range);
        }
    }

    #[test]
    fn any_numbers_in_a_pose_are_refused_or_kept(
        numbers in prop::array::uniform7(prop::num::f64::ANY), space: u32, is_local: bool,
    ) {
        let [a, b, c, x, y, z, w] = numbers;
        let orientation = Some(v1::Quaternion { x, y, z, w });
        let frame = if is_local {
            v1::pose::Frame::Local(v1::LocalPose { space, x_m: a, y_m: b, z_m: c, orientation })
        } else {
            v1::pose::Frame::Geo(v1::GeoPose {
                latitude_deg: a, longitude_deg: b, height_m: c, orientation,
            })
        };
        if let Ok(pose) = pose_from_wire(Some(v1::Pose { frame: Some(frame) })) {
            prop_assert!(pose.position().xyz_m().iter().all(|c| c.is_finite()));
        }
    }

    #[test]
    fn times_come_back_from_the_wire(millis in 0..=253_402_300_799_999_u64) {
        prop_assert_eq!(time_from_wire(time_to_wire(Timestamp(millis))), Ok(Timestamp(millis)));
    }

    #[test]
    fn any_time_is_refused_or_kept(seconds: i64, nanos: i32) {
        let _ = time_from_wire(prost_types::Timestamp { seconds, nanos });
    }

    #[test]
    fn ranges_come_back_from_the_wire(a: u128, b: u128, is_endless: bool) {
        use anchorhold_model::{Key, KeyRange};
        let end = (!is_endless).then_some(Key(a.max(b)));
        let range = KeyRange { start: Key(a.min(b)), end };
        prop_assume!(range.end != Some(Key(0)));
        prop_assert_eq!(range_from_wire(&range_to_wire(&range)), Ok(range));
    }
}

fn draft() -> v1::Anchor {
    let geo = v1::GeoPose { latitude_deg: 52.5, longitude_deg: 13.4, ..v1::GeoPose::default() };
    let pose = v1::Pose { frame: Some(v1::pose::Frame::Geo(geo)) };
    v1::Anchor { pose: Some(pose), ..v1::Anchor::default() }
}

fn with_geo(change: impl FnOnce(&mut v1::GeoPose)) -> v1::Anchor {
    let mut anchor = draft();
    if let Some(v1::Pose { frame: Some(v1::pose::Frame::Geo(geo)) }) = &mut anchor.pose {
        change(geo);
    }
    anchor
}

#[track_caller]
fn check_refused(anchor: v1::Anchor, field: &str, reason: Reason) {
    let error = AnchorDraft::from_wire(anchor).unwrap_err();
    assert_eq!((error.field.as_str(), error.reason), (field, reason), "{error}");
}

#[test]
fn a_refused_anchor_names_the_field_and_the_reason() {
    let quaternion = |w| Some(v1::Quaternion { w, ..v1::Quaternion::default() });
    check_refused(v1::Anchor::default(), "pose", Reason::FieldInvalid);
    check_refused(
        v1::Anchor { pose: Some(v1::Pose { frame: None }), ..draft() },
        "pose",
        Reason::FieldInvalid,
    );
    for (field, anchor) in [
        ("pose.geo.latitude_deg", with_geo(|geo| geo.latitude_deg = 90.1)),
        ("pose.geo.longitude_deg", with_geo(|geo| geo.longitude_deg = f64::NAN)),
        ("pose.geo.height_m", with_geo(|geo| geo.height_m = f64::INFINITY)),
        ("tags[1]", v1::Anchor { tags: vec!["door".into(), String::new()], ..draft() }),
        ("tags", v1::Anchor { tags: vec!["x".into(); 33], ..draft() }),
        ("creator", v1::Anchor { creator: "x".repeat(129), ..draft() }),
        ("quality", v1::Anchor { quality: Some(f32::NAN), ..draft() }),
        (
            "properties",
            v1::Anchor { properties: BTreeMap::from([(String::new(), "x".into())]), ..draft() },
        ),
        (
            "expire_time",
            v1::Anchor {
                expire_time: Some(prost_types::Timestamp { seconds: -1, nanos: 0 }),
                ..draft()
            },
        ),
        (
            "accuracy.vertical_m",
            v1::Anchor {
                accuracy: Some(v1::Accuracy { horizontal_m: None, vertical_m: Some(-1.0) }),
                ..draft()
            },
        ),
    ] {
        check_refused(anchor, field, Reason::FieldInvalid);
    }
    for w in [0.0, 1.01, f64::NAN] {
        let anchor = with_geo(|geo| geo.orientation = quaternion(w));
        check_refused(anchor, "pose.geo.orientation", Reason::PoseNotRigid);
    }
    let properties = BTreeMap::from([("k".to_owned(), "x".repeat(4_096))]);
    check_refused(v1::Anchor { properties, ..draft() }, "properties", Reason::PropertiesTooLarge);
}

#[test]
fn values_at_the_bounds_are_taken() {
    let properties = BTreeMap::from([("k".to_owned(), "x".repeat(4_095))]);
    let tags = (0..32).map(|number| format!("{number:064}")).collect();
    let anchor = v1::Anchor { properties, tags, creator: "x".repeat(128), ..draft() };
    assert!(AnchorDraft::from_wire(anchor).is_ok());
}

#[test]
fn one_bad_anchor_of_a_batch_does_not_stop_the_others() {
    let drafts = drafts_from_wire(vec![draft(), v1::Anchor::default()]).unwrap();
    assert!(drafts[0].is_ok());
    assert_eq!(drafts[1].as_ref().unwrap_err().field, "anchors[1].pose");
    assert_eq!(drafts_from_wire(Vec::new()).unwrap_err().field, "anchors");
    let many = drafts_from_wire(vec![draft(); 1_001]).unwrap_err();
    assert_eq!(many.reason, Reason::BatchTooLarge);
}

fn update(paths: &[&str], anchor: v1::Anchor) -> v1::UpdateAnchorRequest {
    let paths: Vec<_> = paths.iter().map(|path| (*path).to_owned()).collect();
    v1::UpdateAnchorRequest {
        anchor: Some(v1::Anchor { id: sample_id(), ..anchor }),
        update_mask: (!paths.is_empty()).then_some(FieldMask { paths }),
        request_id: String::new(),
    }
}

fn sample_id() -> String {
    let pose = pose_from_wire(draft().pose).unwrap();
    AnchorId::derive(AccountNumber(1), &pose, RequestId(7), 0, 0).to_string()
}

#[test]
fn an_update_changes_what_its_mask_names_and_clears_what_is_unset() {
    let patch = anchor_update_from_wire(update(&["expire_time", "tags"], draft())).unwrap().patch;
    assert_eq!((patch.expire_time, patch.tags), (Some(None), Some(BTreeSet::new())));
    assert_eq!((patch.pose, patch.properties, patch.quality), (None, None, None));
}

#[test]
fn an_update_without_a_mask_changes_the_parts_that_are_set() {
    let anchor = v1::Anchor { quality: Some(0.5), ..draft() };
    let patch = anchor_update_from_wire(update(&[], anchor)).unwrap().patch;
    assert!(patch.pose.is_some());
    assert_eq!((patch.quality, patch.tags, patch.expire_time), (Some(Some(0.5)), None, None));
}

#[test]
fn an_update_of_everything_needs_a_pose() {
    let error = anchor_update_from_wire(update(&["*"], v1::Anchor::default())).unwrap_err();
    assert_eq!(error.field, "anchor.pose");
    assert!(anchor_update_from_wire(update(&["*"], draft())).is_ok());
}

#[test]
fn an_update_with_an_unknown_path_a_bad_id_or_a_bad_etag_is_refused() {
    let refused = |request| anchor_update_from_wire(request).unwrap_err().field;
    assert_eq!(refused(update(&["create_time"], draft())), "update_mask");
    let etag = v1::Anchor { etag: "x".into(), ..draft() };
    assert_eq!(refused(update(&[], etag)), "anchor.etag");
    assert_eq!(
        refused(v1::UpdateAnchorRequest { anchor: Some(draft()), ..Default::default() }),
        "anchor.id"
    );
    assert_eq!(refused(v1::UpdateAnchorRequest::default()), "anchor");
    let request_id = v1::UpdateAnchorRequest { request_id: "7".into(), ..update(&[], draft()) };
    assert_eq!(refused(request_id), "request_id");
}

#[test]
fn read_options_are_checked() {
    let bound = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let read = |consistency: v1::Consistency, max_staleness| {
        let options = v1::ReadOptions {
            consistency: consistency.into(),
            max_staleness,
            ..Default::default()
        };
        read_from_wire(Some(options)).map(|read| read.level).map_err(|error| error.field)
    };
    assert_eq!(read_from_wire(None).unwrap().level, ReadLevel::Linearizable);
    assert_eq!(read(v1::Consistency::Local, None), Ok(ReadLevel::Local));
    let one_second = std::time::Duration::from_secs(1);
    assert_eq!(
        read(v1::Consistency::BoundedStaleness, bound(1)),
        Ok(ReadLevel::BoundedStaleness(one_second))
    );
    for (consistency, max_staleness) in [
        (v1::Consistency::BoundedStaleness, None),
        (v1::Consistency::BoundedStaleness, bound(0)),
        (v1::Consistency::BoundedStaleness, bound(-1)),
        (v1::Consistency::BoundedStaleness, bound(3_601)),
        (v1::Consistency::BoundedStaleness, bound(i64::MAX)),
        (v1::Consistency::Linearizable, bound(1)),
    ] {
        assert_eq!(read(consistency, max_staleness), Err("max_staleness".to_owned()));
    }
    let unknown = v1::ReadOptions { consistency: 99, ..Default::default() };
    assert_eq!(read_from_wire(Some(unknown)).unwrap_err().field, "consistency");
}

fn rectangle(west_deg: f64, east_deg: f64) -> RegionSpec {
    let rectangle = v1::GeoRectangle {
        south_deg: -10.0,
        north_deg: 10.0,
        west_deg,
        east_deg,
        ..v1::GeoRectangle::default()
    };
    let shape = Some(v1::region::Shape::GeoRectangle(rectangle));
    region_from_wire(v1::Region { shape }).unwrap()
}

fn pose_at(latitude_deg: f64, longitude_deg: f64) -> Pose {
    let point = GeoPoint::new(latitude_deg, longitude_deg, 0.0).unwrap();
    Pose::Geo { point, orientation: Orientation::IDENTITY }
}

#[test]
fn a_rectangle_may_cross_the_antimeridian_or_reach_around() {
    let crossing = rectangle(170.0, -170.0);
    assert!(crossing.contains(&pose_at(0.0, 180.0)));
    assert!(crossing.contains(&pose_at(0.0, 171.0)) && crossing.contains(&pose_at(0.0, -171.0)));
    assert!(!crossing.contains(&pose_at(0.0, 0.0)));
    let up_to_it = rectangle(170.0, 180.0);
    assert!(up_to_it.contains(&pose_at(0.0, 180.0)) && up_to_it.contains(&pose_at(0.0, 175.0)));
    assert!(!up_to_it.contains(&pose_at(0.0, -179.0)));
    let around = rectangle(-180.0, 180.0);
    assert!(around.contains(&pose_at(0.0, 0.0)) && around.contains(&pose_at(10.0, -180.0)));
    assert!(!around.contains(&pose_at(10.1, 0.0)));
}

#[test]
fn a_rectangle_of_numbers_that_make_no_sense_is_refused() {
    let refused = |change: fn(&mut v1::GeoRectangle)| {
        let mut rectangle = v1::GeoRectangle::default();
        change(&mut rectangle);
        let shape = Some(v1::region::Shape::GeoRectangle(rectangle));
        region_from_wire(v1::Region { shape }).unwrap_err().field
    };
    assert_eq!(refused(|r| r.south_deg = 1.0), "geo_rectangle.north_deg");
    assert_eq!(refused(|r| r.north_deg = f64::NAN), "geo_rectangle.north_deg");
    assert_eq!(refused(|r| r.west_deg = -181.0), "geo_rectangle.west_deg");
    assert_eq!(refused(|r| r.height_m_max = Some(f64::NAN)), "geo_rectangle.height_m_max");
    let swap = |r: &mut v1::GeoRectangle| (r.height_m_min, r.height_m_max) = (Some(1.0), Some(0.0));
    assert_eq!(refused(swap), "geo_rectangle.height_m_max");
}

#[test]
fn a_box_must_lie_in_one_space_and_have_ordered_corners() {
    let corner = |space, x_m| Some(v1::LocalPoint { space, x_m, ..v1::LocalPoint::default() });
    let parse = |min, max| {
        let shape = Some(v1::region::Shape::LocalBox(v1::LocalBox { min, max }));
        region_from_wire(v1::Region { shape }).map_err(|error| error.field)
    };
    assert!(parse(corner(1, 0.0), corner(1, 0.0)).is_ok());
    assert_eq!(parse(corner(1, 0.0), corner(2, 0.0)), Err("local_box.max.space".into()));
    assert_eq!(parse(corner(1, 1.0), corner(1, 0.0)), Err("local_box.max.x_m".into()));
    assert_eq!(parse(None, corner(1, 0.0)), Err("local_box.min".into()));
}

#[test]
fn locate_needs_exactly_one_criterion_within_bounds() {
    let near = |k, radius_m| v1::LocateRequest {
        criterion: Some(v1::locate_request::Criterion::NearPoint(v1::NearPoint {
            point: Some(v1::near_point::Point::Geo(v1::GeoPoint::default())),
            k,
            radius_m,
        })),
        ..v1::LocateRequest::default()
    };
    let refused = |request| locate_from_wire(request).unwrap_err().field;
    assert_eq!(refused(v1::LocateRequest::default()), "criterion");
    assert_eq!(refused(near(1_001, None)), "near_point.k");
    assert_eq!(refused(near(1, Some(0.0))), "near_point.radius_m");
    assert_eq!(refused(near(1, Some(f64::NAN))), "near_point.radius_m");
    let Criterion::Near(by_default) = locate_from_wire(near(0, None)).unwrap().criterion else {
        panic!("another criterion")
    };
    assert_eq!(by_default.k, 10);
    let ids = |ids: Vec<String>| v1::LocateRequest {
        criterion: Some(v1::locate_request::Criterion::Ids(v1::AnchorIds { ids })),
        ..v1::LocateRequest::default()
    };
    assert_eq!(refused(ids(Vec::new())), "ids.ids");
    assert_eq!(refused(ids(vec!["x".into()])), "ids.ids[0]");
}

#[test]
fn a_filter_asks_for_all_of_its_conditions() {
    let pose = pose_at(0.0, 0.0);
    let id = AnchorId::derive(AccountNumber(1), &pose, RequestId(1), 0, 0);
    let mut wire = draft();
    wire.tags = vec!["a".into(), "b".into()];
    wire.properties = BTreeMap::from([("floor".into(), "2".into())]);
    let anchor = AnchorDraft::from_wire(wire).unwrap().into_anchor(id);
    let filter = |floor: &str, tags_all: &[&str], tags_any: &[&str]| FilterSpec {
        properties: BTreeMap::from([("floor".to_owned(), floor.to_owned())]),
        tags_all: tags_all.iter().map(|tag| (*tag).to_owned()).collect(),
        tags_any: tags_any.iter().map(|tag| (*tag).to_owned()).collect(),
    };
    assert!(FilterSpec::default().passes(&anchor));
    assert!(filter("2", &["a", "b"], &["x", "b"]).passes(&anchor));
    assert!(!filter("3", &[], &[]).passes(&anchor));
    assert!(!filter("2", &["a", "x"], &[]).passes(&anchor));
    assert!(!filter("2", &[], &["x"]).passes(&anchor));
}

#[test]
fn a_listing_goes_on_only_with_its_own_token() {
    let first = v1::ListAnchorsRequest::default();
    let spec = list_from_wire(1, first.clone()).unwrap();
    assert_eq!(spec.page_size, 100);
    let page_token = crate::PageToken { after: 9 }.encode(spec.query);
    let next = v1::ListAnchorsRequest { page_token, page_size: 5_000, ..first };
    let next_spec = list_from_wire(1, next.clone()).unwrap();
    assert_eq!(next_spec.page_token, Some(crate::PageToken { after: 9 }));
    assert_eq!(next_spec.page_size, 1_000);
    assert_eq!(list_from_wire(2, next).unwrap_err().reason, Reason::PageTokenMismatch);
}
