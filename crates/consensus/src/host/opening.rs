//! Which replicas may be open at once, and when those that must wait are opened.

use std::sync::Arc;

use anchorhold_model::catalog::CatalogState;
use anchorhold_model::{ReplicaId, ShardDescriptor, ShardId};
use anchorhold_storage::{Batch, GroupId, StateError};

use super::replicas::{known_range, own_replica_id};
use super::{BrokenReplica, CATALOG_GROUP, Host};
use crate::birth::{self, Birth};
use crate::card::{Birthplace, Card};
use crate::fence;
use crate::keys;
use crate::machine::damaged;
use crate::replica::{Replica, Standing};

/// A replica that has a file, when its node starts.
struct Found {
    group: GroupId,
    descriptor: ShardDescriptor,
    /// One past the index that its state or file stands at.
    applied_end: u64,
    born_of: Option<Birthplace>,
}

impl Found {
    /// Whether nothing here stands before what this replica comes from: its parent is not set back
    /// behind its split, and none that it does not supersede owns some of its keys.
    fn is_ready(&self, found: &[Self]) -> bool {
        let is_before = |other: &Self| {
            let is_parent = self.born_of.is_some_and(|place| {
                // One that has yet to be seeded knows nothing of its children.
                let is_seeded = 0 < other.applied_end;
                place.parent == other.group.shard
                    && is_seeded
                    && (other.applied_end <= place.index || !other.is_ready(found))
            });
            let overlaps = other.descriptor.range.overlaps(&self.descriptor.range)
                && other.descriptor.epoch.version < self.descriptor.epoch.version
                && !self.descriptor.supersedes(&other.descriptor);
            other.group != self.group && (is_parent || overlaps)
        };
        !found.iter().any(is_before)
    }
}

impl Host {
    /// Whether another replica on this node owns some of a shard's keys: one that is open, one that
    /// is being removed, or a newborn that is about to open.
    pub(crate) fn is_taken(&self, shard: &ShardDescriptor) -> bool {
        self.is_taken_by(shard, |_| true)
    }

    /// The same for a snapshot that is about to be taken in: not by what its shard supersedes.
    pub(crate) fn is_taken_for_good(&self, shard: &ShardDescriptor) -> bool {
        self.is_taken_by(shard, |other| {
            !shard.supersedes(other) || self.is_needed(other, shard.shard_id)
        })
    }

    pub(crate) fn is_taken_by(
        &self,
        shard: &ShardDescriptor,
        counts: impl Fn(&ShardDescriptor) -> bool,
    ) -> bool {
        if self.inner.clearing.lock().values().any(|gone| gone.overlaps(&shard.range)) {
            return true;
        }
        let takes = |other: &ShardDescriptor| {
            other.shard_id != shard.shard_id && other.range.overlaps(&shard.range) && counts(other)
        };
        let newborns = self.births().all();
        let takes_broken = |broken: &BrokenReplica| {
            let other = &broken.descriptor;
            let overlaps = other.range.overlaps(&shard.range) || broken.held.overlaps(&shard.range);
            other.shard_id != shard.shard_id && overlaps && counts(other)
        };
        if self.inner.broken.lock().values().any(takes_broken) {
            return true;
        }
        let replicas = self.inner.replicas.read();
        replicas.values().any(|replica| takes(&replica.state().descriptor))
            || newborns.iter().any(|birth| {
                !replicas.contains_key(&birth.child.shard_id) && takes(&self.known_as(birth))
            })
    }

    /// What a newborn that is not open is by now: it may have split itself.
    pub(crate) fn known_as(&self, birth: &Birth) -> ShardDescriptor {
        let standing = Standing::read(&self.inner.parts, birth::group_of(&birth.child));
        let known = standing.ok().and_then(|found| found.descriptor().cloned());
        known.unwrap_or_else(|| birth.child.clone())
    }

