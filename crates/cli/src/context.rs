//! Which cluster a command talks to, and as whom.
//!
//! Flags and variables first. When neither names an endpoint, the demo that runs on this machine
//! is meant, with its keys: a second terminal just works. When none runs, a node on the default
//! port of this machine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anchorhold_client::{AdminClient, Client, ClientConfig, admin_v1};
use anchorhold_cluster::{ClusterState, StateFile};
use anyhow::Context as _;
use clap::Args;

use crate::demo::pointer;
use crate::exit::{Exit, Failure};
use crate::output::Format;

/// Flags of every command that talks to a cluster.
#[derive(Args, Clone, Debug)]
pub(crate) struct ClientArgs {
    /// Client address of a node; may be given several times [default: the demo that runs here]
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT",
        env = "ANCHORHOLD_ENDPOINTS",
        value_delimiter = ',',
        help_heading = "Cluster"
    )]
    endpoint: Vec<String>,
    /// The account's key
    #[arg(
        long,
        global = true,
        value_name = "KEY",
        env = "ANCHORHOLD_API_KEY",
        hide_env_values = true,
        help_heading = "Cluster"
    )]
    api_key: Option<String>,
    /// The operators' key; --admin-key-file keeps it out of the process list
    #[arg(
        long,
        global = true,
        value_name = "KEY",
        env = "ANCHORHOLD_ADMIN_KEY",
        hide_env_values = true,
        help_heading = "Cluster"
    )]
    admin_key: Option<String>,
    /// File whose first line is the operators' key
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "ANCHORHOLD_ADMIN_KEY_FILE",
        help_heading = "Cluster"
    )]
    admin_key_file: Option<PathBuf>,
    /// Data directory of the demo that is meant, if several run
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "ANCHORHOLD_DEMO",
        help_heading = "Cluster"
    )]
    demo: Option<PathBuf>,
    /// Seconds that one call may take, retries included
    #[arg(
        long,
        global = true,
        value_name = "SECONDS",
        default_value = "10",
        value_parser = seconds,
        help_heading = "Cluster"
    )]
    timeout: Duration,
    /// The form of results
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        value_name = "FORM",
        default_value_t,
        help_heading = "Cluster"
    )]
    pub(crate) output: Format,
}

/// The address of a node that was started without any flag.
const ENDPOINT_DEFAULT: &str = "127.0.0.1:6480";

/// A cluster and who asks.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    endpoints: Vec<String>,
    api_key: Option<String>,
    admin_key: Option<String>,
    timeout: Duration,
    /// Whether neither a flag nor a demo names the cluster.
    is_guessed: bool,
    /// The demo's state, if its cluster is the one that is talked to.
    pub(crate) demo: Option<ClusterState>,
    /// The form of results.
    pub(crate) output: Format,
}

impl Context {
    /// Finds out which cluster is meant.
    ///
    /// # Errors
    /// If a named file cannot be read, or a named demo is not there.
    pub(crate) fn resolve(args: &ClientArgs) -> anyhow::Result<Self> {
        let mut context = Self {
            endpoints: args.endpoint.clone(),
            api_key: args.api_key.clone(),
            admin_key: args.admin_key.clone(),
            timeout: args.timeout,
            is_guessed: false,
            demo: None,
            output: args.output,
        };
        if let Some(path) = &args.admin_key_file {
            context.admin_key = Some(first_line(path)?);
        }
        if context.endpoints.is_empty() {
            let demo = match find_demo(args.demo.as_deref()) {
                Ok(file) => file.read()?,
                Err(error) if args.demo.is_some() => return Err(error),
                Err(_) => None,
            };
            match demo {
                Some(state) => context.use_demo(state)?,
                None => {
                    context.endpoints.push(ENDPOINT_DEFAULT.to_owned());
                    context.is_guessed = true;
                }
            }
        }
        Ok(context)
    }

    /// The cluster of a demo, with its keys unless others are given.
    fn use_demo(&mut self, state: ClusterState) -> anyhow::Result<()> {
        self.endpoints = state.endpoints();
        if self.admin_key.is_none() {
            self.admin_key = Some(first_line(&state.admin_key_file)?);
        }
        if let Some(path) = state.api_key_file.as_ref().filter(|_| self.api_key.is_none()) {
            self.api_key = Some(first_line(path)?);
        }
        self.demo = Some(state);
        Ok(())
    }

