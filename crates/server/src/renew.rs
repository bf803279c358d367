//! Renews a state that takes far more room than its rows need.
//!
//! sled never gives room back: after many changes its files may be many times as large as what is
//! in them. A node looks at that now and then, and writes such a state anew beside itself while it
//! serves ([`RenewableState::renew`]). Where the disk has no room for two, a start discards the state
//! and rebuilds it, which costs nothing but time, because the state is never the only copy; but only
//! if every snapshot file that the rebuild needs has just been read and verified.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anchorhold_consensus::Exit;
use anchorhold_storage::snapshot::{self, SnapshotStore};
use anchorhold_storage::{
    Opened, RenewError, RenewableState, Renewed, SledConfig, SledState, StateError, StateStore,
};
use metrics::counter;
use tokio::sync::oneshot;

use crate::config::DiskConfig;
use crate::core::Core;
use crate::telemetry::name;

/// Room that a copy must find, in bytes for each byte of rows: freshly written, sled takes twice what
/// is in it, and the rest goes on meanwhile.
const ROOM_FACTOR: u64 = 3;
/// Between two lines about how far a renewal is.
const SAY_INTERVAL: Duration = Duration::from_secs(10);

/// When a state is bloated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BloatRules {
    /// Smaller files are never renewed.
    pub disk_bytes_min: u64,
    /// Bytes on disk for each byte of rows, at most.
    pub factor_max: u64,
}

impl BloatRules {
    /// The rules of a configuration.
    pub fn of(config: &DiskConfig) -> Self {
        Self { disk_bytes_min: config.renew_bytes_min, factor_max: config.renew_factor }
    }

    fn is_bloated(&self, disk_bytes: u64, row_bytes: u64) -> bool {
        self.disk_bytes_min <= disk_bytes && row_bytes < disk_bytes / self.factor_max.max(1)
    }
}

/// Looks after the size of a running node's state.
pub struct Renewal {
    core: Arc<Core>,
    state: Arc<RenewableState>,
    exit: Arc<dyn Exit>,
    config: DiskConfig,
}

/// Tells the thread that copies when nobody waits for it any more.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Renewal {
    /// Of a node's state.
    pub fn new(
        core: Arc<Core>,
        state: Arc<RenewableState>,
        exit: Arc<dyn Exit>,
        config: DiskConfig,
    ) -> Self {
        Self { core, state, exit, config }
    }

    /// Looks for ever, the first time after a while.
    pub async fn run(self) {
        let mut has_warned = false;
        loop {
            tokio::time::sleep(Duration::from_secs(self.config.renew_interval_s)).await;
            let (disk_bytes, row_bytes) = (self.state.stats().disk_bytes, self.row_bytes());
            if !BloatRules::of(&self.config).is_bloated(disk_bytes, row_bytes) {
                has_warned = false;
                continue;
            }
            let needed = row_bytes.saturating_mul(ROOM_FACTOR) + self.config.almost_full_bytes;
            let free = self.core.disk.free_bytes();
            if free < needed {
                if !std::mem::replace(&mut has_warned, true) {
                    tracing::warn!(
                        disk_bytes,
                        row_bytes,
                        free,
                        needed,
                        "the state is bloated and has no room to be written anew: add space, or \
                         start the node again"
                    );
                }
                continue;
            }
            self.renew(disk_bytes, row_bytes).await;
        }
    }

    /// Bytes of the rows that somebody needs.
    fn row_bytes(&self) -> u64 {
        let replicas = self.core.host.replicas();
        let catalog = self.core.host.catalog_replica();
        replicas.iter().chain([&catalog]).map(|replica| replica.state().bytes).sum()
    }

    async fn renew(&self, disk_bytes: u64, row_bytes: u64) {
        tracing::info!(disk_bytes, row_bytes, "the state is bloated: it is written anew");
        let begun = self.core.clock.monotonic();
        let stop = Stop(Arc::default());
        let pace = Pace {
            is_stopped: Arc::clone(&stop.0),
            core: Arc::clone(&self.core),
            config: self.config.clone(),
            copied: 0,
            of: row_bytes,
            said: begun,
        };
        let (state, (done, result)) = (Arc::clone(&self.state), oneshot::channel());
        let work = move || {
            let mut pace = pace;
            drop(done.send(state.renew(&mut |bytes| pace.go_on(bytes))));
        };
        self.core.offload.spawn(Box::new(work)).await;
        match result.await {
            Ok(Ok(Some(Renewed { row_bytes, disk_bytes_before, disk_bytes }))) => {
                counter!(name::STATE_RENEWALS_TOTAL).increment(1);
                let seconds = (self.core.clock.monotonic() - begun).as_secs_f64();
                tracing::info!(
                    row_bytes,
                    disk_bytes_before,
                    disk_bytes,
                    seconds,
                    "the state was written anew"
                );
            }
            Ok(Ok(None)) => tracing::warn!("the renewal of the state broke off; it stays as it is"),
            Ok(Err(error @ RenewError::Failed(_))) => {
                let error = crate::seams_real::with_causes(&error);
                tracing::warn!(error, "the state stays as it is");
            }
            Ok(Err(error @ RenewError::Undecided(_))) => {
                self.exit.exit(&crate::seams_real::with_causes(&error));
            }
            // The node stops.
            Err(_) => {}
        }
        drop(stop);
    }
}

/// How fast a copy may go, and whether it may go on.
struct Pace {
    is_stopped: Arc<AtomicBool>,
    core: Arc<Core>,
    config: DiskConfig,
    copied: u64,
    of: u64,
    /// Monotonic time of the last line.
    said: Duration,
}

