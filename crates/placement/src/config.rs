//! The numbers of placement.

/// Limits, bands and sizes of placement. Ratios are in thousandths, times in milliseconds, loads in
/// requests per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacementConfig {
    /// Voters per shard of a class that lives in one region. Odd.
    pub voters: usize,
    /// Voters per shard of a class that lives in three regions. Odd.
    pub voters_regional: usize,
    /// Learners per shard in the paired region.
    pub learners_paired: usize,
    /// Voters of the catalog, at most. Odd.
    pub catalog_voters_max: usize,
    /// Operators that run at the same time, at most.
    pub operators_max: usize,
    /// Replicas that are built on a node at the same time, at most.
    pub incoming_max: usize,
    /// Replicas that are built from a leader on a node at the same time, at most.
    pub outgoing_max: usize,
    /// Replicas that are built in a zone at the same time, at most.
    pub zone_incoming_max: usize,
    /// Of `incoming_max`, how many balance alone may use.
    pub balance_incoming_max: usize,
    /// Leaderships that a node gives or takes at the same time, at most.
    pub leader_transfers_max: usize,
    /// Merges at the same time, at most.
    pub merges_max: usize,
    /// Splits at the same time, at most: each side's new owner builds an index of its own.
    pub splits_max: usize,
    /// A node fuller than this is no target.
    pub target_usage_permille: u64,
    /// Lost replicas are not rebuilt in a region that would be fuller than this afterwards.
    pub repair_usage_permille: u64,
    /// Lost replicas are not rebuilt in a region whose survivors lead more load than this.
    pub repair_load_permille: u64,
    /// Two nodes or zones that differ by less than this share of the mean are balanced.
    pub balance_band_permille: u64,
    /// How long a shard that was moved or split is not moved for balance.
    pub settle_ms: u64,
    /// How long a shard whose leader changed keeps it, as far as balance is concerned: what a new
    /// leader is asked is not known at once.
    pub leader_settle_ms: u64,
    /// What a replica weighs beside its records, in bytes: empty shards are spread too.
    pub replica_overhead_bytes: u64,
    /// What a leadership costs beside its load, in requests per second.
    pub leader_overhead_load: u64,
    /// What it weighs where leaders are evened out. What is asked of shards that are little asked now
    /// may be asked of any of them next: up to about this load leaders are spread by their number,
    /// beyond it by their load.
    pub leader_balance_load: u64,
    /// A voter that is further behind than this does not become leader.
    pub transfer_lag_entries_max: u64,
    /// A shard with more bytes is split.
    pub split_bytes: u64,
    /// A shard with more anchors is split.
    pub split_anchors: u64,
    /// A shard with more load is split, if it has had it for `split_load_ms`.
    pub split_load: u64,
    /// How long a shard has too much load before it is split for that: a burst is over sooner.
    pub split_load_ms: u64,
    /// A shard with fewer anchors is not split for its load: what is asked for is likely the same
    /// few, and they would stay together.
    pub split_load_anchors_min: u64,
    /// How long a shard that was moved or split is not split.
    pub split_settle_ms: u64,
    /// Whether small neighbours become one. Off unless asked for.
    pub merges: bool,
    /// Both neighbours are smaller than this to be merged, in bytes.
    pub merge_bytes_max: u64,
    /// Both neighbours have less load than this to be merged.
    pub merge_load_max: u64,
    /// How long neighbours have not changed to be merged.
    pub merge_settle_ms: u64,
    /// Refusals that a plan lists one by one, at most. All are counted.
    pub refusals_max: usize,
}

const MIB: u64 = 1 << 20;

/// The one place where placement numbers are written down.
impl Default for PlacementConfig {
    fn default() -> Self {
        Self {
            voters: 3,
            voters_regional: 5,
            learners_paired: 2,
            catalog_voters_max: 3,
            operators_max: 2_048,
            incoming_max: 4,
            outgoing_max: 4,
            zone_incoming_max: 256,
            balance_incoming_max: 2,
            leader_transfers_max: 8,
            merges_max: 4,
            splits_max: 8,
            target_usage_permille: 800,
            repair_usage_permille: 750,
            repair_load_permille: 800,
            balance_band_permille: 50,
            settle_ms: 600_000,
            leader_settle_ms: 30_000,
            replica_overhead_bytes: MIB,
            leader_overhead_load: 10,
            leader_balance_load: 100,
            transfer_lag_entries_max: 128,
            split_bytes: 64 * MIB,
            split_anchors: 200_000,
            split_load: 2_000,
            split_load_ms: 60_000,
            split_load_anchors_min: 1_000,
            split_settle_ms: 30_000,
            merges: false,
            merge_bytes_max: 20 * MIB,
            merge_load_max: 200,
            merge_settle_ms: 3_600_000,
            refusals_max: 1_000,
        }
    }
}
