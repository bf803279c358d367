//! Groups that never purge among groups that do.

use super::*;
use crate::fs::FileSystem as _;
use crate::log_store::ReadError;

/// Live entries are copied forward soon, and read from the disk for that.
fn crowded() -> LogConfig {
    LogConfig {
        segment_bytes: 16 << 10,
        disk_bytes_target: 96 << 10,
        copy_bytes_max: 2048,
        recent_bytes_max: 4096,
        ..small()
    }
}

#[test]
fn a_lagging_group_does_not_keep_the_log_from_shrinking() {
    let fs = MemoryFs::new();
    let config = crowded();
    let log = open(&fs, config).unwrap();
    let (lagging, busy) = (group(1), group(2));
    write(&log, append(lagging, 1, 0..40, 300)).unwrap();
    write(&log, vote(lagging, 5, 5)).unwrap();
    let mut most = 0;
    for index in 0..3000 {
        write(&log, append(busy, 1, index..index + 1, 300)).unwrap();
        if index % 20 == 19 {
            write(&log, LogWrite::Purge { group: busy, up_to: at(1, index - 10) }).unwrap();
        }
        most = most.max(log.stats().disk_bytes);
    }
    assert!(most <= 160 << 10, "{most}");
    let stats = log.stats();
    assert!(stats.bytes_written < stats.bytes_given * 3 / 2, "{stats:?}");
    let log = open(&fs.after_crash(0), config).unwrap();
    let expected: Vec<LogEntry> = (0..40).map(|index| entry(lagging, 1, index, 300)).collect();
    assert_eq!(read_all(&log, lagging), expected);
    assert_eq!(log.group(lagging).unwrap().hard_state.unwrap().term, 5);
    assert_eq!(read_all(&log, busy).len(), 10);
}

#[test]
fn an_idle_log_shrinks_by_itself_after_a_purge() {
    let fs = MemoryFs::new();
    let log = open(&fs, small()).unwrap();
    write(&log, append(group(1), 1, 0..100, 300)).unwrap();
    write(&log, append(group(1), 1, 100..101, 300)).unwrap();
    assert!(30_000 < log.stats().disk_bytes);
    write(&log, LogWrite::Purge { group: group(1), up_to: at(1, 99) }).unwrap();
    log.close();
    assert!(log.stats().disk_bytes < 60_000, "{:?}", log.stats());
    assert_eq!(read_all(&log, group(1)), vec![entry(group(1), 1, 100, 300)]);
}

#[test]
fn a_group_stuck_at_twenty_thousand_entries_leaves_the_disk_bounded() {
    let fs = MemoryFs::new();
    let config = LogConfig {
        segment_bytes: 256 << 10,
        disk_bytes_target: 6 << 20,
        copy_bytes_max: 16 << 10,
        recent_bytes_max: 64 << 10,
        ..small()
    };
    let log = open(&fs, config).unwrap();
    let (stuck, busy) = (group(1), group(2));
    let mut most = 0;
    for round in 0..if long() { 2_000 } else { 400 } {
        if round < 200 {
            write(&log, append(stuck, 1, round * 100..round * 100 + 100, 100)).unwrap();
        }
        write(&log, append(busy, 1, round * 100..round * 100 + 100, 300)).unwrap();
        if round % 2 == 1 {
            let up_to = at(1, round * 100 - 50);
            write(&log, LogWrite::Purge { group: busy, up_to }).unwrap();
        }
        most = most.max(log.stats().disk_bytes);
    }
    // 2.4 MB are live; the target, and a segment or two under way.
    assert!(most <= 7 << 20, "{most}");
    let log = open(&fs.after_crash(0), config).unwrap();
    assert_eq!(read_all(&log, stuck).len(), 20_000);
}

#[test]
fn the_bytes_of_each_group_are_counted_through_every_change_and_start() {
    let fs = MemoryFs::new();
    let log = open(&fs, super::crash::config()).unwrap();
    let check = |log: &SegmentedLog| {
        let mut all = Vec::new();
        for group in log.groups() {
            let live = read_all(log, group).iter().map(|entry| entry.content.len() as u64).sum();
            assert_eq!(log.group_bytes(group), live, "{group:?}");
            all.push((group, live));
        }
        all.sort_by_key(|(group, bytes)| (std::cmp::Reverse(*bytes), *group));
        all.retain(|(_, bytes)| 0 < *bytes);
        let mut largest = log.largest_groups(usize::MAX);
        largest.retain(|(_, bytes)| 0 < *bytes);
        assert_eq!(largest, all);
    };
    for change in super::crash::script() {
        write(&log, change).unwrap();
        check(&log);
    }
    assert_eq!(log.group_bytes(group(999)), 0);
    drop(log);
    check(&open(&fs.after_crash(0), super::crash::config()).unwrap());
}

