//! The nearest anchors across shards.
//!
//! Shards are asked in the order of how near their anchors can be, a few at first and more in each
//! wave, each with the k-th distance found so far; the search ends when no shard that is left can
//! improve the answer. Exact: equal to a search of every anchor, ties by id, because bounds are
//! never above a true distance and a shard at exactly the k-th distance is still asked.

use std::sync::Arc;

use anchorhold_geometry::{Meters, Orientation};
use anchorhold_model::cover::{self, RangeBounds};
use anchorhold_model::{AccountNumber, Anchor, Key, KeyRange, Pose, ShardDescriptor, ShardId};
use anchorhold_proto::Failure;
use anchorhold_proto::convert::{FilterSpec, Place, ReadSpec};
use futures::StreamExt;
use futures::stream;
use metrics::histogram;

use super::{Asked, Contributions, ROUTINGS_MAX, read_at};
use crate::clock::Deadline;
use crate::core::Core;
use crate::request::{NearestQuery, Served, ShardError, ShardReply, ShardRequest};
use crate::route::RouteTable;
use crate::telemetry::name;

/// What to search for.
#[derive(Clone, Debug)]
pub struct Near {
    /// Whose anchors.
    pub account: AccountNumber,
    /// Near what.
    pub place: Place,
    /// How many.
    pub k: usize,
    /// Only within this distance.
    pub radius: Option<Meters>,
    /// Only anchors that pass.
    pub filter: FilterSpec,
    /// How to read.
    pub read: ReadSpec,
}

/// The nearest anchors that were found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Nearest first, ties by id, with the distance in meters.
    pub anchors: Vec<(f64, Arc<Anchor>)>,
    /// Who contributed.
    pub contributions: Contributions,
    /// Shards asked.
    pub asked: u32,
    /// Those that did not answer.
    pub unanswered: Vec<Unanswered>,
}

/// A part of the keys that was not seen.
#[derive(Clone, Debug)]
pub struct Unanswered {
    /// The keys.
    pub range: KeyRange,
    /// The shard that owns them.
    pub shard: ShardId,
    /// Why.
    pub failure: Failure,
}

/// Shards asked at first.
const WAVE_FIRST: usize = 1;

/// A part of the keys to search.
enum Part {
    /// Asked as a whole.
    Shard(Arc<ShardDescriptor>),
    /// Keys that no shard is known to own. What they hold cannot be said, least of all that it is
    /// nothing: a node hears of what a split took from a shard before it hears of the new one.
    Unowned(KeyRange),
}

impl Part {
    fn start(&self) -> Key {
        match self {
            Self::Shard(shard) => shard.range.start,
            Self::Unowned(range) => range.start,
        }
    }
}

/// All parts of a range, first those that are owned.
fn parts(table: &RouteTable, range: &KeyRange) -> impl Iterator<Item = Part> {
    let shards = table.overlapping(range).map(|shard| Part::Shard(Arc::clone(shard)));
    shards.chain(table.gaps(range).into_iter().map(Part::Unowned))
}

impl Core {
    /// Finds the nearest anchors of an account.
    pub async fn find_near(&self, near: &Near, deadline: &Deadline) -> Found {
        for _ in 0..ROUTINGS_MAX {
            if let Some(found) = self.find_near_once(near, deadline).await {
                return found;
            }
        }
        let reason = anchorhold_proto::Reason::StaleEpoch;
        let failure = Failure::new(reason, "the shards keep changing; try again");
        let range = KeyRange::of_account(near.account);
        let unanswered = vec![Unanswered { range, shard: ShardId::CATALOG, failure }];
        Found { unanswered, ..Found::default() }
    }

