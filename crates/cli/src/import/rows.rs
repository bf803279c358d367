//! Rows of CSV, GeoJSON and NDJSON, each with its line and either an anchor or what is wrong.
//!
//! A bad row never ends the reading; a file that is not what it should be does. Lines are counted
//! from 1, so that an editor finds them.
//!
//! Not here: what the fields mean (`record`), sending anchors (`import`).

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anchorhold_proto::v1;
use anyhow::{Context as _, bail};
use clap::ValueEnum;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::record::{Field, Mapping};

/// A file format for anchors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FileFormat {
    /// Comma-separated values with a header line.
    Csv,
    /// A GeoJSON FeatureCollection of points.
    Geojson,
    /// One JSON object, or one GeoJSON feature, on each line.
    Ndjson,
}

/// One row of a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    /// Where it begins, from 1.
    pub(crate) line: u64,
    /// What it says, or what is wrong with it.
    pub(crate) anchor: Result<v1::Anchor, String>,
}

/// The rows of a file, in its order. An error means that the rest cannot be read.
pub(crate) type Rows<'a> = Box<dyn Iterator<Item = anyhow::Result<Row>> + Send + 'a>;

/// Longest line of NDJSON, in bytes: far more than the largest anchor takes.
const LINE_BYTES_MAX: u64 = 1 << 20;

impl FileFormat {
    /// The format that a file's name tells.
    ///
    /// # Errors
    /// If the name ends in nothing that is known.
    pub(crate) fn of(path: &Path) -> anyhow::Result<Self> {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or("");
        Ok(match extension.to_ascii_lowercase().as_str() {
            "csv" => Self::Csv,
            "geojson" | "json" => Self::Geojson,
            "ndjson" | "jsonl" | "geojsonl" => Self::Ndjson,
            _ => bail!(
                "{}: the name does not tell the format; add --format csv, geojson or ndjson",
                path.display()
            ),
        })
    }
}

/// Reads rows.
///
/// # Errors
/// If the file as a whole is not of the format.
pub(crate) fn read<'a>(
    format: FileFormat,
    input: impl Read + Send + 'a,
    mapping: &'a Mapping,
) -> anyhow::Result<Rows<'a>> {
    match format {
        FileFormat::Csv => read_csv(input, mapping),
        FileFormat::Ndjson => Ok(read_ndjson(input, mapping)),
        FileFormat::Geojson => read_geojson(input, mapping),
    }
}

fn read_csv<'a>(input: impl Read + Send + 'a, mapping: &'a Mapping) -> anyhow::Result<Rows<'a>> {
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(input);
    let header = reader.headers().context("line 1: the header cannot be read")?;
    let names: Vec<String> =
        header.iter().map(|name| name.trim_matches(['\u{feff}', ' ']).to_owned()).collect();
    check_header(&names, mapping)?;
    let rows = reader.into_byte_records().map(move |record| {
        let record = record.context("the file cannot be read")?;
        let line = record.position().map_or(0, csv::Position::line);
        Ok(Row { line, anchor: csv_anchor(&names, &record, mapping) })
    });
    Ok(Box::new(rows))
}

fn check_header(names: &[String], mapping: &Mapping) -> anyhow::Result<()> {
    let count = |wanted| names.iter().filter(|name| mapping.field(name) == Some(wanted)).count();
    if count(Field::Latitude) == 0 && count(Field::X) == 0 {
        bail!(
            "line 1: no column is a position; the columns are {}. Name one `latitude` and one \
             `longitude`, or say which they are: --column latitude=NAME --column longitude=NAME",
            names.join(", ")
        );
    }
    for (index, name) in names.iter().enumerate() {
        if name.is_empty() {
            bail!("line 1: column {} has no name", index + 1);
        }
        if names[..index].contains(name) {
            bail!("line 1: two columns are named {name:?}");
        }
    }
    Ok(())
}

fn csv_anchor(
    names: &[String],
    record: &csv::ByteRecord,
    mapping: &Mapping,
) -> Result<v1::Anchor, String> {
    if record.len() != names.len() {
        return Err(format!("{} columns, the header has {}", record.len(), names.len()));
    }
    let mut fields = Vec::with_capacity(names.len());
    for (name, value) in names.iter().zip(record) {
        let text = str::from_utf8(value).map_err(|_| format!("{name} is not UTF-8 text"))?;
        fields.push((name.as_str(), Value::String(text.trim().to_owned())));
    }
    mapping.anchor(fields.into_iter())
}

fn read_ndjson<'a>(input: impl Read + Send + 'a, mapping: &'a Mapping) -> Rows<'a> {
    let mut reader = BufReader::with_capacity(1 << 16, input);
    let mut line = 0;
    Box::new(std::iter::from_fn(move || {
        loop {
            let mut bytes = Vec::new();
            line += 1;
            match reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes) {
                Ok(0) => return None,
                Ok(_) if bytes.trim_ascii().is_empty() => {}
                Ok(read) if read as u64 == LINE_BYTES_MAX && !bytes.ends_with(b"\n") => {
                    let problem = anyhow::anyhow!("line {line} is longer than 1 MiB");
                    return Some(Err(problem));
                }
                Ok(_) => {
                    let anchor = ndjson_anchor(&bytes, mapping);
                    return Some(Ok(Row { line, anchor }));
                }
                Err(error) => {
                    return Some(Err(error).with_context(|| format!("cannot read line {line}")));
                }
            }
        }
    }))
}

