//! `anchorhold chaos run`, `list` and `replay`.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use anchorhold_chaos::judge;
use anchorhold_chaos::run::{self, RunConfig, RunOutcome, RunProgress};
use anchorhold_chaos::run_directory::RunDirectory;
use anchorhold_chaos::scenario::{ROWS, Scenario};
use anyhow::Context as _;
use clap::Args;

use super::doctor;
use crate::exit::{Exit, Failure};
use crate::output;

/// Flags of `chaos run`.
#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    /// A scenario that comes with this binary, or a file
    scenario: String,
    #[command(flatten)]
    how: HowArgs,
    /// Everything random follows from it [default: the scenario's, else a random one]
    #[arg(long)]
    seed: Option<u64>,
}

/// Flags of `chaos replay`.
#[derive(Args, Debug)]
pub(crate) struct ReplayArgs {
    /// The directory of the run
    run: PathBuf,
    #[command(flatten)]
    how: HowArgs,
}

/// How to run, whatever is run.
#[derive(Args, Debug)]
struct HowArgs {
    /// Rounds, instead of the scenario's
    #[arg(long)]
    rounds: Option<usize>,
    /// What runs the nodes
    #[arg(long, default_value = "process", value_parser = ["process"])]
    driver: String,
    /// Where to keep the run; must not exist yet [default: chaos-runs/SCENARIO-SEED]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The node binary [default: this one]
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Keep the nodes' data too
    #[arg(long)]
    keep_data: bool,
    /// Any setting of the nodes, such as consensus.heartbeat_ms=50
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
}

/// Flags of `chaos list`.
#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    /// List the faults instead
    #[arg(long)]
    faults: bool,
}

/// Lists scenarios or faults.
///
/// # Errors
/// If a scenario that comes with this binary is not valid.
pub(crate) fn list(args: &ListArgs) -> anyhow::Result<()> {
    if args.faults {
        let rows = ROWS.iter().map(|row| {
            let needs = if row.needs_hooks { "a node built with --features chaos" } else { "" };
            [row.name.to_owned(), row.settings.join(" "), needs.to_owned(), row.text.to_owned()]
        });
        println!("{}", output::table(["FAULT", "SETTINGS", "NEEDS", "WHAT IT DOES"], rows));
        return Ok(());
    }
    let mut rows = Vec::new();
    for name in Scenario::shipped() {
        let (scenario, _) = Scenario::load(name)?;
        let lasts: f64 = scenario.phases.iter().map(|phase| phase.lasts.as_secs_f64()).sum();
        #[expect(clippy::cast_precision_loss, reason = "rounds are few")]
        let lasts = lasts * scenario.rounds as f64;
        rows.push([name.to_owned(), format!("{lasts:.0} s and more"), scenario.about]);
    }
    println!("{}", output::table(["SCENARIO", "TAKES", "WHAT IT SHOWS"], rows.into_iter()));
    Ok(())
}

/// Runs a scenario.
///
/// # Errors
/// If it cannot be run. What it showed is the process's exit code.
pub(crate) async fn run(args: RunArgs) -> anyhow::Result<()> {
    let (scenario, text) = Scenario::load(&args.scenario)
        .map_err(|error| Failure::new(Exit::Usage, format!("{error:#}"), ""))?;
    let seed = args.seed.or(scenario.seed).unwrap_or_else(rand::random);
    go(scenario, text, seed, &args.scenario, args.how).await
}

/// Runs again what a directory holds.
///
/// # Errors
/// As [`run()`].
pub(crate) async fn replay(args: ReplayArgs) -> anyhow::Result<()> {
    let described = RunDirectory::open(&args.run)?.description()?;
    let file = args.run.join("run.json").display().to_string();
    let scenario = Scenario::parse(&file, &described.scenario_text)
        .map_err(|error| Failure::new(Exit::Usage, error.to_string(), ""))?;
    let name = scenario.name.clone();
    go(scenario, described.scenario_text, described.seed, &name, args.how).await
}

