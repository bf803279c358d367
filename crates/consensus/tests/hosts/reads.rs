use std::time::Duration;

use anchorhold_consensus::{ReadError, ReadLevel};

use crate::support::{PATIENCE, TestCluster};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_linearizable_read_on_any_replica_sees_the_write_before_it() {
    let cluster = TestCluster::start(3).await;
    let shard = cluster.create_account("a", Vec::new()).await[0];
    for item in 0..30 {
        let id = cluster.write(shard, item).await;
        for node in &cluster.nodes {
            let replica = node.host().replica(shard).unwrap();
            let view = replica.read_barrier(ReadLevel::Linearizable, PATIENCE).await.unwrap();
            assert_eq!(view.staleness, Some(Duration::ZERO));
            assert!(replica.anchor(id).unwrap().is_some(), "item {item}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bounded_read_is_never_staler_than_said() {
    let cluster = TestCluster::start(3).await;
    let shard = cluster.create_account("a", Vec::new()).await[0];
    let bound = Duration::from_millis(500);
    let level = ReadLevel::BoundedStaleness { staleness_max: bound };
    for item in 0..30 {
        let id = cluster.write(shard, item).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        for node in &cluster.nodes {
            let replica = node.host().replica(shard).unwrap();
            let view = replica.read_barrier(level, PATIENCE).await.unwrap();
            let staleness = view.staleness.unwrap();
            assert!(staleness <= bound);
            // What was acknowledged before the view's moment must be in it.
            if staleness < Duration::from_millis(20) {
                assert!(replica.anchor(id).unwrap().is_some(), "item {item}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_only_local_reads_are_served() {
    let mut cluster = TestCluster::start(3).await;
    let shard = cluster.create_account("a", Vec::new()).await[0];
    let id = cluster.write(shard, 1).await;
    let kept = cluster.leader_of(shard).await;
    for number in (0..3).filter(|number| *number != kept) {
        cluster.nodes[number].crash(false).await;
    }
    let replica = cluster.nodes[kept].host().replica(shard).unwrap();
    let short = Duration::from_secs(2);
    let refused = replica.read_barrier(ReadLevel::Linearizable, short).await;
    assert!(matches!(refused, Err(ReadError::NoLeader { .. })), "{refused:?}");
    let level = ReadLevel::BoundedStaleness { staleness_max: Duration::from_millis(1) };
    assert!(replica.read_barrier(level, short).await.is_err());
    assert!(replica.read_barrier(ReadLevel::Local, short).await.is_ok());
    assert!(replica.anchor(id).unwrap().is_some());
}
