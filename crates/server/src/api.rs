//! The gRPC services: one method, one straight path.
//!
//! Every call goes through [`Door::call`]: authorize, admit, measure, then the method's own work,
//! which gets plain checked values and gives plain values or a [`Failure`]. Here is also the one
//! place where what a shard says becomes what a client is told.

mod account;
mod anchor;
mod cluster;
mod locate;
mod placement;
mod reply;
mod routing;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anchorhold_model::{AccountNumber, NodeId, Rejection, RequestId};
use anchorhold_proto::failure::{METADATA_CURRENT_ETAG, METADATA_LEADER, METADATA_LEADER_NODE_ID};
use anchorhold_proto::{Failure, Reason, etag};
use metrics::counter;
use parking_lot::RwLock;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

use crate::authorize::{self, Audience, Caller};
use crate::clock::Deadline;
use crate::core::Core;
use crate::request::{Level, Read, ShardError};
use crate::telemetry::{MethodMetrics, name};

pub use self::account::Accounts;
pub use self::anchor::Anchors;
pub use self::cluster::Cluster;
pub use self::locate::Locates;
pub use self::placement::Placement;
pub use self::routing::Routing;

/// What every service holds: the way in.
#[derive(Clone)]
pub struct Door {
    core: Arc<Core>,
    methods: Arc<RwLock<BTreeMap<&'static str, MethodMetrics>>>,
}

/// One authorized call.
pub struct Call {
    /// The node.
    pub core: Arc<Core>,
    /// Who calls.
    pub caller: Caller,
    /// When the answer is of no use any more.
    pub deadline: Deadline,
}

/// Kept open for the reply to travel before the client gives up.
const REPLY_MARGIN: Duration = Duration::from_millis(20);
/// When a client that was refused for load may come back.
const OVERLOAD_PAUSE: Duration = Duration::from_millis(100);
/// When a client may try again while a leader is elected.
const ELECTION_PAUSE: Duration = Duration::from_millis(200);

impl Door {
    /// The way into a node.
    pub fn new(core: Arc<Core>) -> Self {
        Self { core, methods: Arc::default() }
    }

    /// Takes one call from the wire to the wire.
    ///
    /// # Errors
    /// A status with a typed reason.
    pub async fn call<Question, Answer, Work>(
        &self,
        method: &'static str,
        audience: Audience,
        request: Request<Question>,
        work: impl FnOnce(Call, Question) -> Work,
    ) -> Result<Response<Answer>, Status>
    where
        Work: Future<Output = Result<Answer, Failure>>,
    {
        let begun = self.core.clock.monotonic();
        let result = self.admit(audience, request, work).await;
        let took = self.core.clock.monotonic().saturating_sub(begun);
        self.count(method, result.is_ok(), took);
        result.map(Response::new).map_err(|failure| {
            let code = code_text(failure.reason.code());
            counter!(name::RPC_TOTAL, "method" => method, "code" => code).increment(1);
            // Codes only: a message may name what a log must not.
            tracing::debug!(method, reason = failure.reason.as_str(), "a call failed");
            Status::from(failure)
        })
    }

    /// Counts a call by handles that are looked up once per method: looking one up by its labels
    /// takes as long as some whole requests.
    fn count(&self, method: &'static str, is_ok: bool, took: Duration) {
        if let Some(metrics) = self.methods.read().get(method) {
            return metrics.note(is_ok, took);
        }
        let mut methods = self.methods.write();
        methods.entry(method).or_insert_with(|| MethodMetrics::of(method)).note(is_ok, took);
    }

    async fn admit<Question, Answer, Work>(
        &self,
        audience: Audience,
        request: Request<Question>,
        work: impl FnOnce(Call, Question) -> Work,
    ) -> Result<Answer, Failure>
    where
        Work: Future<Output = Result<Answer, Failure>>,
    {
        let core = &self.core;
        let _slot = Slot::take(&core.open_calls, core.limits.requests_max)?;
        let budget = budget(request.metadata(), &core.limits);
        let deadline = core.deadline(budget);
        let caller = self.identify(audience, request.metadata(), &deadline).await?;
        let call = Call { core: Arc::clone(core), caller, deadline };
        work(call, request.into_inner()).await
    }

    /// Who calls. A caller whom the catalog here does not know may be in a newer one: nobody is
    /// turned away by an old view.
    async fn identify(
        &self,
        audience: Audience,
        metadata: &MetadataMap,
        deadline: &Deadline,
    ) -> Result<Caller, Failure> {
        let core = &self.core;
        match core.access.authorize(&core.catalog(), metadata, audience) {
            Err(failure) if authorize::is_matter_of_catalog(&failure, metadata, audience) => {
                core.catch_up_with_catalog(deadline).await?;
                core.access.authorize(&core.catalog(), metadata, audience)
            }
            decided => decided,
        }
    }
}

