//! How a cluster looks after its nodes and replicas. Every node has these numbers; those of the node
//! that leads the catalog count.

use anchorhold_model::catalog::SchedulerRecord;
use anchorhold_placement::PlacementConfig;
use anchorhold_placement::lifecycle::LifecycleConfig;
use serde::{Deserialize, Serialize};

use super::{ConfigError, wrong};

/// Timers and limits of moving replicas and leaders. Times in milliseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlacementSettings {
    /// Between two looks at the cluster.
    pub interval_ms: u64,
    /// A node silent for this long is suspect: it gets nothing new.
    pub suspect_ms: u64,
    /// A node silent for this long is down: its replicas are rebuilt elsewhere.
    pub down_ms: u64,
    /// The same for a node whose whole zone went quiet.
    pub zone_down_ms: u64,
    /// How long a node that is back is heard and caught up before it gets anything.
    pub steady_ms: u64,
    /// A replica that its node does not have, though the node answers, is replaced after this long.
    pub absent_ms: u64,
    /// How long a shard that was moved is not moved for balance.
    pub settle_ms: u64,
    /// How long a shard whose leader changed keeps it, as far as balance is concerned.
    pub leader_settle_ms: u64,
    /// How long an operator may take before it is given up.
    pub operator_ms_max: u64,
    /// Operators at once, at most.
    pub operators_max: usize,
    /// Replicas that are built on a node at once, at most.
    pub incoming_max: usize,
    /// Replicas that are built from a leader on a node at once, at most.
    pub outgoing_max: usize,
    /// Leaderships that a node gives or takes at once for balance, at most.
    pub leader_transfers_max: usize,
    /// Requests per second that a node can lead.
    pub load_max: u64,
    /// A shard with more bytes of records is split; 0 if none is for that.
    pub split_bytes: u64,
    /// A shard with more anchors is split; 0 if none is for that.
    pub split_anchors: u64,
    /// A shard that is asked more often per second is split; 0 if none is for that.
    pub split_load: u64,
    /// How long it is asked so often before it is split.
    pub split_load_ms: u64,
    /// A shard with fewer anchors is not split for its load.
    pub split_load_anchors_min: u64,
    /// How long a shard that was split or moved is not split.
    pub split_settle_ms: u64,
    /// Splits at once, at most.
    pub splits_max: usize,
    /// Whether small neighbours are merged. Nothing depends on it but the number of shards.
    pub merges: bool,
    /// Both are smaller than this to be merged, in bytes of records.
    pub merge_bytes_max: u64,
    /// Both are asked less often than this per second to be merged.
    pub merge_load_max: u64,
    /// How long both were neither split, merged nor moved to be merged.
    pub merge_settle_ms: u64,
    /// Merges at once, at most.
    pub merges_max: usize,
}

/// The one place where these numbers are written down, but for those that `placement` has.
impl Default for PlacementSettings {
    fn default() -> Self {
        let (life, plan) = (LifecycleConfig::default(), PlacementConfig::default());
        Self {
            interval_ms: 1_000,
            suspect_ms: life.suspect_ms,
            down_ms: life.down_ms,
            zone_down_ms: life.zone_down_ms,
            steady_ms: life.steady_ms,
            absent_ms: 60_000,
            settle_ms: plan.settle_ms,
            leader_settle_ms: plan.leader_settle_ms,
            operator_ms_max: 600_000,
            operators_max: 64,
            incoming_max: plan.incoming_max,
            outgoing_max: plan.outgoing_max,
            leader_transfers_max: plan.leader_transfers_max,
            load_max: 20_000,
            split_bytes: plan.split_bytes,
            split_anchors: plan.split_anchors,
            split_load: plan.split_load,
            split_load_ms: plan.split_load_ms,
            split_load_anchors_min: plan.split_load_anchors_min,
            split_settle_ms: plan.split_settle_ms,
            splits_max: plan.splits_max,
            merges: plan.merges,
            merge_bytes_max: plan.merge_bytes_max,
            merge_load_max: plan.merge_load_max,
            merge_settle_ms: plan.merge_settle_ms,
            merges_max: plan.merges_max,
        }
    }
}

impl PlacementSettings {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.interval_ms == 0 || self.suspect_ms < self.interval_ms {
            let rule = "must be at least placement.interval_ms, which must be at least 1";
            return Err(wrong("placement.suspect_ms", rule));
        }
        if self.down_ms < self.suspect_ms || self.zone_down_ms < self.suspect_ms {
            let rule = "and placement.zone_down_ms must be at least placement.suspect_ms";
            return Err(wrong("placement.down_ms", rule));
        }
        if self.operator_ms_max == 0 || self.load_max == 0 {
            let rule = "and placement.operator_ms_max must be at least 1";
            return Err(wrong("placement.load_max", rule));
        }
        if self.split_settle_ms < self.interval_ms {
            // What a shard was before its split must not be taken for what its halves are.
            let rule = "must be at least placement.interval_ms";
            return Err(wrong("placement.split_settle_ms", rule));
        }
        if self.merges && self.merge_settle_ms < self.split_settle_ms {
            // What was split a moment ago would be one again before anybody has seen its halves.
            let rule = "must be at least placement.split_settle_ms";
            return Err(wrong("placement.merge_settle_ms", rule));
        }
        Ok(())
    }

    /// The timers of nodes and zones.
    pub fn lifecycle(&self) -> LifecycleConfig {
        LifecycleConfig {
            suspect_ms: self.suspect_ms,
            down_ms: self.down_ms,
            zone_down_ms: self.zone_down_ms,
            steady_ms: self.steady_ms,
            ..LifecycleConfig::default()
        }
    }

    /// The limits of planning, with what operators have set since.
    pub fn planning(&self, scheduler: &SchedulerRecord) -> PlacementConfig {
        let set = |number: Option<u32>, configured: usize| {
            number.and_then(|number| usize::try_from(number).ok()).unwrap_or(configured)
        };
        let limit = |number: u64| if number == 0 { u64::MAX } else { number };
        PlacementConfig {
            settle_ms: self.settle_ms,
            leader_settle_ms: self.leader_settle_ms,
            operators_max: set(scheduler.operators_max, self.operators_max),
            incoming_max: set(scheduler.incoming_max, self.incoming_max),
            outgoing_max: self.outgoing_max,
            leader_transfers_max: self.leader_transfers_max,
            split_bytes: limit(self.split_bytes),
            split_anchors: limit(self.split_anchors),
            split_load: limit(self.split_load),
            split_load_ms: self.split_load_ms,
            split_load_anchors_min: self.split_load_anchors_min,
            split_settle_ms: self.split_settle_ms,
            splits_max: self.splits_max,
            merges: self.merges,
            merge_bytes_max: self.merge_bytes_max,
            merge_load_max: self.merge_load_max,
            merge_settle_ms: self.merge_settle_ms,
            merges_max: self.merges_max,
            ..PlacementConfig::default()
        }
    }
}
