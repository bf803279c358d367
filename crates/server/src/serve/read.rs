//! Reads of one replica: wait for the view, then look.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use anchorhold_consensus::{ReadView, Replica};
use anchorhold_model::{Anchor, AnchorId, KeyRange, ShardState, Timestamp};
use anchorhold_storage::StateError;

use super::region;
use crate::clock::Deadline;
use crate::core::Core;
use crate::index::Frame;
use crate::request::{
    Level, ListQuery, NearestQuery, Read, ShardCall, ShardError, ShardReply, ShardRequest,
};
use anchorhold_proto::convert::FilterSpec;

/// How far two nodes' clocks may be apart: an expiry that is that near is shown to the leader.
const CLOCK_SKEW_MS_MAX: u64 = 500;
/// Ticks that one read asks for, at most. One is enough unless expiries fall due meanwhile.
const TICKS_MAX: usize = 2;
/// Searches of one query, at most: the index is searched again when a record it named has changed.
const SEARCHES_MAX: usize = 4;
/// Rows that one listing looks at, at most; the rest is for the next call.
const LIST_ROWS_MAX: usize = 50_000;
/// Bytes of properties and fixed fields in one answer, about; the rest is for the next call.
pub(crate) const LIST_BYTES_MAX: usize = 3 << 20;

/// Judges which anchors a view shows, and notes the expiries that a tick could make due.
pub(super) struct Sight {
    shard_time: Timestamp,
    /// Expiries up to here may have passed; `None` if the read does not care.
    due_until: Option<Timestamp>,
    due: Option<Timestamp>,
}

impl Sight {
    pub(super) fn sees(&mut self, anchor: &Anchor) -> bool {
        let visible = anchor.is_visible(self.shard_time);
        if visible
            && let (Some(expire_time), Some(due_until)) = (anchor.expire_time, self.due_until)
            && expire_time <= due_until
        {
            self.due = self.due.max(Some(expire_time));
        }
        visible
    }
}

impl Core {
    pub(super) async fn get(
        &self,
        replica: &Arc<Replica>,
        ids: &[AnchorId],
        read: &Read,
        deadline: &Deadline,
    ) -> Result<ShardReply, ShardError> {
        let (anchors, view) = self
            .read(replica, read, deadline, &mut |_, sight| {
                let visible = |id: &AnchorId| {
                    let anchor = replica.anchor(*id).map_err(failed)?;
                    Ok(anchor.filter(|anchor| sight.sees(anchor)))
                };
                ids.iter().map(visible).collect::<Result<Vec<_>, ShardError>>()
            })
            .await?;
        // Records may be newer than the view: the revision says no less than what was seen.
        let served = self.served(replica, &replica.state(), view.staleness, read.level);
        Ok(ShardReply::Got { anchors, served })
    }

    pub(super) async fn list(
        &self,
        replica: &Arc<Replica>,
        query: &ListQuery,
        deadline: &Deadline,
    ) -> Result<ShardReply, ShardError> {
        let ((anchors, next), view) = self
            .read(replica, &query.read, deadline, &mut |view, sight| {
                let range = view.shard.descriptor.range;
                let (revision, shard_time) = (view.shard.revision, view.shard.shard_time);
                let index = self.indexes.shard(replica.shard_id());
                let index = index.filter(|index| index.has_reached(revision, shard_time));
                let mut result = Ok((Vec::new(), None));
                self.offload.in_place(&mut || {
                    let picked = match &index {
                        Some(index) => region::pick(replica, index, query, sight),
                        None => Ok(None),
                    };
                    result = match picked {
                        Ok(Some(page)) => Ok(page),
                        Ok(None) => scan(replica, range, query, sight).map_err(failed),
                        Err(error) => Err(error),
                    };
                });
                result
            })
            .await?;
        let served = self.served(replica, &replica.state(), view.staleness, query.read.level);
        Ok(ShardReply::Listed { anchors, next, served })
    }

