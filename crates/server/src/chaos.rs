//! A node that can be broken on command, for the fault harness. Compiled only with the feature
//! `chaos`.
//!
//! The harness writes what it wants to a control file; the node looks at it many times a second,
//! does it, and answers in a file beside it: which generation it has taken over, what its clock
//! says, and how often each fault met someone and each failpoint was reached. What is wanted when the node starts holds before its
//! stores are opened.
//!
//! Not here: deciding what to break (the harness), the disk itself (`storage::faults`).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anchorhold_consensus::Clock;
use anchorhold_consensus::hooks::{HookedLog, HookedState, Hooks, Mutant};
use anchorhold_model::Timestamp;
use anchorhold_storage::LogConfig;
use anchorhold_storage::faults::{DiskFaults, DiskSwitch, FaultyFs, FaultyState};
use anchorhold_storage::fs::{FileSystem, RealFs};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::node::{NodeError, NodeSeams, OpenStores, Stores};
use crate::seams_real::{DiskStores, SystemClock, open_stores};

/// The variable that names the control file.
pub const CONTROL_VARIABLE: &str = "ANCHORHOLD_CHAOS_CONTROL";

/// What the harness wants: the content of the control file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wanted {
    /// Rises with each change, and whenever a fresh answer is wanted.
    pub generation: u64,
    /// The wall clock is ahead by this many milliseconds.
    pub clock_offset_ms: i64,
    /// Both clocks run this much faster: 0.01 is one percent.
    pub clock_drift: f64,
    /// New segments of the log find no space.
    pub disk_full: bool,
    /// Writes to the log fail.
    pub disk_write_error: bool,
    /// Syncs of the log fail.
    pub disk_sync_error: bool,
    /// Writes and syncs take this many milliseconds longer.
    pub disk_stall_ms: u64,
    /// Unsynced writes stay in the process's memory. Read at the start only.
    pub holds_unsynced: bool,
    /// Bytes of the log's segments, small ones so that a short run has many; 0 leaves them as they
    /// are. Read at the start only.
    pub log_segment_bytes: u64,
    /// Bugs that are put in on purpose, by name. Some take effect at the next start only.
    pub mutants: Vec<String>,
    /// The failpoint at which the process ends when it next reaches it; empty: none.
    pub ends_at: String,
}

/// The one place where these are written down: nothing is wrong.
impl Default for Wanted {
    fn default() -> Self {
        Self {
            generation: 0,
            clock_offset_ms: 0,
            clock_drift: 0.0,
            disk_full: false,
            disk_write_error: false,
            disk_sync_error: false,
            disk_stall_ms: 0,
            holds_unsynced: false,
            log_segment_bytes: 0,
            mutants: Vec::new(),
            ends_at: String::new(),
        }
    }
}

impl Wanted {
    /// The mutants by name.
    fn mutants(&self) -> io::Result<Vec<Mutant>> {
        let named = |name: &String| {
            let unknown = || io::Error::other(format!("there is no mutant {name:?}"));
            Mutant::named(name).ok_or_else(unknown)
        };
        self.mutants.iter().map(named).collect()
    }
}

/// What the node answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The generation that holds now.
    pub generation: u64,
    /// The process that answers.
    pub pid: u32,
    /// What its wall clock says, in milliseconds since 1970.
    pub wall_ms: u64,
    /// How often each fault met someone since the start.
    pub hits: BTreeMap<String, u64>,
}

/// Between two looks at the control file.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// Looks between two answers to nothing new: failpoints are counted all the time.
const LOOKS_PER_ANSWER: u32 = 50;
/// What an answer's counts of failpoints begin with.
pub const FAILPOINT: &str = "failpoint ";
/// Exit code of a process that ended at a failpoint.
const EXIT_CODE_FAILPOINT: i32 = 71;

impl NodeSeams {
    /// The seams of this process, to be broken through a control file.
    ///
    /// # Errors
    /// If the control file cannot be read, or the answer cannot be written.
    pub fn breakable(control_file: &Path) -> io::Result<Self> {
        let wanted = read(control_file)?;
        let disk = DiskSwitch::new(wanted.holds_unsynced);
        let clock = Arc::new(ChaosClock::new(SystemClock::start()));
        let hooks = Hooks::new(end_at);
        let control = Control {
            answer_file: control_file.with_extension("applied.json"),
            control_file: control_file.to_owned(),
            clock: Arc::clone(&clock),
            disk: Arc::clone(&disk),
            hooks: hooks.clone(),
        };
        control.apply(&wanted)?;
        control.answer(wanted.generation)?;
        let builder = std::thread::Builder::new().name("chaos".to_owned());
        builder.spawn(move || control.follow(wanted.generation))?;
        Ok(Self {
            clock,
            open: Arc::new(BreakableStores {
                disk,
                log: log_config(&wanted),
                hooks: hooks.clone(),
            }),
            hooks,
            ..Self::real()
        })
    }
}

