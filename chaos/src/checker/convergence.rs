//! Whether the cluster is whole again after the heal.

use std::collections::{BTreeMap, BTreeSet};

use super::Findings;
use crate::judge::{DigestRead, FinalShard, FinalState, Invariant};

/// Says what is wrong with the cluster as it was read after the heal.
pub fn check(state: &FinalState) -> Findings {
    let mut findings = Findings::default();
    let zones: BTreeMap<u64, (&str, &str)> = state
        .nodes
        .iter()
        .map(|node| (node.node_id, (node.region.as_str(), node.zone.as_str())))
        .collect();
    for shard in &state.shards {
        check_leader(shard, &mut findings);
        check_digests(shard, &mut findings);
        check_zones(shard, &zones, &mut findings);
    }
    check_cover(&state.shards, &mut findings);
    findings
}

fn name(shard: &FinalShard) -> String {
    if shard.shard_id == 0 { "the catalog".to_owned() } else { format!("shard {}", shard.shard_id) }
}

fn check_leader(shard: &FinalShard, findings: &mut Findings) {
    findings.check(Invariant::OneLeader, 1);
    let silent = shard.replicas.iter().filter(|replica| !replica.is_live).count();
    let problem = if shard.leader == 0 {
        "has no leader".to_owned()
    } else if 0 < silent {
        format!("misses {silent} of {} replicas", shard.replicas.len())
    } else if shard.degraded {
        "has fewer voters, or voters in fewer zones, than it should".to_owned()
    } else {
        return;
    };
    let text = || format!("after the heal {} {problem}", name(shard));
    findings.violate(Invariant::OneLeader, text, Vec::new);
}

fn check_digests(shard: &FinalShard, findings: &mut Findings) {
    findings.check(Invariant::ReplicasEqual, 1);
    let mut digests: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
    for replica in &shard.replicas {
        match &replica.digest {
            DigestRead::Made { applied_index, digest, .. } => {
                digests.entry(*applied_index).or_default().insert(digest);
            }
            DigestRead::Failed(reason) => {
                findings.leave_open(Invariant::ReplicasEqual, || {
                    format!("node {} gave no digest of {}: {reason}", replica.node_id, name(shard))
                });
            }
        }
    }
    if let Some((index, _)) = digests.iter().find(|(_, digests)| 1 < digests.len()) {
        let each: Vec<String> = shard
            .replicas
            .iter()
            .filter_map(|replica| match &replica.digest {
                DigestRead::Made { applied_index, anchors, digest } if applied_index == index => {
                    Some(format!("node {}: {digest} ({anchors} anchors)", replica.node_id))
                }
                DigestRead::Made { .. } | DigestRead::Failed(_) => None,
            })
            .collect();
        findings.violate(
            Invariant::ReplicasEqual,
            || {
                format!(
                    "replicas of {} differ at log index {index}: {}",
                    name(shard),
                    each.join(", ")
                )
            },
            Vec::new,
        );
    } else if 1 < digests.len() {
        findings.leave_open(Invariant::ReplicasEqual, || {
            format!(
                "replicas of {} did not come to the same log index: they could not be compared",
                name(shard)
            )
        });
    }
}

fn check_zones(shard: &FinalShard, zones: &BTreeMap<u64, (&str, &str)>, findings: &mut Findings) {
    findings.check(Invariant::ZonesDistinct, 1);
    let voters: Vec<u64> =
        shard.replicas.iter().filter(|one| one.is_voter).map(|one| one.node_id).collect();
    let found: BTreeSet<_> = voters.iter().filter_map(|node| zones.get(node)).collect();
    let all: BTreeSet<_> = zones.values().collect();
    let wanted = voters.len().min(all.len());
    if found.len() < wanted {
        findings.violate(
            Invariant::ZonesDistinct,
            || {
                format!(
                    "the {} voters of {} stand in {} zones",
                    voters.len(),
                    name(shard),
                    found.len()
                )
            },
            Vec::new,
        );
    }
}

