//! `anchorhold shard compare`.

use anchorhold_client::admin_v1;
use anchorhold_model::NodeId;
use serde::Serialize;

use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{self, thousands};
use crate::shard;

/// What to do about replicas that differ.
const NEXT: &str = "One of them is wrong. Keep a copy of its directory, then stop that node, remove \
    `state` from it and start it again: it rebuilds its state. Compare again; if they still differ, \
    do not delete anything and report it";

#[derive(Serialize)]
struct ComparisonView {
    shard_id: u64,
    applied_index: u64,
    /// `None` if not all of them are known.
    equal: Option<bool>,
    replicas: Vec<ReplicaView>,
}

#[derive(Serialize)]
struct ReplicaView {
    node_id: u64,
    revision: u64,
    anchors: u64,
    digest: Option<String>,
    error: Option<String>,
}

impl From<admin_v1::ComparedReplica> for ReplicaView {
    fn from(one: admin_v1::ComparedReplica) -> Self {
        let some = |text: String| (!text.is_empty()).then_some(text);
        Self {
            node_id: one.node_id,
            revision: one.revision,
            anchors: one.anchors,
            digest: some(one.digest),
            error: some(one.error),
        }
    }
}

impl ReplicaView {
    fn row(&self) -> [String; 4] {
        let held = self.digest.as_ref().or(self.error.as_ref());
        [
            NodeId(self.node_id).to_string(),
            thousands(self.revision),
            thousands(self.anchors),
            held.cloned().unwrap_or_default(),
        ]
    }
}

/// Compares what the replicas of a shard hold at one index.
///
/// # Errors
/// [`Exit::Damaged`] if two differ, [`Exit::Unavailable`] if not all of them are known, and as the
/// cluster says.
pub(crate) async fn compare(context: &Context, shard: &str) -> anyhow::Result<()> {
    let shard_id = shard::shard_id(&context.admin()?, shard).await?;
    let request = admin_v1::CompareReplicasRequest { shard_id };
    let reply = context.admin()?.compare_replicas(request).await?;
    let replicas: Vec<_> = reply.replicas.into_iter().map(ReplicaView::from).collect();
    let is_known = replicas.iter().all(|replica| replica.digest.is_some());
    let equal = (is_known || reply.different).then_some(!reply.different);
    let view = ComparisonView { shard_id, applied_index: reply.applied_index, equal, replicas };
    output::print(context.output, &view, || {
        let header = ["NODE", "REVISION", "ANCHORS", "DIGEST"];
        let table = output::table(header, view.replicas.iter().map(ReplicaView::row));
        let verdict = match equal {
            Some(true) => "all replicas are equal",
            Some(false) => "replicas differ",
            None => "no two replicas differ, but not all are known",
        };
        format!("{table}\n{verdict} at index {}", view.applied_index)
    })?;
    match equal {
        Some(true) => Ok(()),
        Some(false) => {
            let problem = format!("the replicas of shard {shard} differ");
            Err(Failure::new(Exit::Damaged, problem, NEXT).into())
        }
        None => {
            let problem = format!("not all replicas of shard {shard} could be compared");
            Err(Failure::new(Exit::Unavailable, problem, "try again when all nodes are up").into())
        }
    }
}
