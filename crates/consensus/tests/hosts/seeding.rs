//! Where a new replica's first snapshot comes from, and what becomes of a transfer that breaks off.

use std::os::unix::fs::FileExt as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anchorhold_consensus::{ConsensusConfig, MemberChange, Replica};
use anchorhold_model::{
    Command, OperationId, ReplicaId, RequestId, ShardDescriptor, ShardId, Write,
};
use anchorhold_proto::peer_v1::peer_client::PeerClient;
use anchorhold_proto::peer_v1::{CallRequest, PeerHello, SnapshotChunk};
use anchorhold_storage::GroupId;
use anchorhold_storage::snapshot::SnapshotStore;
use prost::Message as _;
use serde::Serialize;
use tonic::Code;
use tonic::transport::Endpoint;

use crate::support::{PATIENCE, TestCluster, anchor, eventually};

const NEW_ID: ReplicaId = ReplicaId(1 << 48 | 16);
const ANCHORS: u64 = 350;
/// Bytes of properties in each anchor.
const ANCHOR_BYTES: usize = 3_000;
/// A snapshot has at least so many bytes, and not many more.
const PAYLOAD: u64 = ANCHORS * ANCHOR_BYTES as u64;

/// Four nodes, the last one in the zone of the first; a shard on the first three that the second
/// leads.
async fn with_a_large_shard(config: ConsensusConfig) -> (TestCluster, ShardId) {
    let cluster = TestCluster::start_with(4, config).await;
    let shard = cluster.create_account("one", Vec::new()).await[0];
    let node = cluster.nodes[1].identity.node_id;
    change(&cluster, shard, &MemberChange::TransferLeader { node }).await;
    let leader = replica(&cluster, 1, shard);
    for item in 0..ANCHORS {
        let mut anchor = anchor(item);
        anchor.properties.insert("ballast".into(), "x".repeat(ANCHOR_BYTES));
        let command = Command {
            operation: OperationId { request_id: RequestId(u128::from(item)), item: 0 },
            epoch: leader.state().descriptor.epoch,
            write: Write::Create(Box::new(anchor)),
        };
        // Who took the lead over may refuse until it has heard a quorum.
        while leader.propose(vec![command.clone()], PATIENCE).await.is_err() {
            change(&cluster, shard, &MemberChange::TransferLeader { node }).await;
        }
    }
    (cluster, shard)
}

fn replica(cluster: &TestCluster, number: usize, shard: ShardId) -> std::sync::Arc<Replica> {
    cluster.nodes[number].host().replica(shard).unwrap()
}

