//! What a run does: workloads, phases of faults and waits, what must hold, within which bounds.
//!
//! A scenario is a TOML file. It is checked whole before anything starts, and whatever is wrong is
//! pointed at: file, line, column, and what is allowed there.
//!
//! Not here: running it (`run`), what its faults do (`fault`).

mod catalogue;
mod failpoint;
mod selector;
mod swarm;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anchorhold_cluster::{NodeSpec, Topology};
use anyhow::Context as _;

pub use self::catalogue::{DamagedFile, FaultKind, FaultSettings, ROWS, Row, coverage};
pub use self::failpoint::{FAILPOINTS, failpoint};
pub use self::selector::{Pick, Place, Selector, View};
pub use self::swarm::{SwarmConfig, plan as plan_swarm};
use crate::judge::Invariant;
use crate::workload::WorkloadConfig;

/// A scenario, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// Its name: that of its file.
    pub name: String,
    /// What it shows, for people.
    pub about: String,
    /// The topology that it runs on.
    pub topology: Topology,
    /// The topology's file, as it was read.
    pub topology_text: String,
    /// The seed, if the scenario wants a certain one.
    pub seed: Option<u64>,
    /// How often the phases are gone through.
    pub rounds: usize,
    /// How long all of it may take.
    pub timeout: Duration,
    /// What clients do meanwhile.
    pub workloads: Vec<WorkloadConfig>,
    /// What happens, one after the other.
    pub phases: Vec<Phase>,
    /// Settings of all nodes, `key=value` each: what `start --set` takes.
    pub node_settings: Vec<String>,
    /// What must hold.
    pub invariants: Vec<Invariant>,
    /// What must stay within bounds: measure, statistic and unit are in the name.
    pub budgets: BTreeMap<String, f64>,
}

/// How often shards are changed, if at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reshape {
    /// The largest is split.
    pub split_every: Option<Duration>,
    /// One becomes part of its left neighbour.
    pub merge_every: Option<Duration>,
    /// A replica moves to another node of its zone.
    pub move_every: Option<Duration>,
}

/// One phase. Its faults are healed at its end; then its waits begin.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// How long it lasts.
    pub lasts: Duration,
    /// What goes wrong meanwhile.
    pub faults: Vec<Fault>,
    /// How shards are changed meanwhile.
    pub reshape: Reshape,
    /// Random faults beside them.
    pub swarm: Option<SwarmConfig>,
    /// What must be reached before the next phase begins.
    pub waits: Vec<Wait>,
    /// How long that may take.
    pub wait_max: Duration,
}

/// One fault of a phase.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// The row of the catalogue.
    pub kind: FaultKind,
    /// Whom it hits.
    pub target: Selector,
    /// When it begins, from the phase's beginning.
    pub after: Duration,
    /// How long it lasts; `None`: to the end of the phase.
    pub lasts: Option<Duration>,
    /// How bad it is.
    pub settings: FaultSettings,
}

/// What can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Every shard has a leader and all its replicas.
    Healthy,
    /// Every shard has a leader.
    Leaders,
    /// Every workload is acknowledged again.
    Writes,
}

/// Scenarios that come with the harness, by name.
const SHIPPED: &[(&str, &str)] = &[
    ("zone-loss", include_str!("../scenarios/zone-loss.toml")),
    ("region-loss", include_str!("../scenarios/region-loss.toml")),
    ("idle-shards", include_str!("../scenarios/idle-shards.toml")),
    ("zone-heal", include_str!("../scenarios/zone-heal.toml")),
    ("leader-loss", include_str!("../scenarios/leader-loss.toml")),
    ("node-kill-storm", include_str!("../scenarios/node-kill-storm.toml")),
    ("rolling-restart", include_str!("../scenarios/rolling-restart.toml")),
    ("one-way-partitions", include_str!("../scenarios/one-way-partitions.toml")),
    ("flapping-links", include_str!("../scenarios/flapping-links.toml")),
    ("slow-disk-leader", include_str!("../scenarios/slow-disk-leader.toml")),
    ("full-disk", include_str!("../scenarios/full-disk.toml")),
    ("clock-jump", include_str!("../scenarios/clock-jump.toml")),
    ("wiped-node-rejoins", include_str!("../scenarios/wiped-node-rejoins.toml")),
    ("damaged-files", include_str!("../scenarios/damaged-files.toml")),
    ("all-zones-power-loss", include_str!("../scenarios/all-zones-power-loss.toml")),
    ("swarm", include_str!("../scenarios/swarm.toml")),
    ("marathon", include_str!("../scenarios/marathon.toml")),
    ("catalogue", include_str!("../scenarios/catalogue.toml")),
    ("soak", include_str!("../scenarios/soak.toml")),
    ("splits", include_str!("../scenarios/splits.toml")),
    ("reshape", include_str!("../scenarios/reshape.toml")),
    ("smoke", include_str!("../scenarios/smoke.toml")),
    ("crash-points", include_str!("../scenarios/crash-points.toml")),
    ("old-leader", include_str!("../scenarios/old-leader.toml")),
    ("left-behind", include_str!("../scenarios/left-behind.toml")),
    ("one-restart", include_str!("../scenarios/one-restart.toml")),
    ("lights-out", include_str!("../scenarios/lights-out.toml")),
    ("calm", include_str!("../scenarios/calm.toml")),
];

