//! Splits shards while faults are on, as an operator would.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anchorhold_client::{AdminClient, admin_v1};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use crate::workload::ClusterAccess;

/// How long one split may be asked for.
const SPLIT_MAX: Duration = Duration::from_secs(10);

/// Splits the largest shard every so often, until it is dropped.
pub(super) struct Splits {
    made: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Splits {
    pub(super) fn start(access: &ClusterAccess, every: Duration) -> anyhow::Result<Self> {
        let (admin, made) = (access.admin(SPLIT_MAX)?, Arc::<AtomicU32>::default());
        let counted = Arc::clone(&made);
        let task = tokio::spawn(async move {
            let mut turns = interval(every);
            turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                turns.tick().await;
                // Refused, or nobody there: faults are on. The next turn asks again.
                if split_largest(&admin).await.is_some() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Ok(Self { made, task })
    }

    /// Splits that were answered so far.
    pub(super) fn made(&self) -> u32 {
        self.made.load(Ordering::Relaxed)
    }
}

impl Drop for Splits {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn split_largest(admin: &AdminClient) -> Option<u64> {
    let request = admin_v1::ListShardsRequest { page_size: 1_000, ..Default::default() };
    let shards = admin.list_shards(request).await.ok()?.shards;
    let shards = shards.into_iter().filter(|shard| shard.shard_id != 0);
    let largest = shards.max_by_key(|shard| (shard.anchors, shard.shard_id))?;
    let request = admin_v1::SplitShardRequest {
        shard_id: largest.shard_id,
        version: largest.epoch.unwrap_or_default().version,
        ..Default::default()
    };
    admin.split_shard(request).await.ok().map(|done| done.new_shard_id)
}
