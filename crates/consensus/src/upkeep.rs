//! Checkpoints and snapshots, paced for the whole node.

use std::time::Duration;

use anchorhold_storage::DiskState;
use openraft::async_runtime::WatchReceiver;

use crate::host::Host;

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
        let building = replicas.iter().filter(|replica| replica.shared().cut.lock().is_some());
        if host.fitness_report().disk == DiskState::Full {
            // A snapshot stands beside the one before it until it is whole.
            continue;
        }
        let mut free = config.snapshot_builds_max.saturating_sub(building.count());
        for replica in replicas {
            if free == 0 {
                break;
            }
            let metrics = replica.raft().metrics();
            let (applied, snapshot) = {
                let metrics = metrics.borrow_watched();
                let index = |id: &crate::types::LogId| id.index;
                (
                    metrics.last_applied.as_ref().map_or(0, index),
                    metrics.snapshot.as_ref().map_or(0, index),
                )
            };
            if config.snapshot_entries <= applied.saturating_sub(snapshot)
                && replica.raft().trigger().snapshot().await.is_ok()
            {
                free -= 1;
            }
        }
    }
}

/// Returns whether the node may go on.
async fn checkpoint(host: &Host) -> bool {
    let (state, exit) = (host.parts().seams.state.clone(), host.parts().seams.exit.clone());
    let (done, result) = tokio::sync::oneshot::channel();
    let work = Box::new(move || drop(done.send(state.checkpoint())));
    host.parts().seams.offload.spawn(work).await;
    match result.await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            exit.exit(&format!("the state cannot be made durable: {error}"));
            false
        }
        Err(_) => true,
    }
}
