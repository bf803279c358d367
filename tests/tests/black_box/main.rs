//! Black-box tests: real processes, the public API, nothing of the inside.
//!
//! Tests that break nothing share one cluster and have an account each. Tests that kill nodes, or
//! need other settings, have clusters of their own, one after the other.

#![expect(clippy::unwrap_used, reason = "a test that unwraps says where it failed")]

mod access;
mod bad_input;
mod blocked;
mod commands;
mod docs;
mod expiry;
mod faults;
mod full_disk;
mod fuzz;
mod growing;
mod healing;
mod inspect;
mod judged;
mod life;
mod locate;
mod merge;
mod methods;
mod oracle;
mod overlap;
mod pages;
mod reads;
mod release;
mod returning;
mod scenario;
mod split;
