//! Messages to and from model types.
//!
//! From the wire: fallible, checks every bound of [`crate::limits`], names the field at fault by its
//! path within the message that is given. To the wire: total.
//!
//! Not here: whether an anchor exists, whose it is, whether its expiry has passed: those need state.

mod anchor;
mod query;
mod region;
mod shard;

pub use anchor::{
    AnchorDraft, AnchorUpdate, anchor_from_wire, anchor_id_from_wire, anchor_ids_from_wire,
    anchor_into_wire, anchor_to_wire, anchor_update_from_wire, drafts_from_wire, pose_from_wire,
    pose_to_wire, request_id_from_wire, time_from_wire, time_to_wire,
};
pub use query::{
    Criterion, FilterSpec, ListSpec, LocateSpec, NearSpec, Place, ReadLevel, ReadSpec,
    duration_to_wire, list_from_wire, locate_from_wire, read_from_wire,
};
pub use region::{RegionSpec, region_from_wire, space_from_wire, space_to_wire};
pub use shard::{
    epoch_from_wire, epoch_to_wire, key_from_wire, range_from_wire, range_to_wire, role_from_wire,
    role_to_wire,
};

#[cfg(test)]
mod tests;
