//! `ClusterService`: what the cluster is made of and how it is.

use std::collections::BTreeMap;
use std::time::Duration;

use anchorhold_consensus::Trouble;
use anchorhold_model::catalog::{CatalogState, NodeRecord, NodeState};
use anchorhold_model::{AccountNumber, Key, KeyRange, NodeId, ShardId};
use anchorhold_proto::admin_v1 as wire;
use anchorhold_proto::admin_v1::cluster_service_server::ClusterService;
use anchorhold_proto::convert::{
    duration_to_wire, epoch_to_wire, key_from_wire, range_to_wire, role_to_wire, time_to_wire,
};
use anchorhold_proto::limits::page_size;
use anchorhold_proto::text::uuid_text;
use anchorhold_proto::{Failure, PageToken, QueryHash, Reason};
use anchorhold_storage::DiskState;
use tonic::{Request, Response, Status};

use super::{Call, Door};
use crate::authorize::{Audience, Caller};
use crate::report::{NodeReport, ReplicaReport};
use crate::request::{self, NodeReply, NodeRequest};
use crate::survey::{Health, ShardSurvey, Survey};

/// The service.
#[derive(Clone)]
pub struct Cluster {
    door: Door,
}

impl Cluster {
    /// The service behind a door.
    pub fn new(door: Door) -> Self {
        Self { door }
    }
}

/// The packages that a node serves.
const API_VERSIONS: [&str; 2] = ["anchorhold.v1", "anchorhold.admin.v1"];

#[tonic::async_trait]
impl ClusterService for Cluster {
    async fn get_cluster_status(
        &self,
        request: Request<wire::GetClusterStatusRequest>,
    ) -> Result<Response<wire::GetClusterStatusResponse>, Status> {
        self.door
            .call("GetClusterStatus", Audience::Operators, request, |call, _| async move {
                Ok(status(&call, &call.core.survey().await))
            })
            .await
    }

    async fn list_nodes(
        &self,
        request: Request<wire::ListNodesRequest>,
    ) -> Result<Response<wire::ListNodesResponse>, Status> {
        self.door
            .call("ListNodes", Audience::Operators, request, |call, _| async move {
                let survey = call.core.survey().await;
                let now = call.core.clock.wall();
                let nodes = survey.nodes().map(|record| node(&survey, record, now));
                Ok(wire::ListNodesResponse { nodes: nodes.collect() })
            })
            .await
    }

    async fn release_ballast(
        &self,
        request: Request<wire::ReleaseBallastRequest>,
    ) -> Result<Response<wire::ReleaseBallastResponse>, Status> {
        self.door
            .call("ReleaseBallast", Audience::Operators, request, |call, request| async move {
                release_ballast(&call, &request).await
            })
            .await
    }

    async fn list_zones(
        &self,
        request: Request<wire::ListZonesRequest>,
    ) -> Result<Response<wire::ListZonesResponse>, Status> {
        self.door
            .call("ListZones", Audience::Operators, request, |call, _| async move {
                Ok(wire::ListZonesResponse { zones: zones(&call.core.survey().await) })
            })
            .await
    }

    async fn list_shards(
        &self,
        request: Request<wire::ListShardsRequest>,
    ) -> Result<Response<wire::ListShardsResponse>, Status> {
        self.door
            .call("ListShards", Audience::Operators, request, |call, request| async move {
                list_shards(&call.core.survey().await, &request)
            })
            .await
    }

    async fn split_shard(
        &self,
        request: Request<wire::SplitShardRequest>,
    ) -> Result<Response<wire::SplitShardResponse>, Status> {
        self.door
            .call("SplitShard", Audience::Operators, request, |call, request| async move {
                split_shard(&call, &request).await
            })
            .await
    }

    async fn get_replica_digest(
        &self,
        request: Request<wire::GetReplicaDigestRequest>,
    ) -> Result<Response<wire::GetReplicaDigestResponse>, Status> {
        self.door.call("GetReplicaDigest", Audience::Operators, request, replica_digest).await
    }

    async fn compare_replicas(
        &self,
        request: Request<wire::CompareReplicasRequest>,
    ) -> Result<Response<wire::CompareReplicasResponse>, Status> {
        self.door.call("CompareReplicas", Audience::Operators, request, compare_replicas).await
    }

    async fn get_server_info(
        &self,
        request: Request<wire::GetServerInfoRequest>,
    ) -> Result<Response<wire::GetServerInfoResponse>, Status> {
        self.door
            .call("GetServerInfo", Audience::Anyone, request, |call, _| async move {
                Ok(server_info(&call))
            })
            .await
    }

    async fn who_am_i(
        &self,
        request: Request<wire::WhoAmIRequest>,
    ) -> Result<Response<wire::WhoAmIResponse>, Status> {
        self.door
            .call("WhoAmI", Audience::Anyone, request, |call, _| async move { Ok(who(&call)) })
            .await
    }
}

