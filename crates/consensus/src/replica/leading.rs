//! Who leads, and whether this replica still may say that it does.
//!
//! A leader that no quorum has acknowledged for as long as its lease leads nobody any more: it can
//! commit nothing, and others may have elected another leader that it has not heard of. openraft
//! refuses its proposals then, but lets what was proposed before wait, and still calls it the leader.
//! Here it counts as no leader from that moment on, so that writes and reads that wait for it end, and
//! are sent to the others; and it keeps silent, so that the others elect another one. A leader whose
//! shard rests (`quiescence`) is acknowledged by nobody either, and leads.
//!
//! Not here: giving such a leadership away (`fitness::conduct`). No safety depends on any of this.

use std::collections::BTreeSet;
use std::time::Duration;

use anchorhold_model::NodeId;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use openraft::raft::TransferLeaderRequest;

use super::{LeaderHint, Metrics, Replica, Role};
use crate::proposer::hint;
use crate::types::{TypeConfig, Vote};

/// How often somebody who waits for this leader looks whether it still leads.
pub(super) const LEADS_CHECK: Duration = Duration::from_millis(50);

/// How a replica is led, by what it has heard.
pub(crate) struct Led {
    /// The leader.
    pub(crate) leader: LeaderHint,
    /// The leader's term.
    pub(crate) term: u64,
    /// The nodes of the group's voters.
    pub(crate) voters: BTreeSet<NodeId>,
    vote: Vote,
}

/// What a leader remembers that may have lost its quorum.
#[derive(Default)]
pub(super) struct Silence {
    /// When it spoke last, while it keeps silent.
    spoke: Option<Duration>,
    /// The term in which no quorum has acknowledged it yet, and since when.
    unheard: Option<(u64, Duration)>,
}

impl Silence {
    /// Whether the leader of a term was not acknowledged once for as long as a lease.
    fn is_unheard(&mut self, term: u64, now: Duration, lease: Duration) -> bool {
        let since = match self.unheard {
            Some((known, since)) if known == term => since,
            Some(_) | None => now,
        };
        self.unheard = Some((term, since));
        lease <= now.saturating_sub(since)
    }
}

impl Replica {
    /// Who leads, as far as known here; never this replica once it has lost its quorum.
    pub fn leader(&self) -> Option<LeaderHint> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        self.leader_of(&metrics)
    }

    pub(super) fn leader_of(&self, metrics: &Metrics) -> Option<LeaderHint> {
        let leader = metrics.current_leader?;
        if leader == self.replica_id.0 && self.has_lost_quorum_by(metrics) {
            return None;
        }
        let node = metrics.membership_config.membership().get_node(&leader).copied();
        hint(Some(leader), node)
    }

    /// Whether this replica leads, as far as it knows, and a quorum has acknowledged that lately.
    pub fn is_leader(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.state == ServerState::Leader && !self.has_lost_quorum_by(&metrics)
    }

    /// What `work` gives; `None` if time is up, or if this replica does not lead any more: whoever
    /// does can say what became of a proposal, and an answer from here may never come.
    pub(super) async fn while_leading<T>(
        &self,
        timeout: Duration,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut work = std::pin::pin!(work);
        let mut left = timeout;
        loop {
            let wait = left.min(LEADS_CHECK);
            if let Ok(done) = tokio::time::timeout(wait, &mut work).await {
                return Some(done);
            }
            left = left.saturating_sub(wait);
            if left.is_zero() || !self.is_leader() {
                return None;
            }
        }
    }

    /// Whether this replica was elected and has lost its quorum since.
    pub(crate) fn has_lost_quorum(&self) -> bool {
        if self.is_silence_excused() {
            return false;
        }
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.state == ServerState::Leader && self.has_lost_quorum_by(&metrics)
    }

    fn has_lost_quorum_by(&self, metrics: &Metrics) -> bool {
        // Elected just now, it has no lease yet. The only voter is a quorum by itself.
        self.is_lease_over(metrics)
            && !self.is_silence_excused()
            && 1 < metrics.membership_config.membership().voter_ids().count()
    }

    /// Keeps a leader silent that has lost its quorum, so that the others elect another one; it speaks
    /// now and then, in case they cannot.
    pub(crate) async fn keep_silence(&self) {
        let now = self.freshness.now();
        let speaks = {
            let mut silence = self.silence.lock();
            let is_deaf = self.has_lost_quorum() || self.was_never_heard(&mut silence, now);
            match silence.spoke {
                None if !is_deaf => return,
                Some(_) if !is_deaf => {
                    silence.spoke = None;
                    self.raft.runtime_config().heartbeat(true);
                    false
                }
                None => {
                    silence.spoke = Some(now);
                    self.raft.runtime_config().heartbeat(false);
                    false
                }
                Some(spoke) => {
                    let is_due = 2 * self.leader_lease <= now.saturating_sub(spoke);
                    silence.spoke = Some(if is_due { now } else { spoke });
                    is_due
                }
            }
        };
        if speaks {
            drop(self.raft.trigger().heartbeat().await);
        }
    }

    /// Whether it was elected and nobody has acknowledged that since.
    fn was_never_heard(&self, silence: &mut Silence, now: Duration) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let waits = metrics.state == ServerState::Leader
            && metrics.last_quorum_acked.is_none()
            && 1 < metrics.membership_config.membership().voter_ids().count();
        if !waits {
            silence.unheard = None;
            return false;
        }
        silence.is_unheard(metrics.current_term, now, self.leader_lease)
    }

    /// The nodes of the group's voters.
    pub(crate) fn voter_nodes(&self) -> BTreeSet<NodeId> {
        let metrics = self.raft.metrics();
        voter_nodes(&metrics.borrow_watched())
    }

    /// How this replica is led; `None` if it leads, or knows no leader.
    pub(crate) fn led(&self) -> Option<Led> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leader = self.leader_of(&metrics)?;
        let voters = voter_nodes(&metrics);
        let is_led = leader.replica_id != self.replica_id;
        let led = Led { leader, term: metrics.current_term, voters, vote: metrics.vote };
        is_led.then_some(led)
    }

    /// Campaigns in the place of a leader that is gone for certain: the other voters do not wait
    /// for its lease either. Nothing happens if another leader is known by now.
    pub(crate) async fn replace_leader(&self, led: &Led) {
        self.stir();
        let request = TransferLeaderRequest::<TypeConfig>::new(led.vote, self.replica_id.0, None);
        if let Err(error) = self.raft.handle_transfer_leader(request).await {
            tracing::warn!(shard = self.group.shard, %error, "no campaign");
        }
    }

    /// Asks for votes once more, because nobody won the last time.
    pub(crate) async fn stand_again(&self) {
        if let Err(error) = self.raft.trigger().elect(true).await {
            tracing::debug!(shard = self.group.shard, %error, "no campaign");
        }
    }

    pub(super) fn role_of(metrics: &Metrics) -> Role {
        match metrics.state {
            ServerState::Leader => Role::Leader,
            ServerState::Follower => Role::Follower,
            ServerState::Candidate => Role::Candidate,
            ServerState::Learner => Role::Learner,
            ServerState::Shutdown => Role::Stopped,
        }
    }
}

fn voter_nodes(metrics: &Metrics) -> BTreeSet<NodeId> {
    let membership = metrics.membership_config.membership();
    let voters = membership.voter_ids().filter_map(|id| membership.get_node(&id));
    voters.map(|node| NodeId(node.node_id)).collect()
}
