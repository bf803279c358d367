//! Where the replicas of a new shard go.

use std::cmp::Reverse;

use anchorhold_model::NodeId;

use crate::{NodeView, PlacementConfig};

/// Chooses the voters of one new shard, the preferred first leader first.
///
/// Each voter goes to the zone that has the fewest of them so far, there to the node with the
/// fewest replicas, and the lowest id. The leader is the one in the zone, then on the node, that
/// leads fewest. With `region` only that region's nodes are taken.
///
/// There are fewer voters than configured if there are too few nodes, and none if there is no node:
/// the caller decides whether that is enough.
pub fn place(nodes: &[NodeView], region: Option<&str>, config: &PlacementConfig) -> Vec<NodeId> {
    let is_candidate = |node: &&NodeView| {
        node.accepts_replicas && region.is_none_or(|region| node.region == region)
    };
    let mut free: Vec<&NodeView> = nodes.iter().filter(is_candidate).collect();
    let mut chosen: Vec<&NodeView> = Vec::with_capacity(config.voters);
    while chosen.len() < config.voters {
        let in_zone =
            |node: &NodeView| chosen.iter().filter(|other| other.domain() == node.domain()).count();
        let best = free
            .iter()
            .enumerate()
            .min_by_key(|(_, node)| (in_zone(node), node.replicas, node.node_id))
            .map(|(index, _)| index);
        let Some(best) = best else { break };
        chosen.push(free.swap_remove(best));
    }
    let leads_in_zone = |node: &NodeView| {
        let others = nodes.iter().filter(|other| other.domain() == node.domain());
        others.map(|other| u64::from(other.leaders)).sum::<u64>()
    };
    let leader = chosen
        .iter()
        .min_by_key(|node| (leads_in_zone(node), node.leaders, node.node_id))
        .map(|node| node.node_id);
    let mut voters: Vec<NodeId> = chosen.iter().map(|node| node.node_id).collect();
    voters.sort_by_key(|node_id| (Reverse(Some(*node_id) == leader), *node_id));
    voters
}

