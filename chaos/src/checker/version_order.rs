//! Whether registers are linearizable, by the versions that the store gives to every state.
//!
//! A version names one state of one anchor and versions of an anchor are ordered, so a history is
//! linearizable by that order if
//!
//! * each value has one version and each version one value, and somebody wrote that value;
//! * real time is respected: an operation that began after another one had ended is not ordered
//!   before it, and a write is ordered after everything that had ended;
//! * a compare-and-set follows exactly the version that it expected, and one that was refused did
//!   not expect the current one.
//!
//! All of it is a sort and a sweep. Since revisions are counted by shards, the same sweep over all
//! writes of a shard must hold too, and no two of them may share a revision.
//!
//! Reads at weaker levels are held to what they promise: BOUNDED_STALENESS must show what was
//! acknowledged before the read began less the staleness that its reply states.
//!
//! It trusts versions; [`super::wgl`] does not.

mod sweep;

use std::collections::HashMap;

use anchorhold_model::Version;

use self::sweep::{Query, Settled};
use super::{Evidence, Findings};
use crate::history::{Action, Level, Operation, Outcome};
use crate::judge::Invariant;

/// Takes the operations on registers.
#[derive(Debug, Default)]
pub struct VersionOrder {
    keys: HashMap<u128, Vec<Seen>>,
    /// Writes of unknown outcome that were not resolved yet.
    open: HashMap<(u128, u32), Seen>,
    /// Creates of unknown outcome: nobody knows the anchor's id.
    creates: HashMap<u64, Seen>,
    shard_writes: Vec<ShardWrite>,
}

/// One operation on one anchor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) client: u32,
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
    pub(super) id: u128,
    pub(super) what: What,
}

/// What was done and learnt.
#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    /// A write that took effect.
    Write { value: u64, version: Option<Version>, expected: Option<Version> },
    /// A write that may have taken effect.
    Open { value: u64 },
    /// A write that did not take effect because of another version.
    Refused { value: u64, expected: Option<Version>, current: Option<Version> },
    /// A read that found something.
    Read { value: u64, version: Version, freshness: Freshness },
    /// A read or write that found nothing.
    Absent { freshness: Freshness },
}

/// What a read has to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    /// Everything acknowledged before it began.
    Now,
    /// Everything acknowledged before a moment that lies this far before its beginning.
    Since { asked_ns: u64, stated_ns: Option<u64> },
    /// Nothing in particular.
    Any,
}

#[derive(Clone, Copy, Debug)]
struct ShardWrite {
    shard: u64,
    seen: Seen,
    version: Version,
}

impl VersionOrder {
    /// Takes the next operation, in any order.
    pub fn add(&mut self, operation: &Operation) {
        let Some((id, what)) = understood(operation) else { return };
        let Operation { client, start_ns, end_ns, .. } = *operation;
        let seen = Seen { client, start_ns, end_ns, id, what };
        let request = operation.action.request();
        if let What::Open { value } = what {
            match (id, request) {
                (0, _) => drop(self.creates.insert(value, seen)),
                (_, Some(request)) => drop(self.open.insert(request, seen)),
                (_, None) => {}
            }
            return;
        }
        if let (Some(request), true) = (request, operation.resolved) {
            self.open.remove(&request);
            if let What::Write { value, .. } = what {
                self.creates.remove(&value);
            }
        }
        if let What::Write { version: Some(version), .. } = what
            && operation.served.shard != 0
        {
            let shard = operation.served.shard;
            self.shard_writes.push(ShardWrite { shard, seen, version });
        }
        if id != 0 {
            self.keys.entry(id).or_default().push(seen);
        }
    }