/// Ranges follow each other from the first key to the last.
fn check_cover(shards: &[FinalShard], findings: &mut Findings) {
    let mut ranges: Vec<&FinalShard> = shards.iter().filter(|shard| shard.shard_id != 0).collect();
    ranges.sort_by(|a, b| a.start.cmp(&b.start));
    findings.check(Invariant::KeysCoveredOnce, ranges.len() as u64);
    let mut wrong = |text: String| findings.violate(Invariant::KeysCoveredOnce, || text, Vec::new);
    let Some((first, last)) = ranges.first().zip(ranges.last()) else {
        return wrong("there are no shards".to_owned());
    };
    if first.start.chars().any(|digit| digit != '0') {
        wrong(format!("no shard holds the keys before {}", first.start));
    }
    if !last.end.is_empty() {
        wrong(format!("no shard holds the keys from {} on", last.end));
    }
    for pair in ranges.windows(2) {
        let [before, after] = pair else { continue };
        if before.end.is_empty() || after.start < before.end {
            wrong(format!(
                "{} and {} both hold keys from {} on",
                name(before),
                name(after),
                after.start
            ));
        } else if before.end < after.start {
            wrong(format!("no shard holds the keys from {} to {}", before.end, after.start));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::{FinalNode, FinalReplica};

    fn replica(node_id: u64) -> FinalReplica {
        let digest = DigestRead::Made { applied_index: 7, anchors: 3, digest: "aa".to_owned() };
        FinalReplica { node_id, is_voter: true, is_live: true, digest }
    }

    fn shard(shard_id: u64, start: &str, end: &str) -> FinalShard {
        let (start, end) = (start.to_owned(), end.to_owned());
        let replicas = vec![replica(1), replica(2), replica(3)];
        FinalShard { shard_id, start, end, leader: 1, degraded: false, replicas }
    }

    fn healthy() -> FinalState {
        let node = |(node_id, zone): (u64, &str)| FinalNode {
            node_id,
            name: format!("{zone}1"),
            region: "r".to_owned(),
            zone: zone.to_owned(),
        };
        FinalState {
            nodes: [(1, "a"), (2, "b"), (3, "c")].map(node).to_vec(),
            shards: vec![shard(0, "", ""), shard(1, "00", "80"), shard(2, "80", "")],
            waited_ms: 1,
        }
    }

    #[track_caller]
    fn check_broken(change: impl FnOnce(&mut FinalState), invariant: Invariant) {
        let mut state = healthy();
        change(&mut state);
        let findings = check(&state);
        assert_eq!(findings.broken.keys().collect::<Vec<_>>(), [&invariant], "{findings:?}");
    }

    #[test]
    fn a_whole_cluster_is_fine() {
        assert!(check(&healthy()).is_clean());
    }

    #[test]
    fn what_is_not_whole_is_caught() {
        check_broken(|state| state.shards[1].leader = 0, Invariant::OneLeader);
        check_broken(|state| state.shards[1].replicas[0].is_live = false, Invariant::OneLeader);
        check_broken(
            |state| {
                let digest = &mut state.shards[2].replicas[1].digest;
                *digest =
                    DigestRead::Made { applied_index: 7, anchors: 3, digest: "ab".to_owned() };
            },
            Invariant::ReplicasEqual,
        );
        let stack = |state: &mut FinalState| {
            let fourth = FinalNode { node_id: 4, name: "a2".to_owned(), ..state.nodes[0].clone() };
            state.nodes.push(fourth);
            state.shards[1].replicas[2].node_id = 4;
        };
        check_broken(stack, Invariant::ZonesDistinct);
    }

    #[test]
    fn gaps_and_overlaps_of_key_ranges_are_caught() {
        for (start, end) in [("81", ""), ("7f", ""), ("80", "ff")] {
            check_broken(
                |state| state.shards[2] = shard(2, start, end),
                Invariant::KeysCoveredOnce,
            );
        }
        check_broken(|state| state.shards[1] = shard(1, "01", "80"), Invariant::KeysCoveredOnce);
    }

    #[test]
    fn a_digest_that_is_missing_or_of_another_index_leaves_it_open() {
        for digest in [
            DigestRead::Failed("no".to_owned()),
            DigestRead::Made { applied_index: 8, anchors: 3, digest: "ab".to_owned() },
        ] {
            let mut state = healthy();
            state.shards[1].replicas[2].digest = digest;
            let findings = check(&state);
            assert!(findings.broken.is_empty());
            assert_eq!(findings.open.len(), 1);
        }
    }
}
