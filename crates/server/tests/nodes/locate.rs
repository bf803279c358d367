use anchorhold_geometry::{Ecef, GeoPoint};
use anchorhold_proto::v1;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::cluster::{Cluster, eventually, geo, request_id};
use crate::healing::{spoil, write};

const SEED: u64 = 20_261_123;

/// Places that are hard: poles, the antimeridian, floors of a building, points that coincide.
fn places(random: &mut StdRng, count: usize) -> Vec<[f64; 3]> {
    let mut places = vec![[90.0, 0.0, 5.0], [-90.0, 17.0, 5.0], [0.0, 180.0, 0.0]];
    places.extend((0..20).map(|floor| [48.1, 11.5, 3.0 * f64::from(floor)]));
    places.extend([[10.0, 20.0, 30.0]; 12]);
    places.extend((0..20).map(|n| [0.001 * f64::from(n), 179.999, 0.0]));
    places.extend((0..20).map(|n| [0.001 * f64::from(n), -179.999, 0.0]));
    while places.len() < count {
        let latitude = random.random_range(-1.0_f64..1.0).asin().to_degrees();
        places.push([
            latitude,
            random.random_range(-180.0..180.0),
            random.random_range(-50.0..900.0),
        ]);
    }
    places
}

/// Creates an anchor at each place: ids and positions, and what the session has seen.
async fn load(
    cluster: &Cluster,
    key: &str,
    places: &[[f64; 3]],
) -> (Vec<(String, Ecef)>, bytes::Bytes) {
    let batch = v1::BatchCreateAnchorsRequest {
        anchors: places.iter().map(|[a, b, c]| geo(*a, *b, *c)).collect(),
        request_id: request_id(1),
        ids_only: true,
    };
    let created = cluster.anchors(0, key).batch_create_anchors(batch).await.unwrap().into_inner();
    let anchors = created.results.into_iter().zip(places).map(|(result, [a, b, c])| {
        let Some(v1::batch_create_anchors_result::Result::Anchor(anchor)) = result.result else {
            panic!("{result:?}")
        };
        (anchor.id, GeoPoint::new(*a, *b, *c).unwrap().to_ecef())
    });
    (anchors.collect(), created.session_token)
}

