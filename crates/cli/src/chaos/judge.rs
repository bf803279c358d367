//! `anchorhold chaos check` and `report`: what a run showed, again.

use std::path::PathBuf;

use anchorhold_chaos::judge;
use anchorhold_chaos::report::{InvariantState, Report};
use anchorhold_chaos::run_directory::RunDirectory;
use clap::Args;

use crate::exit::{Exit, Failure};
use crate::output::{self, Format};

/// Flags of `chaos check`.
#[derive(Args, Debug)]
pub(super) struct CheckArgs {
    /// The run's directory
    directory: PathBuf,
    /// Form of what is printed
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Flags of `chaos report`.
#[derive(Args, Debug)]
pub(super) struct ReportArgs {
    /// The run's directory
    directory: PathBuf,
}

/// Judges a run again, from its record alone.
///
/// # Errors
/// If the directory holds no readable run. Exits with the verdict's code otherwise.
pub(super) fn check(args: &CheckArgs) -> anyhow::Result<()> {
    // Not 1, which would say that an invariant is broken: 4, as for an error of the harness.
    let no_run = |error: anyhow::Error| Failure::new(Exit::NotFound, format!("{error:#}"), "");
    let directory = RunDirectory::open(&args.directory).map_err(no_run)?;
    let report = judge::check(&directory).map_err(no_run)?;
    judge::write(&report, &directory)?;
    output::print(args.output, &report, || summary(&report))?;
    eprintln!("{}", directory.report_html().display());
    exit(&report)
}

/// Writes the page again, out of `report.json`.
///
/// # Errors
/// If the run was never judged, or the disk fails.
pub(super) fn report(args: &ReportArgs) -> anyhow::Result<()> {
    let directory = RunDirectory::open(&args.directory)?;
    let report = super::sum::read(&directory)?;
    judge::write(&report, &directory)?;
    println!("{}", directory.report_html().display());
    Ok(())
}

/// Ends the process with the verdict's exit code, unless it is a pass.
///
/// # Errors
/// None; it fits where a command ends.
pub(super) fn exit(report: &Report) -> anyhow::Result<()> {
    match report.verdict.exit_code() {
        0 => Ok(()),
        code => std::process::exit(i32::from(code)),
    }
}

/// The verdict for a terminal: what was found, and why.
pub(super) fn summary(report: &Report) -> String {
    let header = ["INVARIANT", "STATE", "TESTS", "VIOLATIONS"];
    let tested = report.invariants.iter().filter(|one| one.state != InvariantState::Untested);
    let rows = tested.map(|one| {
        let state = match one.state {
            InvariantState::Kept => "kept",
            InvariantState::Broken => "BROKEN",
            InvariantState::Undecided => "undecided",
            InvariantState::Untested => "not tested",
        };
        let (checked, broken) = (one.checked.to_string(), one.broken.to_string());
        [one.invariant.name().to_owned(), state.to_owned(), checked, broken]
    });
    let totals = &report.totals;
    let mut facts = vec![
        ("verdict", report.verdict.text().to_owned()),
        (
            "operations",
            format!(
                "{} acknowledged ({} writes), {} failed, {} unanswered, {} of them found out",
                totals.acknowledged,
                totals.acknowledged_writes,
                totals.failed,
                totals.unknown,
                totals.resolved
            ),
        ),
        ("faults", totals.faults.to_string()),
        ("seed", report.run.seed.to_string()),
    ];
    facts.extend(report.reasons.iter().map(|reason| ("because", reason.clone())));
    facts.extend(report.notes.iter().map(|note| ("note", note.clone())));
    let budgets = report.budgets.iter().map(|budget| {
        let value = budget.value.map_or("–".to_owned(), |value| format!("{value:.0} ms"));
        let is_met = match budget.is_met() {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "not measured",
        };
        let name = format!("{}_{}", budget.name, budget.statistic.suffix());
        [name, value, format!("{:.0} ms", budget.bound), is_met.to_owned()]
    });
    let budgets: Vec<[String; 4]> = budgets.collect();
    let budgets = if budgets.is_empty() {
        String::new()
    } else {
        format!("\n\n{}", output::table(["BUDGET", "FOUND", "AT MOST", ""], budgets.into_iter()))
    };
    format!("{}{budgets}\n\n{}", output::table(header, rows), output::facts(&facts))
}
