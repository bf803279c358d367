//! `anchorhold debug log ls|verify|dump`, `debug state verify`, `debug snapshot verify`: looks at the
//! data directory of a node that does not run, and changes nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anchorhold_model::Timestamp;
use anchorhold_server::inspect::{self, Damage, GroupReport, InspectedLog, Inspection};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

use crate::exit::{Exit, Failure};
use crate::output::{self, Format, bytes, thousands};

/// `anchorhold debug`.
#[derive(Args, Debug)]
pub(crate) struct DebugArgs {
    /// Form of the result
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Format,
    #[command(subcommand)]
    command: DebugCommand,
}

#[derive(Subcommand, Debug)]
enum DebugCommand {
    /// Look at the Raft log
    #[command(subcommand)]
    Log(LogCommand),
    /// Look at the applied state
    #[command(subcommand)]
    State(StateCommand),
    /// Look at the snapshot files
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
}

#[derive(Args, Debug)]
struct Directory {
    /// The node's data directory; the node must not run
    #[arg(long, value_name = "DIR", default_value = "anchorhold-data")]
    data_dir: PathBuf,
}

#[derive(Subcommand, Debug)]
enum LogCommand {
    /// List the Raft groups in the log
    Ls(Directory),
    /// Read every byte and check that it is what was written; exit code 7 if not
    Verify(Directory),
    /// List the entries of one group
    Dump {
        #[command(flatten)]
        directory: Directory,
        /// The group's shard; 0 is the catalog
        #[arg(long)]
        shard: u64,
        /// First index
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// Entries, at most
        #[arg(long, default_value_t = 1_000)]
        limit: u64,
    },
}

#[derive(Subcommand, Debug)]
enum StateCommand {
    /// Read every row of a copy and check that it means something; exit code 7 if not
    Verify {
        #[command(flatten)]
        directory: Directory,
        /// Where the copy is made: needs as much room as the state takes
        #[arg(long, value_name = "DIR")]
        scratch: Option<PathBuf>,
    },
    /// The part of `verify` that runs in a process of its own
    #[command(hide = true)]
    VerifyCopy { copy: PathBuf },
}

#[derive(Subcommand, Debug)]
enum SnapshotCommand {
    /// Read every snapshot file and check that it is what was written; exit code 7 if not
    Verify(Directory),
}