    /// Says what was found.
    pub fn finish(mut self) -> Findings {
        let mut findings = Findings::default();
        let mut open: Vec<Seen> = self.open.into_values().collect();
        open.sort_by_key(|seen| (seen.start_ns, seen.client));
        for seen in open {
            findings.leave_open(Invariant::Linearizable, || {
                format!("the outcome of a write is not known: {}", describe(&seen))
            });
            self.keys.entry(seen.id).or_default().push(seen);
        }
        let mut creates: Vec<Seen> = self.creates.into_values().collect();
        creates.sort_by_key(|seen| (seen.start_ns, seen.client));
        for seen in creates {
            findings.leave_open(Invariant::Linearizable, || {
                format!("the outcome of a create is not known: {}", describe(&seen))
            });
        }
        let mut keys: Vec<(u128, Vec<Seen>)> = self.keys.into_iter().collect();
        keys.sort_unstable_by_key(|(id, _)| *id);
        for (_, history) in &mut keys {
            check_key(history, &mut findings);
        }
        drop(keys);
        check_shards(self.shard_writes, &mut findings);
        findings
    }
}

fn understood(operation: &Operation) -> Option<(u128, What)> {
    match (&operation.action, &operation.outcome) {
        (Action::Create { value, .. }, Outcome::Written { id, version }) => {
            Some((*id, What::Write { value: *value, version: *version, expected: None }))
        }
        (Action::Create { value, .. }, Outcome::Unknown { .. }) => {
            Some((0, What::Open { value: *value }))
        }
        (Action::Update { id, value, expected, .. }, outcome) => {
            let expected = expected.map(|(version, _)| version);
            updated(*value, expected, outcome).map(|what| (*id, what))
        }
        (Action::Get { id, level }, Outcome::Found { version, value }) => {
            let freshness = freshness(*level, operation.served.staleness_ns);
            Some((*id, What::Read { value: *value, version: *version, freshness }))
        }
        (Action::Get { id, level }, Outcome::Absent) => {
            let freshness = freshness(*level, operation.served.staleness_ns);
            Some((*id, What::Absent { freshness }))
        }
        _ => None,
    }
}

fn updated(value: u64, expected: Option<Version>, outcome: &Outcome) -> Option<What> {
    match outcome {
        Outcome::Written { version, .. } => {
            Some(What::Write { value, version: *version, expected })
        }
        Outcome::Unknown { .. } => Some(What::Open { value }),
        Outcome::Mismatch { current } => Some(What::Refused { value, expected, current: *current }),
        Outcome::Failed { .. } => Some(What::Refused { value, expected: None, current: None }),
        Outcome::Absent => Some(What::Absent { freshness: Freshness::Now }),
        Outcome::Deleted | Outcome::Found { .. } | Outcome::Rows { .. } => None,
    }
}

fn freshness(level: Level, stated_ns: Option<u64>) -> Freshness {
    match level {
        Level::Linearizable => Freshness::Now,
        Level::Bounded { staleness_max_ms } => {
            Freshness::Since { asked_ns: staleness_max_ms.saturating_mul(1_000_000), stated_ns }
        }
        Level::Local | Level::Session => Freshness::Any,
    }
}

/// What is known of one value.
#[derive(Clone, Copy, Debug)]
struct Written {
    seen: Seen,
    version: Option<Version>,
    is_refused: bool,
}

fn check_key(history: &mut [Seen], findings: &mut Findings) {
    let mut values = written_values(history, findings);
    for seen in history.iter() {
        if let What::Read { value, version, freshness } = seen.what {
            findings.check(Invariant::Linearizable, 1);
            check_read_value(seen, value, version, &mut values, findings);
            check_stated_staleness(seen, freshness, findings);
        }
    }
    // Versions that only a read has shown.
    for seen in history.iter_mut() {
        if let What::Write { value, version: version @ None, .. } = &mut seen.what {
            *version = values.get(value).and_then(|written| written.version);
        }
    }
    check_versions(history, &values, findings);
    check_real_time(history, findings);
}

