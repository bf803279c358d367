//! Judges one workload's record, and what was read back of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::collect::FinalNode;
use super::traffic::{Share, Traffic};
use crate::checker::expiry::Expiry;
use crate::checker::sessions::Sessions;
use crate::checker::wgl::{Limits, Sampler};
use crate::checker::{Findings, Presence, ReadBack, VersionOrder};
use crate::history::{Action, End, HistoryReader, Level, Operation, Outcome, Row, Served};
use crate::judge::Invariant;
use crate::workload::WorkloadConfig;

/// What one workload showed.
#[derive(Debug)]
pub(super) struct Judged {
    pub(super) name: String,
    pub(super) findings: Findings,
    pub(super) share: Share,
    pub(super) end: End,
}

/// The checkers that a workload needs.
struct Checkers {
    order: Option<VersionOrder>,
    sampler: Option<Sampler>,
    sessions: Option<Sessions>,
    presence: Option<Presence>,
    expiry: Option<Expiry>,
}

impl Checkers {
    fn new(config: &WorkloadConfig) -> Self {
        let mut checkers =
            Self { order: None, sampler: None, sessions: None, presence: None, expiry: None };
        match config {
            WorkloadConfig::Register(_) => {
                checkers.order = Some(VersionOrder::default());
                checkers.sampler = Some(Sampler::new(Limits::default()));
            }
            WorkloadConfig::Session(_) => {
                checkers.order = Some(VersionOrder::default());
                checkers.sessions = Some(Sessions::default());
            }
            WorkloadConfig::Set(_) | WorkloadConfig::Nearest(_) | WorkloadConfig::List(_) => {
                checkers.presence = Some(Presence::default());
            }
            WorkloadConfig::Expiry(config) => {
                let off_ns = config.clock_off_ms_max.saturating_mul(1_000_000);
                checkers.expiry = Some(Expiry::new(off_ns));
            }
        }
        checkers
    }

    fn add(&mut self, operation: &Operation) {
        if let Some(order) = &mut self.order {
            order.add(operation);
        }
        if let Some(sampler) = &mut self.sampler {
            sampler.add(operation);
        }
        if let Some(sessions) = &mut self.sessions {
            sessions.add(operation);
        }
        if let Some(presence) = &mut self.presence {
            presence.add(operation);
        }
        if let Some(expiry) = &mut self.expiry {
            expiry.add(operation);
        }
    }

    fn finish(self) -> Findings {
        let mut findings = Findings::default();
        let all = [
            self.order.map(VersionOrder::finish),
            self.sampler.map(Sampler::finish),
            self.sessions.map(Sessions::finish),
            self.presence.map(Presence::finish),
            self.expiry.map(Expiry::finish),
        ];
        all.into_iter().flatten().for_each(|one| findings.extend(one));
        findings
    }
}

/// Reads a record and what was read back, and judges both.
///
/// # Errors
/// If a file is damaged. One that was never read back is no error: the caller knows.
pub(super) fn judge(
    number: u16,
    history: &Path,
    back: &Path,
    nodes: &[FinalNode],
    traffic: &mut Traffic,
) -> anyhow::Result<Judged> {
    let mut reader = HistoryReader::open(history)?;
    let header = reader.header().clone();
    let config: WorkloadConfig = serde_json::from_str(&header.config)?;
    let mut checkers = Checkers::new(&config);
    let mut share = Share::default();
    let mut keys = BTreeSet::new();
    let mut last_ns = 0;
    while let Some(operation) = reader.next()? {
        traffic.add(number, &operation, &mut share);
        last_ns = last_ns.max(operation.end_ns);
        if checkers.order.is_some()
            && let (Action::Create { .. }, Outcome::Written { id, .. }) =
                (&operation.action, &operation.outcome)
        {
            keys.insert(*id);
        }
        checkers.add(&operation);
    }
    let end = reader.end().unwrap_or(End::Torn);
    let mut findings = Findings::default();
    if back.exists() {
        let sources = read_back(back, nodes, last_ns)?;
        add_back(&mut checkers, &keys, sources, &mut findings);
    }
    findings.extend(checkers.finish());
    Ok(Judged { findings: findings.of_workload(&header.name), name: header.name, share, end })
}

