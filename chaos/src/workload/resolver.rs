//! Finds out what became of writes that were not answered.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::stage::Stage;
use super::wire::Write;

/// A write of unknown outcome.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) client: u32,
    pub(super) start_ns: u64,
    pub(super) write: Write,
    /// Item by item, whether its outcome is known.
    pub(super) known: Vec<bool>,
}

/// Open writes that wait for a place among those that are sent again. Clients wait while it is full.
pub(super) const OPEN_MAX: usize = 1_024;
/// Open writes that are sent again at the same time.
const CONCURRENT_MAX: usize = 32;
/// Between two tries of one write.
const PAUSE: Duration = Duration::from_millis(250);
/// The store remembers a request id for 15 minutes; the SDK gives up at 10.
const AGE_MAX: Duration = Duration::from_secs(9 * 60);
/// How long after the end of the workload an outcome may still be found out.
const AFTER_STOP_MAX: Duration = Duration::from_secs(60);

/// Resolves what comes in, until it is told that no more will come and everything is resolved or
/// given up.
pub(super) async fn run(
    stage: Arc<Stage>,
    mut incoming: mpsc::Receiver<Option<Open>>,
) -> anyhow::Result<()> {
    let mut tries = JoinSet::new();
    while let Some(Some(open)) = incoming.recv().await {
        if tries.len() == CONCURRENT_MAX {
            tries.join_next().await.context("a try is under way")???;
        }
        while let Some(ended) = tries.try_join_next() {
            ended??;
        }
        tries.spawn(resolve(stage.clone(), open));
    }
    while let Some(ended) = tries.join_next().await {
        ended??;
    }
    Ok(())
}

async fn resolve(stage: Arc<Stage>, mut open: Open) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut stopped = None;
    loop {
        if stage.resolve(&mut open).await? || AGE_MAX <= begun.elapsed() {
            return Ok(());
        }
        if !stage.goes_on() {
            let since = *stopped.get_or_insert_with(Instant::now);
            if AFTER_STOP_MAX <= since.elapsed() {
                return Ok(());
            }
        }
        sleep(PAUSE).await;
    }
}
