//! How replicas come to a node and leave it.
//!
//! Which replicas a node has is what its snapshot files say; a replica begins with a file without a
//! position, and is gone when its last file is. Its [`Card`] says which of its shard's replicas it
//! is and whether it may found. Two ways to begin: *founded*, as the catalog says at a shard's first
//! epoch, and *created*, empty, because the shard's leader asks for it; the latter takes part only
//! as it is told. One way to end: a later descriptor, of the catalog or of the shard's leader, does
//! not name it.
//!
//! Every step may be cut by a crash: the card is written first at both ends, a half-made replica is
//! made again, a half-removed one is removed at the next start.
//!
//! Not here: who decides where replicas live (`placement`), the shard's side (`members`).

use std::sync::Arc;
use std::time::Duration;

use anchorhold_model::catalog::{CatalogState, ClassKind, Step};
use anchorhold_model::{Epoch, KeyRange, ReplicaId, ShardDescriptor, ShardId, ShardState};
use anchorhold_storage::snapshot::SnapshotHeader;
use anchorhold_storage::{Batch, DiskState, GroupId, LogWrite, StateError};

use super::Host;
use crate::Identity;
use crate::birth::{self, group_of};
use crate::card::Card;
use crate::keys;
use crate::machine::{Header, damaged};
use crate::replica::{NodeParts, Replica};
use crate::snapshot::SnapshotContent;
use crate::wire::{self, WireStoredMembership};

/// Wait before the preferred first leader founds a group: the others need to hear of it too.
const FOUND_PREFERRED_AFTER: Duration = Duration::from_millis(150);
/// Wait before any other voter founds it in its place.
const FOUND_OTHERS_AFTER: Duration = Duration::from_secs(5);
/// Replicas here without a leader beyond which no more are founded for a moment.
const UNLED_MAX: usize = 32;
/// How often that is looked at, and how often in all while shards of one catalog are founded.
const LEADERS_LOOK: Duration = Duration::from_millis(10);
const LEADERS_LOOKS: usize = 3_000;

impl Host {
    pub(super) async fn open(
        &self,
        group: GroupId,
        replica_id: ReplicaId,
        may_found: bool,
        may_rest: bool,
    ) -> Result<(), StateError> {
        let replica = Replica::open(&self.inner.parts, group, replica_id, may_rest).await?;
        self.forget_broken(ShardId(group.shard));
        self.inner.replicas.write().insert(ShardId(group.shard), replica.clone());
        if may_found {
            tokio::spawn(found_if_nobody_did(replica));
        }
        Ok(())
    }

    pub(super) async fn reconcile_forever(self) {
        let mut catalog = self.catalog();
        loop {
            self.learn_addresses();
            let wanted = catalog.borrow_and_update().clone();
            if let Err(error) = self.reconcile(&wanted).await {
                self.inner.parts.seams.exit.exit(&format!("a replica cannot be kept: {error}"));
                return;
            }
            tokio::select! {
                changed = catalog.changed() => if changed.is_err() {
                    return;
                },
                () = self.births().settled.notified() => {}
            }
        }
    }

    /// Removes replicas of shards that are gone and those that their shards have removed, founds
    /// those that should be here from the first moment.
    async fn reconcile(&self, catalog: &CatalogState) -> Result<(), StateError> {
        {
            let _changing = self.inner.changing.lock().await;
            self.remove_broken(catalog).await?;
            for replica in self.replicas() {
                let shard_id = replica.shard_id();
                if catalog.removed_shards.contains(&shard_id) {
                    let is_merged = catalog.merged_shards.contains_key(&shard_id);
                    let is_needed = is_merged
                        && (self.is_to_be_taken_in(catalog, shard_id)
                            || self.is_needed(&replica.state().descriptor, shard_id));
                    if !is_needed {
                        self.destroy(&replica, "its shard is gone").await?;
                    }
                } else if let Some(descriptor) = catalog.shards.get(&shard_id)
                    && descriptor.replica(replica.replica_id()).is_none()
                    && !replica.state().is_frozen()
                    && self.card_of(&replica).is_left_out_by(replica.group(), descriptor)
                {
                    self.destroy(&replica, "its shard has removed it").await?;
                }
            }
        }
        let mut looks_left = LEADERS_LOOKS;
        for descriptor in catalog.shards.values() {
            let here = descriptor.replica_on(self.inner.identity.node_id);
            let Some(own) = here else { continue };
            let is_missing = || self.replica(descriptor.shard_id).is_none();
            if descriptor.epoch == Epoch::FIRST && is_missing() {
                // Thousands take a while: whoever else changes replicas does not wait for them all.
                self.wait_for_leaders(&mut looks_left).await;
                let _changing = self.inner.changing.lock().await;
                let _opening = self.inner.opening.lock().await;
                let is_removed =
                    self.catalog().borrow().removed_shards.contains(&descriptor.shard_id);
                if is_missing() && !is_removed && self.may_begin(descriptor)? {
                    self.found(descriptor, own.replica_id).await?;
                }
            } else if is_missing() {
                let _changing = self.inner.changing.lock().await;
                let _opening = self.inner.opening.lock().await;
                self.give_up_without_beginning(descriptor, own.replica_id)?;
            }
        }
        Ok(())
    }

