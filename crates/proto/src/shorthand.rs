//! Short ways to write common requests.

use crate::v1;

impl From<v1::Anchor> for v1::CreateAnchorRequest {
    fn from(anchor: v1::Anchor) -> Self {
        Self { anchor: Some(anchor), request_id: String::new() }
    }
}

/// Updates what is set in the anchor.
impl From<v1::Anchor> for v1::UpdateAnchorRequest {
    fn from(anchor: v1::Anchor) -> Self {
        Self { anchor: Some(anchor), ..Self::default() }
    }
}

impl From<Vec<v1::Anchor>> for v1::BatchCreateAnchorsRequest {
    fn from(anchors: Vec<v1::Anchor>) -> Self {
        Self { anchors, ..Self::default() }
    }
}

/// By id.
impl From<&str> for v1::GetAnchorRequest {
    fn from(id: &str) -> Self {
        Self { id: id.to_owned(), read: None }
    }
}

impl From<Vec<String>> for v1::BatchGetAnchorsRequest {
    fn from(ids: Vec<String>) -> Self {
        Self { ids, read: None }
    }
}

/// By id, whatever its state.
impl From<&str> for v1::DeleteAnchorRequest {
    fn from(id: &str) -> Self {
        Self { id: id.to_owned(), ..Self::default() }
    }
}

impl From<v1::NearPoint> for v1::LocateRequest {
    fn from(near: v1::NearPoint) -> Self {
        let criterion = Some(v1::locate_request::Criterion::NearPoint(near));
        Self { criterion, ..Self::default() }
    }
}

impl From<v1::Region> for v1::LocateRequest {
    fn from(region: v1::Region) -> Self {
        Self { criterion: Some(v1::locate_request::Criterion::Region(region)), ..Self::default() }
    }
}

impl v1::Pose {
    /// On Earth, not turned: WGS84 latitude and longitude in degrees, ellipsoidal height in meters.
    pub fn on_earth(latitude_deg: f64, longitude_deg: f64, height_m: f64) -> Self {
        let geo = v1::GeoPose { latitude_deg, longitude_deg, height_m, orientation: None };
        Self { frame: Some(v1::pose::Frame::Geo(geo)) }
    }

    /// In a local space, not turned: x, y, z in meters.
    pub fn in_space(space: u32, [x_m, y_m, z_m]: [f64; 3]) -> Self {
        let local = v1::LocalPose { space, x_m, y_m, z_m, orientation: None };
        Self { frame: Some(v1::pose::Frame::Local(local)) }
    }
}

impl v1::NearPoint {
    /// The `k` nearest to a point on Earth: degrees, and ellipsoidal height in meters.
    pub fn on_earth(latitude_deg: f64, longitude_deg: f64, height_m: f64, k: u32) -> Self {
        let point = v1::GeoPoint { latitude_deg, longitude_deg, height_m };
        Self { point: Some(v1::near_point::Point::Geo(point)), k, radius_m: None }
    }

    /// The `k` nearest to a point in a local space: x, y, z in meters.
    pub fn in_space(space: u32, [x_m, y_m, z_m]: [f64; 3], k: u32) -> Self {
        let point = v1::LocalPoint { space, x_m, y_m, z_m };
        Self { point: Some(v1::near_point::Point::Local(point)), k, radius_m: None }
    }
}

impl v1::ReadOptions {
    /// From any replica that is proven to be no older than this.
    pub fn bounded_staleness(max_staleness: std::time::Duration) -> Self {
        Self {
            consistency: v1::Consistency::BoundedStaleness.into(),
            max_staleness: Some(crate::convert::duration_to_wire(max_staleness)),
            ..Self::default()
        }
    }

    /// From any replica as it is.
    pub fn local() -> Self {
        Self { consistency: v1::Consistency::Local.into(), ..Self::default() }
    }
}
