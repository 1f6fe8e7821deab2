use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use tempfile::TempDir;

use super::super::FORMAT;
use super::super::entries::{Attributes, Kind, Segment, Time};
use super::*;

/// On a disk: in memory, files have neither flags nor every attribute.
fn folder() -> TempDir {
    tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap()
}

fn packed(root: &Path) -> Vec<u8> {
    let mut tar = Vec::new();
    pack(root, &mut tar).unwrap();
    tar
}

fn digest(root: &Path) -> String {
    look(root, FORMAT).unwrap().digest
}

/// A tree as Python makes it, with its own way to all of it: see tests/trees/tree.py.
fn script(arguments: &[&OsStr]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/trees/tree.py");
    let output = Command::new("python3").arg(script).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn random_trees_come_back_as_they_were() {
    for seed in 1..=20 {
        let (from, to) = (folder(), folder());
        let seed = seed.to_string();
        script(&["make".as_ref(), from.path().as_os_str(), seed.as_ref(), "1".as_ref()]);
        let before = script(&["walk".as_ref(), from.path().as_os_str()]);
        unpack(&mut packed(from.path()).as_slice(), to.path()).unwrap();
        let after = script(&["walk".as_ref(), to.path().as_os_str()]);
        assert!(before.lines().count() > 3, "seed {seed}: {before}");
        let different = before.lines().zip(after.lines()).find(|(before, after)| before != after);
        assert!(before == after, "seed {seed}: {different:?}");
        assert_eq!(look(from.path(), FORMAT).unwrap(), look(to.path(), FORMAT).unwrap(), "seed {seed}");
        // Both see the same differences.
        fs::write(to.path().join("one more"), "").unwrap();
        assert_ne!(digest(from.path()), digest(to.path()));
    }
}

/// What it writes is a tar for everybody.
#[test]
fn gnu_tar_unpacks_it() {
    let (from, to) = (folder(), folder());
    let deep = from.path().join("sub").join("n".repeat(150)).join("line\nbreak");
    fs::create_dir_all(deep.parent().unwrap()).unwrap();
    fs::write(&deep, "text").unwrap();
    fs::hard_link(&deep, from.path().join("twin")).unwrap();
    symlink("../..//etc/./passwd", from.path().join("away")).unwrap();
    let sparse = fs::File::create(from.path().join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"content", 1 << 30).unwrap();
    drop(sparse);
    rustix::fs::setxattr(&deep, "user.a=%b", b"line\nbreak\0", rustix::fs::XattrFlags::empty()).unwrap();
    let early = rustix::fs::Timespec { tv_sec: -5, tv_nsec: 250_000_000 };
    let times = rustix::fs::Timestamps { last_access: early, last_modification: early };
    rustix::fs::utimensat(rustix::fs::CWD, &deep, &times, rustix::fs::AtFlags::empty()).unwrap();
    fs::write(to.path().join("tar"), packed(from.path())).unwrap();
    let out = to.path().join("out");
    fs::create_dir(&out).unwrap();
    let unpacked = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "-xpf", "../tar", "--strip-components=1"])
        .current_dir(&out)
        .output()
        .unwrap();
    assert!(unpacked.status.success(), "{}", String::from_utf8_lossy(&unpacked.stderr));
    // The root is not what tar was asked for.
    let times = rustix::fs::Timestamps { last_access: early, last_modification: early };
    for root in [from.path(), &out] {
        fs::set_permissions(root, fs::Permissions::from_mode(0o700)).unwrap();
        rustix::fs::utimensat(rustix::fs::CWD, root, &times, rustix::fs::AtFlags::empty()).unwrap();
    }
    assert_eq!(digest(from.path()), digest(&out));
    assert!(fs::metadata(out.join("sparse")).unwrap().blocks() < 100);
}

/// One entry of a made-up stream.
fn made_up(kind: Kind, path: &str, link: &str, content: &str) -> Vec<u8> {
    let length = content.len() as u64;
    let mut out = Vec::new();
    let mut entry = Entry {
        kind,
        path: path.into(),
        link: link.into(),
        attributes: Attributes { mode: 0o755, mtime: Time { seconds: 1, nanoseconds: 0 }, ..Attributes::default() },
        size: length,
        segments: if length == 0 { vec![] } else { vec![Segment { offset: 0, length }] },
        content: &mut content.as_bytes(),
    };
    entries::put(&mut entry, "data", &mut out, |_, _| {}).unwrap();
    out
}

fn stream(all: &[(Kind, &str, &str, &str)]) -> Vec<u8> {
    let mut out: Vec<u8> =
        all.iter().flat_map(|(kind, path, link, content)| made_up(*kind, path, link, content)).collect();
    entries::finish(&mut out).unwrap();
    out
}

