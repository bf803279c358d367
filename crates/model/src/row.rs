//! The bytes of stored rows.
//!
//! | row | key | value |
//! |---|---|---|
//! | anchor | id (16), `0x00` | [`Anchor`] |
//! | dedup entry | id (16), `0x01`, request id (16), item (4) | [`OperationRecord`] |
//!
//! Numbers in keys are big-endian, so keys sort as ids do and dedup entries follow their anchor.
//! A value is one byte of format version, then postcard. Values are not chunked here (`storage`).

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::apply::OperationRecord;
use crate::catalog::CatalogEntry;
use crate::{
    Anchor, AnchorId, Changes, Entry, KeyRange, OperationId, RequestId, ShardState,
    id::AnchorIdError,
};

/// The format that is written.
pub const FORMAT_VERSION: u8 = 4;

/// Length of an anchor's row key.
pub const ANCHOR_KEY_LENGTH: usize = 17;
/// Length of a dedup entry's row key.
pub const OPERATION_KEY_LENGTH: usize = 37;

const ANCHOR_KIND: u8 = 0;
const OPERATION_KIND: u8 = 1;

/// A row as it is stored: its key, and its value, `None` to remove it.
pub type Row = (Vec<u8>, Option<Vec<u8>>);

/// What a row key names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowKey {
    /// An anchor.
    Anchor(AnchorId),
    /// A dedup entry.
    Operation(AnchorId, OperationId),
}

