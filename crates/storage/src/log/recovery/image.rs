//! Segment files as they are read, and where the log ends among them.

use std::path::Path;
use std::sync::Arc;

use super::super::OpenError;
use super::super::frame::{
    FRAME_HEADER_BYTES, Frame, FramePlace, Record, RecordReader, read_frame,
};
use super::super::segment::{HeaderFault, check_header, path_of, read_whole};
use super::{FIRST_FRAME, FoundSegment, Unopened};
use crate::fs::{File, FileSystem};
use crate::log_store::GroupId;

/// Where a file cannot be read as a whole, it is read in steps of so many bytes.
const STEP_BYTES: usize = 512;

/// One segment file as read.
pub(super) struct Image {
    pub(super) number: u64,
    file: Arc<dyn File>,
    /// Zeros where it cannot be read.
    pub(super) bytes: Vec<u8>,
    /// The furthest byte that cannot be read, or that the file should have and has not.
    gap: Option<(usize, &'static str)>,
    pub(super) header: Result<(), HeaderFault>,
}

/// Where the log ends.
pub(super) struct End {
    /// The newest segment that holds a frame.
    pub(super) newest: Image,
    /// Files behind it, in order: prepared ones, or what is left of others.
    pub(super) behind: Vec<Image>,
}

impl Image {
    pub(super) fn into_found(self, header_damaged: bool) -> FoundSegment {
        let length = self.bytes.len() as u64;
        FoundSegment { number: self.number, length, file: self.file, header_damaged }
    }

    /// Whether it is as a prepared segment is.
    pub(super) fn is_prepared(&self) -> bool {
        matches!(self.header, Ok(()) | Err(HeaderFault::Older)) && self.gap.is_none()
    }

    pub(super) fn into_unopened(self) -> Unopened {
        Unopened {
            number: self.number,
            length: self.bytes.len() as u64,
            header_whole: self.is_prepared(),
            file: self.file,
        }
    }

    pub(super) fn damaged(
        &self,
        offset: usize,
        groups: Vec<GroupId>,
        reason: &'static str,
    ) -> OpenError {
        OpenError::Damaged { segment: self.number, offset: offset as u64, groups, reason }
    }

    /// Why something is not here that may have been behind `at`, if that is so.
    pub(super) fn gap_behind(&self, at: usize) -> Option<&'static str> {
        self.gap.filter(|(end, _)| at < *end).map(|(_, reason)| reason)
    }

    /// Bytes that were there from `at` on, as far as is known.
    pub(super) fn bytes_from(&self, at: usize) -> u64 {
        let end = self.gap.map_or(0, |(end, _)| end).max(self.bytes.len());
        end.saturating_sub(at) as u64
    }
}

/// Reads a segment as far as that is possible, and its header.
pub(super) fn read_image(
    fs: &dyn FileSystem,
    dir: &Path,
    log_id: u64,
    number: u64,
) -> Result<Image, OpenError> {
    let path = path_of(dir, number);
    let failed = |source| OpenError::Io { path: path.clone(), source };
    let file = fs.open(&path).map_err(failed)?;
    let (bytes, gap) = match read_whole(&*file) {
        Ok(bytes) => (bytes, None),
        Err(error) => {
            tracing::error!(%error, path = %path.display(), "a segment cannot be read as a whole");
            read_in_steps(&*file).map_err(failed)?
        }
    };
    let gap = gap.map(|end| (end, "part of the segment cannot be read"));
    let header = check_header(&bytes, log_id, number);
    checked(Image { number, file, bytes, gap, header })
}

/// What can be read of a file, zeros for the rest, and where the last gap ends.
fn read_in_steps(file: &dyn File) -> std::io::Result<(Vec<u8>, Option<usize>)> {
    let length = usize::try_from(file.length()?).map_err(std::io::Error::other)?;
    let mut bytes = vec![0; length];
    let mut gap = None;
    for start in (0..length).step_by(STEP_BYTES) {
        let end = length.min(start + STEP_BYTES);
        if file.read_at(&mut bytes[start..end], start as u64).is_err() {
            bytes[start..end].fill(0);
            gap = Some(end);
        }
    }
    Ok((bytes, gap))
}

/// Finds the newest segment that holds a frame. `None` if none does.
pub(super) fn find_end(
    fs: &dyn FileSystem,
    dir: &Path,
    log_id: u64,
    numbers: &[u64],
) -> Result<Option<End>, OpenError> {
    let mut behind = Vec::new();
    for number in numbers.iter().rev() {
        let image = read_image(fs, dir, log_id, *number)?;
        if is_opened(&image, log_id) {
            behind.reverse();
            return Ok(Some(End { newest: image, behind }));
        }
        behind.push(image);
    }
    Ok(None)
}

/// Refuses what this log cannot have written. A file that is shorter than its header says has lost
/// its end.
fn checked(mut image: Image) -> Result<Image, OpenError> {
    match image.header {
        Err(HeaderFault::Version(found)) => {
            return Err(OpenError::Version { segment: image.number, found });
        }
        Err(HeaderFault::Foreign) => {
            let reason = "the segment belongs to another log or place";
            return Err(image.damaged(0, vec![], reason));
        }
        Err(HeaderFault::Cut(length)) => {
            let end = usize::try_from(length).unwrap_or(usize::MAX);
            image.gap = Some((end, "the file is shorter than it was made"));
        }
        Ok(()) | Err(HeaderFault::Unreadable | HeaderFault::Older) => {}
    }
    Ok(image)
}

/// Whether a segment was opened: it holds a frame, and not only one that was cut short.
fn is_opened(image: &Image, log_id: u64) -> bool {
    let Some(offset) = find_frame(image, log_id, FIRST_FRAME) else { return false };
    let place = FramePlace { log_id, segment: image.number, offset: offset as u64 };
    read_frame(&image.bytes, place).is_ok_and(|frame| !is_torn(image, log_id, &frame))
}

/// Whether a frame was cut short between its structure and its contents: it is the last one, and
/// nothing in it counts.
pub(super) fn is_torn(image: &Image, log_id: u64, frame: &Frame<'_>) -> bool {
    !frame.is_whole() && find_frame(image, log_id, frame.end).is_none()
}

/// The offset of the first valid frame at or after `from`.
pub(super) fn find_frame(image: &Image, log_id: u64, from: usize) -> Option<usize> {
    (from..image.bytes.len()).step_by(8).find(|offset| {
        let place = FramePlace { log_id, segment: image.number, offset: *offset as u64 };
        read_frame(&image.bytes, place).is_ok()
    })
}

/// The groups named in what may once have been the frame at `at`, as far as it can be read.
pub(super) fn groups_near(image: &Image, at: usize) -> Vec<GroupId> {
    let Some(payload) = image.bytes.get(at + FRAME_HEADER_BYTES..) else {
        return vec![];
    };
    let mut groups = Vec::new();
    let mut records = RecordReader::new(payload);
    while let Ok(Some(record)) = records.record() {
        match record {
            Record::Append { group, .. }
            | Record::Copy { group, .. }
            | Record::Truncate { group, .. }
            | Record::HardState { group, .. }
            | Record::Purge { group, .. }
            | Record::Drop { group }
            | Record::Lost { group, .. } => groups.push(group),
            Record::Opening { .. }
            | Record::Seal { .. }
            | Record::Oldest { .. }
            | Record::Marker
            | Record::Echo { .. } => {}
        }
        if records.skip(&record).is_err() {
            break;
        }
    }
    groups.sort_unstable();
    groups.dedup();
    groups
}
