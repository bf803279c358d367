//! One shard as a plan sees it: what it needs, and the pieces that operators are made of.

use anchorhold_model::{NodeId, ReplicaRole};

use crate::survey::{Choice, Site, Survey, Want};
use crate::view::{ReplicaStatus, ShardEntry};
use crate::{Operator, Reason, Step, WhyNot};

/// Voters of one shard that a look counts one by one; none has more.
const VOTERS_MAX: usize = 16;

/// One shard, beside what its class wants.
pub(crate) struct Shard<'a> {
    pub(crate) survey: &'a Survey<'a>,
    pub(crate) entry: &'a ShardEntry,
    pub(crate) want: &'a Want,
}

/// What a first look at a shard tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    /// What it needs most; `None` if it is as it should be.
    pub(crate) need: Option<Reason>,
    /// Why nothing can be done for it, whatever it needs.
    pub(crate) blocked: Option<WhyNot>,
    pub(crate) live_voters: usize,
    pub(crate) is_leader_shed: bool,
}

/// What is counted over a shard's replicas; of several nodes the lowest id is kept.
#[derive(Default)]
struct Count {
    voters: usize,
    live: usize,
    learners: usize,
    slots: [u32; VOTERS_MAX],
    outside: Option<NodeId>,
    dead: Option<NodeId>,
    lost: Option<NodeId>,
    leaving: Option<NodeId>,
    misplaced: Option<NodeId>,
    stray: Option<NodeId>,
    silent: Option<NodeId>,
    leader_shed: Option<NodeId>,
    leader_region: Option<u16>,
}

fn lowest(kept: &mut Option<NodeId>, node_id: NodeId) {
    *kept = Some(kept.map_or(node_id, |other| other.min(node_id)));
}

impl<'a> Shard<'a> {
    /// `None` if the shard's class is unknown.
    pub(crate) fn new(survey: &'a Survey<'a>, entry: &'a ShardEntry) -> Option<Self> {
        Some(Self { survey, entry, want: survey.wants.get(&entry.status.class)? })
    }

    fn count(&self) -> Count {
        let mut count = Count::default();
        for (replica, slot) in self.entry.status.replicas.iter().zip(&self.entry.slots) {
            let site = &self.survey.sites[*slot as usize];
            let node_id = replica.node_id;
            let outside = |regions: &[u16]| !regions.contains(&site.region);
            if self.want.residency.as_deref().is_some_and(outside) {
                lowest(&mut count.outside, node_id);
            }
            if site.is_dead {
                lowest(&mut count.dead, node_id);
            } else if replica.is_lost {
                lowest(&mut count.lost, node_id);
            } else if site.is_leaving {
                lowest(&mut count.leaving, node_id);
            } else if site.is_silent {
                lowest(&mut count.silent, node_id);
            }
            if self.entry.status.leader == Some(node_id) {
                count.leader_shed = site.sheds_leaders.then_some(node_id);
                count.leader_region = Some(site.region);
            }
            match replica.role {
                ReplicaRole::Voter => {
                    if self.want.voter_regions.as_deref().is_some_and(outside) {
                        lowest(&mut count.misplaced, node_id);
                    }
                    if let Some(free) = count.slots.get_mut(count.voters) {
                        *free = *slot;
                    }
                    count.voters += 1;
                    count.live += usize::from(is_live(replica, site));
                }
                ReplicaRole::Learner => {
                    if outside(&self.want.learner_regions) {
                        lowest(&mut count.stray, node_id);
                    } else {
                        count.learners += 1;
                    }
                }
            }
        }
        count
    }

    /// What the shard needs most. Cheap: this runs for every shard of every plan.
    pub(crate) fn look(&self) -> Look {
        let count = self.count();
        let status = &self.entry.status;
        let need = self.need(&count);
        let blocked = if count.live * 2 <= count.voters {
            Some(WhyNot::QuorumLost)
        } else if need.is_some() && status.leader.is_none() {
            Some(WhyNot::NoLeader)
        } else if self.survey.now < status.rest_until {
            Some(WhyNot::Resting)
        } else if need.is_none() {
            count.silent.map(WhyNot::BelowTimer)
        } else {
            None
        };
        let is_leader_shed = count.leader_shed.is_some();
        Look { need, blocked, live_voters: count.live, is_leader_shed }
    }

