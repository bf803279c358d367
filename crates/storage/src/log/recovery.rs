//! Reads the whole log at start, verifies all of it, and says what it holds.
//!
//! One kind of damage is forgiven: a bad frame at the end of the newest segment with nothing valid
//! behind it. That is what a crash leaves, and nobody was told that such a frame is durable.
//! Everything else is an [`OpenError`] that names the place: the log never opens with less than
//! was acknowledged.
//!
//! Not here: changing the disk. That is [`super::tidy`], once all is read.

mod replay;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use self::replay::Replay;
pub(super) use self::replay::{FoundSlot, carry};
use super::OpenError;
use super::frame::{FramePlace, Record, RecordReader, read_frame};
use super::group::GroupState;
use super::segment::{HEADER_LENGTH, HeaderFault, check_header, path_of, read_whole};
use crate::fs::{File, FileSystem};
use crate::log_store::GroupId;

const FIRST_FRAME: usize = HEADER_LENGTH;

/// One segment file as read.
struct Image {
    number: u64,
    file: Arc<dyn File>,
    bytes: Vec<u8>,
}

/// A segment without a frame: prepared, and never or not durably opened.
pub(super) struct Unopened {
    pub(super) number: u64,
    pub(super) file: Arc<dyn File>,
    pub(super) length: u64,
    pub(super) header_whole: bool,
    /// Bytes of an opening that was cut short; to be zeroed.
    pub(super) garbage: Option<Range<usize>>,
}

/// What the disk holds.
pub(super) struct Recovered {
    pub(super) log_id: u64,
    pub(super) groups: BTreeMap<GroupId, GroupState<FoundSlot>>,
    /// From the oldest to the newest opened one.
    pub(super) segments: Vec<FoundSegment>,
    /// Numbers that are no longer part of the log.
    pub(super) leftovers: Vec<u64>,
    pub(super) unopened: Option<Unopened>,
    pub(super) tail: Tail,
}

pub(super) struct FoundSegment {
    pub(super) number: u64,
    pub(super) file: Arc<dyn File>,
    pub(super) length: u64,
}

/// Where and after what the log goes on.
pub(super) struct Tail {
    /// Number of the last batch.
    pub(super) batch: u64,
    /// Checksum of the last frame.
    pub(super) checksum: u32,
    /// The last frame's offset and bytes.
    pub(super) frame: (u64, Vec<u8>),
    /// Offset behind it.
    pub(super) offset: u64,
    pub(super) sealed: bool,
    /// Bytes behind it that are not zero: what a crash left of a batch.
    pub(super) garbage: Option<Range<usize>>,
}

/// Reads and verifies the log in `dir`. `numbers` are its segments in order, at least one.
pub(super) fn recover(
    fs: &dyn FileSystem,
    dir: &Path,
    log_id: u64,
    numbers: &[u64],
) -> Result<Recovered, OpenError> {
    let (newest, unopened) = find_newest(fs, dir, log_id, numbers)?;
    let oldest = oldest_recorded(&newest, log_id)?;
    if newest.number < oldest {
        return Err(newest.damaged(0, vec![], "it names an oldest segment that comes after it"));
    }
    for expected in oldest..=newest.number {
        if numbers.binary_search(&expected).is_err() {
            return Err(OpenError::Missing { segment: expected, oldest, newest: newest.number });
        }
    }

    let mut replay = Replay::default();
    let mut segments = Vec::new();
    let newest_number = newest.number;
    for number in oldest..newest_number {
        let image = read_image(fs, dir, number)?;
        let tail = scan(&image, log_id, &mut replay, false)?;
        debug_assert!(tail.sealed);
        segments.push(image.into_found());
    }
    let tail = scan(&newest, log_id, &mut replay, true)?;
    match &unopened {
        Some(next) if tail.sealed && !next.header_whole => {
            return Err(OpenError::Damaged {
                segment: next.number,
                offset: 0,
                groups: vec![],
                reason: "the segment's header is damaged",
            });
        }
        None if tail.sealed => {
            let segment = newest_number + 1;
            return Err(OpenError::Missing { segment, oldest, newest: segment });
        }
        Some(_) | None => {}
    }
    let groups = replay.finish(oldest)?;
    segments.push(newest.into_found());
    let leftovers = numbers.iter().copied().filter(|number| *number < oldest).collect();
    Ok(Recovered { log_id, groups, segments, leftovers, unopened, tail })
}

