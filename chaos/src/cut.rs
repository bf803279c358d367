//! Which flows each network fault touches. Pure.

use std::time::Duration;

use crate::network::{Flow, Network, Party};
use crate::scenario::{FaultKind, FaultSettings};

/// What one fault does to the network.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cut {
    /// What is wrong from whom to whom.
    pub flows: Vec<(Party, Party, Flow)>,
    /// Whom nobody can connect to.
    pub refusing: Vec<String>,
}

impl Cut {
    /// What a fault does, if it hits `targets` out of `nodes` (both by name, sorted); empty if it
    /// is no matter of the network.
    pub fn of(
        kind: FaultKind,
        targets: &[String],
        nodes: &[String],
        settings: &FaultSettings,
    ) -> Self {
        let stalled = |pairs| Self::with(pairs, Flow::STALLED);
        match kind {
            FaultKind::Isolate | FaultKind::Flap | FaultKind::PowerLoss => {
                stalled(both_ways(around(targets, nodes, true)))
            }
            FaultKind::PeersOnly => stalled(both_ways(peers(targets, nodes))),
            FaultKind::ClientsOnly => stalled(both_ways(clients(targets))),
            FaultKind::OneWayOut => stalled(around(targets, nodes, true)),
            FaultKind::OneWayIn => stalled(swapped(around(targets, nodes, true))),
            FaultKind::Halves => stalled(both_ways(between(targets, &without(nodes, targets)))),
            FaultKind::Bridge => stalled(both_ways(bridge(targets, nodes))),
            FaultKind::Ring => stalled(both_ways(ring(nodes))),
            FaultKind::Slow | FaultKind::Lossy => {
                Self::with(both_ways(around(targets, nodes, true)), slowed(kind, settings))
            }
            FaultKind::Refuse => Self { flows: Vec::new(), refusing: targets.to_vec() },
            FaultKind::Kill
            | FaultKind::Pause
            | FaultKind::Starve
            | FaultKind::Stop
            | FaultKind::Roll
            | FaultKind::Wipe
            | FaultKind::BitFlip
            | FaultKind::TornTail
            | FaultKind::Reset
            | FaultKind::ClockJump
            | FaultKind::ClockDrift
            | FaultKind::DiskFull
            | FaultKind::DiskWriteError
            | FaultKind::DiskSyncError
            | FaultKind::DiskStall
            | FaultKind::CrashAt => Self::default(),
        }
    }

    fn with(mut pairs: Vec<(Party, Party)>, flow: Flow) -> Self {
        // A pair of two targets comes up from both of them, and must not count twice.
        pairs.sort_unstable();
        pairs.dedup();
        let flows = pairs.into_iter().map(|(from, to)| (from, to, flow)).collect();
        Self { flows, refusing: Vec::new() }
    }

    /// Whether it does nothing.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty() && self.refusing.is_empty()
    }

    /// Adds what it does to a network.
    pub fn add_to(&self, network: &mut Network) {
        for (from, to, flow) in &self.flows {
            network.worsen(from, to, *flow);
        }
        for node in &self.refusing {
            network.refuse(node);
        }
    }
}

fn slowed(kind: FaultKind, settings: &FaultSettings) -> Flow {
    let milliseconds = |value: f64| Duration::from_secs_f64(value / 1_000.0);
    if kind == FaultKind::Lossy {
        return Flow { loss: settings.loss, ..Flow::default() };
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "settings are checked: from 0 to 1e12"
    )]
    let bytes_per_second = settings.bytes_per_second as u64;
    Flow {
        delay: milliseconds(settings.delay_ms),
        jitter: milliseconds(settings.jitter_ms),
        bytes_per_second: (0 < bytes_per_second).then_some(bytes_per_second),
        ..Flow::default()
    }
}

fn without(nodes: &[String], targets: &[String]) -> Vec<String> {
    nodes.iter().filter(|node| !targets.contains(node)).cloned().collect()
}

/// From each of some nodes to each of some others.
fn between(some: &[String], others: &[String]) -> Vec<(Party, Party)> {
    let pairs = some.iter().flat_map(|one| others.iter().map(move |other| (one, other)));
    let pairs = pairs.filter(|(one, other)| one != other);
    pairs.map(|(one, other)| (Party::node(one), Party::node(other))).collect()
}

