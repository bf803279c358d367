//! The shared Raft log of all groups of a node, in segment files.
//!
//! One writer thread takes everything that waits, from all groups, writes it as one frame, makes
//! it durable with one fsync, and then calls all completions. Readers never wait for it: what is
//! submitted is readable at once.
//!
//! # On disk
//!
//! A directory holds `lock`, `identity` (magic `AHLOG-ID`, version u32, log id u64, CRC32C u32),
//! after damage of a certain kind `doubt` (empty: groups that are unknown here may have been here),
//! at times `spare` (a file that was a segment and is to be one again), and segments named by a
//! number of 16 hexadecimal digits that is never used twice. All numbers are little endian; *v* is a
//! LEB128 number; checksums are CRC32C.
//!
//! A **segment** is whole before the one in front of it is full: preallocated, header written, file
//! and directory synced. It is created zero-filled, or it was another one that nothing points to and
//! nobody reads any more; then that one's frames stand behind its own, where nothing takes them for
//! frames of this segment: the checksums are over the segment's number.
//!
//! | bytes | segment header |
//! |---|---|
//! | 0–7 | magic `AHLOGSEG` |
//! | 8–11, 12–15 | format version (3; 2 is read), zero |
//! | 16–23 | log id: random, one per log |
//! | 24–31 | segment number |
//! | 32–39 | length of the file in bytes |
//! | 40–59 | zero |
//! | 60–63 | checksum of bytes 0–59 |
//!
//! **Frames** follow, from byte 64 on, each a multiple of 8 bytes long. A frame is one batch.
//!
//! | bytes | frame |
//! |---|---|
//! | 0–3 | checksum of log id, segment number, frame offset (u64 each) and bytes 4 to the end without the entries' contents |
//! | 4–7 | magic `AHfr` |
//! | 8–11 | length of the payload |
//! | 12–19 | batch number: one more than the frame before, across segments |
//! | 20–23 | checksum of the frame before, across segments |
//! | 24– | payload: records, then zeros up to a multiple of 8 |
//!
//! | kind | record | fields after the kind byte |
//! |---|---|---|
//! | 1 | append | group, first index v, count v, one more than the term in front of the first v (0 if there is none), then per entry: term v, length v, checksum u32 over group, term, index and content, content. Flags in the kind byte, since version 3: 16 no count, it is 1; 32 no term in front, it is the first entry's; 64 no incarnation, it is 1 |
//! | 2 | truncate | group, from v, whether anything is left (0, 1), its last position |
//! | 3 | hard state | group, flags (1 voted, 2 committed), term v, vote v if voted |
//! | 4 | purge | group, position |
//! | 5 | drop | group |
//! | 6 | copy | as append, without the term in front: entries that stay where they are in the group, found here from now on |
//! | 7 | opening | oldest segment v, count v, then per group: group, flags (1 hard state, 2 purge mark, 4 entries, 8 something lost, 16 but not its hard state), hard state, position, first index v and last position, position up to which something is lost |
//! | 8 | seal | number of the successor v |
//! | 9 | oldest | number of the oldest segment v |
//! | 10 | marker | none: proves that the frame before it was complete |
//! | 11 | echo | count v, then per group that was dropped or voted in the frame before: group, hard state (flags 4 alone: dropped) |
//! | 12 | lost | group, from v, flags (1 something left, 2 hard state known), last position left, position up to which something is lost |
//!
//! A group is shard v, incarnation v; a position is term v, index v. The first frame of a segment
//! starts with an opening, which repeats what every group has (so only entries keep old segments
//! alive), and the last one of a sealed segment is a seal. A segment that is prepared but has no
//! opening yet may stand behind the newest one.
//!
//! # Invariants
//!
//! * Recovery reads and verifies every byte that counts. It forgives a bad frame at the end of the
//!   newest segment with nothing valid behind it, and nothing else. Other damage, files that are cut
//!   or gone among it, costs the groups that it may concern ([`OpenReport`]).
//! * A damaged content leaves its frame's structure readable, and so costs one group its entries
//!   from there on. A damaged structure costs entries of the groups that nothing later speaks of;
//!   votes stand in two frames, so that no single one costs any.
//! * What was accepted always has room (`queue` keeps the count); a full disk refuses appends, while votes and
//!   purge marks have a reserve.
//! * A failed write or fsync is final.
//!
//! Not here: when to purge or truncate (`consensus`), what the entries mean.

