use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::Duration;

use anchorhold_consensus::ProposeError;
use anchorhold_model::{Command, Epoch, Key, KeyRange, OperationId, RequestId, Write};

use crate::support::{TestCluster, anchor, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_reaches_every_replica_and_its_listener() {
    let cluster = TestCluster::start(3).await;
    let shard = cluster.create_account("a", Vec::new()).await[0];
    let mut written = BTreeSet::new();
    for item in 0..50 {
        written.insert(cluster.write(shard, item).await);
    }
    for node in &cluster.nodes {
        let replica = node.host().replica(shard).unwrap();
        eventually("all are applied", || {
            let mut found = BTreeSet::new();
            replica
                .scan_anchors(KeyRange { start: Key(0), end: None }, &mut |anchor| {
                    found.insert(anchor.id);
                    ControlFlow::Continue(())
                })
                .unwrap();
            // Rows are seen before the state that counts them, and before the listener is told.
            let counted = replica.state().anchors;
            let heard = node.heard.anchors.lock().len();
            assert!(counted <= 50 && heard <= 50, "{counted} counted, {heard} heard");
            (found == written && counted == 50 && heard == 50).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_wait_together_share_entries() {
    let cluster = TestCluster::start(3).await;
    let shard = cluster.create_account("a", Vec::new()).await[0];
    cluster.write(shard, 0).await;
    let leader = cluster.leader_of(shard).await;
    let replica = cluster.nodes[leader].host().replica(shard).unwrap();
    let before = replica.status().last_index.unwrap();
    let writes = (1..=500).map(|item| cluster.write(shard, item));
    futures::future::join_all(writes).await;
    let entries = replica.status().last_index.unwrap() - before;
    assert!(entries < 100, "500 writes took {entries} entries");
    assert_eq!(replica.state().anchors, 501);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_epoch_is_refused_with_the_descriptor() {
    let cluster = TestCluster::start(1).await;
    let shard = cluster.create_account("a", Vec::new()).await[0];
    let replica = cluster.nodes[0].host().replica(shard).unwrap();
    let command = Command {
        operation: OperationId { request_id: RequestId(1), item: 0 },
        epoch: Epoch { version: 99, ..replica.state().descriptor.epoch },
        write: Write::Create(Box::new(anchor(1))),
    };
    match replica.propose(vec![command], Duration::from_secs(5)).await {
        Err(ProposeError::StaleEpoch { descriptor, .. }) => {
            assert_eq!(*descriptor, replica.state().descriptor);
        }
        other => panic!("{other:?}"),
    }
}
