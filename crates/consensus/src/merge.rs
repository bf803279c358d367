//! How a node takes the source of a merge in.
//!
//! ```text
//! Absorb comes to be applied ──> source stopped ──> rest of its log applied ──> one batch: target
//!   owns the keys, remains noted ──> target has a file that holds them: source's log and file go
//! ```
//!
//! The source's log up to the position that the entry names is known to be committed, so no other
//! replica of the source is asked: by then there may be none. Until the target has a file of its
//! own, a lost state engine is rebuilt from both files and logs, and this is done again. A snapshot
//! of the target that is installed gives up, in the same way, whatever it supersedes.
//!
//! Not here: what a merge changes (`model`), the order of its steps over both shards (`server`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use anchorhold_model::catalog::CatalogState;
use anchorhold_model::row::Row;
use anchorhold_model::{
    Command, Epoch, Frozen, MergeStep, Merged, Merging, NodeId, OperationId, Outcome, Rejection,
    RequestId, ShardDescriptor, ShardId, Write,
};
use anchorhold_storage::{Batch, GroupId, LogWrite, StateError, StateStore};
use openraft::async_runtime::WatchReceiver;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::birth::{self, group_of};
use crate::error::ProposeError;
use crate::fence;
use crate::host::Host;
use crate::keys;
use crate::log::GroupLogStorage;
use crate::machine::{Machine, damaged};
use crate::replica::{Replica, Standing};
use crate::wire;

/// How often a node looks whether the source is open by now.
const OPEN_POLL: Duration = Duration::from_millis(20);
/// Entries that a member may lack when a merge begins.
const LAG_ENTRIES_MAX: u64 = 128;
/// Looks after which a source that nothing here can bring about is taken for lost.
const OPEN_LOOKS: usize = 500;

/// What is left of a shard whose keys are another's, until that one has a file that holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Remains {
    shard: u64,
    incarnation: u32,
    target: u64,
    target_incarnation: u32,
    /// The target's applied index from which its file holds them.
    index: u64,
}

impl Remains {
    fn source(&self) -> GroupId {
        GroupId { shard: self.shard, incarnation: self.incarnation }
    }

    fn target(&self) -> GroupId {
        GroupId { shard: self.target, incarnation: self.target_incarnation }
    }
}

/// What a replica asks its node for.
pub(crate) enum Errand {
    /// Bring a source to its end, for a target that is about to own its keys.
    TakeIn { target: GroupId, source: Box<Frozen>, done: oneshot::Sender<()> },
    /// Stop everything that a shard supersedes.
    GiveUp { by: Box<ShardDescriptor>, done: oneshot::Sender<Vec<ShardDescriptor>> },
    /// The target owns the keys.
    TakenIn { source: ShardId },
}

/// The merges of a node.
pub(crate) struct Merges {
    remains: Mutex<BTreeMap<ShardId, Remains>>,
    errands: mpsc::UnboundedSender<Errand>,
    inbox: Mutex<Option<mpsc::UnboundedReceiver<Errand>>>,
}

impl Default for Merges {
    fn default() -> Self {
        let (errands, inbox) = mpsc::unbounded_channel();
        Self { remains: Mutex::default(), errands, inbox: Mutex::new(Some(inbox)) }
    }
}

