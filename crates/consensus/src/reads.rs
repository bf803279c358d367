//! Read rounds: when may a read be served from what is applied?
//!
//! The leader confirms with a quorum that it still leads (ReadIndex) and gives the index that must
//! be applied. Reads that arrived before a round starts share it; later ones wait for the next
//! one. A follower asks the leader. No lease is trusted: openraft's lease is forgotten at a
//! restart, and no clock may decide what is true.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::seams::Clock;
use crate::types::Raft;

/// Longest round: a heartbeat takes far less, and who waits may ask again.
const ROUND_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a round confirmed nothing.
#[derive(Clone, Debug)]
pub(crate) enum RoundFailure {
    /// This replica does not lead.
    NotLeader,
    /// No quorum answered.
    NoQuorum,
    /// The replica has stopped.
    Stopped(String),
}

type RoundResult = Result<u64, RoundFailure>;

/// Runs the rounds of one replica while it leads.
pub(crate) struct ReadRounds {
    waiting: mpsc::UnboundedSender<oneshot::Sender<RoundResult>>,
}

impl ReadRounds {
    /// `under_way` counts the rounds that wait for heartbeats.
    pub(crate) fn start(raft: Raft, under_way: Arc<AtomicU64>) -> Self {
        let (waiting, mut queue) = mpsc::unbounded_channel::<oneshot::Sender<RoundResult>>();
        tokio::spawn(async move {
            let mut round = Vec::new();
            while 0 < queue.recv_many(&mut round, usize::MAX).await {
                under_way.fetch_add(1, Ordering::SeqCst);
                let result = tokio::time::timeout(ROUND_TIMEOUT, run_round(&raft)).await;
                let result = result.unwrap_or(Err(RoundFailure::NoQuorum));
                under_way.fetch_sub(1, Ordering::SeqCst);
                for waiting in round.drain(..) {
                    drop(waiting.send(result.clone()));
                }
            }
        });
        Self { waiting }
    }

    /// An index that makes a read linearizable once it is applied.
    pub(crate) async fn confirm(&self) -> RoundResult {
        let (sender, receiver) = oneshot::channel();
        let stopped = || RoundFailure::Stopped("it has ended".into());
        self.waiting.send(sender).map_err(|_| stopped())?;
        receiver.await.unwrap_or_else(|_| Err(stopped()))
    }
}

async fn run_round(raft: &Raft) -> RoundResult {
    match raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
        Ok(linearizer) => Ok(linearizer.read_log_id().index()),
        Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_))) => {
            Err(RoundFailure::NotLeader)
        }
        Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
            Err(RoundFailure::NoQuorum)
        }
        Err(RaftError::Fatal(fatal)) => Err(RoundFailure::Stopped(fatal.to_string())),
    }
}

/// The newest confirmed index, and when it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Confirmed {
    /// Monotonic time just before the leader was asked.
    pub(crate) asked: Duration,
    /// Everything acknowledged before `asked` is at or below this index.
    pub(crate) index: u64,
}

/// Remembers the newest confirmation, for reads that may be stale.
pub(crate) struct Freshness {
    clock: Arc<dyn Clock>,
    newest: Mutex<Option<Confirmed>>,
}

impl Freshness {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, newest: Mutex::new(None) }
    }

    pub(crate) fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    pub(crate) fn note(&self, confirmed: Confirmed) {
        let mut newest = self.newest.lock();
        if newest.is_none_or(|newest| newest.asked < confirmed.asked) {
            *newest = Some(confirmed);
        }
    }

    /// The newest confirmation whose index lies below `applied_end`.
    pub(crate) fn newest(&self, applied_end: u64) -> Option<Confirmed> {
        (*self.newest.lock()).filter(|confirmed| confirmed.index < applied_end)
    }
}
