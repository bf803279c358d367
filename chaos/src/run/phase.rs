//! Going through rounds and phases.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anchorhold_cluster::ProcessIdentity;
use anyhow::Context as _;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep, sleep_until};

use super::Run;
use super::reshape::Reshaping;
use super::watch::Board;
use crate::events::{Canary, EventKind, FaultEvent, FaultStage};
use crate::fault::{self, ActiveFault, Seen};
use crate::scenario::{Fault, Phase, Reshape, Scenario, Wait};

/// What was found on the way.
#[derive(Clone, Debug, Default)]
pub(super) struct Findings {
    pub(super) faults: u32,
    pub(super) harness_errors: Vec<String>,
    pub(super) waits_missed: Vec<String>,
}

/// Goes through the phases of a scenario.
pub(super) struct Phases {
    run: Arc<Run>,
    board: Arc<Mutex<Board>>,
    seed: u64,
    rng: StdRng,
    /// Faults that are on, by id.
    active: BTreeMap<u32, On>,
    /// Faults that can end processes, begun in this phase.
    enders: Vec<FaultEvent>,
    /// Changes of shards that phases asked for so far, and how many were made.
    changes: BTreeMap<&'static str, u64>,
    findings: Findings,
}

/// A fault that is on.
struct On {
    fault: ActiveFault,
    event: FaultEvent,
    /// The processes that it was to hit, as they were before, by node.
    before: Processes,
}

type Processes = BTreeMap<String, Option<ProcessIdentity>>;

/// One thing to do within a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Begin(usize),
    End(usize),
}

const LOOK_INTERVAL: Duration = Duration::from_millis(100);

impl Phases {
    pub(super) fn new(run: Arc<Run>, board: Arc<Mutex<Board>>, seed: u64, rng: StdRng) -> Self {
        let (active, findings) = (BTreeMap::new(), Findings::default());
        let (enders, changes) = (Vec::new(), BTreeMap::new());
        Self { run, board, seed, rng, active, enders, changes, findings }
    }

    pub(super) fn findings(&self) -> Findings {
        self.findings.clone()
    }

