//! Nonsense behind right checksums: what no disk does, but a bug or a forger may. An error or a log,
//! never a panic, and never an entry that cannot be read.

use super::super::frame::{Carried, FramePlace, FrameWriter, reseal};
use super::super::group::INDEX_MAX;
use super::super::segment::{FORMAT_VERSION, HEADER_LENGTH, header, identity, name_of};
use super::damage::{frames, path, scripted};
use super::*;
use crate::fs::FileSystem;
use crate::log_store::Lost;

/// Numbers that follow from a seed (xorshift), most of them small.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }

    /// Mostly what fits, now and then an edge of the range.
    fn number(&mut self) -> u64 {
        match self.below(12) {
            0 => u64::MAX,
            1 => u64::MAX >> 1,
            2 => self.next(),
            3 => 1 << 32,
            _ => self.below(6),
        }
    }

    fn position(&mut self) -> LogPosition {
        at(self.number(), self.number())
    }

    fn maybe<T>(&mut self, value: impl FnOnce(&mut Self) -> T) -> Option<T> {
        if self.below(2) == 0 { Some(value(self)) } else { None }
    }

    fn hard_state(&mut self) -> HardState {
        let voted_for = self.maybe(Self::number);
        HardState { term: self.number(), voted_for, committed: self.below(2) == 0 }
    }

    fn group(&mut self) -> GroupId {
        group(1 + self.below(3))
    }

    fn lost(&mut self) -> Lost {
        Lost { to: self.position(), hard_state_known: self.below(2) == 0 }
    }

    fn carried(&mut self) -> Carried {
        Carried {
            hard_state: self.maybe(Self::hard_state),
            purged: self.maybe(Self::position),
            live: self.maybe(|random| (random.number(), random.position())),
            lost: self.maybe(Self::lost),
        }
    }

    fn record(&mut self, frame: &mut FrameWriter) {
        let group = self.group();
        match self.below(14) {
            kind @ 0..5 => {
                let (first, count) = (self.number(), self.below(4));
                let said = if self.below(8) == 0 { self.number() } else { count };
                let said = usize::try_from(said).unwrap_or(usize::MAX);
                let terms: Vec<u64> = (0..count).map(|_| self.number()).collect();
                let first_term = terms.first().copied();
                if kind == 4 {
                    frame.copy(group, first, said);
                } else {
                    let previous = if self.below(3) == 0 { first_term } else { None };
                    let previous = previous.or_else(|| self.maybe(Self::number));
                    frame.append(group, at(first_term.unwrap_or(0), first), said, previous);
                }
                for (offset, term) in (0..).zip(terms) {
                    let position = at(term, first.wrapping_add(offset));
                    let length = usize::try_from(self.below(30)).unwrap();
                    frame.entry(group, position, &vec![7; length]);
                }
            }
            5 => {
                let last = self.maybe(Self::position);
                frame.truncate(group, self.number(), last);
            }
            6 => frame.save_hard_state(group, self.hard_state()),
            7 => frame.purge(group, self.position()),
            8 => frame.drop_group(group),
            9 => frame.seal(self.number()),
            10 => frame.oldest(self.number()),
            11 => frame.marker(),
            12 => {
                let echoes: Vec<_> = (0..self.below(3))
                    .map(|_| (self.group(), self.maybe(Self::hard_state)))
                    .collect();
                frame.echo(&echoes);
            }
            _ => {
                let last = self.maybe(Self::position);
                frame.lost(group, self.number(), last, self.lost());
            }
        }
    }
}

const LOG_ID: u64 = 77;

fn put(fs: &MemoryFs, name: &str, bytes: Vec<u8>) {
    fs.create(&path(name), bytes.len() as u64).unwrap();
    fs.replace(&path(name), bytes).unwrap();
}

/// A log of one or two segments, each with an opening and some frames of random records.
fn forge(random: &mut Random) -> MemoryFs {
    let fs = MemoryFs::new();
    fs.create_dir_all(Path::new(DIR)).unwrap();
    put(&fs, "identity", identity(LOG_ID).to_vec());
    let (mut batch, mut checksum) = (random.below(3), 0);
    let segments = 1 + random.below(2);
    for number in 1..=segments {
        let mut bytes = header(LOG_ID, number, 8192).to_vec();
        let count = 1 + random.below(5);
        for place in 0..count {
            let mut frame = FrameWriter::default();
            frame.begin();
            if place == 0 {
                let groups = usize::try_from(random.below(3)).unwrap();
                let oldest = if random.below(6) == 0 { random.number() } else { 1 };
                frame.opening(oldest, groups);
                for shard in 0..groups {
                    frame.opening_group(group(1 + shard as u64), random.carried());
                }
            }
            for _ in 0..random.below(4) {
                random.record(&mut frame);
            }
            if place + 1 == count && number < segments {
                frame.seal(number + 1);
            }
            batch += if random.below(16) == 0 { random.below(3) } else { 1 };
            let at = FramePlace { log_id: LOG_ID, segment: number, offset: bytes.len() as u64 };
            let (frame, sum) = frame.finish(at, batch, checksum);
            checksum = if random.below(30) == 0 { sum ^ 1 } else { sum };
            bytes.extend_from_slice(frame);
        }
        bytes.resize(8192.max(bytes.len()), 0);
        put(&fs, &name_of(number), bytes);
    }
    fs
}

