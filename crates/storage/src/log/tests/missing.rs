//! Files that are cut, gone, foreign or partly unreadable: every start succeeds, and knows of each
//! group what it may have lost; only files that no disk can bring about are refused.

use super::damage::{Cost, check_contained, frames, nothing_copied, path, sample, scripted};
use super::*;
use crate::fs::{FileSystem, RealFs};
use crate::log::segment::{DOUBT_NAME, IDENTITY_NAME};

/// Names of the segments that hold a frame, and of the others.
fn used_and_prepared(fs: &MemoryFs) -> (Vec<String>, Vec<String>) {
    segments(fs).into_iter().partition(|name| !frames(&fs.bytes(&path(name)).unwrap()).is_empty())
}

/// What losing a segment costs at most: only the end of the log can hold votes that stand nowhere
/// else.
fn at_most(name: &String, used: &[String]) -> Cost {
    if used.last() == Some(name) { Cost::Votes } else { Cost::Entries }
}

#[test]
fn a_file_cut_at_any_length_costs_no_more_than_what_was_behind_the_cut() {
    for config in [crate::log::tests::crash::config(), nothing_copied()] {
        let (fs, truth) = scripted(config);
        let (used, prepared) = used_and_prepared(&fs);
        let mut costs = [0; 3];
        for name in used.iter().chain(&prepared) {
            let whole = fs.bytes(&path(name)).unwrap();
            for length in 0..whole.len() {
                // Opened each time; opened again and made good for some.
                let is_thorough = long() || length % 61 == 0;
                let cut = fs.after_kill();
                cut.replace(&path(name), whole[..length].to_vec()).unwrap();
                let what = format!("{name} cut to {length}");
                let cost = if is_thorough {
                    check_contained(&cut, &truth, &what)
                } else {
                    cost_of_opening(&cut, &truth, &what)
                };
                if prepared.contains(name) {
                    assert_eq!(cost, Cost::Nothing, "{what}");
                } else {
                    assert!(cost <= at_most(name, &used), "{what}: {cost:?}");
                }
                costs[cost as usize] += 1;
            }
        }
        assert!(0 < costs[2] && (prepared.is_empty() || 0 < costs[0]), "{costs:?}");
        assert!(used.len() == 1 || 0 < costs[1], "{costs:?}");
    }
}

/// As [`check_contained`], of one start only.
fn cost_of_opening(
    fs: &MemoryFs,
    truth: &std::collections::BTreeMap<GroupId, super::crash::Picture>,
    what: &str,
) -> Cost {
    let config = super::crash::config();
    let log = open(fs, config).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    let mut cost = Cost::Nothing;
    for (group, truth) in truth {
        let found = super::crash::picture(&log, *group);
        if found == *truth {
            continue;
        }
        let lost = found.found.and_then(|found| found.lost);
        let this = match lost {
            Some(lost) if lost.hard_state_known => {
                assert!(truth.found.unwrap().last <= Some(lost.to), "{what}: {group:?}");
                assert_eq!(found.found.unwrap().hard_state, truth.found.unwrap().hard_state);
                Cost::Entries
            }
            Some(_) => Cost::Votes,
            None => {
                assert!(found.found.is_none() && log.unknown_groups_may_be_lost(), "{what}");
                Cost::Votes
            }
        };
        if cost < this {
            cost = this;
        }
    }
    cost
}

#[test]
fn every_missing_segment_and_every_two_of_them_are_contained() {
    let (fs, truth) = scripted(nothing_copied());
    let (used, prepared) = used_and_prepared(&fs);
    assert!(3 < used.len() && prepared.len() < 2, "{used:?}, {prepared:?}");
    let all: Vec<&String> = used.iter().chain(&prepared).collect();
    for (at, first) in all.iter().enumerate() {
        for second in &all[at..] {
            let lost = fs.after_kill();
            lost.remove(&path(first)).unwrap();
            if first != second {
                lost.remove(&path(second)).unwrap();
            }
            let what = format!("without {first} and {second}");
            let cost = check_contained(&lost, &truth, &what);
            let both = [first, second];
            let highest = both.iter().map(|name| {
                if prepared.contains(name) { Cost::Nothing } else { at_most(name, &used) }
            });
            let highest = highest.fold(Cost::Nothing, |a, b| if a < b { b } else { a });
            assert!(cost <= highest, "{what}: {cost:?}");
            let expected_more = both.iter().any(|name| used.last() == Some(**name));
            assert_eq!(cost == Cost::Votes, expected_more, "{what}");
        }
    }
}

#[test]
fn sectors_that_cannot_be_read_are_contained_and_the_log_goes_on_over_them() {
    let (fs, truth) = scripted(nothing_copied());
    let (used, prepared) = used_and_prepared(&fs);
    let mut costs = [0; 3];
    for name in used.iter().chain(&prepared) {
        for start in (0..4096).step_by(512) {
            let bad = fs.after_kill();
            bad.make_unreadable(&path(name), start..start + 512).unwrap();
            let cost = check_contained(&bad, &truth, &format!("{name}, unreadable at {start}"));
            assert!(!prepared.contains(name) || cost == Cost::Nothing, "{name} at {start}");
            costs[cost as usize] += 1;
        }
    }
    assert!(costs.iter().all(|count| 0 < *count), "{costs:?}");
}