/// Ends the process as a crash does: nothing is finished, nothing is said to anybody.
fn end_at(point: &str) {
    eprintln!("anchorhold: ended at the failpoint {point}");
    std::process::exit(EXIT_CODE_FAILPOINT);
}

fn log_config(wanted: &Wanted) -> LogConfig {
    let usual = LogConfig::default();
    match wanted.log_segment_bytes {
        0 => usual,
        segment_bytes => LogConfig { segment_bytes, segment_bytes_max: segment_bytes, ..usual },
    }
}

fn read(control_file: &Path) -> io::Result<Wanted> {
    Ok(serde_json::from_slice(&std::fs::read(control_file)?)?)
}

/// Turns the switches.
struct Control {
    control_file: PathBuf,
    answer_file: PathBuf,
    clock: Arc<ChaosClock<SystemClock>>,
    disk: Arc<DiskSwitch>,
    hooks: Hooks,
}

impl Control {
    fn follow(&self, mut generation: u64) {
        for look in 1_u32.. {
            std::thread::sleep(LOOK_INTERVAL);
            // The harness replaces the file whole. One that is gone means that the run is over.
            let Ok(wanted) = read(&self.control_file) else { continue };
            let is_new = wanted.generation != generation;
            if !is_new && !look.is_multiple_of(LOOKS_PER_ANSWER) {
                continue;
            }
            let done = if is_new { self.apply(&wanted) } else { Ok(()) };
            match done.and_then(|()| self.answer(wanted.generation)) {
                Ok(()) => generation = wanted.generation,
                Err(error) => tracing::warn!(%error, "the harness gets no answer"),
            }
        }
    }

    fn apply(&self, wanted: &Wanted) -> io::Result<()> {
        self.hooks.set_mutants(&wanted.mutants()?);
        self.hooks.end_at(Some(wanted.ends_at.as_str()).filter(|point| !point.is_empty()));
        self.clock.set(wanted.clock_offset_ms, wanted.clock_drift);
        self.disk.set(DiskFaults {
            full: wanted.disk_full,
            write_error: wanted.disk_write_error,
            sync_error: wanted.disk_sync_error,
            stall: Duration::from_millis(wanted.disk_stall_ms),
        });
        Ok(())
    }

    fn answer(&self, generation: u64) -> io::Result<()> {
        let hits = self.disk.hits();
        let hits = [
            ("disk_full", hits.full),
            ("disk_write_error", hits.write_error),
            ("disk_sync_error", hits.sync_error),
            ("disk_stall", hits.stall),
            ("held_writes", hits.held),
        ];
        let mut hits: BTreeMap<String, u64> =
            hits.map(|(name, count)| (name.to_owned(), count)).into();
        let points = self.hooks.hits().into_iter();
        hits.extend(points.map(|(point, count)| (format!("{FAILPOINT}{point}"), count)));
        let applied =
            Applied { generation, pid: std::process::id(), wall_ms: self.clock.wall().0, hits };
        let beside = self.answer_file.with_extension("new");
        std::fs::write(&beside, serde_json::to_vec(&applied)?)?;
        std::fs::rename(beside, &self.answer_file)
    }
}

/// A clock that is wrong on command.
struct ChaosClock<C> {
    inner: C,
    wrong: Mutex<Wrong>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Wrong {
    offset_ms: i64,
    drift: f64,
    /// True monotonic time since which it drifts at this rate.
    since: Duration,
    /// What drifting had added until then.
    drifted: Duration,
}

impl Wrong {
    fn drifted(&self, now: Duration) -> Duration {
        self.drifted + now.saturating_sub(self.since).mul_f64(self.drift.max(0.0))
    }
}

impl<C: Clock> ChaosClock<C> {
    fn new(inner: C) -> Self {
        Self { inner, wrong: Mutex::default() }
    }

