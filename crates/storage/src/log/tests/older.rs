//! A log of the format version before this one is read, and goes on in this one's.

use super::damage::{frames, path};
use super::*;
use crate::fs::Fault;
use crate::log::segment::{FORMAT_VERSION, FORMAT_VERSION_OLDEST, header_of, identity_of};

/// A group of which no append leaves anything out but its count: the older version's own words, if
/// no append is of one entry.
const GROUP: GroupId = GroupId { shard: 3, incarnation: 2 };
const APPENDS: u64 = 30;

fn written() -> Vec<LogEntry> {
    (0..APPENDS).flat_map(|n| [2 * n, 2 * n + 1].map(|at| entry(GROUP, n + 1, at, 200))).collect()
}

fn log_id(fs: &MemoryFs) -> u64 {
    let identity = fs.bytes(&path("identity")).unwrap();
    u64::from_le_bytes(identity[12..20].try_into().unwrap())
}

/// Gives all files the older version.
fn make_older(fs: &MemoryFs) {
    let log_id = log_id(fs);
    for (number, name) in (1..).zip(segments(fs)) {
        let mut bytes = fs.bytes(&path(&name)).unwrap();
        let header = header_of(FORMAT_VERSION_OLDEST, log_id, number, bytes.len() as u64);
        bytes[..header.len()].copy_from_slice(&header);
        for (start, end) in frames(&bytes) {
            let kinds = crate::log::frame::kinds_of(&bytes[start..end]);
            assert!(kinds.iter().all(|kind| *kind <= 12), "{name} is not of the older version");
        }
        fs.replace(&path(&name), bytes).unwrap();
    }
    let identity = identity_of(FORMAT_VERSION_OLDEST, log_id).to_vec();
    fs.replace(&path("identity"), identity).unwrap();
}

fn versions(fs: &MemoryFs) -> Vec<u32> {
    let names = segments(fs).into_iter().chain(["identity".to_owned()]);
    let version = |name: String| fs.bytes(&path(&name)).unwrap()[8..12].try_into().unwrap();
    names.map(|name| u32::from_le_bytes(version(name))).collect()
}

fn older() -> MemoryFs {
    let fs = MemoryFs::new();
    let log = open(&fs, small()).unwrap();
    for appended in written().chunks(2) {
        write(&log, LogWrite::Append { group: GROUP, entries: appended.to_vec() }).unwrap();
    }
    write(&log, vote(GROUP, 99, 1)).unwrap();
    drop(log);
    make_older(&fs);
    assert!(3 < segments(&fs).len());
    fs
}

#[test]
fn an_older_log_is_read_and_goes_on_in_the_newest_format() {
    let fs = older();
    let log = open(&fs, small()).unwrap();
    assert_eq!(*log.report(), OpenReport::default());
    assert!(versions(&fs).iter().all(|version| *version == FORMAT_VERSION), "{:?}", versions(&fs));
    assert_eq!(read_all(&log, GROUP), written());
    // What only the newest version can say.
    let first = group(1);
    write(&log, append(first, 5, 0..1, 50)).unwrap();
    write(&log, append(first, 5, 1..2, 50)).unwrap();
    drop(log);
    let log = open(&fs.after_crash(0), small()).unwrap();
    assert_eq!(*log.report(), OpenReport::default());
    assert_eq!(read_all(&log, GROUP), written());
    assert_eq!(read_all(&log, first), [entry(first, 5, 0, 50), entry(first, 5, 1, 50)]);
    assert_eq!(log.group(GROUP).unwrap().hard_state.map(|state| state.term), Some(99));
}

#[test]
fn a_crash_at_any_call_of_the_first_start_leaves_a_log_that_opens() {
    let older = older();
    let opening = |fs: &MemoryFs| open(fs, small()).map(drop);
    let whole = older.after_kill();
    opening(&whole).unwrap();
    for call in 0..whole.calls() {
        for seed in 0..5 {
            let fs = older.after_kill();
            fs.fail_at(call, Fault::PowerCut);
            drop(opening(&fs));
            let log = open(&fs.after_crash(seed), small()).unwrap();
            assert_eq!(*log.report(), OpenReport::default(), "call {call}, seed {seed}");
            assert_eq!(read_all(&log, GROUP), written(), "call {call}, seed {seed}");
        }
    }
}

#[test]
fn a_version_before_the_oldest_and_one_after_the_newest_are_refused() {
    for version in [FORMAT_VERSION_OLDEST - 1, FORMAT_VERSION + 1] {
        let fs = older();
        let name = &segments(&fs)[1];
        let mut bytes = fs.bytes(&path(name)).unwrap();
        let header = header_of(version, log_id(&fs), 2, bytes.len() as u64);
        bytes[..header.len()].copy_from_slice(&header);
        fs.replace(&path(name), bytes).unwrap();
        let before = fs.calls();
        match open(&fs, small()) {
            Err(OpenError::Version { segment: 2, found }) => assert_eq!(found, version),
            other => panic!("{:?}", other.err()),
        }
        assert_eq!(fs.calls(), before, "something was changed");
    }
}
