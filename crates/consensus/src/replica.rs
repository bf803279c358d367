//! One replica: its Raft instance, its way into the log, and the views that reads are served from.

mod campaign;
mod leading;
mod quiescence;
mod reading;
mod receiving;
mod standing;

pub(crate) use self::leading::Led;
use self::quiescence::Quiescence;
pub(crate) use self::quiescence::{Idle, Rest};

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anchorhold_model::catalog::{
    CatalogCommand, CatalogEntry, CatalogOutcome, CatalogState, DEFAULT_CLASS,
};
use anchorhold_model::{
    Anchor, AnchorId, Command, Key, KeyRange, NodeId, OperationId, Outcome, Records, ReplicaId,
    ShardDescriptor, ShardId, ShardState, Stamp, Timestamp, Write, row,
};
use anchorhold_storage::{GroupId, LogStore, StateError};
use arc_swap::ArcSwap;
use openraft::async_runtime::WatchReceiver;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::birth::Births;
use crate::error::ProposeError;
use crate::fence::{self, Fence};
use crate::fitness::Fitness;
use crate::fitness::conduct::{Admission, Conduct};
use crate::host::Listener;
use crate::keys;
use crate::link::Peers;
use crate::log::GroupLogStorage;
use crate::machine::{
    Applied, Machine, MachineShared, StoredRecords, damaged, membership_of, normal_payload,
};
use crate::merge::Merges;
use crate::network::Network;
use crate::pace::Pace;
use crate::proposer::{Proposer, propose_error};
use crate::reads::{Freshness, ReadRounds, RoundFailure};
use crate::snapshot;
use crate::stamp::Stamper;
use crate::types::{Raft, Reply, TypeConfig};
use crate::wire::{self, TransferMessage};
use crate::{ConsensusConfig, Seams, runtime};

pub(crate) use self::standing::Standing;

/// Who leads a shard, as far as known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaderHint {
    /// The leading replica.
    pub replica_id: ReplicaId,
    /// Its node.
    pub node_id: NodeId,
}

/// A replica's role in its group right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Leads.
    Leader,
    /// Follows and votes.
    Follower,
    /// Tries to lead.
    Candidate,
    /// Follows without a vote.
    Learner,
    /// Has stopped.
    Stopped,
}

/// What operators see of a replica.
#[derive(Clone, Debug)]
pub struct ReplicaStatus {
    /// The shard.
    pub shard_id: ShardId,
    /// The replica.
    pub replica_id: ReplicaId,
    /// Its role.
    pub role: Role,
    /// Raft term.
    pub term: u64,
    /// The leader, if known.
    pub leader: Option<LeaderHint>,
    /// Voters of the group, as this replica knows its membership.
    pub voters: usize,
    /// Last index in the log.
    pub last_index: Option<u64>,
    /// Applied index.
    pub applied_index: Option<u64>,
    /// Index of the last snapshot.
    pub snapshot_index: Option<u64>,
    /// On a leader: each replica's matched index, its own included.
    pub matched: Vec<(ReplicaId, Option<u64>)>,
    /// Whether a joint change of its members was begun and not finished.
    pub is_joint: bool,
    /// What the replica is kept from, and why.
    pub fence: Option<Fence>,
    /// Whether it will never take part again: only another replica in its place helps.
    pub is_lost: bool,
}

/// Called with each row of a scan; says whether to go on.
type VisitRow<'a> = dyn FnMut(row::RowKey, &[u8]) -> Result<ControlFlow<()>, StateError> + 'a;

