//! The second pass: sends the rows in batches, several at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anchorhold_client::v1::batch_create_anchors_result::Result as Created;
use anchorhold_client::v1::batch_get_anchors_result::Result as Got;
use anchorhold_client::{Client, ClientError, Reason, v1};
use anchorhold_model::{AccountNumber, AnchorId, RequestId};
use anchorhold_proto::{NextMove, convert};
use anyhow::{Context as _, bail};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::import::ledger::Ledger;
use crate::import::{BATCH_ROWS, Batch, Source, account_of, request_id, rows, uuid_text};
use crate::progress::Progress;

/// Sends the rows of one import.
#[derive(Clone)]
pub(crate) struct Sender {
    client: Client,
    account: AccountNumber,
    digest: [u8; 32],
    parallel: usize,
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sent {
    /// Anchors that an earlier run had stored.
    pub(crate) stored_before: u64,
}

/// Batches read ahead.
const BATCHES_READ_AHEAD: usize = 4;
/// How long items of a batch that failed by themselves are sent again.
const ITEMS_DEADLINE: Duration = Duration::from_secs(60);
/// Between two tries of a batch.
const PAUSE: Duration = Duration::from_millis(100);
/// Up to this age of the last run a batch is sent again under its own request id: nodes remember
/// it for 15 minutes. Later the import looks what is stored; whatever the last run had in flight
/// is over by then.
const SAME_ID_AGE_MAX: Duration = Duration::from_secs(600);

impl Sender {
    /// A sender for the import with this digest.
    ///
    /// # Errors
    /// If the client does not know its account.
    pub(crate) fn new(client: Client, digest: [u8; 32], parallel: usize) -> anyhow::Result<Self> {
        let account = account_of(&client)?;
        Ok(Self { client, account, digest, parallel: parallel.max(1) })
    }

    /// Sends every batch that is not done.
    ///
    /// # Errors
    /// If the source cannot be read, or a batch is refused or cannot be delivered in time.
    pub(crate) async fn send(
        &self,
        source: Arc<Source>,
        mut ledger: Option<&mut Ledger>,
        mut progress: Progress,
    ) -> anyhow::Result<Sent> {
        let (sender, mut batches) = mpsc::channel(BATCHES_READ_AHEAD);
        let reader = tokio::task::spawn_blocking(move || read_batches(&source, &sender));
        let mut sent = Sent::default();
        let mut open: JoinSet<anyhow::Result<(u64, u64)>> = JoinSet::new();
        let mut is_read = false;
        while !is_read || !open.is_empty() {
            tokio::select! {
                batch = batches.recv(), if !is_read && open.len() < self.parallel => {
                    let Some(batch) = batch else {
                        is_read = true;
                        continue;
                    };
                    let rows = batch.anchors.len() as u64;
                    if ledger.as_ref().is_some_and(|ledger| ledger.is_done(batch.number)) {
                        sent.stored_before += rows;
                        progress.add(rows);
                        continue;
                    }
                    let must_look = match &mut ledger {
                        Some(ledger) => {
                            ledger.note_sent(batch.number)?;
                            ledger.is_unsure(batch.number)
                                && SAME_ID_AGE_MAX < ledger.age_at_open()
                        }
                        None => false,
                    };
                    let this = self.clone();
                    open.spawn(async move {
                        let number = batch.number;
                        match must_look {
                            true => this.deliver_missing(&batch).await?,
                            false => this.deliver(&batch).await?,
                        }
                        Ok((number, rows))
                    });
                }
                Some(delivered) = open.join_next() => {
                    let (number, rows) = delivered??;
                    if let Some(ledger) = &mut ledger {
                        ledger.note_done(number)?;
                    }
                    progress.add(rows);
                }
            }
        }
        reader.await??;
        Ok(sent)
    }

    /// Sends a batch under its own request id until every item is stored.
    async fn deliver(&self, batch: &Batch) -> anyhow::Result<()> {
        let request = v1::BatchCreateAnchorsRequest {
            anchors: batch.anchors.clone(),
            request_id: uuid_text(self.batch_id(batch)),
            ids_only: true,
        };
        let deadline = Instant::now() + ITEMS_DEADLINE;
        loop {
            let reply = self.client.batch_create_anchors(request.clone()).await;
            let reply = reply.with_context(|| lines(batch))?;
            if reply.results.len() != batch.anchors.len() {
                bail!("{}: the node answered for other anchors", lines(batch));
            }
            let mut failed = None;
            for (result, line) in reply.results.iter().zip(&batch.lines) {
                let Some(Created::Error(error)) = &result.result else { continue };
                let error = ClientError::from(error);
                let is_passing =
                    error.reason().is_some_and(|reason| reason.next_move() != NextMove::Change);
                // The id is made from file and line: whatever has it, is this row.
                if error.reason() == Some(Reason::AnchorExists) {
                    continue;
                }
                if !is_passing || deadline <= Instant::now() {
                    return Err(error).with_context(|| format!("line {line}"));
                }
                failed = Some(error);
            }
            match failed {
                None => return Ok(()),
                // The items that are stored get their first answer again.
                Some(error) => sleep(error.retry_after().unwrap_or(PAUSE)).await,
            }
        }
    }

