//! Anchors: poses, properties, tags, times, updates.

use std::collections::{BTreeMap, BTreeSet};

use anchorhold_geometry::{GeoPoint, GeoPointError, Orientation};
use anchorhold_model::{
    Accuracy, Anchor, AnchorId, AnchorPatch, LocalPosition, Pose, RequestId, Timestamp, Version,
};
use prost_types::FieldMask;

use crate::field::{Within, check_length};
use crate::limits::{
    ACCURACY_M_MAX, BATCH_ITEMS_MAX, CREATOR_BYTES_MAX, PROPERTIES_BYTES_MAX, PROPERTIES_MAX,
    PROPERTY_KEY_BYTES_MAX, SPACE_NUMBER_MAX, TAG_BYTES_MAX, TAGS_MAX, TIME_MS_MAX,
};
use crate::{FieldError, Reason, etag, text, v1};

/// What a client says of an anchor that is yet to be created.
#[derive(Clone, Debug, PartialEq)]
pub struct AnchorDraft {
    /// Where it is.
    pub pose: Pose,
    /// How well that is known.
    pub accuracy: Accuracy,
    /// The client's own facts.
    pub properties: BTreeMap<String, String>,
    /// The client's own labels.
    pub tags: BTreeSet<String>,
    /// When it stops being visible.
    pub expire_time: Option<Timestamp>,
    /// Who creates it.
    pub creator: String,
    /// How good it is as a reference.
    pub quality: Option<f32>,
}

/// What a client wants changed.
#[derive(Clone, Debug, PartialEq)]
pub struct AnchorUpdate {
    /// Which anchor.
    pub id: AnchorId,
    /// What changes.
    pub patch: AnchorPatch,
    /// Only if this is its current version.
    pub if_version: Option<Version>,
    /// The client's name for the request; `None` if it gave none.
    pub request_id: Option<RequestId>,
}

impl AnchorDraft {
    /// Checks an anchor that a client sent. Its output-only fields are not looked at.
    ///
    /// # Errors
    /// [`FieldError`] with a path within the anchor.
    pub fn from_wire(anchor: v1::Anchor) -> Result<Self, FieldError> {
        check_length("creator", anchor.creator.len(), CREATOR_BYTES_MAX, "bytes")?;
        Ok(Self {
            pose: pose_from_wire(anchor.pose).within("pose")?,
            accuracy: accuracy_from_wire(anchor.accuracy).within("accuracy")?,
            properties: properties_from_wire(anchor.properties)?,
            tags: tags_from_wire(anchor.tags)?,
            expire_time: anchor
                .expire_time
                .map(time_from_wire)
                .transpose()
                .within("expire_time")?,
            creator: anchor.creator,
            quality: quality_from_wire(anchor.quality)?,
        })
    }

    /// The anchor under an id, its times and version still at zero: `apply` sets them.
    pub fn into_anchor(self, id: AnchorId) -> Anchor {
        Anchor {
            id,
            pose: self.pose,
            accuracy: self.accuracy,
            properties: self.properties,
            tags: self.tags,
            expire_time: self.expire_time,
            create_time: Timestamp::default(),
            update_time: Timestamp::default(),
            creator: self.creator,
            quality: self.quality,
            version: Version::default(),
            created_by: None,
        }
    }
}

/// Checks the anchors of a batch, each by itself: one that is not allowed does not stop the others.
///
/// # Errors
/// BATCH_TOO_LARGE or FIELD_INVALID on `anchors` if there are too many or none.
pub fn drafts_from_wire(
    anchors: Vec<v1::Anchor>,
) -> Result<Vec<Result<AnchorDraft, FieldError>>, FieldError> {
    check_batch("anchors", anchors.len())?;
    let drafts = anchors.into_iter().enumerate();
    Ok(drafts
        .map(|(item, anchor)| {
            AnchorDraft::from_wire(anchor).within(format_args!("anchors[{item}]"))
        })
        .collect())
}

/// An anchor as the wire carries it.
pub fn anchor_to_wire(anchor: &Anchor) -> v1::Anchor {
    anchor_into_wire(anchor.clone())
}

/// As [`anchor_to_wire`], of an anchor that nobody else needs: its texts are not copied.
pub fn anchor_into_wire(anchor: Anchor) -> v1::Anchor {
    let Accuracy { horizontal_m, vertical_m } = anchor.accuracy;
    let is_accuracy_known = horizontal_m.is_some() || vertical_m.is_some();
    v1::Anchor {
        id: text::uuid_text(anchor.id.key().0),
        pose: Some(pose_to_wire(&anchor.pose)),
        accuracy: is_accuracy_known.then_some(v1::Accuracy { horizontal_m, vertical_m }),
        properties: anchor.properties,
        tags: anchor.tags.into_iter().collect(),
        expire_time: anchor.expire_time.map(time_to_wire),
        create_time: Some(time_to_wire(anchor.create_time)),
        update_time: Some(time_to_wire(anchor.update_time)),
        creator: anchor.creator,
        etag: etag::of_version(anchor.version),
        revision: anchor.version.revision,
        quality: anchor.quality,
    }
}

