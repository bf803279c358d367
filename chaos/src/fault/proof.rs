//! Seeing that a fault took.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, sleep};

use super::Seen;
use crate::control::{Applied, Wanted};
use crate::cut::Cut;
use crate::driver::{Fabric, ProcessDriver};
use crate::network::{Flow, Network, Party};
use crate::proxy::{LinkId, Probe};
use crate::scenario::{Fault, FaultKind};

/// How long a token has to not come through a stalled link, beside the time that it would take.
const SILENCE: Duration = Duration::from_millis(60);
/// How long it may take until something was sent over every cut link.
const DROPS_MAX: Duration = Duration::from_secs(5);
/// How long a token may take over a slow one.
const PATIENCE: Duration = Duration::from_secs(10);
/// Tokens sent over a lossy link until one is lost.
const TOKENS_MAX: u32 = 400;
/// How long a heal waits for a node to come to its failpoint.
const FAILPOINT_MAX: Duration = Duration::from_secs(5);
/// How long a disk fault may go without meeting anyone.
const DISK_HIT_MAX: Duration = Duration::from_secs(5);

/// A clock that was told to run fast.
#[derive(Clone, Debug)]
pub(super) struct Drift {
    node: String,
    rate: f64,
    begun: Instant,
    /// How far it was ahead then, jumps aside, in milliseconds.
    ahead_ms: i64,
}

impl Drift {
    /// Tells a node's clocks to run fast by a rate.
    pub(super) async fn begin(
        driver: &ProcessDriver,
        node: &str,
        rate: f64,
    ) -> anyhow::Result<Self> {
        let ahead_ms = Self::ahead_ms(driver, node, |wanted| wanted.clock_drift = rate).await?;
        Ok(Self { node: node.to_owned(), rate, begun: Instant::now(), ahead_ms })
    }

    /// Changes what is wanted, and says how far the clock is ahead, but for what it was told to jump.
    async fn ahead_ms(
        driver: &ProcessDriver,
        node: &str,
        change: impl FnOnce(&mut Wanted),
    ) -> anyhow::Result<i64> {
        let mut jump_ms = 0;
        let change = |wanted: &mut Wanted| {
            change(wanted);
            jump_ms = wanted.clock_offset_ms;
        };
        let applied = driver.control(node)?.change(change).await?;
        Ok(clock_ahead_ms(&applied) - jump_ms)
    }
}

/// Clocks that were told to run fast have gained at least half of what they should have.
pub(super) async fn drifted(driver: &ProcessDriver, clocks: &[Drift]) -> anyhow::Result<Seen> {
    let (mut detail, mut all) = (Vec::new(), true);
    for clock in clocks {
        let now_ms = match Drift::ahead_ms(driver, &clock.node, |_| {}).await {
            Ok(now_ms) => now_ms,
            Err(error) => return Ok(Seen::of(false, format!("{}: {error:#}", clock.node))),
        };
        let gained_ms = now_ms - clock.ahead_ms;
        all &= has_gained(gained_ms, clock.rate * clock.begun.elapsed().as_secs_f64() * 1_000.0);
        detail.push(format!("{}: the clock gained {gained_ms} ms", clock.node));
    }
    Ok(Seen::of(all, detail.join("; ")))
}

/// Between a look at a node's clock and one at this machine's lie some milliseconds.
#[expect(clippy::cast_precision_loss, reason = "milliseconds of a run are few")]
fn has_gained(gained_ms: i64, asked_ms: f64) -> bool {
    const NOISE_MS: f64 = 10.0;
    asked_ms / 2.0 - NOISE_MS <= gained_ms as f64
}

/// Connections made through the proxies of some links so far.
pub(super) fn connections(driver: &ProcessDriver, links: &BTreeSet<LinkId>) -> u64 {
    let fabric = driver.fabric();
    let counters = links.iter().filter_map(|link| fabric.counters(link));
    counters.map(|counters| counters.connections.load(Ordering::Relaxed)).sum()
}

