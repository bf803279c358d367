//! `anchorhold locate`: finds anchors by place.

use anchorhold_client::v1;
use clap::Args;
use serde::Serialize;

use crate::context::{ClientArgs, Context};
use crate::output;
use crate::query::{FilterArgs, Point, ReadLevel, Rectangle};
use crate::record::AnchorRecord;

/// `anchorhold locate`.
#[derive(Args, Debug)]
pub(crate) struct LocateArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The nearest anchors to this point, by distance in true 3-D meters
    #[arg(
        long,
        value_name = "LAT,LON[,HEIGHT]",
        value_parser = Point::parse,
        allow_hyphen_values = true,
        required_unless_present = "within"
    )]
    near: Option<Point>,
    /// All anchors in this rectangle
    #[arg(
        long,
        value_name = "SOUTH,WEST,NORTH,EAST",
        value_parser = Rectangle::parse,
        allow_hyphen_values = true,
        conflicts_with = "near"
    )]
    within: Option<Rectangle>,
    /// How many
    #[arg(short, long = "count", value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    k: u32,
    /// With --near: only anchors within this distance in meters
    #[arg(long, value_name = "METERS", requires = "near")]
    radius_m: Option<f64>,
    #[command(flatten)]
    filter: FilterArgs,
    /// How fresh: linearizable, bounded:SECONDS or local
    #[arg(long, default_value = "linearizable", value_parser = ReadLevel::parse)]
    consistency: ReadLevel,
    /// Fail if a shard does not answer, instead of saying that something may be missing
    #[arg(long)]
    require_complete: bool,
}

/// What was found.
#[derive(Serialize)]
pub(crate) struct Found {
    /// Nearest first.
    pub(crate) anchors: Vec<FoundAnchor>,
    /// Whether all shards that could hold an answer were seen.
    pub(crate) complete: bool,
    /// Shards that answered, and shards that had to be asked.
    pub(crate) shards: [u32; 2],
    /// Whether a region held more.
    pub(crate) truncated: bool,
}

/// An anchor and how far away it is.
#[derive(Serialize)]
pub(crate) struct FoundAnchor {
    /// In meters; unset for a rectangle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) distance_m: Option<f64>,
    #[serde(flatten)]
    pub(crate) anchor: AnchorRecord,
}

/// Runs `anchorhold locate`.
///
/// # Errors
/// As the cluster says.
pub(crate) async fn run(args: LocateArgs) -> anyhow::Result<()> {
    let context = Context::resolve(&args.client)?;
    let request = args.request();
    let found = Found::from(context.client().await?.locate(request).await?);
    output::print(context.output, &found, || found.table())?;
    if !found.complete {
        let [answered, asked] = found.shards;
        eprintln!(
            "INCOMPLETE: {answered} of {asked} shards answered; others may hold nearer anchors"
        );
    }
    if found.truncated {
        eprintln!("there are more; raise -k");
    }
    Ok(())
}

impl LocateArgs {
    fn request(&self) -> v1::LocateRequest {
        let near = self.near.map(|point| {
            v1::locate_request::Criterion::NearPoint(v1::NearPoint {
                point: Some(v1::near_point::Point::Geo(point.to_wire())),
                k: self.k,
                radius_m: self.radius_m,
            })
        });
        let within = self.within.map(Rectangle::to_wire).map(v1::locate_request::Criterion::Region);
        v1::LocateRequest {
            criterion: near.or(within),
            filter: Some(self.filter.to_wire()),
            limit: self.k,
            read: Some(self.consistency.to_wire()),
            require_complete: self.require_complete,
        }
    }
}

impl From<v1::LocateResponse> for Found {
    fn from(response: v1::LocateResponse) -> Self {
        let completeness = response.completeness.unwrap_or_default();
        let anchors = response.anchors.into_iter().map(|located| FoundAnchor {
            distance_m: located.distance_m,
            anchor: AnchorRecord::from(located.anchor.unwrap_or_default()),
        });
        Self {
            anchors: anchors.collect(),
            complete: completeness.complete,
            shards: [completeness.shards_answered, completeness.shards_asked],
            truncated: response.truncated,
        }
    }
}

impl Found {
    /// For people.
    pub(crate) fn table(&self) -> String {
        let rows = self.anchors.iter().map(|found| {
            let distance = found.distance_m.map_or(String::new(), distance);
            let anchor = &found.anchor;
            [distance, anchor.title(), anchor.position(), anchor.tags.join(";"), anchor.id.clone()]
        });
        output::table(["DISTANCE", "ANCHOR", "POSITION", "TAGS", "ID"], rows)
    }
}

/// A distance with a fitting unit.
fn distance(meters: f64) -> String {
    if meters < 1_000.0 { format!("{meters:.2} m") } else { format!("{:.3} km", meters / 1e3) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_have_a_fitting_unit() {
        assert_eq!(distance(0.126), "0.13 m");
        assert_eq!(distance(12_345.6), "12.346 km");
    }
}
