//! What the tenants' admins are known by: derived from one key, so that it rests nowhere.

use std::fmt;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use thiserror::Error;
use uuid::Uuid;

/// Octets of the key: as long as the hash's output (RFC 2104, section 3).
const KEY_LENGTH: usize = 32;

/// Why the key can't be used.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The file can't be read or made.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file holds something else.
    #[error("{0}: must hold {KEY_LENGTH} bytes in hexadecimal")]
    Malformed(String),
}

/// Keeps what is derived for one purpose apart from an admin password, whose message is 24 bytes long.
const SESSION_SALT: &[u8] = b"haas: salt of the admin's sessions";
/// Octets of a salt, as Hoodie itself makes them.
const SALT_LENGTH: usize = 16;

/// The installation's key for admin passwords. Losing it changes every tenant's password at
/// its next container; its holder can sign on to every tenant.
#[derive(Clone)]
pub struct InstanceKey([u8; KEY_LENGTH]);

impl fmt::Debug for InstanceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InstanceKey(..)")
    }
}

impl InstanceKey {
    /// A key from its bytes.
    #[must_use]
    pub fn new(bytes: [u8; KEY_LENGTH]) -> Self {
        Self(bytes)
    }

    /// Reads the key.
    ///
    /// # Errors
    /// [`KeyError`] when the file can't be read, or holds no key.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|error| KeyError::Io { path: name.clone(), error })?;
        let mut key = [0; KEY_LENGTH];
        hex::decode_to_slice(text.trim(), &mut key).map_err(|_| KeyError::Malformed(name))?;
        Ok(Self(key))
    }

    /// Makes the file with a fresh key, unless it is there.
    ///
    /// # Errors
    /// [`KeyError`] when it can't be written.
    pub fn make(path: &Path) -> Result<(), KeyError> {
        make_secret(path).map_err(|error| KeyError::Io { path: path.display().to_string(), error })
    }

    /// The admin password of one generation of an instance.
    #[must_use]
    pub fn admin_password(&self, instance: Uuid, generation: i64) -> String {
        hex::encode(self.derive(&[], instance, generation))
    }

    /// The salt of the admin's sessions with one generation of an instance: what makes them good
    /// is the same after each start. Not its password's.
    #[must_use]
    pub fn session_salt(&self, instance: Uuid, generation: i64) -> String {
        hex::encode(&self.derive(SESSION_SALT, instance, generation)[..SALT_LENGTH])
    }

    fn derive(&self, purpose: &[u8], instance: Uuid, generation: i64) -> [u8; KEY_LENGTH] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).unwrap_or_else(|_| unreachable!("HMAC takes any key"));
        mac.update(purpose);
        mac.update(instance.as_bytes());
        mac.update(&generation.to_be_bytes());
        mac.finalize().into_bytes().into()
    }
}

/// Makes a file, readable by its owner alone, with 32 random bytes in hexadecimal; leaves one
/// that is there as it is. It appears whole or not at all.
///
/// # Errors
/// What the system says.
pub fn make_secret(path: &Path) -> std::io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let mut bytes = [0; KEY_LENGTH];
    getrandom::fill(&mut bytes)?;
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    writeln!(file, "{}", hex::encode(bytes))?;
    file.sync_all()?;
    // A link fails where a rename would overwrite what another process made meanwhile.
    let linked = fs::hard_link(&temporary, path);
    fs::remove_file(&temporary)?;
    match linked {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn passwords_differ_by_instance_and_generation_and_never_change() {
        let key = InstanceKey::new([7; 32]);
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        assert_eq!(key.admin_password(a, 1), key.admin_password(a, 1));
        assert_ne!(key.admin_password(a, 1), key.admin_password(a, 2));
        assert_ne!(key.admin_password(a, 1), key.admin_password(b, 1));
        // By hand: HMAC-SHA256(07 × 32, 00…01 ‖ 0000000000000001).
        insta::assert_snapshot!(key.admin_password(a, 1));
        assert_eq!(format!("{key:?}"), "InstanceKey(..)");
    }

    #[test]
    fn salts_differ_by_instance_and_generation_and_tell_nothing_of_the_password() {
        let key = InstanceKey::new([7; 32]);
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let salt = key.session_salt(a, 1);
        assert!(salt.len() == 32 && salt == key.session_salt(a, 1));
        assert_ne!(salt, key.session_salt(a, 2));
        assert_ne!(salt, key.session_salt(b, 1));
        assert!(!key.admin_password(a, 1).contains(&salt));
        // By hand: the first 16 bytes of HMAC-SHA256(07 × 32, "haas: salt of the admin's sessions" ‖ 00…01 ‖ 0000000000000001).
        insta::assert_snapshot!(salt);
    }

    #[test]
    fn a_secret_is_made_once_and_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("instance.key");
        InstanceKey::make(&path).unwrap();
        let first = fs::read_to_string(&path).unwrap();
        InstanceKey::make(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), first);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(InstanceKey::read(&path).is_ok());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::write(&path, "short").unwrap();
        assert!(matches!(InstanceKey::read(&path), Err(KeyError::Malformed(_))));
    }
}
