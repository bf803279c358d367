//! The shared log, watched for a disk that does not answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anchorhold_storage::{Completion, LogLayer, LogStore, LogWrite};

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

impl LogLayer for WatchedLog {
    fn inner(&self) -> &dyn LogStore {
        &*self.log
    }

    fn submit_through(&self, write: LogWrite, done: Completion) {
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
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use anchorhold_model::Timestamp;
    use anchorhold_storage::{GroupId, HardState, MemoryLog};
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
    struct SlowLog {
        log: MemoryLog,
        owed: Mutex<Vec<Completion>>,
    }

    impl LogLayer for SlowLog {
        fn inner(&self) -> &dyn LogStore {
            &self.log
        }

        fn submit_through(&self, _write: LogWrite, done: Completion) {
            self.owed.lock().push(done);
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
        slow.owed.lock().remove(0)(Ok(()));
        clock.0.store(2_000, Ordering::Relaxed);
        assert_eq!(silent(), 300);
        slow.owed.lock().remove(0)(Ok(()));
        assert_eq!(silent(), 0);
    }
}
