//! Key coverage: the replicas that a node has open own disjoint ranges at every moment, and once
//! everything has settled the shards of an account own each of its keys, on every node.

use anchorhold_model::{KeyRange, ShardId};

/// Judges the ranges of the replicas that are open on a node now.
///
/// # Errors
/// The first two that share a key.
pub fn check_disjoint(node: usize, shards: &[(ShardId, KeyRange)]) -> Result<(), String> {
    let mut sorted = shards.to_vec();
    sorted.sort_by_key(|(_, range)| *range);
    for pair in sorted.windows(2) {
        let ((one, range), (other, next)) = (pair[0], pair[1]);
        if range.overlaps(&next) {
            return Err(format!("key coverage: {one} and {other} share keys on n{}", node + 1));
        }
    }
    Ok(())
}

/// Judges the ranges of all shards of an account on a node once everything has settled.
///
/// # Errors
/// If a key is nobody's, or more than one shard's.
pub fn check_whole(
    node: usize,
    whole: KeyRange,
    shards: &[(ShardId, KeyRange)],
) -> Result<(), String> {
    check_disjoint(node, shards)?;
    let mut ranges: Vec<KeyRange> = shards.iter().map(|(_, range)| *range).collect();
    ranges.retain(|range| range.overlaps(&whole));
    ranges.sort();
    let mut next = Some(whole.start);
    for range in ranges {
        if next != Some(range.start) {
            return Err(format!(
                "key coverage: keys from {next:?} on are nobody's on n{}",
                node + 1
            ));
        }
        next = range.end;
    }
    if next == whole.end {
        return Ok(());
    }
    Err(format!("key coverage: keys from {next:?} on are nobody's on n{}", node + 1))
}

#[cfg(test)]
mod tests {
    use anchorhold_model::Key;

    use super::*;

    fn range(start: u128, end: u128) -> KeyRange {
        KeyRange { start: Key(start), end: Some(Key(end)) }
    }

    #[test]
    fn gaps_and_overlaps_are_found() {
        let shards = |ranges: &[(u128, u128)]| -> Vec<(ShardId, KeyRange)> {
            (1..).zip(ranges).map(|(id, (start, end))| (ShardId(id), range(*start, *end))).collect()
        };
        let whole = range(10, 40);
        check_whole(0, whole, &shards(&[(20, 40), (10, 20)])).unwrap();
        check_whole(0, whole, &shards(&[(10, 20), (21, 40)])).unwrap_err();
        check_whole(0, whole, &shards(&[(10, 20), (20, 39)])).unwrap_err();
        check_whole(0, whole, &shards(&[(11, 40)])).unwrap_err();
        check_disjoint(0, &shards(&[(10, 20), (25, 40)])).unwrap();
        check_disjoint(0, &shards(&[(10, 20), (19, 40)])).unwrap_err();
    }
}