/// One replica on this node.
pub struct Replica {
    group: GroupId,
    replica_id: ReplicaId,
    raft: Raft,
    /// Ends with the state machine.
    machine_ended: tokio::sync::Mutex<Option<oneshot::Receiver<()>>>,
    shared: Arc<MachineShared>,
    applied: watch::Receiver<Applied>,
    proposer: Proposer,
    rounds: ReadRounds,
    freshness: Freshness,
    peers: Arc<Peers>,
    seams: Seams,
    stamper: Arc<Stamper>,
    /// Which writes it takes as leader: an [`Admission`].
    admission: AtomicU8,
    takes_entries: AtomicBool,
    campaigns: AtomicBool,
    /// Its log is longer than one shard's may be: no data until it has shrunk.
    log_full: AtomicBool,
    /// Why the replica no longer serves; empty while it does.
    stopped: ArcSwap<String>,
    /// Whether the log had lost something of it when it was opened and has not got it back yet.
    fenced: AtomicBool,
    /// A leader that no quorum has acknowledged for so long leads nobody any more.
    leader_lease: Duration,
    quiescence: Quiescence,
    /// Heartbeats of a leader without a quorum.
    silence: Mutex<leading::Silence>,
}

type Metrics = openraft::RaftMetrics<TypeConfig>;

/// What all replicas of a node share.
#[derive(Clone)]
pub(crate) struct NodeParts {
    pub(crate) config: ConsensusConfig,
    pub(crate) fitness: Arc<Fitness>,
    pub(crate) seams: Seams,
    pub(crate) peers: Arc<Peers>,
    pub(crate) listener: Arc<dyn Listener>,
    pub(crate) stamper: Arc<Stamper>,
    pub(crate) node_bytes: Arc<AtomicUsize>,
    pub(crate) snapshot_pace: Arc<Pace>,
    pub(crate) sessions: Arc<AtomicU64>,
    pub(crate) births: Arc<Births>,
    pub(crate) merges: Arc<Merges>,
    /// The catalog as applied here, whichever replica applies it.
    pub(crate) catalog: Arc<watch::Sender<Arc<CatalogState>>>,
}

/// Opens the state of a group: as the state store has it, or, where that does not reach the
/// latest snapshot file or the log's beginning, as the file has it.
fn open_shared(parts: &NodeParts, group: GroupId) -> Result<MachineShared, StateError> {
    let shard_id = ShardId(group.shard);
    let state = &parts.seams.state;
    let standing = Standing::read(parts, group)?;
    let log = parts.seams.log.group(group).unwrap_or_default();
    let initial = standing.header();
    let Standing { stored, file, is_stored_good, purged_end } = standing;
    let shared = MachineShared {
        group,
        shard_id,
        log: parts.seams.log.clone(),
        state: state.clone(),
        snapshots: parts.seams.snapshots.clone(),
        offload: parts.seams.offload.clone(),
        exit: parts.seams.exit.clone(),
        cut: Mutex::new(None),
        wanted: Mutex::new(None),
        count: Mutex::new(None),
        births: parts.births.clone(),
        merges: parts.merges.clone(),
        shard: ArcSwap::from_pointee(initial.shard.clone().unwrap_or_else(catalog_shard)),
        header: ArcSwap::from_pointee(initial),
        applied: watch::Sender::new(Applied::default()),
        stopping: watch::Sender::new(false),
        catalog: (shard_id == ShardId::CATALOG).then(|| parts.catalog.clone()),
        #[cfg(feature = "chaos")]
        hooks: parts.seams.hooks.clone(),
    };
    let header = match (stored, file) {
        (Some(header), _) if is_stored_good => header,
        (_, Some((file, _))) => {
            tracing::info!(shard = group.shard, "rebuilding the state from its snapshot file");
            snapshot::load(&shared, &file)?
        }
        (_, None) => return Err(damaged(format!("{shard_id:?} has no snapshot file"))),
    };
    if header.applied.map_or(0, |id| id.1 + 1) < purged_end {
        return Err(damaged(format!(
            "{shard_id:?}: the log begins after the snapshot file and the state"
        )));
    }
    if log.lost.is_some() {
        // The log may go on behind what is applied: that must be as durable as the log is.
        shared.state.checkpoint()?;
    }
    snapshot::publish(&shared, header).map_err(damaged)?;
    Ok(shared)
}

