//! What clients do while faults run, recorded so that it can be judged.
//!
//! A workload is a number of clients that do one thing after the other through the SDK, at a given
//! rate, in an account of their own. Every operation goes to `history/` with its times by the run's
//! clock. A write whose outcome is not known is sent again under the same request id, beside the
//! client that goes on, until it is known; one that stays open is recorded as such.
//!
//! | kind | what it does | what is checked |
//! |---|---|---|
//! | [`WorkloadConfig::Register`] | reads, writes and compare-and-set of few anchors | linearizability, staleness bounds |
//! | [`WorkloadConfig::Set`] | creates anchors, deletes some, reads some | nothing lost, resurrected, doubled; on every replica |
//! | [`WorkloadConfig::Nearest`] | creates and deletes anchors, asks for the nearest | equals brute force |
//! | [`WorkloadConfig::Expiry`] | creates anchors that expire, reads them | visible until then, and no longer |
//! | [`WorkloadConfig::Session`] | writes and reads any replica with a session token | read-your-writes, monotonic reads |
//! | [`WorkloadConfig::List`] | lists by page while anchors come and go | what stayed is listed exactly once |
//!
//! Not here: judging (`checker`, `judge`), faults.

mod access;
mod config;
mod pace;
mod population;
mod register;
mod resolver;
mod running;
mod session;
mod stage;
mod wire;

pub use self::access::{ClusterAccess, NodeAccess};
pub(crate) use self::access::{make_key, revoke_key};
pub use self::config::{
    ExpiryConfig, ListConfig, NearestConfig, RegisterConfig, SessionConfig, SetConfig,
    WorkloadConfig,
};
pub(crate) use self::pace::Pace;
pub use self::running::{Progress, RunningWorkload, start};
pub(crate) use self::wire::rows_of_page;
