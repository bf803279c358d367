use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::MemoryState;
use crate::state_store::conformance::{self, EDGE_LENGTHS, commit, rows, value};
use crate::testing::copy_dir;

const END: &[u8] = &[0xff; 8];

fn temp() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A small cache: pages leave memory and are read back.
fn open(dir: &Path) -> (SledState, Opened) {
    SledState::open(dir, SledConfig { cache_bytes_max: 4 << 20 }).unwrap()
}

/// A closed store with rows in checkpoint 1.
fn store_with_rows(dir: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (store, opened) = open(dir);
    assert_eq!(opened, Opened::New);
    for number in 0..40u8 {
        let length = if number.is_multiple_of(10) { 5000 } else { 200 };
        commit(&store, &[(&[number], Some(&value(u64::from(number), length)))]);
    }
    store.checkpoint().unwrap();
    rows(&store, b"", END)
}

#[test]
fn a_full_disk_keeps_rows_in_memory_until_there_is_room_and_costs_nothing() {
    let dir = temp();
    let before = store_with_rows(dir.path());
    let (store, _) = open(dir.path());
    store.shared.room.lock().is_full = true;
    for number in 100..160u8 {
        commit(&store, &[(&[number], Some(&value(7, 2000)))]);
    }
    commit(&store, &[(&[3], None)]);
    assert!(matches!(store.checkpoint(), Err(StateError::NoSpace)));
    let seen = rows(&store, b"", END);
    assert_eq!(seen.len(), before.len() + 59);
    assert_eq!(store.get(&[3]).unwrap(), None);
    // A crash now costs what came after the last checkpoint, and nothing else.
    let crashed = temp();
    copy_dir(dir.path(), crashed.path());
    let (copy, opened) = open(crashed.path());
    assert_eq!(opened, Opened::Intact { checkpoint: 1 });
    assert_eq!(rows(&copy, b"", END), before);
    store.shared.room.lock().is_full = false;
    store.checkpoint().unwrap();
    drop(store);
    let (store, opened) = open(dir.path());
    assert_eq!(opened, Opened::Intact { checkpoint: 2 });
    assert_eq!(rows(&store, b"", END), seen);
    // One that is dropped on a full disk does not wait for ever.
    store.shared.room.lock().is_full = true;
    commit(&store, &[(b"last", Some(b"lost"))]);
    drop(store);
    assert_eq!(rows(&open(dir.path()).0, b"", END), seen);
}

#[track_caller]
fn assert_discarded_and_working(dir: &Path, part_of_reason: &str) {
    let (store, opened) = open(dir);
    let Opened::Discarded { reason } = opened else { panic!("{opened:?}") };
    assert!(reason.contains(part_of_reason), "{reason}");
    assert_eq!(rows(&store, b"", END), [], "a discarded store is empty");
    commit(&store, &[(b"again", Some(b"works"))]);
    store.checkpoint().unwrap();
    drop(store);
    let (store, opened) = open(dir);
    assert_eq!(opened, Opened::Intact { checkpoint: 1 });
    assert_eq!(store.get(b"again").unwrap().as_deref(), Some(b"works".as_slice()));
    let left = fs::read_dir(dir).unwrap().count();
    assert_eq!(left, 2, "only `lock` and `current` are left");
}

fn engine_dir(dir: &Path) -> PathBuf {
    dir.join("current").join("sled")
}

#[test]
fn sled_state_conforms() {
    let dirs = Mutex::new(Vec::new());
    conformance::run(|| {
        let dir = temp();
        let (store, _) = open(dir.path());
        dirs.lock().push(dir);
        Box::new(store)
    });
}

#[test]
fn a_reopened_store_holds_everything_and_goes_on() {
    let dir = temp();
    let expected = store_with_rows(dir.path());
    for _ in 0..3 {
        let (store, opened) = open(dir.path());
        assert_eq!(opened, Opened::Intact { checkpoint: 1 });
        assert!(rows(&store, b"", END) == expected);
    }
    let (store, _) = open(dir.path());
    commit(&store, &[(&[0], Some(&value(7, 7000)))]);
    store.checkpoint().unwrap();
    drop(store);
    let (store, opened) = open(dir.path());
    assert_eq!(opened, Opened::Intact { checkpoint: 2 });
    assert!(store.get(&[0]).unwrap().unwrap() == value(7, 7000));
    assert!(rows(&store, b"", END)[1..] == expected[1..], "other long values kept their chunks");
}

