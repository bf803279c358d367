//! Replaces a node's replica of the catalog that may have forgotten a vote.
//!
//! ```text
//! lost ──"I am lost" to the catalog's leader, until it says: no member any more──▶ out
//! out ──card: a later id, nothing kept──▶ log dropped ──card: that id──▶ open, empty log
//! open ──"I am here" to the leader, now and then for good──▶ a member
//! ```
//!
//! The new replica begins with the rows that the old one had applied: they are of committed
//! entries, and until its first entry arrives this node knows the catalog as well as before.
//! Invariant: a node's replicas of the catalog have rising ids, and the one before is in no
//! configuration when the next one begins.
//!
//! Not here: replicas of shards (`members`), which members the catalog should have (`placement`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anchorhold_model::{Epoch, NodeId, ReplicaId};
use anchorhold_storage::snapshot::SnapshotStore;
use anchorhold_storage::{LogStore, LogWrite, StateError};
use openraft::async_runtime::WatchReceiver;
use parking_lot::Mutex;

use crate::birth;
use crate::card::Card;
use crate::fence::Fence;
use crate::host::{CATALOG_GROUP, Host};
use crate::link::CallKind;
use crate::members::MemberCall;
use crate::replica::Replica;
use crate::wire;

/// How often a node looks after its replica of the catalog, and asks for another.
const INTERVAL: Duration = Duration::from_millis(500);
/// A replica that is a member says so only at one of so many looks.
const LOOKS_AS_MEMBER: u32 = 20;
/// How long the catalog's leader may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// Renewals that a node may have gone through without its rows knowing of one as a member.
const FAR_BEYOND: u32 = 64;
/// Where the count of a node's replicas of the catalog stands in their ids.
const GENERATION_SHIFT: u32 = 32;

/// A node's first replica of the catalog. A node's id is never reused, and so neither is this.
pub(crate) fn first_id(node: NodeId) -> ReplicaId {
    ReplicaId::new(1, node.counter())
}

/// The one that comes after.
fn next_id(replica_id: ReplicaId) -> ReplicaId {
    ReplicaId(replica_id.0 + (1 << GENERATION_SHIFT))
}

fn is_first(replica_id: ReplicaId) -> bool {
    replica_id.counter() >> GENERATION_SHIFT == 0
}

/// The node that a replica of the catalog is of.
pub fn node_of_catalog_replica(replica_id: ReplicaId) -> NodeId {
    NodeId::new(replica_id.incarnation(), replica_id.counter() & ((1 << GENERATION_SHIFT) - 1))
}

/// What nodes have said of their replicas of the catalog. Soft: they say it again.
#[derive(Default)]
pub(crate) struct Told(Mutex<BTreeMap<NodeId, Stand>>);

#[derive(Clone, Copy)]
struct Stand {
    replica_id: ReplicaId,
    is_lost: bool,
}

impl Told {
    /// The id that a node's replica has, as far as is known.
    pub(crate) fn id_of(&self, node: NodeId) -> ReplicaId {
        self.0.lock().get(&node).map_or_else(|| first_id(node), |stand| stand.replica_id)
    }

    /// The nodes whose replica takes part in nothing, and those that have another than the member.
    pub(crate) fn lost(&self, members: &BTreeMap<NodeId, ReplicaId>) -> BTreeSet<NodeId> {
        let told = self.0.lock();
        let is_lost = |(node, stand): (&NodeId, &Stand)| {
            // A member with a later id came after what was said.
            let is_lost = match members.get(node) {
                Some(member) if *member == stand.replica_id => stand.is_lost,
                Some(member) => *member < stand.replica_id,
                None => stand.is_lost,
            };
            is_lost.then_some(*node)
        };
        told.iter().filter_map(is_lost).collect()
    }
}

/// Looks after this node's replica of the catalog, for ever.
pub(crate) async fn keep(host: Host) {
    let mut look = 0_u32;
    loop {
        tokio::time::sleep(INTERVAL).await;
        look = look.wrapping_add(1);
        let replica = host.catalog_replica();
        let is_lost = replica.fence() == Some(Fence::Closed);
        let replica_id = replica.replica_id();
        // What it knows of the members may be old, and a leader who was told nothing takes it for
        // the node's first one.
        let is_settled = replica.knows_itself_as_member() && !look.is_multiple_of(LOOKS_AS_MEMBER);
        if !is_lost && (is_first(replica_id) || is_settled) {
            continue;
        }
        if !tell(&host, replica_id, is_lost).await || !is_lost {
            continue;
        }
        if let Err(error) = host.renew_catalog().await {
            host.parts().seams.exit.exit(&format!("the catalog cannot be renewed: {error}"));
            return;
        }
    }
}

