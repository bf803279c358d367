//! What the node that leads the catalog observes of the others, and the states that follow.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anchorhold_consensus::Clock;
use anchorhold_model::catalog::{NodeRecord, NodeState};
use anchorhold_model::{Epoch, NodeId, Replica, ReplicaId, ShardId, Timestamp};
use anchorhold_placement::lifecycle::{
    LifecycleConfig, NodeLife, Observation, is_zone_event, step,
};
use serde::{Deserialize, Serialize};

use crate::core::Core;
use crate::report::ReplicaReport;
use crate::survey::{ShardSurvey, Survey};

/// Entries that a replica may lack and still count as caught up.
const LAG_ENTRIES_MAX: u64 = 128;

impl ShardPast {
    /// Whether a replica's node has answered for so long without the replica.
    pub(super) fn is_absent(&self, replica_id: ReplicaId, absent_ms: u64) -> bool {
        let absent = self.absent.filter(|absent| absent.replica_id == replica_id);
        absent.is_some_and(|absent| absent_ms <= absent.for_ms)
    }

    /// Notes which replica its node does not have, the first of several.
    fn note_absent(&mut self, survey: &Survey, shard: &ShardSurvey<'_>, now: Timestamp) {
        let descriptor = &shard.descriptor;
        let is_absent = |replica: &&Replica| {
            let Some(report) = survey.reports.get(&replica.node_id) else { return false };
            // Where the other shard's replica has yet to split, this one waits.
            let waits = |other: &ReplicaReport| {
                other.shard != descriptor.shard_id
                    && !other.lost
                    && other.descriptor.range.overlaps(&descriptor.range)
            };
            let found = report.replicas.get(&descriptor.shard_id);
            let is_here = found.is_some_and(|found| found.replica == replica.replica_id);
            !is_here && !report.replicas.values().any(|found| waits(found))
        };
        let found = descriptor.replicas.iter().find(is_absent);
        self.absent = found.map(|replica| {
            let known = self.absent.filter(|absent| absent.replica_id == replica.replica_id);
            let since = known.map_or(now, |absent| absent.since);
            let for_ms = now.0.saturating_sub(since.0);
            Absent { replica_id: replica.replica_id, since, for_ms }
        });
    }

    /// A node leads it and is asked so often per second.
    fn lead(&mut self, node_id: NodeId, load: u64, now: Timestamp) {
        let load_milli = load.saturating_mul(1_000);
        match self.leader.replace(node_id) {
            None => self.load_milli = load_milli,
            Some(before) => {
                self.load_milli = (self.load_milli.saturating_mul(9) + load_milli) / 10;
                if before != node_id {
                    self.lead_time = now;
                }
            }
        }
    }
}

/// Remembers from look to look.
pub(super) struct Observer {
    config: LifecycleConfig,
    clock: Arc<dyn Clock>,
    /// Wall-clock and monotonic time when it began.
    began: (Timestamp, Duration),
    heard: BTreeMap<NodeId, Timestamp>,
    steady_since: BTreeMap<NodeId, Timestamp>,
    epochs: BTreeMap<ShardId, Epoch>,
    seen: BTreeMap<ShardId, ShardPast>,
    /// Shards whose operator was given up, and until when they are left alone.
    resting: BTreeMap<ShardId, Timestamp>,
}

/// What was seen of a shard over time. Times are 0 for what was so before anybody looked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardPast {
    /// When its members or bounds changed last.
    pub change_time: Timestamp,
    /// Since when it has had more load than a shard should, without a pause.
    pub busy_since: Timestamp,
    /// Who led it last.
    pub leader: Option<NodeId>,
    /// When that one began to.
    pub lead_time: Timestamp,
    /// How often it is asked, in thousandths of a request per second: over about ten looks, so that
    /// neither chance nor a leader that begins to count moves anything.
    pub load_milli: u64,
    /// A replica that its node, which answers, does not have.
    pub absent: Option<Absent>,
    /// Until when it is left alone because its last operator was given up.
    pub rest_until: Timestamp,
}

/// A replica that is not where it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absent {
    /// The replica.
    pub replica_id: ReplicaId,
    /// Since when.
    pub since: Timestamp,
    /// For how long, at the last look.
    pub for_ms: u64,
}

