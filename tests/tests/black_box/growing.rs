//! A shard that grows beyond its limit under a load of the SDK is split without anybody asking.

use std::sync::atomic::{AtomicBool, Ordering};

use anchorhold_proto::v1;
use anchorhold_tests::cluster::TestCluster;
use anchorhold_tests::wait::until;

use crate::faults::client;
use crate::split::{WRITERS, list, listings, nearest, operator, place, queries, shards, writes};

const SMALL_SHARDS: &str = "[placement]\ninterval_ms = 200\nsplit_anchors = 150\n\
                            split_settle_ms = 1000\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_growing_shard_splits_by_itself_and_no_client_sees_an_error() {
    let cluster = TestCluster::start(SMALL_SHARDS).await.unwrap();
    let account = cluster.account(1).await.unwrap();
    let (client, admin) = (client(&cluster, &account).await, operator(&cluster));
    let mut steady = Vec::new();
    for number in 1_000_000..1_000_100 {
        let request = v1::CreateAnchorRequest { anchor: Some(place(number)), ..Default::default() };
        steady.push(client.create_anchor(request).await.unwrap().anchor.unwrap());
    }
    assert_eq!(shards(&admin, &account).await.len(), 1, "within the limit nothing is split");
    let stop = AtomicBool::new(false);
    let growing = async {
        until("the halves are split too", || async {
            let count = shards(&admin, &account).await.len();
            if 4 <= count { Ok(()) } else { Err(count) }
        })
        .await;
        stop.store(true, Ordering::Relaxed);
    };
    let writers =
        futures::future::join_all((0..WRITERS).map(|first| writes(&client, first, &stop)));
    let (written, listed, asked, ()) =
        tokio::join!(writers, listings(&client, &steady, &stop), queries(&client, &stop), growing);
    let gap = written.iter().map(|(_, gap)| *gap).max().unwrap();
    let mut anchors = steady;
    anchors.extend(written.into_iter().flat_map(|(written, _)| written));
    println!(
        "{} anchors written beside {listed} listings and {asked} queries: no error, longest wait \
         of a writer {gap:?}",
        anchors.len()
    );
    // Without the load it comes to rest: nothing too large is left, and nothing is under way.
    until("every shard is small and nothing is under way", || async {
        let sizes: Vec<u64> =
            shards(&admin, &account).await.iter().map(|shard| shard.anchors).collect();
        let plan = admin.list_operators(Default::default()).await.unwrap();
        let is_small = sizes.iter().all(|anchors| *anchors <= 150);
        if is_small && plan.operators.is_empty() { Ok(()) } else { Err((sizes, plan)) }
    })
    .await;
    let mut expected: Vec<&String> = anchors.iter().map(|anchor| &anchor.id).collect();
    expected.sort();
    assert!(list(&client, 100).await.iter().eq(expected), "what was written is what is listed");
    for number in 0..40 {
        nearest(&client, &anchors, number * 7, true).await;
    }
}
