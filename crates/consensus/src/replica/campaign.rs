use std::sync::Arc;
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;

use super::Replica;

/// Time between two looks of a newborn at whether it is led, and how often it looks.
const CAMPAIGN_PAUSE: Duration = Duration::from_millis(10);
const CAMPAIGN_TRIES_MAX: usize = 200;

impl Replica {
    /// Asks for votes until somebody leads a term that is not the one in which a split's children
    /// begin: there is nobody yet whom a campaign could disturb.
    pub(crate) async fn campaign(self: Arc<Self>) {
        let born_term = self.raft.metrics().borrow_watched().current_term;
        for _ in 0..CAMPAIGN_TRIES_MAX {
            let (is_led, is_candidate) = {
                let metrics = self.raft.metrics();
                let metrics = metrics.borrow_watched();
                let is_led = born_term < metrics.current_term && metrics.current_leader.is_some();
                (is_led, metrics.state == ServerState::Candidate)
            };
            if is_led || self.check_stopped().is_err() {
                return;
            }
            if !is_candidate && self.raft.trigger().elect(true).await.is_err() {
                return;
            }
            tokio::time::sleep(CAMPAIGN_PAUSE).await;
        }
    }
}