impl Image {
    fn into_found(self) -> FoundSegment {
        FoundSegment { number: self.number, length: self.bytes.len() as u64, file: self.file }
    }

    fn damaged(&self, offset: usize, groups: Vec<GroupId>, reason: &'static str) -> OpenError {
        OpenError::Damaged { segment: self.number, offset: offset as u64, groups, reason }
    }
}

fn read_image(fs: &dyn FileSystem, dir: &Path, number: u64) -> Result<Image, OpenError> {
    let path = path_of(dir, number);
    let read = || -> std::io::Result<_> {
        let file = fs.open(&path)?;
        let bytes = read_whole(&*file)?;
        Ok((file, bytes))
    };
    let (file, bytes) = read().map_err(|source| OpenError::Io { path: path.clone(), source })?;
    Ok(Image { number, file, bytes })
}

/// The newest segment that was opened, and the one prepared behind it if there is one.
fn find_newest(
    fs: &dyn FileSystem,
    dir: &Path,
    log_id: u64,
    numbers: &[u64],
) -> Result<(Image, Option<Unopened>), OpenError> {
    let mut unopened: Option<Unopened> = None;
    for number in numbers.iter().rev() {
        let image = read_image(fs, dir, *number)?;
        let header = check_header(&image.bytes, log_id, *number);
        if let Err(HeaderFault::Version(found)) = header {
            return Err(OpenError::Version { segment: *number, found });
        }
        if let Some(offset) = find_frame(&image, log_id, FIRST_FRAME) {
            if let Err(HeaderFault::Damaged(reason)) = header {
                return Err(image.damaged(0, vec![], reason));
            }
            if offset != FIRST_FRAME {
                let reason = "the segment's opening is damaged, and frames follow";
                return Err(image.damaged(FIRST_FRAME, groups_near(&image, offset), reason));
            }
            if let Some(next) = &unopened
                && next.number != number + 1
            {
                let (segment, newest) = (number + 1, next.number);
                return Err(OpenError::Missing { segment, oldest: *number, newest });
            }
            return Ok((image, unopened));
        }
        if unopened.is_some() {
            let reason = "the segment holds no frame, and another segment follows";
            return Err(image.damaged(FIRST_FRAME, vec![], reason));
        }
        unopened = Some(Unopened {
            number: *number,
            length: image.bytes.len() as u64,
            header_whole: header.is_ok(),
            garbage: non_zero(&image.bytes, FIRST_FRAME),
            file: image.file,
        });
    }
    Err(OpenError::Missing { segment: 1, oldest: 1, newest: 1 })
}

/// The offset of the first valid frame at or after `from`.
fn find_frame(image: &Image, log_id: u64, from: usize) -> Option<usize> {
    (from..image.bytes.len()).step_by(8).find(|offset| {
        let place = FramePlace { log_id, segment: image.number, offset: *offset as u64 };
        read_frame(&image.bytes, place).is_ok()
    })
}

/// The oldest segment of the log, by the newest record that says so.
fn oldest_recorded(newest: &Image, log_id: u64) -> Result<u64, OpenError> {
    let mut oldest = 0;
    let mut at = FIRST_FRAME;
    loop {
        let place = FramePlace { log_id, segment: newest.number, offset: at as u64 };
        let Ok(frame) = read_frame(&newest.bytes, place) else { break };
        let mut records = RecordReader::new(frame.payload);
        let damaged = |reason| newest.damaged(at, groups_near(newest, at), reason);
        while let Some(record) = records.record().map_err(damaged)? {
            match record {
                Record::Opening { oldest: named, groups } => {
                    for _ in 0..groups {
                        records.opening_group().map_err(damaged)?;
                    }
                    oldest = named;
                }
                Record::Oldest { oldest: named } => oldest = named,
                Record::Append { group, first, count, .. } => {
                    for index in (first..).take(usize::try_from(count).unwrap_or(usize::MAX)) {
                        records.entry(group, index).map_err(damaged)?;
                    }
                }
                Record::Truncate { .. }
                | Record::HardState { .. }
                | Record::Purge { .. }
                | Record::Drop { .. }
                | Record::Seal { .. }
                | Record::Marker => {}
            }
        }
        at = frame.end;
    }
    if let Some(offset) = find_frame(newest, log_id, at) {
        let reason = "a frame is damaged, and others follow";
        let mut groups = groups_near(newest, at);
        groups.extend(groups_near(newest, offset));
        groups.sort_unstable();
        groups.dedup();
        return Err(newest.damaged(at, groups, reason));
    }
    if oldest == 0 {
        return Err(newest.damaged(FIRST_FRAME, vec![], "the segment does not name the oldest"));
    }
    Ok(oldest)
}