    /// Takes a replica out of what is open, and stops it. Nothing else takes its keys before whoever
    /// asked for this says so ([`Self::end`], [`Self::bring_back`]). False if somebody else has taken
    /// it out before.
    pub(crate) async fn withdraw(&self, replica: &Arc<Replica>, why: &str) -> bool {
        let shard = replica.shard_id();
        {
            let _opening = self.inner.opening.lock().await;
            let mut replicas = self.inner.replicas.write();
            if !replicas.get(&shard).is_some_and(|open| Arc::ptr_eq(open, replica)) {
                return false;
            }
            let range = replica.state().descriptor.range;
            self.inner.clearing.lock().insert(shard, range);
            replicas.remove(&shard);
        }
        tracing::info!(%shard, replica = %replica.replica_id(), "stopping a replica: {why}");
        replica.stop(why).await;
        true
    }

    /// A shard's keys are another's here.
    pub(crate) fn end(&self, shard: ShardId) {
        self.births().forget(shard);
        self.inner.clearing.lock().remove(&shard);
        self.inner.parts.listener.removed(shard);
        self.births().announce();
    }

    /// A replica that was withdrawn is needed again.
    pub(crate) fn bring_back(&self, shard: &ShardDescriptor) {
        let is_withdrawn = self.inner.clearing.lock().remove(&shard.shard_id).is_some();
        if is_withdrawn && self.births().of(shard.shard_id).is_none() {
            self.inner.waiting.lock().insert(birth::group_of(shard));
        }
        self.births().changed.notify_one();
    }

    /// Held while it is decided what may be open.
    pub(crate) async fn opening(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.inner.opening.lock().await
    }

    /// Replicas that have a file, and that cannot be opened yet.
    pub(crate) fn waiting_groups(&self) -> Vec<GroupId> {
        self.inner.waiting.lock().iter().copied().collect()
    }

    pub(crate) fn is_waiting(&self, group: GroupId) -> bool {
        self.inner.waiting.lock().contains(&group)
    }

    pub(crate) fn forget_waiting(&self, group: GroupId) {
        self.inner.waiting.lock().remove(&group);
    }

    pub(super) async fn open_known_replicas(&self) -> Result<(), StateError> {
        let parts = &self.inner.parts;
        let _opening = self.inner.opening.lock().await;
        let mut found = Vec::new();
        for group in parts.seams.snapshots.groups() {
            if group == CATALOG_GROUP {
                continue;
            }
            let card = self.known_card(group);
            if card.is_some_and(|card| card.is_gone) {
                self.erase_gone(group).await?;
                continue;
            }
            if self.merges().is_ended(ShardId(group.shard)) {
                continue;
            }
            // Its file is there already: the node ended before it could note that.
            self.settle_if_filed(group)?;
            let standing = Standing::read(parts, group)?;
            match standing.descriptor() {
                Some(descriptor) => found.push(Found {
                    group,
                    descriptor: descriptor.clone(),
                    applied_end: standing.applied_end(),
                    born_of: card.and_then(|card| card.born_of),
                }),
                None => tracing::warn!(shard = group.shard, "a snapshot file describes no shard"),
            }
        }
        // A parent that stands before its split comes before the children that it still contains.
        found.sort_by_key(|one| (one.descriptor.epoch.version, one.group));
        let ready: Vec<bool> = found.iter().map(|one| one.is_ready(&found)).collect();
        self.bury_newborns(&found, &ready).await?;
        for (one, is_ready) in found.iter().zip(&ready) {
            let takers = found.iter().zip(&ready).filter(|(_, is_ready)| **is_ready);
            let mut takers = takers.map(|(other, _)| &other.descriptor);
            // A shard that another layout replaced has taken nothing in: its versions begin anew.
            let is_laid_out = |other: &ShardDescriptor| {
                let catalog = self.catalog().borrow().clone();
                catalog.removed_shards.contains(&other.shard_id)
                    && !catalog.merged_shards.contains_key(&other.shard_id)
            };
            if takers.any(|other| other.supersedes(&one.descriptor) && !is_laid_out(other)) {
                // What that one took in is in its file, and what is left of this one can go.
                tracing::info!(shard = one.group.shard, "another shard here has taken it in");
                self.bury(one.group).await?;
            } else if *is_ready && !self.is_taken(&one.descriptor) {
                self.open_filed(one.group).await?;
            } else {
                tracing::info!(shard = one.group.shard, "waits until its parent has split again");
                self.inner.waiting.lock().insert(one.group);
            }
        }
        self.births().changed.notify_one();
        Ok(())
    }

