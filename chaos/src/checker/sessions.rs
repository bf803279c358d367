//! Whether sessions read their own writes and never go back in time.
//!
//! A session is a client; it does one thing after the other. For each anchor, a read must show a
//! version at least as new as the newest one that the session wrote or read before.

use std::collections::HashMap;

use anchorhold_model::Version;

use super::version_order::{id_text, version_text};
use super::{Evidence, Findings};
use crate::history::{Action, Level, Operation, Outcome};
use crate::judge::Invariant;

/// Takes the operations of sessions, in the order of the record.
#[derive(Debug, Default)]
pub struct Sessions {
    newest: HashMap<(u32, u128), Known>,
    findings: Findings,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    version: Version,
    is_written: bool,
    start_ns: u64,
    end_ns: u64,
}

impl Sessions {
    /// Takes the next operation.
    pub fn add(&mut self, operation: &Operation) {
        // What was found out later is nothing that the session was told.
        if operation.resolved {
            return;
        }
        let Operation { client, start_ns, end_ns, .. } = *operation;
        let (id, version, is_written) = match (&operation.action, &operation.outcome) {
            (Action::Update { id, .. }, Outcome::Written { version: Some(version), .. }) => {
                (*id, Some(*version), true)
            }
            (Action::Get { id, level: Level::Session }, Outcome::Found { version, .. }) => {
                (*id, Some(*version), false)
            }
            (Action::Get { id, level: Level::Session }, Outcome::Absent) => (*id, None, false),
            _ => return,
        };
        let known = self.newest.get(&(client, id)).copied();
        if !is_written {
            self.findings.check(Invariant::SessionsKept, 1);
        }
        if let (Some(known), false) = (known, is_written)
            && version.is_none_or(|version| version < known.version)
        {
            self.report(operation, id, version, known);
        }
        if let Some(version) = version
            && known.is_none_or(|known| known.version <= version)
        {
            self.newest.insert((client, id), Known { version, is_written, start_ns, end_ns });
        }
    }

    /// Says what was found.
    pub fn finish(self) -> Findings {
        self.findings
    }

    fn report(&mut self, read: &Operation, id: u128, version: Option<Version>, known: Known) {
        let id = id_text(id);
        let found = version.map_or("nothing".to_owned(), version_text);
        let newest = version_text(known.version);
        let (verb, promise) = if known.is_written {
            ("wrote", "does not read its own write")
        } else {
            ("read", "goes back in time")
        };
        let client = Some(read.client);
        let earlier = Evidence {
            client,
            start_ns: known.start_ns,
            end_ns: known.end_ns,
            text: format!("{verb} {id}: version {newest}"),
        };
        let later = Evidence {
            client,
            start_ns: read.start_ns,
            end_ns: read.end_ns,
            text: format!("read {id} at node {}: {found}", read.served.node),
        };
        self.findings.violate(
            Invariant::SessionsKept,
            || format!("a session {promise}: it {verb} version {newest} of anchor {id} and then reads {found}"),
            || vec![earlier, later],
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Served;

    fn operation(start_ns: u64, client: u32, write: bool, revision: Option<u64>) -> Operation {
        let version = revision.map(|revision| Version { incarnation: 0, revision });
        let (action, outcome) = match (write, version) {
            (true, version) => (
                Action::Update { request: 1, id: 9, value: start_ns, expected: None },
                Outcome::Written { id: 9, version },
            ),
            (false, Some(version)) => {
                (Action::Get { id: 9, level: Level::Session }, Outcome::Found { version, value: 1 })
            }
            (false, None) => (Action::Get { id: 9, level: Level::Session }, Outcome::Absent),
        };
        let (end_ns, served) = (start_ns + 5, Served::default());
        Operation { client, start_ns, end_ns, resolved: false, served, action, outcome }
    }

    fn broken(operations: &[Operation]) -> u64 {
        let mut sessions = Sessions::default();
        operations.iter().for_each(|operation| sessions.add(operation));
        sessions.finish().count(Invariant::SessionsKept)
    }

    #[test]
    fn a_session_that_does_not_read_its_own_write_is_caught() {
        let kept = [operation(0, 1, true, Some(5)), operation(10, 1, false, Some(5))];
        assert_eq!(broken(&kept), 0);
        let wrong = [operation(0, 1, true, Some(5)), operation(10, 1, false, Some(4))];
        assert_eq!(broken(&wrong), 1);
        let gone = [operation(0, 1, true, Some(5)), operation(10, 1, false, None)];
        assert_eq!(broken(&gone), 1);
    }

    #[test]
    fn a_session_that_goes_back_in_time_is_caught_and_another_session_may_be_behind() {
        let wrong = [operation(0, 1, false, Some(7)), operation(10, 1, false, Some(6))];
        assert_eq!(broken(&wrong), 1);
        let other = [operation(0, 1, false, Some(7)), operation(10, 2, false, Some(6))];
        assert_eq!(broken(&other), 0);
    }

    #[test]
    fn every_step_back_counts_once() {
        let revisions = [7, 6, 7, 6, 8, 8];
        let reads = (0..).zip(revisions).map(|(at, r)| operation(at * 10, 1, false, Some(r)));
        assert_eq!(broken(&reads.collect::<Vec<_>>()), 2);
    }
}
