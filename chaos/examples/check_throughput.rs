//! How fast the checkers are: operations per second on one core, of a correct history on disk.
//!
//! `cargo run --release -p anchorhold-chaos --example check_throughput -- [OPERATIONS] [KEYS]`

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anchorhold_chaos::checker::wgl::{Limits, Sampler};
use anchorhold_chaos::checker::{Findings, Presence, ReadBack, VersionOrder};
use anchorhold_chaos::history::{
    Action, Header, HistoryReader, Level, Operation, Outcome, Position, Recorder, Row, Served,
};
use anchorhold_model::Version;
use anyhow::ensure;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::Instant;

const CLIENTS: u64 = 64;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let operations = arguments.next().map_or(Ok(1_000_000), |text| text.parse::<u64>())?;
    let keys = arguments.next().map_or(Ok(1_000), |text| text.parse::<u64>())?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("register-1.bin");
    let took = timed(|| record(&path, operations, keys))?;
    let bytes = std::fs::metadata(&path)?.len();
    say("recording", operations, took);
    println!("  {} bytes an operation", bytes / operations);
    say("reading", operations, timed(|| each(&path, |_| {}))?);
    let took = timed(|| {
        let mut order = VersionOrder::default();
        each(&path, |operation| order.add(operation))?;
        clean(&order.finish())
    })?;
    say("reading and checking by version, all", operations, took);
    let took = timed(|| {
        let mut sampler = Sampler::new(Limits { period: 250, ..Limits::default() });
        each(&path, |operation| sampler.add(operation))?;
        clean(&sampler.finish())
    })?;
    say("reading and searching by value, all in windows of 250", operations, took);
    let took = timed(|| presence(operations))?;
    say("checking a set with four full read-backs", operations, took);
    Ok(())
}

fn say(what: &str, operations: u64, took: Duration) {
    let rate = operations as f64 / took.as_secs_f64();
    println!("{what}: {:.2} s, {:.2} M operations/s", took.as_secs_f64(), rate / 1e6);
}

fn timed(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed())
}

fn clean(findings: &Findings) -> anyhow::Result<()> {
    ensure!(
        findings.is_clean(),
        "a correct history was accused: {:?}",
        findings.violations.first()
    );
    Ok(())
}

fn each(path: &Path, mut see: impl FnMut(&Operation)) -> anyhow::Result<()> {
    let mut reader = HistoryReader::open(path)?;
    while let Some(operation) = reader.next()? {
        see(&operation);
    }
    Ok(())
}

/// What a correct store does: every operation takes effect at one moment within its time.
fn record(path: &Path, operations: u64, keys: u64) -> anyhow::Result<()> {
    let header =
        Header { name: "register-1".to_owned(), config: String::new(), account: 1, seed: 1 };
    let recorder = Recorder::create(path, &header)?;
    let mut rng = StdRng::seed_from_u64(1);
    let mut states: BTreeMap<u64, (Version, u64)> = BTreeMap::new();
    for number in 0..operations {
        let moment = number * 10_000 + 10_000_000;
        let key = rng.random_range(0..keys);
        let id = u128::from(key) + 1;
        let served = Served { shard: 1 << 48, node: 1, revision: number, staleness_ns: Some(0) };
        let next = Version { incarnation: 1, revision: number };
        let (action, outcome) = match states.get(&key).copied() {
            Some((version, value)) if rng.random_bool(0.45) => {
                (Action::Get { id, level: Level::Linearizable }, Outcome::Found { version, value })
            }
            held => {
                let expected = held.filter(|_| rng.random_bool(0.3));
                states.insert(key, (next, number));
                let request = rng.random();
                let action = Action::Update { request, id, value: number, expected };
                (action, Outcome::Written { id, version: Some(next) })
            }
        };
        let start_ns = moment - rng.random_range(0..CLIENTS * 5_000);
        let end_ns = moment + rng.random_range(0..CLIENTS * 5_000);
        let client = u32::try_from(number % CLIENTS)?;
        let resolved = false;
        recorder.record(&Operation {
            client,
            start_ns,
            end_ns,
            resolved,
            served,
            action,
            outcome,
        })?;
    }
    recorder.finish()
}

/// A set of which one in ten was deleted, and what the API and three nodes hold of it.
fn presence(operations: u64) -> anyhow::Result<()> {
    let position = Position { latitude_deg: 0.0, longitude_deg: 0.0, height_m: 0.0 };
    let mut presence = Presence::default();
    let mut rows = Vec::new();
    let end = operations * 1_000;
    for number in 1..=operations {
        let (start_ns, end_ns) = (number * 1_000, number * 1_000 + 500);
        let (served, resolved, client) = (Served::default(), false, 1);
        let id = u128::from(number);
        let is_delete = number % 11 == 0;
        let (action, outcome) = if is_delete {
            rows.pop();
            (Action::Delete { request: id, id: id - 1 }, Outcome::Deleted)
        } else {
            let version = Version { incarnation: 1, revision: number };
            rows.push(Row { id, version, value: number, distance_m: 0.0 });
            let action =
                Action::Create { request: id, item: 0, value: number, position, expire_ns: None };
            (action, Outcome::Written { id, version: Some(version) })
        };
        presence.add(&Operation { client, start_ns, end_ns, resolved, served, action, outcome });
    }
    for node in [None, Some("a1"), Some("b1"), Some("c1")] {
        let node = node.map(str::to_owned);
        let (start_ns, end_ns) = (end + 1_000, end + 2_000);
        presence.add_read_back(ReadBack { node, start_ns, end_ns, rows: rows.clone() });
    }
    clean(&presence.finish())
}
