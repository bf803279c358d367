//! Listings in id order across shards.

use std::sync::Arc;

use anchorhold_model::{AccountNumber, Anchor, Key, KeyRange, Space, cover};
use anchorhold_proto::Failure;
use anchorhold_proto::convert::{FilterSpec, ReadSpec, RegionSpec};

use super::{Asked, Contributions, ROUTINGS_MAX, read_at};
use crate::clock::Deadline;
use crate::core::Core;
use crate::request::{ListQuery, ShardReply, ShardRequest};
use crate::serve::{LIST_BYTES_MAX, size};

/// What to list.
#[derive(Clone, Debug)]
pub struct PageQuery {
    /// Whose anchors.
    pub account: AccountNumber,
    /// Only this space.
    pub space: Option<Space>,
    /// Only this region.
    pub region: Option<RegionSpec>,
    /// Only anchors that pass.
    pub filter: FilterSpec,
    /// Only ids after this key.
    pub after: Option<Key>,
    /// Anchors in the page, at most.
    pub limit: usize,
    /// How to read.
    pub read: ReadSpec,
    /// Whether to go on behind a shard that does not answer. A listing by page cannot: it would not
    /// come back to what it passed over.
    pub passes_over: bool,
}

/// A part of a listing.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// In id order.
    pub anchors: Vec<Arc<Anchor>>,
    /// The next page begins after this key; `None` if this was the last one.
    pub next: Option<Key>,
    /// Who contributed.
    pub contributions: Contributions,
    /// Shards asked and answered.
    pub asked: u32,
    /// What could not be seen, if the listing had to stop there.
    pub failure: Option<(KeyRange, Failure)>,
    /// The keys of shards that did not answer and were passed over.
    pub passed_over: Vec<(KeyRange, Failure)>,
}

impl PageQuery {
    /// The keys that can hold an answer, ascending and disjoint.
    pub fn ranges(&self) -> Vec<KeyRange> {
        let account = self.account;
        let ranges = match (&self.region, self.space) {
            (Some(region), _) => ranges_of_region(account, region),
            (None, Some(space)) => vec![KeyRange::of_space(account, space)],
            (None, None) => vec![KeyRange::of_account(account)],
        };
        let Some(after) = self.after else { return ranges };
        let Some(first) = after.next() else { return Vec::new() };
        from(&ranges, first)
    }
}

/// The keys under which every anchor of a region lies.
pub(super) fn ranges_of_region(account: AccountNumber, region: &RegionSpec) -> Vec<KeyRange> {
    match region {
        RegionSpec::Sphere { center, radius } => {
            cover::cover_near(account, &super::near::pose(center), radius.get())
        }
        RegionSpec::GeoRectangle { south_west, north_east, is_full_circle, .. } => {
            let (west_deg, east_deg) = if *is_full_circle {
                (-180.0, 180.0)
            } else {
                (south_west.longitude_deg(), north_east.longitude_deg())
            };
            let rect = cover::GeoRect::new(
                south_west.latitude_deg(),
                west_deg,
                north_east.latitude_deg(),
                east_deg,
            );
            rect.map_or_else(
                |_| vec![KeyRange::of_space(account, Space::Earth)],
                |rect| cover::cover_rect(account, &rect),
            )
        }
        RegionSpec::LocalBox { space, .. } => {
            vec![KeyRange::of_space(account, Space::Local(*space))]
        }
    }
}

impl Core {
    /// Lists anchors, shard after shard, until the page is full or the ranges are exhausted. A
    /// shard that does not answer ends the page, unless it may be passed over; what was found before
    /// is kept.
    pub async fn page(&self, query: &PageQuery, deadline: &Deadline) -> Page {
        let mut page = Page::default();
        let mut ranges = query.ranges();
        let mut routings = 0;
        while let Some(first) = ranges.first().copied() {
            let bytes: usize = page.anchors.iter().map(|anchor| size(anchor)).sum();
            if query.limit <= page.anchors.len() || LIST_BYTES_MAX <= bytes {
                page.next = page.anchors.last().map(|anchor| anchor.id.key());
                return page;
            }
            // Who goes on behind a silent shard needs time for the others.
            let share = query.passes_over.then(|| self.deadline(deadline.remaining() / 2));
            let until = share.as_ref().unwrap_or(deadline);
            match self.page_step(query, &ranges, &mut page, until).await {
                Ok(rest) => ranges = rest,
                Err(Asked::Moved) if routings < ROUTINGS_MAX => routings += 1,
                Err(Asked::Moved) => {
                    let reason = anchorhold_proto::Reason::StaleEpoch;
                    page.failure = Some((first, Failure::new(reason, "the shard keeps changing")));
                    return page;
                }
                Err(Asked::Failed(failure)) => {
                    let table = self.routes.table();
                    let silent = table.of_key(first.start).map(|shard| shard.range);
                    let Some(silent) = silent.filter(|_| query.passes_over) else {
                        page.failure = Some((first, failure));
                        return page;
                    };
                    page.passed_over.push((silent, failure));
                    let Some(end) = silent.end else { return page };
                    ranges = from(&ranges, end);
                }
            }
        }
        page
    }

    /// Asks the shard of the first range. Returns the ranges that are left.
    async fn page_step(
        &self,
        query: &PageQuery,
        ranges: &[KeyRange],
        page: &mut Page,
        deadline: &Deadline,
    ) -> Result<Vec<KeyRange>, Asked> {
        let Some(first) = ranges.first() else { return Ok(Vec::new()) };
        let table = self.routes.table();
        let shard = table.of_key(first.start).ok_or_else(|| {
            let error = crate::request::ShardError::NoReplica;
            Asked::Failed(self.failure(&error, None))
        })?;
        let inside = ranges.iter().map(|range| range.intersect(&shard.range));
        let read = read_at(shard, &query.read)?;
        let request = ShardRequest::List(ListQuery {
            ranges: inside.filter(|range| !range.is_empty()).collect(),
            space: query.space,
            region: query.region,
            filter: query.filter.clone(),
            limit: query.limit - page.anchors.len(),
            read,
        });
        page.asked += 1;
        let (anchors, next, served) = match self.ask(shard, request, deadline).await {
            Ok(ShardReply::Listed { anchors, next, served }) => (anchors, next, served),
            answer => return Err(self.asked(answer, read)),
        };
        page.anchors.extend(anchors);
        page.contributions.note(served);
        Ok(next.or(shard.range.end).map_or_else(Vec::new, |start| from(ranges, start)))
    }
}

/// What is left of ranges from a key on.
fn from(ranges: &[KeyRange], start: Key) -> Vec<KeyRange> {
    let rest = KeyRange { start, end: None };
    let left = ranges.iter().map(|range| range.intersect(&rest));
    left.filter(|range| !range.is_empty()).collect()
}
