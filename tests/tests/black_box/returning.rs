//! A node that was away comes back: by the log if little happened, by a snapshot if much did.

use std::collections::BTreeSet;
use std::time::Duration;

use anchorhold_proto::{admin_v1, v1};
use anchorhold_tests::cluster::{TestAccount, TestCluster};
use anchorhold_tests::rpc::{bounded, geo_anchor, linearizable, local, request_id};
use anchorhold_tests::wait::until;
use bytes::Bytes;

/// The log keeps 30 entries behind a snapshot.
const SHORT_LOG: &str = "[consensus]\nsnapshot_entries = 50\nsnapshot_entries_kept = 30\n\
                         checkpoint_interval_ms = 200\n";

/// Writes `count` anchors one after the other, each an entry of its own, through a node that is up.
async fn write(
    cluster: &TestCluster,
    account: &TestAccount,
    node: usize,
    count: u32,
) -> BTreeSet<String> {
    let rpc = cluster.account_rpc(node, account);
    let mut ids = BTreeSet::new();
    for index in 0..count {
        let anchor = geo_anchor(47.0, 8.0 + f64::from(index) * 1e-4, 0.0);
        let id = request_id();
        let stored = until("a write", || rpc.create(anchor.clone(), &id)).await;
        ids.insert(stored.anchor.expect("the anchor").id);
    }
    ids
}

/// The ids that one node's own replica holds, whatever the others say.
async fn local_ids(
    cluster: &TestCluster,
    account: &TestAccount,
    node: usize,
) -> Result<BTreeSet<String>, tonic::Status> {
    let rpc = cluster.account_rpc(node, account);
    let mut request = v1::ListAnchorsRequest {
        page_size: 1_000,
        read: Some(local(Bytes::new())),
        ..Default::default()
    };
    let mut ids = BTreeSet::new();
    loop {
        let page = rpc.list(request.clone()).await?;
        let serving = page.serving.unwrap_or_default();
        for shard in &serving.shards {
            assert_eq!(shard.node_id, serving.node_id, "LOCAL is served here");
        }
        ids.extend(page.anchors.into_iter().map(|anchor| anchor.id));
        if page.next_page_token.is_empty() {
            return Ok(ids);
        }
        request.page_token = page.next_page_token;
    }
}

async fn until_it_has(
    cluster: &TestCluster,
    account: &TestAccount,
    node: usize,
    ids: &BTreeSet<String>,
) {
    until("the node holds everything", || async {
        let found = local_ids(cluster, account, node).await.map_err(|status| status.to_string())?;
        let missing = ids.difference(&found).count();
        if missing == 0 { Ok(()) } else { Err(format!("{missing} of {} missing", ids.len())) }
    })
    .await;
}

