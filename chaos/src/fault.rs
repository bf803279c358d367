//! Doing a fault to a cluster, proving that it took, and taking it back.
//!
//! Not here: which flows a network fault touches (`cut`), the means (`driver`), when (`run`).

mod proof;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use rand::Rng as _;
use rand::rngs::StdRng;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::cut::Cut;
use crate::driver::{Damage, ProcessDriver};
use crate::events::Canary;
use crate::proxy::LinkId;
use crate::scenario::{DamagedFile, Fault, FaultKind};

/// What was seen of a fault.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Whether it took.
    pub canary: Canary,
    /// What exactly was done and seen.
    pub detail: String,
}

/// A fault that is on.
pub struct ActiveFault {
    id: u32,
    kind: FaultKind,
    nodes: Vec<String>,
    /// The failpoint at which they end, if that is the fault.
    point: &'static str,
    /// What goes on while it lasts.
    task: Option<JoinHandle<anyhow::Result<Seen>>>,
    /// Connections through the proxies of its links when it began.
    connections: u64,
    /// How often all its nodes were frozen at once.
    freezes: Arc<AtomicU64>,
    /// The clocks that run fast, as they were when they began to.
    clocks: Vec<proof::Drift>,
}

/// How long a node may take to be ready again after it was started.
const READY_MAX: Duration = Duration::from_secs(60);
/// How long a heal looks whether a node is ready: other faults wait for their turn meanwhile, and
/// may be what keeps it from being ready.
const HEALED_READY_MAX: Duration = Duration::from_secs(2);
/// How long a whole rolling restart may take.
const ROLL_MAX: Duration = Duration::from_secs(300);

impl Seen {
    fn took(detail: impl Into<String>) -> Self {
        Self { canary: Canary::Took, detail: detail.into() }
    }

    fn of(is_seen: bool, detail: impl Into<String>) -> Self {
        let canary = if is_seen { Canary::Took } else { Canary::DidNotTake };
        Self { canary, detail: detail.into() }
    }
}

/// Does a fault to some nodes. Returns once it holds, with the proof.
///
/// What could not be done did not take: a node may have ended a moment ago. It is to be healed all
/// the same, for some of it may have been done.
pub async fn apply(
    driver: &Arc<ProcessDriver>,
    id: u32,
    fault: &Fault,
    nodes: Vec<String>,
    rng: &mut StdRng,
) -> (ActiveFault, Seen) {
    let connections = proof::connections(driver, &links_of(driver, &nodes));
    let mut active = ActiveFault {
        id,
        kind: fault.kind,
        nodes,
        point: fault.settings.point,
        task: None,
        connections,
        freezes: Arc::default(),
        clocks: Vec::new(),
    };
    let begun = begin(driver, &mut active, fault, rng).await;
    let seen = begun.unwrap_or_else(|error| Seen::of(false, format!("{error:#}")));
    (active, seen)
}

