//! `anchorhold import`: stores the anchors of a file, each exactly once.
//!
//! Two passes. The first reads everything, finds bad rows before anything is written, and draws the
//! sample that a new account is cut by. The second sends batches. A batch's request id is derived
//! from the file's contents and the batch's number, so a batch that is sent again has one effect;
//! the progress file says what need not be sent again.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use anchorhold_client::{AdminClient, Client, ClientError, Reason, admin_v1, v1};
use anchorhold_model::{AccountNumber, AnchorId, Pose, RequestId};
use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::context::{ClientArgs, Context};
use crate::exit::{Exit, Failure};
use crate::output::{self, thousands};
use crate::progress::Progress;
use crate::query::pair;
use crate::record::Mapping;

pub(crate) mod ledger;
pub(crate) mod rows;
pub(crate) mod scan;
pub(crate) mod send;

use ledger::{ImportIdentity, Ledger};
use rows::FileFormat;
use scan::{Scan, scan};
use send::Sender;

/// `anchorhold import`.
#[derive(Args, Debug)]
#[command(after_long_help = HELP)]
pub(crate) struct ImportArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The file
    file: PathBuf,
    /// Its format [default: told by the name]
    #[arg(long, value_enum)]
    format: Option<FileFormat>,
    /// What a column is called in this file; may be given several times
    #[arg(long, value_name = "FIELD=NAME", value_parser = pair)]
    column: Vec<(String, String)>,
    /// A property for every anchor; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    property: Vec<(String, String)>,
    /// A tag for every anchor; may be given several times
    #[arg(long)]
    tag: Vec<String>,
    /// Leave bad rows out instead of importing nothing
    #[arg(long)]
    skip_bad: bool,
    /// Read and check the file and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Shards that an account without anchors is cut into, at the quantiles of this file; needs
    /// the admin key [default: one for each 100,000 anchors]
    #[arg(long)]
    shards: Option<u32>,
    /// Batches sent at once
    #[arg(long, default_value_t = 16)]
    parallel: usize,
    /// Where the progress is kept [default: beside the file]
    #[arg(long, value_name = "FILE")]
    progress_file: Option<PathBuf>,
}

/// How files are read, for `--help`.
const HELP: &str = "\
Columns (CSV), members (NDJSON) and properties (GeoJSON) with these names are an anchor's parts:
  latitude|lat, longitude|lon|lng      degrees, WGS84
  height_m|height                      meters above the WGS84 ellipsoid, not above sea level
  space, x_m, y_m, z_m                 instead: a position in a local space
  orientation                          unit quaternion [x, y, z, w]
  horizontal_accuracy_m, vertical_accuracy_m, quality, creator
  expire_time                          such as 2027-01-31T12:00:00Z
  tags                                 text with ';' between, or a list
  properties                           a JSON object
Everything else becomes a property under its own name; empty values are left out. Rename by
--column, such as --column latitude=Y --column longitude=X.
GeoJSON positions come from the geometry, which must be a Point.

A re-run continues where the last one stopped and never stores an anchor twice.";

/// Anchors in one batch. Part of what names an import: another number makes other request ids.
pub(crate) const BATCH_ROWS: usize = 500;
/// Anchors for which one more shard is made.
const SHARD_ROWS: u64 = 100_000;
/// Shards made without being asked for, at most.
const SHARDS_MAX: u64 = 64;
/// Bad rows shown, at most.
const BAD_ROWS_SHOWN: usize = 20;
/// How long one batch may be retried: through elections and a busy disk.
const BATCH_DEADLINE: Duration = Duration::from_secs(60);

/// Anchors to import, wherever they come from.
pub(crate) struct Source {
    /// For messages.
    pub(crate) name: String,
    pub(crate) format: FileFormat,
    pub(crate) mapping: Mapping,
    /// Reads from the beginning, each time it is called.
    pub(crate) open: Box<dyn Fn() -> std::io::Result<Box<dyn Read + Send>> + Send + Sync>,
}

/// What an import did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Imported {
    /// Anchors of the file that are stored now.
    pub(crate) anchors: u64,
    /// Of these, stored by an earlier run.
    pub(crate) stored_before: u64,
    /// Bad rows left out.
    pub(crate) rows_skipped: u64,
    /// Seconds that sending took.
    pub(crate) seconds: f64,
    /// Anchors sent per second.
    pub(crate) anchors_per_second: f64,
}

