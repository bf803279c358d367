//! `anchorhold anchor put|get|list|rm`.

use anchorhold_client::v1;
use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::context::{ClientArgs, Context};
use crate::exit::{Exit, Failure};
use crate::output;
use crate::query::{FilterArgs, Point, ReadLevel, Rectangle, pair};
use crate::record::{AnchorRecord, Mapping};

/// `anchorhold anchor`.
#[derive(Args, Debug)]
pub(crate) struct AnchorArgs {
    #[command(flatten)]
    client: ClientArgs,
    #[command(subcommand)]
    command: AnchorCommand,
}

#[derive(Subcommand, Debug)]
enum AnchorCommand {
    /// Create an anchor, or change one with --id
    Put(Box<PutArgs>),
    /// Show anchors by id
    Get {
        /// Their ids
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
        /// How fresh: linearizable, bounded:SECONDS or local
        #[arg(long, default_value = "linearizable", value_parser = ReadLevel::parse)]
        consistency: ReadLevel,
    },
    /// List anchors in the order of their ids, which keeps neighbours together
    List(ListArgs),
    /// Remove anchors by id
    Rm {
        /// Their ids
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
        /// Only if the anchor is still in this state
        #[arg(long)]
        etag: Option<String>,
    },
}

#[derive(Args, Debug)]
struct PutArgs {
    /// Change this anchor instead of creating one; only what is given changes
    #[arg(long)]
    id: Option<String>,
    /// With --id: only if the anchor is still in this state
    #[arg(long, requires = "id")]
    etag: Option<String>,
    /// Latitude in degrees
    #[arg(long, allow_negative_numbers = true, requires = "lon", conflicts_with = "space")]
    lat: Option<f64>,
    /// Longitude in degrees
    #[arg(long, allow_negative_numbers = true, requires = "lat")]
    lon: Option<f64>,
    /// Height above the WGS84 ellipsoid in meters
    #[arg(long, allow_negative_numbers = true, requires = "lat")]
    height: Option<f64>,
    /// Number of a local space, instead of a position on Earth
    #[arg(long, requires = "x")]
    space: Option<u32>,
    /// x in the space, in meters
    #[arg(long, allow_negative_numbers = true, requires_all = ["space", "y", "z"])]
    x: Option<f64>,
    /// y in the space, in meters
    #[arg(long, allow_negative_numbers = true, requires = "x")]
    y: Option<f64>,
    /// z in the space, in meters
    #[arg(long, allow_negative_numbers = true, requires = "x")]
    z: Option<f64>,
    /// Unit quaternion from the anchor's frame to east-north-up, such as `[0,0,0,1]`
    #[arg(long, value_name = "[X,Y,Z,W]")]
    orientation: Option<String>,
    /// Horizontal accuracy at 95 % in meters
    #[arg(long, value_name = "METERS")]
    horizontal_accuracy: Option<f64>,
    /// Vertical accuracy at 95 % in meters
    #[arg(long, value_name = "METERS")]
    vertical_accuracy: Option<f64>,
    /// A label; may be given several times
    #[arg(long)]
    tag: Vec<String>,
    /// A fact; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    property: Vec<(String, String)>,
    /// When the anchor stops being visible, such as 2027-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    expire_time: Option<String>,
    /// Who created it
    #[arg(long)]
    creator: Option<String>,
    /// How good a reference it is, from 0 to 1
    #[arg(long)]
    quality: Option<f64>,
    /// A UUID that names this write: sent again, it has one effect
    #[arg(long, value_name = "UUID")]
    request_id: Option<String>,
}

#[derive(Args, Debug)]
struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Only anchors of this local space
    #[arg(long)]
    space: Option<u32>,
    /// Only anchors in this rectangle
    #[arg(
        long,
        value_name = "SOUTH,WEST,NORTH,EAST",
        value_parser = Rectangle::parse,
        allow_hyphen_values = true,
        conflicts_with = "near"
    )]
    within: Option<Rectangle>,
    /// Only anchors near this point, with --radius-m
    #[arg(
        long,
        value_name = "LAT,LON[,HEIGHT]",
        value_parser = Point::parse,
        allow_hyphen_values = true,
        requires = "radius_m"
    )]
    near: Option<Point>,
    /// With --near: how near, in meters
    #[arg(long, requires = "near", value_name = "METERS")]
    radius_m: Option<f64>,
    /// Anchors to list, at most
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// How fresh: linearizable, bounded:SECONDS or local
    #[arg(long, default_value = "linearizable", value_parser = ReadLevel::parse)]
    consistency: ReadLevel,
}

