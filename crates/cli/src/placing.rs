//! The operators' verbs that move replicas and leaders, or say why they are where they are:
//! `node drain|resume|maintenance|decommission|why-blocked`, `zone drain`,
//! `shard transfer|move|merge`,
//! `operator`, `scheduler`, `cluster headroom`, `plan explain`.

use std::collections::BTreeSet;
use std::time::Duration;

use anchorhold_client::{AdminClient, admin_v1};
use anchorhold_model::{NodeId, ShardId};
use clap::{Args, Subcommand};
use serde::Serialize;
use tokio::time::Instant;

use crate::context::{ClientArgs, Context};
use crate::exit::{Exit, Failure};
use crate::output::{self, bytes};
use crate::progress::Progress;
use crate::shard;

/// How often a merge that is waited for is looked at.
const MERGE_POLL: Duration = Duration::from_millis(200);

/// `anchorhold operator`.
#[derive(Args, Debug)]
pub(crate) struct OperatorArgs {
    #[command(flatten)]
    client: ClientArgs,
    #[command(subcommand)]
    command: OperatorCommand,
}

#[derive(Subcommand, Debug)]
enum OperatorCommand {
    /// List the changes of shards that are under way
    List,
    /// Give the change of a shard up; what of it is done stays done
    Cancel {
        /// The shard's id, as `shard list` shows it
        shard: String,
    },
}

/// `anchorhold scheduler`.
#[derive(Args, Debug)]
pub(crate) struct SchedulerArgs {
    #[command(flatten)]
    client: ClientArgs,
    #[command(subcommand)]
    command: SchedulerCommand,
}

#[derive(Subcommand, Debug)]
enum SchedulerCommand {
    /// Show whether the cluster moves replicas and leaders by itself, and how many at once
    Show,
    /// Let the cluster start no change by itself; those under way go on
    Pause,
    /// Let the cluster start changes again
    Resume,
    /// Say how much may change at once; 0 is as configured
    Limit {
        /// Changes at once
        #[arg(long)]
        operators: Option<u32>,
        /// Replicas built on one node at once
        #[arg(long)]
        incoming: Option<u32>,
    },
}

/// Time between two looks at something that is waited for.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Serialize)]
struct NodeWishView {
    node_id: u64,
    wish: &'static str,
    until: Option<String>,
}

#[derive(Serialize)]
struct TransferView {
    shard_id: u64,
    to_node_id: u64,
}

#[derive(Serialize)]
struct MoveView {
    shard_id: u64,
    from_node_id: u64,
    to_node_id: u64,
}

#[derive(Serialize)]
struct MergeView {
    shard_id: u64,
    into_shard_id: u64,
    /// Whether it was waited for and is done.
    merged: bool,
}

#[derive(Serialize)]
struct CancelView {
    shard_id: u64,
    canceled: bool,
}

#[derive(Serialize)]
struct DepartureView {
    node_id: u64,
    replicas: u64,
    moving: u64,
    ready: u64,
    leaders: u64,
    blocked: Vec<BlockedView>,
}

#[derive(Serialize)]
struct BlockedView {
    cause: String,
    remedy: String,
    shards: u64,
    shard_ids: Vec<u64>,
}

/// A change of a shard.
#[derive(Serialize)]
pub(crate) struct OperatorView {
    number: u64,
    shard_id: u64,
    pub(crate) steps: Vec<String>,
    pub(crate) reason: String,
    start_time: Option<String>,
    give_up_time: Option<String>,
}

/// A change that a shard needs and does not get.
#[derive(Serialize)]
pub(crate) struct RefusalView {
    shard_id: u64,
    need: String,
    cause: String,
    remedy: String,
}

#[derive(Serialize)]
struct PlanView {
    paused: bool,
    operators: Vec<OperatorView>,
    refusals: Vec<RefusalView>,
}

#[derive(Serialize)]
struct SchedulerView {
    paused: bool,
    operators_max: u32,
    incoming_max: u32,
}

#[derive(Serialize)]
struct HeadroomView {
    region: String,
    zone: String,
    nodes: u64,
    leaders: u64,
    bytes: u64,
    load_permille: u64,
    disk_permille: u64,
    shard_ids_at_risk: Vec<u64>,
    risks: Vec<String>,
}

