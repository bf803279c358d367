//! Shards: one Raft group over one key range, and what describes them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Key, KeyRange, RequestId, Timestamp};

/// A shard's id: (cluster epoch: 16, counter: 48). The catalog is shard 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardId(pub u64);

/// A node's id, given by the catalog. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u64);

/// A replica's id within its shard: (incarnation: 16, counter: 48). Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaId(pub u64);

/// A placement class's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClassId(pub u32);

/// What a replica may do in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ReplicaRole {
    /// Counts in the quorum.
    Voter,
    /// Receives the log only.
    Learner,
}

/// A shard's copy on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Replica {
    /// Its id in the group.
    pub replica_id: ReplicaId,
    /// Where it lives.
    pub node_id: NodeId,
    /// What it may do.
    pub role: ReplicaRole,
}

/// Version of a shard's bounds and members.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch {
    /// Rises when the shard is re-founded after losing its quorum.
    pub incarnation: u32,
    /// Rises with each split and merge.
    pub version: u32,
    /// Rises with each membership entry.
    pub conf_version: u32,
}

/// What a shard says about itself, in its own replicated state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardDescriptor {
    /// Its id.
    pub shard_id: ShardId,
    /// The keys it owns.
    pub range: KeyRange,
    /// Where its replicas must live.
    pub class: ClassId,
    /// Its replicas, ordered by replica id.
    pub replicas: Vec<Replica>,
    /// The next replica id's counter.
    pub next_replica: u64,
    /// Version of all of the above.
    pub epoch: Epoch,
    /// Revision that it was founded at: its keys had no greater one before.
    pub founded_at: u64,
}

/// The replicated state of a shard beside its records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardState {
    /// Bounds, members, epoch.
    pub descriptor: ShardDescriptor,
    /// Count of changes.
    pub revision: u64,
    /// The largest leader's time seen.
    pub shard_time: Timestamp,
    /// Anchors stored, expired ones that still have their row included.
    pub anchors: u64,
    /// Bytes of the stored rows, keys included.
    pub bytes: u64,
    /// Dedup entries stored.
    pub operations: u64,
    /// Whether it takes no write any more, because another layout is to take its place.
    pub retired: bool,
    /// Its part in a merge that is under way.
    pub merging: Option<Merging>,
    /// Merges by which it took a neighbour in, the last ones: whoever asks late learns of it.
    pub absorbed: Vec<RequestId>,
    /// Merges that it will not take part in, as their target: whatever of them comes late is refused.
    pub forgone: Vec<RequestId>,
}

/// A shard's part in a merge. A merge's id is that of one attempt: random, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Merging {
    /// It is about to take its right neighbour in: it is not split, and its members stay.
    Awaits {
        /// The attempt.
        merge: RequestId,
        /// The neighbour.
        source: ShardId,
    },
    /// Nothing of it changes any more, and nothing is read: its left neighbour is about to own its
    /// keys. Only that one's word undoes this.
    Frozen {
        /// The attempt.
        merge: RequestId,
        /// The neighbour.
        target: ShardId,
    },
}

/// Bits of an id's counter.
const COUNTER_BITS: u32 = 48;
/// Largest counter of an id.
pub const COUNTER_MAX: u64 = (1 << COUNTER_BITS) - 1;

/// An id from its high 16 bits and its counter, which is cut to 48 bits: handed out one by one, a
/// counter does not get there.
fn id_from_parts(high: u16, counter: u64) -> u64 {
    u64::from(high) << COUNTER_BITS | counter & COUNTER_MAX
}

fn high_part(id: u64) -> u16 {
    (id >> COUNTER_BITS & 0xffff) as u16
}

/// `s12` in the first epoch or incarnation, `s12.3` in the third.
fn write_id(f: &mut fmt::Formatter<'_>, letter: char, id: u64) -> fmt::Result {
    match high_part(id) {
        0 | 1 => write!(f, "{letter}{}", id & COUNTER_MAX),
        high => write!(f, "{letter}{}.{high}", id & COUNTER_MAX),
    }
}

impl ShardId {
    /// The shard that holds the cluster's own facts.
    pub const CATALOG: Self = Self(0);

    /// The id with a counter, given out in a cluster epoch.
    pub fn new(cluster_epoch: u16, counter: u64) -> Self {
        Self(id_from_parts(cluster_epoch, counter))
    }

