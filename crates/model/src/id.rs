//! Anchor ids, which are the store's keys, and ranges of them.
//!
//! An id is 128 bits and a valid UUIDv8; its byte order is the store's order:
//!
//! | bits | field |
//! |---|---|
//! | 0–31 | account number |
//! | 32–47, 52–63, 66–69 | 32-bit cell |
//! | 48–51, 64–65 | UUID version (8) and variant |
//! | 70–85 | fine cell |
//! | 86–127 | hash of (account, request id, item, attempt) |
//!
//! Bit 0 is the most significant one.

use serde::{Deserialize, Serialize};

/// A tenant's number, handed out by the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AccountNumber(pub u32);

/// Any place in the ordered key space. Ranges may be cut at keys that are no anchor's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key(pub u128);

/// An anchor's id: a [`Key`] that is a valid UUIDv8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AnchorId(u128);

/// The half-open range `[start, end)`; no end means up to the last key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyRange {
    /// First key of the range.
    pub start: Key,
    /// First key after the range.
    pub end: Option<Key>,
}

/// Where an anchor's id says that its home is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum HomeCell {
    /// The top 32 bits of a level-14 S2 cell id.
    Earth(u32),
    /// A local space's 28-bit number.
    Local(u32),
    /// Face code 7, kept for aliases.
    Reserved(u32),
}
