//! Executes one request on one replica of this node.
//!
//! Writes are proposed; reads wait until a view of the wanted freshness is applied here, then are
//! materialised from the records. A linearizable read that meets an anchor whose expiry has passed
//! on the wall clock, but not yet in shard time, has the leader propose a tick first: no clock but
//! the shard's own decides what is visible.
//!
//! Not here: choosing the replica (`forward`), merging shards (`find`), errors for clients (`api`).

mod read;
mod region;

pub(crate) use self::read::{LIST_BYTES_MAX, millis, size};

use std::sync::Arc;

use anchorhold_consensus::{
    BrokenReplica, MergeError, ProposeError, ReadError, Replica, Role, SplitDone, SplitError,
};
use anchorhold_model::{
    Command, Epoch, Key, KeyRange, MergeStep, NodeId, OperationId, Outcome, Rejection, ReplicaRole,
    RequestId, ShardDescriptor, ShardId, ShardState, Timestamp, Write,
};

use crate::clock::Deadline;
use crate::core::Core;
use crate::report::{NodeReport, ReplicaReport, ReportDifference, ReportMark};
use crate::request::{Level, Served, ShardCall, ShardError, ShardReply, ShardRequest};

impl Core {
    /// Executes a request on the replica here.
    ///
    /// # Errors
    /// [`ShardError`]; it says whether anything may have been done.
    pub async fn serve(
        &self,
        call: ShardCall,
        deadline: &Deadline,
    ) -> Result<ShardReply, ShardError> {
        let replica = self.host.replica(call.shard).ok_or_else(|| self.absent(&call))?;
        self.check_epoch(&replica, call.epoch, &call.range)?;
        if !matches!(call.request, ShardRequest::Merge(_)) {
            check_merging(&replica)?;
        }
        self.load.count(call.shard, 1);
        let (epoch, range) = (call.epoch, call.range);
        let answer = match call.request {
            ShardRequest::Write { commands } => {
                return self.write(&replica, commands, epoch, &range, deadline).await;
            }
            ShardRequest::Split { at, child } => {
                return self.split(&replica, epoch, at, child, deadline).await;
            }
            ShardRequest::Tick { due } => self.tick(&replica, due, deadline).await,
            ShardRequest::Get { ids, read } => self.get(&replica, &ids, &read, deadline).await,
            ShardRequest::List(query) => self.list(&replica, &query, deadline).await,
            ShardRequest::Nearest(query) => self.nearest(&replica, &query, deadline).await,
            ShardRequest::Merge(step) => {
                return self.take_merge_step(&replica, epoch, step, deadline).await;
            }
        }?;
        // A replica that shrank while it looked has not seen all of the range; one that a merge has
        // stopped may have seen what is another shard's already.
        self.check_epoch(&replica, epoch, &range)?;
        check_merging(&replica)?;
        if replica.is_stopped() {
            // Its rows may have been another's, or nobody's, when it looked.
            return Err(ShardError::NoReplica);
        }
        Ok(answer)
    }

    /// The refusal of a node that has no replica of a shard: its keys may be another's here.
    fn absent(&self, call: &ShardCall) -> ShardError {
        let (epoch, start) = (call.epoch, call.range.start);
        let has_taken = |shard: &ShardDescriptor| {
            shard.range.contains(start)
                && shard.epoch.incarnation == epoch.incarnation
                && epoch.version < shard.epoch.version
        };
        if self.host.descriptors().iter().any(has_taken) {
            self.stale_epoch(&call.range)
        } else {
            ShardError::NoReplica
        }
    }

    /// Refuses what was routed by bounds that are not the replica's.
    fn check_epoch(
        &self,
        replica: &Replica,
        epoch: Epoch,
        range: &KeyRange,
    ) -> Result<(), ShardError> {
        let current = replica.state().descriptor.epoch;
        if epoch.routes_to(current) {
            Ok(())
        } else if (current.incarnation, current.version) < (epoch.incarnation, epoch.version) {
            // The sender has heard of a change that this replica has yet to apply.
            Err(ShardError::Behind)
        } else {
            Err(self.stale_epoch(range))
        }
    }

    /// The refusal of a stale route, with everything that replaces it.
    fn stale_epoch(&self, range: &KeyRange) -> ShardError {
        self.routes.learn(self.host.descriptors());
        let table = self.routes.table();
        let whole = table.overlapping(range).filter(|shard| !table.is_clipped(shard.shard_id));
        let descriptors = whole.map(|shard| ShardDescriptor::clone(shard)).collect();
        ShardError::StaleEpoch { descriptors, maybe_done: false }
    }

