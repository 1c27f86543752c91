//! API keys: made once, shown once, kept as hashes; each has an account.

use crate::account::{Account, KeyLimits};
use crate::clock;
use crate::store::{KeyRow, NewKey, Store, StoreError};
use arc_swap::ArcSwap;
use assay_types::Amount;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// What every key starts with.
pub const KEY_PREFIX: &str = "sk-assay-";
/// Random bytes in a key: nothing to guess, so a plain hash is enough to keep.
const KEY_BYTES: usize = 24;
/// Longest presented key that is hashed at all.
const KEY_LEN_MAX: usize = 256;
/// Longest name in bytes.
const NAME_LEN_MAX: usize = 128;

/// Number of a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct KeyId(pub i64);

/// Callers without a key who pay by request: what they get is noted under this number, which no key has.
pub(crate) const GUEST: KeyId = KeyId(0);

/// Why no key was made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KeyError {
    /// The name is empty, too long, or would garble a list.
    #[error("a key's name has 1 to {NAME_LEN_MAX} bytes and no control characters")]
    BadName,
    /// A rate of nothing: a key that may do nothing is one that is revoked.
    #[error("a key's rates are at least 1 a minute")]
    BadRate,
    /// The operating system has no random bytes.
    #[error("no random bytes: {0}")]
    Random(String),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Keys that work, for one database. Clones share one view.
#[derive(Clone, Debug)]
pub struct Keys {
    store: Store,
    /// By the first eight bytes of the hash; the rest is compared in constant time.
    active: Arc<ArcSwap<HashMap<[u8; 8], Vec<Active>>>>,
    /// Of every key that was met: what is held and spent outlives each reading of the keys. The lock also orders the
    /// readings: what is published last was read last.
    accounts: Arc<Mutex<HashMap<KeyId, Arc<Account>>>>,
    /// The one key that is in no database: see [`Self::guest`].
    guest: Arc<OnceLock<Active>>,
}

#[derive(Clone, Debug)]
struct Active {
    hash: [u8; 32],
    expires_at: Option<u64>,
    account: Arc<Account>,
}

impl Keys {
    /// Reads the keys of `store`.
    ///
    /// # Errors
    /// The read failed.
    pub async fn open(store: Store) -> Result<Self, StoreError> {
        let keys = Self { store, active: Arc::default(), accounts: Arc::default(), guest: Arc::default() };
        keys.reload().await?;
        Ok(keys)
    }

    /// Makes a key without limits and returns it; it cannot be read again later.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn create(&self, name: &str) -> Result<String, KeyError> {
        self.create_limited(name, KeyLimits::default()).await
    }

    /// Makes a key that may do this much.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn create_limited(&self, name: &str, limits: KeyLimits) -> Result<String, KeyError> {
        if name.is_empty() || name.len() > NAME_LEN_MAX || name.chars().any(char::is_control) {
            return Err(KeyError::BadName);
        }
        check_rates(&limits)?;
        let digits = random_digits()?;
        let key = format!("{KEY_PREFIX}{digits}");
        let hint = format!("{KEY_PREFIX}{}..{}", &digits[..4], &digits[digits.len() - 4..]);
        let new = NewKey { name: name.into(), hash: hash(&key), hint, created_at: clock::unix_seconds(), limits };
        self.store.insert_key(new).await?;
        self.reload().await?;
        Ok(key)
    }

    /// A key for this process alone, by which the payment layer lets in who has paid. It is written down nowhere and
    /// made at most once.
    ///
    /// # Errors
    /// No random bytes, or it was made before.
    pub(crate) fn guest(&self) -> Result<String, KeyError> {
        let key = format!("{KEY_PREFIX}{}", random_digits()?);
        // What it may spend is what was paid before.
        let account = Arc::new(Account::new(GUEST, KeyLimits::default(), Amount::ZERO, Instant::now()));
        let guest = Active { hash: hash(&key), expires_at: None, account };
        self.guest.set(guest).map_err(|_| KeyError::BadName)?;
        Ok(key)
    }

    /// All keys ever made, the oldest first.
    ///
    /// # Errors
    /// The read failed.
    pub async fn list(&self) -> Result<Vec<KeyRow>, StoreError> {
        self.store.keys().await
    }

    /// Changes what a key may do; `false` if there is none with this number.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn change(&self, key_id: KeyId, limits: KeyLimits) -> Result<bool, KeyError> {
        check_rates(&limits)?;
        let changed = self.store.change_key(key_id.0, limits).await?;
        self.reload().await?;
        Ok(changed)
    }

    /// Makes a key stop working; `false` if there is none with this number or it was revoked before. A gateway in
    /// another process follows within a second.
    ///
    /// # Errors
    /// The database failed.
    pub async fn revoke(&self, key_id: KeyId) -> Result<bool, StoreError> {
        let revoked = self.store.revoke_key(key_id.0, clock::unix_seconds()).await?;
        self.reload().await?;
        Ok(revoked)
    }

    /// Whose key this is; `None` for one that is not known, was revoked, or has expired. One hash and one look-up; no
    /// database.
    #[must_use]
    pub fn check(&self, key: &str) -> Option<KeyId> {
        self.account(key).map(|account| account.id)
    }

    pub(crate) fn account(&self, key: &str) -> Option<Arc<Account>> {
        if key.len() > KEY_LEN_MAX {
            return None;
        }
        let presented = hash(key);
        if let Some(guest) = self.guest.get().filter(|guest| is_equal(&guest.hash, &presented)) {
            return Some(Arc::clone(&guest.account));
        }
        let active = self.active.load();
        let candidates = active.get(&short(&presented))?;
        let found = candidates.iter().find(|known| is_equal(&known.hash, &presented))?;
        let is_over = found.expires_at.is_some_and(|at| clock::unix_seconds() >= at);
        (!is_over).then(|| Arc::clone(&found.account))
    }

    /// Takes over what another process changed.
    ///
    /// # Errors
    /// The read failed; the view stays as it was.
    pub(crate) async fn reload(&self) -> Result<(), StoreError> {
        let mut accounts = self.accounts.lock().await;
        let now = Instant::now();
        let mut active: HashMap<[u8; 8], Vec<Active>> = HashMap::new();
        for row in self.store.keys().await?.iter().filter(|row| row.revoked_at.is_none()) {
            let id = KeyId(row.key_id);
            let account = accounts.entry(id).or_insert_with(|| Arc::new(Account::new(id, row.limits, row.spent, now)));
            account.change(row.limits, now);
            account.credit(row.refunded);
            let known = Active { hash: row.hash, expires_at: row.limits.expires_at, account: Arc::clone(account) };
            active.entry(short(&row.hash)).or_default().push(known);
        }
        self.active.store(Arc::new(active));
        Ok(())
    }
}

fn check_rates(limits: &KeyLimits) -> Result<(), KeyError> {
    let is_nothing = limits.requests_per_minute == Some(0) || limits.tokens_per_minute == Some(0);
    if is_nothing { Err(KeyError::BadRate) } else { Ok(()) }
}

fn random_digits() -> Result<String, KeyError> {
    let mut secret = [0u8; KEY_BYTES];
    getrandom::fill(&mut secret).map_err(|e| KeyError::Random(e.to_string()))?;
    Ok(secret.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

fn short(hash: &[u8; 32]) -> [u8; 8] {
    let mut short = [0; 8];
    short.copy_from_slice(&hash[..8]);
    short
}

/// Looks at every byte whatever the first difference is.
fn is_equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let difference = a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(difference) == 0
}
