use std::collections::{BTreeMap, BTreeSet};

use super::{
    AccountRecord, CatalogChange, CatalogOperation, ClassRecord, ClusterRecord, Counters,
    NodeRecord, OperatorRecord, RegionRecord, SchedulerRecord, ZoneRecord,
};
use crate::row::{DecodeError, Row};
use crate::{AccountNumber, ClassId, Key, KeyRange, NodeId, RequestId, ShardDescriptor, ShardId};

/// Everything that the catalog knows. Changed by [`CatalogState::absorb`] alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CatalogState {
    /// The cluster; `None` before it is bootstrapped.
    pub cluster: Option<ClusterRecord>,
    /// What is counted.
    pub counters: Counters,
    /// Regions, by name.
    pub regions: BTreeMap<String, RegionRecord>,
    /// Zones, by region and name.
    pub zones: BTreeMap<(String, String), ZoneRecord>,
    /// Nodes, removed ones included.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// Placement classes.
    pub classes: BTreeMap<ClassId, ClassRecord>,
    /// Accounts.
    pub accounts: BTreeMap<AccountNumber, AccountRecord>,
    /// Shards.
    pub shards: BTreeMap<ShardId, ShardDescriptor>,
    /// Shards that are no more: their replicas are to be removed.
    pub removed_shards: BTreeSet<ShardId>,
    /// Those of them that became part of another shard, and of which.
    pub merged_shards: BTreeMap<ShardId, ShardId>,
    /// Requests whose outcome is kept.
    pub operations: BTreeMap<RequestId, CatalogOperation>,
    /// Operators under way.
    pub operators: BTreeMap<ShardId, OperatorRecord>,
    /// What is planned by itself.
    pub scheduler: SchedulerRecord,
    /// Shards that own keys, by first key.
    shards_by_start: BTreeSet<(Key, ShardId)>,
    accounts_by_name: BTreeMap<String, AccountNumber>,
    accounts_by_key_id: BTreeMap<String, AccountNumber>,
    nodes_by_instance: BTreeMap<u128, NodeId>,
}

impl CatalogState {
    /// The state that stored rows make, in whatever order they come.
    ///
    /// # Errors
    /// [`DecodeError`] if a row is not what was written.
    pub fn from_rows(
        rows: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>,
    ) -> Result<Self, DecodeError> {
        let mut state = Self::default();
        for (key, value) in rows {
            state.absorb(&CatalogChange::from_row(&key, &value)?);
        }
        Ok(state)
    }

    /// All rows that make this state, in key order.
    pub fn rows(&self) -> impl Iterator<Item = Row> {
        use CatalogChange as Change;
        let shards = self.shards.values().cloned().map(Change::Shard);
        let removed = self.removed_shards.iter().map(|id| match self.merged_shards.get(id) {
            Some(target) => Change::ShardMerged(*id, *target),
            None => Change::ShardRemoved(*id),
        });
        let mut shards: Vec<Row> = shards.chain(removed).map(|change| change.row()).collect();
        shards.sort();
        let head = self.cluster.iter().cloned().map(Change::Cluster);
        let head = head.chain([Change::Counters(self.counters)]);
        let head = head.chain(self.regions.values().cloned().map(Change::Region));
        let head = head.chain(self.zones.values().cloned().map(Change::Zone));
        let head = head.chain(self.nodes.values().cloned().map(Change::Node));
        let head = head.chain(self.classes.values().cloned().map(Change::Class));
        let head = head.chain(self.accounts.values().cloned().map(Change::Account));
        let tail = self.operations.values().cloned().map(Change::Operation);
        let tail = tail.chain(self.operators.values().cloned().map(Change::Operator));
        let scheduler = Some(self.scheduler).filter(|one| *one != SchedulerRecord::default());
        let tail = tail.chain(scheduler.map(Change::Scheduler));
        head.map(|change| change.row()).chain(shards).chain(tail.map(|change| change.row()))
    }

