//! Invariants against kinds of fault.

use std::collections::BTreeMap;

use super::Invariant;
use crate::checker::Violation;
use crate::report::{FaultResult, MatrixRow};

/// How long after its heal a fault may be to blame, in nanoseconds.
const AFTER_NS: u64 = 10_000_000_000;

/// One row for each kind of fault: its violations are those whose operations overlap one of its
/// faults, or, if they overlap none, come after it and before any other.
pub(super) fn matrix(faults: &[FaultResult], violations: &[Violation]) -> Vec<MatrixRow> {
    let mut rows: BTreeMap<&str, MatrixRow> = BTreeMap::new();
    for fault in faults {
        let row = rows.entry(&fault.fault).or_insert_with(|| MatrixRow {
            fault: fault.fault.clone(),
            count: 0,
            acknowledged_writes: 0,
            broken: Vec::new(),
        });
        row.count += u64::from(fault.took != Some(false));
        row.acknowledged_writes += fault.acknowledged_writes;
    }
    for violation in violations {
        for kind in blamed(faults, violation) {
            if let Some(row) = rows.get_mut(kind) {
                count(row, violation.invariant);
            }
        }
    }
    rows.into_values().collect()
}

fn count(row: &mut MatrixRow, invariant: Invariant) {
    match row.broken.iter_mut().find(|(known, _)| *known == invariant) {
        Some((_, count)) => *count += 1,
        None => row.broken.push((invariant, 1)),
    }
}

/// The kinds of fault that may have to do with a violation, each once.
fn blamed<'a>(faults: &'a [FaultResult], violation: &Violation) -> Vec<&'a str> {
    let seen = violation.evidence.iter().filter(|operation| operation.client.is_some());
    let spans: Vec<(u64, u64)> =
        seen.map(|operation| (operation.start_ns, operation.end_ns)).collect();
    let is_during = |fault: &&FaultResult| {
        let end_ns = fault.healed_ns.map_or(u64::MAX, |ns| ns.saturating_add(AFTER_NS));
        spans.iter().any(|(start, end)| *start <= end_ns && fault.asked_ns <= *end)
    };
    let mut kinds: Vec<&str> =
        faults.iter().filter(is_during).map(|fault| fault.fault.as_str()).collect();
    if kinds.is_empty() {
        let last_ns = spans.iter().map(|(_, end)| *end).max().unwrap_or(u64::MAX);
        let before = faults.iter().filter(|fault| fault.asked_ns <= last_ns);
        kinds.extend(before.max_by_key(|fault| fault.asked_ns).map(|fault| fault.fault.as_str()));
    }
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::Evidence;

    fn fault(kind: &str, asked_ns: u64, healed_ns: u64) -> FaultResult {
        FaultResult {
            id: 1,
            fault: kind.to_owned(),
            target: String::new(),
            nodes: Vec::new(),
            asked_ns,
            applied_ns: Some(asked_ns),
            healed_ns: Some(healed_ns),
            took: Some(true),
            detail: String::new(),
            acknowledged_writes: 5,
            measures: Vec::new(),
        }
    }

    fn violation(start_ns: u64, end_ns: u64) -> Violation {
        let evidence = vec![Evidence { client: Some(1), start_ns, end_ns, text: String::new() }];
        let (workload, text) = (String::new(), String::new());
        Violation { invariant: Invariant::NothingLost, workload, text, evidence }
    }

    #[test]
    fn a_violation_stands_at_the_faults_that_it_overlaps_or_follows() {
        const S: u64 = 1_000_000_000;
        let faults = [fault("kill", 10 * S, 20 * S), fault("pause", 100 * S, 110 * S)];
        let broken = |start, end| {
            let rows = matrix(&faults, &[violation(start * S, end * S)]);
            let kinds = rows.into_iter().filter(|row| !row.broken.is_empty());
            kinds.map(|row| row.fault).collect::<Vec<_>>()
        };
        assert_eq!(broken(15, 16), ["kill"]);
        assert_eq!(broken(60, 61), ["kill"]);
        assert_eq!(broken(15, 101), ["kill", "pause"]);
        assert_eq!(broken(300, 301), ["pause"]);
    }
}
