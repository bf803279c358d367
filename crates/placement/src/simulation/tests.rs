//! Plans carried out to their end: the properties that they keep on the way.

use std::collections::{BTreeMap, BTreeSet};

use anchorhold_model::catalog::{ClassKind, NodeState};
use anchorhold_model::{NodeId, ReplicaRole, ShardId};
use proptest::prelude::*;

use super::{Event, Layout, Pace, Simulation};
use crate::lifecycle::LifecycleConfig;
use crate::testing::cases;
use crate::view::Goal;
use crate::{ClassView, ClusterView, Operator, PlacementConfig, ShardStatus, Step, potential};

const PACE: Pace = Pace { round_ms: 5_000, rounds_max: 2_000, compares_potential: true };

fn any_layout() -> impl Strategy<Value = Layout> {
    (1_u64..3, 3_u64..5, 2_u64..4, 1_u64..60, any::<u64>()).prop_map(
        |(regions, zones, nodes_per_zone, shards, seed)| Layout {
            regions,
            zones,
            nodes: regions * zones * nodes_per_zone,
            shards,
            shard_bytes: 32 << 20,
            capacity_permille: 3_000,
            bandwidth: 100 << 20,
            seed,
        },
    )
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::KillZone(0, 0)),
        Just(Event::FailRack(0, 1, 1)),
        Just(Event::DamageLogs(0, 0, 1)),
        (1_u64..3).prop_map(Event::AddNodes),
        Just(Event::Decommission(0, 2, 1)),
    ]
}

/// Kinds of a class whose home is one of three regions.
fn any_kind(home: u64) -> impl Strategy<Value = ClassKind> {
    let all = || (0..3).map(|region| format!("r{region}")).collect();
    prop_oneof![
        Just(ClassKind::Zonal),
        Just(ClassKind::Regional),
        Just(ClassKind::Pinned { residency: all() }),
        (1_u64..3).prop_map(move |away| {
            ClassKind::Paired { pair: format!("r{}", (home + away) % 3), witness: None }
        }),
    ]
}

/// Checks that each shard has the replicas that its class asks for, where it asks for them, as far
/// apart as the zones allow.
fn check_classes(view: &ClusterView, config: &PlacementConfig) {
    for status in view.shards() {
        let class = view.classes().find(|class| class.class_id == status.class).unwrap();
        let (voters, learners) = match &class.kind {
            ClassKind::Zonal | ClassKind::Pinned { .. } => (config.voters, 0),
            ClassKind::Paired { .. } => (config.voters, config.learners_paired),
            ClassKind::Regional => (config.voters_regional, 0),
        };
        let of = |role| status.replicas.iter().filter(move |replica| replica.role == role);
        assert_eq!(of(ReplicaRole::Voter).count(), voters, "{status:?} of {class:?}");
        assert_eq!(of(ReplicaRole::Learner).count(), learners, "{status:?} of {class:?}");
        check_regions(view, status);
        if class.kind == ClassKind::Regional {
            let regions: BTreeSet<&String> =
                status.replicas.iter().map(|one| &view.node(one.node_id).unwrap().region).collect();
            assert_eq!(regions.len(), 3, "a region's loss must leave a quorum: {status:?}");
        }
    }
}

/// Checks that no replica is where its class forbids it, and that learners are in the pair.
fn check_regions(view: &ClusterView, status: &ShardStatus) {
    let class = view.classes().find(|class| class.class_id == status.class).unwrap();
    for replica in &status.replicas {
        let region = &view.node(replica.node_id).unwrap().region;
        assert!(allows(class, region), "{replica:?} in {region} of {class:?}");
        if let (ClassKind::Paired { pair, .. }, ReplicaRole::Learner) = (&class.kind, replica.role)
        {
            assert_eq!(region, pair, "{replica:?} of {class:?}");
        }
    }
}

fn build(layout: &Layout) -> Simulation {
    // A zone must be able to hold one replica of each shard without being too full.
    layout.build(PlacementConfig::default(), LifecycleConfig::default())
}

/// The memberships that an operator goes through: voters, before and after each change, and both
/// sets at once while a change is joint.
fn quorums(status: &ShardStatus, operator: &Operator) -> Vec<BTreeSet<NodeId>> {
    let voters = |goal: &Goal| -> BTreeSet<NodeId> {
        let all = goal.replicas.iter().filter(|(_, role)| *role == ReplicaRole::Voter);
        all.map(|(node_id, _)| *node_id).collect()
    };
    let taken = (0..=operator.steps.len()).map(|count| &operator.steps[..count]);
    taken.map(|steps| voters(&Goal::of(status, steps))).collect()
}

