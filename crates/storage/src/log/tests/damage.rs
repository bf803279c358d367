//! Damaged bytes: contained, or exactly what a crash would have left.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::crash::{self, Picture, picture};
use super::*;
use crate::log::LostGroup;
use crate::log_store::Lost;

/// A closed log of a few segments, the groups' entries, and its directory.
pub(super) fn sample(rounds: u64) -> MemoryFs {
    let fs = MemoryFs::new();
    let log = open(&fs, small()).unwrap();
    for round in 0..rounds {
        write(&log, append(group(1), 1, round * 2..round * 2 + 2, 100)).unwrap();
        write(&log, vote(group(2), round + 1, 1)).unwrap();
    }
    drop(log);
    // Without its last marker the last frame is the last vote.
    fs
}

pub(super) fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

fn term(log: &SegmentedLog) -> u64 {
    log.group(group(2)).and_then(|found| found.hard_state).map_or(0, |state| state.term)
}

/// The script's log after a clean end, and what it held: in one segment, or in as many as it
/// took because nothing is copied forward.
pub(super) fn scripted(config: LogConfig) -> (MemoryFs, BTreeMap<GroupId, Picture>) {
    let fs = MemoryFs::new();
    let log = open(&fs, config).unwrap();
    for change in crash::script() {
        write(&log, change).unwrap();
    }
    // The last frame is a vote, and the marker behind it proves it.
    write(&log, vote(group(1), 95, 3)).unwrap();
    let truth = log.groups().into_iter().map(|group| (group, picture(&log, group))).collect();
    drop(log);
    (fs, truth)
}

pub(super) fn nothing_copied() -> LogConfig {
    LogConfig { disk_bytes_target: 1 << 20, ..crash::config() }
}

/// How a damaged log was met.
#[derive(Debug, PartialEq, PartialOrd)]
pub(super) enum Cost {
    Nothing,
    Entries,
    Votes,
}

/// Opens a damaged log: every group is whole, or known to have lost something and to what point.
/// Opened again after a power cut, it says the same; and the peers' entries make it good.
pub(super) fn check_contained(
    fs: &MemoryFs,
    truth: &BTreeMap<GroupId, Picture>,
    what: &str,
) -> Cost {
    let log = open(fs, crash::config()).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    let mut cost = Cost::Nothing;
    for (group, truth) in truth {
        let found = picture(&log, *group);
        if found == *truth {
            continue;
        }
        let Some(state) = found.found else {
            assert!(log.unknown_groups_may_be_lost(), "{what}: {group:?} is gone");
            cost = Cost::Votes;
            continue;
        };
        let whole = truth.found.unwrap();
        let lost = state.lost.unwrap_or_else(|| panic!("{what}: {group:?} is {found:?}"));
        assert!(whole.last <= Some(lost.to), "{what}: {group:?}: {lost:?}, was {whole:?}");
        if !lost.hard_state_known {
            cost = Cost::Votes; // It takes part in nothing any more.
            continue;
        }
        assert!(state.purged <= whole.purged, "{what}: {group:?}: {state:?}");
        assert_eq!(state.hard_state, whole.hard_state, "{what}: {group:?}");
        for entry in &found.entries {
            assert!(truth.entries.contains(entry), "{what}: {group:?} has {entry:?}");
        }
        if cost == Cost::Nothing {
            cost = Cost::Entries;
        }
    }
    let report = log.report();
    let says_nothing = report.lost.is_empty() && !report.unknown_groups_may_be_lost;
    assert!(cost == Cost::Nothing || !says_nothing, "{what}: {report:?}");
    let before: Vec<_> = truth.keys().map(|group| picture(&log, *group)).collect();
    let again = open(&fs.after_crash(0), crash::config()).unwrap();
    let after: Vec<_> = truth.keys().map(|group| picture(&again, *group)).collect();
    assert_eq!(before, after, "{what}, opened twice");
    make_good(&log, truth, what);
    cost
}

