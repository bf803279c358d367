//! The cells that ids name, and how far a pose is from one.
//!
//! On Earth a cell is an S2 cell of level 22 over the directions of the WGS84 ellipsoid's normals
//! (geodetic latitude and longitude taken as a point of the unit sphere). In a local space it is a
//! square of 4 m by 4 m, known modulo 1,024 m.
//!
//! Distances rest on one inequality. Let `n` be the outward normal's direction at a point's foot on
//! the ellipsoid. For any two points at heights of at least −11 km,
//! `distance_m >= SPHERE_RADIUS_M * |n1 - n2|`: projecting both onto the convex surface at −11 km
//! does not lengthen their distance, and a ball of that surface's smallest radius of curvature
//! (6,324,439 m) rolls freely inside it (Blaschke), so the surface is that ball plus a convex body,
//! whose support points move along with the normal.
//!
//! The functions that `apply` calls use only `+ - * / sqrt` and the `libm` crate: equal on every
//! machine.

use anchorhold_geometry::GeoPoint;
use s2::cell::Cell;
use s2::cellid::CellID;
use s2::r3::vector::Vector;

use crate::{Pose, Space};

/// Radius of the sphere on which chords are never longer than the true distances, in meters:
/// a little below the smallest radius of curvature at −11 km, which leaves room for rounding.
pub(crate) const SPHERE_RADIUS_M: f64 = 6_320_000.0;

/// Largest number of a local space: 28 bits.
pub const SPACE_NUMBER_MAX: u32 = (1 << 28) - 1;

/// A cell's place in the order of ids: face code (3 bits), cell (28 bits), fine cell (16 bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CellIndex(pub(crate) u64);

/// First number that is no cell index.
pub(crate) const CELL_INDEX_END: u64 = 1 << 47;
/// First index that is no S2 cell's.
pub(crate) const EARTH_INDEX_END: u64 = 6 << 44;
/// Bits of a leaf cell's id below those of its level-22 ancestor.
const LEAF_SHIFT: u32 = 17;
/// Level of the S2 cells that are indexed.
const LEVEL: u64 = 22;

/// Side of a local space's cell in meters.
pub(crate) const LOCAL_CELL_M: f64 = 4.0;
/// Cells per side before they repeat.
pub(crate) const LOCAL_CELLS: u32 = 256;
/// Distance in meters after which a local space's cells repeat.
pub(crate) const LOCAL_PERIOD_M: f64 = 1024.0;

impl CellIndex {
    /// The cell after this one; `None` after the last.
    pub(crate) fn next(self) -> Option<Self> {
        (self.0 + 1 < CELL_INDEX_END).then(|| Self(self.0 + 1))
    }
}

/// The cell that a pose lies in.
pub(crate) fn of_pose(pose: &Pose) -> CellIndex {
    match pose {
        Pose::Geo { point, .. } => CellIndex(leaf_of(*point).0 >> LEAF_SHIFT),
        Pose::Local { space, position, .. } => {
            let [x, y, _] = position.xyz_m().map(local_number);
            CellIndex(first_of_local(*space) | u64::from(spread_bits(x) | spread_bits(y) << 1))
        }
    }
}

/// The level-22 cell of a leaf cell; `None` if it is no leaf cell's id.
pub(crate) fn of_leaf(leaf: u64) -> Option<CellIndex> {
    let index = leaf >> LEAF_SHIFT;
    (leaf & 1 == 1 && index < EARTH_INDEX_END).then_some(CellIndex(index))
}

/// First and last leaf cell of an S2 cell; `None` if `cell_id` is no S2 cell's id.
pub(crate) fn leaf_range(cell_id: u64) -> Option<(u64, u64)> {
    let marker = cell_id & cell_id.wrapping_neg();
    let is_valid = marker & 0x1555_5555_5555_5555 != 0 && cell_id >> 61 < 6;
    is_valid.then(|| (cell_id - (marker - 1), cell_id + (marker - 1)))
}

/// First and last cell of a space.
pub(crate) fn range_of_space(space: Space) -> (CellIndex, CellIndex) {
    match space {
        Space::Earth => (CellIndex(0), CellIndex(EARTH_INDEX_END - 1)),
        Space::Local(number) => {
            let first = first_of_local(number);
            (CellIndex(first), CellIndex(first + 0xffff))
        }
    }
}

/// The leaf cells of a range of cells on Earth, as `[first, end)`; `None` if none is on Earth.
pub(crate) fn leaves(first: CellIndex, last: CellIndex) -> Option<(CellID, CellID)> {
    let end = (last.0 + 1).min(EARTH_INDEX_END);
    let leaf = |index: u64| CellID(index << LEAF_SHIFT | 1);
    (first.0 < end).then(|| (leaf(first.0), leaf(end)))
}

