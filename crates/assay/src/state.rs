//! The folder of a local network: what is where, keys, and the addresses that were deployed.
//!
//! Nothing here is overwritten: a file that exists is read, a file that cannot be read is an error that names it.

use alloy_signer_local::PrivateKeySigner;
use anyhow::{Context, bail};
use assay_net::TransportSecret;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Where a local network keeps everything if nobody says otherwise.
pub fn default_dir() -> anyhow::Result<PathBuf> {
    let home = std::env::var_os("HOME").context("HOME is not set; say where to keep the network with --dir")?;
    Ok(PathBuf::from(home).join(".assay/local"))
}

/// The gateway's database, in the gateway's folder.
pub fn gateway_database(gateway: &Path) -> PathBuf {
    gateway.join("gateway.sqlite")
}

/// The socket over which a running gateway is told things, in the gateway's folder.
pub fn control_socket(gateway: &Path) -> PathBuf {
    gateway.join("control.sock")
}

/// Paths below the folder of a local network, which is this process's alone as long as this value lives.
pub struct State {
    root: PathBuf,
    /// Locked. The lock ends with the process, however that ends.
    _lock: fs::File,
}

impl State {
    /// Creates the folder if it is not there and makes sure that it can be written and that nobody else uses it: two
    /// first starts at once would each make keys and a chain.
    pub fn open(root: &Path) -> anyhow::Result<Self> {
        let hint = || format!("cannot use {} as the network's folder; choose another with --dir", root.display());
        fs::create_dir_all(root).with_context(hint)?;
        let root = root.canonicalize().with_context(hint)?;
        let lock = fs::File::create(root.join("lock")).with_context(hint)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { root, _lock: lock }),
            Err(fs::TryLockError::WouldBlock) => {
                bail!("{} is in use by another assay up; stop it or choose another folder with --dir", root.display())
            }
            Err(fs::TryLockError::Error(error)) => Err(error).with_context(hint),
        }
    }

    /// A sub-folder, created if needed.
    pub fn dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        let dir = self.root.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(dir)
    }

    /// A file directly in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }
}

/// Reads a JSON state file; `None` if there is none.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Option<T>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
    };
    let value = serde_json::from_slice(&text).with_context(|| {
        format!("{} is damaged; move it away or choose another folder, nothing was overwritten", path.display())
    })?;
    Ok(Some(value))
}

/// Writes a JSON state file: whole or not at all, durable when this returns.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> anyhow::Result<()> {
    let shown = || format!("cannot write {}", path.display());
    let fresh = path.with_extension("new");
    let mut file = fs::File::create(&fresh).with_context(shown)?;
    file.write_all(&serde_json::to_vec_pretty(value)?).with_context(shown)?;
    file.sync_all().with_context(shown)?;
    fs::rename(&fresh, path).with_context(shown)?;
    let parent = path.parent().context("a state file is in a folder")?;
    fs::File::open(parent).and_then(|dir| dir.sync_all()).with_context(shown)
}

/// Reads the key in `path`, or makes one there that only its owner may read.
pub fn load_or_create_key(path: &Path) -> anyhow::Result<PrivateKeySigner> {
    if !path.exists() {
        let mut bytes = [0u8; 32];
        getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("no randomness for a new key: {e}"))?;
        // All but a vanishing share of 32-byte strings are valid keys; an invalid one is refused here.
        PrivateKeySigner::from_slice(&bytes).context("the random bytes are no key; try again")?;
        write_secret(path, &hex::encode(bytes))?;
    }
    read_key(path)
}

/// Reads a provider's transport key, or makes one in a file that only its owner may read.
pub fn load_or_create_transport_secret(path: &Path) -> anyhow::Result<TransportSecret> {
    if !path.exists() {
        let mut seed = [0u8; 32];
        getrandom::fill(&mut seed).map_err(|e| anyhow::anyhow!("no randomness for a new key: {e}"))?;
        write_secret(path, &TransportSecret::from_seed(seed).to_text())?;
    }
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    // A lost key is no loss: a new one is registered at the next start.
    text.trim().parse().with_context(|| format!("{}; without it a new one is made", path.display()))
}

/// Reads the key in `path`.
pub fn read_key(path: &Path) -> anyhow::Result<PrivateKeySigner> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    match text.trim().parse() {
        Ok(key) => Ok(key),
        // The parser's own error may quote the key.
        Err(_) => bail!("{} holds no secp256k1 key in hex; restore it from a backup", path.display()),
    }
}

/// A key for clients that only read: everybody's, and it signs nothing.
pub fn nobody() -> anyhow::Result<PrivateKeySigner> {
    PrivateKeySigner::from_slice(&[1; 32]).context("a constant key")
}

/// Writes a new file that only its owner may read.
pub fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    let shown = || format!("cannot write {}", path.display());
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).with_context(shown)?;
    file.write_all(text.as_bytes()).with_context(shown)?;
    file.sync_all().with_context(shown)
}

/// What `assay up` must know to resume a folder.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub struct NetworkFile {
    /// Format of this file.
    pub version: u32,
    /// Contracts that were deployed.
    pub addresses: assay_chain::NetworkAddresses,
}

impl NetworkFile {
    /// The format that this release writes.
    pub const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_folder_has_one_user_at_a_time() {
        let dir = tempfile::tempdir().expect("a folder");
        let first = State::open(dir.path()).expect("the first user");
        let error = State::open(dir.path()).err().expect("no second user").to_string();
        assert!(error.contains("in use by another assay up"), "{error}");
        drop(first);
        State::open(dir.path()).expect("the next user");
    }

    #[test]
    fn a_key_is_made_once_for_its_owner_only() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a.key");
        let first = load_or_create_key(&path).expect("a key is made");
        let again = load_or_create_key(&path).expect("the key is read");
        assert_eq!(first.address(), again.address());
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_key_is_reported_without_its_text_and_kept() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a.key");
        fs::write(&path, "deadbeef-secret").expect("a file is written");
        let error = format!("{:#}", load_or_create_key(&path).expect_err("no key"));
        assert!(error.contains("a.key") && !error.contains("deadbeef"), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("still there"), "deadbeef-secret");
    }

    #[test]
    fn json_is_written_whole_and_damage_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("x.json");
        assert_eq!(read_json::<Vec<u32>>(&path).expect("no file is no error"), None);
        write_json(&path, &vec![1, 2]).expect("written");
        assert_eq!(read_json::<Vec<u32>>(&path).expect("read"), Some(vec![1, 2]));
        fs::write(&path, "[1,").expect("a file is written");
        assert!(format!("{:#}", read_json::<Vec<u32>>(&path).expect_err("damaged")).contains("x.json is damaged"));
    }
}
