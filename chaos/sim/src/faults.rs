//! What goes wrong in a run, and when: a plan drawn from the seed before it begins.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use crate::world::NODES;

/// One change to the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The process of a node dies at once; what it has not synced is lost, in part or all.
    Crash(usize),
    /// A crashed node starts again.
    Start(usize),
    /// Messages from one host to another are lost from now on.
    Drop(Host, Host),
    /// They arrive again.
    Deliver(Host, Host),
    /// Messages between two hosts wait.
    Hold(Host, Host),
    /// What waited arrives, and everything after it.
    Release(Host, Host),
    /// A node's wall clock is so many milliseconds off from now on.
    Jump(usize, i64),
    /// A node's syncs take so many milliseconds longer.
    SlowSync(usize, u64),
}

/// Who sends and receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// A node.
    Node(usize),
    /// All clients.
    Clients,
}

/// Changes with their times since the faults began.
pub type Plan = Vec<(Duration, Change)>;

/// Draws a plan whose faults begin within `length`. Each ends, a little later at the latest.
pub fn plan(random: &mut StdRng, length: Duration) -> Plan {
    let millis_max = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
    let mut plan = Plan::new();
    // Until when each node's process is spoken for: it must not crash while it is down.
    let mut free_at = [0; NODES];
    // One run in five has few faults, one in five has many.
    let faults = *[2, 4, 4, 6, 9].choose(random).unwrap_or(&4);
    for _ in 0..faults {
        let begin = random.random_range(0..millis_max * 3 / 4);
        let end = (begin + random.random_range(200..4_000)).min(millis_max);
        draw(random, (begin, end), &mut free_at, &mut plan);
    }
    plan.sort_by_key(|(at, _)| *at);
    plan
}

fn draw(random: &mut StdRng, span: (u64, u64), free_at: &mut [u64; NODES], plan: &mut Plan) {
    let node = random.random_range(0..NODES);
    let other = (node + random.random_range(1..NODES)) % NODES;
    let mut during = |first, last| {
        plan.push((Duration::from_millis(span.0), first));
        plan.push((Duration::from_millis(span.1), last));
    };
    let (a, b) = (Host::Node(node), Host::Node(other));
    match random.random_range(0..100) {
        0..18 => crash(&[node], span, free_at, plan),
        18..23 => crash(&[node, other], span, free_at, plan),
        23..28 => crash(&[0, 1, 2], span, free_at, plan),
        28..34 => crash_while_syncing(random, &[node, other], span.0, free_at, plan),
        34..41 => crash_while_syncing(random, &[0, 1, 2], span.0, free_at, plan),
        41..51 => {
            // Cut off from the other nodes, both ways.
            for peer in (0..NODES).filter(|peer| *peer != node) {
                during(Change::Drop(a, Host::Node(peer)), Change::Deliver(a, Host::Node(peer)));
                during(Change::Drop(Host::Node(peer), a), Change::Deliver(Host::Node(peer), a));
            }
        }
        51..61 => {
            for peer in (0..NODES).filter(|peer| *peer != node) {
                during(Change::Hold(a, Host::Node(peer)), Change::Release(a, Host::Node(peer)));
            }
        }
        61..70 => during(Change::Drop(a, b), Change::Deliver(a, b)),
        70..78 => during(Change::Hold(a, b), Change::Release(a, b)),
        78..83 => during(Change::Hold(a, Host::Clients), Change::Release(a, Host::Clients)),
        83..88 => during(Change::Drop(a, Host::Clients), Change::Deliver(a, Host::Clients)),
        88..94 => {
            let millis = random.random_range(-60_000..60_000);
            during(Change::Jump(node, millis), Change::Jump(node, 0));
        }
        _ => {
            let millis = random.random_range(20..600);
            during(Change::SlowSync(node, millis), Change::SlowSync(node, 0));
        }
    }
}

/// Nodes that lose their power together and get it back one after the other. Their links fall
/// silent first: a machine without power does not close its connections.
fn crash(nodes: &[usize], span: (u64, u64), free_at: &mut [u64; NODES], plan: &mut Plan) {
    for (position, node) in (0_u64..).zip(nodes) {
        let end = span.1 + 150 * position;
        if span.0 <= free_at[*node] {
            continue;
        }
        free_at[*node] = end;
        let (own, begin) = (Host::Node(*node), Duration::from_millis(span.0));
        let end = Duration::from_millis(end);
        let others = (0..NODES).filter(|other| other != node).map(Host::Node);
        for other in others.chain([Host::Clients]) {
            plan.push((begin, Change::Drop(own, other)));
            plan.push((end, Change::Deliver(own, other)));
        }
        plan.push((begin, Change::Crash(*node)));
        plan.push((end, Change::Start(*node)));
    }
}

