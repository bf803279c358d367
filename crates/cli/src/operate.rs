//! `anchorhold cluster status`, `node list|release-ballast`, `zone list|kill|start`. What moves
//! replicas and leaders: `placing`.

use std::time::Duration;

use anchorhold_client::admin_v1;
use anchorhold_cluster::{StateError, Wanted, wait_until_ready};
use anchorhold_model::NodeId;
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::context::{ClientArgs, Context, seconds};
use crate::exit::{Exit, Failure};
use crate::output::{self, Format, bytes, thousands};
use crate::placing;

/// `anchorhold cluster`.
#[derive(Args, Debug)]
pub(crate) struct ClusterArgs {
    #[command(flatten)]
    client: ClientArgs,
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Subcommand, Debug)]
enum ClusterCommand {
    /// Show how the cluster is
    Status {
        /// End with exit code 3 unless it is healthy
        #[arg(long)]
        check: bool,
    },
    /// Show for each zone what would happen if it died now
    Headroom,
}

/// `anchorhold node`.
#[derive(Args, Debug)]
pub(crate) struct NodeArgs {
    #[command(flatten)]
    client: ClientArgs,
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Subcommand, Debug)]
enum NodeCommand {
    /// List the nodes
    List,
    /// Give the space of a node's ballast back, so that deletes can be written on its full disk
    ReleaseBallast {
        /// The node's id, as `node list` shows it
        node: String,
    },
    /// Let a node give its leaderships away, so that it can be stopped for a while
    Drain {
        /// The node's id, as `node list` shows it
        node: String,
        /// Wait until it leads nothing
        #[arg(long)]
        wait: bool,
    },
    /// Let a node serve again
    Resume {
        /// The node's id, as `node list` shows it
        node: String,
    },
    /// Expect a node's silence for a while: nothing is rebuilt for it
    Maintenance {
        /// The node's id, as `node list` shows it
        node: String,
        /// For how many seconds
        #[arg(long = "for", value_name = "SECONDS", value_parser = seconds)]
        duration: Duration,
    },
    /// Let a node give its replicas away; it is removed for good when it holds none
    Decommission {
        /// The node's id, as `node list` shows it
        node: String,
        /// Wait until it holds nothing
        #[arg(long)]
        wait: bool,
    },
    /// Say what keeps a node from leaving, or would keep it
    WhyBlocked {
        /// The node's id, as `node list` shows it
        node: String,
    },
}

/// `anchorhold zone`.
#[derive(Args, Debug)]
pub(crate) struct ZoneArgs {
    #[command(flatten)]
    client: ClientArgs,
    #[command(subcommand)]
    command: ZoneCommand,
}

#[derive(Subcommand, Debug)]
enum ZoneCommand {
    /// List the zones
    List,
    /// Let all nodes of a zone give their leaderships away
    Drain {
        /// The zone
        zone: String,
        /// Its region, where several have a zone of this name
        #[arg(long)]
        region: Option<String>,
    },
    /// Kill a zone of the demo that runs here: SIGKILL to each of its nodes, as in a power cut
    Kill {
        /// The zone, such as b
        zone: String,
    },
    /// Start a zone of the demo again and wait until its nodes are ready
    Start {
        /// The zone, such as b
        zone: String,
    },
}