/// P1, P2 and P6 of one plan, and at most one operator per shard.
fn check_plan(view: &ClusterView, config: &PlacementConfig, operators: &[Operator]) {
    let mut seen = BTreeSet::<ShardId>::new();
    let mut incoming = BTreeMap::<NodeId, usize>::new();
    for operator in view.in_flight() {
        operator.added().for_each(|node_id| *incoming.entry(node_id).or_default() += 1);
    }
    for operator in operators {
        assert!(seen.insert(operator.shard_id), "two operators: {operator}");
        assert!(view.operator(operator.shard_id).is_none(), "already in flight: {operator}");
        let status = view.shard(operator.shard_id).unwrap();
        assert_eq!(status.epoch, operator.epoch);
        check_quorums(view, status, operator);
        for node_id in operator.added() {
            let count = incoming.entry(node_id).or_default();
            *count += 1;
            assert!(*count <= config.incoming_max, "too many come to {node_id}");
            let node = view.node(node_id).unwrap();
            assert_eq!(node.state, NodeState::Up, "{operator}");
            let class = view.classes().find(|class| class.class_id == status.class).unwrap();
            assert!(allows(class, &node.region), "P7: {operator} leaves {class:?}");
        }
    }
}

/// Whether a class's replicas may live in a region.
fn allows(class: &ClassView, region: &str) -> bool {
    let is_home = class.home.as_deref() == Some(region);
    match &class.kind {
        ClassKind::Zonal => is_home,
        ClassKind::Paired { pair, witness: _ } => is_home || pair == region,
        ClassKind::Regional => true,
        ClassKind::Pinned { residency } => is_home && residency.contains(region),
    }
}

fn check_quorums(view: &ClusterView, status: &ShardStatus, operator: &Operator) {
    let is_alive = |node_id: &NodeId| {
        let replica = status.replicas.iter().find(|replica| replica.node_id == *node_id);
        replica.is_none_or(|replica| replica.is_live)
            && view.node(*node_id).is_some_and(|node| {
                !matches!(node.state, NodeState::Suspect | NodeState::Down | NodeState::Removed)
            })
    };
    for voters in quorums(status, operator) {
        let alive = voters.iter().filter(|node_id| is_alive(node_id)).count();
        assert!(voters.len() < alive * 2, "{operator} passes a membership without quorum");
    }
    // Nobody is taken out before who replaces it is in.
    let position = |wanted: &dyn Fn(&Step) -> bool| operator.steps.iter().position(wanted);
    let removes = |step: &Step| matches!(step, Step::RemoveReplica(_));
    let waits = |step: &Step| matches!(step, Step::WaitCaughtUp(_));
    if let (Some(wait), Some(remove)) = (position(&waits), position(&removes)) {
        assert!(wait < remove, "{operator}");
    }
}

