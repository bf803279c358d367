use serde::{Deserialize, Serialize};

use crate::Ecef;

/// Lowest accepted ellipsoidal height in meters (below the Mariana Trench).
pub const HEIGHT_M_MIN: f64 = -11_000.0;
/// Highest accepted ellipsoidal height in meters (the edge of space).
pub const HEIGHT_M_MAX: f64 = 100_000.0;

/// Semi-major axis of the WGS84 ellipsoid in meters. Source: NIMA TR8350.2, table 3.1.
pub(crate) const SEMI_MAJOR_M: f64 = 6_378_137.0;
/// Flattening of the WGS84 ellipsoid. Source: NIMA TR8350.2, table 3.1.
pub(crate) const FLATTENING: f64 = 1.0 / 298.257_223_563;

/// A point on or near Earth: WGS84 (EPSG:4979).
///
/// Invariant: latitude in `[-90, 90]` degrees, longitude in `[-180, 180)` degrees, ellipsoidal
/// height in `[HEIGHT_M_MIN, HEIGHT_M_MAX]` meters, all finite.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GeoPoint {
    latitude_deg: f64,
    longitude_deg: f64,
    height_m: f64,
}

/// Why three numbers are not a point on Earth.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum GeoPointError {
    /// Outside `[-90, 90]`, or not a number.
    #[error("latitude {0} is outside [-90, 90] degrees")]
    Latitude(f64),
    /// Outside `[-180, 180]`, or not a number.
    #[error("longitude {0} is outside [-180, 180] degrees")]
    Longitude(f64),
    /// Outside the accepted heights, or not a number.
    #[error("height {0} is outside [{HEIGHT_M_MIN}, {HEIGHT_M_MAX}] meters")]
    Height(f64),
}

impl GeoPoint {
    /// A point from latitude and longitude in degrees and ellipsoidal height in meters.
    /// A longitude of exactly 180 is stored as -180: one meridian has one name.
    ///
    /// # Errors
    /// [`GeoPointError`] if a coordinate is outside its interval, NaN included.
    pub fn new(
        latitude_deg: f64,
        longitude_deg: f64,
        height_m: f64,
    ) -> Result<Self, GeoPointError> {
        if !(-90.0..=90.0).contains(&latitude_deg) {
            return Err(GeoPointError::Latitude(latitude_deg));
        }
        if !(-180.0..=180.0).contains(&longitude_deg) {
            return Err(GeoPointError::Longitude(longitude_deg));
        }
        if !(HEIGHT_M_MIN..=HEIGHT_M_MAX).contains(&height_m) {
            return Err(GeoPointError::Height(height_m));
        }
        let longitude_deg = if longitude_deg == 180.0 { -180.0 } else { longitude_deg };
        Ok(Self { latitude_deg, longitude_deg, height_m })
    }

    /// Latitude in degrees, north positive.
    pub fn latitude_deg(self) -> f64 {
        self.latitude_deg
    }

    /// Longitude in degrees, east positive.
    pub fn longitude_deg(self) -> f64 {
        self.longitude_deg
    }

    /// Height above the WGS84 ellipsoid in meters.
    pub fn height_m(self) -> f64 {
        self.height_m
    }

    /// The same point in ECEF meters.
    ///
    /// Source: Hofmann-Wellenhof et al., "GNSS", 2008, eq. 8.4.
    pub fn to_ecef(self) -> Ecef {
        let (latitude, longitude) =
            (self.latitude_deg.to_radians(), self.longitude_deg.to_radians());
        let eccentricity_squared = FLATTENING * (2.0 - FLATTENING);
        let prime_vertical_m =
            SEMI_MAJOR_M / (1.0 - eccentricity_squared * latitude.sin().powi(2)).sqrt();
        let equatorial_m = (prime_vertical_m + self.height_m) * latitude.cos();
        Ecef::new([
            equatorial_m * longitude.cos(),
            equatorial_m * longitude.sin(),
            (prime_vertical_m * (1.0 - eccentricity_squared) + self.height_m) * latitude.sin(),
        ])
    }
}
