//! Clients that write one thing after the other, through the SDK, and remember what they were told.
//!
//! Each client creates an anchor somewhere on Earth and then changes its value a few times, before
//! it creates the next one. A write that failed with an unknown outcome is sent again under the
//! same request id until it is acknowledged: what the ledger holds is exact.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anchorhold_client::{Client, v1};
use anyhow::Context as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::ledger::{Ack, ClientLedger, Ledger, VALUE_PROPERTY};

/// Changes of each anchor after its creation.
const CHANGES: u64 = 2;
/// How often one write is sent, at most, each with the SDK's own retries.
const SENDS_MAX: u32 = 30;
/// Between two looks whether a client has given up.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Running clients.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    /// Writes acknowledged to each client.
    acks: watch::Receiver<Vec<u64>>,
    tasks: Vec<JoinHandle<anyhow::Result<ClientLedger>>>,
}

impl Load {
    /// Starts `clients` of them, all through the same SDK client.
    pub fn start(client: &Client, clients: u32, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (count, acks) = watch::channel(vec![0; clients as usize]);
        let count = Arc::new(count);
        let start = |number: u32| {
            // Request ids must differ between runs against one cluster, or they would be retries.
            let seed = seed.wrapping_mul(1_000_003).wrapping_add(u64::from(number));
            let writer = Writer {
                client: client.clone(),
                rng: StdRng::seed_from_u64(seed),
                ledger: ClientLedger::default(),
                name: format!("{seed:016x}"),
                number: number as usize,
                count: count.clone(),
                writes: 0,
            };
            let running = writer.run(stop.clone());
            tokio::spawn(async move {
                let ended = running.await;
                if let Err(error) = &ended {
                    eprintln!("client {number} has given up: {error:#}");
                }
                ended
            })
        };
        Self { tasks: (0..clients).map(start).collect(), acks, stop: stop.clone() }
    }

    /// Writes acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acks.borrow().iter().sum()
    }

    /// Waits until `count` more writes are acknowledged than now, whichever clients made them.
    ///
    /// # Errors
    /// If a client has given up.
    pub async fn wait_for_more(&self, count: u64) -> anyhow::Result<()> {
        let wanted = self.acknowledged() + count;
        self.wait_until(|acks| wanted <= acks.iter().sum()).await
    }

    /// Waits until every client has been acknowledged `count` more writes than now.
    ///
    /// # Errors
    /// If a client has given up.
    pub async fn wait_for_each(&self, count: u64) -> anyhow::Result<()> {
        let before = self.acks.borrow().clone();
        self.wait_until(|acks| acks.iter().zip(&before).all(|(now, then)| then + count <= *now))
            .await
    }

    async fn wait_until(&self, is_enough: impl Fn(&[u64]) -> bool) -> anyhow::Result<()> {
        let mut acks = self.acks.clone();
        while !is_enough(&acks.borrow_and_update()) {
            if self.tasks.iter().any(JoinHandle::is_finished) {
                anyhow::bail!("a client has given up");
            }
            // The time-out only makes room for the look at the clients.
            if let Ok(changed) = timeout(LOOK_INTERVAL, acks.changed()).await {
                changed.context("all clients have ended")?;
            }
        }
        Ok(())
    }

    /// Lets every client finish its write and returns what they were told.
    ///
    /// # Errors
    /// If a write failed for good.
    pub async fn stop(self) -> anyhow::Result<Ledger> {
        self.stop.store(true, Ordering::Relaxed);
        let mut ledger = Ledger::default();
        for task in self.tasks {
            ledger.clients.push(task.await.context("a client panicked")??);
        }
        Ok(ledger)
    }
}

struct Writer {
    client: Client,
    rng: StdRng,
    ledger: ClientLedger,
    name: String,
    number: usize,
    count: Arc<watch::Sender<Vec<u64>>>,
    writes: u64,
}

