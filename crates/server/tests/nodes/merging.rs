//! Neighbours that have become small are merged; whoever dies meanwhile, and on the same nodes first.

use std::sync::Arc;
use std::time::Duration;

use anchorhold_model::catalog::{CatalogCommand, Operator, Reason, Step};
use anchorhold_model::{MergeStep, RequestId, ShardId, Timestamp};
use anchorhold_server::NodeConfig;
use anchorhold_server::core::Core;
use anchorhold_server::request::{Level, Read, ShardCall, ShardError, ShardRequest};

use crate::cluster::{Cluster, eventually};
use crate::healing::{read_all, write};
use crate::splitting::{core, quick, shards, start};

/// No merge but those that are asked for.
fn by_hand(config: &mut NodeConfig) {
    quick(config);
    config.placement.split_anchors = 0;
    config.placement.split_load = 0;
    config.placement.split_bytes = 0;
}

fn by_itself(config: &mut NodeConfig) {
    by_hand(config);
    config.placement.merges = true;
    config.placement.merge_settle_ms = 1_000;
    config.placement.settle_ms = 1_000;
}

/// All shards, by key, once each is known and led.
async fn in_order(core: &Arc<Core>, count: usize) -> Vec<ShardId> {
    eventually("all shards are known and led", || async {
        shards(core).await.filter(|shards| shards.len() == count)
    })
    .await;
    let catalog = core.catalog();
    let mut all: Vec<_> = catalog.shards.values().collect();
    all.sort_by_key(|shard| shard.range.start);
    all.into_iter().map(|shard| shard.shard_id).collect()
}

fn merge_of(core: &Core, source: ShardId, target: ShardId) -> CatalogCommand {
    let operator = Operator {
        shard_id: source,
        epoch: core.catalog().shards[&source].epoch,
        steps: vec![Step::MergeInto(target)],
        reason: Reason::Merge,
        live_voters: 3,
    };
    CatalogCommand::StartOperators { operators: vec![operator], deadline: Timestamp(u64::MAX) }
}

