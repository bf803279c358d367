use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::CatalogOutcome;
use crate::{AccountNumber, ClassId, NodeId, RequestId, Timestamp};

/// The cluster itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// Random, so that clusters that share addresses never mix.
    pub cluster_id: u128,
    /// Its name.
    pub name: String,
    /// Rises when a region is re-founded.
    pub epoch: u16,
    /// When it was founded.
    pub create_time: Timestamp,
}

/// A geography.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionRecord {
    /// Its name.
    pub name: String,
    /// The region that takes over when this one is lost.
    pub pair: Option<String>,
}

/// A failure domain within a region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneRecord {
    /// The region's name.
    pub region: String,
    /// Its name within the region.
    pub name: String,
}

/// Where a node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NodeState {
    /// Registered, not yet seen to serve.
    Joining,
    /// Serves.
    Up,
    /// Silent for a moment.
    Suspect,
    /// Silent for long enough that its replicas are rebuilt elsewhere.
    Down,
    /// Back after it was down.
    Returning,
    /// Gives its leaderships away, to be stopped for a while.
    Draining,
    /// Gives its replicas away, to leave.
    Decommissioning,
    /// Left for good.
    Removed,
}

/// What its operator wants of a node.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Wish {
    /// To serve.
    #[default]
    Serve,
    /// To lead nothing, so that it can be stopped for a while.
    Drain,
    /// To hold nothing, so that it can be taken away.
    Leave,
}

/// A process and its disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its id.
    pub node_id: NodeId,
    /// The data directory's own random id: the same directory is the same node.
    pub instance: u128,
    /// The region's name.
    pub region: String,
    /// The zone's name within the region.
    pub zone: String,
    /// Where other nodes reach it, `host:port`.
    pub peer_address: String,
    /// Where clients reach it, `host:port`.
    pub client_address: String,
    /// The release it runs.
    pub version: String,
    /// Where it is in its life.
    pub state: NodeState,
    /// What its operator wants of it.
    pub wish: Wish,
    /// Until when its silence is expected and nothing is rebuilt for it.
    pub maintenance_until: Option<Timestamp>,
}

/// What must survive what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClassKind {
    /// 3 voters over 3 zones of the home region.
    Zonal,
    /// As zonal, with learners in the paired region.
    Paired {
        /// The region with the learners.
        pair: String,
        /// A third region whose lease decides a failover, if there is one.
        witness: Option<String>,
    },
    /// 5 voters over 3 regions.
    Regional,
    /// As zonal, and nothing ever outside a set of regions.
    Pinned {
        /// The regions that may hold anything.
        residency: BTreeSet<String>,
    },
}

/// A placement class, and the account numbers it hands out: a block at a time, so that a range of
/// accounts is of one class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassRecord {
    /// Its id.
    pub class_id: ClassId,
    /// Its name.
    pub name: String,
    /// What must survive what.
    pub kind: ClassKind,
    /// The region of the voters; unset until the first node registers.
    pub home: Option<String>,
    /// The next account number of the current block.
    pub account_next: u32,
    /// First number after the block.
    pub account_end: u32,
}

/// Whether an account is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum AccountState {
    /// Served.
    Active,
    /// Refused, its anchors are kept.
    Disabled,
}

/// A valid API key of an account, without the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    /// The key's public part, by which it is looked up. Unique in the cluster.
    pub key_id: String,
    /// SHA-256 of the whole key.
    pub hash: [u8; 32],
    /// When it was added; set by `apply`.
    pub create_time: Timestamp,
}

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountRecord {
    /// Its number.
    pub account: AccountNumber,
    /// Its name, unique in the cluster.
    pub name: String,
    /// Where its anchors live.
    pub class: ClassId,
    /// Whether it is served.
    pub state: AccountState,
    /// The keys that are valid now, oldest first.
    pub keys: Vec<ApiKey>,
    /// When it was created.
    pub create_time: Timestamp,
}

/// What a request did, kept so that a retry gets the same answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogOperation {
    /// The request.
    pub request_id: RequestId,
    /// Digest of the command, to tell a retry from another command under the same id.
    pub digest: u64,
    /// Catalog time when it was applied.
    pub time: Timestamp,
    /// What it did.
    pub outcome: CatalogOutcome,
}

/// What the catalog counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Counter of the next node's id.
    pub next_node: u64,
    /// Counter of the next shard's id.
    pub next_shard: u64,
    /// First account number of the next block.
    pub next_account_block: u32,
    /// Number of the next operator.
    pub next_operator: u64,
    /// Count of changes.
    pub revision: u64,
    /// The largest leader's time seen at a change.
    pub time: Timestamp,
}

/// Counting starts at 1: number 0 is the catalog's shard, and no account.
impl Default for Counters {
    fn default() -> Self {
        Self {
            next_node: 1,
            next_shard: 1,
            next_account_block: 1,
            next_operator: 1,
            revision: 0,
            time: Timestamp(0),
        }
    }
}
