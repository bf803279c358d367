//! `anchorhold export`: writes all anchors of the account, page by page.

use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anchorhold_client::v1;
use anyhow::Context as _;
use clap::Args;
use serde_json::{Map, Value, json};

use crate::context::{ClientArgs, Context};
use crate::import::rows::FileFormat;
use crate::output::thousands;
use crate::query::{FilterArgs, ReadLevel};
use crate::record::{AnchorRecord, Mapping};

/// `anchorhold export`.
#[derive(Args, Debug)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The file to write [default: standard output]
    file: Option<PathBuf>,
    /// Its format [default: told by the name, or ndjson]
    #[arg(long, value_enum)]
    format: Option<FileFormat>,
    #[command(flatten)]
    filter: FilterArgs,
    /// How fresh: linearizable, bounded:SECONDS or local
    #[arg(long, default_value = "linearizable", value_parser = ReadLevel::parse)]
    consistency: ReadLevel,
}

/// Columns of an exported CSV file.
const COLUMNS: [&str; 20] = [
    "id",
    "latitude",
    "longitude",
    "height_m",
    "space",
    "x_m",
    "y_m",
    "z_m",
    "orientation",
    "horizontal_accuracy_m",
    "vertical_accuracy_m",
    "tags",
    "properties",
    "quality",
    "creator",
    "create_time",
    "update_time",
    "expire_time",
    "etag",
    "revision",
];

/// Runs `anchorhold export`.
///
/// # Errors
/// If the file cannot be written, or as the cluster says.
pub(crate) async fn run(args: ExportArgs) -> anyhow::Result<()> {
    let context = Context::resolve(&args.client)?;
    let format = match (&args.format, &args.file) {
        (Some(format), _) => *format,
        (None, Some(file)) => FileFormat::of(file)?,
        (None, None) => FileFormat::Ndjson,
    };
    let mut pages = context.client().await?.list_all(v1::ListAnchorsRequest {
        filter: Some(args.filter.to_wire()),
        read: Some(args.consistency.to_wire()),
        page_size: 1_000,
        ..v1::ListAnchorsRequest::default()
    });
    let out: Box<dyn Write + Send> = match &args.file {
        Some(path) => Box::new(
            std::fs::File::create(path)
                .with_context(|| format!("cannot create {}", path.display()))?,
        ),
        None => Box::new(std::io::stdout()),
    };
    let mut file = AnchorFile::begin(format, BufWriter::new(out))?;
    while !pages.is_at_end() {
        for anchor in pages.next_page().await? {
            file.add(AnchorRecord::from(anchor))?;
        }
    }
    let count = file.end()?;
    eprintln!("{} anchors exported", thousands(count));
    Ok(())
}

/// A file that anchors are written to.
struct AnchorFile<W: Write> {
    format: FileFormat,
    out: W,
    count: u64,
}

impl<W: Write> AnchorFile<W> {
    fn begin(format: FileFormat, mut out: W) -> anyhow::Result<Self> {
        match format {
            FileFormat::Csv => out.write_all(&csv_line(COLUMNS)?)?,
            FileFormat::Geojson => {
                out.write_all(b"{\"type\": \"FeatureCollection\", \"features\": [")?
            }
            FileFormat::Ndjson => {}
        }
        Ok(Self { format, out, count: 0 })
    }

    fn add(&mut self, record: AnchorRecord) -> anyhow::Result<()> {
        match self.format {
            FileFormat::Csv => self.out.write_all(&csv_line(csv_cells(&record)?)?)?,
            FileFormat::Ndjson => {
                serde_json::to_writer(&mut self.out, &record)?;
                self.out.write_all(b"\n")?;
            }
            FileFormat::Geojson => {
                self.out.write_all(if self.count == 0 { b"\n" } else { b",\n" })?;
                serde_json::to_writer(&mut self.out, &feature(&record)?)?;
            }
        }
        self.count += 1;
        Ok(())
    }

