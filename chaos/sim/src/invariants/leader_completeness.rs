//! Leader completeness: a leader's log holds every entry that was committed before its term. And
//! state machine safety: no two replicas apply different entries at one index.

use std::collections::BTreeMap;

use anchorhold_storage::{GroupId, HardState, LogStore, MemoryLog};

use super::log_matching::content_digest;

/// What was committed, and which leaders are to be looked at.
#[derive(Debug, Default)]
pub struct LeaderCompleteness {
    /// By group and index: term and content of what some replica has applied.
    committed: BTreeMap<(GroupId, u64), (u64, u64)>,
    /// One past the last index that was recorded, by node and group.
    recorded: BTreeMap<(usize, GroupId), u64>,
    /// Leaders that were elected since the last look: group, term, replica.
    elected: Vec<(GroupId, u64, u64)>,
    /// The last term of each group that was looked at.
    looked_at: BTreeMap<GroupId, u64>,
}

/// One replica as it is now.
pub struct Seen<'a> {
    /// Its node.
    pub node: usize,
    /// Its group.
    pub group: GroupId,
    /// Its id.
    pub replica: u64,
    /// One past the applied index.
    pub applied_end: u64,
    /// Its node's log.
    pub log: &'a MemoryLog,
}

impl LeaderCompleteness {
    /// A log is told to save a vote. A committed one of a new term names a new leader.
    pub fn saw_vote(&mut self, group: GroupId, vote: HardState) {
        let (true, Some(leader)) = (vote.committed, vote.voted_for) else { return };
        if self.looked_at.get(&group).is_none_or(|term| *term < vote.term) {
            self.looked_at.insert(group, vote.term);
            self.elected.push((group, vote.term, leader));
        }
    }

    /// Looks at all live replicas, after every step: new leaders first, against what was committed
    /// before, then at what was applied since.
    ///
    /// # Errors
    /// If a leader lacks a committed entry, or replicas have applied different ones.
    pub fn look(&mut self, replicas: &[Seen<'_>]) -> Result<(), String> {
        for (group, term, leader) in std::mem::take(&mut self.elected) {
            let found = |seen: &&Seen<'_>| seen.group == group && seen.replica == leader;
            if let Some(seen) = replicas.iter().find(found) {
                self.check_leader(seen, term)?;
            }
        }
        replicas.iter().try_for_each(|seen| self.record(seen))
    }

    fn check_leader(&self, leader: &Seen<'_>, term: u64) -> Result<(), String> {
        let group = leader.group;
        let begin = leader.log.group(group).and_then(|log| log.purged).map_or(0, |p| p.index + 1);
        for ((_, index), (entry_term, content)) in
            self.committed.range((group, begin)..=(group, u64::MAX))
        {
            let read = leader.log.read(group, *index..index + 1, 1);
            let held = read.ok().and_then(|entries| entries.into_iter().next());
            let held = held.map(|entry| (entry.position.term, content_digest(&entry)));
            if *entry_term < term && held != Some((*entry_term, *content)) {
                return Err(format!(
                    "leader completeness: the leader of term {term} of shard {:x}, on node {}, \
                     lacks the committed entry {index} of term {entry_term}",
                    group.shard,
                    leader.node + 1
                ));
            }
        }
        Ok(())
    }

    /// Records what a replica has applied since the last look.
    fn record(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let recorded = self.recorded.entry((seen.node, seen.group)).or_default();
        if seen.applied_end < *recorded {
            // Its state went back in a crash, or to a snapshot: it applies the same again.
            *recorded = seen.applied_end;
        }
        for index in *recorded..seen.applied_end {
            // What is purged is in a snapshot, and another replica recorded it.
            let Ok(read) = seen.log.read(seen.group, index..index + 1, 1) else { continue };
            let Some(entry) = read.into_iter().next() else { continue };
            let applied = (entry.position.term, content_digest(&entry));
            let known = *self.committed.entry((seen.group, index)).or_insert(applied);
            if known != applied {
                return Err(format!(
                    "state machine safety: entry {index} of shard {:x} was applied as {known:?}, \
                     and on node {} as {applied:?}",
                    seen.group.shard,
                    seen.node + 1
                ));
            }
        }
        *recorded = seen.applied_end;
        Ok(())
    }

    /// Committed entries seen so far.
    pub fn committed(&self) -> usize {
        self.committed.len()
    }
}

#[cfg(test)]
mod tests {
    use anchorhold_storage::{LogEntry, LogPosition, LogWrite};

    use super::*;

    const GROUP: GroupId = GroupId { shard: 1, incarnation: 1 };

    fn log(entries: &[(u64, &'static str)]) -> MemoryLog {
        let log = MemoryLog::new();
        let entry = |(index, (term, content)): (u64, &(u64, &'static str))| LogEntry {
            position: LogPosition { term: *term, index },
            content: (*content).into(),
        };
        let entries = (0..).zip(entries).map(entry).collect();
        log.submit(LogWrite::Append { group: GROUP, entries }, Box::new(|_| {}));
        log
    }

    fn seen(node: usize, log: &MemoryLog, applied_end: u64) -> Seen<'_> {
        Seen { node, group: GROUP, replica: node as u64, applied_end, log }
    }

    fn elect(checks: &mut LeaderCompleteness, term: u64, replica: u64) {
        checks.saw_vote(GROUP, HardState { term, voted_for: Some(replica), committed: true });
    }

    #[test]
    fn a_leader_without_a_committed_entry_is_found() {
        let (whole, short) = (log(&[(1, "a"), (1, "b")]), log(&[(1, "a")]));
        let mut checks = LeaderCompleteness::default();
        checks.look(&[seen(0, &whole, 2)]).unwrap();
        elect(&mut checks, 2, 0);
        checks.look(&[seen(0, &whole, 2), seen(1, &short, 1)]).unwrap();
        elect(&mut checks, 3, 1);
        checks.look(&[seen(0, &whole, 2), seen(1, &short, 1)]).unwrap_err();
    }

    #[test]
    fn replicas_that_apply_different_entries_are_found() {
        let (one, other) = (log(&[(1, "a"), (1, "b")]), log(&[(1, "a"), (2, "c")]));
        let mut checks = LeaderCompleteness::default();
        checks.look(&[seen(0, &one, 2), seen(1, &other, 1)]).unwrap();
        checks.look(&[seen(0, &one, 2), seen(1, &other, 2)]).unwrap_err();
    }
}
