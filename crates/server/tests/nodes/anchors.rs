use anchorhold_proto::{Reason, reason_of, v1};

use crate::cluster::{Cluster, eventually, geo, request_id};

fn create(anchor: v1::Anchor, id: u128) -> v1::CreateAnchorRequest {
    v1::CreateAnchorRequest { anchor: Some(anchor), request_id: request_id(id) }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_anchor_lives_on_every_node_and_survives_restarts() {
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
    for node in 0..3 {
        cluster.restart(node).await;
    }
    cluster.wait_healthy().await;
    let mut client = cluster.anchors(2, &key);
    let read = client.get_anchor(get(v1::Consistency::Linearizable, bytes::Bytes::new())).await;
    assert_eq!(read.unwrap().into_inner().anchor.unwrap(), anchor);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn anchors_are_changed_listed_expired_and_removed() {
    let mut cluster = Cluster::start(1).await;
    let key = cluster.account("one", 6).await;
    let mut client = cluster.anchors(0, &key);
    let places: Vec<_> = (0..50_u32)
        .map(|n| geo(f64::from(n * 37 % 170) - 85.0, f64::from(n * 71 % 360) - 180.0, 10.0))
        .collect();
    let mut batch = places.clone();
    batch[7].creator = "x".repeat(1_000);
    let batch =
        v1::BatchCreateAnchorsRequest { anchors: batch, request_id: request_id(2), ids_only: true };
    let results = client.batch_create_anchors(batch).await.unwrap().into_inner().results;
    let mut ids = Vec::new();
    for (item, result) in results.into_iter().enumerate() {
        match result.result.unwrap() {
            v1::batch_create_anchors_result::Result::Anchor(anchor) => ids.push(anchor.id),
            v1::batch_create_anchors_result::Result::Error(error) => {
                assert_eq!((item, error.reason.as_str()), (7, "FIELD_INVALID"));
            }
        }
    }
    assert_eq!(ids.len(), 49);

    ids.sort();
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

    let get = |id: &str| v1::GetAnchorRequest { id: id.to_owned(), read: None };
    let before = client.get_anchor(get(&ids[0])).await.unwrap().into_inner().anchor.unwrap();
    let mut changed = before.clone();
    changed.tags = vec!["door".to_owned()];
    let update = v1::UpdateAnchorRequest {
        anchor: Some(changed),
        update_mask: Some(prost_types::FieldMask { paths: vec!["tags".to_owned()] }),
        request_id: request_id(3),
    };
    let after = client.update_anchor(update.clone()).await.unwrap().into_inner().anchor.unwrap();
    assert_eq!(after.tags, ["door"]);
    let stale = v1::UpdateAnchorRequest { request_id: request_id(4), ..update };
    let stale = client.update_anchor(stale).await.unwrap_err();
    assert_eq!(reason_of(&stale), Some(Reason::EtagMismatch));

    // An expiry that passes is seen by the next linearizable read, without any write.
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() + 700;
    let expire_time = prost_types::Timestamp {
        seconds: i64::try_from(now / 1_000).unwrap(),
        nanos: i32::try_from(now % 1_000).unwrap() * 1_000_000,
    };
    let expiring =
        v1::Anchor { id: ids[1].clone(), expire_time: Some(expire_time), ..v1::Anchor::default() };
    let expiring = v1::UpdateAnchorRequest {
        anchor: Some(expiring),
        update_mask: Some(prost_types::FieldMask { paths: vec!["expire_time".to_owned()] }),
        request_id: request_id(5),
    };
    client.update_anchor(expiring).await.unwrap();
    eventually("the anchor expires", || {
        let mut client = cluster.anchors(0, &key);
        let get = get(&ids[1]);
        async move {
            let error = client.get_anchor(get).await.err()?;
            assert_eq!(reason_of(&error), Some(Reason::AnchorNotFound));
            Some(())
        }
    })
    .await;

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
