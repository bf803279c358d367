//! What clients do to etcd: the `set` and the `register` workload, recorded like any other.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anchorhold_model::Version;
use anyhow::Context as _;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tonic::Status;

use super::api::{KeyValue, Member, RangeRequest};
use super::cluster::{ATTEMPT_MAX, EtcdCluster};
use crate::clock::RunClock;
use crate::history::{Action, Header, Level, Operation, Outcome, Position, Recorder, Row, Served};
use crate::judge::read_back_file;
use crate::run_directory::RunDirectory;
use crate::workload::{Pace, RegisterConfig, SetConfig, WorkloadConfig};

/// Incarnation of all versions: there is one group and it is never founded again.
const INCARNATION: u32 = 1;
/// Anchors of the set workload that a client remembers, to read and delete them.
const KNOWN_MAX: usize = 1_000;
/// How long reading back may take.
const READ_BACK_MAX: Duration = Duration::from_secs(60);
const READ_BACK_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a request may be under way after its client has given it up.
const STRAGGLERS_MAX: Duration = Duration::from_secs(6);

/// A workload whose clients are at work.
pub(super) struct EtcdWorkload {
    header: Header,
    stage: Arc<Stage>,
    clients: Vec<JoinHandle<anyhow::Result<()>>>,
}

struct Stage {
    clock: RunClock,
    recorder: Recorder,
    stop: AtomicBool,
    acknowledged: AtomicU64,
    failed: AtomicU64,
    unknown: AtomicU64,
    last_ack_ns: AtomicU64,
    /// Writes of unknown outcome, to be found out in the end.
    open: Mutex<Vec<Operation>>,
}

/// One client: it stays with a member until that does not answer.
struct Client {
    stage: Arc<Stage>,
    number: u32,
    members: Vec<Member>,
    at: usize,
    prefix: String,
    rng: StdRng,
    pace: Pace,
    values: u64,
}

fn key(prefix: &str, id: u128) -> Vec<u8> {
    format!("{prefix}{id:032x}").into_bytes()
}

fn version(revision: i64) -> Version {
    Version { incarnation: INCARNATION, revision: u64::try_from(revision).unwrap_or_default() }
}

fn value_of(pair: &KeyValue) -> u64 {
    std::str::from_utf8(&pair.value).ok().and_then(|text| text.parse().ok()).unwrap_or_default()
}

impl EtcdWorkload {
    /// Starts the clients of a workload.
    ///
    /// # Errors
    /// If its record cannot be made, or the keys that must be there beforehand cannot be written.
    pub(super) async fn start(
        config: &WorkloadConfig,
        cluster: &EtcdCluster,
        clock: RunClock,
        directory: &RunDirectory,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let name = format!("{}-1", config.kind());
        let path = directory.history().join(format!("{name}.bin"));
        let header = Header { name, config: serde_json::to_string(config)?, account: 0, seed };
        let stage = Arc::new(Stage {
            clock,
            recorder: Recorder::create(&path, &header)?,
            stop: false.into(),
            acknowledged: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            last_ack_ns: AtomicU64::new(0),
            open: Mutex::default(),
        });
        let (count, rate) = match config {
            WorkloadConfig::Set(set) => (set.clients, set.rate),
            WorkloadConfig::Register(register) => (register.clients, register.rate),
            WorkloadConfig::Nearest(_)
            | WorkloadConfig::Expiry(_)
            | WorkloadConfig::Session(_)
            | WorkloadConfig::List(_) => anyhow::bail!("etcd has no workload {}", config.kind()),
        };
        let mut clients = Vec::new();
        for number in 0..count {
            let mut rng = StdRng::seed_from_u64(seed.wrapping_add(u64::from(number)));
            clients.push(Client {
                stage: stage.clone(),
                number,
                members: cluster.members(ATTEMPT_MAX)?,
                at: number as usize,
                prefix: prefix(config.kind()),
                pace: Pace::new(rate, count, &mut rng),
                rng,
                values: 0,
            });
        }
        let clients = match config {
            WorkloadConfig::Register(register) => {
                let first = clients.first_mut().context("a workload has clients")?;
                let keys = first.prepare(register.keys).await?;
                let run =
                    |client: Client| tokio::spawn(client.register(register.clone(), keys.clone()));
                clients.into_iter().map(run).collect()
            }
            WorkloadConfig::Set(set) => {
                clients.into_iter().map(|client| tokio::spawn(client.set(set.clone()))).collect()
            }
            WorkloadConfig::Nearest(_)
            | WorkloadConfig::Expiry(_)
            | WorkloadConfig::Session(_)
            | WorkloadConfig::List(_) => Vec::new(),
        };
        Ok(Self { header, stage, clients })
    }

