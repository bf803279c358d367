//! The seam of the shared Raft log.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

/// A Raft group as the log names it: a shard in one incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId {
    /// The shard's id.
    pub shard: u64,
    /// The shard's incarnation.
    pub incarnation: u32,
}

/// A place in one group's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPosition {
    /// Raft term of the entry.
    pub term: u64,
    /// Raft index of the entry. The first entry of a group has index 0.
    pub index: u64,
}

/// One entry. The content is opaque here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its place.
    pub position: LogPosition,
    /// What it says.
    pub content: Bytes,
}

/// What Raft must never forget beside the entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HardState {
    /// The current term.
    pub term: u64,
    /// The replica voted for in that term.
    pub voted_for: Option<u64>,
    /// Whether a quorum granted that vote.
    pub committed: bool,
}

/// One change of one group. Changes take effect in the order in which they are submitted.
#[derive(Clone, Debug)]
pub enum LogWrite {
    /// Add entries with consecutive indexes, the first one directly after the group's last (or
    /// anywhere in an empty group that was never purged). Overwriting needs `Truncate` first.
    Append { group: GroupId, entries: Vec<LogEntry> },
    /// Remove all entries at and above an index. Refused at or below the purge mark.
    Truncate { group: GroupId, from: u64 },
    /// Replace the hard state.
    SaveHardState { group: GroupId, hard_state: HardState },
    /// Remove all entries up to and including a position. The mark never goes back; a mark beyond
    /// the last entry empties the group, and the next append must follow it.
    Purge { group: GroupId, up_to: LogPosition },
    /// Forget the group, hard state included. A forgotten group can be started again.
    Drop { group: GroupId },
    /// Note that entries that were acknowledged once, or the hard state, may be lost: remove all
    /// entries at and above an index, and keep the note until it is made good.
    MarkLost { group: GroupId, from: u64, lost: Lost },
}

/// What a damaged disk has cost a group.
///
/// A replica that has lost acknowledged entries must not help to elect a leader that lacks them
/// too: it neither votes nor campaigns until its log has come as far again. One that may have
/// forgotten a vote must not take part in anything, under this replica id, ever again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Nothing behind this position was ever acknowledged. The note goes when the log reaches it,
    /// if the hard state is known.
    pub to: LogPosition,
    /// Whether the hard state is known to be what was saved last.
    pub hard_state_known: bool,
}

/// What a group's log holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupLog {
    /// The saved hard state.
    pub hard_state: Option<HardState>,
    /// Everything up to and including this is purged.
    pub purged: Option<LogPosition>,
    /// The last entry; the purge mark if there are none.
    pub last: Option<LogPosition>,
    /// What is lost here and must come from the peers.
    pub lost: Option<Lost>,
}

/// Called once, from the writer's thread: after the change is durable, or with the reason why it
/// never will be. Must not block.
pub type Completion = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// Why a change was not stored.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// The change contradicts the group's log; nothing was written. Only a bug can cause this.
    #[error("group {group:?}: {reason}")]
    Refused {
        /// The group that was addressed.
        group: GroupId,
        /// The rule that was broken.
        reason: &'static str,
    },
    /// No room on the disk. Nothing was written; votes and purge marks still are.
    #[error("no space left for the log; free some and the node goes on")]
    NoSpace,
    /// A write or an fsync failed before: the log takes nothing any more, the process must end.
    #[error("the log failed earlier and takes no more writes")]
    Poisoned {
        /// The failure.
        #[source]
        source: Arc<std::io::Error>,
    },
}

/// Why entries could not be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// At or below the purge mark.
    #[error("index {index} is purged; the log starts after {purged:?}")]
    Purged {
        /// The asked index.
        index: u64,
        /// The mark.
        purged: LogPosition,
    },
    /// Beyond the last entry, or of a group that does not exist.
    #[error("index {index} is not in the log")]
    Unknown {
        /// The asked index.
        index: u64,
    },
    /// What was read is not what was written.
    #[error("entry {index} of group {group:?} is damaged in {place}")]
    Corrupt {
        /// The group.
        group: GroupId,
        /// The entry.
        index: u64,
        /// Segment and offset.
        place: String,
    },
    /// The disk failed.
    #[error("the log could not be read")]
    Io(#[source] Arc<std::io::Error>),
}

