//! Digests of replicas at one index, beside writes.

use std::ops::ControlFlow;
use std::time::Duration;

use anchorhold_consensus::{DigestError, ReplicaDigest};
use anchorhold_model::ShardId;
use anchorhold_storage::{Batch, StateStore as _};

use crate::support::{PATIENCE, TestCluster, eventually};

/// All replicas' digests as of an index.
async fn digests_at(
    cluster: &TestCluster,
    shard: ShardId,
    index: u64,
) -> Vec<Result<ReplicaDigest, DigestError>> {
    let asked = cluster.nodes.iter().map(|node| async move {
        let replica = node.host().replica(shard).unwrap();
        replica.digest(Some(index), PATIENCE, 1 << 30).await
    });
    futures::future::join_all(asked).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_are_written_to_are_equal_at_one_index_and_a_changed_row_shows() {
    let cluster = TestCluster::start(3).await;
    let shard = cluster.create_account("a", Vec::new()).await[0];
    for item in 0..100 {
        cluster.write(shard, item).await;
    }
    let leader = cluster.leader_of(shard).await;
    let replica = cluster.nodes[leader].host().replica(shard).unwrap();
    let index = replica.status().last_index.unwrap() + 20;
    // The writes carry every replica over the index while it waits, and on while it reads.
    let writes = async {
        for item in 100..160 {
            cluster.write(shard, item).await;
        }
    };
    let (found, ()) = tokio::join!(digests_at(&cluster, shard, index), writes);
    let found: Vec<_> = found.into_iter().map(Result::unwrap).collect();
    assert!(found.iter().all(|one| one.applied_index == index), "{found:?}");
    assert!(found.iter().all(|one| *one == found[0]), "{found:?}");
    assert!((100..160).contains(&found[0].anchors), "{found:?}");

    // What is over is over, and a cut is given back however a digest ends.
    let passed = replica.digest(Some(index), Duration::from_millis(1), 1 << 30).await;
    assert!(matches!(passed, Err(DigestError::Passed { .. })), "{passed:?}");
    let early = replica.digest(Some(index + 10_000), Duration::from_millis(50), 1 << 30).await;
    assert!(matches!(early, Err(DigestError::NotReached)), "{early:?}");
    let (one, other) = tokio::join!(
        replica.digest(None, PATIENCE, 1 << 30),
        replica.digest(None, PATIENCE, 1 << 30)
    );
    assert!(one.is_ok());
    assert!(matches!(other, Err(DigestError::Busy)), "{other:?}");

    // Somebody changes one row of one replica behind its back.
    let last = replica.status().last_index.unwrap();
    let end = cluster.write(shard, 500).await;
    let last = eventually("the write is applied everywhere", || {
        let all = cluster.nodes.iter().map(|node| node.host().replica(shard).unwrap());
        let applied: Vec<_> = all.map(|one| one.anchor(end).unwrap().is_some()).collect();
        applied.iter().all(|is| *is).then(|| replica.status().last_index.unwrap().max(last))
    })
    .await;
    let state = &cluster.nodes[(leader + 1) % 3].disk.state;
    let mut row = None;
    state
        .scan(&[0][..]..&[u8::MAX; 32][..], &mut |key, value| {
            if value.windows(4).any(|part| part == b"item") {
                row = Some((key.to_vec(), value.to_vec()));
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    let (key, mut value) = row.unwrap();
    let middle = value.len() / 2;
    value[middle] ^= 1;
    state.commit(Batch { rows: vec![(key, Some(value))] }).unwrap();
    let found = digests_at(&cluster, shard, last).await;
    let found: Vec<_> = found.into_iter().map(Result::unwrap).collect();
    let odd = (leader + 1) % 3;
    for (number, one) in found.iter().enumerate() {
        assert_eq!(one.digest == found[leader].digest, number != odd, "{found:?}");
    }
}
