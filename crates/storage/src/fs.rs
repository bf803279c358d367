//! The file system as the log sees it: the only way from here to a disk.
//!
//! [`RealFs`] is the operating system's. [`MemoryFs`] forgets what was not synced when it is
//! crashed, runs out of space on command and fails a chosen call, so that every point at which a
//! machine can die is within reach of a test.
//!
//! Invariants a caller may rely on: a file's bytes are durable after its `sync_data`, its name
//! after `sync_dir`; nothing else is. A handle keeps a removed file readable.
//!
//! Not here: what the files mean.

mod memory;
mod real;

use std::io;
use std::path::Path;
use std::sync::Arc;

pub use memory::{Fault, MemoryFs};
pub use real::RealFs;

/// A directory tree with files of fixed, preallocated lengths.
pub trait FileSystem: Send + Sync + 'static {
    /// Creates a directory and its parents; an existing one is fine.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// The names in a directory, sorted.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Creates a file of `length` zero bytes with all its space reserved. The name must be free.
    ///
    /// # Errors
    /// `StorageFull` if the space is not there; the name may exist afterwards.
    fn create(&self, path: &Path, length: u64) -> io::Result<Arc<dyn File>>;

    /// Opens an existing file.
    ///
    /// # Errors
    /// `NotFound`, and whatever else the operating system says.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Gives a file another name, replacing what had it.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file's name. Open handles go on working.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// Whatever the operating system says; the names' fate is then unknown.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Bytes that can still be allocated under a directory.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn space(&self, dir: &Path) -> io::Result<u64>;

    /// Takes an exclusive lock on a path, creating the file. It is given back when the result is
    /// dropped or the process ends.
    ///
    /// # Errors
    /// `WouldBlock` if someone else holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn FileLock>>;

    /// A number that nothing else was given: random on a real machine.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn unique_id(&self) -> io::Result<u64>;
}

/// An open file.
pub trait File: Send + Sync + 'static {
    /// Its length in bytes.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn length(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before, and whatever the operating system says.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// Whatever the operating system says; any part may have been written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Lengthens the file to `length` zero-filled bytes and reserves their space.
    ///
    /// # Errors
    /// `StorageFull` if the space is not there.
    fn allocate(&self, length: u64) -> io::Result<()>;

    /// Makes the file's bytes and length durable.
    ///
    /// # Errors
    /// Whatever the operating system says. The fate of the unsynced bytes is then unknown, and
    /// trying again proves nothing.
    fn sync_data(&self) -> io::Result<()>;
}

/// A lock that is given back when dropped.
pub trait FileLock: Send + Sync + 'static {}
