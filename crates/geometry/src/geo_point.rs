use nalgebra::{Matrix3, Rotation3};
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

    /// The point at an ECEF position. Exact to well below 1 mm for all accepted heights, poles
    /// included; at a pole the longitude is 0 or -180.
    ///
    /// # Errors
    /// [`GeoPointError`] if the height is outside the accepted ones, or a coordinate not a number.
    ///
    /// Source: Bowring, "Transformation from spatial to geographical coordinates", Survey Review
    /// 23, 1976; the height as in his "The accuracy of geodetic latitude and height equations",
    /// Survey Review 28, 1985, which also holds at the poles.
    pub fn from_ecef(position: Ecef) -> Result<Self, GeoPointError> {
        let [x, y, z] = position.xyz_m();
        let equatorial_m = x.hypot(y);
        let eccentricity_squared = FLATTENING * (2.0 - FLATTENING);
        let semi_minor_m = SEMI_MAJOR_M * (1.0 - FLATTENING);
        // Linear excentricities of the ellipsoid's evolute along each axis.
        let polar_m = semi_minor_m * eccentricity_squared / (1.0 - eccentricity_squared);
        let axial_m = SEMI_MAJOR_M * eccentricity_squared;
        // Parametric latitude. One round is within 1e-9 degrees up to 100 km; two more cost little.
        let mut parametric = (z * SEMI_MAJOR_M).atan2(equatorial_m * semi_minor_m);
        let mut latitude = 0.0_f64;
        for _ in 0..ROUNDS {
            latitude = (z + polar_m * parametric.sin().powi(3))
                .atan2(equatorial_m - axial_m * parametric.cos().powi(3));
            parametric = ((1.0 - FLATTENING) * latitude.sin()).atan2(latitude.cos());
        }
        let (sin, cos) = latitude.sin_cos();
        let height_m = equatorial_m * cos + z * sin
            - SEMI_MAJOR_M * (1.0 - eccentricity_squared * sin * sin).sqrt();
        Self::new(latitude.to_degrees(), y.atan2(x).to_degrees(), height_m)
    }

    /// The rotation from the east-north-up frame at this point to ECEF: its columns are the
    /// directions of east, north and up.
    pub fn ecef_from_enu(self) -> Rotation3<f64> {
        let (sin_latitude, cos_latitude) = self.latitude_deg.to_radians().sin_cos();
        let (sin_longitude, cos_longitude) = self.longitude_deg.to_radians().sin_cos();
        Rotation3::from_matrix_unchecked(Matrix3::new(
            -sin_longitude,
            -sin_latitude * cos_longitude,
            cos_latitude * cos_longitude,
            cos_longitude,
            -sin_latitude * sin_longitude,
            cos_latitude * sin_longitude,
            0.0,
            cos_latitude,
            sin_latitude,
        ))
    }
}

/// Rounds of Bowring's formula.
const ROUNDS: u32 = 3;

#[cfg(test)]
mod tests {
    use nalgebra::Vector3;
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;

    fn point(latitude_deg: f64, longitude_deg: f64, height_m: f64) -> GeoPoint {
        GeoPoint::new(latitude_deg, longitude_deg, height_m).unwrap()
    }

    fn any_point() -> impl Strategy<Value = GeoPoint> {
        let latitude = prop_oneof![
            4 => -90.0..=90.0,
            1 => prop_oneof![Just(-90.0), Just(90.0), Just(0.0)],
            1 => 89.999_99..=90.0,
            1 => -1e-7..=1e-7,
        ];
        let longitude = prop_oneof![4 => -180.0..=180.0, 1 => Just(-180.0), 1 => Just(180.0)];
        let height = prop_oneof![HEIGHT_M_MIN + 1e-6..=HEIGHT_M_MAX - 1e-6, -1e-3..=1e-3,];
        (latitude, longitude, height)
            .prop_map(|(latitude, longitude, height)| point(latitude, longitude, height))
    }

