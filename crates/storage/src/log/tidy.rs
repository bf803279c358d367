//! Makes a log's directory fit to be written to: creates a new log, or ends what a crash cut short.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::frame::{FramePlace, FrameWriter};
use super::recovery::{FoundSegment, Recovered, Tail, Unopened};
use super::segment::{
    DOUBT_NAME, HEADER_LENGTH, IDENTITY_NAME, SEGMENT_HEADER_BYTES, SPARE_NAME, USELESS_SUFFIX,
    header, identity, log_id_of, name_of, number_of, path_of, read_identity, read_whole,
};
use super::{Damage, OpenError, OpenReport};
use crate::fs::{File, FileSystem};

/// Number of a log's first segment.
const FIRST: u64 = 1;

/// A file that is no part of the log any more, under the name for that.
pub(super) struct Spare {
    pub(super) file: Arc<dyn File>,
    pub(super) length: u64,
}

/// What is in a log's directory.
pub(super) enum Existing {
    /// No log, or one whose creation was cut short.
    None,
    /// A log with this id; `identity_damaged` if its segments had to say so.
    Log { log_id: u64, identity_damaged: bool },
    /// The file that names it, and no segment.
    Emptied,
}

/// Finds out whose log it is.
pub(super) fn existing(
    fs: &dyn FileSystem,
    dir: &Path,
    names: &[String],
    numbers: &[u64],
) -> Result<Existing, OpenError> {
    let path = dir.join(IDENTITY_NAME);
    let failed = |source| OpenError::Io { path: path.clone(), source };
    let is_named = names.iter().any(|name| name == IDENTITY_NAME);
    if numbers.is_empty() {
        return Ok(if is_named { Existing::Emptied } else { Existing::None });
    }
    if is_named {
        let file = fs.open(&path).map_err(failed)?;
        if let Some(log_id) = read_identity(&*file).map_err(failed)? {
            return Ok(Existing::Log { log_id, identity_damaged: false });
        }
    }
    let mut ids = BTreeSet::new();
    for number in numbers {
        let path = path_of(dir, *number);
        let read = || -> io::Result<_> {
            let file = fs.open(&path)?;
            let mut bytes = [0; HEADER_LENGTH];
            let whole = HEADER_LENGTH as u64 <= file.length()?;
            Ok(if whole { file.read_at(&mut bytes, 0).ok().map(|()| bytes) } else { None })
        };
        let header = read().map_err(|source| OpenError::Io { path: path.clone(), source })?;
        ids.extend(header.as_ref().and_then(|header| log_id_of(header)));
    }
    if numbers == [FIRST] && !was_used(fs, dir)? {
        return Ok(Existing::None);
    }
    match ids.first() {
        Some(log_id) if ids.len() == 1 => {
            Ok(Existing::Log { log_id: *log_id, identity_damaged: true })
        }
        Some(_) | None => Err(OpenError::Identity),
    }
}

/// Whether the first segment holds more than its opening. Creation makes it before the identity, so
/// one that does not was never used.
fn was_used(fs: &dyn FileSystem, dir: &Path) -> Result<bool, OpenError> {
    let path = path_of(dir, FIRST);
    let read = || read_whole(&*fs.open(&path)?);
    let bytes = read().map_err(|source| OpenError::Io { path: path.clone(), source })?;
    let used = bytes.get(fresh_opening(0).0.len()..).unwrap_or_default();
    Ok(used.iter().any(|byte| *byte != 0))
}

/// Notes that groups of which the log knows nothing may have been in it, until somebody who knows
/// the groups has been told. Durable before anything else of the log is changed.
pub(super) fn note_doubt(fs: &dyn FileSystem, dir: &Path) -> Result<(), OpenError> {
    let path = dir.join(DOUBT_NAME);
    let noted = fs.create(&path, 0).and_then(|_| fs.sync_dir(dir));
    noted.map_err(|source| OpenError::Io { path, source })
}

/// Puts segments aside that hold nothing that can be read, and begins a new log.
pub(super) fn begin_again(
    fs: &dyn FileSystem,
    dir: &Path,
    names: &[String],
    numbers: &[u64],
    length: u64,
) -> Result<Recovered, OpenError> {
    for number in numbers {
        let path = path_of(dir, *number);
        let aside = dir.join(name_of(*number) + USELESS_SUFFIX);
        fs.rename(&path, &aside).map_err(|source| OpenError::Io { path, source })?;
    }
    fs.sync_dir(dir).map_err(|source| OpenError::Io { path: dir.to_owned(), source })?;
    let left: Vec<String> =
        names.iter().filter(|name| number_of(name).is_none()).cloned().collect();
    let mut recovered = create(fs, dir, &left, length)?;
    let reason = "no segment of the log is left that can be read";
    recovered.report.damages.push(Damage { segment: 0, offset: 0, groups: vec![], reason });
    recovered.report.unknown_groups_may_be_lost = true;
    Ok(recovered)
}

/// Header and opening of a new log's first segment, and the opening's checksum.
fn fresh_opening(log_id: u64) -> (Vec<u8>, u32) {
    let mut frame = FrameWriter::default();
    frame.begin();
    frame.opening(FIRST, 0);
    let place = FramePlace { log_id, segment: FIRST, offset: SEGMENT_HEADER_BYTES };
    let (bytes, checksum) = frame.finish(place, 1, 0);
    let mut whole = vec![0; HEADER_LENGTH];
    whole.extend_from_slice(bytes);
    (whole, checksum)
}

