//! What the clients of a workload share: the way in, the clock, the record.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anchorhold_client::{Client, ClientError, v1};
use anyhow::Context as _;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::resolver::Open;
use super::wire::{self, Request, Write};
use crate::clock::RunClock;
use crate::history::{Action, Level, Operation, Outcome, Position, Recorder, Served, value_of};

/// Shared by the clients of one workload.
pub(super) struct Stage {
    pub(super) clock: RunClock,
    pub(super) recorder: Recorder,
    /// May use every node.
    pub(super) client: Client,
    /// One for each node, which talks to that node only and does not wait long.
    pub(super) nodes: Vec<Client>,
    pub(super) stop: AtomicBool,
    pub(super) counters: Counters,
    /// To the resolver; `None` says that no more will come.
    pub(super) open: mpsc::Sender<Option<Open>>,
}

/// What happened so far.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) acknowledged: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) unknown: AtomicU64,
    pub(super) resolved: AtomicU64,
    pub(super) last_ack_ns: AtomicU64,
}

/// What a write came to.
pub(super) struct Written {
    pub(super) outcomes: Vec<Outcome>,
    pub(super) token: Bytes,
}

/// What one read came to.
pub(super) struct Read {
    pub(super) outcome: Outcome,
    pub(super) token: Bytes,
}

/// What the wire said of a write.
struct Answer {
    outcomes: Vec<Outcome>,
    served: Served,
    token: Bytes,
}

impl Stage {
    /// Whether the clients are to go on.
    pub(super) fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Does a write, records it, and sees to it that an unknown outcome is found out.
    pub(super) async fn write(&self, client: u32, write: Write) -> anyhow::Result<Written> {
        let start_ns = self.clock.now_ns();
        let answer = self.send(&write).await;
        let end_ns = self.clock.now_ns();
        let is_unknown = |outcome: &Outcome| matches!(outcome, Outcome::Unknown { .. });
        let is_open = answer.outcomes.iter().any(is_unknown);
        for (action, outcome) in write.actions.iter().zip(&answer.outcomes) {
            self.record(Operation {
                client,
                start_ns,
                end_ns,
                resolved: false,
                served: answer.served,
                action: action.clone(),
                outcome: outcome.clone(),
            })?;
        }
        let Answer { outcomes, token, .. } = answer;
        if is_open {
            let known = outcomes.iter().map(|outcome| !is_unknown(outcome)).collect();
            let open = Open { client, start_ns, write, known };
            self.open.send(Some(open)).await.ok().context("the resolver has ended")?;
        }
        Ok(Written { outcomes, token })
    }

    /// Sends an open write again; records what is known now, and notes it in `known`. Returns
    /// whether everything is.
    pub(super) async fn resolve(&self, open: &mut Open) -> anyhow::Result<bool> {
        let answer = self.send(&open.write).await;
        let end_ns = self.clock.now_ns();
        let items = open.write.actions.iter().zip(&answer.outcomes).zip(&mut open.known);
        for ((action, outcome), known) in items {
            if *known || matches!(outcome, Outcome::Unknown { .. }) || is_undecided(outcome) {
                continue;
            }
            *known = true;
            self.record(Operation {
                client: open.client,
                start_ns: open.start_ns,
                end_ns,
                resolved: true,
                served: answer.served,
                action: action.clone(),
                outcome: outcome.clone(),
            })?;
        }
        Ok(open.known.iter().all(|known| *known))
    }