/// An anchor that a service sent.
///
/// # Errors
/// [`FieldError`] with a path within the anchor.
pub fn anchor_from_wire(anchor: v1::Anchor) -> Result<Anchor, FieldError> {
    let id = anchor_id_from_wire(&anchor.id).within("id")?;
    let create_time =
        time_from_wire(anchor.create_time.unwrap_or_default()).within("create_time")?;
    let update_time =
        time_from_wire(anchor.update_time.unwrap_or_default()).within("update_time")?;
    let version = etag::to_version(&anchor.etag)?.ok_or_else(|| FieldError::missing("etag"))?;
    let draft = AnchorDraft::from_wire(anchor)?;
    Ok(Anchor { create_time, update_time, version, ..draft.into_anchor(id) })
}

/// Checks a request for an update, mask included.
///
/// # Errors
/// [`FieldError`] with a path within the request.
pub fn anchor_update_from_wire(
    request: v1::UpdateAnchorRequest,
) -> Result<AnchorUpdate, FieldError> {
    let anchor = request.anchor.ok_or_else(|| FieldError::missing("anchor"))?;
    let id = anchor_id_from_wire(&anchor.id).within("anchor.id")?;
    let if_version = etag::to_version(&anchor.etag).within("anchor")?;
    let request_id = request_id_from_wire(&request.request_id)?;
    let mask = Mask::from_wire(request.update_mask, &anchor)?;
    let patch = patch_from_wire(&mask, anchor).within("anchor")?;
    Ok(AnchorUpdate { id, patch, if_version, request_id })
}

/// Which parts of an anchor an update names.
#[derive(Clone, Copy, Default)]
struct Mask {
    pose: bool,
    accuracy: bool,
    properties: bool,
    tags: bool,
    expire_time: bool,
    quality: bool,
}

impl Mask {
    fn from_wire(mask: Option<FieldMask>, anchor: &v1::Anchor) -> Result<Self, FieldError> {
        let Some(mask) = mask.filter(|mask| !mask.paths.is_empty()) else {
            return Ok(Self::of_set_parts(anchor));
        };
        check_length("update_mask", mask.paths.len(), 16, "paths")?;
        let mut parts = Self::default();
        for path in &mask.paths {
            match path.as_str() {
                "pose" => parts.pose = true,
                "accuracy" => parts.accuracy = true,
                "properties" => parts.properties = true,
                "tags" => parts.tags = true,
                "expire_time" => parts.expire_time = true,
                "quality" => parts.quality = true,
                "*" => parts = Self::ALL,
                _ => {
                    let problem = "allowed are pose, accuracy, properties, tags, expire_time, \
                                   quality and *";
                    return Err(FieldError::invalid("update_mask", problem));
                }
            }
        }
        Ok(parts)
    }

    const ALL: Self = Self {
        pose: true,
        accuracy: true,
        properties: true,
        tags: true,
        expire_time: true,
        quality: true,
    };

    fn of_set_parts(anchor: &v1::Anchor) -> Self {
        Self {
            pose: anchor.pose.is_some(),
            accuracy: anchor.accuracy.is_some(),
            properties: !anchor.properties.is_empty(),
            tags: !anchor.tags.is_empty(),
            expire_time: anchor.expire_time.is_some(),
            quality: anchor.quality.is_some(),
        }
    }
}

fn patch_from_wire(mask: &Mask, anchor: v1::Anchor) -> Result<AnchorPatch, FieldError> {
    let mut patch = AnchorPatch::default();
    if mask.pose {
        patch.pose = Some(pose_from_wire(anchor.pose).within("pose")?);
    }
    if mask.accuracy {
        patch.accuracy = Some(accuracy_from_wire(anchor.accuracy).within("accuracy")?);
    }
    if mask.properties {
        patch.properties = Some(properties_from_wire(anchor.properties)?);
    }
    if mask.tags {
        patch.tags = Some(tags_from_wire(anchor.tags)?);
    }
    if mask.expire_time {
        let expire_time = anchor.expire_time.map(time_from_wire).transpose();
        patch.expire_time = Some(expire_time.within("expire_time")?);
    }
    if mask.quality {
        patch.quality = Some(quality_from_wire(anchor.quality)?);
    }
    Ok(patch)
}

