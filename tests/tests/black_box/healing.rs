//! A zone dies and comes back, nodes leave: nobody does anything about it, and no client notices.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use anchorhold_chaos::load::Load;
use anchorhold_client::AdminClient;
use anchorhold_cluster::Topology;
use anchorhold_proto::{admin_v1, v1};
use anchorhold_tests::cluster::{TestAccount, TestCluster};
use anchorhold_tests::wait::until;

use crate::blocked::listed_nodes;
use crate::faults::client;
use crate::split::{WRITERS, list, operator, shards, writes};

/// Loses patience within seconds, and yet not with nodes that are merely slow.
const IMPATIENT: &str = "[placement]\ninterval_ms = 250\nsuspect_ms = 2500\ndown_ms = 5000\n\
                         zone_down_ms = 5000\nsteady_ms = 1500\nsettle_ms = 1000\n\
                         leader_settle_ms = 2000\n";
const SHARDS: u32 = 24;
const CLIENTS: u32 = 4;
const SEED: u64 = 0x4ea1_0001;

/// The zone of each node.
async fn zones(cluster: &TestCluster, admin: &AdminClient) -> BTreeMap<u64, String> {
    let nodes = listed_nodes(cluster, admin).await;
    nodes.into_iter().map(|node| (node.node_id, node.zone)).collect()
}

/// Waits until every shard has three voters that live and is as `is_right` wants it.
async fn until_all(
    what: &str,
    admin: &AdminClient,
    account: &TestAccount,
    is_right: impl Fn(&[admin_v1::Shard]) -> bool,
) {
    until(what, || async {
        let shards = shards(admin, account).await;
        let is_whole = |shard: &admin_v1::Shard| {
            let voter = |replica: &admin_v1::ShardReplica| {
                replica.live && replica.role() == v1::ReplicaRole::Voter
            };
            shard.leader_node_id != 0
                && shard.replicas.len() == 3
                && shard.replicas.iter().all(voter)
        };
        let whole = shards.iter().filter(|shard| is_whole(shard)).count();
        let is_right = is_right(&shards);
        if whole == shards.len() && is_right { Ok(()) } else { Err((whole, is_right)) }
    })
    .await;
}

fn zones_of(shard: &admin_v1::Shard, zones: &BTreeMap<u64, String>) -> BTreeSet<String> {
    shard.replicas.iter().map(|replica| zones[&replica.node_id].clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_that_dies_under_load_is_rebuilt_in_the_others_and_used_again_when_it_is_back() {
    let mut cluster =
        TestCluster::start_topology(Topology::three_zones(2), IMPATIENT).await.unwrap();
    let account = cluster.account(SHARDS).await.unwrap();
    let (client, admin) = (client(&cluster, &account).await, operator(&cluster));
    let zones = zones(&cluster, &admin).await;
    let load = Load::start(&client, CLIENTS, SEED);
    load.wait_for_each(10).await.unwrap();
    // The nodes of the third zone.
    for node in [2, 5] {
        cluster.kill(node).unwrap();
    }
    load.wait_for_each(10).await.expect("writes go on with two of three zones");
    until_all("every shard is whole in the two zones that are left", &admin, &account, |shards| {
        shards.iter().all(|shard| !zones_of(shard, &zones).contains("c"))
    })
    .await;
    load.wait_for_each(10).await.unwrap();
    for node in [2, 5] {
        cluster.restart(node).unwrap();
    }
    cluster.wait_ready(&[2, 5]).await.unwrap();
    until_all("every shard is in three zones again", &admin, &account, |shards| {
        shards.iter().all(|shard| zones_of(shard, &zones).len() == 3)
    })
    .await;
    let ledger = load.stop().await.unwrap();
    // Without load every leader weighs the same: a third each, give or take what balance bears.
    until_all("every zone leads its share", &admin, &account, |shards| {
        let mut led = BTreeMap::<&String, u32>::new();
        for shard in shards {
            // None for a moment, while one is elected.
            let Some(zone) = zones.get(&shard.leader_node_id) else { return false };
            *led.entry(zone).or_default() += 1;
        }
        led.len() == 3 && led.values().all(|led| (6..=10).contains(led))
    })
    .await;
    cluster.wait_healthy().await;
    let lost = ledger.verify(&client).await.unwrap();
    println!("{} writes acknowledged", ledger.acknowledged());
    assert!(lost.is_empty(), "{} lost: {:?}", lost.len(), lost.first());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_drained_and_leaves_under_load_and_no_client_sees_an_error() {
    let mut cluster =
        TestCluster::start_topology(Topology::three_zones(2), IMPATIENT).await.unwrap();
    let account = cluster.account(SHARDS).await.unwrap();
    let (client, admin) = (client(&cluster, &account).await, operator(&cluster));
    let leaving = {
        let address = cluster.nodes()[4].client_address.to_string();
        let nodes = listed_nodes(&cluster, &admin).await;
        nodes.into_iter().find(|node| node.client_address == address).unwrap().node_id
    };
    let stop = AtomicBool::new(false);
    let departure = async {
        let node_id = leaving;
        admin.drain_node(admin_v1::DrainNodeRequest { node_id }).await.unwrap();
        until_all("the node leads nothing", &admin, &account, |shards| {
            shards.iter().all(|shard| shard.leader_node_id != leaving)
        })
        .await;
        admin.decommission_node(admin_v1::DecommissionNodeRequest { node_id }).await.unwrap();
        until("the node is removed", || async {
            let request = admin_v1::ExplainNodeRequest { node_id };
            let departure = admin.explain_node(request).await.unwrap();
            let is_removed = departure.state() == admin_v1::NodeState::Removed;
            if is_removed { Ok(()) } else { Err(departure) }
        })
        .await;
        until_all("every shard is whole without it", &admin, &account, |shards| {
            let holds = |shard: &admin_v1::Shard| {
                shard.replicas.iter().any(|replica| replica.node_id == leaving)
            };
            !shards.iter().any(holds)
        })
        .await;
        // What has left may end.
        cluster.kill(4).unwrap();
        stop.store(true, Ordering::Relaxed);
    };
    let writers =
        futures::future::join_all((0..WRITERS).map(|first| writes(&client, first, &stop)));
    let (written, ()) = tokio::join!(writers, departure);
    let gap = written.iter().map(|(_, gap)| *gap).max().unwrap();
    let written: Vec<_> = written.into_iter().flat_map(|(written, _)| written).collect();
    println!("{} anchors written without an error, longest wait {gap:?}", written.len());
    let mut expected: Vec<&String> = written.iter().map(|anchor| &anchor.id).collect();
    expected.sort();
    assert!(list(&client, 500).await.iter().eq(expected), "what was written is what is listed");
}
