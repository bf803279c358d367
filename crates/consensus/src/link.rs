//! The links between this node and its peers.
//!
//! Per peer there are two streams, each on a connection of its own: control (heartbeats, votes,
//! read indexes) and data (entries). Snapshots and calls use further connections. The first
//! message each way is the handshake; a peer of another cluster, another epoch or another format,
//! or one that expected somebody else at this address, is refused.
//!
//! Frames carry messages of many groups: everything that waits goes out together. Idle heartbeats
//! may wait up to `HOLD` so that those of all groups share a frame. Queues are bounded; when one
//! is full, or the link is down, a question fails at once.

pub mod endpoint;
mod stream;

pub use endpoint::PeerEndpoint;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anchorhold_model::NodeId;
use anchorhold_proto::peer_v1::peer_client::PeerClient;
use anchorhold_proto::peer_v1::{CallRequest, PeerHello};
use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::Notify;
use tonic::transport::Channel;

use crate::error::CallError;
use crate::seams::Dial;
use crate::{Identity, wire};

use stream::StreamClass;
pub(crate) use stream::{LinkStream, Question};

/// Longest wait of an idle heartbeat for company.
const HOLD: Duration = Duration::from_millis(10);

/// Largest message on a link, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// All peers of this node.
pub(crate) struct Peers {
    identity: Identity,
    own_address: String,
    dial: Arc<dyn Dial>,
    messages_max: usize,
    peers: RwLock<BTreeMap<NodeId, Arc<Peer>>>,
    /// Told when a peer begins to refuse connections.
    refused: Notify,
}

/// Who a peer is and where it can be reached now.
pub(crate) struct Place {
    node_id: NodeId,
    address: ArcSwap<String>,
    /// Whether its host refused the last attempt to connect: its process has ended.
    refuses: AtomicBool,
}

impl Place {
    /// A fresh channel to the peer as it is announced now.
    fn dial(&self, dial: &dyn Dial) -> Result<Channel, String> {
        dial.channel(self.node_id, &self.address.load())
    }
}

/// One peer and the links to it.
pub(crate) struct Peer {
    place: Arc<Place>,
    pub(crate) control: LinkStream,
    pub(crate) data: LinkStream,
    /// Channels of calls and of snapshots, with the address that they were made for.
    calls: RwLock<Option<(String, Channel)>>,
    bulk: RwLock<Option<(String, Channel)>>,
}

