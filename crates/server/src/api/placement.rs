//! `PlacementService`: where replicas and leaders are, why, and what operators want instead.

use std::collections::BTreeMap;
use std::time::Duration;

use anchorhold_model::catalog::{
    CatalogCommand, CatalogOutcome, Operator, OperatorRecord, Reason as Why, SchedulerRecord, Step,
    Wish,
};
use anchorhold_model::{NodeId, ReplicaRole, ShardId, Timestamp};
use anchorhold_placement::headroom::{Risk, ZoneHeadroom, headroom, why_blocked};
use anchorhold_placement::{ClusterView, Refusal, merge_left, plan};
use anchorhold_proto::admin_v1 as wire;
use anchorhold_proto::admin_v1::placement_service_server::PlacementService;
use anchorhold_proto::convert::time_to_wire;
use anchorhold_proto::{Failure, FieldError, Reason};
use tonic::{Request, Response, Status};

use super::account::propose;
use super::cluster::node_state;
use super::{Call, Door};
use crate::authorize::Audience;
use crate::scheduler::view::cluster_view;
use crate::survey::Survey;

/// Longest maintenance of a node.
const MAINTENANCE_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The service.
#[derive(Clone)]
pub struct Placement {
    door: Door,
}

impl Placement {
    /// The service behind a door.
    pub fn new(door: Door) -> Self {
        Self { door }
    }
}

/// One method: its name, its request, and what is done, by the function named last.
macro_rules! methods {
    ($($name:ident($request:ident) -> $reply:ident = $path:literal, $work:ident;)+) => {
        #[tonic::async_trait]
        impl PlacementService for Placement {
            $(async fn $name(
                &self,
                request: Request<wire::$request>,
            ) -> Result<Response<wire::$reply>, Status> {
                self.door.call($path, Audience::Operators, request, $work).await
            })+
        }
    };
}

methods! {
    drain_node(DrainNodeRequest) -> DrainNodeResponse = "DrainNode", drain_node;
    resume_node(ResumeNodeRequest) -> ResumeNodeResponse = "ResumeNode", resume_node;
    maintain_node(MaintainNodeRequest) -> MaintainNodeResponse = "MaintainNode", maintain_node;
    decommission_node(DecommissionNodeRequest) -> DecommissionNodeResponse
        = "DecommissionNode", decommission_node;
    explain_node(ExplainNodeRequest) -> ExplainNodeResponse = "ExplainNode", explain_node;
    explain_plan(ExplainPlanRequest) -> ExplainPlanResponse = "ExplainPlan", explain_plan;
    list_operators(ListOperatorsRequest) -> ListOperatorsResponse
        = "ListOperators", list_operators;
    cancel_operator(CancelOperatorRequest) -> CancelOperatorResponse
        = "CancelOperator", cancel_operator;
    get_scheduler(GetSchedulerRequest) -> GetSchedulerResponse = "GetScheduler", get_scheduler;
    update_scheduler(UpdateSchedulerRequest) -> UpdateSchedulerResponse
        = "UpdateScheduler", update_scheduler;
    get_headroom(GetHeadroomRequest) -> GetHeadroomResponse = "GetHeadroom", get_headroom;
    transfer_shard(TransferShardRequest) -> TransferShardResponse
        = "TransferShard", transfer_shard;
    move_shard(MoveShardRequest) -> MoveShardResponse = "MoveShard", move_shard;
    merge_shard(MergeShardRequest) -> MergeShardResponse = "MergeShard", merge_shard;
}

async fn wish(
    call: &Call,
    node_id: u64,
    wish: Wish,
    maintenance_until: Option<Timestamp>,
) -> Result<(), Failure> {
    let node_id = NodeId(node_id);
    let command = CatalogCommand::SetNodeWish { node_id, wish, maintenance_until };
    propose(call, command).await.map(drop)
}

async fn drain_node(
    call: Call,
    request: wire::DrainNodeRequest,
) -> Result<wire::DrainNodeResponse, Failure> {
    wish(&call, request.node_id, Wish::Drain, None).await?;
    Ok(wire::DrainNodeResponse {})
}

async fn resume_node(
    call: Call,
    request: wire::ResumeNodeRequest,
) -> Result<wire::ResumeNodeResponse, Failure> {
    wish(&call, request.node_id, Wish::Serve, None).await?;
    Ok(wire::ResumeNodeResponse {})
}

