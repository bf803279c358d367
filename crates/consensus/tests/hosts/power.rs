//! Power cuts under load, on real stores: the log loses what it did not sync, at whichever call the
//! power goes; sled's files come back as they were, older, cut, zeroed or not at all. Nothing
//! acknowledged may be lost, and every start must succeed.
//!
//! The same rounds find both classic mistakes: answering before the fsync, and trusting the state
//! engine as the only copy.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anchorhold_consensus::{ConsensusConfig, ReadLevel};
use anchorhold_model::{AnchorId, Command, OperationId, Outcome, RequestId, ShardId, Write};
use anchorhold_storage::fs::Fault;
use futures::FutureExt as _;

use crate::support::{DurableDisk, PATIENCE, TestCluster, anchor};

const SEED: u64 = 0x00c0_ffee_0ff5;
/// Rounds in every run, and with `ANCHORHOLD_LONG=1`.
const ROUNDS: u64 = 8;
const ROUNDS_LONG: u64 = 200;
/// Writers at once, and writes of each in one round.
const WRITERS: u64 = 4;
const WRITES_MAX: u64 = 12;
/// What a round wrote is deleted after so many more, apart from its first anchors: a state that
/// grows for ever makes every snapshot, and so every round, slower than the one before.
const ROUNDS_KEPT: usize = 3;
const ANCHORS_KEPT: usize = 4;
/// Deletes in one entry.
const DELETES_MAX: usize = 250;
/// A property of an anchor holds at most this many bytes.
const FILLING_BYTES: usize = 3_900;

/// Decisions that follow from a seed (splitmix64).
struct Choice(u64);

impl Choice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// A design's mistake that the rounds have to find.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    AnswersEarly,
    TrustsTheEngine,
}

/// Snapshots often, so that the log is purged under the load.
fn busy() -> ConsensusConfig {
    ConsensusConfig {
        snapshot_entries: 30,
        snapshot_entries_kept: 5,
        checkpoint_interval_ms: 100,
        ..ConsensusConfig::default()
    }
}

struct Rounds {
    cluster: TestCluster,
    shard: ShardId,
    choice: Choice,
    mistake: Mistake,
    item: u64,
    /// What was acknowledged and is not deleted, by round.
    acknowledged: Vec<Vec<AnchorId>>,
    /// What was acknowledged and then deleted, by round.
    deleted: Vec<Vec<AnchorId>>,
}

impl Rounds {
    async fn start(mistake: Mistake) -> Self {
        println!("seed {SEED:#x}");
        let answers_early = mistake == Mistake::AnswersEarly;
        let disk = || Some(DurableDisk { answers_early, ..DurableDisk::new() });
        let cluster = TestCluster::start_on(3, busy(), disk).await;
        let shard = cluster.create_account("power", Vec::new()).await[0];
        let choice = Choice(SEED);
        Self { cluster, shard, choice, mistake, item: 0, acknowledged: vec![], deleted: vec![] }
    }

    /// Cuts one, two or all nodes' power under load and starts them again.
    async fn round(&mut self) {
        let victims = self.victims();
        for victim in &victims {
            let fs = &self.cluster.nodes[*victim].disk.durable.as_ref().unwrap().fs;
            // At whichever call: a write, its sync, a new segment, a removal.
            fs.fail_at(fs.calls() + self.choice.below(60), Fault::PowerCut);
        }
        let first = self.item;
        self.item += WRITERS * 10_000;
        let sizes: Vec<u64> = (0..WRITERS).map(|_| self.choice.below(20)).collect();
        let (cluster, shard) = (&self.cluster, self.shard);
        let writers = (0..WRITERS).zip(&sizes).map(|(writer, size)| {
            write_until_refused(cluster, shard, first + writer * 10_000, *size)
        });
        let written = futures::future::join_all(writers).await;
        self.acknowledged.push(written.into_iter().flatten().collect());
        for victim in &victims {
            self.lose_power(*victim).await;
        }
        for victim in victims {
            self.cluster.restart(victim).await;
        }
    }

    fn victims(&mut self) -> Vec<usize> {
        let first = usize::try_from(self.choice.below(3)).unwrap();
        let count = [1, 2, 3, 3][usize::try_from(self.choice.below(4)).unwrap()];
        (0..count).map(|more| (first + more) % 3).collect()
    }

