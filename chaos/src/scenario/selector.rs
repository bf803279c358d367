//! Which nodes a fault hits. Resolved when the fault begins: leaders move.

use std::collections::BTreeMap;
use std::fmt;

use rand::Rng;
use rand::seq::IteratorRandom as _;

/// Names some nodes without naming them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// Every node.
    All,
    /// The nodes of a zone: a named one, the round's, or any.
    Zone(Pick),
    /// One node: a named one, the round's, or any.
    Node(Pick),
    /// So many nodes, any.
    Random(usize),
    /// So many nodes of one zone, any: a majority stays where zones hold one replica each.
    RandomInZone(usize),
    /// The node that leads most shards.
    MostLeaders,
    /// The node that leads a shard: the catalog is shard 0.
    LeaderOf(Option<u64>),
    /// As many nodes as a majority can do without.
    Minority,
    /// As many nodes as are needed for a majority.
    Majority,
}

/// One of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pick {
    /// This one.
    Named(String),
    /// Each in turn: the first in the first round.
    Turn,
    /// Any.
    Random,
}

/// What a selector is resolved against.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Zone of each node, by name.
    pub zones: BTreeMap<String, String>,
    /// Who leads each shard, by name, as far as is known.
    pub leaders: BTreeMap<u64, String>,
    /// Rounds so far: 0 in the first.
    pub round: usize,
}

/// What selectors look like, for messages.
const FORMS: &str = "all, zone=NAME, zone=turn, zone=random, node=NAME, node=turn, \
     node=random, random(N), random_in_zone(N), most_leaders, leader_of=any, leader_of=catalog, \
     leader_of=SHARD, minority or majority";

impl Selector {
    /// Reads a selector as scenarios write it.
    ///
    /// # Errors
    /// What is wrong, and what is allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} selects nothing: write {FORMS}");
        if let Some((name, rest)) = text.split_once('=') {
            return match (name.trim(), rest.trim()) {
                (_, "") => Err(wrong()),
                ("zone", rest) => Ok(Self::Zone(Pick::parse(rest))),
                ("node", rest) => Ok(Self::Node(Pick::parse(rest))),
                ("leader_of", "any") => Ok(Self::LeaderOf(None)),
                ("leader_of", "catalog") => Ok(Self::LeaderOf(Some(0))),
                ("leader_of", rest) => {
                    rest.parse().map(|shard| Self::LeaderOf(Some(shard))).map_err(|_| wrong())
                }
                _ => Err(wrong()),
            };
        }
        let count = |prefix: &str| {
            let inner = text.strip_prefix(prefix)?.strip_suffix(')')?;
            inner.trim().parse::<usize>().ok().filter(|count| 0 < *count)
        };
        match text {
            "all" => Ok(Self::All),
            "most_leaders" => Ok(Self::MostLeaders),
            "minority" => Ok(Self::Minority),
            "majority" => Ok(Self::Majority),
            _ => count("random(")
                .map(Self::Random)
                .or_else(|| count("random_in_zone(").map(Self::RandomInZone))
                .ok_or_else(wrong),
        }
    }

    /// The node, if it names one.
    pub fn named_node(&self) -> Option<&str> {
        if let Self::Node(Pick::Named(name)) = self { Some(name) } else { None }
    }

    /// Whether a topology with these nodes (name to zone) has what is named.
    ///
    /// # Errors
    /// What there is instead.
    pub fn check(&self, zones: &BTreeMap<String, String>) -> Result<(), String> {
        let nodes: Vec<&str> = zones.keys().map(String::as_str).collect();
        match self {
            Self::Zone(Pick::Named(zone)) if !zones.values().any(|known| known == zone) => {
                let mut known: Vec<&str> = zones.values().map(String::as_str).collect();
                known.sort_unstable();
                known.dedup();
                Err(format!("there is no zone {zone:?}: the topology has {}", known.join(", ")))
            }
            Self::Node(Pick::Named(node)) if !zones.contains_key(node) => {
                Err(format!("there is no node {node:?}: the topology has {}", nodes.join(", ")))
            }
            Self::Random(count) if nodes.len() < *count => {
                Err(format!("the topology has {} nodes, not {count}", nodes.len()))
            }
            Self::All
            | Self::Zone(_)
            | Self::Node(_)
            | Self::Random(_)
            | Self::RandomInZone(_)
            | Self::MostLeaders
            | Self::LeaderOf(_)
            | Self::Minority
            | Self::Majority => Ok(()),
        }
    }

    /// The nodes that are meant now, by name, sorted. Empty if there are none, such as the leader
    /// of a shard that has none.
    pub fn resolve(&self, view: &View, rng: &mut impl Rng) -> Vec<String> {
        let nodes: Vec<&String> = view.zones.keys().collect();
        let majority = nodes.len() / 2 + 1;
        let mut found = match self {
            Self::All => nodes.into_iter().cloned().collect(),
            Self::Zone(pick) => {
                let mut zones: Vec<&String> = view.zones.values().collect();
                zones.sort_unstable();
                zones.dedup();
                let zone = pick.one(&zones, view.round, rng);
                let in_zone = view.zones.iter().filter(|(_, of)| zone.as_ref() == Some(of));
                in_zone.map(|(name, _)| name.clone()).collect()
            }
            Self::Node(pick) => pick.one(&nodes, view.round, rng).into_iter().collect(),
            Self::Random(count) => some(nodes, *count, rng),
            Self::RandomInZone(count) => {
                let zone = view.zones.values().choose(rng);
                let in_zone = view.zones.iter().filter(|(_, of)| zone == Some(of));
                some(in_zone.map(|(name, _)| name), *count, rng)
            }
            Self::MostLeaders => most_leaders(view).into_iter().collect(),
            Self::LeaderOf(Some(shard)) => view.leaders.get(shard).cloned().into_iter().collect(),
            Self::LeaderOf(None) => {
                view.leaders.values().choose(rng).cloned().into_iter().collect()
            }
            Self::Minority => {
                let count = nodes.len() - majority;
                some(nodes, count, rng)
            }
            Self::Majority => some(nodes, majority, rng),
        };
        found.sort_unstable();
        found
    }
}