/// The processes are gone, and their ports refuse.
pub(super) async fn dead(driver: &ProcessDriver, nodes: &[String]) -> anyhow::Result<Seen> {
    let mut gone = true;
    for node in nodes {
        gone &= driver.process(node)?.is_none();
    }
    let refused = refused(driver, nodes).await;
    Ok(Seen::of(gone && refused, format!("{} processes are gone, their ports refuse", nodes.len())))
}

/// The nodes came to a failpoint and ended there. Waits a little for those that have not.
pub(super) async fn ended_at(
    driver: &ProcessDriver,
    nodes: &[String],
    point: &str,
) -> anyhow::Result<Seen> {
    let give_up = Instant::now() + FAILPOINT_MAX;
    let words = format!("ended at the failpoint {point}");
    let mut missing = nodes.to_vec();
    loop {
        let mut left = Vec::new();
        for node in missing {
            let has_ended = driver.process(&node)?.is_none();
            if !(has_ended && driver.last_words(&node).contains(&words)) {
                left.push(node);
            }
        }
        missing = left;
        if missing.is_empty() || give_up < Instant::now() {
            let detail = match missing.as_slice() {
                [] => format!("{} {words}", nodes.join(", ")),
                missing => format!("{} did not come to {point}", missing.join(", ")),
            };
            return Ok(Seen::of(missing.is_empty(), detail));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// The links are as the cut says.
pub(super) async fn links(driver: &ProcessDriver, cut: &Cut) -> Seen {
    if let Fabric::Packets(_) = driver.fabric() {
        return packets(driver, cut).await;
    }
    let network = driver.fabric().network();
    let probed = probed_links(driver, cut, &network);
    if !cut.refusing.is_empty() {
        return Seen::of(refused(driver, &cut.refusing).await, "new connections are refused");
    }
    if probed.is_empty() {
        return Seen::took("nothing to probe: the nodes are down");
    }
    let is_lossy = cut.flows.iter().any(|(_, _, flow)| 0.0 < flow.loss);
    if is_lossy {
        return lossy(driver, &probed).await;
    }
    let wait = patience(&network, &probed);
    let probes = driver.fabric().probe(&probed, wait).await;
    let wrong: Vec<String> =
        probes.iter().filter_map(|(link, probe)| contradiction(&network, link, probe)).collect();
    let count = probes.len();
    let detail = match wrong.first() {
        None => format!("{count} links probed, all as declared"),
        Some(first) => format!("{} of {count} links are not as declared: {first}", wrong.len()),
    };
    Seen::of(wrong.is_empty(), detail)
}

/// Packets were dropped between every two nodes that run and are cut off from each other, and
/// somewhere at all: what clients send is theirs to decide.
async fn packets(driver: &ProcessDriver, cut: &Cut) -> Seen {
    let runs = |party: &Party| match party {
        Party::Node(name) => matches!(driver.process(name), Ok(Some(_))),
        Party::Clients => false,
    };
    let flows = cut.flows.iter().filter(|(from, to, _)| runs(from) && runs(to));
    let wanted: Vec<(Party, Party)> =
        flows.map(|(from, to, _)| (from.clone(), to.clone())).collect();
    let give_up = Instant::now() + DROPS_MAX;
    loop {
        let dropped = match driver.fabric().dropped() {
            Ok(dropped) => dropped.unwrap_or_default(),
            Err(error) => return Seen::of(false, format!("{error:#}")),
        };
        let count = |pair: &(Party, Party)| dropped.get(pair).copied().unwrap_or_default();
        let silent = wanted.iter().find(|pair| count(pair) == 0);
        let sum: u64 = dropped.values().sum();
        if (silent.is_none() && 0 < sum) || give_up < Instant::now() {
            let detail = match silent {
                None => format!("{sum} packets dropped so far, on every cut link"),
                Some((from, to)) => format!("nothing from {from} to {to} was dropped"),
            };
            return Seen::of(silent.is_none() && 0 < sum, detail);
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// The links that a cut touches, those to dead nodes left out.
fn probed_links(driver: &ProcessDriver, cut: &Cut, network: &Network) -> Vec<LinkId> {
    let touched = |link: &LinkId| {
        let to = Party::Node(link.to.clone());
        let is_touched = cut.flows.iter().any(|(from, towards, _)| {
            (*from == link.from && *towards == to) || (*from == to && *towards == link.from)
        });
        is_touched && !network.is_refusing(&link.to)
    };
    driver.fabric().links().into_iter().filter(touched).collect()
}

/// How long tokens over these links are waited for.
fn patience(network: &Network, links: &[LinkId]) -> Duration {
    let ends = |link: &LinkId| (link.from.clone(), Party::Node(link.to.clone()));
    let ends: Vec<(Party, Party)> = links.iter().map(ends).collect();
    let is_stalled = |(one, other): &(Party, Party)| {
        network.flow(one, other).stalled || network.flow(other, one).stalled
    };
    if !ends.iter().any(is_stalled) {
        return PATIENCE;
    }
    let longest = ends.iter().map(|(one, other)| network.round_trip_max(one, other)).max();
    SILENCE + longest.unwrap_or_default()
}

/// What a token's fate says against what was declared.
fn contradiction(network: &Network, link: &LinkId, probe: &Probe) -> Option<String> {
    let to = Party::Node(link.to.clone());
    let (forward, backward) = (network.flow(&link.from, &to), network.flow(&to, &link.from));
    let name = format!("{} to {}", link.from, link.to);
    if forward.stalled {
        return probe.arrived.then(|| format!("{name}: a token arrived over a stalled flow"));
    }
    if backward.stalled {
        let came_back = probe.returned.is_some();
        return (came_back || !probe.arrived)
            .then(|| format!("{name}: {probe:?} with no way back"));
    }
    let least = least_time(&forward) + least_time(&backward);
    match probe.returned {
        Some(took) if least <= took => None,
        other => Some(format!("{name}: took {other:?}, at least {least:?} was asked for")),
    }
}

fn least_time(flow: &Flow) -> Duration {
    // A token of 4 KiB; the first bytes of a burst are free of charge for rounding.
    let wire = flow
        .bytes_per_second
        .map_or(Duration::ZERO, |rate| Duration::from_secs_f64(4_000.0 / rate.max(1) as f64));
    flow.delay + wire
}

/// Whether new connections to all these nodes are refused.
async fn refused(driver: &ProcessDriver, nodes: &[String]) -> bool {
    // A listener is closed a moment after it is told to.
    for _ in 0..50 {
        let mut all = true;
        for node in nodes {
            if let Some(address) = driver.fabric().address(&Party::Clients, node) {
                all &= tokio::net::TcpStream::connect(address).await.is_err();
            }
        }
        if all {
            return true;
        }
        sleep(Duration::from_millis(10)).await;
    }
    false
}

async fn lossy(driver: &ProcessDriver, links: &[LinkId]) -> Seen {
    let losses = || -> u64 {
        let counters = links.iter().filter_map(|link| driver.fabric().counters(link));
        counters.map(|counters| counters.losses.load(Ordering::Relaxed)).sum()
    };
    let before = losses();
    let mut tokens = 0;
    while losses() == before && tokens < TOKENS_MAX {
        driver.fabric().probe(links, PATIENCE).await;
        tokens += 1;
    }
    let lost = losses() - before;
    Seen::of(0 < lost, format!("{lost} writes waited for a retransmission within {tokens} tokens"))
}

/// How far a node's clock is ahead of this machine's, in milliseconds.
#[expect(clippy::disallowed_methods, reason = "compared with what a node says at the same time")]
pub(super) fn clock_ahead_ms(applied: &Applied) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
    i64::try_from(applied.wall_ms).unwrap_or(i64::MAX).saturating_sub(now)
}

/// Breaks a disk, and waits until someone has met the fault. Says whether that was so.
pub(super) async fn disk(
    driver: &ProcessDriver,
    node: &str,
    fault: &Fault,
) -> anyhow::Result<(bool, String)> {
    let control = driver.control(node)?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "settings are checked: from 1 to 600,000"
    )]
    let stall_ms = fault.settings.stall_ms as u64;
    // Named alike in the catalogue and in the node's answer.
    let hit = fault.kind.row().name;
    let hits = |applied: &Applied| applied.hits.get(hit).copied().unwrap_or_default();
    let before = hits(&control.change(|_| {}).await?);
    control.want(|wanted| {
        // What another fault wants of the same disk stays.
        wanted.disk_full |= fault.kind == FaultKind::DiskFull;
        wanted.disk_write_error |= fault.kind == FaultKind::DiskWriteError;
        wanted.disk_sync_error |= fault.kind == FaultKind::DiskSyncError;
        if fault.kind == FaultKind::DiskStall {
            wanted.disk_stall_ms = stall_ms;
        }
    })?;
    let give_up = Instant::now() + DISK_HIT_MAX;
    while Instant::now() < give_up {
        if driver.process(node)?.is_none() {
            return Ok((true, format!("ended itself: {}", driver.last_words(node))));
        }
        if let Ok(applied) = control.change(|_| {}).await
            && before < hits(&applied)
        {
            return Ok((true, format!("{} calls met it so far", hits(&applied) - before)));
        }
        sleep(Duration::from_millis(20)).await;
    }
    // One that ended itself gives no answer, which is waited for in vain.
    if driver.process(node)?.is_none() {
        return Ok((true, format!("ended itself: {}", driver.last_words(node))));
    }
    Ok((false, "no call met it".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    fn link() -> LinkId {
        LinkId { from: Party::node("a1"), to: "b1".to_owned() }
    }

    /// Two nodes 20 ms apart, and a fault on top.
    fn network(there: Flow, back: Flow) -> Network {
        let (a, b) = (Party::node("a1"), Party::node("b1"));
        let base = Flow { delay: milliseconds(20), jitter: milliseconds(5), ..Flow::default() };
        let mut network = Network::default();
        network.worsen(&a, &b, base.and(there));
        network.worsen(&b, &a, base.and(back));
        network
    }

    #[track_caller]
    fn check(there: Flow, back: Flow, returned_ms: Option<u64>, arrived: bool, is_proof: bool) {
        let returned = returned_ms.map(milliseconds);
        let probe = Probe { arrived, returned, ..Probe::default() };
        let found = contradiction(&network(there, back), &link(), &probe);
        assert_eq!(found.is_none(), is_proof, "{found:?}");
    }

    #[test]
    fn a_slow_link_is_slower_than_its_latency_alone() {
        let slow = Flow { delay: milliseconds(10), ..Flow::default() };
        check(slow, slow, Some(60), true, true);
        check(slow, slow, Some(59), true, false);
        check(slow, slow, Some(41), true, false);
        check(Flow::default(), Flow::default(), Some(40), true, true);
    }

    #[test]
    fn a_token_over_a_stalled_link_is_waited_for_as_long_as_it_could_take() {
        let wait = |there, back| patience(&network(there, back), &[link()]);
        assert_eq!(wait(Flow::STALLED, Flow::STALLED), SILENCE + milliseconds(50));
        assert_eq!(wait(Flow::default(), Flow::STALLED), SILENCE + milliseconds(50));
        assert_eq!(wait(Flow::default(), Flow::default()), PATIENCE);
        check(Flow::STALLED, Flow::default(), None, false, true);
        check(Flow::STALLED, Flow::default(), None, true, false);
        check(Flow::default(), Flow::STALLED, None, true, true);
        check(Flow::default(), Flow::STALLED, None, false, false);
    }
}
