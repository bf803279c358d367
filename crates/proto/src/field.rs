//! Fields at fault: the error of every conversion from the wire.

use std::fmt::Display;

use crate::Reason;

/// A field of a message that is missing or not allowed as it is.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct FieldError {
    /// The path from the request, such as `anchors[3].pose.geo.latitude_deg`.
    pub field: String,
    /// What is wrong, for people.
    pub problem: String,
    /// The stable reason; FIELD_INVALID unless there is a narrower one.
    pub reason: Reason,
}

impl FieldError {
    /// A field whose value is not allowed.
    pub fn invalid(field: impl Into<String>, problem: impl Display) -> Self {
        Self::because(Reason::FieldInvalid, field, problem)
    }

    /// A required field that is not set.
    pub fn missing(field: impl Into<String>) -> Self {
        Self::invalid(field, "must be set")
    }

    /// A field at fault for a narrower reason.
    pub fn because(reason: Reason, field: impl Into<String>, problem: impl Display) -> Self {
        Self { field: field.into(), problem: problem.to_string(), reason }
    }

    /// The same error, seen from the message that holds the field's message as `parent`. A parent
    /// that ends in a bracket is an item of a list.
    #[must_use]
    pub fn within(mut self, parent: impl Display) -> Self {
        self.field = if self.field.is_empty() {
            parent.to_string()
        } else {
            format!("{parent}.{}", self.field)
        };
        self
    }
}

/// Puts a field's place before its name in the error of a result.
pub(crate) trait Within<T> {
    /// See [`FieldError::within`].
    fn within(self, parent: impl Display) -> Result<T, FieldError>;
}

impl<T> Within<T> for Result<T, FieldError> {
    fn within(self, parent: impl Display) -> Self {
        self.map_err(|error| error.within(parent))
    }
}

/// Refuses `length > length_max`, naming the unit.
pub(crate) fn check_length(
    field: &str,
    length: usize,
    length_max: usize,
    unit: &str,
) -> Result<(), FieldError> {
    if length <= length_max {
        return Ok(());
    }
    Err(FieldError::invalid(field, format_args!("{length} {unit}, at most {length_max} allowed")))
}
