//! The project's own checks.
//!
//! `cargo xtask verify` reads and never writes: formatting, lints, documentation, the layers between
//! the crates, licences, protos and the text rules of the house. `cargo xtask fix` writes what a
//! machine can repair. Each step is printed with its command before and its time after it ran; a
//! failure does not stop the later steps, and the closing lines name every step that failed.
//!
//! Not here: tests. `cargo test --workspace` runs them and `.ci/run` calls both.

mod layers;
mod step;
mod text;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use crate::step::{Report, command, optional_command};

const USAGE: &str = "usage: cargo xtask <verify|fix|sim>

  verify   check the workspace; reads only
  fix      format the code and apply what clippy can repair by itself
  sim      the deterministic simulation: `sim test` runs its tests; anything else is for the
           simulator: `sim --seed 7 --events`, `sim --first 1 --count 1000`, `sim --help`";

fn main() -> ExitCode {
    let verb = std::env::args().nth(1);
    let outcome = match verb.as_deref() {
        Some("verify") => root().map(|root| verify(&root)),
        Some("fix") => root().map(|root| fix(&root)),
        Some("sim") => root().map(|root| sim(&root, &std::env::args().skip(2).collect::<Vec<_>>())),
        Some(_) | None => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(report) => report.close(),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn root() -> anyhow::Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(manifest.parent().context("xtask lies in the workspace")?.to_path_buf())
}

fn verify(root: &Path) -> Report {
    let mut report = Report::default();
    report.run("format", || command(root, "cargo", &["fmt", "--all", "--check"], &[]));
    report.run("layers", || layers::check(root));
    report.run("text rules", || text::check(root));
    report.run("architecture paths", || text::check_architecture(root));
    report.run("protos", || optional_command(&root.join("proto"), "buf", &["lint"]));
    report.run("dependencies", || {
        optional_command(root, "cargo-deny", &["check", "bans", "licenses", "sources"])
    });
    report.run("lints", || {
        let targets = ["clippy", "--workspace", "--all-targets", "--locked"];
        command(root, "cargo", &[&targets[..], &["--", "-D", "warnings"]].concat(), &[])
    });
    report.run("documentation", || {
        let arguments = ["doc", "--workspace", "--no-deps", "--locked", "--keep-going"];
        command(root, "cargo", &arguments, &[("RUSTDOCFLAGS", "-D warnings")])
    });
    report
}

fn fix(root: &Path) -> Report {
    let mut report = Report::default();
    report.run("lints", || {
        let arguments = ["clippy", "--fix", "--workspace", "--all-targets", "--allow-dirty"];
        command(root, "cargo", &arguments, &[])
    });
    report.run("format", || command(root, "cargo", &["fmt", "--all"], &[]));
    report
}

/// Builds the simulation with tokio's random numbers seeded, apart from everything else, because
/// the flag concerns every crate below it.
fn sim(root: &Path, arguments: &[String]) -> Report {
    let is_test = arguments.first().is_some_and(|first| first == "test");
    let (verb, rest) = if is_test { ("test", &arguments[1..]) } else { ("run", arguments) };
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".to_owned());
    let target = root.join(target).join("sim");
    let target = target.to_string_lossy();
    let mut command_line = vec![verb, "--quiet", "--locked", "--profile", "sim"];
    command_line.extend(["--package", "anchorhold-sim", "--features", "mutants"]);
    command_line.extend(["--target-dir", &*target, "--"]);
    command_line.extend(rest.iter().map(String::as_str));
    let mut report = Report::default();
    let environment = [("RUSTFLAGS", "--cfg tokio_unstable")];
    report.run("simulation", || command(root, "cargo", &command_line, &environment));
    report
}
