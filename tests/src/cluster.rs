//! Clusters of real processes for tests.
//!
//! A test that breaks nothing uses [`shared`], with an account of its own. A test that kills nodes
//! starts its own with [`TestCluster::start`]. The two cores of a small machine bear two clusters
//! at once, so breakable ones are alive one at a time.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anchorhold_cluster::{LaunchConfig, NodeState, ProcessCluster, Topology};
use anchorhold_proto::admin_v1;
use anyhow::Context as _;
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};
use tonic::transport::{Channel, Endpoint};

use crate::binary;
use crate::rpc::{Rpc, request_id};
use crate::small_disks::SmallDisks;
use crate::wait::until;

/// How long three nodes may take to become ready on a busy machine.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Breakable clusters alive at once.
static BREAKABLE: Semaphore = Semaphore::const_new(1);

/// A cluster of processes that a test may break.
#[derive(Debug)]
pub struct TestCluster {
    // Dropped in this order: the processes, their files, the right to start others.
    processes: ProcessCluster,
    nodes: Vec<NodeState>,
    admin_key: String,
    directory: Option<tempfile::TempDir>,
    permit: Option<SemaphorePermit<'static>>,
}

/// An account, and the key that opens it.
#[derive(Clone, Debug)]
pub struct TestAccount {
    /// Its number.
    pub number: u32,
    /// Its unique name.
    pub name: String,
    /// Its key.
    pub key: String,
}

impl TestCluster {
    /// Starts three zones of one node each. `config` is TOML for every node's configuration file;
    /// empty for the defaults.
    ///
    /// # Errors
    /// If the binary cannot be built or a node does not become ready.
    pub async fn start(config: &str) -> anyhow::Result<Self> {
        Self::start_topology(Topology::three_zones(1), config).await
    }

    /// As [`Self::start`], with other zones and nodes.
    ///
    /// # Errors
    /// If the binary cannot be built or a node does not become ready.
    pub async fn start_topology(topology: Topology, config: &str) -> anyhow::Result<Self> {
        let permit = BREAKABLE.acquire().await?;
        let directory = tempfile::tempdir()?;
        let binary = tokio::task::spawn_blocking(binary::anchorhold).await??;
        let mut cluster = Self::start_binary_in(binary, topology, directory.path(), config).await?;
        cluster.directory = Some(directory);
        cluster.permit = Some(permit);
        Ok(cluster)
    }

    /// As [`Self::start`], in a directory that the caller keeps, beside any other cluster.
    ///
    /// # Errors
    /// If the binary cannot be built or a node does not become ready.
    pub async fn start_in(directory: &Path, config: &str) -> anyhow::Result<Self> {
        // Building takes minutes on a fresh machine and must not hold up other tests' timers.
        let binary = tokio::task::spawn_blocking(binary::anchorhold).await??;
        Self::start_binary_in(binary, Topology::three_zones(1), directory, config).await
    }

    /// As [`Self::start`], with every node on a disk of its own that is as small as said.
    ///
    /// # Errors
    /// If the binary cannot be built or a node does not become ready.
    pub async fn start_on_small_disks(disks: &SmallDisks, config: &str) -> anyhow::Result<Self> {
        let permit = BREAKABLE.acquire().await?;
        let (binary, topology) = (disks.binary().to_owned(), Topology::three_zones(1));
        let mut cluster =
            Self::start_binary_in(binary, topology, disks.directory(), config).await?;
        cluster.permit = Some(permit);
        Ok(cluster)
    }

    async fn start_binary_in(
        binary: PathBuf,
        topology: Topology,
        directory: &Path,
        config: &str,
    ) -> anyhow::Result<Self> {
        let mut node_arguments = Vec::new();
        if !config.is_empty() {
            let file = directory.join("node.toml");
            std::fs::write(&file, config)?;
            node_arguments.push(format!("--config={}", file.display()));
        }
        let launch = LaunchConfig {
            binary,
            topology,
            data_dir: directory.join("cluster"),
            node_arguments,
            node_environment: vec![("ANCHORHOLD_LOG_FILTER".to_owned(), "info".to_owned())],
            ready_timeout: READY_TIMEOUT,
            is_temporary: false,
        };
        let processes = ProcessCluster::start(launch, |_| {}).await?;
        let nodes = processes.state()?.nodes;
        let admin_key = processes.admin_key()?;
        Ok(Self { processes, nodes, admin_key, directory: None, permit: None })
    }

    /// The nodes, in a fixed order.
    pub fn nodes(&self) -> &[NodeState] {
        &self.nodes
    }

    /// The operators' key.
    pub fn admin_key(&self) -> &str {
        &self.admin_key
    }

