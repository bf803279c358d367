//! The HTTP port: metrics, and whether the process lives and is ready.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anchorhold_consensus::Trouble;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics::{counter, gauge};

use crate::core::Core;
use crate::telemetry::{self, name};

/// The port's routes.
pub fn router(core: Arc<Core>) -> Router {
    Router::new()
        .route("/metrics", get(render))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(core)
}

async fn ready(State(core): State<Arc<Core>>) -> Response {
    match core.unready() {
        None => (StatusCode::OK, "ready\n".to_owned()).into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn render(State(core): State<Arc<Core>>) -> Response {
    let Some(handle) = telemetry::metrics() else {
        return (StatusCode::NOT_FOUND, "no metrics in this process\n").into_response();
    };
    core.measure();
    handle.run_upkeep();
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, handle.render()).into_response()
}

/// The troubles as labels.
const TROUBLES: [(Trouble, &str); 4] = [
    (Trouble::DiskAlmostFull, "disk_almost_full"),
    (Trouble::DiskFull, "disk_full"),
    (Trouble::DiskStalled, "disk_stalled"),
    (Trouble::ClockOff, "clock_off"),
];

impl Core {
    /// Why the node should get no traffic yet; `None` if it should.
    pub fn unready(&self) -> Option<String> {
        if self.catalog().cluster.is_none() {
            return Some("the catalog has not reached this node".to_owned());
        }
        if !self.is_catalog_confirmed() {
            return Some("the catalog here may be behind".to_owned());
        }
        let replicas = self.host.replicas();
        let leaderless = replicas.iter().filter(|replica| replica.leader().is_none()).count();
        if 0 < leaderless {
            return Some(format!("{leaderless} shards here know no leader"));
        }
        (!self.indexes.ready()).then(|| "position indexes are being built".to_owned())
    }

    /// Sets the gauges that are sums over this node.
    #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
    fn measure(&self) {
        let report = self.report();
        let leads = report.replicas.values().filter(|replica| replica.leads);
        let lags = leads.clone().flat_map(|leader| {
            let last = leader.last_index.unwrap_or(0);
            leader.matched.iter().map(move |(_, matched)| last.saturating_sub(matched.unwrap_or(0)))
        });
        let lag = lags.max().unwrap_or(0);
        let leaderless = report.replicas.values().filter(|replica| replica.leader.is_none());
        let log = self.log.stats();
        let anchors: u64 = report.replicas.values().map(|replica| replica.anchors).sum();
        gauge!(name::RPC_OPEN).set(self.open_calls.load(Ordering::Relaxed) as f64);
        gauge!(name::REPLICAS).set(report.replicas.len() as f64);
        let fenced = report.replicas.values().filter(|replica| replica.problem.is_some());
        gauge!(name::FENCED).set(fenced.count() as f64);
        let quiesced = self.host.replicas().into_iter().filter(|replica| replica.is_quiesced());
        gauge!(name::QUIESCED).set(quiesced.count() as f64);
        gauge!(name::LEADERS).set(leads.count() as f64);
        gauge!(name::LEADERLESS).set(leaderless.count() as f64);
        gauge!(name::LAG_MAX).set(lag as f64);
        gauge!(name::ANCHORS).set(anchors as f64);
        gauge!(name::INDEX_POINTS).set(self.indexes.points() as f64);
        gauge!(name::STATE_BYTES).set(self.state.stats().disk_bytes as f64);
        gauge!(name::LOG_BYTES).set(log.disk_bytes as f64);
        gauge!(name::DISK_FREE_BYTES).set(report.disk_bytes_free as f64);
        gauge!(name::DISK_USED_BYTES).set(report.disk_bytes as f64);
        gauge!(name::DISK_BALLAST_BYTES).set(report.ballast_bytes as f64);
        gauge!(name::DISK_STATE).set(f64::from(report.disk));
        for (trouble, label) in TROUBLES {
            let is_present = report.troubles.contains(&trouble);
            gauge!(name::UNFIT, "trouble" => label).set(f64::from(u8::from(is_present)));
        }
        gauge!(name::OPERATORS).set(self.catalog().operators.len() as f64);
        gauge!(name::CLOCK_OFFSET).set(report.clock_offset_ms.unwrap_or(0) as f64);
        gauge!(name::BUILD_INFO, "version" => crate::VERSION).set(1.0);
        counter!(name::LOG_ENTRIES_TOTAL).absolute(log.entries);
        counter!(name::LOG_FSYNCS_TOTAL).absolute(log.fsyncs);
        counter!(name::LOG_FSYNC_MICROSECONDS_TOTAL).absolute(log.fsync_micros);
        gauge!(name::LOG_FSYNC_P99).set(log.fsync_p99_micros.unwrap_or(0) as f64);
        counter!(name::LOG_WRITTEN_BYTES_TOTAL).absolute(log.bytes_written);
    }
}
