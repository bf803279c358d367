//! Keeps the cluster as it should be: the node that leads the catalog looks at all nodes every
//! second, moves them on in their lives, plans, and sees to it that what was planned is done.
//!
//! ```text
//! ask all nodes ─▶ view ─▶ node states ─▶ catalog
//!                    └───▶ plan ─▶ operators ─▶ catalog ─▶ a task each: ask the shard's leader
//! ```
//!
//! What is seen is soft state: a new leader of the catalog has all of it after one look. What is
//! decided is in the catalog: it goes on where the old one died. Silence counts from when a node
//! began to lead the catalog.
//!
//! Not here: what to do (`placement`), how a step is taken ([`operate`]).

mod observe;
pub mod operate;
pub mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anchorhold_model::catalog::{
    CatalogCommand, CatalogOutcome, CatalogState, NodeState, OperatorRecord, Wish,
};
use anchorhold_model::{NodeId, ShardId, Timestamp};
use anchorhold_placement::{Operator, Step, plan};
use tokio::task::JoinHandle;

pub use self::observe::ShardPast;

use self::observe::Observer;
use self::operate::Ends;
use crate::config::PlacementSettings;
use crate::core::Core;
use crate::survey::Survey;

/// How often a node that does not lead the catalog looks whether it does.
const IDLE_INTERVAL: Duration = Duration::from_millis(200);
/// Longest wait for one catalog command.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an operator that only moves a leader may take.
const TRANSFER_MS_MAX: u64 = 15_000;
/// How long a shard is left alone whose operator somebody has canceled.
const CANCELED_REST_MS: u64 = 60_000;
/// How long a shard whose operator was given up is left alone.
const REST_MS: u64 = 5_000;
/// How long a shard is left alone for which a step was found impossible.
const IMPOSSIBLE_REST_MS: u64 = 60_000;

/// What the node that leads the catalog remembers from look to look.
struct Scheduler {
    core: Arc<Core>,
    settings: PlacementSettings,
    observer: Observer,
    /// The operators that are seen to, by shard and number.
    tasks: BTreeMap<(ShardId, u64), JoinHandle<()>>,
    /// The operators that were under way at the last look, by shard and number.
    known: BTreeSet<(ShardId, u64)>,
    /// How operators ended since then.
    ends: Arc<Ends>,
    rounds: u64,
}

impl Core {
    /// Keeps the cluster as it should be while this node leads the catalog, for ever.
    pub async fn schedule_forever(self: Arc<Self>) {
        loop {
            if self.host.catalog_replica().is_leader() {
                Scheduler::new(Arc::clone(&self)).lead().await;
            }
            tokio::time::sleep(IDLE_INTERVAL).await;
        }
    }
}

impl Scheduler {
    fn new(core: Arc<Core>) -> Self {
        let settings = core.placement.clone();
        let observer = Observer::new(&core, settings.lifecycle());
        Self {
            core,
            settings,
            observer,
            tasks: BTreeMap::new(),
            known: BTreeSet::new(),
            ends: Arc::default(),
            rounds: 0,
        }
    }

    async fn lead(mut self) {
        tracing::info!("this node leads the catalog and looks after the cluster");
        let interval = Duration::from_millis(self.settings.interval_ms);
        while self.core.host.catalog_replica().is_leader() {
            self.look().await;
            tokio::time::sleep(interval).await;
        }
    }

    /// One look, and what follows from it.
    async fn look(&mut self) {
        let survey = self.core.survey().await;
        let now = self.observer.now();
        let changes = self.observer.look(&survey, now);
        for (node_id, state) in changes {
            tracing::info!(%node_id, ?state, "a node moves on");
            self.propose(CatalogCommand::SetNodeState { node_id, state }).await;
        }
        self.end_maintenance(now).await;
        let catalog = self.core.catalog();
        self.leave_alone_what_was_canceled(&catalog, now);
        self.give_up_hopeless(&catalog, now).await;
        self.see_to_operators(&catalog);
        if catalog.scheduler.is_paused || !self.observer.has_listened(now) {
            return;
        }
        let operators = self.plan(&survey, &catalog, now);
        self.start(operators, now).await;
        self.see_to_operators(&self.core.catalog());
    }

    fn plan(&mut self, survey: &Survey, catalog: &CatalogState, now: Timestamp) -> Vec<Operator> {
        for shard_id in std::mem::take(&mut *self.ends.hopeless.lock()) {
            let until = Timestamp(now.0.saturating_add(IMPOSSIBLE_REST_MS));
            self.observer.rest(shard_id, until);
        }
        let config = self.settings.planning(&catalog.scheduler);
        let seen = self.observer.seen(survey, config.split_load, now);
        let view = view::cluster_view(survey, catalog, &self.settings, seen);
        self.core.seen.lock().clone_from(seen);
        self.rounds += 1;
        let plan = plan(&view, &config, now, self.rounds);
        for (why, count) in &plan.refused {
            tracing::debug!(why, count, "some shards could use a change and get none");
        }
        plan.operators
    }

    async fn start(&self, operators: Vec<Operator>, now: Timestamp) {
        let mut by_time: BTreeMap<u64, Vec<Operator>> = BTreeMap::new();
        for operator in operators {
            let ms_max = ms_max(&operator.steps, &self.settings);
            by_time.entry(ms_max).or_default().push(operator);
        }
        for (ms_max, operators) in by_time {
            for operator in &operators {
                tracing::info!(%operator, "planned");
            }
            let deadline = Timestamp(now.0.saturating_add(ms_max));
            self.propose(CatalogCommand::StartOperators { operators, deadline }).await;
        }
    }

