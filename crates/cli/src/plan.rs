//! `anchorhold plan`: `explain` asks a running cluster, `simulate` runs the planner on one that exists
//! in memory only.
//!
//! The planner, its limits and the node timers are those of a running node; copying is modelled by
//! bandwidth. Times of the simulated cluster are virtual; only the planner's own time is measured.

use anchorhold_placement::lifecycle::LifecycleConfig;
use anchorhold_placement::simulation::{Event, Layout, Pace, Response, Simulation};
use anchorhold_placement::{PlacementConfig, Potential, potential};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use tokio::time::Instant;

use crate::context::ClientArgs;
use crate::exit::{Exit, Failure};
use crate::output::{self, Format, bytes, thousands};
use crate::placing;

/// `anchorhold plan`.
#[derive(Args, Debug)]
pub(crate) struct PlanArgs {
    #[command(subcommand)]
    command: PlanCommand,
}

#[derive(Subcommand, Debug)]
enum PlanCommand {
    /// Say what the cluster would do now by itself, and why it does not do more
    Explain(ClientArgs),
    /// Run the planner on a simulated cluster of any size and see what it does
    ///
    /// Ends with exit code 3 if a scenario does not come to its end, or anything is moved back.
    Simulate(SimulateArgs),
}

/// Flags of `plan simulate`.
#[derive(Args, Debug)]
struct SimulateArgs {
    /// Nodes, spread over all zones
    #[arg(long, default_value_t = 90)]
    nodes: u64,
    /// Shards, spread over all regions
    #[arg(long, default_value_t = 10_000)]
    shards: u64,
    /// Regions
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    regions: u64,
    /// Zones of each region
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    zones: u64,
    /// What happens, one after the other: to the first region's first zone
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["kill-zone", "return-zone"])]
    event: Vec<EventName>,
    /// Nodes that fail with a rack, leave, or are added to each zone; a tenth of a zone if not said
    #[arg(long)]
    count: Option<u64>,
    /// Size of a shard on average, in MiB
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=1024))]
    shard_mib: u64,
    /// What a disk holds, in percent of what the fullest holds at first
    #[arg(long, default_value_t = 220, value_parser = clap::value_parser!(u64).range(101..=10_000))]
    capacity_percent: u64,
    /// MiB per second that a node sends and receives for new replicas
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    bandwidth_mib: u64,
    /// Virtual seconds between two plans
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    round_s: u64,
    /// Replicas built on a node at the same time; as many as its bandwidth copies in a round if not
    /// said
    #[arg(long)]
    incoming: Option<usize>,
    /// Rounds per event, at most
    #[arg(long, default_value_t = 5_000)]
    rounds_max: u64,
    /// Everything random follows from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Form of the report
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum EventName {
    /// Nothing
    Settle,
    /// All nodes of a zone stop
    KillZone,
    /// They start again
    ReturnZone,
    /// Some nodes of a zone stop
    FailRack,
    /// The logs of some nodes of a zone lose votes
    DamageLogs,
    /// Empty nodes join every zone
    AddNodes,
    /// Some nodes of a zone are to leave
    Decommission,
}

/// What one event did.
#[derive(Serialize)]
struct EventView {
    event: String,
    settled: bool,
    rounds: u64,
    operators: u64,
    operators_dropped: u64,
    degraded_shards_first: u64,
    degraded_shards_last: u64,
    moved_bytes: u64,
    needed_bytes: u64,
    /// Thousandths; absent if nothing had to be moved.
    moved_per_needed_permille: Option<u64>,
    full_replication_s: f64,
    settled_s: f64,
    plans: u64,
    plan_ms_median: f64,
    plan_ms_max: f64,
    rounds_with_rising_potential: u64,
    crowding: u64,
}

/// Runs `anchorhold plan`.
///
/// # Errors
/// Exit code 3 if the planner does not come to an end, or its potential rises.
pub(crate) async fn run(args: &PlanArgs) -> anyhow::Result<()> {
    let args = match &args.command {
        PlanCommand::Explain(client) => return placing::explain(client).await,
        PlanCommand::Simulate(args) => args,
    };
    check(args)?;
    let started = Instant::now();
    let mut simulation = build(args);
    eprintln!(
        "{} shards on {} nodes built in {:.1} s",
        thousands(args.shards),
        thousands(args.nodes),
        started.elapsed().as_secs_f64()
    );
    let pace = Pace {
        round_ms: args.round_s * 1_000,
        rounds_max: args.rounds_max,
        compares_potential: true,
    };
    let mut views = Vec::new();
    for name in &args.event {
        let mut times_ms = Vec::new();
        let response = simulation.respond(event(*name, args), &pace, |simulation| {
            let start = Instant::now();
            let plan = simulation.plan();
            times_ms.push(start.elapsed().as_secs_f64() * 1_000.0);
            plan
        });
        let left = potential(simulation.view(), simulation.config());
        let view = EventView::new(*name, &response, times_ms, &left);
        eprintln!("{}: {} rounds", view.event, thousands(view.rounds));
        views.push(view);
    }
    output::print(args.output, &views, || table(&views))?;
    if views.iter().all(|view| view.settled && view.rounds_with_rising_potential == 0) {
        return Ok(());
    }
    let problem = "the planner did not come to an end, or moved something back";
    Err(Failure::new(Exit::Unhealthy, problem, "raise --rounds-max, or report it").into())
}

/// Bounds that depend on each other.
fn check(args: &SimulateArgs) -> anyhow::Result<()> {
    let zones = args.regions * args.zones;
    let in_reach = zones <= args.nodes && args.nodes <= 100_000 && args.shards <= 10_000_000;
    if in_reach && 0 < args.shards {
        return Ok(());
    }
    let problem = "there must be a node for every zone, and a shard";
    let next = "at most 100000 nodes and 10000000 shards";
    Err(Failure::new(Exit::Usage, problem, next).into())
}