/// Runs `anchorhold anchor`.
///
/// # Errors
/// As the cluster says.
pub(crate) async fn run(args: AnchorArgs) -> anyhow::Result<()> {
    let context = Context::resolve(&args.client)?;
    match args.command {
        AnchorCommand::Put(put_args) => put(&context, *put_args).await,
        AnchorCommand::Get { ids, consistency } => get(&context, ids, consistency).await,
        AnchorCommand::List(list_args) => list(&context, list_args).await,
        AnchorCommand::Rm { ids, etag } => remove(&context, ids, etag).await,
    }
}

async fn put(context: &Context, args: PutArgs) -> anyhow::Result<()> {
    let anchor = args.anchor()?;
    let request_id = args.request_id.clone().unwrap_or_default();
    let client = context.client().await?;
    let anchor = match args.id {
        None => {
            let request = v1::CreateAnchorRequest { anchor: Some(anchor), request_id };
            client.create_anchor(request).await?.anchor
        }
        Some(id) => {
            let etag = args.etag.unwrap_or_default();
            let anchor = Some(v1::Anchor { id, etag, ..anchor });
            // No mask: everything that is set changes.
            let request = v1::UpdateAnchorRequest {
                anchor,
                request_id,
                ..v1::UpdateAnchorRequest::default()
            };
            client.update_anchor(request).await?.anchor
        }
    };
    show(context, &[AnchorRecord::from(anchor.unwrap_or_default())], true)
}

impl PutArgs {
    /// The anchor that the flags describe; without a pose if they give none and `--id` is set.
    fn anchor(&self) -> anyhow::Result<v1::Anchor> {
        let number = |number: Option<f64>| number.map_or(Value::Null, Value::from);
        let text = |text: &Option<String>| text.clone().map_or(Value::Null, Value::from);
        let is_placed = self.lat.is_some() || self.space.is_some();
        // An update may leave the place as it is. A row may not, so it gets one for the moment.
        let origin = (self.id.is_some() && !is_placed).then_some(0.0);
        let fields = [
            ("latitude", number(self.lat.or(origin))),
            ("longitude", number(self.lon.or(origin))),
            ("height_m", number(self.height)),
            ("space", self.space.map_or(Value::Null, Value::from)),
            ("x_m", number(self.x)),
            ("y_m", number(self.y)),
            ("z_m", number(self.z)),
            ("orientation", text(&self.orientation)),
            ("horizontal_accuracy_m", number(self.horizontal_accuracy)),
            ("vertical_accuracy_m", number(self.vertical_accuracy)),
            ("expire_time", text(&self.expire_time)),
            ("creator", text(&self.creator)),
            ("quality", number(self.quality)),
        ];
        let mapping = Mapping {
            properties: self.property.iter().cloned().collect(),
            tags: self.tag.clone(),
            ..Mapping::default()
        };
        let wrong = |problem| Failure::new(Exit::Usage, problem, "see `anchorhold anchor put -h`");
        let mut anchor = mapping.anchor(fields.into_iter()).map_err(wrong)?;
        if origin.is_some() {
            anchor.pose = None;
        }
        Ok(anchor)
    }
}

async fn get(context: &Context, ids: Vec<String>, level: ReadLevel) -> anyhow::Result<()> {
    let client = context.client().await?;
    if let [id] = ids.as_slice() {
        let request = v1::GetAnchorRequest { id: id.clone(), read: Some(level.to_wire()) };
        let reply = client.get_anchor(request).await;
        let anchor = reply.with_context(|| format!("cannot show {id}"))?.anchor.unwrap_or_default();
        return show(context, &[AnchorRecord::from(anchor)], true);
    }
    let request = v1::BatchGetAnchorsRequest { ids, read: Some(level.to_wire()) };
    let (mut found, mut missing) = (Vec::new(), None);
    for result in client.batch_get_anchors(request).await?.results {
        match result.result {
            Some(v1::batch_get_anchors_result::Result::Anchor(anchor)) => found.push(anchor.into()),
            Some(v1::batch_get_anchors_result::Result::Error(error)) => {
                eprintln!("{}: {}", result.id, error.message);
                missing = missing.or(Some(anchorhold_client::ClientError::from(&error)));
            }
            None => {}
        }
    }
    show(context, &found, false)?;
    missing.map_or(Ok(()), |error| Err(error.into()))
}