    async fn write(
        &self,
        replica: &Arc<Replica>,
        commands: Vec<Command>,
        epoch: Epoch,
        range: &KeyRange,
        deadline: &Deadline,
    ) -> Result<ShardReply, ShardError> {
        let outcomes = match replica.propose(commands, deadline.remaining()).await {
            Ok(outcomes) => outcomes,
            Err(ProposeError::StaleEpoch { .. }) => return Err(self.stale_epoch(range)),
            Err(error) => return Err(error.into()),
        };
        let is_stale =
            |outcome: &Outcome| matches!(outcome, Outcome::Rejected(Rejection::StaleEpoch { .. }));
        if outcomes.iter().any(is_stale) {
            return Err(self.stale_epoch(range));
        }
        if outcomes.contains(&Outcome::Rejected(Rejection::Merging)) {
            return Err(ShardError::Merging);
        }
        let state = replica.state();
        let mut served = self.served(replica, &state, None, Level::Linearizable);
        if !epoch.routes_to(state.descriptor.epoch) {
            // The shard was split since. What the session has seen is what was written, and that
            // wherever it lies now: this side's later revisions say nothing of the other's.
            let written = outcomes.iter().filter_map(revision_of).max();
            (served.range, served.revision) = (*range, written.unwrap_or(0));
        }
        Ok(ShardReply::Written { outcomes, served })
    }

    async fn split(
        &self,
        replica: &Arc<Replica>,
        epoch: Epoch,
        at: Option<Key>,
        child: ShardId,
        deadline: &Deadline,
    ) -> Result<ShardReply, ShardError> {
        let range = replica.state().descriptor.range;
        let split =
            self.host.split(replica.shard_id(), epoch, at, child, deadline.remaining()).await;
        let not_split = |reason, is_early| Err(ShardError::NotSplit { reason, is_early });
        match split {
            Ok(SplitDone { parent, child }) => {
                Ok(ShardReply::Split { parent: Box::new(parent), child: Box::new(child) })
            }
            Err(SplitError::Propose(ProposeError::StaleEpoch { .. })) => {
                Err(self.stale_epoch(&range))
            }
            Err(SplitError::Propose(error)) => Err(error.into()),
            Err(error @ SplitError::NotReady { .. }) => not_split(error.to_string(), true),
            Err(error) => not_split(error.to_string(), false),
        }
    }

    async fn take_merge_step(
        &self,
        replica: &Replica,
        epoch: Epoch,
        step: MergeStep,
        deadline: &Deadline,
    ) -> Result<ShardReply, ShardError> {
        let (shard, range) = (replica.shard_id(), replica.state().descriptor.range);
        if !replica.is_leader() {
            return Err(not_leader(replica));
        }
        if matches!(step, MergeStep::Await { .. }) {
            let ready = self.host.may_merge(shard);
            ready.map_err(|reason| ShardError::NotMerged { reason: reason.to_owned() })?;
        }
        match self.host.merge_step(shard, epoch, step, deadline.remaining()).await {
            Ok(merged) => Ok(ShardReply::Merged(merged)),
            Err(MergeError::Propose(ProposeError::StaleEpoch { .. })) => {
                Err(self.stale_epoch(&range))
            }
            Err(MergeError::Propose(error)) => Err(error.into()),
            Err(error @ MergeError::Rejected { .. }) => {
                Err(ShardError::NotMerged { reason: error.to_string() })
            }
        }
    }

    /// Lets shard time pass `due` if this leader's wall clock has.
    async fn tick(
        &self,
        replica: &Arc<Replica>,
        due: Timestamp,
        deadline: &Deadline,
    ) -> Result<ShardReply, ShardError> {
        if !replica.is_leader() {
            return Err(not_leader(replica));
        }
        if due <= replica.shard_time() || self.clock.wall() < due {
            return Ok(ShardReply::Ticked);
        }
        let ShardDescriptor { epoch, range, .. } = replica.state().descriptor;
        let operation = OperationId { request_id: RequestId(self.random()), item: 0 };
        let command = Command { operation, epoch, write: Write::Tick };
        match replica.propose(vec![command], deadline.remaining()).await {
            Ok(_) => Ok(ShardReply::Ticked),
            Err(ProposeError::StaleEpoch { .. }) => Err(self.stale_epoch(&range)),
            Err(error) => Err(error.into()),
        }
    }

    /// Who serves an answer that holds nothing newer than `state`.
    fn served(
        &self,
        replica: &Replica,
        state: &ShardState,
        staleness: Option<std::time::Duration>,
        level: Level,
    ) -> Served {
        let descriptor = &state.descriptor;
        let role = descriptor
            .replica(replica.replica_id())
            .map_or(ReplicaRole::Learner, |replica| replica.role);
        Served {
            shard: descriptor.shard_id,
            range: descriptor.range,
            incarnation: descriptor.epoch.incarnation,
            revision: state.revision,
            staleness: if level == Level::Linearizable {
                Some(std::time::Duration::ZERO)
            } else {
                staleness
            },
            node: self.place.node,
            role,
            leader: replica.is_leader(),
            level,
        }
    }

