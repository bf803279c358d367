//! Log matching: if two logs hold an entry of equal index and term, the entries are equal, and so
//! are the logs up to there.
//!
//! Each appended entry is compared with the first one seen at its index and term: its content, and
//! the term of the entry before it. By induction that is the whole prefix.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use anchorhold_storage::{GroupId, LogEntry, LogStore, MemoryLog};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    content: u64,
    /// Term of the entry before; `None` if that one was not to be seen.
    term_before: Option<u64>,
}

/// Entries seen so far, by group, index and term.
#[derive(Debug, Default)]
pub struct LogMatching {
    entries: BTreeMap<(GroupId, u64, u64), Seen>,
}

/// A digest of an entry's content.
pub(crate) fn content_digest(entry: &LogEntry) -> u64 {
    let mut hasher = DefaultHasher::new();
    entry.content.hash(&mut hasher);
    hasher.finish()
}

/// The term of a group's entry, or of the purge mark if that is where the index lies.
pub(crate) fn term_at(log: &MemoryLog, group: GroupId, index: u64) -> Option<u64> {
    let read = log.read(group, index..index + 1, 1).ok();
    if let Some(entry) = read.and_then(|entries| entries.into_iter().next()) {
        return Some(entry.position.term);
    }
    let purged = log.group(group)?.purged?;
    (purged.index == index).then_some(purged.term)
}

impl LogMatching {
    /// A node's log is told to append entries; `log` holds what comes before them.
    ///
    /// # Errors
    /// If an entry differs from one of equal index and term.
    pub fn saw_append(
        &mut self,
        group: GroupId,
        entries: &[LogEntry],
        log: &MemoryLog,
    ) -> Result<(), String> {
        let before = entries.first().and_then(|first| first.position.index.checked_sub(1));
        let mut term_before = before.and_then(|index| term_at(log, group, index));
        for entry in entries {
            let seen = Seen { content: content_digest(entry), term_before };
            let place = (group, entry.position.index, entry.position.term);
            let known = self.entries.entry(place).or_insert(seen);
            let differs = known.content != seen.content
                || known.term_before.zip(seen.term_before).is_some_and(|(a, b)| a != b);
            if differs {
                return Err(format!(
                    "log matching: shard {:x} has two entries {} of term {}: {known:?}, {seen:?}",
                    group.shard, entry.position.index, entry.position.term
                ));
            }
            known.term_before = known.term_before.or(seen.term_before);
            term_before = Some(entry.position.term);
        }
        Ok(())
    }

    /// Different entries seen so far.
    pub fn entries(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use anchorhold_storage::LogPosition;

    use super::*;

    const GROUP: GroupId = GroupId { shard: 1, incarnation: 1 };

    fn entry(term: u64, index: u64, content: &'static str) -> LogEntry {
        LogEntry { position: LogPosition { term, index }, content: content.into() }
    }

    #[test]
    fn another_entry_at_the_same_place_is_found() {
        let (mut seen, log) = (LogMatching::default(), MemoryLog::new());
        seen.saw_append(GROUP, &[entry(1, 0, "a"), entry(1, 1, "b")], &log).unwrap();
        seen.saw_append(GROUP, &[entry(1, 0, "a"), entry(2, 1, "c")], &log).unwrap();
        seen.saw_append(GROUP, &[entry(1, 1, "c")], &log).unwrap_err();
    }

    #[test]
    fn equal_entries_behind_different_logs_are_found() {
        let (mut seen, log) = (LogMatching::default(), MemoryLog::new());
        seen.saw_append(GROUP, &[entry(1, 0, "a"), entry(3, 1, "b")], &log).unwrap();
        seen.saw_append(GROUP, &[entry(2, 0, "x"), entry(3, 1, "b")], &log).unwrap_err();
    }
}
