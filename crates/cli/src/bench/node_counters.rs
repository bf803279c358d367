//! What the nodes counted: from `/metrics`, and their processor time where they run here.

use std::net::SocketAddr;
use std::time::Duration;

use anchorhold_cluster::{ProcessIdentity, http_get};
use anyhow::{Context as _, bail};

/// Sums over all nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeCounters {
    /// Log entries appended.
    pub(crate) log_entries: u64,
    /// Fsyncs of the shared logs.
    pub(crate) fsyncs: u64,
    /// Processor time of the processes, if all are known.
    pub(crate) cpu: Option<Duration>,
}

/// Reads the counters of all nodes.
///
/// # Errors
/// If one of them does not answer.
pub(crate) async fn read(
    addresses: &[SocketAddr],
    processes: &[ProcessIdentity],
) -> anyhow::Result<NodeCounters> {
    let mut sum = NodeCounters { cpu: cpu(processes), ..NodeCounters::default() };
    for address in addresses {
        let answer = http_get(*address, "/metrics")
            .await
            .with_context(|| format!("cannot read the metrics of {address}"))?;
        if answer.status != 200 {
            bail!("{address} answers /metrics with status {}", answer.status);
        }
        sum.log_entries += counter(&answer.body, "anchorhold_log_entries_total");
        sum.fsyncs += counter(&answer.body, "anchorhold_log_fsyncs_total");
    }
    Ok(sum)
}

impl NodeCounters {
    /// What was counted since an earlier reading.
    pub(crate) fn since(self, earlier: Self) -> Self {
        let cpu = self.cpu.zip(earlier.cpu).map(|(now, then)| now.saturating_sub(then));
        Self {
            log_entries: self.log_entries.saturating_sub(earlier.log_entries),
            fsyncs: self.fsyncs.saturating_sub(earlier.fsyncs),
            cpu,
        }
    }
}

/// Processor time of all processes together; `None` if one is unknown or there is none.
fn cpu(processes: &[ProcessIdentity]) -> Option<Duration> {
    if processes.is_empty() {
        return None;
    }
    processes.iter().map(ProcessIdentity::cpu_time).sum()
}

/// The sum of a counter over its labels, in Prometheus' text format.
fn counter(text: &str, name: &str) -> u64 {
    let samples = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = match rest.strip_prefix('{') {
            Some(labelled) => labelled.rsplit_once('}')?.1,
            None => rest.strip_prefix(' ')?,
        };
        value.trim().parse::<f64>().ok()
    });
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counters are whole and not negative"
    )]
    let sum = samples.sum::<f64>() as u64;
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_summed_over_its_labels_and_not_over_its_namesakes() {
        let text = "# HELP a_total x\na_total 3\nb_total{k=\"v\"} 4\nb_total{k=\"} w\"} 5\na_total_more 9\n";
        assert_eq!(counter(text, "a_total"), 3);
        assert_eq!(counter(text, "b_total"), 9);
        assert_eq!(counter(text, "c_total"), 0);
    }

    #[test]
    fn the_difference_of_two_readings_is_what_happened_between() {
        let reading = |fsyncs, seconds| NodeCounters {
            log_entries: 2 * fsyncs,
            fsyncs,
            cpu: Some(Duration::from_secs(seconds)),
        };
        assert_eq!(reading(7, 9).since(reading(3, 4)), reading(4, 5));
        let restarted = reading(1, 1).since(reading(3, 4));
        assert_eq!((restarted.fsyncs, restarted.cpu), (0, Some(Duration::ZERO)));
    }
}
