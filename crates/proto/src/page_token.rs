//! Page tokens: where a listing goes on.
//!
//! A token holds the position after which the next page begins and a hash of the query that it
//! belongs to. It is opaque and checksummed, so that damage is told from another query. It grants
//! nothing: whoever makes one up sees what the key in the request may see.

use prost::Message;

use crate::v1::ListAnchorsRequest;
use crate::{FieldError, Reason, text};

/// Where a listing goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageToken {
    /// The last position that was listed; the next page begins after it. An anchor's id, or
    /// another listing's number.
    pub after: u128,
}

/// A hash of what a listing asks for, without its paging and read options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueryHash(u64);

const FORMAT: u8 = 1;
const BYTES: usize = 1 + 8 + 16 + 8;

impl QueryHash {
    /// The hash of a listing of anchors.
    pub fn of_list_anchors(account: u32, request: &ListAnchorsRequest) -> Self {
        let query = ListAnchorsRequest {
            space: request.space,
            region: request.region,
            filter: request.filter.clone(),
            page_size: 0,
            page_token: String::new(),
            read: None,
        };
        Self::of("ListAnchors", account, &query.encode_to_vec())
    }

    /// The hash of another listing: its name, the account of the caller (0 for operators) and the
    /// encoded conditions, if there are any.
    pub fn of(listing: &str, account: u32, conditions: &[u8]) -> Self {
        let account = account.to_be_bytes();
        Self(text::fnv1a(&[listing.as_bytes(), &[0], &account, conditions].concat()))
    }
}

impl PageToken {
    /// The token's text for a query.
    pub fn encode(self, query: QueryHash) -> String {
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.push(FORMAT);
        bytes.extend(query.0.to_be_bytes());
        bytes.extend(self.after.to_be_bytes());
        bytes.extend(text::fnv1a(&bytes).to_be_bytes());
        text::to_hex(&bytes)
    }

    /// Reads a token that must belong to `query`; `None` for the empty one, which begins at the
    /// beginning.
    ///
    /// # Errors
    /// PAGE_TOKEN_INVALID if it is damaged, PAGE_TOKEN_MISMATCH if it belongs to another query;
    /// on the field `page_token`.
    pub fn decode(token: &str, query: QueryHash) -> Result<Option<Self>, FieldError> {
        if token.is_empty() {
            return Ok(None);
        }
        let Some((hash, after)) = parse(token) else {
            let problem = "damaged, or not made by this service";
            return Err(FieldError::because(Reason::PageTokenInvalid, "page_token", problem));
        };
        if hash != query.0 {
            let problem = "belongs to another query";
            return Err(FieldError::because(Reason::PageTokenMismatch, "page_token", problem));
        }
        Ok(Some(Self { after }))
    }
}

fn parse(token: &str) -> Option<(u64, u128)> {
    // Checked before decoding, so that a huge token costs nothing.
    if token.len() != 2 * BYTES {
        return None;
    }
    let bytes = text::from_hex(token)?;
    let (body, checksum) = bytes.split_last_chunk::<8>()?;
    let (format, body_rest) = body.split_first()?;
    let (query, after) = body_rest.split_first_chunk::<8>()?;
    let is_whole = *format == FORMAT && u64::from_be_bytes(*checksum) == text::fnv1a(body);
    is_whole.then_some((u64::from_be_bytes(*query), u128::from_be_bytes(after.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::v1::{Filter, ReadOptions};

    fn request(tag: &str) -> ListAnchorsRequest {
        let filter = Filter { tags_all: vec![tag.into()], ..Filter::default() };
        ListAnchorsRequest { filter: Some(filter), ..ListAnchorsRequest::default() }
    }

    proptest! {
        #[test]
        fn a_token_comes_back_from_its_text(after: u128, account: u32) {
            let query = QueryHash::of_list_anchors(account, &request("door"));
            let token = PageToken { after };
            prop_assert_eq!(PageToken::decode(&token.encode(query), query), Ok(Some(token)));
        }

        #[test]
        fn a_token_with_one_changed_character_is_refused(
            after: u128, position in 0..2 * BYTES, digit in 0_u8..16,
        ) {
            let query = QueryHash::of("things", 1, b"");
            let text = PageToken { after }.encode(query);
            let mut changed = text.clone().into_bytes();
            changed[position] = b"0123456789abcdef"[usize::from(digit)];
            let changed = String::from_utf8(changed).unwrap();
            prop_assume!(changed != text);
            let error = PageToken::decode(&changed, query).unwrap_err();
            prop_assert_eq!(error.reason, Reason::PageTokenInvalid);
        }

        #[test]
        fn any_text_is_read_without_a_panic(text: String) {
            let _ = PageToken::decode(&text, QueryHash::of("things", 1, b""));
        }
    }

    #[test]
    fn a_token_of_another_query_or_account_is_refused() {
        let token = PageToken { after: 5 }.encode(QueryHash::of_list_anchors(1, &request("door")));
        for other in [
            QueryHash::of_list_anchors(1, &request("window")),
            QueryHash::of_list_anchors(2, &request("door")),
            QueryHash::of("ListAccounts", 1, b""),
        ] {
            let error = PageToken::decode(&token, other).unwrap_err();
            assert_eq!(error.reason, Reason::PageTokenMismatch);
        }
    }

    #[test]
    fn page_size_and_read_options_may_change_between_pages() {
        let first = request("door");
        let read = Some(ReadOptions { consistency: 3, ..ReadOptions::default() });
        let second =
            ListAnchorsRequest { page_size: 7, page_token: "x".into(), read, ..first.clone() };
        assert_eq!(QueryHash::of_list_anchors(1, &first), QueryHash::of_list_anchors(1, &second));
    }
}
