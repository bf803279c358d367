use serde::{Deserialize, Serialize};

use super::{AccountState, ApiKey, NodeState, Operator, SchedulerRecord, Wish};
use crate::{
    AccountNumber, ClassId, Epoch, Key, NodeId, RequestId, ShardDescriptor, ShardId, Stamp,
    Timestamp,
};

/// One Raft entry of the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogEntry {
    /// Written by the proposer, so that replicas agree on time.
    pub stamp: Stamp,
    /// In the order in which they arrived.
    pub commands: Vec<CatalogCommand>,
}

/// What to change in the catalog. A command without a request id has one effect however often it
/// is applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CatalogCommand {
    /// Found the cluster.
    Bootstrap {
        /// Random.
        cluster_id: u128,
        /// The cluster's name.
        name: String,
    },
    /// Make a node known, or its new addresses.
    RegisterNode {
        /// The data directory's own random id: the same one always gets the same node id.
        instance: u128,
        /// The region's name.
        region: String,
        /// The zone's name within the region.
        zone: String,
        /// Where other nodes reach it, `host:port`.
        peer_address: String,
        /// Where clients reach it, `host:port`.
        client_address: String,
        /// The release it runs.
        version: String,
    },
    /// Move a node on in its life.
    SetNodeState {
        /// Which.
        node_id: NodeId,
        /// Its new state.
        state: NodeState,
    },
    /// Say what is wanted of a node.
    SetNodeWish {
        /// Which.
        node_id: NodeId,
        /// What is wanted.
        wish: Wish,
        /// Until when its silence is expected.
        maintenance_until: Option<Timestamp>,
    },
    /// Start operators on shards that have none and are not past the epoch that they name.
    StartOperators {
        /// The operators.
        operators: Vec<Operator>,
        /// When they are given up.
        deadline: Timestamp,
    },
    /// Take an operator as through, or given up.
    FinishOperator {
        /// Its shard.
        shard_id: ShardId,
        /// Its number.
        number: u64,
    },
    /// Change what is planned by itself.
    SetScheduler {
        /// What it is then.
        scheduler: SchedulerRecord,
    },
    /// Create an account and lay out its shards.
    CreateAccount {
        /// Names the request.
        request_id: RequestId,
        /// The account's name.
        name: String,
        /// Where its anchors live.
        class: ClassId,
        /// Its first keys, at most two.
        keys: Vec<ApiKey>,
        /// Where the account's key range is cut, rising: `n - 1` cuts make `n` shards. An account's
        /// number is not known before, so a cut's account number is ignored and replaced.
        cuts: Vec<Key>,
        /// The voters' nodes of each shard; the first one is the preferred first leader.
        placements: Vec<Vec<NodeId>>,
    },
    /// Enable or disable an account.
    SetAccountState {
        /// Which.
        account: AccountNumber,
        /// Its new state.
        state: AccountState,
    },
    /// Add a second key.
    AddKey {
        /// Names the request.
        request_id: RequestId,
        /// Whose.
        account: AccountNumber,
        /// The key.
        key: ApiKey,
    },
    /// Add a key; if there were two already, the older one is revoked.
    RotateKey {
        /// Names the request.
        request_id: RequestId,
        /// Whose.
        account: AccountNumber,
        /// The new key.
        key: ApiKey,
    },
    /// Revoke a key.
    RevokeKey {
        /// Names the request.
        request_id: RequestId,
        /// Whose.
        account: AccountNumber,
        /// The key's public part.
        key_id: String,
    },
    /// Cut an empty account anew, before an import. That it is empty is for the proposer to see to.
    LayOut {
        /// Names the request.
        request_id: RequestId,
        /// Whose shards.
        account: AccountNumber,
        /// The account's present shards, all of them, at the epoch where the proposer saw them
        /// empty.
        replaces: Vec<(ShardId, Epoch)>,
        /// The greatest revision at which one of them was retired: the new ones go on from there, so
        /// that what clients have seen of the old ones stays in their past.
        retired_at: u64,
        /// As for `CreateAccount`.
        cuts: Vec<Key>,
        /// As for `CreateAccount`.
        placements: Vec<Vec<NodeId>>,
    },
    /// Index what a shard says about itself.
    UpdateShard {
        /// Its descriptor; taken if its epoch is newer.
        descriptor: Box<ShardDescriptor>,
    },
    /// Give out a shard's id, for a split.
    ReserveShard {
        /// Names the request: a retry gets the same id.
        request_id: RequestId,
    },
    /// Index what several shards say about themselves in one step, so that both sides of a split
    /// come together. Each is taken if its epoch is newer and left alone if not.
    UpdateShards {
        /// Their descriptors.
        descriptors: Vec<ShardDescriptor>,
    },
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CatalogOutcome {
    /// The cluster stands.
    Bootstrapped {
        /// Its id.
        cluster_id: u128,
    },
    /// The node is known.
    NodeRegistered {
        /// Its id.
        node_id: NodeId,
    },
    /// The node is in that state.
    NodeStateSet,
    /// The account stands.
    AccountCreated {
        /// Its number.
        account: AccountNumber,
        /// Its shards, in key order.
        shards: Vec<ShardId>,
    },
    /// The account is in that state.
    AccountStateSet,
    /// The key is valid.
    KeyAdded {
        /// The public part of the key that was revoked for it.
        revoked: Option<String>,
    },
    /// The key is not valid any more.
    KeyRevoked,
    /// The account has new shards.
    LaidOut {
        /// In key order.
        shards: Vec<ShardId>,
    },
    /// The descriptor is in the index.
    ShardUpdated,
    /// The node is wanted so.
    NodeWishSet,
    /// Operators are under way.
    OperatorsStarted {
        /// Of these shards; the others had one, or have changed.
        shards: Vec<ShardId>,
    },
    /// The operator is under way no more.
    OperatorFinished,
    /// The scheduler is set.
    SchedulerSet,
    /// Nothing changed.
    Rejected(CatalogRejection),
    /// The id is given out.
    ShardReserved {
        /// The id.
        shard_id: ShardId,
    },
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum CatalogRejection {
    /// There is no cluster yet.
    #[error("the cluster is not bootstrapped")]
    NotBootstrapped,
    /// There is another cluster.
    #[error("the cluster is bootstrapped already, as {cluster_id:032x}")]
    AlreadyBootstrapped {
        /// Its id.
        cluster_id: u128,
    },
    /// No name; see `is_valid_name`.
    #[error("{name:?} is not a valid name")]
    InvalidName {
        /// What was given, cut to the longest name.
        name: String,
    },
    /// Another account has the name.
    #[error("there is an account {name:?} already")]
    AccountNameTaken {
        /// The name.
        name: String,
    },
    /// No such account.
    #[error("there is no account {}", account.0)]
    AccountNotFound {
        /// Its number.
        account: AccountNumber,
    },
    /// No such class.
    #[error("there is no placement class {class}")]
    ClassNotFound {
        /// Its id.
        class: ClassId,
    },
    /// No such node, or it was removed.
    #[error("there is no node {node_id}")]
    NodeNotFound {
        /// Its id.
        node_id: NodeId,
    },
    /// A node does not change its place: it holds replicas that count on it.
    #[error("node {node_id} is registered in zone {zone} of region {region}")]
    NodeMoved {
        /// The node.
        node_id: NodeId,
        /// Its region.
        region: String,
        /// Its zone.
        zone: String,
    },
    /// A removed node stays removed.
    #[error("node {node_id} was removed from the cluster")]
    NodeRemoved {
        /// Its id.
        node_id: NodeId,
    },
    /// The account has as many keys as it may have.
    #[error("the account has {keys} valid keys already")]
    TooManyKeys {
        /// How many.
        keys: usize,
    },
    /// A key's public part is empty or in use.
    #[error("the key id is empty or in use")]
    InvalidKeyId,
    /// No such key.
    #[error("the account has no such key")]
    KeyNotFound,
    /// Cuts that do not rise or lie outside the account, or placements that do not match them.
    #[error("the layout is not valid: {reason}")]
    InvalidLayout {
        /// What is wrong with it.
        reason: String,
    },
    /// The account's shards are not the ones that were to be replaced.
    #[error("the account's shards have changed")]
    ShardsChanged,
    /// The catalog knows a newer epoch, or another shard of that epoch.
    #[error("the catalog has shard {} at epoch {}", current.shard_id, current.epoch)]
    StaleDescriptor {
        /// What the catalog knows.
        current: Box<ShardDescriptor>,
    },
    /// The shard was replaced; its replicas are to be removed.
    #[error("shard {shard_id} was removed")]
    ShardRemoved {
        /// Its id.
        shard_id: ShardId,
    },
    /// A shard that the catalog gave no id to.
    #[error("shard {shard_id} is not known")]
    ShardNotFound {
        /// Its id.
        shard_id: ShardId,
    },
    /// No number is left.
    #[error("no account number is left")]
    NumbersExhausted,
    /// The request id was used for another command.
    #[error("the request id was used for another command")]
    RequestIdReused,
    /// Too many requests are kept; retry later.
    #[error("too many requests are kept")]
    OperationsFull,
}

impl CatalogCommand {
    /// The name of the request, for commands where a retry could double.
    pub fn request_id(&self) -> Option<RequestId> {
        match self {
            Self::CreateAccount { request_id, .. }
            | Self::AddKey { request_id, .. }
            | Self::RotateKey { request_id, .. }
            | Self::RevokeKey { request_id, .. }
            | Self::LayOut { request_id, .. }
            | Self::ReserveShard { request_id } => Some(*request_id),
            Self::Bootstrap { .. }
            | Self::RegisterNode { .. }
            | Self::SetNodeState { .. }
            | Self::SetNodeWish { .. }
            | Self::StartOperators { .. }
            | Self::FinishOperator { .. }
            | Self::SetScheduler { .. }
            | Self::SetAccountState { .. }
            | Self::UpdateShard { .. }
            | Self::UpdateShards { .. } => None,
        }
    }
}
