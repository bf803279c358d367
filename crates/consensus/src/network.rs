//! What openraft sends, over the peer links.

use std::collections::VecDeque;
use std::fs::File;
use std::future::Future;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anchorhold_model::{NodeId, ShardId};
use anchorhold_proto::peer_v1::SnapshotChunk;
use anchorhold_proto::peer_v1::peer_client::PeerClient;
use anchorhold_storage::GroupId;
use anchorhold_storage::snapshot::{SnapshotFile, verify};
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, Stream, StreamExt};
use openraft::OptionalSend;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
    RaftNetworkFactory,
};
use openraft::raft::{SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::birth::{self, Births};
use crate::link::{CallKind, LinkStream, MESSAGE_BYTES_MAX, Peer, Peers, Question};
use crate::pace::Pace;
use crate::replica::NodeParts;
use crate::seams::Offload;
use crate::snapshot::SnapshotContent;
use crate::types::{
    AppendRequest, AppendResult, LogId, PeerNode, Snapshot, TypeConfig, Vote, VoteRequest,
    VoteResponse,
};
use crate::wire::{
    self, AppendAnswer, AppendMessage, MessageKind, SnapshotHead, TransferMessage, VoteAnswer,
    VoteMessage,
};

/// Appends of one follower under way at once, at most.
const PIPELINE_MAX: usize = 16;
/// Bytes of a snapshot file in one chunk.
const CHUNK_BYTES: usize = 256 << 10;
/// How long a commit waits for entries to travel with. Under load there are some within a round.
const COMMIT_HOLD: Duration = Duration::from_millis(3);
/// Shortest wait for an answer to an append: a follower's fsync may take longer than a heartbeat.
const APPEND_TIMEOUT_MIN: Duration = Duration::from_secs(2);
/// Longest transfer of one snapshot file.
pub(crate) const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(600);
/// A transfer in which nothing moves for longer is over.
pub(crate) const CHUNK_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a node may take to say what it has of a snapshot.
const HELD_TIMEOUT: Duration = Duration::from_secs(2);

type Rpc<T> = Result<T, RPCError<TypeConfig>>;

/// Makes one group's clients.
pub(crate) struct Network {
    pub(crate) group: GroupId,
    pub(crate) peers: Arc<Peers>,
    /// While it is not 0, a read round waits for heartbeats: none of this group is held back.
    pub(crate) read_rounds: Arc<AtomicU64>,
    pub(crate) sessions: Arc<AtomicU64>,
    pub(crate) snapshot_pace: Arc<Pace>,
    pub(crate) births: Arc<Births>,
    pub(crate) offload: Arc<dyn Offload>,
}

/// One group's client to one replica.
pub(crate) struct ReplicaClient {
    group: GroupId,
    target: u64,
    node: NodeId,
    peers: Arc<Peers>,
    heartbeat: bool,
    read_rounds: Arc<AtomicU64>,
    sessions: Arc<AtomicU64>,
    snapshot_pace: Arc<Pace>,
    births: Arc<Births>,
    offload: Arc<dyn Offload>,
}

impl Network {
    /// The clients of a node's replica. While `read_rounds` is not 0, nothing is held back.
    pub(crate) fn of(parts: &NodeParts, group: GroupId, read_rounds: Arc<AtomicU64>) -> Self {
        Self {
            group,
            peers: parts.peers.clone(),
            read_rounds,
            sessions: parts.sessions.clone(),
            snapshot_pace: parts.snapshot_pace.clone(),
            births: parts.births.clone(),
            offload: parts.seams.offload.clone(),
        }
    }

    pub(crate) fn client(&self, target: u64, node: &PeerNode, heartbeat: bool) -> ReplicaClient {
        ReplicaClient {
            group: self.group,
            target,
            node: NodeId(node.node_id),
            peers: self.peers.clone(),
            heartbeat,
            read_rounds: self.read_rounds.clone(),
            sessions: self.sessions.clone(),
            snapshot_pace: self.snapshot_pace.clone(),
            births: self.births.clone(),
            offload: self.offload.clone(),
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = ReplicaClient;

    async fn new_client(&mut self, target: u64, node: &PeerNode) -> ReplicaClient {
        self.client(target, node, false)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &PeerNode) -> ReplicaClient {
        self.client(target, node, true)
    }
}

fn unreachable(reason: impl ToString) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(reason))
}

impl ReplicaClient {
    fn peer(&self) -> Rpc<Arc<Peer>> {
        self.peers.get(self.node).ok_or_else(|| unreachable("no address of the node is known"))
    }

    fn question(&self, kind: MessageKind, content: Bytes, may_wait: bool) -> Question {
        Question { group: self.group, kind, content, may_wait }
    }

    async fn ask(&self, stream: &LinkStream, question: Question, timeout: Duration) -> Rpc<Bytes> {
        let answer = stream.ask(question).map_err(unreachable)?;
        content(answer.receive(timeout).await)
    }

    async fn ask_for_vote(
        &self,
        kind: MessageKind,
        rpc: &VoteRequest,
        option: &RPCOption,
    ) -> Rpc<VoteResponse> {
        let message = wire::encode(&VoteMessage::new(self.target, rpc));
        let peer = self.peer()?;
        let question = self.question(kind, message, false);
        let answer = self.ask(&peer.control, question, option.hard_ttl()).await?;
        let answer: VoteAnswer = wire::decode("a vote's answer", &answer).map_err(unreachable)?;
        Ok(answer.into())
    }

    /// Sends one append; the returned future waits for its answer.
    fn send(
        &self,
        peer: &Peer,
        session: u64,
        request: AppendRequest,
        timeout: Duration,
    ) -> Rpc<impl Future<Output = Rpc<AppendResult>> + Send + use<>> {
        let message = AppendMessage { to: self.target, session, request };
        let stream = if self.heartbeat { &peer.control } else { &peer.data };
        let may_wait = self.heartbeat && self.read_rounds.load(Ordering::SeqCst) == 0;
        let question = self.question(MessageKind::Append, message.encode(), may_wait);
        let answer = stream.ask(question).map_err(unreachable)?;
        Ok(async move {
            let answer = content(answer.receive(timeout).await)?;
            let answer: AppendAnswer =
                wire::decode("an append's answer", &answer).map_err(unreachable)?;
            Ok(answer.into())
        })
    }
}

/// A request of a stream and its number in it.
type Numbered = (u64, AppendRequest);

/// The requests of a stream that openraft has handed out and whose answers it has not been told:
/// their numbers, and the last log id of each.
#[derive(Default)]
struct PulledRequests(Mutex<VecDeque<(u64, Option<LogId>)>>);

impl PulledRequests {
    /// Takes a request out that is answered, and those before it.
    fn answered(&self, number: u64) {
        self.0.lock().retain(|(pulled, _)| number < *pulled);
    }

    /// Whether an unanswered request asks for no more than the answered ones have.
    fn asks_for_nothing_beyond(&self, matching: Option<LogId>) -> bool {
        self.0.lock().front().is_some_and(|(_, last)| *last <= matching)
    }
}

/// Numbers requests as openraft hands them out.
fn numbered<S>(
    input: S,
    pulled: Arc<PulledRequests>,
) -> impl Stream<Item = Numbered> + OptionalSend + Unpin + 'static
where
    S: Stream<Item = AppendRequest> + OptionalSend + Unpin + 'static,
{
    input.enumerate().map(move |(number, request)| {
        let number = u64::try_from(number).unwrap_or(u64::MAX);
        let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        pulled.0.lock().push_back((number, last));
        (number, request)
    })
}

/// Lets a request that says nothing but how far the leader has committed wait for the entries that
/// come next, which say it too: half of all appends under load are such requests. The first request
/// of a stream may be a probe, and goes at once; so do all while a read round waits, because
/// answers may then wait for the request ([`told`]).
fn gathered<S>(
    input: S,
    read_rounds: Arc<AtomicU64>,
) -> impl Stream<Item = Numbered> + OptionalSend + 'static
where
    S: Stream<Item = Numbered> + OptionalSend + Unpin + 'static,
{
    // Asked again after its end when that came during a hold.
    let state = (input.fuse(), true, read_rounds);
    stream::unfold(state, |(mut input, is_first, read_rounds)| async move {
        let mut request = input.next().await?;
        let is_hurried = is_first || read_rounds.load(Ordering::SeqCst) != 0;
        if !is_hurried && request.1.entries.is_empty() {
            let hold = tokio::time::sleep(COMMIT_HOLD);
            tokio::pin!(hold);
            while request.1.entries.is_empty() {
                tokio::select! {
                    next = input.next() => match next {
                        Some(next) => request = next,
                        None => break,
                    },
                    () = &mut hold => break,
                }
            }
        }
        Some((request, (input, false, read_rounds)))
    })
}

/// What openraft is told of the answers. The first error or refusal is the last: openraft then
/// starts a new stream from what it knows.
///
/// openraft takes an answer that matches up to some entry for the answer to every request up to
/// that entry, a later one without entries included, and believes that the follower was heard at
/// the time when it made *that*. A read round that began between the two would be confirmed by an
/// answer given before it. So while a round waits such an answer is kept back, and the one to the
/// later request says as much. A round that begins after the look here is later than any request
/// that was handed out by then.
fn told<'s>(
    answers: BoxStream<'s, (u64, Rpc<AppendResult>)>,
    pulled: Arc<PulledRequests>,
    read_rounds: Arc<AtomicU64>,
) -> impl Stream<Item = Rpc<AppendResult>> + 's {
    stream::unfold(Some((answers, pulled, read_rounds)), |state| async move {
        let (mut answers, pulled, read_rounds) = state?;
        loop {
            let (number, answer) = answers.next().await?;
            pulled.answered(number);
            let Ok(Ok(matching)) = &answer else { return Some((answer, None)) };
            let says_too_much = pulled.asks_for_nothing_beyond(*matching);
            if !says_too_much || read_rounds.load(Ordering::SeqCst) == 0 {
                return Some((answer, Some((answers, pulled, read_rounds))));
            }
        }
    })
}

