//! Known parties: who may ask the control API for what, and with which keys.
//!
//! A folder says it. Each file `*.secret` holds one key, in its first line; its name without the
//! ending is the key's id, and what of that comes before the first dot is the client's: `appmaker.secret`
//! and `appmaker.2026-12.secret` are two keys of the client `appmaker`, so that a new one can be handed
//! out before the old one is withdrawn. Each file `*.jwks` holds public keys, whose tokens let somebody act
//! for one user; it is named in the same way. A file `<client>.toml` may say what the client may do; without one it
//! may do everything, as the one secret of a small installation does:
//!
//! ```toml
//! rights = ["provision", "deprovision", "read", "sso"]
//! usernames = ["alice", "team-*"]
//! ```

mod jwks;
mod policy;
mod token;
mod verifier;

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;

pub use policy::{Policy, Right, UsernamePattern, Usernames};
use token::TokenKey;
pub use token::{Grant, TokenError};

/// How long a key's id may be.
const ID_MAX: usize = 64;
/// A key that is shorter can be guessed.
pub const KEY_MIN: usize = 16;

/// Why the keys can't be read.
#[derive(Debug, Error)]
pub enum ClientsError {
    /// The folder can't be read.
    #[error("{path}: {error}")]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// There is none, so that nobody could ask for anything.
    #[error("{0}: has no *.secret file with a secret in it, and no *.jwks")]
    None(PathBuf),
}

/// A party that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// What the operator calls it.
    pub id: String,
    /// What it may do.
    pub policy: Policy,
}

/// One of a client's keys.
#[derive(Clone)]
pub struct Key {
    /// Its name, which is no secret.
    pub id: String,
    /// Whose it is.
    pub client: Arc<Client>,
    secret: Arc<[u8]>,
    hash: [u8; 32],
}

impl Key {
    /// Its bytes, for a signature's HMAC.
    #[must_use]
    pub fn secret(&self) -> &[u8] {
        &self.secret
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("id", &self.id).field("client", &self.client.id).finish_non_exhaustive()
    }
}

/// Which key, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyName {
    /// Its name, which is no secret.
    pub id: String,
    /// Whose it is.
    pub client: Arc<Client>,
}

/// The keys, and what is wrong with files of the folder.
#[derive(Default)]
struct Known {
    keys: Vec<Key>,
    token_keys: Vec<TokenKey>,
    mistakes: Vec<String>,
}

/// The known parties; cheap to clone, and read again when the folder has changed.
#[derive(Clone)]
pub struct Clients {
    dir: PathBuf,
    known: Arc<RwLock<Arc<Known>>>,
}

impl Clients {
    /// Reads the folder.
    ///
    /// # Errors
    /// [`ClientsError`] when it can't be read, or has no key.
    pub fn read(dir: &Path) -> Result<Self, ClientsError> {
        let known = Arc::new(RwLock::new(Arc::new(read(dir)?)));
        Ok(Self { dir: dir.to_owned(), known })
    }

    /// Reads the folder again. A key that was taken away is in force no more, also the last one; only when
    /// the folder itself can't be read does what was known stay.
    ///
    /// # Errors
    /// As for [`Clients::read`].
    pub fn reload(&self) -> Result<(), ClientsError> {
        let (fresh, outcome) = match read(&self.dir) {
            Ok(fresh) => (fresh, Ok(())),
            Err(none @ ClientsError::None(_)) => (Known::default(), Err(none)),
            Err(error) => return Err(error),
        };
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
        outcome
    }