/// What the catalog shows where a shard shows its state: it owns no keys.
fn catalog_shard() -> ShardState {
    let nothing = KeyRange { start: Key(0), end: Some(Key(0)) };
    ShardState::new(ShardDescriptor::found(ShardId::CATALOG, nothing, DEFAULT_CLASS, &[]))
}

fn raft_config(config: &ConsensusConfig) -> openraft::Config {
    openraft::Config {
        cluster_name: "anchorhold".into(),
        heartbeat_interval: config.heartbeat_ms,
        election_timeout_min: config.election_timeout_ms_min,
        election_timeout_max: config.election_timeout_ms_max,
        install_snapshot_timeout: 600_000,
        max_payload_entries: 64,
        snapshot_policy: openraft::SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: config.snapshot_entries_kept,
        replication_lag_threshold: config.snapshot_entries,
        enable_pre_vote: Some(true),
        // A leader that comes back proves itself anew: what it remembers may be long over.
        enable_leader_restore: Some(false),
        // `Replica::keep_silence` does that: this would keep a leader that has rested silent too.
        quorum_loss_probe_interval: None,
        // A follower whose disk lost entries gets them again; `fence` keeps it from doing harm.
        allow_log_reversion: Some(true),
        ..openraft::Config::default()
    }
}

/// How far a group's log is on disk, which apply waits for.
#[cfg_attr(not(feature = "chaos"), expect(unused_variables, reason = "nothing is broken"))]
fn durable(parts: &NodeParts, log: &GroupLogStorage) -> watch::Receiver<u64> {
    let durable = log.durable();
    #[cfg(feature = "chaos")]
    let durable = parts.seams.hooks.gate(durable);
    durable
}

/// Whether a replica's last vote is that of a leader.
fn had_a_leader(log: &dyn LogStore, group: GroupId) -> bool {
    let vote = log.group(group).and_then(|log| log.hard_state);
    vote.is_some_and(|vote| vote.committed)
}

/// Whether a command makes the shard larger. Everything else is how a full disk gets room.
fn adds_data(command: &Command) -> bool {
    match command.write {
        Write::Create(_) | Write::Update { .. } => true,
        Write::Delete { .. }
        | Write::Tick
        | Write::Retire
        | Write::Sweep { .. }
        | Write::PrepareSplit { .. }
        | Write::Split { .. }
        | Write::Merge(_) => false,
    }
}

impl Replica {
    /// Opens a replica and starts its Raft instance. It begins at rest if it may, and its group had
    /// a leader when it was last heard of.
    pub(crate) async fn open(
        parts: &NodeParts,
        group: GroupId,
        replica_id: ReplicaId,
        may_rest: bool,
    ) -> Result<Arc<Self>, StateError> {
        let shared = Arc::new(open_shared(parts, group)?);
        let log = GroupLogStorage::new(parts.seams.log.clone(), group, parts.seams.exit.clone());
        let (replaced, replacements) = watch::channel(0_u64);
        let machine = Machine::new(
            shared.clone(),
            parts.listener.clone(),
            durable(parts, &log),
            Box::new(move || replaced.send_modify(|count| *count += 1)),
        );
        let (machine, machine_ended) = machine.watched();
        let read_rounds = Arc::new(AtomicU64::new(0));
        let network = Network::of(parts, group, read_rounds.clone());
        let config = raft_config(&parts.config).validate().map_err(damaged)?;
        // Each replica, and each start of it, draws other election timeouts.
        let seed = parts.seams.seed ^ group.shard.rotate_left(32) ^ replica_id.0;
        let build = Raft::build(replica_id.0, Arc::new(config), network, log, machine);
        let raft = runtime::seeded(seed, build).await.map_err(damaged)?;
        let shard_id = ShardId(group.shard);
        let fence = fence::of(&*parts.seams.log, group);
        if let Some(fence) = &fence {
            tracing::error!(shard = group.shard, replica = replica_id.0, "{fence}");
            raft.runtime_config().elect(false);
        }
        let rests = may_rest
            && fence.is_none()
            && parts.config.quiesce_after_ms != 0
            && had_a_leader(&*parts.seams.log, group);
        raft.runtime_config().tick(!rests);
        let replica = Arc::new(Self {
            group,
            replica_id,
            proposer: Proposer::start(
                shard_id,
                raft.clone(),
                parts.stamper.clone(),
                &parts.config,
                parts.node_bytes.clone(),
            ),
            rounds: ReadRounds::start(raft.clone(), read_rounds),
            freshness: Freshness::new(parts.seams.clock.clone()),
            applied: shared.applied.subscribe(),
            raft: raft.clone(),
            machine_ended: tokio::sync::Mutex::new(Some(machine_ended)),
            shared,
            peers: parts.peers.clone(),
            seams: parts.seams.clone(),
            stamper: parts.stamper.clone(),
            admission: AtomicU8::default(),
            takes_entries: AtomicBool::new(true),
            campaigns: AtomicBool::new(true),
            log_full: AtomicBool::new(false),
            stopped: ArcSwap::default(),
            fenced: AtomicBool::new(fence.is_some()),
            leader_lease: Duration::from_millis(parts.config.election_timeout_ms_max),
            quiescence: if rests { Quiescence::begin_at_rest() } else { Quiescence::default() },
            silence: Mutex::default(),
        });
        if shard_id != ShardId::CATALOG {
            replica.tell_of_replacements(parts.listener.clone(), replacements);
        }
        runtime::seeded(seed, async { raft.run() }).await;
        Ok(replica)
    }

