//! Drives an operation from many clients and measures it.
//!
//! *Closed loop*: each client sends its next request when the last one is answered. *Open loop*:
//! requests are due at fixed times, whether or not earlier ones were answered, and a latency counts
//! from the time that a request was due: a stalled server is not excused by a client that waited
//! ("coordinated omission", G. Tene).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::time::{Instant, sleep_until};

/// How hard to drive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Requests open at once, at most.
    pub(crate) clients: u32,
    /// Requests per second in all; `None` is a closed loop.
    pub(crate) rate: Option<f64>,
    /// Time before measuring.
    pub(crate) warm_up: Duration,
    /// Time that is measured.
    pub(crate) duration: Duration,
}

/// What was measured.
#[derive(Debug)]
pub(crate) struct Measurement {
    /// Latencies of successful requests in microseconds.
    pub(crate) latency_us: Histogram<u64>,
    /// From the first due time to the last answer.
    pub(crate) elapsed: Duration,
    /// Failed requests by what they said.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Longest time without any successful answer.
    pub(crate) gap_max: Duration,
}

/// Largest latency told apart, in microseconds: two minutes.
const LATENCY_US_MAX: u64 = 120_000_000;
/// Significant decimal digits of latencies.
const DIGITS: u8 = 3;
/// Different error texts that are told apart, at most.
const ERROR_KINDS_MAX: usize = 20;

/// What one client saw.
struct Seen {
    latency_us: Histogram<u64>,
    errors: BTreeMap<String, u64>,
    /// Times of successful answers since the start of measuring, in microseconds.
    answers_us: Vec<u64>,
}

/// Runs `operation(client, number)` from every client until the time is over. `begin` is run when
/// measuring begins.
pub(crate) async fn run<F>(
    load: Load,
    begin: impl Future<Output = ()>,
    operation: impl Fn(u32, u64) -> F + Clone + Send + Sync + 'static,
) -> anyhow::Result<Measurement>
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let start = Instant::now() + load.warm_up;
    let end = start + load.duration;
    let tickets = std::sync::Arc::new(AtomicU64::new(0));
    let clients = (0..load.clients).map(|client| {
        let (operation, tickets) = (operation.clone(), tickets.clone());
        tokio::spawn(drive(load, client, start, end, tickets, operation))
    });
    let clients: Vec<_> = clients.collect();
    sleep_until(start).await;
    begin.await;
    let mut seen = Vec::with_capacity(clients.len());
    for client in clients {
        seen.push(client.await??);
    }
    merge(seen, load.duration)
}

async fn drive<F>(
    load: Load,
    client: u32,
    start: Instant,
    end: Instant,
    tickets: std::sync::Arc<AtomicU64>,
    operation: impl Fn(u32, u64) -> F,
) -> anyhow::Result<Seen>
where
    F: Future<Output = Result<(), String>>,
{
    let mut seen = Seen {
        latency_us: Histogram::new_with_bounds(1, LATENCY_US_MAX, DIGITS)?,
        errors: BTreeMap::new(),
        answers_us: Vec::new(),
    };
    loop {
        let number = tickets.fetch_add(1, Ordering::Relaxed);
        let due = match load.rate {
            // Due times run from the beginning of the warm-up.
            Some(rate) => start - load.warm_up + due_after(number, rate),
            None => Instant::now(),
        };
        if end <= due {
            return Ok(seen);
        }
        if load.rate.is_some() {
            // Only then: a timer ends a millisecond late even when it is due already.
            sleep_until(due).await;
        }
        let result = operation(client, number).await;
        let answered = Instant::now();
        // A request belongs to the measurement by the time that it was due.
        if due < start {
            continue;
        }
        match result {
            Ok(()) => {
                seen.latency_us.saturating_record(micros(answered - due).max(1));
                seen.answers_us.push(micros(answered - start));
            }
            Err(error) => count_error(&mut seen.errors, error, 1),
        }
    }
}

/// When a request is due after the first one.
fn due_after(number: u64, rate: f64) -> Duration {
    #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 requests")]
    let number = number as f64;
    Duration::from_secs_f64(number / rate)
}