/// Topologies that come with the harness, by name.
const TOPOLOGIES: &[(&str, &str)] = &[
    ("three-zones", include_str!("../../cluster/three-zones.toml")),
    ("six-nodes", include_str!("../../cluster/six-nodes.toml")),
    ("nine-nodes", include_str!("../../cluster/nine-nodes.toml")),
    ("one-node", include_str!("../../cluster/one-node.toml")),
    ("two-regions", include_str!("../../cluster/two-regions.toml")),
];

/// Why a scenario cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {problem}\n    {text}\n    {marker}")]
pub struct ScenarioError {
    /// Which file.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong, and what is allowed.
    pub problem: String,
    /// The line itself.
    pub text: String,
    /// Spaces and a `^` below the column.
    pub marker: String,
}

impl Scenario {
    /// The names of the scenarios that come with the harness.
    pub fn shipped() -> impl Iterator<Item = &'static str> {
        SHIPPED.iter().map(|(name, _)| *name)
    }

    /// Reads a scenario: a shipped one by name, or a file. Returns its text too.
    ///
    /// # Errors
    /// [`ScenarioError`] if it is not a valid one, or if there is none.
    pub fn load(name_or_path: &str) -> anyhow::Result<(Self, String)> {
        let shipped = SHIPPED.iter().find(|(name, _)| *name == name_or_path);
        let (file, text) = match shipped {
            Some((name, text)) => (format!("{name}.toml"), (*text).to_owned()),
            None => {
                if !Path::new(name_or_path).exists() {
                    let known = Self::shipped().collect::<Vec<_>>().join(", ");
                    anyhow::bail!("{name_or_path} is neither a file nor one of {known}");
                }
                let text = std::fs::read_to_string(name_or_path)
                    .with_context(|| format!("cannot read {name_or_path}"))?;
                (name_or_path.to_owned(), text)
            }
        };
        let scenario = Self::parse(&file, &text)?;
        Ok((scenario, text))
    }

    /// Reads a scenario from text; `file` is what errors call it.
    ///
    /// # Errors
    /// [`ScenarioError`] with the place in the text.
    pub fn parse(file: &str, text: &str) -> Result<Self, ScenarioError> {
        text::parse(file, text, None)
    }

    /// Reads a scenario and the topology that it was run on, as a run's directory holds them: the
    /// topology's file may not be there any more.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_with_topology(
        file: &str,
        text: &str,
        topology: &str,
    ) -> Result<Self, ScenarioError> {
        text::parse(file, text, Some(topology))
    }

    /// Takes so many rounds instead of its own, and so much more or less time.
    pub fn set_rounds(&mut self, rounds: usize) {
        #[expect(clippy::cast_precision_loss, reason = "rounds are few")]
        let factor = rounds as f64 / self.rounds.max(1) as f64;
        self.timeout = self.timeout.mul_f64(factor.max(1.0));
        self.rounds = rounds;
    }

    /// The faults of a phase in a round, swarm included.
    pub fn faults(&self, phase: &Phase, round: usize, seed: u64) -> Vec<Fault> {
        let mut faults = phase.faults.clone();
        if let Some(swarm) = &phase.swarm {
            let seed = seed.wrapping_add(1_000_003 * round as u64);
            faults.extend(swarm::plan(swarm, phase.lasts, &self.places(), seed));
        }
        faults.sort_by_key(|fault| fault.after);
        faults
    }

    /// Place of each node, by name.
    pub fn places(&self) -> BTreeMap<String, Place> {
        places(&self.topology)
    }

    /// Zone of each node, by name.
    pub fn zones(&self) -> BTreeMap<String, String> {
        self.topology.nodes().into_iter().map(|node| (node.name, node.zone)).collect()
    }

    /// The kinds of fault that it may do.
    pub fn kinds(&self) -> BTreeSet<FaultKind> {
        let of = |phase: &Phase| {
            let swarm = phase.swarm.iter().flat_map(|swarm| swarm.kinds.clone());
            phase.faults.iter().map(|fault| fault.kind).chain(swarm).collect::<Vec<_>>()
        };
        self.phases.iter().flat_map(of).collect()
    }

    /// Whether it needs nodes that can be broken on command.
    pub fn needs_hooks(&self) -> bool {
        self.phases.iter().any(|phase| {
            phase.faults.iter().any(|fault| fault.kind.row().needs_hooks)
                || phase.swarm.as_ref().is_some_and(SwarmConfig::needs_hooks)
        })
    }
}

fn places(topology: &Topology) -> BTreeMap<String, Place> {
    let place = |node: NodeSpec| (node.name, Place { region: node.region, zone: node.zone });
    topology.nodes().into_iter().map(place).collect()
}

/// A shipped topology's text, or a file's.
fn topology_text(name_or_path: &str, base: &Path) -> Result<(String, String), String> {
    if let Some((name, text)) = TOPOLOGIES.iter().find(|(name, _)| *name == name_or_path) {
        return Ok((format!("{name}.toml"), (*text).to_owned()));
    }
    let path = base.join(name_or_path);
    let known: Vec<_> = TOPOLOGIES.iter().map(|(name, _)| *name).collect();
    let text = std::fs::read_to_string(&path).map_err(|error| {
        format!(
            "{name_or_path:?} is none of {}, and no file beside the scenario ({error})",
            known.join(", ")
        )
    })?;
    Ok((path.display().to_string(), text))
}

#[cfg(test)]
mod tests;
