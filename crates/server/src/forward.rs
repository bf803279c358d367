//! Gets one request of one shard done: here if this node can, else at a node that can.
//!
//! The node that a client talks to tries; nodes that are asked never send a request on (but for a
//! tick, which its leader answers by itself), so no request goes in circles. Refusals correct what
//! is known of the shard: leaders named are followed, newer descriptors learned. Everything ends
//! with the deadline. Repeating a write is safe because its operation id is the same.

use std::sync::Arc;
use std::time::Duration;

use anchorhold_consensus::CallError;
use anchorhold_model::{NodeId, ShardDescriptor};
use metrics::counter;

use crate::clock::Deadline;
use crate::core::Core;
use crate::request::{
    self, NodeReply, NodeRequest, ShardCall, ShardError, ShardReply, ShardRequest,
};
use crate::serve::millis;
use crate::telemetry::name;

/// How long one try may take before another node is asked.
const TRY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one try of a split may take.
const SPLIT_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a try looks whether the shard is led elsewhere by now.
const LEADER_CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// First pause between rounds, doubled up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// What is known after some tries.
struct Tries {
    /// A write was sent and its outcome never heard.
    unknown: bool,
    /// Nodes asked in this round without success.
    failed: Vec<NodeId>,
    /// The error that tells most.
    last: Option<ShardError>,
    pause: Duration,
}

impl Core {
    /// Gets a request done, retrying until the deadline.
    ///
    /// # Errors
    /// [`ShardError`]. `StaleEpoch` is returned at once, after it was learned: the caller routes
    /// anew. `OutcomeUnknown` if a write may have taken effect.
    pub async fn ask(
        &self,
        shard: &Arc<ShardDescriptor>,
        request: ShardRequest,
        deadline: &Deadline,
    ) -> Result<ShardReply, ShardError> {
        let mut tries = Tries { unknown: false, failed: Vec::new(), last: None, pause: PAUSE_MIN };
        while !deadline.has_passed() {
            let Some(node) = self.choose(shard, &request, &tries.failed) else {
                tries.start_round(deadline).await;
                continue;
            };
            let error = match self.try_node(node, shard, request.clone(), deadline).await {
                Ok(reply) => {
                    if request.needs_leader() {
                        self.routes.set_leader(shard.shard_id, Some(node));
                    }
                    return Ok(reply);
                }
                Err(error) => error,
            };
            match &error {
                ShardError::StaleEpoch { descriptors, .. } => {
                    if !self.routes.learn(descriptors.iter().cloned()) {
                        // The node that refuses knows no more than this one: it is about to.
                        tokio::time::sleep(PAUSE_MIN.min(deadline.remaining())).await;
                    }
                    let descriptors = descriptors.clone();
                    return Err(ShardError::StaleEpoch { descriptors, maybe_done: tries.unknown });
                }
                ShardError::Busy
                | ShardError::DiskFull
                | ShardError::NotSplit { .. }
                | ShardError::NotMerged { .. }
                | ShardError::Misunderstood { .. } => {
                    return Err(if tries.unknown { ShardError::OutcomeUnknown } else { error });
                }
                ShardError::NotLeader { leader } => {
                    let news = leader.filter(|leader| !tries.failed.contains(leader));
                    self.routes.set_leader(shard.shard_id, news);
                }
                ShardError::Merging => {
                    // It takes a few round trips: the same node knows first what comes of it.
                    tokio::time::sleep(PAUSE_MIN.min(deadline.remaining())).await;
                    tries.note(error);
                    continue;
                }
                ShardError::OutcomeUnknown => tries.unknown = true,
                ShardError::NoReplica
                | ShardError::NoLeader
                | ShardError::Behind
                | ShardError::Failed { .. }
                | ShardError::TimeUp
                | ShardError::Unreachable => {}
            }
            tries.failed.push(node);
            tries.note(error);
        }
        Err(tries.into_error(request.is_write()))
    }

    /// The next node to ask; `None` if all were asked in this round.
    fn choose(
        &self,
        shard: &ShardDescriptor,
        request: &ShardRequest,
        failed: &[NodeId],
    ) -> Option<NodeId> {
        let here = self.host.replica(shard.shard_id);
        let open = |node: &NodeId| !failed.contains(node);
        let known = || self.routes.leader(shard.shard_id).filter(open);
        if request.needs_leader() {
            let heard = here.as_ref().and_then(|replica| replica.leader());
            let heard = heard.map(|leader| leader.node_id).filter(open);
            let voters = || shard.voters().map(|replica| replica.node_id).find(open);
            heard.or_else(known).or_else(voters)
        } else {
            // Nearly every read ends at the first of these: the others are looked up only then.
            let here = here.map(|_| self.place.node).filter(open);
            here.or_else(known).or_else(|| self.by_nearness(shard).into_iter().find(open))
        }
    }