async fn begin(
    driver: &Arc<ProcessDriver>,
    active: &mut ActiveFault,
    fault: &Fault,
    rng: &mut StdRng,
) -> anyhow::Result<Seen> {
    let (id, kind, nodes) = (active.id, active.kind, active.nodes.clone());
    let seen = match kind {
        FaultKind::Kill => {
            driver.kill(&nodes)?;
            proof::dead(driver, &nodes).await?
        }
        FaultKind::PowerLoss => power_loss(driver, id, &nodes, rng).await?,
        FaultKind::Pause => pause(driver, id, &nodes)?,
        FaultKind::Starve => {
            let freezes = Arc::clone(&active.freezes);
            active.task =
                Some(tokio::spawn(starve(driver.clone(), id, nodes, fault.clone(), freezes)));
            Seen { canary: Canary::None, detail: "frozen and not in turn".to_owned() }
        }
        FaultKind::Stop => stop(driver, &nodes).await?,
        FaultKind::Roll => {
            active.task = Some(tokio::spawn(roll(driver.clone(), nodes)));
            Seen { canary: Canary::None, detail: "one after the other".to_owned() }
        }
        FaultKind::Wipe => wipe(driver, &nodes).await?,
        FaultKind::BitFlip | FaultKind::TornTail => damage(driver, fault, &nodes, rng).await?,
        FaultKind::Isolate
        | FaultKind::Flap
        | FaultKind::OneWayIn
        | FaultKind::OneWayOut
        | FaultKind::Halves
        | FaultKind::Bridge
        | FaultKind::Ring
        | FaultKind::ClientsOnly
        | FaultKind::PeersOnly
        | FaultKind::Refuse
        | FaultKind::Slow
        | FaultKind::Lossy => {
            let cut = Cut::of(kind, &nodes, &driver.names(), &fault.settings);
            driver.set_cut(id, Some(cut.clone()));
            let seen = proof::links(driver, &cut).await;
            if kind == FaultKind::Flap {
                let half = turn(fault) / 2;
                active.task = Some(tokio::spawn(flap(driver.clone(), id, cut, half)));
            }
            seen
        }
        FaultKind::Reset => {
            let links = links_of(driver, &nodes);
            active.task = Some(tokio::spawn(reset(driver.clone(), links, turn(fault))));
            Seen { canary: Canary::None, detail: "reset over and over".to_owned() }
        }
        FaultKind::ClockJump => clock_jump(driver, fault, &nodes).await?,
        FaultKind::ClockDrift => {
            for node in &nodes {
                active.clocks.push(proof::Drift::begin(driver, node, fault.settings.rate).await?);
            }
            let rate = fault.settings.rate * 100.0;
            Seen { canary: Canary::None, detail: format!("both clocks {rate} % fast") }
        }
        FaultKind::DiskFull
        | FaultKind::DiskWriteError
        | FaultKind::DiskSyncError
        | FaultKind::DiskStall => disk(driver, fault, &nodes).await?,
        FaultKind::CrashAt => crash_at(driver, fault, &nodes)?,
    };
    Ok(seen)
}

/// Whether nodes may end by themselves while a fault of this kind lasts.
fn excuses(kind: FaultKind) -> bool {
    matches!(
        kind,
        FaultKind::BitFlip
            | FaultKind::TornTail
            | FaultKind::DiskFull
            | FaultKind::DiskWriteError
            | FaultKind::DiskSyncError
            | FaultKind::DiskStall
            | FaultKind::CrashAt
    )
}

/// Whether processes end by a fault of this kind, or may.
pub fn ends_processes(kind: FaultKind) -> bool {
    excuses(kind)
        || matches!(
            kind,
            FaultKind::Kill
                | FaultKind::PowerLoss
                | FaultKind::Stop
                | FaultKind::Roll
                | FaultKind::Wipe
        )
}

/// Arms a failpoint. Whether it was reached is seen when the fault is taken back: a node may have to
/// be started first to come to it.
fn crash_at(driver: &ProcessDriver, fault: &Fault, nodes: &[String]) -> anyhow::Result<Seen> {
    driver.excuse(nodes, true);
    let point = fault.settings.point;
    for node in nodes {
        driver.control(node)?.want(|wanted| point.clone_into(&mut wanted.ends_at))?;
    }
    Ok(Seen { canary: Canary::None, detail: format!("armed {point}") })
}

fn turn(fault: &Fault) -> Duration {
    Duration::from_secs_f64(fault.settings.period_ms / 1_000.0)
}

/// First nobody hears it any more, then it is gone: a host without power sends no goodbye.
async fn power_loss(
    driver: &ProcessDriver,
    id: u32,
    nodes: &[String],
    rng: &mut StdRng,
) -> anyhow::Result<Seen> {
    let settings = crate::scenario::FaultSettings::default();
    let cut = Cut::of(FaultKind::PowerLoss, nodes, &driver.names(), &settings);
    let mut held = 0;
    for node in nodes {
        // Asked before the silence only because it costs time.
        let applied = driver.control(node)?.change(|_| {}).await?;
        held += applied.hits.get("held_writes").copied().unwrap_or_default();
    }
    driver.set_cut(id, Some(cut));
    driver.cut_power(nodes)?;
    let gone = nodes.iter().all(|node| matches!(driver.process(node), Ok(None)));
    let torn = tear_state(driver, nodes, rng)?;
    let detail = format!(
        "silent, then killed; {held} writes were held back until their sync so far; {torn}"
    );
    Ok(Seen::of(gone && 0 < held, detail))
}

