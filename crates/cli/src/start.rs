//! `anchorhold start`: runs one node.
//!
//! The configuration is merged from the file, then `ANCHORHOLD_*` variables, then flags; what
//! comes later wins. All settings of the file can be given by `--set`.

use std::io::Read as _;
use std::path::PathBuf;

use anchorhold_server::{Node, NodeConfig, NodeSeams};
use anyhow::Context as _;
use clap::Args;
use toml::{Table, Value};

use crate::exit::{Exit, Failure};

/// Flags of `start`.
#[derive(Args, Debug)]
pub(crate) struct StartArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", env = "ANCHORHOLD_CONFIG")]
    config: Option<PathBuf>,
    /// Where log, state, snapshots and the node's identity are kept [default: anchorhold-data]
    #[arg(long, value_name = "DIR", env = "ANCHORHOLD_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Geography that the node stands in [default: local]
    #[arg(long, value_name = "NAME", env = "ANCHORHOLD_REGION")]
    region: Option<String>,
    /// Failure domain within the region [default: zone-1]
    #[arg(long, value_name = "NAME", env = "ANCHORHOLD_ZONE")]
    zone: Option<String>,
    /// Where clients are listened to [default: 127.0.0.1:6480]
    #[arg(long, value_name = "IP:PORT", env = "ANCHORHOLD_CLIENT_ADDRESS")]
    client_address: Option<String>,
    /// Where other nodes are listened to [default: 127.0.0.1:6481]
    #[arg(long, value_name = "IP:PORT", env = "ANCHORHOLD_PEER_ADDRESS")]
    peer_address: Option<String>,
    /// Where /metrics, /livez and /readyz are served [default: 127.0.0.1:6482]
    #[arg(long, value_name = "IP:PORT", env = "ANCHORHOLD_HTTP_ADDRESS")]
    http_address: Option<String>,
    /// Where clients reach this node, if that is not the address it listens on
    #[arg(long, value_name = "HOST:PORT", env = "ANCHORHOLD_CLIENT_ADVERTISED")]
    client_advertised: Option<String>,
    /// Where other nodes reach this node, if that is not the address it listens on
    #[arg(long, value_name = "HOST:PORT", env = "ANCHORHOLD_PEER_ADVERTISED")]
    peer_advertised: Option<String>,
    /// Peer address of a member to ask for admission; may be given several times
    #[arg(long, value_name = "HOST:PORT", env = "ANCHORHOLD_JOIN", value_delimiter = ',')]
    join: Vec<String>,
    /// Found a new cluster with this name, if the data directory belongs to none yet
    #[arg(long, value_name = "NAME", env = "ANCHORHOLD_BOOTSTRAP", conflicts_with = "join")]
    bootstrap: Option<String>,
    /// Listen beyond loopback although nothing is encrypted yet; for test networks only
    #[arg(long)]
    insecure: bool,
    /// Origin of web pages that may call the client port from a browser, or * for any; may be given
    /// several times
    #[arg(long, value_name = "ORIGIN", env = "ANCHORHOLD_CORS_ORIGINS", value_delimiter = ',')]
    cors_origin: Vec<String>,
    /// File whose first line is the admin key; without one the admin services are closed
    #[arg(long, value_name = "FILE", env = "ANCHORHOLD_ADMIN_KEY_FILE")]
    admin_key_file: Option<PathBuf>,
    /// What the log on standard error looks like: pretty or json [default: pretty]
    #[arg(long, value_name = "FORMAT", env = "ANCHORHOLD_LOG_FORMAT")]
    log_format: Option<String>,
    /// Which log lines are written, such as info or anchorhold_consensus=debug,info [default: info]
    #[arg(long, value_name = "FILTER", env = "ANCHORHOLD_LOG_FILTER")]
    log_filter: Option<String>,
    /// Any setting of the configuration file, such as consensus.heartbeat_ms=50
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Shut down when standard input closes: for whoever starts nodes as child processes
    #[arg(long)]
    exit_with_stdin: bool,
    /// Print the merged configuration and exit
    #[arg(long)]
    print_config: bool,
}