    /// The node is gone; what its disks hold is what a power cut leaves.
    async fn lose_power(&mut self, victim: usize) {
        let copy = tempfile::tempdir().unwrap();
        let node = &mut self.cluster.nodes[victim];
        // As it is while the node runs: no file is at one moment of another.
        copy_dir(node.disk.durable.as_ref().unwrap().state.path(), copy.path());
        node.crash(true).await;
        let durable = node.disk.durable.as_mut().unwrap();
        let seed = self.choice.below(1_000);
        durable.fs = durable.fs.after_crash(seed);
        match self.choice.below(6) {
            0 | 1 => {}
            2 => empty(copy.path()),
            3 => for_each_file(copy.path(), &mut |path, length| {
                let file = fs::File::options().write(true).open(path).unwrap();
                file.set_len(self.choice.below(length + 1)).unwrap();
            }),
            4 => for_each_file(copy.path(), &mut |path, length| {
                let mut bytes = fs::read(path).unwrap();
                let from = usize::try_from(self.choice.below(length + 1)).unwrap();
                bytes[from..].fill(0);
                fs::write(path, bytes).unwrap();
            }),
            _ => {
                // The engine's file is older than what names its checkpoint.
                let file = copy.path().join("current/sled/db");
                let length = fs::metadata(&file).map_or(0, |found| found.len());
                let file = fs::File::options().write(true).open(file);
                drop(file.map(|file| file.set_len(length / 2)));
            }
        }
        durable.state = copy;
        if self.mistake == Mistake::TrustsTheEngine {
            // A design without snapshot files beside the engine: only founding files are left.
            for_each_file(node.disk.dir.path(), &mut |path, _| {
                if !path.to_string_lossy().ends_with("none.snap") {
                    fs::remove_file(path).unwrap();
                }
            });
        }
    }

    /// Deletes most of what the next old round has written. No power is cut meanwhile.
    async fn thin_out(&mut self) {
        let next = self.deleted.len();
        if self.acknowledged.len() <= next + ROUNDS_KEPT {
            return;
        }
        let kept = ANCHORS_KEPT.min(self.acknowledged[next].len());
        let old = self.acknowledged[next].split_off(kept);
        for (part, ids) in (0..).zip(old.chunks(DELETES_MAX)) {
            // The same request until it is answered: it takes effect once.
            let request_id = RequestId(1 << 64 | (next as u128) << 32 | part);
            let deleted = async { while !self.delete(ids, request_id).await {} };
            tokio::time::timeout(PATIENCE, deleted).await.expect("the old are never deleted");
        }
        self.deleted.push(old);
    }

    /// Returns whether there was an answer.
    async fn delete(&self, ids: &[AnchorId], request_id: RequestId) -> bool {
        let leader = self.cluster.leader_of(self.shard).await;
        let Some(replica) = self.cluster.nodes[leader].host().replica(self.shard) else {
            return false;
        };
        let epoch = replica.state().descriptor.epoch;
        let commands = (0..).zip(ids).map(|(item, id)| {
            let operation = OperationId { request_id, item };
            Command { operation, epoch, write: Write::Delete { id: *id, if_version: None } }
        });
        let answer = replica.propose(commands.collect(), Duration::from_secs(2)).await;
        if answer.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let deleted = |outcome: &Outcome| matches!(outcome, Outcome::Deleted { .. });
        answer.is_ok_and(|outcomes| {
            assert!(
                outcomes.iter().all(deleted),
                "what was acknowledged is not there: {outcomes:?}"
            );
            true
        })
    }

    /// Counts what was deleted since a round and is there again, on every node. Ask for what is lost
    /// first: then every node has come as far as the cluster.
    fn returned(&self, since: usize) -> usize {
        let replicas = self.cluster.nodes.iter().filter_map(|node| node.host().replica(self.shard));
        let returned = replicas.map(|replica| {
            let ids = self.deleted[since.min(self.deleted.len())..].iter().flatten();
            ids.filter(|id| replica.anchor(**id).unwrap().is_some()).count()
        });
        returned.sum()
    }

