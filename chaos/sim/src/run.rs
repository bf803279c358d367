//! One run: from a seed to a verdict.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Once, Weak};
use std::time::{Duration, SystemTime};

use anchorhold_consensus::Replica;
use anchorhold_model::{KeyRange, ShardId};
use anchorhold_server::core::Core;
use anchorhold_storage::GroupId;
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::StdRng;

use crate::disk::Disk;
use crate::faults::{self, Change, Host, LinkState, Links, Plan};
use crate::invariants::leader_completeness::Seen;
use crate::invariants::{self, key_coverage, liveness, staleness};
use crate::trace::Trace;
use crate::world::{Mutant, NODES, Phase, Site, World};
use crate::{client, node};

/// How long faults run.
const FAULTS_LAST: Duration = Duration::from_secs(8);
/// Simulated time of one step.
const STEP: Duration = Duration::from_millis(1);
/// Simulated time between two looks at the digests of all replicas.
const DIGEST_INTERVAL: Duration = Duration::from_millis(500);
/// The host of all clients.
const CLIENTS: &str = "clients";

/// What a run is told beside its seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// A bug to put into every node.
    pub mutant: Option<Mutant>,
    /// Write each event to standard error.
    pub prints_events: bool,
}

/// What a run that found nothing did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The digest of everything that happened: equal runs have equal ones.
    pub trace: u64,
    /// Events in it.
    pub events: u64,
    /// Simulated time.
    pub lasted: Duration,
    /// Changes that the plan of faults made.
    pub changes: usize,
    /// Answered operations of clients.
    pub operations: usize,
    /// Anchors made.
    pub anchors: usize,
    /// Elections won.
    pub elections: usize,
    /// Committed entries, over all shards and the catalog.
    pub committed: usize,
    /// Comparisons of two replicas' states at one index.
    pub compared: u64,
    /// Shards at the end, the catalog aside: those that the account began with, and those that
    /// splits made and merges left.
    pub shards: usize,
    /// Shards that became part of another one.
    pub merged: usize,
}

/// What must not be, and when it was seen.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// Simulated time.
    pub at: Duration,
    /// What was found.
    pub what: String,
    /// The digest of everything up to there.
    pub trace: u64,
}

impl std::error::Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, at, what, .. } = self;
        write!(f, "seed {seed}, at {at:?}: {what}\nreplay: {}", replay_command(*seed))
    }
}

/// The command that runs a seed again, and tells what happens.
pub fn replay_command(seed: u64) -> String {
    format!("cargo xtask sim --seed {seed} --events")
}

thread_local! {
    /// The seed that this thread runs.
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Lets a panic within a node say which seed it was: it may end the whole process.
fn name_seed_in_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if let Some(seed) = SEED.take() {
                eprintln!("seed {seed} panicked; replay: {}", replay_command(seed));
            }
            before(panic);
        }));
    });
}

/// Runs a seed.
///
/// # Errors
/// [`Failure`] if an invariant does not hold.
///
/// # Panics
/// If the machine has no place for temporary files.
pub fn run(seed: u64, options: Options) -> Result<Summary, Failure> {
    name_seed_in_panics();
    SEED.set(Some(seed));
    let world = make_world(seed, options);
    let mut run = Run::new(Arc::clone(&world));
    let verdict = run.live();
    SEED.set(None);
    let (trace, events) = world.trace_digest();
    let lasted = world.now();
    if let Err(what) = verdict {
        return Err(Failure { seed, at: lasted, what, trace });
    }
    let history = world.history.lock();
    let invariants = world.invariants.lock();
    Ok(Summary {
        trace,
        events,
        lasted,
        changes: run.plan.len(),
        operations: history.operations.len(),
        anchors: history.anchors.len(),
        elections: invariants.election_safety.elections(),
        committed: invariants.leader_completeness.committed(),
        compared: invariants.state_equality.compared(),
        shards: *world.shards.lock(),
        merged: *world.merged.lock(),
    })
}

fn make_world(seed: u64, options: Options) -> Arc<World> {
    use rand::SeedableRng as _;
    let mut random = StdRng::seed_from_u64(seed);
    let drift = i64::try_from(staleness::DRIFT_PPM_MAX).unwrap_or(i64::MAX);
    let site = |_| Site {
        disk: Arc::new(Disk::new().expect("a place for temporary files")),
        core: Mutex::new(Weak::new()),
        clock_offset_ms: AtomicI64::new(0),
        clock_drift_ppm: random.random_range(-drift..=drift),
        sync_delay_ms: AtomicU64::new(0),
        starts: AtomicU64::new(0),
    };
    let sites = (0..NODES).map(site).collect();
    World::new(seed, options.mutant, sites, Trace::new(options.prints_events))
}

struct Run {
    world: Arc<World>,
    sim: turmoil::Sim<'static>,
    plan: Plan,
    done: usize,
    links: Links,
    random: StdRng,
    digests_at: Duration,
}

