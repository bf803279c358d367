//! What links shall be like: the topology's latencies, and on top what each fault does. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::cut::Cut;
use crate::network::Network;

/// The cuts that are on, by fault.
#[derive(Debug, Default)]
pub(super) struct Cuts {
    base: Network,
    of_faults: BTreeMap<u32, Cut>,
    down: BTreeSet<String>,
}

impl Cuts {
    /// No cut: links are as `base` says.
    pub(super) fn new(base: Network) -> Self {
        Self { base, ..Self::default() }
    }

    /// The cut of a fault is on from now on; `None` heals it.
    pub(super) fn set(&mut self, fault: u32, cut: Option<Cut>) {
        match cut {
            Some(cut) => self.of_faults.insert(fault, cut),
            None => self.of_faults.remove(&fault),
        };
    }

    /// Nobody can connect to these nodes, or they can again.
    pub(super) fn set_down(&mut self, names: &[String], is_down: bool) {
        for name in names {
            if is_down {
                self.down.insert(name.clone());
            } else {
                self.down.remove(name);
            }
        }
    }

    /// Takes everything back.
    pub(super) fn clear(&mut self) {
        self.of_faults.clear();
        self.down.clear();
    }

    /// All of it together.
    pub(super) fn network(&self) -> Network {
        let mut network = self.base.clone();
        for cut in self.of_faults.values() {
            cut.add_to(&mut network);
        }
        for node in &self.down {
            network.refuse(node);
        }
        network
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use anchorhold_cluster::Topology;

    use super::*;
    use crate::network::Party;
    use crate::scenario::{FaultKind, FaultSettings};

    const TWO_REGIONS: &str = "name = \"t\"\n[latency]\nregion_ms = 20\nregion_jitter_ms = 2\n\
        [[region]]\nname = \"r\"\nzone = [{ name = \"a\", nodes = 1 }]\n\
        [[region]]\nname = \"s\"\nzone = [{ name = \"b\", nodes = 1 }]\n";

    fn base() -> Network {
        Network::of(&Topology::parse("t.toml", TWO_REGIONS).unwrap())
    }

    fn cut(kind: FaultKind) -> Cut {
        let nodes = ["a1", "b1"].map(str::to_owned);
        let settings =
            FaultSettings { delay_ms: 40.0, jitter_ms: 10.0, ..FaultSettings::default() };
        Cut::of(kind, &nodes[..1], &nodes, &settings)
    }

    #[test]
    fn a_fault_comes_on_top_of_the_latency_and_its_heal_leads_back_to_it() {
        let milliseconds = Duration::from_millis;
        let mut cuts = Cuts::new(base());
        let (a, b) = (Party::node("a1"), Party::node("b1"));
        let flow = |cuts: &Cuts| cuts.network().flow(&a, &b);
        let of = |cuts: &Cuts| (flow(cuts).delay, flow(cuts).jitter);
        assert_eq!(of(&cuts), (milliseconds(20), milliseconds(2)));
        cuts.set(1, Some(cut(FaultKind::Slow)));
        assert_eq!(of(&cuts), (milliseconds(60), milliseconds(12)));
        let of_clients = cuts.network().flow(&Party::Clients, &a);
        assert_eq!(of_clients.delay, milliseconds(40), "clients are at no distance");
        cuts.set(2, Some(cut(FaultKind::Isolate)));
        assert!(flow(&cuts).stalled);
        cuts.set(1, None);
        cuts.set_down(&["b1".to_owned()], true);
        assert!(flow(&cuts).stalled && cuts.network().is_refusing("b1"));
        cuts.set(2, None);
        cuts.set_down(&["b1".to_owned()], false);
        assert_eq!(cuts.network(), base());
        cuts.set(3, Some(cut(FaultKind::Isolate)));
        cuts.clear();
        assert_eq!(cuts.network(), base());
    }
}
