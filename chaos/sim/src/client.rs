//! The clients: they make the account, write and read while faults run, and find out at the end
//! what became of each write.

use std::sync::Arc;
use std::time::Duration;

use anchorhold_proto::admin_v1::account_service_client::AccountServiceClient;
use anchorhold_proto::admin_v1::cluster_service_client::ClusterServiceClient;
use anchorhold_proto::admin_v1::placement_service_client::PlacementServiceClient;
use anchorhold_proto::admin_v1::{CreateAccountRequest, GetClusterStatusRequest};
use anchorhold_proto::v1::anchor_service_client::AnchorServiceClient;
use anchorhold_proto::v1::locate_service_client::LocateServiceClient;
use anchorhold_proto::{Reason, admin_v1, reason_of, text, v1};
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::StdRng;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::history::{ABSENT, Action, Operation};
use crate::node::{ADMIN_KEY, client_address};
use crate::seams;
use crate::world::{NODES, Phase, World};

/// Clients at work at once.
const WORKERS: u64 = 6;
/// Shards of the account, beside the catalog.
const SHARDS: u32 = 4;
/// How long one try may take.
const TRY_TIMEOUT: Duration = Duration::from_millis(900);
/// How long a client tries before it leaves a write for later.
const PATIENCE: Duration = Duration::from_millis(2_500);
/// The staleness that reads allow.
const STALENESS_MAX: Duration = Duration::from_millis(1_500);
/// Splits of one run, at most: each shard costs simulated nodes time.
const SPLITS_MAX: usize = 4;
/// Merges that are asked for in one run, at most.
const MERGES_MAX: usize = 6;
/// The property that holds a write's number.
const VALUE: &str = "value";

/// Adds a key to each request.
#[derive(Clone)]
struct Key(Arc<str>);

impl Interceptor for Key {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let value = format!("Bearer {}", self.0);
        let value = value.parse().map_err(|_| Status::internal("the key is no text"))?;
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
}

type Authorized = InterceptedService<Channel, Key>;

/// A write and whom it is about.
#[derive(Clone)]
struct Write {
    /// Its number: the value that it writes, and its request id.
    number: u64,
    start_us: u64,
    what: What,
}

#[derive(Clone)]
enum What {
    Create { place: (f64, f64) },
    Update { anchor: usize, id: String },
    Delete { anchor: usize, id: String },
}

/// How a try ended.
enum Tried {
    /// Done: what it answers about the anchor.
    Answered { anchor: usize, version: u64, value: u64 },
    /// It can have no effect any more, or is told about no anchor.
    Refused,
    /// To be sent again.
    Again,
}

/// What all clients share.
struct Clients {
    world: Arc<World>,
    channels: Vec<Channel>,
    key: Key,
    /// Writes that were left for later.
    left: Mutex<Vec<Write>>,
}

/// Runs all clients to the end.
///
/// # Errors
/// If an address is none.
pub(crate) async fn live(world: Arc<World>) -> turmoil::Result {
    let channels = (0..NODES).map(|node| seams::channel(&client_address(node)));
    let channels = channels.collect::<Result<Vec<_>, _>>()?;
    let key = found(&channels).await;
    let clients =
        Arc::new(Clients { world: Arc::clone(&world), channels, key, left: Mutex::default() });
    world.enter(Phase::Faults);
    let workers = (0..WORKERS).map(|worker| {
        let random = world.random("client", worker);
        tokio::spawn(Arc::clone(&clients).work(worker, random))
    });
    let workers: Vec<_> = workers.collect();
    let splitter = tokio::spawn(Arc::clone(&clients).split(world.random("splits", 0)));
    let merger = tokio::spawn(Arc::clone(&clients).merge(world.random("merges", 0)));
    for worker in workers {
        worker.await?;
    }
    splitter.await?;
    merger.await?;
    clients.resolve().await;
    clients.read_back().await;
    world.enter(Phase::Settled);
    Ok(())
}

