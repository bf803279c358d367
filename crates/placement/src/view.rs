//! What the planner knows of a cluster.
//!
//! A [`ClusterView`] is fed node by node and shard by shard, as reports come in, and keeps what each
//! node holds counted while it is fed, so that a plan need not count a million shards.
//!
//! Invariants: each node's [`Tally`] is the sum over the shards as they will be when the operators
//! in flight are through; an operator in flight belongs to a known shard.
//!
//! Not here: where the reports come from (`server`), what should change (`plan`).

use std::collections::BTreeMap;

use anchorhold_model::catalog::{ClassKind, NodeState};
use anchorhold_model::{
    ClassId, Epoch, KeyRange, NodeId, ReplicaId, ReplicaRole, ShardId, Timestamp,
};

use crate::{Operator, PlacementConfig, Step};

/// How full a node's disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskState {
    /// Room for more.
    Normal,
    /// No new replicas, leaders leave, deletes still work.
    AlmostFull,
    /// Nothing is written any more.
    Full,
}

/// A node as it reports itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its id.
    pub node_id: NodeId,
    /// The region's name.
    pub region: String,
    /// The zone's name within the region.
    pub zone: String,
    /// Where it is in its life.
    pub state: NodeState,
    /// How full its disk is.
    pub disk: DiskState,
    /// Whether its disk or links are so slow that it should not lead.
    pub is_slow: bool,
    /// Bytes that its disk may hold of replicas.
    pub capacity_bytes: u64,
    /// Requests per second that it can lead.
    pub load_max: u64,
}

/// A replica as its shard's leader knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// Its id in the group.
    pub replica_id: ReplicaId,
    /// Where it lives.
    pub node_id: NodeId,
    /// What it may do.
    pub role: ReplicaRole,
    /// Whether it answers the leader.
    pub is_live: bool,
    /// Whether its node has lost what it must know: it never takes part again under this id, and
    /// is not live.
    pub is_lost: bool,
    /// Entries that it lacks.
    pub lag_entries: u64,
}

/// A shard as its leader, or failing that its replicas, report it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardStatus {
    /// Its id.
    pub shard_id: ShardId,
    /// The keys it owns.
    pub range: KeyRange,
    /// Where its replicas must live.
    pub class: ClassId,
    /// Version of bounds and members.
    pub epoch: Epoch,
    /// Its replicas, ordered by replica id.
    pub replicas: Vec<ReplicaStatus>,
    /// Whether a joint change was begun and not finished.
    pub is_joint: bool,
    /// The node that leads it.
    pub leader: Option<NodeId>,
    /// Bytes of its records.
    pub bytes: u64,
    /// Anchors in it.
    pub anchors: u64,
    /// Requests per second.
    pub load: u64,
    /// When its members or bounds changed last; 0 if long ago.
    pub change_time: Timestamp,
    /// When its leader changed last; 0 if long ago.
    pub lead_time: Timestamp,
    /// Since when it has had too much load without a pause; 0 if for long.
    pub busy_since: Timestamp,
    /// Until when it is left alone because its last operator was given up; 0 if it is not.
    pub rest_until: Timestamp,
}

/// A placement class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassView {
    /// Its id.
    pub class_id: ClassId,
    /// What must survive what.
    pub kind: ClassKind,
    /// The region of the voters; anywhere if unset.
    pub home: Option<String>,
}

/// What a node holds, counted as if the operators in flight were through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Replicas.
    pub replicas: u64,
    /// Leaderships.
    pub leaders: u64,
    /// Bytes of the replicas, with the overhead of each.
    pub bytes: u64,
    /// Requests per second of the shards it leads, with the overhead of each.
    pub leader_load: u64,
    /// The same, as it weighs where leaders are evened out.
    pub leader_weight: u64,
    /// Replicas that are being built here.
    pub incoming: usize,
    /// Replicas that are being built from a leader here.
    pub outgoing: usize,
    /// Leaderships that are being given or taken.
    pub transfers: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct NodeEntry {
    pub(crate) status: NodeStatus,
    pub(crate) tally: Tally,
}

#[derive(Clone, Debug)]
pub(crate) struct ShardEntry {
    pub(crate) status: ShardStatus,
    /// The nodes of `status.replicas` as places in `ClusterView::nodes`.
    pub(crate) slots: Vec<u32>,
}

/// What the planner knows of a cluster.
#[derive(Clone, Debug)]
pub struct ClusterView {
    config: PlacementConfig,
    nodes: Vec<NodeEntry>,
    slots: BTreeMap<NodeId, u32>,
    classes: BTreeMap<ClassId, ClassView>,
    shards: BTreeMap<ShardId, ShardEntry>,
    in_flight: BTreeMap<ShardId, Operator>,
}

