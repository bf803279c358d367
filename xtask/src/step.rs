//! Runs one step after another and remembers which failed.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// What became of a step that did not fail.
pub(crate) enum Done {
    /// It ran and found nothing.
    Passed,
    /// It could not run here; the text says why.
    Skipped(String),
}

/// The steps that ran, in order.
#[derive(Default)]
pub(crate) struct Report {
    passed: usize,
    skipped: Vec<String>,
    failed: Vec<String>,
    took: Duration,
}

impl Report {
    /// Runs `step`, prints what came of it and goes on whatever that was.
    pub(crate) fn run(&mut self, name: &str, step: impl FnOnce() -> anyhow::Result<Done>) {
        eprintln!("==> {name}");
        #[expect(
            clippy::disallowed_methods,
            reason = "a step's time is printed, nothing depends on it"
        )]
        let start = Instant::now();
        let outcome = step();
        let took = start.elapsed();
        self.took += took;
        let seconds = took.as_secs_f64();
        match outcome {
            Ok(Done::Passed) => {
                self.passed += 1;
                eprintln!("    {name}: ok ({seconds:.1} s)");
            }
            Ok(Done::Skipped(why)) => {
                eprintln!("    {name}: SKIPPED, {why}");
                self.skipped.push(format!("{name}: {why}"));
            }
            Err(error) => {
                eprintln!("    {name}: FAILED ({seconds:.1} s): {error:#}");
                self.failed.push(format!("{name}: {error}"));
            }
        }
    }

    /// Prints the summary; the exit code is 1 if a step failed.
    pub(crate) fn close(self) -> ExitCode {
        eprintln!(
            "{} steps ok, {} skipped, {} failed, {:.1} s",
            self.passed,
            self.skipped.len(),
            self.failed.len(),
            self.took.as_secs_f64()
        );
        for line in &self.skipped {
            eprintln!("  skipped {line}");
        }
        for line in &self.failed {
            eprintln!("  failed  {}", line.lines().next().unwrap_or_default());
        }
        if self.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Runs a program whose output goes straight to the terminal.
///
/// # Errors
/// If it cannot be started or does not exit with 0.
pub(crate) fn command(
    directory: &Path,
    program: &str,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> anyhow::Result<Done> {
    let variables: String =
        environment.iter().map(|(name, value)| format!("{name}=\"{value}\" ")).collect();
    eprintln!("    {variables}{program} {}", arguments.join(" "));
    let status = Command::new(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir(directory)
        .status()
        .with_context(|| format!("{program} did not start"))?;
    if !status.success() {
        bail!("{program} {}: {status}", arguments.join(" "));
    }
    Ok(Done::Passed)
}

/// As [`command`], but skipped where the program is not installed.
///
/// # Errors
/// If the program is there and does not exit with 0.
pub(crate) fn optional_command(
    directory: &Path,
    program: &str,
    arguments: &[&str],
) -> anyhow::Result<Done> {
    if Command::new(program).arg("--version").output().is_err() {
        return Ok(Done::Skipped(format!("{program} is not installed")));
    }
    command(directory, program, arguments, &[])
}

/// The standard output of a program that must exit with 0.
///
/// # Errors
/// If it does not start, fails, or prints bytes that are not UTF-8.
pub(crate) fn output(
    directory: &Path,
    program: &str,
    arguments: &[&str],
) -> anyhow::Result<String> {
    eprintln!("    {program} {}", arguments.join(" "));
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .output()
        .with_context(|| format!("{program} did not start"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8(output.stdout).with_context(|| format!("{program} printed no UTF-8"))
}
