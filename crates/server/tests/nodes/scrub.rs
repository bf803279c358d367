//! Damage on a running node's disk is found before it is needed.

use crate::cluster::{Cluster, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_file_is_found_told_and_replaced() {
    let mut cluster = Cluster::start_with(1, |config| config.disk.scrub_pause_s = 1).await;
    cluster.account("scrub", 1).await;
    let snapshots = cluster.dir(0).join("snapshots");
    let files = std::fs::read_dir(&snapshots).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|ending| ending == "snap"));
    let path = files.max().expect("the shard's founding file");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    std::fs::write(&path, &bytes).unwrap();
    let said = eventually("the damage is told", || async {
        let problems = cluster.problems().await?;
        problems.into_iter().find(|problem| problem.contains("damaged data"))
    })
    .await;
    assert!(said.contains("snapshot file"), "{said}");
    eventually("the damage is repaired", || async {
        let problems = cluster.problems().await?;
        let is_gone = !problems.iter().any(|problem| problem.contains("damaged data"));
        (is_gone && std::fs::read(&path).map_or(true, |found| found != bytes)).then_some(())
    })
    .await;
    cluster.stop_all().await;
}
