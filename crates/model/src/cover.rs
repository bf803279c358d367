//! Which keys a region touches, and how near the anchors of a key range can be.
//!
//! An id tells its anchor's home, and the pose may have drifted [`DRIFT_M_MAX`] from it. Coverings
//! are widened by that, and bounds are lowered by it, so that neither misses an anchor. Both rest
//! on the inequality in `cell`: chords between normals, times 6,320 km, are never longer than true
//! distances, whatever the heights from −11 km up.
//!
//! Not here: the exact distances of anchors (`localization`), which shards own a key (`catalog`).

use anchorhold_geometry::GeoPoint;
use s2::cap::Cap;
use s2::cell::Cell;
use s2::cellid::CellID;
use s2::cellunion::CellUnion;
use s2::point::Point;
use s2::r3::vector::Vector;
use s2::rect::Rect;
use s2::region::{Region, RegionCoverer};
use s2::s1::{ChordAngle, Rad};

use crate::cell::{self, CellIndex};
use crate::{AccountNumber, KeyRange, Pose, Space};

/// How far a pose may lie from its id's home, in meters.
pub const DRIFT_M_MAX: f64 = 100.0;
/// Cells of one covering, at most; more where a region lies on several faces of the S2 cube.
pub const CELLS_MAX: usize = 8;

/// Added to coverings and taken off bounds, in meters: far above the rounding of the arithmetic.
const ROUNDING_M: f64 = 0.01;
/// Added to the radius of a ball around cells, for rounding: of chords of the unit sphere.
const BALL_ROUNDING: f64 = 1e-12;
/// Levels of S2 cells in coverings: ids do not tell more than level 22.
const LEVEL_MAX: u8 = 22;

/// A rectangle of latitudes and longitudes, both ends included. Heights do not matter.
///
/// Invariant: as for [`GeoPoint`], and `south <= north`. `east < west` crosses the antimeridian.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GeoRect {
    south_deg: f64,
    west_deg: f64,
    north_deg: f64,
    east_deg: f64,
}

/// Why four numbers are not a rectangle on Earth.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum GeoRectError {
    /// A latitude outside `[-90, 90]` degrees, not a number, or south above north.
    #[error("latitudes {south_deg} to {north_deg} are not a range within [-90, 90] degrees")]
    Latitudes {
        /// Southern edge.
        south_deg: f64,
        /// Northern edge.
        north_deg: f64,
    },
    /// A longitude outside `[-180, 180]` degrees, or not a number.
    #[error("longitudes {west_deg} to {east_deg} are not within [-180, 180] degrees")]
    Longitudes {
        /// Western edge.
        west_deg: f64,
        /// Eastern edge.
        east_deg: f64,
    },
}

impl GeoRect {
    /// A rectangle from its edges in degrees. From `west` the rectangle goes east to `east`: with
    /// `east < west` across the antimeridian, from -180 to 180 all the way round.
    ///
    /// # Errors
    /// [`GeoRectError`] if an edge is outside its interval, NaN included, or south above north.
    pub fn new(
        south_deg: f64,
        west_deg: f64,
        north_deg: f64,
        east_deg: f64,
    ) -> Result<Self, GeoRectError> {
        let latitudes = -90.0..=90.0;
        let is_range = latitudes.contains(&south_deg) && latitudes.contains(&north_deg);
        if !is_range || north_deg < south_deg {
            return Err(GeoRectError::Latitudes { south_deg, north_deg });
        }
        let longitudes = -180.0..=180.0;
        if !longitudes.contains(&west_deg) || !longitudes.contains(&east_deg) {
            return Err(GeoRectError::Longitudes { west_deg, east_deg });
        }
        Ok(Self { south_deg, west_deg, north_deg, east_deg })
    }

    /// Whether a point lies in the rectangle, edges included.
    pub fn contains(&self, point: GeoPoint) -> bool {
        let (latitude, longitude) = (point.latitude_deg(), point.longitude_deg());
        let is_between = (self.south_deg..=self.north_deg).contains(&latitude);
        // A point has one name for the antimeridian, -180; a rectangle may end at 180.
        is_between && (self.spans(longitude) || (longitude == -180.0 && self.spans(180.0)))
    }

