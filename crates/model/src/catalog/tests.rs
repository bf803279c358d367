use std::collections::BTreeMap;

use expect_test::expect;
use proptest::prelude::*;

use super::*;
use crate::{AccountNumber, Epoch, Key, KeyRange, NodeId, ShardDescriptor, ShardId, row, testing};

fn stamp(time: u64) -> Stamp {
    Stamp { time: Timestamp(time) }
}

fn run(state: &mut CatalogState, command: CatalogCommand) -> CatalogOutcome {
    run_at(state, 1, command)
}

fn run_at(state: &mut CatalogState, time: u64, command: CatalogCommand) -> CatalogOutcome {
    let entry = CatalogEntry { stamp: stamp(time), commands: vec![command] };
    apply_entry(state, &entry).0.remove(0)
}

fn bootstrap() -> CatalogCommand {
    CatalogCommand::Bootstrap { cluster_id: 7, name: "demo".to_owned() }
}

fn register(instance: u128, zone: &str) -> CatalogCommand {
    CatalogCommand::RegisterNode {
        instance,
        region: "north".to_owned(),
        zone: zone.to_owned(),
        peer_address: format!("127.0.0.1:{instance}"),
        client_address: format!("127.0.0.1:{}", instance + 1000),
        version: "0.1.0".to_owned(),
    }
}

fn key(key_id: &str) -> ApiKey {
    ApiKey { key_id: key_id.to_owned(), hash: [1; 32], create_time: Timestamp(0) }
}

/// A cut within any account.
fn cut(place: u8) -> Key {
    Key(u128::from(place) << 88)
}

fn create(request: u128, name: &str, cuts: &[u8]) -> CatalogCommand {
    CatalogCommand::CreateAccount {
        request_id: RequestId(request),
        name: name.to_owned(),
        class: DEFAULT_CLASS,
        keys: vec![key(&format!("key-{name}"))],
        cuts: cuts.iter().map(|place| cut(*place)).collect(),
        placements: vec![(1..=3).map(node).collect(); cuts.len() + 1],
    }
}

fn node(counter: u64) -> NodeId {
    NodeId::new(1, counter)
}

/// A bootstrapped cluster of three zones with one node each.
fn three_zones() -> CatalogState {
    let mut state = CatalogState::default();
    run(&mut state, bootstrap());
    for (instance, zone) in [(11, "a"), (12, "b"), (13, "c")] {
        run(&mut state, register(instance, zone));
    }
    state
}

fn account(outcome: &CatalogOutcome) -> (AccountNumber, Vec<ShardId>) {
    let CatalogOutcome::AccountCreated { account, shards } = outcome else { panic!("{outcome:?}") };
    (*account, shards.clone())
}

fn rejection(outcome: CatalogOutcome) -> CatalogRejection {
    let CatalogOutcome::Rejected(rejection) = outcome else { panic!("{outcome:?}") };
    rejection
}

#[test]
fn cluster_is_founded_once() {
    let mut state = CatalogState::default();
    assert_eq!(rejection(run(&mut state, register(1, "a"))), CatalogRejection::NotBootstrapped);
    let founded = run(&mut state, bootstrap());
    assert_eq!(founded, CatalogOutcome::Bootstrapped { cluster_id: 7 });
    let before = state.clone();
    assert_eq!(run(&mut state, bootstrap()), founded);
    assert_eq!(state, before);
    let other = CatalogCommand::Bootstrap { cluster_id: 8, name: "other".to_owned() };
    assert_eq!(
        rejection(run(&mut state, other)),
        CatalogRejection::AlreadyBootstrapped { cluster_id: 7 }
    );
    assert_eq!(state.class_by_name("zonal").unwrap().class_id, DEFAULT_CLASS);
}

#[test]
fn same_data_directory_keeps_its_node_id_and_its_place() {
    let mut state = three_zones();
    assert_eq!(state.node_by_instance(12).unwrap().node_id, node(2));
    let CatalogCommand::RegisterNode { region, zone, client_address, version, .. } =
        register(12, "b")
    else {
        panic!()
    };
    let peer_address = "127.0.0.1:99".to_owned();
    let moved = CatalogCommand::RegisterNode {
        instance: 12,
        region,
        zone,
        peer_address,
        client_address,
        version,
    };
    let outcome = run(&mut state, moved);
    assert_eq!(outcome, CatalogOutcome::NodeRegistered { node_id: node(2) });
    assert_eq!(state.nodes[&node(2)].peer_address, "127.0.0.1:99");
    let elsewhere = rejection(run(&mut state, register(12, "c")));
    assert!(matches!(elsewhere, CatalogRejection::NodeMoved { .. }));
    assert_eq!((state.nodes.len(), state.zones.len()), (3, 3));
    assert_eq!(state.classes[&DEFAULT_CLASS].home.as_deref(), Some("north"));
}

