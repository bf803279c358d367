use super::overlay::Overlay;
use super::{Records, RowTotals};
use crate::{
    AnchorId, Command, Key, KeyRange, Outcome, Rejection, ShardId, ShardState, id::CELL_KEY_MASK,
};

impl<R: Records> Overlay<'_, R> {
    /// The refusal of a command that was routed by bounds that are no more.
    pub(super) fn stale_epoch(&self) -> Outcome {
        let descriptor = Box::new(self.shard().descriptor.clone());
        Outcome::Rejected(Rejection::StaleEpoch { descriptor })
    }

    /// Changes nothing: what replicas make of it is no part of the state.
    pub(super) fn prepare_split(&self, command: &Command, at: Key) -> Outcome {
        self.check_split(command, at).unwrap_or(Outcome::SplitPrepared)
    }

    /// Why a split cannot be, if so.
    fn check_split(&self, command: &Command, at: Key) -> Option<Outcome> {
        let shard = self.shard();
        let range = shard.descriptor.range;
        if !command.epoch.routes_to(shard.descriptor.epoch) {
            return Some(self.stale_epoch());
        }
        if shard.retired {
            return Some(Outcome::Rejected(Rejection::Retired));
        }
        if shard.merging.is_some() {
            return Some(Outcome::Rejected(Rejection::Merging));
        }
        if at <= range.start || !range.contains(at) {
            return Some(Outcome::Rejected(Rejection::InvalidSplit));
        }
        None
    }

    /// Gives the keys from `at` on to a new shard. The epoch is that for which the child's id was
    /// reserved: a split that is tried again after it took effect is refused by it.
    pub(super) fn split(
        &mut self,
        command: &Command,
        at: Key,
        child: ShardId,
    ) -> Result<Outcome, R::Error> {
        if let Some(refusal) = self.check_split(command, at) {
            return Ok(refusal);
        }
        // One batch gives birth to one child; an entry with two is none that a leader makes.
        let is_changed = self.changes.child.is_some() || self.changes.absorbed.is_some();
        if child == self.shard().descriptor.shard_id || is_changed {
            return Ok(Outcome::Rejected(Rejection::InvalidSplit));
        }
        let range = self.shard().descriptor.range;
        let right = self.totals(KeyRange { start: at, end: range.end })?;
        let (parent, descriptor) = self.shard().descriptor.split(at, child);
        let outcome = Outcome::Split {
            parent: Box::new(parent.clone()),
            child: Box::new(descriptor.clone()),
        };
        let shard = &mut self.changes.shard;
        let RowTotals { anchors, operations, bytes } = right;
        self.changes.child =
            Some(Box::new(ShardState { descriptor, anchors, operations, bytes, ..shard.clone() }));
        shard.descriptor = parent;
        shard.anchors = shard.anchors.saturating_sub(anchors);
        shard.operations = shard.operations.saturating_sub(operations);
        shard.bytes = shard.bytes.saturating_sub(bytes);
        Ok(outcome)
    }
}

/// Where to split a shard with these anchors, in id order: at the median, or at the border of its
/// home cell if that leaves at least a quarter on each side, so that a place stays in one shard.
/// `None` if there are fewer than two.
pub fn split_key(ids: &[AnchorId]) -> Option<Key> {
    let middle = ids.get(ids.len() / 2).filter(|_| 2 <= ids.len())?.key();
    let cell = |key: Key| Key(key.0 & CELL_KEY_MASK);
    let after = ids.partition_point(|id| cell(id.key()) <= cell(middle));
    let borders = [Some(cell(middle)), ids.get(after).map(|id| cell(id.key()))];
    let is_fair = |key: &Key| {
        let left = ids.partition_point(|id| id.key() < *key);
        ids.len() <= 4 * left && ids.len() <= 4 * (ids.len() - left)
    };
    Some(borders.into_iter().flatten().find(is_fair).unwrap_or(middle))
}