    pub(super) async fn all(
        &mut self,
        scenario: &Scenario,
        time_max: Option<Duration>,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        'rounds: for round in 0..scenario.rounds {
            for phase in &scenario.phases {
                if time_max.is_some_and(|max| max <= begun.elapsed()) {
                    break 'rounds;
                }
                let name = match scenario.rounds {
                    1 => phase.name.clone(),
                    _ => format!("{}#{}", phase.name, round + 1),
                };
                let faults = scenario.faults(phase, round, self.seed);
                self.phase(&name, phase, faults, round)
                    .await
                    .with_context(|| format!("phase {name}"))?;
            }
        }
        for (change, _) in self.changes.iter().filter(|(_, made)| **made == 0) {
            let text = format!("no shard was {change}, though that was asked for");
            self.findings.harness_errors.push(text.clone());
            self.run.events.append(EventKind::HarnessError { text })?;
        }
        Ok(())
    }

    async fn phase(
        &mut self,
        name: &str,
        phase: &Phase,
        faults: Vec<Fault>,
        round: usize,
    ) -> anyhow::Result<()> {
        let events = self.run.events.clone();
        events.append(EventKind::PhaseBegin { name: name.to_owned() })?;
        self.board.lock().phase = name.to_owned();
        self.enders.clear();
        let reshaping = if phase.reshape == Reshape::default() {
            None
        } else {
            let (access, seed) = (self.run.driver.access().await?, self.seed ^ round as u64);
            Some(Reshaping::start(&access, phase.reshape, seed)?)
        };
        let begun = Instant::now();
        let mut ids = BTreeMap::new();
        for (at, step) in schedule(&faults, phase.lasts) {
            sleep_until(begun + at).await;
            match step {
                Step::Begin(index) => {
                    if let Some(id) = self.begin(&faults[index], round).await? {
                        ids.insert(index, id);
                    }
                }
                Step::End(index) => {
                    if let Some(id) = ids.remove(&index) {
                        self.heal(id).await?;
                    }
                }
            }
        }
        sleep_until(begun + phase.lasts).await;
        self.heal_all().await?;
        if let Some(reshaping) = reshaping {
            events.append(reshaping.event())?;
            for (change, made) in reshaping.made() {
                *self.changes.entry(change).or_default() += made;
            }
        }
        let healed_ns = self.run.clock.now_ns();
        for wait in &phase.waits {
            if let Err(missed) = self.wait(*wait, phase.wait_max, healed_ns).await {
                self.findings.waits_missed.push(format!("{name}: {missed}"));
                let text = format!("after {name}: {missed}");
                events.append(EventKind::WaitMissed { text })?;
            }
        }
        events.append(EventKind::PhaseEnd { name: name.to_owned() })?;
        Ok(())
    }

    /// Begins a fault. Returns its id, or nothing if there was nobody to hit.
    async fn begin(&mut self, fault: &Fault, round: usize) -> anyhow::Result<Option<u32>> {
        let run = self.run.clone();
        let view = run.driver.view(round).await;
        let nodes = fault.target.resolve(&view, &mut self.rng);
        self.findings.faults += 1;
        let id = self.findings.faults;
        let mut event = FaultEvent {
            id,
            fault: fault.kind.row().name.to_owned(),
            target: fault.target.to_string(),
            nodes: nodes.clone(),
            stage: FaultStage::Asked,
            asked_ns: run.clock.now_ns(),
            applied_ns: None,
            healed_ns: None,
            canary: Canary::None,
            detail: String::new(),
        };
        run.events.append(EventKind::Fault(event.clone()))?;
        if nodes.is_empty() {
            return self.did_not_take(event, "nobody to hit").map(|()| None);
        }
        let words = format!("{} {}", event.fault, nodes.join("+"));
        self.board.lock().faults.insert(id, words);
        if fault::ends_processes(fault.kind) {
            self.enders.push(event.clone());
        }
        let before = self.processes(&nodes);
        let (active, seen) = fault::apply(&run.driver, id, fault, nodes, &mut self.rng).await;
        event.stage = FaultStage::Applied;
        event.applied_ns = Some(run.clock.now_ns());
        let seen = self.overtaken(&event, &before, seen);
        self.note(&mut event, &seen)?;
        self.active.insert(id, On { fault: active, event, before });
        Ok(Some(id))
    }

    fn did_not_take(&mut self, mut event: FaultEvent, why: &str) -> anyhow::Result<()> {
        event.stage = FaultStage::Applied;
        self.note(&mut event, &Seen { canary: Canary::DidNotTake, detail: why.to_owned() })
    }

    /// Writes down what was seen; a fault that did not take is an error of the harness.
    fn note(&mut self, event: &mut FaultEvent, seen: &Seen) -> anyhow::Result<()> {
        event.canary = seen.canary;
        event.detail.clone_from(&seen.detail);
        self.run.events.append(EventKind::Fault(event.clone()))?;
        if seen.canary == Canary::DidNotTake {
            let text = format!(
                "fault {} ({} of {}) did not take: {}",
                event.id, event.fault, event.target, seen.detail
            );
            self.findings.harness_errors.push(text.clone());
            self.run.events.append(EventKind::HarnessError { text })?;
        }
        Ok(())
    }

    async fn heal(&mut self, id: u32) -> anyhow::Result<()> {
        let Some(On { fault, mut event, before }) = self.active.remove(&id) else { return Ok(()) };
        let others: Vec<&ActiveFault> = self.active.values().map(|on| &on.fault).collect();
        let seen = fault
            .heal(&self.run.driver, &others)
            .await
            .with_context(|| format!("healing fault {}", event.fault))?;
        self.board.lock().faults.remove(&id);
        event.stage = FaultStage::Healed;
        event.healed_ns = Some(self.run.clock.now_ns());
        let ended = self.enders.iter_mut().find(|ender| ender.id == id);
        if let Some(ended) = ended {
            ended.healed_ns = event.healed_ns;
        }
        let seen = self.overtaken(&event, &before, seen);
        if event.canary == Canary::None {
            return self.note(&mut event, &seen);
        }
        // Whether it took was seen when it began.
        event.detail = seen.detail;
        self.run.events.append(EventKind::Fault(event)).map(drop)
    }

    fn processes(&self, nodes: &[String]) -> Processes {
        let of = |name: &String| (name.clone(), self.run.driver.process(name).ok().flatten());
        nodes.iter().map(of).collect()
    }

    /// A fault that did not take because another one had just ended a node that it was to hit.
    fn overtaken(&self, event: &FaultEvent, before: &Processes, seen: Seen) -> Seen {
        if seen.canary != Canary::DidNotTake {
            return seen;
        }
        let now = self.processes(&event.nodes);
        let ended = |name: &String| {
            let process = now.get(name).cloned().flatten();
            process.is_none() || before.get(name) != Some(&process)
        };
        let hit =
            event.nodes.iter().find_map(|name| Some((name, ender(&self.enders, event, name)?)));
        match hit {
            Some((name, other)) if ended(name) => {
                let words = format!("fault {} ({}) had ended {name}", other.id, other.fault);
                Seen { canary: Canary::Overtaken, detail: format!("{words}; {}", seen.detail) }
            }
            _ => seen,
        }
    }

    /// Takes back whatever is on, the last one first.
    pub(super) async fn heal_all(&mut self) -> anyhow::Result<()> {
        while let Some(id) = self.active.keys().next_back().copied() {
            self.heal(id).await?;
        }
        Ok(())
    }

    /// Waits until the cluster is whole and every workload is acknowledged again.
    pub(super) async fn wait_recovered(&mut self, longest: Duration) -> Result<(), String> {
        self.board.lock().phase = "recovery".to_owned();
        let healed_ns = self.run.clock.now_ns();
        self.wait(Wait::Healthy, longest, healed_ns).await?;
        self.wait(Wait::Writes, longest, healed_ns).await
    }

    async fn wait(&self, wait: Wait, longest: Duration, since_ns: u64) -> Result<(), String> {
        let give_up = Instant::now() + longest;
        let mut turn = 0;
        loop {
            turn += 1;
            let missing = match wait {
                Wait::Writes => self.silent_workloads(since_ns),
                Wait::Healthy | Wait::Leaders => {
                    let survey = self.run.driver.survey(turn).await;
                    let is_led = survey.sample.answered && survey.sample.shards_without_leader == 0;
                    let is_done = if wait == Wait::Healthy { survey.is_healthy } else { is_led };
                    (!is_done).then(|| survey.problems.join("; "))
                }
            };
            let Some(missing) = missing else { return Ok(()) };
            if give_up <= Instant::now() {
                return Err(format!("{wait:?} not reached within {longest:?}: {missing}"));
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Workloads that were not acknowledged anything since then.
    fn silent_workloads(&self, since_ns: u64) -> Option<String> {
        let silent = self.run.workloads.iter().enumerate();
        let silent = silent.filter(|(_, one)| one.progress().last_ack_ns < since_ns);
        let numbers: Vec<String> = silent.map(|(number, _)| (number + 1).to_string()).collect();
        (!numbers.is_empty()).then(|| format!("workload {} is silent", numbers.join(", ")))
    }
}

/// The fault that can have ended a node while another one was to hit it.
fn ender<'a>(enders: &'a [FaultEvent], event: &FaultEvent, node: &str) -> Option<&'a FaultEvent> {
    enders.iter().find(|other| {
        let was_on = other.healed_ns.is_none_or(|healed_ns| event.asked_ns <= healed_ns);
        other.id != event.id && was_on && other.nodes.iter().any(|name| name == node)
    })
}

