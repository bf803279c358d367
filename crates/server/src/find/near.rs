//! The nearest anchors across shards.
//!
//! Shards are asked in the order of how near their anchors can be, a few at first and more in each
//! wave, each with the k-th distance found so far; the search ends when no shard that is left can
//! improve the answer. How near is first a rough guess, and made exact only for those whose turn
//! comes: most shards of a large account are far away. Exact: equal to a search of every anchor,
//! ties by id, because bounds are never above a true distance and a shard at exactly the k-th
//! distance is still asked.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
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

/// The parts that are still to be asked, nearest first.
struct Candidates {
    from: Pose,
    heap: BinaryHeap<Reverse<Candidate>>,
}

struct Candidate {
    /// No anchor of the part is nearer.
    bound_m: f64,
    part: Part,
    /// To make the bound exact with, until that is done.
    rough: Option<Arc<RangeBounds>>,
}

impl Candidates {
    fn new(from: Pose, parts: impl Iterator<Item = (Part, Arc<RangeBounds>)>) -> Self {
        let candidates = parts.map(|(part, bounds)| {
            let bound_m = bounds.rough_lower_bound_m(&from);
            Reverse(Candidate { bound_m, part, rough: Some(bounds) })
        });
        Self { heap: candidates.filter(|one| one.0.bound_m.is_finite()).collect(), from }
    }

    /// The nearest part, if it can hold an anchor within a distance.
    fn next_within(&mut self, within_m: f64) -> Option<Candidate> {
        loop {
            let Reverse(nearest) = self.heap.pop()?;
            let Some(bounds) = &nearest.rough else {
                return (nearest.bound_m <= within_m).then_some(nearest);
            };
            if within_m < nearest.bound_m {
                return None;
            }
            let bound_m = bounds.lower_bound_m(&self.from);
            if bound_m.is_finite() {
                self.heap.push(Reverse(Candidate { bound_m, rough: None, ..nearest }));
            }
        }
    }

    /// Up to `count` parts that can hold an anchor within a distance, or two if both may hold the
    /// position itself; never more than `count_max`. None: the search is over.
    fn next_wave(&mut self, count: usize, count_max: usize, within_m: f64) -> Vec<Part> {
        let mut wave = Vec::new();
        while wave.len() < count.max(2).min(count_max) {
            let Some(next) = self.next_within(within_m) else { break };
            if count <= wave.len() && 0.0 < next.bound_m {
                self.heap.push(Reverse(next));
                break;
            }
            wave.push(next.part);
        }
        wave
    }
}

impl Candidate {
    /// Nearest first, then by key: the same answer each time.
    fn rank(&self, other: &Self) -> Ordering {
        self.bound_m.total_cmp(&other.bound_m).then(self.part.start().cmp(&other.part.start()))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.rank(other).is_eq()
    }
}

impl Eq for Candidate {}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank(other)
    }
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
        let mut left = self.candidates(near);
        let mut found = Found::default();
        let mut wave = WAVE_FIRST;
        loop {
            let within_m = found.distance_m_max(near);
            let parts = left.next_wave(wave, self.limits.fan_out_max, within_m);
            if parts.is_empty() {
                histogram!(name::LOCATE_SHARDS).record(f64::from(found.asked));
                return Some(found);
            }
            let count = parts.len();
            let mut asked = Vec::with_capacity(count);
            for part in parts {
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

    /// Who may hold an answer.
    fn candidates(&self, near: &Near) -> Candidates {
        let table = self.routes.table();
        let space = KeyRange::of_space(near.account, near.place.space());
        let account = KeyRange::of_account(near.account);
        let from = pose(&near.place);
        let parts = parts(&table, &space).map(|part| {
            let range = match &part {
                Part::Shard(shard) => shard.range.intersect(&account),
                Part::Unowned(range) => *range,
            };
            (part, self.routes.bounds(near.account, range))
        });
        Candidates::new(from, parts)
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
    fn waves_take_the_nearest_parts_and_end_with_those_in_reach() {
        let account = AccountNumber(1);
        let point = GeoPoint::new(48.8, 2.3, 0.0).unwrap();
        let from = pose(&Place::Geo(point));
        // Blocks along the whole curve of the account's cells.
        let whole = KeyRange::of_space(account, Place::Geo(point).space());
        let step = (whole.end.unwrap().0 - whole.start.0) / 60;
        let parts = (0..60).map(|n| {
            let at = |n: u128| Key(whole.start.0 + n * step);
            let range = KeyRange { start: at(n), end: Some(at(n + 1)) };
            (Part::Unowned(range), Arc::new(RangeBounds::new(account, &range)))
        });
        let parts: Vec<_> = parts.collect();
        let mut exact: Vec<_> = parts
            .iter()
            .map(|(part, bounds)| (bounds.lower_bound_m(&from), part.start()))
            .filter(|(bound_m, _)| bound_m.is_finite())
            .collect();
        exact.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        assert!(50 < exact.len() && exact[0].0 == 0.0 && 0.0 < exact[40].0, "{exact:?}");
        for within_m in [0.0, exact[9].0, exact[40].0, f64::INFINITY] {
            let mut left = Candidates::new(from, parts.iter().map(clone_of));
            let mut taken = Vec::new();
            loop {
                let wave = left.next_wave(3, 16, within_m);
                assert!(wave.len() <= 3);
                if wave.is_empty() {
                    break;
                }
                taken.extend(wave.iter().map(Part::start));
            }
            let in_reach = exact.iter().filter(|(bound_m, _)| *bound_m <= within_m);
            assert_eq!(taken, in_reach.map(|(_, start)| *start).collect::<Vec<_>>(), "{within_m}");
        }
    }

    #[test]
    fn only_parts_that_may_hold_the_position_are_asked_two_at_once() {
        let account = AccountNumber(1);
        let bounds = |range| Arc::new(RangeBounds::new(account, &range));
        let space = KeyRange::of_space(account, anchorhold_model::Space::Earth);
        let from = pose(&Place::Geo(GeoPoint::new(48.8, 2.3, 0.0).unwrap()));
        let elsewhere = AnchorId::derive(
            account,
            &pose(&Place::Geo(GeoPoint::new(-33.0, 151.0, 0.0).unwrap())),
            RequestId(1),
            0,
            0,
        );
        let far = KeyRange { start: elsewhere.key(), end: elsewhere.key().next() };
        let of = |ranges: &[KeyRange]| {
            let parts = ranges.iter().map(|range| (Part::Unowned(*range), bounds(*range)));
            Candidates::new(from, parts)
        };
        let waves = |ranges: &[KeyRange], count_max| {
            let mut left = of(ranges);
            let sizes =
                std::iter::repeat_with(|| left.next_wave(1, count_max, f64::INFINITY).len());
            sizes.take_while(|size| *size != 0).collect::<Vec<_>>()
        };
        assert_eq!(waves(&[space, far, space, space], 16), [2, 1, 1]);
        assert_eq!(waves(&[space, far, space], 1), [1, 1, 1]);
        assert_eq!(waves(&[far, far], 16), [1, 1]);
    }

    fn clone_of(part: &(Part, Arc<RangeBounds>)) -> (Part, Arc<RangeBounds>) {
        let Part::Unowned(range) = &part.0 else { panic!("of this test's parts only") };
        (Part::Unowned(*range), Arc::clone(&part.1))
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
