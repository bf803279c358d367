//! Whether anchors that are created and deleted are there when they must be, and only then.
//!
//! Every anchor has a life: it may be there from the moment its creation was asked for, must be
//! there from the acknowledgement on, need not be there any more from the moment its deletion is
//! asked for, and must be gone from that acknowledgement on. A reply is held against the lives over
//! its own time: everything that must be there throughout has to be in it, nothing may be in it that
//! can not have been there at some moment. Values are unique, so an anchor that was made twice shows.

mod life;
mod nearest;

use std::collections::{BTreeMap, HashMap, HashSet};

use self::life::{Life, Lives};
use super::version_order::id_text;
use super::{Evidence, Findings};
use crate::history::{Action, Level, Operation, Outcome, Position, Row};
use crate::judge::Invariant;

/// Takes the operations on anchors that come and go.
#[derive(Debug, Default)]
pub struct Presence {
    lives: Lives,
    reads: Vec<Look>,
    lists: Vec<Listing>,
    nearest: Vec<Asked>,
    back: Vec<ReadBack>,
    findings: Findings,
}

/// Everything that one source held after the heal.
#[derive(Clone, Debug)]
pub struct ReadBack {
    /// Who was asked: a node's name, or none for the API as a whole.
    pub node: Option<String>,
    /// When it was asked, in nanoseconds since the run's start.
    pub start_ns: u64,
    /// When everything had been read.
    pub end_ns: u64,
    /// What was there.
    pub rows: Vec<Row>,
}

/// One linearizable read of one anchor.
#[derive(Clone, Copy, Debug)]
struct Look {
    during: During,
    id: u128,
    value: Option<u64>,
}

#[derive(Debug)]
struct Listing {
    during: During,
    rows: Vec<(u128, u64)>,
}

#[derive(Debug)]
struct Asked {
    during: During,
    position: Position,
    k: u32,
    rows: Vec<Row>,
    complete: bool,
}

/// Who asked, and when.
#[derive(Clone, Copy, Debug)]
struct During {
    client: Option<u32>,
    start_ns: u64,
    end_ns: u64,
}

/// Why an anchor in a reply cannot have been there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Impossible {
    Unwritten,
    Refused,
    NotYet,
    Deleted,
    OtherId,
}

impl Presence {
    /// Takes the next operation, in the order of the record.
    pub fn add(&mut self, operation: &Operation) {
        let during = During {
            client: Some(operation.client),
            start_ns: operation.start_ns,
            end_ns: operation.end_ns,
        };
        match (&operation.action, &operation.outcome) {
            (Action::Create { .. }, _) => self.lives.create(operation, &mut self.findings),
            (Action::Delete { id, .. }, _) => self.lives.delete(*id, operation, &mut self.findings),
            (Action::Get { id, level: Level::Linearizable }, Outcome::Found { value, .. }) => {
                self.reads.push(Look { during, id: *id, value: Some(*value) });
            }
            (Action::Get { id, level: Level::Linearizable }, Outcome::Absent) => {
                self.reads.push(Look { during, id: *id, value: None });
            }
            (Action::List { level: Level::Linearizable }, Outcome::Rows { rows, .. }) => {
                let rows = rows.iter().map(|row| (row.id, row.value)).collect();
                self.lists.push(Listing { during, rows });
            }
            (Action::Nearest { position, k }, Outcome::Rows { rows, complete }) => {
                let (position, k, complete) = (*position, *k, *complete);
                self.nearest.push(Asked { during, position, k, rows: rows.clone(), complete });
            }
            _ => {}
        }
    }

    /// Takes what a source held after the heal.
    pub fn add_read_back(&mut self, back: ReadBack) {
        self.back.push(back);
    }

    /// Says what was found.
    pub fn finish(self) -> Findings {
        let Self { lives, reads, lists, nearest, back, mut findings } = self;
        lives.leave_open(&mut findings);
        for look in &reads {
            check_look(&lives, look, &mut findings);
        }
        for list in &lists {
            check_list(&lives, list, &mut findings);
        }
        for asked in &nearest {
            nearest::check(&lives, asked, &mut findings);
        }
        for back in &back {
            check_back(&lives, back, &mut findings);
        }
        findings
    }
}

fn check_look(lives: &Lives, look: &Look, findings: &mut Findings) {
    let id = id_text(look.id);
    let proof = |life: &Life, what: &str| {
        let mut proof = life.evidence();
        proof.push(look.during.evidence(format!("read {id}: {what}")));
        proof
    };
    let Some(value) = look.value else {
        findings.check(Invariant::NothingLost, 1);
        if let Some(life) = lives.of_id(look.id)
            && life.must_be_there(look.during)
        {
            findings.violate(
                Invariant::NothingLost,
                || format!("anchor {id} was acknowledged and is not there"),
                || proof(life, "nothing"),
            );
        }
        return;
    };
    findings.check(Invariant::NothingResurrected, 1);
    if let Some((life, problem)) = impossible(lives, look.id, value, look.during) {
        let (invariant, text) = problem.told();
        findings.violate(
            invariant,
            || format!("a read finds anchor {id}, {text}"),
            || match life {
                Some(life) => proof(life, "found"),
                None => vec![look.during.evidence(format!("read {id}: value {value}"))],
            },
        );
    }
}

