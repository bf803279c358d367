use std::collections::{BTreeMap, BTreeSet};

use anchorhold_model::catalog::{ClassKind, NodeState};
use anchorhold_model::{
    ClassId, Epoch, Key, KeyRange, NodeId, ReplicaId, ReplicaRole, ShardId, Timestamp,
};

use super::{Presence, Simulation};
use crate::balance::mix;
use crate::lifecycle::{LifecycleConfig, NodeLife, Wish};
use crate::{
    ClassView, ClusterView, DiskState, NodeStatus, PlacementConfig, ReplicaStatus, ShardStatus,
};

/// How large a simulated cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Regions. Each is the home of one class.
    pub regions: u64,
    /// Zones of each region.
    pub zones: u64,
    /// Nodes, spread over the zones.
    pub nodes: u64,
    /// Shards, spread over the regions.
    pub shards: u64,
    /// Bytes of a shard on average; the sizes lie between half and one and a half of it.
    pub shard_bytes: u64,
    /// What a disk holds, in thousandths of what the fullest holds at first.
    pub capacity_permille: u64,
    /// Bytes per second that a node sends, and as many that it receives.
    pub bandwidth: u64,
    /// Everything that is not the same everywhere follows from it.
    pub seed: u64,
}

/// When a simulation begins: late enough that no shard was changed a short while ago.
const START: Timestamp = Timestamp(1_000_000_000);
/// Requests per second of a shard on average.
const SHARD_LOAD: u64 = 20;

impl Layout {
    /// A cluster of this size, each shard with its voters in different zones of its home, replicas
    /// and leaders spread evenly.
    pub fn build(&self, config: PlacementConfig, timers: LifecycleConfig) -> Simulation {
        let mut view = ClusterView::new(config);
        let zones: Vec<(u64, u64)> =
            (0..self.regions).flat_map(|r| (0..self.zones).map(move |z| (r, z))).collect();
        for region in 0..self.regions {
            view.set_class(class(region));
        }
        let shards = self.place(&zones, &config);
        let largest = shards.1.values().max().copied().unwrap_or(0).max(1);
        let capacity = largest / 1_000 * self.capacity_permille + self.capacity_permille;
        let load_max = (self.shards * SHARD_LOAD * 4 / self.nodes.max(1)).max(1_000);
        let mut lives = BTreeMap::new();
        for (node_id, (region, zone)) in self.node_zones(&zones) {
            view.set_node(NodeStatus {
                node_id,
                region: region_name(region),
                zone: zone_name(zone),
                state: NodeState::Up,
                disk: DiskState::Normal,
                is_slow: false,
                capacity_bytes: capacity,
                load_max,
            });
            lives.insert(node_id, Presence::up(NodeState::Up, START));
        }
        for shard in shards.0 {
            view.set_shard(shard);
        }
        Simulation {
            view,
            config,
            timers,
            now: START,
            seed: self.seed,
            round: 0,
            bandwidth: self.bandwidth,
            lives,
            running: BTreeMap::new(),
            moved_bytes: 0,
            executed: 0,
            dropped: 0,
            next_shard: self.shards + 1,
        }
    }

    fn node_zones<'a>(
        &self,
        zones: &'a [(u64, u64)],
    ) -> impl Iterator<Item = (NodeId, (u64, u64))> + use<'a> {
        (1..=self.nodes).zip(zones.iter().copied().cycle()).map(|(id, zone)| (NodeId(id), zone))
    }

    /// The shards, and what each node holds of them.
    fn place(
        &self,
        zones: &[(u64, u64)],
        config: &PlacementConfig,
    ) -> (Vec<ShardStatus>, BTreeMap<NodeId, u64>) {
        let mut emptiest = vec![BTreeSet::new(); zones.len()];
        for (index, (node_id, _)) in self.node_zones(zones).enumerate() {
            emptiest[index % zones.len().max(1)].insert((0_u64, node_id));
        }
        let mut shards = Vec::new();
        for number in 0..self.shards {
            let region = number % self.regions.max(1);
            let bytes = self.shard_bytes / 2 + mix(self.seed ^ number) % self.shard_bytes.max(1);
            let first = number / self.regions.max(1);
            let mut nodes = Vec::new();
            for offset in 0..self.zones.min(config.voters as u64) {
                let zone = region * self.zones + (first + offset) % self.zones;
                let Ok(zone) = usize::try_from(zone) else { continue };
                if let Some((held, node_id)) = emptiest[zone].pop_first() {
                    emptiest[zone].insert((held + bytes + config.replica_overhead_bytes, node_id));
                    nodes.push(node_id);
                }
            }
            shards.push(shard(number, self.shards, region, &nodes, bytes));
        }
        let held = emptiest.into_iter().flatten().map(|(held, node_id)| (node_id, held));
        (shards, held.collect())
    }
}