    /// One search by the routes as known now; `None` if a shard has changed.
    async fn find_near_once(&self, near: &Near, deadline: &Deadline) -> Option<Found> {
        let mut left = self.parts_by_bound(near);
        let mut found = Found::default();
        let mut wave = WAVE_FIRST;
        loop {
            let within_m = found.distance_m_max(near);
            let useful = left.partition_point(|(bound_m, _)| *bound_m <= within_m);
            left.truncate(useful);
            if left.is_empty() {
                histogram!(name::LOCATE_SHARDS).record(f64::from(found.asked));
                return Some(found);
            }
            // Shards that hold the point itself are worth asking together.
            let around = left.partition_point(|(bound_m, _)| *bound_m == 0.0);
            let count = wave.max(around.min(2)).min(left.len()).min(self.limits.fan_out_max);
            let mut asked = Vec::with_capacity(count);
            for (_, part) in left.drain(..count) {
                match part {
                    Part::Shard(shard) => asked.push(shard),
                    Part::Unowned(range) => found.note_unowned(range, &self.unowned()),
                }
            }
            let asked = asked.into_iter().map(|shard| async move {
                let answer = self.nearest_at(near, &shard, within_m, deadline).await;
                (shard, answer)
            });
            let answers: Vec<_> = stream::iter(asked).buffer_unordered(count).collect().await;
            for (shard, answer) in answers {
                found.asked += 1;
                match answer {
                    Ok((anchors, served)) => {
                        found.contributions.note(served);
                        merge(&mut found.anchors, anchors, near.k);
                    }
                    Err(Asked::Moved) => return None,
                    Err(Asked::Failed(failure)) => {
                        let (range, shard) = (shard.range, shard.shard_id);
                        found.unanswered.push(Unanswered { range, shard, failure });
                    }
                }
            }
            wave *= 2;
        }
    }

    /// Who may hold an answer, nearest first.
    fn parts_by_bound(&self, near: &Near) -> Vec<(f64, Part)> {
        let table = self.routes.table();
        let space = KeyRange::of_space(near.account, near.place.space());
        let account = KeyRange::of_account(near.account);
        let parts = parts(&table, &space).map(|part| {
            let range = match &part {
                Part::Shard(shard) => shard.range.intersect(&account),
                Part::Unowned(range) => *range,
            };
            let bounds = self.routes.bounds(near.account, range);
            (lower_bound_m(&bounds, &near.place), part)
        });
        let mut parts: Vec<_> = parts.filter(|(bound_m, _)| bound_m.is_finite()).collect();
        parts.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.start().cmp(&b.1.start())));
        parts
    }

    /// What is said of keys that no shard is known to own.
    fn unowned(&self) -> Failure {
        self.failure(&ShardError::NoReplica, None)
    }

    async fn nearest_at(
        &self,
        near: &Near,
        shard: &Arc<ShardDescriptor>,
        distance_m_max: f64,
        deadline: &Deadline,
    ) -> Result<(Vec<(f64, Arc<Anchor>)>, Served), Asked> {
        let read = read_at(shard, &near.read)?;
        let request = ShardRequest::Nearest(NearestQuery {
            keys: shard.range.intersect(&KeyRange::of_account(near.account)),
            space: near.place.space(),
            position: near.place.position(),
            k: near.k,
            distance_m_max,
            filter: near.filter.clone(),
            read,
        });
        match self.ask(shard, request, deadline).await {
            Ok(ShardReply::Found { anchors, served }) => Ok((anchors, served)),
            answer => Err(self.asked(answer, read)),
        }
    }
}

impl Found {
    fn note_unowned(&mut self, range: KeyRange, failure: &Failure) {
        self.asked += 1;
        let failure = failure.clone();
        self.unanswered.push(Unanswered { range, shard: ShardId::CATALOG, failure });
    }

    /// The keys that can hold an anchor of this answer, or one that would displace one of it.
    pub fn ranges(&self, near: &Near) -> Vec<KeyRange> {
        match Meters::new(self.distance_m_max(near)) {
            Some(radius) => cover::bound_near(near.account, &pose(&near.place), radius.get()),
            None => vec![KeyRange::of_space(near.account, near.place.space())],
        }
    }

