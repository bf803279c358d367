//! The log in memory, for simulations and tests: forgets what was not synced when it crashes.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::group::{GroupState, refuses_purge};
use crate::log_store::{
    Completion, GroupId, GroupLog, LogEntry, LogError, LogPosition, LogStats, LogStore, LogWrite,
    ReadError,
};

/// A [`LogStore`] in memory. Cloning gives another handle to the same log.
///
/// Changes become durable at [`MemoryLog::sync`], or at once if it was made with
/// [`MemoryLog::new`]. Completions run on the thread that syncs, in order.
#[derive(Clone)]
pub struct MemoryLog {
    shared: Arc<Shared>,
}

struct Shared {
    sync_each: bool,
    state: Mutex<State>,
}

type Groups = BTreeMap<GroupId, GroupState<LogEntry>>;

#[derive(Default)]
struct State {
    visible: Groups,
    durable: Groups,
    queued: Vec<(LogWrite, Result<(), LogError>, Completion)>,
    /// Completions that are due, in order. Whoever finds nobody at it calls them.
    due: VecDeque<(Completion, Result<(), LogError>)>,
    completing: bool,
    poisoned: Option<Arc<std::io::Error>>,
    stats: LogStats,
}

impl Default for MemoryLog {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryLog {
    /// An empty log that syncs every change at once.
    #[must_use]
    pub fn new() -> Self {
        Self { shared: Arc::new(Shared { sync_each: true, state: Mutex::default() }) }
    }

    /// An empty log that syncs only when [`MemoryLog::sync`] is called.
    #[must_use]
    pub fn with_manual_sync() -> Self {
        Self { shared: Arc::new(Shared { sync_each: false, state: Mutex::default() }) }
    }

    /// Makes everything submitted so far durable, then calls the completions.
    pub fn sync(&self) {
        self.sync_first(usize::MAX);
    }

    /// Makes the first `changes_max` of the waiting changes durable, then calls their
    /// completions. Returns how many there were.
    pub fn sync_first(&self, changes_max: usize) -> usize {
        let mut state = self.shared.state.lock();
        let count = changes_max.min(state.queued.len());
        let queued: Vec<_> = state.queued.drain(..count).collect();
        if !queued.is_empty() {
            state.stats.fsyncs += 1;
        }
        for (write, outcome, done) in queued {
            let outcome = match &state.poisoned {
                Some(source) => Err(LogError::Poisoned { source: Arc::clone(source) }),
                None => outcome,
            };
            if outcome.is_ok() {
                apply(&mut state.durable, write);
            }
            state.due.push_back((done, outcome));
        }
        drop(state);
        self.complete();
        count
    }

    /// Changes that are not durable yet.
    #[must_use]
    pub fn unsynced(&self) -> usize {
        self.shared.state.lock().queued.len()
    }

    /// Loses everything that was not synced, as a power cut does. The completions of what is lost
    /// are dropped without a call: their process is gone.
    pub fn crash(&self) {
        let mut state = self.shared.state.lock();
        let lost = std::mem::take(&mut state.queued);
        let due = std::mem::take(&mut state.due);
        state.visible = state.durable.clone();
        state.poisoned = None;
        drop(state);
        // A completion may own anything: it is not dropped under the lock.
        drop((lost, due));
    }

    /// Behaves from now on as after a failed fsync: what waits and what comes is refused.
    pub fn poison(&self, source: std::io::Error) {
        self.shared.state.lock().poisoned = Some(Arc::new(source));
        self.sync();
    }

    fn complete(&self) {
        let mut state = self.shared.state.lock();
        if state.completing {
            return;
        }
        state.completing = true;
        while let Some((done, outcome)) = state.due.pop_front() {
            drop(state);
            done(outcome);
            state = self.shared.state.lock();
        }
        state.completing = false;
    }
}

impl LogStore for MemoryLog {
    fn submit(&self, write: LogWrite, done: Completion) {
        let mut state = self.shared.state.lock();
        let outcome = match &state.poisoned {
            Some(source) => Err(LogError::Poisoned { source: Arc::clone(source) }),
            None => check(&state.visible, &write),
        };
        if outcome.is_ok() {
            count(&mut state.stats, &write);
            apply(&mut state.visible, write.clone());
        }
        state.queued.push((write, outcome, done));
        drop(state);
        if self.shared.sync_each {
            self.sync();
        }
    }

    fn group(&self, group: GroupId) -> Option<GroupLog> {
        self.shared.state.lock().visible.get(&group).map(GroupState::summary)
    }

    fn groups(&self) -> Vec<GroupId> {
        self.shared.state.lock().visible.keys().copied().collect()
    }

