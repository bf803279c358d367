//! No space left: appends are refused, votes and purges go on, and it heals.

use super::*;

#[test]
fn a_full_disk_refuses_appends_and_takes_votes_and_heals() {
    let fs = MemoryFs::new();
    let log = open(&fs, LogConfig { segment_bytes: 32 << 10, ..small() }).unwrap();
    fs.set_space(Some(1000));
    let a = group(1);
    let mut next = 0;
    loop {
        match write(&log, append(a, 1, next..next + 1, 500)) {
            Ok(()) => next += 1,
            Err(LogError::NoSpace) => break,
            Err(error) => panic!("{error}"),
        }
        assert!(next < 1000);
    }
    assert!(30 < next, "the rest of the segment is used: {next}");
    // Refused without a trace.
    assert_eq!(log.group(a).unwrap().last, Some(at(1, next - 1)));
    assert!(matches!(write(&log, append(a, 1, next..next + 1, 5000)), Err(LogError::NoSpace)));
    for term in 2..12 {
        write(&log, vote(a, term, 1)).unwrap();
    }
    write(&log, LogWrite::Truncate { group: a, from: next - 1 }).unwrap();
    write(&log, LogWrite::Purge { group: a, up_to: at(1, 3) }).unwrap();
    // At this point a crash leaves a log that opens, with all of it.
    let crashed = open(&fs.after_crash(0), small()).unwrap();
    let found = crashed.group(a).unwrap();
    assert_eq!((found.purged, found.last), (Some(at(1, 3)), Some(at(1, next - 2))));
    assert_eq!(found.hard_state.unwrap().term, 11);
    // Space comes back.
    fs.set_space(Some(1 << 20));
    for index in next - 1..next + 200 {
        write(&log, append(a, 2, index..index + 1, 500)).unwrap();
    }
    drop(log);
    let log = open(&fs.after_crash(0), small()).unwrap();
    assert_eq!(log.group(a).unwrap().last, Some(at(2, next + 199)));
}

#[test]
fn purging_frees_the_space_that_the_log_itself_has_taken() {
    let fs = MemoryFs::new();
    fs.set_space(Some(200 << 10));
    let log = open(&fs, LogConfig { segment_bytes: 32 << 10, ..small() }).unwrap();
    let a = group(1);
    let mut next = 0;
    while write(&log, append(a, 1, next..next + 1, 700)).is_ok() {
        next += 1;
        assert!(next < 1000);
    }
    for _ in 0..5 {
        write(&log, LogWrite::Purge { group: a, up_to: at(1, next - 1) }).unwrap();
        let before = next;
        while write(&log, append(a, 1, next..next + 1, 700)).is_ok() {
            next += 1;
            assert!(next < before + 1000);
        }
        assert!(before + 50 < next, "{before} to {next}");
        let crashed = open(&fs.after_crash(3), small()).unwrap();
        assert_eq!(crashed.group(a).unwrap().last, Some(at(1, next - 1)));
    }
}

#[test]
fn the_logs_own_bound_works_like_a_full_disk() {
    let fs = MemoryFs::new();
    let config = LogConfig { disk_bytes_max: 16 << 10, ..small() };
    let log = open(&fs, config).unwrap();
    let mut next = 0;
    while write(&log, append(group(1), 1, next..next + 1, 300)).is_ok() {
        next += 1;
        assert!(log.stats().disk_bytes <= 16 << 10);
    }
    assert!(20 < next, "{next}");
    assert!(matches!(
        write(&log, append(group(1), 1, next..next + 1, 300)),
        Err(LogError::NoSpace)
    ));
    write(&log, vote(group(1), 1, 1)).unwrap();
    assert_eq!(log.largest_groups(1), vec![(group(1), next * 300)]);
}

#[test]
fn an_entry_larger_than_a_segment_gets_a_segment_of_its_size() {
    let fs = MemoryFs::new();
    let log = open(&fs, small()).unwrap();
    let a = group(1);
    for (index, length) in (0..).zip([10, 100_000, 10, 50_000, 3000, 200_000]) {
        write(&log, append(a, 1, index..index + 1, length)).unwrap();
        let crashed = open(&fs.after_crash(0), small()).unwrap();
        assert_eq!(crashed.read(a, index..index + 1, 0).unwrap()[0], entry(a, 1, index, length));
    }
    let many = (0..3000).map(|shard| vote(group(shard + 10), 1, 1));
    many.for_each(|change| write(&log, change).unwrap());
    write(&log, append(a, 1, 6..7, 5000)).unwrap();
    drop(log);
    let log = open(&fs.after_crash(0), small()).unwrap();
    assert_eq!(log.groups().len(), 3001);
    assert_eq!(log.group(a).unwrap().last, Some(at(1, 6)));
}
