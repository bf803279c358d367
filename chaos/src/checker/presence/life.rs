//! The lives of anchors.

use std::collections::HashMap;

use super::{During, Impossible};
use crate::checker::version_order::id_text;
use crate::checker::{Evidence, Findings};
use crate::history::{Action, Operation, Outcome, Position};
use crate::judge::Invariant;

/// All anchors that anybody tried to create.
#[derive(Debug, Default)]
pub(super) struct Lives {
    lives: Vec<Life>,
    of_value: HashMap<u64, usize>,
    of_id: HashMap<u128, usize>,
}

/// One anchor, from the wish to create it on.
#[derive(Clone, Debug)]
pub(super) struct Life {
    pub(super) value: u64,
    pub(super) position: Position,
    /// Known once its creation was acknowledged.
    pub(super) id: Option<u128>,
    client: u32,
    created: Change,
    deleted: Option<Change>,
}

/// A creation or deletion.
#[derive(Clone, Copy, Debug)]
struct Change {
    start_ns: u64,
    end_ns: u64,
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Acknowledged,
    /// May have been done.
    Open,
    /// Was not done.
    Refused,
}

impl Lives {
    /// Notes a creation.
    pub(super) fn create(&mut self, operation: &Operation, findings: &mut Findings) {
        let Action::Create { value, position, .. } = operation.action else { return };
        let (how, id) = match operation.outcome {
            Outcome::Written { id, .. } => (How::Acknowledged, Some(id)),
            Outcome::Unknown { .. } => (How::Open, None),
            Outcome::Deleted
            | Outcome::Found { .. }
            | Outcome::Absent
            | Outcome::Mismatch { .. }
            | Outcome::Rows { .. }
            | Outcome::Failed { .. } => (How::Refused, None),
        };
        let created = Change::of(operation, how);
        findings.check(Invariant::NothingDoubled, 1);
        let index = *self.of_value.entry(value).or_insert_with(|| {
            let client = operation.client;
            self.lives.push(Life { value, position, id: None, client, created, deleted: None });
            self.lives.len() - 1
        });
        let life = &mut self.lives[index];
        if let (Some(known), Some(id)) = (life.id, id)
            && known != id
        {
            let evidence = [
                life.evidence(),
                vec![Evidence::of(operation, &format!("create value {value}: {}", id_text(id)))],
            ];
            findings.violate(
                Invariant::NothingDoubled,
                || format!("one create of value {value} made two anchors"),
                || evidence.concat(),
            );
        }
        if life.id.is_none() {
            life.created = created;
            life.id = id;
        }
        let Some(id) = id else { return };
        if let Some(other) = self.of_id.insert(id, index).filter(|other| *other != index) {
            let evidence = [self.lives[other].evidence(), self.lives[index].evidence()].concat();
            findings.violate(
                Invariant::NothingDoubled,
                || format!("two creates were acknowledged the same anchor {}", id_text(id)),
                || evidence,
            );
        }
    }

    /// Notes a deletion.
    pub(super) fn delete(&mut self, id: u128, operation: &Operation, findings: &mut Findings) {
        let Some(life) = self.of_id.get(&id).and_then(|index| self.lives.get_mut(*index)) else {
            return;
        };
        let how = match operation.outcome {
            Outcome::Deleted => How::Acknowledged,
            Outcome::Unknown { .. } => How::Open,
            Outcome::Absent => {
                findings.check(Invariant::NothingLost, 1);
                // Only its creator deletes an anchor, once: a retry is told that it is deleted.
                if life.deleted.is_none_or(|deleted| deleted.how == How::Open) {
                    let mut evidence = life.evidence();
                    evidence.push(Evidence::of(
                        operation,
                        &format!("delete {}: nothing there", id_text(id)),
                    ));
                    findings.violate(
                        Invariant::NothingLost,
                        || {
                            format!(
                                "anchor {} was acknowledged and is not there to be deleted",
                                id_text(id)
                            )
                        },
                        || evidence,
                    );
                }
                How::Acknowledged
            }
            Outcome::Written { .. }
            | Outcome::Found { .. }
            | Outcome::Mismatch { .. }
            | Outcome::Rows { .. }
            | Outcome::Failed { .. } => return,
        };
        let is_settled = life.deleted.is_some_and(|deleted| deleted.how == How::Acknowledged);
        if !is_settled {
            life.deleted = Some(Change::of(operation, how));
        }
    }

    pub(super) fn of_value(&self, value: u64) -> Option<&Life> {
        self.of_value.get(&value).and_then(|index| self.lives.get(*index))
    }

    pub(super) fn of_id(&self, id: u128) -> Option<&Life> {
        self.of_id.get(&id).and_then(|index| self.lives.get(*index))
    }

    /// All that were acknowledged, deleted ones included.
    pub(super) fn acknowledged(&self) -> impl Iterator<Item = (u128, &Life)> {
        self.lives.iter().filter_map(|life| Some((life.id?, life)))
    }

    /// Says which outcomes are not known.
    pub(super) fn leave_open(&self, findings: &mut Findings) {
        for life in &self.lives {
            let is_open = |change: &Change| change.how == How::Open;
            if is_open(&life.created) || life.deleted.as_ref().is_some_and(is_open) {
                findings.leave_open(Invariant::NothingLost, || {
                    format!(
                        "the outcome of a write is not known: value {}, client {}",
                        life.value, life.client
                    )
                });
            }
        }
    }
}

impl Life {
    /// Whether it was there during all of that time, or the promise is broken.
    pub(super) fn must_be_there(&self, during: During) -> bool {
        let is_created =
            self.created.how == How::Acknowledged && self.created.end_ns < during.start_ns;
        is_created && self.deleted.is_none_or(|deleted| during.end_ns < deleted.start_ns)
    }

    /// Why it was there at no moment of that time; `None` if it may have been.
    pub(super) fn cannot_be_there(&self, during: During) -> Option<Impossible> {
        if self.created.how == How::Refused {
            return Some(Impossible::Refused);
        }
        if during.end_ns < self.created.start_ns {
            return Some(Impossible::NotYet);
        }
        let deleted = self.deleted.filter(|deleted| deleted.how == How::Acknowledged)?;
        (deleted.end_ns < during.start_ns).then_some(Impossible::Deleted)
    }

    /// What was done to it.
    pub(super) fn evidence(&self) -> Vec<Evidence> {
        let id = self.id.map_or("a new anchor".to_owned(), id_text);
        let one = |change: Change, verb: &str| Evidence {
            client: Some(self.client),
            start_ns: change.start_ns,
            end_ns: change.end_ns,
            text: format!("{verb} {id}, value {}: {}", self.value, change.how.told()),
        };
        let deleted = self.deleted.map(|deleted| one(deleted, "delete"));
        [one(self.created, "create")].into_iter().chain(deleted).collect()
    }
}

impl Change {
    fn of(operation: &Operation, how: How) -> Self {
        Self { start_ns: operation.start_ns, end_ns: operation.end_ns, how }
    }
}

impl How {
    fn told(self) -> &'static str {
        match self {
            Self::Acknowledged => "acknowledged",
            Self::Open => "outcome unknown",
            Self::Refused => "refused",
        }
    }
}

impl Evidence {
    fn of(operation: &Operation, text: &str) -> Self {
        Self {
            client: Some(operation.client),
            start_ns: operation.start_ns,
            end_ns: operation.end_ns,
            text: text.to_owned(),
        }
    }
}