impl Merges {
    /// Reads what the state has of earlier merges.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn load(&self, state: &dyn StateStore) -> Result<(), StateError> {
        let what = "a row of what remains of a shard";
        *self.remains.lock() = birth::marks(state, what, |place| {
            if let keys::Place::Remains(shard) = place { Some(shard) } else { None }
        })?;
        Ok(())
    }

    /// Whether a shard's keys are another's here, and only its log and file are left.
    pub(crate) fn is_ended(&self, shard: ShardId) -> bool {
        self.remains.lock().contains_key(&shard)
    }

    /// Whether a shard's file should be made anew, so that what it took in can go.
    pub(crate) fn wants_file(&self, target: ShardId) -> bool {
        self.remains.lock().values().any(|remains| remains.target == target.0)
    }

    /// Has the node bring a source to its end. Comes back when its rows are as the entry says; if
    /// they can never be, not at all: the target's replica is closed then, and will be replaced.
    pub(crate) async fn take_in(&self, target: GroupId, source: &Frozen) -> io::Result<()> {
        let (done, taken) = oneshot::channel();
        let source = Box::new(source.clone());
        self.ask(Errand::TakeIn { target, source, done })?;
        match taken.await {
            Ok(()) => Ok(()),
            // Whoever does not give it ends the replica.
            Err(_) => std::future::pending().await,
        }
    }

    /// Has the node stop what a shard supersedes, and names it.
    pub(crate) async fn give_up(&self, by: &ShardDescriptor) -> io::Result<Vec<ShardDescriptor>> {
        if self.inbox.lock().is_some() {
            // No node is there yet, and so no other replica that could be in the way.
            return Ok(Vec::new());
        }
        let (done, given_up) = oneshot::channel();
        self.ask(Errand::GiveUp { by: Box::new(by.clone()), done })?;
        given_up.await.map_err(|_| io::Error::other("the node is stopping"))
    }

    /// The target's batch is committed.
    pub(crate) fn taken_in(&self, source: ShardId) {
        // Nobody is there to hear it when the node stops.
        drop(self.errands.send(Errand::TakenIn { source }));
    }

    fn ask(&self, errand: Errand) -> io::Result<()> {
        self.errands.send(errand).map_err(|_| io::Error::other("the node is stopping"))
    }

    /// Notes that a shard's keys are the target's from an index of its log on. Gives the rows to
    /// commit with that.
    pub(crate) fn note(&self, target: GroupId, index: u64, source: &ShardDescriptor) -> Vec<Row> {
        let shard = source.shard_id;
        let remains = Remains {
            shard: shard.0,
            incarnation: source.epoch.incarnation,
            target: target.shard,
            target_incarnation: target.incarnation,
            index,
        };
        self.remains.lock().insert(shard, remains);
        vec![
            (keys::header(shard), None),
            (keys::birth(shard), None),
            (keys::remains(shard), Some(wire::encode(&remains).to_vec())),
        ]
    }
}

/// Does what replicas ask for, for ever.
pub(crate) async fn keep(host: Host) {
    let Some(mut inbox) = host.merges().inbox.lock().take() else { return };
    while let Some(errand) = inbox.recv().await {
        match errand {
            Errand::TakeIn { target, source, done } => {
                tokio::spawn(host.clone().take_in(target, source, done));
            }
            Errand::GiveUp { by, done } => {
                let host = host.clone();
                tokio::spawn(async move { drop(done.send(host.give_up(&by).await)) });
            }
            Errand::TakenIn { source } => host.end(source),
        }
    }
}

impl Host {
    async fn take_in(self, target: GroupId, source: Box<Frozen>, done: oneshot::Sender<()>) {
        let shard = source.state.descriptor.shard_id;
        let taken = match self.open_source(&source.state.descriptor).await {
            Some(replica) => {
                if self.withdraw(&replica, "its keys go to another shard").await {
                    finish(&self, &replica, &source).await
                } else {
                    Err("its replica was removed meanwhile".to_owned())
                }
            }
            None => Err("there is no replica of it here".to_owned()),
        };
        match taken {
            Ok(()) => {
                if done.send(()).is_err() {
                    // The target's replica stopped meanwhile: the source is needed again.
                    self.bring_back(&source.state.descriptor);
                }
            }
            Err(reason) => {
                tracing::error!(
                    shard = target.shard, source = %shard, reason,
                    "cannot take in what its shard has taken in: this replica must be replaced"
                );
                self.bring_back(&source.state.descriptor);
                let closed = fence::close(&self.parts().seams.log, target).await;
                if let Err(error) = closed {
                    self.parts().seams.exit.exit(&format!("the log cannot be written: {error}"));
                }
                if let Some(replica) = self.replica_of_group(target) {
                    replica.close();
                    // It applies nothing any more, and others must lead. That ends the wait, too.
                    replica.stop("it cannot take in what its shard has taken in").await;
                }
                drop(done);
            }
        }
    }

