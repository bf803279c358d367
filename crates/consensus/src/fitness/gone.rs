//! Replaces leaders whose process has ended, without waiting for their lease to run out.
//!
//! A process that has ended is told apart from one that is only silent: its host refuses
//! connections. A voter whose leader's node refuses it asks the other voters; where a quorum is
//! refused, one of them campaigns at once, and the others grant their votes in spite of the lease,
//! as in a transfer of leadership. A campaign that nobody wins is repeated after a while; the usual
//! election comes sooner where its timeout is shorter.
//!
//! No safety depends on this: reads do not rest on leases, and a wrong verdict costs an election.
//! Not here: nodes that are silent; those are replaced by the election timeout.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anchorhold_model::NodeId;
use futures::future::join_all;

use super::keep::{ReplicaKey, key};
use crate::host::Host;
use crate::link::CallKind;
use crate::replica::{Led, Replica};
use crate::wire;

/// Time between two looks while a node that leads refuses connections, and while one that leads
/// nothing does.
const INTERVAL: Duration = Duration::from_millis(50);
const IDLE_INTERVAL: Duration = Duration::from_millis(250);
/// How long another voter may take to say whether the node refuses it too.
const ASK_TIMEOUT: Duration = Duration::from_millis(300);
/// Each voter campaigns so much after the one before it, so that votes are not split.
pub(crate) const TURN: Duration = Duration::from_millis(250);

/// How long a campaign may go without a result before it is repeated.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Looks for leaders that are gone, for ever.
pub(crate) async fn replace_gone(host: Host) {
    let mut campaigns = Campaigns::default();
    loop {
        let refusing = host.peers().refusing();
        if refusing.is_empty() {
            campaigns.0.clear();
            host.peers().refused().await;
            continue;
        }
        let mut leads = false;
        for node in refusing {
            leads |= replace_leaders_on(&host, node, &mut campaigns).await;
        }
        tokio::time::sleep(if leads { INTERVAL } else { IDLE_INTERVAL }).await;
    }
}

/// Of each group, what is done about its leader that is gone.
#[derive(Default)]
struct Campaigns(BTreeMap<ReplicaKey, Campaign>);

struct Campaign {
    /// The leader's.
    term: u64,
    step: Step,
}

enum Step {
    /// Found to be gone at this moment: others may come first.
    Waiting(Duration),
    /// This replica asked for votes, last at this moment.
    Asked(Duration),
}

/// Returns whether the node leads anything, as far as is known here.
async fn replace_leaders_on(host: &Host, gone: NodeId, campaigns: &mut Campaigns) -> bool {
    let own = host.identity().node_id;
    let mut replicas = host.replicas();
    replicas.push(host.catalog_replica());
    let now = host.parts().seams.clock.monotonic();
    campaigns.repeat(&replicas, now).await;
    let led: Vec<(Arc<Replica>, Led)> = replicas
        .into_iter()
        .filter_map(|replica| {
            let led = replica.led()?;
            let is_concerned = led.leader.node_id == gone && led.voters.contains(&own);
            let is_open = campaigns.is_open(&replica, led.term, now);
            (is_concerned && is_open && replica.may_campaign()).then_some((replica, led))
        })
        .collect();
    if led.is_empty() {
        return false;
    }
    let others: BTreeSet<NodeId> = led
        .iter()
        .flat_map(|(_, led)| led.voters.iter().copied())
        .filter(|node| *node != own && *node != gone)
        .collect();
    let asked =
        others.into_iter().map(|node| async move { (node, is_refused(host, node, gone).await) });
    let answers = join_all(asked).await;
    let mut refused: BTreeSet<NodeId> =
        answers.into_iter().filter(|(_, is)| *is).map(|(node, _)| node).collect();
    refused.insert(own);
    let now = host.parts().seams.clock.monotonic();
    for (replica, led) in led {
        let Some(turn) = turn(replica.shard_id().0, &led.voters, &refused, own) else { continue };
        if campaigns.is_due(&replica, led.term, turn, now) {
            tracing::info!(
                shard = replica.shard_id().0,
                node = gone.0,
                "the leader's node is gone"
            );
            replica.replace_leader(&led).await;
        }
    }
    true
}

