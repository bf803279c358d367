//! Turns frames back into groups, and refuses whatever the writer cannot have written.

use std::collections::BTreeMap;

use super::super::OpenError;
use super::super::frame::{Carried, Fault, Frame, Record, RecordReader};
use super::super::group::{GroupState, INDEX_MAX};
use super::super::memory::moves;
use crate::log_store::{GroupId, LogPosition};

/// Segment number of an entry whose copy has not been met yet.
const NOWHERE: u64 = 0;

/// Where an entry was found.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct FoundSlot {
    pub(in super::super) term: u64,
    pub(in super::super) segment: u64,
    pub(in super::super) offset: u32,
    pub(in super::super) length: u32,
}

type Found = BTreeMap<GroupId, GroupState<FoundSlot>>;

/// What does not fit, and whose log is affected if that is known.
pub(super) struct ReplayFault {
    pub(super) group: Option<GroupId>,
    pub(super) reason: Fault,
}

impl From<Fault> for ReplayFault {
    fn from(reason: Fault) -> Self {
        Self { group: None, reason }
    }
}

fn of(group: GroupId, reason: Fault) -> ReplayFault {
    ReplayFault { group: Some(group), reason }
}

/// The log as far as it has been read.
#[derive(Default)]
pub(super) struct Replay {
    groups: Found,
    /// Batch number and checksum of the last frame; `None` before the first.
    last: Option<(u64, u32)>,
    sealed: bool,
}

impl Replay {
    pub(super) fn sealed(&self) -> bool {
        self.sealed
    }

    pub(super) fn chain(&self) -> (u64, u32) {
        self.last.unwrap_or_default()
    }

    pub(super) fn groups(&self) -> Vec<GroupId> {
        self.groups.keys().copied().collect()
    }

    /// Takes the next frame, at `at` in `segment`.
    pub(super) fn frame(
        &mut self,
        segment: u64,
        at: usize,
        frame: &Frame<'_>,
    ) -> Result<(), ReplayFault> {
        let starts = at == super::FIRST_FRAME;
        if starts != (self.sealed || self.last.is_none()) {
            return Err("a segment starts before its predecessor was sealed".into());
        }
        if let Some((batch, checksum)) = self.last
            && (frame.batch, frame.previous_checksum) != (batch + 1, checksum)
        {
            return Err("the frame does not follow the one before it".into());
        }
        self.sealed = false;
        let mut records = RecordReader::new(frame.payload);
        if starts {
            let Some(Record::Opening { groups, .. }) = records.record()? else {
                return Err("the segment does not start with its opening".into());
            };
            self.opening(groups, &mut records)?;
        }
        let content_at = frame.end - frame.payload.len();
        while let Some(record) = records.record()? {
            if self.sealed {
                return Err("a record follows the seal".into());
            }
            self.record(record, &mut records, segment, content_at)?;
        }
        self.last = Some((frame.batch, frame.checksum));
        Ok(())
    }

    /// The first opening says what the log holds; every later one repeats what is known already.
    fn opening(&mut self, count: u64, records: &mut RecordReader<'_>) -> Result<(), ReplayFault> {
        let is_first = self.last.is_none();
        let mut known = std::mem::take(&mut self.groups);
        for _ in 0..count {
            let (group, carried) = records.opening_group()?;
            let state = if is_first {
                hollow(carried).ok_or_else(|| of(group, "the carried group is not possible"))?
            } else {
                let state = known.remove(&group);
                let state = state.filter(|state| carry(state) == carried);
                state.ok_or_else(|| of(group, "the carried group is not what was read before"))?
            };
            if self.groups.insert(group, state).is_some() {
                return Err(of(group, "a group is carried twice"));
            }
        }
        match known.first_key_value() {
            Some((group, _)) => Err(of(*group, "a group was not carried forward")),
            None => Ok(()),
        }
    }

