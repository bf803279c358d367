//! Tells the catalog what shards say about themselves, so that its index follows splits and
//! membership changes. Each leader tells of its own shards; the index can be made anew from that.
//!
//! Both sides of a split are told in one command: the catalog never shows a gap.

use std::collections::BTreeMap;
use std::time::Duration;

use anchorhold_model::catalog::{CatalogCommand, CatalogOutcome, CatalogState};
use anchorhold_model::{KeyRange, ShardDescriptor, ShardId};

use crate::host::Host;

/// How often the catalog's index is compared with the shards that are led here, if nothing asks
/// for it sooner.
const INTERVAL: Duration = Duration::from_millis(200);
/// Every so many times with those that rest too: what they say has not changed since.
const LOOKS_PER_ROUND: u32 = 5;
/// Longest wait for the catalog.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Descriptors that one command carries, at most.
const DESCRIPTORS_MAX: usize = 256;

/// Keeps the catalog's index up to date while the node runs.
pub(crate) async fn keep(host: Host) {
    let mut look = 0_u32;
    loop {
        drop(tokio::time::timeout(INTERVAL, host.births().told.notified()).await);
        look = look.wrapping_add(1);
        tell(&host, look.is_multiple_of(LOOKS_PER_ROUND)).await;
    }
}

async fn tell(host: &Host, is_round: bool) {
    let catalog = host.catalog().borrow().clone();
    let replicas = host.replicas();
    let led = replicas
        .iter()
        .filter(|replica| (is_round || !replica.is_quiesced()) && replica.is_leader());
    let led: Vec<ShardDescriptor> = led.map(|replica| replica.state().descriptor.clone()).collect();
    let here = std::iter::once_with(|| host.descriptors()).flatten();
    let descriptors = news(&catalog, &led, here);
    if descriptors.is_empty() {
        return;
    }
    let command = CatalogCommand::UpdateShards { descriptors };
    match host.propose_catalog(command, TIMEOUT).await {
        Ok(CatalogOutcome::Rejected(rejection)) => {
            tracing::warn!(%rejection, "the catalog does not take what shards say");
        }
        Ok(_) => {}
        Err(error) => tracing::debug!(%error, "the catalog's shard index waits"),
    }
}

/// What the catalog does not know yet: of the shards led here, and of those beside them that took
/// over a part of what the catalog thinks is theirs.
fn news(
    catalog: &CatalogState,
    led: &[ShardDescriptor],
    here: impl Iterator<Item = ShardDescriptor>,
) -> Vec<ShardDescriptor> {
    let is_news = |shard: &ShardDescriptor| {
        !catalog.removed_shards.contains(&shard.shard_id)
            && catalog.shards.get(&shard.shard_id).is_none_or(|known| known.epoch < shard.epoch)
    };
    let changed: Vec<&ShardDescriptor> = led.iter().filter(|shard| is_news(shard)).collect();
    if changed.is_empty() {
        return Vec::new();
    }
    let known = changed.iter().filter_map(|shard| catalog.shards.get(&shard.shard_id));
    let known: Vec<KeyRange> = known.map(|shard| shard.range).collect();
    let mut news: BTreeMap<ShardId, ShardDescriptor> = BTreeMap::new();
    let beside = here.filter(|shard| known.iter().any(|range| range.overlaps(&shard.range)));
    for shard in beside.filter(is_news).chain(changed.into_iter().cloned()) {
        let newest = news.entry(shard.shard_id).or_insert_with(|| shard.clone());
        if newest.epoch < shard.epoch {
            *newest = shard;
        }
    }
    news.into_values().take(DESCRIPTORS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use anchorhold_model::catalog::CatalogChange;
    use anchorhold_model::{ClassId, Key, NodeId};

    use super::*;

    #[test]
    fn both_sides_of_a_split_are_told_together_by_whoever_leads_one_of_them() {
        let mut catalog = CatalogState::default();
        let whole = ShardDescriptor::found(ShardId(1), KeyRange::FULL, ClassId(1), &[NodeId(1)]);
        catalog.absorb(&CatalogChange::Shard(whole.clone()));
        let here =
            |shards: &[&ShardDescriptor]| shards.iter().copied().cloned().collect::<Vec<_>>();
        assert!(news(&catalog, &here(&[&whole]), here(&[&whole]).into_iter()).is_empty());
        let (parent, child) = whole.split(Key(50), ShardId(2));
        let both = here(&[&parent, &child]);
        assert_eq!(news(&catalog, &both[..1], both.clone().into_iter()), both);
        assert_eq!(news(&catalog, &[], both.clone().into_iter()), []);
        for shard in &both {
            catalog.absorb(&CatalogChange::Shard(shard.clone()));
        }
        assert_eq!(news(&catalog, &both, both.clone().into_iter()), []);
    }
}
