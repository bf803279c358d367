//! Merges a shard that is led here into its left neighbour, wherever that is led.
//!
//! ```text
//! target: Await ──> source: Freeze ──> all members hold it ──> target: Absorb ──> done
//!            └──────────────┴── anything goes wrong ──> target: Forgo ──> source: Thaw
//! ```
//!
//! The target's log decides, so an attempt may be ended at any time by whoever leads the source. An
//! attempt that nobody ends any more is found by [`Core::settle_merges_forever`].
//!
//! Not here: which shards to merge (`placement`), what a step does (`model`), what a node does then
//! (`consensus`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anchorhold_consensus::{MergeError, Replica};
use anchorhold_model::catalog::Step;
use anchorhold_model::{MergeStep, Merged, Merging, RequestId, ShardDescriptor, ShardId};
use metrics::counter;

use crate::clock::Deadline;
use crate::core::Core;
use crate::request::{ShardError, ShardReply, ShardRequest};
use crate::telemetry::name;

/// How long one attempt may take. Writes to the source wait for the part between freeze and end.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the source's members may take to hold what is frozen.
const HOLD_TIMEOUT: Duration = Duration::from_secs(1);
/// How often that is looked at.
const HOLD_POLL: Duration = Duration::from_millis(1);
/// How long the target may take to say what became of an attempt.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two looks for attempts that nobody ends.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a target waits for a source that it hears nothing of.
const AWAIT_MAX: Duration = Duration::from_secs(15);

/// Why a shard was not merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotMerged {
    /// It may be possible later.
    Yet(String),
    /// These two never merge as they are.
    Ever(String),
}

impl Core {
    /// Merges a shard that this node leads into another one, or ends an attempt at that which someone
    /// else began.
    ///
    /// # Errors
    /// [`NotMerged`]; the shard goes on then, unless its target could not be asked.
    pub async fn merge_shard(&self, source: ShardId, target: ShardId) -> Result<(), NotMerged> {
        let replica = self.host.replica(source);
        let replica = replica.ok_or_else(|| NotMerged::Yet("it is not led here".to_owned()))?;
        match replica.state().merging {
            None => {}
            Some(Merging::Frozen { merge, target: known }) if known == target => {
                // Whoever led before began it. What came of it is found out, never gone on with: steps of
                // that attempt may still be under way.
                return match self.settle(&replica, target, merge).await {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(NotMerged::Yet("an earlier attempt was undone".to_owned())),
                    Err(error) => Err(unanswered(&error)),
                };
            }
            Some(_) => return Err(NotMerged::Yet("another merge of it is under way".to_owned())),
        }
        let attempt = RequestId(self.random());
        // Until the target waits nothing has begun, and nothing is to be undone.
        let neighbour = self.begin_merge(&replica, target, attempt).await?;
        let result = match self.try_merge(&replica, &neighbour, attempt).await {
            Ok(()) => Ok(()),
            Err(why) => match self.settle(&replica, target, attempt).await {
                Ok(true) => Ok(()),
                Ok(false) => Err(why),
                Err(error) => Err(unanswered(&error)),
            },
        };
        let outcome = if result.is_ok() { "merged" } else { "forgone" };
        counter!(name::MERGES_TOTAL, "result" => outcome).increment(1);
        result
    }

    /// Lets the target wait, if both are ready. A target that refuses does not wait; one that does not
    /// answer may, and gives that up by itself.
    async fn begin_merge(
        &self,
        replica: &Arc<Replica>,
        target: ShardId,
        merge: RequestId,
    ) -> Result<Arc<ShardDescriptor>, NotMerged> {
        let source = replica.shard_id();
        let state = replica.state();
        let is_missing = || NotMerged::Ever(format!("there is no shard {target}"));
        let neighbour = self.routes.table().of_id(target).cloned().ok_or_else(is_missing)?;
        check_neighbours(&neighbour, &state.descriptor)?;
        self.host.may_merge(source).map_err(|why| NotMerged::Yet(why.to_owned()))?;
        let step = MergeStep::Await { merge, source };
        self.ask_target(&neighbour, step, &self.deadline(ATTEMPT_TIMEOUT)).await?;
        Ok(neighbour)
    }

