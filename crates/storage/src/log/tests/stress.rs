//! Readers beside a writer, a purger and copying forward.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::fs::RealFs;
use crate::log_store::ReadError;

const GROUPS: u64 = 8;

/// What is promised of a group: everything below `high` is there, or purged below `low`. `low`
/// rises before the purge is submitted.
#[derive(Default)]
struct Bounds {
    low: AtomicU64,
    high: AtomicU64,
}

#[test]
fn live_entries_are_readable_while_everything_else_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig {
        segment_bytes: 32 << 10,
        segment_bytes_max: 32 << 10,
        recent_bytes_max: 16 << 10,
        disk_bytes_target: 128 << 10,
        copy_bytes_max: 4096,
        idle_marker: Duration::from_millis(1),
        ..LogConfig::default()
    };
    let log = SegmentedLog::open(Arc::new(RealFs), dir.path(), config).unwrap();
    let bounds: Vec<Bounds> = (0..GROUPS).map(|_| Bounds::default()).collect();
    let stop = AtomicBool::new(false);
    // Entries of group 0 are never purged: they are copied forward again and again.
    write(&log, append(group(0), 1, 0..50, 200)).unwrap();
    bounds[0].high.store(50, Ordering::SeqCst);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| read_until(&log, &bounds, &stop));
        }
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        for round in 0..1500_u64 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let number = 1 + state % (GROUPS - 1);
            change(&log, number, &bounds[usize::try_from(number).unwrap()], state >> 8, round);
        }
        stop.store(true, Ordering::SeqCst);
    });
    let before: Vec<Vec<LogEntry>> =
        (0..GROUPS).map(|number| read_all(&log, group(number))).collect();
    drop(log);
    let log = SegmentedLog::open(Arc::new(RealFs), dir.path(), config).unwrap();
    for (number, entries) in (0..).zip(before) {
        assert_eq!(read_all(&log, group(number)), entries);
    }
    assert_eq!(read_all(&log, group(0)).len(), 50);
    assert!(log.stats().disk_bytes < 400 << 10, "{:?}", log.stats());
}

/// Appends, overwrites an uncommitted suffix, or purges behind the readers.
fn change(log: &SegmentedLog, number: u64, bounds: &Bounds, random: u64, round: u64) {
    let group = group(number);
    let high = bounds.high.load(Ordering::SeqCst);
    let ignore = || Box::new(|outcome: Result<(), LogError>| outcome.unwrap());
    match random % 8 {
        0..5 => {
            let count = 1 + random % 4;
            let last = log.group(group).and_then(|found| found.last);
            let first = last.map_or(0, |last| last.index + 1);
            let length = usize::try_from(random % 900).unwrap();
            log.submit(append(group, round, first..first + count, length), ignore());
            if random.is_multiple_of(3) {
                // This suffix is not promised to anyone: it is overwritten.
                log.submit(LogWrite::Truncate { group, from: first }, ignore());
                log.submit(append(group, round + 1, first..first + 1, length), ignore());
                bounds.high.store(first + 1, Ordering::SeqCst);
            } else {
                bounds.high.store(first + count, Ordering::SeqCst);
            }
        }
        5 => write(log, vote(group, round, 1)).unwrap(),
        _ => {
            let low = bounds.low.load(Ordering::SeqCst);
            if low + 20 < high {
                bounds.low.store(high - 20, Ordering::SeqCst);
                let up_to = at(round, high - 21);
                log.submit(LogWrite::Purge { group, up_to }, ignore());
            }
        }
    }
}

fn read_until(log: &SegmentedLog, bounds: &[Bounds], stop: &AtomicBool) {
    let mut round = 0_u64;
    while !stop.load(Ordering::SeqCst) {
        round += 1;
        let number = round % GROUPS;
        let bounds = &bounds[usize::try_from(number).unwrap()];
        let low = bounds.low.load(Ordering::SeqCst);
        let high = bounds.high.load(Ordering::SeqCst);
        if low == high {
            continue;
        }
        match log.read(group(number), low..high, 4096) {
            Ok(entries) => {
                assert!(!entries.is_empty());
                for (index, found) in (low..).zip(&entries) {
                    assert_eq!(found.position.index, index);
                    let text = format!("{number}/1/{}/{index}/", found.position.term);
                    assert!(found.content.starts_with(text.as_bytes()), "{found:?}");
                }
            }
            // Only if the low end has moved meanwhile: a live entry is always readable.
            Err(ReadError::Purged { .. }) => assert!(low < bounds.low.load(Ordering::SeqCst)),
            Err(error) => panic!("group {number}, {low}..{high}: {error}"),
        }
    }
}

