//! Locate against brute force: every awkward place on Earth, every read level, every node.

use std::time::Duration;

use anchorhold_proto::v1;
use anchorhold_tests::cluster::{TestAccount, TestCluster, shared};
use anchorhold_tests::rpc::{bounded, geo_anchor, linearizable, local, local_anchor, request_id};
use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt as _};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::oracle::{self, TOLERANCE_M, check_nearest, ecef};

const SEED: u64 = 0x10ca_7e01;
const ANCHORS: usize = 2_000;

/// Anchors everywhere and in every awkward place; a third has the tag "red".
fn awkward_anchors(rng: &mut StdRng) -> Vec<v1::Anchor> {
    let mut anchors = Vec::new();
    for index in 0..60 {
        let longitude = rng.random_range(-180.0..180.0);
        let from_pole = rng.random_range(0.0..0.001);
        let latitude = if index % 2 == 0 { 90.0 - from_pole } else { from_pole - 90.0 };
        anchors.push(geo_anchor(latitude, longitude, 2_800.0));
    }
    anchors.push(geo_anchor(90.0, 0.0, 0.0));
    anchors.push(geo_anchor(-90.0, 123.0, 0.0));
    for _ in 0..120 {
        let offset = rng.random_range(-0.002..0.002);
        let longitude = if offset < 0.0 { 180.0 + offset } else { -180.0 + offset };
        anchors.push(geo_anchor(rng.random_range(-17.001..-16.999), longitude, 0.0));
    }
    // Thirty at exactly one point, and a tower of sixty floors with four anchors on each.
    anchors.extend(std::iter::repeat_n(geo_anchor(51.5, -0.12, 11.0), 30));
    for index in 0..240 {
        let corner = f64::from(index % 4);
        let floor = f64::from(index / 4);
        anchors.push(geo_anchor(25.197_2 + corner * 2e-4, 55.274_4, 3.0 * floor));
    }
    // A face corner and a face edge of the cube that S2 projects to.
    for _ in 0..100 {
        let (latitude, longitude) = if rng.random() { (35.264_39, 45.0) } else { (10.0, 45.0) };
        let near = |centre: f64, rng: &mut StdRng| centre + rng.random_range(-0.001..0.001);
        anchors.push(geo_anchor(near(latitude, rng), near(longitude, rng), 0.0));
    }
    for _ in 0..500 {
        let latitude = rng.random_range(47.36..47.38);
        anchors.push(geo_anchor(
            latitude,
            rng.random_range(8.53..8.56),
            rng.random_range(400.0..480.0),
        ));
    }
    while anchors.len() < ANCHORS {
        let latitude = f64::asin(rng.random_range(-1.0..1.0)).to_degrees();
        let height = rng.random_range(-100.0..9_000.0);
        anchors.push(geo_anchor(latitude, rng.random_range(-180.0..180.0), height));
    }
    for (index, anchor) in anchors.iter_mut().enumerate() {
        if index % 3 == 0 {
            anchor.tags = vec!["red".to_owned()];
        }
        anchor.properties.insert("n".to_owned(), index.to_string());
    }
    anchors
}

/// Stores the anchors, drifts some of them, and returns all as stored, with a token that demands
/// every one of these writes.
async fn store(
    cluster: &TestCluster,
    account: &TestAccount,
    rng: &mut StdRng,
) -> (Vec<v1::Anchor>, Bytes) {
    let mut stored = Vec::new();
    // Two tokens one after the other demand both.
    let mut token = BytesMut::new();
    for (index, chunk) in awkward_anchors(rng).chunks(500).enumerate() {
        let rpc = cluster.account_rpc(index % 3, account);
        let (anchors, seen) = rpc.create_all(chunk.to_vec(), &request_id()).await.unwrap();
        stored.extend(anchors);
        token.extend_from_slice(&seen);
    }
    let moves: Vec<(usize, v1::Anchor)> = (0..80)
        .map(|_| {
            let index = rng.random_range(0..stored.len());
            let (latitude, longitude, height) = oracle::place(&stored[index]);
            // At most 77 m along the meridian and 40 m up: within the 100 m that a pose may drift.
            let latitude = (latitude + rng.random_range(-7e-4..7e-4)).clamp(-90.0, 90.0);
            let moved = geo_anchor(latitude, longitude, height + rng.random_range(-40.0..40.0));
            (index, v1::Anchor { id: stored[index].id.clone(), ..moved })
        })
        .collect();
    for (index, moved) in moves {
        let rpc = cluster.account_rpc(index % 3, account);
        let reply = rpc.update(moved, &["pose"], &request_id()).await.unwrap();
        stored[index] = reply.anchor.unwrap();
        token.extend_from_slice(&reply.session_token);
    }
    (stored, token.freeze())
}

struct Query {
    label: String,
    point: [f64; 3],
    request: v1::LocateRequest,
    k: usize,
    radius_m: f64,
    only_red: bool,
}