/// Chooses the voters of several new shards, one after the other, each counting those before.
/// For each shard as [`place`].
pub fn place_shards(
    nodes: &[NodeView],
    region: Option<&str>,
    config: &PlacementConfig,
    shards: usize,
) -> Vec<Vec<NodeId>> {
    let mut nodes = nodes.to_vec();
    let mut placements = Vec::with_capacity(shards);
    for _ in 0..shards {
        let voters = place(&nodes, region, config);
        for node in &mut nodes {
            node.replicas += u32::from(voters.contains(&node.node_id));
            node.leaders += u32::from(voters.first() == Some(&node.node_id));
        }
        placements.push(voters);
    }
    placements
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{any_nodes, cases, parse};

    #[track_caller]
    fn check(nodes: &str, shards: usize, expected: Expect) {
        let placements = place_shards(&parse(nodes), None, &PlacementConfig::default(), shards);
        let line = |voters: &Vec<NodeId>| {
            voters.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ") + "\n"
        };
        expected.assert_eq(&placements.iter().map(line).collect::<String>());
    }

    #[test]
    fn voters_go_to_three_zones_and_leaders_take_turns() {
        check(
            "n1 north/a\nn2 north/b\nn3 north/c",
            4,
            expect![[r#"
                n1 n2 n3
                n2 n1 n3
                n3 n1 n2
                n1 n2 n3
            "#]],
        );
    }

    #[test]
    fn within_a_zone_the_emptier_node_is_taken() {
        check(
            "n1 north/a replicas=9\nn2 north/a replicas=2\nn3 north/b\nn4 north/c",
            1,
            expect![[r#"
                n2 n3 n4
            "#]],
        );
    }

    #[test]
    fn a_fuller_zone_is_better_than_the_same_zone_twice() {
        check(
            "n1 north/a\nn2 north/a\nn3 north/b replicas=50\nn4 north/c replicas=70",
            1,
            expect![[r#"
                n1 n3 n4
            "#]],
        );
    }

    #[test]
    fn two_zones_share_three_voters() {
        check(
            "n1 north/a\nn2 north/a\nn3 north/b\nn4 north/b",
            3,
            expect![[r#"
                n1 n2 n3
                n4 n1 n2
                n3 n1 n4
            "#]],
        );
    }

    #[test]
    fn nodes_that_take_no_replicas_are_left_out() {
        check(
            "n1 north/a full\nn2 north/b\nn3 north/c",
            1,
            expect![[r#"
                n2 n3
            "#]],
        );
        assert_eq!(place(&parse("n1 north/a full"), None, &PlacementConfig::default()), []);
    }

    #[test]
    fn leaders_are_spread_over_zones_before_nodes() {
        check(
            "n1 north/a leaders=2\nn2 north/b leaders=3\nn3 north/c\nn4 north/c leaders=4 full",
            1,
            expect![[r#"
                n1 n2 n3
            "#]],
        );
    }

    #[test]
    fn zones_of_another_region_are_other_zones() {
        let nodes = parse("n1 north/a\nn2 south/a\nn3 north/b\nn4 north/a");
        let config = PlacementConfig::default();
        assert_eq!(place(&nodes, None, &config), [NodeId(1), NodeId(2), NodeId(3)]);
        assert_eq!(place(&nodes, Some("north"), &config), [NodeId(1), NodeId(3), NodeId(4)]);
    }

    proptest! {
        #![proptest_config(cases(1_000))]

        #[test]
        fn voters_are_distinct_and_in_as_many_zones_as_there_are(
            nodes in any_nodes(), shards in 0_usize..20,
        ) {
            let config = PlacementConfig::default();
            let open: Vec<&NodeView> = nodes.iter().filter(|node| node.accepts_replicas).collect();
            let zones: BTreeSet<_> = open.iter().map(|node| node.domain()).collect();
            let by_id: BTreeMap<NodeId, &NodeView> =
                open.iter().map(|node| (node.node_id, *node)).collect();
            let placements = place_shards(&nodes, None, &config, shards);
            prop_assert_eq!(placements.len(), shards);
            for voters in placements {
                let distinct: BTreeSet<&NodeId> = voters.iter().collect();
                prop_assert_eq!(distinct.len(), voters.len());
                prop_assert_eq!(voters.len(), open.len().min(config.voters));
                let used: BTreeSet<_> = voters.iter().map(|id| by_id[id].domain()).collect();
                prop_assert_eq!(used.len(), zones.len().min(voters.len()));
            }
        }

        #[test]
        fn order_of_the_nodes_does_not_matter(nodes in any_nodes(), shards in 0_usize..8) {
            let config = PlacementConfig::default();
            let mut reversed = nodes.clone();
            reversed.reverse();
            prop_assert_eq!(
                place_shards(&nodes, None, &config, shards),
                place_shards(&reversed, None, &config, shards)
            );
        }

        #[test]
        fn empty_equal_zones_are_filled_evenly(
            nodes_per_zone in 1_u64..4, zones in 3_u64..5, shards in 1_usize..30,
        ) {
            let text: Vec<String> = (0..zones * nodes_per_zone)
                .map(|index| format!("n{} north/z{}", index + 1, index % zones))
                .collect();
            let placements = place_shards(
                &parse(&text.join("\n")), None, &PlacementConfig::default(), shards,
            );
            let mut counts = BTreeMap::new();
            let mut leaders = BTreeMap::new();
            for node in 1..=zones * nodes_per_zone {
                counts.insert(NodeId(node), 0);
                leaders.insert(node % zones, 0);
            }
            for voters in &placements {
                *leaders.get_mut(&(voters[0].0 % zones)).unwrap() += 1;
                for voter in voters {
                    *counts.get_mut(voter).unwrap() += 1;
                }
            }
            let spread = |counts: Vec<i32>| {
                counts.iter().max().unwrap() - counts.iter().min().unwrap()
            };
            prop_assert!(spread(counts.values().copied().collect()) <= 2, "{counts:?}");
            prop_assert!(spread(leaders.values().copied().collect()) <= 2, "{leaders:?}");
        }
    }
}