mod frame;
mod group;
mod index;
mod memory;
mod queue;
mod read;
mod recent;
mod recovery;
mod segment;
mod tidy;
mod writer;
mod written;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread::{JoinHandle, ThreadId};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use self::group::GroupState;
use self::index::{Index, Slot};
pub use self::memory::MemoryLog;
use self::queue::{Room, Shared, State};
use self::recent::RecentFsyncs;
use self::recovery::{FoundSlot, Recovered};
use self::segment::{DOUBT_NAME, LOCK_NAME, Segment, number_of};
use self::tidy::Existing;
use self::writer::{Current, Prepared, Writer};
use self::written::{Home, Uses, Written};
use crate::fs::{FileLock, FileSystem};
use crate::log_store::{
    Completion, GroupId, GroupLog, LogEntry, LogError, LogStats, LogStore, LogWrite, Lost,
    ReadError,
};

/// Sizes of a log. Small ones make tests quick; the defaults suit a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Bytes of a segment file. A change that needs more gets a longer one. At least 4 KiB.
    pub segment_bytes: u64,
    /// Bytes up to which segments grow while they are filled by few frames: a turn costs several
    /// fsyncs, and everybody waits. Never more than an eighth of `disk_bytes_target`.
    pub segment_bytes_max: u64,
    /// Bytes of changes in one batch, at most, unless a single change is larger.
    pub batch_bytes_max: u64,
    /// Bytes of changes that may wait for the writer before `submit` waits too.
    pub queued_bytes_max: u64,
    /// Bytes of recent entries that are kept in memory.
    pub recent_bytes_max: usize,
    /// Above this many bytes on disk, live entries of the oldest segment are copied forward.
    pub disk_bytes_target: u64,
    /// No segment is added beyond this many bytes on disk: appends are refused for want of space.
    pub disk_bytes_max: u64,
    /// Bytes of entries copied forward in one batch, at most, unless a single one is larger.
    pub copy_bytes_max: u64,
    /// After this long without work a marker proves the last batch complete.
    pub idle_marker: Duration,
}

/// The one place where the log's numbers are written down.
impl Default for LogConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 16 << 20,
            segment_bytes_max: 64 << 20,
            batch_bytes_max: 4 << 20,
            queued_bytes_max: 32 << 20,
            recent_bytes_max: 64 << 20,
            disk_bytes_target: 1 << 30,
            disk_bytes_max: 16 << 30,
            copy_bytes_max: 256 << 10,
            idle_marker: Duration::from_millis(100),
        }
    }
}

/// Why a log does not open at all. Nothing was changed on disk.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another log in this one, has it open.
    #[error("the log in {} is in use by another process", dir.display())]
    Locked {
        /// The log's directory.
        dir: PathBuf,
    },
    /// The disk failed.
    #[error("{} could not be used", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The failure.
        #[source]
        source: std::io::Error,
    },
    /// Written by a program of another version.
    #[error("segment {segment} has format version {found}, which this program does not know")]
    Version {
        /// The segment's number.
        segment: u64,
        /// Its version.
        found: u32,
    },
    /// Something is neither as it was written nor what a crash or a bad disk leaves: files of
    /// another log, or a bug.
    #[error("segment {segment} is damaged at offset {offset}: {reason} (groups {groups:?})")]
    Damaged {
        /// The segment's number.
        segment: u64,
        /// The offset of the frame, in bytes.
        offset: u64,
        /// The groups that are known to be affected; empty if that cannot be told.
        groups: Vec<GroupId>,
        /// What does not fit.
        reason: &'static str,
    },
    /// The file that names the log is missing or damaged, and its segments do not agree on it.
    #[error("the log's identity file is missing or damaged, and its segments are of several logs")]
    Identity,
}

/// One place in the log that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The segment's number.
    pub segment: u64,
    /// The offset of the frame, in bytes.
    pub offset: u64,
    /// The groups that had something there; empty if that cannot be told.
    pub groups: Vec<GroupId>,
    /// What does not fit.
    pub reason: &'static str,
}

/// What damage has cost one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostGroup {
    /// The group.
    pub group: GroupId,
    /// First index that is not here any more.
    pub from: u64,
    /// What was lost.
    pub lost: Lost,
}

