//! `anchorhold chaos doctor`: what this machine can do, and why not.

use std::path::{Path, PathBuf};
use std::process::Command;

use anchorhold_chaos::driver::namespaces_available;
use anchorhold_chaos::scenario::{ROWS, Scenario};
use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use crate::output::{self, Format};

/// Flags of `chaos doctor`.
#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// The node binary [default: this one]
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// One thing that runs may need.
#[derive(Debug, Serialize)]
struct Ability {
    name: &'static str,
    is_there: bool,
    detail: String,
}

/// Says what can be done here.
///
/// # Errors
/// If the node binary cannot be run.
pub(crate) fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let binary = match &args.binary {
        Some(binary) => binary.clone(),
        None => std::env::current_exe().context("cannot find this binary")?,
    };
    let abilities = abilities(&binary)?;
    output::print(args.output, &abilities, || {
        let rows = abilities.iter().map(|ability| {
            let mark = if ability.is_there { "yes" } else { "no" };
            [ability.name.to_owned(), mark.to_owned(), ability.detail.clone()]
        });
        output::table(["WHAT", "HERE", "WHY"], rows)
    })
}

/// Whether a node binary can be broken on command: its version says so.
///
/// # Errors
/// If it cannot be run.
pub(super) fn has_hooks(binary: &Path) -> anyhow::Result<bool> {
    let told = Command::new(binary).arg("--version").output();
    let told = told.with_context(|| format!("cannot run {}", binary.display()))?;
    Ok(String::from_utf8_lossy(&told.stdout).trim().ends_with("+chaos"))
}

fn abilities(binary: &Path) -> anyhow::Result<Vec<Ability>> {
    let hooks = has_hooks(binary)?;
    let rows = ROWS.iter().filter(|row| hooks || !row.needs_hooks).count();
    let mut skipped = Vec::new();
    for name in Scenario::shipped() {
        let (scenario, _) = Scenario::load(name)?;
        if scenario.needs_hooks() && !hooks {
            skipped.push(name);
        }
    }
    let build = "build one with `cargo build --profile chaos -p anchorhold --features chaos`";
    let hooks_detail = if hooks { "disk and clock faults, power loss" } else { build };
    let scenarios = match skipped.as_slice() {
        [] => "all of them".to_owned(),
        skipped => format!("not {}", skipped.join(", ")),
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let enough = 4 <= cores;
    let cores_detail = format!(
        "{cores} cores; with fewer than 4 the harness slows the cluster down, which the lateness \
         figures of a run show"
    );
    let namespaces = namespaces_available();
    Ok(vec![
        ability(
            "process driver",
            true,
            "real processes on loopback behind proxies, no root needed",
        ),
        ability("node that can be broken", hooks, hooks_detail),
        ability("fault catalogue", rows == ROWS.len(), format!("{rows} of {} rows", ROWS.len())),
        ability("scenarios", skipped.is_empty(), scenarios),
        ability("processor", enough, cores_detail),
        ability("netns driver", namespaces.is_ok(), namespaces.unwrap_or_else(|why| why)),
    ])
}

fn ability(name: &'static str, is_there: bool, detail: impl Into<String>) -> Ability {
    Ability { name, is_there, detail: detail.into() }
}

#[cfg(test)]
mod tests {
    /// The harness does not link the server, so both describe the control file by themselves.
    #[cfg(feature = "chaos")]
    #[test]
    fn harness_and_node_mean_the_same_by_a_control_file() {
        use anchorhold_chaos::control;
        use anchorhold_server::chaos;

        let wanted = control::Wanted {
            generation: 1,
            clock_offset_ms: -2,
            clock_drift: 0.5,
            disk_full: true,
            disk_write_error: true,
            disk_sync_error: true,
            disk_stall_ms: 3,
            holds_unsynced: true,
            log_segment_bytes: 4,
            mutants: vec!["apply-skipped".to_owned()],
            ends_at: "log.durable".to_owned(),
        };
        let text = serde_json::to_string(&wanted).unwrap();
        let read: chaos::Wanted = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), serde_json::to_value(&wanted).unwrap());
        assert_eq!(control::CONTROL_VARIABLE, chaos::CONTROL_VARIABLE);
        assert_eq!(control::FAILPOINT, chaos::FAILPOINT);
    }

    /// What a released binary must not hold is not even compiled without the feature.
    #[cfg(not(feature = "chaos"))]
    #[test]
    fn a_binary_without_the_feature_says_so() {
        use clap::CommandFactory as _;

        let version = crate::Cli::command().get_version().map(str::to_owned);
        assert_eq!(version.as_deref(), Some(env!("CARGO_PKG_VERSION")));
    }
}
