//! Erases rows that are due: anchors long expired, dedup entries past their keep time.
//!
//! Each leader on this node proposes bounded batches, now and then. `apply` checks every row again,
//! so a wrong proposal costs a no-op. The grace keeps a clock that jumped from destroying data.

use std::sync::Arc;
use std::time::Duration;

use anchorhold_consensus::Replica;
use anchorhold_model::{Command, OperationId, Outcome, RequestId, Timestamp, Write};
use metrics::counter;

use crate::core::Core;
use crate::index::contents::SweepRules;
use crate::telemetry::name;

/// When rows may be erased, and how many at once. Dedup entries live as long as the API promises.
const RULES: SweepRules = SweepRules {
    grace_ms: 24 * 60 * 60 * 1_000,
    operations_keep_ms: 15 * 60 * 1_000,
    rows_max: 2_048,
};
/// Time between two looks at the shards.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long one batch may take.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Batches of one shard in one round, at most: writes of clients go on between them.
const BATCHES_MAX: usize = 16;

impl Core {
    /// Sweeps the shards that are led here, until the node ends.
    pub async fn sweep_forever(self: Arc<Self>) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            for replica in self.host.replicas() {
                for _ in 0..BATCHES_MAX {
                    if !replica.is_leader() || !self.sweep(&replica).await {
                        break;
                    }
                }
            }
        }
    }

    /// Proposes one batch. True if there may be more.
    async fn sweep(&self, replica: &Arc<Replica>) -> bool {
        let Some(index) = self.indexes.shard(replica.shard_id()) else { return false };
        // An idle shard's time stands still: what is due is due by the leader's clock then.
        let now: Timestamp = replica.shard_time().max(self.clock.wall());
        let due = index.due(now, &RULES);
        let rows = due.anchors.len() + due.operations.len();
        if rows == 0 {
            return false;
        }
        let operations = due.operations.clone();
        let command = Command {
            operation: OperationId { request_id: RequestId(self.random()), item: 0 },
            epoch: replica.state().descriptor.epoch,
            write: Write::Sweep { anchors: due.anchors, operations: due.operations },
        };
        match replica.propose(vec![command], PROPOSE_TIMEOUT).await {
            Ok(outcomes) => {
                for outcome in outcomes {
                    if let Outcome::Swept { anchors, operations } = outcome {
                        let rows = u64::from(anchors) + u64::from(operations);
                        counter!(name::SWEPT_TOTAL).increment(rows);
                    }
                }
                // Also those that were gone already.
                index.forget_operations(&operations);
                RULES.rows_max <= rows
            }
            Err(error) => {
                tracing::debug!(%error, "a sweep has to wait");
                false
            }
        }
    }
}
