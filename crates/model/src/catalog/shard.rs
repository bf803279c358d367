use std::collections::BTreeSet;

use super::{CatalogChange, CatalogOutcome, CatalogRejection, Draft, NodeState, SHARDS_MAX};
use crate::{
    AccountNumber, ClassId, Epoch, Key, KeyRange, NodeId, ShardDescriptor, ShardId, id::rebase_key,
};

/// How an account's keys become shards.
#[derive(Clone, Copy)]
pub(super) struct Layout<'a> {
    /// Keys between the shards, rising.
    pub(super) cuts: &'a [Key],
    /// The voters of each shard, one more than cuts.
    pub(super) placements: &'a [Vec<NodeId>],
    /// No key of the account had a greater revision before.
    pub(super) founded_at: u64,
}

impl Draft<'_> {
    pub(super) fn lay_out(
        &mut self,
        cluster_epoch: u16,
        account: AccountNumber,
        replaces: &[(ShardId, Epoch)],
        layout: Layout<'_>,
    ) -> Result<CatalogOutcome, CatalogRejection> {
        let class = self.account(account)?.class;
        let whole = KeyRange::of_account(account);
        let current: Vec<&ShardDescriptor> = self.state.shards_of(account).collect();
        let named: BTreeSet<(ShardId, Epoch)> = replaces.iter().copied().collect();
        let present = current.iter().map(|shard| (shard.shard_id, shard.epoch)).collect();
        // A shard that holds other accounts as well is not this account's to replace.
        let are_own = current.iter().all(|shard| whole.contains_range(&shard.range));
        if named != present || !are_own {
            return Err(CatalogRejection::ShardsChanged);
        }
        let removed = current.iter().map(|shard| CatalogChange::ShardRemoved(shard.shard_id));
        let idle = current.iter().filter(|one| self.state.operators.contains_key(&one.shard_id));
        let idle = idle.map(|shard| CatalogChange::OperatorFinished(shard.shard_id));
        self.changes.extend(removed.chain(idle));
        let shards = self.found_shards(cluster_epoch, account, class, layout)?;
        Ok(CatalogOutcome::LaidOut { shards })
    }

    /// Founds the shards between the cuts of an account; their ids in key order.
    pub(super) fn found_shards(
        &mut self,
        cluster_epoch: u16,
        account: AccountNumber,
        class: ClassId,
        layout: Layout<'_>,
    ) -> Result<Vec<ShardId>, CatalogRejection> {
        let Layout { cuts, placements, founded_at } = layout;
        let ranges = cut_ranges(account, cuts)?;
        if ranges.len() != placements.len() {
            let reason = format!("{} shards, {} placements", ranges.len(), placements.len());
            return Err(CatalogRejection::InvalidLayout { reason });
        }
        let mut shards = Vec::with_capacity(ranges.len());
        for (range, voters) in ranges.into_iter().zip(placements) {
            self.check_voters(voters)?;
            let shard_id = ShardId::new(cluster_epoch, self.counters.next_shard);
            self.counters.next_shard += 1;
            let descriptor = ShardDescriptor {
                founded_at,
                ..ShardDescriptor::found(shard_id, range, class, voters)
            };
            self.changes.push(CatalogChange::Shard(descriptor));
            shards.push(shard_id);
        }
        Ok(shards)
    }

    fn check_voters(&self, voters: &[NodeId]) -> Result<(), CatalogRejection> {
        let distinct: BTreeSet<NodeId> = voters.iter().copied().collect();
        if voters.is_empty() || distinct.len() < voters.len() {
            let reason = "a shard needs voters, each on its own node".to_owned();
            return Err(CatalogRejection::InvalidLayout { reason });
        }
        let is_known = |node_id: &NodeId| {
            self.state.nodes.get(node_id).is_some_and(|node| node.state != NodeState::Removed)
        };
        match voters.iter().find(|node_id| !is_known(node_id)) {
            Some(node_id) => Err(CatalogRejection::NodeNotFound { node_id: *node_id }),
            None => Ok(()),
        }
    }

    pub(super) fn reserve_shard(&mut self, cluster_epoch: u16) -> CatalogOutcome {
        let shard_id = ShardId::new(cluster_epoch, self.counters.next_shard);
        self.counters.next_shard += 1;
        CatalogOutcome::ShardReserved { shard_id }
    }

    pub(super) fn update_shards(
        &mut self,
        descriptors: &[ShardDescriptor],
    ) -> Result<CatalogOutcome, CatalogRejection> {
        for descriptor in descriptors {
            match self.update_shard(descriptor) {
                Ok(_)
                | Err(
                    CatalogRejection::StaleDescriptor { .. }
                    | CatalogRejection::ShardRemoved { .. },
                ) => {}
                Err(rejection) => return Err(rejection),
            }
        }
        Ok(CatalogOutcome::ShardUpdated)
    }

    pub(super) fn update_shard(
        &mut self,
        descriptor: &ShardDescriptor,
    ) -> Result<CatalogOutcome, CatalogRejection> {
        let shard_id = descriptor.shard_id;
        let is_merged_now = |change: &CatalogChange| matches!(change, CatalogChange::ShardMerged(merged, _) if *merged == shard_id);
        if self.state.removed_shards.contains(&shard_id) || self.changes.iter().any(is_merged_now) {
            return Err(CatalogRejection::ShardRemoved { shard_id });
        }
        if self.counters.next_shard <= shard_id.counter() {
            return Err(CatalogRejection::ShardNotFound { shard_id });
        }
        let owner = self.state.shard_of(descriptor.range.start);
        if let Some(owner) = owner.filter(|owner| owner.supersedes(descriptor)) {
            // Heard of after its end only.
            self.changes.push(CatalogChange::ShardMerged(shard_id, owner.shard_id));
            return Ok(CatalogOutcome::ShardUpdated);
        }
        match self.state.shards.get(&shard_id) {
            Some(current) if current == descriptor => {}
            Some(current) if descriptor.epoch <= current.epoch => {
                return Err(CatalogRejection::StaleDescriptor {
                    current: Box::new(current.clone()),
                });
            }
            Some(_) | None => {
                self.changes.push(CatalogChange::Shard(descriptor.clone()));
                self.end_merged(descriptor);
            }
        }
        Ok(CatalogOutcome::ShardUpdated)
    }
}

