//! Turns frames back into groups, and refuses whatever the writer cannot have written.
//!
//! Damage is kept to the groups it concerns: an entry whose content is damaged is nowhere, and a
//! frame that cannot be read raises [`Doubts`]. [`Replay::finish`] says what that comes to.

use std::collections::BTreeMap;

use super::super::frame::{Carried, ENTRY_BYTES_MIN, Fault, Frame, Record, RecordReader};
use super::super::group::{GroupState, INDEX_MAX};
use super::super::memory::moves;
use super::super::{Damage, LostGroup, OpenError, OpenReport};
use super::doubt::{Doubt, Doubts};
use crate::log_store::{GroupId, LogPosition, Lost};

/// Segment number of an entry that is damaged, or whose copy has not been met yet.
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
pub(super) struct Replay {
    groups: Found,
    /// Batch number and checksum of the last frame; `None` before the first.
    last: Option<(u64, u32)>,
    sealed: bool,
    doubts: Doubts,
    damages: Vec<Damage>,
    /// No group can have more entries: the log has no room for them.
    entries_max: u64,
}

/// What a whole recovery has found of the groups.
pub(super) struct Replayed {
    pub(super) groups: Found,
    pub(super) report: OpenReport,
}

impl Replay {
    /// Starts with nothing, for a log of so many bytes.
    pub(super) fn new(bytes: u64) -> Self {
        Self {
            groups: Found::new(),
            last: None,
            sealed: false,
            doubts: Doubts::default(),
            damages: Vec::new(),
            entries_max: bytes / ENTRY_BYTES_MIN,
        }
    }

    pub(super) fn sealed(&self) -> bool {
        self.sealed
    }

    pub(super) fn chain(&self) -> (u64, u32) {
        self.last.unwrap_or_default()
    }

    /// Notes frames that cannot be read: `bytes` from `offset` on.
    pub(super) fn lose(&mut self, segment: u64, offset: u64, bytes: u64, reason: Fault) {
        self.damages.push(Damage { segment, offset, groups: vec![], reason });
        self.sealed = false;
        self.doubts.raise(self.groups.keys().copied(), bytes);
    }

    /// Notes damage that costs nothing.
    pub(super) fn note(&mut self, damage: Damage) {
        self.damages.push(damage);
    }

    /// Takes the next frame, at `at` in `segment`.
    pub(super) fn frame(
        &mut self,
        segment: u64,
        at: usize,
        frame: &Frame<'_>,
    ) -> Result<(), ReplayFault> {
        let starts = at == super::FIRST_FRAME;
        let gap = self.doubts.gap();
        if !gap && starts != (self.sealed || self.last.is_none()) {
            return Err("a segment starts before its predecessor was sealed".into());
        }
        if let Some((batch, checksum)) = self.last {
            let follows = if gap {
                batch < frame.batch
            } else {
                (frame.batch, frame.previous_checksum) == (batch + 1, checksum)
            };
            if !follows {
                return Err("the frame does not follow the one before it".into());
            }
        }
        let lost_one = self.last.is_some_and(|(batch, _)| frame.batch <= batch + 2);
        self.sealed = false;
        let mut records = RecordReader::new(frame.payload);
        if starts {
            let Some(Record::Opening { groups, .. }) = records.record()? else {
                return Err("the segment does not start with its opening".into());
            };
            self.opening(groups, &mut records)?;
        }
        let place = Place { segment, content_at: frame.end - frame.payload.len() };
        let (mut echoed, mut damaged) = (false, Vec::new());
        while let Some(record) = records.record()? {
            if self.sealed {
                return Err("a record follows the seal".into());
            }
            if let Record::Echo { count } = record {
                if starts {
                    return Err("an opening says everything and repeats nothing".into());
                }
                self.echo(count, &mut records, gap && lost_one)?;
                echoed = gap && lost_one;
                self.doubts.close_gap(echoed);
                continue;
            }
            self.record(record, &mut records, place, &mut damaged)?;
        }
        if gap && !echoed {
            self.doubts.close_gap(false);
        }
        damaged.sort_unstable();
        damaged.dedup();
        if !damaged.is_empty() {
            let (offset, reason) = (at as u64, "the content of an entry is damaged");
            self.damages.push(Damage { segment, offset, groups: damaged, reason });
        }
        self.last = Some((frame.batch, frame.checksum));
        Ok(())
    }

