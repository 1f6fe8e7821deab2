//! A disk that is full.

use super::*;
use crate::instance::storage::Limits;

/// A folder that holds 64 KiB.
struct Small(TempDir);

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_named_and_leaves_nothing() {
    let small = tempfile::tempdir().unwrap();
    let mount =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "haas"]).arg(small.path()).output().unwrap();
    if !mount.status.success() {
        eprintln!("skipped, since mount is refused: {}", String::from_utf8_lossy(&mount.stderr));
        return;
    }
    let small = Small(small);
    let folder =
        Folder { outer: tempfile::tempdir().unwrap(), archives: Archives::new(small.0.path().join("archives")) };
    let archive = folder.store(&tar("data", &tree())).await.unwrap();
    let mut noise = vec![0; 500_000];
    rand::fill(&mut noise[..]);
    let big = tar("data", &[tree().remove(0), file(b"noise", &noise)]);
    let error = folder.store(&big).await.unwrap_err();
    assert!(
        matches!(&error, ArchiveError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull),
        "{error}"
    );
    assert!(error.to_string().contains("writing ") && error.to_string().contains("No space left"), "{error}");
    assert_eq!(folder.names(), [archive.file.as_str()]);
    folder.archives.verify(&archive).await.unwrap();

    let elsewhere = Folder::new();
    let big = elsewhere.store(&big).await.unwrap();
    let from = elsewhere.archives.dir().join(&big.file);
    let error = folder.archives.import(&from, "big", Limits::NONE, |_| {}).await.unwrap_err();
    assert!(matches!(&error, ArchiveError::Io { .. }), "{error}");
    let error = elsewhere.archives.export(&big, &small.0.path().join("out"), |_| {}).await.unwrap_err();
    assert!(matches!(&error, ArchiveError::Io { .. }), "{error}");
    assert_eq!(fs::read_dir(small.0.path()).unwrap().count(), 1);
    assert_eq!(folder.names(), [archive.file.as_str()]);
}
