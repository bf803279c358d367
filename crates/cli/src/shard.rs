//! `anchorhold shard list|show|split`. What moves replicas and leaders: `placing`.

use anchorhold_client::{AdminClient, admin_v1, v1};
use anchorhold_model::{Key, NodeId, ReplicaId, ShardId};
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::context::{ClientArgs, Context};
use crate::exit::{Exit, Failure};
use crate::output::{self, bytes, thousands};
use crate::placing::{self, OperatorView, RefusalView};

/// `anchorhold shard`.
#[derive(Args, Debug)]
pub(crate) struct ShardArgs {
    #[command(flatten)]
    client: ClientArgs,
    #[command(subcommand)]
    command: ShardCommand,
}

#[derive(Subcommand, Debug)]
enum ShardCommand {
    /// List the shards in the order of their keys
    List {
        /// Only shards that hold anchors of the account with this number
        #[arg(long, default_value_t = 0)]
        account: u32,
    },
    /// Show one shard
    Show {
        /// The shard's id, as `shard list` shows it
        shard: String,
    },
    /// Let another voter lead a shard
    Transfer {
        /// The shard's id, as `shard list` shows it
        shard: String,
        /// The node that is to lead it
        #[arg(long, value_name = "NODE")]
        to: String,
    },
    /// Move a replica of a shard to another node
    Move {
        /// The shard's id, as `shard list` shows it
        shard: String,
        /// The node that holds it now
        #[arg(long, value_name = "NODE")]
        from: String,
        /// The node that gets it
        #[arg(long, value_name = "NODE")]
        to: String,
    },
    /// Compare what the replicas of a shard hold at one index. Reads every row of every replica.
    /// Ends with 7 if two differ
    Compare {
        /// The shard's id, as `shard list` shows it
        shard: String,
    },
    /// Make a shard part of its left neighbour while both serve
    Merge {
        /// The shard, such as s12 or 12
        shard: String,
        /// Wait until it is
        #[arg(long)]
        wait: bool,
    },
    /// Split a shard in two while it serves
    Split {
        /// The shard, such as s12 or 12
        shard: String,
        /// First key of the new shard: an anchor's id, or 32 hex digits; the median if left out
        #[arg(long)]
        at: Option<String>,
    },
}

/// A shard, in a list.
#[derive(Serialize)]
struct ShardView {
    shard_id: u64,
    placement_class: String,
    /// incarnation.version.conf_version
    epoch: String,
    start: String,
    end: String,
    leader_node_id: u64,
    term: u64,
    revision: u64,
    anchors: u64,
    bytes: u64,
    replicas: Vec<ReplicaView>,
    degraded: bool,
}

#[derive(Serialize)]
struct ReplicaView {
    replica_id: u64,
    node_id: u64,
    role: &'static str,
    live: bool,
    applied_index: u64,
    lag_entries: u64,
}

/// A shard, and what is or is not being done about it.
#[derive(Serialize)]
struct ShardDetail {
    #[serde(flatten)]
    shard: ShardView,
    /// The change that is under way.
    operator: Option<OperatorView>,
    /// Changes that it needs and does not get.
    refusals: Vec<RefusalView>,
}

/// Runs `anchorhold shard`.
///
/// # Errors
/// As the cluster says.
pub(crate) async fn run(args: ShardArgs) -> anyhow::Result<()> {
    let context = Context::resolve(&args.client)?;
    match args.command {
        ShardCommand::List { account } => list(&context, account).await,
        ShardCommand::Show { shard } => show(&context, &shard).await,
        ShardCommand::Compare { shard } => crate::compare::compare(&context, &shard).await,
        ShardCommand::Transfer { shard, to } => placing::transfer(&context, &shard, &to).await,
        ShardCommand::Move { shard, from, to } => {
            placing::move_replica(&context, &shard, &from, &to).await
        }
        ShardCommand::Merge { shard, wait } => placing::merge(&context, &shard, wait).await,
        ShardCommand::Split { shard, at } => split(&context, &shard, at.as_deref()).await,
    }
}

