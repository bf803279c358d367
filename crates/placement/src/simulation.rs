//! A cluster in memory on which plans are carried out, in virtual time.
//!
//! The same planner and the same node timers as in a running cluster; what is modelled is the rest:
//! replicas are copied at the bandwidth of their nodes, a shard whose leader is lost elects another
//! between two plans, a node that is back catches up from the log. One seed derives everything.
//!
//! Not here: measuring how long a plan takes (the caller has a clock).

mod layout;
mod execute;
mod scenario;

use std::collections::{BTreeMap, BTreeSet};

use anchorhold_model::catalog::NodeState;
use anchorhold_model::{NodeId, ReplicaRole, ShardId, Timestamp};

use crate::balance::mix;
use crate::lifecycle::{self, LifecycleConfig, NodeLife, Observation, Wish};
use crate::{ClusterView, PlacementConfig, Plan, ShardStatus};

pub use layout::Layout;
pub use scenario::{Event, Pace, Response};

/// A cluster in memory.
#[derive(Debug)]
pub struct Simulation {
    view: ClusterView,
    config: PlacementConfig,
    timers: LifecycleConfig,
    now: Timestamp,
    seed: u64,
    round: u64,
    bandwidth: u64,
    lives: BTreeMap<NodeId, Presence>,
    running: BTreeMap<ShardId, execute::Progress>,
    moved_bytes: u64,
    executed: u64,
    dropped: u64,
    next_shard: u64,
}

/// A node's part in the simulation.
#[derive(Clone, Copy, Debug)]
struct Presence {
    life: NodeLife,
    is_running: bool,
    last_heard: Timestamp,
    wish: Wish,
}

impl Simulation {
    /// The virtual time.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// The cluster as it is.
    pub fn view(&self) -> &ClusterView {
        &self.view
    }

    /// The cluster as it is, to be changed from outside between two rounds.
    pub fn view_mut(&mut self) -> &mut ClusterView {
        &mut self.view
    }

    /// The limits that plans keep.
    pub fn config(&self) -> &PlacementConfig {
        &self.config
    }

    /// Bytes that were copied so far.
    pub fn moved_bytes(&self) -> u64 {
        self.moved_bytes
    }

    /// Operators that came to their end so far.
    pub fn executed(&self) -> u64 {
        self.executed
    }

    /// Operators that were given up so far, because a node was lost or an epoch had changed.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Operators that run.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// What the planner says now.
    pub fn plan(&self) -> Plan {
        crate::plan(&self.view, &self.config, self.now, mix(self.seed ^ self.round))
    }

    /// Starts a plan's operators. Those of another epoch than their shard's are dropped.
    pub fn start(&mut self, plan: Plan) {
        for operator in plan.operators {
            let epoch = self.view.shard(operator.shard_id).map(|status| status.epoch);
            if epoch != Some(operator.epoch) {
                self.dropped += 1;
                continue;
            }
            self.running.insert(operator.shard_id, execute::Progress::default());
            self.view.start(operator);
        }
    }

    /// Lets time pass: operators advance, nodes are heard or not, leaders are elected.
    pub fn advance(&mut self, by_ms: u64) {
        self.round += 1;
        self.now = Timestamp(self.now.0 + by_ms);
        self.run_operators(by_ms);
        self.step_lives();
    }

    /// Whether a node's timer runs, so that time alone will change something.
    pub fn is_waiting(&self) -> bool {
        self.lives.values().any(|presence| {
            matches!(presence.life.state, NodeState::Suspect | NodeState::Returning)
                || presence.life.state == NodeState::Joining
        })
    }

    /// Nodes stop as in a power cut.
    pub fn kill(&mut self, nodes: &BTreeSet<NodeId>) {
        for node_id in nodes {
            if let Some(presence) = self.lives.get_mut(node_id) {
                presence.is_running = false;
            }
        }
        self.mark_replicas(nodes, false);
        self.now = Timestamp(self.now.0 + self.timers.suspect_ms);
        self.step_lives();
        self.elect();
    }

    /// Nodes that were stopped start again, with what they had.
    pub fn revive(&mut self, nodes: &BTreeSet<NodeId>) {
        for node_id in nodes {
            if let Some(presence) = self.lives.get_mut(node_id) {
                presence.is_running = true;
            }
        }
        self.mark_replicas(nodes, true);
        self.step_lives();
        self.elect();
    }

    /// Nodes go on, and all their replicas may have forgotten votes.
    pub fn damage_logs(&mut self, nodes: &BTreeSet<NodeId>) {
        let statuses: Vec<ShardStatus> = self.view.shards().cloned().collect();
        for mut status in statuses {
            for replica in &mut status.replicas {
                replica.is_lost |= nodes.contains(&replica.node_id);
            }
            self.view.set_shard(status);
        }
        self.mark_replicas(nodes, false);
        self.elect();
    }

