//! Writes a history.
//!
//! Frame: length of the payload (4 bytes, little-endian), its CRC-32C (4), payload (postcard). The
//! first frame is the [`Header`], an empty one says that the workload ended in order. Nothing is
//! kept in memory but one buffer, which is handed to the file system a few times a second.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Operation;

/// What a history is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Its name in the run: `register-1`.
    pub name: String,
    /// The workload's configuration as JSON.
    pub config: String,
    /// The number of the account that it ran in.
    pub account: u32,
    /// Its seed.
    pub seed: u64,
}

/// Appends operations to a file. Shared by all clients of a workload.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: BufWriter<File>,
    buffer: Vec<u8>,
    flushed_ns: u64,
}

/// What a file begins with; the last byte is the format's version.
pub(super) const MAGIC: [u8; 8] = *b"ahhist\0\x01";
/// Bytes of a frame's payload, at most: a list of 100,000 anchors.
pub(super) const FRAME_BYTES_MAX: u32 = 16 << 20;
/// Longest time that a record stays in memory, while records come.
const FLUSH_INTERVAL_NS: u64 = 200_000_000;

impl Recorder {
    /// Begins a file, which must not exist.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn create(path: &Path, header: &Header) -> anyhow::Result<Self> {
        let file =
            File::create_new(path).with_context(|| format!("cannot make {}", path.display()))?;
        let mut state = State {
            file: BufWriter::with_capacity(1 << 16, file),
            buffer: Vec::new(),
            flushed_ns: 0,
        };
        state.file.write_all(&MAGIC)?;
        state.write(header)?;
        state.file.flush()?;
        Ok(Self { path: path.to_owned(), state: Mutex::new(state) })
    }

    /// Appends one operation.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn record(&self, operation: &Operation) -> anyhow::Result<()> {
        let mut state = self.state.lock();
        state.write(operation).with_context(|| self.problem())?;
        if state.flushed_ns + FLUSH_INTERVAL_NS <= operation.end_ns {
            state.flushed_ns = operation.end_ns;
            state.file.flush().with_context(|| self.problem())?;
        }
        Ok(())
    }

    /// Marks the end and puts everything on disk. Nothing may be recorded afterwards.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn finish(&self) -> anyhow::Result<()> {
        let mut state = self.state.lock();
        state.write_frame(&[]).with_context(|| self.problem())?;
        state.file.flush().with_context(|| self.problem())?;
        state.file.get_ref().sync_all().with_context(|| self.problem())
    }

    fn problem(&self) -> String {
        format!("cannot write {}", self.path.display())
    }
}

impl State {
    fn write<T: Serialize>(&mut self, value: &T) -> anyhow::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        self.buffer = postcard::to_extend(value, buffer)?;
        let payload = std::mem::take(&mut self.buffer);
        self.write_frame(&payload)?;
        self.buffer = payload;
        Ok(())
    }

    fn write_frame(&mut self, payload: &[u8]) -> anyhow::Result<()> {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        anyhow::ensure!(length <= FRAME_BYTES_MAX, "an operation of {length} bytes");
        self.file.write_all(&length.to_le_bytes())?;
        self.file.write_all(&crc32c::crc32c(payload).to_le_bytes())?;
        self.file.write_all(payload)?;
        Ok(())
    }
}