/// Begins and ends of faults in the order of their times; at equal times ends come first.
pub(crate) fn schedule(faults: &[Fault], lasts: Duration) -> Vec<(Duration, Step)> {
    let mut steps = Vec::new();
    for (index, fault) in faults.iter().enumerate() {
        steps.push((fault.after, Step::Begin(index)));
        if let Some(span) = fault.lasts {
            steps.push(((fault.after + span).min(lasts), Step::End(index)));
        }
    }
    steps.sort_by_key(|(at, step)| (*at, matches!(step, Step::Begin(_))));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{FaultKind, FaultSettings, Selector};

    #[test]
    fn only_another_fault_that_was_on_meanwhile_can_have_ended_a_node() {
        let event = |id, node: &str, asked_ns, healed_ns| FaultEvent {
            id,
            fault: "kill".to_owned(),
            target: node.to_owned(),
            nodes: vec![node.to_owned()],
            stage: FaultStage::Applied,
            asked_ns,
            applied_ns: None,
            healed_ns,
            canary: Canary::None,
            detail: String::new(),
        };
        let hit = event(2, "n1", 50, None);
        let found = |other: &FaultEvent| ender(std::slice::from_ref(other), &hit, "n1").is_some();
        assert!(found(&event(1, "n1", 10, None)), "it is on still");
        assert!(found(&event(1, "n1", 10, Some(60))), "it was healed meanwhile");
        assert!(!found(&event(1, "n1", 10, Some(40))), "it was over");
        assert!(!found(&event(1, "n2", 10, None)), "another node");
        assert!(!found(&hit), "itself");
    }

    #[test]
    fn ends_come_before_begins_of_the_same_time() {
        let fault = |after, lasts: Option<u64>| Fault {
            kind: FaultKind::Kill,
            target: Selector::All,
            after: Duration::from_secs(after),
            lasts: lasts.map(Duration::from_secs),
            settings: FaultSettings::default(),
        };
        let faults = [fault(0, Some(2)), fault(2, Some(3)), fault(1, None)];
        let steps: Vec<Step> =
            schedule(&faults, Duration::from_secs(5)).into_iter().map(|(_, step)| step).collect();
        use Step::{Begin, End};
        assert_eq!(steps, [Begin(0), Begin(2), End(0), Begin(1), End(1)]);
    }
}