    fn known(&self) -> Arc<Known> {
        Arc::clone(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The key that this is, found in a time that tells nothing about any of them.
    #[must_use]
    pub fn admit(&self, candidate: &str) -> Option<Key> {
        let candidate: [u8; 32] = Sha256::digest(candidate).into();
        let known = self.known();
        // All of them are compared, whichever it is.
        let matching: Vec<&Key> = known.keys.iter().filter(|key| key.hash.ct_eq(&candidate).into()).collect();
        matching.first().map(|key| (*key).clone())
    }

    /// The key of this id.
    #[must_use]
    pub fn key(&self, id: &str) -> Option<Key> {
        self.known().keys.iter().find(|key| key.id == id).cloned()
    }

    /// Every key, in the order of their names.
    #[must_use]
    pub fn keys(&self) -> Vec<KeyName> {
        let known = self.known();
        let secrets = known.keys.iter().map(|key| (&key.id, &key.client));
        let of_tokens = known.token_keys.iter().map(|key| (&key.id, &key.client));
        let all = secrets.chain(of_tokens);
        let mut names: Vec<KeyName> =
            all.map(|(id, client)| KeyName { id: id.clone(), client: Arc::clone(client) }).collect();
        names.sort_by(|one, other| one.id.cmp(&other.id));
        names
    }

    /// What is wrong with files of the folder, one line each; whatever they are about is not in force.
    #[must_use]
    pub fn mistakes(&self) -> Vec<String> {
        self.known().mistakes.clone()
    }
}

fn read(dir: &Path) -> Result<Known, ClientsError> {
    verifier::install();
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| ClientsError::Io { path, error }
    };
    let mut known = Known::default();
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed(dir))? {
        paths.push(entry.map_err(failed(dir))?.path());
    }
    paths.sort();
    for path in &paths {
        let take = match path.extension().and_then(|extension| extension.to_str()) {
            Some("secret") => take_secret,
            Some("jwks") => take_public_keys,
            _ => continue,
        };
        let name = path.file_stem().and_then(|stem| stem.to_str()).filter(|stem| is_id(stem));
        let Some(name) = name else {
            known.mistakes.push(format!("{}: a key's name has letters, digits and . _ - alone", path.display()));
            continue;
        };
        let read = fs::read_to_string(path).and_then(|text| Ok((text, fs::metadata(path)?.permissions().mode())));
        let (text, mode) = match read {
            Ok(read) => read,
            // Not in force, and in nobody else's way.
            Err(error) => {
                known.mistakes.push(format!("{}: {error}", path.display()));
                continue;
            }
        };
        if text.trim().is_empty() {
            // A file that is being written; the next look finds it whole.
            continue;
        }
        let client = client_of(name).unwrap_or(name);
        match Policy::read(&dir.join(policy_file(client))) {
            Ok(policy) => {
                let client = Arc::new(Client { id: client.to_owned(), policy });
                let mistakes = take(&mut known, name, &client, &text, mode);
                known.mistakes.extend(mistakes.into_iter().map(|mistake| format!("{}: {mistake}", path.display())));
            }
            // Rights that can't be read are no rights.
            Err(error) => known.mistakes.push(format!("the client {client} is let in no more: {error}")),
        }
    }
    known.mistakes.dedup();
    if known.keys.is_empty() && known.token_keys.is_empty() && known.mistakes.is_empty() {
        return Err(ClientsError::None(dir.to_owned()));
    }
    Ok(known)
}

/// What is wrong with a secret, which counts all the same.
fn take_secret(known: &mut Known, name: &str, client: &Arc<Client>, text: &str, mode: u32) -> Vec<String> {
    let secret = text.lines().next().unwrap_or_default().trim();
    if secret.is_empty() {
        return Vec::new();
    }
    let mut mistakes = Vec::new();
    if mode & 0o077 != 0 {
        mistakes.push("others may read it (chmod 600)".to_owned());
    }
    if secret.len() < KEY_MIN {
        mistakes.push(format!("shorter than {KEY_MIN} characters: it can be guessed"));
    }
    known.keys.push(Key {
        id: name.to_owned(),
        client: Arc::clone(client),
        hash: Sha256::digest(secret).into(),
        secret: secret.as_bytes().into(),
    });
    mistakes
}

/// What is wrong with a set of public keys; those that can be used count.
fn take_public_keys(known: &mut Known, name: &str, client: &Arc<Client>, text: &str, mode: u32) -> Vec<String> {
    // Whoever may write it may let himself in.
    if mode & 0o022 != 0 {
        return vec!["others may write it (chmod 600): it does not count".to_owned()];
    }
    let (keys, mistakes) = jwks::parse(text);
    known.token_keys.extend(keys.into_iter().map(|public| TokenKey {
        id: format!("{name}#{}", public.kid),
        client: Arc::clone(client),
        public,
    }));
    mistakes
}

/// What is wrong with a set of public keys, one line each; nothing, if all of them can be used.
#[must_use]
pub fn public_key_mistakes(text: &str) -> Vec<String> {
    jwks::parse(text).1
}

/// What the names of files with keys end in.
pub const KEY_ENDINGS: [&str; 2] = ["secret", "jwks"];

/// The file with a client's first key, or with one that has a name beside it; its ending is one of
/// [`KEY_ENDINGS`].
#[must_use]
pub fn key_file(client: &str, key: Option<&str>, ending: &str) -> String {
    match key {
        Some(key) => format!("{client}.{key}.{ending}"),
        None => format!("{client}.{ending}"),
    }
}

/// The client that a key of this name belongs to, if it can be the name of one.
#[must_use]
pub fn client_of(key: &str) -> Option<&str> {
    is_id(key).then(|| key.split('.').next().unwrap_or(key))
}

/// The file with what a client may do.
#[must_use]
pub fn policy_file(client: &str) -> String {
    format!("{client}.toml")
}

