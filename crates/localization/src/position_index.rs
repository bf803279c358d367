//! Answers which items lie nearest to a point: a log-structured forest of immutable k-d trees.
//!
//! ```text
//! upsert, remove -> buffer (scanned) -> level 1 tree -> level 2 tree -> ...
//!                   <= buffer_max       x factor        x factor^2
//! ```
//!
//! New positions go to a small buffer that every query scans. A full buffer becomes a tree, on
//! the spot. Trees never change: an item that moves or goes leaves a tombstone. Larger trees are
//! merged by jobs ([`PositionIndex::maintain`]) that may run on any thread while updates go on.
//!
//! Invariants: an item lives in at most one place, the buffer or one entry of one tree; what a
//! snapshot answers never changes; answers do not depend on when merges ran.
//!
//! Not here: locks and threads. The writer owns the [`PositionIndex`] and publishes
//! [`PositionSnapshot`]s; readers query those. kiddo's mutable tree is not used: it refuses
//! points that share a coordinate, such as the floors of a building, and panics on NaN.

mod config;
mod snapshot;
mod nearest;
mod merge;
mod tree;
mod twins;
mod tombstones;
mod buffer;

use std::sync::Arc;

use anchorhold_geometry::Ecef;
use thiserror::Error;

use merge::{MergeTicket, TreeShape};
use snapshot::LiveTree;
use tombstones::Tombstones;

pub use config::{ForestConfig, ForestConfigError};
pub use merge::{MergeJob, MergedTree};
pub use snapshot::{ForestStats, PositionSnapshot};

/// Largest absolute coordinate of a position, meters. Beyond any place an anchor can be, and far
/// from where squared distances lose their meaning.
pub const COORDINATE_M_MAX: f64 = 1e9;

/// The positions of items, searchable. `Item` is a small id.
#[derive(Debug)]
pub struct PositionIndex<Item> {
    config: ForestConfig,
    current: PositionSnapshot<Item>,
    /// The merge that was handed out and not yet installed.
    running: Option<RunningMerge>,
    next_id: u64,
}

/// An item and how far it is from the query point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbor<Item> {
    /// The item that was found.
    pub item: Item,
    /// Straight-line distance from the query point, meters.
    pub distance_m: f64,
}

/// An argument that is no position or no radius.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
pub enum PositionError {
    /// A coordinate is NaN, infinite, or beyond [`COORDINATE_M_MAX`].
    #[error("coordinates must be finite and within ±{COORDINATE_M_MAX} m, not {0:?}")]
    Coordinates([f64; 3]),
    /// The radius is negative or NaN.
    #[error("the radius must be a number of meters and not negative, not {0}")]
    Radius(f64),
}

/// What a merge started from.
#[derive(Debug)]
struct RunningMerge {
    ticket: MergeTicket,
    /// Tree id and tombstones at the start.
    sources: Vec<(u64, Arc<Tombstones>)>,
}

impl<Item: Copy + Ord> PositionIndex<Item> {
    /// An empty index.
    ///
    /// # Panics
    /// If `config` is not valid ([`ForestConfig::validate`]).
    pub fn new(config: ForestConfig) -> Self {
        assert_eq!(config.validate(), Ok(()), "validated at start-up");
        Self { config, current: PositionSnapshot::empty(), running: None, next_id: 0 }
    }

    /// An index of many points at once: one tree. If an item comes twice, the last one counts.
    ///
    /// # Errors
    /// [`PositionError`] for the first position that is not finite or out of range.
    ///
    /// # Panics
    /// If `config` is not valid, or from 2^31 points on.
    pub fn from_points(
        config: ForestConfig,
        points: Vec<(Item, Ecef)>,
    ) -> Result<Self, PositionError> {
        let mut index = Self::new(config);
        let checked = points.into_iter().map(|(item, at)| Ok((item, check_position(at)?)));
        let mut points = checked.collect::<Result<Vec<_>, PositionError>>()?;
        // Stable and backwards: the last point of each item comes first and is the one kept.
        points.reverse();
        points.sort_by_key(|point| point.0);
        points.dedup_by_key(|point| point.0);
        if let Some(tree) = tree::Tree::build(points) {
            index.push_tree(Arc::new(tree), Tombstones::default());
        }
        Ok(index)
    }

    /// Sets the position of an item, whether it had one or not. Every now and then this builds a
    /// tree of at most `buffer_max * factor` points, which takes about a millisecond.
    ///
    /// # Errors
    /// [`PositionError`] if the position is not finite or out of range; nothing changes then.
    pub fn upsert(&mut self, item: Item, position: Ecef) -> Result<(), PositionError> {
        let position = check_position(position)?;
        if self.current.buffer.get(item).is_none()
            && let Some((tree, entry)) = self.find_in_trees(item)
        {
            if self.current.trees[tree].tree.position(entry) == position {
                return Ok(());
            }
            self.bury(tree, entry);
        }
        Arc::make_mut(&mut self.current.buffer).insert(item, position);
        if self.config.buffer_max <= self.current.buffer.len() {
            self.flush();
        }
        Ok(())
    }

    /// Forgets an item; false if it had no position.
    pub fn remove(&mut self, item: Item) -> bool {
        if self.current.buffer.get(item).is_some() {
            Arc::make_mut(&mut self.current.buffer).remove(item);
            return true;
        }
        let Some((tree, entry)) = self.find_in_trees(item) else { return false };
        self.bury(tree, entry);
        true
    }

