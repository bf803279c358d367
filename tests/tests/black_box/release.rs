//! A node that can be broken on command is built apart: what users get holds nothing of it.

use std::process::Command;

use anchorhold_tests::binary;

/// What only the node's side of faults, failpoints and mutants says.
const ONLY_BREAKABLE: &[&str] = &[
    "anchorhold: ended at the failpoint ",
    "input/output error (injected at a sync)",
    "cannot follow the harness's control file",
];
/// What every node can say: if this is not found, nothing is by this way of looking.
const EVERY_NODE: &str = "anchorhold: stopped: ";

#[test]
fn a_released_binary_holds_neither_failpoints_nor_mutants() {
    let path = binary::anchorhold().unwrap();
    let told = Command::new(&path).arg("--version").output().unwrap();
    let is_breakable = String::from_utf8_lossy(&told.stdout).trim().ends_with("+chaos");
    let bytes = std::fs::read(&path).unwrap();
    let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds(EVERY_NODE));
    for text in ONLY_BREAKABLE {
        assert_eq!(holds(text), is_breakable, "{text:?}");
    }
}
