//! Shards split under a load of the SDK: no error is seen, nothing is lost, answers stay exact.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anchorhold_client::{AdminClient, Client, ClientConfig};
use anchorhold_proto::{Reason, admin_v1, v1};
use anchorhold_tests::cluster::{TestAccount, TestCluster, shared};
use anchorhold_tests::rpc::{geo_anchor, linearizable};
use anchorhold_tests::wait::until;
use tokio::time::Instant;

use crate::faults::client;
use crate::oracle::{check_nearest, ecef};

pub(crate) const WRITERS: u32 = 6;

pub(crate) fn operator(cluster: &TestCluster) -> AdminClient {
    let config = ClientConfig {
        endpoints: cluster.endpoints(),
        api_key: cluster.admin_key().to_owned(),
        deadline: Duration::from_secs(60),
        ..ClientConfig::default()
    };
    AdminClient::new(config).expect("a client")
}

pub(crate) async fn shards(admin: &AdminClient, account: &TestAccount) -> Vec<admin_v1::Shard> {
    let request = admin_v1::ListShardsRequest { account: account.number, ..Default::default() };
    let shards = admin.list_shards(request).await.unwrap().shards;
    shards.into_iter().filter(|shard| shard.shard_id != 0).collect()
}

/// Waits until an account has so many shards: whoever is asked may hear of a change late.
pub(crate) async fn until_shards(admin: &AdminClient, account: &TestAccount, count: usize) {
    until("the change is listed", || async {
        let found = shards(admin, account).await.len();
        if found == count { Ok(()) } else { Err(found) }
    })
    .await;
}

pub(crate) fn place(number: u32) -> v1::Anchor {
    let around = f64::from(number) * 0.618_034;
    geo_anchor(around.fract() * 160.0 - 80.0, (around * 7.0).fract() * 360.0 - 180.0, 10.0)
}

/// Writes until told to stop; everything that was acknowledged, and the longest time without.
pub(crate) async fn writes(
    client: &Client,
    first: u32,
    stop: &AtomicBool,
) -> (Vec<v1::Anchor>, Duration) {
    let (mut written, mut gap, mut last) = (Vec::new(), Duration::ZERO, Instant::now());
    for number in (first..).step_by(usize::try_from(WRITERS).unwrap()) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let request = v1::CreateAnchorRequest { anchor: Some(place(number)), ..Default::default() };
        let created = client.create_anchor(request).await.expect("a write is never refused");
        written.push(created.anchor.unwrap());
        (gap, last) = (gap.max(last.elapsed()), Instant::now());
    }
    (written, gap)
}

/// Lists everything again and again: whoever was there before is in every listing, once.
pub(crate) async fn listings(client: &Client, steady: &[v1::Anchor], stop: &AtomicBool) -> u32 {
    let mut listings = 0;
    while !stop.load(Ordering::Relaxed) {
        let ids = list(client, 37).await;
        assert!(ids.is_sorted_by(|a, b| a < b), "in order, nobody twice");
        let missing = steady.iter().filter(|anchor| ids.binary_search(&anchor.id).is_err());
        assert_eq!(missing.count(), 0, "listing {listings}");
        listings += 1;
    }
    listings
}

pub(crate) async fn list(client: &Client, page_size: u32) -> Vec<String> {
    let read = Some(linearizable());
    let request = v1::ListAnchorsRequest { page_size, read, ..Default::default() };
    let (mut pages, mut ids) = (client.list_all(request), Vec::new());
    while let Some(anchor) = pages.next().await.expect("a listing is never refused") {
        ids.push(anchor.id);
    }
    ids
}

pub(crate) async fn nearest(client: &Client, anchors: &[v1::Anchor], number: u32, is_exact: bool) {
    let (latitude_deg, longitude_deg) =
        (f64::from(number % 120) - 60.0, f64::from(number % 300) - 150.0);
    let point = v1::GeoPoint { latitude_deg, longitude_deg, height_m: 0.0 };
    let near =
        v1::NearPoint { point: Some(v1::near_point::Point::Geo(point)), k: 12, radius_m: None };
    let request = v1::LocateRequest {
        criterion: Some(v1::locate_request::Criterion::NearPoint(near)),
        read: Some(linearizable()),
        require_complete: true,
        ..Default::default()
    };
    let found = client.locate(request).await.expect("a query is never refused").anchors;
    assert_eq!(found.len(), 12);
    if is_exact {
        let at = ecef(latitude_deg, longitude_deg, 0.0);
        check_nearest("after the splits", anchors, at, 12, f64::INFINITY, &found);
    }
}