fn near([latitude_deg, longitude_deg, height_m]: [f64; 3], k: usize) -> v1::LocateRequest {
    let point = v1::GeoPoint { latitude_deg, longitude_deg, height_m };
    v1::LocateRequest {
        criterion: Some(v1::locate_request::Criterion::NearPoint(v1::NearPoint {
            point: Some(v1::near_point::Point::Geo(point)),
            k: u32::try_from(k).unwrap(),
            radius_m: None,
        })),
        ..v1::LocateRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nearest_anchors_are_those_of_brute_force() {
    println!("seed {SEED}");
    let mut random = StdRng::seed_from_u64(SEED);
    let mut cluster = Cluster::start(3).await;
    let key = cluster.account("one", 8).await;
    let places = places(&mut random, 600);
    let (anchors, session_token) = load(&cluster, &key, &places).await;
    let mut asked = 0;
    for query in 0..60_usize {
        let [a, b, c] = places[query * 7 % places.len()];
        let at = if random.random_bool(0.5) {
            [a, b, c]
        } else {
            [random.random_range(-90.0..90.0), b, c]
        };
        let k = [1, 5, 10, 40][query % 4];
        let point = GeoPoint::new(at[0], at[1], at[2]).unwrap().to_ecef();
        let mut expected: Vec<_> =
            anchors.iter().map(|(id, place)| (place.distance_m(point), id.clone())).collect();
        expected.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let read =
            v1::ReadOptions { session_token: session_token.clone(), ..v1::ReadOptions::default() };
        let request = v1::LocateRequest { read: Some(read), ..near(at, k) };
        let found = cluster.locates(query % 3, &key).locate(request).await.unwrap().into_inner();
        let completeness = found.completeness.unwrap();
        assert!(completeness.complete);
        assert!((1..=64).contains(&completeness.cells_asked.len()));
        asked += completeness.shards_asked;
        let found: Vec<_> = found
            .anchors
            .into_iter()
            .map(|located| (located.distance_m.unwrap(), located.anchor.unwrap().id))
            .collect();
        let distances = |list: &[(f64, String)]| list.iter().map(|(m, _)| *m).collect::<Vec<_>>();
        let ids =
            |list: &[(f64, String)]| list.iter().map(|(_, id)| id.clone()).collect::<Vec<_>>();
        assert_eq!(distances(&found), distances(&expected[..k]), "query {query} at {at:?}");
        assert_eq!(ids(&found), ids(&expected[..k]), "query {query} at {at:?}");
    }
    assert!(asked < 60 * 8, "all shards were asked for every query");

    let region = v1::LocateRequest {
        criterion: Some(v1::locate_request::Criterion::Region(v1::Region {
            shape: Some(v1::region::Shape::GeoRectangle(v1::GeoRectangle {
                south_deg: -1.0,
                west_deg: 179.0,
                north_deg: 1.0,
                east_deg: -179.0,
                ..v1::GeoRectangle::default()
            })),
        })),
        limit: 1_000,
        ..v1::LocateRequest::default()
    };
    let found = cluster.locates(1, &key).locate(region).await.unwrap().into_inner();
    let expected = places.iter().filter(|[a, b, _]| a.abs() <= 1.0 && 179.0 <= b.abs()).count();
    assert_eq!((found.anchors.len(), found.truncated), (expected, false));
    cluster.stop_all().await;
}

fn local(space: u32, [x_m, y_m, z_m]: [f64; 3]) -> v1::Anchor {
    let pose = v1::LocalPose { space, x_m, y_m, z_m, orientation: None };
    v1::Anchor {
        pose: Some(v1::Pose { frame: Some(v1::pose::Frame::Local(pose)) }),
        ..v1::Anchor::default()
    }
}

/// All ids in a region, page by page.
async fn list(
    cluster: &Cluster,
    key: &str,
    shape: v1::region::Shape,
    page_size: u32,
) -> Vec<String> {
    let mut request = v1::ListAnchorsRequest {
        region: Some(v1::Region { shape: Some(shape) }),
        page_size,
        ..v1::ListAnchorsRequest::default()
    };
    let mut ids = Vec::new();
    loop {
        let page =
            cluster.anchors(1, key).list_anchors(request.clone()).await.unwrap().into_inner();
        ids.extend(page.anchors.into_iter().map(|anchor| anchor.id));
        if page.next_page_token.is_empty() {
            return ids;
        }
        request.page_token = page.next_page_token;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_holds_what_brute_force_finds_whether_the_index_or_a_scan_serves_it() {
    println!("seed {SEED}");
    let mut random = StdRng::seed_from_u64(SEED);
    let mut cluster = Cluster::start(3).await;
    let key = cluster.account("one", 4).await;
    let places: Vec<[f64; 3]> = (0..900)
        .map(|_| [52.5 + random.random_range(-0.01..0.01), 13.4, random.random_range(0.0..60.0)])
        .chain((0..60).map(|floor| [52.5, 13.4, f64::from(floor)]))
        .collect();
    let (anchors, _) = load(&cluster, &key, &places).await;
    let center = v1::GeoPoint { latitude_deg: 52.5, longitude_deg: 13.4, height_m: 10.0 };
    let middle = GeoPoint::new(52.5, 13.4, 10.0).unwrap().to_ecef();
    for (radius_m, page_size) in [(5.0, 1_000), (25.0, 3), (400.0, 100), (900_000.0, 400)] {
        let sphere = v1::region::Shape::Sphere(v1::Sphere {
            center: Some(v1::sphere::Center::Geo(center)),
            radius_m,
        });
        let inside = anchors.iter().filter(|(_, place)| place.distance_m(middle) <= radius_m);
        let mut expected: Vec<_> = inside.map(|(id, _)| id.clone()).collect();
        expected.sort();
        assert!(!expected.is_empty());
        assert_eq!(list(&cluster, &key, sphere, page_size).await, expected, "{radius_m} m");
    }

    // More in one box than the index serves, and a few in a corner of it.
    let corners: Vec<[f64; 3]> =
        (0..1_500).map(|n| [f64::from(n % 50), f64::from(n / 50), 2.5]).collect();
    for (number, part) in (2_u128..).zip(corners.chunks(750)) {
        let batch = v1::BatchCreateAnchorsRequest {
            anchors: part.iter().map(|at| local(7, *at)).collect(),
            request_id: request_id(number),
            ids_only: true,
        };
        cluster.anchors(0, &key).batch_create_anchors(batch).await.unwrap();
    }
    for (x_m_max, expected) in [(49.0, 1_500), (1.0, 60), (0.5, 30)] {
        let corner = |x_m, y_m, z_m| Some(v1::LocalPoint { space: 7, x_m, y_m, z_m });
        let local_box = v1::region::Shape::LocalBox(v1::LocalBox {
            min: corner(0.0, 0.0, 0.0),
            max: corner(x_m_max, 29.0, 3.0),
        });
        assert_eq!(list(&cluster, &key, local_box, 1_000).await.len(), expected, "{x_m_max} m");
    }
    cluster.stop_all().await;
}

/// A node hears of what a split took from a shard before it hears of the new one.
#[tokio::test(flavor = "multi_thread")]
async fn keys_whose_shard_is_not_known_are_told_and_not_taken_for_empty() {
    let mut cluster = Cluster::start(3).await;
    let key = cluster.account("one", 4).await;
    let places = [[48.1, 11.5, 0.0], [-33.0, 151.0, 0.0], [40.0, -74.0, 0.0], [1.0, 1.0, 0.0]];
    let (anchors, _) = load(&cluster, &key, &places).await;
    let core = std::sync::Arc::clone(cluster.nodes[0].as_ref().unwrap().core());
    for ([latitude, longitude, _], (id, _)) in places.iter().zip(&anchors) {
        let at = [*latitude, *longitude, 0.0];
        let known = core.catalog().shards.clone();
        let owner = id.parse::<anchorhold_model::AnchorId>().unwrap().key();
        // Whatever changes the catalog meanwhile, a leader that moves or a node that is up now,
        // restores the routes: then it is tried again.
        let (found, whole) = eventually("the routes stay as they were made", || async {
            let others = known.values().filter(|shard| !shard.range.contains(owner)).cloned();
            core.routes.set_catalog(others, &std::collections::BTreeSet::new());
            let found = cluster.locates(0, &key).locate(near(at, 3)).await.unwrap().into_inner();
            let whole = v1::LocateRequest { require_complete: true, ..near(at, 3) };
            let whole = cluster.locates(0, &key).locate(whole).await;
            core.routes.table().of_key(owner).is_none().then_some((found, whole))
        })
        .await;
        let completeness = found.completeness.unwrap();
        assert!(!completeness.complete, "{:?}", found.anchors);
        assert_eq!(completeness.unanswered.len(), 1, "{completeness:?}");
        let refused = whole.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused:?}");
        core.routes.set_catalog(known.into_values(), &std::collections::BTreeSet::new());
        let found = cluster.locates(0, &key).locate(near(at, 1)).await.unwrap().into_inner();
        assert_eq!(found.anchors[0].anchor.as_ref().unwrap().id, *id);
    }
    drop(core);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_is_searched_behind_a_shard_that_does_not_answer() {
    let mut cluster = Cluster::start(1).await;
    let key = cluster.account("one", 4).await;
    let ids = write(&cluster, &key, 60, 1).await;
    let (silent, held) = {
        let core = cluster.nodes[0].as_ref().unwrap().core();
        let mut replicas = core.host.replicas();
        replicas.sort_by_key(|replica| replica.state().descriptor.range.start);
        let second = &replicas[1];
        second.renew_snapshot().await;
        eventually("it has a file of rows", || async {
            second.status().snapshot_index.filter(|index| 3 < *index)
        })
        .await;
        (second.shard_id(), second.state().anchors)
    };
    assert!(0 < held && held < 60, "{held}");
    cluster.stop(0).await;
    spoil(cluster.dir(0), silent);
    cluster.restart(0).await;
    let everywhere = v1::GeoRectangle {
        south_deg: -90.0,
        west_deg: -180.0,
        north_deg: 90.0,
        east_deg: 180.0,
        ..Default::default()
    };
    let region = v1::Region { shape: Some(v1::region::Shape::GeoRectangle(everywhere)) };
    let request = v1::LocateRequest {
        criterion: Some(v1::locate_request::Criterion::Region(region)),
        limit: 1_000,
        ..Default::default()
    };
    let found = eventually("the other three shards answer", || async {
        let found = cluster.locates(0, &key).locate(request.clone()).await.ok()?.into_inner();
        (found.completeness.as_ref()?.unanswered.len() == 1).then_some(found)
    })
    .await;
    let unanswered = &found.completeness.unwrap().unanswered;
    assert_eq!(unanswered[0].shard_id, silent.0);
    assert_eq!(found.anchors.len() as u64 + held, ids.len() as u64);
    cluster.stop_all().await;
}
