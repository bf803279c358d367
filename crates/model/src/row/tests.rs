use std::sync::Arc;

use expect_test::expect;
use proptest::prelude::*;

use super::*;
use crate::testing;

proptest! {
    #![proptest_config(testing::cases(500))]

    #[test]
    fn row_keys_sort_as_ids_and_keep_dedup_entries_with_their_anchor(
        a in testing::any_id(), b in testing::any_id(), request_id in any::<u128>(),
        item in any::<u32>(),
    ) {
        let operation = OperationId { request_id: RequestId(request_id), item };
        let keys = |id| (anchor_key(id).to_vec(), operation_key(id, operation).to_vec());
        let ((anchor_a, operation_a), (anchor_b, _)) = (keys(a), keys(b));
        prop_assert!(anchor_a < operation_a);
        if a < b {
            prop_assert!(operation_a < anchor_b);
        }
        prop_assert_eq!(RowKey::parse(&anchor_a).unwrap(), RowKey::Anchor(a));
        prop_assert_eq!(RowKey::parse(&operation_a).unwrap(), RowKey::Operation(a, operation));
    }

    #[test]
    fn row_keys_lie_in_the_range_of_their_id(
        id in testing::any_id(), start in any::<u128>(), end in any::<Option<u128>>(),
    ) {
        let range = KeyRange { start: crate::Key(start), end: end.map(crate::Key) };
        let (first, last) = key_range(range);
        let key = operation_key(id, testing::operation(1)).to_vec();
        let is_within = first <= key && last.is_none_or(|last| key < last);
        prop_assert_eq!(is_within, range.contains_id(id));
    }

    #[test]
    fn values_survive_their_bytes(entry in testing::any_entry()) {
        prop_assert_eq!(&decode_entry(&encode_entry(&entry)).unwrap(), &entry);
        for command in &entry.commands {
            if let crate::Write::Create(anchor) = &command.write {
                let bytes = encode_anchor(anchor);
                prop_assert_eq!(&decode_anchor(&bytes).unwrap(), anchor.as_ref());
                let counted = (ANCHOR_KEY_LENGTH + bytes.len()) as u64;
                prop_assert_eq!(anchor_row_bytes(anchor), counted);
            }
        }
    }

    #[test]
    fn cut_and_arbitrary_bytes_are_errors_not_panics(
        entry in testing::any_entry(), cut in any::<prop::sample::Index>(),
        noise in any::<Vec<u8>>(),
    ) {
        let bytes = encode_entry(&entry);
        let cut = cut.index(bytes.len());
        prop_assert!(decode_entry(&bytes[..cut]).is_err());
        let _ = decode_entry(&noise);
        let _ = decode_anchor(&[&[FORMAT_VERSION], noise.as_slice()].concat());
        let _ = RowKey::parse(&noise);
        let mut longer = bytes;
        longer.push(0);
        let is_refused = matches!(
            decode_entry(&longer),
            Err(DecodeError::TrailingBytes { length: 1 })
        );
        prop_assert!(is_refused);
    }
}

#[test]
fn unknown_format_is_its_own_error() {
    let mut bytes = encode_anchor(&testing::anchor(1));
    bytes[0] = FORMAT_VERSION + 1;
    assert!(
        matches!(decode_anchor(&bytes), Err(DecodeError::UnknownFormat { found }) if found == FORMAT_VERSION + 1)
    );
    assert!(matches!(decode_anchor(&[]), Err(DecodeError::Empty)));
}

#[test]
fn bytes_of_a_row_are_fixed() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut anchor = testing::anchor(1);
    anchor.properties.insert("name".to_owned(), "door".to_owned());
    anchor.expire_time = Some(crate::Timestamp(300));
    let operation = OperationRecord {
        time: crate::Timestamp(5),
        write_digest: 7,
        outcome: crate::Outcome::Deleted { version: crate::Version::default() },
    };
    let rows = [
        hex(&anchor_key(anchor.id)),
        hex(&encode_anchor(&anchor)),
        hex(&operation_key(anchor.id, testing::operation(2))),
        hex(&encode_operation(&operation)),
    ];
    expect![[r#"
        00000001c00080009c000bc83bf5ff4300
        04c3fed7df83f982809c81808480380103fca9f1d24d62503f0000000000001c40000000000000f03f000000000000000000000000000000000000000000000000000000000000f03f000001046e616d6504646f6f720001ac0200000000000000
        00000001c00080009c000bc83bf5ff43010000000000000000000000000000000000000002
        040507010000"#]].assert_eq(&rows.join("\n"));
}

#[test]
fn changes_become_rows() {
    let anchor = testing::anchor(1);
    let gone = testing::anchor(2);
    let shard = testing::shard_state();
    let changes = Changes {
        anchors: [(anchor.id, Some(Arc::new(anchor.clone()))), (gone.id, None)].into(),
        operations: [((gone.id, testing::operation(1)), None)].into(),
        shard,
        child: None,
        absorbed: None,
    };
    let rows: Vec<Row> = changes.rows().collect();
    assert_eq!(rows.len(), 3);
    let value = |key: &[u8]| rows.iter().find(|row| row.0 == key).unwrap().1.clone();
    assert_eq!(value(&anchor_key(anchor.id)), Some(encode_anchor(&anchor)));
    assert_eq!(value(&anchor_key(gone.id)), None);
    assert_eq!(value(&operation_key(gone.id, testing::operation(1))), None);
}
