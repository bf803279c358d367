use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Changes, OperationRecord, Records};
use crate::{
    Anchor, AnchorId, KeyRange, OperationId, RowTotals, ShardState, Timestamp, Version, row,
};

/// What the shard holds after the commands so far: their changes, and the records beneath.
pub(super) struct Overlay<'a, R> {
    records: &'a R,
    /// Dedup entries that the shard may hold.
    pub(super) operations_max: u64,
    pub(super) changes: Changes,
}

impl<'a, R: Records> Overlay<'a, R> {
    pub(super) fn new(records: &'a R, operations_max: u64) -> Self {
        let shard = records.shard().clone();
        let (anchors, operations) = (BTreeMap::new(), BTreeMap::new());
        let changes = Changes { anchors, operations, shard, child: None, absorbed: None };
        Self { records, operations_max, changes }
    }

    pub(super) fn shard(&self) -> &ShardState {
        &self.changes.shard
    }

    pub(super) fn advance_time(&mut self, time: Timestamp) {
        let shard = &mut self.changes.shard;
        // What a merge has stopped is the same at any later position, its clock included.
        if !shard.is_frozen() {
            shard.shard_time = shard.shard_time.max(time);
        }
    }

    pub(super) fn set_retired(&mut self) {
        self.changes.shard.retired = true;
    }

    /// Counts one more change, and names it.
    pub(super) fn next_version(&mut self) -> Version {
        let shard = &mut self.changes.shard;
        shard.revision = shard.revision.saturating_add(1);
        Version { incarnation: shard.descriptor.epoch.incarnation, revision: shard.revision }
    }

    /// A stored anchor, visible or not.
    pub(super) fn anchor(&self, id: AnchorId) -> Result<Option<Arc<Anchor>>, R::Error> {
        match self.changes.anchors.get(&id) {
            Some(changed) => Ok(changed.clone()),
            None => self.records.anchor(id),
        }
    }

    /// A stored anchor, unless it has expired.
    pub(super) fn visible(&self, stored: Option<Arc<Anchor>>) -> Option<Arc<Anchor>> {
        let shard_time = self.shard().shard_time;
        stored.filter(|anchor| anchor.is_visible(shard_time))
    }

    pub(super) fn operation(
        &self,
        id: AnchorId,
        operation: OperationId,
    ) -> Result<Option<OperationRecord>, R::Error> {
        match self.changes.operations.get(&(id, operation)) {
            Some(changed) => Ok(changed.clone()),
            // A shard that only ever took creates holds none: not worth a look at the store.
            None if self.records.shard().operations == 0 => Ok(None),
            None => self.records.operation(id, operation),
        }
    }

    /// What the rows of a range add up to, after the changes so far.
    pub(super) fn totals(&self, range: KeyRange) -> Result<RowTotals, R::Error> {
        let mut totals = self.records.totals(range)?;
        let is_inside = |id: &AnchorId| range.contains_id(*id);
        for (id, anchor) in self.changes.anchors.iter().filter(|(id, _)| is_inside(id)) {
            if let Some(old) = self.records.anchor(*id)? {
                totals.anchors = totals.anchors.saturating_sub(1);
                totals.bytes = totals.bytes.saturating_sub(row::anchor_row_bytes(&old));
            }
            if let Some(new) = anchor {
                totals.anchors = totals.anchors.saturating_add(1);
                totals.bytes = totals.bytes.saturating_add(row::anchor_row_bytes(new));
            }
        }
        let operations = self.changes.operations.iter();
        for ((id, operation), record) in operations.filter(|((id, _), _)| is_inside(id)) {
            if let Some(old) = self.records.operation(*id, *operation)? {
                totals.operations = totals.operations.saturating_sub(1);
                totals.bytes = totals.bytes.saturating_sub(row::operation_row_bytes(&old));
            }
            if let Some(new) = record {
                totals.operations = totals.operations.saturating_add(1);
                totals.bytes = totals.bytes.saturating_add(row::operation_row_bytes(new));
            }
        }
        Ok(totals)
    }

    /// Puts an anchor's row in the place of `old`, or removes it.
    pub(super) fn replace_anchor(
        &mut self,
        id: AnchorId,
        old: Option<&Anchor>,
        new: Option<Arc<Anchor>>,
    ) {
        let shard = &mut self.changes.shard;
        if let Some(old) = old {
            shard.anchors = shard.anchors.saturating_sub(1);
            shard.bytes = shard.bytes.saturating_sub(row::anchor_row_bytes(old));
        }
        if let Some(new) = &new {
            shard.anchors = shard.anchors.saturating_add(1);
            shard.bytes = shard.bytes.saturating_add(row::anchor_row_bytes(new));
        }
        self.changes.anchors.insert(id, new);
    }

    /// Keeps a dedup entry where there was none.
    pub(super) fn put_operation(
        &mut self,
        id: AnchorId,
        operation: OperationId,
        record: OperationRecord,
    ) {
        let shard = &mut self.changes.shard;
        shard.operations = shard.operations.saturating_add(1);
        shard.bytes = shard.bytes.saturating_add(row::operation_row_bytes(&record));
        self.changes.operations.insert((id, operation), Some(record));
    }

    /// Erases a dedup entry that is there.
    pub(super) fn remove_operation(
        &mut self,
        id: AnchorId,
        operation: OperationId,
        record: &OperationRecord,
    ) {
        let shard = &mut self.changes.shard;
        shard.operations = shard.operations.saturating_sub(1);
        shard.bytes = shard.bytes.saturating_sub(row::operation_row_bytes(record));
        self.changes.operations.insert((id, operation), None);
    }
}