/// From the targets to all other nodes, each other included.
fn peers(targets: &[String], nodes: &[String]) -> Vec<(Party, Party)> {
    between(targets, nodes)
}

fn clients(targets: &[String]) -> Vec<(Party, Party)> {
    targets.iter().map(|node| (Party::node(node), Party::Clients)).collect()
}

fn around(targets: &[String], nodes: &[String], with_clients: bool) -> Vec<(Party, Party)> {
    let mut pairs = peers(targets, nodes);
    if with_clients {
        pairs.extend(clients(targets));
    }
    pairs
}

fn swapped(pairs: Vec<(Party, Party)>) -> Vec<(Party, Party)> {
    pairs.into_iter().map(|(from, to)| (to, from)).collect()
}

fn both_ways(pairs: Vec<(Party, Party)>) -> Vec<(Party, Party)> {
    let mut both = pairs.clone();
    both.extend(swapped(pairs));
    both
}

/// The first target hears everybody; the others form two halves that do not hear each other.
fn bridge(targets: &[String], nodes: &[String]) -> Vec<(Party, Party)> {
    let bridge = targets.first();
    let rest: Vec<String> = nodes.iter().filter(|node| Some(*node) != bridge).cloned().collect();
    let (left, right) = rest.split_at(rest.len() / 2);
    between(left, right)
}

/// Everything but the links between neighbours. In a ring of three all are neighbours, so there it
/// is a line: the ends do not hear each other.
fn ring(nodes: &[String]) -> Vec<(Party, Party)> {
    let count = nodes.len();
    let mut pairs = Vec::new();
    for (index, one) in nodes.iter().enumerate() {
        for (other_index, other) in nodes.iter().enumerate().skip(index + 1) {
            let distance = other_index - index;
            let wraps = distance == count - 1 && 3 < count;
            if distance != 1 && !wraps {
                pairs.push((Party::node(one), Party::node(other)));
            }
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(kind: FaultKind, targets: &[&str], nodes: &[&str], expected: &str) {
        let names =
            |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let settings = FaultSettings::default();
        let cut = Cut::of(kind, &names(targets), &names(nodes), &settings);
        assert!(cut.flows.iter().all(|(_, _, flow)| flow.stalled));
        let pairs = cut.flows.iter().map(|(from, to, _)| format!("{from}>{to}"));
        assert_eq!(pairs.collect::<Vec<_>>().join(" "), expected);
    }

    const ABC: &[&str] = &["a", "b", "c"];

    #[test]
    fn each_fault_cuts_what_its_name_says() {
        check(FaultKind::Isolate, &["a"], ABC, "a>b a>c a>clients b>a c>a clients>a");
        check(FaultKind::OneWayOut, &["a"], ABC, "a>b a>c a>clients");
        check(FaultKind::OneWayIn, &["a"], ABC, "b>a c>a clients>a");
        check(FaultKind::PeersOnly, &["a"], ABC, "a>b a>c b>a c>a");
        check(FaultKind::ClientsOnly, &["a"], ABC, "a>clients clients>a");
        check(FaultKind::Halves, &["a", "b"], ABC, "a>c b>c c>a c>b");
        check(FaultKind::Bridge, &["b"], ABC, "a>c c>a");
        check(FaultKind::Ring, &[], ABC, "a>c c>a");
        check(FaultKind::Ring, &[], &["a", "b", "c", "d"], "a>c b>d c>a d>b");
        check(FaultKind::Kill, &["a"], ABC, "");
    }

    #[test]
    fn a_pair_of_two_targets_is_slowed_once() {
        let nodes = ["a", "b"].map(str::to_owned);
        let settings = FaultSettings { delay_ms: 7.0, jitter_ms: 0.0, ..FaultSettings::default() };
        let cut = Cut::of(FaultKind::Slow, &nodes, &nodes, &settings);
        let mut network = Network::default();
        cut.add_to(&mut network);
        let flow = network.flow(&Party::node("a"), &Party::node("b"));
        assert_eq!(flow.delay, Duration::from_millis(7));
    }
}
