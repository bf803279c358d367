//! The concrete openraft types. All of openraft's generics are instantiated in this crate.

use std::fmt;
use std::sync::Arc;

use anchorhold_model::Outcome;
use anchorhold_model::catalog::CatalogOutcome;
use bytes::Bytes;
use openraft::vote::RaftLeaderId;
use serde::{Deserialize, Serialize};

use crate::machine::Machine;

openraft::declare_raft_types!(
    /// Types of every group: opaque payloads, replica ids as openraft's node ids.
    pub(crate) TypeConfig:
        D = Payload,
        R = Reply,
        NodeId = u64,
        Node = PeerNode,
        Term = u64,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = crate::runtime::NodeRuntime,
);

pub(crate) type Raft = openraft::Raft<TypeConfig, Machine>;
pub(crate) type Committed =
    <openraft::impls::leader_id_std::LeaderId<u64, u64> as RaftLeaderId>::Committed;
pub(crate) type LogId = openraft::LogId<Committed>;
pub(crate) type Vote = openraft::Vote<openraft::impls::leader_id_std::LeaderId<u64, u64>>;
pub(crate) type Membership = openraft::Membership<u64, PeerNode>;
pub(crate) type StoredMembership = openraft::StoredMembership<Committed, u64, PeerNode>;
pub(crate) type EntryPayload = openraft::EntryPayload<Payload, u64, PeerNode>;
pub(crate) type Entry = openraft::Entry<Committed, EntryPayload>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<Committed, u64, PeerNode>;
pub(crate) type Snapshot =
    openraft::Snapshot<Committed, u64, PeerNode, anchorhold_storage::snapshot::SnapshotFile>;
pub(crate) type AppendRequest = openraft::raft::AppendEntriesRequest<TypeConfig>;
pub(crate) type AppendResult = openraft::raft::StreamAppendResult<TypeConfig>;
pub(crate) type VoteRequest = openraft::raft::VoteRequest<TypeConfig>;
pub(crate) type VoteResponse = openraft::raft::VoteResponse<TypeConfig>;

/// Where a replica lives, as a membership entry says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PeerNode {
    pub(crate) node_id: u64,
}

/// The bytes of a normal entry, exactly as they stand in the log and on the wire: the kind byte
/// [`crate::wire::KIND_NORMAL`], then what `model::row` encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Payload(pub(crate) Bytes);

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// What applying an entry answered.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// Blank and membership entries.
    None,
    /// One outcome per command.
    Shard(Arc<Vec<Outcome>>),
    /// The catalog's answer.
    Catalog(Arc<CatalogOutcome>),
}

pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId { leader_id: Committed::new(term), index }
}