/// Asks a node whether another one refuses its connections too.
async fn is_refused(host: &Host, asked: NodeId, gone: NodeId) -> bool {
    let question = wire::encode(&gone);
    let answer = host.peers().call(asked, CallKind::Refused, question, ASK_TIMEOUT).await;
    let Ok(answer) = answer else { return false };
    wire::decode("whether a node refuses connections", &answer).unwrap_or(false)
}

/// After how many others this voter campaigns; `None` if no quorum of the voters is refused. Which
/// of them is the first differs from shard to shard, so that leaderships are spread.
pub(crate) fn turn(
    shard: u64,
    voters: &BTreeSet<NodeId>,
    refused: &BTreeSet<NodeId>,
    own: NodeId,
) -> Option<u32> {
    let agreed: Vec<NodeId> = voters.intersection(refused).copied().collect();
    if agreed.len() <= voters.len() / 2 {
        return None;
    }
    let place = agreed.iter().position(|node| *node == own)?;
    let first = usize::try_from(shard % agreed.len() as u64).unwrap_or(0);
    u32::try_from((place + agreed.len() - first) % agreed.len()).ok()
}

impl Campaigns {
    /// Whether this replica has yet to ask for votes against the leader of a term, or to ask again.
    fn is_open(&self, replica: &Replica, term: u64, now: Duration) -> bool {
        self.0.get(&key(replica)).is_none_or(|known| match known.step {
            Step::Asked(at) if known.term == term => AGAIN_AFTER <= now.saturating_sub(at),
            Step::Asked(_) | Step::Waiting(_) => true,
        })
    }

    /// Whether the replica's turn has come; says so once, and once more when nothing has come of it.
    fn is_due(&mut self, replica: &Replica, term: u64, turn: u32, now: Duration) -> bool {
        let waiting = Campaign { term, step: Step::Waiting(now) };
        let known = self.0.entry(key(replica)).or_insert(waiting);
        if known.term != term {
            *known = Campaign { term, step: Step::Waiting(now) };
        }
        let is_due = match known.step {
            Step::Waiting(since) => turn * TURN <= now.saturating_sub(since),
            Step::Asked(at) => AGAIN_AFTER <= now.saturating_sub(at),
        };
        if is_due {
            known.step = Step::Asked(now);
        }
        is_due
    }

    /// Asks for votes again where this replica has asked before and nobody leads since.
    async fn repeat(&mut self, replicas: &[Arc<Replica>], now: Duration) {
        for replica in replicas {
            let known = self.0.get_mut(&key(replica)).map(|known| &mut known.step);
            let Some(Step::Asked(at)) = known else { continue };
            let is_old = AGAIN_AFTER <= now.saturating_sub(*at);
            if is_old && replica.leader().is_none() && replica.may_campaign() {
                *at = now;
                replica.stand_again().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(shard: u64, voters: &[u64], refused: &[u64]) -> Vec<Option<u32>> {
        let set = |ids: &[u64]| ids.iter().map(|id| NodeId(*id)).collect::<BTreeSet<_>>();
        let (voters, refused) = (set(voters), set(refused));
        voters.iter().map(|own| turn(shard, &voters, &refused, *own)).collect()
    }

    #[test]
    fn a_quorum_of_the_voters_must_be_refused() {
        assert_eq!(turns(0, &[1, 2, 3], &[2]), [None; 3]);
        assert_eq!(turns(0, &[1, 2, 3], &[2, 9]), [None; 3], "9 has no vote");
        assert_eq!(turns(0, &[1, 2, 3], &[2, 3]), [None, Some(0), Some(1)]);
        assert_eq!(turns(0, &[1, 2, 3, 4], &[2, 3]), [None; 4]);
        assert_eq!(turns(0, &[1, 2], &[2]), [None; 2]);
    }

    #[test]
    fn one_campaigns_first_and_another_one_for_the_next_shard() {
        assert_eq!(turns(1, &[1, 2, 3], &[2, 3]), [None, Some(1), Some(0)]);
        let five = turns(7, &[1, 2, 3, 4, 5], &[1, 2, 4, 5]);
        assert_eq!(five, [Some(1), Some(2), None, Some(3), Some(0)]);
    }
}
