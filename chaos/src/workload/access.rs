//! The way into a cluster.

use std::time::Duration;

use anchorhold_client::{AdminClient, Client, ClientConfig, ClientError, admin_v1};
use anyhow::Context as _;

/// Where a cluster is, for its clients and operators.
#[derive(Clone)]
pub struct ClusterAccess {
    /// All nodes, as clients reach them.
    pub nodes: Vec<NodeAccess>,
    /// Addresses that take the operators' calls, `host:port`.
    pub admin_endpoints: Vec<String>,
    /// The operators' key.
    pub admin_key: String,
    /// Whether clients may go to the addresses that nodes name for each other. Not if the harness
    /// stands between clients and nodes at other addresses.
    pub is_direct: bool,
}

/// One node, as clients reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAccess {
    /// Its id in the cluster.
    pub node_id: u64,
    /// Its name in the topology.
    pub name: String,
    /// The region that it stands in.
    pub region: String,
    /// The zone within the region.
    pub zone: String,
    /// Its client address, `host:port`: a proxy's, if there is one.
    pub endpoint: String,
}

impl ClusterAccess {
    /// A client of an account, which may use every node.
    ///
    /// # Errors
    /// If no node answers, or the key is refused.
    pub async fn client(&self, api_key: &str, deadline: Duration) -> Result<Client, ClientError> {
        let endpoints = self.nodes.iter().map(|node| node.endpoint.clone()).collect();
        let direct = self.is_direct;
        let api_key = api_key.to_owned();
        Client::connect(ClientConfig {
            endpoints,
            api_key,
            deadline,
            direct,
            ..ClientConfig::default()
        })
        .await
    }

    /// A client of an account that talks to one node only.
    ///
    /// # Errors
    /// If the address is none.
    pub async fn client_of_node(
        &self,
        node: &NodeAccess,
        api_key: &str,
        deadline: Duration,
    ) -> Result<Client, ClientError> {
        Client::connect(ClientConfig {
            endpoints: vec![node.endpoint.clone()],
            api_key: api_key.to_owned(),
            deadline,
            direct: false,
            ..ClientConfig::default()
        })
        .await
    }

    /// A client for the operators' calls.
    ///
    /// # Errors
    /// If an address is none.
    pub fn admin(&self, deadline: Duration) -> Result<AdminClient, ClientError> {
        AdminClient::new(ClientConfig {
            endpoints: self.admin_endpoints.clone(),
            api_key: self.admin_key.clone(),
            deadline,
            ..ClientConfig::default()
        })
    }
}

/// Tries to make a key.
const KEY_TRIES: usize = 5;

/// Makes an API key for an account: its id, and the key. The answer to a retry does not show the key
/// again; such a one is revoked and another one made.
///
/// # Errors
/// If it cannot be made.
pub(crate) async fn make_key(
    admin: &AdminClient,
    account: u32,
) -> anyhow::Result<(String, String)> {
    for _ in 0..KEY_TRIES {
        let request = admin_v1::CreateApiKeyRequest { account, ..Default::default() };
        let created = admin.create_api_key(request).await.context("making a key")?;
        // None: it was revoked since.
        let Some(key) = created.key else { continue };
        if !created.api_key.is_empty() {
            return Ok((key.key_id, created.api_key));
        }
        revoke_key(admin, account, key.key_id).await?;
    }
    anyhow::bail!("no key of account {account} was shown in {KEY_TRIES} tries")
}

/// Revokes an API key.
///
/// # Errors
/// If it cannot be revoked.
pub(crate) async fn revoke_key(
    admin: &AdminClient,
    account: u32,
    key_id: String,
) -> anyhow::Result<()> {
    let request = admin_v1::RevokeApiKeyRequest { account, key_id, ..Default::default() };
    admin.revoke_api_key(request).await.context("revoking a key")?;
    Ok(())
}

/// Leaves the key out.
impl std::fmt::Debug for ClusterAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterAccess").field("nodes", &self.nodes).finish_non_exhaustive()
    }
}
