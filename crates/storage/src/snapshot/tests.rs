use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::state_store::conformance::value;

fn temp() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn group(shard: u64) -> GroupId {
    GroupId { shard, incarnation: 3 }
}

fn header(shard: u64, index: u64) -> SnapshotHeader {
    let position = Some(LogPosition { term: 2, index });
    SnapshotHeader { format: 7, group: group(shard), position, meta: b"voters 1 2 3".to_vec() }
}

fn write(dir: &Path, header: SnapshotHeader, rows: &[SnapshotRow]) -> SnapshotFile {
    let mut writer = SnapshotStore::open(dir).unwrap().create(header).unwrap();
    for (key, value) in rows {
        writer.push(key, value).unwrap();
    }
    let file = writer.finish().unwrap();
    assert_eq!(file.bytes, fs::metadata(&file.path).unwrap().len());
    file
}

fn small_rows() -> Vec<SnapshotRow> {
    vec![(b"a".to_vec(), b"1".to_vec()), (Vec::new(), Vec::new()), (b"c".to_vec(), value(1, 40))]
}

#[track_caller]
fn read(path: &Path) -> Vec<SnapshotRow> {
    let mut reader = SnapshotReader::open(path).unwrap();
    let rows: Vec<SnapshotRow> = reader.by_ref().map(Result::unwrap).collect();
    assert_eq!(reader.verified(), Some(verify(path).unwrap()));
    rows
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn rows_come_back_in_order_whatever_their_size() {
    let dir = temp();
    let mut rows: Vec<SnapshotRow> =
        (0..2000u64).map(|n| (n.to_be_bytes().to_vec(), value(n, 200))).collect();
    rows.insert(3, (b"long".to_vec(), value(5, 1 << 20)));
    rows.insert(3, (b"just a block".to_vec(), value(5, 64 << 10)));
    rows.insert(0, (Vec::new(), Vec::new()));
    let file = write(dir.path(), header(1, 9), &rows);
    assert_eq!((file.rows, &file.header), (rows.len() as u64, &header(1, 9)));
    assert!(read(&file.path) == rows);
    assert_eq!(verify(&file.path).unwrap(), file);
    assert_eq!(reader::describe(&file.path).unwrap(), file);
}

#[test]
fn an_empty_snapshot_before_the_first_entry_is_one_too() {
    let dir = temp();
    let header = SnapshotHeader { format: 1, group: group(8), position: None, meta: Vec::new() };
    let file = write(dir.path(), header, &[]);
    assert_eq!(read(&file.path), []);
    assert_eq!(verify(&file.path).unwrap(), file);
}

#[test]
fn equal_content_has_an_equal_digest_and_other_content_another() {
    let dir = temp();
    let digest = |header, rows: &[SnapshotRow]| write(dir.path(), header, rows).digest;
    let first = digest(header(1, 9), &small_rows());
    assert_eq!(first, digest(header(1, 9), &small_rows()));
    assert_ne!(first, digest(header(1, 10), &small_rows()));
    assert_ne!(first, digest(header(1, 9), &small_rows()[1..]));
}

#[test]
fn every_changed_byte_is_an_error() {
    let dir = temp();
    let file = write(dir.path(), header(1, 9), &small_rows());
    let sound = fs::read(&file.path).unwrap();
    for place in 0..sound.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = sound.clone();
            damaged[place] ^= flip;
            fs::write(&file.path, &damaged).unwrap();
            let error = verify(&file.path).expect_err("a changed byte is noticed");
            let is_format = (8..12).contains(&place);
            assert_eq!(matches!(error, SnapshotError::UnknownFormat { .. }), is_format);
            assert_eq!(matches!(error, SnapshotError::Damaged { .. }), !is_format);
            assert!(error.to_string().contains(file.path.to_str().unwrap()), "{error}");
            // Reading row by row notices it as well, and never gives a row that was not written.
            if let Ok(reader) = SnapshotReader::open(&file.path) {
                let (good, bad): (Vec<_>, Vec<_>) = reader.partition(Result::is_ok);
                assert_eq!(bad.len(), 1, "byte {place}");
                let good: Vec<SnapshotRow> = good.into_iter().map(Result::unwrap).collect();
                assert!(small_rows().starts_with(&good), "byte {place}");
            }
        }
    }
}

