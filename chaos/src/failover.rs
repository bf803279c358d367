//! Kills the node that leads most shards, under load, round after round.
//!
//! Each round: find the node that leads most of the account's shards, SIGKILL it, wait until every
//! client has been acknowledged writes again, stop the load, read back everything that was ever
//! acknowledged, restart the node, wait until the cluster is healthy.
//!
//! A gap is the time between two acknowledgements of one client, measured from shortly before the
//! kill: acknowledgements that were under way at the kill must not hide the outage behind them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anchorhold_client::{AdminClient, Client, ClientConfig, admin_v1};
use anchorhold_cluster::{LaunchConfig, ProcessCluster, Topology};
use anyhow::{Context as _, ensure};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};

use crate::ledger::Ledger;
use crate::load::Load;

/// What to do, how often.
#[derive(Clone, Debug)]
pub struct FailoverConfig {
    /// The `anchorhold` binary.
    pub binary: PathBuf,
    /// Kills.
    pub rounds: u32,
    /// Clients that write at the same time.
    pub clients: u32,
    /// Shards of the account that they write to.
    pub shards: u32,
    /// Everything random follows from it.
    pub seed: u64,
    /// More arguments for every node's `start`.
    pub node_arguments: Vec<String>,
}

/// The one place where these numbers are written down.
impl Default for FailoverConfig {
    fn default() -> Self {
        Self {
            binary: PathBuf::from("anchorhold"),
            rounds: 20,
            clients: 6,
            shards: 6,
            seed: 1,
            node_arguments: Vec::new(),
        }
    }
}

/// What one round showed.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// From 1.
    pub number: u32,
    /// The node that was killed.
    pub killed: String,
    /// Shards that it led.
    pub shards_led: u32,
    /// The largest gap of the client that waited longest, in milliseconds.
    pub worst_client_gap_ms: u64,
    /// The largest time in which no client was acknowledged anything, in milliseconds.
    pub global_gap_ms: u64,
    /// Writes acknowledged in this round.
    pub acknowledged: usize,
    /// From the restart of the node until the cluster was healthy, in milliseconds.
    pub recovery_ms: u64,
}

/// What all rounds showed.
#[derive(Clone, Debug, Serialize)]
pub struct FailoverReport {
    /// The seed that they followed from.
    pub seed: u64,
    /// Round by round.
    pub rounds: Vec<Round>,
    /// Median over the rounds of the worst client's gap, in milliseconds.
    pub worst_client_gap_ms_median: u64,
    /// Maximum over the rounds of the worst client's gap, in milliseconds.
    pub worst_client_gap_ms_max: u64,
    /// Writes acknowledged in all.
    pub acknowledged: usize,
    /// Acknowledged writes that were not found again. Must be 0.
    pub lost: usize,
}

/// How long before the kill a gap may begin.
const WINDOW_BEFORE: Duration = Duration::from_millis(200);
/// Acknowledgements that each client has before the kill, and again after it.
const ACKS_PER_CLIENT: u64 = 20;
/// How long anything may take before the run is given up.
const GIVE_UP: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Runs all rounds on a cluster of its own. `progress` sees each round as it ends.
///
/// # Errors
/// If the cluster does not start, does not recover within a minute, or cannot be read back. Lost
/// writes are no error here: the report counts them.
pub async fn run(
    config: &FailoverConfig,
    mut progress: impl FnMut(&Round),
) -> anyhow::Result<FailoverReport> {
    ensure!(0 < config.rounds && 0 < config.clients, "rounds and clients must be at least 1");
    let directory = tempfile::tempdir()?;
    let launch = LaunchConfig {
        binary: config.binary.clone(),
        topology: Topology::three_zones(1),
        data_dir: directory.path().join("cluster"),
        node_arguments: config.node_arguments.clone(),
        node_environment: Vec::new(),
        ready_timeout: GIVE_UP,
        is_temporary: true,
    };
    let cluster = ProcessCluster::start(launch, |_| {}).await?;
    let mut run = Run::prepare(config, cluster).await?;
    let mut rounds = Vec::new();
    let mut lost = 0;
    for number in 1..=config.rounds {
        let (round, lost_now) = run
            .round(number)
            .await
            .with_context(|| format!("round {number} (seed {})", config.seed))?;
        progress(&round);
        rounds.push(round);
        lost = lost_now;
        if lost != 0 {
            break; // What was lost stays lost; more rounds would only bury it.
        }
    }
    run.cluster.stop().await;
    Ok(report(config.seed, rounds, lost))
}

fn report(seed: u64, rounds: Vec<Round>, lost: usize) -> FailoverReport {
    let mut gaps: Vec<u64> = rounds.iter().map(|round| round.worst_client_gap_ms).collect();
    gaps.sort_unstable();
    FailoverReport {
        seed,
        worst_client_gap_ms_median: gaps.get(gaps.len() / 2).copied().unwrap_or_default(),
        worst_client_gap_ms_max: gaps.last().copied().unwrap_or_default(),
        acknowledged: rounds.iter().map(|round| round.acknowledged).sum(),
        lost,
        rounds,
    }
}

struct Run {
    config: FailoverConfig,
    cluster: ProcessCluster,
    admin: AdminClient,
    client: Client,
    account: u32,
    rng: StdRng,
    ledger: Ledger,
}