    async fn try_merge(
        &self,
        replica: &Arc<Replica>,
        neighbour: &Arc<ShardDescriptor>,
        merge: RequestId,
    ) -> Result<(), NotMerged> {
        let deadline = self.deadline(ATTEMPT_TIMEOUT);
        let (source, target) = (replica.shard_id(), neighbour.shard_id);
        let step = MergeStep::Freeze { merge, target };
        let epoch = replica.state().descriptor.epoch;
        let frozen = self.host.merge_step(source, epoch, step, deadline.remaining()).await;
        frozen.map_err(|error| NotMerged::Yet(why(&error)))?;
        let held = async {
            loop {
                if let Some(frozen) = self.host.frozen(source, merge) {
                    return frozen;
                }
                tokio::time::sleep(HOLD_POLL).await;
            }
        };
        let held = tokio::time::timeout(HOLD_TIMEOUT.min(deadline.remaining()), held).await;
        let held = held.map_err(|_| NotMerged::Yet("a member of it does not follow".to_owned()))?;
        let conf_version = neighbour.epoch.conf_version;
        let step = MergeStep::Absorb { merge, source: Box::new(held), conf_version };
        match self.ask_target(neighbour, step, &deadline).await? {
            Merged::Absorbed { descriptor } => {
                tracing::info!(%source, into = %target, "the shard is merged");
                self.routes.learn([*descriptor]);
                Ok(())
            }
            Merged::Ready | Merged::Forgone => {
                Err(NotMerged::Yet("its target has forgone it".to_owned()))
            }
        }
    }

    async fn ask_target(
        &self,
        target: &Arc<ShardDescriptor>,
        step: MergeStep,
        deadline: &Deadline,
    ) -> Result<Merged, NotMerged> {
        match self.ask(target, ShardRequest::Merge(step), deadline).await {
            Ok(ShardReply::Merged(merged)) => Ok(merged),
            Ok(_) => Err(NotMerged::Yet("an answer to another question".to_owned())),
            Err(error) => Err(NotMerged::Yet(format!("its target: {error}"))),
        }
    }

    /// Ends an attempt: true if the source is part of the target, false if it goes on.
    async fn settle(
        &self,
        replica: &Arc<Replica>,
        target: ShardId,
        merge: RequestId,
    ) -> Result<bool, ShardError> {
        let source = replica.shard_id();
        let deadline = self.deadline(SETTLE_TIMEOUT);
        while !deadline.has_passed() {
            let catalog = self.catalog();
            if catalog.removed_shards.contains(&source) {
                return Ok(true);
            }
            let known = self.routes.table().of_id(target).cloned();
            let forgone = match known {
                // The catalog would know of a source that was part of it before its own end.
                None if catalog.removed_shards.contains(&target) => Ok(Merged::Forgone),
                None => Err(ShardError::NoReplica),
                Some(target) => {
                    let forgo = ShardRequest::Merge(MergeStep::Forgo { merge });
                    match self.ask(&target, forgo, &deadline).await {
                        Ok(ShardReply::Merged(merged)) => Ok(merged),
                        Ok(_) => Err(ShardError::NoReplica),
                        Err(error) => Err(error),
                    }
                }
            };
            match forgone {
                Ok(Merged::Absorbed { descriptor }) => {
                    self.routes.learn([*descriptor]);
                    return Ok(true);
                }
                Ok(Merged::Forgone | Merged::Ready) => {
                    let epoch = replica.state().descriptor.epoch;
                    let thaw = MergeStep::Thaw { merge };
                    let thawed =
                        self.host.merge_step(source, epoch, thaw, deadline.remaining()).await;
                    return match thawed {
                        Ok(_) => Ok(false),
                        // Whoever leads next finds it frozen, and does this again.
                        Err(MergeError::Propose(error)) => Err(error.into()),
                        Err(error) => Err(ShardError::Failed { reason: error.to_string() }),
                    };
                }
                Err(error) => tracing::debug!(%source, %target, %error, "a merge is not settled"),
            }
            tokio::time::sleep(HOLD_POLL.max(Duration::from_millis(20))).await;
        }
        Err(ShardError::TimeUp)
    }

