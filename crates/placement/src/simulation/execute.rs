//! Operators at work: what the executor of a running cluster does, on shards in memory.

use std::collections::BTreeMap;

use anchorhold_model::{Key, NodeId, ReplicaId, ReplicaRole, ShardId};

use super::Simulation;
use crate::{Operator, ReplicaStatus, ShardStatus, Step};

/// How far an operator has come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    step: usize,
    /// Bytes that are still to be copied by the step.
    left: Option<u64>,
}

/// What became of a step.
enum Outcome {
    Done,
    Busy,
    /// It cannot be done any more.
    Lost,
}

impl Simulation {
    /// Lets every operator go on for a time.
    pub(super) fn run_operators(&mut self, by_ms: u64) {
        let budget = self.copy_budgets(by_ms);
        let shards: Vec<ShardId> = self.running.keys().copied().collect();
        for shard_id in shards {
            self.run_operator(shard_id, budget.get(&shard_id).copied().unwrap_or(0));
        }
        self.elect();
    }

    /// Bytes that each operator may copy: nodes share their bandwidth among their copies.
    fn copy_budgets(&self, by_ms: u64) -> BTreeMap<ShardId, u64> {
        let mut incoming = BTreeMap::<NodeId, u64>::new();
        let mut outgoing = BTreeMap::<NodeId, u64>::new();
        let mut copies = Vec::new();
        for operator in self.view.in_flight() {
            let leader = self.view.shard(operator.shard_id).and_then(|status| status.leader);
            for target in operator.added() {
                *incoming.entry(target).or_default() += 1;
                if let Some(leader) = leader {
                    *outgoing.entry(leader).or_default() += 1;
                    copies.push((operator.shard_id, target, leader));
                }
            }
        }
        let all = u128::from(self.bandwidth) * u128::from(by_ms) / 1_000;
        let mut budgets = BTreeMap::<ShardId, u64>::new();
        for (shard_id, target, leader) in copies {
            let share = incoming[&target].max(outgoing[&leader]);
            let budget = u64::try_from(all / u128::from(share.max(1))).unwrap_or(u64::MAX);
            // A shard's copies run side by side; they are modelled one after the other.
            *budgets.entry(shard_id).or_default() += budget;
        }
        budgets
    }

    fn run_operator(&mut self, shard_id: ShardId, mut budget: u64) {
        let (Some(operator), Some(status)) =
            (self.view.operator(shard_id).cloned(), self.view.shard(shard_id).cloned())
        else {
            self.running.remove(&shard_id);
            return;
        };
        let mut progress = self.running.get(&shard_id).copied().unwrap_or_default();
        let mut next = status.clone();
        let mut outcome = Outcome::Done;
        while let Some(step) = operator.steps.get(progress.step) {
            outcome = self.take(&mut next, step, &mut progress, &mut budget);
            match outcome {
                Outcome::Done => progress = Progress { step: progress.step + 1, left: None },
                Outcome::Busy | Outcome::Lost => break,
            }
        }
        if matches!(outcome, Outcome::Busy) {
            self.running.insert(shard_id, progress);
            if next != status {
                self.view.set_shard(next);
            }
            return;
        }
        if matches!(outcome, Outcome::Lost) {
            self.dropped += 1;
        } else {
            self.executed += 1;
        }
        self.conclude(&operator, next, matches!(outcome, Outcome::Done));
    }

    /// Takes one step on a shard. All of them may be taken twice.
    fn take(
        &mut self,
        status: &mut ShardStatus,
        step: &Step,
        progress: &mut Progress,
        budget: &mut u64,
    ) -> Outcome {
        if status.leader.is_none() {
            return Outcome::Busy;
        }
        match step {
            Step::AddLearner(node_id) => {
                if !self.is_running(*node_id) {
                    return Outcome::Lost;
                }
                add_learner(status, *node_id);
                Outcome::Done
            }
            Step::WaitCaughtUp(node_id) => self.copy(status, *node_id, progress, budget),
            Step::ChangeVoters { add, remove } => {
                if add.iter().any(|node_id| !self.is_running(*node_id)) {
                    return Outcome::Lost;
                }
                for replica in &mut status.replicas {
                    if add.contains(&replica.node_id) {
                        replica.role = ReplicaRole::Voter;
                    } else if remove.contains(&replica.node_id) {
                        replica.role = ReplicaRole::Learner;
                    }
                }
                status.epoch.conf_version += 1;
                Outcome::Done
            }
            Step::LeaveJoint => {
                status.is_joint = false;
                status.epoch.conf_version += 1;
                Outcome::Done
            }
            Step::RemoveReplica(node_id) => {
                status.replicas.retain(|replica| replica.node_id != *node_id);
                status.epoch.conf_version += 1;
                if status.leader == Some(*node_id) {
                    status.leader = None;
                }
                Outcome::Done
            }
            Step::TransferLeader(node_id) => {
                if !self.is_running(*node_id) {
                    return Outcome::Lost;
                }
                status.leader = Some(*node_id);
                Outcome::Done
            }
            Step::Split | Step::MergeInto(_) => Outcome::Done,
        }
    }