async fn list(context: &Context, args: ListArgs) -> anyhow::Result<()> {
    let sphere = args.near.zip(args.radius_m).map(|(center, radius_m)| v1::Region {
        shape: Some(v1::region::Shape::Sphere(v1::Sphere {
            center: Some(v1::sphere::Center::Geo(center.to_wire())),
            radius_m,
        })),
    });
    let space = args.space.map(|space| v1::Space { kind: Some(v1::space::Kind::Local(space)) });
    let mut request = v1::ListAnchorsRequest {
        space,
        region: sphere.or(args.within.map(Rectangle::to_wire)),
        filter: Some(args.filter.to_wire()),
        read: Some(args.consistency.to_wire()),
        ..v1::ListAnchorsRequest::default()
    };
    let client = context.client().await?;
    let mut records: Vec<AnchorRecord> = Vec::new();
    loop {
        let left = args.limit - records.len();
        request.page_size = u32::try_from(left.clamp(1, 1_000)).unwrap_or(1_000);
        let page = client.list_anchors(request.clone()).await?;
        records.extend(page.anchors.into_iter().take(left).map(AnchorRecord::from));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() || args.limit <= records.len() {
            break;
        }
    }
    show(context, &records, false)?;
    if !request.page_token.is_empty() {
        eprintln!("there are more; raise --limit, or use `anchorhold export`");
    }
    Ok(())
}

async fn remove(context: &Context, ids: Vec<String>, etag: Option<String>) -> anyhow::Result<()> {
    if etag.is_some() && 1 < ids.len() {
        return Err(
            Failure::new(Exit::Usage, "an etag belongs to one anchor", "give one id").into()
        );
    }
    let client = context.client().await?;
    for id in ids {
        let etag = etag.clone().unwrap_or_default();
        let request = v1::DeleteAnchorRequest { id: id.clone(), etag, request_id: String::new() };
        client.delete_anchor(request).await.with_context(|| format!("cannot remove {id}"))?;
        eprintln!("removed {id}");
    }
    Ok(())
}

/// Prints anchors: one as an object and as lines, several as a list and as a table.
fn show(context: &Context, records: &[AnchorRecord], is_single: bool) -> anyhow::Result<()> {
    match records {
        [record] if is_single => output::print(context.output, record, || lines(record)),
        records => output::print(context.output, &records, || {
            let row = |record: &AnchorRecord| {
                [record.id.clone(), record.position(), record.tags.join(";"), record.title()]
            };
            output::table(["ID", "POSITION", "TAGS", "PROPERTIES"], records.iter().map(row))
        }),
    }
}

/// One anchor for people.
fn lines(record: &AnchorRecord) -> String {
    let mut facts = vec![("id", record.id.clone()), ("position", record.position())];
    let orientation = record.orientation.map(|q| format!("{q:?}"));
    facts.extend(orientation.map(|text| ("orientation", text)));
    if !record.tags.is_empty() {
        facts.push(("tags", record.tags.join(", ")));
    }
    let accuracy =
        |name, value: Option<f64>| value.map(|value| (name, format!("{value} m (95 %)")));
    facts.extend(accuracy("horizontal", record.horizontal_accuracy_m));
    facts.extend(accuracy("vertical", record.vertical_accuracy_m));
    facts.extend(record.create_time.clone().map(|time| ("created", time)));
    facts.extend(record.update_time.clone().map(|time| ("updated", time)));
    facts.extend(record.expire_time.clone().map(|time| ("expires", time)));
    facts.push(("etag", record.etag.clone()));
    for (name, value) in &record.properties {
        facts.push((name.as_str(), value.clone()));
    }
    output::facts(&facts)
}
