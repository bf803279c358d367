//! The state store of simulations: rows in memory that can lose their unsynced tail.
//!
//! Every batch since the last checkpoint keeps what it replaced, so that [`MemoryState::crash`]
//! can take the newest batches back. Invariant: undoing all of `tail`, newest first, gives the
//! state of the last checkpoint.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};

use parking_lot::RwLock;

use crate::state_store::{Batch, StateError, StateStats, StateStore, Visit, clear_in_batches};

/// Rows copied out at a time in a scan, so that `visit` runs without the lock.
const SCAN_ROWS_MAX: usize = 256;

/// Ordered rows in memory.
#[derive(Debug, Default)]
pub struct MemoryState {
    inner: RwLock<Inner>,
}

/// Rows of a batch with what they held before.
type Replaced = Vec<(Vec<u8>, Option<Vec<u8>>)>;

#[derive(Debug, Default)]
struct Inner {
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Of each batch since the last checkpoint: what its rows held before, in order.
    tail: Vec<Replaced>,
    checkpoints: u64,
}

impl MemoryState {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Goes back to the last checkpoint, as a power loss may.
    pub fn crash(&self) {
        self.crash_keeping(0);
    }

    /// Goes back to the last checkpoint plus the first `batches` after it: a power loss may keep
    /// any prefix of the unsynced tail. Keeps everything if there are no more than that.
    pub fn crash_keeping(&self, batches: usize) {
        let mut inner = self.inner.write();
        while batches < inner.tail.len() {
            let replaced = inner.tail.pop().unwrap_or_default();
            for (key, before) in replaced.into_iter().rev() {
                inner.put(key, before);
            }
        }
        // What survived a crash is on the disk.
        inner.tail.clear();
    }

    /// Batches that a crash would lose.
    pub fn unsynced_batches(&self) -> usize {
        self.inner.read().tail.len()
    }
}

impl Inner {
    /// Writes or removes one row and returns what it held.
    fn put(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) -> Option<Vec<u8>> {
        match value {
            Some(value) => self.rows.insert(key, value),
            None => self.rows.remove(&key),
        }
    }
}

impl StateStore for MemoryState {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        Ok(self.inner.read().rows.get(key).cloned())
    }

    fn scan(&self, range: Range<&[u8]>, visit: Visit<'_>) -> Result<(), StateError> {
        let mut lower = Bound::Included(range.start.to_vec());
        loop {
            let start = match &lower {
                Bound::Included(key) | Bound::Excluded(key) => key.as_slice(),
                Bound::Unbounded => &[],
            };
            if range.end <= start {
                return Ok(());
            }
            let page: Vec<(Vec<u8>, Vec<u8>)> = {
                let inner = self.inner.read();
                let bounds = (lower.as_ref().map(Vec::as_slice), Bound::Excluded(range.end));
                let rows = inner.rows.range::<[u8], _>(bounds).take(SCAN_ROWS_MAX);
                rows.map(|(key, value)| (key.clone(), value.clone())).collect()
            };
            for (key, value) in &page {
                if visit(key, value).is_break() {
                    return Ok(());
                }
            }
            match page.into_iter().next_back() {
                Some((last, _)) => lower = Bound::Excluded(last),
                None => return Ok(()),
            }
        }
    }

    fn commit(&self, batch: Batch) -> Result<(), StateError> {
        batch.check_lengths()?;
        let mut inner = self.inner.write();
        let mut replaced = Vec::with_capacity(batch.rows.len());
        for (key, value) in batch.rows {
            let before = inner.put(key.clone(), value);
            replaced.push((key, before));
        }
        inner.tail.push(replaced);
        Ok(())
    }

    fn commit_may_wait(&self) -> bool {
        false
    }

    fn checkpoint(&self) -> Result<(), StateError> {
        let mut inner = self.inner.write();
        inner.tail.clear();
        inner.checkpoints += 1;
        Ok(())
    }

    fn clear(&self, range: Range<&[u8]>) -> Result<u64, StateError> {
        clear_in_batches(self, range)
    }

    fn stats(&self) -> StateStats {
        StateStats { disk_bytes: 0, checkpoints: self.inner.read().checkpoints }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state_store::conformance;

    #[test]
    fn memory_state_conforms() {
        conformance::run(|| Box::new(MemoryState::new()));
    }

    #[test]
    fn a_crash_takes_back_exactly_the_batches_after_the_checkpoint() {
        let store = MemoryState::new();
        let put = |key: &str, value: &str| {
            store.commit(Batch { rows: vec![(key.into(), Some(value.into()))] }).unwrap();
        };
        put("a", "old");
        put("b", "old");
        store.checkpoint().unwrap();
        put("a", "new");
        store
            .commit(Batch {
                rows: vec![
                    ("a".into(), Some("newer".into())),
                    ("a".into(), None),
                    ("b".into(), None),
                    ("c".into(), Some("new".into())),
                ],
            })
            .unwrap();
        put("d", "new");
        assert_eq!(store.unsynced_batches(), 3);
        store.crash_keeping(1);
        assert_eq!(store.get(b"a").unwrap().as_deref(), Some(b"new".as_slice()));
        assert_eq!(store.get(b"b").unwrap().as_deref(), Some(b"old".as_slice()));
        assert_eq!(store.get(b"c").unwrap(), None);
        assert_eq!(store.get(b"d").unwrap(), None);

        put("a", "newest");
        store.crash();
        assert_eq!(store.get(b"a").unwrap().as_deref(), Some(b"new".as_slice()));
    }
}
