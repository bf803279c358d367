//! State equality: replicas of a shard that have applied the same index hold the same state.

use std::collections::BTreeMap;

use anchorhold_storage::GroupId;

/// Digests seen so far.
#[derive(Debug, Default)]
pub struct StateEquality {
    /// By group and one past the applied index: the digest, and the node that it was seen on.
    digests: BTreeMap<(GroupId, u64), (u64, usize)>,
    compared: u64,
}

impl StateEquality {
    /// A replica's state has this digest at this applied index.
    ///
    /// # Errors
    /// If another one was seen there.
    pub fn saw(
        &mut self,
        node: usize,
        group: GroupId,
        applied_end: u64,
        digest: u64,
    ) -> Result<(), String> {
        let (known, first) = *self.digests.entry((group, applied_end)).or_insert((digest, node));
        self.compared += u64::from(first != node);
        if known == digest {
            return Ok(());
        }
        Err(format!(
            "state equality: nodes {} and {} differ at index {} of shard {:x}",
            first + 1,
            node + 1,
            applied_end.saturating_sub(1),
            group.shard
        ))
    }

    /// Comparisons of two nodes so far.
    pub fn compared(&self) -> u64 {
        self.compared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_states_at_one_index_are_found() {
        let group = GroupId { shard: 1, incarnation: 1 };
        let mut seen = StateEquality::default();
        seen.saw(0, group, 5, 1).unwrap();
        seen.saw(1, group, 6, 2).unwrap();
        seen.saw(1, group, 5, 1).unwrap();
        seen.saw(2, group, 5, 3).unwrap_err();
        assert_eq!(seen.compared(), 2);
    }
}
