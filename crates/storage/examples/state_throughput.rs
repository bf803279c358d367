//! Measures the state stores: rows committed per second, latency of `get`, rows scanned per second,
//! snapshot files written and read.
//!
//! `cargo run --release -p anchorhold-storage --example state_throughput [-- ROWS [LONG_PERCENT]]`
//!
//! ROWS (200,000) rows of 16-byte random keys and 300-byte values, LONG_PERCENT (0) of them 6 KB
//! instead. A checkpoint runs every second beside the commits, as in a node. The files are made in
//! the system's temporary directory (`TMPDIR`): on tmpfs the figures say nothing.

#![expect(clippy::print_stdout, reason = "its output is what it is for")]
#![expect(clippy::disallowed_methods, reason = "it measures wall time")]

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anchorhold_storage::snapshot::{self, SnapshotHeader, SnapshotStore};
use anchorhold_storage::{Batch, GroupId, MemoryState, SledConfig, SledState, StateStore};

const VALUE_BYTES: usize = 300;
const LONG_VALUE_BYTES: usize = 6 << 10;
const END: &[u8] = &[0xff; 17];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>());
    let rows = arguments.next().transpose()?.unwrap_or(200_000);
    let long_percent = arguments.next().transpose()?.unwrap_or(0);
    println!("{rows} rows, {long_percent} % of them long");
    println!("store   batch  commits: rows/s  p50 µs  p99 µs   overwrites: rows/s");
    for batch_rows in [1, 16, 256] {
        let dir = tempfile::tempdir()?;
        let (store, _) = SledState::open(dir.path(), SledConfig::default())?;
        measure_commits("sled", &store, rows, batch_rows, long_percent)?;
        let memory = MemoryState::new();
        measure_commits("memory", &memory, rows, batch_rows, long_percent)?;
        if batch_rows == 256 {
            measure_reads("sled", &store, rows)?;
            measure_reads("memory", &memory, rows)?;
            measure_snapshot(&store)?;
            store.checkpoint()?;
            println!("sled: {} MB on disk", store.stats().disk_bytes >> 20);
            drop(store);
            let began = Instant::now();
            SledState::open(dir.path(), SledConfig::default())?;
            println!("sled: reopened after {:?}", began.elapsed());
        }
    }
    Ok(())
}

/// The key of row `number`: as random as a hash.
fn key(number: u64) -> Vec<u8> {
    let mix = |seed: u64| {
        let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb)
    };
    let mut key = mix(number.wrapping_add(0x9e37_79b9)).to_be_bytes().to_vec();
    key.extend_from_slice(&mix(number.wrapping_mul(3) + 1).to_be_bytes());
    key
}

fn value(number: u64, long_percent: u64) -> Vec<u8> {
    let length = if number % 100 < long_percent { LONG_VALUE_BYTES } else { VALUE_BYTES };
    let mut value = key(number ^ 0x55).repeat(length / 16 + 1);
    value.truncate(length);
    value
}

fn measure_commits(
    name: &str,
    store: &dyn StateStore,
    rows: u64,
    batch_rows: u64,
    long_percent: u64,
) -> Result<(), Box<dyn std::error::Error>> {
    let (inserted, mut latencies) = commit_all(store, rows, batch_rows, long_percent)?;
    let (overwritten, _) = commit_all(store, rows / 4, batch_rows, long_percent)?;
    latencies.sort_unstable();
    println!(
        "{name:7} {batch_rows:5} {:16.0} {:7} {:7} {:20.0}",
        rows as f64 / inserted.as_secs_f64(),
        percentile(&latencies, 50).as_micros(),
        percentile(&latencies, 99).as_micros(),
        (rows / 4) as f64 / overwritten.as_secs_f64(),
    );
    Ok(())
}

/// Commits rows while another thread checkpoints every second; the last checkpoint counts.
fn commit_all(
    store: &dyn StateStore,
    rows: u64,
    batch_rows: u64,
    long_percent: u64,
) -> Result<(Duration, Vec<Duration>), Box<dyn std::error::Error>> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let checkpoints = scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                std::thread::park_timeout(Duration::from_secs(1));
                store.checkpoint()?;
            }
            store.checkpoint()
        });
        let began = Instant::now();
        let mut latencies = Vec::new();
        for first in (0..rows).step_by(usize::try_from(batch_rows)?) {
            let numbers = first..(first + batch_rows).min(rows);
            let rows = numbers.map(|number| (key(number), Some(value(number, long_percent))));
            let batch = Batch { rows: rows.collect() };
            let began = Instant::now();
            store.commit(batch)?;
            latencies.push(began.elapsed());
        }
        done.store(true, Ordering::Release);
        checkpoints.thread().unpark();
        checkpoints.join().map_err(|_| "the checkpoints panicked")??;
        Ok((began.elapsed(), latencies))
    })
}

fn measure_reads(
    name: &str,
    store: &dyn StateStore,
    rows: u64,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut latencies = Vec::new();
    for number in 0..100_000u64 {
        let key = key(number.wrapping_mul(7919) % rows);
        let began = Instant::now();
        store.get(&key)?.ok_or("a row is missing")?;
        latencies.push(began.elapsed());
    }
    latencies.sort_unstable();
    let began = Instant::now();
    let (mut scanned, mut bytes) = (0u64, 0);
    store.scan(b""..END, &mut |key, value| {
        scanned += 1;
        bytes += key.len() + value.len();
        ControlFlow::Continue(())
    })?;
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{name}: get p50 {:.1} µs, p99 {:.1} µs; scan {:.0} rows/s, {:.0} MB/s",
        percentile(&latencies, 50).as_secs_f64() * 1e6,
        percentile(&latencies, 99).as_secs_f64() * 1e6,
        scanned as f64 / seconds,
        bytes as f64 / 1e6 / seconds,
    );
    Ok(())
}

fn measure_snapshot(store: &dyn StateStore) -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let snapshots = SnapshotStore::open(dir.path())?;
    let group = GroupId { shard: 1, incarnation: 1 };
    let began = Instant::now();
    let mut writer =
        snapshots.create(SnapshotHeader { format: 1, group, position: None, meta: Vec::new() })?;
    let mut pushed = Ok(());
    store.scan(b""..END, &mut |key, value| {
        pushed = writer.push(key, value);
        if pushed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    pushed?;
    let file = writer.finish()?;
    let written = began.elapsed().as_secs_f64();
    let began = Instant::now();
    let verified = snapshot::verify(&file.path)?;
    let megabytes = verified.bytes as f64 / 1e6;
    println!(
        "snapshot: {megabytes:.0} MB scanned and written at {:.0} MB/s, verified at {:.0} MB/s",
        megabytes / written,
        megabytes / began.elapsed().as_secs_f64(),
    );
    Ok(())
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}
