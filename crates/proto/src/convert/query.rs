//! Queries: read levels, filters, places, listings and locate criteria.

use std::collections::BTreeMap;
use std::time::Duration;

use anchorhold_geometry::{Ecef, GeoPoint, Meters};
use anchorhold_model::{Anchor, AnchorId, LocalPosition, Space};
use serde::{Deserialize, Serialize};

use super::anchor::{anchor_ids_from_wire, check_tags, geo_point, local_position, space_number};
use super::region::{RegionSpec, region_from_wire, space_from_wire};
use crate::field::{Within, check_length};
use crate::limits::{
    self, FILTER_PROPERTIES_MAX, FILTER_TAGS_MAX, NEIGHBOUR_RADIUS_M_MAX, NEIGHBOURS_DEFAULT,
    NEIGHBOURS_MAX, STALENESS_MAX,
};
use crate::{FieldError, PageToken, QueryHash, SessionToken, v1};

/// How fresh an answer must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadLevel {
    /// Sees every write acknowledged before.
    Linearizable,
    /// Proven to be no older than this.
    BoundedStaleness(Duration),
    /// As the replica is.
    Local,
}

/// How a read is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadSpec {
    /// How fresh.
    pub level: ReadLevel,
    /// What the session has seen; empty demands nothing.
    pub session: SessionToken,
}

/// A position in a space.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Place {
    /// On Earth.
    Geo(GeoPoint),
    /// In a local space.
    Local {
        /// The space's number.
        space: u32,
        /// The position in its frame.
        position: LocalPosition,
    },
}

/// Which anchors count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterSpec {
    /// Properties that must have these values.
    pub properties: BTreeMap<String, String>,
    /// Tags that must all be there.
    pub tags_all: Vec<String>,
    /// Tags of which one must be there, unless empty.
    pub tags_any: Vec<String>,
}

/// What is looked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Criterion {
    /// These anchors.
    Ids(Vec<AnchorId>),
    /// The nearest ones.
    Near(NearSpec),
    /// All in a region.
    Region(RegionSpec),
}

/// The nearest anchors to a place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NearSpec {
    /// The place.
    pub place: Place,
    /// How many, `1..=NEIGHBOURS_MAX`.
    pub k: usize,
    /// Only within this distance; `None` for no bound.
    pub radius: Option<Meters>,
}

/// A checked request to locate.
#[derive(Clone, Debug, PartialEq)]
pub struct LocateSpec {
    /// What is looked for.
    pub criterion: Criterion,
    /// Which anchors count.
    pub filter: FilterSpec,
    /// Anchors of a region in the answer, at most.
    pub limit: usize,
    /// How to read.
    pub read: ReadSpec,
    /// Whether a partial answer is an error.
    pub require_complete: bool,
}

/// A checked request to list.
#[derive(Clone, Debug, PartialEq)]
pub struct ListSpec {
    /// Only this space.
    pub space: Option<Space>,
    /// Only this region.
    pub region: Option<RegionSpec>,
    /// Which anchors count.
    pub filter: FilterSpec,
    /// Anchors per page, at most.
    pub page_size: usize,
    /// Where the page begins; `None` for the first.
    pub page_token: Option<PageToken>,
    /// What the next page's token must be encoded for.
    pub query: QueryHash,
    /// How to read.
    pub read: ReadSpec,
}

impl Place {
    pub(super) fn of_geo(point: v1::GeoPoint) -> Result<Self, FieldError> {
        geo_point(point.latitude_deg, point.longitude_deg, point.height_m).map(Self::Geo)
    }

    pub(super) fn of_local(point: v1::LocalPoint) -> Result<Self, FieldError> {
        let space = space_number(point.space)?;
        let position = local_position([point.x_m, point.y_m, point.z_m])?;
        Ok(Self::Local { space, position })
    }

    /// The space that it lies in.
    pub fn space(&self) -> Space {
        match self {
            Self::Geo(_) => Space::Earth,
            Self::Local { space, .. } => Space::Local(*space),
        }
    }

    /// The position in meters: ECEF on Earth, the space's own frame elsewhere.
    pub fn position(&self) -> Ecef {
        match self {
            Self::Geo(point) => point.to_ecef(),
            Self::Local { position, .. } => Ecef::new(position.xyz_m()),
        }
    }
}

impl FilterSpec {
    fn from_wire(filter: Option<v1::Filter>) -> Result<Self, FieldError> {
        let v1::Filter { properties, tags_all, tags_any } = filter.unwrap_or_default();
        check_length("properties", properties.len(), FILTER_PROPERTIES_MAX, "conditions")?;
        for (field, tags) in [("tags_all", &tags_all), ("tags_any", &tags_any)] {
            check_length(field, tags.len(), FILTER_TAGS_MAX, "tags")?;
            check_tags(field, tags)?;
        }
        Ok(Self { properties, tags_all, tags_any })
    }

    /// Whether it lets every anchor pass.
    pub fn is_empty(&self) -> bool {
        self.properties.is_empty() && self.tags_all.is_empty() && self.tags_any.is_empty()
    }

