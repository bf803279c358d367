//! Gathers the writes that wait for one shard into Raft entries.
//!
//! A round of Raft costs the same whatever it carries, so everything that waits when a round may
//! start goes into one entry. A few rounds are under way at once; bytes that wait are bounded for
//! the shard and for the node.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anchorhold_model::{Command, Entry, Outcome, ShardId, Stamp, Write, row};
use openraft::errors::{ClientWriteError, RaftError};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::ConsensusConfig;
use crate::error::ProposeError;
use crate::machine::normal_payload;
use crate::replica::LeaderHint;
use crate::stamp::Stamper;
use crate::types::{PeerNode, Raft, Reply, TypeConfig};

type Answer = Result<Vec<Outcome>, ProposeError>;

struct Waiting {
    commands: Vec<Command>,
    bytes: usize,
    answer: oneshot::Sender<Answer>,
}

/// Bytes that wait or are under way: a shard's and its node's.
#[derive(Clone)]
struct Load {
    shard: Arc<AtomicUsize>,
    node: Arc<AtomicUsize>,
}

impl Load {
    fn add(&self, bytes: usize) {
        self.shard.fetch_add(bytes, Ordering::Relaxed);
        self.node.fetch_add(bytes, Ordering::Relaxed);
    }

    fn remove(&self, bytes: usize) {
        self.shard.fetch_sub(bytes, Ordering::Relaxed);
        self.node.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The way into one shard's log.
pub(crate) struct Proposer {
    shard_id: ShardId,
    queue: mpsc::UnboundedSender<Waiting>,
    load: Load,
    shard_bytes_max: usize,
    node_bytes_max: usize,
}

impl Proposer {
    pub(crate) fn start(
        shard_id: ShardId,
        raft: Raft,
        stamper: Arc<Stamper>,
        config: &ConsensusConfig,
        node_bytes: Arc<AtomicUsize>,
    ) -> Self {
        let (queue, waiting) = mpsc::unbounded_channel();
        let load = Load { shard: Arc::default(), node: node_bytes };
        let rounds = Rounds {
            shard_id,
            raft,
            stamper,
            load: load.clone(),
            entry_bytes_max: config.entry_bytes_max,
            entry_commands_max: config.entry_commands_max,
            permits: Arc::new(Semaphore::new(config.entries_in_flight_max)),
        };
        tokio::spawn(rounds.run(waiting));
        Self {
            shard_id,
            queue,
            load,
            shard_bytes_max: config.shard_bytes_in_flight_max,
            node_bytes_max: config.node_bytes_in_flight_max,
        }
    }

    /// Queues commands; the receiver gets their outcomes.
    ///
    /// # Errors
    /// [`ProposeError::Busy`] if too much waits, [`ProposeError::Stopped`].
    pub(crate) fn submit(
        &self,
        commands: Vec<Command>,
    ) -> Result<oneshot::Receiver<Answer>, ProposeError> {
        let waiting_bytes = self.load.shard.load(Ordering::Relaxed);
        if self.shard_bytes_max <= waiting_bytes
            || self.node_bytes_max <= self.load.node.load(Ordering::Relaxed)
        {
            return Err(ProposeError::Busy { shard: self.shard_id, waiting_bytes });
        }
        let bytes = commands.iter().map(weight).sum();
        let (answer, receiver) = oneshot::channel();
        self.load.add(bytes);
        self.queue.send(Waiting { commands, bytes, answer }).map_err(|waiting| {
            self.load.remove(waiting.0.bytes);
            ProposeError::Stopped { shard: self.shard_id, reason: "it has ended".into() }
        })?;
        Ok(receiver)
    }
}

/// Bytes that a command takes in an entry, about.
fn weight(command: &Command) -> usize {
    const FIXED: usize = 160;
    match &command.write {
        Write::Create(anchor) => {
            let properties = anchor.properties.iter().map(|(key, value)| key.len() + value.len());
            FIXED
                + properties.sum::<usize>()
                + anchor.tags.iter().map(|tag| tag.len() + 1).sum::<usize>()
                + anchor.creator.len()
        }
        Write::Update { patch, .. } => {
            let properties = patch.properties.iter().flatten();
            FIXED
                + properties.map(|(key, value)| key.len() + value.len()).sum::<usize>()
                + patch.tags.iter().flatten().map(|tag| tag.len() + 1).sum::<usize>()
        }
        Write::Delete { .. }
        | Write::Tick
        | Write::Retire
        | Write::PrepareSplit { .. }
        | Write::Merge(_)
        | Write::Split { .. } => FIXED,
        Write::Sweep { anchors, operations } => FIXED + 17 * anchors.len() + 40 * operations.len(),
    }
}

struct Rounds {
    shard_id: ShardId,
    raft: Raft,
    stamper: Arc<Stamper>,
    load: Load,
    entry_bytes_max: usize,
    entry_commands_max: usize,
    permits: Arc<Semaphore>,
}

impl Rounds {
    async fn run(self, mut queue: mpsc::UnboundedReceiver<Waiting>) {
        let this = Arc::new(self);
        let mut carried = None;
        loop {
            let Ok(permit) = this.permits.clone().acquire_owned().await else { return };
            let first = match carried.take() {
                Some(first) => first,
                None => match queue.recv().await {
                    Some(first) => first,
                    None => return,
                },
            };
            let (mut bytes, mut commands) = (first.bytes, first.commands.len());
            let mut batch = vec![first];
            while let Ok(next) = queue.try_recv() {
                bytes += next.bytes;
                commands += next.commands.len();
                if this.entry_bytes_max < bytes || this.entry_commands_max < commands {
                    carried = Some(next);
                    break;
                }
                batch.push(next);
            }
            let this = this.clone();
            tokio::spawn(async move {
                this.round(batch).await;
                drop(permit);
            });
        }
    }

    /// Proposes one entry and hands the outcomes out.
    async fn round(&self, batch: Vec<Waiting>) {
        let mut commands = Vec::new();
        let mut receivers = Vec::with_capacity(batch.len());
        let mut bytes = 0;
        for waiting in batch {
            bytes += waiting.bytes;
            receivers.push((waiting.commands.len(), waiting.answer));
            commands.extend(waiting.commands);
        }
        let entry = Entry { stamp: Stamp { time: self.stamper.now() }, commands };
        let payload = normal_payload(&row::encode_entry(&entry));
        let result = self.raft.client_write(payload).await;
        self.load.remove(bytes);
        match result {
            Ok(response) => match response.data {
                Reply::Shard(outcomes) => hand_out(&outcomes, receivers),
                Reply::None | Reply::Catalog(_) => {}
            },
            Err(error) => {
                let error = propose_error(self.shard_id, &error);
                for (_, answer) in receivers {
                    drop(answer.send(Err(error.clone())));
                }
            }
        }
    }
}

fn hand_out(outcomes: &[Outcome], receivers: Vec<(usize, oneshot::Sender<Answer>)>) {
    let mut outcomes = outcomes.iter().cloned();
    for (count, answer) in receivers {
        drop(answer.send(Ok(outcomes.by_ref().take(count).collect())));
    }
}

/// What a failed client write means for the caller.
pub(crate) fn propose_error(
    shard: ShardId,
    error: &RaftError<TypeConfig, ClientWriteError<TypeConfig>>,
) -> ProposeError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            ProposeError::NotLeader { shard, leader: hint(forward.leader_id, forward.leader_node) }
        }
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => {
            ProposeError::OutcomeUnknown { shard }
        }
        RaftError::APIError(error) => ProposeError::Stopped { shard, reason: error.to_string() },
        RaftError::Fatal(fatal) => ProposeError::Stopped { shard, reason: fatal.to_string() },
    }
}

pub(crate) fn hint(id: Option<u64>, node: Option<PeerNode>) -> Option<LeaderHint> {
    let (id, node) = (id?, node?);
    Some(LeaderHint {
        replica_id: anchorhold_model::ReplicaId(id),
        node_id: anchorhold_model::NodeId(node.node_id),
    })
}
