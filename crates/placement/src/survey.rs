//! A view made ready for one plan: nodes by place, zones with their open nodes in order, what each
//! class wants, and the room that is left while the plan grows.

use std::collections::{BTreeMap, BTreeSet};

use anchorhold_model::catalog::{ClassKind, NodeState};
use anchorhold_model::{ClassId, NodeId, Timestamp};

use crate::view::{Goal, ShardEntry, Share, Tally, influence};
use crate::{ClassView, ClusterView, DiskState, Limit, NodeStatus, Operator, PlacementConfig};
use crate::{Reason, WhyNot};

/// What two replicas in one region add to [`Survey::crowding`].
const SAME_REGION: u64 = 100;
/// What they add on top if they are in one zone.
const SAME_ZONE: u64 = 1;

/// A node as a plan sees it.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub(crate) node_id: NodeId,
    pub(crate) zone: u16,
    pub(crate) region: u16,
    /// Its replicas are lost.
    pub(crate) is_dead: bool,
    /// It is silent, but its timer runs.
    pub(crate) is_silent: bool,
    /// Its replicas must go elsewhere.
    pub(crate) is_leaving: bool,
    /// It is alive and should not lead.
    pub(crate) sheds_leaders: bool,
    /// It may get leaderships and replicas.
    pub(crate) is_open: bool,
    pub(crate) capacity: u64,
    pub(crate) load_max: u64,
    pub(crate) tally: Tally,
}

#[derive(Clone, Debug)]
pub(crate) struct ZoneSite {
    pub(crate) region: u16,
    /// Open nodes below their limit of incoming replicas, the emptiest first.
    open: BTreeSet<(u64, NodeId, u32)>,
    /// Open nodes, at their limit or not.
    pub(crate) open_nodes: u64,
    incoming: usize,
    pub(crate) leader_weight: u64,
    pub(crate) load_max: u64,
}

/// What a class wants.
#[derive(Clone, Debug)]
pub(crate) struct Want {
    pub(crate) voters: usize,
    /// `None`: anywhere.
    pub(crate) voter_regions: Option<Vec<u16>>,
    pub(crate) learners: usize,
    pub(crate) learner_regions: Vec<u16>,
    pub(crate) residency: Option<Vec<u16>>,
    pub(crate) leader_region: Option<u16>,
    /// The least crowding of voters that is possible now.
    pub(crate) voters_crowding: u64,
    /// The same of learners.
    pub(crate) learners_crowding: u64,
}

#[derive(Debug)]
pub(crate) struct Survey<'a> {
    pub(crate) view: &'a ClusterView,
    pub(crate) config: &'a PlacementConfig,
    pub(crate) now: Timestamp,
    pub(crate) sites: Vec<Site>,
    pub(crate) zones: Vec<ZoneSite>,
    region_has_room: Vec<bool>,
    pub(crate) wants: BTreeMap<ClassId, Want>,
    operators: usize,
    merges: usize,
    splits: usize,
}

/// What to take into account when a node is chosen.
pub(crate) struct Choice<'a> {
    /// Replicas of the same role that stay.
    pub(crate) keep: &'a [u32],
    /// Nodes that hold a replica already.
    pub(crate) taken: &'a [u32],
    pub(crate) regions: Option<&'a [u16]>,
    pub(crate) preferred: Option<u16>,
    pub(crate) residency: Option<&'a [u16]>,
    pub(crate) bytes: u64,
}