/// Runs a node until it is told to stop.
///
/// # Errors
/// If the configuration is wrong, or the node cannot start.
pub(crate) async fn run(args: StartArgs) -> anyhow::Result<()> {
    let config = merged(&args)?;
    if args.print_config {
        let mut shown = config;
        // A configuration is printed to be shown to others.
        shown.admin_key.plain = shown.admin_key.plain.map(|_| "(given)".to_owned());
        println!("{}", toml::to_string(&shown)?);
        return Ok(());
    }
    config.validate().map_err(|error| {
        Failure::new(Exit::Usage, format!("the configuration is wrong: {error}"), "")
    })?;
    anchorhold_server::telemetry::start_logs(config.log_format, &config.log_filter)
        .map_err(|problem| Failure::new(Exit::Usage, problem, ""))?;
    let seams = seams()?;
    let mut stop = std::pin::pin!(stop_signal(args.exit_with_stdin)?);
    let node = tokio::select! {
        node = Node::build(config, seams) => node.context("the node cannot start")?,
        () = &mut stop => return Ok(()),
    };
    stop.await;
    node.shutdown().await;
    Ok(())
}

/// What the node is built from: this machine.
#[cfg(not(feature = "chaos"))]
#[expect(clippy::unnecessary_wraps, reason = "a breakable node's can fail")]
fn seams() -> anyhow::Result<NodeSeams> {
    Ok(NodeSeams::real())
}

/// What the node is built from: this machine, broken on command if there is a control file.
#[cfg(feature = "chaos")]
fn seams() -> anyhow::Result<NodeSeams> {
    match std::env::var_os(anchorhold_server::chaos::CONTROL_VARIABLE) {
        Some(file) => NodeSeams::breakable(std::path::Path::new(&file))
            .context("cannot follow the harness's control file"),
        None => Ok(NodeSeams::real()),
    }
}

/// Completes when the node shall shut down: SIGINT, SIGTERM or the end of standard input.
fn stop_signal(
    is_bound_to_stdin: bool,
) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (closed, mut is_closed) = tokio::sync::watch::channel(false);
    if is_bound_to_stdin {
        // A thread of its own: a blocking read cannot be cancelled, and must not hold up the exit.
        std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
            let mut stdin = std::io::stdin().lock();
            let mut buffer = [0; 256];
            while stdin.read(&mut buffer).is_ok_and(|read| 0 < read) {}
            closed.send_replace(true);
        })?;
    } else {
        // Kept open, or its end would look like a message.
        tokio::spawn(async move {
            closed.closed().await;
        });
    }
    Ok(async move {
        let stdin_closed = async {
            if is_closed.wait_for(|closed| *closed).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = stdin_closed => {}
        }
    })
}

/// File, variables and flags in one.
fn merged(args: &StartArgs) -> anyhow::Result<NodeConfig> {
    let mut table = Table::new();
    if let Some(path) = &args.config {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration {}", path.display()))?;
        // Read by itself first: its errors name a place in the file.
        NodeConfig::from_toml(&text).map_err(|error| {
            Failure::new(Exit::Usage, format!("{}: {error}", path.display()), "")
        })?;
        table = toml::from_str(&text)?;
    }
    let path = |path: &PathBuf| path.display().to_string();
    let texts = [
        ("data_dir", args.data_dir.as_ref().map(path)),
        ("region", args.region.clone()),
        ("zone", args.zone.clone()),
        ("client_address", args.client_address.clone()),
        ("peer_address", args.peer_address.clone()),
        ("http_address", args.http_address.clone()),
        ("client_advertised", args.client_advertised.clone()),
        ("peer_advertised", args.peer_advertised.clone()),
        ("bootstrap", args.bootstrap.clone()),
        ("log_format", args.log_format.clone()),
        ("log_filter", args.log_filter.clone()),
    ];
    for (key, text) in texts {
        if let Some(text) = text {
            table.insert(key.to_owned(), Value::String(text));
        }
    }
    for (key, list) in [("join", &args.join), ("cors_origins", &args.cors_origin)] {
        if !list.is_empty() {
            let list = list.iter().cloned().map(Value::String).collect();
            table.insert(key.to_owned(), Value::Array(list));
        }
    }
    if args.insecure {
        table.insert("insecure".to_owned(), Value::Boolean(true));
    }
    if let Some(file) = &args.admin_key_file {
        let key = Table::from_iter([("file".to_owned(), Value::String(path(file)))]);
        table.insert("admin_key".to_owned(), Value::Table(key));
    }
    for setting in &args.settings {
        set(&mut table, setting)?;
    }
    let text = toml::to_string(&table)?;
    let config = NodeConfig::from_toml(&text);
    Ok(config.map_err(|error| Failure::new(Exit::Usage, error.to_string(), ""))?)
}