    /// The cluster epoch in which the id was given out.
    pub fn cluster_epoch(self) -> u16 {
        high_part(self.0)
    }

    /// Its number within that epoch.
    pub fn counter(self) -> u64 {
        self.0 & COUNTER_MAX
    }
}

impl NodeId {
    /// The id with a counter, given out in a cluster epoch.
    pub fn new(cluster_epoch: u16, counter: u64) -> Self {
        Self(id_from_parts(cluster_epoch, counter))
    }

    /// The cluster epoch in which the id was given out.
    pub fn cluster_epoch(self) -> u16 {
        high_part(self.0)
    }

    /// Its number within that epoch.
    pub fn counter(self) -> u64 {
        self.0 & COUNTER_MAX
    }
}

impl ReplicaId {
    /// The id with a counter, given out in an incarnation of the shard.
    pub fn new(incarnation: u16, counter: u64) -> Self {
        Self(id_from_parts(incarnation, counter))
    }

    /// The shard's incarnation in which the id was given out.
    pub fn incarnation(self) -> u16 {
        high_part(self.0)
    }

    /// Its number within that incarnation.
    pub fn counter(self) -> u64 {
        self.0 & COUNTER_MAX
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_id(f, 's', self.0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_id(f, 'n', self.0)
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_id(f, 'r', self.0)
    }
}

impl fmt::Display for ClassId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}", self.0)
    }
}

/// Incarnation, version and conf version: `1.4.2`.
impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.incarnation, self.version, self.conf_version)
    }
}

impl Epoch {
    /// The epoch of a shard that was just founded.
    pub const FIRST: Self = Self { incarnation: 1, version: 1, conf_version: 1 };

    /// Whether a request routed by this epoch may act on a shard that is at `current`: the bounds
    /// must be the same, the members need not be.
    pub fn routes_to(self, current: Self) -> bool {
        (self.incarnation, self.version) == (current.incarnation, current.version)
    }
}

impl ShardDescriptor {
    /// A shard as it is founded where no shard was before: every node gets a voter, in this order of
    /// replica ids.
    pub fn found(shard_id: ShardId, range: KeyRange, class: ClassId, voters: &[NodeId]) -> Self {
        let replicas = (1..).zip(voters).map(|(counter, node_id)| Replica {
            replica_id: ReplicaId::new(1, counter),
            node_id: *node_id,
            role: ReplicaRole::Voter,
        });
        let replicas: Vec<Replica> = replicas.collect();
        let next_replica = replicas.len() as u64 + 1;
        Self { shard_id, range, class, replicas, next_replica, epoch: Epoch::FIRST, founded_at: 0 }
    }

    /// Both sides of a split at a key within the range: this shard with what lies before it, and a
    /// child with the rest. The child's replicas live where this shard's do, under fresh ids. Both
    /// have the next version; the child keeps the incarnation, so that its anchors' versions go on.
    pub fn split(&self, at: Key, child: ShardId) -> (Self, Self) {
        let version = self.epoch.version.saturating_add(1);
        let incarnation = self.epoch.incarnation;
        let mut parent = self.clone();
        parent.range.end = Some(at);
        parent.epoch.version = version;
        // An incarnation has 16 bits in an id; it rises only by hand.
        let high = u16::try_from(incarnation).unwrap_or(u16::MAX);
        let replicas = (1..).zip(&self.replicas).map(|(counter, replica)| Replica {
            replica_id: ReplicaId::new(high, counter),
            ..*replica
        });
        let replicas: Vec<Replica> = replicas.collect();
        let child = Self {
            shard_id: child,
            range: KeyRange { start: at, end: self.range.end },
            class: self.class,
            next_replica: replicas.len() as u64 + 1,
            replicas,
            epoch: Epoch { incarnation, version, conf_version: 1 },
            founded_at: self.founded_at,
        };
        (parent, child)
    }

    /// Whether this shard owns keys that were another's, which is no more: it has that one's first
    /// key at a later version. Versions rise along the owners of a key, and a shard owns its first
    /// key from its birth to its end.
    pub fn supersedes(&self, other: &Self) -> bool {
        self.shard_id != other.shard_id
            && self.epoch.incarnation == other.epoch.incarnation
            && other.epoch.version < self.epoch.version
            && self.range.contains(other.range.start)
    }

