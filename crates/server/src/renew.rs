//! Renews a state that takes far more room than its rows need.
//!
//! sled never gives room back: after many changes its files may be many times as large as what is
//! in them. At a start such a state is discarded and rebuilt, which costs nothing but time, because
//! the state is never the only copy; but only if every snapshot file that the rebuild needs has just
//! been read and verified.

use std::path::Path;

use anchorhold_storage::snapshot::{self, SnapshotStore};
use anchorhold_storage::{Opened, SledConfig, SledState, StateError, StateStore};

/// When a state is bloated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BloatRules {
    /// Smaller files are never renewed.
    pub disk_bytes_min: u64,
    /// Bytes on disk for each byte of rows, at most.
    pub factor_max: u64,
}

/// The one place where these numbers are written down.
impl Default for BloatRules {
    fn default() -> Self {
        // Freshly loaded, sled takes about twice what is in it.
        Self { disk_bytes_min: 256 << 20, factor_max: 6 }
    }
}

/// Gives the state back, or an empty one in its place if it is bloated and can be rebuilt.
///
/// # Errors
/// If the state cannot be read, discarded or opened again.
pub fn renew_if_bloated(
    state: SledState,
    dir: &Path,
    config: SledConfig,
    snapshots: &SnapshotStore,
    rules: &BloatRules,
) -> Result<(SledState, Opened), StateError> {
    let disk_bytes = state.stats().disk_bytes;
    let as_it_is = |state| Ok((state, Opened::Intact { checkpoint: 0 }));
    if disk_bytes < rules.disk_bytes_min {
        return as_it_is(state);
    }
    let live_bytes = state.live_bytes()?;
    if disk_bytes / rules.factor_max.max(1) <= live_bytes {
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
    let (state, _) = SledState::open(dir, config)?;
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
    fn bloated(dir: &Path) -> (SledState, SnapshotStore) {
        let (state, _) = SledState::open(&dir.join("state"), config()).unwrap();
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
    fn a_bloated_state_is_emptied_if_its_snapshots_are_intact() {
        let dir = tempfile::tempdir().unwrap();
        let (state, snapshots) = bloated(dir.path());
        let at = dir.path().join("state");
        let before = state.stats().disk_bytes;
        let (state, opened) = renew_if_bloated(state, &at, config(), &snapshots, &RULES).unwrap();
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
        let (state, opened) = renew_if_bloated(state, &at, config(), &snapshots, &lean).unwrap();
        assert!(matches!(opened, Opened::Intact { .. }));
        let file = snapshots.latest(GroupId { shard: 1, incarnation: 1 }).unwrap().unwrap().path;
        let mut bytes = std::fs::read(&file).unwrap();
        let last = bytes.len() - 80;
        bytes[last] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let (state, opened) = renew_if_bloated(state, &at, config(), &snapshots, &RULES).unwrap();
        assert!(matches!(opened, Opened::Intact { .. }));
        assert_eq!(state.live_bytes().unwrap(), 1_004);
    }
}
