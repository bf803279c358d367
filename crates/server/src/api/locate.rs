//! `LocateService`: finding anchors by exactly one criterion.

use std::sync::Arc;

use anchorhold_geometry::Ecef;
use anchorhold_model::{AccountNumber, Anchor, AnchorId, KeyRange, ShardId, cover};
use anchorhold_proto::convert::{
    Criterion, LocateSpec, Place, RegionSpec, anchor_into_wire, locate_from_wire, range_to_wire,
};
use anchorhold_proto::limits::COMPLETENESS_CELLS_MAX;
use anchorhold_proto::v1::locate_service_server::LocateService;
use anchorhold_proto::{Failure, Reason, v1};
use tonic::{Request, Response, Status};

use super::reply::{serving, session_token};
use super::{Call, Door};
use crate::authorize::{Audience, own};
use crate::find::{Contributions, Near, PageQuery, Unanswered};

/// The service.
#[derive(Clone)]
pub struct Locates {
    door: Door,
}

impl Locates {
    /// The service behind a door.
    pub fn new(door: Door) -> Self {
        Self { door }
    }
}

#[tonic::async_trait]
impl LocateService for Locates {
    async fn locate(
        &self,
        request: Request<v1::LocateRequest>,
    ) -> Result<Response<v1::LocateResponse>, Status> {
        self.door.call("Locate", Audience::Accounts, request, locate).await
    }
}

/// What was found, before it is told.
#[derive(Default)]
struct Located {
    anchors: Vec<(Option<f64>, Arc<Anchor>)>,
    contributions: Contributions,
    asked: u32,
    unanswered: Vec<Unanswered>,
    truncated: bool,
    ids_not_found: Vec<AnchorId>,
    /// The keys that were asked for; empty for ids.
    ranges: Vec<KeyRange>,
}

async fn locate(call: Call, request: v1::LocateRequest) -> Result<v1::LocateResponse, Failure> {
    let account = call.account()?;
    let spec = locate_from_wire(request)?;
    let require_complete = spec.require_complete;
    let located = match spec.criterion.clone() {
        Criterion::Ids(ids) => by_ids(&call, account, ids, &spec).await?,
        Criterion::Near(near) => {
            let near = Near {
                account,
                place: near.place,
                k: near.k,
                radius: near.radius,
                filter: spec.filter,
                read: spec.read,
            };
            let found = call.core.find_near(&near, &call.deadline).await;
            let ranges = found.ranges(&near);
            Located {
                ranges,
                anchors: found.anchors.into_iter().map(|(m, anchor)| (Some(m), anchor)).collect(),
                contributions: found.contributions,
                asked: found.asked,
                unanswered: found.unanswered,
                ..Located::default()
            }
        }
        Criterion::Region(region) => by_region(&call, account, region, spec).await,
    };
    if let Some(first) = located.unanswered.first() {
        // With no answer at all there is nothing to be incomplete.
        let nothing = located.contributions.iter().next().is_none();
        if require_complete || nothing {
            return Err(incomplete(first, require_complete));
        }
    }
    Ok(reply(&call, account, located))
}

async fn by_ids(
    call: &Call,
    account: AccountNumber,
    ids: Vec<AnchorId>,
    spec: &LocateSpec,
) -> Result<Located, Failure> {
    let ids = ids.into_iter().map(|id| own(account, id)).collect::<Result<Vec<_>, _>>()?;
    let (results, contributions) = call.core.get_all(&ids, &spec.read, &call.deadline).await;
    let mut located = Located { contributions, ..Located::default() };
    for (id, result) in ids.into_iter().zip(results) {
        match result {
            Ok(Some(anchor)) if spec.filter.passes(&anchor) => located.anchors.push((None, anchor)),
            Ok(Some(_)) => {}
            Ok(None) => located.ids_not_found.push(id),
            Err(failure) => located.note_unanswered(call, id, failure),
        }
    }
    let answered = located.contributions.iter().count() + located.unanswered.len();
    located.asked = u32::try_from(answered).unwrap_or(u32::MAX);
    Ok(located)
}

