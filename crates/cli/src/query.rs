//! Flags that say which anchors are meant and how to read them.

use std::time::Duration;

use anchorhold_client::v1;
use clap::Args;

/// Which anchors count.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct FilterArgs {
    /// Only anchors with this tag; given several times, with all of them
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// Only anchors with at least one of these tags
    #[arg(long, value_name = "TAG")]
    any_tag: Vec<String>,
    /// Only anchors with exactly this property
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    property: Vec<(String, String)>,
}

impl FilterArgs {
    /// The filter on the wire.
    pub(crate) fn to_wire(&self) -> v1::Filter {
        v1::Filter {
            properties: self.property.iter().cloned().collect(),
            tags_all: self.tag.clone(),
            tags_any: self.any_tag.clone(),
        }
    }
}

/// How fresh an answer must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadLevel {
    Linearizable,
    BoundedStaleness(Duration),
    Local,
}

impl ReadLevel {
    /// Reads `linearizable`, `bounded:SECONDS` or `local`.
    ///
    /// # Errors
    /// What would be right.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "linearizable" => Ok(Self::Linearizable),
            None if text == "local" => Ok(Self::Local),
            Some(("bounded", text)) => crate::context::seconds(text).map(Self::BoundedStaleness),
            _ => Err("use linearizable, bounded:SECONDS or local".to_owned()),
        }
    }

    /// The options on the wire.
    pub(crate) fn to_wire(self) -> v1::ReadOptions {
        let (consistency, max_staleness) = match self {
            Self::Linearizable => (v1::Consistency::Linearizable, None),
            Self::BoundedStaleness(most) => {
                let most = prost_types::Duration::try_from(most).unwrap_or_default();
                (v1::Consistency::BoundedStaleness, Some(most))
            }
            Self::Local => (v1::Consistency::Local, None),
        };
        v1::ReadOptions {
            consistency: consistency.into(),
            max_staleness,
            ..v1::ReadOptions::default()
        }
    }
}

/// A point on Earth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Point {
    pub(crate) latitude_deg: f64,
    pub(crate) longitude_deg: f64,
    pub(crate) height_m: f64,
}

impl Point {
    /// Reads `LAT,LON` or `LAT,LON,HEIGHT`.
    ///
    /// # Errors
    /// What would be right.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match *numbers(text)?.as_slice() {
            [latitude_deg, longitude_deg] => {
                Ok(Self { latitude_deg, longitude_deg, height_m: 0.0 })
            }
            [latitude_deg, longitude_deg, height_m] => {
                Ok(Self { latitude_deg, longitude_deg, height_m })
            }
            _ => Err("use LAT,LON or LAT,LON,HEIGHT, such as 47.4647,8.5492".to_owned()),
        }
    }

    /// The point on the wire.
    pub(crate) fn to_wire(self) -> v1::GeoPoint {
        let Self { latitude_deg, longitude_deg, height_m } = self;
        v1::GeoPoint { latitude_deg, longitude_deg, height_m }
    }
}

/// A rectangle between parallels and meridians.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rectangle {
    edges_deg: [f64; 4],
}

impl Rectangle {
    /// Reads `SOUTH,WEST,NORTH,EAST`.
    ///
    /// # Errors
    /// What would be right.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let edges_deg = numbers(text)?.try_into();
        let edges_deg = edges_deg.map_err(|_| "use SOUTH,WEST,NORTH,EAST in degrees".to_owned())?;
        Ok(Self { edges_deg })
    }

    /// The region on the wire.
    pub(crate) fn to_wire(self) -> v1::Region {
        let [south_deg, west_deg, north_deg, east_deg] = self.edges_deg;
        let rectangle = v1::GeoRectangle {
            south_deg,
            west_deg,
            north_deg,
            east_deg,
            ..v1::GeoRectangle::default()
        };
        v1::Region { shape: Some(v1::region::Shape::GeoRectangle(rectangle)) }
    }
}

/// `NAME=VALUE`.
///
/// # Errors
/// What would be right.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("use NAME=VALUE".to_owned()),
    }
}

fn numbers(text: &str) -> Result<Vec<f64>, String> {
    let number = |part: &str| {
        let number = part.trim().parse::<f64>().ok().filter(|number| number.is_finite());
        number.ok_or_else(|| format!("{part:?} is not a number"))
    };
    text.split(',').map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_and_rectangles_are_read() {
        let point = Point { latitude_deg: -1.5, longitude_deg: 2.0, height_m: 3.0 };
        assert_eq!(Point::parse("-1.5, 2,3"), Ok(point));
        assert!(Point::parse("1").is_err());
        assert_eq!(Point::parse("1,x").unwrap_err(), "\"x\" is not a number");
        assert!(Rectangle::parse("1,2,3").is_err());
        assert!(Rectangle::parse("1,170,3,-170").is_ok());
    }

    #[test]
    fn read_levels_are_read() {
        let bounded = ReadLevel::BoundedStaleness(Duration::from_millis(1_500));
        assert_eq!(ReadLevel::parse("bounded:1.5"), Ok(bounded));
        assert_eq!(bounded.to_wire().max_staleness.unwrap().nanos, 500_000_000);
        assert_eq!(ReadLevel::parse("local"), Ok(ReadLevel::Local));
        for wrong in ["bounded", "bounded:0", "fresh"] {
            assert!(ReadLevel::parse(wrong).is_err());
        }
    }

    #[test]
    fn a_value_may_hold_the_sign_between() {
        assert_eq!(pair("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(pair("=b").is_err() && pair("a").is_err());
    }
}
