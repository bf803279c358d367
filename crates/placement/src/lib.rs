//! Decides where replicas live.
//!
//! Everything here is a pure function of a view of the cluster: equal views give equal answers, and
//! ties end in an id. Diversity comes first, balance after.
//!
//! [`plan()`] says what a running cluster needs, and why it does not do the rest; [`lifecycle`] when
//! a node counts as dead; [`headroom`] what the loss of a zone would do; [`place()`] where a new
//! shard begins, and [`catalog_voters`] who votes in the catalog. [`simulation`] carries plans out
//! on a cluster that exists in memory only.
//!
//! Not here: collecting views, and carrying decisions out (`server`, `consensus`); what a replica
//! is (`model`).

pub mod config;
pub mod view;
pub mod operator;
pub mod plan;
pub mod potential;
pub mod progress;
pub mod lifecycle;
pub mod headroom;
pub mod simulation;
pub mod catalog;
pub mod place;
mod survey;
mod shard;
mod rules;
mod balance;
mod merge;

pub use catalog::{CatalogMember, CatalogStep, catalog_voters};
pub use config::PlacementConfig;
pub use merge::merge_left;
pub use operator::{Limit, Plan, Refusal, WhyNot};
pub use place::{place, place_shards};
pub use plan::plan;
pub use potential::{Potential, potential};
pub use progress::{ShardNow, progress};
pub use view::{ClassView, ClusterView, DiskState, NodeStatus, ReplicaStatus, ShardStatus, Tally};

pub use anchorhold_model::catalog::{Operator, Reason, Step, Wish};

use anchorhold_model::NodeId;

/// What the placement of new shards and of the catalog knows of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Its id.
    pub node_id: NodeId,
    /// The region's name.
    pub region: String,
    /// The zone's name within the region.
    pub zone: String,
    /// Whether new replicas may go there: it is up, stays, and its disk has room.
    pub accepts_replicas: bool,
    /// Replicas on it.
    pub replicas: u32,
    /// Replicas on it that lead their shard, or are meant to lead it first.
    pub leaders: u32,
}

impl NodeView {
    /// The zone among all regions' zones.
    fn domain(&self) -> (&str, &str) {
        (&self.region, &self.zone)
    }
}

#[cfg(test)]
mod testing;
