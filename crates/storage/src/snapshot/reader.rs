//! Reads and verifies a snapshot file.

use std::fs::File;
use std::io::{self, BufReader, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::format::{self, Fields, Footer};
use super::{SnapshotDigest, SnapshotError, SnapshotFile, SnapshotHeader};

/// Key and value of a row.
pub type SnapshotRow = (Vec<u8>, Vec<u8>);

/// Iterates over the rows of a snapshot.
///
/// A row is only given after the checksum of its block was verified. After the last row the footer
/// and the end of the file are verified too, and only then `None` comes: use nothing of a snapshot
/// for good before that. After an error comes `None`.
#[derive(Debug)]
pub struct SnapshotReader {
    path: PathBuf,
    header: SnapshotHeader,
    file: BufReader<File>,
    /// Length of the file.
    bytes: u64,
    /// Bytes read.
    offset: u64,
    /// The checksum read last.
    crc: u32,
    digest: Sha256,
    rows: u64,
    payload_bytes: u64,
    block: Vec<u8>,
    /// Bytes of `block` that were given out.
    given: usize,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Reading,
    Failed,
    Verified(SnapshotDigest),
}

impl SnapshotReader {
    /// Opens a file and verifies its header.
    ///
    /// # Errors
    /// [`SnapshotError::Io`], [`SnapshotError::Damaged`], [`SnapshotError::UnknownFormat`].
    pub fn open(path: &Path) -> Result<Self, SnapshotError> {
        let io = |source| SnapshotError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let mut file = BufReader::with_capacity(2 * format::BLOCK_BYTES_TARGET, file);
        let mut offset = 0;
        let mut source = Source { path, file: &mut file, bytes, offset: &mut offset };
        let mut head = vec![0; format::HEADER_BYTES];
        source.fill(&mut head)?;
        let meta_bytes = format::meta_bytes(path, &head)?;
        source.check_room(meta_bytes + format::CRC_BYTES)?;
        head.resize(format::HEADER_BYTES + meta_bytes, 0);
        source.fill(&mut head[format::HEADER_BYTES..])?;
        let crc = crc32c::crc32c(&head);
        if source.crc()? != crc {
            let (path, reason) = (path.to_owned(), "the checksum of the header does not fit");
            return Err(SnapshotError::Damaged { path, offset: 0, reason });
        }
        Ok(Self {
            path: path.to_owned(),
            header: format::decode_header(path, &head)?,
            file,
            bytes,
            offset,
            crc,
            digest: Sha256::new_with_prefix(&head),
            rows: 0,
            payload_bytes: 0,
            block: Vec::new(),
            given: 0,
            state: State::Reading,
        })
    }

    /// What the snapshot is of.
    pub fn header(&self) -> &SnapshotHeader {
        &self.header
    }

    /// The file as a whole, once all rows were read and verified.
    pub fn verified(&self) -> Option<SnapshotFile> {
        let State::Verified(digest) = self.state else { return None };
        let (path, header) = (self.path.clone(), self.header.clone());
        Some(SnapshotFile { path, header, rows: self.rows, bytes: self.bytes, digest })
    }

    /// Reads and verifies the next block. `false` if it was the footer.
    fn next_block(&mut self) -> Result<bool, SnapshotError> {
        let begin = self.offset;
        let damaged =
            |reason| SnapshotError::Damaged { path: self.path.clone(), offset: begin, reason };
        let mut source = Source {
            path: &self.path,
            file: &mut self.file,
            bytes: self.bytes,
            offset: &mut self.offset,
        };
        let mut head = [0; format::BLOCK_HEAD_BYTES];
        source.fill(&mut head)?;
        let [kind, length @ ..] = head;
        let length = u32::from_le_bytes(length) as usize;
        if format::BLOCK_BYTES_MAX < length {
            return Err(damaged("a block is too long"));
        }
        source.check_room(length + format::CRC_BYTES)?;
        self.block.resize(length, 0);
        source.fill(&mut self.block)?;
        self.given = 0;
        let crc = crc32c::crc32c_append(crc32c::crc32c_append(self.crc, &head), &self.block);
        if source.crc()? != crc {
            return Err(damaged("the checksum of a block does not fit"));
        }
        self.crc = crc;
        match kind {
            format::ROWS => {
                self.digest.update(&self.block);
                self.payload_bytes += length as u64;
                Ok(true)
            }
            format::FOOTER => {
                let digest = SnapshotDigest(self.digest.clone().finalize().into());
                let (rows, payload_bytes) = (self.rows, self.payload_bytes);
                if Footer::decode(&self.block) != Some(Footer { rows, payload_bytes, digest }) {
                    return Err(damaged("the footer does not fit the rows"));
                }
                if self.offset != self.bytes {
                    return Err(damaged("something follows the footer"));
                }
                self.block.clear();
                self.state = State::Verified(digest);
                Ok(false)
            }
            _ => Err(damaged("a block is neither rows nor footer")),
        }
    }

    fn next_row(&mut self) -> Result<Option<SnapshotRow>, SnapshotError> {
        while self.given == self.block.len() {
            if !self.next_block()? {
                return Ok(None);
            }
        }
        let mut fields = Fields(&self.block[self.given..]);
        let Some((key, value)) = format::take_row(&mut fields) else {
            let (path, offset) = (self.path.clone(), self.offset);
            let reason = "a row in front of it does not fit its block";
            return Err(SnapshotError::Damaged { path, offset, reason });
        };
        let row = (key.to_vec(), value.to_vec());
        self.given = self.block.len() - fields.0.len();
        self.rows += 1;
        Ok(Some(row))
    }
}

impl Iterator for SnapshotReader {
    type Item = Result<SnapshotRow, SnapshotError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state != State::Reading {
            return None;
        }
        let row = self.next_row().transpose();
        if let Some(Err(_)) = row {
            self.state = State::Failed;
        }
        row
    }
}

