//! The contract of [`LogStore`], held against every implementation.

use std::sync::{Arc, Mutex};

use super::*;
use crate::MemoryLog;
use crate::fs::RealFs;
use crate::log_store::{GroupLog, ReadError};

/// One log that can be stopped and started again. Reopening keeps what was acknowledged.
trait Subject {
    type Log: LogStore;
    fn log(&self) -> &Self::Log;
    fn reopen(&mut self);
}

struct InMemory(MemoryLog);

impl Subject for InMemory {
    type Log = MemoryLog;
    fn log(&self) -> &MemoryLog {
        &self.0
    }
    fn reopen(&mut self) {
        self.0.crash();
    }
}

struct OnDisk {
    dir: tempfile::TempDir,
    config: LogConfig,
    log: Option<SegmentedLog>,
}

impl OnDisk {
    fn new(config: LogConfig) -> Self {
        let mut made = Self { dir: tempfile::tempdir().unwrap(), config, log: None };
        made.reopen();
        made
    }
}

impl Subject for OnDisk {
    type Log = SegmentedLog;
    fn log(&self) -> &SegmentedLog {
        self.log.as_ref().unwrap()
    }
    fn reopen(&mut self) {
        self.log = None;
        self.log =
            Some(SegmentedLog::open(Arc::new(RealFs), self.dir.path(), self.config).unwrap());
    }
}

fn log_store_conformance<S: Subject>(make: impl Fn() -> S) {
    appended_entries_come_back(&mut make());
    truncated_entries_are_gone(&mut make());
    purged_entries_are_gone(&mut make());
    hard_states_come_back(&mut make());
    dropped_groups_start_again(&mut make());
    broken_rules_are_refused(&mut make());
    completions_come_in_order(&make());
    reads_are_bounded(&mut make());
    many_changes_without_waiting_end_in_the_right_state(&mut make());
}

#[test]
fn the_log_in_memory_conforms() {
    log_store_conformance(|| InMemory(MemoryLog::new()));
}

#[test]
fn the_log_on_disk_conforms() {
    log_store_conformance(|| OnDisk::new(LogConfig::default()));
}

#[test]
fn the_log_on_disk_conforms_with_small_segments_and_nothing_kept_in_memory() {
    log_store_conformance(|| OnDisk::new(LogConfig { recent_bytes_max: 0, ..small() }));
}

fn appended_entries_come_back(subject: &mut impl Subject) {
    let (a, b) = (group(1), group(2));
    assert_eq!(subject.log().groups(), vec![]);
    assert_eq!(subject.log().group(a), None);
    write(subject.log(), append(a, 1, 0..3, 40)).unwrap();
    write(subject.log(), append(b, 7, 5..6, 0)).unwrap();
    write(subject.log(), append(a, 2, 3..5, 40)).unwrap();
    for _ in 0..2 {
        let log = subject.log();
        assert_eq!(log.groups(), vec![a, b]);
        let expected = GroupLog { last: Some(at(2, 4)), ..GroupLog::default() };
        assert_eq!(log.group(a), Some(expected));
        let mut entries: Vec<LogEntry> = (0..3).map(|index| entry(a, 1, index, 40)).collect();
        entries.extend((3..5).map(|index| entry(a, 2, index, 40)));
        assert_eq!(log.read(a, 0..5, usize::MAX).unwrap(), entries);
        assert_eq!(log.read(a, 2..4, usize::MAX).unwrap(), entries[2..4]);
        assert_eq!(read_all(log, b), vec![entry(b, 7, 5, 0)]);
        assert!(matches!(log.read(b, 4..6, 10), Err(ReadError::Unknown { index: 4 })));
        subject.reopen();
    }
}