#[test]
fn nothing_is_written_through_a_link() {
    use Kind::{Directory, File, HardLink, Symlink};
    let outside = folder();
    fs::write(outside.path().join("start.js"), "ours").unwrap();
    let away = outside.path().to_str().unwrap();
    let root = (Directory, "", "", "");
    let cases: [&[(Kind, &str, &str, &str)]; 8] = [
        &[root, (Symlink, "x", away, ""), (File, "x/start.js", "", "theirs")],
        &[root, (Symlink, "x", away, ""), (Directory, "x", "", ""), (File, "x/start.js", "", "theirs")],
        &[root, (Directory, "x", "", ""), (Symlink, "x", away, ""), (File, "x/start.js", "", "theirs")],
        &[root, (Symlink, "x", &format!("{away}/start.js"), ""), (File, "x", "", "theirs")],
        &[root, (Symlink, "x", away, ""), (HardLink, "y", "x/start.js", "")],
        &[root, (Symlink, "x", &format!("{away}/start.js"), ""), (HardLink, "y", "x", ""), (File, "y", "", "theirs")],
        &[root, (Symlink, "x", away, ""), (Symlink, "x/y", "theirs", "")],
        &[(Symlink, "", away, ""), (File, "start.js", "", "theirs")],
    ];
    for (number, case) in cases.into_iter().enumerate() {
        let to = folder();
        let error = unpack(&mut stream(case).as_slice(), to.path()).unwrap_err();
        assert!(matches!(error, ArchiveError::Corrupt { .. } | ArchiveError::Unfit { .. }), "{number}: {error}");
        assert_eq!(fs::read_to_string(outside.path().join("start.js")).unwrap(), "ours", "{number}");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "{number}");
        assert!(look(to.path(), FORMAT).unwrap().unfinished || number == 7, "{number}");
    }
    // What each of them is made of is no harm by itself.
    let to = folder();
    let good = stream(&[root, (Directory, "a", "", ""), (File, "a/start.js", "", "theirs"), (Symlink, "x", away, "")]);
    unpack(&mut good.as_slice(), to.path()).unwrap();
    assert!(!look(to.path(), FORMAT).unwrap().unfinished);
}

#[test]
fn a_tree_that_was_not_finished_is_seen_to_be_so() {
    let (from, to) = (folder(), folder());
    script(&["make".as_ref(), from.path().as_os_str(), "7".as_ref(), "3".as_ref()]);
    let tar = packed(from.path());
    for length in (0..tar.len()).step_by(tar.len() / 20 + 1) {
        let to = folder();
        let error = unpack(&mut &tar[..length], to.path()).unwrap_err();
        assert!(matches!(error, ArchiveError::Truncated { .. }), "{length}: {error}");
        assert!(look(to.path(), FORMAT).unwrap().unfinished, "{length}");
    }
    unpack(&mut tar.as_slice(), to.path()).unwrap();
    assert!(!look(to.path(), FORMAT).unwrap().unfinished);
    let error = unpack(&mut tar.as_slice(), to.path()).unwrap_err();
    assert!(matches!(error, ArchiveError::Occupied(_)), "{error}");
    assert_eq!(digest(to.path()), digest(from.path()), "and nothing was changed");
    fs::set_permissions(to.path(), fs::Permissions::from_mode(0o000)).unwrap();
    assert!(!look(to.path(), FORMAT).unwrap().unfinished, "what its owner can do to it is something else");
}

/// Deeper than a process may have folders open.
#[test]
fn folders_inside_each_other_come_back_however_many() {
    let (from, to) = (folder(), folder());
    let make = |name: &str, depth: usize| {
        let mut at = rustix::fs::open(from.path(), folders::FOLDER, rustix::fs::Mode::empty()).unwrap();
        for _ in 0..depth {
            rustix::fs::mkdirat(&at, name, rustix::fs::Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, name, folders::FOLDER, rustix::fs::Mode::empty()).unwrap();
        }
        let times = rustix::fs::Timespec { tv_sec: 7, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: times, last_modification: times };
        rustix::fs::futimens(&at, &times).unwrap();
    };
    make("d", 1500);
    make("e", 1500);
    unpack(&mut packed(from.path()).as_slice(), to.path()).unwrap();
    assert_eq!(digest(from.path()), digest(to.path()));
    let walked = [from.path(), to.path()].map(|root| script(&["walk".as_ref(), root.as_os_str()]));
    assert!(walked[0].lines().count() == 3000 && walked[0] == walked[1]);
}

/// Whatever an archive can't hold is told, and is never left out in silence.
#[test]
fn what_can_not_be_kept_is_refused_by_its_name() {
    let from = folder();
    let refused = |what: &str| {
        let error = pack(from.path(), &mut io::sink()).unwrap_err();
        assert!(matches!(&error, ArchiveError::Unfit { .. }), "{error}");
        assert!(error.to_string().contains(what), "{error}");
        assert_eq!(look(from.path(), FORMAT).unwrap_err().to_string(), error.to_string());
    };
    let file = from.path().join("file");
    fs::write(&file, "x").unwrap();
    let chattr = |flag: &str| Command::new("chattr").arg(flag).arg(&file).status().unwrap().success();
    for (flag, undo, words) in [("+i", "-i", "immutable"), ("+a", "-a", "appended to only")] {
        if !chattr(flag) {
            eprintln!("skipped, since chattr is refused");
            continue;
        }
        let refused = std::panic::catch_unwind(|| refused(words));
        assert!(chattr(undo));
        refused.unwrap();
    }
    // Nested deeper than a path may be long.
    let mut at = rustix::fs::open(from.path(), rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap();
    let name = "n".repeat(250);
    for _ in 0..300 {
        rustix::fs::mkdirat(&at, &name, rustix::fs::Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, &name, rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap();
    }
    refused("longer than 64 KiB");
}
