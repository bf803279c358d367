//! Decides which changes a cluster needs.
//!
//! Input is a [`ClusterView`], output a [`Plan`]: operators, and for each shard that could use a
//! change and gets none the reason why not. Equal input, equal output, in equal order.
//!
//! Needs are served in the order of their urgency, within one by fewest live voters, then by shard id.
//! Invariants: at most one operator per shard, none for a shard that has one in flight; limits hold
//! with what is in flight counted; each operator but a split or a merge makes the
//! [`Potential`](crate::Potential) smaller, so plans carried out one after the other come to an end.
//!
//! Not here: running operators (the executor), collecting views, telling that a node is dead
//! ([`lifecycle`](crate::lifecycle)).

use std::collections::{BTreeMap, BTreeSet};

use anchorhold_model::{NodeId, ShardId, Timestamp};

use crate::balance::Candidates;
use crate::shard::{Look, Shard};
use crate::survey::Survey;
use crate::view::ShardEntry;
use crate::{ClusterView, Limit, Operator, PlacementConfig, Plan, Reason, Refusal, WhyNot, merge};

/// Plans what a cluster needs now.
///
/// The seed says where the search for shards to balance begins: with another one each time, no
/// shard is always looked at first.
pub fn plan(view: &ClusterView, config: &PlacementConfig, now: Timestamp, seed: u64) -> Plan {
    let mut survey = Survey::new(view, config, now);
    let Scan { needs, candidates, mut plan } = scan(&survey, seed);
    let urgent = rank(Reason::SplitSize);
    let is_recovering = needs.keys().any(|(rank, _)| *rank < urgent)
        || view.in_flight().any(|operator| rank(operator.reason) < urgent)
        // What waits for a node or its quorum is no less urgent.
        || [WhyNot::QuorumLost, WhyNot::NoLeader, WhyNot::BelowTimer(NodeId(0))]
            .into_iter()
            .any(|why| 0 < plan.refused_for(why));
    for (_, shards) in needs {
        for (entry, need) in shards {
            let result = serve(&survey, entry, need)
                .or_else(|why| serve_next(&survey, entry, need, why).ok_or(why))
                .or_else(|why| split_instead(&survey, entry, why).ok_or(why));
            settle(&mut plan, &mut survey, entry, Some(need.reason), result);
        }
    }
    candidates.plan(&mut survey, &mut plan);
    // A merge needs every replica of two shards, and can wait.
    if config.merges && !is_recovering {
        merge::plan(&mut survey, &mut plan);
    }
    plan
}

/// A need of one shard, as the scan saw it.
#[derive(Clone, Copy)]
struct Need {
    reason: Reason,
    is_leader_shed: bool,
}

struct Scan<'a> {
    /// By urgency and live voters; within each in the order of shard ids.
    needs: BTreeMap<(u8, usize), Vec<(&'a ShardEntry, Need)>>,
    candidates: Candidates<'a>,
    plan: Plan,
}

/// Looks at every shard once.
fn scan<'a>(survey: &Survey<'a>, seed: u64) -> Scan<'a> {
    let mut scan = Scan {
        needs: BTreeMap::new(),
        candidates: Candidates::new(survey, seed),
        plan: Plan::default(),
    };
    let busy: BTreeSet<ShardId> = busy_shards(survey.view);
    let mut busy = busy.into_iter().peekable();
    for (shard_id, entry) in survey.view.entries() {
        while busy.next_if(|other| other < shard_id).is_some() {}
        if busy.peek() == Some(shard_id) {
            refuse(&mut scan.plan, survey.config, *shard_id, None, WhyNot::OperatorInFlight);
            continue;
        }
        let Some(shard) = Shard::new(survey, entry) else {
            let why = WhyNot::ClassUnknown(entry.status.class);
            refuse(&mut scan.plan, survey.config, *shard_id, None, why);
            continue;
        };
        match shard.look() {
            Look { need, blocked: Some(why), .. } => {
                refuse(&mut scan.plan, survey.config, *shard_id, need, why);
            }
            Look { need: Some(reason), live_voters, is_leader_shed, .. } => {
                let need = Need { reason, is_leader_shed };
                scan.needs.entry((rank(reason), live_voters)).or_default().push((entry, need));
            }
            Look { need: None, .. } => {
                if let Some(why) = scan.candidates.consider(survey, entry) {
                    refuse(&mut scan.plan, survey.config, *shard_id, None, why);
                }
            }
        }
    }
    scan
}

/// Shards that an operator in flight changes.
fn busy_shards(view: &ClusterView) -> BTreeSet<ShardId> {
    let all = view.in_flight();
    all.flat_map(|operator| [Some(operator.shard_id), operator.merges_into()]).flatten().collect()
}

