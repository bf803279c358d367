//! Sends a call until it is answered, cannot be mended, or its time is over.
//!
//! Which node is asked follows from the routes; what a failure means is decided by `retry`.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anchorhold_proto::limits::{MESSAGE_BYTES_MAX, RETRY_WINDOW};
use anchorhold_proto::{Reason, ReceivedFailure, text, v1};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use parking_lot::{Mutex, RwLock};
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, ConnectError, Request, Status};

use crate::channel::{Node, Pool};
use crate::codec::EncodedCodec;
use crate::method::{self, Method};
use crate::patience::Patience;
use crate::retry::{self, Origin, Tries, Verdict};
use crate::routes::{Routes, Target};
use crate::{ClientConfig, ClientError, RetryConfig};

/// What all handles of a client share.
pub(crate) struct Transport {
    config: ClientConfig,
    authorization: MetadataValue<Ascii>,
    pool: Pool,
    routes: RwLock<Option<Arc<Routes>>>,
    /// When the routes were last learnt; held while they are.
    refreshed: tokio::sync::Mutex<Option<Instant>>,
    is_refresh_due: AtomicBool,
    random: Mutex<StdRng>,
    /// How long answers take, by the methods' paths.
    patience: Mutex<BTreeMap<&'static str, Patience>>,
}

/// One call, encoded.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) target: Target,
    pub(crate) body: Bytes,
    /// Of a write.
    pub(crate) request_id: Option<&'a str>,
    /// From now on.
    pub(crate) deadline: Duration,
}

/// What happened to a call so far.
struct Progress {
    tries: Tries,
    timeouts: u32,
    is_maybe_written: bool,
    /// Nodes at fault, until all are.
    tried: Vec<Arc<Node>>,
    redirect: Option<Arc<Node>>,
    /// Nodes that were asked and have neither answered nor been passed over.
    silent: Vec<Arc<Node>>,
    /// Whether the routes must be learnt again before the next try.
    is_refresh_due: bool,
    /// How the last try that failed did.
    last: Option<ReceivedFailure>,
}

/// Tries of one call that may be open at once.
const OPEN_MAX: usize = 3;

/// Least time between two background refreshes of the routes.
const REFRESH_PAUSE: Duration = Duration::from_millis(100);

impl Transport {
    /// Knows the endpoints; connects to nobody yet.
    pub(crate) fn new(config: ClientConfig) -> Result<Arc<Self>, ClientError> {
        config.validate()?;
        let mut random = match config.seed {
            Some(seed) => StdRng::seed_from_u64(seed),
            None => StdRng::from_os_rng(),
        };
        let mut authorization: MetadataValue<Ascii> =
            format!("Bearer {}", config.api_key).parse().map_err(|_| {
                ClientError::local(Code::InvalidArgument, "the API key is not ASCII text")
            })?;
        authorization.set_sensitive(true);
        // Many processes with the same list of endpoints must not all begin with the first.
        let pool = Pool::new(&config, random.random_range(0..config.endpoints.len()))?;
        Ok(Arc::new(Self {
            config,
            authorization,
            pool,
            routes: RwLock::default(),
            refreshed: tokio::sync::Mutex::default(),
            is_refresh_due: AtomicBool::new(false),
            random: Mutex::new(random),
            patience: Mutex::default(),
        }))
    }

    /// What the client was told.
    pub(crate) fn config(&self) -> &ClientConfig {
        &self.config
    }

    /// The routes, if they have been learnt.
    pub(crate) fn routes(&self) -> Option<Arc<Routes>> {
        self.routes.read().clone()
    }

    /// A new request id: a UUID of version 4.
    pub(crate) fn new_request_id(&self) -> String {
        const VERSION_MASK: u128 = 0xf << 76;
        const VARIANT_MASK: u128 = 3 << 62;
        let random: u128 = self.random.lock().random();
        text::uuid_text(random & !VERSION_MASK & !VARIANT_MASK | 4 << 76 | 2 << 62)
    }

