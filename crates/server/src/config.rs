//! How one node is configured.
//!
//! Plain values: the command line merges a TOML file, `ANCHORHOLD_*` variables and flags into one
//! [`NodeConfig`]; [`NodeConfig::validate`] runs once at start-up and says what to do about each
//! mistake. Each default is written once, in `Default`.

mod placement;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anchorhold_consensus::ConsensusConfig;
use serde::{Deserialize, Serialize};

pub use self::placement::PlacementSettings;

/// Everything that one node is told at its start.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// Where log, state, snapshots and the node's identity are kept.
    pub data_dir: PathBuf,
    /// Geography that the node stands in.
    pub region: String,
    /// Failure domain within the region.
    pub zone: String,
    /// Where clients are listened to, `ip:port`. Port 0 takes any free one.
    pub client_address: SocketAddr,
    /// Where other nodes are listened to, `ip:port`. Port 0 takes any free one.
    pub peer_address: SocketAddr,
    /// Where `/metrics`, `/livez` and `/readyz` are served, `ip:port`; unset serves none.
    pub http_address: Option<SocketAddr>,
    /// Where clients reach this node, `host:port`; unset means `client_address`.
    pub client_advertised: Option<String>,
    /// Where other nodes reach this node, `host:port`; unset means `peer_address`.
    pub peer_advertised: Option<String>,
    /// Where this node connects to instead of an announced peer address, `host:port` each.
    pub peer_dial: BTreeMap<String, String>,
    /// Peer addresses of members to ask for admission, `host:port`.
    pub join: Vec<String>,
    /// Found a new cluster with this name, if the data directory belongs to none yet.
    pub bootstrap: Option<String>,
    /// Listen beyond loopback although nothing is encrypted yet. For test networks only.
    pub insecure: bool,
    /// Origins of web pages that may call the client port from a browser (gRPC-web), such as
    /// `https://maps.example`; `*` is any. Unset, pages must come from behind the same proxy.
    pub cors_origins: Vec<String>,
    /// Who may administer the cluster.
    pub admin_key: AdminKey,
    /// What the log looks like.
    pub log_format: LogFormat,
    /// Which log lines are written: an `EnvFilter` directive.
    pub log_filter: String,
    /// Timers and bounds of the consensus layer.
    pub consensus: ConsensusConfig,
    /// When the disk counts as full, and what is kept in reserve.
    pub disk: DiskConfig,
    /// Timers and limits of moving replicas and leaders.
    pub placement: PlacementSettings,
    /// Bounds of what clients may ask.
    pub limits: Limits,
}

/// When the data directory's disk counts as full, and what is kept in reserve.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiskConfig {
    /// Below this many free bytes the node gives its leaderships away and takes no new data.
    pub almost_full_bytes: u64,
    /// Below this many free bytes the node stores nothing that the others can store without it.
    pub full_bytes: u64,
    /// Bytes of the file that `node release-ballast` gives back; 0 for none.
    pub ballast_bytes: u64,
    /// Bytes that the data directory may take before the disk counts as full; unset for all that
    /// the disk has.
    pub bytes_max: Option<u64>,
    /// Milliseconds between two looks at the free space.
    pub check_interval_ms: u64,
    /// Bytes per second, at most, that are read again to find damage before it is needed.
    pub scrub_bytes_per_second: u64,
    /// Seconds between two rounds of reading everything again.
    pub scrub_pause_s: u64,
    /// Seconds between two looks at whether the state takes far more room than its rows need.
    pub renew_interval_s: u64,
    /// Bytes of the state's files from which on it is looked at.
    pub renew_bytes_min: u64,
    /// Bytes of files for each byte of rows beyond which the state is written anew.
    pub renew_factor: u64,
    /// Bytes of rows per second, at most, that are written anew.
    pub renew_bytes_per_second: u64,
}

/// The key that opens the admin services, given at most one way. Without one they are closed.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminKey {
    /// The key itself.
    pub plain: Option<String>,
    /// SHA-256 of the key, 64 hexadecimal digits.
    pub sha256: Option<String>,
    /// A file whose first line is the key.
    pub file: Option<PathBuf>,
}