/// The digest of every shard of an account, the same on all nodes.
async fn agreed_digests(cluster: &TestCluster, account: &TestAccount) -> Vec<String> {
    let request = admin_v1::ListShardsRequest { account: account.number, ..Default::default() };
    let admin = cluster.admin(0);
    let listed = admin.clusters().list_shards(admin.request(request)).await.expect("a list");
    let mut digests = Vec::new();
    for shard in listed.into_inner().shards {
        let look = || async {
            let mut found = BTreeSet::new();
            for index in 0..cluster.nodes().len() {
                let rpc = cluster.admin(index);
                let request = admin_v1::GetReplicaDigestRequest { shard_id: shard.shard_id };
                let reply = rpc.clusters().get_replica_digest(rpc.request(request)).await;
                let reply = reply.map_err(|status| status.to_string())?.into_inner();
                found.insert((reply.applied_index, reply.anchors, reply.digest));
            }
            match (found.pop_first(), found.is_empty()) {
                (Some((_, _, digest)), true) => Ok(digest),
                (first, _) => Err(format!("{first:?} and {found:?}")),
            }
        };
        digests.push(until("all replicas are equal", look).await);
        let compare = || async {
            let request = admin_v1::CompareReplicasRequest { shard_id: shard.shard_id };
            let reply = admin.clusters().compare_replicas(admin.request(request)).await;
            let reply = reply.map_err(|status| status.to_string())?.into_inner();
            assert!(!reply.different, "{reply:?}");
            let known = reply.replicas.iter().filter(|one| !one.digest.is_empty());
            // One may be at a snapshot.
            if known.count() == 3 { Ok(()) } else { Err(format!("{reply:?}")) }
        };
        until("all replicas are compared", compare).await;
    }
    digests
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_catches_up_by_log_and_by_snapshot() {
    let mut cluster = TestCluster::start(SHORT_LOG).await.unwrap();
    let account = cluster.account(1).await.unwrap();
    let mut ids = write(&cluster, &account, 0, 20).await;
    // The last node founded nothing and leads only what it was elected for.
    let away = 2;
    for (missed, how) in [(10, "the log"), (400, "a snapshot")] {
        cluster.kill(away).unwrap();
        ids.extend(write(&cluster, &account, 0, missed).await);
        cluster.restart(away).unwrap();
        cluster.wait_ready(&[away]).await.unwrap_or_else(|error| panic!("by {how}: {error:#}"));
        until_it_has(&cluster, &account, away, &ids).await;
        // What came by either way serves every level again.
        let one = ids.iter().next_back().unwrap();
        let rpc = cluster.account_rpc(away, &account);
        rpc.get(one, linearizable()).await.unwrap();
        rpc.get(one, bounded(Duration::from_secs(10), Bytes::new())).await.unwrap();
    }
    // And it counts: with another node away, it makes the majority.
    cluster.kill(0).unwrap();
    ids.extend(write(&cluster, &account, 1, 20).await);
    until_it_has(&cluster, &account, away, &ids).await;
    cluster.restart(0).unwrap();
    cluster.wait_ready(&[0]).await.unwrap();
    until_it_has(&cluster, &account, 0, &ids).await;
    let before = agreed_digests(&cluster, &account).await;
    write(&cluster, &account, 1, 1).await;
    assert_ne!(agreed_digests(&cluster, &account).await, before, "a write changes the digest");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_rebuilds_its_state_from_snapshots_and_log_when_sled_is_gone_or_damaged() {
    let mut cluster = TestCluster::start(SHORT_LOG).await.unwrap();
    let account = cluster.account(2).await.unwrap();
    let mut ids = write(&cluster, &account, 1, 150).await;
    for damage in ["removed", "overwritten"] {
        for index in 0..3 {
            cluster.kill(index).unwrap();
        }
        for node in cluster.nodes() {
            spoil_state(&node.data_dir, damage);
        }
        for index in 0..3 {
            cluster.restart(index).unwrap();
        }
        cluster.wait_ready(&[0, 1, 2]).await.unwrap_or_else(|error| panic!("{damage}: {error:#}"));
        for index in 0..3 {
            until_it_has(&cluster, &account, index, &ids).await;
        }
        agreed_digests(&cluster, &account).await;
        ids.extend(write(&cluster, &account, 2, 10).await);
    }
}

/// Damages every file of a node's sled directory.
fn spoil_state(data_dir: &std::path::Path, damage: &str) {
    let state = data_dir.join("state");
    assert!(state.is_dir(), "{} is where a node keeps sled", state.display());
    if damage == "removed" {
        std::fs::remove_dir_all(&state).expect("removable");
        return;
    }
    let mut directories = vec![state];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).expect("readable").flatten() {
            if entry.path().is_dir() {
                directories.push(entry.path());
            } else {
                let length = entry.metadata().expect("its length").len().min(4 << 20);
                let noise: Vec<u8> = (0..length).map(|index| (index * 131 % 251) as u8).collect();
                std::fs::write(entry.path(), noise).expect("writable");
            }
        }
    }
}
