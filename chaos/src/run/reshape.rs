//! Splits, merges and moves shards while faults are on, as an operator would.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anchorhold_client::{AdminClient, admin_v1};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::events::EventKind;
use crate::scenario::Reshape;
use crate::workload::ClusterAccess;

/// How long one change may take, from asking for it to seeing it.
const CHANGE_MAX: Duration = Duration::from_secs(15);
/// How often a change that is under way is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Shards beyond which none is split, and below which none is merged: so that there is always
/// something to do for both.
const SHARDS_MAX: usize = 40;
const SHARDS_MIN: usize = 8;

/// Changes shards until it is dropped.
pub(super) struct Reshaping {
    wanted: Reshape,
    made: Arc<Made>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Made {
    splits: AtomicU64,
    merges: AtomicU64,
    moves: AtomicU64,
}

#[derive(Clone, Copy)]
enum Change {
    Split,
    Merge,
    Move,
}

impl Reshaping {
    pub(super) fn start(
        access: &ClusterAccess,
        wanted: Reshape,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let made = Arc::<Made>::default();
        let mut tasks = Vec::new();
        for (number, change) in (0..).zip(Change::ALL) {
            let Some(every) = change.every(&wanted) else { continue };
            let (admin, made) = (access.admin(CHANGE_MAX)?, Arc::clone(&made));
            let mut random = StdRng::seed_from_u64(seed ^ number);
            tasks.push(tokio::spawn(async move {
                let mut turns = interval(every);
                turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
                loop {
                    turns.tick().await;
                    // Refused, or nobody there: faults are on. The next turn asks again.
                    let changed = timeout(CHANGE_MAX, change.make(&admin, &mut random)).await;
                    if matches!(changed, Ok(Some(()))) {
                        change.count(&made).fetch_add(1, Ordering::Relaxed);
                    }
                }
            }));
        }
        Ok(Self { wanted, made, tasks })
    }

    /// What was made so far.
    pub(super) fn event(&self) -> EventKind {
        let count = |change: Change| change.count(&self.made).load(Ordering::Relaxed);
        EventKind::ShardsChanged {
            splits: count(Change::Split),
            merges: count(Change::Merge),
            moves: count(Change::Move),
        }
    }

    /// The kinds that are wanted, and how many of each were made so far.
    pub(super) fn made(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let wanted = Change::ALL.into_iter().filter(|change| change.every(&self.wanted).is_some());
        wanted.map(|change| (change.name(), change.count(&self.made).load(Ordering::Relaxed)))
    }
}

impl Drop for Reshaping {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Change {
    const ALL: [Self; 3] = [Self::Split, Self::Merge, Self::Move];

    fn every(self, wanted: &Reshape) -> Option<Duration> {
        match self {
            Self::Split => wanted.split_every,
            Self::Merge => wanted.merge_every,
            Self::Move => wanted.move_every,
        }
    }

    /// What was done to a shard, in a word.
    fn name(self) -> &'static str {
        match self {
            Self::Split => "split",
            Self::Merge => "merged",
            Self::Move => "moved",
        }
    }

    fn count(self, made: &Made) -> &AtomicU64 {
        match self {
            Self::Split => &made.splits,
            Self::Merge => &made.merges,
            Self::Move => &made.moves,
        }
    }

    /// Makes one change, and sees it made.
    async fn make(self, admin: &AdminClient, random: &mut StdRng) -> Option<()> {
        match self {
            Self::Split => split_largest(admin).await,
            Self::Merge => merge_some(admin, random).await,
            Self::Move => move_some(admin, random).await,
        }
    }
}

async fn shards(admin: &AdminClient) -> Option<Vec<admin_v1::Shard>> {
    let request = admin_v1::ListShardsRequest { page_size: 1_000, ..Default::default() };
    let mut shards = admin.list_shards(request).await.ok()?.shards;
    shards.retain(|shard| shard.shard_id != 0);
    Some(shards)
}

async fn split_largest(admin: &AdminClient) -> Option<()> {
    let shards = shards(admin).await?;
    if SHARDS_MAX <= shards.len() {
        return None;
    }
    let largest = shards.into_iter().max_by_key(|shard| (shard.anchors, shard.shard_id))?;
    let request = admin_v1::SplitShardRequest {
        shard_id: largest.shard_id,
        version: largest.epoch.unwrap_or_default().version,
        ..Default::default()
    };
    admin.split_shard(request).await.ok().map(drop)
}

async fn merge_some(admin: &AdminClient, random: &mut StdRng) -> Option<()> {
    let shards = shards(admin).await?;
    if shards.len() <= SHARDS_MIN {
        return None;
    }
    let shard_id = shards.get(random.random_range(0..shards.len()))?.shard_id;
    // The first shard of an account has nobody on its left: refused.
    admin.merge_shard(admin_v1::MergeShardRequest { shard_id }).await.ok()?;
    until(admin, |shards| shards.iter().all(|shard| shard.shard_id != shard_id)).await;
    Some(())
}

/// Moves a replica to another node of its zone.
async fn move_some(admin: &AdminClient, random: &mut StdRng) -> Option<()> {
    let shards = shards(admin).await?;
    let nodes = admin.list_nodes(admin_v1::ListNodesRequest {}).await.ok()?.nodes;
    let zones: BTreeMap<u64, (&str, &str)> = nodes
        .iter()
        .map(|node| (node.node_id, (node.region.as_str(), node.zone.as_str())))
        .collect();
    let shard = shards.get(random.random_range(0..shards.len().max(1)))?;
    let holds = |node_id: u64| shard.replicas.iter().any(|one| one.node_id == node_id);
    let ways: Vec<(u64, u64)> = nodes
        .iter()
        .filter(|node| holds(node.node_id))
        .flat_map(|from| {
            let same_zone =
                nodes.iter().filter(|to| zones.get(&to.node_id) == zones.get(&from.node_id));
            same_zone.map(|to| (from.node_id, to.node_id))
        })
        .filter(|(_, to)| !holds(*to))
        .collect();
    let (from, to) = *ways.get(random.random_range(0..ways.len().max(1)))?;
    let shard_id = shard.shard_id;
    let request = admin_v1::MoveShardRequest { shard_id, from_node_id: from, to_node_id: to };
    admin.move_shard(request).await.ok()?;
    until(admin, |shards| {
        let replicas = shards.iter().filter(|shard| shard.shard_id == shard_id);
        let nodes: Vec<u64> =
            replicas.flat_map(|shard| &shard.replicas).map(|one| one.node_id).collect();
        nodes.contains(&to) && !nodes.contains(&from)
    })
    .await;
    Some(())
}

/// Looks until the shards are as they should be; whoever calls has an end to that.
async fn until(admin: &AdminClient, are_there: impl Fn(&[admin_v1::Shard]) -> bool) {
    loop {
        if let Some(shards) = shards(admin).await
            && are_there(&shards)
        {
            return;
        }
        sleep(LOOK_INTERVAL).await;
    }
}
