//! Where things lie under `--dir`.

use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::error::EmbeddedError;

/// `sun_path` has 108 bytes, the last of them a zero.
const SOCKET_PATH_MAX: usize = 107;
/// HAProxy binds a socket under a temporary name before it renames it, and keeps room for that
/// (seen on 2.6: 97 works, 98 does not).
const HAPROXY_SOCKET_PATH_MAX: usize = 97;
/// What a path in haproxy.cfg or in `haproxy -S` must not hold, besides white space.
const REFUSED: &str = "#\"'\\{}(),$%";

/// Who owns the cluster, and the tables in it.
const OWNER: &str = "haas";

/// Where things lie under `--dir`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// Makes `dir` absolute; it need not exist yet.
    ///
    /// # Errors
    /// When a socket below it would have too long a path, or HAProxy could not be given it.
    pub fn new(dir: &Path) -> Result<Self, EmbeddedError> {
        let absolute = std::path::absolute(dir).map_err(EmbeddedError::file("can't find", dir))?;
        let layout = Self { dir: resolve(&absolute) };
        let odd = |c: char| c.is_control() || c.is_whitespace() || REFUSED.contains(c);
        // What is no UTF-8 shows as the replacement character, and is refused as such.
        let text = layout.dir.to_string_lossy();
        if let Some(character) = text.chars().find(|c| odd(*c) || *c == char::REPLACEMENT_CHARACTER) {
            return Err(EmbeddedError::PathCharacter { path: layout.dir.clone(), character });
        }
        for (path, limit) in [
            (layout.postgres_socket(), SOCKET_PATH_MAX),
            (layout.control_socket(), SOCKET_PATH_MAX),
            (layout.master_socket(), HAPROXY_SOCKET_PATH_MAX),
            (layout.stats_socket(), HAPROXY_SOCKET_PATH_MAX),
        ] {
            let bytes = path.as_os_str().as_bytes().len();
            if bytes > limit {
                return Err(EmbeddedError::PathTooLong { path, bytes, limit });
            }
        }
        Ok(layout)
    }

    /// The folder itself.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The folder of the sockets; only its owner gets in, which is what protects them.
    fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    pub(super) fn postgres_dir(&self) -> PathBuf {
        self.dir.join("postgres")
    }

    /// The cluster.
    #[must_use]
    pub fn postgres_data(&self) -> PathBuf {
        self.postgres_dir().join("data")
    }

    /// Where Postgres' socket lies.
    #[must_use]
    pub fn postgres_socket_dir(&self) -> PathBuf {
        self.run_dir()
    }

    /// The socket that Postgres makes there.
    pub(super) fn postgres_socket(&self) -> PathBuf {
        self.postgres_socket_dir().join(".s.PGSQL.5432")
    }

    /// haproxy.cfg and routes.map.
    #[must_use]
    pub fn haproxy_dir(&self) -> PathBuf {
        self.dir.join("haproxy")
    }

    pub(super) fn haproxy_cfg(&self) -> PathBuf {
        self.haproxy_dir().join("haproxy.cfg")
    }

    /// HAProxy's master.
    #[must_use]
    pub fn master_socket(&self) -> PathBuf {
        self.run_dir().join("master.sock")
    }

    /// HAProxy's worker.
    #[must_use]
    pub fn stats_socket(&self) -> PathBuf {
        self.run_dir().join("stats.sock")
    }

    /// The control API.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.run_dir().join("api.sock")
    }

    /// Files with mode 0600.
    #[must_use]
    pub fn secrets_dir(&self) -> PathBuf {
        self.dir.join("secrets")
    }

    /// Tenants' data that was packed away.
    #[must_use]
    pub fn archive_dir(&self) -> PathBuf {
        self.dir.join("archive")
    }

    /// Certificates, the operator's and the local CA's.
    #[must_use]
    pub fn tls_dir(&self) -> PathBuf {
        self.dir.join("tls")
    }

    /// The local CA's certificate, for whoever is to trust it.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.tls_dir().join("ca.pem")
    }

    /// postgres.log and haproxy.log, each with one older file beside it.
    #[must_use]
    pub fn log_dir(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub(super) fn postgres_log(&self) -> PathBuf {
        self.log_dir().join("postgres.log")
    }

    pub(super) fn haproxy_log(&self) -> PathBuf {
        self.log_dir().join("haproxy.log")
    }

    /// Locked as long as a `haas up` runs.
    pub(super) fn lock_file(&self) -> PathBuf {
        self.dir.join("haas.lock")
    }

    /// The pid of the `haas up` that holds the folder; see [`super::DirLock::holder`] for whether
    /// it still lives.
    #[must_use]
    pub fn server_pid_file(&self) -> PathBuf {
        self.dir.join("haas.pid")
    }

    /// What the running `haas up` was started with, for the other commands.
    #[must_use]
    pub fn settings_file(&self) -> PathBuf {
        self.dir.join("up.toml")
    }

    /// The connection string of the database `haas`, for a server. It holds no secret: whoever can
    /// open the socket is let in.
    #[must_use]
    pub fn database_url(&self) -> String {
        self.url_of("haas", "haas_server")
    }

    /// The same for its owner, who may change the schema.
    #[must_use]
    pub fn owner_url(&self) -> String {
        self.url_of("haas", OWNER)
    }

    /// The same for the owner and another database of the cluster.
    pub(super) fn owner_url_of(&self, database: &str) -> String {
        self.url_of(database, OWNER)
    }

    fn url_of(&self, database: &str, role: &str) -> String {
        let mut host = String::new();
        for byte in self.postgres_socket_dir().as_os_str().as_bytes() {
            if byte.is_ascii_alphanumeric() || b"/._-".contains(byte) {
                host.push(char::from(*byte));
            } else {
                let _ = write!(host, "%{byte:02X}");
            }
        }
        format!("postgresql:///{database}?host={host}&user={role}&application_name=haas")
    }

    /// Makes the folders; those with secrets, data or sockets are for their owner only.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn create(&self) -> Result<(), EmbeddedError> {
        for dir in [self.dir.clone(), self.haproxy_dir(), self.tls_dir()] {
            fs::create_dir_all(&dir).map_err(EmbeddedError::file("can't make", &dir))?;
        }
        for dir in [self.run_dir(), self.postgres_dir(), self.secrets_dir(), self.log_dir()] {
            fs::create_dir_all(&dir).map_err(EmbeddedError::file("can't make", &dir))?;
            fs::set_permissions(&dir, Permissions::from_mode(0o700))
                .map_err(EmbeddedError::file("can't set the mode of", &dir))?;
        }
        Ok(())
    }
}

