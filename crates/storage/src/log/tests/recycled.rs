//! Segments that are made of old ones: what stood in them before is no part of them.

use super::*;
use crate::log::frame::{FramePlace, read_frame};
use crate::log::segment::{SPARE_NAME, path_of, read_identity};

const BUSY: GroupId = group(2);

/// Writes entries of one length, so that frames of different segments lie at the same offsets, and
/// keeps the last ten.
fn churn(log: &SegmentedLog, indexes: std::ops::Range<u64>) {
    for index in indexes {
        write(log, append(BUSY, 1, index..index + 1, 300)).unwrap();
        if index % 5 == 4 && 10 < index {
            write(log, LogWrite::Purge { group: BUSY, up_to: at(1, index - 10) }).unwrap();
        }
    }
}

fn recycled(fs: &MemoryFs) -> usize {
    // A trace names what is renamed, not to what.
    fs.trace().iter().filter(|call| call.contains("rename") && call.contains("spare")).count()
}

/// The newest segment's path and bytes, and the offsets of its frames.
fn newest(fs: &MemoryFs) -> (std::path::PathBuf, Vec<u8>, Vec<usize>) {
    use crate::fs::FileSystem as _;
    let dir = Path::new(DIR);
    let log_id = read_identity(&*fs.open(&dir.join("identity")).unwrap()).unwrap().unwrap();
    for name in segments(fs).iter().rev() {
        let number = crate::log::segment::number_of(name).unwrap();
        let path = path_of(dir, number);
        let bytes = fs.bytes(&path).unwrap();
        let mut frames = Vec::new();
        let mut offset = crate::log::segment::HEADER_LENGTH;
        while let Ok(frame) =
            read_frame(&bytes, FramePlace { log_id, segment: number, offset: offset as u64 })
        {
            frames.push(offset);
            offset = frame.end;
        }
        if !frames.is_empty() {
            frames.push(offset);
            return (path, bytes, frames);
        }
    }
    panic!("no segment holds a frame");
}

#[test]
fn old_frames_behind_the_newest_are_not_taken_for_it() {
    let fs = MemoryFs::new();
    fs.keep_trace();
    let log = open(&fs, small()).unwrap();
    let mut last = 0;
    let mut met_old_frames = 0;
    for end in 200..260 {
        churn(&log, last..end);
        last = end;
        let (_, bytes, frames) = newest(&fs);
        let behind = *frames.last().unwrap();
        met_old_frames += usize::from(bytes.get(behind + 4..behind + 8) == Some(&b"AHfr"[..]));
        for found in [fs.after_kill(), fs.after_crash(end)] {
            let log = open(&found, small()).unwrap();
            assert_eq!(*log.report(), OpenReport::default());
            let entries = read_all(&log, BUSY);
            assert_eq!(entries.last().unwrap(), &entry(BUSY, 1, end - 1, 300));
            assert!((10..20).contains(&entries.len()), "{}", entries.len());
            // It goes on over them.
            write(&log, append(BUSY, 1, end..end + 1, 40)).unwrap();
            drop(log);
            let log = open(&found.after_kill(), small()).unwrap();
            assert_eq!(read_all(&log, BUSY).last().unwrap(), &entry(BUSY, 1, end, 40));
        }
    }
    assert!(20 < recycled(&fs) && 10 < met_old_frames, "{} {met_old_frames}", recycled(&fs));
}

#[test]
fn damage_in_front_of_old_frames_is_told_from_a_torn_end() {
    let fs = MemoryFs::new();
    let log = open(&fs, small()).unwrap();
    let mut end = 200;
    churn(&log, 0..end);
    // Three frames at least, and old ones behind them.
    while newest(&fs).2.len() < 5 {
        churn(&log, end..end + 1);
        end += 1;
    }
    drop(log);
    let (path, _, frames) = newest(&fs);
    let behind = *frames.last().unwrap();
    let is_old = fs.bytes(&path).unwrap()[behind..].windows(4).any(|found| found == b"AHfr");
    assert!(is_old, "no old frame stands behind the newest");
    let [.., before, last, _] = frames[..] else { panic!("{frames:?}") };
    let hurt = fs.after_kill();
    hurt.flip(&path, before + 30, 1).unwrap();
    let log = open(&hurt, small()).unwrap();
    assert_ne!(*log.report(), OpenReport::default(), "a frame in the middle is lost");
    drop(log);
    // The last one may be one that a crash cut short.
    let torn = fs.after_kill();
    torn.flip(&path, last + 30, 1).unwrap();
    let log = open(&torn, small()).unwrap();
    assert_eq!(*log.report(), OpenReport::default());
}

/// Where a disk has lost something once, nothing is written again by a later process.
#[test]
fn segments_of_an_earlier_start_are_removed_and_not_used_again() {
    let fs = MemoryFs::new();
    drop({
        let log = open(&fs, small()).unwrap();
        for index in 0..60 {
            write(&log, append(BUSY, 1, index..index + 1, 300)).unwrap();
        }
        log
    });
    let fs = fs.after_kill();
    let before = segments(&fs).len();
    let log = open(&fs, small()).unwrap();
    fs.keep_trace();
    write(&log, LogWrite::Purge { group: BUSY, up_to: at(1, 58) }).unwrap();
    // The frames behind it say which segment is the oldest now, and what is older goes.
    write(&log, append(BUSY, 1, 60..61, 30)).unwrap();
    write(&log, append(BUSY, 1, 61..62, 30)).unwrap();
    log.close();
    assert!(3 < before && segments(&fs).len() <= 2, "{before} {:?}", segments(&fs));
    assert!(!fs.trace().iter().any(|call| call.contains("rename")), "{:?}", fs.trace());
}

#[test]
fn a_spare_that_a_crash_left_is_removed() {
    use crate::fs::FileSystem as _;
    let fs = MemoryFs::new();
    let log = open(&fs, small()).unwrap();
    let has_spare =
        |fs: &MemoryFs| fs.list(Path::new(DIR)).unwrap().iter().any(|name| name == SPARE_NAME);
    let mut index = 0;
    while !has_spare(&fs) {
        churn(&log, index..index + 1);
        index += 1;
        assert!(index < 1_000, "no segment is ever spared");
    }
    let left = fs.after_crash(1);
    assert!(has_spare(&left));
    let log = open(&left, small()).unwrap();
    assert!(!has_spare(&left));
    assert_eq!(read_all(&log, BUSY).last().unwrap(), &entry(BUSY, 1, index - 1, 300));
}
