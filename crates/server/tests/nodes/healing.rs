//! Nodes die, come back and leave; nobody does anything about it but the cluster.

use std::collections::BTreeSet;
use std::sync::Arc;

use anchorhold_model::catalog::NodeState;
use anchorhold_model::{NodeId, ShardId};
use anchorhold_proto::admin_v1::{
    DecommissionNodeRequest, ExplainNodeRequest, MaintainNodeRequest,
};
use anchorhold_proto::v1;
use anchorhold_server::NodeConfig;
use anchorhold_storage::fs::RealFs;
use anchorhold_storage::{GroupId, LogConfig, LogPosition, LogStore, LogWrite, Lost, SegmentedLog};

use crate::cluster::{Cluster, eventually, geo, request_id};

/// A cluster that loses patience quickly.
fn impatient(config: &mut NodeConfig) {
    let placement = &mut config.placement;
    placement.interval_ms = 200;
    placement.suspect_ms = 1_500;
    placement.down_ms = 3_000;
    placement.zone_down_ms = 3_000;
    placement.steady_ms = 1_000;
    placement.settle_ms = 1_000;
    placement.leader_settle_ms = 1_000;
}

pub(crate) async fn write(cluster: &Cluster, key: &str, count: u32, first_id: u128) -> Vec<String> {
    let mut client = cluster.anchors(0, key);
    let mut ids = Vec::new();
    for n in 0..count {
        let at = geo(f64::from(n * 37 % 170) - 85.0, f64::from(n * 71 % 360) - 180.0, 10.0);
        let request = v1::CreateAnchorRequest {
            anchor: Some(at),
            request_id: request_id(first_id + u128::from(n)),
        };
        let created = client.create_anchor(request).await.unwrap().into_inner();
        ids.push(created.anchor.unwrap().id);
    }
    ids
}

pub(crate) async fn read_all(cluster: &Cluster, node: usize, key: &str, ids: &[String]) {
    let mut client = cluster.anchors(node, key);
    for id in ids {
        let request = v1::GetAnchorRequest { id: id.clone(), read: None };
        client.get_anchor(request).await.unwrap();
    }
}

/// The nodes that hold replicas, by every shard's present descriptor.
async fn holders(cluster: &Cluster, at: usize) -> Vec<BTreeSet<NodeId>> {
    let survey = cluster.nodes[at].as_ref().unwrap().core().survey().await;
    let shards = survey.shards();
    let nodes = |shard: &anchorhold_server::survey::ShardSurvey<'_>| {
        shard.descriptor.replicas.iter().map(|replica| replica.node_id).collect()
    };
    shards.iter().map(nodes).collect()
}

