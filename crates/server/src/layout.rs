//! Where an account's key range is cut into shards, and which nodes get them.
//!
//! Pure: equal input, equal output. Cuts rise and lie inside the account. Placements spread each
//! shard over as many zones as there are, up to three voters, then even out replicas and first
//! leaders. Moving replicas later is the planner's business.

use std::collections::BTreeMap;

use anchorhold_model::catalog::{CatalogState, NodeRecord, NodeState};
use anchorhold_model::{AccountNumber, Key, KeyRange, NodeId, ReplicaRole};

/// Voters of a new shard, if there are as many nodes.
const VOTERS: usize = 3;

/// Shares of the world's anchors that are expected on each face of the S2 cube, in percent, when
/// nothing is known: by where people live. Face 0: Africa, the Mediterranean; 1: South and East
/// Asia; 2: everything north of about 45°; 3: Japan, Australia, the Pacific; 4: the Americas; 5: the
/// South.
const FACE_SHARES: [u128; 6] = [22, 30, 20, 9, 18, 1];

/// The keys that cut an account into `shards` parts of Earth, `shards - 1` of them. Local spaces
/// come after Earth and go to the last shard.
pub fn even_cuts(account: AccountNumber, shards: usize) -> Vec<Key> {
    let shares: u128 = FACE_SHARES.iter().sum();
    let count = shards.max(1) as u128;
    let cuts = (1..count).map(|cut| {
        // In hundredths of a share, times the number of shards, so that all is whole.
        let mut position = cut * shares;
        for (face, share) in (0_u64..).zip(FACE_SHARES) {
            if position < share * count {
                let range = face_range(account, face);
                let (start, end) = (range.start.0, range.end.map_or(u128::MAX, |end| end.0));
                return Key(start + (end - start) / (share * count) * position);
            }
            position -= share * count;
        }
        KeyRange::of_space(account, anchorhold_model::Space::Local(0)).start
    });
    let mut cuts: Vec<Key> = cuts.collect();
    cuts.dedup();
    cuts
}

/// The keys of a face of the S2 cube.
fn face_range(account: AccountNumber, face: u64) -> KeyRange {
    let cell_id = face << 61 | 1 << 60;
    KeyRange::of_s2_cell(account, cell_id).unwrap_or_else(|| KeyRange::of_account(account))
}

/// The keys that cut an account at the quantiles of a sample of its keys, at most `shards - 1` of
/// them; fewer if the sample holds fewer different keys. The sample's keys must be the account's.
pub fn quantile_cuts(account: AccountNumber, mut sample: Vec<Key>, shards: usize) -> Vec<Key> {
    sample.sort_unstable();
    let start = Key::account_start(account);
    let mut cuts = Vec::with_capacity(shards.saturating_sub(1));
    for cut in 1..shards {
        let Some(key) = sample.get(cut * sample.len() / shards).copied() else { continue };
        if start < key && cuts.last().is_none_or(|last| *last < key) {
            cuts.push(key);
        }
    }
    cuts
}

/// Chooses the voters of `shards` new shards; the first of each is its preferred first leader.
/// Nodes whose disks have no room get none. Empty if no node can take a replica.
pub fn place(
    catalog: &CatalogState,
    home: Option<&str>,
    shards: usize,
    has_room: &dyn Fn(NodeId) -> bool,
) -> Vec<Vec<NodeId>> {
    let mut loads: Vec<Load<'_>> = candidates(catalog, home)
        .filter(|node| has_room(node.node_id))
        .map(|node| Load { node, replicas: 0, leaders: 0 })
        .collect();
    for shard in catalog.shards.values() {
        for (position, replica) in shard.replicas.iter().enumerate() {
            if let Some(load) = loads.iter_mut().find(|load| load.node.node_id == replica.node_id) {
                load.replicas += 1;
                // The first voter was the preferred leader when the shard was founded.
                load.leaders += usize::from(position == 0 && replica.role == ReplicaRole::Voter);
            }
        }
    }
    if loads.is_empty() {
        return Vec::new();
    }
    (0..shards).map(|_| place_one(&mut loads)).collect()
}

struct Load<'a> {
    node: &'a NodeRecord,
    replicas: usize,
    leaders: usize,
}

/// Nodes that may get replicas, in id order: of the home region; without one, of the region with
/// the most zones.
fn candidates<'a>(
    catalog: &'a CatalogState,
    home: Option<&str>,
) -> impl Iterator<Item = &'a NodeRecord> {
    let takes_replicas = |node: &&NodeRecord| match node.state {
        NodeState::Joining | NodeState::Up | NodeState::Suspect | NodeState::Returning => true,
        NodeState::Down | NodeState::Draining | NodeState::Decommissioning | NodeState::Removed => {
            false
        }
    };
    let mut zones: BTreeMap<&str, std::collections::BTreeSet<&str>> = BTreeMap::new();
    for node in catalog.nodes.values().filter(takes_replicas) {
        zones.entry(&node.region).or_default().insert(&node.zone);
    }
    let widest = zones
        .iter()
        .max_by_key(|(region, zones)| (zones.len(), std::cmp::Reverse(**region)))
        .map(|(region, _)| (*region).to_owned());
    let region = home.map(str::to_owned).or(widest);
    catalog
        .nodes
        .values()
        .filter(takes_replicas)
        .filter(move |node| region.as_ref().is_some_and(|region| *region == node.region))
}

