//! Starts nodes, makes an account, gives clients.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anchorhold_consensus::Clock;
use anchorhold_model::Timestamp;

use anchorhold_proto::admin_v1::account_service_client::AccountServiceClient;
use anchorhold_proto::admin_v1::cluster_service_client::ClusterServiceClient;
use anchorhold_proto::admin_v1::placement_service_client::PlacementServiceClient;
use anchorhold_proto::admin_v1::{CreateAccountRequest, GetClusterStatusRequest};
use anchorhold_proto::v1::anchor_service_client::AnchorServiceClient;
use anchorhold_proto::v1::locate_service_client::LocateServiceClient;
use anchorhold_proto::{admin_v1, v1};
use anchorhold_server::{Addresses, AdminKey, Node, NodeConfig, NodeError, NodeSeams};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// How long anything that must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const ADMIN_KEY: &str = "aha_0123456789abcdef0123";

/// The machine's clocks, its wall clock so many milliseconds ahead.
struct AheadClock {
    real: Arc<dyn Clock>,
    ahead_ms: Arc<AtomicU64>,
}

impl Clock for AheadClock {
    fn wall(&self) -> Timestamp {
        Timestamp(self.real.wall().0 + self.ahead_ms.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Duration {
        self.real.monotonic()
    }
}

/// A node on threads of its own: what it leaves behind when it stops, such as the connections that
/// its peers keep open, ends with them.
pub(crate) struct Running {
    node: Option<Node>,
    runtime: Option<Runtime>,
}

impl Running {
    async fn build(config: NodeConfig, ahead_ms: &Arc<AtomicU64>) -> Result<Self, NodeError> {
        let threads =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let mut running = Self { node: None, runtime: Some(threads.unwrap()) };
        let mut seams = NodeSeams::real();
        seams.clock = Arc::new(AheadClock { real: seams.clock, ahead_ms: Arc::clone(ahead_ms) });
        let build = Node::build(config, seams);
        let built = running.runtime.as_ref().unwrap().spawn(build).await.unwrap();
        running.node = Some(built?);
        Ok(running)
    }

    async fn shutdown(mut self) {
        let node = self.node.take().unwrap();
        self.runtime.as_ref().unwrap().spawn(node.shutdown()).await.unwrap();
    }
}

impl std::ops::Deref for Running {
    type Target = Node;

    fn deref(&self) -> &Node {
        self.node.as_ref().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

/// Nodes of one cluster, one a zone.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Option<Running>>,
    dirs: Vec<TempDir>,
    addresses: Vec<Addresses>,
    zones: Vec<usize>,
    /// By how many milliseconds all nodes' wall clocks are ahead of the machine's.
    ahead_ms: Arc<AtomicU64>,
    change: Box<dyn Fn(&mut NodeConfig) + Send + Sync>,
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
    pub(crate) async fn start_with(
        nodes: usize,
        change: impl Fn(&mut NodeConfig) + Send + Sync + 'static,
    ) -> Self {
        Self::start_in_zones(&(0..nodes).collect::<Vec<_>>(), change).await
    }

    /// A cluster with a node in each of these zones, healthy.
    pub(crate) async fn start_in_zones(
        zones: &[usize],
        change: impl Fn(&mut NodeConfig) + Send + Sync + 'static,
    ) -> Self {
        let change = Box::new(change);
        let mut cluster = Self {
            nodes: Vec::new(),
            dirs: Vec::new(),
            addresses: Vec::new(),
            zones: Vec::new(),
            ahead_ms: Arc::default(),
            change,
        };
        for zone in zones {
            cluster.add(*zone).await;
        }
        cluster.wait_healthy().await;
        cluster
    }

    /// Adds a node to a zone.
    pub(crate) async fn add(&mut self, zone: usize) {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(&dir, zone);
        (self.change)(&mut config);
        match self.nodes.iter().flatten().next() {
            None => config.bootstrap = Some("test".to_owned()),
            Some(first) => config.join = vec![first.addresses().peer.to_string()],
        }
        let node = Running::build(config, &self.ahead_ms).await.unwrap();
        self.addresses.push(node.addresses());
        self.nodes.push(Some(node));
        self.dirs.push(dir);
        self.zones.push(zone);
    }

    /// Sets the wall clocks of all nodes forward.
    pub(crate) fn pass(&self, time: Duration) {
        let time_ms = u64::try_from(time.as_millis()).unwrap();
        self.ahead_ms.fetch_add(time_ms, Ordering::Relaxed);
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
            let running = self.nodes.iter().flatten().count();
            let all = usize::try_from(status.nodes_up).unwrap() == running;
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

    pub(crate) fn placement(&self, node: usize) -> PlacementServiceClient<Authorized> {
        let key = Key(ADMIN_KEY.to_owned());
        PlacementServiceClient::with_interceptor(self.channel(node), key)
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

    /// Starts a stopped node on its old directory, at its old addresses: nodes that change theirs
    /// all at once do not find each other.
    pub(crate) async fn restart(&mut self, node: usize) {
        // The last task of the old node may still hold the log for a moment.
        let node_again = eventually("the node starts again", || {
            let mut config = config(&self.dirs[node], self.zones[node]);
            (self.change)(&mut config);
            config.client_address = self.addresses[node].client;
            config.peer_address = self.addresses[node].peer;
            // As whoever wrote down once how it is started.
            config.bootstrap = (node == 0).then(|| "test".to_owned());
            let ahead_ms = Arc::clone(&self.ahead_ms);
            async move {
                match Running::build(config, &ahead_ms).await {
                    Ok(node) => Some(node),
                    Err(NodeError::Listen { .. }) => None,
                    Err(NodeError::Store { store: "log", reason }) if reason.contains("in use") => {
                        None
                    }
                    Err(error) => panic!("{error:?}"),
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
