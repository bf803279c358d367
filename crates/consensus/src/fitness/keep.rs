//! Asks the others how they are, and lets this node's replicas act on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anchorhold_model::catalog::{NodeState, Wish};
use anchorhold_model::{NodeId, ReplicaId};
use bytes::Bytes;
use futures::future::join_all;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use tokio::task::JoinHandle;

use super::conduct::{GroupView, NodeFitness, conduct};
use super::{Trouble, Vitals};
use crate::host::Host;
use crate::link::CallKind;
use crate::membership::hand_over_to;
use crate::replica::Replica;
use crate::wire;

/// How often the others are asked.
const ASK_INTERVAL: Duration = Duration::from_millis(500);
/// How long an answer may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// How often this node looks at itself.
const ACT_INTERVAL: Duration = Duration::from_millis(50);
/// Every so many looks it looks at all its replicas, else only at those that may be in trouble.
const LOOKS_PER_ROUND: u32 = 4;
/// Every so many at those that rest: nothing is asked of them, and waking them looks soon enough.
const LOOKS_PER_LONG_ROUND: u32 = 20;
/// A leadership that was offered in vain is not offered again before.
const OFFER_PAUSE: Duration = Duration::from_secs(3);
/// Without a leader for as long, a group is led by whoever can.
const ORPHANED_AFTER: Duration = Duration::from_secs(4);

/// Asks every peer how it is, for ever.
pub(crate) async fn ask_others(host: Host) {
    let mut asked: BTreeMap<NodeId, JoinHandle<()>> = BTreeMap::new();
    loop {
        tokio::time::sleep(ASK_INTERVAL).await;
        for (node, _) in host.peers().addresses() {
            // One that does not answer holds up none of the others.
            if asked.get(&node).is_none_or(JoinHandle::is_finished) {
                let host = host.clone();
                asked.insert(node, tokio::spawn(async move { ask(&host, node).await }));
            }
        }
    }
}

async fn ask(host: &Host, node: NodeId) {
    let asked = host.parts().seams.clock.monotonic();
    let answer = host.peers().call(node, CallKind::Vitals, Bytes::new(), ASK_TIMEOUT).await;
    let Ok(answer) = answer else { return };
    match wire::decode::<Vitals>("a node's vitals", &answer) {
        Ok(vitals) => host.fitness().note(node, vitals, asked),
        Err(error) => tracing::debug!(%error, node = node.0, "a node's vitals make no sense"),
    }
}

/// What is remembered between two looks.
#[derive(Default)]
struct Memory {
    troubles: Vec<Trouble>,
    /// When each group was last seen with a leader.
    led: BTreeMap<ReplicaKey, Duration>,
    offered: BTreeMap<ReplicaKey, Duration>,
}

pub(crate) type ReplicaKey = (u64, ReplicaId);

/// Lets the replicas act as this node's fitness demands, for ever.
pub(crate) async fn act(host: Host) {
    let mut memory = Memory::default();
    let mut look = 0_u32;
    loop {
        tokio::time::sleep(ACT_INTERVAL).await;
        host.fitness().set_withdrawn(is_withdrawn(&host));
        let report = host.fitness().report();
        let mut is_round = look.is_multiple_of(LOOKS_PER_ROUND);
        let mut is_long_round = look.is_multiple_of(LOOKS_PER_LONG_ROUND);
        look = look.wrapping_add(1);
        if report.troubles != memory.troubles {
            say(&memory.troubles, &report.troubles);
            memory.troubles.clone_from(&report.troubles);
            (is_round, is_long_round) = (true, true);
        }
        let own = NodeFitness { disk: report.disk, is_fit: host.fitness().may_lead(&report) };
        let mut replicas = host.replicas();
        replicas.push(host.catalog_replica());
        if is_long_round {
            memory.forget_all_but(&replicas);
        } else {
            replicas.retain(|replica| !replica.is_quiesced());
        }
        for replica in replicas.iter().filter(|replica| !replica.is_quiesced()) {
            replica.keep_silence().await;
        }
        let urgent = |replica: &&Arc<Replica>| is_round || replica.has_lost_quorum();
        let offers = replicas.iter().filter(urgent).filter_map(|replica| {
            let heir = memory.look(&host, replica, own)?;
            Some(hand_over_to(replica, heir))
        });
        let offers: Vec<_> = offers.collect();
        join_all(offers).await;
    }
}

/// Whether the catalog says that this node should lead nothing for now.
fn is_withdrawn(host: &Host) -> bool {
    let catalog = host.catalog();
    let catalog = catalog.borrow();
    catalog
        .nodes
        .get(&host.identity().node_id)
        .is_some_and(|node| node.wish != Wish::Serve || node.state == NodeState::Returning)
}

fn say(before: &[Trouble], now: &[Trouble]) {
    if now.is_empty() {
        tracing::info!("this node may lead again");
    } else {
        tracing::warn!(?before, ?now, "this node gives up its leaderships");
    }
}

impl Memory {
    fn forget_all_but(&mut self, replicas: &[Arc<Replica>]) {
        let here: BTreeSet<ReplicaKey> = replicas.iter().map(|replica| key(replica)).collect();
        self.led.retain(|key, _| here.contains(key));
        self.offered.retain(|key, _| here.contains(key));
    }

    /// Sets what a replica does, and says to whom it should give its leadership now.
    fn look(&mut self, host: &Host, replica: &Replica, own: NodeFitness) -> Option<ReplicaId> {
        let now = host.parts().seams.clock.monotonic();
        let own_id = replica.replica_id();
        let metrics = replica.raft().metrics().borrow_watched().clone();
        let led = self.led.entry(key(replica)).or_insert(now);
        if metrics.current_leader.is_some() {
            *led = now;
        }
        let is_orphaned = ORPHANED_AFTER < now.saturating_sub(*led);
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let nodes: BTreeMap<NodeId, ReplicaId> = membership
            .nodes()
            .filter(|(id, _)| voters.contains(id) && **id != own_id.0)
            .map(|(id, node)| (NodeId(node.node_id), ReplicaId(*id)))
            .collect();
        let matched = |id: &ReplicaId| {
            let matched = metrics.replication.as_ref()?.get(&id.0)?.as_ref()?;
            Some(matched.index)
        };
        let group = GroupView {
            own,
            votes: voters.contains(&own_id.0),
            leads: metrics.state == ServerState::Leader,
            has_lost_quorum: replica.has_lost_quorum(),
            is_orphaned,
            others: nodes
                .iter()
                .map(|(node, id)| (*node, host.fitness().other(*node), matched(id)))
                .collect(),
        };
        let wanted = conduct(&group);
        replica.set_conduct(&wanted);
        let heir = *nodes.get(&wanted.hand_over_to?)?;
        let offered = self.offered.get(&key(replica));
        if offered.is_some_and(|at| now.saturating_sub(*at) < OFFER_PAUSE) {
            return None;
        }
        self.offered.insert(key(replica), now);
        Some(heir)
    }
}

pub(crate) fn key(replica: &Replica) -> ReplicaKey {
    (replica.shard_id().0, replica.replica_id())
}