impl Run {
    fn new(world: Arc<World>) -> Self {
        let mut random = world.random("run", 0);
        let mut builder = turmoil::Builder::new();
        builder
            .rng_seed(world.seed)
            .epoch(SystemTime::UNIX_EPOCH)
            .tick_duration(STEP)
            .simulation_duration(Duration::from_secs(3_600))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(random.random_range(2..12)))
            .tcp_capacity(4_096);
        let mut sim = builder.build();
        for number in 0..NODES {
            let world = Arc::clone(&world);
            sim.host(node::host(number), move || node::live(Arc::clone(&world), number));
        }
        sim.client(CLIENTS, client::live(Arc::clone(&world)));
        let plan = faults::plan(&mut random, FAULTS_LAST);
        let links = Links::default();
        Self { world, sim, plan, done: 0, links, random, digests_at: Duration::ZERO }
    }

    fn live(&mut self) -> Result<(), String> {
        self.until(Phase::Faults, "the founding", liveness::FOUNDED_WITHIN)?;
        let begun = self.world.now();
        while self.done < self.plan.len() || self.world.now() < begun + FAULTS_LAST {
            while let Some((at, change)) = self.plan.get(self.done).copied()
                && begun + at <= self.world.now()
            {
                self.done += 1;
                self.make(change);
            }
            self.step()?;
        }
        self.world.enter(Phase::Resolving);
        self.until(Phase::Settled, "answering", liveness::ANSWERED_WITHIN)?;
        self.settle()?;
        invariants::judge_history(&self.world.history.lock())
    }

    /// Steps until a phase begins.
    fn until(&mut self, phase: Phase, what: &str, within: Duration) -> Result<(), String> {
        let begun = self.world.now();
        while self.world.phase() < phase {
            self.step()?;
            liveness::check(what, self.world.now() - begun, within)?;
        }
        Ok(())
    }

    /// Steps until all replicas of each group have applied the same, then compares them.
    fn settle(&mut self) -> Result<(), String> {
        let begun = self.world.now();
        loop {
            self.step()?;
            let taken = self.world.now() - begun;
            liveness::check("catching up", taken, liveness::SETTLED_WITHIN)
                .map_err(|late| format!("{late}: {}", self.levels()))?;
            if self.are_level() {
                self.check_coverage()?;
                self.compare_states()?;
                return self.send_by_an_old_route();
            }
        }
    }

    /// Puts a write with another epoch into a shard's log: what was routed before the shard changed
    /// and comes to be applied after it.
    #[cfg(feature = "mutants")]
    fn send_by_an_old_route(&mut self) -> Result<(), String> {
        use crate::invariants::old_routes;

        let leaders = self.cores();
        let leaders = leaders.iter().flat_map(|(_, core)| core.host.replicas());
        let Some(probe) = leaders.filter(|replica| replica.is_leader()).find_map(old_routes::probe)
        else {
            return Ok(());
        };
        let (replica, command) = probe;
        let mut answer =
            replica.propose_unchecked(vec![command]).map_err(|error| error.to_string())?;
        let begun = self.world.now();
        loop {
            self.step()?;
            match answer.try_recv() {
                Ok(answer) => return old_routes::check(&answer),
                Err(_) => {
                    let taken = self.world.now() - begun;
                    liveness::check("answering an old route", taken, liveness::SETTLED_WITHIN)?;
                }
            }
        }
    }

    /// Only a build for finding mutants has a way past the check at the door.
    #[cfg(not(feature = "mutants"))]
    #[expect(clippy::unnecessary_wraps, clippy::unused_self, reason = "the other one can fail")]
    fn send_by_an_old_route(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        self.world.set_now(self.sim.elapsed());
        let stepped = self.sim.step();
        if let Some(what) = self.world.violation() {
            return Err(what);
        }
        stepped.map_err(|error| format!("a node or a client ended: {error}"))?;
        self.look()?;
        if self.digests_at <= self.world.now() {
            self.digests_at = self.world.now() + DIGEST_INTERVAL;
            self.compare_states()?;
        }
        Ok(())
    }

    fn make(&mut self, change: Change) {
        self.world.note(format_args!("{change:?}"));
        if let Some((a, b)) = self.links.take(change) {
            self.set_link(a, b);
        }
        match change {
            Change::Crash(number) => {
                self.sim.crash(node::host(number));
                self.world.sites[number].disk.crash(&mut self.random);
            }
            Change::Start(number) => self.sim.bounce(node::host(number)),
            Change::Jump(number, millis) => {
                self.world.sites[number].clock_offset_ms.store(millis, Ordering::Relaxed);
            }
            Change::SlowSync(number, millis) => {
                self.world.sites[number].sync_delay_ms.store(millis, Ordering::Relaxed);
            }
            Change::Drop(..) | Change::Deliver(..) | Change::Hold(..) | Change::Release(..) => {}
        }
    }

    fn set_link(&self, a: Host, b: Host) {
        let name = |host| match host {
            Host::Node(number) => node::host(number),
            Host::Clients => CLIENTS.to_owned(),
        };
        let (from, to) = (name(a), name(b));
        // From a clean state: what the last fault left behind must not outlive it.
        self.sim.release(from.as_str(), to.as_str());
        self.sim.repair(from.as_str(), to.as_str());
        match self.links.state(a, b) {
            LinkState::Whole => {}
            LinkState::Held => self.sim.hold(from.as_str(), to.as_str()),
            LinkState::Lost { forth, back } => {
                if forth {
                    self.sim.partition_oneway(from.as_str(), to.as_str());
                }
                if back {
                    self.sim.partition_oneway(to.as_str(), from.as_str());
                }
            }
        }
    }

    /// The nodes that run.
    fn cores(&self) -> Vec<(usize, Arc<Core>)> {
        let core = |(number, site): (usize, &Site)| Some((number, site.core.lock().upgrade()?));
        self.world.sites.iter().enumerate().filter_map(core).collect()
    }

    fn look(&self) -> Result<(), String> {
        let mut all = Vec::new();
        for (number, core) in self.cores() {
            key_coverage::check_disjoint(number, &ranges(&core))?;
            for replica in replicas(&core) {
                let log = &self.world.sites[number].disk.log;
                let status = replica.status();
                all.push(Seen {
                    node: number,
                    group: group_of(&replica),
                    replica: replica.replica_id().0,
                    applied_end: status.applied_index.map_or(0, |index| index + 1),
                    log,
                });
            }
        }
        self.world.invariants.lock().leader_completeness.look(&all)
    }

    /// Whether every node has every replica, all replicas of a group have applied the same, and every
    /// merge has been ended.
    fn are_level(&self) -> bool {
        let cores = self.cores();
        let ends = cores.iter().map(|(_, core)| {
            let end = |replica: &Arc<Replica>| {
                (group_of(replica), replica.status().applied_index, replica.leader().is_some())
            };
            replicas(core).iter().map(end).collect::<Vec<_>>()
        });
        let ends: Vec<_> = ends.collect();
        cores.len() == NODES
            && ends.windows(2).all(|pair| pair[0] == pair[1])
            && ends.iter().flatten().all(|(.., has_leader)| *has_leader)
            && cores.iter().all(|(_, core)| {
                replicas(core).iter().all(|replica| replica.state().merging.is_none())
            })
    }

    /// How far each replica is, for people.
    fn levels(&self) -> String {
        let mut text = String::new();
        for (number, core) in self.cores() {
            for replica in replicas(&core) {
                let status = replica.status();
                let (role, term, last) = (status.role, status.term, status.last_index);
                let (applied, leader) = (status.applied_index, replica.leader());
                let leader = leader.map(|leader| leader.node_id.counter());
                text.push_str(&format!(
                    "\n  n{number} {}: {role:?} of term {term}, log {last:?}, applied {applied:?}, \
                     leader {leader:?}, {:?}",
                    status.shard_id, status.fence
                ));
            }
        }
        text
    }

    /// Whether every account's keys have one owner each, on every node.
    fn check_coverage(&self) -> Result<(), String> {
        for (number, core) in self.cores() {
            let mut shards = self.world.shards.lock();
            *shards = (*shards).max(core.host.replicas().len());
            let mut merged = self.world.merged.lock();
            *merged = (*merged).max(core.catalog().merged_shards.len());
            for account in core.catalog().accounts.keys() {
                let whole = KeyRange::of_account(*account);
                key_coverage::check_whole(number, whole, &ranges(&core))?;
            }
        }
        Ok(())
    }

    fn compare_states(&self) -> Result<(), String> {
        for (number, core) in self.cores() {
            for replica in replicas(&core) {
                let end = replica.status().applied_index.map_or(0, |index| index + 1);
                let digest = digest(&core, &replica)?;
                self.world.invariants.lock().state_equality.saw(
                    number,
                    group_of(&replica),
                    end,
                    digest,
                )?;
            }
        }
        Ok(())
    }
}

