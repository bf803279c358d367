//! Spaces and regions.

use anchorhold_geometry::{Ecef, GeoPoint, Meters};
use anchorhold_model::{LocalPosition, Pose, Space};
use serde::{Deserialize, Serialize};

use super::anchor::{geo_point, local_position, space_number};
use super::query::Place;
use crate::field::Within;
use crate::limits::REGION_RADIUS_M_MAX;
use crate::{FieldError, v1};

/// A part of a space, checked.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum RegionSpec {
    /// Everything within a straight-line distance of a place.
    Sphere {
        /// The center.
        center: Place,
        /// Greater than 0.
        radius: Meters,
    },
    /// Everything between two parallels and two meridians, edges included.
    GeoRectangle {
        /// South-western corner at height 0.
        south_west: GeoPoint,
        /// North-eastern corner at height 0; its longitude is smaller than the other's if the
        /// antimeridian lies between.
        north_east: GeoPoint,
        /// Whether it reaches all the way around: both corners then have longitude -180.
        is_full_circle: bool,
        /// Lowest ellipsoidal height in meters; may be minus infinity.
        height_m_min: f64,
        /// Highest ellipsoidal height in meters; may be infinity.
        height_m_max: f64,
    },
    /// A box along the axes of a local space, faces included.
    LocalBox {
        /// The space's number.
        space: u32,
        /// The corner with the smallest coordinates.
        min: LocalPosition,
        /// The corner with the largest coordinates.
        max: LocalPosition,
    },
}

impl RegionSpec {
    /// The space that the region is a part of.
    pub fn space(&self) -> Space {
        match self {
            Self::Sphere { center, .. } => center.space(),
            Self::GeoRectangle { .. } => Space::Earth,
            Self::LocalBox { space, .. } => Space::Local(*space),
        }
    }

    /// A sphere around the region, its radius in meters; `None` for rectangles, which have no end
    /// above and below.
    pub fn bounding_sphere(&self) -> Option<(Ecef, f64)> {
        match self {
            Self::Sphere { center, radius } => Some((center.position(), radius.get())),
            Self::GeoRectangle { .. } => None,
            Self::LocalBox { min, max, .. } => {
                let (min, max) = (min.xyz_m(), max.xyz_m());
                let center: [f64; 3] =
                    std::array::from_fn(|axis| f64::midpoint(min[axis], max[axis]));
                let center = Ecef::new(center);
                Some((center, center.distance_m(Ecef::new(max))))
            }
        }
    }

    /// Whether a pose lies in the region.
    pub fn contains(&self, pose: &Pose) -> bool {
        if self.space() != pose.space() {
            return false;
        }
        match (self, pose) {
            (Self::Sphere { center, radius }, _) => {
                center.position().distance_m(pose.position()) <= radius.get()
            }
            (
                Self::GeoRectangle {
                    south_west,
                    north_east,
                    is_full_circle,
                    height_m_min,
                    height_m_max,
                },
                Pose::Geo { point, .. },
            ) => {
                let (west, east) = (south_west.longitude_deg(), north_east.longitude_deg());
                let longitude = point.longitude_deg();
                let is_between = if west <= east {
                    (west..=east).contains(&longitude)
                } else {
                    west <= longitude || longitude <= east
                };
                (is_between || *is_full_circle)
                    && (south_west.latitude_deg()..=north_east.latitude_deg())
                        .contains(&point.latitude_deg())
                    && (*height_m_min..=*height_m_max).contains(&point.height_m())
            }
            (Self::LocalBox { min, max, .. }, Pose::Local { position, .. }) => {
                let bounds = min.xyz_m().into_iter().zip(max.xyz_m());
                position.xyz_m().iter().zip(bounds).all(|(c, (low, high))| low <= *c && *c <= high)
            }
            (Self::GeoRectangle { .. }, Pose::Local { .. })
            | (Self::LocalBox { .. }, Pose::Geo { .. }) => false,
        }
    }
}

/// Checks a region.
///
/// # Errors
/// [`FieldError`] with a path within the region.
pub fn region_from_wire(region: v1::Region) -> Result<RegionSpec, FieldError> {
    match region.shape {
        None => {
            let problem = "must be set, one of `sphere`, `geo_rectangle`, `local_box`";
            Err(FieldError::invalid("", problem))
        }
        Some(v1::region::Shape::Sphere(sphere)) => sphere_from_wire(sphere).within("sphere"),
        Some(v1::region::Shape::GeoRectangle(rectangle)) => {
            rectangle_from_wire(rectangle).within("geo_rectangle")
        }
        Some(v1::region::Shape::LocalBox(local_box)) => {
            box_from_wire(local_box).within("local_box")
        }
    }
}

