//! Starting and stopping a workload.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anchorhold_client::admin_v1;
use anyhow::Context as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::config::Common;
use super::pace::Pace;
use super::resolver;
use super::stage::{Counters, Stage};
use super::{ClusterAccess, WorkloadConfig, make_key, population, register, revoke_key, session};
use crate::clock::RunClock;
use crate::history::{Header, Recorder};
use crate::run_directory::RunDirectory;

/// A workload whose clients are at work.
pub struct RunningWorkload {
    name: String,
    stage: Arc<Stage>,
    clients: Vec<JoinHandle<anyhow::Result<()>>>,
    resolver: JoinHandle<anyhow::Result<()>>,
}

/// How a workload is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Operations that were answered.
    pub acknowledged: u64,
    /// Operations that failed for certain, reads without an answer included.
    pub failed: u64,
    /// Writes whose outcome is or was unknown.
    pub unknown: u64,
    /// Those of them whose outcome was found out.
    pub resolved: u64,
    /// When the last answer came, in nanoseconds since the run's start.
    pub last_ack_ns: u64,
}

/// One client of a workload.
pub(super) struct ClientTask {
    pub(super) stage: Arc<Stage>,
    /// From 0.
    pub(super) number: u32,
    pub(super) rng: StdRng,
    pub(super) pace: Pace,
    /// Values written so far.
    values: u64,
}

/// How long making the account and the first anchors may take, each.
const PREPARE_DEADLINE: Duration = Duration::from_secs(60);
/// How long a call to one certain node may take: the node may be down.
const NODE_DEADLINE: Duration = Duration::from_millis(500);

/// Makes an account of the workload's own and what must be there beforehand, and starts the clients.
///
/// # Errors
/// If the configuration cannot be run or the cluster does not answer.
pub async fn start(
    config: WorkloadConfig,
    access: ClusterAccess,
    clock: RunClock,
    directory: &RunDirectory,
    seed: u64,
) -> anyhow::Result<RunningWorkload> {
    config.validate().map_err(anyhow::Error::msg)?;
    let common = config.common();
    let mut rng = StdRng::seed_from_u64(seed);
    let (name, path) = free_file(directory, config.kind())?;
    let (account, api_key) = make_account(&access, &name, common.shards, &mut rng).await?;
    let client = access.client(&api_key, PREPARE_DEADLINE).await.context("connecting")?;
    let mut nodes = Vec::new();
    for node in &access.nodes {
        nodes.push(access.client_of_node(node, &api_key, NODE_DEADLINE).await?);
    }
    let header =
        Header { name: name.clone(), config: serde_json::to_string(&config)?, account, seed };
    let (sender, receiver) = mpsc::channel(resolver::OPEN_MAX);
    let stage = Arc::new(Stage {
        clock,
        recorder: Recorder::create(&path, &header)?,
        client: client.with_deadline(Duration::from_millis(common.deadline_ms)),
        nodes,
        stop: false.into(),
        counters: Counters::default(),
        open: sender,
    });
    let resolver = tokio::spawn(resolver::run(stage.clone(), receiver));
    let clients = start_clients(&config, common, &stage, seed).await.context("preparing")?;
    Ok(RunningWorkload { name, stage, clients, resolver })
}

/// The first free name and file of a kind.
fn free_file(directory: &RunDirectory, kind: &str) -> anyhow::Result<(String, PathBuf)> {
    for number in 1..=1_000 {
        let name = format!("{kind}-{number}");
        let path = directory.history().join(format!("{name}.bin"));
        if !path.exists() {
            return Ok((name, path));
        }
    }
    anyhow::bail!("a run has at most 1,000 workloads of a kind")
}

async fn make_account(
    access: &ClusterAccess,
    name: &str,
    shards: u32,
    rng: &mut StdRng,
) -> anyhow::Result<(u32, String)> {
    let admin = access.admin(PREPARE_DEADLINE)?;
    // Runs against one cluster must not meet each other's accounts.
    let name = format!("chaos-{name}-{:08x}", rng.random::<u32>());
    let request = admin_v1::CreateAccountRequest { name, shards, ..Default::default() };
    let created = admin.create_account(request).await.context("creating an account")?;
    let account = created.account.context("a created account is returned")?;
    if created.api_key.is_empty() {
        // The first try was not answered, and a retry does not show the key. An account has two at
        // most, and reading back needs one of its own.
        for key in account.api_keys {
            revoke_key(&admin, account.number, key.key_id).await?;
        }
        let (_, api_key) = make_key(&admin, account.number).await?;
        return Ok((account.number, api_key));
    }
    Ok((account.number, created.api_key))
}

