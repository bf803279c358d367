//! Views of clusters for tests.

use anchorhold_model::NodeId;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use crate::NodeView;

/// How many cases a property is tried on: always the same ones, or those of `PROPTEST_RNG_SEED`.
pub(crate) fn cases(cases: u32) -> ProptestConfig {
    let mut config =
        ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) };
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(20_261_123);
    }
    config
}

/// Reads a cluster, one node a line: `n2 north/b replicas=3 leaders=1 full`.
pub(crate) fn parse(text: &str) -> Vec<NodeView> {
    text.lines().map(parse_node).collect()
}

fn parse_node(line: &str) -> NodeView {
    let mut words = line.split_whitespace();
    let id = words.next().and_then(|word| word.strip_prefix('n')).unwrap();
    let (region, zone) = words.next().unwrap().split_once('/').unwrap();
    let mut node = NodeView {
        node_id: NodeId(id.parse().unwrap()),
        region: region.to_owned(),
        zone: zone.to_owned(),
        accepts_replicas: true,
        replicas: 0,
        leaders: 0,
    };
    for word in words {
        match word.split_once('=') {
            Some(("replicas", number)) => node.replicas = number.parse().unwrap(),
            Some(("leaders", number)) => node.leaders = number.parse().unwrap(),
            Some(_) | None if word == "full" => node.accepts_replicas = false,
            Some(_) | None => panic!("unknown word {word:?}"),
        }
    }
    node
}

/// Up to ten nodes in up to four zones, some of which take no replicas.
pub(crate) fn any_nodes() -> impl Strategy<Value = Vec<NodeView>> {
    let node = (0_u8..2, 0_u8..2, prop::bool::weighted(0.8), 0_u32..5, 0_u32..5);
    prop::collection::btree_map(1_u64..12, node, 0..10).prop_map(|nodes| {
        let each =
            nodes.into_iter().map(|(id, (region, zone, open, replicas, leaders))| NodeView {
                node_id: NodeId(id),
                region: format!("r{region}"),
                zone: format!("z{zone}"),
                accepts_replicas: open,
                replicas,
                leaders,
            });
        each.collect()
    })
}
