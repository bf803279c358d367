//! Batches that were committed and are not in the tree yet.
//!
//! sled writes its buffer to the disk twice for each batch, however small, and lets nobody read
//! while it applies one. So batches are gathered into *groups* of about [`GROUP_ROWS_TARGET`] rows,
//! each of which becomes one batch of sled. Whole batches in order: after a crash the tree holds a
//! prefix of them.
//!
//! Invariants: a row is in the overlay from its commit until the tree holds it, so a reader who
//! looks here first and in the tree second misses nothing. The overlay holds the newest value of a
//! row and the group it belongs to; a group that is in the tree takes out only its own.

use std::collections::{BTreeMap, VecDeque};
use std::ops::{Bound, Range};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock};

use crate::state_store::{Batch, StateError};

/// Rows after which a group is closed. Applying as many takes sled one or two milliseconds.
const GROUP_ROWS_TARGET: usize = 256;

/// Bytes of keys and values after which a group is closed.
const GROUP_BYTES_TARGET: usize = 256 << 10;

/// Bytes of closed groups above which commits wait.
const QUEUE_BYTES_MAX: usize = 16 << 20;

/// Rows to write or remove, by key.
pub(super) type Rows = BTreeMap<Bytes, Option<Bytes>>;

/// Whole batches that become one batch of sled.
#[derive(Debug, Default)]
pub(super) struct Group {
    number: u64,
    pub(super) rows: Rows,
    bytes: usize,
}

/// A row in the overlay.
#[derive(Debug)]
struct Pending {
    value: Option<Bytes>,
    /// Number of the newest group that writes the row.
    group: u64,
}

/// Rows of a range, and where the part of the range ends for which they are all.
pub(super) struct Page {
    /// In order; `None` for a removed row.
    pub(super) rows: Vec<(Bytes, Option<Bytes>)>,
    /// The first row that is not in `rows`; `None` if they reach to the end of the range.
    pub(super) next: Option<Vec<u8>>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    overlay: RwLock<BTreeMap<Bytes, Pending>>,
    queue: Mutex<Queue>,
    /// There is a closed group, or the end.
    work: Condvar,
    /// A group is in the tree, or there was a failure.
    progress: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    filling: Group,
    closed: VecDeque<Arc<Group>>,
    /// Bytes in `closed`.
    closed_bytes: usize,
    /// Groups below this number are in the tree.
    drained: u64,
    /// Somebody brings the first closed group into the tree, however long that takes.
    is_applying: bool,
    ending: bool,
    failed: Option<String>,
}

