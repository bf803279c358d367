//! What a session has seen, so that its reads see no less.

use anchorhold_proto::{SessionToken, v1};
use bytes::Bytes;
use parking_lot::Mutex;

/// A session shared by any number of tasks.
#[derive(Default)]
pub(crate) struct Session(Mutex<State>);

#[derive(Default)]
struct State {
    token: SessionToken,
    /// The token's bytes; `None` if it has outgrown its bound.
    encoded: Option<Bytes>,
    is_fresh: bool,
    /// A reply named more ranges than a token can: only LINEARIZABLE reads are safe from then on.
    has_overflowed: bool,
}

impl Session {
    /// Takes in a reply's token. One that cannot be read makes later reads LINEARIZABLE.
    pub(crate) fn note(&self, token: &[u8]) {
        let received = SessionToken::decode(token);
        let mut state = self.0.lock();
        match received {
            // Every reply has seen some shard: no token means that it would have been too large.
            Ok(received) if !received.is_empty() => {
                state.token.merge(&received);
                state.is_fresh = false;
            }
            Ok(_) | Err(_) => state.has_overflowed = true,
        }
    }

    /// Makes a read see no less than the session has seen. A token that the caller has set is kept
    /// beside the session's own.
    pub(crate) fn demand(&self, read: &mut Option<v1::ReadOptions>) {
        let token = {
            let mut state = self.0.lock();
            if !state.is_fresh {
                state.encoded = state.token.encode();
                state.is_fresh = true;
            }
            if state.has_overflowed { None } else { state.encoded.clone() }
        };
        let read = read.get_or_insert_default();
        match token {
            None => {
                read.consistency = v1::Consistency::Linearizable.into();
                read.max_staleness = None;
            }
            Some(token) if read.session_token.is_empty() => read.session_token = token,
            Some(token) => read.session_token = [&read.session_token[..], &token].concat().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use anchorhold_model::{Key, KeyRange, Version};

    use super::*;

    fn token(revision: u64) -> (SessionToken, Bytes) {
        let mut token = SessionToken::default();
        let range = KeyRange { start: Key(0), end: Some(Key(9)) };
        token.note(&range, Version { incarnation: 0, revision });
        (token.clone(), token.encode().unwrap())
    }

    fn demanded(session: &Session, read: v1::ReadOptions) -> v1::ReadOptions {
        let mut read = Some(read);
        session.demand(&mut read);
        read.unwrap()
    }

    #[test]
    fn a_read_demands_the_newest_that_the_session_saw() {
        let session = Session::default();
        let empty = demanded(&session, v1::ReadOptions::local());
        assert!(empty.session_token.is_empty());
        for revision in [7, 9, 8] {
            session.note(&token(revision).1);
        }
        let read = demanded(&session, v1::ReadOptions::local());
        assert_eq!(SessionToken::decode(&read.session_token).unwrap(), token(9).0);
        assert_eq!(read.consistency(), v1::Consistency::Local);
    }

    #[test]
    fn a_token_of_the_callers_own_is_demanded_too() {
        let session = Session::default();
        session.note(&token(7).1);
        let own = v1::ReadOptions { session_token: token(20).1, ..v1::ReadOptions::default() };
        let read = demanded(&session, own);
        assert_eq!(SessionToken::decode(&read.session_token).unwrap(), token(20).0);
    }

    #[test]
    fn a_session_without_a_token_reads_linearizable() {
        for lost in [&b""[..], b"damaged"] {
            let session = Session::default();
            session.note(lost);
            let read = demanded(&session, v1::ReadOptions::local());
            assert_eq!(read.consistency(), v1::Consistency::Linearizable);
        }
    }
}