/// What opening a log has found wrong, and could keep to single groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// The damaged places. They may have cost nothing: what was there may be purged by now.
    pub damages: Vec<Damage>,
    /// The groups that lost something now. Those that lost something earlier are not named again;
    /// their [`GroupLog::lost`] is still set.
    pub lost: Vec<LostGroup>,
    /// See [`LogStore::unknown_groups_may_be_lost`].
    pub unknown_groups_may_be_lost: bool,
}

/// The shared log in segment files. Dropping it closes it.
pub struct SegmentedLog {
    shared: Arc<Shared>,
    fs: Arc<dyn FileSystem>,
    dir: PathBuf,
    writer_id: ThreadId,
    writer: Mutex<Option<JoinHandle<()>>>,
    lock: Mutex<Option<Box<dyn FileLock>>>,
    report: OpenReport,
}

impl SegmentedLog {
    /// Opens the log in `dir`, or creates it. Reads and verifies all of it.
    ///
    /// # Errors
    /// [`OpenError`]; the log never opens with less than was acknowledged.
    pub fn open(fs: Arc<dyn FileSystem>, dir: &Path, config: LogConfig) -> Result<Self, OpenError> {
        Self::open_known(fs, dir, config, false)
    }

    /// As [`SegmentedLog::open`]. If `must_exist`, there were groups in it, as something else in
    /// the node tells: a directory that holds no log then counts as one that has lost all of it.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_known(
        fs: Arc<dyn FileSystem>,
        dir: &Path,
        config: LogConfig,
        must_exist: bool,
    ) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Io { path: dir.to_owned(), source };
        let config = within_limits(config);
        fs.create_dir_all(dir).map_err(failed)?;
        let lock = fs.lock(&dir.join(LOCK_NAME)).map_err(|source| {
            if source.kind() == std::io::ErrorKind::WouldBlock {
                return OpenError::Locked { dir: dir.to_owned() };
            }
            failed(source)
        })?;
        let mut recovered = find(&*fs, dir, config, must_exist)?;
        let report = std::mem::take(&mut recovered.report);
        let unopened = tidy::tidy(&*fs, dir, &mut recovered)?;
        let prepared = unopened.map(|next| Prepared {
            segment: Arc::new(Segment { number: next.number, file: next.file }),
            length: next.length,
        });
        let mut writer = build(Arc::clone(&fs), dir, config, recovered, prepared)?;
        let current = writer.current.segment.number;
        let is_lost = |damage: &Damage| current <= damage.segment && damage.groups.is_empty();
        writer.must_turn = report.damages.iter().any(is_lost);
        writer.prepare_ahead().map_err(failed)?;
        let shared = Arc::clone(&writer.shared);
        // In the queue before the writer runs: nothing may be written or removed before them.
        let noted = note_losses(&shared, &report);
        writer.notes_left = report.lost.len();
        let builder = std::thread::Builder::new().name("log-writer".to_owned());
        let handle = builder.spawn(move || writer.run()).map_err(failed)?;
        let log = Self {
            shared,
            fs,
            dir: dir.to_owned(),
            writer_id: handle.thread().id(),
            writer: Mutex::new(Some(handle)),
            lock: Mutex::new(Some(lock)),
            report,
        };
        let noted: Result<(), LogError> = noted.iter().collect();
        noted.map_err(|error| failed(std::io::Error::other(error)))?;
        Ok(log)
    }

    /// What opening it has found wrong.
    #[must_use]
    pub fn report(&self) -> &OpenReport {
        &self.report
    }

    /// Writes what is queued, calls its completions, and ends the writer. Later changes are
    /// refused; reads go on.
    pub fn close(&self) {
        self.shared.state.lock().closing = true;
        self.shared.work.notify_all();
        self.shared.room.notify_all();
        if std::thread::current().id() == self.writer_id {
            return; // Closed from a completion: the writer cannot wait for itself.
        }
        let writer = self.writer.lock().take();
        if let Some(writer) = writer
            && writer.join().is_err()
        {
            tracing::error!(dir = %self.dir.display(), "the log's writer panicked");
        }
        self.lock.lock().take();
    }

    /// Bytes of live entries per group, largest first: whom to ask for a snapshot and a purge when
    /// the log is large.
    #[must_use]
    pub fn largest_groups(&self, count_max: usize) -> Vec<(GroupId, u64)> {
        let mut found: Vec<_> = self.shared.state.lock().index.all_bytes().collect();
        found.sort_by_key(|(group, bytes)| (std::cmp::Reverse(*bytes), *group));
        found.truncate(count_max);
        found
    }

    /// Bytes that can still be allocated where the log lies.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn space(&self) -> std::io::Result<u64> {
        self.fs.space(&self.dir)
    }
}

