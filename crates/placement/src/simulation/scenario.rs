//! An event, and the rounds until the cluster has dealt with it.

use std::collections::BTreeSet;

use anchorhold_model::NodeId;

use super::Simulation;
use crate::lifecycle::Wish;
use crate::{Plan, Potential, potential};

/// Something that happens to a simulated cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing: what does the planner do with the cluster as it is?
    Settle,
    /// All nodes of a zone stop: (region, zone).
    KillZone(u64, u64),
    /// The nodes of a zone that stopped start again.
    ReturnZone(u64, u64),
    /// The first nodes of a zone stop: (region, zone, nodes).
    FailRack(u64, u64, usize),
    /// The logs of a zone's first nodes lose votes, the nodes live: (region, zone, nodes).
    DamageLogs(u64, u64, usize),
    /// Empty nodes join each zone: nodes per zone.
    AddNodes(u64),
    /// The first nodes of a zone are to leave: (region, zone, nodes).
    Decommission(u64, u64, usize),
}

/// How a cluster dealt with an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// Rounds in which operators were planned.
    pub rounds: u64,
    /// Operators that were carried out.
    pub operators: u64,
    /// Operators that were given up.
    pub dropped: u64,
    /// Bytes that were copied.
    pub moved_bytes: u64,
    /// Bytes that had to be copied: what was lost, or what added nodes lack of an equal share.
    pub needed_bytes: u64,
    /// Virtual time until every shard had all its voters alive again, timers included.
    pub whole_ms: u64,
    /// Virtual time until the planner had nothing more to do.
    pub settled_ms: u64,
    /// Shards without all their voters right after the event.
    pub degraded_first: u64,
    /// The same at the end.
    pub degraded_last: u64,
    /// Rounds after which the potential was not smaller although operators were planned and no
    /// node changed.
    pub rises: u64,
    /// Whether the planner came to an end within the rounds that it was given.
    pub has_settled: bool,
}

/// How a scenario is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Virtual time of a round.
    pub round_ms: u64,
    /// Rounds, at most.
    pub rounds_max: u64,
    /// Whether the potential is compared after each round.
    pub compares_potential: bool,
}

impl Simulation {
    /// Lets an event happen and carries plans out until nothing is left to do.
    ///
    /// `planned` is called instead of [`Simulation::plan`], so that a caller with a clock can
    /// measure it.
    pub fn respond(
        &mut self,
        event: Event,
        pace: &Pace,
        mut planned: impl FnMut(&Self) -> Plan,
    ) -> Response {
        let begin = self.now();
        let before = (self.moved_bytes(), self.executed(), self.dropped());
        let mut response = Response { needed_bytes: self.happen(event), ..Response::default() };
        let voters = self.config().voters;
        response.degraded_first = self.degraded(voters);
        response.degraded_last = response.degraded_first;
        let mut last: Option<(Vec<u8>, Potential)> = None;
        for _ in 0..pace.rounds_max {
            let plan = planned(self);
            let count = plan.operators.len();
            response.rounds += u64::from(0 < count);
            self.start(plan);
            if pace.compares_potential {
                let (states, now) = (self.states(), potential(self.view(), self.config()));
                let is_same = last.as_ref().is_some_and(|(other, _)| *other == states);
                if let Some((_, then)) = &last
                    && is_same
                    && (*then < now || (0 < count && now == *then))
                {
                    response.rises += 1;
                }
                last = Some((states, now));
            }
            if count == 0 && self.running() == 0 && !self.is_waiting() {
                response.has_settled = true;
                break;
            }
            let is_idle = count == 0 && self.running() == 0;
            self.advance(if is_idle { pace.round_ms * 6 } else { pace.round_ms });
            let elapsed = self.now().0 - begin.0;
            if 0 < count || !is_idle {
                response.settled_ms = elapsed;
            }
            if 0 < response.degraded_last {
                response.degraded_last = self.degraded(voters);
                response.whole_ms = elapsed;
            }
        }
        response.moved_bytes = self.moved_bytes() - before.0;
        response.operators = self.executed() - before.1;
        response.dropped = self.dropped() - before.2;
        response
    }

    /// The states of all nodes, to tell whether one changed.
    fn states(&self) -> Vec<u8> {
        self.view().nodes().map(|(node, _)| node.state as u8).collect()
    }

    /// Lets an event happen, and tells how many bytes must be copied because of it.
    fn happen(&mut self, event: Event) -> u64 {
        match event {
            Event::Settle => 0,
            Event::KillZone(region, zone) => self.lose(self.nodes_of_zone(region, zone)),
            Event::FailRack(region, zone, nodes) => {
                self.lose(self.nodes_of_zone(region, zone).into_iter().take(nodes).collect())
            }
            Event::DamageLogs(region, zone, nodes) => {
                let nodes: BTreeSet<NodeId> =
                    self.nodes_of_zone(region, zone).into_iter().take(nodes).collect();
                self.damage_logs(&nodes);
                self.bytes_on(&nodes)
            }
            Event::ReturnZone(region, zone) => {
                let running = self.running_nodes();
                let mut nodes = self.nodes_of_zone(region, zone);
                nodes.retain(|node_id| !running.contains(node_id));
                self.revive(&nodes);
                self.lacking(&nodes)
            }
            Event::AddNodes(count) => {
                let zones: BTreeSet<(String, String)> = self
                    .view()
                    .nodes()
                    .map(|(node, _)| (node.region.clone(), node.zone.clone()))
                    .collect();
                let added: Vec<BTreeSet<NodeId>> = zones
                    .iter()
                    .map(|(region, zone)| self.add_nodes_named(region, zone, count))
                    .collect();
                added.iter().map(|nodes| self.lacking(nodes)).sum()
            }
            Event::Decommission(region, zone, nodes) => {
                let nodes: BTreeSet<NodeId> =
                    self.nodes_of_zone(region, zone).into_iter().take(nodes).collect();
                for node_id in &nodes {
                    self.wish(*node_id, Wish::Leave);
                }
                self.bytes_on(&nodes)
            }
        }
    }

    fn lose(&mut self, nodes: BTreeSet<NodeId>) -> u64 {
        let lost = self.bytes_on(&nodes);
        self.kill(&nodes);
        lost
    }

    /// What nodes of one zone lack of an equal share. With as many zones as voters a zone's share
    /// is its own: only its nodes can give some of it without two replicas in a zone.
    fn lacking(&self, nodes: &BTreeSet<NodeId>) -> u64 {
        let Some(node) = nodes.first().and_then(|node_id| self.view().node(*node_id)) else {
            return 0;
        };
        let running = self.running_nodes();
        let of_region = |status: &&crate::NodeStatus| status.region == node.region;
        let all: BTreeSet<NodeId> = self
            .view()
            .nodes()
            .map(|(status, _)| status)
            .filter(of_region)
            .map(|status| status.node_id)
            .filter(|node_id| running.contains(node_id))
            .collect();
        let share = self.bytes_on(&all) / (all.len() as u64).max(1) * nodes.len() as u64;
        share.saturating_sub(self.bytes_on(nodes))
    }
}