    /// This shard after it has taken its right neighbour in.
    pub fn merge(&self, right: &Self) -> Self {
        let mut merged = self.clone();
        merged.range.end = right.range.end;
        merged.epoch.version = self.epoch.version.max(right.epoch.version).saturating_add(1);
        merged
    }

    /// Whether both have replicas of the same roles on the same nodes.
    pub fn is_aligned_with(&self, other: &Self) -> bool {
        let places = |shard: &Self| {
            let places = shard.replicas.iter().map(|replica| (replica.node_id, replica.role));
            places.collect::<std::collections::BTreeSet<_>>()
        };
        places(self) == places(other)
    }

    /// The replica on a node.
    pub fn replica_on(&self, node_id: NodeId) -> Option<Replica> {
        self.replicas.iter().copied().find(|replica| replica.node_id == node_id)
    }

    /// The replica with an id.
    pub fn replica(&self, replica_id: ReplicaId) -> Option<Replica> {
        self.replicas.iter().copied().find(|replica| replica.replica_id == replica_id)
    }

    /// The replicas that vote, ordered by replica id.
    pub fn voters(&self) -> impl Iterator<Item = Replica> {
        self.replicas.iter().copied().filter(|replica| replica.role == ReplicaRole::Voter)
    }
}

impl ShardState {
    /// Whether a merge has stopped it.
    pub fn is_frozen(&self) -> bool {
        matches!(self.merging, Some(Merging::Frozen { .. }))
    }

    /// The state of a shard that holds nothing yet.
    pub fn new(descriptor: ShardDescriptor) -> Self {
        Self {
            revision: descriptor.founded_at,
            descriptor,
            shard_time: Timestamp(0),
            anchors: 0,
            bytes: 0,
            operations: 0,
            retired: false,
            merging: None,
            absorbed: Vec::new(),
            forgone: Vec::new(),
        }
    }
}

/// The state after a membership entry: `conf_version` rises iff the members changed, and no replica
/// id that was ever used is given out again.
pub fn apply_membership(state: &ShardState, mut replicas: Vec<Replica>) -> ShardState {
    replicas.sort_by_key(|replica| replica.replica_id);
    let mut next = state.clone();
    if replicas == next.descriptor.replicas {
        return next;
    }
    let highest = replicas.iter().map(|replica| replica.replica_id.counter()).max();
    next.descriptor.next_replica =
        next.descriptor.next_replica.max(highest.map_or(1, |counter| counter + 1));
    next.descriptor.epoch.conf_version = next.descriptor.epoch.conf_version.saturating_add(1);
    next.descriptor.replicas = replicas;
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_hold_and_show_their_parts() {
        let id = ShardId::new(3, 12);
        assert_eq!((id.cluster_epoch(), id.counter()), (3, 12));
        assert_eq!(format!("{} {} {}", ShardId::new(1, 12), id, ShardId::CATALOG), "s12 s12.3 s0");
        assert_eq!(NodeId::new(1, 3).to_string(), "n3");
        assert_eq!(ReplicaId::new(2, 1).to_string(), "r1.2");
        assert!(ReplicaId::new(1, COUNTER_MAX) < ReplicaId::new(2, 0));
    }

    #[test]
    fn members_change_the_conf_version_and_ids_are_not_given_twice() {
        let nodes = [NodeId(1), NodeId(2), NodeId(3)];
        let descriptor = ShardDescriptor::found(ShardId(1), KeyRange::FULL, ClassId(1), &nodes);
        let state = ShardState::new(descriptor);
        let same = state.descriptor.replicas.iter().rev().copied().collect();
        assert_eq!(apply_membership(&state, same), state);
        let mut replicas = state.descriptor.replicas.clone();
        replicas.remove(0);
        let replica_id = ReplicaId::new(1, 4);
        let learner = Replica { replica_id, node_id: NodeId(9), role: ReplicaRole::Learner };
        replicas.insert(0, learner);
        let next = apply_membership(&state, replicas).descriptor;
        assert_eq!((next.epoch.conf_version, next.next_replica), (2, 5));
        assert_eq!(next.replicas.last(), Some(&learner));
        assert_eq!(next.voters().count(), 2);
        assert_eq!(next.replica_on(NodeId(9)), Some(learner));
    }
}
