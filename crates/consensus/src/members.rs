//! Changes of a shard's members, made by the node that leads it.
//!
//! Each is a compare-and-swap: it names the epoch that it was decided at, and goes into the log only
//! if the group's last membership entry is still that epoch's. Each can be asked for again.
//!
//! A new replica is made on its node and gets a snapshot before the group hears of it: it never
//! replays entries that it has no ground for, and never holds a quorum up.
//!
//! Not here: which changes to make (`placement`), in which order (`server`), what the replica's node
//! does (`host::replicas`), where its snapshot comes from (`seeding`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anchorhold_model::{Epoch, NodeId, ReplicaId, ShardDescriptor, ShardId};
use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::raft::Precondition;
use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::link::CallKind;
use crate::membership::hand_over_to;
use crate::proposer::hint;
use crate::replica::Replica;
use crate::types::{PeerNode, StoredMembership, TypeConfig};
use crate::wire;

/// Longest wait for a node to make or remove a replica.
const MEMBER_CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for an heir to be heard of as leader.
const TAKE_OVER_TIMEOUT: Duration = Duration::from_secs(2);
/// Entries that a voter-to-be or leader-to-be may lack, at most.
const LAG_ENTRIES_MAX: u64 = 128;

/// One change of a shard's members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberChange {
    /// Let a node follow, under a replica id that nobody had.
    AddLearner {
        /// The node.
        node: NodeId,
        /// The new replica's id.
        replica_id: ReplicaId,
    },
    /// Change the voters in one joint change; who votes no more follows.
    ChangeVoters {
        /// Learners that vote then.
        add: Vec<NodeId>,
        /// Voters that do not.
        remove: Vec<NodeId>,
    },
    /// Finish a joint change that someone began.
    LeaveJoint,
    /// Take a learner away.
    RemoveLearner {
        /// Its node.
        node: NodeId,
    },
    /// Let a voter lead.
    TransferLeader {
        /// Its node.
        node: NodeId,
    },
}

/// Why a change was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum MemberError {
    /// Another replica leads.
    #[error("another node leads the shard")]
    NotLeader {
        /// Its node, if known.
        leader: Option<NodeId>,
    },
    /// The shard is at another epoch, or another change of its members is under way.
    #[error("the shard is at epoch {current}, or changes")]
    Moved {
        /// Where it is.
        current: Epoch,
    },
    /// It would do harm now, or cannot be done.
    #[error("{0}")]
    Refused(String),
}

/// What a shard's leader tells a node, and a node the catalog's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum MemberCall {
    /// Make an empty replica.
    Create { descriptor: Box<ShardDescriptor>, replica_id: ReplicaId },
    /// The shard's members are these now.
    Removed { descriptor: Box<ShardDescriptor> },
    /// The calling node's replica of the catalog is this one; it takes part in nothing if it is
    /// lost.
    CatalogStands { replica_id: ReplicaId, is_lost: bool },
}

fn refused(reason: impl ToString) -> MemberError {
    MemberError::Refused(reason.to_string())
}

impl Host {
    /// Changes the members of a shard that this node leads, if it is at `expected`. Gives the epoch
    /// after it.
    ///
    /// # Errors
    /// [`MemberError`]. A change whose outcome got lost is refused in words; it may have been made.
    pub async fn change_members(
        &self,
        shard: ShardId,
        expected: Epoch,
        change: &MemberChange,
    ) -> Result<Epoch, MemberError> {
        let replica = self.replica(shard).ok_or(MemberError::NotLeader { leader: None })?;
        let base = Base::of(&replica, expected)?;
        let is_transfer = matches!(change, MemberChange::TransferLeader { .. });
        if replica.state().merging.is_some() && !is_transfer {
            return Err(refused("the shard is being merged"));
        }
        match change {
            MemberChange::AddLearner { node, replica_id } => {
                self.add_learner(&replica, &base, *node, *replica_id).await?;
            }
            MemberChange::ChangeVoters { add, remove } => {
                self.change_voters(&replica, &base, add, remove).await?;
            }
            MemberChange::LeaveJoint => leave_joint(&replica).await?,
            MemberChange::RemoveLearner { node } => {
                self.remove_learner(&replica, &base, *node).await?;
            }
            MemberChange::TransferLeader { node } => {
                self.transfer_leader(&replica, &base, *node).await?;
            }
        }
        Ok(replica.state().descriptor.epoch)
    }

