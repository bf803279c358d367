//! The same scenario on a cluster of etcd, so that gaps can be set side by side.
//!
//! Processes, proxies, faults, record and judge are those of any run; only what talks to a node is
//! another. Keys stand for anchors and revisions for versions. An etcd client has no request ids: the
//! operation after one without an answer goes to another member, and what became of such writes is
//! found out in the end, from etcd's own history.
//!
//! Not here: faults other than kill, pause and isolate; workloads other than `set` and `register`.

mod api;
mod cluster;
mod load;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::{Instant, sleep, sleep_until};

use self::cluster::EtcdCluster;
use self::load::EtcdWorkload;
use crate::clock::RunClock;
use crate::cut::Cut;
use crate::events::{Canary, EventKind, EventLog, FaultEvent, FaultStage, Sample};
use crate::judge::Invariant;
use crate::run::{RunOutcome, RunProgress, schedule};
use crate::run_directory::{AskedOfRun, RUN_FORMAT, RunDescription, RunDirectory};
use crate::scenario::{Fault, FaultKind, Phase, Scenario, View};
use crate::workload::WorkloadConfig;

/// What to run.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// The scenario: faults and workloads that etcd can be put through.
    pub scenario: Scenario,
    /// Its text.
    pub scenario_text: String,
    /// Everything random follows from it.
    pub seed: u64,
    /// Where everything is kept; must not exist yet.
    pub directory: PathBuf,
    /// The `etcd` binary.
    pub binary: PathBuf,
    /// What to type to run this again.
    pub replay: String,
    /// What was asked for, to be written down.
    pub asked: AskedOfRun,
}

/// What the judge can find out about etcd.
const INVARIANTS: &[Invariant] = &[
    Invariant::NothingLost,
    Invariant::NothingResurrected,
    Invariant::NothingDoubled,
    Invariant::ReplicasComplete,
    Invariant::Linearizable,
    Invariant::LinearizableSampled,
];
/// How long the cluster may take to be whole after a heal.
const HEALTHY_MAX: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// One run.
struct Run {
    cluster: EtcdCluster,
    events: Arc<EventLog>,
    clock: RunClock,
    workloads: Vec<EtcdWorkload>,
    rng: StdRng,
    faults: u32,
    /// Faults that are on.
    active: BTreeMap<u32, (FaultKind, FaultEvent)>,
    sampled: Instant,
    waits_missed: Vec<String>,
    harness_errors: Vec<String>,
}

/// Runs a scenario on etcd.
///
/// # Errors
/// If the scenario asks for what etcd cannot be put through here, or the run could not be made.
pub async fn run(
    config: EtcdConfig,
    progress: impl Fn(&RunProgress) + Send + Sync,
) -> anyhow::Result<RunOutcome> {
    let scenario = &config.scenario;
    check(scenario)?;
    let directory = RunDirectory::create(&config.directory)?;
    directory.describe(&description(&config))?;
    let clock = RunClock::start();
    let events = Arc::new(EventLog::open(&directory.events_file(), clock)?);
    let mut rng = StdRng::seed_from_u64(config.seed);
    let data = directory.cluster();
    let cluster =
        EtcdCluster::start(&config.binary, &scenario.topology, &data, rng.random()).await?;
    let mut workloads = Vec::new();
    for workload in &scenario.workloads {
        let seed = rng.random();
        workloads.push(EtcdWorkload::start(workload, &cluster, clock, &directory, seed).await?);
    }
    let mut run = Run {
        cluster,
        events: events.clone(),
        clock,
        workloads,
        rng,
        faults: 0,
        active: BTreeMap::new(),
        sampled: Instant::now(),
        waits_missed: Vec::new(),
        harness_errors: Vec::new(),
    };
    let lateness = crate::run::Lateness::start(clock, events)?;
    let went = run.phases(scenario, &progress).await;
    run.heal_all().await?;
    went?;
    run.recover("the end").await?;
    lateness.stop()?;
    run.finish(directory).await
}

