//! What nodes, clients and the run share: the time, what was seen, the verdict.

use std::fmt::Arguments;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use anchorhold_server::core::Core;
use anchorhold_storage::{GroupId, HardState, LogEntry, LogWrite, MemoryLog};
use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::disk::Disk;
use crate::history::History;
use crate::invariants::Invariants;
use crate::trace::Trace;

/// Nodes of a simulated cluster, one a zone.
pub(crate) const NODES: usize = 3;

#[cfg(feature = "mutants")]
pub use anchorhold_consensus::hooks::Mutant;

/// A bug that is put in on purpose. Without the feature `mutants` there is none.
#[cfg(not(feature = "mutants"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {}

#[cfg(not(feature = "mutants"))]
impl Mutant {
    /// All of them: none.
    pub const ALL: &[Self] = &[];

    /// The mutant of a name.
    pub fn named(_name: &str) -> Option<Self> {
        None
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {}
    }
}

/// How far the run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// The cluster is founded, the account is made.
    Founding,
    /// Faults run, clients work.
    Faults,
    /// Everything is healed; clients find out what became of their writes.
    Resolving,
    /// Clients have finished.
    Settled,
}

/// One node's place: what outlives its processes.
pub(crate) struct Site {
    pub(crate) disk: Arc<Disk>,
    /// The running node; dead while it is down.
    pub(crate) core: Mutex<Weak<Core>>,
    /// Milliseconds by which the wall clock is ahead.
    pub(crate) clock_offset_ms: AtomicI64,
    /// Both clocks run faster by so many millionths.
    pub(crate) clock_drift_ppm: i64,
    /// Milliseconds that each sync of the log takes longer.
    pub(crate) sync_delay_ms: AtomicU64,
    /// Starts so far.
    pub(crate) starts: AtomicU64,
}

/// Everything that is shared.
pub(crate) struct World {
    pub(crate) seed: u64,
    #[cfg_attr(not(feature = "mutants"), expect(dead_code, reason = "there is none"))]
    pub(crate) mutant: Option<Mutant>,
    now_us: AtomicU64,
    phase: AtomicU8,
    pub(crate) sites: Vec<Site>,
    pub(crate) history: Mutex<History>,
    pub(crate) invariants: Mutex<Invariants>,
    trace: Mutex<Trace>,
    violation: Mutex<Option<String>>,
    /// Shards that a node has at the end, the catalog aside.
    pub(crate) shards: Mutex<usize>,
    /// Shards that became part of another one.
    pub(crate) merged: Mutex<usize>,
}

impl World {
    pub(crate) fn new(
        seed: u64,
        mutant: Option<Mutant>,
        sites: Vec<Site>,
        trace: Trace,
    ) -> Arc<Self> {
        Arc::new(Self {
            seed,
            mutant,
            now_us: AtomicU64::new(0),
            phase: AtomicU8::new(Phase::Founding as u8),
            sites,
            history: Mutex::default(),
            invariants: Mutex::default(),
            trace: Mutex::new(trace),
            violation: Mutex::new(None),
            shards: Mutex::default(),
            merged: Mutex::default(),
        })
    }

    /// Simulated time in microseconds, as of the present step's beginning.
    pub(crate) fn now_us(&self) -> u64 {
        self.now_us.load(Ordering::Relaxed)
    }

    /// Simulated time, as of the present step's beginning.
    pub(crate) fn now(&self) -> Duration {
        Duration::from_micros(self.now_us())
    }

    pub(crate) fn set_now(&self, now: Duration) {
        let micros = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        self.now_us.store(micros, Ordering::Relaxed);
    }

    pub(crate) fn phase(&self) -> Phase {
        let phases = [Phase::Founding, Phase::Faults, Phase::Resolving, Phase::Settled];
        phases[usize::from(self.phase.load(Ordering::Relaxed))]
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.note(format_args!("{phase:?}"));
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Random numbers of their own for whoever has a name.
    pub(crate) fn random(&self, name: &str, number: u64) -> StdRng {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        (self.seed, name, number).hash(&mut hasher);
        StdRng::seed_from_u64(hasher.finish())
    }

    pub(crate) fn note(&self, event: Arguments<'_>) {
        self.trace.lock().note(self.now_us(), event);
    }

    pub(crate) fn trace_digest(&self) -> (u64, u64) {
        let trace = self.trace.lock();
        (trace.digest(), trace.events())
    }

    /// Reports what must not be; the first report counts.
    pub(crate) fn violate(&self, what: String) {
        self.note(format_args!("VIOLATION {what}"));
        self.violation.lock().get_or_insert(what);
    }

    pub(crate) fn violation(&self) -> Option<String> {
        self.violation.lock().clone()
    }

    fn judge(&self, verdict: Result<(), String>) {
        if let Err(what) = verdict {
            self.violate(what);
        }
    }

    /// A node's log is told something.
    pub(crate) fn saw_write(&self, node: usize, log: &MemoryLog, write: &LogWrite) {
        let name = node + 1;
        match write {
            LogWrite::Append { group, entries } => {
                let place = |entry: &LogEntry| (entry.position.term, entry.position.index);
                self.note(format_args!(
                    "n{name} g{:x} append {:?}..{:?}",
                    group.shard,
                    entries.first().map(place),
                    entries.last().map(place),
                ));
                let verdict = self.invariants.lock().log_matching.saw_append(*group, entries, log);
                self.judge(verdict);
            }
            LogWrite::SaveHardState { group, hard_state } => {
                self.note(format_args!("n{name} g{:x} vote {hard_state:?}", group.shard));
                let mut invariants = self.invariants.lock();
                let verdict = invariants.election_safety.saw_vote(*group, *hard_state);
                if verdict.is_ok() {
                    invariants.leader_completeness.saw_vote(*group, *hard_state);
                }
                drop(invariants);
                self.judge(verdict);
            }
            LogWrite::Truncate { group, from } => {
                self.note(format_args!("n{name} g{:x} truncate {from}", group.shard));
            }
            LogWrite::Purge { group, up_to } => {
                self.note(format_args!("n{name} g{:x} purge {}", group.shard, up_to.index));
            }
            LogWrite::MarkLost { group, from, .. } => {
                self.note(format_args!("n{name} g{:x} lost from {from}", group.shard));
            }
            LogWrite::Drop { group } => self.note(format_args!("n{name} g{:x} drop", group.shard)),
        }
    }

    /// A node's vote is durable, as its log says.
    pub(crate) fn saw_durable_vote(&self, node: usize, group: GroupId, vote: HardState) {
        let verdict = self.invariants.lock().election_safety.saw_durable_vote(node, group, vote);
        self.judge(verdict);
    }
}
