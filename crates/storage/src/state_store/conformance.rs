//! What every [`StateStore`] must do, as a suite to run against each implementation.
//!
//! It panics with the broken rule. Not here: what survives a crash or a reopening, for which each
//! implementation has its own tests.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Batch, KEY_BYTES_MAX, StateError, StateStore, VALUE_BYTES_MAX};

/// Lengths around the points where an implementation may change how it stores a value, in bytes.
pub const EDGE_LENGTHS: [usize; 9] = [0, 1, 300, 2047, 2048, 2049, 4096, 10_000, 1 << 20];

/// A row as the suite writes and collects it.
pub type Row = (Vec<u8>, Vec<u8>);

/// Runs the suite. `open` gives an empty store at each call.
pub fn run(open: impl Fn() -> Box<dyn StateStore>) {
    values_of_all_lengths_come_back(&*open());
    long_and_short_values_replace_each_other(&*open());
    later_rows_of_a_batch_win(&*open());
    scans_keep_to_their_range(&*open());
    visitors_may_read_write_and_stop(&*open());
    a_scan_overtaken_by_writes_shows_whole_rows(&*open());
    rows_that_are_too_long_change_nothing(&*open());
    clear_removes_a_range_and_nothing_else(&*open());
    readers_beside_a_writer_see_whole_values(&*open());
    checkpoints_are_counted(&*open());
}

/// A value of a given length, each of whose bytes depends on `seed` and its place.
pub fn value(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    out
}

/// All rows of a range.
///
/// # Panics
/// If the store fails.
pub fn rows(store: &dyn StateStore, start: &[u8], end: &[u8]) -> Vec<Row> {
    let mut found = Vec::new();
    store
        .scan(start..end, &mut |key, value| {
            found.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })
        .expect("a scan succeeds");
    found
}

/// Commits one batch.
///
/// # Panics
/// If the store fails.
pub fn commit(store: &dyn StateStore, rows: &[(&[u8], Option<&[u8]>)]) {
    let rows = rows.iter().map(|(key, value)| (key.to_vec(), value.map(<[u8]>::to_vec))).collect();
    store.commit(Batch { rows }).expect("a commit succeeds");
}

fn get(store: &dyn StateStore, key: &[u8]) -> Option<Vec<u8>> {
    store.get(key).expect("a get succeeds")
}

const END: &[u8] = &[0xff; KEY_BYTES_MAX + 1];

fn values_of_all_lengths_come_back(store: &dyn StateStore) {
    assert_eq!(get(store, b"k"), None, "a new store is empty");
    assert_eq!(rows(store, b"", END), [], "a new store is empty");
    let longest_key = [7; KEY_BYTES_MAX];
    let mut expected: Vec<Row> = (0u8..).zip(EDGE_LENGTHS).map(edge_row).collect();
    expected.insert(0, (Vec::new(), b"the empty key".to_vec()));
    expected.push((longest_key.to_vec(), value(99, 5000)));
    let batch = expected.iter().map(|(key, value)| (key.as_slice(), Some(value.as_slice())));
    commit(store, &batch.collect::<Vec<_>>());
    for (key, value) in &expected {
        assert_eq!(get(store, key).as_deref(), Some(value.as_slice()), "key {key:?}");
    }
    expected.sort();
    assert!(rows(store, b"", END) == expected, "a scan gives all rows in order");

    fn edge_row((number, length): (u8, usize)) -> Row {
        (vec![b'k', number], value(u64::from(number), length))
    }
}

fn long_and_short_values_replace_each_other(store: &dyn StateStore) {
    let neighbours: [Row; 2] = [(b"j".to_vec(), value(1, 3000)), (b"l".to_vec(), value(2, 20))];
    for (key, value) in &neighbours {
        commit(store, &[(key, Some(value))]);
    }
    for (round, before) in (0u64..).zip(EDGE_LENGTHS) {
        for after in EDGE_LENGTHS {
            commit(store, &[(b"k", Some(&value(round, before)))]);
            let replaced = value(round + 100, after);
            commit(store, &[(b"k", Some(&replaced))]);
            assert!(get(store, b"k").as_ref() == Some(&replaced), "{before} -> {after}");
            let [first, last] = neighbours.clone();
            let expected = [first, (b"k".to_vec(), replaced), last];
            assert!(rows(store, b"", END) == expected, "{before} -> {after}: scan");
        }
        commit(store, &[(b"k", None)]);
        assert_eq!(get(store, b"k"), None, "a removed row is gone");
        assert!(rows(store, b"", END) == neighbours, "a removed row is gone from scans");
    }
}

