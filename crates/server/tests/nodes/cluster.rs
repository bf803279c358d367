//! Starts nodes, makes an account, gives clients.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use anchorhold_proto::admin_v1::account_service_client::AccountServiceClient;
use anchorhold_proto::admin_v1::cluster_service_client::ClusterServiceClient;
use anchorhold_proto::admin_v1::{CreateAccountRequest, GetClusterStatusRequest};
use anchorhold_proto::v1::anchor_service_client::AnchorServiceClient;
use anchorhold_proto::v1::locate_service_client::LocateServiceClient;
use anchorhold_proto::{admin_v1, v1};
use anchorhold_server::{AdminKey, Node, NodeConfig, NodeError, NodeSeams};
use tempfile::TempDir;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// How long anything that must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const ADMIN_KEY: &str = "aha_0123456789abcdef0123";

/// Nodes of one cluster, one a zone.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Option<Node>>,
    dirs: Vec<TempDir>,
}

/// Adds a key to each request.
#[derive(Clone)]
pub(crate) struct Key(String);

pub(crate) type Authorized = InterceptedService<Channel, Key>;

impl tonic::service::Interceptor for Key {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let value = format!("Bearer {}", self.0).parse().unwrap();
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
}

/// Waits until something holds; fails the test with its name if it never does.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    match waited.await {
        Ok(found) => found,
        Err(_) => panic!("never happened: {what}"),
    }
}

fn config(dir: &TempDir, zone: usize) -> NodeConfig {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    NodeConfig {
        data_dir: dir.path().to_owned(),
        zone: format!("zone-{zone}"),
        client_address: any,
        peer_address: any,
        http_address: Some(any),
        admin_key: AdminKey { plain: Some(ADMIN_KEY.to_owned()), ..AdminKey::default() },
        ..NodeConfig::default()
    }
}

impl Cluster {
    /// A cluster of nodes, healthy.
    pub(crate) async fn start(nodes: usize) -> Self {
        Self::start_with(nodes, |_| {}).await
    }

    /// A cluster of nodes with other settings, healthy.
    pub(crate) async fn start_with(nodes: usize, change: impl Fn(&mut NodeConfig)) -> Self {
        let mut cluster = Self { nodes: Vec::new(), dirs: Vec::new() };
        for _ in 0..nodes {
            cluster.add_node(&change).await;
        }
        cluster.wait_healthy().await;
        cluster
    }

    /// Starts one more node in a zone of its own; returns before it has caught up.
    pub(crate) async fn add_node(&mut self, change: impl Fn(&mut NodeConfig)) {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(&dir, self.nodes.len());
        change(&mut config);
        match self.nodes.first() {
            None => config.bootstrap = Some("test".to_owned()),
            Some(first) => {
                let first = first.as_ref().unwrap();
                config.join = vec![first.addresses().peer.to_string()];
            }
        }
        let node = Node::build(config, NodeSeams::real()).await.unwrap();
        self.nodes.push(Some(node));
        self.dirs.push(dir);
    }

    /// Where a node keeps everything.
    pub(crate) fn dir(&self, node: usize) -> &std::path::Path {
        self.dirs[node].path()
    }

    /// What the first node that runs finds wrong with the cluster.
    pub(crate) async fn problems(&self) -> Option<Vec<String>> {
        let key = Key(ADMIN_KEY.to_owned());
        let mut client = ClusterServiceClient::with_interceptor(self.channel(self.first()), key);
        let status = client.get_cluster_status(GetClusterStatusRequest {}).await.ok()?;
        Some(status.into_inner().problems)
    }

    /// Waits until the first node that runs finds the cluster healthy.
    pub(crate) async fn wait_healthy(&self) {
        eventually("the cluster is healthy", || async {
            let mut client = ClusterServiceClient::with_interceptor(
                self.channel(self.first()),
                Key(ADMIN_KEY.to_owned()),
            );
            let status = client.get_cluster_status(GetClusterStatusRequest {}).await.ok()?;
            let status = status.into_inner();
            let all = usize::try_from(status.nodes_up).unwrap() == self.nodes.len();
            (all && status.health() == admin_v1::Health::Healthy).then_some(())
        })
        .await;
    }

    fn first(&self) -> usize {
        self.nodes.iter().position(Option::is_some).unwrap()
    }

    pub(crate) fn channel(&self, node: usize) -> Channel {
        let address = self.nodes[node].as_ref().unwrap().addresses().client;
        Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy()
    }

    pub(crate) fn accounts(&self, node: usize) -> AccountServiceClient<Authorized> {
        let key = Key(ADMIN_KEY.to_owned());
        AccountServiceClient::with_interceptor(self.channel(node), key)
    }

    pub(crate) fn anchors(&self, node: usize, key: &str) -> AnchorServiceClient<Authorized> {
        AnchorServiceClient::with_interceptor(self.channel(node), Key(key.to_owned()))
    }

    pub(crate) fn locates(&self, node: usize, key: &str) -> LocateServiceClient<Authorized> {
        LocateServiceClient::with_interceptor(self.channel(node), Key(key.to_owned()))
    }

    /// Makes an account; its key.
    pub(crate) async fn account(&self, name: &str, shards: u32) -> String {
        let request = CreateAccountRequest { name: name.to_owned(), shards, ..Default::default() };
        let created = self.accounts(0).create_account(request).await.unwrap().into_inner();
        assert_eq!(created.account.unwrap().shards, shards.max(1));
        // Every shard has its leader.
        self.wait_healthy().await;
        created.api_key
    }

    /// Stops a node in good order.
    pub(crate) async fn stop(&mut self, node: usize) {
        self.nodes[node].take().unwrap().shutdown().await;
    }

    /// Starts a stopped node on its old directory.
    pub(crate) async fn restart(&mut self, node: usize) {
        // The last task of the old node may still hold the log for a moment.
        let node_again = eventually("the node starts again", || {
            let config = config(&self.dirs[node], node);
            async move {
                match Node::build(config, NodeSeams::real()).await {
                    Ok(node) => Some(node),
                    Err(NodeError::Store { store: "log", .. }) => None,
                    Err(error) => panic!("{error}"),
                }
            }
        })
        .await;
        self.nodes[node] = Some(node_again);
    }

    pub(crate) async fn stop_all(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].is_some() {
                self.stop(node).await;
            }
        }
    }
}

pub(crate) fn geo(latitude_deg: f64, longitude_deg: f64, height_m: f64) -> v1::Anchor {
    let geo = v1::GeoPose { latitude_deg, longitude_deg, height_m, orientation: None };
    let pose = v1::Pose { frame: Some(v1::pose::Frame::Geo(geo)) };
    v1::Anchor { pose: Some(pose), ..v1::Anchor::default() }
}

pub(crate) fn request_id(number: u128) -> String {
    anchorhold_proto::text::uuid_text(number)
}
