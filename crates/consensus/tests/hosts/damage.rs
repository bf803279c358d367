//! Damage in one node's log: the node starts, and only the replica that it hit holds back.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anchorhold_consensus::{ConsensusConfig, Fence, ReadLevel};
use anchorhold_model::{AnchorId, Key, ShardId};
use anchorhold_storage::fs::{FileSystem, MemoryFs};
use anchorhold_storage::{GroupId, LogPosition, LogStore, LogWrite, Lost, SegmentedLog};

use crate::support::{DurableDisk, PATIENCE, SMALL_LOG, TestCluster, TestNode, anchor, eventually};

/// Where a node's log lies on its disk.
const LOG_DIR: &str = "/log";

/// Three nodes with real logs and two shards of one account.
struct Setup {
    cluster: TestCluster,
    hit: ShardId,
    spared: ShardId,
    cut: Key,
    next: u64,
    /// What was acknowledged, by shard.
    ids: BTreeMap<ShardId, Vec<AnchorId>>,
}

impl Setup {
    async fn start() -> Self {
        let config = ConsensusConfig { checkpoint_interval_ms: 50, ..ConsensusConfig::default() };
        let cluster = TestCluster::start_on(3, config, || Some(DurableDisk::new())).await;
        let mut keys: Vec<Key> = (0..400).map(|item| anchor(item * 8).id.key()).collect();
        keys.sort_unstable();
        let cut = keys[keys.len() / 2];
        let shards = cluster.create_account("a", vec![cut]).await;
        let (hit, spared) = (shards[0], shards[1]);
        let mut this = Self { cluster, hit, spared, cut, next: 0, ids: BTreeMap::new() };
        this.write(80).await;
        assert!(this.ids.values().all(|ids| 10 < ids.len()) && this.ids.len() == 2);
        this
    }

    /// Writes anchors all over, and so to both shards.
    async fn write(&mut self, count: u64) {
        for _ in 0..count {
            let item = self.next * 248;
            self.next += 1;
            let shard = if anchor(item).id.key() < self.cut { self.hit } else { self.spared };
            let id = self.cluster.write(shard, item).await;
            self.ids.entry(shard).or_default().push(id);
        }
    }

    async fn check_everywhere(&self) {
        for (shard, ids) in &self.ids {
            check_everywhere(&self.cluster, *shard, ids).await;
        }
    }
}

fn disk(cluster: &mut TestCluster, node: usize) -> &mut DurableDisk {
    cluster.nodes[node].disk.durable.as_mut().unwrap()
}

fn open_log(fs: &MemoryFs) -> SegmentedLog {
    SegmentedLog::open(Arc::new(fs.clone()), Path::new(LOG_DIR), SMALL_LOG).unwrap()
}

fn group_of(log: &SegmentedLog, shard: ShardId) -> GroupId {
    log.groups().into_iter().find(|group| group.shard == shard.0).unwrap()
}

/// Cuts a node's power.
async fn crash(cluster: &mut TestCluster, node: usize) {
    cluster.nodes[node].crash(true).await;
    let disk = disk(cluster, node);
    disk.fs = disk.fs.after_crash(0);
}

/// Notes in a log that a group may have forgotten a vote, as recovery does where two frames that
/// follow each other are unreadable.
fn forget_votes(fs: &MemoryFs, shard: ShardId) {
    let lost = Lost { to: LogPosition { term: 9, index: 9_000 }, hard_state_known: false };
    let log = open_log(fs);
    let (done, waiting) = std::sync::mpsc::channel();
    let note = LogWrite::MarkLost { group: group_of(&log, shard), from: 5, lost };
    log.submit(note, Box::new(move |result| done.send(result).unwrap()));
    waiting.recv().unwrap().unwrap();
}

/// Flips one bit in the content of the entry in the middle of a group's log.
fn damage(fs: &MemoryFs, shard: ShardId) {
    let log = open_log(&fs.after_kill());
    let group = group_of(&log, shard);
    let last = log.group(group).unwrap().last.unwrap().index;
    let entry = log.read(group, last / 2..last / 2 + 1, 0).unwrap().remove(0);
    let mut hits = 0;
    for name in fs.list(Path::new(LOG_DIR)).unwrap() {
        let path = Path::new(LOG_DIR).join(&name);
        let bytes = fs.bytes(&path).unwrap();
        let mut found = bytes.windows(entry.content.len());
        if let Some(at) = found.position(|window| window == &entry.content[..]) {
            fs.flip(&path, at, 1).unwrap();
            hits += 1;
        }
    }
    assert!(0 < hits, "the entry is not on the disk");
}

