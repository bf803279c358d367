//! Generated gRPC types and their checked conversions.
//!
//! Bytes from the wire are input: every conversion into a model type is fallible and names the
//! field at fault; nothing here panics on any message. Conversions the other way are total.
//!
//! * [`v1`], [`admin_v1`], [`peer_v1`]: generated from the `.proto` files at the top of the
//!   workspace, which are the reference of the API.
//! * [`limits`]: its bounds. [`Reason`]: its errors. [`Failure`]: errors on their way to the wire.
//! * [`etag`], [`PageToken`], [`SessionToken`], [`Credential`]: its opaque values.
//! * [`convert`]: messages to and from model types.
//!
//! Not here: services (`server`), retries and routing (`client`), the content of peer messages
//! (`consensus`).

pub mod convert;
pub mod credential;
pub mod etag;
pub mod failure;
mod field;
pub mod limits;
pub mod page_token;
pub mod reason;
pub mod session_token;
mod shorthand;
pub mod text;

pub use credential::Credential;
pub use failure::{Failure, ReceivedFailure, reason_of};
pub use field::FieldError;
pub use page_token::{PageToken, QueryHash};
pub use reason::{NextMove, Reason};
pub use session_token::{Demand, SessionToken};

pub use generated::anchorhold::admin::v1 as admin_v1;
pub use generated::anchorhold::peer::v1 as peer_v1;
pub use generated::anchorhold::v1;

/// Generated code, nested as the packages are because it refers to itself by relative paths.
mod generated {
    #![allow(
        clippy::all,
        clippy::pedantic,
        clippy::allow_attributes_without_reason,
        missing_docs,
        unreachable_pub,
        reason = "generated"
    )]

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
