//! `anchorhold bench write|read|locate|split`: loads a cluster and measures it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anchorhold_client::{Client, ClientError, v1};
use anchorhold_cluster::ProcessIdentity;
use anyhow::bail;
use clap::{Args, Subcommand};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::context::{ClientArgs, Context, seconds};
use crate::exit::{Exit, Failure};
use crate::output;
use crate::query::ReadLevel;

mod load;
mod node_counters;
mod report;
mod split;

use load::Load;
use report::Report;

/// `anchorhold bench`.
#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    load: LoadArgs,
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Args, Debug)]
struct LoadArgs {
    /// Requests open at once, at most
    #[arg(long, global = true, default_value_t = 64)]
    clients: u32,
    /// Requests per second in all (open loop): latencies count from the time that each was due
    /// [default: each client sends when its last request was answered]
    #[arg(long, global = true, value_name = "PER_SECOND")]
    rate: Option<f64>,
    /// Seconds that are measured
    #[arg(long, global = true, default_value = "10", value_name = "SECONDS", value_parser = seconds)]
    duration: Duration,
    /// Seconds before that
    #[arg(long, global = true, default_value = "2", value_name = "SECONDS", value_parser = seconds)]
    warm_up: Duration,
    /// HTTP/2 connections to each node
    #[arg(long, global = true, default_value_t = 1)]
    connections: usize,
    /// HTTP address of a node to read counters from; may be given several times [default: the
    /// demo's nodes]
    #[arg(long, global = true, value_name = "HOST:PORT")]
    metrics: Vec<SocketAddr>,
    /// Makes places and choices repeatable
    #[arg(long, global = true, default_value_t = 1)]
    seed: u64,
}

#[derive(Subcommand, Debug)]
enum BenchCommand {
    /// Create anchors all over the Earth
    Write {
        /// Bytes of properties in each anchor
        #[arg(long, default_value_t = 256)]
        bytes: usize,
        /// Anchors in each request
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        batch: u32,
    },
    /// Read anchors by id
    Read {
        /// Anchors in each request
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        batch: u32,
        /// How fresh: linearizable, bounded:SECONDS or local
        #[arg(long, default_value = "linearizable", value_parser = ReadLevel::parse)]
        consistency: ReadLevel,
    },
    /// Find the nearest anchors to points near stored ones
    Locate {
        /// How many
        #[arg(short, long = "count", value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
        k: u32,
        /// How fresh: linearizable, bounded:SECONDS or local
        #[arg(long, default_value = "bounded:1", value_parser = ReadLevel::parse)]
        consistency: ReadLevel,
    },
    /// Split the largest shard under writes all over the Earth, and say for how long the keys of
    /// each side took none; needs the operators' key as well
    Split {
        /// Anchors that the shard holds at least: missing ones are written first
        #[arg(long, default_value_t = 200_000)]
        anchors: u64,
        /// Merge both sides again afterwards, under the same writes
        #[arg(long)]
        merge: bool,
    },
}

/// What one request does.
#[derive(Clone)]
enum Work {
    Write { bytes: usize, batch: u32 },
    Read { ids: Arc<[String]>, batch: u32, level: ReadLevel },
    Locate { points: Arc<[v1::GeoPoint]>, k: u32, level: ReadLevel },
}

/// Stored anchors that reads choose from, at most.
const STORED_MAX: usize = 20_000;
/// How far a query's point lies from a stored anchor, in degrees, at most.
const JITTER_DEG: f64 = 0.05;