    /// Tells the listener that the replica is open, and each time that its records are replaced.
    fn tell_of_replacements(
        self: &Arc<Self>,
        listener: Arc<dyn Listener>,
        mut replacements: watch::Receiver<u64>,
    ) {
        listener.opened(self);
        let weak = Arc::downgrade(self);
        tokio::spawn(async move {
            while replacements.changed().await.is_ok() {
                if let Some(replica) = weak.upgrade() {
                    listener.replaced(&replica);
                }
            }
        });
    }

    pub(crate) fn raft(&self) -> &Raft {
        &self.raft
    }

    pub(crate) fn group(&self) -> GroupId {
        self.group
    }

    pub(crate) fn shared(&self) -> &Arc<MachineShared> {
        &self.shared
    }

    /// What the replica is kept from because its log has lost something.
    pub fn fence(&self) -> Option<Fence> {
        if !self.fenced.load(Ordering::Acquire) {
            return None;
        }
        fence::of(&*self.seams.log, self.group)
    }

    /// Whether it may be asked for its vote, or to lead.
    pub(crate) fn may_vote(&self) -> Result<(), String> {
        self.fence().map_or(Ok(()), |fence| Err(fence.to_string()))
    }

    /// Whether it may take part in anything.
    pub(crate) fn may_follow(&self) -> Result<(), String> {
        match self.fence() {
            Some(fence @ Fence::Closed) => Err(fence.to_string()),
            Some(Fence::CatchingUp { .. }) | None => Ok(()),
        }
    }

    /// Lets the replica campaign again once its log has all that it had lost.
    pub(crate) fn lift_fence(&self) {
        if self.fenced.load(Ordering::Acquire) && self.fence().is_none() {
            self.fenced.store(false, Ordering::Release);
            self.raft.runtime_config().elect(true);
            tracing::info!(shard = self.group.shard, "the log has again all that it had lost");
        }
    }

    /// Takes part in nothing from now on: its log says that it is lost.
    pub(crate) fn close(&self) {
        self.fenced.store(true, Ordering::Release);
        self.raft.runtime_config().elect(false);
    }

    /// Founds the group, if nobody has yet: every voter may do this, with the same members.
    pub(crate) async fn found(&self) {
        let descriptor = self.state().descriptor.clone();
        let members = membership_of(&descriptor).nodes;
        if let Err(error) = self.raft.initialize(members).await {
            tracing::debug!(shard = self.group.shard, %error, "the group was founded before");
        }
    }

    /// The shard.
    pub fn shard_id(&self) -> ShardId {
        ShardId(self.group.shard)
    }

