//! The Rust SDK: routing cache, retries, session tokens.
//!
//! [`Client`] talks to the anchors of one account, [`AdminClient`] to the operators' services. Both
//! are cheap to clone and meant to be shared by all tasks of a process: they keep a few HTTP/2
//! connections, whatever the number of callers.
//!
//! * Writes go straight to the shard's leader, reads to a replica that can serve them. Routes are
//!   learnt at the start and corrected by replies; a wrong one costs a hop, never a wrong answer,
//!   because nodes forward.
//! * A call is retried until its deadline whenever that is safe: reads always, writes under one
//!   request id, so that they have one effect. What no retry can mend is returned at once.
//! * A [`ClientError`] says by a stable [`Reason`] what happened, and of a write whether it may have
//!   been done.
//!
//! ```no_run
//! use anchorhold_client::{Client, ClientConfig, v1};
//!
//! # async fn example() -> Result<(), anchorhold_client::ClientError> {
//! let client = Client::connect(ClientConfig {
//!     endpoints: vec!["127.0.0.1:7501".into(), "127.0.0.1:7502".into()],
//!     api_key: "ahk_k1_...".into(),
//!     ..ClientConfig::default()
//! })
//! .await?;
//!
//! let created = client
//!     .create_anchor(v1::Anchor {
//!         pose: Some(v1::Pose::on_earth(52.5163, 13.3777, 80.0)),
//!         tags: vec!["landmark".into()],
//!         ..v1::Anchor::default()
//!     })
//!     .await?;
//! let id = created.anchor.unwrap_or_default().id;
//!
//! // Reads of a session see its own writes, on any replica.
//! let session = client.session();
//! session.delete_anchor(id.as_str()).await?;
//!
//! for near in client.locate(v1::NearPoint::on_earth(52.5, 13.4, 80.0, 10)).await?.anchors {
//!     println!("{:.1} m", near.distance_m.unwrap_or_default());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Not here: what the messages mean (`proto`), placement of anchors (`model`).

mod admin;
mod channel;
mod client;
mod codec;
mod config;
mod error;
mod method;
mod pages;
mod patience;
mod retry;
mod routes;
mod session;
mod transport;

pub use admin::AdminClient;
pub use client::Client;
pub use config::{ClientConfig, RetryConfig};
pub use error::ClientError;
pub use pages::AnchorPages;

pub use anchorhold_proto::{Reason, admin_v1, v1};

#[cfg(test)]
mod tests;
