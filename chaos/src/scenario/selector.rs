//! Which nodes a fault hits. Resolved when the fault begins: leaders move.

use std::collections::{BTreeMap, BTreeSet};
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
    /// The nodes of a region, likewise.
    Region(Pick),
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

/// Where a node is. A zone's name counts within its region.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Its region.
    pub region: String,
    /// Its zone.
    pub zone: String,
}

/// What a selector is resolved against.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Place of each node, by name.
    pub places: BTreeMap<String, Place>,
    /// Who leads each shard, by name, as far as is known.
    pub leaders: BTreeMap<u64, String>,
    /// Rounds so far: 0 in the first.
    pub round: usize,
}

/// What selectors look like, for messages.
const FORMS: &str = "all, zone=NAME, zone=turn, zone=random, region=NAME, region=turn, \
     region=random, node=NAME, node=turn, node=random, random(N), random_in_zone(N), most_leaders, \
     leader_of=any, leader_of=catalog, leader_of=SHARD, minority or majority";

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
                ("region", rest) => Ok(Self::Region(Pick::parse(rest))),
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

    /// Whether a topology with these nodes, by name, has what is named.
    ///
    /// # Errors
    /// What there is instead.
    pub fn check(&self, places: &BTreeMap<String, Place>) -> Result<(), String> {
        match self {
            Self::Zone(Pick::Named(name)) => check_zone(name, places),
            Self::Region(Pick::Named(name)) if !places.values().any(|of| of.region == *name) => {
                let known = listed(places.values().map(|place| place.region.as_str()));
                Err(format!("there is no region {name:?}: the topology has {known}"))
            }
            Self::Node(Pick::Named(node)) if !places.contains_key(node) => {
                let known = listed(places.keys().map(String::as_str));
                Err(format!("there is no node {node:?}: the topology has {known}"))
            }
            Self::Random(count) if places.len() < *count => {
                Err(format!("the topology has {} nodes, not {count}", places.len()))
            }
            Self::All
            | Self::Zone(_)
            | Self::Region(_)
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
        let nodes: Vec<&String> = view.places.keys().collect();
        let majority = nodes.len() / 2 + 1;
        let mut found = match self {
            Self::All => nodes.into_iter().cloned().collect(),
            Self::Zone(pick) => {
                let zones: BTreeSet<&Place> = view.places.values().collect();
                let zone = pick.one(zones, view.round, rng, |zone, name| zone.is_called(name));
                view.nodes_in(|place| zone == Some(place))
            }
            Self::Region(pick) => {
                let regions = view.places.values().map(|place| place.region.as_str());
                let regions: BTreeSet<&str> = regions.collect();
                let region = pick.one(regions, view.round, rng, |region, name| *region == name);
                view.nodes_in(|place| region == Some(place.region.as_str()))
            }
            Self::Node(pick) => {
                let node = pick.one(nodes, view.round, rng, |node, name| *node == name);
                node.cloned().into_iter().collect()
            }
            Self::Random(count) => some(nodes, *count, rng),
            Self::RandomInZone(count) => {
                let zone = view.places.values().choose(rng);
                some(&view.nodes_in(|place| zone == Some(place)), *count, rng)
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

impl View {
    /// The nodes whose place is such a one, by name.
    fn nodes_in(&self, is_there: impl Fn(&Place) -> bool) -> Vec<String> {
        let found = self.places.iter().filter(|(_, place)| is_there(place));
        found.map(|(name, _)| name.clone()).collect()
    }
}

impl Place {
    /// Whether a scenario means its zone by this name: the zone's, or the region's before it.
    fn is_called(&self, name: &str) -> bool {
        let rest = name.strip_prefix(self.region.as_str()).and_then(|rest| rest.strip_prefix('/'));
        rest.unwrap_or(name) == self.zone
    }
}

fn check_zone(name: &str, places: &BTreeMap<String, Place>) -> Result<(), String> {
    let zones: BTreeSet<&Place> = places.values().collect();
    let found: Vec<&&Place> = zones.iter().filter(|place| place.is_called(name)).collect();
    match found.as_slice() {
        [_] => Ok(()),
        [] => {
            let known = listed(zones.iter().map(|place| place.zone.as_str()));
            Err(format!("there is no zone {name:?}: the topology has {known}"))
        }
        several => {
            let regions = listed(several.iter().map(|place| place.region.as_str()));
            Err(format!(
                "several regions have a zone {name:?}: write zone=REGION/{name} with one of {regions}"
            ))
        }
    }
}

/// Names in order, each once.
fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: BTreeSet<&str> = names.into_iter().collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
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

    /// One of several, which are in order; `is_called` says which of them a name means.
    fn one<T: Copy>(
        &self,
        all: impl IntoIterator<Item = T>,
        round: usize,
        rng: &mut impl Rng,
        is_called: impl Fn(&T, &str) -> bool,
    ) -> Option<T> {
        let all: Vec<T> = all.into_iter().collect();
        match self {
            Self::Named(name) => all.into_iter().find(|one| is_called(one, name)),
            Self::Turn => all.get(round % all.len().max(1)).copied(),
            Self::Random => all.into_iter().choose(rng),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Zone(pick) => write!(f, "zone={pick}"),
            Self::Region(pick) => write!(f, "region={pick}"),
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
        let zones = [("a1", "a"), ("a2", "a"), ("b1", "b"), ("c1", "c"), ("c2", "c")];
        let leaders = [(0, "c1"), (7, "b1"), (8, "b1")];
        View {
            places: places(&zones.map(|(name, zone)| (name, "r", zone))),
            leaders: leaders.map(|(shard, name)| (shard, name.to_owned())).into(),
            round: 1,
        }
    }

    /// Two regions whose zones have the same names, and a third one.
    fn regions() -> View {
        let nodes = [
            ("e1", "east", "a"),
            ("e2", "east", "b"),
            ("e3", "east", "b"),
            ("n1", "north", "c"),
            ("w1", "west", "a"),
            ("w2", "west", "b"),
        ];
        View { places: places(&nodes), leaders: BTreeMap::new(), round: 2 }
    }

    fn places(nodes: &[(&str, &str, &str)]) -> BTreeMap<String, Place> {
        let place = |region: &str, zone: &str| Place { region: region.into(), zone: zone.into() };
        nodes.iter().map(|(name, region, zone)| ((*name).into(), place(region, zone))).collect()
    }

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        check_in(&view(), text, expected);
    }

    #[track_caller]
    fn check_in(view: &View, text: &str, expected: &[&str]) {
        let selector = Selector::parse(text).unwrap();
        assert_eq!(selector.to_string(), text);
        assert_eq!(selector.check(&view.places), Ok(()));
        let found = selector.resolve(view, &mut StdRng::seed_from_u64(1));
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
    fn a_region_is_all_of_its_zones() {
        check("region=r", &["a1", "a2", "b1", "c1", "c2"]);
        check_in(&regions(), "region=east", &["e1", "e2", "e3"]);
        check_in(&regions(), "region=turn", &["w1", "w2"]);
        let resolve = |seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            Selector::parse("region=random").unwrap().resolve(&regions(), &mut rng)
        };
        let found: BTreeSet<Vec<String>> = (0..50).map(resolve).collect();
        let all = [vec!["e1", "e2", "e3"], vec!["n1"], vec!["w1", "w2"]];
        assert_eq!(found, all.map(|nodes| nodes.into_iter().map(str::to_owned).collect()).into());
    }

    #[test]
    fn zones_of_the_same_name_in_two_regions_are_two_zones() {
        // In turn: east/a, east/b, north/c.
        check_in(&regions(), "zone=turn", &["n1"]);
        check_in(&View { round: 1, ..regions() }, "zone=turn", &["e2", "e3"]);
        check_in(&regions(), "zone=west/b", &["w2"]);
        check_in(&regions(), "zone=c", &["n1"]);
        for seed in 0..50 {
            for text in ["zone=random", "random_in_zone(2)"] {
                let mut rng = StdRng::seed_from_u64(seed);
                let found = Selector::parse(text).unwrap().resolve(&regions(), &mut rng);
                let hit: BTreeSet<Place> =
                    found.iter().map(|name| regions().places[name].clone()).collect();
                assert_eq!(hit.len(), 1, "{text}: {found:?}");
            }
        }
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
                .map(|node| view().places[node].clone())
                .collect();
            assert!(zones.windows(2).all(|pair| pair[0] == pair[1]), "{zones:?}");
        }
    }

    #[test]
    fn what_selects_nothing_is_refused_with_what_is_allowed() {
        for text in
            ["", "zone=", "region=", "zones=a", "random(0)", "random(x)", "leader_of=x", "leader"]
        {
            let problem = Selector::parse(text).unwrap_err();
            assert!(problem.contains("write all, zone=NAME"), "{problem}");
        }
        let check = |text| Selector::parse(text).unwrap().check(&view().places).unwrap_err();
        assert_eq!(check("zone=d"), "there is no zone \"d\": the topology has a, b, c");
        assert_eq!(check("node=x"), "there is no node \"x\": the topology has a1, a2, b1, c1, c2");
        assert_eq!(check("random(6)"), "the topology has 5 nodes, not 6");
        assert_eq!(check("region=s"), "there is no region \"s\": the topology has r");
        assert_eq!(check("zone=s/a"), "there is no zone \"s/a\": the topology has a, b, c");
        let check = |text| Selector::parse(text).unwrap().check(&regions().places).unwrap_err();
        assert_eq!(
            check("zone=a"),
            "several regions have a zone \"a\": write zone=REGION/a with one of east, west"
        );
    }
}
