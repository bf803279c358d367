use serde::{Deserialize, Serialize};

/// How far from 1 the norm of an accepted quaternion may be. Devices send single precision.
pub const NORM_TOLERANCE: f64 = 1e-3;

/// A rotation as a unit quaternion x, y, z, w (Hamilton), from the anchor's frame to the frame
/// that its position is given in: east-north-up on Earth, the space's own axes elsewhere.
///
/// Invariant: finite, and its norm is 1 within rounding.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Orientation([f64; 4]);

/// Why four numbers are not a rotation.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("quaternion norm {norm} is not 1 within {NORM_TOLERANCE}")]
pub struct OrientationError {
    /// The norm that was met. NaN if a component was.
    pub norm: f64,
}

impl Orientation {
    /// No rotation.
    pub const IDENTITY: Self = Self([0.0, 0.0, 0.0, 1.0]);

    /// A rotation from quaternion components x, y, z, w; normalized exactly.
    ///
    /// # Errors
    /// [`OrientationError`] if the norm is farther than [`NORM_TOLERANCE`] from 1, NaN included.
    pub fn new(xyzw: [f64; 4]) -> Result<Self, OrientationError> {
        let norm = xyzw.iter().map(|c| c * c).sum::<f64>().sqrt();
        // False for NaN.
        let is_unit = (norm - 1.0).abs() <= NORM_TOLERANCE;
        if !is_unit {
            return Err(OrientationError { norm });
        }
        Ok(Self(xyzw.map(|c| c / norm)))
    }

    /// Components x, y, z, w.
    pub fn xyzw(self) -> [f64; 4] {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quaternion_of_single_precision_is_taken_and_made_a_unit() {
        let half = f64::from(0.5_f32.sqrt());
        let [x, y, z, w] = Orientation::new([half * 1.000_5, 0.0, 0.0, half]).unwrap().xyzw();
        assert!(((x * x + y * y + z * z + w * w).sqrt() - 1.0).abs() < 1e-15);
    }

    #[test]
    fn what_is_no_rotation_is_refused() {
        for xyzw in [[0.0; 4], [0.0, 0.0, 0.0, 1.01], [f64::NAN, 0.0, 0.0, 1.0], [f64::MAX; 4]] {
            assert!(Orientation::new(xyzw).is_err(), "{xyzw:?}");
        }
    }
}