#[test]
fn removed_node_stays_removed() {
    let mut state = three_zones();
    let set = |state| CatalogCommand::SetNodeState { node_id: node(3), state };
    assert_eq!(run(&mut state, set(NodeState::Removed)), CatalogOutcome::NodeStateSet);
    let gone = CatalogRejection::NodeRemoved { node_id: node(3) };
    assert_eq!(rejection(run(&mut state, set(NodeState::Up))), gone);
    assert_eq!(rejection(run(&mut state, register(13, "c"))), gone);
    let unplaceable = CatalogRejection::NodeNotFound { node_id: node(3) };
    assert_eq!(rejection(run(&mut state, create(1, "acme", &[]))), unplaceable);
    assert_eq!(
        run(&mut state, register(14, "c")),
        CatalogOutcome::NodeRegistered { node_id: node(4) }
    );
}

#[test]
fn account_gets_shards_over_its_whole_range() {
    let mut state = three_zones();
    let (number, shards) = account(&run(&mut state, create(1, "acme", &[0x20, 0x80])));
    assert_eq!(number, AccountNumber(1));
    let own: Vec<&ShardDescriptor> = state.shards_of(number).collect();
    assert_eq!(own.iter().map(|shard| shard.shard_id).collect::<Vec<_>>(), shards);
    let text: Vec<String> = own
        .iter()
        .map(|shard| {
            let replicas = shard.replicas.iter();
            let replicas: Vec<String> =
                replicas.map(|r| format!("{}@{}", r.replica_id, r.node_id)).collect();
            format!("{} {} {} {}", shard.shard_id, shard.epoch, shard.range, replicas.join(" "))
        })
        .collect();
    expect![[r#"
        s1 1.1.1 [00000001..00000001-2) r1@n1 r2@n2 r3@n3
        s2 1.1.1 [00000001-2..00000001-8) r1@n1 r2@n2 r3@n3
        s3 1.1.1 [00000001-8..00000002) r1@n1 r2@n2 r3@n3"#]]
    .assert_eq(&text.join("\n"));
    assert_eq!(state.account_by_name("acme").unwrap().account, number);
    assert_eq!(state.account_by_key_id("key-acme").unwrap().account, number);
    assert_eq!(state.shard_of(Key::account_start(AccountNumber(2))), None);
    let (second, _) = account(&run(&mut state, create(2, "other", &[])));
    assert_eq!(second, AccountNumber(2));
}

#[test]
fn retried_creation_makes_one_account() {
    let mut state = three_zones();
    let first = run(&mut state, create(1, "acme", &[]));
    run(&mut state, create(2, "other", &[]));
    let before = state.clone();
    assert_eq!(run(&mut state, create(1, "acme", &[])), first);
    let reused = rejection(run(&mut state, create(1, "acme", &[0x10])));
    assert_eq!(reused, CatalogRejection::RequestIdReused);
    let taken = rejection(run(&mut state, create(3, "acme", &[])));
    assert_eq!(taken, CatalogRejection::AccountNameTaken { name: "acme".to_owned() });
    assert_eq!(state, before);
}

#[test]
fn kept_requests_are_forgotten_after_a_day() {
    let mut state = three_zones();
    run(&mut state, create(1, "acme", &[]));
    run_at(&mut state, OPERATION_KEEP_MS, create(2, "second", &[]));
    assert_eq!(state.operations.len(), 2);
    run_at(&mut state, OPERATION_KEEP_MS + 1, create(3, "third", &[]));
    assert_eq!(state.operations.keys().map(|id| id.0).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn layouts_that_do_not_fit_are_refused() {
    let mut state = three_zones();
    let before = state.clone();
    let with = |change: fn(&mut Vec<Key>, &mut Vec<Vec<NodeId>>)| {
        let mut command = create(1, "acme", &[0x20, 0x80]);
        if let CatalogCommand::CreateAccount { cuts, placements, .. } = &mut command {
            change(cuts, placements);
        }
        command
    };
    for command in [
        with(|cuts, _| cuts.swap(0, 1)),
        with(|cuts, _| cuts[1] = cuts[0]),
        with(|cuts, _| cuts[0] = Key(0)),
        with(|_, placements| placements.truncate(2)),
        with(|_, placements| placements[1].clear()),
        with(|_, placements| placements[1][0] = placements[1][1]),
        with(|cuts, placements| {
            *cuts = (1..=4096).map(|place| Key(place << 60)).collect();
            *placements = vec![vec![node(1)]; 4097];
        }),
    ] {
        let refused = rejection(run(&mut state, command));
        assert!(matches!(refused, CatalogRejection::InvalidLayout { .. }), "{refused:?}");
    }
    assert_eq!(state, before);
}

#[test]
fn account_has_two_keys_at_most_and_rotation_drops_the_older() {
    let mut state = three_zones();
    let (account, _) = account(&run(&mut state, create(1, "acme", &[])));
    let add = |request, key_id: &str| CatalogCommand::AddKey {
        request_id: RequestId(request),
        account,
        key: key(key_id),
    };
    let rotate = |request, key_id: &str| CatalogCommand::RotateKey {
        request_id: RequestId(request),
        account,
        key: key(key_id),
    };
    assert_eq!(run(&mut state, add(2, "k2")), CatalogOutcome::KeyAdded { revoked: None });
    let full = rejection(run(&mut state, add(3, "k3")));
    assert_eq!(full, CatalogRejection::TooManyKeys { keys: 2 });
    assert_eq!(rejection(run(&mut state, rotate(4, "k2"))), CatalogRejection::InvalidKeyId);
    let rotated = CatalogOutcome::KeyAdded { revoked: Some("key-acme".to_owned()) };
    assert_eq!(run(&mut state, rotate(5, "k4")), rotated);
    assert_eq!(run(&mut state, rotate(5, "k4")), rotated);
    assert_eq!(state.account_by_key_id("key-acme"), None);
    let revoke = |request, key_id: &str| CatalogCommand::RevokeKey {
        request_id: RequestId(request),
        account,
        key_id: key_id.to_owned(),
    };
    assert_eq!(run(&mut state, revoke(6, "k2")), CatalogOutcome::KeyRevoked);
    // A retry, as of a client that has not heard the answer, is no mistake; another request is.
    assert_eq!(run(&mut state, revoke(6, "k2")), CatalogOutcome::KeyRevoked);
    assert_eq!(rejection(run(&mut state, revoke(7, "k2"))), CatalogRejection::KeyNotFound);
    let keys = &state.accounts[&account].keys;
    assert_eq!(keys.iter().map(|key| key.key_id.as_str()).collect::<Vec<_>>(), ["k4"]);
}

#[test]
fn classes_take_account_numbers_in_blocks_that_do_not_mix() {
    let mut state = three_zones();
    let other = ClassId(2);
    let class = state.classes[&DEFAULT_CLASS].clone();
    let class = ClassRecord { class_id: other, name: "pinned".to_owned(), ..class };
    state.absorb(&CatalogChange::Class(class));
    let mut next = |request, class_of_account| {
        let mut command = create(request, &format!("a{request}"), &[]);
        if let CatalogCommand::CreateAccount { class, .. } = &mut command {
            *class = class_of_account;
        }
        account(&run(&mut state, command)).0.0
    };
    assert_eq!([next(1, DEFAULT_CLASS), next(2, other)], [1, ACCOUNT_BLOCK]);
    assert_eq!([next(3, DEFAULT_CLASS), next(4, other)], [2, ACCOUNT_BLOCK + 1]);
    // A block that is used up is followed by a new one.
    let mut class = state.classes[&DEFAULT_CLASS].clone();
    class.account_next = class.account_end;
    state.absorb(&CatalogChange::Class(class));
    let command = create(5, "a5", &[]);
    assert_eq!(account(&run(&mut state, command)).0, AccountNumber(2 * ACCOUNT_BLOCK));
}

#[test]
fn empty_account_is_laid_out_anew_and_its_old_shards_never_return() {
    let mut state = three_zones();
    let (account, old) = account(&run(&mut state, create(1, "acme", &[])));
    let descriptor = state.shards[&old[0]].clone();
    let lay_out = |replaces| CatalogCommand::LayOut {
        request_id: RequestId(2),
        account,
        replaces,
        retired_at: 7,
        cuts: vec![cut(0x40)],
        placements: vec![vec![node(2)], vec![node(3)]],
    };
    let stale = Epoch { conf_version: 9, ..descriptor.epoch };
    for replaces in [vec![], vec![(old[0], stale)], vec![(ShardId(99), descriptor.epoch)]] {
        let refused = rejection(run(&mut state, lay_out(replaces)));
        assert_eq!(refused, CatalogRejection::ShardsChanged);
    }
    let outcome = run(&mut state, lay_out(vec![(old[0], descriptor.epoch)]));
    let CatalogOutcome::LaidOut { shards } = outcome else { panic!("{outcome:?}") };
    assert_eq!(state.shards_of(account).map(|s| s.shard_id).collect::<Vec<_>>(), shards);
    // What clients have seen of the old one stays in their past.
    let first = |shard: &ShardDescriptor| crate::ShardState::new(shard.clone()).revision;
    assert!(state.shards_of(account).all(|shard| first(shard) == 7));
    assert!(state.removed_shards.contains(&old[0]));
    let update = CatalogCommand::UpdateShard { descriptor: Box::new(descriptor) };
    let gone = CatalogRejection::ShardRemoved { shard_id: old[0] };
    assert_eq!(rejection(run(&mut state, update)), gone);
}

#[test]
fn shard_is_updated_by_a_newer_epoch_only() {
    let mut state = three_zones();
    let (_, shards) = account(&run(&mut state, create(1, "acme", &[0x80])));
    let update = |descriptor: &ShardDescriptor| CatalogCommand::UpdateShard {
        descriptor: Box::new(descriptor.clone()),
    };
    let current = state.shards[&shards[0]].clone();
    assert_eq!(run(&mut state, update(&current)), CatalogOutcome::ShardUpdated);
    let mut newer = current.clone();
    newer.epoch.conf_version += 1;
    newer.replicas.pop();
    assert_eq!(run(&mut state, update(&newer)), CatalogOutcome::ShardUpdated);
    assert_eq!(state.shards[&shards[0]], newer);
    let stale = rejection(run(&mut state, update(&current)));
    assert_eq!(stale, CatalogRejection::StaleDescriptor { current: Box::new(newer.clone()) });
    let mut forged = newer;
    forged.shard_id = ShardId::new(1, 1000);
    let unknown = CatalogRejection::ShardNotFound { shard_id: forged.shard_id };
    assert_eq!(rejection(run(&mut state, update(&forged))), unknown);
    // The catalog's own shard owns no key, and is found by its id.
    let own = ShardDescriptor::found(ShardId::CATALOG, KeyRange::EMPTY, DEFAULT_CLASS, &[node(1)]);
    assert_eq!(run(&mut state, update(&own)), CatalogOutcome::ShardUpdated);
    assert_eq!(state.shards[&ShardId::CATALOG], own);
    assert_eq!(state.shards_overlapping(KeyRange::FULL).count(), 2);
}

#[test]
fn overlapping_shards_are_found_by_any_part_of_a_range() {
    let mut state = three_zones();
    let (account, shards) = account(&run(&mut state, create(1, "acme", &[0x20, 0x80])));
    let at = |place: u8| Key(Key::account_start(account).0 | cut(place).0);
    let find = |from: u8, to: u8| {
        let range = KeyRange { start: at(from), end: Some(at(to)) };
        state.shards_overlapping(range).map(|shard| shard.shard_id).collect::<Vec<_>>()
    };
    assert_eq!(find(0x00, 0x20), shards[..1]);
    assert_eq!(find(0x1f, 0x21), shards[..2]);
    assert_eq!(find(0x20, 0x80), shards[1..2]);
    assert_eq!(find(0x10, 0xff), shards[..]);
    assert_eq!(find(0x90, 0x91), shards[2..]);
    assert_eq!(find(0x90, 0x90), []);
    assert_eq!(state.shard_of(at(0x20)).unwrap().shard_id, shards[1]);
    assert_eq!(state.shards_overlapping(KeyRange::FULL).count(), 3);
}

fn replace(shard_id: ShardId, epoch: Epoch) -> Operator {
    Operator {
        shard_id,
        epoch,
        steps: vec![Step::AddLearner(node(3)), Step::RemoveReplica(node(1))],
        reason: Reason::DeadReplica(node(1)),
        live_voters: 2,
    }
}

fn start(operators: Vec<Operator>) -> CatalogCommand {
    CatalogCommand::StartOperators { operators, deadline: Timestamp(900) }
}

#[test]
fn a_shard_has_one_operator_and_none_that_was_planned_before_it_changed() {
    let mut state = three_zones();
    let (_, shards) = account(&run(&mut state, create(1, "one", &[5])));
    let first = replace(shards[0], Epoch::FIRST);
    let started = |shards: &[ShardId]| CatalogOutcome::OperatorsStarted { shards: shards.to_vec() };
    let both = vec![first.clone(), first.clone(), replace(shards[1], Epoch::FIRST)];
    assert_eq!(run(&mut state, start(both.clone())), started(&shards));
    assert_eq!(run(&mut state, start(both)), started(&[]), "a retry finds them started");
    let number = state.operators[&shards[0]].number;
    let finish = |number| CatalogCommand::FinishOperator { shard_id: shards[0], number };
    run(&mut state, finish(number + 1));
    assert!(state.operators.contains_key(&shards[0]), "that was another one");
    run(&mut state, finish(number));
    assert!(!state.operators.contains_key(&shards[0]));
    let mut moved = state.shards[&shards[0]].clone();
    moved.epoch.conf_version += 1;
    let descriptor = Box::new(moved.clone());
    run(&mut state, CatalogCommand::UpdateShard { descriptor });
    assert_eq!(run(&mut state, start(vec![first])), started(&[]));
    // The catalog may trail behind the shard that it was planned for.
    let ahead = replace(shards[0], Epoch { conf_version: 9, ..moved.epoch });
    assert_eq!(run(&mut state, start(vec![ahead])), started(&[shards[0]]));
}

#[test]
fn no_two_steps_of_any_operators_give_the_same_replica_id() {
    let mut state = three_zones();
    let (_, shards) = account(&run(&mut state, create(1, "one", &[5])));
    let mut ids = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let planned = shards.iter().map(|shard| replace(*shard, Epoch::FIRST)).collect();
        run(&mut state, start(planned));
        for shard_id in &shards {
            let record = state.operators[shard_id].clone();
            for step in 0..16 {
                assert!(ids.insert(record.replica_id(step)));
                assert_eq!(record.replica_id(step), record.replica_id(step));
            }
            run(
                &mut state,
                CatalogCommand::FinishOperator { shard_id: *shard_id, number: record.number },
            );
        }
    }
    let founders = state.shards.values().flat_map(|shard| &shard.replicas);
    assert!(founders.into_iter().all(|founder| !ids.contains(&founder.replica_id)));
}

#[test]
fn a_newcomer_at_a_known_address_shows_that_the_old_node_is_gone() {
    let mut state = three_zones();
    let CatalogCommand::RegisterNode {
        region, zone, peer_address, client_address, version, ..
    } = register(12, "b")
    else {
        panic!()
    };
    let wiped = CatalogCommand::RegisterNode {
        instance: 99,
        region,
        zone,
        peer_address,
        client_address,
        version,
    };
    let outcome = run(&mut state, wiped);
    assert_eq!(outcome, CatalogOutcome::NodeRegistered { node_id: node(4) });
    let states: Vec<NodeState> = state.nodes.values().map(|node| node.state).collect();
    use NodeState::{Down, Joining};
    assert_eq!(states, [Joining, Down, Joining, Joining]);
}

#[test]
fn a_wish_outlives_a_restart_of_its_node() {
    let mut state = three_zones();
    let wish = CatalogCommand::SetNodeWish {
        node_id: node(2),
        wish: Wish::Drain,
        maintenance_until: Some(Timestamp(70)),
    };
    assert_eq!(run(&mut state, wish), CatalogOutcome::NodeWishSet);
    run(&mut state, register(12, "b"));
    let node = &state.nodes[&node(2)];
    assert_eq!((node.wish, node.maintenance_until), (Wish::Drain, Some(Timestamp(70))));
}

#[test]
fn names_are_plain() {
    for name in ["a", "acme-1", "eu.north_1", "0"] {
        assert!(is_valid_name(name), "{name:?}");
    }
    for name in ["", "-a", "Acme", "a/b", "a b", "ä", &"a".repeat(64)] {
        assert!(!is_valid_name(name), "{name:?}");
    }
}

fn any_command() -> impl Strategy<Value = CatalogCommand> {
    let name = || "[a-d]|-";
    let account = || (0_u32..5).prop_map(AccountNumber);
    let request = || (0_u128..30).prop_map(RequestId);
    let some_key = || "[a-f]?".prop_map(|key_id| key(&key_id));
    let nodes = prop::collection::vec((1_u64..6).prop_map(node), 0..4);
    let cuts = prop::collection::vec(any::<u8>().prop_map(cut), 0..3);
    let layout = || (cuts.clone(), prop::collection::vec(nodes.clone(), 0..4));
    let state =
        prop_oneof![Just(NodeState::Up), Just(NodeState::Draining), Just(NodeState::Removed)];
    let good_layout = prop::collection::btree_set(1_u8.., 0..3)
        .prop_map(|cuts| cuts.into_iter().collect::<Vec<u8>>());
    let epoch = (0..3_u32, 0..3_u32, 0..3_u32).prop_map(|(incarnation, version, conf_version)| {
        Epoch { incarnation, version, conf_version }
    });
    let shard = || (0_u64..12).prop_map(|counter| ShardId::new(1, counter));
    let descriptor =
        (shard(), any::<u8>(), any::<u8>(), epoch).prop_map(|(shard_id, start, end, epoch)| {
            ShardDescriptor {
                epoch,
                ..ShardDescriptor::found(
                    shard_id,
                    KeyRange { start: cut(start), end: Some(cut(end)) },
                    DEFAULT_CLASS,
                    &[node(1)],
                )
            }
        });
    let bootstrapped = (6_u128..9, name())
        .prop_map(|(cluster_id, name)| CatalogCommand::Bootstrap { cluster_id, name });
    let replaces = prop::collection::vec((shard(), Just(Epoch::FIRST)), 0..3);
    prop_oneof![
        1 => bootstrapped,
        2 => Just(bootstrap()),
        4 => (0_u128..6, "[a-c]").prop_map(|(instance, zone)| register(instance, &zone)),
        1 => ((1_u64..6).prop_map(node), state)
            .prop_map(|(node_id, state)| CatalogCommand::SetNodeState { node_id, state }),
        4 => (0_u128..30, name(), good_layout)
            .prop_map(|(request, name, cuts)| create(request, &name, &cuts)),
        2 => (request(), name(), 0_u32..3, prop::collection::vec(some_key(), 0..4), layout())
            .prop_map(|(request_id, name, class, keys, (cuts, placements))| {
                let class = ClassId(class);
                CatalogCommand::CreateAccount { request_id, name, class, keys, cuts, placements }
            }),
        1 => account().prop_map(|account| CatalogCommand::SetAccountState {
            account, state: AccountState::Disabled,
        }),
        2 => (request(), account(), some_key()).prop_map(|(request_id, account, key)| {
            CatalogCommand::AddKey { request_id, account, key }
        }),
        2 => (request(), account(), some_key()).prop_map(|(request_id, account, key)| {
            CatalogCommand::RotateKey { request_id, account, key }
        }),
        1 => (request(), account(), "[a-f]").prop_map(|(request_id, account, key_id)| {
            CatalogCommand::RevokeKey { request_id, account, key_id }
        }),
        3 => (request(), account(), replaces, layout()).prop_map(
            |(request_id, account, replaces, (cuts, placements))| CatalogCommand::LayOut {
                request_id, account, replaces, retired_at: 0, cuts, placements,
            }
        ),
        2 => descriptor.prop_map(|descriptor| CatalogCommand::UpdateShard {
            descriptor: Box::new(descriptor),
        }),
        6 => any_placing(),
    ]
}

/// Commands about operators, the scheduler and what is wanted of nodes.
fn any_placing() -> impl Strategy<Value = CatalogCommand> {
    let shard = || (0_u64..12).prop_map(|counter| ShardId::new(1, counter));
    let epoch = (0..3_u32, 0..3_u32, 0..3_u32).prop_map(|(incarnation, version, conf_version)| {
        Epoch { incarnation, version, conf_version }
    });
    prop_oneof![
        2 => prop::collection::vec((shard(), epoch), 0..4).prop_map(|shards| {
            start(shards.into_iter().map(|(shard, epoch)| replace(shard, epoch)).collect())
        }),
        1 => (shard(), 0_u64..12)
            .prop_map(|(shard_id, number)| CatalogCommand::FinishOperator { shard_id, number }),
        1 => (any::<bool>(), any::<Option<u32>>()).prop_map(|(is_paused, operators_max)| {
            let scheduler =
                SchedulerRecord { is_paused, operators_max, ..SchedulerRecord::default() };
            CatalogCommand::SetScheduler { scheduler }
        }),
        1 => (1_u64..6).prop_map(|counter| CatalogCommand::SetNodeWish {
            node_id: node(counter), wish: Wish::Leave, maintenance_until: None,
        }),
    ]
}

fn any_log(entries: usize) -> impl Strategy<Value = Vec<CatalogEntry>> {
    let entry = (0..3 * OPERATION_KEEP_MS, prop::collection::vec(any_command(), 0..6))
        .prop_map(|(time, commands)| CatalogEntry { stamp: stamp(time), commands });
    prop::collection::vec(entry, 0..entries).prop_map(|mut log| {
        log.insert(0, CatalogEntry { stamp: stamp(1), commands: vec![bootstrap()] });
        for (instance, zone) in [(1, "a"), (2, "b"), (3, "c")] {
            log[0].commands.push(register(instance, zone));
        }
        log
    })
}

/// Rows as a store keeps them.
fn store(rows: &mut BTreeMap<Vec<u8>, Vec<u8>>, changes: &[CatalogChange]) {
    for (key, value) in changes.iter().map(CatalogChange::row) {
        match value {
            Some(value) => rows.insert(key, value),
            None => rows.remove(&key),
        };
    }
}

proptest! {
    #![proptest_config(testing::cases(400))]

    #[test]
    fn stored_rows_make_the_same_state(log in any_log(20), cut in any::<prop::sample::Index>()) {
        let (mut one, mut other) = (CatalogState::default(), CatalogState::default());
        let mut rows = BTreeMap::new();
        let cut = cut.index(log.len());
        for (index, entry) in log.iter().enumerate() {
            if index == cut {
                other = CatalogState::from_rows(rows.clone()).unwrap();
            }
            let entry = row::decode_catalog_entry(&row::encode_catalog_entry(entry)).unwrap();
            let (outcomes, changes) = apply_entry(&mut one, &entry);
            prop_assert_eq!(outcomes.len(), entry.commands.len());
            prop_assert_eq!(apply_entry(&mut other, &entry), (outcomes, changes.clone()));
            store(&mut rows, &changes);
        }
        prop_assert_eq!(&one, &other);
        prop_assert_eq!(CatalogState::from_rows(rows.clone()).unwrap(), one.clone());
        let all = one.rows().map(|(key, value)| (key, value.unwrap())).collect::<Vec<_>>();
        prop_assert!(all.is_sorted());
        let is_fresh = one.counters == Counters::default();
        prop_assert!(is_fresh || all == rows.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn retried_request_has_one_effect(
        before in any_log(6), command in any_command(), between in any_log(6),
    ) {
        let mut state = CatalogState::default();
        for entry in before {
            apply_entry(&mut state, &entry);
        }
        let Some(request_id) = command.request_id() else { return Ok(()) };
        prop_assume!(!state.operations.contains_key(&request_id));
        let start = state.counters.time.0;
        let first = run_at(&mut state, start, command.clone());
        prop_assume!(!matches!(first, CatalogOutcome::Rejected(_)));
        for mut entry in between {
            entry.stamp.time.0 = start + entry.stamp.time.0 % OPERATION_KEEP_MS;
            apply_entry(&mut state, &entry);
        }
        let unchanged = state.clone();
        prop_assert_eq!(run_at(&mut state, start, command), first);
        prop_assert_eq!(state, unchanged);
    }

    #[test]
    fn shards_of_an_account_cover_it_once(log in any_log(20)) {
        let mut state = CatalogState::default();
        for mut entry in log {
            // Descriptors that nodes report come from splits, which keep this true.
            entry.commands.retain(|command| {
                !matches!(command, CatalogCommand::UpdateShard { .. })
            });
            apply_entry(&mut state, &entry);
        }
        for account in state.accounts.keys() {
            let whole = KeyRange::of_account(*account);
            let shards: Vec<KeyRange> = state.shards_of(*account).map(|s| s.range).collect();
            prop_assert_eq!(shards.first().map(|range| range.start), Some(whole.start));
            prop_assert_eq!(shards.last().map(|range| range.end), Some(whole.end));
            for pair in shards.windows(2) {
                prop_assert_eq!(pair[0].end, Some(pair[1].start));
            }
        }
        let names: std::collections::BTreeSet<&str> =
            state.accounts.values().map(|account| account.name.as_str()).collect();
        prop_assert_eq!(names.len(), state.accounts.len());
    }
}

#[test]
fn a_merged_shard_ends_what_became_part_of_it() {
    let mut state = CatalogState::default();
    run(&mut state, bootstrap());
    for (instance, zone) in [(1, "a"), (2, "b"), (3, "c")] {
        run(&mut state, register(instance, zone));
    }
    let CatalogOutcome::AccountCreated { shards, .. } = run(&mut state, create(1, "a", &[3, 6]))
    else {
        panic!("no account")
    };
    let [first, second, third] = shards[..] else { panic!("{shards:?}") };
    let of = |state: &CatalogState, shard| state.shards[&shard].clone();
    let operator = Operator {
        shard_id: second,
        epoch: Epoch::FIRST,
        steps: vec![Step::MergeInto(first)],
        reason: Reason::Merge,
        live_voters: 3,
    };
    let deadline = Timestamp(9);
    run(&mut state, CatalogCommand::StartOperators { operators: vec![operator], deadline });
    let stale = of(&state, second);
    let merged = of(&state, first).merge(&stale);
    let both = merged.merge(&of(&state, third));
    // The source's last word comes with it, and after it: it stays part of the other one.
    let mut late = stale.clone();
    late.epoch.conf_version += 5;
    let tell = |state: &mut CatalogState, descriptors: &[&ShardDescriptor]| {
        let descriptors = descriptors.iter().copied().cloned().collect();
        run(state, CatalogCommand::UpdateShards { descriptors })
    };
    tell(&mut state, &[&merged, &late]);
    tell(&mut state, &[&late]);
    assert_eq!(state.merged_shards.get(&second), Some(&first));
    assert!(state.removed_shards.contains(&second) && state.operators.is_empty());
    assert_eq!(state.shards.keys().copied().collect::<Vec<_>>(), [first, third]);
    tell(&mut state, &[&both]);
    assert_eq!(state.shards.keys().copied().collect::<Vec<_>>(), [first]);
    assert!(state.is_part_of(third, first) && !state.is_part_of(first, third));
    // Split where the second began: what is born there is not what ended there.
    let reserved = run(&mut state, CatalogCommand::ReserveShard { request_id: RequestId(40) });
    let CatalogOutcome::ShardReserved { shard_id } = reserved else { panic!("{reserved:?}") };
    let (parent, child) = both.split(stale.range.start, shard_id);
    tell(&mut state, &[&parent, &child]);
    tell(&mut state, &[&stale]);
    assert_eq!(state.shard_of(stale.range.start).map(|shard| shard.shard_id), Some(shard_id));
    // A shard that the catalog hears of after its end only.
    let reserved = run(&mut state, CatalogCommand::ReserveShard { request_id: RequestId(41) });
    let CatalogOutcome::ShardReserved { shard_id: unknown } = reserved else {
        panic!("{reserved:?}")
    };
    let (left, right) = child.split(Key(child.range.start.0 + 50), unknown);
    let again = left.merge(&right);
    tell(&mut state, &[&again]);
    tell(&mut state, &[&right]);
    assert!(state.is_part_of(unknown, shard_id) && !state.shards.contains_key(&unknown));
    // And one that it hears of together with its end.
    let reserved = run(&mut state, CatalogCommand::ReserveShard { request_id: RequestId(42) });
    let CatalogOutcome::ShardReserved { shard_id: brief } = reserved else {
        panic!("{reserved:?}")
    };
    let (left, right) = again.split(Key(again.range.start.0 + 50), brief);
    tell(&mut state, &[&right, &left.merge(&right)]);
    assert!(state.is_part_of(brief, shard_id) && !state.shards.contains_key(&brief));
    let rows = state.rows().map(|(key, value)| (key, value.unwrap()));
    assert_eq!(CatalogState::from_rows(rows).unwrap(), state);
}