fn build(args: &SimulateArgs) -> Simulation {
    let mib = 1_u64 << 20;
    let copies = args.bandwidth_mib * args.round_s / args.shard_mib;
    let incoming_max = args.incoming.unwrap_or_else(|| usize::try_from(copies).unwrap_or(4).max(4));
    let nodes = usize::try_from(args.nodes).unwrap_or(usize::MAX);
    let config = PlacementConfig {
        incoming_max,
        outgoing_max: incoming_max,
        balance_incoming_max: incoming_max,
        zone_incoming_max: incoming_max.saturating_mul(nodes),
        operators_max: incoming_max.saturating_mul(nodes),
        ..PlacementConfig::default()
    };
    let layout = Layout {
        regions: args.regions,
        zones: args.zones,
        nodes: args.nodes,
        shards: args.shards,
        shard_bytes: args.shard_mib * mib,
        capacity_permille: args.capacity_percent * 10,
        bandwidth: args.bandwidth_mib * mib,
        seed: args.seed,
    };
    layout.build(config, LifecycleConfig::default())
}

fn event(name: EventName, args: &SimulateArgs) -> Event {
    let in_zone = args.nodes / (args.regions * args.zones);
    let count = args.count.unwrap_or(in_zone / 10).max(1);
    let some = usize::try_from(count).unwrap_or(usize::MAX);
    match name {
        EventName::Settle => Event::Settle,
        EventName::KillZone => Event::KillZone(0, 0),
        EventName::ReturnZone => Event::ReturnZone(0, 0),
        EventName::FailRack => Event::FailRack(0, 0, some),
        EventName::DamageLogs => Event::DamageLogs(0, 0, some),
        EventName::AddNodes => Event::AddNodes(count),
        EventName::Decommission => Event::Decommission(0, 0, some),
    }
}

impl EventView {
    fn new(name: EventName, response: &Response, mut times_ms: Vec<f64>, left: &Potential) -> Self {
        times_ms.sort_by(f64::total_cmp);
        let seconds = |ms: u64| std::time::Duration::from_millis(ms).as_secs_f64();
        let named = name.to_possible_value().map(|value| value.get_name().to_owned());
        Self {
            event: named.unwrap_or_default(),
            settled: response.has_settled,
            rounds: response.rounds,
            operators: response.operators,
            operators_dropped: response.dropped,
            degraded_shards_first: response.degraded_first,
            degraded_shards_last: response.degraded_last,
            moved_bytes: response.moved_bytes,
            needed_bytes: response.needed_bytes,
            moved_per_needed_permille: (response.moved_bytes.saturating_mul(1_000))
                .checked_div(response.needed_bytes),
            full_replication_s: seconds(response.whole_ms),
            settled_s: seconds(response.settled_ms),
            plans: times_ms.len() as u64,
            plan_ms_median: times_ms.get(times_ms.len() / 2).copied().unwrap_or(0.0),
            plan_ms_max: times_ms.last().copied().unwrap_or(0.0),
            rounds_with_rising_potential: response.rises,
            crowding: left.crowding,
        }
    }
}

fn table(views: &[EventView]) -> String {
    let header = [
        "EVENT",
        "ROUNDS",
        "OPERATORS",
        "MOVED",
        "NEEDED",
        "RATIO",
        "WHOLE AFTER",
        "SETTLED AFTER",
        "PLAN MEDIAN",
        "PLAN MAX",
        "POTENTIAL ROSE",
        "DEGRADED",
    ];
    let rows = views.iter().map(|view| {
        let ratio = view.moved_per_needed_permille;
        [
            view.event.clone(),
            thousands(view.rounds),
            thousands(view.operators),
            bytes(view.moved_bytes),
            bytes(view.needed_bytes),
            ratio.map_or_else(
                || "-".to_owned(),
                |ratio| format!("{}.{:03}", ratio / 1_000, ratio % 1_000),
            ),
            format!("{:.0} s", view.full_replication_s),
            format!("{:.0} s", view.settled_s),
            format!("{:.1} ms", view.plan_ms_median),
            format!("{:.1} ms", view.plan_ms_max),
            thousands(view.rounds_with_rising_potential),
            format!(
                "{} -> {}",
                thousands(view.degraded_shards_first),
                thousands(view.degraded_shards_last)
            ),
        ]
    });
    output::table(header, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_cluster_heals_and_moves_hardly_more_than_it_must() {
        let args = SimulateArgs {
            nodes: 18,
            shards: 900,
            regions: 1,
            zones: 3,
            event: Vec::new(),
            count: None,
            shard_mib: 32,
            capacity_percent: 220,
            bandwidth_mib: 100,
            round_s: 5,
            incoming: None,
            rounds_max: 1_000,
            seed: 1,
            output: Format::Json,
        };
        let mut simulation = build(&args);
        let pace = Pace { round_ms: 5_000, rounds_max: 1_000, compares_potential: true };
        for name in [EventName::KillZone, EventName::ReturnZone] {
            let response = simulation.respond(event(name, &args), &pace, Simulation::plan);
            let left = potential(simulation.view(), simulation.config());
            let view = EventView::new(name, &response, vec![1.0], &left);
            assert!(view.settled);
            assert_eq!((view.degraded_shards_last, view.rounds_with_rising_potential), (0, 0));
            assert!(view.moved_per_needed_permille.is_some_and(|ratio| ratio <= 1_100));
        }
    }
}
