//! How far a cluster is from where placement wants it, as one value that only falls.

use anchorhold_model::{ReplicaRole, Timestamp};

use crate::shard::Shard;
use crate::survey::Survey;
use crate::view::{Goal, ShardEntry};
use crate::{ClusterView, PlacementConfig};

/// How far a cluster is from the best placement, the gravest first: compared in this order.
///
/// Counted as if the operators in flight were through. Every operator but a split or a merge makes
/// it smaller as long as no node changes, so none undoes another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Potential {
    /// Replicas outside their class's residency set.
    pub outside: u64,
    /// Unfinished joint changes.
    pub unfinished: u64,
    /// Replicas that lack: lost, on dead or leaving nodes, misplaced, or not there at all.
    pub lacking: u64,
    /// Replicas that nobody wants.
    pub extra: u64,
    /// Leaders on nodes that should not lead.
    pub bad_leaders: u64,
    /// Crowding above the least possible, summed over shards.
    pub crowding: u64,
    /// Leaders away from home.
    pub leaders_away: u64,
    /// Unevenness of what nodes hold.
    pub imbalance: u128,
    /// Unevenness of what nodes and zones lead.
    pub leader_imbalance: u128,
}

/// Scale of [`energy`]: what is smaller than a unit is lost.
const ENERGY_SCALE: u128 = 1 << 20;

/// What a weight on a capacity counts: its square, so that an even spread has the smallest sum.
pub(crate) fn energy(weight: u64, capacity: u64) -> u128 {
    let weight = u128::from(weight);
    (weight * weight).saturating_mul(ENERGY_SCALE) / u128::from(capacity.max(1))
}

/// The potential of a view.
pub fn potential(view: &ClusterView, config: &PlacementConfig) -> Potential {
    let survey = Survey::new(view, config, Timestamp(0));
    let mut potential = Potential::default();
    for entry in view.entries().values() {
        let Some(operator) = view.operator(entry.status.shard_id) else {
            potential.add(&survey, entry);
            continue;
        };
        let goal = Goal::of(&entry.status, &operator.steps);
        potential.add(&survey, &reached(&survey, entry, &goal, operator));
    }
    for site in &survey.sites {
        potential.imbalance += energy(site.tally.bytes, site.capacity);
        potential.leader_imbalance += energy(site.tally.leader_weight, site.load_max);
    }
    for zone in &survey.zones {
        let (load, load_max) = zone.as_node();
        potential.leader_imbalance += energy(load, load_max);
    }
    potential
}

/// The shard as it is when its operator is through.
fn reached(
    survey: &Survey<'_>,
    entry: &ShardEntry,
    goal: &Goal,
    operator: &crate::Operator,
) -> ShardEntry {
    let mut status = entry.status.clone();
    status.is_joint &= operator.steps.is_empty();
    status.leader = goal.leader;
    let known = entry.status.replicas.first();
    status.replicas = goal
        .replicas
        .iter()
        .filter_map(|(node_id, role)| {
            let same = entry.status.replicas.iter().find(|replica| replica.node_id == *node_id);
            let mut replica = *same.or(known)?;
            replica.is_lost &= same.is_some();
            (replica.node_id, replica.role) = (*node_id, *role);
            Some(replica)
        })
        .collect();
    let slots = status.replicas.iter().filter_map(|replica| survey.view.slot(replica.node_id));
    let slots = slots.collect();
    ShardEntry { status, slots }
}

impl Potential {
    fn add(&mut self, survey: &Survey<'_>, entry: &ShardEntry) {
        let Some(shard) = Shard::new(survey, entry) else { return };
        let want = shard.want;
        self.unfinished += u64::from(entry.status.is_joint);
        let (mut voters, mut learners) = (0_usize, 0_usize);
        for (replica, slot) in entry.status.replicas.iter().zip(&entry.slots) {
            let site = &survey.sites[*slot as usize];
            let outside = |regions: &[u16]| !regions.contains(&site.region);
            self.outside += u64::from(want.residency.as_deref().is_some_and(outside));
            let is_lost = site.is_dead || replica.is_lost || site.is_leaving;
            let is_good = match replica.role {
                ReplicaRole::Voter => {
                    let is_placed = !want.voter_regions.as_deref().is_some_and(outside);
                    voters += usize::from(is_placed && !is_lost);
                    is_placed && !is_lost
                }
                ReplicaRole::Learner => {
                    let is_placed = !outside(&want.learner_regions);
                    learners += usize::from(is_placed && !is_lost);
                    is_placed && !is_lost
                }
            };
            self.extra += u64::from(!is_good);
            if entry.status.leader == Some(replica.node_id) {
                self.bad_leaders += u64::from(site.sheds_leaders);
                let away = want.leader_region.is_some_and(|region| region != site.region);
                self.leaders_away += u64::from(away);
            }
        }
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        self.lacking += count(want.voters.saturating_sub(voters));
        self.lacking += count(want.learners.saturating_sub(learners));
        self.extra += count(voters.saturating_sub(want.voters));
        self.extra += count(learners.saturating_sub(want.learners));
        let crowding = |role, least: u64| survey.crowding(&shard.slots(role)).saturating_sub(least);
        self.crowding += crowding(ReplicaRole::Voter, want.voters_crowding);
        self.crowding += crowding(ReplicaRole::Learner, want.learners_crowding);
    }
}
