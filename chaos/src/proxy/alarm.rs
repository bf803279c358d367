//! Waking on time, to some ten microseconds.
//!
//! The runtime's timers end at whole milliseconds, and two zones are less than one apart: with them
//! a latency of 0.3 ms would be one of more than 1. One thread sleeps instead, for all that waits.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

/// The thread that wakes. It ends when this is dropped.
pub(super) struct Alarms {
    calls: Arc<Calls>,
}

/// For one wait at a time.
pub(super) struct Alarm {
    calls: Arc<Calls>,
    /// What it is set to, and who rings then.
    set: Option<(Instant, oneshot::Receiver<()>)>,
}

#[derive(Default)]
struct Calls {
    waiting: Mutex<Waiting>,
    /// The first one is another, or it is over.
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    /// By time, and then by number.
    calls: BTreeMap<(Instant, u64), oneshot::Sender<()>>,
    next: u64,
    is_over: bool,
}

impl Alarms {
    /// # Errors
    /// If there is no thread to be had.
    pub(super) fn start() -> io::Result<Self> {
        let calls = Arc::<Calls>::default();
        let here = Self { calls: Arc::clone(&calls) };
        std::thread::Builder::new().name("alarms".to_owned()).spawn(move || calls.ring())?;
        Ok(here)
    }

    pub(super) fn alarm(&self) -> Alarm {
        Alarm { calls: Arc::clone(&self.calls), set: None }
    }
}

impl Drop for Alarms {
    fn drop(&mut self) {
        self.calls.waiting.lock().is_over = true;
        self.calls.changed.notify_one();
    }
}

impl Calls {
    fn ring(&self) {
        let mut waiting = self.waiting.lock();
        while !waiting.is_over {
            let Some(first) = waiting.calls.first_entry() else {
                self.changed.wait(&mut waiting);
                continue;
            };
            let (due, _) = *first.key();
            if Instant::now() < due {
                self.changed.wait_until(&mut waiting, due.into_std());
            } else {
                // Whoever has given up does not hear it.
                let _ = first.remove().send(());
            }
        }
        waiting.calls.clear();
    }

    fn add(&self, due: Instant) -> oneshot::Receiver<()> {
        let (ring, rung) = oneshot::channel();
        let mut waiting = self.waiting.lock();
        let key = (due, waiting.next);
        waiting.next += 1;
        waiting.calls.insert(key, ring);
        if waiting.calls.first_key_value().is_some_and(|(first, _)| *first == key) {
            self.changed.notify_one();
        }
        rung
    }
}

impl Alarm {
    /// Returns at that moment, never before. May be given up, and called again.
    pub(super) async fn wait_until(&mut self, due: Instant) {
        if due <= Instant::now() {
            return;
        }
        if self.set.as_ref().is_none_or(|(at, _)| *at != due) {
            self.set = Some((due, self.calls.add(due)));
        }
        if let Some((_, rung)) = &mut self.set {
            // It rings, or nobody does any more.
            let _ = rung.await;
        }
        self.set = None;
        // Not without looking: a timer of the runtime takes its millisecond for the past, too.
        if Instant::now() < due {
            sleep_until(due).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn it_rings_on_time_also_after_a_wait_that_was_given_up() {
        let alarms = Alarms::start().unwrap();
        let (mut alarm, mut other) = (alarms.alarm(), alarms.alarm());
        let mut shortest = Duration::MAX;
        for _ in 0..200 {
            let given_up = alarm.wait_until(Instant::now() + Duration::from_secs(60));
            assert!(tokio::time::timeout(Duration::ZERO, given_up).await.is_err());
            let begun = Instant::now();
            let (early, late) = (Duration::from_micros(300), Duration::from_micros(400));
            tokio::join!(alarm.wait_until(begun + late), other.wait_until(begun + early));
            assert!(late <= begun.elapsed());
            shortest = shortest.min(begun.elapsed());
        }
        // One of many: the machine may be busy.
        assert!(shortest < Duration::from_millis(1), "{shortest:?}");
    }

    #[tokio::test]
    async fn without_its_thread_it_still_ends() {
        let alarms = Alarms::start().unwrap();
        let mut alarm = alarms.alarm();
        let due = Instant::now() + Duration::from_millis(5);
        drop(alarms);
        alarm.wait_until(due).await;
        assert!(due <= Instant::now());
    }
}