    fn copy(
        &mut self,
        status: &mut ShardStatus,
        node_id: NodeId,
        progress: &mut Progress,
        budget: &mut u64,
    ) -> Outcome {
        let bytes = status.bytes;
        let Some(replica) = status.replicas.iter_mut().find(|other| other.node_id == node_id)
        else {
            return Outcome::Lost;
        };
        if !replica.is_live {
            return Outcome::Lost;
        }
        if replica.lag_entries == 0 {
            return Outcome::Done;
        }
        let left = progress.left.unwrap_or(bytes);
        let copied = left.min(*budget);
        *budget -= copied;
        self.moved_bytes += copied;
        progress.left = Some(left - copied);
        if copied < left {
            return Outcome::Busy;
        }
        replica.lag_entries = 0;
        Outcome::Done
    }

    fn is_running(&self, node_id: NodeId) -> bool {
        self.lives.get(&node_id).is_some_and(|presence| presence.is_running)
    }

    fn conclude(&mut self, operator: &Operator, mut status: ShardStatus, is_done: bool) {
        let shard_id = operator.shard_id;
        self.running.remove(&shard_id);
        self.view.finish(shard_id);
        let changes_members = operator.steps.iter().any(|step| match step {
            Step::AddLearner(_) | Step::ChangeVoters { .. } | Step::RemoveReplica(_) => true,
            Step::Split | Step::MergeInto(_) => true,
            Step::WaitCaughtUp(_) | Step::LeaveJoint | Step::TransferLeader(_) => false,
        });
        if changes_members {
            status.change_time = self.now;
        }
        match operator.steps.last() {
            Some(Step::Split) if is_done => self.split(status),
            Some(Step::MergeInto(target)) if is_done => {
                self.view.remove_shard(shard_id);
                self.absorb(*target, &status);
            }
            Some(_) | None => self.view.set_shard(status),
        }
    }

    fn split(&mut self, mut left: ShardStatus) {
        let start = left.range.start.0;
        let end = left.range.end.map_or(u128::MAX, |end| end.0);
        let middle = Key(start + (end - start) / 2);
        left.epoch.version += 1;
        left.busy_since = self.now;
        let mut right = left.clone();
        right.shard_id = ShardId(self.next_shard);
        self.next_shard += 1;
        (right.range.start, left.range.end) = (middle, Some(middle));
        for (one, other) in [
            (&mut left.bytes, &mut right.bytes),
            (&mut left.anchors, &mut right.anchors),
            (&mut left.load, &mut right.load),
        ] {
            *other = *one / 2;
            *one -= *other;
        }
        self.view.set_shard(left);
        self.view.set_shard(right);
    }

    fn absorb(&mut self, target: ShardId, source: &ShardStatus) {
        let Some(mut status) = self.view.shard(target).cloned() else { return };
        status.range.end = source.range.end;
        status.bytes += source.bytes;
        status.anchors += source.anchors;
        status.load += source.load;
        status.epoch.version = status.epoch.version.max(source.epoch.version) + 1;
        status.change_time = self.now;
        self.view.set_shard(status);
    }
}

fn add_learner(status: &mut ShardStatus, node_id: NodeId) {
    if status.replicas.iter().any(|replica| replica.node_id == node_id) {
        return;
    }
    let last = status.replicas.iter().map(|replica| replica.replica_id.counter()).max();
    status.replicas.push(ReplicaStatus {
        replica_id: ReplicaId::new(1, last.unwrap_or(0) + 1),
        node_id,
        role: ReplicaRole::Learner,
        is_live: true,
        is_lost: false,
        lag_entries: u64::MAX,
    });
    status.epoch.conf_version += 1;
}