/// All replicas of a node, the catalog's first.
fn replicas(core: &Core) -> Vec<Arc<Replica>> {
    let mut all = vec![core.host.catalog_replica()];
    all.extend(core.host.replicas());
    all
}

/// What each shard's replica on a node owns.
fn ranges(core: &Core) -> Vec<(ShardId, KeyRange)> {
    let replicas = core.host.replicas();
    replicas.iter().map(|replica| (replica.shard_id(), replica.state().descriptor.range)).collect()
}

fn group_of(replica: &Replica) -> GroupId {
    // Nothing re-founds a shard here.
    GroupId { shard: replica.shard_id().0, incarnation: 1 }
}

/// A digest of everything that a replica holds.
fn digest(core: &Core, replica: &Replica) -> Result<u64, String> {
    let hasher = RefCell::new(DefaultHasher::new());
    if replica.shard_id() == anchorhold_model::ShardId::CATALOG {
        format!("{:?}", core.catalog()).hash(&mut *hasher.borrow_mut());
    } else {
        format!("{:?}", replica.state()).hash(&mut *hasher.borrow_mut());
        let scanned = replica.scan_records(
            &mut |anchor| format!("{anchor:?}").hash(&mut *hasher.borrow_mut()),
            &mut |id, operation, time| {
                format!("{id:?} {operation:?} {time:?}").hash(&mut *hasher.borrow_mut());
            },
        );
        scanned.map_err(|error| format!("a replica cannot be read: {error}"))?;
    }
    Ok(hasher.into_inner().finish())
}
