//! What unreadable frames leave open about the groups, and how later records settle it.
//!
//! Where a frame's structure is lost, any group may have had something in it. Three things settle
//! a group: a later opening, which says all of it; for the hard state, a later one or the echo in
//! the next frame; for the entries, a later change that names the term in front of it. If that
//! term is the one we know there, everything before is as we know it: within one group, equal term
//! and index mean equal entries up to there (Raft's log matching).

use std::collections::BTreeMap;

use super::super::frame::ENTRY_BYTES_MIN;
use crate::log_store::{GroupId, LogPosition};

/// What is open about one group.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Doubt {
    pub(super) entries: bool,
    pub(super) hard_state: bool,
    /// What is known of the entries begins somewhere behind the damage: it is true, but something
    /// is missing in front of it.
    pub(super) floating: bool,
    /// The furthest position that was met.
    pub(super) seen: Option<LogPosition>,
    /// As many entries may be lost, at most.
    pub(super) entries_max: u64,
}

impl Doubt {
    fn grow(&mut self, entries_max: u64) {
        self.entries = true;
        self.hard_state = true;
        self.entries_max = self.entries_max.saturating_add(entries_max);
    }
}

/// All that is open.
#[derive(Default)]
pub(super) struct Doubts {
    groups: BTreeMap<GroupId, Doubt>,
    /// About groups of which nothing was read yet.
    unread: Option<Doubt>,
    /// Whose hard state the frames in front of the next one put in doubt. `None` if the next frame
    /// follows directly.
    gap: Option<Vec<GroupId>>,
    unread_was_settled: bool,
}

impl Doubts {
    /// Bytes of frames are lost; `known` are the groups read so far.
    pub(super) fn raise(&mut self, known: impl Iterator<Item = GroupId>, bytes: u64) {
        let entries_max = bytes / ENTRY_BYTES_MIN;
        let mut fresh = Vec::new();
        for group in known {
            let doubt = self.groups.entry(group).or_default();
            if !doubt.hard_state {
                fresh.push(group);
            }
            doubt.grow(entries_max);
        }
        self.unread_was_settled = self.unread.is_none_or(|doubt| !doubt.hard_state);
        self.unread.get_or_insert_default().grow(entries_max);
        self.gap = Some(fresh);
    }

    /// Whether frames are lost directly in front of the next one.
    pub(super) fn gap(&self) -> bool {
        self.gap.is_some()
    }

    /// The next frame was read. `echoed` says that it repeats all hard states of the lost ones.
    pub(super) fn close_gap(&mut self, echoed: bool) {
        let Some(fresh) = self.gap.take() else { return };
        if !echoed {
            return;
        }
        for group in fresh {
            self.settle_hard_state(group);
        }
        if let (Some(unread), true) = (&mut self.unread, self.unread_was_settled) {
            unread.hard_state = false;
        }
    }

    /// A group is met; `is_new` if for the first time.
    pub(super) fn meet(&mut self, group: GroupId, is_new: bool) {
        if let (Some(unread), true) = (self.unread, is_new) {
            self.groups.entry(group).or_insert(unread);
        }
    }

    /// Whether nothing is open about a group's entries.
    pub(super) fn entries_are_sure(&self, group: GroupId) -> bool {
        self.groups.get(&group).is_none_or(|doubt| !doubt.entries)
    }

    /// What is known joins what came after the damage. Nothing is open any more, unless it had
    /// only been picked up behind another gap.
    pub(super) fn join(&mut self, group: GroupId) {
        if let Some(doubt) = self.groups.get_mut(&group) {
            doubt.entries = doubt.floating;
        }
    }

    /// What is known of the entries ends with `position`, and what follows does not join it.
    pub(super) fn float(&mut self, group: GroupId, position: Option<LogPosition>) {
        if let Some(doubt) = self.groups.get_mut(&group) {
            doubt.floating = true;
            doubt.seen = doubt.seen.max(position);
        }
    }

    /// All that is missing in front is purged by now.
    pub(super) fn anchor(&mut self, group: GroupId) {
        if let Some(doubt) = self.groups.get_mut(&group)
            && doubt.floating
        {
            (doubt.floating, doubt.entries) = (false, false);
        }
    }

    pub(super) fn settle_hard_state(&mut self, group: GroupId) {
        if let Some(doubt) = self.groups.get_mut(&group) {
            doubt.hard_state = false;
        }
    }

    /// Settles everything about a group; returns whether anything was open.
    pub(super) fn settle(&mut self, group: GroupId) -> bool {
        let doubt = self.groups.remove(&group);
        doubt.is_some_and(|doubt| doubt.entries || doubt.hard_state)
    }

    /// An opening says what there is: nothing is open any more.
    pub(super) fn settle_all(&mut self) {
        *self = Self { gap: self.gap.take(), ..Self::default() };
    }

    /// Whether anything is open about a group that was not read yet.
    pub(super) fn any_unread(&self) -> bool {
        self.unread.is_some()
    }

    /// What is left open about a group at the end.
    pub(super) fn left(&self, group: GroupId) -> Option<Doubt> {
        self.groups.get(&group).copied().filter(|doubt| doubt.entries || doubt.hard_state)
    }
}