fn ndjson_anchor(bytes: &[u8], mapping: &Mapping) -> Result<v1::Anchor, String> {
    let value: Value =
        serde_json::from_slice(bytes).map_err(|error| format!("not JSON: {error}"))?;
    let Value::Object(object) = value else {
        return Err("not a JSON object".to_owned());
    };
    if object.get("type").and_then(Value::as_str) == Some("Feature") {
        return feature_anchor(object, mapping);
    }
    mapping.anchor(object.iter().map(|(name, value)| (name.as_str(), value.clone())))
}

#[derive(Deserialize)]
struct FeatureCollection<'a> {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(borrow, default)]
    features: Option<Vec<&'a RawValue>>,
}

/// The whole file is held in memory: JSON has no lines, and bad features are reported by theirs.
fn read_geojson<'a>(
    mut input: impl Read + Send + 'a,
    mapping: &'a Mapping,
) -> anyhow::Result<Rows<'a>> {
    let mut text = String::new();
    input.read_to_string(&mut text).context("the file cannot be read as UTF-8 text")?;
    let body = text.trim_start_matches('\u{feff}');
    let collection: FeatureCollection<'_> =
        serde_json::from_str(body).context("the file is not JSON")?;
    let Some(features) = collection.features.filter(|_| collection.kind == "FeatureCollection")
    else {
        bail!(
            "the file is no GeoJSON FeatureCollection; for one feature on each line use --format \
             ndjson"
        );
    };
    let mut places = Vec::with_capacity(features.len());
    let (mut line, mut counted) = (1, 0);
    for feature in features {
        let start = feature.get().as_ptr().addr() - text.as_ptr().addr();
        let between = text.as_bytes().get(counted..start).unwrap_or_default();
        line += between.iter().filter(|byte| **byte == b'\n').count() as u64;
        counted = start;
        places.push((line, start..start + feature.get().len()));
    }
    let rows = places.into_iter().map(move |(line, place)| {
        let anchor = match serde_json::from_str(text.get(place).unwrap_or_default()) {
            Ok(Value::Object(object)) => feature_anchor(object, mapping),
            Ok(_) | Err(_) => Err("not a GeoJSON feature".to_owned()),
        };
        Ok(Row { line, anchor })
    });
    Ok(Box::new(rows))
}

fn feature_anchor(
    mut feature: serde_json::Map<String, Value>,
    mapping: &Mapping,
) -> Result<v1::Anchor, String> {
    if feature.get("type").and_then(Value::as_str) != Some("Feature") {
        return Err("not a GeoJSON feature".to_owned());
    }
    let position = match feature.remove("geometry") {
        // A feature without a place in the world: it may lie in a local space.
        None | Some(Value::Null) => Vec::new(),
        Some(geometry) => point(&geometry)?,
    };
    let properties = match feature.remove("properties") {
        None | Some(Value::Null) => serde_json::Map::new(),
        Some(Value::Object(properties)) => properties,
        Some(_) => return Err("properties is not a JSON object".to_owned()),
    };
    let names = ["longitude", "latitude", "height_m"];
    let position = names.into_iter().zip(position).map(|(name, number)| (name, number.into()));
    let properties = properties.iter().map(|(name, value)| (name.as_str(), value.clone()));
    mapping.anchor(position.chain(properties))
}

