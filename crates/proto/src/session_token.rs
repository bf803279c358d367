//! Session tokens: what a session has seen, range by range.
//!
//! A token is a map from keys to the newest version that the session saw or wrote there, kept as
//! disjoint ranges in key order. A shard that serves a read must have reached the newest version of
//! all ranges that overlap its own: shards may have been split or merged since, ranges still match.
//!
//! On the wire a token is a sequence of self-delimiting segments, each with its checksum, so that a
//! client may put two tokens one after the other to demand both. It is opaque and grants nothing.

use anchorhold_model::{Key, KeyRange, Version};
use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::limits::{SESSION_ENTRIES_MAX, SESSION_TOKEN_BYTES_MAX};
use crate::{FieldError, Reason, text};

/// What a session has seen. Empty for a session that demands nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionToken {
    /// Sorted, disjoint, no neighbours of equal version that touch.
    spans: Vec<Span>,
}

/// What a session demands of a replica of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// The replica's revision must have reached this; 0 demands nothing.
    Revision(u64),
    /// The session saw a later incarnation of the shard: this replica must not serve it.
    LaterIncarnation,
    /// The session saw an earlier incarnation: the shard was re-founded since, and what the
    /// session saw may be lost.
    EarlierIncarnation,
}

/// Keys from `start` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    start: u128,
    last: u128,
    version: Version,
}

const FORMAT: u8 = 1;
/// Entry flags: the range begins where the one before ended; the range reaches the last key.
const TOUCHES: u8 = 1;
const ENDLESS: u8 = 2;

impl SessionToken {
    /// Whether it demands nothing.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Ranges that it tells apart.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Notes that the session saw, or wrote, this version of a shard with this range.
    pub fn note(&mut self, range: &KeyRange, version: Version) {
        if range.is_empty() {
            return;
        }
        let last = range.end.map_or(u128::MAX, |end| end.0 - 1);
        self.insert(Span { start: range.start.0, last, version });
    }

    /// Notes all that another token notes.
    pub fn merge(&mut self, other: &Self) {
        for span in &other.spans {
            self.insert(*span);
        }
    }

    /// What it demands of a replica of a shard with this range and incarnation.
    pub fn demand(&self, range: &KeyRange, incarnation: u32) -> Demand {
        if range.is_empty() {
            return Demand::Revision(0);
        }
        let last = range.end.map_or(u128::MAX, |end| end.0 - 1);
        let first = self.spans.partition_point(|span| span.last < range.start.0);
        let overlapping = self.spans[first..].iter().take_while(|span| span.start <= last);
        let (mut revision, mut is_earlier) = (0, false);
        for span in overlapping {
            if incarnation < span.version.incarnation {
                return Demand::LaterIncarnation;
            }
            if span.version.incarnation < incarnation {
                is_earlier = true;
            } else {
                revision = revision.max(span.version.revision);
            }
        }
        if is_earlier { Demand::EarlierIncarnation } else { Demand::Revision(revision) }
    }

    fn insert(&mut self, new: Span) {
        let first = self.spans.partition_point(|span| span.last < new.start);
        let end = self.spans.partition_point(|span| span.start <= new.last);
        // A session mostly meets the same shards with the same bounds.
        if let [old] = &mut self.spans[first..end]
            && old.start == new.start
            && old.last == new.last
        {
            old.version = old.version.max(new.version);
            self.coalesce(first);
            return;
        }
        let mut pieces = Vec::with_capacity(end - first + 2);
        let mut rest = Some(new.start);
        for old in &self.spans[first..end] {
            if old.start < new.start {
                pieces.push(Span { last: new.start - 1, ..*old });
            }
            if let Some(cursor) = rest.filter(|cursor| *cursor < old.start) {
                pieces.push(Span { start: cursor, last: old.start - 1, version: new.version });
            }
            let (start, last) = (old.start.max(new.start), old.last.min(new.last));
            pieces.push(Span { start, last, version: old.version.max(new.version) });
            rest = if last < new.last { Some(last + 1) } else { None };
            if new.last < old.last {
                pieces.push(Span { start: new.last + 1, ..*old });
            }
        }
        if let Some(start) = rest {
            pieces.push(Span { start, ..new });
        }
        self.spans.splice(first..end, pieces);
        self.coalesce(first);
    }

    /// Joins neighbours of equal version that touch, from the one before `first` on.
    fn coalesce(&mut self, first: usize) {
        let mut tail = self.spans.split_off(first.saturating_sub(1));
        tail.dedup_by(|next, before| {
            let is_one =
                next.version == before.version && before.last.checked_add(1) == Some(next.start);
            if is_one {
                before.last = next.last;
            }
            is_one
        });
        self.spans.append(&mut tail);
    }