    /// This replica's id.
    pub fn replica_id(&self) -> ReplicaId {
        self.replica_id
    }

    /// The applied state of the shard.
    pub fn state(&self) -> Arc<ShardState> {
        self.shared.shard.load_full()
    }

    /// What operators see.
    pub fn status(&self) -> ReplicaStatus {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let matched = metrics.replication.iter().flatten();
        let fence = self.fence();
        ReplicaStatus {
            shard_id: self.shard_id(),
            replica_id: self.replica_id,
            role: Self::role_of(&metrics),
            term: metrics.current_term,
            leader: self.leader_of(&metrics),
            voters: metrics.membership_config.membership().voter_ids().count(),
            last_index: metrics.last_log_index,
            applied_index: self.applied.borrow().end.checked_sub(1),
            snapshot_index: metrics.snapshot.as_ref().map(|id| id.index),
            matched: matched
                .map(|(id, matched)| (ReplicaId(*id), matched.as_ref().map(|id| id.index)))
                .collect(),
            is_joint: 1 < metrics.membership_config.membership().get_joint_config().len(),
            is_lost: fence == Some(Fence::Closed),
            fence,
        }
    }

    /// Whether its own log names it as a member: then it may have promised something.
    pub(crate) fn knows_itself_as_member(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().get_node(&self.replica_id.0).is_some()
    }

    /// Why the Raft instance ended by itself; `None` while it runs, and after `stop`.
    pub(crate) fn failure(&self) -> Option<String> {
        self.check_stopped().ok()?;
        let metrics = self.raft.metrics();
        let failed = metrics.borrow_watched().running_state.clone().err()?;
        Some(format!("the replica of {} has failed: {failed}", self.shard_id()))
    }

    fn check_stopped(&self) -> Result<(), String> {
        let stopped = self.stopped.load();
        if stopped.is_empty() { Ok(()) } else { Err(String::clone(&stopped)) }
    }

    /// Takes over what the node's fitness demands of it.
    pub(crate) fn set_conduct(&self, conduct: &Conduct) {
        self.admission.store(conduct.admission.number(), Ordering::Relaxed);
        self.takes_entries.store(conduct.takes_entries, Ordering::Relaxed);
        self.campaigns.store(conduct.campaigns, Ordering::Relaxed);
        // However fit the node is: what the log has lost might be what was committed.
        let is_whole = !self.fenced.load(Ordering::Acquire);
        self.raft.runtime_config().elect(conduct.campaigns && is_whole);
    }

    /// Whether it may try to lead.
    pub(crate) fn may_campaign(&self) -> bool {
        self.campaigns.load(Ordering::Relaxed) && self.fence().is_none()
    }

    /// Whether entries from the leader may be stored here.
    pub(crate) fn takes_entries(&self) -> bool {
        self.takes_entries.load(Ordering::Relaxed)
    }

    /// Whether its log is longer than one shard's may be.
    pub(crate) fn set_log_full(&self, is_full: bool) {
        if self.log_full.swap(is_full, Ordering::Relaxed) != is_full {
            tracing::warn!(shard = self.group.shard, is_full, "the shard's log is at its bound");
        }
    }

    /// Refuses commands that add data while there is no room for it.
    fn admit(&self, commands: &[Command]) -> Result<(), ProposeError> {
        let admission = Admission::from_number(self.admission.load(Ordering::Relaxed));
        let log_full = self.log_full.load(Ordering::Relaxed);
        if admission == Admission::All && !log_full || !commands.iter().any(adds_data) {
            return Ok(());
        }
        let shard = self.shard_id();
        if log_full {
            let bytes = self.seams.log.group_bytes(self.group);
            let waiting_bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            return Err(ProposeError::Busy { shard, waiting_bytes });
        }
        match admission {
            Admission::All => Ok(()),
            Admission::NoData => Err(ProposeError::DiskFull { shard }),
            Admission::Elsewhere => Err(ProposeError::NotLeader { shard, leader: None }),
        }
    }