    fn spans(&self, longitude_deg: f64) -> bool {
        if self.west_deg <= self.east_deg {
            (self.west_deg..=self.east_deg).contains(&longitude_deg)
        } else {
            self.west_deg <= longitude_deg || longitude_deg <= self.east_deg
        }
    }
}

/// Keys of an account under which every anchor lies that is, or has its pose, within `radius_m`
/// meters (3-D) of a position. Sorted, merged.
pub fn cover_near(account: AccountNumber, near: &Pose, radius_m: f64) -> Vec<KeyRange> {
    match near {
        Pose::Geo { point, .. } => cover_near_point(account, *point, radius_m),
        Pose::Local { space, position, .. } => {
            let [x, y, _] = position.xyz_m();
            cover_square(account, *space, [x, y], radius_m + DRIFT_M_MAX + ROUNDING_M)
        }
    }
}

/// As [`cover_near`], for a point on Earth.
pub fn cover_near_point(account: AccountNumber, point: GeoPoint, radius_m: f64) -> Vec<KeyRange> {
    match widened_cap(point, radius_m) {
        Some(cap) => cover(account, &cap),
        None => vec![KeyRange::of_space(account, Space::Earth)],
    }
}

/// As [`cover_near`], at a small part of its cost: at most four cells around the position, each
/// about as wide as the sphere.
pub fn bound_near(account: AccountNumber, near: &Pose, radius_m: f64) -> Vec<KeyRange> {
    match near {
        Pose::Geo { point, .. } => match widened_cap(*point, radius_m) {
            Some(cap) => ranges_of_cells(account, &cap.cell_union_bound()),
            None => vec![KeyRange::of_space(account, Space::Earth)],
        },
        Pose::Local { .. } => cover_near(account, near, radius_m),
    }
}

/// Where the homes of anchors lie that are within a distance of a point; `None` if everywhere.
fn widened_cap(point: GeoPoint, radius_m: f64) -> Option<Cap> {
    let chord = (radius_m + DRIFT_M_MAX + ROUNDING_M) / cell::SPHERE_RADIUS_M;
    // Beyond the sphere's diameter, or not a number.
    if 2.0 <= chord || chord.is_nan() {
        return None;
    }
    let center = Point(cell::normal(point));
    Some(Cap::from_center_chordangle(&center, &ChordAngle(chord * chord)))
}

/// Keys of an account under which every anchor lies whose pose is in a rectangle. Sorted, merged.
pub fn cover_rect(account: AccountNumber, rect: &GeoRect) -> Vec<KeyRange> {
    // An angle of d / R reaches a chord of d / R and more.
    let margin = Rad((DRIFT_M_MAX + ROUNDING_M) / cell::SPHERE_RADIUS_M * 1.001);
    cover(account, &widened(rect, margin.0))
}

/// The rectangle with everything around it that is within an angle (radians).
fn widened(rect: &GeoRect, margin: f64) -> Rect {
    let pole = std::f64::consts::FRAC_PI_2;
    let south = rect.south_deg.to_radians() - margin;
    let north = rect.north_deg.to_radians() + margin;
    let mut wide = Rect::from_degrees(
        rect.south_deg,
        within_half_turn(rect.west_deg),
        rect.north_deg,
        within_half_turn(rect.east_deg),
    );
    wide.lat.lo = south.max(-pole);
    wide.lat.hi = north.min(pole);
    // Near a pole every longitude is near.
    let farthest = south.abs().max(north.abs());
    let is_all_round = rect.west_deg == -180.0 && rect.east_deg == 180.0;
    wide.lng = if pole <= farthest || is_all_round {
        s2::s1::interval::FULL
    } else {
        // Source: the widest meridian that a cap of angle r around latitude p touches lies
        // asin(sin r / cos p) away.
        let widest = (margin.sin() / farthest.cos()).min(1.0).asin();
        wide.lng.expanded(widest)
    };
    wide
}

/// S2 names the antimeridian 180 wherever an interval ends.
fn within_half_turn(longitude_deg: f64) -> f64 {
    if longitude_deg == -180.0 { 180.0 } else { longitude_deg }
}

