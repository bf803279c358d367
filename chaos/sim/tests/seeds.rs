//! Many seeds, each a whole cluster's life; some of them twice; and bugs put in on purpose.
//!
//! Only where tokio's random numbers follow the seed (`cargo xtask sim test`): what another build
//! finds cannot be run again.
#![cfg(tokio_unstable)]

#[cfg(all(tokio_unstable, feature = "mutants"))]
use std::process::Command;

use anchorhold_sim::{Options, Summary, run};

/// The first seed, unless `ANCHORHOLD_SIM_FIRST` says another.
const FIRST: u64 = 1;
/// Seeds of each of the parts, unless `ANCHORHOLD_SIM_SEEDS` says how many.
const SEEDS: u64 = 100;

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Runs the seeds of one part; the test harness runs the parts beside each other.
fn survive(part: u64) {
    let count = from_environment("ANCHORHOLD_SIM_SEEDS", SEEDS);
    let first = from_environment("ANCHORHOLD_SIM_FIRST", FIRST) + part * count;
    let mut failures = Vec::new();
    let (mut operations, mut committed, mut compared) = (0, 0, 0);
    for seed in first..first + count {
        match run(seed, Options::default()) {
            Ok(summary) => {
                operations += summary.operations;
                committed += summary.committed;
                compared += summary.compared;
            }
            Err(failure) => failures.push(failure.to_string()),
        }
    }
    println!("{count} seeds: {operations} operations, {committed} entries, {compared} comparisons");
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn clusters_keep_every_promise_under_faults_and_recover_after_them() {
    survive(0);
}

#[test]
fn further_clusters_keep_every_promise_under_faults_and_recover_after_them() {
    survive(1);
}

#[test]
fn a_run_does_what_it_is_meant_to_do() {
    let summaries: Vec<Summary> = (0..4)
        .map(|seed| run(seed, Options::default()).unwrap_or_else(|failure| panic!("{failure}")))
        .collect();
    for (seed, summary) in summaries.iter().enumerate() {
        assert!(100 < summary.operations, "seed {seed}: {summary:?}");
        assert!(10 < summary.anchors, "seed {seed}: {summary:?}");
        assert!(5 <= summary.elections, "seed {seed}: {summary:?}");
        assert!(100 < summary.committed, "seed {seed}: {summary:?}");
        assert!(10 <= summary.compared, "seed {seed}: {summary:?}");
        assert!(0 < summary.changes, "seed {seed}: {summary:?}");
        assert!(4 <= summary.shards + summary.merged, "seed {seed}: {summary:?}");
    }
    // The account begins with four.
    let splits: usize = summaries.iter().map(|summary| summary.shards + summary.merged - 4).sum();
    assert!(3 <= splits, "{splits} splits in four runs");
}

/// Exact only where tokio's own random numbers are seeded.
#[test]
fn a_seed_gives_the_same_run_every_time() {
    for seed in (0..20).map(|number| number * 7) {
        let one = run(seed, Options::default()).unwrap_or_else(|failure| panic!("{failure}"));
        let other = run(seed, Options::default()).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(one, other, "seed {seed}");
    }
}

/// Runs seeds with a bug put in, each in a process of its own, because a node may end it: what the
/// first one said that found something. The seed that found it last is tried first.
#[cfg(all(tokio_unstable, feature = "mutants"))]
fn find(mutant: anchorhold_sim::Mutant, first: u64) -> String {
    for seed in std::iter::once(first).chain(0..SEEDS_MAX) {
        let ran = Command::new(env!("CARGO_BIN_EXE_anchorhold-sim"))
            .args(["--seed", &seed.to_string(), "--mutant", mutant.name()])
            .output()
            .expect("the simulation runs");
        if !ran.status.success() {
            let said = [ran.stdout, ran.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            println!("{}: {}", mutant.name(), said.lines().take(3).collect::<Vec<_>>().join("\n"));
            assert!(said.contains(&format!("--seed {seed} --events")), "{said}");
            return said;
        }
    }
    panic!("{SEEDS_MAX} seeds did not find {}", mutant.name());
}

/// Seeds of a mutant until it counts as not found.
#[cfg(all(tokio_unstable, feature = "mutants"))]
const SEEDS_MAX: u64 = 80;

/// What finds each mutant. openraft's own checks count: they end a node by a panic, which a cluster
/// then waits for in vain.
#[cfg(all(tokio_unstable, feature = "mutants"))]
#[test]
fn every_bug_that_is_put_in_is_found_by_what_it_breaks() {
    use anchorhold_sim::Mutant;

    let expected = |mutant: Mutant| -> (u64, &[&str]) {
        match mutant {
            Mutant::AcknowledgeBeforeSync => (2, &["election safety", "leader completeness"]),
            Mutant::ApplyBeforeSync => (10, &["state", "leader completeness"]),
            Mutant::ReadWithoutQuorum => (32, &["linearizability"]),
            Mutant::ApplySkipped => (0, &["state equality"]),
            Mutant::EpochUnchecked => (0, &["old routes"]),
            Mutant::OperationsForgotten => (1, &["state equality"]),
            Mutant::StateTrusted => (2, &["state equality"]),
            Mutant::VoteNotPersisted => (1, &["election safety"]),
            Mutant::SnapshotHalf => (38, &["state equality"]),
            Mutant::StalenessUnchecked => (0, &["staleness"]),
        }
    };
    for mutant in Mutant::ALL {
        let (first, signs) = expected(*mutant);
        let said = find(*mutant, first);
        let is_meant = said.contains("panicked") || signs.iter().any(|sign| said.contains(sign));
        assert!(is_meant, "{}: {said}", mutant.name());
    }
}
