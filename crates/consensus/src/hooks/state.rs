//! A state that is not what was written.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anchorhold_model::ShardId;
use anchorhold_model::row::RowKey;
use anchorhold_storage::{Batch, StateError, StateLayer, StateStore};
use parking_lot::Mutex;

use super::{Hooks, Mutant};
use crate::keys::{self, Place};

/// Of so many batches with records one is skipped.
const SKIPPED_EVERY: u64 = 40;

/// Stands in front of a state store, for failpoints and for mutants.
pub struct HookedState {
    inner: Arc<dyn StateStore>,
    hooks: Hooks,
    batches: AtomicU64,
    /// Shards whose snapshot is being loaded.
    installing: Mutex<BTreeSet<ShardId>>,
}

/// What a batch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// Records and how far they have come: an entry is applied.
    Apply,
    /// A part of a snapshot, its mark included.
    Load,
    /// The last part of a snapshot.
    LoadDone,
    /// Anything else.
    Other,
}

impl HookedState {
    /// Puts hooks in front of `inner`, as a node that starts finds it.
    ///
    /// # Errors
    /// If the store cannot be used.
    pub fn open(inner: Arc<dyn StateStore>, hooks: Hooks) -> Result<Self, StateError> {
        if hooks.has(Mutant::OperationsForgotten) {
            forget_operations(&*inner)?;
        }
        Ok(Self { inner, hooks, batches: AtomicU64::new(0), installing: Mutex::default() })
    }

    fn purpose(&self, batch: &Batch) -> Purpose {
        let mut installing = self.installing.lock();
        let mut purpose = Purpose::Other;
        for (key, value) in &batch.rows {
            match keys::place(key) {
                Some(Place::Installing(shard)) if value.is_some() => {
                    installing.insert(shard);
                    return Purpose::Load;
                }
                Some(Place::Installing(shard)) => {
                    installing.remove(&shard);
                    return Purpose::LoadDone;
                }
                Some(Place::Header(_)) => purpose = Purpose::Apply,
                Some(Place::Record(_) | Place::Catalog | Place::Birth(_) | Place::Remains(_))
                | None => {}
            }
        }
        let adds = batch.rows.iter().all(|(_, value)| value.is_some());
        let loads = purpose == Purpose::Other && adds && !installing.is_empty();
        if loads { Purpose::Load } else { purpose }
    }

    fn commit_apply(&self, mut batch: Batch) -> Result<(), StateError> {
        self.hooks.reach("apply.commit");
        let has_records = batch.rows.iter().any(|(key, _)| is_record(key));
        if has_records && self.hooks.has(Mutant::ApplySkipped) {
            let number = self.batches.fetch_add(1, Ordering::Relaxed);
            if number % SKIPPED_EVERY == SKIPPED_EVERY - 1 {
                batch.rows.retain(|(key, _)| !is_record(key));
            }
        }
        if has_records && self.hooks.has(Mutant::StateTrusted) {
            let (records, header) = batch.rows.into_iter().partition(|(key, _)| is_record(key));
            self.inner.commit(Batch { rows: header })?;
            self.inner.commit(Batch { rows: records })?;
        } else {
            self.inner.commit(batch)?;
        }
        // In the state, and not yet shown to anybody.
        self.hooks.reach("apply.committed");
        Ok(())
    }
}

fn is_record(key: &[u8]) -> bool {
    matches!(keys::place(key), Some(Place::Record(_)))
}

/// Removes the dedup entries of all shards.
fn forget_operations(state: &dyn StateStore) -> Result<(), StateError> {
    let mut batch = Batch::default();
    state.scan(&[]..&[u8::MAX], &mut |key, _| {
        if let Some(Place::Record(key_of_record)) = keys::place(key)
            && matches!(RowKey::parse(key_of_record), Ok(RowKey::Operation(..)))
        {
            batch.rows.push((key.to_vec(), None));
        }
        ControlFlow::Continue(())
    })?;
    state.commit(batch)
}

impl StateLayer for HookedState {
    fn inner(&self) -> &dyn StateStore {
        &*self.inner
    }

