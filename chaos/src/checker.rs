//! Decides whether recorded operations keep the promises.
//!
//! Each checker takes the operations of one workload one by one, keeps what it needs of them in a
//! compact form, and says in the end what it found. No checker does any IO or knows of faults.
//!
//! | checker | of | cost |
//! |---|---|---|
//! | [`VersionOrder`] | registers, by version: every operation | O(n log n) |
//! | [`wgl`] | registers, by value alone: sampled windows | exponential in concurrency, bounded by steps |
//! | [`Presence`] | anchors that are created and deleted: reads, lists, nearest neighbours | O(n log n + queries · anchors) |
//! | [`expiry`] | anchors that expire | O(n log n) |
//! | [`sessions`] | reads of sessions | O(n) |
//! | [`convergence`] | the cluster after the heal | – |
//!
//! A verdict is one of three: kept, broken with evidence, or unknown. Unknown is never a pass.

mod findings;
mod presence;
mod version_order;

pub mod convergence;
pub mod expiry;
pub mod sessions;
pub mod wgl;

pub use self::findings::{Evidence, Findings, Violation};
pub use self::presence::{Presence, ReadBack};
pub use self::version_order::VersionOrder;
