//! Whether the cluster is whole again after the heal.

use std::collections::{BTreeMap, BTreeSet};

use anchorhold_model::ShardId;

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
    let names: BTreeMap<u64, &str> =
        state.nodes.iter().map(|node| (node.node_id, node.name.as_str())).collect();
    for shard in &state.shards {
        check_leader(shard, &mut findings);
        check_digests(shard, &names, &mut findings);
        check_zones(shard, &zones, &mut findings);
    }
    check_cover(&state.accounts, &state.shards, &mut findings);
    findings
}

/// As operators see it: `s3`.
fn name(shard: &FinalShard) -> String {
    match ShardId(shard.shard_id) {
        ShardId::CATALOG => "the catalog".to_owned(),
        id => format!("shard {id}"),
    }
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

fn check_digests(shard: &FinalShard, names: &BTreeMap<u64, &str>, findings: &mut Findings) {
    let node = |id: u64| names.get(&id).map_or_else(|| id.to_string(), |name| (*name).to_owned());
    findings.check(Invariant::ReplicasEqual, 1);
    let mut digests: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
    for replica in &shard.replicas {
        match &replica.digest {
            DigestRead::Made { applied_index, digest, .. } => {
                digests.entry(*applied_index).or_default().insert(digest);
            }
            DigestRead::Failed(reason) => {
                findings.leave_open(Invariant::ReplicasEqual, || {
                    format!(
                        "node {} gave no digest of {}: {reason}",
                        node(replica.node_id),
                        name(shard)
                    )
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
                    Some(format!("{} {digest} ({anchors} anchors)", node(replica.node_id)))
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

/// Bits of a key below the account's number.
const ACCOUNT_SHIFT: u32 = 96;

/// No two ranges share a key, and every account's keys lie in some range. Keys of no account belong
/// to nobody.
fn check_cover(accounts: &[u32], shards: &[FinalShard], findings: &mut Findings) {
    findings.check(Invariant::KeysCoveredOnce, accounts.len() as u64);
    let mut wrong = |text: String| findings.violate(Invariant::KeysCoveredOnce, || text, Vec::new);
    let mut ranges = Vec::new();
    for shard in shards.iter().filter(|shard| shard.shard_id != 0) {
        match range(shard) {
            Some((first, last)) => ranges.push((first, last, shard)),
            None => wrong(format!("the range of {} is empty or cannot be read", name(shard))),
        }
    }
    ranges.sort_by_key(|(first, last, shard)| (*first, *last, shard.shard_id));
    for pair in ranges.windows(2) {
        let [(_, last, before), (first, _, after)] = pair else { continue };
        if first <= last {
            wrong(format!(
                "{} and {} both hold keys from {} on",
                name(before),
                name(after),
                after.start
            ));
        }
    }
    for account in accounts {
        let mut next = u128::from(*account) << ACCOUNT_SHIFT;
        let end = next | ((1 << ACCOUNT_SHIFT) - 1);
        let mut is_whole = false;
        for (first, last, _) in &ranges {
            if *first <= next && next <= *last {
                is_whole = end <= *last;
                next = last.saturating_add(1);
            }
            if is_whole {
                break;
            }
        }
        if !is_whole {
            wrong(format!("no shard holds the keys of account {account} from {next:032x} on"));
        }
    }
}

/// First and last key of a shard.
fn range(shard: &FinalShard) -> Option<(u128, u128)> {
    let first = u128::from_str_radix(&shard.start, 16).ok()?;
    let last = match shard.end.as_str() {
        "" => u128::MAX,
        end => u128::from_str_radix(end, 16).ok()?.checked_sub(1)?,
    };
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::{FinalNode, FinalReplica};

    const START: u128 = 1 << 96;
    const HALF: u128 = START + (1 << 95);
    const END: u128 = 2 << 96;

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
            accounts: vec![1],
            shards: vec![
                shard(0, "", ""),
                shard(1, &format!("{START:032x}"), &format!("{HALF:032x}")),
                shard(2, &format!("{HALF:032x}"), &format!("{END:032x}")),
            ],
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
    fn gaps_and_overlaps_of_an_accounts_keys_are_caught() {
        let cut =
            |start: u128, end: u128| shard(2, &format!("{start:032x}"), &format!("{end:032x}"));
        for (start, end) in [(HALF + 1, END), (HALF - 1, END), (HALF, END - 1), (HALF, HALF)] {
            check_broken(|state| state.shards[2] = cut(start, end), Invariant::KeysCoveredOnce);
        }
        check_broken(|state| state.accounts.push(2), Invariant::KeysCoveredOnce);
        check_broken(|state| drop(state.shards.remove(1)), Invariant::KeysCoveredOnce);
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