#[test]
fn segments_grow_while_few_frames_fill_them_and_shrink_again() {
    let fs = MemoryFs::new();
    let config = LogConfig { segment_bytes_max: 1 << 20, ..small() };
    let log = open(&fs, config).unwrap();
    let longest = || {
        let length = |name| fs.open(&Path::new(DIR).join(name)).unwrap().length().unwrap();
        segments(&fs).into_iter().map(length).max().unwrap()
    };
    for index in 0..2_000 {
        write(&log, append(group(1), 1, index..index + 1, 500)).unwrap();
    }
    // 512 frames of 500 bytes and a little more.
    let grown = longest();
    assert!((256 << 10..=512 << 10).contains(&grown), "{grown}");
    write(&log, LogWrite::Purge { group: group(1), up_to: at(1, 1_999) }).unwrap();
    for term in 2..30_000 {
        write(&log, vote(group(1), term, 1)).unwrap();
        if term % 100 == 0 && longest() < grown {
            return;
        }
    }
    panic!("segments of {} bytes for frames of a few", longest());
}

/// The disk spoils an entry, which is in the first segment.
fn spoil(fs: &MemoryFs, entry: &LogEntry) {
    let first = Path::new(DIR).join(segments(fs).into_iter().min().unwrap());
    let file = fs.open(&first).unwrap();
    let mut content = vec![0; usize::try_from(file.length().unwrap()).unwrap()];
    file.read_at(&mut content, 0).unwrap();
    let mut places = content.windows(entry.content.len());
    let offset = places.position(|bytes| bytes == &entry.content[..]).unwrap();
    file.write_at(&[content[offset] ^ 1], offset as u64).unwrap();
}

#[test]
fn a_damaged_entry_pins_the_log_until_its_group_purges_it() {
    let fs = MemoryFs::new();
    let config = crowded();
    let log = open(&fs, config).unwrap();
    let (idle, busy) = (group(1), group(2));
    write(&log, append(idle, 1, 0..10, 300)).unwrap();
    let mut next = 0;
    let mut run = |log: &SegmentedLog, count: u64| {
        for _ in 0..count {
            write(log, append(busy, 1, next..next + 1, 300)).unwrap();
            if next % 20 == 19 {
                write(log, LogWrite::Purge { group: busy, up_to: at(1, next - 10) }).unwrap();
            }
            next += 1;
        }
        log.stats().disk_bytes
    };
    run(&log, 20);
    assert_eq!(log.damaged_groups(), []);
    // Of a group that nobody writes to.
    spoil(&fs, &entry(idle, 1, 3, 300));
    let pinned = run(&log, 2_000);
    assert!(400 << 10 < pinned, "{pinned}: nothing is pinned");
    assert_eq!(log.damaged_groups(), [idle]);
    write(&log, LogWrite::Purge { group: idle, up_to: at(1, 2) }).unwrap();
    assert_eq!(log.damaged_groups(), [idle], "it is there still");
    write(&log, LogWrite::Purge { group: idle, up_to: at(1, 5) }).unwrap();
    assert_eq!(log.damaged_groups(), []);
    let freed = run(&log, 200);
    assert!(freed <= 200 << 10, "{freed}");
}

#[test]
fn who_looks_for_damage_reads_the_disk_and_not_the_memory() {
    let fs = MemoryFs::new();
    let log = open(&fs, small()).unwrap();
    write(&log, append(group(1), 1, 0..10, 300)).unwrap();
    spoil(&fs, &entry(group(1), 1, 3, 300));
    assert_eq!(log.read(group(1), 0..10, usize::MAX).unwrap().len(), 10);
    assert_eq!(log.read_stored(group(1), 0..10, usize::MAX).unwrap().len(), 3);
    let damaged = log.read_stored(group(1), 3..10, usize::MAX);
    assert!(matches!(damaged, Err(ReadError::Corrupt { index: 3, .. })), "{damaged:?}");
    assert_eq!(log.damaged_groups(), [group(1)]);
}