fn run(simulation: &mut Simulation, event: Event) -> super::Response {
    let response = simulation.respond(event, &PACE, |simulation| {
        let plan = simulation.plan();
        assert_eq!(plan, simulation.plan(), "P5: equal input, equal plan");
        check_plan(simulation.view(), simulation.config(), &plan.operators);
        plan
    });
    assert!(response.has_settled, "P3: no end after {event:?}: {response:?}");
    assert_eq!(response.rises, 0, "P4: the potential did not fall after {event:?}");
    assert!(simulation.plan().operators.is_empty(), "P3: not a fixpoint");
    response
}

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn whatever_happens_plans_are_safe_and_come_to_an_end(
        layout in any_layout(), events in prop::collection::vec(any_event(), 1..4),
    ) {
        let mut simulation = build(&layout);
        run(&mut simulation, Event::Settle);
        for event in events {
            run(&mut simulation, event);
        }
    }

    #[test]
    fn a_zone_that_dies_and_returns_leaves_no_trace(layout in any_layout()) {
        let mut simulation = build(&layout);
        run(&mut simulation, Event::Settle);
        let before = potential(simulation.view(), simulation.config());
        let killed = run(&mut simulation, Event::KillZone(0, 1));
        prop_assert_eq!(killed.degraded_last, 0, "{:?}", killed);
        run(&mut simulation, Event::ReturnZone(0, 1));
        let after = potential(simulation.view(), simulation.config());
        prop_assert_eq!(after.crowding, before.crowding);
        prop_assert_eq!((after.lacking, after.extra), (0, 0));
        // Leaders of zones differ by no more than a fifth, or three.
        let mut leaders = BTreeMap::<(String, String), u64>::new();
        for (node, tally) in simulation.view().nodes() {
            *leaders.entry((node.region.clone(), node.zone.clone())).or_default() += tally.leaders;
        }
        for region in 0..layout.regions {
            let name = format!("r{region}");
            let of_region = leaders.iter().filter(|((region, _), _)| *region == name);
            let counts: Vec<u64> = of_region.map(|(_, count)| *count).collect();
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            prop_assert!(most - least <= 3.max(most / 5), "{:?}", counts);
        }
    }

    #[test]
    fn every_class_gets_what_it_asks_for_and_nothing_outside_it(
        shards in 1_u64..40,
        zones in 2_u64..4,
        nodes_per_zone in 2_u64..4,
        seed in any::<u64>(),
        kinds in (any_kind(0), any_kind(1), any_kind(2)),
        events in prop::collection::vec(any_event(), 0..3),
    ) {
        let layout = Layout {
            regions: 3,
            zones,
            nodes: 3 * zones * nodes_per_zone,
            shards,
            shard_bytes: 32 << 20,
            capacity_permille: 12_000,
            bandwidth: 100 << 20,
            seed,
        };
        let mut simulation = build(&layout);
        // All begin as zonal: what a class asks for beyond that is still to be made.
        let classes: Vec<ClassView> = simulation.view().classes().cloned().collect();
        for (class, kind) in classes.into_iter().zip([kinds.0, kinds.1, kinds.2]) {
            simulation.view_mut().set_class(ClassView { kind, ..class });
        }
        run(&mut simulation, Event::Settle);
        check_classes(simulation.view(), simulation.config());
        for event in events {
            run(&mut simulation, event);
            for status in simulation.view().shards() {
                check_regions(simulation.view(), status);
            }
        }
    }

    #[test]
    fn an_operator_of_an_old_epoch_is_dropped(layout in any_layout()) {
        let mut simulation = build(&layout);
        simulation.kill(&BTreeSet::from([NodeId(1)]));
        simulation.advance(700_000);
        let plan = simulation.plan();
        let count = plan.operators.len() as u64;
        let statuses: Vec<ShardStatus> = simulation.view().shards().cloned().collect();
        for mut status in statuses {
            status.epoch.conf_version += 1;
            simulation.view_mut().set_shard(status);
        }
        simulation.start(plan);
        prop_assert_eq!(simulation.dropped(), count);
        prop_assert_eq!(simulation.running(), 0);
    }

    #[test]
    fn urgency_never_rises_along_a_plan(layout in any_layout()) {
        let mut simulation = build(&layout);
        simulation.kill(&BTreeSet::from([NodeId(1), NodeId(2)]));
        simulation.advance(700_000);
        let plan = simulation.plan();
        for pair in plan.operators.windows(2) {
            let key = |op: &Operator| {
                (std::mem::discriminant(&op.reason), op.live_voters, op.shard_id)
            };
            let (one, two) = (key(&pair[0]), key(&pair[1]));
            let is_ordered = (one.1, one.2) < (two.1, two.2);
            let by_id = pair[0].reason < crate::Reason::SplitSize;
            prop_assert!(one.0 != two.0 || !by_id || is_ordered, "{one:?} {two:?}");
        }
    }

    #[test]
    fn steps_may_be_taken_twice(layout in any_layout()) {
        let mut simulation = build(&layout);
        simulation.kill(&BTreeSet::from([NodeId(1)]));
        simulation.advance(700_000);
        for operator in simulation.plan().operators {
            let status = simulation.view().shard(operator.shard_id).unwrap();
            let twice: Vec<Step> =
                operator.steps.iter().flat_map(|step| [step.clone(), step.clone()]).collect();
            prop_assert_eq!(Goal::of(status, &operator.steps), Goal::of(status, &twice));
        }
    }

    #[test]
    fn tallies_are_the_sums_of_the_shards(layout in any_layout(), rounds in 1_u64..10) {
        let mut simulation = build(&layout);
        simulation.kill(&BTreeSet::from([NodeId(1)]));
        for _ in 0..rounds {
            simulation.advance(200_000);
            let plan = simulation.plan();
            simulation.start(plan);
        }
        simulation.advance(1);
        let mut replicas = BTreeMap::<NodeId, u64>::new();
        for status in simulation.view().shards() {
            let operator = simulation.view().operator(status.shard_id);
            let steps = operator.map_or(&[][..], |operator| &operator.steps);
            for (node_id, _) in Goal::of(status, steps).replicas {
                *replicas.entry(node_id).or_default() += 1;
            }
        }
        for (node, tally) in simulation.view().nodes() {
            prop_assert_eq!(tally.replicas, replicas.get(&node.node_id).copied().unwrap_or(0));
        }
    }
}

/// The figures that the simulator is for, on a small cluster.
#[test]
fn replicas_that_lost_their_votes_are_built_again_where_there_is_no_other_node() {
    let layout = Layout {
        regions: 1,
        zones: 3,
        nodes: 3,
        shards: 20,
        shard_bytes: 32 << 20,
        capacity_permille: 3_000,
        bandwidth: 100 << 20,
        seed: 3,
    };
    let mut simulation = build(&layout);
    run(&mut simulation, Event::Settle);
    let response = run(&mut simulation, Event::DamageLogs(0, 1, 1));
    assert_eq!((response.degraded_first, response.degraded_last), (20, 0));
}

#[test]
fn little_more_than_the_needed_bytes_is_moved() {
    let layout = Layout {
        regions: 1,
        zones: 3,
        nodes: 30,
        shards: 3_000,
        shard_bytes: 32 << 20,
        capacity_permille: 2_200,
        bandwidth: 100 << 20,
        seed: 7,
    };
    let mut simulation = build(&layout);
    for event in [
        Event::Settle,
        Event::FailRack(0, 0, 2),
        Event::ReturnZone(0, 0),
        Event::KillZone(0, 1),
        Event::ReturnZone(0, 1),
        Event::AddNodes(2),
    ] {
        let response = run(&mut simulation, event);
        assert!(response.moved_bytes * 10 <= response.needed_bytes * 11, "{event:?}: {response:?}");
    }
}