    /// Whether a shard became part of one that has a replica here, which has yet to come so far: it
    /// needs this one's rows.
    fn is_to_be_taken_in(&self, catalog: &CatalogState, shard: ShardId) -> bool {
        let waiting = self.waiting_groups();
        let waiting = waiting.iter().map(|group| ShardId(group.shard));
        let here = self.replicas().into_iter().map(|replica| replica.shard_id()).chain(waiting);
        here.into_iter().any(|whole| catalog.is_part_of(shard, whole))
    }

    /// Waits until few of the replicas here know no leader: each of those campaigns, and more than the
    /// nodes can serve would never have one. Not for ever: there may be none to be had.
    async fn wait_for_leaders(&self, looks_left: &mut usize) {
        while 0 < *looks_left {
            let unled = self.replicas().into_iter().filter(|replica| replica.leader().is_none());
            if unled.count() <= UNLED_MAX {
                return;
            }
            *looks_left -= 1;
            tokio::time::sleep(LEADERS_LOOK).await;
        }
    }

    /// Makes a replica that may found its group, unless it was here before: a catalog copy may be
    /// older than what became of it.
    async fn found(
        &self,
        descriptor: &ShardDescriptor,
        replica_id: ReplicaId,
    ) -> Result<(), StateError> {
        let group = group_of(descriptor);
        match Card::read(&self.inner.parts.seams.snapshots, group) {
            Ok(card) if card.is_none_or(|card| card.allows(replica_id)) => {}
            Ok(_) => return Ok(()),
            Err(error) => {
                // Nobody knows what was here: the shard's leader makes another replica in its place.
                tracing::error!(shard = group.shard, %error, "a replica's card is damaged");
                return Ok(());
            }
        }
        self.begin(descriptor, replica_id, true).await
    }

    /// Makes an empty replica because the shard's leader asks for it. Asking again changes nothing.
    ///
    /// # Errors
    /// Why there is none, for the shard's leader.
    pub(crate) async fn create_replica(
        &self,
        descriptor: &ShardDescriptor,
        replica_id: ReplicaId,
    ) -> Result<(), String> {
        let _changing = self.inner.changing.lock().await;
        self.may_hold(descriptor)?;
        let group = group_of(descriptor);
        let is_ordered = self.is_ordered(descriptor.shard_id, replica_id);
        let card = match Card::read(&self.inner.parts.seams.snapshots, group) {
            Ok(card) => card,
            // An operator under way gives an id out that is later than all before.
            Err(error) if is_ordered => {
                tracing::warn!(shard = group.shard, %error, "another replica gets another card");
                None
            }
            Err(error) => return Err(error.to_string()),
        };
        if card.is_some_and(|card| !card.allows(replica_id)) {
            return Err(format!("{replica_id} was on this node and is gone"));
        }
        if let Some(other) = self.replica(descriptor.shard_id) {
            if other.group() == group && other.replica_id() == replica_id {
                return Ok(());
            }
            // One that an operator left behind before it became a member.
            let is_left = other.group() == group
                && other.replica_id() < replica_id
                && !other.knows_itself_as_member()
                && descriptor.replica(other.replica_id()).is_none();
            if !is_left {
                return Err(format!("{} of the shard is on this node", other.replica_id()));
            }
            let destroyed = self.destroy(&other, "another one takes its place").await;
            destroyed.map_err(|error| error.to_string())?;
        }
        // What the shard has taken in elsewhere is of no use here without a replica of it.
        self.may_give_up_for(descriptor)?;
        for ended in self.give_up(descriptor).await {
            if let Err(error) = self.bury(group_of(&ended)).await {
                let reason = format!("what a merge has left cannot be removed: {error}");
                self.inner.parts.seams.exit.exit(&reason);
                return Err(reason);
            }
            self.end(ended.shard_id);
        }
        let _opening = self.inner.opening.lock().await;
        if is_ordered && self.is_left_over(descriptor) {
            tracing::info!(shard = group.shard, "removing what is left of a replica");
            let erased = self.erase(group, descriptor.range).await;
            erased.map_err(|error| error.to_string())?;
        }
        match self.may_begin(descriptor) {
            Ok(true) => {}
            Ok(false) => return Err("a part of its keys is another's here, or it waits".to_owned()),
            Err(error) => return Err(error.to_string()),
        }
        self.begin(descriptor, replica_id, false).await.map_err(|error| error.to_string())
    }