    /// An operator wishes something of a node.
    pub fn wish(&mut self, node_id: NodeId, wish: Wish) {
        if let Some(presence) = self.lives.get_mut(&node_id) {
            presence.wish = wish;
        }
        self.step_lives();
    }

    /// Nodes that run.
    pub fn running_nodes(&self) -> BTreeSet<NodeId> {
        let running = self.lives.iter().filter(|(_, presence)| presence.is_running);
        running.map(|(node_id, _)| *node_id).collect()
    }

    /// Shards with fewer live voters than voters, or fewer of either than wanted: not whole.
    pub fn degraded(&self, voters: usize) -> u64 {
        let is_whole = |status: &ShardStatus| {
            let all = status.replicas.iter().filter(|replica| replica.role == ReplicaRole::Voter);
            let (mut count, mut live) = (0, 0);
            for replica in all {
                count += 1;
                live += usize::from(replica.is_live);
            }
            count == live && voters <= live
        };
        self.view.shards().filter(|status| !is_whole(status)).count() as u64
    }

    fn mark_replicas(&mut self, nodes: &BTreeSet<NodeId>, is_live: bool) {
        let touched: Vec<ShardStatus> = self
            .view
            .shards()
            .filter(|status| status.replicas.iter().any(|r| nodes.contains(&r.node_id)))
            .cloned()
            .collect();
        for mut status in touched {
            for replica in &mut status.replicas {
                if nodes.contains(&replica.node_id) {
                    replica.is_live = is_live && !replica.is_lost;
                }
            }
            if status.leader.is_some_and(|leader| nodes.contains(&leader)) && !is_live {
                status.leader = None;
            }
            self.view.set_shard(status);
        }
    }

    /// Shards without a leader get one, if most of their voters live: as Raft does, any of them.
    fn elect(&mut self) {
        let leaderless: Vec<ShardStatus> =
            self.view.shards().filter(|status| status.leader.is_none()).cloned().collect();
        for mut status in leaderless {
            if let Some(leader) = self.elected(&status) {
                status.leader = Some(leader);
                self.view.set_shard(status);
            }
        }
    }

    fn elected(&self, status: &ShardStatus) -> Option<NodeId> {
        let voters = || status.replicas.iter().filter(|replica| replica.role == ReplicaRole::Voter);
        let live: Vec<NodeId> =
            voters().filter(|replica| replica.is_live).map(|replica| replica.node_id).collect();
        if live.len() * 2 <= voters().count() {
            return None;
        }
        let index = mix(self.seed ^ status.shard_id.0) % live.len() as u64;
        usize::try_from(index).ok().and_then(|index| live.get(index).copied())
    }

    fn step_lives(&mut self) {
        let events = self.zone_events();
        let mut changed = Vec::new();
        for (node_id, presence) in &mut self.lives {
            if presence.is_running {
                presence.last_heard = self.now;
            }
            let Some(status) = self.view.node(*node_id) else { continue };
            let replicas = self.view.tally(*node_id).map_or(0, |tally| tally.replicas);
            let seen = Observation {
                last_heard: Some(presence.last_heard),
                is_caught_up: presence.is_running,
                replicas,
                is_zone_event: events.contains(&(status.region.clone(), status.zone.clone())),
                wish: presence.wish,
                maintenance_until: None,
            };
            let next = lifecycle::step(presence.life, &seen, self.now, &self.timers);
            if next.state != presence.life.state {
                let mut status = status.clone();
                status.state = next.state;
                changed.push(status);
            }
            presence.life = next;
        }
        for status in changed {
            self.view.set_node(status);
        }
    }

    fn zone_events(&self) -> BTreeSet<(String, String)> {
        let mut heard = BTreeMap::<(String, String), Vec<Timestamp>>::new();
        for (node_id, presence) in &self.lives {
            let last = if presence.is_running { self.now } else { presence.last_heard };
            if let Some(status) = self.view.node(*node_id)
                && presence.life.state != NodeState::Removed
            {
                let zone = (status.region.clone(), status.zone.clone());
                heard.entry(zone).or_default().push(last);
            }
        }
        let is_event =
            |heard: &[Timestamp]| lifecycle::is_zone_event(heard, self.now, &self.timers);
        heard.into_iter().filter(|(_, heard)| is_event(heard)).map(|(zone, _)| zone).collect()
    }
}

#[cfg(test)]
mod tests;