/// What the log looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Pretty,
    /// One JSON object a line.
    Json,
}

/// Bounds of what clients may ask of this node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes of one request, at most.
    pub message_bytes_max: usize,
    /// Requests that one connection may have open, at most.
    pub connection_requests_max: usize,
    /// Requests that are worked on at once, at most; beyond it RESOURCE_EXHAUSTED.
    pub requests_max: usize,
    /// Shards that one request talks to at once, at most.
    pub fan_out_max: usize,
    /// Milliseconds that a request may take if the client sets no deadline.
    pub deadline_ms_default: u64,
    /// Milliseconds that a request may take, whatever the client says.
    pub deadline_ms_max: u64,
}

/// Where the node listens unless told otherwise: client, peer and HTTP port on loopback.
pub const PORTS_DEFAULT: [u16; 3] = [6480, 6481, 6482];

/// The one place where node numbers are written down.
impl Default for NodeConfig {
    fn default() -> Self {
        let loopback = |port| SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port);
        Self {
            data_dir: PathBuf::from("anchorhold-data"),
            region: "local".to_owned(),
            zone: "zone-1".to_owned(),
            client_address: loopback(PORTS_DEFAULT[0]),
            peer_address: loopback(PORTS_DEFAULT[1]),
            http_address: Some(loopback(PORTS_DEFAULT[2])),
            client_advertised: None,
            peer_advertised: None,
            peer_dial: BTreeMap::new(),
            join: Vec::new(),
            bootstrap: None,
            insecure: false,
            cors_origins: Vec::new(),
            admin_key: AdminKey::default(),
            log_format: LogFormat::default(),
            log_filter: "info,openraft=error".to_owned(),
            consensus: ConsensusConfig::default(),
            disk: DiskConfig::default(),
            placement: PlacementSettings::default(),
            limits: Limits::default(),
        }
    }
}

/// The one place where the disk's numbers are written down.
impl Default for DiskConfig {
    fn default() -> Self {
        Self {
            almost_full_bytes: 512 << 20,
            full_bytes: 64 << 20,
            // More than a quarter above `full_bytes`: giving it back ends that state.
            ballast_bytes: 128 << 20,
            bytes_max: None,
            check_interval_ms: 500,
            scrub_bytes_per_second: 4 << 20,
            scrub_pause_s: 6 * 60 * 60,
            renew_interval_s: 10 * 60,
            renew_bytes_min: 256 << 20,
            // Freshly loaded, sled takes about twice what is in it.
            renew_factor: 6,
            renew_bytes_per_second: 16 << 20,
        }
    }
}

/// The one place where limits are written down.
impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes_max: anchorhold_proto::limits::MESSAGE_BYTES_MAX,
            connection_requests_max: 1_024,
            requests_max: 8_192,
            fan_out_max: 16,
            deadline_ms_default: 5_000,
            deadline_ms_max: 60_000,
        }
    }
}

/// What is wrong with a configuration, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {problem}")]
pub struct ConfigError {
    /// The setting as written in the file.
    pub setting: &'static str,
    /// What is wrong and what to do.
    pub problem: String,
}

