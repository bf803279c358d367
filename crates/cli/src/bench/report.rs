//! What a benchmark found, for people and for programs.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::bench::load::Measurement;
use crate::bench::node_counters::NodeCounters;
use crate::output::{facts, thousands};

/// What a benchmark found.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// write, read or locate.
    pub(crate) kind: &'static str,
    /// How it was driven: closed or open loop.
    pub(crate) mode: &'static str,
    /// Requests open at once, at most.
    pub(crate) clients: u32,
    /// Requests per second that were due, in an open loop.
    pub(crate) rate: Option<f64>,
    /// Anchors per request.
    pub(crate) batch: u32,
    /// Measured seconds.
    pub(crate) seconds: f64,
    /// Requests answered.
    pub(crate) requests: u64,
    /// Requests answered per second.
    pub(crate) requests_per_second: f64,
    /// Anchors written, read or found per second.
    pub(crate) anchors_per_second: f64,
    /// Latencies of answered requests, in microseconds.
    pub(crate) latency_us: Latency,
    /// Longest time without an answer, in milliseconds.
    pub(crate) gap_ms_max: f64,
    /// Failed requests by what they said.
    pub(crate) errors: BTreeMap<String, u64>,
    /// What the nodes did meanwhile, if their counters could be read.
    pub(crate) nodes: Option<NodeWork>,
}

/// Latencies in microseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) mean: f64,
    pub(crate) p50: u64,
    pub(crate) p90: u64,
    pub(crate) p99: u64,
    pub(crate) p999: u64,
    pub(crate) max: u64,
}

/// What all nodes together did.
#[derive(Debug, Serialize)]
pub(crate) struct NodeWork {
    /// Log entries appended, each counted on every replica.
    pub(crate) log_entries: u64,
    /// Fsyncs of the shared logs.
    pub(crate) fsyncs: u64,
    /// Anchors acknowledged per fsync; each takes one on a majority.
    pub(crate) anchors_per_fsync: Option<f64>,
    /// Log entries per fsync.
    pub(crate) entries_per_fsync: Option<f64>,
    /// Processor time of all node processes per request, in microseconds, if they run here.
    pub(crate) cpu_us_per_request: Option<f64>,
}

impl Report {
    /// Names of the counted things for the headline.
    pub(crate) fn new(
        kind: &'static str,
        load: super::load::Load,
        batch: u32,
        anchors: u64,
        measured: Measurement,
        work: Option<NodeCounters>,
    ) -> Self {
        let seconds = measured.elapsed.as_secs_f64();
        let requests = measured.latency_us.len();
        let histogram = &measured.latency_us;
        Self {
            kind,
            mode: if load.rate.is_some() { "open" } else { "closed" },
            clients: load.clients,
            rate: load.rate,
            batch,
            seconds,
            requests,
            requests_per_second: ratio(requests, seconds),
            anchors_per_second: ratio(anchors, seconds),
            latency_us: Latency {
                mean: histogram.mean(),
                p50: histogram.value_at_quantile(0.5),
                p90: histogram.value_at_quantile(0.9),
                p99: histogram.value_at_quantile(0.99),
                p999: histogram.value_at_quantile(0.999),
                max: histogram.max(),
            },
            gap_ms_max: measured.gap_max.as_secs_f64() * 1e3,
            errors: measured.errors,
            nodes: work.map(|work| NodeWork::new(&work, requests, anchors)),
        }
    }

    /// The report as lines.
    pub(crate) fn table(&self) -> String {
        let per_second = |value: f64| format!("{value:.0} /s");
        let mut lines = vec![
            ("benchmark", format!("{}, {} loop, {} clients", self.kind, self.mode, self.clients)),
            ("requests", format!("{} in {:.1} s", thousands(self.requests), self.seconds)),
            ("throughput", per_second(self.requests_per_second)),
            ("anchors", per_second(self.anchors_per_second)),
            ("latency p50", milliseconds(self.latency_us.p50)),
            ("latency p90", milliseconds(self.latency_us.p90)),
            ("latency p99", milliseconds(self.latency_us.p99)),
            ("latency p99.9", milliseconds(self.latency_us.p999)),
            ("latency max", milliseconds(self.latency_us.max)),
            ("longest gap", format!("{:.1} ms without an answer", self.gap_ms_max)),
        ];
        if let Some(work) = &self.nodes {
            let fsyncs = format!("{} on all nodes", thousands(work.fsyncs));
            lines.push(("fsyncs", fsyncs));
            let per_fsync = |value: Option<f64>| value.map(|value| format!("{value:.2}"));
            lines.extend(per_fsync(work.entries_per_fsync).map(|text| ("entries/fsync", text)));
            lines.extend(per_fsync(work.anchors_per_fsync).map(|text| ("anchors/fsync", text)));
            let cpu = work.cpu_us_per_request.map(|cpu| format!("{cpu:.0} µs per request"));
            lines.extend(cpu.map(|text| ("node CPU", text)));
        }
        for (error, count) in &self.errors {
            lines.push(("failed", format!("{} × {error}", thousands(*count))));
        }
        facts(&lines)
    }
}

impl NodeWork {
    fn new(work: &NodeCounters, requests: u64, anchors: u64) -> Self {
        let per_fsync = |count| (work.fsyncs != 0).then(|| ratio(count, to_f64(work.fsyncs)));
        let cpu = work.cpu.filter(|_| requests != 0);
        Self {
            log_entries: work.log_entries,
            fsyncs: work.fsyncs,
            anchors_per_fsync: per_fsync(anchors),
            entries_per_fsync: per_fsync(work.log_entries),
            cpu_us_per_request: cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / to_f64(requests)),
        }
    }
}

fn milliseconds(micros: u64) -> String {
    format!("{:.2} ms", to_f64(micros) / 1e3)
}

fn ratio(count: u64, of: f64) -> f64 {
    if of == 0.0 { 0.0 } else { to_f64(count) / of }
}

#[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
fn to_f64(count: u64) -> f64 {
    count as f64
}