/// Makes a change at the leader, as often as it takes.
async fn change(cluster: &TestCluster, shard: ShardId, change: &MemberChange) {
    loop {
        let leader = cluster.leader_of(shard).await;
        let expected = replica(cluster, leader, shard).state().descriptor.epoch;
        let host = cluster.nodes[leader].host();
        if host.change_members(shard, expected, change).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn sent(cluster: &TestCluster, from: usize, to: usize) -> u64 {
    cluster.wires.sent(&cluster.nodes[from].address, &cluster.nodes[to].address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_replica_gets_its_snapshot_from_the_member_in_its_zone() {
    let (cluster, shard) = with_a_large_shard(ConsensusConfig::default()).await;
    let node = cluster.nodes[3].identity.node_id;
    change(&cluster, shard, &MemberChange::AddLearner { node, replica_id: NEW_ID }).await;
    assert!(PAYLOAD < sent(&cluster, 0, 3), "{} bytes from its zone", sent(&cluster, 0, 3));
    assert!(sent(&cluster, 1, 3) < PAYLOAD / 2, "{} from the leader", sent(&cluster, 1, 3));
    eventually("it has everything", || {
        (replica(&cluster, 3, shard).state().anchors == ANCHORS).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_sends_the_snapshot_when_the_nearer_member_cannot() {
    let (cluster, shard) = with_a_large_shard(ConsensusConfig::default()).await;
    let (near, new) = (&cluster.nodes[0].address, &cluster.nodes[3].address);
    cluster.wires.refuse(near, new);
    let node = cluster.nodes[3].identity.node_id;
    change(&cluster, shard, &MemberChange::AddLearner { node, replica_id: NEW_ID }).await;
    assert!(PAYLOAD < sent(&cluster, 1, 3), "{} bytes from the leader", sent(&cluster, 1, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_that_breaks_off_goes_on_where_it_ended() {
    // A chunk, and two seconds until the next one.
    let slow =
        ConsensusConfig { snapshot_bytes_per_second_max: 128 << 10, ..ConsensusConfig::default() };
    let (cluster, shard) = with_a_large_shard(slow).await;
    let node = cluster.nodes[3].identity.node_id;
    let added = MemberChange::AddLearner { node, replica_id: NEW_ID };
    let half = async {
        while sent(&cluster, 0, 3) < PAYLOAD / 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = change(&cluster, shard, &added) => panic!("it was too fast"),
        () = half => {}
    }
    // Its sender ends too: nobody waits for it any more.
    tokio::time::sleep(Duration::from_millis(500)).await;
    change(&cluster, shard, &added).await;
    let bytes = sent(&cluster, 0, 3) + sent(&cluster, 1, 3);
    assert!(bytes < PAYLOAD + PAYLOAD / 4, "{bytes} bytes for {PAYLOAD}");
    eventually("it has everything", || {
        (replica(&cluster, 3, shard).state().anchors == ANCHORS).then_some(())
    })
    .await;
}

/// Has a node make the file of a shard, and spoils a byte in its middle.
async fn with_a_spoilt_file(cluster: &TestCluster, number: usize, shard: ShardId) {
    replica(cluster, number, shard).renew_snapshot().await;
    let group = GroupId { shard: shard.0, incarnation: 1 };
    let file = eventually("its file is there", || {
        let store = SnapshotStore::open(cluster.nodes[number].disk.dir.path()).unwrap();
        store.latest(group).unwrap().filter(|file| PAYLOAD / 2 < file.bytes)
    })
    .await;
    let spoilt = std::fs::OpenOptions::new().read(true).write(true).open(&file.path).unwrap();
    let (at, mut byte) = (file.bytes / 2, [0]);
    spoilt.read_exact_at(&mut byte, at).unwrap();
    spoilt.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_that_was_sent_is_made_anew() {
    let (cluster, shard) = with_a_large_shard(ConsensusConfig::default()).await;
    for number in [0, 1] {
        with_a_spoilt_file(&cluster, number, shard).await;
    }
    let node = cluster.nodes[3].identity.node_id;
    change(&cluster, shard, &MemberChange::AddLearner { node, replica_id: NEW_ID }).await;
    eventually("it has everything", || {
        let found = cluster.nodes[3].host().replica(shard)?;
        (found.state().anchors == ANCHORS).then_some(())
    })
    .await;
}

/// What a leader asks of a node, as it stands on the wire.
#[derive(Serialize)]
enum MemberCall {
    Create { descriptor: ShardDescriptor, replica_id: ReplicaId },
}

/// Receiver, vote (term, replica, whether it leads), digest, length and shard.
type SnapshotHead = (u64, (u64, u64, bool), [u8; 32], u64, Option<ShardDescriptor>);

const MEMBER_CALL: u32 = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_a_later_term_than_its_senders_vote_is_refused_and_ends_nobody() {
    let cluster = TestCluster::start(4).await;
    let shard = cluster.create_account("one", Vec::new()).await[0];
    let id = cluster.write(shard, 1).await;
    let leader = cluster.leader_of(shard).await;
    let held = replica(&cluster, leader, shard);
    held.renew_snapshot().await;
    eventually("there is a snapshot", || held.status().snapshot_index).await;
    let group = GroupId { shard: shard.0, incarnation: 1 };
    let store = SnapshotStore::open(cluster.nodes[leader].disk.dir.path()).unwrap();
    let file = store.latest(group).unwrap().unwrap();
    let descriptor = held.state().descriptor.clone();
    let (from, to) = (&cluster.nodes[leader], &cluster.nodes[3]);
    let hello = PeerHello {
        cluster_id: from.identity.cluster_id.to_be_bytes().to_vec().into(),
        cluster_epoch: u32::from(from.identity.cluster_epoch),
        node_id: from.identity.node_id.0,
        target_node_id: to.identity.node_id.0,
        format_version: 2,
        address: String::new(),
    };
    let hello: bytes::Bytes = hello.encode_to_vec().into();
    let address = Endpoint::from_shared(format!("http://{}", to.address)).unwrap();
    let mut peer = PeerClient::new(address.connect().await.unwrap());
    let shown = Some(descriptor.clone());
    let create = MemberCall::Create { descriptor, replica_id: NEW_ID };
    let content = postcard::to_stdvec(&create).unwrap().into();
    peer.call(CallRequest { hello: hello.clone(), kind: MEMBER_CALL, content }).await.unwrap();
    let term = file.header.position.unwrap().term;
    let head: SnapshotHead = (NEW_ID.0, (term - 1, 1, true), file.digest.0, file.bytes, shown);
    let chunk = SnapshotChunk {
        shard_id: shard.0,
        incarnation: 1,
        header: postcard::to_stdvec(&head).unwrap().into(),
        hello,
        ..SnapshotChunk::default()
    };
    let data = std::fs::read(&file.path).unwrap().into();
    let whole = SnapshotChunk { data, last: true, ..SnapshotChunk::default() };
    let sent = peer.install_snapshot(futures::stream::iter([chunk, whole])).await;
    assert_eq!(sent.unwrap_err().code(), Code::FailedPrecondition);
    let node = to.identity.node_id;
    change(&cluster, shard, &MemberChange::AddLearner { node, replica_id: NEW_ID }).await;
    eventually("it has the anchor", || replica(&cluster, 3, shard).anchor(id).unwrap()).await;
    assert!(!to.ended.0.load(Ordering::SeqCst), "the node has ended");
}