impl Run {
    async fn prepare(config: &FailoverConfig, cluster: ProcessCluster) -> anyhow::Result<Self> {
        let nodes = cluster.state()?.nodes;
        let endpoints: Vec<String> =
            nodes.iter().map(|node| node.client_address.to_string()).collect();
        let admin = AdminClient::new(ClientConfig {
            endpoints: endpoints.clone(),
            api_key: cluster.admin_key()?,
            ..ClientConfig::default()
        })?;
        let created = admin
            .create_account(admin_v1::CreateAccountRequest {
                name: "failover".to_owned(),
                shards: config.shards,
                ..Default::default()
            })
            .await?;
        let client = Client::connect(ClientConfig {
            endpoints,
            api_key: created.api_key,
            ..ClientConfig::default()
        })
        .await?;
        let run = Self {
            config: config.clone(),
            cluster,
            admin,
            client,
            account: created.account.context("a created account is returned")?.number,
            rng: StdRng::seed_from_u64(config.seed),
            ledger: Ledger::default(),
        };
        run.wait_healthy().await?;
        Ok(run)
    }

    async fn round(&mut self, number: u32) -> anyhow::Result<(Round, usize)> {
        let load = Load::start(&self.client, self.config.clients, self.rng.random());
        within("the load to start", load.wait_for_each(ACKS_PER_CLIENT)).await?;
        let (killed, shards_led) = self.busiest_leader().await?;
        let from = Instant::now() - WINDOW_BEFORE;
        self.cluster.kill_node(&killed)?;
        // Each client, or the ones that had luck would end the load before the others are back.
        within("writes to go on", load.wait_for_each(ACKS_PER_CLIENT)).await?;
        let ledger = within("the clients to finish", load.stop()).await?;
        let until = last_common_ack(&ledger).context("every client was acknowledged something")?;
        let acknowledged = ledger.acknowledged();
        let worst = ledger.worst_client_gap(from, until);
        let global = ledger.global_gap(from, until);
        self.ledger.extend(ledger);
        let lost = self.ledger.verify(&self.client).await?;
        for one in lost.iter().take(10) {
            eprintln!("lost: {} was {}, is {:?}", one.id, one.acknowledged, one.found);
        }
        let restarted = Instant::now();
        self.cluster.start_node(&killed)?;
        self.cluster.wait_ready(std::slice::from_ref(&killed), &mut |_| {}).await?;
        self.wait_healthy().await?;
        let round = Round {
            number,
            killed,
            shards_led,
            worst_client_gap_ms: milliseconds(worst),
            global_gap_ms: milliseconds(global),
            acknowledged,
            recovery_ms: milliseconds(restarted.elapsed()),
        };
        Ok((round, lost.len()))
    }

    /// The name of the node that leads most of the account's shards, and how many.
    async fn busiest_leader(&self) -> anyhow::Result<(String, u32)> {
        let request = admin_v1::ListShardsRequest {
            account: self.account,
            page_size: 1_000,
            ..Default::default()
        };
        let shards = self.admin.list_shards(request).await?.shards;
        let mut led = BTreeMap::<u64, u32>::new();
        for shard in shards.iter().filter(|shard| shard.leader_node_id != 0) {
            *led.entry(shard.leader_node_id).or_default() += 1;
        }
        let busiest = led.into_iter().max_by_key(|(node, count)| (*count, u64::MAX - node));
        let (node_id, count) = busiest.context("no shard has a leader")?;
        let nodes = self.admin.list_nodes(admin_v1::ListNodesRequest {}).await?.nodes;
        let node = nodes.into_iter().find(|node| node.node_id == node_id);
        let address = node.context("the leader is a node")?.client_address;
        let state = self.cluster.state()?;
        let named = state.nodes.iter().find(|node| node.client_address.to_string() == address);
        Ok((named.context("the leader runs here")?.name.clone(), count))
    }

    async fn wait_healthy(&self) -> anyhow::Result<()> {
        let mut last = String::new();
        let asking = async {
            loop {
                match self.admin.get_cluster_status(admin_v1::GetClusterStatusRequest {}).await {
                    Ok(status) if status.health() == admin_v1::Health::Healthy => return,
                    Ok(status) => last = status.problems.join("; "),
                    Err(error) => last = error.to_string(),
                }
                sleep(POLL_INTERVAL).await;
            }
        };
        timeout(GIVE_UP, asking).await.ok().with_context(|| format!("not healthy: {last}"))
    }
}

/// The latest time at which no client's last acknowledgement is over yet: after it some clients had
/// stopped writing, which is no gap.
fn last_common_ack(ledger: &Ledger) -> Option<Instant> {
    let lasts = ledger.clients.iter().map(|client| client.acks.last().map(|ack| ack.at));
    lasts.min().flatten()
}

async fn within<T>(what: &str, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    timeout(GIVE_UP, work).await.with_context(|| format!("waited a minute for {what}"))?
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_the_median_and_the_maximum_of_the_worst_clients() {
        let round = |worst_client_gap_ms| Round {
            number: 1,
            killed: "a1".to_owned(),
            shards_led: 1,
            worst_client_gap_ms,
            global_gap_ms: 0,
            acknowledged: 10,
            recovery_ms: 0,
        };
        let report = report(7, [900, 100, 500].map(round).to_vec(), 0);
        assert_eq!(report.worst_client_gap_ms_median, 500);
        assert_eq!(report.worst_client_gap_ms_max, 900);
        assert_eq!(report.acknowledged, 30);
    }
}