/// A place among the requests that are worked on.
struct Slot<'a> {
    open: &'a AtomicUsize,
}

impl<'a> Slot<'a> {
    fn take(open: &'a AtomicUsize, most: usize) -> Result<Self, Failure> {
        let before = open.fetch_add(1, Ordering::Relaxed);
        let slot = Self { open };
        if before < most {
            return Ok(slot);
        }
        counter!(name::REFUSED_TOTAL, "reason" => "requests_max").increment(1);
        let message = "the node works on as many requests as it may";
        Err(Failure::new(Reason::Overloaded, message).retry_after(OVERLOAD_PAUSE))
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Call {
    /// The account that the call acts on.
    ///
    /// # Errors
    /// PERMISSION_DENIED for operators.
    pub fn account(&self) -> Result<AccountNumber, Failure> {
        self.caller.account()
    }

    /// The client's name for the request, or a fresh one for this try only.
    pub fn request_id(&self, given: Option<RequestId>) -> RequestId {
        given.unwrap_or_else(|| RequestId(self.core.random()))
    }
}

/// How long a request may take: what the client says, within the node's bounds.
fn budget(metadata: &MetadataMap, limits: &crate::config::Limits) -> Duration {
    let most = Duration::from_millis(limits.deadline_ms_max);
    let client = metadata.get("grpc-timeout").and_then(|text| parse_timeout(text.to_str().ok()?));
    match client {
        Some(client) => client.saturating_sub(REPLY_MARGIN).min(most),
        None => Duration::from_millis(limits.deadline_ms_default),
    }
}

/// Reads gRPC's timeout header: up to eight digits and a unit.
///
/// Source: gRPC over HTTP2, "Timeout".
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || 8 < digits.len() || !digits.bytes().all(|digit| digit.is_ascii_digit())
    {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3_600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

fn code_text(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

impl Core {
    /// What a client is told when a shard gave no answer. `read` is how it was read, unless it was
    /// written.
    pub fn failure(&self, error: &ShardError, read: Option<Read>) -> Failure {
        match error {
            // Try again, here or at another node: nothing was done.
            ShardError::NoReplica | ShardError::Unreachable | ShardError::Failed { .. } => {
                Failure::new(Reason::ShardUnavailable, "no replica of the shard could answer")
                    .retry_after(ELECTION_PAUSE)
            }
            ShardError::NoLeader | ShardError::NotLeader { leader: None } => {
                let message = "the shard has no leader at the moment";
                Failure::new(Reason::NoLeader, message).retry_after(ELECTION_PAUSE)
            }
            // Try again at the leader that is named.
            ShardError::NotLeader { leader: Some(leader) } => self.not_leader(*leader),
            // Refresh the routes first.
            ShardError::StaleEpoch { .. } => Failure::new(Reason::StaleEpoch, error.to_string()),
            // Try again later.
            ShardError::Busy => {
                counter!(name::REFUSED_TOTAL, "reason" => "shard_busy").increment(1);
                Failure::new(Reason::Overloaded, error.to_string()).retry_after(OVERLOAD_PAUSE)
            }
            // Try again soon.
            ShardError::Merging | ShardError::NotMerged { .. } => {
                Failure::new(Reason::ShardUnavailable, error.to_string())
                    .retry_after(OVERLOAD_PAUSE)
            }
            // Delete something, or give the nodes more room.
            ShardError::DiskFull => {
                counter!(name::REFUSED_TOTAL, "reason" => "disk_full").increment(1);
                Failure::new(Reason::DiskFull, error.to_string())
            }
            // Try again later, or not at all.
            ShardError::NotSplit { is_early: true, .. } => {
                Failure::new(Reason::ShardUnavailable, error.to_string())
                    .retry_after(Duration::from_millis(500))
            }
            ShardError::NotSplit { is_early: false, .. } => {
                Failure::new(Reason::SplitImpossible, error.to_string())
            }
            // Try again with the same request id.
            ShardError::OutcomeUnknown => {
                Failure::new(Reason::CommitUnknown, error.to_string()).retry_after(ELECTION_PAUSE)
            }
            // Try again, or ask for less.
            ShardError::Behind => {
                let is_session = read.is_some_and(|read| read.at_least.is_some());
                let is_bounded =
                    read.is_some_and(|read| matches!(read.level, Level::BoundedStaleness { .. }));
                let reason = match (is_bounded, is_session) {
                    (true, _) => Reason::StalenessUnmet,
                    (false, true) => Reason::SessionBehind,
                    (false, false) => Reason::ShardUnavailable,
                };
                Failure::new(reason, error.to_string()).retry_after(OVERLOAD_PAUSE)
            }
            // Give it more time.
            ShardError::TimeUp => Failure::new(Reason::DeadlineExceeded, error.to_string()),
            // A bug, or nodes of releases that do not fit.
            ShardError::Misunderstood { .. } => {
                tracing::error!(%error, "nodes do not understand each other");
                Failure::new(Reason::Internal, "nodes do not understand each other")
            }
        }
    }

    fn not_leader(&self, leader: NodeId) -> Failure {
        let failure = Failure::new(Reason::NotLeader, "another node leads the shard")
            .retry_after(ELECTION_PAUSE)
            .with(METADATA_LEADER_NODE_ID, leader.0);
        match self.catalog().nodes.get(&leader) {
            Some(node) => failure.with(METADATA_LEADER, &node.client_address),
            None => failure,
        }
    }
}

/// What a client is told when a shard refused a write.
pub fn refused(rejection: &Rejection) -> Failure {
    match rejection {
        // Refresh the routes first.
        Rejection::StaleEpoch { .. } => {
            Failure::new(Reason::StaleEpoch, "the shard has changed; nothing was written")
        }
        // Do not try again.
        Rejection::AnchorNotFound => {
            Failure::new(Reason::AnchorNotFound, "there is no anchor with this id")
        }
        Rejection::AnchorExists => {
            Failure::new(Reason::AnchorExists, "the id is taken; use a new request id")
        }
        // Read again first.
        Rejection::VersionMismatch { current } => {
            Failure::new(Reason::EtagMismatch, "the anchor has changed since")
                .with(METADATA_CURRENT_ETAG, etag::of_version(*current))
        }
        // Use a new request id.
        Rejection::RequestIdReused => Failure::new(
            Reason::RequestIdReused,
            "the request id was used for another write; make a new one for each write",
        ),
        // Try again later.
        Rejection::OperationsFull { .. } => {
            Failure::new(Reason::OperationsFull, "the shard remembers as many requests as it may")
                .retry_after(Duration::from_secs(30))
        }
        // Try again soon.
        Rejection::Retired => Failure::new(
            Reason::ShardUnavailable,
            "the account is being laid out anew; nothing was written",
        )
        .retry_after(Duration::from_millis(200)),
        Rejection::Merging | Rejection::InvalidMerge => {
            Failure::new(Reason::ShardUnavailable, "the shard is being merged; nothing was written")
                .retry_after(Duration::from_millis(50))
        }
        // Name another key.
        Rejection::InvalidSplit => {
            Failure::new(Reason::SplitImpossible, "the shard cannot be split at this key")
        }
        // Import into another account, or without a new layout.
        Rejection::NotEmpty { anchors: 0, operations: _ } => Failure::new(
            Reason::AccountNotEmpty,
            format!(
                "the account was written to within the last {} minutes, and retries of that must be \
                 answered: it can be laid out after that time",
                anchorhold_model::apply::OPERATION_KEEP_MS / 60_000
            ),
        ),
        Rejection::NotEmpty { anchors, operations: _ } => Failure::new(
            Reason::AccountNotEmpty,
            format!(
                "a shard of the account holds {anchors} anchors: only an empty one can be laid out"
            ),
        ),
        // Create a new anchor instead.
        Rejection::DriftTooFar { distance_m } => Failure::new(
            Reason::DriftTooFar,
            format!(
                "the new pose is {distance_m:.1} m from where the anchor was created, more than \
                 {} m; create a new anchor",
                anchorhold_model::cover::DRIFT_M_MAX
            ),
        ),
        Rejection::SpaceChanged => Failure::new(
            Reason::SpaceChanged,
            "the new pose lies in another space; create a new anchor",
        ),
        // Change the expiry.
        Rejection::AlreadyExpired => {
            Failure::new(Reason::AlreadyExpired, "the expiry lies in the past")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        assert_eq!(parse_timeout("5S"), Some(Duration::from_secs(5)));
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse_timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3_600)));
        for text in ["", "S", "5", "-1S", "1.5S", "123456789S", "5 S", "5é", "5s"] {
            assert_eq!(parse_timeout(text), None, "{text}");
        }
    }

    #[test]
    fn a_request_has_the_clients_time_within_the_nodes_bounds() {
        let limits = crate::config::Limits::default();
        let with = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            budget(&metadata, &limits)
        };
        assert_eq!(budget(&MetadataMap::new(), &limits), Duration::from_secs(5));
        assert_eq!(with("1S"), Duration::from_millis(980));
        assert_eq!(with("5H"), Duration::from_secs(60));
        assert_eq!(with("1m"), Duration::ZERO);
    }

    #[test]
    fn a_node_takes_so_many_requests_and_no_more() {
        let open = AtomicUsize::new(0);
        let first = Slot::take(&open, 1).ok().unwrap();
        assert_eq!(Slot::take(&open, 1).err().unwrap().reason, Reason::Overloaded);
        drop(first);
        assert!(Slot::take(&open, 1).is_ok());
    }
}