/// Tells all nodes how the replica stands. Whether the catalog's leader has it so.
async fn tell(host: &Host, replica_id: ReplicaId, is_lost: bool) -> bool {
    let call = wire::encode(&MemberCall::CatalogStands { replica_id, is_lost });
    for (peer, _) in host.peers().addresses() {
        let answer = host.peers().call(peer, CallKind::Member, call.clone(), ASK_TIMEOUT).await;
        let Ok(answer) = answer else { continue };
        match wire::decode::<Result<(), String>>("a member's answer", &answer) {
            Ok(Ok(())) => return true,
            Ok(Err(reason)) => tracing::debug!(%peer, reason, "the catalog has it otherwise"),
            Err(error) => tracing::debug!(%peer, %error, "no answer about the catalog"),
        }
    }
    false
}

impl Host {
    /// Notes how a node's replica of the catalog stands. Fine once the members are so.
    pub(crate) fn note_catalog_stand(
        &self,
        node: NodeId,
        replica_id: ReplicaId,
        is_lost: bool,
    ) -> Result<(), String> {
        self.told().0.lock().insert(node, Stand { replica_id, is_lost });
        let replica = self.catalog_replica();
        if !replica.is_leader() {
            return Err("this node does not lead the catalog".to_owned());
        }
        // What is applied is committed; the last entry of the log may yet be undone.
        let effective = replica.raft().metrics().borrow_watched().membership_config.clone();
        let applied = replica.shared().header.load_full();
        let applied = applied.membership.log_id;
        if effective.log_id().as_ref().map(wire::to_wire_log_id) != applied {
            return Err("the catalog's members are changing".to_owned());
        }
        let is_member = effective.membership().get_node(&replica_id.0).is_some();
        if is_member == is_lost {
            return Err("the catalog's members are to change first".to_owned());
        }
        Ok(())
    }

    /// Puts an empty replica in the place of one that is lost and no member any more.
    async fn renew_catalog(&self) -> Result<(), StateError> {
        let old = self.catalog_replica();
        let card = Card {
            replica_id: next_id(old.replica_id()).0,
            made_at: Epoch::FIRST.conf_version,
            may_found: false,
            is_gone: true,
            born_of: None,
        };
        let seams = &self.parts().seams;
        tracing::info!(from = %old.replica_id(), "another replica of the catalog takes its place");
        card.write(&seams.snapshots, CATALOG_GROUP)?;
        old.stop("another replica of the catalog takes its place").await;
        let node = self.identity().node_id;
        let replica_id = settled_id(&seams.log, &seams.snapshots, node, None).await?;
        self.set_catalog(Replica::open(self.parts(), CATALOG_GROUP, replica_id, false).await?);
        Ok(())
    }
}

/// The id of a node's replica of the catalog; ends a renewal that a crash has cut. `member` is the
/// latest that its rows or file know of as a member.
///
/// Where the card is damaged, or missing though there was one, nobody knows whether the id that was
/// known last was the last: one is taken that is far beyond.
///
/// # Errors
/// If the card cannot be written or the log fails.
pub(crate) async fn settled_id(
    log: &Arc<dyn LogStore>,
    snapshots: &SnapshotStore,
    node: NodeId,
    member: Option<ReplicaId>,
) -> Result<ReplicaId, StateError> {
    let first = first_id(node);
    let known = member.map_or(first, |member| member.max(first));
    let card = match Card::read(snapshots, CATALOG_GROUP) {
        Ok(None) if known == first => return Ok(first),
        Ok(Some(card)) => card,
        Ok(None) | Err(_) => {
            tracing::error!("the card of the catalog's replica is damaged: another one begins");
            let replica_id = (0..FAR_BEYOND).fold(known, |id, _| next_id(id)).0;
            let made_at = Epoch::FIRST.conf_version;
            let card = Card { replica_id, made_at, may_found: false, is_gone: true, born_of: None };
            card.write(snapshots, CATALOG_GROUP)?;
            card
        }
    };
    if card.is_gone {
        // What the log has is of the one before.
        if log.group(CATALOG_GROUP).is_some() {
            birth::write(log, LogWrite::Drop { group: CATALOG_GROUP }).await?;
        }
        Card { is_gone: false, ..card }.write(snapshots, CATALOG_GROUP)?;
    }
    Ok(ReplicaId(card.replica_id))
}

