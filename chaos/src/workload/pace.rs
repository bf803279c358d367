//! When a client does the next thing.

use std::time::Duration;

use rand::Rng;
use tokio::time::{Instant, sleep_until};

/// A client's own rhythm. After an outage it goes on from there: what was missed is not made up for,
/// or the clients would all come at once.
#[derive(Debug)]
pub(crate) struct Pace {
    interval: Option<Duration>,
    next: Instant,
}

impl Pace {
    /// Of one of `clients` that do `rate` things per second together; 0 means as fast as they can.
    pub(crate) fn new(rate: f64, clients: u32, rng: &mut impl Rng) -> Self {
        let interval = (0.0 < rate).then(|| Duration::from_secs_f64(f64::from(clients) / rate));
        let offset = interval.unwrap_or_default().mul_f64(rng.random());
        Self { interval, next: Instant::now() + offset }
    }

    /// Waits until the next thing is due.
    pub(crate) async fn wait(&mut self) {
        let Some(interval) = self.interval else { return tokio::task::yield_now().await };
        sleep_until(self.next).await;
        self.next = (self.next + interval).max(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_an_outage_made_a_client_miss_is_not_made_up_for() {
        let mut pace = Pace::new(10.0, 1, &mut StdRng::seed_from_u64(1));
        pace.wait().await;
        tokio::time::advance(Duration::from_secs(5)).await;
        pace.wait().await;
        let before = Instant::now();
        pace.wait().await;
        pace.wait().await;
        assert!(Duration::from_millis(100) <= before.elapsed(), "{:?}", before.elapsed());
    }
}
