//! Lets idle shards rest: their replicas' timers stop, and nodes watch each other instead
//! (docs/decisions/2026-11-30-idle-shards-rest.md).
//!
//! A leader whose shard is idle stops its own timer, asks the members, and rests when all that are
//! alive agree and a quorum is among them. What wakes a replica: whatever is asked of its shard, any
//! message of Raft, and the silence of the node that leads it. A node that starts lets its replicas
//! begin at rest, and asks their leaders' nodes whether they lead, all shards of a node in one call;
//! those that it led itself wake a few at a time. However many shards there are, few are awake for no
//! reason: more than the machine can keep alive would elect for ever.
//!
//! Not here: the state of one replica (`replica::quiescence`). No safety depends on any of this: a
//! replica that rests answers everything, and only starts nothing by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anchorhold_model::{NodeId, ShardId};
use anchorhold_storage::GroupId;
use bytes::Bytes;
use futures::future::join_all;
use serde::{Deserialize, Serialize};

use crate::fitness::gone::{TURN, turn};
use crate::fitness::keep::{ReplicaKey, key};
use crate::host::{CATALOG_GROUP, Host};
use crate::link::CallKind;
use crate::replica::{Idle, Replica, Rest};
use crate::wire::{self, WireError};

/// How often a node looks whether the others are there.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Every so many looks it looks for shards that may rest.
const LOOKS_PER_ROUND: u32 = 5;
/// How long a shard of which nothing was asked is left alone by elections and stragglers before it
/// rests.
const SETTLED_AFTER: Duration = Duration::from_secs(1);
/// Every so many looks it asks about all replicas that it does not lead.
const LOOKS_PER_REVIEW: u32 = 30;
/// A node that has not answered for as long leads nothing that rests. Nodes are asked twice a second.
const SILENCE_MAX: Duration = Duration::from_millis(1_250);
/// How long a leader's last heartbeats may be under way before it asks whether the members rest.
const DRAIN: Duration = Duration::from_millis(50);
/// How long the members may take to answer. With `DRAIN` far less than a lease.
const ASK_TIMEOUT: Duration = Duration::from_millis(300);
/// Shards that one round lets rest, at most.
const SHARDS_MAX: usize = 1_024;
/// Replicas woken at once, and the pause before the next ones: each campaigns.
const WAKE_TOGETHER: usize = 32;
const WAKE_PAUSE: Duration = Duration::from_millis(10);
/// The pause when a node that starts wakes what nobody leads: nobody has waited for those.
const START_PAUSE: Duration = Duration::from_millis(50);

/// What one member of one shard is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Question {
    shard: u64,
    incarnation: u32,
    /// The replica that is asked.
    to: u64,
    rest: Rest,
}

/// What is remembered between two looks.
#[derive(Default)]
struct Memory {
    /// What was seen of shards that are led here and idle, and since when.
    idle: BTreeMap<ReplicaKey, (Idle, Duration)>,
    /// Replicas that are to wake because their leader's node is silent.
    waking: BTreeSet<ReplicaKey>,
    /// Since when there have been replicas that began at rest and that no leader has confirmed.
    unconfirmed_since: Option<Duration>,
}

/// Lets shards rest and wakes them, for ever.
pub(crate) async fn keep(host: Host) {
    let mut memory = Memory::default();
    let mut look = 0_u32;
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        look = look.wrapping_add(1);
        memory.confirm_leaders(&host, look.is_multiple_of(LOOKS_PER_REVIEW)).await;
        memory.wake_orphans(&host);
        if host.parts().config.quiesce_after_ms != 0 && look.is_multiple_of(LOOKS_PER_ROUND) {
            memory.let_rest(&host).await;
        }
    }
}

fn is_silent(host: &Host, node: NodeId) -> bool {
    node != host.identity().node_id && !host.fitness().has_heard(node, SILENCE_MAX)
}