impl Located {
    /// Notes the shard of an id as silent, once.
    fn note_unanswered(&mut self, call: &Call, id: AnchorId, failure: Failure) {
        let table = call.core.routes.table();
        let (range, shard) = match table.of_key(id.key()) {
            Some(shard) => (shard.range, shard.shard_id),
            None => (KeyRange::of_account(id.account()), ShardId::CATALOG),
        };
        if self.unanswered.iter().all(|known| known.range != range) {
            self.unanswered.push(Unanswered { range, shard, failure });
        }
    }
}

async fn by_region(
    call: &Call,
    account: AccountNumber,
    region: RegionSpec,
    spec: LocateSpec,
) -> Located {
    let center: Option<Ecef> = match &region {
        RegionSpec::Sphere { center, .. } => Some(Place::position(center)),
        RegionSpec::GeoRectangle { .. } | RegionSpec::LocalBox { .. } => None,
    };
    let query = PageQuery {
        account,
        space: Some(region.space()),
        region: Some(region),
        filter: spec.filter,
        after: None,
        // One more than asked for tells whether there are more.
        limit: spec.limit + 1,
        read: spec.read,
        passes_over: true,
    };
    let ranges = query.ranges();
    let mut page = call.core.page(&query, &call.deadline).await;
    let truncated = spec.limit < page.anchors.len() || page.next.is_some();
    page.anchors.truncate(spec.limit);
    let measured = page.anchors.into_iter().map(|anchor| {
        let distance_m = center.map(|center| anchor.pose.position().distance_m(center));
        (distance_m, anchor)
    });
    let unanswered = page.passed_over.into_iter().chain(page.failure);
    let unanswered = unanswered.map(|(range, failure)| {
        let table = call.core.routes.table();
        let shard = table.of_key(range.start).map_or(ShardId::CATALOG, |shard| shard.shard_id);
        Unanswered { range, shard, failure }
    });
    Located {
        anchors: measured.collect(),
        contributions: page.contributions,
        asked: page.asked,
        unanswered: unanswered.collect(),
        truncated,
        ids_not_found: Vec::new(),
        ranges,
    }
}

fn incomplete(first: &Unanswered, require_complete: bool) -> Failure {
    if !require_complete {
        return first.failure.clone();
    }
    let message = format!("shard {} did not answer: {}", first.shard, first.failure.message);
    Failure::new(Reason::Incomplete, message)
}

fn reply(call: &Call, account: AccountNumber, located: Located) -> v1::LocateResponse {
    let cells = |ranges: &[KeyRange]| cover::s2_cells(account, ranges, COMPLETENESS_CELLS_MAX);
    let silent = u32::try_from(located.unanswered.len()).unwrap_or(u32::MAX);
    let unanswered = located.unanswered.into_iter().map(|unanswered| v1::UnansweredRange {
        range: Some(range_to_wire(&unanswered.range)),
        shard_id: unanswered.shard.0,
        cells: {
            let asked = located.ranges.iter().map(|range| range.intersect(&unanswered.range));
            cells(&asked.collect::<Vec<_>>())
        },
        error: Some(unanswered.failure.into()),
    });
    let completeness = v1::Completeness {
        complete: silent == 0,
        shards_asked: located.asked,
        shards_answered: located.asked.saturating_sub(silent),
        cells_asked: cells(&located.ranges),
        unanswered: unanswered.collect(),
    };
    let anchors = located.anchors.into_iter().map(|(distance_m, anchor)| v1::LocatedAnchor {
        // Read for this answer, and so rarely shared.
        anchor: Some(anchor_into_wire(Arc::unwrap_or_clone(anchor))),
        distance_m,
    });
    v1::LocateResponse {
        anchors: anchors.collect(),
        completeness: Some(completeness),
        truncated: located.truncated,
        ids_not_found: located.ids_not_found.iter().map(AnchorId::to_string).collect(),
        serving: Some(serving(&call.core, &located.contributions)),
        session_token: session_token(&located.contributions),
    }
}
