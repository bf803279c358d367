//! One group's view of the shared log, as openraft wants it.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anchorhold_storage::{
    GroupId, HardState, LogEntry, LogError, LogPosition, LogStore, LogWrite, ReadError,
};
use futures::{Stream, TryStreamExt as _, stream};
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use tokio::sync::{oneshot, watch};

use crate::seams::Exit;
use crate::types::{Entry, LogId, TypeConfig, Vote, log_id};
use crate::wire;

/// Bytes that one read for replication returns, at most (but at least one entry).
const READ_BYTES_MAX: usize = 4 << 20;

/// Time between two attempts to write to a full disk.
const SPACE_PAUSE: Duration = Duration::from_millis(200);

/// One group in the shared log.
#[derive(Clone)]
pub(crate) struct GroupLogStorage {
    log: Arc<dyn LogStore>,
    group: GroupId,
    /// One past the last index that this node's disk holds. Apply waits for it.
    durable_end: Arc<watch::Sender<u64>>,
    failing: Arc<Failing>,
}

/// What becomes of a node whose log fails. A log that has failed once is never written again: the
/// process ends, and recovery decides what is on the disk.
struct Failing {
    exit: Arc<dyn Exit>,
    failed: AtomicBool,
}

impl Failing {
    fn fail(&self, error: &LogError) -> io::Error {
        match error {
            LogError::Poisoned { .. } | LogError::Refused { .. } => {
                self.failed.store(true, Ordering::Release);
                self.exit.exit(&format!("the shared log cannot be written: {error}"));
            }
            // Never given here: the caller waits for room.
            LogError::NoSpace => {}
        }
        io::Error::other(error.clone())
    }

    fn check(&self) -> io::Result<()> {
        if self.failed.load(Ordering::Acquire) {
            return Err(io::Error::other("the log has failed and does not hold what is committed"));
        }
        Ok(())
    }
}

impl GroupLogStorage {
    pub(crate) fn new(log: Arc<dyn LogStore>, group: GroupId, exit: Arc<dyn Exit>) -> Self {
        let last = log.group(group).and_then(|state| state.last);
        let durable_end = Arc::new(watch::Sender::new(last.map_or(0, |last| last.index + 1)));
        let failing = Arc::new(Failing { exit, failed: AtomicBool::new(false) });
        Self { log, group, durable_end, failing }
    }

    /// Follows the durable end of this group's log.
    pub(crate) fn durable(&self) -> watch::Receiver<u64> {
        self.durable_end.subscribe()
    }

    /// Submits a change and waits until it is durable; on a full disk, for room.
    async fn write(&self, write: LogWrite) -> Result<(), io::Error> {
        loop {
            let (done, waiting) = oneshot::channel();
            self.log.submit(write.clone(), Box::new(move |result| drop(done.send(result))));
            match waiting.await {
                Ok(Err(LogError::NoSpace)) => self.wait_for_space().await,
                Ok(result) => return result.map_err(|error| self.failing.fail(&error)),
                Err(_) => return Err(io::Error::other("the log's writer has stopped")),
            }
        }
    }

    /// Raft cannot go on without what it wants to write, and must not be told that the disk has
    /// failed when it is only full: the replica stands still, and its leadership passes to others.
    async fn wait_for_space(&self) {
        tracing::warn!(shard = self.group.shard, "the disk is full: this replica waits for room");
        tokio::time::sleep(SPACE_PAUSE).await;
    }

    /// Whether the log took an append. It shows in the log from the moment it is accepted.
    fn holds(&self, last: LogPosition) -> bool {
        self.log.group(self.group).and_then(|state| state.last) == Some(last)
    }

    /// The entries of a range, as far as there are any.
    pub(crate) fn entries(&self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read_all(start, end)
    }

    fn read_all(&self, mut start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let mut entries = Vec::new();
        while start < end {
            let read = self.read_some(start, end)?;
            let Some(last) = read.last() else { break };
            start = last.log_id.index + 1;
            entries.extend(read);
        }
        Ok(entries)
    }

