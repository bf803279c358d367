//! From a run's directory to a report.

use std::collections::BTreeSet;

use anyhow::Context as _;

use super::collect::{FinalState, histories, read_back_file, read_final_state};
use super::timeline::Story;
use super::traffic::Traffic;
use super::workload::{Judged, judge};
use super::{Invariant, budget, matrix};
use crate::checker::{Findings, convergence};
use crate::events::read_events;
use crate::history::End;
use crate::report::{
    self, BudgetResult, FaultResult, InvariantResult, InvariantState, REPORT_FORMAT, Report,
    RunFacts, Texts, Totals, Verdict, WorkloadSummary,
};
use crate::run_directory::{RunDescription, RunDirectory};
use crate::scenario::FAILPOINTS;

/// A sleeper that wakes so late, in milliseconds, says that the machine and not the cluster was
/// slow: times measured then prove nothing against a budget.
const LATENESS_MS_MAX: f64 = 100.0;

/// Judges a run by its directory.
///
/// # Errors
/// If the directory cannot be read or a record is damaged. A run that proves nothing is no error
/// here: its verdict says so.
pub fn check(directory: &RunDirectory) -> anyhow::Result<Report> {
    let description = directory.description()?;
    let story = Story::of(&read_events(&directory.events_file())?);
    let mut problems = story.harness_errors.clone();
    let state = read_final_state(directory).unwrap_or_else(|error| {
        problems.push(format!("the cluster was not read back after the heal: {error:#}"));
        FinalState::default()
    });
    let mut traffic = Traffic::default();
    let mut judged = Vec::new();
    for (number, path) in (0..).zip(histories(directory)?) {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let back = read_back_file(directory, &name);
        judged.push(
            judge(number, &path, &back, &state.nodes, &mut traffic)
                .with_context(|| format!("judging {}", path.display()))?,
        );
    }
    if judged.is_empty() {
        problems.push("no workload was recorded".to_owned());
    }
    for one in judged.iter().filter(|one| one.end != End::Whole) {
        problems.push(format!("the record of {} is cut off", one.name));
    }
    for fault in
        story.faults.values().filter(|fault| fault.canary == crate::events::Canary::DidNotTake)
    {
        problems
            .push(format!("fault {} ({} {}) did not take", fault.id, fault.fault, fault.target));
    }
    let mut findings = Findings::default();
    if !state.shards.is_empty() {
        findings.extend(convergence::check(&state).of_workload("after the heal"));
    }
    Ok(assemble(&description, &story, &state, traffic, judged, findings, problems))
}

