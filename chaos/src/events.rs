//! What happened in a run besides the operations: phases, faults, samples of the cluster.
//!
//! `events.jsonl` holds one JSON object a line, in the order in which things happened, written as
//! they happen: a run that was cut off is readable up to its last whole line.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;

use anyhow::Context as _;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::clock::RunClock;

/// One line of `events.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Nanoseconds since the run's start.
    pub t_ns: u64,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What can happen in a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EventKind {
    /// A phase of the scenario begins.
    PhaseBegin {
        /// Its name; rounds after the first say which: `lose-a#2`.
        name: String,
    },
    /// A phase of the scenario is over.
    PhaseEnd {
        /// Its name.
        name: String,
    },
    /// A fault was asked for, took hold or was healed: up to three lines of one id.
    Fault(FaultEvent),
    /// How the cluster stood.
    Sample(Sample),
    /// How late a sleeper of 1 ms woke in the last second: whether the machine was slow.
    Lateness {
        /// Median lateness, in microseconds.
        p50_us: u64,
        /// 99th percentile, in microseconds.
        p99_us: u64,
        /// The worst, in microseconds.
        max_us: u64,
    },
    /// The workloads so far.
    Progress {
        /// Operations acknowledged.
        acknowledged: u64,
        /// Operations refused for certain.
        failed: u64,
        /// Operations of unknown outcome.
        unknown: u64,
    },
    /// How often each failpoint was reached, by all processes together: said once, in the end.
    Failpoints {
        /// By name.
        hits: BTreeMap<String, u64>,
    },
    /// How shards were changed in a phase.
    ShardsChanged {
        /// Shards that were split.
        splits: u64,
        /// Shards that became part of a neighbour.
        merges: u64,
        /// Replicas that moved to another node.
        moves: u64,
    },
    /// A node's process ended although no fault asked for it.
    NodeDied {
        /// The node.
        node: String,
        /// How it ended, for people.
        how: String,
    },
    /// After everything was healed the cluster did not recover within the time it had.
    WaitMissed {
        /// What was waited for, how long, and what was missing.
        text: String,
    },
    /// The harness could not do what it was asked.
    HarnessError {
        /// What, and why.
        text: String,
    },
}

/// How far a fault has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultStage {
    /// It was asked for.
    Asked,
    /// It was applied, and the canary was asked.
    Applied,
    /// It was taken back.
    Healed,
}

/// Whether a fault was seen to take hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Canary {
    /// It did.
    Took,
    /// It did not: the run proves nothing, and is an error.
    DidNotTake,
    /// It did not, because another fault had just ended a node that it was to hit. It is no fault
    /// of the run then, and no error either.
    Overtaken,
    /// Not looked at yet.
    None,
}

/// One fault, at one stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FaultEvent {
    /// Unique in the run, from 1.
    pub id: u32,
    /// Row of the fault catalogue: `kill`, `pause`, `isolate`, ….
    pub fault: String,
    /// The selector as the scenario has it.
    pub target: String,
    /// The nodes that it hit, by name.
    pub nodes: Vec<String>,
    /// How far it has come.
    pub stage: FaultStage,
    /// When it was asked for, in nanoseconds since the run's start.
    pub asked_ns: u64,
    /// When it had taken hold.
    pub applied_ns: Option<u64>,
    /// When it was taken back.
    pub healed_ns: Option<u64>,
    /// Whether it was seen to take hold.
    pub canary: Canary,
    /// What exactly was done and seen, for people.
    pub detail: String,
}

/// How the cluster stood at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Shards led in each zone, the catalog aside.
    pub leaders_per_zone: BTreeMap<String, u32>,
    /// Shards led by each node, by name, the catalog among them.
    pub leaders_per_node: BTreeMap<String, u32>,
    /// Shards that nobody leads.
    pub shards_without_leader: u32,
    /// Replicas that should live and do not.
    pub replicas_missing: u32,
    /// Nodes that the cluster sees up.
    pub nodes_up: u32,
    /// Whether any node answered; all other figures are 0 if none did.
    pub answered: bool,
}

/// Appends to `events.jsonl`.
#[derive(Debug)]
pub struct EventLog {
    file: Mutex<File>,
    clock: RunClock,
}

impl EventLog {
    /// Opens the file for appending, creating it if needed.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(path: &Path, clock: RunClock) -> anyhow::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { file: Mutex::new(file), clock })
    }

    /// Writes one event, stamped now. Returns its time.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn append(&self, kind: EventKind) -> anyhow::Result<u64> {
        // Stamped under the lock, or lines would not be in the order of their times.
        let mut file = self.file.lock();
        let event = Event { t_ns: self.clock.now_ns(), kind };
        let mut line = serde_json::to_vec(&event)?;
        line.push(b'\n');
        file.write_all(&line).context("cannot write events.jsonl")?;
        Ok(event.t_ns)
    }
}

/// Reads all events of a run. A last line that was cut off by a crash is left out.
///
/// # Errors
/// If the file cannot be read, or a whole line is no event.
pub fn read_events(path: &Path) -> anyhow::Result<Vec<Event>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut reader = BufReader::new(file);
    let (mut events, mut line, mut number) = (Vec::new(), String::new(), 0_usize);
    while 0 < reader.read_line(&mut line)? {
        number += 1;
        if !line.ends_with('\n') {
            break;
        }
        let event = serde_json::from_str(&line)
            .with_context(|| format!("{}:{number} is no event", path.display()))?;
        events.push(event);
        line.clear();
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault() -> EventKind {
        EventKind::Fault(FaultEvent {
            id: 1,
            fault: "kill".to_owned(),
            target: "zone=a".to_owned(),
            nodes: vec!["a1".to_owned()],
            stage: FaultStage::Applied,
            asked_ns: 5,
            applied_ns: Some(7),
            healed_ns: None,
            canary: Canary::Took,
            detail: String::new(),
        })
    }

    #[test]
    fn events_come_back_as_they_were_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let log = EventLog::open(&path, RunClock::start()).unwrap();
        let kinds = [
            EventKind::PhaseBegin { name: "warm".to_owned() },
            fault(),
            EventKind::Sample(Sample { nodes_up: 3, answered: true, ..Sample::default() }),
            EventKind::Lateness { p50_us: 1, p99_us: 2, max_us: 3 },
            EventKind::HarnessError { text: "a \"quoted\"\nline".to_owned() },
        ];
        for kind in &kinds {
            log.append(kind.clone()).unwrap();
        }
        let read = read_events(&path).unwrap();
        let read_kinds: Vec<_> = read.iter().map(|event| event.kind.clone()).collect();
        assert_eq!(read_kinds, kinds);
        assert!(read.is_sorted_by_key(|event| event.t_ns));
    }

    #[test]
    fn a_line_that_a_crash_cut_off_is_left_out_and_a_wrong_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let log = EventLog::open(&path, RunClock::start()).unwrap();
        log.append(fault()).unwrap();
        let whole = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{whole}{}", &whole[..whole.len() / 2])).unwrap();
        assert_eq!(read_events(&path).unwrap().len(), 1);
        std::fs::write(&path, format!("{{}}\n{whole}")).unwrap();
        let error = read_events(&path).unwrap_err();
        assert!(error.to_string().contains("events.jsonl:1"), "{error}");
    }
}