/// Reads all of a snapshot file and says what it is.
///
/// # Errors
/// [`SnapshotError::Io`], [`SnapshotError::Damaged`], [`SnapshotError::UnknownFormat`].
pub fn verify(path: &Path) -> Result<SnapshotFile, SnapshotError> {
    let mut reader = SnapshotReader::open(path)?;
    while let Some(row) = reader.next_row()? {
        drop(row);
    }
    reader.verified().ok_or_else(|| SnapshotError::Damaged {
        path: path.to_owned(),
        offset: reader.offset,
        reason: "the footer is missing",
    })
}

/// Reads header and footer of a file, not its rows: cheap, but no proof that they are intact.
pub(super) fn describe(path: &Path) -> Result<SnapshotFile, SnapshotError> {
    let reader = SnapshotReader::open(path)?;
    let damaged = |offset, reason| SnapshotError::Damaged { path: path.to_owned(), offset, reason };
    let footer_at = reader.bytes.saturating_sub(format::FOOTER_BLOCK_BYTES as u64);
    if footer_at < reader.offset {
        return Err(damaged(reader.offset, "the footer is cut off"));
    }
    let mut block = [0; format::FOOTER_BLOCK_BYTES];
    let source = reader.file.get_ref();
    source
        .read_exact_at(&mut block, footer_at)
        .map_err(|source| SnapshotError::Io { path: path.to_owned(), source })?;
    let head = format::block_head(format::FOOTER, format::FOOTER_BYTES)?;
    let payload = format::BLOCK_HEAD_BYTES..format::BLOCK_HEAD_BYTES + format::FOOTER_BYTES;
    let footer = block.starts_with(&head).then(|| Footer::decode(&block[payload])).flatten();
    let footer = footer.ok_or_else(|| damaged(footer_at, "it does not end with a footer"))?;
    let (rows, bytes, digest) = (footer.rows, reader.bytes, footer.digest);
    Ok(SnapshotFile { path: path.to_owned(), header: reader.header, rows, bytes, digest })
}

/// A snapshot file as raw bytes, for sending. Stays readable when the file is removed meanwhile.
#[derive(Debug)]
pub struct SnapshotSource {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl SnapshotSource {
    /// Opens a file.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn open(path: &Path) -> Result<Self, SnapshotError> {
        let io = |source| SnapshotError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        Ok(Self { path: path.to_owned(), file, bytes })
    }

    /// Length of the file in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The bytes from `offset` on, `bytes_max` unless the file ends before; empty at its end.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn read_at(&self, offset: u64, bytes_max: usize) -> Result<Bytes, SnapshotError> {
        let left = usize::try_from(self.bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut chunk = vec![0; left.min(bytes_max)];
        self.file
            .read_exact_at(&mut chunk, offset)
            .map_err(|source| SnapshotError::Io { path: self.path.clone(), source })?;
        Ok(chunk.into())
    }
}

/// A file that is read from front to back.
struct Source<'a> {
    path: &'a Path,
    file: &'a mut BufReader<File>,
    bytes: u64,
    offset: &'a mut u64,
}

impl Source<'_> {
    /// Refuses a length that the file cannot hold, before memory is taken for it.
    fn check_room(&self, length: usize) -> Result<(), SnapshotError> {
        if self.bytes.saturating_sub(*self.offset) < length as u64 {
            return Err(self.cut_off());
        }
        Ok(())
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<(), SnapshotError> {
        match self.file.read_exact(out) {
            Ok(()) => {
                *self.offset += out.len() as u64;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(self.cut_off()),
            Err(source) => Err(SnapshotError::Io { path: self.path.to_owned(), source }),
        }
    }

    fn crc(&mut self) -> Result<u32, SnapshotError> {
        let mut crc = [0; format::CRC_BYTES];
        self.fill(&mut crc)?;
        Ok(u32::from_le_bytes(crc))
    }

    fn cut_off(&self) -> SnapshotError {
        let (path, offset) = (self.path.to_owned(), *self.offset);
        SnapshotError::Damaged { path, offset, reason: "the file is cut off" }
    }
}
