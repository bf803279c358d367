//! Reads the whole log at start, verifies all of it, and says what it holds.
//!
//! One kind of damage is forgiven: a bad frame at the end of the newest segment with nothing valid
//! behind it. That is what a crash leaves, and nobody was told that such a frame is durable.
//! Everything else that a disk can do to files (damaged bytes, sectors that cannot be read, files
//! that are shorter than they were made or are not there) is kept to the groups that it may
//! concern, which are then marked as [`Lost`](crate::log_store::Lost). What no disk does (frames
//! that do not follow each other, files of another log) is an [`OpenError`] that names the place.
//! The log never opens with less than was acknowledged and says nothing.
//!
//! Not here: changing the disk. That is [`super::tidy`], once all is read.

mod doubt;
mod image;
mod replay;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use self::image::{End, Image, find_end, find_frame, groups_near, is_torn, read_image};
pub(super) use self::replay::{FoundSlot, carry};
use self::replay::{Replay, Replayed};
use super::frame::{Frame, FramePlace, Record, RecordReader, read_frame};
use super::group::GroupState;
use super::segment::{HEADER_LENGTH, HeaderFault, path_of};
use super::{Damage, OpenError, OpenReport};
use crate::fs::{File, FileSystem};
use crate::log_store::GroupId;

const FIRST_FRAME: usize = HEADER_LENGTH;
/// What a segment that is not there counts for, at least, where room for entries is bounded.
const MISSING_BYTES_MIN: u64 = 64 << 20;

/// A segment without a frame: prepared, and never or not durably opened.
pub(super) struct Unopened {
    pub(super) number: u64,
    pub(super) file: Arc<dyn File>,
    pub(super) length: u64,
    pub(super) header_whole: bool,
}

/// What the disk holds.
pub(super) struct Recovered {
    pub(super) log_id: u64,
    pub(super) groups: BTreeMap<GroupId, GroupState<FoundSlot>>,
    /// From the oldest to the newest opened one, and what cannot be read behind it.
    pub(super) segments: Vec<FoundSegment>,
    /// Numbers that are no longer part of the log.
    pub(super) leftovers: Vec<u64>,
    pub(super) unopened: Option<Unopened>,
    pub(super) tail: Tail,
    /// The number of the next segment that is made.
    pub(super) number_next: u64,
    /// Whether the file that names the log is to be made again.
    pub(super) identity_damaged: bool,
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
    /// The newest segment that holds a frame.
    pub(super) segment: u64,
    /// Number of the last batch.
    pub(super) batch: u64,
    /// Checksum of the last frame.
    pub(super) checksum: u32,
    /// The last frame's offset and bytes.
    pub(super) frame: (u64, Vec<u8>),
    /// Offset behind it.
    pub(super) offset: u64,
    /// Whether nothing may follow it in its segment.
    pub(super) sealed: bool,
}

/// Reads and verifies the log in `dir`. `numbers` are its segments in order. `None` if none of them
/// holds anything that can be read.
pub(super) fn recover(
    fs: &dyn FileSystem,
    dir: &Path,
    log_id: u64,
    numbers: &[u64],
) -> Result<Option<Recovered>, OpenError> {
    let Some(End { newest, behind }) = find_end(fs, dir, log_id, numbers)? else {
        return Ok(None);
    };
    let oldest = oldest_recorded(&newest, log_id, numbers)?;
    if newest.number < oldest {
        return Err(newest.damaged(0, vec![], "it names an oldest segment that comes after it"));
    }
    let lengths = lengths(fs, dir, oldest..=newest.number, numbers)?;
    let mut replay = Replay::new(lengths.total);
    let mut segments = Vec::new();
    let newest_number = newest.number;
    for number in oldest..newest_number {
        if numbers.binary_search(&number).is_err() {
            replay.lose(number, 0, lengths.missing, "the segment is not there");
            continue;
        }
        let image = read_image(fs, dir, log_id, number)?;
        let header_damaged = note_header(&image, &mut replay);
        scan(&image, log_id, &mut replay, false)?;
        segments.push(image.into_found(header_damaged));
    }
    let header_damaged = note_header(&newest, &mut replay);
    let mut tail = scan(&newest, log_id, &mut replay, true)?;
    segments.push(newest.into_found(header_damaged));
    let (unopened, unreadable) = judge_end(behind, &mut tail, lengths.missing, &mut replay);
    let last_used = unreadable.last().map(|image| image.number);
    let last_used = last_used.max(unopened.as_ref().filter(|u| u.header_whole).map(|u| u.number));
    // A sealed segment has had a successor.
    let last_used = last_used.unwrap_or(0).max(newest_number + u64::from(tail.sealed));
    segments.extend(unreadable.into_iter().map(|image| image.into_found(false)));
    let Replayed { groups, report } = replay.finish(oldest)?;
    let leftovers = numbers.iter().copied().filter(|number| *number < oldest).collect();
    Ok(Some(Recovered {
        log_id,
        groups,
        segments,
        leftovers,
        unopened,
        tail,
        number_next: last_used + 1,
        identity_damaged: false,
        report,
    }))
}

