//! Requests that touch several shards: split by shard, ask concurrently, put together again.
//!
//! Each answer says which shards contributed. A shard that has changed meanwhile is routed anew;
//! one that does not answer fails its own items only.

mod near;
mod page;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anchorhold_model::{
    AccountNumber, Anchor, AnchorId, Command, Key, OperationId, Outcome, ShardDescriptor, ShardId,
    Version, Write,
};
use anchorhold_proto::convert::{FilterSpec, ReadLevel, ReadSpec};
use anchorhold_proto::{Demand, Failure, Reason, SessionToken};
use futures::StreamExt;
use futures::stream;

use crate::clock::Deadline;
use crate::core::Core;
use crate::request::{Level, Read, Seen, Served, ShardError, ShardReply, ShardRequest};

pub use self::near::{Found, Near, Unanswered};
pub use self::page::{Page, PageQuery};

/// Rounds of routing that one request takes, at most: each begins because a shard has changed.
const ROUTINGS_MAX: usize = 8;
/// Commands that travel to a shard together, at most.
const CHUNK_COMMANDS_MAX: usize = 256;
/// Bytes of commands that travel to a shard together, about.
const CHUNK_BYTES_MAX: usize = 512 << 10;

/// One write of a request.
#[derive(Clone, Debug)]
pub struct RoutedWrite {
    /// The key that it is routed by.
    pub key: Key,
    /// Names it.
    pub operation: OperationId,
    /// What to do.
    pub write: Write,
}

/// The items of a request that go to one shard together.
type Lot = (Arc<ShardDescriptor>, Vec<usize>);

/// Which shards contributed to an answer.
#[derive(Clone, Debug, Default)]
pub struct Contributions {
    by_start: BTreeMap<(Key, ShardId), Served>,
}

impl Contributions {
    /// Notes one.
    pub fn note(&mut self, served: Served) {
        self.by_start
            .entry((served.range.start, served.shard))
            .and_modify(|known| known.revision = known.revision.max(served.revision))
            .or_insert(served);
    }

    /// In key order.
    pub fn iter(&self) -> impl Iterator<Item = &Served> {
        self.by_start.values()
    }

    /// What a session has seen by this answer.
    pub fn session(&self) -> SessionToken {
        let mut token = SessionToken::default();
        for served in self.iter() {
            let version = Version { incarnation: served.incarnation, revision: served.revision };
            token.note(&served.range, version);
        }
        token
    }
}

impl Core {
    /// Does writes, each at its shard. Results are in the order of the writes.
    pub async fn write_all(
        &self,
        writes: Vec<RoutedWrite>,
        deadline: &Deadline,
    ) -> (Vec<Result<Outcome, Failure>>, Contributions) {
        let mut contributions = Contributions::default();
        let mut results: Vec<Option<Result<Outcome, ShardError>>> = vec![None; writes.len()];
        let mut open: Vec<usize> = (0..writes.len()).collect();
        // Of these a try at a shard that has changed since may have taken effect.
        let mut unknown: BTreeSet<usize> = BTreeSet::new();
        for _ in 0..ROUTINGS_MAX {
            let (chunks, lost) = self.chunks(&writes, &open);
            for item in lost {
                results[item] = Some(Err(ShardError::NoReplica));
            }
            let asked = chunks.into_iter().map(|(shard, items)| {
                let commands = items.iter().map(|item| command(&shard, &writes[*item]));
                let request = ShardRequest::Write { commands: commands.collect() };
                async move { (items, self.ask(&shard, request, deadline).await) }
            });
            let answers: Vec<_> =
                stream::iter(asked).buffer_unordered(self.limits.fan_out_max).collect().await;
            open.clear();
            for (items, answer) in answers {
                match answer {
                    Ok(ShardReply::Written { outcomes, served }) => {
                        contributions.note(served);
                        for (item, outcome) in items.into_iter().zip(outcomes) {
                            results[item] = Some(Ok(outcome));
                        }
                    }
                    Err(ShardError::StaleEpoch { maybe_done, .. }) => {
                        unknown.extend(items.iter().filter(|_| maybe_done));
                        open.extend(items);
                    }
                    Ok(_) => set_all(&mut results, &items, &unexpected()),
                    Err(error) => set_all(&mut results, &items, &error),
                }
            }
            if open.is_empty() || deadline.has_passed() {
                break;
            }
        }
        let results = results.into_iter().enumerate().map(|(item, result)| match result {
            Some(Ok(outcome)) => Ok(outcome),
            Some(Err(_)) | None if unknown.contains(&item) => {
                Err(self.failure(&ShardError::OutcomeUnknown, None))
            }
            Some(Err(error)) => Err(self.failure(&error, None)),
            None => Err(Failure::new(Reason::StaleEpoch, "the shards keep changing; try again")),
        });
        (results.collect(), contributions)
    }

