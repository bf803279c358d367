//! How far an operator has come, read off its shard.
//!
//! Nothing is remembered between two steps: whoever leads the catalog next sees the same. A step
//! that was taken is not taken again unless somebody undid it.
//!
//! Not here: taking steps (`server`).

use std::collections::BTreeSet;

use anchorhold_model::catalog::Step;
use anchorhold_model::{NodeId, ReplicaRole};

/// A shard's members as its leader sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardNow {
    /// Where its replicas are, and what they may do; in a joint change, as the old and the new
    /// voters together.
    pub members: Vec<(NodeId, ReplicaRole)>,
    /// Whether a joint change was begun and not finished.
    pub is_joint: bool,
    /// The node that leads.
    pub leader: NodeId,
    /// Nodes whose replicas have what the leader has, but for what is on its way.
    pub caught_up: BTreeSet<NodeId>,
}

/// The position of the first step that is still to be taken; `None` if the operator is through.
pub fn progress(steps: &[Step], now: &ShardNow) -> Option<usize> {
    (0..steps.len()).find(|position| !is_taken(steps, *position, now))
}

fn is_taken(steps: &[Step], position: usize, now: &ShardNow) -> bool {
    let role = |node_id: &NodeId| {
        let members = now.members.iter();
        members.filter(|(member, _)| member == node_id).map(|(_, role)| *role).next()
    };
    let votes = |node_id: &NodeId| role(node_id) == Some(ReplicaRole::Voter);
    match steps.get(position) {
        None => true,
        Some(Step::AddLearner(node_id)) => role(node_id).is_some(),
        // Who votes was caught up when it became a voter.
        Some(Step::WaitCaughtUp(node_id)) => votes(node_id) || now.caught_up.contains(node_id),
        Some(Step::ChangeVoters { add, remove }) => {
            // A later step takes back what an earlier one did only for the time between.
            let is_over = |node_id: &NodeId| is_removed_later(steps, position, *node_id);
            !now.is_joint
                && add.iter().all(|node_id| votes(node_id) || is_over(node_id))
                && remove.iter().all(|node_id| !votes(node_id))
        }
        Some(Step::LeaveJoint) => !now.is_joint,
        Some(Step::RemoveReplica(node_id)) => role(node_id).is_none(),
        Some(Step::TransferLeader(node_id)) => {
            // In the middle of an operator it only has to leave those that go.
            let goes = |leader: NodeId| is_removed_later(steps, position, leader);
            let is_last = position + 1 == steps.len();
            now.leader == *node_id || (!is_last && !goes(now.leader))
        }
        // These change the shard's bounds: whoever takes them ends the operator.
        Some(Step::Split | Step::MergeInto(_)) => false,
    }
}

/// Whether a step after `position` takes a node's vote or replica away.
fn is_removed_later(steps: &[Step], position: usize, node_id: NodeId) -> bool {
    steps.iter().skip(position + 1).any(|step| match step {
        Step::ChangeVoters { remove, .. } => remove.contains(&node_id),
        Step::RemoveReplica(gone) => *gone == node_id,
        Step::AddLearner(_)
        | Step::WaitCaughtUp(_)
        | Step::LeaveJoint
        | Step::TransferLeader(_)
        | Step::Split
        | Step::MergeInto(_) => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: NodeId = NodeId(3);
    const NEW: NodeId = NodeId(4);

    fn now(voters: &[u64], learners: &[u64], leader: u64) -> ShardNow {
        let all = |nodes: &[u64], role| {
            nodes.iter().map(|node| (NodeId(*node), role)).collect::<Vec<_>>()
        };
        let mut members = all(voters, ReplicaRole::Voter);
        members.extend(all(learners, ReplicaRole::Learner));
        let caught_up = members.iter().map(|(node_id, _)| *node_id).collect();
        ShardNow { members, is_joint: false, leader: NodeId(leader), caught_up }
    }

    fn swap() -> Vec<Step> {
        vec![
            Step::AddLearner(NEW),
            Step::WaitCaughtUp(NEW),
            Step::TransferLeader(NodeId(1)),
            Step::ChangeVoters { add: vec![NEW], remove: vec![OLD] },
            Step::RemoveReplica(OLD),
        ]
    }

    #[test]
    fn a_swap_is_taken_step_by_step_whoever_looks() {
        let steps = swap();
        assert_eq!(progress(&steps, &now(&[1, 2, 3], &[], 3)), Some(0));
        let mut added = now(&[1, 2, 3], &[4], 3);
        added.caught_up.remove(&NEW);
        assert_eq!(progress(&steps, &added), Some(1));
        assert_eq!(progress(&steps, &now(&[1, 2, 3], &[4], 3)), Some(2));
        assert_eq!(progress(&steps, &now(&[1, 2, 3], &[4], 1)), Some(3));
        let joint = ShardNow { is_joint: true, ..now(&[1, 2, 3, 4], &[], 1) };
        assert_eq!(progress(&steps, &joint), Some(3));
        assert_eq!(progress(&steps, &now(&[1, 2, 4], &[3], 1)), Some(4));
        assert_eq!(progress(&steps, &now(&[1, 2, 4], &[], 1)), None);
    }

    #[test]
    fn a_leader_that_another_election_chose_is_not_asked_to_go() {
        let steps = swap();
        assert_eq!(progress(&steps, &now(&[1, 2, 3], &[4], 2)), Some(3));
        assert_eq!(progress(&steps, &now(&[1, 2, 4], &[], 2)), None);
        let only_lead = [Step::TransferLeader(NodeId(1))];
        assert_eq!(progress(&only_lead, &now(&[1, 2, 3], &[], 2)), Some(0));
        assert_eq!(progress(&only_lead, &now(&[1, 2, 3], &[], 1)), None);
    }

    #[test]
    fn a_single_voter_moves_through_two_voters() {
        let steps = [
            Step::AddLearner(NEW),
            Step::WaitCaughtUp(NEW),
            Step::ChangeVoters { add: vec![NEW], remove: Vec::new() },
            Step::TransferLeader(NEW),
            Step::ChangeVoters { add: Vec::new(), remove: vec![OLD] },
            Step::RemoveReplica(OLD),
        ];
        assert_eq!(progress(&steps, &now(&[3], &[4], 3)), Some(2));
        assert_eq!(progress(&steps, &now(&[3, 4], &[], 3)), Some(3));
        assert_eq!(progress(&steps, &now(&[3, 4], &[], 4)), Some(4));
        assert_eq!(progress(&steps, &now(&[4], &[3], 4)), Some(5));
        assert_eq!(progress(&steps, &now(&[4], &[], 4)), None);
    }

    #[test]
    fn every_step_of_a_swap_leads_on_from_wherever_it_broke_off() {
        // Voter sets, learners and leader that a swap can be found at, in its order.
        let states = [
            now(&[1, 2, 3], &[], 3),
            now(&[1, 2, 3], &[4], 3),
            now(&[1, 2, 3], &[4], 1),
            now(&[1, 2, 4], &[3], 1),
            now(&[1, 2, 4], &[], 1),
        ];
        let steps = swap();
        let found: Vec<Option<usize>> = states.iter().map(|now| progress(&steps, now)).collect();
        assert!(found.iter().flatten().is_sorted(), "{found:?}");
        assert_eq!(found.last(), Some(&None));
    }
}