async fn maintain_node(
    call: Call,
    request: wire::MaintainNodeRequest,
) -> Result<wire::MaintainNodeResponse, Failure> {
    let duration = request.duration.and_then(|duration| Duration::try_from(duration).ok());
    let duration = duration
        .filter(|duration| Duration::from_secs(1) <= *duration && *duration <= MAINTENANCE_MAX)
        .ok_or_else(|| FieldError::invalid("duration", "must be from 1 s to 7 days"))?;
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let until = Timestamp(call.core.clock.wall().0.saturating_add(millis));
    wish(&call, request.node_id, Wish::Drain, Some(until)).await?;
    Ok(wire::MaintainNodeResponse { until_time: Some(time_to_wire(until)) })
}

async fn decommission_node(
    call: Call,
    request: wire::DecommissionNodeRequest,
) -> Result<wire::DecommissionNodeResponse, Failure> {
    wish(&call, request.node_id, Wish::Leave, None).await?;
    Ok(wire::DecommissionNodeResponse {})
}

/// The cluster as the planner would see it now.
async fn look(call: &Call) -> ClusterView {
    view_of(call, &call.core.survey().await)
}

fn view_of(call: &Call, survey: &Survey) -> ClusterView {
    // Only the node that leads the catalog has seen anything.
    let reports = survey.reports.values();
    let seen = reports.map(|report| &report.seen).find(|seen| !seen.is_empty());
    let nothing = BTreeMap::new();
    cluster_view(survey, &call.core.catalog(), &call.core.placement, seen.unwrap_or(&nothing))
}

async fn explain_node(
    call: Call,
    request: wire::ExplainNodeRequest,
) -> Result<wire::ExplainNodeResponse, Failure> {
    let node_id = NodeId(request.node_id);
    let catalog = call.core.catalog();
    let known = catalog.nodes.get(&node_id).map(|node| node.state);
    let state = known
        .ok_or_else(|| Failure::new(Reason::NodeNotFound, format!("there is no node {node_id}")))?;
    let view = look(&call).await;
    let config = call.core.placement.planning(&catalog.scheduler);
    let departure = why_blocked(&view, &config, call.core.clock.wall(), node_id);
    let blocked = departure.blocked.iter().map(|one| wire::Blocked {
        cause: one.why.to_string(),
        remedy: one.why.remedy().to_owned(),
        shards: one.count,
        shard_ids: one.shards.iter().map(|shard| shard.0).collect(),
    });
    // The planner does not know that nobody asks it.
    let is_paused = catalog.scheduler.is_paused && 0 < departure.ready;
    let paused = is_paused.then(|| wire::Blocked {
        cause: "scheduler paused".to_owned(),
        remedy: "resume the scheduler".to_owned(),
        shards: departure.ready,
        shard_ids: Vec::new(),
    });
    Ok(wire::ExplainNodeResponse {
        state: node_state(state, true).into(),
        replicas: departure.replicas,
        moving: departure.moving,
        ready: departure.ready,
        leaders: view.shards().filter(|shard| shard.leader == Some(node_id)).count() as u64,
        blocked: blocked.chain(paused).collect(),
    })
}

async fn explain_plan(
    call: Call,
    _: wire::ExplainPlanRequest,
) -> Result<wire::ExplainPlanResponse, Failure> {
    let catalog = call.core.catalog();
    let view = look(&call).await;
    let config = call.core.placement.planning(&catalog.scheduler);
    let plan = plan(&view, &config, call.core.clock.wall(), call.core.random());
    Ok(wire::ExplainPlanResponse {
        operators: plan.operators.iter().map(operator).collect(),
        refusals: plan.refusals.iter().map(refusal).collect(),
        paused: catalog.scheduler.is_paused,
    })
}

fn operator(operator: &Operator) -> wire::Operator {
    wire::Operator {
        number: 0,
        shard_id: operator.shard_id.0,
        steps: operator.steps.iter().map(ToString::to_string).collect(),
        reason: operator.reason.to_string(),
        start_time: None,
        give_up_time: None,
    }
}

fn under_way(record: &OperatorRecord) -> wire::Operator {
    wire::Operator {
        number: record.number,
        start_time: Some(time_to_wire(record.start_time)),
        give_up_time: Some(time_to_wire(record.deadline)),
        ..operator(&record.operator)
    }
}

fn refusal(refusal: &Refusal) -> wire::Refusal {
    wire::Refusal {
        shard_id: refusal.shard_id.0,
        need: refusal.need.map(|need| need.to_string()).unwrap_or_default(),
        cause: refusal.why.to_string(),
        remedy: refusal.why.remedy().to_owned(),
    }
}

