//! The one binary: a node, an operator's tool, and a whole cluster to try.
//!
//! Results go to standard output, progress and hints to standard error. Each command is a module;
//! [`exit`] maps errors to exit codes.
//!
//! Not here: what a node does (`server`), retries and routing (`client`), processes (`cluster`).

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

mod account;
mod anchor;
mod bench;
mod chaos;
mod compare;
mod context;
mod debug;
mod demo;
mod exit;
mod export;
mod import;
mod locate;
mod operate;
mod output;
mod placing;
mod plan;
mod progress;
mod query;
mod record;
mod shard;
mod start;

/// A node makes and drops many small messages a second on all threads: with glibc's allocator a
/// quarter of its time under a write load went into that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A binary that can be broken on command says so.
#[cfg(feature = "chaos")]
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "+chaos");
#[cfg(not(feature = "chaos"))]
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Anchorhold: a store for spatial anchors that loses nothing when a zone is lost.
#[derive(Parser, Debug)]
#[command(name = "anchorhold", version = VERSION, about, after_help = exit::HELP, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Start a whole cluster on this machine, with real places in it
    Demo(demo::DemoArgs),
    /// Run one node
    Start(Box<start::StartArgs>),
    /// Show how the cluster is
    Cluster(operate::ClusterArgs),
    /// List and drain zones, and kill and start those of the demo
    Zone(operate::ZoneArgs),
    /// List nodes, let them rest or leave, ask what keeps them
    Node(operate::NodeArgs),
    /// List shards, move their replicas and leaders
    Shard(shard::ShardArgs),
    /// List and cancel the changes of shards that are under way
    Operator(placing::OperatorArgs),
    /// Say whether the cluster moves replicas and leaders by itself
    Scheduler(placing::SchedulerArgs),
    /// Create and list accounts, make and revoke their keys
    Account(account::AccountArgs),
    /// Create, show, list and remove anchors
    Anchor(anchor::AnchorArgs),
    /// Find anchors by place
    Locate(locate::LocateArgs),
    /// Store the anchors of a CSV, GeoJSON or NDJSON file
    Import(import::ImportArgs),
    /// Write all anchors to a CSV, GeoJSON or NDJSON file
    Export(export::ExportArgs),
    /// Measure writes, reads and searches
    Bench(bench::BenchArgs),
    /// Say what the planner would do now, or try it on a simulated cluster
    Plan(plan::PlanArgs),
    /// Break a cluster on purpose, and check that nothing was lost
    Chaos(chaos::ChaosArgs),
    /// Look at the data directory of a node that does not run
    Debug(debug::DebugArgs),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if let Some(next) = exit::next_move(&error) {
                eprintln!("  next: {next}");
            }
            exit::of(&error)
        }
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Demo(args) => demo::run(args).await,
        Command::Start(args) => start::run(*args).await,
        Command::Cluster(args) => operate::cluster(args).await,
        Command::Zone(args) => operate::zone(args).await,
        Command::Node(args) => operate::node(args).await,
        Command::Shard(args) => shard::run(args).await,
        Command::Operator(args) => placing::operator(args).await,
        Command::Scheduler(args) => placing::scheduler(args).await,
        Command::Account(args) => account::run(args).await,
        Command::Anchor(args) => anchor::run(args).await,
        Command::Locate(args) => locate::run(args).await,
        Command::Import(args) => import::run(args).await,
        Command::Export(args) => export::run(args).await,
        Command::Bench(args) => bench::run(args).await,
        Command::Plan(args) => plan::run(&args).await,
        Command::Chaos(args) => chaos::run(args).await,
        Command::Debug(args) => debug::run(args),
        Command::Completions { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "anchorhold",
                &mut std::io::stdout(),
            );
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_of_the_cluster_may_stand_behind_the_innermost_command() {
        let line = ["anchorhold", "anchor", "get", "x", "--endpoint", "127.0.0.1:1", "-o", "json"];
        assert!(Cli::try_parse_from(line).is_ok());
        let line = ["anchorhold", "locate", "--near", "-33.9,18.4", "-k", "3", "--tag", "iata"];
        assert!(Cli::try_parse_from(line).is_ok());
    }

    #[test]
    fn wrong_usage_ends_with_exit_code_2() {
        let error = Cli::try_parse_from(["anchorhold", "locate"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }
}