impl Memory {
    /// Asks the leaders' nodes of replicas whether they lead. Those that began at rest and that none
    /// confirms wake; now and then all are asked about, whatever went wrong with one.
    async fn confirm_leaders(&mut self, host: &Host, is_round: bool) {
        let mut replicas = host.replicas();
        let unconfirmed = replicas.iter().any(|replica| replica.is_unconfirmed());
        if !unconfirmed {
            self.unconfirmed_since = None;
        }
        replicas.retain(|replica| replica.is_unconfirmed() || is_round);
        if replicas.is_empty() {
            return;
        }
        let now = host.parts().seams.clock.monotonic();
        let mut asked: BTreeMap<NodeId, Vec<Arc<Replica>>> = BTreeMap::new();
        let mut unled = Vec::new();
        for replica in &replicas {
            match replica.leader().map(|leader| leader.node_id) {
                Some(node) if node != host.identity().node_id => {
                    asked.entry(node).or_default().push(Arc::clone(replica));
                }
                Some(_) if replica.is_leader() => {}
                Some(_) => unled.push(Arc::clone(replica)),
                None if replica.is_unconfirmed() => {}
                None => unled.push(Arc::clone(replica)),
            }
        }
        let asked = asked.into_iter().map(|(node, replicas)| ask_who_leads(host, node, replicas));
        unled.extend(join_all(asked).await.into_iter().flatten());
        if unconfirmed
            && SILENCE_MAX <= now.saturating_sub(*self.unconfirmed_since.get_or_insert(now))
        {
            replicas.retain(|replica| replica.is_unconfirmed());
            unled.extend(replicas);
        }
        unled.retain(|replica| replica.is_quiesced());
        if !unled.is_empty() {
            // Not asked about again.
            unled.iter().for_each(|replica| replica.confirm_rest());
            wake_some(unled, Duration::ZERO, START_PAUSE);
        }
    }

    /// Wakes the replicas whose leaders' nodes are silent.
    fn wake_orphans(&mut self, host: &Host) {
        let own = host.identity().node_id;
        let peers = host.peers().addresses();
        let silent: BTreeSet<NodeId> =
            peers.into_iter().map(|(node, _)| node).filter(|node| is_silent(host, *node)).collect();
        let waking = std::mem::take(&mut self.waking);
        if silent.is_empty() {
            return;
        }
        let mut turns: BTreeMap<u32, Vec<Arc<Replica>>> = BTreeMap::new();
        for replica in host.replicas() {
            if !replica.is_quiesced() || replica.is_unconfirmed() {
                continue;
            }
            let Some(leader) = replica.leader().map(|leader| leader.node_id) else { continue };
            if leader == own && hears_no_quorum(&replica, &silent) {
                replica.stir();
            }
            let Some(led) = replica.led().filter(|_| silent.contains(&leader)) else { continue };
            self.waking.insert(key(&replica));
            if waking.contains(&key(&replica)) {
                continue;
            }
            let agreed = led.voters.difference(&silent).copied().collect();
            // Without a quorum nobody is elected; it wakes all the same, to be led by whoever comes.
            let turn = turn(replica.shard_id().0, &led.voters, &agreed, own).unwrap_or_default();
            turns.entry(turn).or_default().push(replica);
        }
        for (turn, replicas) in turns {
            tracing::info!(replicas = replicas.len(), turn, "their leader's node is silent");
            wake_some(replicas, turn * TURN, WAKE_PAUSE);
        }
    }

    /// Asks the members of the shards that have been idle for long enough whether they rest too.
    async fn let_rest(&mut self, host: &Host) {
        let now = host.parts().seams.clock.monotonic();
        let after = Duration::from_millis(host.parts().config.quiesce_after_ms);
        let mut due = Vec::new();
        let mut seen = BTreeMap::new();
        for replica in host.replicas() {
            let Some(idle) = idle(host, &replica) else { continue };
            let since = match self.idle.remove(&key(&replica)) {
                Some((before, since)) if before == idle => since,
                Some(_) | None => now,
            };
            let asked_ago = match idle.asked_ms {
                0 => Duration::MAX,
                asked_ms => now.saturating_sub(Duration::from_millis(asked_ms)),
            };
            let is_due = after <= asked_ago && SETTLED_AFTER <= now.saturating_sub(since);
            if is_due && due.len() < SHARDS_MAX && replica.settle() {
                due.push((replica.clone(), idle.clone()));
            }
            seen.insert(key(&replica), (idle, since));
        }
        self.idle = seen;
        if due.is_empty() {
            return;
        }
        tokio::time::sleep(DRAIN).await;
        let agreed = ask_members(host, &due).await;
        for (replica, idle) in due {
            let shard = replica.shard_id();
            let rests = may_rest(host, &idle, |to| agreed.contains(&(shard, to)));
            if !(rests && replica.rest_as_leader(&idle)) {
                replica.stir();
                self.idle.remove(&key(&replica));
            }
        }
    }
}

