//! What all workloads together did, moment by moment.

use std::collections::BTreeMap;

use crate::history::{Action, Operation, Outcome};
use crate::report::{PhaseSpan, Second, Spread, Totals};

/// The traffic of a run.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// Acknowledged writes, those included whose outcome was found out later.
    pub(super) writes: Vec<AckedWrite>,
    seconds: BTreeMap<u64, Bucket>,
    /// When the last operation ended.
    pub(super) end_ns: u64,
}

/// One acknowledged write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AckedWrite {
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
    /// Workload and client.
    pub(super) client: (u16, u32),
    /// 0 if unknown.
    pub(super) shard: u64,
    /// The node that led the shard.
    pub(super) node: u64,
    /// Whether it was acknowledged only when it was sent again.
    pub(super) resolved: bool,
}

/// The traffic of one workload.
#[derive(Debug, Default)]
pub(super) struct Share {
    pub(super) totals: Totals,
    writes_ms: Vec<f32>,
    reads_ms: Vec<f32>,
}

#[derive(Debug, Default)]
struct Bucket {
    writes: u32,
    reads: u32,
    errors: u32,
    took_ms: Vec<f32>,
}

impl Traffic {
    /// Takes an operation of a workload.
    pub(super) fn add(&mut self, workload: u16, operation: &Operation, share: &mut Share) {
        let Operation { client, start_ns, end_ns, resolved, served, .. } = *operation;
        self.end_ns = self.end_ns.max(end_ns);
        let is_write = operation.action.is_write();
        let is_acknowledged = operation.outcome.is_acknowledged();
        if is_write && is_acknowledged {
            let client = (workload, client);
            let (shard, node) = (served.shard, served.node);
            self.writes.push(AckedWrite { start_ns, end_ns, client, shard, node, resolved });
        }
        share.count(operation);
        if resolved {
            return;
        }
        let bucket = self.seconds.entry(end_ns / 1_000_000_000).or_default();
        if !operation.outcome.is_answer() {
            bucket.errors += 1;
            return;
        }
        let took_ms = milliseconds(end_ns.saturating_sub(start_ns));
        // A list is many calls: its time is no call's.
        if !matches!(operation.action, Action::List { .. }) {
            bucket.took_ms.push(took_ms);
            if is_write { share.writes_ms.push(took_ms) } else { share.reads_ms.push(took_ms) }
        }
        if is_write { bucket.writes += 1 } else { bucket.reads += 1 }
    }

    /// Second by second from 0, without what was sampled.
    pub(super) fn seconds(&mut self, count: u64) -> Vec<Second> {
        let mut seconds = Vec::new();
        for number in 0..count {
            let bucket = self.seconds.remove(&number).unwrap_or_default();
            let spread = Spread::of(bucket.took_ms.iter().map(|ms| f64::from(*ms)).collect());
            let spread = spread.unwrap_or_default();
            seconds.push(Second {
                writes: bucket.writes,
                reads: bucket.reads,
                errors: bucket.errors,
                p50_ms: spread.p50,
                p99_ms: spread.p99,
                ..Second::default()
            });
        }
        seconds
    }
}

impl Traffic {
    /// A phase with how long its writes took: those that were begun and acknowledged in it.
    pub(super) fn time_in(&self, phase: PhaseSpan) -> PhaseSpan {
        let spread = self.times_in(phase.begin_ns, phase.end_ns).unwrap_or_default();
        PhaseSpan { write_p99_ms: spread.p99, ..phase }
    }

    /// How long the writes took that were begun and acknowledged between two moments, in milliseconds.
    pub(super) fn times_in(&self, from_ns: u64, until_ns: u64) -> Option<Spread> {
        let inside = |write: &&AckedWrite| {
            !write.resolved && from_ns <= write.start_ns && write.end_ns <= until_ns
        };
        let took = self.writes.iter().filter(inside);
        let took = took.map(|write| f64::from(milliseconds(write.end_ns - write.start_ns)));
        Spread::of(took.collect())
    }
}

impl Share {
    fn count(&mut self, operation: &Operation) {
        let totals = &mut self.totals;
        if operation.resolved {
            totals.resolved += 1;
            if operation.outcome.is_acknowledged() {
                totals.acknowledged += 1;
                totals.acknowledged_writes += 1;
            }
            return;
        }
        totals.operations += 1;
        match &operation.outcome {
            Outcome::Failed { .. } => totals.failed += 1,
            Outcome::Unknown { .. } => totals.unknown += 1,
            Outcome::Written { .. } | Outcome::Deleted => {
                totals.acknowledged += 1;
                totals.acknowledged_writes += 1;
            }
            Outcome::Found { .. }
            | Outcome::Absent
            | Outcome::Mismatch { .. }
            | Outcome::Rows { .. } => totals.acknowledged += 1,
        }
    }

    /// How long writes and reads took.
    pub(super) fn spreads(&self) -> (Spread, Spread) {
        let spread = |values: &[f32]| {
            Spread::of(values.iter().map(|ms| f64::from(*ms)).collect()).unwrap_or_default()
        };
        (spread(&self.writes_ms), spread(&self.reads_ms))
    }

    /// The times themselves, in milliseconds: of writes and of reads.
    pub(super) fn times_ms(&self) -> (&[f32], &[f32]) {
        (&self.writes_ms, &self.reads_ms)
    }
}

impl Totals {
    /// Adds another's.
    pub(super) fn extend(&mut self, other: &Self) {
        self.operations += other.operations;
        self.acknowledged += other.acknowledged;
        self.acknowledged_writes += other.acknowledged_writes;
        self.failed += other.failed;
        self.unknown += other.unknown;
        self.resolved += other.resolved;
        self.faults += other.faults;
        self.splits += other.splits;
        self.merges += other.merges;
        self.moves += other.moves;
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a time in milliseconds, for percentiles")]
fn milliseconds(ns: u64) -> f32 {
    (ns as f64 / 1e6) as f32
}
