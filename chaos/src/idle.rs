//! What shards cost that nothing is asked of, and how long they are without a leader when a node
//! dies.
//!
//! Starts three zones, lays an account out over many shards, waits until they have come to rest, and
//! takes the nodes' processor time and memory. Then a first write to some of the shards, and the
//! node that leads most of them is killed: all must be led again.

use std::path::PathBuf;
use std::time::Duration;

use anchorhold_client::{AdminClient, Client, ClientConfig, admin_v1, v1};
use anchorhold_cluster::{LaunchConfig, NodeState, ProcessCluster, Topology, http_get};
use anyhow::{Context as _, ensure};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde::Serialize;
use tokio::time::{Instant, sleep};

/// What to do.
#[derive(Clone, Debug)]
pub struct IdleConfig {
    /// The `anchorhold` binary.
    pub binary: PathBuf,
    /// Shards of the account.
    pub shards: u32,
    /// How long a shard is idle before it rests, at least a millisecond; `None`: it never does.
    pub quiesce_after: Option<Duration>,
    /// How long processor time is measured.
    pub measured: Duration,
    /// Everything random follows from it.
    pub seed: u64,
}

/// What was found. Of nodes: each one's share.
#[derive(Clone, Debug, Serialize)]
pub struct IdleReport {
    /// Shards of the account.
    pub shards: u32,
    /// Idle time after which a shard rests, in milliseconds; 0: never.
    pub quiesce_after_ms: u64,
    /// Processor time of a node without shards, as a share of one core.
    pub empty_cpu: f64,
    /// Processor time of a node with all of them, idle, as a share of one core.
    pub idle_cpu: f64,
    /// Memory of a node without shards, in bytes.
    pub empty_bytes: u64,
    /// Memory of a node with all of them, in bytes.
    pub idle_bytes: u64,
    /// The same for each replica more.
    pub bytes_per_replica: u64,
    /// From the account's creation until every shard was led, in milliseconds.
    pub founded_ms: u64,
    /// From then until all of them rested, in milliseconds.
    pub rested_ms: Option<u64>,
    /// First write to a shard that rests: median and maximum, in milliseconds.
    pub first_write_ms: [f64; 2],
    /// Second write to the same place.
    pub second_write_ms: [f64; 2],
    /// Shards that the killed node led.
    pub killed_leaders: u64,
    /// From the kill until all shards were led by others, in milliseconds.
    pub led_again_ms: u64,
    /// From the node's restart until the cluster was healthy, in milliseconds.
    pub healthy_ms: u64,
}

/// Writes that each kind of write is measured by.
const WRITES: usize = 100;
/// How long a node without shards is measured.
const EMPTY_MEASURED: Duration = Duration::from_secs(5);
/// How long anything may take before the run is given up.
const GIVE_UP: Duration = Duration::from_secs(300);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Runs it on a cluster of its own. `progress` is told what comes next.
///
/// # Errors
/// If the cluster does not start, does not come to rest or does not recover in time.
pub async fn run(
    config: &IdleConfig,
    mut progress: impl FnMut(&str),
) -> anyhow::Result<IdleReport> {
    ensure!(0 < config.shards, "there must be at least one shard");
    let directory = tempfile::tempdir()?;
    let quiesce_after_ms = config.quiesce_after.map_or(0, milliseconds);
    let settings = directory.path().join("node.toml");
    std::fs::write(&settings, format!("[consensus]\nquiesce_after_ms = {quiesce_after_ms}\n"))?;
    let launch = LaunchConfig {
        binary: config.binary.clone(),
        topology: Topology::three_zones(1),
        data_dir: directory.path().join("cluster"),
        node_arguments: vec!["--config".to_owned(), settings.to_string_lossy().into_owned()],
        node_environment: Vec::new(),
        ready_timeout: GIVE_UP,
        is_temporary: true,
    };
    progress("starting three nodes");
    let mut cluster = ProcessCluster::start(launch, |_| {}).await?;
    let report = measure(config, quiesce_after_ms, &mut cluster, &mut progress).await;
    cluster.stop().await;
    report
}

