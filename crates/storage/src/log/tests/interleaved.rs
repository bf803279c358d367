//! Every interleaving of a reader with the writer.
//!
//! A read has two steps: under the lock it copies out places, without it it reads the files. The
//! writer's steps are its calls to the disk; what it does under the lock in between is one step for
//! everybody else. So a reader that takes its first step in front of any call of the writer, and
//! its second one in front of any later call, has met every order there is: with the entries being
//! written, moved by copying forward, truncated, purged, dropped, and their file removed.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::super::index::Piece;
use super::super::read::read_pieces;
use super::*;

/// A reader between its two steps.
struct Reader {
    group: GroupId,
    pieces: Vec<Piece>,
    /// What it must get.
    entries: Vec<LogEntry>,
}

#[derive(Default)]
struct Readers {
    waiting: Mutex<Vec<Reader>>,
    ended: AtomicUsize,
    stored: AtomicUsize,
}

impl Readers {
    /// The second step of everybody who waits, and the first one of new readers.
    fn step(&self, log: &SegmentedLog) {
        let mut waiting = self.waiting.lock();
        for reader in waiting.iter() {
            let entries = read_pieces(reader.group, reader.pieces.clone()).unwrap();
            assert_eq!(entries, reader.entries);
            self.ended.fetch_add(1, Ordering::Relaxed);
        }
        for group in log.groups() {
            let found = log.group(group).unwrap();
            let (Some(last), from) = (found.last, found.purged.map_or(0, |mark| mark.index + 1))
            else {
                continue;
            };
            // A log that was purged as a whole, or begins at a later index.
            let shared = log.shared.state.lock();
            let first = (from..=last.index).find(|index| {
                let one = *index..index + 1;
                shared.index.pieces(group, &one, usize::MAX).is_ok()
            });
            let Some(first) = first else { continue };
            let live = first..last.index + 1;
            let pieces = shared.index.pieces(group, &live, usize::MAX);
            drop(shared);
            let pieces = pieces.unwrap();
            assert_eq!(pieces.len() as u64, live.end - live.start, "a live index has no place");
            let stored = pieces.iter().filter(|piece| matches!(piece, Piece::Stored { .. }));
            self.stored.fetch_add(stored.count(), Ordering::Relaxed);
            let entries = read_pieces(group, pieces.clone()).unwrap();
            for (index, entry) in live.zip(&entries) {
                let expected = super::entry(group, entry.position.term, index, entry.content.len());
                assert_eq!(*entry, expected);
            }
            waiting.push(Reader { group, pieces, entries });
        }
    }
}

#[test]
fn a_reader_in_every_interleaving_with_the_writer_gets_what_was_live_when_it_asked() {
    let fs = MemoryFs::new();
    fs.keep_trace();
    let config = LogConfig { recent_bytes_max: 0, ..super::crash::config() };
    let log = Arc::new(open(&fs, config).unwrap());
    let readers = Arc::new(Readers::default());
    let (log_of_readers, all) = (Arc::downgrade(&log), Arc::clone(&readers));
    fs.before_each_call(move || {
        if let Some(log) = log_of_readers.upgrade() {
            all.step(&log);
        }
    });
    for change in super::crash::script() {
        write(&*log, change).unwrap();
    }
    let removed = fs.trace().iter().filter(|call| call.starts_with("remove")).count();
    let (ended, stored) =
        (readers.ended.load(Ordering::Relaxed), readers.stored.load(Ordering::Relaxed));
    assert!(1 < removed && 1_000 < stored && 10_000 < ended, "{removed}, {stored}, {ended}");
    log.close();
}
