//! Measures opening a large log with everything verified, and what an entry takes in memory.
//!
//! `cargo run --release -p anchorhold-storage --example log_opening -- [directory] [entries] [groups]`
//!
//! Writes entries of 256 bytes (4,000,000 in 500 groups unless told otherwise), closes the log, and
//! opens it again in five processes of their own, so that each one's memory is its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anchorhold_storage::fs::RealFs;
use anchorhold_storage::{
    GroupId, LogConfig, LogEntry, LogPosition, LogStore, LogWrite, SegmentedLog,
};
use bytes::Bytes;

const BYTES: usize = 256;
const BATCH: u64 = 64;
const REPEATS: usize = 5;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let root = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let entries: u64 = arguments.next().map_or(Ok(4_000_000), |text| text.parse())?;
    let groups: u64 = arguments.next().map_or(Ok(500), |text| text.parse())?;
    if arguments.next().is_some() {
        return reopen(&root, entries);
    }
    let dir = root.join(format!("log-opening-{}", std::process::id()));
    fill(&dir, entries, groups)?;
    let (entries, groups) = (entries.to_string(), groups.to_string());
    for _ in 0..REPEATS {
        let mut child = Command::new(std::env::current_exe()?);
        child.arg(&dir).args([&entries, &groups, "reopen"]).status()?;
    }
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

/// Writes the log.
fn fill(dir: &Path, entries: u64, groups: u64) -> Result<(), Failure> {
    let log = SegmentedLog::open(Arc::new(RealFs), dir, LogConfig::default())?;
    let failed = Arc::new(AtomicU64::new(0));
    let content = Bytes::from(vec![0xa5; BYTES]);
    for first in (0..entries / groups).step_by(usize::try_from(BATCH)?) {
        for shard in 0..groups {
            let group = GroupId { shard, incarnation: 1 };
            let indexes = first..(first + BATCH).min(entries / groups);
            let entry = |index| LogEntry {
                position: LogPosition { term: 3, index },
                content: content.clone(),
            };
            let write = LogWrite::Append { group, entries: indexes.map(entry).collect() };
            let failed = Arc::clone(&failed);
            let done = move |outcome: Result<_, _>| {
                failed.fetch_add(u64::from(outcome.is_err()), Ordering::Relaxed);
            };
            log.submit(write, Box::new(done));
        }
    }
    log.close();
    let stats = log.stats();
    println!("{} entries, {} bytes on disk", stats.entries, stats.disk_bytes);
    match failed.load(Ordering::Relaxed) {
        0 => Ok(()),
        failed => Err(format!("{failed} appends failed").into()),
    }
}

/// Opens it and says how long that took, and by how much the process has grown.
#[expect(clippy::disallowed_methods, reason = "a measurement needs the clock")]
fn reopen(dir: &Path, entries: u64) -> Result<(), Failure> {
    let before = resident()?;
    let started = Instant::now();
    let log = SegmentedLog::open(Arc::new(RealFs), dir, LogConfig::default())?;
    let took = started.elapsed();
    let (after, groups) = (resident()?, log.groups().len());
    let growth = after.saturating_sub(before);
    println!(
        "opened in {:.2} s, {groups} groups, {} bytes of memory per entry",
        took.as_secs_f64(),
        growth / entries.max(1)
    );
    Ok(())
}

/// Bytes of this process in memory.
fn resident() -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kibibytes * 1024)
}
