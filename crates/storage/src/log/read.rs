//! Reads entries back from their segments, without any lock, and checks what was read.

use std::sync::Arc;

use bytes::Bytes;

use super::frame::{ENTRY_CHECKSUM_BYTES, entry_checksum};
use super::index::Piece;
use super::segment::{Segment, name_of};
use crate::log_store::{GroupId, LogEntry, LogPosition, ReadError};

/// Entries that lie closer together than this are read with one call.
const GAP_BYTES_MAX: u32 = 16 * 1024;
/// At most so many bytes are read with one call, unless one entry is longer.
const RUN_BYTES_MAX: u32 = 1024 * 1024;

/// Reads what is not in memory. Fails only if the first entry cannot be read.
pub(super) fn read_pieces(group: GroupId, pieces: Vec<Piece>) -> Result<Vec<LogEntry>, ReadError> {
    let mut found = Vec::with_capacity(pieces.len());
    let mut run = None;
    let mut rest = pieces.as_slice();
    while let Some((piece, behind)) = rest.split_first() {
        let entry = match piece {
            Piece::Here(entry) => Ok(entry.clone()),
            Piece::Stored { position, segment, offset, length } => {
                let entry_of = |run: &Run| run.entry(group, *position, *offset, *length);
                match run.as_ref().filter(|run: &&Run| run.holds(segment, *offset, *length)) {
                    Some(run) => entry_of(run),
                    None => Run::read(segment, rest).and_then(|read| entry_of(run.insert(read))),
                }
            }
        };
        match entry {
            Ok(entry) => found.push(entry),
            Err(_) if !found.is_empty() => break,
            Err(error) => return Err(error),
        }
        rest = behind;
    }
    Ok(found)
}

/// Reads one entry's content.
pub(super) fn read_entry(
    group: GroupId,
    position: LogPosition,
    segment: &Arc<Segment>,
    offset: u32,
    length: u32,
) -> Result<Bytes, ReadError> {
    let piece = Piece::Stored { position, segment: Arc::clone(segment), offset, length };
    let run = Run::read(segment, &[piece])?;
    Ok(run.entry(group, position, offset, length)?.content)
}

/// Neighbouring bytes of one segment.
struct Run {
    segment: u64,
    start: u32,
    bytes: Bytes,
}

impl Run {
    /// Reads the first of `pieces`, and those after it that lie close behind.
    fn read(segment: &Arc<Segment>, pieces: &[Piece]) -> Result<Self, ReadError> {
        let mut range: Option<(u32, u32)> = None;
        for piece in pieces {
            let Piece::Stored { segment: other, offset, length, .. } = piece else { break };
            let start = offset.saturating_sub(ENTRY_CHECKSUM_BYTES);
            let end = offset.saturating_add(*length);
            range = match range {
                None => Some((start, end)),
                Some((first, last))
                    if other.number == segment.number
                        && last <= start
                        && start - last <= GAP_BYTES_MAX
                        && end - first <= RUN_BYTES_MAX =>
                {
                    Some((first, end))
                }
                Some(_) => break,
            };
        }
        let (start, end) = range.unwrap_or_default();
        let mut bytes = vec![0; (end - start) as usize];
        let read = segment.file.read_at(&mut bytes, u64::from(start));
        read.map_err(|error| ReadError::Io(Arc::new(error)))?;
        Ok(Self { segment: segment.number, start, bytes: bytes.into() })
    }

    fn holds(&self, segment: &Segment, offset: u32, length: u32) -> bool {
        self.segment == segment.number
            && self.start + ENTRY_CHECKSUM_BYTES <= offset
            && u64::from(offset) + u64::from(length)
                <= u64::from(self.start) + self.bytes.len() as u64
    }

    fn entry(
        &self,
        group: GroupId,
        position: LogPosition,
        offset: u32,
        length: u32,
    ) -> Result<LogEntry, ReadError> {
        let at = (offset - self.start) as usize;
        let checksum_at = at - ENTRY_CHECKSUM_BYTES as usize;
        let content = self.bytes.slice(at..at + length as usize);
        let stored = self.bytes[checksum_at..at].try_into().map_or(0, u32::from_le_bytes);
        if entry_checksum(group, position, &content) != stored {
            let place = format!("{} at offset {offset}", name_of(self.segment));
            return Err(ReadError::Corrupt { group, index: position.index, place });
        }
        Ok(LogEntry { position, content })
    }
}