impl Presence {
    fn up(state: NodeState, now: Timestamp) -> Self {
        let life = NodeLife { state, steady_since: Some(now) };
        Self { life, is_running: true, last_heard: now, wish: Wish::Serve }
    }
}

impl Simulation {
    /// Adds nodes to a zone like those that are there, and gives their ids.
    pub(super) fn add_nodes_named(
        &mut self,
        region: &str,
        zone: &str,
        count: u64,
    ) -> BTreeSet<NodeId> {
        let last = self.lives.keys().next_back().map_or(0, |node_id| node_id.0);
        let Some(like) = self.view.nodes().map(|(node, _)| node.clone()).next() else {
            return BTreeSet::new();
        };
        let added: BTreeSet<NodeId> = (last + 1..=last + count).map(NodeId).collect();
        for node_id in added.iter().copied() {
            let (region, zone) = (region.to_owned(), zone.to_owned());
            let like = like.clone();
            let state = NodeState::Up;
            self.view.set_node(NodeStatus { node_id, region, zone, state, ..like });
            self.lives.insert(node_id, Presence::up(state, self.now));
        }
        added
    }

    /// The nodes of a zone.
    pub fn nodes_of_zone(&self, region: u64, zone: u64) -> BTreeSet<NodeId> {
        let (region, zone) = (region_name(region), zone_name(zone));
        let nodes = self.view.nodes().map(|(node, _)| node);
        let inside = nodes.filter(|node| node.region == region && node.zone == zone);
        inside.map(|node| node.node_id).collect()
    }

    /// Bytes of records on nodes, without overheads.
    pub fn bytes_on(&self, nodes: &BTreeSet<NodeId>) -> u64 {
        let on = |status: &ShardStatus| {
            let inside = status.replicas.iter().filter(|r| nodes.contains(&r.node_id)).count();
            status.bytes * inside as u64
        };
        self.view.shards().map(on).sum()
    }
}

fn region_name(region: u64) -> String {
    format!("r{region}")
}

fn zone_name(zone: u64) -> String {
    format!("z{zone}")
}

fn class_id(region: u64) -> ClassId {
    ClassId(u32::try_from(region + 1).unwrap_or(u32::MAX))
}

fn class(region: u64) -> ClassView {
    ClassView {
        class_id: class_id(region),
        kind: ClassKind::Zonal,
        home: Some(region_name(region)),
    }
}

fn shard(number: u64, count: u64, region: u64, nodes: &[NodeId], bytes: u64) -> ShardStatus {
    let width = u128::MAX / u128::from(count.max(1));
    let start = width * u128::from(number);
    let end = (number + 1 < count).then(|| Key(start + width));
    let replicas = (1..).zip(nodes).map(|(counter, node_id)| ReplicaStatus {
        replica_id: ReplicaId::new(1, counter),
        node_id: *node_id,
        role: ReplicaRole::Voter,
        is_live: true,
        is_lost: false,
        lag_entries: 0,
    });
    ShardStatus {
        shard_id: ShardId(number + 1),
        range: KeyRange { start: Key(start), end },
        class: class_id(region),
        epoch: Epoch::FIRST,
        replicas: replicas.collect(),
        is_joint: false,
        leader: nodes.first().copied(),
        bytes,
        anchors: bytes / 400,
        load: SHARD_LOAD,
        change_time: Timestamp(0),
        busy_since: Timestamp(0),
        rest_until: Timestamp(0),
        lead_time: Timestamp(0),
    }
}
