//! What an anchor is.

use std::collections::{BTreeMap, BTreeSet};

use anchorhold_geometry::{Ecef, GeoPoint, Orientation};
use serde::{Deserialize, Serialize};

use crate::{AnchorId, OperationId, Timestamp};

/// A frame of reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Space {
    /// WGS84.
    Earth,
    /// A local metric map, by its number (28 bits) within the account.
    Local(u32),
}

/// A position in a local space, in meters of that space's frame.
///
/// Invariant: finite, each coordinate within `±COORDINATE_M_MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LocalPosition(pub(crate) [f64; 3]);

/// Where an anchor is and how it is turned.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Pose {
    /// On Earth: WGS84 position, orientation relative to east-north-up at that point.
    Geo { point: GeoPoint, orientation: Orientation },
    /// In a local space's frame.
    Local { space: u32, position: LocalPosition, orientation: Orientation },
}

/// Position accuracy, 95 %, in meters. Unset means unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Horizontal accuracy in meters.
    pub horizontal_m: Option<f64>,
    /// Vertical accuracy in meters.
    pub vertical_m: Option<f64>,
}

/// Which state of an anchor is meant; the etag on the wire. Revisions are counted by the shard,
/// so two states of one anchor never share a version.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Version {
    /// The shard's incarnation when the change was applied.
    pub incarnation: u32,
    /// The shard's revision at the change.
    pub revision: u64,
}

/// A spatial anchor as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Anchor {
    /// Its id, which is its key.
    pub id: AnchorId,
    /// Where it is.
    pub pose: Pose,
    /// How well that is known.
    pub accuracy: Accuracy,
    /// The client's own facts.
    pub properties: BTreeMap<String, String>,
    /// The client's own labels.
    pub tags: BTreeSet<String>,
    /// When it stops being visible; unset means never.
    pub expire_time: Option<Timestamp>,
    /// Shard time of its creation.
    pub create_time: Timestamp,
    /// Shard time of its last change.
    pub update_time: Timestamp,
    /// Who created it: a name of the client's choice.
    pub creator: String,
    /// How good the anchor is as a reference, in `[0, 1]`; unset means unknown.
    pub quality: Option<f32>,
    /// Its current version.
    pub version: Version,
    /// The operation that created it, while it is as it was created; set by `apply`. A retry of the
    /// create is answered from here, so that most anchors need no dedup entry of their own.
    pub created_by: Option<OperationId>,
}

/// What an update changes: `None` keeps, `Some` replaces.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AnchorPatch {
    /// New pose.
    pub pose: Option<Pose>,
    /// New accuracy.
    pub accuracy: Option<Accuracy>,
    /// New properties, all of them.
    pub properties: Option<BTreeMap<String, String>>,
    /// New tags, all of them.
    pub tags: Option<BTreeSet<String>>,
    /// New expiry: `Some(None)` makes the anchor permanent.
    pub expire_time: Option<Option<Timestamp>>,
    /// New quality: `Some(None)` forgets it.
    pub quality: Option<Option<f32>>,
}

/// Largest absolute coordinate in a local space, in meters.
pub const COORDINATE_M_MAX: f64 = 1_000_000.0;

impl LocalPosition {
    /// A position from x, y, z in meters; `None` unless finite and within `±COORDINATE_M_MAX`.
    pub fn new(xyz_m: [f64; 3]) -> Option<Self> {
        xyz_m.iter().all(|c| c.abs() <= COORDINATE_M_MAX).then_some(Self(xyz_m))
    }

    /// x, y, z in meters.
    pub fn xyz_m(self) -> [f64; 3] {
        self.0
    }
}

impl Pose {
    /// The space that the pose is given in.
    pub fn space(&self) -> Space {
        match self {
            Self::Geo { .. } => Space::Earth,
            Self::Local { space, .. } => Space::Local(*space),
        }
    }

    /// The position in meters: ECEF on Earth, the space's own frame elsewhere.
    pub fn position(&self) -> Ecef {
        match self {
            Self::Geo { point, .. } => point.to_ecef(),
            Self::Local { position, .. } => Ecef::new(position.xyz_m()),
        }
    }
}

impl Anchor {
    /// Whether the anchor is visible at a shard time.
    pub fn is_visible(&self, shard_time: Timestamp) -> bool {
        self.expire_time.is_none_or(|expire_time| shard_time < expire_time)
    }
}