impl<'a> Survey<'a> {
    pub(crate) fn new(view: &'a ClusterView, config: &'a PlacementConfig, now: Timestamp) -> Self {
        let names: BTreeSet<(&str, &str)> =
            view.nodes().map(|(node, _)| (node.region.as_str(), node.zone.as_str())).collect();
        let regions: Vec<&str> =
            names.iter().map(|(region, _)| *region).collect::<BTreeSet<_>>().into_iter().collect();
        let names: Vec<(&str, &str)> = names.into_iter().collect();
        let place = |node: &NodeStatus| {
            let name = (node.region.as_str(), node.zone.as_str());
            (
                names.binary_search(&name).unwrap_or_default(),
                regions.binary_search(&name.0).unwrap_or_default(),
            )
        };
        let sites: Vec<Site> = view
            .node_entries()
            .iter()
            .map(|entry| site(&entry.status, entry.tally, place(&entry.status)))
            .collect();
        let zones = names.iter().map(|(region, _)| ZoneSite {
            region: small(regions.binary_search(region).unwrap_or_default()),
            open: BTreeSet::new(),
            open_nodes: 0,
            incoming: 0,
            leader_weight: 0,
            load_max: 0,
        });
        let mut survey = Self {
            view,
            config,
            now,
            zones: zones.collect(),
            region_has_room: regions_with_room(&sites, regions.len(), config),
            sites,
            wants: BTreeMap::new(),
            operators: view.in_flight().count(),
            merges: view.in_flight().filter(|op| op.reason == Reason::Merge).count(),
            splits: view.in_flight().filter(|op| op.splits()).count(),
        };
        survey.fill_zones();
        for class in view.classes() {
            let want = survey.want(class, &regions);
            survey.wants.insert(class.class_id, want);
        }
        survey
    }

    fn fill_zones(&mut self) {
        for slot in 0..self.sites.len() {
            let site = &self.sites[slot];
            let zone = &mut self.zones[usize::from(site.zone)];
            zone.incoming += site.tally.incoming;
            zone.leader_weight += site.tally.leader_weight;
            zone.load_max += if site.is_open { site.load_max } else { 0 };
            zone.open_nodes += u64::from(site.is_open);
            self.reopen(slot);
        }
    }

    /// Puts a node among its zone's open ones, if it is one.
    fn reopen(&mut self, slot: usize) {
        let site = &self.sites[slot];
        if site.is_open && site.tally.incoming < self.config.incoming_max {
            let key = (site.fullness(), site.node_id, index(slot));
            self.zones[usize::from(site.zone)].open.insert(key);
        }
    }

    fn close(&mut self, slot: usize) {
        let site = &self.sites[slot];
        let key = (site.fullness(), site.node_id, index(slot));
        self.zones[usize::from(site.zone)].open.remove(&key);
    }

    /// Looks at a node as if it were to leave.
    pub(crate) fn retire(&mut self, slot: u32) {
        self.close(slot as usize);
        let site = &mut self.sites[slot as usize];
        let zone = &mut self.zones[usize::from(site.zone)];
        zone.open_nodes -= u64::from(site.is_open);
        (site.is_leaving, site.is_open) = (!site.is_dead, false);
    }

    fn want(&self, class: &ClassView, regions: &[&str]) -> Want {
        let place = |name: &str| regions.binary_search(&name).ok().map(small);
        let home = class.home.as_deref().map(|home| place(home).into_iter().collect::<Vec<u16>>());
        let leader_region = home.as_ref().and_then(|home| home.first().copied());
        let mut want = Want {
            voters: self.config.voters,
            voter_regions: home,
            learners: 0,
            learner_regions: Vec::new(),
            residency: None,
            leader_region,
            voters_crowding: 0,
            learners_crowding: 0,
        };
        match &class.kind {
            ClassKind::Zonal => {}
            ClassKind::Paired { pair, witness: _ } => {
                want.learners = self.config.learners_paired;
                want.learner_regions = place(pair).into_iter().collect();
            }
            ClassKind::Regional => {
                want.voters = self.config.voters_regional;
                want.voter_regions = None;
            }
            ClassKind::Pinned { residency } => {
                let residency: Vec<u16> = residency.iter().filter_map(|name| place(name)).collect();
                let home = want.voter_regions.unwrap_or_else(|| residency.clone());
                let inside = home.into_iter().filter(|region| residency.contains(region));
                want.voter_regions = Some(inside.collect());
                want.residency = Some(residency);
            }
        }
        want.voters_crowding = self.least_crowding(want.voters, want.voter_regions.as_deref());
        want.learners_crowding = self.least_crowding(want.learners, Some(&want.learner_regions));
        want
    }

