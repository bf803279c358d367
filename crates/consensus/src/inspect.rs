//! Reads what a node left on its disk, for people who look at it without the node.
//!
//! Not here: opening the stores (`server::inspect`), words for what is wrong.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use anchorhold_model::{KeyRange, ShardId, Timestamp, row};
use anchorhold_storage::snapshot::SnapshotHeader;
use anchorhold_storage::{GroupId, LogEntry, StateError, StateStore};

use crate::host::CATALOG_GROUP;
use crate::keys::{self, Place};
use crate::machine::{Header, damaged};
use crate::snapshot::SnapshotContent;
use crate::wire;

/// What a node's state holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateSummary {
    /// The replicas that have a header row, by shard.
    pub replicas: Vec<ReplicaSummary>,
    /// Rows of anchors.
    pub anchors: u64,
    /// Rows that remember operations.
    pub operations: u64,
    /// Rows of the catalog.
    pub catalog_rows: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}

/// One replica in a node's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaSummary {
    /// The shard.
    pub shard: ShardId,
    /// Term and index of the last entry whose effect is in the state.
    pub applied: Option<(u64, u64)>,
    /// Anchors stored in its range.
    pub anchors: u64,
    /// Whether a snapshot file was being loaded: a start does that again.
    pub is_installing: bool,
}

/// Reads every row of a state and checks that it means something, and that the replicas hold as
/// many anchors as their headers say.
///
/// # Errors
/// [`StateError::Damaged`] names the first thing that does not fit.
pub fn read_state(state: &dyn StateStore) -> Result<StateSummary, StateError> {
    let mut reader = Reader::default();
    let mut failed = None;
    state.scan(&[][..]..&[u8::MAX; 64][..], &mut |key, value| match reader.row(key, value) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    })?;
    failed.map_or(Ok(()), Err)?;
    reader.finish()
}

#[derive(Default)]
struct Reader {
    summary: StateSummary,
    headers: BTreeMap<ShardId, Header>,
    installing: Vec<ShardId>,
    /// How many anchors each shard's range holds, by its start.
    ranges: BTreeMap<u128, (KeyRange, ShardId, u64)>,
}

impl Reader {
    fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateError> {
        self.summary.bytes += (key.len() + value.len()) as u64;
        match keys::place(key) {
            // Headers come before records: their keys are smaller.
            Some(Place::Header(shard)) => {
                let header: Header = wire::decode("a header row", value).map_err(damaged)?;
                if let Some(state) = &header.shard {
                    let range = state.descriptor.range;
                    self.ranges.insert(range.start.0, (range, shard, 0));
                }
                self.headers.insert(shard, header);
            }
            Some(Place::Installing(shard)) => self.installing.push(shard),
            // A child's header says all that there is to show; what a merge has left shows nothing.
            Some(Place::Birth(_) | Place::Remains(_)) => {}
            Some(Place::Catalog) => self.summary.catalog_rows += 1,
            Some(Place::Record(key)) => match row::RowKey::parse(key).map_err(damaged)? {
                row::RowKey::Anchor(id) => {
                    row::decode_anchor(value).map_err(damaged)?;
                    self.summary.anchors += 1;
                    let owner = self.ranges.range_mut(..=id.key().0).next_back();
                    if let Some((_, (range, _, anchors))) = owner
                        && range.contains(id.key())
                    {
                        *anchors += 1;
                    }
                }
                row::RowKey::Operation(..) => {
                    row::decode_operation(value).map_err(damaged)?;
                    self.summary.operations += 1;
                }
            },
            None => return Err(damaged("a row lies where none belongs")),
        }
        Ok(())
    }

    fn finish(mut self) -> Result<StateSummary, StateError> {
        let counted: BTreeMap<ShardId, u64> =
            self.ranges.values().map(|(_, shard, anchors)| (*shard, *anchors)).collect();
        for (shard, header) in &self.headers {
            let is_installing = self.installing.contains(shard);
            let anchors = counted.get(shard).copied().unwrap_or(0);
            let promised = header.shard.as_ref().map_or(0, |state| state.anchors);
            if promised != anchors && !is_installing {
                let reason =
                    format!("{shard} says that it holds {promised} anchors, {anchors} lie there");
                return Err(damaged(reason));
            }
            self.summary.replicas.push(ReplicaSummary {
                shard: *shard,
                applied: header.applied.map(|id| (id.0, id.1)),
                anchors,
                is_installing,
            });
        }
        Ok(self.summary)
    }
}