/// Whether etcd can be put through all of it.
fn check(scenario: &Scenario) -> anyhow::Result<()> {
    ensure!(
        scenario.zones().len() == 3,
        "etcd is run on three nodes: use the topology three-zones"
    );
    for phase in &scenario.phases {
        ensure!(phase.swarm.is_none(), "phase {}: etcd is not put through swarms", phase.name);
        for fault in &phase.faults {
            let is_known =
                matches!(fault.kind, FaultKind::Kill | FaultKind::Pause | FaultKind::Isolate);
            let name = fault.kind.row().name;
            ensure!(is_known, "phase {}: etcd is not put through {name}", phase.name);
        }
    }
    for workload in &scenario.workloads {
        let is_known = matches!(workload, WorkloadConfig::Set(_) | WorkloadConfig::Register(_));
        ensure!(is_known, "etcd has no workload {}", workload.kind());
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "the run's one wall-clock time, for people")]
fn description(config: &EtcdConfig) -> RunDescription {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let scenario = &config.scenario;
    let asked = scenario.invariants.iter().filter(|one| INVARIANTS.contains(one));
    RunDescription {
        format: RUN_FORMAT,
        scenario: format!("{} on etcd", scenario.name),
        scenario_text: config.scenario_text.clone(),
        topology_text: scenario.topology_text.clone(),
        seed: config.seed,
        driver: "process".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        binary: config.binary.display().to_string(),
        replay: config.replay.clone(),
        started_at_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        invariants: asked.map(|one| one.name().to_owned()).collect(),
        // The bounds are promises of another store.
        budgets: BTreeMap::new(),
        zones: scenario.zones(),
        mutants: Vec::new(),
        asked: config.asked.clone(),
    }
}

impl Run {
    async fn phases(
        &mut self,
        scenario: &Scenario,
        progress: &impl Fn(&RunProgress),
    ) -> anyhow::Result<()> {
        for round in 0..scenario.rounds {
            for phase in &scenario.phases {
                let name = match scenario.rounds {
                    1 => phase.name.clone(),
                    _ => format!("{}#{}", phase.name, round + 1),
                };
                let faults = scenario.faults(phase, round, 0);
                self.phase(&name, phase, &faults, (round, scenario), progress)
                    .await
                    .with_context(|| format!("phase {name}"))?;
            }
        }
        Ok(())
    }

    async fn phase(
        &mut self,
        name: &str,
        phase: &Phase,
        faults: &[Fault],
        (round, scenario): (usize, &Scenario),
        progress: &impl Fn(&RunProgress),
    ) -> anyhow::Result<()> {
        self.events.append(EventKind::PhaseBegin { name: name.to_owned() })?;
        let begun = Instant::now();
        let mut ids = BTreeMap::new();
        for (at, step) in schedule(faults, phase.lasts) {
            self.pass_until(begun + at, name, progress).await?;
            match step {
                crate::run::Step::Begin(index) => {
                    ids.insert(index, self.begin(&faults[index], round, scenario).await?);
                }
                crate::run::Step::End(index) => {
                    if let Some(id) = ids.remove(&index) {
                        self.heal(id).await?;
                    }
                }
            }
        }
        self.pass_until(begun + phase.lasts, name, progress).await?;
        self.heal_all().await?;
        if !phase.waits.is_empty() {
            self.recover(name).await?;
        }
        self.events.append(EventKind::PhaseEnd { name: name.to_owned() })?;
        Ok(())
    }

    /// Lets time pass, and notes how the cluster stands.
    async fn pass_until(
        &mut self,
        until: Instant,
        phase: &str,
        progress: &impl Fn(&RunProgress),
    ) -> anyhow::Result<()> {
        while Instant::now() < until {
            if self.sampled + SAMPLE_INTERVAL <= Instant::now() {
                self.sampled = Instant::now();
                let cluster = self.sample().await?;
                let operations = self.operations();
                progress(&RunProgress {
                    phase: phase.to_owned(),
                    faults: self.active.values().map(|(_, event)| event.fault.clone()).collect(),
                    operations,
                    cluster,
                    elapsed: self.clock.elapsed(),
                });
            }
            sleep_until(until.min(Instant::now() + LOOK_INTERVAL)).await;
        }
        Ok(())
    }

    fn operations(&self) -> [u64; 3] {
        let all = self.workloads.iter().map(EtcdWorkload::operations);
        all.fold([0; 3], |sum, one| [sum[0] + one[0], sum[1] + one[1], sum[2] + one[2]])
    }

    async fn sample(&self) -> anyhow::Result<String> {
        let leader = self.cluster.leader().await;
        let mut sample = Sample { answered: leader.is_some(), ..Sample::default() };
        if let Some(leader) = &leader {
            let zone = self.cluster.zone_of(leader);
            sample.leaders_per_zone.insert(zone, 1);
            sample.leaders_per_node.insert(leader.clone(), 1);
        }
        self.events.append(EventKind::Sample(sample))?;
        let [acknowledged, failed, unknown] = self.operations();
        self.events.append(EventKind::Progress { acknowledged, failed, unknown })?;
        Ok(leader.map_or("nobody leads".to_owned(), |leader| format!("{leader} leads")))
    }