fn content(answer: Result<(MessageKind, Bytes), String>) -> Rpc<Bytes> {
    match answer {
        Ok((MessageKind::Answer, content)) => Ok(content),
        Ok((kind, content)) => {
            Err(unreachable(format!("{kind:?}: {}", String::from_utf8_lossy(&content))))
        }
        Err(reason) => Err(unreachable(reason)),
    }
}

impl NetBackoff<TypeConfig> for ReplicaClient {
    fn backoff(&self) -> Option<Backoff> {
        // The link itself backs off; a peer that is back must not be waited for any longer.
        Some(Backoff::new(std::iter::repeat(Duration::from_millis(100))))
    }
}

impl NetStreamAppend<TypeConfig> for ReplicaClient {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> futures::future::BoxFuture<'s, Rpc<BoxStream<'s, Rpc<AppendResult>>>>
    where
        S: Stream<Item = AppendRequest> + OptionalSend + Unpin + 'static,
    {
        async move {
            let peer = self.peer()?;
            let session = self.sessions.fetch_add(1, Ordering::Relaxed);
            let timeout = if self.heartbeat {
                option.hard_ttl()
            } else {
                option.hard_ttl().max(APPEND_TIMEOUT_MIN)
            };
            let client: &'s ReplicaClient = self;
            let pulled = Arc::new(PulledRequests::default());
            let input = numbered(input, Arc::clone(&pulled));
            let input = if self.heartbeat {
                input.left_stream()
            } else {
                gathered(input, Arc::clone(&self.read_rounds)).right_stream()
            };
            let sent = input.map(move |(number, request)| {
                let answer = match client.send(&peer, session, request, timeout) {
                    Ok(answer) => answer.boxed(),
                    Err(error) => futures::future::ready(Err(error)).boxed(),
                };
                answer.map(move |answer| (number, answer))
            });
            // `buffered` keeps the order.
            let answers = sent.buffered(PIPELINE_MAX).boxed();
            Ok(told(answers, pulled, Arc::clone(&self.read_rounds)).boxed())
        }
        .boxed()
    }
}