fn sphere_from_wire(sphere: v1::Sphere) -> Result<RegionSpec, FieldError> {
    let center = match sphere.center {
        None => return Err(FieldError::missing("center")),
        Some(v1::sphere::Center::Geo(point)) => Place::of_geo(point).within("geo")?,
        Some(v1::sphere::Center::Local(point)) => Place::of_local(point).within("local")?,
    };
    let radius = Meters::new(sphere.radius_m)
        .filter(|radius| 0.0 < radius.get() && radius.get() <= REGION_RADIUS_M_MAX)
        .ok_or_else(|| FieldError::invalid("radius_m", "must be in (0, 1,000,000] meters"))?;
    Ok(RegionSpec::Sphere { center, radius })
}

fn rectangle_from_wire(rectangle: v1::GeoRectangle) -> Result<RegionSpec, FieldError> {
    let v1::GeoRectangle { south_deg, west_deg, north_deg, east_deg, height_m_min, height_m_max } =
        rectangle;
    for (field, value, bound) in [
        ("south_deg", south_deg, 90.0),
        ("north_deg", north_deg, 90.0),
        ("west_deg", west_deg, 180.0),
        ("east_deg", east_deg, 180.0),
    ] {
        if !(-bound..=bound).contains(&value) {
            return Err(FieldError::invalid(
                field,
                format_args!("must be within ±{bound} degrees"),
            ));
        }
    }
    if north_deg < south_deg {
        return Err(FieldError::invalid("north_deg", "must not be south of `south_deg`"));
    }
    let height_m_min = height_m_min.unwrap_or(f64::NEG_INFINITY);
    let height_m_max = height_m_max.unwrap_or(f64::INFINITY);
    // NaN is in no order.
    if height_m_min.partial_cmp(&height_m_max).is_none_or(std::cmp::Ordering::is_gt) {
        return Err(FieldError::invalid("height_m_max", "must not be below `height_m_min`"));
    }
    Ok(RegionSpec::GeoRectangle {
        south_west: geo_point(south_deg, west_deg, 0.0)?,
        north_east: geo_point(north_deg, east_deg, 0.0)?,
        is_full_circle: west_deg == -180.0 && east_deg == 180.0,
        height_m_min,
        height_m_max,
    })
}

fn box_from_wire(local_box: v1::LocalBox) -> Result<RegionSpec, FieldError> {
    let corner = |point: Option<v1::LocalPoint>, name: &str| {
        let point = point.ok_or_else(|| FieldError::missing(name))?;
        let space = space_number(point.space).within(name)?;
        let position = local_position([point.x_m, point.y_m, point.z_m]).within(name)?;
        Ok::<_, FieldError>((space, position))
    };
    let (space, min) = corner(local_box.min, "min")?;
    let (space_max, max) = corner(local_box.max, "max")?;
    if space != space_max {
        return Err(FieldError::invalid("max.space", "must be the space of `min`"));
    }
    let mut bounds = min.xyz_m().into_iter().zip(max.xyz_m());
    if let Some(axis) = bounds.position(|(low, high)| high < low) {
        let field = format!("max.{}", ["x_m", "y_m", "z_m"][axis]);
        return Err(FieldError::invalid(field, "must not be smaller than that of `min`"));
    }
    Ok(RegionSpec::LocalBox { space, min, max })
}

/// Checks a space.
///
/// # Errors
/// [`FieldError`] with a path within the space.
pub fn space_from_wire(space: v1::Space) -> Result<Space, FieldError> {
    match space.kind {
        None => Err(FieldError::invalid("", "must be set, either `earth` or `local`")),
        Some(v1::space::Kind::Earth(v1::EarthSpace {})) => Ok(Space::Earth),
        Some(v1::space::Kind::Local(number)) => match space_number(number) {
            Ok(number) => Ok(Space::Local(number)),
            Err(error) => Err(FieldError { field: "local".to_owned(), ..error }),
        },
    }
}

/// A space as the wire carries it.
pub fn space_to_wire(space: Space) -> v1::Space {
    let kind = match space {
        Space::Earth => v1::space::Kind::Earth(v1::EarthSpace {}),
        Space::Local(number) => v1::space::Kind::Local(number),
    };
    v1::Space { kind: Some(kind) }
}