    /// Whether a shard here may yet have to take another one in, which therefore has to stay: its left
    /// neighbour, or one that owns some of its keys from before it was born, stands before what the
    /// catalog or the other one knows of it.
    pub(crate) fn is_needed(&self, source: &ShardDescriptor, not_by: ShardId) -> bool {
        let catalog = self.catalog().borrow().clone();
        let target = self.replica(source.shard_id).and_then(|replica| {
            let merging = replica.state().merging;
            let Some(Merging::Frozen { merge, target }) = merging else { return None };
            Some((merge, target))
        });
        let may_need = |whole: &ShardDescriptor, has_absorbed: &dyn Fn(RequestId) -> bool| {
            let is_left = whole.range.end == Some(source.range.start);
            let is_ancestor = whole.range.overlaps(&source.range) && !whole.supersedes(source);
            let known = catalog.shards.get(&whole.shard_id);
            let is_behind = known.is_none_or(|known| whole.epoch.version < known.epoch.version);
            let is_awaited = target
                .is_some_and(|(merge, target)| target == whole.shard_id && !has_absorbed(merge));
            whole.shard_id != source.shard_id
                && whole.shard_id != not_by
                && (is_awaited || (is_left || is_ancestor) && is_behind)
        };
        let is_needed_by_open = self.replicas().iter().any(|replica| {
            let state = replica.state();
            may_need(&state.descriptor, &|merge| state.absorbed.contains(&merge))
        });
        is_needed_by_open
            || self.waiting_groups().into_iter().any(|group| {
                let standing = Standing::read(self.parts(), group).ok();
                let waiting = standing.and_then(|standing| standing.descriptor().cloned());
                waiting.is_some_and(|whole| may_need(&whole, &|_| false))
            })
    }

    /// The source's replica, once it is open: at a start it may have to wait for a parent, or to be
    /// born. `None` if nothing here can bring it about.
    async fn open_source(&self, source: &ShardDescriptor) -> Option<Arc<Replica>> {
        let (mut looks, mut waited) = (0, 0);
        loop {
            if let Some(replica) = self.replica_of_group(group_of(source)) {
                return Some(replica);
            }
            let may_come = self.is_waiting(group_of(source))
                || self.births().of(source.shard_id).is_some()
                || self.is_taken_by(source, |other| !other.supersedes(source));
            waited += 1;
            if waited == OPEN_LOOKS {
                tracing::warn!(shard = %source.shard_id, "a merge waits for its source to open here");
            }
            looks = if may_come { 0 } else { looks + 1 };
            if OPEN_LOOKS < looks {
                return None;
            }
            tokio::time::sleep(OPEN_POLL).await;
        }
    }

    /// Stops what a shard supersedes: it has ended, whatever its replica here still says.
    pub(crate) async fn give_up(&self, by: &ShardDescriptor) -> Vec<ShardDescriptor> {
        let mut ended: Vec<ShardDescriptor> = Vec::new();
        for replica in self.replicas() {
            let descriptor = replica.state().descriptor.clone();
            if by.supersedes(&descriptor)
                && self.withdraw(&replica, "its keys are another shard's").await
            {
                ended.push(descriptor);
            }
        }
        let _opening = self.opening().await;
        for group in self.waiting_groups() {
            let standing = Standing::read(self.parts(), group).ok();
            let descriptor = standing.and_then(|standing| standing.descriptor().cloned());
            if let Some(descriptor) = descriptor.filter(|one| by.supersedes(one)) {
                self.forget_waiting(group);
                ended.push(descriptor);
            }
        }
        for birth in self.births().all() {
            let descriptor = self.known_as(&birth);
            let is_known = ended.iter().any(|one| one.shard_id == descriptor.shard_id);
            if by.supersedes(&descriptor) && !is_known {
                ended.push(descriptor);
            }
        }
        ended
    }

