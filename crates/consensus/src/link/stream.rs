//! One outgoing stream of a link: questions out, answers back.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anchorhold_proto::peer_v1::peer_client::PeerClient;
use anchorhold_proto::peer_v1::{LinkFrame, LinkMessage, PeerHello};
use anchorhold_storage::GroupId;
use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::{HOLD, MESSAGE_BYTES_MAX, Peers, Place};
use crate::wire::MessageKind;

/// Messages that one frame carries, at most.
const FRAME_MESSAGES_MAX: usize = 1_024;
/// Bytes that one frame carries, at most, unless its first message alone is larger.
const FRAME_BYTES_MAX: usize = 4 << 20;
/// Frames waiting for the transport, at most.
const FRAMES_MAX: usize = 16;
/// Waits between attempts to connect: doubled up to the second figure.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// Longest wait for the peer's handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// What a stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamClass {
    /// Heartbeats, votes, read indexes.
    Control,
    /// Entries.
    Data,
}

/// A question of one group.
pub(crate) struct Question {
    pub(crate) group: GroupId,
    pub(crate) kind: MessageKind,
    pub(crate) content: Bytes,
    /// Whether it may wait for others to share its frame.
    pub(crate) may_wait: bool,
}

struct Outgoing {
    message: LinkMessage,
    may_wait: bool,
}

type Pending = Arc<Mutex<BTreeMap<u64, oneshot::Sender<(MessageKind, Bytes)>>>>;

/// The sending end of a stream that connects, and connects again, by itself.
pub(crate) struct LinkStream {
    outgoing: mpsc::Sender<Outgoing>,
    pending: Pending,
    next_id: AtomicU64,
}

/// Waits for one answer; forgets the question when dropped.
pub(crate) struct Answer {
    id: u64,
    pending: Pending,
    receiver: oneshot::Receiver<(MessageKind, Bytes)>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.pending.lock().remove(&self.id);
    }
}

impl Answer {
    /// The answer's kind and content.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn receive(
        mut self,
        timeout: Duration,
    ) -> Result<(MessageKind, Bytes), String> {
        match tokio::time::timeout(timeout, &mut self.receiver).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err("the link broke".into()),
            Err(_) => Err(format!("no answer within {timeout:?}")),
        }
    }
}

impl LinkStream {
    pub(crate) fn start(
        peers: Arc<Peers>,
        place: Arc<Place>,
        class: StreamClass,
        messages_max: usize,
    ) -> Self {
        let (outgoing, queue) = mpsc::channel(messages_max);
        let pending = Pending::default();
        tokio::spawn(run(peers, place, class, queue, pending.clone()));
        Self { outgoing, pending, next_id: AtomicU64::new(1) }
    }

    /// Queues a question.
    ///
    /// # Errors
    /// If the queue is full or the stream has stopped.
    pub(crate) fn ask(&self, question: Question) -> Result<Answer, String> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        self.pending.lock().insert(id, sender);
        let answer = Answer { id, pending: self.pending.clone(), receiver };
        let message = LinkMessage {
            id,
            shard_id: question.group.shard,
            incarnation: question.group.incarnation,
            kind: question.kind.number(),
            content: question.content,
        };
        let outgoing = Outgoing { message, may_wait: question.may_wait };
        match self.outgoing.try_send(outgoing) {
            Ok(()) => Ok(answer),
            Err(mpsc::error::TrySendError::Full(_)) => Err("the link's queue is full".into()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err("the link has stopped".into()),
        }
    }
}

/// Keeps one stream connected until its peer is forgotten, and with it the sending end.
async fn run(
    peers: Arc<Peers>,
    place: Arc<Place>,
    class: StreamClass,
    mut queue: mpsc::Receiver<Outgoing>,
    pending: Pending,
) {
    let mut backoff = BACKOFF.0;
    while !queue.is_closed() {
        let connected = connect(&peers, &place).await;
        match connected {
            Ok((frames, answers)) => {
                backoff = BACKOFF.0;
                if class == StreamClass::Control {
                    peers.note_refusal(&place, false);
                }
                let closed = exchange(&mut queue, frames, answers, &pending).await;
                pending.lock().clear();
                if closed {
                    return;
                }
            }
            Err(Down { reason, is_refused }) => {
                tracing::debug!(?class, reason, "a link is down");
                if class == StreamClass::Control {
                    peers.note_refusal(&place, is_refused);
                }
                // Nobody waits for what cannot be sent: openraft tries again by itself.
                while queue.try_recv().is_ok() {}
                pending.lock().clear();
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF.1);
            }
        }
    }
}

