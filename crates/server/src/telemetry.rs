//! Logs and metrics of the process.
//!
//! Rules: no key, id, property or pose in a log line or a label. Shard ids and node ids are the
//! cluster's own and may appear in logs; labels hold methods, codes and kinds only.

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Counter, Histogram, counter, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Starts logging to stderr. A second call has no effect.
///
/// # Errors
/// The parser's words if the filter is no filter.
pub fn start_logs(format: LogFormat, filter: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("log_filter: {error}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Whoever set a subscriber first, such as a test, keeps it.
    let _already_set = match format {
        LogFormat::Pretty => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}

/// The process's metrics in Prometheus' text format. The recorder is set at the first call; `None`
/// if the process has set another one.
pub fn metrics() -> Option<&'static PrometheusHandle> {
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            let builder = PrometheusBuilder::new()
                .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
                .and_then(|builder| {
                    builder.set_buckets_for_metric(Matcher::Suffix("_items".to_owned()), &ITEMS)
                });
            match builder.map(PrometheusBuilder::install_recorder) {
                Ok(Ok(handle)) => {
                    describe();
                    Some(handle)
                }
                Ok(Err(error)) | Err(error) => {
                    tracing::warn!(%error, "no metrics: another recorder is set");
                    None
                }
            }
        })
        .as_ref()
}

/// Folds what histograms have gathered into their buckets: without it they grow with each call for
/// as long as nobody reads the metrics. Never returns.
pub async fn keep_small() {
    const INTERVAL: Duration = Duration::from_secs(5);
    loop {
        tokio::time::sleep(INTERVAL).await;
        if let Some(handle) = metrics() {
            handle.run_upkeep();
        }
    }
}

/// How the calls of one method are counted.
pub struct MethodMetrics {
    seconds: Histogram,
    answered: Counter,
}

impl MethodMetrics {
    /// Looks the metrics of a method up.
    pub fn of(method: &'static str) -> Self {
        Self {
            seconds: histogram!(name::RPC_SECONDS, "method" => method),
            answered: counter!(name::RPC_TOTAL, "method" => method, "code" => "OK"),
        }
    }

    /// Notes one call. Failures are counted apart, by their code.
    pub fn note(&self, is_ok: bool, took: Duration) {
        self.seconds.record(took.as_secs_f64());
        if is_ok {
            self.answered.increment(1);
        }
    }
}

/// Upper bounds of latency buckets, in seconds.
const SECONDS: [f64; 15] =
    [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
/// Upper bounds of count buckets.
const ITEMS: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 256.0, 1024.0];

/// Names of the metrics.
pub mod name {
    /// Counter by method and code.
    pub const RPC_TOTAL: &str = "anchorhold_rpc_server_calls_total";
    /// Histogram by method.
    pub const RPC_SECONDS: &str = "anchorhold_rpc_server_call_duration_seconds";
    /// Gauge.
    pub const RPC_OPEN: &str = "anchorhold_rpc_server_calls_open";
    /// Counter by reason.
    pub const REFUSED_TOTAL: &str = "anchorhold_admission_rejected_total";
    /// Counter by kind.
    pub const FORWARDED_TOTAL: &str = "anchorhold_forwarded_total";
    /// Histogram.
    pub const LOCATE_SHARDS: &str = "anchorhold_locate_shards_items";
    /// Gauge.
    pub const INDEX_POINTS: &str = "anchorhold_index_points";
    /// Gauge.
    pub const INDEX_BUILDS: &str = "anchorhold_index_builds_open";
    /// Gauge.
    pub const REPLICAS: &str = "anchorhold_raft_replicas";
    /// Gauge.
    pub const FENCED: &str = "anchorhold_raft_replicas_without_vote";
    /// Gauge.
    pub const QUIESCED: &str = "anchorhold_raft_replicas_quiesced";
    /// Gauge.
    pub const LEADERS: &str = "anchorhold_raft_leaders";
    /// Gauge.
    pub const LEADERLESS: &str = "anchorhold_raft_groups_without_leader";
    /// Gauge.
    pub const LAG_MAX: &str = "anchorhold_raft_peer_lag_entries_max";
    /// Gauge.
    pub const ANCHORS: &str = "anchorhold_anchors";
    /// Gauge.
    pub const STATE_BYTES: &str = "anchorhold_state_disk_bytes";
    /// Gauge.
    pub const LOG_BYTES: &str = "anchorhold_log_disk_bytes";
    /// Counter.
    pub const LOG_ENTRIES_TOTAL: &str = "anchorhold_log_entries_total";
    /// Counter.
    pub const LOG_FSYNCS_TOTAL: &str = "anchorhold_log_fsyncs_total";
    /// Counter.
    pub const LOG_FSYNC_MICROSECONDS_TOTAL: &str = "anchorhold_log_fsync_microseconds_total";
    /// Gauge.
    pub const LOG_FSYNC_P99: &str = "anchorhold_log_fsync_p99_microseconds";
    /// Counter.
    pub const LOG_WRITTEN_BYTES_TOTAL: &str = "anchorhold_log_written_bytes_total";
    /// Gauge.
    pub const DISK_FREE_BYTES: &str = "anchorhold_disk_free_bytes";
    /// Gauge.
    pub const DISK_USED_BYTES: &str = "anchorhold_disk_used_bytes";
    /// Gauge.
    pub const DISK_BALLAST_BYTES: &str = "anchorhold_disk_ballast_bytes";
    /// Gauge.
    pub const DISK_STATE: &str = "anchorhold_disk_state";
    /// Gauge by trouble.
    pub const UNFIT: &str = "anchorhold_node_unfit";
    /// Gauge.
    pub const CLOCK_OFFSET: &str = "anchorhold_clock_offset_milliseconds";
    /// Counter.
    pub const SCRUB_ROUNDS_TOTAL: &str = "anchorhold_scrub_rounds_total";
    /// Counter by part.
    pub const SCRUB_BYTES_TOTAL: &str = "anchorhold_scrub_bytes_total";
    /// Counter by part.
    pub const SCRUB_DAMAGE_TOTAL: &str = "anchorhold_scrub_damage_total";
    /// Counter.
    pub const STATE_RENEWALS_TOTAL: &str = "anchorhold_state_renewals_total";
    /// Comparisons of a shard's replicas at one index, by result.
    pub const REPLICA_COMPARISONS_TOTAL: &str = "anchorhold_replica_comparisons_total";
    /// Counter by reason and result.
    pub const OPERATORS_TOTAL: &str = "anchorhold_scheduler_operators_total";
    /// Counter by result.
    pub const MERGES_TOTAL: &str = "anchorhold_shard_merges_total";
    /// Gauge.
    pub const OPERATORS: &str = "anchorhold_scheduler_operators_open";
    /// Counter.
    pub const SWEPT_TOTAL: &str = "anchorhold_swept_rows_total";
    /// Gauge, always 1.
    pub const BUILD_INFO: &str = "anchorhold_build_info";
}

