//! Connections to nodes.
//!
//! A node is known by its address. Its connections are made when first used and made again after a
//! failure; a node that failed is passed over for a while as long as others are there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use tokio::time::Instant;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::{ClientConfig, ClientError, RetryConfig};

/// A node as this process sees it.
pub(crate) struct Node {
    /// `host:port`.
    pub(crate) address: String,
    channels: Vec<Channel>,
    next: AtomicUsize,
    /// Milliseconds since the pool's start until which it is passed over.
    rests_until_ms: AtomicU64,
}

/// All nodes that this process has heard of.
pub(crate) struct Pool {
    config: RetryConfig,
    connections_per_node: usize,
    start: Instant,
    nodes: RwLock<BTreeMap<String, Arc<Node>>>,
    /// The given endpoints, in the order given.
    seeds: Vec<Arc<Node>>,
    next: AtomicUsize,
}

impl Node {
    /// A connection; they take turns.
    pub(crate) fn channel(&self) -> Channel {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.channels.len();
        self.channels[turn].clone()
    }
}

impl Pool {
    /// Knows the given endpoints. Connects to nobody yet. `turn` is where taking turns begins.
    pub(crate) fn new(config: &ClientConfig, turn: usize) -> Result<Self, ClientError> {
        let mut pool = Self {
            config: config.retry,
            connections_per_node: config.connections_per_node,
            start: Instant::now(),
            nodes: RwLock::default(),
            seeds: Vec::new(),
            next: AtomicUsize::new(turn),
        };
        for endpoint in &config.endpoints {
            let address = endpoint.strip_prefix("http://").unwrap_or(endpoint);
            let node = pool.node(address.trim_end_matches('/'))?;
            pool.seeds.push(node);
        }
        Ok(pool)
    }

    /// The node at an address.
    pub(crate) fn node(&self, address: &str) -> Result<Arc<Node>, ClientError> {
        if let Some(node) = self.nodes.read().get(address) {
            return Ok(node.clone());
        }
        let node = Arc::new(self.open(address)?);
        Ok(self.nodes.write().entry(address.to_owned()).or_insert(node).clone())
    }

    fn open(&self, address: &str) -> Result<Node, ClientError> {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| {
            let message = format!("{address:?} is not host:port: {error}");
            ClientError::local(Code::InvalidArgument, message)
        })?;
        let endpoint = endpoint
            .connect_timeout(self.config.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(self.config.keepalive)
            .keep_alive_timeout(self.config.keepalive)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(8 << 20);
        let channels = (0..self.connections_per_node).map(|_| endpoint.connect_lazy()).collect();
        Ok(Node {
            address: address.to_owned(),
            channels,
            next: AtomicUsize::new(0),
            rests_until_ms: AtomicU64::new(0),
        })
    }

    /// Notes that a node failed.
    pub(crate) fn rest(&self, node: &Node) {
        let until = self.now_ms() + millis(self.config.node_rest);
        node.rests_until_ms.store(until, Ordering::Relaxed);
    }

    /// Notes that a node answered.
    pub(crate) fn wake(&self, node: &Node) {
        if node.rests_until_ms.load(Ordering::Relaxed) != 0 {
            node.rests_until_ms.store(0, Ordering::Relaxed);
        }
    }

    /// Whether a node is passed over for now.
    pub(crate) fn is_resting(&self, node: &Node) -> bool {
        self.now_ms() < node.rests_until_ms.load(Ordering::Relaxed)
    }

    /// The first of `nodes`, or else of the given endpoints, that is neither resting nor tried;
    /// they take turns. If there is none, one that is not tried; else any.
    pub(crate) fn pick(&self, nodes: &[Arc<Node>], is_tried: impl Fn(&Node) -> bool) -> Arc<Node> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let candidates = || in_turn(nodes, turn).chain(in_turn(&self.seeds, turn));
        let fresh = candidates().find(|node| !is_tried(node) && !self.is_resting(node));
        let untried = || candidates().find(|node| !is_tried(node));
        let node = fresh.or_else(untried).or_else(|| candidates().next());
        node.expect("a pool has at least one endpoint, see ClientConfig::validate").clone()
    }

    /// How many nodes are known.
    pub(crate) fn len(&self) -> usize {
        self.nodes.read().len()
    }

    fn now_ms(&self) -> u64 {
        millis(self.start.elapsed())
    }
}

/// All of a list, beginning somewhere.
fn in_turn(nodes: &[Arc<Node>], turn: usize) -> impl Iterator<Item = &Arc<Node>> {
    let (behind, ahead) = nodes.split_at(turn % nodes.len().max(1));
    ahead.iter().chain(behind)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
