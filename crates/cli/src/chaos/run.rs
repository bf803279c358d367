//! `anchorhold chaos run`, `list` and `replay`.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anchorhold_chaos::driver::{DriverKind, INSIDE_VARIABLE, namespaces_available};
use anchorhold_chaos::etcd::{self, EtcdConfig};
use anchorhold_chaos::judge::{self, Sums};
use anchorhold_chaos::mutants::NodeMutant;
use anchorhold_chaos::report::Report;
use anchorhold_chaos::run::{self, RunConfig, RunOutcome, RunProgress};
use anchorhold_chaos::run_directory::{AskedOfRun, RunDirectory};
use anchorhold_chaos::scenario::{FAILPOINTS, ROWS, Scenario};
use anyhow::{Context as _, anyhow};
use clap::Args;

use super::{doctor, sum};
use crate::exit::{Exit, Failure};
use crate::output;

/// Flags of `chaos run`.
#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    /// A scenario that comes with this binary, or a file
    #[arg(required_unless_present = "all")]
    scenario: Option<String>,
    /// Every scenario that comes with this binary, one after the other, and their sums
    #[arg(long, conflicts_with_all = ["scenario", "out"])]
    all: bool,
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
#[derive(Args, Clone, Debug, Default)]
pub(super) struct HowArgs {
    /// Rounds, instead of the scenario's
    #[arg(long)]
    pub(super) rounds: Option<usize>,
    /// Go through the phases over and over until so many minutes have passed
    #[arg(long, value_name = "MINUTES", conflicts_with = "rounds")]
    pub(super) minutes: Option<f64>,
    /// What runs the nodes
    #[arg(long, default_value = "process", value_parser = ["process", NETNS])]
    pub(super) driver: String,
    /// What is run: this store, or etcd with the same faults, to compare
    #[arg(long, default_value = "anchorhold", value_parser = ["anchorhold", ETCD])]
    pub(super) system: String,
    /// Where to keep the run; must not exist yet [default: chaos-runs/SCENARIO-SEED]
    #[arg(long, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,
    /// The node binary [default: this one; `etcd` for etcd]
    #[arg(long, value_name = "FILE")]
    pub(super) binary: Option<PathBuf>,
    /// Keep the nodes' data too
    #[arg(long)]
    pub(super) keep_data: bool,
    /// Any setting of the nodes, such as consensus.heartbeat_ms=50
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(super) settings: Vec<String>,
    /// A bug to put in, to see that it is found: NAME, or NAME@NODE; see `chaos mutants --list`
    #[arg(long = "mutant", value_name = "NAME[@NODE]")]
    pub(super) mutants: Vec<NodeMutant>,
}

impl HowArgs {
    /// What else than the scenario is asked for, to be written down.
    fn asked(&self) -> AskedOfRun {
        AskedOfRun {
            system: (self.system == ETCD).then(|| ETCD.to_owned()),
            rounds: self.rounds,
            minutes: self.minutes,
            settings: self.settings.clone(),
        }
    }

    /// These, or where they say nothing, as a run before was asked for.
    fn or_as(mut self, before: AskedOfRun, driver: String) -> Self {
        if let Some(system) = before.system {
            self.system = system;
        }
        if self.driver != NETNS {
            self.driver = driver;
        }
        if self.rounds.is_none() && self.minutes.is_none() {
            (self.rounds, self.minutes) = (before.rounds, before.minutes);
        }
        if self.settings.is_empty() {
            self.settings = before.settings;
        }
        self
    }
}