/// Runs `anchorhold import`.
///
/// # Errors
/// If the file or a row is bad, or the cluster refuses; the message says how to go on.
pub(crate) async fn run(args: ImportArgs) -> anyhow::Result<()> {
    let context = Context::resolve(&args.client)?;
    let source = std::sync::Arc::new(args.source()?);
    let scanned = tokio::task::spawn_blocking({
        let source = source.clone();
        move || scan(&source)
    });
    let scanned = scanned.await??;
    report_bad(&source, &scanned, args.skip_bad)?;
    if args.dry_run {
        eprintln!("{} anchors can be imported; nothing was written", thousands(scanned.rows));
        return Ok(());
    }
    let client = context.client().await?.with_deadline(BATCH_DEADLINE);
    let mut ledger = args.ledger(&context, &client, &scanned).await?;
    if ledger.is_complete() {
        eprintln!("{} was imported before; nothing to do", source.name);
        return print(&context, &scanned, scanned.rows, Duration::ZERO);
    }
    if ledger.done_count() == 0 {
        lay_out(&context, &client, &scanned, args.shards).await?;
    }
    let started = tokio::time::Instant::now();
    let progress = Progress::new("anchors", scanned.rows);
    let sender = Sender::new(client, scanned.digest, args.parallel)?;
    let sent = sender.send(source.clone(), Some(&mut ledger), progress).await;
    let sent = sent.with_context(|| {
        format!("{} is not imported completely; run it again to continue", source.name)
    })?;
    ledger.note_complete()?;
    print(&context, &scanned, sent.stored_before, started.elapsed())
}

impl ImportArgs {
    fn source(&self) -> anyhow::Result<Source> {
        let path = self.file.clone();
        let format = self.format.map_or_else(|| FileFormat::of(&path), Ok);
        let format = format.map_err(|error| Failure::new(Exit::Usage, error.to_string(), ""))?;
        let renames = self.column.iter().map(|(field, name)| (name.clone(), field.clone()));
        let mapping = Mapping {
            renames: renames.collect(),
            properties: self.property.iter().cloned().collect(),
            tags: self.tag.clone(),
        };
        if let Some((name, field)) =
            mapping.renames.iter().find(|(_, field)| Mapping::default().field(field).is_none())
        {
            let problem = format!("--column {field}={name}: there is no field {field:?}");
            return Err(Failure::new(Exit::Usage, problem, "see `anchorhold import --help`").into());
        }
        Ok(Source {
            name: path.display().to_string(),
            format,
            mapping,
            open: Box::new(move || Ok(Box::new(std::fs::File::open(&path)?))),
        })
    }

    async fn ledger(
        &self,
        context: &Context,
        client: &Client,
        scanned: &Scan,
    ) -> anyhow::Result<Ledger> {
        let identity = identity(context.cluster_id().await?, account_of(client)?, scanned);
        let path = self.progress_file.clone().unwrap_or_else(|| {
            let mut name = self.file.clone().into_os_string();
            let cluster: String = identity.cluster.chars().take(8).collect();
            name.push(format!(".{cluster}-{}.progress", identity.account));
            PathBuf::from(name)
        });
        Ledger::open(&path, &identity)
    }
}

/// What an import is.
pub(crate) fn identity(cluster: String, account: AccountNumber, scanned: &Scan) -> ImportIdentity {
    let digest = scanned.digest.iter().map(|byte| format!("{byte:02x}")).collect();
    ImportIdentity { cluster, account: account.0, digest, batch_rows: BATCH_ROWS }
}

/// The number of the account that a client works for.
///
/// # Errors
/// If the client has learnt no routes.
pub(crate) fn account_of(client: &Client) -> anyhow::Result<AccountNumber> {
    client.account().map(AccountNumber).context("the node did not say whose key this is")
}

/// Shows the bad rows, and refuses them unless they may be left out.
fn report_bad(source: &Source, scanned: &Scan, may_skip: bool) -> anyhow::Result<()> {
    for (line, problem) in scanned.bad.iter().take(BAD_ROWS_SHOWN) {
        eprintln!("{}:{line}: {problem}", source.name);
    }
    if (BAD_ROWS_SHOWN as u64) < scanned.bad_rows {
        eprintln!("... and {} more bad rows", scanned.bad_rows - BAD_ROWS_SHOWN as u64);
    }
    if scanned.bad_rows == 0 || may_skip {
        return Ok(());
    }
    let problem = format!(
        "{} of {} rows are bad; nothing was imported",
        thousands(scanned.bad_rows),
        thousands(scanned.bad_rows + scanned.rows)
    );
    Err(Failure::new(Exit::Usage, problem, "mend them, or leave them out by --skip-bad").into())
}

