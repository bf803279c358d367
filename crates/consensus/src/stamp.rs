use std::sync::Arc;
use std::time::Duration;

use anchorhold_model::Timestamp;
use parking_lot::Mutex;

use crate::seams::Clock;

/// The times that this node stamps entries with: the wall clock, unless it goes back, and then the
/// last stamp plus what the monotonic clock says has passed since.
pub(crate) struct Stamper {
    clock: Arc<dyn Clock>,
    last: Mutex<(Timestamp, Duration)>,
}

impl Stamper {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        let last = (clock.wall(), clock.monotonic());
        Self { clock, last: Mutex::new(last) }
    }

    /// The time for the next entry. Never before an earlier one.
    pub(crate) fn now(&self) -> Timestamp {
        let (wall, monotonic) = (self.clock.wall(), self.clock.monotonic());
        let mut last = self.last.lock();
        let elapsed = monotonic.saturating_sub(last.1).as_millis();
        let carried_on = Timestamp(last.0.0 + u64::try_from(elapsed).unwrap_or(u64::MAX / 2));
        if carried_on <= wall {
            *last = (wall, monotonic);
            wall
        } else {
            carried_on
        }
    }
}
