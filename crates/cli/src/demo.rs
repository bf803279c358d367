//! `anchorhold demo`: a whole cluster of real processes on this machine, with real places in it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anchorhold_client::{AdminClient, Client, ClientConfig, Reason, admin_v1, v1};
use anchorhold_cluster::{Event, LaunchConfig, ProcessCluster, Topology, write_secret};
use anyhow::{Context as _, bail};
use clap::Args;
use tokio::time::{Instant, sleep};

use crate::exit::{Exit, Failure};
use crate::import::rows::FileFormat;
use crate::import::scan::{Scan, scan};
use crate::import::send::Sender;
use crate::import::{Source, account_of};
use crate::locate::Found;
use crate::output::thousands;
use crate::progress::Progress;
use crate::record::Mapping;

pub(crate) mod pointer;
mod banner;
mod loading;
mod proof;

/// `anchorhold demo`.
#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// Nodes in each of the three zones
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=21))]
    nodes_per_zone: u32,
    /// Another shape: a topology file, see cluster/ in the source
    #[arg(long, value_name = "FILE", conflicts_with = "nodes_per_zone")]
    topology: Option<PathBuf>,
    /// Keep everything in this directory, and continue what is in it [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Load these anchors instead of the world's airports: CSV, GeoJSON or NDJSON
    #[arg(long, value_name = "FILE")]
    anchors: Option<PathBuf>,
    /// Start, load, query, kill a zone, prove that nothing was lost, and exit
    #[arg(long)]
    once: bool,
    /// More settings for every node, such as consensus.heartbeat_ms=50
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
}

/// A cluster with anchors in it.
struct Demo {
    cluster: ProcessCluster,
    admin: AdminClient,
    client: Client,
    /// Of the anchors that were loaded.
    scanned: Scan,
    /// The first query.
    near: v1::GeoPoint,
}

/// How long all nodes together may take to become ready.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the cluster may take to be whole: at the start, and after a zone is back.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(120);
/// How long one call may take: through an election, with room.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks at the cluster.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Between two looks at the processes.
const RECONCILE_INTERVAL: Duration = Duration::from_millis(200);

/// A demo shares the disk of a desk: it keeps less in reserve than a server. Settings of the command
/// line come later and win.
const SMALL_DISK: [&str; 3] =
    ["disk.almost_full_bytes=134217728", "disk.full_bytes=33554432", "disk.ballast_bytes=8388608"];

/// Who kills a zone of a demo wants to see it heal, not to wait for minutes.
const IMPATIENT: [&str; 5] = [
    "placement.suspect_ms=2000",
    "placement.down_ms=20000",
    "placement.zone_down_ms=20000",
    "placement.steady_ms=5000",
    "placement.settle_ms=10000",
];

/// Runs `anchorhold demo`.
///
/// # Errors
/// If the cluster does not start, or with `--once` if anything was lost.
pub(crate) async fn run(args: DemoArgs) -> anyhow::Result<()> {
    let is_once = args.once;
    tokio::select! {
        result = start_and_show(args) => result,
        signal = stop_signal() => {
            signal?;
            // Dropping the cluster has ended its processes.
            eprintln!("\nstopped");
            if is_once { bail!("interrupted") } else { Ok(()) }
        }
    }
}

async fn start_and_show(args: DemoArgs) -> anyhow::Result<()> {
    let mut demo = start(&args).await?;
    let pointer = pointer::Pointer::set(demo.cluster.data_dir())
        .inspect_err(|error| eprintln!("a second terminal needs --demo: {error:#}"))
        .ok();
    let found = demo.first_query().await?;
    banner::print(&demo, &found, args.data_dir.is_none())?;
    if args.once {
        let proof = proof::run(&mut demo).await?;
        proof.print();
        drop(pointer);
        demo.cluster.stop().await;
        return proof.verdict();
    }
    loop {
        for event in demo.cluster.reconcile()? {
            eprintln!("{}", describe(&event));
        }
        sleep(RECONCILE_INTERVAL).await;
    }
}

