//! Clusters as text, plans as text.

use std::fmt::Write;

use anchorhold_model::{ShardId, Timestamp};
use expect_test::{Expect, expect};

use crate::headroom::{headroom, why_blocked};
use crate::testing::view_of;
use crate::{PlacementConfig, plan};

/// Three zones with two nodes each.
const SIX: &str = "
n1 north/a
n2 north/b
n3 north/c
n4 north/a
n5 north/b
n6 north/c
c1 zonal home=north
";

/// Two regions of three zones, one node each, and a class of each kind.
const TWO_REGIONS: &str = "
n1 north/a
n2 north/b
n3 north/c
n4 south/a
n5 south/b
n6 south/c
c2 paired home=north pair=south
c3 pinned home=north within=north
c4 zonal home=south
";

#[track_caller]
fn check_with(config: &PlacementConfig, text: &str, expected: Expect) {
    let view = view_of(text, config);
    let now = Timestamp(1_000_000_000);
    let plan = plan(&view, config, now, 1);
    let mut out = String::new();
    for operator in &plan.operators {
        writeln!(out, "{operator}").unwrap();
    }
    for refusal in &plan.refusals {
        writeln!(out, "{refusal}").unwrap();
    }
    expected.assert_eq(&out);
    assert_eq!(plan, super::plan(&view, config, now, 1), "equal input, equal plan");
}

#[track_caller]
fn check(nodes: &str, text: &str, expected: Expect) {
    check_with(&PlacementConfig::default(), &format!("{nodes}\n{text}"), expected);
}