#[test]
fn a_store_that_was_killed_holds_at_least_its_checkpoint() {
    let (dir, killed) = (temp(), temp());
    let (store, _) = open(dir.path());
    for round in 0..6u64 {
        for number in 0..30u8 {
            let row = value(round, if number.is_multiple_of(7) { 4000 } else { 300 });
            commit(&store, &[(&[number], Some(&row))]);
        }
        store.checkpoint().unwrap();
        commit(&store, &[(b"later", Some(&round.to_be_bytes()))]);
        // What a killed process leaves is what is in its files at that moment.
        let copy = killed.path().join(round.to_string());
        copy_dir(dir.path(), &copy);
        let (left, opened) = open(&copy);
        assert_eq!(opened, Opened::Intact { checkpoint: round + 1 });
        for number in 0..30u8 {
            let row = value(round, if number.is_multiple_of(7) { 4000 } else { 300 });
            assert!(left.get(&[number]).unwrap().unwrap() == row);
        }
    }
}

#[test]
fn a_killed_store_holds_a_prefix_of_whole_batches() {
    let (dir, killed) = (temp(), temp());
    let (store, _) = open(dir.path());
    // Each batch writes its number to all keys, so that a torn one shows.
    let write = |number: u64| {
        let long = value(number, 3000);
        let rows = (0..30u8).map(|key| {
            let content = if key == 7 { long.clone() } else { number.to_be_bytes().to_vec() };
            (vec![key], Some(content))
        });
        store.commit(Batch { rows: rows.collect() }).unwrap();
    };
    let mut survived = Vec::new();
    for round in 0..8u64 {
        for number in 0..60 {
            write(round * 60 + number);
        }
        if round == 1 {
            store.checkpoint().unwrap();
        }
        // Closed groups go to sled, and some of it to the file; the rest is lost with the process.
        while store.shared.buffer.has_closed_groups() {
            std::thread::yield_now();
        }
        let copy = killed.path().join(round.to_string());
        copy_dir(dir.path(), &copy);
        let (left, opened) = open(&copy);
        assert!(matches!(opened, Opened::Intact { .. }), "{opened:?}");
        let found = rows(&left, b"", END);
        let number =
            found.first().map(|(_, first)| u64::from_be_bytes(first[..].try_into().unwrap()));
        if let Some(number) = number {
            assert_eq!(found.len(), 30);
            for (key, content) in &found {
                let expected =
                    if *key == [7] { value(number, 3000) } else { number.to_be_bytes().to_vec() };
                assert!(*content == expected, "batch {number} is torn at {key:?}");
            }
        }
        survived.push(number);
    }
    assert!(survived.is_sorted(), "{survived:?}");
    assert!(Some(119) <= survived[1], "the checkpoint is in it: {survived:?}");
    assert!(survived[1] < survived[7], "so is more than the checkpoint: {survived:?}");
}

#[test]
fn a_hole_before_the_checkpoint_discards_the_state() {
    let (dir, old) = (temp(), temp());
    store_with_rows(dir.path());
    copy_dir(&engine_dir(dir.path()), old.path());
    let (store, _) = open(dir.path());
    commit(&store, &[(b"new", Some(b"row"))]);
    store.checkpoint().unwrap();
    drop(store);
    // The disk lost what the second checkpoint wrote, but kept its marker.
    fs::remove_dir_all(engine_dir(dir.path())).unwrap();
    copy_dir(old.path(), &engine_dir(dir.path()));
    assert_discarded_and_working(dir.path(), "it holds checkpoint 1, but 2 was completed");
}