    /// Takes the first steps of a merge: nothing else may be under way in the shard.
    ///
    /// # Errors
    /// What is.
    pub fn may_merge(&self, shard: ShardId) -> Result<(), &'static str> {
        let replica = self.replica(shard).ok_or("it has no replica here")?;
        if replica.status().is_joint {
            return Err("its members are changing");
        }
        if self.births().of(shard).is_some() || self.births().is_parent(shard) {
            return Err("its last split has not settled");
        }
        let all_follow = replica.applied_position().is_some_and(|(_, index)| {
            let members = replica.members_that_hold(index.saturating_sub(LAG_ENTRIES_MAX));
            members.into_iter().all(|(node, holds)| {
                let is_own = node == self.identity().node_id;
                is_own || holds && self.fitness().other(node).is_some()
            })
        });
        if all_follow { Ok(()) } else { Err("a member of it is away or behind") }
    }

    /// Takes a step of a merge in the log of a shard that this node leads.
    ///
    /// # Errors
    /// [`MergeError`]; after `Propose` the step may have been taken. It may be taken again.
    pub async fn merge_step(
        &self,
        shard: ShardId,
        epoch: Epoch,
        step: MergeStep,
        timeout: Duration,
    ) -> Result<Merged, MergeError> {
        let no_replica = ProposeError::NotLeader { shard, leader: None };
        let replica = self.replica(shard).ok_or(no_replica)?;
        // The attempt's id makes it one: no retry is told apart by this.
        let operation = OperationId { request_id: RequestId(0), item: 0 };
        let command = Command { operation, epoch, write: Write::Merge(step) };
        match replica.propose(vec![command], timeout).await?.pop() {
            Some(Outcome::Merged(merged)) => {
                self.births().told.notify_one();
                Ok(merged)
            }
            Some(Outcome::Rejected(Rejection::StaleEpoch { descriptor })) => {
                Err(ProposeError::StaleEpoch { shard, descriptor }.into())
            }
            Some(Outcome::Rejected(rejection)) => {
                Err(MergeError::Rejected { rejection: Box::new(rejection) })
            }
            Some(_) | None => Err(ProposeError::OutcomeUnknown { shard }.into()),
        }
    }

    /// A shard that this node leads and that the attempt has frozen, once every member holds its log
    /// up to where it stands.
    pub fn frozen(&self, shard: ShardId, attempt: RequestId) -> Option<Frozen> {
        let replica = self.replica(shard).filter(|replica| replica.is_leader())?;
        let header = replica.shared().header.load_full();
        let (term, index) = header.applied?;
        let state = header.shard.clone()?;
        let is_frozen = matches!(
            state.merging, Some(Merging::Frozen { merge, .. }) if merge == attempt
        );
        let all_hold = replica.members_that_hold(index).into_iter().all(|(_, holds)| holds);
        (is_frozen && all_hold).then_some(Frozen { state, term, index })
    }
}

impl Replica {
    fn applied_position(&self) -> Option<(u64, u64)> {
        self.shared().header.load().applied
    }

    /// On a leader: the group's members, and whether each holds the log up to an index. Nobody does
    /// where another replica leads.
    fn members_that_hold(&self, index: u64) -> Vec<(NodeId, bool)> {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        let matched = metrics.replication.as_ref();
        let holds = |id: &u64| {
            let at = matched.and_then(|matched| matched.get(id)).and_then(Option::as_ref);
            at.is_some_and(|at| index <= at.index)
                || matched.is_some() && *id == self.replica_id().0
        };
        let members = metrics.membership_config.membership().nodes();
        members.map(|(id, node)| (NodeId(node.node_id), holds(id))).collect()
    }
}

/// Why a step of a merge was not taken.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MergeError {
    /// It could not be proposed, or its outcome is not known.
    #[error("the step was not taken")]
    Propose(#[from] ProposeError),
    /// It does not fit what the shard is now.
    #[error("the shard is not where the step would lead on from: {rejection:?}")]
    Rejected {
        /// The state machine's words.
        rejection: Box<Rejection>,
    },
}

/// Applies what a stopped source's log holds up to where the merge finds it.
async fn finish(host: &Host, replica: &Replica, source: &Frozen) -> Result<(), String> {
    let shared = replica.shared();
    // Whatever is copied out of the source from now on would be mixed with the target's changes.
    *shared.cut.lock() = None;
    *shared.wanted.lock() = None;
    *shared.count.lock() = None;
    let applied = shared.header.load().applied.map_or(0, |(_, index)| index + 1);
    if source.index < applied {
        return Ok(());
    }
    let parts = host.parts();
    let log = GroupLogStorage::new(shared.log.clone(), shared.group, parts.seams.exit.clone());
    let entries = match log.entries(applied, source.index + 1) {
        Ok(entries) => entries,
        Err(error) => {
            parts
                .seams
                .exit
                .exit(&format!("the log of a shard that is merged cannot be read: {error}"));
            return Err(error.to_string());
        }
    };
    let last = entries.last().map(|entry| (entry.log_id.leader_id.term, entry.log_id.index));
    if last != Some((source.term, source.index)) {
        return Err(format!("its log here ends at {last:?}, before the merge"));
    }
    let durable = log.durable();
    let listener = parts.listener.clone();
    // The replica's own machine has ended; this one takes its place for these entries.
    shared.stopping.send_replace(false);
    let mut machine = Machine::new(shared.clone(), listener, durable, Box::new(|| {}));
    let mut applied = Ok(());
    for entry in entries {
        applied = machine.apply_entry(entry).await.map(drop);
        if applied.is_err() {
            break;
        }
    }
    shared.stopping.send_replace(true);
    applied.map_err(|error| error.to_string())
}

