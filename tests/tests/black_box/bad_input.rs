//! Every kind of bad input, as a table: what is sent, which reason comes back, which field is named.

use std::time::Duration;

use anchorhold_proto::failure::ReceivedFailure;
use anchorhold_proto::{Reason, admin_v1, v1};
use anchorhold_tests::cluster::shared;
use anchorhold_tests::rpc::{bounded, geo_anchor, local_anchor, request_id};
use bytes::Bytes;
use prost::Message;

/// A well-formed id of an anchor that is not there, in local space 0 of an account.
fn some_id(account: u32) -> String {
    format!("{account:08x}-c000-8000-8400-000000000000")
}

const CREATE: &str = "/anchorhold.v1.AnchorService/CreateAnchor";
const BATCH_CREATE: &str = "/anchorhold.v1.AnchorService/BatchCreateAnchors";
const GET: &str = "/anchorhold.v1.AnchorService/GetAnchor";
const BATCH_GET: &str = "/anchorhold.v1.AnchorService/BatchGetAnchors";
const UPDATE: &str = "/anchorhold.v1.AnchorService/UpdateAnchor";
const DELETE: &str = "/anchorhold.v1.AnchorService/DeleteAnchor";
const LIST: &str = "/anchorhold.v1.AnchorService/ListAnchors";
const LOCATE: &str = "/anchorhold.v1.LocateService/Locate";

struct Row {
    label: String,
    path: &'static str,
    message: Vec<u8>,
    reason: Reason,
    /// A part of the field's name, empty if no field is at fault.
    field: &'static str,
}

fn row(
    label: &str,
    path: &'static str,
    message: &impl Message,
    reason: Reason,
    field: &'static str,
) -> Row {
    Row { label: label.to_owned(), path, message: message.encode_to_vec(), reason, field }
}

fn create(anchor: v1::Anchor) -> v1::CreateAnchorRequest {
    v1::CreateAnchorRequest { anchor: Some(anchor), request_id: request_id() }
}

fn turned(x: f64, y: f64, z: f64, w: f64) -> v1::Anchor {
    let orientation = Some(v1::Quaternion { x, y, z, w });
    let geo = v1::GeoPose { latitude_deg: 1.0, longitude_deg: 1.0, height_m: 0.0, orientation };
    let pose = v1::Pose { frame: Some(v1::pose::Frame::Geo(geo)) };
    v1::Anchor { pose: Some(pose), ..v1::Anchor::default() }
}

fn with_properties(count: usize, key_bytes: usize, value_bytes: usize) -> v1::Anchor {
    let properties = (0..count)
        .map(|index| (format!("{index:0>key_bytes$}"), "v".repeat(value_bytes)))
        .collect();
    v1::Anchor { properties, ..geo_anchor(1.0, 1.0, 0.0) }
}

fn with_tags(tags: Vec<String>) -> v1::Anchor {
    v1::Anchor { tags, ..geo_anchor(1.0, 1.0, 0.0) }
}

