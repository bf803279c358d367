//! Reads everything back once the cluster is healed.
//!
//! `final/cluster.json` holds shards, replicas and their digests; `final/<workload>.bin` what the
//! API and each node by itself hold of a workload's account. Nodes are read at LOCAL with the token
//! of the linearizable listing before: a replica has to have caught up with it, however it lags.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anchorhold_client::{AdminClient, Client, ClientConfig, ClientError, admin_v1, v1};
use anchorhold_proto::SessionToken;
use anyhow::Context as _;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::clock::RunClock;
use crate::history::{
    Action, Header, HistoryReader, Level, Operation, Outcome, Recorder, Row, Served,
};
use crate::run_directory::RunDirectory;
use crate::workload::{
    ClusterAccess, NodeAccess, WorkloadConfig, make_key, revoke_key, rows_of_page,
};

/// The cluster after the heal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinalState {
    /// All nodes.
    pub nodes: Vec<FinalNode>,
    /// The numbers of all accounts.
    pub accounts: Vec<u32>,
    /// All shards by range, the catalog first.
    pub shards: Vec<FinalShard>,
    /// How long it took until all replicas were equal, or were given up, in milliseconds.
    pub waited_ms: u64,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinalNode {
    /// Its id.
    pub node_id: u64,
    /// Its name in the topology.
    pub name: String,
    /// Its region.
    pub region: String,
    /// Its zone within the region.
    pub zone: String,
}

/// A shard as the cluster describes it, and its replicas as each node describes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinalShard {
    /// Its id; 0 is the catalog.
    pub shard_id: u64,
    /// First key, 32 hexadecimal digits; empty for the catalog.
    pub start: String,
    /// First key after it; empty for the last shard, and for the catalog.
    pub end: String,
    /// The node that leads it; 0 if none does.
    pub leader: u64,
    /// Whether it misses a live voter or zones.
    pub degraded: bool,
    /// Its replicas.
    pub replicas: Vec<FinalReplica>,
}

/// A replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinalReplica {
    /// Its node.
    pub node_id: u64,
    /// Whether it counts in the quorum.
    pub is_voter: bool,
    /// Whether it follows.
    pub is_live: bool,
    /// What it holds.
    pub digest: DigestRead,
}

/// What a node said of its replica's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum DigestRead {
    /// Its digest.
    Made {
        /// Last log index applied.
        applied_index: u64,
        /// Anchors stored.
        anchors: u64,
        /// The digest, 32 hexadecimal digits.
        digest: String,
    },
    /// None, and why.
    Failed(String),
}

/// How long replicas may take to become equal after the heal.
const SETTLE_MAX: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(300);
/// How long one call may take.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
const PAGE_SIZE: u32 = 1_000;

/// Reads everything back into `final/`. Call it after the heal, when the workloads have stopped.
///
/// # Errors
/// If the cluster does not answer, or the disk fails. What a single node does not answer is
/// recorded and judged.
pub async fn collect(access: &ClusterAccess, directory: &RunDirectory) -> anyhow::Result<()> {
    let state = final_state(access).await.context("reading the cluster's shards")?;
    save_final_state(directory, &state)?;
    for path in histories(directory)? {
        let header = HistoryReader::open(&path)?.header().clone();
        read_back(access, directory, &header)
            .await
            .with_context(|| format!("reading back {}", header.name))?;
    }
    Ok(())
}

/// Writes down how the cluster was in the end.
pub(crate) fn save_final_state(directory: &RunDirectory, state: &FinalState) -> anyhow::Result<()> {
    let text = serde_json::to_vec_pretty(state)?;
    std::fs::write(state_file(directory), text).context("cannot write final/cluster.json")
}

/// What [`collect`] read of the cluster.
///
/// # Errors
/// If it cannot be read.
pub fn read_final_state(directory: &RunDirectory) -> anyhow::Result<FinalState> {
    let path = state_file(directory);
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

fn state_file(directory: &RunDirectory) -> PathBuf {
    directory.last().join("cluster.json")
}

/// The recorded histories, by name.
pub(super) fn histories(directory: &RunDirectory) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory.history())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "bin") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Where what was read back of a workload stands.
pub(crate) fn read_back_file(directory: &RunDirectory, name: &str) -> PathBuf {
    directory.last().join(format!("{name}.bin"))
}