fn written_values(history: &[Seen], findings: &mut Findings) -> HashMap<u64, Written> {
    let mut values: HashMap<u64, Written> = HashMap::new();
    for seen in history {
        let (value, version, is_refused) = match seen.what {
            What::Write { value, version, .. } => (value, version, false),
            What::Open { value } => (value, None, false),
            What::Refused { value, .. } => (value, None, true),
            What::Read { .. } | What::Absent { .. } => continue,
        };
        findings.check(Invariant::NothingDoubled, 1);
        let written = Written { seen: *seen, version, is_refused };
        if let Some(other) = values.insert(value, written)
            && other.version.is_some()
            && version.is_some()
            && other.version != version
        {
            findings.violate(
                Invariant::NothingDoubled,
                || format!("value {value} of anchor {} was acknowledged twice", id_text(seen.id)),
                || vec![evidence(&other.seen), evidence(seen)],
            );
        }
    }
    values
}

fn check_read_value(
    read: &Seen,
    value: u64,
    version: Version,
    values: &mut HashMap<u64, Written>,
    findings: &mut Findings,
) {
    let id = id_text(read.id);
    let Some(written) = values.get_mut(&value) else {
        findings.violate(
            Invariant::Linearizable,
            || format!("a read of anchor {id} shows value {value}, which nobody wrote"),
            || vec![evidence(read)],
        );
        return;
    };
    let proof = |written: &Written| vec![evidence(&written.seen), evidence(read)];
    if written.is_refused {
        findings.violate(
            Invariant::Linearizable,
            || format!("a read of anchor {id} shows value {value}, whose write was refused"),
            || proof(written),
        );
    } else if read.end_ns < written.seen.start_ns {
        findings.violate(
            Invariant::Linearizable,
            || format!("a read of anchor {id} shows value {value} before it was written"),
            || proof(written),
        );
    }
    match written.version {
        None => written.version = Some(version),
        Some(known) if known != version => findings.violate(
            Invariant::NothingDoubled,
            || {
                let (known, version) = (version_text(known), version_text(version));
                format!("value {value} of anchor {id} stands under two versions, {known} and {version}: it was written twice")
            },
            || proof(written),
        ),
        Some(_) => {}
    }
}

fn check_stated_staleness(read: &Seen, freshness: Freshness, findings: &mut Findings) {
    let Freshness::Since { asked_ns, stated_ns } = freshness else { return };
    findings.check(Invariant::StalenessBounded, 1);
    if stated_ns.is_none_or(|stated_ns| asked_ns < stated_ns) {
        findings.violate(
            Invariant::StalenessBounded,
            || match stated_ns {
                Some(stated) => format!(
                    "a reply states a staleness of {} ms where {} ms were asked for",
                    stated / 1_000_000,
                    asked_ns / 1_000_000
                ),
                None => "a reply to a BOUNDED_STALENESS read states no staleness".to_owned(),
            },
            || vec![evidence(read)],
        );
    }
}

/// Versions in order: each once, and each compare-and-set right after what it expected.
fn check_versions(history: &[Seen], values: &HashMap<u64, Written>, findings: &mut Findings) {
    let mut writes: Vec<(Version, u64, Seen)> = history
        .iter()
        .filter_map(|seen| match seen.what {
            What::Write { value, version: Some(version), .. } => Some((version, value, *seen)),
            What::Open { value } => {
                values.get(&value)?.version.map(|version| (version, value, *seen))
            }
            What::Write { .. } | What::Refused { .. } | What::Read { .. } | What::Absent { .. } => {
                None
            }
        })
        .collect();
    writes.sort_by_key(|(version, value, _)| (*version, *value));
    writes.dedup_by_key(|(version, value, _)| (*version, *value));
    for pair in writes.windows(2) {
        let [(before, first, earlier), (version, second, seen)] = pair else { continue };
        if before == version {
            findings.violate(
                Invariant::NothingDoubled,
                || {
                    let (id, version) = (id_text(seen.id), version_text(*version));
                    format!("values {first} and {second} of anchor {id} share version {version}")
                },
                || vec![evidence(earlier), evidence(seen)],
            );
        }
    }
    for (index, (version, _, seen)) in writes.iter().enumerate() {
        let What::Write { expected: Some(expected), .. } = seen.what else { continue };
        let before = index.checked_sub(1).and_then(|index| writes.get(index));
        let is_gapless = before.is_none_or(|(before, _, _)| *before <= expected);
        if !is_gapless || *version <= expected {
            findings.violate(
                Invariant::Linearizable,
                || {
                    let (id, expected) = (id_text(seen.id), version_text(expected));
                    format!("a compare-and-set of anchor {id} took effect although version {expected}, which it expected, was not the current one: a write is overwritten unseen")
                },
                || before.map(|(_, _, other)| evidence(other)).into_iter().chain([evidence(seen)]).collect(),
            );
        }
    }
}

