//! The bytes of a snapshot file. See the tables in [`super`].

use std::path::Path;

use super::{SnapshotDigest, SnapshotError, SnapshotHeader};
use crate::log_store::{GroupId, LogPosition};

const MAGIC: &[u8; 8] = b"AHSNAP\0\0";

/// Format of the file.
pub(super) const FORMAT: u32 = 1;

/// Bytes of the header without metadata and checksum.
pub(super) const HEADER_BYTES: usize = 49;

/// Bytes in front of a block's payload.
pub(super) const BLOCK_HEAD_BYTES: usize = 5;

/// Bytes of a checksum.
pub(super) const CRC_BYTES: usize = 4;

/// Bytes of the footer's payload.
pub(super) const FOOTER_BYTES: usize = 48;

/// The footer with all around it: the end of every file.
pub(super) const FOOTER_BLOCK_BYTES: usize = BLOCK_HEAD_BYTES + FOOTER_BYTES + CRC_BYTES;

/// Payload at which a block of rows is closed.
pub(super) const BLOCK_BYTES_TARGET: usize = 64 << 10;

/// Longest payload: a block takes at least one row, however long.
pub(super) const BLOCK_BYTES_MAX: usize = 128 << 20;

pub(super) const ROWS: u8 = 1;
pub(super) const FOOTER: u8 = 2;

/// Sums of a whole file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    pub(super) rows: u64,
    pub(super) payload_bytes: u64,
    pub(super) digest: SnapshotDigest,
}

/// Reads numbers from the front of a slice; `None` when it is too short.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

/// Everything before the first block, without the checksum.
pub(super) fn encode_header(header: &SnapshotHeader) -> Result<Vec<u8>, SnapshotError> {
    let meta_bytes = length(header.meta.len())?;
    let (has_position, position) = match header.position {
        Some(position) => (1, position),
        None => (0, LogPosition { term: 0, index: 0 }),
    };
    let mut out = Vec::with_capacity(HEADER_BYTES + header.meta.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&FORMAT.to_le_bytes());
    out.extend_from_slice(&meta_bytes.to_le_bytes());
    out.extend_from_slice(&header.format.to_le_bytes());
    out.extend_from_slice(&header.group.shard.to_le_bytes());
    out.extend_from_slice(&header.group.incarnation.to_le_bytes());
    out.push(has_position);
    out.extend_from_slice(&position.term.to_le_bytes());
    out.extend_from_slice(&position.index.to_le_bytes());
    out.extend_from_slice(&header.meta);
    Ok(out)
}

/// Length of the metadata, from the first [`HEADER_BYTES`] of a file.
pub(super) fn meta_bytes(path: &Path, fixed: &[u8]) -> Result<usize, SnapshotError> {
    let damaged = |reason| SnapshotError::Damaged { path: path.to_owned(), offset: 0, reason };
    let mut fields = Fields(fixed);
    if fields.take(MAGIC.len()) != Some(MAGIC) {
        return Err(damaged("it does not begin like a snapshot"));
    }
    // Checked before the checksum: another format may have another one.
    let found = fields.u32().ok_or_else(|| damaged("the header is cut off"))?;
    if found != FORMAT {
        return Err(SnapshotError::UnknownFormat { path: path.to_owned(), found, known: FORMAT });
    }
    let bytes = fields.u32().ok_or_else(|| damaged("the header is cut off"))? as usize;
    if BLOCK_BYTES_MAX < bytes {
        return Err(damaged("the metadata is too long"));
    }
    Ok(bytes)
}

/// Reads the header, whose checksum was verified.
pub(super) fn decode_header(path: &Path, bytes: &[u8]) -> Result<SnapshotHeader, SnapshotError> {
    let decode = || {
        let mut fields = Fields(bytes.get(MAGIC.len() + 4 + 4..)?);
        let format = fields.u32()?;
        let group = GroupId { shard: fields.u64()?, incarnation: fields.u32()? };
        let has_position = fields.u8()?;
        let position = LogPosition { term: fields.u64()?, index: fields.u64()? };
        let position = match has_position {
            0 => None,
            1 => Some(position),
            _ => return None,
        };
        Some(SnapshotHeader { format, group, position, meta: fields.0.to_vec() })
    };
    decode().ok_or_else(|| SnapshotError::Damaged {
        path: path.to_owned(),
        offset: 0,
        reason: "the header makes no sense",
    })
}

impl Footer {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FOOTER_BYTES);
        out.extend_from_slice(&self.rows.to_le_bytes());
        out.extend_from_slice(&self.payload_bytes.to_le_bytes());
        out.extend_from_slice(&self.digest.0);
        out
    }

    pub(super) fn decode(payload: &[u8]) -> Option<Self> {
        let mut fields = Fields(payload);
        let footer = Self {
            rows: fields.u64()?,
            payload_bytes: fields.u64()?,
            digest: SnapshotDigest(fields.array()?),
        };
        fields.0.is_empty().then_some(footer)
    }
}

/// Appends a row to a block's payload.
pub(super) fn push_row(block: &mut Vec<u8>, key: &[u8], value: &[u8]) -> Result<(), SnapshotError> {
    let (key_bytes, value_bytes) = (length(key.len())?, length(value.len())?);
    length(8 + key.len() + value.len())?;
    block.extend_from_slice(&key_bytes.to_le_bytes());
    block.extend_from_slice(&value_bytes.to_le_bytes());
    block.extend_from_slice(key);
    block.extend_from_slice(value);
    Ok(())
}

/// Takes a row from a block's payload.
pub(super) fn take_row<'a>(fields: &mut Fields<'a>) -> Option<(&'a [u8], &'a [u8])> {
    let (key_bytes, value_bytes) = (fields.u32()?, fields.u32()?);
    Some((fields.take(key_bytes as usize)?, fields.take(value_bytes as usize)?))
}

/// What stands in front of a payload.
pub(super) fn block_head(
    kind: u8,
    payload_bytes: usize,
) -> Result<[u8; BLOCK_HEAD_BYTES], SnapshotError> {
    let [l0, l1, l2, l3] = length(payload_bytes)?.to_le_bytes();
    Ok([kind, l0, l1, l2, l3])
}

fn length(bytes: usize) -> Result<u32, SnapshotError> {
    match u32::try_from(bytes) {
        Ok(length) if bytes <= BLOCK_BYTES_MAX => Ok(length),
        Ok(_) | Err(_) => Err(SnapshotError::TooLong { bytes }),
    }
}
