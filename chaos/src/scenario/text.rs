//! From text to a checked scenario, with the place of everything that is wrong.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use anchorhold_cluster::Topology;
use serde::Deserialize;
use toml::Spanned;

use super::{
    DamagedFile, FAILPOINTS, Fault, FaultKind, FaultSettings, Phase, Place, ROWS, Reshape, Row,
    Scenario, ScenarioError, Selector, SwarmConfig, Wait, failpoint, swarm,
};
use crate::judge::{BUDGETS, Budget, Invariant, Statistic};
use crate::workload::WorkloadConfig;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ScenarioText {
    name: Spanned<String>,
    about: String,
    topology: Spanned<String>,
    seed: Option<u64>,
    rounds: Option<Spanned<u32>>,
    timeout_s: Option<Spanned<f64>>,
    #[serde(default, rename = "workload")]
    workloads: Vec<Spanned<toml::Table>>,
    #[serde(default, rename = "phase")]
    phases: Vec<Spanned<PhaseText>>,
    #[serde(default)]
    node_settings: Vec<String>,
    #[serde(default)]
    invariants: Vec<Spanned<String>>,
    #[serde(default)]
    budgets: BTreeMap<Spanned<String>, Spanned<f64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PhaseText {
    name: Spanned<String>,
    for_s: Spanned<f64>,
    #[serde(default, rename = "fault")]
    faults: Vec<Spanned<FaultText>>,
    split_every_s: Option<Spanned<f64>>,
    merge_every_s: Option<Spanned<f64>>,
    move_every_s: Option<Spanned<f64>>,
    swarm: Option<Spanned<SwarmText>>,
    #[serde(default)]
    wait: Vec<Spanned<String>>,
    wait_max_s: Option<Spanned<f64>>,
}

#[derive(Deserialize)]
struct FaultText {
    kind: Spanned<String>,
    target: Option<Spanned<String>>,
    after_s: Option<Spanned<f64>>,
    for_s: Option<Spanned<f64>>,
    /// Settings: which are allowed is the kind's business.
    #[serde(flatten)]
    settings: BTreeMap<String, toml::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SwarmText {
    faults: Option<Vec<Spanned<String>>>,
    without: Option<Vec<Spanned<String>>>,
    enable: Option<Spanned<f64>>,
    mean_between_s: Spanned<f64>,
    lasts_s_min: Spanned<f64>,
    lasts_s_max: Spanned<f64>,
    concurrent_max: Option<Spanned<u32>>,
    quorum_guard: bool,
}

/// A place and what is wrong there.
type Wrong = (Range<usize>, String);

/// How long all of it may take, unless the scenario says so.
const TIMEOUT_S: f64 = 1_800.0;
/// How long waits may take, unless the phase says so.
const WAIT_MAX_S: f64 = 60.0;
/// The longest time that a scenario can name: a week.
const SECONDS_MAX: f64 = 604_800.0;

pub(super) fn parse(
    file: &str,
    text: &str,
    topology: Option<&str>,
) -> Result<Scenario, ScenarioError> {
    let parsed: Result<ScenarioText, _> = toml::from_str(text);
    let parsed = parsed.map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        at(file, text, span.start, error.message().trim().to_owned())
    })?;
    build(file, text, parsed, topology)
        .map_err(|(span, problem)| at(file, text, span.start, problem))
}

fn at(file: &str, text: &str, offset: usize, problem: String) -> ScenarioError {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |start| start.chars().count()) + 1;
    let shown = text.lines().nth(line - 1).unwrap_or_default().to_owned();
    let marker = format!("{}^", " ".repeat(column - 1));
    ScenarioError { file: file.to_owned(), line, column, problem, text: shown, marker }
}