impl Drop for SegmentedLog {
    fn drop(&mut self) {
        self.close();
    }
}

impl LogStore for SegmentedLog {
    fn submit(&self, write: LogWrite, done: Completion) {
        let may_wait = std::thread::current().id() != self.writer_id;
        self.shared.submit(write, done, may_wait);
    }

    fn group(&self, group: GroupId) -> Option<GroupLog> {
        self.shared.state.lock().index.groups.get(&group).map(GroupState::summary)
    }

    fn groups(&self) -> Vec<GroupId> {
        self.shared.state.lock().index.groups.keys().copied().collect()
    }

    fn read(
        &self,
        group: GroupId,
        indexes: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<LogEntry>, ReadError> {
        let pieces = self.shared.state.lock().index.pieces(group, &indexes, bytes_max)?;
        self.shared.noting(read::read_pieces(group, pieces))
    }

    fn read_stored(
        &self,
        group: GroupId,
        indexes: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<LogEntry>, ReadError> {
        let pieces = self.shared.state.lock().index.stored_pieces(group, &indexes, bytes_max)?;
        self.shared.noting(read::read_pieces(group, pieces))
    }

    fn damaged_groups(&self) -> Vec<GroupId> {
        self.shared.state.lock().damaged.keys().copied().collect()
    }

    fn unknown_groups_may_be_lost(&self) -> bool {
        self.report.unknown_groups_may_be_lost
    }

    fn unknown_groups_are_noted(&self) {
        if !self.report.unknown_groups_may_be_lost {
            return;
        }
        let removed = tidy::remove_if_there(&*self.fs, &self.dir.join(DOUBT_NAME));
        if let Err(error) = removed.and_then(|()| self.fs.sync_dir(&self.dir)) {
            // It stays: the next start asks again.
            tracing::warn!(%error, "the note that groups may be lost could not be removed");
        }
    }

    fn group_bytes(&self, group: GroupId) -> u64 {
        self.shared.state.lock().index.bytes_of(group)
    }

    fn stats(&self) -> LogStats {
        let state = self.shared.state.lock();
        LogStats { fsync_p99_micros: state.recent_fsyncs.percentile_99(), ..state.stats }
    }
}

/// Finds the log in `dir` or makes one. Nothing is changed as long as it may turn out to be of no
/// use, apart from the note that groups may be lost.
fn find(
    fs: &dyn FileSystem,
    dir: &Path,
    config: LogConfig,
    must_exist: bool,
) -> Result<Recovered, OpenError> {
    let names = fs.list(dir).map_err(|source| OpenError::Io { path: dir.to_owned(), source })?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| number_of(name)).collect();
    numbers.sort_unstable();
    let is_doubtful = names.iter().any(|name| name == DOUBT_NAME);
    let doubt = || if is_doubtful { Ok(()) } else { tidy::note_doubt(fs, dir) };
    let found = match tidy::existing(fs, dir, &names, &numbers)? {
        Existing::None if must_exist => None,
        Existing::None => Some(tidy::create(fs, dir, &names, config.segment_bytes)?),
        Existing::Emptied => None,
        Existing::Log { log_id, identity_damaged } => {
            let found = recovery::recover(fs, dir, log_id, &numbers)?;
            found.map(|found| Recovered { identity_damaged, ..found })
        }
    };
    let Some(mut found) = found else {
        doubt()?;
        return tidy::begin_again(fs, dir, &names, &numbers, config.segment_bytes);
    };
    if found.report.unknown_groups_may_be_lost {
        doubt()?;
    }
    found.report.unknown_groups_may_be_lost |= is_doubtful;
    if found.identity_damaged {
        let reason = "the file that names the log was missing or damaged; it is made again";
        found.report.damages.push(Damage { segment: 0, offset: 0, groups: vec![], reason });
    }
    Ok(found)
}

/// Queues notes of what the report says is lost; gives their outcomes.
fn note_losses(shared: &Shared, report: &OpenReport) -> Receiver<Result<(), LogError>> {
    let (sender, receiver) = std::sync::mpsc::channel();
    for LostGroup { group, from, lost } in report.lost.iter().copied() {
        let sender = sender.clone();
        let done = move |outcome| drop(sender.send(outcome));
        shared.submit(LogWrite::MarkLost { group, from, lost }, Box::new(done), false);
    }
    receiver
}

/// Keeps sizes within what the format can say.
fn within_limits(config: LogConfig) -> LogConfig {
    let segment_bytes = config.segment_bytes.clamp(4 << 10, 1 << 30).next_multiple_of(4096);
    let eighth = (config.disk_bytes_target / 8).next_multiple_of(4096);
    LogConfig {
        segment_bytes,
        segment_bytes_max: config.segment_bytes_max.min(eighth).clamp(segment_bytes, 1 << 30),
        copy_bytes_max: config.copy_bytes_max.min(segment_bytes / 8),
        batch_bytes_max: config.batch_bytes_max.min(segment_bytes),
        ..config
    }
}

fn build(
    fs: Arc<dyn FileSystem>,
    dir: &Path,
    config: LogConfig,
    recovered: Recovered,
    prepared: Option<Prepared>,
) -> Result<Writer, OpenError> {
    let mut uses = Uses::default();
    let mut segments = BTreeMap::new();
    for found in recovered.segments {
        let segment = Arc::new(Segment { number: found.number, file: found.file });
        uses.push(Arc::clone(&segment), found.length);
        segments.insert(found.number, segment);
    }
    let (Some(oldest), Some(current)) = (uses.oldest(), uses.find(recovered.tail.segment)) else {
        return Err(OpenError::Identity);
    };
    let oldest = oldest.segment.number;
    let current = Current {
        segment: Arc::clone(&current.segment),
        length: current.length,
        offset: recovered.tail.offset,
        sealed: recovered.tail.sealed,
        began_at: recovered.tail.offset,
        frames: 0,
    };
    let (seen, written) = pictures(recovered.groups, &segments, &mut uses);
    let room = Room {
        reserve: config.segment_bytes / 16,
        groups: written.len() as u64,
        ..Room::default()
    };
    let state = State {
        index: Index::new(seen, config.recent_bytes_max),
        queue: Vec::new(),
        queued_bytes: 0,
        sequence: 0,
        room,
        closing: false,
        closed: false,
        poisoned: None,
        stats: LogStats::default(),
        recent_fsyncs: RecentFsyncs::default(),
        damaged: BTreeMap::new(),
    };
    let shared = Arc::new(Shared {
        state: Mutex::new(state),
        work: Condvar::new(),
        room: Condvar::new(),
        queued_bytes_max: config.queued_bytes_max,
    });
    Ok(Writer {
        shared,
        fs,
        dir: dir.to_owned(),
        config,
        log_id: recovered.log_id,
        written: Written { groups: written, uses },
        current,
        prepared,
        spare: None,
        number_next: recovered.number_next,
        number_own: recovered.number_next,
        batch: recovered.tail.batch,
        checksum: recovered.tail.checksum,
        oldest,
        marked: false,
        short_of_space: false,
        must_turn: false,
        notes_left: 0,
        copying: writer::Cursor::default(),
        frame: frame::FrameWriter::default(),
        echo: frame::echoes_of(&recovered.tail.frame.1),
        offsets: Vec::new(),
        bytes_written: 0,
    })
}

/// The recovered groups as readers see them, and as the writer does.
fn pictures(
    found: BTreeMap<GroupId, GroupState<FoundSlot>>,
    segments: &BTreeMap<u64, Arc<Segment>>,
    uses: &mut Uses,
) -> (BTreeMap<GroupId, GroupState<Slot>>, BTreeMap<GroupId, GroupState<Home>>) {
    let home = |slot: &FoundSlot| Home { segment: slot.segment, length: slot.length };
    let mut seen = BTreeMap::new();
    let mut written = BTreeMap::new();
    for (group, state) in found {
        state.slots.iter().for_each(|slot| uses.gain(home(slot)));
        written.insert(group, state.map(home));
        let slot = |slot: &FoundSlot| Slot {
            term: slot.term,
            sequence: 0,
            segment: segments.get(&slot.segment).cloned(),
            offset: slot.offset,
            length: slot.length,
            content: None,
        };
        seen.insert(group, state.map(slot));
    }
    (seen, written)
}

#[cfg(test)]
mod tests;
