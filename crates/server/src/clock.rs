//! How long a request may still take.

use std::sync::Arc;
use std::time::Duration;

use anchorhold_consensus::Clock;

/// The moment when a request's answer is of no use any more.
#[derive(Clone)]
pub struct Deadline {
    clock: Arc<dyn Clock>,
    at: Duration,
}

impl Deadline {
    /// A deadline from now.
    pub fn after(clock: &Arc<dyn Clock>, budget: Duration) -> Self {
        Self { clock: Arc::clone(clock), at: clock.monotonic().saturating_add(budget) }
    }

    /// What is left; zero if it has passed.
    pub fn remaining(&self) -> Duration {
        self.at.saturating_sub(self.clock.monotonic())
    }

    /// Whether it has passed.
    pub fn has_passed(&self) -> bool {
        self.remaining().is_zero()
    }
}
