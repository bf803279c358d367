//! What readers see: every live entry with its place on disk, and the recent ones' contents.
//!
//! Invariant: an entry that is not written yet has its content here; a written one has its
//! segment. A place holds a counted reference to its segment, so what a reader has copied out
//! stays readable whatever happens to the index meanwhile.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::group::GroupState;
use super::memory::live;
use super::segment::Segment;
use crate::log_store::{GroupId, LogEntry, LogPosition, Lost, ReadError};

/// One live entry. 64 bytes, of which there may be millions.
pub(super) struct Slot {
    pub(super) term: u64,
    /// The change that brought it. An index can be truncated and appended again before the first
    /// entry is written; this tells the two apart.
    pub(super) sequence: u64,
    /// `None` until it is durable.
    pub(super) segment: Option<Arc<Segment>>,
    pub(super) offset: u32,
    pub(super) length: u32,
    pub(super) content: Option<Bytes>,
}

/// An entry as copied out for a reader.
#[cfg_attr(test, derive(Clone))]
pub(super) enum Piece {
    Here(LogEntry),
    Stored { position: LogPosition, segment: Arc<Segment>, offset: u32, length: u32 },
}

/// The entries of one append, in the order in which their contents will be let go.
struct Recent {
    group: GroupId,
    first: u64,
    count: u32,
    sequence: u64,
}

pub(super) struct Index {
    pub(super) groups: BTreeMap<GroupId, GroupState<Slot>>,
    /// Bytes of each group's live entries.
    bytes: BTreeMap<GroupId, u64>,
    recent: VecDeque<Recent>,
    contents: Contents,
    recent_bytes_max: usize,
}

#[derive(Default)]
struct Contents {
    bytes: usize,
    entries: usize,
}

fn position_before(state: &GroupState<Slot>, from: u64) -> Option<LogPosition> {
    let before = from.checked_sub(1).and_then(|index| Some((index, state.slot(index)?.term)));
    before.map(|(index, term)| LogPosition { term, index }).or(state.purged)
}

impl Contents {
    fn let_go(&mut self, slot: &mut Slot) {
        if let Some(content) = slot.content.take() {
            self.bytes -= content.len();
            self.entries -= 1;
        }
    }
}

impl Index {
    pub(super) fn new(
        groups: BTreeMap<GroupId, GroupState<Slot>>,
        recent_bytes_max: usize,
    ) -> Self {
        let of = |state: &GroupState<Slot>| state.slots.iter().map(|s| u64::from(s.length)).sum();
        let bytes = groups.iter().map(|(group, state)| (*group, of(state))).collect();
        let (recent, contents) = (VecDeque::new(), Contents::default());
        Self { groups, bytes, recent, contents, recent_bytes_max }
    }

    /// Bytes of a group's live entries.
    pub(super) fn bytes_of(&self, group: GroupId) -> u64 {
        self.bytes.get(&group).copied().unwrap_or(0)
    }

    /// Bytes of live entries per group.
    pub(super) fn all_bytes(&self) -> impl Iterator<Item = (GroupId, u64)> {
        self.bytes.iter().map(|(group, bytes)| (*group, *bytes))
    }

    fn gone(&mut self, group: GroupId, gone: u64) {
        if let Some(bytes) = self.bytes.get_mut(&group) {
            *bytes = bytes.saturating_sub(gone);
        }
    }

    /// Adds entries that have been checked.
    pub(super) fn append(&mut self, group: GroupId, entries: &[LogEntry], sequence: u64) {
        let Some(first) = entries.first() else { return };
        let state = self.groups.entry(group).or_default();
        for entry in entries {
            let slot = Slot {
                term: entry.position.term,
                sequence,
                segment: None,
                offset: 0,
                length: u32::try_from(entry.content.len()).unwrap_or(u32::MAX),
                content: Some(entry.content.clone()),
            };
            self.contents.bytes += entry.content.len();
            self.contents.entries += 1;
            state.push(entry.position, slot);
        }
        let length: usize = entries.iter().map(|entry| entry.content.len()).sum();
        *self.bytes.entry(group).or_default() += length as u64;
        let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        self.recent.push_back(Recent { group, first: first.position.index, count, sequence });
        self.let_go_of_old();
    }

    /// Removes entries; returns what then ends the group's log.
    pub(super) fn truncate(&mut self, group: GroupId, from: u64) -> Option<LogPosition> {
        let state = self.groups.get_mut(&group)?;
        let last = position_before(state, from);
        let mut gone = 0;
        for mut slot in state.truncate(from, last) {
            gone += u64::from(slot.length);
            self.contents.let_go(&mut slot);
        }
        self.gone(group, gone);
        last
    }

