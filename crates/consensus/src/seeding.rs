//! Gives a new replica its beginning: a snapshot, from the member that is nearest to its node.
//!
//! The shard's leader decides and asks; a member in the new replica's zone sends, else one in its
//! region, else the leader itself, who does so too when the other cannot. Whoever sends shows the
//! leader's vote: what it sends is committed, and the leader's log goes on from there.
//!
//! Not here: snapshots that Raft itself sends to followers that lag (`network`), and taking one in
//! (`replica`).

use std::sync::Arc;
use std::time::Duration;

use anchorhold_model::catalog::CatalogState;
use anchorhold_model::{NodeId, ReplicaId};
use anchorhold_storage::GroupId;
use anchorhold_storage::snapshot::{SnapshotDigest, SnapshotFile};
use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::link::CallKind;
use crate::members::{MemberCall, is_close};
use crate::network::{Network, SNAPSHOT_TIMEOUT};
use crate::replica::Replica;
use crate::snapshot::{self, SnapshotContent};
use crate::types::PeerNode;
use crate::wire::{self, WireError, WireVote};

/// Longest wait for a snapshot to be built.
const BUILD_TIMEOUT: Duration = Duration::from_secs(120);
/// Time between two looks whether it is.
const BUILD_LOOK: Duration = Duration::from_millis(50);

/// What is sent to whom.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Seed {
    shard: u64,
    incarnation: u32,
    /// The new replica and its node.
    to: u64,
    node: NodeId,
    /// The leader's.
    vote: WireVote,
    /// The shard's bounds that the snapshot must be of.
    version: u32,
    /// The snapshot must reach this index: the leader's log begins behind it.
    index_min: u64,
}

impl Host {
    /// Makes a replica on its node and gives it a snapshot. Seeding it again changes nothing, and goes
    /// on where a broken transfer has ended.
    pub(crate) async fn seed(
        &self,
        replica: &Arc<Replica>,
        node: NodeId,
        replica_id: ReplicaId,
    ) -> Result<(), String> {
        let descriptor = Box::new(replica.state().descriptor.clone());
        let version = descriptor.epoch.version;
        self.tell_member(node, &MemberCall::Create { descriptor, replica_id }).await?;
        let (vote, index_min) = {
            let metrics = replica.raft().metrics();
            let metrics = metrics.borrow_watched();
            (metrics.vote, metrics.purged.as_ref().map_or(0, |id| id.index))
        };
        // Whoever has lost the lead meanwhile may be a candidate by now. openraft takes the sender of
        // a snapshot for the leader of its vote: it must be one.
        if !wire::is_leaders(&vote) {
            return Err("it does not lead any more".to_owned());
        }
        let GroupId { shard, incarnation } = replica.group();
        let (to, vote) = (replica_id.0, (&vote).into());
        let seed = Seed { shard, incarnation, to, node, vote, version, index_min };
        if let Some(source) = self.nearer_source(replica, node) {
            match self.ask_to_send(source, &seed).await {
                Ok(()) => return Ok(()),
                Err(reason) => {
                    tracing::info!(shard, source = source.0, reason, "sending the snapshot itself");
                }
            }
        }
        self.send_seed(replica, &seed).await
    }

    /// A member that is nearer to a node than this one, if there is one that has what the leader has.
    fn nearer_source(&self, replica: &Replica, node: NodeId) -> Option<NodeId> {
        let catalog = self.catalog().borrow().clone();
        let own = distance(&catalog, self.identity().node_id, node);
        let metrics = replica.raft().metrics();
        let members = metrics.borrow_watched().membership_config.membership().clone();
        let others = members.nodes().filter(|(id, _)| **id != replica.replica_id().0);
        let able = others.filter(|(id, other)| {
            self.fitness().other(NodeId(other.node_id)).is_some_and(|other| other.is_fit)
                && is_close(replica, **id)
        });
        let near = able
            .map(|(_, other)| NodeId(other.node_id))
            .map(|id| (distance(&catalog, id, node), id));
        near.min().filter(|(distance, _)| *distance < own).map(|(_, id)| id)
    }

