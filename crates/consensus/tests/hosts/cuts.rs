//! Links that are cut: who leads then, and who says so.

use std::time::Duration;

use anchorhold_consensus::{ConsensusConfig, ProposeError, ReadLevel};
use anchorhold_model::{Command, OperationId, RequestId, ShardId, Write};

use crate::support::{PATIENCE, TestCluster, anchor, eventually};

/// Timers so long that no election starts by itself while a test looks.
fn slow_elections() -> ConsensusConfig {
    ConsensusConfig {
        election_timeout_ms_min: 2_000,
        election_timeout_ms_max: 4_000,
        ..ConsensusConfig::default()
    }
}

fn deafen(cluster: &TestCluster, node: usize) {
    let deaf = &cluster.nodes[node].address;
    for other in cluster.nodes.iter().filter(|other| other.address != *deaf) {
        cluster.wires.cut(&other.address, deaf);
    }
}

fn silence(cluster: &TestCluster, node: usize) {
    let mute = &cluster.nodes[node].address;
    for other in cluster.nodes.iter().filter(|other| other.address != *mute) {
        cluster.wires.cut(mute, &other.address);
    }
}

/// A write at one node, whoever leads.
async fn propose_at(
    cluster: &TestCluster,
    node: usize,
    shard: ShardId,
    item: u64,
    timeout: Duration,
) -> Result<(), ProposeError> {
    let replica = cluster.nodes[node].host().replica(shard).unwrap();
    let command = Command {
        operation: OperationId { request_id: RequestId(u128::from(item)), item: 0 },
        epoch: replica.state().descriptor.epoch,
        write: Write::Create(Box::new(anchor(item))),
    };
    replica.propose(vec![command], timeout).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_hears_nobody_is_replaced_although_it_goes_on_speaking() {
    let cluster = TestCluster::start(3).await;
    let shard = cluster.create_account("a", Vec::new()).await[0];
    cluster.write(shard, 1).await;
    let leader = cluster.leader_of(shard).await;
    deafen(&cluster, leader);
    cluster.led_by_another(shard, leader).await;
    let replica = cluster.nodes[leader].host().replica(shard).unwrap();
    eventually("it does not call itself the leader", || {
        (!replica.is_leader() && replica.leader().is_none()).then_some(())
    })
    .await;
    // Who was elected may refuse until it has heard a quorum, or be followed by another.
    let id = cluster.write(shard, 2).await;
    cluster.wires.heal();
    eventually("it follows the new leader", || replica.anchor(id).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_waits_for_a_leader_without_a_quorum_is_given_back_long_before_its_time() {
    let cluster = TestCluster::start_with(3, slow_elections()).await;
    let shard = cluster.create_account("a", Vec::new()).await[0];
    cluster.write(shard, 1).await;
    let leader = cluster.leader_of(shard).await;
    deafen(&cluster, leader);
    silence(&cluster, leader);
    // Taken while the lease was still valid, so nobody refuses it.
    let waiting = propose_at(&cluster, leader, shard, 2, 100 * PATIENCE);
    let result = tokio::time::timeout(PATIENCE, waiting).await.expect("it waits for ever");
    assert!(
        matches!(
            result,
            Err(ProposeError::OutcomeUnknown { .. } | ProposeError::NotLeader { leader: None, .. })
        ),
        "{result:?}"
    );
    let replica = cluster.nodes[leader].host().replica(shard).unwrap();
    let read = replica.read_barrier(ReadLevel::Linearizable, Duration::from_millis(100)).await;
    assert!(read.is_err(), "a read without a quorum");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_voter_leads_whoever_follows_it() {
    let mut cluster = TestCluster::start(2).await;
    cluster.nodes[1].crash(false).await;
    let catalog = cluster.nodes[0].host().catalog_replica();
    // Many times as long as a lease.
    for _ in 0..100 {
        assert!(catalog.is_leader() && catalog.leader().is_some());
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_hears_nobody_disturbs_no_leader() {
    let cluster = TestCluster::start(3).await;
    let shard = cluster.create_account("a", Vec::new()).await[0];
    cluster.write(shard, 1).await;
    let leader = cluster.leader_of(shard).await;
    let term = |node: usize| cluster.nodes[node].host().replica(shard).unwrap().status().term;
    let before = term(leader);
    deafen(&cluster, (leader + 1) % 3);
    // Many times as long as an election takes.
    for item in 2..200 {
        cluster.write(shard, item).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!((cluster.leader_of(shard).await, term(leader)), (leader, before));
}
