//! Disks of a few megabytes, one for each node of a cluster of three: `tmpfs` in a mount namespace
//! of their own. Needs no privileges where the kernel gives user namespaces to everybody.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};

use crate::binary;

/// The nodes of [`crate::cluster::TestCluster`].
const NODES: [&str; 3] = ["a1", "b1", "c1"];
const FILLER: &str = "filler";
const STEP_BYTES: usize = 64 << 10;

/// Three small disks. They are gone when this is dropped.
#[derive(Debug)]
pub struct SmallDisks {
    directory: tempfile::TempDir,
    /// Keeps the namespace alive.
    holder: Child,
    binary: PathBuf,
}

impl SmallDisks {
    /// Mounts the disks, `mebibytes` each. `None` if this kernel lets nobody do that.
    ///
    /// # Errors
    /// If the binary cannot be built or the disks cannot be used.
    pub async fn mount(mebibytes: u32) -> anyhow::Result<Option<Self>> {
        let anchorhold = tokio::task::spawn_blocking(binary::anchorhold).await??;
        let directory = tempfile::tempdir()?;
        let mut script = String::from("set -e\n");
        for node in NODES {
            let at = directory.path().join("cluster").join(node);
            fs::create_dir_all(&at)?;
            script += &format!("mount -t tmpfs -o size={mebibytes}m tmpfs '{}'\n", at.display());
        }
        script += "echo mounted\nexec cat\n";
        let started = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut holder) = started else { return Ok(None) };
        let mut line = String::new();
        let output = holder.stdout.take().context("its output is piped")?;
        BufReader::new(output).read_line(&mut line)?;
        if line.trim() != "mounted" {
            drop(holder.kill());
            drop(holder.wait());
            return Ok(None);
        }
        let binary = directory.path().join("anchorhold-on-small-disks");
        let enter = format!(
            "#!/bin/sh\nexec nsenter --target {} --user --mount --preserve-credentials -- '{}' \"$@\"\n",
            holder.id(),
            anchorhold.display()
        );
        fs::write(&binary, enter)?;
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))?;
        Ok(Some(Self { directory, holder, binary }))
    }

    /// What starts a node on its disk.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Where the cluster is kept.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The disk of a node, as seen from here.
    fn disk(&self, node: usize) -> PathBuf {
        let inside = self.directory.path().join("cluster").join(NODES[node]);
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(inside.strip_prefix("/").unwrap_or(&inside))
    }

    /// Fills a node's disk until at most `left_bytes` are free, as another program may. Returns the
    /// bytes that took.
    ///
    /// # Errors
    /// If the disk takes more than it has room for, or cannot be written at all.
    pub fn fill(&self, node: usize, left_bytes: u64) -> anyhow::Result<u64> {
        let path = self.disk(node).join(FILLER);
        let mut file = File::options().create(true).append(true).open(&path)?;
        let mut taken = 0;
        let mut step = STEP_BYTES;
        while 0 < step && (left_bytes == 0 || left_bytes < self.free_bytes(node)?) {
            match file.write(&vec![7; step]) {
                Ok(written) => taken += written as u64,
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => step /= 2,
                Err(error) => return Err(error.into()),
            }
            ensure!(taken < 1 << 30, "that disk is not small");
        }
        Ok(taken)
    }

    fn free_bytes(&self, node: usize) -> anyhow::Result<u64> {
        let found = rustix::fs::statvfs(self.disk(node))?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// Takes away what [`Self::fill`] put there.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn free(&self, node: usize) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.disk(node).join(FILLER))?)
    }
}

impl Drop for SmallDisks {
    fn drop(&mut self) {
        // The namespace, and the disks with it, end with their last process.
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}
