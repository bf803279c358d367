//! Whole nodes in one process: real stores in temporary directories, real ports on loopback.

mod cluster;
mod anchors;
mod locate;
