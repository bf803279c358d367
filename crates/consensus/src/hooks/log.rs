//! A log that lies about what is on disk.

use std::sync::Arc;

use anchorhold_storage::{Completion, LogLayer, LogStore, LogWrite};

use super::{Hooks, Mutant};

/// Stands in front of a log, for failpoints and for mutants.
pub struct HookedLog {
    inner: Arc<dyn LogStore>,
    hooks: Hooks,
}

impl HookedLog {
    /// Puts hooks in front of `inner`.
    pub fn new(inner: Arc<dyn LogStore>, hooks: Hooks) -> Self {
        Self { inner, hooks }
    }
}

impl LogLayer for HookedLog {
    fn inner(&self) -> &dyn LogStore {
        &*self.inner
    }

    fn submit_through(&self, write: LogWrite, done: Completion) {
        let is_append = matches!(write, LogWrite::Append { .. });
        let vote = match &write {
            LogWrite::SaveHardState { hard_state, .. } => Some(*hard_state),
            LogWrite::Append { .. }
            | LogWrite::Truncate { .. }
            | LogWrite::Purge { .. }
            | LogWrite::Drop { .. }
            | LogWrite::MarkLost { .. } => None,
        };
        if is_append {
            self.hooks.reach("log.append");
        }
        if self.hooks.has(Mutant::VoteNotPersisted) && vote.is_some_and(|vote| !vote.committed) {
            return done(Ok(()));
        }
        if self.hooks.has(Mutant::AcknowledgeBeforeSync) {
            self.inner.submit(write, Box::new(drop));
            return done(Ok(()));
        }
        let hooks = self.hooks.clone();
        let done: Completion = Box::new(move |result| {
            // On disk, and nobody knows it yet.
            if is_append {
                hooks.reach("log.durable");
            } else if vote.is_some() {
                hooks.reach("vote.durable");
            }
            done(result);
        });
        self.inner.submit(write, done);
    }
}

#[cfg(test)]
mod tests {
    use anchorhold_storage::{GroupId, HardState, LogEntry, LogPosition, MemoryLog};
    use parking_lot::Mutex;

    use super::*;

    const GROUP: GroupId = GroupId { shard: 1, incarnation: 1 };

    fn append() -> LogWrite {
        let position = LogPosition { term: 1, index: 0 };
        let entries = vec![LogEntry { position, content: "entry".into() }];
        LogWrite::Append { group: GROUP, entries }
    }

    fn vote(committed: bool) -> LogWrite {
        let hard_state = HardState { term: 1, voted_for: Some(1), committed };
        LogWrite::SaveHardState { group: GROUP, hard_state }
    }

    /// Whether a write is acknowledged before anything is synced.
    fn is_told_early(mutant: Option<Mutant>, write: LogWrite) -> (bool, MemoryLog) {
        let (hooks, memory) = (Hooks::default(), MemoryLog::with_manual_sync());
        hooks.set_mutants(mutant.as_slice());
        let told = Arc::new(Mutex::new(false));
        let teller = Arc::clone(&told);
        let log = HookedLog::new(Arc::new(memory.clone()), hooks);
        log.submit(write, Box::new(move |_| *teller.lock() = true));
        let is_told = *told.lock();
        (is_told, memory)
    }

    #[test]
    fn only_a_mutant_acknowledges_what_is_not_on_disk() {
        assert!(!is_told_early(None, append()).0);
        assert!(!is_told_early(Some(Mutant::VoteNotPersisted), append()).0);
        let (is_told, memory) = is_told_early(Some(Mutant::AcknowledgeBeforeSync), append());
        assert!(is_told);
        assert_eq!(memory.unsynced(), 1);
    }

    #[test]
    fn a_vote_that_is_not_persisted_is_one_that_no_quorum_granted() {
        let (is_told, memory) = is_told_early(Some(Mutant::VoteNotPersisted), vote(false));
        assert!(is_told);
        assert_eq!(memory.unsynced(), 0);
        assert!(!is_told_early(Some(Mutant::VoteNotPersisted), vote(true)).0);
    }
}
