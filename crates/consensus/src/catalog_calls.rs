//! Catalog commands from any node to the catalog's leader.

use std::time::Duration;

use anchorhold_model::catalog::{CatalogCommand, CatalogOutcome};
use anchorhold_model::{NodeId, ShardId};
use serde::{Deserialize, Serialize};

use crate::error::ProposeError;
use crate::host::Host;
use crate::link::CallKind;
use crate::wire;

/// Wait between two attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Longest wait for one node's answer.
const ONE_CALL_MAX: Duration = Duration::from_secs(5);

/// What a node answers to a catalog command.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum CatalogAnswer {
    Done(CatalogOutcome),
    /// Not the leader; perhaps that node is.
    NotLeader(Option<u64>),
    /// The outcome is unknown. Catalog commands may be sent again: each has one effect.
    Unknown,
    Failed(String),
}

/// Proposes on this node's replica.
pub(crate) async fn propose_here(
    host: &Host,
    command: CatalogCommand,
    timeout: Duration,
) -> CatalogAnswer {
    let replica = host.catalog_replica();
    if !replica.is_leader() {
        return CatalogAnswer::NotLeader(replica.leader().map(|leader| leader.node_id.0));
    }
    match replica.propose_catalog(command, timeout).await {
        Ok(outcome) => CatalogAnswer::Done(outcome),
        Err(ProposeError::NotLeader { leader, .. }) => {
            CatalogAnswer::NotLeader(leader.map(|leader| leader.node_id.0))
        }
        Err(ProposeError::OutcomeUnknown { .. }) => CatalogAnswer::Unknown,
        Err(error) => CatalogAnswer::Failed(error.to_string()),
    }
}

/// Proposes wherever the leader is, and again until there is an outcome or time is up.
pub(crate) async fn propose(
    host: &Host,
    command: CatalogCommand,
    timeout: Duration,
) -> Result<CatalogOutcome, ProposeError> {
    let shard = ShardId::CATALOG;
    let clock = host.parts().seams.clock.clone();
    let deadline = clock.monotonic() + timeout;
    let content = wire::encode(&command);
    let own = host.identity().node_id;
    let mut hint = Some(own);
    let mut others = Vec::new();
    let mut may_have_arrived = false;
    loop {
        let left = deadline.saturating_sub(clock.monotonic());
        if left.is_zero() {
            return Err(if may_have_arrived {
                ProposeError::OutcomeUnknown { shard }
            } else {
                ProposeError::NotLeader { shard, leader: host.catalog_replica().leader() }
            });
        }
        let target = hint.take().or_else(|| others.pop()).unwrap_or_else(|| {
            others = host.peers().addresses().into_iter().map(|(node, _)| node).collect();
            own
        });
        let answer = if target == own {
            propose_here(host, command.clone(), left).await
        } else {
            ask(host, target, &content, left.min(ONE_CALL_MAX)).await
        };
        match answer {
            CatalogAnswer::Done(outcome) => return Ok(outcome),
            CatalogAnswer::NotLeader(Some(leader)) if leader != target.0 => {
                hint = Some(NodeId(leader));
            }
            CatalogAnswer::NotLeader(_) | CatalogAnswer::Failed(_) => {}
            CatalogAnswer::Unknown => may_have_arrived = true,
        }
        tokio::time::sleep(RETRY_PAUSE.min(left)).await;
    }
}

async fn ask(
    host: &Host,
    target: NodeId,
    content: &bytes::Bytes,
    timeout: Duration,
) -> CatalogAnswer {
    match host.peers().call(target, CallKind::Catalog, content.clone(), timeout).await {
        Ok(answer) => wire::decode("a catalog answer", &answer)
            .unwrap_or_else(|error| CatalogAnswer::Failed(error.to_string())),
        Err(crate::CallError::Unreachable { sent: true, .. }) => CatalogAnswer::Unknown,
        Err(error) => CatalogAnswer::Failed(error.to_string()),
    }
}
