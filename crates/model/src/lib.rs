//! What Anchorhold stores, and what a committed command does to it.
//!
//! Ids and keys, anchors, commands, and the two pure state machines: [`apply()`] of a shard and
//! [`catalog::apply`] of the catalog. Equal state and equal entry give equal outcomes and equal
//! changes on every replica: no clock, no randomness, no IO, no iteration over hash order.
//!
//! Not here: storing changes (`storage`), agreeing on commands (`consensus`), search
//! (`localization`), where replicas live (`placement`).

pub mod anchor;
pub mod apply;
pub mod catalog;
mod cell;
pub mod command;
pub mod cover;
pub mod digest;
pub mod id;
pub mod row;
pub mod shard;
#[cfg(test)]
mod testing;

pub use anchor::{Accuracy, Anchor, AnchorPatch, LocalPosition, Pose, Space, Version};
pub use apply::{Changes, OperationRecord, Records, RowTotals, apply};
pub use cell::SPACE_NUMBER_MAX;
pub use command::{
    Command, Entry, Frozen, MergeStep, Merged, OperationId, Outcome, Rejection, RequestId, Stamp,
    Timestamp, Write,
};
pub use id::{AccountNumber, AnchorId, AnchorIdError, HomeCell, Key, KeyRange};
pub use shard::{
    ClassId, Epoch, Merging, NodeId, Replica, ReplicaId, ReplicaRole, ShardDescriptor, ShardId,
    ShardState, apply_membership,
};