async fn start_clients(
    config: &WorkloadConfig,
    common: Common,
    stage: &Arc<Stage>,
    seed: u64,
) -> anyhow::Result<Vec<JoinHandle<anyhow::Result<()>>>> {
    let client = |number: u32| {
        let seed = seed.wrapping_mul(1_000_003).wrapping_add(u64::from(number) + 1);
        let mut rng = StdRng::seed_from_u64(seed);
        let pace = Pace::new(common.rate, common.clients, &mut rng);
        ClientTask { stage: stage.clone(), number, rng, pace, values: 0 }
    };
    let numbers = 0..common.clients;
    // One more than all clients, so that its values are its own.
    let mut first = client(u32::MAX);
    Ok(match config.clone() {
        WorkloadConfig::Register(c) => {
            let keys = register::prepare(&mut first, c.keys).await?;
            let weak = common.clients..common.clients + c.weak_readers;
            let writers =
                numbers.map(|n| tokio::spawn(register::write(client(n), c.clone(), keys.clone())));
            let mut tasks: Vec<_> = writers.collect();
            tasks.extend(
                weak.map(|n| tokio::spawn(register::read(client(n), c.clone(), keys.clone()))),
            );
            tasks
        }
        WorkloadConfig::Session(c) => {
            let keys = register::prepare(&mut first, c.keys).await?;
            numbers
                .map(|n| tokio::spawn(session::run(client(n), c.clone(), keys.clone())))
                .collect()
        }
        WorkloadConfig::Set(c) => {
            numbers.map(|n| tokio::spawn(population::set(client(n), c.clone()))).collect()
        }
        WorkloadConfig::Nearest(c) => {
            let share = c.anchors / common.clients;
            numbers
                .map(|n| tokio::spawn(population::nearest(client(n), c.clone(), share)))
                .collect()
        }
        WorkloadConfig::Expiry(c) => {
            numbers.map(|n| tokio::spawn(population::expiry(client(n), c.clone()))).collect()
        }
        WorkloadConfig::List(c) => {
            let share = c.anchors / common.clients;
            numbers.map(|n| tokio::spawn(population::list(client(n), c.clone(), share))).collect()
        }
    })
}

impl RunningWorkload {
    /// Its name in the run, `register-1`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it is doing.
    pub fn progress(&self) -> Progress {
        let counters = &self.stage.counters;
        Progress {
            acknowledged: counters.acknowledged.load(Ordering::Relaxed),
            failed: counters.failed.load(Ordering::Relaxed),
            unknown: counters.unknown.load(Ordering::Relaxed),
            resolved: counters.resolved.load(Ordering::Relaxed),
            last_ack_ns: counters.last_ack_ns.load(Ordering::Relaxed),
        }
    }

    /// Lets every client finish what it does, finds out what became of open writes, and closes the
    /// record. Call it once the cluster is healed: for open writes it waits a minute at most.
    ///
    /// # Errors
    /// If a client could not go on, which is a fault of the harness.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stage.stop.store(true, Ordering::Relaxed);
        let mut ended = Ok(());
        for client in self.clients {
            let how = client.await.context("a client panicked").and_then(|result| result);
            ended = ended.and(how);
        }
        self.stage.open.send(None).await.ok().context("the resolver has ended")?;
        let resolved = self.resolver.await.context("the resolver panicked")?;
        self.stage.recorder.finish()?;
        ended.and(resolved).with_context(|| format!("workload {}", self.name))
    }
}

impl std::fmt::Debug for RunningWorkload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let progress = self.progress();
        f.debug_struct("RunningWorkload")
            .field("name", &self.name)
            .field("progress", &progress)
            .finish_non_exhaustive()
    }
}

impl ClientTask {
    /// A value that nobody else writes; never 0.
    pub(super) fn next_value(&mut self) -> u64 {
        self.values += 1;
        (u64::from(self.number) << 40) | self.values
    }

    /// Waits for the next turn; `false` once the workload is to stop.
    pub(super) async fn turn(&mut self) -> bool {
        self.pace.wait().await;
        self.stage.goes_on()
    }
}
