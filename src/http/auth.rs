//! Known parties: whoever has one of the secrets.

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use actix_web::HttpRequest;
use actix_web::http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use thiserror::Error;

use super::Problem;

/// Why the secrets can't be read.
#[derive(Debug, Error)]
pub enum SecretsError {
    /// The folder, or a file in it, can't be read.
    #[error("{path}: {error}")]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// There is none, so that nobody could ask for anything.
    #[error("{0}: has no *.secret file with a secret in it")]
    None(PathBuf),
}

/// The secrets that callers may use: one for each file `*.secret`, so that a new one can be
/// handed out before the old one is withdrawn. Only their hashes are kept.
#[derive(Clone)]
pub struct Secrets {
    dir: PathBuf,
    hashes: Arc<RwLock<Vec<[u8; 32]>>>,
}

impl Secrets {
    /// Reads the folder.
    ///
    /// # Errors
    /// [`SecretsError`] when it can't be read, or has no secret.
    pub fn read(dir: &Path) -> Result<Self, SecretsError> {
        let hashes = Arc::new(RwLock::new(read(dir)?));
        Ok(Self { dir: dir.to_owned(), hashes })
    }

    /// Reads the folder again; what was known stays in force when that fails.
    ///
    /// # Errors
    /// As for [`Secrets::read`].
    pub fn reload(&self) -> Result<(), SecretsError> {
        let fresh = read(&self.dir)?;
        if let Ok(mut hashes) = self.hashes.write() {
            *hashes = fresh;
        }
        Ok(())
    }

    /// Whether this is one of the secrets, in a time that tells nothing about them.
    #[must_use]
    pub fn admit(&self, candidate: &str) -> bool {
        let candidate: [u8; 32] = Sha256::digest(candidate).into();
        let Ok(hashes) = self.hashes.read() else { return false };
        let any = hashes.iter().fold(Choice::from(0), |any, hash| any | hash.ct_eq(&candidate));
        any.into()
    }

    /// Admits a request by its `Authorization: Bearer` (RFC 6750, section 2.1).
    pub(super) fn admit_bearer(&self, request: &HttpRequest) -> Result<(), Problem> {
        let given = request
            .headers()
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        match given {
            Some(token) if self.admit(token) => Ok(()),
            _ => Err(Problem::InvalidSecret),
        }
    }
}

fn read(dir: &Path) -> Result<Vec<[u8; 32]>, SecretsError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| SecretsError::Io { path, error }
    };
    let mut hashes = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed(dir))? {
        let path = entry.map_err(failed(dir))?.path();
        if path.extension().is_none_or(|extension| extension != "secret") {
            continue;
        }
        let text = std::fs::read_to_string(&path).map_err(failed(&path))?;
        let secret = text.lines().next().unwrap_or_default().trim();
        if !secret.is_empty() {
            hashes.push(Sha256::digest(secret).into());
        }
    }
    if hashes.is_empty() { Err(SecretsError::None(dir.to_owned())) } else { Ok(hashes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_new_overlap_while_one_is_rotated() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Secrets::read(dir.path()), Err(SecretsError::None(_))));
        std::fs::write(dir.path().join("provision.secret"), "old\n").unwrap();
        std::fs::write(dir.path().join("instance.key"), "no secret\n").unwrap();
        std::fs::write(dir.path().join("empty.secret"), "\n").unwrap();
        let secrets = Secrets::read(dir.path()).unwrap();
        assert!(secrets.admit("old"));
        assert!(!secrets.admit("") && !secrets.admit("no secret") && !secrets.admit("old\n"));
        std::fs::write(dir.path().join("next.secret"), "new\n").unwrap();
        secrets.reload().unwrap();
        assert!(secrets.admit("old") && secrets.admit("new"));
        std::fs::remove_file(dir.path().join("provision.secret")).unwrap();
        secrets.reload().unwrap();
        assert!(!secrets.admit("old") && secrets.admit("new"));
        std::fs::remove_file(dir.path().join("next.secret")).unwrap();
        assert!(secrets.reload().is_err());
        assert!(secrets.admit("new"), "a mistake in the folder locks nobody out");
    }
}
