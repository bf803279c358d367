//! The one thread that writes: drains the queue, one frame, one write, one fsync, then everyone's
//! completions in order.
//!
//! Invariants: at most one frame is not yet durable; a segment is sealed only when its successor
//! is prepared and durable; a file is removed only when the record that says so is durable. The
//! first failed write or fsync is the last: nothing is written or acknowledged after it.

mod upkeep;

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) use self::upkeep::Cursor;
use super::LogConfig;
use super::frame::{ECHO_BYTES, Echo, FramePlace, FrameWriter, SEAL_BYTES};
use super::queue::{Change, Queued, Shared};
use super::recovery::carry;
use super::segment::{SEGMENT_HEADER_BYTES, Segment};
use super::tidy::Spare;
use super::written::{Home, Written};
use crate::fs::FileSystem;
use crate::log_store::{GroupId, LogEntry, LogError, LogPosition};

/// The segment that is written to.
pub(super) struct Current {
    pub(super) segment: Arc<Segment>,
    pub(super) length: u64,
    /// Where the next frame goes.
    pub(super) offset: u64,
    pub(super) sealed: bool,
    /// Where this process began to write, and how many frames it has written since.
    pub(super) began_at: u64,
    pub(super) frames: u64,
}

impl Current {
    /// Bytes that changes may still take.
    pub(super) fn free(&self) -> u64 {
        if self.sealed { 0 } else { self.length.saturating_sub(self.offset + SEAL_BYTES) }
    }
}

/// The segment that comes next.
pub(super) struct Prepared {
    pub(super) segment: Arc<Segment>,
    pub(super) length: u64,
}

impl Prepared {
    /// Bytes for its opening and for changes.
    pub(super) fn free(&self) -> u64 {
        self.length.saturating_sub(SEGMENT_HEADER_BYTES + SEAL_BYTES)
    }
}

/// A live entry on its way out of the oldest segment.
pub(super) struct Copied {
    group: GroupId,
    entry: LogEntry,
    from: (u64, u32),
    /// Where its content starts in the frame, then in the segment.
    at: u32,
}

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) fs: Arc<dyn FileSystem>,
    pub(super) dir: PathBuf,
    pub(super) config: LogConfig,
    pub(super) log_id: u64,
    pub(super) written: Written,
    pub(super) current: Current,
    pub(super) prepared: Option<Prepared>,
    /// What the next segment can be made of.
    pub(super) spare: Option<Spare>,
    /// Number of the next segment that is made. None is used twice.
    pub(super) number_next: u64,
    /// The first one that this process has made. A disk that has lost something of an older one may
    /// do it again: only its own are written again.
    pub(super) number_own: u64,
    /// Number of the last batch.
    pub(super) batch: u64,
    /// Checksum of the last frame.
    pub(super) checksum: u32,
    /// The oldest segment that the disk names.
    pub(super) oldest: u64,
    /// Whether the last frame is a marker.
    pub(super) marked: bool,
    /// Whether the last attempt to prepare a segment failed for want of space.
    pub(super) short_of_space: bool,
    /// The current segment is damaged: the next one's opening is to say again what there is,
    /// before an older one is removed.
    pub(super) must_turn: bool,
    /// Notes of losses that are not on disk yet. Until they are, the damaged entries seem live to
    /// a recovery, and no segment may go.
    pub(super) notes_left: usize,
    pub(super) copying: Cursor,
    pub(super) frame: FrameWriter,
    /// The hard states in the last frame: the next one repeats them.
    pub(super) echo: Vec<Echo>,
    pub(super) offsets: Vec<u32>,
    /// Bytes written since they were last added to the counters.
    pub(super) bytes_written: u64,
}

/// Why the writer stopped waiting, beside what is in the queue.
struct Turn {
    closing: bool,
    /// There was nothing to do for some time.
    rested: bool,
}

/// One batch, between its choice and its completion.
#[derive(Default)]
struct Batch {
    /// How many changes of the queue it takes, and how many bytes at most.
    count: usize,
    copies: Vec<Copied>,
    /// The oldest segment, if this batch is the one to say so.
    oldest: Option<u64>,
}