fn cover<T: Region + 'static>(account: AccountNumber, region: &T) -> Vec<KeyRange> {
    let coverer =
        RegionCoverer { min_level: 0, max_level: LEVEL_MAX, level_mod: 1, max_cells: CELLS_MAX };
    ranges_of_cells(account, &coverer.covering(region).0)
}

fn ranges_of_cells(account: AccountNumber, cells: &[CellID]) -> Vec<KeyRange> {
    let ranges = cells.iter().filter_map(|cell_id| KeyRange::of_s2_cell(account, cell_id.0));
    merged(ranges.collect())
}

/// Keys of the cells of a local space around a square whose half side is `reach_m` meters. Their
/// order is Morton's, so the largest aligned blocks are taken that are not needed in more than two
/// columns and two rows.
fn cover_square(account: AccountNumber, space: u32, xy: [f64; 2], reach_m: f64) -> Vec<KeyRange> {
    let whole = KeyRange::of_space(account, Space::Local(space));
    let levels = 0..cell::LOCAL_CELLS.trailing_zeros();
    let side_m = |level: &u32| cell::LOCAL_CELL_M * f64::from(1_u32 << level);
    let Some(level) = levels.into_iter().find(|level| 2.0 * reach_m <= side_m(level)) else {
        return vec![whole];
    };
    let (first, _) = cell::range_of_space(Space::Local(space));
    let mut ranges = Vec::new();
    for dx in [-reach_m, reach_m] {
        for dy in [-reach_m, reach_m] {
            let corner = [xy[0] + dx, xy[1] + dy].map(cell::local_number);
            let morton = cell::spread_bits(corner[0]) | cell::spread_bits(corner[1]) << 1;
            let (block, last) = (morton >> (2 * level) << (2 * level), (1 << (2 * level)) - 1);
            let from = CellIndex(first.0 + u64::from(block));
            let to = CellIndex(first.0 + u64::from(block | last));
            ranges.push(KeyRange::of_cells(account, from, to));
        }
    }
    merged(ranges)
}

/// Sorts ranges and joins those that touch or overlap.
pub fn merged(mut ranges: Vec<KeyRange>) -> Vec<KeyRange> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort();
    let mut joined: Vec<KeyRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end.is_none_or(|end| range.start <= end) => {
                last.end = last.end.and_then(|a| range.end.map(|b| a.max(b)));
            }
            Some(_) | None => joined.push(range),
        }
    }
    joined
}

/// S2 cell ids, at most `cells_max` but up to 6 for the whole Earth, that hold the homes of all ids
/// of an account in some key ranges: for people to see what was asked for. Coarser than the ranges
/// where those would take more cells. Sorted; empty in local spaces.
pub fn s2_cells(account: AccountNumber, ranges: &[KeyRange], cells_max: usize) -> Vec<u64> {
    let leaves = ranges.iter().filter_map(|range| {
        let (first, last) = range.cells(account)?;
        cell::leaves(first, last)
    });
    let mut cells: Vec<CellID> =
        leaves.flat_map(|(first, end)| CellUnion::from_range(first, end).0).collect();
    cells.sort();
    cells.dedup();
    for level in (0..u64::from(LEVEL_MAX)).rev() {
        if cells.len() <= cells_max {
            break;
        }
        let coarse = |cell: &CellID| if level < cell.level() { cell.parent(level) } else { *cell };
        cells = cells.iter().map(coarse).collect();
        cells.sort();
        cells.dedup();
        let all = cells.clone();
        cells.retain(|cell| !all.iter().any(|other| other != cell && other.contains(cell)));
    }
    cells.into_iter().map(|cell| cell.0).collect()
}

/// How near the anchors of one account in a key range can be to a position. Made once per range,
/// asked often.
#[derive(Clone, Debug)]
pub struct RangeBounds {
    /// The range's S2 cells, the largest first: they tell the most about what is near.
    cells: Vec<BoundedCell>,
    /// A ball that holds them all; `None` if there are none.
    ball: Option<Ball>,
    /// First and last cell of the range in all spaces; `None` if it holds no id of the account.
    span: Option<(CellIndex, CellIndex)>,
}

#[derive(Clone, Debug)]
struct BoundedCell {
    cell: Cell,
    ball: Ball,
}

/// Points on the unit sphere are in it.
#[derive(Clone, Copy, Debug)]
struct Ball {
    center: Vector,
    /// Longest chord from the center to a point.
    radius: f64,
}

