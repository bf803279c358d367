//! Damage on a running node's disk is found before it is needed.

use anchorhold_proto::v1;

use crate::cluster::{Cluster, eventually, geo, request_id};

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

/// Flips a bit in the first place of a node's log that holds these bytes.
fn spoil_log(dir: &std::path::Path, wanted: &[u8]) {
    for entry in std::fs::read_dir(dir.join("log")).unwrap() {
        let path = entry.unwrap().path();
        let Ok(mut bytes) = std::fs::read(&path) else { continue };
        let found = bytes.windows(wanted.len()).position(|bytes| bytes == wanted);
        if let Some(at) = found {
            bytes[at] ^= 0x40;
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &bytes[at..=at], at as u64).unwrap();
            return;
        }
    }
    panic!("it is not in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_entry_of_the_log_is_found_told_and_purged() {
    const MARK: &str = "the-entry-that-the-disk-has-spoilt";
    let mut cluster = Cluster::start_with(1, |config| config.disk.scrub_pause_s = 1).await;
    let key = cluster.account("scrub", 1).await;
    let mut anchors = cluster.anchors(0, &key);
    for number in 0..3u8 {
        let tags = vec![if number == 1 { MARK.to_owned() } else { "sound".to_owned() }];
        let anchor = v1::Anchor { tags, ..geo(1.0, f64::from(number), 0.0) };
        let request_id = request_id(100 + u128::from(number));
        let request = v1::CreateAnchorRequest { anchor: Some(anchor), request_id };
        anchors.create_anchor(request).await.unwrap();
    }
    let log = cluster.nodes[0].as_ref().unwrap().core().log.clone();
    spoil_log(cluster.dir(0), MARK.as_bytes());
    let said = eventually("the damage is told", || async {
        let problems = cluster.problems().await?;
        problems.into_iter().find(|problem| problem.contains("damaged data"))
    })
    .await;
    assert!(said.contains("debug log verify"), "{said}");
    eventually("nothing needs the entry any more", || async {
        let problems = cluster.problems().await?;
        let is_told = problems.iter().any(|problem| problem.contains("damaged data"));
        (!is_told && log.damaged_groups().is_empty()).then_some(())
    })
    .await;
    drop(log);
    let listed = anchors.list_anchors(v1::ListAnchorsRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().anchors.len(), 3);
    // A start reads everything: what was spoilt is gone, and nothing else.
    cluster.stop(0).await;
    cluster.restart(0).await;
    cluster.wait_healthy().await;
    let mut anchors = cluster.anchors(0, &key);
    let listed = anchors.list_anchors(v1::ListAnchorsRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().anchors.len(), 3);
    cluster.stop_all().await;
}
