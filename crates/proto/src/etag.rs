//! Etags: an anchor's version as opaque text.

use anchorhold_model::Version;

use crate::{FieldError, Reason};

/// The etag of a version.
pub fn of_version(version: Version) -> String {
    format!("{:x}-{:x}", version.incarnation, version.revision)
}

/// The version that an etag names; `None` for the empty etag, which demands nothing.
///
/// # Errors
/// ETAG_INVALID, on the field `etag`, unless the text is exactly what [`of_version`] writes.
pub fn to_version(etag: &str) -> Result<Option<Version>, FieldError> {
    if etag.is_empty() {
        return Ok(None);
    }
    let version = etag.split_once('-').and_then(|(incarnation, revision)| {
        let incarnation = u32::from_str_radix(incarnation, 16).ok()?;
        let revision = u64::from_str_radix(revision, 16).ok()?;
        Some(Version { incarnation, revision })
    });
    match version {
        Some(version) if of_version(version) == etag => Ok(Some(version)),
        Some(_) | None => {
            Err(FieldError::because(Reason::EtagInvalid, "etag", "not made by this service"))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_version_comes_back_from_its_etag(incarnation: u32, revision: u64) {
            let version = Version { incarnation, revision };
            prop_assert_eq!(to_version(&of_version(version)), Ok(Some(version)));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in "[0-9a-fA-F+-]{0,40}") {
            if let Ok(Some(version)) = to_version(&text) {
                prop_assert_eq!(of_version(version), text);
            }
        }
    }

    #[test]
    fn other_spellings_of_an_etag_are_refused() {
        for etag in ["1", "-", "1-", "01-1", "1-+1", "+1-1", "1-A", "1-1-1", " 1-1", "W/1-1"] {
            assert_eq!(to_version(etag).unwrap_err().reason, Reason::EtagInvalid, "{etag}");
        }
    }
}