fn build(
    file: &str,
    text: &str,
    parsed: ScenarioText,
    topology: Option<&str>,
) -> Result<Scenario, Wrong> {
    check_name(&parsed.name)?;
    let base = Path::new(file).parent().unwrap_or(Path::new(""));
    let wrong_topology = |problem: String| (parsed.topology.span(), problem);
    let (topology_file, topology_text) = match topology {
        Some(text) => (parsed.topology.get_ref().clone(), text.to_owned()),
        None => super::topology_text(parsed.topology.get_ref(), base).map_err(wrong_topology)?,
    };
    let topology = Topology::parse(&topology_file, &topology_text)
        .map_err(|error| wrong_topology(error.to_string()))?;
    if parsed.phases.is_empty() {
        let problem = "there is no phase: add a [[phase]] with a name and for_s";
        return Err((parsed.name.span(), problem.to_owned()));
    }
    let places = super::places(&topology);
    let workloads = parsed.workloads.iter().map(|table| workload(text, table));
    let phases = parsed.phases.into_iter().map(|phase| build_phase(text, phase, &places));
    let rounds = parsed.rounds.as_ref().map_or(1, |rounds| *rounds.get_ref());
    if rounds == 0 {
        let span = parsed.rounds.map_or(0..0, |rounds| rounds.span());
        return Err((span, "rounds must be at least 1".to_owned()));
    }
    Ok(Scenario {
        name: parsed.name.get_ref().clone(),
        about: parsed.about,
        topology,
        topology_text,
        seed: parsed.seed,
        rounds: rounds as usize,
        timeout: seconds("timeout_s", parsed.timeout_s.as_ref(), TIMEOUT_S)?,
        workloads: workloads.collect::<Result<_, _>>()?,
        phases: phases.collect::<Result<_, _>>()?,
        node_settings: parsed.node_settings,
        invariants: invariants(&parsed.invariants)?,
        budgets: budgets(parsed.budgets)?,
    })
}

fn check_name(name: &Spanned<String>) -> Result<(), Wrong> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let text = name.get_ref();
    if (1..=63).contains(&text.len()) && text.chars().all(allowed) {
        return Ok(());
    }
    Err((name.span(), format!("the name {text:?} must be 1 to 63 of a-z, 0-9 and '-'")))
}

fn seconds(name: &str, value: Option<&Spanned<f64>>, default: f64) -> Result<Duration, Wrong> {
    let Some(value) = value else { return Ok(Duration::from_secs_f64(default)) };
    let number = *value.get_ref();
    if !(0.0..=SECONDS_MAX).contains(&number) {
        let problem = format!("{name} is {number}; it is seconds from 0 to {SECONDS_MAX}");
        return Err((value.span(), problem));
    }
    Ok(Duration::from_secs_f64(number))
}

fn workload(text: &str, table: &Spanned<toml::Table>) -> Result<WorkloadConfig, Wrong> {
    let span = table.span();
    let config: WorkloadConfig = table.get_ref().clone().try_into().map_err(|error| {
        let problem = toml::de::Error::message(&error).trim().to_owned();
        (named_in(text, span.clone(), &problem), problem)
    })?;
    config.validate().map_err(|problem| (named_in(text, span, &problem), problem))?;
    Ok(config)
}

/// The place within a span of what a message names first, in backticks or as its first word; the
/// span if that is not there.
fn named_in(text: &str, span: Range<usize>, problem: &str) -> Range<usize> {
    let quoted = problem.split('`').nth(1);
    let name = quoted.or_else(|| problem.split(' ').next()).unwrap_or_default();
    // A table in brackets has the span of its header only: it ends where the next one begins.
    let rest = text.get(span.start..).unwrap_or_default();
    let header = span.len().min(rest.len());
    let end = rest.get(header..).and_then(|after| after.find("\n[")).map(|at| header + at);
    let within = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
    // As a key, not as a part of another word.
    let is_key = |at: &usize| {
        let behind = within.get(at + name.len()..).unwrap_or_default().trim_start();
        !name.is_empty() && behind.starts_with('=')
    };
    match within.match_indices(name).map(|(at, _)| at).find(is_key) {
        Some(offset) => span.start + offset..span.start + offset + name.len(),
        None => span,
    }
}

fn build_phase(
    text: &str,
    phase: Spanned<PhaseText>,
    places: &BTreeMap<String, Place>,
) -> Result<Phase, Wrong> {
    let phase = phase.into_inner();
    check_name(&phase.name)?;
    let lasts = seconds("for_s", Some(&phase.for_s), 0.0)?;
    let faults = phase.faults.iter().map(|fault| build_fault(text, fault, lasts, places));
    let faults = faults.collect::<Result<_, _>>()?;
    let waits = phase.wait.iter().map(wait).collect::<Result<_, _>>()?;
    let swarm = phase.swarm.map(|swarm| build_swarm(swarm.into_inner())).transpose()?;
    let wait_max = seconds("wait_max_s", phase.wait_max_s.as_ref(), WAIT_MAX_S)?;
    let reshape = Reshape {
        split_every: every("split_every_s", phase.split_every_s.as_ref())?,
        merge_every: every("merge_every_s", phase.merge_every_s.as_ref())?,
        move_every: every("move_every_s", phase.move_every_s.as_ref())?,
    };
    let name = phase.name.into_inner();
    Ok(Phase { name, lasts, faults, reshape, swarm, waits, wait_max })
}

