//! Keys, ranges, epochs and roles.

use anchorhold_model::{Epoch, Key, KeyRange, ReplicaRole};
use bytes::Bytes;

use crate::field::Within;
use crate::{FieldError, v1};

/// Checks a key; the error has no path of its own.
///
/// # Errors
/// FIELD_INVALID unless it is 16 bytes long.
pub fn key_from_wire(key: &[u8]) -> Result<Key, FieldError> {
    match key.try_into() {
        Ok(bytes) => Ok(Key(u128::from_be_bytes(bytes))),
        Err(_) => Err(FieldError::invalid("", "must be 16 bytes long")),
    }
}

/// Checks a range.
///
/// # Errors
/// [`FieldError`] with a path within the range, also if its end precedes its start.
pub fn range_from_wire(range: &v1::KeyRange) -> Result<KeyRange, FieldError> {
    let start = key_from_wire(&range.start).within("start")?;
    let end =
        if range.end.is_empty() { None } else { Some(key_from_wire(&range.end).within("end")?) };
    if end.is_some_and(|end| end < start) {
        return Err(FieldError::invalid("end", "must not precede `start`"));
    }
    Ok(KeyRange { start, end })
}

/// A range as the wire carries it.
pub fn range_to_wire(range: &KeyRange) -> v1::KeyRange {
    let bytes = |key: Key| Bytes::copy_from_slice(&key.0.to_be_bytes());
    v1::KeyRange { start: bytes(range.start), end: range.end.map_or_else(Bytes::new, bytes) }
}

/// An epoch; unset is the first.
pub fn epoch_from_wire(epoch: Option<v1::Epoch>) -> Epoch {
    let v1::Epoch { incarnation, version, conf_version } = epoch.unwrap_or_default();
    Epoch { incarnation, version, conf_version }
}

/// An epoch as the wire carries it.
pub fn epoch_to_wire(epoch: Epoch) -> v1::Epoch {
    let Epoch { incarnation, version, conf_version } = epoch;
    v1::Epoch { incarnation, version, conf_version }
}

/// Checks a role; the error has no path of its own.
///
/// # Errors
/// FIELD_INVALID if it is unset or unknown.
pub fn role_from_wire(role: i32) -> Result<ReplicaRole, FieldError> {
    match v1::ReplicaRole::try_from(role) {
        Ok(v1::ReplicaRole::Voter) => Ok(ReplicaRole::Voter),
        Ok(v1::ReplicaRole::Learner) => Ok(ReplicaRole::Learner),
        Ok(v1::ReplicaRole::Unspecified) | Err(_) => Err(FieldError::invalid("", "unknown role")),
    }
}

/// A role as the wire carries it.
pub fn role_to_wire(role: ReplicaRole) -> v1::ReplicaRole {
    match role {
        ReplicaRole::Voter => v1::ReplicaRole::Voter,
        ReplicaRole::Learner => v1::ReplicaRole::Learner,
    }
}