    /// Nodes whose maintenance is over serve again.
    async fn end_maintenance(&self, now: Timestamp) {
        for node in self.core.catalog().nodes.values() {
            let is_over = node.maintenance_until.is_some_and(|until| until <= now);
            if is_over && node.wish == Wish::Drain {
                tracing::info!(node_id = %node.node_id, "its maintenance is over");
                let command = CatalogCommand::SetNodeWish {
                    node_id: node.node_id,
                    wish: Wish::Serve,
                    maintenance_until: None,
                };
                self.propose(command).await;
            }
        }
    }

    /// What somebody has canceled is not planned again at once.
    fn leave_alone_what_was_canceled(&mut self, catalog: &CatalogState, now: Timestamp) {
        let under_way = numbers(catalog);
        for shard_id in canceled(&self.known, &under_way, &mut self.ends.ended.lock()) {
            let until = Timestamp(now.0.saturating_add(CANCELED_REST_MS));
            self.observer.rest(shard_id, until);
        }
        self.known = under_way;
    }

    /// Gives up operators whose time is up or whose newcomer is away.
    async fn give_up_hopeless(&mut self, catalog: &CatalogState, now: Timestamp) {
        let is_away = |node_id: NodeId| {
            let state = catalog.nodes.get(&node_id).map(|node| node.state);
            !matches!(state, Some(NodeState::Up | NodeState::Joining | NodeState::Returning))
        };
        for record in catalog.operators.values() {
            let why = if record.deadline <= now {
                "its time is up"
            } else if record.operator.added().any(is_away) && !has_joined(catalog, record) {
                "the new replica's node is away"
            } else {
                continue;
            };
            tracing::warn!(operator = %record.operator, "given up: {why}");
            operate::count(record, "given_up");
            self.finish(record, now).await;
        }
    }

    async fn finish(&mut self, record: &OperatorRecord, now: Timestamp) {
        let shard_id = record.operator.shard_id;
        self.observer.rest(shard_id, Timestamp(now.0.saturating_add(REST_MS)));
        self.ends.ended.lock().insert((shard_id, record.number));
        let command = CatalogCommand::FinishOperator { shard_id, number: record.number };
        self.propose(command).await;
    }

    /// Has a task for each operator under way, and none else.
    fn see_to_operators(&mut self, catalog: &CatalogState) {
        let under_way = numbers(catalog);
        self.tasks.retain(|key, task| {
            let stays = under_way.contains(key) && !task.is_finished();
            if !stays {
                task.abort();
            }
            stays
        });
        for record in catalog.operators.values() {
            let key = (record.operator.shard_id, record.number);
            let (core, ends) = (Arc::clone(&self.core), Arc::clone(&self.ends));
            self.tasks
                .entry(key)
                .or_insert_with(|| tokio::spawn(operate::see_through(core, record.clone(), ends)));
        }
    }

    async fn propose(&self, command: CatalogCommand) {
        match self.core.host.propose_catalog(command, PROPOSE_TIMEOUT).await {
            Ok(CatalogOutcome::Rejected(rejection)) => {
                tracing::warn!(%rejection, "the catalog refuses what was decided");
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the catalog did not take what was decided"),
        }
    }
}

/// How long an operator with these steps may take, in milliseconds.
pub(crate) fn ms_max(steps: &[Step], settings: &PlacementSettings) -> u64 {
    let is_short = steps.iter().all(|step| matches!(step, Step::TransferLeader(_)));
    if is_short { TRANSFER_MS_MAX } else { settings.operator_ms_max }
}

/// The operators under way, by shard and number.
fn numbers(catalog: &CatalogState) -> BTreeSet<(ShardId, u64)> {
    let operators = catalog.operators.values();
    operators.map(|record| (record.operator.shard_id, record.number)).collect()
}

/// Shards whose operator is gone since the last look, ended by nobody who saw to it. Of those that
/// were ended, the ones that are in the catalog still are kept.
fn canceled(
    known: &BTreeSet<(ShardId, u64)>,
    under_way: &BTreeSet<(ShardId, u64)>,
    ended: &mut BTreeSet<(ShardId, u64)>,
) -> BTreeSet<ShardId> {
    let gone = known.difference(under_way).filter(|key| !ended.contains(*key));
    let canceled = gone.map(|(shard_id, _)| *shard_id).collect();
    ended.retain(|key| under_way.contains(key));
    canceled
}

/// Whether the newcomers of an operator vote already: then it only cleans up.
fn has_joined(catalog: &CatalogState, record: &OperatorRecord) -> bool {
    let Some(shard) = catalog.shards.get(&record.operator.shard_id) else { return false };
    let votes = |node_id: NodeId| shard.voters().any(|voter| voter.node_id == node_id);
    record.operator.added().all(votes)
}

/// Whoever stops leading the catalog lets go of the operators; the next one takes them up.
impl Drop for Scheduler {
    fn drop(&mut self) {
        for task in self.tasks.values() {
            task.abort();
        }
        self.core.seen.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_that_nobody_ended_was_canceled() {
        let of = |keys: &[(u64, u64)]| -> BTreeSet<(ShardId, u64)> {
            keys.iter().map(|(shard, number)| (ShardId(*shard), *number)).collect()
        };
        let known = of(&[(1, 1), (2, 2), (3, 3)]);
        let mut ended = of(&[(2, 2), (3, 3)]);
        // 1 was canceled, 2 was ended, 3 is being ended; 1 has another one by now.
        let under_way = of(&[(1, 4), (3, 3)]);
        let rested = canceled(&known, &under_way, &mut ended);
        assert_eq!(rested, BTreeSet::from([ShardId(1)]));
        assert_eq!(ended, of(&[(3, 3)]));
        assert!(canceled(&under_way, &of(&[(1, 4)]), &mut ended).is_empty());
    }
}
