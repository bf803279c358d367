//! The consensus layer over real links on loopback, with stores in memory.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;
mod wires;

mod catalog;
mod cuts;
mod damage;
mod digests;
mod faults;
mod fitness;
mod log_bytes;
mod members;
mod merge;
mod power;
mod quiescence;
mod reads;
mod seeding;
mod split;
mod writes;