/// The id that a node is shown by.
///
/// # Errors
/// If no node has it.
pub(crate) async fn node_id(admin: &AdminClient, node: &str) -> anyhow::Result<u64> {
    let nodes = admin.list_nodes(admin_v1::ListNodesRequest {}).await?.nodes;
    let ids = nodes.iter().map(|known| known.node_id);
    let is_meant = |id: &u64| NodeId(*id).to_string() == node || id.to_string() == node;
    ids.filter(is_meant).min().ok_or_else(|| {
        let problem = format!("there is no node {node}");
        Failure::new(Exit::NotFound, problem, "`anchorhold node list` shows their ids").into()
    })
}

/// Runs `node drain`; with `wait` until it leads nothing.
///
/// # Errors
/// As the cluster says.
pub(crate) async fn drain(context: &Context, node: &str, wait: bool) -> anyhow::Result<()> {
    let admin = context.admin()?;
    let node_id = node_id(&admin, node).await?;
    admin.drain_node(admin_v1::DrainNodeRequest { node_id }).await?;
    if wait {
        let leaders = |departure: &admin_v1::ExplainNodeResponse| departure.leaders;
        wait_for(&admin, node_id, "leaderships", leaders).await?;
    }
    say(context, NodeWishView::drained(node_id))
}

/// Runs `node resume`.
///
/// # Errors
/// As the cluster says.
pub(crate) async fn resume(context: &Context, node: &str) -> anyhow::Result<()> {
    let admin = context.admin()?;
    let node_id = node_id(&admin, node).await?;
    admin.resume_node(admin_v1::ResumeNodeRequest { node_id }).await?;
    say(context, NodeWishView { node_id, wish: "serving", until: None })
}

/// Runs `node maintenance`.
///
/// # Errors
/// As the cluster says.
pub(crate) async fn maintain(
    context: &Context,
    node: &str,
    duration: Duration,
) -> anyhow::Result<()> {
    let admin = context.admin()?;
    let node_id = node_id(&admin, node).await?;
    let duration = prost_types::Duration::try_from(duration).ok();
    let reply = admin.maintain_node(admin_v1::MaintainNodeRequest { node_id, duration }).await?;
    let until = reply.until_time.map(|time| time.to_string());
    say(context, NodeWishView { node_id, wish: "in maintenance", until })
}

/// Runs `node decommission`; with `wait` until it is removed.
///
/// # Errors
/// As the cluster says.
pub(crate) async fn decommission(context: &Context, node: &str, wait: bool) -> anyhow::Result<()> {
    let admin = context.admin()?;
    let node_id = node_id(&admin, node).await?;
    admin.decommission_node(admin_v1::DecommissionNodeRequest { node_id }).await?;
    if wait {
        let replicas = |departure: &admin_v1::ExplainNodeResponse| departure.replicas;
        wait_for(&admin, node_id, "replicas", replicas).await?;
    }
    say(context, NodeWishView { node_id, wish: "leaving", until: None })
}

fn say(context: &Context, view: NodeWishView) -> anyhow::Result<()> {
    output::print(context.output, &view, || view.text())
}

impl NodeWishView {
    fn drained(node_id: u64) -> Self {
        Self { node_id, wish: "drained", until: None }
    }

    fn text(&self) -> String {
        let node = NodeId(self.node_id);
        match &self.until {
            Some(until) => format!("node {node} is {} until {until}", self.wish),
            None => format!("node {node} is {}", self.wish),
        }
    }
}

