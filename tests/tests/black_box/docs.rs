//! Documents that are made from code.

use std::fmt::Write as _;

use anchorhold_proto::{NextMove, Reason};
use expect_test::expect_file;

#[test]
fn the_page_of_errors_lists_every_reason() {
    let mut page = String::from(
        "# Errors\n\n\
         Every error carries a `google.rpc.ErrorInfo` of domain `anchorhold.dev` with one of these reasons. \
         Decide by the reason, not by the text. This page is made from the code: \
         `UPDATE_EXPECT=1 cargo test -p anchorhold-tests docs`.\n\n\
         | reason | gRPC code | what to do | meaning |\n|---|---|---|---|\n",
    );
    for reason in Reason::ALL {
        let next = match reason.next_move() {
            NextMove::Retry => "send it again after a pause, a write with the same request id",
            NextMove::RefreshRoutes => "learn the routes again, then send it again",
            NextMove::Reread => "read again, decide again",
            NextMove::Change => "send something else: the same fails again",
        };
        let code = reason.code();
        writeln!(page, "| `{reason}` | {code:?} | {next} | {} |", reason.explanation())
            .expect("writing to a string");
    }
    expect_file!["../../../docs/errors.md"].assert_eq(&page);
}
