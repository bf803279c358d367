use anchorhold_model::NodeId;
use serde::{Deserialize, Serialize};

/// Who this node is, fixed when it first joined a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster's random id.
    pub cluster_id: u128,
    /// Rises when a region is re-founded.
    pub cluster_epoch: u16,
    /// Given by the catalog.
    pub node_id: NodeId,
    /// The data directory's own random id.
    pub instance: u128,
}

/// Timers and bounds of the consensus layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConsensusConfig {
    /// Heartbeat interval in milliseconds.
    pub heartbeat_ms: u64,
    /// Shortest election timeout in milliseconds.
    pub election_timeout_ms_min: u64,
    /// Longest election timeout in milliseconds; also the leader's lease.
    pub election_timeout_ms_max: u64,
    /// Commands carried by one entry, at most.
    pub entry_commands_max: usize,
    /// Bytes of commands carried by one entry, at most.
    pub entry_bytes_max: usize,
    /// Entries of one shard proposed and not yet applied, at most.
    pub entries_in_flight_max: usize,
    /// Bytes of one shard's commands waiting or in flight, at most.
    pub shard_bytes_in_flight_max: usize,
    /// Bytes of this node's commands waiting or in flight, at most.
    pub node_bytes_in_flight_max: usize,
    /// Messages queued to one peer, at most; beyond it the peer counts as unreachable.
    pub link_messages_max: usize,
    /// Entries after which a snapshot is taken.
    pub snapshot_entries: u64,
    /// Entries kept behind a snapshot for followers that lag a little.
    pub snapshot_entries_kept: u64,
    /// Bytes of one shard's log after which a snapshot is taken and everything before it purged,
    /// however few the entries are.
    pub snapshot_log_bytes: u64,
    /// Bytes of one shard's log at which its writes of data are refused until it has shrunk.
    pub shard_log_bytes_max: u64,
    /// Snapshots built at once on this node.
    pub snapshot_builds_max: usize,
    /// Bytes per second of all snapshots that this node sends, at most.
    pub snapshot_bytes_per_second_max: u64,
    /// Milliseconds between two checkpoints of the state.
    pub checkpoint_interval_ms: u64,
    /// Milliseconds without a write or a read after which a shard's replicas stop their timers until
    /// something happens; 0: never.
    pub quiesce_after_ms: u64,
    /// Milliseconds that the log may owe an answer before the node counts as unfit to lead.
    pub log_stall_ms: u64,
    /// Milliseconds that the node's clock may be off the median of all before it counts as unfit to
    /// lead.
    pub clock_offset_ms_max: u64,
}

/// The one place where consensus numbers are written down.
impl Default for ConsensusConfig {
    fn default() -> Self {
        Self {
            heartbeat_ms: 150,
            election_timeout_ms_min: 450,
            election_timeout_ms_max: 750,
            entry_commands_max: 4_096,
            entry_bytes_max: 1 << 20,
            entries_in_flight_max: 1,
            shard_bytes_in_flight_max: 32 << 20,
            node_bytes_in_flight_max: 256 << 20,
            link_messages_max: 16_384,
            snapshot_entries: 10_000,
            snapshot_entries_kept: 2_000,
            snapshot_log_bytes: 256 << 20,
            shard_log_bytes_max: 1 << 30,
            snapshot_builds_max: 1,
            snapshot_bytes_per_second_max: 64 << 20,
            checkpoint_interval_ms: 2_000,
            quiesce_after_ms: 10_000,
            log_stall_ms: 500,
            clock_offset_ms_max: 500,
        }
    }
}