fn later_rows_of_a_batch_win(store: &dyn StateStore) {
    let (long, short) = (value(1, 9000), value(2, 10));
    commit(store, &[(b"a", Some(&long)), (b"a", Some(&short))]);
    commit(store, &[(b"b", Some(&short)), (b"b", Some(&long))]);
    commit(store, &[(b"c", Some(&long)), (b"c", None)]);
    commit(store, &[(b"d", None), (b"d", Some(&long)), (b"d", None), (b"d", Some(&short))]);
    commit(store, &[]);
    let expected =
        [(b"a".to_vec(), short.clone()), (b"b".to_vec(), long.clone()), (b"d".to_vec(), short)];
    assert!(rows(store, b"", END) == expected, "the last row of a key wins");
    commit(store, &[(b"b", None), (b"b", Some(&long)), (b"a", None), (b"d", None)]);
    assert!(rows(store, b"", END) == [(b"b".to_vec(), long)], "on rows that exist too");
}

fn scans_keep_to_their_range(store: &dyn StateStore) {
    let keys: [&[u8]; 9] =
        [b"", b"\0", b"\0\0", b"\x01", b"a", b"a\0", b"ab", b"\xff", b"\xff\xff"];
    for (seed, key) in (0u64..).zip(keys) {
        let length = if seed.is_multiple_of(2) { 3000 } else { 3 };
        commit(store, &[(key, Some(&value(seed, length)))]);
    }
    let bounds: Vec<&[u8]> = keys.iter().copied().chain([b"b".as_slice(), END]).collect();
    for start in &bounds {
        for end in &bounds {
            let found: Vec<Vec<u8>> =
                rows(store, start, end).into_iter().map(|(key, _)| key).collect();
            let expected: Vec<&[u8]> =
                keys.iter().copied().filter(|key| start <= key && key < end).collect();
            assert_eq!(found, expected, "{start:?}..{end:?}");
        }
    }
}

