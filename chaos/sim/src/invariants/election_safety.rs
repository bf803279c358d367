//! At most one leader per group and term, and at most one vote per replica and term.

use std::collections::BTreeMap;

use anchorhold_storage::{GroupId, HardState};

/// Leaders and votes seen so far.
#[derive(Debug, Default)]
pub struct ElectionSafety {
    /// By group and term: the replica that a quorum elected.
    leaders: BTreeMap<(GroupId, u64), u64>,
    /// By node, group and term: the durable vote.
    votes: BTreeMap<(usize, GroupId, u64), u64>,
}

impl ElectionSafety {
    /// A log is told to save a vote. A committed one names the leader that a quorum elected.
    ///
    /// # Errors
    /// If another replica was elected in that term.
    pub fn saw_vote(&mut self, group: GroupId, vote: HardState) -> Result<(), String> {
        let (true, Some(leader)) = (vote.committed, vote.voted_for) else { return Ok(()) };
        let known = *self.leaders.entry((group, vote.term)).or_insert(leader);
        if known == leader {
            return Ok(());
        }
        Err(format!(
            "election safety: term {} of shard {:x} has the leaders {known:x} and {leader:x}",
            vote.term, group.shard
        ))
    }

    /// A node's log says that a vote is durable: from now on others count on it.
    ///
    /// # Errors
    /// If the node has voted for another replica in that term.
    pub fn saw_durable_vote(
        &mut self,
        node: usize,
        group: GroupId,
        vote: HardState,
    ) -> Result<(), String> {
        // A committed one is no vote of its own: it accepts the leader that a quorum elected.
        let (false, Some(candidate)) = (vote.committed, vote.voted_for) else { return Ok(()) };
        let known = *self.votes.entry((node, group, vote.term)).or_insert(candidate);
        if known == candidate {
            return Ok(());
        }
        Err(format!(
            "election safety: node {} voted for {known:x} and {candidate:x} in term {} of shard {:x}",
            node + 1,
            vote.term,
            group.shard
        ))
    }

    /// Elections won so far.
    pub fn elections(&self) -> usize {
        self.leaders.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId { shard: 1, incarnation: 1 };

    fn vote(term: u64, voted_for: u64, committed: bool) -> HardState {
        HardState { term, voted_for: Some(voted_for), committed }
    }

    #[test]
    fn two_leaders_in_a_term_are_found() {
        let mut seen = ElectionSafety::default();
        seen.saw_vote(GROUP, vote(1, 7, true)).unwrap();
        seen.saw_vote(GROUP, vote(1, 8, false)).unwrap();
        seen.saw_vote(GROUP, vote(2, 8, true)).unwrap();
        seen.saw_vote(GROUP, vote(1, 8, true)).unwrap_err();
    }

    #[test]
    fn two_votes_of_a_node_in_a_term_are_found() {
        let mut seen = ElectionSafety::default();
        seen.saw_durable_vote(0, GROUP, vote(1, 7, false)).unwrap();
        seen.saw_durable_vote(0, GROUP, vote(1, 9, true)).unwrap();
        seen.saw_durable_vote(1, GROUP, vote(1, 8, false)).unwrap();
        seen.saw_durable_vote(0, GROUP, vote(1, 8, false)).unwrap_err();
    }
}
