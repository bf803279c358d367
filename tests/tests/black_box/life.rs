//! An anchor's life: create, read, change, remove; etags; retries.

use anchorhold_proto::failure::METADATA_CURRENT_ETAG;
use anchorhold_proto::failure::ReceivedFailure;
use anchorhold_proto::{Reason, reason_of, v1};
use anchorhold_tests::cluster::shared;
use anchorhold_tests::rpc::{geo_anchor, linearizable, local_anchor, request_id};

fn full_anchor() -> v1::Anchor {
    v1::Anchor {
        properties: [("name", "Matterhorn"), ("kind", "peak")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        tags: vec!["alps".to_owned(), "4000er".to_owned(), "alps".to_owned()],
        accuracy: Some(v1::Accuracy { horizontal_m: Some(0.25), vertical_m: None }),
        creator: "device 7".to_owned(),
        quality: Some(0.5),
        ..geo_anchor(45.9766, 7.6585, 4530.0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_anchor_is_returned_as_stored_by_every_node_until_it_is_deleted() {
    let cluster = shared().await;
    let account = cluster.account(2).await.unwrap();
    let rpc = |index| cluster.account_rpc(index, &account);
    let stored = rpc(0).create(full_anchor(), &request_id()).await.unwrap().anchor.unwrap();
    assert_eq!(stored.properties, full_anchor().properties);
    assert_eq!(stored.tags, ["4000er", "alps"], "a set, in order");
    assert_eq!(stored.accuracy, full_anchor().accuracy);
    assert_eq!(stored.creator, "device 7");
    assert_eq!(stored.quality, Some(0.5));
    assert_eq!(stored.create_time, stored.update_time);
    assert!(stored.create_time.is_some() && !stored.etag.is_empty());
    for index in 0..3 {
        let reply = rpc(index).get(&stored.id, linearizable()).await.unwrap();
        assert_eq!(reply.anchor.as_ref(), Some(&stored));
        let serving = reply.serving.unwrap();
        assert_ne!(serving.node_id, 0);
        assert_eq!(serving.shards.len(), 1);
        assert_eq!(serving.shards[0].consistency(), v1::Consistency::Linearizable);
        assert!(stored.revision <= serving.shards[0].revision);
    }
    rpc(1).delete(&stored.id, &stored.etag, &request_id()).await.unwrap();
    for index in 0..3 {
        let status = rpc(index).get(&stored.id, linearizable()).await.unwrap_err();
        assert_eq!(reason_of(&status), Some(Reason::AnchorNotFound));
    }
    let again = rpc(2).delete(&stored.id, "", &request_id()).await.unwrap_err();
    assert_eq!(reason_of(&again), Some(Reason::AnchorNotFound));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mask_changes_what_it_names_and_nothing_else() {
    let cluster = shared().await;
    let account = cluster.account(0).await.unwrap();
    let rpc = cluster.account_rpc(1, &account);
    let stored = rpc.create(full_anchor(), &request_id()).await.unwrap().anchor.unwrap();
    let id = stored.id.clone();
    let change = v1::Anchor {
        id: id.clone(),
        tags: vec!["swiss".to_owned()],
        quality: Some(0.9),
        ..v1::Anchor::default()
    };
    let changed = rpc.update(change.clone(), &["tags", "accuracy"], &request_id()).await;
    let changed = changed.unwrap().anchor.unwrap();
    assert_eq!(changed.tags, ["swiss"]);
    assert_eq!(changed.accuracy, None, "named but unset is cleared");
    assert_eq!(changed.quality, Some(0.5), "not named");
    assert_eq!(changed.properties, stored.properties);
    assert_eq!(changed.pose, stored.pose);
    assert_eq!(changed.create_time, stored.create_time);
    assert!(stored.revision < changed.revision);
    assert_ne!(stored.etag, changed.etag);

    let pose_cleared = rpc.update(change.clone(), &["pose"], &request_id()).await.unwrap_err();
    assert_eq!(pose_cleared.code(), tonic::Code::InvalidArgument);
    let unknown = rpc.update(change, &["colour"], &request_id()).await.unwrap_err();
    assert_eq!(reason_of(&unknown), Some(Reason::FieldInvalid));
    let kept = rpc.get(&id, linearizable()).await.unwrap().anchor.unwrap();
    assert_eq!(kept, changed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pose_can_be_refined_but_not_moved_away() {
    let cluster = shared().await;
    let account = cluster.account(0).await.unwrap();
    let rpc = cluster.account_rpc(2, &account);
    let stored = rpc.create(geo_anchor(10.0, 20.0, 0.0), &request_id()).await.unwrap();
    let id = stored.anchor.unwrap().id;
    // 0.0008 degrees of latitude are 88 m, 0.001 are 111 m.
    let near = v1::Anchor { id: id.clone(), ..geo_anchor(10.0008, 20.0, 0.0) };
    let moved = rpc.update(near, &["pose"], &request_id()).await.unwrap().anchor.unwrap();
    assert_eq!(moved.id, id);
    let far = v1::Anchor { id: id.clone(), ..geo_anchor(10.0020, 20.0, 0.0) };
    let status = rpc.update(far, &["pose"], &request_id()).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::DriftTooFar));
    let elsewhere = v1::Anchor { id, ..local_anchor(1, 0.0, 0.0, 0.0) };
    let status = rpc.update(elsewhere, &["pose"], &request_id()).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::SpaceChanged));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etag_lets_one_of_many_writers_win_each_round() {
    let cluster = shared().await;
    let account = cluster.account(0).await.unwrap();
    let rpc = cluster.account_rpc(0, &account);
    let mut current =
        rpc.create(geo_anchor(1.0, 1.0, 0.0), &request_id()).await.unwrap().anchor.unwrap();
    for round in 0..5 {
        let writers = (0..6).map(|writer| {
            let rpc = cluster.account_rpc(writer % 3, &account);
            let mut change = current.clone();
            change.properties.insert("writer".to_owned(), format!("{round}/{writer}"));
            async move { rpc.update(change, &["properties"], &request_id()).await }
        });
        let outcomes = futures::future::join_all(writers).await;
        let won: Vec<_> = outcomes.iter().flatten().collect();
        assert_eq!(won.len(), 1, "round {round}: {outcomes:?}");
        let winner = won[0].anchor.clone().unwrap();
        for status in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
            let failure = ReceivedFailure::of_status(status);
            assert_eq!(failure.reason, Some(Reason::EtagMismatch));
            assert_eq!(failure.metadata[METADATA_CURRENT_ETAG], winner.etag);
        }
        current = winner;
    }
    let stale = rpc.delete(&current.id, "", &request_id()).await;
    stale.expect("an empty etag deletes any state");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retried_write_has_one_effect_and_the_first_answer() {
    let cluster = shared().await;
    let account = cluster.account(2).await.unwrap();
    let rpc = |index: usize| cluster.account_rpc(index % 3, &account);
    let id = request_id();
    let tries = (0..9).map(|index| {
        let rpc = rpc(index);
        let id = id.clone();
        async move { rpc.create(full_anchor(), &id).await.unwrap().anchor.unwrap() }
    });
    let created = futures::future::join_all(tries).await;
    assert!(created.iter().all(|anchor| *anchor == created[0]), "{created:?}");
    assert_eq!(rpc(0).list(Default::default()).await.unwrap().anchors.len(), 1);

    let other = v1::Anchor { creator: "device 8".to_owned(), ..full_anchor() };
    let status = rpc(2).create(other, &id).await.expect_err("the same id, another content");
    assert_eq!(reason_of(&status), Some(Reason::RequestIdReused), "{status:?}");

    // The retry of an update that another update has followed must not undo that one.
    let mut change = created[0].clone();
    change.etag.clear();
    change.properties.insert("step".to_owned(), "1".to_owned());
    let first = request_id();
    rpc(1).update(change.clone(), &["properties"], &first).await.unwrap();
    change.properties.insert("step".to_owned(), "2".to_owned());
    rpc(2).update(change.clone(), &["properties"], &request_id()).await.unwrap();
    change.properties.insert("step".to_owned(), "1".to_owned());
    rpc(0).update(change.clone(), &["properties"], &first).await.unwrap();
    let now = rpc(0).get(&change.id, linearizable()).await.unwrap().anchor.unwrap();
    assert_eq!(now.properties["step"], "2");

    let delete = request_id();
    rpc(0).delete(&change.id, "", &delete).await.unwrap();
    rpc(1).delete(&change.id, "", &delete).await.expect("a retry of a delete succeeds");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_fails_item_by_item_and_its_retry_makes_nothing_twice() {
    let cluster = shared().await;
    let account = cluster.account(3).await.unwrap();
    let rpc = cluster.account_rpc(1, &account);
    let mut anchors: Vec<_> =
        (0..120).map(|index| geo_anchor(f64::from(index) - 60.0, f64::from(index), 0.0)).collect();
    anchors[7] = geo_anchor(0.0, 0.0, f64::NAN);
    let message =
        v1::BatchCreateAnchorsRequest { anchors, request_id: request_id(), ids_only: true };
    let mut ids = Vec::new();
    for _ in 0..2 {
        let reply = rpc.anchors().batch_create_anchors(rpc.request(message.clone())).await;
        let results = reply.unwrap().into_inner().results;
        assert_eq!(results.len(), 120);
        let found: Vec<_> = results
            .into_iter()
            .map(|result| match result.result.unwrap() {
                v1::batch_create_anchors_result::Result::Anchor(anchor) => Ok(anchor.id),
                v1::batch_create_anchors_result::Result::Error(error) => Err(error.reason),
            })
            .collect();
        assert_eq!(found[7], Err("FIELD_INVALID".to_owned()));
        assert_eq!(found.iter().filter(|item| item.is_err()).count(), 1);
        ids.push(found);
    }
    assert_eq!(ids[0], ids[1]);
    let page = v1::ListAnchorsRequest { page_size: 1_000, ..Default::default() };
    assert_eq!(rpc.list(page).await.unwrap().anchors.len(), 119);
}