#[test]
fn every_other_length_is_an_error() {
    let dir = temp();
    let file = write(dir.path(), header(1, 9), &small_rows());
    let sound = fs::read(&file.path).unwrap();
    for length in 0..sound.len() {
        fs::write(&file.path, &sound[..length]).unwrap();
        assert!(matches!(verify(&file.path), Err(SnapshotError::Damaged { .. })), "{length}");
        assert!(reader::describe(&file.path).is_err(), "{length}");
    }
    for tail in [&b"\0"[..], &sound] {
        fs::write(&file.path, [&sound, tail].concat()).unwrap();
        assert!(matches!(verify(&file.path), Err(SnapshotError::Damaged { .. })));
    }
}

#[test]
fn blocks_that_are_swapped_left_out_or_repeated_are_an_error() {
    let dir = temp();
    let rows: Vec<SnapshotRow> =
        (0..4u8).map(|n| (vec![n], value(u64::from(n), 64 << 10))).collect();
    let file = write(dir.path(), header(1, 9), &rows);
    let sound = fs::read(&file.path).unwrap();
    let block = 5 + 8 + 1 + (64 << 10) + 4;
    let head = sound.len() - 57 - 4 * block;
    let parts = |order: &[usize]| {
        let mut bytes = sound[..head].to_vec();
        for number in order {
            bytes.extend_from_slice(&sound[head + number * block..][..block]);
        }
        bytes.extend_from_slice(&sound[sound.len() - 57..]);
        fs::write(&file.path, bytes).unwrap();
        verify(&file.path)
    };
    for order in [&[0, 1, 3, 2][..], &[0, 1, 2], &[0, 1, 1, 2, 3], &[]] {
        assert!(matches!(parts(order), Err(SnapshotError::Damaged { .. })), "{order:?}");
    }
    assert_eq!(parts(&[0, 1, 2, 3]).unwrap(), file);
}

#[test]
fn an_unfinished_snapshot_leaves_nothing() {
    let dir = temp();
    let store = SnapshotStore::open(dir.path()).unwrap();
    let mut writer = store.create(header(1, 9)).unwrap();
    writer.push(b"a", &value(1, 200_000)).unwrap();
    assert_eq!(names(dir.path()).len(), 1);
    assert!(store.create(header(1, 9)).is_err(), "one writer at a time");
    assert_eq!(names(dir.path()).len(), 1, "a refused writer leaves the other one's file");
    drop(writer);
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn a_store_keeps_the_newest_of_each_group() {
    let dir = temp();
    let store = SnapshotStore::open(dir.path()).unwrap();
    assert_eq!(store.latest(group(1)).unwrap(), None);
    let none = SnapshotHeader { position: None, ..header(1, 0) };
    for header in [header(1, 30), none, header(1, 200), header(2, 5), header(1, 31)] {
        store.create(header).unwrap().finish().unwrap();
    }
    let other_incarnation = GroupId { shard: 1, incarnation: 4 };
    assert_eq!(store.latest(other_incarnation).unwrap(), None);
    assert_eq!(store.latest(group(1)).unwrap().unwrap().header, header(1, 200));
    assert_eq!(store.list(group(1)).unwrap().len(), 4);
    assert_eq!(store.groups(), [group(1), group(2)]);
    assert_eq!(store.retain_latest(group(1)).unwrap(), 3);
    assert_eq!(store.list(group(1)).unwrap().len(), 1);
    assert_eq!(store.latest(group(1)).unwrap().unwrap().header, header(1, 200));
    assert_eq!(store.remove_group(group(1)).unwrap(), 1);
    assert_eq!(store.groups(), [group(2)]);
}

#[test]
fn a_file_that_somebody_removed_is_gone_at_the_next_look() {
    let dir = temp();
    let store = SnapshotStore::open(dir.path()).unwrap();
    let older = store.create(header(1, 30)).unwrap().finish().unwrap();
    let newer = store.create(header(1, 31)).unwrap().finish().unwrap();
    fs::remove_file(&newer.path).unwrap();
    assert_eq!(store.latest(group(1)).unwrap(), Some(older.clone()));
    fs::remove_file(&older.path).unwrap();
    assert_eq!((store.latest(group(1)).unwrap(), store.groups()), (None, Vec::new()));
}

#[test]
fn a_store_that_is_opened_again_knows_the_files_that_are_there() {
    let dir = temp();
    let file = write(dir.path(), header(1, 9), &small_rows());
    let store = SnapshotStore::open(dir.path()).unwrap();
    assert_eq!((store.groups(), store.latest(group(1)).unwrap()), (vec![group(1)], Some(file)));
}

/// One thread writes snapshots and removes the older ones, as a builder does; another one removes
/// older ones too, as an installation does; readers ask for the newest.
#[test]
fn the_newest_is_found_whenever_it_is_asked_for_while_older_ones_go() {
    let dir = temp();
    let store = SnapshotStore::open(dir.path()).unwrap();
    let index = |file: Option<SnapshotFile>| file.unwrap().header.position.unwrap().index;
    store.create(header(1, 1)).unwrap().finish().unwrap();
    let newest = AtomicU64::new(1);
    let written = 300;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 2..=written {
                store.create(header(1, number)).unwrap().finish().unwrap();
                newest.store(number, Ordering::SeqCst);
                store.retain_latest(group(1)).unwrap();
            }
        });
        for retains in [true, false] {
            let (store, newest) = (&store, &newest);
            scope.spawn(move || {
                let mut before = 0;
                for _ in 0..written {
                    let there = newest.load(Ordering::SeqCst);
                    if retains {
                        store.retain_latest(group(1)).unwrap();
                    }
                    let found = index(store.latest(group(1)).unwrap());
                    assert!(there <= found && before <= found, "{found} after {before}, {there}");
                    before = found;
                }
            });
        }
    });
    assert_eq!(store.list(group(1)).unwrap().len(), 1);
}