#[test]
fn a_newer_tree_than_its_marker_is_fine() {
    let (dir, old) = (temp(), temp());
    let expected = store_with_rows(dir.path());
    let marker = dir.path().join("current").join("checkpoint");
    fs::copy(&marker, old.path().join("checkpoint")).unwrap();
    let (store, _) = open(dir.path());
    commit(&store, &[(b"new", Some(b"row"))]);
    store.checkpoint().unwrap();
    drop(store);
    fs::copy(old.path().join("checkpoint"), &marker).unwrap();
    let (store, opened) = open(dir.path());
    assert_eq!(opened, Opened::Intact { checkpoint: 2 });
    assert_eq!(rows(&store, b"", END).len(), expected.len() + 1);
}

#[test]
fn missing_and_foreign_files_discard_the_state() {
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 6] = [
        ("creation never finished", |dir| fs::remove_file(dir.join("current/checkpoint")).unwrap()),
        ("checkpoint marker is damaged", |dir| {
            let marker = dir.join("current/checkpoint");
            let mut content = fs::read(&marker).unwrap();
            content[13] ^= 1;
            fs::write(&marker, content).unwrap();
        }),
        ("holds checkpoint 0, but 1", |dir| fs::remove_dir_all(engine_dir(dir)).unwrap()),
        ("", |dir| fs::write(engine_dir(dir).join("db"), vec![0xa5; 1 << 20]).unwrap()),
        ("", |dir| {
            let db = fs::OpenOptions::new().write(true).open(engine_dir(dir).join("db")).unwrap();
            db.set_len(4096).unwrap();
        }),
        ("a page was bad", |dir| {
            fs::write(dir.join("current/damaged"), "a page was bad").unwrap();
        }),
    ];
    for (reason, harm) in harms {
        let dir = temp();
        store_with_rows(dir.path());
        harm(dir.path());
        assert_discarded_and_working(dir.path(), reason);
    }
}

/// Places at which one byte is damaged, spread over the used part of the file.
const PARTS: usize = 150;

#[test]
fn a_damaged_byte_is_noticed_or_harmless() {
    let sound = temp();
    let expected = store_with_rows(sound.path());
    let db = fs::read(engine_dir(sound.path()).join("db")).unwrap();
    let used = db.iter().rposition(|byte| *byte != 0).unwrap();
    let mut discarded = 0;
    for part in 0..PARTS {
        let dir = temp();
        copy_dir(sound.path(), dir.path());
        let mut damaged = db.clone();
        damaged[used * part / PARTS] ^= 0x10;
        fs::write(engine_dir(dir.path()).join("db"), damaged).unwrap();
        let (store, opened) = open(dir.path());
        match opened {
            Opened::New => panic!("a store is there"),
            Opened::Intact { .. } => assert!(rows(&store, b"", END) == expected, "part {part}"),
            Opened::Discarded { .. } => {
                assert_eq!(rows(&store, b"", END), []);
                discarded += 1;
            }
        }
    }
    assert!(PARTS / 2 < discarded, "most bytes matter; only {discarded} were noticed");
}

#[test]
fn an_unknown_format_stops_the_start_and_touches_nothing() {
    let dir = temp();
    let expected = store_with_rows(dir.path());
    let marker = dir.path().join("current/checkpoint");
    let sound = fs::read(&marker).unwrap();
    let mut newer = sound.clone();
    newer[8] = 3;
    let crc = crc32c::crc32c(&newer[..20]);
    newer[20..].copy_from_slice(&crc.to_le_bytes());
    fs::write(&marker, newer).unwrap();
    let refused = SledState::open(dir.path(), SledConfig::default());
    assert!(matches!(refused, Err(StateError::UnknownFormat { found: 3, known: 2 })));
    fs::write(&marker, sound).unwrap();
    assert!(rows(&open(dir.path()).0, b"", END) == expected);
}

#[test]
fn starts_that_are_killed_while_opening_discard_the_state_in_the_end() {
    let dir = temp();
    store_with_rows(dir.path());
    let opening = dir.path().join("current/opening");
    fs::write(&opening, "2").unwrap();
    assert_eq!(open(dir.path()).1, Opened::Intact { checkpoint: 1 });
    assert!(!opening.exists(), "an open that succeeds begins a new count");
    fs::write(&opening, "3").unwrap();
    assert_discarded_and_working(dir.path(), "the last 3 starts ended");
}

