use std::sync::Arc;

use super::overlay::Overlay;
use super::{OperationRecord, Records, is_anchor_due, is_operation_due};
use crate::cover::DRIFT_M_MAX;
use crate::{
    Anchor, AnchorId, AnchorPatch, Command, OperationId, Outcome, Pose, Rejection, Timestamp,
    Version, Write, digest,
};

/// What a write does unless the store fails: it takes effect, or it is rejected.
type Effect = Result<Outcome, Rejection>;

impl<R: Records> Overlay<'_, R> {
    /// Runs one command.
    pub(super) fn run(&mut self, command: &Command) -> Result<Outcome, R::Error> {
        match &command.write {
            Write::Create(anchor) => self.run_keyed(command, anchor.id),
            Write::Update { id, .. } | Write::Delete { id, .. } => self.run_keyed(command, *id),
            // Time has moved on already, whoever asked for it.
            Write::Tick => Ok(Outcome::Ticked),
            Write::Retire => Ok(self.retire(command)),
            Write::Sweep { anchors, operations } => self.sweep(anchors, operations),
            Write::PrepareSplit { at } => Ok(self.prepare_split(command, *at)),
            Write::Split { at, child } => self.split(command, *at, *child),
            Write::Merge(step) => Ok(self.merge(command, step)),
        }
    }

    /// Runs a write to one anchor, once.
    fn run_keyed(&mut self, command: &Command, id: AnchorId) -> Result<Outcome, R::Error> {
        let descriptor = &self.shard().descriptor;
        if !command.epoch.routes_to(descriptor.epoch) || !descriptor.range.contains_id(id) {
            return Ok(self.stale_epoch());
        }
        let write_digest = || write_digest(&command.write);
        if let Some(record) = self.operation(id, command.operation)? {
            return Ok(self.repeat(self.anchor(id)?, &record, write_digest()));
        }
        // Read once: a look at the store costs more than the rest of a create.
        let stored = self.anchor(id)?;
        let created = stored.as_ref().filter(|old| old.created_by == Some(command.operation));
        if let Some(record) = created.map(|old| creation_record(old)) {
            return Ok(self.repeat(stored, &record, write_digest()));
        }
        if self.shard().is_frozen() {
            return Ok(Outcome::Rejected(Rejection::Merging));
        }
        if self.shard().retired {
            return Ok(Outcome::Rejected(Rejection::Retired));
        }
        let is_create = matches!(command.write, Write::Create(_));
        let operations = self.shard().operations;
        // A change keeps its own entry and, the first time, its anchor's create.
        if !is_create && self.operations_max < operations.saturating_add(2) {
            return Ok(Outcome::Rejected(Rejection::OperationsFull { operations }));
        }
        let effect = match &command.write {
            Write::Create(anchor) => self.create(stored, command.operation, anchor),
            Write::Update { patch, if_version, .. } => self.update(stored, patch, *if_version),
            Write::Delete { if_version, .. } => self.delete(stored, *if_version),
            Write::Tick
            | Write::Retire
            | Write::Sweep { .. }
            | Write::PrepareSplit { .. }
            | Write::Split { .. }
            | Write::Merge(_) => Ok(Outcome::Ticked),
        };
        match effect {
            // The anchor's row names its create.
            Ok(outcome) if is_create => Ok(outcome),
            Ok(outcome) => {
                let time = self.shard().shard_time;
                let outcome_kept = without_anchor(&outcome);
                let kept =
                    OperationRecord { time, write_digest: write_digest(), outcome: outcome_kept };
                self.put_operation(id, command.operation, kept);
                Ok(outcome)
            }
            Err(rejection) => Ok(Outcome::Rejected(rejection)),
        }
    }

    /// Closes an empty shard for good. Decided here, in the log's order: whatever was written
    /// before keeps the shard open, whatever comes after is refused. A create that was delayed until
    /// its anchor was deleted would take effect in the shard that comes next, which knows nothing of
    /// it: so dedup entries keep the shard open, too.
    fn retire(&mut self, command: &Command) -> Outcome {
        let shard = self.shard();
        if !command.epoch.routes_to(shard.descriptor.epoch) {
            return self.stale_epoch();
        }
        let revision = shard.revision;
        if shard.retired {
            return Outcome::Retired { revision };
        }
        let (anchors, operations) = (shard.anchors, shard.operations);
        if 0 < anchors + operations {
            return Outcome::Rejected(Rejection::NotEmpty { anchors, operations });
        }
        if shard.merging.is_some() {
            return Outcome::Rejected(Rejection::Merging);
        }
        self.set_retired();
        Outcome::Retired { revision }
    }

    /// Answers an operation that has taken effect before, with the anchor as it is now.
    fn repeat(
        &self,
        stored: Option<Arc<Anchor>>,
        record: &OperationRecord,
        write_digest: u64,
    ) -> Outcome {
        if record.write_digest != write_digest {
            return Outcome::Rejected(Rejection::RequestIdReused);
        }
        match &record.outcome {
            Outcome::Written { version, time, anchor: _ } => {
                let anchor = self.visible(stored);
                Outcome::Written { version: *version, time: *time, anchor }
            }
            outcome @ (Outcome::Deleted { .. }
            | Outcome::Ticked
            | Outcome::Retired { .. }
            | Outcome::Swept { .. }
            | Outcome::SplitPrepared
            | Outcome::Split { .. }
            | Outcome::Merged(_)
            | Outcome::Rejected(_)) => outcome.clone(),
        }
    }

    /// Keeps an anchor's create as a dedup entry, before the row that names it is changed. It is
    /// kept from now on, not from when it was applied: so entries come in the order of their time.
    fn keep_creation(&mut self, anchor: &Anchor) {
        let Some(operation) = anchor.created_by else { return };
        let record = creation_record(anchor);
        let now = self.shard().shard_time;
        if !is_operation_due(&record, now) {
            self.put_operation(anchor.id, operation, OperationRecord { time: now, ..record });
        }
    }

    fn create(
        &mut self,
        stored: Option<Arc<Anchor>>,
        operation: OperationId,
        anchor: &Anchor,
    ) -> Effect {
        let time = self.shard().shard_time;
        // An expired row counts as well: versions of one id must never go back.
        if stored.is_some() {
            return Err(Rejection::AnchorExists);
        }
        check_home(anchor.id, &anchor.pose)?;
        check_expiry(anchor.expire_time, time)?;
        let version = self.next_version();
        let anchor = Anchor {
            create_time: time,
            update_time: time,
            version,
            created_by: Some(operation),
            ..anchor.clone()
        };
        Ok(self.write(None, anchor))
    }

    fn update(
        &mut self,
        stored: Option<Arc<Anchor>>,
        patch: &AnchorPatch,
        if_version: Option<Version>,
    ) -> Effect {
        let old = self.visible(stored).ok_or(Rejection::AnchorNotFound)?;
        check_version(&old, if_version)?;
        patch.pose.as_ref().map_or(Ok(()), |pose| check_home(old.id, pose))?;
        check_expiry(patch.expire_time.flatten(), self.shard().shard_time)?;
        self.keep_creation(&old);
        let version = self.next_version();
        let mut anchor = patched(&old, patch);
        anchor.update_time = self.shard().shard_time;
        anchor.version = version;
        anchor.created_by = None;
        Ok(self.write(Some(&old), anchor))
    }

    fn write(&mut self, old: Option<&Anchor>, anchor: Anchor) -> Outcome {
        let (version, time) = (anchor.version, anchor.update_time);
        let anchor = Arc::new(anchor);
        self.replace_anchor(anchor.id, old, Some(anchor.clone()));
        Outcome::Written { version, time, anchor: Some(anchor) }
    }

    fn delete(&mut self, stored: Option<Arc<Anchor>>, if_version: Option<Version>) -> Effect {
        let old = self.visible(stored).ok_or(Rejection::AnchorNotFound)?;
        check_version(&old, if_version)?;
        self.keep_creation(&old);
        let version = self.next_version();
        self.replace_anchor(old.id, Some(&old), None);
        Ok(Outcome::Deleted { version })
    }

    /// Erases what is due. No epoch is checked: what is not this shard's is left alone.
    fn sweep(
        &mut self,
        ids: &[AnchorId],
        operation_ids: &[(AnchorId, OperationId)],
    ) -> Result<Outcome, R::Error> {
        let (range, time) = (self.shard().descriptor.range, self.shard().shard_time);
        let (mut anchors, mut operations) = (0_u32, 0_u32);
        if self.shard().is_frozen() {
            return Ok(Outcome::Swept { anchors, operations });
        }
        for id in ids.iter().copied().filter(|id| range.contains_id(*id)) {
            if let Some(old) = self.anchor(id)?.filter(|old| is_anchor_due(old, time)) {
                self.replace_anchor(id, Some(&old), None);
                anchors = anchors.saturating_add(1);
            }
        }
        for (id, operation) in operation_ids.iter().filter(|(id, _)| range.contains_id(*id)) {
            let record = self.operation(*id, *operation)?;
            if let Some(record) = record.filter(|record| is_operation_due(record, time)) {
                self.remove_operation(*id, *operation, &record);
                operations = operations.saturating_add(1);
            }
        }
        if 0 < anchors {
            self.next_version();
        }
        Ok(Outcome::Swept { anchors, operations })
    }
}