impl ClusterView {
    /// A view of nothing. The configuration says what a replica and a leadership weigh.
    pub fn new(config: PlacementConfig) -> Self {
        Self {
            config,
            nodes: Vec::new(),
            slots: BTreeMap::new(),
            classes: BTreeMap::new(),
            shards: BTreeMap::new(),
            in_flight: BTreeMap::new(),
        }
    }

    /// A node is now so.
    pub fn set_node(&mut self, status: NodeStatus) {
        if let Some(slot) = self.slots.get(&status.node_id) {
            self.nodes[*slot as usize].status = status;
            return;
        }
        let node_id = status.node_id;
        self.slot_of(node_id);
        self.set_node(status);
    }

    /// A class is now so.
    pub fn set_class(&mut self, class: ClassView) {
        self.classes.insert(class.class_id, class);
    }

    /// A shard is now so. Replicas on nodes that the view does not know count as on dead ones.
    pub fn set_shard(&mut self, status: ShardStatus) {
        let shard_id = status.shard_id;
        let slots = status.replicas.iter().map(|replica| self.slot_of(replica.node_id)).collect();
        self.count(shard_id, false);
        self.shards.insert(shard_id, ShardEntry { status, slots });
        self.count(shard_id, true);
    }

    /// A shard is no more; nor is its operator.
    pub fn remove_shard(&mut self, shard_id: ShardId) {
        self.count(shard_id, false);
        self.in_flight.remove(&shard_id);
        self.shards.remove(&shard_id);
    }

    /// An operator was started. Without its shard it is forgotten.
    pub fn start(&mut self, operator: Operator) {
        let shard_id = operator.shard_id;
        if self.shards.contains_key(&shard_id) {
            self.count(shard_id, false);
            self.in_flight.insert(shard_id, operator);
            self.count(shard_id, true);
        }
    }

    /// A shard's operator is through, or was given up.
    pub fn finish(&mut self, shard_id: ShardId) -> Option<Operator> {
        self.count(shard_id, false);
        let operator = self.in_flight.remove(&shard_id);
        self.count(shard_id, true);
        operator
    }

    /// A node.
    pub fn node(&self, node_id: NodeId) -> Option<&NodeStatus> {
        self.slots.get(&node_id).map(|slot| &self.nodes[*slot as usize].status)
    }

    /// What a node holds.
    pub fn tally(&self, node_id: NodeId) -> Option<Tally> {
        self.slots.get(&node_id).map(|slot| self.nodes[*slot as usize].tally)
    }

    /// All nodes, ordered by id.
    pub fn nodes(&self) -> impl Iterator<Item = (&NodeStatus, Tally)> {
        self.slots.values().map(|slot| {
            let entry = &self.nodes[*slot as usize];
            (&entry.status, entry.tally)
        })
    }

    /// A shard.
    pub fn shard(&self, shard_id: ShardId) -> Option<&ShardStatus> {
        self.shards.get(&shard_id).map(|entry| &entry.status)
    }

    /// All shards, ordered by id.
    pub fn shards(&self) -> impl Iterator<Item = &ShardStatus> {
        self.shards.values().map(|entry| &entry.status)
    }

    /// All classes, ordered by id.
    pub fn classes(&self) -> impl Iterator<Item = &ClassView> {
        self.classes.values()
    }

    /// Operators in flight, ordered by shard id.
    pub fn in_flight(&self) -> impl Iterator<Item = &Operator> {
        self.in_flight.values()
    }

    /// The operator in flight of a shard.
    pub fn operator(&self, shard_id: ShardId) -> Option<&Operator> {
        self.in_flight.get(&shard_id)
    }

    pub(crate) fn entries(&self) -> &BTreeMap<ShardId, ShardEntry> {
        &self.shards
    }

    pub(crate) fn node_entries(&self) -> &[NodeEntry] {
        &self.nodes
    }

    pub(crate) fn slot(&self, node_id: NodeId) -> Option<u32> {
        self.slots.get(&node_id).copied()
    }

    /// The place of a node; one that is not known yet gets one, and is removed until it reports.
    fn slot_of(&mut self, node_id: NodeId) -> u32 {
        if let Some(slot) = self.slots.get(&node_id) {
            return *slot;
        }
        let slot = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        self.slots.insert(node_id, slot);
        let status = NodeStatus {
            node_id,
            region: String::new(),
            zone: String::new(),
            state: NodeState::Removed,
            disk: DiskState::Full,
            is_slow: false,
            capacity_bytes: 0,
            load_max: 0,
        };
        self.nodes.push(NodeEntry { status, tally: Tally::default() });
        slot
    }

