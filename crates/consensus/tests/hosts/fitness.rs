//! Nodes that should not lead: full disks, stalled disks, clocks that are off.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anchorhold_consensus::{ConsensusConfig, ProposeError, Trouble};
use anchorhold_model::{Command, OperationId, Outcome, RequestId, ShardId, Write};
use anchorhold_storage::DiskState;

use crate::support::{PATIENCE, TestCluster, anchor, eventually};

/// One write at whoever leads, once.
pub(crate) async fn try_write(
    cluster: &TestCluster,
    shard: ShardId,
    number: u128,
    write: Write,
) -> Result<Outcome, ProposeError> {
    let leader = cluster.leader_of(shard).await;
    let replica = cluster.nodes[leader].host().replica(shard).unwrap();
    let command = Command {
        operation: OperationId { request_id: RequestId(number), item: 0 },
        epoch: replica.state().descriptor.epoch,
        write,
    };
    let outcomes = replica.propose(vec![command], Duration::from_secs(5)).await?;
    Ok(outcomes.into_iter().next().unwrap())
}

/// Waits until a create is refused for want of space.
async fn wait_refused(cluster: &TestCluster, shard: ShardId) {
    let refused = async {
        for number in 5_000.. {
            let create = Write::Create(Box::new(anchor(number)));
            match try_write(cluster, shard, u128::from(number), create).await {
                Err(ProposeError::DiskFull { .. }) => return,
                Ok(_)
                | Err(ProposeError::NotLeader { .. } | ProposeError::OutcomeUnknown { .. }) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("never refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_leave_a_disk_that_is_almost_full_and_writes_go_on_elsewhere() {
    let cluster = TestCluster::start(3).await;
    let shard = cluster.create_account("a", Vec::new()).await[0];
    cluster.write(shard, 1).await;
    let leader = cluster.leader_of(shard).await;
    cluster.nodes[leader].host().set_disk_state(DiskState::AlmostFull, u64::MAX);
    let next = cluster.led_by_another(shard, leader).await;
    let id = cluster.write(shard, 2).await;
    // It still follows.
    let replica = cluster.nodes[leader].host().replica(shard).unwrap();
    eventually("the entry is applied", || replica.anchor(id).unwrap()).await;
    let host = cluster.nodes[next].host();
    let full = cluster.nodes[leader].identity.node_id;
    eventually("it is heard of", || (!host.has_room(full)).then_some(())).await;
    assert!(host.has_room(host.identity().node_id));
    assert_eq!(host.fitness_report().troubles, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_room_for_a_quorum_data_is_refused_and_deletes_work_until_there_is_room() {
    let cluster = TestCluster::start(3).await;
    let shard = cluster.create_account("a", Vec::new()).await[0];
    let id = cluster.write(shard, 1).await;
    for (number, state) in
        [(0, DiskState::AlmostFull), (1, DiskState::Full), (2, DiskState::AlmostFull)]
    {
        cluster.nodes[number].host().set_disk_state(state, u64::MAX);
    }
    wait_refused(&cluster, shard).await;
    let outcome = eventually_written(&cluster, shard, Write::Delete { id, if_version: None }).await;
    assert!(matches!(outcome, Outcome::Deleted { .. }), "{outcome:?}");
    for node in &cluster.nodes {
        node.host().set_disk_state(DiskState::Normal, u64::MAX);
    }
    let again = eventually_written(&cluster, shard, Write::Create(Box::new(anchor(2)))).await;
    assert!(matches!(again, Outcome::Written { .. }), "{again:?}");
}

/// Tries a write until it has an outcome.
async fn eventually_written(cluster: &TestCluster, shard: ShardId, write: Write) -> Outcome {
    let tried = async {
        loop {
            match try_write(cluster, shard, 77, write.clone()).await {
                Ok(outcome) => return outcome,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, tried).await.expect("never written")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_node_stores_nothing_that_others_can_and_catches_up_by_itself() {
    let cluster = TestCluster::start(3).await;
    let shard = cluster.create_account("a", Vec::new()).await[0];
    cluster.write(shard, 1).await;
    let full = (cluster.leader_of(shard).await + 1) % 3;
    cluster.nodes[full].host().set_disk_state(DiskState::Full, 0);
    let replica = cluster.nodes[full].host().replica(shard).unwrap();
    // From some moment on, its log does not grow any more.
    let mut number = 100;
    let stands_still = async {
        loop {
            let before = replica.status().last_index;
            for _ in 0..20 {
                cluster.write(shard, number).await;
                number += 1;
            }
            if replica.status().last_index == before {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, stands_still).await.expect("it goes on storing");
    cluster.nodes[full].host().set_disk_state(DiskState::Normal, u64::MAX);
    let last = anchor(number - 1).id;
    eventually("it has caught up", || replica.anchor(last).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_clock_is_off_gives_its_leaderships_away() {
    let cluster = TestCluster::start(3).await;
    let shard = cluster.create_account("a", Vec::new()).await[0];
    cluster.write(shard, 1).await;
    let leader = cluster.leader_of(shard).await;
    cluster.nodes[leader].disk.wall_ahead_ms.store(10_000, Ordering::Relaxed);
    let next = cluster.led_by_another(shard, leader).await;
    cluster.write(shard, 2).await;
    let report = cluster.nodes[leader].host().fitness_report();
    assert_eq!(report.troubles, [Trouble::ClockOff]);
    assert!(report.clock_offset_ms.is_some_and(|offset| 9_000 < offset), "{report:?}");
    assert_eq!(cluster.nodes[next].host().fitness_report().troubles, []);
    // Set right again, it may lead again.
    cluster.nodes[leader].disk.wall_ahead_ms.store(0, Ordering::Relaxed);
    let host = cluster.nodes[leader].host();
    eventually("it is fit", || host.fitness_report().troubles.is_empty().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disk_does_not_answer_gives_its_leaderships_away() {
    let config = ConsensusConfig { log_stall_ms: 500, ..ConsensusConfig::default() };
    let cluster = TestCluster::start_with(3, config).await;
    let shard = cluster.create_account("a", Vec::new()).await[0];
    cluster.write(shard, 1).await;
    let leader = cluster.leader_of(shard).await;
    cluster.nodes[leader].disk.stall.begin();
    // This write is what makes the stall show; the others can commit it.
    let replica = cluster.nodes[leader].host().replica(shard).unwrap();
    let command = Command {
        operation: OperationId { request_id: RequestId(9), item: 0 },
        epoch: replica.state().descriptor.epoch,
        write: Write::Create(Box::new(anchor(9))),
    };
    let waiting = replica.propose(vec![command], 100 * PATIENCE);
    let given_back = tokio::time::timeout(PATIENCE, waiting).await.expect("it waits for the disk");
    assert!(matches!(given_back, Err(ProposeError::OutcomeUnknown { .. })), "{given_back:?}");
    cluster.led_by_another(shard, leader).await;
    assert!(cluster.nodes[leader].host().fitness_report().troubles.contains(&Trouble::DiskStalled));
    cluster.nodes[leader].disk.stall.end();
    let host = cluster.nodes[leader].host();
    eventually("it is fit", || host.fitness_report().troubles.is_empty().then_some(())).await;
    let id = cluster.write(shard, 10).await;
    eventually("it follows again", || replica.anchor(id).unwrap()).await;
}
