//! The data directory's disk: how full it is, and the ballast on it.
//!
//! [`Disk::watch`] looks at the free space now and then and tells the replicas; what they do about
//! it is `consensus::fitness`. A start on a full disk gives the ballast up by itself and waits for
//! the little room that opening the stores takes, so that a node never needs more than space to come
//! back.
//!
//! Invariant: the ballast is in place whenever the disk was Normal with it at the last look.
//!
//! Not here: when a disk is how full (`storage::disk_space`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anchorhold_consensus::{Host, Offload};
use anchorhold_storage::fs::FileSystem;
use anchorhold_storage::{Ballast, DiskState, SpaceRules};
use parking_lot::Mutex;

use crate::config::DiskConfig;
use crate::node::OpenStores;

/// Free bytes without which a start waits: the stores could not even be opened.
const START_BYTES_MIN: u64 = 2 << 20;
/// Looks at a full disk between two messages while a start waits.
const WAIT_LOOKS: u32 = 10;

/// The disk of one data directory.
pub struct Disk {
    stores: Arc<dyn OpenStores>,
    fs: Arc<dyn FileSystem>,
    dir: PathBuf,
    config: DiskConfig,
    ballast: Ballast,
    /// Free bytes at the last look.
    free_bytes: AtomicU64,
    ballast_bytes: AtomicU64,
    /// One at a time moves the ballast. Holds how full the disk was at the last look.
    state: Mutex<DiskState>,
}

impl Disk {
    /// The disk that a data directory lies on.
    pub fn new(stores: Arc<dyn OpenStores>, dir: &Path, config: DiskConfig) -> Self {
        let fs = stores.file_system();
        let ballast = Ballast::new(Arc::clone(&fs), dir, config.ballast_bytes);
        Self {
            stores,
            fs,
            dir: dir.to_owned(),
            config,
            ballast,
            free_bytes: AtomicU64::default(),
            ballast_bytes: AtomicU64::default(),
            state: Mutex::default(),
        }
    }

    fn rules(&self) -> SpaceRules {
        SpaceRules {
            almost_full_bytes: self.config.almost_full_bytes,
            full_bytes: self.config.full_bytes,
        }
    }

    /// Bytes that this node may still write.
    pub fn free(&self) -> u64 {
        // A disk that does not even say how full it is, is as good as full.
        let free = self.fs.space(&self.dir).unwrap_or(0);
        match self.config.bytes_max {
            Some(most) => free.min(most.saturating_sub(self.stores.used_bytes(&self.dir))),
            None => free,
        }
    }

    /// Makes sure that there is room to open the stores: gives the ballast up if there is not, and
    /// waits as long as that is not enough.
    pub async fn prepare(&self) {
        let mut looks = 0;
        loop {
            let mut free = self.free();
            if free < self.config.full_bytes.max(START_BYTES_MIN) {
                let released = self.ballast.release().unwrap_or(0);
                if 0 < released {
                    tracing::warn!(free, released, "the disk is full: the ballast is given up");
                    free = self.free();
                }
            }
            if START_BYTES_MIN <= free {
                return;
            }
            if looks % WAIT_LOOKS == 0 {
                tracing::error!(
                    free,
                    needed = START_BYTES_MIN,
                    dir = %self.dir.display(),
                    "the disk is full: this start goes on by itself once there is room"
                );
            }
            looks += 1;
            tokio::time::sleep(Duration::from_millis(self.config.check_interval_ms)).await;
        }
    }

    /// Looks at the disk once, and puts the ballast in place if there is plenty of room.
    pub fn look(&self) -> DiskState {
        let mut state = self.state.lock();
        let before = *state;
        let mut free = self.free();
        *state = self.rules().next(before, free);
        if *state == DiskState::Normal {
            let spare = self.config.almost_full_bytes.saturating_mul(5) / 4;
            let has_room = free.saturating_sub(spare) >= self.config.ballast_bytes;
            if has_room && self.ballast.held_bytes() < self.config.ballast_bytes {
                match self.ballast.place(spare) {
                    Ok(_) => free = self.free(),
                    Err(error) => tracing::warn!(%error, "no ballast could be put on the disk"),
                }
            }
        }
        self.free_bytes.store(free, Ordering::Relaxed);
        self.ballast_bytes.store(self.ballast.held_bytes(), Ordering::Relaxed);
        if *state != before {
            tracing::warn!(?before, now = ?*state, free, "the disk's state has changed");
        }
        *state
    }

    /// Looks at the disk once and tells the host.
    pub fn tell(&self, host: &Host) {
        let disk = self.look();
        host.set_disk_state(disk, self.free_bytes().saturating_sub(self.config.full_bytes));
    }

    /// Looks at the disk for ever and tells the host.
    pub async fn watch(self: Arc<Self>, host: Host, offload: Arc<dyn Offload>) {
        loop {
            tokio::time::sleep(Duration::from_millis(self.config.check_interval_ms)).await;
            let (disk, host) = (Arc::clone(&self), host.clone());
            offload.spawn(Box::new(move || disk.tell(&host))).await;
        }
    }

    /// Gives the ballast's space back until the disk has room for it again.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn release_ballast(&self) -> std::io::Result<u64> {
        let _state = self.state.lock();
        let released = self.ballast.release()?;
        self.ballast_bytes.store(0, Ordering::Relaxed);
        tracing::warn!(released, "the ballast was given up on command");
        Ok(released)
    }

    /// Bytes that were free at the last look.
    pub fn free_bytes(&self) -> u64 {
        self.free_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of the ballast at the last look.
    pub fn ballast_bytes(&self) -> u64 {
        self.ballast_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that the data directory takes, the ballast aside.
    pub fn used_bytes(&self) -> u64 {
        self.stores.used_bytes(&self.dir).saturating_sub(self.ballast_bytes())
    }
}