    fn read(
        &self,
        group: GroupId,
        indexes: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<LogEntry>, ReadError> {
        let state = self.shared.state.lock();
        let mut found = Vec::new();
        let mut bytes = 0_usize;
        for slot in live(state.visible.get(&group), &indexes)? {
            bytes = bytes.saturating_add(slot.content.len());
            if !found.is_empty() && bytes_max < bytes {
                break;
            }
            found.push(slot.clone());
        }
        Ok(found)
    }

    fn read_stored(
        &self,
        group: GroupId,
        indexes: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<LogEntry>, ReadError> {
        self.read(group, indexes, bytes_max)
    }

    fn damaged_groups(&self) -> Vec<GroupId> {
        Vec::new()
    }

    fn unknown_groups_may_be_lost(&self) -> bool {
        false
    }

    fn unknown_groups_are_noted(&self) {
        // None is in doubt here.
    }

    fn group_bytes(&self, group: GroupId) -> u64 {
        let state = self.shared.state.lock();
        let slots = state.visible.get(&group).into_iter().flat_map(|group| &group.slots);
        slots.map(|entry| entry.content.len() as u64).sum()
    }

    fn stats(&self) -> LogStats {
        self.shared.state.lock().stats
    }
}

/// The slots of a range of indexes, from its first to the last that is there.
///
/// # Errors
/// [`ReadError::Purged`] or [`ReadError::Unknown`] if the first is not there.
pub(super) fn live<'a, S>(
    group: Option<&'a GroupState<S>>,
    indexes: &Range<u64>,
) -> Result<impl Iterator<Item = &'a S> + use<'a, S>, ReadError> {
    let index = indexes.start;
    let unknown = ReadError::Unknown { index };
    if indexes.is_empty() {
        return Ok(None.into_iter().flatten());
    }
    let group = group.ok_or_else(|| unknown.clone())?;
    if let Some(purged) = group.purged
        && index <= purged.index
    {
        return Err(ReadError::Purged { index, purged });
    }
    let start = group.position_of(index).ok_or(unknown)?;
    let asked = usize::try_from(indexes.end - index).unwrap_or(usize::MAX);
    let end = start.saturating_add(asked).min(group.slots.len());
    Ok(Some(group.slots.range(start..end)).into_iter().flatten())
}

fn check(groups: &Groups, write: &LogWrite) -> Result<(), LogError> {
    let (group, broken) = match write {
        LogWrite::Append { group, entries } => {
            let state = groups.get(group);
            let fresh = GroupState::<LogEntry>::default();
            (*group, state.unwrap_or(&fresh).refuses_append(entries))
        }
        LogWrite::Truncate { group, from } => {
            (*group, groups.get(group).and_then(|state| state.refuses_truncate(*from)))
        }
        LogWrite::Purge { group, up_to } => (*group, refuses_purge(*up_to)),
        LogWrite::SaveHardState { .. } | LogWrite::Drop { .. } | LogWrite::MarkLost { .. } => {
            return Ok(());
        }
    };
    broken.map_or(Ok(()), |reason| Err(LogError::Refused { group, reason }))
}

fn apply(groups: &mut Groups, write: LogWrite) {
    match write {
        LogWrite::Append { group, entries } => {
            if entries.is_empty() {
                return;
            }
            let state = groups.entry(group).or_default();
            for entry in entries {
                state.push(entry.position, entry);
            }
        }
        LogWrite::Truncate { group, from } => {
            if let Some(state) = groups.get_mut(&group)
                && state.reaches(from)
            {
                let before = from.checked_sub(1).and_then(|index| state.slot(index));
                let last = before.map(|entry| entry.position).or(state.purged);
                state.truncate(from, last);
            }
        }
        LogWrite::SaveHardState { group, hard_state } => {
            groups.entry(group).or_default().hard_state = Some(hard_state);
        }
        LogWrite::Purge { group, up_to } => {
            let state = groups.entry(group).or_default();
            if moves(state.purged, up_to) {
                state.purge(up_to);
            }
        }
        LogWrite::Drop { group } => {
            groups.remove(&group);
        }
        LogWrite::MarkLost { group, from, lost } => {
            let state = groups.entry(group).or_default();
            let before = from.checked_sub(1).and_then(|index| state.slot(index));
            let before = before.map(|entry| entry.position).or(state.purged);
            let last = if state.reaches(from) { before } else { state.last };
            state.mark_lost(from, last, lost);
        }
    }
}

/// Whether a purge moves the mark: it never goes back.
pub(super) fn moves(purged: Option<LogPosition>, up_to: LogPosition) -> bool {
    purged.is_none_or(|mark| mark.index < up_to.index)
}

fn count(stats: &mut LogStats, write: &LogWrite) {
    if let LogWrite::Append { entries, .. } = write {
        stats.entries += entries.len() as u64;
        stats.bytes_given += entries.iter().map(|entry| entry.content.len() as u64).sum::<u64>();
    }
}
