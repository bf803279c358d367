//! What the disk holds: the log as a recovery at this moment would find it.
//!
//! Only the writer has it. It decides from it, and never from what readers see, which segments are
//! still needed: a change that is submitted but not durable must not cost a segment.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::group::GroupState;
use super::segment::Segment;
use crate::log_store::GroupId;

/// Where an entry is. 16 bytes, of which there may be millions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Home {
    pub(super) segment: u64,
    pub(super) length: u32,
}

/// A segment and what is live in it.
pub(super) struct SegmentUse {
    pub(super) segment: Arc<Segment>,
    /// Bytes of the file.
    pub(super) length: u64,
    pub(super) live_entries: u64,
    pub(super) live_bytes: u64,
}

pub(super) struct Written {
    pub(super) groups: BTreeMap<GroupId, GroupState<Home>>,
    /// Oldest first, numbers rising, the current one last.
    pub(super) uses: Uses,
}

#[derive(Default)]
pub(super) struct Uses {
    list: VecDeque<SegmentUse>,
}

impl Uses {
    pub(super) fn push(&mut self, segment: Arc<Segment>, length: u64) {
        self.list.push_back(SegmentUse { segment, length, live_entries: 0, live_bytes: 0 });
    }

    pub(super) fn pop_oldest(&mut self) -> Option<SegmentUse> {
        self.list.pop_front()
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn oldest(&self) -> Option<&SegmentUse> {
        self.list.front()
    }

    /// A segment by its number.
    pub(super) fn find(&self, number: u64) -> Option<&SegmentUse> {
        self.position(number).map(|at| &self.list[at])
    }

    /// Bytes of all files.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.list.iter().map(|found| found.length).sum()
    }

    /// Bytes of all live entries.
    pub(super) fn live_bytes(&self) -> u64 {
        self.list.iter().map(|found| found.live_bytes).sum()
    }

    /// Number of the first segment that still holds a live entry, or of the current one.
    pub(super) fn oldest_needed(&self) -> u64 {
        let needed = self.list.iter().find(|found| found.live_entries != 0);
        needed.or(self.list.back()).map_or(0, |found| found.segment.number)
    }

    /// Numbers rise, with gaps where segments are lost.
    fn position(&self, number: u64) -> Option<usize> {
        let first = self.list.front()?.segment.number;
        let guess = usize::try_from(number.checked_sub(first)?).ok()?;
        if self.list.get(guess).is_some_and(|found| found.segment.number == number) {
            return Some(guess);
        }
        self.list.binary_search_by_key(&number, |found| found.segment.number).ok()
    }

    pub(super) fn gain(&mut self, home: Home) {
        if let Some(at) = self.position(home.segment) {
            let found = &mut self.list[at];
            found.live_entries += 1;
            found.live_bytes += u64::from(home.length);
        }
    }

    pub(super) fn lose(&mut self, home: Home) {
        if let Some(at) = self.position(home.segment) {
            let found = &mut self.list[at];
            found.live_entries -= 1;
            found.live_bytes -= u64::from(home.length);
        }
    }
}