/// What the create of an anchor did, read from the anchor as it was created.
fn creation_record(anchor: &Anchor) -> OperationRecord {
    let (version, time) = (anchor.version, anchor.create_time);
    let outcome = Outcome::Written { version, time, anchor: None };
    OperationRecord { time, write_digest: create_digest(anchor), outcome }
}

/// Digest of what the client asked for, to tell a retry from another write under its name.
fn write_digest(write: &Write) -> u64 {
    match write {
        Write::Create(anchor) => create_digest(anchor),
        Write::Update { .. }
        | Write::Delete { .. }
        | Write::Tick
        | Write::Retire
        | Write::Sweep { .. }
        | Write::PrepareSplit { .. }
        | Write::Merge(_)
        | Write::Split { .. } => digest::content_digest(write),
    }
}

/// Digest of a create: without what `apply` sets, which a retry over another node may carry
/// differently.
fn create_digest(anchor: &Anchor) -> u64 {
    let unset = Timestamp(0);
    let as_asked = Anchor {
        create_time: unset,
        update_time: unset,
        version: Version::default(),
        created_by: None,
        ..anchor.clone()
    };
    digest::content_digest(&Write::Create(Box::new(as_asked)))
}

fn without_anchor(outcome: &Outcome) -> Outcome {
    match outcome {
        Outcome::Written { version, time, anchor: _ } => {
            Outcome::Written { version: *version, time: *time, anchor: None }
        }
        Outcome::Deleted { .. }
        | Outcome::Ticked
        | Outcome::Retired { .. }
        | Outcome::Swept { .. }
        | Outcome::SplitPrepared
        | Outcome::Merged(_)
        | Outcome::Split { .. }
        | Outcome::Rejected(_) => outcome.clone(),
    }
}

