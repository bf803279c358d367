//! The first pass over a file: finds every bad row before anything is written.

use std::io::Read;

use anchorhold_model::Pose;
use anchorhold_proto::convert::AnchorDraft;
use anyhow::Context as _;
use sha2::{Digest, Sha256};

use crate::import::Source;
use crate::import::rows;

/// What the first pass found.
pub(crate) struct Scan {
    /// SHA-256 of the contents and of the mapping.
    pub(crate) digest: [u8; 32],
    /// Good rows.
    pub(crate) rows: u64,
    /// Bad rows.
    pub(crate) bad_rows: u64,
    /// The first of them, with line and problem.
    pub(crate) bad: Vec<(u64, String)>,
    /// Poses drawn evenly from the whole file.
    pub(crate) sample: Vec<Pose>,
}

/// Bad rows kept, at most.
const BAD_KEPT_MAX: usize = 100;
/// Poses in a sample, at most.
const SAMPLE_MAX: usize = 20_000;

/// Reads a source to its end.
///
/// # Errors
/// If it cannot be read or is not of its format.
pub(crate) fn scan(source: &Source) -> anyhow::Result<Scan> {
    let in_file = || format!("cannot import {}", source.name);
    let input = (source.open)().with_context(in_file)?;
    // The reader owns the input, so the digest is reached through a shared cell.
    let hasher = std::sync::Arc::new(std::sync::Mutex::new(Sha256::new()));
    let input = Hashed { input, hasher: hasher.clone() };
    let mut sample = Sample { poses: Vec::new(), stride: 1, seen: 0 };
    let (mut rows, mut bad_rows, mut bad) = (0, 0, Vec::new());
    for row in rows::read(source.format, input, &source.mapping).with_context(in_file)? {
        let row = row.with_context(in_file)?;
        // The same checks that a node makes.
        let draft = row
            .anchor
            .and_then(|anchor| AnchorDraft::from_wire(anchor).map_err(|error| error.to_string()));
        match draft {
            Ok(draft) => {
                rows += 1;
                sample.add(draft.pose);
            }
            Err(problem) => {
                bad_rows += 1;
                if bad.len() < BAD_KEPT_MAX {
                    bad.push((row.line, problem));
                }
            }
        }
    }
    let mut hasher = std::mem::take(&mut *hasher.lock().unwrap_or_else(|lock| lock.into_inner()));
    hasher.update(format!("{:?} {:?}", source.format, source.mapping));
    Ok(Scan { digest: hasher.finalize().into(), rows, bad_rows, bad, sample: sample.poses })
}

/// Hashes what is read.
struct Hashed<R> {
    input: R,
    hasher: std::sync::Arc<std::sync::Mutex<Sha256>>,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.input.read(buffer)?;
        let mut hasher = self.hasher.lock().unwrap_or_else(|lock| lock.into_inner());
        hasher.update(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}

/// Every n-th pose, n doubling as more come.
struct Sample {
    poses: Vec<Pose>,
    stride: u64,
    seen: u64,
}

impl Sample {
    fn add(&mut self, pose: Pose) {
        if self.seen.is_multiple_of(self.stride) {
            self.poses.push(pose);
        }
        self.seen += 1;
        if SAMPLE_MAX < self.poses.len() {
            let mut index = 0;
            self.poses.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.stride *= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::rows::FileFormat;
    use crate::record::Mapping;

    fn source(text: &'static str, mapping: Mapping) -> Source {
        Source {
            name: "t.csv".to_owned(),
            format: FileFormat::Csv,
            mapping,
            open: Box::new(move || Ok(Box::new(text.as_bytes()))),
        }
    }

    #[test]
    fn good_and_bad_rows_are_counted_and_the_bad_ones_kept() {
        let text = "lat,lon\n1,2\nx,2\n3,4\n5,999\n";
        let found = scan(&source(text, Mapping::default())).unwrap();
        assert_eq!((found.rows, found.bad_rows, found.sample.len()), (2, 2, 2));
        assert_eq!(found.bad[0].0, 3);
        assert_eq!(found.bad[1], (5, "lon 999 is outside [-180, 180]".to_owned()));
    }

    #[test]
    fn the_digest_depends_on_contents_and_mapping_alone() {
        let digest = |text, mapping| scan(&source(text, mapping)).unwrap().digest;
        let plain = digest("lat,lon\n1,2\n", Mapping::default());
        assert_eq!(plain, digest("lat,lon\n1,2\n", Mapping::default()));
        assert_ne!(plain, digest("lat,lon\n1,3\n", Mapping::default()));
        let tagged = Mapping { tags: vec!["t".to_owned()], ..Mapping::default() };
        assert_ne!(plain, digest("lat,lon\n1,2\n", tagged));
    }

    #[test]
    fn a_sample_of_many_is_bounded_and_reaches_to_the_end() {
        let mut sample = Sample { poses: Vec::new(), stride: 1, seen: 0 };
        let pose = |longitude| {
            let pose = anchorhold_proto::v1::Pose {
                frame: Some(anchorhold_proto::v1::pose::Frame::Geo(
                    anchorhold_proto::v1::GeoPose {
                        longitude_deg: longitude,
                        ..Default::default()
                    },
                )),
            };
            anchorhold_proto::convert::pose_from_wire(Some(pose)).unwrap()
        };
        for index in 0..100_000 {
            sample.add(pose(f64::from(index) / 1_000.0));
        }
        assert!((SAMPLE_MAX / 2..=SAMPLE_MAX).contains(&sample.poses.len()));
        assert_eq!(sample.poses[0], pose(0.0));
        assert!(sample.poses.contains(&pose(99.992)), "the end is missing");
    }

    #[test]
    fn the_shipped_airports_are_all_good() {
        let found = scan(&crate::demo::airports()).unwrap();
        assert_eq!((found.rows, found.bad_rows), (28_298, 0));
    }
}