/// Reads one segment's frames into the replay.
fn scan(
    image: &Image,
    log_id: u64,
    replay: &mut Replay,
    is_newest: bool,
) -> Result<Tail, OpenError> {
    if let Err(fault) = check_header(&image.bytes, log_id, image.number) {
        return Err(match fault {
            HeaderFault::Version(found) => OpenError::Version { segment: image.number, found },
            HeaderFault::Damaged(reason) => image.damaged(0, vec![], reason),
        });
    }
    let mut at = FIRST_FRAME;
    let mut last = FIRST_FRAME;
    while !replay.sealed() || at == FIRST_FRAME {
        let place = FramePlace { log_id, segment: image.number, offset: at as u64 };
        match read_frame(&image.bytes, place) {
            Ok(frame) => {
                replay.frame(image.number, at, &frame).map_err(|fault| {
                    let groups = match fault.group {
                        Some(group) => vec![group],
                        None => groups_near(image, at),
                    };
                    image.damaged(at, groups, fault.reason)
                })?;
                last = at;
                at = frame.end;
            }
            Err(_) if is_newest && FIRST_FRAME < at && find_frame(image, log_id, at).is_none() => {
                break;
            }
            Err(reason) => {
                let near = groups_near(image, at);
                let groups = if near.is_empty() { replay.groups() } else { near };
                return Err(image.damaged(at, groups, reason));
            }
        }
    }
    if replay.sealed() && find_frame(image, log_id, at).is_some() {
        return Err(image.damaged(at, vec![], "a frame follows the seal"));
    }
    let (batch, checksum) = replay.chain();
    Ok(Tail {
        batch,
        checksum,
        frame: (last as u64, image.bytes[last..at].to_vec()),
        offset: at as u64,
        sealed: replay.sealed(),
        garbage: non_zero(&image.bytes, at),
    })
}

/// The groups named in what may once have been the frame at `at`, as far as it can be read.
fn groups_near(image: &Image, at: usize) -> Vec<GroupId> {
    let Some(payload) = image.bytes.get(at + super::frame::FRAME_HEADER_BYTES..) else {
        return vec![];
    };
    let mut groups = Vec::new();
    let mut records = RecordReader::new(payload);
    while let Ok(Some(record)) = records.record() {
        match record {
            Record::Append { group, first, count, .. } => {
                groups.push(group);
                let count = usize::try_from(count).unwrap_or(usize::MAX);
                if (first..).take(count).any(|index| records.entry(group, index).is_err()) {
                    break;
                }
            }
            Record::Truncate { group, .. }
            | Record::HardState { group, .. }
            | Record::Purge { group, .. }
            | Record::Drop { group } => groups.push(group),
            Record::Opening { groups: count, .. } => {
                for _ in 0..count {
                    let Ok((group, _)) = records.opening_group() else { break };
                    groups.push(group);
                }
            }
            Record::Seal { .. } | Record::Oldest { .. } | Record::Marker => {}
        }
    }
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// The range from `from` to behind the last byte that is not zero.
fn non_zero(bytes: &[u8], from: usize) -> Option<Range<usize>> {
    let rest = bytes.get(from..)?;
    let last = rest.iter().rposition(|byte| *byte != 0)?;
    Some(from..from + last + 1)
}