    /// Sends a call and retries it as long as that is safe and makes sense. A node that is silent
    /// for longer than usual is not given up, but another one is asked as well.
    pub(crate) async fn call<Reply>(&self, call: Call<'_>) -> Result<Reply, ClientError>
    where
        Reply: Message + Default + Send + 'static,
    {
        let end = Instant::now() + call.deadline.min(RETRY_WINDOW);
        let mut progress = Progress::new();
        let mut open = FuturesUnordered::new();
        let mut send_at = Some(Instant::now());
        loop {
            if send_at.is_some_and(|at| at <= Instant::now()) {
                let routes = self.routes();
                let node = self.choose(call.target, routes.as_deref(), &mut progress);
                progress.tries.sent += 1;
                progress.silent.push(node.clone());
                open.push(self.try_once(node, &call, progress.timeouts, end));
                send_at = self.hedge_at(call.method, open.len());
            }
            let (node, sent) = match (send_at, open.is_empty()) {
                (Some(at), true) => {
                    sleep_until(at).await;
                    continue;
                }
                (Some(at), false) => match timeout_at(at, open.next()).await {
                    Ok(Some(done)) => done,
                    Ok(None) => continue,
                    Err(_) => {
                        self.pass_over_silent(&mut progress);
                        continue;
                    }
                },
                (None, _) => match open.next().await {
                    Some(done) => done,
                    None => return Err(progress.time_is_over(&call)),
                },
            };
            let (origin, failure) = match sent {
                Ok(reply) => {
                    self.pool.wake(&node);
                    return Ok(reply);
                }
                Err(failed) => failed,
            };
            let Some(pause) = self.judge(&mut progress, &call, node, origin, &failure) else {
                return Err(ClientError::of(failure, progress.tries.sent));
            };
            progress.last = Some(failure);
            if progress.is_refresh_due
                && timeout_at(end, self.refresh(Instant::now())).await.is_err()
            {
                return Err(progress.time_is_over(&call));
            }
            progress.is_refresh_due = false;
            let again = Instant::now() + pause;
            // With time for no other try, those that are open may still be answered.
            send_at = (again < end && open.len() < OPEN_MAX).then_some(again);
        }
    }

    /// Takes a failed try in: the pause before the next one, or `None` if none makes sense.
    fn judge(
        &self,
        progress: &mut Progress,
        call: &Call<'_>,
        node: Arc<Node>,
        origin: Origin,
        failure: &ReceivedFailure,
    ) -> Option<Duration> {
        progress.note(origin, failure);
        progress.silent.retain(|silent| silent.address != node.address);
        progress.tries.nodes = u32::try_from(self.pool.len()).unwrap_or(u32::MAX);
        let jitter = self.random.lock().random();
        let verdict = retry::judge(failure, origin, progress.tries, &self.config.retry, jitter);
        let Verdict::Again { pause, leader, is_node_at_fault, refresh } = verdict else {
            return None;
        };
        if is_node_at_fault {
            self.pool.rest(&node);
            progress.tried.push(node);
        }
        self.follow(progress, call.target, self.routes().as_deref(), leader, failure);
        progress.is_refresh_due = refresh;
        if !pause.is_zero() {
            progress.tries.pauses += 1;
        }
        Some(pause)
    }

    /// When another node is to be asked as well, if `open` tries are not answered by then.
    fn hedge_at(&self, method: Method, open: usize) -> Option<Instant> {
        if !method.may_be_hedged() || self.pool.len() < 2 || OPEN_MAX <= open {
            return None;
        }
        let RetryConfig { hedge_after, attempt_timeout, .. } = self.config.retry;
        let patience = self.patience.lock().get(method.path).copied().unwrap_or_default();
        let wait = patience.hedge_after(hedge_after, attempt_timeout);
        let turns = u32::try_from(open).unwrap_or(u32::MAX);
        Some(Instant::now() + wait.saturating_mul(turns))
    }

    /// Notes that nodes have been silent for longer than usual.
    fn pass_over_silent(&self, progress: &mut Progress) {
        for node in progress.silent.drain(..) {
            self.pool.rest(&node);
            progress.tried.push(node);
        }
    }

    /// One try, and how it went.
    async fn try_once<Reply>(
        &self,
        node: Arc<Node>,
        call: &Call<'_>,
        timeouts: u32,
        end: Instant,
    ) -> (Arc<Node>, Result<Reply, (Origin, ReceivedFailure)>)
    where
        Reply: Message + Default + Send + 'static,
    {
        let begun = Instant::now();
        let attempt_timeout = self.config.retry.attempt_timeout;
        let attempt_end = end.min(begun + attempt_timeout.saturating_mul(1 << timeouts.min(8)));
        let sent = self.attempt(&node, call.method, call.body.clone(), attempt_end).await;
        if sent.is_ok() {
            let mut patience = self.patience.lock();
            patience.entry(call.method.path).or_default().note(begun.elapsed());
        }
        (node, sent)
    }

    /// The node to ask next.
    fn choose(
        &self,
        target: Target,
        routes: Option<&Routes>,
        progress: &mut Progress,
    ) -> Arc<Node> {
        if let Some(node) = progress.redirect.take() {
            return node;
        }
        if self.pool.len() <= progress.tried.len() {
            progress.tried.clear();
        }
        let is_tried = |node: &Node| progress.tried.iter().any(|one| one.address == node.address);
        if let (Target::Leader(key), Some(routes)) = (target, routes)
            && let Some(leader) = routes.leader(key)
            && !is_tried(leader)
            && !self.pool.is_resting(leader)
        {
            return leader.clone();
        }
        self.pool.pick(routes.map_or(&[], |routes| routes.candidates(target)), is_tried)
    }

    /// Learns from a failure who leads.
    fn follow(
        &self,
        progress: &mut Progress,
        target: Target,
        routes: Option<&Routes>,
        leader: Option<String>,
        failure: &ReceivedFailure,
    ) {
        progress.redirect = leader.and_then(|address| self.pool.node(&address).ok());
        if progress.redirect.is_some() {
            progress.tries.redirects += 1;
        } else {
            progress.tries.redirects = 0;
        }
        let is_leader_gone = matches!(failure.reason, Some(Reason::NotLeader | Reason::NoLeader));
        if let (true, Target::Leader(key), Some(routes)) = (is_leader_gone, target, routes) {
            routes.forget_leader(key);
        }
    }

    async fn attempt<Reply>(
        &self,
        node: &Node,
        method: Method,
        body: Bytes,
        end: Instant,
    ) -> Result<Reply, (Origin, ReceivedFailure)>
    where
        Reply: Message + Default + Send + 'static,
    {
        let mut request = Request::new(body);
        request.metadata_mut().insert("authorization", self.authorization.clone());
        request.set_timeout(end.saturating_duration_since(Instant::now()));
        let mut grpc = Grpc::new(node.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let path = PathAndQuery::from_static(method.path);
        let answer = timeout_at(end, async {
            grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
            grpc.unary(request, path, EncodedCodec::default()).await
        });
        let no_answer = || {
            let status = Status::deadline_exceeded(format!("{} did not answer", node.address));
            (Origin::NoAnswer, ReceivedFailure::of_status(&status))
        };
        match answer.await {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Err(_) => Err(no_answer()),
            // How tonic says, on either side, that `grpc-timeout` has run out.
            Ok(Err(status)) if status.code() == Code::Cancelled => Err(no_answer()),
            Ok(Err(status)) => {
                let (origin, mut failure) =
                    (origin_of(&status), ReceivedFailure::of_status(&status));
                if origin != Origin::Answered {
                    // What the transport says does not name whom it failed to reach.
                    failure.message = format!("{}: {}", node.address, failure.message);
                }
                Err((origin, failure))
            }
        }
    }

    /// Learns the routes, unless that was done after `asked`. A failure leaves the old ones: they
    /// cost a hop.
    pub(crate) fn refresh(
        &self,
        asked: Instant,
    ) -> Pin<Box<dyn Future<Output = Result<(), ClientError>> + Send + '_>> {
        Box::pin(async move {
            let mut refreshed = self.refreshed.lock().await;
            if refreshed.is_some_and(|when| asked < when) {
                return Ok(());
            }
            let reply: v1::GetRoutesResponse = self
                .call(Call {
                    method: method::GET_ROUTES,
                    target: Target::Any,
                    body: Bytes::new(),
                    request_id: None,
                    deadline: self.config.deadline,
                })
                .await?;
            let routes = Routes::new(&reply, &self.pool, self.config.zone.as_deref())?;
            *self.routes.write() = Some(Arc::new(routes));
            *refreshed = Some(Instant::now());
            Ok(())
        })
    }

    /// Learns the routes in the background, not too often.
    pub(crate) fn refresh_soon(self: &Arc<Self>) {
        if self.is_refresh_due.swap(true, Ordering::Relaxed) {
            return;
        }
        let transport = self.clone();
        tokio::spawn(async move {
            if let Err(error) = transport.refresh(Instant::now()).await {
                tracing::debug!(%error, "the routes could not be learnt again");
            }
            sleep(REFRESH_PAUSE).await;
            transport.is_refresh_due.store(false, Ordering::Relaxed);
        });
    }
}

impl Progress {
    fn new() -> Self {
        Self {
            tries: Tries { sent: 0, pauses: 0, redirects: 0, nodes: 1 },
            timeouts: 0,
            is_maybe_written: false,
            tried: Vec::new(),
            redirect: None,
            silent: Vec::new(),
            is_refresh_due: false,
            last: None,
        }
    }

