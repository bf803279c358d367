//! Which shard owns a key, and who serves it: this node's view, corrected by what shards answer.
//!
//! Input is the catalog's shard index as applied here, and the descriptors and leaders that shards
//! name in their refusals. Output are descriptors. Invariant: the routes of a table never overlap.
//! Nothing here is trusted: a wrong route costs a refusal, never a wrong answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anchorhold_model::cover::RangeBounds;
use anchorhold_model::{AccountNumber, Key, KeyRange, NodeId, ShardDescriptor, ShardId};
use arc_swap::ArcSwap;
use parking_lot::Mutex;

/// All shards as known at one moment.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    by_start: BTreeMap<Key, Arc<ShardDescriptor>>,
    /// With all that they claim.
    by_id: BTreeMap<ShardId, Arc<ShardDescriptor>>,
    /// Shards of which only a part is here.
    clipped: BTreeSet<ShardId>,
}

/// The table, and who leads.
#[derive(Default)]
pub struct Routes {
    table: ArcSwap<RouteTable>,
    /// Descriptors that shards have named and the catalog does not know yet.
    learned: Mutex<Learned>,
    leaders: Mutex<BTreeMap<ShardId, NodeId>>,
    /// How near the anchors of a range can be: made once per range, asked with each query.
    bounds: Mutex<BTreeMap<(AccountNumber, KeyRange), Arc<RangeBounds>>>,
}

/// What shards have said.
#[derive(Default)]
struct Learned {
    shards: BTreeMap<ShardId, Arc<ShardDescriptor>>,
    /// Shards that are no more, whatever their replicas still say.
    removed: BTreeSet<ShardId>,
}

/// Bounds that are kept; beyond it all are forgotten and made anew.
const BOUNDS_MAX: usize = 16_384;

impl RouteTable {
    /// A table of shards. Of two that overlap the one with the higher epoch owns what both claim,
    /// of equal ones the one with the higher id: a child is younger than its parent. What is left
    /// of the other stays as its route: whoever is asked by it knows what the shard is now.
    pub fn new(shards: impl IntoIterator<Item = Arc<ShardDescriptor>>) -> Self {
        let mut shards: Vec<_> =
            shards.into_iter().filter(|shard| !shard.range.is_empty()).collect();
        shards.sort_by_key(|shard| std::cmp::Reverse((shard.epoch, shard.shard_id)));
        let mut table = Self::default();
        for shard in shards {
            if table.overlapping(&shard.range).next().is_none() {
                table.by_start.insert(shard.range.start, Arc::clone(&shard));
                table.by_id.insert(shard.shard_id, shard);
                continue;
            }
            for range in table.gaps(&shard.range) {
                let part = Arc::new(ShardDescriptor { range, ..ShardDescriptor::clone(&shard) });
                table.by_start.insert(range.start, part);
                table.clipped.insert(shard.shard_id);
                table.by_id.insert(shard.shard_id, Arc::clone(&shard));
            }
        }
        table
    }

    /// The parts of a range that no shard owns.
    pub fn gaps(&self, range: &KeyRange) -> Vec<KeyRange> {
        let mut gaps = Vec::new();
        let mut start = Some(range.start);
        for shard in self.overlapping(range) {
            if let Some(start) = start.filter(|start| *start < shard.range.start) {
                gaps.push(KeyRange { start, end: Some(shard.range.start) });
            }
            start = shard.range.end;
        }
        let rest = start.map(|start| KeyRange { start, end: range.end });
        gaps.extend(rest.filter(|rest| !rest.is_empty()));
        gaps
    }

    /// Whether only a part of what a shard claims is its route.
    pub fn is_clipped(&self, shard: ShardId) -> bool {
        self.clipped.contains(&shard)
    }

    /// The shard that owns a key.
    pub fn of_key(&self, key: Key) -> Option<&Arc<ShardDescriptor>> {
        let (_, shard) = self.by_start.range(..=key).next_back()?;
        shard.range.contains(key).then_some(shard)
    }