/// What a split made.
#[derive(Serialize)]
struct SplitView {
    shard_id: u64,
    new_shard_id: u64,
    at: String,
}

async fn split(context: &Context, shard: &str, at: Option<&str>) -> anyhow::Result<()> {
    let admin = context.admin()?;
    let listed = find(&admin, shard).await?;
    let (shard_id, version) = (listed.shard_id, listed.epoch.unwrap_or_default().version);
    let at = at.map(parse_key).transpose()?.map(|key| key.to_bytes().to_vec());
    // With the version a retry cannot split it twice.
    let at = at.unwrap_or_default().into();
    let done = admin.split_shard(admin_v1::SplitShardRequest { shard_id, at, version }).await?;
    let view = SplitView {
        shard_id: done.shard_id,
        new_shard_id: done.new_shard_id,
        at: done.at.iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    output::print(context.output, &view, || {
        let (shard, child) = (ShardId(view.shard_id), ShardId(view.new_shard_id));
        format!("{shard} is split: keys from {} on are in {child} now", view.at)
    })
}

/// An anchor's id, or any key as hex digits.
fn parse_key(text: &str) -> anyhow::Result<Key> {
    let digits: String = text.chars().filter(|letter| *letter != '-').collect();
    let is_key = digits.len() == 32;
    let key = is_key.then(|| u128::from_str_radix(&digits, 16).ok()).flatten();
    key.map(Key).ok_or_else(|| {
        anyhow::anyhow!("{text:?} is no key: give an anchor's id or 32 hexadecimal digits")
    })
}

/// The shard that is shown so.
///
/// # Errors
/// If there is none.
async fn find(admin: &AdminClient, shard: &str) -> anyhow::Result<admin_v1::Shard> {
    let shards = all(admin, 0).await?;
    let is_meant = |known: &admin_v1::Shard| {
        ShardId(known.shard_id).to_string() == shard || known.shard_id.to_string() == shard
    };
    shards.into_iter().find(is_meant).ok_or_else(|| {
        let next = "`anchorhold shard list` shows their ids";
        Failure::new(Exit::NotFound, format!("there is no shard {shard}"), next).into()
    })
}

/// The id of the shard that is shown so.
///
/// # Errors
/// If there is none.
pub(crate) async fn shard_id(admin: &AdminClient, shard: &str) -> anyhow::Result<u64> {
    Ok(find(admin, shard).await?.shard_id)
}

async fn all(admin: &AdminClient, account: u32) -> anyhow::Result<Vec<admin_v1::Shard>> {
    let mut request =
        admin_v1::ListShardsRequest { account, page_size: 1_000, ..Default::default() };
    let mut shards = Vec::new();
    loop {
        let page = admin.list_shards(request.clone()).await?;
        shards.extend(page.shards);
        if page.next_page_token.is_empty() {
            return Ok(shards);
        }
        request.page_token = page.next_page_token;
    }
}

async fn list(context: &Context, account: u32) -> anyhow::Result<()> {
    let shards = all(&context.admin()?, account).await?;
    let views: Vec<ShardView> = shards.into_iter().map(ShardView::from).collect();
    output::print(context.output, &views, || {
        let header =
            ["SHARD", "FROM", "LEADER", "TERM", "REPLICAS", "REVISION", "ANCHORS", "SIZE", "STATE"];
        output::table(header, views.iter().map(ShardView::row))
    })
}

async fn show(context: &Context, shard: &str) -> anyhow::Result<()> {
    let admin = context.admin()?;
    let shard = ShardView::from(find(&admin, shard).await?);
    let operators = admin.list_operators(admin_v1::ListOperatorsRequest {}).await?.operators;
    let plan = admin.explain_plan(admin_v1::ExplainPlanRequest {}).await?;
    let is_its = |one: &admin_v1::Operator| one.shard_id == shard.shard_id;
    let refusals = plan.refusals.into_iter().filter(|one| one.shard_id == shard.shard_id);
    let view = ShardDetail {
        operator: operators.into_iter().find(is_its).map(OperatorView::from),
        refusals: refusals.map(RefusalView::from).collect(),
        shard,
    };
    output::print(context.output, &view, || view.text())
}

impl From<admin_v1::Shard> for ShardView {
    fn from(shard: admin_v1::Shard) -> Self {
        let range = shard.range.unwrap_or_default();
        let epoch = shard.epoch.unwrap_or_default();
        let replicas = shard.replicas.into_iter().map(|replica| ReplicaView {
            role: match replica.role() {
                v1::ReplicaRole::Unspecified => "unknown",
                v1::ReplicaRole::Voter => "voter",
                v1::ReplicaRole::Learner => "learner",
            },
            replica_id: replica.replica_id,
            node_id: replica.node_id,
            live: replica.live,
            applied_index: replica.applied_index,
            lag_entries: replica.lag_entries,
        });
        Self {
            shard_id: shard.shard_id,
            placement_class: shard.placement_class,
            epoch: format!("{}.{}.{}", epoch.incarnation, epoch.version, epoch.conf_version),
            start: hexadecimal(&range.start),
            end: hexadecimal(&range.end),
            leader_node_id: shard.leader_node_id,
            term: shard.term,
            revision: shard.revision,
            anchors: shard.anchors,
            bytes: shard.bytes,
            replicas: replicas.collect(),
            degraded: shard.degraded,
        }
    }
}

impl ShardView {
    fn leader(&self) -> String {
        match self.leader_node_id {
            0 => "none".to_owned(),
            node_id => NodeId(node_id).to_string(),
        }
    }

    fn row(&self) -> [String; 9] {
        let replicas = self.replicas.iter().map(|replica| {
            let mark = if replica.live { "" } else { " down" };
            format!("{}{mark}", NodeId(replica.node_id))
        });
        let is_catalog = self.shard_id == 0;
        [
            ShardId(self.shard_id).to_string(),
            if is_catalog { "(catalog)".to_owned() } else { self.start.chars().take(16).collect() },
            self.leader(),
            self.term.to_string(),
            replicas.collect::<Vec<_>>().join(", "),
            self.revision.to_string(),
            thousands(self.anchors),
            bytes(self.bytes),
            if self.degraded { "degraded" } else { "ok" }.to_owned(),
        ]
    }
}

impl ShardDetail {
    fn text(&self) -> String {
        let shard = &self.shard;
        let keys = if shard.shard_id == 0 {
            "none (catalog)".to_owned()
        } else {
            format!("from {} to {}", shard.start, or_end(&shard.end))
        };
        let mut facts = vec![
            ("shard", ShardId(shard.shard_id).to_string()),
            ("state", if shard.degraded { "degraded" } else { "ok" }.to_owned()),
            ("keys", keys),
            ("class", shard.placement_class.clone()),
            ("epoch", shard.epoch.clone()),
            ("leader", format!("{}, term {}", shard.leader(), shard.term)),
            ("holds", format!("{} anchors, {}", thousands(shard.anchors), bytes(shard.bytes))),
            ("revision", shard.revision.to_string()),
        ];
        facts.extend(
            self.operator
                .iter()
                .map(|one| ("under way", format!("{} ({})", one.steps.join(", "), one.reason))),
        );
        facts.extend(self.refusals.iter().map(|one| ("not done", one.text())));
        let rows = shard.replicas.iter().map(|replica| {
            [
                NodeId(replica.node_id).to_string(),
                ReplicaId(replica.replica_id).to_string(),
                replica.role.to_owned(),
                if replica.live { "live" } else { "down" }.to_owned(),
                replica.applied_index.to_string(),
                replica.lag_entries.to_string(),
            ]
        });
        let header = ["NODE", "REPLICA", "ROLE", "STATE", "APPLIED", "BEHIND"];
        format!("{}\n\n{}", output::facts(&facts), output::table(header, rows))
    }
}

/// The end of a range; the last one has none.
fn or_end(key: &str) -> &str {
    if key.is_empty() { "the end" } else { key }
}

fn hexadecimal(key: &[u8]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}
