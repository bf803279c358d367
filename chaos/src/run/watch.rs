//! What is watched while a run goes on: the cluster each second, the processes all the time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::lateness::Lateness;
use super::{Run, RunProgress};
use crate::events::{EventKind, Sample};

/// What the runner shows of itself.
#[derive(Debug, Default)]
pub(super) struct Board {
    /// Round and phase.
    pub(super) phase: String,
    /// Faults that are on, by id.
    pub(super) faults: BTreeMap<u32, String>,
}

/// Watches a run until it is stopped.
pub(super) struct Watch {
    board: Arc<Mutex<Board>>,
    stop: watch::Sender<bool>,
    sampler: JoinHandle<anyhow::Result<()>>,
    supervisor: JoinHandle<anyhow::Result<Vec<String>>>,
    lateness: anyhow::Result<Lateness>,
}

const SAMPLE_EVERY: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Nodes that end by themselves are started again this often, all together.
const RESTARTS_MAX: usize = 50;

impl Watch {
    pub(super) fn start(
        run: &Arc<Run>,
        progress: impl Fn(&RunProgress) + Send + Sync + 'static,
    ) -> Self {
        let board = Arc::<Mutex<Board>>::default();
        let (stop, stopped) = watch::channel(false);
        let sampler = sample(run.clone(), board.clone(), progress, stopped.clone());
        Self {
            sampler: tokio::spawn(sampler),
            supervisor: tokio::spawn(supervise(run.clone(), stopped)),
            lateness: Lateness::start(run.clock, run.events.clone()),
            board,
            stop,
        }
    }

    pub(super) fn board(&self) -> Arc<Mutex<Board>> {
        self.board.clone()
    }

    /// Ends the watch. Returns which processes ended by themselves.
    pub(super) async fn stop(self) -> anyhow::Result<Vec<String>> {
        self.stop.send_replace(true);
        self.lateness?.stop()?;
        self.sampler.await.context("the sampler panicked")??;
        self.supervisor.await.context("the supervisor panicked")?
    }
}

/// Waits for the next tick. Returns whether there is one.
async fn tick(stopped: &mut watch::Receiver<bool>, at: Instant) -> bool {
    tokio::select! {
        () = sleep_until(at) => true,
        _ = stopped.wait_for(|stopped| *stopped) => false,
    }
}

async fn sample(
    run: Arc<Run>,
    board: Arc<Mutex<Board>>,
    progress: impl Fn(&RunProgress),
    mut stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let mut next = Instant::now();
    let mut turn = 0;
    let mut hits = BTreeMap::new();
    while tick(&mut stopped, next).await {
        next = (next + SAMPLE_EVERY).max(Instant::now());
        turn += 1;
        hits.extend(run.driver.failpoint_hits());
        let sample = run.driver.survey(turn).await.sample;
        run.events.append(EventKind::Sample(sample.clone()))?;
        let all = run.workloads.iter().map(crate::workload::RunningWorkload::progress);
        let operations = all.fold([0; 3], |sum: [u64; 3], one| {
            [sum[0] + one.acknowledged, sum[1] + one.failed, sum[2] + one.unknown]
        });
        let [acknowledged, failed, unknown] = operations;
        run.events.append(EventKind::Progress { acknowledged, failed, unknown })?;
        let (phase, faults) = {
            let board = board.lock();
            (board.phase.clone(), board.faults.values().cloned().collect())
        };
        let elapsed = run.clock.elapsed();
        progress(&RunProgress { phase, faults, operations, cluster: words(&sample), elapsed });
    }
    hits.extend(run.driver.failpoint_hits());
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for (point, count) in hits.into_values().flatten() {
        *sums.entry(point).or_default() += count;
    }
    if !sums.is_empty() {
        run.events.append(EventKind::Failpoints { hits: sums })?;
    }
    Ok(())
}

fn words(sample: &Sample) -> String {
    if !sample.answered {
        return "nobody answers".to_owned();
    }
    let leaders: Vec<String> =
        sample.leaders_per_node.iter().map(|(node, count)| format!("{node}:{count}")).collect();
    let mut words = format!("{} up, leaders {}", sample.nodes_up, leaders.join(" "));
    if 0 < sample.shards_without_leader {
        words.push_str(&format!(", {} without", sample.shards_without_leader));
    }
    if 0 < sample.replicas_missing {
        words.push_str(&format!(", {} replicas missing", sample.replicas_missing));
    }
    words
}

/// Starts nodes again that ended by themselves, as a supervisor does, and notes it.
async fn supervise(
    run: Arc<Run>,
    mut stopped: watch::Receiver<bool>,
) -> anyhow::Result<Vec<String>> {
    let mut deaths = Vec::new();
    let mut next = Instant::now();
    while tick(&mut stopped, next).await {
        next = Instant::now() + LOOK_EVERY;
        for (node, how) in run.driver.look()? {
            if run.driver.is_excused(&node) {
                continue; // Its fault starts it again when it is healed.
            }
            let last = run.driver.last_words(&node);
            let how = format!("{how}: {last}");
            run.events.append(EventKind::NodeDied { node: node.clone(), how: how.clone() })?;
            deaths.push(format!("{node} ({how})"));
            anyhow::ensure!(
                deaths.len() <= RESTARTS_MAX,
                "nodes end by themselves again and again"
            );
            run.driver.start_node(&node).await?;
        }
    }
    Ok(deaths)
}
