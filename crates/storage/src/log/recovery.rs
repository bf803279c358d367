//! Reads the whole log at start, verifies all of it, and says what it holds.
//!
//! One kind of damage is forgiven: a bad frame at the end of the newest segment with nothing valid
//! behind it. That is what a crash leaves, and nobody was told that such a frame is durable.
//! Damage inside a segment is kept to the groups that it concerns, which are then marked as
//! [`Lost`](crate::log_store::Lost). Everything else (a missing or cut file, frames that do not
//! follow each other) is an [`OpenError`] that names the place: the log never opens with less than
//! was acknowledged and says nothing.
//!
//! Not here: changing the disk. That is [`super::tidy`], once all is read.

mod doubt;
mod replay;

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::path::Path;
use std::sync::Arc;

pub(super) use self::replay::{FoundSlot, carry};
use self::replay::{Replay, Replayed};
use super::frame::{Frame, FramePlace, Record, RecordReader, read_frame};
use super::group::GroupState;
use super::segment::{HEADER_LENGTH, HeaderFault, check_header, path_of, read_whole};
use super::{Damage, OpenError, OpenReport};
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
    pub(super) report: OpenReport,
}

pub(super) struct FoundSegment {
    pub(super) number: u64,
    pub(super) file: Arc<dyn File>,
    pub(super) length: u64,
    /// Whether its header is to be written again.
    pub(super) header_damaged: bool,
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
    let oldest = oldest_recorded(&newest, log_id, numbers)?;
    if newest.number < oldest {
        return Err(newest.damaged(0, vec![], "it names an oldest segment that comes after it"));
    }
    for expected in oldest..=newest.number {
        if numbers.binary_search(&expected).is_err() {
            return Err(OpenError::Missing { segment: expected, oldest, newest: newest.number });
        }
    }

    let mut replay = Replay::new(total_length(fs, dir, oldest..=newest.number)?);
    let mut segments = Vec::new();
    let newest_number = newest.number;
    for number in oldest..newest_number {
        let image = read_image(fs, dir, number)?;
        let header_damaged = header_is_damaged(&image, log_id, &mut replay)?;
        scan(&image, log_id, &mut replay, false)?;
        segments.push(image.into_found(header_damaged));
    }
    let header_damaged = header_is_damaged(&newest, log_id, &mut replay)?;
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
    let Replayed { groups, report } = replay.finish(oldest)?;
    segments.push(newest.into_found(header_damaged));
    let leftovers = numbers.iter().copied().filter(|number| *number < oldest).collect();
    Ok(Recovered { log_id, groups, segments, leftovers, unopened, tail, report })
}

/// Bytes of all these segments.
fn total_length(
    fs: &dyn FileSystem,
    dir: &Path,
    numbers: RangeInclusive<u64>,
) -> Result<u64, OpenError> {
    let length = |number| {
        let path = path_of(dir, number);
        let length = fs.open(&path).and_then(|file| file.length());
        length.map_err(|source| OpenError::Io { path, source })
    };
    numbers.map(length).sum()
}