fn place_one(loads: &mut [Load<'_>]) -> Vec<NodeId> {
    let mut chosen: Vec<usize> = Vec::new();
    while chosen.len() < VOTERS.min(loads.len()) {
        let in_zone = |at: usize| {
            let zone = &loads[at].node.zone;
            chosen.iter().filter(|other| loads[**other].node.zone == *zone).count()
        };
        let free = (0..loads.len()).filter(|at| !chosen.contains(at));
        let best =
            free.min_by_key(|at| (in_zone(*at), loads[*at].replicas, loads[*at].node.node_id));
        let Some(best) = best else { break };
        chosen.push(best);
    }
    let leader =
        chosen.iter().copied().min_by_key(|at| (loads[*at].leaders, loads[*at].node.node_id));
    for at in &chosen {
        loads[*at].replicas += 1;
    }
    let mut nodes: Vec<NodeId> = chosen.iter().map(|at| loads[*at].node.node_id).collect();
    if let Some(leader) = leader {
        loads[leader].leaders += 1;
        let id = loads[leader].node.node_id;
        // Others follow in the order of their ids: nobody cares, but it is the same everywhere.
        nodes.sort_by_key(|node| (*node != id, *node));
    }
    nodes
}

#[cfg(test)]
mod tests {
    use anchorhold_model::catalog::CatalogChange;
    use std::collections::BTreeSet;

    use super::*;

    const ACCOUNT: AccountNumber = AccountNumber(7);

    fn node(id: u64, zone: &str, state: NodeState) -> NodeRecord {
        NodeRecord {
            node_id: NodeId(id),
            instance: u128::from(id),
            region: "here".to_owned(),
            zone: zone.to_owned(),
            peer_address: String::new(),
            client_address: String::new(),
            version: String::new(),
            state,
            wish: anchorhold_model::catalog::Wish::Serve,
            maintenance_until: None,
        }
    }

    fn catalog(nodes: &[(u64, &str)]) -> CatalogState {
        let mut catalog = CatalogState::default();
        for (id, zone) in nodes {
            catalog.absorb(&CatalogChange::Node(node(*id, zone, NodeState::Up)));
        }
        catalog
    }

    #[test]
    fn cuts_rise_and_lie_inside_the_account() {
        let whole = KeyRange::of_account(ACCOUNT);
        for shards in [1, 2, 3, 8, 12, 64, 256, 4_096] {
            let cuts = even_cuts(ACCOUNT, shards);
            assert_eq!(cuts.len(), shards - 1);
            assert!(cuts.windows(2).all(|pair| pair[0] < pair[1]), "{shards} shards");
            assert!(cuts.iter().all(|cut| whole.contains(*cut) && whole.start < *cut));
        }
    }

    #[test]
    fn more_shards_go_where_more_anchors_are_expected() {
        let cuts = even_cuts(ACCOUNT, 100);
        let on = |face| {
            let range = face_range(ACCOUNT, face);
            cuts.iter().filter(|cut| range.contains(**cut)).count()
        };
        assert_eq!([on(0), on(1), on(2), on(3), on(4)], [21, 30, 20, 9, 18]);
    }

    #[test]
    fn a_sample_is_cut_at_its_quantiles() {
        let start = Key::account_start(ACCOUNT).0;
        let sample: Vec<Key> = (0..100).rev().map(|n| Key(start + n)).collect();
        let cuts = quantile_cuts(ACCOUNT, sample, 4);
        assert_eq!(cuts, [25, 50, 75].map(|n| Key(start + n)));
        assert_eq!(quantile_cuts(ACCOUNT, vec![Key(start); 9], 4), []);
        assert_eq!(quantile_cuts(ACCOUNT, vec![Key(start + 5); 9], 4), [Key(start + 5)]);
        assert_eq!(quantile_cuts(ACCOUNT, Vec::new(), 4), []);
    }

    #[test]
    fn each_shard_spreads_over_the_zones_and_leaders_take_turns() {
        let catalog = catalog(&[(1, "a"), (2, "a"), (3, "b"), (4, "b"), (5, "c"), (6, "c")]);
        let placed = place(&catalog, None, 12, &|_| true);
        let mut leaders = BTreeMap::new();
        let mut replicas = BTreeMap::new();
        for nodes in &placed {
            let zones: BTreeSet<_> =
                nodes.iter().map(|id| catalog.nodes[id].zone.clone()).collect();
            assert_eq!((nodes.len(), zones.len()), (3, 3));
            *leaders.entry(nodes[0]).or_insert(0) += 1;
            nodes.iter().for_each(|id| *replicas.entry(*id).or_insert(0) += 1);
        }
        assert!(leaders.values().all(|count| *count == 2), "{leaders:?}");
        assert!(replicas.values().all(|count| *count == 6), "{replicas:?}");
    }

    #[test]
    fn fewer_nodes_and_zones_give_what_there_is() {
        assert_eq!(place(&catalog(&[]), None, 2, &|_| true), Vec::<Vec<NodeId>>::new());
        assert_eq!(place(&catalog(&[(4, "a")]), None, 1, &|_| true), [[NodeId(4)]]);
        let placed = place(&catalog(&[(1, "a"), (2, "a"), (3, "b"), (4, "a")]), None, 1, &|_| true);
        assert_eq!(placed[0].len(), 3);
        assert!(placed[0].contains(&NodeId(3)));
    }

    #[test]
    fn nodes_that_leave_and_other_regions_get_nothing() {
        let mut catalog = catalog(&[(1, "a"), (2, "b")]);
        catalog.absorb(&CatalogChange::Node(node(3, "c", NodeState::Draining)));
        let far = NodeRecord { region: "far".to_owned(), ..node(4, "d", NodeState::Up) };
        catalog.absorb(&CatalogChange::Node(far));
        let placed = place(&catalog, None, 1, &|_| true);
        assert_eq!(placed[0], [NodeId(1), NodeId(2)]);
        assert_eq!(place(&catalog, Some("far"), 1, &|_| true), [[NodeId(4)]]);
    }
}
