//! Damaged, cut and missing files: an error, or exactly what a crash would have left.

use std::path::PathBuf;

use super::*;
use crate::fs::FileSystem;

/// A closed log of a few segments, the groups' entries, and its directory.
fn sample(rounds: u64) -> MemoryFs {
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

fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

fn term(log: &SegmentedLog) -> u64 {
    log.group(group(2)).and_then(|found| found.hard_state).map_or(0, |state| state.term)
}

#[test]
fn every_flipped_byte_is_an_error_or_harmless() {
    let fs = sample(30);
    let names = segments(&fs);
    assert!(2 < names.len(), "{names:?}");
    for name in names.iter().map(String::as_str).chain(["identity"]) {
        let bytes = fs.bytes(&path(name)).unwrap();
        for offset in 0..bytes.len() {
            let damaged = fs.after_kill();
            damaged.flip(&path(name), offset, 1 << (offset % 8)).unwrap();
            match open(&damaged, small()) {
                // Unused space, or the marker that ends a closed log: nothing is missing.
                Ok(log) => {
                    assert_eq!(term(&log), 30, "{name} at {offset}");
                    assert_eq!(read_all(&log, group(1)).len(), 60, "{name} at {offset}");
                }
                Err(OpenError::Damaged { segment, offset: place, .. }) => {
                    assert!(name.ends_with(&format!("{segment:x}.segment")), "{name}: {segment}");
                    assert!(place <= offset as u64 + 8, "{name}: {place}, not {offset}");
                }
                Err(OpenError::Identity) => assert_eq!(name, "identity"),
                Err(error) => panic!("{name} at {offset}: {error}"),
            }
        }
    }
}

#[test]
fn a_damaged_frame_names_the_groups_in_it() {
    let fs = sample(3);
    let name = &segments(&fs)[0];
    let bytes = fs.bytes(&path(name)).unwrap();
    let content = entry(group(1), 1, 2, 100).content;
    let found = bytes.windows(content.len()).position(|window| window == content).unwrap();
    fs.flip(&path(name), found, 1).unwrap();
    let Err(error) = open(&fs, small()) else { panic!("opened") };
    let OpenError::Damaged { segment: 1, offset, groups, .. } = &error else {
        panic!("{error:?}");
    };
    assert!(*offset < found as u64 && 64 < *offset);
    assert!(groups.contains(&group(1)), "{error}");
}

/// The frames of a segment, by walking their lengths.
fn frames(bytes: &[u8]) -> Vec<(usize, usize)> {
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
fn a_file_cut_at_any_length_is_an_error() {
    let fs = sample(30);
    let names = segments(&fs);
    let last = names.last().unwrap();
    for name in &names {
        let whole = fs.bytes(&path(name)).unwrap();
        for length in (0..whole.len()).step_by(7).chain([whole.len() - 1]) {
            let cut = fs.after_kill();
            cut.replace(&path(name), whole[..length].to_vec()).unwrap();
            match open(&cut, small()) {
                // The prepared segment holds nothing yet: it is made again.
                Ok(log) => {
                    assert_eq!(name, last, "cut to {length}: {names:?}");
                    assert_eq!((term(&log), read_all(&log, group(1)).len()), (30, 60));
                }
                Err(OpenError::Damaged { .. }) => {}
                Err(error) => panic!("{name} cut to {length}: {error}"),
            }
        }
    }
}

#[test]
fn every_missing_segment_is_an_error() {
    let fs = sample(50);
    let names = segments(&fs);
    assert!(4 < names.len(), "{names:?}");
    let used: Vec<&String> =
        names.iter().filter(|name| !frames(&fs.bytes(&path(name)).unwrap()).is_empty()).collect();
    for name in &used {
        let lost = fs.after_kill();
        lost.remove(&path(name)).unwrap();
        let opened = open(&lost, small());
        assert!(
            matches!(opened, Err(OpenError::Missing { .. } | OpenError::Damaged { .. })),
            "{name} is missing and the log opens"
        );
    }
    let lost = fs.after_kill();
    for name in &names {
        lost.remove(&path(name)).unwrap();
    }
    assert!(matches!(open(&lost, small()), Err(OpenError::Missing { .. })));
    let lost = fs.after_kill();
    lost.remove(&path("identity")).unwrap();
    assert!(matches!(open(&lost, small()), Err(OpenError::Identity)));
    let foreign = sample(50);
    let other = MemoryFs::new();
    drop(open(&other, small()).unwrap());
    let bytes = fs.bytes(&path(used[0])).unwrap();
    foreign.replace(&path(used[1]), bytes).unwrap();
    assert!(matches!(open(&foreign, small()), Err(OpenError::Damaged { segment: 2, .. })));
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