fn check_real_time(history: &[Seen], findings: &mut Findings) {
    let mut settled = Vec::with_capacity(history.len());
    let mut queries = Vec::with_capacity(history.len());
    for seen in history {
        let at = seen.start_ns;
        let since = |freshness| match freshness {
            Freshness::Now => Some(at),
            Freshness::Since { asked_ns, stated_ns } => {
                Some(at.saturating_sub(stated_ns.unwrap_or(asked_ns).min(asked_ns)))
            }
            Freshness::Any => None,
        };
        let query = match seen.what {
            What::Write { version, .. } => {
                findings.check(Invariant::Linearizable, 1);
                settled.extend(version.map(|version| Settled { seen, version }));
                version.map(|version| (at, Query::After(version)))
            }
            What::Read { version, freshness, .. } => {
                settled.push(Settled { seen, version });
                since(freshness).map(|at| (at, Query::NotBefore(version)))
            }
            What::Refused { current, expected, .. } => {
                check_refusal(seen, expected, current, findings);
                current.map(|version| (at, Query::NotBefore(version)))
            }
            What::Absent { freshness } => since(freshness).map(|at| (at, Query::Nothing)),
            What::Open { .. } => None,
        };
        queries.extend(query.map(|(at, query)| (at, query, seen)));
    }
    sweep::check(settled, queries, |query, seen, newest| {
        report_order(query, seen, newest, findings)
    });
}

fn check_refusal(
    seen: &Seen,
    expected: Option<Version>,
    current: Option<Version>,
    findings: &mut Findings,
) {
    findings.check(Invariant::Linearizable, 1);
    if expected.is_some() && expected == current {
        findings.violate(
            Invariant::Linearizable,
            || format!("a compare-and-set of anchor {} was refused although it expected the current version", id_text(seen.id)),
            || vec![evidence(seen)],
        );
    }
}

/// Says that `seen` is ordered before something that had ended when it had to count.
fn report_order(query: Query, seen: &Seen, newest: &Settled<'_>, findings: &mut Findings) {
    let id = id_text(seen.id);
    let newest_version = version_text(newest.version);
    let proof = || vec![evidence(newest.seen), evidence(seen)];
    let is_bounded = matches!(
        seen.what,
        What::Read { freshness: Freshness::Since { .. }, .. }
            | What::Absent { freshness: Freshness::Since { .. } }
    );
    match query {
        Query::NotBefore(version) => {
            let version = version_text(version);
            let invariant =
                if is_bounded { Invariant::StalenessBounded } else { Invariant::Linearizable };
            let text = if is_bounded {
                format!("a BOUNDED_STALENESS read of anchor {id} shows version {version}, older than the staleness it states: version {newest_version} was known before")
            } else {
                format!("a read of anchor {id} is stale: it shows version {version} after version {newest_version} was known")
            };
            findings.violate(invariant, || text, proof);
        }
        Query::After(version) => findings.violate(
            Invariant::Linearizable,
            || {
                let version = version_text(version);
                format!("a write of anchor {id} got version {version} although version {newest_version} was known before it began")
            },
            proof,
        ),
        Query::Nothing => findings.violate(
            Invariant::NothingLost,
            || format!("anchor {id} is gone although version {newest_version} was known and nobody deletes it"),
            proof,
        ),
    }
}

