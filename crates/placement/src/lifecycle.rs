//! When a node counts as suspect, dead, back, or gone.
//!
//! ```text
//! Joining ──heard──▶ Up ◀──steady── Returning ◀──heard── Down
//!                    │ ▲               ▲  │               ▲
//!              silent│ │wish      heard│  │silent         │timer
//!                    ▼ ▼               │  ▼               │
//!    Draining, Decommissioning ─silent─▶ Suspect ─────────┘
//!            Decommissioning, or Down and to leave, without replicas ──▶ Removed
//! ```
//!
//! A function of what was observed, so that a new leader of the catalog comes to the same answers:
//! silence counts from when it began to listen. Invariants: no replica is given up before a timer
//! ran out; a removed node stays removed.
//!
//! Not here: who observes (`server`), what follows from a state (`plan`).

use anchorhold_model::Timestamp;
use anchorhold_model::catalog::NodeState;
pub use anchorhold_model::catalog::Wish;

/// Timers of nodes and zones, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LifecycleConfig {
    /// A node silent for this long is suspect.
    pub suspect_ms: u64,
    /// A node silent for this long is down: its replicas are rebuilt elsewhere.
    pub down_ms: u64,
    /// The same for a node whose whole zone went quiet.
    pub zone_down_ms: u64,
    /// Silent nodes of a zone, in thousandths, that make it a zone event.
    pub zone_event_permille: u64,
    /// Within which time they fall silent.
    pub zone_event_window_ms: u64,
    /// How long a node that is back is heard and caught up before it is up.
    pub steady_ms: u64,
}

/// The one place where the timers are written down.
impl Default for LifecycleConfig {
    fn default() -> Self {
        Self {
            suspect_ms: 4_000,
            down_ms: 300_000,
            zone_down_ms: 600_000,
            zone_event_permille: 800,
            zone_event_window_ms: 30_000,
            steady_ms: 60_000,
        }
    }
}

/// Where a node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeLife {
    /// Its state.
    pub state: NodeState,
    /// Since when it has been heard and caught up without a break.
    pub steady_since: Option<Timestamp>,
}

/// What is known of a node now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// When it was heard last, or when listening began if that is later. `None` if it was never
    /// heard.
    pub last_heard: Option<Timestamp>,
    /// Whether its replicas have what their leaders have.
    pub is_caught_up: bool,
    /// Replicas that it holds.
    pub replicas: u64,
    /// Whether its whole zone went quiet.
    pub is_zone_event: bool,
    /// What its operator wants.
    pub wish: Wish,
    /// Until when its silence is expected.
    pub maintenance_until: Option<Timestamp>,
}

/// The next state of a node; one at a time, so a node that was long silent is suspect first.
pub fn step(
    life: NodeLife,
    seen: &Observation,
    now: Timestamp,
    config: &LifecycleConfig,
) -> NodeLife {
    let silent_ms = seen.last_heard.map_or(u64::MAX, |heard| now.0.saturating_sub(heard.0));
    let is_heard = silent_ms < config.suspect_ms;
    let is_steady = is_heard && seen.is_caught_up;
    let steady_since = is_steady.then(|| life.steady_since.unwrap_or(now));
    let state = match life.state {
        NodeState::Removed => NodeState::Removed,
        NodeState::Joining if is_heard => wished(seen),
        NodeState::Joining => NodeState::Joining,
        NodeState::Up | NodeState::Draining | NodeState::Decommissioning if is_heard => {
            wished(seen)
        }
        NodeState::Up | NodeState::Draining | NodeState::Decommissioning => NodeState::Suspect,
        NodeState::Suspect | NodeState::Down if is_heard => NodeState::Returning,
        NodeState::Suspect if is_given_up(silent_ms, seen, now, config) => NodeState::Down,
        NodeState::Suspect => NodeState::Suspect,
        NodeState::Down if seen.wish == Wish::Leave && seen.replicas == 0 => NodeState::Removed,
        NodeState::Down => NodeState::Down,
        NodeState::Returning if !is_heard => NodeState::Suspect,
        NodeState::Returning if seen.wish != Wish::Serve => wished(seen),
        NodeState::Returning => {
            let steady = steady_since.map(|since| now.0.saturating_sub(since.0));
            match steady {
                Some(steady_ms) if config.steady_ms <= steady_ms => NodeState::Up,
                Some(_) | None => NodeState::Returning,
            }
        }
    };
    NodeLife { state, steady_since }
}

/// The state of a node that is heard and was not away.
fn wished(seen: &Observation) -> NodeState {
    match seen.wish {
        Wish::Serve => NodeState::Up,
        Wish::Drain => NodeState::Draining,
        Wish::Leave if seen.replicas == 0 => NodeState::Removed,
        Wish::Leave => NodeState::Decommissioning,
    }
}