#[test]
fn a_damaged_newest_snapshot_never_costs_the_older_one() {
    let dir = temp();
    let older = write(dir.path(), header(1, 30), &small_rows());
    let newest = write(dir.path(), header(1, 31), &small_rows());
    let store = SnapshotStore::open(dir.path()).unwrap();
    let mut bytes = fs::read(&newest.path).unwrap();
    let place = bytes.len() - 80;
    bytes[place] ^= 1;
    fs::write(&newest.path, &bytes).unwrap();
    assert!(store.retain_latest(group(1)).is_err(), "its rows are damaged");
    assert_eq!(store.list(group(1)).unwrap().len(), 2);
    bytes.truncate(place);
    fs::write(&newest.path, &bytes).unwrap();
    assert_eq!(store.latest(group(1)).unwrap(), Some(older.clone()), "it has no footer");
    assert_eq!(store.retain_latest(group(1)).unwrap(), 1);
    assert_eq!(store.latest(group(1)).unwrap(), Some(older));
    assert_eq!(names(dir.path()).len(), 1);
}

#[test]
fn opening_a_store_removes_what_was_not_finished() {
    let dir = temp();
    let file = write(dir.path(), header(1, 9), &small_rows());
    fs::write(dir.path().join("x.snap.tmp"), "x").unwrap();
    fs::write(dir.path().join("y.part"), "y").unwrap();
    let store = SnapshotStore::open(dir.path()).unwrap();
    assert_eq!(names(dir.path()).len(), 1);
    assert_eq!(store.latest(group(1)).unwrap(), Some(file));
}

#[test]
fn a_snapshot_arrives_in_pieces_with_interruptions() {
    let (from, to) = (temp(), temp());
    let rows: Vec<SnapshotRow> =
        (0..500u64).map(|n| (n.to_be_bytes().to_vec(), value(n, 500))).collect();
    let sent = write(from.path(), header(4, 9), &rows);
    let source = SnapshotSource::open(&sent.path).unwrap();
    fs::remove_file(&sent.path).unwrap();
    let store = SnapshotStore::open(to.path()).unwrap();

    let mut receiver = store.receive(group(4), sent.digest, source.bytes()).unwrap();
    receiver.write_at(0, &source.read_at(0, 100_000).unwrap()).unwrap();
    assert!(matches!(store.receive(group(4), sent.digest, 1), Err(SnapshotError::Busy { .. })));
    let early = receiver.write_at(100_001, b"x");
    assert!(matches!(early, Err(SnapshotError::Gap { offset: 100_001, expected: 100_000 })));
    assert_eq!(store.held_bytes(group(4), sent.digest), 0, "it is being received");
    let unfinished = receiver.finish();
    assert!(matches!(unfinished, Err(SnapshotError::Gap { expected: 100_000, .. })));
    assert_eq!(store.held_bytes(group(4), sent.digest), 100_000);
    assert_eq!(store.held_bytes(group(5), sent.digest), 0);

    let mut receiver = store.receive(group(4), sent.digest, source.bytes()).unwrap();
    assert_eq!(receiver.written(), 100_000, "what arrived stays");
    receiver.write_at(50_000, &source.read_at(50_000, 10).unwrap()).unwrap();
    receiver.write_at(99_000, &source.read_at(99_000, 2_000).unwrap()).unwrap();
    assert_eq!(receiver.written(), 101_000, "a repeated piece adds only what is new");
    while !receiver.is_complete() {
        let offset = receiver.written();
        receiver.write_at(offset, &source.read_at(offset, 60_000).unwrap()).unwrap();
    }
    let beyond = receiver.write_at(source.bytes(), b"x");
    assert!(matches!(beyond, Err(SnapshotError::NotAnnounced { .. })));
    assert_eq!(source.read_at(source.bytes(), 10).unwrap().len(), 0);
    let received = receiver.finish().unwrap();
    assert_eq!((received.digest, received.rows), (sent.digest, 500));
    assert!(read(&received.path) == rows);
    assert_eq!(store.latest(group(4)).unwrap(), Some(received));
    assert_eq!(names(to.path()).len(), 1);
}

