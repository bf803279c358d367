use anchorhold_model::{NodeId, ReplicaId, ShardDescriptor, ShardId};
use anchorhold_storage::snapshot::{SnapshotFile, verify};
use anchorhold_storage::{GroupId, StateError};

use super::NodeParts;
use crate::keys;
use crate::machine::{Header, damaged};
use crate::snapshot::SnapshotContent;
use crate::wire;

/// What a node has of a group's state before it is opened.
pub(crate) struct Standing {
    /// The header row.
    pub(super) stored: Option<Header>,
    /// The latest snapshot file. A newborn has none.
    pub(super) file: Option<(SnapshotFile, SnapshotContent)>,
    /// Whether the state goes on from the header row; else from the file.
    pub(super) is_stored_good: bool,
    pub(super) purged_end: u64,
}

impl Standing {
    pub(crate) fn read(parts: &NodeParts, group: GroupId) -> Result<Self, StateError> {
        let shard_id = ShardId(group.shard);
        let state = &parts.seams.state;
        let stored: Option<Header> = match state.get(&keys::header(shard_id))? {
            Some(row) => Some(wire::decode("a header row", &row).map_err(damaged)?),
            None => None,
        };
        let file = match parts.seams.snapshots.latest(group).map_err(damaged)? {
            Some(file) => {
                let content =
                    wire::decode("a snapshot's header", &file.header.meta).map_err(damaged)?;
                Some((file, content))
            }
            None => None,
        };
        let end = |id: Option<u64>| id.map_or(0, |index| index + 1);
        let applied = stored.as_ref().and_then(|header| header.applied).map(|id| id.1);
        let filed = file.as_ref().and_then(|(file, _)| file.header.position).map(|at| at.index);
        let purged = parts.seams.log.group(group).and_then(|log| log.purged).map(|at| at.index);
        let is_unfinished = state.get(&keys::installing(shard_id))?.is_some();
        let is_stored_good = stored.is_some()
            && !is_unfinished
            && end(filed) <= end(applied)
            && end(purged) <= end(applied);
        Ok(Self { stored, file, is_stored_good, purged_end: end(purged) })
    }

    /// Why no replica can be opened from this; `None` if one can. Reads the whole file if the state is
    /// to be rebuilt from it.
    pub(crate) fn unusable(&self) -> Result<Option<String>, StateError> {
        if !self.is_stored_good
            && let Some((file, _)) = &self.file
        {
            match verify(&file.path) {
                Ok(_) => {}
                Err(error) if error.is_damage() => return Ok(Some(error.to_string())),
                Err(error) => return Err(damaged(error)),
            }
        }
        let reason = "its log begins after its snapshot file and its state";
        Ok((self.applied_end() < self.purged_end).then(|| reason.to_owned()))
    }

    /// The header that is known before anything is loaded.
    pub(super) fn header(&self) -> Header {
        match (&self.stored, &self.file) {
            (Some(stored), _) => stored.clone(),
            (None, Some((_, content))) => Header {
                applied: None,
                membership: content.membership.clone(),
                shard: content.shard.clone(),
            },
            (None, None) => Header::default(),
        }
    }

    /// The latest replica of the catalog that a node has as a member, by what is known here.
    pub(crate) fn catalog_member(&self, node: NodeId) -> Option<ReplicaId> {
        let file = self.file.as_ref().map(|(_, content)| &content.membership);
        let stored = self.stored.as_ref().map(|header| &header.membership);
        let all = [stored, file].into_iter().flatten();
        let own = all.flat_map(|stored| stored.membership.nodes.iter());
        own.filter(|(_, peer)| peer.node_id == node.0).map(|(id, _)| ReplicaId(*id)).max()
    }

    /// One past the index that the replica opens at; 0 if it has nothing yet.
    pub(crate) fn applied_end(&self) -> u64 {
        let stored = self.stored.as_ref().filter(|_| self.is_stored_good);
        let applied = match (stored, &self.file) {
            (Some(header), _) => header.applied.map(|(_, index)| index),
            (None, Some((file, _))) => file.header.position.map(|at| at.index),
            (None, None) => None,
        };
        applied.map_or(0, |index| index + 1)
    }

    /// The shard as the replica opens it; `None` if there is nothing that says so.
    pub(crate) fn descriptor(&self) -> Option<&ShardDescriptor> {
        let stored = self.stored.as_ref().filter(|_| self.is_stored_good);
        let shard = match (stored, &self.file) {
            (Some(header), _) => header.shard.as_ref(),
            (None, Some((_, content))) => content.shard.as_ref(),
            (None, None) => None,
        };
        shard.map(|shard| &shard.descriptor)
    }
}