fn pause(driver: &ProcessDriver, id: u32, nodes: &[String]) -> anyhow::Result<Seen> {
    let mut frozen = 0;
    for node in nodes {
        frozen += usize::from(driver.pause(id, node)?);
    }
    Ok(Seen::of(frozen == nodes.len(), format!("{frozen} processes are frozen")))
}

async fn wipe(driver: &ProcessDriver, nodes: &[String]) -> anyhow::Result<Seen> {
    driver.kill(nodes)?;
    let mut seen = proof::dead(driver, nodes).await?;
    for node in nodes {
        driver.wipe(node)?;
        driver.start_node(node).await?;
    }
    seen.detail.push_str("; disk emptied, started as nobody");
    Ok(seen)
}

async fn stop(driver: &ProcessDriver, nodes: &[String]) -> anyhow::Result<Seen> {
    let (mut detail, mut all) = (Vec::new(), true);
    for node in nodes {
        let begun = Instant::now();
        let by_itself = driver.stop_node(node).await?;
        all &= by_itself;
        let took = begun.elapsed().as_millis();
        detail.push(if by_itself {
            format!("{node} stopped in {took} ms")
        } else {
            format!("{node} did not stop in {took} ms and was killed")
        });
    }
    Ok(Seen::of(all, detail.join(", ")))
}

async fn roll(driver: Arc<ProcessDriver>, nodes: Vec<String>) -> anyhow::Result<Seen> {
    let (mut detail, mut all) = (Vec::new(), true);
    for node in &nodes {
        let begun = Instant::now();
        let by_itself = driver.stop_node(node).await?;
        let stopped = begun.elapsed().as_millis();
        driver.start_node(node).await?;
        let is_ready = driver.wait_ready(node, READY_MAX).await;
        all &= by_itself && is_ready;
        let how = if by_itself { "stopped" } else { "had to be killed" };
        let ready = if is_ready { "ready" } else { "not ready" };
        let whole = begun.elapsed().as_millis();
        detail.push(format!("{node} {how} after {stopped} ms, {ready} after {whole} ms"));
        // The next one only when this one carries its share: as an operator does it.
        wait_healthy(&driver, READY_MAX).await;
    }
    Ok(Seen::of(all, detail.join("; ")))
}

async fn wait_healthy(driver: &ProcessDriver, wait: Duration) -> bool {
    let give_up = Instant::now() + wait;
    while Instant::now() < give_up {
        if driver.survey(0).await.is_healthy {
            return true;
        }
        sleep(Duration::from_millis(100)).await;
    }
    false
}

async fn damage(
    driver: &ProcessDriver,
    fault: &Fault,
    nodes: &[String],
    rng: &mut StdRng,
) -> anyhow::Result<Seen> {
    // It may refuse to start, which is right.
    driver.excuse(nodes, true);
    driver.kill(nodes)?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "settings are checked: from 1 to 1e6"
    )]
    let count = fault.settings.count as usize;
    let damage = if fault.kind == FaultKind::TornTail {
        Damage::TornTail(count as u64)
    } else {
        Damage::BitFlip(count)
    };
    let file = fault.settings.file;
    let (mut detail, mut all) = (Vec::new(), true);
    for node in nodes {
        match driver.damage(node, file, damage, rng)? {
            Some(what) => detail.push(format!("{node}: {what}")),
            None => {
                all = false;
                detail.push(format!("{node} has no {} file yet", file.directory()));
            }
        }
        driver.start_node(node).await?;
        if driver.wait_ready(node, READY_MAX).await {
            detail.push("it started".to_owned());
        } else if driver.process(node)?.is_some() {
            detail.push("it runs and is not ready".to_owned());
        } else {
            detail.push(format!("it refused to start ({})", driver.last_words(node)));
            if file == DamagedFile::Log {
                // What its operator does: a node that cannot know what it promised comes back as
                // another one.
                driver.kill(std::slice::from_ref(node))?;
                driver.wipe(node)?;
                driver.start_node(node).await?;
                detail.push("wiped, and started as nobody".to_owned());
            }
        }
    }
    Ok(Seen::of(all, detail.join("; ")))
}

