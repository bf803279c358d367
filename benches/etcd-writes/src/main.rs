//! Closed-loop writes to the leader of an etcd cluster: each client puts one key at a time.
//!
//! `etcd-writes ENDPOINT[,ENDPOINT…] CLIENTS SECONDS BYTES` prints one line of JSON:
//! `{"rate": writes per second, "p50_ms": …, "p99_ms": …}`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use etcd_client::{Client, Error};
use hdrhistogram::Histogram;

/// Seconds of load before the measured ones, as `write_peers.py` asks of Anchorhold.
const WARM_UP: Duration = Duration::from_secs(1);

/// The endpoint of the member that leads.
async fn leader(endpoints: &[&str]) -> Result<String, Error> {
    let mut members = Vec::new();
    let mut leader = 0;
    for endpoint in endpoints {
        let status = Client::connect([endpoint], None).await?.status().await?;
        let member = status.header().map_or(0, etcd_client::ResponseHeader::member_id);
        members.push((member, (*endpoint).to_owned()));
        leader = status.leader();
    }
    let found = members.into_iter().find(|(member, _)| *member == leader);
    found.map(|(_, endpoint)| endpoint).ok_or_else(|| Error::InvalidArgs("no leader".to_owned()))
}

async fn put_until(
    stop: Arc<AtomicBool>,
    measured: Arc<AtomicBool>,
    mut client: Client,
    number: usize,
    bytes: usize,
) -> Result<Histogram<u64>, Box<dyn std::error::Error + Send + Sync>> {
    let mut latencies = Histogram::new(3).expect("three digits are allowed");
    let value = vec![b'x'; bytes];
    for write in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let start = Instant::now();
        // New keys, as creates are.
        client.put(format!("{number:05}/{write:010}"), value.clone(), None).await?;
        if measured.load(Ordering::Relaxed) {
            latencies.record(start.elapsed().as_micros() as u64)?;
        }
    }
    Ok(latencies)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [endpoints, clients, seconds, bytes] = arguments.as_slice() else {
        return Err("usage: etcd-writes ENDPOINT[,ENDPOINT…] CLIENTS SECONDS BYTES".into());
    };
    let (clients, seconds): (usize, f64) = (clients.parse()?, seconds.parse()?);
    let bytes: usize = bytes.parse()?;
    let leader = leader(&endpoints.split(',').collect::<Vec<_>>()).await?;
    // One HTTP/2 connection for all, as `anchorhold bench write` has one to each node.
    let client = Client::connect([leader], None).await?;
    let (stop, measured) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let tasks: Vec<_> = (0..clients)
        .map(|number| {
            tokio::spawn(put_until(stop.clone(), measured.clone(), client.clone(), number, bytes))
        })
        .collect();
    tokio::time::sleep(WARM_UP).await;
    measured.store(true, Ordering::Relaxed);
    let start = Instant::now();
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    measured.store(false, Ordering::Relaxed);
    let elapsed = start.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    let mut all = Histogram::<u64>::new(3)?;
    for task in tasks {
        all.add(task.await?.map_err(|error| error.to_string())?)?;
    }
    println!(
        "{{\"rate\": {:.1}, \"p50_ms\": {:.3}, \"p99_ms\": {:.3}}}",
        all.len() as f64 / elapsed,
        all.value_at_quantile(0.5) as f64 / 1e3,
        all.value_at_quantile(0.99) as f64 / 1e3,
    );
    Ok(())
}
