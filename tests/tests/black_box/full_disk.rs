//! Disks run full under real processes: nothing acknowledged is lost, deletes work, and service is
//! back by itself once there is room.

use std::collections::BTreeSet;
use std::time::Duration;

use anchorhold_proto::{Reason, admin_v1, reason_of, v1};
use anchorhold_tests::cluster::{TestAccount, TestCluster};
use anchorhold_tests::rpc::{geo_anchor, linearizable, request_id};
use anchorhold_tests::small_disks::SmallDisks;
use anchorhold_tests::wait::until;

/// For disks of [`DISK_MEBIBYTES`]: two segments of the log take 32 of them, the ballast 16.
const SMALL: &str = "[disk]\nalmost_full_bytes = 41943040\nfull_bytes = 12582912\n\
                     ballast_bytes = 16777216\ncheck_interval_ms = 50\n\
                     [consensus]\ncheckpoint_interval_ms = 200\n";
const DISK_MEBIBYTES: u32 = 160;
const LEFT_FOR_THE_LOAD: u64 = 45 << 20;
/// Checkpoints that a state on a disk without a byte has to put off.
const CHECKPOINTS: u32 = 4;
const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(250);

/// The ids that were acknowledged and not deleted.
struct Kept {
    ids: BTreeSet<String>,
}

impl Kept {
    /// Stores fat anchors until the cluster says that its disks are full.
    async fn write_until_refused(&mut self, cluster: &TestCluster, account: &TestAccount) {
        for _ in 0..4_000 {
            let anchors: Vec<_> = (0..50).map(fat_anchor).collect();
            let id = request_id();
            let rpc = cluster.account_rpc(0, account);
            let stored = until("an outcome", || async {
                match rpc.create_all(anchors.clone(), &id).await {
                    Ok((stored, _)) => Ok(Some(stored)),
                    Err(status) if is_disk_full(&status) => Ok(None),
                    Err(status) => Err(status),
                }
            })
            .await;
            match stored {
                Some(stored) => self.ids.extend(stored.into_iter().map(|anchor| anchor.id)),
                None => return,
            }
        }
        panic!("the disks never ran full");
    }

    async fn delete(&mut self, cluster: &TestCluster, account: &TestAccount, count: usize) {
        for _ in 0..count {
            let id = self.ids.pop_first().expect("something is left");
            let (rpc, request) = (cluster.account_rpc(1, account), request_id());
            until("a delete on full disks", || rpc.delete(&id, "", &request)).await;
        }
    }

