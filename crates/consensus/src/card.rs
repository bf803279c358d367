//! What a node keeps of each replica it has or had: its id, how it came to be, whether it is gone.
//!
//! ```text
//! none ──founded (may found)──▶ here ──a newer descriptor without it──▶ gone
//!   └───created (may not)──────▶            gone ──created under a higher id──▶ here
//! ```
//!
//! Invariant: a replica that is gone never comes back, and its id or a lower one is never taken
//! again on this node.

use anchorhold_model::{ReplicaId, ShardDescriptor};
use anchorhold_storage::snapshot::SnapshotStore;
use anchorhold_storage::{GroupId, StateError};
use serde::{Deserialize, Serialize};

use crate::machine::damaged;
use crate::wire;

/// A replica's card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Card {
    pub(crate) replica_id: u64,
    /// The shard's conf version when the replica was made: only a later one can leave it out.
    pub(crate) made_at: u32,
    /// Whether it may found its group: it was there from the shard's first moment.
    pub(crate) may_found: bool,
    pub(crate) is_gone: bool,
    /// Of a split's child: its parent, and the index of the split in the parent's log. The child waits
    /// for a parent that is set back behind it, however little of its keys that one owns then.
    pub(crate) born_of: Option<Birthplace>,
}

/// Where a split's child comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Birthplace {
    pub(crate) parent: u64,
    pub(crate) index: u64,
}

impl Card {
    /// # Errors
    /// If the card cannot be read.
    pub(crate) fn read(
        snapshots: &SnapshotStore,
        group: GroupId,
    ) -> Result<Option<Self>, StateError> {
        let content = snapshots.card(group).map_err(damaged)?;
        content.map(|bytes| wire::decode("a replica's card", &bytes).map_err(damaged)).transpose()
    }

    /// # Errors
    /// If it cannot be stored.
    pub(crate) fn write(self, snapshots: &SnapshotStore, group: GroupId) -> Result<(), StateError> {
        snapshots.set_card(group, &wire::encode(&self)).map_err(damaged)
    }

    /// Whether a replica with this id may be made here.
    pub(crate) fn allows(self, replica_id: ReplicaId) -> bool {
        self.replica_id < replica_id.0 || (self.replica_id == replica_id.0 && !self.is_gone)
    }

    /// Whether a descriptor proves that the replica is no member any more.
    pub(crate) fn is_left_out_by(self, group: GroupId, descriptor: &ShardDescriptor) -> bool {
        descriptor.shard_id.0 == group.shard
            && descriptor.epoch.incarnation == group.incarnation
            && self.made_at < descriptor.epoch.conf_version
            && descriptor.replica(ReplicaId(self.replica_id)).is_none()
    }
}

#[cfg(test)]
mod tests {
    use anchorhold_model::{ClassId, Epoch, KeyRange, NodeId, ShardId};

    use super::*;

    const GROUP: GroupId = GroupId { shard: 7, incarnation: 1 };

    fn descriptor(conf_version: u32) -> ShardDescriptor {
        let nodes = [NodeId(1), NodeId(2)];
        let found = ShardDescriptor::found(ShardId(7), KeyRange::FULL, ClassId(1), &nodes);
        ShardDescriptor { epoch: Epoch { conf_version, ..Epoch::FIRST }, ..found }
    }

    fn card(replica_id: ReplicaId, made_at: u32) -> Card {
        Card { replica_id: replica_id.0, made_at, may_found: false, is_gone: false, born_of: None }
    }

    #[test]
    fn only_a_later_descriptor_of_the_same_incarnation_proves_that_a_replica_is_gone() {
        let newcomer = card(ReplicaId::new(1, 16), 5);
        for (conf_version, is_proof) in [(4, false), (5, false), (6, true), (9, true)] {
            assert_eq!(newcomer.is_left_out_by(GROUP, &descriptor(conf_version)), is_proof);
        }
        let mut refounded = descriptor(9);
        refounded.epoch.incarnation = 2;
        assert!(!newcomer.is_left_out_by(GROUP, &refounded), "its tail is still to be exported");
        assert!(!card(ReplicaId::new(1, 2), 1).is_left_out_by(GROUP, &descriptor(9)));
        let other = GroupId { shard: 8, ..GROUP };
        assert!(!newcomer.is_left_out_by(other, &descriptor(9)));
    }

    #[test]
    fn a_replica_that_is_gone_is_never_made_again() {
        let here = card(ReplicaId(5), 1);
        let gone = Card { is_gone: true, ..here };
        assert!(here.allows(ReplicaId(5)) && here.allows(ReplicaId(6)));
        assert!(!here.allows(ReplicaId(4)));
        assert!(!gone.allows(ReplicaId(5)) && gone.allows(ReplicaId(6)));
    }
}
