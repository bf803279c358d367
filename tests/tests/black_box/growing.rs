//! A shard that grows beyond its limit under a load of the SDK is split without anybody asking.

use anchorhold_tests::cluster::TestCluster;
use anchorhold_tests::wait::until;

use crate::faults::client;
use crate::split::{check_all, fill, operator, shards, under_load};

const SMALL_SHARDS: &str = "[placement]\ninterval_ms = 200\nsplit_anchors = 150\n\
                            split_settle_ms = 1000\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_growing_shard_splits_by_itself_and_no_client_sees_an_error() {
    let cluster = TestCluster::start(SMALL_SHARDS).await.unwrap();
    let account = cluster.account(1).await.unwrap();
    let (client, admin) = (client(&cluster, &account).await, operator(&cluster));
    let steady = fill(&client, 100).await;
    assert_eq!(shards(&admin, &account).await.len(), 1, "within the limit nothing is split");
    let growing = async {
        until("the halves are split too", || async {
            let count = shards(&admin, &account).await.len();
            if 4 <= count { Ok(()) } else { Err(count) }
        })
        .await;
    };
    let anchors = under_load(&client, steady, growing).await;
    // Without the load it comes to rest: nothing too large is left, and nothing is under way.
    until("every shard is small and nothing is under way", || async {
        let sizes: Vec<u64> =
            shards(&admin, &account).await.iter().map(|shard| shard.anchors).collect();
        let plan = admin.list_operators(Default::default()).await.unwrap();
        let is_small = sizes.iter().all(|anchors| *anchors <= 150);
        if is_small && plan.operators.is_empty() { Ok(()) } else { Err((sizes, plan)) }
    })
    .await;
    check_all(&client, &anchors).await;
}