    /// A shard by its id.
    pub fn of_id(&self, shard: ShardId) -> Option<&Arc<ShardDescriptor>> {
        self.by_id.get(&shard)
    }

    /// The shards that own some key of a range, in key order.
    pub fn overlapping(&self, range: &KeyRange) -> impl Iterator<Item = &Arc<ShardDescriptor>> {
        let first = self.by_start.range(..=range.start).next_back();
        let first = first.map_or(range.start, |(start, _)| *start);
        let range = *range;
        let shards = self.by_start.range(first..).map(|(_, shard)| shard);
        shards
            .take_while(move |shard| range.end.is_none_or(|end| shard.range.start < end))
            .filter(move |shard| shard.range.overlaps(&range))
    }

    /// All shards in key order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<ShardDescriptor>> {
        self.by_start.values()
    }
}

impl Routes {
    /// The shards as known now.
    pub fn table(&self) -> Arc<RouteTable> {
        self.table.load_full()
    }

    /// Takes the catalog's shard index in, and the shards that are no more.
    pub fn set_catalog(
        &self,
        shards: impl IntoIterator<Item = ShardDescriptor>,
        removed: &BTreeSet<ShardId>,
    ) {
        let mut learned = self.learned.lock();
        learned.removed.clone_from(removed);
        let learned = &mut learned.shards;
        learned.retain(|id, _| !removed.contains(id));
        let mut all: BTreeMap<ShardId, Arc<ShardDescriptor>> =
            shards.into_iter().map(|shard| (shard.shard_id, Arc::new(shard))).collect();
        learned.retain(|id, shard| all.get(id).is_none_or(|known| known.epoch < shard.epoch));
        all.extend(learned.iter().map(|(id, shard)| (*id, Arc::clone(shard))));
        self.table.store(Arc::new(RouteTable::new(all.into_values())));
    }

    /// Takes in what shards say about themselves, in one step. True if any of that was news.
    pub fn learn(&self, descriptors: impl IntoIterator<Item = ShardDescriptor>) -> bool {
        let mut learned = self.learned.lock();
        let table = self.table.load();
        let is_news = |shard: &ShardDescriptor| {
            !shard.range.is_empty()
                && !learned.removed.contains(&shard.shard_id)
                && table.of_id(shard.shard_id).is_none_or(|known| known.epoch < shard.epoch)
        };
        let news: Vec<_> = descriptors.into_iter().filter(is_news).map(Arc::new).collect();
        if news.is_empty() {
            return false;
        }
        let mut all: BTreeMap<ShardId, Arc<ShardDescriptor>> = table.by_id.clone();
        for shard in news {
            learned.shards.insert(shard.shard_id, Arc::clone(&shard));
            all.insert(shard.shard_id, shard);
        }
        self.table.store(Arc::new(RouteTable::new(all.into_values())));
        true
    }

    /// How near the anchors of an account in a range can be.
    pub fn bounds(&self, account: AccountNumber, range: KeyRange) -> Arc<RangeBounds> {
        if let Some(bounds) = self.bounds.lock().get(&(account, range)) {
            return Arc::clone(bounds);
        }
        let made = Arc::new(RangeBounds::new(account, &range));
        let mut bounds = self.bounds.lock();
        if BOUNDS_MAX <= bounds.len() {
            bounds.clear();
        }
        bounds.insert((account, range), Arc::clone(&made));
        made
    }

    /// Who led a shard when last heard of.
    pub fn leader(&self, shard: ShardId) -> Option<NodeId> {
        self.leaders.lock().get(&shard).copied()
    }

    /// Remembers who leads a shard; `None` forgets it.
    pub fn set_leader(&self, shard: ShardId, leader: Option<NodeId>) {
        let mut leaders = self.leaders.lock();
        match leader {
            Some(leader) => leaders.insert(shard, leader),
            None => leaders.remove(&shard),
        };
    }
}

#[cfg(test)]
mod tests {
    use anchorhold_model::{ClassId, Epoch};

    use super::*;