    /// Compares what the cluster holds with what it acknowledged. A refused batch may have been
    /// stored in part: an item that was never acknowledged may be there.
    async fn check(&self, cluster: &TestCluster, account: &TestAccount, gone: &BTreeSet<String>) {
        let rpc = cluster.account_rpc(2, account);
        let mut request = v1::ListAnchorsRequest {
            page_size: 1_000,
            read: Some(linearizable()),
            ..Default::default()
        };
        let mut found = BTreeSet::new();
        loop {
            let page = until("a listing", || rpc.list(request.clone())).await;
            found.extend(page.anchors.into_iter().map(|anchor| anchor.id));
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        let lost: Vec<_> = self.ids.difference(&found).collect();
        assert!(lost.is_empty(), "{} of {} lost: {:?}", lost.len(), self.ids.len(), lost.first());
        let back: Vec<_> = gone.intersection(&found).collect();
        assert!(back.is_empty(), "{} deleted anchors are back", back.len());
    }
}

fn fat_anchor(number: i32) -> v1::Anchor {
    let mut anchor = geo_anchor(47.0, 8.0 + f64::from(number) * 1e-4, 0.0);
    anchor.properties.insert("filling".to_owned(), "x".repeat(3_900));
    anchor
}

/// Whether a status, or an item of a batch in one, says that the disks are full.
fn is_disk_full(status: &tonic::Status) -> bool {
    reason_of(status) == Some(Reason::DiskFull) || status.message().starts_with("DISK_FULL")
}

/// Waits until every node says that its disk is in a state.
async fn wait_for_disks(cluster: &TestCluster, expected: admin_v1::DiskState) {
    wait_for_disks_of(cluster, 3, expected).await;
}

/// Waits until so many nodes say that their disk is in a state. Data is refused as soon as no
/// majority has room: the third disk may have some left.
async fn wait_for_disks_of(cluster: &TestCluster, count: usize, expected: admin_v1::DiskState) {
    until("the disks' state", || async {
        let admin = cluster.admin(0);
        let nodes = admin.clusters().list_nodes(admin.request(Default::default())).await;
        let nodes = nodes.map_err(|status| status.to_string())?.into_inner().nodes;
        let states: Vec<_> = nodes.iter().map(admin_v1::Node::disk).collect();
        let found = states.iter().filter(|state| **state == expected).count();
        if count <= found { Ok(()) } else { Err(format!("{states:?}")) }
    })
    .await;
}

async fn restart_all(cluster: &mut TestCluster) {
    for index in 0..3 {
        // One whose engine met the full disk has ended by itself, as a supervisor would see.
        drop(cluster.kill(index));
    }
    for index in 0..3 {
        cluster.restart(index).unwrap();
    }
}

async fn write_one(cluster: &TestCluster, account: &TestAccount, kept: &mut Kept) {
    let (rpc, id) = (cluster.account_rpc(0, account), request_id());
    let stored = until("a write", || rpc.create(fat_anchor(1), &id)).await;
    kept.ids.insert(stored.anchor.expect("the anchor").id);
}

#[tokio::test(flavor = "multi_thread")]
async fn small_disks_run_full_and_nothing_is_lost_and_service_comes_back_by_itself() {
    let Some(disks) = SmallDisks::mount(DISK_MEBIBYTES).await.unwrap() else {
        eprintln!("this kernel gives no user namespaces: a bound on the directory stands in");
        return;
    };
    let mut cluster = TestCluster::start_on_small_disks(&disks, SMALL).await.unwrap();
    let account = cluster.account(2).await.unwrap();
    let mut kept = Kept { ids: BTreeSet::new() };

    // Another program takes most of the disks, and the load the rest, until data is refused.
    // Deletes go on.
    for node in 0..3 {
        disks.fill(node, LEFT_FOR_THE_LOAD).unwrap();
    }
    kept.write_until_refused(&cluster, &account).await;
    wait_for_disks_of(&cluster, 2, admin_v1::DiskState::AlmostFull).await;
    let before = kept.ids.clone();
    assert!(100 < before.len(), "{} anchors", before.len());
    kept.delete(&cluster, &account, 20).await;

    // It takes the last byte while they run: nobody ends, deletes go on for as long as it lasts,
    // and with the space everything comes back, in the same processes.
    let processes = cluster.process_ids().unwrap();
    for node in 0..3 {
        assert!(0 < disks.fill(node, 0).unwrap());
    }
    kept.delete(&cluster, &account, 30).await;
    wait_for_disks(&cluster, admin_v1::DiskState::Full).await;
    for _ in 0..CHECKPOINTS {
        kept.delete(&cluster, &account, 5).await;
        tokio::time::sleep(CHECKPOINT_INTERVAL).await;
    }
    assert_eq!(cluster.process_ids().unwrap(), processes, "a full disk has ended a node");
    for node in 0..3 {
        disks.free(node).unwrap();
    }
    write_one(&cluster, &account, &mut kept).await;
    wait_for_disks(&cluster, admin_v1::DiskState::Normal).await;
    assert_eq!(cluster.process_ids().unwrap(), processes);
    for node in 0..3 {
        disks.fill(node, LEFT_FOR_THE_LOAD).unwrap();
    }
    kept.write_until_refused(&cluster, &account).await;
    let before = &before | &kept.ids;

    // A crash right there.
    restart_all(&mut cluster).await;
    cluster.wait_ready(&[0, 1, 2]).await.unwrap();
    kept.delete(&cluster, &account, 10).await;

    // The other program takes the last byte; and a crash at that point. The starts give the
    // ballasts up by themselves, and then there is room for deletes.
    for node in 0..3 {
        assert!(0 < disks.fill(node, 0).unwrap());
    }
    restart_all(&mut cluster).await;
    cluster.wait_ready(&[0, 1, 2]).await.unwrap();
    kept.delete(&cluster, &account, 10).await;
    let gone = |kept: &Kept| before.difference(&kept.ids).cloned().collect();
    kept.check(&cluster, &account, &gone(&kept)).await;

    // Space is back: so is service, without anybody's help.
    for node in 0..3 {
        disks.free(node).unwrap();
    }
    write_one(&cluster, &account, &mut kept).await;
    wait_for_disks(&cluster, admin_v1::DiskState::Normal).await;

    // Full again, and again once the ballasts are gone: now the starts wait for room, and go on by
    // themselves.
    for _ in 0..2 {
        cluster.wait_ready(&[0, 1, 2]).await.unwrap();
        for node in 0..3 {
            disks.fill(node, 0).unwrap();
        }
        restart_all(&mut cluster).await;
    }
    for node in 0..3 {
        disks.free(node).unwrap();
    }
    cluster.wait_ready(&[0, 1, 2]).await.unwrap();
    write_one(&cluster, &account, &mut kept).await;
    kept.check(&cluster, &account, &gone(&kept)).await;
}

/// A bound on the data directory stands for a small disk: what the processes may take is counted,
/// and nothing has to be mounted. What the state has not cleared up yet fits between the two
/// thresholds.
const BOUNDED: &str = "[disk]\nbytes_max = 109051904\nalmost_full_bytes = 50331648\n\
                       full_bytes = 8388608\nballast_bytes = 8388608\ncheck_interval_ms = 50\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_on_the_directory_refuses_data_and_frees_it_again_when_it_is_raised() {
    let mut cluster = TestCluster::start(BOUNDED).await.unwrap();
    let account = cluster.account(1).await.unwrap();
    let mut kept = Kept { ids: BTreeSet::new() };
    kept.write_until_refused(&cluster, &account).await;
    wait_for_disks_of(&cluster, 2, admin_v1::DiskState::AlmostFull).await;
    let before = kept.ids.clone();
    kept.delete(&cluster, &account, 5).await;
    let admin = cluster.admin(0);
    let status = admin.clusters().get_cluster_status(admin.request(Default::default())).await;
    let status = status.unwrap().into_inner();
    assert!(status.problems.iter().any(|problem| problem.contains("almost full")), "{status:?}");