/// Cuts an account that holds nothing yet, if that was asked for or is worth it.
///
/// # Errors
/// If it was asked for and cannot be done.
pub(crate) async fn lay_out(
    context: &Context,
    client: &Client,
    scanned: &Scan,
    wanted: Option<u32>,
) -> anyhow::Result<()> {
    let fitting = scanned.rows.div_ceil(SHARD_ROWS).clamp(1, SHARDS_MAX);
    let shards = wanted.unwrap_or(u32::try_from(fitting).unwrap_or(1));
    if wanted.is_none() && (shards == 1 || !context.has_admin_key()) {
        return Ok(());
    }
    match cut(&context.admin()?, account_of(client)?, scanned, shards).await {
        Ok(count) => eprintln!("laid out over {count} shards"),
        Err(error) if error.reason() == Some(Reason::AccountNotEmpty) => {
            if wanted.is_some() {
                eprintln!("--shards has no effect: {}", error.message());
            }
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Cuts an account at the quantiles of a sample; returns the number of shards.
///
/// # Errors
/// As the cluster says; ACCOUNT_NOT_EMPTY if it holds anchors.
pub(crate) async fn cut(
    admin: &AdminClient,
    account: AccountNumber,
    scanned: &Scan,
    shards: u32,
) -> Result<usize, ClientError> {
    let keys = scanned.sample.iter().map(|pose| key(account, pose).into()).collect();
    let sample = admin_v1::LayoutSample { keys, shards };
    let request = admin_v1::LayOutAccountRequest {
        account: account.0,
        layout: Some(admin_v1::lay_out_account_request::Layout::Sample(sample)),
        ..Default::default()
    };
    Ok(admin.lay_out_account(request).await?.shard_ids.len())
}

/// Where an anchor with this pose would be stored.
fn key(account: AccountNumber, pose: &Pose) -> Vec<u8> {
    AnchorId::derive(account, pose, RequestId(0), 0, 0).to_bytes().to_vec()
}

fn print(
    context: &Context,
    scanned: &Scan,
    stored_before: u64,
    elapsed: Duration,
) -> anyhow::Result<()> {
    let imported = Imported::new(scanned, stored_before, elapsed);
    output::print(context.output, &imported, || {
        let mut facts = vec![("anchors", thousands(imported.anchors))];
        if imported.stored_before != 0 {
            facts.push(("stored before", thousands(imported.stored_before)));
        }
        if imported.rows_skipped != 0 {
            facts.push(("rows left out", thousands(imported.rows_skipped)));
        }
        facts.push(("time", format!("{:.2} s", imported.seconds)));
        facts.push(("rate", format!("{:.0} anchors/s", imported.anchors_per_second)));
        output::facts(&facts)
    })
}

impl Imported {
    /// What was done in this time.
    pub(crate) fn new(scanned: &Scan, stored_before: u64, elapsed: Duration) -> Self {
        let seconds = elapsed.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
        let sent = scanned.rows.saturating_sub(stored_before) as f64;
        Self {
            anchors: scanned.rows,
            stored_before,
            rows_skipped: scanned.bad_rows,
            seconds,
            anchors_per_second: if seconds == 0.0 { 0.0 } else { sent / seconds },
        }
    }
}

/// The request id of one part of an import: the same for the same file, mapping and part.
fn request_id(digest: &[u8; 32], part: &str, number: u64) -> RequestId {
    let mut hasher = Sha256::new();
    hasher.update(b"anchorhold import 1\0");
    hasher.update(digest);
    hasher.update(part.as_bytes());
    hasher.update(number.to_be_bytes());
    let hash: [u8; 32] = hasher.finalize().into();
    let number = hash.iter().take(16).fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
    // A valid UUID of version 8, as every id of the project.
    RequestId(number & !(0xf << 76) & !(0x3 << 62) | 0x8 << 76 | 0x2 << 62)
}

/// A request id as the wire has it.
fn uuid_text(request_id: RequestId) -> String {
    let text = format!("{:032x}", request_id.0);
    let [a, b, c, d, e] = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &text[part]);
    format!("{a}-{b}-{c}-{d}-{e}")
}

/// A batch of rows: what one request creates.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    number: u64,
    anchors: Vec<v1::Anchor>,
    /// Where each row stands in the file.
    lines: Vec<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_uuids_that_tell_file_part_and_number_apart() {
        let ids = [
            request_id(&[0; 32], "batch", 0),
            request_id(&[1; 32], "batch", 0),
            request_id(&[0; 32], "row", 0),
            request_id(&[0; 32], "batch", 1),
        ];
        assert_eq!(ids.iter().collect::<std::collections::BTreeSet<_>>().len(), 4);
        assert_eq!(ids[0], request_id(&[0; 32], "batch", 0));
        let text = uuid_text(ids[0]);
        assert_eq!((text.len(), &text[14..15]), (36, "8"), "{text}");
        let read = anchorhold_proto::convert::request_id_from_wire(&text).unwrap();
        assert_eq!(read, Some(ids[0]));
    }
}
