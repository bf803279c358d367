//! The bytes of entries in the log, and of messages between replicas.
//!
//! An entry's content is one kind byte and what it says; it is the same in the shared log and on
//! the wire, so that a follower stores the slice that it received. Messages are postcard; an
//! append is `[u32 LE head length][head][entry contents, one after the other]`. Everything here is
//! input from a disk or a peer: decoding fails with an error, never with a panic.

use std::collections::{BTreeMap, BTreeSet};

use anchorhold_model::ShardDescriptor;
use anchorhold_storage::{LogEntry, LogPosition};
use bytes::{BufMut, Bytes, BytesMut};
use openraft::raft::StreamAppendError;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::types::{
    AppendRequest, AppendResult, Entry, EntryPayload, LogId, Membership, Payload, PeerNode,
    StoredMembership, Vote, VoteRequest, VoteResponse, log_id,
};

/// Version of everything in this file. Nodes that disagree on it do not talk.
pub(crate) const FORMAT_VERSION: u32 = 2;

const KIND_BLANK: u8 = 0;
/// First byte of a normal entry's content.
pub(crate) const KIND_NORMAL: u8 = 1;
const KIND_MEMBERSHIP: u8 = 2;

/// What a link message's content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MessageKind {
    Hello,
    Append,
    Vote,
    PreVote,
    TransferLeader,
    ReadIndex,
    Answer,
    Refused,
}

impl MessageKind {
    const ALL: [Self; 8] = [
        Self::Hello,
        Self::Append,
        Self::Vote,
        Self::PreVote,
        Self::TransferLeader,
        Self::ReadIndex,
        Self::Answer,
        Self::Refused,
    ];

    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Hello => 1,
            Self::Append => 2,
            Self::Vote => 3,
            Self::PreVote => 4,
            Self::TransferLeader => 5,
            Self::ReadIndex => 6,
            Self::Answer => 7,
            Self::Refused => 8,
        }
    }

    pub(crate) fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }
}

/// Bytes that are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot decode {what}: {reason}")]
pub(crate) struct WireError {
    what: &'static str,
    reason: String,
}

fn wire_error(what: &'static str, reason: impl ToString) -> WireError {
    WireError { what, reason: reason.to_string() }
}

/// Encodes a message. Encoding into memory cannot fail for the types of this crate.
pub(crate) fn encode<T: Serialize>(message: &T) -> Bytes {
    postcard::to_stdvec(message).map(Bytes::from).unwrap_or_default()
}