#[test]
fn a_cluster_that_is_as_it_should_be_gets_no_plan() {
    check(
        SIX,
        "s1 c1 n1* n2 n3\ns2 c1 n4 n5* n6",
        expect![[r#"
        s2 not: n5 leads more than others: hysteresis
        s1 not: n1 leads more than others: hysteresis
    "#]],
    );
    check(
        TWO_REGIONS,
        "s1 c2 n1* n2 n3 l4 l5",
        expect![[r#"
        s1 not: n1 holds more than others: hysteresis
        s1 not: n1 leads more than others: hysteresis
    "#]],
    );
}

#[test]
fn a_dead_voter_is_replaced_in_its_zone_before_it_goes() {
    check(
        SIX,
        "n3 down\ns1 c1 n1* n2 n3",
        expect![[r#"
            s1@1.1.1 add n6, wait n6, voters +n6 -n3, remove n3: n3 is dead
        "#]],
    );
}

#[test]
fn a_dead_zone_is_rebuilt_in_the_others() {
    check(
        SIX,
        "n3 down\nn6 down\ns1 c1 n1* n2 n3",
        expect![[r#"
            s1@1.1.1 add n4, wait n4, voters +n4 -n3, remove n3: n3 is dead
        "#]],
    );
}

#[test]
fn a_lost_replica_goes_first_and_its_node_may_get_the_next_one() {
    check(
        "n1 north/a\nn2 north/b\nn3 north/c\nc1 zonal home=north",
        "s1 c1 n1* n2 n3!\ns2 c1 n1 n2* n3",
        expect![[r#"
            s1@1.1.1 voters -n3, remove n3: the replica on n3 is lost
            s2 not: n2 leads more than others: hysteresis
        "#]],
    );
    check(
        "n1 north/a\nn2 north/b\nn3 north/c\nc1 zonal home=north",
        "s1 c1 n1* n2\ns2 c1 n1 n2* n3",
        expect![[r#"
            s1@1.1.1 add n3, wait n3, voters +n3: too few voters
            s2 not: n1 holds more than others: hysteresis
            s2 not: n2 leads more than others: hysteresis
        "#]],
    );
}

#[test]
fn a_lost_replica_stays_if_the_others_are_no_quorum_without_it() {
    check(
        "n1 north/a\nn2 north/b\nn3 north/c\nc1 zonal home=north",
        "n2 suspect\ns1 c1 n1* n2 n3!",
        expect![[r#"
            s1 not: the replica on n3 is lost: quorum lost
        "#]],
    );
}

#[test]
fn a_pair_region_that_is_away_does_not_keep_the_home_from_healing() {
    let away = format!("{TWO_REGIONS}n4 south/a down\nn5 south/b down\nn6 south/c down");
    check(
        &away,
        "s1 c2 n1* n2 n3! l4 l5",
        expect![[r#"
        s1@1.1.1 voters -n3, remove n3: the replica on n3 is lost
    "#]],
    );
    check(
        &away,
        "s1 c2 n1* n2 l4 l5",
        expect![[r#"
        s1@1.1.1 add n3, wait n3, voters +n3: too few voters
    "#]],
    );
}

#[test]
fn a_lost_learner_is_built_again() {
    check(
        TWO_REGIONS,
        "s1 c2 n1* n2 n3 l4! l5",
        expect![[r#"
        s1@1.1.1 remove n4: the replica on n4 is lost
    "#]],
    );
}

#[test]
fn a_learner_of_a_broken_off_repair_is_used() {
    check(
        SIX,
        "n3 down\ns1 c1 n1* n2 n3 l6",
        expect![[r#"
            s1@1.1.1 wait n6, voters +n6 -n3, remove n3: n3 is dead
        "#]],
    );
}

#[test]
fn shards_with_fewer_live_voters_are_repaired_first() {
    check(
        "n1 north/a\nn2 north/b\nn3 north/c\nn4 south/a\nn5 south/b\nn6 west/a\nn7 west/b\n\
         n8 west/c\nn9 south/c\nc1 regional home=north\nc9 zonal home=north",
        "n3 down\nn5 down\nn10 north/c\nn11 south/b\n\
         s1 c1 n1* n3 n4 n6 n9\ns2 c1 n1* n3 n4 n5 n6\n",
        expect![[r#"
            s2@1.1.1 add n2, wait n2, voters +n2 -n3, remove n3: n3 is dead
            s1@1.1.1 add n10, wait n10, voters +n10 -n3, remove n3: n3 is dead
        "#]],
    );
}

#[test]
fn a_silent_node_is_waited_for() {
    check(
        SIX,
        "n3 suspect\ns1 c1 n1* n2 n3",
        expect![[r#"
            s1 not: n3 below its timer
        "#]],
    );
}

#[test]
fn a_shard_whose_operator_was_given_up_is_left_alone_for_a_while() {
    check(
        SIX,
        "n3 down\ns1 c1 n1* n2 n3 rests=1000000001\ns2 c1 n1* n2 n3 rests=1000000000\n\
         s3 c1 n4* n5 n6 rests=2000000000",
        expect![[r#"
            s2@1.1.1 add n6, wait n6, voters +n6 -n3, remove n3: n3 is dead
            s1 not: n3 is dead: resting
            s3 not: resting
        "#]],
    );
}

#[test]
fn lost_quorum_and_lost_leader_are_left_alone() {
    check(
        SIX,
        "n2 down\nn3 down\ns1 c1 n1* n2 n3\ns2 c1 n1 n2 n6",
        expect![[r#"
            s1 not: n2 is dead: quorum lost
            s2 not: n2 is dead: no leader
        "#]],
    );
}

#[test]
fn nothing_is_rebuilt_where_there_is_no_room() {
    check(
        "n1 north/a\nn2 north/b\nn3 north/c\nc1 zonal home=north",
        "n3 down\ns1 c1 n1* n2 n3",
        expect![[r#"
            s1 not: n3 is dead: no room
        "#]],
    );
    check(
        SIX,
        "n3 down\nn4 disk=almost\nn5 disk=almost\nn6 disk=almost\ns1 c1 n1* n2 n3",
        expect![[r#"
            s1 not: n3 is dead: no room
        "#]],
    );
}

#[test]
fn a_region_that_could_not_carry_what_was_lost_is_not_filled() {
    check(
        "n1 north/a capacity=100\nn2 north/b capacity=100\nn3 north/c capacity=100\n\
         n4 north/c capacity=10\nc1 zonal home=north",
        "n3 down\ns1 c1 n1* n2 n3 size=60",
        expect![[r#"
            s1 not: n3 is dead: no room in region
        "#]],
    );
}

#[test]
fn a_pinned_shard_never_leaves_its_set_and_is_brought_back_into_it() {
    check(
        TWO_REGIONS,
        "n3 down\ns1 c3 n1* n2 n3",
        expect![[r#"
            s1 not: n3 is dead: residency forbids
        "#]],
    );
    check(
        TWO_REGIONS,
        "s1 c3 n1* n2 n4\ns2 c3 n1 n2 n4*\ns3 c3 n1* n2 n3 l5",
        expect![[r#"
            s1@1.1.1 add n3, wait n3, voters +n3 -n4, remove n4: n4 is outside the residency set
            s2@1.1.1 add n3, wait n3, lead n2, voters +n3 -n4, remove n4: n4 is outside the residency set
            s3@1.1.1 remove n5: n5 is outside the residency set
        "#]],
    );
}

#[test]
fn an_unfinished_joint_change_is_finished_before_the_dead_are_replaced() {
    check(
        SIX,
        "n3 down\ns1 c1 n1* n2 n3 joint",
        expect![[r#"
            s1@1.1.1 leave joint: unfinished joint change
        "#]],
    );
}

#[test]
fn leaders_leave_draining_slow_and_full_nodes() {
    check(
        SIX,
        "n1 draining\nn2 slow\nn3 disk=almost\n\
         s1 c1 n1* n5 n6\ns2 c1 n4 n2* n6\ns3 c1 n4 n5 n3*\ns4 c1 n4* n5 n6",
        expect![[r#"
            s1@1.1.1 lead n5: n1 should not lead
            s2@1.1.1 lead n6: n2 should not lead
            s3@1.1.1 lead n4: n3 should not lead
            s4 not: n4 leads more than others: hysteresis
        "#]],
    );
}

#[test]
fn a_leader_stays_where_it_is_until_another_has_caught_up() {
    check(
        SIX,
        "n1 draining\nn2 draining\ns1 c1 n1* n2 n6 lag6=500",
        expect![[r#"
            s1 not: n1 should not lead: n6 catching up
        "#]],
    );
    check(
        SIX,
        "n1 draining\nn2 draining\nn6 slow\ns1 c1 n1* n2 n6",
        expect![[r#"
            s1 not: n1 should not lead: no leader target
        "#]],
    );
}

#[test]
fn a_leader_leaves_a_draining_node_even_if_a_repair_must_wait() {
    check(
        "n1 north/a\nn2 north/b\nn3 north/c\nc1 zonal home=north",
        "n3 down\nn1 draining\ns1 c1 n1* n2 n3",
        expect![[r#"
            s1@1.1.1 lead n2: n1 should not lead
        "#]],
    );
}

#[test]
fn a_node_that_leaves_gives_its_leaders_first_and_then_its_replicas() {
    check(
        SIX,
        "n3 leaving\ns1 c1 n1* n2 n3\ns2 c1 n1 n2 n3*",
        expect![[r#"
            s2@1.1.1 lead n2: n3 should not lead
            s1@1.1.1 add n6, wait n6, voters +n6 -n3, remove n3: n3 is to leave
        "#]],
    );
}

#[test]
fn the_only_replica_of_a_shard_moves_without_a_gap() {
    let config = PlacementConfig { voters: 1, ..PlacementConfig::default() };
    check_with(
        &config,
        "n1 north/a\nn2 north/b\nc1 zonal home=north\nn1 disk=almost\nn3 down\ns1 c1 n3*",
        expect![[r#"
            s1 not: n3 is dead: quorum lost
        "#]],
    );
    check_with(
        &config,
        "n1 north/a\nn2 north/b\nc1 zonal home=south\nn4 south/a\ns1 c1 n1*",
        expect![[r#"
            s1@1.1.1 add n4, wait n4, voters +n4, lead n4, voters -n1, remove n1: voter n1 is in another region
        "#]],
    );
}

#[test]
fn missing_voters_come_in_one_change_and_never_as_an_even_number() {
    check(
        SIX,
        "s1 c1 n1*\ns2 c1 n1* n2",
        expect![[r#"
            s1@1.1.1 add n5, add n3, wait n5, wait n3, voters +n5 +n3: too few voters
            s2@1.1.1 add n6, wait n6, voters +n6: too few voters
        "#]],
    );
    check(
        "n1 north/a\nn2 north/b\nc1 zonal home=north",
        "s1 c1 n1*",
        expect![[r#"
            s1 not: too few voters: no room
        "#]],
    );
}

#[test]
fn voters_and_learners_that_nobody_wants_go() {
    check(
        SIX,
        "s1 c1 n1* n2 n3 n4\ns2 c1 n1* n2 n3 l5",
        expect![[r#"
            s2@1.1.1 remove n5: learner n5 is one too many
            s1@1.1.1 lead n2, voters -n1, remove n1: voter n1 is one too many
        "#]],
    );
}

#[test]
fn a_paired_class_has_learners_in_two_zones_of_the_pair() {
    check(
        TWO_REGIONS,
        "s1 c2 n1* n2 n3\ns2 c2 n1* n2 n3 l4 l5 l6",
        expect![[r#"
            s2@1.1.1 remove n4: learner n4 is one too many
            s1@1.1.1 add n4, wait n4: too few learners
        "#]],
    );
}

#[test]
fn a_switched_over_class_moves_its_voters_home() {
    check(
        TWO_REGIONS,
        "s1 c4 n1* n2 n3",
        expect![[r#"
            s1@1.1.1 add n4, wait n4, lead n2, voters +n4 -n1, remove n1: voter n1 is in another region
        "#]],
    );
}

#[test]
fn voters_that_share_a_zone_spread_when_another_is_there() {
    check(
        SIX,
        "s1 c1 n1* n2 n4",
        expect![[r#"
            s1@1.1.1 add n3, wait n3, lead n2, voters +n3 -n1, remove n1: n1 shares its zone or region
        "#]],
    );
    check(
        SIX,
        "n3 returning\nn6 returning\ns1 c1 n1* n2 n4",
        expect![[r#"
        s1 not: n1 holds more than others: hysteresis
        s1 not: n1 leads more than others: hysteresis
    "#]],
    );
}

#[test]
fn a_better_zone_at_its_limit_is_waited_for() {
    let config = PlacementConfig { incoming_max: 1, ..PlacementConfig::default() };
    check_with(
        &config,
        &format!("{SIX}n6 down\ns1 c1 n1* n2 n4\ns2 c1 n1* n2 n5\ns3 c1 n4* n5 n6"),
        expect![[r#"
            s3@1.1.1 add n3, wait n3, voters +n3 -n6, remove n6: n6 is dead
            s1 not: n1 shares its zone or region: limit of incoming reached
            s2 not: n2 shares its zone or region: limit of incoming reached
        "#]],
    );
}

#[test]
fn operators_in_flight_count_and_their_shards_are_left_alone() {
    let config = PlacementConfig { operators_max: 1, ..PlacementConfig::default() };
    check_with(
        &config,
        &format!("{SIX}n3 down\ns1 c1 n1* n2 n3\ns2 c1 n4* n5 n3\nflight s1 add n6"),
        expect![[r#"
            s1 not: operator in flight
            s2 not: n3 is dead: limit of operators reached
        "#]],
    );
}

#[test]
fn shards_split_by_size_count_and_load() {
    check(
        SIX,
        "s1 c1 n1* n2 n3 size=65 anchors=2\ns2 c1 n4 n5* n6 anchors=200001\n\
         s3 c1 n1 n2 n3* load=2001 anchors=1000",
        expect![[r#"
            s1@1.1.1 split: too large
            s2@1.1.1 split: too large
            s3@1.1.1 split: too much load
        "#]],
    );
}

#[test]
fn what_cannot_be_cut_is_not_split() {
    check(
        SIX,
        "s1 c1 n1* n2 n3 size=65 anchors=1\ns2 c1 n4 n5* n6 load=2001 anchors=999",
        expect![[r#"
            s1 not: n1 holds more than others: hysteresis
            s2 not: n5 leads more than others: hysteresis
            s1 not: n1 leads more than others: hysteresis
        "#]],
    );
}

#[test]
fn a_burst_of_load_splits_nothing() {
    check(
        SIX,
        "s1 c1 n1* n2 n3 load=2001 anchors=1000 busy=999940001\n\
         s2 c1 n4 n5* n6 load=2001 anchors=1000 busy=999940000",
        expect![[r#"
            s2@1.1.1 split: too much load
            s1 not: n1 leads more than others: hysteresis
        "#]],
    );
}

#[test]
fn halves_of_a_shard_are_not_split_at_once() {
    check(
        SIX,
        "s1 c1 n1* n2 n3 anchors=200001 changed=999970001\n\
         s2 c1 n4 n5* n6 anchors=200001 changed=999970000",
        expect![[r#"
            s2@1.1.1 split: too large
            s1 not: too large: settling
        "#]],
    );
}

#[test]
fn few_shards_split_at_the_same_time() {
    let config = PlacementConfig { splits_max: 2, ..PlacementConfig::default() };
    check_with(
        &config,
        &format!(
            "{SIX}s1 c1 n1* n2 n3 anchors=200001\ns2 c1 n4 n5* n6 anchors=200001\n\
             s3 c1 n1 n2 n3* anchors=200001\nflight s3 split"
        ),
        expect![[r#"
            s1@1.1.1 split: too large
            s3 not: operator in flight
            s2 not: too large: limit of splits reached
        "#]],
    );
}

#[test]
fn a_shard_that_cannot_be_made_whole_is_split_all_the_same() {
    check(
        "n1 north/a\nn2 north/b\nn3 north/c\nc1 zonal home=north\nn3 down",
        "s1 c1 n1* n2 n3 anchors=200001\ns2 c1 n1* n2 n3",
        expect![[r#"
            s1@1.1.1 split: too large
            s2 not: n3 is dead: no room
        "#]],
    );
}

#[test]
fn a_shard_is_made_whole_before_it_is_split() {
    check(
        SIX,
        "n3 down\ns1 c1 n1* n2 n3 anchors=200001",
        expect![[r#"
        s1@1.1.1 add n6, wait n6, voters +n6 -n3, remove n3: n3 is dead
    "#]],
    );
}

#[test]
fn a_leader_that_came_a_moment_ago_stays() {
    // 30 s are the default; s2 has had its leader for just that long.
    check(
        "n1 north/a\nn2 north/b\nn3 north/c\nc1 zonal home=north",
        "s1 c1 n1* n2 n3 led=999970001\ns2 c1 n1* n2 n3 led=999970000\ns3 c1 n1* n2 n3 led=999970001",
        expect![[r#"
            s2@1.1.1 lead n2: n1 leads more than others
            s3 not: n1 leads more than others: settling
            s1 not: n1 leads more than others: settling
        "#]],
    );
}

#[test]
fn a_leader_returns_to_the_home_region() {
    check(
        "n1 north/a\nn2 north/b\nn3 south/a\nn4 south/b\nn5 west/a\nc1 regional home=north",
        "s1 c1 n1 n2 n3* n4 n5",
        expect![[r#"
            s1@1.1.1 lead n1: leader away from home
        "#]],
    );
}

#[test]
fn replicas_move_from_full_to_empty_nodes_of_the_zone() {
    check(
        SIX,
        "s1 c1 n1* n2 n3 size=50\ns2 c1 n1 n2* n3 size=50\ns3 c1 n1 n2 n3* size=50\n\
         s4 c1 n4* n5 n6 size=10",
        expect![[r#"
            s2@1.1.1 add n4, wait n4, voters +n4 -n1, remove n1: n1 holds more than others
            s3@1.1.1 add n5, wait n5, voters +n5 -n2, remove n2: n2 holds more than others
            s1@1.1.1 add n6, wait n6, voters +n6 -n3, remove n3: n3 holds more than others
            s4 not: n4 leads more than others: hysteresis
        "#]],
    );
}

#[test]
fn a_move_that_would_turn_the_difference_around_is_not_made() {
    check(
        SIX,
        "s1 c1 n1* n2 n3 size=50\ns2 c1 n4 n5* n6 size=20",
        expect![[r#"
            s1 not: n1 holds more than others: hysteresis
            s2 not: n5 leads more than others: hysteresis
            s1 not: n1 leads more than others: hysteresis
        "#]],
    );
}

#[test]
fn a_shard_that_was_just_moved_settles_first() {
    check(
        SIX,
        "s1 c1 n1* n2 n3 size=50 changed=999900000\ns2 c1 n1 n2* n3 size=50 changed=999900000\n\
         s3 c1 n1 n2 n3* size=50 changed=999900000",
        expect![[r#"
            s1 not: settling
            s2 not: settling
            s3 not: settling
            s3 not: n3 leads more than others: hysteresis
            s1 not: n1 leads more than others: hysteresis
            s2 not: n2 leads more than others: hysteresis
        "#]],
    );
}

#[test]
fn leaders_are_spread_by_load() {
    check(
        "n1 north/a\nn2 north/b\nn3 north/c\nc1 zonal home=north",
        "s1 c1 n1* n2 n3\ns2 c1 n1* n2 n3\ns3 c1 n1* n2 n3\ns4 c1 n1 n2* n3 load=500",
        expect![[r#"
            s2@1.1.1 lead n3: n1 leads more than others
            s3 not: n1 leads more than others: hysteresis
            s4 not: n2 leads more than others: hysteresis
            s1 not: n1 leads more than others: hysteresis
        "#]],
    );
}

#[test]
fn small_neighbours_merge_only_if_asked_and_on_the_same_nodes() {
    let shards = "s1 c1 n1* n2 n3 size=1 range=0..5\ns2 c1 n1 n2* n6 size=1 range=5..9\n\
                  s3 c1 n4 n5 n6* size=30 range=9..";
    // A band of all: nothing is moved for balance.
    let off = PlacementConfig { balance_band_permille: 1_000, ..PlacementConfig::default() };
    check_with(&off, &format!("{SIX}{shards}"), expect![""]);
    let on = PlacementConfig { merges: true, ..off };
    check_with(
        &on,
        &format!("{SIX}{shards}"),
        expect![[r#"
            s2@1.1.1 add n3, wait n3, voters +n3 -n6, remove n6, merge into s1: small neighbours
        "#]],
    );
}

#[test]
fn nothing_is_merged_while_anything_is_repaired() {
    let shards = "s1 c1 n1* n2 n3 size=1 range=0..5\ns2 c1 n1 n2* n3 size=1 range=5..9\n\
                  s3 c1 n4* n5 n6 size=30 range=9..";
    let config = PlacementConfig {
        merges: true,
        balance_band_permille: 1_000,
        ..PlacementConfig::default()
    };
    let merged = expect![[r#"
        s2@1.1.1 merge into s1: small neighbours
    "#]];
    check_with(&config, &format!("{SIX}{shards}"), merged);
    // Elsewhere a replica's vote is lost.
    let lost = shards.replace("n5 n6", "n5! n6");
    let view = view_of(&format!("{SIX}{lost}"), &config);
    let plan = plan(&view, &config, Timestamp(1_000_000_000), 1);
    assert!(plan.operators.iter().any(|operator| operator.shard_id == ShardId(3)), "{plan:?}");
    assert!(plan.operators.iter().all(|operator| operator.merges_into().is_none()), "{plan:?}");
}

#[test]
fn a_merge_that_is_asked_for_needs_a_left_neighbour_and_no_other_change() {
    let shards = "s1 c1 n1* n2 n3 size=900 range=0..5\ns2 c1 n4 n2* n3 size=900 range=5..9\n\
                  s3 c2 n1* n2 n3 size=1 range=9..";
    let config = PlacementConfig::default();
    let view = view_of(&format!("{SIX}c2 zonal home=north\n{shards}"), &config);
    let now = Timestamp(1_000_000_000);
    let asked = |shard| crate::merge_left(&view, &config, now, ShardId(shard));
    let operator = asked(2).unwrap().unwrap();
    assert_eq!(
        operator.to_string(),
        "s2@1.1.1 add n1, wait n1, voters +n1 -n4, remove n4, merge into s1: small neighbours"
    );
    assert!(asked(1).is_none() && asked(3).is_none() && asked(9).is_none());
    // Each account's shards are its own.
    let border = 1_u128 << 96;
    let text = format!(
        "{SIX}s1 c1 n1* n2 n3 size=1 range=0..{border}\ns2 c1 n1* n2 n3 size=1 range={border}.."
    );
    let both = PlacementConfig { merges: true, ..PlacementConfig::default() };
    let view = view_of(&text, &both);
    assert!(crate::merge_left(&view, &both, now, ShardId(2)).is_none());
    let plan = plan(&view, &both, now, 1);
    assert!(plan.operators.iter().all(|operator| operator.merges_into().is_none()), "{plan:?}");
    // Nobody stays, or who stays may not lead: a newcomer leads before the last one goes.
    let operator_of = |shards: &str| {
        let view = view_of(&format!("{SIX}{shards}"), &config);
        crate::merge_left(&view, &config, now, ShardId(2)).unwrap().map(|op| op.to_string())
    };
    assert_eq!(
        operator_of("s1 c1 n1* n2 n3 range=0..5\ns2 c1 n4* n5 n6 range=5..9").unwrap(),
        "s2@1.1.1 add n1, add n2, add n3, wait n1, wait n2, wait n3, voters +n1 +n2 +n3 -n5 -n6, \
         lead n1, voters -n4, remove n4, remove n5, remove n6, merge into s1: small neighbours"
    );
    // What a shard needs for itself comes first.
    assert!(operator_of("s1 c1 n1* n2 n3 range=0..5\ns2 c1 n1* n2 n3! range=5..9").is_err());
}

#[test]
fn an_unknown_class_is_named() {
    check(
        SIX,
        "s1 c7 n1* n2 n3",
        expect![[r#"
            s1 not: class c7 unknown
        "#]],
    );
}

#[track_caller]
fn check_headroom(text: &str, expected: Expect) {
    let config = PlacementConfig::default();
    let mut out = String::new();
    for zone in headroom(&view_of(text, &config), &config) {
        writeln!(
            out,
            "{}/{} leaders {} load {} disk {} {:?}",
            zone.region,
            zone.zone,
            zone.leaders,
            zone.load_permille,
            zone.disk_permille,
            zone.risks
        )
        .unwrap();
    }
    expected.assert_eq(&out);
}

#[test]
fn headroom_tells_what_each_zone_s_loss_would_do() {
    check_headroom(
        &format!("{SIX}s1 c1 n1* n2 n3 size=40\ns2 c1 n4 n5* n4 size=10"),
        expect![[r#"
            north/a leaders 1 load 0 disk 39 [Quorum { shards: 1 }]
            north/b leaders 1 load 0 disk 39 []
            north/c leaders 0 load 0 disk 39 []
        "#]],
    );
}

#[track_caller]
fn check_blocked(text: &str, node: u64, expected: Expect) {
    let config = PlacementConfig::default();
    let view = view_of(text, &config);
    let node_id = anchorhold_model::NodeId(node);
    let departure = why_blocked(&view, &config, Timestamp(1_000_000_000), node_id);
    let mut out = format!(
        "replicas {} moving {} ready {}\n",
        departure.replicas, departure.moving, departure.ready
    );
    for blocked in departure.blocked {
        writeln!(out, "{} {:?}: {}", blocked.count, blocked.shards, blocked.why.remedy()).unwrap();
    }
    expected.assert_eq(&out);
}

#[test]
fn a_node_that_cannot_leave_is_told_why() {
    check_blocked(
        &format!("{SIX}s1 c1 n1* n2 n3\ns2 c1 n1* n5 n3"),
        3,
        expect![[r#"
        replicas 2 moving 0 ready 2
    "#]],
    );
    check_blocked(
        "n1 north/a\nn2 north/b\nn3 north/c\nc1 zonal home=north\ns1 c1 n1* n2 n3\ns2 c1 n1 n2 n3",
        3,
        expect![[r#"
            replicas 2 moving 0 ready 0
            1 [ShardId(2)]: wait
            1 [ShardId(1)]: bring nodes that are not up back, or add a node or a disk, in a zone of the class's regions
        "#]],
    );
    check_blocked(
        &format!("{TWO_REGIONS}s1 c3 n1* n2 n3\nn2 suspect\ns2 c9 n1* n3"),
        3,
        expect![[r#"
            replicas 2 moving 0 ready 0
            1 [ShardId(2)]: create the class, or move the shard to another
            1 [ShardId(1)]: add a node inside the class's residency set
        "#]],
    );
}