    /// Ends newborns without a file that a replica here has taken in: the state was set back behind that.
    async fn bury_newborns(&self, found: &[Found], ready: &[bool]) -> Result<(), StateError> {
        for birth in self.births().all() {
            let child = self.known_as(&birth);
            let is_filed = found.iter().any(|one| one.group == birth::group_of(&birth.child));
            let mut takers = found.iter().zip(ready).filter(|(_, is_ready)| **is_ready);
            if !is_filed && takers.any(|(other, _)| other.descriptor.supersedes(&child)) {
                tracing::info!(shard = %child.shard_id, "another shard here has taken it in");
                self.bury(birth::group_of(&birth.child)).await?;
            }
        }
        Ok(())
    }

    /// Removes what is left of a replica that is gone, its rows only if they are its own still.
    async fn erase_gone(&self, group: GroupId) -> Result<(), StateError> {
        let shard = ShardId(group.shard);
        let state = &self.inner.parts.seams.state;
        let has_rows = state.get(&keys::header(shard))?.is_some()
            || state.get(&keys::installing(shard))?.is_some();
        let range = if has_rows {
            known_range(&self.inner.parts, group)?
        } else {
            anchorhold_model::KeyRange::EMPTY
        };
        self.erase(group, range).await
    }

    /// A group's card, as far as it can be read.
    fn known_card(&self, group: GroupId) -> Option<Card> {
        Card::read(&self.inner.parts.seams.snapshots, group).unwrap_or_else(|error| {
            // What the snapshot file names is still known, and founds nothing.
            tracing::error!(shard = group.shard, %error, "a replica's card is damaged");
            None
        })
    }

    fn settle_if_filed(&self, group: GroupId) -> Result<(), StateError> {
        let seams = &self.inner.parts.seams;
        let latest = seams.snapshots.latest(group).map_err(damaged)?;
        match latest.filter(|file| file.header.position.is_some()) {
            Some(_) => self.births().settle(&*seams.state, ShardId(group.shard)),
            None => Ok(()),
        }
    }

    /// Opens a replica that has a snapshot file.
    async fn open_filed(&self, group: GroupId) -> Result<(), StateError> {
        let parts = &self.inner.parts;
        let card = self.known_card(group);
        let replica_id = match card {
            Some(card) => Some(ReplicaId(card.replica_id)),
            None => own_replica_id(parts, &self.inner.identity, group)?,
        };
        let Some(replica_id) = replica_id else {
            tracing::warn!(shard = group.shard, "a snapshot file names no replica here");
            return Ok(());
        };
        let standing = Standing::read(parts, group)?;
        if let Some(reason) = standing.unusable()? {
            return match standing.descriptor() {
                Some(descriptor) => self.give_up_on(descriptor, replica_id, reason),
                None => Ok(()),
            };
        }
        fence::close_if_forgotten(&parts.seams.log, group).await?;
        let may_found = card.is_some_and(|card| card.may_found);
        self.open(group, replica_id, may_found, true).await
    }

    /// Notes that a replica here cannot be opened. The node serves all others; who places replicas
    /// hears of it, and has its shard replace it.
    fn give_up_on(
        &self,
        descriptor: &ShardDescriptor,
        replica_id: ReplicaId,
        reason: String,
    ) -> Result<(), StateError> {
        let (shard, group) = (descriptor.shard_id, birth::group_of(descriptor));
        tracing::error!(%shard, replica = %replica_id, reason, "a replica here is lost");
        let held = known_range(&self.inner.parts, group)?;
        let broken = BrokenReplica { replica_id, descriptor: descriptor.clone(), reason, held };
        self.inner.waiting.lock().remove(&group);
        self.inner.broken.lock().insert(shard, broken);
        Ok(())
    }

