//! What black-box tests need: real clusters, and calls that show every status.
//!
//! * [`binary`] finds or builds the `anchorhold` binary.
//! * [`cluster`] starts clusters of real processes: one that all harmless tests share, and others
//!   that a test may break.
//! * [`rpc`] calls a node through the generated stubs, without retries and without routing, so that
//!   a test sees exactly what a node answers.
//!
//! Not here: what is tested. That is in `tests/black_box`, and in `python` and `web` for clients in
//! other languages.

pub mod binary;
pub mod cluster;
pub mod rpc;
pub mod small_disks;
pub mod wait;
