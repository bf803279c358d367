//! The async runtime as openraft sees it: tokio, and random numbers that follow from a seed.
//!
//! openraft draws its election timeouts from its runtime. Within [`seeded`], and in every task that
//! openraft spawns from there, they follow from the seed alone; elsewhere they are random.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::time::Duration;

use openraft::OptionalSend;
use openraft::rt::AsyncRuntime;
use openraft_rand::rngs::SmallRng;
use openraft_rand::{RngExt as _, SeedableRng as _};
use openraft_rt_tokio::TokioRuntime;

tokio::task_local! {
    static SEED: Cell<u64>;
}

/// Runs a future whose random numbers, and those of the tasks that it spawns, follow from `seed`.
pub(crate) fn seeded<F: Future>(seed: u64, future: F) -> impl Future<Output = F::Output> {
    SEED.scope(Cell::new(seed), future)
}

/// The next seed of this task, if it has any.
fn next_seed() -> Option<u64> {
    SEED.try_with(|seed| {
        let mut random = SmallRng::seed_from_u64(seed.get());
        seed.set(random.random());
        random.random()
    })
    .ok()
}

/// Tokio with seeded random numbers.
#[derive(Debug)]
pub(crate) struct NodeRuntime(TokioRuntime);

impl AsyncRuntime for NodeRuntime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> =
        <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = SmallRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        match next_seed() {
            Some(seed) => TokioRuntime::spawn(SEED.scope(Cell::new(seed), future)),
            None => TokioRuntime::spawn(future),
        }
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        SmallRng::seed_from_u64(next_seed().unwrap_or_else(|| openraft_rand::rng().random()))
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }

    fn spawn_blocking<F, T>(work: F) -> impl Future<Output = Result<T, io::Error>> + Send
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        TokioRuntime::spawn_blocking(work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn draw() -> (u64, u64) {
        let own = NodeRuntime::thread_rng().random();
        let spawned = NodeRuntime::spawn(async { NodeRuntime::thread_rng().random() });
        (own, spawned.await.unwrap())
    }

    #[tokio::test]
    async fn equal_seeds_draw_equal_numbers_in_spawned_tasks_too() {
        let (first, second) = (seeded(7, draw()).await, seeded(7, draw()).await);
        assert_eq!(first, second);
        assert_ne!(first.0, first.1);
        assert_ne!(first, seeded(8, draw()).await);
        assert_ne!(draw().await, draw().await);
    }
}