    /// What there is of a range, up to [`READ_BYTES_MAX`]. Indexes that are purged, or that a log
    /// which begins later never had, are left out, as openraft expects.
    fn read_some(&self, mut start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        while start < end {
            match self.log.read(self.group, start..end, READ_BYTES_MAX) {
                Ok(read) => return read.into_iter().map(into_entry).collect(),
                Err(ReadError::Purged { purged, .. }) => start = purged.index + 1,
                Err(ReadError::Unknown { .. }) => start += 1,
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        Ok(Vec::new())
    }
}

/// Indexes that a range names; without an end, those before `log_end`.
fn bounds(range: &impl RangeBounds<u64>, log_end: u64) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end + 1,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => log_end,
    };
    (start, end)
}

fn into_entry(entry: LogEntry) -> Result<Entry, io::Error> {
    wire::entry_from_content(entry.position, entry.content).map_err(io::Error::other)
}

impl RaftLogReader<TypeConfig> for GroupLogStorage {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let last = self.log.group(self.group).and_then(|state| state.last);
        let log_end = last.map_or(0, |last| last.index + 1);
        let (start, end) = bounds(&range, log_end);
        self.read_all(start, end.min(log_end))
    }

    /// What is to be applied, a few megabytes at a time. What a failed log did not take is an error
    /// here: openraft would take a range that ends early for applied as a whole. (Other gaps are the
    /// state machine's to find.)
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let last = self.log.group(self.group).and_then(|state| state.last);
        let (start, end) = bounds(&range, last.map_or(0, |last| last.index + 1));
        let reader = self.clone();
        let chunks = stream::unfold(start, move |at| {
            let read = (at < end).then(|| reader.read_some(at, end));
            let chunk = read.and_then(|read| match read {
                Ok(entries) => match entries.last().map(|last| last.log_id.index + 1) {
                    Some(next) => Some((Ok(entries), next)),
                    None => reader.failing.check().err().map(|error| (Err(error), end)),
                },
                // Nothing comes after an error.
                Err(error) => Some((Err(error), end)),
            });
            std::future::ready(chunk)
        });
        let entries = |chunk: Vec<Entry>| stream::iter(chunk.into_iter().map(Ok));
        Box::pin(chunks.map_ok(entries).try_flatten())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        let hard_state = self.log.group(self.group).and_then(|state| state.hard_state);
        Ok(hard_state.map(|state| {
            let voted_for = state.voted_for.unwrap_or_default();
            if state.committed {
                Vote::new_committed(state.term, voted_for)
            } else {
                Vote::new(state.term, voted_for)
            }
        }))
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read_some(start, end)
    }
}