    /// The hard states of the frame before. They are news if that one is lost.
    fn echo(
        &mut self,
        count: u64,
        records: &mut RecordReader<'_>,
        is_news: bool,
    ) -> Result<(), ReplayFault> {
        for _ in 0..count {
            let (group, hard_state) = records.echoed()?;
            if is_news {
                self.meet(group);
                if hard_state.is_none() {
                    self.groups.remove(&group); // What came after the drop is still in doubt.
                }
                self.groups.entry(group).or_default().hard_state = hard_state;
                self.doubts.settle_hard_state(group);
            }
        }
        Ok(())
    }

    /// The first opening says what the log holds; every later one repeats what is known already,
    /// and settles what is not.
    fn opening(&mut self, count: u64, records: &mut RecordReader<'_>) -> Result<(), ReplayFault> {
        let says_all = self.last.is_none() || self.doubts.any_unread();
        let mut known = std::mem::take(&mut self.groups);
        for _ in 0..count {
            let (group, carried) = records.opening_group()?;
            let doubtful = self.doubts.settle(group);
            let old = known.remove(&group);
            let state = match old {
                Some(old) if carry(&old) == carried => old,
                // A start has given up the entries behind a damaged one.
                old if says_all || doubtful || old.as_ref().is_some_and(has_hole) => {
                    reconcile(old, carried, self.entries_max)
                        .ok_or_else(|| of(group, "the carried group is not possible"))?
                }
                Some(_) | None => {
                    return Err(of(group, "the carried group is not what was read before"));
                }
            };
            if self.groups.insert(group, state).is_some() {
                return Err(of(group, "a group is carried twice"));
            }
        }
        let forgotten = known.into_keys().find(|group| !self.doubts.settle(*group));
        self.doubts.settle_all();
        forgotten.map_or(Ok(()), |group| Err(of(group, "a group was not carried forward")))
    }

    fn record(
        &mut self,
        record: Record,
        records: &mut RecordReader<'_>,
        place: Place,
        damaged: &mut Vec<GroupId>,
    ) -> Result<(), ReplayFault> {
        match record {
            Record::Append { group, first, count, previous } => {
                check_range(group, first, count)?;
                self.meet(group);
                self.join(group, first, previous);
                for index in first..first + count {
                    let (slot, intact) = place.slot(group, index, records)?;
                    if !intact {
                        damaged.push(group);
                    }
                    self.append(group, index, slot)?;
                }
            }
            Record::Copy { group, first, count } => {
                check_range(group, first, count)?;
                for index in first..first + count {
                    let (slot, intact) = place.slot(group, index, records)?;
                    if !intact {
                        damaged.push(group);
                    }
                    self.copy(group, index, slot, intact)?;
                }
            }
            Record::Truncate { group, from, last } => self.truncate(group, from, last)?,
            Record::HardState { group, hard_state } => {
                self.meet(group);
                self.groups.entry(group).or_default().hard_state = Some(hard_state);
                self.doubts.settle_hard_state(group);
            }
            Record::Purge { group, up_to } => self.purge(group, up_to)?,
            Record::Drop { group } => {
                let doubtful = self.doubts.settle(group) || self.doubts.any_unread();
                if self.groups.remove(&group).is_none() && !doubtful {
                    return Err(of(group, "a dropped group was not there"));
                }
            }
            Record::Lost { group, from, last, lost } => {
                self.lose_entries(group, from, last, lost)?;
            }
            Record::Seal { successor } => {
                if successor != place.segment + 1 {
                    return Err("the seal names a wrong successor".into());
                }
                self.sealed = true;
            }
            Record::Opening { .. } => return Err("a segment is opened twice".into()),
            Record::Oldest { .. } | Record::Marker | Record::Echo { .. } => {}
        }
        Ok(())
    }

