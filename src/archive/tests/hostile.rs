//! Files that somebody else has made.

use std::io::Write;

use super::*;
use crate::instance::storage::Limits;

/// An archive of these entries, whole as far as zstd can tell.
fn forge(entries: &[(&str, tar::EntryType, &[u8])]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    for (path, kind, content) in entries {
        let mut header = tar::Header::new_gnu();
        let (path, link) = path.split_once(" -> ").unwrap_or((path, ""));
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(*kind);
        if matches!(kind, tar::EntryType::Char | tar::EntryType::Block) {
            header.set_device_major(1).unwrap();
            header.set_device_minor(5).unwrap();
        }
        header.set_mode(0o644);
        header.set_uid(1000);
        header.set_gid(1000);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        header.set_cksum();
        encoder.write_all(header.as_bytes()).unwrap();
        encoder.write_all(content).unwrap();
        encoder.write_all(&vec![0; content.len().next_multiple_of(512) - content.len()]).unwrap();
    }
    entries::finish(&mut encoder).unwrap();
    encoder.finish().unwrap()
}

async fn refusal(bytes: &[u8]) -> String {
    let folder = Folder::new();
    let from = folder.outside("foreign");
    fs::write(&from, bytes).unwrap();
    let error = folder.archives.import(&from, "foreign", Limits::NONE, |_| {}).await.unwrap_err();
    assert_eq!(folder.names(), [""; 0]);
    let named = matches!(&error, ArchiveError::Corrupt { file, .. } | ArchiveError::Truncated { file, .. } if *file == from.display().to_string());
    assert!(named, "{error}");
    error.to_string()
}

#[tokio::test]
async fn what_is_no_archive_is_refused() {
    use tar::EntryType::{Directory, GNULongName, Link, Regular, Symlink, XHeader};
    let good = serde_json::to_vec(&header()).unwrap();
    let newer = String::from_utf8(good.clone()).unwrap().replace("\"format\":2", "\"format\":3");
    let first = ("haas.json", Regular, good.as_slice());
    let root = ("data/", Directory, &b""[..]);
    let wrong = ("haas-checksum.json", Regular, &br#"{"format":1,"digest":"00","entries":1,"bytes":0}"#[..]);
    let long = vec![b'h'; 70_000];
    let endless = vec![b'n'; 2_000_000];
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"no zstd at all".to_vec(), "Unknown frame"),
        (Vec::new(), "cut short"),
        (forge(&[]), "empty"),
        (forge(&[root]), "does not begin with haas.json"),
        (forge(&[("haas.json", Regular, newer.as_bytes())]), "its format is 3"),
        (forge(&[("haas.json", Regular, b"{\"format\":2}")]), "missing field"),
        (forge(&[("haas.json", Regular, &long)]), "longer than 64 KiB"),
        (forge(&[first, root]), "does not end with haas-checksum.json"),
        (forge(&[first, wrong]), "no folder"),
        (forge(&[first, root, wrong]), "is not what its haas-checksum.json says"),
        (forge(&[first, root, wrong, wrong]), "goes on after"),
        (forge(&[first, ("data/x", Regular, b"x")]), "no folder"),
        (forge(&[first, root, ("data/../../etc/passwd", Regular, b"x")]), "leads out"),
        (forge(&[first, root, ("/etc/passwd", Regular, b"x")]), "leads out"),
        (forge(&[first, root, ("database/x", Regular, b"x")]), "outside its root"),
        (forge(&[first, root, ("data/link", Link, b"")]), "leads nowhere"),
        (forge(&[first, root, ("data/link", Symlink, b"")]), "leads nowhere"),
        (forge(&[first, root, ("data/folder/", Directory, b"x")]), "has contents"),
        (forge(&[first, root, ("data/x", tar::EntryType::new(b'?'), b"")]), "unknown kind"),
        (forge(&[first, root, ("././@LongLink", GNULongName, &endless)]), "head is longer"),
        (forge(&[first, root, ("pax", XHeader, &endless)]), "head is longer"),
        (forge(&[first, root, ("pax", XHeader, b"21 path=data/../../x\n"), ("data/x", Regular, b"")]), "leads out"),
        (forge(&[first, root, ("pax", XHeader, b"20 path=data/../../x\n"), ("data/x", Regular, b"")]), "malformed pax"),
        (forge(&[first, root, ("pax", XHeader, b"22 GNU.sparse.major=1\n"), ("data/x", Regular, b"")]), "sparse"),
    ];
    for (number, (bytes, expected)) in cases.iter().enumerate() {
        let said = refusal(bytes).await;
        assert!(said.contains(expected), "case {number}: {said}");
    }
}

/// What would have been written elsewhere, or over something, were it put in place by its names.
#[tokio::test]
async fn what_leads_elsewhere_is_refused_before_anything_is_written() {
    use tar::EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};
    let json = serde_json::to_vec(&header()).unwrap();
    let (first, root) = (("haas.json", Regular, json.as_slice()), ("data/", Directory, &b""[..]));
    let file = |path| (path, Regular, &b"x"[..]);
    let other = |path, kind| (path, kind, &b""[..]);
    let away = other("data/x -> /app", Symlink);
    let cases: [(&[_], &str); 14] = [
        (&[away, file("data/x/start.js")], "in no folder before it"),
        (&[other("data/x -> .", Symlink), file("data/x/start.js")], "in no folder before it"),
        (&[file("data/x"), file("data/x/y")], "in no folder before it"),
        (&[other("data/x", Fifo), file("data/x/y")], "in no folder before it"),
        (&[file("data/x/y")], "in no folder before it"),
        (&[other("data/x/", Directory), file("data/xy/z")], "in no folder before it"),
        (&[other("data/x/", Directory), away], "out of order"),
        (&[away, other("data/x/", Directory)], "out of order"),
        (&[file("data/x"), file("data/x")], "out of order"),
        (&[file("data/y"), file("data/x")], "out of order"),
        (&[other("data/x/", Directory), file("data/y"), file("data/x/z")], "in no folder before it"),
        (&[other("data/x -> data/../../etc/passwd", Link)], "leads out"),
        (&[other("data/x -> etc/passwd", Link)], "outside its root"),
        (&[root], "out of order"),
    ];
    for (number, (entries, expected)) in cases.into_iter().enumerate() {
        let said = refusal(&forge(&[&[first, root], entries].concat())).await;
        assert!(said.contains(expected), "case {number}: {said}");
    }
    for kind in [Char, Block] {
        let said = refusal(&forge(&[first, root, other("data/x", kind)])).await;
        assert!(said.contains("is a device, which no tenant could have made"), "{said}");
    }
}

