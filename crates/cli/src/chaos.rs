//! `anchorhold chaos`: breaks a cluster of its own, under load, and says what was lost.

mod doctor;
mod idle;
mod judge;
mod mutants;
mod run;
mod sum;

use anchorhold_chaos::failover::{self, FailoverConfig, FailoverReport, Round};
use anyhow::Context as _;
use clap::{Args, Subcommand};

use crate::exit::{Exit, Failure};
use crate::output::{self, Format};

/// Flags of `chaos`.
#[derive(Args, Debug)]
pub(crate) struct ChaosArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run a scenario on a cluster of its own, and keep everything that happened
    ///
    /// Exit codes: 0 passed, 1 an invariant was broken, 2 a budget was missed, 3 inconclusive, 4
    /// the harness could not do what it was asked.
    Run(run::RunArgs),
    /// List the scenarios that come with this binary, the catalogue of faults, or the failpoints
    List(run::ListArgs),
    /// Put bugs into nodes, one after the other, and see that each is found
    ///
    /// Takes a node that was built with `--features chaos`. Fails if one is not found.
    Mutants(mutants::MutantsArgs),
    /// Add up runs: faults, acknowledged operations, lost, violations, hits of each kind of fault
    ///
    /// Exits with the code of the worst of them.
    Sum(sum::SumArgs),
    /// Run again what a directory holds: same scenario, same seed
    Replay(run::ReplayArgs),
    /// Say what this machine and this binary can do, and why not
    Doctor(doctor::DoctorArgs),
    /// Kill the node that leads most shards, over and over, while clients write
    ///
    /// Starts three zones as real processes in a temporary directory. Fails if an acknowledged
    /// write cannot be read back.
    Failover(FailoverArgs),
    /// Measure what shards cost that nothing is asked of, and kill the node that leads most of them
    ///
    /// Starts three zones as real processes in a temporary directory.
    Idle(idle::IdleArgs),
    /// Judge a run again, from its record alone
    ///
    /// Exit codes: 0 passed, 1 an invariant was broken, 2 a budget was missed, 3 inconclusive, 4
    /// the harness could not do what it was asked.
    Check(judge::CheckArgs),
    /// Write the page of a judged run again
    Report(judge::ReportArgs),
}

/// Flags of `chaos failover`.
#[derive(Args, Debug)]
struct FailoverArgs {
    /// Kills
    #[arg(long, default_value_t = 20)]
    rounds: u32,
    /// Clients that write at the same time
    #[arg(long, default_value_t = 6)]
    clients: u32,
    /// Shards that they write to
    #[arg(long, default_value_t = 6)]
    shards: u32,
    /// Everything random follows from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Form of the report
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Runs what was asked for.
///
/// # Errors
/// If it cannot be run to its end, or a promise was broken.
pub(crate) async fn run(args: ChaosArgs) -> anyhow::Result<()> {
    match args.command {
        Command::Run(args) => run::run(args).await,
        Command::Mutants(args) => mutants::run(args).await,
        Command::Sum(args) => sum::run(&args),
        Command::List(args) => run::list(&args),
        Command::Replay(args) => run::replay(args).await,
        Command::Doctor(args) => doctor::run(&args),
        Command::Failover(args) => failover(args).await,
        Command::Idle(args) => idle::run(args).await,
        Command::Check(args) => judge::check(&args),
        Command::Report(args) => judge::report(&args),
    }
}

async fn failover(args: FailoverArgs) -> anyhow::Result<()> {
    let config = FailoverConfig {
        binary: std::env::current_exe().context("cannot find this binary")?,
        rounds: args.rounds,
        clients: args.clients,
        shards: args.shards,
        seed: args.seed,
        node_arguments: Vec::new(),
    };
    let progress = |round: &Round| {
        let Round { number, killed, worst_client_gap_ms, .. } = round;
        eprintln!("round {number}: killed {killed}, longest wait {worst_client_gap_ms} ms");
    };
    let report = failover::run(&config, progress).await?;
    output::print(args.output, &report, || render(&report))?;
    if report.lost != 0 {
        let problem = format!("{} acknowledged writes were lost", report.lost);
        return Err(Failure::new(Exit::Failed, problem, "").into());
    }
    Ok(())
}

fn render(report: &FailoverReport) -> String {
    let header =
        ["ROUND", "KILLED", "SHARDS LED", "CLIENT GAP", "GLOBAL GAP", "ACKNOWLEDGED", "RECOVERY"];
    let rows = report.rounds.iter().map(|round| {
        [
            round.number.to_string(),
            round.killed.clone(),
            round.shards_led.to_string(),
            format!("{} ms", round.worst_client_gap_ms),
            format!("{} ms", round.global_gap_ms),
            round.acknowledged.to_string(),
            format!("{} ms", round.recovery_ms),
        ]
    });
    let facts = [
        (
            "longest wait of a client",
            format!(
                "median {} ms, max {} ms",
                report.worst_client_gap_ms_median, report.worst_client_gap_ms_max
            ),
        ),
        ("acknowledged writes", report.acknowledged.to_string()),
        ("lost", report.lost.to_string()),
        ("seed", report.seed.to_string()),
    ];
    format!("{}\n\n{}", output::table(header, rows), output::facts(&facts))
}
