//! Whole clusters in one thread: virtual time, network, disks and clocks, all from one seed.
//!
//! [`run`] builds three real nodes on simulated seams, lets clients write and read while a plan of
//! faults is carried out, heals everything, and judges what was seen. Equal seeds give equal runs,
//! event by event: [`Summary::trace`] is the digest of what happened.
//!
//! Safety is checked while faults run: by what each log and each vote is told, by what each replica
//! has applied, and by what clients were answered. Liveness is checked after they end. Each
//! invariant has its own file in [`invariants`].
//!
//! What is simulated: the network (turmoil), both clocks, the Raft log and the state (memory, with
//! unsynced tails that a crash loses), the threads (everything runs inline). What is not: snapshot
//! files and the identity of a node lie in a real directory, so they are never lost in part; TLS.
//!
//! Exact replay needs tokio's own random numbers to be seeded, which takes the flag
//! `--cfg tokio_unstable`: `cargo xtask sim` sets it. Without it runs are as strict but may differ.

mod client;
mod disk;
pub mod faults;
pub mod history;
pub mod invariants;
mod node;
mod run;
mod seams;
mod trace;
mod world;

pub use run::{Failure, Options, Summary, replay_command, run};
pub use world::Mutant;
