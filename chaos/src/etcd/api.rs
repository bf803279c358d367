//! The part of etcd's gRPC API that is needed, written down by hand.
//!
//! Source: `api/etcdserverpb/rpc.proto` and `api/mvccpb/kv.proto` of etcd 3.4; tags are theirs.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use prost::Message;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, Message)]
pub(super) struct ResponseHeader {
    #[prost(uint64, tag = "2")]
    pub(super) member_id: u64,
    #[prost(int64, tag = "3")]
    pub(super) revision: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct KeyValue {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) key: Vec<u8>,
    #[prost(int64, tag = "3")]
    pub(super) mod_revision: i64,
    #[prost(bytes = "vec", tag = "5")]
    pub(super) value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) range_end: Vec<u8>,
    /// Answered by the member alone, without asking a quorum.
    #[prost(bool, tag = "7")]
    pub(super) serializable: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RangeResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) header: Option<ResponseHeader>,
    #[prost(message, repeated, tag = "2")]
    pub(super) kvs: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PutResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) header: Option<ResponseHeader>,
}

#[derive(Clone, PartialEq, Message)]
struct DeleteRangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct DeleteRangeResponse {
    #[prost(int64, tag = "2")]
    deleted: i64,
}

/// `target` 2 is the revision of the last change.
#[derive(Clone, PartialEq, Message)]
struct Compare {
    #[prost(int32, tag = "2")]
    target: i32,
    #[prost(bytes = "vec", tag = "3")]
    key: Vec<u8>,
    #[prost(int64, optional, tag = "6")]
    mod_revision: Option<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct RequestOp {
    #[prost(message, optional, tag = "2")]
    put: Option<PutRequest>,
}

#[derive(Clone, PartialEq, Message)]
struct TxnRequest {
    #[prost(message, repeated, tag = "1")]
    compare: Vec<Compare>,
    #[prost(message, repeated, tag = "2")]
    success: Vec<RequestOp>,
}

#[derive(Clone, PartialEq, Message)]
struct TxnResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(bool, tag = "2")]
    succeeded: bool,
}

#[derive(Clone, PartialEq, Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) header: Option<ResponseHeader>,
    #[prost(uint64, tag = "4")]
    pub(super) leader: u64,
}

#[derive(Clone, PartialEq, Message)]
struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    create: Option<WatchCreateRequest>,
}

#[derive(Clone, PartialEq, Message)]
struct WatchCreateRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    range_end: Vec<u8>,
    #[prost(int64, tag = "3")]
    start_revision: i64,
}

#[derive(Clone, PartialEq, Message)]
struct WatchResponse {
    #[prost(bool, tag = "4")]
    canceled: bool,
    #[prost(message, repeated, tag = "11")]
    events: Vec<Change>,
}

/// One change of a key.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Change {
    /// 0: written, 1: deleted.
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(message, optional, tag = "2")]
    pub(super) pair: Option<KeyValue>,
}

impl Change {
    pub(super) fn is_deletion(&self) -> bool {
        self.kind == 1
    }
}

/// A client of one member.
#[derive(Clone)]
pub(super) struct Member {
    channel: Channel,
    timeout: Duration,
}

const TARGET_MOD: i32 = 2;

impl Member {
    /// A client of the member at this address, whose calls take so long at most.
    pub(super) fn new(address: &str, timeout: Duration) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(timeout)
            .tcp_nodelay(true);
        Ok(Self { channel: endpoint.connect_lazy(), timeout })
    }

    async fn call<Q, A>(&self, path: &'static str, request: Q) -> Result<A, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let mut grpc = Grpc::new(self.channel.clone());
        let call = async {
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let codec = ProstCodec::<Q, A>::default();
            grpc.unary(Request::new(request), PathAndQuery::from_static(path), codec).await
        };
        let answered = tokio::time::timeout(self.timeout, call).await;
        let answered = answered.map_err(|_| Status::deadline_exceeded("no answer in time"))?;
        Ok(answered?.into_inner())
    }

    pub(super) async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        self.call("/etcdserverpb.KV/Range", request).await
    }

    /// Writes a key. Returns the revision of the change.
    pub(super) async fn put(&self, key: Vec<u8>, value: Vec<u8>) -> Result<i64, Status> {
        let written: PutResponse =
            self.call("/etcdserverpb.KV/Put", PutRequest { key, value }).await?;
        Ok(written.header.unwrap_or_default().revision)
    }

    /// Writes a key if its last change has this revision. `None` if it has another.
    pub(super) async fn put_if(
        &self,
        key: Vec<u8>,
        value: Vec<u8>,
        mod_revision: i64,
    ) -> Result<Option<i64>, Status> {
        let compare =
            Compare { target: TARGET_MOD, key: key.clone(), mod_revision: Some(mod_revision) };
        let put = Some(PutRequest { key, value });
        let request = TxnRequest { compare: vec![compare], success: vec![RequestOp { put }] };
        let done: TxnResponse = self.call("/etcdserverpb.KV/Txn", request).await?;
        Ok(done.succeeded.then(|| done.header.unwrap_or_default().revision))
    }

    /// Removes a key. Returns whether it was there.
    pub(super) async fn delete(&self, key: Vec<u8>) -> Result<bool, Status> {
        let request = DeleteRangeRequest { key };
        let done: DeleteRangeResponse = self.call("/etcdserverpb.KV/DeleteRange", request).await?;
        Ok(0 < done.deleted)
    }

    /// Every change of every key since the beginning, up to the one that writes `last`.
    pub(super) async fn history(&self, last: &[u8]) -> Result<Vec<Change>, Status> {
        let all = WatchCreateRequest { key: vec![0], range_end: vec![0], start_revision: 1 };
        let request = WatchRequest { create: Some(all) };
        // The stream of requests stays open: its end would end the watch.
        let requests = stream::iter([request]).chain(stream::pending());
        let mut grpc = Grpc::new(self.channel.clone());
        let watch = async {
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
            let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
            let mut answers =
                grpc.streaming(Request::new(requests), path, codec).await?.into_inner();
            let mut changes = Vec::new();
            while let Some(answer) = answers.message().await? {
                if answer.canceled {
                    return Err(Status::aborted("the watch was ended by etcd"));
                }
                let is_last =
                    |change: &Change| change.pair.as_ref().is_some_and(|pair| pair.key == last);
                let is_over = answer.events.iter().any(is_last);
                changes.extend(answer.events);
                if is_over {
                    return Ok(changes);
                }
            }
            Err(Status::aborted("the watch ended early"))
        };
        let watched = tokio::time::timeout(self.timeout, watch).await;
        watched.map_err(|_| Status::deadline_exceeded("the history was not told in time"))?
    }

    pub(super) async fn status(&self) -> Result<StatusResponse, Status> {
        self.call("/etcdserverpb.Maintenance/Status", StatusRequest {}).await
    }
}
