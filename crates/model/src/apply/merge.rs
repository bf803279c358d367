use super::Records;
use super::overlay::Overlay;
use crate::{Command, Frozen, MergeStep, Merged, Merging, Outcome, Rejection, RequestId};

/// Attempts that a target remembers having absorbed, and having forgone: far more than can be asked
/// for late. What a request can be late is bounded by its deadline.
const REMEMBERED_MAX: usize = 32;

impl<R: Records> Overlay<'_, R> {
    /// Takes one step of a merge. A step that was taken already is answered as if taken now.
    pub(super) fn merge(&mut self, command: &Command, step: &MergeStep) -> Outcome {
        match step {
            MergeStep::Await { merge, .. } | MergeStep::Absorb { merge, .. }
                if self.shard().forgone.contains(merge) =>
            {
                Outcome::Merged(Merged::Forgone)
            }
            MergeStep::Await { merge, source } => {
                self.begin_merge(command, Merging::Awaits { merge: *merge, source: *source })
            }
            MergeStep::Freeze { merge, target } => {
                self.begin_merge(command, Merging::Frozen { merge: *merge, target: *target })
            }
            MergeStep::Absorb { merge, source, conf_version } => {
                self.absorb(command, *merge, source, *conf_version)
            }
            MergeStep::Forgo { merge } => self.forgo(*merge),
            MergeStep::Thaw { merge } => {
                let shard = &mut self.changes.shard;
                if matches!(shard.merging, Some(Merging::Frozen { merge: at, .. }) if at == *merge)
                {
                    shard.merging = None;
                }
                Outcome::Merged(Merged::Ready)
            }
        }
    }

    fn begin_merge(&mut self, command: &Command, part: Merging) -> Outcome {
        let shard = self.shard();
        if !command.epoch.routes_to(shard.descriptor.epoch) {
            return self.stale_epoch();
        }
        if shard.retired {
            return Outcome::Rejected(Rejection::Retired);
        }
        match shard.merging {
            Some(known) if known == part => Outcome::Merged(Merged::Ready),
            Some(_) => Outcome::Rejected(Rejection::Merging),
            // One entry changes a shard's bounds once.
            None if self.changes.child.is_some() || self.changes.absorbed.is_some() => {
                Outcome::Rejected(Rejection::InvalidMerge)
            }
            None => {
                self.changes.shard.merging = Some(part);
                Outcome::Merged(Merged::Ready)
            }
        }
    }

    /// Takes the source in, if this shard waits for it as it is, with the members that were looked
    /// at.
    fn absorb(
        &mut self,
        command: &Command,
        merge: RequestId,
        source: &Frozen,
        conf_version: u32,
    ) -> Outcome {
        if let Some(outcome) = self.absorbed_before(merge) {
            return outcome;
        }
        let shard = self.shard();
        if !command.epoch.routes_to(shard.descriptor.epoch) {
            return self.stale_epoch();
        }
        let (own, other) = (&shard.descriptor, &source.state.descriptor);
        let is_awaited = shard.merging == Some(Merging::Awaits { merge, source: other.shard_id });
        let is_frozen =
            source.state.merging == Some(Merging::Frozen { merge, target: own.shard_id });
        let fits = own.range.end == Some(other.range.start)
            && own.class == other.class
            && own.epoch.incarnation == other.epoch.incarnation
            && own.epoch.conf_version == conf_version
            && own.is_aligned_with(other);
        if !is_awaited || !is_frozen || !fits || self.changes.absorbed.is_some() {
            return Outcome::Rejected(Rejection::InvalidMerge);
        }
        let descriptor = own.merge(other);
        let shard = &mut self.changes.shard;
        shard.descriptor = descriptor.clone();
        shard.revision = shard.revision.max(source.state.revision).saturating_add(1);
        shard.shard_time = shard.shard_time.max(source.state.shard_time);
        shard.anchors = shard.anchors.saturating_add(source.state.anchors);
        shard.bytes = shard.bytes.saturating_add(source.state.bytes);
        shard.operations = shard.operations.saturating_add(source.state.operations);
        shard.merging = None;
        remember(&mut shard.absorbed, merge);
        self.changes.absorbed = Some(Box::new(source.clone()));
        Outcome::Merged(Merged::Absorbed { descriptor: Box::new(descriptor) })
    }

    fn forgo(&mut self, merge: RequestId) -> Outcome {
        if let Some(outcome) = self.absorbed_before(merge) {
            return outcome;
        }
        let shard = &mut self.changes.shard;
        if matches!(shard.merging, Some(Merging::Awaits { merge: at, .. }) if at == merge) {
            shard.merging = None;
        }
        if !shard.forgone.contains(&merge) {
            remember(&mut shard.forgone, merge);
        }
        Outcome::Merged(Merged::Forgone)
    }

    fn absorbed_before(&self, merge: RequestId) -> Option<Outcome> {
        let shard = self.shard();
        let descriptor = || Box::new(shard.descriptor.clone());
        let known = shard.absorbed.contains(&merge);
        known.then(|| Outcome::Merged(Merged::Absorbed { descriptor: descriptor() }))
    }
}

fn remember(attempts: &mut Vec<RequestId>, merge: RequestId) {
    attempts.push(merge);
    if REMEMBERED_MAX < attempts.len() {
        attempts.remove(0);
    }
}
