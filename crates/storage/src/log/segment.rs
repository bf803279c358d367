//! One segment file: its name, its header, and the identity file beside the segments.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::fs::File;

/// Bytes of a segment's header; the first frame starts behind it.
pub(super) const HEADER_LENGTH: usize = 64;
pub(super) const SEGMENT_HEADER_BYTES: u64 = HEADER_LENGTH as u64;
/// What is written.
pub(super) const FORMAT_VERSION: u32 = 3;
/// The oldest version that is read. Whatever it says, the newest says in the same way; it lacks the
/// appends that leave something out. A start makes each file one of the newest version before
/// anything is added to it, so that no older program meets what it does not know.
pub(super) const FORMAT_VERSION_OLDEST: u32 = 2;
const SEGMENT_MAGIC: [u8; 8] = *b"AHLOGSEG";
const IDENTITY_MAGIC: [u8; 8] = *b"AHLOG-ID";
const IDENTITY_BYTES: usize = 24;
pub(super) const IDENTITY_NAME: &str = "identity";
pub(super) const LOCK_NAME: &str = "lock";
/// Present as long as groups of which the log knows nothing may have been in it.
pub(super) const DOUBT_NAME: &str = "doubt";
/// A segment that is no part of the log any more, until the next one is made of it.
pub(super) const SPARE_NAME: &str = "spare";
/// Added to the names of segments that hold nothing that can be read.
pub(super) const USELESS_SUFFIX: &str = ".unreadable";
const SUFFIX: &str = ".segment";

/// An open segment. The file lives until the last reference to it is gone, even if its name has
/// been removed meanwhile.
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) file: Arc<dyn File>,
}

pub(super) fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(name_of(number))
}

pub(super) fn name_of(number: u64) -> String {
    format!("{number:016x}{SUFFIX}")
}

/// The number in a segment's name; `None` if the name is of something else.
pub(super) fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

pub(super) fn header(log_id: u64, number: u64, length: u64) -> [u8; HEADER_LENGTH] {
    header_of(FORMAT_VERSION, log_id, number, length)
}

pub(super) fn header_of(
    version: u32,
    log_id: u64,
    number: u64,
    length: u64,
) -> [u8; HEADER_LENGTH] {
    let mut bytes = [0; HEADER_LENGTH];
    bytes[..8].copy_from_slice(&SEGMENT_MAGIC);
    bytes[8..12].copy_from_slice(&version.to_le_bytes());
    bytes[16..24].copy_from_slice(&log_id.to_le_bytes());
    bytes[24..32].copy_from_slice(&number.to_le_bytes());
    bytes[32..40].copy_from_slice(&length.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes[..60]);
    bytes[60..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderFault {
    /// It is damaged. Its segment's name and frames say the same.
    Unreadable,
    /// The file is shorter than it was made; so long it was.
    Cut(u64),
    /// It is of another log or place.
    Foreign,
    /// It is whole, of a format version that this program does not know.
    Version(u32),
    /// It is whole, of an older format version: to be written again.
    Older,
}

/// Checks the header of a segment's bytes.
pub(super) fn check_header(bytes: &[u8], log_id: u64, number: u64) -> Result<(), HeaderFault> {
    let whole = bytes.get(..HEADER_LENGTH).ok_or(HeaderFault::Unreadable)?;
    if crc32c::crc32c(&whole[..60]).to_le_bytes() != whole[60..] || whole[..8] != SEGMENT_MAGIC {
        return Err(HeaderFault::Unreadable);
    }
    let version = whole[8..12].try_into().map_or(0, u32::from_le_bytes);
    if !(FORMAT_VERSION_OLDEST..=FORMAT_VERSION).contains(&version) {
        return Err(HeaderFault::Version(version));
    }
    let length = whole[32..40].try_into().map_or(0, u64::from_le_bytes);
    if whole != header_of(version, log_id, number, length) {
        return Err(HeaderFault::Foreign);
    }
    // No crash shortens a file whose length was synced: something cut it.
    if (bytes.len() as u64) < length {
        return Err(HeaderFault::Cut(length));
    }
    if version < FORMAT_VERSION {
        return Err(HeaderFault::Older);
    }
    Ok(())
}

pub(super) fn identity(log_id: u64) -> [u8; IDENTITY_BYTES] {
    identity_of(FORMAT_VERSION, log_id)
}

pub(super) fn identity_of(version: u32, log_id: u64) -> [u8; IDENTITY_BYTES] {
    let mut bytes = [0; IDENTITY_BYTES];
    bytes[..8].copy_from_slice(&IDENTITY_MAGIC);
    bytes[8..12].copy_from_slice(&version.to_le_bytes());
    bytes[12..20].copy_from_slice(&log_id.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes[..20]);
    bytes[20..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// The log id of an identity file; `None` if the file is not whole.
pub(super) fn read_identity(file: &dyn File) -> io::Result<Option<u64>> {
    if file.length()? != IDENTITY_BYTES as u64 {
        return Ok(None);
    }
    let mut bytes = [0; IDENTITY_BYTES];
    file.read_at(&mut bytes, 0)?;
    let log_id = bytes[12..20].try_into().map_or(0, u64::from_le_bytes);
    let mut known = FORMAT_VERSION_OLDEST..=FORMAT_VERSION;
    Ok(known.any(|version| bytes == identity_of(version, log_id)).then_some(log_id))
}

/// The log id in a segment's header, if the header is whole.
pub(super) fn log_id_of(header: &[u8]) -> Option<u64> {
    let whole = header.get(..HEADER_LENGTH)?;
    let is_whole = crc32c::crc32c(&whole[..60]).to_le_bytes() == whole[60..];
    (is_whole && whole[..8] == SEGMENT_MAGIC)
        .then(|| whole[16..24].try_into().map_or(0, u64::from_le_bytes))
}

/// All bytes of a file.
pub(super) fn read_whole(file: &dyn File) -> io::Result<Vec<u8>> {
    let length = usize::try_from(file.length()?).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_at(&mut bytes, 0)?;
    Ok(bytes)
}