    /// How this node and its replicas are.
    pub fn report(&self) -> NodeReport {
        let catalog = self.host.catalog_replica();
        let replicas = std::iter::once(catalog).chain(self.host.replicas());
        let broken = self.host.broken_replicas().into_iter();
        let broken = broken.map(|one| (one.descriptor.shard_id, Arc::new(report_broken(one))));
        let fitness = self.host.fitness_report();
        NodeReport {
            node: self.place.node,
            started: self.started,
            disk_bytes: self.disk.used_bytes(),
            disk_bytes_free: self.disk.free_bytes(),
            ballast_bytes: self.disk.ballast_bytes(),
            disk: fitness.disk.number(),
            troubles: fitness.troubles,
            clock_offset_ms: fitness.clock_offset_ms,
            damage: self.damage.lock().clone(),
            seen: self.seen.lock().clone(),
            fsync_p99_micros: self.log.stats().fsync_p99_micros,
            replicas: replicas
                .map(|replica| {
                    let load = self.load.rate(&*self.clock, replica.shard_id());
                    (replica.shard_id(), Arc::new(report_replica(&replica, load)))
                })
                .chain(broken)
                .collect(),
        }
    }

    /// The same, as far as it is not known.
    pub(crate) fn report_since(&self, known: Option<ReportMark>) -> ReportDifference {
        // Made while the ledger is held: reports are noted in the order in which they were made.
        let mut ledger = self.ledger.lock();
        ledger.difference(self.report(), known)
    }
}

impl Core {
    /// Gives this node's ballast up. Says how many bytes that were.
    ///
    /// # Errors
    /// The disk's words.
    pub fn release_ballast(&self) -> Result<u64, String> {
        let mut released = Ok(0);
        self.offload.in_place(&mut || {
            released = self.disk.release_ballast().map_err(|error| error.to_string());
            self.disk.tell(&self.host);
        });
        released
    }
}

fn report_replica(replica: &Replica, load: u64) -> ReplicaReport {
    let status = replica.status();
    let state = replica.state();
    ReplicaReport {
        shard: status.shard_id,
        replica: status.replica_id,
        leads: status.role == Role::Leader,
        votes: matches!(status.role, Role::Leader | Role::Follower | Role::Candidate),
        stopped: status.role == Role::Stopped || status.is_lost,
        lost: status.is_lost,
        is_joint: status.is_joint,
        load,
        problem: status.fence.map(|fence| fence.to_string()),
        leader: status.leader.map(|leader| leader.node_id),
        term: status.term,
        last_index: status.last_index,
        applied_index: status.applied_index,
        matched: status.matched,
        revision: state.revision,
        anchors: state.anchors,
        bytes: state.bytes,
        descriptor: state.descriptor.clone(),
    }
}

fn report_broken(broken: BrokenReplica) -> ReplicaReport {
    ReplicaReport {
        shard: broken.descriptor.shard_id,
        replica: broken.replica_id,
        leads: false,
        votes: false,
        stopped: true,
        lost: true,
        is_joint: false,
        load: 0,
        problem: Some(broken.reason),
        leader: None,
        term: 0,
        last_index: None,
        applied_index: None,
        matched: Vec::new(),
        revision: 0,
        anchors: 0,
        bytes: 0,
        descriptor: broken.descriptor,
    }
}

/// Refuses what a shard cannot answer whose keys are about to be another's: for a moment only.
fn check_merging(replica: &Replica) -> Result<(), ShardError> {
    if replica.state().is_frozen() { Err(ShardError::Merging) } else { Ok(()) }
}

/// The revision that a write made.
fn revision_of(outcome: &Outcome) -> Option<u64> {
    match outcome {
        Outcome::Written { version, .. } | Outcome::Deleted { version } => Some(version.revision),
        Outcome::Ticked
        | Outcome::Retired { .. }
        | Outcome::Swept { .. }
        | Outcome::SplitPrepared
        | Outcome::Split { .. }
        | Outcome::Merged(_)
        | Outcome::Rejected(_) => None,
    }
}

/// The refusal of a replica that does not lead.
pub fn not_leader(replica: &Replica) -> ShardError {
    let leader: Option<NodeId> = replica.leader().map(|leader| leader.node_id);
    ShardError::NotLeader { leader }
}

impl From<ProposeError> for ShardError {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::NotLeader { leader, .. } => {
                Self::NotLeader { leader: leader.map(|leader| leader.node_id) }
            }
            ProposeError::StaleEpoch { descriptor, .. } => {
                Self::StaleEpoch { descriptors: vec![*descriptor], maybe_done: false }
            }
            ProposeError::Busy { .. } => Self::Busy,
            ProposeError::DiskFull { .. } => Self::DiskFull,
            // A replica that stopped may have proposed before.
            ProposeError::OutcomeUnknown { .. } | ProposeError::Stopped { .. } => {
                Self::OutcomeUnknown
            }
        }
    }
}

impl From<ReadError> for ShardError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::NoLeader { .. } => Self::NoLeader,
            ReadError::Behind { .. } => Self::Behind,
            ReadError::Stopped { reason, .. } => Self::Failed { reason },
        }
    }
}
