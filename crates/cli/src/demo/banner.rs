//! What the demo says when it is ready: where everything is, an answer, and what to try.

use super::Demo;
use crate::locate::Found;
use crate::output::{facts, thousands};

/// Prints the welcome.
///
/// # Errors
/// If the cluster's state cannot be read.
pub(super) fn print(demo: &Demo, found: &Found, is_temporary: bool) -> anyhow::Result<()> {
    let state = demo.cluster.state()?;
    let nodes = state.nodes.iter().map(|node| {
        let [client, http] = [node.client_address, node.http_address];
        let name = format!("{} (zone {})", node.name, node.zone);
        [name, client.to_string(), format!("http://{http}/metrics")]
    });
    println!("\nAnchorhold runs here: {} nodes, not for production.\n", state.nodes.len());
    println!("{}\n", crate::output::table(["NODE", "CLIENTS", "METRICS"], nodes));
    let kept = if is_temporary { " (removed at the end; keep it by --data-dir)" } else { "" };
    let data_dir = format!("{}{kept}", demo.cluster.data_dir().display());
    println!(
        "{}\n",
        facts(&[
            ("anchors", thousands(demo.scanned.rows)),
            ("data", data_dir),
            ("admin key", state.admin_key_file.display().to_string()),
            (
                "API key",
                state.api_key_file.map_or(String::new(), |path| path.display().to_string())
            ),
        ])
    );
    let query = format!("{},{}", demo.near.latitude_deg, demo.near.longitude_deg);
    println!("$ anchorhold locate --near {query} -k 3\n{}\n", found.table());
    println!(
        "Now try in another terminal (it finds this cluster by itself):
  anchorhold locate --near 40.6413,-73.7781 -k 5 --tag iata
  anchorhold zone kill b          # then ask and write again: nothing is lost
  anchorhold cluster status
  anchorhold zone start b
  anchorhold bench write --clients 64
Ctrl-C ends it."
    );
    Ok(())
}