impl RangeBounds {
    /// The bounds of an account's anchors in a key range.
    pub fn new(account: AccountNumber, range: &KeyRange) -> Self {
        let span = range.cells(account);
        let leaves = span.and_then(|(first, last)| cell::leaves(first, last));
        let ids = leaves.map(|(first, end)| CellUnion::from_range(first, end).0);
        let mut cells: Vec<_> = ids.unwrap_or_default().into_iter().map(BoundedCell::new).collect();
        cells.sort_by(|a, b| b.ball.radius.total_cmp(&a.ball.radius));
        let ball = Ball::around(&cells);
        Self { cells, ball, span }
    }

    /// As [`RangeBounds::lower_bound_m`], lower but cheaper: for a range that is far away, the time
    /// of one distance whatever its number of cells.
    pub fn rough_lower_bound_m(&self, from: &Pose) -> f64 {
        match (from, &self.ball) {
            (Pose::Geo { point, .. }, Some(ball)) => {
                below_chord_m(cell::normal(*point).distance(&ball.center) - ball.radius)
            }
            (Pose::Geo { .. } | Pose::Local { .. }, _) => self.lower_bound_m(from),
        }
    }

    /// A lower bound of the distance in meters (3-D) from a position to any anchor of the range in
    /// the position's space. Infinite if there can be none.
    ///
    /// In a local space it is 0 or infinite: its cells repeat, so a key range says little there.
    pub fn lower_bound_m(&self, from: &Pose) -> f64 {
        match from {
            Pose::Geo { point, .. } => self.lower_bound_from_point_m(*point),
            Pose::Local { space, .. } => {
                let (first, last) = cell::range_of_space(Space::Local(*space));
                let is_met = self.span.is_some_and(|span| span.0 <= last && first <= span.1);
                if is_met { 0.0 } else { f64::INFINITY }
            }
        }
    }

    /// As [`RangeBounds::lower_bound_m`], from a point on Earth.
    pub fn lower_bound_from_point_m(&self, point: GeoPoint) -> f64 {
        let from = cell::normal(point);
        let mut nearest = f64::INFINITY;
        for bounded in &self.cells {
            // The chord to the cell is at least that to its center less its radius: cheap, and
            // enough for most cells.
            let beyond = nearest + bounded.ball.radius;
            if (from - bounded.ball.center).norm2() < beyond * beyond {
                nearest = nearest.min(cell::chord_to_cell(from, &bounded.cell));
            }
            if nearest <= 0.0 {
                break;
            }
        }
        below_chord_m(nearest)
    }
}

/// A lower bound of the distance in meters from a position to an anchor, by the chord between the
/// position's normal and the nearest that the anchor's home may have.
fn below_chord_m(chord: f64) -> f64 {
    (cell::SPHERE_RADIUS_M * chord - DRIFT_M_MAX - ROUNDING_M).max(0.0)
}

impl BoundedCell {
    fn new(cell_id: CellID) -> Self {
        let cell = Cell::from(cell_id);
        let center = cell.center().0;
        let corners = cell.vertices();
        // The farthest point of a cell is a corner.
        let radius = corners.iter().map(|corner| center.distance(&corner.0)).fold(0.0, f64::max);
        Self { cell, ball: Ball { center, radius: radius + BALL_ROUNDING } }
    }
}

impl Ball {
    /// Around the center of area, about, of some cells.
    fn around(cells: &[BoundedCell]) -> Option<Self> {
        let area = |cell: &BoundedCell| cell.ball.radius * cell.ball.radius;
        let sum = |of: fn(&Vector) -> f64| {
            cells.iter().map(|cell| area(cell) * of(&cell.ball.center)).sum::<f64>()
        };
        let total = cells.iter().map(area).sum::<f64>();
        let center = Vector { x: sum(|v| v.x), y: sum(|v| v.y), z: sum(|v| v.z) } * total.recip();
        let reach = |cell: &BoundedCell| center.distance(&cell.ball.center) + cell.ball.radius;
        let radius = cells.iter().map(reach).max_by(f64::total_cmp)?;
        Some(Self { center, radius: radius + BALL_ROUNDING })
    }
}

#[cfg(test)]
mod tests;
