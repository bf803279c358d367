//! Shards merge under a load of the SDK: no error is seen, nothing is lost, answers stay exact.

use std::time::Duration;

use anchorhold_proto::{Reason, admin_v1};
use anchorhold_tests::cluster::shared;
use anchorhold_tests::wait::until;

use crate::faults::client;
use crate::split::{check_all, fill, operator, shards, under_load};

#[tokio::test(flavor = "multi_thread")]
async fn shards_merge_under_load_and_no_client_sees_an_error() {
    let cluster = shared().await;
    let account = cluster.account(4).await.unwrap();
    let (client, admin) = (client(&cluster, &account).await, operator(&cluster));
    let steady = fill(&client, 400).await;
    let merges = async {
        for left in (1..4).rev() {
            tokio::time::sleep(Duration::from_millis(300)).await;
            // In key order: first one in the middle, then what is on its right, then the last two.
            let present = shards(&admin, &account).await;
            let source = &present[if left == 3 { 1 } else { left }];
            let request = admin_v1::MergeShardRequest { shard_id: source.shard_id };
            let target = until("the merge is under way", || async {
                // The planner may be moving a leader of one of them.
                admin.merge_shard(request).await.map_err(|error| error.to_string())
            })
            .await;
            until("the shard is part of its neighbour", || async {
                let present = shards(&admin, &account).await;
                if present.len() == left { Ok(()) } else { Err(present.len()) }
            })
            .await;
            // The same request again: the same answer.
            assert_eq!(admin.merge_shard(request).await.unwrap(), target);
            // Beyond the building of the merged shard's own index.
            tokio::time::sleep(Duration::from_millis(1_300)).await;
        }
    };
    let anchors = under_load(&client, steady, merges).await;
    check_all(&client, &anchors).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_merged_is_refused_with_the_reason() {
    let cluster = shared().await;
    let account = cluster.account(2).await.unwrap();
    let admin = operator(&cluster);
    let present = shards(&admin, &account).await;
    let reason = async |shard_id: u64| {
        admin.merge_shard(admin_v1::MergeShardRequest { shard_id }).await.unwrap_err().reason()
    };
    assert_eq!(reason(u64::MAX).await, Some(Reason::ShardNotFound));
    assert_eq!(reason(present[0].shard_id).await, Some(Reason::MergeImpossible), "the first one");
    assert_eq!(shards(&admin, &account).await.len(), 2);
}
