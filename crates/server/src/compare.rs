//! Compares what the replicas of a shard hold at one applied index.
//!
//! Each replica reads its rows beside its apply, so a comparison costs reading and nothing else, and
//! what it says does not depend on the load. Replicas that differ are a broken promise: it shows in
//! the status, in a counter and in the log of the node that found it.
//!
//! Not here: when to compare (`scrub`, and whoever asks), how a digest is made (`consensus`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anchorhold_model::{NodeId, ShardId};
use futures::future::join_all;
use metrics::counter;

use crate::core::Core;
use crate::request::{self, HeldDigest, NodeReply, NodeRequest};
use crate::telemetry::name;

/// How long a replica may take until it has applied the index.
const PATIENCE: Duration = Duration::from_secs(3);
/// How far ahead of what is applied the index lies, try by try: a quiet shard stays where it is, a
/// busy one passes any index that was chosen a moment ago.
const AHEAD: [u64; 5] = [0, 4, 64, 0, 512];

/// What the replicas of one shard hold at one index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// The index; 0 if none could be found that any replica was at.
    pub index: u64,
    /// What each node's replica holds, or why that is not known.
    pub replicas: BTreeMap<NodeId, Result<HeldDigest, String>>,
}

impl Comparison {
    /// The digests that there are.
    fn digests(&self) -> BTreeSet<&str> {
        self.replicas.values().flatten().map(|held| held.digest.as_str()).collect()
    }

    /// Whether two replicas differ.
    pub fn is_different(&self) -> bool {
        1 < self.digests().len()
    }

    /// Whether all replicas were asked, answered, and are equal.
    pub fn is_equal(&self) -> bool {
        self.digests().len() == 1 && self.replicas.values().all(Result::is_ok)
    }

    /// What is wrong, for people; `None` if no two replicas differ.
    pub fn problem(&self, shard: ShardId) -> Option<String> {
        if !self.is_different() {
            return None;
        }
        let held = self.replicas.iter().filter_map(|(node, held)| {
            let held = held.as_ref().ok()?;
            Some(format!("node {node} holds {} ({} anchors)", held.digest, held.anchors))
        });
        let held: Vec<_> = held.collect();
        Some(format!(
            "the replicas of shard {} differ at index {}: {}",
            shard.0,
            self.index,
            held.join(", ")
        ))
    }
}

impl Core {
    /// Digests this node's replica of a shard, as of an index or of now.
    ///
    /// # Errors
    /// Why that is not known, for people.
    pub async fn digest(
        &self,
        shard: ShardId,
        index: Option<u64>,
        patience: Duration,
        bytes_per_second: u64,
    ) -> Result<HeldDigest, String> {
        let replica = match shard {
            ShardId::CATALOG => Some(self.host.catalog_replica()),
            _ => self.host.replica(shard),
        };
        let replica = replica.ok_or("this node has no replica of the shard")?;
        let found = replica.digest(index, patience, bytes_per_second).await;
        let found = found.map_err(|error| error.to_string())?;
        Ok(HeldDigest {
            applied_index: found.applied_index,
            revision: found.revision,
            anchors: found.anchors,
            digest: found.digest.to_string(),
        })
    }

    /// Compares all replicas of a shard at one index. `budget` bounds each try.
    ///
    /// # Errors
    /// If nobody knows the shard.
    pub async fn compare_replicas(
        &self,
        shard: ShardId,
        bytes_per_second: u64,
        budget: Duration,
    ) -> Result<Comparison, String> {
        let mut best = Comparison { index: 0, replicas: BTreeMap::new() };
        for ahead in AHEAD {
            let survey = self.survey().await;
            let found = if shard == ShardId::CATALOG {
                Some(survey.catalog_shard())
            } else {
                survey.shards().into_iter().find(|one| one.descriptor.shard_id == shard)
            };
            let found = found.ok_or_else(|| format!("there is no shard {}", shard.0))?;
            let nodes: BTreeSet<NodeId> =
                found.descriptor.replicas.iter().map(|replica| replica.node_id).collect();
            let applied = found.replicas.values().filter_map(|replica| replica.applied_index);
            let index = applied.max().unwrap_or(0) + ahead;
            let asked = nodes.into_iter().map(|node| async move {
                (node, self.ask_digest(node, shard, index, bytes_per_second, budget).await)
            });
            let tried = Comparison { index, replicas: join_all(asked).await.into_iter().collect() };
            let known =
                |one: &Comparison| one.replicas.values().filter(|held| held.is_ok()).count();
            let is_complete = known(&tried) == tried.replicas.len();
            if known(&best) <= known(&tried) {
                best = tried;
            }
            if is_complete || best.is_different() {
                break;
            }
        }
        let result = match (best.is_different(), best.is_equal()) {
            (true, _) => "different",
            (false, true) => "equal",
            (false, false) => "incomplete",
        };
        counter!(name::REPLICA_COMPARISONS_TOTAL, "result" => result).increment(1);
        Ok(best)
    }

    async fn ask_digest(
        &self,
        node: NodeId,
        shard: ShardId,
        index: u64,
        bytes_per_second: u64,
        budget: Duration,
    ) -> Result<HeldDigest, String> {
        if node == self.place.node {
            return self.digest(shard, Some(index), PATIENCE, bytes_per_second).await;
        }
        let patience_ms = u64::try_from(PATIENCE.as_millis()).unwrap_or(u64::MAX);
        let question = NodeRequest::Digest { shard, index, patience_ms, bytes_per_second };
        let question = request::encode(&question).map_err(|error| error.to_string())?;
        let answer = self.host.call(node, question, budget).await;
        let answer = answer.map_err(|error| format!("it does not answer: {error}"))?;
        match request::decode::<NodeReply>(&answer) {
            Ok(NodeReply::Digested(held)) => held,
            Ok(
                NodeReply::Status(_)
                | NodeReply::Shard(_)
                | NodeReply::BallastReleased(_)
                | NodeReply::Operated(_),
            ) => Err("it answered something else".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(digest: &str) -> Result<HeldDigest, String> {
        Ok(HeldDigest { applied_index: 7, revision: 3, anchors: 2, digest: digest.to_owned() })
    }

    fn comparison(replicas: [Result<HeldDigest, String>; 3]) -> Comparison {
        let nodes = (1..).map(NodeId);
        Comparison { index: 7, replicas: nodes.zip(replicas).collect() }
    }

    #[test]
    fn replicas_are_equal_only_if_all_are_known_and_different_if_any_two_are() {
        let equal = comparison([held("a"), held("a"), held("a")]);
        assert!(equal.is_equal() && !equal.is_different());
        assert_eq!(equal.problem(ShardId(4)), None);
        let partial = comparison([held("a"), Err("away".to_owned()), held("a")]);
        assert!(!partial.is_equal() && !partial.is_different());
        let different = comparison([held("a"), Err("away".to_owned()), held("b")]);
        assert!(!different.is_equal() && different.is_different());
        let problem = different.problem(ShardId(4)).unwrap();
        assert!(problem.contains("shard 4 differ at index 7"), "{problem}");
        assert!(!problem.contains("node 2"), "{problem}");
    }
}
