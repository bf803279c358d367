//! What is done about each need of a shard.

use anchorhold_model::{NodeId, ReplicaRole};

use crate::shard::Shard;
use crate::{Operator, Reason, Step, WhyNot};

impl Shard<'_> {
    /// The operator that serves a need, or why there is none.
    pub(crate) fn serve(&self, need: Reason) -> Result<Operator, WhyNot> {
        match need {
            Reason::Residency(node_id) | Reason::MisplacedVoter(node_id) => {
                self.leave(node_id, need)
            }
            Reason::Decommission(node_id) => self.leave(node_id, need),
            Reason::DeadReplica(node_id) => self.repair(node_id, need),
            Reason::UnfinishedJoint => Ok(self.operator(vec![Step::LeaveJoint], need)),
            Reason::LeaderOnBadNode(node_id) => self.hand_over(node_id, need),
            Reason::LeaderRegion => self.return_leader(need),
            Reason::MissingVoter => self.add_voters(need),
            Reason::MissingLearner => self.add_learner(need),
            // A lost voter counts against a quorum and never for one: without it the others need
            // no more votes than before. Its place, on the same node too, is free then.
            Reason::LostReplica(node_id)
            | Reason::ExtraVoter(node_id)
            | Reason::ExtraLearner(node_id) => self.remove(node_id, need),
            Reason::Diversity(node_id) => self.spread(node_id, need),
            Reason::SplitSize | Reason::SplitLoad => self.cut(need),
            // These compare shards with one another: `balance` and `merge` decide them.
            Reason::ReplicaBalance(_) | Reason::LeaderBalance(_) | Reason::Merge => {
                Err(WhyNot::Hysteresis)
            }
        }
    }

    /// Moves a replica away from a node that must not hold it.
    fn leave(&self, node_id: NodeId, reason: Reason) -> Result<Operator, WhyNot> {
        match self.role_on(node_id) {
            Some(ReplicaRole::Learner) if !self.is_wanted_learner(node_id) => {
                self.remove(node_id, reason)
            }
            Some(ReplicaRole::Voter) if self.want.voters < self.slots(ReplicaRole::Voter).len() => {
                self.remove(node_id, reason)
            }
            Some(role) => self.replace(node_id, role, reason),
            None => Err(WhyNot::OperatorInFlight),
        }
    }

    /// Rebuilds a lost replica elsewhere, if those that live have room for all that was lost.
    fn repair(&self, node_id: NodeId, reason: Reason) -> Result<Operator, WhyNot> {
        let slot = self.survey.view.slot(node_id);
        if slot.is_some_and(|slot| !self.survey.has_room_to_repair(slot)) {
            return Err(WhyNot::NoRoomInRegion);
        }
        self.leave(node_id, reason)
    }

    fn replace(
        &self,
        node_id: NodeId,
        role: ReplicaRole,
        reason: Reason,
    ) -> Result<Operator, WhyNot> {
        let mut keep = self.slots(role);
        keep.retain(|slot| self.survey.sites[*slot as usize].node_id != node_id);
        let ready = match role {
            ReplicaRole::Voter => self.ready_learner(&keep),
            ReplicaRole::Learner => None,
        };
        let target = match ready {
            Some(slot) => slot,
            None => self.choose(role, &keep)?,
        };
        self.swap(node_id, target, reason)
    }

    fn hand_over(&self, node_id: NodeId, reason: Reason) -> Result<Operator, WhyNot> {
        let successor = self.successor(node_id)?;
        Ok(self.operator(vec![Step::TransferLeader(successor)], reason))
    }

    fn return_leader(&self, reason: Reason) -> Result<Operator, WhyNot> {
        let leader = self.entry.status.leader.ok_or(WhyNot::NoLeader)?;
        let successor = self.successor(leader)?;
        let region = |node_id: NodeId| {
            self.survey.view.slot(node_id).map(|slot| self.survey.sites[slot as usize].region)
        };
        if region(successor) != self.want.leader_region {
            return Err(WhyNot::NoLeaderTarget);
        }
        Ok(self.operator(vec![Step::TransferLeader(successor)], reason))
    }

    /// Adds all voters that lack in one joint change. One that would only make their number even
    /// is not added: it would be one more way to fail.
    fn add_voters(&self, reason: Reason) -> Result<Operator, WhyNot> {
        let mut keep = self.slots(ReplicaRole::Voter);
        let mut taken = self.entry.slots.clone();
        let mut add = Vec::new();
        let mut steps = Vec::new();
        let voters = keep.len();
        let mut refusal = WhyNot::NoRoom;
        while keep.len() < self.want.voters {
            let ready = self.ready_learner(&keep).filter(|slot| !keep.contains(slot));
            let chosen = ready.map_or_else(|| self.choose_beside(&keep, &taken), Ok);
            let slot = match chosen {
                Ok(slot) => slot,
                Err(why) => {
                    refusal = why;
                    break;
                }
            };
            let node_id = self.survey.sites[slot as usize].node_id;
            if !taken.contains(&slot) {
                steps.push(Step::AddLearner(node_id));
                taken.push(slot);
            }
            keep.push(slot);
            add.push(node_id);
        }
        if !voters.is_multiple_of(2) && keep.len().is_multiple_of(2) {
            let dropped = add.pop();
            steps.retain(|step| dropped.is_none_or(|node_id| *step != Step::AddLearner(node_id)));
        }
        if add.is_empty() {
            return Err(refusal);
        }
        steps.extend(add.iter().map(|node_id| Step::WaitCaughtUp(*node_id)));
        steps.push(Step::ChangeVoters { add, remove: Vec::new() });
        Ok(self.operator(steps, reason))
    }

    fn choose_beside(&self, keep: &[u32], taken: &[u32]) -> Result<u32, WhyNot> {
        self.survey.choose(&crate::survey::Choice {
            keep,
            taken,
            regions: self.want.voter_regions.as_deref(),
            preferred: self.want.leader_region,
            residency: self.want.residency.as_deref(),
            bytes: self.bytes(),
        })
    }

    fn add_learner(&self, reason: Reason) -> Result<Operator, WhyNot> {
        let target = self.choose(ReplicaRole::Learner, &self.slots(ReplicaRole::Learner))?;
        let node_id = self.survey.sites[target as usize].node_id;
        let steps = vec![Step::AddLearner(node_id), Step::WaitCaughtUp(node_id)];
        Ok(self.operator(steps, reason))
    }

    /// Moves a replica to where it shares less, and never to where it shares as much.
    fn spread(&self, node_id: NodeId, reason: Reason) -> Result<Operator, WhyNot> {
        let role = self.role_on(node_id).ok_or(WhyNot::OperatorInFlight)?;
        let before = self.slots(role);
        let mut keep = before.clone();
        keep.retain(|slot| self.survey.sites[*slot as usize].node_id != node_id);
        let target = self.choose(role, &keep)?;
        let after = self.survey.crowding(&keep) + self.survey.crowding_with(&keep, target);
        if self.survey.crowding(&before) <= after {
            return Err(WhyNot::NoRoom);
        }
        self.swap(node_id, target, reason)
    }

    /// Splits it, unless that was done or its members changed a moment ago: what is reported of it
    /// may still be what it was before.
    fn cut(&self, reason: Reason) -> Result<Operator, WhyNot> {
        let settle_ms = self.survey.config.split_settle_ms;
        if self.survey.is_settling(self.entry.status.change_time, settle_ms) {
            return Err(WhyNot::Settling);
        }
        Ok(self.operator(vec![Step::Split], reason))
    }

    pub(crate) fn role_on(&self, node_id: NodeId) -> Option<ReplicaRole> {
        let replicas = self.entry.status.replicas.iter();
        replicas.filter(|replica| replica.node_id == node_id).map(|replica| replica.role).next()
    }

    fn is_wanted_learner(&self, node_id: NodeId) -> bool {
        let slot = self.survey.view.slot(node_id);
        let region = slot.map(|slot| self.survey.sites[slot as usize].region);
        let learners = self.slots(ReplicaRole::Learner);
        let in_pair = learners.iter().filter(|slot| {
            self.want.learner_regions.contains(&self.survey.sites[**slot as usize].region)
        });
        region.is_some_and(|region| self.want.learner_regions.contains(&region))
            && in_pair.count() <= self.want.learners
    }
}