    /// The least crowding that so many replicas can have on the open nodes.
    fn least_crowding(&self, count: usize, regions: Option<&[u16]>) -> u64 {
        let mut in_zone = vec![0_u64; self.zones.len()];
        let mut in_region = BTreeMap::<u16, u64>::new();
        let mut crowding = 0;
        for _ in 0..count {
            let free = self.zones.iter().enumerate().filter(|(zone, site)| {
                in_zone[*zone] < site.open_nodes
                    && regions.is_none_or(|regions| regions.contains(&site.region))
            });
            let cost = |zone: usize, region: u16| {
                in_region.get(&region).copied().unwrap_or(0) * SAME_REGION
                    + in_zone[zone] * SAME_ZONE
            };
            let best = free.map(|(zone, site)| (cost(zone, site.region), zone, site.region)).min();
            let Some((cost, zone, region)) = best else { break };
            crowding += cost;
            in_zone[zone] += 1;
            *in_region.entry(region).or_default() += 1;
        }
        crowding
    }

    /// How much replicas share regions and zones: 0 if each has a region of its own. The lower, the
    /// more diverse; one more pair in a region outweighs any number of pairs in zones.
    pub(crate) fn crowding(&self, slots: &[u32]) -> u64 {
        let mut crowding = 0;
        for (position, slot) in slots.iter().enumerate() {
            crowding += self.crowding_with(&slots[..position], *slot);
        }
        crowding
    }

    /// What one more replica on a node adds to the crowding of others.
    pub(crate) fn crowding_with(&self, others: &[u32], slot: u32) -> u64 {
        let site = &self.sites[slot as usize];
        others.iter().map(|other| self.pair_crowding(site, &self.sites[*other as usize])).sum()
    }

    fn pair_crowding(&self, one: &Site, other: &Site) -> u64 {
        u64::from(one.region == other.region) * SAME_REGION
            + u64::from(one.zone == other.zone) * SAME_ZONE
    }

    /// Whether the survivors of a dead node's region could carry what its dead nodes held.
    pub(crate) fn has_room_to_repair(&self, slot: u32) -> bool {
        self.region_has_room[usize::from(self.sites[slot as usize].region)]
    }

    /// The best node for one more replica: least crowding first, then the preferred region, then the
    /// emptiest. A better zone at its limit is waited for, a worse one is not taken instead.
    pub(crate) fn choose(&self, choice: &Choice<'_>) -> Result<u32, WhyNot> {
        let mut zones: Vec<(u64, bool, u64, usize)> = Vec::with_capacity(self.zones.len());
        for (zone, site) in self.zones.iter().enumerate() {
            let is_allowed = choice.regions.is_none_or(|regions| regions.contains(&site.region));
            if is_allowed && 0 < site.open_nodes {
                let fullness = site.open.first().map_or(u64::MAX, |first| first.0);
                let away = choice.preferred.is_some_and(|region| region != site.region);
                zones.push((self.zone_crowding(choice.keep, zone), away, fullness, zone));
            }
        }
        zones.sort_unstable();
        let mut limited_at = None;
        for (crowding, _, _, zone) in zones {
            if limited_at.is_some_and(|limited| limited < crowding) {
                break;
            }
            let chosen = self.choose_in_zone(zone, choice);
            if chosen.is_ok() {
                return chosen;
            }
            if matches!(chosen, Err(WhyNot::LimitReached(_))) {
                limited_at = Some(crowding);
            }
        }
        match limited_at {
            Some(_) => Err(WhyNot::LimitReached(Limit::Incoming)),
            None if self.has_room_outside(choice) => Err(WhyNot::ResidencyForbids),
            None => Err(WhyNot::NoRoom),
        }
    }