/// Runs `anchorhold bench`.
///
/// # Errors
/// If the load makes no sense, or the cluster cannot be reached or holds nothing to read.
pub(crate) async fn run(args: BenchArgs) -> anyhow::Result<()> {
    let context = Context::resolve(&args.client)?;
    let load = args.load.load()?;
    let client = Client::connect(context.client_config(args.load.connections)?).await?;
    let (kind, batch, work) = match args.command {
        BenchCommand::Write { bytes, batch } => ("write", batch, Work::Write { bytes, batch }),
        BenchCommand::Read { batch, consistency: level } => {
            let ids = stored(&client).await?.into_iter().map(|anchor| anchor.id).collect();
            ("read", batch, Work::Read { ids, batch, level })
        }
        BenchCommand::Locate { k, consistency: level } => {
            let points = stored(&client).await?.iter().filter_map(point).collect();
            ("locate", 1, Work::Locate { points, k, level })
        }
        BenchCommand::Split { anchors, merge } => {
            let plan = split::Plan { anchors, merge, seed: args.load.seed };
            return split::run(&context, client, load, plan).await;
        }
    };
    let (addresses, processes) = nodes(&context, &args.load.metrics);
    let (anchors, seed) = (Arc::new(AtomicU64::new(0)), args.load.seed);
    let mut before = (None, 0);
    let begin = async {
        before.0 = node_counters::read(&addresses, &processes).await.ok();
        before.1 = anchors.load(Ordering::Relaxed);
    };
    let counted = anchors.clone();
    let measured = load::run(load, begin, move |_, number| {
        let (client, work, counted) = (client.clone(), work.clone(), counted.clone());
        async move {
            let rng = StdRng::seed_from_u64(seed.rotate_left(32) ^ number);
            let done = work.run(&client, rng).await.map_err(|error| text(&error))?;
            counted.fetch_add(done, Ordering::Relaxed);
            Ok(())
        }
    });
    let measured = measured.await?;
    let after = node_counters::read(&addresses, &processes).await.ok();
    let done = anchors.load(Ordering::Relaxed) - before.1;
    let counters = after.zip(before.0).filter(|_| !addresses.is_empty());
    let counters = counters.map(|(after, before)| after.since(before));
    let report = Report::new(kind, load, batch, done, measured, counters);
    output::print(context.output, &report, || report.table())?;
    if report.requests == 0 {
        bail!("no request succeeded");
    }
    Ok(())
}

impl LoadArgs {
    fn load(&self) -> anyhow::Result<Load> {
        let is_sensible = self.rate.is_none_or(|rate| rate.is_finite() && 0.0 < rate);
        if self.clients == 0 || !is_sensible {
            let problem = "--clients and --rate must be more than 0";
            return Err(Failure::new(Exit::Usage, problem, "").into());
        }
        let (clients, rate) = (self.clients, self.rate);
        Ok(Load { clients, rate, warm_up: self.warm_up, duration: self.duration })
    }
}

impl Work {
    /// Does one request; returns how many anchors were written, read or found.
    async fn run(&self, client: &Client, mut rng: StdRng) -> Result<u64, ClientError> {
        match self {
            Self::Write { bytes, batch: 1 } => {
                let anchor = Some(random_anchor(&mut rng, *bytes));
                let request = v1::CreateAnchorRequest { anchor, ..Default::default() };
                client.create_anchor(request).await?;
                Ok(1)
            }
            Self::Write { bytes, batch } => {
                let anchors = (0..*batch).map(|_| random_anchor(&mut rng, *bytes)).collect();
                let request =
                    v1::BatchCreateAnchorsRequest { anchors, ids_only: true, ..Default::default() };
                let results = client.batch_create_anchors(request).await?.results;
                let failed = results.iter().find_map(|result| match &result.result {
                    Some(v1::batch_create_anchors_result::Result::Error(error)) => Some(error),
                    _ => None,
                });
                failed.map_or(Ok(results.len() as u64), |error| Err(ClientError::from(error)))
            }
            Self::Read { ids, batch: 1, level } => {
                let id = one_of(&mut rng, ids).clone();
                let request = v1::GetAnchorRequest { id, read: Some(level.to_wire()) };
                client.get_anchor(request).await?;
                Ok(1)
            }
            Self::Read { ids, batch, level } => {
                let ids = (0..*batch).map(|_| one_of(&mut rng, ids).clone()).collect();
                let request = v1::BatchGetAnchorsRequest { ids, read: Some(level.to_wire()) };
                Ok(client.batch_get_anchors(request).await?.results.len() as u64)
            }
            Self::Locate { points, k, level } => {
                let mut point = *one_of(&mut rng, points);
                let mut jitter = || rng.random_range(-JITTER_DEG..JITTER_DEG);
                point.latitude_deg = (point.latitude_deg + jitter()).clamp(-90.0, 90.0);
                point.longitude_deg = (point.longitude_deg + jitter()).clamp(-180.0, 180.0);
                let near = v1::NearPoint {
                    point: Some(v1::near_point::Point::Geo(point)),
                    k: *k,
                    radius_m: None,
                };
                let request = v1::LocateRequest {
                    criterion: Some(v1::locate_request::Criterion::NearPoint(near)),
                    read: Some(level.to_wire()),
                    require_complete: true,
                    ..Default::default()
                };
                Ok(client.locate(request).await?.anchors.len() as u64)
            }
        }
    }
}

