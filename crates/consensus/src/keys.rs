//! Where a replica's rows lie in the node's one state tree.
//!
//! | key | row |
//! |---|---|
//! | `01 shard(8)  00` | header: applied position, membership, shard state |
//! | `01 shard(8)  01` | set while a snapshot file is being loaded |
//! | `01 shard(8)  02 …` | rows of the catalog (shard 0) |
//! | `01 shard(8)  03` | birth: set while the replica's beginning lies in its parent |
//! | `01 shard(8)  04` | remains: set while only log and file are left of the shard, after a merge |
//! | `02 …` | records by id, as `model::row` encodes them |

use anchorhold_model::{KeyRange, ShardId, row};

const REPLICA: u8 = 1;
const RECORD: u8 = 2;
const HEADER: u8 = 0;
const INSTALLING: u8 = 1;
const CATALOG: u8 = 2;
const BIRTH: u8 = 3;
const REMAINS: u8 = 4;

fn replica_key(shard: ShardId, kind: u8) -> Vec<u8> {
    let mut key = Vec::with_capacity(10);
    key.push(REPLICA);
    key.extend_from_slice(&shard.0.to_be_bytes());
    key.push(kind);
    key
}

/// The replica's header row.
pub(crate) fn header(shard: ShardId) -> Vec<u8> {
    replica_key(shard, HEADER)
}

/// The mark of an unfinished load.
pub(crate) fn installing(shard: ShardId) -> Vec<u8> {
    replica_key(shard, INSTALLING)
}

/// The mark of a replica that a split made and that has no snapshot file yet.
pub(crate) fn birth(shard: ShardId) -> Vec<u8> {
    replica_key(shard, BIRTH)
}

/// The mark of a shard whose keys are another's, and whose log and file are still needed.
pub(crate) fn remains(shard: ShardId) -> Vec<u8> {
    replica_key(shard, REMAINS)
}

/// Where all rows that are not records lie.
pub(crate) fn replicas() -> (Vec<u8>, Vec<u8>) {
    (vec![REPLICA], vec![REPLICA + 1])
}

/// What the group's own rows start with; the rest of the key goes into snapshots.
pub(crate) fn content_prefix(shard: ShardId) -> Vec<u8> {
    if shard == ShardId::CATALOG { replica_key(shard, CATALOG) } else { vec![RECORD] }
}

/// A record's key.
pub(crate) fn record(key: &[u8]) -> Vec<u8> {
    let mut full = Vec::with_capacity(1 + key.len());
    full.push(RECORD);
    full.extend_from_slice(key);
    full
}

/// Where the rows of a key range lie, as a half-open range of full keys.
pub(crate) fn records(range: KeyRange) -> (Vec<u8>, Vec<u8>) {
    let (start, end) = row::key_range(range);
    let end = end.map_or_else(|| vec![RECORD + 1], |end| record(&end));
    (record(&start), end)
}

/// Where all of the catalog's rows lie.
pub(crate) fn catalog_rows() -> (Vec<u8>, Vec<u8>) {
    (replica_key(ShardId::CATALOG, CATALOG), replica_key(ShardId::CATALOG, CATALOG + 1))
}

/// Where a row belongs.
pub(crate) enum Place<'a> {
    Header(ShardId),
    Installing(ShardId),
    Birth(ShardId),
    Remains(ShardId),
    Catalog,
    /// A record, with its key as `model::row` encodes it.
    Record(&'a [u8]),
}

/// Where the row with this key belongs; `None` if no such row is ever written.
pub(crate) fn place(key: &[u8]) -> Option<Place<'_>> {
    match key.split_first()? {
        (&RECORD, key) => Some(Place::Record(key)),
        (&REPLICA, rest) => {
            let (shard, rest) = rest.split_first_chunk()?;
            let shard = ShardId(u64::from_be_bytes(*shard));
            match rest {
                [HEADER] => Some(Place::Header(shard)),
                [INSTALLING] => Some(Place::Installing(shard)),
                [BIRTH] => Some(Place::Birth(shard)),
                [REMAINS] => Some(Place::Remains(shard)),
                [CATALOG, ..] if shard == ShardId::CATALOG => Some(Place::Catalog),
                _ => None,
            }
        }
        _ => None,
    }
}