/// Opens it; whatever it then says it holds can be read, is the same at the next start, and can be
/// written to.
fn check(fs: &MemoryFs, what: &str) -> bool {
    let Ok(log) = open(fs, small()) else { return false };
    let picture = |log: &SegmentedLog| {
        let all = log.groups().into_iter();
        all.map(|group| (group, log.group(group), readable(log, group, what))).collect::<Vec<_>>()
    };
    let before = picture(&log);
    let fresh = group(900);
    write(&log, append(fresh, 1, 0..2, 40)).unwrap();
    drop(log);
    let log = open(&fs.after_crash(0), small()).unwrap_or_else(|e| panic!("{what}: {e:?}"));
    assert_eq!(read_all(&log, fresh).len(), 2, "{what}");
    let mut after = picture(&log);
    after.retain(|(group, ..)| *group != fresh);
    assert_eq!(before, after, "{what}");
    true
}

/// Every live entry, from the first index that is one.
fn readable(log: &SegmentedLog, group: GroupId, what: &str) -> Vec<LogEntry> {
    let state = log.shared.state.lock();
    let slots = &state.index.groups[&group];
    let live = slots.first..slots.first + slots.slots.len() as u64;
    drop(state);
    let mut found = Vec::new();
    for index in live {
        let read = log.read(group, index..index + 1, usize::MAX);
        found.extend(read.unwrap_or_else(|error| panic!("{what}: {group:?}: {error}")));
    }
    found
}

#[test]
fn a_carried_purge_mark_that_no_index_can_follow_is_an_error() {
    for (index, opens) in [(7, true), (INDEX_MAX, false), (u64::MAX, false)] {
        let mut frame = FrameWriter::default();
        frame.begin();
        frame.opening(1, 1);
        let purged = Some(at(1, index));
        let carried = Carried { hard_state: None, purged, live: None, lost: None };
        frame.opening_group(group(1), carried);
        // This asks for the index behind the mark.
        frame.append(group(1), at(1, index.wrapping_add(1)), 1, Some(1));
        frame.entry(group(1), at(1, index.wrapping_add(1)), &[7; 20]);
        let place = FramePlace { log_id: LOG_ID, segment: 1, offset: HEADER_LENGTH as u64 };
        let mut bytes = header(LOG_ID, 1, 8192).to_vec();
        bytes.extend_from_slice(frame.finish(place, 1, 0).0);
        bytes.resize(8192, 0);
        let fs = MemoryFs::new();
        fs.create_dir_all(Path::new(DIR)).unwrap();
        put(&fs, "identity", identity(LOG_ID).to_vec());
        put(&fs, &name_of(1), bytes);
        assert_eq!(check(&fs, &format!("index {index}")), opens, "index {index}");
    }
}

#[test]
fn random_records_with_right_checksums_are_a_log_or_an_error() {
    let rounds = if long() { 200_000 } else { 250 };
    let mut opened = 0;
    for seed in 1..=rounds {
        let mut random = Random(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let fs = forge(&mut random);
        opened += u64::from(check(&fs, &format!("seed {seed}")));
    }
    assert!(0 < opened && opened < rounds, "{opened} of {rounds} opened");
}

#[test]
fn changed_bytes_with_right_checksums_are_a_log_or_an_error() {
    let (fs, _) = scripted(super::damage::nothing_copied());
    let names = segments(&fs);
    let log_id = fs.bytes(&path("identity")).unwrap()[12..20].try_into().unwrap();
    let log_id = u64::from_le_bytes(log_id);
    let rounds = if long() { 100_000 } else { 3_000 };
    let (mut sealed, mut opened) = (0, 0);
    for seed in 1..=rounds {
        let mut random = Random(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let choice = usize::try_from(random.below(names.len() as u64)).unwrap();
        let mut bytes = fs.bytes(&path(&names[choice])).unwrap();
        let all = frames(&bytes);
        if all.is_empty() {
            continue;
        }
        let (start, end) = all[usize::try_from(random.below(all.len() as u64)).unwrap()];
        for _ in 0..=random.below(3) {
            let offset =
                start + 12 + usize::try_from(random.below((end - start - 12) as u64)).unwrap();
            bytes[offset] = random.next().to_le_bytes()[0];
        }
        let place = FramePlace { log_id, segment: choice as u64 + 1, offset: start as u64 };
        if !reseal(&mut bytes, place) {
            continue;
        }
        sealed += 1;
        let forged = fs.after_kill();
        forged.replace(&path(&names[choice]), bytes).unwrap();
        opened += u64::from(check(&forged, &format!("seed {seed}")));
    }
    assert!(rounds / 20 < sealed && 0 < opened, "{opened} of {sealed} opened");
    assert_eq!(FORMAT_VERSION, 3, "another format needs other forgeries");
}
