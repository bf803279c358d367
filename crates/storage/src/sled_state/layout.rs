//! How rows lie in the tree. See the tables in [`super`].

use twox_hash::XxHash3_64;

use crate::state_store::StateError;

/// Longest part of a value in one row of the tree, in bytes. Small enough that no page of sled
/// becomes a file of its own ("blob"), which sled would never sync.
pub(super) const PART_BYTES_MAX: usize = PART_BYTES as usize;

const PART_BYTES: u32 = 2048;

/// The row that holds the sequence number of the newest checkpoint.
pub(super) const SEQUENCE_KEY: &[u8] = b"\x00checkpoint";

/// The row that holds the sum of all rows ([`RowSum`]).
pub(super) const SUM_KEY: &[u8] = b"\x00sum";

const ROW: u8 = 1;
const CHUNK: u8 = 2;

const WHOLE: u8 = 0;
const CHUNKED: u8 = 1;

/// Length of what stands in for a chunked value.
const REFERENCE_BYTES: usize = 17;

/// Where a chunked value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChunkRef {
    /// Names the chunks; never used twice while the store is open.
    pub(super) id: u64,
    /// Length of the value in bytes.
    pub(super) bytes: u32,
    /// CRC32C of the value.
    pub(super) crc: u32,
}

/// What a row of the tree holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stored<'a> {
    /// The value itself.
    Whole(&'a [u8]),
    /// A reference to its chunks.
    Chunked(ChunkRef),
}

/// The tree's key of a caller's key.
pub(super) fn row_key(key: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(1 + key.len());
    stored.push(ROW);
    stored.extend_from_slice(key);
    stored
}

/// The bounds of all rows.
pub(super) fn all_rows() -> std::ops::Range<[u8; 1]> {
    [ROW]..[CHUNK]
}

/// The value of a row that needs no chunks.
pub(super) fn whole(value: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(1 + value.len());
    stored.push(WHOLE);
    stored.extend_from_slice(value);
    stored
}

/// What all rows come to, whatever their order: the sum of their hashes. It is written with every
/// batch, so that a row which the disk has lost, or kept although it was removed, does not fit it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RowSum(u64);

impl RowSum {
    /// Counts a row in.
    pub(super) fn add(&mut self, row_key: &[u8], stored: &[u8]) {
        self.0 = self.0.wrapping_add(hash(row_key, stored));
    }

    /// Counts a row out.
    pub(super) fn remove(&mut self, row_key: &[u8], stored: &[u8]) {
        self.0 = self.0.wrapping_sub(hash(row_key, stored));
    }

    /// What the sum's row holds.
    pub(super) fn encode(self) -> [u8; 8] {
        self.0.to_le_bytes()
    }

    /// The sum in its row; that of no rows if there is none.
    pub(super) fn decode(stored: Option<&[u8]>) -> Result<Self, StateError> {
        let Some(stored) = stored else { return Ok(Self::default()) };
        let stored = stored.try_into().map_err(|_| damaged("the sum has a wrong length"))?;
        Ok(Self(u64::from_le_bytes(stored)))
    }
}

/// XXH3 with 64 bits of the stored value, seeded with that of the key.
fn hash(row_key: &[u8], stored: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(XxHash3_64::oneshot(row_key), stored)
}

impl ChunkRef {
    /// A reference to the chunks of a value.
    pub(super) fn of(id: u64, value: &[u8]) -> Result<Self, StateError> {
        let bytes = u32::try_from(value.len())
            .map_err(|_| StateError::TooLong { key_bytes: 0, value_bytes: value.len() })?;
        Ok(Self { id, bytes, crc: crc32c::crc32c(value) })
    }

    /// What stands in for the value.
    pub(super) fn encode(self) -> Vec<u8> {
        let mut stored = Vec::with_capacity(REFERENCE_BYTES);
        stored.push(CHUNKED);
        stored.extend_from_slice(&self.bytes.to_le_bytes());
        stored.extend_from_slice(&self.crc.to_le_bytes());
        stored.extend_from_slice(&self.id.to_le_bytes());
        stored
    }

    /// Number of chunks.
    pub(super) fn count(self) -> u32 {
        self.bytes.div_ceil(PART_BYTES)
    }

    /// The tree's key of one chunk.
    pub(super) fn chunk_key(self, number: u32) -> Vec<u8> {
        let mut key = Vec::with_capacity(13);
        key.extend_from_slice(&self.prefix());
        key.extend_from_slice(&number.to_be_bytes());
        key
    }

    /// What the keys of all chunks begin with.
    pub(super) fn prefix(self) -> [u8; 9] {
        let mut prefix = [CHUNK; 9];
        prefix[1..].copy_from_slice(&self.id.to_be_bytes());
        prefix
    }
}

/// The prefix of all chunks of all values.
pub(super) fn all_chunks() -> [u8; 1] {
    [CHUNK]
}

/// The id in the key of a chunk.
pub(super) fn chunk_id(key: &[u8]) -> Result<u64, StateError> {
    let id = key.get(1..9).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
    id.map(u64::from_be_bytes).ok_or_else(|| damaged("a chunk's key is too short"))
}

/// Reads the value of a row.
pub(super) fn decode(stored: &[u8]) -> Result<Stored<'_>, StateError> {
    match stored.split_first() {
        Some((&WHOLE, value)) => Ok(Stored::Whole(value)),
        Some((&CHUNKED, reference)) => {
            let reference: &[u8; REFERENCE_BYTES - 1] = reference
                .try_into()
                .map_err(|_| damaged("a chunk reference has a wrong length"))?;
            let [b0, b1, b2, b3, c0, c1, c2, c3, id @ ..] = *reference;
            Ok(Stored::Chunked(ChunkRef {
                id: u64::from_le_bytes(id),
                bytes: u32::from_le_bytes([b0, b1, b2, b3]),
                crc: u32::from_le_bytes([c0, c1, c2, c3]),
            }))
        }
        Some(_) | None => Err(damaged("a row is neither whole nor chunked")),
    }
}

fn damaged(reason: &str) -> StateError {
    StateError::Damaged { reason: reason.to_owned() }
}