    /// Whether it lets an anchor pass.
    pub fn passes(&self, anchor: &Anchor) -> bool {
        self.properties.iter().all(|(key, value)| anchor.properties.get(key) == Some(value))
            && self.tags_all.iter().all(|tag| anchor.tags.contains(tag))
            && (self.tags_any.is_empty()
                || self.tags_any.iter().any(|tag| anchor.tags.contains(tag)))
    }
}

/// Checks read options; unset means LINEARIZABLE without a session.
///
/// # Errors
/// [`FieldError`] with a path within the options.
pub fn read_from_wire(read: Option<v1::ReadOptions>) -> Result<ReadSpec, FieldError> {
    let v1::ReadOptions { consistency, max_staleness, session_token } = read.unwrap_or_default();
    let Ok(consistency) = v1::Consistency::try_from(consistency) else {
        return Err(FieldError::invalid("consistency", "unknown"));
    };
    let is_bounded = consistency == v1::Consistency::BoundedStaleness;
    let level = match (consistency, max_staleness) {
        (_, Some(_)) if !is_bounded => {
            let problem = "must be unset unless `consistency` is CONSISTENCY_BOUNDED_STALENESS";
            return Err(FieldError::invalid("max_staleness", problem));
        }
        (v1::Consistency::Unspecified | v1::Consistency::Linearizable, _) => {
            ReadLevel::Linearizable
        }
        (v1::Consistency::Local, _) => ReadLevel::Local,
        (v1::Consistency::BoundedStaleness, None) => {
            return Err(FieldError::missing("max_staleness"));
        }
        (v1::Consistency::BoundedStaleness, Some(bound)) => {
            let bound = Duration::try_from(bound).ok();
            let bound = bound.filter(|bound| !bound.is_zero() && *bound <= STALENESS_MAX);
            ReadLevel::BoundedStaleness(bound.ok_or_else(|| {
                FieldError::invalid("max_staleness", "must be in (0, 3600] seconds")
            })?)
        }
    };
    Ok(ReadSpec { level, session: SessionToken::decode(&session_token)? })
}

/// Checks a request to list the anchors of an account.
///
/// # Errors
/// [`FieldError`] with a path within the request.
pub fn list_from_wire(
    account: u32,
    request: v1::ListAnchorsRequest,
) -> Result<ListSpec, FieldError> {
    let query = QueryHash::of_list_anchors(account, &request);
    let space = request.space.map(space_from_wire).transpose().within("space")?;
    let region = request.region.map(region_from_wire).transpose().within("region")?;
    if let (Some(space), Some(region)) = (space, region)
        && space != region.space()
    {
        return Err(FieldError::invalid("region", "must lie in `space`"));
    }
    Ok(ListSpec {
        space,
        region,
        filter: FilterSpec::from_wire(request.filter).within("filter")?,
        page_size: limits::page_size(request.page_size) as usize,
        page_token: PageToken::decode(&request.page_token, query)?,
        query,
        read: read_from_wire(request.read).within("read")?,
    })
}

/// Checks a request to locate.
///
/// # Errors
/// [`FieldError`] with a path within the request.
pub fn locate_from_wire(request: v1::LocateRequest) -> Result<LocateSpec, FieldError> {
    let criterion = match request.criterion {
        None => {
            let problem = "must be set, one of `ids`, `near_point`, `region`";
            return Err(FieldError::invalid("criterion", problem));
        }
        Some(v1::locate_request::Criterion::Ids(ids)) => {
            Criterion::Ids(anchor_ids_from_wire(&ids.ids).within("ids")?)
        }
        Some(v1::locate_request::Criterion::NearPoint(near)) => {
            Criterion::Near(near_from_wire(near).within("near_point")?)
        }
        Some(v1::locate_request::Criterion::Region(region)) => {
            Criterion::Region(region_from_wire(region).within("region")?)
        }
    };
    Ok(LocateSpec {
        criterion,
        filter: FilterSpec::from_wire(request.filter).within("filter")?,
        limit: limits::page_size(request.limit) as usize,
        read: read_from_wire(request.read).within("read")?,
        require_complete: request.require_complete,
    })
}

fn near_from_wire(near: v1::NearPoint) -> Result<NearSpec, FieldError> {
    let place = match near.point {
        None => {
            return Err(FieldError::invalid("point", "must be set, either `geo` or `local`"));
        }
        Some(v1::near_point::Point::Geo(point)) => Place::of_geo(point).within("geo")?,
        Some(v1::near_point::Point::Local(point)) => Place::of_local(point).within("local")?,
    };
    let k = if near.k == 0 { NEIGHBOURS_DEFAULT } else { near.k };
    if NEIGHBOURS_MAX < k {
        return Err(FieldError::invalid("k", format_args!("must be at most {NEIGHBOURS_MAX}")));
    }
    let radius = near.radius_m.map(|radius_m| {
        Meters::new(radius_m)
            .filter(|radius| 0.0 < radius.get() && radius.get() <= NEIGHBOUR_RADIUS_M_MAX)
            .ok_or_else(|| FieldError::invalid("radius_m", "must be in (0, 30,000,000] meters"))
    });
    Ok(NearSpec { place, k: k as usize, radius: radius.transpose()? })
}

/// A duration as the wire carries it; the longest that fits if it is longer.
pub fn duration_to_wire(duration: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(duration)
        .unwrap_or(prost_types::Duration { seconds: i64::MAX, nanos: 999_999_999 })
}