    fn note(&mut self, origin: Origin, failure: &ReceivedFailure) {
        self.is_maybe_written |= match origin {
            Origin::NotSent => false,
            Origin::NoAnswer => true,
            Origin::Answered => failure.reason.is_none_or(|reason| reason == Reason::CommitUnknown),
        };
        if origin == Origin::NoAnswer && failure.code == Code::DeadlineExceeded {
            self.timeouts += 1;
        }
    }

    /// The error when time is over.
    fn time_is_over(self, call: &Call<'_>) -> ClientError {
        let nothing = || ReceivedFailure::of_status(&Status::deadline_exceeded("time is over"));
        let last = self.last.clone().unwrap_or_else(nothing);
        let is_write = call.method.writes();
        match call.request_id {
            Some(request_id) if is_write && self.is_maybe_written => {
                let reason = Reason::CommitUnknown;
                let failure = ReceivedFailure {
                    code: reason.code(),
                    reason: Some(reason),
                    reason_text: reason.as_str().to_owned(),
                    message: format!("time is over; last: {}", last.message),
                    ..last
                };
                ClientError::of(failure, self.tries.sent).with_unknown_outcome(request_id)
            }
            Some(_) | None => ClientError::of(last, self.tries.sent),
        }
    }
}

/// Whether a status came from a node or was made here, and then whether the request had left.
fn origin_of(status: &Status) -> Origin {
    let mut source = std::error::Error::source(status);
    if source.is_none() {
        return Origin::Answered;
    }
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return Origin::NotSent;
        }
        source = error.source();
    }
    Origin::NoAnswer
}
