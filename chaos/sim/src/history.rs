//! What clients asked and learned.
//!
//! Anchors are registers whose values have versions: the shard's revision at the write. An anchor
//! is made once, changed, and deleted for good, so "not there" is its last version.

use std::collections::BTreeMap;

/// The version of an anchor that is not there (any more).
pub const ABSENT: u64 = u64::MAX;

/// What an operation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Made, changed or deleted the anchor.
    Write,
    /// Read it, linearizably.
    Read,
    /// Read it with proof that the answer is no staler than `staleness_us` (as the node said);
    /// `allowed_us` was asked for.
    StaleRead {
        /// Said by the node, in microseconds of its clock.
        staleness_us: u64,
        /// Asked for.
        allowed_us: u64,
    },
}

/// One answered operation on one anchor.
#[derive(Clone, Debug)]
pub struct Operation {
    /// The anchor, by number.
    pub anchor: usize,
    /// What was done.
    pub action: Action,
    /// When it was first sent, in microseconds of simulated time.
    pub start_us: u64,
    /// When its answer was there.
    pub end_us: u64,
    /// The version written or seen; [`ABSENT`] for a deletion, or if nothing was there.
    pub version: u64,
    /// The value written or seen: the number of the writing operation. 0 with [`ABSENT`].
    pub value: u64,
}

/// An anchor as clients know it.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its id.
    pub id: String,
    /// Latitude and longitude in degrees.
    pub place: (f64, f64),
    /// When a deletion of it was first sent.
    pub delete_sent_us: Option<u64>,
}

/// All operations of a run.
#[derive(Debug, Default)]
pub struct History {
    /// Answered operations, in the order of their answers.
    pub operations: Vec<Operation>,
    /// Anchors whose creation was acknowledged, by number.
    pub anchors: Vec<Known>,
    numbers: BTreeMap<String, usize>,
    /// When each value was first sent.
    pub sent_us: BTreeMap<u64, u64>,
}

impl History {
    /// The number of an anchor.
    pub fn anchor(&mut self, id: &str, place: (f64, f64)) -> usize {
        if let Some(number) = self.numbers.get(id) {
            return *number;
        }
        let number = self.anchors.len();
        self.anchors.push(Known { id: id.to_owned(), place, delete_sent_us: None });
        self.numbers.insert(id.to_owned(), number);
        number
    }

    /// The number of an anchor that clients know.
    pub fn known(&self, id: &str) -> Option<usize> {
        self.numbers.get(id).copied()
    }

    /// The operations of each anchor, in the order of their answers.
    pub fn by_anchor(&self) -> Vec<Vec<&Operation>> {
        let mut groups = vec![Vec::new(); self.anchors.len()];
        for operation in &self.operations {
            groups[operation.anchor].push(operation);
        }
        groups
    }
}