    fn meet(&mut self, group: GroupId) {
        self.doubts.meet(group, !self.groups.contains_key(&group));
    }

    /// An earlier start has noted a loss. Where frames since are in doubt, what it says was left may
    /// be missing here: then the doubt stays.
    fn lose_entries(
        &mut self,
        group: GroupId,
        from: u64,
        last: Option<LogPosition>,
        lost: Lost,
    ) -> Result<(), ReplayFault> {
        self.meet(group);
        let sure = self.doubts.entries_are_sure(group);
        let state = self.groups.entry(group).or_default();
        state.mark_lost(from, last, lost);
        if ends_with(state, last) {
            self.doubts.settle(group);
            return Ok(());
        }
        if sure {
            return Err(of(group, "a loss leaves other entries than there are"));
        }
        state.last = match state.slots.back() {
            Some(slot) => {
                let index = state.first + state.slots.len() as u64 - 1;
                Some(LogPosition { term: slot.term, index })
            }
            None => state.purged,
        };
        Ok(())
    }

    /// Joins an append to what is known, or goes on from there alone where that is in doubt.
    fn join(&mut self, group: GroupId, first: u64, previous: Option<u64>) {
        if self.doubts.entries_are_sure(group) {
            return;
        }
        let state = self.groups.entry(group).or_default();
        let front = position_before(state, first);
        let joins = match previous {
            Some(term) => front.is_some_and(|position| position.term == term),
            None => first == 0 && state.purged.is_none(),
        };
        if joins {
            if state.reaches(first) {
                state.truncate(first, front);
            }
            self.doubts.join(group);
        } else {
            self.doubts.float(group, state.last);
            state.slots.clear();
        }
    }

    fn append(&mut self, group: GroupId, index: u64, slot: FoundSlot) -> Result<(), ReplayFault> {
        let sure = self.doubts.entries_are_sure(group);
        let state = self.groups.entry(group).or_default();
        let position = LogPosition { term: slot.term, index };
        match state.next_index() {
            Some(next) if next != index && (sure || !state.slots.is_empty()) => {
                return Err(of(group, "an append does not follow the last entry"));
            }
            Some(next) if next != index => state.push_apart(position, slot),
            Some(_) | None => state.push(position, slot),
        }
        Ok(())
    }

    fn copy(
        &mut self,
        group: GroupId,
        index: u64,
        slot: FoundSlot,
        intact: bool,
    ) -> Result<(), ReplayFault> {
        let sure = self.doubts.entries_are_sure(group) && !self.doubts.any_unread();
        let known = self.groups.get_mut(&group).and_then(|state| state.slot_mut(index));
        let known = known.filter(|known| known.segment == NOWHERE || known.term == slot.term);
        match known {
            // A damaged copy of an entry that is still whole elsewhere costs nothing.
            Some(known) if intact || known.segment == NOWHERE => *known = slot,
            Some(_) => {}
            None if sure => return Err(of(group, "an entry was copied that is not live")),
            None => {}
        }
        Ok(())
    }

    fn truncate(
        &mut self,
        group: GroupId,
        from: u64,
        last: Option<LogPosition>,
    ) -> Result<(), ReplayFault> {
        self.meet(group);
        let sure = self.doubts.entries_are_sure(group);
        let state = self.groups.entry(group).or_default();
        if !sure {
            if position_before(state, from).or(state.purged) == last {
                if state.reaches(from) {
                    state.truncate(from, last);
                }
                self.doubts.join(group);
            } else {
                self.doubts.float(group, state.last);
                state.slots.clear();
                state.last = last;
            }
            return Ok(());
        }
        if !state.reaches(from) {
            return Err(of(group, "nothing was there to truncate"));
        }
        state.truncate(from, last);
        if !ends_with(state, last) {
            return Err(of(group, "a truncation leaves other entries than there are"));
        }
        Ok(())
    }

