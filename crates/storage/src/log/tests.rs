//! Tests of the log, from the contract down to each byte. `docs/log-tests.md` says which is where.

mod conformance;
mod crash;
mod crossed;
mod damage;
mod forged;
mod full_disk;
mod interleaved;
mod lag;
mod missing;
mod model;
mod older;
mod power;
mod recycled;
mod stress;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;

use super::{LogConfig, OpenError, OpenReport, SegmentedLog};
use crate::fs::MemoryFs;
use crate::log_store::{GroupId, HardState, LogEntry, LogError, LogPosition, LogStore, LogWrite};

const DIR: &str = "/log";

const fn group(shard: u64) -> GroupId {
    GroupId { shard, incarnation: 1 }
}

fn at(term: u64, index: u64) -> LogPosition {
    LogPosition { term, index }
}

/// An entry whose content follows from its place.
fn entry(group: GroupId, term: u64, index: u64, length: usize) -> LogEntry {
    let seed = group.shard ^ term << 20 ^ index << 32;
    let text = format!("{}/{}/{term}/{index}/", group.shard, group.incarnation);
    let filler = (0..).map(|at: u64| (seed.wrapping_mul(at + 7) >> 5).to_le_bytes()[0]);
    let content: Vec<u8> = text.bytes().chain(filler).take(length.max(text.len())).collect();
    LogEntry { position: at(term, index), content: Bytes::from(content) }
}

fn append(group: GroupId, term: u64, indexes: std::ops::Range<u64>, length: usize) -> LogWrite {
    let entries = indexes.map(|index| entry(group, term, index, length)).collect();
    LogWrite::Append { group, entries }
}

fn vote(group: GroupId, term: u64, voted_for: u64) -> LogWrite {
    let hard_state = HardState { term, voted_for: Some(voted_for), committed: false };
    LogWrite::SaveHardState { group, hard_state }
}

/// Submits a change and waits until it is durable or refused.
fn write(log: &impl LogStore, change: LogWrite) -> Result<(), LogError> {
    let (sender, receiver) = mpsc::channel();
    log.submit(change, Box::new(move |outcome| sender.send(outcome).unwrap()));
    receiver.recv().unwrap()
}

/// A log of small segments without markers, so that every call to the disk follows from the
/// changes.
fn small() -> LogConfig {
    LogConfig {
        segment_bytes: 4096,
        segment_bytes_max: 4096,
        idle_marker: Duration::from_secs(3600),
        ..LogConfig::default()
    }
}

fn open(fs: &MemoryFs, config: LogConfig) -> Result<SegmentedLog, OpenError> {
    SegmentedLog::open(Arc::new(fs.clone()), Path::new(DIR), config)
}

/// Whether the long versions of the tests are asked for: `ANCHORHOLD_LONG=1`.
fn long() -> bool {
    std::env::var_os("ANCHORHOLD_LONG").is_some()
}

/// All entries of a group, read in small steps.
fn read_all(log: &impl LogStore, group: GroupId) -> Vec<LogEntry> {
    let Some(found) = log.group(group) else { return vec![] };
    let Some(last) = found.last.filter(|last| found.purged != Some(*last)) else { return vec![] };
    let mut entries: Vec<LogEntry> = Vec::new();
    let mut next = match found.purged {
        Some(mark) => mark.index + 1,
        None => (0..=last.index).find(|at| log.read(group, *at..at + 1, 0).is_ok()).unwrap(),
    };
    while next <= last.index {
        let step = log.read(group, next..last.index + 1, 100).unwrap();
        assert!(!step.is_empty());
        next += step.len() as u64;
        entries.extend(step);
    }
    entries
}

fn segments(fs: &MemoryFs) -> Vec<String> {
    use crate::fs::FileSystem;
    let names = fs.list(Path::new(DIR)).unwrap();
    names.into_iter().filter(|name| name.ends_with(".segment")).collect()
}
