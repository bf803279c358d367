//! How a new node becomes a member.

use std::time::Duration;

use anchorhold_model::NodeId;
use anchorhold_proto::peer_v1::peer_client::PeerClient;
use anchorhold_proto::peer_v1::{JoinReply, JoinRequest};
use bytes::Bytes;

use crate::{Identity, NodeRegistration, Seams};

/// Longest wait for one node's answer.
const ONE_ANSWER_MAX: Duration = Duration::from_secs(15);

/// Why no node took this one in.
#[derive(Clone, Debug, thiserror::Error)]
#[error("no node took this one in: {}", reasons.join("; "))]
pub struct JoinError {
    /// What each address answered.
    pub reasons: Vec<String>,
}

/// Asks the nodes at `addresses`, one after the other, to take this one into their cluster; the
/// same instance always gets the same node id.
///
/// # Errors
/// What each address answered, if none took the node in.
pub async fn join(
    addresses: &[String],
    instance: u128,
    node: &NodeRegistration,
    seams: &Seams,
) -> Result<(Identity, Vec<(NodeId, String)>), JoinError> {
    let mut reasons = Vec::new();
    for address in addresses {
        let asked = tokio::time::timeout(ONE_ANSWER_MAX, ask(address, instance, node, seams)).await;
        match asked.unwrap_or_else(|_| Err("no answer in time".into())) {
            Ok(member) => return Ok(member),
            Err(reason) => reasons.push(format!("{address}: {reason}")),
        }
    }
    Err(JoinError { reasons })
}

async fn ask(
    address: &str,
    instance: u128,
    node: &NodeRegistration,
    seams: &Seams,
) -> Result<(Identity, Vec<(NodeId, String)>), String> {
    // The address belongs to a node whose id is not known yet.
    let channel = seams.dial.channel(NodeId(0), address)?;
    let request = JoinRequest {
        cluster_id: None,
        instance: Bytes::copy_from_slice(&instance.to_be_bytes()),
        region: node.region.clone(),
        zone: node.zone.clone(),
        peer_address: node.peer_address.clone(),
        client_address: node.client_address.clone(),
        version: node.version.clone(),
    };
    let reply = PeerClient::new(channel).join(request).await;
    let reply: JoinReply = reply.map_err(|status| status.message().to_owned())?.into_inner();
    let cluster_id: [u8; 16] =
        reply.cluster_id.as_ref().try_into().map_err(|_| "the cluster id is not 16 bytes")?;
    let identity = Identity {
        cluster_id: u128::from_be_bytes(cluster_id),
        cluster_epoch: u16::try_from(reply.cluster_epoch)
            .map_err(|_| "the cluster epoch is out of range")?,
        node_id: NodeId(reply.node_id),
        instance,
    };
    let peers = reply.peers.into_iter().map(|peer| (NodeId(peer.node_id), peer.address)).collect();
    Ok((identity, peers))
}