fn bad_anchors() -> Vec<(&'static str, v1::Anchor, Reason, &'static str)> {
    use Reason::{FieldInvalid, PoseNotRigid, PropertiesTooLarge};
    let no_frame = v1::Anchor { pose: Some(v1::Pose::default()), ..v1::Anchor::default() };
    let accuracy = |horizontal_m, vertical_m| v1::Anchor {
        accuracy: Some(v1::Accuracy { horizontal_m, vertical_m }),
        ..geo_anchor(1.0, 1.0, 0.0)
    };
    let quality = |quality| v1::Anchor { quality: Some(quality), ..geo_anchor(1.0, 1.0, 0.0) };
    let expiry = |seconds, nanos| v1::Anchor {
        expire_time: Some(prost_types::Timestamp { seconds, nanos }),
        ..geo_anchor(1.0, 1.0, 0.0)
    };
    let creator = v1::Anchor { creator: "c".repeat(129), ..geo_anchor(1.0, 1.0, 0.0) };
    vec![
        ("no pose", v1::Anchor::default(), FieldInvalid, "pose"),
        ("no frame", no_frame, FieldInvalid, "pose"),
        ("north of the pole", geo_anchor(90.000_001, 0.0, 0.0), FieldInvalid, "latitude"),
        ("south of the pole", geo_anchor(-91.0, 0.0, 0.0), FieldInvalid, "latitude"),
        ("latitude NaN", geo_anchor(f64::NAN, 0.0, 0.0), FieldInvalid, "latitude"),
        ("longitude 181", geo_anchor(0.0, 181.0, 0.0), FieldInvalid, "longitude"),
        ("longitude infinite", geo_anchor(0.0, f64::INFINITY, 0.0), FieldInvalid, "longitude"),
        ("too deep", geo_anchor(0.0, 0.0, -11_001.0), FieldInvalid, "height"),
        ("too high", geo_anchor(0.0, 0.0, 100_001.0), FieldInvalid, "height"),
        ("height NaN", geo_anchor(0.0, 0.0, f64::NAN), FieldInvalid, "height"),
        ("space too large", local_anchor(1 << 28, 0.0, 0.0, 0.0), FieldInvalid, "space"),
        ("x too large", local_anchor(1, 1_000_001.0, 0.0, 0.0), FieldInvalid, "x_m"),
        ("y NaN", local_anchor(1, 0.0, f64::NAN, 0.0), FieldInvalid, "y_m"),
        ("z infinite", local_anchor(1, 0.0, 0.0, f64::NEG_INFINITY), FieldInvalid, "z_m"),
        ("zero quaternion", turned(0.0, 0.0, 0.0, 0.0), PoseNotRigid, "orientation"),
        ("scaled quaternion", turned(0.0, 0.0, 0.0, 1.01), PoseNotRigid, "orientation"),
        ("quaternion NaN", turned(f64::NAN, 0.0, 0.0, 1.0), PoseNotRigid, "orientation"),
        ("huge quaternion", turned(1e308, 1e308, 1e308, 1e308), PoseNotRigid, "orientation"),
        ("accuracy negative", accuracy(Some(-1.0), None), FieldInvalid, "horizontal"),
        ("accuracy NaN", accuracy(None, Some(f64::NAN)), FieldInvalid, "vertical"),
        ("quality above 1", quality(1.5), FieldInvalid, "quality"),
        ("quality NaN", quality(f32::NAN), FieldInvalid, "quality"),
        ("expiry before 1970", expiry(-1, 0), FieldInvalid, "expire_time"),
        ("expiry after 9999", expiry(i64::MAX, 0), FieldInvalid, "expire_time"),
        ("expiry with wrong nanos", expiry(4_000_000_000, -5), FieldInvalid, "expire_time"),
        ("creator too long", creator, FieldInvalid, "creator"),
        ("property key too long", with_properties(1, 129, 1), FieldInvalid, "properties"),
        ("too many properties", with_properties(65, 3, 1), FieldInvalid, "properties"),
        ("properties too large", with_properties(5, 10, 1_000), PropertiesTooLarge, "properties"),
        ("empty tag", with_tags(vec![String::new()]), FieldInvalid, "tags"),
        ("tag too long", with_tags(vec!["t".repeat(65)]), FieldInvalid, "tags"),
        (
            "too many tags",
            with_tags((0..33).map(|index| index.to_string()).collect()),
            FieldInvalid,
            "tags",
        ),
    ]
}