    fn need(&self, count: &Count) -> Option<Reason> {
        let (status, want) = (&self.entry.status, self.want);
        if let Some(node_id) = count.outside {
            return Some(Reason::Residency(node_id));
        }
        if status.is_joint {
            return Some(Reason::UnfinishedJoint);
        }
        if let Some(node_id) = count.dead {
            return Some(Reason::DeadReplica(node_id));
        }
        if let Some(node_id) = count.lost {
            return Some(Reason::LostReplica(node_id));
        }
        if let Some(node_id) = count.leader_shed {
            return Some(Reason::LeaderOnBadNode(node_id));
        }
        if let Some(node_id) = count.leaving {
            return Some(Reason::Decommission(node_id));
        }
        if let Some(node_id) = count.misplaced {
            return Some(Reason::MisplacedVoter(node_id));
        }
        if count.voters < want.voters {
            return Some(Reason::MissingVoter);
        }
        if let Some(node_id) = count.stray {
            return Some(Reason::ExtraLearner(node_id));
        }
        if want.voters < count.voters {
            return self.most_dispensable(ReplicaRole::Voter).map(Reason::ExtraVoter);
        }
        if count.learners < want.learners {
            return Some(Reason::MissingLearner);
        }
        if want.learners < count.learners {
            return self.most_dispensable(ReplicaRole::Learner).map(Reason::ExtraLearner);
        }
        let voters = count.slots.get(..count.voters).unwrap_or_default();
        if want.voters_crowding < self.survey.crowding(voters) {
            return self.most_dispensable(ReplicaRole::Voter).map(Reason::Diversity);
        }
        if 0 < want.learners
            && want.learners_crowding < self.survey.crowding(&self.slots(ReplicaRole::Learner))
        {
            return self.most_dispensable(ReplicaRole::Learner).map(Reason::Diversity);
        }
        if let Some(reason) = self.split_need() {
            return Some(reason);
        }
        let is_away = want.leader_region.is_some() && count.leader_region != want.leader_region;
        (is_away && status.leader.is_some()).then_some(Reason::LeaderRegion)
    }

    /// What it needs most if its dead replicas are left as they are.
    pub(crate) fn need_but_for_the_dead(&self) -> Option<Reason> {
        self.need(&Count { dead: None, ..self.count() })
    }

    /// Whether it should be two. What cannot be cut is not too large.
    pub(crate) fn split_need(&self) -> Option<Reason> {
        let (status, config) = (&self.entry.status, self.survey.config);
        let is_large = config.split_bytes < status.bytes || config.split_anchors < status.anchors;
        if is_large && 2 <= status.anchors {
            return Some(Reason::SplitSize);
        }
        let is_busy = config.split_load < status.load
            && config.split_load_anchors_min.max(2) <= status.anchors
            && status.busy_since.0.saturating_add(config.split_load_ms) <= self.survey.now.0;
        is_busy.then_some(Reason::SplitLoad)
    }

    /// The places of the replicas with a role.
    pub(crate) fn slots(&self, role: ReplicaRole) -> Vec<u32> {
        let replicas = self.entry.status.replicas.iter().zip(&self.entry.slots);
        replicas.filter(|(replica, _)| replica.role == role).map(|(_, slot)| *slot).collect()
    }