/// The leader sends what is missing, and the note of the loss goes.
fn make_good(log: &SegmentedLog, truth: &BTreeMap<GroupId, Picture>, what: &str) {
    for lost in &log.report().lost {
        if !lost.lost.hard_state_known {
            continue;
        }
        let (group, found) = (lost.group, log.group(lost.group).unwrap());
        let whole = truth[&group].found.unwrap();
        let mut next = found.last.map_or(0, |last| last.index + 1);
        if let Some(mark) = whole.purged.filter(|mark| found.last < Some(*mark)) {
            write(log, LogWrite::Purge { group, up_to: mark }).unwrap();
            next = mark.index + 1;
        }
        let rest = truth[&group].entries.iter().filter(|entry| next <= entry.position.index);
        let entries: Vec<LogEntry> = rest.cloned().collect();
        write(log, LogWrite::Append { group, entries }).unwrap();
        // Where the end of what was lost is not known, only a later leader proves it.
        let next = log.group(group).unwrap().last.map_or(0, |last| last.index + 1);
        write(log, append(group, 1000, next..next + 1, 10)).unwrap();
        assert_eq!(log.group(group).unwrap().lost, None, "{what}: {group:?}");
    }
}

#[test]
fn every_flipped_byte_is_contained_or_harmless() {
    let masks: &[u8] = if long() { &[1, 2, 4, 8, 16, 32, 64, 128] } else { &[1] };
    let mut costs = [0; 3];
    for config in [crash::config(), nothing_copied()] {
        let (fs, truth) = scripted(config);
        let names = segments(&fs);
        let one = frames(&fs.bytes(&path(&names[0])).unwrap())[0];
        for name in &names {
            let bytes = fs.bytes(&path(name)).unwrap();
            let step = if long() || names.len() == 1 { 1 } else { 5 };
            for offset in (0..bytes.len()).step_by(step) {
                for mask in masks {
                    let damaged = fs.after_kill();
                    let turned = u32::try_from(offset % 8).unwrap();
                    damaged.flip(&path(name), offset, mask.rotate_left(turned)).unwrap();
                    let what = format!("{name} at {offset}");
                    let cost = check_contained(&damaged, &truth, &what);
                    // One byte damages one frame, whose votes the next one repeats. Only where one
                    // opening is all there is can it cost a vote.
                    let is_only_opening = names.len() == 1 && (one.0..one.1).contains(&offset);
                    assert!(cost != Cost::Votes || is_only_opening, "{what}");
                    costs[cost as usize] += 1;
                }
            }
        }
        assert_eq!(names.len() == 1, config == crash::config(), "{names:?}");
    }
    assert!(costs.iter().all(|count| 0 < *count), "{costs:?}");
}

#[test]
fn every_lost_sector_and_page_is_contained() {
    let (fs, truth) = scripted(nothing_copied());
    let mut costs = [0; 3];
    let names = segments(&fs);
    for name in &names {
        let whole = fs.bytes(&path(name)).unwrap();
        let last = frames(&whole).last().map_or(0, |(_, end)| *end);
        for (size, filler) in [(512, 0), (512, 0xa5), (1024, 0), (2048, 0xff)] {
            for start in (0..last).step_by(size) {
                let end = whole.len().min(start + size);
                let is_newest = names.len() < 2 || *name >= names[names.len() - 2];
                if last <= end && (is_newest || start == 0) {
                    continue; // The log's end is lost like any torn tail, a whole file refused.
                }
                let mut bytes = whole.clone();
                bytes[start..end].fill(filler);
                let damaged = fs.after_kill();
                damaged.replace(&path(name), bytes).unwrap();
                let what = format!("{name}, {size} bytes at {start}");
                costs[check_contained(&damaged, &truth, &what) as usize] += 1;
            }
        }
    }
    assert!(0 < costs[0] && 0 < costs[1], "{costs:?}");
}

#[test]
fn a_damaged_entry_costs_its_group_what_follows_it_and_no_other_group_anything() {
    let fs = sample(3);
    let name = &segments(&fs)[0];
    flip_entry(&fs, name, &entry(group(1), 1, 2, 100));
    let log = open(&fs, small()).unwrap();
    let lost = Lost { to: at(1, 5), hard_state_known: true };
    assert_eq!(log.report().lost, [LostGroup { group: group(1), from: 2, lost }]);
    let [damage] = &log.report().damages[..] else { panic!("{:?}", log.report()) };
    assert_eq!((damage.segment, &damage.groups[..]), (1, &[group(1)][..]));
    let found = log.group(group(1)).unwrap();
    assert_eq!((found.last, found.lost), (Some(at(1, 1)), Some(lost)));
    assert_eq!((term(&log), log.group(group(2)).unwrap().lost), (3, None));
    // The note outlives starts, and goes when the log is as long as it was.
    drop(log);
    let log = open(&fs.after_crash(0), small()).unwrap();
    assert_eq!((&log.report().lost[..], log.group(group(1)).unwrap().lost), (&[][..], Some(lost)));
    write(&log, append(group(1), 1, 2..5, 100)).unwrap();
    assert_eq!(log.group(group(1)).unwrap().lost, Some(lost));
    write(&log, append(group(1), 1, 5..6, 100)).unwrap();
    assert_eq!(log.group(group(1)).unwrap().lost, None);
}

