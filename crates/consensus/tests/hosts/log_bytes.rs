//! The bounds of one shard's log in bytes: beyond the first it is snapshot and purged, at the second
//! it takes no more data until it has shrunk.

use std::time::Duration;

use anchorhold_consensus::{ConsensusConfig, ProposeError};
use anchorhold_model::{Outcome, Rejection, ShardId, Write};
use anchorhold_storage::DiskState;
use anchorhold_storage::LogStore as _;

use crate::fitness::try_write;
use crate::support::{PATIENCE, TestCluster, TestNode, anchor, eventually};

/// The bound under test.
const BYTES_MAX: u64 = 64 << 10;
/// A property of an anchor holds at most about this many bytes.
const FILLING_BYTES: usize = 3_900;
/// So many anchors are well beyond the bound.
const ANCHORS: u64 = 2 * BYTES_MAX / FILLING_BYTES as u64;

/// What a snapshot on a disk with little room has to give back at least.
const SCARCE_BYTES: u64 = 1 << 20;

/// A shard's log is never made shorter for the number of its entries.
fn no_bounds() -> ConsensusConfig {
    ConsensusConfig {
        snapshot_entries: 1_000_000,
        snapshot_entries_kept: 1_000_000,
        snapshot_log_bytes: u64::MAX,
        shard_log_bytes_max: u64::MAX,
        checkpoint_interval_ms: 20,
        ..ConsensusConfig::default()
    }
}

fn log_bytes(node: &TestNode, shard: ShardId) -> u64 {
    let groups = node.disk.log.groups();
    let group = groups.into_iter().find(|group| group.shard == shard.0);
    group.map_or(0, |group| node.disk.log.group_bytes(group))
}

fn large(item: u64) -> Write {
    let mut anchor = anchor(item);
    anchor.properties.insert("filling".into(), "x".repeat(FILLING_BYTES));
    Write::Create(Box::new(anchor))
}

/// Tries a large write until it has an outcome; `Busy` is one.
async fn create(cluster: &TestCluster, shard: ShardId, item: u64) -> Result<(), ProposeError> {
    let tried = async {
        loop {
            match try_write(cluster, shard, u128::from(item), large(item)).await {
                Ok(Outcome::Written { .. }) => return Ok(()),
                Ok(other) => panic!("not written: {other:?}"),
                Err(error @ ProposeError::Busy { .. }) => return Err(error),
                Err(ProposeError::NotLeader { .. } | ProposeError::OutcomeUnknown { .. }) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, tried).await.expect("a write without an outcome")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_many_bytes_is_purged_on_every_node_however_few_its_entries_are() {
    let config = ConsensusConfig { snapshot_log_bytes: BYTES_MAX, ..no_bounds() };
    let cluster = TestCluster::start_with(3, config).await;
    let shard = cluster.create_account("a", Vec::new()).await[0];
    for item in 0..ANCHORS {
        create(&cluster, shard, item).await.unwrap();
    }
    for node in &cluster.nodes {
        eventually("its log is short", || (log_bytes(node, shard) < BYTES_MAX).then_some(())).await;
        let replica = node.host().replica(shard).unwrap();
        eventually("all is applied", || replica.anchor(anchor(ANCHORS - 1).id).unwrap()).await;
        for item in 0..ANCHORS {
            assert!(replica.anchor(anchor(item).id).unwrap().is_some(), "{item} went with the log");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_with_little_room_gets_that_of_logs_back_which_are_not_large_otherwise() {
    let cluster = TestCluster::start_with(1, no_bounds()).await;
    let shard = cluster.create_account("a", Vec::new()).await[0];
    let items = SCARCE_BYTES / FILLING_BYTES as u64 + 10;
    for item in 0..items {
        create(&cluster, shard, item).await.unwrap();
    }
    let node = &cluster.nodes[0];
    let (host, all) = (node.host(), log_bytes(node, shard));
    assert!(SCARCE_BYTES < all);
    host.set_disk_state(DiskState::AlmostFull, u64::MAX);
    stays_as_long(node, shard, "a file as large as the log that it shortens gives nothing back")
        .await;

    host.set_disk_state(DiskState::Normal, u64::MAX);
    for item in 0..items {
        let id = anchor(item).id;
        let delete = Write::Delete { id, if_version: None };
        try_write(&cluster, shard, u128::from(items + item), delete).await.unwrap();
    }
    stays_as_long(node, shard, "nothing makes it shorter while there is room").await;
    let rows = host.replica(shard).unwrap().state().bytes;
    host.set_disk_state(DiskState::AlmostFull, rows);
    stays_as_long(node, shard, "the file would fill the disk").await;
    host.set_disk_state(DiskState::AlmostFull, rows + 1);
    eventually("its log is short", || (log_bytes(node, shard) < SCARCE_BYTES).then_some(())).await;
}

/// Checks that a shard's log is no shorter some rounds of upkeep later.
async fn stays_as_long(node: &TestNode, shard: ShardId, why: &str) {
    let before = log_bytes(node, shard);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(before <= log_bytes(node, shard), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_at_its_bound_takes_no_data_until_it_has_shrunk() {
    let config = ConsensusConfig {
        shard_log_bytes_max: BYTES_MAX,
        // What makes room again are entries that are taken in spite of the bound.
        snapshot_entries: 200,
        snapshot_entries_kept: 0,
        ..no_bounds()
    };
    let cluster = TestCluster::start_with(1, config).await;
    let shard = cluster.create_account("a", Vec::new()).await[0];
    let mut written = 0;
    let refused = async {
        while create(&cluster, shard, written).await.is_ok() {
            written += 1;
            assert!(written < 10 * ANCHORS, "nothing is refused");
            // The bound is looked at once per checkpoint.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("never refused");
    assert!(BYTES_MAX <= log_bytes(&cluster.nodes[0], shard), "refused too early");
    for number in 0..200 {
        let delete = Write::Delete { id: anchor(1_000_000).id, if_version: None };
        let outcome = try_write(&cluster, shard, 10_000 + number, delete).await.unwrap();
        assert!(matches!(outcome, Outcome::Rejected(Rejection::AnchorNotFound)), "{outcome:?}");
    }
    let taken_again = async {
        while create(&cluster, shard, written).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, taken_again).await.expect("it is full for ever");
    assert!(log_bytes(&cluster.nodes[0], shard) < BYTES_MAX);
}