    /// Proposes commands and waits for their outcomes, in order. Commands that wait together share
    /// one Raft entry. The epoch of each is checked here and again when applied.
    ///
    /// # Errors
    /// [`ProposeError`]; only `OutcomeUnknown` and `Stopped` leave open whether it took effect.
    pub async fn propose(
        &self,
        commands: Vec<Command>,
        timeout: Duration,
    ) -> Result<Vec<Outcome>, ProposeError> {
        let shard = self.shard_id();
        self.check_stopped().map_err(|reason| ProposeError::Stopped { shard, reason })?;
        self.rouse().await;
        if !self.is_leader() {
            return Err(ProposeError::NotLeader { shard, leader: self.leader() });
        }
        let state = self.state();
        let epoch = state.descriptor.epoch;
        let stale = |command: &Command| {
            (command.epoch.incarnation, command.epoch.version) != (epoch.incarnation, epoch.version)
        };
        if commands.iter().any(stale) {
            let descriptor = Box::new(state.descriptor.clone());
            return Err(ProposeError::StaleEpoch { shard, descriptor });
        }
        self.admit(&commands)?;
        let receiver = self.proposer.submit(commands)?;
        match self.while_leading(timeout, receiver).await {
            Some(Ok(answer)) => answer,
            Some(Err(_)) => {
                Err(ProposeError::Stopped { shard, reason: "the round was dropped".into() })
            }
            None => Err(ProposeError::OutcomeUnknown { shard }),
        }
    }

    /// Puts commands into the log as they are: like those whose route was right when it was checked
    /// and is not when they are applied.
    ///
    /// # Errors
    /// [`ProposeError`] if they are not taken.
    #[cfg(feature = "chaos")]
    pub fn propose_unchecked(
        &self,
        commands: Vec<Command>,
    ) -> Result<oneshot::Receiver<Result<Vec<Outcome>, ProposeError>>, ProposeError> {
        self.proposer.submit(commands)
    }

    /// Proposes a catalog command on the catalog's leader.
    pub(crate) async fn propose_catalog(
        &self,
        command: CatalogCommand,
        timeout: Duration,
    ) -> Result<CatalogOutcome, ProposeError> {
        let shard = self.shard_id();
        let stamp = Stamp { time: self.stamper.now() };
        let payload = normal_payload(&row::encode_catalog_entry(&CatalogEntry {
            stamp,
            commands: vec![command],
        }));
        match self.while_leading(timeout, self.raft.client_write(payload)).await {
            Some(Ok(response)) => match response.data {
                Reply::Catalog(outcome) => Ok(CatalogOutcome::clone(&outcome)),
                Reply::None | Reply::Shard(_) => Err(ProposeError::OutcomeUnknown { shard }),
            },
            Some(Err(error)) => Err(propose_error(shard, &error)),
            None => Err(ProposeError::OutcomeUnknown { shard }),
        }
    }

    /// One read round on the leader; what a follower's question gets.
    pub(crate) async fn lead_read_round(&self) -> Result<u64, String> {
        self.rouse().await;
        if self.has_lost_quorum() {
            // Its question to the followers would renew their leases.
            return Err("no quorum".to_owned());
        }
        self.rounds.confirm().await.map_err(|failure| match failure {
            RoundFailure::NotLeader => "not the leader".to_owned(),
            RoundFailure::NoQuorum => "no quorum".to_owned(),
            RoundFailure::Stopped(reason) => reason,
        })
    }

