//! What nodes know of each other.

use crate::cluster::{Cluster, Running, eventually};
use crate::healing::write;

/// Waits until node 0 knows of every node what that one says of itself.
async fn wait_until_known(cluster: &Cluster) {
    eventually("what node 0 hears of each node is what that one says of itself", || async {
        let survey = cluster.nodes[0].as_ref().unwrap().core().survey().await;
        let knows = |node: &Running| {
            let own = node.core().report();
            let heard = survey.reports.get(&node.id());
            heard.is_some_and(|heard| heard.replicas == own.replicas)
        };
        cluster.nodes.iter().flatten().all(knows).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_hears_of_the_others_is_what_they_say_of_themselves() {
    let mut cluster = Cluster::start(3).await;
    wait_until_known(&cluster).await;
    let key = cluster.account("one", 4).await;
    wait_until_known(&cluster).await;
    write(&cluster, &key, 20, 1).await;
    wait_until_known(&cluster).await;
    // A process that was started again knows nothing of what the one before it has said.
    cluster.stop(2).await;
    cluster.restart(2).await;
    write(&cluster, &key, 20, 100).await;
    wait_until_known(&cluster).await;
    cluster.stop_all().await;
}