impl Writer {
    pub(super) fn run(mut self) {
        let mut failure = None;
        let mut queue = VecDeque::new();
        loop {
            let Turn { closing, rested } = self.wait(&mut queue, failure.is_some());
            if failure.is_none() {
                let worked = self.work(&mut queue, closing, closing || rested);
                if let Err(error) = worked {
                    tracing::error!(%error, dir = %self.dir.display(), "the log failed");
                    failure = Some(self.poison(error));
                }
            }
            if let Some(source) = &failure {
                for queued in queue.drain(..) {
                    (queued.done)(Err(LogError::Poisoned { source: Arc::clone(source) }));
                }
            }
            if closing && self.leave() {
                return;
            }
        }
    }

    /// Waits for work and takes it.
    fn wait(&mut self, queue: &mut VecDeque<Queued>, poisoned: bool) -> Turn {
        let may_rest = poisoned || !self.has_upkeep();
        let mut rested = false;
        let mut state = self.shared.state.lock();
        while may_rest && state.queue.is_empty() && state.room.wanted == 0 && !state.closing {
            if poisoned || self.marked {
                self.shared.work.wait(&mut state);
                continue;
            }
            let idle = self.config.idle_marker;
            rested = self.shared.work.wait_for(&mut state, idle).timed_out();
            if rested {
                break;
            }
        }
        queue.extend(state.queue.drain(..));
        Turn { closing: state.closing, rested: rested && queue.is_empty() }
    }

    /// Takes the leave of a closing log, unless something came in meanwhile.
    fn leave(&self) -> bool {
        let mut state = self.shared.state.lock();
        state.closed = state.queue.is_empty();
        state.closed
    }

    fn poison(&self, error: io::Error) -> Arc<io::Error> {
        let source = Arc::new(error);
        self.shared.state.lock().poisoned = Some(Arc::clone(&source));
        self.shared.room.notify_all();
        source
    }

    fn work(&mut self, queue: &mut VecDeque<Queued>, closing: bool, mark: bool) -> io::Result<()> {
        let idle = queue.is_empty();
        while !queue.is_empty() {
            self.write_batch(queue)?;
            self.prepare_ahead()?;
        }
        if idle && !closing && self.has_upkeep() {
            // First of all: it may free the space that the next segment needs.
            self.write_batch(queue)?;
        } else if mark && !self.marked {
            self.write_marker()?;
        }
        self.prepare_ahead()
    }

    /// Writes the next changes of the queue, and what upkeep is due, as one frame.
    fn write_batch(&mut self, queue: &mut VecDeque<Queued>) -> io::Result<()> {
        let needed = queue.front().map_or(0, |queued| queued.bytes);
        let mut batch = Batch::default();
        let turn = self.current.free() < needed
            || (needed == 0 && self.turns_for_upkeep())
            || (self.must_turn && self.prepared.is_some());
        if turn {
            self.turn_over()?;
            self.frame.begin();
            batch.oldest = Some(self.encode_opening());
        } else {
            self.frame.begin();
            self.encode_echo(needed);
        }
        let bare = if turn { 0 } else { self.frame.length() };
        if !turn {
            self.plan_upkeep(needed, &mut batch);
        }
        self.encode_changes(queue, &mut batch);
        let mut fsync = None;
        if bare < self.frame.length() {
            fsync = Some(self.write_frame()?);
            self.echo = echoes(queue, &batch);
        }
        self.marked &= fsync.is_none();
        self.note_written(queue, &batch);
        self.publish(queue, &batch, fsync);
        for queued in queue.drain(..batch.count) {
            let outcome = match queued.change {
                Change::Nothing(outcome) => outcome,
                Change::Append { .. }
                | Change::Truncate { .. }
                | Change::SaveHardState { .. }
                | Change::Purge { .. }
                | Change::Drop { .. }
                | Change::MarkLost { .. } => Ok(()),
            };
            (queued.done)(outcome);
        }
        if let Some(oldest) = batch.oldest {
            self.remove_below(oldest)?;
        }
        Ok(())
    }