    fn commit_through(&self, mut batch: Batch) -> Result<(), StateError> {
        let purpose = self.purpose(&batch);
        match purpose {
            Purpose::Apply => return self.commit_apply(batch),
            Purpose::Other => return self.inner.commit(batch),
            Purpose::Load | Purpose::LoadDone => {}
        }
        if self.hooks.has(Mutant::SnapshotHalf) {
            let mut number = 0_u32;
            batch.rows.retain(|(key, _)| {
                number += u32::from(is_record(key));
                !is_record(key) || number % 2 == 1
            });
        }
        if purpose == Purpose::LoadDone {
            self.hooks.reach("install.finish");
        }
        self.inner.commit(batch)?;
        // Within an install: the mark is set, and not all rows are there.
        if purpose == Purpose::Load {
            self.hooks.reach("install.load");
        }
        Ok(())
    }

    fn checkpoint_through(&self) -> Result<(), StateError> {
        self.hooks.reach("checkpoint.begin");
        self.inner.checkpoint()?;
        self.hooks.reach("checkpoint.end");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use anchorhold_storage::MemoryState;

    use super::*;

    const SHARD: ShardId = ShardId(7);

    fn open(mutant: Option<Mutant>) -> (HookedState, Hooks) {
        let hooks = Hooks::default();
        hooks.set_mutants(mutant.as_slice());
        let state = HookedState::open(Arc::new(MemoryState::new()), hooks.clone()).unwrap();
        (state, hooks)
    }

    fn record(number: u8) -> (Vec<u8>, Option<Vec<u8>>) {
        (keys::record(&[number]), Some(vec![number]))
    }

    fn records(state: &HookedState) -> usize {
        let mut count = 0;
        let visit = &mut |key: &[u8], _: &[u8]| {
            count += usize::from(is_record(key));
            ControlFlow::Continue(())
        };
        state.scan(&[]..&[u8::MAX], visit).unwrap();
        count
    }

    fn load(state: &HookedState) {
        let mark = keys::installing(SHARD);
        state.commit(Batch { rows: vec![(mark.clone(), Some(vec![1]))] }).unwrap();
        state.commit(Batch { rows: (0..8).map(record).collect() }).unwrap();
        let mut rows: Vec<_> = (8..12).map(record).collect();
        rows.extend([(keys::header(SHARD), Some(vec![2])), (mark, None)]);
        state.commit(Batch { rows }).unwrap();
    }

    #[test]
    fn a_snapshot_is_loaded_whole_unless_a_mutant_says_otherwise() {
        let (state, hooks) = open(None);
        load(&state);
        assert_eq!(records(&state), 12);
        assert_eq!((hooks.hits()["install.load"], hooks.hits()["install.finish"]), (2, 1));
        let (state, _) = open(Some(Mutant::SnapshotHalf));
        load(&state);
        assert_eq!(records(&state), 6);
        assert!(state.get(&keys::installing(SHARD)).unwrap().is_none());
    }

    #[test]
    fn an_entry_is_applied_whole_unless_a_mutant_says_otherwise() {
        let apply = |state: &HookedState| {
            for number in 0..80 {
                let header = (keys::header(SHARD), Some(vec![number]));
                state.commit(Batch { rows: vec![record(number), header] }).unwrap();
            }
            assert_eq!(state.get(&keys::header(SHARD)).unwrap(), Some(vec![79]));
        };
        let (state, hooks) = open(None);
        apply(&state);
        assert_eq!((records(&state), hooks.hits()["apply.committed"]), (80, 80));
        let (state, _) = open(Some(Mutant::ApplySkipped));
        apply(&state);
        assert_eq!(records(&state), 78);
    }

    #[test]
    fn a_power_cut_tears_batches_only_of_a_state_that_is_trusted() {
        let torn = |mutant| {
            let memory = Arc::new(MemoryState::new());
            let hooks = Hooks::default();
            hooks.set_mutants(&[mutant]);
            let state = HookedState::open(memory.clone(), hooks).unwrap();
            let header = (keys::header(SHARD), Some(vec![1]));
            state.commit(Batch { rows: vec![record(1), header] }).unwrap();
            memory.crash_keeping(1);
            (state.get(&keys::header(SHARD)).unwrap().is_some(), records(&state))
        };
        assert_eq!(torn(Mutant::ReadWithoutQuorum), (true, 1));
        assert_eq!(torn(Mutant::StateTrusted), (true, 0));
    }
}
