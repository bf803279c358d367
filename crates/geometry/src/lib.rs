//! Frames, rotations and poses.
//!
//! Everything here is a pure function of its arguments. Positions on Earth are WGS84
//! (EPSG:4979) at the edges and earth-centred, earth-fixed (ECEF, EPSG:4978) meters inside, so
//! that distances are true 3-D meters everywhere, poles and antimeridian included.
//!
//! Not here: cells and coverings (`model::cover`), search (`localization`).

mod ecef;
pub mod geo_point;
mod meters;
pub mod orientation;

pub use ecef::Ecef;
pub use geo_point::{GeoPoint, GeoPointError};
pub use meters::Meters;
pub use orientation::{Orientation, OrientationError};