fn status(call: &Call, survey: &Survey) -> wire::GetClusterStatusResponse {
    let core = &call.core;
    let (health, problems) = survey.health();
    let catalog = survey.catalog_shard();
    let mut shards = survey.shards();
    let sum = |figure: fn(&ReplicaReport) -> u64| {
        let best = |shard: &ShardSurvey<'_>| shard.replicas.values().map(|r| figure(r)).max();
        shards.iter().filter_map(best).sum::<u64>()
    };
    let (anchors, bytes) = (sum(|replica| replica.anchors), sum(|replica| replica.bytes));
    let zones = zones(survey);
    let leader = catalog.leader.map_or(0, |(node, _)| node.0);
    shards.push(catalog);
    let health = match health {
        Health::Healthy => wire::Health::Healthy,
        Health::Degraded => wire::Health::Degraded,
        Health::Unavailable => wire::Health::Unavailable,
    };
    let identity = core.host.identity();
    wire::GetClusterStatusResponse {
        cluster_id: uuid_text(identity.cluster_id),
        cluster_epoch: u32::from(identity.cluster_epoch),
        health: health.into(),
        problems,
        nodes: count(survey.nodes().count()),
        nodes_up: count(survey.nodes().filter(|node| survey.is_up(node.node_id)).count()),
        zones: count(zones.len()),
        zones_up: count(zones.iter().filter(|zone| 0 < zone.nodes_up).count()),
        shards: count(shards.len()),
        shards_without_leader: count(shards.iter().filter(|s| s.leader.is_none()).count()),
        shards_degraded: count(shards.iter().filter(|shard| shard.degraded).count()),
        accounts: count(survey.catalog.accounts.len()),
        anchors,
        bytes,
        catalog_leader_node_id: leader,
        node_id: core.place.node.0,
        // Elsewhere the view's age is not measured.
        view_age: (leader == core.place.node.0).then(|| duration_to_wire(Duration::ZERO)),
    }
}

fn node(survey: &Survey, record: &NodeRecord, now: anchorhold_model::Timestamp) -> wire::Node {
    let report = survey.reports.get(&record.node_id);
    let replicas = || report.into_iter().flat_map(|report| report.replicas.values());
    let leaders = replicas().filter(|replica| replica.leads).count();
    wire::Node {
        node_id: record.node_id.0,
        region: record.region.clone(),
        zone: record.zone.clone(),
        state: node_state(record.state, report.is_some()).into(),
        disk: report.map_or(wire::DiskState::Unspecified, disk_state).into(),
        client_address: record.client_address.clone(),
        peer_address: record.peer_address.clone(),
        version: record.version.clone(),
        leaders: count(leaders),
        replicas: count(replicas().count()),
        anchors: replicas().map(|replica| replica.anchors).sum(),
        disk_bytes_used: report.map_or(0, |report| report.disk_bytes),
        disk_bytes_free: report.map_or(0, |report| report.disk_bytes_free),
        start_time: report.map(|report| time_to_wire(report.started)),
        last_report_time: report.map(|_| time_to_wire(now)),
        ballast_bytes: report.map_or(0, |report| report.ballast_bytes),
        troubles: report
            .map(|report| report.troubles.iter().map(|one| trouble(*one).into()).collect())
            .unwrap_or_default(),
        clock_offset: report.and_then(|report| {
            let offset = report.clock_offset_ms?;
            let nanos = i32::try_from(offset % 1_000 * 1_000_000).unwrap_or(0);
            Some(prost_types::Duration { seconds: offset / 1_000, nanos })
        }),
        fsync_p99: report.and_then(|report| {
            Some(duration_to_wire(Duration::from_micros(report.fsync_p99_micros?)))
        }),
    }
}

fn disk_state(report: &NodeReport) -> wire::DiskState {
    match DiskState::from_number(report.disk) {
        DiskState::Normal => wire::DiskState::Normal,
        DiskState::AlmostFull => wire::DiskState::AlmostFull,
        DiskState::Full => wire::DiskState::Full,
    }
}

fn trouble(trouble: Trouble) -> wire::NodeTrouble {
    match trouble {
        Trouble::DiskAlmostFull => wire::NodeTrouble::DiskAlmostFull,
        Trouble::DiskFull => wire::NodeTrouble::DiskFull,
        Trouble::DiskStalled => wire::NodeTrouble::DiskStalled,
        Trouble::ClockOff => wire::NodeTrouble::ClockOff,
    }
}