fn some<'a>(
    nodes: impl IntoIterator<Item = &'a String>,
    count: usize,
    rng: &mut impl Rng,
) -> Vec<String> {
    nodes.into_iter().cloned().choose_multiple(rng, count)
}

fn most_leaders(view: &View) -> Option<String> {
    let mut led = BTreeMap::<&String, u32>::new();
    for node in view.leaders.values() {
        *led.entry(node).or_default() += 1;
    }
    let busiest = led.into_iter().max_by_key(|(node, count)| (*count, std::cmp::Reverse(*node)));
    busiest.map(|(node, _)| node.clone())
}

impl Pick {
    fn parse(text: &str) -> Self {
        match text {
            "turn" => Self::Turn,
            "random" => Self::Random,
            name => Self::Named(name.to_owned()),
        }
    }

    fn one(&self, all: &[&String], round: usize, rng: &mut impl Rng) -> Option<String> {
        match self {
            Self::Named(name) => Some(name.clone()),
            Self::Turn => all.get(round % all.len().max(1)).map(|name| (*name).clone()),
            Self::Random => all.iter().choose(rng).map(|name| (*name).clone()),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Zone(pick) => write!(f, "zone={pick}"),
            Self::Node(pick) => write!(f, "node={pick}"),
            Self::Random(count) => write!(f, "random({count})"),
            Self::RandomInZone(count) => write!(f, "random_in_zone({count})"),
            Self::MostLeaders => f.write_str("most_leaders"),
            Self::LeaderOf(None) => f.write_str("leader_of=any"),
            Self::LeaderOf(Some(0)) => f.write_str("leader_of=catalog"),
            Self::LeaderOf(Some(shard)) => write!(f, "leader_of={shard}"),
            Self::Minority => f.write_str("minority"),
            Self::Majority => f.write_str("majority"),
        }
    }
}

impl fmt::Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::Turn => f.write_str("turn"),
            Self::Random => f.write_str("random"),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    fn view() -> View {
        let nodes = [("a1", "a"), ("a2", "a"), ("b1", "b"), ("c1", "c"), ("c2", "c")];
        let leaders = [(0, "c1"), (7, "b1"), (8, "b1")];
        View {
            zones: nodes.map(|(name, zone)| (name.to_owned(), zone.to_owned())).into(),
            leaders: leaders.map(|(shard, name)| (shard, name.to_owned())).into(),
            round: 1,
        }
    }

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let selector = Selector::parse(text).unwrap();
        assert_eq!(selector.to_string(), text);
        let found = selector.resolve(&view(), &mut StdRng::seed_from_u64(1));
        assert_eq!(found, expected);
    }

    #[test]
    fn selectors_find_what_they_name() {
        check("all", &["a1", "a2", "b1", "c1", "c2"]);
        check("zone=c", &["c1", "c2"]);
        check("zone=turn", &["b1"]);
        check("node=a2", &["a2"]);
        check("node=turn", &["a2"]);
        check("most_leaders", &["b1"]);
        check("leader_of=catalog", &["c1"]);
        check("leader_of=8", &["b1"]);
        check("leader_of=9", &[]);
    }

    #[test]
    fn random_ones_are_as_many_as_asked_for_and_follow_the_seed() {
        let resolve = |text: &str, seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            Selector::parse(text).unwrap().resolve(&view(), &mut rng)
        };
        assert_eq!(resolve("random(2)", 1).len(), 2);
        assert_eq!(resolve("minority", 1).len(), 2);
        assert_eq!(resolve("majority", 1).len(), 3);
        assert_eq!(resolve("random(2)", 5), resolve("random(2)", 5));
        assert!((0..50).any(|seed| resolve("random(2)", seed) != resolve("random(2)", 0)));
        for seed in 0..50 {
            let zones: Vec<_> = resolve("random_in_zone(2)", seed)
                .iter()
                .map(|node| view().zones[node].clone())
                .collect();
            assert!(zones.windows(2).all(|pair| pair[0] == pair[1]), "{zones:?}");
        }
    }

    #[test]
    fn what_selects_nothing_is_refused_with_what_is_allowed() {
        for text in ["", "zone=", "zones=a", "random(0)", "random(x)", "leader_of=x", "leader"] {
            let problem = Selector::parse(text).unwrap_err();
            assert!(problem.contains("write all, zone=NAME"), "{problem}");
        }
        let check = |text| Selector::parse(text).unwrap().check(&view().zones).unwrap_err();
        assert_eq!(check("zone=d"), "there is no zone \"d\": the topology has a, b, c");
        assert_eq!(check("node=x"), "there is no node \"x\": the topology has a1, a2, b1, c1, c2");
        assert_eq!(check("random(6)"), "the topology has 5 nodes, not 6");
    }
}