async fn check_everywhere(cluster: &TestCluster, shard: ShardId, ids: &[AnchorId]) {
    for node in cluster.nodes.iter().filter(|node| node.running.is_some()) {
        let replica = eventually("the replica is open", || node.host().replica(shard)).await;
        replica.read_barrier(ReadLevel::Linearizable, PATIENCE).await.unwrap();
        for id in ids {
            assert!(replica.anchor(*id).unwrap().is_some(), "{id} is lost");
        }
    }
}

fn fence(cluster: &TestCluster, node: usize, shard: ShardId) -> Option<Fence> {
    cluster.nodes[node].host().replica(shard).unwrap().fence()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_lost_entries_has_no_vote_until_its_peers_have_sent_them() {
    let mut setup = Setup::start().await;
    let (hit, spared) = (setup.hit, setup.spared);
    let node = (setup.cluster.leader_of(hit).await + 1) % 3;
    let others = [(node + 1) % 3, (node + 2) % 3];
    crash(&mut setup.cluster, node).await;
    damage(&disk(&mut setup.cluster, node).fs, hit);
    // The others serve meanwhile.
    setup.write(10).await;
    let cluster = &mut setup.cluster;
    // The state is gone too, so the log is all that the node has.
    disk(cluster, node).state = tempfile::tempdir().unwrap();
    for other in others {
        crash(cluster, other).await;
    }
    cluster.restart(node).await;
    let found = eventually("the replica is open", || cluster.nodes[node].host().replica(hit)).await;
    assert!(matches!(found.fence(), Some(Fence::CatchingUp { .. })), "{:?}", found.fence());
    assert_eq!(found.status().fence, found.fence());
    assert_eq!((fence(cluster, node, spared), found.is_leader()), (None, false));
    for other in others {
        cluster.restart(other).await;
    }
    setup.write(10).await;
    setup.check_everywhere().await;
    eventually("the fence is gone", || found.fence().is_none().then_some(())).await;
    // It counts again: with one of the others dead, its vote is needed.
    let leader = setup.cluster.leader_of(hit).await;
    let dead = if leader == node { others[0] } else { leader };
    crash(&mut setup.cluster, dead).await;
    setup.write(10).await;
    setup.check_everywhere().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_lost_entries_does_not_lead_one_that_never_had_them() {
    let mut setup = Setup::start().await;
    let hit = setup.hit;
    let holder = setup.cluster.leader_of(hit).await;
    let (node, behind) = ((holder + 1) % 3, (holder + 2) % 3);
    crash(&mut setup.cluster, behind).await;
    // Acknowledged by the leader and by the node that is about to lose them.
    setup.write(300).await;
    let cluster = &mut setup.cluster;
    crash(cluster, node).await;
    damage(&disk(cluster, node).fs, hit);
    disk(cluster, node).state = tempfile::tempdir().unwrap();
    crash(cluster, holder).await;
    cluster.restart(node).await;
    cluster.restart(behind).await;
    let found = eventually("the replica is open", || cluster.nodes[node].host().replica(hit)).await;
    assert!(matches!(found.fence(), Some(Fence::CatchingUp { .. })), "{:?}", found.fence());
    // Many times as long as an election takes.
    for _ in 0..400 {
        assert!(!found.is_leader(), "it leads without what it has lost");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cluster.restart(holder).await;
    setup.write(10).await;
    setup.check_everywhere().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_below_the_applied_state_costs_nothing_but_the_entries() {
    let mut setup = Setup::start().await;
    let hit = setup.hit;
    let node = (setup.cluster.leader_of(hit).await + 1) % 3;
    crash(&mut setup.cluster, node).await;
    damage(&disk(&mut setup.cluster, node).fs, hit);
    setup.cluster.restart(node).await;
    setup.check_everywhere().await;
    let cluster = &setup.cluster;
    eventually("the fence is gone", || fence(cluster, node, hit).is_none().then_some(())).await;
    // And again from the start, power lost: what was patched up is durable.
    crash(&mut setup.cluster, node).await;
    setup.cluster.restart(node).await;
    setup.check_everywhere().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_may_have_forgotten_a_vote_takes_part_in_nothing() {
    let mut setup = Setup::start().await;
    let (hit, spared) = (setup.hit, setup.spared);
    let cluster = &mut setup.cluster;
    let node = (cluster.leader_of(hit).await + 1) % 3;
    crash(cluster, node).await;
    forget_votes(&disk(cluster, node).fs, hit);
    cluster.restart(node).await;
    let closed =
        eventually("the replica is open", || cluster.nodes[node].host().replica(hit)).await;
    assert_eq!(closed.status().fence, Some(Fence::Closed));
    // Raft's own task says where it stands a little after the replica is open.
    let started = || Some(closed.status()).filter(|status| status.last_index.is_some());
    let before = eventually("the replica knows its log", started).await;
    setup.write(40).await;
    let cluster = &setup.cluster;
    check_everywhere(cluster, spared, &setup.ids[&spared]).await;
    let after = closed.status();
    assert_eq!((after.term, after.last_index), (before.term, before.last_index));
    // Its peers answer for it.
    let leader = cluster.leader_of(hit).await;
    let replica = cluster.nodes[leader].host().replica(hit).unwrap();
    replica.read_barrier(ReadLevel::Linearizable, PATIENCE).await.unwrap();
    for id in &setup.ids[&hit] {
        assert!(replica.anchor(*id).unwrap().is_some(), "{id} is lost");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_log_is_gone_starts_again_and_again_and_takes_part_in_nothing() {
    let mut setup = Setup::start().await;
    let (hit, spared) = (setup.hit, setup.spared);
    let cluster = &mut setup.cluster;
    let node = (cluster.leader_of(hit).await + 1) % 3;
    crash(cluster, node).await;
    let fs = disk(cluster, node).fs.clone();
    for name in fs.list(Path::new(LOG_DIR)).unwrap() {
        if name.ends_with(".segment") {
            fs.remove(&Path::new(LOG_DIR).join(name)).unwrap();
        }
    }
    fs.sync_dir(Path::new(LOG_DIR)).unwrap();
    for _ in 0..2 {
        cluster.restart(node).await;
        for shard in [hit, spared] {
            let replica =
                eventually("the replica is open", || cluster.nodes[node].host().replica(shard));
            assert_eq!(replica.await.fence(), Some(Fence::Closed));
        }
        crash(cluster, node).await;
    }
    cluster.restart(node).await;
    setup.write(40).await;
    for (shard, ids) in &setup.ids {
        let leader = setup.cluster.leader_of(*shard).await;
        assert_ne!(leader, node);
        let replica = setup.cluster.nodes[leader].host().replica(*shard).unwrap();
        replica.read_barrier(ReadLevel::Linearizable, PATIENCE).await.unwrap();
        for id in ids {
            assert!(replica.anchor(*id).unwrap().is_some(), "{id} is lost");
        }
    }
}

/// The node that leads the catalog, and how many vote, as it says.
async fn catalog_leader(cluster: &TestCluster) -> (usize, usize) {
    eventually("somebody leads the catalog", || {
        let leads =
            |node: &TestNode| node.running.is_some() && node.host().catalog_replica().is_leader();
        let leader = cluster.nodes.iter().position(leads)?;
        Some((leader, cluster.nodes[leader].host().catalog_replica().status().voters))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catalog_replica_that_may_have_forgotten_a_vote_makes_way_for_another() {
    let mut setup = Setup::start().await;
    let cluster = &mut setup.cluster;
    // Each node in turn, the first of them twice, whether it leads or not.
    for (round, node) in [0, 1, 2, 0].into_iter().enumerate() {
        let before = cluster.nodes[node].host().catalog_replica().replica_id();
        crash(cluster, node).await;
        forget_votes(&disk(cluster, node).fs, ShardId::CATALOG);
        cluster.restart(node).await;
        assert_eq!(cluster.nodes[node].host().catalog().borrow().accounts.len(), 1 + round);
        eventually("it has another replica of the catalog", || {
            let replica = cluster.nodes[node].host().catalog_replica();
            (before < replica.replica_id() && replica.fence().is_none()).then_some(())
        })
        .await;
        eventually("three vote", || {
            let leads = |node: &&TestNode| node.host().catalog_replica().is_leader();
            let leader = cluster.nodes.iter().find(leads)?.host().catalog_replica();
            let own = cluster.nodes[node].host().catalog_replica().replica_id();
            let knows = leader.replica_id() == own
                || leader.status().matched.iter().any(|(id, at)| *id == own && at.is_some());
            // The change is through: otherwise those that go away next may be needed for it.
            let is_through = |node: &TestNode| {
                let status = node.host().catalog_replica().status();
                status.voters == 3 && !status.is_joint
            };
            (cluster.nodes.iter().all(is_through) && knows).then_some(())
        })
        .await;
        // Its vote counts: without it there is no quorum.
        let away = (node + 1) % 3;
        crash(cluster, away).await;
        cluster.create_account(&format!("b{round}"), Vec::new()).await;
        cluster.restart(away).await;
        // A later start knows it under the new id.
        let now = cluster.nodes[node].host().catalog_replica().replica_id();
        crash(cluster, node).await;
        cluster.restart(node).await;
        assert_eq!(cluster.nodes[node].host().catalog_replica().replica_id(), now);
        eventually("all know all accounts", || {
            let knows =
                |node: &TestNode| node.host().catalog().borrow().accounts.len() == round + 2;
            cluster.nodes.iter().all(knows).then_some(())
        })
        .await;
    }
    assert_eq!(catalog_leader(&setup.cluster).await.1, 3);
    setup.write(40).await;
    setup.check_everywhere().await;
}
