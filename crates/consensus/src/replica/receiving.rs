use anchorhold_model::ShardDescriptor;
use anchorhold_proto::peer_v1::SnapshotChunk;
use anchorhold_storage::snapshot::SnapshotDigest;
use bytes::Bytes;
use futures::StreamExt;
use tonic::{Status, Streaming};

use super::Replica;
use crate::network::CHUNK_TIMEOUT;
use crate::snapshot;
use crate::types::{Snapshot, Vote};
use crate::wire::{self, SnapshotHead, WireVote};

impl Replica {
    /// Receives a snapshot file and lets Raft install it. Returns the encoded answer. `is_taken`
    /// says whether another replica on this node owns some of a shard's keys.
    pub(crate) async fn receive_snapshot(
        &self,
        head: &[u8],
        mut chunks: Streaming<SnapshotChunk>,
        is_taken: impl Fn(&ShardDescriptor) -> bool,
    ) -> Result<Bytes, Status> {
        let head: SnapshotHead = wire::decode("a snapshot's head", head)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        if head.to != self.replica_id.0 {
            return Err(Status::not_found("another replica was addressed"));
        }
        let vote: Vote = head.vote.into();
        if !wire::is_leaders(&vote) {
            return Err(Status::failed_precondition("only who leads sends snapshots"));
        }
        if self.shared.births.is_parent(self.shard_id()) {
            // Their beginning lies in this replica's file and log.
            return Err(Status::unavailable("children of this shard have no snapshot file yet"));
        }
        if head.descriptor.as_ref().is_some_and(is_taken) {
            return Err(Status::unavailable("another shard's replica here owns some of the keys"));
        }
        let internal = |error: &dyn std::fmt::Display| Status::internal(error.to_string());
        let snapshots = &self.seams.snapshots;
        let mut receiver = snapshots
            .receive(self.group, SnapshotDigest(head.digest), head.bytes)
            .map_err(|error| internal(&error))?;
        let mut whole = false;
        loop {
            let chunk = tokio::time::timeout(CHUNK_TIMEOUT, chunks.next()).await;
            let chunk = chunk.map_err(|_| Status::aborted("the snapshot's sender fell silent"))?;
            let Some(chunk) = chunk.transpose()? else { break };
            let mut written = Ok(());
            self.seams
                .offload
                .in_place(&mut || written = receiver.write_at(chunk.offset, &chunk.data));
            written.map_err(|error| internal(&error))?;
            if chunk.last {
                whole = true;
                break;
            }
        }
        if !whole {
            return Err(Status::aborted("the snapshot broke off"));
        }
        let (mut receiver, mut adopted) = (Some(receiver), None);
        self.seams.offload.in_place(&mut || {
            adopted = receiver.take().map(|receiver| receiver.finish());
        });
        let file = match adopted {
            Some(Ok(file)) => file,
            Some(Err(error)) => return Err(Status::data_loss(error.to_string())),
            None => return Err(Status::internal("the snapshot was not stored")),
        };
        let meta = snapshot::meta_of(&file).map_err(|error| internal(&error))?;
        if meta.last_log_id.is_some_and(|id| vote.leader_id.term < id.leader_id.term) {
            // openraft takes that for impossible, and ends.
            return Err(Status::failed_precondition("the snapshot is of a later term"));
        }
        let response = self
            .raft
            .install_full_snapshot(vote, Snapshot { meta, snapshot: file })
            .await
            .map_err(|error| internal(&error))?;
        Ok(wire::encode(&WireVote::from(&response.vote)))
    }
}
