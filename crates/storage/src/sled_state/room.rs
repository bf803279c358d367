//! Blocks that are kept for sled's file before sled needs them.
//!
//! sled cannot go on after a write that met a full disk. So nothing is given to it unless the disk
//! has already set aside what that will take at most in ordinary times: blocks behind the file's
//! end, which a file system gives to the next writes there and to nobody else.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// Bytes kept whatever is to be written: pages that sled rewrites by the way, and its checkpoints.
const BYTES_MIN: u64 = 6 << 20;
/// What a byte of rows may become in sled's file, pages rewritten with it.
const FACTOR: u64 = 4;
/// Asked for at a time, beyond what is needed.
const STEP_BYTES: u64 = 4 << 20;

/// See the module.
#[derive(Debug)]
pub(super) struct Room {
    file: File,
    /// Up to here the file has its blocks.
    kept_end: u64,
    /// The file's length at the last look.
    length: u64,
    /// A test's full disk.
    #[cfg(test)]
    pub(super) is_full: bool,
}

impl Room {
    /// Room for the file at `path`.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let file = File::options().write(true).open(path)?;
        Ok(Self {
            file,
            kept_end: 0,
            length: 0,
            #[cfg(test)]
            is_full: false,
        })
    }

    /// Whether sled may be given rows of so many bytes.
    pub(super) fn has(&mut self, bytes: u64) -> io::Result<bool> {
        #[cfg(test)]
        if self.is_full {
            return Ok(false);
        }
        let length = self.file.metadata()?.len();
        if length < self.length {
            self.kept_end = 0; // Cutting the file has given back what was behind its end.
        }
        self.length = length;
        let needed_end = length + BYTES_MIN + FACTOR * bytes;
        if needed_end <= self.kept_end {
            return Ok(true);
        }
        let end = needed_end + STEP_BYTES;
        match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, length, end - length) {
            Ok(()) => {
                self.kept_end = end;
                Ok(true)
            }
            Err(Errno::NOSPC | Errno::DQUOT) => Ok(false),
            // This file system cannot keep anything: sled takes its chance, as it would have.
            Err(Errno::OPNOTSUPP) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}
