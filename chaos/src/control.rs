//! Telling a node what to do wrong: the harness's side of `server::chaos`.
//!
//! Each node has a control file. What is wanted is written there whole, and the node answers in a
//! file beside it once it holds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::scenario::FaultKind;

/// The variable that names the control file to a node.
pub const CONTROL_VARIABLE: &str = "ANCHORHOLD_CHAOS_CONTROL";

/// What a node's counts of failpoints begin with.
pub const FAILPOINT: &str = "failpoint ";

/// What is wanted of a node. The same as `server::chaos::Wanted`; a test of `cli` compares.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Rises with each change, and whenever a fresh answer is wanted.
    pub generation: u64,
    /// The wall clock is ahead by this many milliseconds.
    pub clock_offset_ms: i64,
    /// Both clocks run this much faster.
    pub clock_drift: f64,
    /// No space is left for the log.
    pub disk_full: bool,
    /// Writes to the log fail.
    pub disk_write_error: bool,
    /// Syncs of the log fail.
    pub disk_sync_error: bool,
    /// Writes and syncs take this many milliseconds longer.
    pub disk_stall_ms: u64,
    /// Unsynced writes stay in the process's memory. Read at the start only.
    pub holds_unsynced: bool,
    /// Bytes of the log's segments; 0 leaves them as they are. Read at the start only.
    pub log_segment_bytes: u64,
    /// Bugs that are put in on purpose, by name.
    pub mutants: Vec<String>,
    /// The failpoint at which the process ends when it next reaches it; empty: none.
    pub ends_at: String,
}

/// What a node answers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Applied {
    /// The generation that holds now.
    pub generation: u64,
    /// The process that answers.
    pub pid: u32,
    /// What its wall clock says, in milliseconds since 1970.
    pub wall_ms: u64,
    /// How often each fault met someone since the start.
    pub hits: BTreeMap<String, u64>,
}

/// The control file of one node.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    wanted: Mutex<Wanted>,
}

/// How long a node may take to answer: it looks a hundred times a second.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Small, so that a short run fills many: a full disk is met only where space is allocated.
const LOG_SEGMENT_BYTES: u64 = 256 << 10;
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

impl Control {
    /// Writes a control file with nothing wrong but the mutants.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn create(path: &Path, holds_unsynced: bool, mutants: Vec<String>) -> anyhow::Result<Self> {
        let wanted = Wanted {
            generation: 1,
            holds_unsynced,
            log_segment_bytes: LOG_SEGMENT_BYTES,
            mutants,
            ..Wanted::default()
        };
        let control = Self { path: path.to_owned(), wanted: Mutex::new(wanted.clone()) };
        control.write(&wanted)?;
        Ok(control)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Changes what is wanted, without waiting for the node. Returns the generation.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn want(&self, change: impl FnOnce(&mut Wanted)) -> anyhow::Result<u64> {
        let mut wanted = self.wanted.lock();
        change(&mut wanted);
        wanted.generation += 1;
        self.write(&wanted)?;
        Ok(wanted.generation)
    }

    /// Changes what is wanted, and waits until the node says that it holds.
    ///
    /// # Errors
    /// If it does not say so within some seconds.
    pub async fn change(&self, change: impl FnOnce(&mut Wanted)) -> anyhow::Result<Applied> {
        let generation = self.want(change)?;
        let give_up = Instant::now() + ANSWER_MAX;
        loop {
            match self.applied() {
                Some(applied) if applied.generation == generation => return Ok(applied),
                _ if give_up < Instant::now() => {
                    anyhow::bail!(
                        "{} was not answered: was the node built with the feature `chaos`?",
                        self.path.display()
                    )
                }
                _ => sleep(LOOK_INTERVAL).await,
            }
        }
    }

    /// Takes back what a fault of this kind wants, if it wants anything.
    ///
    /// # Errors
    /// If the disk fails.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the others want nothing of a node")]
    pub fn undo(&self, kind: FaultKind) -> anyhow::Result<()> {
        let undo: fn(&mut Wanted) = match kind {
            FaultKind::ClockJump => |wanted| wanted.clock_offset_ms = 0,
            FaultKind::ClockDrift => |wanted| wanted.clock_drift = 0.0,
            FaultKind::DiskFull => |wanted| wanted.disk_full = false,
            FaultKind::DiskWriteError => |wanted| wanted.disk_write_error = false,
            FaultKind::DiskSyncError => |wanted| wanted.disk_sync_error = false,
            FaultKind::DiskStall => |wanted| wanted.disk_stall_ms = 0,
            FaultKind::CrashAt => |wanted| wanted.ends_at.clear(),
            _ => return Ok(()),
        };
        self.want(undo).map(drop)
    }

    /// What the node said last; `None` if it never did.
    pub fn applied(&self) -> Option<Applied> {
        let text = std::fs::read(self.path.with_extension("applied.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn write(&self, wanted: &Wanted) -> anyhow::Result<()> {
        let beside = self.path.with_extension("new");
        std::fs::write(&beside, serde_json::to_vec(wanted)?)
            .and_then(|()| std::fs::rename(&beside, &self.path))
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}
