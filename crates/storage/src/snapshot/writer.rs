//! Writes a snapshot file.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::directory::Directory;
use super::format::{self, Footer};
use super::{SnapshotDigest, SnapshotError, SnapshotFile, SnapshotHeader, store};
use crate::durable;

/// A snapshot being written. Dropped before [`SnapshotWriter::finish`], it leaves nothing.
#[derive(Debug)]
pub struct SnapshotWriter {
    directory: Arc<Directory>,
    temporary: PathBuf,
    header: SnapshotHeader,
    file: BufWriter<File>,
    block: Vec<u8>,
    /// The checksum written last.
    crc: u32,
    digest: Sha256,
    rows: u64,
    payload_bytes: u64,
    bytes: u64,
    finished: bool,
}

impl SnapshotWriter {
    /// Begins a snapshot in a directory.
    ///
    /// # Errors
    /// [`SnapshotError::Io`], also if one of the same group and position is being written;
    /// [`SnapshotError::TooLong`] for the metadata.
    pub(super) fn create(
        directory: &Arc<Directory>,
        header: SnapshotHeader,
    ) -> Result<Self, SnapshotError> {
        let head = format::encode_header(&header)?;
        let temporary = directory.path().join(format!("{}.tmp", store::file_name(&header)));
        let file = File::create_new(&temporary)
            .map_err(|source| SnapshotError::Io { path: temporary.clone(), source })?;
        let mut writer = Self {
            directory: Arc::clone(directory),
            temporary,
            header,
            file: BufWriter::with_capacity(2 * format::BLOCK_BYTES_TARGET, file),
            block: Vec::with_capacity(2 * format::BLOCK_BYTES_TARGET),
            crc: crc32c::crc32c(&head),
            digest: Sha256::new_with_prefix(&head),
            rows: 0,
            payload_bytes: 0,
            bytes: 0,
            finished: false,
        };
        writer.write(&head)?;
        writer.write(&writer.crc.to_le_bytes())?;
        Ok(writer)
    }

    /// Adds a row. Rows are read back in the order in which they are given.
    ///
    /// # Errors
    /// [`SnapshotError::Io`]; [`SnapshotError::TooLong`] for a row above 128 MiB.
    pub fn push(&mut self, key: &[u8], value: &[u8]) -> Result<(), SnapshotError> {
        let added = 8 + key.len() + value.len();
        if !self.block.is_empty() && format::BLOCK_BYTES_TARGET < self.block.len() + added {
            self.close_block()?;
        }
        format::push_row(&mut self.block, key, value)?;
        self.rows += 1;
        Ok(())
    }

    /// Bytes of the file so far, for whoever limits the rate.
    pub fn bytes(&self) -> u64 {
        self.bytes + self.block.len() as u64
    }

    /// Completes the file. When this returns it is durable under its final name; a file of the same
    /// group and position is replaced.
    ///
    /// # Errors
    /// [`SnapshotError::Io`]; nothing is left then.
    pub fn finish(mut self) -> Result<SnapshotFile, SnapshotError> {
        if !self.block.is_empty() {
            self.close_block()?;
        }
        let digest = SnapshotDigest(self.digest.clone().finalize().into());
        let footer = Footer { rows: self.rows, payload_bytes: self.payload_bytes, digest };
        self.write_block(format::FOOTER, &footer.encode())?;
        let io = |path: &Path| {
            let path = path.to_owned();
            |source| SnapshotError::Io { path, source }
        };
        self.file.flush().map_err(io(&self.temporary))?;
        self.file.get_ref().sync_all().map_err(io(&self.temporary))?;
        let dir = self.directory.path();
        let path = dir.join(store::file_name(&self.header));
        let staying = self.directory.stays();
        fs::rename(&self.temporary, &path).map_err(io(&path))?;
        self.finished = true;
        self.directory.note(&path);
        drop(staying);
        durable::sync_dir(dir).map_err(io(dir))?;
        let header = self.header.clone();
        Ok(SnapshotFile { path, header, rows: self.rows, bytes: self.bytes, digest })
    }

    fn close_block(&mut self) -> Result<(), SnapshotError> {
        let mut block = std::mem::take(&mut self.block);
        self.digest.update(&block);
        self.payload_bytes += block.len() as u64;
        self.write_block(format::ROWS, &block)?;
        block.clear();
        self.block = block;
        Ok(())
    }

    fn write_block(&mut self, kind: u8, payload: &[u8]) -> Result<(), SnapshotError> {
        let head = format::block_head(kind, payload.len())?;
        self.crc = crc32c::crc32c_append(crc32c::crc32c_append(self.crc, &head), payload);
        self.write(&head)?;
        self.write(payload)?;
        self.write(&self.crc.to_le_bytes())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.bytes += bytes.len() as u64;
        self.file
            .write_all(bytes)
            .map_err(|source| SnapshotError::Io { path: self.temporary.clone(), source })
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = durable::remove_if_present(&self.temporary)
        {
            // It is removed when the store is opened again.
            tracing::warn!(path = %self.temporary.display(), %error, "unfinished snapshot stays");
        }
    }
}