    async fn send(&self, write: &Write) -> Answer {
        let count = write.actions.len();
        match &write.request {
            Request::Create(request) => match self.client.create_anchor(request.clone()).await {
                Ok(reply) => {
                    let outcome = created(&write.actions[0], reply.anchor.as_ref());
                    answer(vec![outcome], reply.serving.as_ref(), reply.session_token)
                }
                Err(error) => failed(count, &error),
            },
            Request::Batch(request) => {
                match self.client.batch_create_anchors(request.clone()).await {
                    Ok(reply) => {
                        let items = write.actions.iter().zip(reply.results);
                        let mut outcomes: Vec<Outcome> = items.map(batch_item).collect();
                        let reason = "an incomplete answer".to_owned();
                        outcomes.resize(count, Outcome::Unknown { reason });
                        // Items of a batch may lie in several shards.
                        answer(outcomes, None, reply.session_token)
                    }
                    Err(error) => failed(count, &error),
                }
            }
            Request::Update(request) => match self.client.update_anchor(request.clone()).await {
                Ok(reply) => {
                    let outcome = updated(&write.actions[0], reply.anchor.as_ref());
                    answer(vec![outcome], reply.serving.as_ref(), reply.session_token)
                }
                Err(error) => failed(count, &error),
            },
            Request::Delete(request) => match self.client.delete_anchor(request.clone()).await {
                Ok(reply) => {
                    answer(vec![Outcome::Deleted], reply.serving.as_ref(), reply.session_token)
                }
                Err(error) => failed(count, &error),
            },
        }
    }

    /// Reads an anchor through `via` and records it.
    pub(super) async fn get(
        &self,
        client: u32,
        via: &Client,
        id: u128,
        level: Level,
        token: Bytes,
    ) -> anyhow::Result<Read> {
        let read = v1::ReadOptions { session_token: token, ..wire::read_options(level) };
        let request = v1::GetAnchorRequest { id: wire::text_of_id(id), read: Some(read) };
        let start_ns = self.clock.now_ns();
        let reply = via.get_anchor(request).await;
        let end_ns = self.clock.now_ns();
        let (outcome, served, token) = match reply {
            Ok(reply) => {
                let anchor = reply.anchor.unwrap_or_default();
                let outcome = match wire::version_of(&anchor) {
                    Some(version) if wire::id_of_text(&anchor.id) == Some(id) => {
                        Outcome::Found { version, value: value_of(&anchor) }
                    }
                    Some(_) | None => Outcome::Failed { reason: "another anchor".to_owned() },
                };
                (outcome, wire::served(reply.serving.as_ref()), reply.session_token)
            }
            Err(error) => (wire::read_failure(&error), Served::default(), Bytes::new()),
        };
        let action = Action::Get { id, level };
        let outcome_told = outcome.clone();
        let operation =
            Operation { client, start_ns, end_ns, resolved: false, served, action, outcome };
        self.record(operation)?;
        Ok(Read { outcome: outcome_told, token })
    }

    /// Asks for the nearest anchors and records the answer.
    pub(super) async fn nearest(
        &self,
        client: u32,
        position: Position,
        k: u32,
    ) -> anyhow::Result<()> {
        let Position { latitude_deg, longitude_deg, height_m } = position;
        let near = v1::NearPoint::on_earth(latitude_deg, longitude_deg, height_m, k);
        let start_ns = self.clock.now_ns();
        let reply = self.client.locate(near).await;
        let end_ns = self.clock.now_ns();
        let (outcome, served) = match reply {
            Ok(reply) => {
                let complete = reply.completeness.is_some_and(|one| one.complete);
                let rows = reply.anchors.iter().map(|located| {
                    wire::row_of(located.anchor.as_ref()?, located.distance_m.unwrap_or(f64::NAN))
                });
                let outcome = rows_outcome(rows.collect(), complete);
                (outcome, wire::served(reply.serving.as_ref()))
            }
            Err(error) => (wire::read_failure(&error), Served::default()),
        };
        let action = Action::Nearest { position, k };
        let resolved = false;
        self.record(Operation { client, start_ns, end_ns, resolved, served, action, outcome })
    }