/// What is done for a shard, before limits. If its first need cannot be served, its leader can leave
/// a bad node all the same.
fn serve(survey: &Survey<'_>, entry: &ShardEntry, need: Need) -> Result<Operator, WhyNot> {
    let shard = Shard::new(survey, entry).ok_or(WhyNot::ClassUnknown(entry.status.class))?;
    let result = shard.serve(need.reason).and_then(|operator| {
        survey.check_limits(&operator, entry)?;
        Ok(operator)
    });
    let leader = entry.status.leader.filter(|_| need.is_leader_shed);
    match (result, leader) {
        (Err(why), Some(leader)) => {
            let instead = shard.serve(Reason::LeaderOnBadNode(leader));
            instead.map_err(|_| why)
        }
        (result, Some(_) | None) => result,
    }
}

/// What a shard needs beside a dead replica that nothing can be done about: a pair region that stays
/// away must not keep the home from healing itself.
fn serve_next(
    survey: &Survey<'_>,
    entry: &ShardEntry,
    need: Need,
    why: WhyNot,
) -> Option<Operator> {
    let is_hopeless =
        matches!(why, WhyNot::NoRoom | WhyNot::NoRoomInRegion | WhyNot::ResidencyForbids);
    if !is_hopeless || !matches!(need.reason, Reason::DeadReplica(_)) {
        return None;
    }
    let shard = Shard::new(survey, entry)?;
    let operator = shard.serve(shard.need_but_for_the_dead()?).ok()?;
    survey.check_limits(&operator, entry).ok().map(|()| operator)
}

/// A shard that is too large is split even if nothing can be done about what it needs more: a zone
/// that stays away must not let its shards grow without an end. What only waits its turn comes
/// first.
fn split_instead(survey: &Survey<'_>, entry: &ShardEntry, why: WhyNot) -> Option<Operator> {
    match why {
        WhyNot::NoRoom
        | WhyNot::NoRoomInRegion
        | WhyNot::ResidencyForbids
        | WhyNot::NoLeaderTarget => {}
        WhyNot::LimitReached(_)
        | WhyNot::BelowTimer(_)
        | WhyNot::CatchingUp(_)
        | WhyNot::OperatorInFlight
        | WhyNot::Hysteresis
        | WhyNot::Settling
        | WhyNot::Resting
        | WhyNot::ClassUnknown(_)
        | WhyNot::QuorumLost
        | WhyNot::NoLeader => return None,
    }
    let shard = Shard::new(survey, entry)?;
    let operator = shard.serve(shard.split_need()?).ok()?;
    survey.check_limits(&operator, entry).ok().map(|()| operator)
}

/// Takes an operator into the plan, or notes why there is none.
pub(crate) fn settle(
    plan: &mut Plan,
    survey: &mut Survey<'_>,
    entry: &ShardEntry,
    need: Option<Reason>,
    result: Result<Operator, WhyNot>,
) {
    match result {
        Ok(operator) => {
            survey.commit(&operator, entry);
            plan.operators.push(operator);
        }
        Err(why) => refuse(plan, survey.config, entry.status.shard_id, need, why),
    }
}

pub(crate) fn refuse(
    plan: &mut Plan,
    config: &PlacementConfig,
    shard_id: ShardId,
    need: Option<Reason>,
    why: WhyNot,
) {
    *plan.refused.entry(why.name()).or_default() += 1;
    if plan.refusals.len() < config.refusals_max {
        plan.refusals.push(Refusal { shard_id, need, why });
    }
}

/// Why a shard cannot be changed now as it needs; the operator that it would get otherwise. `None`
/// if it needs nothing.
pub(crate) fn explain(
    survey: &Survey<'_>,
    entry: &ShardEntry,
) -> Option<(Reason, Result<Operator, WhyNot>)> {
    let shard = Shard::new(survey, entry)?;
    let look = shard.look();
    let reason = look.need?;
    if let Some(why) = look.blocked {
        return Some((reason, Err(why)));
    }
    Some((reason, serve(survey, entry, Need { reason, is_leader_shed: look.is_leader_shed })))
}

/// A reason's place in the order of urgency.
fn rank(reason: Reason) -> u8 {
    match reason {
        Reason::Residency(_) => 0,
        Reason::UnfinishedJoint => 1,
        Reason::DeadReplica(_) => 2,
        Reason::LostReplica(_) => 3,
        Reason::LeaderOnBadNode(_) => 4,
        Reason::Decommission(_) => 5,
        Reason::MisplacedVoter(_) => 6,
        Reason::MissingVoter => 7,
        Reason::ExtraLearner(_) => 8,
        Reason::ExtraVoter(_) => 9,
        Reason::MissingLearner => 10,
        Reason::Diversity(_) => 11,
        Reason::SplitSize => 12,
        Reason::SplitLoad => 13,
        Reason::LeaderRegion => 14,
        Reason::ReplicaBalance(_) => 15,
        Reason::LeaderBalance(_) => 16,
        Reason::Merge => 17,
    }
}

impl Plan {
    /// Shards that wait for a limit.
    pub fn waiting(&self) -> u64 {
        self.refused_for(WhyNot::LimitReached(Limit::Operators))
    }

    /// Shards whose need was refused for a reason; whatever it names besides does not count.
    fn refused_for(&self, why: WhyNot) -> u64 {
        self.refused.get(why.name()).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
