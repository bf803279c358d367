use std::collections::BTreeMap;
use std::sync::atomic::AtomicU32;

use tempfile::TempDir;

use super::*;
use crate::state_store::conformance::{self, commit, rows, value};
use crate::testing::copy_dir;

const CONFIG: SledConfig = SledConfig { cache_bytes_max: 4 << 20 };
const END: &[u8] = &[0xff; 8];

fn open(dir: &Path) -> (RenewableState, Opened) {
    RenewableState::open(dir, CONFIG).unwrap()
}

fn at_once(_: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A state whose rows were written again and again.
fn bloated(dir: &Path) -> RenewableState {
    let (state, _) = open(dir);
    for round in 0..30_u64 {
        for row in 0..100_u8 {
            let length = if row.is_multiple_of(10) { 5_000 } else { 1_000 };
            commit(&state, &[(&[row], Some(&value(round * 100 + u64::from(row), length)))]);
        }
        state.checkpoint().unwrap();
    }
    state
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned()).collect();
    names.sort_unstable();
    names
}

#[test]
fn renewable_state_conforms_whether_it_is_being_renewed_or_was() {
    let dirs = Mutex::new(Vec::new());
    let make = || {
        let dir = tempfile::tempdir().unwrap();
        let (state, _) = open(dir.path());
        dirs.lock().push(dir);
        state
    };
    conformance::run(|| {
        let state = make();
        state.renew(&mut at_once).unwrap().unwrap();
        Box::new(state)
    });
    conformance::run(|| {
        let state = make();
        state.begin(&state.dir.clone()).unwrap();
        Box::new(state)
    });
}

#[test]
fn a_renewed_state_holds_the_same_rows_in_less_room_and_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let state = bloated(dir.path());
    let before = rows(&state, b"", END);
    for round in 0..2 {
        let renewed = state.renew(&mut at_once).unwrap().unwrap();
        assert_eq!(rows(&state, b"", END), before);
        assert_eq!(renewed.disk_bytes, state.stats().disk_bytes);
        if round == 0 {
            assert!(renewed.disk_bytes * 2 < renewed.disk_bytes_before, "{renewed:?}");
        }
        let held: u64 = before.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum();
        assert_eq!((renewed.row_bytes, state.live_bytes().unwrap()), (held, held));
    }
    assert_eq!(names(dir.path()), ["lock", "owner", "renewed-2"]);
    commit(&state, &[(b"later", Some(b"is kept"))]);
    state.checkpoint().unwrap();
    drop(state);
    let (state, opened) = open(dir.path());
    assert!(matches!(opened, Opened::Intact { .. }), "{opened:?}");
    assert_eq!(names(dir.path()), ["current", "lock", "owner"]);
    assert_eq!(state.get(b"later").unwrap().as_deref(), Some(&b"is kept"[..]));
    commit(&state, &[(b"later", None)]);
    assert_eq!(rows(&state, b"", END), before);
    assert!(matches!(RenewableState::open(dir.path(), CONFIG), Err(StateError::InUse { .. })));
}

#[test]
fn what_is_committed_meanwhile_is_in_the_renewed_state() {
    let dir = tempfile::tempdir().unwrap();
    let state = bloated(dir.path());
    let (mut expected, pieces): (BTreeMap<_, _>, _) =
        (rows(&state, b"", END).into_iter().collect(), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let renewal = scope.spawn(|| {
            state.renew(&mut |_| {
                pieces.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(30));
                ControlFlow::Continue(())
            })
        });
        for number in 0_u64.. {
            let [key, _, high, ..] = (number * 37).to_le_bytes();
            let row = match number % 3 {
                0 => (vec![key], None),
                1 => (vec![key], Some(value(number, 700))),
                _ => (vec![key, high], Some(value(number, 3_000))),
            };
            commit(&state, &[(&row.0, row.1.as_deref())]);
            match row {
                (key, Some(value)) => expected.insert(key, value),
                (key, None) => expected.remove(&key),
            };
            if renewal.is_finished() {
                break;
            }
        }
        renewal.join().unwrap().unwrap().unwrap();
    });
    assert!(1 < pieces.load(Ordering::Relaxed), "it was over before anybody wrote");
    let expected: Vec<_> = expected.into_iter().collect();
    assert!(rows(&state, b"", END) == expected);
    state.checkpoint().unwrap();
    drop(state);
    assert!(rows(&open(dir.path()).0, b"", END) == expected, "not what a checkpoint promised");
}

/// Opens what a crash at this moment leaves.
fn crash(dir: &Path) -> (TempDir, RenewableState) {
    let left = tempfile::tempdir().unwrap();
    copy_dir(dir, left.path());
    let (state, opened) = open(left.path());
    assert!(matches!(opened, Opened::Intact { .. }), "{opened:?}");
    (left, state)
}

#[test]
fn a_crash_at_any_step_leaves_everything_in_one_place() {
    let dir = tempfile::tempdir().unwrap();
    let state = bloated(dir.path());
    let before = rows(&state, b"", END);
    let check = |after: &str| {
        let (left, state) = crash(dir.path());
        assert!(rows(&state, b"", END) == before, "{after}");
        assert_eq!(names(left.path()), ["current", "lock", "owner"], "{after}");
    };
    check("before anything");
    let (path, copy) = state.begin(&state.dir.clone()).unwrap();
    check("begun");
    state
        .copy_all(&copy, &mut |_| {
            check("in the middle");
            ControlFlow::Continue(())
        })
        .unwrap();
    check("copied");
    copy.checkpoint().unwrap();
    check("durable, not complete");
    assert!(state.take_over(&path, &copy).unwrap());
    check("taken over");
    drop(copy);
    SledState::discard(dir.path()).unwrap();
    check("removed");
    drop(state);
    // The next start moves it: a crash between the steps of that.
    for step in 0..3 {
        let left = tempfile::tempdir().unwrap();
        copy_dir(dir.path(), left.path());
        let moved = left.path().join("current");
        if step == 1 {
            copy_dir(&left.path().join("renewed-1/current"), &moved);
            fs::remove_dir_all(left.path().join("renewed-1/current")).unwrap();
        }
        if step == 2 {
            // An old one that was not removed, and was removed in part.
            fs::create_dir_all(moved.join("sled")).unwrap();
            fs::write(moved.join("checkpoint"), b"an old one").unwrap();
        }
        assert!(rows(&open(left.path()).0, b"", END) == before, "step {step}");
        assert_eq!(names(left.path()), ["current", "lock", "owner"]);
    }
}

#[test]
fn a_renewal_that_is_broken_off_or_missed_a_commit_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let state = bloated(dir.path());
    let before = rows(&state, b"", END);
    assert_eq!(state.renew(&mut |_| ControlFlow::Break(())).unwrap(), None);
    assert_eq!(names(dir.path()), ["current", "lock", "owner"]);
    let missed = state.renew(&mut |_| {
        if let Some(copy) = &*state.copy.read() {
            copy.is_broken.store(true, Ordering::Relaxed);
        }
        ControlFlow::Continue(())
    });
    assert_eq!(missed.unwrap(), None);
    assert!(state.copy.read().is_none());
    assert_eq!(rows(&state, b"", END), before);
    state.renew(&mut at_once).unwrap().unwrap();
    assert_eq!(rows(&state, b"", END), before);
}