    /// Ends attempts that nobody ends any more: their operator is gone, or never was.
    pub async fn settle_merges_forever(self: Arc<Self>) {
        let mut awaiting: BTreeMap<(ShardId, RequestId), Duration> = BTreeMap::new();
        loop {
            tokio::time::sleep(INTERVAL).await;
            let replicas = self.host.replicas();
            // Nearly none takes part in a merge: who leads is asked of those alone.
            let parts = replicas.into_iter().filter_map(|replica| {
                let part = replica.state().merging?;
                replica.is_leader().then_some((replica, part))
            });
            let parts: Vec<_> = parts.collect();
            let now = self.clock.monotonic();
            awaiting.retain(|known, _| {
                parts.iter().any(|(replica, part)| match part {
                    Merging::Awaits { merge, .. } => *known == (replica.shard_id(), *merge),
                    Merging::Frozen { .. } => false,
                })
            });
            for (replica, part) in parts {
                let shard = replica.shard_id();
                match part {
                    Merging::Frozen { merge, target } => {
                        if !self.is_being_merged(shard, target) {
                            let settled = self.settle(&replica, target, merge).await;
                            tracing::info!(%shard, into = %target, ?settled, "a merge left behind");
                        }
                    }
                    Merging::Awaits { merge, source } => {
                        let since = *awaiting.entry((shard, merge)).or_insert(now);
                        let is_old = AWAIT_MAX <= now.saturating_sub(since);
                        if is_old || !self.is_being_merged(source, shard) {
                            self.forgo(&replica, merge).await;
                        }
                    }
                }
            }
        }
    }

    /// Whether an operator under way merges one shard into another.
    fn is_being_merged(&self, source: ShardId, target: ShardId) -> bool {
        let catalog = self.catalog();
        let operator = catalog.operators.get(&source).map(|record| &record.operator);
        operator.is_some_and(|operator| operator.steps.last() == Some(&Step::MergeInto(target)))
    }

    async fn forgo(&self, replica: &Arc<Replica>, merge: RequestId) {
        let (shard, epoch) = (replica.shard_id(), replica.state().descriptor.epoch);
        let step = MergeStep::Forgo { merge };
        if let Err(error) = self.host.merge_step(shard, epoch, step, ATTEMPT_TIMEOUT).await {
            tracing::debug!(%shard, %error, "a merge that nobody ends is waited for still");
        }
    }
}

/// Whether two shards can be one as they lie.
fn check_neighbours(target: &ShardDescriptor, source: &ShardDescriptor) -> Result<(), NotMerged> {
    let ever = |why: &str| Err(NotMerged::Ever(why.to_owned()));
    if target.range.end != Some(source.range.start) {
        return ever("the shards are no neighbours");
    }
    if target.range.start.account() != source.range.start.account() {
        return ever("the shards are of different accounts");
    }
    if target.class != source.class {
        return ever("the shards are of different placement classes");
    }
    if target.epoch.incarnation != source.epoch.incarnation {
        return ever("one of the shards was re-founded");
    }
    if !target.is_aligned_with(source) {
        return Err(NotMerged::Yet("the shards do not lie on the same nodes".to_owned()));
    }
    Ok(())
}

fn unanswered(error: &ShardError) -> NotMerged {
    NotMerged::Yet(format!("its target does not answer: {error}"))
}

fn why(error: &MergeError) -> String {
    match error {
        MergeError::Propose(error) => error.to_string(),
        MergeError::Rejected { .. } => error.to_string(),
    }
}
