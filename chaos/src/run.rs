//! One run of a scenario, from an empty directory to everything that a judge needs.
//!
//! The runner starts the cluster and the workloads, goes through rounds and phases, does faults
//! and takes them back, waits for what the scenario waits for, reads everything back, and ends what
//! it started. While that goes on it writes down how the cluster stood each second, and how late a
//! sleeper of a millisecond was: a judge must be able to tell a slow cluster from a slow machine.
//!
//! Whatever ends a run early (an error, Ctrl-C, a crash) ends the cluster too: the nodes hang on a
//! pipe that only this process holds.
//!
//! Not here: judging (`judge`), doing a fault (`fault`).

mod lateness;
mod phase;
mod reshape;

mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::timeout;

pub(crate) use self::lateness::Lateness;
use self::phase::Phases;
pub(crate) use self::phase::{Step, schedule};
use self::watch::Watch;
use crate::clock::RunClock;
use crate::driver::{DriverConfig, DriverKind, ProcessDriver};
use crate::events::{EventKind, EventLog};
use crate::judge;
use crate::mutants::NodeMutant;
use crate::run_directory::{AskedOfRun, RUN_FORMAT, RunDescription, RunDirectory};
use crate::scenario::{FaultKind, Scenario};
use crate::workload::{self, RunningWorkload};

/// What to run.
#[derive(Clone, Debug)]
pub struct RunConfig {
    /// How nodes are run.
    pub driver: DriverKind,
    /// The scenario.
    pub scenario: Scenario,
    /// Its text.
    pub scenario_text: String,
    /// Everything random follows from it.
    pub seed: u64,
    /// Where everything is kept; must not exist yet.
    pub directory: PathBuf,
    /// The node binary.
    pub binary: PathBuf,
    /// Whether it can be broken on command.
    pub has_hooks: bool,
    /// What to type to run this again.
    pub replay: String,
    /// Whether the nodes' data is kept.
    pub keeps_data: bool,
    /// More arguments for every node's `start`.
    pub node_arguments: Vec<String>,
    /// No phase begins after so much time; the run then ends as usual.
    pub time_max: Option<Duration>,
    /// Bugs that are put into nodes, to see that they are found.
    pub mutants: Vec<NodeMutant>,
    /// What was asked for, to be written down.
    pub asked: AskedOfRun,
}

/// What a run came to, judging aside.
#[derive(Clone, Debug)]
pub struct RunOutcome {
    /// Where everything is.
    pub directory: RunDirectory,
    /// Faults that were done.
    pub faults: u32,
    /// Faults that did not take, and whatever else the harness could not do.
    pub harness_errors: Vec<String>,
    /// Waits that were not reached: the cluster did not recover.
    pub waits_missed: Vec<String>,
    /// Processes that ended although no fault asked for it.
    pub deaths: Vec<String>,
    /// Operations acknowledged.
    pub acknowledged: u64,
}

/// How far a run has come, for people.
#[derive(Clone, Debug, Default)]
pub struct RunProgress {
    /// Round and phase.
    pub phase: String,
    /// Faults that are on.
    pub faults: Vec<String>,
    /// Operations acknowledged, refused and of unknown outcome.
    pub operations: [u64; 3],
    /// The cluster.
    pub cluster: String,
    /// Time since the start.
    pub elapsed: Duration,
}

/// What runs together.
struct Run {
    driver: Arc<ProcessDriver>,
    events: Arc<EventLog>,
    clock: RunClock,
    workloads: Vec<RunningWorkload>,
}

/// How long the cluster may take to be whole again after everything was healed.
const RECOVERY_MAX: Duration = Duration::from_secs(120);

/// Runs a scenario. `progress` is called about once a second.
///
/// # Errors
/// If the run could not be made: what went wrong within it is part of the outcome.
pub async fn run(
    config: RunConfig,
    progress: impl Fn(&RunProgress) + Send + Sync + 'static,
) -> anyhow::Result<RunOutcome> {
    let scenario = &config.scenario;
    anyhow::ensure!(
        config.has_hooks || (config.mutants.is_empty() && !scenario.needs_hooks()),
        "{} breaks nodes from inside, and {} was not built for that: build one with `cargo build \
         --profile chaos -p anchorhold --features chaos` and name it with --binary",
        scenario.name,
        config.binary.display()
    );
    if let Some(refusal) = refusal(config.driver, scenario) {
        anyhow::bail!(refusal);
    }
    let directory = RunDirectory::create(&config.directory)?;
    directory.describe(&description(&config))?;
    let clock = RunClock::start();
    let events = Arc::new(EventLog::open(&directory.events_file(), clock)?);
    // A run that is bounded by time may take that long, whatever the scenario expects of its rounds.
    let longest = scenario.timeout.max(config.time_max.unwrap_or_default() + RECOVERY_MAX);
    let ran = timeout(longest, go(&config, &directory, clock, &events, progress)).await;
    let outcome =
        ran.unwrap_or_else(|_| Err(anyhow::anyhow!("the run took longer than {longest:?}")));
    if let Err(error) = &outcome {
        events.append(EventKind::HarnessError { text: format!("{error:#}") })?;
    }
    if !config.keeps_data {
        drop_data(&directory, scenario);
    }
    outcome
}

/// What a driver lacks for a scenario, and why; `None` if it can run it.
fn refusal(driver: DriverKind, scenario: &Scenario) -> Option<String> {
    let lacks =
        |what: &str, why: &str| format!("the driver {} has no {what}: {why}", driver.name());
    let why = driver.cannot_delay().filter(|_| !scenario.topology.latency.is_none());
    let latency = why.map(|why| lacks("latency between zones and regions", why));
    latency.or_else(|| {
        let kinds = scenario.kinds();
        kinds.into_iter().find_map(|kind| Some(lacks(kind.row().name, driver.cannot(kind)?)))
    })
}

