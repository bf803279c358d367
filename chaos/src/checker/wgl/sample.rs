//! Windows of histories for the search.

use std::collections::HashMap;

use super::{Effect, Step, Verdict, check};
use crate::checker::version_order::id_text;
use crate::checker::{Evidence, Findings};
use crate::history::{Action, Level, Operation, Outcome};
use crate::judge::Invariant;

/// Keeps a window of every so many operations of each register, and searches them.
///
/// A window is a run of operations of one register, in the order in which they ended. What else was
/// under way at its borders is kept as something that may have taken effect or not: a window never
/// accuses a history that is linearizable.
#[derive(Debug)]
pub struct Sampler {
    keys: HashMap<u128, Key>,
    /// Writes whose outcome became known later, by request: where they stand.
    limits: Limits,
}

/// How much is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Operations of a window.
    pub window: usize,
    /// Operations between the begins of two windows of one register.
    pub period: usize,
    /// Steps of one search.
    pub steps_max: u64,
}

/// 250 of every 1,000 operations.
impl Default for Limits {
    fn default() -> Self {
        Self { window: 250, period: 1_000, steps_max: 2_000_000 }
    }
}

#[derive(Debug, Default)]
struct Key {
    operations: Vec<Kept>,
}

/// An operation in short.
#[derive(Clone, Copy, Debug)]
struct Kept {
    client: u32,
    step: Step,
}

impl Sampler {
    /// Looks at so much.
    pub fn new(limits: Limits) -> Self {
        Self { keys: HashMap::new(), limits }
    }

    /// Takes the next operation, in the order of the record.
    pub fn add(&mut self, operation: &Operation) {
        let Some((id, what)) = understood(operation) else { return };
        let is_open = matches!(operation.outcome, Outcome::Unknown { .. });
        let end_ns = if is_open { u64::MAX } else { operation.end_ns };
        let step = Step { start_ns: operation.start_ns, end_ns, what };
        let kept = Kept { client: operation.client, step };
        self.keys.entry(id).or_default().operations.push(kept);
    }

    /// Searches all windows.
    pub fn finish(self) -> Findings {
        let mut findings = Findings::default();
        let mut keys: Vec<(u128, Key)> = self.keys.into_iter().collect();
        keys.sort_unstable_by_key(|(id, _)| *id);
        for (id, mut key) in keys {
            settle(&mut key.operations);
            // Longest first among those that end together, so that a window's begin is well defined.
            key.operations.sort_by_key(|kept| (kept.step.end_ns, kept.step.start_ns));
            let count = key.operations.len();
            for begin in (0..count).step_by(self.limits.period.max(1)) {
                let end = (begin + self.limits.window).min(count);
                search(id, &key.operations, begin..end, self.limits.steps_max, &mut findings);
            }
        }
        findings
    }
}

/// A write that was unknown at first and known later is recorded twice: keeps the later record.
fn settle(operations: &mut Vec<Kept>) {
    let mut known: HashMap<u64, bool> = HashMap::new();
    for kept in operations.iter() {
        if let Some(value) = value_written(kept.step.what) {
            let is_known = kept.step.end_ns != u64::MAX;
            *known.entry(value).or_default() |= is_known;
        }
    }
    operations.retain(|kept| match value_written(kept.step.what) {
        Some(value) => kept.step.end_ns != u64::MAX || !known.get(&value).copied().unwrap_or(false),
        None => true,
    });
}

fn value_written(what: Effect) -> Option<u64> {
    match what {
        Effect::Write(value) | Effect::CompareAndSet { value, .. } => Some(value),
        Effect::Read(_) | Effect::Refused { .. } => None,
    }
}

fn search(
    id: u128,
    operations: &[Kept],
    window: std::ops::Range<usize>,
    steps_max: u64,
    findings: &mut Findings,
) {
    let inside = &operations[window.clone()];
    let Some(last_end_ns) =
        inside.iter().map(|kept| kept.step.end_ns).filter(|ns| *ns != u64::MAX).max()
    else {
        return;
    };
    let first_start_ns = inside.iter().map(|kept| kept.step.start_ns).min().unwrap_or_default();
    let optional = operations.iter().enumerate().filter(|(index, kept)| {
        !window.contains(index)
            && value_written(kept.step.what).is_some()
            && kept.step.start_ns <= last_end_ns
            && first_start_ns <= kept.step.end_ns
    });
    let mut kept: Vec<Kept> = inside.to_vec();
    kept.extend(optional.map(|(_, kept)| Kept {
        client: kept.client,
        step: Step { end_ns: u64::MAX, ..kept.step },
    }));
    let steps: Vec<Step> = kept.iter().map(|kept| kept.step).collect();
    findings.check(Invariant::LinearizableSampled, inside.len() as u64);
    match check(&steps, None, steps_max) {
        Verdict::Linearizable => {}
        Verdict::Violation => findings.violate(
            Invariant::LinearizableSampled,
            || {
                let count = inside.len();
                format!(
                    "{count} operations on anchor {} have no order that agrees with real time",
                    id_text(id)
                )
            },
            || minimal(&kept, steps_max),
        ),
        Verdict::Unknown => findings.leave_open(Invariant::LinearizableSampled, || {
            let count = steps.len();
            format!(
                "a window of {count} operations on anchor {} was given up after {steps_max} steps",
                id_text(id)
            )
        }),
    }
}