/// Why this anchor cannot have been there; `None` if it can.
fn impossible(
    lives: &Lives,
    id: u128,
    value: u64,
    during: During,
) -> Option<(Option<&Life>, Impossible)> {
    let Some(life) = lives.of_value(value) else { return Some((None, Impossible::Unwritten)) };
    if life.id.is_some_and(|known| known != id) {
        return Some((Some(life), Impossible::OtherId));
    }
    life.cannot_be_there(during).map(|problem| (Some(life), problem))
}

impl Impossible {
    fn told(self) -> (Invariant, &'static str) {
        match self {
            Self::Unwritten => (Invariant::NothingResurrected, "which nobody wrote"),
            Self::Refused => (Invariant::NothingResurrected, "whose creation had been refused"),
            Self::NotYet => (Invariant::NothingResurrected, "which is created later"),
            Self::Deleted => {
                (Invariant::NothingResurrected, "whose deletion had been acknowledged")
            }
            Self::OtherId => (Invariant::NothingDoubled, "which stands under another id already"),
        }
    }
}

fn check_list(lives: &Lives, list: &Listing, findings: &mut Findings) {
    findings.check(Invariant::ListedOnce, list.rows.len() as u64);
    let mut listed = HashSet::with_capacity(list.rows.len());
    let show = |id: u128| {
        list.during.evidence(format!("listed {} anchors; {}", list.rows.len(), id_text(id)))
    };
    for (id, value) in &list.rows {
        if !listed.insert(*id) {
            findings.violate(
                Invariant::ListedOnce,
                || format!("a list holds anchor {} twice", id_text(*id)),
                || vec![show(*id)],
            );
        }
        if let Some((life, problem)) = impossible(lives, *id, *value, list.during) {
            let (invariant, text) = problem.told();
            findings.violate(
                invariant,
                || format!("a list holds anchor {}, {text}", id_text(*id)),
                || life.map(Life::evidence).into_iter().flatten().chain([show(*id)]).collect(),
            );
        }
    }
    if let Some(pair) = list.rows.windows(2).find(|pair| pair[1].0 < pair[0].0) {
        findings.violate(
            Invariant::ListedOnce,
            || {
                format!(
                    "a list is not in the order of ids: {} follows {}",
                    id_text(pair[1].0),
                    id_text(pair[0].0)
                )
            },
            || vec![show(pair[1].0)],
        );
    }
    for (id, life) in lives.acknowledged() {
        if life.must_be_there(list.during) && !listed.contains(&id) {
            findings.violate(
                Invariant::ListedOnce,
                || format!("a list leaves out anchor {}, which was there throughout", id_text(id)),
                || life.evidence().into_iter().chain([show(id)]).collect(),
            );
        }
    }
}

fn check_back(lives: &Lives, back: &ReadBack, findings: &mut Findings) {
    let during = During { client: None, start_ns: back.start_ns, end_ns: back.end_ns };
    let (lost, place) = match &back.node {
        Some(node) => (Invariant::ReplicasComplete, format!("on node {node}")),
        None => (Invariant::NothingLost, "through the API".to_owned()),
    };
    let show = |text: String| during.evidence(format!("read back {place}: {text}"));
    let mut found: BTreeMap<u128, u64> = BTreeMap::new();
    let mut ids_of_values: HashMap<u64, u128> = HashMap::new();
    for Row { id, value, .. } in &back.rows {
        let is_double = found.insert(*id, *value).is_some();
        let other = ids_of_values.insert(*value, *id).filter(|other| other != id);
        if is_double || other.is_some() {
            findings.violate(
                Invariant::NothingDoubled,
                || {
                    format!(
                        "value {value} is there twice {place}: anchors {} and {}",
                        id_text(*id),
                        id_text(other.unwrap_or(*id))
                    )
                },
                || vec![show(id_text(*id))],
            );
        }
        if let Some((life, problem)) = impossible(lives, *id, *value, during) {
            let (invariant, text) = problem.told();
            findings.violate(
                invariant,
                || format!("after the heal anchor {} is there {place}, {text}", id_text(*id)),
                || {
                    life.map(Life::evidence)
                        .into_iter()
                        .flatten()
                        .chain([show(id_text(*id))])
                        .collect()
                },
            );
        }
    }
    findings.check(Invariant::NothingResurrected, back.rows.len() as u64);
    findings.check(Invariant::NothingDoubled, back.rows.len() as u64);
    for (id, life) in lives.acknowledged() {
        if !life.must_be_there(during) {
            continue;
        }
        findings.check(lost, 1);
        if !found.contains_key(&id) {
            findings.violate(
                lost,
                || {
                    format!(
                        "anchor {} was acknowledged and is not there {place} after the heal",
                        id_text(id)
                    )
                },
                || life.evidence().into_iter().chain([show("nothing".to_owned())]).collect(),
            );
        }
    }
}

impl During {
    fn evidence(self, text: String) -> Evidence {
        let Self { client, start_ns, end_ns } = self;
        Evidence { client, start_ns, end_ns, text }
    }
}

#[cfg(test)]
mod tests;