async fn list_operators(
    call: Call,
    _: wire::ListOperatorsRequest,
) -> Result<wire::ListOperatorsResponse, Failure> {
    let operators = call.core.catalog().operators.values().map(under_way).collect();
    Ok(wire::ListOperatorsResponse { operators })
}

async fn cancel_operator(
    call: Call,
    request: wire::CancelOperatorRequest,
) -> Result<wire::CancelOperatorResponse, Failure> {
    let shard_id = ShardId(request.shard_id);
    let known = call.core.catalog().operators.get(&shard_id).map(|record| record.number);
    if let Some(number) = known {
        propose(&call, CatalogCommand::FinishOperator { shard_id, number }).await?;
    }
    Ok(wire::CancelOperatorResponse { canceled: known.is_some() })
}

fn scheduler(record: SchedulerRecord) -> wire::Scheduler {
    wire::Scheduler {
        paused: record.is_paused,
        operators_max: record.operators_max.unwrap_or(0),
        incoming_max: record.incoming_max.unwrap_or(0),
    }
}

async fn get_scheduler(
    call: Call,
    _: wire::GetSchedulerRequest,
) -> Result<wire::GetSchedulerResponse, Failure> {
    let scheduler = scheduler(call.core.catalog().scheduler);
    Ok(wire::GetSchedulerResponse { scheduler: Some(scheduler) })
}

async fn update_scheduler(
    call: Call,
    request: wire::UpdateSchedulerRequest,
) -> Result<wire::UpdateSchedulerResponse, Failure> {
    let wanted = request.scheduler.ok_or_else(|| FieldError::missing("scheduler"))?;
    let set = |number: u32| Some(number).filter(|number| 0 < *number);
    let record = SchedulerRecord {
        is_paused: wanted.paused,
        operators_max: set(wanted.operators_max),
        incoming_max: set(wanted.incoming_max),
    };
    propose(&call, CatalogCommand::SetScheduler { scheduler: record }).await?;
    Ok(wire::UpdateSchedulerResponse { scheduler: Some(scheduler(record)) })
}

async fn get_headroom(
    call: Call,
    _: wire::GetHeadroomRequest,
) -> Result<wire::GetHeadroomResponse, Failure> {
    let survey = call.core.survey().await;
    let config = call.core.placement.planning(&call.core.catalog().scheduler);
    let zones = headroom(&view_of(&call, &survey), &config);
    let zones = zones.iter().map(|zone| {
        let mut answer = zone_headroom(zone);
        // The planner knows nothing of the catalog's own group.
        if !survey.catalog_survives_without(&zone.region, &zone.zone) {
            answer.risks.insert(0, "the catalog would have no quorum".to_owned());
            answer.shard_ids_at_risk.insert(0, ShardId::CATALOG.0);
        }
        answer
    });
    Ok(wire::GetHeadroomResponse { zones: zones.collect() })
}

fn zone_headroom(zone: &ZoneHeadroom) -> wire::ZoneHeadroom {
    let percent = |permille: u64| permille / 10;
    let risks = zone.risks.iter().map(|risk| match risk {
        Risk::Quorum { shards } => format!("{shards} shards would have no quorum"),
        Risk::Load { permille } => {
            format!("the others would lead {} % of what they can", percent(*permille))
        }
        Risk::Disk { permille } => {
            format!("the others would hold {} % of what they can", percent(*permille))
        }
    });
    wire::ZoneHeadroom {
        region: zone.region.clone(),
        zone: zone.zone.clone(),
        nodes: zone.nodes,
        leaders: zone.leaders,
        bytes: zone.bytes,
        load_permille: zone.load_permille,
        disk_permille: zone.disk_permille,
        shard_ids_at_risk: zone.shards_at_risk.iter().map(|shard| shard.0).collect(),
        risks: risks.collect(),
    }
}

async fn transfer_shard(
    call: Call,
    request: wire::TransferShardRequest,
) -> Result<wire::TransferShardResponse, Failure> {
    let to = NodeId(request.node_id);
    let view = look(&call).await;
    let shard = find(&view, request.shard_id)?;
    let votes = |node_id| {
        shard.replicas.iter().any(|one| one.node_id == node_id && one.role == ReplicaRole::Voter)
    };
    if !votes(to) {
        return Err(impossible(format!("{to} has no vote in {}", shard.shard_id)));
    }
    if shard.leader == Some(to) {
        return Ok(wire::TransferShardResponse {});
    }
    let reason = Why::LeaderBalance(shard.leader.unwrap_or(to));
    start(&call, shard, vec![Step::TransferLeader(to)], reason).await?;
    Ok(wire::TransferShardResponse {})
}