/// Creates a log and returns it as if it had been recovered.
pub(super) fn create(
    fs: &dyn FileSystem,
    dir: &Path,
    names: &[String],
    length: u64,
) -> Result<Recovered, OpenError> {
    let make = || -> io::Result<Recovered> {
        for name in [IDENTITY_NAME.to_owned(), name_of(FIRST)] {
            if names.contains(&name) {
                fs.remove(&dir.join(name))?;
                // Or a crash may leave the old identity beside the new segment.
                fs.sync_dir(dir)?;
            }
        }
        let log_id = fs.unique_id()?;
        let file = fs.create(&path_of(dir, FIRST), length)?;
        let (mut bytes, checksum) = fresh_opening(log_id);
        bytes[..HEADER_LENGTH].copy_from_slice(&header(log_id, FIRST, length));
        file.write_at(&bytes, 0)?;
        file.sync_data()?;
        fs.sync_dir(dir)?;
        let mark = identity(log_id);
        let identity_file = fs.create(&dir.join(IDENTITY_NAME), mark.len() as u64)?;
        identity_file.write_at(&mark, 0)?;
        identity_file.sync_data()?;
        fs.sync_dir(dir)?;
        let offset = bytes.len() as u64;
        Ok(Recovered {
            log_id,
            groups: std::collections::BTreeMap::new(),
            segments: vec![FoundSegment { number: FIRST, file, length, header_damaged: false }],
            leftovers: vec![],
            unopened: None,
            number_next: FIRST + 1,
            identity_damaged: false,
            report: OpenReport::default(),
            tail: Tail {
                segment: FIRST,
                batch: 1,
                checksum,
                frame: (SEGMENT_HEADER_BYTES, bytes[HEADER_LENGTH..].to_vec()),
                offset,
                sealed: false,
            },
        })
    };
    make().map_err(|source| OpenError::Io { path: dir.to_owned(), source })
}

/// Ends what a crash cut short, and makes durable what was read. Returns the prepared segment.
pub(super) fn tidy(
    fs: &dyn FileSystem,
    dir: &Path,
    recovered: &mut Recovered,
) -> Result<Option<Unopened>, OpenError> {
    let unopened = recovered.unopened.take();
    let work = || -> io::Result<Option<Unopened>> {
        // What was written last may be here by the grace of the page cache only, its fsync having
        // failed: it is written again, so that this fsync counts.
        let path = dir.join(IDENTITY_NAME);
        let mark = identity(recovered.log_id);
        if recovered.identity_damaged {
            remove_if_there(fs, &path)?;
            fs.create(&path, mark.len() as u64)?;
        }
        let identity_file = fs.open(&path)?;
        identity_file.write_at(&mark, 0)?;
        identity_file.sync_data()?;
        for found in recovered.segments.iter().filter(|found| found.header_damaged) {
            found.file.write_at(&header(recovered.log_id, found.number, found.length), 0)?;
            found.file.sync_data()?;
        }
        let tail = &recovered.tail;
        let newest = recovered.segments.iter().find(|found| found.number == tail.segment);
        if let Some(newest) = newest {
            newest.file.write_at(&tail.frame.1, tail.frame.0)?;
            newest.file.sync_data()?;
        }
        let kept = match unopened {
            Some(next) if next.header_whole => {
                next.file.write_at(&header(recovered.log_id, next.number, next.length), 0)?;
                next.file.sync_data()?;
                Some(next)
            }
            Some(next) => {
                fs.remove(&path_of(dir, next.number))?;
                None
            }
            None => None,
        };
        for number in &recovered.leftovers {
            fs.remove(&path_of(dir, *number))?;
        }
        remove_if_there(fs, &dir.join(SPARE_NAME))?;
        fs.sync_dir(dir)?;
        Ok(kept)
    };
    work().map_err(|source| OpenError::Io { path: dir.to_owned(), source })
}

/// Makes the next segment of one that is no part of the log any more: its blocks are written already,
/// so that a sync has no more to do than to write. Its old frames are of another segment, which their
/// checksums say. The header is the new one's before the name is: whatever a crash leaves under a
/// segment's name is that segment.
///
/// # Errors
/// The disk's. Either name may be there afterwards.
pub(super) fn recycle(
    fs: &dyn FileSystem,
    dir: &Path,
    log_id: u64,
    number: u64,
    spare: Spare,
) -> io::Result<Arc<dyn File>> {
    spare.file.write_at(&header(log_id, number, spare.length), 0)?;
    spare.file.sync_data()?;
    fs.rename(&dir.join(SPARE_NAME), &path_of(dir, number))?;
    fs.sync_dir(dir)?;
    Ok(spare.file)
}

/// Creates and prepares a segment, so that a later switch to it needs no space.
///
/// # Errors
/// Space, mostly. The name may be there afterwards; [`remove_failed`] sees to it.
pub(super) fn prepare(
    fs: &dyn FileSystem,
    dir: &Path,
    log_id: u64,
    number: u64,
    length: u64,
) -> io::Result<Arc<dyn File>> {
    let file = fs.create(&path_of(dir, number), length)?;
    file.write_at(&header(log_id, number, length), 0)?;
    file.sync_data()?;
    fs.sync_dir(dir)?;
    Ok(file)
}

/// Removes a segment whose preparation failed.
pub(super) fn remove_failed(fs: &dyn FileSystem, dir: &Path, number: u64) -> io::Result<()> {
    remove_if_there(fs, &path_of(dir, number))
}

pub(super) fn remove_if_there(fs: &dyn FileSystem, path: &Path) -> io::Result<()> {
    match fs.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