async fn go(
    config: &RunConfig,
    directory: &RunDirectory,
    clock: RunClock,
    events: &Arc<EventLog>,
    progress: impl Fn(&RunProgress) + Send + Sync + 'static,
) -> anyhow::Result<RunOutcome> {
    let scenario = &config.scenario;
    let mut rng = StdRng::seed_from_u64(config.seed);
    let driver = Arc::new(
        ProcessDriver::start(DriverConfig {
            kind: config.driver,
            binary: config.binary.clone(),
            topology: scenario.topology.clone(),
            directory: directory.cluster(),
            seed: rng.random(),
            has_hooks: config.has_hooks,
            holds_unsynced: loses_power(scenario),
            mutants: config.mutants.clone(),
            node_arguments: [settings_of(scenario), config.node_arguments.clone()].concat(),
        })
        .await?,
    );
    let access = driver.access().await?;
    let mut workloads = Vec::new();
    for workload in &scenario.workloads {
        let seed = rng.random();
        let started =
            workload::start(workload.clone(), access.clone(), clock, directory, seed).await;
        workloads.push(started.with_context(|| format!("workload {}", workload.kind()))?);
    }
    let run = Arc::new(Run { driver, events: events.clone(), clock, workloads });
    let watch = Watch::start(&run, progress);
    let mut phases = Phases::new(run.clone(), watch.board(), config.seed, rng);
    let went = phases.all(scenario, config.time_max).await;
    // Whatever happened: heal, and see whether the cluster is whole again.
    phases.heal_all().await?;
    went?;
    let recovered = phases.wait_recovered(RECOVERY_MAX).await;
    let (deaths, mut findings) = (watch.stop().await?, phases.findings());
    drop(phases);
    if let Err(missed) = recovered {
        events.append(EventKind::WaitMissed { text: format!("in the end: {missed}") })?;
        findings.waits_missed.push(missed);
    }
    let run = Arc::into_inner(run).context("something of the run still goes on")?;
    let acknowledged = run.workloads.iter().map(|one| one.progress().acknowledged).sum();
    for workload in run.workloads {
        workload.stop().await?;
    }
    // Asked anew: a node that was wiped is another one now.
    let access = run.driver.access().await?;
    judge::collect(&access, directory).await.context("reading everything back")?;
    let driver = Arc::into_inner(run.driver).context("the cluster is still in use")?;
    driver.stop().await;
    Ok(RunOutcome {
        directory: directory.clone(),
        faults: findings.faults,
        harness_errors: findings.harness_errors,
        waits_missed: findings.waits_missed,
        deaths,
        acknowledged,
    })
}

fn settings_of(scenario: &Scenario) -> Vec<String> {
    scenario.node_settings.iter().map(|setting| format!("--set={setting}")).collect()
}

fn loses_power(scenario: &Scenario) -> bool {
    scenario.phases.iter().any(|phase| {
        phase.faults.iter().any(|fault| fault.kind == FaultKind::PowerLoss)
            || phase.swarm.iter().any(|swarm| swarm.kinds.contains(&FaultKind::PowerLoss))
    })
}

#[expect(clippy::disallowed_methods, reason = "the run's one wall-clock time, for people")]
fn description(config: &RunConfig) -> RunDescription {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let scenario = &config.scenario;
    RunDescription {
        format: RUN_FORMAT,
        scenario: scenario.name.clone(),
        scenario_text: config.scenario_text.clone(),
        topology_text: scenario.topology_text.clone(),
        seed: config.seed,
        driver: config.driver.name().to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        binary: config.binary.display().to_string(),
        replay: config.replay.clone(),
        started_at_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        invariants: scenario.invariants.iter().map(|one| one.name().to_owned()).collect(),
        budgets: scenario.budgets.clone(),
        zones: scenario.zones(),
        mutants: config.mutants.iter().map(ToString::to_string).collect(),
        asked: config.asked.clone(),
    }
}

/// Removes the nodes' data and keys, keeps their logs.
fn drop_data(directory: &RunDirectory, scenario: &Scenario) {
    for node in scenario.topology.nodes() {
        // What cannot be removed is only in the way.
        drop(std::fs::remove_dir_all(directory.cluster().join(node.name)));
    }
    drop(std::fs::remove_file(directory.cluster().join("admin.key")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_refuses_what_it_lacks() {
        let refusal = |driver, topology: &str, fault: &str| {
            let text = format!(
                "name = \"s\"\nabout = \"t\"\ntopology = \"{topology}\"\n[[phase]]\nname = \"p\"\n\
                 for_s = 9\nfault = [{{ kind = \"{fault}\" }}]\n"
            );
            super::refusal(driver, &Scenario::parse("s.toml", &text).unwrap())
        };
        let lacks = |words: &str| {
            let why = "it cannot delay or narrow a link";
            Some(format!("the driver netns has no {words}: {why}"))
        };
        let (process, namespaces) = (DriverKind::Process, DriverKind::Namespaces);
        let apart = lacks("latency between zones and regions");
        assert_eq!(refusal(namespaces, "two-regions", "kill"), apart);
        assert_eq!(refusal(namespaces, "three-zones", "slow"), lacks("slow"));
        assert_eq!(refusal(namespaces, "three-zones", "kill"), None);
        assert_eq!(refusal(process, "two-regions", "slow"), None);
    }
}