    /// Counts a shard in its nodes' tallies, or out of them.
    fn count(&mut self, shard_id: ShardId, is_in: bool) {
        let Some(entry) = self.shards.get(&shard_id) else { return };
        let operator = self.in_flight.get(&shard_id);
        let share = Share::of(&entry.status, &self.config);
        let Some(operator) = operator else {
            let leader = entry.status.leader;
            for (replica, slot) in entry.status.replicas.iter().zip(&entry.slots) {
                let leads = leader == Some(replica.node_id);
                self.nodes[*slot as usize].tally.hold(share, leads, is_in);
            }
            return;
        };
        let goal = Goal::of(&entry.status, &operator.steps);
        let operator = operator.clone();
        let source = entry.status.leader;
        for (node_id, _) in &goal.replicas {
            let leads = goal.leader == Some(*node_id);
            let slot = self.slot_of(*node_id);
            self.nodes[slot as usize].tally.hold(share, leads, is_in);
        }
        for (node_id, moves) in influence(&operator, source) {
            let slot = self.slot_of(node_id);
            self.nodes[slot as usize].tally.work(moves, is_in);
        }
    }
}

/// What one shard weighs on its nodes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    pub(crate) bytes: u64,
    pub(crate) load: u64,
    pub(crate) weight: u64,
}

impl Share {
    pub(crate) fn of(status: &ShardStatus, config: &PlacementConfig) -> Self {
        Self {
            bytes: status.bytes.saturating_add(config.replica_overhead_bytes),
            load: status.load.saturating_add(config.leader_overhead_load),
            weight: status.load.saturating_add(config.leader_balance_load),
        }
    }
}

/// What an operator occupies on one node while it runs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Work {
    pub(crate) incoming: usize,
    pub(crate) outgoing: usize,
    pub(crate) transfers: usize,
}

/// What an operator occupies, node by node; a node may come more than once.
pub(crate) fn influence(operator: &Operator, leader: Option<NodeId>) -> Vec<(NodeId, Work)> {
    let mut all = Vec::new();
    for node_id in operator.added() {
        all.push((node_id, Work { incoming: 1, ..Work::default() }));
        all.extend(leader.map(|node_id| (node_id, Work { outgoing: 1, ..Work::default() })));
    }
    if let Some(to) = operator.leader_after() {
        let transfer = Work { transfers: 1, ..Work::default() };
        all.push((to, transfer));
        all.extend(leader.map(|node_id| (node_id, transfer)));
    }
    all
}

/// A shard's replicas after an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Goal {
    pub(crate) replicas: Vec<(NodeId, ReplicaRole)>,
    pub(crate) leader: Option<NodeId>,
}

impl Goal {
    pub(crate) fn of(status: &ShardStatus, steps: &[Step]) -> Self {
        let replicas = status.replicas.iter().map(|replica| (replica.node_id, replica.role));
        let mut goal = Self { replicas: replicas.collect(), leader: status.leader };
        for step in steps {
            goal.take(step);
        }
        if goal.replicas.iter().all(|(node_id, _)| goal.leader != Some(*node_id)) {
            goal.leader = None;
        }
        goal
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::AddLearner(node_id) => {
                if self.replicas.iter().all(|(other, _)| other != node_id) {
                    self.replicas.push((*node_id, ReplicaRole::Learner));
                }
            }
            Step::ChangeVoters { add, remove } => {
                for (node_id, role) in &mut self.replicas {
                    if add.contains(node_id) {
                        *role = ReplicaRole::Voter;
                    } else if remove.contains(node_id) {
                        *role = ReplicaRole::Learner;
                    }
                }
            }
            Step::RemoveReplica(node_id) => self.replicas.retain(|(other, _)| other != node_id),
            Step::TransferLeader(node_id) => self.leader = Some(*node_id),
            Step::MergeInto(_) => self.leader = None,
            Step::WaitCaughtUp(_) | Step::LeaveJoint | Step::Split => {}
        }
    }
}

impl Tally {
    pub(crate) fn hold(&mut self, share: Share, leads: bool, is_in: bool) {
        if is_in {
            self.replicas += 1;
            self.bytes = self.bytes.saturating_add(share.bytes);
            self.leaders += u64::from(leads);
            self.leader_load += if leads { share.load } else { 0 };
            self.leader_weight += if leads { share.weight } else { 0 };
        } else {
            self.replicas -= 1;
            self.bytes = self.bytes.saturating_sub(share.bytes);
            self.leaders -= u64::from(leads);
            self.leader_load -= if leads { share.load } else { 0 };
            self.leader_weight -= if leads { share.weight } else { 0 };
        }
    }

    pub(crate) fn work(&mut self, work: Work, is_in: bool) {
        let change = |count: &mut usize, by: usize| {
            *count = if is_in { *count + by } else { *count - by };
        };
        change(&mut self.incoming, work.incoming);
        change(&mut self.outgoing, work.outgoing);
        change(&mut self.transfers, work.transfers);
    }
}
