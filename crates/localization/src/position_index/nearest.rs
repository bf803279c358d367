//! One k-nearest search over a forest.
//!
//! Trees come one after the other; each starts with the bound that the ones before it left. In a
//! tree the first step is kiddo's own k-nearest search, with some spare for dead entries. If too
//! many of its answers are dead or filtered out, rings of growing radius follow. Asking kiddo for
//! more and more neighbors instead costs seven times as much when one item in a hundred passes.
//!
//! Invariants: *frontier*: every entry with a squared distance below it has been offered exactly
//! once, no other entry has; a tree is done when the frontier has passed the bound. Distances are
//! our own, computed from stored positions; kiddo's are only compared with slack.

use std::collections::BinaryHeap;
use std::num::NonZeroUsize;

use anchorhold_geometry::Ecef;

use super::Neighbor;
use super::buffer::Buffer;
use super::snapshot::{LiveTree, count};
use super::tree::{Tree, narrow, widen};

/// Where rings start if the first step ended on the query point itself: 1 mm.
const RING_SQUARED_M2_MIN: f64 = 1e-6;

pub(super) struct Search<'a, Item> {
    query: [f64; 3],
    k: usize,
    radius_m: f64,
    filter: &'a mut dyn FnMut(Item) -> bool,
    /// The best so far, worst on top.
    best: BinaryHeap<Candidate<Item>>,
}

/// What became of an offered entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Offer {
    /// It is among the best.
    Taken,
    /// The filter refused it.
    Refused,
    /// It is too far, or ties with the worst and has a greater item.
    Beaten,
}

impl<'a, Item: Copy + Ord> Search<'a, Item> {
    pub(super) fn new(
        query: [f64; 3],
        k: usize,
        radius_m: f64,
        filter: &'a mut dyn FnMut(Item) -> bool,
    ) -> Self {
        Self { query, k, radius_m, filter, best: BinaryHeap::new() }
    }

    /// Offers every position in the buffer that can be among the best.
    pub(super) fn visit_buffer(&mut self, buffer: &Buffer<Item>) {
        let query = Ecef::new(self.query);
        // Nearly all are too far, and a square root for each would be most of the work.
        let mut limit_m2 = self.limit_squared_m2(f64::INFINITY);
        for (item, position) in buffer.iter() {
            let squared_m2 = query.distance_squared_m2(Ecef::new(position));
            if squared_m2 <= limit_m2 && self.consider(item, squared_m2.sqrt()) == Offer::Taken {
                limit_m2 = self.limit_squared_m2(f64::INFINITY);
            }
        }
    }

    /// The answer, nearest first.
    pub(super) fn into_neighbors(self) -> Vec<Neighbor<Item>> {
        self.best.into_sorted_vec().into_iter().map(|candidate| candidate.0).collect()
    }

    /// Offers everything in a tree that can be among the best.
    pub(super) fn visit_tree(&mut self, live: &LiveTree<Item>) {
        let (near_m2, far_m2) = live.tree.reach_squared_m2(&self.query);
        if self.bound_m() < narrow(near_m2).sqrt() {
            return;
        }
        let taken_before = self.best.len();
        let mut frontier_m2 = self.visit_nearest_leaves(live, far_m2);
        let mut seen_last = self.k;
        while frontier_m2.sqrt() <= self.bound_m() && frontier_m2 < widen(far_m2) {
            let limit_m2 = self.limit_squared_m2(far_m2);
            let ring_m2 = if self.is_full() {
                limit_m2
            } else {
                let taken = self.best.len().saturating_sub(taken_before);
                let start_m2 = frontier_m2.max(RING_SQUARED_M2_MIN);
                limit_m2.min(start_m2 * growth(self.k, taken, seen_last))
            };
            seen_last = self.visit_ring(live, frontier_m2, ring_m2);
            frontier_m2 = ring_m2;
        }
    }

    /// The first step in a tree: kiddo's k-nearest search. Returns the frontier it reached.
    fn visit_nearest_leaves(&mut self, live: &LiveTree<Item>, far_m2: f64) -> f64 {
        let wanted = spare(self.k, live.dead_share()).min(live.tree.leaf_count());
        let Some(wanted) = NonZeroUsize::new(wanted) else { return f64::INFINITY };
        let limit_m2 = self.limit_squared_m2(far_m2);
        let leaves = live.tree.nearest_leaves(&self.query, wanted, limit_m2);
        let all_seen = leaves.len() < wanted.get() || wanted.get() == live.tree.leaf_count();
        let frontier_m2 = match leaves.last() {
            Some((_, last_m2)) if !all_seen => narrow(*last_m2),
            _ => f64::INFINITY,
        };
        for (leaf, _) in leaves {
            self.visit_leaf(live, leaf, 0.0, frontier_m2);
        }
        frontier_m2
    }

