//! Small durable notes beside a group's snapshot files: `<shard>-<incarnation>.card`.
//!
//! A card says what a snapshot file cannot, because the file may come from another node. It is
//! replaced as a whole and stays when the group's files are removed.

use std::path::PathBuf;

use super::SnapshotError;
use super::store::{SnapshotStore, group_prefix};
use crate::durable;
use crate::log_store::GroupId;

/// Bytes of the checksum behind a card's content.
const CHECKSUM_BYTES: usize = 4;

impl SnapshotStore {
    /// A group's card; `None` if it never had one.
    ///
    /// # Errors
    /// [`SnapshotError::Io`]; [`SnapshotError::Damaged`] if it is not what was written.
    pub fn card(&self, group: GroupId) -> Result<Option<Vec<u8>>, SnapshotError> {
        let path = self.card_path(group);
        let read = durable::read_if_present(&path);
        let read = read.map_err(|source| SnapshotError::Io { path: path.clone(), source })?;
        let Some(mut content) = read else { return Ok(None) };
        let length = content.len().saturating_sub(CHECKSUM_BYTES);
        let checksum = content.split_off(length);
        if checksum != crc32c::crc32c(&content).to_le_bytes() {
            let reason = "the checksum of the card does not fit";
            return Err(SnapshotError::Damaged { path, offset: 0, reason });
        }
        Ok(Some(content))
    }

    /// Replaces a group's card, durably.
    ///
    /// # Errors
    /// [`SnapshotError::Io`]; the card is the old one or the new one then.
    pub fn set_card(&self, group: GroupId, content: &[u8]) -> Result<(), SnapshotError> {
        let path = self.card_path(group);
        let mut bytes = content.to_vec();
        bytes.extend_from_slice(&crc32c::crc32c(content).to_le_bytes());
        durable::replace_file(&path, &bytes).map_err(|source| SnapshotError::Io { path, source })
    }

    fn card_path(&self, group: GroupId) -> PathBuf {
        let prefix = group_prefix(group);
        self.dir().join(format!("{}.card", prefix.trim_end_matches('-')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId { shard: 7, incarnation: 2 };

    #[test]
    fn a_card_is_replaced_and_outlives_the_groups_files_and_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let store = SnapshotStore::open(dir.path()).unwrap();
        assert_eq!(store.card(GROUP).unwrap(), None);
        store.set_card(GROUP, b"one").unwrap();
        store.set_card(GROUP, b"two").unwrap();
        store.remove_group(GROUP).unwrap();
        let store = SnapshotStore::open(dir.path()).unwrap();
        assert_eq!(store.card(GROUP).unwrap().as_deref(), Some(&b"two"[..]));
        assert_eq!(store.groups(), []);
        assert_eq!(store.card(GroupId { incarnation: 1, ..GROUP }).unwrap(), None);
    }

    #[test]
    fn a_damaged_card_is_an_error_at_every_byte() {
        let dir = tempfile::tempdir().unwrap();
        let store = SnapshotStore::open(dir.path()).unwrap();
        store.set_card(GROUP, b"abc").unwrap();
        let path = store.card_path(GROUP);
        let whole = std::fs::read(&path).unwrap();
        for position in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[position] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            assert!(store.card(GROUP).is_err(), "byte {position}");
            std::fs::write(&path, &whole[..position]).unwrap();
            assert!(store.card(GROUP).is_err(), "cut to {position}");
        }
    }
}
