//! What a node keeps on disk, behind two seams.
//!
//! [`LogStore`] is the shared Raft log of all groups of a node: the only place whose fsync an
//! acknowledgement waits for. [`StateStore`] holds the applied state: atomic batches, made durable
//! by checkpoints, never trusted as the only durable copy. [`snapshot`] files are checksummed
//! copies of one group's state at an applied index.
//!
//! Not here: what the bytes mean (`model`), when to purge or snapshot (`consensus`).

pub mod disk_space;
mod durable;
#[cfg(feature = "chaos")]
pub mod faults;
pub mod fs;
pub mod log;
pub mod log_store;
pub mod memory_state;
pub mod overlay_fs;
pub mod renewable_state;
pub mod sled_state;
pub mod snapshot;
pub mod state_store;
#[cfg(test)]
mod testing;

pub use disk_space::{Ballast, DiskState, SpaceRules};
pub use log::{Damage, LogConfig, LostGroup, MemoryLog, OpenError, OpenReport, SegmentedLog};
pub use log_store::{
    Completion, GroupId, GroupLog, HardState, LogEntry, LogError, LogLayer, LogPosition, LogStats,
    LogStore, LogWrite, Lost, ReadError,
};
pub use memory_state::MemoryState;
pub use renewable_state::{RenewError, RenewableState, Renewed};
pub use sled_state::{Opened, SledConfig, SledState};
pub use state_store::{Batch, StateError, StateLayer, StateStats, StateStore};