    fn shard(id: u64, start: u128, end: Option<u128>, version: u32) -> ShardDescriptor {
        let range = KeyRange { start: Key(start), end: end.map(Key) };
        let found = ShardDescriptor::found(ShardId(id), range, ClassId(1), &[NodeId(1)]);
        ShardDescriptor { epoch: Epoch { version, ..Epoch::FIRST }, ..found }
    }

    fn ids<'a>(shards: impl Iterator<Item = &'a Arc<ShardDescriptor>>) -> Vec<u64> {
        shards.map(|shard| shard.shard_id.0).collect()
    }

    #[test]
    fn a_key_goes_to_the_shard_that_owns_it_and_a_gap_to_none() {
        let routes = Routes::default();
        routes
            .set_catalog([shard(1, 10, Some(20), 1), shard(2, 20, Some(30), 1)], &BTreeSet::new());
        let table = routes.table();
        let of = |key| table.of_key(Key(key)).map(|shard| shard.shard_id.0);
        assert_eq!(
            [of(9), of(10), of(19), of(20), of(30)],
            [None, Some(1), Some(1), Some(2), None]
        );
    }

    #[test]
    fn a_range_meets_every_shard_that_it_touches_and_no_other() {
        let table = RouteTable::new(
            [shard(1, 0, Some(20), 1), shard(2, 20, Some(30), 1), shard(3, 40, None, 1)]
                .map(Arc::new),
        );
        let meets = |start, end: Option<u128>| {
            ids(table.overlapping(&KeyRange { start: Key(start), end: end.map(Key) }))
        };
        assert_eq!(meets(5, Some(20)), [1]);
        assert_eq!(meets(19, Some(21)), [1, 2]);
        assert_eq!(meets(30, Some(40)), [0_u64; 0]);
        assert_eq!(meets(0, None), [1, 2, 3]);
    }

    #[test]
    fn what_a_shard_says_wins_over_an_older_catalog_until_the_catalog_knows_it() {
        let routes = Routes::default();
        routes.set_catalog([shard(1, 0, None, 1)], &BTreeSet::new());
        assert!(routes.learn([shard(1, 0, Some(50), 2)]));
        assert!(!routes.learn([shard(1, 0, Some(50), 2)]));
        assert!(routes.table().of_key(Key(60)).is_none());
        routes.set_catalog([shard(1, 0, None, 1)], &BTreeSet::new());
        assert!(routes.table().of_key(Key(60)).is_none());
        routes.set_catalog([shard(1, 0, Some(50), 2), shard(2, 50, None, 1)], &BTreeSet::new());
        assert_eq!(routes.table().of_key(Key(60)).unwrap().shard_id, ShardId(2));
    }

    #[test]
    fn of_two_shards_that_overlap_the_later_epoch_owns_what_both_claim() {
        let table =
            RouteTable::new([shard(1, 0, None, 1), shard(2, 10, Some(20), 3)].map(Arc::new));
        assert_eq!(ids(table.iter()), [1, 2, 1]);
        let of = |key| table.of_key(Key(key)).map(|shard| shard.shard_id.0);
        assert_eq!([of(0), of(9), of(10), of(19), of(20)], [1, 1, 2, 2, 1].map(Some));
        assert!(table.is_clipped(ShardId(1)) && !table.is_clipped(ShardId(2)));
    }

    #[test]
    fn a_child_heard_of_before_its_parent_leaves_no_gap() {
        let routes = Routes::default();
        routes.set_catalog([shard(1, 0, None, 1)], &BTreeSet::new());
        assert!(routes.learn([shard(2, 50, None, 2)]));
        let of = |key| routes.table().of_key(Key(key)).map(|shard| shard.shard_id.0);
        assert_eq!([of(0), of(49), of(50)], [1, 1, 2].map(Some));
        assert!(routes.learn([shard(1, 0, Some(50), 2)]));
        assert_eq!([of(49), of(50)], [1, 2].map(Some));
        assert!(!routes.table().is_clipped(ShardId(1)));
    }
}
