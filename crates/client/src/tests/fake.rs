//! A cluster of scripted nodes in this process, each on its own loopback port.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anchorhold_model::{AccountNumber, KeyRange, Version};
use anchorhold_proto::v1::anchor_service_server::{AnchorService, AnchorServiceServer};
use anchorhold_proto::v1::routing_service_server::{RoutingService, RoutingServiceServer};
use anchorhold_proto::{Failure, SessionToken, convert, v1};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// The account of every fake cluster.
pub(super) const ACCOUNT: u32 = 7;
/// The one shard of every fake cluster.
pub(super) const SHARD: u64 = 3;

/// How a node answers one request; without a script it succeeds.
#[derive(Clone)]
pub(super) enum Answer {
    Fail(Failure),
    /// Never.
    Hang,
}

/// A scripted node.
#[derive(Clone)]
pub(super) struct Node(Arc<State>);

pub(super) struct State {
    pub(super) node_id: u64,
    pub(super) address: SocketAddr,
    pub(super) connections: AtomicUsize,
    /// Answers to come.
    pub(super) script: Mutex<VecDeque<Answer>>,
    /// Request ids, or the ids that were read, in the order of arrival.
    pub(super) received: Mutex<Vec<String>>,
    pub(super) metadata: Mutex<Option<MetadataMap>>,
    pub(super) tokens: Mutex<Vec<SessionToken>>,
    pub(super) routes: Mutex<v1::GetRoutesResponse>,
    pub(super) routes_asked: AtomicUsize,
    revision: AtomicUsize,
    /// Who is said to have led when a write was served.
    pub(super) serving_leader: Mutex<u64>,
}

impl std::ops::Deref for Node {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0
    }
}

/// Starts `count` nodes with ids from 1, in zones `z1`, `z2`, ..., that name node 1 as the leader.
pub(super) async fn start(count: u64) -> Vec<Node> {
    let mut nodes = Vec::new();
    let mut listeners = Vec::new();
    for node_id in 1..=count {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        nodes.push(Node(Arc::new(State {
            node_id,
            address: listener.local_addr().unwrap(),
            connections: AtomicUsize::new(0),
            script: Mutex::default(),
            received: Mutex::default(),
            metadata: Mutex::default(),
            tokens: Mutex::default(),
            routes: Mutex::default(),
            routes_asked: AtomicUsize::new(0),
            revision: AtomicUsize::new(0),
            serving_leader: Mutex::new(1),
        })));
        listeners.push(listener);
    }
    let routes = routes(&nodes, 1);
    for (node, listener) in nodes.iter().zip(listeners) {
        *node.routes.lock() = routes.clone();
        serve(node.clone(), listener);
    }
    nodes
}

fn serve(node: Node, listener: TcpListener) {
    let counting = node.clone();
    let incoming = TcpListenerStream::new(listener).map(move |connection| {
        counting.connections.fetch_add(1, Ordering::Relaxed);
        connection
    });
    let server = Server::builder()
        .add_service(AnchorServiceServer::new(node.clone()))
        .add_service(RoutingServiceServer::new(node))
        .serve_with_incoming(incoming);
    tokio::spawn(server);
}

/// What GetRoutes says of these nodes.
pub(super) fn routes(nodes: &[Node], leader_node_id: u64) -> v1::GetRoutesResponse {
    let range = convert::range_to_wire(&KeyRange::of_account(AccountNumber(ACCOUNT)));
    let replica = |node: &Node| v1::RouteReplica {
        node_id: node.node_id,
        role: v1::ReplicaRole::Voter.into(),
    };
    v1::GetRoutesResponse {
        account: ACCOUNT,
        routes: vec![v1::Route {
            range: Some(range),
            shard_id: SHARD,
            epoch: Some(v1::Epoch::default()),
            leader_node_id,
            replicas: nodes.iter().map(replica).collect(),
        }],
        nodes: nodes
            .iter()
            .map(|node| v1::NodeEndpoint {
                node_id: node.node_id,
                address: node.address.to_string(),
                region: "here".into(),
                zone: format!("z{}", node.node_id),
            })
            .collect(),
        node_id: 1,
    }
}

impl Node {
    /// Sets the answers to the next requests.
    pub(super) fn script(&self, answers: impl IntoIterator<Item = Answer>) {
        self.0.script.lock().extend(answers);
    }

    /// How many requests have arrived.
    pub(super) fn received_count(&self) -> usize {
        self.received.lock().len()
    }