    /// Whether everything here that a shard supersedes can go.
    fn may_give_up_for(&self, by: &ShardDescriptor) -> Result<(), String> {
        let replicas = self.replicas();
        let mut superseded =
            replicas.iter().filter(|replica| by.supersedes(&replica.state().descriptor));
        let needed =
            superseded.find(|replica| self.is_needed(&replica.state().descriptor, by.shard_id));
        match needed {
            Some(needed) => Err(format!("{} has yet to be taken in here", needed.shard_id())),
            None => Ok(()),
        }
    }

    /// Whether an operator that this node knows of adds a replica with this id here.
    fn is_ordered(&self, shard: ShardId, replica_id: ReplicaId) -> bool {
        let catalog = self.catalog().borrow().clone();
        catalog.operators.get(&shard).is_some_and(|record| {
            let own = Step::AddLearner(self.inner.identity.node_id);
            let steps = record.operator.steps.iter().enumerate();
            steps
                .filter(|(_, step)| **step == own)
                .any(|(at, _)| record.replica_id(at) == replica_id)
        })
    }

    /// Whether there is something of a shard here that no replica can be opened of, and that none
    /// waits for. Its shard has removed it, or the leader would not ask for another.
    fn is_left_over(&self, descriptor: &ShardDescriptor) -> bool {
        let (shard, group) = (descriptor.shard_id, group_of(descriptor));
        let seams = &self.inner.parts.seams;
        let is_known = self.replica(shard).is_some()
            || self.births().of(shard).is_some()
            || self.inner.waiting.lock().contains(&group)
            || self.is_taken(descriptor);
        let is_something = seams.log.group(group).is_some()
            || matches!(seams.state.get(&keys::header(shard)), Ok(Some(_)))
            || matches!(seams.snapshots.latest(group), Ok(Some(_)) | Err(_));
        !is_known && is_something
    }

    /// Whether this node may get a replica of a shard, whoever says so.
    fn may_hold(&self, descriptor: &ShardDescriptor) -> Result<(), String> {
        let catalog = self.catalog().borrow().clone();
        if catalog.removed_shards.contains(&descriptor.shard_id) {
            return Err("the shard is gone".to_owned());
        }
        let class = catalog.classes.get(&descriptor.class).map(|class| &class.kind);
        if let Some(ClassKind::Pinned { residency }) = class
            && !residency.contains(&self.inner.node.region)
        {
            return Err("this node is outside the residency set of the class".to_owned());
        }
        if self.fitness().report().disk != DiskState::Normal {
            return Err("the disk of this node has no room for more replicas".to_owned());
        }
        let overlaps = |replica: &Arc<Replica>| {
            let other = &replica.state().descriptor;
            other.shard_id != descriptor.shard_id
                && other.range.overlaps(&descriptor.range)
                && !descriptor.supersedes(other)
        };
        match self.replicas().into_iter().find(overlaps) {
            Some(other) => Err(format!("{} owns some of its keys here", other.shard_id())),
            None => Ok(()),
        }
    }