/// The shortest beginning of a window that has no order already, cut from the front too.
fn minimal(kept: &[Kept], steps_max: u64) -> Vec<Evidence> {
    const SHOWN_MAX: usize = 30;
    let is_wrong = |part: &[Kept]| {
        let steps: Vec<Step> = part.iter().map(|kept| kept.step).collect();
        check(&steps, None, steps_max) == Verdict::Violation
    };
    let mut sorted = kept.to_vec();
    sorted.sort_by_key(|kept| (kept.step.end_ns, kept.step.start_ns));
    // Taking away what ended last keeps a wrong beginning wrong; writes that it needs stay as open.
    let mut low = 1;
    let mut high = sorted.len();
    while low < high {
        let middle = low.midpoint(high);
        if is_wrong(&cut(&sorted, middle)) { high = middle } else { low = middle + 1 }
    }
    let mut part = cut(&sorted, high);
    let mut index = 0;
    while index < part.len() {
        let mut without = part.clone();
        without.remove(index);
        // A read's write must stay, or its absence would be the violation.
        if value_written(part[index].step.what).is_none() && is_wrong(&without) {
            part = without;
        } else {
            index += 1;
        }
    }
    let needed: Vec<u64> = part.iter().filter_map(|kept| value_found(kept.step.what)).collect();
    part.retain(|kept| value_written(kept.step.what).is_none_or(|value| needed.contains(&value)));
    part.iter().take(SHOWN_MAX).map(evidence).collect()
}

/// The first `length` operations; later writes as something that may have happened.
fn cut(sorted: &[Kept], length: usize) -> Vec<Kept> {
    let (first, rest) = sorted.split_at(length);
    let later = rest.iter().filter(|kept| value_written(kept.step.what).is_some());
    let open = later.map(|kept| Kept { step: Step { end_ns: u64::MAX, ..kept.step }, ..*kept });
    first.iter().copied().chain(open).collect()
}

fn value_found(what: Effect) -> Option<u64> {
    match what {
        Effect::Read(value) => Some(value),
        Effect::CompareAndSet { expected, .. } | Effect::Refused { expected } => Some(expected),
        Effect::Write(_) => None,
    }
}

fn evidence(kept: &Kept) -> Evidence {
    let text = match kept.step.what {
        Effect::Write(value) => format!("write {value}"),
        Effect::Read(value) => format!("read {value}"),
        Effect::CompareAndSet { expected, value } => format!("write {value} over {expected}"),
        Effect::Refused { expected } => format!("write over {expected}: refused"),
    };
    let is_open = kept.step.end_ns == u64::MAX;
    let text =
        if is_open { format!("{text} (may have taken effect later, or never)") } else { text };
    let end_ns = if is_open { kept.step.start_ns } else { kept.step.end_ns };
    Evidence { client: Some(kept.client), start_ns: kept.step.start_ns, end_ns, text }
}

fn understood(operation: &Operation) -> Option<(u128, Effect)> {
    match (&operation.action, &operation.outcome) {
        (Action::Create { value, .. }, Outcome::Written { id, .. }) => {
            Some((*id, Effect::Write(*value)))
        }
        (
            Action::Update { id, value, expected, .. },
            Outcome::Written { .. } | Outcome::Unknown { .. },
        ) => {
            let what = match expected {
                Some((_, expected)) => Effect::CompareAndSet { expected: *expected, value: *value },
                None => Effect::Write(*value),
            };
            Some((*id, what))
        }
        (Action::Update { id, expected: Some((_, expected)), .. }, Outcome::Mismatch { .. }) => {
            Some((*id, Effect::Refused { expected: *expected }))
        }
        (Action::Get { id, level: Level::Linearizable }, Outcome::Found { value, .. }) => {
            Some((*id, Effect::Read(*value)))
        }
        _ => None,
    }
}
