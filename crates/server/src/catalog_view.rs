//! How current the catalog is that this node decides by.
//!
//! A node decides by the catalog as applied here, which may be behind: right after a start, while
//! the node is cut off, or for a moment at any time. What it finds there is true, because accounts
//! and keys of an old catalog were valid then. What it does not find may be in a newer one: before
//! this node says that a key is unknown, it asks the catalog's leader how far the catalog is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anchorhold_consensus::ReadLevel;
use anchorhold_proto::{Failure, Reason};

use crate::clock::Deadline;
use crate::core::Core;

/// Longest wait for the catalog's leader on behalf of one call.
const CATCH_UP_MAX: Duration = Duration::from_secs(2);
/// Time between two attempts after the start.
const START_PAUSE: Duration = Duration::from_millis(100);

/// What is known of the catalog's currency here.
#[derive(Default)]
pub struct CatalogView {
    /// Whether the catalog was current at some moment since the start.
    is_confirmed: AtomicBool,
    /// When the newest question was asked that the leader has confirmed, on the monotonic clock.
    /// Held while the leader is asked: calls that wait meanwhile share the next answer.
    newest: tokio::sync::Mutex<Option<Duration>>,
}

impl Core {
    /// Waits until the catalog here holds all that was acknowledged before this call.
    ///
    /// # Errors
    /// CATALOG_UNAVAILABLE if that is not to be had in time; NODE_STARTING if it never was since
    /// the start.
    pub async fn catch_up_with_catalog(&self, deadline: &Deadline) -> Result<(), Failure> {
        let wait = deadline.remaining().min(CATCH_UP_MAX);
        if tokio::time::timeout(wait, self.confirm_catalog(wait)).await == Ok(true) {
            return Ok(());
        }
        let reason = if self.is_catalog_confirmed() {
            Reason::CatalogUnavailable
        } else {
            Reason::NodeStarting
        };
        let message = "this node cannot tell whether its view of the catalog is current";
        Err(Failure::new(reason, message).retry_after(START_PAUSE))
    }

    /// Whether the catalog here has been current at some moment since the start.
    pub fn is_catalog_confirmed(&self) -> bool {
        self.catalog_view.is_confirmed.load(Ordering::Acquire)
    }

    /// Asks for the catalog's currency until it is confirmed for the first time.
    pub async fn confirm_catalog_first(self: Arc<Self>) {
        while !self.confirm_catalog(CATCH_UP_MAX).await {
            tokio::time::sleep(START_PAUSE).await;
        }
    }

    async fn confirm_catalog(&self, timeout: Duration) -> bool {
        let arrived = self.clock.monotonic();
        let mut newest = self.catalog_view.newest.lock().await;
        if newest.is_some_and(|asked| arrived <= asked) {
            return true;
        }
        let asked = self.clock.monotonic();
        let replica = self.host.catalog_replica();
        if replica.read_barrier(ReadLevel::Linearizable, timeout).await.is_err() {
            return false;
        }
        *newest = Some(asked);
        self.catalog_view.is_confirmed.store(true, Ordering::Release);
        true
    }
}
