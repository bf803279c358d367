//! Runs seeds and says what they found.

use std::process::ExitCode;

use anchorhold_sim::{Mutant, Options, run};
use clap::Parser;

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
    #[arg(long, value_parser = mutant)]
    mutant: Option<Mutant>,
}

fn mutant(name: &str) -> Result<Mutant, String> {
    Mutant::named(name).ok_or_else(|| {
        let known: Vec<_> = Mutant::ALL.iter().map(|mutant| mutant.name()).collect();
        match known.as_slice() {
            [] => "this build has no bugs to put in: use `cargo xtask sim`".to_owned(),
            known => format!("write one of {}", known.join(", ")),
        }
    })
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
    let options = Options { mutant: arguments.mutant, prints_events: arguments.events };
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