impl NodeConfig {
    /// A configuration from TOML text. Absent settings have their defaults.
    ///
    /// # Errors
    /// [`ConfigError`] with the parser's words, place included.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| wrong("config file", error.to_string()))
    }

    /// Checks everything that can be checked before the node touches its disk.
    ///
    /// # Errors
    /// The first [`ConfigError`] found.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_names()?;
        self.validate_addresses()?;
        self.validate_membership()?;
        self.admin_key.validate()?;
        validate_consensus(&self.consensus)?;
        self.disk.validate()?;
        self.placement.validate()?;
        self.limits.validate()
    }

    fn validate_names(&self) -> Result<(), ConfigError> {
        if self.data_dir.as_os_str().is_empty() {
            return Err(wrong("data_dir", "name the directory that this node keeps its data in"));
        }
        for (setting, name) in [("region", &self.region), ("zone", &self.zone)] {
            if !is_name(name) {
                let rule = "1 to 63 of a-z, 0-9 and '-', not starting or ending with '-'";
                return Err(wrong(setting, format!("{name:?} is no name: use {rule}")));
            }
        }
        Ok(())
    }

    fn validate_addresses(&self) -> Result<(), ConfigError> {
        if let Some(bad) = self.cors_origins.iter().find(|origin| !is_origin(origin)) {
            let problem = format!("{bad:?} is no origin: write https://host, or * for any");
            return Err(wrong("cors_origins", problem));
        }
        let addresses = [
            ("client_address", Some(self.client_address)),
            ("peer_address", Some(self.peer_address)),
            ("http_address", self.http_address),
        ];
        for (setting, address) in addresses {
            let Some(address) = address else { continue };
            if !address.ip().is_loopback() && !self.insecure {
                return Err(wrong(
                    setting,
                    format!(
                        "{address} can be reached from other machines, and nothing is encrypted \
                         yet: anyone on the network could read keys and anchors. Listen on \
                         127.0.0.1, or pass --insecure on a test network"
                    ),
                ));
            }
        }
        let mut dialled =
            self.peer_dial.iter().flat_map(|(announced, dialled)| [announced, dialled]);
        if let Some(bad) = dialled.find(|address| !is_host_and_port(address)) {
            return Err(wrong("peer_dial", format!("{bad:?} is not host:port")));
        }
        let advertised = [
            ("client_advertised", &self.client_advertised, self.client_address),
            ("peer_advertised", &self.peer_advertised, self.peer_address),
        ];
        for (setting, name, listen) in advertised {
            match name {
                Some(name) if !is_host_and_port(name) => {
                    return Err(wrong(setting, format!("{name:?} is not host:port")));
                }
                None if listen.ip().is_unspecified() => {
                    let problem = format!("{listen} is no address to connect to: name host:port");
                    return Err(wrong(setting, problem));
                }
                Some(_) | None => {}
            }
        }
        Ok(())
    }

    fn validate_membership(&self) -> Result<(), ConfigError> {
        if let Some(bad) = self.join.iter().find(|address| !is_host_and_port(address)) {
            return Err(wrong("join", format!("{bad:?} is not host:port")));
        }
        match &self.bootstrap {
            Some(name) if !is_name(name) => {
                Err(wrong("bootstrap", format!("{name:?} is no cluster name: use a-z, 0-9, '-'")))
            }
            Some(_) if !self.join.is_empty() => Err(wrong(
                "bootstrap",
                "a node founds a cluster or joins one: drop `bootstrap` or `join`",
            )),
            Some(_) | None => Ok(()),
        }
    }
}

impl AdminKey {
    /// SHA-256 of the key; `None` if no key was given.
    ///
    /// # Errors
    /// [`ConfigError`] if the file cannot be read or the digest is not one.
    pub fn digest(&self) -> Result<Option<[u8; 32]>, ConfigError> {
        if let Some(text) = &self.sha256 {
            let digest = crate::authorize::from_hex(text)
                .ok_or_else(|| wrong("admin_key.sha256", "give 64 hexadecimal digits"))?;
            return Ok(Some(digest));
        }
        let plain = match (&self.plain, &self.file) {
            (Some(plain), _) => plain.clone(),
            (None, Some(path)) => {
                let text = std::fs::read_to_string(path).map_err(|error| {
                    wrong("admin_key.file", format!("{}: {error}", path.display()))
                })?;
                text.lines().next().unwrap_or_default().trim().to_owned()
            }
            (None, None) => return Ok(None),
        };
        if plain.len() < ADMIN_KEY_CHARACTERS_MIN {
            let problem = format!("the key needs at least {ADMIN_KEY_CHARACTERS_MIN} characters");
            return Err(wrong("admin_key", problem));
        }
        Ok(Some(crate::authorize::digest(plain.as_bytes())))
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let given = [self.plain.is_some(), self.sha256.is_some(), self.file.is_some()];
        if 1 < given.iter().filter(|given| **given).count() {
            return Err(wrong("admin_key", "give one of `plain`, `sha256` and `file`"));
        }
        self.digest().map(|_| ())
    }
}