    /// Gives up on a split's child that has a log, and nothing here that the log begins with or that
    /// could make it again: it went down with its parent before it had a file, and the parent is gone.
    pub(super) fn give_up_without_beginning(
        &self,
        descriptor: &ShardDescriptor,
        own: ReplicaId,
    ) -> Result<(), StateError> {
        let (shard, group) = (descriptor.shard_id, birth::group_of(descriptor));
        let card = self.known_card(group);
        let may_come = self.replica(shard).is_some()
            || self.is_waiting(group)
            || self.births().of(shard).is_some()
            || self.waits_for_parent(group);
        // The catalog hears of a merge after the replicas have taken it.
        let has_ended = self.merges().is_ended(shard)
            || self.is_taken_by(descriptor, |other| other.supersedes(descriptor));
        let is_own = card.is_none_or(|card| !card.is_gone && card.replica_id == own.0);
        let is_known = self.inner.broken.lock().contains_key(&shard);
        if may_come || has_ended || !is_own || is_known || !self.lacks_beginning(group)? {
            return Ok(());
        }
        self.give_up_on(
            descriptor,
            own,
            "it has a log and nothing that the log begins with".to_owned(),
        )
    }

    fn lacks_beginning(&self, group: GroupId) -> Result<bool, StateError> {
        let seams = &self.inner.parts.seams;
        Ok(seams.log.group(group).is_some_and(|log| log.purged.is_some())
            && seams.snapshots.latest(group).map_err(damaged)?.is_none())
    }

    pub(crate) fn forget_broken(&self, shard: ShardId) {
        self.inner.broken.lock().remove(&shard);
    }

    /// Replicas that this node has and cannot open.
    pub fn broken_replicas(&self) -> Vec<BrokenReplica> {
        self.inner.broken.lock().values().cloned().collect()
    }

    /// Removes broken replicas of shards that are gone or have removed them, and forgets those whose
    /// keys have become the keys of another replica here.
    pub(super) async fn remove_broken(&self, catalog: &CatalogState) -> Result<(), StateError> {
        for BrokenReplica { replica_id, descriptor, .. } in self.broken_replicas() {
            let (shard, group) = (descriptor.shard_id, birth::group_of(&descriptor));
            let is_left_out = catalog.shards.get(&shard).is_some_and(|now| {
                now.replica(replica_id).is_none()
                    && self.card_for(group, replica_id).is_left_out_by(group, now)
            });
            if self.replicas().iter().any(|one| one.state().descriptor.supersedes(&descriptor)) {
                self.forget_broken(shard);
                self.births().changed.notify_one();
                continue;
            }
            // What another shard takes in stays until that one has settled.
            let is_gone = catalog.removed_shards.contains(&shard)
                && !catalog.merged_shards.contains_key(&shard);
            if is_left_out || is_gone {
                let _opening = self.inner.opening.lock().await;
                if !self.inner.broken.lock().contains_key(&shard) {
                    continue; // Opened after all, or removed.
                }
                tracing::info!(%shard, replica = %replica_id, "removing a lost replica");
                self.mark_gone(group)?;
                self.erase_gone(group).await?;
                // Somebody may have waited for its keys.
                self.births().changed.notify_one();
            }
        }
        Ok(())
    }

    /// Opens newborns, and replicas that had to wait for a part of their range.
    pub(super) async fn open_forever(self) {
        loop {
            self.births().changed.notified().await;
            if let Err(error) = self.open_free().await {
                self.inner.parts.seams.exit.exit(&format!("a replica cannot be opened: {error}"));
                return;
            }
            // The catalog may have named replicas that had to wait too.
            self.births().settled.notify_one();
        }
    }

    async fn open_free(&self) -> Result<(), StateError> {
        let _opening = self.inner.opening.lock().await;
        for birth in self.births().all() {
            let child = &birth.child;
            if self.replica(child.shard_id).is_none() && !self.is_taken(&self.known_as(&birth)) {
                self.open_newborn(&birth).await?;
            }
        }
        let waiting: Vec<GroupId> = self.inner.waiting.lock().iter().copied().collect();
        for group in waiting {
            let shard = ShardId(group.shard);
            let standing = Standing::read(&self.inner.parts, group)?;
            let is_free = standing.descriptor().is_none_or(|descriptor| {
                !self.is_taken(descriptor) && !self.waits_for_parent(group)
            });
            if self.replica(shard).is_none() && is_free {
                self.open_filed(group).await?;
            }
            if self.replica(shard).is_some() || is_free {
                self.inner.waiting.lock().remove(&group);
            }
        }
        Ok(())
    }

