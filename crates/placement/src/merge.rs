//! Makes one shard of two small neighbours. Off unless asked for.
//!
//! The right one moves to the nodes of the left one first: one operator does both, so that balance
//! does not pull them apart again in between, and no other operator touches either meanwhile.

use std::collections::BTreeSet;

use anchorhold_model::{NodeId, ReplicaRole, ShardId, Timestamp};

use crate::plan::{explain, settle};
use crate::survey::Survey;
use crate::view::ShardEntry;
use crate::{ClusterView, Operator, PlacementConfig, Plan, Reason, Step, WhyNot};

/// Adds merges to a plan.
pub(crate) fn plan(survey: &mut Survey<'_>, plan: &mut Plan) {
    let view = survey.view;
    let mut used: BTreeSet<ShardId> = plan.operators.iter().map(|op| op.shard_id).collect();
    for operator in view.in_flight() {
        used.extend([Some(operator.shard_id), operator.merges_into()].into_iter().flatten());
    }
    let mut small: Vec<&ShardEntry> =
        view.entries().values().filter(|entry| is_small(survey, entry)).collect();
    small.sort_by_key(|entry| (entry.status.range.start, entry.status.shard_id));
    for pair in small.windows(2) {
        let &[left, right] = pair else { continue };
        let ids = [left.status.shard_id, right.status.shard_id];
        if !are_neighbours(left, right) || ids.iter().any(|shard_id| used.contains(shard_id)) {
            continue;
        }
        let planned = plan.operators.len();
        let is_settling = |entry: &ShardEntry| {
            survey.is_settling(entry.status.change_time, survey.config.merge_settle_ms)
        };
        let result = if is_settling(left) || is_settling(right) {
            Err(WhyNot::Settling)
        } else {
            merge(survey, left, right)
        };
        settle(plan, survey, right, Some(Reason::Merge), result);
        if planned < plan.operators.len() {
            used.extend(ids);
        }
    }
}

/// The operator that merges a shard into its left neighbour, however large both are, because someone
/// asked for it. `None` if it has no neighbour that it could become part of.
///
/// # Errors
/// What keeps it from being started now.
pub fn merge_left(
    view: &ClusterView,
    config: &PlacementConfig,
    now: Timestamp,
    shard_id: ShardId,
) -> Option<Result<Operator, WhyNot>> {
    let survey = Survey::new(view, config, now);
    let right = view.entries().get(&shard_id)?;
    let left = view.entries().values().find(|left| are_neighbours(left, right))?;
    let is_busy = |operator: &Operator| {
        let changed = [Some(operator.shard_id), operator.merges_into()];
        [left.status.shard_id, shard_id].iter().any(|one| changed.contains(&Some(*one)))
    };
    if view.in_flight().any(is_busy) {
        return Some(Err(WhyNot::OperatorInFlight));
    }
    for entry in [left, right] {
        // What either needs comes first: the other would have to follow it.
        if let Some((_, served)) = explain(&survey, entry) {
            return Some(Err(served.err().unwrap_or(WhyNot::Settling)));
        }
    }
    Some(merge(&survey, left, right))
}

/// Shards of different accounts stay apart: what an account's owner does to its shards is not the
/// other's business.
fn are_neighbours(left: &ShardEntry, right: &ShardEntry) -> bool {
    let account = |entry: &ShardEntry| entry.status.range.start.account();
    left.status.range.end == Some(right.status.range.start)
        && account(left) == account(right)
        && left.status.class == right.status.class
        && left.status.epoch.incarnation == right.status.epoch.incarnation
}

fn is_small(survey: &Survey<'_>, entry: &ShardEntry) -> bool {
    let (status, config) = (&entry.status, survey.config);
    status.bytes < config.merge_bytes_max
        && status.load < config.merge_load_max
        && status.anchors * 2 < config.split_anchors
        && status.leader.is_some()
        && explain(survey, entry).is_none()
}

/// Moves the right shard onto the left one's nodes, role by role, and merges it.
fn merge(survey: &Survey<'_>, left: &ShardEntry, right: &ShardEntry) -> Result<Operator, WhyNot> {
    let away = |entry: &ShardEntry| {
        let live = entry.status.replicas.iter().find(|replica| !replica.is_live);
        live.map(|replica| replica.node_id)
    };
    if let Some(node_id) = away(left).or(away(right)) {
        return Err(WhyNot::CatchingUp(node_id));
    }
    let shard =
        crate::shard::Shard::new(survey, right).ok_or(WhyNot::ClassUnknown(right.status.class))?;
    let mut steps = Vec::new();
    let mut come = Vec::new();
    let mut go = Vec::new();
    for role in [ReplicaRole::Voter, ReplicaRole::Learner] {
        let (wanted, present) = (nodes(left, role), nodes(right, role));
        let add: Vec<NodeId> = wanted.difference(&present).copied().collect();
        let remove: Vec<NodeId> = present.difference(&wanted).copied().collect();
        if role == ReplicaRole::Voter && !(add.is_empty() && remove.is_empty()) {
            come.clone_from(&add);
            go.clone_from(&remove);
        }
        steps.extend(add.iter().map(|node_id| Step::AddLearner(*node_id)));
        steps.extend(add.iter().map(|node_id| Step::WaitCaughtUp(*node_id)));
    }
    if !(come.is_empty() && go.is_empty()) {
        let leader = right.status.leader.ok_or(WhyNot::NoLeader)?;
        let may_lead = |entry: &ShardEntry, node_id: &NodeId| {
            let replicas = entry.status.replicas.iter().zip(&entry.slots);
            let mut own = replicas.filter(|(replica, _)| replica.node_id == *node_id);
            own.any(|(_, slot)| survey.sites[*slot as usize].is_open)
        };
        let voters = nodes(right, ReplicaRole::Voter);
        let stays = voters.iter().find(|id| !go.contains(id) && may_lead(right, id));
        if !go.contains(&leader) {
            steps.push(Step::ChangeVoters { add: come, remove: go });
        } else if let Some(heir) = stays {
            steps.push(Step::TransferLeader(*heir));
            steps.push(Step::ChangeVoters { add: come, remove: go });
        } else {
            // Only who stays takes others out: a newcomer has to lead first.
            let heir = come.iter().find(|id| may_lead(left, id)).copied();
            let heir = heir.ok_or(WhyNot::NoLeaderTarget)?;
            go.retain(|node_id| *node_id != leader);
            steps.push(Step::ChangeVoters { add: come, remove: go });
            steps.push(Step::TransferLeader(heir));
            steps.push(Step::ChangeVoters { add: Vec::new(), remove: vec![leader] });
        }
    }
    let left_nodes: BTreeSet<NodeId> =
        left.status.replicas.iter().map(|replica| replica.node_id).collect();
    let gone = right.status.replicas.iter().filter(|other| !left_nodes.contains(&other.node_id));
    steps.extend(gone.map(|replica| Step::RemoveReplica(replica.node_id)));
    steps.push(Step::MergeInto(left.status.shard_id));
    let operator = shard.operator(steps, Reason::Merge);
    survey.check_limits(&operator, right)?;
    Ok(operator)
}

fn nodes(entry: &ShardEntry, role: ReplicaRole) -> BTreeSet<NodeId> {
    let replicas = entry.status.replicas.iter().filter(|replica| replica.role == role);
    replicas.map(|replica| replica.node_id).collect()
}
