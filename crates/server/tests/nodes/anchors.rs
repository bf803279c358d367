use anchorhold_proto::{Reason, reason_of, v1};

use crate::cluster::{Cluster, eventually, geo, request_id};

fn create(anchor: v1::Anchor, id: u128) -> v1::CreateAnchorRequest {
    v1::CreateAnchorRequest { anchor: Some(anchor), request_id: request_id(id) }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_anchor_is_read_and_retried_on_every_node() {
    let mut cluster = Cluster::start(3).await;
    let key = cluster.account("one", 4).await;
    let mut first = cluster.anchors(0, &key);
    let created = first.create_anchor(create(geo(48.1, 11.5, 520.0), 1)).await.unwrap();
    let created = created.into_inner();
    let anchor = created.anchor.unwrap();

    // A retry meets its first try, wherever it arrives.
    let mut second = cluster.anchors(1, &key);
    let again = second.create_anchor(create(geo(48.1, 11.5, 520.0), 1)).await.unwrap();
    assert_eq!(again.into_inner().anchor.unwrap(), anchor);
    let reused = second.create_anchor(create(geo(48.1, 11.5, 521.0), 1)).await.unwrap_err();
    assert_eq!(reason_of(&reused), Some(Reason::RequestIdReused));

    let get = |level: v1::Consistency, token: bytes::Bytes| v1::GetAnchorRequest {
        id: anchor.id.clone(),
        read: Some(v1::ReadOptions {
            consistency: level.into(),
            session_token: token,
            max_staleness: None,
        }),
    };
    for node in 0..3 {
        let mut client = cluster.anchors(node, &key);
        let linearizable = get(v1::Consistency::Linearizable, bytes::Bytes::new());
        let read = client.get_anchor(linearizable).await.unwrap().into_inner();
        assert_eq!(read.anchor.unwrap(), anchor);
        assert_eq!(read.serving.unwrap().shards.len(), 1);
        // The session's token is as good on any replica.
        let local = get(v1::Consistency::Local, created.session_token.clone());
        assert_eq!(client.get_anchor(local).await.unwrap().into_inner().anchor.unwrap(), anchor);
    }

    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_started_again_has_everything() {
    let (mut cluster, key, ids) = with_anchors().await;
    let before = cluster.anchors(0, &key).get_anchor(get(&ids[9])).await.unwrap().into_inner();
    cluster.stop(0).await;
    cluster.restart(0).await;
    cluster.wait_healthy().await;
    let after = cluster.anchors(0, &key).get_anchor(get(&ids[9])).await.unwrap().into_inner();
    assert_eq!(after.anchor, before.anchor);
    let all = v1::LocateRequest {
        criterion: Some(v1::locate_request::Criterion::Ids(v1::AnchorIds { ids: ids.clone() })),
        ..v1::LocateRequest::default()
    };
    let found = cluster.locates(0, &key).locate(all).await;
    assert_eq!(found.unwrap().into_inner().anchors.len(), ids.len());
    cluster.stop_all().await;
}

/// A node with an account of six shards that holds 49 anchors: their ids in order, and its key.
async fn with_anchors() -> (Cluster, String, Vec<String>) {
    let cluster = Cluster::start(1).await;
    let key = cluster.account("one", 6).await;
    let places = (0..50_u32)
        .map(|n| geo(f64::from(n * 37 % 170) - 85.0, f64::from(n * 71 % 360) - 180.0, 10.0));
    let mut anchors: Vec<_> = places.collect();
    anchors[7].creator = "x".repeat(1_000);
    let batch =
        v1::BatchCreateAnchorsRequest { anchors, request_id: request_id(2), ids_only: true };
    let created = cluster.anchors(0, &key).batch_create_anchors(batch).await.unwrap();
    let mut ids = Vec::new();
    for (item, result) in created.into_inner().results.into_iter().enumerate() {
        match result.result.unwrap() {
            v1::batch_create_anchors_result::Result::Anchor(anchor) => ids.push(anchor.id),
            v1::batch_create_anchors_result::Result::Error(error) => {
                assert_eq!((item, error.reason.as_str()), (7, "FIELD_INVALID"));
            }
        }
    }
    assert_eq!(ids.len(), 49);
    ids.sort();
    (cluster, key, ids)
}

fn get(id: &str) -> v1::GetAnchorRequest {
    v1::GetAnchorRequest { id: id.to_owned(), read: None }
}

fn update(anchor: v1::Anchor, part: &str, id: u128) -> v1::UpdateAnchorRequest {
    v1::UpdateAnchorRequest {
        anchor: Some(anchor),
        update_mask: Some(prost_types::FieldMask { paths: vec![part.to_owned()] }),
        request_id: request_id(id),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_gives_every_anchor_once_in_the_order_of_ids() {
    let (mut cluster, key, ids) = with_anchors().await;
    let mut client = cluster.anchors(0, &key);
    let (mut listed, mut token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListAnchorsRequest {
            page_size: 7,
            page_token: token,
            ..v1::ListAnchorsRequest::default()
        };
        let page = client.list_anchors(request).await.unwrap().into_inner();
        assert!(page.anchors.len() <= 7);
        listed.extend(page.anchors.into_iter().map(|anchor| anchor.id));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, ids);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn anchors_are_changed_by_etag_and_removed_once() {
    let (mut cluster, key, ids) = with_anchors().await;
    let mut client = cluster.anchors(0, &key);
    let mut changed = client.get_anchor(get(&ids[0])).await.unwrap().into_inner().anchor.unwrap();
    changed.tags = vec!["door".to_owned()];
    let written = client.update_anchor(update(changed.clone(), "tags", 3)).await.unwrap();
    let after = written.into_inner().anchor.unwrap();
    assert_eq!(after.tags, ["door"]);
    let stale = client.update_anchor(update(changed, "tags", 4)).await.unwrap_err();
    assert_eq!(reason_of(&stale), Some(Reason::EtagMismatch));

    let delete =
        v1::DeleteAnchorRequest { id: ids[0].clone(), etag: after.etag, request_id: request_id(6) };
    client.delete_anchor(delete.clone()).await.unwrap();
    client.delete_anchor(delete).await.unwrap();
    let gone = client.get_anchor(get(&ids[0])).await.unwrap_err();
    assert_eq!(reason_of(&gone), Some(Reason::AnchorNotFound));

    let other = cluster.account("two", 1).await;
    let foreign = cluster.anchors(0, &other).get_anchor(get(&ids[3])).await.unwrap_err();
    assert_eq!(reason_of(&foreign), Some(Reason::WrongAccount));
    let nobody = cluster.anchors(0, "ahk_none_0123456789abcdef").get_anchor(get(&ids[3])).await;
    assert_eq!(reason_of(&nobody.unwrap_err()), Some(Reason::CredentialInvalid));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expiry_that_passes_is_seen_by_the_next_read_without_any_write() {
    let (mut cluster, key, ids) = with_anchors().await;
    let mut client = cluster.anchors(0, &key);
    let until = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() + 1_000;
    let expiring = v1::Anchor {
        id: ids[1].clone(),
        expire_time: Some(prost_types::Timestamp {
            seconds: i64::try_from(until / 1_000).unwrap(),
            nanos: i32::try_from(until % 1_000).unwrap() * 1_000_000,
        }),
        ..v1::Anchor::default()
    };
    client.update_anchor(update(expiring, "expire_time", 5)).await.unwrap();
    let local = v1::GetAnchorRequest {
        read: Some(v1::ReadOptions {
            consistency: v1::Consistency::Local.into(),
            ..v1::ReadOptions::default()
        }),
        ..get(&ids[1])
    };
    // Nobody has let shard time move on, whatever the wall clock says.
    client.get_anchor(local).await.unwrap();
    eventually("the anchor expires", || {
        let mut client = client.clone();
        let get = get(&ids[1]);
        async move {
            let error = client.get_anchor(get).await.err()?;
            assert_eq!(reason_of(&error), Some(Reason::AnchorNotFound));
            Some(())
        }
    })
    .await;
    cluster.stop_all().await;
}
