//! Which keys a region touches, and how near the anchors of a key range can be.

use anchorhold_geometry::GeoPoint;

use crate::{AccountNumber, KeyRange, LocalPosition, Pose};

/// How far a pose may lie from its id's home, in meters.
pub const DRIFT_M_MAX: f64 = 100.0;
/// Cells of one covering, at most; more where a region lies on several faces of the S2 cube.
pub const CELLS_MAX: usize = 8;