async fn release_ballast(
    call: &Call,
    request: &wire::ReleaseBallastRequest,
) -> Result<wire::ReleaseBallastResponse, Failure> {
    let core = &call.core;
    let node = NodeId(request.node_id);
    let no_answer = |reason: &str| {
        let message = format!("node {node} did not give its ballast back: {reason}");
        Failure::new(Reason::ShardUnavailable, message)
    };
    let released = if node == core.place.node {
        core.release_ballast()
    } else if core.catalog().nodes.contains_key(&node) {
        let question = request::encode(&NodeRequest::ReleaseBallast)
            .map_err(|error| no_answer(&error.to_string()))?;
        let answer = core.host.call(node, question, call.deadline.remaining()).await;
        let answer = answer.map_err(|error| no_answer(&error.to_string()))?;
        match request::decode::<NodeReply>(&answer) {
            Ok(NodeReply::BallastReleased(released)) => released,
            Ok(
                NodeReply::Status(_)
                | NodeReply::Shard(_)
                | NodeReply::Operated(_)
                | NodeReply::Digested(_),
            ) => {
                return Err(no_answer("it answered something else"));
            }
            Err(error) => return Err(no_answer(&error.to_string())),
        }
    } else {
        return Err(Failure::new(Reason::NodeNotFound, format!("there is no node {node}")));
    };
    let bytes_released = released.map_err(|reason| no_answer(&reason))?;
    Ok(wire::ReleaseBallastResponse { bytes_released })
}

async fn split_shard(
    call: &Call,
    request: &wire::SplitShardRequest,
) -> Result<wire::SplitShardResponse, Failure> {
    let at = match request.at.is_empty() {
        true => None,
        false => Some(key_from_wire(&request.at).map_err(|error| error.within("at"))?),
    };
    let shard = ShardId(request.shard_id);
    let version = (request.version != 0).then_some(request.version);
    let done = call.core.split_shard(shard, version, at, &call.deadline).await?;
    Ok(wire::SplitShardResponse {
        shard_id: done.parent.shard_id.0,
        new_shard_id: done.child.shard_id.0,
        at: done.child.range.start.to_bytes().to_vec().into(),
    })
}

/// What the catalog says of a node's life, corrected by whether it answers now.
pub(super) fn node_state(state: NodeState, answers: bool) -> wire::NodeState {
    match (state, answers) {
        (NodeState::Removed, _) => wire::NodeState::Removed,
        (NodeState::Decommissioning, _) => wire::NodeState::Decommissioning,
        (NodeState::Draining, _) => wire::NodeState::Draining,
        (NodeState::Returning, true) => wire::NodeState::Returning,
        (NodeState::Joining | NodeState::Up | NodeState::Suspect | NodeState::Down, true) => {
            wire::NodeState::Up
        }
        (NodeState::Down | NodeState::Returning | NodeState::Joining, false) => {
            wire::NodeState::Down
        }
        (NodeState::Up | NodeState::Suspect, false) => wire::NodeState::Suspect,
    }
}

fn zones(survey: &Survey) -> Vec<wire::Zone> {
    let mut zones: BTreeMap<(String, String), wire::Zone> = BTreeMap::new();
    for record in survey.nodes() {
        let zone = zones.entry((record.region.clone(), record.zone.clone())).or_insert_with(|| {
            wire::Zone {
                region: record.region.clone(),
                zone: record.zone.clone(),
                survivable: survey.survives_without(&record.region, &record.zone),
                ..wire::Zone::default()
            }
        });
        zone.nodes += 1;
        if let Some(report) = survey.reports.get(&record.node_id) {
            zone.nodes_up += 1;
            zone.replicas += count(report.replicas.len());
            zone.leaders += count(report.replicas.values().filter(|r| r.leads).count());
        }
    }
    zones.into_values().collect()
}

fn list_shards(
    survey: &Survey,
    request: &wire::ListShardsRequest,
) -> Result<wire::ListShardsResponse, Failure> {
    let query = QueryHash::of("ListShards", request.account, &[]);
    let after = PageToken::decode(&request.page_token, query)?.map(|token| Key(token.after));
    let size = page_size(request.page_size) as usize;
    let meant = if request.account == 0 {
        KeyRange::FULL
    } else {
        KeyRange::of_account(AccountNumber(request.account))
    };
    let mut all = survey.shards();
    all.retain(|shard| shard.descriptor.range.overlaps(&meant));
    let mut shards: Vec<wire::Shard> = Vec::new();
    if after.is_none() && request.account == 0 {
        shards.push(shard(&survey.catalog, &survey.catalog_shard()));
    }
    let rest =
        all.iter().filter(|one| after.is_none_or(|after| after < one.descriptor.range.start));
    let mut last = None;
    let mut is_more = false;
    for one in rest {
        if size <= shards.len() {
            is_more = true;
            break;
        }
        shards.push(shard(&survey.catalog, one));
        last = Some(one.descriptor.range.start);
    }
    let next = last.filter(|_| is_more).map(|last| PageToken { after: last.0 }.encode(query));
    Ok(wire::ListShardsResponse { shards, next_page_token: next.unwrap_or_default() })
}