    // The ballast counts as taken, and an operator can have it back from any node.
    let nodes = admin.clusters().list_nodes(admin.request(Default::default())).await.unwrap();
    let other = nodes.into_inner().nodes.into_iter().find(|node| node.node_id != status.node_id);
    let other = other.unwrap();
    assert_eq!(other.ballast_bytes, 8_388_608);
    let node_id = other.node_id;
    let request = admin_v1::ReleaseBallastRequest { node_id };
    let released = admin.clusters().release_ballast(admin.request(request)).await.unwrap();
    assert_eq!(released.into_inner().bytes_released, 8_388_608);
    let unknown = admin_v1::ReleaseBallastRequest { node_id: 99 };
    let status = admin.clusters().release_ballast(admin.request(unknown)).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::NodeNotFound));

    // More room, and everything is as before.
    let file = cluster.data_dir().parent().unwrap().join("node.toml");
    std::fs::write(&file, BOUNDED.replace("109051904", "1090519040")).unwrap();
    restart_all(&mut cluster).await;
    cluster.wait_ready(&[0, 1, 2]).await.unwrap();
    wait_for_disks(&cluster, admin_v1::DiskState::Normal).await;
    write_one(&cluster, &account, &mut kept).await;
    let gone: BTreeSet<_> = before.difference(&kept.ids).cloned().collect();
    kept.check(&cluster, &account, &gone).await;
}