#[derive(Serialize)]
struct GroupView {
    shard: u64,
    incarnation: u32,
    term: Option<u64>,
    voted_for: Option<u64>,
    purged_index: Option<u64>,
    first_index: Option<u64>,
    last_index: Option<u64>,
    entries: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct EntryView {
    index: u64,
    term: u64,
    kind: String,
    commands: usize,
    time: Option<String>,
    bytes: usize,
}

#[derive(Serialize)]
struct LogVerdict {
    intact: bool,
    segments: u64,
    disk_bytes: u64,
    groups: usize,
    entries: u64,
    entry_bytes: u64,
    damage: Option<Damage>,
}

#[derive(Serialize, Deserialize)]
struct StateVerdict {
    intact: bool,
    anchors: u64,
    operations: u64,
    catalog_rows: u64,
    bytes: u64,
    replicas: Vec<StateReplicaView>,
    damage: Option<DamageView>,
}

/// A [`Damage`] that travels between two processes.
#[derive(Serialize, Deserialize)]
struct DamageView {
    what: String,
    next: String,
}

#[derive(Serialize, Deserialize)]
struct StateReplicaView {
    shard: u64,
    applied_term: Option<u64>,
    applied_index: Option<u64>,
    anchors: u64,
    is_installing: bool,
}

#[derive(Serialize)]
struct SnapshotView {
    file: String,
    intact: bool,
    shard: Option<u64>,
    incarnation: Option<u32>,
    index: Option<u64>,
    rows: u64,
    anchors: Option<u64>,
    bytes: u64,
    digest: Option<String>,
    damage: Option<Damage>,
}

/// Runs `anchorhold debug`.
///
/// # Errors
/// Exit code 4 if there is nothing to look at, 5 if its node runs, 7 if something is damaged.
pub(crate) fn run(args: DebugArgs) -> anyhow::Result<()> {
    let output = args.output;
    match args.command {
        DebugCommand::Log(LogCommand::Ls(at)) => log_ls(&at.data_dir, output),
        DebugCommand::Log(LogCommand::Verify(at)) => log_verify(&at.data_dir, output),
        DebugCommand::Log(LogCommand::Dump { directory, shard, from, limit }) => {
            log_dump(&directory.data_dir, shard, from, limit, output)
        }
        DebugCommand::State(StateCommand::Verify { directory, scratch }) => {
            let scratch = scratch.unwrap_or_else(std::env::temp_dir);
            state_verify(&directory.data_dir, &scratch, output)
        }
        DebugCommand::State(StateCommand::VerifyCopy { copy }) => verify_copy(&copy),
        DebugCommand::Snapshot(SnapshotCommand::Verify(at)) => {
            snapshot_verify(&at.data_dir, output)
        }
    }
}

fn open(dir: &Path) -> anyhow::Result<Inspection> {
    Inspection::open(dir).map_err(|error| {
        let exit = match error {
            inspect::InspectError::NoDataDir { .. } => Exit::NotFound,
            inspect::InspectError::InUse { .. } => Exit::Conflict,
            inspect::InspectError::Io { .. } => Exit::Failed,
        };
        let next = "what a running node finds by itself shows in `node list` and /metrics";
        let next = if matches!(exit, Exit::Conflict) { next } else { "" };
        anyhow::Error::new(Failure::new(exit, format!("{:#}", anyhow::Error::new(error)), next))
    })
}

fn damaged(damage: &Damage) -> anyhow::Error {
    Failure::new(Exit::Damaged, damage.what.clone(), damage.next.clone()).into()
}

fn open_log(dir: &Path) -> anyhow::Result<InspectedLog> {
    open(dir)?.log()?.map_err(|damage| damaged(&damage))
}

fn log_ls(dir: &Path, output: Format) -> anyhow::Result<()> {
    let groups = open_log(dir)?.groups().map_err(|damage| damaged(&damage))?;
    let views: Vec<GroupView> = groups.iter().map(GroupView::of).collect();
    output::print(output, &views, || {
        let header =
            ["SHARD", "INCARNATION", "TERM", "VOTE", "PURGED", "FIRST", "LAST", "ENTRIES", "SIZE"];
        let shown =
            |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
        output::table(
            header,
            views.iter().map(|view| {
                [
                    view.shard.to_string(),
                    view.incarnation.to_string(),
                    shown(view.term),
                    shown(view.voted_for),
                    shown(view.purged_index),
                    shown(view.first_index),
                    shown(view.last_index),
                    thousands(view.entries),
                    bytes(view.bytes),
                ]
            }),
        )
    })
}

fn log_verify(dir: &Path, output: Format) -> anyhow::Result<()> {
    let inspection = open(dir)?;
    let read = inspection.log()?.and_then(|log| Ok((log.size(), log.groups()?)));
    let verdict = match &read {
        Ok(((disk_bytes, segments), groups)) => LogVerdict {
            intact: true,
            segments: *segments,
            disk_bytes: *disk_bytes,
            groups: groups.len(),
            entries: groups.iter().map(|group| group.entries).sum(),
            entry_bytes: groups.iter().map(|group| group.bytes).sum(),
            damage: None,
        },
        Err(damage) => LogVerdict {
            intact: false,
            segments: 0,
            disk_bytes: 0,
            groups: 0,
            entries: 0,
            entry_bytes: 0,
            damage: Some(damage.clone()),
        },
    };
    output::print(output, &verdict, || match &verdict.damage {
        None => format!(
            "intact: {} entries of {} groups, {}; every checksum of {} segments fits",
            thousands(verdict.entries),
            verdict.groups,
            bytes(verdict.entry_bytes),
            verdict.segments
        ),
        Some(_) => "DAMAGED".to_owned(),
    })?;
    read.map(drop).map_err(|damage| damaged(&damage))
}

fn log_dump(dir: &Path, shard: u64, from: u64, limit: u64, output: Format) -> anyhow::Result<()> {
    let log = open_log(dir)?;
    let groups = log.groups().map_err(|damage| damaged(&damage))?;
    let group = groups.iter().map(|group| group.group).filter(|group| group.shard == shard).max();
    let group = group.ok_or_else(|| {
        Failure::new(Exit::NotFound, format!("the log has no shard {shard}"), "`debug log ls`")
    })?;
    let mut views = Vec::new();
    let read = log.read(group, from..from.saturating_add(limit), &mut |entry, summary| {
        let summary = summary.as_ref();
        views.push(EntryView {
            index: entry.position.index,
            term: entry.position.term,
            kind: summary.map_or_else(|error| format!("?? {error}"), |one| one.kind.to_owned()),
            commands: summary.map_or(0, |one| one.commands),
            time: summary.ok().and_then(|one| one.time).map(time_text),
            bytes: entry.content.len(),
        });
    });
    read.map_err(|damage| damaged(&damage))?;
    output::print(output, &views, || {
        let rows = views.iter().map(|view| {
            [
                view.index.to_string(),
                view.term.to_string(),
                view.kind.clone(),
                view.commands.to_string(),
                view.time.clone().unwrap_or_else(|| "-".to_owned()),
                view.bytes.to_string(),
            ]
        });
        output::table(["INDEX", "TERM", "KIND", "COMMANDS", "TIME", "BYTES"], rows)
    })
}

fn time_text(time: Timestamp) -> String {
    let seconds = i64::try_from(time.0 / 1_000).unwrap_or(i64::MAX);
    let nanos = i32::try_from(time.0 % 1_000 * 1_000_000).unwrap_or(0);
    prost_types::Timestamp { seconds, nanos }.to_string()
}

/// A directory that is gone when this is dropped.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("the copy stays in {}: {error}", self.0.display());
        }
    }
}