async fn go(
    mut scenario: Scenario,
    scenario_text: String,
    seed: u64,
    named: &str,
    how: HowArgs,
) -> anyhow::Result<()> {
    if let Some(rounds) = how.rounds {
        scenario.rounds = rounds.max(1);
    }
    let binary = match how.binary {
        Some(binary) => binary,
        None => std::env::current_exe().context("cannot find this binary")?,
    };
    let directory = how.out.unwrap_or_else(|| free_directory(&scenario.name, seed));
    let name = scenario.name.clone();
    let config = RunConfig {
        replay: format!("anchorhold chaos run {named} --seed {seed} --rounds {}", scenario.rounds),
        has_hooks: doctor::has_hooks(&binary)?,
        scenario,
        scenario_text,
        seed,
        directory: directory.clone(),
        binary,
        keeps_data: how.keep_data,
        node_arguments: how.settings.iter().map(|setting| format!("--set={setting}")).collect(),
    };
    eprintln!("{name}, seed {seed}, everything is kept in {}", directory.display());
    let is_live = std::io::stderr().is_terminal();
    let running = run::run(config, move |progress| show(progress, is_live));
    let outcome = tokio::select! {
        outcome = running => outcome,
        // Dropping the run ends its cluster.
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted: the cluster was ended")),
    };
    if is_live {
        eprintln!();
    }
    finish(outcome, &directory)
}

/// `chaos-runs/NAME-SEED`, with a number behind it if that is taken.
fn free_directory(name: &str, seed: u64) -> PathBuf {
    let base = Path::new("chaos-runs").join(format!("{name}-{seed}"));
    let numbered = |number: u32| PathBuf::from(format!("{}.{number}", base.display()));
    let names = std::iter::once(base.clone()).chain((2..).map(numbered));
    names.into_iter().find(|path| !path.exists()).unwrap_or(base)
}

/// One line that is written over, or a line every ten seconds where nobody looks.
fn show(progress: &RunProgress, is_live: bool) {
    let RunProgress { phase, faults, operations: [acknowledged, failed, unknown], .. } = progress;
    let seconds = progress.elapsed.as_secs();
    let faults = if faults.is_empty() { "no fault".to_owned() } else { faults.join(", ") };
    let line = format!(
        "{seconds:>5} s  {phase}: {faults} | {} acknowledged, {failed} failed, {unknown} unknown | {}",
        output::thousands(*acknowledged),
        progress.cluster
    );
    if is_live {
        eprint!("\r\x1b[2K{line}");
    } else if seconds.is_multiple_of(10) {
        eprintln!("{line}");
    }
}

/// Judges what came of it, prints it, and ends the process with the exit code that says so.
fn finish(outcome: anyhow::Result<RunOutcome>, directory: &Path) -> anyhow::Result<()> {
    match outcome {
        Ok(outcome) => println!("{}", render(&outcome)),
        Err(error) => eprintln!("error: {error:#}"),
    }
    let judged = RunDirectory::open(directory).and_then(|run| {
        let report = judge::check(&run)?;
        judge::write(&report, &run)?;
        Ok((report, run))
    });
    let (report, run) = match judged {
        Ok(judged) => judged,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::exit(HARNESS_ERROR);
        }
    };
    let reasons = report.reasons.iter().map(|reason| format!("\n  {reason}")).collect::<String>();
    println!("\n{}{reasons}\n\nreport: {}", report.verdict.text(), run.report_html().display());
    std::process::exit(i32::from(report.verdict.exit_code()));
}

/// Exit code of a run whose harness could not do what it was asked.
const HARNESS_ERROR: i32 = 4;

fn render(outcome: &RunOutcome) -> String {
    let listed = |items: &[String]| match items {
        [] => "none".to_owned(),
        items => items.join("\n"),
    };
    output::facts(&[
        ("faults", outcome.faults.to_string()),
        ("acknowledged", output::thousands(outcome.acknowledged)),
        ("not recovered", listed(&outcome.waits_missed)),
        ("nodes that ended by themselves", listed(&outcome.deaths)),
        ("harness errors", listed(&outcome.harness_errors)),
    ])
}
