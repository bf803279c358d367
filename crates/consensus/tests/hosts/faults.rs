use std::time::Duration;

use anchorhold_consensus::{ConsensusConfig, ReadLevel};
use anchorhold_storage::LogStore as _;

use crate::support::{PATIENCE, TestCluster, anchor, eventually};

fn small_snapshots() -> ConsensusConfig {
    ConsensusConfig {
        snapshot_entries: 40,
        snapshot_entries_kept: 5,
        checkpoint_interval_ms: 50,
        ..ConsensusConfig::default()
    }
}

async fn check_all(
    cluster: &TestCluster,
    shard: anchorhold_model::ShardId,
    ids: &[anchorhold_model::AnchorId],
) {
    for node in &cluster.nodes {
        let replica = eventually("the replica is open", || node.host().replica(shard)).await;
        replica.read_barrier(ReadLevel::Linearizable, PATIENCE).await.unwrap();
        for id in ids {
            assert!(replica.anchor(*id).unwrap().is_some(), "{id} is lost");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_and_nothing_is_lost() {
    let mut cluster = TestCluster::start(3).await;
    let shard = cluster.create_account("a", Vec::new()).await[0];
    let mut ids = Vec::new();
    for round in 0..3 {
        for item in 0..20 {
            ids.push(cluster.write(shard, round * 1_000 + item).await);
        }
        let leader = cluster.leader_of(shard).await;
        cluster.nodes[leader].crash(true).await;
        for item in 20..40 {
            ids.push(cluster.write(shard, round * 1_000 + item).await);
        }
        cluster.restart(leader).await;
        check_all(&cluster, shard, &ids).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_process_has_ended_is_replaced_without_an_election_timeout() {
    // Longer than any test waits.
    let config = ConsensusConfig {
        election_timeout_ms_min: 600_000,
        election_timeout_ms_max: 900_000,
        ..ConsensusConfig::default()
    };
    let mut cluster = TestCluster::start_with(3, config).await;
    let shard = cluster.create_account("a", Vec::new()).await[0];
    cluster.write(shard, 1).await;
    let leader = cluster.leader_of(shard).await;
    cluster.nodes[leader].crash(false).await;
    cluster.led_by_another(shard, leader).await;
    cluster.write(shard, 2).await;
    cluster.restart(leader).await;
    check_all(&cluster, shard, &[anchor(1).id, anchor(2).id]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_lose_power_at_once_and_nothing_is_lost() {
    let mut cluster = TestCluster::start(3).await;
    let shard = cluster.create_account("a", Vec::new()).await[0];
    let mut ids = Vec::new();
    for round in 0..3 {
        for item in 0..30 {
            ids.push(cluster.write(shard, round * 1_000 + item).await);
        }
        for number in 0..3 {
            cluster.nodes[number].crash(true).await;
        }
        for number in 0..3 {
            cluster.restart(number).await;
        }
        cluster.leader_of(shard).await;
        check_all(&cluster, shard, &ids).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_too_long_comes_back_by_snapshot() {
    let mut cluster = TestCluster::start_with(3, small_snapshots()).await;
    let shard = cluster.create_account("a", Vec::new()).await[0];
    let mut ids = vec![cluster.write(shard, 0).await];
    let away = (cluster.leader_of(shard).await + 1) % 3;
    cluster.nodes[away].crash(true).await;
    for item in 1..200 {
        ids.push(cluster.write(shard, item).await);
    }
    // A snapshot alone is not enough: openraft purges when no replication that is on its way needs
    // the entries. And whoever leads by then must have purged them.
    for number in (0..3).filter(|number| *number != away) {
        let log = &cluster.nodes[number].disk.log;
        eventually("the log is purged", || {
            let purged = |group| log.group(group).and_then(|log| log.purged);
            let mut groups = log.groups().into_iter().filter(|group| group.shard == shard.0);
            groups.find_map(purged).filter(|purged| 100 < purged.index)
        })
        .await;
    }
    cluster.restart(away).await;
    check_all(&cluster, shard, &ids).await;
    // The listener is told by a task of its own; twice if the leader purged its log once more while
    // the first snapshot was on its way.
    let heard = cluster.nodes[away].heard.clone();
    let by_log = heard.anchors.lock().len();
    assert!(by_log < 100, "{by_log} anchors came by the log");
    eventually("the listener is told", || {
        let replaced = heard.replaced.lock();
        assert!(replaced.iter().all(|told| *told == shard), "{replaced:?}");
        (!replaced.is_empty()).then_some(())
    })
    .await;
    // And once more after losing power right away: what was installed is durable.
    cluster.nodes[away].crash(true).await;
    cluster.restart(away).await;
    check_all(&cluster, shard, &ids).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_state_is_rebuilt_from_snapshot_and_log() {
    let mut cluster = TestCluster::start_with(3, small_snapshots()).await;
    let shard = cluster.create_account("a", Vec::new()).await[0];
    let mut ids = Vec::new();
    for item in 0..150 {
        ids.push(cluster.write(shard, item).await);
    }
    let leader = cluster.leader_of(shard).await;
    let follower = (leader + 1) % 3;
    cluster.nodes[follower].crash(true).await;
    cluster.nodes[follower].disk.state =
        std::sync::Arc::new(anchorhold_storage::MemoryState::new());
    cluster.restart(follower).await;
    check_all(&cluster, shard, &ids).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_stop_hands_leadership_over_at_once() {
    let mut cluster = TestCluster::start(3).await;
    let shard = cluster.create_account("a", Vec::new()).await[0];
    cluster.write(shard, 0).await;
    let leader = cluster.leader_of(shard).await;
    cluster.nodes[leader].host().clone().shutdown().await;
    cluster.nodes[leader].crash(false).await;
    let next = cluster.leader_of(shard).await;
    assert_ne!(next, leader);
    // An election would have waited for the lease at least; a transfer has a term of one more.
    let term = cluster.nodes[next].host().replica(shard).unwrap().status().term;
    assert!(term <= 3, "term {term}");
    tokio::time::timeout(Duration::from_secs(10), cluster.write(shard, 1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_whose_nodes_crash_before_it_is_founded_is_founded_after_their_restart() {
    let mut cluster = TestCluster::start(3).await;
    let shard = cluster.create_account_unled("a", Vec::new()).await[0];
    for node in &cluster.nodes {
        eventually("the replica is there", || node.host().replica(shard)).await;
    }
    // The preferred first leader waits a little before it founds the group.
    for number in 0..3 {
        cluster.nodes[number].crash(true).await;
    }
    for number in 0..3 {
        cluster.restart(number).await;
    }
    let id = cluster.write(shard, 1).await;
    check_all(&cluster, shard, &[id]).await;
}