    /// Lists everything by page and records the answer as one operation.
    pub(super) async fn list(&self, client: u32, page_size: u32) -> anyhow::Result<()> {
        let start_ns = self.clock.now_ns();
        let request = v1::ListAnchorsRequest { page_size, ..Default::default() };
        let mut pages = self.client.list_all(request);
        let mut rows = Some(Vec::new());
        let mut failure = None;
        while !pages.is_at_end() && failure.is_none() {
            match pages.next_page().await {
                Ok(page) => {
                    rows = rows.zip(wire::rows_of_page(&page)).map(|(mut rows, page)| {
                        rows.extend(page);
                        rows
                    });
                }
                Err(error) => failure = Some(wire::read_failure(&error)),
            }
        }
        let end_ns = self.clock.now_ns();
        let outcome = failure.unwrap_or_else(|| rows_outcome(rows, true));
        let action = Action::List { level: Level::Linearizable };
        let (resolved, served) = (false, Served::default());
        self.record(Operation { client, start_ns, end_ns, resolved, served, action, outcome })
    }

    fn record(&self, operation: Operation) -> anyhow::Result<()> {
        let counters = &self.counters;
        let counter = match (&operation.outcome, operation.resolved) {
            (_, true) => &counters.resolved,
            (Outcome::Failed { .. }, false) => &counters.failed,
            (Outcome::Unknown { .. }, false) => &counters.unknown,
            (_, false) => {
                counters.last_ack_ns.fetch_max(operation.end_ns, Ordering::Relaxed);
                &counters.acknowledged
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.recorder.record(&operation)
    }
}

fn rows_outcome(rows: Option<Vec<crate::history::Row>>, complete: bool) -> Outcome {
    match rows {
        Some(rows) => Outcome::Rows { rows, complete },
        None => Outcome::Failed { reason: "an anchor without id or etag".to_owned() },
    }
}

fn created(action: &Action, anchor: Option<&v1::Anchor>) -> Outcome {
    let Action::Create { value, .. } = action else { return unreachable_answer(action) };
    match anchor.and_then(|anchor| wire::id_of_text(&anchor.id)) {
        Some(id) => wire::written(id, *value, anchor),
        None => Outcome::Unknown { reason: "a reply without an anchor".to_owned() },
    }
}

fn updated(action: &Action, anchor: Option<&v1::Anchor>) -> Outcome {
    let Action::Update { id, value, .. } = action else { return unreachable_answer(action) };
    wire::written(*id, *value, anchor)
}

fn batch_item((action, result): (&Action, v1::BatchCreateAnchorsResult)) -> Outcome {
    use v1::batch_create_anchors_result::Result as Item;
    match result.result {
        Some(Item::Anchor(anchor)) => created(action, Some(&anchor)),
        // Whether an earlier try had got through is not told, item by item.
        Some(Item::Error(error)) => {
            let outcome = wire::write_failure(&ClientError::from(&error));
            let Outcome::Failed { reason } = outcome else { return outcome };
            Outcome::Unknown { reason }
        }
        None => Outcome::Unknown { reason: "an item without a result".to_owned() },
    }
}

/// A write that was sent again and refused at once: the first try may be under way still.
fn is_undecided(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Failed { reason } => {
            !crate::history::UNWRITTEN_REASONS.iter().any(|known| known.as_str() == reason)
        }
        Outcome::Unknown { .. } => true,
        Outcome::Written { .. }
        | Outcome::Deleted
        | Outcome::Found { .. }
        | Outcome::Absent
        | Outcome::Mismatch { .. }
        | Outcome::Rows { .. } => false,
    }
}

fn unreachable_answer(action: &Action) -> Outcome {
    Outcome::Unknown { reason: format!("an answer to another question than {action:?}") }
}

fn answer(outcomes: Vec<Outcome>, serving: Option<&v1::ServingInfo>, token: Bytes) -> Answer {
    Answer { outcomes, served: wire::served(serving), token }
}

fn failed(count: usize, error: &ClientError) -> Answer {
    let outcomes = vec![wire::write_failure(error); count];
    Answer { outcomes, served: Served::default(), token: Bytes::new() }
}
