//! What all links shall be like, as one value.
//!
//! A [`Network`] says for each ordered pair of parties how what the first sends reaches the second,
//! and whom nobody can connect to. A topology's latencies and all faults are folded into one network,
//! which the proxies take over as a whole; healing is folding without the fault. Pure: no sockets
//! here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use anchorhold_cluster::{Delay, Topology};

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

    /// What a distance does.
    fn of(delay: Delay) -> Self {
        Self { delay: delay.least, jitter: delay.jitter, ..Self::default() }
    }

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
    /// The links of a topology while nothing is wrong: its latencies between nodes. Clients are
    /// at no distance from any.
    pub fn of(topology: &Topology) -> Self {
        let nodes = topology.nodes();
        let mut network = Self::default();
        for from in &nodes {
            for to in nodes.iter().filter(|to| to.name != from.name) {
                let flow = Flow::of(topology.latency.between(from, to));
                if !flow.is_free() {
                    network.worsen(&Party::node(&from.name), &Party::node(&to.name), flow);
                }
            }
        }
        network
    }

    /// How long a token takes at most from one party to another and back, where nothing is lost or
    /// held and bandwidth has no bound.
    pub fn round_trip_max(&self, one: &Party, other: &Party) -> Duration {
        let [there, back] = [self.flow(one, other), self.flow(other, one)];
        there.delay + there.jitter + back.delay + back.jitter
    }

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
    fn a_topology_delays_what_zones_and_regions_send_each_other() {
        let text = "name = \"t\"\n[latency]\nzone_ms = 0.5\nregion_ms = 20\nregion_jitter_ms = 3\n\
            [[region]]\nname = \"r\"\nzone = [{ name = \"a\", nodes = 2 }, { name = \"b\", nodes = 1 }]\n\
            [[region]]\nname = \"s\"\nzone = [{ name = \"c\", nodes = 1 }]\n";
        let network = Network::of(&Topology::parse("t.toml", text).unwrap());
        let (a, b, c) = (Party::node("a1"), Party::node("b1"), Party::node("c1"));
        let micros = |from: &Party, to: &Party| {
            let flow = network.flow(from, to);
            (flow.delay.as_micros(), flow.jitter.as_micros())
        };
        assert_eq!(micros(&a, &Party::node("a2")), (0, 0));
        assert_eq!((micros(&a, &b), micros(&b, &a)), ((500, 0), (500, 0)));
        assert_eq!((micros(&a, &c), micros(&c, &b)), ((20_000, 3_000), (20_000, 3_000)));
        assert_eq!(micros(&Party::Clients, &c), (0, 0));
        assert_eq!(network.round_trip_max(&a, &c), Duration::from_millis(46));
        assert_eq!(Network::of(&Topology::three_zones(2)), Network::default());
    }

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