    /// The clock jumps to this offset, and drifts at this rate from now on. What it has drifted so
    /// far stays: monotonic time never goes back.
    fn set(&self, offset_ms: i64, drift: f64) {
        let now = self.inner.monotonic();
        let mut wrong = self.wrong.lock();
        let drifted = wrong.drifted(now);
        *wrong = Wrong { offset_ms, drift, since: now, drifted };
    }
}

impl<C: Clock> Clock for ChaosClock<C> {
    fn wall(&self) -> Timestamp {
        let wrong = *self.wrong.lock();
        // A wall clock whose drift is healed is set right, as a time service does it.
        let is_drifting = wrong.drift != 0.0;
        let drifted =
            if is_drifting { wrong.drifted(self.inner.monotonic()) } else { Duration::ZERO };
        let drifted_ms = u64::try_from(drifted.as_millis()).unwrap_or(u64::MAX);
        let wall = self.inner.wall().0.saturating_add(drifted_ms);
        Timestamp(wall.saturating_add_signed(wrong.offset_ms))
    }

    fn monotonic(&self) -> Duration {
        let now = self.inner.monotonic();
        now + self.wrong.lock().drifted(now)
    }
}

/// Stores on a disk that fails on command.
struct BreakableStores {
    disk: Arc<DiskSwitch>,
    log: LogConfig,
    hooks: Hooks,
}

impl OpenStores for BreakableStores {
    fn open(&self, data_dir: &Path, free_bytes: u64) -> Result<Stores, NodeError> {
        let fs = FaultyFs::new(Arc::new(RealFs), Arc::clone(&self.disk));
        let stores = open_stores(Arc::new(fs), self.log, data_dir, free_bytes)?;
        let state = FaultyState::new(stores.state, Arc::clone(&self.disk));
        let state = HookedState::open(Arc::new(state), self.hooks.clone())
            .map_err(|error| NodeError::Store { store: "state", reason: error.to_string() })?;
        let log = HookedLog::new(stores.log, self.hooks.clone());
        Ok(Stores { log: Arc::new(log), state: Arc::new(state), ..stores })
    }

    fn file_system(&self) -> Arc<dyn FileSystem> {
        Arc::new(FaultyFs::new(Arc::new(RealFs), Arc::clone(&self.disk)))
    }

    fn used_bytes(&self, data_dir: &Path) -> u64 {
        DiskStores.used_bytes(data_dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct FixedClock(Mutex<Duration>);

    impl Clock for FixedClock {
        fn wall(&self) -> Timestamp {
            Timestamp(1_000_000)
        }

        fn monotonic(&self) -> Duration {
            *self.0.lock()
        }
    }

    #[test]
    fn a_clock_jumps_both_ways_and_monotonic_time_does_not() {
        let clock = ChaosClock::new(FixedClock(Mutex::new(Duration::from_secs(9))));
        clock.set(-60_000, 0.0);
        assert_eq!(clock.wall(), Timestamp(940_000));
        clock.set(60_000, 0.0);
        assert_eq!(clock.wall(), Timestamp(1_060_000));
        assert_eq!(clock.monotonic(), Duration::from_secs(9));
    }

    #[test]
    fn a_clock_that_drifted_keeps_its_monotonic_gain_only() {
        let clock = ChaosClock::new(FixedClock(Mutex::new(Duration::from_secs(100))));
        clock.set(0, 0.5);
        *clock.inner.0.lock() = Duration::from_secs(110);
        assert_eq!(clock.monotonic(), Duration::from_secs(115));
        assert_eq!(clock.wall(), Timestamp(1_005_000));
        clock.set(0, 0.0);
        *clock.inner.0.lock() = Duration::from_secs(120);
        assert_eq!(clock.monotonic(), Duration::from_secs(125));
        assert_eq!(clock.wall(), Timestamp(1_000_000), "the wall clock is set right");
    }

    #[test]
    fn what_is_wanted_is_done_and_answered() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a1.json");
        let write = |wanted: &Wanted| {
            let beside = file.with_extension("new");
            std::fs::write(&beside, serde_json::to_vec(wanted).unwrap()).unwrap();
            std::fs::rename(beside, &file).unwrap();
        };
        write(&Wanted { generation: 1, clock_offset_ms: 3_600_000, ..Wanted::default() });
        let seams = NodeSeams::breakable(&file).unwrap();
        let real = SystemClock::start().wall().0;
        assert!(real + 3_500_000 < seams.clock.wall().0);
        write(&Wanted { generation: 2, ..Wanted::default() });
        let answer = directory.path().join("a1.applied.json");
        loop {
            let applied: Applied =
                serde_json::from_slice(&std::fs::read(&answer).unwrap()).unwrap();
            if applied.generation == 2 {
                assert_eq!(applied.pid, std::process::id());
                break;
            }
            std::thread::yield_now();
        }
        assert!(seams.clock.wall().0 < real + 3_500_000);
    }
}
