//! Small files that must be whole or absent.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Replaces `path` by `contents` in one step: a reader sees the old file or the new one. On Unix
/// only the owner may read and write it.
pub(crate) fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new_path = Path::new(&name);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    let mut file = options.open(new_path)?;
    file.write_all(contents)?;
    file.sync_all()?;
    fs::rename(new_path, path)
}

/// Writes a secret to a file that only its owner may read.
///
/// # Errors
/// Any error of the file system.
pub fn write_secret(path: &Path, secret: &str) -> io::Result<()> {
    replace(path, secret.as_bytes())
}