fn truncated_entries_are_gone(subject: &mut impl Subject) {
    let a = group(1);
    write(subject.log(), append(a, 1, 0..10, 30)).unwrap();
    write(subject.log(), LogWrite::Truncate { group: a, from: 4 }).unwrap();
    assert_eq!(subject.log().group(a).unwrap().last, Some(at(1, 3)));
    assert!(matches!(subject.log().read(a, 4..5, 10), Err(ReadError::Unknown { index: 4 })));
    write(subject.log(), append(a, 2, 4..6, 30)).unwrap();
    // Beyond the end: nothing to do.
    write(subject.log(), LogWrite::Truncate { group: a, from: 6 }).unwrap();
    write(subject.log(), LogWrite::Truncate { group: group(9), from: 0 }).unwrap();
    for _ in 0..2 {
        let mut expected: Vec<LogEntry> = (0..4).map(|index| entry(a, 1, index, 30)).collect();
        expected.extend((4..6).map(|index| entry(a, 2, index, 30)));
        assert_eq!(read_all(subject.log(), a), expected);
        assert_eq!(subject.log().group(group(9)), None);
        subject.reopen();
    }
    write(subject.log(), LogWrite::Truncate { group: a, from: 0 }).unwrap();
    for _ in 0..2 {
        assert_eq!(subject.log().group(a), Some(GroupLog::default()));
        subject.reopen();
    }
    write(subject.log(), append(a, 3, 100..101, 30)).unwrap();
    assert_eq!(subject.log().group(a).unwrap().last, Some(at(3, 100)));
}

fn purged_entries_are_gone(subject: &mut impl Subject) {
    let a = group(1);
    write(subject.log(), append(a, 1, 0..10, 30)).unwrap();
    write(subject.log(), LogWrite::Purge { group: a, up_to: at(1, 6) }).unwrap();
    // The mark never goes back.
    write(subject.log(), LogWrite::Purge { group: a, up_to: at(1, 3) }).unwrap();
    for _ in 0..2 {
        let log = subject.log();
        let found = log.group(a).unwrap();
        assert_eq!((found.purged, found.last), (Some(at(1, 6)), Some(at(1, 9))));
        let read = log.read(a, 6..8, 100);
        assert!(matches!(read, Err(ReadError::Purged { index: 6, purged }) if purged == at(1, 6)));
        assert_eq!(log.read(a, 7..10, usize::MAX).unwrap().len(), 3);
        subject.reopen();
    }
    // A mark beyond the last entry, as after an installed snapshot.
    write(subject.log(), LogWrite::Purge { group: a, up_to: at(4, 20) }).unwrap();
    write(subject.log(), LogWrite::Purge { group: group(2), up_to: at(4, 30) }).unwrap();
    for _ in 0..2 {
        let found = subject.log().group(a).unwrap();
        assert_eq!((found.purged, found.last), (Some(at(4, 20)), Some(at(4, 20))));
        let fresh = subject.log().group(group(2)).unwrap();
        assert_eq!((fresh.purged, fresh.last), (Some(at(4, 30)), Some(at(4, 30))));
        assert!(write(subject.log(), append(a, 5, 22..23, 30)).is_err());
        subject.reopen();
    }
    write(subject.log(), append(a, 5, 21..22, 30)).unwrap();
    subject.reopen();
    assert_eq!(read_all(subject.log(), a), vec![entry(a, 5, 21, 30)]);
}

fn hard_states_come_back(subject: &mut impl Subject) {
    let a = group(1);
    let states = [
        HardState { term: 1, voted_for: None, committed: false },
        HardState { term: 2, voted_for: Some(u64::MAX), committed: false },
        HardState { term: u64::MAX, voted_for: Some(0), committed: true },
    ];
    for hard_state in states {
        write(subject.log(), LogWrite::SaveHardState { group: a, hard_state }).unwrap();
        for _ in 0..2 {
            assert_eq!(subject.log().group(a).unwrap().hard_state, Some(hard_state));
            subject.reopen();
        }
    }
}

fn dropped_groups_start_again(subject: &mut impl Subject) {
    let a = group(1);
    write(subject.log(), append(a, 1, 0..10, 30)).unwrap();
    write(subject.log(), vote(a, 3, 2)).unwrap();
    write(subject.log(), LogWrite::Purge { group: a, up_to: at(1, 5) }).unwrap();
    write(subject.log(), LogWrite::Drop { group: a }).unwrap();
    write(subject.log(), LogWrite::Drop { group: a }).unwrap();
    for _ in 0..2 {
        assert_eq!(subject.log().group(a), None);
        assert_eq!(subject.log().groups(), vec![]);
        assert!(matches!(subject.log().read(a, 7..8, 10), Err(ReadError::Unknown { index: 7 })));
        subject.reopen();
    }
    write(subject.log(), append(a, 1, 0..2, 30)).unwrap();
    subject.reopen();
    assert_eq!(read_all(subject.log(), a), vec![entry(a, 1, 0, 30), entry(a, 1, 1, 30)]);
    assert_eq!(subject.log().group(a).unwrap().hard_state, None);
}

