//! Many Raft groups on one node.
//!
//! A [`Host`] runs one openraft instance per replica over one shared log, one state store and one
//! [`peer link`](link) per pair of nodes. It proposes commands, applies what was committed with the
//! pure `model::apply`, feeds the changes to derived indexes, and answers when a read is allowed.
//! openraft's types never leave this crate.
//!
//! Invariants: an acknowledged write is durable in the shared logs of a majority of the shard's
//! voters; an entry is applied only after this node's own log has fsynced it; the log is purged
//! only below a verified snapshot file.
//!
//! Not here: what commands mean (`model`), where replicas should live (`placement`), gRPC for
//! clients (`server`).

/// Reaches a named place at which a fault harness can stop the node. Without the feature `chaos`
/// it is nothing at all.
macro_rules! failpoint {
    ($hooks:expr, $name:literal) => {
        #[cfg(feature = "chaos")]
        $hooks.reach($name);
    };
}

pub mod config;
pub mod error;
pub mod fitness;
pub mod fence;
#[cfg(feature = "chaos")]
pub mod hooks;
pub mod host;
pub mod inspect;
pub mod link;
pub mod read;
pub mod replica;
pub mod seams;

mod card;
mod birth;
mod catalog_calls;
mod digest;
mod join;
mod keys;
mod log;
mod log_watch;
mod machine;
mod members;
mod membership;
mod merge;
mod network;
mod pace;
mod proposer;
mod quiescence;
mod reads;
mod renewal;
mod row_count;
mod runtime;
mod seeding;
mod shard_upkeep;
mod shard_index;
mod snapshot;
mod split;
mod stamp;
mod types;
mod upkeep;
mod wire;

#[cfg(test)]
mod suite_tests;

pub use config::{ConsensusConfig, Identity};
pub use digest::{DigestError, ReplicaDigest};
pub use error::{CallError, ProposeError, ReadError};
pub use fence::Fence;
pub use fitness::{FitnessReport, Trouble};
pub use host::{BrokenReplica, CallHandler, Host, HostStart, Listener, NodeRegistration, founder};
pub use join::{JoinError, join};
pub use members::{MemberChange, MemberError};
pub use merge::MergeError;
pub use read::{ReadLevel, ReadView};
pub use renewal::node_of_catalog_replica;
pub use replica::{LeaderHint, Replica, ReplicaStatus, Role};
pub use seams::{Clock, Dial, Exit, Offload, Seams};
pub use split::{SplitDone, SplitError};