fn describe() {
    use metrics::{describe_counter as counter, describe_gauge as gauge, describe_histogram};
    counter!(name::RPC_TOTAL, "Calls answered, by method and gRPC code");
    describe_histogram!(name::RPC_SECONDS, "Time from request to answer");
    gauge!(name::RPC_OPEN, "Calls being worked on");
    counter!(name::REFUSED_TOTAL, "Calls refused to protect the node");
    counter!(name::FORWARDED_TOTAL, "Requests sent on to another node");
    describe_histogram!(name::LOCATE_SHARDS, "Shards asked by one spatial query");
    gauge!(name::INDEX_POINTS, "Points in the position indexes of this node");
    gauge!(name::INDEX_BUILDS, "Position indexes being built");
    gauge!(name::REPLICAS, "Replicas on this node");
    gauge!(name::QUIESCED, "Replicas whose timers stand still because nothing is asked of them");
    gauge!(name::FENCED, "Replicas that may not vote because the disk lost part of their log");
    gauge!(name::LEADERS, "Replicas on this node that lead");
    gauge!(name::LEADERLESS, "Replicas on this node that know no leader");
    gauge!(name::LAG_MAX, "Log entries that the slowest follower of a leader here is behind");
    gauge!(name::ANCHORS, "Anchors in the replicas of this node");
    gauge!(name::STATE_BYTES, "Bytes of the state on disk");
    gauge!(name::LOG_BYTES, "Bytes of the shared log on disk");
    counter!(name::LOG_ENTRIES_TOTAL, "Entries appended to the shared log");
    counter!(name::LOG_FSYNCS_TOTAL, "Fsyncs of the shared log");
    counter!(name::LOG_FSYNC_MICROSECONDS_TOTAL, "Time spent in fsyncs of the shared log");
    gauge!(name::LOG_FSYNC_P99, "99th percentile of the shared log's last thousand fsyncs");
    counter!(name::LOG_WRITTEN_BYTES_TOTAL, "Bytes written to the shared log");
    counter!(name::STATE_RENEWALS_TOTAL, "Times that a bloated state was written anew");
    counter!(name::SCRUB_ROUNDS_TOTAL, "Rounds of reading everything on the disk again");
    counter!(name::SCRUB_BYTES_TOTAL, "Bytes read again, by part");
    counter!(name::SCRUB_DAMAGE_TOTAL, "Damage found by reading again, by part");
    counter!(
        name::REPLICA_COMPARISONS_TOTAL,
        "Comparisons of a shard's replicas at one index, by result"
    );
    counter!(
        name::OPERATORS_TOTAL,
        "Changes of shards that came to an end while this node led the catalog, by reason and result"
    );
    counter!(
        name::MERGES_TOTAL,
        "Attempts to merge a shard led here into its neighbour, by what came of them"
    );
    gauge!(name::OPERATORS, "Changes of shards that are under way, as this node knows");
    counter!(name::SWEPT_TOTAL, "Rows erased by sweeps");
    gauge!(name::DISK_FREE_BYTES, "Bytes that this node may still write");
    gauge!(name::DISK_USED_BYTES, "Bytes of the data directory, the ballast aside");
    gauge!(name::DISK_BALLAST_BYTES, "Bytes that removing the ballast gives back");
    gauge!(name::DISK_STATE, "How full the disk is: 0 normal, 1 almost full, 2 full");
    gauge!(name::UNFIT, "Whether this node should not lead, by trouble");
    gauge!(name::CLOCK_OFFSET, "This node's clock minus the median of all");
    gauge!(name::BUILD_INFO, "Version of the binary");
}