/// Shows progress until nothing is left, and once a while what is in the way.
async fn wait_for(
    admin: &AdminClient,
    node_id: u64,
    what: &str,
    left: impl Fn(&admin_v1::ExplainNodeResponse) -> u64,
) -> anyhow::Result<()> {
    const COMPLAIN_INTERVAL: Duration = Duration::from_secs(10);
    let request = admin_v1::ExplainNodeRequest { node_id };
    let first = admin.explain_node(request).await?;
    let total = left(&first);
    let mut progress = Progress::new(what, total);
    let (mut done, mut complained) = (0, Instant::now());
    loop {
        let departure = admin.explain_node(request).await?;
        let now_done = total.saturating_sub(left(&departure));
        progress.add(now_done.saturating_sub(done));
        done = done.max(now_done);
        if left(&departure) == 0 {
            return Ok(());
        }
        if COMPLAIN_INTERVAL <= complained.elapsed() {
            complained = Instant::now();
            for blocked in &departure.blocked {
                let next = &blocked.remedy;
                eprintln!("  {} shards wait: {}; {next}", blocked.shards, blocked.cause);
            }
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Runs `node why-blocked`.
///
/// # Errors
/// As the cluster says.
pub(crate) async fn why_blocked(context: &Context, node: &str) -> anyhow::Result<()> {
    let admin = context.admin()?;
    let node_id = node_id(&admin, node).await?;
    let departure = admin.explain_node(admin_v1::ExplainNodeRequest { node_id }).await?;
    let blocked = departure.blocked.into_iter().map(|one| BlockedView {
        cause: one.cause,
        remedy: one.remedy,
        shards: one.shards,
        shard_ids: one.shard_ids,
    });
    let view = DepartureView {
        node_id,
        replicas: departure.replicas,
        moving: departure.moving,
        ready: departure.ready,
        leaders: departure.leaders,
        blocked: blocked.collect(),
    };
    output::print(context.output, &view, || {
        let mut facts = vec![
            ("node", NodeId(node_id).to_string()),
            ("leads", view.leaders.to_string()),
            ("holds", format!("{} replicas", view.replicas)),
            ("moving", view.moving.to_string()),
            ("next", view.ready.to_string()),
        ];
        facts.extend(view.blocked.iter().map(|one| {
            let ids: Vec<String> =
                one.shard_ids.iter().map(|id| ShardId(*id).to_string()).collect();
            let ids = ids.join(", ");
            ("blocked", format!("{} shards ({ids}): {}; {}", one.shards, one.cause, one.remedy))
        }));
        output::facts(&facts)
    })
}

/// Runs `zone drain`: drains each node of a zone.
///
/// # Errors
/// If there is no such zone; as the cluster says.
pub(crate) async fn drain_zone(
    context: &Context,
    zone: &str,
    region: Option<&str>,
) -> anyhow::Result<()> {
    let admin = context.admin()?;
    let nodes = admin.list_nodes(admin_v1::ListNodesRequest {}).await?.nodes;
    let is_meant = |node: &&admin_v1::Node| {
        node.zone == zone && region.is_none_or(|region| node.region == region)
    };
    let regions: BTreeSet<&str> =
        nodes.iter().filter(is_meant).map(|node| node.region.as_str()).collect();
    if 1 < regions.len() {
        let regions = regions.into_iter().collect::<Vec<_>>().join(", ");
        let problem = format!("there is a zone {zone} in each of {regions}");
        return Err(Failure::new(Exit::Usage, problem, "name one with --region").into());
    }
    let nodes: Vec<u64> = nodes.iter().filter(is_meant).map(|node| node.node_id).collect();
    if nodes.is_empty() {
        let next = "`anchorhold zone list` shows them";
        let within = region.map_or_else(String::new, |region| format!(" in region {region}"));
        let problem = format!("there is no zone {zone}{within}");
        return Err(Failure::new(Exit::NotFound, problem, next).into());
    }
    for node_id in &nodes {
        admin.drain_node(admin_v1::DrainNodeRequest { node_id: *node_id }).await?;
    }
    let views: Vec<NodeWishView> = nodes.into_iter().map(NodeWishView::drained).collect();
    let lines = || views.iter().map(NodeWishView::text).collect::<Vec<_>>().join("\n");
    output::print(context.output, &views, lines)
}

/// Runs `shard transfer`.
///
/// # Errors
/// As the cluster says.
pub(crate) async fn transfer(context: &Context, shard: &str, to: &str) -> anyhow::Result<()> {
    let admin = context.admin()?;
    let (shard_id, node_id) = (shard::shard_id(&admin, shard).await?, node_id(&admin, to).await?);
    admin.transfer_shard(admin_v1::TransferShardRequest { shard_id, node_id }).await?;
    let view = TransferView { shard_id, to_node_id: node_id };
    output::print(context.output, &view, || {
        format!("{} is to be led by {}", ShardId(shard_id), NodeId(node_id))
    })
}

/// Runs `shard move`.
///
/// # Errors
/// As the cluster says.
pub(crate) async fn move_replica(
    context: &Context,
    shard: &str,
    from: &str,
    to: &str,
) -> anyhow::Result<()> {
    let admin = context.admin()?;
    let shard_id = shard::shard_id(&admin, shard).await?;
    let (from_node_id, to_node_id) = (node_id(&admin, from).await?, node_id(&admin, to).await?);
    let request = admin_v1::MoveShardRequest { shard_id, from_node_id, to_node_id };
    admin.move_shard(request).await?;
    let view = MoveView { shard_id, from_node_id, to_node_id };
    output::print(context.output, &view, || {
        let (from, to) = (NodeId(from_node_id), NodeId(to_node_id));
        format!("a replica of {} moves from {from} to {to}", ShardId(shard_id))
    })
}

/// Runs `shard merge`; with `wait` until the catalog has the shard no more.
///
/// # Errors
/// As the cluster says; also if the change is given up while it is waited for.
pub(crate) async fn merge(context: &Context, shard: &str, wait: bool) -> anyhow::Result<()> {
    let admin = context.admin()?;
    let shard_id = shard::shard_id(&admin, shard).await?;
    let request = admin_v1::MergeShardRequest { shard_id };
    let into_shard_id = admin.merge_shard(request).await?.into_shard_id;
    let (shard, into) = (ShardId(shard_id), ShardId(into_shard_id));
    if !wait {
        let view = MergeView { shard_id, into_shard_id, merged: false };
        return output::print(context.output, &view, || {
            format!(
                "{shard} becomes part of {into}; `anchorhold operator list` shows how far it is"
            )
        });
    }
    loop {
        let operators = admin.list_operators(admin_v1::ListOperatorsRequest {}).await?.operators;
        if !operators.iter().any(|operator| operator.shard_id == shard_id) {
            break;
        }
        tokio::time::sleep(MERGE_POLL).await;
    }
    // Asked again, a merge that is made answers at once, and one that was given up begins anew.
    if shard::shard_id(&admin, &shard.to_string()).await.is_ok() {
        let problem = format!("{shard} was not merged: the change was given up");
        let next = "`anchorhold plan explain` says what is in the way";
        return Err(Failure::new(Exit::Failed, problem, next).into());
    }
    let view = MergeView { shard_id, into_shard_id, merged: true };
    output::print(context.output, &view, || format!("{shard} is part of {into}"))
}

impl From<admin_v1::Refusal> for RefusalView {
    fn from(refusal: admin_v1::Refusal) -> Self {
        let admin_v1::Refusal { shard_id, need, cause, remedy } = refusal;
        Self { shard_id, need, cause, remedy }
    }
}

impl RefusalView {
    /// What, why, and what would help.
    pub(crate) fn text(&self) -> String {
        let need = if self.need.is_empty() { String::new() } else { format!("{}: ", self.need) };
        format!("{need}{}; {}", self.cause, self.remedy)
    }
}

impl From<admin_v1::Operator> for OperatorView {
    fn from(operator: admin_v1::Operator) -> Self {
        Self {
            number: operator.number,
            shard_id: operator.shard_id,
            steps: operator.steps,
            reason: operator.reason,
            start_time: operator.start_time.map(|time| time.to_string()),
            give_up_time: operator.give_up_time.map(|time| time.to_string()),
        }
    }
}

/// Runs `anchorhold operator`.
///
/// # Errors
/// As the cluster says.
pub(crate) async fn operator(args: OperatorArgs) -> anyhow::Result<()> {
    let context = Context::resolve(&args.client)?;
    let admin = context.admin()?;
    if let OperatorCommand::Cancel { shard } = args.command {
        let shard_id = shard::shard_id(&admin, &shard).await?;
        let request = admin_v1::CancelOperatorRequest { shard_id };
        let canceled = admin.cancel_operator(request).await?.canceled;
        let view = CancelView { shard_id, canceled };
        return output::print(context.output, &view, || {
            if canceled {
                format!("the change of {} is given up", ShardId(shard_id))
            } else {
                format!("no change of {} is under way", ShardId(shard_id))
            }
        });
    }
    let reply = admin.list_operators(admin_v1::ListOperatorsRequest {}).await?;
    let views: Vec<OperatorView> = reply.operators.into_iter().map(OperatorView::from).collect();
    output::print(context.output, &views, || {
        let rows = views.iter().map(|one| {
            [
                ShardId(one.shard_id).to_string(),
                one.steps.join(", "),
                one.reason.clone(),
                one.start_time.clone().unwrap_or_default(),
            ]
        });
        output::table(["SHARD", "STEPS", "WHY", "SINCE"], rows)
    })
}

/// Runs `anchorhold scheduler`.
///
/// # Errors
/// As the cluster says.
pub(crate) async fn scheduler(args: SchedulerArgs) -> anyhow::Result<()> {
    let context = Context::resolve(&args.client)?;
    let admin = context.admin()?;
    let known = admin.get_scheduler(admin_v1::GetSchedulerRequest {}).await?.scheduler;
    let mut wanted = known.unwrap_or_default();
    let is_change = !matches!(args.command, SchedulerCommand::Show);
    match args.command {
        SchedulerCommand::Show => {}
        SchedulerCommand::Pause => wanted.paused = true,
        SchedulerCommand::Resume => wanted.paused = false,
        SchedulerCommand::Limit { operators, incoming } => {
            wanted.operators_max = operators.unwrap_or(wanted.operators_max);
            wanted.incoming_max = incoming.unwrap_or(wanted.incoming_max);
        }
    }
    if is_change {
        let request = admin_v1::UpdateSchedulerRequest { scheduler: Some(wanted) };
        admin.update_scheduler(request).await?;
    }
    let view = SchedulerView {
        paused: wanted.paused,
        operators_max: wanted.operators_max,
        incoming_max: wanted.incoming_max,
    };
    output::print(context.output, &view, || {
        let limit = |number: u32| match number {
            0 => "as configured".to_owned(),
            number => number.to_string(),
        };
        output::facts(&[
            ("scheduler", if view.paused { "paused" } else { "runs" }.to_owned()),
            ("changes at once", limit(view.operators_max)),
            ("new replicas of a node at once", limit(view.incoming_max)),
        ])
    })
}

/// Runs `cluster headroom`.
///
/// # Errors
/// As the cluster says.
pub(crate) async fn headroom(context: &Context) -> anyhow::Result<()> {
    let zones = context.admin()?.get_headroom(admin_v1::GetHeadroomRequest {}).await?.zones;
    let views: Vec<HeadroomView> = zones
        .into_iter()
        .map(|zone| HeadroomView {
            region: zone.region,
            zone: zone.zone,
            nodes: zone.nodes,
            leaders: zone.leaders,
            bytes: zone.bytes,
            load_permille: zone.load_permille,
            disk_permille: zone.disk_permille,
            shard_ids_at_risk: zone.shard_ids_at_risk,
            risks: zone.risks,
        })
        .collect();
    output::print(context.output, &views, || {
        let percent = |permille: u64| format!("{}.{} %", permille / 10, permille % 10);
        let rows = views.iter().map(|zone| {
            [
                zone.region.clone(),
                zone.zone.clone(),
                zone.leaders.to_string(),
                bytes(zone.bytes),
                percent(zone.load_permille),
                percent(zone.disk_permille),
                if zone.risks.is_empty() {
                    "can be lost".to_owned()
                } else {
                    zone.risks.join("; ")
                },
            ]
        });
        let header = [
            "REGION",
            "ZONE",
            "LEADERS TO TAKE",
            "TO REBUILD",
            "LOAD THEN",
            "DISK THEN",
            "IF LOST",
        ];
        output::table(header, rows)
    })
}

/// Runs `plan explain`.
///
/// # Errors
/// As the cluster says.
pub(crate) async fn explain(client: &ClientArgs) -> anyhow::Result<()> {
    let context = Context::resolve(client)?;
    let plan = context.admin()?.explain_plan(admin_v1::ExplainPlanRequest {}).await?;
    let refusals = plan.refusals.into_iter().map(RefusalView::from);
    let view = PlanView {
        paused: plan.paused,
        operators: plan.operators.into_iter().map(OperatorView::from).collect(),
        refusals: refusals.collect(),
    };
    output::print(context.output, &view, || {
        let mut lines = Vec::new();
        if view.paused {
            lines.push("the scheduler is paused: nothing of this is started".to_owned());
        }
        lines.extend(view.operators.iter().map(|one| {
            format!("{}  {}: {}", ShardId(one.shard_id), one.steps.join(", "), one.reason)
        }));
        let refused = view.refusals.iter();
        lines.extend(refused.map(|one| format!("{}  not: {}", ShardId(one.shard_id), one.text())));
        if lines.is_empty() {
            lines.push("nothing is to be done".to_owned());
        }
        lines.join("\n")
    })
}
