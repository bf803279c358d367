//! Generated gRPC types and their checked conversions.

pub use generated::anchorhold::admin::v1 as admin_v1;
pub use generated::anchorhold::peer::v1 as peer_v1;
pub use generated::anchorhold::v1;

/// Generated code, nested as the packages are because it refers to itself by relative paths.
mod generated {
    #![allow(clippy::all, missing_docs, unreachable_pub, reason = "generated")]

    pub mod anchorhold {
        pub mod v1 {
            tonic::include_proto!("anchorhold.v1");
        }
        pub mod admin {
            pub mod v1 {
                tonic::include_proto!("anchorhold.admin.v1");
            }
        }
        pub mod peer {
            pub mod v1 {
                tonic::include_proto!("anchorhold.peer.v1");
            }
        }
    }
}

/// Every `.proto` file of this crate, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
