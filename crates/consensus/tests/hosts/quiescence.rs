//! Shards that rest because nothing is asked of them: who leads then, and who notices what.

use std::sync::Arc;
use std::time::Duration;

use anchorhold_consensus::{ConsensusConfig, ReadLevel, Replica};
use anchorhold_model::{Key, ShardId};

use crate::support::{PATIENCE, TestCluster, eventually};

fn restful() -> ConsensusConfig {
    ConsensusConfig { quiesce_after_ms: 300, ..ConsensusConfig::default() }
}

fn replicas(cluster: &TestCluster, shard: ShardId) -> Vec<Arc<Replica>> {
    let running = cluster.nodes.iter().filter(|node| node.running.is_some());
    running.filter_map(|node| node.host().replica(shard)).collect()
}

/// Waits until every replica of a shard rests; returns the term.
async fn rests(cluster: &TestCluster, shard: ShardId, count: usize) -> u64 {
    eventually("the shard rests", || {
        let replicas = replicas(cluster, shard);
        let resting = replicas.iter().filter(|replica| replica.is_quiesced()).count();
        (resting == count && replicas.len() == count).then(|| replicas[0].status().term)
    })
    .await
}

async fn start(count: usize) -> (TestCluster, ShardId, usize) {
    let cluster = TestCluster::start_with(count, restful()).await;
    let shard = cluster.create_account("a", Vec::new()).await[0];
    cluster.write(shard, 1).await;
    rests(&cluster, shard, 3).await;
    let leader = cluster.leader_of(shard).await;
    (cluster, shard, leader)
}

fn cut_both(cluster: &TestCluster, one: usize, other: usize) {
    let (one, other) = (&cluster.nodes[one].address, &cluster.nodes[other].address);
    cluster.wires.cut(one, other);
    cluster.wires.cut(other, one);
}

