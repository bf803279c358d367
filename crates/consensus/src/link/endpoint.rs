//! The receiving side of the links: hands messages to replicas and answers them.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Weak};

use anchorhold_model::NodeId;
use anchorhold_proto::peer_v1::peer_server::Peer as PeerService;
use anchorhold_proto::peer_v1::{
    CallReply, CallRequest, InstallSnapshotReply, JoinReply, JoinRequest, LinkFrame, LinkMessage,
    PeerHello, SnapshotChunk,
};
use anchorhold_storage::{DiskState, GroupId};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::host::Host;
use crate::link::CallKind;
use crate::quiescence;
use crate::replica::Replica;
use crate::seeding;
use crate::types::AppendRequest;
use crate::wire::{
    self, AppendAnswer, AppendMessage, MessageKind, ReadIndexMessage, TransferMessage, VoteAnswer,
    VoteMessage,
};

/// Answers waiting to be sent on one link, at most.
const ANSWERS_MAX: usize = 16_384;
/// Answers that one frame carries, at most.
const FRAME_MESSAGES_MAX: usize = 1_024;
/// Appends of one session waiting for their replica, at most.
const SESSION_MAX: usize = 64;

/// The gRPC service that peers talk to.
#[derive(Clone)]
pub struct PeerEndpoint {
    host: Host,
}

/// Sends answers of one link.
type Answers = mpsc::Sender<LinkMessage>;

/// One sender's pipeline into one replica.
struct Session {
    number: u64,
    requests: mpsc::Sender<(LinkMessage, AppendRequest)>,
}

impl PeerEndpoint {
    pub(crate) fn new(host: Host) -> Self {
        Self { host }
    }

    fn check_hello(&self, hello: Bytes) -> Result<NodeId, Status> {
        let hello = PeerHello::decode(hello)
            .map_err(|_| Status::invalid_argument("the handshake is damaged"))?;
        self.host.peers().check_hello(&hello).map_err(Status::failed_precondition)
    }
}

fn answer_to(question: &LinkMessage, kind: MessageKind, content: Bytes) -> LinkMessage {
    LinkMessage {
        id: question.id,
        shard_id: question.shard_id,
        incarnation: question.incarnation,
        kind: kind.number(),
        content,
    }
}

fn refusal(question: &LinkMessage, reason: &str) -> LinkMessage {
    answer_to(question, MessageKind::Refused, Bytes::copy_from_slice(reason.as_bytes()))
}

/// Reads one link's frames and hands their messages on, in order.
async fn serve_link(host: Host, from: NodeId, mut frames: Streaming<LinkFrame>, answers: Answers) {
    let mut sessions: BTreeMap<GroupId, Session> = BTreeMap::new();
    while let Some(Ok(frame)) = frames.next().await {
        for message in frame.messages {
            let group = GroupId { shard: message.shard_id, incarnation: message.incarnation };
            let Some(replica) = host.replica_of_group(group) else {
                drop(answers.try_send(refusal(&message, "no replica of this group lives here")));
                continue;
            };
            if let Err(reason) = replica.may_follow() {
                drop(answers.try_send(refusal(&message, &reason)));
                continue;
            }
            match MessageKind::from_number(message.kind) {
                Some(MessageKind::Append) => {
                    hand_on_append(&mut sessions, &replica, group, message, &answers).await;
                }
                Some(kind) => {
                    let (host, answers) = (host.clone(), answers.clone());
                    tokio::spawn(async move {
                        let answered = answer_question(&host, from, &replica, kind, &message).await;
                        let answer = match answered {
                            Ok(content) => answer_to(&message, MessageKind::Answer, content),
                            Err(reason) => refusal(&message, &reason),
                        };
                        drop(answers.send(answer).await);
                    });
                }
                None => drop(answers.try_send(refusal(&message, "unknown kind of message"))),
            }
        }
    }
}

