//! Which regions, zones and nodes a cluster has.
//!
//! Text in, a checked [`Topology`] out. An error names the file, the line and the column, and says
//! what would be right. Zone names are unique over the whole cluster, so that `zone kill b` needs
//! no region.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use toml::Spanned;

use crate::latency::{Latency, LatencyText};

/// The shape of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// What it is called.
    pub name: String,
    /// At least one.
    pub regions: Vec<Region>,
    /// How far they are from each other.
    pub latency: Latency,
}

/// A geography.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Unique in the cluster.
    pub name: String,
    /// At least one.
    pub zones: Vec<Zone>,
}

/// A failure domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// Unique in the cluster.
    pub name: String,
    /// How many nodes it has, at least one.
    pub nodes: u32,
}

/// One node of a topology.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// The zone's name and a counter from 1: `a1`.
    pub name: String,
    /// Its region.
    pub region: String,
    /// Its zone.
    pub zone: String,
}

/// Why a topology cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// The file cannot be read.
    #[error("cannot read the topology {path}")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what a topology looks like.
    #[error("{file}:{line}:{column}: {problem}")]
    Invalid {
        /// Which file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

/// Nodes of one topology, at most: they all run on one machine.
const NODES_MAX: u32 = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TopologyText {
    name: Spanned<String>,
    #[serde(rename = "region", default)]
    regions: Vec<RegionText>,
    latency: Option<LatencyText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RegionText {
    name: Spanned<String>,
    #[serde(rename = "zone", default)]
    zones: Vec<ZoneText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ZoneText {
    name: Spanned<String>,
    nodes: Spanned<u32>,
}

impl Topology {
    /// Reads a topology file.
    ///
    /// # Errors
    /// [`TopologyError`] if the file cannot be read or is not a valid topology.
    pub fn load(path: &Path) -> Result<Self, TopologyError> {
        let file = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&file, &text),
            Err(source) => Err(TopologyError::Read { path: file, source }),
        }
    }

    /// Reads a topology from text; `file` is what errors call it.
    ///
    /// # Errors
    /// [`TopologyError::Invalid`] with the place in the text.
    pub fn parse(file: &str, text: &str) -> Result<Self, TopologyError> {
        let at = |span: Range<usize>, problem: String| invalid(file, text, span.start, problem);
        let parsed: TopologyText = toml::from_str(text)
            .map_err(|error| at(error.span().unwrap_or(0..0), error.message().trim().to_owned()))?;
        check(&parsed).map_err(|(span, problem)| at(span, problem))?;
        let latency = parsed.latency.as_ref().map(LatencyText::check).transpose();
        let latency = latency.map_err(|(span, problem)| at(span, problem))?;
        Ok(Self {
            name: parsed.name.into_inner(),
            regions: parsed.regions.into_iter().map(Region::from).collect(),
            latency: latency.unwrap_or_default(),
        })
    }

    /// One region named `local` with the zones `a`, `b` and `c`.
    pub fn three_zones(nodes_per_zone: u32) -> Self {
        let zones =
            ["a", "b", "c"].map(|name| Zone { name: name.to_owned(), nodes: nodes_per_zone });
        let region = Region { name: "local".to_owned(), zones: zones.to_vec() };
        Self { name: "three-zones".to_owned(), regions: vec![region], latency: Latency::default() }
    }

    /// All nodes: the first of each zone, then the second of each, so that the first three are in
    /// three zones where there are three.
    pub fn nodes(&self) -> Vec<NodeSpec> {
        let zones: Vec<(&Region, &Zone)> = self
            .regions
            .iter()
            .flat_map(|region| region.zones.iter().map(move |zone| (region, zone)))
            .collect();
        let counter_max = zones.iter().map(|(_, zone)| zone.nodes).max().unwrap_or(0);
        (1..=counter_max)
            .flat_map(|counter| {
                zones.iter().filter(move |(_, zone)| counter <= zone.nodes).map(
                    move |(region, zone)| NodeSpec {
                        name: format!("{}{counter}", zone.name),
                        region: region.name.clone(),
                        zone: zone.name.clone(),
                    },
                )
            })
            .collect()
    }
}

impl From<RegionText> for Region {
    fn from(text: RegionText) -> Self {
        let zones = text
            .zones
            .into_iter()
            .map(|zone| Zone { name: zone.name.into_inner(), nodes: zone.nodes.into_inner() });
        Self { name: text.name.into_inner(), zones: zones.collect() }
    }
}

/// What is wrong with a topology that parses, and where.
fn check(topology: &TopologyText) -> Result<(), (Range<usize>, String)> {
    check_name("topology", &topology.name)?;
    if topology.regions.is_empty() {
        let problem = "there is no region: add a [[region]] with a name and at least one zone";
        return Err((topology.name.span(), problem.to_owned()));
    }
    let (mut regions, mut zones) = (BTreeSet::new(), BTreeSet::new());
    let mut node_count = 0_u32;
    for region in &topology.regions {
        check_name("region", &region.name)?;
        check_unique("region", &region.name, &mut regions)?;
        if region.zones.is_empty() {
            let name = region.name.get_ref();
            let problem = format!("region {name:?} has no zone: add a [[region.zone]] below it");
            return Err((region.name.span(), problem));
        }
        for zone in &region.zones {
            check_name("zone", &zone.name)?;
            check_unique("zone", &zone.name, &mut zones)?;
            node_count = node_count.saturating_add(*zone.nodes.get_ref());
            check_nodes(zone, node_count)?;
        }
    }
    Ok(())
}

fn check_nodes(zone: &ZoneText, node_count: u32) -> Result<(), (Range<usize>, String)> {
    let name = zone.name.get_ref();
    if *zone.nodes.get_ref() == 0 {
        return Err((
            zone.nodes.span(),
            format!("zone {name:?} has no nodes: it needs at least 1"),
        ));
    }
    if NODES_MAX < node_count {
        let problem = format!(
            "with zone {name:?} the cluster has {node_count} nodes; one machine runs {NODES_MAX} at most"
        );
        return Err((zone.nodes.span(), problem));
    }
    Ok(())
}

fn check_name(kind: &str, name: &Spanned<String>) -> Result<(), (Range<usize>, String)> {
    let text = name.get_ref();
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_dashed = text.starts_with('-') || text.ends_with('-');
    if (1..=63).contains(&text.len()) && text.chars().all(allowed) && !is_dashed {
        return Ok(());
    }
    let problem = format!(
        "{kind} name {text:?} must be 1 to 63 of a-z, 0-9 and '-', not starting or ending with '-'"
    );
    Err((name.span(), problem))
}

fn check_unique<'a>(
    kind: &str,
    name: &'a Spanned<String>,
    seen: &mut BTreeSet<&'a str>,
) -> Result<(), (Range<usize>, String)> {
    if seen.insert(name.get_ref()) {
        return Ok(());
    }
    let text = name.get_ref();
    Err((name.span(), format!("{kind} name {text:?} is used twice: names must be unique")))
}