fn broken_rules_are_refused(subject: &mut impl Subject) {
    let a = group(1);
    write(subject.log(), append(a, 1, 0..10, 30)).unwrap();
    write(subject.log(), LogWrite::Purge { group: a, up_to: at(1, 5) }).unwrap();
    let before = subject.log().group(a);
    let uneven = vec![entry(a, 1, 10, 9), entry(a, 1, 12, 9)];
    for change in [
        append(a, 1, 11..12, 30),
        append(a, 1, 9..11, 30),
        append(a, 1, 5..6, 30),
        LogWrite::Append { group: a, entries: uneven },
        append(group(2), 1, u64::MAX - 1..u64::MAX, 30),
        LogWrite::Truncate { group: a, from: 5 },
        LogWrite::Truncate { group: a, from: 0 },
        LogWrite::Purge { group: a, up_to: at(1, u64::MAX) },
    ] {
        let refused = write(subject.log(), change.clone());
        assert!(matches!(refused, Err(LogError::Refused { .. })), "{change:?}: {refused:?}");
    }
    for _ in 0..2 {
        assert_eq!(subject.log().group(a), before);
        assert_eq!(subject.log().groups(), vec![a]);
        subject.reopen();
    }
    write(subject.log(), append(a, 1, 10..11, 30)).unwrap();
}

fn completions_come_in_order(subject: &impl Subject) {
    let a = group(1);
    let (sender, receiver) = mpsc::channel();
    for index in 0..200_u64 {
        let sender = sender.clone();
        // Each third change is refused, and still waits its turn.
        let change = append(a, 1, if index % 3 == 2 { 900..901 } else { 0..0 }, 1);
        subject.log().submit(change, Box::new(move |got| sender.send((index, got)).unwrap()));
    }
    drop(sender);
    let got: Vec<(u64, bool)> = receiver.iter().map(|(index, got)| (index, got.is_ok())).collect();
    // The first refused append is the first into an empty group, so it is a good one.
    let expected: Vec<(u64, bool)> = (0..200).map(|at| (at, at % 3 != 2 || at == 2)).collect();
    assert_eq!(got, expected);
}

fn reads_are_bounded(subject: &mut impl Subject) {
    let a = group(1);
    write(subject.log(), append(a, 1, 0..20, 100)).unwrap();
    for _ in 0..2 {
        let log = subject.log();
        assert_eq!(log.read(a, 0..20, 0).unwrap().len(), 1);
        assert_eq!(log.read(a, 0..20, 99).unwrap().len(), 1);
        assert_eq!(log.read(a, 0..20, 200).unwrap().len(), 2);
        assert_eq!(log.read(a, 0..20, 299).unwrap().len(), 2);
        assert_eq!(log.read(a, 3..u64::MAX, usize::MAX).unwrap().len(), 17);
        assert_eq!(log.read(a, 3..3, 100).unwrap(), vec![]);
        #[expect(clippy::reversed_empty_ranges, reason = "a caller may be wrong")]
        let reversed = log.read(a, 9..3, 100).unwrap();
        assert_eq!(reversed, vec![]);
        assert!(matches!(log.read(a, 20..21, 1), Err(ReadError::Unknown { index: 20 })));
        assert!(matches!(log.read(group(5), 0..1, 1), Err(ReadError::Unknown { index: 0 })));
        subject.reopen();
    }
}