fn write_rows(some_id: &str) -> Vec<Row> {
    use Reason::{BatchTooLarge, EtagInvalid, FieldInvalid};
    let mut rows = Vec::new();
    for (label, anchor, reason, field) in bad_anchors() {
        rows.push(row(label, CREATE, &create(anchor), reason, field));
    }
    let empty_key = v1::Anchor {
        properties: [(String::new(), "v".to_owned())].into(),
        ..geo_anchor(1.0, 1.0, 0.0)
    };
    rows.push(row("empty property key", CREATE, &create(empty_key), FieldInvalid, "properties"));
    rows.push(row(
        "no anchor",
        CREATE,
        &v1::CreateAnchorRequest { anchor: None, request_id: request_id() },
        FieldInvalid,
        "anchor",
    ));
    for bad in ["x", "0000", "00000000-0000-0000-0000-00000000000g"] {
        let mut message = create(geo_anchor(1.0, 1.0, 0.0));
        message.request_id = bad.to_owned();
        rows.push(row("request id", CREATE, &message, FieldInvalid, "request_id"));
    }
    let batch = |count: usize| v1::BatchCreateAnchorsRequest {
        anchors: vec![geo_anchor(1.0, 1.0, 0.0); count],
        request_id: request_id(),
        ids_only: true,
    };
    rows.push(row("empty batch", BATCH_CREATE, &batch(0), FieldInvalid, "anchors"));
    rows.push(row("large batch", BATCH_CREATE, &batch(1_001), BatchTooLarge, ""));
    let update = |id: &str, etag: &str, request_id: &str| v1::UpdateAnchorRequest {
        anchor: Some(v1::Anchor {
            id: id.to_owned(),
            etag: etag.to_owned(),
            ..geo_anchor(1.0, 1.0, 0.0)
        }),
        update_mask: None,
        request_id: request_id.to_owned(),
    };
    let good = request_id();
    rows.push(row("update: no id", UPDATE, &update("", "", &good), FieldInvalid, "id"));
    rows.push(row("update: etag", UPDATE, &update(some_id, "?", &good), EtagInvalid, ""));
    rows.push(row(
        "update: request id",
        UPDATE,
        &update(some_id, "", "?"),
        FieldInvalid,
        "request_id",
    ));
    rows.push(row(
        "update: nothing",
        UPDATE,
        &v1::UpdateAnchorRequest::default(),
        FieldInvalid,
        "anchor",
    ));
    let delete = |id: &str, etag: &str| v1::DeleteAnchorRequest {
        id: id.to_owned(),
        etag: etag.to_owned(),
        request_id: request_id(),
    };
    rows.push(row("delete: no id", DELETE, &delete("", ""), FieldInvalid, "id"));
    rows.push(row("delete: etag", DELETE, &delete(some_id, "\"x\""), EtagInvalid, ""));
    rows
}

fn bad_ids() -> [String; 9] {
    [
        String::new(),
        "x".to_owned(),
        "0".repeat(32),
        "00000001-0000-4000-8000-000000000000".to_owned(), // version 4
        "00000001-0000-8000-0000-000000000000".to_owned(), // another variant
        "00000001-0000-8000-8000-00000000000".to_owned(),  // a digit short
        "00000001-0000-8000-8000-0000000000000".to_owned(),
        "0000000100008000800000000000000-0000".to_owned(),
        "ü".repeat(18),
    ]
}

fn level_rows(some_id: &str) -> Vec<Row> {
    use Reason::{FieldInvalid, SessionTokenInvalid};
    let mut rows = Vec::new();
    let reads = [
        ("no bound", bounded(Duration::ZERO, Bytes::new()), FieldInvalid, "max_staleness"),
        (
            "bound too large",
            bounded(Duration::from_secs(3_601), Bytes::new()),
            FieldInvalid,
            "max_staleness",
        ),
        ("token", bounded(Duration::from_secs(1), "token".into()), SessionTokenInvalid, ""),
        (
            "long token",
            bounded(Duration::from_secs(1), vec![1; 1 << 20].into()),
            SessionTokenInvalid,
            "",
        ),
        (
            "unknown level",
            v1::ReadOptions { consistency: 99, ..Default::default() },
            FieldInvalid,
            "consistency",
        ),
        (
            "negative bound",
            v1::ReadOptions {
                max_staleness: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
                ..bounded(Duration::from_secs(1), Bytes::new())
            },
            FieldInvalid,
            "max_staleness",
        ),
    ];
    for (label, read, reason, field) in reads {
        let id = some_id.to_owned();
        let read = Some(read);
        let get = v1::GetAnchorRequest { id, read: read.clone() };
        rows.push(row(&format!("get: {label}"), GET, &get, reason, field));
        let list = v1::ListAnchorsRequest { read: read.clone(), ..Default::default() };
        rows.push(row(&format!("list: {label}"), LIST, &list, reason, field));
        let locate = v1::LocateRequest { read, ..near(0.0, 0.0, 1) };
        rows.push(row(&format!("locate: {label}"), LOCATE, &locate, reason, field));
    }
    rows
}