fn invalid(file: &str, text: &str, offset: usize, problem: String) -> TopologyError {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |start| start.chars().count()) + 1;
    TopologyError::Invalid { file: file.to_owned(), line, column, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_error(text: &str, expected: &str) {
        let error = Topology::parse("t.toml", text).expect_err("must be refused");
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn shipped_topologies_are_valid() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR"));
        let three = Topology::load(&directory.join("three-zones.toml")).expect("valid");
        assert_eq!(three, Topology::three_zones(1));
        assert_eq!(
            Topology::load(&directory.join("nine-nodes.toml")).expect("valid").nodes().len(),
            9
        );
        assert_eq!(
            Topology::load(&directory.join("one-node.toml")).expect("valid").nodes().len(),
            1
        );
    }

    #[test]
    fn two_regions_are_further_apart_than_their_zones() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR"));
        let topology = Topology::load(&directory.join("two-regions.toml")).expect("valid");
        let nodes = topology.nodes();
        let names: Vec<_> =
            nodes.iter().map(|node| format!("{}/{}", node.region, node.name)).collect();
        assert_eq!(names, ["north/a1", "north/b1", "north/c1", "south/d1", "south/e1", "south/f1"]);
        let micros = |one: usize, other: usize| {
            topology.latency.between(&nodes[one], &nodes[other]).least.as_micros()
        };
        assert_eq!((micros(0, 1), micros(0, 3), micros(3, 0)), (300, 5_000, 5_000));
    }

    #[test]
    fn latencies_are_read_and_nodes_of_one_zone_are_at_once_at_each_other() {
        let text = "name = \"t\"\n[[region]]\nname = \"r\"\nzone = [{ name = \"a\", nodes = 2 }, { name = \"b\", nodes = 1 }]\n[[region]]\nname = \"s\"\nzone = [{ name = \"c\", nodes = 1 }]\n[latency]\nzone_ms = 0.5\nzone_jitter_ms = 0.1\nregion_ms = 20\n";
        let topology = Topology::parse("t.toml", text).expect("valid");
        let nodes = topology.nodes();
        let micros = |one: &str, other: &str| {
            let node = |name: &str| nodes.iter().find(|node| node.name == name).unwrap();
            let delay = topology.latency.between(node(one), node(other));
            (delay.least.as_micros(), delay.jitter.as_micros())
        };
        assert_eq!(micros("a1", "a2"), (0, 0));
        assert_eq!(micros("b1", "a1"), (500, 100));
        assert_eq!(micros("b1", "c1"), (20_000, 0));
        assert!(Topology::three_zones(1).latency.is_none());
    }

    #[test]
    fn a_latency_that_cannot_be_is_found_where_it_stands() {
        let head = "name = \"t\"\n[[region]]\nname = \"r\"\nzone = [{ name = \"a\", nodes = 1 }]\n";
        let refused = |line: &str, expected: &str| {
            check_error(&format!("{head}[latency]\n{line}\n"), expected);
        };
        let words = "it is milliseconds from 0 to 1000";
        refused("zone_ms = -1", &format!("t.toml:6:11: zone_ms is -1; {words}"));
        refused("region_ms = 1001", &format!("t.toml:6:13: region_ms is 1001; {words}"));
        refused("zone_jitter_ms = nan", &format!("t.toml:6:18: zone_jitter_ms is NaN; {words}"));
        let unknown = Topology::parse("t.toml", &format!("{head}[latency]\njitter_ms = 1\n"));
        let text = unknown.expect_err("refused").to_string();
        assert!(text.starts_with("t.toml:6:1: unknown field `jitter_ms`"), "{text}");
    }

    #[test]
    fn nodes_are_dealt_zone_by_zone() {
        let names: Vec<_> =
            Topology::three_zones(2).nodes().into_iter().map(|node| node.name).collect();
        assert_eq!(names, ["a1", "b1", "c1", "a2", "b2", "c2"]);
    }

    #[test]
    fn a_zone_used_twice_is_found_at_its_second_name() {
        check_error(
            "name = \"t\"\n[[region]]\nname = \"r\"\nzone = [{ name = \"a\", nodes = 1 },\n  { name = \"a\", nodes = 1 }]\n",
            "t.toml:5:12: zone name \"a\" is used twice: names must be unique",
        );
    }

    #[test]
    fn an_empty_zone_is_refused() {
        check_error(
            "name = \"t\"\n[[region]]\nname = \"r\"\n[[region.zone]]\nname = \"a\"\nnodes = 0\n",
            "t.toml:6:9: zone \"a\" has no nodes: it needs at least 1",
        );
    }

    #[test]
    fn a_region_without_zones_is_refused() {
        check_error(
            "name = \"t\"\n[[region]]\nname = \"r\"\n",
            "t.toml:3:8: region \"r\" has no zone: add a [[region.zone]] below it",
        );
    }

    #[test]
    fn a_topology_without_regions_is_refused() {
        check_error(
            "name = \"t\"\n",
            "t.toml:1:8: there is no region: add a [[region]] with a name and at least one zone",
        );
    }

    #[test]
    fn a_name_that_would_not_do_in_a_path_is_refused() {
        check_error(
            "name = \"../t\"\n",
            "t.toml:1:8: topology name \"../t\" must be 1 to 63 of a-z, 0-9 and '-', not starting or ending with '-'",
        );
    }

    #[test]
    fn too_many_nodes_are_refused_at_the_zone_that_exceeds() {
        check_error(
            "name = \"t\"\n[[region]]\nname = \"r\"\n[[region.zone]]\nname = \"a\"\nnodes = 60\n[[region.zone]]\nname = \"b\"\nnodes = 5\n",
            "t.toml:9:9: with zone \"b\" the cluster has 65 nodes; one machine runs 64 at most",
        );
    }

    #[test]
    fn a_misspelt_field_is_found_where_it_stands() {
        let error = Topology::parse("t.toml", "name = \"t\"\nregoin = 3\n").expect_err("refused");
        let text = error.to_string();
        assert!(text.starts_with("t.toml:2:1: unknown field `regoin`"), "{text}");
    }
}