#[test]
fn a_loss_that_is_noted_in_the_next_segment_stays_noted() {
    // At some of these lengths the segment has no room left for the note.
    for length in (0..3500).step_by(20) {
        let fs = MemoryFs::new();
        let log = open(&fs, small()).unwrap();
        write(&log, append(group(1), 1, 0..3, 100)).unwrap();
        write(&log, append(group(2), 1, 0..1, length)).unwrap();
        drop(log);
        flip_entry(&fs, &segments(&fs)[0], &entry(group(1), 1, 1, 100));
        let log = open(&fs, small()).unwrap();
        let before = picture(&log, group(1));
        assert_eq!(before.entries.len(), 1);
        // More than the segment has room for: the next one's opening repeats the note.
        write(&log, append(group(2), 1, 1..2, 3000)).unwrap();
        drop(log);
        let log = open(&fs.after_crash(0), small()).unwrap();
        assert_eq!(picture(&log, group(1)), before, "length {length}");
        assert_eq!(read_all(&log, group(2)).len(), 2, "length {length}");
    }
}

#[test]
fn a_damaged_entry_that_was_purged_or_overwritten_since_costs_nothing() {
    let fs = sample(3);
    let log = open(&fs, small()).unwrap();
    write(&log, LogWrite::Truncate { group: group(1), from: 4 }).unwrap();
    write(&log, append(group(1), 2, 4..6, 30)).unwrap();
    write(&log, LogWrite::Purge { group: group(1), up_to: at(1, 2) }).unwrap();
    drop(log);
    let name = &segments(&fs)[0];
    flip_entry(&fs, name, &entry(group(1), 1, 2, 100));
    flip_entry(&fs, name, &entry(group(1), 1, 5, 100));
    let log = open(&fs, small()).unwrap();
    assert_eq!((log.report().damages.len(), &log.report().lost[..]), (2, &[][..]));
    assert_eq!(log.group(group(1)).unwrap().last, Some(at(2, 5)));
    assert_eq!(read_all(&log, group(1)).len(), 3);
}

#[test]
fn votes_of_two_lost_frames_are_not_trusted() {
    let fs = MemoryFs::new();
    let log = open(&fs, small()).unwrap();
    for term in 1..6 {
        write(&log, vote(group(1), term, 1)).unwrap();
        write(&log, vote(group(2), term, 1)).unwrap();
    }
    write(&log, vote(group(3), 1, 1)).unwrap();
    write(&log, vote(group(1), 9, 1)).unwrap();
    drop(log);
    let name = &segments(&fs)[0];
    let all = frames(&fs.bytes(&path(name)).unwrap());
    // The frames of the fifth term: the second one is known from its echo, the first one is not.
    for (start, _) in &all[9..11] {
        fs.flip(&path(name), start + 26, 1).unwrap();
    }
    let log = open(&fs, small()).unwrap();
    let hard_state_known =
        |number| log.group(group(number)).unwrap().lost.is_none_or(|lost| lost.hard_state_known);
    // Group 1 voted again since; group 2's last vote is in the echo of the frame behind; group 3
    // was met for the first time later, but may have been there before.
    assert!(hard_state_known(1), "{:?}", log.report());
    assert!(hard_state_known(3), "{:?}", log.report());
    assert!(!hard_state_known(2) || term(&log) == 5, "{:?}", log.report());
    assert!(log.unknown_groups_may_be_lost());
}

/// Damages the content of an entry where it first stands.
fn flip_entry(fs: &MemoryFs, name: &str, entry: &LogEntry) {
    let bytes = fs.bytes(&path(name)).unwrap();
    let content = &entry.content;
    let found = bytes.windows(content.len()).position(|window| window == content).unwrap();
    fs.flip(&path(name), found, 1).unwrap();
}