    async fn add_learner(
        &self,
        replica: &Arc<Replica>,
        base: &Base,
        node: NodeId,
        replica_id: ReplicaId,
    ) -> Result<(), MemberError> {
        if base.id_on(node).is_some() {
            return Ok(());
        }
        let version = replica.state().descriptor.epoch.version;
        self.seed(replica, node, replica_id).await.map_err(refused)?;
        let state = replica.state();
        if state.merging.is_some() || state.descriptor.epoch.version != version {
            // It was given a beginning that what comes next may not follow from.
            return Err(refused("the shard was split or merged meanwhile"));
        }
        let nodes = BTreeMap::from([(replica_id.0, PeerNode { node_id: node.0 })]);
        base.change(replica, ChangeMembers::AddNodes(nodes)).await
    }

    pub(crate) async fn tell_member(&self, node: NodeId, call: &MemberCall) -> Result<(), String> {
        let content = wire::encode(call);
        let answer = self.peers().call(node, CallKind::Member, content, MEMBER_CALL_TIMEOUT).await;
        let answer = answer.map_err(|error| error.to_string())?;
        let answer: Result<(), String> =
            wire::decode("a member's answer", &answer).map_err(|error| error.to_string())?;
        answer.map_err(|reason| format!("node {node}: {reason}"))
    }

    async fn change_voters(
        &self,
        replica: &Arc<Replica>,
        base: &Base,
        add: &[NodeId],
        remove: &[NodeId],
    ) -> Result<(), MemberError> {
        if base.is_joint {
            return Err(refused("a joint change is to be finished first"));
        }
        let mut voters = base.voters.clone();
        for node in remove {
            let id = base.id_on(*node);
            voters.retain(|voter| Some(*voter) != id);
        }
        for node in add {
            let id = base.id_on(*node).ok_or_else(|| refused(format!("{node} has no replica")))?;
            if !base.voters.contains(&id) && !is_close(replica, id) {
                return Err(refused(format!("{node} has not caught up")));
            }
            voters.insert(id);
        }
        if voters == base.voters {
            return Ok(());
        }
        if !voters.contains(&replica.replica_id().0) {
            return Err(refused("the leader is to hand over first"));
        }
        let heard = voters.iter().filter(|id| self.is_heard(base, **id)).count();
        if heard * 2 <= voters.len() {
            return Err(refused("most of the new voters are silent"));
        }
        base.change(replica, ChangeMembers::ReplaceAllVoters(voters)).await
    }

    /// Whether a replica's node was heard of lately.
    fn is_heard(&self, base: &Base, id: u64) -> bool {
        let node = base.nodes.iter().find(|(_, other)| **other == id).map(|(node, _)| *node);
        node.is_some_and(|node| {
            node == self.identity().node_id || self.fitness().other(node).is_some()
        })
    }

    async fn remove_learner(
        &self,
        replica: &Arc<Replica>,
        base: &Base,
        node: NodeId,
    ) -> Result<(), MemberError> {
        let Some(id) = base.id_on(node) else { return Ok(()) };
        if base.voters.contains(&id) {
            return Err(refused(format!("{node} votes")));
        }
        base.change(replica, ChangeMembers::RemoveNodes(BTreeSet::from([id]))).await?;
        // If it does not hear of it now, its copy of the catalog will tell it.
        let call = MemberCall::Removed { descriptor: Box::new(replica.state().descriptor.clone()) };
        let host = self.clone();
        tokio::spawn(async move {
            if let Err(reason) = host.tell_member(node, &call).await {
                tracing::debug!(%node, reason, "a removed replica was not told");
            }
        });
        Ok(())
    }