fn merge(seen: Vec<Seen>, duration: Duration) -> anyhow::Result<Measurement> {
    let mut latency_us = Histogram::new_with_bounds(1, LATENCY_US_MAX, DIGITS)?;
    let (mut errors, mut answers_us) = (BTreeMap::new(), Vec::new());
    for client in seen {
        latency_us.add(client.latency_us)?;
        client.errors.into_iter().for_each(|(error, count)| count_error(&mut errors, error, count));
        answers_us.extend(client.answers_us);
    }
    answers_us.sort_unstable();
    let elapsed = Duration::from_micros(answers_us.last().copied().unwrap_or(0)).max(duration);
    let gap_max = gap_us_max(&answers_us, micros(elapsed));
    Ok(Measurement { latency_us, elapsed, errors, gap_max: Duration::from_micros(gap_max) })
}

/// The longest time without an answer between 0 and the end.
fn gap_us_max(sorted_us: &[u64], end_us: u64) -> u64 {
    let after = sorted_us.iter().copied().chain([end_us]);
    let before = [0].into_iter().chain(sorted_us.iter().copied());
    before.zip(after).map(|(before, after)| after - before).max().unwrap_or(0)
}

fn count_error(errors: &mut BTreeMap<String, u64>, error: String, count: u64) {
    let is_told_apart = errors.len() < ERROR_KINDS_MAX || errors.contains_key(&error);
    let key = if is_told_apart { error } else { "(others)".to_owned() };
    *errors.entry(key).or_insert(0) += count;
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    fn load(rate: Option<f64>) -> Load {
        let (warm_up, duration) = (Duration::from_secs(1), Duration::from_secs(10));
        Load { clients: 1, rate, warm_up, duration }
    }

    /// A server that answers in 10 ms, but stalls for 5 s in the middle.
    async fn stalls_once(number: u64) -> Result<(), String> {
        let seconds = if number == 300 { 5.0 } else { 0.01 };
        sleep(Duration::from_secs_f64(seconds)).await;
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_loop_does_not_excuse_a_stall() {
        let measured =
            run(load(Some(50.0)), async {}, |_, number| stalls_once(number)).await.unwrap();
        assert_eq!(measured.latency_us.len(), 500);
        // The requests that were due during the stall have waited too.
        assert!(2_000_000 < measured.latency_us.value_at_quantile(0.8));
        assert!(Duration::from_secs(4) < measured.gap_max);
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_loop_sends_the_next_request_after_the_answer() {
        let measured = run(load(None), async {}, |_, number| stalls_once(number)).await.unwrap();
        assert!(measured.latency_us.value_at_quantile(0.9) < 20_000);
        assert!(4_900_000 < measured.latency_us.max());
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_loop_waits_for_nothing_but_the_answer() {
        let answers = |_, _| async {
            tokio::time::advance(Duration::from_micros(300)).await;
            Ok(())
        };
        let measured = run(load(None), async {}, answers).await.unwrap();
        // A timer that is due ends at the next millisecond all the same.
        let median_us = measured.latency_us.value_at_quantile(0.5);
        assert!((300..310).contains(&median_us), "{median_us}");
    }

    #[tokio::test(start_paused = true)]
    async fn errors_are_counted_by_what_they_say_and_are_no_latencies() {
        let measured = run(load(Some(10.0)), async {}, |_, number| async move {
            if number % 2 == 0 { Err("no leader".to_owned()) } else { Ok(()) }
        });
        let measured = measured.await.unwrap();
        assert_eq!(measured.errors, [("no leader".to_owned(), 50)].into());
        assert_eq!(measured.latency_us.len(), 50);
    }

    #[test]
    fn a_gap_may_lie_before_the_first_and_after_the_last_answer() {
        assert_eq!(gap_us_max(&[5, 6], 8), 5);
        assert_eq!(gap_us_max(&[1, 2], 8), 6);
        assert_eq!(gap_us_max(&[], 8), 8);
    }
}