    async fn ask_to_send(&self, source: NodeId, seed: &Seed) -> Result<(), String> {
        let content = wire::encode(seed);
        let answer = self.peers().call(source, CallKind::SendSnapshot, content, SNAPSHOT_TIMEOUT);
        let answer = answer.await.map_err(|error| error.to_string())?;
        wire::decode::<Result<(), String>>("whether a snapshot was sent", &answer)
            .map_err(|error| error.to_string())?
    }

    async fn send_seed(&self, replica: &Arc<Replica>, seed: &Seed) -> Result<(), String> {
        if self.births().is_parent(replica.shard_id()) {
            return Err("children of its split have no snapshot files yet".to_owned());
        }
        let file = current_snapshot(replica, seed).await?;
        let term = file.header.position.map_or(0, |at| at.term);
        if seed.vote.term() < term {
            // openraft takes it for impossible that a leader has entries of a later term.
            return Err(format!("its snapshot is of term {term}, and there is another leader"));
        }
        let parts = self.parts();
        let network = Network::of(parts, replica.group(), Arc::default());
        let client = network.client(seed.to, &PeerNode { node_id: seed.node.0 }, false);
        client.send_snapshot(seed.vote.into(), file).await.map(drop)
    }
}

/// Sends a replica's snapshot to another node, as the shard's leader asks.
pub(crate) async fn answer_send(host: &Host, content: &[u8]) -> Bytes {
    let sent: Result<(), String> = async {
        let seed: Seed =
            wire::decode("a seed", content).map_err(|error: WireError| error.to_string())?;
        let group = GroupId { shard: seed.shard, incarnation: seed.incarnation };
        let replica = host.replica_of_group(group).ok_or("no replica of this group lives here")?;
        replica.may_follow()?;
        host.send_seed(&replica, &seed).await
    }
    .await;
    wire::encode(&sent)
}

/// How many bytes of a snapshot a broken transfer has left here.
///
/// # Errors
/// If the question makes no sense.
pub(crate) fn answer_held(host: &Host, content: &[u8]) -> Result<Bytes, WireError> {
    let (shard, incarnation, digest) = wire::decode("a snapshot's name", content)?;
    let snapshots = &host.parts().seams.snapshots;
    let group = GroupId { shard, incarnation };
    Ok(wire::encode(&snapshots.held_bytes(group, SnapshotDigest(digest))))
}

/// 0 in one zone, 1 in one region, else 2.
fn distance(catalog: &CatalogState, one: NodeId, other: NodeId) -> u8 {
    match (catalog.nodes.get(&one), catalog.nodes.get(&other)) {
        (Some(one), Some(other)) if one.region == other.region => u8::from(one.zone != other.zone),
        _ => 2,
    }
}

/// The replica's latest snapshot, of the shard's present bounds; made if there is none.
async fn current_snapshot(replica: &Arc<Replica>, seed: &Seed) -> Result<SnapshotFile, String> {
    let build = async {
        loop {
            let file = snapshot::current(replica.shared()).map_err(|error| error.to_string())?;
            if seed.version < replica.state().descriptor.epoch.version {
                return Err("the shard was split meanwhile".to_owned());
            }
            if let Some(found) = file
                && version_of(&found.snapshot) == Some(seed.version)
                && found.meta.last_log_id.map_or(0, |id| id.index) >= seed.index_min
            {
                return Ok(found.snapshot);
            }
            replica.raft().trigger().snapshot().await.map_err(|error| error.to_string())?;
            tokio::time::sleep(BUILD_LOOK).await;
        }
    };
    let built = tokio::time::timeout(BUILD_TIMEOUT, build).await;
    built.unwrap_or_else(|_| Err("its snapshot takes too long".to_owned()))
}

fn version_of(file: &SnapshotFile) -> Option<u32> {
    let content: SnapshotContent = wire::decode("a snapshot's header", &file.header.meta).ok()?;
    content.shard.map(|shard| shard.descriptor.epoch.version)
}
