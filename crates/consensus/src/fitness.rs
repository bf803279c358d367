//! Whether this node should lead, and what follows from that.
//!
//! A node is *unfit* to lead while its disk is short of room or does not answer, or while its clock
//! is off. Every node asks the others how they are, all the time; that also compares the clocks. An
//! unfit node gives its leaderships to fit ones and does not campaign while one of them can; no
//! safety depends on it.
//!
//! States of a trouble: absent → present when its threshold is crossed → absent when it has stayed
//! clear of the threshold: of half of it (clock), for five seconds without another stall (log), of a
//! quarter more (disk, decided by `storage::disk_space`).
//!
//! Not here: how full the disk is (`server::disk`), what a replica does about it (`conduct`).

pub(crate) mod conduct;
pub(crate) mod gone;
pub(crate) mod keep;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anchorhold_model::{NodeId, Timestamp};
use anchorhold_storage::DiskState;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use self::conduct::NodeFitness;
use crate::ConsensusConfig;
use crate::log_watch::WatchedLog;
use crate::seams::Clock;

/// What a node says of itself counts for this long.
const HEARD_MAX: Duration = Duration::from_secs(4);
/// A log that did not answer must do without another stall for this long.
const STALL_REST: Duration = Duration::from_secs(5);
/// A clock is not compared by an answer that took longer: half of it is the error.
const CLOCK_ROUND_MAX: Duration = Duration::from_millis(250);

/// Why a node should not lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Trouble {
    /// Its disk has little room: it takes no new data.
    DiskAlmostFull,
    /// Its disk has no room.
    DiskFull,
    /// Its log owes an answer for too long: the disk does not write.
    DiskStalled,
    /// Its clock is too far off those of the others.
    ClockOff,
}

/// What a node tells the others of itself.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Vitals {
    wall: Timestamp,
    disk: u8,
    is_fit: bool,
}

/// How a node is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FitnessReport {
    /// How full its disk is.
    pub disk: DiskState,
    /// Why it should not lead; empty if it may.
    pub troubles: Vec<Trouble>,
    /// Its clock minus the median of all clocks it knows, in milliseconds; `None` before it has
    /// heard of another.
    pub clock_offset_ms: Option<i64>,
}

/// What this node knows of its own fitness and of the others'.
pub(crate) struct Fitness {
    clock: Arc<dyn Clock>,
    log: Arc<WatchedLog>,
    stall_max: Duration,
    clock_offset_ms_max: u64,
    /// Whether it is to lead nothing for now, though nothing ails it: it is drained, leaves, or has
    /// just come back.
    is_withdrawn: AtomicBool,
    /// Monotonic time at which this node began to ask.
    began: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    disk: DiskState,
    /// As [`Fitness::spare_bytes`] says.
    spare_bytes: u64,
    /// Monotonic time of the last moment of a stall.
    stalled_at: Option<Duration>,
    is_clock_off: bool,
    others: BTreeMap<NodeId, Other>,
}

struct Other {
    vitals: Vitals,
    heard: Duration,
    /// Its clock minus this node's.
    clock_offset_ms: Option<i64>,
}