#[test]
fn what_a_broken_transfer_left_goes_when_another_snapshot_of_the_group_comes() {
    let dir = temp();
    let store = SnapshotStore::open(dir.path()).unwrap();
    let begin = |shard, digest| {
        let mut receiver = store.receive(group(shard), SnapshotDigest([digest; 32]), 100).unwrap();
        receiver.write_at(0, b"abc").unwrap();
        receiver
    };
    drop(begin(4, 1));
    drop(begin(5, 2));
    assert_eq!(names(dir.path()).len(), 2);
    let under_way = begin(4, 3);
    assert_eq!(names(dir.path()).len(), 2, "the other group's stays");
    drop(begin(4, 4));
    assert_eq!(names(dir.path()).len(), 3, "what is under way stays");
    drop(under_way);
}

#[test]
fn a_wrong_or_damaged_snapshot_is_not_taken_over() {
    let (from, to) = (temp(), temp());
    let store = SnapshotStore::open(to.path()).unwrap();
    let sent = write(from.path(), header(4, 9), &small_rows());
    let bytes = fs::read(&sent.path).unwrap();
    let receive = |digest, bytes: &[u8]| {
        let mut receiver = store.receive(group(4), digest, bytes.len() as u64).unwrap();
        receiver.write_at(0, bytes).unwrap();
        receiver.finish()
    };
    let other = receive(SnapshotDigest([9; 32]), &bytes);
    assert!(matches!(other, Err(SnapshotError::NotAnnounced { .. })));
    let mut damaged = bytes.clone();
    damaged[70] ^= 4;
    assert!(matches!(receive(sent.digest, &damaged), Err(SnapshotError::Damaged { .. })));
    assert_eq!(names(to.path()), [""; 0], "and what arrived is gone");
    receive(sent.digest, &bytes).unwrap();
    assert_eq!(names(to.path()).len(), 1);
}

#[test]
fn a_complete_file_is_adopted_only_if_it_is_intact() {
    let (from, to) = (temp(), temp());
    let store = SnapshotStore::open(to.path()).unwrap();
    let file = write(from.path(), header(4, 9), &small_rows());
    let sound = fs::read(&file.path).unwrap();
    fs::write(&file.path, &sound[..sound.len() - 1]).unwrap();
    assert!(store.adopt(&file.path).is_err());
    assert!(file.path.exists());
    fs::write(&file.path, &sound).unwrap();
    let adopted = store.adopt(&file.path).unwrap();
    assert_eq!(adopted.digest, file.digest);
    assert_eq!(store.latest(group(4)).unwrap(), Some(adopted));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_rows_round_trip(
        rows in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 0..20), 0..40_000usize), 0..12),
        meta in prop::collection::vec(any::<u8>(), 0..100),
        position in prop::option::of((any::<u64>(), any::<u64>())),
    ) {
        let dir = temp();
        let rows: Vec<SnapshotRow> = (0u64..)
            .zip(rows)
            .map(|(seed, (key, length))| (key, value(seed, length)))
            .collect();
        let position = position.map(|(term, index)| LogPosition { term, index });
        let header = SnapshotHeader { meta, position, ..header(u64::MAX, 0) };
        let file = write(dir.path(), header, &rows);
        prop_assert!(read(&file.path) == rows);
        prop_assert_eq!(reader::describe(&file.path).unwrap(), file);
    }

    #[test]
    fn arbitrary_bytes_are_an_error_and_nothing_worse(bytes in prop::collection::vec(any::<u8>(), 0..400), keep in 0..130usize) {
        let dir = temp();
        let file = write(dir.path(), header(1, 9), &small_rows());
        let mut content = fs::read(&file.path).unwrap();
        content.truncate(keep);
        content.extend_from_slice(&bytes);
        fs::write(&file.path, &content).unwrap();
        prop_assert!(verify(&file.path).is_err());
        let _ = reader::describe(&file.path);
    }
}