/// Checks a pose.
///
/// # Errors
/// [`FieldError`] with a path within the pose; POSE_NOT_RIGID for a quaternion that is none.
pub fn pose_from_wire(pose: Option<v1::Pose>) -> Result<Pose, FieldError> {
    match pose.and_then(|pose| pose.frame) {
        None => Err(FieldError::invalid("", "must be set, either `geo` or `local`")),
        Some(v1::pose::Frame::Geo(geo)) => {
            let point = geo_point(geo.latitude_deg, geo.longitude_deg, geo.height_m);
            let orientation = orientation_from_wire(geo.orientation).within("geo")?;
            Ok(Pose::Geo { point: point.within("geo")?, orientation })
        }
        Some(v1::pose::Frame::Local(local)) => {
            let space = space_number(local.space).within("local")?;
            let position = local_position([local.x_m, local.y_m, local.z_m]).within("local")?;
            let orientation = orientation_from_wire(local.orientation).within("local")?;
            Ok(Pose::Local { space, position, orientation })
        }
    }
}

/// A pose as the wire carries it.
pub fn pose_to_wire(pose: &Pose) -> v1::Pose {
    let quaternion = |orientation: &Orientation| {
        let [x, y, z, w] = orientation.xyzw();
        Some(v1::Quaternion { x, y, z, w })
    };
    let frame = match pose {
        Pose::Geo { point, orientation } => v1::pose::Frame::Geo(v1::GeoPose {
            latitude_deg: point.latitude_deg(),
            longitude_deg: point.longitude_deg(),
            height_m: point.height_m(),
            orientation: quaternion(orientation),
        }),
        Pose::Local { space, position, orientation } => {
            let [x_m, y_m, z_m] = position.xyz_m();
            let orientation = quaternion(orientation);
            v1::pose::Frame::Local(v1::LocalPose { space: *space, x_m, y_m, z_m, orientation })
        }
    };
    v1::Pose { frame: Some(frame) }
}

pub(super) fn geo_point(
    latitude_deg: f64,
    longitude_deg: f64,
    height_m: f64,
) -> Result<GeoPoint, FieldError> {
    GeoPoint::new(latitude_deg, longitude_deg, height_m).map_err(|error| {
        let field = match error {
            GeoPointError::Latitude(_) => "latitude_deg",
            GeoPointError::Longitude(_) => "longitude_deg",
            GeoPointError::Height(_) => "height_m",
        };
        FieldError::invalid(field, error)
    })
}

pub(super) fn space_number(space: u32) -> Result<u32, FieldError> {
    if space <= SPACE_NUMBER_MAX {
        return Ok(space);
    }
    Err(FieldError::invalid("space", format_args!("must be at most {SPACE_NUMBER_MAX}")))
}

pub(super) fn local_position(xyz_m: [f64; 3]) -> Result<LocalPosition, FieldError> {
    LocalPosition::new(xyz_m).ok_or_else(|| {
        // Written so that NaN is at fault.
        let is_fine = |coordinate: &f64| LocalPosition::new([*coordinate, 0.0, 0.0]).is_some();
        let axis = xyz_m.iter().position(|coordinate| !is_fine(coordinate)).unwrap_or(0);
        FieldError::invalid(["x_m", "y_m", "z_m"][axis], "must be within 1,000,000 m of the origin")
    })
}

fn orientation_from_wire(quaternion: Option<v1::Quaternion>) -> Result<Orientation, FieldError> {
    let Some(v1::Quaternion { x, y, z, w }) = quaternion else {
        return Ok(Orientation::IDENTITY);
    };
    Orientation::new([x, y, z, w])
        .map_err(|error| FieldError::because(Reason::PoseNotRigid, "orientation", error))
}

fn accuracy_from_wire(accuracy: Option<v1::Accuracy>) -> Result<Accuracy, FieldError> {
    let v1::Accuracy { horizontal_m, vertical_m } = accuracy.unwrap_or_default();
    for (field, value) in [("horizontal_m", horizontal_m), ("vertical_m", vertical_m)] {
        if value.is_some_and(|value| !(0.0..=ACCURACY_M_MAX).contains(&value)) {
            return Err(FieldError::invalid(field, "must be in [0, 1,000,000] meters"));
        }
    }
    Ok(Accuracy { horizontal_m, vertical_m })
}

fn quality_from_wire(quality: Option<f32>) -> Result<Option<f32>, FieldError> {
    if quality.is_some_and(|quality| !(0.0..=1.0).contains(&quality)) {
        return Err(FieldError::invalid("quality", "must be in [0, 1]"));
    }
    Ok(quality)
}

