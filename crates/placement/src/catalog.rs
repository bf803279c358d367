//! Where the catalog's replicas go: on every node, voting on a few.
//!
//! The catalog's voters are spread over as many zones as there are; all other nodes follow as
//! learners, so that each has the catalog at hand. An odd number of nodes votes: a second voter
//! alone would only add a way to fail. An even number is left as it is while another voter is on its
//! way.

use std::collections::BTreeSet;

use anchorhold_model::NodeId;

use crate::{NodeView, PlacementConfig};

/// A replica of the catalog as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CatalogMember {
    /// Its node.
    pub node_id: NodeId,
    /// Whether it votes.
    pub is_voter: bool,
    /// Whether it has the log up to the leader's, but for what is on its way.
    pub is_caught_up: bool,
}

/// The next change of the catalog's members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogStep {
    /// Let these nodes vote, and no other; those that voted so far become learners.
    SetVoters(BTreeSet<NodeId>),
    /// Let a node follow.
    AddLearner(NodeId),
    /// Take a learner away whose node is no more, or whose replica is lost.
    RemoveLearner(NodeId),
}

/// The next step towards the catalog's best members; `None` if they are the best.
///
/// `nodes` are all nodes of the cluster but removed ones. Voters are chosen among the present
/// voters and the learners that have caught up: nodes that accept replicas first, then by zones
/// that have no voter yet, then present voters, then by id. A voter that is away is replaced if
/// another node can be, and kept otherwise: to vote with fewer would not bring it back.
///
/// `lost` are the nodes whose replica, a member or not any more, takes part in nothing: it may have
/// forgotten a vote, or its node is away and does not vote. It stops voting as soon as the others
/// are a quorum without it, and its node follows again when it is not among these any more.
///
/// Taken one after the other, the steps come to an end.
pub fn catalog_voters(
    nodes: &[NodeView],
    current: &[CatalogMember],
    lost: &BTreeSet<NodeId>,
    config: &PlacementConfig,
) -> Option<CatalogStep> {
    let voters: BTreeSet<NodeId> =
        current.iter().filter(|member| member.is_voter).map(|member| member.node_id).collect();
    let good: Vec<CatalogMember> =
        current.iter().filter(|member| !lost.contains(&member.node_id)).copied().collect();
    let mut best = best_voters(nodes, &good, config);
    let present: BTreeSet<NodeId> = voters.difference(lost).copied().collect();
    let is_ready = |node: &NodeView| {
        good.iter().any(|one| one.node_id == node.node_id && (one.is_voter || one.is_caught_up))
    };
    let is_awaited =
        !lost.is_empty() || nodes.iter().any(|node| node.accepts_replicas && !is_ready(node));
    if best.len() < present.len() && best.is_subset(&present) && is_awaited {
        best = present;
    }
    if !best.is_empty() && best != voters {
        return Some(CatalogStep::SetVoters(best));
    }
    let is_member = |node_id: NodeId| current.iter().any(|member| member.node_id == node_id);
    let missing = nodes
        .iter()
        .filter(|node| node.accepts_replicas && !is_member(node.node_id))
        .map(|node| node.node_id)
        .filter(|node_id| !lost.contains(node_id))
        .min();
    if let Some(node_id) = missing {
        return Some(CatalogStep::AddLearner(node_id));
    }
    let is_node = |node_id: NodeId| nodes.iter().any(|node| node.node_id == node_id);
    let orphans = current.iter().filter(|member| {
        !member.is_voter && (!is_node(member.node_id) || lost.contains(&member.node_id))
    });
    orphans.map(|member| member.node_id).min().map(CatalogStep::RemoveLearner)
}

fn best_voters(
    nodes: &[NodeView],
    current: &[CatalogMember],
    config: &PlacementConfig,
) -> BTreeSet<NodeId> {
    let mut free: Vec<(&NodeView, bool)> = Vec::new();
    for member in current.iter().filter(|member| member.is_voter || member.is_caught_up) {
        let node = nodes.iter().find(|node| node.node_id == member.node_id);
        // A learner that is away is of no use; a voter that is away still counts.
        let usable = node.filter(|node| member.is_voter || node.accepts_replicas);
        free.extend(usable.map(|node| (node, member.is_voter)));
    }
    let wanted = odd_at_most(free.len().min(config.catalog_voters_max));
    let mut chosen: Vec<&NodeView> = Vec::with_capacity(wanted);
    while chosen.len() < wanted {
        let in_zone =
            |node: &NodeView| chosen.iter().filter(|other| other.domain() == node.domain()).count();
        let best = free
            .iter()
            .enumerate()
            .min_by_key(|(_, (node, is_voter))| {
                (!node.accepts_replicas, in_zone(node), !is_voter, node.node_id)
            })
            .map(|(index, _)| index);
        let Some(best) = best else { break };
        chosen.push(free.swap_remove(best).0);
    }
    chosen.iter().map(|node| node.node_id).collect()
}