pub(crate) fn decode<T: DeserializeOwned>(
    what: &'static str,
    bytes: &[u8],
) -> Result<T, WireError> {
    postcard::from_bytes(bytes).map_err(|error| wire_error(what, error))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WireVote {
    term: u64,
    voted_for: u64,
    committed: bool,
}

impl WireVote {
    pub(crate) fn term(&self) -> u64 {
        self.term
    }
}

impl From<&Vote> for WireVote {
    fn from(vote: &Vote) -> Self {
        Self {
            term: vote.leader_id.term,
            voted_for: vote.leader_id.voted_for,
            committed: vote.committed,
        }
    }
}

impl From<WireVote> for Vote {
    fn from(vote: WireVote) -> Self {
        if vote.committed {
            Self::new_committed(vote.term, vote.voted_for)
        } else {
            Self::new(vote.term, vote.voted_for)
        }
    }
}

/// Whether a vote is that of a leader: one that a quorum has granted.
pub(crate) fn is_leaders(vote: &Vote) -> bool {
    vote.committed
}

/// (term, index).
pub(crate) type WireLogId = (u64, u64);

pub(crate) fn to_wire_log_id(id: &LogId) -> WireLogId {
    (id.leader_id.term, id.index)
}

pub(crate) fn from_wire_log_id(id: WireLogId) -> LogId {
    log_id(id.0, id.1)
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WireMembership {
    /// Voter sets: one, or two while joint.
    pub(crate) configs: Vec<BTreeSet<u64>>,
    /// All members by replica id, learners included.
    pub(crate) nodes: BTreeMap<u64, PeerNode>,
}

impl From<&Membership> for WireMembership {
    fn from(membership: &Membership) -> Self {
        Self {
            configs: membership.get_joint_config().clone(),
            nodes: membership.nodes().map(|(id, node)| (*id, *node)).collect(),
        }
    }
}

impl WireMembership {
    pub(crate) fn into_membership(self) -> Result<Membership, WireError> {
        if self.configs.is_empty() && self.nodes.is_empty() {
            return Ok(Membership::default());
        }
        Membership::new(self.configs, self.nodes).map_err(|error| wire_error("a membership", error))
    }
}

/// A membership and where it stands in the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WireStoredMembership {
    pub(crate) log_id: Option<WireLogId>,
    pub(crate) membership: WireMembership,
}

impl From<&StoredMembership> for WireStoredMembership {
    fn from(stored: &StoredMembership) -> Self {
        Self {
            log_id: stored.log_id().as_ref().map(to_wire_log_id),
            membership: stored.membership().into(),
        }
    }
}

impl WireStoredMembership {
    pub(crate) fn into_stored(self) -> Result<StoredMembership, WireError> {
        let membership = self.membership.into_membership()?;
        Ok(StoredMembership::new(self.log_id.map(from_wire_log_id), membership))
    }
}

pub(crate) fn entry_content(payload: &EntryPayload) -> Bytes {
    match payload {
        EntryPayload::Blank => Bytes::from_static(&[KIND_BLANK]),
        EntryPayload::Normal(Payload(bytes)) => bytes.clone(),
        EntryPayload::Membership(membership) => {
            let mut content = vec![KIND_MEMBERSHIP];
            content.extend_from_slice(&encode(&WireMembership::from(membership)));
            content.into()
        }
    }
}

pub(crate) fn entry_from_content(
    position: LogPosition,
    content: Bytes,
) -> Result<Entry, WireError> {
    let payload = match content.first() {
        Some(&KIND_BLANK) => EntryPayload::Blank,
        Some(&KIND_NORMAL) => EntryPayload::Normal(Payload(content)),
        Some(&KIND_MEMBERSHIP) => {
            let membership: WireMembership = decode("a membership entry", &content[1..])?;
            EntryPayload::Membership(membership.into_membership()?)
        }
        Some(kind) => return Err(wire_error("an entry", format!("unknown kind {kind}"))),
        None => return Err(wire_error("an entry", "it is empty")),
    };
    Ok(Entry { log_id: log_id(position.term, position.index), payload })
}

pub(crate) fn log_entry(entry: &Entry) -> LogEntry {
    LogEntry {
        position: LogPosition { term: entry.log_id.leader_id.term, index: entry.log_id.index },
        content: entry_content(&entry.payload),
    }
}

/// An append as it travels.
pub(crate) struct AppendMessage {
    /// The addressed replica: one that has been replaced must not answer for its successor.
    pub(crate) to: u64,
    /// One run of the sender's pipeline. Appends of one session are handed on in order.
    pub(crate) session: u64,
    pub(crate) request: AppendRequest,
}

#[derive(Serialize, Deserialize)]
struct AppendHead {
    to: u64,
    session: u64,
    vote: WireVote,
    prev: Option<WireLogId>,
    commit: Option<WireLogId>,
    /// Term, index and content length of each entry.
    entries: Vec<(u64, u64, u32)>,
}

impl AppendMessage {
    pub(crate) fn encode(&self) -> Bytes {
        let contents: Vec<LogEntry> = self.request.entries.iter().map(log_entry).collect();
        let head = encode(&AppendHead {
            to: self.to,
            session: self.session,
            vote: (&self.request.vote).into(),
            prev: self.request.prev_log_id.as_ref().map(to_wire_log_id),
            commit: self.request.leader_commit.as_ref().map(to_wire_log_id),
            entries: contents
                .iter()
                .map(|entry| {
                    let length = u32::try_from(entry.content.len()).unwrap_or(u32::MAX);
                    (entry.position.term, entry.position.index, length)
                })
                .collect(),
        });
        let body: usize = contents.iter().map(|entry| entry.content.len()).sum();
        let mut bytes = BytesMut::with_capacity(4 + head.len() + body);
        bytes.put_u32_le(u32::try_from(head.len()).unwrap_or(u32::MAX));
        bytes.put_slice(&head);
        for entry in contents {
            bytes.put_slice(&entry.content);
        }
        bytes.freeze()
    }

    pub(crate) fn decode(bytes: &Bytes) -> Result<Self, WireError> {
        const WHAT: &str = "an append";
        let short = || wire_error(WHAT, "it ends early");
        let prefix: [u8; 4] =
            bytes.get(..4).and_then(|prefix| prefix.try_into().ok()).ok_or_else(short)?;
        let head_end = usize::try_from(u32::from_le_bytes(prefix))
            .ok()
            .and_then(|length| length.checked_add(4))
            .ok_or_else(short)?;
        let head: AppendHead = decode(WHAT, bytes.get(4..head_end).ok_or_else(short)?)?;
        let mut entries = Vec::with_capacity(head.entries.len().min(4_096));
        let mut start = head_end;
        for (term, index, length) in head.entries {
            let end = start.checked_add(length as usize).ok_or_else(short)?;
            if bytes.len() < end {
                return Err(short());
            }
            entries.push(entry_from_content(LogPosition { term, index }, bytes.slice(start..end))?);
            start = end;
        }
        let request = AppendRequest {
            vote: head.vote.into(),
            prev_log_id: head.prev.map(from_wire_log_id),
            entries,
            leader_commit: head.commit.map(from_wire_log_id),
        };
        Ok(Self { to: head.to, session: head.session, request })
    }
}

/// The answer to an append.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum AppendAnswer {
    Flushed(Option<WireLogId>),
    Conflict(WireLogId),
    HigherVote(WireVote),
}

