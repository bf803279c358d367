//! The queue between the callers and the writer, and the rule for who may still join it.
//!
//! Invariant: what is queued always fits, whole, into the rest of the current segment or into the
//! segment prepared behind it. So a change that was accepted, and is visible, never meets a full
//! disk later.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::frame::{
    ENTRY_OVERHEAD_BYTES, FRAME_OVERHEAD_BYTES, OPENING_BYTES, OPENING_GROUP_BYTES,
    SMALL_RECORD_BYTES,
};
use super::group::{GroupState, refuses_purge};
use super::index::{Index, Slot};
use super::memory::moves;
use super::recent::RecentFsyncs;
use crate::log_store::{
    Completion, GroupId, HardState, LogEntry, LogError, LogPosition, LogStats, LogWrite, Lost,
    ReadError,
};

/// One change may be at most this long. Offsets in a segment have 32 bits.
pub(super) const CHANGE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// What the writer has to put on disk.
pub(super) enum Change {
    Append {
        group: GroupId,
        /// Term of what is in front of the first one.
        previous: Option<u64>,
        entries: Vec<LogEntry>,
    },
    Truncate {
        group: GroupId,
        from: u64,
        last: Option<LogPosition>,
    },
    SaveHardState {
        group: GroupId,
        hard_state: HardState,
    },
    Purge {
        group: GroupId,
        up_to: LogPosition,
    },
    Drop {
        group: GroupId,
    },
    MarkLost {
        group: GroupId,
        from: u64,
        last: Option<LogPosition>,
        lost: Lost,
    },
    /// Nothing; the outcome is known, but waits its turn.
    Nothing(Result<(), LogError>),
}

pub(super) struct Queued {
    pub(super) sequence: u64,
    pub(super) change: Change,
    /// The most it can take on disk.
    pub(super) bytes: u64,
    pub(super) done: Completion,
}

/// What the writer says about the space that is there.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Room {
    /// Bytes left in the current segment.
    pub(super) current: u64,
    /// Bytes in the prepared segment, before its opening.
    pub(super) prepared: u64,
    /// Bytes that appends leave alone.
    pub(super) reserve: u64,
    /// Groups that the next opening may have to carry.
    pub(super) groups: u64,
    /// Bytes that someone waits for.
    pub(super) wanted: u64,
    /// How often preparing a segment failed for want of space.
    pub(super) failures: u64,
}

impl Room {
    /// The most an opening can take.
    pub(super) fn opening(&self) -> u64 {
        FRAME_OVERHEAD_BYTES + OPENING_BYTES + OPENING_GROUP_BYTES * (self.groups + 1)
    }

    fn free(&self) -> u64 {
        self.current.max(self.prepared_free())
    }

    pub(super) fn prepared_free(&self) -> u64 {
        self.prepared.saturating_sub(self.opening())
    }
}

pub(super) struct State {
    pub(super) index: Index,
    pub(super) queue: Vec<Queued>,
    /// Sum of the bytes of all changes that are not on disk yet.
    pub(super) queued_bytes: u64,
    pub(super) sequence: u64,
    pub(super) room: Room,
    pub(super) closing: bool,
    /// The writer has gone.
    pub(super) closed: bool,
    pub(super) poisoned: Option<Arc<io::Error>>,
    pub(super) stats: LogStats,
    pub(super) recent_fsyncs: RecentFsyncs,
    /// The last entry of each group that was found damaged since the start.
    pub(super) damaged: BTreeMap<GroupId, u64>,
}

/// What callers and the writer share.
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    /// The writer waits here for work.
    pub(super) work: Condvar,
    /// Callers wait here for room.
    pub(super) room: Condvar,
    pub(super) queued_bytes_max: u64,
}

impl Shared {
    /// Notes what a read has found damaged.
    pub(super) fn noting<T>(&self, read: Result<T, ReadError>) -> Result<T, ReadError> {
        if let Err(ReadError::Corrupt { group, index, .. }) = &read {
            self.note_damage(*group, *index);
        }
        read
    }

    /// Notes that an entry cannot be read.
    pub(super) fn note_damage(&self, group: GroupId, index: u64) {
        let mut state = self.state.lock();
        let last = state.damaged.entry(group).or_default();
        *last = (*last).max(index);
    }

    /// Accepts, refuses and queues a change.
    ///
    /// `may_wait` is false on the writer's own thread, which would wait for itself.
    pub(super) fn submit(&self, write: LogWrite, done: Completion, may_wait: bool) {
        let bytes = bytes_bound(&write);
        let mut state = self.state.lock();
        let admitted = self.admit(&mut state, &write, bytes, may_wait);
        let change = admitted.and_then(|()| state.accept(write));
        let change = change.unwrap_or_else(|error| Change::Nothing(Err(error)));
        let bytes = match &change {
            Change::Nothing(_) => 0,
            Change::Append { .. }
            | Change::Truncate { .. }
            | Change::SaveHardState { .. }
            | Change::Purge { .. }
            | Change::Drop { .. }
            | Change::MarkLost { .. } => bytes,
        };
        if state.closed {
            drop(state);
            if let Change::Nothing(outcome) = change {
                done(outcome);
            }
            return;
        }
        state.queued_bytes += bytes;
        let sequence = state.sequence;
        let was_empty = state.queue.is_empty();
        state.queue.push(Queued { sequence, change, bytes, done });
        drop(state);
        if was_empty {
            self.work.notify_one();
        }
    }

