//! From a running cluster to one with anchors in it.

use super::*;
use crate::import::ledger::Ledger;

/// The account's name.
const ACCOUNT: &str = "demo";
/// Shards of the account: several for each zone, so that killing any zone takes leaders away.
const SHARDS: u32 = 6;
/// Batches sent at once.
const PARALLEL: usize = 6;
/// How long one batch may be retried: a demo must also start on a machine that is busy otherwise.
const BATCH_DEADLINE: Duration = Duration::from_secs(180);

/// Loads the anchors that the arguments name, unless an earlier run has.
///
/// # Errors
/// If the cluster does not become whole, or the anchors are bad.
pub(super) async fn load(cluster: ProcessCluster, args: &DemoArgs) -> anyhow::Result<Demo> {
    let state = cluster.state()?;
    let config = |api_key: String| ClientConfig {
        endpoints: state.endpoints(),
        api_key,
        deadline: CALL_DEADLINE,
        ..ClientConfig::default()
    };
    let admin = AdminClient::new(config(cluster.admin_key()?))?;
    wait_until_whole(&admin, state.nodes.len()).await?;
    let source = Arc::new(source(args)?);
    let scanned = tokio::task::spawn_blocking({
        let source = source.clone();
        move || scan(&source)
    });
    let scanned = scanned.await??;
    if let Some((line, problem)) = scanned.bad.first() {
        let problem = format!("{}:{line}: {problem}", source.name);
        return Err(Failure::new(Exit::Usage, problem, "mend the file").into());
    }
    let api_key = account(&cluster, &admin).await?;
    let client = Client::connect(config(api_key)).await?;
    let progress_file = cluster.data_dir().join("anchors.progress");
    let info = admin.get_server_info(admin_v1::GetServerInfoRequest {}).await?;
    let identity = crate::import::identity(info.cluster_id, account_of(&client)?, &scanned);
    let mut ledger = Ledger::open(&progress_file, &identity)?;
    if !ledger.is_complete() {
        lay_out(&admin, &client, &scanned).await?;
        let started = Instant::now();
        let progress = Progress::new("anchors", scanned.rows);
        let sender = Sender::new(client.with_deadline(BATCH_DEADLINE), scanned.digest, PARALLEL)?;
        sender.send(source, Some(&mut ledger), progress).await?;
        ledger.note_complete()?;
        let seconds = started.elapsed().as_secs_f64();
        eprintln!("loaded {} anchors in {seconds:.1} s", thousands(scanned.rows));
    }
    let near = match args.anchors {
        // Zurich main station.
        None => v1::GeoPoint { latitude_deg: 47.3779, longitude_deg: 8.5403, height_m: 408.0 },
        Some(_) => first_point(&client).await?,
    };
    Ok(Demo { cluster, admin, client, scanned, near })
}

fn source(args: &DemoArgs) -> anyhow::Result<Source> {
    let Some(path) = args.anchors.clone() else { return Ok(airports()) };
    Ok(Source {
        name: path.display().to_string(),
        format: FileFormat::of(&path)?,
        mapping: Mapping::default(),
        open: Box::new(move || Ok(Box::new(std::fs::File::open(&path)?))),
    })
}

/// The demo's account; returns its key. Made once for each data directory.
async fn account(cluster: &ProcessCluster, admin: &AdminClient) -> anyhow::Result<String> {
    let path = cluster.data_dir().join("demo.key");
    if let Ok(text) = std::fs::read_to_string(&path) {
        return Ok(text.trim().to_owned());
    }
    let request = admin_v1::CreateAccountRequest { name: ACCOUNT.to_owned(), ..Default::default() };
    let api_key = match admin.create_account(request).await {
        Ok(reply) if !reply.api_key.is_empty() => reply.api_key,
        // An earlier run made it and was ended before it could keep the key.
        Ok(_) => another_key(admin).await?,
        Err(error) if error.reason() == Some(Reason::AccountExists) => another_key(admin).await?,
        Err(error) => return Err(error.into()),
    };
    write_secret(&path, &format!("{api_key}\n"))
        .with_context(|| format!("cannot write {}", path.display()))?;
    let path = std::fs::canonicalize(path)?;
    cluster.file().update(|state| {
        state.api_key_file = Some(path);
        Ok(())
    })?;
    Ok(api_key)
}

async fn another_key(admin: &AdminClient) -> anyhow::Result<String> {
    let by_name = admin_v1::get_account_request::Account::Name(ACCOUNT.to_owned());
    let request = admin_v1::GetAccountRequest { account: Some(by_name) };
    let account = admin.get_account(request).await?.account.unwrap_or_default().number;
    let request = admin_v1::RotateApiKeyRequest { account, ..Default::default() };
    Ok(admin.rotate_api_key(request).await?.api_key)
}

/// Cuts the account where the anchors are, unless it holds some already.
async fn lay_out(admin: &AdminClient, client: &Client, scanned: &Scan) -> anyhow::Result<()> {
    let account = account_of(client)?;
    match crate::import::cut(admin, account, scanned, SHARDS).await {
        Ok(_) => Ok(()),
        Err(error) if error.reason() == Some(Reason::AccountNotEmpty) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Where some stored anchor is, for a first query that finds something.
async fn first_point(client: &Client) -> anyhow::Result<v1::GeoPoint> {
    let request = v1::ListAnchorsRequest { page_size: 1, ..Default::default() };
    let page = client.list_anchors(request).await?;
    let pose = page.anchors.first().and_then(|anchor| anchor.pose).and_then(|pose| pose.frame);
    match pose {
        Some(v1::pose::Frame::Geo(pose)) => Ok(v1::GeoPoint {
            latitude_deg: pose.latitude_deg,
            longitude_deg: pose.longitude_deg,
            height_m: pose.height_m,
        }),
        Some(v1::pose::Frame::Local(_)) | None => bail!("the file holds no anchor on Earth"),
    }
}