fn read_rows(some_id: &str) -> Vec<Row> {
    use Reason::{BatchTooLarge, FieldInvalid, PageTokenInvalid};
    let mut rows = level_rows(some_id);
    for id in bad_ids() {
        let get = v1::GetAnchorRequest { id: id.clone(), read: None };
        rows.push(row(&format!("get {id:?}"), GET, &get, FieldInvalid, "id"));
        let delete = v1::DeleteAnchorRequest { id: id.clone(), ..Default::default() };
        rows.push(row(&format!("delete {id:?}"), DELETE, &delete, FieldInvalid, "id"));
    }
    let batch = |ids: Vec<String>| v1::BatchGetAnchorsRequest { ids, read: None };
    rows.push(row("empty batch get", BATCH_GET, &batch(vec![]), FieldInvalid, "ids"));
    let many = vec![some_id.to_owned(); 1_001];
    rows.push(row("large batch get", BATCH_GET, &batch(many.clone()), BatchTooLarge, ""));
    rows.push(row(
        "bad id in a batch",
        BATCH_GET,
        &batch(vec!["x".to_owned()]),
        FieldInvalid,
        "ids",
    ));
    for token in ["x", "!!!!", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"] {
        let list = v1::ListAnchorsRequest { page_token: token.to_owned(), ..Default::default() };
        rows.push(row("page token", LIST, &list, PageTokenInvalid, ""));
    }
    let ids = |ids: Vec<String>| v1::LocateRequest {
        criterion: Some(v1::locate_request::Criterion::Ids(v1::AnchorIds { ids })),
        ..Default::default()
    };
    rows.push(row("locate: no ids", LOCATE, &ids(vec![]), FieldInvalid, "ids"));
    rows.push(row("locate: many ids", LOCATE, &ids(many), BatchTooLarge, ""));
    rows.push(row("locate: bad id", LOCATE, &ids(vec!["x".to_owned()]), FieldInvalid, "ids"));
    rows
}

fn near(latitude_deg: f64, longitude_deg: f64, k: u32) -> v1::LocateRequest {
    let point = v1::GeoPoint { latitude_deg, longitude_deg, height_m: 0.0 };
    let near = v1::NearPoint { point: Some(v1::near_point::Point::Geo(point)), k, radius_m: None };
    v1::LocateRequest {
        criterion: Some(v1::locate_request::Criterion::NearPoint(near)),
        ..Default::default()
    }
}

fn rectangle(south: f64, west: f64, north: f64, east: f64) -> v1::Region {
    let rectangle = v1::GeoRectangle {
        south_deg: south,
        west_deg: west,
        north_deg: north,
        east_deg: east,
        height_m_min: None,
        height_m_max: None,
    };
    v1::Region { shape: Some(v1::region::Shape::GeoRectangle(rectangle)) }
}

fn sphere(radius_m: f64) -> v1::Region {
    let center = v1::GeoPoint { latitude_deg: 0.0, longitude_deg: 0.0, height_m: 0.0 };
    let sphere = v1::Sphere { center: Some(v1::sphere::Center::Geo(center)), radius_m };
    v1::Region { shape: Some(v1::region::Shape::Sphere(sphere)) }
}

