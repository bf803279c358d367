//! What all links shall be like, as one value.
//!
//! A [`Network`] says for each ordered pair of parties how what the first sends reaches the second,
//! and whom nobody can connect to. Faults are folded into one network, which the proxies take over
//! as a whole; healing is folding without the fault. Pure: no sockets here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// Who sends or receives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    /// A node, by name.
    Node(String),
    /// All clients together.
    Clients,
}

/// How bytes get from one party to another. The default is at once.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Flow {
    /// Each byte takes this long.
    pub delay: Duration,
    /// And up to this much longer, evenly spread.
    pub jitter: Duration,
    /// At most this many bytes a second; `None` sets no bound.
    pub bytes_per_second: Option<u64>,
    /// Share of writes that wait for a retransmission, in [0, 1]: what a stream shows of a lost
    /// packet.
    pub loss: f64,
    /// Nothing gets through: held, not lost, as long as it lasts.
    pub stalled: bool,
}

/// How long a lost packet holds up a stream: Linux's least retransmission time-out, 200 ms
/// (`TCP_RTO_MIN` in `include/net/tcp.h`).
pub const RETRANSMISSION: Duration = Duration::from_millis(200);

/// All links, as they shall be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Network {
    flows: BTreeMap<Party, BTreeMap<Party, Flow>>,
    refusing: BTreeSet<String>,
}

impl Party {
    /// A node.
    pub fn node(name: &str) -> Self {
        Self::Node(name.to_owned())
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => f.write_str(name),
            Self::Clients => f.write_str("clients"),
        }
    }
}

impl Flow {
    /// Nothing gets through.
    pub const STALLED: Self = Self {
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        bytes_per_second: None,
        loss: 0.0,
        stalled: true,
    };

    /// Whether bytes pass at once.
    pub fn is_free(&self) -> bool {
        *self == Self::default()
    }

    /// Both at once: delays add up, the narrower bandwidth and the larger loss hold.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let narrower = match (self.bytes_per_second, other.bytes_per_second) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
        Self {
            delay: self.delay + other.delay,
            jitter: self.jitter + other.jitter,
            bytes_per_second: narrower,
            loss: self.loss.max(other.loss),
            stalled: self.stalled || other.stalled,
        }
    }
}

impl Network {
    /// How bytes get from one party to another.
    pub fn flow(&self, from: &Party, to: &Party) -> Flow {
        self.flows.get(from).and_then(|flows| flows.get(to)).copied().unwrap_or_default()
    }

    /// Adds what is wrong from one party to another to what is wrong there already.
    pub fn worsen(&mut self, from: &Party, to: &Party, flow: Flow) {
        let flows = self.flows.entry(from.clone()).or_default();
        let known = flows.entry(to.clone()).or_default();
        *known = known.and(flow);
    }

    /// Nobody can connect to this node, as if nothing listened there.
    pub fn refuse(&mut self, node: &str) {
        self.refusing.insert(node.to_owned());
    }

    /// Whether nobody can connect to this node.
    pub fn is_refusing(&self, node: &str) -> bool {
        self.refusing.contains(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_on_one_flow_add_up() {
        let (a, b) = (Party::node("a1"), Party::node("b1"));
        let mut network = Network::default();
        let slow = Flow { delay: Duration::from_millis(3), loss: 0.2, ..Flow::default() };
        network.worsen(&a, &b, slow);
        network.worsen(&a, &b, Flow { bytes_per_second: Some(9), loss: 0.1, ..slow });
        network.worsen(&a, &b, Flow { bytes_per_second: Some(5), ..Flow::STALLED });
        let flow = network.flow(&a, &b);
        assert_eq!(flow.delay, Duration::from_millis(6));
        assert_eq!((flow.bytes_per_second, flow.loss, flow.stalled), (Some(5), 0.2, true));
        assert!(network.flow(&b, &a).is_free(), "the other direction is another flow");
    }
}
