//! The node: configuration, gRPC services, index upkeep.
//!
//! A write flows: gRPC service ([`api`]) -> [`authorize`] -> [`route`] -> [`forward`] -> propose on
//! the leader ([`serve`]) -> reply. A query flows: service -> authorize -> covering and shards
//! ([`find`]) -> forward -> [`index`] and records (serve) -> merge -> reply. Each is one straight
//! path with one room per step.
//!
//! [`Node::build`] makes the binary's node and the simulated one alike: what differs are the
//! [`NodeSeams`].
//!
//! Not here: agreeing on commands (`consensus`), what they mean (`model`), search within a shard
//! (`localization`).

pub mod api;
pub mod authorize;
pub mod catalog_view;
pub mod clock;
pub mod compare;
pub mod config;
#[cfg(feature = "chaos")]
pub mod chaos;
pub mod core;
mod dial_map;
pub mod disk;
pub mod find;
pub mod forward;
pub mod http;
pub mod identity;
pub mod index;
pub mod inspect;
pub mod layout;
pub mod listen;
pub mod load;
pub mod merge;
pub mod node;
pub mod renew;
pub mod report;
pub mod request;
pub mod route;
pub mod scheduler;
pub mod scrub;
pub mod seams_real;
pub mod serve;
pub mod split;
pub mod survey;
pub mod sweep;
pub mod telemetry;

pub use config::{
    AdminKey, ConfigError, DiskConfig, Limits, LogFormat, NodeConfig, PlacementSettings,
};
pub use listen::{Connection, Listen, Listening};
pub use node::{Addresses, Node, NodeError, NodeSeams, Stores};

/// The version of this binary.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