fn term(cluster: &TestCluster, node: usize, shard: ShardId) -> u64 {
    cluster.nodes[node].host().replica(shard).unwrap().status().term
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_shard_rests_for_good_and_is_led_all_the_while() {
    let (cluster, shard, leader) = start(3).await;
    let before = term(&cluster, leader, shard);
    // Many times as long as an election takes.
    for _ in 0..100 {
        let replicas = replicas(&cluster, shard);
        assert!(replicas.iter().all(|replica| replica.is_quiesced()), "one woke");
        let leaders: Vec<_> = replicas.iter().map(|replica| replica.leader()).collect();
        assert!(leaders.iter().all(|known| known.is_some() && *known == leaders[0]), "{leaders:?}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    assert!(replicas(&cluster, shard)[leader].is_leader());
    // The catalog never does.
    assert!(cluster.nodes.iter().all(|node| !node.host().catalog_replica().is_quiesced()));
    assert_eq!(term(&cluster, leader, shard), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_and_reads_wake_a_shard_and_it_rests_again() {
    let (cluster, shard, leader) = start(3).await;
    let before = term(&cluster, leader, shard);
    let read = |node: usize, level| {
        let replica = cluster.nodes[node].host().replica(shard).unwrap();
        async move { replica.read_barrier(level, PATIENCE).await.unwrap() }
    };
    let id = cluster.write(shard, 2).await;
    // Awake again, or on the way to it: who lags behind would not rest.
    rests(&cluster, shard, 3).await;
    let all = replicas(&cluster, shard);
    assert!(all.iter().all(|replica| replica.anchor(id).unwrap().is_some()));
    for node in [leader, (leader + 1) % 3] {
        read(node, ReadLevel::Linearizable).await;
        rests(&cluster, shard, 3).await;
        let staleness_max = Duration::from_millis(200);
        read(node, ReadLevel::BoundedStaleness { staleness_max }).await;
        rests(&cluster, shard, 3).await;
    }
    assert_eq!((cluster.leader_of(shard).await, term(&cluster, leader, shard)), (leader, before));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_wake_a_shard_together() {
    let (cluster, shard, leader) = start(3).await;
    let before = term(&cluster, leader, shard);
    let cluster = Arc::new(cluster);
    let writes = (2..66).map(|item| {
        let cluster = Arc::clone(&cluster);
        tokio::spawn(async move { cluster.write(shard, item).await })
    });
    for id in futures::future::join_all(writes).await {
        assert!(replicas(&cluster, shard)[leader].anchor(id.unwrap()).unwrap().is_some());
    }
    assert_eq!(term(&cluster, leader, shard), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_of_a_resting_shard_is_replaced_when_its_node_ends() {
    let (mut cluster, shard, leader) = start(3).await;
    cluster.nodes[leader].crash(false).await;
    cluster.led_by_another(shard, leader).await;
    cluster.write(shard, 2).await;
    // The node that is away keeps nobody awake.
    rests(&cluster, shard, 2).await;
    cluster.restart(leader).await;
    rests(&cluster, shard, 3).await;
    cluster.write(shard, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_of_a_resting_shard_is_replaced_when_its_node_falls_silent() {
    let cluster = TestCluster::start_with(3, restful()).await;
    let cuts = (1..8).map(|n| Key((1 << 96) + (n << 90))).collect();
    let shards = cluster.create_account("a", cuts).await;
    for shard in &shards {
        rests(&cluster, *shard, 3).await;
    }
    let leader = cluster.leader_of(shards[0]).await;
    for other in (0..3).filter(|other| *other != leader) {
        cut_both(&cluster, leader, other);
    }
    for shard in &shards {
        cluster.led_by_another(*shard, leader).await;
    }
    let replica = cluster.nodes[leader].host().replica(shards[0]).unwrap();
    eventually("it does not call itself the leader", || (!replica.is_leader()).then_some(())).await;
    cluster.wires.heal();
    for shard in &shards {
        rests(&cluster, *shard, 3).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_starts_again_disturbs_no_leader_that_rests() {
    let (mut cluster, shard, leader) = start(3).await;
    let before = term(&cluster, leader, shard);
    let follower = (leader + 1) % 3;
    for _ in 0..3 {
        cluster.nodes[follower].crash(false).await;
        cluster.restart(follower).await;
        // Several times as long as until it would campaign: nobody has to be woken.
        for _ in 0..100 {
            assert!(replicas(&cluster, shard).iter().all(|replica| replica.is_quiesced()));
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        let led = (cluster.leader_of(shard).await, term(&cluster, leader, shard));
        assert_eq!(led, (leader, before));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_has_to_apply_again_is_told_what_is_committed_though_its_leader_rests() {
    // What was applied since the start is in no checkpoint.
    let config = ConsensusConfig { checkpoint_interval_ms: 3_600_000, ..restful() };
    let mut cluster = TestCluster::start_with(3, config).await;
    let shard = cluster.create_account("a", Vec::new()).await[0];
    let id = cluster.write(shard, 1).await;
    rests(&cluster, shard, 3).await;
    let leader = cluster.leader_of(shard).await;
    let follower = (leader + 1) % 3;
    cluster.nodes[follower].crash(true).await;
    cluster.restart(follower).await;
    eventually("it has the anchor again", || {
        let replica = cluster.nodes[follower].host().replica(shard)?;
        replica.anchor(id).unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_has_lost_its_link_to_the_leader_disturbs_nobody() {
    let (cluster, shard, leader) = start(3).await;
    let before = term(&cluster, leader, shard);
    let follower = (leader + 1) % 3;
    cut_both(&cluster, leader, follower);
    let replica = cluster.nodes[follower].host().replica(shard).unwrap();
    eventually("it wakes", || (!replica.is_quiesced()).then_some(())).await;
    // Many times as long as an election takes.
    for _ in 0..100 {
        assert_eq!(term(&cluster, leader, shard), before);
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    cluster.wires.heal();
    rests(&cluster, shard, 3).await;
    let led = (cluster.leader_of(shard).await, term(&cluster, leader, shard));
    assert_eq!(led, (leader, before));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_starts_again_leads_again_or_is_replaced() {
    let (mut cluster, shard, leader) = start(3).await;
    for item in 2..5 {
        cluster.nodes[leader].crash(false).await;
        cluster.restart(leader).await;
        cluster.write(shard, item).await;
        rests(&cluster, shard, 3).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_cluster_that_rested_is_led_after_it_starts_again() {
    let (mut cluster, shard, _) = start(3).await;
    for node in &mut cluster.nodes {
        node.crash(true).await;
    }
    for number in 0..3 {
        cluster.restart(number).await;
    }
    cluster.write(shard, 2).await;
    rests(&cluster, shard, 3).await;
}