fn many_changes_without_waiting_end_in_the_right_state<S: Subject>(subject: &mut S) {
    let a = group(1);
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    let submit = |log: &S::Log, change| fire(log, change, &outcomes);
    for term in 1..40 {
        let log = subject.log();
        submit(log, append(a, term, 10..20, 50));
        submit(log, LogWrite::Truncate { group: a, from: 15 });
        assert_eq!(log.group(a).unwrap().last, Some(at(term, 14)));
        submit(log, append(a, term + 100, 15..18, 50));
        assert_eq!(log.read(a, 15..18, usize::MAX).unwrap()[2], entry(a, term + 100, 17, 50));
        submit(log, vote(a, term, 3));
        if term < 39 {
            submit(log, LogWrite::Drop { group: a });
            assert_eq!(log.group(a), None);
        }
    }
    write(subject.log(), vote(group(2), 1, 1)).unwrap();
    for _ in 0..2 {
        let mut expected: Vec<LogEntry> = (10..15).map(|index| entry(a, 39, index, 50)).collect();
        expected.extend((15..18).map(|index| entry(a, 139, index, 50)));
        assert_eq!(read_all(subject.log(), a), expected);
        subject.reopen();
    }
    assert!(outcomes.lock().unwrap().iter().all(Result::is_ok));
}

fn fire(log: &impl LogStore, change: LogWrite, outcomes: &Arc<Mutex<Vec<Result<(), LogError>>>>) {
    let outcomes = Arc::clone(outcomes);
    log.submit(change, Box::new(move |outcome| outcomes.lock().unwrap().push(outcome)));
}

#[test]
fn a_crash_of_the_memory_log_loses_exactly_the_unsynced_changes() {
    let log = MemoryLog::with_manual_sync();
    let a = group(1);
    let (sender, receiver) = mpsc::channel();
    for index in 0..5 {
        let sender = sender.clone();
        log.submit(
            append(a, 1, index..index + 1, 8),
            Box::new(move |_| sender.send(index).unwrap()),
        );
    }
    assert_eq!(log.group(a).unwrap().last, Some(at(1, 4)));
    assert_eq!(log.sync_first(2), 2);
    assert_eq!(log.unsynced(), 3);
    log.crash();
    drop(sender);
    assert_eq!(receiver.iter().collect::<Vec<u64>>(), vec![0, 1]);
    assert_eq!(read_all(&log, a).len(), 2);
    log.submit(append(a, 2, 2..3, 8), Box::new(|_| ()));
    log.sync();
    log.crash();
    assert_eq!(log.group(a).unwrap().last, Some(at(2, 2)));
    log.poison(std::io::Error::other("test"));
    log.submit(append(a, 2, 3..4, 8), Box::new(|_| ()));
    assert_eq!(log.group(a).unwrap().last, Some(at(2, 2)));
}

#[test]
fn one_directory_takes_one_log() {
    let dir = tempfile::tempdir().unwrap();
    let first = SegmentedLog::open(Arc::new(RealFs), dir.path(), small()).unwrap();
    let Err(second) = SegmentedLog::open(Arc::new(RealFs), dir.path(), small()) else {
        panic!("opened twice");
    };
    assert!(matches!(&second, OpenError::Locked { dir: named } if named == dir.path()));
    assert!(second.to_string().contains(&dir.path().display().to_string()));
    first.close();
    SegmentedLog::open(Arc::new(RealFs), dir.path(), small()).unwrap();
    // A closed log refuses changes and still answers.
    assert!(matches!(write(&first, vote(group(1), 1, 1)), Err(LogError::Refused { .. })));
    assert_eq!(first.groups(), vec![]);
}

#[test]
fn two_logs_in_a_process_and_a_wiped_one_never_mix() {
    let (one, two) = (MemoryFs::new(), MemoryFs::new());
    let config = LogConfig { recent_bytes_max: 0, ..small() };
    let (first, second) = (open(&one, config).unwrap(), open(&two, config).unwrap());
    write(&first, append(group(1), 1, 0..5, 30)).unwrap();
    write(&second, append(group(1), 2, 0..5, 30)).unwrap();
    assert_eq!(first.read(group(1), 0..1, 1).unwrap()[0], entry(group(1), 1, 0, 30));
    assert_eq!(second.read(group(1), 0..1, 1).unwrap()[0], entry(group(1), 2, 0, 30));
    drop(first);
    let wiped = MemoryFs::new();
    let again = open(&wiped, config).unwrap();
    write(&again, append(group(1), 3, 0..5, 30)).unwrap();
    assert_eq!(again.read(group(1), 0..1, 1).unwrap()[0], entry(group(1), 3, 0, 30));
}