/// Distance in meters between a pose and a cell of the same space, as the drift rule counts it.
pub(crate) fn distance_m(index: CellIndex, pose: &Pose) -> f64 {
    // The usual case, and exact where rounding puts a point of an edge beside its cell.
    if of_pose(pose) == index {
        return 0.0;
    }
    match pose {
        Pose::Geo { point, .. } => {
            let cell = Cell::from(CellID(index.0 << LEAF_SHIFT | 1).parent(LEVEL));
            SPHERE_RADIUS_M * chord_to_cell(normal(*point), &cell)
        }
        Pose::Local { position, .. } => {
            let morton = (index.0 & 0xffff) as u32;
            let [x, y, _] = position.xyz_m();
            let dx = periodic_distance_m(x, gather_bits(morton));
            let dy = periodic_distance_m(y, gather_bits(morton >> 1));
            (dx * dx + dy * dy).sqrt()
        }
    }
}

/// The leaf cell of a point.
pub(crate) fn leaf_of(point: GeoPoint) -> CellID {
    CellID::from(s2::point::Point(normal(point)))
}

/// Direction of the ellipsoid's outward normal below or above a point, as a unit vector in ECEF.
pub(crate) fn normal(point: GeoPoint) -> Vector {
    let (latitude, longitude) =
        (point.latitude_deg().to_radians(), point.longitude_deg().to_radians());
    let (sin_latitude, cos_latitude) = libm::sincos(latitude);
    let (sin_longitude, cos_longitude) = libm::sincos(longitude);
    Vector { x: cos_latitude * cos_longitude, y: cos_latitude * sin_longitude, z: sin_latitude }
}

/// Length of the shortest chord between a unit vector and a cell, on the unit sphere; 0 inside.
///
/// Exact but for rounding: a cell's sides are arcs of great circles, so the nearest point is the
/// foot on a side, or a corner.
pub(crate) fn chord_to_cell(from: Vector, cell: &Cell) -> f64 {
    let corners = cell.vertices().map(|corner| corner.0);
    let mut nearest = f64::INFINITY;
    let mut is_inside = true;
    for (side, a) in corners.iter().enumerate() {
        let b = &corners[(side + 1) % 4];
        // The corners run counter-clockwise, so the inside is on the left of each side.
        let left = cell.edge(side).0;
        let offset = from.dot(&left);
        is_inside &= 0.0 <= offset;
        nearest = nearest.min(chord_to_side(from, offset, left, *a, *b));
    }
    if is_inside { 0.0 } else { nearest }
}

/// Length of the shortest chord between a unit vector and the arc from `a` to `b`, whose left
/// normal is `left`; `offset` is the vector's component along it.
fn chord_to_side(from: Vector, offset: f64, left: Vector, a: Vector, b: Vector) -> f64 {
    let to_corner = from.distance(&a).min(from.distance(&b));
    let is_beside = 0.0 <= left.cross(&a).dot(&from) && left.cross(&b).dot(&from) <= 0.0;
    if !is_beside {
        return to_corner;
    }
    // The foot lies at the angle asin(offset): chord² = offset² + (1 - sqrt(1 - offset²))².
    let squared = offset * offset;
    let rise = squared / (1.0 + (1.0 - squared).max(0.0).sqrt());
    to_corner.min((squared + rise * rise).sqrt())
}

fn first_of_local(space: u32) -> u64 {
    (6 << 28 | u64::from(space & SPACE_NUMBER_MAX)) << 16
}

/// Number of the 4 m cell along one axis, modulo 256.
pub(crate) fn local_number(coordinate_m: f64) -> u32 {
    let number = (coordinate_m / LOCAL_CELL_M).floor().rem_euclid(f64::from(LOCAL_CELLS));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a whole number in 0..=256; NaN becomes 0"
    )]
    let number = number as u32;
    number % LOCAL_CELLS
}

/// Distance in meters along one axis to the nearest copy of a cell.
fn periodic_distance_m(coordinate_m: f64, number: u32) -> f64 {
    let middle_m = (f64::from(number) + 0.5) * LOCAL_CELL_M;
    let apart_m = (coordinate_m - middle_m).rem_euclid(LOCAL_PERIOD_M);
    let apart_m = apart_m.min(LOCAL_PERIOD_M - apart_m);
    if apart_m.is_nan() { f64::NAN } else { (apart_m - LOCAL_CELL_M / 2.0).max(0.0) }
}

/// Moves bit `i` to bit `2 i`, for 8 bits: one axis of a Morton code.
pub(crate) fn spread_bits(number: u32) -> u32 {
    (0..8).fold(0, |code, bit| code | (number >> bit & 1) << (2 * bit))
}

/// Moves bit `2 i` to bit `i`, for 8 bits.
fn gather_bits(code: u32) -> u32 {
    (0..8).fold(0, |number, bit| number | (code >> (2 * bit) & 1) << bit)
}
