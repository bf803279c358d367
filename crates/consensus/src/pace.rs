//! How fast a node sends snapshots, all transfers together: whoever rebuilds many shards at once must
//! leave the network and the disk to those who write.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// A rate that all transfers of a node share, each piece taking its turn.
pub(crate) struct Pace {
    bytes_per_second_max: u64,
    /// When everything that has had its turn is through.
    free_at: Mutex<Option<Instant>>,
}

impl Pace {
    pub(crate) fn new(bytes_per_second_max: u64) -> Self {
        Self { bytes_per_second_max: bytes_per_second_max.max(1), free_at: Mutex::default() }
    }

    /// Waits until so many bytes may be sent.
    pub(crate) async fn take(&self, bytes: u64) {
        tokio::time::sleep_until(self.turn(Instant::now(), bytes)).await;
    }

    /// When so many bytes may be sent that are there now.
    fn turn(&self, now: Instant, bytes: u64) -> Instant {
        let micros = bytes.saturating_mul(1_000_000) / self.bytes_per_second_max;
        let mut free_at = self.free_at.lock();
        let begin = free_at.map_or(now, |at| at.max(now));
        *free_at = Some(begin + Duration::from_micros(micros));
        begin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_take_turns_and_a_rest_is_not_saved_up() {
        let (pace, begun) = (Pace::new(1_000), Instant::now());
        let at = |ms| begun + Duration::from_millis(ms);
        // Of two transfers at once.
        let turns: Vec<Instant> = (0..4).map(|_| pace.turn(at(0), 500)).collect();
        assert_eq!(turns, [0, 500, 1_000, 1_500].map(at));
        assert_eq!(pace.turn(at(1_900), 500), at(2_000));
        assert_eq!(pace.turn(at(60_000), 500), at(60_000));
        assert_eq!(pace.turn(at(60_000), 500), at(60_500));
    }
}
