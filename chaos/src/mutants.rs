//! Bugs that are put into nodes on purpose, and the scenario that must find each.
//!
//! A harness that never saw a violation proves little. Each [`Mutant`] breaks one promise of a node
//! built with the feature `chaos`; every one is found by the simulation (`cargo xtask sim test`),
//! and those that need no luck are found among real processes too (`anchorhold chaos mutants`).
//!
//! Not here: what a mutant does (`consensus::hooks`).

use std::fmt;
use std::str::FromStr;

use crate::judge::Invariant;
use crate::report::{InvariantState, Report, Verdict};

/// A bug, and what finds it.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    /// Its name, as nodes know it.
    pub name: &'static str,
    /// What it does, for people.
    pub text: &'static str,
    /// How real processes find it; `None` if that takes luck, and only the simulation does.
    pub real: Option<RealRun>,
}

/// A run of real processes that finds a mutant.
#[derive(Clone, Copy, Debug)]
pub struct RealRun {
    /// The scenario.
    pub scenario: &'static str,
    /// The node that has the bug; `None`: all.
    pub node: Option<&'static str>,
    /// One of these must be broken.
    pub breaks: &'static [Invariant],
}

/// All mutants.
pub const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "acknowledge-before-sync",
        text: "the log calls everything durable as soon as it has taken it",
        real: Some(RealRun {
            scenario: "lights-out",
            node: None,
            breaks: &[Invariant::NothingLost, Invariant::ReplicasComplete, Invariant::Linearizable],
        }),
    },
    Mutant {
        name: "apply-before-sync",
        text: "entries are applied before this node's own log has them on disk",
        real: None,
    },
    Mutant {
        name: "read-without-quorum",
        text: "a leader serves linearizable reads without asking a quorum whether it still leads",
        real: Some(RealRun {
            scenario: "old-leader",
            node: None,
            breaks: &[Invariant::Linearizable, Invariant::NothingLost, Invariant::StalenessBounded],
        }),
    },
    Mutant {
        name: "apply-skipped",
        text: "now and then a replica records that it has applied an entry, and has not",
        real: Some(RealRun {
            scenario: "calm",
            node: Some("b1"),
            breaks: &[Invariant::ReplicasEqual, Invariant::ReplicasComplete],
        }),
    },
    Mutant {
        name: "epoch-unchecked",
        text: "a write is applied whatever epoch it was routed by",
        real: None,
    },
    Mutant {
        name: "operations-forgotten",
        text: "a node that starts has forgotten which requests it has seen",
        real: Some(RealRun {
            scenario: "one-restart",
            node: Some("b1"),
            breaks: &[Invariant::ReplicasEqual, Invariant::NothingDoubled, Invariant::Linearizable],
        }),
    },
    Mutant {
        name: "state-trusted",
        text: "what a power cut leaves of the state is taken for whole",
        real: None,
    },
    Mutant {
        name: "vote-not-persisted",
        text: "a vote is given and never written down",
        real: None,
    },
    Mutant {
        name: "snapshot-half",
        text: "half of a snapshot's rows are loaded, and the load is called done",
        real: Some(RealRun {
            scenario: "left-behind",
            node: Some("b1"),
            breaks: &[Invariant::ReplicasEqual, Invariant::ReplicasComplete],
        }),
    },
    Mutant {
        name: "staleness-unchecked",
        text: "a read of bounded staleness is served however stale it is",
        real: Some(RealRun {
            scenario: "old-leader",
            node: None,
            breaks: &[Invariant::StalenessBounded],
        }),
    },
];

impl Mutant {
    /// The mutant of a name.
    pub fn named(name: &str) -> Option<&'static Self> {
        MUTANTS.iter().find(|mutant| mutant.name == name)
    }
}

impl RealRun {
    /// What of this report shows the bug; `None` if nothing does.
    pub fn evidence(&self, report: &Report) -> Option<String> {
        if report.verdict != Verdict::InvariantBroken {
            return None;
        }
        let is_meant = |one: &&crate::report::InvariantResult| {
            self.breaks.contains(&one.invariant) && one.state == InvariantState::Broken
        };
        let broken = report.invariants.iter().find(is_meant)?;
        let of = |one: &&crate::checker::Violation| one.invariant == broken.invariant;
        let first = report.violations.iter().find(of).map(|one| one.text.as_str());
        let first = first.unwrap_or("no evidence is kept");
        Some(format!("{} {} times: {first}", broken.invariant, broken.broken))
    }
}

/// A mutant in one node, or in all: `NAME` or `NAME@NODE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeMutant {
    /// Its name.
    pub mutant: String,
    /// The node; `None`: all.
    pub node: Option<String>,
}

impl NodeMutant {
    /// Whether a node has it.
    pub fn is_of(&self, node: &str) -> bool {
        self.node.as_deref().is_none_or(|of| of == node)
    }
}

impl FromStr for NodeMutant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, node) = match text.split_once('@') {
            Some((name, node)) => (name, Some(node.to_owned())),
            None => (text, None),
        };
        let mutant = Mutant::named(name).ok_or_else(|| {
            let known: Vec<_> = MUTANTS.iter().map(|mutant| mutant.name).collect();
            format!("there is no mutant {name:?}: write one of {}", known.join(", "))
        })?;
        Ok(Self { mutant: mutant.name.to_owned(), node })
    }
}

impl fmt::Display for NodeMutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.node {
            Some(node) => write!(f, "{}@{node}", self.mutant),
            None => f.write_str(&self.mutant),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Scenario;

    #[test]
    fn every_mutant_has_a_scenario_whose_invariants_can_find_it() {
        for mutant in MUTANTS {
            let Some(real) = &mutant.real else { continue };
            let (scenario, _) = Scenario::load(real.scenario).unwrap();
            let asked = real.breaks.iter().any(|one| scenario.invariants.contains(one));
            assert!(asked, "{}: {} does not ask for it", mutant.name, real.scenario);
            if let Some(node) = real.node {
                assert!(scenario.zones().contains_key(node), "{}: no node {node}", mutant.name);
            }
        }
    }

    #[test]
    fn a_mutant_is_of_all_nodes_or_of_one() {
        let all: NodeMutant = "apply-skipped".parse().unwrap();
        let one: NodeMutant = "apply-skipped@b1".parse().unwrap();
        assert_eq!((all.is_of("a1"), one.is_of("a1"), one.is_of("b1")), (true, false, true));
        assert_eq!(one.to_string(), "apply-skipped@b1");
        let error = "nothing".parse::<NodeMutant>().unwrap_err();
        assert!(error.contains("state-trusted"), "{error}");
    }
}
