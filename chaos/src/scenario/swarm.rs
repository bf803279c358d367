//! Random faults: a seed draws which kinds are on, and then when, whom and how long.
//!
//! With the quorum guard all faults that overlap hit one zone, so that a majority of every shard
//! stays whole; without it anything may be hit, and only safety and the recovery afterwards can be
//! asked for. Pure: equal seed, equal plan.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::{Fault, FaultKind, FaultSettings, Pick, Place, Selector};

/// How a swarm is drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct SwarmConfig {
    /// The kinds that may be drawn.
    pub kinds: Vec<FaultKind>,
    /// Chance of each kind to be on at all under a seed, in (0, 1].
    pub enable: f64,
    /// Mean time between two faults.
    pub mean_between: Duration,
    /// The shortest fault.
    pub lasts_min: Duration,
    /// The longest fault.
    pub lasts_max: Duration,
    /// Faults at the same time, at most.
    pub concurrent_max: usize,
    /// Whether a majority is left whole.
    pub quorum_guard: bool,
}

/// What shapes whole networks, and therefore cannot be kept within a zone.
pub(super) const UNGUARDED: &[FaultKind] = &[FaultKind::Bridge, FaultKind::Ring, FaultKind::Roll];

impl SwarmConfig {
    /// Whether some kind needs nodes that can be broken on command.
    pub fn needs_hooks(&self) -> bool {
        self.kinds.iter().any(|kind| kind.row().needs_hooks)
    }
}

/// Draws the faults of one phase, in the order in which they begin.
///
/// Two faults never hit the same node at the same time: what is down cannot be paused.
pub fn plan(
    config: &SwarmConfig,
    lasts: Duration,
    places: &BTreeMap<String, Place>,
    seed: u64,
) -> Vec<Fault> {
    let mut rng = StdRng::seed_from_u64(seed);
    let kinds = enabled(config, &mut rng);
    let mut faults: Vec<Fault> = Vec::new();
    let mut at = Duration::ZERO;
    loop {
        // Exponential gaps: faults that cluster now and then, as they do.
        let gap = -(1.0 - rng.random_range(0.0..1.0_f64)).ln();
        at += config.mean_between.mul_f64(gap);
        let kind = kinds.choose(&mut rng).copied();
        let span = rng.random_range(config.lasts_min..=config.lasts_max);
        let node = places.keys().collect::<Vec<_>>().choose(&mut rng).map(|node| (*node).clone());
        let settings = settings(&mut rng);
        let (Some(kind), Some(node)) = (kind, node) else { return faults };
        if lasts <= at + span {
            return faults;
        }
        let zone = places.get(&node);
        let at_once: Vec<&Fault> = faults
            .iter()
            .filter(|other| at < other.after + other.lasts.unwrap_or_default() + SETTLE)
            .collect();
        let is_other = |other: &&Fault| other.target.named_node() != Some(node.as_str());
        let shares_zone =
            |other: &&Fault| other.target.named_node().and_then(|other| places.get(other)) == zone;
        let is_allowed = at_once.len() < config.concurrent_max
            && at_once.iter().all(is_other)
            && (!config.quorum_guard || at_once.iter().all(shares_zone));
        if is_allowed {
            let target = Selector::Node(Pick::Named(node));
            faults.push(Fault { kind, target, after: at, lasts: Some(span), settings });
        }
    }
}

/// After a fault its zone needs this long until another zone may be hit: a node that was down has
/// to catch up before it counts.
const SETTLE: Duration = Duration::from_secs(3);

fn enabled(config: &SwarmConfig, rng: &mut StdRng) -> Vec<FaultKind> {
    let usable = |kind: &FaultKind| !(config.quorum_guard && UNGUARDED.contains(kind));
    let all: Vec<FaultKind> = config.kinds.iter().copied().filter(usable).collect();
    let on: Vec<FaultKind> =
        all.iter().copied().filter(|_| rng.random_bool(config.enable)).collect();
    // A run without faults shows nothing.
    if on.is_empty() { all.choose(rng).copied().into_iter().collect() } else { on }
}

