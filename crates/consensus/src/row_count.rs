//! Counts the rows behind a key while writes go on, so that a split finds the sum ready.
//!
//! Rows before the cursor are counted and kept right with every commit; rows from the cursor on are
//! still to be scanned, as they are by then. The sum is that of the rows at the moment it is asked
//! for, however much of it was counted before.

use std::ops::ControlFlow;

use anchorhold_model::{KeyRange, RowTotals, Timestamp, row};
use anchorhold_storage::{StateError, StateStore};

use crate::keys;
use crate::machine::damaged;

/// Rows counted while apply waits, at most.
const CHUNK_ROWS_MAX: usize = 2_048;

/// A count in the making.
pub(crate) struct RowCount {
    pub(crate) range: KeyRange,
    /// Shard time when it began.
    pub(crate) since: Timestamp,
    start: Vec<u8>,
    cursor: Vec<u8>,
    end: Vec<u8>,
    totals: RowTotals,
}

impl RowCount {
    pub(crate) fn new(range: KeyRange, since: Timestamp) -> Self {
        let (start, end) = keys::records(range);
        let cursor = start.clone();
        Self { range, since, start, cursor, end, totals: RowTotals::default() }
    }

    /// Called before a commit: takes in what it changes of the rows that are counted.
    pub(crate) fn follow(
        &mut self,
        state: &dyn StateStore,
        rows: &[(Vec<u8>, Option<Vec<u8>>)],
    ) -> Result<(), StateError> {
        for (key, value) in rows {
            if *key < self.start || self.cursor <= *key {
                continue;
            }
            if let Some(old) = state.get(key)? {
                self.add(key, &old, false)?;
            }
            if let Some(new) = value {
                self.add(key, new, true)?;
            }
        }
        Ok(())
    }

    /// Counts some more rows. True when all are.
    pub(crate) fn step(&mut self, state: &dyn StateStore) -> Result<bool, StateError> {
        if self.end <= self.cursor {
            return Ok(true);
        }
        let (mut rows, mut last, mut failed) = (0, None, None);
        let (cursor, end) = (self.cursor.clone(), self.end.clone());
        state.scan(&cursor[..]..&end[..], &mut |key, value| {
            if let Err(error) = self.add(key, value, true) {
                failed = Some(error);
                return ControlFlow::Break(());
            }
            rows += 1;
            if rows < CHUNK_ROWS_MAX {
                return ControlFlow::Continue(());
            }
            last = Some(key.to_vec());
            ControlFlow::Break(())
        })?;
        failed.map_or(Ok(()), Err)?;
        self.cursor = match last {
            Some(mut last) => {
                last.push(0);
                last
            }
            None => end,
        };
        Ok(self.end <= self.cursor)
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.end <= self.cursor
    }

    /// The sum, the rows that are not counted yet included.
    pub(crate) fn finish(&mut self, state: &dyn StateStore) -> Result<RowTotals, StateError> {
        while !self.step(state)? {}
        Ok(self.totals)
    }

    fn add(&mut self, key: &[u8], value: &[u8], comes: bool) -> Result<(), StateError> {
        let bytes = (key.len() - 1 + value.len()) as u64;
        let kind = match row::RowKey::parse(&key[1..]).map_err(damaged)? {
            row::RowKey::Anchor(_) => &mut self.totals.anchors,
            row::RowKey::Operation(..) => &mut self.totals.operations,
        };
        if comes {
            *kind += 1;
            self.totals.bytes += bytes;
        } else {
            *kind = kind.saturating_sub(1);
            self.totals.bytes = self.totals.bytes.saturating_sub(bytes);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use anchorhold_model::{Key, OperationId, RequestId};
    use anchorhold_storage::{Batch, MemoryState};

    use super::*;

    fn key(number: u128, operation: bool) -> Vec<u8> {
        // A valid id: version 8, variant 2.
        let id = (1_u128 << 96) | (8 << 76) | (2 << 62) | (1 << 58) | number;
        let id = anchorhold_model::AnchorId::from_bytes(id.to_be_bytes()).unwrap();
        let operation_id = OperationId { request_id: RequestId(number), item: 0 };
        keys::record(&if operation {
            row::operation_key(id, operation_id).to_vec()
        } else {
            row::anchor_key(id).to_vec()
        })
    }

    fn plain_count(state: &MemoryState, range: KeyRange) -> RowTotals {
        RowCount::new(range, Timestamp(0)).finish(state).unwrap()
    }

    #[test]
    fn a_count_beside_writes_is_that_of_the_rows_at_its_end() {
        let state = MemoryState::new();
        let commit = |count: Option<&mut RowCount>, rows: Vec<(Vec<u8>, Option<Vec<u8>>)>| {
            if let Some(count) = count {
                count.follow(&state, &rows).unwrap();
            }
            state.commit(Batch { rows }).unwrap();
        };
        let row = |number: u128| (key(number, number.is_multiple_of(3)), Some(vec![7; 5]));
        commit(None, (0..6_000).map(row).collect());
        let whole = KeyRange { start: Key(0), end: None };
        let mut count = RowCount::new(whole, Timestamp(0));
        for round in 0..6_u128 {
            assert_eq!(count.step(&state).unwrap(), round >= 2, "{round}");
            // Before and behind the cursor: changed, removed and new rows.
            commit(
                Some(&mut count),
                vec![
                    (key(round + 1, (round + 1) % 3 == 0), None),
                    (key(50 + round, (50 + round) % 3 == 0), Some(vec![1; 40])),
                    (key(5_900 + round, (5_900 + round) % 3 == 0), None),
                    (key(7_000 + round, false), Some(vec![1; 9])),
                ],
            );
        }
        let totals = count.finish(&state).unwrap();
        assert_eq!(totals, plain_count(&state, whole));
        assert_eq!(totals.anchors + totals.operations, 6_000 - 6 - 6 + 6);
    }
}
