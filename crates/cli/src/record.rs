//! One anchor as files hold it: named fields in, an anchor out, and back.
//!
//! The names are the same in CSV columns, GeoJSON properties and NDJSON members. Everything that
//! has no known name is a property of the anchor. [`AnchorRecord`] is what commands print and what
//! `export` writes; reading it back gives the same anchor, apart from what the cluster sets.

use std::collections::BTreeMap;

use anchorhold_proto::{limits, v1};
use serde::Serialize;
use serde_json::Value;

/// What a named field means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Field {
    Latitude,
    Longitude,
    Height,
    Space,
    X,
    Y,
    Z,
    Orientation,
    HorizontalAccuracy,
    VerticalAccuracy,
    Tags,
    Properties,
    ExpireTime,
    Creator,
    Quality,
    /// Set by the cluster; read past.
    OutputOnly,
}

/// The names of a field, lower-case; the first one is what is written.
const NAMES: &[(Field, &[&str])] = &[
    (Field::Latitude, &["latitude", "lat"]),
    (Field::Longitude, &["longitude", "lon", "lng"]),
    (Field::Height, &["height_m", "height"]),
    (Field::Space, &["space"]),
    (Field::X, &["x_m"]),
    (Field::Y, &["y_m"]),
    (Field::Z, &["z_m"]),
    (Field::Orientation, &["orientation"]),
    (Field::HorizontalAccuracy, &["horizontal_accuracy_m"]),
    (Field::VerticalAccuracy, &["vertical_accuracy_m"]),
    (Field::Tags, &["tags"]),
    (Field::Properties, &["properties"]),
    (Field::ExpireTime, &["expire_time"]),
    (Field::Creator, &["creator"]),
    (Field::Quality, &["quality"]),
    (Field::OutputOnly, &["id", "etag", "revision", "create_time", "update_time"]),
];

/// How names in a file become fields, and what every anchor gets besides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// Names in the file that stand for another name.
    pub(crate) renames: BTreeMap<String, String>,
    /// Properties of every anchor.
    pub(crate) properties: BTreeMap<String, String>,
    /// Tags of every anchor.
    pub(crate) tags: Vec<String>,
}

impl Mapping {
    /// The field that a name in the file stands for; `None` means that it is a property.
    pub(crate) fn field(&self, name: &str) -> Option<Field> {
        let name = self.renames.get(name).map_or(name, String::as_str).to_ascii_lowercase();
        let found = NAMES.iter().find(|(_, names)| names.contains(&name.as_str()));
        found.map(|(field, _)| *field)
    }

    /// The anchor that these fields are.
    ///
    /// # Errors
    /// What is wrong with which field, for people.
    pub(crate) fn anchor<'a>(
        &self,
        named: impl Iterator<Item = (&'a str, Value)>,
    ) -> Result<v1::Anchor, String> {
        let mut fields = Fields::default();
        fields.properties.clone_from(&self.properties);
        for (name, value) in named {
            if is_absent(&value) {
                continue;
            }
            match self.field(name) {
                Some(Field::OutputOnly) => {}
                Some(field) => {
                    if fields.known.insert(field, (name.to_owned(), value)).is_some() {
                        return Err(format!("{name:?} gives a field that was given before"));
                    }
                }
                None => {
                    let name = self.renames.get(name).map_or(name, String::as_str);
                    fields.properties.insert(name.to_owned(), text(value));
                }
            }
        }
        fields.into_anchor(&self.tags)
    }
}

/// The fields of one row, before they are an anchor.
#[derive(Default)]
struct Fields {
    /// By meaning, with the name in the file for messages.
    known: BTreeMap<Field, (String, Value)>,
    properties: BTreeMap<String, String>,
}

