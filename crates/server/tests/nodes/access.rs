//! Keys, and nodes that have not heard of them yet.

use anchorhold_proto::v1;
use tonic::Code;

use crate::cluster::{Cluster, eventually, geo};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_behind_never_calls_a_key_unknown_that_the_cluster_knows() {
    let mut cluster = Cluster::start(1).await;
    let key = cluster.account("a", 1).await;
    cluster.add(1).await;
    let core = cluster.nodes[1].as_ref().unwrap().core().clone();
    assert!(
        core.is_catalog_confirmed() || core.unready().is_some(),
        "ready before its catalog is known to be current"
    );
    let anchors = cluster.anchors(1, &key);
    eventually("the key opens the new node", || {
        let mut anchors = anchors.clone();
        async move {
            let anchor = Some(geo(52.5, 13.4, 30.0));
            let request = v1::CreateAnchorRequest { anchor, ..Default::default() };
            match anchors.create_anchor(request).await {
                Ok(_) => Some(()),
                Err(status) => {
                    assert_ne!(status.code(), Code::Unauthenticated, "{status:?}");
                    None
                }
            }
        }
    })
    .await;
    assert!(core.is_catalog_confirmed());
    // A key that nobody knows is refused all the same.
    let mut strangers = cluster.anchors(1, "ahk_none_0123456789abcdef0123");
    let refused = strangers.get_anchor(v1::GetAnchorRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
}