fn queries(anchors: &[v1::Anchor], rng: &mut StdRng) -> Vec<Query> {
    let mut points = vec![
        (90.0, 0.0, 0.0),
        (-90.0, 45.0, 2_800.0),
        (-17.0, 180.0, 0.0),
        (-17.0, -180.0, 0.0),
        (51.5, -0.12, 11.0),
        (25.197_2, 55.274_4, 91.0),
        (35.264_39, 45.0, 0.0),
        (0.0, 0.0, 100_000.0),
    ];
    for _ in 0..36 {
        let (latitude, longitude, height) =
            oracle::place(&anchors[rng.random_range(0..anchors.len())]);
        let latitude = (latitude + rng.random_range(-1e-3..1e-3)).clamp(-90.0, 90.0);
        points.push((latitude, longitude, height));
    }
    for _ in 0..16 {
        let latitude = f64::asin(rng.random_range(-1.0..1.0)).to_degrees();
        points.push((latitude, rng.random_range(-180.0..180.0), rng.random_range(0.0..1_000.0)));
    }
    let make = |(index, (latitude_deg, longitude_deg, height_m)): (usize, (f64, f64, f64))| {
        let k = [1, 10, 50][index % 3];
        let radius_m = [f64::INFINITY, 150.0, 40_000.0, f64::INFINITY][index % 4];
        let only_red = index % 5 == 4;
        let point = v1::GeoPoint { latitude_deg, longitude_deg, height_m };
        let near = v1::NearPoint {
            point: Some(v1::near_point::Point::Geo(point)),
            k: u32::try_from(k).unwrap_or(1),
            radius_m: radius_m.is_finite().then_some(radius_m),
        };
        let tags_all = if only_red { vec!["red".to_owned()] } else { Vec::new() };
        let request = v1::LocateRequest {
            criterion: Some(v1::locate_request::Criterion::NearPoint(near)),
            filter: Some(v1::Filter { tags_all, ..Default::default() }),
            require_complete: true,
            ..Default::default()
        };
        let label =
            format!("k={k} within {radius_m} m of {latitude_deg},{longitude_deg},{height_m}");
        let point = ecef(latitude_deg, longitude_deg, height_m);
        Query { label, point, request, k, radius_m, only_red }
    };
    points.into_iter().enumerate().map(make).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nearest_and_region_queries_equal_brute_force_at_every_level_on_every_node() {
    println!("seed {SEED:#x}");
    let mut rng = StdRng::seed_from_u64(SEED);
    let cluster = shared().await;
    let account = cluster.account(4).await.unwrap();
    let (anchors, token) = store(&cluster, &account, &mut rng).await;
    let red: Vec<_> = anchors.iter().filter(|anchor| !anchor.tags.is_empty()).cloned().collect();
    let reads = [linearizable(), bounded(Duration::from_secs(5), token.clone()), local(token)];
    let queries = queries(&anchors, &mut rng);
    let runs = queries.iter().enumerate().flat_map(|(index, query)| {
        // Every query at every level; nodes take turns, so that each serves each level.
        reads
            .iter()
            .enumerate()
            .map(move |(level, read)| (query, read.clone(), (index + level) % 3))
    });
    stream::iter(runs)
        .for_each_concurrent(8, |(query, read, node)| {
            let request = v1::LocateRequest { read: Some(read), ..query.request.clone() };
            let rpc = cluster.account_rpc(node, &account);
            let candidates = if query.only_red { &red } else { &anchors };
            async move {
                let label = format!("node {node}, level {:?}, {}", request.read, query.label);
                let reply = rpc.locate(request).await;
                let reply = reply.unwrap_or_else(|status| panic!("{label}: {status:?}"));
                assert!(reply.completeness.is_some_and(|one| one.complete), "{label}");
                check_nearest(
                    &label,
                    candidates,
                    query.point,
                    query.k,
                    query.radius_m,
                    &reply.anchors,
                );
            }
        })
        .await;
    check_spheres(&cluster, &account, &anchors, &mut rng).await;
    check_rectangles(&cluster, &account, &anchors).await;
}

async fn check_spheres(
    cluster: &TestCluster,
    account: &TestAccount,
    anchors: &[v1::Anchor],
    rng: &mut StdRng,
) {
    for round in 0..20 {
        let (latitude_deg, longitude_deg, height_m) =
            oracle::place(&anchors[rng.random_range(0..anchors.len())]);
        let radius_m = [60.0, 700.0, 9_000.0, 600_000.0][round % 4];
        let center = v1::GeoPoint { latitude_deg, longitude_deg, height_m };
        let sphere = v1::Sphere { center: Some(v1::sphere::Center::Geo(center)), radius_m };
        let region = v1::Region { shape: Some(v1::region::Shape::Sphere(sphere)) };
        let found = ids_in(cluster, account, round % 3, region).await;
        let point = ecef(latitude_deg, longitude_deg, height_m);
        for anchor in anchors {
            let distance = oracle::distance(anchor, point);
            if TOLERANCE_M < (distance - radius_m).abs() {
                let is_found = found.contains(&anchor.id);
                assert_eq!(
                    is_found,
                    distance < radius_m,
                    "{anchor:?} at {distance} of {radius_m} m"
                );
            }
        }
    }
}

async fn check_rectangles(cluster: &TestCluster, account: &TestAccount, anchors: &[v1::Anchor]) {
    let rows = [
        (-17.0005, 179.9985, -16.9995, -179.9985), // across the antimeridian
        (89.9995, -180.0, 90.0, 180.0),            // a polar cap
        (-90.0, -10.0, -89.9999, 70.0),            // a slice of the other
        (47.365, 8.54, 47.375, 8.55),
        (-90.0, -180.0, 90.0, 180.0),
        (51.5, -0.12, 51.5, -0.12), // a single point, on the edges
    ];
    for (index, (south_deg, west_deg, north_deg, east_deg)) in rows.into_iter().enumerate() {
        let rectangle = v1::GeoRectangle {
            south_deg,
            west_deg,
            north_deg,
            east_deg,
            height_m_min: None,
            height_m_max: None,
        };
        let region = v1::Region { shape: Some(v1::region::Shape::GeoRectangle(rectangle)) };
        let found = ids_in(cluster, account, index % 3, region).await;
        for anchor in anchors {
            let (latitude, longitude, _) = oracle::place(anchor);
            // A position that went to meters and back moves by less than this.
            let border = |a: f64, b: f64| (a - b).abs() < 1e-9 && a.to_bits() != b.to_bits();
            if border(latitude, south_deg) || border(latitude, north_deg) {
                continue;
            }
            if latitude.abs() == 90.0 || border(longitude, west_deg) || border(longitude, east_deg)
            {
                continue;
            }
            let between = if west_deg <= east_deg {
                west_deg <= longitude && longitude <= east_deg
            } else {
                west_deg <= longitude || longitude <= east_deg
            };
            let is_inside = south_deg <= latitude && latitude <= north_deg && between;
            assert_eq!(found.contains(&anchor.id), is_inside, "{anchor:?} in {:?}", rows[index]);
        }
    }
}

/// The ids of a region's anchors: by Locate if it holds at most 1,000, and by listing.
async fn ids_in(
    cluster: &TestCluster,
    account: &TestAccount,
    node: usize,
    region: v1::Region,
) -> Vec<String> {
    let rpc = cluster.account_rpc(node, account);
    let mut listed = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListAnchorsRequest {
            region: Some(region),
            page_size: 300,
            page_token,
            ..Default::default()
        };
        let page = rpc.list(request).await.unwrap();
        listed.extend(page.anchors.into_iter().map(|anchor| anchor.id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert!(listed.is_sorted_by(|a, b| a < b), "ordered by id, nobody twice");
    let request = v1::LocateRequest {
        criterion: Some(v1::locate_request::Criterion::Region(region)),
        limit: 1_000,
        require_complete: true,
        ..Default::default()
    };
    let located = rpc.locate(request).await.unwrap();
    let ids: Vec<_> =
        located.anchors.into_iter().filter_map(|located| Some(located.anchor?.id)).collect();
    assert_eq!(located.truncated, 1_000 < listed.len());
    assert_eq!(ids, listed[..listed.len().min(1_000)]);
    listed
}

#[tokio::test(flavor = "multi_thread")]
async fn local_maps_do_not_mix_with_each_other_or_with_the_earth() {
    let cluster = shared().await;
    let account = cluster.account(2).await.unwrap();
    let rpc = cluster.account_rpc(0, &account);
    let mut anchors = Vec::new();
    for space in [1, 2] {
        for index in 0..20 {
            anchors.push(local_anchor(space, f64::from(index) * 30.0, 0.0, f64::from(space)));
        }
    }
    anchors.push(geo_anchor(0.0, 0.0, 0.0));
    let (stored, _) = rpc.create_all(anchors, &request_id()).await.unwrap();
    let point = v1::LocalPoint { space: 2, x_m: 61.0, y_m: 0.0, z_m: 2.0 };
    let near =
        v1::NearPoint { point: Some(v1::near_point::Point::Local(point)), k: 100, radius_m: None };
    let request = v1::LocateRequest {
        criterion: Some(v1::locate_request::Criterion::NearPoint(near)),
        require_complete: true,
        ..Default::default()
    };
    let reply = rpc.locate(request).await.unwrap();
    assert_eq!(reply.anchors.len(), 20);
    let distances: Vec<f64> = reply.anchors.iter().filter_map(|one| one.distance_m).collect();
    assert_eq!(&distances[..3], [1.0, 29.0, 31.0]);
    let space = v1::Space { kind: Some(v1::space::Kind::Local(1)) };
    let list =
        v1::ListAnchorsRequest { space: Some(space), page_size: 1_000, ..Default::default() };
    let mut listed: Vec<_> = rpc.list(list).await.unwrap().anchors;
    listed.sort_by(|a, b| a.id.cmp(&b.id));
    let mut expected = stored[..20].to_vec();
    expected.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(listed, expected);
}
