//! Text forms of opaque values: UUIDs, hexadecimal, checksums.

/// The 64-bit FNV-1a hash. Finds every change of one byte, and others but for one in 2^64; no
/// protection against someone who means harm, which tokens do not need: they grant nothing.
///
/// Source: Fowler, Noll, Vo, draft-eastlake-fnv-17, 2019.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Lower-case hexadecimal.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(HEX[usize::from(byte >> 4)]));
        text.push(char::from(HEX[usize::from(byte & 15)]));
    }
    text
}

/// Reads lower-case hexadecimal; `None` if it is anything else.
pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes()
        .chunks_exact(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect()
}

fn digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    }
}

/// A hyphenated UUID in lower case. The hot path of every reply: no formatting machinery.
pub fn uuid_text(number: u128) -> String {
    let mut text = String::with_capacity(36);
    for (position, byte) in number.to_be_bytes().into_iter().enumerate() {
        if matches!(position, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push(char::from(HEX[usize::from(byte >> 4)]));
        text.push(char::from(HEX[usize::from(byte & 15)]));
    }
    text
}

/// Reads a hyphenated UUID of any version, in either case; `None` if it is anything else.
pub fn uuid_number(text: &str) -> Option<u128> {
    if text.len() != 36 {
        return None;
    }
    let mut number = 0_u128;
    for (position, character) in text.bytes().enumerate() {
        if matches!(position, 8 | 13 | 18 | 23) {
            if character != b'-' {
                return None;
            }
        } else {
            number = number << 4 | u128::from(digit(character.to_ascii_lowercase())?);
        }
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_uuid_comes_back_from_its_text(number: u128) {
            let text = uuid_text(number);
            prop_assert_eq!(uuid_number(&text), Some(number));
            prop_assert_eq!(uuid_number(&text.to_uppercase()), Some(number));
        }

        #[test]
        fn bytes_come_back_from_their_hexadecimal(bytes: Vec<u8>) {
            prop_assert_eq!(from_hex(&to_hex(&bytes)), Some(bytes));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text: String) {
            let _ = uuid_number(&text);
            let _ = from_hex(&text);
        }
    }

    #[test]
    fn fnv_agrees_with_the_published_vectors() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