async fn hand_on_append(
    sessions: &mut BTreeMap<GroupId, Session>,
    replica: &Arc<Replica>,
    group: GroupId,
    question: LinkMessage,
    answers: &Answers,
) {
    let append = match AppendMessage::decode(&question.content) {
        Ok(append) if append.to == replica.replica_id().0 => append,
        Ok(_) => {
            drop(answers.try_send(refusal(&question, "another replica was addressed")));
            return;
        }
        Err(error) => {
            drop(answers.try_send(refusal(&question, &error.to_string())));
            return;
        }
    };
    if !append.request.entries.is_empty() && !replica.takes_entries() {
        drop(answers.try_send(refusal(&question, "the disk of this node is full")));
        return;
    }
    let current = sessions.get(&group).is_some_and(|session| session.number == append.session);
    if !current {
        let (requests, queue) = mpsc::channel(SESSION_MAX);
        tokio::spawn(run_session(Arc::downgrade(replica), queue, answers.clone()));
        sessions.insert(group, Session { number: append.session, requests });
    }
    if let Some(session) = sessions.get(&group)
        && let Err(mpsc::error::SendError((question, _))) =
            session.requests.send((question, append.request)).await
    {
        drop(answers.try_send(refusal(&question, "the session has ended")));
    }
}

/// Feeds one session's appends to its replica and answers them in order. Ends with the first
/// conflict: what follows in the pipeline is void.
async fn run_session(
    replica: Weak<Replica>,
    queue: mpsc::Receiver<(LinkMessage, AppendRequest)>,
    answers: Answers,
) {
    let Some(raft) = replica.upgrade().map(|replica| replica.raft().clone()) else { return };
    // As many as openraft takes in at once, and so bounded.
    let (questions, mut asked) = mpsc::unbounded_channel::<LinkMessage>();
    let requests = ReceiverStream::new(queue).map(move |(mut question, request)| {
        question.content = Bytes::new();
        // Nobody asks for it any more once the answers have ended.
        drop(questions.send(question));
        request
    });
    // When the sender is done, what it sent is still answered.
    let mut results = std::pin::pin!(raft.stream_append(requests));
    while let Some(result) = results.next().await {
        if let Some(replica) = replica.upgrade() {
            // Not before: its lease lapsed while it rested, and it would campaign at once.
            replica.stir();
        }
        let Some(question) = asked.recv().await else { return };
        let answer = match &result {
            Ok(result) => {
                let content = wire::encode(&AppendAnswer::from(result));
                answer_to(&question, MessageKind::Answer, content)
            }
            Err(fatal) => refusal(&question, &fatal.to_string()),
        };
        if answers.send(answer).await.is_err() || !matches!(result, Ok(Ok(_))) {
            return;
        }
    }
}

async fn answer_question(
    host: &Host,
    from: NodeId,
    replica: &Arc<Replica>,
    kind: MessageKind,
    message: &LinkMessage,
) -> Result<Bytes, String> {
    let addressed = |to: u64| {
        if to == replica.replica_id().0 { Ok(()) } else { Err("another replica was addressed") }
    };
    match kind {
        MessageKind::Vote | MessageKind::PreVote => {
            let vote: VoteMessage =
                wire::decode("a vote", &message.content).map_err(|e| e.to_string())?;
            addressed(vote.to)?;
            replica.may_vote()?;
            let raft = replica.raft();
            let response = if kind == MessageKind::PreVote {
                quiescence::may_be_replaced(host, replica, from).await?;
                raft.pre_vote(vote.request()).await
            } else {
                let response = raft.vote(vote.request()).await;
                replica.stir();
                response
            };
            let response = response.map_err(|error| error.to_string())?;
            Ok(wire::encode(&VoteAnswer::from(&response)))
        }
        MessageKind::TransferLeader => {
            let transfer: TransferMessage =
                wire::decode("a transfer", &message.content).map_err(|e| e.to_string())?;
            addressed(transfer.to)?;
            replica.may_vote()?;
            replica.take_over(transfer).await?;
            Ok(Bytes::new())
        }
        MessageKind::ReadIndex => {
            let read: ReadIndexMessage =
                wire::decode("a read index", &message.content).map_err(|e| e.to_string())?;
            addressed(read.to)?;
            let index = replica.lead_read_round().await?;
            Ok(wire::encode(&index))
        }
        MessageKind::Hello | MessageKind::Append | MessageKind::Answer | MessageKind::Refused => {
            Err("not a question".into())
        }
    }
}