    /// Takes a replica away because a descriptor of its shard does not name it any more.
    ///
    /// # Errors
    /// Why it stays.
    pub(crate) async fn remove_replica(&self, descriptor: &ShardDescriptor) -> Result<(), String> {
        let _changing = self.inner.changing.lock().await;
        let group = group_of(descriptor);
        let Some(replica) = self.replica_of_group(group) else { return Ok(()) };
        if !self.card_of(&replica).is_left_out_by(group, descriptor) {
            return Err(format!("{} is not proven to be gone", replica.replica_id()));
        }
        if self.births().is_parent(replica.shard_id()) {
            return Err("children of its split have no snapshot files yet".to_owned());
        }
        if replica.state().is_frozen() {
            return Err("its keys are about to be another shard's".to_owned());
        }
        let destroyed = self.destroy(&replica, "its shard has removed it").await;
        destroyed.map_err(|error| error.to_string())
    }

    /// A replica's card; of one that was made without, or whose card is damaged, one that says that
    /// it is there from the beginning.
    fn card_of(&self, replica: &Replica) -> Card {
        self.card_for(replica.group(), replica.replica_id())
    }

    pub(super) fn card_for(&self, group: GroupId, replica_id: ReplicaId) -> Card {
        let known = Card::read(&self.inner.parts.seams.snapshots, group);
        known.ok().flatten().unwrap_or(Card {
            replica_id: replica_id.0,
            made_at: Epoch::FIRST.conf_version,
            may_found: false,
            is_gone: false,
            born_of: None,
        })
    }

    /// Notes that a group's replica here is no more.
    pub(crate) fn mark_gone(&self, group: GroupId) -> Result<(), StateError> {
        let snapshots = &self.inner.parts.seams.snapshots;
        match Card::read(snapshots, group) {
            Ok(Some(card)) => Card { is_gone: true, ..card }.write(snapshots, group),
            Ok(None) => Ok(()),
            Err(error) => {
                tracing::warn!(shard = group.shard, %error, "the card of a merged shard is damaged");
                Ok(())
            }
        }
    }

    async fn begin(
        &self,
        descriptor: &ShardDescriptor,
        replica_id: ReplicaId,
        may_found: bool,
    ) -> Result<(), StateError> {
        let group = group_of(descriptor);
        let parts = &self.inner.parts;
        let card = Card {
            replica_id: replica_id.0,
            made_at: descriptor.epoch.conf_version,
            may_found,
            is_gone: false,
            born_of: None,
        };
        let mut written = Ok(());
        parts.seams.offload.in_place(&mut || {
            let state = ShardState::new(descriptor.clone());
            written = card
                .write(&parts.seams.snapshots, group)
                .and_then(|()| write_founding_file(parts, group, Some(state)));
        });
        written?;
        self.open(group, replica_id, may_found, false).await
    }

    /// Removes a replica for good.
    async fn destroy(&self, replica: &Arc<Replica>, why: &str) -> Result<(), StateError> {
        let (shard, group) = (replica.shard_id(), replica.group());
        if self.births().is_parent(shard) {
            tracing::info!(%shard, "stays until the children of its split have snapshot files");
            return Ok(());
        }
        tracing::info!(%shard, replica = %replica.replica_id(), "removing a replica: {why}");
        let range = replica.state().descriptor.range;
        {
            let _opening = self.inner.opening.lock().await;
            let mut replicas = self.inner.replicas.write();
            if !replicas.get(&shard).is_some_and(|open| Arc::ptr_eq(open, replica)) {
                // A merge has it.
                return Ok(());
            }
            self.inner.clearing.lock().insert(shard, range);
            replicas.remove(&shard);
        }
        let card = Card { is_gone: true, ..self.card_of(replica) };
        card.write(&self.inner.parts.seams.snapshots, group)?;
        self.births().forget(shard);
        replica.stop(why).await;
        self.inner.parts.listener.removed(shard);
        self.erase(group, range).await?;
        self.inner.clearing.lock().remove(&shard);
        self.births().changed.notify_one();
        Ok(())
    }

    /// Removes what is left of a replica. Its file goes last: until then a restart does this again.
    pub(super) async fn erase(&self, group: GroupId, range: KeyRange) -> Result<(), StateError> {
        let seams = &self.inner.parts.seams;
        if seams.snapshots.latest(group).map_err(damaged)?.is_none() {
            // A newborn: its rows register it, and so they go after its log.
            birth::write(&seams.log, LogWrite::Drop { group }).await?;
        }
        self.clear_rows(ShardId(group.shard), range).await?;
        if seams.log.group(group).is_some() {
            birth::write(&seams.log, LogWrite::Drop { group }).await?;
        }
        seams.snapshots.remove_group(group).map_err(damaged)?;
        self.forget_broken(ShardId(group.shard));
        Ok(())
    }