async fn start(args: &DemoArgs) -> anyhow::Result<Demo> {
    let topology = match &args.topology {
        Some(path) => Topology::load(path).map_err(|error| {
            Failure::new(Exit::Usage, format!("{:#}", anyhow::Error::new(error)), "")
        })?,
        None => Topology::three_zones(args.nodes_per_zone),
    };
    if !topology.latency.is_none() {
        eprintln!("the latencies of {} are kept by `chaos run` only", topology.name);
    }
    let data_dir = match &args.data_dir {
        Some(data_dir) => data_dir.clone(),
        None => std::env::temp_dir().join(format!("anchorhold-demo-{}", std::process::id())),
    };
    let settings = args.settings.iter().map(String::as_str);
    let set = |setting: &str| format!("--set={setting}");
    let config = LaunchConfig {
        binary: std::env::current_exe().context("cannot find this binary")?,
        data_dir,
        node_arguments: SMALL_DISK
            .iter()
            .chain(&IMPATIENT)
            .copied()
            .chain(settings)
            .map(set)
            .collect(),
        node_environment: Vec::new(),
        ready_timeout: READY_TIMEOUT,
        is_temporary: args.data_dir.is_none(),
        topology,
    };
    let nodes = config.topology.nodes().len();
    eprintln!("starting {nodes} nodes");
    let mut progress = Progress::new("nodes", nodes as u64);
    let mut ready = 0;
    let cluster = ProcessCluster::start(config, |now| {
        progress.add((now.ready - ready) as u64);
        ready = now.ready;
    });
    let cluster = cluster.await?;
    drop(progress);
    loading::load(cluster, args).await
}

impl Demo {
    async fn first_query(&self) -> anyhow::Result<Found> {
        let near = v1::NearPoint {
            point: Some(v1::near_point::Point::Geo(self.near)),
            k: 3,
            radius_m: None,
        };
        let request = v1::LocateRequest {
            criterion: Some(v1::locate_request::Criterion::NearPoint(near)),
            ..Default::default()
        };
        Ok(Found::from(self.client.locate(request).await?))
    }
}

/// Waits until every node reports and every shard has all its replicas.
///
/// # Errors
/// What is still missing after [`WHOLE_TIMEOUT`].
async fn wait_until_whole(admin: &AdminClient, nodes: usize) -> anyhow::Result<()> {
    let deadline = Instant::now() + WHOLE_TIMEOUT;
    loop {
        let status = admin.get_cluster_status(admin_v1::GetClusterStatusRequest {}).await;
        let missing = match &status {
            Ok(status)
                if status.nodes_up as usize == nodes
                    && status.health() == admin_v1::Health::Healthy =>
            {
                return Ok(());
            }
            Ok(status) => match status.problems.first() {
                Some(problem) => problem.clone(),
                None => format!("{} of {nodes} nodes are up", status.nodes_up),
            },
            Err(error) => error.to_string(),
        };
        if deadline < Instant::now() {
            let limit = WHOLE_TIMEOUT.as_secs();
            let problem = format!("the cluster is not whole after {limit} s: {missing}");
            return Err(Failure::new(Exit::Unavailable, problem, "see the nodes' logs").into());
        }
        sleep(LOOK_INTERVAL).await;
    }
}

fn describe(event: &Event) -> String {
    match event {
        Event::Stopped { node } => format!("node {node} was killed"),
        Event::Died { node, how } => {
            format!("node {node} ended by itself ({how}); its log says why")
        }
        Event::Started { node } => format!("node {node} is started"),
    }
}

async fn stop_signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// The world's airports, which ship with this binary.
pub(crate) fn airports() -> Source {
    const AIRPORTS: &[u8] = include_bytes!("../data/airports.csv");
    Source {
        name: "airports.csv".to_owned(),
        format: FileFormat::Csv,
        mapping: Mapping {
            // Anchors have ellipsoidal heights; these are not. Nobody shall be misled.
            properties: [("height_reference".to_owned(), "mean_sea_level".to_owned())].into(),
            tags: vec!["airport".to_owned()],
            ..Mapping::default()
        },
        open: Box::new(|| Ok(Box::new(AIRPORTS))),
    }
}