#[test]
fn a_log_of_which_no_segment_is_left_begins_again_and_remembers_that_it_has_forgotten() {
    for readable_id in [true, false] {
        let fs = sample(50);
        for name in segments(&fs) {
            fs.remove(&path(&name)).unwrap();
        }
        fs.sync_dir(Path::new(DIR)).unwrap();
        if !readable_id {
            fs.replace(&path(IDENTITY_NAME), vec![0; 24]).unwrap();
        }
        // Cut off at each call, each start still knows.
        let calls = {
            let whole = fs.after_kill();
            drop(open(&whole, small()).unwrap());
            whole.calls()
        };
        for call in 0..calls {
            let cut = fs.after_kill();
            cut.fail_at(call, crate::fs::Fault::PowerCut);
            drop(open(&cut, small()));
            for seed in 0..4 {
                let log = open(&cut.after_crash(seed), small()).unwrap();
                assert!(log.unknown_groups_may_be_lost(), "cut at {call}, seed {seed}");
            }
        }
        let log = open(&fs, small()).unwrap();
        assert!(log.report().unknown_groups_may_be_lost);
        assert_eq!(log.group(group(1)), None);
        drop(log);
        let again = open(&fs.after_crash(0), small()).unwrap();
        assert!(again.unknown_groups_may_be_lost(), "nobody has been told yet");
        drop(again);
        let log = open(&fs, small()).unwrap();
        write(&log, append(group(1), 1, 0..2, 50)).unwrap();
        log.unknown_groups_are_noted();
        drop(log);
        let log = open(&fs.after_crash(0), small()).unwrap();
        assert!(!log.unknown_groups_may_be_lost());
        assert_eq!(read_all(&log, group(1)).len(), 2);
    }
}

#[test]
fn segments_that_hold_nothing_readable_are_put_aside_and_not_removed() {
    let fs = sample(3);
    let names = segments(&fs);
    for name in &names {
        fs.replace(&path(name), vec![0xa5; 4096]).unwrap();
    }
    let log = open(&fs, small()).unwrap();
    assert!(log.unknown_groups_may_be_lost());
    drop(log);
    for name in names {
        assert_eq!(fs.bytes(&path(&(name + ".unreadable"))).unwrap(), vec![0xa5; 4096]);
    }
}

#[test]
fn an_empty_directory_is_a_new_log_only_if_nothing_says_otherwise() {
    let open_known = |fs: &MemoryFs, must_exist| {
        let fs = Arc::new(fs.clone());
        SegmentedLog::open_known(fs, Path::new(DIR), small(), must_exist).unwrap()
    };
    let fs = MemoryFs::new();
    assert!(!open_known(&fs, false).unknown_groups_may_be_lost());
    assert!(!open_known(&fs, true).unknown_groups_may_be_lost(), "it is there");
    let emptied = MemoryFs::new();
    assert!(open_known(&emptied, true).unknown_groups_may_be_lost());
    assert!(emptied.bytes(&path(DOUBT_NAME)).is_ok());
}

#[test]
fn the_identity_is_made_again_from_segments_that_agree_on_it() {
    let (fs, truth) = scripted(nothing_copied());
    let length = fs.bytes(&path(IDENTITY_NAME)).unwrap().len();
    for offset in 0..=length {
        let damaged = fs.after_kill();
        if offset == length {
            damaged.remove(&path(IDENTITY_NAME)).unwrap();
        } else {
            damaged.flip(&path(IDENTITY_NAME), offset, 1).unwrap();
        }
        let what = format!("identity damaged at {offset}");
        assert_eq!(check_contained(&damaged, &truth, &what), Cost::Nothing);
        let again = open(&damaged.after_crash(0), small()).unwrap();
        assert_eq!(again.report(), &Default::default(), "{what}");
    }
}

#[test]
fn segments_of_another_log_or_place_are_refused() {
    let fs = sample(50);
    let (used, _) = used_and_prepared(&fs);
    let misplaced = fs.after_kill();
    let bytes = fs.bytes(&path(&used[0])).unwrap();
    misplaced.replace(&path(&used[1]), bytes.clone()).unwrap();
    let before = misplaced.after_kill();
    assert!(matches!(open(&misplaced, small()), Err(OpenError::Damaged { segment: 2, .. })));
    for name in segments(&before) {
        let (now, then) = (misplaced.bytes(&path(&name)), before.bytes(&path(&name)));
        assert_eq!(now.unwrap(), then.unwrap(), "a refused start changes nothing");
    }
    // A log of its own, with its own id, among ours.
    let other = RealFs.unique_id().unwrap();
    let mut foreign = bytes;
    let header = crate::log::segment::header(other, 1, foreign.len() as u64);
    foreign[..header.len()].copy_from_slice(&header);
    fs.replace(&path(&used[0]), foreign).unwrap();
    assert!(matches!(open(&fs, small()), Err(OpenError::Damaged { segment: 1, .. })));
    fs.remove(&path(IDENTITY_NAME)).unwrap();
    assert!(matches!(open(&fs, small()), Err(OpenError::Identity)));
}
