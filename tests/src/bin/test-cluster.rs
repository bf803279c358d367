//! Runs a cluster for clients in other languages: `test-cluster FILE`.
//!
//! Starts three zones, makes two accounts, writes what a client needs to know to FILE as JSON, and
//! ends the cluster when its standard input ends.

use std::path::Path;

use anchorhold_tests::cluster::TestCluster;
use anyhow::Context as _;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let file = std::env::args_os().nth(1).context("usage: test-cluster FILE")?;
    let directory = tempfile::tempdir()?;
    let cluster = TestCluster::start_in(directory.path(), "").await?;
    let account = cluster.account(4).await?;
    let other = cluster.account(0).await?;
    let nodes = cluster.nodes().iter().map(|node| {
        serde_json::json!({
            "name": node.name,
            "client": node.client_address.to_string(),
            "http": node.http_address.to_string(),
        })
    });
    let description = serde_json::json!({
        "nodes": nodes.collect::<Vec<_>>(),
        "admin_key": cluster.admin_key(),
        "account_key": account.key,
        "other_account_key": other.key,
    });
    // A reader that waits for the file must never see half of it.
    let whole = Path::new(&file).with_extension("new");
    std::fs::write(&whole, serde_json::to_vec_pretty(&description)?)?;
    std::fs::rename(&whole, &file)?;
    tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await?;
    Ok(())
}