/// What one source held in the end, or why it said nothing.
struct Source {
    node: Option<String>,
    start_ns: u64,
    end_ns: u64,
    rows: Result<Vec<Row>, String>,
}

/// Reads what was read back; it counts as asked right after the last operation.
fn read_back(path: &Path, nodes: &[FinalNode], last_ns: u64) -> anyhow::Result<Vec<Source>> {
    let mut reader = HistoryReader::open(path)?;
    let mut sources: BTreeMap<u32, Source> = BTreeMap::new();
    while let Some(operation) = reader.next()? {
        let node = (operation.client != 0).then(|| {
            let known = nodes.iter().find(|node| node.node_id == operation.served.node);
            known.map_or_else(|| operation.served.node.to_string(), |node| node.name.clone())
        });
        let source = sources.entry(operation.client).or_insert_with(|| Source {
            node,
            start_ns: last_ns + 1,
            end_ns: last_ns + 1,
            rows: Ok(Vec::new()),
        });
        source.end_ns = last_ns + 1 + operation.end_ns;
        match operation.outcome {
            Outcome::Rows { rows, .. } => {
                if let Ok(all) = &mut source.rows {
                    all.extend(rows);
                }
            }
            Outcome::Failed { reason } => source.rows = Err(reason),
            Outcome::Written { .. }
            | Outcome::Deleted
            | Outcome::Found { .. }
            | Outcome::Absent
            | Outcome::Mismatch { .. }
            | Outcome::Unknown { .. } => source.rows = Err("another kind of record".to_owned()),
        }
    }
    Ok(sources.into_values().collect())
}

fn add_back(
    checkers: &mut Checkers,
    keys: &BTreeSet<u128>,
    sources: Vec<Source>,
    findings: &mut Findings,
) {
    let mut api: Option<BTreeMap<u128, Row>> = None;
    for source in sources {
        let Source { node, start_ns, end_ns, rows } = source;
        let invariant =
            if node.is_some() { Invariant::ReplicasComplete } else { Invariant::NothingLost };
        let rows = match rows {
            Ok(rows) => rows,
            Err(reason) => {
                let who = node.as_deref().unwrap_or("the API");
                findings
                    .leave_open(invariant, || format!("{who} could not be read back: {reason}"));
                continue;
            }
        };
        if let Some(presence) = &mut checkers.presence {
            presence.add_read_back(ReadBack { node, start_ns, end_ns, rows });
            continue;
        }
        let found: BTreeMap<u128, Row> = rows.into_iter().map(|row| (row.id, row)).collect();
        match (node, &api) {
            (None, _) => {
                for id in keys {
                    checkers.add(&final_read(*id, found.get(id), start_ns, end_ns));
                }
                api = Some(found);
            }
            (Some(node), Some(api)) => compare(&node, api, &found, findings),
            (Some(_), None) => {}
        }
    }
}

/// What the API held of an anchor in the end, as a read like any other.
fn final_read(id: u128, row: Option<&Row>, start_ns: u64, end_ns: u64) -> Operation {
    let outcome = match row {
        Some(row) => Outcome::Found { version: row.version, value: row.value },
        None => Outcome::Absent,
    };
    Operation {
        client: u32::MAX,
        start_ns,
        end_ns,
        resolved: false,
        served: Served::default(),
        action: Action::Get { id, level: Level::Linearizable },
        outcome,
    }
}

/// A replica holds what the API holds: nothing was written in between.
fn compare(
    node: &str,
    api: &BTreeMap<u128, Row>,
    found: &BTreeMap<u128, Row>,
    findings: &mut Findings,
) {
    findings.check(Invariant::ReplicasComplete, api.len() as u64);
    for (id, row) in api {
        if found.get(id) == Some(row) {
            continue;
        }
        findings.violate(
            Invariant::ReplicasComplete,
            || {
                let of = |row: &Row| {
                    let version = row.version;
                    format!("value {} of version {}-{}", row.value, version.incarnation, version.revision)
                };
                let (there, here) = (found.get(id).map_or("nothing".to_owned(), of), of(row));
                format!("after the heal node {node} holds {there} under {id:032x} where the API holds {here}")
            },
            Vec::new,
        );
    }
}
