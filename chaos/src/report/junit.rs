//! The report for test runners.

use std::fmt::Write as _;

use super::text::escaped;
use super::{InvariantState, Report, Verdict};

/// JUnit XML: one case for each invariant, each budget, and the run as a whole.
pub fn junit(report: &Report) -> String {
    let mut cases: Vec<(String, Outcome)> = Vec::new();
    for one in &report.invariants {
        let outcome = match one.state {
            InvariantState::Kept => Outcome::Passed,
            InvariantState::Broken => {
                let of = report.violations.iter().filter(|v| v.invariant == one.invariant);
                let texts: Vec<&str> = of.map(|violation| violation.text.as_str()).collect();
                Outcome::Failed(format!("broken {} times\n{}", one.broken, texts.join("\n")))
            }
            InvariantState::Undecided => Outcome::Error(one.open.join("\n")),
            InvariantState::Untested => Outcome::Skipped,
        };
        cases.push((one.invariant.name().to_owned(), outcome));
    }
    for budget in &report.budgets {
        let name = format!("{}_{}", budget.name, budget.statistic.suffix());
        let outcome = match (budget.is_met(), budget.value) {
            (Some(true), _) => Outcome::Passed,
            (Some(false), Some(value)) => {
                Outcome::Failed(format!("{value:.0} ms, budget {:.0} ms", budget.bound))
            }
            (Some(false) | None, _) => Outcome::Error("not measured".to_owned()),
        };
        cases.push((name, outcome));
    }
    let whole = match report.verdict {
        Verdict::Pass => Outcome::Passed,
        Verdict::InvariantBroken | Verdict::BudgetMissed => {
            Outcome::Failed(report.reasons.join("\n"))
        }
        Verdict::Inconclusive | Verdict::HarnessError => Outcome::Error(report.reasons.join("\n")),
    };
    cases.push(("verdict".to_owned(), whole));
    written(report, &cases)
}

enum Outcome {
    Passed,
    Skipped,
    Failed(String),
    Error(String),
}

fn written(report: &Report, cases: &[(String, Outcome)]) -> String {
    let count = |is: fn(&Outcome) -> bool| cases.iter().filter(|(_, outcome)| is(outcome)).count();
    let failures = count(|outcome| matches!(outcome, Outcome::Failed(_)));
    let errors = count(|outcome| matches!(outcome, Outcome::Error(_)));
    let skipped = count(|outcome| matches!(outcome, Outcome::Skipped));
    let scenario = escaped(&report.run.scenario);
    let seconds = report.run.duration_ns as f64 / 1e9;
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    // Writing to a string cannot fail.
    let _ = writeln!(
        xml,
        "<testsuite name=\"chaos {scenario}\" tests=\"{}\" failures=\"{failures}\" errors=\"{errors}\" skipped=\"{skipped}\" time=\"{seconds:.3}\">",
        cases.len()
    );
    for (name, outcome) in cases {
        let head = format!("<testcase classname=\"chaos.{scenario}\" name=\"{}\"", escaped(name));
        let _ = match outcome {
            Outcome::Passed => writeln!(xml, "  {head}/>"),
            Outcome::Skipped => writeln!(xml, "  {head}><skipped/></testcase>"),
            Outcome::Failed(text) => {
                writeln!(xml, "  {head}><failure>{}</failure></testcase>", escaped(text))
            }
            Outcome::Error(text) => {
                writeln!(xml, "  {head}><error>{}</error></testcase>", escaped(text))
            }
        };
    }
    xml.push_str("</testsuite>\n");
    xml
}