impl From<&AppendResult> for AppendAnswer {
    fn from(result: &AppendResult) -> Self {
        match result {
            Ok(flushed) => Self::Flushed(flushed.as_ref().map(to_wire_log_id)),
            Err(StreamAppendError::Conflict(id)) => Self::Conflict(to_wire_log_id(id)),
            Err(StreamAppendError::HigherVote(vote)) => Self::HigherVote(vote.into()),
        }
    }
}

impl From<AppendAnswer> for AppendResult {
    fn from(answer: AppendAnswer) -> Self {
        match answer {
            AppendAnswer::Flushed(flushed) => Ok(flushed.map(from_wire_log_id)),
            AppendAnswer::Conflict(id) => Err(StreamAppendError::Conflict(from_wire_log_id(id))),
            AppendAnswer::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote.into())),
        }
    }
}

/// A vote or pre-vote, and its answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct VoteMessage {
    pub(crate) to: u64,
    vote: WireVote,
    last: Option<WireLogId>,
    leadership_transfer: bool,
}

impl VoteMessage {
    pub(crate) fn new(to: u64, request: &VoteRequest) -> Self {
        Self {
            to,
            vote: (&request.vote).into(),
            last: request.last_log_id.as_ref().map(to_wire_log_id),
            leadership_transfer: request.leadership_transfer,
        }
    }

    pub(crate) fn request(&self) -> VoteRequest {
        let mut request = VoteRequest::new(self.vote.into(), self.last.map(from_wire_log_id));
        request.leadership_transfer = self.leadership_transfer;
        request
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct VoteAnswer {
    vote: WireVote,
    granted: bool,
    last: Option<WireLogId>,
}

impl From<&VoteResponse> for VoteAnswer {
    fn from(response: &VoteResponse) -> Self {
        Self {
            vote: (&response.vote).into(),
            granted: response.vote_granted,
            last: response.last_log_id.as_ref().map(to_wire_log_id),
        }
    }
}

impl From<VoteAnswer> for VoteResponse {
    fn from(answer: VoteAnswer) -> Self {
        Self::new(Vote::from(answer.vote), answer.last.map(from_wire_log_id), answer.granted)
    }
}

/// Asks a follower to take over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TransferMessage {
    pub(crate) to: u64,
    pub(crate) from_leader: WireVote,
    pub(crate) last: Option<WireLogId>,
}

/// Asks the leader for an index that, once applied, makes a read linearizable.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ReadIndexMessage {
    pub(crate) to: u64,
}

/// What precedes the bytes of a snapshot file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotHead {
    pub(crate) to: u64,
    pub(crate) vote: WireVote,
    /// Digest and length of the file.
    pub(crate) digest: [u8; 32],
    pub(crate) bytes: u64,
    /// The shard by it; `None` for the catalog.
    pub(crate) descriptor: Option<ShardDescriptor>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_candidates_vote_is_no_leaders_also_behind_the_wire() {
        for (vote, expected) in [(Vote::new(6, 1), false), (Vote::new_committed(6, 1), true)] {
            let sent: WireVote = decode("a vote", &encode(&WireVote::from(&vote))).unwrap();
            assert_eq!((is_leaders(&vote), is_leaders(&sent.into())), (expected, expected));
        }
    }

    fn append() -> AppendMessage {
        let membership = Membership::new(
            vec![BTreeSet::from([1, 2])],
            BTreeMap::from([(1, PeerNode { node_id: 4 }), (2, PeerNode { node_id: 5 })]),
        );
        let payloads = [
            EntryPayload::Blank,
            EntryPayload::Normal(Payload(Bytes::from_static(&[KIND_NORMAL, 7, 7]))),
            EntryPayload::Membership(membership.unwrap()),
        ];
        let entries =
            (4..).zip(payloads).map(|(index, payload)| Entry { log_id: log_id(3, index), payload });
        AppendMessage {
            to: 2,
            session: 9,
            request: AppendRequest {
                vote: Vote::new_committed(3, 1),
                prev_log_id: Some(log_id(2, 3)),
                entries: entries.collect(),
                leader_commit: Some(log_id(2, 2)),
            },
        }
    }

    #[test]
    fn an_append_survives_the_wire() {
        let sent = append();
        let received = AppendMessage::decode(&sent.encode()).unwrap();
        assert_eq!((received.to, received.session), (2, 9));
        assert_eq!(format!("{:?}", received.request), format!("{:?}", sent.request));
    }

    #[test]
    fn a_cut_append_is_an_error_at_every_length() {
        let whole = append().encode();
        for length in 0..whole.len() {
            assert!(AppendMessage::decode(&whole.slice(..length)).is_err(), "length {length}");
        }
    }

    #[test]
    fn every_message_kind_has_its_own_number() {
        let numbers: BTreeSet<u32> = MessageKind::ALL.iter().map(|kind| kind.number()).collect();
        assert_eq!(numbers.len(), MessageKind::ALL.len());
        for kind in MessageKind::ALL {
            assert_eq!(MessageKind::from_number(kind.number()), Some(kind));
        }
        assert_eq!(MessageKind::from_number(99), None);
    }
}