    fn purge(&mut self, group: GroupId, up_to: LogPosition) -> Result<(), ReplayFault> {
        self.meet(group);
        let sure = self.doubts.entries_are_sure(group);
        let state = self.groups.entry(group).or_default();
        if INDEX_MAX <= up_to.index || sure && !moves(state.purged, up_to) {
            return Err(of(group, "a purge mark went back"));
        }
        if moves(state.purged, up_to) {
            let reaches = !state.slots.is_empty() && state.first <= up_to.index + 1;
            state.purge(up_to);
            if reaches {
                self.doubts.anchor(group);
            }
        }
        Ok(())
    }

    /// The groups, once the last frame is read, and what is lost of them. `oldest` is the oldest
    /// segment.
    pub(super) fn finish(mut self, oldest: u64) -> Result<Replayed, OpenError> {
        let mut lost = Vec::new();
        for (group, state) in &mut self.groups {
            let hole = state.slots.iter().position(|slot| slot.segment == NOWHERE);
            if hole.is_some() && self.damages.is_empty() {
                return Err(OpenError::Damaged {
                    segment: oldest,
                    offset: 0,
                    groups: vec![*group],
                    reason: "entries from before the oldest segment were not copied forward",
                });
            }
            let Some(loss) = loss_of(state, hole, self.doubts.left(*group)) else {
                if state.slots.is_empty() {
                    // A truncation behind lost frames may have named an entry that is not here.
                    state.last = state.purged;
                }
                continue;
            };
            let last = if state.reaches(loss.from) {
                position_before(state, loss.from).or(state.purged)
            } else if state.slots.is_empty() {
                // A truncation behind lost frames has named an entry that is not here.
                state.purged
            } else {
                state.last
            };
            state.mark_lost(loss.from, last, loss.lost);
            lost.push(loss.of(*group));
        }
        let unknown_groups_may_be_lost = self.doubts.any_unread();
        let report = OpenReport { damages: self.damages, lost, unknown_groups_may_be_lost };
        Ok(Replayed { groups: self.groups, report })
    }
}

/// Where a frame's records are.
#[derive(Clone, Copy)]
struct Place {
    segment: u64,
    /// Offset of the payload in the segment.
    content_at: usize,
}

impl Place {
    /// The next entry, and whether its content is what was written. If not, it is nowhere.
    fn slot(
        &self,
        group: GroupId,
        index: u64,
        records: &mut RecordReader<'_>,
    ) -> Result<(FoundSlot, bool), ReplayFault> {
        let entry = records.entry(group, index)?;
        let offset = u32::try_from(self.content_at + entry.at)
            .map_err(|_| of(group, "an entry lies too far out"))?;
        let segment = if entry.intact { self.segment } else { NOWHERE };
        let slot = FoundSlot { term: entry.term, segment, offset, length: entry.length };
        Ok((slot, entry.intact))
    }
}

fn check_range(group: GroupId, first: u64, count: u64) -> Result<(), ReplayFault> {
    if INDEX_MAX < first || INDEX_MAX - first < count {
        return Err(of(group, "an index is out of range"));
    }
    Ok(())
}

fn has_hole(state: &GroupState<FoundSlot>) -> bool {
    state.slots.iter().any(|slot| slot.segment == NOWHERE)
}

/// Whether a group's entries end where a record says. The term of an entry that was not met yet is
/// not known.
fn ends_with(state: &GroupState<FoundSlot>, last: Option<LogPosition>) -> bool {
    match state.slots.len() as u64 {
        0 => last == state.purged,
        count => last.is_some_and(|last| last.index == state.first + count - 1),
    }
}