impl Fields {
    fn into_anchor(mut self, more_tags: &[String]) -> Result<v1::Anchor, String> {
        let pose = v1::Pose { frame: Some(self.frame()?) };
        let accuracy = self.accuracy()?;
        let tags = self.tags(more_tags)?;
        self.take_properties()?;
        let expire_time = match self.string(Field::ExpireTime)? {
            Some(text) => Some(text.parse().map_err(|_| {
                format!("expire_time {text:?} is not a time such as 2027-01-31T12:00:00Z")
            })?),
            None => None,
        };
        let creator = self.string(Field::Creator)?.unwrap_or_default();
        if limits::CREATOR_BYTES_MAX < creator.len() {
            return Err(format!("creator is longer than {} bytes", limits::CREATOR_BYTES_MAX));
        }
        let quality = self.number(Field::Quality, 0.0..=1.0)?;
        #[expect(clippy::cast_possible_truncation, reason = "a quality needs no more digits")]
        let quality = quality.map(|quality| quality as f32);
        Ok(v1::Anchor {
            pose: Some(pose),
            accuracy,
            properties: self.properties.into_iter().collect(),
            tags,
            expire_time,
            creator,
            quality,
            ..v1::Anchor::default()
        })
    }

    fn frame(&mut self) -> Result<v1::pose::Frame, String> {
        let orientation = self.orientation()?;
        let latitude_deg = self.number(Field::Latitude, -90.0..=90.0)?;
        let longitude_deg = self.number(Field::Longitude, -180.0..=180.0)?;
        let height_m = self.number(Field::Height, -11_000.0..=100_000.0)?;
        let space = self.number(Field::Space, 0.0..=f64::from(limits::SPACE_NUMBER_MAX))?;
        let local = [Field::X, Field::Y, Field::Z]
            .map(|field| self.number(field, -1_000_000.0..=1_000_000.0));
        let [x_m, y_m, z_m] = local;
        match (latitude_deg, longitude_deg, space, x_m?, y_m?, z_m?) {
            (Some(latitude_deg), Some(longitude_deg), None, None, None, None) => {
                let height_m = height_m.unwrap_or(0.0);
                Ok(v1::pose::Frame::Geo(v1::GeoPose {
                    latitude_deg,
                    longitude_deg,
                    height_m,
                    orientation,
                }))
            }
            (None, None, Some(space), Some(x_m), Some(y_m), Some(z_m)) if space.fract() == 0.0 => {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a whole number within 28 bits"
                )]
                let space = space as u32;
                let pose = v1::LocalPose { space, x_m, y_m, z_m, orientation };
                Ok(v1::pose::Frame::Local(pose))
            }
            (Some(_), None, None, ..) => Err("longitude is missing".to_owned()),
            (None, Some(_), None, ..) => Err("latitude is missing".to_owned()),
            (None, None, None, None, None, None) => Err("there is no position: give latitude and \
                 longitude, or space, x_m, y_m and z_m"
                .to_owned()),
            (None, None, ..) => {
                Err("a local position needs a whole space number, x_m, y_m and z_m".to_owned())
            }
            (..) => Err("give latitude and longitude, or a local position, not both".to_owned()),
        }
    }

    fn orientation(&mut self) -> Result<Option<v1::Quaternion>, String> {
        let Some((name, value)) = self.known.remove(&Field::Orientation) else { return Ok(None) };
        let value = unquoted(value);
        let wrong = || format!("{name} {value} is not a quaternion [x, y, z, w]");
        let numbers: Option<Vec<f64>> = value
            .as_array()
            .and_then(|numbers| numbers.iter().map(Value::as_f64).collect::<Option<_>>());
        let Some(&[x, y, z, w]) = numbers.as_deref() else { return Err(wrong()) };
        let norm = (x * x + y * y + z * z + w * w).sqrt();
        if 1e-3 < (norm - 1.0).abs() {
            return Err(format!("{name} {value} has the norm {norm}, not 1"));
        }
        Ok(Some(v1::Quaternion { x, y, z, w }))
    }

    fn accuracy(&mut self) -> Result<Option<v1::Accuracy>, String> {
        let range = 0.0..=limits::ACCURACY_M_MAX;
        let horizontal_m = self.number(Field::HorizontalAccuracy, range.clone())?;
        let vertical_m = self.number(Field::VerticalAccuracy, range)?;
        let is_known = horizontal_m.is_some() || vertical_m.is_some();
        Ok(is_known.then_some(v1::Accuracy { horizontal_m, vertical_m }))
    }

    /// Tags come as a list, as the JSON text of one, or as text with `;` between them.
    fn tags(&mut self, more_tags: &[String]) -> Result<Vec<String>, String> {
        let mut tags = more_tags.to_vec();
        let value = match self.known.remove(&Field::Tags) {
            Some((_, Value::String(text))) if !text.starts_with('[') => Value::String(text),
            Some((_, value)) => unquoted(value),
            None => Value::Null,
        };
        if let Value::Array(list) = value {
            tags.extend(list.into_iter().map(text));
        } else if !value.is_null() {
            tags.extend(text(value).split(';').map(str::trim).map(str::to_owned));
        }
        tags.retain(|tag| !tag.is_empty());
        tags.sort();
        tags.dedup();
        if limits::TAGS_MAX < tags.len() {
            return Err(format!("{} tags, at most {} allowed", tags.len(), limits::TAGS_MAX));
        }
        match tags.iter().find(|tag| limits::TAG_BYTES_MAX < tag.len()) {
            Some(tag) => Err(format!("tag {tag:?} is longer than {} bytes", limits::TAG_BYTES_MAX)),
            None => Ok(tags),
        }
    }

    /// Properties also come as one object, or as its JSON text.
    fn take_properties(&mut self) -> Result<(), String> {
        if let Some((name, value)) = self.known.remove(&Field::Properties) {
            let Value::Object(object) = unquoted(value) else {
                return Err(format!("{name} is not a JSON object"));
            };
            let present = object.into_iter().filter(|(_, value)| !value.is_null());
            self.properties.extend(present.map(|(key, value)| (key, text(value))));
        }
        let properties = &self.properties;
        if limits::PROPERTIES_MAX < properties.len() {
            let (count, most) = (properties.len(), limits::PROPERTIES_MAX);
            return Err(format!("{count} properties, at most {most} allowed"));
        }
        let is_key = |key: &str| (1..=limits::PROPERTY_KEY_BYTES_MAX).contains(&key.len());
        if let Some(key) = properties.keys().find(|key| !is_key(key)) {
            let most = limits::PROPERTY_KEY_BYTES_MAX;
            return Err(format!("property name {key:?} is not 1 to {most} bytes long"));
        }
        let bytes: usize = properties.iter().map(|(key, value)| key.len() + value.len()).sum();
        if limits::PROPERTIES_BYTES_MAX < bytes {
            let most = limits::PROPERTIES_BYTES_MAX;
            return Err(format!("properties of {bytes} bytes, at most {most} allowed"));
        }
        Ok(())
    }

    fn number(
        &mut self,
        field: Field,
        range: std::ops::RangeInclusive<f64>,
    ) -> Result<Option<f64>, String> {
        let Some((name, value)) = self.known.remove(&field) else { return Ok(None) };
        let number = match &value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.trim().parse().ok(),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        };
        let Some(number) = number else {
            return Err(format!("{name} {} is not a number", quoted(value)));
        };
        if range.contains(&number) {
            Ok(Some(number))
        } else {
            Err(format!("{name} {number} is outside [{}, {}]", range.start(), range.end()))
        }
    }

    fn string(&mut self, field: Field) -> Result<Option<String>, String> {
        match self.known.remove(&field) {
            Some((_, Value::String(text))) => Ok(Some(text)),
            Some((name, value)) => Err(format!("{name} {} is not text", quoted(value))),
            None => Ok(None),
        }
    }
}