fn every(name: &str, value: Option<&Spanned<f64>>) -> Result<Option<Duration>, Wrong> {
    let Some(value) = value else { return Ok(None) };
    match seconds(name, Some(value), 0.0)? {
        Duration::ZERO => Err((value.span(), format!("{name} must be more than 0"))),
        every => Ok(Some(every)),
    }
}

fn wait(name: &Spanned<String>) -> Result<Wait, Wrong> {
    match name.get_ref().as_str() {
        "healthy" => Ok(Wait::Healthy),
        "leaders" => Ok(Wait::Leaders),
        "writes" => Ok(Wait::Writes),
        other => {
            let problem =
                format!("{other:?} cannot be waited for: write healthy, leaders or writes");
            Err((name.span(), problem))
        }
    }
}

fn row(name: &Spanned<String>) -> Result<&'static Row, Wrong> {
    Row::named(name.get_ref()).ok_or_else(|| {
        let known: Vec<_> = ROWS.iter().map(|row| row.name).collect();
        let problem = format!("there is no fault {:?}: write {}", name.get_ref(), known.join(", "));
        (name.span(), problem)
    })
}

fn build_fault(
    text: &str,
    fault: &Spanned<FaultText>,
    phase_lasts: Duration,
    places: &BTreeMap<String, Place>,
) -> Result<Fault, Wrong> {
    let span = fault.span();
    let fault = fault.get_ref();
    let row = row(&fault.kind)?;
    let mut settings = FaultSettings::default();
    for (name, value) in &fault.settings {
        set(&mut settings, row, name, value)
            .map_err(|problem| (named_in(text, span.clone(), &format!("`{name}`")), problem))?;
    }
    let target = match &fault.target {
        None => Selector::All,
        Some(target) => {
            let wrong = |problem| (target.span(), problem);
            let selector = Selector::parse(target.get_ref()).map_err(wrong)?;
            selector.check(places).map_err(wrong)?;
            selector
        }
    };
    let after = seconds("after_s", fault.after_s.as_ref(), 0.0)?;
    let lasts = fault.for_s.as_ref().map(|_| seconds("for_s", fault.for_s.as_ref(), 0.0));
    let lasts = lasts.transpose()?;
    if phase_lasts < after + lasts.unwrap_or_default() {
        let problem = format!(
            "the fault ends after the phase: after_s and for_s together are at most {}",
            phase_lasts.as_secs_f64()
        );
        return Err((fault.kind.span(), problem));
    }
    Ok(Fault { kind: row.kind, target, after, lasts, settings })
}

fn set(
    settings: &mut FaultSettings,
    row: &Row,
    name: &str,
    value: &toml::Value,
) -> Result<(), String> {
    if !row.settings.contains(&name) {
        let allowed = ["kind", "target", "after_s", "for_s"];
        let allowed: Vec<&str> = allowed.iter().chain(row.settings).copied().collect();
        let (kind, allowed) = (row.name, allowed.join(", "));
        return Err(format!("a fault of kind {kind:?} has no `{name}`: write {allowed}"));
    }
    if name == "file" {
        let found = DamagedFile::NAMES.iter().find(|(known, _)| value.as_str() == Some(*known));
        let (_, file) =
            found.ok_or_else(|| "file must be \"log\", \"snapshot\" or \"state\"".to_owned())?;
        settings.file = *file;
        return Ok(());
    }
    if name == "point" {
        let known: Vec<_> = FAILPOINTS.iter().map(|(name, _)| *name).collect();
        let found = value.as_str().and_then(failpoint);
        settings.point =
            found.ok_or_else(|| format!("point must be one of {}", known.join(", ")))?;
        return Ok(());
    }
    #[expect(clippy::cast_precision_loss, reason = "settings are small numbers")]
    let number = value.as_float().or_else(|| value.as_integer().map(|whole| whole as f64));
    settings.set(name, number.ok_or_else(|| format!("{name} must be a number"))?)
}

