//! The shared log, watched for a disk that does not answer.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anchorhold_storage::{
    Completion, GroupId, GroupLog, LogEntry, LogStats, LogStore, LogWrite, ReadError,
};

use crate::seams::Clock;

/// Passes everything on to the log, and knows for how long the log has owed an answer.
pub(crate) struct WatchedLog {
    log: Arc<dyn LogStore>,
    debt: Arc<Debt>,
}

/// Changes that are submitted and not completed.
struct Debt {
    clock: Arc<dyn Clock>,
    changes: AtomicU64,
    /// Monotonic time, in microseconds, of the last completion, or of the first change after all
    /// were completed.
    since_micros: AtomicU64,
}

impl Debt {
    fn now_micros(&self) -> u64 {
        u64::try_from(self.clock.monotonic().as_micros()).unwrap_or(u64::MAX)
    }
}

impl WatchedLog {
    pub(crate) fn new(log: Arc<dyn LogStore>, clock: Arc<dyn Clock>) -> Self {
        let debt =
            Debt { clock, changes: AtomicU64::default(), since_micros: AtomicU64::default() };
        Self { log, debt: Arc::new(debt) }
    }

    /// How long the log has completed nothing although it owes something; zero if it does not.
    pub(crate) fn silent_for(&self) -> Duration {
        if self.debt.changes.load(Ordering::Acquire) == 0 {
            return Duration::ZERO;
        }
        let since = self.debt.since_micros.load(Ordering::Acquire);
        Duration::from_micros(self.debt.now_micros().saturating_sub(since))
    }
}

impl LogStore for WatchedLog {
    fn submit(&self, write: LogWrite, done: Completion) {
        if self.debt.changes.fetch_add(1, Ordering::AcqRel) == 0 {
            self.debt.since_micros.store(self.debt.now_micros(), Ordering::Release);
        }
        let debt = Arc::clone(&self.debt);
        self.log.submit(
            write,
            Box::new(move |result| {
                debt.since_micros.store(debt.now_micros(), Ordering::Release);
                debt.changes.fetch_sub(1, Ordering::AcqRel);
                done(result);
            }),
        );
    }

    fn group(&self, group: GroupId) -> Option<GroupLog> {
        self.log.group(group)
    }

    fn groups(&self) -> Vec<GroupId> {
        self.log.groups()
    }

    fn read(
        &self,
        group: GroupId,
        indexes: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<LogEntry>, ReadError> {
        self.log.read(group, indexes, bytes_max)
    }

    fn unknown_groups_may_be_lost(&self) -> bool {
        self.log.unknown_groups_may_be_lost()
    }

    fn group_bytes(&self, group: GroupId) -> u64 {
        self.log.group_bytes(group)
    }

    fn unknown_groups_are_noted(&self) {
        self.log.unknown_groups_are_noted();
    }

    fn stats(&self) -> LogStats {
        self.log.stats()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use anchorhold_model::Timestamp;
    use anchorhold_storage::HardState;
    use parking_lot::Mutex;

    use super::*;

    #[derive(Default)]
    struct ManualClock(AtomicU64);

    impl Clock for ManualClock {
        fn wall(&self) -> Timestamp {
            Timestamp(self.0.load(Ordering::Relaxed))
        }

        fn monotonic(&self) -> Duration {
            Duration::from_millis(self.0.load(Ordering::Relaxed))
        }
    }

    /// Keeps completions until it is told to answer.
    #[derive(Default)]
    struct SlowLog(Mutex<Vec<Completion>>);

    impl LogStore for SlowLog {
        fn submit(&self, _write: LogWrite, done: Completion) {
            self.0.lock().push(done);
        }

        fn group(&self, _group: GroupId) -> Option<GroupLog> {
            None
        }

        fn groups(&self) -> Vec<GroupId> {
            Vec::new()
        }

        fn read(
            &self,
            _group: GroupId,
            _indexes: Range<u64>,
            _bytes_max: usize,
        ) -> Result<Vec<LogEntry>, ReadError> {
            Ok(Vec::new())
        }

        fn unknown_groups_may_be_lost(&self) -> bool {
            false
        }

        fn stats(&self) -> LogStats {
            LogStats::default()
        }
    }

    fn change() -> LogWrite {
        let group = GroupId { shard: 1, incarnation: 1 };
        let hard_state = HardState { term: 1, voted_for: None, committed: false };
        LogWrite::SaveHardState { group, hard_state }
    }

    #[test]
    fn silence_counts_only_while_something_is_owed() {
        let (clock, slow) = (Arc::new(ManualClock::default()), Arc::new(SlowLog::default()));
        let watched = WatchedLog::new(slow.clone(), clock.clone());
        let silent = || watched.silent_for().as_millis();
        clock.0.store(1_000, Ordering::Relaxed);
        assert_eq!(silent(), 0);
        watched.submit(change(), Box::new(drop));
        clock.0.store(1_700, Ordering::Relaxed);
        watched.submit(change(), Box::new(drop));
        assert_eq!(silent(), 700);
        // One answer is progress, and the second change waits from then on.
        slow.0.lock().remove(0)(Ok(()));
        clock.0.store(2_000, Ordering::Relaxed);
        assert_eq!(silent(), 300);
        slow.0.lock().remove(0)(Ok(()));
        assert_eq!(silent(), 0);
    }
}