/// What an entry of the log says, without what it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntrySummary {
    /// `blank`, `membership`, `writes` or `catalog`.
    pub kind: &'static str,
    /// The leader's clock when it was proposed.
    pub time: Option<Timestamp>,
    /// Commands in it.
    pub commands: usize,
}

/// Reads one entry.
///
/// # Errors
/// Why it means nothing.
pub fn read_entry(group: GroupId, entry: &LogEntry) -> Result<EntrySummary, String> {
    use crate::types::EntryPayload;
    let read = wire::entry_from_content(entry.position, entry.content.clone());
    let read = read.map_err(|error| error.to_string())?;
    Ok(match read.payload {
        EntryPayload::Blank => EntrySummary { kind: "blank", time: None, commands: 0 },
        EntryPayload::Membership(_) => EntrySummary { kind: "membership", time: None, commands: 0 },
        EntryPayload::Normal(payload) => {
            let content = payload.0.get(1..).unwrap_or_default();
            if group == CATALOG_GROUP {
                let entry =
                    row::decode_catalog_entry(content).map_err(|error| error.to_string())?;
                let (time, commands) = (Some(entry.stamp.time), entry.commands.len());
                EntrySummary { kind: "catalog", time, commands }
            } else {
                let entry = row::decode_entry(content).map_err(|error| error.to_string())?;
                let (time, commands) = (Some(entry.stamp.time), entry.commands.len());
                EntrySummary { kind: "writes", time, commands }
            }
        }
    })
}

/// Anchors that a snapshot says it holds; `None` for the catalog's.
///
/// # Errors
/// Why its header means nothing.
pub fn snapshot_anchors(header: &SnapshotHeader) -> Result<Option<u64>, String> {
    let content: SnapshotContent =
        wire::decode("a snapshot's header", &header.meta).map_err(|error| error.to_string())?;
    Ok(content.shard.map(|shard| shard.anchors))
}

#[cfg(test)]
mod tests {
    use anchorhold_storage::{Batch, MemoryState};

    use super::*;

    fn state(rows: Vec<(Vec<u8>, Vec<u8>)>) -> MemoryState {
        let state = MemoryState::new();
        let rows = rows.into_iter().map(|(key, value)| (key, Some(value))).collect();
        state.commit(Batch { rows }).unwrap();
        state
    }

    fn header(anchors: u64) -> Vec<u8> {
        use anchorhold_model::catalog::DEFAULT_CLASS;
        use anchorhold_model::{ShardDescriptor, ShardState};
        let descriptor = ShardDescriptor::found(ShardId(4), KeyRange::FULL, DEFAULT_CLASS, &[]);
        let shard = ShardState { anchors, ..ShardState::new(descriptor) };
        wire::encode(&Header { shard: Some(shard), ..Header::default() }).to_vec()
    }

    #[test]
    fn an_empty_state_and_one_with_a_replica_are_read() {
        assert_eq!(read_state(&state(vec![])).unwrap(), StateSummary::default());
        let key = keys::header(ShardId(4));
        let found = read_state(&state(vec![(key, header(0))])).unwrap();
        assert_eq!(found.replicas.len(), 1);
        assert_eq!((found.replicas[0].shard, found.replicas[0].applied), (ShardId(4), None));
    }

    #[test]
    fn rows_that_mean_nothing_and_anchors_that_are_missing_are_found() {
        let key = keys::header(ShardId(4));
        let cases = [
            (vec![(key.clone(), header(1))], "1 anchors, 0 lie there"),
            (vec![(key, vec![250, 250])], "header row"),
            (vec![(vec![9, 9], vec![])], "where none belongs"),
        ];
        for (rows, words) in cases {
            let error = read_state(&state(rows)).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
