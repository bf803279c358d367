//! Whether this replica's timers run. When they may stop: `crate::quiescence`.
//!
//! `Awake → Settling` (a leader asks the members) `→ Quiesced`, or `→ Awake` if one refuses;
//! a follower goes `Awake → Quiesced`, and begins there when its node starts, if its group had a leader:
//! thousands that campaign at once would keep everybody busy with nothing. Whatever concerns the shard: `→ Awake`. A leader's lease has
//! lapsed in its rest, and counts as held for as long again.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use openraft::rt::Instant;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{Metrics, Replica};

const AWAKE: u8 = 0;
const SETTLING: u8 = 1;
const QUIESCED: u8 = 2;

/// What is asked of a member whose shard is to rest: it follows this leader and has all it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rest {
    /// Replica id of the leader.
    pub(crate) leader: u64,
    pub(crate) term: u64,
    pub(crate) last_index: u64,
}

/// A leader's shard in which nothing is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Idle {
    pub(crate) rest: Rest,
    /// Counts what was asked of the replica.
    pub(crate) activity: u64,
    /// Monotonic milliseconds when something was asked of it last; 0: never.
    pub(crate) asked_ms: u64,
    /// Replica id and node of each other member, and whether it votes.
    pub(crate) members: Vec<(u64, u64, bool)>,
}

/// The state of a replica's timers.
#[derive(Default)]
pub(super) struct Quiescence {
    state: AtomicU8,
    /// Held while the state and the timer change together.
    changing: Mutex<()>,
    activity: AtomicU64,
    /// Monotonic milliseconds of the last time.
    asked_ms: AtomicU64,
    /// Rests since its node started, on the word of its own vote alone.
    is_unconfirmed: AtomicBool,
    /// Monotonic milliseconds until which a leader that has rested needs no quorum; 0: it has had
    /// one since, or did not rest.
    excused_until: AtomicU64,
}

impl Quiescence {
    /// Of a replica that is opened when its node starts, and whose group had a leader before.
    pub(super) fn begin_at_rest() -> Self {
        let (state, is_unconfirmed) = (AtomicU8::new(QUIESCED), AtomicBool::new(true));
        Self { state, is_unconfirmed, ..Self::default() }
    }

    fn moves(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn is_awake(&self) -> bool {
        self.state.load(Ordering::SeqCst) == AWAKE
    }
}

impl Replica {
    /// Whether its timers stand still: nothing has been asked of its shard for a while.
    pub fn is_quiesced(&self) -> bool {
        self.quiescence.state.load(Ordering::SeqCst) == QUIESCED
    }

    /// Where a leader stands, and whether it rests; `None` if it does not lead.
    pub(crate) fn stand(&self) -> Option<(Rest, bool)> {
        if !self.is_leader() {
            return None;
        }
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let last_index = metrics.last_log_index?;
        let rest = Rest { leader: self.replica_id.0, term: metrics.current_term, last_index };
        Some((rest, self.is_quiesced()))
    }

    /// What its members would have to agree to; `None` if it does not lead, or anything is under way.
    pub(crate) fn idle(&self) -> Option<Idle> {
        // Read first: what comes later counts as more.
        let activity = self.quiescence.activity.load(Ordering::SeqCst);
        let asked_ms = self.quiescence.asked_ms.load(Ordering::SeqCst);
        if !self.quiescence.is_awake() || !self.is_leader() {
            return None;
        }
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let last_index = metrics.last_log_index?;
        let is_settled = metrics.state == ServerState::Leader
            && membership.get_joint_config().len() == 1
            && self.applied.borrow().end == last_index + 1
            && self.fence().is_none();
        if !is_settled {
            return None;
        }
        let voters: Vec<u64> = membership.voter_ids().collect();
        let others = membership.nodes().filter(|(id, _)| **id != self.replica_id.0);
        let members = others.map(|(id, node)| (*id, node.node_id, voters.contains(id))).collect();
        let rest = Rest { leader: self.replica_id.0, term: metrics.current_term, last_index };
        Some(Idle { rest, activity, asked_ms, members })
    }

    /// Whether a member has acknowledged all that this leader has.
    pub(crate) fn has_acknowledged_all(&self, id: u64) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let matched = metrics.replication.as_ref().and_then(|all| all.get(&id)).copied().flatten();
        matched.is_some_and(|matched| Some(matched.index) == metrics.last_log_index)
    }