    /// Removes entries and notes the loss; returns what then ends the group's log.
    pub(super) fn mark_lost(
        &mut self,
        group: GroupId,
        from: u64,
        lost: Lost,
    ) -> Option<LogPosition> {
        let state = self.groups.entry(group).or_default();
        let last = if state.reaches(from) { position_before(state, from) } else { state.last };
        let mut gone = 0;
        for mut slot in state.mark_lost(from, last, lost) {
            gone += u64::from(slot.length);
            self.contents.let_go(&mut slot);
        }
        self.gone(group, gone);
        last
    }

    pub(super) fn purge(&mut self, group: GroupId, up_to: LogPosition) {
        let state = self.groups.entry(group).or_default();
        let mut gone = 0;
        for mut slot in state.purge(up_to) {
            gone += u64::from(slot.length);
            self.contents.let_go(&mut slot);
        }
        self.gone(group, gone);
    }

    pub(super) fn remove(&mut self, group: GroupId) {
        self.bytes.remove(&group);
        let Some(state) = self.groups.remove(&group) else { return };
        for mut slot in state.slots {
            self.contents.let_go(&mut slot);
        }
    }

    /// Notes where the entries of one append now are, as far as they are still wanted.
    pub(super) fn stored(
        &mut self,
        group: GroupId,
        first: u64,
        sequence: u64,
        segment: &Arc<Segment>,
        offsets: &[u32],
    ) {
        let Some(state) = self.groups.get_mut(&group) else { return };
        for (index, offset) in (first..).zip(offsets) {
            if let Some(slot) = state.slot_mut(index)
                && slot.sequence == sequence
            {
                slot.segment = Some(Arc::clone(segment));
                slot.offset = *offset;
            }
        }
    }

    /// Notes that an entry was copied from one segment to another, if it is still the same entry.
    pub(super) fn moved(
        &mut self,
        group: GroupId,
        index: u64,
        from: (u64, u32),
        to: (&Arc<Segment>, u32),
    ) {
        if let Some(slot) = self.groups.get_mut(&group).and_then(|state| state.slot_mut(index))
            && let Some(segment) = &slot.segment
            && (segment.number, slot.offset) == from
        {
            slot.segment = Some(Arc::clone(to.0));
            slot.offset = to.1;
        }
    }

    /// Copies out what a reader asked for, so that it can read on without the lock.
    pub(super) fn pieces(
        &self,
        group: GroupId,
        indexes: &Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<Piece>, ReadError> {
        self.pieces_from(group, indexes, bytes_max, |slot| slot.content.is_some())
    }

    /// The same; in memory only what is nowhere else yet.
    pub(super) fn stored_pieces(
        &self,
        group: GroupId,
        indexes: &Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<Piece>, ReadError> {
        self.pieces_from(group, indexes, bytes_max, |slot| slot.segment.is_none())
    }

    fn pieces_from(
        &self,
        group: GroupId,
        indexes: &Range<u64>,
        bytes_max: usize,
        is_here: impl Fn(&Slot) -> bool,
    ) -> Result<Vec<Piece>, ReadError> {
        let mut found = Vec::new();
        let mut bytes = 0_usize;
        for (index, slot) in (indexes.start..).zip(live(self.groups.get(&group), indexes)?) {
            bytes = bytes.saturating_add(slot.length as usize);
            if !found.is_empty() && bytes_max < bytes {
                break;
            }
            let position = LogPosition { term: slot.term, index };
            let content = slot.content.as_ref().filter(|_| is_here(slot));
            found.push(match (content, &slot.segment) {
                (Some(content), _) => Piece::Here(LogEntry { position, content: content.clone() }),
                (None, Some(segment)) => Piece::Stored {
                    position,
                    segment: Arc::clone(segment),
                    offset: slot.offset,
                    length: slot.length,
                },
                (None, None) => break, // Excluded by the invariant above.
            });
        }
        Ok(found)
    }

    /// Drops the oldest contents until the rest fits, but none that is not on disk yet.
    fn let_go_of_old(&mut self) {
        while self.recent_bytes_max < self.contents.bytes {
            let Some(oldest) = self.recent.front() else { break };
            if let Some(state) = self.groups.get_mut(&oldest.group) {
                let indexes = oldest.first..oldest.first + u64::from(oldest.count);
                for index in indexes {
                    match state.slot_mut(index) {
                        Some(slot) if slot.sequence != oldest.sequence => {}
                        Some(slot) if slot.segment.is_none() => return,
                        Some(slot) => self.contents.let_go(slot),
                        None => {}
                    }
                }
            }
            self.recent.pop_front();
        }
        // Purged entries leave their note behind. Each pass at least halves the list, so it costs
        // a constant per append.
        if 2 * self.contents.entries + 1024 < self.recent.len() {
            let groups = &self.groups;
            self.recent.retain(|recent| {
                let Some(state) = groups.get(&recent.group) else { return false };
                (recent.first..recent.first + u64::from(recent.count)).any(|index| {
                    state.slot(index).is_some_and(|slot| {
                        slot.sequence == recent.sequence && slot.content.is_some()
                    })
                })
            });
        }
    }
}
