//! Who calls, and whether they may: the one step between the wire and everything else.
//!
//! Input is a request's metadata and the catalog, output is a [`Caller`] or a typed refusal. A key's
//! secret is 128 random bits or more, so one SHA-256 of it is as good as a slow hash, and it costs
//! less than a microsecond: there is no cache, because one would keep secrets in memory to save
//! less than its own lock costs. Hashes are compared in constant time.
//!
//! An id of another account is refused with WRONG_ACCOUNT before anything is read: whether such an
//! anchor exists is not told.

use anchorhold_model::catalog::{AccountState, CatalogState};
use anchorhold_model::{AccountNumber, AnchorId};
use anchorhold_proto::{Credential, Failure, Reason};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tonic::metadata::MetadataMap;

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The cluster's operators.
    Admin,
    /// A tenant.
    Account {
        /// Its number.
        number: AccountNumber,
        /// The public part of the key that was shown.
        key_id: String,
    },
}

/// Whose calls a method takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Accounts only: there is no account to act on otherwise.
    Accounts,
    /// Operators only.
    Operators,
    /// Any valid key.
    Anyone,
}

/// What keys are checked against beside the catalog.
#[derive(Clone, Debug, Default)]
pub struct Access {
    admin: Option<[u8; 32]>,
}

impl Access {
    /// `admin`: SHA-256 of the operators' key; without one nobody is an operator.
    pub fn new(admin: Option<[u8; 32]>) -> Self {
        Self { admin }
    }

    /// Decides who calls and whether they may.
    ///
    /// # Errors
    /// CREDENTIAL_MISSING, CREDENTIAL_INVALID or PERMISSION_DENIED.
    pub fn authorize(
        &self,
        catalog: &CatalogState,
        metadata: &MetadataMap,
        audience: Audience,
    ) -> Result<Caller, Failure> {
        let caller = self.identify(catalog, Credential::of_metadata(metadata)?)?;
        match (&caller, audience) {
            (_, Audience::Anyone)
            | (Caller::Account { .. }, Audience::Accounts)
            | (Caller::Admin, Audience::Operators) => Ok(caller),
            (Caller::Admin, Audience::Accounts) => Err(Failure::new(
                Reason::PermissionDenied,
                "this needs the key of an account; the operators' key belongs to none",
            )),
            (Caller::Account { .. }, Audience::Operators) => {
                Err(Failure::new(Reason::PermissionDenied, "this needs the operators' key"))
            }
        }
    }

    fn identify(
        &self,
        catalog: &CatalogState,
        credential: Credential<'_>,
    ) -> Result<Caller, Failure> {
        let invalid = || Failure::new(Reason::CredentialInvalid, "the key is unknown or revoked");
        match credential {
            Credential::Admin { secret } => {
                let valid = self.admin.ok_or_else(|| {
                    let message = "this node was started without an operators' key";
                    Failure::new(Reason::CredentialInvalid, message)
                })?;
                if is_equal(&valid, &admin_digest(secret)) {
                    Ok(Caller::Admin)
                } else {
                    Err(invalid())
                }
            }
            Credential::Account { key_id, secret } => {
                let account = catalog.account_by_key_id(key_id).ok_or_else(invalid)?;
                let key = account.keys.iter().find(|key| key.key_id == key_id);
                let key = key.ok_or_else(invalid)?;
                if !is_equal(&key.hash, &account_digest(key_id, secret)) {
                    return Err(invalid());
                }
                match account.state {
                    AccountState::Active => {
                        Ok(Caller::Account { number: account.account, key_id: key_id.to_owned() })
                    }
                    AccountState::Disabled => {
                        Err(Failure::new(Reason::PermissionDenied, "the account is disabled"))
                    }
                }
            }
        }
    }
}

/// Whether a newer catalog could decide otherwise than the one that led to this refusal.
pub fn is_matter_of_catalog(failure: &Failure, metadata: &MetadataMap, audience: Audience) -> bool {
    let is_account_key =
        matches!(Credential::of_metadata(metadata), Ok(Credential::Account { .. }));
    is_account_key
        && audience != Audience::Operators
        && matches!(failure.reason, Reason::CredentialInvalid | Reason::PermissionDenied)
}

impl Caller {
    /// The account that the call acts on.
    ///
    /// # Errors
    /// PERMISSION_DENIED for operators.
    pub fn account(&self) -> Result<AccountNumber, Failure> {
        match self {
            Self::Account { number, .. } => Ok(*number),
            Self::Admin => {
                Err(Failure::new(Reason::PermissionDenied, "this needs the key of an account"))
            }
        }
    }
}