/// Tells a segment that was prepared from what is left of segments that were written to, in the
/// files behind the newest one that holds a frame. In the latter case the end of the log is lost.
fn judge_end(
    mut behind: Vec<Image>,
    tail: &mut Tail,
    missing_bytes: u64,
    replay: &mut Replay,
) -> (Option<Unopened>, Vec<Image>) {
    let next = tail.segment + 1;
    let last_is_whole = behind.last().is_some_and(Image::is_prepared);
    let as_usual = match &behind[..] {
        // A seal is written only once its successor is prepared.
        [] => !replay.sealed(),
        [only] => only.number == next && (last_is_whole || !replay.sealed()),
        [..] => false,
    };
    let last = if last_is_whole || as_usual { behind.pop() } else { None };
    if !as_usual {
        let at = behind.first().map_or(next, |image| image.number);
        replay.lose(
            at,
            0,
            missing_bytes,
            "a segment that was written to is not there or unreadable",
        );
        tail.sealed = true;
    }
    (last.map(Image::into_unopened), behind)
}

struct Lengths {
    /// Bytes of all segments.
    total: u64,
    /// What each one that is not there counts for.
    missing: u64,
}

fn lengths(
    fs: &dyn FileSystem,
    dir: &Path,
    expected: std::ops::RangeInclusive<u64>,
    numbers: &[u64],
) -> Result<Lengths, OpenError> {
    let count = expected.end() - expected.start() + 1;
    let (mut total, mut missing, mut there) = (0, MISSING_BYTES_MIN, 0);
    for number in numbers.iter().filter(|number| expected.contains(number)) {
        let path = path_of(dir, *number);
        let length = fs.open(&path).and_then(|file| file.length());
        let length = length.map_err(|source| OpenError::Io { path, source })?;
        total += length;
        missing = missing.max(length);
        there += 1;
    }
    // The last one may have had successors that are not there either.
    Ok(Lengths { total: total + missing.saturating_mul(count - there + 1), missing })
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

/// Notes what is wrong with a segment's header. Returns whether it is to be written again: it holds
/// nothing that the segment's name, length and frames do not say.
fn note_header(image: &Image, replay: &mut Replay) -> bool {
    let (reason, again) = match image.header {
        // It is only of another day: what it says holds.
        Err(HeaderFault::Older) => return true,
        // Others do not come as far as this.
        Ok(()) | Err(HeaderFault::Version(_) | HeaderFault::Foreign) => return false,
        Err(HeaderFault::Unreadable) => {
            let has_room = HEADER_LENGTH <= image.bytes.len();
            ("the segment's header is damaged; its frames are not", has_room)
        }
        // It goes on saying how long the file was.
        Err(HeaderFault::Cut(_)) => ("the file is shorter than it was made", false),
    };
    replay.note(Damage { segment: image.number, offset: 0, groups: vec![], reason });
    again
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
                None if is_newest => break,
                None => {
                    // The next segment's opening says what is there.
                    replay.lose(image.number, at as u64, image.bytes_from(at), reason);
                    break;
                }
            },
        }
    }
    if replay.sealed() && find_frame(image, log_id, at).is_some() {
        return Err(image.damaged(at, vec![], "a frame follows the seal"));
    }
    let is_sealed = replay.sealed();
    let mut sealed = is_sealed;
    if let Some(reason) = image.gap_behind(at).filter(|_| is_newest && !is_sealed) {
        // No crash does that: what is not here may have been acknowledged.
        replay.lose(image.number, at as u64, image.bytes_from(at), reason);
        sealed = true;
    }
    let (batch, checksum) = replay.chain();
    Ok(Tail {
        segment: image.number,
        batch,
        checksum,
        frame: (last as u64, image.bytes.get(last..at).unwrap_or_default().to_vec()),
        offset: at as u64,
        sealed,
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