fn visitors_may_read_write_and_stop(store: &dyn StateStore) {
    for number in 0..600u16 {
        commit(store, &[(&number.to_be_bytes(), Some(&value(u64::from(number), 30)))]);
    }
    let mut visited = 0u16;
    let scanned = store.scan(b""..END, &mut |key, value| {
        assert_eq!(get(store, key).as_deref(), Some(value), "a visitor can read");
        commit(store, &[(key, None)]);
        visited += 1;
        if visited == 400 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    scanned.expect("a scan succeeds");
    assert_eq!(visited, 400, "a scan ends where its visitor says");
    assert_eq!(rows(store, b"", END).len(), 200, "a visitor can write");
}

fn a_scan_overtaken_by_writes_shows_whole_rows(store: &dyn StateStore) {
    let write = |round: u64| {
        for key in 0..12u8 {
            commit(store, &[(&[key], Some(&value(round, 5000)))]);
        }
        store.checkpoint().expect("a checkpoint succeeds");
    };
    write(1);
    let mut visited = Vec::new();
    let scanned = store.scan(b""..END, &mut |key, found| {
        assert!(found == value(1, 5000) || found == value(2, 5000), "row {key:?} is torn");
        if visited.is_empty() {
            write(2);
        }
        visited.extend_from_slice(key);
        ControlFlow::Continue(())
    });
    scanned.expect("a scan succeeds");
    assert_eq!(visited, (0..12).collect::<Vec<u8>>(), "rows that are rewritten never vanish");
}

fn rows_that_are_too_long_change_nothing(store: &dyn StateStore) {
    let too_long =
        [(vec![1; KEY_BYTES_MAX + 1], Vec::new()), (vec![1], vec![0; VALUE_BYTES_MAX + 1])];
    for (key, value) in too_long {
        let rows = vec![(b"a".to_vec(), Some(b"1".to_vec())), (key, Some(value))];
        let refused = store.commit(Batch { rows });
        assert!(matches!(refused, Err(StateError::TooLong { .. })), "{refused:?}");
    }
    assert_eq!(rows(store, b"", END), [], "a refused batch has no effect");
    commit(store, &[(b"a", Some(b"1"))]);
    assert_eq!(get(store, b"a").as_deref(), Some(b"1".as_slice()), "and does no harm");
}

fn clear_removes_a_range_and_nothing_else(store: &dyn StateStore) {
    for number in 0..1300u16 {
        let length = if number.is_multiple_of(100) { 2500 } else { 20 };
        commit(store, &[(&number.to_be_bytes(), Some(&value(u64::from(number), length)))]);
    }
    let (start, end) = (50u16.to_be_bytes(), 1250u16.to_be_bytes());
    assert_eq!(store.clear(&end..&start).expect("a clear succeeds"), 0, "a reversed range");
    assert_eq!(store.clear(&start..&end).expect("a clear succeeds"), 1200);
    assert_eq!(store.clear(&start..&end).expect("a clear succeeds"), 0, "again");
    let left: Vec<Row> = rows(store, b"", END);
    let expected = (0..50u16).chain(1250..1300).map(|number| {
        let length = if number.is_multiple_of(100) { 2500 } else { 20 };
        (number.to_be_bytes().to_vec(), value(u64::from(number), length))
    });
    assert!(left.into_iter().eq(expected), "rows outside the range stay as they are");
}

/// Rounds of rewriting the same rows beside the readers.
const ROUNDS: u64 = 60;

fn readers_beside_a_writer_see_whole_values(store: &dyn StateStore) {
    let keys: Vec<[u8; 2]> = (0..24u16).map(u16::to_be_bytes).collect();
    // The length changes with the round: long, short, and other long ones.
    let length = |round: u64| [9000, 10, 2049, 5000, 2048][(round % 5) as usize];
    let round_of = |bytes: &[u8]| {
        let round = u64::from_be_bytes(*bytes.first_chunk().expect("a value begins with a round"));
        let mut expected = round.to_be_bytes().to_vec();
        expected.extend_from_slice(&value(round, length(round)));
        assert!(bytes == expected, "a value of round {round} is torn");
        round
    };
    let write = |round: u64| {
        let mut content = round.to_be_bytes().to_vec();
        content.extend_from_slice(&value(round, length(round)));
        let rows = keys.iter().map(|key| (key.to_vec(), Some(content.clone()))).collect();
        store.commit(Batch { rows }).expect("a commit succeeds");
    };
    write(0);
    let done = AtomicBool::new(false);
    let done = &done;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                write(round);
            }
            done.store(true, Ordering::Release);
        });
        scope.spawn(|| {
            let mut newest = 0;
            while !done.load(Ordering::Acquire) {
                let found = rows(store, b"", END);
                assert_eq!(found.len(), keys.len(), "rows that are rewritten never vanish");
                let oldest = found.iter().map(|(_, value)| round_of(value)).min();
                assert!(Some(newest) <= oldest, "a scan went back behind an earlier read");
                newest = found.iter().map(|(_, value)| round_of(value)).max().unwrap_or(newest);
            }
        });
        let mut newest = 0;
        while !done.load(Ordering::Acquire) {
            let found = round_of(&get(store, &keys[5]).expect("the row is always there"));
            assert!(newest <= found, "a get went back behind an earlier one");
            newest = found;
        }
    });
    assert_eq!(rows(store, b"", END).iter().map(|(_, value)| round_of(value)).min(), Some(ROUNDS));
}

fn checkpoints_are_counted(store: &dyn StateStore) {
    assert_eq!(store.stats().checkpoints, 0);
    commit(store, &[(b"a", Some(b"1"))]);
    store.checkpoint().expect("a checkpoint succeeds");
    store.checkpoint().expect("a checkpoint succeeds");
    assert_eq!(store.stats().checkpoints, 2);
    assert_eq!(get(store, b"a").as_deref(), Some(b"1".as_slice()));
}