/// Asks a node which of some replicas' shards it leads; returns those that it does not. Leaders that
/// rest although a member is awake or not in step are woken.
async fn ask_who_leads(
    host: &Host,
    node: NodeId,
    replicas: Vec<Arc<Replica>>,
) -> Vec<Arc<Replica>> {
    let named = |replica: &Arc<Replica>| {
        let GroupId { shard, incarnation } = replica.group();
        (shard, incarnation)
    };
    let question = wire::encode(&replicas.iter().map(named).collect::<Vec<_>>());
    let answer = host.peers().call(node, CallKind::Leads, question, ASK_TIMEOUT).await;
    let answer = answer.ok().and_then(|answer| wire::decode("who leads", &answer).ok());
    let stands: Vec<Option<(Rest, bool)>> = answer.unwrap_or_default();
    let (mut unled, mut behind) = (Vec::new(), Vec::new());
    for (replica, stand) in replicas.into_iter().zip(stands) {
        let Some((rest, leader_rests)) = stand else {
            unled.push(replica);
            continue;
        };
        if leader_rests && !(replica.is_quiesced() && replica.is_in_step(rest)) {
            behind.push(named(&replica));
        }
        replica.confirm_rest();
    }
    if !behind.is_empty() {
        rouse_at(host, node, &behind).await;
    }
    unled
}

/// Asks a node to wake shards that it leads; returns which of them it does lead.
async fn rouse_at(host: &Host, node: NodeId, groups: &[(u64, u32)]) -> Option<Vec<bool>> {
    let content = wire::encode(&groups);
    let answer = host.peers().call(node, CallKind::Rouse, content, ASK_TIMEOUT).await;
    answer.ok().and_then(|answer| wire::decode("whether it leads", &answer).ok())
}

/// Says where this node's replicas stand that lead.
///
/// # Errors
/// If the question makes no sense.
pub(crate) fn answer_leads(host: &Host, content: &[u8]) -> Result<Bytes, WireError> {
    let groups: Vec<(u64, u32)> = wire::decode("a question who leads", content)?;
    let stand = |(shard, incarnation)| {
        let replica = host.replica_of_group(GroupId { shard, incarnation });
        replica.and_then(|replica| replica.stand())
    };
    Ok(wire::encode(&groups.into_iter().map(stand).collect::<Vec<_>>()))
}

/// Wakes replicas after a while, a few at a time.
fn wake_some(replicas: Vec<Arc<Replica>>, after: Duration, pause: Duration) {
    tokio::spawn(async move {
        tokio::time::sleep(after).await;
        for some in replicas.chunks(WAKE_TOGETHER) {
            some.iter().for_each(|replica| replica.stir());
            tokio::time::sleep(pause).await;
        }
    });
}

/// Whether a leader that rests hears no quorum of its voters' nodes.
fn hears_no_quorum(replica: &Replica, silent: &BTreeSet<NodeId>) -> bool {
    let voters = replica.voter_nodes();
    voters.difference(silent).count() <= voters.len() / 2
}

/// A shard that is led here and may rest, once it has been so for a while.
fn idle(host: &Host, replica: &Replica) -> Option<Idle> {
    let idle = has_no_newborns(host, replica).then(|| replica.idle()).flatten()?;
    // A member that is alive and lags needs its leader.
    let lags = |(id, node, _): &(u64, u64, bool)| {
        host.fitness().other(NodeId(*node)).is_some() && !replica.has_acknowledged_all(*id)
    };
    (!idle.members.iter().any(lags)).then_some(idle)
}

/// Whether a replica neither was born a moment ago nor has children that were.
fn has_no_newborns(host: &Host, replica: &Replica) -> bool {
    let shard = replica.shard_id();
    !host.births().is_parent(shard) && host.births().of(shard).is_none()
}