#[test]
fn a_store_is_open_only_once() {
    let dir = temp();
    let (store, _) = open(dir.path());
    let refused = SledState::open(dir.path(), SledConfig::default());
    assert!(matches!(refused, Err(StateError::InUse { .. })));
    commit(&store, &[(b"a", Some(b"1"))]);
    drop(store);
    assert_eq!(rows(&open(dir.path()).0, b"", END).len(), 1, "and was not discarded for it");
}

#[test]
fn a_panic_in_the_engine_condemns_the_state_and_other_panics_do_not() {
    let dir = temp();
    store_with_rows(dir.path());
    let (store, _) = open(dir.path());
    let visitor = catch_unwind(AssertUnwindSafe(|| {
        store.scan(b""..END, &mut |_, _| panic!("the caller's own fault"))
    }));
    assert!(visitor.is_err());
    drop(store);
    let (store, opened) = open(dir.path());
    assert_eq!(opened, Opened::Intact { checkpoint: 1 });
    let engine =
        catch_unwind(AssertUnwindSafe(|| store.shared.engine.call(|| panic!("a page was torn"))));
    assert!(engine.is_err());
    drop(store);
    assert_discarded_and_working(dir.path(), "a page was torn");
}

#[test]
fn a_damaged_row_is_reported_condemns_the_state_and_stops_writes() {
    let dir = temp();
    store_with_rows(dir.path());
    let (store, _) = open(dir.path());
    // Row 0 is long: take one of its chunks away behind the store's back.
    let (chunk, _) =
        store.shared.engine.tree.scan_prefix(layout::all_chunks()).next().unwrap().unwrap();
    store.shared.engine.tree.remove(chunk).unwrap();
    let damaged = (0..40u8).filter(|key| store.get(&[*key]).is_err()).count();
    assert_eq!(damaged, 1);
    let refused = store.commit(Batch { rows: vec![(b"a".to_vec(), None)] });
    assert!(matches!(refused, Err(StateError::Engine { .. })));
    assert!(store.checkpoint().is_err());
    drop(store);
    assert_discarded_and_working(dir.path(), "chunks of a long value");
}

#[test]
fn faults_of_the_surroundings_do_not_discard_the_state() {
    use std::io::{Error, ErrorKind};
    let is_kept = |error: Error| open::is_kept(sled::Error::Io(error));
    assert!(is_kept(ErrorKind::PermissionDenied.into()));
    assert!(is_kept(ErrorKind::StorageFull.into()));
    assert!(is_kept(Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error())));
    assert!(!is_kept(ErrorKind::UnexpectedEof.into()));
    assert!(!is_kept(Error::other("encountered torn segment")));
}

#[test]
fn replaced_long_values_leave_nothing_behind() {
    let dir = temp();
    let (store, _) = open(dir.path());
    for round in 0..4u64 {
        for (key, length) in (0u8..).zip(EDGE_LENGTHS) {
            commit(&store, &[(&[key], Some(&value(round, length)))]);
        }
    }
    let chunks = |store: &SledState| {
        assert!(store.shared.buffer.drain(ROOM_PAUSE).unwrap());
        store.shared.engine.tree.scan_prefix(layout::all_chunks()).count()
    };
    let needed = EDGE_LENGTHS.iter().filter(|length| 2048 < **length);
    assert_eq!(chunks(&store), needed.map(|length| length.div_ceil(2048)).sum::<usize>());
    store.checkpoint().unwrap();
    drop(store);
    let (store, _) = open(dir.path());
    assert_eq!(store.clear(b""..END).unwrap(), EDGE_LENGTHS.len() as u64);
    assert_eq!(chunks(&store), 0, "chunks written before the store was reopened go too");
    store.checkpoint().unwrap();
    let blobs = fs::read_dir(engine_dir(dir.path()).join("blobs")).unwrap().count();
    assert_eq!(blobs, 0, "no page became a file of its own");
}