async fn move_shard(
    call: Call,
    request: wire::MoveShardRequest,
) -> Result<wire::MoveShardResponse, Failure> {
    let (from, to) = (NodeId(request.from_node_id), NodeId(request.to_node_id));
    let view = look(&call).await;
    let shard = find(&view, request.shard_id)?;
    let role_on = |node_id| {
        shard.replicas.iter().find(|one| one.node_id == node_id).map(|replica| replica.role)
    };
    let Some(role) = role_on(from) else {
        return Err(impossible(format!("{from} has no replica of {}", shard.shard_id)));
    };
    if role_on(to).is_some() {
        return Err(impossible(format!("{to} has a replica of {} already", shard.shard_id)));
    }
    if view.node(to).is_none() {
        return Err(Failure::new(Reason::NodeNotFound, format!("there is no node {to}")));
    }
    let mut steps = vec![Step::AddLearner(to), Step::WaitCaughtUp(to)];
    if role == ReplicaRole::Voter {
        if shard.leader == Some(from) {
            let others = shard
                .replicas
                .iter()
                .filter(|one| one.node_id != from && one.role == ReplicaRole::Voter && one.is_live);
            let heir = others.min_by_key(|one| (one.lag_entries, one.node_id));
            let heir = heir.ok_or_else(|| impossible("no other voter can lead".to_owned()))?;
            steps.push(Step::TransferLeader(heir.node_id));
        }
        steps.push(Step::ChangeVoters { add: vec![to], remove: vec![from] });
    }
    steps.push(Step::RemoveReplica(from));
    start(&call, shard, steps, Why::ReplicaBalance(from)).await?;
    Ok(wire::MoveShardResponse {})
}

async fn merge_shard(
    call: Call,
    request: wire::MergeShardRequest,
) -> Result<wire::MergeShardResponse, Failure> {
    let catalog = call.core.catalog();
    let shard_id = ShardId(request.shard_id);
    if let Some(target) = catalog.merged_shards.get(&shard_id) {
        return Ok(wire::MergeShardResponse { into_shard_id: target.0 });
    }
    let view = look(&call).await;
    let shard = find(&view, request.shard_id)?;
    let config = call.core.placement.planning(&catalog.scheduler);
    let under_way = catalog.operators.get(&shard_id).map(|record| &record.operator);
    if let Some(target) = under_way.and_then(Operator::merges_into) {
        return Ok(wire::MergeShardResponse { into_shard_id: target.0 });
    }
    let planned = merge_left(&view, &config, call.core.clock.wall(), shard_id);
    let planned = planned.ok_or_else(|| {
        let message =
            format!("{shard_id} has no left neighbour of its account and class to become part of");
        Failure::new(Reason::MergeImpossible, message)
    })?;
    let operator = planned.map_err(|why| {
        let message = format!("{shard_id} cannot be merged now: {why}; {}", why.remedy());
        Failure::new(Reason::ShardBusy, message)
    })?;
    let into = operator.merges_into().unwrap_or(shard_id);
    start(&call, shard, operator.steps, Why::Merge).await?;
    Ok(wire::MergeShardResponse { into_shard_id: into.0 })
}

fn impossible(message: String) -> Failure {
    Failure::new(Reason::MoveImpossible, message)
}

fn find(view: &ClusterView, shard_id: u64) -> Result<&anchorhold_placement::ShardStatus, Failure> {
    let shard_id = ShardId(shard_id);
    let missing = || Failure::new(Reason::ShardNotFound, format!("there is no shard {shard_id}"));
    view.shard(shard_id).ok_or_else(missing)
}

/// Starts an operator by hand.
async fn start(
    call: &Call,
    shard: &anchorhold_placement::ShardStatus,
    steps: Vec<Step>,
    reason: Why,
) -> Result<(), Failure> {
    let live = shard.replicas.iter().filter(|one| one.is_live && one.role == ReplicaRole::Voter);
    let operator = Operator {
        shard_id: shard.shard_id,
        epoch: shard.epoch,
        steps,
        reason,
        live_voters: live.count(),
    };
    let now = call.core.clock.wall();
    let ms_max = crate::scheduler::ms_max(&operator.steps, &call.core.placement);
    let deadline = Timestamp(now.0.saturating_add(ms_max));
    let command = CatalogCommand::StartOperators { operators: vec![operator], deadline };
    let outcome = propose(call, command).await?;
    if outcome == (CatalogOutcome::OperatorsStarted { shards: vec![shard.shard_id] }) {
        return Ok(());
    }
    let message = format!("a change of {} is under way", shard.shard_id);
    Err(Failure::new(Reason::ShardBusy, message))
}
