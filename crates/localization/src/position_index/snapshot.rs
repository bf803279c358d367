use std::sync::Arc;

use anchorhold_geometry::Ecef;

use super::buffer::Buffer;
use super::nearest::Search;
use super::tombstones::Tombstones;
use super::tree::Tree;
use super::{Neighbor, PositionError, check_position};

/// An immutable view of a [`PositionIndex`](crate::PositionIndex) at one moment.
///
/// Cloning it copies a pointer per tree. It stays what it is while the index goes on: queries on
/// it never wait for a writer or a merge.
#[derive(Clone, Debug)]
pub struct PositionSnapshot<Item> {
    /// Most live positions first, so that the first answer is the best bound for the rest.
    pub(super) trees: Vec<LiveTree<Item>>,
    pub(super) buffer: Arc<Buffer<Item>>,
}

/// A tree of the forest and which of its entries are dead.
#[derive(Clone, Debug)]
pub(super) struct LiveTree<Item> {
    /// Never reused within one index.
    pub(super) id: u64,
    pub(super) tree: Arc<Tree<Item>>,
    pub(super) dead: Arc<Tombstones>,
}

/// What a forest is made of, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ForestStats {
    /// Live positions.
    pub live: usize,
    /// Entries of trees that are dead and not yet merged away.
    pub dead: usize,
    /// Positions in the scanned buffer.
    pub buffered: usize,
    /// Trees that a query searches.
    pub trees: usize,
}

impl<Item: Copy + Ord> LiveTree<Item> {
    pub(super) fn live(&self) -> usize {
        self.tree.len() - self.dead.count()
    }

    pub(super) fn dead_share(&self) -> f64 {
        count(self.dead.count()) / count(self.tree.len())
    }

    /// The live entry of an item, if it lives in this tree.
    pub(super) fn find_live(&self, item: Item) -> Option<u32> {
        self.tree.find(item).filter(|entry| !self.dead.contains(*entry))
    }

    /// The live points, items ascending.
    pub(super) fn points(&self) -> impl Iterator<Item = (Item, [f64; 3])> + '_ {
        let entries = self.tree.entries().filter(|(entry, ..)| !self.dead.contains(*entry));
        entries.map(|(_, item, position)| (item, position))
    }
}

impl<Item: Copy + Ord> PositionSnapshot<Item> {
    pub(super) fn empty() -> Self {
        Self { trees: Vec::new(), buffer: Arc::default() }
    }

    /// Number of items that have a position.
    pub fn len(&self) -> usize {
        self.trees.iter().map(LiveTree::live).sum::<usize>() + self.buffer.len()
    }

    /// True if no item has a position.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The position of an item.
    pub fn position(&self, item: Item) -> Option<Ecef> {
        let in_tree =
            |live: &LiveTree<Item>| live.find_live(item).map(|entry| live.tree.position(entry));
        let found = self.buffer.get(item).or_else(|| self.trees.iter().find_map(in_tree));
        found.map(Ecef::new)
    }

    /// Every item with its position, in no useful order.
    pub fn iter(&self) -> impl Iterator<Item = (Item, Ecef)> + '_ {
        let points = self.trees.iter().flat_map(LiveTree::points).chain(self.buffer.iter());
        points.map(|(item, position)| (item, Ecef::new(position)))
    }

    /// What the forest is made of.
    pub fn stats(&self) -> ForestStats {
        ForestStats {
            live: self.len(),
            dead: self.trees.iter().map(|live| live.dead.count()).sum(),
            buffered: self.buffer.len(),
            trees: self.trees.len(),
        }
    }

    /// The `k` nearest items that pass `filter`, nearest first, ties by item. Exact: equal to
    /// sorting every item by (distance, item).
    ///
    /// * `radius_m_max`: items farther than this are left out; one at exactly this distance is
    ///   in. A search over several shards passes the k-th distance it already has.
    /// * `filter`: called at most once per item, and only for items that would enter the answer.
    ///
    /// # Errors
    /// [`PositionError`] if the query is not a position or the radius is negative or NaN.
    pub fn nearest(
        &self,
        query: Ecef,
        k: usize,
        radius_m_max: Option<f64>,
        filter: &mut dyn FnMut(Item) -> bool,
    ) -> Result<Vec<Neighbor<Item>>, PositionError> {
        let query = check_position(query)?;
        let radius_m = radius_m_max.unwrap_or(f64::INFINITY);
        if radius_m.is_nan() || radius_m < 0.0 {
            return Err(PositionError::Radius(radius_m));
        }
        let k = k.min(self.len());
        if k == 0 {
            return Ok(Vec::new());
        }
        let mut search = Search::new(query, k, radius_m, filter);
        for live in &self.trees {
            search.visit_tree(live);
        }
        search.visit_buffer(&self.buffer);
        Ok(search.into_neighbors())
    }

    /// The items within `radius_m` that pass `filter`, nearest first, ties by item, at most
    /// `limit` of them; those left out by the limit are the farthest. Ask for one more than
    /// needed to learn whether there are more.
    ///
    /// # Errors
    /// Those of [`Self::nearest`].
    pub fn within(
        &self,
        query: Ecef,
        radius_m: f64,
        limit: usize,
        filter: &mut dyn FnMut(Item) -> bool,
    ) -> Result<Vec<Neighbor<Item>>, PositionError> {
        self.nearest(query, limit, Some(radius_m), filter)
    }
}

/// A count as a float. Exact up to 2^53, which no tree reaches.
#[expect(clippy::cast_precision_loss, reason = "counts stay below 2^53")]
pub(super) fn count(count: usize) -> f64 {
    count as f64
}