#[test]
fn pages_full_of_the_longest_rows_never_become_blobs() {
    let dir = temp();
    let (store, _) = open(dir.path());
    for number in 0..700u64 {
        let mut key = value(number, 256);
        key[..2].copy_from_slice(&[1, 2]);
        commit(&store, &[(&key, Some(&value(number, 2048)))]);
    }
    store.checkpoint().unwrap();
}

#[test]
fn checkpoints_beside_writers_lose_nothing() {
    let (dir, killed) = (temp(), temp());
    let (store, _) = open(dir.path());
    std::thread::scope(|scope| {
        for writer in 0..2u8 {
            let store = &store;
            scope.spawn(move || {
                for number in 0..200u64 {
                    let key = [writer, u8::try_from(number % 50).unwrap()];
                    commit(store, &[(&key, Some(&number.to_be_bytes()))]);
                }
            });
        }
        for _ in 0..5 {
            store.checkpoint().unwrap();
        }
    });
    store.checkpoint().unwrap();
    copy_dir(dir.path(), killed.path());
    let (left, _) = open(killed.path());
    for writer in 0..2u8 {
        for place in 0..50u8 {
            let newest = (150 + u64::from(place)).to_be_bytes();
            assert_eq!(left.get(&[writer, place]).unwrap().as_deref(), Some(newest.as_slice()));
        }
    }
}

/// What a model test does to a store.
#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<(u8, Option<usize>)>),
    Clear(u8, u8),
    Checkpoint,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let length = prop_oneof![
        4 => 0..400usize,
        2 => prop::sample::select(&[2047usize, 2048, 2049, 4096, 4097, 10_000][..]),
        1 => 2000..9000usize,
    ];
    let row = (0..20u8, prop::option::weighted(0.8, length));
    prop_oneof![
        12 => prop::collection::vec(row, 0..6).prop_map(Step::Commit),
        1 => (0..20u8, 0..20u8).prop_map(|(start, end)| Step::Clear(start, end)),
        2 => Just(Step::Checkpoint),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn stores_agree_with_a_map(steps in prop::collection::vec(step(), 1..40)) {
        let dir = temp();
        let (mut sled, _) = open(dir.path());
        let memory = MemoryState::new();
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for (seed, step) in (0u64..).zip(steps) {
            match step {
                Step::Commit(rows) => {
                    let rows: Vec<_> = rows
                        .into_iter()
                        .map(|(key, length)| (vec![key], length.map(|length| value(seed, length))))
                        .collect();
                    for (key, value) in &rows {
                        match value {
                            Some(value) => model.insert(key.clone(), value.clone()),
                            None => model.remove(key),
                        };
                    }
                    sled.commit(Batch { rows: rows.clone() }).unwrap();
                    memory.commit(Batch { rows }).unwrap();
                }
                Step::Clear(start, end) => {
                    let before = model.len();
                    model.retain(|key, _| key[0] < start || end <= key[0]);
                    let cleared = (before - model.len()) as u64;
                    prop_assert_eq!(sled.clear(&[start]..&[end]).unwrap(), cleared);
                    prop_assert_eq!(memory.clear(&[start]..&[end]).unwrap(), cleared);
                }
                Step::Checkpoint => {
                    sled.checkpoint().unwrap();
                    memory.checkpoint().unwrap();
                }
                Step::Reopen => {
                    drop(sled);
                    let opened;
                    (sled, opened) = open(dir.path());
                    prop_assert!(matches!(opened, Opened::Intact { .. }), "{:?}", opened);
                }
            }
            let expected: Vec<_> = model.clone().into_iter().collect();
            prop_assert!(rows(&sled, b"", END) == expected);
            prop_assert!(rows(&memory, b"", END) == expected);
        }
        for key in 0..20u8 {
            prop_assert!(sled.get(&[key]).unwrap().as_ref() == model.get([key].as_slice()));
        }
    }

    #[test]
    fn a_crash_of_the_memory_store_gives_a_prefix(
        lengths in prop::collection::vec((0..6u8, prop::option::of(0..9usize)), 1..30),
        synced in 0..30usize,
        kept in 0..30usize,
    ) {
        let memory = MemoryState::new();
        let mut states = vec![rows(&memory, b"", END)];
        for (seed, (key, length)) in (0u64..).zip(&lengths) {
            let content = length.map(|length| value(seed, length));
            memory.commit(Batch { rows: vec![(vec![*key], content)] }).unwrap();
            states.push(rows(&memory, b"", END));
            if states.len() == synced + 1 {
                memory.checkpoint().unwrap();
            }
        }
        memory.crash_keeping(kept);
        let synced = if synced <= lengths.len() { synced } else { 0 };
        let survived = (synced + kept).min(lengths.len());
        prop_assert!(rows(&memory, b"", END) == states[survived]);
    }
}