    /// Beyond this distance an anchor does not enter the answer.
    fn distance_m_max(&self, near: &Near) -> f64 {
        let radius_m = near.radius.map_or(f64::INFINITY, Meters::get);
        match self.anchors.get(near.k.saturating_sub(1)) {
            Some((distance_m, _)) => distance_m.min(radius_m),
            None => radius_m,
        }
    }
}

fn lower_bound_m(bounds: &RangeBounds, place: &Place) -> f64 {
    match place {
        Place::Geo(point) => bounds.lower_bound_from_point_m(*point),
        Place::Local { .. } => bounds.lower_bound_m(&pose(place)),
    }
}

/// A pose at a place, turned in no way.
pub(super) fn pose(place: &Place) -> Pose {
    let orientation = Orientation::IDENTITY;
    match *place {
        Place::Geo(point) => Pose::Geo { point, orientation },
        Place::Local { space, position } => Pose::Local { space, position, orientation },
    }
}

/// Puts more neighbours in, and keeps the `k` nearest.
fn merge(best: &mut Vec<(f64, Arc<Anchor>)>, more: Vec<(f64, Arc<Anchor>)>, k: usize) {
    best.extend(more);
    best.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.id.cmp(&b.1.id)));
    best.truncate(k);
}

#[cfg(test)]
mod tests {
    use anchorhold_geometry::GeoPoint;
    use anchorhold_model::{AnchorId, RequestId};

    use super::*;

    fn anchor(item: u32) -> Arc<Anchor> {
        let pose = Pose::Geo {
            point: GeoPoint::new(1.0, 2.0, 3.0).unwrap(),
            orientation: Orientation::IDENTITY,
        };
        let id = AnchorId::derive(AccountNumber(1), &pose, RequestId(1), item, 0);
        Arc::new(
            anchorhold_proto::convert::AnchorDraft {
                pose,
                accuracy: anchorhold_model::Accuracy::default(),
                properties: std::collections::BTreeMap::new(),
                tags: std::collections::BTreeSet::new(),
                expire_time: None,
                creator: String::new(),
                quality: None,
            }
            .into_anchor(id),
        )
    }

    #[test]
    fn keys_that_no_shard_owns_are_a_part_of_the_search() {
        let shard = |id, start, end| {
            let range = KeyRange { start: Key(start), end: Some(Key(end)) };
            let nodes = [anchorhold_model::NodeId(1)];
            let class = anchorhold_model::ClassId(1);
            Arc::new(ShardDescriptor::found(ShardId(id), range, class, &nodes))
        };
        let seen = |shards: Vec<Arc<ShardDescriptor>>| {
            let range = KeyRange { start: Key(10), end: Some(Key(50)) };
            let table = RouteTable::new(shards);
            let parts = parts(&table, &range).map(|part| match part {
                Part::Shard(shard) => (shard.shard_id.0, shard.range.start.0),
                Part::Unowned(range) => (0, range.start.0),
            });
            parts.collect::<Vec<_>>()
        };
        assert_eq!(seen(vec![shard(1, 0, 30), shard(2, 30, 60)]), [(1, 0), (2, 30)]);
        assert_eq!(seen(vec![shard(1, 0, 30)]), [(1, 0), (0, 30)]);
        assert_eq!(
            seen(vec![shard(1, 20, 30), shard(2, 40, 60)]),
            [(1, 20), (2, 40), (0, 10), (0, 30)]
        );
        assert_eq!(seen(Vec::new()), [(0, 10)]);
    }

    #[test]
    fn the_merge_of_any_split_is_the_sorted_whole() {
        let all: Vec<_> = (0..40).map(|item| (f64::from(item * 7 % 11), anchor(item))).collect();
        let mut whole = all.clone();
        whole.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.id.cmp(&b.1.id)));
        for parts in [1, 3, 7] {
            for k in [1, 5, 40, 50] {
                let mut best = Vec::new();
                for part in all.chunks(parts) {
                    merge(&mut best, part.to_vec(), k);
                }
                assert_eq!(best, whole[..k.min(40)], "{parts} a part, k = {k}");
            }
        }
    }
}