fn id_of(cluster: &Cluster, node: usize) -> NodeId {
    cluster.nodes[node].as_ref().unwrap().id()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_node_is_replaced_by_a_new_one_and_its_vote_counts() {
    let mut cluster = Cluster::start_with(3, impatient).await;
    let key = cluster.account("one", 4).await;
    let ids = write(&cluster, &key, 20, 1).await;
    let lost = id_of(&cluster, 2);
    cluster.stop(2).await;
    cluster.add(2).await;
    let fresh = id_of(&cluster, 3);
    eventually("every shard has a replica on the new node and none on the lost one", || async {
        let holders = holders(&cluster, 0).await;
        let is_moved = |nodes: &BTreeSet<NodeId>| nodes.contains(&fresh) && !nodes.contains(&lost);
        (holders.len() == 4 && holders.iter().all(is_moved)).then_some(())
    })
    .await;
    cluster.wait_healthy().await;
    read_all(&cluster, 3, &key, &ids).await;
    // The catalog's index says the same as the shards.
    eventually("the catalog knows", || async {
        let catalog = cluster.nodes[3].as_ref().unwrap().core().catalog();
        let is_gone = |node| catalog.shards.values().all(|s| s.replica_on(node).is_none());
        (is_gone(lost) && catalog.operators.is_empty()).then_some(())
    })
    .await;
    // With another node gone, the new one's vote decides.
    cluster.stop(1).await;
    eventually("writes go on", || async {
        let request = v1::CreateAnchorRequest {
            anchor: Some(geo(10.0, 10.0, 1.0)),
            request_id: request_id(500),
        };
        cluster.anchors(0, &key).create_anchor(request).await.ok()
    })
    .await;
    // The lost node comes back with its disk: what it holds is gone for good.
    cluster.restart(1).await;
    cluster.restart(2).await;
    eventually("the old replicas are removed from the node that was lost", || async {
        let node = cluster.nodes[2].as_ref().unwrap();
        let held = node.core().host.replicas();
        let catalog = node.core().catalog();
        let is_stale = |replica: &Arc<anchorhold_consensus::Replica>| {
            let shard = catalog.shards.get(&replica.shard_id());
            shard.is_none_or(|shard| shard.replica(replica.replica_id()).is_none())
        };
        (!held.iter().any(is_stale)).then_some(())
    })
    .await;
    read_all(&cluster, 0, &key, &ids).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_zone_is_rebuilt_in_the_survivors_and_used_again_when_it_is_back() {
    let mut cluster = Cluster::start_in_zones(&[0, 1, 2, 0, 1, 2], impatient).await;
    let key = cluster.account("one", 8).await;
    let ids = write(&cluster, &key, 20, 1).await;
    let dead = [id_of(&cluster, 2), id_of(&cluster, 5)];
    cluster.stop(2).await;
    cluster.stop(5).await;
    eventually("every shard has three replicas in the two zones that are left", || async {
        let holders = holders(&cluster, 0).await;
        let is_whole =
            |nodes: &BTreeSet<NodeId>| nodes.len() == 3 && !dead.iter().any(|d| nodes.contains(d));
        (holders.len() == 8 && holders.iter().all(is_whole)).then_some(())
    })
    .await;
    read_all(&cluster, 1, &key, &ids).await;
    cluster.restart(2).await;
    cluster.restart(5).await;
    eventually("every shard is in three zones again", || async {
        let core = cluster.nodes[0].as_ref().unwrap().core();
        let catalog = core.catalog();
        let zones = |nodes: &BTreeSet<NodeId>| {
            nodes.iter().map(|node| catalog.nodes[node].zone.clone()).collect::<BTreeSet<_>>().len()
        };
        let holders = holders(&cluster, 0).await;
        let is_spread = |nodes: &BTreeSet<NodeId>| nodes.len() == 3 && zones(nodes) == 3;
        (holders.len() == 8 && holders.iter().all(is_spread)).then_some(())
    })
    .await;
    read_all(&cluster, 2, &key, &ids).await;
    cluster.stop_all().await;
}

/// Without another node the votes of the last one of three decide; it starts as any other, and has
/// everything.
async fn check_that_the_last_votes(mut cluster: Cluster, key: &str, mut ids: Vec<String>) {
    cluster.stop(1).await;
    ids.extend(write(&cluster, key, 10, 100).await);
    cluster.restart(1).await;
    cluster.stop(2).await;
    cluster.restart(2).await;
    cluster.wait_healthy().await;
    read_all(&cluster, 2, key, &ids).await;
    cluster.stop_all().await;
}

/// Notes in the log of a node that is stopped that its replicas may have forgotten votes, as a
/// start does which finds frames that cannot be read.
async fn forget_votes(cluster: &Cluster, node: usize, is_hit: impl Fn(GroupId) -> bool) -> usize {
    let dir = cluster.dir(node).join("log");
    // Threads of the node that stopped may hold it for a moment.
    let open = || async { SegmentedLog::open(Arc::new(RealFs), &dir, LogConfig::default()).ok() };
    let log = eventually("the log is free", open).await;
    let hit: Vec<GroupId> = log.groups().into_iter().filter(|group| is_hit(*group)).collect();
    for group in &hit {
        let lost = Lost { to: LogPosition { term: 90, index: 9_000 }, hard_state_known: false };
        let (done, waiting) = std::sync::mpsc::channel();
        let note = LogWrite::MarkLost { group: *group, from: 2, lost };
        log.submit(note, Box::new(move |result| done.send(result).unwrap()));
        waiting.recv().unwrap().unwrap();
    }
    hit.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_may_have_forgotten_votes_are_built_again_on_the_only_node_of_their_zone() {
    let mut cluster = Cluster::start_with(3, impatient).await;
    let key = cluster.account("one", 4).await;
    let ids = write(&cluster, &key, 20, 1).await;
    let hit = id_of(&cluster, 2);
    let before = cluster.nodes[0].as_ref().unwrap().core().catalog().shards.clone();
    cluster.stop(2).await;
    assert_eq!(forget_votes(&cluster, 2, |group| group.shard != ShardId::CATALOG.0).await, 4);
    cluster.restart(2).await;
    let core = Arc::clone(cluster.nodes[0].as_ref().unwrap().core());
    eventually("each shard has another replica on the node that was hit", || async {
        let survey = core.survey().await;
        let shards = survey.shards();
        let is_new = |shard: &anchorhold_server::survey::ShardSurvey<'_>| {
            let old = before[&shard.descriptor.shard_id].replica_on(hit).unwrap().replica_id;
            shard.descriptor.voters().count() == 3
                && shard.descriptor.replica_on(hit).is_some_and(|now| now.replica_id != old)
        };
        (shards.len() == 4 && shards.iter().all(is_new)).then_some(())
    })
    .await;
    cluster.wait_healthy().await;
    check_that_the_last_votes(cluster, &key, ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_log_is_gone_is_whole_again_and_nobody_did_anything() {
    let mut cluster = Cluster::start_with(3, impatient).await;
    let key = cluster.account("one", 4).await;
    let ids = write(&cluster, &key, 20, 1).await;
    cluster.stop(2).await;
    for entry in std::fs::read_dir(cluster.dir(2).join("log")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "segment") {
            std::fs::remove_file(path).unwrap();
        }
    }
    cluster.restart(2).await;
    let problems = cluster.problems().await.unwrap();
    assert!(!problems.is_empty(), "a node without its log is no healthy one");
    eventually("nothing is fenced and everything votes again", || async {
        let host = cluster.nodes[2].as_ref().unwrap().core().host.clone();
        let mut replicas = host.replicas();
        replicas.push(host.catalog_replica());
        let is_whole = |replica: &Arc<anchorhold_consensus::Replica>| replica.fence().is_none();
        let problems = cluster.problems().await?;
        // What the node has lost stays in its status until somebody has looked at its disk.
        let is_told = |problem: &String| problem.contains("has damaged data");
        (replicas.len() == 5 && replicas.iter().all(is_whole) && problems.iter().all(is_told))
            .then_some(())
    })
    .await;
    check_that_the_last_votes(cluster, &key, ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_founder_that_has_forgotten_everything_founds_no_second_cluster() {
    let mut cluster = Cluster::start_with(3, impatient).await;
    let key = cluster.account("one", 2).await;
    let ids = write(&cluster, &key, 10, 1).await;
    cluster.stop(0).await;
    let remove = |name: &str| std::fs::remove_dir_all(cluster.dir(0).join(name)).unwrap();
    remove("log");
    remove("state");
    cluster.restart(0).await;
    let host = cluster.nodes[0].as_ref().unwrap().core().host.clone();
    let fenced = host.catalog_replica().replica_id();
    eventually("the founder has another replica of the catalog", || async {
        let replica = host.catalog_replica();
        if replica.replica_id() == fenced {
            assert!(!replica.is_leader(), "it leads a cluster of its own");
            return None;
        }
        (host.catalog().borrow().accounts.len() == 1).then_some(())
    })
    .await;
    eventually("all replicas take part", || async {
        let replicas = host.replicas();
        (replicas.len() == 2 && replicas.iter().all(|one| one.fence().is_none())).then_some(())
    })
    .await;
    drop(host);
    cluster.stop(0).await;
    cluster.restart(0).await;
    cluster.wait_healthy().await;
    read_all(&cluster, 0, &key, &ids).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_files_are_gone_is_built_again_on_its_node() {
    let mut cluster = Cluster::start_with(3, |config| {
        impatient(config);
        config.placement.absent_ms = 1_000;
    })
    .await;
    let key = cluster.account("one", 4).await;
    let ids = write(&cluster, &key, 20, 1).await;
    let hit = id_of(&cluster, 2);
    let core = Arc::clone(cluster.nodes[0].as_ref().unwrap().core());
    let (shard_id, before) = {
        let catalog = core.catalog();
        let (shard_id, shard) = catalog.shards.iter().next().unwrap();
        (*shard_id, shard.replica_on(hit).unwrap().replica_id)
    };
    cluster.stop(2).await;
    // Its card makes no sense, and there is no snapshot file; rows and log are there still.
    let prefix = format!("{:016x}-", shard_id.0);
    for entry in std::fs::read_dir(cluster.dir(2).join("snapshots")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with(&prefix) && name.ends_with(".snap") {
            std::fs::remove_file(path).unwrap();
        } else if name.starts_with(&prefix) {
            std::fs::write(path, b"no card").unwrap();
        }
    }
    cluster.restart(2).await;
    eventually("the shard has another replica on the node", || async {
        let survey = core.survey().await;
        let shards = survey.shards();
        let shard = shards.iter().find(|shard| shard.descriptor.shard_id == shard_id)?;
        let now = shard.descriptor.replica_on(hit)?;
        (now.replica_id != before && shard.descriptor.voters().count() == 3).then_some(())
    })
    .await;
    cluster.wait_healthy().await;
    check_that_the_last_votes(cluster, &key, ids).await;
}

/// A power loss has cost a node its state, and one block of a shard's snapshot file has rotted.
pub(crate) fn spoil(dir: &std::path::Path, shard: ShardId) {
    std::fs::remove_dir_all(dir.join("state")).unwrap();
    let prefix = format!("{:016x}-", shard.0);
    let mut damaged = 0;
    for entry in std::fs::read_dir(dir.join("snapshots")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with(&prefix) && name.ends_with(".snap") {
            let mut content = std::fs::read(&path).unwrap();
            let middle = content.len() / 2;
            content[middle] ^= 0x10;
            std::fs::write(path, content).unwrap();
            damaged += 1;
        }
    }
    assert!(0 < damaged);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_state_and_one_snapshot_file_are_damaged_starts_and_is_whole_again() {
    // Replicas that are away for long are not what is tested here.
    let mut cluster = Cluster::start_with(3, |config| {
        impatient(config);
        config.placement.absent_ms = 600_000;
    })
    .await;
    let key = cluster.account("one", 4).await;
    let ids = write(&cluster, &key, 60, 1).await;
    let hit = id_of(&cluster, 2);
    let core = Arc::clone(cluster.nodes[0].as_ref().unwrap().core());
    let largest = {
        let node = cluster.nodes[2].as_ref().unwrap();
        let replicas = node.core().host.replicas();
        let largest = replicas.iter().max_by_key(|replica| replica.state().anchors).unwrap();
        largest.renew_snapshot().await;
        eventually("it has a file of rows", || async {
            largest.status().snapshot_index.filter(|index| 10 < *index)
        })
        .await;
        largest.shard_id()
    };
    let before = core.catalog().shards[&largest].replica_on(hit).unwrap().replica_id;
    cluster.stop(2).await;
    spoil(cluster.dir(2), largest);
    cluster.restart(2).await;
    let host = cluster.nodes[2].as_ref().unwrap().core().host.clone();
    assert_eq!(host.replicas().len(), 3, "the others are served");
    assert_eq!(host.broken_replicas()[0].descriptor.shard_id, largest);
    drop(host);
    eventually("the shard has another replica on the node", || async {
        let survey = core.survey().await;
        let shards = survey.shards();
        let shard = shards.iter().find(|shard| shard.descriptor.shard_id == largest)?;
        let now = shard.descriptor.replica_on(hit)?;
        (now.replica_id != before && shard.descriptor.voters().count() == 3).then_some(())
    })
    .await;
    cluster.wait_healthy().await;
    check_that_the_last_votes(cluster, &key, ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_s_child_that_nothing_on_its_node_can_make_again_is_replaced_at_once() {
    let mut cluster = Cluster::start_with(3, |config| {
        impatient(config);
        config.placement.absent_ms = 600_000;
    })
    .await;
    let key = cluster.account("one", 1).await;
    let ids = write(&cluster, &key, 60, 1).await;
    let core = Arc::clone(cluster.nodes[0].as_ref().unwrap().core());
    let parent = *core.catalog().shards.keys().next().unwrap();
    let deadline = core.deadline(std::time::Duration::from_secs(20));
    core.split_shard(parent, None, None, &deadline).await.unwrap();
    let hit = id_of(&cluster, 2);
    let (child, before) = eventually("the child is known", || async {
        let catalog = core.catalog();
        let child = catalog.shards.values().find(|shard| shard.shard_id != parent)?;
        Some((child.shard_id, child.replica_on(hit)?.replica_id))
    })
    .await;
    // Both have files of their own, the parent's one from behind the split.
    let snapshots = cluster.dir(2).join("snapshots");
    let files_of = |shard: ShardId| {
        let prefix = format!("{:016x}-", shard.0);
        let files = std::fs::read_dir(&snapshots).unwrap().map(|entry| entry.unwrap().path());
        let is_its = |path: &std::path::PathBuf| {
            let name = path.file_name().unwrap().to_string_lossy();
            name.starts_with(&prefix) && name.ends_with(".snap") && !name.contains("none")
        };
        files.filter(is_its).collect::<Vec<_>>()
    };
    eventually("both have files", || async {
        (!files_of(child).is_empty() && !files_of(parent).is_empty()).then_some(())
    })
    .await;
    cluster.stop(2).await;
    std::fs::remove_dir_all(cluster.dir(2).join("state")).unwrap();
    files_of(child).into_iter().for_each(|path| std::fs::remove_file(path).unwrap());
    cluster.restart(2).await;
    eventually("the child has another replica on the node", || async {
        let survey = core.survey().await;
        let shards = survey.shards();
        let shard = shards.iter().find(|shard| shard.descriptor.shard_id == child)?;
        let now = shard.descriptor.replica_on(hit)?;
        (now.replica_id != before && shard.descriptor.voters().count() == 3).then_some(())
    })
    .await;
    cluster.wait_healthy().await;
    assert!(cluster.nodes[2].as_ref().unwrap().core().host.broken_replicas().is_empty());
    check_that_the_last_votes(cluster, &key, ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_maintenance_is_over_serves_again() {
    let mut cluster = Cluster::start_with(3, impatient).await;
    let node_id = id_of(&cluster, 2);
    let duration = Some(prost_types::Duration { seconds: 3, nanos: 0 });
    let request = MaintainNodeRequest { node_id: node_id.0, duration };
    cluster.placement(0).maintain_node(request).await.unwrap();
    let core = Arc::clone(cluster.nodes[0].as_ref().unwrap().core());
    for state in [NodeState::Draining, NodeState::Up] {
        eventually(&format!("it is {state:?}"), || async {
            (core.catalog().nodes[&node_id].state == state).then_some(())
        })
        .await;
    }
    assert_eq!(core.catalog().nodes[&node_id].maintenance_until, None);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_to_leave_gives_everything_away_and_is_removed() {
    let mut cluster = Cluster::start_in_zones(&[0, 1, 2, 2], impatient).await;
    let key = cluster.account("one", 4).await;
    let ids = write(&cluster, &key, 10, 1).await;
    let leaving = id_of(&cluster, 2);
    let core = Arc::clone(cluster.nodes[0].as_ref().unwrap().core());
    let request = DecommissionNodeRequest { node_id: leaving.0 };
    cluster.placement(0).decommission_node(request).await.unwrap();
    eventually("the node is removed", || async {
        let state = core.catalog().nodes[&leaving].state;
        (state == NodeState::Removed).then_some(())
    })
    .await;
    let holders = holders(&cluster, 0).await;
    assert!(holders.iter().all(|nodes| !nodes.contains(&leaving)), "{holders:?}");
    read_all(&cluster, 0, &key, &ids).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_leave_says_why_and_leaves_once_there_is_room() {
    let mut cluster = Cluster::start_with(3, impatient).await;
    cluster.account("one", 3).await;
    let leaving = id_of(&cluster, 2);
    let request = DecommissionNodeRequest { node_id: leaving.0 };
    cluster.placement(0).decommission_node(request).await.unwrap();
    eventually("the node says that nothing else has room", || {
        let mut placement = cluster.placement(1);
        async move {
            let request = ExplainNodeRequest { node_id: leaving.0 };
            let departure = placement.explain_node(request).await.ok()?.into_inner();
            // A shard whose leader is on its way to another node says that first.
            let mut blocked = departure.blocked.into_iter();
            let blocked = blocked.find(|blocked| blocked.cause == "no room")?;
            assert!(blocked.remedy.contains("add a node"), "{blocked:?}");
            (blocked.shards == 3 && departure.leaders == 0).then_some(())
        }
    })
    .await;
    cluster.add(2).await;
    let core = Arc::clone(cluster.nodes[0].as_ref().unwrap().core());
    eventually("the node is removed", || async {
        (core.catalog().nodes[&leaving].state == NodeState::Removed).then_some(())
    })
    .await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_leader_that_ends_at_any_moment_leaves_nothing_half_done() {
    let mut cluster = Cluster::start_in_zones(&[0, 1, 2, 2], impatient).await;
    let key = cluster.account("one", 4).await;
    let ids = write(&cluster, &key, 10, 1).await;
    let leaving = id_of(&cluster, 3);
    let request = DecommissionNodeRequest { node_id: leaving.0 };
    cluster.placement(0).decommission_node(request).await.unwrap();
    for _ in 0..4 {
        let leader = eventually("somebody leads the catalog", || async {
            cluster.nodes.iter().position(|node| {
                node.as_ref().is_some_and(|node| node.core().host.catalog_replica().is_leader())
            })
        })
        .await;
        cluster.stop(leader).await;
        cluster.restart(leader).await;
    }
    let core = Arc::clone(cluster.nodes[0].as_ref().unwrap().core());
    eventually("the node is removed and nothing is under way", || async {
        let catalog = core.catalog();
        let is_removed = catalog.nodes[&leaving].state == NodeState::Removed;
        (is_removed && catalog.operators.is_empty()).then_some(())
    })
    .await;
    eventually("every shard has its voters and no one else", || async {
        let survey = core.survey().await;
        let shards = survey.shards();
        let is_whole = |shard: &anchorhold_server::survey::ShardSurvey<'_>| {
            shard.descriptor.replicas.len() == 3
                && shard.descriptor.voters().count() == 3
                && shard.descriptor.replica_on(leaving).is_none()
        };
        (shards.len() == 4 && shards.iter().all(is_whole)).then_some(())
    })
    .await;
    read_all(&cluster, 0, &key, &ids).await;
    cluster.stop_all().await;
}