fn settings(rng: &mut StdRng) -> FaultSettings {
    let sign = if rng.random_bool(0.5) { 1.0 } else { -1.0 };
    FaultSettings {
        delay_ms: rng.random_range(5.0..150.0),
        jitter_ms: rng.random_range(0.0..50.0),
        loss: *[0.01, 0.05, 0.2].choose(rng).unwrap_or(&0.05),
        period_ms: rng.random_range(100.0..1_500.0),
        share: rng.random_range(0.05..0.5),
        by_ms: sign * rng.random_range(1_000.0..120_000.0),
        rate: rng.random_range(0.001..0.2),
        stall_ms: *[100.0, 1_000.0].choose(rng).unwrap_or(&100.0),
        ..FaultSettings::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two of the zones have the same name.
    fn places() -> BTreeMap<String, Place> {
        let nodes = [
            ("a1", "r", "a"),
            ("a2", "r", "a"),
            ("b1", "r", "b"),
            ("b2", "r", "b"),
            ("c1", "s", "a"),
            ("c2", "s", "a"),
        ];
        let place = |region: &str, zone: &str| Place { region: region.into(), zone: zone.into() };
        nodes.map(|(name, region, zone)| (name.to_owned(), place(region, zone))).into()
    }

    fn config(quorum_guard: bool) -> SwarmConfig {
        SwarmConfig {
            kinds: super::super::ROWS.iter().map(|row| row.kind).collect(),
            enable: 0.5,
            mean_between: Duration::from_millis(300),
            lasts_min: Duration::from_millis(100),
            lasts_max: Duration::from_secs(4),
            concurrent_max: 3,
            quorum_guard,
        }
    }

    fn plan_of(quorum_guard: bool, seed: u64) -> Vec<Fault> {
        plan(&config(quorum_guard), Duration::from_secs(120), &places(), seed)
    }

    fn node(fault: &Fault) -> String {
        fault.target.named_node().expect("a swarm hits one node at a time").to_owned()
    }

    /// Pairs that are on at the same time.
    fn overlapping(faults: &[Fault]) -> Vec<(&Fault, &Fault)> {
        let end = |fault: &Fault| fault.after + fault.lasts.unwrap();
        let pairs = faults
            .iter()
            .enumerate()
            .flat_map(|(index, one)| faults[..index].iter().map(move |other| (other, one)));
        pairs.filter(|(first, second)| second.after < end(first)).collect()
    }

    #[test]
    fn equal_seeds_draw_equal_plans_and_others_draw_others() {
        assert_eq!(plan_of(true, 7), plan_of(true, 7));
        assert_ne!(plan_of(true, 7), plan_of(true, 8));
    }

    #[test]
    fn the_quorum_guard_keeps_faults_that_overlap_within_one_zone() {
        let places = places();
        let mut seen = 0;
        for seed in 0..100 {
            let faults = plan_of(true, seed);
            assert!(faults.is_sorted_by_key(|fault| fault.after), "seed {seed}");
            for (one, other) in overlapping(&faults) {
                assert_eq!(places[&node(one)], places[&node(other)], "seed {seed}");
                assert_ne!(node(one), node(other), "seed {seed}");
                seen += 1;
            }
            assert!(faults.iter().all(|fault| !UNGUARDED.contains(&fault.kind)));
        }
        assert!(0 < seen, "nothing overlapped: the test shows nothing");
    }

    #[test]
    fn without_the_guard_a_majority_can_go() {
        let places = places();
        let crosses = |faults: &[Fault]| {
            overlapping(faults)
                .iter()
                .any(|(one, other)| places[&node(one)] != places[&node(other)])
        };
        assert!((0..100).any(|seed| crosses(&plan_of(false, seed))));
    }

    #[test]
    fn a_seed_turns_some_kinds_off() {
        let kinds = |seed| {
            let mut kinds: Vec<_> = plan_of(true, seed).iter().map(|fault| fault.kind).collect();
            kinds.sort_unstable();
            kinds.dedup();
            kinds
        };
        assert_ne!(kinds(1), kinds(2));
    }
}
