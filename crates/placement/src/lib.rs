//! Decides where replicas live.
//!
//! Everything here is a pure function of a view of the cluster: equal views give equal answers, and
//! ties end in a node id. Diversity comes first, balance after: replicas of a shard go to as many
//! zones as there are, then to the nodes that hold the fewest.
//!
//! Not here: collecting views, and carrying decisions out (`server`, `consensus`); what a replica
//! is (`model`).

pub mod catalog;
pub mod place;

pub use catalog::{CatalogMember, CatalogStep, catalog_voters};
pub use place::{place, place_shards};

use anchorhold_model::NodeId;

/// What placement knows of a node.
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

/// Limits of placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacementConfig {
    /// Voters per shard. Odd.
    pub voters: usize,
    /// Voters of the catalog, at most. Odd.
    pub catalog_voters_max: usize,
}

/// The one place where placement numbers are written down.
impl Default for PlacementConfig {
    fn default() -> Self {
        Self { voters: 3, catalog_voters_max: 3 }
    }
}

impl NodeView {
    /// The zone among all regions' zones.
    fn domain(&self) -> (&str, &str) {
        (&self.region, &self.zone)
    }
}

#[cfg(test)]
mod testing;
