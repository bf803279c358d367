//! `anchorhold chaos mutants`: bugs put into nodes, and whether each is found.

use std::path::{Path, PathBuf};

use anchorhold_chaos::mutants::{MUTANTS, Mutant, NodeMutant, RealRun};
use anchorhold_chaos::scenario::Scenario;
use anyhow::Context as _;
use clap::Args;

use super::run::{self, HowArgs};
use crate::exit::{Exit, Failure};
use crate::output;

/// Flags of `chaos mutants`.
#[derive(Args, Debug)]
pub(super) struct MutantsArgs {
    /// Which ones [default: all that real processes can find]
    names: Vec<String>,
    /// Only list them, and what finds each
    #[arg(long)]
    list: bool,
    /// Everything random follows from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Runs of one mutant until it is given up: threads have their own timing
    #[arg(long, default_value_t = 3)]
    tries: u32,
    /// The node binary [default: this one]
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Where to keep the runs
    #[arg(long, value_name = "DIR", default_value = "chaos-runs/mutants")]
    out: PathBuf,
}

/// Runs mutants until each is found.
///
/// # Errors
/// If one is not found, or a run cannot be made.
pub(super) async fn run(args: MutantsArgs) -> anyhow::Result<()> {
    if args.list {
        println!("{}", list());
        return Ok(());
    }
    let chosen = chosen(&args.names)?;
    let (mut rows, mut missed) = (Vec::new(), Vec::new());
    for (mutant, real) in chosen {
        let found = find(mutant, &real, &args).await?;
        if found.is_none() {
            missed.push(mutant.name);
        }
        let evidence = found.unwrap_or_else(|| "NOT FOUND".to_owned());
        eprintln!("{}: {evidence}", mutant.name);
        rows.push([mutant.name.to_owned(), real.scenario.to_owned(), evidence]);
    }
    println!("{}", output::table(["MUTANT", "SCENARIO", "EVIDENCE"], rows.into_iter()));
    if missed.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Exit::Failed, format!("not found: {}", missed.join(", ")), "").into())
}

fn list() -> String {
    let rows = MUTANTS.iter().map(|mutant| {
        let real = mutant.real.map_or("–", |real| real.scenario).to_owned();
        let simulated = format!("cargo xtask sim --count 60 --mutant {}", mutant.name);
        [mutant.name.to_owned(), real, simulated, mutant.text.to_owned()]
    });
    output::table(["MUTANT", "SCENARIO", "SIMULATION", "WHAT IT DOES"], rows)
}

/// The mutants of these names, or all that real processes can find.
fn chosen(names: &[String]) -> anyhow::Result<Vec<(&'static Mutant, RealRun)>> {
    if names.is_empty() {
        let real = MUTANTS.iter().filter_map(|mutant| Some((mutant, mutant.real?)));
        return Ok(real.collect());
    }
    let one = |name: &String| {
        let problem = |text: String| Failure::new(Exit::Usage, text, "");
        let mutant = Mutant::named(name)
            .ok_or_else(|| problem(format!("there is no mutant {name:?}: see --list")))?;
        let real = mutant.real.ok_or_else(|| {
            problem(format!("{name} is found by the simulation only: `cargo xtask sim test`"))
        })?;
        Ok((mutant, real))
    };
    names.iter().map(one).collect()
}

/// Runs one mutant until it is found; what showed it.
async fn find(
    mutant: &Mutant,
    real: &RealRun,
    args: &MutantsArgs,
) -> anyhow::Result<Option<String>> {
    for attempt in 0..args.tries.max(1) {
        let (scenario, text) = Scenario::load(real.scenario)?;
        let how = HowArgs {
            binary: args.binary.clone(),
            out: Some(directory(&args.out, mutant.name, attempt)),
            mutants: vec![NodeMutant {
                mutant: mutant.name.to_owned(),
                node: real.node.map(str::to_owned),
            }],
            ..HowArgs::default()
        };
        let seed = args.seed + u64::from(attempt);
        let report = run::one(scenario, text, seed, real.scenario, how).await;
        let report = report.with_context(|| format!("a run with {}", mutant.name))?;
        if let Some(evidence) = real.evidence(&report) {
            return Ok(Some(evidence));
        }
    }
    Ok(None)
}

fn directory(below: &Path, name: &str, attempt: u32) -> PathBuf {
    run::free_directory(&below.join(format!("{name}-{}", attempt + 1)))
}