    proptest! {
        // Always the same cases.
        #![proptest_config(ProptestConfig {
            rng_seed: RngSeed::Fixed(1),
            failure_persistence: None,
            ..ProptestConfig::with_cases(5_000)
        })]

        #[test]
        fn position_survives_the_way_to_ecef_and_back(point in any_point()) {
            let back = GeoPoint::from_ecef(point.to_ecef()).unwrap();
            prop_assert!(back.to_ecef().distance_m(point.to_ecef()) < 1e-7);
            prop_assert!((back.height_m() - point.height_m()).abs() < 1e-7);
            prop_assert!((back.latitude_deg() - point.latitude_deg()).abs() < 1e-12);
        }

        #[test]
        fn up_leads_to_the_same_point_higher_up(point in any_point(), rise_m in 0.0..10.0) {
            let height_m = point.height_m() + rise_m;
            prop_assume!(height_m <= HEIGHT_M_MAX);
            let higher =
                GeoPoint::new(point.latitude_deg(), point.longitude_deg(), height_m).unwrap();
            let step = point.ecef_from_enu() * Vector3::new(0.0, 0.0, rise_m);
            let [x, y, z] = point.to_ecef().xyz_m();
            let reached = Ecef::new([x + step.x, y + step.y, z + step.z]);
            prop_assert!(reached.distance_m(higher.to_ecef()) < 1e-7);
        }

        #[test]
        fn enu_axes_are_orthonormal_and_right_handed(point in any_point()) {
            let axes = *point.ecef_from_enu().matrix();
            prop_assert!((axes.transpose() * axes - Matrix3::identity()).norm() < 1e-12);
            prop_assert!((axes.determinant() - 1.0).abs() < 1e-12);
        }

        #[test]
        fn no_three_numbers_make_an_invalid_point(
            latitude in any::<f64>(), longitude in any::<f64>(), height in any::<f64>(),
        ) {
            if let Ok(point) = GeoPoint::new(latitude, longitude, height) {
                prop_assert!(point.latitude_deg().abs() <= 90.0);
                prop_assert!((-180.0..180.0).contains(&point.longitude_deg()));
                prop_assert!(point.to_ecef().xyz_m().iter().all(|c| c.is_finite()));
            }
        }

        #[test]
        fn any_position_is_a_point_or_an_error(xyz in any::<[f64; 3]>()) {
            let _ = GeoPoint::from_ecef(Ecef::new(xyz));
        }
    }

    #[test]
    fn known_positions_are_met() {
        // NIMA TR8350.2: semi-axes 6,378,137 m and 6,356,752.3142 m.
        let near = |a: Ecef, b: [f64; 3]| a.distance_m(Ecef::new(b)) < 1e-4;
        assert!(near(point(0.0, 0.0, 0.0).to_ecef(), [6_378_137.0, 0.0, 0.0]));
        assert!(near(point(90.0, 0.0, 0.0).to_ecef(), [0.0, 0.0, 6_356_752.314_2]));
        assert!(near(point(0.0, 90.0, 100.0).to_ecef(), [0.0, 6_378_237.0, 0.0]));
    }

    #[test]
    fn poles_and_antimeridian_have_one_name() {
        let south = GeoPoint::from_ecef(Ecef::new([0.0, 0.0, -6_356_752.314_245])).unwrap();
        assert_eq!(south.latitude_deg(), -90.0);
        let west = GeoPoint::from_ecef(Ecef::new([-6_378_137.0, 0.0, 0.0])).unwrap();
        assert_eq!(west.longitude_deg(), -180.0);
        assert_eq!(point(0.0, 180.0, 0.0), point(0.0, -180.0, 0.0));
    }

    #[test]
    fn positions_far_from_the_surface_are_refused() {
        for xyz in [[0.0; 3], [7e6, 0.0, 0.0], [0.0, 0.0, 6.3e6], [f64::NAN; 3], [f64::MAX; 3]] {
            assert!(GeoPoint::from_ecef(Ecef::new(xyz)).is_err(), "{xyz:?}");
        }
    }
}
