use kiddo::{ImmutableKdTree, SquaredEuclidean};
use std::num::NonZeroUsize;

use super::twins::Twins;

/// Relative slack around a squared distance that kiddo compared: far above the rounding of its
/// sums, far below anything a caller can notice.
const SLACK: f64 = 1e-12;

/// The smallest squared radius that surely covers all that kiddo holds within `squared_m2`.
pub(super) fn widen(squared_m2: f64) -> f64 {
    squared_m2 * (1.0 + SLACK) + f64::MIN_POSITIVE
}

/// The largest squared radius within which kiddo surely left nothing out when its own answer
/// reached to `squared_m2`.
pub(super) fn narrow(squared_m2: f64) -> f64 {
    squared_m2 * (1.0 - SLACK)
}

/// One immutable k-d tree with the items and positions it was built from.
///
/// An *entry* is the rank of an item in this tree. The k-d tree holds each distinct coordinate
/// once, because kiddo slows down by a factor of a thousand on thousands of equal points; entries
/// that share a coordinate hang together in [`Twins`].
///
/// Invariants: never empty; items ascend strictly; coordinates are finite and bounded.
#[derive(Debug)]
pub(super) struct Tree<Item> {
    kd: ImmutableKdTree<f64, 3>,
    items: Vec<Item>,
    positions: Vec<[f64; 3]>,
    twins: Twins,
    min_m: [f64; 3],
    max_m: [f64; 3],
}

impl<Item: Copy + Ord> Tree<Item> {
    /// Builds a tree on the calling thread; `None` if there are no points.
    ///
    /// * `points`: strictly ascending by item, coordinates finite and bounded.
    ///
    /// # Panics
    /// From 2^31 points on.
    pub(super) fn build(points: Vec<(Item, [f64; 3])>) -> Option<Self> {
        let first = points.first()?.1;
        debug_assert!(points.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let (items, positions): (Vec<_>, Vec<_>) = points.into_iter().unzip();
        let (mut min_m, mut max_m) = (first, first);
        for position in &positions {
            for axis in 0..3 {
                min_m[axis] = min_m[axis].min(position[axis]);
                max_m[axis] = max_m[axis].max(position[axis]);
            }
        }
        let (twins, leaves) = Twins::find(&positions);
        let builder = ImmutableKdTree::<f64, 3>::builder().with_serial_construction();
        let kd = match leaves {
            Some(leaves) => builder.build_from_entries(&leaves),
            None => builder.build_from_source(
                &positions,
                |position, axis| position[axis],
                // Twins::find has checked that every entry fits.
                |entry, _| u32::try_from(entry).unwrap_or(u32::MAX),
            ),
        };
        // Immutable trees refuse nothing: a bucket that cannot be split just grows.
        let kd = kd.expect("an immutable tree takes any finite points");
        Some(Self { kd, items, positions, twins, min_m, max_m })
    }

    /// Number of entries, dead ones included.
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// Number of distinct coordinates.
    pub(super) fn leaf_count(&self) -> usize {
        self.kd.size()
    }

    pub(super) fn find(&self, item: Item) -> Option<u32> {
        let index = self.items.binary_search(&item).ok()?;
        u32::try_from(index).ok()
    }

    pub(super) fn item(&self, entry: u32) -> Item {
        self.items[entry as usize]
    }

    pub(super) fn position(&self, entry: u32) -> [f64; 3] {
        self.positions[entry as usize]
    }

    /// All entries as (entry, item, position), items ascending.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u32, Item, [f64; 3])> + '_ {
        let points = self.items.iter().copied().zip(self.positions.iter().copied());
        (0..).zip(points).map(|(entry, (item, position))| (entry, item, position))
    }

    /// Entries at the coordinate of a leaf that a search named, items ascending.
    pub(super) fn entries_at(&self, leaf: u32) -> impl Iterator<Item = u32> + '_ {
        self.twins.entries_at(leaf)
    }

    /// The `count` leaves nearest to `query` within `squared_m2`, nearest first, each with its
    /// squared distance as kiddo rounds it.
    pub(super) fn nearest_leaves(
        &self,
        query: &[f64; 3],
        count: NonZeroUsize,
        squared_m2: f64,
    ) -> Vec<(u32, f64)> {
        let search = self.kd.query(query).nearest_n::<SquaredEuclidean<f64>>(count);
        let found = search.within(squared_m2).execute();
        found.into_iter().map(|leaf| (leaf.item, leaf.distance)).collect()
    }

    /// Calls `visit` with every leaf within `squared_m2` of `query`, in no useful order.
    pub(super) fn visit_leaves(
        &self,
        query: &[f64; 3],
        squared_m2: f64,
        mut visit: impl FnMut(u32),
    ) {
        let search = self.kd.query(query).within::<SquaredEuclidean<f64>>(squared_m2).unsorted();
        search.visit(|leaf| visit(leaf.item));
    }

    /// Squared distance from `query` to the nearest and to the farthest point of the tree's
    /// bounding box, in square meters.
    pub(super) fn reach_squared_m2(&self, query: &[f64; 3]) -> (f64, f64) {
        let (mut near, mut far) = (0.0, 0.0);
        for ((min_m, max_m), query_m) in self.min_m.iter().zip(self.max_m).zip(query) {
            let (below, above) = (min_m - query_m, query_m - max_m);
            let gap = below.max(above).max(0.0);
            let span = below.abs().max(above.abs());
            near += gap * gap;
            far += span * span;
        }
        (near, far)
    }
}