async fn measure(
    config: &IdleConfig,
    quiesce_after_ms: u64,
    cluster: &mut ProcessCluster,
    progress: &mut impl FnMut(&str),
) -> anyhow::Result<IdleReport> {
    let nodes = cluster.state()?.nodes;
    let endpoints: Vec<String> = nodes.iter().map(|node| node.client_address.to_string()).collect();
    let client =
        |api_key| ClientConfig { endpoints: endpoints.clone(), api_key, ..Default::default() };
    let admin = AdminClient::new(client(cluster.admin_key()?))?;
    progress("measuring nodes without shards");
    let empty_cpu = cpu(&nodes, EMPTY_MEASURED).await?;
    let empty_bytes = resident_bytes(&nodes)?;
    progress(&format!("founding {} shards", config.shards));
    let begun = Instant::now();
    let request = admin_v1::CreateAccountRequest {
        name: "idle".to_owned(),
        shards: config.shards,
        ..Default::default()
    };
    let created = admin.create_account(request).await?;
    let wanted = u64::from(config.shards);
    wait("all shards are led", async || Ok(wanted <= sum(&nodes, LEADERS).await?)).await?;
    let founded_ms = milliseconds(begun.elapsed());
    let begun = Instant::now();
    let rested_ms = match config.quiesce_after {
        None => {
            sleep(EMPTY_MEASURED).await;
            None
        }
        Some(_) => {
            progress("waiting until they rest");
            wait_until_all_rest(&nodes, wanted).await?;
            Some(milliseconds(begun.elapsed()))
        }
    };
    progress("measuring idle nodes");
    let idle_cpu = cpu(&nodes, config.measured).await?;
    let idle_bytes = resident_bytes(&nodes)?;
    let client = Client::connect(client(created.api_key)).await?;
    let [first_write_ms, second_write_ms] = writes(&client, config.seed).await?;
    if config.quiesce_after.is_some() {
        progress("waiting until they rest again");
        wait_until_all_rest(&nodes, wanted).await?;
    }
    let failover = fail_over(cluster, &admin, &nodes, wanted, progress).await?;
    Ok(IdleReport {
        shards: config.shards,
        quiesce_after_ms,
        empty_cpu,
        idle_cpu,
        empty_bytes,
        idle_bytes,
        bytes_per_replica: idle_bytes.saturating_sub(empty_bytes) / wanted,
        founded_ms,
        rested_ms,
        first_write_ms,
        second_write_ms,
        killed_leaders: failover.killed_leaders,
        led_again_ms: failover.led_again_ms,
        healthy_ms: failover.healthy_ms,
    })
}

struct Failover {
    killed_leaders: u64,
    led_again_ms: u64,
    healthy_ms: u64,
}

/// Kills the node that leads most shards, and starts it again.
async fn fail_over(
    cluster: &mut ProcessCluster,
    admin: &AdminClient,
    nodes: &[NodeState],
    wanted: u64,
    progress: &mut impl FnMut(&str),
) -> anyhow::Result<Failover> {
    let (killed, killed_leaders) = busiest(nodes).await?;
    progress(&format!("killing {killed}, which leads {killed_leaders} shards"));
    let others: Vec<NodeState> = nodes.iter().filter(|node| node.name != killed).cloned().collect();
    let begun = Instant::now();
    cluster.kill_node(&killed)?;
    wait("others lead all shards", async || Ok(wanted <= sum(&others, LEADERS).await?)).await?;
    let led_again_ms = milliseconds(begun.elapsed());
    progress(&format!("starting {killed} again"));
    let begun = Instant::now();
    cluster.start_node(&killed)?;
    cluster.wait_ready(std::slice::from_ref(&killed), &mut |_| {}).await?;
    wait("the cluster is healthy", async || {
        let status = admin.get_cluster_status(admin_v1::GetClusterStatusRequest {}).await?;
        Ok(status.health() == admin_v1::Health::Healthy)
    })
    .await?;
    Ok(Failover { killed_leaders, led_again_ms, healthy_ms: milliseconds(begun.elapsed()) })
}