/// Shortest admin key that is accepted.
const ADMIN_KEY_CHARACTERS_MIN: usize = 16;

/// Says whether a key is there, never which.
impl std::fmt::Debug for AdminKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let given = self.plain.is_some() || self.sha256.is_some() || self.file.is_some();
        formatter.write_str(if given { "AdminKey(given)" } else { "AdminKey(none)" })
    }
}

impl DiskConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        if self.almost_full_bytes < self.full_bytes {
            return Err(wrong("disk.full_bytes", "must be at most disk.almost_full_bytes"));
        }
        if self.check_interval_ms == 0 {
            return Err(wrong("disk.check_interval_ms", "must be at least 1"));
        }
        if self.scrub_bytes_per_second == 0 || self.scrub_pause_s == 0 {
            let rule = "and disk.scrub_pause_s must be at least 1";
            return Err(wrong("disk.scrub_bytes_per_second", rule));
        }
        if self.renew_interval_s == 0 || self.renew_bytes_per_second == 0 {
            let rule = "and disk.renew_bytes_per_second must be at least 1";
            return Err(wrong("disk.renew_interval_s", rule));
        }
        // A fresh state takes up to three times its rows: a lower bound would never be met.
        if self.renew_factor < 4 {
            return Err(wrong("disk.renew_factor", "must be at least 4"));
        }
        let needed = self.almost_full_bytes.saturating_add(self.ballast_bytes);
        if self.bytes_max.is_some_and(|most| most <= needed) {
            let rule = "must be above disk.almost_full_bytes and disk.ballast_bytes together";
            return Err(wrong("disk.bytes_max", rule));
        }
        Ok(())
    }
}