    /// Stops a leader's timers while the members are asked.
    pub(crate) fn settle(&self) -> bool {
        let _changing = self.quiescence.changing.lock();
        let settles = self.quiescence.moves(AWAKE, SETTLING);
        if settles {
            self.raft.runtime_config().tick(false);
        }
        settles
    }

    /// A leader rests, unless something was asked of it since.
    pub(crate) fn rest_as_leader(&self, idle: &Idle) -> bool {
        let rests = self.quiescence.moves(SETTLING, QUIESCED);
        if self.quiescence.activity.load(Ordering::SeqCst) != idle.activity {
            self.stir();
            return false;
        }
        rests
    }

    /// A member rests if it follows that leader and has all that it has. Returns whether it does.
    pub(crate) fn rest_as_member(&self, rest: Rest) -> bool {
        if !self.is_in_step(rest) || self.fence().is_some() {
            return false;
        }
        {
            let _changing = self.quiescence.changing.lock();
            if self.quiescence.moves(AWAKE, QUIESCED) {
                self.raft.runtime_config().tick(false);
            }
        }
        // A vote may have come in between, and have found it awake.
        if !self.is_in_step(rest) {
            self.stir();
        }
        self.is_quiesced()
    }

    /// Whether it follows that leader and has all that it has.
    pub(crate) fn is_in_step(&self, rest: Rest) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        matches!(metrics.state, ServerState::Follower | ServerState::Learner)
            && metrics.current_leader == Some(rest.leader)
            && metrics.current_term == rest.term
            && metrics.last_log_index == Some(rest.last_index)
            && self.applied.borrow().end == rest.last_index + 1
    }

    /// Something concerns the shard: the timers run again.
    pub(crate) fn stir(&self) {
        if self.quiescence.is_awake() {
            return;
        }
        let until = self.freshness.now() + self.leader_lease;
        let _changing = self.quiescence.changing.lock();
        self.quiescence.excused_until.store(milliseconds(until), Ordering::SeqCst);
        self.quiescence.is_unconfirmed.store(false, Ordering::SeqCst);
        self.quiescence.state.store(AWAKE, Ordering::SeqCst);
        self.raft.runtime_config().tick(true);
    }

    /// Whether it rests since its node started, and nobody has said yet that it is led.
    pub(crate) fn is_unconfirmed(&self) -> bool {
        self.quiescence.is_unconfirmed.load(Ordering::SeqCst)
    }

    /// Its leader leads still.
    pub(crate) fn confirm_rest(&self) {
        self.quiescence.is_unconfirmed.store(false, Ordering::SeqCst);
    }

    /// Something is asked of the shard: a leader that rested has a quorum again when this returns, or
    /// has asked for one in vain. Followers rest on: they hear of it when the leader does.
    pub(crate) async fn rouse(&self) {
        self.quiescence.activity.fetch_add(1, Ordering::SeqCst);
        self.quiescence.asked_ms.store(milliseconds(self.freshness.now()), Ordering::SeqCst);
        self.wake().await;
    }

    /// As `rouse`, but the shard may rest again as soon as its members are in step.
    pub(crate) async fn wake(&self) {
        // Led by nobody else, it leads or is the one that has to find out who does.
        if !self.quiescence.is_awake() && self.led().is_none() {
            self.stir();
        }
        if !self.is_excused() {
            return;
        }
        if self.is_lease_over(&self.raft.metrics().borrow_watched()) {
            // A round of its heartbeats, which nothing holds back; who comes meanwhile shares it.
            drop(tokio::time::timeout(self.leader_lease, self.rounds.confirm()).await);
        } else {
            self.quiescence.excused_until.store(0, Ordering::SeqCst);
        }
    }

    /// Whether a leader's lease lapses because nobody asked for it to be renewed.
    pub(super) fn is_silence_excused(&self) -> bool {
        !self.quiescence.is_awake() || self.is_excused()
    }

    fn is_excused(&self) -> bool {
        let until = self.quiescence.excused_until.load(Ordering::SeqCst);
        until != 0 && self.freshness.now() < Duration::from_millis(until)
    }

    pub(super) fn is_lease_over(&self, metrics: &Metrics) -> bool {
        let acked = metrics.last_quorum_acked;
        acked.is_some_and(|acked| self.leader_lease <= acked.into_inner().elapsed())
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
