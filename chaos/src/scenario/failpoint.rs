//! The failpoints of the nodes' code, by name.
//!
//! The harness does not link the nodes, so the list stands here; a test holds it to their source.

/// Every failpoint with what the code is about to do, or has just done, there.
pub const FAILPOINTS: &[(&str, &str)] = &[
    ("apply.commit", "an entry is about to be committed to the state"),
    ("apply.committed", "an entry is in the state, and nobody has been shown it yet"),
    ("checkpoint.begin", "the state is about to be made durable"),
    ("checkpoint.end", "the state is durable, and nobody has been told"),
    ("install.finish", "the last rows of a snapshot are about to be loaded"),
    ("install.load", "some rows of a snapshot are loaded, and some are not"),
    ("log.append", "entries are about to be handed to the log"),
    ("log.durable", "entries are on disk, and nobody has been told"),
    ("membership.apply", "a change of members is about to be applied"),
    ("snapshot.received", "a snapshot has arrived and is about to replace the state"),
    ("snapshot.written", "a snapshot file is whole, and the one before it is still there"),
    ("vote.durable", "a vote is on disk, and nobody has been told"),
];

/// The failpoint of a name, as a name that lives forever.
pub fn failpoint(name: &str) -> Option<&'static str> {
    FAILPOINTS.iter().find(|(known, _)| *known == name).map(|(known, _)| *known)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// All names that the source hands to a failpoint.
    fn in_source(directory: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                in_source(&path, found);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for line in code.lines() {
                let is_one = line.contains("failpoint!(") || line.contains(".reach(\"");
                if let Some(name) = line.split('"').nth(1).filter(|_| is_one) {
                    found.insert(name.to_owned());
                }
            }
        }
    }

    #[test]
    fn the_list_is_what_the_source_has() {
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
        let mut found = BTreeSet::new();
        in_source(&crates, &mut found);
        let listed: BTreeSet<String> =
            FAILPOINTS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(listed, found);
        assert!(FAILPOINTS.is_sorted());
        assert_eq!(failpoint("log.durable"), Some("log.durable"));
        assert_eq!(failpoint("nowhere"), None);
    }
}