async fn starve(
    driver: Arc<ProcessDriver>,
    id: u32,
    nodes: Vec<String>,
    fault: Fault,
    freezes: Arc<AtomicU64>,
) -> anyhow::Result<Seen> {
    let period = turn(&fault);
    let running = period.mul_f64(fault.settings.share);
    loop {
        let mut all = true;
        for node in &nodes {
            // One that has ended meanwhile cannot be frozen.
            all &= driver.pause(id, node).unwrap_or_default();
        }
        freezes.fetch_add(u64::from(all), Ordering::Relaxed);
        sleep(period - running).await;
        for node in &nodes {
            driver.resume(id, node);
        }
        sleep(running).await;
    }
}

async fn flap(
    driver: Arc<ProcessDriver>,
    id: u32,
    cut: Cut,
    half: Duration,
) -> anyhow::Result<Seen> {
    loop {
        sleep(half).await;
        driver.set_cut(id, None);
        sleep(half).await;
        driver.set_cut(id, Some(cut.clone()));
    }
}

async fn reset(
    driver: Arc<ProcessDriver>,
    links: BTreeSet<LinkId>,
    period: Duration,
) -> anyhow::Result<Seen> {
    loop {
        driver.fabric().reset(links.clone());
        sleep(period).await;
    }
}

fn links_of(driver: &ProcessDriver, nodes: &[String]) -> BTreeSet<LinkId> {
    let touches = |link: &LinkId| {
        nodes.iter().any(|node| link.to == *node || link.from == crate::network::Party::node(node))
    };
    driver.fabric().links().into_iter().filter(touches).collect()
}

async fn clock_jump(
    driver: &ProcessDriver,
    fault: &Fault,
    nodes: &[String],
) -> anyhow::Result<Seen> {
    #[expect(clippy::cast_possible_truncation, reason = "settings are checked: within 1e9")]
    let by_ms = fault.settings.by_ms as i64;
    let (mut detail, mut all) = (Vec::new(), true);
    for node in nodes {
        let control = driver.control(node)?;
        let before = proof::clock_ahead_ms(&control.change(|_| {}).await?);
        let applied = control.change(|wanted| wanted.clock_offset_ms = by_ms).await?;
        let moved = proof::clock_ahead_ms(&applied) - before;
        // Between the two looks of each lie some milliseconds of true time.
        all &= (moved - by_ms).abs() < 1_000;
        detail.push(format!("{node}: the clock moved by {moved} ms"));
    }
    Ok(Seen::of(all, detail.join("; ")))
}

async fn disk(driver: &ProcessDriver, fault: &Fault, nodes: &[String]) -> anyhow::Result<Seen> {
    driver.excuse(nodes, true);
    let (mut detail, mut all) = (Vec::new(), true);
    for node in nodes {
        let (took, what) = proof::disk(driver, node, fault).await?;
        all &= took;
        detail.push(format!("{node}: {what}"));
    }
    Ok(Seen::of(all, detail.join("; ")))
}

impl ActiveFault {
    /// The nodes that it hits.
    pub fn nodes(&self) -> &[String] {
        &self.nodes
    }

