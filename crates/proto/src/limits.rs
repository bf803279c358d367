//! The bounds that the public API states, in one place.
//!
//! They belong to the API: changing one changes the comments in `proto/` too. What a node can bear
//! at a moment (bytes in flight, requests at once) is its configuration, not a limit of the API.

use std::time::Duration;

// What the stored state is held to as well, and so has its one place there.
pub use anchorhold_model::SPACE_NUMBER_MAX;
pub use anchorhold_model::catalog::{
    ACCOUNT_KEYS_MAX as API_KEYS_MAX, NAME_LENGTH_MAX as ACCOUNT_NAME_BYTES_MAX,
};
use anchorhold_model::{apply, catalog};

/// Anchors or ids in one batch request, at most.
pub const BATCH_ITEMS_MAX: usize = 1_000;
/// Items per page if the client does not say.
pub const PAGE_SIZE_DEFAULT: u32 = 100;
/// Items per page, at most; more is not refused but means this many.
pub const PAGE_SIZE_MAX: u32 = 1_000;

/// Bytes of all property keys and values of an anchor, at most.
pub const PROPERTIES_BYTES_MAX: usize = 4_096;
/// Properties of an anchor, at most.
pub const PROPERTIES_MAX: usize = 64;
/// Bytes of a property's key, at most.
pub const PROPERTY_KEY_BYTES_MAX: usize = 128;
/// Tags of an anchor, at most.
pub const TAGS_MAX: usize = 32;
/// Bytes of a tag, at most.
pub const TAG_BYTES_MAX: usize = 64;
/// Bytes of a creator's name, at most.
pub const CREATOR_BYTES_MAX: usize = 128;
/// Largest accuracy that can be stated, in meters.
pub const ACCURACY_M_MAX: f64 = 1_000_000.0;
/// Latest expiry, in milliseconds since the Unix epoch: the end of the year 9999.
pub const TIME_MS_MAX: u64 = 253_402_300_799_999;

/// Conditions of one kind in a filter, at most, for properties.
pub const FILTER_PROPERTIES_MAX: usize = 16;
/// Conditions of one kind in a filter, at most, for tags.
pub const FILTER_TAGS_MAX: usize = 32;
/// Neighbours if the client does not say.
pub const NEIGHBOURS_DEFAULT: u32 = 10;
/// Neighbours of one query, at most.
pub const NEIGHBOURS_MAX: u32 = 1_000;
/// Farthest neighbour that can be asked for, in meters: more than any two points on Earth are
/// apart.
pub const NEIGHBOUR_RADIUS_M_MAX: f64 = 30_000_000.0;
/// Largest radius of a sphere as a region, in meters.
pub const REGION_RADIUS_M_MAX: f64 = 1_000_000.0;
/// S2 cells listed in a statement of completeness, at most.
pub const COMPLETENESS_CELLS_MAX: usize = 64;

/// Staleness that can be asked for, at most.
pub const STALENESS_MAX: Duration = Duration::from_secs(3_600);
/// Bytes of a session token, at most.
pub const SESSION_TOKEN_BYTES_MAX: usize = 64 * 1_024;
/// Ranges that a session token tells apart, at most.
pub const SESSION_ENTRIES_MAX: usize = 1_024;

/// Shards that an account can be laid out over at once.
pub const ACCOUNT_SHARDS_MAX: u32 = 4_096;
/// Keys in a sample for a layout, at most.
pub const LAYOUT_SAMPLE_MAX: usize = 100_000;

/// Bytes of one request or response message, at most. A batch of the largest anchors fits.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1_024 * 1_024;

/// How long a client may retry one request id. Nodes remember an id for 15 minutes of shard time;
/// the difference pays for clocks that disagree.
pub const RETRY_WINDOW: Duration = Duration::from_secs(600);

const _: () = {
    assert!(RETRY_WINDOW.as_millis() < apply::OPERATION_KEEP_MS as u128);
    assert!(ACCOUNT_SHARDS_MAX as usize == catalog::SHARDS_MAX);
};

/// The number of items on a page for the wire's `page_size`.
pub fn page_size(requested: u32) -> u32 {
    if requested == 0 { PAGE_SIZE_DEFAULT } else { requested.min(PAGE_SIZE_MAX) }
}