impl Peers {
    pub(crate) fn new(
        identity: Identity,
        own_address: String,
        dial: Arc<dyn Dial>,
        messages_max: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            identity,
            own_address,
            dial,
            messages_max,
            peers: RwLock::default(),
            refused: Notify::new(),
        })
    }

    /// The handshake that this node sends to a peer.
    pub(crate) fn hello(&self, target: NodeId) -> PeerHello {
        PeerHello {
            cluster_id: Bytes::copy_from_slice(&self.identity.cluster_id.to_be_bytes()),
            cluster_epoch: u32::from(self.identity.cluster_epoch),
            node_id: self.identity.node_id.0,
            target_node_id: target.0,
            format_version: wire::FORMAT_VERSION,
            address: self.own_address.clone(),
        }
    }

    /// Checks a peer's handshake and notes where that peer lives.
    ///
    /// # Errors
    /// Which field does not fit.
    pub(crate) fn check_hello(self: &Arc<Self>, hello: &PeerHello) -> Result<NodeId, String> {
        let own = self.hello(NodeId(hello.node_id));
        if hello.cluster_id != own.cluster_id {
            return Err("the peer belongs to another cluster".into());
        }
        if hello.cluster_epoch != own.cluster_epoch {
            return Err(format!(
                "the peer is in cluster epoch {}, this node in {}",
                hello.cluster_epoch, own.cluster_epoch
            ));
        }
        if hello.format_version != own.format_version {
            return Err(format!(
                "the peer speaks format {}, this node {}",
                hello.format_version, own.format_version
            ));
        }
        if hello.target_node_id != self.identity.node_id.0 {
            return Err(format!(
                "the peer looks for node {}, this is node {}",
                hello.target_node_id, self.identity.node_id.0
            ));
        }
        let node = NodeId(hello.node_id);
        if node == self.identity.node_id {
            return Err("the peer claims this node's own id".into());
        }
        if !hello.address.is_empty() {
            self.set_address(node, &hello.address);
        }
        Ok(node)
    }

    /// Notes where a peer can be reached.
    pub(crate) fn set_address(self: &Arc<Self>, node: NodeId, address: &str) {
        if node == self.identity.node_id || address.is_empty() {
            return;
        }
        if let Some(peer) = self.get(node) {
            if **peer.place.address.load() != address {
                peer.place.address.store(Arc::new(address.to_owned()));
            }
            return;
        }
        let mut peers = self.peers.write();
        peers.entry(node).or_insert_with(|| {
            let address = ArcSwap::from_pointee(address.to_owned());
            let refuses = AtomicBool::new(false);
            let place = Arc::new(Place { node_id: node, address, refuses });
            let stream =
                |class| LinkStream::start(self.clone(), place.clone(), class, self.messages_max);
            Arc::new(Peer {
                control: stream(StreamClass::Control),
                data: stream(StreamClass::Data),
                place,
                calls: RwLock::default(),
                bulk: RwLock::default(),
            })
        });
    }

    pub(crate) fn get(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.peers.read().get(&node).cloned()
    }

    /// Notes how an attempt to connect to a peer went.
    fn note_refusal(&self, place: &Place, refuses: bool) {
        if !place.refuses.swap(refuses, Ordering::AcqRel) && refuses {
            self.refused.notify_one();
        }
    }

    /// Whether a peer refuses connections.
    pub(crate) fn refuses(&self, node: NodeId) -> bool {
        self.get(node).is_some_and(|peer| peer.place.refuses.load(Ordering::Acquire))
    }

    /// All peers that refuse connections.
    pub(crate) fn refusing(&self) -> Vec<NodeId> {
        let peers = self.peers.read();
        let refusing = peers.iter().filter(|(_, peer)| peer.place.refuses.load(Ordering::Acquire));
        refusing.map(|(node, _)| *node).collect()
    }

    /// Waits until another peer refuses connections.
    pub(crate) async fn refused(&self) {
        self.refused.notified().await;
    }

    /// All known peers and their addresses.
    pub(crate) fn addresses(&self) -> Vec<(NodeId, String)> {
        let peers = self.peers.read();
        peers.iter().map(|(id, peer)| (*id, String::clone(&peer.place.address.load()))).collect()
    }

    /// One question to a peer outside any group.
    pub(crate) async fn call(
        &self,
        node: NodeId,
        kind: CallKind,
        content: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        let unreachable =
            |sent, reason: String| CallError::Unreachable { node: node.0, sent, reason };
        let peer = self.get(node).ok_or(CallError::UnknownNode { node: node.0 })?;
        let channel = peer.channel(&peer.calls, &*self.dial).map_err(|e| unreachable(false, e))?;
        let mut client = PeerClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let mut request = tonic::Request::new(CallRequest {
            hello: prost::Message::encode_to_vec(&self.hello(node)).into(),
            kind: kind.number(),
            content,
        });
        request.set_timeout(timeout);
        match tokio::time::timeout(timeout, client.call(request)).await {
            Ok(Ok(reply)) => Ok(reply.into_inner().content),
            Ok(Err(status)) => {
                // A refused connection never carried the call; anything else may have.
                let sent = !status.message().contains("tcp connect error");
                Err(unreachable(sent, status.message().to_owned()))
            }
            Err(_) => Err(unreachable(true, format!("no answer within {timeout:?}"))),
        }
    }
}

/// What a call asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallKind {
    /// For the server's `CallHandler`.
    Server,
    /// A catalog command, to be proposed by the catalog's leader.
    Catalog,
    /// How the node is.
    Vitals,
    /// Whether another node refuses its connections.
    Refused,
    /// What a shard's leader wants of a replica that is none yet, or no more.
    Member,
    /// Whether replicas here may rest: nothing is asked of their shards.
    Quiesce,
    /// That a shard is not to rest, and whether the node's replica leads it.
    Rouse,
    /// Which of some shards are led by this node's replicas.
    Leads,
    /// How much of a snapshot a broken transfer has left on the node.
    SnapshotHeld,
    /// That a replica sends its snapshot to another node.
    SendSnapshot,
}

impl CallKind {
    const ALL: [Self; 10] = [
        Self::Server,
        Self::Catalog,
        Self::Vitals,
        Self::Refused,
        Self::Member,
        Self::Quiesce,
        Self::Rouse,
        Self::Leads,
        Self::SnapshotHeld,
        Self::SendSnapshot,
    ];

    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Server => 1,
            Self::Catalog => 2,
            Self::Vitals => 3,
            Self::Refused => 4,
            Self::Member => 5,
            Self::Quiesce => 6,
            Self::Rouse => 7,
            Self::Leads => 8,
            Self::SnapshotHeld => 9,
            Self::SendSnapshot => 10,
        }
    }

    pub(crate) fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }
}

impl Peer {
    fn channel(
        &self,
        slot: &RwLock<Option<(String, Channel)>>,
        dial: &dyn Dial,
    ) -> Result<Channel, String> {
        let address = self.place.address.load();
        if let Some((made_for, channel)) = &*slot.read()
            && *made_for == **address
        {
            return Ok(channel.clone());
        }
        let channel = self.place.dial(dial)?;
        *slot.write() = Some((String::clone(&address), channel.clone()));
        Ok(channel)
    }

    /// The channel of snapshots.
    pub(crate) fn bulk_channel(&self, dial: &dyn Dial) -> Result<Channel, String> {
        self.channel(&self.bulk, dial)
    }
}

impl Peers {
    /// The dialer, for channels that a caller opens by itself.
    pub(crate) fn dialer(&self) -> &dyn Dial {
        &*self.dial
    }
}