    /// Makes one change.
    pub fn absorb(&mut self, change: &CatalogChange) {
        match change {
            CatalogChange::Cluster(cluster) => self.cluster = Some(cluster.clone()),
            CatalogChange::Counters(counters) => self.counters = *counters,
            CatalogChange::Region(region) => {
                self.regions.insert(region.name.clone(), region.clone());
            }
            CatalogChange::Zone(zone) => {
                self.zones.insert((zone.region.clone(), zone.name.clone()), zone.clone());
            }
            CatalogChange::Node(node) => {
                self.nodes_by_instance.insert(node.instance, node.node_id);
                self.nodes.insert(node.node_id, node.clone());
            }
            CatalogChange::Class(class) => {
                self.classes.insert(class.class_id, class.clone());
            }
            CatalogChange::Account(account) => self.absorb_account(account),
            CatalogChange::Shard(shard) => {
                self.forget_shard(shard.shard_id);
                if !shard.range.is_empty() {
                    self.shards_by_start.insert((shard.range.start, shard.shard_id));
                }
                self.shards.insert(shard.shard_id, shard.clone());
            }
            CatalogChange::ShardRemoved(shard_id) => {
                self.forget_shard(*shard_id);
                self.removed_shards.insert(*shard_id);
            }
            CatalogChange::ShardMerged(shard_id, target) => {
                self.forget_shard(*shard_id);
                self.removed_shards.insert(*shard_id);
                self.merged_shards.insert(*shard_id, *target);
            }
            CatalogChange::Operation(operation) => {
                self.operations.insert(operation.request_id, operation.clone());
            }
            CatalogChange::OperationForgotten(request_id) => {
                self.operations.remove(request_id);
            }
            CatalogChange::Operator(record) => {
                self.operators.insert(record.operator.shard_id, record.clone());
            }
            CatalogChange::OperatorFinished(shard_id) => {
                self.operators.remove(shard_id);
            }
            CatalogChange::Scheduler(scheduler) => self.scheduler = *scheduler,
        }
    }

    fn absorb_account(&mut self, account: &AccountRecord) {
        if let Some(old) = self.accounts.insert(account.account, account.clone()) {
            self.accounts_by_name.remove(&old.name);
            for key in &old.keys {
                self.accounts_by_key_id.remove(&key.key_id);
            }
        }
        self.accounts_by_name.insert(account.name.clone(), account.account);
        for key in &account.keys {
            self.accounts_by_key_id.insert(key.key_id.clone(), account.account);
        }
    }

    fn forget_shard(&mut self, shard_id: ShardId) {
        if let Some(old) = self.shards.remove(&shard_id) {
            self.shards_by_start.remove(&(old.range.start, shard_id));
        }
    }

    /// The shards that own some key of a range, in key order.
    pub fn shards_overlapping(&self, range: KeyRange) -> impl Iterator<Item = &ShardDescriptor> {
        // Shards do not overlap each other, but for the moment in which a split has been reported
        // by one side only: of those that start before the range, the last one counts.
        let before = (range.start, ShardId(u64::MAX));
        let first = self.shards_by_start.range(..=before).next_back().copied();
        let from = first.unwrap_or((range.start, ShardId(0)));
        self.shards_by_start
            .range(from..)
            .take_while(move |(start, _)| range.end.is_none_or(|end| *start < end))
            .filter_map(|(_, shard_id)| self.shards.get(shard_id))
            .filter(move |shard| shard.range.overlaps(&range))
    }

    /// The shard that owns a key.
    pub fn shard_of(&self, key: Key) -> Option<&ShardDescriptor> {
        let (_, shard_id) = self.shards_by_start.range(..=(key, ShardId(u64::MAX))).next_back()?;
        self.shards.get(shard_id).filter(|shard| shard.range.contains(key))
    }

    /// Whether a shard became part of another one, or of one that became part of it, and so on.
    pub fn is_part_of(&self, shard_id: ShardId, whole: ShardId) -> bool {
        let mut part = shard_id;
        while let Some(target) = self.merged_shards.get(&part) {
            if *target == whole {
                return true;
            }
            part = *target;
        }
        false
    }

    /// The shards of an account, in key order.
    pub fn shards_of(&self, account: AccountNumber) -> impl Iterator<Item = &ShardDescriptor> {
        self.shards_overlapping(KeyRange::of_account(account))
    }

    /// The account with a name.
    pub fn account_by_name(&self, name: &str) -> Option<&AccountRecord> {
        self.accounts_by_name.get(name).and_then(|account| self.accounts.get(account))
    }

    /// The account that has a valid key with this public part.
    pub fn account_by_key_id(&self, key_id: &str) -> Option<&AccountRecord> {
        self.accounts_by_key_id.get(key_id).and_then(|account| self.accounts.get(account))
    }

    /// The class with a name.
    pub fn class_by_name(&self, name: &str) -> Option<&ClassRecord> {
        self.classes.values().find(|class| class.name == name)
    }

    /// The node with a data directory.
    pub fn node_by_instance(&self, instance: u128) -> Option<&NodeRecord> {
        self.nodes_by_instance.get(&instance).and_then(|node_id| self.nodes.get(node_id))
    }
}