#[tokio::test(flavor = "multi_thread")]
async fn small_neighbours_are_merged_until_one_is_left() {
    let mut cluster = Cluster::start_with(3, by_itself).await;
    let key = cluster.account("one", 5).await;
    let ids = write(&cluster, &key, 100, 1).await;
    let core = core(&cluster, 0);
    in_order(&core, 1).await;
    read_all(&cluster, 1, &key, &ids).await;
    let (anchors, catalog) = (shards(&core).await.unwrap()[0].2, core.catalog());
    assert_eq!((anchors, catalog.merged_shards.len()), (100, 4));
    drop((catalog, core));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbours_on_other_nodes_move_together_first() {
    let mut cluster = Cluster::start_with(5, by_itself).await;
    let key = cluster.account("one", 6).await;
    let ids = write(&cluster, &key, 60, 1).await;
    let core = core(&cluster, 0);
    in_order(&core, 1).await;
    read_all(&cluster, 1, &key, &ids).await;
    drop(core);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_happens_once_however_nodes_end_before_it_is_done() {
    let mut cluster = Cluster::start_with(3, by_hand).await;
    let key = cluster.account("one", 6).await;
    let ids = write(&cluster, &key, 90, 1).await;
    for round in 0..5 {
        let asked = core(&cluster, round % 3);
        let before = in_order(&asked, 6 - round).await;
        let (target, source) = (before[0], before[1]);
        start(&asked, merge_of(&asked, source, target)).await;
        drop(asked);
        tokio::time::sleep(Duration::from_millis(40 * round as u64)).await;
        // In turn the node that leads the catalog, the source, the target.
        let leads = |core: &Core| match round % 3 {
            0 => core.host.catalog_replica().is_leader(),
            1 => core.host.replica(source).is_some_and(|replica| replica.is_leader()),
            _ => core.host.replica(target).is_some_and(|replica| replica.is_leader()),
        };
        let nodes = cluster.nodes.iter();
        let victim = nodes.flatten().position(|node| leads(node.core())).unwrap_or(round % 3);
        cluster.stop(victim).await;
        cluster.restart(victim).await;
        let core = core(&cluster, (victim + 1) % 3);
        eventually("the merge is made and noted", || async {
            let catalog = core.catalog();
            (catalog.operators.is_empty() && catalog.is_part_of(source, target)).then_some(())
        })
        .await;
        in_order(&core, 5 - round).await;
    }
    read_all(&cluster, 1, &key, &ids).await;
    cluster.stop_all().await;
}

/// A node that began a merge and ended before it could end it, and whose operator is given up.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_nobody_ends_is_undone() {
    let mut cluster = Cluster::start_with(3, by_hand).await;
    let key = cluster.account("one", 2).await;
    let ids = write(&cluster, &key, 40, 1).await;
    let any = core(&cluster, 0);
    let [target, source] = in_order(&any, 2).await[..] else { panic!("two shards") };
    let merge = RequestId(7);
    let take = async |shard: ShardId, step: MergeStep| {
        eventually("the step is taken", || async {
            for node in cluster.nodes.iter().flatten() {
                let host = &node.core().host;
                let epoch = any.catalog().shards[&shard].epoch;
                let timeout = Duration::from_secs(2);
                if host.merge_step(shard, epoch, step.clone(), timeout).await.is_ok() {
                    return Some(());
                }
            }
            None
        })
        .await;
    };
    take(target, MergeStep::Await { merge, source }).await;
    take(source, MergeStep::Freeze { merge, target }).await;
    assert!(0 < refused_while_frozen(&any, source, target).await, "it was never seen frozen");
    eventually("both go on", || async {
        let states = cluster.nodes.iter().flatten().flat_map(|node| node.core().host.replicas());
        let mut parts = states.map(|replica| replica.state().merging);
        parts.all(|part| part.is_none()).then_some(())
    })
    .await;
    let mut all = ids;
    all.extend(write(&cluster, &key, 40, 1_000).await);
    read_all(&cluster, 1, &key, &all).await;
    assert_eq!(in_order(&any, 2).await, [target, source]);
    drop(any);
    cluster.stop_all().await;
}

/// Reads a shard at every level until it is not frozen any more, or the shard beside it answers: a
/// frozen one answers nothing. How often it was asked so.
async fn refused_while_frozen(core: &Arc<Core>, frozen: ShardId, other: ShardId) -> u32 {
    let read = async |shard: ShardId, level: Level| {
        let descriptor = core.host.replica(shard).unwrap().state().descriptor.clone();
        let read = Read { level, at_least: None };
        let call = ShardCall {
            shard,
            epoch: descriptor.epoch,
            range: descriptor.range,
            budget_ms: 1_000,
            request: ShardRequest::Get { ids: Vec::new(), read },
        };
        core.serve(call, &core.deadline(Duration::from_secs(1))).await
    };
    let is_frozen = || core.host.replica(frozen).is_some_and(|one| one.state().is_frozen());
    eventually("the freeze is applied here", || async { is_frozen().then_some(()) }).await;
    let mut refused = 0;
    for level in [Level::Local, Level::Linearizable] {
        let answer = read(frozen, level).await;
        if is_frozen() {
            assert_eq!(answer.unwrap_err(), ShardError::Merging, "{level:?}");
            refused += 1;
        }
    }
    // The one that waits serves on.
    read(other, Level::Local).await.unwrap();
    refused
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_merged_is_given_up() {
    let mut cluster = Cluster::start_with(3, by_hand).await;
    cluster.account("one", 3).await;
    let core = core(&cluster, 0);
    let order = in_order(&core, 3).await;
    // Not beside each other.
    start(&core, merge_of(&core, order[2], order[0])).await;
    eventually("the operator is given up", || async {
        core.catalog().operators.is_empty().then_some(())
    })
    .await;
    assert_eq!(in_order(&core, 3).await, order);
    drop(core);
    cluster.stop_all().await;
}