/// Whether this can be a client's id, or the name of one of its keys.
///
/// # Errors
/// What is wrong with it, in a few words.
pub fn check_id(text: &str) -> Result<(), &'static str> {
    // A dot is what stands between the two.
    if is_id(text) && !text.contains('.') && text.len() <= ID_MAX / 2 {
        Ok(())
    } else {
        Err("must have letters, digits, - and _ alone, and at most 32 of them")
    }
}

fn is_id(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=ID_MAX).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::name::Username;

    fn write(dir: &Path, name: &str, text: &str) {
        let path = dir.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    #[test]
    fn old_and_new_overlap_while_one_is_rotated() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Clients::read(dir.path()), Err(ClientsError::None(_))));
        write(dir.path(), "provision.secret", "old and long enough\n");
        write(dir.path(), "instance.key", "no secret\n");
        write(dir.path(), "empty.secret", "\n");
        let clients = Clients::read(dir.path()).unwrap();
        assert_eq!(clients.admit("old and long enough").unwrap().client.id, "provision");
        for wrong in ["", "usernames = [\"alice\"]", "", "no secret", "old and long enough\n"] {
            assert!(clients.admit(wrong).is_none(), "{wrong:?}");
        }
        write(dir.path(), "provision.2.secret", "new and long enough\n");
        clients.reload().unwrap();
        let new = clients.admit("new and long enough").unwrap();
        assert_eq!((new.id.as_str(), new.client.id.as_str()), ("provision.2", "provision"));
        assert!(clients.admit("old and long enough").is_some());
        fs::remove_file(dir.path().join("provision.secret")).unwrap();
        clients.reload().unwrap();
        assert!(clients.admit("old and long enough").is_none() && clients.key("provision").is_none());
        fs::remove_file(dir.path().join("provision.2.secret")).unwrap();
        std::fs::create_dir(dir.path().join("folder.secret")).unwrap();
        assert!(clients.reload().is_ok());
        assert!(clients.admit("new and long enough").is_none(), "the last one can be taken away, too");
        assert!(clients.mistakes()[0].contains("folder.secret"), "{:?}", clients.mistakes());
        std::fs::remove_dir(dir.path().join("folder.secret")).unwrap();
        assert!(matches!(clients.reload(), Err(ClientsError::None(_))));
        write(dir.path(), "provision.secret", "old and long enough\n");
        clients.reload().unwrap();
        std::fs::rename(dir.path(), dir.path().with_extension("away")).unwrap();
        assert!(clients.reload().is_err());
        assert!(clients.admit("old and long enough").is_some(), "a folder that is away locks nobody out");
        std::fs::rename(dir.path().with_extension("away"), dir.path()).unwrap();
        assert!(!format!("{new:?}").contains("long enough"));
    }

    #[test]
    fn a_policy_bounds_its_client_and_one_that_cant_be_read_lets_nobody_in() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "all.secret", "0123456789abcdef");
        write(dir.path(), "some.secret", "fedcba9876543210");
        write(dir.path(), "some.toml", "rights = [\"read\"]\nusernames = [\"alice\", \"team-*\"]");
        let clients = Clients::read(dir.path()).unwrap();
        let policy = |id: &str| clients.key(id).unwrap().client.policy.clone();
        assert!(policy("all").allows(Right::Admin) && policy("all").usernames.permits(&Username::parse("x").unwrap()));
        assert!(policy("some").allows(Right::Read) && !policy("some").allows(Right::Provision));
        for (name, may) in [("alice", true), ("alice2", false), ("team-1", true), ("team", false), ("bob", false)] {
            assert_eq!(policy("some").usernames.permits(&Username::parse(name).unwrap()), may, "{name}");
        }
        for wrong in
            ["rights = [\"fly\"]", "right = []", "rights = 1", "usernames = [\"*x\"]", "usernames = [\"A b\"]", "{"]
        {
            write(dir.path(), "some.toml", wrong);
            clients.reload().unwrap();
            assert!(clients.key("some").is_none() && clients.key("all").is_some(), "{wrong}");
            assert!(clients.mistakes()[0].contains("some.toml"), "{:?}", clients.mistakes());
        }
    }

    #[test]
    fn what_others_may_read_or_guess_is_told() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "short.secret", "short");
        write(dir.path(), "a b.secret", "0123456789abcdef");
        fs::write(dir.path().join("open.secret"), "0123456789abcdef").unwrap();
        fs::set_permissions(dir.path().join("open.secret"), fs::Permissions::from_mode(0o644)).unwrap();
        let clients = Clients::read(dir.path()).unwrap();
        assert_eq!(clients.keys().len(), 2);
        let mistakes = clients.mistakes().join("\n");
        for word in ["short.secret: shorter", "a b.secret: a key's name", "open.secret: others may read"] {
            assert!(mistakes.contains(word), "{mistakes}");
        }
    }
}
