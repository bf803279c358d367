//! What the loss of a zone would do now, and what keeps a node from leaving.
//!
//! Not here: doing something about it (`plan`).

use std::collections::BTreeMap;

use anchorhold_model::{NodeId, ReplicaRole, ShardId, Timestamp};

use crate::plan::explain;
use crate::survey::{Survey, ratio};
use crate::{ClusterView, PlacementConfig, WhyNot};

/// Shards that an answer names, at most. All are counted.
const NAMED_MAX: usize = 10;

/// Why a zone cannot be lost without anybody noticing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Risk {
    /// Shards would have no quorum until the zone is back.
    Quorum {
        /// How many.
        shards: u64,
    },
    /// The survivors of the region could not lead all load.
    Load {
        /// What they would lead, in thousandths of what they can.
        permille: u64,
    },
    /// The survivors of the region could not hold what would be rebuilt.
    Disk {
        /// What they would hold, in thousandths of what they can.
        permille: u64,
    },
}

/// What would happen if a zone died now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneHeadroom {
    /// The region's name.
    pub region: String,
    /// The zone's name within the region.
    pub zone: String,
    /// Nodes in it that are not gone already.
    pub nodes: u64,
    /// Leaderships that other zones would take.
    pub leaders: u64,
    /// Bytes that would be rebuilt.
    pub bytes: u64,
    /// What the region's survivors would lead, in thousandths of what they can.
    pub load_permille: u64,
    /// What the region's survivors would hold, in thousandths of what they can.
    pub disk_permille: u64,
    /// Some of the shards that would lose their quorum.
    pub shards_at_risk: Vec<ShardId>,
    /// What would go wrong; nothing if the zone can be lost.
    pub risks: Vec<Risk>,
}

/// For each zone, by region and name, what would happen if it died now.
pub fn headroom(view: &ClusterView, config: &PlacementConfig) -> Vec<ZoneHeadroom> {
    let survey = Survey::new(view, config, Timestamp(0));
    let mut losing = vec![(0_u64, Vec::new()); survey.zones.len()];
    for entry in view.entries().values() {
        let mut live: Vec<u16> = Vec::with_capacity(5);
        let mut voters = 0;
        for (replica, slot) in entry.status.replicas.iter().zip(&entry.slots) {
            let site = &survey.sites[*slot as usize];
            if replica.role == ReplicaRole::Voter {
                voters += 1;
                let is_live = replica.is_live && !site.is_dead && !site.is_silent;
                live.extend(is_live.then_some(site.zone));
            }
        }
        let mut zones = live.clone();
        zones.sort_unstable();
        zones.dedup();
        for zone in zones {
            let stay = live.iter().filter(|other| **other != zone).count();
            if stay * 2 <= voters {
                let (count, named) = &mut losing[usize::from(zone)];
                *count += 1;
                if named.len() < NAMED_MAX {
                    named.push(entry.status.shard_id);
                }
            }
        }
    }
    let names: BTreeMap<u16, (&str, &str)> = view
        .nodes()
        .filter_map(|(node, _)| {
            let slot = view.slot(node.node_id)?;
            let zone = survey.sites.get(slot as usize)?.zone;
            Some((zone, (node.region.as_str(), node.zone.as_str())))
        })
        .collect();
    let zones = names.into_iter().filter_map(|(zone, (region, name))| {
        let (shards, named) = losing.get(usize::from(zone))?.clone();
        let mut answer = without_zone(&survey, zone, config);
        (answer.region, answer.zone) = (region.to_owned(), name.to_owned());
        answer.shards_at_risk = named;
        if 0 < shards {
            answer.risks.insert(0, Risk::Quorum { shards });
        }
        (0 < answer.nodes).then_some(answer)
    });
    zones.collect()
}

fn without_zone(survey: &Survey<'_>, zone: u16, config: &PlacementConfig) -> ZoneHeadroom {
    let region = survey.zones[usize::from(zone)].region;
    let mut answer = ZoneHeadroom {
        region: String::new(),
        zone: String::new(),
        nodes: 0,
        leaders: 0,
        bytes: 0,
        load_permille: 0,
        disk_permille: 0,
        shards_at_risk: Vec::new(),
        risks: Vec::new(),
    };
    let (mut bytes, mut capacity, mut load, mut load_max) = (0_u64, 0_u64, 0_u64, 0_u64);
    for site in survey.sites.iter().filter(|site| site.region == region) {
        bytes = bytes.saturating_add(site.tally.bytes);
        load = load.saturating_add(site.tally.leader_load);
        if site.zone == zone {
            answer.nodes += u64::from(!site.is_dead);
            answer.leaders += site.tally.leaders;
            answer.bytes = answer.bytes.saturating_add(site.tally.bytes);
        } else if !site.is_dead && !site.is_silent {
            capacity = capacity.saturating_add(site.capacity);
            load_max = load_max.saturating_add(site.load_max);
        }
    }
    answer.load_permille = ratio(load, load_max, 1_000);
    answer.disk_permille = ratio(bytes, capacity, 1_000);
    if config.repair_load_permille < answer.load_permille {
        answer.risks.push(Risk::Load { permille: answer.load_permille });
    }
    if config.repair_usage_permille < answer.disk_permille {
        answer.risks.push(Risk::Disk { permille: answer.disk_permille });
    }
    answer
}

/// What one cause keeps on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// The cause, as for the first of the shards.
    pub why: WhyNot,
    /// Shards that it keeps there.
    pub count: u64,
    /// Some of them.
    pub shards: Vec<ShardId>,
}

/// What keeps a node from leaving.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Departure {
    /// Replicas that it still holds.
    pub replicas: u64,
    /// Of those, how many an operator moves now.
    pub moving: u64,
    /// How many would be moved by the next plan.
    pub ready: u64,
    /// Why the others are not, ordered by cause.
    pub blocked: Vec<Blocked>,
}

/// What keeps a node from leaving, or would keep it if it were to leave now.
pub fn why_blocked(
    view: &ClusterView,
    config: &PlacementConfig,
    now: Timestamp,
    node_id: NodeId,
) -> Departure {
    let mut survey = Survey::new(view, config, now);
    let mut departure = Departure::default();
    let Some(slot) = view.slot(node_id) else { return departure };
    survey.retire(slot);
    let mut causes: BTreeMap<&'static str, Blocked> = BTreeMap::new();
    for (shard_id, entry) in view.entries() {
        if !entry.slots.contains(&slot) {
            continue;
        }
        departure.replicas += 1;
        let explained = explain(&survey, entry);
        // A change that is under way gets no further without a quorum.
        let is_stuck = matches!(explained, Some((_, Err(WhyNot::QuorumLost))));
        if view.operator(*shard_id).is_some() && !is_stuck {
            departure.moving += 1;
            continue;
        }
        let why = match explained {
            Some((_, Ok(_))) => {
                departure.ready += 1;
                continue;
            }
            Some((_, Err(why))) => why,
            None => WhyNot::ClassUnknown(entry.status.class),
        };
        let blocked =
            causes.entry(why.name()).or_insert(Blocked { why, count: 0, shards: Vec::new() });
        blocked.count += 1;
        if blocked.shards.len() < NAMED_MAX {
            blocked.shards.push(*shard_id);
        }
    }
    departure.blocked = causes.into_values().collect();
    departure
}