    /// Splits the open writes by shard, and large lots further. Also those that no shard owns.
    fn chunks(&self, writes: &[RoutedWrite], open: &[usize]) -> (Vec<Lot>, Vec<usize>) {
        let table = self.routes.table();
        let mut by_shard: BTreeMap<ShardId, Lot> = BTreeMap::new();
        let mut lost = Vec::new();
        for item in open {
            match table.of_key(writes[*item].key) {
                Some(shard) => {
                    let lot = by_shard.entry(shard.shard_id);
                    lot.or_insert_with(|| (Arc::clone(shard), Vec::new())).1.push(*item);
                }
                None => lost.push(*item),
            }
        }
        let mut chunks = Vec::new();
        for (shard, items) in by_shard.into_values() {
            let mut chunk = Vec::new();
            let mut bytes = 0;
            for item in items {
                let size = size(&writes[item].write);
                let is_full = CHUNK_COMMANDS_MAX <= chunk.len() || CHUNK_BYTES_MAX < bytes + size;
                if is_full && !chunk.is_empty() {
                    chunks.push((Arc::clone(&shard), std::mem::take(&mut chunk)));
                    bytes = 0;
                }
                bytes += size;
                chunk.push(item);
            }
            chunks.push((shard, chunk));
        }
        (chunks, lost)
    }

    /// Reads anchors, each at its shard. Results are in the order of the ids.
    pub async fn get_all(
        &self,
        ids: &[AnchorId],
        read: &ReadSpec,
        deadline: &Deadline,
    ) -> (Vec<Result<Option<Arc<Anchor>>, Failure>>, Contributions) {
        let mut contributions = Contributions::default();
        let mut results: Vec<Option<Result<Option<Arc<Anchor>>, Failure>>> =
            (0..ids.len()).map(|_| None).collect();
        let mut open: Vec<usize> = (0..ids.len()).collect();
        for _ in 0..ROUTINGS_MAX {
            let table = self.routes.table();
            let mut by_shard: BTreeMap<ShardId, Lot> = BTreeMap::new();
            for item in open.drain(..) {
                match table.of_key(ids[item].key()) {
                    Some(shard) => {
                        let lot = by_shard.entry(shard.shard_id);
                        lot.or_insert_with(|| (Arc::clone(shard), Vec::new())).1.push(item);
                    }
                    None => results[item] = Some(Err(self.failure(&ShardError::NoReplica, None))),
                }
            }
            let asked = by_shard.into_values().map(|(shard, items)| async move {
                let wanted = items.iter().map(|item| ids[*item]).collect();
                (items, self.get_at(&shard, wanted, read, deadline).await)
            });
            let answers: Vec<_> =
                stream::iter(asked).buffer_unordered(self.limits.fan_out_max).collect().await;
            for (items, answer) in answers {
                match answer {
                    Ok((anchors, served)) => {
                        contributions.note(served);
                        for (item, anchor) in items.into_iter().zip(anchors) {
                            results[item] = Some(Ok(anchor));
                        }
                    }
                    Err(Asked::Moved) => open.extend(items),
                    Err(Asked::Failed(failure)) => {
                        for item in items {
                            results[item] = Some(Err(failure.clone()));
                        }
                    }
                }
            }
            if open.is_empty() || deadline.has_passed() {
                break;
            }
        }
        let moved = || Failure::new(Reason::StaleEpoch, "the shards keep changing; try again");
        let results = results.into_iter().map(|result| result.unwrap_or_else(|| Err(moved())));
        (results.collect(), contributions)
    }

