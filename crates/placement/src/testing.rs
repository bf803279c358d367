//! Views of clusters for tests.

use anchorhold_model::catalog::{ClassKind, NodeState};
use anchorhold_model::{
    ClassId, Epoch, Key, KeyRange, NodeId, ReplicaId, ReplicaRole, ShardId, Timestamp,
};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use crate::{
    ClassView, ClusterView, DiskState, NodeStatus, NodeView, Operator, PlacementConfig, Reason,
    ReplicaStatus, ShardStatus, Step,
};

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

/// Reads a view: nodes `n3 north/c down disk=almost slow capacity=100 load=500`, later lines on the
/// same node change it; classes `c1 zonal|regional home=north`, `paired … pair=south`,
/// `pinned … within=north,east`; shards `s1 c1 n1* n2 l3 size=50 anchors=9 load=7 busy=6 changed=5
/// led=4 joint lag2=500 range=0..5`, `*` the leader and `l` learners; `flight s1 add n6` and `flight s1 split`
/// operators in flight.
/// Sizes and capacities are in MiB, capacity 1,000 and 10,000 requests per second unless said.
pub(crate) fn view_of(text: &str, config: &PlacementConfig) -> ClusterView {
    let mut view = ClusterView::new(*config);
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match line.chars().next().unwrap() {
            'n' => read_node(&mut view, &words),
            'c' => view.set_class(read_class(&words)),
            's' => view.set_shard(read_shard(&words)),
            'f' => {
                let shard_id = ShardId(number(words[1]));
                let step = match words[2] {
                    "split" => Step::Split,
                    _ => Step::AddLearner(NodeId(number(words[3]))),
                };
                let operator = Operator {
                    shard_id,
                    epoch: Epoch::FIRST,
                    steps: vec![step],
                    reason: Reason::MissingLearner,
                    live_voters: 3,
                };
                view.start(operator);
            }
            other => panic!("unknown line {other}"),
        }
    }
    view
}

/// The number at the end of a name like `n12`.
fn number(word: &str) -> u64 {
    word.trim_matches(|letter: char| !letter.is_ascii_digit()).parse().unwrap()
}

const MIB: u64 = 1 << 20;

fn read_node(view: &mut ClusterView, words: &[&str]) {
    let node_id = NodeId(number(words[0]));
    let mut node = view.node(node_id).cloned().unwrap_or(NodeStatus {
        node_id,
        region: "north".into(),
        zone: "a".into(),
        state: NodeState::Up,
        disk: DiskState::Normal,
        is_slow: false,
        capacity_bytes: 1_000 * MIB,
        load_max: 10_000,
    });
    for word in &words[1..] {
        if let Some((region, zone)) = word.split_once('/') {
            (node.region, node.zone) = (region.into(), zone.into());
            continue;
        }
        match word.split_once('=') {
            Some(("capacity", mib)) => node.capacity_bytes = mib.parse::<u64>().unwrap() * MIB,
            Some(("load", load)) => node.load_max = load.parse().unwrap(),
            Some(("disk", "almost")) => node.disk = DiskState::AlmostFull,
            Some(("disk", "full")) => node.disk = DiskState::Full,
            Some(_) => panic!("unknown word {word:?}"),
            None if *word == "slow" => node.is_slow = true,
            None => node.state = read_state(word),
        }
    }
    view.set_node(node);
}

fn read_state(word: &str) -> NodeState {
    match word {
        "joining" => NodeState::Joining,
        "up" => NodeState::Up,
        "suspect" => NodeState::Suspect,
        "down" => NodeState::Down,
        "returning" => NodeState::Returning,
        "draining" => NodeState::Draining,
        "leaving" => NodeState::Decommissioning,
        "removed" => NodeState::Removed,
        _ => panic!("unknown state {word:?}"),
    }
}

fn read_class(words: &[&str]) -> ClassView {
    let value = |key: &str| {
        let found = words.iter().filter_map(|word| word.split_once('='));
        found.filter(|(name, _)| *name == key).map(|(_, value)| value.to_owned()).next()
    };
    let kind = match words[1] {
        "zonal" => ClassKind::Zonal,
        "regional" => ClassKind::Regional,
        "paired" => ClassKind::Paired { pair: value("pair").unwrap(), witness: None },
        "pinned" => {
            let within = value("within").unwrap();
            ClassKind::Pinned { residency: within.split(',').map(str::to_owned).collect() }
        }
        other => panic!("unknown class {other:?}"),
    };
    let class_id = ClassId(u32::try_from(number(words[0])).unwrap());
    ClassView { class_id, kind, home: value("home") }
}

fn read_shard(words: &[&str]) -> ShardStatus {
    let shard_id = ShardId(number(words[0]));
    let mut shard = ShardStatus {
        shard_id,
        range: KeyRange { start: Key(u128::from(shard_id.0) << 96), end: None },
        class: ClassId(u32::try_from(number(words[1])).unwrap()),
        epoch: Epoch::FIRST,
        replicas: Vec::new(),
        is_joint: false,
        leader: None,
        bytes: 0,
        anchors: 0,
        load: 0,
        change_time: Timestamp(0),
        busy_since: Timestamp(0),
        rest_until: Timestamp(0),
        lead_time: Timestamp(0),
    };
    for word in &words[2..] {
        let Some((name, value)) = word.split_once('=') else {
            read_replica(&mut shard, word);
            continue;
        };
        match name {
            "size" => shard.bytes = value.parse::<u64>().unwrap() * MIB,
            "anchors" => shard.anchors = value.parse().unwrap(),
            "load" => shard.load = value.parse().unwrap(),
            "led" => shard.lead_time = Timestamp(value.parse().unwrap()),
            "rests" => shard.rest_until = Timestamp(value.parse().unwrap()),
            "busy" => shard.busy_since = Timestamp(value.parse().unwrap()),
            "changed" => shard.change_time = Timestamp(value.parse().unwrap()),
            "range" => {
                let (start, end) = value.split_once("..").unwrap();
                let end = end.parse().ok().map(Key);
                shard.range = KeyRange { start: Key(start.parse().unwrap()), end };
            }
            _ => {
                let node_id = NodeId(number(name));
                let replica = shard.replicas.iter_mut().find(|r| r.node_id == node_id).unwrap();
                replica.lag_entries = value.parse().unwrap();
            }
        }
    }
    shard
}

fn read_replica(shard: &mut ShardStatus, word: &str) {
    if word == "joint" {
        shard.is_joint = true;
        return;
    }
    let node_id = NodeId(number(word));
    if word.ends_with('*') {
        shard.leader = Some(node_id);
    }
    let is_learner = word.starts_with('l');
    shard.replicas.push(ReplicaStatus {
        replica_id: ReplicaId::new(1, shard.replicas.len() as u64 + 1),
        node_id,
        role: if is_learner { ReplicaRole::Learner } else { ReplicaRole::Voter },
        is_live: !word.ends_with('!'),
        is_lost: word.ends_with('!'),
        lag_entries: 0,
    });
}
