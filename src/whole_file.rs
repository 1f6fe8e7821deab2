//! A file that is written whole or not at all: beside its place, then renamed into it.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// What survives of a file whose writing was answered with success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// A kill of this process. A power cut may leave it torn: for what is compared before it is
    /// relied on, and somebody waits for.
    Process,
    /// A power cut, too. Its name there may still be an older file's until the folder is synced.
    Power,
}

/// Replaces a file, or makes it, with this mode (less the umask). The file in between begins with
/// a dot: HAProxy, which loads every file of a folder of certificates, leaves those out (HAProxy
/// manual, section 5.1, `crt`).
///
/// # Errors
/// The file system's; what was in place stays.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32, durability: Durability) -> io::Result<()> {
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?.to_string_lossy();
    let fresh = path.with_file_name(format!(".{name}.new"));
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh)?;
    file.write_all(content)?;
    if durability == Durability::Power {
        file.sync_all()?;
    }
    fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_a_crash_has_left_is_in_nobodys_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.key");
        fs::write(folder.path().join(".a.key.new"), "torn, and open to all").unwrap();
        fs::set_permissions(folder.path().join(".a.key.new"), fs::Permissions::from_mode(0o644)).unwrap();
        for text in ["one", "another"] {
            replace(&path, text.as_bytes(), 0o600, Durability::Power).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_can_not_be_written_leaves_what_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "one").unwrap();
        // Its place in between is taken by what is no file.
        fs::create_dir(folder.path().join(".a.new")).unwrap();
        assert!(replace(&path, b"another", 0o600, Durability::Process).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
    }
}
