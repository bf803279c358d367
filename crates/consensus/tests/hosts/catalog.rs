use std::time::Duration;

use anchorhold_model::ReplicaId;
use anchorhold_model::catalog::{CatalogCommand, NodeState};
use bytes::Bytes;

use crate::support::{PATIENCE, TestCluster, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_join_and_the_catalog_votes_in_three_zones() {
    let cluster = TestCluster::start(4).await;
    let leader = cluster.nodes[0].host().catalog_replica();
    assert_eq!(leader.status().voters, 3);
    for node in &cluster.nodes {
        eventually("every node knows all", || {
            (node.host().catalog().borrow().nodes.len() == 4).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_reaches_another_nodes_server() {
    let cluster = TestCluster::start(2).await;
    let to = cluster.nodes[1].identity.node_id;
    let answer =
        cluster.nodes[0].host().call(to, Bytes::from_static(b"hello"), PATIENCE).await.unwrap();
    let from = cluster.nodes[0].identity.node_id;
    assert_eq!(answer[..8], from.0.to_be_bytes());
    assert_eq!(&answer[8..], b"hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_cluster_at_a_reused_port_is_refused() {
    let mut first = TestCluster::start(2).await;
    let other = TestCluster::start(2).await;
    // The second node of the first cluster is replaced by a stranger at the same address, which has
    // the same number in its own cluster.
    first.nodes[1].crash(false).await;
    let node = first.nodes[1].identity.node_id;
    assert_eq!(node, other.nodes[1].identity.node_id);
    let stranger = other.nodes[1].address.clone();
    first.nodes[0].host().learn_peer(node, &stranger);
    let answer = first.nodes[0]
        .host()
        .call(node, Bytes::from_static(b"who are you"), Duration::from_secs(5))
        .await;
    let refused = answer.unwrap_err().to_string();
    assert!(refused.contains("another cluster"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_down_is_left_out_of_the_catalog_and_taken_in_again() {
    let cluster = TestCluster::start(4).await;
    let node_id = cluster.nodes[3].identity.node_id;
    let set = |state| {
        let host = cluster.nodes[0].host().clone();
        let command = CatalogCommand::SetNodeState { node_id, state };
        async move { host.propose_catalog(command, PATIENCE).await.unwrap() }
    };
    let follows = || {
        let leader = cluster.nodes.iter().map(|node| node.host().catalog_replica());
        let leader = leader.into_iter().find(|replica| replica.is_leader())?;
        let own = ReplicaId::new(1, node_id.counter());
        Some(leader.status().matched.iter().any(|(id, _)| *id == own))
    };
    set(NodeState::Down).await;
    eventually("it is left out", || follows().filter(|follows| !follows)).await;
    set(NodeState::Up).await;
    eventually("it follows again", || follows().filter(|follows| *follows)).await;
    eventually("it knows so", || {
        let catalog = cluster.nodes[3].host().catalog();
        let state = catalog.borrow().nodes[&node_id].state;
        (state == NodeState::Up).then_some(())
    })
    .await;
}
