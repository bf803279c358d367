//! Shards that grow too large are split; once each, whoever dies meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anchorhold_model::catalog::{CatalogCommand, Operator, Reason, Step};
use anchorhold_model::{Epoch, ShardId, Timestamp};
use anchorhold_proto::admin_v1::ExplainPlanRequest;
use anchorhold_server::NodeConfig;
use anchorhold_server::core::Core;

use crate::cluster::{Cluster, eventually};
use crate::healing::{read_all, write};

/// Longest wait for one catalog command.
const CATALOG_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) fn quick(config: &mut NodeConfig) {
    let placement = &mut config.placement;
    placement.interval_ms = 200;
    placement.suspect_ms = 1_500;
    placement.steady_ms = 500;
    placement.split_settle_ms = 1_000;
}

pub(crate) fn core(cluster: &Cluster, node: usize) -> Arc<Core> {
    Arc::clone(cluster.nodes[node].as_ref().unwrap().core())
}

/// Every shard with its epoch and its anchors as its leader counts them; nothing without a leader.
pub(crate) async fn shards(core: &Arc<Core>) -> Option<Vec<(ShardId, Epoch, u64)>> {
    let survey = core.survey().await;
    let shards = survey.shards();
    let each = shards.iter().map(|shard| {
        let (_, leader) = shard.leader?;
        Some((shard.descriptor.shard_id, shard.descriptor.epoch, leader.anchors))
    });
    each.collect()
}

