//! Anchor ids, which are the store's keys, and ranges of them.
//!
//! An id is 128 bits and a valid UUIDv8; its byte order is the store's order:
//!
//! | bits | field |
//! |---|---|
//! | 0–31 | account number |
//! | 32–47, 52–63, 66–69 | 32-bit cell |
//! | 48–51, 64–65 | UUID version (8) and variant |
//! | 70–85 | fine cell |
//! | 86–127 | hash of (account, request id, item, attempt) |
//!
//! Bit 0 is the most significant one. The cell's lowest bit is always 1, so the cell's other 31
//! bits and the fine cell make one 47-bit number, the cell index: the order of ids within an
//! account is the order of their cell indexes.
//!
//! Not here: which cell a pose lies in (`cell`), which cells a region touches (`cover`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cell::{self, CellIndex};
use crate::{Pose, RequestId, Space};

/// A tenant's number, handed out by the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AccountNumber(pub u32);

/// Any place in the ordered key space. Ranges may be cut at keys that are no anchor's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key(pub u128);

/// An anchor's id: a [`Key`] that is a valid UUIDv8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AnchorId(u128);

/// The half-open range `[start, end)`; no end means up to the last key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyRange {
    /// First key of the range.
    pub start: Key,
    /// First key after the range.
    pub end: Option<Key>,
}

/// Where an anchor's id says that its home is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum HomeCell {
    /// The top 32 bits of a level-14 S2 cell id.
    Earth(u32),
    /// A local space's 28-bit number.
    Local(u32),
    /// Face code 7, kept for aliases.
    Reserved(u32),
}

/// Why something is not an anchor's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnchorIdError {
    /// Not 36 characters.
    #[error("an anchor id has 36 characters, not {length}")]
    Length {
        /// Characters given.
        length: usize,
    },
    /// Something else than a hex digit, or than a hyphen where one belongs.
    #[error("an anchor id has no {character:?} at position {position}")]
    Character {
        /// The character met.
        character: char,
        /// Where, counted from 0.
        position: usize,
    },
    /// Not a UUID of version 8.
    #[error("an anchor id is a UUID of version 8, not {version}")]
    Version {
        /// The version met.
        version: u8,
    },
    /// Not a UUID of the RFC 9562 variant.
    #[error("an anchor id is a UUID of variant 10, not {variant:02b}")]
    Variant {
        /// The two variant bits met.
        variant: u8,
    },
    /// The cell's marker bit is missing.
    #[error("the cell in the anchor id is not valid")]
    Cell,
}

const ACCOUNT_SHIFT: u32 = 96;
const VERSION_SHIFT: u32 = 76;
const VARIANT_SHIFT: u32 = 62;
const FINE_SHIFT: u32 = 42;
/// Ones at the hash's bits.
const HASH_MASK: u128 = (1 << FINE_SHIFT) - 1;
/// What the keys of one home cell of an account share: the first of them is a key of these bits.
pub(crate) const CELL_KEY_MASK: u128 = !((1 << 58) - 1);
/// The UUID version and variant bits of every id.
const FIXED_BITS: u128 = (8 << VERSION_SHIFT) | (2 << VARIANT_SHIFT);

