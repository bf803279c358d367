//! What clients were told, and whether it is true.
//!
//! An entry is made when a write is acknowledged, never before. Everything in the ledger must be
//! found later; what was never acknowledged may or may not be.

use std::collections::BTreeMap;
use std::time::Duration;

use anchorhold_client::{Client, v1};
use anyhow::{Context as _, bail};
use tokio::time::Instant;

/// One acknowledgement.
#[derive(Clone, Copy, Debug)]
pub struct Ack {
    /// When the client had it.
    pub at: Instant,
    /// How long the call took, retries included.
    pub latency: Duration,
}

/// What one client was told.
#[derive(Clone, Debug, Default)]
pub struct ClientLedger {
    /// In order of time.
    pub acks: Vec<Ack>,
    /// The last acknowledged value of each anchor.
    pub values: BTreeMap<String, String>,
}

/// What all clients were told.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// One for each client.
    pub clients: Vec<ClientLedger>,
}

/// An acknowledged write that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The anchor.
    pub id: String,
    /// The value that was acknowledged.
    pub acknowledged: String,
    /// What is there instead; `None` if the anchor is gone.
    pub found: Option<String>,
}

/// Where the value stands in an anchor's properties.
pub const VALUE_PROPERTY: &str = "value";

/// Anchors read back in one call.
const READ_BATCH: usize = 500;

impl ClientLedger {
    /// The largest time between two acknowledgements, counting only gaps that touch the window.
    ///
    /// The bounds of the window count as acknowledgements if there is none before or after, so that
    /// a client that never got another one does not look fine.
    pub fn largest_gap(&self, from: Instant, until: Instant) -> Duration {
        let mut last = from;
        let mut largest = Duration::ZERO;
        for ack in self.acks.iter().filter(|ack| from <= ack.at && ack.at <= until) {
            largest = largest.max(ack.at - last);
            last = ack.at;
        }
        largest.max(until.saturating_duration_since(last))
    }
}

impl Ledger {
    /// Acknowledged writes.
    pub fn acknowledged(&self) -> usize {
        self.clients.iter().map(|client| client.acks.len()).sum()
    }

    /// The client that waited longest in the window.
    pub fn worst_client_gap(&self, from: Instant, until: Instant) -> Duration {
        let gaps = self.clients.iter().map(|client| client.largest_gap(from, until));
        gaps.max().unwrap_or_default()
    }

    /// The largest time in the window in which no client was acknowledged anything.
    pub fn global_gap(&self, from: Instant, until: Instant) -> Duration {
        let mut acks: Vec<Ack> =
            self.clients.iter().flat_map(|client| client.acks.iter().copied()).collect();
        acks.sort_by_key(|ack| ack.at);
        ClientLedger { acks, values: BTreeMap::new() }.largest_gap(from, until)
    }

    /// Adds what another run was told.
    pub fn extend(&mut self, other: Self) {
        self.clients.extend(other.clients);
    }

    /// Reads everything back, linearizably, and returns what is not as acknowledged.
    ///
    /// # Errors
    /// If a read fails for good.
    pub async fn verify(&self, client: &Client) -> anyhow::Result<Vec<Lost>> {
        let expected: BTreeMap<&String, &String> =
            self.clients.iter().flat_map(|client| &client.values).collect();
        let mut lost = Vec::new();
        let ids: Vec<&String> = expected.keys().copied().collect();
        for chunk in ids.chunks(READ_BATCH) {
            let request = v1::BatchGetAnchorsRequest {
                ids: chunk.iter().map(|id| (*id).clone()).collect(),
                read: None,
            };
            let reply = client.batch_get_anchors(request).await.context("reading back")?;
            anyhow::ensure!(reply.results.len() == chunk.len(), "an incomplete answer");
            for result in reply.results {
                let found = found_value(result.result)?;
                let acknowledged = expected[&result.id].clone();
                if found.as_ref() != Some(&acknowledged) {
                    lost.push(Lost { id: result.id, acknowledged, found });
                }
            }
        }
        Ok(lost)
    }
}

fn found_value(
    result: Option<v1::batch_get_anchors_result::Result>,
) -> anyhow::Result<Option<String>> {
    use v1::batch_get_anchors_result::Result as Found;
    match result {
        Some(Found::Anchor(anchor)) => Ok(anchor.properties.get(VALUE_PROPERTY).cloned()),
        Some(Found::Error(error)) if error.reason == "ANCHOR_NOT_FOUND" => Ok(None),
        Some(Found::Error(error)) => bail!("{}: {}", error.reason, error.message),
        None => bail!("an item without a result"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(start: Instant, acks_ms: &[u64]) -> ClientLedger {
        let at = |ms: &u64| start + Duration::from_millis(*ms);
        let ack = |ms| Ack { at: at(ms), latency: Duration::ZERO };
        ClientLedger { acks: acks_ms.iter().map(ack).collect(), values: BTreeMap::new() }
    }

    #[tokio::test]
    async fn the_largest_gap_counts_the_ends_of_the_window() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let client = ledger(start, &[10, 20, 400, 410]);
        assert_eq!(client.largest_gap(at(0), at(420)), Duration::from_millis(380));
        assert_eq!(client.largest_gap(at(0), at(2_000)), Duration::from_millis(1_590));
        assert_eq!(ledger(start, &[]).largest_gap(at(5), at(25)), Duration::from_millis(20));
    }

    #[tokio::test]
    async fn one_client_that_waits_does_not_make_a_global_gap() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let steady: Vec<u64> = (0..100).map(|tick| tick * 10).collect();
        let ledger = Ledger { clients: vec![ledger(start, &steady), ledger(start, &[0, 990])] };
        assert_eq!(ledger.global_gap(at(0), at(990)), Duration::from_millis(10));
        assert_eq!(ledger.worst_client_gap(at(0), at(990)), Duration::from_millis(990));
        assert_eq!(ledger.acknowledged(), 102);
    }
}
