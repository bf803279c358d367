//! The seams of a real node: TCP, the machine's clocks, the process.
//!
//! The only module that reads a clock or ends the process.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anchorhold_consensus::seams::BoxFuture;
use anchorhold_consensus::{Clock, Dial, Exit, Offload};
use anchorhold_model::{NodeId, Timestamp};
use anchorhold_storage::fs::{FileSystem, RealFs};
use anchorhold_storage::snapshot::SnapshotStore;
use anchorhold_storage::{
    Damage, LogConfig, LostGroup, OpenReport, Opened, RenewableState, SegmentedLog, SledConfig,
    StateStore,
};
use tonic::transport::{Channel, Endpoint};

use crate::config::DiskConfig;
use crate::listen::TcpListen;
use crate::node::{NodeError, NodeSeams, OpenStores, Stores};
use crate::renew::{BloatRules, discard_if_cramped};

/// Connects to the address that a peer announced, over TCP.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpDial;

impl Dial for TcpDial {
    fn channel(&self, _peer: NodeId, announced: &str) -> Result<Channel, String> {
        let endpoint = Endpoint::from_shared(format!("http://{announced}"))
            .map_err(|error| format!("{announced} is no address: {error}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES);
        Ok(endpoint.connect_lazy())
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
const WINDOW_BYTES: u32 = 4 << 20;

/// The machine's clocks.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    started: std::time::Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    #[expect(clippy::disallowed_methods, reason = "the one place where the real clock is read")]
    pub fn start() -> Self {
        Self { started: std::time::Instant::now() }
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place where the real clock is read")]
    fn wall(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        // A clock before 1970 counts as 1970: shard time never goes back anyway.
        let millis = since.unwrap_or_default().as_millis();
        Timestamp(u64::try_from(millis).unwrap_or(u64::MAX))
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Blocking work on tokio's threads.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokioOffload;

impl Offload for TokioOffload {
    fn in_place(&self, work: &mut dyn FnMut()) {
        tokio::task::block_in_place(work);
    }

    fn spawn(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        let task = tokio::task::spawn_blocking(work);
        Box::pin(async move {
            if let Err(error) = task.await
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        })
    }
}

/// Ends the process.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessExit;

impl Exit for ProcessExit {
    fn exit(&self, reason: &str) {
        tracing::error!(reason, "this node stops at once: going on would break a promise");
        eprintln!("anchorhold: stopped: {reason}");
        std::process::exit(EXIT_CODE_BROKEN_PROMISE);
    }
}

/// Exit code of a process that ended itself because going on would break a promise.
pub const EXIT_CODE_BROKEN_PROMISE: i32 = 70;

/// What a node may still write holds at least so many of its log's longer segments: two of them are
/// set aside at any time.
const SEGMENTS_IN_FREE_MIN: u64 = 64;

/// Stores on the machine's disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskStores;

/// Opens the stores below a data directory in which so many bytes may still be written, the log
/// through `fs`.
///
/// # Errors
/// [`NodeError::Store`] if one of them cannot be used.
pub(crate) fn open_stores(
    fs: Arc<dyn FileSystem>,
    log: LogConfig,
    data_dir: &Path,
    free_bytes: u64,
) -> Result<Stores, NodeError> {
    let failed = |store, error: &dyn std::error::Error| NodeError::Store {
        store,
        reason: with_causes(error),
    };
    let snapshots = SnapshotStore::open(&data_dir.join("snapshots"))
        .map_err(|error| failed("snapshots", &error))?;
    // Every replica has a snapshot file from its beginning on: its log cannot be a new one.
    let groups = snapshots.groups();
    let log = SegmentedLog::open_known(fs, &data_dir.join("log"), log, !groups.is_empty())
        .map_err(|error| failed("log", &error))?;
    tell(log.report());
    let at = data_dir.join("state");
    let (state, opened) = RenewableState::open(&at, SledConfig::default())
        .map_err(|error| failed("state", &error))?;
    if let Opened::Discarded { reason } = opened {
        tracing::warn!(reason, "the state was damaged: it is rebuilt from snapshots and log");
    }
    let rules = BloatRules::of(&DiskConfig::default());
    let sled = SledConfig::default();
    let (state, _) = discard_if_cramped(state, &at, sled, &snapshots, &rules, free_bytes)
        .map_err(|error| failed("state", &error))?;
    let state = Arc::new(state);
    Ok(Stores {
        log: Arc::new(log),
        state: Arc::clone(&state) as Arc<dyn StateStore>,
        renewable: Some(state),
        snapshots: Arc::new(snapshots),
    })
}

impl OpenStores for DiskStores {
    fn open(&self, data_dir: &Path, free_bytes: u64) -> Result<Stores, NodeError> {
        let log = LogConfig::default();
        let segment_bytes_max = log.segment_bytes_max.min(free_bytes / SEGMENTS_IN_FREE_MIN);
        open_stores(Arc::new(RealFs), LogConfig { segment_bytes_max, ..log }, data_dir, free_bytes)
    }

    fn file_system(&self) -> Arc<dyn FileSystem> {
        Arc::new(RealFs)
    }

    fn used_bytes(&self, data_dir: &Path) -> u64 {
        allocated_bytes(data_dir)
    }
}

/// Bytes that the files of a directory take on disk. Files come and go meanwhile: one that is gone
/// takes nothing.
fn allocated_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    const BLOCK_BYTES: u64 = 512;
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let of_entry = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => allocated_bytes(&entry.path()),
        Ok(found) => found.blocks() * BLOCK_BYTES,
        Err(_) => 0,
    };
    entries.flatten().map(of_entry).sum()
}

/// Says what is wrong with the log, place by place.
fn tell(report: &OpenReport) {
    for Damage { segment, offset, groups, reason } in &report.damages {
        tracing::error!(segment, offset, ?groups, reason, "the shared log is damaged");
    }
    for LostGroup { group, from, lost } in &report.lost {
        let (shard, to) = (group.shard, lost.to.index);
        tracing::error!(shard, from, to, "entries are lost here and must come from the peers");
    }
    if report.unknown_groups_may_be_lost {
        tracing::error!(
            "replicas of which the log knows nothing have lost it; others replace them"
        );
    } else if !report.damages.is_empty() && report.lost.is_empty() {
        tracing::warn!("the damage cost nothing that is still needed; the disk may be failing");
    }
}

/// An error and what caused it, in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

impl NodeSeams {
    /// The seams of this process.
    pub fn real() -> Self {
        Self {
            dial: Arc::new(TcpDial),
            clock: Arc::new(SystemClock::start()),
            offload: Arc::new(TokioOffload),
            exit: Arc::new(ProcessExit),
            seed: rand::random(),
            open: Arc::new(DiskStores),
            listen: Arc::new(TcpListen),
            #[cfg(feature = "chaos")]
            hooks: anchorhold_consensus::hooks::Hooks::default(),
        }
    }
}