    async fn take<T>(&self, request: &Request<T>, name: &str) -> Result<(), Status> {
        self.received.lock().push(name.to_owned());
        *self.metadata.lock() = Some(request.metadata().clone());
        let answer = self.0.script.lock().pop_front();
        match answer {
            None => Ok(()),
            Some(Answer::Fail(failure)) => Err(failure.into()),
            Some(Answer::Hang) => std::future::pending().await,
        }
    }

    fn serving(&self) -> Option<v1::ServingInfo> {
        let shard = v1::ShardServing {
            shard_id: SHARD,
            node_id: *self.serving_leader.lock(),
            leader: true,
            ..v1::ShardServing::default()
        };
        Some(v1::ServingInfo { shards: vec![shard], ..v1::ServingInfo::default() })
    }

    fn session_token(&self) -> bytes::Bytes {
        let revision = self.revision.fetch_add(1, Ordering::Relaxed) as u64 + 1;
        let mut token = SessionToken::default();
        let range = KeyRange::of_account(AccountNumber(ACCOUNT));
        token.note(&range, Version { incarnation: 0, revision });
        token.encode().unwrap()
    }

    fn note_token(&self, read: Option<v1::ReadOptions>) {
        let token = SessionToken::decode(&read.unwrap_or_default().session_token).unwrap();
        self.tokens.lock().push(token);
    }
}

#[tonic::async_trait]
impl RoutingService for Node {
    async fn get_routes(
        &self,
        _: Request<v1::GetRoutesRequest>,
    ) -> Result<Response<v1::GetRoutesResponse>, Status> {
        self.routes_asked.fetch_add(1, Ordering::Relaxed);
        Ok(Response::new(self.routes.lock().clone()))
    }
}

#[tonic::async_trait]
impl AnchorService for Node {
    async fn create_anchor(
        &self,
        request: Request<v1::CreateAnchorRequest>,
    ) -> Result<Response<v1::CreateAnchorResponse>, Status> {
        self.take(&request, &request.get_ref().request_id).await?;
        Ok(Response::new(v1::CreateAnchorResponse {
            anchor: request.into_inner().anchor,
            serving: self.serving(),
            session_token: self.session_token(),
        }))
    }

    async fn get_anchor(
        &self,
        request: Request<v1::GetAnchorRequest>,
    ) -> Result<Response<v1::GetAnchorResponse>, Status> {
        self.take(&request, &request.get_ref().id).await?;
        self.note_token(request.into_inner().read);
        Ok(Response::new(v1::GetAnchorResponse {
            session_token: self.session_token(),
            ..v1::GetAnchorResponse::default()
        }))
    }

    /// Three pages: one anchor, none, one anchor.
    async fn list_anchors(
        &self,
        request: Request<v1::ListAnchorsRequest>,
    ) -> Result<Response<v1::ListAnchorsResponse>, Status> {
        self.take(&request, &request.get_ref().page_token).await?;
        let anchor = |id: &str| v1::Anchor { id: id.to_owned(), ..v1::Anchor::default() };
        let (anchors, next) = match request.get_ref().page_token.as_str() {
            "" => (vec![anchor("first")], "second"),
            "second" => (vec![], "third"),
            _ => (vec![anchor("last")], ""),
        };
        let next_page_token = next.to_owned();
        let reply = v1::ListAnchorsResponse { anchors, next_page_token, ..Default::default() };
        Ok(Response::new(reply))
    }

    async fn batch_create_anchors(
        &self,
        _: Request<v1::BatchCreateAnchorsRequest>,
    ) -> Result<Response<v1::BatchCreateAnchorsResponse>, Status> {
        Err(Status::unimplemented("no test needs it"))
    }

    async fn batch_get_anchors(
        &self,
        _: Request<v1::BatchGetAnchorsRequest>,
    ) -> Result<Response<v1::BatchGetAnchorsResponse>, Status> {
        Err(Status::unimplemented("no test needs it"))
    }

    async fn update_anchor(
        &self,
        _: Request<v1::UpdateAnchorRequest>,
    ) -> Result<Response<v1::UpdateAnchorResponse>, Status> {
        Err(Status::unimplemented("no test needs it"))
    }

    async fn delete_anchor(
        &self,
        _: Request<v1::DeleteAnchorRequest>,
    ) -> Result<Response<v1::DeleteAnchorResponse>, Status> {
        Err(Status::unimplemented("no test needs it"))
    }
}