    /// Takes it back, and says what was seen of it until then. What `others`, which are still on,
    /// did to the same nodes stays.
    ///
    /// # Errors
    /// If it cannot be taken back.
    pub async fn heal(
        mut self,
        driver: &Arc<ProcessDriver>,
        others: &[&Self],
    ) -> anyhow::Result<Seen> {
        let is_held = |kinds: &[FaultKind], node: &String| {
            others.iter().any(|other| kinds.contains(&other.kind) && other.nodes.contains(node))
        };
        let mut seen = Seen::took("");
        if let Some(task) = self.task.take() {
            seen = self.end_task(driver, task).await?;
        }
        if self.kind == FaultKind::CrashAt {
            seen = proof::ended_at(driver, &self.nodes, self.point).await?;
        }
        if !self.clocks.is_empty() {
            seen = proof::drifted(driver, &self.clocks).await?;
        }
        driver.set_cut(self.id, None);
        for node in &self.nodes {
            driver.resume(self.id, node);
            if let Ok(control) = driver.control(node)
                && !is_held(&[self.kind], node)
            {
                control.undo(self.kind)?;
            }
        }
        let is_excused = |node: &&String| {
            others.iter().any(|other| excuses(other.kind) && other.nodes.contains(node))
        };
        if excuses(self.kind) {
            let excused = self.nodes.iter().filter(|node| !is_excused(node));
            driver.excuse(&excused.cloned().collect::<Vec<_>>(), false);
        }
        let down = [FaultKind::Kill, FaultKind::PowerLoss, FaultKind::Stop];
        let starts = self.nodes.iter().filter(|node| !is_held(&down, node));
        let starts = starts.map(|node| async move {
            if driver.process(node)?.is_none() {
                driver.start_node(node).await?;
                let begun = Instant::now();
                let is_ready = driver.wait_ready(node, HEALED_READY_MAX).await;
                let took = begun.elapsed().as_millis();
                let words = if is_ready { "ready" } else { "still not ready" };
                return anyhow::Ok(Some(format!("{node} {words} after {took} ms")));
            }
            Ok(None)
        });
        let started = futures::future::try_join_all(starts).await?;
        let started: Vec<String> = started.into_iter().flatten().collect();
        if !started.is_empty() {
            seen.detail = [seen.detail, started.join(", ")].join(" ").trim().to_owned();
        }
        // The next one-way fault is proved on connections that were made in good times.
        let links = driver.fabric().links();
        driver.fabric().probe(&links, Duration::from_millis(500)).await;
        Ok(seen)
    }

    async fn end_task(
        &self,
        driver: &Arc<ProcessDriver>,
        mut task: JoinHandle<anyhow::Result<Seen>>,
    ) -> anyhow::Result<Seen> {
        if self.kind == FaultKind::Roll {
            let ended = tokio::time::timeout(ROLL_MAX, &mut task).await;
            return ended.context("the rolling restart did not end")?.context("it panicked")?;
        }
        task.abort();
        // Aborted, as wished.
        let _ = task.await;
        if self.kind == FaultKind::Reset {
            let links = links_of(driver, &self.nodes);
            let made = proof::connections(driver, &links).saturating_sub(self.connections);
            return Ok(Seen::of(0 < made, format!("{made} connections had to be made again")));
        }
        if self.kind == FaultKind::Starve {
            let freezes = self.freezes.load(Ordering::Relaxed);
            return Ok(Seen::of(0 < freezes, format!("frozen {freezes} times")));
        }
        Ok(Seen::took(""))
    }
}

/// Draws what becomes of the state engine's files in a power cut: kept, torn or gone.
fn tear_state(
    driver: &ProcessDriver,
    nodes: &[String],
    rng: &mut StdRng,
) -> anyhow::Result<String> {
    let mut detail = Vec::new();
    for node in nodes {
        let damage = match rng.random_range(0..3) {
            0 => continue,
            1 => Damage::TornTail(rng.random_range(1..100_000)),
            _ => Damage::Gone,
        };
        if let Some(what) = driver.damage(node, DamagedFile::State, damage, rng)? {
            detail.push(format!("{node}: {what}"));
        }
    }
    Ok(detail.join("; "))
}