fn properties_from_wire(
    properties: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, FieldError> {
    check_length("properties", properties.len(), PROPERTIES_MAX, "entries")?;
    for key in properties.keys() {
        if !(1..=PROPERTY_KEY_BYTES_MAX).contains(&key.len()) {
            return Err(FieldError::invalid("properties", "keys must be 1 to 128 bytes long"));
        }
    }
    let bytes: usize = properties.iter().map(|(key, value)| key.len() + value.len()).sum();
    if PROPERTIES_BYTES_MAX < bytes {
        let problem = format_args!("{bytes} bytes, at most {PROPERTIES_BYTES_MAX} allowed");
        return Err(FieldError::because(Reason::PropertiesTooLarge, "properties", problem));
    }
    Ok(properties)
}

fn tags_from_wire(tags: Vec<String>) -> Result<BTreeSet<String>, FieldError> {
    check_length("tags", tags.len(), TAGS_MAX, "tags")?;
    check_tags("tags", &tags)?;
    Ok(tags.into_iter().collect())
}

pub(super) fn check_tags(field: &str, tags: &[String]) -> Result<(), FieldError> {
    match tags.iter().position(|tag| !(1..=TAG_BYTES_MAX).contains(&tag.len())) {
        None => Ok(()),
        Some(item) => {
            let field = format!("{field}[{item}]");
            Err(FieldError::invalid(field, "must be 1 to 64 bytes long"))
        }
    }
}

/// Checks an anchor's id; the error has no path of its own.
///
/// # Errors
/// FIELD_INVALID if the text is not an anchor's id.
pub fn anchor_id_from_wire(id: &str) -> Result<AnchorId, FieldError> {
    if id.is_empty() {
        return Err(FieldError::missing(""));
    }
    id.parse::<AnchorId>().map_err(|error| FieldError::invalid("", error))
}

/// Checks the ids of a batch.
///
/// # Errors
/// BATCH_TOO_LARGE on `ids` if there are too many, FIELD_INVALID if there are none or one is no
/// anchor's id.
pub fn anchor_ids_from_wire(ids: &[String]) -> Result<Vec<AnchorId>, FieldError> {
    check_batch("ids", ids.len())?;
    let ids = ids.iter().enumerate();
    ids.map(|(item, id)| anchor_id_from_wire(id).within(format_args!("ids[{item}]"))).collect()
}

fn check_batch(field: &str, items: usize) -> Result<(), FieldError> {
    match items {
        0 => Err(FieldError::invalid(field, "must not be empty")),
        1..=BATCH_ITEMS_MAX => Ok(()),
        _ => {
            let problem = format_args!("{items} items, at most {BATCH_ITEMS_MAX} allowed");
            Err(FieldError::because(Reason::BatchTooLarge, field, problem))
        }
    }
}

/// Checks a request id; `None` for the empty one.
///
/// # Errors
/// FIELD_INVALID on `request_id` if it is no UUID.
pub fn request_id_from_wire(request_id: &str) -> Result<Option<RequestId>, FieldError> {
    if request_id.is_empty() {
        return Ok(None);
    }
    match text::uuid_number(request_id) {
        Some(number) => Ok(Some(RequestId(number))),
        None => Err(FieldError::invalid("request_id", "must be a UUID as text, or empty")),
    }
}

/// Checks a time, rounded down to milliseconds; the error has no path of its own.
///
/// # Errors
/// FIELD_INVALID unless it lies between 1970 and 9999.
pub fn time_from_wire(time: prost_types::Timestamp) -> Result<Timestamp, FieldError> {
    let invalid = || FieldError::invalid("", "must be between the years 1970 and 9999");
    let seconds = u64::try_from(time.seconds).map_err(|_| invalid())?;
    let nanos = u64::try_from(time.nanos).map_err(|_| invalid())?;
    if 1_000_000_000 <= nanos {
        return Err(FieldError::invalid("nanos", "must be in [0, 999,999,999]"));
    }
    let millis =
        seconds.checked_mul(1_000).and_then(|millis| millis.checked_add(nanos / 1_000_000));
    millis.filter(|millis| *millis <= TIME_MS_MAX).map(Timestamp).ok_or_else(invalid)
}

/// A time as the wire carries it.
pub fn time_to_wire(time: Timestamp) -> prost_types::Timestamp {
    let seconds = i64::try_from(time.0 / 1_000).unwrap_or(i64::MAX);
    let nanos = i32::try_from(time.0 % 1_000).unwrap_or(0) * 1_000_000;
    prost_types::Timestamp { seconds, nanos }
}