    /// Operations acknowledged, failed, and of unknown outcome.
    pub(super) fn operations(&self) -> [u64; 3] {
        let stage = &self.stage;
        [&stage.acknowledged, &stage.failed, &stage.unknown]
            .map(|count| count.load(Ordering::Relaxed))
    }

    pub(super) fn last_ack_ns(&self) -> u64 {
        self.stage.last_ack_ns.load(Ordering::Relaxed)
    }

    /// Ends the clients and the record.
    ///
    /// # Errors
    /// If a client failed, or the disk did.
    pub(super) async fn stop(mut self, cluster: &EtcdCluster) -> anyhow::Result<Header> {
        self.stage.stop.store(true, Ordering::Relaxed);
        for client in std::mem::take(&mut self.clients) {
            client.await.context("a client panicked")??;
        }
        self.find_out(cluster).await?;
        self.stage.recorder.finish()?;
        Ok(self.header)
    }
}

impl EtcdWorkload {
    /// Finds out what became of the writes without an answer: etcd keeps the history of all keys,
    /// and every value is written once.
    async fn find_out(&self, cluster: &EtcdCluster) -> anyhow::Result<()> {
        // What was sent long ago and is still under way would not be in the history yet.
        sleep(STRAGGLERS_MAX).await;
        let members = cluster.members(READ_BACK_TIMEOUT)?;
        let member = members.first().context("a cluster has members")?;
        let last = format!("the end of {}", self.header.name).into_bytes();
        member.put(last.clone(), Vec::new()).await.context("marking the end of the history")?;
        let history = member.history(&last).await.context("reading the history")?;
        let (mut written, mut deleted) = (HashMap::new(), HashSet::new());
        for change in &history {
            let Some(pair) = &change.pair else { continue };
            if change.is_deletion() {
                deleted.insert(pair.key.clone());
            } else {
                written.insert((pair.key.clone(), value_of(pair)), version(pair.mod_revision));
            }
        }
        let config: WorkloadConfig = serde_json::from_str(&self.header.config)?;
        let prefix = prefix(config.kind());
        for open in std::mem::take(&mut *self.stage.open.lock()) {
            let outcome = match &open.action {
                Action::Create { request: id, value, .. } | Action::Update { id, value, .. } => {
                    let found = written.get(&(key(&prefix, *id), *value)).copied();
                    found.map(|version| Outcome::Written { id: *id, version: Some(version) })
                }
                Action::Delete { id, .. } => {
                    deleted.contains(&key(&prefix, *id)).then_some(Outcome::Deleted)
                }
                Action::Get { .. } | Action::List { .. } | Action::Nearest { .. } => None,
            };
            let never = || Outcome::Failed { reason: "it is not in the history".to_owned() };
            let outcome = outcome.unwrap_or_else(never);
            let end_ns = self.stage.clock.now_ns();
            self.stage.recorder.record(&Operation { end_ns, resolved: true, outcome, ..open })?;
        }
        Ok(())
    }
}

fn prefix(kind: &str) -> String {
    format!("{kind}/")
}

impl Client {
    async fn turn(&mut self) -> bool {
        self.pace.wait().await;
        !self.stage.stop.load(Ordering::Relaxed)
    }

    fn next_value(&mut self) -> u64 {
        self.values += 1;
        (u64::from(self.number) + 1) << 32 | self.values
    }

    /// The member that is asked now.
    fn member(&self) -> Member {
        self.members[self.at % self.members.len()].clone()
    }