    /// The token's bytes: empty if it demands nothing; `None` if it tells more than
    /// [`SESSION_ENTRIES_MAX`] ranges apart, and then only LINEARIZABLE reads keep the session's
    /// promise.
    pub fn encode(&self) -> Option<Bytes> {
        if SESSION_ENTRIES_MAX < self.spans.len() {
            return None;
        }
        if self.spans.is_empty() {
            return Some(Bytes::new());
        }
        let mut body = BytesMut::with_capacity(16 + 24 * self.spans.len());
        let mut last_before = None;
        for span in &self.spans {
            let touches =
                last_before.is_some_and(|last: u128| last.checked_add(1) == Some(span.start));
            let is_endless = span.last == u128::MAX;
            body.put_u8(if touches { TOUCHES } else { 0 } | if is_endless { ENDLESS } else { 0 });
            if !touches {
                put_key(&mut body, span.start);
            }
            if !is_endless {
                put_key(&mut body, span.last + 1);
            }
            put_varint(&mut body, u64::from(span.version.incarnation));
            put_varint(&mut body, span.version.revision);
            last_before = Some(span.last);
        }
        let mut token = BytesMut::with_capacity(body.len() + 16);
        token.put_u8(FORMAT);
        put_varint(&mut token, body.len() as u64);
        token.put_slice(&body);
        let checksum = text::fnv1a(&token);
        token.put_u64(checksum);
        Some(token.freeze())
    }

    /// Reads a token, or several that were put one after the other.
    ///
    /// # Errors
    /// SESSION_TOKEN_INVALID, on the field `session_token`, if it is damaged or too large.
    pub fn decode(bytes: &[u8]) -> Result<Self, FieldError> {
        let invalid = |problem: &str| {
            FieldError::because(Reason::SessionTokenInvalid, "session_token", problem)
        };
        if SESSION_TOKEN_BYTES_MAX < bytes.len() {
            return Err(invalid("too large"));
        }
        let mut token = Self::default();
        let mut rest = bytes;
        while !rest.is_empty() {
            token
                .read_segment(&mut rest)
                .ok_or_else(|| invalid("damaged, or not made by this service"))?;
            if SESSION_ENTRIES_MAX < token.spans.len() {
                return Err(invalid("tells too many ranges apart"));
            }
        }
        Ok(token)
    }

    fn read_segment(&mut self, rest: &mut &[u8]) -> Option<()> {
        let segment = *rest;
        if rest.try_get_u8().ok()? != FORMAT {
            return None;
        }
        let body_bytes = usize::try_from(get_varint(rest)?).ok()?;
        let (mut body, after) = rest.split_at_checked(body_bytes)?;
        let checked_bytes = segment.len() - after.len();
        *rest = after;
        if rest.try_get_u64().ok()? != text::fnv1a(&segment[..checked_bytes]) {
            return None;
        }
        let mut end_before = None;
        while !body.is_empty() {
            let flags = body.try_get_u8().ok()?;
            let start = if flags & TOUCHES != 0 { end_before? } else { get_key(&mut body)? };
            let end = if flags & ENDLESS != 0 { None } else { Some(get_key(&mut body)?) };
            let incarnation = u32::try_from(get_varint(&mut body)?).ok()?;
            let version = Version { incarnation, revision: get_varint(&mut body)? };
            self.note(&KeyRange { start: Key(start), end: end.map(Key) }, version);
            end_before = end;
        }
        Some(())
    }
}

/// A key without its trailing zeros: most bounds are cells, whose low bytes are 0.
fn put_key(buffer: &mut BytesMut, key: u128) {
    let length = 16 - (key.trailing_zeros() / 8).min(16) as usize;
    buffer.put_u8(u8::try_from(length).unwrap_or(16));
    buffer.put_slice(&key.to_be_bytes()[..length]);
}

fn get_key(buffer: &mut &[u8]) -> Option<u128> {
    let length = usize::from(buffer.try_get_u8().ok()?);
    let mut bytes = [0; 16];
    buffer.try_copy_to_slice(bytes.get_mut(..length)?).ok()?;
    Some(u128::from_be_bytes(bytes))
}

fn put_varint(buffer: &mut BytesMut, value: u64) {
    prost::encoding::encode_varint(value, buffer);
}

fn get_varint(buffer: &mut &[u8]) -> Option<u64> {
    prost::encoding::decode_varint(buffer).ok()
}

const _: () = assert!(
    SESSION_ENTRIES_MAX * (1 + 17 + 17 + 5 + 10) + 32 <= SESSION_TOKEN_BYTES_MAX,
    "the largest token that is made must be one that is taken"
);

#[cfg(test)]
mod tests;
