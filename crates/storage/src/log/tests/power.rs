//! Rounds of power loss with values from 100 B to 1 MiB: nothing that was acknowledged is missing,
//! every start succeeds. The same rounds against a log that acknowledges before its fsync must
//! find losses: it proves that they can.

use super::*;
use crate::fs::Fault;
use crate::log_store::Completion;

const GROUPS: u64 = 5;

/// A log that tells its callers too early.
struct AcknowledgesEarly(SegmentedLog);

trait Subject {
    fn send(&self, change: LogWrite, done: Completion);
}

impl Subject for SegmentedLog {
    fn send(&self, change: LogWrite, done: Completion) {
        self.submit(change, done);
    }
}

impl Subject for AcknowledgesEarly {
    fn send(&self, change: LogWrite, done: Completion) {
        self.0.submit(change, Box::new(|_| ()));
        done(Ok(()));
    }
}

fn rounds() -> u64 {
    if long() { 5_000 } else { 200 }
}

/// What one group was acknowledged.
#[derive(Clone, Copy, Debug, Default)]
struct Promise {
    term: u64,
    /// One past the last acknowledged entry.
    end: u64,
    purged: u64,
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// From 100 B to 1 MiB, most of them small.
    fn length(&mut self) -> usize {
        let bound = [200, 1_000, 10_000, 1 << 20][usize::try_from(self.next() % 64 / 21).unwrap()];
        100 + usize::try_from(self.next()).unwrap_or(usize::MAX) % (bound - 100)
    }
}

/// Sends changes of one term until the power goes; notes what was acknowledged. What waits for
/// its fsync when the power goes was never promised.
fn run(log: &impl Subject, random: &mut Random, term: u64, promises: &mut [Promise]) {
    let mut next: Vec<u64> = promises.iter().map(|promise| promise.end).collect();
    for _ in 0..6 {
        let mut due = Vec::new();
        for number in 0..GROUPS {
            let at_group = usize::try_from(number).unwrap();
            let (sender, receiver) = mpsc::channel();
            let (first, group) = (next[at_group], group(number));
            let mut promise = promises[at_group];
            let change = match random.next() % 8 {
                0 => {
                    promise.term = term;
                    vote(group, term, number)
                }
                1 if promise.purged + 4 < promise.end => {
                    promise.purged = promise.end - 2;
                    LogWrite::Purge { group, up_to: at(term, promise.purged - 1) }
                }
                _ => {
                    promise.end = first + 1;
                    next[at_group] = promise.end;
                    append(group, term, first..first + 1, random.length())
                }
            };
            log.send(change, Box::new(move |outcome| drop(sender.send(outcome))));
            due.push((at_group, promise, receiver));
        }
        for (number, promise, receiver) in due {
            match receiver.recv().unwrap() {
                Ok(()) => promises[number] = promise,
                Err(_) => return,
            }
        }
    }
}

/// What is missing of the promises.
fn missing(log: &SegmentedLog, promises: &[Promise]) -> Option<String> {
    for (number, promise) in (0..).zip(promises) {
        let found = log.group(group(number)).unwrap_or_default();
        let term = found.hard_state.map_or(0, |state| state.term);
        let end = found.last.map_or(0, |last| last.index + 1);
        if term < promise.term || end < promise.end {
            return Some(format!("group {number}: {promise:?}, found {found:?}"));
        }
        let mut next = found.purged.map_or(0, |mark| mark.index + 1).max(promise.purged);
        while next < end {
            let read = log.read(group(number), next..end, 1 << 20);
            let Ok(read) = read else { return Some(format!("group {number}: {read:?}")) };
            for found in read {
                let LogPosition { term, index } = found.position;
                let whole = entry(group(number), term, index, found.content.len());
                assert_eq!((index, &whole), (next, &found));
                next += 1;
            }
        }
    }
    None
}

/// Runs all rounds on one disk; stops at the first loss. With `early`, callers are told before
/// the fsync.
fn play(early: bool, seed: u64) -> Result<(), String> {
    let mut random = Random(seed);
    let mut fs = MemoryFs::new();
    let mut promises = vec![Promise::default(); usize::try_from(GROUPS).unwrap()];
    let config = LogConfig {
        segment_bytes: 64 << 10,
        disk_bytes_target: 8 << 20,
        recent_bytes_max: 1 << 20,
        ..small()
    };
    for round in 1..=rounds() {
        // Mostly within a few dozen calls, now and then during the start itself.
        fs.fail_at(random.next() % 40, Fault::PowerCut);
        if let Ok(log) = open(&fs, config) {
            if early {
                let log = AcknowledgesEarly(log);
                run(&log, &mut random, round, &mut promises);
            } else {
                run(&log, &mut random, round, &mut promises);
            }
        }
        fs = fs.after_crash(random.next());
        let what = format!("round {round}, seed {seed:#x}");
        let log = open(&fs, config).map_err(|error| format!("{what}: {error}"))?;
        if !log.report().damages.is_empty() {
            return Err(format!("{what}: {:?}", log.report()));
        }
        if let Some(missing) = missing(&log, &promises) {
            return Err(format!("{what}: {missing}"));
        }
        // What came through without a promise stays, and the next round goes on behind it.
        for (number, promise) in (0..).zip(&mut promises) {
            let found = log.group(group(number)).unwrap_or_default();
            promise.end = found.last.map_or(0, |last| last.index + 1);
            promise.purged = found.purged.map_or(promise.purged, |mark| mark.index + 1);
        }
        drop(log);
        fs = fs.after_kill();
    }
    Ok(())
}

#[test]
fn hundreds_of_power_losses_lose_nothing_that_was_acknowledged() {
    play(false, 0x5eed_0001_cafe_f00d).unwrap_or_else(|loss| panic!("{loss}"));
}

#[test]
fn the_same_rounds_find_a_log_that_acknowledges_before_its_fsync() {
    assert!(play(true, 0x5eed_0001_cafe_f00d).is_err());
}