fn query_rows() -> Vec<Row> {
    use Reason::FieldInvalid;
    let mut rows = vec![
        row("no criterion", LOCATE, &v1::LocateRequest::default(), FieldInvalid, "criterion"),
        row("near NaN", LOCATE, &near(f64::NAN, 0.0, 1), FieldInvalid, "latitude"),
        row("near 200 east", LOCATE, &near(0.0, 200.0, 1), FieldInvalid, "longitude"),
        row("k too large", LOCATE, &near(0.0, 0.0, 1_001), FieldInvalid, "k"),
    ];
    for radius_m in [0.0, -1.0, f64::NAN, f64::INFINITY, 30_000_001.0] {
        let mut message = near(0.0, 0.0, 1);
        if let Some(v1::locate_request::Criterion::NearPoint(near)) = &mut message.criterion {
            near.radius_m = Some(radius_m);
        }
        rows.push(row(&format!("radius {radius_m}"), LOCATE, &message, FieldInvalid, "radius"));
    }
    let no_point = v1::LocateRequest {
        criterion: Some(v1::locate_request::Criterion::NearPoint(v1::NearPoint::default())),
        ..Default::default()
    };
    rows.push(row("near nothing", LOCATE, &no_point, FieldInvalid, "point"));
    let corner = |space| v1::LocalPoint { space, x_m: 0.0, y_m: 0.0, z_m: 0.0 };
    let two_spaces = v1::LocalBox { min: Some(corner(1)), max: Some(corner(2)) };
    let inside_out =
        v1::LocalBox { min: Some(v1::LocalPoint { x_m: 1.0, ..corner(1) }), max: Some(corner(1)) };
    let no_corner = v1::LocalBox { min: Some(corner(1)), max: None };
    let local_box = |shape| v1::Region { shape: Some(v1::region::Shape::LocalBox(shape)) };
    let regions = [
        ("no shape", v1::Region::default(), "region"),
        ("south above north", rectangle(10.0, 0.0, 5.0, 1.0), "north"),
        ("south of the pole", rectangle(-91.0, 0.0, 5.0, 1.0), "south"),
        ("west NaN", rectangle(0.0, f64::NAN, 5.0, 1.0), "west"),
        ("east 181", rectangle(0.0, 0.0, 5.0, 181.0), "east"),
        ("sphere of nothing", sphere(0.0), "radius"),
        ("sphere too large", sphere(1_000_001.0), "radius"),
        ("sphere NaN", sphere(f64::NAN), "radius"),
        ("a box over two spaces", local_box(two_spaces), "box"),
        ("a box inside out", local_box(inside_out), "box"),
        ("a box without a corner", local_box(no_corner), "box"),
    ];
    for (label, region, field) in regions {
        let criterion = Some(v1::locate_request::Criterion::Region(region));
        let locate = v1::LocateRequest { criterion, ..Default::default() };
        rows.push(row(&format!("locate: {label}"), LOCATE, &locate, FieldInvalid, field));
        let list = v1::ListAnchorsRequest { region: Some(region), ..Default::default() };
        rows.push(row(&format!("list: {label}"), LIST, &list, FieldInvalid, field));
    }
    rows
}