impl RaftLogStorage<TypeConfig> for GroupLogStorage {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let state = self.log.group(self.group).unwrap_or_default();
        let to_log_id = |position: LogPosition| log_id(position.term, position.index);
        Ok(LogState {
            last_purged_log_id: state.purged.map(to_log_id),
            last_log_id: state.last.map(to_log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let hard_state = HardState {
            term: vote.leader_id.term,
            voted_for: Some(vote.leader_id.voted_for),
            committed: vote.committed,
        };
        self.write(LogWrite::SaveHardState { group: self.group, hard_state }).await
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<LogEntry> =
            entries.into_iter().map(|entry| wire::log_entry(&entry)).collect();
        let Some(last) = entries.last() else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        let last = last.position;
        let mut callback = callback;
        loop {
            let (refused, no_space) = oneshot::channel();
            let (durable_end, failing) = (self.durable_end.clone(), self.failing.clone());
            let entries = entries.clone();
            self.log.submit(
                LogWrite::Append { group: self.group, entries },
                Box::new(move |result| match result {
                    Ok(()) => {
                        durable_end.send_replace(last.index + 1);
                        callback.io_completed(Ok(()));
                    }
                    Err(LogError::NoSpace) => drop(refused.send(callback)),
                    Err(error) => callback.io_completed(Err(failing.fail(&error))),
                }),
            );
            if self.holds(last) {
                return Ok(());
            }
            // Refused, and by what the completion says.
            match no_space.await {
                Ok(again) => callback = again,
                Err(_) => return Ok(()),
            }
            self.wait_for_space().await;
        }
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let from = last_log_id.map_or(0, |id| id.index + 1);
        self.write(LogWrite::Truncate { group: self.group, from }).await?;
        // After the truncation completed, and so after every earlier append has: an older
        // completion must not raise the end over entries that are still to be written.
        let durable_end = *self.durable_end.borrow();
        self.durable_end.send_replace(from.min(durable_end));
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        let end = log_id.index + 1;
        let up_to = LogPosition { term: log_id.leader_id.term, index: log_id.index };
        self.write(LogWrite::Purge { group: self.group, up_to }).await?;
        self.durable_end.send_if_modified(|durable_end| {
            let raise = *durable_end < end;
            *durable_end = (*durable_end).max(end);
            raise
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use anchorhold_storage::fs::{Fault, MemoryFs};
    use anchorhold_storage::{LogConfig, SegmentedLog};
    use futures::StreamExt as _;

    use super::*;
    use crate::types::{EntryPayload, Payload};

    struct NeverExits;

    impl Exit for NeverExits {
        fn exit(&self, reason: &str) {
            panic!("{reason}");
        }
    }

    fn entry(index: u64) -> Entry {
        let content = [wire::KIND_NORMAL].into_iter().chain([7; 600]).collect::<Vec<u8>>();
        Entry { log_id: log_id(1, index), payload: EntryPayload::Normal(Payload(content.into())) }
    }

    /// Appends one entry and waits until it is durable.
    async fn append(log: &mut GroupLogStorage, index: u64) {
        let mut durable = log.durable();
        log.append([entry(index)], IOFlushed::noop()).await.unwrap();
        durable.wait_for(|end| index < *end).await.unwrap();
    }

    #[tokio::test]
    async fn what_a_failed_log_did_not_take_is_an_error_and_no_end() {
        struct Goes;
        impl Exit for Goes {
            fn exit(&self, _reason: &str) {}
        }
        let fs = MemoryFs::new();
        let opened =
            SegmentedLog::open(Arc::new(fs.clone()), Path::new("/log"), LogConfig::default());
        let group = GroupId { shard: 1, incarnation: 1 };
        let mut log = GroupLogStorage::new(Arc::new(opened.unwrap()), group, Arc::new(Goes));
        for index in 0..10 {
            append(&mut log, index).await;
        }
        let read = async |log: &GroupLogStorage, range: std::ops::Range<u64>| {
            let entries: Vec<_> = log.clone().entries_stream(range).await.collect().await;
            let indexes = entries.iter().map(|entry| entry.as_ref().ok().map(|e| e.log_id.index));
            indexes.collect::<Vec<_>>()
        };
        assert_eq!(read(&log, 8..12).await, [Some(8), Some(9)], "10 and 11 are nobody's yet");
        fs.fail_at(fs.calls(), Fault::Io);
        assert!(log.save_vote(&Vote::new(2, 1)).await.is_err());
        log.append([entry(10)], IOFlushed::noop()).await.unwrap();
        assert_eq!(read(&log, 8..11).await, [Some(8), Some(9), None], "10 was not taken");
        assert_eq!(read(&log, 10..11).await, [None]);
        assert_eq!(read(&log, 8..10).await, [Some(8), Some(9)]);
    }

    #[tokio::test]
    async fn an_append_to_a_full_disk_waits_for_room_and_is_never_a_failure() {
        let fs = MemoryFs::new();
        let config = LogConfig { segment_bytes: 16 << 10, ..LogConfig::default() };
        let log = SegmentedLog::open(Arc::new(fs.clone()), Path::new("/log"), config).unwrap();
        let group = GroupId { shard: 1, incarnation: 1 };
        let mut log = GroupLogStorage::new(Arc::new(log), group, Arc::new(NeverExits));
        fs.set_space(Some(0));
        let mut index = 0;
        loop {
            let one = tokio::time::timeout(Duration::from_millis(500), append(&mut log, index));
            if one.await.is_err() {
                break;
            }
            index += 1;
            assert!(index < 1_000, "the disk is never full");
        }
        assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(log_id(1, index - 1)));
        // Votes have room kept for them.
        log.save_vote(&Vote::new(2, 1)).await.unwrap();
        let freed = async {
            tokio::task::yield_now().await;
            fs.set_space(Some(1 << 20));
        };
        tokio::join!(append(&mut log, index), freed);
        assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(log_id(1, index)));
    }
}