impl AnchorId {
    /// The id of an anchor that is created at a pose. The same arguments give the same id, so a
    /// retried create meets its first try. `attempt` counts on when an id is taken by another
    /// anchor.
    pub fn derive(
        account: AccountNumber,
        pose: &Pose,
        request_id: RequestId,
        item: u32,
        attempt: u32,
    ) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(account.0.to_be_bytes());
        hasher.update(request_id.0.to_be_bytes());
        hasher.update(item.to_be_bytes());
        hasher.update(attempt.to_be_bytes());
        let digest: [u8; 32] = hasher.finalize().into();
        let hash = digest.iter().take(16).fold(0_u128, |hash, byte| hash << 8 | u128::from(*byte));
        Self(spread(account, cell::of_pose(pose)) | hash & HASH_MASK)
    }

    /// The id that a key is.
    ///
    /// # Errors
    /// [`AnchorIdError`] unless the version, the variant and the cell's marker bit are an id's.
    pub fn from_key(key: Key) -> Result<Self, AnchorIdError> {
        let bytes = key.0.to_be_bytes();
        let (version, variant) = (bytes[6] >> 4, bytes[8] >> 6);
        if version != 8 {
            return Err(AnchorIdError::Version { version });
        }
        if variant != 2 {
            return Err(AnchorIdError::Variant { variant });
        }
        let id = Self(key.0);
        if id.cell() & 1 == 0 {
            return Err(AnchorIdError::Cell);
        }
        Ok(id)
    }

    /// The id in 16 bytes, most significant first.
    ///
    /// # Errors
    /// [`AnchorIdError`] as for [`AnchorId::from_key`].
    pub fn from_bytes(bytes: [u8; 16]) -> Result<Self, AnchorIdError> {
        Self::from_key(Key(u128::from_be_bytes(bytes)))
    }

    /// The id as 16 bytes, most significant first: their order is the store's order.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The id as a key.
    pub fn key(self) -> Key {
        Key(self.0)
    }

    /// Whose anchor it is.
    pub fn account(self) -> AccountNumber {
        self.key().account()
    }

    /// Where the anchor was created.
    pub fn home_cell(self) -> HomeCell {
        let cell = self.cell();
        match cell >> 29 {
            6 => HomeCell::Local(cell >> 1 & cell::SPACE_NUMBER_MAX),
            7 => HomeCell::Reserved(cell),
            _ => HomeCell::Earth(cell),
        }
    }

    /// The space that the anchor was created in; `None` for the reserved face code.
    pub fn space(self) -> Option<Space> {
        match self.home_cell() {
            HomeCell::Earth(_) => Some(Space::Earth),
            HomeCell::Local(space) => Some(Space::Local(space)),
            HomeCell::Reserved(_) => None,
        }
    }

    /// Distance in meters of a pose from the id's home, for the drift rule: 0 inside the home
    /// cell, `None` if the pose lies in another space.
    ///
    /// The home is the finest cell that the id tells: about 2 m on Earth, 4 m in a local space.
    /// Height does not count, an id has none. On Earth the distance is never above the true one
    /// (and at most 1.3 % below). A local space's id tells its cell only modulo 1,024 m: there the
    /// distance is that to the nearest of the possible cells.
    ///
    /// Uses no function of the platform's mathematics library, so that replicas agree.
    pub fn home_distance_m(self, pose: &Pose) -> Option<f64> {
        (self.space() == Some(pose.space())).then(|| cell::distance_m(self.cell_index(), pose))
    }

    /// The 32-bit cell: a level-14 S2 cell's top bits, or another face code.
    fn cell(self) -> u32 {
        let high = (self.0 >> 80 & 0xffff) << 16;
        let middle = (self.0 >> 64 & 0xfff) << 4;
        let low = self.0 >> 58 & 0xf;
        ((high | middle | low) & 0xffff_ffff) as u32
    }

    /// The cell without its marker, and the fine cell.
    pub(crate) fn cell_index(self) -> CellIndex {
        let fine = (self.0 >> FINE_SHIFT & 0xffff) as u64;
        CellIndex(u64::from(self.cell() >> 1) << 16 | fine)
    }
}

/// The first id of a cell in an account, its hash being 0. Monotone in both.
fn spread(account: AccountNumber, index: CellIndex) -> u128 {
    let cell = u128::from(index.0 >> 16) << 1 | 1;
    let fine = u128::from(index.0 & 0xffff);
    u128::from(account.0) << ACCOUNT_SHIFT
        | (cell >> 16 & 0xffff) << 80
        | (cell >> 4 & 0xfff) << 64
        | (cell & 0xf) << 58
        | fine << FINE_SHIFT
        | FIXED_BITS
}

/// The same place within another account.
pub(crate) fn rebase_key(key: Key, account: AccountNumber) -> Key {
    let within = (1_u128 << ACCOUNT_SHIFT) - 1;
    Key(Key::account_start(account).0 | key.0 & within)
}

/// The first number in `0..end` for which `is_reached` holds, `end` if there is none.
/// `is_reached` must be monotone.
fn first_where(end: u64, is_reached: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (0, end);
    while low < high {
        let middle = low + (high - low) / 2;
        if is_reached(middle) { high = middle } else { low = middle + 1 }
    }
    low
}

impl Key {
    /// The first key of all.
    pub const FIRST: Self = Self(0);

    /// The first key of an account.
    pub fn account_start(account: AccountNumber) -> Self {
        Self(u128::from(account.0) << ACCOUNT_SHIFT)
    }

    /// The account that the key lies in.
    pub fn account(self) -> AccountNumber {
        AccountNumber((self.0 >> ACCOUNT_SHIFT & 0xffff_ffff) as u32)
    }

    /// The key as 16 bytes, most significant first.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The key after this one; `None` after the last.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl KeyRange {
    /// Every key.
    pub const FULL: Self = Self { start: Key::FIRST, end: None };
    /// No key: what the catalog's own shard owns.
    pub const EMPTY: Self = Self { start: Key::FIRST, end: Some(Key::FIRST) };

    /// All keys of an account.
    pub fn of_account(account: AccountNumber) -> Self {
        let end = account.0.checked_add(1).map(|next| Key::account_start(AccountNumber(next)));
        Self { start: Key::account_start(account), end }
    }

    /// All ids of an account in a space, whatever their cell.
    pub fn of_space(account: AccountNumber, space: Space) -> Self {
        let (first, last) = cell::range_of_space(space);
        Self::of_cells(account, first, last)
    }