    /// Records an operation; one without an answer lets the next go to another member.
    fn record(&mut self, start_ns: u64, action: Action, outcome: Outcome) -> anyhow::Result<()> {
        let stage = &self.stage;
        let end_ns = stage.clock.now_ns();
        let counter = match &outcome {
            Outcome::Failed { .. } => &stage.failed,
            Outcome::Unknown { .. } => &stage.unknown,
            Outcome::Written { .. }
            | Outcome::Deleted
            | Outcome::Found { .. }
            | Outcome::Absent
            | Outcome::Mismatch { .. }
            | Outcome::Rows { .. } => {
                stage.last_ack_ns.fetch_max(end_ns, Ordering::Relaxed);
                &stage.acknowledged
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let node = (self.at % self.members.len()) as u64 + 1;
        if !outcome.is_answer() {
            self.at += 1;
        }
        let (client, resolved) = (self.number, false);
        let served = Served { shard: 1, node, ..Served::default() };
        let served = if outcome.is_answer() { served } else { Served::default() };
        let operation = Operation { client, start_ns, end_ns, resolved, served, action, outcome };
        stage.recorder.record(&operation)?;
        if matches!(operation.outcome, Outcome::Unknown { .. }) {
            stage.open.lock().push(operation);
        }
        Ok(())
    }

    async fn create(&mut self, id: u128) -> anyhow::Result<Option<(Version, u64)>> {
        let (value, start_ns) = (self.next_value(), self.stage.clock.now_ns());
        let key = key(&self.prefix, id);
        let written = self.member().put(key, value.to_string().into_bytes()).await;
        let position = Position { latitude_deg: 0.0, longitude_deg: 0.0, height_m: 0.0 };
        let action = Action::Create { request: id, item: 0, value, position, expire_ns: None };
        let written = written.map(version);
        let outcome = match &written {
            Ok(version) => Outcome::Written { id, version: Some(*version) },
            Err(status) => Outcome::Unknown { reason: reason(status) },
        };
        self.record(start_ns, action, outcome)?;
        Ok(written.ok().map(|version| (version, value)))
    }

    async fn get(&mut self, id: u128) -> anyhow::Result<Option<(Version, u64)>> {
        let start_ns = self.stage.clock.now_ns();
        let key = key(&self.prefix, id);
        let read = self.member().range(RangeRequest { key, ..RangeRequest::default() }).await;
        let found = read.map(|answer| {
            answer.kvs.first().map(|pair| (version(pair.mod_revision), value_of(pair)))
        });
        let outcome = match &found {
            Ok(Some((version, value))) => Outcome::Found { version: *version, value: *value },
            Ok(None) => Outcome::Absent,
            Err(status) => Outcome::Failed { reason: reason(status) },
        };
        self.record(start_ns, Action::Get { id, level: Level::Linearizable }, outcome)?;
        Ok(found.ok().flatten())
    }

    /// Writes the keys that all clients share.
    async fn prepare(&mut self, count: u32) -> anyhow::Result<Vec<u128>> {
        let mut ids = Vec::new();
        for _ in 0..count {
            let mut tries = 0;
            loop {
                let id = self.rng.random();
                if self.create(id).await?.is_some() {
                    ids.push(id);
                    break;
                }
                tries += 1;
                anyhow::ensure!(tries < 20, "etcd does not take a key");
            }
        }
        Ok(ids)
    }

    async fn register(mut self, config: RegisterConfig, keys: Vec<u128>) -> anyhow::Result<()> {
        let mut seen: HashMap<u128, (Version, u64)> = HashMap::new();
        while self.turn().await {
            let id = keys[self.rng.random_range(0..keys.len())];
            let what: f64 = self.rng.random();
            let is_compared = what < config.read_share + config.compare_and_set_share;
            let expected = if is_compared { seen.get(&id).copied() } else { None };
            if what < config.read_share || (is_compared && expected.is_none()) {
                if let Some(found) = self.get(id).await? {
                    seen.insert(id, found);
                }
                continue;
            }
            match self.update(id, expected).await? {
                Some(written) => drop(seen.insert(id, written)),
                None => drop(seen.remove(&id)),
            }
        }
        Ok(())
    }

    async fn update(
        &mut self,
        id: u128,
        expected: Option<(Version, u64)>,
    ) -> anyhow::Result<Option<(Version, u64)>> {
        let (value, start_ns) = (self.next_value(), self.stage.clock.now_ns());
        let (key, bytes) = (key(&self.prefix, id), value.to_string().into_bytes());
        let written = match expected {
            Some((version, _)) => {
                let revision = i64::try_from(version.revision).unwrap_or_default();
                self.member().put_if(key, bytes, revision).await
            }
            None => self.member().put(key, bytes).await.map(Some),
        };
        let written = written.map(|revision| revision.map(version));
        let outcome = match &written {
            Ok(Some(version)) => Outcome::Written { id, version: Some(*version) },
            Ok(None) => Outcome::Mismatch { current: None },
            Err(status) => Outcome::Unknown { reason: reason(status) },
        };
        let action = Action::Update { request: self.rng.random(), id, value, expected };
        self.record(start_ns, action, outcome)?;
        Ok(written.ok().flatten().map(|version| (version, value)))
    }

    async fn set(mut self, config: SetConfig) -> anyhow::Result<()> {
        let mut known: Vec<u128> = Vec::new();
        while self.turn().await {
            let what: f64 = self.rng.random();
            let some = (!known.is_empty()).then(|| self.rng.random_range(0..known.len()));
            match some {
                Some(at) if what < config.delete_share => {
                    let id = known.swap_remove(at);
                    self.delete(id).await?;
                }
                Some(at) if what < config.delete_share + config.read_share => {
                    self.get(known[at]).await?;
                }
                Some(_) | None => {
                    let id = self.rng.random();
                    if self.create(id).await?.is_some() && known.len() < KNOWN_MAX {
                        known.push(id);
                    }
                }
            }
        }
        Ok(())
    }

    async fn delete(&mut self, id: u128) -> anyhow::Result<()> {
        let start_ns = self.stage.clock.now_ns();
        let deleted = self.member().delete(key(&self.prefix, id)).await;
        let outcome = match deleted {
            Ok(true) => Outcome::Deleted,
            Ok(false) => Outcome::Absent,
            Err(status) => Outcome::Unknown { reason: reason(&status) },
        };
        let action = Action::Delete { request: self.rng.random(), id };
        self.record(start_ns, action, outcome)
    }
}

fn reason(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

/// Reads all keys of a workload through a quorum and from every member alone.
///
/// # Errors
/// If the disk fails, or no quorum answers.
pub(super) async fn read_back(
    cluster: &EtcdCluster,
    directory: &RunDirectory,
    header: &Header,
) -> anyhow::Result<()> {
    let config: WorkloadConfig = serde_json::from_str(&header.config)?;
    let prefix = prefix(config.kind());
    let recorder = Recorder::create(&read_back_file(directory, &header.name), header)?;
    let clock = RunClock::start();
    let members = cluster.members(READ_BACK_TIMEOUT)?;
    let request = |serializable| RangeRequest {
        key: prefix.clone().into_bytes(),
        range_end: prefix_end(&prefix),
        serializable,
    };
    let first = members.first().context("a cluster has members")?;
    let whole = first.range(request(false)).await.context("reading back")?;
    let revision = whole.header.clone().unwrap_or_default().revision;
    let answers = Mutex::new(vec![(0_u32, whole.kvs)]);
    for (number, member) in (1..).zip(&members) {
        let begun = Instant::now();
        loop {
            let read = member.range(request(true)).await.context("reading a member back")?;
            // It has to have caught up with what the quorum holds.
            if revision <= read.header.clone().unwrap_or_default().revision
                || READ_BACK_MAX < begun.elapsed()
            {
                answers.lock().push((number, read.kvs));
                break;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
    for (client, pairs) in answers.into_inner() {
        let rows = pairs.iter().map(|pair| Row {
            id: id_of(&prefix, pair),
            version: version(pair.mod_revision),
            value: value_of(pair),
            distance_m: 0.0,
        });
        recorder.record(&Operation {
            client,
            start_ns: 0,
            end_ns: clock.now_ns(),
            resolved: false,
            served: Served { node: u64::from(client), ..Served::default() },
            action: Action::List { level: Level::Linearizable },
            outcome: Outcome::Rows { rows: rows.collect(), complete: true },
        })?;
    }
    recorder.finish()
}

/// The first key behind all that begin with a prefix that ends in `/`.
fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

fn id_of(prefix: &str, pair: &KeyValue) -> u128 {
    let name = std::str::from_utf8(&pair.key).ok().and_then(|key| key.strip_prefix(prefix));
    name.and_then(|name| u128::from_str_radix(name, 16).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_says_which_anchor_it_stands_for() {
        let pair = KeyValue { key: key("set/", 77), mod_revision: 3, value: b"12".to_vec() };
        assert_eq!((id_of("set/", &pair), value_of(&pair)), (77, 12));
        assert_eq!(id_of("register/", &pair), 0);
        assert!(key("set/", u128::MAX) < prefix_end("set/"));
        assert!(prefix_end("set/") < key("sett/", 0));
    }
}