/// Refuses an id of another account.
///
/// # Errors
/// WRONG_ACCOUNT.
pub fn own(account: AccountNumber, id: AnchorId) -> Result<AnchorId, Failure> {
    if id.account() == account {
        return Ok(id);
    }
    Err(Failure::new(Reason::WrongAccount, "the anchor id belongs to another account"))
}

/// The text of an account's key.
pub fn account_key(key_id: &str, secret: &str) -> String {
    format!("ahk_{key_id}_{secret}")
}

/// What the catalog keeps of an account's key.
pub fn account_digest(key_id: &str, secret: &str) -> [u8; 32] {
    digest(account_key(key_id, secret).as_bytes())
}

fn admin_digest(secret: &str) -> [u8; 32] {
    digest(format!("aha_{secret}").as_bytes())
}

fn is_equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.ct_eq(b).into()
}

/// SHA-256.
pub fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Lower-case hexadecimal.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).filter_map(hex_digit).collect()
}

fn hex_digit(nibble: u8) -> Option<char> {
    char::from_digit(u32::from(nibble), 16)
}

/// 32 bytes from 64 hexadecimal digits in either case.
pub fn from_hex(text: &str) -> Option<[u8; 32]> {
    let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len() == 64)?;
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::try_from(pair[0] << 4 | pair[1]).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use anchorhold_model::Timestamp;
    use anchorhold_model::catalog::{AccountRecord, ApiKey, CatalogChange, DEFAULT_CLASS};

    use super::*;

    const SECRET: &str = "0123456789abcdef";

    fn key(key_id: &str) -> ApiKey {
        let hash = account_digest(key_id, SECRET);
        ApiKey { key_id: key_id.to_owned(), hash, create_time: Timestamp(0) }
    }

    fn catalog(state: AccountState) -> CatalogState {
        let mut catalog = CatalogState::default();
        catalog.absorb(&CatalogChange::Account(AccountRecord {
            account: AccountNumber(7),
            name: "seven".to_owned(),
            class: DEFAULT_CLASS,
            state,
            keys: vec![key("old"), key("new")],
            create_time: Timestamp(0),
        }));
        catalog
    }

    fn outcome(state: AccountState, text: &str, audience: Audience) -> Result<Caller, Reason> {
        let access = Access::new(Some(digest(b"aha_operators0000secret")));
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", format!("Bearer {text}").parse().unwrap());
        access.authorize(&catalog(state), &metadata, audience).map_err(|failure| failure.reason)
    }

    #[test]
    fn both_keys_of_an_account_are_valid_and_others_are_not() {
        let ask = |text: &str| outcome(AccountState::Active, text, Audience::Accounts);
        for key_id in ["old", "new"] {
            let caller = ask(&account_key(key_id, SECRET)).unwrap();
            assert_eq!(caller.account().unwrap(), AccountNumber(7));
        }
        assert_eq!(ask("ahk_old_0123456789abcdeX"), Err(Reason::CredentialInvalid));
        assert_eq!(ask("ahk_none_0123456789abcdef"), Err(Reason::CredentialInvalid));
        assert_eq!(ask("nonsense"), Err(Reason::CredentialInvalid));
    }

    #[test]
    fn a_disabled_account_is_refused() {
        let refused =
            outcome(AccountState::Disabled, &account_key("old", SECRET), Audience::Accounts);
        assert_eq!(refused, Err(Reason::PermissionDenied));
    }

    #[test]
    fn operators_and_accounts_do_not_open_each_others_doors() {
        let active = AccountState::Active;
        let (operators, account) = ("aha_operators0000secret", account_key("old", SECRET));
        assert_eq!(outcome(active, operators, Audience::Operators), Ok(Caller::Admin));
        assert_eq!(outcome(active, operators, Audience::Anyone), Ok(Caller::Admin));
        let denied = Err(Reason::PermissionDenied);
        assert_eq!(outcome(active, operators, Audience::Accounts), denied);
        assert_eq!(outcome(active, &account, Audience::Operators), denied);
        let wrong = outcome(active, "aha_operators0000secreX", Audience::Operators);
        assert_eq!(wrong, Err(Reason::CredentialInvalid));
    }

    #[test]
    fn hexadecimal_comes_back() {
        let digest = digest(b"x");
        assert_eq!(from_hex(&to_hex(&digest)), Some(digest));
        assert_eq!(from_hex(&to_hex(&digest).to_uppercase()), Some(digest));
        assert_eq!(from_hex("00"), None);
        assert_eq!(from_hex(&"é".repeat(32)), None);
    }
}
