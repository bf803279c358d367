//! How often each shard on this node is asked: requests per second, smoothed.

use std::collections::BTreeMap;
use std::time::Duration;

use anchorhold_consensus::Clock;
use anchorhold_model::ShardId;
use parking_lot::Mutex;

/// Shortest time over which requests are counted.
const WINDOW: Duration = Duration::from_secs(1);

/// Counts requests by shard.
#[derive(Default)]
pub struct LoadMeter {
    shards: Mutex<BTreeMap<ShardId, Meter>>,
}

#[derive(Default)]
struct Meter {
    count: u64,
    since: Duration,
    per_second: u64,
}

impl LoadMeter {
    /// Counts requests of a shard.
    pub fn count(&self, shard: ShardId, requests: usize) {
        self.shards.lock().entry(shard).or_default().count += requests as u64;
    }

    /// Requests per second of late: each second counts half as much as the one after it.
    pub fn rate(&self, clock: &dyn Clock, shard: ShardId) -> u64 {
        let now = clock.monotonic();
        let mut shards = self.shards.lock();
        let Some(meter) = shards.get_mut(&shard) else { return 0 };
        let passed = now.saturating_sub(meter.since);
        if WINDOW <= passed {
            let millis = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX).max(1);
            let fresh = meter.count.saturating_mul(1_000) / millis;
            meter.per_second = (meter.per_second + fresh) / 2;
            (meter.count, meter.since) = (0, now);
        }
        meter.per_second
    }

    /// Forgets a shard that is not here any more.
    pub fn forget(&self, shard: ShardId) {
        self.shards.lock().remove(&shard);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use anchorhold_model::Timestamp;

    use super::*;

    #[derive(Default)]
    struct ManualClock(AtomicU64);

    impl Clock for ManualClock {
        fn wall(&self) -> Timestamp {
            Timestamp(0)
        }

        fn monotonic(&self) -> Duration {
            Duration::from_millis(self.0.load(Ordering::Relaxed))
        }
    }

    #[test]
    fn the_rate_follows_the_requests_and_falls_when_they_stop() {
        let (meter, clock, shard) = (LoadMeter::default(), ManualClock::default(), ShardId(4));
        assert_eq!(meter.rate(&clock, shard), 0);
        let mut rates = Vec::new();
        for second in 1..=10 {
            clock.0.store(second * 1_000, Ordering::Relaxed);
            meter.count(shard, if second <= 6 { 100 } else { 0 });
            rates.push(meter.rate(&clock, shard));
        }
        assert!(rates[..6].is_sorted() && 90 <= rates[5], "{rates:?}");
        assert!(rates[6..].windows(2).all(|pair| pair[1] < pair[0]), "{rates:?}");
        assert_eq!(meter.rate(&clock, shard), rates[9], "within a second nothing is counted anew");
    }
}