    pub(crate) fn choose_in_zone(&self, zone: usize, choice: &Choice<'_>) -> Result<u32, WhyNot> {
        let site = &self.zones[zone];
        let is_full = |slot: u32| {
            let site = &self.sites[slot as usize];
            self.config.target_usage_permille < site.permille_with(choice.bytes)
        };
        if self.config.zone_incoming_max <= site.incoming {
            return Err(WhyNot::LimitReached(Limit::Incoming));
        }
        for (_, _, slot) in &site.open {
            if choice.taken.contains(slot) {
                continue;
            }
            if !is_full(*slot) {
                return Ok(*slot);
            }
            break;
        }
        let all_seen = usize::try_from(site.open_nodes) == Ok(site.open.len());
        Err(if all_seen { WhyNot::NoRoom } else { WhyNot::LimitReached(Limit::Incoming) })
    }

    fn zone_crowding(&self, keep: &[u32], zone: usize) -> u64 {
        let region = self.zones[zone].region;
        let cost = |slot: &u32| {
            let site = &self.sites[*slot as usize];
            u64::from(site.region == region) * SAME_REGION
                + u64::from(usize::from(site.zone) == zone) * SAME_ZONE
        };
        keep.iter().map(cost).sum()
    }

    fn has_room_outside(&self, choice: &Choice<'_>) -> bool {
        choice.residency.is_some_and(|residency| {
            self.zones.iter().any(|zone| !residency.contains(&zone.region) && !zone.open.is_empty())
        })
    }

    /// Whether what happened then is so young that it should show its effect first. 0 is long ago.
    pub(crate) fn is_settling(&self, since: Timestamp, settle_ms: u64) -> bool {
        since != Timestamp(0) && self.now.0 < since.0.saturating_add(settle_ms)
    }

    /// Whether limits of the cluster and of the nodes allow an operator.
    pub(crate) fn check_limits(&self, op: &Operator, entry: &ShardEntry) -> Result<(), WhyNot> {
        if self.config.operators_max <= self.operators {
            return Err(WhyNot::LimitReached(Limit::Operators));
        }
        if op.reason == Reason::Merge && self.config.merges_max <= self.merges {
            return Err(WhyNot::LimitReached(Limit::Merges));
        }
        if op.splits() && self.config.splits_max <= self.splits {
            return Err(WhyNot::LimitReached(Limit::Splits));
        }
        for (node_id, work) in influence(op, entry.status.leader) {
            let Some(slot) = self.view.slot(node_id) else { continue };
            let tally = self.sites[slot as usize].tally;
            let over = |work: usize, done: usize, max: usize| 0 < work && max <= done;
            if over(work.incoming, tally.incoming, self.config.incoming_max) {
                return Err(WhyNot::LimitReached(Limit::Incoming));
            }
            if over(work.outgoing, tally.outgoing, self.config.outgoing_max) {
                return Err(WhyNot::LimitReached(Limit::Outgoing));
            }
            // To leave a dead or draining node matters more than an even pace.
            let is_urgent = op.reason < Reason::LeaderRegion;
            if !is_urgent && over(work.transfers, tally.transfers, self.config.leader_transfers_max)
            {
                return Err(WhyNot::LimitReached(Limit::Transfers));
            }
        }
        Ok(())
    }

    /// Counts an operator as if it were through.
    pub(crate) fn commit(&mut self, operator: &Operator, entry: &ShardEntry) {
        let share = Share::of(&entry.status, self.config);
        self.hold(&Goal::of(&entry.status, &[]), share, false);
        self.hold(&Goal::of(&entry.status, &operator.steps), share, true);
        for (node_id, work) in influence(operator, entry.status.leader) {
            let Some(slot) = self.view.slot(node_id) else { continue };
            let slot = slot as usize;
            self.close(slot);
            self.sites[slot].tally.work(work, true);
            self.zones[usize::from(self.sites[slot].zone)].incoming += work.incoming;
            self.reopen(slot);
        }
        self.operators += 1;
        self.merges += usize::from(operator.reason == Reason::Merge);
        self.splits += usize::from(operator.splits());
    }

    fn hold(&mut self, goal: &Goal, share: Share, is_in: bool) {
        for (node_id, _) in &goal.replicas {
            let Some(slot) = self.view.slot(*node_id) else { continue };
            let slot = slot as usize;
            let leads = goal.leader == Some(*node_id);
            self.close(slot);
            self.sites[slot].tally.hold(share, leads, is_in);
            let zone = &mut self.zones[usize::from(self.sites[slot].zone)];
            if leads && is_in {
                zone.leader_weight += share.weight;
            } else if leads {
                zone.leader_weight -= share.weight;
            }
            self.reopen(slot);
        }
    }
}

