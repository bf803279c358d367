//! An account that is empty again is cut anew.

use std::time::Duration;

use anchorhold_proto::{Reason, admin_v1, reason_of, v1};

use crate::cluster::{Cluster, eventually, geo};

#[tokio::test(flavor = "multi_thread")]
async fn a_new_layout_waits_for_retries_and_keeps_what_sessions_have_seen_in_the_past() {
    let mut cluster = Cluster::start(1).await;
    let key = cluster.account("one", 1).await;
    let mut anchors = cluster.anchors(0, &key);
    let request =
        v1::CreateAnchorRequest { anchor: Some(geo(48.1, 11.5, 520.0)), ..Default::default() };
    let created = anchors.create_anchor(request).await.unwrap().into_inner();
    let id = created.anchor.unwrap().id;
    let request = v1::DeleteAnchorRequest { id: id.clone(), ..Default::default() };
    let deleted = anchors.delete_anchor(request).await.unwrap().into_inner();

    // A create that was delayed on its way must not bring the anchor back.
    let cuts = admin_v1::LayoutCuts { keys: Vec::new() };
    let request = admin_v1::LayOutAccountRequest {
        account: 1,
        layout: Some(admin_v1::lay_out_account_request::Layout::Cuts(cuts)),
        ..Default::default()
    };
    let mut accounts = cluster.accounts(0);
    let refused = accounts.lay_out_account(request.clone()).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::AccountNotEmpty));
    assert!(refused.message().contains("15 minutes"), "{refused:?}");

    cluster.pass(Duration::from_secs(16 * 60));
    let shards = eventually("nothing is kept any more", || {
        let (mut accounts, request) = (cluster.accounts(0), request.clone());
        async move {
            let laid_out = accounts.lay_out_account(request).await;
            laid_out.ok().map(|response| response.into_inner().shard_ids)
        }
    })
    .await;
    assert_eq!(shards.len(), 1);
    let request = v1::GetAnchorRequest {
        id,
        read: Some(v1::ReadOptions {
            session_token: deleted.session_token,
            consistency: v1::Consistency::Local.into(),
            ..Default::default()
        }),
    };
    let read = anchors.get_anchor(request).await.unwrap_err();
    assert_eq!(reason_of(&read), Some(Reason::AnchorNotFound), "{read:?}");
    cluster.stop_all().await;
}