async fn final_state(access: &ClusterAccess) -> anyhow::Result<FinalState> {
    let admin = access.admin(CALL_DEADLINE)?;
    let mut admins = BTreeMap::new();
    for node in &access.nodes {
        let config = ClientConfig {
            endpoints: vec![node.endpoint.clone()],
            api_key: access.admin_key.clone(),
            deadline: CALL_DEADLINE,
            ..ClientConfig::default()
        };
        admins.insert(node.node_id, AdminClient::new(config)?);
    }
    let begun = Instant::now();
    loop {
        let shards = list_shards(&admin, &admins).await?;
        let is_settled = shards.iter().all(FinalShard::is_settled);
        if is_settled || SETTLE_MAX <= begun.elapsed() {
            let nodes = access.nodes.iter().map(FinalNode::of).collect();
            let waited_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            let accounts = list_accounts(&admin).await?;
            return Ok(FinalState { nodes, accounts, shards, waited_ms });
        }
        sleep(POLL_INTERVAL).await;
    }
}

async fn list_accounts(admin: &AdminClient) -> anyhow::Result<Vec<u32>> {
    let mut request = admin_v1::ListAccountsRequest { page_size: PAGE_SIZE, ..Default::default() };
    let mut numbers = Vec::new();
    loop {
        let page = admin.list_accounts(request.clone()).await?;
        numbers.extend(page.accounts.iter().map(|account| account.number));
        if page.next_page_token.is_empty() {
            return Ok(numbers);
        }
        request.page_token = page.next_page_token;
    }
}

async fn list_shards(
    admin: &AdminClient,
    admins: &BTreeMap<u64, AdminClient>,
) -> anyhow::Result<Vec<FinalShard>> {
    let mut request = admin_v1::ListShardsRequest { page_size: PAGE_SIZE, ..Default::default() };
    let mut shards = Vec::new();
    loop {
        let page = admin.list_shards(request.clone()).await?;
        for shard in page.shards {
            shards.push(final_shard(&shard, admins).await);
        }
        if page.next_page_token.is_empty() {
            return Ok(shards);
        }
        request.page_token = page.next_page_token;
    }
}

async fn final_shard(shard: &admin_v1::Shard, admins: &BTreeMap<u64, AdminClient>) -> FinalShard {
    let range = shard.range.clone().unwrap_or_default();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let digests = shard.replicas.iter().map(|replica| async {
        match admins.get(&replica.node_id) {
            Some(admin) => digest(admin, shard.shard_id).await,
            None => DigestRead::Failed("the node is not known to the harness".to_owned()),
        }
    });
    let digests = futures::future::join_all(digests).await;
    let replicas = shard.replicas.iter().zip(digests).map(|(replica, digest)| FinalReplica {
        node_id: replica.node_id,
        is_voter: replica.role() == v1::ReplicaRole::Voter,
        is_live: replica.live,
        digest,
    });
    FinalShard {
        shard_id: shard.shard_id,
        start: hex(&range.start),
        end: hex(&range.end),
        leader: shard.leader_node_id,
        degraded: shard.degraded,
        replicas: replicas.collect(),
    }
}

async fn digest(admin: &AdminClient, shard_id: u64) -> DigestRead {
    match admin.get_replica_digest(admin_v1::GetReplicaDigestRequest { shard_id }).await {
        Ok(reply) => DigestRead::Made {
            applied_index: reply.applied_index,
            anchors: reply.anchors,
            digest: reply.digest,
        },
        Err(error) => DigestRead::Failed(error.to_string()),
    }
}

impl FinalShard {
    /// Whether there is nothing to wait for any more.
    fn is_settled(&self) -> bool {
        let is_whole = self.leader != 0 && !self.degraded;
        let first = self.replicas.first().map(|replica| &replica.digest);
        let is_made = matches!(first, Some(DigestRead::Made { .. }));
        let is_equal = self.replicas.iter().all(|one| one.is_live && Some(&one.digest) == first);
        is_whole && is_made && is_equal
    }
}