    /// Whether the admin key is known.
    pub(crate) fn has_admin_key(&self) -> bool {
        self.admin_key.is_some()
    }

    /// Connects as the account.
    ///
    /// # Errors
    /// If there is no key, or nobody answers.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(self.client_config(1)?).await?)
    }

    /// What the account's client is made from.
    ///
    /// # Errors
    /// If there is no key.
    pub(crate) fn client_config(
        &self,
        connections_per_node: usize,
    ) -> anyhow::Result<ClientConfig> {
        let Some(api_key) = self.api_key.clone() else {
            return Err(self.no_key(
                "no API key is given",
                "pass --api-key or set ANCHORHOLD_API_KEY; `anchorhold account create NAME` makes \
                 an account with a key",
            ));
        };
        Ok(ClientConfig { connections_per_node, ..self.config(api_key) })
    }

    /// Connects as the operators.
    ///
    /// # Errors
    /// If there is no admin key, or nobody answers.
    pub(crate) fn admin(&self) -> anyhow::Result<AdminClient> {
        let Some(admin_key) = self.admin_key.clone() else {
            return Err(self.no_key(
                "no admin key is given, and this command is for operators",
                "pass --admin-key-file, or set ANCHORHOLD_ADMIN_KEY",
            ));
        };
        Ok(AdminClient::new(self.config(admin_key))?)
    }

    /// The cluster's id.
    ///
    /// # Errors
    /// If nobody answers.
    pub(crate) async fn cluster_id(&self) -> anyhow::Result<String> {
        let any_key = self.api_key.clone().or_else(|| self.admin_key.clone()).unwrap_or_default();
        let client = AdminClient::new(self.config(any_key))?;
        let info = client.get_server_info(admin_v1::GetServerInfoRequest {}).await?;
        Ok(info.cluster_id)
    }

    fn no_key(&self, problem: &str, next: &str) -> anyhow::Error {
        if self.is_guessed {
            let problem = format!("no demo runs here, and {problem}");
            let next = format!("start one in another terminal: anchorhold demo; or {next}");
            return Failure::new(Exit::Usage, problem, next).into();
        }
        Failure::new(Exit::Usage, problem, next).into()
    }

    fn config(&self, api_key: String) -> ClientConfig {
        ClientConfig {
            endpoints: self.endpoints.clone(),
            api_key,
            deadline: self.timeout,
            ..ClientConfig::default()
        }
    }
}

/// The state file of the demo that is meant.
///
/// # Errors
/// If there is none, or its demo does not run any more.
pub(crate) fn find_demo(named: Option<&Path>) -> anyhow::Result<StateFile> {
    let none = |problem: String| {
        Failure::new(Exit::NotFound, problem, "start one in another terminal: anchorhold demo")
    };
    let data_dir = match named {
        Some(data_dir) => data_dir.to_owned(),
        None => pointer::read().ok_or_else(|| none("no demo runs here".to_owned()))?,
    };
    let file = StateFile::of(&data_dir);
    match file.read()? {
        Some(state) if state.is_owned() => Ok(file),
        Some(_) => Err(none(format!("the demo in {} does not run", data_dir.display())).into()),
        None => Err(none(format!("{} is no demo's data directory", data_dir.display())).into()),
    }
}

impl ClientArgs {
    /// The demo whose processes are meant.
    ///
    /// # Errors
    /// If there is none that runs.
    pub(crate) fn find_demo(&self) -> anyhow::Result<StateFile> {
        find_demo(self.demo.as_deref())
    }
}

/// A positive number of seconds.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of seconds"))?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        Ok(_) | Err(_) => Err("must be more than 0 seconds".to_owned()),
    }
}

fn first_line(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the key file {}", path.display()))?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_a_positive_number_of_seconds() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["0", "-1", "NaN", "inf", "soon"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_demo_that_was_named_must_be_there() {
        let directory = tempfile::tempdir().unwrap();
        let error = find_demo(Some(directory.path())).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("is no demo's data directory"), "{error}");
    }
}