    pub(super) async fn nearest(
        &self,
        replica: &Arc<Replica>,
        query: &NearestQuery,
        deadline: &Deadline,
    ) -> Result<ShardReply, ShardError> {
        let mut searches = 0;
        loop {
            let view = self.view(replica, &query.read, deadline).await?;
            let viewed = self.clock.monotonic();
            let index = self.indexes.shard(replica.shard_id()).ok_or(ShardError::Behind)?;
            let (revision, shard_time) = (view.shard.revision, view.shard.shard_time);
            if !index.reach(revision, shard_time, deadline.remaining()).await {
                return Err(ShardError::Behind);
            }
            let mut sight = self.sight(&view.shard, query.read.level);
            let found = search(replica, &index, query, &mut sight)?;
            searches += 1;
            if searches < SEARCHES_MAX
                && let Some(due) = sight.due
            {
                self.ask_for_tick(replica, due, deadline).await?;
                continue;
            }
            // Who waited for the index is staler by that.
            let waited = self.clock.monotonic().saturating_sub(viewed);
            let staleness = view.staleness.map(|staleness| staleness + waited);
            if !(found.settled && is_fresh(query.read.level, staleness)) {
                if searches < SEARCHES_MAX {
                    continue;
                }
                return Err(ShardError::Behind);
            }
            let level = query.read.level;
            let served = self.served(replica, &replica.state(), staleness, level);
            return Ok(ShardReply::Found { anchors: found.anchors, served });
        }
    }

    /// Waits for a view and looks at it; again after a tick if it showed an anchor that is due.
    async fn read<T>(
        &self,
        replica: &Arc<Replica>,
        read: &Read,
        deadline: &Deadline,
        look: &mut (dyn FnMut(&ReadView, &mut Sight) -> Result<T, ShardError> + Send),
    ) -> Result<(T, ReadView), ShardError> {
        let mut ticks = 0;
        loop {
            let view = self.view(replica, read, deadline).await?;
            let mut sight = self.sight(&view.shard, read.level);
            let seen = look(&view, &mut sight)?;
            match sight.due {
                Some(due) if ticks < TICKS_MAX => {
                    ticks += 1;
                    self.ask_for_tick(replica, due, deadline).await?;
                }
                Some(_) | None => return Ok((seen, view)),
            }
        }
    }

    /// Waits until the replica may serve a read.
    async fn view(
        &self,
        replica: &Arc<Replica>,
        read: &Read,
        deadline: &Deadline,
    ) -> Result<ReadView, ShardError> {
        let mut view =
            replica.read_barrier(read.level.to_read_level(), deadline.remaining()).await?;
        let viewed = self.clock.monotonic();
        if let Some(seen) = read.at_least {
            let incarnation = view.shard.descriptor.epoch.incarnation;
            if incarnation < seen.incarnation {
                return Err(ShardError::Behind);
            }
            if incarnation == seen.incarnation && view.shard.revision < seen.revision {
                let staleness = view.staleness;
                view = replica.wait_for_revision(seen.revision, deadline.remaining()).await?;
                let waited = self.clock.monotonic().saturating_sub(viewed);
                view.staleness = view.staleness.or(staleness.map(|staleness| staleness + waited));
                if !is_fresh(read.level, view.staleness) {
                    return Err(ShardError::Behind);
                }
            }
        }
        Ok(view)
    }

    fn sight(&self, shard: &ShardState, level: Level) -> Sight {
        let due_until = match level {
            Level::Linearizable => {
                Some(Timestamp(self.clock.wall().0.saturating_add(CLOCK_SKEW_MS_MAX)))
            }
            Level::BoundedStaleness { .. } | Level::Local => None,
        };
        Sight { shard_time: shard.shard_time, due_until, due: None }
    }

    /// Has the leader let shard time pass `due`, if its clock has. A leader that does not answer
    /// fails the read: whether the anchor is still there cannot be said.
    async fn ask_for_tick(
        &self,
        replica: &Arc<Replica>,
        due: Timestamp,
        deadline: &Deadline,
    ) -> Result<(), ShardError> {
        let request = ShardRequest::Tick { due };
        if replica.is_leader() {
            let epoch = replica.state().descriptor.epoch;
            let budget_ms = millis(deadline.remaining());
            let (shard, range) = (replica.shard_id(), replica.state().descriptor.range);
            let call = ShardCall { shard, epoch, range, budget_ms, request };
            return Box::pin(self.serve(call, deadline)).await.map(|_| ());
        }
        let descriptor = Arc::new(replica.state().descriptor.clone());
        Box::pin(self.ask(&descriptor, request, deadline)).await.map(|_| ())
    }
}

/// Whether a state that may be so stale will do.
fn is_fresh(level: Level, staleness: Option<Duration>) -> bool {
    match level {
        Level::BoundedStaleness { staleness_max } => {
            staleness.is_some_and(|staleness| staleness <= staleness_max)
        }
        Level::Linearizable | Level::Local => true,
    }
}