pub(crate) async fn queries(client: &Client, stop: &AtomicBool) -> u32 {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        nearest(client, &[], number, false).await;
        number += 1;
    }
    number
}

/// Anchors that are there from the beginning.
pub(crate) async fn fill(client: &Client, count: u32) -> Vec<v1::Anchor> {
    let mut steady = Vec::new();
    for number in 1_000_000..1_000_000 + count {
        let request = v1::CreateAnchorRequest { anchor: Some(place(number)), ..Default::default() };
        steady.push(client.create_anchor(request).await.unwrap().anchor.unwrap());
    }
    steady
}

/// Writes, lists and asks until the changes are made: nobody sees an error. All that is stored then.
pub(crate) async fn under_load(
    client: &Client,
    steady: Vec<v1::Anchor>,
    changes: impl Future<Output = ()>,
) -> Vec<v1::Anchor> {
    let stop = AtomicBool::new(false);
    let changes = async {
        changes.await;
        stop.store(true, Ordering::Relaxed);
    };
    let writers = futures::future::join_all((0..WRITERS).map(|first| writes(client, first, &stop)));
    let (written, listed, asked, ()) =
        tokio::join!(writers, listings(client, &steady, &stop), queries(client, &stop), changes);
    let gap = written.iter().map(|(_, gap)| *gap).max().unwrap();
    let mut anchors = steady;
    anchors.extend(written.into_iter().flat_map(|(written, _)| written));
    println!(
        "{} anchors written beside {listed} listings and {asked} queries: no error, longest wait \
         of a writer {gap:?}",
        anchors.len()
    );
    anchors
}

/// What was written is what is listed, and what is found is exact.
pub(crate) async fn check_all(client: &Client, anchors: &[v1::Anchor]) {
    let mut expected: Vec<&String> = anchors.iter().map(|anchor| &anchor.id).collect();
    expected.sort();
    assert!(list(client, 100).await.iter().eq(expected), "what was written is what is listed");
    for number in 0..60 {
        nearest(client, anchors, number * 5, true).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_splits_under_load_and_no_client_sees_an_error() {
    let cluster = shared().await;
    let account = cluster.account(1).await.unwrap();
    let (client, admin) = (client(&cluster, &account).await, operator(&cluster));
    let steady = fill(&client, 400).await;
    let splits = async {
        for round in 0..3 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let largest = shards(&admin, &account).await;
            let largest = largest.into_iter().max_by_key(|shard| shard.anchors).unwrap();
            let request = admin_v1::SplitShardRequest {
                shard_id: largest.shard_id,
                version: largest.epoch.unwrap().version,
                ..Default::default()
            };
            let done = admin.split_shard(request.clone()).await.expect("the split is made");
            // The same request again: the same answer, and no further shard.
            assert_eq!(admin.split_shard(request).await.unwrap(), done);
            until_shards(&admin, &account, round + 2).await;
            // Beyond the building of both sides' own indexes.
            tokio::time::sleep(Duration::from_millis(1_300)).await;
        }
    };
    let anchors = under_load(&client, steady, splits).await;
    check_all(&client, &anchors).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_split_is_refused_with_the_reason() {
    let cluster = shared().await;
    let account = cluster.account(1).await.unwrap();
    let admin = operator(&cluster);
    let shard = shards(&admin, &account).await.remove(0);
    let reason = async |shard_id: u64, at: Vec<u8>| {
        let request = admin_v1::SplitShardRequest { shard_id, at: at.into(), version: 0 };
        admin.split_shard(request).await.unwrap_err().reason()
    };
    assert_eq!(reason(u64::MAX, Vec::new()).await, Some(Reason::ShardNotFound));
    assert_eq!(reason(shard.shard_id, Vec::new()).await, Some(Reason::SplitImpossible), "empty");
    let first = shard.range.unwrap().start.to_vec();
    assert_eq!(reason(shard.shard_id, first).await, Some(Reason::SplitImpossible), "nothing left");
    assert_eq!(reason(shard.shard_id, vec![0xff; 16]).await, Some(Reason::SplitImpossible));
    assert_eq!(reason(shard.shard_id, vec![1, 2]).await, Some(Reason::FieldInvalid));
    assert_eq!(shards(&admin, &account).await.len(), 1);
}
