//! Which batches of an import are done, in a file, so that a re-run continues.
//!
//! The first line names the import: cluster, account, contents of the file, mapping. Then one line
//! for each batch that was sent (`sent 7`) and acknowledged (`done 7`), and `complete` in the end.
//! A batch that was sent and not acknowledged may be stored or not: the import looks before it
//! sends it again.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

/// What an import is: equal only if a re-run would store the same anchors in the same place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImportIdentity {
    /// The cluster's id.
    pub(crate) cluster: String,
    /// The account's number.
    pub(crate) account: u32,
    /// SHA-256 of the file's contents and of the mapping, in hexadecimal digits.
    pub(crate) digest: String,
    /// Anchors in one batch.
    pub(crate) batch_rows: usize,
}

/// The progress file of one import.
#[derive(Debug)]
pub(crate) struct Ledger {
    path: PathBuf,
    file: File,
    /// Batches that may be stored: sent by an earlier run and not acknowledged.
    unsure: BTreeSet<u64>,
    done: BTreeSet<u64>,
    is_complete: bool,
    /// How long ago the last run wrote, when this one began.
    age_at_open: Duration,
}

impl Ledger {
    /// Opens the progress file of an import, or begins one.
    ///
    /// # Errors
    /// If it cannot be read or written, or belongs to another import.
    pub(crate) fn open(path: &Path, identity: &ImportIdentity) -> anyhow::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .with_context(|| format!("cannot open the progress file {}", path.display()))?;
        file.try_lock().with_context(|| {
            format!("another import is using the progress file {}", path.display())
        })?;
        // A clock that went back must not make an old run look fresh: then it counts as old.
        let written = file.metadata().and_then(|metadata| metadata.modified());
        let age_at_open =
            written.ok().and_then(|time| time.elapsed().ok()).unwrap_or(Duration::MAX);
        let mut text = String::new();
        file.read_to_string(&mut text)
            .with_context(|| format!("cannot read the progress file {}", path.display()))?;
        let mut ledger = Self {
            path: path.to_owned(),
            file,
            unsure: BTreeSet::new(),
            done: BTreeSet::new(),
            is_complete: false,
            age_at_open,
        };
        let Some((whole_lines, fragment)) = text.rsplit_once('\n') else {
            // New, or not even its first line was written whole: nothing was sent.
            ledger.file.set_len(0).context("cannot clear the progress file")?;
            ledger.append(&serde_json::to_string(identity)?)?;
            return Ok(ledger);
        };
        ledger.replay(whole_lines, identity)?;
        if !fragment.is_empty() {
            // Cut short by a crash, "done 12" may read "done 1": make it say nothing.
            ledger.append(" was cut short")?;
        }
        Ok(ledger)
    }

    /// Whether an earlier run sent this batch without seeing it acknowledged.
    pub(crate) fn is_unsure(&self, batch: u64) -> bool {
        self.unsure.contains(&batch)
    }

    /// How long ago the last run wrote, when this one began.
    pub(crate) fn age_at_open(&self) -> Duration {
        self.age_at_open
    }

    /// Whether this batch is stored.
    pub(crate) fn is_done(&self, batch: u64) -> bool {
        self.done.contains(&batch)
    }

    /// Whether the whole import is stored.
    pub(crate) fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// How many batches are stored.
    pub(crate) fn done_count(&self) -> usize {
        self.done.len()
    }

    /// Notes that a batch is about to be sent.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn note_sent(&mut self, batch: u64) -> anyhow::Result<()> {
        self.append(&format!("sent {batch}"))
    }

    /// Notes that a batch is stored.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn note_done(&mut self, batch: u64) -> anyhow::Result<()> {
        self.done.insert(batch);
        self.unsure.remove(&batch);
        self.append(&format!("done {batch}"))
    }

    /// Notes that everything is stored.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn note_complete(&mut self) -> anyhow::Result<()> {
        self.is_complete = true;
        self.append("complete")
    }

    fn replay(&mut self, text: &str, identity: &ImportIdentity) -> anyhow::Result<()> {
        let mut lines = text.lines();
        let found: Option<ImportIdentity> =
            lines.next().and_then(|line| serde_json::from_str(line).ok());
        if found.as_ref() != Some(identity) {
            bail!(
                "the progress file {} belongs to another import (another file, mapping, account or \
                 cluster); remove it, or name another one with --progress-file",
                self.path.display()
            );
        }
        for line in lines {
            match line.split_once(' ').map(|(word, number)| (word, number.parse())) {
                Some(("sent", Ok(batch))) if !self.done.contains(&batch) => {
                    self.unsure.insert(batch);
                }
                Some(("done", Ok(batch))) => {
                    self.done.insert(batch);
                    self.unsure.remove(&batch);
                }
                Some(_) => {}
                None => self.is_complete |= line == "complete",
            }
        }
        Ok(())
    }

    fn append(&mut self, line: &str) -> anyhow::Result<()> {
        self.file
            .write_all(format!("{line}\n").as_bytes())
            .with_context(|| format!("cannot write the progress file {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> ImportIdentity {
        ImportIdentity {
            cluster: "c".to_owned(),
            account: 7,
            digest: "d".to_owned(),
            batch_rows: 500,
        }
    }

    #[test]
    fn a_re_run_knows_what_is_done_and_what_is_unsure() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("p");
        let mut ledger = Ledger::open(&path, &identity()).unwrap();
        for batch in 0..3 {
            ledger.note_sent(batch).unwrap();
        }
        ledger.note_done(1).unwrap();
        drop(ledger);
        let mut ledger = Ledger::open(&path, &identity()).unwrap();
        assert!(ledger.is_done(1) && !ledger.is_unsure(1));
        assert!(ledger.is_unsure(0) && ledger.is_unsure(2) && !ledger.is_unsure(3));
        assert!(!ledger.is_complete());
        ledger.note_complete().unwrap();
        drop(ledger);
        assert!(Ledger::open(&path, &identity()).unwrap().is_complete());
    }

    #[test]
    fn a_line_that_was_cut_short_is_forgotten_and_spoils_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("p");
        let mut ledger = Ledger::open(&path, &identity()).unwrap();
        ledger.append("sent 12").unwrap();
        drop(ledger);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"done 1").unwrap();
        drop(file);
        let mut ledger = Ledger::open(&path, &identity()).unwrap();
        assert!(ledger.is_unsure(12));
        assert!(!ledger.is_done(1));
        ledger.note_done(12).unwrap();
        drop(ledger);
        let ledger = Ledger::open(&path, &identity()).unwrap();
        assert!(ledger.is_done(12) && !ledger.is_done(1));
    }

    #[test]
    fn another_import_is_not_continued() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("p");
        drop(Ledger::open(&path, &identity()).unwrap());
        let other = ImportIdentity { account: 8, ..identity() };
        let error = Ledger::open(&path, &other).unwrap_err();
        assert!(error.to_string().contains("belongs to another import"), "{error}");
    }

    #[test]
    fn two_imports_do_not_share_a_progress_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("p");
        let first = Ledger::open(&path, &identity()).unwrap();
        assert!(Ledger::open(&path, &identity()).is_err());
        drop(first);
        Ledger::open(&path, &identity()).unwrap();
    }
}
