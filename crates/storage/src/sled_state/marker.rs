//! The file that says which checkpoint the tree must at least contain. See the table in [`super`].

use std::cmp::Ordering;
use std::io;
use std::path::Path;

use crate::durable;

const MAGIC: &[u8; 8] = b"AHSTATE\0";

/// Format of the marker and of the rows in the tree.
pub(super) const FORMAT: u32 = 2;

const MARKER_BYTES: usize = 24;

/// What the marker of a store says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marker {
    /// There is none: the store's creation never finished.
    Missing,
    /// Something else is in the file.
    Damaged,
    /// Written by a program that knew less.
    OlderFormat(u32),
    /// Written by a program that knows more.
    UnknownFormat(u32),
    /// The newest checkpoint that was completed.
    Sequence(u64),
}

/// Publishes a completed checkpoint.
pub(super) fn write(path: &Path, sequence: u64) -> io::Result<()> {
    let mut content = Vec::with_capacity(MARKER_BYTES);
    content.extend_from_slice(MAGIC);
    content.extend_from_slice(&FORMAT.to_le_bytes());
    content.extend_from_slice(&sequence.to_le_bytes());
    content.extend_from_slice(&crc32c::crc32c(&content).to_le_bytes());
    durable::replace_file(path, &content)
}

/// Reads the marker.
pub(super) fn read(path: &Path) -> io::Result<Marker> {
    let Some(content) = durable::read_if_present(path)? else { return Ok(Marker::Missing) };
    let Ok([m0, m1, m2, m3, m4, m5, m6, m7, f0, f1, f2, f3, rest @ ..]) =
        <[u8; MARKER_BYTES]>::try_from(content.as_slice())
    else {
        return Ok(Marker::Damaged);
    };
    let [s0, s1, s2, s3, s4, s5, s6, s7, crc @ ..] = rest;
    if [m0, m1, m2, m3, m4, m5, m6, m7] != *MAGIC
        || u32::from_le_bytes(crc) != crc32c::crc32c(&content[..MARKER_BYTES - 4])
    {
        return Ok(Marker::Damaged);
    }
    let format = u32::from_le_bytes([f0, f1, f2, f3]);
    match format.cmp(&FORMAT) {
        Ordering::Less => return Ok(Marker::OlderFormat(format)),
        Ordering::Greater => return Ok(Marker::UnknownFormat(format)),
        Ordering::Equal => {}
    }
    Ok(Marker::Sequence(u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7])))
}