impl Observer {
    pub(super) fn new(core: &Core, config: LifecycleConfig) -> Self {
        let clock = Arc::clone(&core.clock);
        let began = (clock.wall(), clock.monotonic());
        Self {
            config,
            clock,
            began,
            heard: BTreeMap::new(),
            steady_since: BTreeMap::new(),
            epochs: BTreeMap::new(),
            seen: BTreeMap::new(),
            resting: BTreeMap::new(),
        }
    }

    /// The time: near the wall clock's, but it neither jumps nor goes back while this node leads
    /// the catalog.
    pub(super) fn now(&self) -> Timestamp {
        let (wall, monotonic) = self.began;
        let passed = self.clock.monotonic().saturating_sub(monotonic);
        Timestamp(wall.0.saturating_add(u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Leaves a shard alone until then.
    pub(super) fn rest(&mut self, shard_id: ShardId, until: Timestamp) {
        self.resting.insert(shard_id, until);
    }

    /// Whether it has listened long enough to tell a silent node from one that was not asked yet.
    pub(super) fn has_listened(&self, now: Timestamp) -> bool {
        self.began.0.0.saturating_add(self.config.suspect_ms) <= now.0
    }

    /// Takes a look in, and says which nodes are in another state now.
    pub(super) fn look(&mut self, survey: &Survey, now: Timestamp) -> Vec<(NodeId, NodeState)> {
        for node_id in survey.reports.keys() {
            self.heard.insert(*node_id, now);
        }
        let shards = survey.shards();
        let mut changes = Vec::new();
        for node in survey.nodes() {
            let seen = self.observe(survey, &shards, node, now);
            let steady_since = self.steady_since.get(&node.node_id).copied();
            let life = step(NodeLife { state: node.state, steady_since }, &seen, now, &self.config);
            match life.steady_since {
                Some(since) => self.steady_since.insert(node.node_id, since),
                None => self.steady_since.remove(&node.node_id),
            };
            if life.state != node.state {
                changes.push((node.node_id, life.state));
            }
        }
        changes
    }

    fn observe(
        &self,
        survey: &Survey,
        shards: &[ShardSurvey<'_>],
        node: &NodeRecord,
        now: Timestamp,
    ) -> Observation {
        let heard = match node.state {
            // It may have been heard just before it was taken for dead: only an answer of now says
            // that it is back.
            NodeState::Down => survey.is_up(node.node_id).then_some(now),
            NodeState::Joining
            | NodeState::Up
            | NodeState::Suspect
            | NodeState::Returning
            | NodeState::Draining
            | NodeState::Decommissioning
            | NodeState::Removed => self.heard.get(&node.node_id).copied(),
        };
        let last_heard = heard.or_else(|| self.silent_since(node.state));
        let neighbours = survey.nodes().filter(|other| {
            (&other.region, &other.zone) == (&node.region, &node.zone)
                && other.state != NodeState::Joining
        });
        let heard_of =
            |other: &NodeRecord| self.heard.get(&other.node_id).copied().unwrap_or(self.began.0);
        let zone: Vec<Timestamp> = neighbours.map(heard_of).collect();
        let held =
            shards.iter().filter(|shard| shard.descriptor.replica_on(node.node_id).is_some());
        Observation {
            last_heard,
            is_caught_up: held.clone().all(|shard| is_caught_up(shard, node.node_id)),
            replicas: held.count() as u64,
            is_zone_event: is_zone_event(&zone, now, &self.config),
            wish: node.wish,
            maintenance_until: node.maintenance_until,
        }
    }

    /// What counts as the last word of a node that has not been heard since this node began to
    /// listen: silence counts from there, and a node that was silent before is not taken for heard.
    fn silent_since(&self, state: NodeState) -> Option<Timestamp> {
        let began = self.began.0;
        match state {
            NodeState::Joining | NodeState::Down | NodeState::Removed => None,
            NodeState::Suspect => Some(Timestamp(began.0.saturating_sub(self.config.suspect_ms))),
            NodeState::Up
            | NodeState::Returning
            | NodeState::Draining
            | NodeState::Decommissioning => Some(began),
        }
    }

    /// What was seen of the shards; more load than `load_max` is too much.
    pub(super) fn seen(
        &mut self,
        survey: &Survey,
        load_max: u64,
        now: Timestamp,
    ) -> &BTreeMap<ShardId, ShardPast> {
        let is_first = self.epochs.is_empty();
        self.resting.retain(|_, until| now < *until);
        let mut epochs = BTreeMap::new();
        let mut seen = BTreeMap::new();
        for shard in survey.shards() {
            let descriptor = &shard.descriptor;
            let shard_id = descriptor.shard_id;
            let before = self.epochs.get(&shard_id);
            // Who comes from a split is as new as the split, whoever was there before it.
            let is_child = before.is_none() && Epoch::FIRST.version < descriptor.epoch.version;
            let is_changed = before.is_some_and(|epoch| *epoch != descriptor.epoch);
            let mut now_seen = self.seen.get(&shard_id).copied().unwrap_or_default();
            if is_changed || (is_child && !is_first) {
                now_seen.change_time = now;
            }
            now_seen.note_absent(survey, &shard, now);
            now_seen.rest_until = self.resting.get(&shard_id).copied().unwrap_or_default();
            if let Some((node_id, leader)) = shard.leader {
                now_seen.lead(node_id, leader.load, now);
            }
            if now_seen.load_milli / 1_000 <= load_max || before.is_none() {
                now_seen.busy_since = now;
            }
            epochs.insert(shard_id, descriptor.epoch);
            seen.insert(shard_id, now_seen);
        }
        (self.epochs, self.seen) = (epochs, seen);
        &self.seen
    }
}

/// Whether a node's replica has what the shard's leader has. Without a leader nobody can tell.
fn is_caught_up(shard: &ShardSurvey<'_>, node_id: NodeId) -> bool {
    let Some((leader_node, leader)) = shard.leader else { return true };
    let Some(replica) = shard.descriptor.replica_on(node_id) else { return true };
    leader_node == node_id
        || lag_entries(leader.last_index, &leader.matched, replica.replica_id) <= LAG_ENTRIES_MAX
}

/// Entries that a replica lacks, as its leader knows; as many as can be if it never said.
pub(super) fn lag_entries(
    last: Option<u64>,
    matched: &[(ReplicaId, Option<u64>)],
    replica_id: ReplicaId,
) -> u64 {
    let matched = matched.iter().find(|(id, _)| *id == replica_id).and_then(|(_, at)| *at);
    matched.map_or(u64::MAX, |matched| last.unwrap_or(0).saturating_sub(matched))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::survey::tests::survey;

    #[test]
    fn a_replica_that_its_node_answers_without_is_absent_after_its_time() {
        let mut found = survey(&[1, 2, 3]);
        let report = found.reports.get_mut(&NodeId(3)).unwrap();
        let held = report.replicas.remove(&ShardId(1)).unwrap();
        let missing = held.replica;
        let mut past = ShardPast::default();
        let mut look = |found: &Survey, now: u64| {
            past.note_absent(found, &found.shards()[0], Timestamp(now));
            past
        };
        assert!(!look(&found, 1_000).is_absent(missing, 500));
        assert!(!look(&found, 1_400).is_absent(missing, 500));
        let past = look(&found, 1_500);
        assert!(past.is_absent(missing, 500) && !past.is_absent(ReplicaId(1), 500));
        // A node that is silent says nothing of its replicas.
        let silent = found.reports.remove(&NodeId(3)).unwrap();
        assert!(!look(&found, 9_000).is_absent(missing, 500));
        found.reports.insert(NodeId(3), silent);
        assert!(!look(&found, 9_100).is_absent(missing, 500));
        // Another replica under the same node is not the one that the shard knows.
        let hold = |found: &mut Survey, replica: ReplicaReport| {
            let replicas = &mut found.reports.get_mut(&NodeId(3)).unwrap().replicas;
            *replicas = [(replica.shard, Arc::new(replica))].into();
        };
        let held = Arc::unwrap_or_clone(held);
        hold(&mut found, ReplicaReport { replica: ReplicaId(99), ..held.clone() });
        assert!(look(&found, 9_600).is_absent(missing, 500));
        hold(&mut found, held.clone());
        assert!(!look(&found, 9_700).is_absent(missing, 0));
        // One whose keys another shard's replica there has yet to give away waits for it.
        hold(&mut found, ReplicaReport { shard: ShardId(50), ..held });
        assert!(!look(&found, 9_800).is_absent(missing, 0));
    }
}
