//! Evens out replicas and leaders, among shards that need nothing else.
//!
//! A replica moves from a fuller node to an emptier one, a leadership from a busier one to an idler
//! one, only if the difference is beyond the band, is not turned around by the move, and the sum of
//! [`energy`](crate::potential::energy) falls: so nothing is ever moved back.

use anchorhold_model::{NodeId, ReplicaRole, ShardId};

use crate::plan::settle;
use crate::potential::energy;
use crate::shard::Shard;
use crate::survey::{Choice, Survey, ratio};
use crate::view::ShardEntry;
use crate::{Limit, Operator, Plan, Reason, Step, WhyNot};

/// Shards of one busy node that one plan tries, at most, on either side of the pivot.
const CANDIDATES_MAX: u8 = 8;

/// Shards for each leadership that is moved for balance at the same time. An operator is under way
/// for about a second, and its shard's writes wait for some thirty milliseconds of that: of all writes
/// one in 270.
const SHARDS_PER_TRANSFER: usize = 8;

/// Shards that may be worth moving, found while all shards are looked at.
pub(crate) struct Candidates<'a> {
    is_full: Vec<bool>,
    is_busy: Vec<bool>,
    pivot: ShardId,
    /// How many were taken of each node: before and after the pivot, replicas and leaders.
    taken: [[Vec<u8>; 2]; 2],
    replicas: [Vec<&'a ShardEntry>; 2],
    leaders: [Vec<&'a ShardEntry>; 2],
}

impl<'a> Candidates<'a> {
    pub(crate) fn new(survey: &Survey<'a>, seed: u64) -> Self {
        let entries = survey.view.entries();
        let first = entries.keys().next().map_or(0, |shard_id| shard_id.0);
        let last = entries.keys().next_back().map_or(0, |shard_id| shard_id.0);
        let pivot = first + mix(seed) % (last - first + 1).max(1);
        let none = || vec![0; survey.sites.len()];
        Self {
            is_full: full_nodes(survey),
            is_busy: busy_nodes(survey),
            pivot: ShardId(pivot),
            taken: [[none(), none()], [none(), none()]],
            replicas: [Vec::new(), Vec::new()],
            leaders: [Vec::new(), Vec::new()],
        }
    }

    /// Takes a shard that needs nothing as a candidate, if one of its nodes holds or leads much.
    /// The answer is why not, if it could be one.
    pub(crate) fn consider(
        &mut self,
        survey: &Survey<'_>,
        entry: &'a ShardEntry,
    ) -> Option<WhyNot> {
        let status = &entry.status;
        let side = usize::from(status.shard_id < self.pivot);
        let mut full = None;
        for (replica, slot) in status.replicas.iter().zip(&entry.slots) {
            let slot = *slot as usize;
            if self.is_full[slot] && self.taken[0][side][slot] < CANDIDATES_MAX {
                full = Some(slot);
            }
            let leads = status.leader == Some(replica.node_id);
            if leads && self.is_busy[slot] && self.taken[1][side][slot] < CANDIDATES_MAX {
                self.taken[1][side][slot] += 1;
                self.leaders[side].push(entry);
            }
        }
        let slot = full?;
        if survey.is_settling(status.change_time, survey.config.settle_ms) {
            return Some(WhyNot::Settling);
        }
        self.taken[0][side][slot] += 1;
        self.replicas[side].push(entry);
        None
    }

    /// Replicas first: where they are decides who may lead.
    pub(crate) fn plan(self, survey: &mut Survey<'a>, plan: &mut Plan) {
        let mut moved = std::collections::BTreeSet::new();
        for entry in self.replicas.into_iter().flatten() {
            let planned = plan.operators.len();
            let result = move_replica(survey, entry);
            let need = result.as_ref().map_or_else(|(need, _)| *need, |op| Some(op.reason));
            settle(plan, survey, entry, need, result.map_err(|(_, why)| why));
            if planned < plan.operators.len() {
                moved.insert(entry.status.shard_id);
            }
        }
        let mut left = leaders_at_once(survey);
        for entry in self.leaders.into_iter().flatten() {
            if moved.contains(&entry.status.shard_id) {
                continue;
            }
            let need = entry.status.leader.map(Reason::LeaderBalance);
            let result = move_leader(survey, entry);
            let result = match result {
                Ok(_) if left == 0 => Err(WhyNot::LimitReached(Limit::Transfers)),
                result => result,
            };
            left -= usize::from(result.is_ok());
            settle(plan, survey, entry, need, result);
        }
    }
}

/// How many more leaderships may be moved for balance now: if all that would do good moved at once,
/// more than one write in a hundred would wait for a move.
fn leaders_at_once(survey: &Survey<'_>) -> usize {
    let is_balance = |op: &&Operator| matches!(op.reason, Reason::LeaderBalance(_));
    let under_way = survey.view.in_flight().filter(is_balance).count();
    (survey.view.entries().len() / SHARDS_PER_TRANSFER).max(1).saturating_sub(under_way)
}

/// Nodes that hold more than the emptiest open node of their region by more than the band.
fn full_nodes(survey: &Survey<'_>) -> Vec<bool> {
    let is_full = |site: &crate::survey::Site| {
        let zones = survey.zones.iter().filter(|zone| zone.region == site.region);
        let least = zones.filter_map(crate::survey::ZoneSite::least_fullness).min();
        // One that has not reported of late is not known to be full.
        0 < site.capacity && least.is_some_and(|least| beyond_band(survey, site.fullness(), least))
    };
    survey.sites.iter().map(is_full).collect()
}

/// Nodes that lead more than another open node of their region, or lie in such a zone.
fn busy_nodes(survey: &Survey<'_>) -> Vec<bool> {
    let regions = usize::from(survey.zones.iter().map(|zone| zone.region).max().unwrap_or(0)) + 1;
    let mut node_least = vec![u64::MAX; regions];
    let mut zone_least = vec![u64::MAX; regions];
    for site in survey.sites.iter().filter(|site| site.is_open) {
        let least = &mut node_least[usize::from(site.region)];
        *least = site.strain().min(*least);
    }
    for zone in survey.zones.iter().filter(|zone| 0 < zone.load_max) {
        let least = &mut zone_least[usize::from(zone.region)];
        *least = zone.strain().min(*least);
    }
    let is_busy = |site: &crate::survey::Site| {
        let region = usize::from(site.region);
        let zone = &survey.zones[usize::from(site.zone)];
        site.is_open
            && (beyond_band(survey, site.strain(), node_least[region])
                || beyond_band(survey, zone.strain(), zone_least[region]))
    };
    survey.sites.iter().map(is_busy).collect()
}

/// Whether `high` is above `low` by more than the band, of `high`.
fn beyond_band(survey: &Survey<'_>, high: u64, low: u64) -> bool {
    let gap = u128::from(high.saturating_sub(low)) * 1_000;
    u128::from(survey.config.balance_band_permille) * u128::from(high) < gap
}

/// Whether something of weight `moved` should go from one holder to another: each as (held,
/// capacity).
fn is_worth(survey: &Survey<'_>, moved: u64, from: (u64, u64), to: (u64, u64)) -> bool {
    let fullness = |(held, capacity): (u64, u64)| ratio(held, capacity, 1_000_000);
    if !beyond_band(survey, fullness(from), fullness(to)) {
        return false;
    }
    let left = u128::from(from.0.saturating_sub(moved)) * u128::from(to.1);
    let come = u128::from(to.0.saturating_add(moved)) * u128::from(from.1);
    come <= left
}

fn move_replica(
    survey: &Survey<'_>,
    entry: &ShardEntry,
) -> Result<Operator, (Option<Reason>, WhyNot)> {
    let none = (None, WhyNot::ClassUnknown(entry.status.class));
    let shard = Shard::new(survey, entry).ok_or(none)?;
    let mut replicas: Vec<(u64, NodeId, u32, ReplicaRole)> = Vec::new();
    for (replica, slot) in entry.status.replicas.iter().zip(&entry.slots) {
        let site = &survey.sites[*slot as usize];
        if 0 < site.capacity {
            replicas.push((site.fullness(), replica.node_id, *slot, replica.role));
        }
    }
    replicas
        .sort_unstable_by_key(|(fullness, node_id, ..)| (std::cmp::Reverse(*fullness), *node_id));
    let mut refusal = (None, WhyNot::Hysteresis);
    for (_, node_id, slot, role) in replicas {
        let reason = Reason::ReplicaBalance(node_id);
        match emptier_node(survey, &shard, slot, role) {
            Ok(target) => {
                let operator = shard.swap(node_id, target, reason);
                let operator = operator.and_then(|operator| {
                    survey.check_limits(&operator, entry)?;
                    Ok(operator)
                });
                return operator.map_err(|why| (Some(reason), why));
            }
            Err(why) if refusal.0.is_none() => refusal = (Some(reason), why),
            Err(_) => {}
        }
    }
    Err(refusal)
}

/// An emptier node of the same region where the replica crowds the others no more than it does.
fn emptier_node(
    survey: &Survey<'_>,
    shard: &Shard<'_>,
    slot: u32,
    role: ReplicaRole,
) -> Result<u32, WhyNot> {
    let site = &survey.sites[slot as usize];
    let mut keep = shard.slots(role);
    keep.retain(|other| *other != slot);
    let crowding = survey.crowding_with(&keep, slot);
    let mut best: Option<(u64, NodeId, u32)> = None;
    let mut is_limited = false;
    let bytes = shard.bytes();
    for (zone, zone_site) in survey.zones.iter().enumerate() {
        if zone_site.region != site.region {
            continue;
        }
        let taken = &shard.entry.slots;
        let choice =
            Choice { keep: &[], taken, regions: None, preferred: None, residency: None, bytes };
        let Ok(target) = survey.choose_in_zone(zone, &choice) else { continue };
        let other = &survey.sites[target as usize];
        let (from, to) = ((site.tally.bytes, site.capacity), (other.tally.bytes, other.capacity));
        let falls = || {
            energy(from.0 - bytes, from.1) + energy(to.0 + bytes, to.1)
                < energy(from.0, from.1) + energy(to.0, to.1)
        };
        if crowding < survey.crowding_with(&keep, target)
            || !is_worth(survey, bytes, from, to)
            || !falls()
        {
            continue;
        }
        if survey.config.balance_incoming_max <= other.tally.incoming {
            is_limited = true;
            continue;
        }
        let key = (other.fullness(), other.node_id, target);
        best = Some(best.map_or(key, |other| other.min(key)));
    }
    let refusal =
        if is_limited { WhyNot::LimitReached(Limit::Incoming) } else { WhyNot::Hysteresis };
    best.map(|(_, _, slot)| slot).ok_or(refusal)
}

/// Gives a leadership to the voter whose node and zone lead least, if that evens out.
fn move_leader(survey: &Survey<'_>, entry: &ShardEntry) -> Result<Operator, WhyNot> {
    let status = &entry.status;
    let shard = Shard::new(survey, entry).ok_or(WhyNot::ClassUnknown(status.class))?;
    let leader = status.leader.ok_or(WhyNot::NoLeader)?;
    if survey.is_settling(status.lead_time, survey.config.leader_settle_ms) {
        return Err(WhyNot::Settling);
    }
    let from = survey.view.slot(leader).ok_or(WhyNot::NoLeader)?;
    let load = status.load.saturating_add(survey.config.leader_balance_load);
    let mut best: Option<(u128, NodeId)> = None;
    let mut behind = None;
    for (replica, slot) in status.replicas.iter().zip(&entry.slots) {
        let site = &survey.sites[*slot as usize];
        let away = shard.want.leader_region.is_some_and(|region| region != site.region);
        let may_lead = replica.role == ReplicaRole::Voter && replica.is_live && site.is_open;
        if replica.node_id == leader || !may_lead || away {
            continue;
        }
        let Some(energy) = leader_energy_after(survey, from, *slot, load) else { continue };
        if survey.config.transfer_lag_entries_max < replica.lag_entries {
            behind = Some(replica.node_id);
            continue;
        }
        let key = (energy, replica.node_id);
        best = Some(best.map_or(key, |other| other.min(key)));
    }
    let Some((_, to)) = best else {
        return Err(behind.map_or(WhyNot::Hysteresis, WhyNot::CatchingUp));
    };
    let operator = shard.operator(vec![Step::TransferLeader(to)], Reason::LeaderBalance(leader));
    survey.check_limits(&operator, entry)?;
    Ok(operator)
}

/// The energy that is left of what two nodes and their zones had, plus what is saved counted
/// negatively: the smaller, the better. `None` if the transfer is not worth it.
fn leader_energy_after(survey: &Survey<'_>, from: u32, to: u32, load: u64) -> Option<u128> {
    let (from, to) = (&survey.sites[from as usize], &survey.sites[to as usize]);
    let node = |site: &crate::survey::Site| (site.tally.leader_weight, site.load_max);
    let mut is_worthy = is_worth(survey, load, node(from), node(to));
    let pair = |high: (u64, u64), low: (u64, u64)| energy(high.0, high.1) + energy(low.0, low.1);
    let moved = |high: (u64, u64), low: (u64, u64)| {
        pair((high.0.saturating_sub(load), high.1), (low.0.saturating_add(load), low.1))
    };
    let mut before = pair(node(from), node(to));
    let mut after = moved(node(from), node(to));
    if from.zone != to.zone {
        let zone = |site: &crate::survey::Site| {
            let zone = &survey.zones[usize::from(site.zone)];
            (zone.leader_weight, zone.load_max)
        };
        is_worthy |= is_worth(survey, load, zone(from), zone(to));
        let as_node = |site: &crate::survey::Site| survey.zones[usize::from(site.zone)].as_node();
        before += pair(as_node(from), as_node(to));
        after += moved(as_node(from), as_node(to));
    }
    // Compared over several targets: what is not touched must count alike.
    (is_worthy && after < before).then(|| after + (u128::MAX / 2 - before))
}

/// Spreads a seed over all bits (the finalizer of splitmix64).
pub(crate) fn mix(seed: u64) -> u64 {
    let mut bits = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

#[cfg(test)]
mod tests {
    use anchorhold_model::Timestamp;

    use crate::testing::view_of;
    use crate::{Operator, PlacementConfig, plan};

    #[test]
    fn few_leaders_are_moved_for_balance_at_the_same_time() {
        let config = PlacementConfig::default();
        let planned = |shards: u64| {
            let mut text = "n1 north/a\nn2 north/b\nn3 north/c\nc1 zonal home=north\n".to_owned();
            (1..=shards).for_each(|shard| text += &format!("s{shard} c1 n1* n2 n3\n"));
            plan(&view_of(&text, &config), &config, Timestamp(1_000_000), 1)
        };
        let few = planned(24);
        assert_eq!(few.operators.len(), 3, "{few:?}");
        assert!(few.operators[0].to_string().contains("lead"), "{}", few.operators[0]);
        assert_eq!(planned(6).operators.len(), 1);
        assert_eq!(planned(1_000).operators.len(), config.leader_transfers_max);
    }

    #[test]
    fn a_node_that_has_not_reported_of_late_is_not_taken_for_full() {
        let config = PlacementConfig::default();
        let planned = |capacity: &str| {
            let text = format!(
                "n1 north/a {capacity}\nn2 north/b\nn3 north/c\nn4 north/a\nn5 north/b\nn6 north/c\n\
                 c1 zonal home=north\ns1 c1 n1* n2 n3 size=40\ns2 c1 n1* n2 n3 size=40"
            );
            plan(&view_of(&text, &config), &config, Timestamp(1_000_000), 1).operators
        };
        assert!(!planned("").is_empty(), "n1, n2 and n3 are fuller than the others");
        let leaves = |operator: &Operator| operator.to_string().contains("remove n1");
        assert!(!planned("capacity=0").iter().any(leaves));
    }
}