/// Whether a replica of the catalog may found it: only a node's first one.
pub(crate) fn may_found(replica: &Replica) -> bool {
    is_first(replica.replica_id())
}

#[cfg(test)]
mod tests {
    use anchorhold_storage::{HardState, MemoryLog};

    use super::*;

    const NODE: NodeId = NodeId((1 << 48) + 3);

    fn stand(replica_id: ReplicaId, is_lost: bool) -> Told {
        Told(Mutex::new(BTreeMap::from([(NODE, Stand { replica_id, is_lost })])))
    }

    #[test]
    fn the_ids_of_a_nodes_replicas_rise_and_name_the_node() {
        let first = first_id(NODE);
        let second = next_id(first);
        assert_eq!(first, ReplicaId(NODE.0));
        assert!(first < second && is_first(first) && !is_first(second));
        assert_eq!([first, second, next_id(second)].map(node_of_catalog_replica), [NODE; 3]);
    }

    #[test]
    fn what_a_node_said_of_an_earlier_replica_is_no_news_of_a_later_one() {
        let (first, second) = (first_id(NODE), next_id(first_id(NODE)));
        let is_lost = |told: &Told, member: Option<ReplicaId>| {
            let members = member.map(|id| (NODE, id)).into_iter().collect();
            told.lost(&members).contains(&NODE)
        };
        assert!(!is_lost(&Told::default(), Some(first)));
        assert!(is_lost(&stand(first, true), Some(first)));
        assert!(is_lost(&stand(first, true), None), "it is to begin anew first");
        assert!(is_lost(&stand(second, false), Some(first)));
        assert!(!is_lost(&stand(second, false), None));
        assert!(!is_lost(&stand(second, false), Some(second)));
        assert!(!is_lost(&stand(first, true), Some(second)));
    }

    #[tokio::test]
    async fn a_renewal_that_was_cut_short_is_ended_once() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = SnapshotStore::open(&dir.path().join("snapshots")).unwrap();
        let log: Arc<dyn LogStore> = Arc::new(MemoryLog::new());
        let vote = |term| {
            let hard_state = HardState { term, voted_for: Some(1), committed: true };
            LogWrite::SaveHardState { group: CATALOG_GROUP, hard_state }
        };
        assert_eq!(settled_id(&log, &snapshots, NODE, None).await.unwrap(), first_id(NODE));
        birth::write(&log, vote(4)).await.unwrap();
        let next = next_id(first_id(NODE));
        let card =
            Card { replica_id: next.0, made_at: 1, may_found: false, is_gone: true, born_of: None };
        card.write(&snapshots, CATALOG_GROUP).unwrap();
        assert_eq!(settled_id(&log, &snapshots, NODE, None).await.unwrap(), next);
        assert!(log.group(CATALOG_GROUP).is_none(), "the vote was another replica's");
        // What the new one promises stays.
        birth::write(&log, vote(5)).await.unwrap();
        assert_eq!(settled_id(&log, &snapshots, NODE, None).await.unwrap(), next);
        assert!(log.group(CATALOG_GROUP).is_some());
        // A card that is gone, or makes no sense, says nothing of what came after the last member.
        for damage in [None, Some(&b"no card"[..])] {
            let dir = tempfile::tempdir().unwrap();
            let snapshots = SnapshotStore::open(&dir.path().join("snapshots")).unwrap();
            if let Some(content) = damage {
                snapshots.set_card(CATALOG_GROUP, content).unwrap();
            }
            birth::write(&log, vote(6)).await.unwrap();
            let found = settled_id(&log, &snapshots, NODE, Some(next)).await.unwrap();
            assert!(next_id(next) < found && node_of_catalog_replica(found) == NODE);
            assert!(log.group(CATALOG_GROUP).is_none());
            assert_eq!(settled_id(&log, &snapshots, NODE, Some(next)).await.unwrap(), found);
        }
    }
}
