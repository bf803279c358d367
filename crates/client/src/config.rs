//! What a client must be told, and what it may be told.

use std::time::Duration;

use tonic::Code;

use crate::ClientError;

/// Where the cluster is, who is calling, and how patient the caller is.
#[derive(Clone)]
pub struct ClientConfig {
    /// Client addresses of some of the cluster's nodes, `host:port` or `http://host:port`. One that
    /// answers is enough: the others are learnt.
    pub endpoints: Vec<String>,
    /// The key: an account's `ahk_...` for [`crate::Client`], the operators' `aha_...` for
    /// [`crate::AdminClient`].
    pub api_key: String,
    /// How long a call may take, retries included. At most 10 minutes.
    pub deadline: Duration,
    /// When and how calls are retried.
    pub retry: RetryConfig,
    /// HTTP/2 connections to each node. One carries about a thousand callers.
    pub connections_per_node: usize,
    /// The zone that the caller stands in: reads that any replica may serve go there first.
    pub zone: Option<String>,
    /// Whether to learn routes and send requests where they are served. Without it the given
    /// endpoints are used in turn, and nodes forward.
    pub direct: bool,
    /// Seeds request ids and jitter, for tests that must repeat. Unset takes the system's
    /// randomness.
    pub seed: Option<u64>,
}

/// When and how calls are retried.
#[derive(Clone, Copy, Debug)]
pub struct RetryConfig {
    /// How long the first try may take before another node is tried. Each try that runs out of time
    /// doubles it.
    pub attempt_timeout: Duration,
    /// How long a node may be silent before another one is asked as well; longer while answers
    /// usually take longer, and never longer than `attempt_timeout`. The first answer counts.
    pub hedge_after: Duration,
    /// The pause after the first failure that is no matter of a single node.
    pub pause_min: Duration,
    /// The longest pause between two tries.
    pub pause_max: Duration,
    /// How long a node that failed is passed over while others are there.
    pub node_rest: Duration,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// A connection with requests in flight that is silent for this long is probed, and given up if
    /// it stays silent as long again.
    pub keepalive: Duration,
}

/// The one place where the client's numbers are written down.
impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            api_key: String::new(),
            deadline: Duration::from_secs(10),
            retry: RetryConfig::default(),
            connections_per_node: 1,
            zone: None,
            direct: true,
            seed: None,
        }
    }
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            attempt_timeout: Duration::from_secs(2),
            hedge_after: Duration::from_millis(400),
            pause_min: Duration::from_millis(20),
            pause_max: Duration::from_millis(250),
            node_rest: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(1),
            keepalive: Duration::from_secs(2),
        }
    }
}

impl ClientConfig {
    /// Checks what can be checked without a network.
    ///
    /// # Errors
    /// INVALID_ARGUMENT without a reason, because nothing was sent.
    pub fn validate(&self) -> Result<(), ClientError> {
        let problem = if self.endpoints.is_empty() {
            "no endpoints given"
        } else if self.api_key.is_empty() {
            "no API key given"
        } else if self.connections_per_node == 0 {
            "connections_per_node must be at least 1"
        } else if self.deadline.is_zero() || self.retry.attempt_timeout.is_zero() {
            "deadline and attempt_timeout must be greater than 0"
        } else if self.endpoints.iter().any(|endpoint| endpoint.starts_with("https://")) {
            "TLS endpoints are not supported by this version"
        } else {
            return Ok(());
        };
        Err(ClientError::local(Code::InvalidArgument, problem))
    }
}

/// Leaves the key out.
impl std::fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientConfig")
            .field("endpoints", &self.endpoints)
            .field("deadline", &self.deadline)
            .field("retry", &self.retry)
            .field("connections_per_node", &self.connections_per_node)
            .field("zone", &self.zone)
            .field("direct", &self.direct)
            .finish_non_exhaustive()
    }
}