fn check_version(anchor: &Anchor, if_version: Option<Version>) -> Result<(), Rejection> {
    match if_version {
        Some(version) if version != anchor.version => {
            Err(Rejection::VersionMismatch { current: anchor.version })
        }
        Some(_) | None => Ok(()),
    }
}

/// A pose must stay near the home that the id tells: coverings rely on it.
fn check_home(id: AnchorId, pose: &Pose) -> Result<(), Rejection> {
    let distance_m = id.home_distance_m(pose).ok_or(Rejection::SpaceChanged)?;
    if distance_m <= DRIFT_M_MAX { Ok(()) } else { Err(Rejection::DriftTooFar { distance_m }) }
}

fn check_expiry(expire_time: Option<Timestamp>, shard_time: Timestamp) -> Result<(), Rejection> {
    match expire_time {
        Some(expire_time) if expire_time <= shard_time => Err(Rejection::AlreadyExpired),
        Some(_) | None => Ok(()),
    }
}

fn patched(old: &Anchor, patch: &AnchorPatch) -> Anchor {
    Anchor {
        pose: patch.pose.unwrap_or(old.pose),
        accuracy: patch.accuracy.unwrap_or(old.accuracy),
        properties: patch.properties.as_ref().unwrap_or(&old.properties).clone(),
        tags: patch.tags.as_ref().unwrap_or(&old.tags).clone(),
        expire_time: patch.expire_time.unwrap_or(old.expire_time),
        quality: patch.quality.unwrap_or(old.quality),
        ..old.clone()
    }
}
