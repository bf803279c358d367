//! Small regions, by the position index instead of the records around them.
//!
//! A covering of keys is far wider than a small region: poses drift from the cells that ids name,
//! and the cells of a local space say next to nothing. The index knows the positions themselves. It
//! only says which records are looked at; each is judged by what it holds, as in a scan.

use anchorhold_consensus::Replica;
use anchorhold_model::AnchorId;
use anchorhold_proto::convert::RegionSpec;

use super::read::{LIST_BYTES_MAX, Listed, Sight, failed, size};
use crate::index::{Frame, ShardIndex};
use crate::request::{ListQuery, ShardError};

/// Anchors in a region that the index serves, at most. With more of them nearly every record of the
/// covering belongs to the answer, and a scan can go on where the last page ended.
const CANDIDATES_MAX: usize = 1_024;
/// Added to the radius: the index and [`RegionSpec::contains`] round differently, in meters.
const ROUNDING_M: f64 = 1e-3;

/// A page of a region's anchors; `None` if a scan is to make it.
pub(super) fn pick(
    replica: &Replica,
    index: &ShardIndex,
    query: &ListQuery,
    sight: &mut Sight,
) -> Result<Option<Listed>, ShardError> {
    let Some(region) = query.region else { return Ok(None) };
    let Some(mut ids) = candidates(index, query, &region)? else { return Ok(None) };
    ids.sort_unstable();
    let (mut anchors, mut bytes) = (Vec::new(), 0);
    for id in ids {
        if query.limit <= anchors.len() || LIST_BYTES_MAX <= bytes {
            return Ok(Some((anchors, Some(id.key()))));
        }
        let Some(anchor) = replica.anchor(id).map_err(failed)? else { continue };
        let is_meant = region.contains(&anchor.pose) && query.filter.passes(&anchor);
        if is_meant && sight.sees(&anchor) {
            bytes += size(&anchor);
            anchors.push(anchor);
        }
    }
    Ok(Some((anchors, None)))
}

/// Ids of the asked ranges whose positions lie in the sphere around a region; `None` if there is no
/// such sphere, or too much in it.
fn candidates(
    index: &ShardIndex,
    query: &ListQuery,
    region: &RegionSpec,
) -> Result<Option<Vec<AnchorId>>, ShardError> {
    let Some((center, radius_m)) = region.bounding_sphere() else { return Ok(None) };
    let Some(first) = query.ranges.first() else { return Ok(Some(Vec::new())) };
    let frame = Frame { account: first.start.account(), space: region.space() };
    let found = index
        .nearest(frame, center, CANDIDATES_MAX + 1, radius_m + ROUNDING_M, &mut |id| {
            query.ranges.iter().any(|range| range.contains_id(id))
        })
        .map_err(|error| ShardError::Misunderstood { reason: error.to_string() })?;
    if CANDIDATES_MAX < found.len() {
        return Ok(None);
    }
    Ok(Some(found.into_iter().map(|neighbor| neighbor.item).collect()))
}