    fn record(
        &mut self,
        record: Record,
        records: &mut RecordReader<'_>,
        segment: u64,
        content_at: usize,
    ) -> Result<(), ReplayFault> {
        match record {
            Record::Append { group, first, count, copied } => {
                if INDEX_MAX < first || INDEX_MAX - first < count {
                    return Err(of(group, "an index is out of range"));
                }
                for index in first..first + count {
                    let entry = records.entry(group, index)?;
                    let slot = FoundSlot {
                        term: entry.term,
                        segment,
                        offset: u32::try_from(content_at + entry.at)
                            .map_err(|_| of(group, "an entry lies too far out"))?,
                        length: entry.length,
                    };
                    self.entry(group, index, slot, copied)?;
                }
            }
            Record::Truncate { group, from, last } => {
                let state = self.groups.get_mut(&group);
                let state = state.filter(|state| state.reaches(from));
                let state = state.ok_or_else(|| of(group, "nothing was there to truncate"))?;
                state.truncate(from, last);
            }
            Record::HardState { group, hard_state } => {
                self.groups.entry(group).or_default().hard_state = Some(hard_state);
            }
            Record::Purge { group, up_to } => {
                let state = self.groups.entry(group).or_default();
                if INDEX_MAX <= up_to.index || !moves(state.purged, up_to) {
                    return Err(of(group, "a purge mark went back"));
                }
                state.purge(up_to);
            }
            Record::Drop { group } => {
                if self.groups.remove(&group).is_none() {
                    return Err(of(group, "a dropped group was not there"));
                }
            }
            Record::Seal { successor } => {
                if successor != segment + 1 {
                    return Err("the seal names a wrong successor".into());
                }
                self.sealed = true;
            }
            Record::Opening { .. } => return Err("a segment is opened twice".into()),
            Record::Oldest { .. } | Record::Marker => {}
        }
        Ok(())
    }

    fn entry(
        &mut self,
        group: GroupId,
        index: u64,
        slot: FoundSlot,
        copied: bool,
    ) -> Result<(), ReplayFault> {
        let position = LogPosition { term: slot.term, index };
        if copied {
            let known = self.groups.get_mut(&group).and_then(|state| state.slot_mut(index));
            let known = known.filter(|known| known.segment == NOWHERE || known.term == slot.term);
            *known.ok_or_else(|| of(group, "an entry was copied that is not live"))? = slot;
            return Ok(());
        }
        let state = self.groups.entry(group).or_default();
        if state.next_index().is_some_and(|next| next != index) {
            return Err(of(group, "an append does not follow the last entry"));
        }
        state.push(position, slot);
        Ok(())
    }

    /// The groups, once the last frame is read. `oldest` is the oldest segment.
    pub(super) fn finish(self, oldest: u64) -> Result<Found, OpenError> {
        for (group, state) in &self.groups {
            let hole = state.slots.iter().any(|slot| slot.segment == NOWHERE);
            let last_term = state.slots.back().map(|slot| slot.term);
            if hole || last_term.is_some_and(|term| state.last.map(|last| last.term) != Some(term))
            {
                return Err(OpenError::Damaged {
                    segment: oldest,
                    offset: 0,
                    groups: vec![*group],
                    reason: "entries from before the oldest segment were not copied forward",
                });
            }
        }
        Ok(self.groups)
    }
}

/// A group as an opening describes it, its entries yet to be met.
fn hollow(carried: Carried) -> Option<GroupState<FoundSlot>> {
    let mut state = GroupState {
        hard_state: carried.hard_state,
        purged: carried.purged,
        last: carried.purged,
        ..GroupState::default()
    };
    if let Some((first, last)) = carried.live {
        if last.index < first || INDEX_MAX < last.index {
            return None;
        }
        let slot = FoundSlot { term: 0, segment: NOWHERE, offset: 0, length: 0 };
        let count = usize::try_from(last.index - first + 1).ok()?;
        state.first = first;
        state.last = Some(last);
        state.slots = std::iter::repeat_n(slot, count).collect();
    }
    Some(state)
}

/// What an opening says of a group.
pub(in super::super) fn carry<S>(state: &GroupState<S>) -> Carried {
    let live = match state.last {
        Some(last) if !state.slots.is_empty() => Some((state.first, last)),
        Some(_) | None => None,
    };
    Carried { hard_state: state.hard_state, purged: state.purged, live }
}