/// Follows symlinks as far as the path exists, so that one folder has one name.
fn resolve(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (ancestor.canonicalize(), path.strip_prefix(ancestor)) {
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    path.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_no_socket_fits_under_is_refused() {
        let longest = format!("/{}", "x".repeat(HAPROXY_SOCKET_PATH_MAX - "//run/master.sock".len()));
        assert!(Layout::new(Path::new(&longest)).is_ok());
        let error = Layout::new(Path::new(&format!("{longest}x"))).unwrap_err();
        assert!(matches!(error, EmbeddedError::PathTooLong { bytes: 98, limit: 97, .. }), "{error}");
        assert!(error.to_string().contains("shorter --dir"), "{error}");
    }

    #[test]
    fn a_folder_that_haproxy_cfg_cannot_hold_is_refused() {
        for odd in ["/a b", "/a\nb", "/a#b", "/a,b", "/a(b", "/a\"b", "/a\u{a0}b", "/$a"] {
            let error = Layout::new(Path::new(odd)).unwrap_err();
            assert!(matches!(error, EmbeddedError::PathCharacter { .. }), "{odd}: {error}");
        }
        assert!(Layout::new(Path::new("/ä-b_c.d@e+f")).is_ok());
    }

    #[test]
    fn one_folder_has_one_name() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
        let straight = Layout::new(&dir.path().join("var")).unwrap();
        assert_eq!(straight, Layout::new(&dir.path().join("link/var")).unwrap());
        assert_eq!(straight, Layout::new(&dir.path().join("link/./var/")).unwrap());
    }

    #[test]
    fn the_database_url_is_escaped() {
        let layout = Layout::new(Path::new("/ä&b")).unwrap();
        let url = "postgresql:///haas?host=/%C3%A4%26b/run&user=haas_server&application_name=haas";
        assert_eq!(layout.database_url(), url);
    }
}