/// Lets go what is left of shards whose keys are in their targets' files by now, or whose targets
/// are not on this node any more.
///
/// # Errors
/// If the disk fails.
pub(crate) async fn clear_up(host: &Host) -> Result<(), StateError> {
    let all: Vec<Remains> = host.merges().remains.lock().values().copied().collect();
    for remains in all {
        let (source, target) = (remains.source(), remains.target());
        let seams = &host.parts().seams;
        let file = seams.snapshots.latest(target).map_err(damaged)?;
        let is_gone = file.is_none()
            && seams.log.group(target).is_none()
            && host.births().of(ShardId(target.shard)).is_none();
        let position = file.and_then(|file| file.header.position);
        let is_filed = position.is_some_and(|at| remains.index <= at.index);
        if is_gone || is_filed {
            host.bury(source).await?;
            tracing::info!(shard = source.shard, into = target.shard, "the merge has settled");
        }
    }
    let catalog = host.catalog().borrow().clone();
    if catalog.merged_shards.is_empty() {
        return Ok(());
    }
    let seams = &host.parts().seams;
    let all = seams.log.groups().into_iter().chain(seams.snapshots.groups());
    for group in all.collect::<BTreeSet<_>>() {
        if host.is_orphan(&catalog, group) {
            host.forget_waiting(group);
            host.bury(group).await?;
            tracing::info!(shard = group.shard, "what was left of a merged shard is removed");
        }
    }
    Ok(())
}

impl Host {
    /// Whether nothing here needs what is left of a shard that became part of another one, and that no
    /// replica is open of: the state engine that knew of it was lost.
    fn is_orphan(&self, catalog: &CatalogState, group: GroupId) -> bool {
        let shard = ShardId(group.shard);
        if !catalog.merged_shards.contains_key(&shard) {
            return false;
        }
        // One that is behind may bring it to life again, and then needs its log.
        let is_behind = |whole: &Arc<Replica>| {
            let known = catalog.shards.get(&whole.shard_id());
            let version = whole.state().descriptor.epoch.version;
            catalog.is_part_of(shard, whole.shard_id())
                && known.is_none_or(|known| version < known.epoch.version)
        };
        let may_come = self.replicas().iter().any(is_behind)
            || self
                .waiting_groups()
                .iter()
                .any(|one| catalog.is_part_of(shard, ShardId(one.shard)));
        // Read last: an entry that is applied meanwhile notes it before anything else here changes.
        let is_known = self.replica(shard).is_some()
            || self.births().of(shard).is_some()
            || self.merges().is_ended(shard);
        !may_come && !is_known
    }

    /// Removes the log and the files of a shard whose rows are another's. Its card stays: no older
    /// copy of the catalog brings it back.
    pub(crate) async fn bury(&self, source: GroupId) -> Result<(), StateError> {
        let seams = &self.parts().seams;
        let shard = ShardId(source.shard);
        if seams.log.group(source).is_some() {
            birth::write(&seams.log, LogWrite::Drop { group: source }).await?;
        }
        let mut removed = Ok(());
        seams.offload.in_place(&mut || {
            removed = seams.snapshots.remove_group(source).map(drop).map_err(damaged);
        });
        removed?;
        self.mark_gone(source)?;
        let rows =
            [keys::header(shard), keys::birth(shard), keys::remains(shard)].map(|key| (key, None));
        seams.state.commit(Batch { rows: rows.into() })?;
        self.births().forget(shard);
        self.merges().remains.lock().remove(&shard);
        self.forget_broken(shard);
        Ok(())
    }
}