impl Limits {
    fn validate(&self) -> Result<(), ConfigError> {
        let counts = [
            ("limits.message_bytes_max", self.message_bytes_max),
            ("limits.connection_requests_max", self.connection_requests_max),
            ("limits.requests_max", self.requests_max),
            ("limits.fan_out_max", self.fan_out_max),
        ];
        if let Some((setting, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(wrong(setting, "must be at least 1"));
        }
        if self.deadline_ms_default == 0 || self.deadline_ms_max < self.deadline_ms_default {
            let rule = "must be at least 1 and at most limits.deadline_ms_max";
            return Err(wrong("limits.deadline_ms_default", rule));
        }
        Ok(())
    }
}

fn validate_consensus(config: &ConsensusConfig) -> Result<(), ConfigError> {
    if config.heartbeat_ms == 0 {
        return Err(wrong("consensus.heartbeat_ms", "must be at least 1"));
    }
    if config.election_timeout_ms_min < 2 * config.heartbeat_ms {
        let rule = "must be at least twice consensus.heartbeat_ms, or every delay elects";
        return Err(wrong("consensus.election_timeout_ms_min", rule));
    }
    if config.log_stall_ms == 0 {
        return Err(wrong("consensus.log_stall_ms", "must be at least 1"));
    }
    if config.clock_offset_ms_max == 0 {
        return Err(wrong("consensus.clock_offset_ms_max", "must be at least 1"));
    }
    if config.election_timeout_ms_max <= config.election_timeout_ms_min {
        let rule = "must be above consensus.election_timeout_ms_min, or votes are split";
        return Err(wrong("consensus.election_timeout_ms_max", rule));
    }
    Ok(())
}

fn wrong(setting: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError { setting, problem: problem.into() }
}

/// What a browser sends as a page's origin: scheme, host and port, without a path.
fn is_origin(origin: &str) -> bool {
    let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    origin == "*"
        || host.is_some_and(|host| {
            let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"/?#@*".contains(&byte);
            !host.is_empty() && host.bytes().all(is_plain)
        })
}

fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&name.len())
        && name.chars().all(allowed)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn is_host_and_port(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    !host.is_empty()
        && !host.contains(|c: char| c.is_whitespace() || c == '/')
        && port.parse::<u16>().is_ok_and(|port| port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refuses(change: impl FnOnce(&mut NodeConfig), words: &str) {
        let mut config = NodeConfig::default();
        change(&mut config);
        let text = config.validate().unwrap_err().to_string();
        assert!(text.contains(words), "{text}");
    }

    #[test]
    fn the_defaults_are_valid() {
        NodeConfig::default().validate().unwrap();
    }

    #[test]
    fn an_origin_is_scheme_and_host() {
        for bad in ["maps.example", "https://", "https://a/b", "https://*.a"] {
            refuses(|config| config.cors_origins = vec![bad.to_owned()], "is no origin");
        }
        let good = ["*", "https://maps.example", "http://localhost:8080"];
        let cors_origins = good.map(str::to_owned).to_vec();
        let config = NodeConfig { cors_origins, ..NodeConfig::default() };
        assert_eq!(config.validate(), Ok(()));
    }

    #[test]
    fn an_address_beyond_loopback_needs_insecure_and_the_message_says_why() {
        let open: SocketAddr = "10.1.2.3:6480".parse().unwrap();
        refuses(|config| config.client_address = open, "--insecure");
        refuses(|config| config.peer_address = open, "encrypted");
        refuses(|config| config.http_address = Some(open), "http_address");
        let config = NodeConfig { client_address: open, insecure: true, ..NodeConfig::default() };
        config.validate().unwrap();
    }

    #[test]
    fn an_unspecified_address_must_be_advertised() {
        refuses(
            |config| {
                config.insecure = true;
                config.peer_address = "0.0.0.0:6481".parse().unwrap();
            },
            "peer_advertised",
        );
    }

    #[test]
    fn wrong_settings_are_named() {
        refuses(|config| config.zone = "Zone 1".to_owned(), "zone");
        refuses(|config| config.join = vec!["nowhere".to_owned()], "join");
        refuses(|config| config.join = vec!["node:0".to_owned()], "join");
        refuses(
            |config| config.peer_dial = BTreeMap::from([("b:1".to_owned(), "b".to_owned())]),
            "peer_dial",
        );
        refuses(|config| config.limits.requests_max = 0, "limits.requests_max");
        refuses(|config| config.disk.full_bytes = u64::MAX, "disk.full_bytes");
        refuses(|config| config.disk.check_interval_ms = 0, "disk.check_interval_ms");
        refuses(|config| config.disk.bytes_max = Some(600 << 20), "disk.bytes_max");
        refuses(|config| config.limits.deadline_ms_max = 1, "limits.deadline_ms_default");
        refuses(|config| config.consensus.election_timeout_ms_min = 100, "heartbeat_ms");
        refuses(|config| config.admin_key.plain = Some("short".to_owned()), "16 characters");
        refuses(|config| config.admin_key.sha256 = Some("xyz".to_owned()), "64 hexadecimal");
        refuses(
            |config| {
                config.bootstrap = Some("one".to_owned());
                config.join = vec!["127.0.0.1:6481".to_owned()];
            },
            "founds a cluster or joins one",
        );
    }

    #[test]
    fn a_file_may_set_a_part_and_nothing_unknown() {
        let config = NodeConfig::from_toml(
            "zone = \"b\"\n[limits]\nfan_out_max = 7\n[consensus]\nheartbeat_ms = 50\n",
        )
        .unwrap();
        assert_eq!(config.zone, "b");
        assert_eq!(config.limits.fan_out_max, 7);
        assert_eq!(config.consensus.heartbeat_ms, 50);
        assert!(NodeConfig::from_toml("zonne = \"b\"").is_err());
    }

    #[test]
    fn a_printed_configuration_does_not_show_the_key() {
        let mut config = NodeConfig::default();
        config.admin_key.plain = Some("a very secret admin key".to_owned());
        assert!(!format!("{config:?}").contains("secret"));
    }
}
