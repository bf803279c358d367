//! Reads again what lies on the disk, at a bounded rate, before somebody needs it, and compares the
//! replicas of the shards that this node leads.
//!
//! A round reads every snapshot file, every row of the state and every live entry of the log; each
//! carries checksums. A damaged snapshot is replaced by a new one from the state. A damaged state
//! ends the process: its next start discards it and rebuilds it. A damaged log is only told: what
//! it held must come from the other nodes.
//!
//! Not here: looking without a node (`inspect`).

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anchorhold_consensus::Exit;
use anchorhold_storage::ReadError;
use anchorhold_storage::log_store::GroupId;
use anchorhold_storage::snapshot::{SnapshotError, SnapshotReader, SnapshotStore};
use metrics::counter;
use tokio::sync::oneshot;

use crate::config::DiskConfig;
use crate::core::Core;
use crate::telemetry::name;

/// Bytes that are read at a time, about.
const STEP_BYTES: usize = 256 << 10;
/// How long one comparison of replicas may take, at the bounded rate.
const COMPARE_BUDGET: Duration = Duration::from_secs(600);
/// Parts that are named as damaged, at most.
const DAMAGE_MAX: usize = 8;

/// Reads a node's disk, round after round.
pub struct Scrub {
    core: Arc<Core>,
    snapshots: Arc<SnapshotStore>,
    exit: Arc<dyn Exit>,
    bytes_per_second: u64,
    pause: Duration,
}

impl Scrub {
    /// A scrub of a node's stores.
    pub fn new(
        core: Arc<Core>,
        snapshots: Arc<SnapshotStore>,
        exit: Arc<dyn Exit>,
        config: &DiskConfig,
    ) -> Self {
        Self {
            core,
            snapshots,
            exit,
            bytes_per_second: config.scrub_bytes_per_second,
            pause: Duration::from_secs(config.scrub_pause_s),
        }
    }

    /// Goes round for ever; the first time after a pause.
    pub async fn run(self) {
        loop {
            tokio::time::sleep(self.pause).await;
            let damage = self.round().await;
            for found in &damage {
                tracing::error!(damage = found.as_str(), "the disk does not hold what was written");
            }
            counter!(name::SCRUB_ROUNDS_TOTAL).increment(1);
            *self.core.damage.lock() = damage;
        }
    }

    /// Reads everything once. Gives what is damaged, for people.
    async fn round(&self) -> Vec<String> {
        let mut damage = self.read_snapshots().await;
        damage.extend(self.read_state().await);
        damage.extend(self.read_log().await);
        damage.extend(self.compare_replicas().await);
        damage.truncate(DAMAGE_MAX);
        damage
    }

