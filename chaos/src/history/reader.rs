//! Reads a history.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use super::recorder::{FRAME_BYTES_MAX, MAGIC};
use super::{Header, Operation};

/// The operations of one workload, one after the other.
#[derive(Debug)]
pub struct HistoryReader {
    path: PathBuf,
    file: BufReader<File>,
    header: Header,
    payload: Vec<u8>,
    end: Option<End>,
}

/// How a history ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The workload was stopped and had recorded everything.
    Whole,
    /// The file ends between two records: the harness was killed.
    Cut,
    /// The file ends within a record, which is left out.
    Torn,
}

impl HistoryReader {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// If it cannot be read or is no history.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let problem = || format!("cannot read {}", path.display());
        let mut file = BufReader::with_capacity(1 << 20, File::open(path).with_context(problem)?);
        let mut magic = [0; 8];
        file.read_exact(&mut magic).with_context(problem)?;
        ensure!(magic == MAGIC, "{} is no history of this format", path.display());
        let header = Header { name: String::new(), config: String::new(), account: 0, seed: 0 };
        let mut reader =
            Self { path: path.to_owned(), file, header, payload: Vec::new(), end: None };
        ensure!(reader.frame()?.is_none(), "{} has no header", path.display());
        reader.header = postcard::from_bytes(&reader.payload).with_context(problem)?;
        Ok(reader)
    }

    /// What the history is of.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// How the file ends; known once [`HistoryReader::next`] has returned `None`.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// The next operation; `None` after the last one that is whole.
    ///
    /// # Errors
    /// If the file is damaged before its end.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator cannot fail and then be asked how it ended"
    )]
    pub fn next(&mut self) -> anyhow::Result<Option<Operation>> {
        if self.end.is_some() {
            return Ok(None);
        }
        self.end = self.frame()?;
        if self.end.is_some() {
            return Ok(None);
        }
        let operation = postcard::from_bytes(&self.payload)
            .with_context(|| format!("{} holds a record of another format", self.path.display()))?;
        Ok(Some(operation))
    }

    /// Reads the next frame's payload, or says how the file ends.
    fn frame(&mut self) -> anyhow::Result<Option<End>> {
        let mut head = [0; 8];
        match fill(&mut self.file, &mut head)? {
            0 => return Ok(Some(End::Cut)),
            8 => {}
            _ => return Ok(Some(End::Torn)),
        }
        let (length, checksum) = head.split_at(4);
        let length = u32::from_le_bytes(length.try_into()?);
        let checksum = u32::from_le_bytes(checksum.try_into()?);
        if length == 0 && checksum == 0 {
            return self.last();
        }
        if FRAME_BYTES_MAX < length {
            bail!("{} is damaged: a record of {length} bytes", self.path.display());
        }
        self.payload.resize(length as usize, 0);
        let read = fill(&mut self.file, &mut self.payload)?;
        if read < self.payload.len() {
            return Ok(Some(End::Torn));
        }
        if crc32c::crc32c(&self.payload) != checksum {
            // A torn last record is all that a crash can leave.
            return match fill(&mut self.file, &mut head)? {
                0 => Ok(Some(End::Torn)),
                _ => bail!("{} is damaged: a record's checksum is wrong", self.path.display()),
            };
        }
        Ok(None)
    }

    /// After the mark of the end nothing may come; zeros after a power cut look like that mark.
    fn last(&mut self) -> anyhow::Result<Option<End>> {
        let mut rest = Vec::new();
        self.file.by_ref().take(u64::from(FRAME_BYTES_MAX)).read_to_end(&mut rest)?;
        if rest.is_empty() {
            return Ok(Some(End::Whole));
        }
        if rest.iter().all(|byte| *byte == 0) {
            return Ok(Some(End::Torn));
        }
        bail!("{} goes on after its end", self.path.display())
    }
}

/// Reads as much as there is.
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Action, Level, Outcome, Recorder, Served};

    fn operation(number: u64) -> Operation {
        Operation {
            client: 3,
            start_ns: number * 1_000,
            end_ns: number * 1_000 + 7,
            resolved: false,
            served: Served { shard: 1 << 49, node: 2, revision: number, staleness_ns: None },
            action: Action::Get { id: u128::MAX - u128::from(number), level: Level::Linearizable },
            outcome: Outcome::Absent,
        }
    }

    fn header() -> Header {
        Header { name: "set-1".into(), config: "{}".into(), account: 7, seed: 9 }
    }

    fn written(count: u64, is_ended: bool) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("set-1.bin");
        let recorder = Recorder::create(&path, &header()).unwrap();
        for number in 0..count {
            recorder.record(&operation(number)).unwrap();
        }
        if is_ended {
            recorder.finish().unwrap();
        }
        (directory, path)
    }

    fn read(path: &Path) -> anyhow::Result<(u64, End)> {
        let mut reader = HistoryReader::open(path)?;
        assert_eq!(reader.header(), &header());
        let mut count = 0;
        while let Some(read) = reader.next()? {
            assert_eq!(read, operation(count));
            count += 1;
        }
        Ok((count, reader.end().unwrap()))
    }

    #[test]
    fn operations_come_back_as_they_were_recorded() {
        assert_eq!(read(&written(1_000, true).1).unwrap(), (1_000, End::Whole));
        assert_eq!(read(&written(5, false).1).unwrap(), (5, End::Cut));
    }

    #[test]
    fn a_torn_tail_costs_the_last_record_only_wherever_it_is_cut() {
        let (_directory, path) = written(3, false);
        let whole = std::fs::read(&path).unwrap();
        let (two, _) = written(2, false);
        let shorter = std::fs::read(two.path().join("set-1.bin")).unwrap().len();
        for length in shorter + 1..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(read(&path).unwrap(), (2, End::Torn), "cut at {length}");
        }
        let zeros = [&whole[..], &[0; 100]].concat();
        std::fs::write(&path, zeros).unwrap();
        assert_eq!(read(&path).unwrap(), (3, End::Torn));
    }

    #[test]
    fn damage_before_the_end_is_an_error_and_not_a_shorter_history() {
        let (_directory, path) = written(3, true);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2 + 10;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(read(&path).is_err());
    }
}