impl Site {
    /// Used share of the disk, in millionths.
    pub(crate) fn fullness(&self) -> u64 {
        ratio(self.tally.bytes, self.capacity, 1_000_000)
    }

    fn permille_with(&self, bytes: u64) -> u64 {
        ratio(self.tally.bytes.saturating_add(bytes), self.capacity, 1_000)
    }

    /// Used share of the load that it can lead, in millionths, as it weighs in a balance.
    pub(crate) fn strain(&self) -> u64 {
        ratio(self.tally.leader_weight, self.load_max, 1_000_000)
    }
}

impl ZoneSite {
    /// Used share of the load that it can lead, in millionths, as it weighs in a balance.
    pub(crate) fn strain(&self) -> u64 {
        ratio(self.leader_weight, self.load_max, 1_000_000)
    }

    /// What it leads, beside what one of its nodes can lead on average: so that zones weigh as much
    /// as nodes where unevenness is summed up.
    pub(crate) fn as_node(&self) -> (u64, u64) {
        (self.leader_weight, self.load_max / self.open_nodes.max(1))
    }

    /// The fullness of its emptiest open node.
    pub(crate) fn least_fullness(&self) -> Option<u64> {
        self.open.first().map(|first| first.0)
    }
}

/// `part / whole` in units of `1 / scale`, as large as can be if there is no whole.
pub(crate) fn ratio(part: u64, whole: u64, scale: u64) -> u64 {
    let scaled = u128::from(part) * u128::from(scale);
    scaled
        .checked_div(u128::from(whole))
        .map_or(u64::MAX, |ratio| u64::try_from(ratio).unwrap_or(u64::MAX))
}

fn site(status: &NodeStatus, tally: Tally, (zone, region): (usize, usize)) -> Site {
    let is_fit = status.disk == DiskState::Normal && !status.is_slow;
    let (mut is_dead, mut is_silent, mut is_leaving, mut sheds) = (false, false, false, !is_fit);
    match status.state {
        NodeState::Down | NodeState::Removed => (is_dead, sheds) = (true, false),
        NodeState::Suspect => (is_silent, sheds) = (true, false),
        NodeState::Decommissioning => (is_leaving, sheds) = (true, true),
        NodeState::Draining => sheds = true,
        NodeState::Joining | NodeState::Up | NodeState::Returning => {}
    }
    Site {
        node_id: status.node_id,
        zone: small(zone),
        region: small(region),
        is_dead,
        is_silent,
        is_leaving,
        sheds_leaders: sheds,
        is_open: status.state == NodeState::Up && is_fit,
        capacity: status.capacity_bytes,
        load_max: status.load_max,
        tally,
    }
}

/// Per region, whether those that live could hold all bytes and lead all load.
fn regions_with_room(sites: &[Site], regions: usize, config: &PlacementConfig) -> Vec<bool> {
    let mut bytes = vec![0_u64; regions];
    let mut capacity = vec![0_u64; regions];
    let mut load = vec![0_u64; regions];
    let mut load_max = vec![0_u64; regions];
    for site in sites {
        let region = usize::from(site.region);
        bytes[region] = bytes[region].saturating_add(site.tally.bytes);
        load[region] = load[region].saturating_add(site.tally.leader_load);
        if !site.is_dead && !site.is_silent {
            capacity[region] = capacity[region].saturating_add(site.capacity);
            load_max[region] = load_max[region].saturating_add(site.load_max);
        }
    }
    let has_room = |region: usize| {
        ratio(bytes[region], capacity[region], 1_000) <= config.repair_usage_permille
            && ratio(load[region], load_max[region], 1_000) <= config.repair_load_permille
    };
    (0..regions).map(has_room).collect()
}

fn small(index: usize) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX)
}

fn index(slot: usize) -> u32 {
    u32::try_from(slot).unwrap_or(u32::MAX)
}
