//! Runs seeds and says what they found.

use std::process::ExitCode;

use anchorhold_sim::{Mutant, Options, run};
use clap::{Parser, ValueEnum};

/// Simulates clusters: `--seed N` replays one run, `--seeds A..B` runs many.
#[derive(Debug, Parser)]
struct Arguments {
    /// Run this seed.
    #[arg(long, conflicts_with_all = ["first", "count"])]
    seed: Option<u64>,
    /// The first of many seeds.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Tell every event on standard error.
    #[arg(long)]
    events: bool,
    /// Let the nodes' own log lines through, as `RUST_LOG` says.
    #[arg(long)]
    logs: bool,
    /// Run each seed twice and compare.
    #[arg(long)]
    twice: bool,
    /// Put a bug in, to see that it is found.
    #[arg(long, value_enum, default_value_t)]
    mutant: Bug,
}

/// The bugs that can be put in, as they are written on the command line.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Bug {
    #[default]
    None,
    AcknowledgeBeforeSync,
    VoteBeforeSync,
    OperationsForgotten,
}

impl From<Bug> for Mutant {
    fn from(bug: Bug) -> Self {
        match bug {
            Bug::None => Self::None,
            Bug::AcknowledgeBeforeSync => Self::AcknowledgeBeforeSync,
            Bug::VoteBeforeSync => Self::VoteBeforeSync,
            Bug::OperationsForgotten => Self::OperationsForgotten,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.logs {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let writer = std::io::stderr;
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).without_time().init();
    }
    let (first, count) =
        arguments.seed.map_or((arguments.first, arguments.count), |seed| (seed, 1));
    let options = Options { mutant: arguments.mutant.into(), prints_events: arguments.events };
    let mut failed = 0;
    for seed in first..first.saturating_add(count) {
        let outcome = run(seed, options);
        match &outcome {
            Ok(summary) => println!("seed {seed}: {summary:?}"),
            Err(failure) => {
                println!("FAILED {failure}");
                failed += 1;
            }
        }
        if arguments.twice {
            let trace = |outcome: &Result<anchorhold_sim::Summary, anchorhold_sim::Failure>| {
                outcome.as_ref().map_or_else(|failure| failure.trace, |summary| summary.trace)
            };
            let (one, other) = (trace(&outcome), trace(&run(seed, options)));
            if one != other {
                println!("FAILED seed {seed}: two runs differ: {one:016x}, {other:016x}");
                failed += 1;
            }
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