/// The same order over all writes of each shard, and no revision twice.
fn check_shards(mut writes: Vec<ShardWrite>, findings: &mut Findings) {
    let checked = u64::try_from(writes.len()).unwrap_or(u64::MAX);
    findings.check(Invariant::NothingDoubled, checked);
    writes.sort_by_key(|write| (write.shard, write.version, write.seen.start_ns));
    for pair in writes.windows(2) {
        let [first, second] = pair else { continue };
        if first.shard == second.shard
            && first.version == second.version
            && first.seen.id != second.seen.id
        {
            findings.violate(
                Invariant::NothingDoubled,
                || {
                    let version = version_text(first.version);
                    format!("two writes of shard {} share version {version}", first.shard)
                },
                || vec![evidence(&first.seen), evidence(&second.seen)],
            );
        }
    }
    for shard in writes.chunk_by(|a, b| a.shard == b.shard) {
        let settled =
            shard.iter().map(|write| Settled { seen: &write.seen, version: write.version });
        let queries = shard
            .iter()
            .map(|write| (write.seen.start_ns, Query::After(write.version), &write.seen));
        sweep::check(settled.collect(), queries.collect(), |_, seen, newest| {
            // Writes of one anchor are reported by its own check.
            if seen.id != newest.seen.id {
                findings.violate(
                    Invariant::Linearizable,
                    || "a write of a shard got an earlier revision than one that had been acknowledged before it began".to_owned(),
                    || vec![evidence(newest.seen), evidence(seen)],
                );
            }
        });
    }
}

/// The operation in words.
fn describe(seen: &Seen) -> String {
    let version = |version: Option<Version>| version.map_or("?".to_owned(), version_text);
    let id = if seen.id == 0 { "a new anchor".to_owned() } else { id_text(seen.id) };
    match seen.what {
        What::Write { value, version: got, expected: None } => {
            format!("write {value} to {id}: version {}", version(got))
        }
        What::Write { value, version: got, expected } => {
            format!(
                "write {value} to {id} if version {}: version {}",
                version(expected),
                version(got)
            )
        }
        What::Open { value } => format!("write {value} to {id}: outcome unknown"),
        What::Refused { value, expected, current } => format!(
            "write {value} to {id} if version {}: refused, it is {}",
            version(expected),
            version(current)
        ),
        What::Read { value, version, freshness } => {
            format!(
                "read {id} ({}): {value}, version {}",
                level_text(freshness),
                version_text(version)
            )
        }
        What::Absent { freshness } => format!("read {id} ({}): nothing", level_text(freshness)),
    }
}

fn level_text(freshness: Freshness) -> String {
    match freshness {
        Freshness::Now => "LINEARIZABLE".to_owned(),
        Freshness::Since { asked_ns, stated_ns } => {
            let stated = stated_ns.map_or("?".to_owned(), |ns| (ns / 1_000_000).to_string());
            format!("BOUNDED_STALENESS {} ms, stated {stated} ms", asked_ns / 1_000_000)
        }
        Freshness::Any => "LOCAL".to_owned(),
    }
}

pub(super) fn version_text(version: Version) -> String {
    format!("{}-{}", version.incarnation, version.revision)
}

pub(super) fn id_text(id: u128) -> String {
    let text = format!("{id:032x}");
    [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-")
}

fn evidence(seen: &Seen) -> Evidence {
    let Seen { client, start_ns, end_ns, .. } = *seen;
    Evidence { client: Some(client), start_ns, end_ns, text: describe(seen) }
}

#[cfg(test)]
mod tests;