    /// Whether a split's child must wait for its parent, which this node has and which stands before the
    /// split: what became of its keys until then may still be needed.
    fn waits_for_parent(&self, group: GroupId) -> bool {
        let Some(place) = self.known_card(group).and_then(|card| card.born_of) else {
            return false;
        };
        let parent = GroupId { shard: place.parent, ..group };
        match self.replica(ShardId(place.parent)) {
            Some(parent) => {
                parent.status().applied_index.is_none_or(|applied| applied < place.index)
            }
            None => {
                let is_newborn = self.births().of(ShardId(place.parent)).is_some();
                self.is_waiting(parent) || is_newborn || self.waits_for_parent(parent)
            }
        }
    }

    /// Opens what a split made: with its own log and file, if it had them before, else with those
    /// that it is born with.
    async fn open_newborn(&self, birth: &Birth) -> Result<(), StateError> {
        let parts = &self.inner.parts;
        let (shard, group) = (birth.child.shard_id, birth::group_of(&birth.child));
        let Some(own) = birth.child.replica_on(self.inner.identity.node_id) else {
            tracing::warn!(?shard, "a split's child has no replica for this node");
            self.births().forget(shard);
            return Ok(());
        };
        let card = Card {
            replica_id: own.replica_id.0,
            made_at: birth.child.epoch.conf_version,
            may_found: false,
            is_gone: false,
            born_of: Some(birth.place),
        };
        match self.known_card(group) {
            Some(known) if !known.allows(own.replica_id) => {
                return self.drop_outdated(birth, known).await;
            }
            Some(known) if known.replica_id == card.replica_id => {}
            Some(_) | None => card.write(&parts.seams.snapshots, group)?,
        }
        fence::close_if_forgotten(&parts.seams.log, group).await?;
        birth::begin_log(&parts.seams.log, birth).await?;
        self.settle_if_filed(group)?;
        let parent = self.replica(birth.parent);
        self.open(group, own.replica_id, false, false).await?;
        self.inner.waiting.lock().remove(&group);
        let leader = parent.filter(|parent| parent.is_leader());
        if let (Some(parent), Some(child)) = (leader, self.replica(shard))
            && child.fence().is_none()
        {
            // The followers' children are born when they hear that the split is committed.
            parent.rouse().await;
            drop(parent.raft().trigger().heartbeat().await);
            tokio::spawn(child.campaign());
        }
        Ok(())
    }

    /// The shard has removed the replica that a split makes here again, after the engine was lost.
    /// If another one took its place, that goes on from its own file.
    async fn drop_outdated(&self, birth: &Birth, known: Card) -> Result<(), StateError> {
        let (shard, group) = (birth.child.shard_id, birth::group_of(&birth.child));
        tracing::info!(%shard, "a split makes a replica again that is gone");
        self.births().forget(shard);
        if known.is_gone {
            self.erase(group, birth.child.range).await?;
        } else {
            let marks = vec![(keys::birth(shard), None), (keys::header(shard), None)];
            self.inner.parts.seams.state.commit(Batch { rows: marks })?;
        }
        Ok(())
    }

    /// Whether a replica of a shard may begin here with nothing. Not while another replica owns a
    /// part of its range: that one is about to split, or to hear that it has. Not if the shard is
    /// here already and only waits, or cannot be opened. Not if it has a log: a split's child that went down with its
    /// parent before it had a file may have acknowledged things, and what they rest on is lost.
    pub(super) fn may_begin(&self, descriptor: &ShardDescriptor) -> Result<bool, StateError> {
        let (shard, group) = (descriptor.shard_id, birth::group_of(descriptor));
        let seams = &self.inner.parts.seams;
        if self.lacks_beginning(group)? {
            tracing::warn!(%shard, "has a log and nothing that it begins with");
            return Ok(false);
        }
        let is_known = self.replica(shard).is_some()
            || self.inner.broken.lock().contains_key(&shard)
            || seams.state.get(&keys::header(shard))?.is_some()
            || self.inner.waiting.lock().iter().any(|group| group.shard == shard.0);
        Ok(!is_known && !self.is_taken(descriptor))
    }
}