/// Makes the account and waits until every shard leads.
async fn found(channels: &[Channel]) -> Key {
    let admin = Key(ADMIN_KEY.into());
    let request = CreateAccountRequest {
        name: "simulated".to_owned(),
        shards: SHARDS,
        request_id: text::uuid_text(1),
        ..CreateAccountRequest::default()
    };
    let mut cluster = ClusterServiceClient::with_interceptor(channels[0].clone(), admin.clone());
    let mut accounts = AccountServiceClient::with_interceptor(channels[0].clone(), admin);
    let mut key = None;
    loop {
        let status = tokio::time::timeout(
            TRY_TIMEOUT,
            cluster.get_cluster_status(GetClusterStatusRequest {}),
        );
        if let Ok(Ok(status)) = status.await {
            let status = status.into_inner();
            let is_whole = usize::try_from(status.nodes_up).is_ok_and(|up| up == NODES)
                && status.health() == admin_v1::Health::Healthy;
            match &key {
                Some(key) if is_whole => return Key(Arc::clone(key)),
                None if is_whole => {
                    let made = accounts.create_account(request.clone()).await;
                    key = made.ok().map(|made| made.into_inner().api_key.into());
                }
                Some(_) | None => {}
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Version and value of an anchor as an answer shows it. One that is gone is told without its
/// properties, or not at all.
fn seen(anchor: Option<&v1::Anchor>) -> (u64, u64) {
    let value = |anchor: &v1::Anchor| anchor.properties.get(VALUE)?.parse().ok();
    anchor.and_then(|anchor| Some((anchor.revision, value(anchor)?))).unwrap_or((ABSENT, 0))
}

fn geo((latitude_deg, longitude_deg): (f64, f64)) -> v1::Pose {
    v1::Pose::on_earth(latitude_deg, longitude_deg, 10.0)
}

impl Clients {
    fn anchors(&self, node: usize) -> AnchorServiceClient<Authorized> {
        AnchorServiceClient::with_interceptor(self.channels[node].clone(), self.key.clone())
    }

    async fn work(self: Arc<Self>, worker: u64, mut random: StdRng) {
        let mut count = 0;
        while self.world.phase() == Phase::Faults {
            count += 1;
            let number = worker * 1_000_000 + count;
            let pause = Duration::from_millis(random.random_range(5..60));
            tokio::time::sleep(pause).await;
            let known = self.pick(&mut random);
            match (known, random.random_range(0..100)) {
                (None, _) | (_, 0..20) => {
                    let place =
                        (random.random_range(-60.0..70.0), random.random_range(-180.0..180.0));
                    self.write(number, What::Create { place }, &mut random).await;
                }
                (Some((anchor, id)), 20..50) => {
                    self.write(number, What::Update { anchor, id }, &mut random).await;
                }
                (Some((anchor, id)), 50..54) => {
                    self.write(number, What::Delete { anchor, id }, &mut random).await;
                }
                (Some((anchor, id)), 54..72) => {
                    let node = random.random_range(0..NODES);
                    self.read(anchor, &id, node, Action::Read).await;
                }
                (Some((anchor, id)), 72..88) => {
                    let node = random.random_range(0..NODES);
                    let allowed_us = u64::try_from(STALENESS_MAX.as_micros()).unwrap_or(u64::MAX);
                    let action = Action::StaleRead { staleness_us: 0, allowed_us };
                    self.read(anchor, &id, node, action).await;
                }
                (Some((anchor, _)), _) => {
                    self.locate(anchor, random.random_range(0..NODES)).await;
                }
            }
        }
    }

    /// Some shard, as a node knows it.
    async fn some_shard(&self, channel: Channel, random: &mut StdRng) -> Option<admin_v1::Shard> {
        let admin = Key(ADMIN_KEY.into());
        let mut cluster = ClusterServiceClient::with_interceptor(channel, admin);
        let listed = cluster.list_shards(admin_v1::ListShardsRequest::default());
        let listed = tokio::time::timeout(TRY_TIMEOUT, listed).await.ok()?.ok()?;
        let mut shards = listed.into_inner().shards;
        shards.retain(|shard| shard.shard_id != 0);
        (!shards.is_empty()).then(|| shards.swap_remove(random.random_range(0..shards.len())))
    }

    /// Merges shards now and then, whatever faults are on.
    async fn merge(self: Arc<Self>, mut random: StdRng) {
        let admin = Key(ADMIN_KEY.into());
        let mut merges = 0;
        while self.world.phase() == Phase::Faults && merges < MERGES_MAX {
            tokio::time::sleep(Duration::from_millis(random.random_range(200..1_500))).await;
            let channel = self.channels[random.random_range(0..NODES)].clone();
            let Some(shard) = self.some_shard(channel.clone(), &mut random).await else { continue };
            let mut placement = PlacementServiceClient::with_interceptor(channel, admin.clone());
            let request = admin_v1::MergeShardRequest { shard_id: shard.shard_id };
            let asked = tokio::time::timeout(2 * TRY_TIMEOUT, placement.merge_shard(request)).await;
            if let Ok(Ok(begun)) = asked {
                let into = begun.into_inner().into_shard_id;
                self.world.note(format_args!("g{:x} goes into g{into:x}", shard.shard_id));
                merges += 1;
            }
        }
    }

    /// Splits shards now and then, whatever faults are on.
    async fn split(self: Arc<Self>, mut random: StdRng) {
        let admin = Key(ADMIN_KEY.into());
        let mut splits = 0;
        while self.world.phase() == Phase::Faults && splits < SPLITS_MAX {
            tokio::time::sleep(Duration::from_millis(random.random_range(200..1_500))).await;
            let channel = self.channels[random.random_range(0..NODES)].clone();
            let Some(shard) = self.some_shard(channel.clone(), &mut random).await else { continue };
            let mut cluster = ClusterServiceClient::with_interceptor(channel, admin.clone());
            let request = admin_v1::SplitShardRequest {
                shard_id: shard.shard_id,
                version: shard.epoch.unwrap_or_default().version,
                ..admin_v1::SplitShardRequest::default()
            };
            // Sent again while nobody answers, as an operator would; then left as it is.
            for _ in 0..4 {
                let asked =
                    tokio::time::timeout(2 * TRY_TIMEOUT, cluster.split_shard(request.clone()));
                let asked =
                    asked.await.map(|answer| answer.map(|done| done.into_inner().new_shard_id));
                match asked {
                    Ok(Ok(child)) => {
                        self.world
                            .note(format_args!("g{:x} was split: g{child:x}", shard.shard_id));
                        splits += 1;
                        break;
                    }
                    Ok(Err(status)) => {
                        let reason = reason_of(&status);
                        if reason.is_some_and(|reason| !reason.code_may_pass()) {
                            // Holds too little, or is split by now.
                            break;
                        }
                    }
                    Err(_) => {}
                }
            }
        }
    }

    /// An anchor that is known, more likely a young one.
    fn pick(&self, random: &mut StdRng) -> Option<(usize, String)> {
        let history = self.world.history.lock();
        let count = history.anchors.len();
        if count == 0 {
            return None;
        }
        let oldest = if random.random_bool(0.7) { count.saturating_sub(8) } else { 0 };
        let anchor = random.random_range(oldest..count);
        Some((anchor, history.anchors[anchor].id.clone()))
    }

    /// Sends a write until it is answered, or leaves it for later.
    async fn write(&self, number: u64, what: What, random: &mut StdRng) {
        let write = Write { number, start_us: self.world.now_us(), what };
        {
            let mut history = self.world.history.lock();
            history.sent_us.insert(number, write.start_us);
            if let What::Delete { anchor, .. } = &write.what {
                history.anchors[*anchor].delete_sent_us.get_or_insert(write.start_us);
            }
        }
        let begun = self.world.now();
        loop {
            if self.try_write(&write, random.random_range(0..NODES)).await {
                return;
            }
            if PATIENCE < self.world.now().saturating_sub(begun) {
                self.world.note(format_args!("write {number} is left for later"));
                self.left.lock().push(write);
                return;
            }
            tokio::time::sleep(Duration::from_millis(random.random_range(10..120))).await;
        }
    }

    /// One try; true if there is nothing left to find out.
    async fn try_write(&self, write: &Write, node: usize) -> bool {
        let tried = tokio::time::timeout(TRY_TIMEOUT, self.send(write, node)).await;
        match tried.unwrap_or(Tried::Again) {
            Tried::Again => false,
            Tried::Refused => {
                self.world.note(format_args!("write {} was refused", write.number));
                true
            }
            Tried::Answered { anchor, version, value } => {
                // The answer to a retry is the anchor as it is now. Another value, or none, says
                // that a later write came over this one: that is a read.
                let is_own = value == write.number || matches!(write.what, What::Delete { .. });
                let action = if is_own { Action::Write } else { Action::Read };
                self.done(anchor, action, write.start_us, version, value);
                true
            }
        }
    }

    async fn send(&self, write: &Write, node: usize) -> Tried {
        let request_id = text::uuid_text(u128::from(write.number) << 64 | 1);
        let properties = [(VALUE.to_owned(), write.number.to_string())].into();
        let mut client = self.anchors(node);
        let answer = match &write.what {
            What::Create { place } => {
                let pose = Some(geo(*place));
                let anchor = v1::Anchor { pose, properties, ..v1::Anchor::default() };
                let request = v1::CreateAnchorRequest { anchor: Some(anchor), request_id };
                let answer = client.create_anchor(request).await;
                answer.map(|answer| {
                    let anchor = answer.into_inner().anchor.unwrap_or_default();
                    (self.world.history.lock().anchor(&anchor.id, *place), seen(Some(&anchor)))
                })
            }
            What::Update { anchor, id } => {
                let number = *anchor;
                let anchor = v1::Anchor { id: id.clone(), properties, ..v1::Anchor::default() };
                let mask = prost_types::FieldMask { paths: vec!["properties".to_owned()] };
                let anchor = Some(anchor);
                let request =
                    v1::UpdateAnchorRequest { anchor, update_mask: Some(mask), request_id };
                let answer = client.update_anchor(request).await;
                answer.map(|answer| (number, seen(answer.into_inner().anchor.as_ref())))
            }
            What::Delete { anchor, id } => {
                let (id, etag) = (id.clone(), String::new());
                let request = v1::DeleteAnchorRequest { id, etag, request_id };
                client.delete_anchor(request).await.map(|_| (*anchor, (ABSENT, 0)))
            }
        };
        match answer {
            Ok((anchor, (version, value))) => Tried::Answered { anchor, version, value },
            Err(status) => self.refusal(write, &status),
        }
    }

    fn refusal(&self, write: &Write, status: &Status) -> Tried {
        match reason_of(status) {
            // Somebody else has deleted it. That is known only if this write was not the one.
            Some(Reason::AnchorNotFound) => {
                if let What::Update { anchor, .. } = write.what {
                    self.done(anchor, Action::Read, write.start_us, ABSENT, 0);
                }
                Tried::Refused
            }
            Some(reason) if !reason.code_may_pass() => {
                self.world.violate(format!("write {} was answered {status:?}", write.number));
                Tried::Refused
            }
            Some(_) | None => Tried::Again,
        }
    }

    async fn read(&self, anchor: usize, id: &str, node: usize, action: Action) -> bool {
        let start_us = self.world.now_us();
        let read = match action {
            Action::StaleRead { allowed_us, .. } => {
                v1::ReadOptions::bounded_staleness(Duration::from_micros(allowed_us))
            }
            Action::Read | Action::Write => v1::ReadOptions::default(),
        };
        let request = v1::GetAnchorRequest { id: id.to_owned(), read: Some(read) };
        let mut client = self.anchors(node);
        let Ok(answer) = tokio::time::timeout(TRY_TIMEOUT, client.get_anchor(request)).await else {
            return false;
        };
        match answer {
            Ok(answer) => {
                let answer = answer.into_inner();
                let action = said(action, answer.serving.as_ref());
                let (version, value) = seen(answer.anchor.as_ref());
                self.done(anchor, action, start_us, version, value);
                true
            }
            Err(status) => match reason_of(&status) {
                Some(Reason::AnchorNotFound) => {
                    if action == Action::Read {
                        self.done(anchor, action, start_us, ABSENT, 0);
                    }
                    true
                }
                Some(reason) if !reason.code_may_pass() => {
                    self.world.violate(format!("a read was answered {status:?}"));
                    true
                }
                Some(_) | None => false,
            },
        }
    }

    /// Looks around an anchor: what is there must be found, what is gone must not.
    async fn locate(&self, anchor: usize, node: usize) {
        let start_us = self.world.now_us();
        let place = self.world.history.lock().anchors[anchor].place;
        let near = v1::NearPoint {
            radius_m: Some(5.0),
            ..v1::NearPoint::on_earth(place.0, place.1, 10.0, 16)
        };
        let mut client =
            LocateServiceClient::with_interceptor(self.channels[node].clone(), self.key.clone());
        let request = v1::LocateRequest { require_complete: true, ..near.into() };
        let Ok(Ok(answer)) = tokio::time::timeout(TRY_TIMEOUT, client.locate(request)).await else {
            return;
        };
        let id = self.world.history.lock().anchors[anchor].id.clone();
        let answer = answer.into_inner();
        let mut found = answer.anchors.iter().filter_map(|found| found.anchor.as_ref());
        let (version, value) = seen(found.find(|found| found.id == id));
        self.done(anchor, Action::Read, start_us, version, value);
    }

    fn done(&self, anchor: usize, action: Action, start_us: u64, version: u64, value: u64) {
        let end_us = self.world.now_us();
        self.world.note(format_args!("a{anchor} {action:?} {start_us} saw {version} {value}"));
        let operation = Operation { anchor, action, start_us, end_us, version, value };
        self.world.history.lock().operations.push(operation);
    }

    /// Finds out what became of the writes that were left.
    async fn resolve(&self) {
        let left = std::mem::take(&mut *self.left.lock());
        let mut random = self.world.random("resolve", 0);
        for write in left {
            while !self.try_write(&write, random.random_range(0..NODES)).await {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// Reads every anchor once more.
    async fn read_back(&self) {
        let anchors = self.world.history.lock().anchors.clone();
        let mut random = self.world.random("read back", 0);
        for (anchor, known) in anchors.iter().enumerate() {
            loop {
                let node = random.random_range(0..NODES);
                if self.read(anchor, &known.id, node, Action::Read).await {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// What the node says about a read's staleness.
fn said(action: Action, serving: Option<&v1::ServingInfo>) -> Action {
    let Action::StaleRead { allowed_us, .. } = action else { return action };
    let shards = serving.map(|serving| serving.shards.as_slice()).unwrap_or_default();
    let staleness = shards.iter().filter_map(|shard| shard.staleness.as_ref());
    let micros = |duration: &prost_types::Duration| {
        let seconds = u64::try_from(duration.seconds).unwrap_or_default();
        // Rounded up: what it says is the most that it may be.
        seconds * 1_000_000 + u64::try_from(duration.nanos).unwrap_or_default().div_ceil(1_000)
    };
    // Nothing said is a promise of nothing, which a read of bounded staleness may not be.
    let staleness_us = staleness.map(micros).max().unwrap_or(u64::MAX);
    Action::StaleRead { staleness_us, allowed_us }
}

/// Which answers faults explain.
trait MayPass {
    fn code_may_pass(self) -> bool;
}

impl MayPass for Reason {
    fn code_may_pass(self) -> bool {
        use anchorhold_proto::NextMove;
        matches!(self.next_move(), NextMove::Retry | NextMove::RefreshRoutes)
            || self == Self::DeadlineExceeded
    }
}