fn odd_at_most(count: usize) -> usize {
    if count.is_multiple_of(2) { count.saturating_sub(1) } else { count }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{any_nodes, cases, parse};

    fn voter(id: u64) -> CatalogMember {
        CatalogMember { node_id: NodeId(id), is_voter: true, is_caught_up: true }
    }

    fn learner(id: u64) -> CatalogMember {
        CatalogMember { is_voter: false, ..voter(id) }
    }

    /// Carries a step out; new learners catch up at once.
    fn carry_out(members: &mut Vec<CatalogMember>, step: &CatalogStep) {
        match step {
            CatalogStep::SetVoters(voters) => {
                for member in members {
                    member.is_voter = voters.contains(&member.node_id);
                }
            }
            CatalogStep::AddLearner(node_id) => members.push(learner(node_id.0)),
            CatalogStep::RemoveLearner(node_id) => {
                members.retain(|member| member.node_id != *node_id);
            }
        }
    }

    #[track_caller]
    fn check(nodes: &str, members: &[CatalogMember], expected: Expect) {
        check_lost(nodes, &mut members.to_vec(), &[], expected);
    }

    #[track_caller]
    fn check_lost(nodes: &str, members: &mut Vec<CatalogMember>, lost: &[u64], expected: Expect) {
        let nodes = parse(nodes);
        let lost: BTreeSet<NodeId> = lost.iter().map(|id| NodeId(*id)).collect();
        let mut text = String::new();
        while let Some(step) = catalog_voters(&nodes, members, &lost, &PlacementConfig::default()) {
            match &step {
                CatalogStep::SetVoters(voters) => {
                    let ids: Vec<String> = voters.iter().map(ToString::to_string).collect();
                    writeln!(text, "voters {}", ids.join(" ")).unwrap();
                }
                CatalogStep::AddLearner(node_id) => writeln!(text, "add {node_id}").unwrap(),
                CatalogStep::RemoveLearner(node_id) => {
                    writeln!(text, "remove {node_id}").unwrap();
                }
            }
            carry_out(members, &step);
            assert!(text.len() < 1000, "no end: {text}");
        }
        expected.assert_eq(&text);
    }

    #[test]
    fn a_cluster_grows_from_one_node_to_three_zones() {
        check(
            "n1 north/a\nn2 north/b\nn3 north/c\nn4 north/a",
            &[voter(1)],
            expect![[r#"
                add n2
                add n3
                voters n1 n2 n3
                add n4
            "#]],
        );
    }

    #[test]
    fn two_nodes_have_one_voter() {
        check("n1 north/a\nn2 north/b", &[voter(1), learner(2)], expect![""]);
    }

    #[test]
    fn voters_of_one_zone_make_room_for_other_zones() {
        check(
            "n1 north/a\nn2 north/a\nn3 north/a\nn4 north/b\nn5 north/c",
            &[voter(1), voter(2), voter(3), learner(4), learner(5)],
            expect![[r#"
                voters n1 n4 n5
            "#]],
        );
    }

    #[test]
    fn a_learner_votes_when_it_has_caught_up() {
        let behind = CatalogMember { is_caught_up: false, ..learner(3) };
        check("n1 north/a\nn2 north/b\nn3 north/c", &[voter(1), learner(2), behind], expect![""]);
    }

    #[test]
    fn a_dead_voter_is_replaced_if_another_can_vote() {
        check(
            "n1 north/a full\nn2 north/b\nn3 north/c\nn4 north/b",
            &[voter(1), voter(2), voter(3), learner(4)],
            expect![[r#"
                voters n2 n3 n4
            "#]],
        );
        check(
            "n1 north/a full\nn2 north/b\nn3 north/c",
            &[voter(1), voter(2), voter(3)],
            expect![""],
        );
    }

    #[test]
    fn voters_that_are_good_stay() {
        check(
            "n1 north/a\nn2 north/b\nn3 north/c\nn4 north/a\nn5 north/b\nn6 north/c",
            &[learner(1), voter(2), learner(3), voter(4), learner(5), voter(6)],
            expect![""],
        );
    }

    #[test]
    fn a_removed_node_stops_voting_and_then_leaves() {
        check(
            "n2 north/b\nn3 north/c\nn4 north/a",
            &[voter(1), voter(2), voter(3), learner(4)],
            expect![[r#"
                voters n2 n3 n4
                remove n1
            "#]],
        );
    }

    #[test]
    fn a_lost_voter_makes_way_for_its_successor_and_the_others_go_on_voting() {
        let nodes = "n1 north/a\nn2 north/b\nn3 north/c";
        let mut members = vec![voter(1), voter(2), voter(3)];
        check_lost(
            nodes,
            &mut members,
            &[3],
            expect![[r#"
            voters n1 n2
            remove n3
        "#]],
        );
        check_lost(
            nodes,
            &mut members,
            &[],
            expect![[r#"
            add n3
            voters n1 n2 n3
        "#]],
        );
        // Another node votes at once instead, and the lost one follows again later.
        let nodes = "n1 north/a\nn2 north/b\nn3 north/c\nn4 north/c";
        let mut members = vec![voter(1), voter(2), voter(3), learner(4)];
        check_lost(
            nodes,
            &mut members,
            &[3],
            expect![[r#"
            voters n1 n2 n4
            remove n3
        "#]],
        );
        check_lost(
            nodes,
            &mut members,
            &[],
            expect![[r#"
            add n3
        "#]],
        );
    }

    #[test]
    fn two_voters_are_left_while_the_third_node_is_away() {
        let nodes = "n1 north/a\nn2 north/b";
        check_lost(nodes, &mut vec![voter(1), voter(2)], &[3], expect![""]);
        check_lost(
            nodes,
            &mut vec![voter(1), voter(2)],
            &[],
            expect![[r#"
            voters n1
        "#]],
        );
    }

    #[test]
    fn the_only_voter_is_kept_though_it_is_lost() {
        let nodes = "n1 north/a\nn2 north/b";
        let behind = CatalogMember { is_caught_up: false, ..learner(2) };
        check_lost(nodes, &mut vec![voter(1), behind], &[1], expect![""]);
    }

    fn any_members() -> impl Strategy<Value = Vec<CatalogMember>> {
        let member = (1_u64..12, any::<bool>(), any::<bool>());
        prop::collection::btree_map(1_u64..12, member, 1..8).prop_map(|members| {
            let each = members.into_iter().map(|(id, (_, is_voter, is_caught_up))| CatalogMember {
                node_id: NodeId(id),
                is_voter,
                is_caught_up,
            });
            each.collect()
        })
    }

    proptest! {
        #![proptest_config(cases(1_000))]

        #[test]
        fn steps_come_to_an_end_in_as_many_zones_as_there_are(
            nodes in any_nodes(), mut members in any_members(),
            lost in prop::collection::btree_set((1_u64..12).prop_map(NodeId), 0..3),
        ) {
            let config = PlacementConfig::default();
            let mut steps = 0;
            let mut lost = lost;
            loop {
                let Some(step) = catalog_voters(&nodes, &members, &lost, &config) else {
                    let stay = members.iter().filter(|member| !member.is_voter);
                    prop_assert!(!stay.into_iter().any(|member| lost.contains(&member.node_id)));
                    // Those that are out come back as others.
                    let out = |id: &NodeId| members.iter().all(|member| member.node_id != *id);
                    let before = lost.len();
                    lost.retain(|node_id| !out(node_id));
                    if lost.len() < before {
                        continue;
                    }
                    break;
                };
                carry_out(&mut members, &step);
                steps += 1;
                prop_assert!(steps <= 40, "no end: {step:?}");
                for member in &mut members {
                    member.is_caught_up = true;
                }
            }
            let open: Vec<&NodeView> = nodes.iter().filter(|node| node.accepts_replicas).collect();
            let voters: Vec<NodeId> =
                members.iter().filter(|member| member.is_voter).map(|m| m.node_id).collect();
            let voting: Vec<&&NodeView> =
                open.iter().filter(|node| voters.contains(&node.node_id)).collect();
            if open.len() < config.catalog_voters_max {
                return Ok(());
            }
            prop_assert_eq!(voting.len(), config.catalog_voters_max);
            prop_assert_eq!(voters.len(), config.catalog_voters_max);
            let zones: BTreeSet<_> = open.iter().map(|node| node.domain()).collect();
            let used: BTreeSet<_> = voting.iter().map(|node| node.domain()).collect();
            prop_assert_eq!(used.len(), zones.len().min(config.catalog_voters_max));
            for node in open {
                prop_assert!(members.iter().any(|member| member.node_id == node.node_id));
            }
        }
    }
}