/// Writes `report.json`, `junit.xml` and `report.html`.
///
/// # Errors
/// If the disk fails.
pub fn write(report: &Report, directory: &RunDirectory) -> anyhow::Result<()> {
    let json = serde_json::to_vec_pretty(report)?;
    for (path, content) in [
        (directory.report_json(), json),
        (directory.junit_xml(), report::junit(report).into_bytes()),
        (directory.report_html(), report::html(report).into_bytes()),
    ] {
        std::fs::write(&path, content)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn assemble(
    description: &RunDescription,
    story: &Story,
    state: &FinalState,
    mut traffic: Traffic,
    judged: Vec<Judged>,
    mut findings: Findings,
    problems: Vec<String>,
) -> Report {
    let faults = budget::faults(story, &traffic, state);
    let (mut totals, mut workloads) = (Totals::default(), Vec::new());
    let (mut writes_ms, mut reads_ms) = (Vec::new(), Vec::new());
    for one in judged {
        totals.extend(&one.share.totals);
        workloads.push(summary(&one));
        let (writes, reads) = one.share.times_ms();
        writes_ms.extend(writes.iter().map(|ms| f64::from(*ms)));
        reads_ms.extend(reads.iter().map(|ms| f64::from(*ms)));
        findings.extend(one.findings);
    }
    [totals.splits, totals.merges, totals.moves] = story.shard_changes;
    totals.faults = faults.iter().filter(|fault| fault.took != Some(false)).count() as u64;
    let asked: BTreeSet<Invariant> =
        description.invariants.iter().filter_map(|name| Invariant::named(name)).collect();
    let invariants = Invariant::ALL.iter().map(|one| invariant(*one, &asked, &findings)).collect();
    let duration_ns = traffic.end_ns.max(story.end_ns);
    let phases = story.phases.iter().map(|phase| traffic.time_in(phase.clone())).collect();
    let mut timeline = traffic.seconds(duration_ns / 1_000_000_000 + 1);
    story.fill(&mut timeline);
    let mut report = Report {
        format: REPORT_FORMAT,
        run: facts(description, state, duration_ns),
        verdict: Verdict::Pass,
        reasons: Vec::new(),
        notes: story.deaths.clone(),
        totals,
        workloads,
        invariants,
        budgets: budget::budgets(&description.budgets, &faults, writes_ms, reads_ms),
        recovery: budget::recovery(&faults),
        matrix: matrix::matrix(&faults, &findings.violations),
        violations: findings.violations,
        faults,
        timeline,
        phases,
        failpoints: failpoints(story),
        texts: Texts {
            scenario: description.scenario_text.clone(),
            topology: description.topology_text.clone(),
        },
    };
    decide(&mut report, problems, story.missed.clone());
    report
}

/// All failpoints, with how often each was reached.
fn failpoints(story: &Story) -> Vec<(String, u64)> {
    if story.failpoints.is_empty() {
        return Vec::new();
    }
    let hits = |name: &str| story.failpoints.get(name).copied().unwrap_or_default();
    FAILPOINTS.iter().map(|(name, _)| ((*name).to_owned(), hits(name))).collect()
}

fn summary(judged: &Judged) -> WorkloadSummary {
    let (writes, reads) = judged.share.spreads();
    WorkloadSummary {
        name: judged.name.clone(),
        totals: judged.share.totals,
        writes,
        reads,
        is_whole: judged.end == End::Whole,
    }
}

fn facts(description: &RunDescription, state: &FinalState, duration_ns: u64) -> RunFacts {
    let zones: BTreeSet<&String> = description.zones.values().collect();
    RunFacts {
        scenario: description.scenario.clone(),
        seed: description.seed,
        driver: description.driver.clone(),
        version: description.version.clone(),
        replay: description.replay.clone(),
        started_at_unix_ms: description.started_at_unix_ms,
        duration_ns,
        nodes: description.zones.len(),
        zones: zones.len(),
        shards: state.shards.len(),
        mutants: description.mutants.clone(),
    }
}

fn invariant(
    invariant: Invariant,
    asked: &BTreeSet<Invariant>,
    findings: &Findings,
) -> InvariantResult {
    let checked = findings.checked.get(&invariant).copied().unwrap_or_default();
    let broken = findings.count(invariant);
    let open: Vec<String> = findings
        .open
        .iter()
        .filter(|(of, _)| *of == invariant)
        .map(|(_, text)| text.clone())
        .collect();
    let state = if 0 < broken {
        InvariantState::Broken
    } else if !open.is_empty() {
        InvariantState::Undecided
    } else if checked == 0 {
        InvariantState::Untested
    } else {
        InvariantState::Kept
    };
    InvariantResult { invariant, asked: asked.contains(&invariant), state, checked, broken, open }
}

/// Whether something in this run should have tested an invariant. A scenario may ask for everything:
/// what its workloads do not touch is shown as not tested.
fn is_testable(invariant: Invariant, workloads: &[WorkloadSummary]) -> bool {
    let is_tested = |workload: &WorkloadSummary| {
        let kind = workload.name.rsplit_once('-').map_or(workload.name.as_str(), |(kind, _)| kind);
        Invariant::tested_by(kind).contains(&invariant)
    };
    invariant.is_of_cluster() || workloads.iter().any(is_tested)
}

/// How slow the machine was at least whenever a budget was missed: where it was not slow, it is no
/// excuse.
fn slowness(report: &Report, missed: &BudgetResult) -> f64 {
    let is_over = |fault: &&FaultResult| {
        budget::measure_of(fault, &missed.name).is_some_and(|value| missed.bound < value)
    };
    let over = report.faults.iter().filter(is_over).map(|fault| {
        let healed_ns = fault.healed_ns.unwrap_or(u64::MAX);
        lateness(report, fault.asked_ns, healed_ns.saturating_add(budget::AFTER_NS))
    });
    // Times of all operations belong to no fault.
    over.reduce(f64::min).unwrap_or_else(|| lateness(report, 0, u64::MAX))
}

/// The latest that a sleeper of 1 ms woke, in milliseconds.
fn lateness(report: &Report, from_ns: u64, until_ns: u64) -> f64 {
    const SECOND_NS: u64 = 1_000_000_000;
    let seconds = (0_u64..).zip(&report.timeline);
    let within =
        seconds.filter(|(number, _)| (from_ns / SECOND_NS..=until_ns / SECOND_NS).contains(number));
    within.map(|(_, second)| second.lateness_ms).fold(0.0, f64::max)
}

fn late(slow_ms: f64) -> String {
    format!(
        "the machine was slow: a sleeper of 1 ms woke {slow_ms:.0} ms late (99th percentile of a second)"
    )
}

/// Decides the verdict: broken promises first, then what keeps the run from proving anything.
fn decide(report: &mut Report, problems: Vec<String>, mut missed: Vec<String>) {
    let mut broken = Vec::new();
    let mut open = Vec::new();
    for one in &report.invariants {
        let name = one.invariant;
        match one.state {
            InvariantState::Broken => {
                let first = report.violations.iter().find(|violation| violation.invariant == name);
                let first = first.map_or(String::new(), |first| format!(": {}", first.text));
                let times = if one.broken == 1 { "once" } else { "times" };
                let count =
                    if one.broken == 1 { String::new() } else { format!("{} ", one.broken) };
                broken.push(format!("{name} was broken {count}{times}{first}"));
            }
            InvariantState::Undecided => {
                open.push(format!("{name} could not be decided: {}", one.open[0]))
            }
            InvariantState::Untested if one.asked && is_testable(name, &report.workloads) => {
                open.push(format!("{name} was asked for and nothing tested it"));
            }
            InvariantState::Untested | InvariantState::Kept => {}
        }
    }
    for budget in &report.budgets {
        let name = format!("{}_{}", budget.name, budget.statistic.suffix());
        match budget.value {
            None => open.push(format!("{name} has a budget and was not measured")),
            Some(value) if budget.bound < value => {
                let text =
                    format!("{name} is {value:.0} ms, above its budget of {:.0} ms", budget.bound);
                let slow = slowness(report, budget);
                if LATENESS_MS_MAX < slow {
                    open.push(format!("{text}; {}", late(slow)));
                } else {
                    missed.push(text);
                }
            }
            Some(_) => {}
        }
    }
    let slow = lateness(report, 0, u64::MAX);
    if LATENESS_MS_MAX < slow {
        report.notes.push(late(slow));
    }
    report.verdict = if !broken.is_empty() {
        Verdict::InvariantBroken
    } else if !problems.is_empty() {
        Verdict::HarnessError
    } else if !open.is_empty() {
        Verdict::Inconclusive
    } else if !missed.is_empty() {
        Verdict::BudgetMissed
    } else {
        Verdict::Pass
    };
    report.reasons = [broken, problems, open, missed].concat();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::Statistic;
    use crate::report::Second;

    const SECOND_NS: u64 = 1_000_000_000;

    /// A run of ten seconds with one kept invariant, and a fault in the third whose gap was 500 ms.
    fn report(bound_ms: f64, late_second: Option<usize>) -> Report {
        let mut timeline = vec![Second::default(); 30];
        if let Some(second) = late_second {
            timeline[second].lateness_ms = 2.0 * LATENESS_MS_MAX;
        }
        Report {
            format: REPORT_FORMAT,
            run: RunFacts::default(),
            verdict: Verdict::Pass,
            reasons: Vec::new(),
            notes: Vec::new(),
            totals: Totals::default(),
            workloads: Vec::new(),
            invariants: vec![invariant(InvariantState::Kept)],
            violations: Vec::new(),
            budgets: vec![BudgetResult {
                name: "write_gap_ms".to_owned(),
                statistic: Statistic::Max,
                bound: bound_ms,
                value: Some(500.0),
                count: 1,
            }],
            recovery: Vec::new(),
            faults: vec![FaultResult {
                id: 1,
                fault: "kill".to_owned(),
                target: "zone=a".to_owned(),
                nodes: Vec::new(),
                asked_ns: 3 * SECOND_NS,
                applied_ns: Some(3 * SECOND_NS),
                healed_ns: Some(5 * SECOND_NS),
                took: Some(true),
                detail: String::new(),
                acknowledged_writes: 1,
                measures: vec![("write_gap_ms".to_owned(), 500.0)],
            }],
            matrix: Vec::new(),
            timeline,
            phases: Vec::new(),
            failpoints: Vec::new(),
            texts: Texts::default(),
        }
    }

    fn invariant(state: InvariantState) -> InvariantResult {
        InvariantResult {
            invariant: Invariant::OneLeader,
            asked: true,
            state,
            checked: 1,
            broken: u64::from(state == InvariantState::Broken),
            open: vec!["too long a search".to_owned()],
        }
    }

    #[track_caller]
    fn check(mut report: Report, problems: &[&str], missed: &[&str], exit_code: u8) {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        decide(&mut report, owned(problems), owned(missed));
        assert_eq!(report.verdict.exit_code(), exit_code, "{:?}", report.reasons);
        assert_eq!(report.reasons.is_empty(), exit_code == 0);
    }

    #[test]
    fn the_worst_that_was_found_is_the_exit_code() {
        check(report(600.0, None), &[], &[], 0);
        check(report(400.0, None), &[], &[], 2);
        check(report(600.0, None), &[], &["not healthy within 60 s"], 2);
        check(report(600.0, None), &["a fault did not take"], &[], 4);
        check(report(400.0, None), &["a fault did not take"], &[], 4);
        let with = |state| Report { invariants: vec![invariant(state)], ..report(400.0, None) };
        check(with(InvariantState::Undecided), &[], &[], 3);
        check(with(InvariantState::Untested), &[], &[], 3);
        check(with(InvariantState::Broken), &["a fault did not take"], &[], 1);
    }

    #[test]
    fn a_slow_machine_excuses_what_it_was_slow_for_and_nothing_else() {
        check(report(400.0, Some(4)), &[], &[], 3);
        check(report(400.0, Some(14)), &[], &[], 3);
        check(report(400.0, Some(2)), &[], &[], 2);
        check(report(400.0, Some(16)), &[], &[], 2);
        check(report(600.0, Some(4)), &[], &[], 0);
        check(report(600.0, Some(4)), &[], &["not healthy within 60 s"], 2);
    }
}