impl Group {
    /// Bytes of keys and values.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Queue {
    fn check(&self) -> Result<(), StateError> {
        match &self.failed {
            Some(reason) => Err(StateError::Engine { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// Closes the group that is being filled, unless it is empty.
    fn close(&mut self) {
        if self.filling.rows.is_empty() {
            return;
        }
        let number = self.filling.number + 1;
        let full = std::mem::replace(&mut self.filling, Group { number, ..Group::default() });
        self.closed_bytes += full.bytes;
        self.closed.push_back(Arc::new(full));
    }
}

impl Buffer {
    /// Takes a batch; it is visible when this returns. Waits while too much is queued.
    pub(super) fn commit(&self, batch: Batch) -> Result<(), StateError> {
        let mut queue = self.queue.lock();
        while queue.failed.is_none() && QUEUE_BYTES_MAX < queue.closed_bytes {
            self.progress.wait(&mut queue);
        }
        queue.check()?;
        let filling = &mut queue.filling;
        let group = filling.number;
        let mut overlay = self.overlay.write();
        for (key, value) in batch.rows {
            let (key, value) = (Bytes::from(key), value.map(Bytes::from));
            filling.bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
            overlay.insert(key.clone(), Pending { value: value.clone(), group });
            filling.rows.insert(key, value);
        }
        drop(overlay);
        if GROUP_ROWS_TARGET <= filling.rows.len() || GROUP_BYTES_TARGET <= filling.bytes {
            queue.close();
            self.work.notify_one();
        }
        Ok(())
    }

    /// Whether a batch would have to wait.
    pub(super) fn is_crowded(&self) -> bool {
        QUEUE_BYTES_MAX < self.queue.lock().closed_bytes
    }

    /// Waits until the tree holds everything committed before this call. Returns `false` if for
    /// so long nothing has come into the tree.
    pub(super) fn drain(&self, patience: Duration) -> Result<bool, StateError> {
        let mut queue = self.queue.lock();
        queue.close();
        self.work.notify_one();
        let end = queue.filling.number;
        while queue.failed.is_none() && queue.drained < end {
            let before = queue.drained;
            let is_late = self.progress.wait_for(&mut queue, patience).timed_out();
            if is_late && queue.drained == before && !queue.is_applying {
                return Ok(false);
            }
        }
        queue.check().map(|()| true)
    }

    /// The group that `next` gave cannot come into the tree yet. Waits as `pause` does.
    pub(super) fn postpone(&self, pause: Duration) -> bool {
        self.queue.lock().is_applying = false;
        self.pause(pause)
    }

    /// Waits a little. Returns `false` if the store is being dropped.
    pub(super) fn pause(&self, pause: Duration) -> bool {
        let mut queue = self.queue.lock();
        if !queue.ending {
            self.progress.wait_for(&mut queue, pause);
        }
        !queue.ending
    }

    #[cfg(test)]
    pub(super) fn has_closed_groups(&self) -> bool {
        !self.queue.lock().closed.is_empty()
    }

    /// Lets [`Buffer::next`] return `None` once everything is in the tree.
    pub(super) fn end(&self) {
        let mut queue = self.queue.lock();
        queue.close();
        queue.ending = true;
        self.work.notify_one();
        self.progress.notify_all();
    }

    /// Takes nothing any more.
    pub(super) fn fail(&self, reason: &str) {
        let mut queue = self.queue.lock();
        queue.failed.get_or_insert_with(|| reason.to_owned());
        self.progress.notify_all();
    }

    /// The oldest closed group; waits for one. `None` at the end and after a failure.
    pub(super) fn next(&self) -> Option<Arc<Group>> {
        let mut queue = self.queue.lock();
        loop {
            if queue.failed.is_some() {
                return None;
            }
            if let Some(group) = queue.closed.front().cloned() {
                queue.is_applying = true;
                return Some(group);
            }
            if queue.ending {
                return None;
            }
            self.work.wait(&mut queue);
        }
    }

    /// The group that `next` gave is in the tree.
    pub(super) fn done(&self, group: &Group) {
        let mut overlay = self.overlay.write();
        for key in group.rows.keys() {
            if overlay.get(key).is_some_and(|pending| pending.group == group.number) {
                overlay.remove(key);
            }
        }
        drop(overlay);
        let mut queue = self.queue.lock();
        queue.closed.pop_front();
        queue.closed_bytes -= group.bytes;
        queue.drained = group.number + 1;
        queue.is_applying = false;
        self.progress.notify_all();
    }

    /// A row, if it is here: `Some(None)` if it was removed.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        self.overlay.read().get(key).map(|pending| pending.value.clone())
    }

    /// The first rows of a range that are here, up to `rows_max`.
    pub(super) fn page(&self, range: Range<&[u8]>, rows_max: usize) -> Page {
        let overlay = self.overlay.read();
        let bounds = (Bound::Included(range.start), Bound::Excluded(range.end));
        let mut found = overlay.range::<[u8], _>(bounds);
        let first = found.by_ref().take(rows_max);
        let rows = first.map(|(key, pending)| (key.clone(), pending.value.clone())).collect();
        Page { rows, next: found.next().map(|(key, _)| key.to_vec()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_nobody_empties_says_when_the_next_batch_would_wait() {
        let buffer = Buffer::default();
        let value = vec![7; GROUP_BYTES_TARGET];
        for key in 0_u32.. {
            if buffer.is_crowded() {
                break;
            }
            let row = (key.to_be_bytes().to_vec(), Some(value.clone()));
            buffer.commit(Batch { rows: vec![row] }).unwrap();
        }
        assert!(QUEUE_BYTES_MAX < buffer.queue.lock().closed_bytes);
        let group = buffer.next().unwrap();
        buffer.done(&group);
        assert!(!buffer.is_crowded());
    }
}