/// Flags of `chaos list`.
#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    /// List the faults instead
    #[arg(long)]
    faults: bool,
    /// List the failpoints instead: the places at which `crash_at` ends a node
    #[arg(long, conflicts_with = "faults")]
    failpoints: bool,
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
    if args.failpoints {
        let rows = FAILPOINTS.iter().map(|(name, text)| [(*name).to_owned(), (*text).to_owned()]);
        println!("{}", output::table(["FAILPOINT", "WHAT THE CODE DOES THERE"], rows));
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

/// Runs a scenario, or all.
///
/// # Errors
/// If it cannot be run. What it showed is the process's exit code.
pub(crate) async fn run(args: RunArgs) -> anyhow::Result<()> {
    let Some(named) = args.scenario else { return run_all(args.seed, args.how).await };
    let (scenario, text) = Scenario::load(&named)
        .map_err(|error| Failure::new(Exit::Usage, format!("{error:#}"), ""))?;
    let seed = args.seed.or(scenario.seed).unwrap_or_else(rand::random);
    let report = one(scenario, text, seed, &named, args.how).await?;
    std::process::exit(i32::from(report.verdict.exit_code()));
}

/// Runs every scenario, whatever the ones before it showed.
async fn run_all(seed: Option<u64>, how: HowArgs) -> anyhow::Result<()> {
    let hooks = doctor::has_hooks(&binary(&how)?)?;
    let (mut reports, mut skipped) = (Vec::new(), Vec::new());
    for name in Scenario::shipped() {
        let (scenario, text) = Scenario::load(name)?;
        if scenario.needs_hooks() && !hooks {
            skipped.push(name);
            continue;
        }
        let seed = seed.or(scenario.seed).unwrap_or_else(rand::random);
        reports.push(one(scenario, text, seed, name, how.clone()).await?);
    }
    let sums = Sums::of(&reports);
    println!("\n{}", sum::render(&sums));
    if !skipped.is_empty() {
        println!(
            "\nskipped, because this node cannot be broken from inside: {}",
            skipped.join(", ")
        );
    }
    // What was skipped proves nothing.
    let code = match sums.exit_code {
        PASSED | BUDGET_MISSED if !skipped.is_empty() => INCONCLUSIVE,
        code => code,
    };
    std::process::exit(i32::from(code));
}

/// Runs again what a directory holds.
///
/// # Errors
/// As [`run()`].
pub(crate) async fn replay(args: ReplayArgs) -> anyhow::Result<()> {
    // Not 2, which would say that a budget was missed: 4, as for an error of the harness.
    let no_run = |error: anyhow::Error| Failure::new(Exit::NotFound, format!("{error:#}"), "");
    let opened = RunDirectory::open(&args.run).map_err(no_run)?;
    let described = opened.description().map_err(no_run)?;
    let file = args.run.join("run.json").display().to_string();
    let scenario =
        Scenario::parse_with_topology(&file, &described.scenario_text, &described.topology_text)
            .map_err(|error| no_run(error.into()))?;
    let mut how = args.how.or_as(described.asked, described.driver);
    if how.mutants.is_empty() {
        let mutants = described.mutants.iter().map(|mutant| mutant.parse::<NodeMutant>());
        how.mutants = mutants.collect::<Result<_, _>>().map_err(|error| no_run(anyhow!(error)))?;
    }
    let name = scenario.name.clone();
    let report = one(scenario, described.scenario_text, described.seed, &name, how).await?;
    std::process::exit(i32::from(report.verdict.exit_code()));
}

fn binary(how: &HowArgs) -> anyhow::Result<PathBuf> {
    match &how.binary {
        Some(binary) => Ok(binary.clone()),
        None => std::env::current_exe().context("cannot find this binary"),
    }
}

/// Runs one scenario, and judges and prints what it showed.
///
/// # Errors
/// If there is nothing to judge: the harness could not do what it was asked.
pub(super) async fn one(
    mut scenario: Scenario,
    scenario_text: String,
    seed: u64,
    named: &str,
    how: HowArgs,
) -> anyhow::Result<Report> {
    if let Some(rounds) = how.rounds {
        scenario.set_rounds(rounds.max(1));
    }
    let time_max = how.minutes.map(|minutes| Duration::from_secs_f64(60.0 * minutes.max(0.0)));
    if time_max.is_some() {
        scenario.rounds = usize::MAX;
    }
    if how.system == ETCD {
        return on_etcd(scenario, scenario_text, seed, named, how).await;
    }
    let driver = if how.driver == NETNS { DriverKind::Namespaces } else { DriverKind::Process };
    if driver == DriverKind::Namespaces && std::env::var_os(INSIDE_VARIABLE).is_none() {
        return Err(within_a_network_of_its_own());
    }
    let binary = binary(&how)?;
    let (name, asked) = (scenario.name.clone(), how.asked());
    let usual = || free_directory(&Path::new("chaos-runs").join(format!("{name}-{seed}")));
    let directory = how.out.clone().unwrap_or_else(usual);
    let config = RunConfig {
        driver,
        replay: replay_command(named, seed, &how, scenario.rounds),
        has_hooks: doctor::has_hooks(&binary)?,
        scenario,
        scenario_text,
        seed,
        directory: directory.clone(),
        binary,
        keeps_data: how.keep_data,
        node_arguments: how.settings.iter().map(|setting| format!("--set={setting}")).collect(),
        time_max,
        mutants: how.mutants,
        asked,
    };
    eprintln!("{name}, seed {seed}, everything is kept in {}", directory.display());
    let is_live = std::io::stderr().is_terminal();
    let running = run::run(config, move |progress| show(progress, is_live));
    let outcome = tokio::select! {
        outcome = running => outcome,
        // Dropping the run ends its cluster.
        _ = tokio::signal::ctrl_c() => Err(anyhow!("interrupted: the cluster was ended")),
    };
    if is_live {
        eprintln!();
    }
    finish(outcome, &directory)
}

/// Runs one scenario on etcd.
async fn on_etcd(
    scenario: Scenario,
    scenario_text: String,
    seed: u64,
    named: &str,
    how: HowArgs,
) -> anyhow::Result<Report> {
    let name = format!("{}-{ETCD}", scenario.name);
    let usual = || free_directory(&Path::new("chaos-runs").join(format!("{name}-{seed}")));
    let directory = how.out.clone().unwrap_or_else(usual);
    let (rounds, asked) = (scenario.rounds, how.asked());
    let config = EtcdConfig {
        asked,
        scenario,
        scenario_text,
        seed,
        directory: directory.clone(),
        binary: how.binary.unwrap_or_else(|| PathBuf::from(ETCD)),
        replay: format!(
            "anchorhold chaos run {named} --system {ETCD} --seed {seed} --rounds {rounds}"
        ),
    };
    eprintln!("{name}, seed {seed}, everything is kept in {}", directory.display());
    let is_live = std::io::stderr().is_terminal();
    let running = etcd::run(config, move |progress| show(progress, is_live));
    let outcome = tokio::select! {
        outcome = running => outcome,
        // etcd ends when its parent does.
        _ = tokio::signal::ctrl_c() => Err(anyhow!("interrupted: the cluster was ended")),
    };
    finish(outcome, &directory)
}

fn replay_command(named: &str, seed: u64, how: &HowArgs, rounds: usize) -> String {
    let mut command = format!("anchorhold chaos run {named} --seed {seed}");
    match how.minutes {
        Some(minutes) => command.push_str(&format!(" --minutes {minutes}")),
        None => command.push_str(&format!(" --rounds {rounds}")),
    }
    if how.driver == NETNS {
        command.push_str(&format!(" --driver {NETNS}"));
    }
    how.settings.iter().for_each(|setting| command.push_str(&format!(" --set {setting}")));
    how.mutants.iter().for_each(|mutant| command.push_str(&format!(" --mutant {mutant}")));
    command
}

/// A path that nothing takes yet: this one, or one with a number behind it.
pub(super) fn free_directory(base: &Path) -> PathBuf {
    let numbered = |number: u32| PathBuf::from(format!("{}.{number}", base.display()));
    let mut names = std::iter::once(base.to_owned()).chain((2..).map(numbered));
    names.find(|path| !path.exists()).unwrap_or_else(|| base.to_owned())
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

/// Judges what came of it and prints it.
fn finish(outcome: anyhow::Result<RunOutcome>, directory: &Path) -> anyhow::Result<Report> {
    match outcome {
        Ok(outcome) => println!("{}", render(&outcome)),
        Err(error) => eprintln!("error: {error:#}"),
    }
    let judged = RunDirectory::open(directory).and_then(|run| {
        let report = judge::check(&run)?;
        judge::write(&report, &run)?;
        Ok((report, run))
    });
    // Exit code 4: an error of the harness.
    let no_run = |error: anyhow::Error| Failure::new(Exit::NotFound, format!("{error:#}"), "");
    let (report, run) = judged.map_err(no_run)?;
    let reasons = report.reasons.iter().map(|reason| format!("\n  {reason}")).collect::<String>();
    println!("\n{}{reasons}\n\nreport: {}", report.verdict.text(), run.report_html().display());
    Ok(report)
}

/// Runs this very command again within user and network namespaces of its own. Returns only if that
/// is not possible.
fn within_a_network_of_its_own() -> anyhow::Error {
    use std::os::unix::process::CommandExt as _;

    if let Err(why) = namespaces_available() {
        let problem = format!("this machine gives no network to the driver {NETNS}: {why}");
        return Failure::new(Exit::NotFound, problem, "use the driver process").into();
    }
    let mut command = std::process::Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "--"]);
    let binary = match std::env::current_exe() {
        Ok(binary) => binary,
        Err(error) => return error.into(),
    };
    let arguments = std::env::args_os().skip(1);
    command.arg(binary).args(arguments).env(INSIDE_VARIABLE, "1").exec().into()
}

