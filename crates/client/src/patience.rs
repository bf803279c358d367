//! When a node's silence is long enough to ask another one as well.
//!
//! An answer that is late beyond what answers to this method usually take has probably met a node
//! that is frozen, cut off or without a leader. Nodes that are merely slow must not be asked twice:
//! that would double the load when there is too much of it, so the bound follows what is measured,
//! as TCP's retransmission timer does.
//!
//! Source: RFC 6298, "Computing TCP's Retransmission Timer", section 2.

use std::time::Duration;

/// Shares of a new measurement in the mean and in the deviation (RFC 6298: 1/8 and 1/4).
const MEAN_SHARE: f64 = 0.125;
const DEVIATION_SHARE: f64 = 0.25;
/// Deviations above the mean that still count as usual (RFC 6298: K).
const DEVIATIONS: f64 = 4.0;

/// How long answers to one method take.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Patience {
    /// Mean and mean deviation in seconds; `None` before the first answer.
    usual: Option<(f64, f64)>,
}

impl Patience {
    /// Takes in how long an answer took.
    pub(crate) fn note(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        self.usual = Some(match self.usual {
            None => (took, took / 2.0),
            Some((mean, deviation)) => (
                mean + MEAN_SHARE * (took - mean),
                deviation + DEVIATION_SHARE * ((took - mean).abs() - deviation),
            ),
        });
    }

    /// How long to wait for an answer before another node is asked, between the two bounds.
    pub(crate) fn hedge_after(&self, least: Duration, most: Duration) -> Duration {
        let usual = self.usual.map_or(0.0, |(mean, deviation)| mean + DEVIATIONS * deviation);
        Duration::try_from_secs_f64(usual).unwrap_or(most).clamp(least.min(most), most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: Duration = Duration::from_millis(400);
    const MOST: Duration = Duration::from_secs(2);

    fn after(took_ms: impl IntoIterator<Item = u64>) -> u128 {
        let mut patience = Patience::default();
        took_ms.into_iter().for_each(|took| patience.note(Duration::from_millis(took)));
        patience.hedge_after(LEAST, MOST).as_millis()
    }

    #[test]
    fn quick_nodes_are_given_the_least_time_and_slow_ones_what_they_need() {
        assert_eq!(after([]), 400);
        assert_eq!(after([5; 100]), 400);
        assert!((600..700).contains(&after([600; 100])), "{}", after([600; 100]));
        assert_eq!(after([30_000; 3]), 2_000);
    }

    #[test]
    fn one_election_is_forgotten_after_a_few_quick_answers() {
        let usual = || std::iter::repeat_n(5, 50);
        assert!(1_000 < after(usual().chain([1_400])));
        assert_eq!(after(usual().chain([1_400]).chain([5; 16])), 400);
    }
}