/// Nodes whose disks have become slow lose their power: what they have not synced by then is what
/// nobody may have been promised. They lose it a second time while they elect leaders.
fn crash_while_syncing(
    random: &mut StdRng,
    nodes: &[usize],
    begin: u64,
    free_at: &mut [u64; NODES],
    plan: &mut Plan,
) {
    let slow = random.random_range(60..500);
    let mut dark = begin + random.random_range(20..3 * slow);
    let mut end = dark;
    for _ in 0..2 {
        end = dark + random.random_range(100..400);
        crash(nodes, (dark, end), free_at, plan);
        dark = end + 150 * nodes.len() as u64 + random.random_range(300..1_600);
    }
    for node in nodes {
        plan.push((Duration::from_millis(begin), Change::SlowSync(*node, slow)));
        plan.push((Duration::from_millis(end), Change::SlowSync(*node, 0)));
    }
}

/// What a link does, as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkState {
    Whole,
    Held,
    /// Lost in the directions that are marked.
    Lost {
        forth: bool,
        back: bool,
    },
}

/// The wanted state of all links: faults overlap, and one that ends must not end another.
#[derive(Debug, Default)]
pub(crate) struct Links {
    drops: BTreeMap<(Host, Host), usize>,
    holds: BTreeMap<(Host, Host), usize>,
}

impl Links {
    /// Takes a change over; the link that it is about, if it is about one.
    pub(crate) fn take(&mut self, change: Change) -> Option<(Host, Host)> {
        let (counts, from, to, more) = match change {
            Change::Drop(from, to) => (&mut self.drops, from, to, true),
            Change::Deliver(from, to) => (&mut self.drops, from, to, false),
            Change::Hold(a, b) => (&mut self.holds, a.min(b), a.max(b), true),
            Change::Release(a, b) => (&mut self.holds, a.min(b), a.max(b), false),
            Change::Crash(_) | Change::Start(_) | Change::Jump(..) | Change::SlowSync(..) => {
                return None;
            }
        };
        let count = counts.entry((from, to)).or_default();
        *count = if more { *count + 1 } else { count.saturating_sub(1) };
        Some((from.min(to), from.max(to)))
    }

    /// What a link shall do now; `a < b`.
    pub(crate) fn state(&self, a: Host, b: Host) -> LinkState {
        let any = |counts: &BTreeMap<_, usize>, key| counts.get(&key).is_some_and(|n| 0 < *n);
        let (forth, back) = (any(&self.drops, (a, b)), any(&self.drops, (b, a)));
        if forth || back {
            LinkState::Lost { forth, back }
        } else if any(&self.holds, (a, b)) {
            LinkState::Held
        } else {
            LinkState::Whole
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn whatever_begins_also_ends() {
        for seed in 0..500 {
            let plan = plan(&mut StdRng::seed_from_u64(seed), Duration::from_secs(10));
            assert!(plan.is_sorted_by_key(|(at, _)| *at));
            let (mut links, mut down) = (Links::default(), [false; NODES]);
            let (mut slow, mut ahead) = ([0; NODES], [0; NODES]);
            for (_, change) in plan {
                links.take(change);
                match change {
                    Change::Crash(node) => assert!(!std::mem::replace(&mut down[node], true)),
                    Change::Start(node) => assert!(std::mem::replace(&mut down[node], false)),
                    Change::SlowSync(node, millis) => slow[node] = millis,
                    Change::Drop(..)
                    | Change::Deliver(..)
                    | Change::Hold(..)
                    | Change::Release(..) => {}
                    Change::Jump(node, millis) => ahead[node] = millis,
                }
            }
            let whole = ([false; NODES], [0; NODES], [0; NODES]);
            assert_eq!((down, slow, ahead), whole, "seed {seed}");
            assert!(links.drops.values().chain(links.holds.values()).all(|count| *count == 0));
        }
    }
}
