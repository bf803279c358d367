//! Exit codes, and the errors that carry one.

use std::fmt;
use std::process::ExitCode;

use anchorhold_client::ClientError;
use tonic::Code;

/// What an exit code says; documented in `--help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Something failed.
    Failed = 1,
    /// The command line or a file given by it is wrong.
    Usage = 2,
    /// The cluster answers and is not healthy.
    Unhealthy = 3,
    /// What was asked for is not there.
    NotFound = 4,
    /// It is there already, or has changed since.
    Conflict = 5,
    /// Nobody answered in time.
    Unavailable = 6,
    /// What was inspected is damaged.
    Damaged = 7,
}

/// The exit codes, for `--help`.
pub(crate) const HELP: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage
  3  the cluster is not healthy (`cluster status --check`)
  4  not found
  5  conflict: it exists already, or has changed since
  6  unavailable: nobody answered in time
  7  damaged: what `debug` inspected is not what was written";

/// An error that knows its exit code, and what to do next.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    problem: String,
    next: String,
}

impl Failure {
    /// An error; `next` says what to do about it and may be empty.
    pub(crate) fn new(exit: Exit, problem: impl Into<String>, next: impl Into<String>) -> Self {
        Self { exit, problem: problem.into(), next: next.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.problem)?;
        if self.next.is_empty() { Ok(()) } else { write!(formatter, "\n  next: {}", self.next) }
    }
}

impl std::error::Error for Failure {}

/// The exit code of an error: the first one that a link of its chain knows.
pub(crate) fn of(error: &anyhow::Error) -> ExitCode {
    let exit = error.chain().find_map(|link| {
        link.downcast_ref::<Failure>()
            .map(|failure| failure.exit)
            .or_else(|| link.downcast_ref::<ClientError>().map(of_client))
    });
    ExitCode::from(exit.unwrap_or(Exit::Failed) as u8)
}

/// The exit code for a failed call. A call that never left because of wrong arguments is usage.
pub(crate) fn of_client(error: &ClientError) -> Exit {
    of_code(error.code())
}

/// What to do about a failed call, if its own message does not say enough.
pub(crate) fn next_move(error: &anyhow::Error) -> Option<&'static str> {
    let call = error.chain().find_map(|link| link.downcast_ref::<ClientError>())?;
    Some(match call.code() {
        Code::Unavailable | Code::DeadlineExceeded => {
            "is the cluster running? `anchorhold demo` starts one; --endpoint names another"
        }
        Code::Unauthenticated => {
            "give the account's key by --api-key or ANCHORHOLD_API_KEY, for operators' commands \
             the admin key by --admin-key-file"
        }
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss => return None,
    })
}

/// The exit code for a gRPC code.
fn of_code(code: Code) -> Exit {
    match code {
        Code::NotFound => Exit::NotFound,
        Code::AlreadyExists | Code::Aborted | Code::FailedPrecondition => Exit::Conflict,
        Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted => Exit::Unavailable,
        Code::InvalidArgument | Code::OutOfRange => Exit::Usage,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::PermissionDenied
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss
        | Code::Unauthenticated => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use anchorhold_proto::v1::ItemError;
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn an_error_keeps_its_exit_code_under_any_context() {
        let error = Err::<(), _>(Failure::new(Exit::Unhealthy, "two zones are down", ""))
            .context("while looking")
            .unwrap_err();
        assert_eq!(format!("{:?}", of(&error)), format!("{:?}", ExitCode::from(3)));
        let item = ItemError { code: Code::NotFound as i32, ..ItemError::default() };
        let error = anyhow::Error::new(ClientError::from(&item)).context("cannot read it");
        assert_eq!(format!("{:?}", of(&error)), format!("{:?}", ExitCode::from(4)));
        assert_eq!(
            format!("{:?}", of(&anyhow::anyhow!("odd"))),
            format!("{:?}", ExitCode::from(1))
        );
    }

    #[test]
    fn the_next_step_stands_below_the_problem() {
        let failure = Failure::new(Exit::Usage, "no position", "give --lat and --lon");
        assert_eq!(failure.to_string(), "no position\n  next: give --lat and --lon");
        assert_eq!(Failure::new(Exit::Usage, "no position", "").to_string(), "no position");
    }
}