    /// The client addresses of all nodes as URLs.
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("http://{}", node.client_address)).collect()
    }

    /// Calls to one node, without a key.
    pub fn rpc(&self, index: usize) -> Rpc {
        Rpc::new(channel(self.nodes[index].client_address))
    }

    /// Calls to one node with the operators' key.
    pub fn admin(&self, index: usize) -> Rpc {
        self.rpc(index).with_key(&self.admin_key)
    }

    /// Calls to one node with an account's key.
    pub fn account_rpc(&self, index: usize, account: &TestAccount) -> Rpc {
        self.rpc(index).with_key(&account.key)
    }

    /// Makes an account over `shards` shards (0: beside others) and waits until every node serves
    /// it.
    ///
    /// # Errors
    /// If the account cannot be created.
    pub async fn account(&self, shards: u32) -> anyhow::Result<TestAccount> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let name = format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let id = request_id();
        let created = until("an account", || async {
            let message = admin_v1::CreateAccountRequest {
                name: name.clone(),
                shards,
                placement_class: String::new(),
                request_id: id.clone(),
            };
            let admin = self.admin(0);
            admin.accounts().create_account(admin.request(message)).await
        });
        let reply = created.await.into_inner();
        let number = reply.account.context("a created account is returned")?.number;
        let account = TestAccount { number, name, key: reply.api_key };
        for index in 0..self.nodes.len() {
            self.wait_serving(index, &account).await;
        }
        Ok(account)
    }

    /// Waits until a node serves linearizable reads of all the account's shards.
    pub async fn wait_serving(&self, index: usize, account: &TestAccount) {
        let rpc = self.account_rpc(index, account);
        until("a listing of the account", || rpc.list(Default::default())).await;
    }

    /// Kills a node with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// If the cluster's file cannot be used.
    pub fn kill(&mut self, index: usize) -> anyhow::Result<()> {
        let name = self.nodes[index].name.clone();
        anyhow::ensure!(self.processes.kill_node(&name)?, "{name} was not running");
        Ok(())
    }

    /// Starts a node that is down.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn restart(&mut self, index: usize) -> anyhow::Result<()> {
        Ok(self.processes.start_node(&self.nodes[index].name)?)
    }

    /// Waits until nodes are ready.
    ///
    /// # Errors
    /// If one ended or was not ready in time, with the end of its log.
    pub async fn wait_ready(&mut self, indexes: &[usize]) -> anyhow::Result<()> {
        let names: Vec<String> =
            indexes.iter().map(|index| self.nodes[*index].name.clone()).collect();
        Ok(self.processes.wait_ready(&names, &mut |_| {}).await?)
    }

    /// Waits until every shard has a leader and all its replicas, as the first node sees it.
    pub async fn wait_healthy(&self) {
        let admin = self.admin(0);
        until("a healthy cluster", || async {
            let request = admin.request(admin_v1::GetClusterStatusRequest {});
            let status = admin.clusters().get_cluster_status(request).await;
            let status = status.map_err(|status| status.to_string())?.into_inner();
            if status.health() == admin_v1::Health::Healthy {
                return Ok(());
            }
            Err(format!("{:?}: {:?}", status.health(), status.problems))
        })
        .await;
    }

    /// Which node leads each shard of an account, by node index; `None` where no leader is known.
    ///
    /// # Errors
    /// The node's status.
    pub async fn leaders(&self, index: usize, account: &TestAccount) -> anyhow::Result<Vec<u64>> {
        let admin = self.admin(index);
        let message = admin_v1::ListShardsRequest { account: account.number, ..Default::default() };
        let reply = admin.clusters().list_shards(admin.request(message)).await?.into_inner();
        Ok(reply.shards.iter().map(|shard| shard.leader_node_id).collect())
    }

    /// The process ids of all nodes.
    ///
    /// # Errors
    /// If the cluster's file cannot be used.
    pub fn process_ids(&self) -> anyhow::Result<Vec<u32>> {
        let nodes = self.processes.state()?.nodes;
        let pid = |node: NodeState| node.process.filter(|one| one.is_alive()).map(|one| one.pid);
        nodes.into_iter().map(|node| pid(node).context("a node has no process")).collect()
    }

    /// Where the cluster keeps everything.
    pub fn data_dir(&self) -> PathBuf {
        self.processes.data_dir().to_path_buf()
    }
}

/// A test that failed leaves its cluster's files behind, for whoever has to find out why.
impl Drop for TestCluster {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(directory) = self.directory.take()
        {
            eprintln!("the nodes' logs and data are kept in {}", directory.keep().display());
        }
    }
}

/// The cluster that all harmless tests of this process share. It ends with the process.
///
/// # Panics
/// If it does not start: no test can go on then.
pub async fn shared() -> Arc<TestCluster> {
    static SHARED: OnceCell<Arc<TestCluster>> = OnceCell::const_new();
    let start = || async {
        let directory = shared_directory().expect("a directory for the shared cluster");
        let cluster = TestCluster::start_in(&directory, "").await;
        Arc::new(cluster.unwrap_or_else(|error| panic!("the shared cluster: {error:#}")))
    };
    SHARED.get_or_init(start).await.clone()
}

/// A fresh directory for this process; those of processes that have ended are removed. Nothing
/// drops a static, so the process that owns one cannot do it.
fn shared_directory() -> anyhow::Result<PathBuf> {
    const PREFIX: &str = "anchorhold-shared-";
    for entry in std::fs::read_dir(std::env::temp_dir())?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|pid| pid.parse::<u32>().ok());
        let is_over = |pid| anchorhold_cluster::ProcessIdentity::of(pid).is_none();
        if owner.is_some_and(is_over) {
            // Another test process may be removing it too.
            drop(std::fs::remove_dir_all(entry.path()));
        }
    }
    let directory = std::env::temp_dir().join(format!("{PREFIX}{}", std::process::id()));
    drop(std::fs::remove_dir_all(&directory));
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}

fn channel(address: SocketAddr) -> Channel {
    let uri = format!("http://{address}");
    let endpoint = Endpoint::from_shared(uri).expect("an address makes a URL");
    endpoint.connect_timeout(Duration::from_secs(5)).connect_lazy()
}