    /// Runs a step where it may block.
    async fn step<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (done, result) = oneshot::channel();
        self.core.offload.spawn(Box::new(move || drop(done.send(work())))).await;
        result.await.ok()
    }

    /// Notes what was read, and waits as long as that may take.
    async fn pace(&self, part: &'static str, bytes: usize) {
        counter!(name::SCRUB_BYTES_TOTAL, "part" => part).increment(bytes as u64);
        let micros = bytes as u64 * 1_000_000 / self.bytes_per_second.max(1);
        tokio::time::sleep(Duration::from_micros(micros)).await;
    }

    fn note(part: &'static str) {
        counter!(name::SCRUB_DAMAGE_TOTAL, "part" => part).increment(1);
    }

    async fn read_snapshots(&self) -> Vec<String> {
        let snapshots = Arc::clone(&self.snapshots);
        let mut damage = Vec::new();
        for group in snapshots.groups() {
            let snapshots = Arc::clone(&self.snapshots);
            let latest = self.step(move || snapshots.latest(group)).await;
            let reason = match latest {
                Some(Ok(Some(file))) => match self.read_snapshot(file.path).await {
                    Ok(()) => continue,
                    Err(error) => error.to_string(),
                },
                // It has files, and none of them even has a beginning and an end.
                Some(Ok(None)) => format!("the snapshot file of shard {} is damaged", group.shard),
                Some(Err(error)) => error.to_string(),
                None => continue,
            };
            Self::note("snapshot");
            damage.push(format!("{reason}; a new one is made from the state"));
            self.renew_snapshot(group).await;
        }
        damage
    }

    async fn renew_snapshot(&self, group: GroupId) {
        let mut replicas = self.core.host.replicas();
        replicas.push(self.core.host.catalog_replica());
        if let Some(replica) = replicas.iter().find(|one| one.shard_id().0 == group.shard) {
            replica.renew_snapshot().await;
        }
    }

    async fn read_snapshot(&self, path: PathBuf) -> Result<(), SnapshotError> {
        let opened = self.step(move || SnapshotReader::open(&path)).await;
        let mut reader = match opened {
            Some(Ok(reader)) => reader,
            // Replaced meanwhile: the next round reads what took its place.
            Some(Err(error)) if is_gone(&error) => return Ok(()),
            Some(Err(error)) => return Err(error),
            None => return Ok(()),
        };
        loop {
            let read = self.step(move || read_rows(reader)).await;
            let Some((back, bytes, rest)) = read else { return Ok(()) };
            self.pace("snapshot", bytes).await;
            if !rest? {
                return Ok(());
            }
            reader = back;
        }
    }

    async fn read_state(&self) -> Vec<String> {
        let mut start = Vec::new();
        loop {
            let (state, from) = (Arc::clone(&self.core.state), start.clone());
            let read = self.step(move || {
                let (mut bytes, mut last) = (0, None);
                let end = [u8::MAX; 64];
                let scanned = state.scan(&from[..]..&end[..], &mut |key, value| {
                    bytes += key.len() + value.len();
                    last = Some(key.to_vec());
                    if bytes < STEP_BYTES {
                        ControlFlow::Continue(())
                    } else {
                        ControlFlow::Break(())
                    }
                });
                scanned.map(|()| (bytes, last))
            });
            match read.await {
                Some(Ok((bytes, last))) => {
                    self.pace("state", bytes).await;
                    match last {
                        Some(last) if STEP_BYTES <= bytes => {
                            start = last;
                            start.push(0);
                        }
                        Some(_) | None => return Vec::new(),
                    }
                }
                Some(Err(error)) => {
                    Self::note("state");
                    // The store has noted it: the next start discards the state and rebuilds it.
                    self.exit.exit(&format!("the state cannot be read any more: {error}"));
                    return vec![format!("{error}; the next start rebuilds it")];
                }
                None => return Vec::new(),
            }
        }
    }

    /// Compares the replicas of the shards that this node leads.
    async fn compare_replicas(&self) -> Vec<String> {
        let mut replicas = self.core.host.replicas();
        replicas.push(self.core.host.catalog_replica());
        let mut different = Vec::new();
        for replica in replicas.iter().filter(|replica| replica.is_leader()) {
            let shard = replica.shard_id();
            let compared =
                self.core.compare_replicas(shard, self.bytes_per_second, COMPARE_BUDGET).await;
            match compared {
                Ok(compared) => different.extend(compared.problem(shard)),
                Err(error) => tracing::debug!(error, shard = shard.0, "replicas not compared"),
            }
        }
        different
    }

    async fn read_log(&self) -> Vec<String> {
        let mut damage = Vec::new();
        for group in self.core.log.groups() {
            if let Err(error) = self.read_group(group).await {
                Self::note("log");
                damage.push(format!("{error}: `anchorhold debug log verify` says what to do"));
            }
        }
        damage
    }

    async fn read_group(&self, group: GroupId) -> Result<(), ReadError> {
        let mut next = 0;
        loop {
            let Some(found) = self.core.log.group(group) else { return Ok(()) };
            let purged_end = found.purged.map_or(0, |purged| purged.index + 1);
            next = next.max(purged_end);
            let end = found.last.map_or(0, |last| last.index + 1);
            if end <= next {
                return Ok(());
            }
            let log = Arc::clone(&self.core.log);
            let read = self.step(move || log.read_stored(group, next..end, STEP_BYTES)).await;
            match read {
                Some(Ok(entries)) => {
                    let bytes = entries.iter().map(|entry| entry.content.len()).sum();
                    next = entries.last().map_or(end, |last| last.position.index + 1);
                    self.pace("log", bytes).await;
                }
                // Purged or begun anew meanwhile.
                Some(Err(ReadError::Purged { .. } | ReadError::Unknown { .. })) => next += 1,
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            }
        }
    }
}

/// Reads some rows. Gives the reader back, the bytes read, and whether there are more.
fn read_rows(mut reader: SnapshotReader) -> (SnapshotReader, usize, Result<bool, SnapshotError>) {
    let mut bytes = 0;
    while bytes < STEP_BYTES {
        match reader.next() {
            Some(Ok((key, value))) => bytes += key.len() + value.len(),
            Some(Err(error)) => return (reader, bytes, Err(error)),
            None => return (reader, bytes, Ok(false)),
        }
    }
    (reader, bytes, Ok(true))
}

fn is_gone(error: &SnapshotError) -> bool {
    matches!(error, SnapshotError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
}
