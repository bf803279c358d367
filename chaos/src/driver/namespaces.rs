//! A network of the harness's own: each node in a network namespace, all on one bridge.
//!
//! Needs no root where the kernel gives user namespaces to everybody: the harness runs itself again
//! within one (`unshare --user --map-root-user --net`), and everything here happens inside. Packets
//! that shall not arrive are dropped by nftables on the bridge; each rule counts what it drops,
//! which is the proof of a fault. So a host without power is silent to the last packet, a SYN can
//! vanish, and loss is loss.
//!
//! What it cannot do: delay or narrow a link (that takes a queueing discipline that not every kernel
//! has), refuse a connection, reset one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use parking_lot::Mutex;

use crate::network::{Network, Party};
use crate::scenario::FaultKind;

/// Tells the harness that it runs within a network of its own already.
pub const INSIDE_VARIABLE: &str = "ANCHORHOLD_CHAOS_INSIDE";
/// Tells the nodes' wrapper which namespace is theirs.
pub(super) const NAMESPACE_VARIABLE: &str = "ANCHORHOLD_CHAOS_NAMESPACE";

/// The harness on the bridge, and with it all clients.
const HARNESS: Ipv4Addr = Ipv4Addr::new(10, 71, 0, 254);
/// Nodes at most: the last number of their addresses.
const NODES_MAX: usize = 200;
const BRIDGE: &str = "chaos0";
const TABLE: &str = "chaos";

/// The namespaces of all nodes. They end when this is dropped.
#[derive(Debug)]
pub(super) struct Namespaces {
    nodes: BTreeMap<String, Namespace>,
    network: Mutex<Arc<Network>>,
}

#[derive(Debug)]
struct Namespace {
    /// Keeps it alive.
    holder: Child,
    address: Ipv4Addr,
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // One that has ended is what is wanted.
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}

/// Whether this machine lets a harness have a network of its own; if not, why.
///
/// # Errors
/// What is missing, for people.
pub fn available() -> Result<String, String> {
    let script = format!(
        "ip link add {BRIDGE} type bridge && unshare --net true && echo 'add table bridge {TABLE}' | nft -f - && nft add chain bridge {TABLE} c '{{ type filter hook forward priority 0; }}'"
    );
    let told = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "sh", "-c", &script])
        .output();
    match told {
        Ok(told) if told.status.success() => {
            Ok("allowed; bridge, veth and nftables work without root".to_owned())
        }
        Ok(told) => Err(String::from_utf8_lossy(&told.stderr).trim().replace('\n', "; ")),
        Err(error) => Err(format!("unshare: {error}")),
    }
}

/// Why a fault cannot be done to a network of packets; `None` if it can.
pub(super) fn cannot(kind: FaultKind) -> Option<&'static str> {
    match kind {
        FaultKind::Slow => Some("it cannot delay or narrow a link"),
        FaultKind::Refuse => Some("it cannot refuse connections"),
        FaultKind::Reset => Some("it cannot reset connections"),
        FaultKind::Kill
        | FaultKind::PowerLoss
        | FaultKind::Pause
        | FaultKind::Starve
        | FaultKind::Stop
        | FaultKind::Roll
        | FaultKind::Wipe
        | FaultKind::BitFlip
        | FaultKind::TornTail
        | FaultKind::Isolate
        | FaultKind::OneWayIn
        | FaultKind::OneWayOut
        | FaultKind::Halves
        | FaultKind::Bridge
        | FaultKind::Ring
        | FaultKind::Flap
        | FaultKind::ClientsOnly
        | FaultKind::PeersOnly
        | FaultKind::Lossy
        | FaultKind::ClockJump
        | FaultKind::ClockDrift
        | FaultKind::DiskFull
        | FaultKind::DiskWriteError
        | FaultKind::DiskSyncError
        | FaultKind::DiskStall
        | FaultKind::CrashAt => None,
    }
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let told = Command::new(program).args(arguments).output();
    let told = told.with_context(|| format!("cannot run {program}"))?;
    let said = String::from_utf8_lossy(&told.stderr).trim().to_owned();
    ensure!(told.status.success(), "{program} {}: {said}", arguments.join(" "));
    Ok(())
}