async fn wait_for_shards(core: &Arc<Core>, anchors: u64, anchors_max: u64) -> usize {
    eventually("every shard is small", || async {
        let shards = shards(core).await?;
        let sum: u64 = shards.iter().map(|(_, _, anchors)| anchors).sum();
        let is_small = shards.iter().all(|(_, _, anchors)| *anchors <= anchors_max);
        (sum == anchors && is_small && core.catalog().operators.is_empty()).then_some(shards.len())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_too_large_is_split_until_none_is() {
    let mut cluster = Cluster::start_with(3, |config| {
        quick(config);
        config.placement.split_anchors = 40;
    })
    .await;
    let key = cluster.account("one", 1).await;
    let ids = write(&cluster, &key, 150, 1).await;
    let core = core(&cluster, 0);
    let count = wait_for_shards(&core, 150, 40).await;
    assert!((4..=12).contains(&count), "halves, not crumbs: {count}");
    read_all(&cluster, 1, &key, &ids).await;
    // And then it rests: nothing is left to do.
    let plan = cluster.placement(1).explain_plan(ExplainPlanRequest {}).await.unwrap().into_inner();
    let splits = plan.operators.iter().filter(|operator| operator.steps == ["split"]);
    assert_eq!(splits.count(), 0, "{plan:?}");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plan_says_which_shard_waits_before_it_is_split_again() {
    let mut cluster = Cluster::start_with(3, |config| {
        quick(config);
        config.placement.split_anchors = 40;
        config.placement.split_settle_ms = 600_000;
    })
    .await;
    let key = cluster.account("one", 1).await;
    let ids = write(&cluster, &key, 120, 1).await;
    // Each side of the first split is too large still; every node says why they stay so.
    for node in 0..3 {
        eventually("two shards wait", || {
            let mut placement = cluster.placement(node);
            async move {
                let plan = placement.explain_plan(ExplainPlanRequest {}).await.ok()?.into_inner();
                let waiting = plan.refusals.iter();
                let waiting: BTreeSet<u64> = waiting
                    .filter(|refusal| {
                        (&*refusal.need, &*refusal.cause) == ("too large", "settling")
                    })
                    .map(|refusal| refusal.shard_id)
                    .collect();
                (waiting.len() == 2).then_some(())
            }
        })
        .await;
    }
    assert_eq!(shards(&core(&cluster, 0)).await.unwrap().len(), 2);
    read_all(&cluster, 2, &key, &ids).await;
    cluster.stop_all().await;
}

fn split_of(shard_id: ShardId, epoch: Epoch) -> CatalogCommand {
    let operator = Operator {
        shard_id,
        epoch,
        steps: vec![Step::Split],
        reason: Reason::SplitSize,
        live_voters: 3,
    };
    CatalogCommand::StartOperators { operators: vec![operator], deadline: Timestamp(u64::MAX) }
}

pub(crate) async fn start(core: &Arc<Core>, command: CatalogCommand) {
    eventually("the catalog takes an operator", || async {
        core.host.propose_catalog(command.clone(), CATALOG_TIMEOUT).await.ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_happens_once_however_the_catalogs_leader_ends_before_it_is_done() {
    let mut cluster = Cluster::start_with(3, |config| {
        quick(config);
        // None but those that are asked for here.
        config.placement.split_anchors = 0;
        config.placement.split_load = 0;
        config.placement.split_bytes = 0;
    })
    .await;
    let key = cluster.account("one", 1).await;
    let ids = write(&cluster, &key, 64, 1).await;
    for round in 0..5 {
        let asked = core(&cluster, round % 3);
        // This node may yet have to hear of the last round's.
        let before = eventually("all shards are known and led", || async {
            shards(&asked).await.filter(|shards| shards.len() == round + 1)
        })
        .await;
        let (shard_id, epoch, _) = *before.iter().max_by_key(|(_, _, anchors)| *anchors).unwrap();
        start(&asked, split_of(shard_id, epoch)).await;
        drop(asked);
        // Sometimes before anything is done, sometimes after the split, before that is noted.
        tokio::time::sleep(Duration::from_millis(60 * round as u64)).await;
        let leader = eventually("somebody leads the catalog", || async {
            cluster.nodes.iter().position(|node| {
                node.as_ref().is_some_and(|node| node.core().host.catalog_replica().is_leader())
            })
        })
        .await;
        cluster.stop(leader).await;
        cluster.restart(leader).await;
        let core = core(&cluster, round % 3);
        eventually("the split is made and noted", || async {
            let found = shards(&core).await?;
            assert!(found.len() <= before.len() + 1, "round {round}: {before:?}, then {found:?}");
            let is_noted = core.catalog().operators.is_empty();
            (is_noted && found.len() == before.len() + 1).then_some(())
        })
        .await;
        // The same operator once more, of the old epoch: it is over, not done again.
        start(&core, split_of(shard_id, epoch)).await;
        eventually("the operator of the old epoch is over", || async {
            core.catalog().operators.is_empty().then_some(())
        })
        .await;
        assert_eq!(core.catalog().shards.len(), before.len() + 1, "round {round}");
    }
    read_all(&cluster, 1, &key, &ids).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_split_is_given_up_and_left_alone() {
    let mut cluster = Cluster::start_with(3, quick).await;
    cluster.account("one", 1).await;
    let core = core(&cluster, 0);
    let (shard_id, epoch, _) = eventually("the shard is led", || shards(&core)).await[0];
    start(&core, split_of(shard_id, epoch)).await;
    eventually("the operator is given up", || async {
        core.catalog().operators.is_empty().then_some(())
    })
    .await;
    let after = shards(&core).await.unwrap();
    assert_eq!((after.len(), after[0].1), (1, epoch), "an empty shard has no middle");
    // Whichever node is asked says that nothing is done for it for now.
    eventually("the shard rests", || {
        let mut placement = cluster.placement(1);
        async move {
            let plan = placement.explain_plan(ExplainPlanRequest {}).await.ok()?.into_inner();
            let rests = |refusal: &anchorhold_proto::admin_v1::Refusal| {
                (refusal.shard_id, &*refusal.cause) == (shard_id.0, "resting")
            };
            plan.refusals.iter().any(rests).then_some(())
        }
    })
    .await;
    drop(core);
    cluster.stop_all().await;
}
