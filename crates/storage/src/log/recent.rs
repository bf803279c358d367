//! How long the last fsyncs took.

/// Fsyncs that count.
const RECENT: usize = 1_000;

/// The durations of the last [`RECENT`] fsyncs in microseconds, in a ring.
#[derive(Default)]
pub(super) struct RecentFsyncs {
    micros: Vec<u64>,
    next: usize,
}

impl RecentFsyncs {
    pub(super) fn add(&mut self, micros: u64) {
        match self.micros.get_mut(self.next) {
            Some(oldest) => *oldest = micros,
            None => self.micros.push(micros),
        }
        self.next = (self.next + 1) % RECENT;
    }

    /// What 99 of 100 took at most; `None` before the first.
    pub(super) fn percentile_99(&self) -> Option<u64> {
        let rank = (self.micros.len() * 99).div_ceil(100).checked_sub(1)?;
        let mut micros = self.micros.clone();
        Some(*micros.select_nth_unstable(rank).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentile_is_that_of_the_last_thousand() {
        let mut recent = RecentFsyncs::default();
        assert_eq!(recent.percentile_99(), None);
        recent.add(7);
        assert_eq!(recent.percentile_99(), Some(7));
        (0..5).for_each(|_| recent.add(1_000_000));
        (1..=1_000).for_each(|micros| recent.add(micros));
        assert_eq!(recent.percentile_99(), Some(990));
    }
}