impl Fitness {
    pub(crate) fn new(
        clock: Arc<dyn Clock>,
        log: Arc<WatchedLog>,
        config: &ConsensusConfig,
    ) -> Self {
        Self {
            began: clock.monotonic(),
            clock,
            log,
            stall_max: Duration::from_millis(config.log_stall_ms),
            clock_offset_ms_max: config.clock_offset_ms_max,
            is_withdrawn: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    pub(crate) fn set_disk(&self, disk: DiskState, spare_bytes: u64) {
        let mut state = self.state.lock();
        state.disk = disk;
        state.spare_bytes = spare_bytes;
    }

    /// Bytes that this node may write before its disk is full.
    pub(crate) fn spare_bytes(&self) -> u64 {
        self.state.lock().spare_bytes
    }

    /// Notes whether the node is to lead nothing for now.
    pub(crate) fn set_withdrawn(&self, is_withdrawn: bool) {
        self.is_withdrawn.store(is_withdrawn, Ordering::Relaxed);
    }

    /// Whether a node that is so should lead.
    pub(crate) fn may_lead(&self, report: &FitnessReport) -> bool {
        report.troubles.is_empty() && !self.is_withdrawn.load(Ordering::Relaxed)
    }

    /// What this node tells the others.
    pub(crate) fn vitals(&self) -> Vitals {
        let report = self.report();
        let is_fit = self.may_lead(&report);
        Vitals { wall: self.clock.wall(), disk: report.disk.number(), is_fit }
    }

    /// Notes another node's answer to a question that was asked at the monotonic time `asked`.
    pub(crate) fn note(&self, node: NodeId, vitals: Vitals, asked: Duration) {
        let (wall, heard) = (self.clock.wall(), self.clock.monotonic());
        let took = heard.saturating_sub(asked);
        let clock_offset_ms = (took <= CLOCK_ROUND_MAX).then(|| {
            let half = i64::try_from(took.as_millis() / 2).unwrap_or(i64::MAX);
            vitals.wall.0.cast_signed().saturating_sub(wall.0.cast_signed()).saturating_add(half)
        });
        let mut state = self.state.lock();
        let before = state.others.get(&node).and_then(|other| other.clock_offset_ms);
        let clock_offset_ms = clock_offset_ms.or(before);
        state.others.insert(node, Other { vitals, heard, clock_offset_ms });
    }

    /// How this node is now.
    pub(crate) fn report(&self) -> FitnessReport {
        let (now, silent) = (self.clock.monotonic(), self.log.silent_for());
        let mut state = self.state.lock();
        if self.stall_max < silent {
            state.stalled_at = Some(now);
        }
        let offsets = state.heard(now).filter_map(|(_, other)| other.clock_offset_ms);
        let offset = own_offset_ms(offsets.collect());
        let bound = if state.is_clock_off {
            self.clock_offset_ms_max / 2
        } else {
            self.clock_offset_ms_max
        };
        state.is_clock_off = offset.is_some_and(|offset| bound < offset.unsigned_abs());
        let is_stalled = state.stalled_at.is_some_and(|at| now.saturating_sub(at) < STALL_REST);
        let troubles = [
            (Trouble::DiskAlmostFull, state.disk == DiskState::AlmostFull),
            (Trouble::DiskFull, state.disk == DiskState::Full),
            (Trouble::DiskStalled, is_stalled),
            (Trouble::ClockOff, state.is_clock_off),
        ];
        FitnessReport {
            disk: state.disk,
            troubles: troubles.into_iter().filter(|(_, is)| *is).map(|(one, _)| one).collect(),
            clock_offset_ms: offset,
        }
    }

    /// Whether a node has answered within that while, or could not have yet.
    pub(crate) fn has_heard(&self, node: NodeId, within: Duration) -> bool {
        let now = self.clock.monotonic();
        let heard = self.state.lock().others.get(&node).map_or(self.began, |other| other.heard);
        now.saturating_sub(heard) <= within
    }

    /// What was heard of another node lately.
    pub(crate) fn other(&self, node: NodeId) -> Option<NodeFitness> {
        let now = self.clock.monotonic();
        let state = self.state.lock();
        let other = state.others.get(&node).filter(|other| other.is_heard(now))?;
        let disk = DiskState::from_number(other.vitals.disk);
        Some(NodeFitness { disk, is_fit: other.vitals.is_fit })
    }
}

impl State {
    fn heard(&self, now: Duration) -> impl Iterator<Item = (&NodeId, &Other)> {
        self.others.iter().filter(move |(_, other)| other.is_heard(now))
    }
}

impl Other {
    fn is_heard(&self, now: Duration) -> bool {
        now.saturating_sub(self.heard) <= HEARD_MAX
    }
}

/// This node's clock minus the median of all clocks, from the others' clocks minus this one's.
/// Between two middle ones, that which is nearer to this clock: two nodes alone cannot tell whose is
/// off. `None` if there are no others.
fn own_offset_ms(mut others: Vec<i64>) -> Option<i64> {
    if others.is_empty() {
        return None;
    }
    others.push(0);
    others.sort_unstable();
    let (low, high) = (others[(others.len() - 1) / 2], others[others.len() / 2]);
    let median = if low.unsigned_abs() <= high.unsigned_abs() { low } else { high };
    Some(median.saturating_neg())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use anchorhold_storage::MemoryLog;

    use super::*;

    /// Wall and monotonic time in milliseconds, moved by hand.
    #[derive(Default)]
    struct ManualClock(AtomicU64);

    const WALL_AHEAD_MS: u64 = 1_000_000;

    impl Clock for ManualClock {
        fn wall(&self) -> Timestamp {
            Timestamp(WALL_AHEAD_MS + self.0.load(Ordering::Relaxed))
        }

        fn monotonic(&self) -> Duration {
            Duration::from_millis(self.0.load(Ordering::Relaxed))
        }
    }

    fn fitness() -> (Fitness, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::default());
        clock.0.store(10_000, Ordering::Relaxed);
        let log = Arc::new(WatchedLog::new(Arc::new(MemoryLog::new()), clock.clone()));
        (Fitness::new(clock.clone(), log, &ConsensusConfig::default()), clock)
    }

    /// A node answers `took_ms` after the question, with a clock that is `off_ms` off.
    fn hear(fitness: &Fitness, clock: &ManualClock, node: u64, off_ms: i64, took_ms: u64) {
        let asked = clock.monotonic();
        clock.0.fetch_add(took_ms / 2, Ordering::Relaxed);
        let wall = Timestamp(clock.wall().0.saturating_add_signed(off_ms));
        let vitals = Vitals { wall, disk: 0, is_fit: true };
        clock.0.fetch_add(took_ms / 2, Ordering::Relaxed);
        fitness.note(NodeId(node), vitals, asked);
    }

    #[test]
    fn the_median_of_all_clocks_says_whose_is_off() {
        let cases: [(&[i64], Option<i64>); 7] = [
            (&[], None),
            (&[9_000], Some(0)),
            (&[9_000, 9_010], Some(-9_000)),
            (&[9_000, 0], Some(0)),
            (&[-9_000, 10], Some(0)),
            (&[-700, -700, -700], Some(700)),
            (&[i64::MAX, i64::MAX, i64::MIN], Some(0)),
        ];
        for (others, expected) in cases {
            assert_eq!(own_offset_ms(others.to_vec()), expected, "{others:?}");
        }
    }

    #[test]
    fn a_node_whose_clock_is_off_is_unfit_until_it_is_well_within_the_bound() {
        let (fitness, clock) = fitness();
        for (off_ms, is_unfit) in [(400, false), (501, true), (300, true), (240, false)] {
            for node in [2, 3] {
                hear(&fitness, &clock, node, off_ms, 100);
            }
            let report = fitness.report();
            assert_eq!(report.clock_offset_ms, Some(-off_ms));
            assert_eq!(report.troubles == [Trouble::ClockOff], is_unfit, "{off_ms} ms");
        }
    }

    #[test]
    fn a_slow_answer_says_nothing_about_a_clock() {
        let (fitness, clock) = fitness();
        for node in [2, 3] {
            hear(&fitness, &clock, node, 9_000, 300);
        }
        assert_eq!(fitness.report(), FitnessReport::default());
        assert!(fitness.other(NodeId(2)).is_some());
    }

    #[test]
    fn a_node_that_falls_silent_is_forgotten() {
        let (fitness, clock) = fitness();
        hear(&fitness, &clock, 2, 0, 2);
        assert_eq!(fitness.other(NodeId(2)).map(|other| other.is_fit), Some(true));
        clock.0.fetch_add(4_001, Ordering::Relaxed);
        assert_eq!(fitness.other(NodeId(2)), None);
        assert_eq!(fitness.report().clock_offset_ms, None);
    }

    #[test]
    fn a_node_that_is_drained_does_not_offer_itself_as_leader() {
        let (fitness, _) = fitness();
        fitness.set_withdrawn(true);
        assert!(!fitness.vitals().is_fit && fitness.report().troubles.is_empty());
        fitness.set_withdrawn(false);
        assert!(fitness.vitals().is_fit);
    }

    #[test]
    fn a_full_disk_is_told_to_the_others() {
        let (fitness, _) = fitness();
        assert!(fitness.vitals().is_fit);
        fitness.set_disk(DiskState::AlmostFull, 1);
        assert!(!fitness.vitals().is_fit);
        assert_eq!(fitness.report().troubles, [Trouble::DiskAlmostFull]);
        fitness.set_disk(DiskState::Full, 0);
        assert_eq!(fitness.vitals().disk, DiskState::Full.number());
    }
}