/// The frames of a segment, by walking their lengths.
pub(super) fn frames(bytes: &[u8]) -> Vec<(usize, usize)> {
    let mut frames = vec![];
    let mut at = 64;
    while bytes.get(at + 4..at + 8) == Some(b"AHfr") {
        let length = u32::from_le_bytes(bytes[at + 8..at + 12].try_into().unwrap()) as usize;
        frames.push((at, at + 24 + length));
        at += 24 + length;
    }
    frames
}

#[test]
fn a_tail_torn_at_any_byte_gives_exactly_the_earlier_batches() {
    let fs = MemoryFs::new();
    let log = open(&fs, small()).unwrap();
    write(&log, append(group(1), 1, 0..5, 60)).unwrap();
    write(&log, append(group(1), 1, 5..9, 60)).unwrap();
    // The log goes on in another world; this one was killed here.
    let fs = fs.after_kill();
    let name = segments(&fs)[0].clone();
    let whole = fs.bytes(&path(&name)).unwrap();
    let (start, end) = *frames(&whole).last().unwrap();
    for cut in start..end {
        for filler in [0, 0xa5] {
            let torn = fs.after_kill();
            let mut bytes = whole.clone();
            bytes[cut..end].fill(filler);
            if bytes == whole {
                continue;
            }
            torn.replace(&path(&name), bytes).unwrap();
            let log = open(&torn, small()).unwrap();
            assert_eq!(log.group(group(1)).unwrap().last, Some(at(1, 4)), "cut at {cut}");
            // What is written over the torn bytes stands, and nothing of them comes back.
            write(&log, append(group(1), 2, 5..6, 20)).unwrap();
            drop(log);
            let log = open(&torn.after_crash(0), small()).unwrap();
            assert_eq!(read_all(&log, group(1)).len(), 6);
            assert_eq!(log.group(group(1)).unwrap().last, Some(at(2, 5)));
        }
    }
}

#[test]
fn random_bytes_are_never_taken_for_a_log() {
    let fs = sample(2);
    let name = &segments(&fs)[0];
    let whole = fs.bytes(&path(name)).unwrap();
    let mut state = 0x1234_5678_9abc_def1_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..500 {
        let broken = fs.after_kill();
        let mut bytes = whole.clone();
        let from = usize::try_from(random() % 600).unwrap();
        let count = usize::try_from(random() % 300).unwrap();
        for byte in &mut bytes[from..from + count] {
            *byte = random().to_le_bytes()[0];
        }
        broken.replace(&path(name), bytes).unwrap();
        // Anything but a panic, and nothing invented.
        if let Ok(log) = open(&broken, small()) {
            let entries = read_all(&log, group(1));
            assert!(
                entries.iter().eq((0..)
                    .map(|at| entry(group(1), 1, at, 100))
                    .take(entries.len())
                    .collect::<Vec<_>>()
                    .iter())
            );
            assert!(term(&log) <= 2);
        }
    }
}

#[test]
fn damage_behind_an_open_log_is_found_when_it_is_read() {
    let fs = MemoryFs::new();
    let log = open(&fs, LogConfig { recent_bytes_max: 0, ..small() }).unwrap();
    write(&log, append(group(1), 1, 0..3, 100)).unwrap();
    // Contents are let go at the next append.
    write(&log, append(group(2), 1, 0..1, 100)).unwrap();
    let name = &segments(&fs)[0];
    let bytes = fs.bytes(&path(name)).unwrap();
    let content = entry(group(1), 1, 1, 100).content;
    let found = bytes.windows(content.len()).position(|window| window == content).unwrap();
    fs.flip(&path(name), found + 50, 4).unwrap();
    assert_eq!(log.read(group(1), 0..3, usize::MAX).unwrap().len(), 1);
    let Err(error) = log.read(group(1), 1..3, usize::MAX) else { panic!("read") };
    assert!(error.to_string().contains("entry 1"), "{error}");
    assert!(error.to_string().contains(name.as_str()), "{error}");
    assert_eq!(log.read(group(1), 2..3, 0).unwrap(), vec![entry(group(1), 1, 2, 100)]);
}
