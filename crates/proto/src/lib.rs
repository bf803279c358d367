//! Generated gRPC types and their checked conversions.

/// Node to node, `anchorhold.peer.v1`.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::wildcard_enum_match_arm,
    reason = "generated"
)]
pub mod peer_v1 {
    tonic::include_proto!("anchorhold.peer.v1");
}

/// Every `.proto` file of this crate, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