/// Whether all members that are alive have agreed, a quorum of the voters among them.
fn may_rest(host: &Host, idle: &Idle, has_agreed: impl Fn(u64) -> bool) -> bool {
    let mut voters = 1;
    let mut agreed_voters = 1;
    for (id, node, votes) in &idle.members {
        let agrees = has_agreed(*id);
        if !agrees && host.fitness().other(NodeId(*node)).is_some() {
            return false;
        }
        voters += usize::from(*votes);
        agreed_voters += usize::from(*votes && agrees);
    }
    voters / 2 < agreed_voters
}

/// Asks the nodes of all members, each once. Returns who agreed.
async fn ask_members(host: &Host, due: &[(Arc<Replica>, Idle)]) -> BTreeSet<(ShardId, u64)> {
    let mut questions: BTreeMap<NodeId, Vec<Question>> = BTreeMap::new();
    for (replica, idle) in due {
        let GroupId { shard, incarnation } = replica.group();
        for (to, node, _) in &idle.members {
            let question = Question { shard, incarnation, to: *to, rest: idle.rest };
            questions.entry(NodeId(*node)).or_default().push(question);
        }
    }
    let asked = questions.into_iter().map(|(node, questions)| async move {
        let content = wire::encode(&questions);
        let answer = host.peers().call(node, CallKind::Quiesce, content, ASK_TIMEOUT).await;
        let answer: Vec<bool> = answer
            .ok()
            .and_then(|answer| wire::decode("who rests", &answer).ok())
            .unwrap_or_default();
        let agreed = questions.into_iter().zip(answer).filter(|(_, agrees)| *agrees);
        agreed.map(|(question, _)| (ShardId(question.shard), question.to)).collect::<Vec<_>>()
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// Lets the replicas rest that may, and says which do.
///
/// # Errors
/// If the question makes no sense.
pub(crate) fn answer_quiesce(host: &Host, content: &[u8]) -> Result<Bytes, WireError> {
    let questions: Vec<Question> = wire::decode("a question who may rest", content)?;
    let rests = |question: &Question| {
        let group = GroupId { shard: question.shard, incarnation: question.incarnation };
        let replica = host.replica_of_group(group).filter(|_| group != CATALOG_GROUP);
        let Some(replica) = replica.filter(|replica| replica.replica_id().0 == question.to) else {
            return false;
        };
        has_no_newborns(host, &replica) && replica.rest_as_member(question.rest)
    };
    Ok(wire::encode(&questions.iter().map(rests).collect::<Vec<bool>>()))
}

/// Wakes replicas, and says which of them lead.
///
/// # Errors
/// If the question makes no sense.
pub(crate) async fn answer_rouse(host: &Host, content: &[u8]) -> Result<Bytes, WireError> {
    let groups: Vec<(u64, u32)> = wire::decode("which shards are to wake", content)?;
    let woken = groups.into_iter().map(async |(shard, incarnation)| {
        let replica = host.replica_of_group(GroupId { shard, incarnation })?;
        replica.wake().await;
        Some(replica.is_leader())
    });
    let leads = join_all(woken).await.into_iter().map(Option::unwrap_or_default);
    Ok(wire::encode(&leads.collect::<Vec<bool>>()))
}

/// Whether the leader of a shard that rests may be replaced, as a node asks that has not heard of it:
/// not while its node is there. That one is asked to wake the shard then.
///
/// # Errors
/// Why it may not.
pub(crate) async fn may_be_replaced(
    host: &Host,
    replica: &Replica,
    from: NodeId,
) -> Result<(), String> {
    if !replica.is_quiesced() {
        return Ok(());
    }
    let Some(led) = replica.led() else {
        replica.wake().await;
        return if replica.is_leader() { Err("it leads".to_owned()) } else { Ok(()) };
    };
    let node = led.leader.node_id;
    if node == from || is_silent(host, node) {
        return Ok(());
    }
    let GroupId { shard, incarnation } = replica.group();
    let leads = rouse_at(host, node, &[(shard, incarnation)]).await;
    match leads.and_then(|leads| leads.first().copied()) {
        Some(false) => {
            replica.stir();
            Ok(())
        }
        Some(true) | None => Err("its leader is there".to_owned()),
    }
}