/// Longitude, latitude and, if given, height of a GeoJSON Point.
fn point(geometry: &Value) -> Result<Vec<f64>, String> {
    let kind = geometry.get("type").and_then(Value::as_str).unwrap_or("nothing");
    if kind != "Point" {
        return Err(format!("the geometry is a {kind}; an anchor is a Point"));
    }
    let numbers = geometry
        .get("coordinates")
        .and_then(Value::as_array)
        .and_then(|numbers| numbers.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>());
    match numbers {
        Some(numbers) if matches!(numbers.len(), 2 | 3) => Ok(numbers),
        Some(_) | None => {
            Err("the coordinates are not [longitude, latitude] or [longitude, latitude, height]"
                .to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each row as `line: latitude longitude height`, or as `line! problem`.
    #[track_caller]
    fn check(format: FileFormat, text: &[u8], expected: &[&str]) {
        let mapping = Mapping::default();
        let rows = read(format, text, &mapping).unwrap().map(|row| {
            let row = row.unwrap();
            match row.anchor {
                Ok(anchor) => {
                    let record = crate::record::AnchorRecord::from(anchor);
                    format!("{}: {} {}", row.line, record.position(), record.title())
                }
                Err(problem) => format!("{}! {problem}", row.line),
            }
        });
        assert_eq!(rows.collect::<Vec<_>>(), expected);
    }

    #[track_caller]
    fn refused(format: FileFormat, text: &str, words: &str) {
        let mapping = Mapping::default();
        let error = read(format, text.as_bytes(), &mapping).err().expect("must be refused");
        assert!(format!("{error:#}").contains(words), "{error:#}");
    }

    #[test]
    fn csv_rows_are_reported_by_the_line_they_begin_at() {
        check(
            FileFormat::Csv,
            b"\xef\xbb\xbfname,lat,lon\n\"two\nlines\",1,2\nshort,1\nlong,1,2,3\nbad,x,2\n\xff,1,2\nend,3,4\n",
            &[
                "2: 1.000000, 2.000000, 0.0 m two\nlines",
                "4! 2 columns, the header has 3",
                "5! 4 columns, the header has 3",
                "6! lat \"x\" is not a number",
                "7! name is not UTF-8 text",
                "8: 3.000000, 4.000000, 0.0 m end",
            ],
        );
    }

    #[test]
    fn a_csv_header_must_name_a_position_and_each_column_once() {
        refused(FileFormat::Csv, "a,b\n1,2\n", "--column latitude=NAME");
        refused(FileFormat::Csv, "", "no column is a position");
        refused(FileFormat::Csv, "lat,lon,a,a\n", "two columns are named \"a\"");
        refused(FileFormat::Csv, "lat,lon,,\n", "column 3 has no name");
    }

    #[test]
    fn a_column_may_be_named_by_the_user() {
        let mapping = Mapping {
            renames: [("Y", "latitude"), ("X", "longitude")]
                .map(|(from, to)| (from.to_owned(), to.to_owned()))
                .into(),
            ..Mapping::default()
        };
        let rows = read(FileFormat::Csv, &b"X,Y\n5,6\n"[..], &mapping).unwrap();
        let rows: Vec<Row> = rows.collect::<Result<_, _>>().unwrap();
        let record = crate::record::AnchorRecord::from(rows[0].anchor.clone().unwrap());
        assert_eq!((record.latitude, record.longitude), (Some(6.0), Some(5.0)));
    }

    #[test]
    fn ndjson_rows_may_be_objects_or_features() {
        check(
            FileFormat::Ndjson,
            br#"{"lat": 1, "lon": 2, "name": "a"}

{"type": "Feature", "geometry": {"type": "Point", "coordinates": [4, 3, 5]}, "properties": {"name": "b"}}
{"lat": 1,
[1, 2]
{"lat": 1}"#,
            &[
                "1: 1.000000, 2.000000, 0.0 m a",
                "3: 3.000000, 4.000000, 5.0 m b",
                "4! not JSON: EOF while parsing a value at line 2 column 0",
                "5! not a JSON object",
                "6! longitude is missing",
            ],
        );
    }

    #[test]
    fn geojson_features_are_reported_by_the_line_they_begin_at() {
        check(
            FileFormat::Geojson,
            br#"{"type": "FeatureCollection",
 "features": [
  {"type": "Feature", "geometry": {"type": "Point", "coordinates": [2, 1]},
   "properties": {"name": "a"}},
  {"type": "Feature", "geometry": {"type": "LineString", "coordinates": [[2, 1]]}},
  {"type": "Feature", "geometry": {"type": "Point", "coordinates": [2]}}, 17,
  {"type": "Feature", "geometry": {"type": "Point", "coordinates": [2, 91]}},
  {"type": "Feature", "properties": {"space": 1, "x_m": 1, "y_m": 2, "z_m": 3}},
  {"type": "Feature", "properties": 5},
  {"type": "Feature", "geometry": {"type": "Point", "coordinates": [2, 1]}, "properties": {"lat": 1}}
 ]}"#,
            &[
                "3: 1.000000, 2.000000, 0.0 m a",
                "5! the geometry is a LineString; an anchor is a Point",
                "6! the coordinates are not [longitude, latitude] or [longitude, latitude, height]",
                "6! not a GeoJSON feature",
                "7! latitude 91 is outside [-90, 90]",
                "8: space 1: 1.000, 2.000, 3.000 m ",
                "9! properties is not a JSON object",
                "10! \"lat\" gives a field that was given before",
            ],
        );
    }

    #[test]
    fn what_is_no_feature_collection_is_refused_as_a_whole() {
        refused(FileFormat::Geojson, "{\"type\": \"Feature\"}", "no GeoJSON FeatureCollection");
        refused(FileFormat::Geojson, "{\"type\":", "not JSON");
    }

    #[test]
    fn the_format_is_told_by_the_name() {
        assert_eq!(FileFormat::of(Path::new("a.CSV")).unwrap(), FileFormat::Csv);
        assert_eq!(FileFormat::of(Path::new("a.geojson")).unwrap(), FileFormat::Geojson);
        assert_eq!(FileFormat::of(Path::new("a.jsonl")).unwrap(), FileFormat::Ndjson);
        assert!(FileFormat::of(Path::new("a.xlsx")).is_err());
    }
}
