//! Shards that split while they are written to, and what crashes and lost disks make of that.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anchorhold_consensus::{
    ConsensusConfig, ProposeError, ReadLevel, Replica, ReplicaDigest, SplitDone, SplitError,
};
use anchorhold_model::catalog::{CatalogCommand, CatalogOutcome};
use anchorhold_model::{
    AnchorId, Command, Key, KeyRange, OperationId, Outcome, Rejection, RequestId, ShardId, Write,
};
use anchorhold_storage::{GroupId, LogStore as _, MemoryState};

use crate::support::{PATIENCE, TestCluster, anchor, eventually};

/// No file is made unless a test asks for it.
pub(crate) fn still() -> ConsensusConfig {
    ConsensusConfig { checkpoint_interval_ms: 3_600_000, ..ConsensusConfig::default() }
}

/// Files are made and logs purged all the time.
pub(crate) fn busy() -> ConsensusConfig {
    ConsensusConfig {
        snapshot_entries: 20,
        snapshot_entries_kept: 2,
        checkpoint_interval_ms: 50,
        ..ConsensusConfig::default()
    }
}

/// The replica that leads the shard which owns an anchor's key, if one does.
pub(crate) fn owner(cluster: &TestCluster, id: AnchorId) -> Option<Arc<Replica>> {
    let running = cluster.nodes.iter().filter_map(|node| node.running.as_ref());
    let mut replicas = running.flat_map(|running| running.host.replicas());
    replicas.find(|replica| replica.is_leader() && replica.state().descriptor.range.contains_id(id))
}