/// Bytes that are no entry's, wherever they stand in a head.
#[tokio::test]
async fn heads_that_make_no_sense_are_refused() {
    use tar::EntryType::{Directory, Regular, XHeader};
    let json = serde_json::to_vec(&header()).unwrap();
    let (first, root) = (("haas.json", Regular, json.as_slice()), ("data/", Directory, &b""[..]));
    let record = |text: &str| {
        let rest = text.len() + 2;
        let length = if rest + 2 < 100 { rest + 2 } else { rest + 3 };
        format!("{length} {text}\n")
    };
    let sparse = |version: &str| ["GNU.sparse.major=1", version, "GNU.sparse.realsize=9"].map(record).concat();
    let many = [b"2000000\n".as_slice(), &[b'0'; 504]].concat();
    let cases: [(String, &[u8], &str); 13] = [
        (record("mtime=1.x"), b"", "no number"),
        (record("uid=-1"), b"", "should be a number"),
        (record("size=99"), b"x", "two sizes"),
        (record("HAAS.newer=yes"), b"", "does not know"),
        (["SCHILY.xattr.user.a=one", "SCHILY.xattr.user.a=two"].map(record).concat(), b"", "two extended attributes"),
        ("999 path=x\n".to_owned(), b"", "malformed pax"),
        (record("path=data/x")[1..].to_owned(), b"", "malformed pax"),
        (record("GNU.sparse.major=1"), b"", "without a size"),
        (sparse("GNU.sparse.minor=7"), b"0\n", "unknown kind"),
        (sparse("GNU.sparse.minor=0"), b"0\n", "map of its holes"),
        (sparse("GNU.sparse.minor=0"), &many, "holes"),
        (sparse("GNU.sparse.minor=0"), &[b'x'; 512], "makes no sense"),
        (record("GNU.sparse.map=0,1"), b"", "unknown kind"),
    ];
    for (number, (records, content, expected)) in cases.into_iter().enumerate() {
        let forged = forge(&[first, root, ("pax", XHeader, records.as_bytes()), ("data/x", Regular, content)]);
        let said = refusal(&forged).await;
        assert!(said.contains(expected), "case {number}: {said}");
    }
}

#[tokio::test]
async fn a_good_file_that_was_damaged_is_refused_or_just_as_good() {
    let folder = Folder::new();
    let given = tar("data", &tenants());
    let archive = folder.store(&given).await.unwrap();
    let good = fs::read(folder.archives.dir().join(&archive.file)).unwrap();
    let from = folder.outside("foreign");
    for place in (0..good.len()).step_by(good.len() / 40) {
        refusal(&good[..place]).await;
        let mut bad = good.clone();
        bad[place] ^= 1;
        fs::write(&from, &bad).unwrap();
        // A few bits of what zstd writes make no difference: two ways to say the same.
        match folder.archives.import(&from, "foreign", Limits::NONE, |_| {}).await {
            Ok((_, taken)) => assert_eq!(folder.data(&taken).await.unwrap(), given, "at {place}"),
            Err(error) => assert!(
                matches!(error, ArchiveError::Corrupt { .. } | ArchiveError::Truncated { .. }),
                "at {place}: {error}"
            ),
        }
    }
    refusal(&[good.as_slice(), b"more"].concat()).await;
    refusal(&[good.as_slice(), good.as_slice()].concat()).await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    /// Whatever stands in a stream, it is refused, or means one thing: what is written of it is read as the same.
    #[test]
    fn a_stream_of_any_bytes_is_refused_or_means_one_thing(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>(), 0..3_u8), 1..6),
        fix in any::<bool>(),
    ) {
        let mut nodes = tree();
        nodes[TEXT].content.truncate(700);
        let mut stream = tar("data", &nodes);
        for (place, byte, how) in &changes {
            let at = place.index(stream.len());
            match how {
                0 => stream[at] = *byte,
                // A digit for a digit, and so on: what more of it survives.
                1 => stream[at] ^= byte & 7,
                _ => stream[at] = stream[(at + usize::from(*byte) * 64) % stream.len()],
            }
            if fix {
                let header = at - at % 512;
                let mut fixed = tar::Header::new_ustar();
                fixed.as_mut_bytes().copy_from_slice(&stream[header..header + 512]);
                fixed.set_cksum();
                stream[header..header + 512].copy_from_slice(fixed.as_bytes());
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let Ok(read) = Archives::digest(pieces(&stream)).await else { return };
            let folder = Folder::new();
            let archive = folder.store(&stream).await.unwrap();
            assert_eq!(archive.digest, read);
            assert_eq!(digest(&folder.data(&archive).await.unwrap()).await, read);
        });
    }
}