/// Why bytes are not what was written.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Written by another release. The replica must halt, not skip.
    #[error("format version {found} is unknown, this release reads {FORMAT_VERSION}")]
    UnknownFormat {
        /// The version met.
        found: u8,
    },
    /// No bytes at all.
    #[error("the value is empty")]
    Empty,
    /// The content does not follow its format.
    #[error("the value does not follow its format")]
    Malformed(#[source] postcard::Error),
    /// Bytes are left over behind the content.
    #[error("{length} bytes are left over behind the value")]
    TrailingBytes {
        /// How many.
        length: usize,
    },
    /// A key of no known kind.
    #[error("a row key of {length} bytes is of no known kind")]
    UnknownKey {
        /// Its length.
        length: usize,
    },
    /// A key whose id is no anchor's.
    #[error("a row key does not start with an anchor id")]
    KeyId(#[source] AnchorIdError),
}

/// The row key of an anchor.
pub fn anchor_key(id: AnchorId) -> [u8; ANCHOR_KEY_LENGTH] {
    let mut key = [ANCHOR_KIND; ANCHOR_KEY_LENGTH];
    key[..16].copy_from_slice(&id.to_bytes());
    key
}

/// The row key of a dedup entry.
pub fn operation_key(id: AnchorId, operation: OperationId) -> [u8; OPERATION_KEY_LENGTH] {
    let mut key = [OPERATION_KIND; OPERATION_KEY_LENGTH];
    key[..16].copy_from_slice(&id.to_bytes());
    key[17..33].copy_from_slice(&operation.request_id.0.to_be_bytes());
    key[33..].copy_from_slice(&operation.item.to_be_bytes());
    key
}

/// First row key of a range of ids, and the first one after it; no end means up to the last.
pub fn key_range(range: KeyRange) -> (Vec<u8>, Option<Vec<u8>>) {
    (range.start.to_bytes().to_vec(), range.end.map(|end| end.to_bytes().to_vec()))
}

impl RowKey {
    /// What a row key names.
    ///
    /// # Errors
    /// [`DecodeError::UnknownKey`] or [`DecodeError::KeyId`].
    pub fn parse(key: &[u8]) -> Result<Self, DecodeError> {
        let unknown = || DecodeError::UnknownKey { length: key.len() };
        let (id, rest) = key.split_first_chunk::<16>().ok_or_else(unknown)?;
        let id = AnchorId::from_bytes(*id).map_err(DecodeError::KeyId)?;
        match rest.split_first() {
            Some((&ANCHOR_KIND, [])) => Ok(Self::Anchor(id)),
            Some((&OPERATION_KIND, rest)) => {
                let (request_id, item) = rest.split_first_chunk::<16>().ok_or_else(unknown)?;
                let request_id = RequestId(u128::from_be_bytes(*request_id));
                let item = u32::from_be_bytes(item.try_into().map_err(|_| unknown())?);
                Ok(Self::Operation(id, OperationId { request_id, item }))
            }
            Some(_) | None => Err(unknown()),
        }
    }
}

/// The value of an anchor's row.
pub fn encode_anchor(anchor: &Anchor) -> Vec<u8> {
    encode(anchor)
}

/// The anchor of a row.
///
/// # Errors
/// [`DecodeError`] if the bytes are not what was written.
pub fn decode_anchor(value: &[u8]) -> Result<Anchor, DecodeError> {
    decode(value)
}

/// The value of a dedup entry's row.
pub fn encode_operation(record: &OperationRecord) -> Vec<u8> {
    encode(record)
}

/// The dedup entry of a row.
///
/// # Errors
/// [`DecodeError`] if the bytes are not what was written.
pub fn decode_operation(value: &[u8]) -> Result<OperationRecord, DecodeError> {
    decode(value)
}

/// The bytes of a shard's state.
pub fn encode_shard_state(state: &ShardState) -> Vec<u8> {
    encode(state)
}

/// A shard's state.
///
/// # Errors
/// [`DecodeError`] if the bytes are not what was written.
pub fn decode_shard_state(value: &[u8]) -> Result<ShardState, DecodeError> {
    decode(value)
}

/// The bytes of a shard's entry.
pub fn encode_entry(entry: &Entry) -> Vec<u8> {
    encode(entry)
}

/// A shard's entry.
///
/// # Errors
/// [`DecodeError`] if the bytes are not what was written.
pub fn decode_entry(value: &[u8]) -> Result<Entry, DecodeError> {
    decode(value)
}

/// The bytes of a catalog entry.
pub fn encode_catalog_entry(entry: &CatalogEntry) -> Vec<u8> {
    encode(entry)
}

/// A catalog entry.
///
/// # Errors
/// [`DecodeError`] if the bytes are not what was written.
pub fn decode_catalog_entry(value: &[u8]) -> Result<CatalogEntry, DecodeError> {
    decode(value)
}

/// Bytes of an anchor's row, key included.
pub fn anchor_row_bytes(anchor: &Anchor) -> u64 {
    row_bytes(ANCHOR_KEY_LENGTH, anchor)
}

/// Bytes of a dedup entry's row, key included.
pub fn operation_row_bytes(record: &OperationRecord) -> u64 {
    row_bytes(OPERATION_KEY_LENGTH, record)
}

impl Changes {
    /// The changed records as rows, in key order within anchors and within dedup entries. The
    /// shard's own state is not among them.
    pub fn rows(&self) -> impl Iterator<Item = Row> {
        let anchors = self.anchors.iter().map(|(id, anchor)| {
            (anchor_key(*id).to_vec(), anchor.as_ref().map(|anchor| encode_anchor(anchor)))
        });
        let operations = self.operations.iter().map(|((id, operation), record)| {
            (operation_key(*id, *operation).to_vec(), record.as_ref().map(encode_operation))
        });
        anchors.chain(operations)
    }
}

/// Format version, then postcard.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![FORMAT_VERSION]).expect("the model's types have a length")
}

/// The reverse of [`encode`], for all of the bytes.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (&found, content) = bytes.split_first().ok_or(DecodeError::Empty)?;
    if found != FORMAT_VERSION {
        return Err(DecodeError::UnknownFormat { found });
    }
    let (value, rest) = postcard::take_from_bytes(content).map_err(DecodeError::Malformed)?;
    if !rest.is_empty() {
        return Err(DecodeError::TrailingBytes { length: rest.len() });
    }
    Ok(value)
}

fn row_bytes<T: Serialize>(key_length: usize, value: &T) -> u64 {
    let value_length =
        postcard::experimental::serialized_size(value).expect("the model's types have a length");
    (key_length + 1 + value_length) as u64
}

#[cfg(test)]
mod tests;