/// Counters since the log was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Entries appended.
    pub entries: u64,
    /// Batches written; each is one fsync.
    pub fsyncs: u64,
    /// Bytes written, framing and copying forward included.
    pub bytes_written: u64,
    /// Bytes of entries as given by the callers.
    pub bytes_given: u64,
    /// Sum of the fsyncs' durations in microseconds.
    pub fsync_micros: u64,
    /// The 99th percentile of the last thousand fsyncs' durations in microseconds; `None` before
    /// the first, and where nothing is waited for.
    pub fsync_p99_micros: Option<u64>,
    /// Segment files on disk.
    pub segments: u64,
    /// Bytes of the segment files on disk.
    pub disk_bytes: u64,
}

/// The shared log of all Raft groups of a node.
///
/// Contract: what `submit` accepted is readable by `read` and counted in `group` when it returns,
/// before it is durable; the completion reports durability. Completions of one group are called in
/// the order of their submission. Reads take no lock across IO and never fail for a live index.
///
/// No method has a default, so that no store answers by mistake for one that it stands in front of.
/// Such a one is a [`LogLayer`].
pub trait LogStore: Send + Sync + 'static {
    /// Queues a change. A refused one completes with [`LogError::Refused`] and has no effect.
    /// Does not block, apart from a bounded wait when too many bytes are queued.
    fn submit(&self, write: LogWrite, done: Completion);

    /// What a group's log holds; `None` if the group is unknown.
    fn group(&self, group: GroupId) -> Option<GroupLog>;

    /// All known groups, in order.
    fn groups(&self) -> Vec<GroupId>;

    /// The entries of `indexes` in order: at least the first, then as many as fit in `bytes_max`.
    /// An empty range gives none.
    ///
    /// # Errors
    /// [`ReadError`] if the first one cannot be read.
    fn read(
        &self,
        group: GroupId,
        indexes: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<LogEntry>, ReadError>;

    /// As [`Self::read`], but what is on the disk is read from there even where memory still has it:
    /// for who looks for damage.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn read_stored(
        &self,
        group: GroupId,
        indexes: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<LogEntry>, ReadError>;

    /// Groups of which an entry was found damaged since the start and not purged since. Such an entry
    /// cannot be moved, and so no segment from its own on can be removed: they should purge.
    fn damaged_groups(&self) -> Vec<GroupId>;

    /// Whether a group that is unknown here may have been known before: a record was damaged of
    /// which nothing tells whose it was.
    fn unknown_groups_may_be_lost(&self) -> bool;

    /// Every group that should be here has been noted as lost where it was unknown: from now on an
    /// unknown group is a new one. Until this is called, starts go on asking.
    fn unknown_groups_are_noted(&self);

    /// Bytes of a group's live entries: whom to ask for a snapshot.
    fn group_bytes(&self, group: GroupId) -> u64;

    /// Counters since the log was opened.
    fn stats(&self) -> LogStats;
}

/// A log in front of another one that changes how changes are stored, and nothing else.
///
/// It is a [`LogStore`] by the one delegation below: a method that the seam gains does not compile
/// until it is passed on there, for all layers.
pub trait LogLayer: Send + Sync + 'static {
    /// The log behind it.
    fn inner(&self) -> &dyn LogStore;

    /// Takes a change in the place of the inner log's [`LogStore::submit`].
    fn submit_through(&self, write: LogWrite, done: Completion);
}

impl<L: LogLayer> LogStore for L {
    fn submit(&self, write: LogWrite, done: Completion) {
        self.submit_through(write, done);
    }

    fn group(&self, group: GroupId) -> Option<GroupLog> {
        self.inner().group(group)
    }

    fn groups(&self) -> Vec<GroupId> {
        self.inner().groups()
    }

    fn read(
        &self,
        group: GroupId,
        indexes: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<LogEntry>, ReadError> {
        self.inner().read(group, indexes, bytes_max)
    }

    fn read_stored(
        &self,
        group: GroupId,
        indexes: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<LogEntry>, ReadError> {
        self.inner().read_stored(group, indexes, bytes_max)
    }

    fn damaged_groups(&self) -> Vec<GroupId> {
        self.inner().damaged_groups()
    }

    fn unknown_groups_may_be_lost(&self) -> bool {
        self.inner().unknown_groups_may_be_lost()
    }

    fn unknown_groups_are_noted(&self) {
        self.inner().unknown_groups_are_noted();
    }

    fn group_bytes(&self, group: GroupId) -> u64 {
        self.inner().group_bytes(group)
    }

    fn stats(&self) -> LogStats {
        self.inner().stats()
    }
}
