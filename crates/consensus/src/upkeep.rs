//! Checkpoints and snapshots, paced for the whole node.

use std::time::Duration;

use anchorhold_storage::{DiskState, StateError};
use openraft::async_runtime::WatchReceiver;

use crate::host::Host;
use crate::merge;
use crate::replica::Replica;
use crate::snapshot::Purpose;

/// A snapshot that makes fewer entries than this superfluous is not worth its cost.
const LARGE_ENTRIES_MIN: u64 = 8;

/// Bytes that a snapshot must give back where the disk has little room left: what fills it may be the
/// logs.
const SCARCE_BYTES: u64 = 1 << 20;

/// Makes a checkpoint of the state now and then, and starts snapshots of the groups whose logs have
/// grown; a few at a time, whatever the number of groups.
pub(crate) async fn keep(host: Host) {
    let config = host.parts().config.clone();
    loop {
        tokio::time::sleep(Duration::from_millis(config.checkpoint_interval_ms)).await;
        if !checkpoint(&host).await {
            return;
        }
        let mut replicas = host.replicas();
        replicas.push(host.catalog_replica());
        if let Some(reason) = replicas.iter().find_map(|replica| replica.failure()) {
            // Its storage failed under it: a node that keeps such a replica only looks healthy.
            host.parts().seams.exit.exit(&reason);
            return;
        }
        replicas.iter().for_each(|replica| replica.lift_fence());
        let building = replicas.iter().filter(|replica| {
            let cut = replica.shared().cut.lock();
            cut.as_ref().is_some_and(|cut| cut.purpose == Purpose::Snapshot)
        });
        if let Err(error) = merge::clear_up(&host).await {
            host.parts()
                .seams
                .exit
                .exit(&format!("what a merge has left cannot be removed: {error}"));
            return;
        }
        let disk = host.fitness_report().disk;
        // A snapshot stands beside the one before it until it is whole.
        let builds_max = if disk == DiskState::Full { 0 } else { config.snapshot_builds_max };
        let mut free = builds_max.saturating_sub(building.count());
        let damaged = host.parts().seams.log.damaged_groups();
        for replica in replicas {
            let log_bytes = host.parts().seams.log.group_bytes(replica.group());
            // What cannot be read cannot be moved, and keeps all segments behind it.
            let is_damaged = damaged.contains(&replica.group());
            replica.set_log_full(config.shard_log_bytes_max <= log_bytes);
            let (births, shard) = (host.births(), replica.shard_id());
            let is_large = match disk {
                DiskState::Normal => config.snapshot_log_bytes <= log_bytes,
                DiskState::AlmostFull | DiskState::Full => gives_room(&host, &replica, log_bytes),
            };
            let wish = Wish {
                entries: if is_damaged { 1 } else { config.snapshot_entries },
                is_large: is_damaged || is_large,
                may_build: 0 < free && !births.is_parent(shard),
            };
            // A newborn's first file frees its parent, whose next one drops what is the child's.
            let is_wanted = || {
                births.of(shard).is_some()
                    || births.take_renewal(shard)
                    || host.merges().wants_file(shard)
            };
            if shrink(&replica, wish, is_wanted).await {
                free -= 1;
            }
        }
    }
}

/// Whether a snapshot and the purge that follows leave more room on the disk than before, and the
/// disk has the room that the new file takes until then.
fn gives_room(host: &Host, replica: &Replica, log_bytes: u64) -> bool {
    let before = host.parts().seams.snapshots.latest(replica.group());
    let before = before.ok().flatten().map_or(0, |file| file.bytes);
    let taken = replica.state().bytes;
    taken < host.fitness().spare_bytes()
        && taken.saturating_add(SCARCE_BYTES) <= log_bytes.saturating_add(before)
}

/// When a replica's log is to be made shorter.
#[derive(Clone, Copy)]
struct Wish {
    /// Entries since the last snapshot.
    entries: u64,
    /// Whether the log is too large for what is usually kept.
    is_large: bool,
    may_build: bool,
}

/// Starts a snapshot if the log has grown or one is wanted anyway, or purges what one has made
/// superfluous if the log is too large. Returns whether a snapshot was started.
async fn shrink(replica: &Replica, wish: Wish, is_wanted: impl Fn() -> bool) -> bool {
    let metrics = replica.raft().metrics();
    let (applied, snapshot, purged) = {
        let metrics = metrics.borrow_watched();
        let index = |id: &crate::types::LogId| id.index;
        (
            metrics.last_applied.as_ref().map_or(0, index),
            metrics.snapshot.as_ref().map_or(0, index),
            metrics.purged.as_ref().map_or(0, index),
        )
    };
    if wish.is_large && purged < snapshot {
        // Who lags behind that gets the snapshot. Errors: the replica has stopped.
        drop(replica.raft().trigger().purge_log(snapshot).await);
        return false;
    }
    let since = applied.saturating_sub(snapshot);
    let is_grown = wish.entries <= since || wish.is_large && LARGE_ENTRIES_MIN <= since;
    wish.may_build && (is_grown || is_wanted()) && replica.raft().trigger().snapshot().await.is_ok()
}

/// Returns whether the node may go on.
async fn checkpoint(host: &Host) -> bool {
    let (state, exit) = (host.parts().seams.state.clone(), host.parts().seams.exit.clone());
    let (done, result) = tokio::sync::oneshot::channel();
    let work = Box::new(move || drop(done.send(state.checkpoint())));
    host.parts().seams.offload.spawn(work).await;
    match result.await {
        // A full disk: the log keeps what is not durable in the state, and the next one may succeed.
        Ok(Ok(()) | Err(StateError::NoSpace)) => true,
        Ok(Err(error)) => {
            exit.exit(&format!("the state cannot be made durable: {error}"));
            false
        }
        Err(_) => true,
    }
}