/// What is in front of an index, if that is known.
fn position_before(state: &GroupState<FoundSlot>, index: u64) -> Option<LogPosition> {
    let before = index.checked_sub(1)?;
    let slot = state.slot(before).map(|slot| LogPosition { term: slot.term, index: before });
    slot.or(state.purged.filter(|mark| mark.index == before))
}

struct Loss {
    from: u64,
    lost: Lost,
}

impl Loss {
    fn of(&self, group: GroupId) -> LostGroup {
        LostGroup { group, from: self.from, lost: self.lost }
    }
}

/// What holes and doubts come to: which entries are given up, and what was promised with them.
fn loss_of(
    state: &GroupState<FoundSlot>,
    hole: Option<usize>,
    doubt: Option<Doubt>,
) -> Option<Loss> {
    let doubt = doubt.unwrap_or_default();
    if hole.is_none() && !doubt.entries && !doubt.hard_state {
        return None;
    }
    let next = state.next_index().unwrap_or(0);
    let mut from = hole.map_or(next, |hole| state.first + hole as u64);
    let mut to = state.last.max(doubt.seen).unwrap_or(LogPosition { term: 0, index: 0 });
    if doubt.entries {
        // What is known may have been overwritten: none of it is sure.
        from = from.min(state.first);
        let term = state.hard_state.map_or(to.term, |hard_state| hard_state.term.max(to.term));
        let index = to.index.max(next).saturating_add(doubt.entries_max).min(INDEX_MAX);
        to = LogPosition { term, index };
    }
    if doubt.hard_state {
        // Its terms may have gone on to anything.
        to = LogPosition { term: u64::MAX, index: INDEX_MAX };
    }
    Some(Loss { from, lost: Lost { to, hard_state_known: !doubt.hard_state } })
}

/// A group as an opening describes it, with as much of what was read before as is sure.
fn reconcile(
    old: Option<GroupState<FoundSlot>>,
    carried: Carried,
    entries_max: u64,
) -> Option<GroupState<FoundSlot>> {
    let mut state = hollow(carried, entries_max)?;
    if let (Some(old), Some((first, last))) = (old, carried.live)
        && old.slot(last.index).is_some_and(|slot| slot.term == last.term)
    {
        // Equal at its end, so equal up to there.
        for (index, slot) in (first..=last.index).zip(&mut state.slots) {
            *slot = old.slot(index).copied().unwrap_or(*slot);
        }
    }
    Some(state)
}

/// A group as an opening describes it, its entries yet to be met.
fn hollow(carried: Carried, entries_max: u64) -> Option<GroupState<FoundSlot>> {
    // The entries come behind the mark, and an index behind either.
    let covers = |mark: LogPosition| {
        INDEX_MAX <= mark.index || carried.live.is_some_and(|(first, _)| first <= mark.index)
    };
    if carried.purged.is_some_and(covers) {
        return None;
    }
    let mut state = GroupState {
        hard_state: carried.hard_state,
        purged: carried.purged,
        last: carried.purged,
        lost: carried.lost,
        ..GroupState::default()
    };
    if let Some((first, last)) = carried.live {
        if last.index < first || INDEX_MAX < last.index || entries_max < last.index - first {
            return None;
        }
        let slot = FoundSlot { term: 0, segment: NOWHERE, offset: 0, length: 0 };
        let count = usize::try_from(last.index - first + 1).ok()?;
        state.first = first;
        state.last = Some(last);
        state.slots = std::iter::repeat_n(slot, count).collect();
        // The last one's term is known, wherever it is.
        if let Some(slot) = state.slots.back_mut() {
            slot.term = last.term;
        }
    }
    Some(state)
}

/// What an opening says of a group.
pub(in super::super) fn carry<S>(state: &GroupState<S>) -> Carried {
    let live = match state.last {
        Some(last) if !state.slots.is_empty() => Some((state.first, last)),
        Some(_) | None => None,
    };
    Carried { hard_state: state.hard_state, purged: state.purged, live, lost: state.lost }
}