/// An anchor anywhere on Earth, evenly over its area, with properties of this many bytes.
fn random_anchor(rng: &mut StdRng, bytes: usize) -> v1::Anchor {
    const KEY: &str = "payload";
    let latitude_deg = rng.random_range(-1.0_f64..=1.0).asin().to_degrees();
    let longitude_deg = rng.random_range(-180.0..180.0);
    let digits = bytes.saturating_sub(KEY.len());
    let payload: String = (0..digits).map(|_| rng.random_range('a'..='z')).collect();
    let pose = v1::GeoPose { latitude_deg, longitude_deg, height_m: 0.0, orientation: None };
    v1::Anchor {
        pose: Some(v1::Pose { frame: Some(v1::pose::Frame::Geo(pose)) }),
        properties: [(KEY.to_owned(), payload)].into(),
        ..v1::Anchor::default()
    }
}

/// Anchors to read; at least one.
async fn stored(client: &Client) -> anyhow::Result<Vec<v1::Anchor>> {
    let request = v1::ListAnchorsRequest { page_size: 1_000, ..Default::default() };
    let (mut pages, mut anchors) = (client.list_all(request), Vec::new());
    while !pages.is_at_end() && anchors.len() < STORED_MAX {
        anchors.extend(pages.next_page().await?);
    }
    if anchors.is_empty() {
        let next = "write some: anchorhold bench write, or anchorhold import FILE";
        return Err(Failure::new(Exit::NotFound, "the account holds no anchors", next).into());
    }
    Ok(anchors)
}

fn point(anchor: &v1::Anchor) -> Option<v1::GeoPoint> {
    match anchor.pose?.frame? {
        v1::pose::Frame::Geo(pose) => Some(v1::GeoPoint {
            latitude_deg: pose.latitude_deg,
            longitude_deg: pose.longitude_deg,
            height_m: pose.height_m,
        }),
        v1::pose::Frame::Local(_) => None,
    }
}

/// The nodes whose counters are read, and their processes if they run here.
fn nodes(context: &Context, named: &[SocketAddr]) -> (Vec<SocketAddr>, Vec<ProcessIdentity>) {
    match &context.demo {
        Some(demo) if named.is_empty() => {
            let running = || demo.nodes.iter().filter(|node| node.is_alive());
            let addresses = running().map(|node| node.http_address).collect();
            (addresses, running().filter_map(|node| node.process.clone()).collect())
        }
        Some(_) | None => (named.to_vec(), Vec::new()),
    }
}

fn one_of<'a, T>(rng: &mut StdRng, all: &'a [T]) -> &'a T {
    &all[rng.random_range(0..all.len())]
}

/// An error by its kind: messages may hold ids, and kinds are what is counted.
fn text(error: &ClientError) -> String {
    match error.reason_text() {
        "" => format!("{:?}", error.code()),
        reason => reason.to_owned(),
    }
}
