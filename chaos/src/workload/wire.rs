//! Between what histories hold and what travels.

use std::collections::BTreeMap;

use anchorhold_client::{ClientError, Reason, v1};
use anchorhold_model::Version;
use anchorhold_proto::etag;
use rand::Rng;

use crate::history::{Action, Level, Outcome, Position, Row, Served, UNWRITTEN_REASONS, value_of};

/// A write as it is sent, as often as needed.
#[derive(Clone, Debug)]
pub(super) enum Request {
    Create(v1::CreateAnchorRequest),
    Batch(v1::BatchCreateAnchorsRequest),
    Update(v1::UpdateAnchorRequest),
    Delete(v1::DeleteAnchorRequest),
}

/// A write and what it says item by item.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) actions: Vec<Action>,
    pub(super) request: Request,
}

/// A new anchor's value, place and expiry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draft {
    pub(super) value: u64,
    pub(super) position: Position,
    /// By the run's clock and by the wall's.
    pub(super) expire: Option<(u64, prost_types::Timestamp)>,
}

impl Write {
    pub(super) fn create(rng: &mut impl Rng, draft: Draft) -> Self {
        let request = new_request(rng);
        let actions = vec![create_action(request, 0, &draft)];
        let anchor = Some(anchor_of(&draft));
        let request_id = uuid_text(request);
        let request = Request::Create(v1::CreateAnchorRequest { anchor, request_id });
        Self { actions, request }
    }

    pub(super) fn create_all(rng: &mut impl Rng, drafts: &[Draft]) -> Self {
        let request = new_request(rng);
        let actions = (0..).zip(drafts).map(|(item, draft)| create_action(request, item, draft));
        let actions = actions.collect();
        let anchors = drafts.iter().map(anchor_of).collect();
        let request_id = uuid_text(request);
        let wire = v1::BatchCreateAnchorsRequest { anchors, request_id, ids_only: false };
        Self { actions, request: Request::Batch(wire) }
    }

    pub(super) fn update(
        rng: &mut impl Rng,
        id: u128,
        value: u64,
        expected: Option<(Version, u64)>,
    ) -> Self {
        let request = new_request(rng);
        let anchor = v1::Anchor {
            id: text_of_id(id),
            properties: properties(value),
            etag: expected.map(|(version, _)| etag::of_version(version)).unwrap_or_default(),
            ..v1::Anchor::default()
        };
        let wire = v1::UpdateAnchorRequest {
            anchor: Some(anchor),
            update_mask: Some(prost_types::FieldMask { paths: vec!["properties".to_owned()] }),
            request_id: uuid_text(request),
        };
        let actions = vec![Action::Update { request, id, value, expected }];
        Self { actions, request: Request::Update(wire) }
    }

    pub(super) fn delete(rng: &mut impl Rng, id: u128) -> Self {
        let request = new_request(rng);
        let wire = v1::DeleteAnchorRequest {
            id: text_of_id(id),
            etag: String::new(),
            request_id: uuid_text(request),
        };
        Self { actions: vec![Action::Delete { request, id }], request: Request::Delete(wire) }
    }
}

fn create_action(request: u128, item: u32, draft: &Draft) -> Action {
    let Draft { value, position, expire } = *draft;
    Action::Create { request, item, value, position, expire_ns: expire.map(|(ns, _)| ns) }
}

fn anchor_of(draft: &Draft) -> v1::Anchor {
    let Position { latitude_deg, longitude_deg, height_m } = draft.position;
    v1::Anchor {
        pose: Some(v1::Pose::on_earth(latitude_deg, longitude_deg, height_m)),
        properties: properties(draft.value),
        expire_time: draft.expire.map(|(_, wall)| wall),
        ..v1::Anchor::default()
    }
}

fn properties(value: u64) -> BTreeMap<String, String> {
    BTreeMap::from([("value".to_owned(), value.to_string())])
}

/// What an anchor in a reply to a write of `value` says of that write. A retry is answered with the
/// anchor as it is now, which may show a later write.
pub(super) fn written(id: u128, value: u64, anchor: Option<&v1::Anchor>) -> Outcome {
    let own = anchor.filter(|anchor| value_of(anchor) == value);
    Outcome::Written { id, version: own.and_then(version_of) }
}

