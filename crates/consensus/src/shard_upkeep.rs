//! What the leader of a shard sees to by itself: that a joint change is finished, that every member
//! has something to begin with. That the catalog knows the members: `shard_index`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anchorhold_model::{NodeId, ReplicaId, ShardId};
use openraft::async_runtime::WatchReceiver;

use crate::host::Host;
use crate::members;
use crate::replica::Replica;

/// How often the shards are looked at.
const INTERVAL: Duration = Duration::from_millis(200);
/// Every so many looks at those that rest too.
const LOOKS_PER_ROUND: u32 = 5;
/// How long a joint change may last before its leader takes whoever began it for dead.
const JOINT_AFTER: Duration = Duration::from_secs(2);
/// How long a member may be silent about its log before it gets a snapshot.
const EMPTY_AFTER: Duration = Duration::from_secs(5);

/// Since when something has been seen.
#[derive(Default)]
struct Memory {
    joint: BTreeMap<ShardId, Duration>,
    empty: BTreeMap<(ShardId, ReplicaId), Duration>,
}

/// Looks after the shards that this node leads, for ever.
pub(crate) async fn keep(host: Host) {
    let mut memory = Memory::default();
    let mut look = 0_u32;
    loop {
        tokio::time::sleep(INTERVAL).await;
        look = look.wrapping_add(1);
        let is_round = look.is_multiple_of(LOOKS_PER_ROUND);
        let mut led = host.replicas();
        led.retain(|replica| (is_round || !replica.is_quiesced()) && replica.is_leader());
        memory.joint.retain(|shard, _| led.iter().any(|one| one.shard_id() == *shard));
        // Kept while another leads: where leaders come and go, none would wait long enough.
        memory.empty.retain(|(shard, _), _| host.replica(*shard).is_some());
        let now = host.parts().seams.clock.monotonic();
        for replica in led {
            memory.finish_joint(&replica, now).await;
            memory.seed_empty(&host, &replica, now);
        }
    }
}

impl Memory {
    async fn finish_joint(&mut self, replica: &Arc<Replica>, now: Duration) {
        let shard = replica.shard_id();
        if !replica.status().is_joint {
            self.joint.remove(&shard);
            return;
        }
        let since = *self.joint.entry(shard).or_insert(now);
        if now.saturating_sub(since) < JOINT_AFTER {
            return;
        }
        self.joint.remove(&shard);
        tracing::info!(%shard, "finishing a joint change that was left behind");
        let finish = members::leave_joint(replica);
        match tokio::time::timeout(JOINT_AFTER, finish).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%shard, %error, "the joint change goes on"),
            Err(_) => tracing::debug!(%shard, "finishing the joint change takes long"),
        }
    }

    /// Gives a snapshot to members that never said what they have: a node that was away when the
    /// shard was founded, or whose replica was lost before it began.
    fn seed_empty(&mut self, host: &Host, replica: &Arc<Replica>, now: Duration) {
        let shard = replica.shard_id();
        let metrics = replica.raft().metrics().borrow_watched().clone();
        let matched = metrics.replication.unwrap_or_default();
        let own = replica.replica_id().0;
        for (id, node) in metrics.membership_config.membership().nodes() {
            let (key, node) = ((shard, ReplicaId(*id)), NodeId(node.node_id));
            let is_known = matched.get(id).is_some_and(Option::is_some);
            if *id == own || is_known || host.fitness().other(node).is_none() {
                self.empty.remove(&key);
                continue;
            }
            let since = *self.empty.entry(key).or_insert(now);
            if now.saturating_sub(since) < EMPTY_AFTER {
                continue;
            }
            self.empty.insert(key, now);
            let (host, replica) = (host.clone(), replica.clone());
            tokio::spawn(async move {
                if let Err(reason) = host.seed(&replica, node, key.1).await {
                    tracing::debug!(%shard, %node, reason, "a member that has nothing stays so");
                }
            });
        }
    }
}