impl NetVote<TypeConfig> for ReplicaClient {
    async fn vote(&mut self, rpc: VoteRequest, option: RPCOption) -> Rpc<VoteResponse> {
        self.ask_for_vote(MessageKind::Vote, &rpc, &option).await
    }

    async fn pre_vote(&mut self, rpc: VoteRequest, option: RPCOption) -> Rpc<VoteResponse> {
        self.ask_for_vote(MessageKind::PreVote, &rpc, &option).await
    }
}

impl NetTransferLeader<TypeConfig> for ReplicaClient {
    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        let message = wire::encode(&TransferMessage {
            to: self.target,
            from_leader: req.from_leader().into(),
            last: req.last_log_id().map(wire::to_wire_log_id),
        });
        let peer = self.peer()?;
        let question = self.question(MessageKind::TransferLeader, message, false);
        self.ask(&peer.control, question, option.hard_ttl()).await?;
        Ok(Ok(()))
    }
}

impl NetSnapshot<TypeConfig> for ReplicaClient {
    type SnapshotData = SnapshotFile;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let send = self.send_snapshot(vote, snapshot.snapshot);
        tokio::select! {
            sent = tokio::time::timeout(SNAPSHOT_TIMEOUT, send) => match sent {
                Ok(Ok(response)) => Ok(response),
                Ok(Err(reason)) => Err(StreamingError::Unreachable(Unreachable::from_string(reason))),
                Err(_) => Err(StreamingError::Unreachable(Unreachable::from_string("it took too long"))),
            },
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }
}