impl Draft<'_> {
    /// Takes shards that have become part of one out, and what was under way for them.
    fn end_merged(&mut self, merged: &ShardDescriptor) {
        let known = self.state.shards_overlapping(merged.range);
        let known: Vec<ShardId> =
            known.filter(|shard| merged.supersedes(shard)).map(|shard| shard.shard_id).collect();
        let new = self.changes.iter().filter_map(|change| {
            let CatalogChange::Shard(shard) = change else { return None };
            merged.supersedes(shard).then_some(shard.shard_id)
        });
        let all: BTreeSet<ShardId> = known.into_iter().chain(new).collect();
        for shard_id in all {
            self.changes.push(CatalogChange::ShardMerged(shard_id, merged.shard_id));
            if self.state.operators.contains_key(&shard_id) {
                self.changes.push(CatalogChange::OperatorFinished(shard_id));
            }
        }
    }
}

/// The ranges between the cuts of an account.
fn cut_ranges(account: AccountNumber, cuts: &[Key]) -> Result<Vec<KeyRange>, CatalogRejection> {
    let invalid = |reason: &str| CatalogRejection::InvalidLayout { reason: reason.to_owned() };
    if SHARDS_MAX <= cuts.len() {
        return Err(invalid("too many shards"));
    }
    let whole = KeyRange::of_account(account);
    let cuts = cuts.iter().map(|cut| rebase_key(*cut, account));
    let starts: Vec<Key> = std::iter::once(whole.start).chain(cuts).collect();
    if !starts.is_sorted_by(|a, b| a < b) {
        return Err(invalid("cuts must rise, and not start at the account's first key"));
    }
    let ends = starts.iter().skip(1).copied().map(Some).chain([whole.end]);
    Ok(starts.iter().zip(ends).map(|(start, end)| KeyRange { start: *start, end }).collect())
}
