//! `RoutingService`: where the caller's shards are, for clients that save a hop.

use std::collections::BTreeSet;

use anchorhold_model::KeyRange;
use anchorhold_proto::convert::{epoch_to_wire, range_to_wire, role_to_wire};
use anchorhold_proto::v1::routing_service_server::RoutingService;
use anchorhold_proto::{Failure, v1};
use tonic::{Request, Response, Status};

use super::{Call, Door};
use crate::authorize::Audience;

/// The service.
#[derive(Clone)]
pub struct Routing {
    door: Door,
}

impl Routing {
    /// The service behind a door.
    pub fn new(door: Door) -> Self {
        Self { door }
    }
}

#[tonic::async_trait]
impl RoutingService for Routing {
    async fn get_routes(
        &self,
        request: Request<v1::GetRoutesRequest>,
    ) -> Result<Response<v1::GetRoutesResponse>, Status> {
        self.door
            .call("GetRoutes", Audience::Accounts, request, |call, _| async move { routes(&call) })
            .await
    }
}

fn routes(call: &Call) -> Result<v1::GetRoutesResponse, Failure> {
    let account = call.account()?;
    let core = &call.core;
    let catalog = core.catalog();
    let table = core.routes.table();
    let mut named = BTreeSet::new();
    let mut routes = Vec::new();
    for shard in table.overlapping(&KeyRange::of_account(account)) {
        named.extend(shard.replicas.iter().map(|replica| replica.node_id));
        let heard = core.host.replica(shard.shard_id).and_then(|replica| replica.leader());
        let heard = heard.map(|leader| leader.node_id);
        let leader = heard.or_else(|| core.routes.leader(shard.shard_id));
        let replicas = shard.replicas.iter().map(|replica| v1::RouteReplica {
            node_id: replica.node_id.0,
            role: role_to_wire(replica.role).into(),
        });
        routes.push(v1::Route {
            range: Some(range_to_wire(&shard.range)),
            shard_id: shard.shard_id.0,
            epoch: Some(epoch_to_wire(shard.epoch)),
            leader_node_id: leader.map_or(0, |leader| leader.0),
            replicas: replicas.collect(),
        });
    }
    let nodes = named.iter().filter_map(|node| catalog.nodes.get(node));
    let nodes = nodes.map(|node| v1::NodeEndpoint {
        node_id: node.node_id.0,
        address: node.client_address.clone(),
        region: node.region.clone(),
        zone: node.zone.clone(),
    });
    Ok(v1::GetRoutesResponse {
        account: account.0,
        routes,
        nodes: nodes.collect(),
        node_id: core.place.node.0,
    })
}
