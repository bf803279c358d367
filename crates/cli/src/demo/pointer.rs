//! Where the demo that runs on this machine keeps its data: how a second terminal finds it.
//!
//! A small file in the user's run-time directory holds the path. The demo that was started last is
//! the one that is found.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// Names a data directory as the demo's. Taken back when dropped.
pub(crate) struct Pointer {
    data_dir: PathBuf,
}

impl Pointer {
    /// Lets other terminals find the demo in this data directory.
    ///
    /// # Errors
    /// If the run-time directory cannot be used.
    pub(crate) fn set(data_dir: &Path) -> anyhow::Result<Self> {
        let directory = directory();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        if !is_own(&directory) {
            bail!("{} belongs to another user", directory.display());
        }
        let data_dir = fs::canonicalize(data_dir)?;
        anchorhold_cluster::write_secret(&file(), &data_dir.to_string_lossy())
            .with_context(|| format!("cannot write {}", file().display()))?;
        Ok(Self { data_dir })
    }
}

impl Drop for Pointer {
    fn drop(&mut self) {
        // Another demo may have been started since: its pointer stays.
        if read().as_ref() == Some(&self.data_dir) {
            drop(fs::remove_file(file()));
        }
    }
}

/// The data directory of the demo that was started last; `None` if there is none.
pub(crate) fn read() -> Option<PathBuf> {
    // A file that someone else planted could lead to a cluster of theirs.
    is_own(&directory()).then(|| fs::read_to_string(file()).ok()).flatten().map(PathBuf::from)
}

fn file() -> PathBuf {
    directory().join("demo")
}

fn directory() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty()) {
        Some(path) => PathBuf::from(path).join("anchorhold"),
        None => std::env::temp_dir().join(format!("anchorhold-{}", user())),
    }
}

fn is_own(directory: &Path) -> bool {
    fs::symlink_metadata(directory).is_ok_and(|found| found.is_dir() && found.uid() == user())
}

fn user() -> u32 {
    anchorhold_cluster::user_id()
}