const LEADERS: &str = "anchorhold_raft_leaders";
const QUIESCED: &str = "anchorhold_raft_replicas_quiesced";

/// Median and maximum of a first write to places all over the Earth, and of a second one to each.
async fn writes(client: &Client, seed: u64) -> anyhow::Result<[[f64; 2]; 2]> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut took = [Vec::new(), Vec::new()];
    for _ in 0..WRITES {
        let latitude_deg = rng.random_range(-1.0_f64..=1.0).asin().to_degrees();
        let longitude_deg = rng.random_range(-180.0..180.0);
        for took in &mut took {
            let pose =
                v1::GeoPose { latitude_deg, longitude_deg, height_m: 0.0, orientation: None };
            let pose = Some(v1::Pose { frame: Some(v1::pose::Frame::Geo(pose)) });
            let anchor = Some(v1::Anchor { pose, ..Default::default() });
            let begun = Instant::now();
            client.create_anchor(v1::CreateAnchorRequest { anchor, ..Default::default() }).await?;
            took.push(begun.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(took.map(|mut took| {
        took.sort_by(f64::total_cmp);
        let at = |index: usize| took.get(index).copied().unwrap_or_default();
        [at(took.len() / 2), at(took.len().saturating_sub(1))]
    }))
}

/// The node that leads most shards, and how many.
async fn busiest(nodes: &[NodeState]) -> anyhow::Result<(String, u64)> {
    let mut busiest = None;
    for node in nodes {
        let leads = sum(std::slice::from_ref(node), LEADERS).await?;
        if busiest.as_ref().is_none_or(|(_, most)| *most < leads) {
            busiest = Some((node.name.clone(), leads));
        }
    }
    busiest.context("there are nodes")
}

/// The sum of a gauge over nodes.
async fn sum(nodes: &[NodeState], gauge: &str) -> anyhow::Result<u64> {
    let mut sum = 0;
    for node in nodes {
        let metrics = http_get(node.http_address, "/metrics").await?.body;
        let value = metrics.lines().find_map(|line| line.strip_prefix(gauge)?.strip_prefix(' '));
        let value = value.with_context(|| format!("{} has no {gauge}", node.name))?;
        sum += value.trim().parse::<u64>().with_context(|| format!("{gauge} is {value}"))?;
    }
    Ok(sum)
}

async fn wait_until_all_rest(nodes: &[NodeState], shards: u64) -> anyhow::Result<()> {
    let all = shards * nodes.len() as u64;
    wait("all replicas rest", async || Ok(all <= sum(nodes, QUIESCED).await?)).await
}

async fn wait(what: &str, is_so: impl AsyncFn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let give_up = Instant::now() + GIVE_UP;
    let mut last = None;
    while Instant::now() < give_up {
        match is_so().await {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) => last = Some(error),
        }
        sleep(POLL_INTERVAL).await;
    }
    let why = last.map(|error| format!(": {error:#}")).unwrap_or_default();
    anyhow::bail!("gave up after {GIVE_UP:?} waiting until {what}{why}")
}

/// Processor time of one node, on average, as a share of one core.
async fn cpu(nodes: &[NodeState], measured: Duration) -> anyhow::Result<f64> {
    let used = || {
        let used = nodes.iter().map(|node| node.process.as_ref()?.cpu_time());
        used.sum::<Option<Duration>>().context("this system does not tell processor times")
    };
    let (before, begun) = (used()?, Instant::now());
    sleep(measured).await;
    let spent = used()?.saturating_sub(before);
    #[expect(clippy::cast_precision_loss, reason = "a few nodes")]
    let nodes = nodes.len() as f64;
    Ok(spent.as_secs_f64() / begun.elapsed().as_secs_f64() / nodes)
}

/// Memory of one node, on average.
fn resident_bytes(nodes: &[NodeState]) -> anyhow::Result<u64> {
    let bytes = nodes.iter().map(|node| node.process.as_ref()?.resident_bytes());
    let bytes: Option<u64> = bytes.sum();
    Ok(bytes.context("this system does not tell memory")? / nodes.len() as u64)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