    /// Offers the entries with a squared distance in `[from_m2, to_m2)`. Returns how many leaves
    /// lie there.
    fn visit_ring(&mut self, live: &LiveTree<Item>, from_m2: f64, to_m2: f64) -> usize {
        let query = self.query;
        let mut seen = 0;
        live.tree.visit_leaves(&query, widen(to_m2), |leaf| {
            seen += usize::from(self.visit_leaf(live, leaf, from_m2, to_m2));
        });
        seen
    }

    /// Offers the live entries of one leaf if it lies in `[from_m2, to_m2)`; true if it does.
    fn visit_leaf(&mut self, live: &LiveTree<Item>, leaf: u32, from_m2: f64, to_m2: f64) -> bool {
        let tree: &Tree<Item> = &live.tree;
        let mut entries = tree.entries_at(leaf).peekable();
        let Some(first) = entries.peek() else { return false };
        let position = Ecef::new(tree.position(*first));
        let squared_m2 = Ecef::new(self.query).distance_squared_m2(position);
        if squared_m2 < from_m2 || to_m2 <= squared_m2 {
            return false;
        }
        for entry in entries.filter(|entry| !live.dead.contains(*entry)) {
            // Items ascend within a leaf, so those after a beaten one are beaten too.
            if self.consider(tree.item(entry), squared_m2.sqrt()) == Offer::Beaten {
                break;
            }
        }
        true
    }

    fn consider(&mut self, item: Item, distance_m: f64) -> Offer {
        let candidate = Candidate(Neighbor { item, distance_m });
        if self.radius_m < distance_m {
            return Offer::Beaten;
        }
        if self.is_full() && self.best.peek().is_some_and(|worst| *worst <= candidate) {
            return Offer::Beaten;
        }
        if !(self.filter)(item) {
            return Offer::Refused;
        }
        if self.is_full() {
            self.best.pop();
        }
        self.best.push(candidate);
        Offer::Taken
    }

    fn is_full(&self) -> bool {
        self.k <= self.best.len()
    }

    /// Nothing farther than this can enter the answer any more.
    fn bound_m(&self) -> f64 {
        match self.best.peek() {
            Some(worst) if self.is_full() => worst.0.distance_m.min(self.radius_m),
            _ => self.radius_m,
        }
    }

    /// A squared radius that surely holds all that can still enter the answer and is no farther
    /// than `far_m2`, where the points to search end.
    fn limit_squared_m2(&self, far_m2: f64) -> f64 {
        let bound_m = self.bound_m();
        widen(bound_m * bound_m).min(widen(far_m2))
    }
}

/// How many leaves to ask a tree for, so that `k` of them are probably alive and the one after
/// them proves that nothing was missed.
fn spare(k: usize, dead_share: f64) -> usize {
    let alive_share = (1.0 - dead_share).max(0.25);
    #[expect(clippy::cast_possible_truncation, reason = "at most four times k, see above")]
    #[expect(clippy::cast_sign_loss, reason = "a quotient of positive numbers")]
    let expected = (count(k) / alive_share).ceil() as usize;
    expected.saturating_add(2)
}

/// By how much to widen the next ring's squared radius, when `taken` of `k` wanted have been
/// found so far and the last ring held `seen` leaves.
///
/// Points on a surface grow in number as the squared radius does, stacked floors somewhat faster;
/// bounded to 4, because a ring that is too wide costs more than one ring more.
fn growth(k: usize, taken: usize, seen: usize) -> f64 {
    if seen == 0 {
        return 16.0;
    }
    (count(k) / (count(taken) + 0.5)).clamp(1.5, 4.0)
}

/// A neighbor that is ordered by (distance, item).
struct Candidate<Item>(Neighbor<Item>);

impl<Item: Ord> Ord for Candidate<Item> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let distances = self.0.distance_m.total_cmp(&other.0.distance_m);
        distances.then_with(|| self.0.item.cmp(&other.0.item))
    }
}

impl<Item: Ord> PartialOrd for Candidate<Item> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<Item: Ord> PartialEq for Candidate<Item> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<Item: Ord> Eq for Candidate<Item> {}