    /// Ends the file; returns how many anchors it holds.
    fn end(mut self) -> anyhow::Result<u64> {
        if self.format == FileFormat::Geojson {
            self.out.write_all(b"\n]}\n")?;
        }
        self.out.flush()?;
        Ok(self.count)
    }
}

fn csv_line<T: AsRef<[u8]>>(cells: impl IntoIterator<Item = T>) -> anyhow::Result<Vec<u8>> {
    let mut line = csv::Writer::from_writer(Vec::new());
    line.write_record(cells)?;
    line.into_inner().context("a CSV line cannot be written")
}

fn csv_cells(record: &AnchorRecord) -> anyhow::Result<Vec<String>> {
    let value = serde_json::to_value(record)?;
    let cell = |column: &str| match (column, &value[column]) {
        (_, Value::Null) => String::new(),
        (_, Value::String(text)) => text.clone(),
        // Text with `;` between, unless a tag itself has one.
        ("tags", _) if !record.tags.iter().any(|tag| tag.contains(';')) => record.tags.join(";"),
        (_, other) => other.to_string(),
    };
    Ok(COLUMNS.map(cell).to_vec())
}

/// A GeoJSON feature. Properties of the anchor stand at the top, where map software looks; those
/// whose names mean something else, or whose value would count as absent, stand in `properties`.
fn feature(record: &AnchorRecord) -> anyhow::Result<Value> {
    let Value::Object(mut properties) = serde_json::to_value(record)? else {
        return Ok(Value::Null);
    };
    let geometry = match (record.longitude, record.latitude, record.height_m) {
        (Some(longitude), Some(latitude), height_m) => {
            json!({"type": "Point", "coordinates": [longitude, latitude, height_m.unwrap_or(0.0)]})
        }
        _ => Value::Null,
    };
    for name in ["id", "latitude", "longitude", "height_m", "properties"] {
        properties.remove(name);
    }
    let mut reserved = Map::new();
    for (name, value) in &record.properties {
        let is_reserved = value.is_empty() || Mapping::default().field(name).is_some();
        let target = if is_reserved { &mut reserved } else { &mut properties };
        target.insert(name.clone(), Value::String(value.clone()));
    }
    if !reserved.is_empty() {
        properties.insert("properties".to_owned(), Value::Object(reserved));
    }
    Ok(json!({
        "type": "Feature", "id": record.id, "geometry": geometry, "properties": properties,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::rows;

    fn anchors() -> Vec<v1::Anchor> {
        let read = |fields: Value| {
            let object = fields.as_object().unwrap();
            let fields = object.iter().map(|(name, value)| (name.as_str(), value.clone()));
            Mapping::default().anchor(fields).unwrap()
        };
        vec![
            read(json!({
                "lat": -47.123456789012, "lon": 179.5, "height_m": -3.25,
                "orientation": [0.0, 0.6, 0.0, 0.8], "vertical_accuracy_m": 0.5, "quality": 0.25,
                "tags": ["a", "b;c"], "creator": "x, \"y\"", "expire_time": "2030-01-01T00:00:00Z",
                "properties": {"tags": "not tags", "name": "two\nlines", "empty?": ""},
            })),
            read(json!({"space": 3, "x_m": 1.5, "y_m": 2.0, "z_m": -1.0, "tags": "a;b"})),
        ]
    }

    #[test]
    fn every_format_is_read_back_as_it_was_written() {
        for format in [FileFormat::Csv, FileFormat::Geojson, FileFormat::Ndjson] {
            let mut bytes = Vec::new();
            let mut file = AnchorFile::begin(format, &mut bytes).unwrap();
            for anchor in anchors() {
                file.add(AnchorRecord::from(anchor)).unwrap();
            }
            assert_eq!(file.end().unwrap(), 2);
            let mapping = Mapping::default();
            let read = rows::read(format, bytes.as_slice(), &mapping).unwrap();
            let read: Vec<_> = read.map(|row| row.unwrap().anchor.unwrap()).collect();
            assert_eq!(read, anchors(), "{}", String::from_utf8_lossy(&bytes));
        }
    }
}
