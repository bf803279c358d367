//! Rules about the text of the repository that no compiler knows.
//!
//! Files are those git would commit: tracked ones and new ones that are not ignored.

use std::path::Path;

use anyhow::{Context as _, bail};

use crate::step::{Done, output};

/// A longer source file is split.
const FILE_LINES_MAX: usize = 800;
/// A longer source file is worth a look.
const FILE_LINES_HINT: usize = 500;

/// Words that must not be in Rust code. Written in two halves so that this file passes.
const CODE_WORDS: &[&str] = &[
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("dbg", "!("),
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
];

/// Paths of one machine, which mean nothing on another.
const MACHINE_PATHS: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("/tmp/", "bash"),
];

/// File name endings that hold text of ours.
const TEXT_ENDINGS: &[&str] =
    &[".rs", ".md", ".toml", ".proto", ".py", ".mjs", ".js", ".html", ".sh", ".yaml", ".ci/run"];

/// Checks file lengths and words.
///
/// # Errors
/// Lists every file that is too long and every line with a forbidden word.
pub(crate) fn check(root: &Path) -> anyhow::Result<Done> {
    let arguments = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let listing = output(root, "git", &arguments)?;
    let mut wrong = Vec::new();
    for path in listing.lines().filter(|path| TEXT_ENDINGS.iter().any(|end| path.ends_with(end))) {
        // A file that is deleted but not yet committed is still listed.
        let Ok(text) = std::fs::read_to_string(root.join(path)) else { continue };
        wrong.extend(wrong_words(path, &text));
        wrong.extend(wrong_length(path, text.lines().count()));
    }
    if !wrong.is_empty() {
        bail!("{} violations\n      {}", wrong.len(), wrong.join("\n      "));
    }
    Ok(Done::Passed)
}

fn wrong_length(path: &str, lines: usize) -> Option<String> {
    if !path.ends_with(".rs") {
        return None;
    }
    if FILE_LINES_HINT < lines && lines <= FILE_LINES_MAX {
        eprintln!("    hint: {path} has {lines} lines");
    }
    (FILE_LINES_MAX < lines).then(|| format!("{path}: {lines} lines, at most {FILE_LINES_MAX}"))
}

fn wrong_words(path: &str, text: &str) -> Vec<String> {
    let code = if path.ends_with(".rs") { CODE_WORDS } else { &[] };
    let words = || code.iter().chain(MACHINE_PATHS);
    let mut wrong = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let found = words().filter(|word| line.contains(**word));
        wrong.extend(found.map(|word| format!("{path}:{}: `{word}`", number + 1)));
    }
    wrong
}

/// Checks that every path named in ARCHITECTURE.md exists.
///
/// A path is text between backticks that holds a slash and nothing but path characters.
///
/// # Errors
/// Lists the missing ones.
pub(crate) fn check_architecture(root: &Path) -> anyhow::Result<Done> {
    let file = root.join("ARCHITECTURE.md");
    let text = std::fs::read_to_string(&file).context("ARCHITECTURE.md")?;
    let paths = named_paths(&text);
    if paths.is_empty() {
        bail!("ARCHITECTURE.md names no path");
    }
    let missing: Vec<_> = paths.iter().filter(|path| !root.join(path).exists()).copied().collect();
    if !missing.is_empty() {
        bail!("ARCHITECTURE.md names what is not there: {}", missing.join(", "));
    }
    Ok(Done::Passed)
}

fn named_paths(text: &str) -> Vec<&str> {
    let is_path = |span: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
        span.contains('/') && !span.starts_with('/') && span.chars().all(plain)
    };
    text.split('`').skip(1).step_by(2).filter(|span| is_path(span)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_code_and_machine_paths_are_named_with_their_line() {
        let text = format!("fn a() {{\n    {}\n}}\n", concat!("todo", "!()"));
        assert_eq!(wrong_words("a.rs", &text), [format!("a.rs:2: `{}`", concat!("todo", "!("))]);
        assert!(wrong_words("a.md", &text).is_empty(), "prose may speak of it");
        assert_eq!(wrong_words("a.md", concat!("see /ro", "ot/x")).len(), 1);
    }

    #[test]
    fn only_a_source_file_can_be_too_long() {
        assert_eq!(wrong_length("a.rs", FILE_LINES_MAX), None);
        assert!(wrong_length("a.rs", FILE_LINES_MAX + 1).is_some());
        assert_eq!(wrong_length("a.md", FILE_LINES_MAX + 1), None);
    }

    #[test]
    fn paths_are_the_backticked_words_with_a_slash() {
        let text = "`crates/model` and `apply` and `a -> b/c` and `/metrics` and `.ci/run`";
        assert_eq!(named_paths(text), ["crates/model", ".ci/run"]);
    }
}
