//! Keys as clients send them: metadata `authorization: Bearer <key>`.
//!
//! An account's key is `ahk_<key id>_<secret>`, the operators' key is `aha_<secret>`. Which keys
//! are valid is the server's business; only their form is decided here. Secrets never show in debug
//! output.

use std::fmt;

use tonic::metadata::MetadataMap;

use crate::{Failure, Reason};

/// A key of well-formed text. Not checked against anything.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Credential<'a> {
    /// An account's API key.
    Account {
        /// Which of the cluster's keys.
        key_id: &'a str,
        /// Proves it.
        secret: &'a str,
    },
    /// The operators' key.
    Admin {
        /// Proves it.
        secret: &'a str,
    },
}

/// The metadata key.
pub const AUTHORIZATION: &str = "authorization";
/// Bytes of a secret, at least.
pub const SECRET_BYTES_MIN: usize = 16;
/// Bytes of a key id or a secret, at most.
pub const PART_BYTES_MAX: usize = 128;

impl<'a> Credential<'a> {
    /// Reads a key; `None` if it has no key's form.
    pub fn parse(key: &'a str) -> Option<Self> {
        if let Some(rest) = key.strip_prefix("ahk_") {
            let (key_id, secret) = rest.split_once('_')?;
            let is_whole = is_part(key_id, 1) && is_part(secret, SECRET_BYTES_MIN);
            return is_whole.then_some(Self::Account { key_id, secret });
        }
        let secret = key.strip_prefix("aha_")?;
        is_part(secret, SECRET_BYTES_MIN).then_some(Self::Admin { secret })
    }

    /// The key in a request's metadata.
    ///
    /// # Errors
    /// CREDENTIAL_MISSING or CREDENTIAL_INVALID. The message never repeats what was sent.
    pub fn of_metadata(metadata: &'a MetadataMap) -> Result<Self, Failure> {
        let Some(value) = metadata.get(AUTHORIZATION) else {
            let message = "send your key as metadata `authorization: Bearer <key>`";
            return Err(Failure::new(Reason::CredentialMissing, message));
        };
        let bearer = value.to_str().ok().and_then(|text| {
            let (scheme, key) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
        });
        bearer.and_then(Self::parse).ok_or_else(|| {
            let message = "expected `Bearer ahk_<key id>_<secret>` or `Bearer aha_<secret>`";
            Failure::new(Reason::CredentialInvalid, message)
        })
    }
}

fn is_part(text: &str, bytes_min: usize) -> bool {
    (bytes_min..=PART_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

impl fmt::Debug for Credential<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Account { .. } => f.write_str("Account(..)"),
            Self::Admin { .. } => f.write_str("Admin(..)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_from_metadata() {
        let mut metadata = MetadataMap::new();
        metadata.insert(AUTHORIZATION, "Bearer ahk_k1_0123456789abcdef".parse().unwrap());
        let expected = Credential::Account { key_id: "k1", secret: "0123456789abcdef" };
        assert_eq!(Credential::of_metadata(&metadata).unwrap(), expected);
        metadata.insert(AUTHORIZATION, "bearer aha_0123456789abcdef".parse().unwrap());
        let expected = Credential::Admin { secret: "0123456789abcdef" };
        assert_eq!(Credential::of_metadata(&metadata).unwrap(), expected);
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_repeated() {
        let failure = Credential::of_metadata(&MetadataMap::new()).unwrap_err();
        assert_eq!(failure.reason, Reason::CredentialMissing);
        for text in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer x",
            "Bearer ahk_",
            "Bearer ahk_k1",
            "Bearer ahk_k1_short",
            "Bearer ahk__0123456789abcdef",
            "Bearer aha_",
            "Bearer ahk_k1_0123456789abcde/",
            "Basic ahk_k1_0123456789abcdef",
            "ahk_k1_0123456789abcdef",
        ] {
            let mut metadata = MetadataMap::new();
            metadata.insert(AUTHORIZATION, text.parse().unwrap());
            let failure = Credential::of_metadata(&metadata).unwrap_err();
            assert_eq!(failure.reason, Reason::CredentialInvalid, "{text}");
            assert!(!failure.message.contains("0123456789"), "{text}");
        }
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let credential = Credential::parse("ahk_k1_0123456789abcdef").unwrap();
        assert_eq!(format!("{credential:?}"), "Account(..)");
    }
}