    fn site(&self, node_id: NodeId) -> Option<&'a Site> {
        let slot = self.survey.view.slot(node_id)?;
        self.survey.sites.get(slot as usize)
    }

    /// The replica that can best be done without: one that is away first, then the one that leaves
    /// the others least crowded, then the one on the fullest node.
    fn most_dispensable(&self, role: ReplicaRole) -> Option<NodeId> {
        let slots = self.slots(role);
        let replicas = self.entry.status.replicas.iter().zip(&self.entry.slots);
        let best = replicas.filter(|(replica, _)| replica.role == role).min_by_key(|(_, slot)| {
            let others: Vec<u32> = slots.iter().copied().filter(|other| other != *slot).collect();
            let site = &self.survey.sites[**slot as usize];
            let fullness = std::cmp::Reverse(site.fullness());
            (!site.is_silent, self.survey.crowding(&others), fullness, site.node_id)
        });
        best.map(|(replica, _)| replica.node_id)
    }

    /// The voter that should lead instead, `without` being out of the question.
    pub(crate) fn successor(&self, without: NodeId) -> Result<NodeId, WhyNot> {
        let mut behind = None;
        let mut best: Option<((bool, u64, u64, NodeId), NodeId)> = None;
        for (replica, slot) in self.entry.status.replicas.iter().zip(&self.entry.slots) {
            let site = &self.survey.sites[*slot as usize];
            let may_lead = replica.role == ReplicaRole::Voter
                && replica.node_id != without
                && site.is_open
                && is_live(replica, site);
            if !may_lead {
                continue;
            }
            if self.survey.config.transfer_lag_entries_max < replica.lag_entries {
                lowest(&mut behind, replica.node_id);
                continue;
            }
            let away = self.want.leader_region.is_some_and(|region| region != site.region);
            let zone = &self.survey.zones[usize::from(site.zone)];
            let key = (away, zone.strain(), site.strain(), replica.node_id);
            if best.is_none_or(|(other, _)| key < other) {
                best = Some((key, replica.node_id));
            }
        }
        let refusal = behind.map_or(WhyNot::NoLeaderTarget, WhyNot::CatchingUp);
        best.map(|(_, node_id)| node_id).ok_or(refusal)
    }

    /// A node for one more replica beside `keep`.
    pub(crate) fn choose(&self, role: ReplicaRole, keep: &[u32]) -> Result<u32, WhyNot> {
        let regions = match role {
            ReplicaRole::Voter => self.want.voter_regions.as_deref(),
            ReplicaRole::Learner => Some(self.want.learner_regions.as_slice()),
        };
        self.survey.choose(&Choice {
            keep,
            taken: &self.entry.slots,
            regions,
            preferred: self.want.leader_region,
            residency: self.want.residency.as_deref(),
            bytes: self.bytes(),
        })
    }

    /// What a replica of it weighs.
    pub(crate) fn bytes(&self) -> u64 {
        self.entry.status.bytes.saturating_add(self.survey.config.replica_overhead_bytes)
    }

    /// A learner left behind by an operator that was given up, where a voter may live and does not
    /// crowd the others more than a fresh one would.
    pub(crate) fn ready_learner(&self, keep: &[u32]) -> Option<u32> {
        let replicas = self.entry.status.replicas.iter().zip(&self.entry.slots);
        let usable = replicas.filter(|(replica, slot)| {
            let site = &self.survey.sites[**slot as usize];
            replica.role == ReplicaRole::Learner
                && site.is_open
                && replica.is_live
                && self.want.voter_regions.as_ref().is_none_or(|all| all.contains(&site.region))
                && !self.want.learner_regions.contains(&site.region)
        });
        let learner = usable.map(|(replica, slot)| {
            (self.survey.crowding_with(keep, *slot), replica.node_id, *slot)
        });
        let (crowding, _, slot) = learner.min()?;
        let fresh = self.choose(ReplicaRole::Voter, keep).ok();
        let fresh = fresh.map(|slot| self.survey.crowding_with(keep, slot));
        fresh.is_none_or(|fresh| crowding <= fresh).then_some(slot)
    }

    /// An operator that puts a replica on `target` in place of the one on `victim`: the new one is
    /// there and caught up before the old one goes.
    pub(crate) fn swap(
        &self,
        victim: NodeId,
        target: u32,
        reason: Reason,
    ) -> Result<Operator, WhyNot> {
        let status = &self.entry.status;
        let to = self.survey.sites[target as usize].node_id;
        let mut steps = vec![Step::AddLearner(to), Step::WaitCaughtUp(to)];
        if self.entry.slots.contains(&target) {
            steps.remove(0);
        }
        let is_voter = status
            .replicas
            .iter()
            .any(|replica| replica.node_id == victim && replica.role == ReplicaRole::Voter);
        if is_voter {
            let is_only = self.slots(ReplicaRole::Voter).len() == 1;
            let leads = status.leader == Some(victim);
            if leads && is_only {
                // Nobody else can lead before the new replica votes.
                steps.push(Step::ChangeVoters { add: vec![to], remove: Vec::new() });
                steps.push(Step::TransferLeader(to));
                steps.push(Step::ChangeVoters { add: Vec::new(), remove: vec![victim] });
            } else {
                if leads {
                    steps.push(Step::TransferLeader(self.successor(victim)?));
                }
                steps.push(Step::ChangeVoters { add: vec![to], remove: vec![victim] });
            }
        }
        steps.push(Step::RemoveReplica(victim));
        Ok(self.operator(steps, reason))
    }

    /// An operator that takes the replica on `victim` away without another in its place.
    pub(crate) fn remove(&self, victim: NodeId, reason: Reason) -> Result<Operator, WhyNot> {
        let status = &self.entry.status;
        let replica = status.replicas.iter().find(|replica| replica.node_id == victim);
        let mut steps = Vec::new();
        if let Some(replica) = replica.filter(|replica| replica.role == ReplicaRole::Voter) {
            let site = self.site(victim);
            let stays_live =
                self.live_voters() - usize::from(site.is_some_and(|site| is_live(replica, site)));
            let voters = self.slots(ReplicaRole::Voter).len() - 1;
            if stays_live * 2 <= voters {
                return Err(self.silent_voter().map_or(WhyNot::QuorumLost, WhyNot::BelowTimer));
            }
            if status.leader == Some(victim) {
                steps.push(Step::TransferLeader(self.successor(victim)?));
            }
            steps.push(Step::ChangeVoters { add: Vec::new(), remove: vec![victim] });
        }
        steps.push(Step::RemoveReplica(victim));
        Ok(self.operator(steps, reason))
    }

    fn silent_voter(&self) -> Option<NodeId> {
        let silent = self.entry.slots.iter().map(|slot| &self.survey.sites[*slot as usize]);
        silent.filter(|site| site.is_silent).map(|site| site.node_id).min()
    }

    pub(crate) fn live_voters(&self) -> usize {
        let replicas = self.entry.status.replicas.iter().zip(&self.entry.slots);
        let voters = replicas.filter(|(replica, _)| replica.role == ReplicaRole::Voter);
        voters
            .filter(|(replica, slot)| is_live(replica, &self.survey.sites[**slot as usize]))
            .count()
    }

    pub(crate) fn operator(&self, steps: Vec<Step>, reason: Reason) -> Operator {
        Operator {
            shard_id: self.entry.status.shard_id,
            epoch: self.entry.status.epoch,
            steps,
            reason,
            live_voters: self.live_voters(),
        }
    }
}

fn is_live(replica: &ReplicaStatus, site: &Site) -> bool {
    replica.is_live && !site.is_dead && !site.is_silent
}