fn state_verify(dir: &Path, scratch: &Path, output: Format) -> anyhow::Result<()> {
    let inspection = open(dir)?;
    let scratch = Scratch(scratch.join(format!("anchorhold-state-{}", std::process::id())));
    std::fs::create_dir_all(&scratch.0)
        .with_context(|| format!("cannot make {}", scratch.0.display()))?;
    inspection.copy_state(&scratch.0)?;
    let own = std::env::current_exe().context("cannot find this binary")?;
    let child = Command::new(own)
        .args(["debug", "state", "verify-copy"])
        .arg(&scratch.0)
        .output()
        .context("cannot start the check")?;
    let verdict = match serde_json::from_slice::<StateVerdict>(&child.stdout) {
        Ok(verdict) if child.status.success() => verdict,
        Ok(_) | Err(_) => {
            StateVerdict::damaged(inspect::state_check_ended(&child.status.to_string()))
        }
    };
    output::print(output, &verdict, || verdict.table())?;
    match verdict.damage {
        None => Ok(()),
        Some(damage) => Err(damaged(&Damage { what: damage.what, next: damage.next })),
    }
}

fn verify_copy(copy: &Path) -> anyhow::Result<()> {
    let verdict = match inspect::verify_state_copy(copy)? {
        Ok(found) => StateVerdict {
            intact: true,
            anchors: found.anchors,
            operations: found.operations,
            catalog_rows: found.catalog_rows,
            bytes: found.bytes,
            replicas: found
                .replicas
                .into_iter()
                .map(|replica| StateReplicaView {
                    shard: replica.shard.0,
                    applied_term: replica.applied.map(|(term, _)| term),
                    applied_index: replica.applied.map(|(_, index)| index),
                    anchors: replica.anchors,
                    is_installing: replica.is_installing,
                })
                .collect(),
            damage: None,
        },
        Err(damage) => StateVerdict::damaged(damage),
    };
    println!("{}", serde_json::to_string(&verdict)?);
    Ok(())
}

impl StateVerdict {
    fn damaged(damage: Damage) -> Self {
        Self {
            intact: false,
            anchors: 0,
            operations: 0,
            catalog_rows: 0,
            bytes: 0,
            replicas: Vec::new(),
            damage: Some(DamageView { what: damage.what, next: damage.next }),
        }
    }

    fn table(&self) -> String {
        if !self.intact {
            return "DAMAGED".to_owned();
        }
        let rows = self.replicas.iter().map(|replica| {
            [
                replica.shard.to_string(),
                replica.applied_index.map_or("-".to_owned(), |index| index.to_string()),
                thousands(replica.anchors),
                if replica.is_installing { "loading a snapshot" } else { "ok" }.to_owned(),
            ]
        });
        format!(
            "intact: {} anchors, {} remembered operations, {}\n{}",
            thousands(self.anchors),
            thousands(self.operations),
            bytes(self.bytes),
            output::table(["SHARD", "APPLIED", "ANCHORS", "STATE"], rows)
        )
    }
}

fn snapshot_verify(dir: &Path, output: Format) -> anyhow::Result<()> {
    let reports = open(dir)?.snapshots()?;
    let views: Vec<SnapshotView> = reports.into_iter().map(SnapshotView::of).collect();
    output::print(output, &views, || {
        let header = ["FILE", "STATE", "SHARD", "INDEX", "ROWS", "ANCHORS", "SIZE", "DIGEST"];
        output::table(header, views.iter().map(SnapshotView::row))
    })?;
    match views.iter().find_map(|view| view.damage.as_ref()) {
        None => Ok(()),
        Some(damage) => Err(damaged(damage)),
    }
}

impl SnapshotView {
    fn of(report: inspect::SnapshotReport) -> Self {
        let damage = report.found.as_ref().err().cloned();
        let found = report.found.ok();
        let found = found.as_ref();
        Self {
            file: report.name,
            intact: damage.is_none(),
            shard: found.map(|found| found.group.shard),
            incarnation: found.map(|found| found.group.incarnation),
            index: found.and_then(|found| found.index),
            rows: found.map_or(0, |found| found.rows),
            anchors: found.and_then(|found| found.anchors),
            bytes: found.map_or(0, |found| found.bytes),
            digest: found.map(|found| found.digest.clone()),
            damage,
        }
    }

    fn row(&self) -> [String; 8] {
        let shown =
            |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
        let digest = self.digest.as_deref().unwrap_or("-");
        [
            self.file.clone(),
            if self.intact { "intact" } else { "DAMAGED" }.to_owned(),
            shown(self.shard),
            shown(self.index),
            thousands(self.rows),
            shown(self.anchors),
            bytes(self.bytes),
            digest.chars().take(16).collect(),
        ]
    }
}

impl GroupView {
    fn of(report: &GroupReport) -> Self {
        let state = &report.state;
        Self {
            shard: report.group.shard,
            incarnation: report.group.incarnation,
            term: state.hard_state.map(|hard| hard.term),
            voted_for: state.hard_state.and_then(|hard| hard.voted_for),
            purged_index: state.purged.map(|purged| purged.index),
            first_index: report.first,
            last_index: report.first.and(state.last).map(|last| last.index),
            entries: report.entries,
            bytes: report.bytes,
        }
    }
}
