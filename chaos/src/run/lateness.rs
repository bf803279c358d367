//! How late a sleeper of a millisecond wakes: whether the machine has time for the run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;

use crate::clock::RunClock;
use crate::events::{EventKind, EventLog};

/// A thread that sleeps and notes. Ends when it is stopped or dropped.
pub(crate) struct Lateness {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

const SLEEP: Duration = Duration::from_millis(1);
const REPORT_EVERY: Duration = Duration::from_secs(1);

impl Lateness {
    pub(crate) fn start(clock: RunClock, events: Arc<EventLog>) -> anyhow::Result<Self> {
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        // A thread of its own: the runtime's timers would measure the runtime.
        let builder = std::thread::Builder::new().name("lateness".to_owned());
        let thread = builder.spawn(move || watch(clock, &events, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().ok().context("the lateness canary panicked")?
    }
}

impl Drop for Lateness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn watch(clock: RunClock, events: &EventLog, stop: &AtomicBool) -> anyhow::Result<()> {
    let mut late = Vec::new();
    let mut reported = clock.elapsed();
    while !stop.load(Ordering::Relaxed) {
        let before = clock.elapsed();
        std::thread::sleep(SLEEP);
        let now = clock.elapsed();
        late.push(u64::try_from((now - before - SLEEP).as_micros()).unwrap_or(u64::MAX));
        if REPORT_EVERY <= now - reported {
            reported = now;
            events.append(summary(&mut late))?;
            late.clear();
        }
    }
    Ok(())
}

fn summary(late_us: &mut [u64]) -> EventKind {
    late_us.sort_unstable();
    let at = |share: usize| late_us.get(late_us.len() * share / 100).or(late_us.last());
    EventKind::Lateness {
        p50_us: at(50).copied().unwrap_or_default(),
        p99_us: at(99).copied().unwrap_or_default(),
        max_us: late_us.last().copied().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_summed_up_by_its_quantiles() {
        let mut late: Vec<u64> = (0..1_000).rev().collect();
        let expected = EventKind::Lateness { p50_us: 500, p99_us: 990, max_us: 999 };
        assert_eq!(summary(&mut late), expected);
        let expected = EventKind::Lateness { p50_us: 7, p99_us: 7, max_us: 7 };
        assert_eq!(summary(&mut [7]), expected);
    }
}
