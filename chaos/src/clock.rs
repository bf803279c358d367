//! The one clock of a run.
//!
//! Everything that is compared in a run (acknowledgements, faults, samples) is stamped by the same
//! monotonic clock, in nanoseconds since the run's start. Wall-clock time stands in the run's
//! description once, for people.

use std::time::{Duration, Instant};

/// Nanoseconds since the start of one run. Copies share the origin.
#[derive(Clone, Copy, Debug)]
pub struct RunClock {
    origin: Instant,
}

impl RunClock {
    /// A clock that begins now.
    #[expect(clippy::disallowed_methods, reason = "the one origin of a run's times")]
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// Nanoseconds since the start. Never goes back.
    pub fn now_ns(&self) -> u64 {
        nanoseconds(self.origin.elapsed())
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.origin.elapsed()
    }
}

/// A duration in nanoseconds; 584 years at most.
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_share_the_origin() {
        let clock = RunClock::start();
        let copy = clock;
        let first = clock.now_ns();
        let second = copy.now_ns();
        assert!(first <= second && second <= clock.now_ns());
        assert_eq!(nanoseconds(Duration::from_millis(3)), 3_000_000);
    }
}
