//! The catalog's own members: every node follows the catalog, up to three of them vote, spread over
//! zones. Driven by the catalog's leader.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anchorhold_model::catalog::NodeState;
use anchorhold_model::{NodeId, ReplicaId};
use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;

use crate::host::Host;
use crate::replica::Replica;
use crate::types::PeerNode;

/// How often the members are compared with the nodes.
const INTERVAL: Duration = Duration::from_millis(250);
/// Voters of the catalog, once there are as many nodes.
const VOTERS: usize = 3;
/// Longest wait for one membership change.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a follower to take over.
const HAND_OVER_TIMEOUT: Duration = Duration::from_millis(500);

/// Keeps the catalog's members as they should be while this node leads it.
pub(crate) async fn keep(host: Host) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let replica = host.catalog_replica();
        if replica.is_leader() {
            let step = tokio::time::timeout(CHANGE_TIMEOUT, one_step(&host, &replica)).await;
            if step.is_err() {
                tracing::warn!("a change of the catalog's members takes long");
            }
        }
    }
}

/// The next change, if any: first every node becomes a learner, then the voters are chosen among
/// those that follow.
async fn one_step(host: &Host, replica: &Arc<Replica>) {
    let catalog = host.catalog().borrow().clone();
    let raft = replica.raft();
    let metrics = raft.metrics().borrow_watched().clone();
    let membership = metrics.membership_config.membership();
    if 1 < membership.get_joint_config().len() {
        let voters = membership.get_joint_config().last().cloned().unwrap_or_default();
        let result = raft.change_membership(ChangeMembers::ReplaceAllVoters(voters), true).await;
        report("finish a joint change", result.map(drop));
        return;
    }
    let members: BTreeMap<u64, PeerNode> =
        membership.nodes().map(|(id, node)| (*id, *node)).collect();
    let live: Vec<_> =
        catalog.nodes.values().filter(|node| node.state != NodeState::Removed).collect();
    for node in &live {
        let replica_id = ReplicaId::new(1, node.node_id.counter()).0;
        if !members.contains_key(&replica_id) {
            let peer = PeerNode { node_id: node.node_id.0 };
            let result = raft.add_learner(replica_id, peer, false).await;
            report("add a learner", result.map(drop));
            return;
        }
    }
    // A learner that has nothing yet would hold the quorum back.
    let following: BTreeSet<u64> = metrics
        .replication
        .iter()
        .flatten()
        .filter(|(_, matched)| matched.is_some())
        .map(|(id, _)| *id)
        .collect();
    let own = replica.replica_id().0;
    let places: Vec<(NodeId, (&str, &str))> = live
        .iter()
        .filter(|node| {
            let id = ReplicaId::new(1, node.node_id.counter()).0;
            id == own || following.contains(&id)
        })
        .map(|node| (node.node_id, (node.region.as_str(), node.zone.as_str())))
        .collect();
    let voters: BTreeSet<NodeId> = membership
        .voter_ids()
        .filter_map(|id| members.get(&id))
        .map(|node| NodeId(node.node_id))
        .collect();
    let wanted = choose_voters(&places, &voters);
    if wanted == voters {
        return;
    }
    let wanted: BTreeSet<u64> =
        wanted.iter().map(|node| ReplicaId::new(1, node.counter()).0).collect();
    tracing::info!(?wanted, "changing the catalog's voters");
    let result = raft.change_membership(ChangeMembers::ReplaceAllVoters(wanted), true).await;
    report("change the voters", result.map(drop));
}

/// Up to three voters in as many zones as there are, those that vote already first.
fn choose_voters(places: &[(NodeId, (&str, &str))], voters: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let mut candidates = places.to_vec();
    candidates.sort_by_key(|(node, _)| (!voters.contains(node), *node));
    let mut zones = BTreeMap::new();
    for (node, zone) in &candidates {
        zones.entry(*zone).or_insert(*node);
    }
    let mut chosen: Vec<NodeId> = zones.into_values().collect();
    chosen.sort_by_key(|node| (!voters.contains(node), *node));
    for (node, _) in &candidates {
        if !chosen.contains(node) {
            chosen.push(*node);
        }
    }
    // An even number of voters survives no more than one fewer does.
    let count = if chosen.len() < VOTERS { 1 } else { VOTERS };
    chosen.into_iter().take(count).collect()
}

fn report<E: std::fmt::Display>(what: &str, result: Result<(), E>) {
    if let Err(error) = result {
        tracing::debug!(%error, "the catalog's leader could not {what}");
    }
}

/// Gives a leadership to the voter that is closest, and waits a little for it to take over.
pub(crate) async fn hand_over(replica: &Arc<Replica>) {
    if !replica.is_leader() {
        return;
    }
    let status = replica.status();
    let metrics = replica.raft().metrics().borrow_watched().clone();
    let voters: BTreeSet<u64> = metrics.membership_config.membership().voter_ids().collect();
    let others = status
        .matched
        .iter()
        .filter(|(id, _)| *id != replica.replica_id() && voters.contains(&id.0));
    let Some((target, _)) = others.max_by_key(|(id, matched)| (*matched, std::cmp::Reverse(*id)))
    else {
        return;
    };
    if replica.raft().trigger().transfer_leader(target.0).await.is_ok() {
        let taken = async {
            while replica.is_leader() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        drop(tokio::time::timeout(HAND_OVER_TIMEOUT, taken).await);
    }
}
