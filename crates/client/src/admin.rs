//! The operators' services.

use std::sync::Arc;
use std::time::Duration;

use anchorhold_proto::admin_v1 as admin;
use prost::Message;

use crate::method::{self, Method};
use crate::routes::Target;
use crate::transport::{Call, Transport};
use crate::{ClientConfig, ClientError};

/// A handle on a cluster for its operators. Cheap to clone. Asks the given endpoints in turn.
///
/// A write without a request id gets one, so that its retries have one effect. Methods return a
/// [`ClientError`] when the node refuses, or when the deadline is over.
#[derive(Clone)]
pub struct AdminClient {
    transport: Arc<Transport>,
    deadline: Duration,
}

macro_rules! reads {
    ($($(#[$doc:meta])+ $name:ident($request:ident) -> $reply:ident = $method:ident;)+) => {
        $($(#[$doc])+
        ///
        /// # Errors
        /// As [`AdminClient`] says.
        pub async fn $name(
            &self,
            request: admin::$request,
        ) -> Result<admin::$reply, ClientError> {
            self.call(method::$method, &request, None).await
        })+
    };
}

macro_rules! writes {
    ($($(#[$doc:meta])+ $name:ident($request:ident) -> $reply:ident = $method:ident;)+) => {
        $($(#[$doc])+
        ///
        /// # Errors
        /// As [`AdminClient`] says.
        pub async fn $name(
            &self,
            mut request: admin::$request,
        ) -> Result<admin::$reply, ClientError> {
            if request.request_id.is_empty() {
                request.request_id = self.transport.new_request_id();
            }
            self.call(method::$method, &request, Some(&request.request_id)).await
        })+
    };
}

impl AdminClient {
    /// Makes a handle; the first call connects.
    ///
    /// # Errors
    /// If the configuration cannot work.
    pub fn new(config: ClientConfig) -> Result<Self, ClientError> {
        let deadline = config.deadline;
        Ok(Self { transport: Transport::new(config)?, deadline })
    }

    /// A handle whose calls may take this long, retries included; at most 10 minutes.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }

    writes! {
        /// Creates an account with one API key.
        create_account(CreateAccountRequest) -> CreateAccountResponse = CREATE_ACCOUNT;
        /// Makes an API key.
        create_api_key(CreateApiKeyRequest) -> CreateApiKeyResponse = CREATE_API_KEY;
        /// Makes an API key in place of the older of two.
        rotate_api_key(RotateApiKeyRequest) -> RotateApiKeyResponse = ROTATE_API_KEY;
        /// Revokes an API key.
        revoke_api_key(RevokeApiKeyRequest) -> RevokeApiKeyResponse = REVOKE_API_KEY;
        /// Cuts an account's keys into shards.
        lay_out_account(LayOutAccountRequest) -> LayOutAccountResponse = LAY_OUT_ACCOUNT;
    }

    reads! {
        /// Reads an account.
        get_account(GetAccountRequest) -> GetAccountResponse = GET_ACCOUNT;
        /// Lists one page of accounts.
        list_accounts(ListAccountsRequest) -> ListAccountsResponse = LIST_ACCOUNTS;
        /// Sums the cluster up.
        get_cluster_status(GetClusterStatusRequest) -> GetClusterStatusResponse = GET_CLUSTER_STATUS;
        /// Lists the nodes.
        list_nodes(ListNodesRequest) -> ListNodesResponse = LIST_NODES;
        /// Lists the zones.
        list_zones(ListZonesRequest) -> ListZonesResponse = LIST_ZONES;
        /// Lists one page of shards.
        list_shards(ListShardsRequest) -> ListShardsResponse = LIST_SHARDS;
        /// Digests a replica of the node that is asked.
        get_replica_digest(GetReplicaDigestRequest) -> GetReplicaDigestResponse
            = GET_REPLICA_DIGEST;
        /// Digests all replicas of a shard at one index and compares them.
        compare_replicas(CompareReplicasRequest) -> CompareReplicasResponse = COMPARE_REPLICAS;
        /// Says what a node runs.
        get_server_info(GetServerInfoRequest) -> GetServerInfoResponse = GET_SERVER_INFO;
        /// Says whom the key belongs to.
        who_am_i(WhoAmIRequest) -> WhoAmIResponse = WHO_AM_I;
    }

    // Need no request id: twice is as good as once.
    reads! {
        /// Lets a node give its leaderships away.
        drain_node(DrainNodeRequest) -> DrainNodeResponse = DRAIN_NODE;
        /// Lets a node serve again.
        resume_node(ResumeNodeRequest) -> ResumeNodeResponse = RESUME_NODE;
        /// Expects a node's silence for a while.
        maintain_node(MaintainNodeRequest) -> MaintainNodeResponse = MAINTAIN_NODE;
        /// Lets a node give its replicas away.
        decommission_node(DecommissionNodeRequest) -> DecommissionNodeResponse = DECOMMISSION_NODE;
        /// Says what keeps a node from leaving.
        explain_node(ExplainNodeRequest) -> ExplainNodeResponse = EXPLAIN_NODE;
        /// Says what would be done now, and why the rest is not.
        explain_plan(ExplainPlanRequest) -> ExplainPlanResponse = EXPLAIN_PLAN;
        /// Lists the changes that are under way.
        list_operators(ListOperatorsRequest) -> ListOperatorsResponse = LIST_OPERATORS;
        /// Gives a change up.
        cancel_operator(CancelOperatorRequest) -> CancelOperatorResponse = CANCEL_OPERATOR;
        /// Reads what is planned by itself.
        get_scheduler(GetSchedulerRequest) -> GetSchedulerResponse = GET_SCHEDULER;
        /// Changes what is planned by itself.
        update_scheduler(UpdateSchedulerRequest) -> UpdateSchedulerResponse = UPDATE_SCHEDULER;
        /// Says for each zone what would happen if it died now.
        get_headroom(GetHeadroomRequest) -> GetHeadroomResponse = GET_HEADROOM;
        /// Lets another voter lead a shard.
        transfer_shard(TransferShardRequest) -> TransferShardResponse = TRANSFER_SHARD;
        /// Moves a replica of a shard.
        move_shard(MoveShardRequest) -> MoveShardResponse = MOVE_SHARD;
        /// Makes a shard part of its left neighbour.
        merge_shard(MergeShardRequest) -> MergeShardResponse = MERGE_SHARD;
    }

    /// Gives the space of a node's ballast back. Needs no request id: twice is as good as once.
    ///
    /// # Errors
    /// As [`AdminClient`] says.
    pub async fn release_ballast(
        &self,
        request: admin::ReleaseBallastRequest,
    ) -> Result<admin::ReleaseBallastResponse, ClientError> {
        self.call(method::RELEASE_BALLAST, &request, None).await
    }

    /// Splits a shard. Needs no request id: a split that has taken effect is not made again.
    ///
    /// # Errors
    /// As [`AdminClient`] says.
    pub async fn split_shard(
        &self,
        request: admin::SplitShardRequest,
    ) -> Result<admin::SplitShardResponse, ClientError> {
        self.call(method::SPLIT_SHARD, &request, None).await
    }

    async fn call<Reply>(
        &self,
        method: Method,
        request: &impl Message,
        request_id: Option<&str>,
    ) -> Result<Reply, ClientError>
    where
        Reply: Message + Default + 'static,
    {
        let (body, deadline) = (request.encode_to_vec().into(), self.deadline);
        let target = Target::Any;
        self.transport.call(Call { method, target, body, request_id, deadline }).await
    }
}

impl std::fmt::Debug for AdminClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let config = self.transport.config();
        f.debug_struct("AdminClient").field("config", config).finish_non_exhaustive()
    }
}