/// Bytes at the end of what was written that a disk loses.
const LOST_BYTES: [usize; 8] = [17, 700, 5_000, 12_000, 40_000, 90_000, 200_000, 600_000];

#[test]
fn a_lost_tail_is_noticed_or_harmless() {
    let dir = temp();
    let (store, _) = open(dir.path());
    let (mut discarded, mut intact) = (0, 0);
    // Rows are written over and removed in many checkpoints: sled puts what is new into the room of
    // what is old, and the file's end is not the newest.
    for round in 0..120u64 {
        for number in 0..250u64 {
            let key = ((number * 7919 + round * 104_729) % 2_000).to_be_bytes();
            let content = value(round * 1_000 + number, 300);
            let is_removed = (number + round).is_multiple_of(5);
            commit(&store, &[(&key, (!is_removed).then_some(content.as_slice()))]);
        }
        store.checkpoint().unwrap();
        if round % 4 != 3 {
            continue;
        }
        let expected = rows(&store, b"", END);
        let killed = temp();
        copy_dir(dir.path(), killed.path());
        let db = fs::read(engine_dir(killed.path()).join("db")).unwrap();
        let used = db.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        for lost in LOST_BYTES {
            let copy = temp();
            copy_dir(killed.path(), copy.path());
            let mut left = db.clone();
            left[used.saturating_sub(lost)..used].fill(0);
            fs::write(engine_dir(copy.path()).join("db"), left).unwrap();
            let (left, opened) = open(copy.path());
            match opened {
                Opened::New => panic!("a store is there"),
                Opened::Intact { .. } => {
                    let found = rows(&left, b"", END);
                    assert!(found == expected, "round {round}, {lost} of {used} bytes lost");
                    intact += 1;
                }
                Opened::Discarded { .. } => discarded += 1,
            }
        }
    }
    assert!(0 < discarded, "all of {intact} harmless: nothing that mattered was lost");
}

#[test]
fn a_state_of_an_older_format_is_rebuilt() {
    let dir = temp();
    store_with_rows(dir.path());
    let marker = dir.path().join("current/checkpoint");
    let mut older = fs::read(&marker).unwrap();
    older[8] = 1;
    let crc = crc32c::crc32c(&older[..20]);
    older[20..].copy_from_slice(&crc.to_le_bytes());
    fs::write(&marker, older).unwrap();
    assert_discarded_and_working(dir.path(), "it is of format 1");
}

#[test]
fn a_row_that_is_not_as_it_was_written_last_is_noticed() {
    type Harm = fn(&sled::Tree);
    let harms: [Harm; 3] = [
        |tree| drop(tree.remove(layout::row_key(&[3])).unwrap()),
        |tree| drop(tree.insert(layout::row_key(b"gone"), layout::whole(b"back")).unwrap()),
        |tree| drop(tree.insert(layout::row_key(&[3]), layout::whole(b"older")).unwrap()),
    ];
    for harm in harms {
        let dir = temp();
        store_with_rows(dir.path());
        let db = sled::Config::default().path(engine_dir(dir.path())).open().unwrap();
        harm(&db.open_tree("state").unwrap());
        drop(db);
        assert_discarded_and_working(dir.path(), "older than others");
    }
}
