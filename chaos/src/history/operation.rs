//! One operation of one client.

use anchorhold_client::Reason;
use anchorhold_model::Version;
use serde::{Deserialize, Serialize};

/// What a client asked, when, and what it learnt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// The client, by its number within the workload.
    pub client: u32,
    /// When it was asked, in nanoseconds since the run's start.
    pub start_ns: u64,
    /// When the client knew the outcome, or gave up.
    pub end_ns: u64,
    /// Whether this is the second record of a write: its outcome was found out by sending the same
    /// request again.
    pub resolved: bool,
    /// Who answered.
    pub served: Served,
    /// What was asked.
    pub action: Action,
    /// What became of it.
    pub outcome: Outcome,
}

/// Who answered. All zero if nobody did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// The shard, the first one if there were several.
    pub shard: u64,
    /// The node whose replica answered: for writes, the shard's leader.
    pub node: u64,
    /// The shard's revision that the reply named.
    pub revision: u64,
    /// How stale the reply said to be at most, in nanoseconds.
    pub staleness_ns: Option<u64>,
}

/// A place on Earth: latitude and longitude in degrees, height in meters.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Latitude in degrees.
    pub latitude_deg: f64,
    /// Longitude in degrees.
    pub longitude_deg: f64,
    /// Height above the ellipsoid in meters.
    pub height_m: f64,
}

/// How a read was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Level {
    /// LINEARIZABLE.
    Linearizable,
    /// BOUNDED_STALENESS.
    Bounded {
        /// The bound that was asked for, in milliseconds.
        staleness_max_ms: u64,
    },
    /// LOCAL.
    Local,
    /// LOCAL, with a session's token.
    Session,
}

/// What was asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Action {
    /// Create an anchor.
    Create {
        /// The request id.
        request: u128,
        /// Which item of a batch, 0 for a single create.
        item: u32,
        /// The value to store, unique in the workload.
        value: u64,
        /// Where.
        position: Position,
        /// When it is to expire, in nanoseconds since the run's start.
        expire_ns: Option<u64>,
    },
    /// Store another value.
    Update {
        /// The request id.
        request: u128,
        /// The anchor.
        id: u128,
        /// The value to store, unique in the workload.
        value: u64,
        /// Only if the anchor is in this state, as the client saw it: version and value.
        expected: Option<(Version, u64)>,
    },
    /// Remove an anchor.
    Delete {
        /// The request id.
        request: u128,
        /// The anchor.
        id: u128,
    },
    /// Read an anchor.
    Get {
        /// The anchor.
        id: u128,
        /// How.
        level: Level,
    },
    /// List all anchors, page by page.
    List {
        /// How.
        level: Level,
    },
    /// The nearest anchors.
    Nearest {
        /// To here.
        position: Position,
        /// How many.
        k: u32,
    },
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// Acknowledged: the anchor is there.
    Written {
        /// The anchor.
        id: u128,
        /// Its version by this write. `None` if the reply, a retry's, shows a later write instead.
        version: Option<Version>,
    },
    /// Acknowledged: the anchor is gone.
    Deleted,
    /// The anchor as read.
    Found {
        /// Its version.
        version: Version,
        /// Its value.
        value: u64,
    },
    /// There is no such anchor. Also of a write: then nothing was written.
    Absent,
    /// Certain: nothing was written, because the anchor has another version.
    Mismatch {
        /// Its version then, if the reply said.
        current: Option<Version>,
    },
    /// What was listed or found nearest, in the order of the reply.
    Rows {
        /// The anchors.
        rows: Vec<Row>,
        /// Whether all shards answered.
        complete: bool,
    },
    /// Certain: nothing was written. Of a read: no answer.
    Failed {
        /// The reason, as the API names it; the gRPC code if there is none.
        reason: String,
    },
    /// The write may have been done or not.
    Unknown {
        /// The reason, as the API names it; the gRPC code if there is none.
        reason: String,
    },
}

/// An anchor as a list or a query shows it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The anchor.
    pub id: u128,
    /// Its version.
    pub version: Version,
    /// Its value; 0, which no workload writes, if it has none.
    pub value: u64,
    /// Its distance from the query in meters; 0 in lists.
    pub distance_m: f64,
}

/// Reasons by which a shard's state machine refuses a write: certain, whatever was tried before. All
/// others are certain only if the request was sent once.
pub const UNWRITTEN_REASONS: &[Reason] = &[
    Reason::EtagMismatch,
    Reason::AnchorNotFound,
    Reason::AnchorExists,
    Reason::AlreadyExpired,
    Reason::DriftTooFar,
    Reason::SpaceChanged,
];

impl Action {
    /// The request id of a write.
    pub fn request(&self) -> Option<(u128, u32)> {
        match self {
            Self::Create { request, item, .. } => Some((*request, *item)),
            Self::Update { request, .. } | Self::Delete { request, .. } => Some((*request, 0)),
            Self::Get { .. } | Self::List { .. } | Self::Nearest { .. } => None,
        }
    }

    /// Whether it changes something.
    pub fn is_write(&self) -> bool {
        self.request().is_some()
    }
}

impl Outcome {
    /// Whether a write was acknowledged.
    pub fn is_acknowledged(&self) -> bool {
        matches!(self, Self::Written { .. } | Self::Deleted)
    }

    /// Whether the question was answered, by whatever.
    pub fn is_answer(&self) -> bool {
        !matches!(self, Self::Failed { .. } | Self::Unknown { .. })
    }
}

/// The workload's value of an anchor; 0, which no workload writes, if it has none.
pub fn value_of(anchor: &anchorhold_client::v1::Anchor) -> u64 {
    anchor.properties.get("value").and_then(|text| text.parse().ok()).unwrap_or_default()
}
