//! Whether anchors are visible until they expire and no longer.
//!
//! An anchor is visible while its shard's time is before the expiry. Shard time is the leader's
//! clock, which may be off the harness's by a stated tolerance: within it either is right. What no
//! clock excuses: an anchor that a linearizable read has found expired is never found again.

use std::collections::HashMap;

use super::version_order::id_text;
use super::{Evidence, Findings};
use crate::history::{Action, Level, Operation, Outcome};
use crate::judge::Invariant;

/// Takes the operations on anchors that expire, in any order.
#[derive(Debug)]
pub struct Expiry {
    clock_off_ns_max: u64,
    anchors: HashMap<u128, Anchor>,
}

#[derive(Debug, Default)]
struct Anchor {
    /// When it expires and when it was acknowledged.
    made: Option<(u64, u64)>,
    reads: Vec<Look>,
}

/// One linearizable read.
#[derive(Clone, Copy, Debug)]
struct Look {
    client: u32,
    start_ns: u64,
    end_ns: u64,
    is_found: bool,
}

impl Expiry {
    /// With a tolerance of the clocks in nanoseconds.
    pub fn new(clock_off_ns_max: u64) -> Self {
        Self { clock_off_ns_max, anchors: HashMap::new() }
    }

    /// Takes the next operation.
    pub fn add(&mut self, operation: &Operation) {
        let Operation { client, start_ns, end_ns, .. } = *operation;
        match (&operation.action, &operation.outcome) {
            (Action::Create { expire_ns: Some(expire_ns), .. }, Outcome::Written { id, .. }) => {
                self.anchors.entry(*id).or_default().made = Some((*expire_ns, end_ns));
            }
            (
                Action::Get { id, level: Level::Linearizable },
                Outcome::Found { .. } | Outcome::Absent,
            ) => {
                let is_found = operation.outcome != Outcome::Absent;
                let look = Look { client, start_ns, end_ns, is_found };
                self.anchors.entry(*id).or_default().reads.push(look);
            }
            _ => {}
        }
    }

    /// Says what was found.
    pub fn finish(self) -> Findings {
        let mut findings = Findings::default();
        let mut anchors: Vec<(u128, Anchor)> = self.anchors.into_iter().collect();
        anchors.sort_unstable_by_key(|(id, _)| *id);
        for (id, anchor) in anchors {
            let Some((expire_ns, acknowledged_ns)) = anchor.made else { continue };
            findings.check(Invariant::ExpiryOnTime, anchor.reads.len() as u64);
            for look in &anchor.reads {
                let late = expire_ns.saturating_add(self.clock_off_ns_max) < look.start_ns;
                let early = look.end_ns.saturating_add(self.clock_off_ns_max) < expire_ns
                    && acknowledged_ns < look.start_ns;
                let problem = match look.is_found {
                    true if late => "is still visible after it expired",
                    false if early => "is gone before it expires",
                    true | false => continue,
                };
                let off_ms = (i128::from(look.start_ns) - i128::from(expire_ns)) / 1_000_000;
                findings.violate(
                    Invariant::ExpiryOnTime,
                    || {
                        format!(
                            "anchor {} {problem}: read {off_ms} ms after its expiry",
                            id_text(id)
                        )
                    },
                    || vec![evidence(id, look)],
                );
            }
            check_once_gone(id, anchor.reads, acknowledged_ns, &mut findings);
        }
        findings
    }
}

/// What was gone must stay gone, whatever the clocks say.
fn check_once_gone(id: u128, mut reads: Vec<Look>, acknowledged_ns: u64, findings: &mut Findings) {
    let gone = reads.iter().filter(|look| !look.is_found && acknowledged_ns < look.start_ns);
    let Some(gone) = gone.min_by_key(|look| look.end_ns).copied() else { return };
    reads.retain(|look| look.is_found && gone.end_ns < look.start_ns);
    for look in &reads {
        findings.violate(
            Invariant::NothingResurrected,
            || format!("anchor {} is visible again after it was found expired", id_text(id)),
            || vec![evidence(id, &gone), evidence(id, look)],
        );
    }
}

fn evidence(id: u128, look: &Look) -> Evidence {
    let found = if look.is_found { "found" } else { "nothing" };
    Evidence {
        client: Some(look.client),
        start_ns: look.start_ns,
        end_ns: look.end_ns,
        text: format!("read {}: {found}", id_text(id)),
    }
}

#[cfg(test)]
mod tests {
    use anchorhold_model::Version;

    use super::*;
    use crate::history::{Position, Served};

    const MS: u64 = 1_000_000;

    fn created(expire_ms: u64) -> Operation {
        let position = Position { latitude_deg: 0.0, longitude_deg: 0.0, height_m: 0.0 };
        let expire_ns = Some(expire_ms * MS);
        let action = Action::Create { request: 1, item: 0, value: 1, position, expire_ns };
        let outcome = Outcome::Written { id: 9, version: None };
        let (start_ns, end_ns, served) = (0, MS, Served::default());
        Operation { client: 1, start_ns, end_ns, resolved: false, served, action, outcome }
    }

    fn read(at_ms: u64, is_found: bool) -> Operation {
        let version = Version { incarnation: 0, revision: 1 };
        let outcome = if is_found { Outcome::Found { version, value: 1 } } else { Outcome::Absent };
        let action = Action::Get { id: 9, level: Level::Linearizable };
        let (start_ns, end_ns, served) = (at_ms * MS, at_ms * MS + MS, Served::default());
        Operation { client: 1, start_ns, end_ns, resolved: false, served, action, outcome }
    }

    fn findings(operations: &[Operation]) -> Findings {
        let mut expiry = Expiry::new(500 * MS);
        operations.iter().for_each(|operation| expiry.add(operation));
        expiry.finish()
    }

    #[test]
    fn an_anchor_that_expires_on_time_is_fine_whatever_happens_within_the_tolerance() {
        let kept = [created(2_000), read(1_000, true), read(1_700, false), read(2_600, false)];
        assert!(findings(&kept).is_clean());
        assert!(findings(&[created(2_000), read(2_300, true)]).is_clean());
    }

    #[test]
    fn an_anchor_that_expires_early_or_late_is_caught() {
        let early = findings(&[created(2_000), read(1_400, false)]);
        assert_eq!(early.count(Invariant::ExpiryOnTime), 1);
        let late = findings(&[created(2_000), read(2_501, true)]);
        assert_eq!(late.count(Invariant::ExpiryOnTime), 1);
    }

    #[test]
    fn an_anchor_that_comes_back_after_it_expired_is_caught_within_the_tolerance_too() {
        let found = findings(&[created(2_000), read(1_900, false), read(2_100, true)]);
        assert_eq!(found.count(Invariant::NothingResurrected), 1);
        assert_eq!(found.count(Invariant::ExpiryOnTime), 0);
    }
}
