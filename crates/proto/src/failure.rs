//! A typed error on its way to or from a `tonic::Status`.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use crate::v1::ItemError;
use crate::{FieldError, Reason, reason};

/// Why a request, or an item of one, failed: what the wire carries in `google.rpc` details.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Failure {
    /// What clients decide by.
    pub reason: Reason,
    /// For people.
    pub message: String,
    /// Facts for programs; the keys belong to the reason.
    pub metadata: BTreeMap<&'static str, String>,
    /// When to come back, if that is known.
    pub retry_after: Option<Duration>,
    /// Fields at fault, with what is wrong about each.
    pub violations: Vec<(String, String)>,
}

/// What an error on the wire says. Total: also made from statuses that other software sent.
#[derive(Clone, Debug, PartialEq)]
pub struct ReceivedFailure {
    /// The gRPC code.
    pub code: Code,
    /// The reason, if it is one of ours and this version knows it.
    pub reason: Option<Reason>,
    /// The reason's text as it was sent; empty if there was none.
    pub reason_text: String,
    /// For people.
    pub message: String,
    /// Facts for programs.
    pub metadata: BTreeMap<String, String>,
    /// When to come back, if the sender said so.
    pub retry_after: Option<Duration>,
    /// Fields at fault, with what is wrong about each.
    pub violations: Vec<(String, String)>,
}

/// The metadata key of the leader's address, `host:port`, in NOT_LEADER.
pub const METADATA_LEADER: &str = "leader";
/// The metadata key of the leader's node id in NOT_LEADER.
pub const METADATA_LEADER_NODE_ID: &str = "leader_node_id";
/// The metadata key of a shard's id.
pub const METADATA_SHARD: &str = "shard";
/// The metadata key of an anchor's etag now, in ETAG_MISMATCH.
pub const METADATA_CURRENT_ETAG: &str = "current_etag";
/// The metadata key of addresses, comma-separated, in WRONG_REGION.
pub const METADATA_ENDPOINTS: &str = "endpoints";

impl Failure {
    /// A failure without further facts.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            metadata: BTreeMap::new(),
            retry_after: None,
            violations: Vec::new(),
        }
    }

    /// Adds a fact for programs.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl ToString) -> Self {
        self.metadata.insert(key, value.to_string());
        self
    }

    /// Says when to come back.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }
}

impl From<FieldError> for Failure {
    fn from(error: FieldError) -> Self {
        let message = error.to_string();
        let violations = vec![(error.field, error.problem)];
        Self { violations, ..Self::new(error.reason, message) }
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let metadata: HashMap<String, String> =
            failure.metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let mut details =
            ErrorDetails::with_error_info(failure.reason.as_str(), reason::DOMAIN, metadata);
        if let Some(delay) = failure.retry_after {
            details.set_retry_info(Some(delay));
        }
        if !failure.violations.is_empty() {
            let violations = failure.violations.into_iter();
            details.set_bad_request(
                violations
                    .map(|(field, problem)| FieldViolation::new(field, problem))
                    .collect::<Vec<_>>(),
            );
        }
        Self::with_error_details(failure.reason.code(), failure.message, details)
    }
}

impl From<FieldError> for Status {
    fn from(error: FieldError) -> Self {
        Failure::from(error).into()
    }
}

impl From<Failure> for ItemError {
    fn from(failure: Failure) -> Self {
        Self {
            code: failure.reason.code() as i32,
            reason: failure.reason.as_str().to_owned(),
            message: failure.message,
            metadata: failure
                .metadata
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
        }
    }
}

impl ReceivedFailure {
    /// What a status says. Details that cannot be read count as absent.
    pub fn of_status(status: &Status) -> Self {
        let details = status.get_error_details();
        let (mut reason_text, mut metadata) = (String::new(), BTreeMap::new());
        if let Some(ours) = details.error_info().filter(|one| one.domain == reason::DOMAIN) {
            reason_text.clone_from(&ours.reason);
            metadata = ours.metadata.clone().into_iter().collect();
        }
        let violations = details.bad_request().map(|request| &request.field_violations);
        Self {
            code: status.code(),
            reason: Reason::from_wire(&reason_text),
            reason_text,
            message: status.message().to_owned(),
            metadata,
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay),
            violations: violations
                .into_iter()
                .flatten()
                .map(|violation| (violation.field.clone(), violation.description.clone()))
                .collect(),
        }
    }

    /// What an item's error says.
    pub fn of_item(error: &ItemError) -> Self {
        Self {
            code: Code::from_i32(error.code),
            reason: Reason::from_wire(&error.reason),
            reason_text: error.reason.clone(),
            message: error.message.clone(),
            metadata: error.metadata.clone(),
            retry_after: None,
            violations: Vec::new(),
        }
    }
}

/// The reason in a status, if it is one of ours and this version knows it.
pub fn reason_of(status: &Status) -> Option<Reason> {
    let details = status.get_details_error_info()?;
    if details.domain == reason::DOMAIN { Reason::from_wire(&details.reason) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_comes_back_from_its_status_with_every_fact() {
        for reason in Reason::ALL {
            let failure = Failure::new(*reason, "something happened")
                .with(METADATA_SHARD, 7)
                .retry_after(Duration::from_millis(250));
            let status = Status::from(failure);
            let received = ReceivedFailure::of_status(&status);
            assert_eq!(reason_of(&status), Some(*reason));
            assert_eq!(received.reason, Some(*reason));
            assert_eq!(received.code, reason.code());
            assert_eq!(received.message, "something happened");
            assert_eq!(received.metadata[METADATA_SHARD], "7");
            assert_eq!(received.retry_after, Some(Duration::from_millis(250)));
        }
    }

    #[test]
    fn a_field_error_becomes_a_bad_request_that_names_the_field() {
        let status = Status::from(FieldError::invalid("anchor.pose.geo", "must be set"));
        let received = ReceivedFailure::of_status(&status);
        assert_eq!(received.code, Code::InvalidArgument);
        assert_eq!(received.violations, [("anchor.pose.geo".into(), "must be set".into())]);
    }

    #[test]
    fn a_failure_of_an_item_keeps_reason_and_code() {
        let item = ItemError::from(Failure::new(Reason::AnchorNotFound, "no such anchor"));
        let received = ReceivedFailure::of_item(&item);
        assert_eq!(
            (received.reason, received.code),
            (Some(Reason::AnchorNotFound), Code::NotFound)
        );
    }

    #[test]
    fn a_status_of_other_software_has_no_reason() {
        let foreign = Status::with_error_details(
            Code::Unavailable,
            "x",
            ErrorDetails::with_error_info("NOT_LEADER", "elsewhere.example", HashMap::new()),
        );
        assert_eq!(reason_of(&foreign), None);
        assert_eq!(ReceivedFailure::of_status(&foreign).reason, None);
        assert_eq!(reason_of(&Status::internal("x")), None);
        let damaged = Status::with_details(Code::Internal, "x", vec![0xff; 9].into());
        assert_eq!(reason_of(&damaged), None);
        assert_eq!(ReceivedFailure::of_status(&damaged).code, Code::Internal);
    }
}