fn shard(catalog: &CatalogState, survey: &ShardSurvey<'_>) -> wire::Shard {
    let descriptor = &survey.descriptor;
    let best = survey
        .leader
        .map(|(_, replica)| replica)
        .or_else(|| survey.replicas.values().copied().max_by_key(|replica| replica.applied_index));
    let last = best.and_then(|replica| replica.last_index).unwrap_or(0);
    let replicas = descriptor.replicas.iter().map(|replica| {
        let report = survey.replicas.get(&replica.node_id);
        let applied = report.and_then(|report| report.applied_index).unwrap_or(0);
        wire::ShardReplica {
            replica_id: replica.replica_id.0,
            node_id: replica.node_id.0,
            role: role_to_wire(replica.role).into(),
            live: report.is_some_and(|report| !report.stopped),
            applied_index: applied,
            lag_entries: last.saturating_sub(applied),
            last_sync_time: None,
        }
    });
    let is_catalog = descriptor.shard_id == ShardId::CATALOG;
    let class = catalog.classes.get(&descriptor.class);
    wire::Shard {
        shard_id: descriptor.shard_id.0,
        range: (!is_catalog).then(|| range_to_wire(&descriptor.range)),
        epoch: Some(epoch_to_wire(descriptor.epoch)),
        placement_class: class.map(|class| class.name.clone()).unwrap_or_default(),
        leader_node_id: survey.leader.map_or(0, |(node, _)| node.0),
        term: survey.leader.map_or(0, |(_, replica)| replica.term),
        revision: best.map_or(0, |replica| replica.revision),
        anchors: best.map_or(0, |replica| replica.anchors),
        bytes: best.map_or(0, |replica| replica.bytes),
        replicas: replicas.collect(),
        degraded: survey.degraded,
    }
}

async fn replica_digest(
    call: Call,
    request: wire::GetReplicaDigestRequest,
) -> Result<wire::GetReplicaDigestResponse, Failure> {
    let shard = ShardId(request.shard_id);
    let digested = call.core.digest(shard, None, call.deadline.remaining(), u64::MAX).await;
    let found = digested.map_err(|error| Failure::new(Reason::ShardUnavailable, error))?;
    Ok(wire::GetReplicaDigestResponse {
        node_id: call.core.place.node.0,
        applied_index: found.applied_index,
        revision: found.revision,
        anchors: found.anchors,
        digest: found.digest,
    })
}

async fn compare_replicas(
    call: Call,
    request: wire::CompareReplicasRequest,
) -> Result<wire::CompareReplicasResponse, Failure> {
    let shard = ShardId(request.shard_id);
    let budget = call.deadline.remaining();
    let compared = call.core.compare_replicas(shard, u64::MAX, budget).await;
    let compared = compared.map_err(|error| Failure::new(Reason::ShardUnavailable, error))?;
    let replicas = compared.replicas.iter().map(|(node, held)| {
        let (held, error) = match held {
            Ok(held) => (Some(held), String::new()),
            Err(error) => (None, error.clone()),
        };
        wire::ComparedReplica {
            node_id: node.0,
            revision: held.map_or(0, |held| held.revision),
            anchors: held.map_or(0, |held| held.anchors),
            digest: held.map(|held| held.digest.clone()).unwrap_or_default(),
            error,
        }
    });
    Ok(wire::CompareReplicasResponse {
        applied_index: compared.index,
        different: compared.is_different(),
        replicas: replicas.collect(),
    })
}

fn server_info(call: &Call) -> wire::GetServerInfoResponse {
    let core = &call.core;
    wire::GetServerInfoResponse {
        node_id: core.place.node.0,
        cluster_id: uuid_text(core.host.identity().cluster_id),
        version: crate::VERSION.to_owned(),
        api_versions: API_VERSIONS.map(str::to_owned).to_vec(),
        features: Vec::new(),
        region: core.place.region.clone(),
        zone: core.place.zone.clone(),
        start_time: Some(time_to_wire(core.started)),
    }
}

fn who(call: &Call) -> wire::WhoAmIResponse {
    match &call.caller {
        Caller::Admin => wire::WhoAmIResponse { admin: true, ..wire::WhoAmIResponse::default() },
        Caller::Account { number, key_id } => {
            let catalog = call.core.catalog();
            let account = catalog.accounts.get(number);
            wire::WhoAmIResponse {
                admin: false,
                account: number.0,
                account_name: account.map(|account| account.name.clone()).unwrap_or_default(),
                key_id: key_id.clone(),
            }
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
