//! When may a read be served from what this replica has applied?

use std::time::Duration;

use super::leading::LEADS_CHECK;
use super::{LeaderHint, Replica};
use crate::error::ReadError;
#[cfg(feature = "chaos")]
use crate::hooks::Mutant;
use crate::link::Question;
use crate::read::{ReadLevel, ReadView};
use crate::reads::{Confirmed, RoundFailure};
use crate::wire::{self, MessageKind, ReadIndexMessage};

/// Wait between attempts to reach a leader within one read.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

impl Replica {
    /// One confirmed index: from this replica if it leads, else from the leader.
    async fn confirm(&self, timeout: Duration) -> Result<u64, RoundFailure> {
        self.rouse().await;
        if self.is_leader() {
            #[cfg(feature = "chaos")]
            if self.seams.hooks.has(Mutant::ReadWithoutQuorum) {
                return Ok(self.applied.borrow().end.saturating_sub(1));
            }
            return match tokio::time::timeout(timeout, self.rounds.confirm()).await {
                Ok(result) => result,
                Err(_) => Err(RoundFailure::NoQuorum),
            };
        }
        let leader = self.leader().ok_or(RoundFailure::NotLeader)?;
        let peer = self.peers.get(leader.node_id).ok_or(RoundFailure::NotLeader)?;
        let question = Question {
            group: self.group,
            kind: MessageKind::ReadIndex,
            content: wire::encode(&ReadIndexMessage { to: leader.replica_id.0 }),
            may_wait: false,
        };
        let answer = peer.control.ask(question).map_err(|_| RoundFailure::NoQuorum)?;
        let answer = tokio::select! {
            answer = answer.receive(timeout) => answer,
            () = self.led_by_another_than(leader) => return Err(RoundFailure::NotLeader),
        };
        match answer {
            Ok((MessageKind::Answer, content)) => {
                wire::decode("a read index", &content).map_err(|_| RoundFailure::NoQuorum)
            }
            Ok(_) | Err(_) => Err(RoundFailure::NotLeader),
        }
    }

    /// Ends when another leader is known here than this one, from whom no answer will come then.
    async fn led_by_another_than(&self, asked: LeaderHint) {
        loop {
            tokio::time::sleep(LEADS_CHECK).await;
            if self.leader().is_some_and(|leader| leader != asked) {
                return;
            }
        }
    }

    /// Asks for a confirmation until there is one or time is up.
    async fn confirm_until(&self, deadline: Duration) -> Result<Confirmed, ReadError> {
        let shard = self.shard_id();
        loop {
            let asked = self.freshness.now();
            let left = deadline.saturating_sub(asked);
            if left.is_zero() {
                return Err(ReadError::NoLeader { shard });
            }
            // One try never takes all of the time: the leader that was asked may be dead.
            let one_try = left.min(Duration::from_secs(1));
            match self.confirm(one_try).await {
                Ok(index) => {
                    let confirmed = Confirmed { asked, index };
                    self.freshness.note(confirmed);
                    return Ok(confirmed);
                }
                Err(RoundFailure::Stopped(reason)) => {
                    return Err(ReadError::Stopped { shard, reason });
                }
                Err(RoundFailure::NotLeader | RoundFailure::NoQuorum) => {
                    tokio::time::sleep(RETRY_PAUSE.min(left)).await;
                }
            }
        }
    }

    async fn wait_applied(&self, index: u64, deadline: Duration) -> Result<(), ReadError> {
        let left = deadline.saturating_sub(self.freshness.now());
        let mut applied = self.applied.clone();
        let waited = tokio::time::timeout(left, applied.wait_for(|a| index < a.end)).await;
        match waited {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => {
                Err(ReadError::Stopped { shard: self.shard_id(), reason: "it has ended".into() })
            }
            Err(_) => Err(ReadError::Behind {
                shard: self.shard_id(),
                applied: self.applied.borrow().end.checked_sub(1),
                needed: index,
            }),
        }
    }

    fn view(&self, staleness: Option<Duration>) -> ReadView {
        ReadView { shard: self.state(), staleness, leader: self.is_leader() }
    }

    /// Waits until a read at this level may be served from what is applied here. Works on any
    /// replica: a follower asks the leader for its read index.
    ///
    /// # Errors
    /// [`ReadError`] if that is not reached in time.
    pub async fn read_barrier(
        &self,
        level: ReadLevel,
        timeout: Duration,
    ) -> Result<ReadView, ReadError> {
        let shard = self.shard_id();
        self.check_stopped().map_err(|reason| ReadError::Stopped { shard, reason })?;
        let deadline = self.freshness.now() + timeout;
        match level {
            ReadLevel::Linearizable => {
                let confirmed = self.confirm_until(deadline).await?;
                self.wait_applied(confirmed.index, deadline).await?;
                Ok(self.view(Some(Duration::ZERO)))
            }
            ReadLevel::BoundedStaleness { staleness_max } => {
                #[cfg(feature = "chaos")]
                let staleness_max = self.seams.hooks.staleness_max(staleness_max);
                let applied_end = self.applied.borrow().end;
                if let Some(confirmed) = self.freshness.newest(applied_end) {
                    let staleness = self.freshness.now().saturating_sub(confirmed.asked);
                    if staleness <= staleness_max {
                        return Ok(self.view(Some(staleness)));
                    }
                }
                let confirmed = self.confirm_until(deadline).await?;
                self.wait_applied(confirmed.index, deadline).await?;
                // Judged where the view is taken: waiting took time too.
                let staleness = self.freshness.now().saturating_sub(confirmed.asked);
                if staleness_max < staleness {
                    return Err(ReadError::Behind {
                        shard,
                        applied: self.applied.borrow().end.checked_sub(1),
                        needed: confirmed.index,
                    });
                }
                Ok(self.view(Some(staleness)))
            }
            ReadLevel::Local => {
                let applied_end = self.applied.borrow().end;
                let newest = self.freshness.newest(applied_end);
                let now = self.freshness.now();
                Ok(self.view(newest.map(|confirmed| now.saturating_sub(confirmed.asked))))
            }
        }
    }

    /// Waits until this replica has applied a revision (session tokens).
    ///
    /// # Errors
    /// [`ReadError::Behind`] if that is not reached in time.
    pub async fn wait_for_revision(
        &self,
        revision: u64,
        timeout: Duration,
    ) -> Result<ReadView, ReadError> {
        let mut applied = self.applied.clone();
        let waited =
            tokio::time::timeout(timeout, applied.wait_for(|a| revision <= a.revision)).await;
        match waited {
            Ok(Ok(_)) => Ok(self.view(None)),
            Ok(Err(_)) => {
                Err(ReadError::Stopped { shard: self.shard_id(), reason: "it has ended".into() })
            }
            Err(_) => Err(ReadError::Behind {
                shard: self.shard_id(),
                applied: self.applied.borrow().end.checked_sub(1),
                needed: revision,
            }),
        }
    }
}
