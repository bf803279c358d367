//! The error of every call.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anchorhold_proto::{Reason, ReceivedFailure};
use tonic::Code;

/// Why a call failed, after all retries that were safe.
#[derive(Clone)]
pub struct ClientError(Box<Inner>);

#[derive(Clone)]
struct Inner {
    failure: ReceivedFailure,
    attempts: u32,
    unknown_request_id: Option<String>,
}

impl ClientError {
    /// An error that no node has sent.
    pub(crate) fn local(code: Code, message: impl Into<String>) -> Self {
        Self::of(
            ReceivedFailure {
                code,
                reason: None,
                reason_text: String::new(),
                message: message.into(),
                metadata: BTreeMap::new(),
                retry_after: None,
                violations: Vec::new(),
            },
            0,
        )
    }

    pub(crate) fn of(failure: ReceivedFailure, attempts: u32) -> Self {
        Self(Box::new(Inner { failure, attempts, unknown_request_id: None }))
    }

    /// Marks the failure of a write that may have been done.
    pub(crate) fn with_unknown_outcome(mut self, request_id: &str) -> Self {
        self.0.unknown_request_id = Some(request_id.to_owned());
        self
    }

    /// The stable reason; `None` if no node answered, or a newer one gave a reason that this
    /// version does not know (see [`ClientError::reason_text`]).
    pub fn reason(&self) -> Option<Reason> {
        self.0.failure.reason
    }

    /// The reason's text as the node sent it; empty if there was none.
    pub fn reason_text(&self) -> &str {
        &self.0.failure.reason_text
    }

    /// The gRPC code.
    pub fn code(&self) -> Code {
        self.0.failure.code
    }

    /// What happened, for people.
    pub fn message(&self) -> &str {
        &self.0.failure.message
    }

    /// Facts for programs; the keys belong to the reason.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.0.failure.metadata
    }

    /// The fields at fault and what is wrong about each.
    pub fn violations(&self) -> &[(String, String)] {
        &self.0.failure.violations
    }

    /// When the node said to come back.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.failure.retry_after
    }

    /// How often the request was sent.
    pub fn attempts(&self) -> u32 {
        self.0.attempts
    }

    /// Of a write that may have been done: the request id to send it again with, within 10 minutes,
    /// so that it has one effect. `None` if it is certain that nothing was written, or for a read.
    pub fn unknown_request_id(&self) -> Option<&str> {
        self.0.unknown_request_id.as_deref()
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failure = &self.0.failure;
        if failure.reason_text.is_empty() {
            write!(f, "{:?}: {}", failure.code, failure.message)?;
        } else {
            write!(f, "{}: {}", failure.reason_text, failure.message)?;
        }
        if let Some(request_id) = &self.0.unknown_request_id {
            write!(f, " (may have been written; send it again with request id {request_id})")?;
        }
        Ok(())
    }
}

impl fmt::Debug for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} [{:?}, {} attempts]", self.code(), self.attempts())
    }
}

impl std::error::Error for ClientError {}

/// What became of one item of a batch, as an error of its own.
impl From<&anchorhold_proto::v1::ItemError> for ClientError {
    fn from(error: &anchorhold_proto::v1::ItemError) -> Self {
        Self::of(ReceivedFailure::of_item(error), 1)
    }
}
