use std::time::Duration;

use anchorhold_chaos::idle::{self, IdleConfig, IdleReport};
use anyhow::Context as _;
use clap::Args;

use crate::context::seconds;
use crate::exit::{Exit, Failure};
use crate::output::{self, Format};

/// Flags of `chaos idle`.
#[derive(Args, Debug)]
pub(crate) struct IdleArgs {
    /// Shards that nothing is asked of
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=4_096))]
    shards: u32,
    /// Seconds without a read or a write after which a shard rests
    #[arg(long, default_value = "5", value_name = "SECONDS", value_parser = seconds)]
    quiesce_after: Duration,
    /// No shard ever rests: for comparison
    #[arg(long, conflicts_with = "quiesce_after")]
    awake: bool,
    /// Seconds over which processor time is measured
    #[arg(long, default_value = "20", value_name = "SECONDS", value_parser = seconds)]
    duration: Duration,
    /// Everything random follows from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Form of the report
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Runs `chaos idle`.
///
/// # Errors
/// If it cannot be run to its end.
pub(crate) async fn run(args: IdleArgs) -> anyhow::Result<()> {
    if args.quiesce_after < Duration::from_millis(1) {
        let problem = "--quiesce-after must be at least 0.001: --awake lets no shard rest";
        return Err(Failure::new(Exit::Usage, problem, "").into());
    }
    let config = IdleConfig {
        binary: std::env::current_exe().context("cannot find this binary")?,
        shards: args.shards,
        quiesce_after: (!args.awake).then_some(args.quiesce_after),
        measured: args.duration,
        seed: args.seed,
    };
    let report = idle::run(&config, |what| eprintln!("{what}")).await?;
    output::print(args.output, &report, || render(&report))
}

fn render(report: &IdleReport) -> String {
    let ms = |[median, max]: [f64; 2]| format!("median {median:.1} ms, max {max:.1} ms");
    let rested = match report.rested_ms {
        Some(rested_ms) => format!("{rested_ms} ms after they were led"),
        None => "never".to_owned(),
    };
    output::facts(&[
        ("shards, on three nodes", report.shards.to_string()),
        ("led by somebody", format!("{} ms after they were created", report.founded_ms)),
        ("at rest", rested),
        ("processor time of a node", format!("{:.1} % of a core", 100.0 * report.idle_cpu)),
        ("  without shards", format!("{:.1} % of a core", 100.0 * report.empty_cpu)),
        ("memory of a node", output::bytes(report.idle_bytes)),
        ("  without shards", output::bytes(report.empty_bytes)),
        ("  for each replica", output::bytes(report.bytes_per_replica)),
        ("first write to a shard", ms(report.first_write_ms)),
        ("second write", ms(report.second_write_ms)),
        ("leaders killed", report.killed_leaders.to_string()),
        ("all led again after", format!("{} ms", report.led_again_ms)),
        ("healthy after the restart", format!("{} ms", report.healthy_ms)),
    ])
}