    /// Removes a replica's rows, off the async threads: a large range takes seconds. The mark of an
    /// unfinished load is durable first, so that whatever a crash leaves of the range is garbage.
    async fn clear_rows(&self, shard: ShardId, range: KeyRange) -> Result<(), StateError> {
        let state = self.inner.parts.seams.state.clone();
        let (done, cleared) = tokio::sync::oneshot::channel();
        let clear = move || {
            state.commit(Batch { rows: vec![(keys::installing(shard), Some(vec![1]))] })?;
            state.checkpoint()?;
            let (start, end) = keys::records(range);
            let rows = state.clear(&start[..]..&end[..])?;
            let own = [keys::header(shard), keys::installing(shard), keys::birth(shard)];
            let marks = own.into_iter().map(|key| (key, None)).collect();
            state.commit(Batch { rows: marks })?;
            state.checkpoint()?;
            Ok(rows)
        };
        let work = Box::new(move || drop(done.send(clear())));
        self.inner.parts.seams.offload.spawn(work).await;
        let rows = cleared.await.map_err(damaged)??;
        tracing::info!(?shard, rows, "the rows of a replica that is gone are removed");
        Ok(())
    }
}

/// The keys that a replica which is not open owned last: as its rows say, else its file.
pub(super) fn known_range(parts: &NodeParts, group: GroupId) -> Result<KeyRange, StateError> {
    let stored = parts.seams.state.get(&keys::header(ShardId(group.shard)))?;
    let stored = stored.and_then(|row| wire::decode::<Header>("a header row", &row).ok());
    if let Some(shard) = stored.and_then(|header| header.shard) {
        return Ok(shard.descriptor.range);
    }
    let file = parts.seams.snapshots.latest(group).map_err(damaged)?;
    let shard = file.and_then(|file| {
        wire::decode::<SnapshotContent>("a snapshot's header", &file.header.meta).ok()?.shard
    });
    Ok(shard.map_or(KeyRange::EMPTY, |shard| shard.descriptor.range))
}

/// Founds a group that has no members yet: its preferred first leader does so at once, any other
/// voter if that one does not. Done at every start, because a crash may have come before it.
async fn found_if_nobody_did(replica: Arc<Replica>) {
    let preferred = replica.state().descriptor.replicas.first().map(|first| first.replica_id);
    let is_preferred = preferred == Some(replica.replica_id());
    tokio::time::sleep(if is_preferred { FOUND_PREFERRED_AFTER } else { FOUND_OTHERS_AFTER }).await;
    if replica.fence().is_some() {
        return; // What it knows of the group is lost, not missing.
    }
    if !replica.raft().is_initialized().await.unwrap_or(true) {
        replica.found().await;
    }
}

/// The replica of this node that a group's snapshot file names.
pub(super) fn own_replica_id(
    parts: &NodeParts,
    identity: &Identity,
    group: GroupId,
) -> Result<Option<ReplicaId>, StateError> {
    let Some(file) = parts.seams.snapshots.latest(group).map_err(damaged)? else { return Ok(None) };
    let content: SnapshotContent =
        wire::decode("a snapshot's header", &file.header.meta).map_err(damaged)?;
    let descriptor = content.shard.map(|shard| shard.descriptor);
    let own = descriptor.and_then(|descriptor| descriptor.replica_on(identity.node_id));
    Ok(own.map(|replica| replica.replica_id))
}

/// Writes the file that makes a group exist on this node.
pub(super) fn write_founding_file(
    parts: &NodeParts,
    group: GroupId,
    shard: Option<ShardState>,
) -> Result<(), StateError> {
    let content = SnapshotContent { membership: WireStoredMembership::default(), shard };
    let header = SnapshotHeader {
        format: wire::FORMAT_VERSION,
        group,
        position: None,
        meta: wire::encode(&content).to_vec(),
    };
    let writer = parts.seams.snapshots.create(header).map_err(damaged)?;
    writer.finish().map_err(damaged).map(drop)
}