impl Image {
    fn into_found(self, header_damaged: bool) -> FoundSegment {
        let length = self.bytes.len() as u64;
        FoundSegment { number: self.number, length, file: self.file, header_damaged }
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
        if is_opened(&image, log_id) {
            if let Err(HeaderFault::Damaged(reason)) = header {
                return Err(image.damaged(0, vec![], reason));
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

/// Whether a segment was opened: it holds a frame, and not only one that was cut short.
fn is_opened(image: &Image, log_id: u64) -> bool {
    let Some(offset) = find_frame(image, log_id, FIRST_FRAME) else { return false };
    let place = FramePlace { log_id, segment: image.number, offset: offset as u64 };
    read_frame(&image.bytes, place).is_ok_and(|frame| !is_torn(image, log_id, &frame))
}

/// Whether a frame was cut short between its structure and its contents: it is the last one, and
/// nothing in it counts.
fn is_torn(image: &Image, log_id: u64, frame: &Frame<'_>) -> bool {
    !frame.is_whole() && find_frame(image, log_id, frame.end).is_none()
}

/// The offset of the first valid frame at or after `from`.
fn find_frame(image: &Image, log_id: u64, from: usize) -> Option<usize> {
    (from..image.bytes.len()).step_by(8).find(|offset| {
        let place = FramePlace { log_id, segment: image.number, offset: *offset as u64 };
        read_frame(&image.bytes, place).is_ok()
    })
}

/// The oldest segment of the log, by the newest record that says so. Where frames are lost, that
/// record may be among them: then the files that follow each other up to the newest count too.
fn oldest_recorded(newest: &Image, log_id: u64, numbers: &[u64]) -> Result<u64, OpenError> {
    let mut oldest = 0;
    let mut lost = false;
    let mut at = FIRST_FRAME;
    loop {
        let place = FramePlace { log_id, segment: newest.number, offset: at as u64 };
        let Ok(frame) = read_frame(&newest.bytes, place) else {
            let Some(next) = find_frame(newest, log_id, at + 8) else { break };
            at = next;
            lost = true;
            continue;
        };
        if is_torn(newest, log_id, &frame) {
            break;
        }
        let mut records = RecordReader::new(frame.payload);
        let damaged = |reason| newest.damaged(at, groups_near(newest, at), reason);
        while let Some(record) = records.record().map_err(damaged)? {
            match record {
                Record::Opening { oldest: named, .. } | Record::Oldest { oldest: named } => {
                    oldest = named;
                }
                Record::Append { .. }
                | Record::Copy { .. }
                | Record::Truncate { .. }
                | Record::HardState { .. }
                | Record::Purge { .. }
                | Record::Drop { .. }
                | Record::Seal { .. }
                | Record::Marker
                | Record::Echo { .. }
                | Record::Lost { .. } => {}
            }
            records.skip(&record).map_err(damaged)?;
        }
        at = frame.end;
    }
    let consecutive = || {
        let below = numbers.iter().rev().skip_while(|number| newest.number < **number);
        let run = below.zip((0..=newest.number).rev()).take_while(|(found, next)| *found == next);
        run.last().map_or(newest.number, |(_, number)| number)
    };
    if lost {
        return Ok(oldest.max(consecutive()));
    }
    if oldest == 0 {
        return Err(newest.damaged(FIRST_FRAME, vec![], "the segment does not name the oldest"));
    }
    Ok(oldest)
}

/// Whether a segment's header is to be written again. It holds nothing that the segment's name,
/// length and frames do not say.
fn header_is_damaged(image: &Image, log_id: u64, replay: &mut Replay) -> Result<bool, OpenError> {
    match check_header(&image.bytes, log_id, image.number) {
        Ok(()) => Ok(false),
        Err(HeaderFault::Version(found)) => {
            Err(OpenError::Version { segment: image.number, found })
        }
        Err(HeaderFault::Damaged(reason)) => Err(image.damaged(0, vec![], reason)),
        Err(HeaderFault::Unreadable) => {
            let reason = "the segment's header is damaged; its frames are not";
            let damage = Damage { segment: image.number, offset: 0, groups: vec![], reason };
            replay.note(damage);
            Ok(true)
        }
    }
}

/// Reads one segment's frames into the replay.
fn scan(
    image: &Image,
    log_id: u64,
    replay: &mut Replay,
    is_newest: bool,
) -> Result<Tail, OpenError> {
    let mut at = FIRST_FRAME;
    let mut last = FIRST_FRAME;
    while !replay.sealed() || last == FIRST_FRAME && at == FIRST_FRAME {
        let place = FramePlace { log_id, segment: image.number, offset: at as u64 };
        let frame = read_frame(&image.bytes, place);
        let next = |from| find_frame(image, log_id, from);
        match frame {
            // Only the last frame can be half written, contents and all.
            Ok(frame) if is_newest && is_torn(image, log_id, &frame) => break,
            Ok(frame) => {
                take(image, at, &frame, replay)?;
                last = at;
                at = frame.end;
            }
            Err(reason) => match next(at + 8) {
                Some(next) => {
                    replay.lose(image.number, at as u64, (next - at) as u64, reason);
                    at = next;
                }
                None if is_newest && FIRST_FRAME < at => break,
                None if FIRST_FRAME < at => {
                    // The next segment's opening says what is there.
                    replay.lose(image.number, at as u64, (image.bytes.len() - at) as u64, reason);
                    break;
                }
                None => {
                    let reason = "no frame of the segment can be read";
                    return Err(image.damaged(at, vec![], reason));
                }
            },
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

fn take(image: &Image, at: usize, frame: &Frame<'_>, replay: &mut Replay) -> Result<(), OpenError> {
    replay.frame(image.number, at, frame).map_err(|fault| {
        let groups = match fault.group {
            Some(group) => vec![group],
            None => groups_near(image, at),
        };
        image.damaged(at, groups, fault.reason)
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

/// The range from `from` to behind the last byte that is not zero.
fn non_zero(bytes: &[u8], from: usize) -> Option<Range<usize>> {
    let rest = bytes.get(from..)?;
    let last = rest.iter().rposition(|byte| *byte != 0)?;
    Some(from..from + last + 1)
}