#[test]
fn an_entry_overwritten_before_it_was_written_never_lends_its_place() {
    let fs = MemoryFs::new();
    // Every change is a batch of its own, and no content is kept longer than it must be.
    let config = LogConfig { batch_bytes_max: 1, recent_bytes_max: 0, ..small() };
    let log = Arc::new(open(&fs, config).unwrap());
    let (first, second) = (entry(group(1), 1, 0, 40), entry(group(1), 2, 0, 40));
    // The writer stands in a completion until everything is queued.
    let (go, queued) = mpsc::channel::<()>();
    log.submit(vote(group(9), 1, 1), Box::new(move |_| queued.recv().unwrap()));
    let (sender, receiver) = mpsc::channel();
    let (inside, expected) = (Arc::clone(&log), second.clone());
    log.submit(
        LogWrite::Append { group: group(1), entries: vec![first] },
        Box::new(move |outcome| {
            // Another append lets go of every content that is on disk.
            inside.submit(append(group(2), 1, 0..1, 10), Box::new(|outcome| outcome.unwrap()));
            let read = inside.read(group(1), 0..1, 0).unwrap();
            sender.send(outcome.is_ok() && read == vec![expected]).unwrap();
        }),
    );
    log.submit(LogWrite::Truncate { group: group(1), from: 0 }, Box::new(|o| o.unwrap()));
    let change = LogWrite::Append { group: group(1), entries: vec![second.clone()] };
    log.submit(change, Box::new(|outcome| outcome.unwrap()));
    go.send(()).unwrap();
    assert!(receiver.recv().unwrap());
    log.close();
    let log = open(&fs.after_crash(0), config).unwrap();
    assert_eq!(read_all(&log, group(1)), vec![second]);
}

/// A log whose disk is so slow that many changes share a frame.
fn slow_log() -> SegmentedLog {
    let fs = MemoryFs::new();
    fs.before_each_call(|| std::thread::sleep(Duration::from_millis(2)));
    open(&fs, LogConfig { segment_bytes: 1 << 20, ..small() }).unwrap()
}

#[test]
fn completions_of_large_and_small_frames_come_in_order_and_all_before_the_close_returns() {
    let log = slow_log();
    let told = Arc::new(parking_lot::Mutex::new(Vec::new()));
    for index in 0..400 {
        let told = Arc::clone(&told);
        let done = move |outcome: Result<(), LogError>| {
            outcome.unwrap();
            // Those that come after it are on disk before it is through.
            std::thread::sleep(Duration::from_micros(300));
            told.lock().push(index);
        };
        log.submit(append(group(index % 7), 1, index / 7..index / 7 + 1, 40), Box::new(done));
        if index % 50 == 49 {
            std::thread::sleep(Duration::from_millis(15));
        }
    }
    log.close();
    assert_eq!(*told.lock(), (0..400).collect::<Vec<_>>());
    assert!(log.stats().fsyncs < 200, "many share a frame: {:?}", log.stats());
}

#[test]
fn a_completion_among_many_may_close_the_log_and_ask_it_for_more() {
    let log = Arc::new(slow_log());
    let (sender, told) = std::sync::mpsc::channel();
    for index in 0..100 {
        let (closing, sender) = (Arc::clone(&log), sender.clone());
        let done = move |outcome: Result<(), LogError>| {
            let refused = index == 60 && {
                closing.close();
                let (late, answer) = std::sync::mpsc::channel();
                let change = append(group(9), 1, 0..1, 40);
                closing.submit(change, Box::new(move |outcome| drop(late.send(outcome))));
                drop(closing);
                !matches!(answer.recv_timeout(Duration::ZERO), Ok(Ok(())))
            };
            sender.send((index, outcome.is_ok(), refused)).unwrap();
        };
        log.submit(append(group(1), 1, index..index + 1, 40), Box::new(done));
    }
    drop(sender);
    let told: Vec<_> = told.iter().collect();
    assert_eq!(
        told.iter().map(|(index, ..)| *index).collect::<Vec<_>>(),
        (0..100).collect::<Vec<_>>()
    );
    assert!(told.iter().all(|(_, is_ok, _)| *is_ok) && told[60].2);
}
