//! One failing call and then a power cut, at every pair of calls: the rest of the script runs on
//! between them, after a restart where the failure has poisoned the log.

use super::crash::{Picture, config, group_of, picture, script};
use super::*;
use crate::fs::Fault;

/// Each group's states that may be found: from the last acknowledged one to the last submitted.
#[derive(Default)]
struct Expected {
    plain: crate::MemoryLog,
    /// Every change that was not refused, and whether it was acknowledged.
    accepted: Vec<(GroupId, Picture, bool)>,
}

impl Expected {
    fn submit(&mut self, change: LogWrite, acknowledged: bool) {
        let group = group_of(&change);
        write(&self.plain, change).unwrap();
        self.accepted.push((group, picture(&self.plain, group), acknowledged));
    }

    fn check(&self, log: &SegmentedLog, what: &str) {
        for shard in [1, 2, 300] {
            let group = group(shard);
            let nothing = Picture { found: None, entries: vec![] };
            let mut allowed = vec![nothing];
            for (_, state, acknowledged) in self.accepted.iter().filter(|(g, ..)| *g == group) {
                if *acknowledged {
                    allowed.clear();
                }
                allowed.push(state.clone());
            }
            let found = picture(log, group);
            assert!(allowed.contains(&found), "{what}: {group:?} is {found:?}, not of {allowed:?}");
        }
    }

    /// Goes on from what a restart has found: a change whose outcome was unknown is settled.
    fn settle(&mut self, log: &SegmentedLog) {
        self.plain = crate::MemoryLog::new();
        for shard in [1, 2, 300] {
            let group = group(shard);
            let found = picture(log, group);
            if let Some(state) = found.found {
                copy(&self.plain, group, state, &found.entries);
                self.accepted.push((group, found, true));
            }
        }
    }
}

/// Makes a group in a plain log.
fn copy(
    plain: &crate::MemoryLog,
    group: GroupId,
    state: crate::log_store::GroupLog,
    entries: &[LogEntry],
) {
    if let Some(hard_state) = state.hard_state {
        write(plain, LogWrite::SaveHardState { group, hard_state }).unwrap();
    }
    if let Some(up_to) = state.purged {
        write(plain, LogWrite::Purge { group, up_to }).unwrap();
    }
    write(plain, LogWrite::Append { group, entries: entries.to_vec() }).unwrap();
}

/// The change as it fits on what the log holds now: one before it may have been refused.
fn fitted(change: LogWrite, log: &SegmentedLog) -> LogWrite {
    let LogWrite::Append { group, mut entries } = change else { return change };
    let Some(last) = log.group(group).and_then(|found| found.last) else {
        return LogWrite::Append { group, entries };
    };
    for (at, entry) in (last.index + 1..).zip(&mut entries) {
        let term = entry.position.term.max(last.term);
        *entry = super::entry(group, term, at, entry.content.len());
    }
    LogWrite::Append { group, entries }
}

/// Runs the script with a failing call and, later, a power cut. Returns the number of calls, and
/// whether the power cut came.
fn run(failing: (u64, Fault), cut: u64) -> (u64, bool) {
    let what = format!("{failing:?}, cut at {cut}");
    let mut fs = MemoryFs::new();
    fs.fail_at(failing.0, failing.1);
    fs.cut_power_at(cut);
    let mut expected = Expected::default();
    let mut log = open(&fs, config()).ok();
    let mut restarts = 0;
    for change in script() {
        if log.is_none() {
            restarts += 1;
            assert!(restarts < 3, "{what}: it does not stay up");
            if fs.is_cut() {
                break;
            }
            fs = fs.after_kill_counting();
            let found = open(&fs.after_kill(), config()).unwrap();
            expected.check(&found, &format!("{what}, restarted"));
            // What a start has found is durable once it has succeeded.
            let Ok(again) = open(&fs, config()) else { break };
            expected.settle(&found);
            log = Some(again);
        }
        let Some(open) = &log else { break };
        let change = fitted(change, open);
        match write(open, change.clone()) {
            Ok(()) => expected.submit(change, true),
            Err(LogError::NoSpace) => {}
            Err(LogError::Refused { reason, .. }) => {
                assert!(reason.contains("purge mark"), "{what}: {reason}");
            }
            Err(LogError::Poisoned { .. }) => {
                expected.submit(change, false);
                log = None;
            }
        }
    }
    let (calls, was_cut) = (fs.calls(), fs.is_cut());
    drop(log);
    for seed in [0, cut.wrapping_add(7)] {
        let found = open(&fs.after_crash(seed), config())
            .unwrap_or_else(|error| panic!("{what}, seed {seed}: {error:?}"));
        expected.check(&found, &format!("{what}, seed {seed}"));
        assert!(found.report().damages.is_empty(), "{what}: {:?}", found.report());
    }
    (calls, was_cut)
}

#[test]
fn a_power_cut_at_any_call_after_any_failed_call_loses_nothing() {
    let (calls, _) = run((u64::MAX, Fault::Io), u64::MAX);
    assert!(100 < calls, "{calls}");
    // All pairs take minutes: each run takes every so-manieth, in another place for each call.
    let step = if long() { 1 } else { 29 };
    let mut cuts = 0;
    for call in 0..calls {
        for fault in [Fault::Io, Fault::NoSpace] {
            for cut in (call + 1 + call % step..calls + 20).step_by(usize::try_from(step).unwrap())
            {
                cuts += u64::from(run((call, fault), cut).1);
            }
        }
    }
    assert!(calls < cuts, "{cuts} of {calls} calls");
}
