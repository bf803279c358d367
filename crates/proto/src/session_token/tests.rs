use proptest::prelude::*;

use super::*;

fn range(start: u128, end: u128) -> KeyRange {
    KeyRange { start: Key(start), end: (end != u128::MAX).then_some(Key(end)) }
}

fn version(incarnation: u32, revision: u64) -> Version {
    Version { incarnation, revision }
}

/// What was noted, without any cleverness.
fn naive_demand(notes: &[(KeyRange, Version)], asked: &KeyRange, incarnation: u32) -> Demand {
    let seen = notes.iter().filter(|(range, _)| range.overlaps(asked)).map(|(_, version)| version);
    // Where notes overlap, an older incarnation is superseded key by key, so brute force asks
    // each key of the small domain.
    let (mut revision, mut is_earlier) = (0, false);
    if asked.is_empty() || seen.clone().next().is_none() {
        return Demand::Revision(0);
    }
    let last = asked.end.map_or(DOMAIN, |end| end.0 - 1).min(DOMAIN);
    for key in asked.start.0..=last {
        let at_key = notes.iter().filter(|(range, _)| range.contains(Key(key)));
        let Some(newest) = at_key.map(|(_, version)| *version).max() else { continue };
        if incarnation < newest.incarnation {
            return Demand::LaterIncarnation;
        }
        if newest.incarnation < incarnation {
            is_earlier = true;
        } else {
            revision = revision.max(newest.revision);
        }
    }
    if is_earlier { Demand::EarlierIncarnation } else { Demand::Revision(revision) }
}

const DOMAIN: u128 = 40;

fn any_range() -> impl Strategy<Value = KeyRange> {
    (0..DOMAIN, 0..DOMAIN, any::<bool>()).prop_map(|(a, b, is_endless)| KeyRange {
        start: Key(a.min(b)),
        end: (!is_endless).then_some(Key(a.max(b))),
    })
}

fn any_note() -> impl Strategy<Value = (KeyRange, Version)> {
    (any_range(), 0_u32..3, 0_u64..5)
        .prop_map(|(range, incarnation, revision)| (range, Version { incarnation, revision }))
}

fn token_of(notes: &[(KeyRange, Version)]) -> SessionToken {
    let mut token = SessionToken::default();
    for (range, version) in notes {
        token.note(range, *version);
    }
    token
}

proptest! {
    #[test]
    fn a_token_demands_what_brute_force_demands(
        notes in prop::collection::vec(any_note(), 0..12), asked in any_range(), incarnation in 0_u32..3,
    ) {
        let token = token_of(&notes);
        prop_assert_eq!(token.demand(&asked, incarnation), naive_demand(&notes, &asked, incarnation));
    }

    #[test]
    fn the_order_of_notes_does_not_matter(notes in prop::collection::vec(any_note(), 0..12)) {
        let reversed: Vec<_> = notes.iter().rev().copied().collect();
        prop_assert_eq!(token_of(&notes), token_of(&reversed));
    }

    #[test]
    fn a_token_comes_back_from_its_bytes(notes in prop::collection::vec(any_note(), 0..12)) {
        let token = token_of(&notes);
        prop_assert_eq!(SessionToken::decode(&token.encode().unwrap()).unwrap(), token);
    }

    #[test]
    fn tokens_put_one_after_the_other_demand_both(
        a in prop::collection::vec(any_note(), 0..6), b in prop::collection::vec(any_note(), 0..6),
    ) {
        let bytes = [token_of(&a).encode().unwrap(), token_of(&b).encode().unwrap()].concat();
        let both: Vec<_> = a.iter().chain(&b).copied().collect();
        prop_assert_eq!(SessionToken::decode(&bytes).unwrap(), token_of(&both));
    }

    #[test]
    fn a_token_with_one_changed_byte_is_refused(
        notes in prop::collection::vec(any_note(), 1..6), position: prop::sample::Index, mask in 1_u8..,
    ) {
        let token = token_of(&notes);
        prop_assume!(!token.is_empty());
        let mut bytes = token.encode().unwrap().to_vec();
        let position = position.index(bytes.len());
        bytes[position] ^= mask;
        let error = SessionToken::decode(&bytes).unwrap_err();
        prop_assert_eq!(error.reason, Reason::SessionTokenInvalid);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
        let _ = SessionToken::decode(&bytes);
    }

    #[test]
    fn any_body_with_a_right_checksum_is_read_without_a_panic(body in prop::collection::vec(any::<u8>(), 0..100)) {
        let mut bytes = BytesMut::new();
        bytes.put_u8(FORMAT);
        put_varint(&mut bytes, body.len() as u64);
        bytes.put_slice(&body);
        let checksum = text::fnv1a(&bytes);
        bytes.put_u64(checksum);
        let _ = SessionToken::decode(&bytes);
    }
}

#[test]
fn a_token_outlives_a_split_of_its_shard() {
    let token = token_of(&[(range(0, 100), version(0, 7))]);
    assert_eq!(token.demand(&range(0, 50), 0), Demand::Revision(7));
    assert_eq!(token.demand(&range(50, 100), 0), Demand::Revision(7));
    assert_eq!(token.demand(&range(100, u128::MAX), 0), Demand::Revision(0));
}

#[test]
fn a_re_founded_shard_is_told_from_one_that_lags() {
    let token = token_of(&[(range(0, 100), version(1, 7))]);
    assert_eq!(token.demand(&range(0, 100), 0), Demand::LaterIncarnation);
    assert_eq!(token.demand(&range(0, 100), 1), Demand::Revision(7));
    assert_eq!(token.demand(&range(0, 100), 2), Demand::EarlierIncarnation);
}

#[test]
fn the_largest_token_is_taken_and_a_larger_one_is_not_made() {
    let mut token = SessionToken::default();
    for number in 0..SESSION_ENTRIES_MAX as u64 {
        let start = u128::from(number) << 8 | 1;
        token.note(&range(start, start + 2), version(u32::MAX, u64::MAX - number));
    }
    let bytes = token.encode().unwrap();
    assert!(bytes.len() <= SESSION_TOKEN_BYTES_MAX, "{}", bytes.len());
    assert_eq!(SessionToken::decode(&bytes).unwrap(), token);
    token.note(&range(u128::MAX - 9, u128::MAX - 5), version(0, 1));
    assert_eq!(token.encode(), None);
}

#[test]
fn a_token_of_one_shard_is_small() {
    let account = 9_u128 << 96;
    let token = token_of(&[(range(account, account + (1 << 96)), version(0, 1_000_000))]);
    assert!(token.encode().unwrap().len() <= 26, "{}", token.encode().unwrap().len());
}