    /// All ids of an account whose home may lie in an S2 cell of any level; the whole level-22
    /// cell around it if it is finer. `None` if `cell_id` is no S2 cell's id.
    pub fn of_s2_cell(account: AccountNumber, cell_id: u64) -> Option<Self> {
        let (first_leaf, last_leaf) = cell::leaf_range(cell_id)?;
        Self::of_s2_leaves(account, first_leaf, last_leaf)
    }

    /// All ids of an account whose home may lie between two S2 leaf cells, both included, rounded
    /// outwards to level 22. `None` if either is no leaf cell's id, or the last precedes the first.
    pub fn of_s2_leaves(account: AccountNumber, first_leaf: u64, last_leaf: u64) -> Option<Self> {
        let (first, last) = (cell::of_leaf(first_leaf)?, cell::of_leaf(last_leaf)?);
        (first <= last).then(|| Self::of_cells(account, first, last))
    }

    /// All ids of an account in a range of cells, both ends included.
    pub(crate) fn of_cells(account: AccountNumber, first: CellIndex, last: CellIndex) -> Self {
        let end = match last.next() {
            Some(next) => Some(Key(spread(account, next))),
            None => Self::of_account(account).end,
        };
        Self { start: Key(spread(account, first)), end }
    }

    /// First and last cell of which the range can hold ids of an account; `None` if there is none.
    pub(crate) fn cells(&self, account: AccountNumber) -> Option<(CellIndex, CellIndex)> {
        let range = self.intersect(&Self::of_account(account));
        let first = first_where(cell::CELL_INDEX_END, |index| {
            range.start.0 <= spread(account, CellIndex(index)) | HASH_MASK
        });
        let end = first_where(cell::CELL_INDEX_END, |index| {
            range.end.is_some_and(|end| end.0 <= spread(account, CellIndex(index)))
        });
        (!range.is_empty() && first < end).then(|| (CellIndex(first), CellIndex(end - 1)))
    }

    /// Whether the range holds no key.
    pub fn is_empty(&self) -> bool {
        self.end.is_some_and(|end| end <= self.start)
    }

    /// Whether the range holds a key.
    pub fn contains(&self, key: Key) -> bool {
        self.start <= key && self.end.is_none_or(|end| key < end)
    }

    /// Whether the range holds an anchor's id.
    pub fn contains_id(&self, id: AnchorId) -> bool {
        self.contains(id.key())
    }

    /// Whether the range holds every key of another one.
    pub fn contains_range(&self, other: &Self) -> bool {
        other.is_empty() || self.intersect(other) == *other
    }

    /// Whether some key is in both ranges.
    pub fn overlaps(&self, other: &Self) -> bool {
        !self.intersect(other).is_empty()
    }

    /// The keys that are in both ranges; may be empty.
    pub fn intersect(&self, other: &Self) -> Self {
        let end = match (self.end, other.end) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (end, None) | (None, end) => end,
        };
        Self { start: self.start.max(other.start), end }
    }
}

impl From<AnchorId> for Key {
    fn from(id: AnchorId) -> Self {
        id.key()
    }
}

impl TryFrom<Key> for AnchorId {
    type Error = AnchorIdError;

    fn try_from(key: Key) -> Result<Self, Self::Error> {
        Self::from_key(key)
    }
}

impl fmt::Display for AccountNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a{}", self.0)
    }
}

/// A hyphenated UUID in lower case.
impl fmt::Display for AnchorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups = [(96, 8), (80, 4), (64, 4), (48, 4), (0, 12)];
        for (position, (shift, digits)) in groups.into_iter().enumerate() {
            let hyphen = if position == 0 { "" } else { "-" };
            let group = self.0 >> shift & ((1 << (4 * digits)) - 1);
            write!(f, "{hyphen}{group:0digits$x}")?;
        }
        Ok(())
    }
}

/// Reads a hyphenated UUID in either case.
impl FromStr for AnchorId {
    type Err = AnchorIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let length = text.chars().count();
        if length != 36 {
            return Err(AnchorIdError::Length { length });
        }
        let mut number = 0_u128;
        for (position, character) in text.chars().enumerate() {
            match (position, character.to_digit(16)) {
                (8 | 13 | 18 | 23, _) if character == '-' => {}
                (8 | 13 | 18 | 23, _) | (_, None) => {
                    return Err(AnchorIdError::Character { character, position });
                }
                (_, Some(digit)) => number = number << 4 | u128::from(digit),
            }
        }
        Self::from_key(Key(number))
    }
}

/// Hexadecimal without trailing zeros: the account's number, then the rest if there is any.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:032x}", self.0);
        let (account, rest) = digits.split_at(8);
        match rest.trim_end_matches('0') {
            "" => f.write_str(account),
            rest => write!(f, "{account}-{rest}"),
        }
    }
}

/// Both ends as [`Key`]s: `[00000001..00000001-8)`, `[00000001-8..)`.
impl fmt::Display for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.end {
            Some(end) => write!(f, "[{}..{end})", self.start),
            None => write!(f, "[{}..)", self.start),
        }
    }
}

#[cfg(test)]
mod tests;