    /// Stores those rows of a batch that are not there yet. An earlier run may have stored any of
    /// them, as part of the batch or one by one.
    async fn deliver_missing(&self, batch: &Batch) -> anyhow::Result<()> {
        let by_batch = self.ids(batch, |item, _| (self.batch_id(batch), item))?;
        let by_row = self.ids(batch, |_, line| (self.row_id(line), 0))?;
        let mut missing: BTreeMap<u64, v1::Anchor> =
            batch.lines.iter().copied().zip(batch.anchors.iter().cloned()).collect();
        for ids in [by_batch, by_row] {
            let found = self.found(ids.iter().map(|(id, _)| id.clone()).collect()).await?;
            for (id, line) in ids {
                if found.contains(&id) {
                    missing.remove(&line);
                }
            }
        }
        for (line, anchor) in missing {
            let request_id = uuid_text(self.row_id(line));
            let request = v1::CreateAnchorRequest { anchor: Some(anchor), request_id };
            let created = self.client.create_anchor(request).await;
            created.with_context(|| format!("line {line}"))?;
        }
        Ok(())
    }

    /// The ids that the rows of a batch have if they were stored under these requests.
    fn ids(
        &self,
        batch: &Batch,
        request: impl Fn(u32, u64) -> (RequestId, u32),
    ) -> anyhow::Result<Vec<(String, u64)>> {
        let rows = batch.anchors.iter().zip(&batch.lines).zip(0_u32..);
        let id = |((anchor, line), item): ((&v1::Anchor, &u64), u32)| {
            let pose = convert::pose_from_wire(anchor.pose)?;
            let (request_id, item) = request(item, *line);
            let id = AnchorId::derive(self.account, &pose, request_id, item, 0);
            Ok((id.to_string(), *line))
        };
        rows.map(id).collect()
    }

    /// Which of these anchors are stored.
    async fn found(&self, ids: Vec<String>) -> anyhow::Result<BTreeSet<String>> {
        let request = v1::BatchGetAnchorsRequest { ids, read: None };
        let mut found = BTreeSet::new();
        for result in self.client.batch_get_anchors(request).await?.results {
            match result.result {
                Some(Got::Anchor(_)) => {
                    found.insert(result.id);
                }
                Some(Got::Error(error)) if is_missing(&error) => {}
                Some(Got::Error(error)) => return Err(ClientError::from(&error).into()),
                None => bail!("the node did not answer for {}", result.id),
            }
        }
        Ok(found)
    }

    fn batch_id(&self, batch: &Batch) -> RequestId {
        request_id(&self.digest, "batch", batch.number)
    }

    fn row_id(&self, line: u64) -> RequestId {
        request_id(&self.digest, "row", line)
    }
}

fn is_missing(error: &v1::ItemError) -> bool {
    ClientError::from(error).reason() == Some(Reason::AnchorNotFound)
}

/// For messages.
fn lines(batch: &Batch) -> String {
    let first = batch.lines.first().copied().unwrap_or_default();
    format!("lines {first} to {}", batch.lines.last().copied().unwrap_or(first))
}

/// Reads the good rows in batches. Ends early if nobody wants them any more.
fn read_batches(source: &Source, batches: &mpsc::Sender<Batch>) -> anyhow::Result<()> {
    let mut batch = Batch { number: 0, anchors: Vec::new(), lines: Vec::new() };
    for row in rows::read(source.format, (source.open)()?, &source.mapping)? {
        let row = row?;
        let Ok(anchor) = row.anchor else { continue };
        // Exactly the rows that the first pass counted.
        if convert::AnchorDraft::from_wire(anchor.clone()).is_err() {
            continue;
        }
        batch.anchors.push(anchor);
        batch.lines.push(row.line);
        if batch.anchors.len() == BATCH_ROWS {
            let number = batch.number + 1;
            let next = Batch { number, anchors: Vec::new(), lines: Vec::new() };
            if batches.blocking_send(std::mem::replace(&mut batch, next)).is_err() {
                return Ok(());
            }
        }
    }
    if !batch.anchors.is_empty() {
        // Nobody listens only after an error, which is reported there.
        drop(batches.blocking_send(batch));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::rows::FileFormat;
    use crate::record::Mapping;

    #[tokio::test]
    async fn batches_hold_the_good_rows_in_order_with_their_lines() {
        let mut text = String::from("lat,lon\n");
        for row in 0..1_201 {
            text.push_str(if row == 3 { "bad,2\n" } else { "1,2\n" });
        }
        let source = Source {
            name: "t.csv".to_owned(),
            format: FileFormat::Csv,
            mapping: Mapping::default(),
            open: Box::new(move || Ok(Box::new(std::io::Cursor::new(text.clone())))),
        };
        let (sender, mut batches) = mpsc::channel(8);
        tokio::task::spawn_blocking(move || read_batches(&source, &sender)).await.unwrap().unwrap();
        let mut seen = Vec::new();
        while let Some(batch) = batches.recv().await {
            seen.push((batch.number, batch.lines[0], batch.lines.len()));
        }
        assert_eq!(seen, [(0, 2, 500), (1, 503, 500), (2, 1_003, 200)]);
    }
}