    /// A frame that says nothing. It proves that the frame before it was complete.
    fn write_marker(&mut self) -> io::Result<()> {
        let bytes = super::frame::FRAME_OVERHEAD_BYTES + 1;
        if self.current.free() < bytes || !self.take_room(bytes) {
            self.marked = true; // No room. The next frame proves as much.
            return Ok(());
        }
        self.frame.begin();
        self.encode_echo(bytes);
        self.frame.marker();
        self.offsets.clear();
        let fsync = self.write_frame()?;
        self.echo.clear();
        self.marked = true;
        self.publish(&VecDeque::new(), &Batch::default(), Some(fsync));
        Ok(())
    }

    /// Repeats the hard states of the frame before, so that no single damaged frame costs a vote.
    /// Left out where the callers need the room: the next opening repeats them anyway.
    fn encode_echo(&mut self, needed: u64) {
        let bytes = ECHO_BYTES * self.echo.len() as u64;
        let fits = needed + bytes <= self.current.free() && self.take_room(bytes);
        if self.echo.is_empty() || fits {
            self.frame.echo(&self.echo);
        }
    }

    fn encode_opening(&mut self) -> u64 {
        let oldest = self.written.uses.oldest_needed();
        self.frame.opening(oldest, self.written.groups.len());
        for (group, state) in &self.written.groups {
            self.frame.opening_group(*group, carry(state));
        }
        oldest
    }

    /// Encodes as many changes as fit, at least one.
    fn encode_changes(&mut self, queue: &VecDeque<Queued>, batch: &mut Batch) {
        self.offsets.clear();
        let free = self.current.free().saturating_sub(self.frame.length());
        let bytes_max = free.min(self.config.batch_bytes_max);
        let mut bytes = 0;
        for queued in queue {
            bytes += queued.bytes;
            if batch.count != 0 && bytes_max < bytes {
                break;
            }
            batch.count += 1;
            match &queued.change {
                Change::Append { group, previous, entries } => {
                    if let Some(first) = entries.first() {
                        self.frame.append(*group, first.position, entries.len(), *previous);
                    }
                    for entry in entries {
                        let at = self.frame.entry(*group, entry.position, &entry.content);
                        self.offsets.push(at);
                    }
                }
                Change::Truncate { group, from, last } => self.frame.truncate(*group, *from, *last),
                Change::SaveHardState { group, hard_state } => {
                    self.frame.save_hard_state(*group, *hard_state);
                }
                Change::Purge { group, up_to } => self.frame.purge(*group, *up_to),
                Change::Drop { group } => self.frame.drop_group(*group),
                Change::MarkLost { group, from, last, lost } => {
                    self.frame.lost(*group, *from, *last, *lost);
                }
                Change::Nothing(_) => {}
            }
        }
    }

    /// Writes the frame and waits until it is durable. Returns how long that took.
    #[expect(clippy::disallowed_methods, reason = "a figure for people; nothing depends on it")]
    pub(super) fn write_frame(&mut self) -> io::Result<Duration> {
        let place = FramePlace {
            log_id: self.log_id,
            segment: self.current.segment.number,
            offset: self.current.offset,
        };
        let (bytes, checksum) = self.frame.finish(place, self.batch + 1, self.checksum);
        if self.current.length < place.offset + bytes.len() as u64 {
            return Err(io::Error::other("a frame reaches beyond its segment"));
        }
        self.current.segment.file.write_at(bytes, place.offset)?;
        let started = Instant::now();
        self.current.segment.file.sync_data()?;
        let took = started.elapsed();
        let base = u32::try_from(place.offset).unwrap_or(u32::MAX);
        for at in &mut self.offsets {
            *at += base;
        }
        self.batch += 1;
        self.checksum = checksum;
        self.current.offset += bytes.len() as u64;
        self.current.frames += 1;
        self.bytes_written += bytes.len() as u64;
        Ok(took)
    }