    /// A shard's nodes: those of this zone first, then of this region, then the others.
    fn by_nearness(&self, shard: &ShardDescriptor) -> Vec<NodeId> {
        let catalog = self.catalog();
        let distance = |node: &NodeId| match catalog.nodes.get(node) {
            Some(record) if record.region != self.place.region => 2,
            Some(record) if record.zone != self.place.zone => 1,
            Some(_) => 0,
            None => 3,
        };
        let mut nodes: Vec<_> = shard.replicas.iter().map(|replica| replica.node_id).collect();
        nodes.sort_by_key(|node| (distance(node), *node));
        nodes
    }

    async fn try_node(
        &self,
        node: NodeId,
        shard: &ShardDescriptor,
        request: ShardRequest,
        deadline: &Deadline,
    ) -> Result<ShardReply, ShardError> {
        // A split counts rows first.
        let is_long = matches!(request, ShardRequest::Split { .. });
        let try_timeout = if is_long { SPLIT_TIMEOUT } else { TRY_TIMEOUT };
        let timeout = deadline.remaining().min(try_timeout);
        let (is_write, needs_leader) = (request.is_write(), request.needs_leader());
        let kind = request.kind();
        let (shard_id, epoch) = (shard.shard_id, shard.epoch);
        let (budget_ms, range) = (millis(timeout), shard.range);
        let call = ShardCall { shard: shard_id, epoch, range, budget_ms, request };
        if node == self.place.node {
            return self.serve(call, &self.deadline(timeout)).await;
        }
        counter!(name::FORWARDED_TOTAL, "kind" => kind).increment(1);
        let content = request::encode(&NodeRequest::Shard(Box::new(call)))?;
        let answer = self.host.call(node, content, timeout);
        let answer = if needs_leader {
            tokio::select! {
                answer = answer => answer,
                () = self.led_elsewhere(shard, node) => {
                    return Err(if is_write {
                        ShardError::OutcomeUnknown
                    } else {
                        ShardError::Unreachable
                    });
                }
            }
        } else {
            answer.await
        };
        match answer {
            Ok(bytes) => match request::decode::<NodeReply>(&bytes) {
                Ok(NodeReply::Shard(reply)) => reply,
                Ok(
                    NodeReply::Status(_)
                    | NodeReply::BallastReleased(_)
                    | NodeReply::Operated(_)
                    | NodeReply::Digested(_),
                ) => Err(misunderstood("something else for a shard's answer")),
                // The other node may have acted: only its words were not understood.
                Err(_) if is_write => Err(ShardError::OutcomeUnknown),
                Err(error) => Err(misunderstood(&error.to_string())),
            },
            Err(CallError::Unreachable { sent: true, .. }) if is_write => {
                Err(ShardError::OutcomeUnknown)
            }
            Err(CallError::Unreachable { .. } | CallError::UnknownNode { .. }) => {
                Err(ShardError::Unreachable)
            }
        }
    }

    /// Ends when the replica here has heard of another leader than `node`: an answer from there
    /// will not come. Never ends if there is no replica here.
    async fn led_elsewhere(&self, shard: &ShardDescriptor, node: NodeId) {
        let led_by_node_at_first = self.heard_leader(shard) == Some(node);
        loop {
            tokio::time::sleep(LEADER_CHECK_INTERVAL).await;
            let leader = self.heard_leader(shard);
            if led_by_node_at_first && leader.is_some_and(|leader| leader != node) {
                return;
            }
        }
    }

    fn heard_leader(&self, shard: &ShardDescriptor) -> Option<NodeId> {
        let replica = self.host.replica(shard.shard_id)?;
        replica.leader().map(|leader| leader.node_id)
    }
}

fn misunderstood(reason: &str) -> ShardError {
    ShardError::Misunderstood { reason: reason.to_owned() }
}

impl Tries {
    /// Begins another round after a pause.
    async fn start_round(&mut self, deadline: &Deadline) {
        tokio::time::sleep(self.pause.min(deadline.remaining())).await;
        self.pause = (2 * self.pause).min(PAUSE_MAX);
        self.failed.clear();
    }

    /// Keeps the error that tells most: that of a node that answered.
    fn note(&mut self, error: ShardError) {
        let tells_little = matches!(error, ShardError::Unreachable | ShardError::NoReplica);
        if self.last.is_none() || !tells_little {
            self.last = Some(error);
        }
    }

    fn into_error(self, is_write: bool) -> ShardError {
        if self.unknown && is_write {
            return ShardError::OutcomeUnknown;
        }
        self.last.unwrap_or(ShardError::TimeUp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tries(unknown: bool) -> Tries {
        Tries { unknown, failed: Vec::new(), last: None, pause: PAUSE_MIN }
    }

    #[test]
    fn a_write_that_may_have_happened_never_ends_in_an_error_that_says_it_did_not() {
        let mut tries = tries(true);
        tries.note(ShardError::NoLeader);
        assert_eq!(tries.into_error(true), ShardError::OutcomeUnknown);
    }

    #[test]
    fn the_error_of_a_node_that_answered_tells_more_than_silence() {
        let mut tries = tries(false);
        tries.note(ShardError::NoLeader);
        tries.note(ShardError::Unreachable);
        assert_eq!(tries.into_error(false), ShardError::NoLeader);
        assert_eq!(self::tries(false).into_error(true), ShardError::TimeUp);
    }
}
