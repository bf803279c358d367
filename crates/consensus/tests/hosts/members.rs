//! Replicas come and go: step by step, again, from wherever it broke off.

use std::sync::Arc;

use anchorhold_consensus::{MemberChange, MemberError, Replica};
use anchorhold_model::{Epoch, NodeId, ReplicaId, ShardId};

use crate::support::{TestCluster, eventually};

const NEW_ID: ReplicaId = ReplicaId(1 << 48 | 16);

/// Four nodes; a shard on the first three with some anchors.
async fn with_a_shard() -> (TestCluster, ShardId) {
    let cluster = TestCluster::start(4).await;
    let shard = cluster.create_account("one", Vec::new()).await[0];
    for item in 0..20 {
        cluster.write(shard, item).await;
    }
    (cluster, shard)
}

fn node(cluster: &TestCluster, number: usize) -> NodeId {
    cluster.nodes[number].identity.node_id
}

fn epoch(cluster: &TestCluster, leader: usize, shard: ShardId) -> Epoch {
    cluster.nodes[leader].host().replica(shard).unwrap().state().descriptor.epoch
}

/// Makes a change wherever the leader is, as often as it takes.
async fn change(cluster: &TestCluster, shard: ShardId, change: &MemberChange) {
    let mut last = None;
    for _ in 0..200 {
        let leader = cluster.leader_of(shard).await;
        let expected = epoch(cluster, leader, shard);
        match cluster.nodes[leader].host().change_members(shard, expected, change).await {
            Ok(_) => return,
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("never made: {change:?}: {last:?}");
}

fn replica(cluster: &TestCluster, number: usize, shard: ShardId) -> Option<Arc<Replica>> {
    cluster.nodes[number].running.as_ref()?.host.replica(shard)
}

fn add(cluster: &TestCluster, number: usize, replica_id: ReplicaId) -> MemberChange {
    MemberChange::AddLearner { node: node(cluster, number), replica_id }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_moves_by_steps_that_may_each_be_taken_twice() {
    let (mut cluster, shard) = with_a_shard().await;
    let leader = cluster.leader_of(shard).await;
    let victim = (0..3).find(|number| *number != leader).unwrap();
    let added = add(&cluster, 3, NEW_ID);
    change(&cluster, shard, &added).await;
    change(&cluster, shard, &added).await;
    let swap = MemberChange::ChangeVoters {
        add: vec![node(&cluster, 3)],
        remove: vec![node(&cluster, victim)],
    };
    change(&cluster, shard, &swap).await;
    change(&cluster, shard, &swap).await;
    let remove = MemberChange::RemoveLearner { node: node(&cluster, victim) };
    change(&cluster, shard, &remove).await;
    change(&cluster, shard, &remove).await;
    eventually("the old replica is destroyed", || {
        replica(&cluster, victim, shard).is_none().then_some(())
    })
    .await;
    eventually("every node's catalog knows the new members", || {
        let is_known = cluster.nodes.iter().all(|one| {
            let catalog = one.host().catalog();
            let catalog = catalog.borrow();
            let members = &catalog.shards[&shard].replicas;
            members.len() == 3
                && members.iter().any(|member| member.replica_id == NEW_ID)
                && members.iter().all(|member| member.node_id != node(&cluster, victim))
        });
        is_known.then_some(())
    })
    .await;
    // The destroyed replica does not come back with its node, nor does its id.
    cluster.nodes[victim].crash(true).await;
    cluster.restart(victim).await;
    cluster.write(shard, 30).await;
    assert!(replica(&cluster, victim, shard).is_none());
    let state = replica(&cluster, 3, shard).unwrap().state();
    assert!(state.descriptor.replica(NEW_ID).is_some());
    // The new one's vote counts: with another one gone there is still a quorum.
    let other = (0..3).find(|number| *number != leader && *number != victim).unwrap();
    cluster.nodes[other].crash(true).await;
    for item in 31..40 {
        cluster.write(shard, item).await;
    }
    eventually("the new replica has everything", || {
        (replica(&cluster, 3, shard)?.state().anchors == 30).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_was_decided_before_the_members_changed_is_not_taken() {
    let (cluster, shard) = with_a_shard().await;
    let leader = cluster.leader_of(shard).await;
    let old = epoch(&cluster, leader, shard);
    change(&cluster, shard, &add(&cluster, 3, NEW_ID)).await;
    let leader = cluster.leader_of(shard).await;
    let host = cluster.nodes[leader].host();
    let remove = MemberChange::RemoveLearner { node: node(&cluster, 3) };
    let refused = host.change_members(shard, old, &remove).await.unwrap_err();
    assert!(matches!(refused, MemberError::Moved { current } if old < current), "{refused}");
    let follower = (0..3).find(|number| *number != leader).unwrap();
    let refused = cluster.nodes[follower].host().change_members(shard, old, &remove).await;
    assert!(matches!(refused.unwrap_err(), MemberError::NotLeader { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_replica_survives_the_death_of_its_node_and_of_the_leader() {
    let (mut cluster, shard) = with_a_shard().await;
    change(&cluster, shard, &add(&cluster, 3, NEW_ID)).await;
    // Its node dies as soon as it is a member, and the leader with it.
    cluster.nodes[3].crash(true).await;
    let leader = cluster.leader_of(shard).await;
    cluster.nodes[leader].crash(true).await;
    cluster.write(shard, 40).await;
    cluster.restart(3).await;
    cluster.restart(leader).await;
    cluster.write(shard, 41).await;
    eventually("the new replica has everything", || {
        let replica = replica(&cluster, 3, shard)?;
        (replica.replica_id() == NEW_ID && replica.state().anchors == 22).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_replica_whose_node_was_away_is_destroyed_when_it_is_back() {
    let (mut cluster, shard) = with_a_shard().await;
    let leader = cluster.leader_of(shard).await;
    let victim = (0..3).find(|number| *number != leader).unwrap();
    cluster.nodes[victim].crash(false).await;
    change(&cluster, shard, &add(&cluster, 3, NEW_ID)).await;
    let swap = MemberChange::ChangeVoters {
        add: vec![node(&cluster, 3)],
        remove: vec![node(&cluster, victim)],
    };
    change(&cluster, shard, &swap).await;
    change(&cluster, shard, &MemberChange::RemoveLearner { node: node(&cluster, victim) }).await;
    cluster.restart(victim).await;
    eventually("its copy of the catalog tells it", || {
        replica(&cluster, victim, shard).is_none().then_some(())
    })
    .await;
    // The node can hold another replica of the shard, under an id that nobody had.
    let again = ReplicaId(NEW_ID.0 + 16);
    change(&cluster, shard, &add(&cluster, victim, again)).await;
    eventually("it has everything", || {
        let replica = replica(&cluster, victim, shard)?;
        (replica.replica_id() == again && replica.state().anchors == 20).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_hands_over_only_to_a_voter_that_is_there() {
    let (mut cluster, shard) = with_a_shard().await;
    let leader = cluster.leader_of(shard).await;
    let heir = (0..3).find(|number| *number != leader).unwrap();
    let to = |cluster: &TestCluster, number| MemberChange::TransferLeader {
        node: node(cluster, number),
    };
    let expected = epoch(&cluster, leader, shard);
    let host = cluster.nodes[leader].host().clone();
    let refused = host.change_members(shard, expected, &to(&cluster, 3)).await.unwrap_err();
    assert!(matches!(refused, MemberError::Refused(_)), "{refused}");
    change(&cluster, shard, &to(&cluster, heir)).await;
    eventually("the heir leads", || replica(&cluster, heir, shard)?.is_leader().then_some(()))
        .await;
    cluster.nodes[leader].crash(false).await;
    eventually("the dead one is refused", || {
        let leads =
            |number: &usize| replica(&cluster, *number, shard).is_some_and(|r| r.is_leader());
        let now = (0..3).filter(|number| *number != leader).find(leads)?;
        let host = cluster.nodes[now].host().clone();
        let change = to(&cluster, leader);
        let expected = epoch(&cluster, now, shard);
        let asked = async move { host.change_members(shard, expected, &change).await };
        let answer =
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(asked));
        matches!(answer, Err(MemberError::Refused(_))).then_some(())
    })
    .await;
}
