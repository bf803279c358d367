//! Splits a shard that is led here.
//!
//! Preparation first: replicas count what lies behind the key while writes go on, so that applying
//! the split is one small batch. Whoever repeats a split with the id that was reserved for it gets
//! no second child.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use anchorhold_model::apply::split::split_key;
use anchorhold_model::{
    AnchorId, Command, Epoch, Key, KeyRange, OperationId, Outcome, Rejection, RequestId,
    ShardDescriptor, ShardId, Write,
};
use openraft::async_runtime::WatchReceiver;

use crate::error::ProposeError;
use crate::host::Host;
use crate::replica::Replica;

/// How often the count is looked at.
const COUNT_POLL: Duration = Duration::from_millis(5);
/// Longest wait for the count: the split counts the rest by itself.
const COUNT_TIMEOUT: Duration = Duration::from_secs(20);
/// Time for the other replicas to end their counts too, beyond what this one's took.
const COUNT_MARGIN: Duration = Duration::from_millis(50);

/// What a split made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitDone {
    /// The shard with what lies before the key.
    pub parent: ShardDescriptor,
    /// The new shard.
    pub child: ShardDescriptor,
}

/// Why a shard was not split.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SplitError {
    /// It could not be proposed, or its outcome is not known; repeat it with the same child.
    #[error("the split was not carried out")]
    Propose(#[from] ProposeError),
    /// It holds fewer than two anchors, and no key was named.
    #[error("there is no key that would leave anchors on both sides")]
    NoKey,
    /// Its members are changing, or it comes from a split that is a moment old.
    #[error("the shard is not ready to be split: {reason}")]
    NotReady {
        /// Why.
        reason: &'static str,
    },
    /// The key lies outside of the shard, or the shard is retired.
    #[error("the shard cannot be split there: {rejection:?}")]
    Rejected {
        /// The state machine's words.
        rejection: Box<Rejection>,
    },
    /// The state cannot be read.
    #[error("the shard's keys could not be read: {reason}")]
    Unreadable {
        /// The disk's words.
        reason: String,
    },
}

impl Host {
    /// Splits a shard that this node leads: the keys from `at` on, or from the median on, go to
    /// `child`, an id reserved in the catalog for a split of this shard at `epoch`.
    ///
    /// # Errors
    /// [`SplitError`]; after `Propose` the split may have been carried out.
    pub async fn split(
        &self,
        shard: ShardId,
        epoch: Epoch,
        at: Option<Key>,
        child: ShardId,
        timeout: Duration,
    ) -> Result<SplitDone, SplitError> {
        let no_replica = ProposeError::NotLeader { shard, leader: None };
        let replica = self.replica(shard).ok_or(no_replica)?;
        if !replica.is_leader() {
            return Err(ProposeError::NotLeader { shard, leader: replica.leader() }.into());
        }
        let state = replica.state();
        if !epoch.routes_to(state.descriptor.epoch) {
            let descriptor = Box::new(state.descriptor.clone());
            return Err(ProposeError::StaleEpoch { shard, descriptor }.into());
        }
        let joint = {
            let metrics = replica.raft().metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.membership().get_joint_config().len()
        };
        if 1 < joint {
            return Err(SplitError::NotReady { reason: "its members are changing" });
        }
        if self.births().of(shard).is_some() || self.births().is_parent(shard) {
            return Err(SplitError::NotReady { reason: "its last split has not settled" });
        }
        let at = match at {
            Some(at) => at,
            None => self.middle_of(&replica).await?.ok_or(SplitError::NoKey)?,
        };
        propose(&replica, epoch, Write::PrepareSplit { at }, timeout).await?;
        self.wait_for_count(&replica).await;
        match propose(&replica, epoch, Write::Split { at, child }, timeout).await? {
            Outcome::Split { parent, child } => {
                tracing::info!(shard = shard.0, child = child.shard_id.0, "the shard is split");
                Ok(SplitDone { parent: *parent, child: *child })
            }
            Outcome::Written { .. }
            | Outcome::Deleted { .. }
            | Outcome::Ticked
            | Outcome::Retired { .. }
            | Outcome::Swept { .. }
            | Outcome::SplitPrepared
            | Outcome::Merged(_)
            | Outcome::Rejected(_) => Err(ProposeError::OutcomeUnknown { shard }.into()),
        }
    }

    /// The key in the middle of a shard's anchors.
    async fn middle_of(&self, replica: &Arc<Replica>) -> Result<Option<Key>, SplitError> {
        let (done, found) = tokio::sync::oneshot::channel();
        let scanned = Arc::clone(replica);
        let work = move || {
            let mut ids: Vec<AnchorId> = Vec::new();
            let result = scanned.scan_ids(KeyRange::FULL, &mut |id| {
                ids.push(id);
                ControlFlow::Continue(())
            });
            drop(done.send(result.map(|()| split_key(&ids))));
        };
        self.parts().seams.offload.spawn(Box::new(work)).await;
        let unreadable = |reason: String| SplitError::Unreadable { reason };
        let found = found.await.map_err(|error| unreadable(error.to_string()))?;
        found.map_err(|error| unreadable(error.to_string()))
    }

    /// Waits until the replica here has counted, and the others had as much time.
    async fn wait_for_count(&self, replica: &Replica) {
        let clock = &self.parts().seams.clock;
        let begun = clock.monotonic();
        let counted = async {
            while replica.is_counting() {
                tokio::time::sleep(COUNT_POLL).await;
            }
        };
        drop(tokio::time::timeout(COUNT_TIMEOUT, counted).await);
        let taken = clock.monotonic().saturating_sub(begun);
        tokio::time::sleep(taken + COUNT_MARGIN).await;
    }
}

async fn propose(
    replica: &Replica,
    epoch: Epoch,
    write: Write,
    timeout: Duration,
) -> Result<Outcome, SplitError> {
    let shard = replica.shard_id();
    // The epoch makes it one: no retry is told apart by this.
    let operation = OperationId { request_id: RequestId(0), item: 0 };
    let command = Command { operation, epoch, write };
    match replica.propose(vec![command], timeout).await?.pop() {
        Some(Outcome::Rejected(Rejection::StaleEpoch { descriptor })) => {
            Err(ProposeError::StaleEpoch { shard, descriptor }.into())
        }
        Some(Outcome::Rejected(rejection)) => {
            Err(SplitError::Rejected { rejection: Box::new(rejection) })
        }
        Some(outcome) => Ok(outcome),
        None => Err(ProposeError::OutcomeUnknown { shard }.into()),
    }
}