fn is_given_up(
    silent_ms: u64,
    seen: &Observation,
    now: Timestamp,
    config: &LifecycleConfig,
) -> bool {
    let limit = if seen.is_zone_event { config.zone_down_ms } else { config.down_ms };
    limit <= silent_ms && seen.maintenance_until.is_none_or(|until| until <= now)
}

/// Whether a zone went quiet as a whole: most of its nodes fell silent, within a short time.
///
/// `last_heard` of each of its nodes; nodes that were never heard do not count.
pub fn is_zone_event(last_heard: &[Timestamp], now: Timestamp, config: &LifecycleConfig) -> bool {
    let is_silent = |heard: &&Timestamp| config.suspect_ms <= now.0.saturating_sub(heard.0);
    let mut silent: Vec<Timestamp> = last_heard.iter().filter(is_silent).copied().collect();
    silent.sort_unstable();
    let needed = (last_heard.len() as u64 * config.zone_event_permille).div_ceil(1_000);
    let Ok(needed) = usize::try_from(needed.max(1)) else { return false };
    silent.windows(needed).any(|window| match (window.first(), window.last()) {
        (Some(first), Some(last)) => last.0 - first.0 <= config.zone_event_window_ms,
        (_, _) => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A life in one line: each word is `<seconds><what>`, what being `.` heard, `-` silent,
    /// `z` silent with its zone, `b` heard but behind, `m` silent in maintenance, `d` drained,
    /// `l` to leave, `0` to leave and empty. The answer is the state after each word.
    #[track_caller]
    fn check(words: &str, expected: &str) {
        let config = LifecycleConfig::default();
        let mut life = NodeLife { state: NodeState::Joining, steady_since: None };
        let mut last_heard = None;
        let mut states = Vec::new();
        for word in words.split_whitespace() {
            let (seconds, what) = word.split_at(word.len() - 1);
            let now = Timestamp(seconds.parse::<u64>().unwrap() * 1_000);
            if !matches!(what, "-" | "z" | "m" | "o") {
                last_heard = Some(now);
            }
            let seen = Observation {
                last_heard,
                is_caught_up: what != "b",
                replicas: u64::from(what != "0" && what != "o"),
                is_zone_event: what == "z",
                wish: match what {
                    "d" => Wish::Drain,
                    "l" | "0" | "o" => Wish::Leave,
                    _ => Wish::Serve,
                },
                maintenance_until: (what == "m").then_some(Timestamp(3_600_000)),
            };
            life = step(life, &seen, now, &config);
            states.push(format!("{:?}", life.state));
        }
        assert_eq!(states.join(" "), expected);
    }

    #[test]
    fn silence_makes_suspect_and_then_down() {
        check("0. 3- 4- 299- 300-", "Up Up Suspect Suspect Down");
    }

    #[test]
    fn a_quiet_zone_has_a_longer_timer() {
        check("0. 4z 300z 599z 600z", "Up Suspect Suspect Suspect Down");
    }

    #[test]
    fn maintenance_suspends_the_timer() {
        check("0. 4m 900m 3599m 3600m", "Up Suspect Suspect Suspect Down");
    }

    #[test]
    fn who_is_back_is_up_only_after_a_steady_minute_in_one_piece() {
        check("0. 300- 300- 400. 459. 460.", "Up Suspect Down Returning Returning Up");
        check(
            "0. 300- 400. 430b 459. 518. 519.",
            "Up Suspect Returning Returning Returning Returning Up",
        );
        check("0. 5- 6. 12- 13.", "Up Suspect Returning Suspect Returning");
    }

    #[test]
    fn a_drained_node_that_comes_back_is_drained_still() {
        check("0d 4- 8d 9d 10.", "Draining Suspect Returning Draining Up");
    }

    #[test]
    fn a_node_that_leaves_is_removed_when_it_is_empty_and_stays_so() {
        check("0. 1l 2l 30 4.", "Up Decommissioning Decommissioning Removed Removed");
        check("0. 300- 301- 400o", "Up Suspect Down Removed");
    }

    #[test]
    fn a_zone_event_is_most_nodes_at_about_the_same_time() {
        let config = LifecycleConfig::default();
        let event = |heard: &[u64]| {
            let heard: Vec<Timestamp> = heard.iter().map(|s| Timestamp(s * 1_000)).collect();
            is_zone_event(&heard, Timestamp(100_000), &config)
        };
        assert!(event(&[50, 60, 70, 75, 100]));
        assert!(!event(&[50, 60, 70, 100, 100]), "three of five are not enough");
        assert!(!event(&[10, 20, 30, 41, 100]), "not at about the same time");
        assert!(event(&[90]));
        assert!(!event(&[]));
    }
}
