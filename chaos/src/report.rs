//! What a run showed, and how it is told.
//!
//! [`Report`] is a plain value: `report.json` is it, `report.html` and `junit.xml` are made of it
//! alone. The page is self-contained: styles and drawings are inline, nothing is fetched.
//!
//! Not here: deciding (`judge`).

mod chart;
mod html;
mod junit;
mod style;
mod text;

use serde::{Deserialize, Serialize};

use crate::checker::Violation;
use crate::judge::{Invariant, Statistic};

pub use self::html::html;
pub use self::junit::junit;

/// Version of `report.json`.
pub const REPORT_FORMAT: u32 = 1;

/// What a run showed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this format.
    pub format: u32,
    /// What was run.
    pub run: RunFacts,
    /// What it comes to.
    pub verdict: Verdict,
    /// Why, most important first. Empty for a pass.
    pub reasons: Vec<String>,
    /// What else is worth knowing and decides nothing.
    pub notes: Vec<String>,
    /// Sums.
    pub totals: Totals,
    /// Each workload.
    pub workloads: Vec<WorkloadSummary>,
    /// Each invariant.
    pub invariants: Vec<InvariantResult>,
    /// The first violations of each invariant, with their evidence.
    pub violations: Vec<Violation>,
    /// Each budget that was asked for.
    pub budgets: Vec<BudgetResult>,
    /// How recovery went, by kind of fault.
    pub recovery: Vec<RecoveryRow>,
    /// Each fault.
    pub faults: Vec<FaultResult>,
    /// Invariants against kinds of fault.
    pub matrix: Vec<MatrixRow>,
    /// Second by second.
    pub timeline: Vec<Second>,
    /// The phases.
    pub phases: Vec<PhaseSpan>,
    /// How often each failpoint was reached, those that never were included; empty if the nodes
    /// have none.
    #[serde(default)]
    pub failpoints: Vec<(String, u64)>,
    /// The scenario and the topology as they were run.
    pub texts: Texts,
}

/// What was run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunFacts {
    /// The scenario's name.
    pub scenario: String,
    /// Everything random followed from it.
    pub seed: u64,
    /// What ran the nodes.
    pub driver: String,
    /// The version of the harness.
    pub version: String,
    /// What to type to run it again.
    pub replay: String,
    /// Wall-clock time of the start, in milliseconds since 1970.
    pub started_at_unix_ms: u64,
    /// How long it took, in nanoseconds.
    pub duration_ns: u64,
    /// Nodes and zones.
    pub nodes: usize,
    /// Zones of these nodes.
    pub zones: usize,
    /// Shards in the end, the catalog included.
    pub shards: usize,
    /// Bugs that were put in on purpose.
    #[serde(default)]
    pub mutants: Vec<String>,
}

/// What a run comes to, as its exit code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every promise was kept within its budget.
    Pass,
    /// A promise was broken.
    InvariantBroken,
    /// Everything was kept, but not within its budget.
    BudgetMissed,
    /// Something could not be decided, or the machine was too slow to judge budgets.
    Inconclusive,
    /// The harness did not do what it was asked: nothing is proved.
    HarnessError,
}

/// Sums over all workloads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Operations that were asked.
    pub operations: u64,
    /// Operations that were answered.
    pub acknowledged: u64,
    /// Writes among them.
    pub acknowledged_writes: u64,
    /// Operations that failed for certain, reads without an answer included.
    pub failed: u64,
    /// Writes whose outcome was not known at first.
    pub unknown: u64,
    /// Those of them whose outcome was found out.
    pub resolved: u64,
    /// Faults that took hold.
    pub faults: u64,
    /// Shards that were split.
    #[serde(default)]
    pub splits: u64,
    /// Shards that became part of a neighbour.
    #[serde(default)]
    pub merges: u64,
    /// Replicas that were moved to another node, beside those that the cluster moved by itself.
    #[serde(default)]
    pub moves: u64,
}

/// One workload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkloadSummary {
    /// Its name.
    pub name: String,
    /// Its sums; `faults` is 0.
    pub totals: Totals,
    /// Time that acknowledged writes took.
    pub writes: Spread,
    /// Time that answered reads took.
    pub reads: Spread,
    /// Whether its record is whole.
    pub is_whole: bool,
}

/// Median, 99th percentile and maximum, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// How many values.
    pub count: usize,
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

/// One invariant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvariantResult {
    /// Which.
    pub invariant: Invariant,
    /// Whether the scenario asked for it.
    pub asked: bool,
    /// What was found.
    pub state: InvariantState,
    /// How often it was tested.
    pub checked: u64,
    /// How often it was broken.
    pub broken: u64,
    /// What could not be decided.
    pub open: Vec<String>,
}

