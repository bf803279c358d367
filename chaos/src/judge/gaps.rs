//! How long writes stopped around a fault.
//!
//! A gap is the largest time between two acknowledgements in a window that begins shortly before the
//! fault: acknowledgements that were under way when it came would otherwise hide the outage behind
//! them. The bounds of the window count as acknowledgements, so that somebody who never got another
//! one does not look fine.
//!
//! For one shard only time counts in which somebody waited for it: clients that are stuck at another
//! shard ask nothing, and their silence is no outage of this one.

use std::collections::{BTreeMap, BTreeSet};

use super::traffic::AckedWrite;

/// Where to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) from_ns: u64,
    pub(super) until_ns: u64,
}

/// What was found in a window, in nanoseconds; `None` if nothing can be said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Gaps {
    pub(super) all: Option<u64>,
    pub(super) worst_client: Option<u64>,
    pub(super) worst_shard: Option<u64>,
    pub(super) worst_unaffected_shard: Option<u64>,
    pub(super) acknowledged: u64,
}

/// Clients whose usual time between two acknowledgements (its 90th percentile) is longer than this
/// cannot show a gap.
const USUAL_NS_MAX: u64 = 200_000_000;
/// Acknowledgements that a client must have in the whole run to be looked at.
const ACKS_MIN: usize = 20;

/// The acknowledged writes of a run, sorted for windows.
#[derive(Debug)]
pub(super) struct Streams {
    /// Ends of all writes that were acknowledged at once, sorted.
    all: Vec<u64>,
    /// The same by client, only clients that can show a gap.
    clients: Vec<Vec<u64>>,
    /// Writes of each shard, sorted by end.
    shards: BTreeMap<u64, Vec<AckedWrite>>,
}

impl Streams {
    pub(super) fn new(writes: &[AckedWrite]) -> Self {
        let mut all = Vec::with_capacity(writes.len());
        let mut clients: BTreeMap<(u16, u32), Vec<u64>> = BTreeMap::new();
        let mut shards: BTreeMap<u64, Vec<AckedWrite>> = BTreeMap::new();
        for write in writes {
            if !write.resolved {
                all.push(write.end_ns);
                // Who only prepares is soon done and waits for nothing.
                if write.client.1 != u32::MAX {
                    clients.entry(write.client).or_default().push(write.end_ns);
                }
            }
            if write.shard != 0 {
                shards.entry(write.shard).or_default().push(*write);
            }
        }
        all.sort_unstable();
        all.dedup();
        let mut clients: Vec<Vec<u64>> = clients.into_values().collect();
        for ends in &mut clients {
            ends.sort_unstable();
            ends.dedup();
        }
        clients.retain(|ends| is_steady(ends));
        for writes in shards.values_mut() {
            writes.sort_by_key(|write| write.end_ns);
        }
        Self { all, clients, shards }
    }

    /// What happened in a window around a fault that hit these nodes at `asked_ns`. Which shards were
    /// not affected cannot be said without knowing whom it hit.
    pub(super) fn gaps(&self, window: Window, asked_ns: u64, hit: &BTreeSet<u64>) -> Gaps {
        let largest = |ends: &Vec<u64>| largest_gap(ends, window);
        let mut worst_shard = None;
        let mut worst_unaffected = None;
        for writes in self.shards.values() {
            let gap = unserved(writes, window);
            worst_shard = worst_shard.max(gap);
            let leader = leader_at(writes, asked_ns).filter(|_| !hit.is_empty());
            if leader.is_some_and(|leader| !hit.contains(&leader)) {
                worst_unaffected = worst_unaffected.max(gap);
            }
        }
        let inside = |end: &&u64| window.from_ns <= **end && **end <= window.until_ns;
        Gaps {
            all: (ACKS_MIN <= self.all.len()).then(|| largest(&self.all)),
            worst_client: self.clients.iter().map(largest).max(),
            worst_shard,
            worst_unaffected_shard: worst_unaffected,
            acknowledged: self.all.iter().filter(inside).count() as u64,
        }
    }
}

fn is_steady(ends: &[u64]) -> bool {
    let mut gaps: Vec<u64> = ends.windows(2).map(|pair| pair[1] - pair[0]).collect();
    gaps.sort_unstable();
    let usual = gaps.get(gaps.len() * 9 / 10).copied().unwrap_or(u64::MAX);
    ACKS_MIN <= ends.len() && usual <= USUAL_NS_MAX
}

fn largest_gap(ends: &[u64], window: Window) -> u64 {
    let first = ends.partition_point(|end| *end < window.from_ns);
    let mut last = window.from_ns;
    let mut largest = 0;
    for end in ends[first..].iter().take_while(|end| **end <= window.until_ns) {
        largest = largest.max(end - last);
        last = *end;
    }
    largest.max(window.until_ns.saturating_sub(last))
}