/// Creates an anchor wherever its key belongs, until there is an outcome.
pub(crate) async fn write(cluster: &TestCluster, item: u64) -> AnchorId {
    let anchor = anchor(item);
    let id = anchor.id;
    let written = async {
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let Some(replica) = owner(cluster, id) else { continue };
            let operation = OperationId { request_id: RequestId(u128::from(item)), item: 0 };
            let epoch = replica.state().descriptor.epoch;
            let write = Write::Create(Box::new(anchor.clone()));
            let commands = vec![Command { operation, epoch, write }];
            match replica.propose(commands, Duration::from_secs(2)).await {
                Ok(outcomes) => match &outcomes[..] {
                    [Outcome::Written { .. }] => return,
                    [Outcome::Rejected(Rejection::StaleEpoch { .. } | Rejection::Merging)] => {}
                    other => panic!("not written: {other:?}"),
                },
                Err(
                    ProposeError::NotLeader { .. }
                    | ProposeError::OutcomeUnknown { .. }
                    | ProposeError::StaleEpoch { .. }
                    | ProposeError::Stopped { .. },
                ) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, written).await.unwrap_or_else(|_| panic!("never written"));
    id
}

async fn reserve(cluster: &TestCluster, number: u128) -> ShardId {
    let command = CatalogCommand::ReserveShard { request_id: RequestId(1 << 100 | number) };
    loop {
        let running = cluster.nodes.iter().find_map(|node| node.running.as_ref()).unwrap();
        match running.host.propose_catalog(command.clone(), Duration::from_secs(5)).await {
            Ok(CatalogOutcome::ShardReserved { shard_id }) => return shard_id,
            Ok(other) => panic!("{other:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Splits a shard at its median.
pub(crate) async fn split(cluster: &TestCluster, shard: ShardId, number: u128) -> ShardId {
    split_at(cluster, shard, number, None).await
}

/// Splits a shard; repeated until it is done, like whoever is asked to.
pub(crate) async fn split_at(
    cluster: &TestCluster,
    shard: ShardId,
    number: u128,
    at: Option<Key>,
) -> ShardId {
    let child = reserve(cluster, number).await;
    let mut epoch = None;
    let done = async {
        loop {
            let leader = cluster.leader_of(shard).await;
            let Some(running) = cluster.nodes[leader].running.as_ref() else { continue };
            let Some(replica) = running.host.replica(shard) else { continue };
            let epoch = *epoch.get_or_insert(replica.state().descriptor.epoch);
            let timeout = Duration::from_secs(5);
            match running.host.split(shard, epoch, at, child, timeout).await {
                Ok(SplitDone { child: made, .. }) => {
                    assert_eq!(made.shard_id, child);
                    return;
                }
                // An earlier try took effect.
                Err(SplitError::Propose(ProposeError::StaleEpoch { .. })) => return,
                Err(SplitError::Propose(_) | SplitError::NotReady { .. }) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, done).await.unwrap_or_else(|_| panic!("never split"));
    child
}

/// Waits until every running node holds the same replicas, and each shard's replicas hold the same;
/// their ranges cover all keys that the first shard owned, once.
pub(crate) async fn settle(
    cluster: &TestCluster,
    whole: KeyRange,
) -> BTreeMap<ShardId, ReplicaDigest> {
    let mut last = String::new();
    let agreed = async {
        loop {
            match agreement(cluster, whole).await {
                Ok(digests) => return digests,
                Err(why) => last = why,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let agreed = tokio::time::timeout(PATIENCE, agreed).await;
    agreed.unwrap_or_else(|_| panic!("the nodes never agree: {last}"))
}

async fn agreement(
    cluster: &TestCluster,
    whole: KeyRange,
) -> Result<BTreeMap<ShardId, ReplicaDigest>, String> {
    let mut digests: BTreeMap<ShardId, ReplicaDigest> = BTreeMap::new();
    let mut shards: Option<BTreeSet<ShardId>> = None;
    for (number, node) in cluster.nodes.iter().enumerate() {
        let Some(running) = &node.running else { continue };
        let replicas = running.host.replicas();
        covers(whole, &replicas).map_err(|why| format!("node {number}: {why}"))?;
        let here: BTreeSet<ShardId> = replicas.iter().map(|replica| replica.shard_id()).collect();
        if *shards.get_or_insert_with(|| here.clone()) != here {
            return Err(format!("node {number} has {here:?}, others {shards:?}"));
        }
        for replica in replicas {
            let shard = replica.shard_id();
            let read = replica.read_barrier(ReadLevel::Linearizable, Duration::from_secs(2)).await;
            read.map_err(|error| format!("node {number}: {error}"))?;
            let digest = replica.digest(None, Duration::from_secs(2), 1 << 30).await;
            let digest = digest.map_err(|error| error.to_string())?;
            let known = digests.entry(shard).or_insert(digest);
            if known.digest != digest.digest {
                return Err(format!("node {number}, {shard}: {digest:?}, others {known:?}"));
            }
            let mut anchors = 0;
            let mut count = |_| {
                anchors += 1;
                ControlFlow::Continue(())
            };
            replica.scan_anchors(KeyRange::FULL, &mut count).unwrap();
            if replica.state().anchors != anchors {
                return Err(format!("{shard} counts wrong: {anchors} lie there"));
            }
        }
    }
    Ok(digests)
}

fn covers(whole: KeyRange, replicas: &[Arc<Replica>]) -> Result<(), String> {
    let mut ranges: Vec<KeyRange> =
        replicas.iter().map(|replica| replica.state().descriptor.range).collect();
    ranges.sort();
    let mut start = Some(whole.start);
    for range in &ranges {
        if start != Some(range.start) {
            return Err(format!("a gap or an overlap before {range:?}"));
        }
        start = range.end;
    }
    if start == whole.end { Ok(()) } else { Err("the last keys are nobody's".to_owned()) }
}

/// Everything acknowledged is on every running node.
pub(crate) async fn assert_all_there(cluster: &TestCluster, ids: &[AnchorId]) {
    for node in &cluster.nodes {
        let Some(running) = &node.running else { continue };
        let replicas = running.host.replicas();
        for id in ids {
            let owner = replicas.iter().find(|one| one.state().descriptor.range.contains_id(*id));
            assert!(owner.unwrap().anchor(*id).unwrap().is_some(), "{id:?} is lost");
        }
    }
}

/// Makes a snapshot file of a shard on every node that runs.
pub(crate) async fn make_files(cluster: &TestCluster, shard: ShardId) {
    for running in cluster.nodes.iter().filter_map(|node| node.running.as_ref()) {
        let replica = eventually("the replica is open", || running.host.replica(shard)).await;
        replica.renew_snapshot().await;
        eventually("there is a file", || replica.status().snapshot_index.filter(|at| 5 < *at))
            .await;
    }
}

pub(crate) fn whole_of(cluster: &TestCluster, shard: ShardId) -> KeyRange {
    cluster.nodes[0].host().catalog().borrow().shards[&shard].range
}

pub(crate) async fn load(cluster: &TestCluster, first: u64, count: u64) -> Vec<AnchorId> {
    let mut ids = Vec::new();
    for chunk in (first..first + count).collect::<Vec<_>>().chunks(16) {
        ids.extend(futures::future::join_all(chunk.iter().map(|item| write(cluster, *item))).await);
    }
    ids
}

/// Writes until something is done; gives what was written.
pub(crate) async fn beside_writes<T>(
    cluster: &TestCluster,
    work: impl Future<Output = T>,
) -> (T, Vec<AnchorId>) {
    let (next, stop) = (AtomicU64::new(1_000), AtomicBool::new(false));
    let writer = || async {
        let mut written = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            written.push(write(cluster, next.fetch_add(1, Ordering::Relaxed)).await);
        }
        written
    };
    let work = async {
        let done = work.await;
        stop.store(true, Ordering::Relaxed);
        done
    };
    let (done, mut written, other) = tokio::join!(work, writer(), writer());
    written.extend(other);
    (done, written)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_split_under_writes_and_nothing_acknowledged_is_lost() {
    let cluster = TestCluster::start_with(3, busy()).await;
    let shard = cluster.create_account("split", Vec::new()).await[0];
    let whole = whole_of(&cluster, shard);
    let mut ids = load(&cluster, 0, 200).await;
    let splits = async {
        let first = split(&cluster, shard, 1).await;
        let second = split(&cluster, shard, 2).await;
        let third = split(&cluster, first, 3).await;
        [first, second, third]
    };
    let (children, written) = beside_writes(&cluster, splits).await;
    ids.extend(written);
    let digests = settle(&cluster, whole).await;
    assert_eq!(digests.len(), 4);
    assert_all_there(&cluster, &ids).await;
    let anchors: u64 = digests.values().map(|digest| digest.anchors).sum();
    assert_eq!(anchors, ids.len() as u64);
    println!("{} anchors written beside three splits", ids.len() - 200);
    // The catalog learns both sides of each.
    eventually("the catalog knows the children", || {
        let catalog = cluster.nodes[2].host().catalog();
        let catalog = catalog.borrow();
        let shards: Vec<_> = catalog.shards_overlapping(whole).map(|one| one.shard_id).collect();
        let is_known = children.iter().all(|child| shards.contains(child));
        (is_known && shards.len() == 4).then_some(())
    })
    .await;
    // A retry of a write from before is answered by whoever owns the key now.
    assert_eq!(write(&cluster, 7).await, anchor(7).id);
    assert_eq!(settle(&cluster, whole).await.values().map(|one| one.anchors).sum::<u64>(), anchors);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_away_gets_the_split_by_the_log() {
    let mut cluster = TestCluster::start_with(3, still()).await;
    let shard = cluster.create_account("log", Vec::new()).await[0];
    let whole = whole_of(&cluster, shard);
    let mut ids = load(&cluster, 0, 60).await;
    let away = (cluster.leader_of(shard).await + 1) % 3;
    cluster.nodes[away].crash(true).await;
    let child = split(&cluster, shard, 1).await;
    ids.extend(load(&cluster, 100, 60).await);
    // Nobody who is there waits for a file any more; to whoever is away all three shards come by
    // one log.
    make_files(&cluster, child).await;
    split(&cluster, child, 2).await;
    ids.extend(load(&cluster, 200, 60).await);
    cluster.restart(away).await;
    settle(&cluster, whole).await;
    assert_all_there(&cluster, &ids).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_away_gets_both_sides_by_snapshots() {
    let mut cluster = TestCluster::start_with(3, busy()).await;
    let shard = cluster.create_account("snapshots", Vec::new()).await[0];
    let whole = whole_of(&cluster, shard);
    let mut ids = load(&cluster, 0, 60).await;
    let away = (cluster.leader_of(shard).await + 1) % 3;
    cluster.nodes[away].crash(true).await;
    let child = split(&cluster, shard, 1).await;
    // Until the logs of both sides have been purged past what the follower has.
    let mut item = 1_000;
    let is_purged = |shard: ShardId| {
        let group = GroupId { shard: shard.0, incarnation: 1 };
        let log = |number: usize| cluster.nodes[number].disk.log.group(group).unwrap_or_default();
        let needed = log(away).last.map_or(5, |last| last.index.max(5));
        let purged = |number: usize| log(number).purged.map_or(0, |at| at.index);
        [1, 2].iter().all(|more| needed < purged((away + more) % 3))
    };
    while !(is_purged(shard) && is_purged(child)) {
        ids.extend(load(&cluster, item, 20).await);
        item += 20;
        assert!(item < 20_000, "the logs are never purged");
    }
    cluster.restart(away).await;
    settle(&cluster, whole).await;
    assert_all_there(&cluster, &ids).await;
    let replaced = cluster.nodes[away].heard.replaced.lock().clone();
    assert!(replaced.contains(&shard) && replaced.contains(&child), "{replaced:?}");
}

/// The engine is gone while the child has no file: the parent is rebuilt from before the split, and
/// the child begins again under the log that it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newborn_survives_the_loss_of_the_state_engine() {
    let mut cluster = TestCluster::start_with(3, still()).await;
    let shard = cluster.create_account("lost", Vec::new()).await[0];
    let whole = whole_of(&cluster, shard);
    let mut ids = load(&cluster, 0, 60).await;
    let child = split(&cluster, shard, 1).await;
    ids.extend(load(&cluster, 100, 60).await);
    for round in 0..2 {
        for number in 0..3 {
            cluster.nodes[number].crash(true).await;
            cluster.nodes[number].disk.state = Arc::new(MemoryState::new());
            if round == 0 {
                // One after the other, or all at once.
                cluster.restart(number).await;
                settle(&cluster, whole).await;
                ids.extend(load(&cluster, 1_000 + 100 * number as u64, 20).await);
            }
        }
        if round == 1 {
            for number in 0..3 {
                cluster.restart(number).await;
            }
        }
        settle(&cluster, whole).await;
        assert_all_there(&cluster, &ids).await;
    }
    assert!(cluster.nodes[0].host().replica(child).is_some());
}

/// The engine is gone when the child has a file and its parent has none from after the split: the
/// child waits until its parent has split again, and goes on from its own file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_with_a_file_of_its_own_waits_for_a_parent_that_is_set_back() {
    let mut cluster = TestCluster::start_with(3, still()).await;
    let shard = cluster.create_account("set-back", Vec::new()).await[0];
    let whole = whole_of(&cluster, shard);
    let mut ids = load(&cluster, 0, 60).await;
    let child = split(&cluster, shard, 1).await;
    ids.extend(load(&cluster, 100, 60).await);
    settle(&cluster, whole).await;
    // The parent keeps its file from before: nothing asks for another.
    make_files(&cluster, child).await;
    ids.extend(load(&cluster, 200, 60).await);
    for number in 0..3 {
        cluster.nodes[number].crash(true).await;
        cluster.nodes[number].disk.state = Arc::new(MemoryState::new());
    }
    for number in 0..3 {
        cluster.restart(number).await;
    }
    settle(&cluster, whole).await;
    assert_all_there(&cluster, &ids).await;
}

/// Crashes of any node at any moment around a split, with and without power and engine lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_around_splits_leave_every_key_with_one_owner() {
    let rounds = if std::env::var_os("ANCHORHOLD_LONG").is_some() { 60 } else { 6 };
    let mut choice = 0x5eed_u64;
    let mut below = |bound: u64| {
        choice =
            choice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (choice >> 33) % bound
    };
    let mut cluster = TestCluster::start_with(3, busy()).await;
    let shard = cluster.create_account("crash", Vec::new()).await[0];
    let whole = whole_of(&cluster, shard);
    let mut ids = load(&cluster, 0, 100).await;
    let mut shards = vec![shard];
    for round in 0..rounds {
        let shard = shards[usize::try_from(below(shards.len() as u64)).unwrap()];
        let victim = usize::try_from(below(3)).unwrap();
        let (power, engine) = (below(2) == 0, below(3) == 0);
        let pause = Duration::from_millis(below(400));
        // The split goes on while a node ends: whoever leads then carries it on, or it is repeated.
        let child = {
            let begun = begin_split(&cluster, shard, 100 + u128::from(round)).await;
            tokio::time::sleep(pause).await;
            begun
        };
        cluster.nodes[victim].crash(power || engine).await;
        if engine {
            cluster.nodes[victim].disk.state = Arc::new(MemoryState::new());
        }
        ids.extend(load(&cluster, 10_000 + 100 * round, 30).await);
        cluster.restart(victim).await;
        let digests = settle(&cluster, whole).await;
        assert_all_there(&cluster, &ids).await;
        if digests.contains_key(&child) {
            shards.push(child);
        }
        println!(
            "round {round}: node {victim}, power {power}, engine {engine}: {} shards",
            digests.len()
        );
    }
    assert!(1 < shards.len(), "no split took effect");
    let ended = cluster.nodes.iter().filter(|node| node.ended.0.load(Ordering::SeqCst)).count();
    assert_eq!(ended, 0, "nodes ended by themselves");
}

/// Begins a split at the shard's leader and does not wait for it.
async fn begin_split(cluster: &TestCluster, shard: ShardId, number: u128) -> ShardId {
    let child = reserve(cluster, number).await;
    let leader = cluster.leader_of(shard).await;
    let host = cluster.nodes[leader].host().clone();
    if let Some(replica) = host.replica(shard) {
        let epoch = replica.state().descriptor.epoch;
        tokio::spawn(async move {
            drop(host.split(shard, epoch, None, child, Duration::from_secs(5)).await);
        });
    }
    child
}