    /// Looks for everything acknowledged since a round, on every node.
    async fn lost(&self, since: usize) -> usize {
        let mut lost = 0;
        for node in &self.cluster.nodes {
            let replica = crate::support::eventually("the replica is open", || {
                node.host().replica(self.shard)
            })
            .await;
            let asked = async {
                while replica.read_barrier(ReadLevel::Linearizable, PATIENCE).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(2 * PATIENCE, asked).await.expect("no linearizable read");
            let ids = self.acknowledged[since..].iter().flatten();
            lost += ids.filter(|id| replica.anchor(**id).unwrap().is_none()).count();
        }
        lost
    }
}

/// One writer: entries of 100 B to 1 MiB, until one is refused. Gives what was acknowledged.
async fn write_until_refused(
    cluster: &TestCluster,
    shard: ShardId,
    first: u64,
    size: u64,
) -> Vec<AnchorId> {
    let (count, filling) = match size {
        0 => (260, FILLING_BYTES),
        1..=3 => (16, FILLING_BYTES),
        4..=9 => (1, FILLING_BYTES),
        _ => (1, 1),
    };
    let mut acknowledged = Vec::new();
    for write in 0..WRITES_MAX {
        let leads = |replica: &std::sync::Arc<anchorhold_consensus::Replica>| replica.is_leader();
        let mut replicas = cluster.nodes.iter().filter_map(|node| node.host().replica(shard));
        let Some(replica) = replicas.find(leads) else { break };
        let epoch = replica.state().descriptor.epoch;
        let mut ids = Vec::new();
        let commands = (0..count).map(|number| {
            let item = first + write * 300 + number;
            let mut anchor = anchor(item);
            anchor.properties.insert("filling".into(), "x".repeat(filling));
            ids.push(anchor.id);
            let operation = OperationId { request_id: RequestId(u128::from(item)), item: 0 };
            Command { operation, epoch, write: Write::Create(Box::new(anchor)) }
        });
        match replica.propose(commands.collect(), Duration::from_secs(2)).await {
            Ok(outcomes) => {
                assert!(outcomes.iter().all(|one| matches!(one, Outcome::Written { .. })));
                acknowledged.extend(ids);
            }
            Err(_) => break,
        }
    }
    acknowledged
}

fn copy_dir(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy_dir(&entry.path(), &target);
        } else {
            // One that is gone meanwhile was not there.
            drop(fs::copy(entry.path(), target));
        }
    }
}

fn empty(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        if entry.path().is_dir() {
            fs::remove_dir_all(entry.path()).unwrap();
        } else {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}

fn for_each_file(dir: &Path, visit: &mut dyn FnMut(&Path, u64)) {
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().flatten().map(|one| one.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            for_each_file(&path, visit);
        } else {
            visit(&path, fs::metadata(&path).unwrap().len());
        }
    }
}

fn rounds() -> u64 {
    if std::env::var_os("ANCHORHOLD_LONG").is_some() { ROUNDS_LONG } else { ROUNDS }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_cuts_at_any_call_of_any_nodes_lose_nothing_and_every_start_succeeds() {
    let mut rounds_left = Rounds::start(Mistake::None).await;
    for round in 0..rounds() {
        rounds_left.round().await;
        rounds_left.cluster.leader_of(rounds_left.shard).await;
        let since = usize::try_from(round.saturating_sub(2)).unwrap();
        assert_eq!(rounds_left.lost(since).await, 0, "after round {round}");
        assert_eq!(rounds_left.returned(since.saturating_sub(ROUNDS_KEPT)), 0, "after {round}");
        rounds_left.thin_out().await;
        let acknowledged = rounds_left.acknowledged.last().map_or(0, Vec::len);
        println!("round {round}: {acknowledged} anchors acknowledged, none lost");
    }
    let (kept, deleted) = (&rounds_left.acknowledged, &rounds_left.deleted);
    let acknowledged: usize = kept.iter().chain(deleted).map(Vec::len).sum();
    println!("{} rounds, {acknowledged} anchors acknowledged", rounds());
    assert!(100 < acknowledged, "{acknowledged}");
    assert_eq!((rounds_left.lost(0).await, rounds_left.returned(0)), (0, 0));
}

/// Rounds in which a mistake must show, and how long one may take before the cluster counts as
/// broken: openraft ends a replica that finds its log or state gone back.
const MISTAKE_ROUNDS_MAX: u64 = 40;
const MISTAKE_ROUND_MAX: Duration = Duration::from_secs(30);

/// Runs the same rounds until something is lost, a start fails or the shard stands still.
async fn finds(mistake: Mistake) -> bool {
    let mut rounds = Rounds::start(mistake).await;
    for round in 0..MISTAKE_ROUNDS_MAX {
        let survived = std::panic::AssertUnwindSafe(async {
            rounds.round().await;
            rounds.cluster.leader_of(rounds.shard).await;
            rounds.lost(0).await
        });
        match tokio::time::timeout(MISTAKE_ROUND_MAX, survived.catch_unwind()).await {
            Ok(Ok(0)) => {}
            outcome => {
                let lost = outcome.map_or(0, |lost| lost.unwrap_or(0));
                println!("found in round {round}: {lost} lost, or a node that cannot go on");
                return true;
            }
        }
    }
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answering_before_the_fsync_is_found() {
    assert!(finds(Mistake::AnswersEarly).await, "no round has lost anything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trusting_the_state_engine_as_the_only_copy_is_found() {
    assert!(finds(Mistake::TrustsTheEngine).await, "no round has lost anything");
}