impl Pace {
    fn go_on(&mut self, bytes: u64) -> ControlFlow<()> {
        let micros = bytes.saturating_mul(1_000_000) / self.config.renew_bytes_per_second.max(1);
        std::thread::sleep(Duration::from_micros(micros));
        self.copied += bytes;
        let now = self.core.clock.monotonic();
        if SAY_INTERVAL <= now.saturating_sub(self.said) {
            self.said = now;
            tracing::info!(copied = self.copied, of = self.of, "the state is being written anew");
        }
        let is_cramped = self.core.disk.free_bytes() < self.config.almost_full_bytes;
        if is_cramped || self.is_stopped.load(Ordering::Relaxed) {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

/// Gives the state back, or an empty one in its place if it is bloated, can be rebuilt, and the disk
/// has not the room to write it anew.
///
/// # Errors
/// If the state cannot be read, discarded or opened again.
pub fn discard_if_cramped(
    state: RenewableState,
    dir: &Path,
    config: SledConfig,
    snapshots: &SnapshotStore,
    rules: &BloatRules,
    free_bytes: u64,
) -> Result<(RenewableState, Opened), StateError> {
    let disk_bytes = state.stats().disk_bytes;
    let as_it_is = |state| Ok((state, Opened::Intact { checkpoint: 0 }));
    let row_bytes_max = disk_bytes / rules.factor_max.max(1);
    if disk_bytes < rules.disk_bytes_min || row_bytes_max.saturating_mul(ROOM_FACTOR) <= free_bytes
    {
        return as_it_is(state);
    }
    let live_bytes = state.live_bytes()?;
    if !rules.is_bloated(disk_bytes, live_bytes) {
        return as_it_is(state);
    }
    if let Err(error) = verify_all(snapshots) {
        tracing::warn!(%error, disk_bytes, live_bytes, "the state is bloated, but stays: a snapshot is damaged");
        return as_it_is(state);
    }
    let reason = format!("it takes {disk_bytes} bytes for {live_bytes} bytes of rows");
    tracing::warn!(reason, "the state is discarded and will be rebuilt");
    drop(state);
    SledState::discard(dir)?;
    let (state, _) = RenewableState::open(dir, config)?;
    Ok((state, Opened::Discarded { reason }))
}

/// Reads and verifies the file that each group would be rebuilt from.
fn verify_all(snapshots: &SnapshotStore) -> Result<(), snapshot::SnapshotError> {
    for group in snapshots.groups() {
        if let Some(latest) = snapshots.latest(group)? {
            snapshot::verify(&latest.path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use anchorhold_storage::snapshot::SnapshotHeader;
    use anchorhold_storage::{Batch, GroupId};

    use super::*;

    const RULES: BloatRules = BloatRules { disk_bytes_min: 1 << 20, factor_max: 6 };

    fn config() -> SledConfig {
        SledConfig { cache_bytes_max: 8 << 20 }
    }

    /// A state whose rows were written again and again, and one snapshot file.
    fn bloated(dir: &Path) -> (RenewableState, SnapshotStore) {
        let (state, _) = RenewableState::open(&dir.join("state"), config()).unwrap();
        for round in 0..40_u8 {
            let rows = (0..100_u32).map(|row| {
                (row.to_be_bytes().to_vec(), Some(vec![round ^ row.to_le_bytes()[0]; 1_000]))
            });
            state.commit(Batch { rows: rows.collect() }).unwrap();
            state.checkpoint().unwrap();
        }
        let rows = (1..100_u32).map(|row| (row.to_be_bytes().to_vec(), None)).collect();
        state.commit(Batch { rows }).unwrap();
        state.checkpoint().unwrap();
        let snapshots = SnapshotStore::open(&dir.join("snapshots")).unwrap();
        let group = GroupId { shard: 1, incarnation: 1 };
        let header = SnapshotHeader { format: 1, group, position: None, meta: Vec::new() };
        let mut writer = snapshots.create(header).unwrap();
        writer.push(b"key", b"value").unwrap();
        writer.finish().unwrap();
        (state, snapshots)
    }

    #[test]
    fn a_bloated_state_is_emptied_if_its_snapshots_are_intact_and_the_disk_is_short() {
        let dir = tempfile::tempdir().unwrap();
        let (state, snapshots) = bloated(dir.path());
        let at = dir.path().join("state");
        let before = state.stats().disk_bytes;
        let (state, opened) =
            discard_if_cramped(state, &at, config(), &snapshots, &RULES, before).unwrap();
        assert!(matches!(opened, Opened::Intact { .. }), "there is room to write it anew");
        let (state, opened) =
            discard_if_cramped(state, &at, config(), &snapshots, &RULES, 0).unwrap();
        assert!(matches!(opened, Opened::Discarded { .. }), "{opened:?}");
        assert_eq!(state.live_bytes().unwrap(), 0);
        assert!(state.stats().disk_bytes < before);
    }

    #[test]
    fn a_bloated_state_stays_if_a_snapshot_is_damaged_and_a_lean_one_always() {
        let dir = tempfile::tempdir().unwrap();
        let (state, snapshots) = bloated(dir.path());
        let at = dir.path().join("state");
        let lean = BloatRules { factor_max: 1_000_000, ..RULES };
        let (state, opened) =
            discard_if_cramped(state, &at, config(), &snapshots, &lean, 0).unwrap();
        assert!(matches!(opened, Opened::Intact { .. }));
        let file = snapshots.latest(GroupId { shard: 1, incarnation: 1 }).unwrap().unwrap().path;
        let mut bytes = std::fs::read(&file).unwrap();
        let last = bytes.len() - 80;
        bytes[last] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let (state, opened) =
            discard_if_cramped(state, &at, config(), &snapshots, &RULES, 0).unwrap();
        assert!(matches!(opened, Opened::Intact { .. }));
        assert_eq!(state.live_bytes().unwrap(), 1_004);
    }
}
