//! The catalog's own members: every node follows the catalog, up to three of them vote, spread over
//! zones. Driven by the catalog's leader.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anchorhold_model::catalog::{CatalogState, NodeRecord, NodeState};
use anchorhold_model::{NodeId, ReplicaId};
use anchorhold_placement::{CatalogMember, CatalogStep, NodeView, PlacementConfig, catalog_voters};
use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;

use crate::host::Host;
use crate::replica::Replica;
use crate::types::PeerNode;

/// How often the members are compared with the nodes.
const INTERVAL: Duration = Duration::from_millis(250);
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

/// Makes the next change that the members need, if any.
async fn one_step(host: &Host, replica: &Arc<Replica>) {
    let raft = replica.raft();
    let metrics = raft.metrics().borrow_watched().clone();
    let membership = metrics.membership_config.membership();
    if 1 < membership.get_joint_config().len() {
        let voters = membership.get_joint_config().last().cloned().unwrap_or_default();
        let result = raft.change_membership(ChangeMembers::ReplaceAllVoters(voters), true).await;
        report("finish a joint change", result.map(drop));
        return;
    }
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    let catalog = host.catalog().borrow().clone();
    let ids: BTreeMap<NodeId, ReplicaId> =
        membership.nodes().map(|(id, node)| (NodeId(node.node_id), ReplicaId(*id))).collect();
    let id_of = |node: &NodeId| ids.get(node).map(|id| id.0);
    let voting: BTreeSet<NodeId> =
        ids.iter().filter(|(_, id)| voters.contains(&id.0)).map(|(node, _)| *node).collect();
    let nodes = members_to_be(&catalog, &voting);
    // A learner that has nothing yet would hold the quorum back.
    let following: BTreeSet<u64> = metrics
        .replication
        .iter()
        .flatten()
        .filter(|(_, matched)| matched.is_some())
        .map(|(id, _)| *id)
        .collect();
    let own = replica.replica_id().0;
    let mut lost = host.told().lost(&ids);
    let away = catalog.nodes.values().filter(|node| node.state == NodeState::Down);
    lost.extend(away.map(|node| node.node_id).filter(|node| !voting.contains(node)));
    let members: Vec<CatalogMember> = ids
        .iter()
        .map(|(node_id, id)| CatalogMember {
            node_id: *node_id,
            is_voter: voting.contains(node_id),
            is_caught_up: id.0 == own || following.contains(&id.0),
        })
        .collect();
    match catalog_voters(&nodes, &members, &lost, &PlacementConfig::default()) {
        Some(CatalogStep::AddLearner(node)) => {
            let peer = PeerNode { node_id: node.0 };
            let result = raft.add_learner(host.told().id_of(node).0, peer, false).await;
            report("add a learner", result.map(drop));
        }
        Some(CatalogStep::RemoveLearner(node)) => {
            let gone: BTreeSet<u64> = id_of(&node).into_iter().collect();
            let change = ChangeMembers::RemoveNodes(gone);
            report("remove a learner", raft.change_membership(change, true).await.map(drop));
        }
        Some(CatalogStep::SetVoters(nodes)) => {
            let voters: BTreeSet<u64> = nodes.iter().filter_map(id_of).collect();
            tracing::info!(?voters, "changing the catalog's voters");
            let change = ChangeMembers::ReplaceAllVoters(voters);
            report("change the voters", raft.change_membership(change, true).await.map(drop));
        }
        None => {}
    }
}

/// The nodes that the catalog's members are chosen among.
fn members_to_be(catalog: &CatalogState, voting: &BTreeSet<NodeId>) -> Vec<NodeView> {
    // A node that is down follows again when it is back; until then it is none that misses something.
    let is_member = |node: &&NodeRecord| match node.state {
        NodeState::Removed => false,
        NodeState::Down => voting.contains(&node.node_id),
        NodeState::Joining
        | NodeState::Up
        | NodeState::Suspect
        | NodeState::Returning
        | NodeState::Draining
        | NodeState::Decommissioning => true,
    };
    let view = |node: &NodeRecord| NodeView {
        node_id: node.node_id,
        region: node.region.clone(),
        zone: node.zone.clone(),
        accepts_replicas: !matches!(node.state, NodeState::Down | NodeState::Decommissioning),
        replicas: 0,
        leaders: 0,
    };
    catalog.nodes.values().filter(is_member).map(view).collect()
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
    hand_over_to(replica, *target).await;
}

/// Gives a leadership to a voter, and waits a little for it to take over.
pub(crate) async fn hand_over_to(replica: &Arc<Replica>, target: ReplicaId) {
    replica.rouse().await;
    if replica.raft().trigger().transfer_leader(target.0).await.is_ok() {
        let taken = async {
            while replica.is_leader() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        drop(tokio::time::timeout(HAND_OVER_TIMEOUT, taken).await);
    }
}
