//! Where everything about one run is kept.
//!
//! The directory is self-contained: it can be moved, sent to someone and judged again at any time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

/// The directory of one run.
#[derive(Clone, Debug)]
pub struct RunDirectory {
    path: PathBuf,
}

/// `run.json`: what was run, so that it can be run again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunDescription {
    /// Version of this file's format.
    pub format: u32,
    /// The scenario's name.
    pub scenario: String,
    /// The whole scenario, as it was read.
    pub scenario_text: String,
    /// The whole topology, as it was read.
    pub topology_text: String,
    /// Everything random followed from it.
    pub seed: u64,
    /// What ran the nodes: `process`.
    pub driver: String,
    /// The version of the harness.
    pub version: String,
    /// The node binary that was run.
    pub binary: String,
    /// What to type to run it again.
    pub replay: String,
    /// Wall-clock time of the start, in milliseconds since 1970.
    pub started_at_unix_ms: u64,
    /// The invariants asked for, by name.
    pub invariants: Vec<String>,
    /// The budgets asked for, by name; the unit is in the name.
    pub budgets: BTreeMap<String, f64>,
    /// Zone of each node, by name.
    pub zones: BTreeMap<String, String>,
    /// Bugs that were put in on purpose, and into which nodes.
    #[serde(default)]
    pub mutants: Vec<String>,
    /// What else was asked for.
    #[serde(default)]
    pub asked: AskedOfRun,
}

/// What a run was asked for beside its scenario, so that it can be made again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AskedOfRun {
    /// What was run, if it was not this store.
    pub system: Option<String>,
    /// Rounds, if they were not the scenario's.
    pub rounds: Option<usize>,
    /// Minutes that it was to take.
    pub minutes: Option<f64>,
    /// More settings of the nodes, as `key=value`.
    pub settings: Vec<String>,
}

/// Version of `run.json` that this code reads and writes.
pub const RUN_FORMAT: u32 = 1;

impl RunDirectory {
    /// Makes a new run's directory. It must not exist yet, or be empty.
    ///
    /// # Errors
    /// If it holds something already, or cannot be made.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        let problem = || format!("cannot use {}", path.display());
        std::fs::create_dir_all(path).with_context(problem)?;
        let is_empty = std::fs::read_dir(path).with_context(problem)?.next().is_none();
        ensure!(is_empty, "{} is not empty: each run has a directory of its own", path.display());
        let path = std::fs::canonicalize(path).with_context(problem)?;
        let directory = Self { path };
        std::fs::create_dir(directory.history()).with_context(problem)?;
        std::fs::create_dir(directory.last()).with_context(problem)?;
        Ok(directory)
    }

    /// Opens the directory of an earlier run.
    ///
    /// # Errors
    /// If there is no run in it.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let directory = Self { path: path.to_owned() };
        let has_run = directory.run_file().is_file();
        ensure!(has_run, "{} holds no run: it has no run.json", path.display());
        Ok(directory)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was run.
    pub fn run_file(&self) -> PathBuf {
        self.path.join("run.json")
    }

    /// Phases, faults and samples.
    pub fn events_file(&self) -> PathBuf {
        self.path.join("events.jsonl")
    }

    /// Recorded operations, one file a client.
    pub fn history(&self) -> PathBuf {
        self.path.join("history")
    }

    /// What was read after the heal: the directory `final`.
    pub fn last(&self) -> PathBuf {
        self.path.join("final")
    }

    /// Logs of the nodes, and their data if it was kept.
    pub fn cluster(&self) -> PathBuf {
        self.path.join("cluster")
    }

    /// The verdict for programs.
    pub fn report_json(&self) -> PathBuf {
        self.path.join("report.json")
    }

    /// The verdict for test runners.
    pub fn junit_xml(&self) -> PathBuf {
        self.path.join("junit.xml")
    }

    /// The verdict for people.
    pub fn report_html(&self) -> PathBuf {
        self.path.join("report.html")
    }

    /// Writes what is run.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn describe(&self, description: &RunDescription) -> anyhow::Result<()> {
        let text = serde_json::to_vec_pretty(description)?;
        std::fs::write(self.run_file(), text).context("cannot write run.json")
    }

    /// Reads what was run.
    ///
    /// # Errors
    /// If it cannot be read, or another version wrote it.
    pub fn description(&self) -> anyhow::Result<RunDescription> {
        let path = self.run_file();
        let text =
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let description: RunDescription = serde_json::from_slice(&text)
            .with_context(|| format!("{} is no run's description", path.display()))?;
        let found = description.format;
        ensure!(found == RUN_FORMAT, "{} has format {found}, not {RUN_FORMAT}", path.display());
        Ok(description)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_used_for_one_run_only_and_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run");
        assert!(RunDirectory::open(&path).is_err());
        let run = RunDirectory::create(&path).unwrap();
        let description = RunDescription {
            format: RUN_FORMAT,
            scenario: "s".to_owned(),
            scenario_text: "name = \"s\"".to_owned(),
            topology_text: "name = \"t\"".to_owned(),
            seed: u64::MAX,
            driver: "process".to_owned(),
            version: "1".to_owned(),
            binary: "anchorhold".to_owned(),
            replay: "anchorhold chaos run s".to_owned(),
            started_at_unix_ms: 1,
            invariants: vec!["nothing_lost".to_owned()],
            budgets: BTreeMap::from([("write_gap_ms_max".to_owned(), 3_000.0)]),
            zones: BTreeMap::from([("a1".to_owned(), "a".to_owned())]),
            mutants: vec!["apply-skipped@a1".to_owned()],
            asked: AskedOfRun {
                rounds: Some(3),
                settings: vec!["a=1".to_owned()],
                ..AskedOfRun::default()
            },
        };
        run.describe(&description).unwrap();
        assert_eq!(RunDirectory::open(&path).unwrap().description().unwrap(), description);
        assert!(RunDirectory::create(&path).is_err());
    }
}
