use serde::{Deserialize, Serialize};

/// A position in an earth-centred, earth-fixed frame (EPSG:4978), meters. Also used for positions
/// in a local space's frame, where the three numbers are that frame's x, y, z.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ecef([f64; 3]);

impl Ecef {
    /// A position from x, y, z in meters.
    pub fn new(xyz_m: [f64; 3]) -> Self {
        Self(xyz_m)
    }

    /// x, y, z in meters.
    pub fn xyz_m(self) -> [f64; 3] {
        self.0
    }

    /// Straight-line distance in meters.
    pub fn distance_m(self, other: Self) -> f64 {
        self.distance_squared_m2(other).sqrt()
    }

    /// Square of the straight-line distance, in square meters.
    pub fn distance_squared_m2(self, other: Self) -> f64 {
        self.0.iter().zip(other.0).map(|(a, b)| (a - b) * (a - b)).sum()
    }
}