/// What was found of an invariant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InvariantState {
    /// It held.
    Kept,
    /// It did not.
    Broken,
    /// Something about it could not be decided.
    Undecided,
    /// Nothing tested it.
    Untested,
}

/// One budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BudgetResult {
    /// The measure.
    pub name: String,
    /// Of all its values.
    pub statistic: Statistic,
    /// At most this, in milliseconds.
    pub bound: f64,
    /// What it was; `None` if it was not measured.
    pub value: Option<f64>,
    /// How many values there were.
    pub count: usize,
}

/// How recovery from one kind of fault went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecoveryRow {
    /// The kind of fault.
    pub fault: String,
    /// How many.
    pub count: usize,
    /// By measure, in the order of [`crate::judge::BUDGETS`]; `None` if not measured.
    pub measures: Vec<(String, Option<Spread>)>,
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FaultResult {
    /// Its number in the run.
    pub id: u32,
    /// Its kind.
    pub fault: String,
    /// Whom the scenario meant.
    pub target: String,
    /// Whom it hit.
    pub nodes: Vec<String>,
    /// When it was asked for, in nanoseconds since the run's start.
    pub asked_ns: u64,
    /// When it had taken hold.
    pub applied_ns: Option<u64>,
    /// When it was taken back.
    pub healed_ns: Option<u64>,
    /// Whether it was seen to take hold; `None` if nobody looked.
    pub took: Option<bool>,
    /// What was done, for people.
    pub detail: String,
    /// Writes acknowledged while it was looked at.
    pub acknowledged_writes: u64,
    /// By measure, in milliseconds.
    pub measures: Vec<(String, f64)>,
}

/// One kind of fault against all invariants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MatrixRow {
    /// The kind of fault.
    pub fault: String,
    /// How many took hold.
    pub count: u64,
    /// Writes acknowledged while they were looked at.
    pub acknowledged_writes: u64,
    /// Violations, by invariant. What no operation shows belongs to all kinds.
    pub broken: Vec<(Invariant, u64)>,
}

/// One second of the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Second {
    /// Writes acknowledged.
    pub writes: u32,
    /// Reads answered.
    pub reads: u32,
    /// Operations that failed or became unknown.
    pub errors: u32,
    /// Median time of what was answered, in milliseconds; 0 if nothing was.
    pub p50_ms: f64,
    /// 99th percentile of it.
    pub p99_ms: f64,
    /// Shards led in each zone, as last sampled.
    pub leaders: Vec<(String, u32)>,
    /// Shards without a leader, as last sampled.
    pub leaderless: u32,
    /// Replicas missing, as last sampled.
    pub missing: u32,
    /// 99th percentile of a sleeper's lateness in milliseconds: how slow the machine was.
    pub lateness_ms: f64,
}

/// One phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseSpan {
    /// Its name.
    pub name: String,
    /// When it began, in nanoseconds since the run's start.
    pub begin_ns: u64,
    /// When it ended.
    pub end_ns: u64,
    /// 99th percentile of the time that its acknowledged writes took, in milliseconds; 0 if there
    /// were none.
    #[serde(default)]
    pub write_p99_ms: f64,
}

/// What was run, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Texts {
    /// The scenario.
    pub scenario: String,
    /// The topology.
    pub topology: String,
}

impl Verdict {
    /// The exit code of a run with this verdict.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::InvariantBroken => 1,
            Self::BudgetMissed => 2,
            Self::Inconclusive => 3,
            Self::HarnessError => 4,
        }
    }

    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Pass => "Pass",
            Self::InvariantBroken => "Invariant broken",
            Self::BudgetMissed => "Budget missed",
            Self::Inconclusive => "Inconclusive",
            Self::HarnessError => "Harness error",
        }
    }
}

impl BudgetResult {
    /// Whether it was kept; `None` if it was not measured.
    pub fn is_met(&self) -> Option<bool> {
        self.value.map(|value| value <= self.bound)
    }
}

impl Spread {
    /// Of values in milliseconds, in any order; `None` if there are none.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let max = *values.last()?;
        let count = values.len();
        // The smallest value that at least this share of them does not exceed.
        let at = |percent: usize| values[(count * percent).div_ceil(100).max(1) - 1];
        Some(Self { count, p50: at(50), p99: at(99), max })
    }

    /// One of its figures.
    pub fn statistic(&self, statistic: Statistic) -> f64 {
        match statistic {
            Statistic::P50 => self.p50,
            Statistic::P99 => self.p99,
            Statistic::Max => self.max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_takes_real_values_and_no_means() {
        let spread = Spread::of((1..=200).map(f64::from).collect()).unwrap();
        assert_eq!((spread.p50, spread.p99, spread.max), (100.0, 198.0, 200.0));
        assert_eq!(Spread::of(vec![7.0]).unwrap().p99, 7.0);
        assert_eq!(Spread::of(vec![]), None);
    }
}
