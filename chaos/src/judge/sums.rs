//! Several runs added up: what was done to clusters, and what it came to.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Invariant;
use crate::report::{InvariantState, Report, Totals, Verdict};
use crate::scenario::coverage;

/// Sums over runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Sums {
    /// Runs by verdict.
    pub verdicts: BTreeMap<String, u64>,
    /// Operations and faults of all runs.
    pub totals: Totals,
    /// Acknowledged writes that were not there.
    pub lost: u64,
    /// Violations of any invariant.
    pub violations: u64,
    /// Invariants that could not be decided.
    pub undecided: u64,
    /// Faults that took hold while writes went on, by row of the catalogue, those never hit
    /// included.
    pub hits: BTreeMap<&'static str, u32>,
    /// How often each failpoint was reached.
    pub failpoints: BTreeMap<String, u64>,
    /// The exit code of the worst run.
    pub exit_code: u8,
}

impl Sums {
    /// Adds reports up.
    pub fn of<'a>(reports: impl IntoIterator<Item = &'a Report>) -> Self {
        let mut sums = Self::default();
        let mut hit = Vec::new();
        for report in reports {
            sums.add(report);
            // A fault during which nothing was written has shown nothing about writes.
            let shown = report.faults.iter();
            let shown = shown
                .filter(|fault| fault.took == Some(true) && 0 < fault.acknowledged_writes)
                .map(|fault| fault.fault.as_str());
            hit.extend(shown);
        }
        sums.hits = coverage(hit.into_iter());
        sums
    }

    fn add(&mut self, report: &Report) {
        *self.verdicts.entry(report.verdict.text().to_owned()).or_default() += 1;
        self.totals.extend(&report.totals);
        for one in &report.invariants {
            self.violations += one.broken;
            self.undecided += u64::from(one.state == InvariantState::Undecided);
            if matches!(one.invariant, Invariant::NothingLost | Invariant::ReplicasComplete) {
                self.lost += one.broken;
            }
        }
        for (name, count) in &report.failpoints {
            *self.failpoints.entry(name.clone()).or_default() += count;
        }
        if severity(report.verdict) > severity_of_code(self.exit_code) {
            self.exit_code = report.verdict.exit_code();
        }
    }
}

/// How bad a verdict is: a broken promise is worst, then what proves nothing, then what was slow.
fn severity(verdict: Verdict) -> u8 {
    severity_of_code(verdict.exit_code())
}

fn severity_of_code(code: u8) -> u8 {
    match code {
        0 => 0,
        2 => 1,
        3 => 2,
        4 => 3,
        _ => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{FaultResult, InvariantResult, REPORT_FORMAT, RunFacts, Texts};

    fn fault(kind: &str, took: Option<bool>, acknowledged_writes: u64) -> FaultResult {
        FaultResult {
            id: 1,
            fault: kind.to_owned(),
            target: String::new(),
            nodes: Vec::new(),
            asked_ns: 0,
            applied_ns: None,
            healed_ns: None,
            took,
            detail: String::new(),
            acknowledged_writes,
            measures: Vec::new(),
        }
    }

    fn report(verdict: Verdict, broken: u64, faults: Vec<FaultResult>) -> Report {
        let state = if broken == 0 { InvariantState::Kept } else { InvariantState::Broken };
        let invariant = Invariant::NothingLost;
        Report {
            format: REPORT_FORMAT,
            run: RunFacts::default(),
            verdict,
            reasons: Vec::new(),
            notes: Vec::new(),
            totals: Totals { acknowledged: 10, faults: faults.len() as u64, ..Totals::default() },
            workloads: Vec::new(),
            invariants: vec![InvariantResult {
                invariant,
                asked: true,
                state,
                checked: 5,
                broken,
                open: Vec::new(),
            }],
            violations: Vec::new(),
            budgets: Vec::new(),
            recovery: Vec::new(),
            faults,
            matrix: Vec::new(),
            timeline: Vec::new(),
            phases: Vec::new(),
            failpoints: vec![("log.durable".to_owned(), 3)],
            texts: Texts::default(),
        }
    }

    #[test]
    fn the_worst_run_decides_and_only_faults_under_writes_count() {
        let reports = [
            report(Verdict::Pass, 0, vec![fault("kill", Some(true), 5)]),
            report(Verdict::InvariantBroken, 2, vec![fault("kill", Some(true), 0)]),
            report(Verdict::HarnessError, 0, vec![fault("pause", Some(false), 5)]),
        ];
        let sums = Sums::of(&reports);
        assert_eq!((sums.lost, sums.violations, sums.exit_code), (2, 2, 1));
        assert_eq!((sums.totals.acknowledged, sums.totals.faults), (30, 3));
        assert_eq!((sums.hits["kill"], sums.hits["pause"]), (1, 0));
        assert_eq!(sums.failpoints["log.durable"], 9);
        assert_eq!(Sums::of(&reports[..1]).exit_code, 0);
        assert_eq!(Sums::of(&reports[2..]).exit_code, 4);
    }
}
