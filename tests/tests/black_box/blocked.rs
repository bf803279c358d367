//! A node that cannot leave says why, and what would help.

use anchorhold_client::AdminClient;
use anchorhold_cluster::{Latency, Region, Topology, Zone};
use anchorhold_proto::admin_v1;
use anchorhold_tests::cluster::TestCluster;
use anchorhold_tests::rpc::Rpc;
use anchorhold_tests::wait::until;

use crate::split::operator;

const IMPATIENT: &str = "[placement]\ninterval_ms = 200\nsuspect_ms = 3000\nsteady_ms = 500\n\
                         settle_ms = 500\n";
const SHARDS: u32 = 4;

/// Zone `a` has two nodes, the others one: nodes 0 and 3, 1, 2.
fn two_one_one() -> Topology {
    let zones = [("a", 2), ("b", 1), ("c", 1)];
    let zones = zones.map(|(name, nodes)| Zone { name: name.to_owned(), nodes });
    let region = Region { name: "local".to_owned(), zones: zones.to_vec() };
    let (name, latency) = ("two-one-one".to_owned(), Latency::default());
    Topology { name, regions: vec![region], latency }
}

/// The ids of the nodes, in the cluster's order.
async fn node_ids(cluster: &TestCluster) -> Vec<u64> {
    let listed = listed_nodes(cluster, &operator(cluster)).await;
    let id = |address: String| {
        listed.iter().find(|node| node.client_address == address).map(|node| node.node_id)
    };
    cluster.nodes().iter().map(|node| id(node.client_address.to_string()).unwrap()).collect()
}

/// All nodes of a cluster: whoever is asked may not have heard of the last ones yet.
pub(crate) async fn listed_nodes(
    cluster: &TestCluster,
    admin: &AdminClient,
) -> Vec<admin_v1::Node> {
    until("all nodes are listed", || async {
        let listed = admin.list_nodes(admin_v1::ListNodesRequest::default()).await.unwrap().nodes;
        if listed.len() == cluster.nodes().len() { Ok(listed) } else { Err(listed.len()) }
    })
    .await
}

async fn explain(rpc: &Rpc, node_id: u64) -> Result<admin_v1::ExplainNodeResponse, String> {
    let request = rpc.request(admin_v1::ExplainNodeRequest { node_id });
    let reply = rpc.placements().explain_node(request).await;
    reply.map(tonic::Response::into_inner).map_err(|status| status.to_string())
}

/// Waits until a node says that exactly so many of its shards wait for this, with the remedy.
async fn until_blocked(rpc: &Rpc, node_id: u64, cause: &str, shards: u64, remedy: &str) {
    until(&format!("the node says {cause:?}"), || async {
        let departure = explain(rpc, node_id).await?;
        let found = departure.blocked.iter().find(|blocked| blocked.cause == cause);
        let is_told =
            found.is_some_and(|found| found.shards == shards && found.remedy.contains(remedy));
        if is_told { Ok(()) } else { Err(format!("{departure:?}")) }
    })
    .await;
}

async fn pause(rpc: &Rpc, paused: bool) {
    let scheduler = Some(admin_v1::Scheduler { paused, ..Default::default() });
    let request = rpc.request(admin_v1::UpdateSchedulerRequest { scheduler });
    rpc.placements().update_scheduler(request).await.unwrap();
}

async fn decommission(rpc: &Rpc, node_id: u64) {
    let request = rpc.request(admin_v1::DecommissionNodeRequest { node_id });
    rpc.placements().decommission_node(request).await.unwrap();
}

async fn drain(rpc: &Rpc, node_id: u64) {
    let request = rpc.request(admin_v1::DrainNodeRequest { node_id });
    rpc.placements().drain_node(request).await.unwrap();
}

async fn resume(rpc: &Rpc, node_id: u64) {
    let request = rpc.request(admin_v1::ResumeNodeRequest { node_id });
    rpc.placements().resume_node(request).await.unwrap();
}

async fn until_removed(rpc: &Rpc, node_id: u64) {
    until("the node is removed", || async {
        let departure = explain(rpc, node_id).await?;
        let is_removed = departure.state() == admin_v1::NodeState::Removed;
        if is_removed { Ok(()) } else { Err(format!("{departure:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_leave_names_what_it_waits_for() {
    let mut cluster = TestCluster::start_topology(two_one_one(), IMPATIENT).await.unwrap();
    cluster.account(SHARDS).await.unwrap();
    cluster.wait_healthy().await;
    let ids = node_ids(&cluster).await;
    let (stays, c) = (cluster.admin(2), ids[2]);

    // Everything has a place to go, but nobody plans.
    pause(&stays, true).await;
    let leaving = if 0 < explain(&stays, ids[0]).await.unwrap().replicas { 0 } else { 3 };
    let replicas = explain(&stays, ids[leaving]).await.unwrap().replicas;
    decommission(&stays, ids[leaving]).await;
    until_blocked(&stays, ids[leaving], "scheduler paused", replicas, "resume").await;
    pause(&stays, false).await;
    until_removed(&stays, ids[leaving]).await;
    cluster.kill(leaving).unwrap();

    // Three nodes are left: as many as there are voters.
    let a = ids[3 - leaving];
    decommission(&stays, ids[1]).await;
    until_blocked(&stays, ids[1], "no room", SHARDS.into(), "add a node").await;
    resume(&stays, ids[1]).await;

    // All leaders gather on one node, and no other may lead.
    drain(&stays, a).await;
    drain(&stays, ids[1]).await;
    until("one node leads everything", || async {
        let departure = explain(&stays, c).await?;
        if departure.leaders == u64::from(SHARDS) { Ok(()) } else { Err(format!("{departure:?}")) }
    })
    .await;
    decommission(&stays, c).await;
    let remedy = "bring back a node that may lead";
    until_blocked(&stays, c, "no leader target", SHARDS.into(), remedy).await;
    resume(&stays, c).await;
    resume(&stays, a).await;
    resume(&stays, ids[1]).await;

    // Most voters are away; even then the node that is left says so.
    cluster.kill(1).unwrap();
    cluster.kill(3 - leaving).unwrap();
    until_blocked(&stays, c, "quorum lost", SHARDS.into(), "bring its nodes back").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_waits_for_a_limit_names_it() {
    let config = format!("{IMPATIENT}incoming_max = 0\n");
    let cluster = TestCluster::start_topology(two_one_one(), &config).await.unwrap();
    cluster.account(SHARDS).await.unwrap();
    let (rpc, ids) = (cluster.admin(1), node_ids(&cluster).await);
    decommission(&rpc, ids[2]).await;
    until_blocked(&rpc, ids[2], "limit of incoming reached", SHARDS.into(), "wait").await;
}
