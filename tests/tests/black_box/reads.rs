//! Read levels and session tokens.

use std::time::Duration;

use anchorhold_proto::v1;
use anchorhold_tests::cluster::shared;
use anchorhold_tests::rpc::{bounded, geo_anchor, linearizable, local, request_id};
use anchorhold_tests::wait::until;
use bytes::Bytes;

#[tokio::test(flavor = "multi_thread")]
async fn a_linearizable_read_on_any_node_sees_every_acknowledged_write() {
    let cluster = shared().await;
    let account = cluster.account(3).await.unwrap();
    for round in 0..30_u32 {
        let writer = cluster.account_rpc(round as usize % 3, &account);
        let anchor = geo_anchor(f64::from(round) - 15.0, f64::from(round) * 10.0 - 150.0, 0.0);
        let stored = writer.create(anchor, &request_id()).await.unwrap().anchor.unwrap();
        for index in 0..3 {
            let rpc = cluster.account_rpc(index, &account);
            let reply = rpc.get(&stored.id, linearizable()).await.unwrap();
            assert_eq!(reply.anchor.as_ref(), Some(&stored), "round {round}, node {index}");
            let shard = &reply.serving.unwrap().shards[0];
            assert_eq!(shard.staleness, Some(prost_types::Duration::default()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_token_shows_ones_own_writes_on_any_replica_at_once() {
    let cluster = shared().await;
    let account = cluster.account(3).await.unwrap();
    let writer = cluster.account_rpc(0, &account);
    let stored =
        writer.create(geo_anchor(40.0, -3.0, 600.0), &request_id()).await.unwrap().anchor.unwrap();
    for step in 0..30_usize {
        let mut change = stored.clone();
        change.etag.clear();
        change.properties.insert("step".to_owned(), step.to_string());
        let writer = cluster.account_rpc(step % 3, &account);
        let reply = writer.update(change, &["properties"], &request_id()).await.unwrap();
        let token = reply.session_token;
        for index in 0..3 {
            let rpc = cluster.account_rpc(index, &account);
            let reads = [local(token.clone()), bounded(Duration::from_secs(60), token.clone())];
            for read in reads {
                let got = rpc.get(&stored.id, read).await.unwrap();
                assert_eq!(got.anchor.unwrap().properties["step"], step.to_string());
            }
            let list =
                v1::ListAnchorsRequest { read: Some(local(token.clone())), ..Default::default() };
            let listed = rpc.list(list).await.unwrap().anchors;
            assert_eq!(listed[0].properties["step"], step.to_string());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bounded_read_says_how_stale_it_is_and_keeps_the_bound() {
    let cluster = shared().await;
    let account = cluster.account(0).await.unwrap();
    let writer = cluster.account_rpc(0, &account);
    let stored =
        writer.create(geo_anchor(1.0, 1.0, 0.0), &request_id()).await.unwrap().anchor.unwrap();
    for index in 0..3 {
        let rpc = cluster.account_rpc(index, &account);
        until("the write is within the bound", || async {
            let reply = rpc.get(&stored.id, bounded(Duration::from_secs(2), Bytes::new())).await?;
            let shard = reply.serving.unwrap().shards.remove(0);
            assert_eq!(shard.consistency(), v1::Consistency::BoundedStaleness);
            let staleness = Duration::try_from(shard.staleness.unwrap()).unwrap();
            assert!(staleness <= Duration::from_secs(2), "{staleness:?}");
            assert_eq!(reply.anchor.as_ref(), Some(&stored));
            Ok::<(), tonic::Status>(())
        })
        .await;
        let reply = rpc.get(&stored.id, local(Bytes::new())).await.unwrap();
        let serving = reply.serving.unwrap();
        assert_eq!(serving.shards[0].consistency(), v1::Consistency::Local);
        assert_eq!(serving.shards[0].node_id, serving.node_id, "LOCAL asks nobody else");
    }
}