    /// Hands leadership to this replica if the leader says so.
    pub(crate) async fn take_over(&self, transfer: TransferMessage) -> Result<(), String> {
        self.stir();
        let request = openraft::raft::TransferLeaderRequest::<TypeConfig>::new(
            transfer.from_leader.into(),
            transfer.to,
            transfer.last.map(wire::from_wire_log_id),
        );
        match self.raft.handle_transfer_leader(request).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(refused)) => Err(refused.to_string()),
            Err(fatal) => Err(fatal.to_string()),
        }
    }

    /// Shard time as this replica may use it to judge expiry: the applied shard time.
    pub fn shard_time(&self) -> Timestamp {
        self.shared.shard.load().shard_time
    }

    /// A stored anchor, visible or not.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub fn anchor(&self, id: AnchorId) -> Result<Option<Arc<Anchor>>, StateError> {
        let shard = self.shared.shard.load();
        let (state, count) = (&*self.shared.state, &self.shared.count);
        StoredRecords { state, shard: &shard, count }.anchor(id)
    }

    /// Visits stored anchors of a range in id order until `visit` breaks. Only the part of the
    /// range that this shard owns is visited.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub fn scan_anchors(
        &self,
        range: KeyRange,
        visit: &mut dyn FnMut(Arc<Anchor>) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        self.scan_rows(range, &mut |key, value| match key {
            row::RowKey::Anchor(_) => {
                row::decode_anchor(value).map(|anchor| visit(Arc::new(anchor))).map_err(damaged)
            }
            row::RowKey::Operation(..) => Ok(ControlFlow::Continue(())),
        })
    }

    /// Visits the ids of stored anchors of a range in order until `visit` breaks.
    pub(crate) fn scan_ids(
        &self,
        range: KeyRange,
        visit: &mut dyn FnMut(AnchorId) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        self.scan_rows(range, &mut |key, _| match key {
            row::RowKey::Anchor(id) => Ok(visit(id)),
            row::RowKey::Operation(..) => Ok(ControlFlow::Continue(())),
        })
    }

    /// Whether the rows behind the key of a split that is near are still being counted.
    pub(crate) fn is_counting(&self) -> bool {
        self.shared.count.lock().as_ref().is_some_and(|count| !count.is_complete())
    }

    /// Visits all stored anchors and dedup entries of the shard in key order, for whoever builds
    /// derived state from them.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub fn scan_records(
        &self,
        visit_anchor: &mut dyn FnMut(Arc<Anchor>),
        visit_operation: &mut dyn FnMut(AnchorId, OperationId, Timestamp),
    ) -> Result<(), StateError> {
        self.scan_rows(KeyRange::FULL, &mut |key, value| {
            match key {
                row::RowKey::Anchor(_) => {
                    visit_anchor(Arc::new(row::decode_anchor(value).map_err(damaged)?));
                }
                row::RowKey::Operation(id, operation) => {
                    let record = row::decode_operation(value).map_err(damaged)?;
                    visit_operation(id, operation, record.time);
                }
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    fn scan_rows(&self, range: KeyRange, visit: &mut VisitRow<'_>) -> Result<(), StateError> {
        let range = range.intersect(&self.shared.shard.load().descriptor.range);
        if range.is_empty() {
            return Ok(());
        }
        let (start, end) = keys::records(range);
        let mut failed = None;
        self.shared.state.scan(&start[..]..&end[..], &mut |key, value| {
            let parsed = row::RowKey::parse(&key[1..]).map_err(damaged);
            match parsed.and_then(|key| visit(key, value)) {
                Ok(flow) => flow,
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// Makes a new snapshot of the state as it is now, in place of one that is damaged.
    pub async fn renew_snapshot(&self) {
        if let Err(error) = self.raft.trigger().snapshot().await {
            tracing::warn!(shard = self.group.shard, %error, "no new snapshot");
        }
    }

    /// Whether it was stopped: its rows may be another's, or gone.
    pub fn is_stopped(&self) -> bool {
        self.check_stopped().is_err()
    }

    /// Stops the replica. When this comes back it writes nothing to the state any more.
    pub(crate) async fn stop(&self, reason: &str) {
        self.stopped.store(Arc::new(reason.to_owned()));
        self.shared.stopping.send_replace(true);
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(shard = self.group.shard, %error, "the replica did not stop cleanly");
        }
        let mut ended = self.machine_ended.lock().await;
        if let Some(ended) = ended.take() {
            drop(ended.await);
        }
        // What was being copied out of it is not finished.
        *self.shared.cut.lock() = None;
    }
}