impl Namespaces {
    /// Makes the bridge and a namespace for each node.
    ///
    /// # Errors
    /// If this process is not within a network of its own, or the kernel refuses something.
    pub(super) fn build(names: &[String]) -> anyhow::Result<Self> {
        ensure!(
            std::env::var_os(INSIDE_VARIABLE).is_some(),
            "not within a network of its own: nothing is done to this machine's"
        );
        ensure!(names.len() <= NODES_MAX, "more than {NODES_MAX} nodes");
        run("ip", &["link", "set", "lo", "up"])?;
        run("ip", &["link", "add", BRIDGE, "type", "bridge"])?;
        run("ip", &["addr", "add", &format!("{HARNESS}/24"), "dev", BRIDGE])?;
        run("ip", &["link", "set", BRIDGE, "up"])?;
        let mut nodes = BTreeMap::new();
        for (number, name) in (1_u8..).zip(names) {
            nodes.insert(name.clone(), Namespace::build(number)?);
        }
        let namespaces = Self { nodes, network: Mutex::default() };
        namespaces.set(Network::default())?;
        Ok(namespaces)
    }

    /// A node's address, and the process that holds its namespace.
    pub(super) fn of(&self, name: &str) -> Option<(IpAddr, u32)> {
        let node = self.nodes.get(name)?;
        Some((node.address.into(), node.holder.id()))
    }

    pub(super) fn network(&self) -> Arc<Network> {
        self.network.lock().clone()
    }

    /// All links are like this from now on.
    pub(super) fn set(&self, network: Network) -> anyhow::Result<()> {
        let rules = rules(&self.addresses(), &network);
        // One transaction: everything at once, or nothing.
        let mut nft = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run nft")?;
        nft.stdin.take().context("its input is piped")?.write_all(rules.as_bytes())?;
        let told = nft.wait_with_output()?;
        let said = String::from_utf8_lossy(&told.stderr).trim().to_owned();
        ensure!(told.status.success(), "nft: {said}");
        *self.network.lock() = Arc::new(network);
        Ok(())
    }

    fn addresses(&self) -> BTreeMap<Party, Ipv4Addr> {
        let nodes = self.nodes.iter().map(|(name, node)| (Party::node(name), node.address));
        nodes.chain([(Party::Clients, HARNESS)]).collect()
    }

    /// Packets that each rule has dropped since it was made.
    ///
    /// # Errors
    /// If nftables do not answer.
    pub(super) fn dropped(&self) -> anyhow::Result<BTreeMap<(Party, Party), u64>> {
        let told = Command::new("nft").args(["list", "table", "bridge", TABLE]).output()?;
        let names: BTreeMap<Ipv4Addr, Party> =
            self.addresses().into_iter().map(|(party, address)| (address, party)).collect();
        Ok(counts(&String::from_utf8_lossy(&told.stdout), &names))
    }
}

impl Namespace {
    fn build(number: u8) -> anyhow::Result<Self> {
        // It ends with its input, and so with the harness; it says when it is there.
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up && echo up && exec cat >/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run unshare")?;
        let mut said = [0; 3];
        let output = holder.stdout.as_mut().context("its output is piped")?;
        std::io::Read::read_exact(output, &mut said).context("no network namespace can be had")?;
        let address = Ipv4Addr::new(10, 71, 0, number);
        let namespace = Self { holder, address };
        let holder = namespace.holder.id().to_string();
        let end = format!("chaos-{number}");
        run(
            "ip",
            &["link", "add", &end, "type", "veth", "peer", "name", "eth0", "netns", &holder],
        )?;
        run("ip", &["link", "set", &end, "master", BRIDGE])?;
        run("ip", &["link", "set", &end, "up"])?;
        let inside = format!("ip addr add {address}/24 dev eth0 && ip link set eth0 up");
        run("nsenter", &["--target", &holder, "--net", "sh", "-c", &inside])?;
        Ok(namespace)
    }
}