/// Why a snapshot did not arrive.
struct NotSent {
    reason: String,
    /// Whether the file that was sent may be the cause.
    blames_file: bool,
}

impl From<String> for NotSent {
    fn from(reason: String) -> Self {
        Self { reason, blames_file: false }
    }
}

impl ReplicaClient {
    /// Sends a snapshot file and has it installed. If it turns out to be damaged, a new one is made
    /// in its place before long.
    pub(crate) async fn send_snapshot(
        &self,
        vote: Vote,
        file: SnapshotFile,
    ) -> Result<SnapshotResponse<TypeConfig>, String> {
        let path = file.path.clone();
        match self.transfer(vote, file).await {
            Ok(response) => Ok(response),
            Err(NotSent { reason, blames_file: false }) => Err(reason),
            Err(NotSent { reason, blames_file: true }) => {
                // The way there may have spoilt it, too.
                if self.is_damaged(path).await {
                    tracing::error!(shard = self.group.shard, "its snapshot file is damaged");
                    self.births.ask_for_file(ShardId(self.group.shard));
                }
                Err(reason)
            }
        }
    }

    async fn is_damaged(&self, path: PathBuf) -> bool {
        let (done, verified) = oneshot::channel();
        self.offload.spawn(Box::new(move || drop(done.send(verify(&path))))).await;
        matches!(verified.await, Ok(Err(error)) if error.is_damage())
    }