/// Milliseconds of a duration.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn failed(error: StateError) -> ShardError {
    ShardError::Failed { reason: error.to_string() }
}

/// What a search of the index and its records gave.
struct Search {
    anchors: Vec<(f64, Arc<Anchor>)>,
    /// Whether every record was as the index said.
    settled: bool,
}

fn search(
    replica: &Replica,
    index: &crate::index::ShardIndex,
    query: &NearestQuery,
    sight: &mut Sight,
) -> Result<Search, ShardError> {
    let frame = Frame { account: query.keys.start.account(), space: query.space };
    let mut loaded = BTreeMap::new();
    let mut failure = None;
    // The index that a split's sides share for a moment does not hide what expires meanwhile.
    let looks_at_all = index.is_inheriting();
    let shard_time = sight.shard_time;
    let neighbors = index
        .nearest(frame, query.position, query.k, query.distance_m_max, &mut |id| {
            if !query.keys.contains_id(id) {
                return false;
            }
            if query.filter.is_empty() && !looks_at_all {
                return true;
            }
            let found = passing(replica, id, &query.filter);
            match found.map(|found| found.filter(|anchor| anchor.is_visible(shard_time))) {
                Ok(Some(anchor)) => loaded.insert(id, anchor).is_none(),
                Ok(None) => false,
                Err(error) => {
                    failure = Some(error);
                    false
                }
            }
        })
        .map_err(|error| ShardError::Misunderstood { reason: error.to_string() })?;
    if let Some(error) = failure {
        return Err(failed(error));
    }
    let mut search = Search { anchors: Vec::with_capacity(neighbors.len()), settled: true };
    for neighbor in neighbors {
        let record = match loaded.remove(&neighbor.item) {
            Some(record) => Some(record),
            None => replica.anchor(neighbor.item).map_err(failed)?,
        };
        let Some(anchor) = record.filter(|anchor| sight.sees(anchor)) else {
            search.settled = false; // Removed since the index was searched.
            continue;
        };
        let distance_m = anchor.pose.position().distance_m(query.position);
        if distance_m != neighbor.distance_m {
            // The same arithmetic, so another distance means another position: it moved since.
            search.settled &= (distance_m - neighbor.distance_m).abs() <= ROUNDING_M;
        }
        search.anchors.push((distance_m, anchor));
    }
    search.anchors.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.id.cmp(&b.1.id)));
    Ok(search)
}

/// How far two ways to compute one distance may differ, in meters.
const ROUNDING_M: f64 = 1e-6;

fn passing(
    replica: &Replica,
    id: AnchorId,
    filter: &FilterSpec,
) -> Result<Option<Arc<Anchor>>, StateError> {
    Ok(replica.anchor(id)?.filter(|anchor| filter.passes(anchor)))
}

/// Anchors in id order, and where the next page begins.
pub(super) type Listed = (Vec<Arc<Anchor>>, Option<anchorhold_model::Key>);

fn scan(
    replica: &Replica,
    owned: KeyRange,
    query: &ListQuery,
    sight: &mut Sight,
) -> Result<Listed, StateError> {
    let mut anchors = Vec::new();
    let (mut rows, mut bytes) = (0, 0);
    for range in &query.ranges {
        let mut next = None;
        replica.scan_anchors(range.intersect(&owned), &mut |anchor| {
            if query.limit <= anchors.len() || LIST_ROWS_MAX <= rows || LIST_BYTES_MAX <= bytes {
                next = Some(anchor.id.key());
                return ControlFlow::Break(());
            }
            rows += 1;
            let is_meant = query.space.is_none_or(|space| space == anchor.pose.space())
                && query.region.is_none_or(|region| region.contains(&anchor.pose))
                && query.filter.passes(&anchor);
            if is_meant && sight.sees(&anchor) {
                bytes += size(&anchor);
                anchors.push(anchor);
            }
            ControlFlow::Continue(())
        })?;
        if next.is_some() {
            return Ok((anchors, next));
        }
    }
    Ok((anchors, None))
}

/// About how many bytes an anchor takes in an answer.
pub(crate) fn size(anchor: &Anchor) -> usize {
    const FIXED: usize = 256;
    let properties: usize =
        anchor.properties.iter().map(|(key, value)| key.len() + value.len() + 8).sum();
    let tags: usize = anchor.tags.iter().map(|tag| tag.len() + 4).sum();
    FIXED + properties + tags
}
