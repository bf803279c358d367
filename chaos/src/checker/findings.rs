//! What checkers found.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::judge::Invariant;

/// One operation that proves a violation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The client; for what was read after the heal, none.
    pub client: Option<u32>,
    /// When it was asked, in nanoseconds since the run's start.
    pub start_ns: u64,
    /// When the outcome was known.
    pub end_ns: u64,
    /// What was asked and answered.
    pub text: String,
}

/// One promise broken once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// The promise.
    pub invariant: Invariant,
    /// The workload that saw it.
    pub workload: String,
    /// What is wrong, in one sentence.
    pub text: String,
    /// The operations that prove it, by time.
    pub evidence: Vec<Evidence>,
}

/// What was looked at and what was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// How often each promise was tested: operations, rows, shards.
    pub checked: BTreeMap<Invariant, u64>,
    /// How often each was broken.
    pub broken: BTreeMap<Invariant, u64>,
    /// The first violations of each, in detail.
    pub violations: Vec<Violation>,
    /// What could not be decided, and why.
    pub open: Vec<(Invariant, String)>,
}

/// Violations of one invariant that are kept in detail, at most.
const DETAILED_MAX: u64 = 20;
/// Undecided cases that are kept in words, at most.
const OPEN_MAX: usize = 50;

impl Findings {
    /// Counts tests of a promise.
    pub fn check(&mut self, invariant: Invariant, count: u64) {
        *self.checked.entry(invariant).or_default() += count;
    }

    /// Notes a violation.
    pub fn violate(
        &mut self,
        invariant: Invariant,
        text: impl FnOnce() -> String,
        evidence: impl FnOnce() -> Vec<Evidence>,
    ) {
        let count = self.broken.entry(invariant).or_default();
        *count += 1;
        if *count <= DETAILED_MAX {
            let mut evidence = evidence();
            evidence.sort_by_key(|operation| (operation.start_ns, operation.end_ns));
            let workload = String::new();
            self.violations.push(Violation { invariant, workload, text: text(), evidence });
        }
    }

    /// Notes what could not be decided.
    pub fn leave_open(&mut self, invariant: Invariant, text: impl FnOnce() -> String) {
        if self.open.len() < OPEN_MAX {
            self.open.push((invariant, text()));
        }
    }

    /// Names the workload of everything found so far.
    #[must_use]
    pub fn of_workload(mut self, workload: &str) -> Self {
        for violation in &mut self.violations {
            workload.clone_into(&mut violation.workload);
        }
        self
    }

    /// Adds what another checker found.
    pub fn extend(&mut self, other: Self) {
        for (invariant, count) in other.checked {
            self.check(invariant, count);
        }
        for (invariant, count) in other.broken {
            *self.broken.entry(invariant).or_default() += count;
        }
        self.violations.extend(other.violations);
        self.open.extend(other.open);
    }

    /// How often an invariant was broken.
    pub fn count(&self, invariant: Invariant) -> u64 {
        self.broken.get(&invariant).copied().unwrap_or_default()
    }

    /// Whether nothing was broken or left open.
    pub fn is_clean(&self) -> bool {
        self.broken.is_empty() && self.open.is_empty()
    }
}