    async fn transfer_leader(
        &self,
        replica: &Arc<Replica>,
        base: &Base,
        node: NodeId,
    ) -> Result<(), MemberError> {
        if node == self.identity().node_id {
            return Ok(());
        }
        let id = base.id_on(node).filter(|id| base.voters.contains(id));
        let id = id.ok_or_else(|| refused(format!("{node} has no vote")))?;
        if base.is_joint {
            return Err(refused("a joint change is to be finished first"));
        }
        if !is_close(replica, id) {
            return Err(refused(format!("{node} has not caught up")));
        }
        if !self.may_lead(node) {
            return Err(refused(format!("{node} is silent or should not lead")));
        }
        hand_over_to(replica, ReplicaId(id)).await;
        let led = async {
            while replica.leader().is_none_or(|leader| leader.node_id != node) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let led = tokio::time::timeout(TAKE_OVER_TIMEOUT, led).await;
        led.map_err(|_| refused(format!("{node} did not take over")))
    }
}

/// A shard's members as a change finds them.
struct Base {
    membership: StoredMembership,
    is_joint: bool,
    /// Old and new ones in a joint change.
    voters: BTreeSet<u64>,
    nodes: BTreeMap<NodeId, u64>,
}

impl Base {
    /// # Errors
    /// If the replica does not lead, or the shard is not where `expected` says.
    fn of(replica: &Replica, expected: Epoch) -> Result<Self, MemberError> {
        if !replica.is_leader() {
            let leader = replica.leader().map(|leader| leader.node_id);
            return Err(MemberError::NotLeader { leader });
        }
        let header = replica.shared().header.load_full();
        let effective = replica.raft().metrics().borrow_watched().membership_config.clone();
        let current = header.shard.as_ref().map(|shard| shard.descriptor.epoch).unwrap_or_default();
        let applied = header.membership.log_id;
        let is_applied = effective.log_id().as_ref().map(wire::to_wire_log_id) == applied;
        if current != expected || !is_applied {
            return Err(MemberError::Moved { current });
        }
        let membership = effective.membership();
        Ok(Self {
            is_joint: 1 < membership.get_joint_config().len(),
            voters: membership.voter_ids().collect(),
            nodes: membership.nodes().map(|(id, node)| (NodeId(node.node_id), *id)).collect(),
            membership: StoredMembership::clone(&effective),
        })
    }

    fn id_on(&self, node: NodeId) -> Option<u64> {
        self.nodes.get(&node).copied()
    }

    /// Makes a change if nobody made one since.
    async fn change(
        &self,
        replica: &Replica,
        change: ChangeMembers<u64, PeerNode>,
    ) -> Result<(), MemberError> {
        let last_membership_log_id = *self.membership.log_id();
        let unchanged: Precondition<TypeConfig> =
            Precondition::LastMembershipLogId { last_membership_log_id };
        replica.rouse().await;
        let result = replica.raft().change_membership_if(change, true, [unchanged]).await;
        result.map(drop).map_err(|error| member_error(replica, &error))
    }
}

/// Finishes a joint change towards the voters that it was begun for.
pub(crate) async fn leave_joint(replica: &Replica) -> Result<(), MemberError> {
    let metrics = replica.raft().metrics().borrow_watched().clone();
    let configs = metrics.membership_config.membership().get_joint_config().clone();
    let voters = match configs.as_slice() {
        [_, .., last] => last.clone(),
        [_] | [] => return Ok(()),
    };
    let change = ChangeMembers::ReplaceAllVoters(voters);
    replica.rouse().await;
    let result = replica.raft().change_membership(change, true).await;
    result.map(drop).map_err(|error| member_error(replica, &error))
}

fn member_error(
    replica: &Replica,
    error: &RaftError<TypeConfig, ClientWriteError<TypeConfig>>,
) -> MemberError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            let leader = hint(forward.leader_id, forward.leader_node);
            MemberError::NotLeader { leader: leader.map(|leader| leader.node_id) }
        }
        RaftError::APIError(ClientWriteError::PreconditionFailed(_)) => {
            MemberError::Moved { current: replica.state().descriptor.epoch }
        }
        error @ (RaftError::APIError(_) | RaftError::Fatal(_)) => refused(error),
    }
}

/// Whether a follower has what the leader has, but for what is on its way.
pub(crate) fn is_close(replica: &Replica, id: u64) -> bool {
    let metrics = replica.raft().metrics();
    let metrics = metrics.borrow_watched();
    let matched = metrics.replication.as_ref().and_then(|all| all.get(&id)).copied().flatten();
    let last = metrics.last_log_index.unwrap_or(0);
    matched.is_some_and(|matched| last <= matched.index + LAG_ENTRIES_MAX)
}
