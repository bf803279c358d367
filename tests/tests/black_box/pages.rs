//! Listing page by page, while anchors come and go.

use std::collections::BTreeSet;

use anchorhold_proto::{Reason, reason_of, v1};
use anchorhold_tests::cluster::shared;
use anchorhold_tests::rpc::{geo_anchor, request_id};

fn scattered(count: u32, offset: f64) -> Vec<v1::Anchor> {
    let place = |index: u32| (f64::from(index) * 0.37) % 80.0 - 40.0;
    (0..count).map(|index| geo_anchor(place(index), place(index * 7) * 4.0 + offset, 0.0)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_the_whole_time_is_listed_once_while_others_come_and_go() {
    let cluster = shared().await;
    let account = cluster.account(4).await.unwrap();
    let rpc = |index: usize| cluster.account_rpc(index % 3, &account);
    let (steady, _) = rpc(0).create_all(scattered(300, 0.0), &request_id()).await.unwrap();
    let (doomed, _) = rpc(1).create_all(scattered(100, 3.0), &request_id()).await.unwrap();
    let steady: BTreeSet<String> = steady.into_iter().map(|anchor| anchor.id).collect();

    let mut listed: Vec<String> = Vec::new();
    let mut request = v1::ListAnchorsRequest { page_size: 17, ..Default::default() };
    for page in 0.. {
        let reply = rpc(page).list(request.clone()).await.unwrap();
        assert!(reply.anchors.len() <= 17);
        listed.extend(reply.anchors.into_iter().map(|anchor| anchor.id));
        if reply.next_page_token.is_empty() {
            break;
        }
        request.page_token = reply.next_page_token;
        // Between two pages some go and some come, before and after the place that is read.
        for anchor in doomed.iter().skip(page * 5).take(5) {
            rpc(page).delete(&anchor.id, "", &request_id()).await.unwrap();
        }
        let newcomer = scattered(1, 5.0 + page as f64).remove(0);
        rpc(page + 1).create(newcomer, &request_id()).await.unwrap();
    }
    assert!(listed.is_sorted_by(|a, b| a < b), "ordered, nobody twice");
    let listed: BTreeSet<String> = listed.into_iter().collect();
    assert!(steady.is_subset(&listed), "{} of 300", steady.intersection(&listed).count());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_token_belongs_to_its_query_and_sizes_are_capped() {
    let cluster = shared().await;
    let account = cluster.account(0).await.unwrap();
    let rpc = cluster.account_rpc(0, &account);
    rpc.create_all(scattered(300, 0.0), &request_id()).await.unwrap();
    let first = rpc.list(Default::default()).await.unwrap();
    assert_eq!(first.anchors.len(), 100, "the default");
    let other = v1::ListAnchorsRequest {
        filter: Some(v1::Filter { tags_all: vec!["red".to_owned()], ..Default::default() }),
        page_token: first.next_page_token.clone(),
        ..Default::default()
    };
    let status = rpc.list(other).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::PageTokenMismatch));
    let rest = v1::ListAnchorsRequest {
        page_size: 1_000_000,
        page_token: first.next_page_token.clone(),
        ..Default::default()
    };
    let rest = rpc.list(rest).await.unwrap();
    assert_eq!(rest.anchors.len(), 200);
    assert_eq!(rest.next_page_token, "");

    // Another account cannot go on where this one was.
    let stranger = cluster.account(0).await.unwrap();
    let stolen = v1::ListAnchorsRequest { page_token: first.next_page_token, ..Default::default() };
    match cluster.account_rpc(1, &stranger).list(stolen).await {
        Ok(reply) => assert!(reply.anchors.is_empty()),
        Err(status) => assert_eq!(status.code(), tonic::Code::InvalidArgument),
    }
}