    fn admit(
        &self,
        state: &mut MutexGuard<'_, State>,
        write: &LogWrite,
        bytes: u64,
        may_wait: bool,
    ) -> Result<(), LogError> {
        let group = group_of(write);
        let spared = match write {
            LogWrite::Append { .. } => state.room.reserve,
            LogWrite::SaveHardState { .. } => state.room.reserve / 2,
            LogWrite::Truncate { .. }
            | LogWrite::Purge { .. }
            | LogWrite::Drop { .. }
            | LogWrite::MarkLost { .. } => 0,
        };
        if CHANGE_BYTES_MAX < bytes {
            return Err(LogError::Refused { group, reason: "the entries are too large" });
        }
        let failures = state.room.failures;
        loop {
            if let Some(source) = &state.poisoned {
                return Err(LogError::Poisoned { source: Arc::clone(source) });
            }
            if state.closing {
                return Err(LogError::Refused { group, reason: "the log is closed" });
            }
            let fits = state.queued_bytes + bytes + spared <= state.room.free();
            let is_short = state.queued_bytes == 0
                || state.queued_bytes + bytes <= self.queued_bytes_max
                || !may_wait;
            if fits && is_short {
                return Ok(());
            }
            if !fits && (failures < state.room.failures || !may_wait) {
                return Err(LogError::NoSpace);
            }
            if !fits {
                state.room.wanted = state.room.wanted.max(bytes + spared);
            }
            self.work.notify_one();
            self.room.wait(state);
        }
    }
}

impl State {
    /// Checks a change against what the group holds, makes it visible, and says what to write.
    fn accept(&mut self, write: LogWrite) -> Result<Change, LogError> {
        let group = group_of(&write);
        if let Some(reason) = self.refuses(&write) {
            return Err(LogError::Refused { group, reason });
        }
        self.sequence += 1;
        let known = self.index.groups.get(&group);
        let is_new = known.is_none();
        let change = match write {
            LogWrite::Append { entries, .. } => {
                if entries.is_empty() {
                    return Ok(Change::Nothing(Ok(())));
                }
                let content = entries.iter().map(|entry| entry.content.len() as u64);
                self.stats.bytes_given += content.sum::<u64>();
                self.stats.entries += entries.len() as u64;
                let previous = known.and_then(|state| state.last).map(|last| last.term);
                self.index.append(group, &entries, self.sequence);
                Change::Append { group, previous, entries }
            }
            LogWrite::Truncate { from, .. } => {
                if !known.is_some_and(|state| state.reaches(from)) {
                    return Ok(Change::Nothing(Ok(())));
                }
                Change::Truncate { group, from, last: self.index.truncate(group, from) }
            }
            LogWrite::SaveHardState { hard_state, .. } => {
                self.index.groups.entry(group).or_default().hard_state = Some(hard_state);
                Change::SaveHardState { group, hard_state }
            }
            LogWrite::Purge { up_to, .. } => {
                if known.is_some_and(|state| !moves(state.purged, up_to)) {
                    return Ok(Change::Nothing(Ok(())));
                }
                self.index.purge(group, up_to);
                if self.damaged.get(&group).is_some_and(|last| *last <= up_to.index) {
                    self.damaged.remove(&group);
                }
                Change::Purge { group, up_to }
            }
            LogWrite::Drop { .. } => {
                if is_new {
                    return Ok(Change::Nothing(Ok(())));
                }
                self.index.remove(group);
                self.damaged.remove(&group);
                return Ok(Change::Drop { group });
            }
            LogWrite::MarkLost { from, lost, .. } => {
                let last = self.index.mark_lost(group, from, lost);
                Change::MarkLost { group, from, last, lost }
            }
        };
        if is_new {
            self.room.groups += 1;
        }
        Ok(change)
    }

    fn refuses(&self, write: &LogWrite) -> Option<&'static str> {
        let known = self.index.groups.get(&group_of(write));
        match write {
            LogWrite::Append { entries, .. } => match known {
                Some(state) => state.refuses_append(entries),
                None => GroupState::<Slot>::default().refuses_append(entries),
            },
            LogWrite::Truncate { from, .. } => known?.refuses_truncate(*from),
            LogWrite::Purge { up_to, .. } => refuses_purge(*up_to),
            LogWrite::SaveHardState { .. } | LogWrite::Drop { .. } | LogWrite::MarkLost { .. } => {
                None
            }
        }
    }
}

fn group_of(write: &LogWrite) -> GroupId {
    match write {
        LogWrite::Append { group, .. }
        | LogWrite::Truncate { group, .. }
        | LogWrite::SaveHardState { group, .. }
        | LogWrite::Purge { group, .. }
        | LogWrite::Drop { group }
        | LogWrite::MarkLost { group, .. } => *group,
    }
}

/// The most a change can take on disk, in a frame of its own. A new group also makes the next
/// opening longer.
fn bytes_bound(write: &LogWrite) -> u64 {
    let records = match write {
        LogWrite::Append { entries, .. } => {
            let content = entries.iter().map(|entry| entry.content.len() as u64);
            SMALL_RECORD_BYTES + content.map(|length| length + ENTRY_OVERHEAD_BYTES).sum::<u64>()
        }
        LogWrite::Truncate { .. }
        | LogWrite::SaveHardState { .. }
        | LogWrite::Purge { .. }
        | LogWrite::Drop { .. }
        | LogWrite::MarkLost { .. } => SMALL_RECORD_BYTES,
    };
    FRAME_OVERHEAD_BYTES + records
}
