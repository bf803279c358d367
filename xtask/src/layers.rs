//! Checks the arrows between the crates.
//!
//! [`EDGES`] is the architecture: a crate may use what its row names and nothing else of the
//! workspace, in tests too. [`PURE`] crates decide and never act, so no runtime, transport,
//! consensus or storage engine may be anywhere below them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail};

use crate::step::{Done, output};

/// What each package may depend on inside the workspace. A new edge is an architecture change.
const EDGES: &[(&str, &[&str])] = &[
    ("anchorhold-geometry", &[]),
    ("anchorhold-localization", &["geometry"]),
    ("anchorhold-model", &["geometry"]),
    ("anchorhold-placement", &["geometry", "model"]),
    ("anchorhold-proto", &["geometry", "model"]),
    ("anchorhold-storage", &["model"]),
    ("anchorhold-consensus", &["geometry", "model", "placement", "proto", "storage"]),
    (
        "anchorhold-server",
        &["geometry", "localization", "model", "placement", "proto", "storage", "consensus"],
    ),
    ("anchorhold-client", &["geometry", "model", "proto"]),
    ("anchorhold-cluster", &["client", "proto"]),
    ("anchorhold-chaos", &["client", "cluster", "geometry", "model", "proto"]),
    // Builds nodes itself, on simulated seams.
    ("anchorhold-sim", &["consensus", "model", "proto", "server", "storage"]),
    // The one binary: it starts nodes (`server`), whole clusters (`cluster`) and faults (`chaos`),
    // and simulates the planner (`placement`).
    (
        "anchorhold",
        &["chaos", "client", "cluster", "geometry", "model", "placement", "proto", "server"],
    ),
    // Black box: never `server`, `consensus` or `storage`.
    ("anchorhold-tests", &["chaos", "client", "cluster", "geometry", "model", "proto"]),
    ("xtask", &[]),
];

/// Crates without IO.
const PURE: &[&str] = &["geometry", "localization", "model", "placement"];

/// What must not be below a pure crate.
const IMPURE: &[&str] = &[
    "axum", "fs2", "hyper", "mio", "openraft", "prost", "rustix", "sled", "socket2", "tokio",
    "tonic", "metrics", "rand",
];

/// Compares the workspace with the table.
///
/// # Errors
/// Lists every edge that is not allowed and every impure crate below a pure one.
pub(crate) fn check(root: &Path) -> anyhow::Result<Done> {
    let mut wrong = wrong_edges(&edges(root)?);
    for crate_name in PURE {
        let package = format!("anchorhold-{crate_name}");
        let arguments = ["tree", "--locked", "-p", &package, "-e", "normal", "--prefix", "none"];
        wrong.extend(impure_lines(crate_name, &output(root, "cargo", &arguments)?));
    }
    if !wrong.is_empty() {
        bail!("{} violations\n      {}", wrong.len(), wrong.join("\n      "));
    }
    Ok(Done::Passed)
}

type Edges = BTreeMap<String, Vec<String>>;

fn edges(root: &Path) -> anyhow::Result<Edges> {
    let arguments = ["metadata", "--locked", "--no-deps", "--format-version", "1"];
    let metadata: serde_json::Value = serde_json::from_str(&output(root, "cargo", &arguments)?)?;
    let packages = metadata["packages"].as_array().context("metadata lists packages")?;
    let name = |value: &serde_json::Value| value["name"].as_str().unwrap_or_default().to_owned();
    let mut edges = Edges::new();
    for package in packages {
        let dependencies = package["dependencies"].as_array().context("a package lists them")?;
        let inside = dependencies.iter().filter(|dependency| dependency["path"].is_string());
        edges.insert(name(package), inside.map(name).collect());
    }
    Ok(edges)
}

fn wrong_edges(edges: &Edges) -> Vec<String> {
    let mut wrong = Vec::new();
    for (package, dependencies) in edges {
        let Some((_, allowed)) = EDGES.iter().find(|(name, _)| name == package) else {
            wrong.push(format!("{package} is not in the table of layers (xtask/src/layers.rs)"));
            continue;
        };
        for dependency in dependencies {
            let short = dependency.strip_prefix("anchorhold-").unwrap_or(dependency);
            if !allowed.contains(&short) {
                wrong.push(format!("{package} -> {dependency} is not an allowed edge"));
            }
        }
    }
    wrong
}

fn impure_lines(crate_name: &str, tree: &str) -> Vec<String> {
    let names = tree.lines().filter_map(|line| line.split_whitespace().next());
    let mut found: Vec<_> = names.filter(|name| IMPURE.contains(name)).collect();
    found.sort_unstable();
    found.dedup();
    found.iter().map(|name| format!("{crate_name} is pure, but {name} is below it")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(package: &str, dependency: &str) -> Vec<String> {
        wrong_edges(&BTreeMap::from([(package.to_owned(), vec![dependency.to_owned()])]))
    }

    #[test]
    fn an_edge_of_the_table_is_allowed_and_any_other_is_named() {
        assert!(one("anchorhold-server", "anchorhold-storage").is_empty());
        let upward = ["anchorhold-model -> anchorhold-proto is not an allowed edge"];
        assert_eq!(one("anchorhold-model", "anchorhold-proto"), upward);
        assert_eq!(one("anchorhold-tests", "anchorhold-server").len(), 1);
        assert_eq!(one("anchorhold-new", "anchorhold-model").len(), 1);
    }

    #[test]
    fn a_runtime_below_a_pure_crate_is_found_once() {
        let tree = "anchorhold-model v0.1.0\nserde v1.0.0\ntokio v1.54.1\ntokio v1.54.1 (*)\n";
        assert_eq!(impure_lines("model", tree), ["model is pure, but tokio is below it"]);
        assert!(impure_lines("model", "tokio-like v1.0.0\n").is_empty());
    }
}