    async fn begin(
        &mut self,
        fault: &Fault,
        round: usize,
        scenario: &Scenario,
    ) -> anyhow::Result<u32> {
        // One group: who leads it leads everything.
        let leader = self.cluster.leader().await;
        let leaders = leader.map(|leader| BTreeMap::from([(0, leader.clone()), (1, leader)]));
        let view = View { places: scenario.places(), leaders: leaders.unwrap_or_default(), round };
        let nodes = fault.target.resolve(&view, &mut self.rng);
        self.faults += 1;
        let id = self.faults;
        let mut event = FaultEvent {
            id,
            fault: fault.kind.row().name.to_owned(),
            target: fault.target.to_string(),
            nodes: nodes.clone(),
            stage: FaultStage::Asked,
            asked_ns: self.clock.now_ns(),
            applied_ns: None,
            healed_ns: None,
            canary: Canary::None,
            detail: String::new(),
        };
        self.events.append(EventKind::Fault(event.clone()))?;
        // What is neither kill nor pause is a cut: nothing else is let in.
        let took = if fault.kind == FaultKind::Kill {
            self.cluster.kill(&nodes)?
        } else if fault.kind == FaultKind::Pause {
            self.cluster.pause(&nodes)?
        } else {
            let cut = Cut::of(fault.kind, &nodes, &self.cluster.names(), &fault.settings);
            self.cluster.set_cut(id, Some(cut)).await
        };
        event.stage = FaultStage::Applied;
        event.applied_ns = Some(self.clock.now_ns());
        event.canary = if took && !nodes.is_empty() { Canary::Took } else { Canary::DidNotTake };
        event.detail = nodes.join(", ");
        self.events.append(EventKind::Fault(event.clone()))?;
        if event.canary == Canary::DidNotTake {
            self.harness_errors.push(format!("fault {id} ({}) did not take", event.fault));
        }
        self.active.insert(id, (fault.kind, event));
        Ok(id)
    }

    async fn heal(&mut self, id: u32) -> anyhow::Result<()> {
        let Some((kind, mut event)) = self.active.remove(&id) else { return Ok(()) };
        if kind == FaultKind::Kill {
            self.cluster.start_nodes(&event.nodes)?;
        } else if kind == FaultKind::Pause {
            self.cluster.resume(&event.nodes);
        } else {
            self.cluster.set_cut(id, None).await;
        }
        event.stage = FaultStage::Healed;
        event.healed_ns = Some(self.clock.now_ns());
        self.events.append(EventKind::Fault(event)).map(drop)
    }

    async fn heal_all(&mut self) -> anyhow::Result<()> {
        while let Some(id) = self.active.keys().next_back().copied() {
            self.heal(id).await?;
        }
        Ok(())
    }

    /// Waits until every member follows one leader and every workload is acknowledged again.
    async fn recover(&mut self, after: &str) -> anyhow::Result<()> {
        let (begun, since_ns) = (Instant::now(), self.clock.now_ns());
        loop {
            let is_whole = self.cluster.is_healthy().await
                && self.workloads.iter().all(|one| since_ns <= one.last_ack_ns());
            if is_whole {
                return Ok(());
            }
            if HEALTHY_MAX < begun.elapsed() {
                let text = format!("after {after}: not whole within {HEALTHY_MAX:?}");
                self.waits_missed.push(text.clone());
                self.events.append(EventKind::WaitMissed { text })?;
                return Ok(());
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Ends the workloads, reads everything back, and ends the cluster.
    async fn finish(self, directory: RunDirectory) -> anyhow::Result<RunOutcome> {
        let [acknowledged, ..] = self.operations();
        let mut headers = Vec::new();
        for workload in self.workloads {
            headers.push(workload.stop(&self.cluster).await?);
        }
        for header in &headers {
            load::read_back(&self.cluster, &directory, header).await?;
        }
        crate::judge::save_final_state(&directory, &self.cluster.final_state())?;
        self.cluster.stop();
        Ok(RunOutcome {
            directory,
            faults: self.faults,
            harness_errors: self.harness_errors,
            waits_missed: self.waits_missed,
            deaths: Vec::new(),
            acknowledged,
        })
    }
}
