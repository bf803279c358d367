//! Real sockets on loopback; time is only ever a lower bound.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::network::Flow;

/// Long enough that only what cannot happen does not happen within it.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a test waits to see that something does not come.
const SILENCE: Duration = Duration::from_millis(100);

struct Rig {
    mesh: Mesh,
    nodes: Vec<TcpListener>,
}

/// Two nodes that only listen.
async fn rig() -> Rig {
    let mut nodes = Vec::new();
    let mut known = Vec::new();
    for name in ["a1", "b1"] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        known.push((name.to_owned(), address, address));
        nodes.push(listener);
    }
    Rig { mesh: Mesh::start(&known, 1).await.unwrap(), nodes }
}

fn link(from: &str, to: &str) -> LinkId {
    LinkId { from: Party::node(from), to: to.to_owned() }
}

impl Rig {
    /// A connection from a1 to b1 through the proxy: a1's end and b1's.
    async fn connect(&self) -> (TcpStream, TcpStream) {
        let address = self.mesh.address(&Party::node("a1"), "b1").unwrap();
        let near = TcpStream::connect(address).await.unwrap();
        let (far, _) = self.nodes[1].accept().await.unwrap();
        (near, far)
    }

    fn stall(&self, from: &str, to: &str) {
        let mut network = Network::default();
        network.worsen(&Party::node(from), &Party::node(to), Flow::STALLED);
        self.mesh.set(network);
    }

    async fn probe(&self, wait: Duration) -> Probe {
        let link = link("a1", "b1");
        self.mesh.probe(std::slice::from_ref(&link), wait).await[&link]
    }
}

async fn receives(stream: &mut TcpStream, expected: &[u8]) {
    let mut buffer = vec![0; expected.len()];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(buffer, expected);
}

#[tokio::test]
async fn bytes_pass_both_ways_and_are_counted() {
    let rig = rig().await;
    let (mut near, mut far) = rig.connect().await;
    near.write_all(b"question").await.unwrap();
    receives(&mut far, b"question").await;
    far.write_all(b"answer").await.unwrap();
    receives(&mut near, b"answer").await;
    let counters = rig.mesh.counters(&link("a1", "b1")).unwrap();
    assert_eq!(counters.forward_bytes.load(Ordering::Relaxed), 8);
    assert_eq!(counters.backward_bytes.load(Ordering::Relaxed), 6);
    drop(near);
    assert_eq!(far.read(&mut [0]).await.unwrap(), 0, "the end passes too");
}

#[tokio::test]
async fn a_flow_that_stalls_one_way_holds_bytes_and_the_end_until_it_heals() {
    let rig = rig().await;
    let (mut near, mut far) = rig.connect().await;
    rig.stall("a1", "b1");
    near.write_all(b"held").await.unwrap();
    far.write_all(b"free").await.unwrap();
    receives(&mut near, b"free").await;
    drop(near);
    let mut byte = [0];
    assert!(tokio::time::timeout(SILENCE, far.read(&mut byte)).await.is_err());
    rig.mesh.set(Network::default());
    receives(&mut far, b"held").await;
    assert_eq!(far.read(&mut byte).await.unwrap(), 0);
}

#[tokio::test]
async fn the_canary_tells_the_directions_apart() {
    let rig = rig().await;
    assert!(rig.probe(PATIENCE).await.returned.is_some());
    rig.stall("a1", "b1");
    assert_eq!(rig.probe(SILENCE).await, Probe::default());
    rig.stall("b1", "a1");
    let one_way = rig.probe(SILENCE).await;
    assert!(one_way.arrived && one_way.returned.is_none(), "{one_way:?}");
    rig.mesh.set(Network::default());
    assert!(rig.probe(PATIENCE).await.returned.is_some());
}

#[tokio::test]
async fn a_delay_is_at_least_what_was_asked_for() {
    let rig = rig().await;
    rig.probe(PATIENCE).await;
    let mut network = Network::default();
    let flow = Flow { delay: Duration::from_millis(40), ..Flow::default() };
    network.worsen(&Party::node("a1"), &Party::node("b1"), flow);
    network.worsen(&Party::node("b1"), &Party::node("a1"), flow);
    rig.mesh.set(network);
    let returned = rig.probe(PATIENCE).await.returned.unwrap();
    assert!(Duration::from_millis(80) <= returned, "{returned:?}");
}

