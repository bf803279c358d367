//! Finds anchors: positions in, nearest anchors out.
//!
//! Today this is the [`PositionIndex`]: which anchors lie nearest to a point, in true 3-D meters.
//! Everything here is derived state: built from records, never replicated, thrown away at will.
//!
//! Invariants: no clock, no randomness, no IO, no async. Equal calls give equal answers, whatever
//! the order in which merges ran.
//!
//! Not here: which shards to ask (`model::cover`), which anchors a caller may see (`server`, by
//! the filter it passes), how positions are stored.

mod position_index;

pub use position_index::{
    COORDINATE_M_MAX, ForestConfig, ForestConfigError, ForestStats, MergeJob, MergedTree, Neighbor,
    PositionError, PositionIndex, PositionSnapshot,
};