impl FinalNode {
    fn of(node: &NodeAccess) -> Self {
        Self {
            node_id: node.node_id,
            name: node.name.clone(),
            region: node.region.clone(),
            zone: node.zone.clone(),
        }
    }
}

/// Lists an account through the API and at every node. Client 0 of the record is the API, client
/// `i + 1` the node `i`; one operation a page.
async fn read_back(
    access: &ClusterAccess,
    directory: &RunDirectory,
    header: &Header,
) -> anyhow::Result<()> {
    let config: WorkloadConfig = serde_json::from_str(&header.config)?;
    if matches!(config, WorkloadConfig::Expiry(_)) {
        return Ok(()); // What is visible changes while it is read.
    }
    let admin = access.admin(CALL_DEADLINE)?;
    // A key of its own, which ends with the reading: the run's directory holds no secrets.
    let (key_id, api_key) = make_key(&admin, header.account).await?;
    let path = read_back_file(directory, &header.name);
    remove_earlier(&path)?;
    let recorder = Recorder::create(&path, header)?;
    let read = read_all(access, &api_key, &recorder).await;
    recorder.finish()?;
    revoke_key(&admin, header.account, key_id).await?;
    read
}

fn remove_earlier(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

async fn read_all(
    access: &ClusterAccess,
    api_key: &str,
    recorder: &Recorder,
) -> anyhow::Result<()> {
    let clock = RunClock::start();
    let client = access.client(api_key, CALL_DEADLINE).await?;
    let (pages, token) = list(&client, v1::ReadOptions::default()).await.context("listing")?;
    record(recorder, clock, 0, Served::default(), Level::Linearizable, Ok(pages))?;
    for (number, node) in (1..).zip(&access.nodes) {
        let read = v1::ReadOptions { session_token: token.clone(), ..v1::ReadOptions::local() };
        let listed = match access.client_of_node(node, api_key, CALL_DEADLINE).await {
            Ok(client) => list(&client, read).await.map(|(pages, _)| pages),
            Err(error) => Err(error),
        };
        let served = Served { node: node.node_id, ..Served::default() };
        record(recorder, clock, number, served, Level::Session, listed)?;
    }
    Ok(())
}

/// All pages, and a token of all that they saw.
async fn list(
    client: &Client,
    read: v1::ReadOptions,
) -> Result<(Vec<Vec<Row>>, Bytes), ClientError> {
    let mut request =
        v1::ListAnchorsRequest { page_size: PAGE_SIZE, read: Some(read), ..Default::default() };
    let (mut pages, mut seen) = (Vec::new(), SessionToken::default());
    loop {
        let page = client.list_anchors(request.clone()).await?;
        // An anchor without id or etag is a row that fits nothing: it will be found.
        let nothing =
            Row { id: 0, version: anchorhold_model::Version::default(), value: 0, distance_m: 0.0 };
        pages.push(rows_of_page(&page.anchors).unwrap_or_else(|| vec![nothing]));
        if let Ok(token) = SessionToken::decode(&page.session_token) {
            seen.merge(&token);
        }
        if page.next_page_token.is_empty() {
            return Ok((pages, seen.encode().unwrap_or_default()));
        }
        request.page_token = page.next_page_token;
    }
}

fn record(
    recorder: &Recorder,
    clock: RunClock,
    client: u32,
    served: Served,
    level: Level,
    listed: Result<Vec<Vec<Row>>, ClientError>,
) -> anyhow::Result<()> {
    let end_ns = clock.now_ns();
    let outcomes = match listed {
        Ok(pages) => {
            let page = |rows| Outcome::Rows { rows, complete: true };
            pages.into_iter().map(page).collect()
        }
        Err(error) => vec![Outcome::Failed { reason: error.to_string() }],
    };
    for outcome in outcomes {
        let action = Action::List { level };
        let (start_ns, resolved) = (0, false);
        recorder.record(&Operation {
            client,
            start_ns,
            end_ns,
            resolved,
            served,
            action,
            outcome,
        })?;
    }
    Ok(())
}
