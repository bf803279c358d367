//! Groups that never purge among groups that do.

use super::*;

#[test]
fn a_lagging_group_does_not_keep_the_log_from_shrinking() {
    let fs = MemoryFs::new();
    let config = LogConfig {
        segment_bytes: 16 << 10,
        disk_bytes_target: 96 << 10,
        copy_bytes_max: 2048,
        recent_bytes_max: 4096,
        ..small()
    };
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