    /// Repeats on the writer's own picture what is durable now.
    fn note_written(&mut self, queue: &VecDeque<Queued>, batch: &Batch) {
        let segment = self.current.segment.number;
        let Written { groups, uses } = &mut self.written;
        for copied in &batch.copies {
            let state = groups.get_mut(&copied.group);
            if let Some(home) = state.and_then(|s| s.slot_mut(copied.entry.position.index)) {
                uses.lose(*home);
                home.segment = segment;
                uses.gain(*home);
            }
        }
        for queued in queue.iter().take(batch.count) {
            match &queued.change {
                Change::Append { group, entries, .. } => {
                    let state = groups.entry(*group).or_default();
                    for entry in entries {
                        let length = u32::try_from(entry.content.len()).unwrap_or(u32::MAX);
                        let home = Home { segment, length };
                        uses.gain(home);
                        state.push(entry.position, home);
                    }
                }
                Change::Truncate { group, from, last } => {
                    if let Some(state) = groups.get_mut(group) {
                        state.truncate(*from, *last).for_each(|home| uses.lose(home));
                    }
                }
                Change::SaveHardState { group, hard_state } => {
                    groups.entry(*group).or_default().hard_state = Some(*hard_state);
                }
                Change::Purge { group, up_to } => {
                    let state = groups.entry(*group).or_default();
                    state.purge(*up_to).for_each(|home| uses.lose(home));
                }
                Change::Drop { group } => {
                    let slots = groups.remove(group).unwrap_or_default().slots;
                    slots.into_iter().for_each(|home| uses.lose(home));
                }
                Change::MarkLost { group, from, last, lost } => {
                    let state = groups.entry(*group).or_default();
                    state.mark_lost(*from, *last, *lost).for_each(|home| uses.lose(home));
                    self.notes_left = self.notes_left.saturating_sub(1);
                }
                Change::Nothing(_) => {}
            }
        }
    }

    /// Tells readers where the entries are, and callers how much room there is.
    fn publish(&mut self, queue: &VecDeque<Queued>, batch: &Batch, fsync: Option<Duration>) {
        let base = u32::try_from(self.current.offset).unwrap_or(u32::MAX);
        let segment = &self.current.segment;
        let mut offsets = self.offsets.as_slice();
        let mut state = self.shared.state.lock();
        let start = base.saturating_sub(u32::try_from(self.frame.length()).unwrap_or(0));
        for copied in &batch.copies {
            let index = copied.entry.position.index;
            state.index.moved(copied.group, index, copied.from, (segment, start + copied.at));
        }
        for queued in queue.iter().take(batch.count) {
            state.queued_bytes -= queued.bytes;
            if let Change::Append { group, entries, .. } = &queued.change {
                let (own, rest) = offsets.split_at(entries.len());
                offsets = rest;
                let first = entries.first().map_or(0, |entry| entry.position.index);
                state.index.stored(*group, first, queued.sequence, segment, own);
            }
            if matches!(queued.change, Change::Drop { .. }) {
                state.room.groups -= 1;
            }
        }
        if let Some(took) = fsync {
            let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            state.stats.fsyncs += 1;
            state.stats.fsync_micros += micros;
            state.recent_fsyncs.add(micros);
        }
        self.show_room(&mut state);
        drop(state);
        self.shared.room.notify_all();
    }
}

/// What a batch says of hard states.
fn echoes(queue: &VecDeque<Queued>, batch: &Batch) -> Vec<Echo> {
    let changes = queue.iter().take(batch.count).map(|queued| &queued.change);
    let said = changes.filter_map(|change| match change {
        Change::SaveHardState { group, hard_state } => Some((*group, Some(*hard_state))),
        Change::Drop { group } => Some((*group, None)),
        Change::Append { .. }
        | Change::Truncate { .. }
        | Change::Purge { .. }
        | Change::MarkLost { .. }
        | Change::Nothing(_) => None,
    });
    said.collect()
}

impl Copied {
    pub(super) fn new(group: GroupId, entry: LogEntry, from: (u64, u32), at: u32) -> Self {
        Self { group, entry, from, at }
    }

    pub(super) fn position(&self) -> LogPosition {
        self.entry.position
    }
}
