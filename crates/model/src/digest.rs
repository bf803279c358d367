//! Digests: of a shard's rows, to compare replicas, and of a write, to tell a retry.

use std::fmt;

use postcard::ser_flavors::Flavor;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{ShardState, row};

/// Digest of everything that a replica holds. Equal on all replicas of a shard at one applied
/// index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StateDigest(pub u128);

/// Takes a shard's rows in key order and makes their digest: the first 128 bits of the SHA-256 of
/// all rows, each preceded by the lengths of its key and value.
#[derive(Clone, Debug, Default)]
pub struct StateDigester {
    hasher: Sha256,
}

impl StateDigester {
    /// Takes the next row.
    pub fn add_row(&mut self, key: &[u8], value: &[u8]) {
        self.hasher.update((key.len() as u64).to_be_bytes());
        self.hasher.update((value.len() as u64).to_be_bytes());
        self.hasher.update(key);
        self.hasher.update(value);
    }

    /// Takes the shard's own state, and makes the digest.
    pub fn finish(mut self, state: &ShardState) -> StateDigest {
        self.add_row(&[], &row::encode_shard_state(state));
        self.finish_rows()
    }

    /// Makes the digest of the rows alone: of the catalog, which is no shard.
    pub fn finish_rows(self) -> StateDigest {
        let digest: [u8; 32] = self.hasher.finalize().into();
        let high = digest.iter().take(16);
        StateDigest(high.fold(0, |number, byte| number << 8 | u128::from(*byte)))
    }
}

impl fmt::Display for StateDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Digest of a value's bytes, without building them: FNV-1a, 64 bits. Tells mistakes, not attacks.
///
/// Source: Fowler, Noll, Vo, "The FNV Non-Cryptographic Hash Algorithm", RFC 9923.
pub(crate) fn content_digest<T: Serialize>(value: &T) -> u64 {
    postcard::serialize_with_flavor(value, Fnv(0xcbf2_9ce4_8422_2325))
        .expect("the model's types have a length")
}

struct Fnv(u64);

impl Flavor for Fnv {
    type Output = u64;

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<u64> {
        Ok(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ClassId, KeyRange, ShardDescriptor, ShardId};

    fn digest(rows: &[(&[u8], &[u8])]) -> StateDigest {
        let mut digester = StateDigester::default();
        for (key, value) in rows {
            digester.add_row(key, value);
        }
        let descriptor = ShardDescriptor::found(ShardId(1), KeyRange::FULL, ClassId(1), &[]);
        digester.finish(&ShardState::new(descriptor))
    }

    #[test]
    fn digest_knows_where_a_key_ends() {
        assert_ne!(digest(&[(b"ab", b"c")]), digest(&[(b"a", b"bc")]));
        assert_ne!(digest(&[(b"a", b"b")]), digest(&[(b"a", b""), (b"b", b"")]));
    }

    #[test]
    fn digest_knows_the_order_of_rows() {
        assert_ne!(digest(&[(b"a", b"1"), (b"b", b"2")]), digest(&[(b"b", b"2"), (b"a", b"1")]));
    }

    #[test]
    fn content_digest_is_fnv_1a() {
        // Test vector of RFC 9923: "foobar"; a tuple of bytes is postcard's plain bytes.
        let foobar = (b'f', b'o', b'o', b'b', b'a', b'r');
        assert_eq!(content_digest(&foobar), 0x8594_4171_f739_67e8);
    }
}