/// Puts one `a.b=value` into a table. A value that is no TOML is text.
fn set(table: &mut Table, setting: &str) -> anyhow::Result<()> {
    let wrong = |problem: &str| {
        Failure::new(Exit::Usage, format!("--set {setting}: {problem}"), "write --set KEY=VALUE")
    };
    let (key, text) = setting.split_once('=').ok_or_else(|| wrong("there is no '='"))?;
    let parsed = toml::from_str::<Table>(&format!("value = {text}")).ok();
    let value = parsed.and_then(|mut parsed| parsed.remove("value"));
    let value = value.unwrap_or_else(|| Value::String(text.to_owned()));
    let mut names: Vec<&str> = key.split('.').collect();
    let last = names.pop().filter(|name| !name.is_empty()).ok_or_else(|| wrong("no key"))?;
    let mut inner = table;
    for name in names {
        let entry = inner.entry(name).or_insert_with(|| Value::Table(Table::new()));
        inner = entry.as_table_mut().ok_or_else(|| wrong("a part of the key is no table"))?;
    }
    inner.insert(last.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        start: StartArgs,
    }

    fn config(flags: &[&str]) -> anyhow::Result<NodeConfig> {
        let flags = ["start"].iter().chain(flags);
        merged(&Flags::try_parse_from(flags).expect("they parse").start)
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("node.toml");
        std::fs::write(&file, "zone = \"b\"\nregion = \"r\"\n[consensus]\nheartbeat_ms = 60\n")
            .unwrap();
        let file = file.display().to_string();
        let config =
            config(&["--config", &file, "--zone=c", "--set=limits.requests_max=7"]).unwrap();
        assert_eq!((config.region.as_str(), config.zone.as_str()), ("r", "c"));
        assert_eq!((config.consensus.heartbeat_ms, config.limits.requests_max), (60, 7));
        assert_eq!(config.log_filter, NodeConfig::default().log_filter);
    }

    #[test]
    fn the_flag_for_the_admin_key_replaces_the_files() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("node.toml");
        std::fs::write(&file, "[admin_key]\nplain = \"0123456789abcdef\"\n").unwrap();
        let file = file.display().to_string();
        let config = config(&["--config", &file, "--admin-key-file=/k"]).unwrap();
        assert_eq!(config.admin_key.plain, None);
        assert_eq!(config.admin_key.file, Some(PathBuf::from("/k")));
    }

    #[test]
    fn a_wrong_file_is_reported_with_its_name_and_place() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("node.toml");
        std::fs::write(&file, "zonne = \"b\"\n").unwrap();
        let text = config(&["--config", &file.display().to_string()]).unwrap_err().to_string();
        assert!(text.contains("node.toml") && text.contains("zonne"), "{text}");
    }

    #[test]
    fn settings_are_refused_if_they_name_nothing() {
        assert!(config(&["--set=nonsense"]).is_err());
        assert!(config(&["--set=zone.x=1", "--zone=c"]).is_err());
        assert!(config(&["--set=limits.unknown=1"]).is_err());
        assert_eq!(config(&["--set=zone=q"]).unwrap().zone, "q");
    }
}