    async fn transfer(
        &self,
        vote: Vote,
        file: SnapshotFile,
    ) -> Result<SnapshotResponse<TypeConfig>, NotSent> {
        if birth::is_handle(&file) {
            let reason = "the shard was born a moment ago and has no snapshot file yet";
            return Err(reason.to_owned().into());
        }
        let content: SnapshotContent = wire::decode("a snapshot's header", &file.header.meta)
            .map_err(|error| error.to_string())?;
        let peer = self.peers.get(self.node);
        let peer = peer.ok_or_else(|| "no address of the node is known".to_owned())?;
        let held = self.held_bytes(&file).await;
        let channel = peer.bulk_channel(self.peers.dialer())?;
        let mut client = PeerClient::new(channel).max_encoding_message_size(MESSAGE_BYTES_MAX);
        tracing::info!(
            shard = self.group.shard,
            to = self.node.0,
            bytes = file.bytes,
            held,
            "sending a snapshot"
        );
        let (chunks, stream) = mpsc::channel(4);
        let first = SnapshotChunk {
            shard_id: self.group.shard,
            incarnation: self.group.incarnation,
            header: wire::encode(&SnapshotHead {
                to: self.target,
                vote: (&vote).into(),
                digest: file.digest.0,
                bytes: file.bytes,
                descriptor: content.shard.map(|shard| shard.descriptor),
            }),
            offset: 0,
            data: Bytes::new(),
            last: false,
            hello: self.peers.hello(self.node).encode_to_vec().into(),
        };
        let feed = self.feed_file(file, held, first, chunks);
        let install = async {
            let reply = client.install_snapshot(ReceiverStream::new(stream)).await;
            reply.map_err(|status| NotSent {
                reason: status.message().to_owned(),
                blames_file: status.code() == Code::DataLoss,
            })
        };
        let ((), reply) = tokio::try_join!(feed, install)?;
        let reply = reply.into_inner();
        let vote: wire::WireVote =
            wire::decode("a snapshot's answer", &reply.content).map_err(|e| e.to_string())?;
        Ok(SnapshotResponse::new(vote.into()))
    }

    /// How much of a file an earlier transfer has left there: nothing, if the node does not say.
    async fn held_bytes(&self, file: &SnapshotFile) -> u64 {
        let question = wire::encode(&(self.group.shard, self.group.incarnation, file.digest.0));
        let answer =
            self.peers.call(self.node, CallKind::SnapshotHeld, question, HELD_TIMEOUT).await;
        let held = answer.ok().and_then(|answer| wire::decode("a number of bytes", &answer).ok());
        held.unwrap_or(0).min(file.bytes)
    }

    /// Reads a file from some place on into chunks, no faster than allowed. Ends without an error when
    /// the receiver has hung up: its answer says why.
    async fn feed_file(
        &self,
        file: SnapshotFile,
        from: u64,
        first: SnapshotChunk,
        chunks: mpsc::Sender<SnapshotChunk>,
    ) -> Result<(), NotSent> {
        let unreadable =
            |error: io::Error| NotSent { reason: error.to_string(), blames_file: true };
        let (shard_id, incarnation) = (first.shard_id, first.incarnation);
        let mut opened = Err(io::Error::other("it was not opened"));
        self.offload.in_place(&mut || {
            opened = File::open(&file.path).and_then(|mut opened| {
                opened.seek(SeekFrom::Start(from))?;
                Ok(opened)
            });
        });
        let reader = opened.map_err(unreadable)?;
        if chunks.send(first).await.is_err() {
            return Ok(());
        }
        let mut offset = from;
        loop {
            let mut piece = Ok(Vec::new());
            self.offload.in_place(&mut || piece = read_piece(&reader));
            let data = piece.map_err(unreadable)?;
            let filled = data.len();
            self.snapshot_pace.take(filled as u64).await;
            let last = filled < CHUNK_BYTES;
            let chunk = SnapshotChunk {
                shard_id,
                incarnation,
                header: Bytes::new(),
                offset,
                data: data.into(),
                last,
                hello: Bytes::new(),
            };
            offset += filled as u64;
            match tokio::time::timeout(CHUNK_TIMEOUT, chunks.send(chunk)).await {
                Ok(Ok(())) if !last => {}
                Ok(Ok(()) | Err(_)) => return Ok(()),
                Err(_) => return Err("the receiver takes nothing any more".to_owned().into()),
            }
        }
    }
}