fn build_swarm(swarm: SwarmText) -> Result<SwarmConfig, Wrong> {
    let list = |names: &Vec<Spanned<String>>| {
        names.iter().map(|name| row(name).map(|row| row.kind)).collect::<Result<Vec<_>, _>>()
    };
    let without = swarm.without.as_ref().map(list).transpose()?.unwrap_or_default();
    let mut kinds: Vec<FaultKind> = match &swarm.faults {
        Some(names) => list(names)?,
        // A failpoint need not be reached in time, which would be an error of the harness.
        None => {
            ROWS.iter().map(|row| row.kind).filter(|kind| *kind != FaultKind::CrashAt).collect()
        }
    };
    kinds.retain(|kind| !without.contains(kind));
    if swarm.quorum_guard
        && let Some(names) = &swarm.faults
        && let Some(name) =
            names.iter().zip(&kinds).find(|(_, kind)| swarm::UNGUARDED.contains(kind))
    {
        let problem =
            format!("{:?} cannot be kept within a zone: drop it, or quorum_guard", name.0);
        return Err((name.0.span(), problem));
    }
    let enable = swarm.enable.as_ref().map_or(1.0, |share| *share.get_ref());
    if !(0.01..=1.0).contains(&enable) {
        let span = swarm.enable.map_or(0..0, |share| share.span());
        return Err((span, format!("enable is {enable}; it is a share from 0.01 to 1")));
    }
    let lasts_min = seconds("lasts_s_min", Some(&swarm.lasts_s_min), 0.0)?;
    let lasts_max = seconds("lasts_s_max", Some(&swarm.lasts_s_max), 0.0)?;
    let mean_between = seconds("mean_between_s", Some(&swarm.mean_between_s), 0.0)?;
    if lasts_max < lasts_min {
        return Err((swarm.lasts_s_max.span(), "lasts_s_max is below lasts_s_min".to_owned()));
    }
    if mean_between < Duration::from_millis(10) {
        let problem = "mean_between_s must be at least 0.01".to_owned();
        return Err((swarm.mean_between_s.span(), problem));
    }
    let concurrent_max = swarm.concurrent_max.as_ref().map_or(1, |max| *max.get_ref()) as usize;
    let quorum_guard = swarm.quorum_guard;
    Ok(SwarmConfig {
        kinds,
        enable,
        mean_between,
        lasts_min,
        lasts_max,
        concurrent_max,
        quorum_guard,
    })
}

fn invariants(names: &[Spanned<String>]) -> Result<Vec<Invariant>, Wrong> {
    let mut invariants = Vec::new();
    for name in names {
        match Invariant::named(name.get_ref()) {
            Some(invariant) => invariants.push(invariant),
            None if name.get_ref() == "all" => return Ok(Invariant::ALL.to_vec()),
            None => {
                let known: Vec<_> = Invariant::ALL.iter().map(|one| one.name()).collect();
                let (name_text, known) = (name.get_ref(), known.join(", "));
                let problem = format!("there is no invariant {name_text:?}: write all, {known}");
                return Err((name.span(), problem));
            }
        }
    }
    Ok(invariants)
}

fn budgets(texts: BTreeMap<Spanned<String>, Spanned<f64>>) -> Result<BTreeMap<String, f64>, Wrong> {
    let mut budgets = BTreeMap::new();
    for (name, bound) in texts {
        if Budget::named(name.get_ref()).is_none() {
            let measures: Vec<_> = BUDGETS.iter().map(|budget| budget.name).collect();
            let ends: Vec<_> = Statistic::ALL.iter().map(|one| one.suffix()).collect();
            let (measures, ends) = (measures.join(", "), ends.join(", "));
            let problem = format!(
                "there is no budget {:?}: write a measure ({measures}) and _ and one of {ends}",
                name.get_ref()
            );
            return Err((name.span(), problem));
        }
        if !bound.get_ref().is_finite() || *bound.get_ref() < 0.0 {
            return Err((bound.span(), "a budget is a number from 0".to_owned()));
        }
        budgets.insert(name.into_inner(), bound.into_inner());
    }
    Ok(budgets)
}