impl Writer {
    async fn run(mut self, stop: Arc<AtomicBool>) -> anyhow::Result<ClientLedger> {
        while !stop.load(Ordering::Relaxed) {
            let id = self.create().await?;
            for _ in 0..CHANGES {
                if !stop.load(Ordering::Relaxed) {
                    self.change(&id).await?;
                }
            }
        }
        Ok(self.ledger)
    }

    async fn create(&mut self) -> anyhow::Result<String> {
        let latitude_deg = f64::asin(self.rng.random_range(-1.0..1.0)).to_degrees();
        let longitude_deg = self.rng.random_range(-180.0..180.0);
        let geo = v1::GeoPose { latitude_deg, longitude_deg, height_m: 0.0, orientation: None };
        let value = self.next_value();
        let anchor = v1::Anchor {
            pose: Some(v1::Pose { frame: Some(v1::pose::Frame::Geo(geo)) }),
            properties: BTreeMap::from([(VALUE_PROPERTY.to_owned(), value.clone())]),
            ..v1::Anchor::default()
        };
        let request_id = self.next_request_id();
        let start = Instant::now();
        let client = self.client.clone();
        let reply = acknowledged(|| {
            let request = v1::CreateAnchorRequest {
                anchor: Some(anchor.clone()),
                request_id: request_id.clone(),
            };
            client.create_anchor(request)
        })
        .await?;
        let id = reply.anchor.context("a created anchor is returned")?.id;
        self.note(start, &id, value);
        Ok(id)
    }

    async fn change(&mut self, id: &str) -> anyhow::Result<()> {
        let value = self.next_value();
        let anchor = v1::Anchor {
            id: id.to_owned(),
            properties: BTreeMap::from([(VALUE_PROPERTY.to_owned(), value.clone())]),
            ..v1::Anchor::default()
        };
        let request_id = self.next_request_id();
        let start = Instant::now();
        let client = self.client.clone();
        acknowledged(|| {
            let request = v1::UpdateAnchorRequest {
                anchor: Some(anchor.clone()),
                update_mask: Some(prost_types::FieldMask { paths: vec!["properties".to_owned()] }),
                request_id: request_id.clone(),
            };
            client.update_anchor(request)
        })
        .await?;
        self.note(start, id, value);
        Ok(())
    }

    fn note(&mut self, start: Instant, id: &str, value: String) {
        let at = Instant::now();
        self.ledger.acks.push(Ack { at, latency: at - start });
        self.ledger.values.insert(id.to_owned(), value);
        self.count.send_modify(|counts| counts[self.number] += 1);
    }

    fn next_value(&mut self) -> String {
        self.writes += 1;
        format!("{}/{}", self.name, self.writes)
    }

    /// A UUID of version 4.
    fn next_request_id(&mut self) -> String {
        let bits: u128 = self.rng.random();
        let bits = bits & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
        let text = format!("{bits:032x}");
        [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-")
    }
}

/// Sends a write until it is acknowledged.
async fn acknowledged<T, F>(mut send: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = Result<T, anchorhold_client::ClientError>>,
{
    for _ in 1..SENDS_MAX {
        match send().await {
            Ok(reply) => return Ok(reply),
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error).context("a write failed"),
        }
    }
    send().await.context("a write was not acknowledged in the end")
}

/// Whether sending the same request again may help.
fn is_passing(error: &anchorhold_client::ClientError) -> bool {
    use anchorhold_client::Reason;
    let is_unanswered = error.unknown_request_id().is_some() || error.reason().is_none();
    is_unanswered
        || matches!(
            error.reason(),
            Some(
                Reason::NotLeader
                    | Reason::NoLeader
                    | Reason::CommitUnknown
                    | Reason::ShardUnavailable
                    | Reason::StaleEpoch
                    | Reason::NodeStarting
                    | Reason::NodeStopping
                    | Reason::Overloaded
                    | Reason::DeadlineExceeded
            )
        )
}