/// The next [`CHUNK_BYTES`] of a file; fewer at its end.
fn read_piece(mut file: &File) -> io::Result<Vec<u8>> {
    let mut data = Vec::with_capacity(CHUNK_BYTES);
    file.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut data)?;
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Entry, EntryPayload, log_id};

    fn request(commit: u64, entries: std::ops::Range<u64>) -> AppendRequest {
        let entry = |index| Entry { log_id: log_id(1, index), payload: EntryPayload::Blank };
        AppendRequest {
            vote: Vote::new_committed(1, 1),
            prev_log_id: entries.start.checked_sub(1).map(|index| log_id(1, index)),
            entries: entries.map(entry).collect(),
            leader_commit: Some(log_id(1, commit)),
        }
    }

    /// Commit and number of entries of what leaves, and when.
    async fn next(stream: &mut (impl Stream<Item = Numbered> + Unpin)) -> Option<(u64, usize)> {
        let (_, request) = stream.next().await?;
        Some((request.leader_commit.map_or(0, |id| id.index), request.entries.len()))
    }

    #[tokio::test]
    async fn a_commit_leaves_with_the_entries_behind_it_or_alone_when_there_are_none() {
        let (requests, input) = mpsc::channel(8);
        // As openraft's own stream, this one may not be asked again after its end.
        let input = Box::pin(stream::unfold(input, |mut input: mpsc::Receiver<_>| async move {
            Some((input.recv().await?, input))
        }));
        let rounds = Arc::new(AtomicU64::new(0));
        let input = numbered(input, Arc::default());
        let mut gathered = Box::pin(gathered(input, Arc::clone(&rounds)));
        // A probe, for which the leader waits.
        requests.send(request(1, 2..2)).await.unwrap();
        assert_eq!(next(&mut gathered).await, Some((1, 0)));
        for request in [request(2, 3..3), request(3, 3..3), request(3, 3..5), request(3, 5..6)] {
            requests.send(request).await.unwrap();
        }
        assert_eq!(next(&mut gathered).await, Some((3, 2)));
        assert_eq!(next(&mut gathered).await, Some((3, 1)));
        requests.send(request(5, 6..6)).await.unwrap();
        assert_eq!(next(&mut gathered).await, Some((5, 0)));
        // A read round makes them hurry.
        rounds.store(1, Ordering::SeqCst);
        requests.send(request(5, 6..6)).await.unwrap();
        requests.send(request(5, 6..7)).await.unwrap();
        assert_eq!(next(&mut gathered).await, Some((5, 0)));
        assert_eq!(next(&mut gathered).await, Some((5, 1)));
        rounds.store(0, Ordering::SeqCst);
        requests.send(request(6, 6..6)).await.unwrap();
        drop(requests);
        assert_eq!(next(&mut gathered).await, Some((6, 0)));
        assert_eq!(next(&mut gathered).await, None);
    }

    /// What of the answers up to a number is told while `rounds` wait: after each, the index that
    /// it says.
    async fn heard(
        rounds: u64,
        lasts: &[std::ops::Range<u64>],
        answered: &[(u64, u64)],
    ) -> Vec<u64> {
        let pulled = Arc::new(PulledRequests::default());
        let requests = lasts.iter().map(|range| request(1, range.clone())).collect::<Vec<_>>();
        let _: Vec<_> = numbered(stream::iter(requests), Arc::clone(&pulled)).collect().await;
        let answers =
            answered.iter().map(|(number, index)| (*number, Ok(Ok(Some(log_id(1, *index))))));
        let answers = stream::iter(answers.collect::<Vec<_>>()).boxed();
        let told = told(answers, pulled, Arc::new(AtomicU64::new(rounds)));
        told.map(|answer| answer.unwrap().unwrap().unwrap().index).collect().await
    }

    #[tokio::test]
    async fn an_answer_is_not_taken_for_that_to_a_later_request_while_a_read_round_waits() {
        // Entries 1 to 3, then a commit that asks for nothing more, then entry 4.
        let lasts = [1..4, 4..4, 4..5];
        assert_eq!(heard(0, &lasts, &[(0, 3)]).await, [3]);
        assert_eq!(heard(1, &lasts, &[(0, 3)]).await, [0_u64; 0]);
        assert_eq!(heard(1, &lasts, &[(0, 3), (1, 3)]).await, [3]);
        // The commit has left with the entry behind it.
        assert_eq!(heard(1, &lasts, &[(0, 3), (2, 4)]).await, [4]);
        assert_eq!(heard(1, &[1..4, 4..5], &[(0, 3), (1, 4)]).await, [3, 4]);
    }
}
