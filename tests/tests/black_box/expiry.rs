//! Anchors that end by themselves.

use std::time::{Duration, UNIX_EPOCH};

use anchorhold_proto::{Reason, reason_of, v1};
use anchorhold_tests::cluster::shared;
use anchorhold_tests::rpc::{Rpc, geo_anchor, linearizable, request_id};
use anchorhold_tests::wait::until;

/// `anchor` with an expiry this long after its creation.
async fn expiring(rpc: &Rpc, after: Duration) -> v1::Anchor {
    // The shard's time is what counts: it is read off a write.
    let stored = rpc.create(geo_anchor(5.0, 6.0, 0.0), &request_id()).await.unwrap();
    let mut anchor = stored.anchor.unwrap();
    let created = anchor.create_time.unwrap();
    let created = Duration::new(
        u64::try_from(created.seconds).unwrap(),
        u32::try_from(created.nanos).unwrap(),
    );
    anchor.expire_time = Some((UNIX_EPOCH + created + after).into());
    anchor.etag.clear();
    rpc.update(anchor, &["expire_time"], &request_id()).await.unwrap().anchor.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_anchor_is_gone_for_every_method_on_every_node() {
    let cluster = shared().await;
    let account = cluster.account(0).await.unwrap();
    let rpc = |index| cluster.account_rpc(index, &account);
    let keeps = expiring(&rpc(0), Duration::from_secs(3_600)).await;
    let goes = expiring(&rpc(1), Duration::from_secs(2)).await;
    // A linearizable read that meets a due expiry moves the shard's time on by itself: no other
    // write comes here.
    until("the anchor expires", || async {
        match rpc(2).get(&goes.id, linearizable()).await {
            Err(status) if reason_of(&status) == Some(Reason::AnchorNotFound) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    for index in 0..3 {
        let rpc = rpc(index);
        let gone = rpc.get(&goes.id, linearizable()).await.unwrap_err();
        assert_eq!(reason_of(&gone), Some(Reason::AnchorNotFound));
        let listed = rpc.list(Default::default()).await.unwrap().anchors;
        assert_eq!(listed, std::slice::from_ref(&keeps));
        let point = v1::GeoPoint { latitude_deg: 5.0, longitude_deg: 6.0, height_m: 0.0 };
        let near =
            v1::NearPoint { point: Some(v1::near_point::Point::Geo(point)), k: 5, radius_m: None };
        let request = v1::LocateRequest {
            criterion: Some(v1::locate_request::Criterion::NearPoint(near)),
            ..Default::default()
        };
        let found = rpc.locate(request).await.unwrap().anchors;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].anchor.as_ref(), Some(&keeps));
    }
    let mut change = goes.clone();
    change.etag.clear();
    change.expire_time = None;
    let late = rpc(0).update(change, &["expire_time"], &request_id()).await.unwrap_err();
    assert_eq!(reason_of(&late), Some(Reason::AnchorNotFound), "it cannot be called back");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expiry_can_be_put_off_and_lifted_but_not_lie_in_the_past() {
    let cluster = shared().await;
    let account = cluster.account(0).await.unwrap();
    let rpc = cluster.account_rpc(0, &account);
    let short = expiring(&rpc, Duration::from_secs(30)).await;
    let lifted = v1::Anchor { id: short.id.clone(), ..v1::Anchor::default() };
    let stored = rpc.update(lifted, &["expire_time"], &request_id()).await.unwrap();
    assert_eq!(stored.anchor.unwrap().expire_time, None);
    let past = v1::Anchor {
        id: short.id.clone(),
        expire_time: Some(prost_types::Timestamp { seconds: 1_000, nanos: 0 }),
        ..v1::Anchor::default()
    };
    let status = rpc.update(past, &["expire_time"], &request_id()).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::AlreadyExpired));
    rpc.get(&short.id, linearizable()).await.expect("it is still there");
}
