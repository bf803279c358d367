//! The catalog: what the cluster knows about itself, and what a committed command does to it.
//!
//! [`CatalogState`] holds the cluster's regions, zones, nodes, accounts, classes, the index of shards
//! and the operators under way. [`apply`] decides what one command changes, row by row, and [`CatalogState::absorb`]
//! makes the change: each changed entity is one row on disk ([`CatalogChange::row`]), and
//! [`CatalogState::from_rows`] reads them back.
//!
//! Invariants: ids, account numbers and shard ids are never reused; an account's shards cover its
//! key range without gap or overlap; a shard's descriptor is replaced only by a newer epoch.
//!
//! Not here: what nodes report every second (soft state), where replicas should be (`placement`).

mod account;
mod change;
mod command;
mod node;
mod operator;
mod record;
mod shard;
mod state;

pub use change::CatalogChange;
pub use command::{CatalogCommand, CatalogEntry, CatalogOutcome, CatalogRejection};
pub use operator::{OPERATORS_MAX, Operator, OperatorRecord, Reason, SchedulerRecord, Step};
pub use record::{
    AccountRecord, AccountState, ApiKey, CatalogOperation, ClassKind, ClassRecord, ClusterRecord,
    Counters, NodeRecord, NodeState, RegionRecord, Wish, ZoneRecord,
};
pub use state::CatalogState;

use self::shard::Layout;
use crate::{ClassId, RequestId, Stamp, Timestamp};

/// How long the outcome of a request is kept, in milliseconds of catalog time.
pub const OPERATION_KEEP_MS: u64 = 24 * 60 * 60 * 1000;
/// Requests whose outcome is kept, at most.
pub const OPERATIONS_MAX: usize = 100_000;
/// Old requests that one command forgets, at most.
const OPERATIONS_FORGOTTEN_MAX: usize = 16;
/// Valid API keys of one account, at most.
pub const ACCOUNT_KEYS_MAX: usize = 2;
/// Shards that one command lays out, at most.
pub const SHARDS_MAX: usize = 4096;
/// Characters of a name, at most.
pub const NAME_LENGTH_MAX: usize = 63;
/// Account numbers that a class gets at a time.
pub const ACCOUNT_BLOCK: u32 = 4096;
/// The class of accounts that ask for none.
pub const DEFAULT_CLASS: ClassId = ClassId(1);
/// That class's name.
pub const DEFAULT_CLASS_NAME: &str = "zonal";

/// Whether something can be the name of a cluster, region, zone, account or class: 1 to 63 lower
/// case letters, digits, `-`, `_` and `.`, the first a letter or digit.
pub fn is_valid_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= NAME_LENGTH_MAX
        && name.bytes().next().is_some_and(is_plain)
        && name.bytes().all(|byte| is_plain(byte) || matches!(byte, b'-' | b'_' | b'.'))
}

/// Decides what one committed command changes. Deterministic and total.
///
/// A command with a request id that was seen before gets the outcome of the first time.
pub fn apply(
    state: &CatalogState,
    stamp: Stamp,
    command: &CatalogCommand,
) -> (CatalogOutcome, Vec<CatalogChange>) {
    let time = state.counters.time.max(stamp.time);
    let request_id = command.request_id();
    let digest = crate::digest::content_digest(command);
    if let Some(kept) = request_id.and_then(|id| state.operations.get(&id)) {
        let outcome = if kept.digest == digest {
            kept.outcome.clone()
        } else {
            CatalogOutcome::Rejected(CatalogRejection::RequestIdReused)
        };
        return (outcome, Vec::new());
    }
    if request_id.is_some() && OPERATIONS_MAX <= state.operations.len() - due(state, time).count() {
        return (CatalogOutcome::Rejected(CatalogRejection::OperationsFull), Vec::new());
    }
    let mut draft = Draft { state, time, counters: state.counters, changes: Vec::new() };
    match draft.run(command) {
        Ok(outcome) => {
            let changes = draft.finish(request_id, digest, &outcome);
            (outcome, changes)
        }
        Err(rejection) => (CatalogOutcome::Rejected(rejection), Vec::new()),
    }
}

/// Applies the commands of an entry one after the other, each seeing the changes of those before.
pub fn apply_entry(
    state: &mut CatalogState,
    entry: &CatalogEntry,
) -> (Vec<CatalogOutcome>, Vec<CatalogChange>) {
    let mut outcomes = Vec::with_capacity(entry.commands.len());
    let mut changes = Vec::new();
    for command in &entry.commands {
        let (outcome, command_changes) = apply(state, entry.stamp, command);
        for change in &command_changes {
            state.absorb(change);
        }
        outcomes.push(outcome);
        changes.extend(command_changes);
    }
    (outcomes, changes)
}

/// The kept requests that may be forgotten, a few at a time, in order of their ids.
fn due(state: &CatalogState, time: Timestamp) -> impl Iterator<Item = RequestId> {
    let is_due =
        move |kept: &CatalogOperation| kept.time.0.saturating_add(OPERATION_KEEP_MS) <= time.0;
    let operations = state.operations.iter();
    operations
        .filter(move |(_, kept)| is_due(kept))
        .map(|(id, _)| *id)
        .take(OPERATIONS_FORGOTTEN_MAX)
}