/// A failed write in terms of what it proves.
pub(super) fn write_failure(error: &ClientError) -> Outcome {
    let reason = reason_text(error);
    match error.reason() {
        Some(Reason::EtagMismatch) => {
            let current = error.metadata().get("current_etag");
            let current = current.and_then(|text| etag::to_version(text).ok().flatten());
            Outcome::Mismatch { current }
        }
        Some(Reason::AnchorNotFound) => Outcome::Absent,
        Some(known) if UNWRITTEN_REASONS.contains(&known) => Outcome::Failed { reason },
        // Sent once and refused: an earlier try cannot be under way still.
        Some(known)
            if known != Reason::CommitUnknown
                && error.attempts() <= 1
                && error.unknown_request_id().is_none() =>
        {
            Outcome::Failed { reason }
        }
        Some(_) | None => Outcome::Unknown { reason },
    }
}

/// A failed read.
pub(super) fn read_failure(error: &ClientError) -> Outcome {
    match error.reason() {
        Some(Reason::AnchorNotFound) => Outcome::Absent,
        Some(_) | None => Outcome::Failed { reason: reason_text(error) },
    }
}

fn reason_text(error: &ClientError) -> String {
    match error.reason_text() {
        "" => format!("{:?}", error.code()),
        text => text.to_owned(),
    }
}

/// Who answered.
pub(super) fn served(serving: Option<&v1::ServingInfo>) -> Served {
    let Some(shard) = serving.and_then(|serving| serving.shards.first()) else {
        return Served::default();
    };
    Served {
        shard: shard.shard_id,
        node: shard.node_id,
        revision: shard.revision,
        staleness_ns: shard.staleness.and_then(|staleness| {
            let seconds = u64::try_from(staleness.seconds).ok()?;
            Some(seconds * 1_000_000_000 + u64::try_from(staleness.nanos).ok()?)
        }),
    }
}

/// How a level is asked for.
pub(super) fn read_options(level: Level) -> v1::ReadOptions {
    match level {
        Level::Linearizable => v1::ReadOptions::default(),
        Level::Bounded { staleness_max_ms } => {
            v1::ReadOptions::bounded_staleness(std::time::Duration::from_millis(staleness_max_ms))
        }
        Level::Local | Level::Session => v1::ReadOptions::local(),
    }
}

/// The version that an anchor's etag names.
pub(super) fn version_of(anchor: &v1::Anchor) -> Option<Version> {
    etag::to_version(&anchor.etag).ok().flatten()
}

/// An anchor as a row; `None` if it has no id or version.
pub(super) fn row_of(anchor: &v1::Anchor, distance_m: f64) -> Option<Row> {
    let id = id_of_text(&anchor.id)?;
    Some(Row { id, version: version_of(anchor)?, value: value_of(anchor), distance_m })
}

/// The anchors of a page.
pub(crate) fn rows_of_page(anchors: &[v1::Anchor]) -> Option<Vec<Row>> {
    anchors.iter().map(|anchor| row_of(anchor, 0.0)).collect()
}

/// An id from a UUID's text.
pub(super) fn id_of_text(text: &str) -> Option<u128> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    (digits.len() == 32).then(|| u128::from_str_radix(&digits, 16).ok()).flatten()
}

/// The text of an id.
pub(super) fn text_of_id(id: u128) -> String {
    uuid_text(id)
}

fn uuid_text(bits: u128) -> String {
    anchorhold_proto::text::uuid_text(bits)
}

/// A request id: a UUID of version 4.
fn new_request(rng: &mut impl Rng) -> u128 {
    let bits: u128 = rng.random();
    bits & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retrys_reply_that_shows_a_later_write_tells_no_version() {
        let anchor = |value: u64| v1::Anchor {
            properties: properties(value),
            etag: "0-2a".to_owned(),
            ..v1::Anchor::default()
        };
        let version = Some(Version { incarnation: 0, revision: 42 });
        assert_eq!(written(7, 5, Some(&anchor(5))), Outcome::Written { id: 7, version });
        assert_eq!(written(7, 5, Some(&anchor(6))), Outcome::Written { id: 7, version: None });
        assert_eq!(written(7, 5, None), Outcome::Written { id: 7, version: None });
    }

    #[test]
    fn ids_come_back_from_their_text() {
        for id in [0, 1 << 127, 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef] {
            assert_eq!(id_of_text(&text_of_id(id)), Some(id));
        }
        assert_eq!(id_of_text("12"), None);
    }
}
