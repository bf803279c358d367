use std::collections::BTreeSet;

use super::shard::Layout;
use super::{
    ACCOUNT_BLOCK, ACCOUNT_KEYS_MAX, AccountRecord, AccountState, ApiKey, CatalogChange,
    CatalogOutcome, CatalogRejection, ClassRecord, Draft, check_name,
};
use crate::{AccountNumber, ClassId, Key, NodeId};

impl Draft<'_> {
    pub(super) fn create_account(
        &mut self,
        cluster_epoch: u16,
        name: &str,
        class: ClassId,
        keys: &[ApiKey],
        cuts: &[Key],
        placements: &[Vec<NodeId>],
    ) -> Result<CatalogOutcome, CatalogRejection> {
        check_name(name)?;
        if self.state.account_by_name(name).is_some() {
            return Err(CatalogRejection::AccountNameTaken { name: name.to_owned() });
        }
        if ACCOUNT_KEYS_MAX < keys.len() {
            return Err(CatalogRejection::TooManyKeys { keys: keys.len() });
        }
        let key_ids: BTreeSet<&str> = keys.iter().map(|key| key.key_id.as_str()).collect();
        if key_ids.len() < keys.len() || !key_ids.iter().all(|id| self.is_free_key_id(id)) {
            return Err(CatalogRejection::InvalidKeyId);
        }
        let account = self.take_account_number(class)?;
        let layout = Layout { cuts, placements, founded_at: 0 };
        let shards = self.found_shards(cluster_epoch, account, class, layout)?;
        let create_time = self.time;
        self.changes.push(CatalogChange::Account(AccountRecord {
            account,
            name: name.to_owned(),
            class,
            state: AccountState::Active,
            keys: keys.iter().map(|key| ApiKey { create_time, ..key.clone() }).collect(),
            create_time,
        }));
        Ok(CatalogOutcome::AccountCreated { account, shards })
    }

    pub(super) fn set_account_state(
        &mut self,
        account: AccountNumber,
        state: AccountState,
    ) -> Result<CatalogOutcome, CatalogRejection> {
        let record = self.account(account)?;
        if record.state != state {
            self.changes.push(CatalogChange::Account(AccountRecord { state, ..record.clone() }));
        }
        Ok(CatalogOutcome::AccountStateSet)
    }

    /// With `makes_room` the oldest key goes if there are two already.
    pub(super) fn add_key(
        &mut self,
        account: AccountNumber,
        key: &ApiKey,
        makes_room: bool,
    ) -> Result<CatalogOutcome, CatalogRejection> {
        let mut record = self.account(account)?.clone();
        if !self.is_free_key_id(&key.key_id) {
            return Err(CatalogRejection::InvalidKeyId);
        }
        let is_full = ACCOUNT_KEYS_MAX <= record.keys.len();
        if is_full && !makes_room {
            return Err(CatalogRejection::TooManyKeys { keys: record.keys.len() });
        }
        let revoked = is_full.then(|| record.keys.remove(0).key_id);
        record.keys.push(ApiKey { create_time: self.time, ..key.clone() });
        self.changes.push(CatalogChange::Account(record));
        Ok(CatalogOutcome::KeyAdded { revoked })
    }

    pub(super) fn revoke_key(
        &mut self,
        account: AccountNumber,
        key_id: &str,
    ) -> Result<CatalogOutcome, CatalogRejection> {
        let mut record = self.account(account)?.clone();
        let position = record.keys.iter().position(|key| key.key_id == key_id);
        record.keys.remove(position.ok_or(CatalogRejection::KeyNotFound)?);
        self.changes.push(CatalogChange::Account(record));
        Ok(CatalogOutcome::KeyRevoked)
    }

    pub(super) fn account(
        &self,
        account: AccountNumber,
    ) -> Result<&AccountRecord, CatalogRejection> {
        self.state.accounts.get(&account).ok_or(CatalogRejection::AccountNotFound { account })
    }

    fn is_free_key_id(&self, key_id: &str) -> bool {
        !key_id.is_empty() && self.state.account_by_key_id(key_id).is_none()
    }

    /// The class's next account number, from a new block if its own is used up.
    fn take_account_number(&mut self, class: ClassId) -> Result<AccountNumber, CatalogRejection> {
        let record =
            self.state.classes.get(&class).ok_or(CatalogRejection::ClassNotFound { class })?;
        let mut record: ClassRecord = record.clone();
        if record.account_next == record.account_end {
            let start = self.counters.next_account_block;
            let end = (start / ACCOUNT_BLOCK + 1)
                .checked_mul(ACCOUNT_BLOCK)
                .ok_or(CatalogRejection::NumbersExhausted)?;
            (record.account_next, record.account_end) = (start, end);
            self.counters.next_account_block = end;
        }
        let account = AccountNumber(record.account_next);
        record.account_next += 1;
        self.changes.push(CatalogChange::Class(record));
        Ok(account)
    }
}