/// A command at work: what it reads, and what it has changed so far.
struct Draft<'a> {
    state: &'a CatalogState,
    time: Timestamp,
    counters: Counters,
    changes: Vec<CatalogChange>,
}

impl Draft<'_> {
    fn run(&mut self, command: &CatalogCommand) -> Result<CatalogOutcome, CatalogRejection> {
        if let CatalogCommand::Bootstrap { cluster_id, name } = command {
            return self.bootstrap(*cluster_id, name);
        }
        let cluster_epoch =
            self.state.cluster.as_ref().ok_or(CatalogRejection::NotBootstrapped)?.epoch;
        match command {
            CatalogCommand::Bootstrap { cluster_id, name } => self.bootstrap(*cluster_id, name),
            CatalogCommand::RegisterNode {
                instance,
                region,
                zone,
                peer_address,
                client_address,
                version,
            } => self.register_node(
                cluster_epoch,
                NodeRecord {
                    node_id: crate::NodeId(0),
                    instance: *instance,
                    region: region.clone(),
                    zone: zone.clone(),
                    peer_address: peer_address.clone(),
                    client_address: client_address.clone(),
                    version: version.clone(),
                    state: NodeState::Joining,
                    wish: Wish::Serve,
                    maintenance_until: None,
                },
            ),
            CatalogCommand::SetNodeState { node_id, state } => {
                self.set_node_state(*node_id, *state)
            }
            CatalogCommand::SetNodeWish { node_id, wish, maintenance_until } => {
                self.set_node_wish(*node_id, *wish, *maintenance_until)
            }
            CatalogCommand::StartOperators { operators, deadline } => {
                self.start_operators(operators, *deadline)
            }
            CatalogCommand::FinishOperator { shard_id, number } => {
                self.finish_operator(*shard_id, *number)
            }
            CatalogCommand::SetScheduler { scheduler } => self.set_scheduler(*scheduler),
            CatalogCommand::CreateAccount { name, class, keys, cuts, placements, .. } => {
                self.create_account(cluster_epoch, name, *class, keys, cuts, placements)
            }
            CatalogCommand::SetAccountState { account, state } => {
                self.set_account_state(*account, *state)
            }
            CatalogCommand::AddKey { account, key, .. } => self.add_key(*account, key, false),
            CatalogCommand::RotateKey { account, key, .. } => self.add_key(*account, key, true),
            CatalogCommand::RevokeKey { account, key_id, .. } => self.revoke_key(*account, key_id),
            CatalogCommand::LayOut { account, replaces, retired_at, cuts, placements, .. } => {
                let layout = Layout { cuts, placements, founded_at: *retired_at };
                self.lay_out(cluster_epoch, *account, replaces, layout)
            }
            CatalogCommand::UpdateShard { descriptor } => self.update_shard(descriptor),
            CatalogCommand::ReserveShard { .. } => Ok(self.reserve_shard(cluster_epoch)),
            CatalogCommand::UpdateShards { descriptors } => self.update_shards(descriptors),
        }
    }

    fn bootstrap(
        &mut self,
        cluster_id: u128,
        name: &str,
    ) -> Result<CatalogOutcome, CatalogRejection> {
        if let Some(cluster) = &self.state.cluster {
            return if cluster.cluster_id == cluster_id {
                Ok(CatalogOutcome::Bootstrapped { cluster_id })
            } else {
                Err(CatalogRejection::AlreadyBootstrapped { cluster_id: cluster.cluster_id })
            };
        }
        check_name(name)?;
        self.changes.push(CatalogChange::Cluster(ClusterRecord {
            cluster_id,
            name: name.to_owned(),
            epoch: 1,
            create_time: self.time,
        }));
        self.changes.push(CatalogChange::Class(ClassRecord {
            class_id: DEFAULT_CLASS,
            name: DEFAULT_CLASS_NAME.to_owned(),
            kind: ClassKind::Zonal,
            home: None,
            account_next: 0,
            account_end: 0,
        }));
        Ok(CatalogOutcome::Bootstrapped { cluster_id })
    }

    /// Adds what goes with every change: the kept request, and the counters.
    fn finish(
        mut self,
        request_id: Option<RequestId>,
        digest: u64,
        outcome: &CatalogOutcome,
    ) -> Vec<CatalogChange> {
        if let Some(request_id) = request_id {
            let forgotten = due(self.state, self.time).map(CatalogChange::OperationForgotten);
            self.changes.extend(forgotten);
            self.changes.push(CatalogChange::Operation(CatalogOperation {
                request_id,
                digest,
                time: self.time,
                outcome: outcome.clone(),
            }));
        }
        if !self.changes.is_empty() {
            self.counters.time = self.time;
            self.counters.revision += 1;
            self.changes.push(CatalogChange::Counters(self.counters));
        }
        self.changes
    }
}

fn check_name(name: &str) -> Result<(), CatalogRejection> {
    if is_valid_name(name) {
        Ok(())
    } else {
        Err(CatalogRejection::InvalidName { name: name.chars().take(NAME_LENGTH_MAX).collect() })
    }
}

#[cfg(test)]
mod tests;