    /// What the index holds now, for readers. Cheap; what was published before keeps its answers.
    ///
    /// While a snapshot is held, the next change to each part copies that part (the buffer, 4,096
    /// tombstones), so publish once per batch of changes.
    pub fn snapshot(&self) -> PositionSnapshot<Item> {
        self.current.clone()
    }

    /// The current state, to query without a copy.
    pub fn current(&self) -> &PositionSnapshot<Item> {
        &self.current
    }

    /// Number of items that have a position.
    pub fn len(&self) -> usize {
        self.current.len()
    }

    /// True if no item has a position.
    pub fn is_empty(&self) -> bool {
        self.current.is_empty()
    }

    /// The position of an item.
    pub fn position(&self, item: Item) -> Option<Ecef> {
        self.current.position(item)
    }

    /// The next merge that the forest needs, if any and if none is under way. Ask after updates;
    /// a forest that is never maintained stays correct and becomes slow.
    pub fn maintain(&mut self) -> Option<MergeJob<Item>> {
        if self.running.is_some() {
            return None;
        }
        let shapes: Vec<_> = self.current.trees.iter().map(shape).collect();
        let chosen = merge::plan(&self.config, &shapes);
        if chosen.is_empty() {
            return None;
        }
        let sources = self.current.trees.iter();
        let sources = sources.filter(|live| chosen.contains(&live.id)).cloned().collect();
        let job = MergeJob { ticket: MergeTicket::default(), sources };
        let started = job.sources.iter().map(|live| (live.id, Arc::clone(&live.dead))).collect();
        self.running = Some(RunningMerge { ticket: job.ticket.clone(), sources: started });
        Some(job)
    }

    /// Puts a merged tree in the place of its sources. Items that moved or went since the merge
    /// started are dead in it. False, and nothing changes, if this is not the merge under way.
    pub fn install(&mut self, merged: MergedTree<Item>) -> bool {
        let Some(running) = self.running.take_if(|running| running.ticket == merged.ticket) else {
            return false;
        };
        let mut dead = Tombstones::default();
        for (id, dead_at_start) in &running.sources {
            let Some(at) = self.current.trees.iter().position(|live| live.id == *id) else {
                continue;
            };
            let source = self.current.trees.remove(at);
            let Some(tree) = &merged.tree else { continue };
            for entry in source.dead.since(dead_at_start) {
                // It lived when the merge started, so the merged tree has it.
                if let Some(entry) = tree.find(source.tree.item(entry)) {
                    dead.insert(entry);
                }
            }
        }
        if let Some(tree) = merged.tree {
            self.push_tree(tree, dead);
        }
        true
    }

    /// Forgets the merge under way, for when its job was lost. A late result is not installed.
    pub fn abandon_merge(&mut self) {
        self.running = None;
    }

    /// Runs every merge that is needed, here and now.
    pub fn settle(&mut self) {
        while let Some(job) = self.maintain() {
            self.install(job.run());
        }
    }

    /// Turns the buffer into a tree, together with as many of the smallest trees as fit the first
    /// level. Trees that a running merge reads stay.
    fn flush(&mut self) {
        let room = self.config.level_capacity(1);
        let buffer = std::mem::take(&mut self.current.buffer);
        let mut total = buffer.len();
        let mut sources = Vec::new();
        // Biggest first, so the smallest are at the end.
        for at in (0..self.current.trees.len()).rev() {
            let live = &self.current.trees[at];
            if self.is_merging(live.id) {
                continue;
            }
            total += live.live();
            if room < total {
                break;
            }
            sources.push(self.current.trees.remove(at));
        }
        if let Some(tree) = merge::merge(&sources, buffer.iter()) {
            self.push_tree(tree, Tombstones::default());
        }
    }

    /// Marks an entry dead. A tree without life goes at once, unless a running merge reads it.
    fn bury(&mut self, tree: usize, entry: u32) {
        let live = &mut self.current.trees[tree];
        Arc::make_mut(&mut live.dead).insert(entry);
        if live.live() == 0 {
            let id = live.id;
            if !self.is_merging(id) {
                self.current.trees.remove(tree);
            }
        }
    }

    fn find_in_trees(&self, item: Item) -> Option<(usize, u32)> {
        let mut trees = self.current.trees.iter().enumerate();
        trees.find_map(|(at, live)| live.find_live(item).map(|entry| (at, entry)))
    }

    fn is_merging(&self, id: u64) -> bool {
        let sources = self.running.iter().flat_map(|running| &running.sources);
        sources.into_iter().any(|(source, _)| *source == id)
    }

    fn push_tree(&mut self, tree: Arc<tree::Tree<Item>>, dead: Tombstones) {
        let live = LiveTree { id: self.take_id(), tree, dead: Arc::new(dead) };
        if live.live() == 0 {
            return;
        }
        self.current.trees.push(live);
        self.current.trees.sort_by_key(|live| std::cmp::Reverse((live.live(), live.id)));
    }

    fn take_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

fn shape<Item: Copy + Ord>(live: &LiveTree<Item>) -> TreeShape {
    TreeShape { id: live.id, live: live.live(), dead_share: live.dead_share() }
}

/// The coordinates of a position that can be indexed or searched for; −0 becomes 0, so that equal
/// positions have equal bits.
fn check_position(position: Ecef) -> Result<[f64; 3], PositionError> {
    let xyz_m = position.xyz_m();
    if xyz_m.iter().all(|coordinate| coordinate.abs() <= COORDINATE_M_MAX) {
        Ok(xyz_m.map(|coordinate| coordinate + 0.0))
    } else {
        Err(PositionError::Coordinates(xyz_m))
    }
}

#[cfg(test)]
mod tests;