fn filter_rows() -> Vec<Row> {
    use Reason::FieldInvalid;
    let mut rows = Vec::new();
    let many: Vec<String> = (0..33).map(|index| index.to_string()).collect();
    let filters = [
        v1::Filter { tags_all: many.clone(), ..Default::default() },
        v1::Filter { tags_any: many, ..Default::default() },
        v1::Filter {
            properties: (0..17).map(|index| (index.to_string(), String::new())).collect(),
            ..Default::default()
        },
    ];
    for filter in filters {
        let locate = v1::LocateRequest { filter: Some(filter.clone()), ..near(0.0, 0.0, 1) };
        rows.push(row("filter", LOCATE, &locate, FieldInvalid, "filter"));
        let list = v1::ListAnchorsRequest { filter: Some(filter), ..Default::default() };
        rows.push(row("filter", LIST, &list, FieldInvalid, "filter"));
    }
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_with_its_reason_and_field_and_changes_nothing() {
    let cluster = shared().await;
    let account = cluster.account(0).await.unwrap();
    let some_id = some_id(account.number);
    let rows: Vec<Row> = [write_rows(&some_id), read_rows(&some_id), query_rows(), filter_rows()]
        .into_iter()
        .flatten()
        .collect();
    let mut wrong = Vec::new();
    for (number, row) in rows.into_iter().enumerate() {
        let rpc = cluster.account_rpc(number % 3, &account);
        let status = match rpc.raw(row.path, row.message.into()).await {
            Ok(_) => {
                wrong.push(format!("{}: accepted", row.label));
                continue;
            }
            Err(status) => status,
        };
        let failure = ReceivedFailure::of_status(&status);
        let names_field = failure.violations.iter().any(|(field, _)| field.contains(row.field));
        if failure.reason != Some(row.reason) || failure.code != row.reason.code() {
            wrong.push(format!("{}: {:?} {}", row.label, failure.code, failure.reason_text));
        } else if !row.field.is_empty() && !names_field {
            wrong.push(format!(
                "{}: names {:?}, not {:?}",
                row.label, failure.violations, row.field
            ));
        }
    }
    assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
    let rpc = cluster.account_rpc(0, &account);
    assert!(rpc.list(Default::default()).await.unwrap().anchors.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_mistakes_are_refused_with_their_reason() {
    let cluster = shared().await;
    let account = cluster.account(0).await.unwrap();
    let admin = cluster.admin(2);
    let create = |name: &str, shards: u32, class: &str| admin_v1::CreateAccountRequest {
        name: name.to_owned(),
        shards,
        placement_class: class.to_owned(),
        request_id: request_id(),
    };
    let rows = [
        (create("", 0, ""), Reason::FieldInvalid),
        (create("Upper", 0, ""), Reason::FieldInvalid),
        (create("-dash", 0, ""), Reason::FieldInvalid),
        (create(&"a".repeat(64), 0, ""), Reason::FieldInvalid),
        (create("many", 5_000, ""), Reason::FieldInvalid),
        (create("class", 0, "no-such-class"), Reason::ClassNotFound),
        (create(&account.name, 0, ""), Reason::AccountExists),
    ];
    for (message, reason) in rows {
        let label = format!("{message:?}");
        let status = admin.accounts().create_account(admin.request(message)).await.unwrap_err();
        assert_eq!(anchorhold_proto::reason_of(&status), Some(reason), "{label}: {status:?}");
    }
    let nobody = admin_v1::CreateApiKeyRequest { account: u32::MAX, request_id: request_id() };
    let status = admin.accounts().create_api_key(admin.request(nobody)).await.unwrap_err();
    assert_eq!(anchorhold_proto::reason_of(&status), Some(Reason::AccountNotFound));
    let no_key = admin_v1::RevokeApiKeyRequest {
        account: account.number,
        key_id: "nobody".to_owned(),
        request_id: request_id(),
    };
    let status = admin.accounts().revoke_api_key(admin.request(no_key)).await.unwrap_err();
    assert_eq!(anchorhold_proto::reason_of(&status), Some(Reason::ApiKeyNotFound));

    let rpc = cluster.account_rpc(0, &account);
    rpc.create(geo_anchor(0.0, 0.0, 0.0), &request_id()).await.unwrap();
    let sample = admin_v1::LayoutSample { keys: vec![Bytes::from(vec![0; 16])], shards: 1 };
    let layout = admin_v1::LayOutAccountRequest {
        account: account.number,
        layout: Some(admin_v1::lay_out_account_request::Layout::Sample(sample)),
        request_id: request_id(),
    };
    let status = admin.accounts().lay_out_account(admin.request(layout)).await.unwrap_err();
    let reason = anchorhold_proto::reason_of(&status);
    let expected = [Some(Reason::AccountNotEmpty), Some(Reason::FieldInvalid)];
    assert!(expected.contains(&reason), "{status:?}");
}