/// The whole table as a text for `nft`, in place of the one before.
fn rules(addresses: &BTreeMap<Party, Ipv4Addr>, network: &Network) -> String {
    let mut drops = String::new();
    for (from, source) in addresses {
        for (to, target) in addresses {
            let flow = network.flow(from, to);
            let pair = format!("ip saddr {source} ip daddr {target}");
            // Writing to a string cannot fail.
            if flow.stalled {
                let _ = writeln!(drops, "  {pair} counter drop");
            } else if 0.0 < flow.loss {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a share from 0 to 1"
                )]
                let share = (flow.loss * 1_000.0).round() as u32;
                let _ = writeln!(drops, "  {pair} numgen random mod 1000 < {share} counter drop");
            }
        }
    }
    let chain = |hook: &str| {
        format!(" chain {hook} {{\n  type filter hook {hook} priority 0;\n{drops} }}\n")
    };
    // Between nodes frames are forwarded; the harness, and so its clients, is a host on the bridge.
    let chains = ["forward", "input", "output"].map(chain).concat();
    format!(
        "add table bridge {TABLE}\ndelete table bridge {TABLE}\ntable bridge {TABLE} {{\n{chains}}}\n"
    )
}

/// What `nft list` says of each pair, all chains together.
fn counts(listed: &str, names: &BTreeMap<Ipv4Addr, Party>) -> BTreeMap<(Party, Party), u64> {
    let mut counts = BTreeMap::new();
    for line in listed.lines() {
        let after = |word: &str| {
            let mut words = line.split_whitespace().skip_while(|found| *found != word);
            words.nth(1)
        };
        let party = |word: &str| {
            let address: Ipv4Addr = after(word)?.parse().ok()?;
            names.get(&address).cloned()
        };
        let packets = after("packets").and_then(|count| count.parse::<u64>().ok());
        if let (Some(from), Some(to), Some(packets)) = (party("saddr"), party("daddr"), packets) {
            *counts.entry((from, to)).or_default() += packets;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Flow;

    fn addresses() -> BTreeMap<Party, Ipv4Addr> {
        BTreeMap::from([
            (Party::node("a1"), Ipv4Addr::new(10, 71, 0, 1)),
            (Party::node("b1"), Ipv4Addr::new(10, 71, 0, 2)),
            (Party::Clients, HARNESS),
        ])
    }

    #[test]
    fn a_network_becomes_one_table_and_a_whole_one_an_empty_table() {
        let mut network = Network::default();
        network.worsen(&Party::node("a1"), &Party::node("b1"), Flow::STALLED);
        let loss = Flow { loss: 0.05, ..Flow::default() };
        network.worsen(&Party::Clients, &Party::node("a1"), loss);
        let text = rules(&addresses(), &network);
        assert!(text.contains("ip saddr 10.71.0.1 ip daddr 10.71.0.2 counter drop"), "{text}");
        let lossy =
            "ip saddr 10.71.0.254 ip daddr 10.71.0.1 numgen random mod 1000 < 50 counter drop";
        assert!(text.contains(lossy), "{text}");
        assert!(
            !text.contains("ip saddr 10.71.0.2 "),
            "the other direction is another flow: {text}"
        );
        assert!(!rules(&addresses(), &Network::default()).contains("drop"));
    }

    #[test]
    fn what_was_dropped_is_read_from_the_list() {
        let names = addresses().into_iter().map(|(party, address)| (address, party)).collect();
        let listed = "\t\tip saddr 10.71.0.1 ip daddr 10.71.0.2 counter packets 7 bytes 420 drop\n\t\tip saddr 10.71.0.1 ip daddr 10.71.0.2 counter packets 1 bytes 60 drop\n";
        let found = counts(listed, &names);
        assert_eq!(found, BTreeMap::from([((Party::node("a1"), Party::node("b1")), 8)]));
    }
}
