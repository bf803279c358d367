//! One group's log as a value: what it holds and which changes it takes.
//!
//! Used four times with different slots: what readers see, what the disk holds, what recovery has
//! found, and the log in memory. The rules stand here once.

use std::collections::VecDeque;
use std::collections::vec_deque::Drain;

use crate::log_store::{GroupLog, HardState, LogEntry, LogPosition, Lost};

/// Indexes above this are refused, so that no index arithmetic overflows.
pub(crate) const INDEX_MAX: u64 = u64::MAX >> 1;

/// One group's log; `S` is what is known about an entry.
#[derive(Clone, Debug)]
pub(crate) struct GroupState<S> {
    pub(crate) hard_state: Option<HardState>,
    pub(crate) purged: Option<LogPosition>,
    /// The last entry; the purge mark if there are none.
    pub(crate) last: Option<LogPosition>,
    /// Index of the first slot; meaningless without slots.
    pub(crate) first: u64,
    pub(crate) slots: VecDeque<S>,
    pub(crate) lost: Option<Lost>,
}

impl<S> Default for GroupState<S> {
    fn default() -> Self {
        Self {
            hard_state: None,
            purged: None,
            last: None,
            first: 0,
            slots: VecDeque::new(),
            lost: None,
        }
    }
}

impl<S> GroupState<S> {
    pub(crate) fn summary(&self) -> GroupLog {
        let Self { hard_state, purged, last, lost, .. } = *self;
        GroupLog { hard_state, purged, last, lost }
    }

    /// The same log with something else known about its entries.
    pub(crate) fn map<T>(&self, slot: impl FnMut(&S) -> T) -> GroupState<T> {
        GroupState {
            hard_state: self.hard_state,
            purged: self.purged,
            last: self.last,
            first: self.first,
            slots: self.slots.iter().map(slot).collect(),
            lost: self.lost,
        }
    }

    /// The index the next entry must have; `None` if any will do.
    pub(crate) fn next_index(&self) -> Option<u64> {
        if self.slots.is_empty() {
            self.purged.map(|mark| mark.index + 1)
        } else {
            Some(self.first + self.slots.len() as u64)
        }
    }

    pub(crate) fn position_of(&self, index: u64) -> Option<usize> {
        let position = usize::try_from(index.checked_sub(self.first)?).ok()?;
        (position < self.slots.len()).then_some(position)
    }

    pub(crate) fn slot(&self, index: u64) -> Option<&S> {
        self.position_of(index).map(|position| &self.slots[position])
    }

    pub(crate) fn slot_mut(&mut self, index: u64) -> Option<&mut S> {
        self.position_of(index).map(|position| &mut self.slots[position])
    }

    /// Adds a slot at `next_index`, or anywhere if that is `None`. Whoever calls has checked.
    pub(crate) fn push(&mut self, position: LogPosition, slot: S) {
        debug_assert!(self.next_index().is_none_or(|next| next == position.index));
        if self.slots.is_empty() {
            self.first = position.index;
        }
        self.slots.push_back(slot);
        self.last = Some(position);
        self.make_good();
    }

    /// Adds the first slot, at a distance from the purge mark: what is between is missing.
    pub(crate) fn push_apart(&mut self, position: LogPosition, slot: S) {
        debug_assert!(self.slots.is_empty());
        self.first = position.index;
        self.slots.push_back(slot);
        self.last = Some(position);
    }

    /// Lets go of the note of a loss once the log reaches as far as it ever did: every entry that
    /// was acknowledged and committed is here again (Raft's log matching and leader completeness).
    fn make_good(&mut self) {
        let is_good = |lost: &Lost| lost.hard_state_known && Some(lost.to) <= self.last;
        if self.lost.as_ref().is_some_and(is_good) {
            self.lost = None;
        }
    }

    /// Removes the slots at and above `from` and notes the loss; `last` is what then ends the log.
    pub(crate) fn mark_lost(
        &mut self,
        from: u64,
        last: Option<LogPosition>,
        lost: Lost,
    ) -> Drain<'_, S> {
        let before = self.lost;
        self.lost = Some(Lost {
            to: before.map_or(lost.to, |before| before.to.max(lost.to)),
            hard_state_known: lost.hard_state_known && before.is_none_or(|b| b.hard_state_known),
        });
        self.truncate(from, last)
    }

    /// Whether a truncation would remove anything.
    pub(crate) fn reaches(&self, from: u64) -> bool {
        !self.slots.is_empty() && from < self.first + self.slots.len() as u64
    }

    /// Removes the slots at and above `from`; `last` is what then ends the log.
    pub(crate) fn truncate(&mut self, from: u64, last: Option<LogPosition>) -> Drain<'_, S> {
        let kept = from.saturating_sub(self.first).min(self.slots.len() as u64);
        self.last = last;
        self.slots.drain(usize::try_from(kept).unwrap_or(usize::MAX)..)
    }

    /// Moves the mark and removes what it covers.
    pub(crate) fn purge(&mut self, up_to: LogPosition) -> Drain<'_, S> {
        self.purged = Some(up_to);
        let gone = (up_to.index + 1).saturating_sub(self.first).min(self.slots.len() as u64);
        let gone = if self.slots.is_empty() { 0 } else { gone };
        if gone == self.slots.len() as u64 {
            self.last = Some(up_to);
            self.make_good();
        }
        self.first += gone;
        self.slots.drain(..usize::try_from(gone).unwrap_or(usize::MAX))
    }

    /// Which rule an append breaks, if any.
    pub(crate) fn refuses_append(&self, entries: &[LogEntry]) -> Option<&'static str> {
        let first = entries.first()?.position.index;
        if INDEX_MAX < first || INDEX_MAX - first < entries.len() as u64 {
            return Some("the index is out of range");
        }
        let mut indexed = entries.iter().zip(first..);
        if !indexed.all(|(entry, index)| entry.position.index == index) {
            return Some("the entries' indexes are not consecutive");
        }
        match (self.next_index(), self.purged) {
            (Some(_), Some(mark)) if first <= mark.index => {
                Some("the append starts at or below the purge mark")
            }
            (Some(next), _) if first < next => Some("the append overwrites entries"),
            (Some(next), _) if next < first => Some("the append leaves a gap"),
            (Some(_) | None, _) => None,
        }
    }

    /// Which rule a truncation breaks, if any.
    pub(crate) fn refuses_truncate(&self, from: u64) -> Option<&'static str> {
        let mark = self.purged?;
        (from <= mark.index).then_some("the truncation reaches the purge mark")
    }
}

/// Which rule a purge breaks, if any.
pub(crate) fn refuses_purge(up_to: LogPosition) -> Option<&'static str> {
    (INDEX_MAX <= up_to.index).then_some("the index is out of range")
}
