//! A state that is written anew while its node serves.

use std::collections::BTreeSet;
use std::path::Path;

use anchorhold_proto::v1;

use crate::cluster::{Cluster, geo};

/// The number of the copy that is in use.
fn renewals(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir.join("state")).unwrap();
    let complete = entries.filter_map(|entry| {
        let path = entry.unwrap().path();
        let number = path.file_name()?.to_str()?.strip_prefix("renewed-")?.parse().ok()?;
        path.join("complete").exists().then_some(number)
    });
    complete.max().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bloated_state_is_written_anew_and_nobody_notices() {
    let mut cluster = Cluster::start_with(1, |config| {
        config.consensus.checkpoint_interval_ms = 50;
        // An empty state counts as bloated: it is renewed over and over.
        config.disk.renew_interval_s = 1;
        config.disk.renew_bytes_min = 1;
        config.disk.renew_factor = 4;
    })
    .await;
    let key = cluster.account("one", 2).await;
    let mut anchors = cluster.anchors(0, &key);
    let mut expected = BTreeSet::new();
    let mut number = 0.0;
    while renewals(cluster.dir(0)) < 3 {
        number += 1.0;
        let anchor = geo(number % 80.0, number % 170.0, number);
        let request = v1::CreateAnchorRequest { anchor: Some(anchor), ..Default::default() };
        let created = anchors.create_anchor(request).await.unwrap().into_inner().anchor.unwrap();
        if number % 3.0 == 0.0 {
            let request = v1::DeleteAnchorRequest { id: created.id, ..Default::default() };
            anchors.delete_anchor(request).await.unwrap();
        } else {
            expected.insert(created.id);
        }
    }
    for _ in 0..2 {
        let mut anchors = cluster.anchors(0, &key);
        let mut found = BTreeSet::new();
        let mut request = v1::ListAnchorsRequest { page_size: 1_000, ..Default::default() };
        loop {
            let page = anchors.list_anchors(request.clone()).await.unwrap().into_inner();
            found.extend(page.anchors.into_iter().map(|anchor| anchor.id));
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        assert!(found == expected, "{} anchors of {}", found.len(), expected.len());
        cluster.stop(0).await;
        cluster.restart(0).await;
        cluster.wait_healthy().await;
    }
    cluster.stop_all().await;
}
