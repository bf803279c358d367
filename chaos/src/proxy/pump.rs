//! One direction of one connection.
//!
//! Bytes that may pass at once are passed at once. Others wait in a bounded queue, in order; when it
//! is full nothing more is read, and the sender feels it as a full window. The end of the stream
//! waits its turn like bytes do: a receiver behind a stalled flow does not learn that the sender has
//! died.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::Instant;

use super::alarm::Alarm;
use crate::network::{Flow, Network, Party, RETRANSMISSION};

/// Bytes that wait in one direction of one connection, at most (and one read more).
const QUEUE_BYTES_MAX: usize = 4 << 20;
/// Bytes read at a time, at most.
const READ_BYTES_MAX: usize = 64 << 10;

/// How a direction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The sender has closed, and the receiver knows.
    Closed,
    /// One of them is gone.
    Reset,
}

/// One direction of one connection.
pub(super) struct Pump<'a> {
    pub(super) from: Party,
    pub(super) to: Party,
    pub(super) network: watch::Receiver<Arc<Network>>,
    /// Bytes delivered.
    pub(super) bytes: &'a AtomicU64,
    pub(super) losses: &'a AtomicU64,
    pub(super) alarm: Alarm,
    pub(super) seed: u64,
}

enum Item {
    Bytes(Bytes),
    End(Ended),
}

/// What waits, and when it may go on.
struct Queue {
    items: VecDeque<(Instant, Item)>,
    bytes: usize,
    last_due: Instant,
    /// When the narrow part of the way is free again.
    wire_free: Instant,
    rng: StdRng,
}

impl Queue {
    /// Puts an item behind the others. Returns whether it has to wait for a retransmission.
    fn push(&mut self, flow: &Flow, item: Item) -> bool {
        let now = Instant::now();
        let length = match &item {
            Item::Bytes(bytes) => bytes.len(),
            Item::End(_) => 0,
        };
        let mut due = now;
        if let Some(rate) = flow.bytes_per_second {
            let takes = Duration::from_secs_f64(length as f64 / rate.max(1) as f64);
            self.wire_free = self.wire_free.max(now) + takes;
            due = self.wire_free;
        }
        due += flow.delay;
        if !flow.jitter.is_zero() {
            due += flow.jitter.mul_f64(self.rng.random_range(0.0..1.0));
        }
        let is_lost = 0.0 < flow.loss && 0 < length && self.rng.random_bool(flow.loss.min(1.0));
        if is_lost {
            due += RETRANSMISSION;
        }
        // A stream keeps its order: what follows a lost packet waits too.
        self.last_due = self.last_due.max(due);
        self.bytes += length;
        self.items.push_back((self.last_due, item));
        is_lost
    }

    fn pop(&mut self) -> Option<Item> {
        let (_, item) = self.items.pop_front()?;
        if let Item::Bytes(bytes) = &item {
            self.bytes -= bytes.len();
        }
        Some(item)
    }
}

impl Pump<'_> {
    /// Passes everything on, until one side is gone.
    pub(super) async fn run(mut self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> Ended {
        let now = Instant::now();
        let rng = StdRng::seed_from_u64(self.seed);
        let items = VecDeque::new();
        let mut queue = Queue { items, bytes: 0, last_due: now, wire_free: now, rng };
        let mut buffer = BytesMut::with_capacity(READ_BYTES_MAX);
        let mut releases = self.network.clone();
        let mut is_open = true;
        loop {
            let head_due = queue.items.front().map(|(due, _)| *due);
            tokio::select! {
                read = from.read_buf(&mut buffer), if is_open && queue.bytes < QUEUE_BYTES_MAX => {
                    let item = match read {
                        Ok(0) => Item::End(Ended::Closed),
                        Ok(_) => Item::Bytes(buffer.split().freeze()),
                        Err(_) => Item::End(Ended::Reset),
                    };
                    is_open = matches!(item, Item::Bytes(_));
                    buffer.reserve(READ_BYTES_MAX);
                    let flow = self.network.borrow_and_update().flow(&self.from, &self.to);
                    if flow.is_free() && queue.items.is_empty() {
                        if let Some(ended) = self.deliver(item, &mut to).await {
                            return ended;
                        }
                    } else if queue.push(&flow, item) {
                        self.losses.fetch_add(1, Ordering::Relaxed);
                    }
                }
                released = release(head_due, &mut self.alarm, &mut releases, &self.from, &self.to),
                    if head_due.is_some() =>
                {
                    let Some(item) = queue.pop().filter(|_| released) else { return Ended::Reset };
                    if let Some(ended) = self.deliver(item, &mut to).await {
                        return ended;
                    }
                }
            }
        }
    }

    /// Hands one item over. Returns how the direction ended, if it did.
    async fn deliver(&self, item: Item, to: &mut WriteHalf<'_>) -> Option<Ended> {
        match item {
            Item::Bytes(bytes) => {
                // Counted before: who has received them must find them counted.
                self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                // If the receiver is gone, the sender learns it from the other direction, when
                // that may pass.
                to.write_all(&bytes).await.err().map(|_| Ended::Closed)
            }
            Item::End(Ended::Closed) => {
                // A receiver that is gone needs no goodbye.
                let _ = to.shutdown().await;
                Some(Ended::Closed)
            }
            Item::End(Ended::Reset) => Some(Ended::Reset),
        }
    }
}

/// Waits until the first item may go on. Returns whether the mesh still stands.
async fn release(
    due: Option<Instant>,
    alarm: &mut Alarm,
    network: &mut watch::Receiver<Arc<Network>>,
    from: &Party,
    to: &Party,
) -> bool {
    if let Some(due) = due {
        alarm.wait_until(due).await;
    }
    network.wait_for(|network| !network.flow(from, to).stalled).await.is_ok()
}
