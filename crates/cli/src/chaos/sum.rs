//! `anchorhold chaos sum`: several runs added up.

use std::path::PathBuf;

use anchorhold_chaos::judge::Sums;
use anchorhold_chaos::report::Report;
use anchorhold_chaos::run_directory::RunDirectory;
use anyhow::Context as _;
use clap::Args;

use crate::exit::{Exit, Failure};
use crate::output::{self, Format};

/// Flags of `chaos sum`.
#[derive(Args, Debug)]
pub(super) struct SumArgs {
    /// Directories of judged runs
    #[arg(required = true)]
    directories: Vec<PathBuf>,
    /// Form of what is printed
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Adds up what the reports of some runs say.
///
/// # Errors
/// If a directory holds no judged run. Exits with the worst run's code otherwise.
pub(super) fn run(args: &SumArgs) -> anyhow::Result<()> {
    let no_run = |error: anyhow::Error| Failure::new(Exit::NotFound, format!("{error:#}"), "");
    let mut reports = Vec::new();
    for path in &args.directories {
        reports.push(read(&RunDirectory::open(path).map_err(no_run)?).map_err(no_run)?);
    }
    let sums = Sums::of(&reports);
    output::print(args.output, &sums, || render(&sums))?;
    match sums.exit_code {
        0 => Ok(()),
        code => std::process::exit(i32::from(code)),
    }
}

/// The report of a judged run.
///
/// # Errors
/// If it was never judged, or by another version.
pub(super) fn read(directory: &RunDirectory) -> anyhow::Result<Report> {
    let path = directory.report_json();
    let text = std::fs::read(&path).with_context(|| {
        format!("{} cannot be read: judge the run first, with `chaos check`", path.display())
    })?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{} is no report of this version", path.display()))
}

/// Sums for a terminal.
pub(super) fn render(sums: &Sums) -> String {
    let verdicts = sums.verdicts.iter().map(|(verdict, count)| format!("{count} {verdict}"));
    let verdicts: Vec<String> = verdicts.collect();
    let totals = &sums.totals;
    let open = totals.unknown.saturating_sub(totals.resolved);
    let facts = output::facts(&[
        ("runs", verdicts.join(", ")),
        ("faults", output::thousands(totals.faults)),
        ("operations acknowledged", output::thousands(totals.acknowledged)),
        ("writes among them", output::thousands(totals.acknowledged_writes)),
        ("lost", output::thousands(sums.lost)),
        ("violations", output::thousands(sums.violations)),
        ("undecided invariants", output::thousands(sums.undecided)),
        ("writes of unknown outcome left", output::thousands(open)),
    ]);
    let hits = sums.hits.iter().map(|(name, count)| [(*name).to_owned(), count.to_string()]);
    let hits = output::table(["FAULT", "HIT WHILE WRITES WENT ON"], hits);
    let points = sums.failpoints.iter().map(|(name, count)| [name.clone(), count.to_string()]);
    let points = if sums.failpoints.is_empty() {
        String::new()
    } else {
        format!("\n\n{}", output::table(["FAILPOINT", "REACHED"], points))
    };
    format!("{facts}\n\n{hits}{points}")
}
