//! Whole nodes in one process: real stores in temporary directories, real ports on loopback.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic, helpers included")]

mod cluster;
mod access;
mod healing;
mod layouts;
mod anchors;
mod locate;
mod merging;
mod renewing;
mod reports;
mod scrub;
mod splitting;
