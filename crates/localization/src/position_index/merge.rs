//! Which trees to merge, and the merge itself.
//!
//! Levelled: level n holds one tree of at most `buffer_max * factor^n` positions. A second tree
//! on a level, or a tree with too many dead entries, calls for a merge with all that is smaller;
//! if the result belongs to a higher level, the tree there joins.

use std::sync::Arc;

use super::ForestConfig;
use super::snapshot::LiveTree;
use super::tree::Tree;

/// Trees that should become one. Owns what it needs, so that it can run on another thread while
/// the index takes updates.
#[derive(Debug)]
#[must_use = "run it and install the result, or abandon it: no other merge starts before"]
pub struct MergeJob<Item> {
    pub(super) ticket: MergeTicket,
    pub(super) sources: Vec<LiveTree<Item>>,
}

/// The result of a [`MergeJob`], to be installed in the index that planned it.
#[derive(Debug)]
pub struct MergedTree<Item> {
    pub(super) ticket: MergeTicket,
    /// `None` if nothing was alive.
    pub(super) tree: Option<Arc<Tree<Item>>>,
}

/// Tells one merge from every other one, also from those of other indexes.
#[derive(Clone, Debug, Default)]
pub(super) struct MergeTicket(Arc<()>);

impl PartialEq for MergeTicket {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<Item: Copy + Ord> MergeJob<Item> {
    /// Live positions that the job reads; it takes about a microsecond of CPU for each.
    pub fn positions(&self) -> usize {
        self.sources.iter().map(LiveTree::live).sum()
    }

    /// Builds the tree. Pure CPU on the calling thread.
    ///
    /// # Panics
    /// If the sources hold 2^31 positions or more.
    pub fn run(self) -> MergedTree<Item> {
        MergedTree { ticket: self.ticket, tree: merge(&self.sources, std::iter::empty()) }
    }
}

/// One tree of all live points of `sources` and of `more`; `None` if there are none.
pub(super) fn merge<Item: Copy + Ord>(
    sources: &[LiveTree<Item>],
    more: impl Iterator<Item = (Item, [f64; 3])>,
) -> Option<Arc<Tree<Item>>> {
    let mut points: Vec<_> = Vec::new();
    points.reserve_exact(sources.iter().map(LiveTree::live).sum());
    points.extend(sources.iter().flat_map(LiveTree::points).chain(more));
    // Each source is sorted: the stable sort finds the runs and merges them.
    points.sort_by_key(|point| point.0);
    Tree::build(points).map(Arc::new)
}

/// What planning needs to know of a tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct TreeShape {
    pub(super) id: u64,
    pub(super) live: usize,
    pub(super) dead_share: f64,
}

/// The ids of the trees that should become one, or nothing. `shapes` may be in any order.
pub(super) fn plan(config: &ForestConfig, shapes: &[TreeShape]) -> Vec<u64> {
    let level = |shape: &TreeShape| config.level(shape.live);
    let crowded = |shape: &TreeShape| {
        1 < shapes.iter().filter(|other| level(other) == level(shape)).count()
            || config.dead_share_max < shape.dead_share
    };
    let Some(mut top) = shapes.iter().filter(|shape| crowded(shape)).map(level).min() else {
        return Vec::new();
    };
    loop {
        let chosen = shapes.iter().filter(|shape| level(shape) <= top);
        let result = config.level(chosen.clone().map(|shape| shape.live).sum());
        let joins = |shape: &TreeShape| top < level(shape) && level(shape) <= result;
        if !shapes.iter().any(joins) {
            return chosen.map(|shape| shape.id).collect();
        }
        top = result;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plans over trees of `(live, dead share)`; answers with positions in the list.
    fn chosen(trees: &[(usize, f64)]) -> Vec<u64> {
        let config = ForestConfig { buffer_max: 10, factor: 10, dead_share_max: 0.2 };
        let shapes: Vec<_> = (0..)
            .zip(trees)
            .map(|(id, (live, dead_share))| TreeShape { id, live: *live, dead_share: *dead_share })
            .collect();
        plan(&config, &shapes)
    }

    #[test]
    fn one_tree_per_level_stays() {
        assert_eq!(chosen(&[]), vec![]);
        assert_eq!(chosen(&[(9_000, 0.0), (900, 0.2), (90, 0.0)]), vec![]);
    }

    #[test]
    fn a_second_tree_on_a_level_merges_with_all_that_is_smaller() {
        assert_eq!(chosen(&[(9_000, 0.0), (500, 0.0), (400, 0.0), (90, 0.0)]), vec![1, 2, 3]);
    }

    #[test]
    fn a_result_too_large_for_its_level_takes_the_next_tree_along() {
        assert_eq!(chosen(&[(9_000, 0.0), (300, 0.0), (90, 0.0), (20, 0.0)]), vec![1, 2, 3]);
        assert_eq!(chosen(&[(9_990, 0.0), (990, 0.0), (90, 0.0), (20, 0.0)]), vec![0, 1, 2, 3]);
    }

    #[test]
    fn a_tree_with_many_dead_entries_is_rebuilt_even_alone() {
        assert_eq!(chosen(&[(9_000, 0.21)]), vec![0]);
        assert_eq!(chosen(&[(9_000, 0.21), (500, 0.0)]), vec![0, 1]);
        assert_eq!(chosen(&[(9_000, 0.0), (500, 0.3)]), vec![1]);
    }
}