/// The driver with a network of packets.
const NETNS: &str = "netns";

/// The other system that scenarios can be run on.
const ETCD: &str = "etcd";

/// Exit code of a run that passed.
const PASSED: u8 = 0;
/// Exit code of a run whose times were above a budget.
const BUDGET_MISSED: u8 = 2;
/// Exit code of a run that decides nothing.
const INCONCLUSIVE: u8 = 3;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_made_again_as_it_was_asked_for() {
        let asked = HowArgs {
            driver: NETNS.to_owned(),
            system: "anchorhold".to_owned(),
            rounds: Some(3),
            settings: vec!["a=1".to_owned()],
            ..HowArgs::default()
        };
        assert_eq!(
            replay_command("calm", 5, &asked, 3),
            "anchorhold chaos run calm --seed 5 --rounds 3 --driver netns --set a=1"
        );
        let plain = || HowArgs { driver: "process".to_owned(), ..HowArgs::default() };
        let again = plain().or_as(asked.asked(), asked.driver.clone());
        assert_eq!((again.rounds, again.driver.as_str()), (Some(3), NETNS));
        assert_eq!(again.settings, asked.settings);
        let shorter = HowArgs { minutes: Some(1.0), ..plain() };
        let shorter = shorter.or_as(asked.asked(), asked.driver.clone());
        assert_eq!((shorter.rounds, shorter.minutes), (None, Some(1.0)));
        let of_etcd = HowArgs { system: ETCD.to_owned(), ..plain() }.asked();
        assert_eq!(plain().or_as(of_etcd, "process".to_owned()).system, ETCD);
    }
}