/// How the cluster is.
#[derive(Serialize)]
struct StatusView {
    cluster_id: String,
    cluster_epoch: u32,
    health: &'static str,
    problems: Vec<String>,
    nodes: u32,
    nodes_up: u32,
    zones: u32,
    zones_up: u32,
    shards: u32,
    shards_without_leader: u32,
    shards_degraded: u32,
    accounts: u32,
    anchors: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct NodeView {
    node_id: u64,
    region: String,
    zone: String,
    state: &'static str,
    client_address: String,
    peer_address: String,
    version: String,
    leaders: u32,
    replicas: u32,
    anchors: u64,
    disk: &'static str,
    disk_bytes_used: u64,
    disk_bytes_free: u64,
    ballast_bytes: u64,
    troubles: Vec<&'static str>,
    clock_offset_ms: Option<i64>,
    fsync_p99_ms: Option<f64>,
    start_time: Option<String>,
}

#[derive(Serialize)]
struct ZoneView {
    region: String,
    zone: String,
    nodes: u32,
    nodes_up: u32,
    leaders: u32,
    replicas: u32,
    survivable: bool,
}

/// How long the nodes of a zone may take to become ready.
const ZONE_START_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs `anchorhold cluster`.
///
/// # Errors
/// As the cluster says; exit code 3 with `--check` if it is not healthy.
pub(crate) async fn cluster(args: ClusterArgs) -> anyhow::Result<()> {
    let context = Context::resolve(&args.client)?;
    let ClusterCommand::Status { check } = args.command else {
        return placing::headroom(&context).await;
    };
    let request = admin_v1::GetClusterStatusRequest {};
    let status = context.admin()?.get_cluster_status(request).await?;
    let view = StatusView::from(status);
    output::print(context.output, &view, || view.table())?;
    if check && view.health != "healthy" {
        let problem = format!("the cluster is {}", view.health);
        return Err(Failure::new(Exit::Unhealthy, problem, "").into());
    }
    Ok(())
}

/// Runs `anchorhold node`.
///
/// # Errors
/// As the cluster says.
pub(crate) async fn node(args: NodeArgs) -> anyhow::Result<()> {
    let context = Context::resolve(&args.client)?;
    match args.command {
        NodeCommand::List => list_nodes(&context).await,
        NodeCommand::ReleaseBallast { node } => release_ballast(&context, &node).await,
        NodeCommand::Drain { node, wait } => placing::drain(&context, &node, wait).await,
        NodeCommand::Resume { node } => placing::resume(&context, &node).await,
        NodeCommand::Maintenance { node, duration } => {
            placing::maintain(&context, &node, duration).await
        }
        NodeCommand::Decommission { node, wait } => {
            placing::decommission(&context, &node, wait).await
        }
        NodeCommand::WhyBlocked { node } => placing::why_blocked(&context, &node).await,
    }
}

async fn list_nodes(context: &Context) -> anyhow::Result<()> {
    let nodes = context.admin()?.list_nodes(admin_v1::ListNodesRequest {}).await?.nodes;
    let views: Vec<NodeView> = nodes.into_iter().map(NodeView::from).collect();
    output::print(context.output, &views, || {
        let header = [
            "NODE",
            "REGION",
            "ZONE",
            "STATE",
            "CLIENT",
            "VERSION",
            "LEADERS",
            "REPLICAS",
            "ANCHORS",
            "DISK",
            "FREE",
            "FSYNC P99",
            "TROUBLE",
        ];
        output::table(header, views.iter().map(NodeView::row))
    })
}

#[derive(Serialize)]
struct ReleasedView {
    node_id: u64,
    bytes_released: u64,
}

async fn release_ballast(context: &Context, node: &str) -> anyhow::Result<()> {
    let node_id = placing::node_id(&context.admin()?, node).await?;
    let request = admin_v1::ReleaseBallastRequest { node_id };
    let bytes_released = context.admin()?.release_ballast(request).await?.bytes_released;
    let view = ReleasedView { node_id, bytes_released };
    output::print(context.output, &view, || match bytes_released {
        0 => format!("node {node} has no ballast"),
        _ => format!("node {node} has {} more room: delete what can go", bytes(bytes_released)),
    })
}

/// Runs `anchorhold zone`.
///
/// # Errors
/// If there is no demo or no such zone, or the nodes do not become ready.
pub(crate) async fn zone(args: ZoneArgs) -> anyhow::Result<()> {
    match args.command {
        ZoneCommand::List => list_zones(&Context::resolve(&args.client)?).await,
        ZoneCommand::Drain { zone, region } => {
            let context = Context::resolve(&args.client)?;
            placing::drain_zone(&context, &zone, region.as_deref()).await
        }
        ZoneCommand::Kill { zone } => kill_zone(&args.client, &zone),
        ZoneCommand::Start { zone } => start_zone(&args.client, &zone).await,
    }
}

async fn list_zones(context: &Context) -> anyhow::Result<()> {
    let zones = context.admin()?.list_zones(admin_v1::ListZonesRequest {}).await?.zones;
    let views: Vec<ZoneView> = zones.into_iter().map(ZoneView::from).collect();
    output::print(context.output, &views, || {
        let rows = views.iter().map(|zone| {
            [
                zone.region.clone(),
                zone.zone.clone(),
                format!("{} of {}", zone.nodes_up, zone.nodes),
                zone.leaders.to_string(),
                zone.replicas.to_string(),
                if zone.survivable { "yes" } else { "NO" }.to_owned(),
            ]
        });
        let header = ["REGION", "ZONE", "NODES UP", "LEADERS", "REPLICAS", "CAN BE LOST"];
        output::table(header, rows)
    })
}

/// What became of a node of the demo.
#[derive(Serialize)]
struct NodeChange {
    node: String,
    change: &'static str,
}

fn print_changes(format: Format, changes: &[NodeChange]) -> anyhow::Result<()> {
    let line = |one: &NodeChange| format!("{}: {}", one.node, one.change);
    output::print(format, &changes, || changes.iter().map(line).collect::<Vec<_>>().join("\n"))
}

fn kill_zone(client: &ClientArgs, zone: &str) -> anyhow::Result<()> {
    let outcomes = client.find_demo()?.update(|state| {
        let nodes = state.zone_mut(zone)?.into_iter();
        Ok(nodes.map(|node| (node.name.clone(), node.kill())).collect::<Vec<_>>())
    });
    let mut changes = Vec::new();
    for (node, outcome) in named_zone(outcomes)? {
        let change = match outcome {
            Ok(true) => "killed",
            Ok(false) => "was down already",
            Err(error) => anyhow::bail!("cannot kill {node}: {error}"),
        };
        changes.push(NodeChange { node, change });
    }
    print_changes(client.output, &changes)?;
    eprintln!("bring it back: anchorhold zone start {zone}");
    Ok(())
}

async fn start_zone(client: &ClientArgs, zone: &str) -> anyhow::Result<()> {
    let nodes = client.find_demo()?.update(|state| {
        let nodes = state.zone_mut(zone)?.into_iter();
        let started = nodes.map(|node| {
            node.wanted = Wanted::Running;
            (node.name.clone(), node.http_address)
        });
        Ok(started.collect::<Vec<_>>())
    });
    let mut changes = Vec::new();
    for (node, address) in named_zone(nodes)? {
        if let Err(reason) = wait_until_ready(address, ZONE_START_TIMEOUT).await {
            let limit = ZONE_START_TIMEOUT.as_secs();
            let problem = format!("{node} was not ready after {limit} s: {reason}");
            let next = "its log is in the demo's data directory";
            return Err(Failure::new(Exit::Unavailable, problem, next).into());
        }
        changes.push(NodeChange { node, change: "ready" });
    }
    print_changes(client.output, &changes)
}

/// A zone that does not exist is "not found" for scripts.
fn named_zone<T>(result: Result<T, StateError>) -> anyhow::Result<T> {
    result.map_err(|error| match error {
        StateError::UnknownZone { .. } => {
            Failure::new(Exit::NotFound, error.to_string(), "").into()
        }
        StateError::Io { .. }
        | StateError::Malformed { .. }
        | StateError::Format { .. }
        | StateError::UnknownNode { .. } => error.into(),
    })
}

impl From<admin_v1::GetClusterStatusResponse> for StatusView {
    fn from(status: admin_v1::GetClusterStatusResponse) -> Self {
        let health = match status.health() {
            admin_v1::Health::Healthy => "healthy",
            admin_v1::Health::Degraded => "degraded",
            admin_v1::Health::Unavailable => "unavailable",
            admin_v1::Health::Unspecified => "unknown",
        };
        Self {
            health,
            cluster_id: status.cluster_id,
            cluster_epoch: status.cluster_epoch,
            problems: status.problems,
            nodes: status.nodes,
            nodes_up: status.nodes_up,
            zones: status.zones,
            zones_up: status.zones_up,
            shards: status.shards,
            shards_without_leader: status.shards_without_leader,
            shards_degraded: status.shards_degraded,
            accounts: status.accounts,
            anchors: status.anchors,
            bytes: status.bytes,
        }
    }
}

impl StatusView {
    fn table(&self) -> String {
        let shards = match (self.shards_without_leader, self.shards_degraded) {
            (0, 0) => format!("{}", self.shards),
            (without, degraded) => {
                format!("{}, {without} without leader, {degraded} degraded", self.shards)
            }
        };
        let mut facts = vec![
            ("health", self.health.to_uppercase()),
            ("nodes", format!("{} of {} up", self.nodes_up, self.nodes)),
            ("zones", format!("{} of {} up", self.zones_up, self.zones)),
            ("shards", shards),
            ("accounts", self.accounts.to_string()),
            ("anchors", thousands(self.anchors)),
            ("size", format!("{}, one copy", bytes(self.bytes))),
            ("cluster", format!("{}, epoch {}", self.cluster_id, self.cluster_epoch)),
        ];
        facts.extend(self.problems.iter().map(|problem| ("problem", problem.clone())));
        output::facts(&facts)
    }
}

impl From<admin_v1::Node> for NodeView {
    fn from(node: admin_v1::Node) -> Self {
        let state = match node.state() {
            admin_v1::NodeState::Unspecified => "unknown",
            admin_v1::NodeState::Joining => "joining",
            admin_v1::NodeState::Up => "up",
            admin_v1::NodeState::Suspect => "suspect",
            admin_v1::NodeState::Down => "down",
            admin_v1::NodeState::Returning => "returning",
            admin_v1::NodeState::Draining => "draining",
            admin_v1::NodeState::Decommissioning => "decommissioning",
            admin_v1::NodeState::Removed => "removed",
        };
        let disk = match node.disk() {
            admin_v1::DiskState::Unspecified => "unknown",
            admin_v1::DiskState::Normal => "normal",
            admin_v1::DiskState::AlmostFull => "almost full",
            admin_v1::DiskState::Full => "full",
        };
        let troubles = node.troubles().map(|trouble| match trouble {
            admin_v1::NodeTrouble::Unspecified => "unknown",
            admin_v1::NodeTrouble::DiskAlmostFull => "disk almost full",
            admin_v1::NodeTrouble::DiskFull => "disk full",
            admin_v1::NodeTrouble::DiskStalled => "disk stalled",
            admin_v1::NodeTrouble::ClockOff => "clock off",
        });
        Self {
            state,
            disk,
            troubles: troubles.collect(),
            disk_bytes_free: node.disk_bytes_free,
            ballast_bytes: node.ballast_bytes,
            clock_offset_ms: node
                .clock_offset
                .map(|offset| offset.seconds * 1_000 + i64::from(offset.nanos) / 1_000_000),
            fsync_p99_ms: node
                .fsync_p99
                .and_then(|took| Duration::try_from(took).ok())
                .map(|took| took.as_secs_f64() * 1e3),
            node_id: node.node_id,
            region: node.region,
            zone: node.zone,
            client_address: node.client_address,
            peer_address: node.peer_address,
            version: node.version,
            leaders: node.leaders,
            replicas: node.replicas,
            anchors: node.anchors,
            disk_bytes_used: node.disk_bytes_used,
            start_time: node.start_time.map(|time| time.to_string()),
        }
    }
}

impl NodeView {
    fn row(&self) -> [String; 13] {
        [
            NodeId(self.node_id).to_string(),
            self.region.clone(),
            self.zone.clone(),
            self.state.to_owned(),
            self.client_address.clone(),
            self.version.clone(),
            self.leaders.to_string(),
            self.replicas.to_string(),
            thousands(self.anchors),
            bytes(self.disk_bytes_used),
            bytes(self.disk_bytes_free),
            self.fsync_p99_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms")),
            if self.troubles.is_empty() { "-".to_owned() } else { self.troubles.join(", ") },
        ]
    }
}

impl From<admin_v1::Zone> for ZoneView {
    fn from(zone: admin_v1::Zone) -> Self {
        Self {
            region: zone.region,
            zone: zone.zone,
            nodes: zone.nodes,
            nodes_up: zone.nodes_up,
            leaders: zone.leaders,
            replicas: zone.replicas,
            survivable: zone.survivable,
        }
    }
}