/// Gathers answers that wait into frames.
fn answer_frames(
    hello: LinkMessage,
    answers: mpsc::Receiver<LinkMessage>,
) -> impl Stream<Item = Result<LinkFrame, Status>> {
    let first = futures::stream::once(async move { Ok(LinkFrame { messages: vec![hello] }) });
    let rest = futures::stream::unfold(answers, |mut answers| async move {
        let mut messages = Vec::new();
        let received = answers.recv_many(&mut messages, FRAME_MESSAGES_MAX).await;
        (0 < received).then_some((Ok(LinkFrame { messages }), answers))
    });
    first.chain(rest)
}

#[tonic::async_trait]
impl PeerService for PeerEndpoint {
    type LinkStream = Pin<Box<dyn Stream<Item = Result<LinkFrame, Status>> + Send>>;

    async fn link(
        &self,
        request: Request<Streaming<LinkFrame>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let mut frames = request.into_inner();
        let first = frames
            .next()
            .await
            .ok_or_else(|| Status::invalid_argument("the link began with nothing"))??;
        let mut messages = first.messages.into_iter();
        let hello = messages
            .next()
            .filter(|message| MessageKind::from_number(message.kind) == Some(MessageKind::Hello))
            .ok_or_else(|| Status::invalid_argument("the link began without a handshake"))?;
        let peer = self.check_hello(hello.content.clone())?;
        let own = self.host.peers().hello(peer).encode_to_vec().into();
        let hello = answer_to(&hello, MessageKind::Hello, own);
        let (answers, queue) = mpsc::channel(ANSWERS_MAX);
        tokio::spawn(serve_link(self.host.clone(), peer, frames, answers));
        Ok(Response::new(Box::pin(answer_frames(hello, queue))))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<InstallSnapshotReply>, Status> {
        let mut chunks = request.into_inner();
        let first = chunks
            .next()
            .await
            .ok_or_else(|| Status::invalid_argument("the snapshot is empty"))??;
        self.check_hello(first.hello.clone())?;
        let group = GroupId { shard: first.shard_id, incarnation: first.incarnation };
        let replica = self
            .host
            .replica_of_group(group)
            .ok_or_else(|| Status::not_found("no replica of this group lives here"))?;
        if self.host.fitness().report().disk == DiskState::Full {
            return Err(Status::resource_exhausted("the disk of this node is full"));
        }
        replica.may_follow().map_err(Status::failed_precondition)?;
        let is_taken = |shard: &_| self.host.is_taken_for_good(shard);
        let content = replica.receive_snapshot(&first.header, chunks, is_taken).await?;
        Ok(Response::new(InstallSnapshotReply { content }))
    }

    async fn call(&self, request: Request<CallRequest>) -> Result<Response<CallReply>, Status> {
        let call = request.into_inner();
        let from = self.check_hello(call.hello)?;
        let content = match CallKind::from_number(call.kind) {
            Some(CallKind::Server) => self.host.answer_call(from, call.content).await,
            Some(CallKind::Catalog) => self.host.answer_catalog_call(&call.content).await,
            Some(CallKind::Member) => self.host.answer_member_call(from, &call.content).await,
            Some(CallKind::Quiesce) => quiescence::answer_quiesce(&self.host, &call.content)
                .map_err(|error| Status::invalid_argument(error.to_string()))?,
            Some(CallKind::Rouse) => quiescence::answer_rouse(&self.host, &call.content)
                .await
                .map_err(|error| Status::invalid_argument(error.to_string()))?,
            Some(CallKind::Leads) => quiescence::answer_leads(&self.host, &call.content)
                .map_err(|error| Status::invalid_argument(error.to_string()))?,
            Some(CallKind::SnapshotHeld) => seeding::answer_held(&self.host, &call.content)
                .map_err(|error| Status::invalid_argument(error.to_string()))?,
            Some(CallKind::SendSnapshot) => seeding::answer_send(&self.host, &call.content).await,
            Some(CallKind::Vitals) => wire::encode(&self.host.fitness().vitals()),
            Some(CallKind::Refused) => {
                let node = wire::decode("a node's id", &call.content)
                    .map_err(|error| Status::invalid_argument(error.to_string()))?;
                wire::encode(&self.host.peers().refuses(node))
            }
            None => return Err(Status::unimplemented("unknown kind of call")),
        };
        Ok(Response::new(CallReply { content }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        self.host.admit(request.into_inner()).await.map(Response::new)
    }
}
