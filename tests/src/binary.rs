//! The binary under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, ensure};

/// Names a binary to test instead of the workspace's own.
pub const BINARY_VARIABLE: &str = "ANCHORHOLD_BINARY";

/// The `anchorhold` binary: the one that [`BINARY_VARIABLE`] names, or the workspace's, built once
/// per process in the profile and the target directory of the tests.
///
/// # Errors
/// If it cannot be built.
pub fn anchorhold() -> anyhow::Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| find_or_build().map_err(|error| format!("{error:#}")));
    built.clone().map_err(anyhow::Error::msg)
}

fn find_or_build() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os(BINARY_VARIABLE) {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "{BINARY_VARIABLE} names {}, which is no file", path.display());
        return Ok(path);
    }
    let profile_dir = profile_dir()?;
    let target_dir = profile_dir.parent().context("a profile directory lies in a target one")?;
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--locked", "--package", "anchorhold", "--bin", "anchorhold"])
        .args(["--profile", profile, "--target-dir"])
        .arg(target_dir)
        .current_dir(root)
        .status()
        .context("cargo did not start")?;
    ensure!(status.success(), "cargo build -p anchorhold: {status}");
    Ok(profile_dir.join("anchorhold"))
}

/// `target/debug` out of `target/debug/deps/black_box-…` or `target/debug/test-cluster`.
fn profile_dir() -> anyhow::Result<PathBuf> {
    let executable = std::env::current_exe()?;
    let directory = executable.parent().context("an executable lies in a directory")?;
    let profile_dir =
        if directory.ends_with("deps") { directory.parent() } else { Some(directory) };
    Ok(profile_dir.context("deps lies in a profile directory")?.to_path_buf())
}