fn is_absent(value: &Value) -> bool {
    value.is_null() || value.as_str().is_some_and(str::is_empty)
}

/// A value as the text of a property.
fn text(value: Value) -> String {
    if let Value::String(text) = value { text } else { value.to_string() }
}

/// The value that a text holds as JSON, as cells of CSV do; anything else as it is.
fn unquoted(value: Value) -> Value {
    let parsed = value.as_str().and_then(|text| serde_json::from_str(text).ok());
    parsed.unwrap_or(value)
}

/// A value for a message: never longer than a line bears.
fn quoted(value: Value) -> String {
    format!("{:?}", text(value).chars().take(60).collect::<String>())
}

/// An anchor as commands print it and as `export` writes it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct AnchorRecord {
    pub(crate) id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) latitude: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) longitude: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) height_m: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) space: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) x_m: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) y_m: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) z_m: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) orientation: Option<[f64; 4]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) horizontal_accuracy_m: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) vertical_accuracy_m: Option<f64>,
    pub(crate) tags: Vec<String>,
    pub(crate) properties: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) quality: Option<f32>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) creator: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) create_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) update_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) expire_time: Option<String>,
    pub(crate) etag: String,
    pub(crate) revision: u64,
}

impl From<v1::Anchor> for AnchorRecord {
    fn from(anchor: v1::Anchor) -> Self {
        let time = |time: Option<prost_types::Timestamp>| time.map(|time| time.to_string());
        let mut record = Self {
            id: anchor.id,
            latitude: None,
            longitude: None,
            height_m: None,
            space: None,
            x_m: None,
            y_m: None,
            z_m: None,
            orientation: None,
            horizontal_accuracy_m: anchor.accuracy.as_ref().and_then(|a| a.horizontal_m),
            vertical_accuracy_m: anchor.accuracy.as_ref().and_then(|a| a.vertical_m),
            tags: anchor.tags,
            properties: anchor.properties.into_iter().collect(),
            quality: anchor.quality,
            creator: anchor.creator,
            create_time: time(anchor.create_time),
            update_time: time(anchor.update_time),
            expire_time: time(anchor.expire_time),
            etag: anchor.etag,
            revision: anchor.revision,
        };
        let orientation = match anchor.pose.and_then(|pose| pose.frame) {
            Some(v1::pose::Frame::Geo(pose)) => {
                record.latitude = Some(pose.latitude_deg);
                record.longitude = Some(pose.longitude_deg);
                record.height_m = Some(pose.height_m);
                pose.orientation
            }
            Some(v1::pose::Frame::Local(pose)) => {
                record.space = Some(pose.space);
                (record.x_m, record.y_m) = (Some(pose.x_m), Some(pose.y_m));
                record.z_m = Some(pose.z_m);
                pose.orientation
            }
            None => None,
        };
        record.orientation = orientation.map(|q| [q.x, q.y, q.z, q.w]);
        record
    }
}

impl AnchorRecord {
    /// Where it is, for people.
    pub(crate) fn position(&self) -> String {
        match (self.latitude, self.longitude, self.height_m) {
            (Some(latitude), Some(longitude), height_m) => {
                format!("{latitude:.6}, {longitude:.6}, {:.1} m", height_m.unwrap_or(0.0))
            }
            _ => format!(
                "space {}: {:.3}, {:.3}, {:.3} m",
                self.space.unwrap_or(0),
                self.x_m.unwrap_or(0.0),
                self.y_m.unwrap_or(0.0),
                self.z_m.unwrap_or(0.0)
            ),
        }
    }

    /// What it is, for people: its name if it has one, otherwise its properties.
    pub(crate) fn title(&self) -> String {
        if let Some(name) = self.properties.get("name") {
            return name.clone();
        }
        let pairs = self.properties.iter().map(|(key, value)| format!("{key}={value}"));
        pairs.take(3).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests;
