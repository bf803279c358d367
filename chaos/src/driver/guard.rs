//! Lets a frozen node go on, whatever becomes of the harness.
//!
//! A node ends when its harness does, because its standard input closes; but a frozen one does not
//! notice. So each frozen node has a small process beside it that waits for the end of its own
//! standard input, which only the harness holds, and then lets the node go on.

use std::process::{Child, Command, Stdio};

use anchorhold_cluster::ProcessIdentity;
use anyhow::Context as _;

/// As long as this lives, a process may be frozen. Dropping it lets the process go on.
#[derive(Debug)]
pub(crate) struct PauseGuard {
    process: ProcessIdentity,
    watcher: Child,
}

impl PauseGuard {
    pub(crate) fn start(process: ProcessIdentity) -> anyhow::Result<Self> {
        let watcher = Command::new("sh")
            .args(["-c", "cat >/dev/null; kill -CONT \"$1\"", "pause-guard"])
            .arg(process.pid.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start the guard of a paused node")?;
        Ok(Self { process, watcher })
    }
}

impl Drop for PauseGuard {
    fn drop(&mut self) {
        // One that is gone needs nothing.
        drop(self.process.resume());
        drop(self.watcher.stdin.take());
        drop(self.watcher.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frozen_process_goes_on_when_its_guard_is_gone() {
        let mut child =
            Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let process = ProcessIdentity::of(child.id()).unwrap();
        let mut guard = PauseGuard::start(process.clone()).unwrap();
        process.pause().unwrap();
        while !process.is_paused() {
            std::thread::yield_now();
        }
        // As if the harness were gone: its end of the pipe closes, and nobody calls anything.
        drop(guard.watcher.stdin.take());
        while process.is_paused() {
            std::thread::yield_now();
        }
        drop(guard);
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }
}