    /// Whether an account holds any visible anchor.
    ///
    /// # Errors
    /// A [`Failure`] if a shard does not answer.
    pub async fn has_anchors(
        &self,
        account: AccountNumber,
        deadline: &Deadline,
    ) -> Result<bool, Failure> {
        let query = PageQuery {
            account,
            space: None,
            region: None,
            filter: FilterSpec::default(),
            after: None,
            limit: 1,
            read: ReadSpec { level: ReadLevel::Linearizable, session: SessionToken::default() },
            passes_over: false,
        };
        let page = self.page(&query, deadline).await;
        match page.failure {
            Some((_, failure)) => Err(failure),
            None => Ok(!page.anchors.is_empty()),
        }
    }

    async fn get_at(
        &self,
        shard: &Arc<ShardDescriptor>,
        ids: Vec<AnchorId>,
        read: &ReadSpec,
        deadline: &Deadline,
    ) -> Result<(Vec<Option<Arc<Anchor>>>, Served), Asked> {
        let read = read_at(shard, read)?;
        match self.ask(shard, ShardRequest::Get { ids, read }, deadline).await {
            Ok(ShardReply::Got { anchors, served }) => Ok((anchors, served)),
            answer => Err(self.asked(answer, read)),
        }
    }

    /// Why an answer is none.
    fn asked(&self, answer: Result<ShardReply, ShardError>, read: Read) -> Asked {
        match answer {
            Err(ShardError::StaleEpoch { .. }) => Asked::Moved,
            Err(error) => Asked::Failed(self.failure(&error, Some(read))),
            Ok(_) => Asked::Failed(self.failure(&unexpected(), Some(read))),
        }
    }
}

/// Why a shard gave no answer to a read.
enum Asked {
    /// It has changed: route anew.
    Moved,
    /// What the client is told.
    Failed(Failure),
}

impl From<Failure> for Asked {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// How to read one shard for a session.
fn read_at(shard: &ShardDescriptor, read: &ReadSpec) -> Result<Read, Failure> {
    let level = match read.level {
        ReadLevel::Linearizable => Level::Linearizable,
        ReadLevel::BoundedStaleness(staleness_max) => Level::BoundedStaleness { staleness_max },
        ReadLevel::Local => Level::Local,
    };
    let incarnation = shard.epoch.incarnation;
    let at_least = match read.session.demand(&shard.range, incarnation) {
        Demand::Revision(0) => None,
        Demand::Revision(revision) => Some(Seen { incarnation, revision }),
        Demand::LaterIncarnation => {
            let message = "the session saw a later state of the shard than this node knows of";
            return Err(Failure::new(Reason::SessionBehind, message));
        }
        Demand::EarlierIncarnation => {
            let message = "the shard was re-founded since the session saw it";
            return Err(Failure::new(Reason::SessionLost, message));
        }
    };
    Ok(Read { level, at_least })
}

fn command(shard: &ShardDescriptor, routed: &RoutedWrite) -> Command {
    Command { operation: routed.operation, epoch: shard.epoch, write: routed.write.clone() }
}

fn set_all(
    results: &mut [Option<Result<Outcome, ShardError>>],
    items: &[usize],
    error: &ShardError,
) {
    for item in items {
        results[*item] = Some(Err(error.clone()));
    }
}

fn unexpected() -> ShardError {
    ShardError::Misunderstood { reason: "an answer to another question".to_owned() }
}

/// About how many bytes a write takes.
fn size(write: &Write) -> usize {
    const FIXED: usize = 200;
    let text = |anchor: &Anchor| {
        let properties = anchor.properties.iter().map(|(key, value)| key.len() + value.len());
        let tags = anchor.tags.iter().map(String::len);
        properties.chain(tags).sum::<usize>() + anchor.creator.len()
    };
    match write {
        Write::Create(anchor) => FIXED + text(anchor),
        Write::Update { patch, .. } => {
            let properties = patch.properties.iter().flatten();
            let properties = properties.map(|(key, value)| key.len() + value.len());
            FIXED + properties.sum::<usize>()
        }
        Write::Delete { .. }
        | Write::Tick
        | Write::Retire
        | Write::Sweep { .. }
        | Write::PrepareSplit { .. }
        | Write::Merge(_)
        | Write::Split { .. } => FIXED,
    }
}