#[tokio::test]
async fn a_heal_leads_back_to_the_latency_and_not_to_none() {
    let rig = rig().await;
    let apart = Flow { delay: Duration::from_millis(20), ..Flow::default() };
    let mut base = Network::default();
    base.worsen(&Party::node("a1"), &Party::node("b1"), apart);
    base.worsen(&Party::node("b1"), &Party::node("a1"), apart);
    rig.mesh.set(base.clone());
    let before = rig.probe(PATIENCE).await.returned.unwrap();
    assert!(Duration::from_millis(40) <= before, "{before:?}");
    let mut slow = base.clone();
    slow.worsen(&Party::node("a1"), &Party::node("b1"), apart);
    rig.mesh.set(slow);
    let during = rig.probe(PATIENCE).await.returned.unwrap();
    assert!(Duration::from_millis(60) <= during, "{during:?}");
    let mut cut = base.clone();
    cut.worsen(&Party::node("a1"), &Party::node("b1"), Flow::STALLED);
    rig.mesh.set(cut);
    assert!(!rig.probe(SILENCE).await.arrived);
    rig.mesh.set(base);
    let after = rig.probe(PATIENCE).await.returned.unwrap();
    assert!(Duration::from_millis(40) <= after, "{after:?}");
}

#[tokio::test]
async fn a_latency_below_a_millisecond_is_kept_and_not_rounded_up() {
    let rig = rig().await;
    let apart = Flow { delay: Duration::from_micros(300), ..Flow::default() };
    let mut network = Network::default();
    network.worsen(&Party::node("a1"), &Party::node("b1"), apart);
    network.worsen(&Party::node("b1"), &Party::node("a1"), apart);
    rig.mesh.set(network);
    let mut shortest = PATIENCE;
    for _ in 0..200 {
        shortest = shortest.min(rig.probe(PATIENCE).await.returned.unwrap());
    }
    // One of many: the machine may be busy.
    let expected = Duration::from_micros(600)..Duration::from_micros(1_600);
    assert!(expected.contains(&shortest), "{shortest:?}");
}

#[tokio::test]
async fn a_narrow_link_takes_its_time_and_a_lossy_one_counts_its_losses() {
    let rig = rig().await;
    rig.probe(PATIENCE).await;
    let mut network = Network::default();
    // A token of 4 KiB takes 64 ms.
    let flow = Flow { bytes_per_second: Some(64 << 10), ..Flow::default() };
    network.worsen(&Party::node("a1"), &Party::node("b1"), flow);
    rig.mesh.set(network);
    let returned = rig.probe(PATIENCE).await.returned.unwrap();
    assert!(Duration::from_millis(60) <= returned, "{returned:?}");
    let mut network = Network::default();
    network.worsen(&Party::node("a1"), &Party::node("b1"), Flow { loss: 1.0, ..Flow::default() });
    rig.mesh.set(network);
    let returned = rig.probe(PATIENCE).await.returned.unwrap();
    assert!(crate::network::RETRANSMISSION <= returned, "{returned:?}");
    let counters = rig.mesh.counters(&link("a1", "b1")).unwrap();
    assert!(0 < counters.losses.load(Ordering::Relaxed));
}

#[tokio::test]
async fn a_node_that_refuses_is_refused_by_the_kernel_and_back_on_its_port() {
    let rig = rig().await;
    let mut network = Network::default();
    network.refuse("b1");
    rig.mesh.set(network);
    let address = rig.mesh.address(&Party::node("a1"), "b1").unwrap();
    while let Ok(mut accepted) = TcpStream::connect(address).await {
        // The listener is about to be closed.
        let _ = accepted.shutdown().await;
    }
    assert!(rig.probe(PATIENCE).await.is_refused);
    rig.mesh.set(Network::default());
    while rig.probe(PATIENCE).await.returned.is_none() {}
}

#[tokio::test]
async fn a_reset_ends_connections_at_once_and_only_those_of_its_link() {
    let rig = rig().await;
    let (mut near, mut far) = rig.connect().await;
    rig.mesh.reset(BTreeSet::from([link("b1", "a1")]));
    near.write_all(b"still here").await.unwrap();
    receives(&mut far, b"still here").await;
    rig.mesh.reset(BTreeSet::from([link("a1", "b1")]));
    for stream in [&mut near, &mut far] {
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut [0])).await.unwrap();
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
    assert!(rig.probe(PATIENCE).await.returned.is_some());
}

#[tokio::test]
async fn a_dead_node_is_no_connection() {
    let Rig { mesh, nodes } = rig().await;
    drop(nodes);
    let address = mesh.address(&Party::node("a1"), "b1").unwrap();
    // The reset may come while the connection is still being made.
    let used = async { TcpStream::connect(address).await?.read(&mut [0]).await };
    let used = tokio::time::timeout(PATIENCE, used).await.unwrap();
    assert!(used.is_err(), "reset, not closed");
}