async fn connect(
    peers: &Arc<Peers>,
    place: &Place,
) -> Result<(mpsc::Sender<LinkFrame>, tonic::Streaming<LinkFrame>), Down> {
    let channel = place.dial(peers.dialer())?;
    let mut client = PeerClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let (frames, stream) = mpsc::channel(FRAMES_MAX);
    let hello = LinkMessage {
        id: 0,
        shard_id: 0,
        incarnation: 0,
        kind: MessageKind::Hello.number(),
        content: peers.hello(place.node_id).encode_to_vec().into(),
    };
    frames
        .try_send(LinkFrame { messages: vec![hello] })
        .map_err(|error| Down::from(error.to_string()))?;
    let open = async {
        let mut answers = client
            .link(ReceiverStream::new(stream))
            .await
            .map_err(|status| Down::of_status(&status))?
            .into_inner();
        let first = answers.next().await.ok_or_else(|| "the peer closed the link".to_owned())?;
        check_answer(peers, &first.map_err(|status| status.message().to_owned())?)?;
        Ok((frames, answers))
    };
    tokio::time::timeout(HANDSHAKE_TIMEOUT, open)
        .await
        .unwrap_or_else(|_| Err("no handshake in time".to_owned().into()))
}

/// Why there is no link.
struct Down {
    reason: String,
    /// Whether the peer's host says that nobody listens there.
    is_refused: bool,
}

impl From<String> for Down {
    fn from(reason: String) -> Self {
        Self { reason, is_refused: false }
    }
}

impl Down {
    fn of_status(status: &tonic::Status) -> Self {
        let mut source = std::error::Error::source(status);
        let mut is_refused = false;
        while let Some(error) = source {
            let io = error.downcast_ref::<std::io::Error>();
            is_refused |= io.is_some_and(|io| io.kind() == ErrorKind::ConnectionRefused);
            source = error.source();
        }
        Self { reason: status.message().to_owned(), is_refused }
    }
}

fn check_answer(peers: &Arc<Peers>, frame: &LinkFrame) -> Result<(), String> {
    let message = frame.messages.first().ok_or("the handshake is empty")?;
    if MessageKind::from_number(message.kind) != Some(MessageKind::Hello) {
        return Err("the peer did not begin with a handshake".into());
    }
    let hello =
        PeerHello::decode(message.content.clone()).map_err(|_| "the handshake is damaged")?;
    peers.check_hello(&hello).map(drop)
}

/// Carries questions and answers until the stream breaks. Returns whether the queue has closed.
async fn exchange(
    queue: &mut mpsc::Receiver<Outgoing>,
    frames: mpsc::Sender<LinkFrame>,
    mut answers: tonic::Streaming<LinkFrame>,
    pending: &Pending,
) -> bool {
    let answered = async {
        while let Some(Ok(frame)) = answers.next().await {
            for message in frame.messages {
                let Some(kind) = MessageKind::from_number(message.kind) else { continue };
                let waiting = pending.lock().remove(&message.id);
                if let Some(waiting) = waiting {
                    drop(waiting.send((kind, message.content)));
                }
            }
        }
    };
    let asked = async {
        while let Some(frame) = next_frame(queue).await {
            if frames.send(frame).await.is_err() {
                return false;
            }
        }
        true
    };
    tokio::select! {
        () = answered => false,
        closed = asked => closed,
    }
}

/// Everything that waits, as one frame; `None` when the queue has closed.
async fn next_frame(queue: &mut mpsc::Receiver<Outgoing>) -> Option<LinkFrame> {
    let first = queue.recv().await?;
    let mut held = first.may_wait;
    let mut bytes = first.message.content.len();
    let mut messages = vec![first.message];
    let hold = tokio::time::sleep(if held { HOLD } else { Duration::ZERO });
    tokio::pin!(hold);
    while messages.len() < FRAME_MESSAGES_MAX && bytes < FRAME_BYTES_MAX {
        let next = if held {
            tokio::select! {
                next = queue.recv() => next,
                () = &mut hold => None,
            }
        } else {
            queue.try_recv().ok()
        };
        let Some(next) = next else { break };
        held &= next.may_wait;
        bytes += next.message.content.len();
        messages.push(next.message);
    }
    Some(LinkFrame { messages })
}