/// The longest time in a window in which a write waited for a shard and none was acknowledged;
/// `None` if nothing was written to it there.
fn unserved(writes: &[AckedWrite], window: Window) -> Option<u64> {
    let first = writes.partition_point(|write| write.end_ns < window.from_ns);
    let writes = &writes[first..];
    // From when on somebody waits, for each acknowledgement: whoever is acknowledged then or later.
    let mut waits = vec![u64::MAX; writes.len()];
    let mut earliest = u64::MAX;
    for (index, write) in writes.iter().enumerate().rev() {
        earliest = earliest.min(write.start_ns);
        waits[index] = earliest;
    }
    let mut last = window.from_ns;
    let mut largest = None;
    for (write, waits_from) in writes.iter().zip(waits) {
        let from = last.max(waits_from);
        if window.until_ns <= from {
            break;
        }
        let until = write.end_ns.min(window.until_ns);
        largest = largest.max(Some(until.saturating_sub(from)));
        last = write.end_ns;
    }
    largest
}

/// The node that led a shard at a moment: that of the last acknowledgement before.
fn leader_at(writes: &[AckedWrite], at_ns: u64) -> Option<u64> {
    let next = writes.partition_point(|write| write.end_ns <= at_ns);
    writes[..next].last().map(|write| write.node)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn write(start_ms: u64, end_ms: u64, client: u32, shard: u64, node: u64) -> AckedWrite {
        let (start_ns, end_ns) = (start_ms * MS, end_ms * MS);
        AckedWrite { start_ns, end_ns, client: (0, client), shard, node, resolved: false }
    }

    fn window(from_ms: u64, until_ms: u64) -> Window {
        Window { from_ns: from_ms * MS, until_ns: until_ms * MS }
    }

    /// Every 10 ms from `from_ms` on, each taking 10 ms.
    fn steady(from_ms: u64, until_ms: u64, client: u32, shard: u64, node: u64) -> Vec<AckedWrite> {
        let starts = (from_ms..until_ms).step_by(10);
        starts.map(|start| write(start, start + 10, client, shard, node)).collect()
    }

    #[test]
    fn an_acknowledgement_that_was_under_way_at_the_kill_hides_nothing() {
        // Killed at 1,000 ms; one acknowledgement arrives at 1,020, the next at 2,500.
        let writes = [
            steady(0, 1_000, 1, 7, 1),
            vec![write(990, 1_020, 1, 7, 1)],
            steady(2_490, 3_000, 1, 7, 2),
        ];
        let streams = Streams::new(&writes.concat());
        let gaps = streams.gaps(window(800, 3_000), 1_000 * MS, &BTreeSet::from([1]));
        assert_eq!(gaps.all, Some(1_480 * MS));
        assert_eq!(gaps.worst_client, Some(1_480 * MS));
        // Somebody waited only from 2,490 on: the client was elsewhere, or asleep.
        assert_eq!(gaps.worst_shard, Some(20 * MS));
        assert_eq!(gaps.worst_unaffected_shard, None);
    }

    #[test]
    fn a_shard_is_out_for_as_long_as_somebody_waits_for_it() {
        let stuck = vec![write(1_000, 2_500, 1, 7, 2)];
        let other = steady(0, 3_000, 2, 8, 2);
        let writes = [steady(0, 1_000, 1, 7, 1), stuck, other, steady(2_500, 3_000, 1, 7, 2)];
        let streams = Streams::new(&writes.concat());
        let gaps = streams.gaps(window(800, 3_000), 1_000 * MS, &BTreeSet::from([1]));
        assert_eq!(gaps.all, Some(10 * MS));
        assert_eq!(gaps.worst_client, Some(1_500 * MS));
        assert_eq!(gaps.worst_shard, Some(1_500 * MS));
        assert_eq!(gaps.worst_unaffected_shard, Some(10 * MS));
    }

    #[test]
    fn who_is_never_acknowledged_again_waits_until_the_end_of_the_window() {
        let writes = [steady(0, 1_000, 1, 7, 1), steady(0, 3_000, 2, 8, 2)];
        let streams = Streams::new(&writes.concat());
        let gaps = streams.gaps(window(800, 3_000), 1_000 * MS, &BTreeSet::from([1]));
        assert_eq!(gaps.worst_client, Some(2_000 * MS));
    }

    #[test]
    fn who_only_prepared_the_anchors_is_no_client_that_waits() {
        let writes = [steady(0, 500, u32::MAX, 7, 1), steady(0, 3_000, 2, 7, 1)];
        let streams = Streams::new(&writes.concat());
        let gaps = streams.gaps(window(800, 3_000), 1_000 * MS, &BTreeSet::new());
        assert_eq!((gaps.worst_client, gaps.worst_unaffected_shard), (Some(10 * MS), None));
    }

    #[test]
    fn a_client_that_writes_now_and_then_shows_no_gap() {
        let rare = (0..30).map(|n| write(n * 1_000, n * 1_000 + 5, 1, 7, 1)).collect();
        let streams = Streams::new(&[rare, steady(0, 30_000, 2, 7, 1)].concat());
        assert_eq!(streams.clients.len(), 1);
    }
}
