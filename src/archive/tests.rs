use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use futures_util::{StreamExt, stream};
use proptest::prelude::*;
use tempfile::TempDir;

use super::entries::{self, Attributes, Entry, Kind, Segment, Time};
use super::*;
use crate::instance::storage::Limits;

mod disk;
mod hostile;

/// An entry of a made-up tree.
#[derive(Debug, Clone)]
struct Node {
    kind: Kind,
    path: Vec<u8>,
    link: Vec<u8>,
    mode: u32,
    uid: u64,
    content: Vec<u8>,
}

fn node(kind: Kind, path: &[u8], link: &[u8], mode: u32, content: &[u8]) -> Node {
    let (path, link, content) = (path.to_vec(), link.to_vec(), content.to_vec());
    Node { kind, path, link, mode, uid: 1000, content }
}

fn file(path: &[u8], content: &[u8]) -> Node {
    node(Kind::File, path, b"", 0o644, content)
}

/// Something of everything. The root comes first, and all in order.
fn tree() -> Vec<Node> {
    let long = [b"deep/".to_vec(), vec![b'n'; 180]].concat();
    vec![
        node(Kind::Directory, b"", b"", 0o755, b""),
        node(Kind::Symlink, b"away", b"../..//etc/./passwd", 0o777, b""),
        node(Kind::Symlink, b"away-far", &[b"/".to_vec(), vec![b'x'; 150]].concat(), 0o777, b""),
        node(Kind::Directory, b"deep", b"", 0o2750, b""),
        node(Kind::Directory, b"deep/deeper", b"", 0o700, b""),
        file(b"deep/deeper/text", &b"what alice wrote\n".repeat(9000)),
        file(b"deep/empty", b""),
        file(&long, b"a long name"),
        file(b"deep/\xff\xfe not text", b"bytes"),
        file(b"line\nbreak", b"a name of two lines"),
        file(&[b'm'; 95], b"exactly as long as the field, below a root"),
        node(Kind::Fifo, b"pipe", b"", 0o600, b""),
        node(Kind::HardLink, b"same", b"deep/deeper/text", 0o644, b""),
        node(Kind::HardLink, b"same-long", &long, 0o644, b""),
        node(Kind::Socket, b"socket", b"", 0o755, b""),
        node(Kind::File, b"tool", b"", 0o4711, b"#!/bin/sh\n"),
        node(Kind::CharacterDevice, b"zero", b"", 0o666, b""),
        file(&[b"\xff".to_vec(), vec![b'\xfe'; 150]].concat(), b"long, and no text"),
    ]
}

/// Where the file with what alice wrote stands in that.
const TEXT: usize = 5;

/// The same, without what only root could have made.
fn tenants() -> Vec<Node> {
    tree().into_iter().filter(|node| !node.kind.is_device()).collect()
}

fn attributes(node: &Node) -> Attributes {
    let (mtime, device) = (Time { seconds: 1_700_000_000, nanoseconds: 0 }, Default::default());
    let device = if node.kind.is_device() { (1, 5) } else { device };
    Attributes { mode: node.mode, uid: node.uid, gid: 1000, mtime, device, ..Attributes::default() }
}

/// With its content in pieces, if it is to have holes between them.
fn entry<'a>(node: &Node, segments: Vec<Segment>, size: u64, content: &'a mut &[u8]) -> Entry<'a> {
    let (kind, path, link) = (node.kind, node.path.clone(), node.link.clone());
    Entry { kind, path, link, attributes: attributes(node), size, segments, content }
}

fn tar(root: &str, nodes: &[Node]) -> Vec<u8> {
    let mut out = Vec::new();
    for node in nodes {
        let length = node.content.len() as u64;
        let segments = if length == 0 { vec![] } else { vec![Segment { offset: 0, length }] };
        let mut content = node.content.as_slice();
        entries::put(&mut entry(node, segments, length, &mut content), root, &mut out, |_, _| {}).unwrap();
    }
    entries::finish(&mut out).unwrap();
    out
}

/// As it comes by the network: in pieces that have nothing to do with what is in them.
fn pieces(bytes: &[u8]) -> impl Stream<Item = Result<Bytes, String>> + Send + use<> {
    let pieces: Vec<_> = bytes.chunks(1000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    stream::iter(pieces)
}

async fn digest(tar: &[u8]) -> String {
    Archives::digest(pieces(tar)).await.unwrap()
}

fn header() -> Header {
    Header {
        format: FORMAT,
        username: "alice".to_owned(),
        appname: "notes".to_owned(),
        emailaddress: "alice@example.org".to_owned(),
        extra_hosts: vec!["notes.example.org".to_owned()],
        made_at: Utc::now(),
    }
}

struct Folder {
    outer: TempDir,
    archives: Archives,
}

impl Folder {
    fn new() -> Self {
        let outer = tempfile::tempdir().unwrap();
        let archives = Archives::new(outer.path().join("archives"));
        Self { outer, archives }
    }

    async fn store(&self, tar: &[u8]) -> Result<Archive, ArchiveError> {
        self.archives.store("alice-notes", &header(), pieces(tar)).await
    }

    /// The names of all files in it, hidden ones too.
    fn names(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.archives.dir()) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn outside(&self, name: &str) -> PathBuf {
        self.outer.path().join(name)
    }

    async fn data(&self, archive: &Archive) -> Result<Vec<u8>, io::Error> {
        let mut stream = std::pin::pin!(self.archives.data(archive));
        let mut out = Vec::new();
        while let Some(piece) = stream.next().await {
            out.extend_from_slice(&piece?);
        }
        Ok(out)
    }
}

#[tokio::test]
async fn what_goes_in_comes_out() {
    let folder = Folder::new();
    let given = tar("data", &tree());
    let archive = folder.store(&given).await.unwrap();
    assert_eq!(archive.file, "alice-notes.tar.zst");
    folder.archives.verify(&archive).await.unwrap();
    assert_eq!(folder.names(), ["alice-notes.tar.zst"]);
    assert_eq!(archive.digest, digest(&given).await);
    // To the byte: names, modes, owners, times, and where links lead.
    assert_eq!(folder.data(&archive).await.unwrap(), given);
    let other_root = tar(".", &tree());
    assert_eq!(archive.digest, digest(&other_root).await);
    let again = folder.store(&other_root).await.unwrap();
    assert_eq!(again.digest, archive.digest);
    assert_eq!(folder.data(&again).await.unwrap(), given);
    let archive = again;

    let path = folder.archives.dir().join(&archive.file);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(folder.archives.dir()).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(Archives::header(&path).await.unwrap().username, "alice");
    let listed = folder.archives.list().await.unwrap();
    assert_eq!((listed.len(), &listed[0].file, listed[0].bytes), (1, &archive.file, archive.bytes));
    folder.archives.remove(&archive.file).await.unwrap();
    folder.archives.remove(&archive.file).await.unwrap();
    assert_eq!(folder.archives.list().await.unwrap(), []);
}

#[tokio::test]
async fn what_other_programs_write_is_read() {
    let folder = Folder::new();
    let root = folder.outside("data");
    fs::create_dir_all(root.join("sub")).unwrap();
    fs::write(root.join("sub").join("n".repeat(150)), "long").unwrap();
    fs::hard_link(root.join("sub").join("n".repeat(150)), root.join("twin")).unwrap();
    std::os::unix::fs::symlink("sub/./nowhere", root.join("link")).unwrap();
    let pack = |format: &str| {
        let mut command = Command::new("tar");
        command.args(["--sort=name", "--mtime=@1700000000", format, "-cf", "-", "-C"]).arg(folder.outer.path());
        command.arg("data").output().unwrap().stdout
    };
    let (gnu, pax) = (pack("--format=gnu"), pack("--format=pax"));
    assert_eq!(digest(&gnu).await, digest(&pax).await);
}

/// Every kind of thing that an entry has, and what it has of it.
#[tokio::test]
async fn everything_about_an_entry_makes_a_difference() {
    let nodes = tree();
    let same = digest(&tar("data", &nodes)).await;
    let changes: [fn(&mut Node); 7] = [
        |node| node.content[0] ^= 1,
        |node| node.mode = 0o600,
        |node| node.uid = 0,
        |node| node.path.push(b'2'),
        |node| node.content.truncate(5),
        |node| node.content.push(0),
        |node| node.kind = Kind::Fifo,
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut different = nodes.clone();
        change(&mut different[TEXT]);
        if different[TEXT].kind == Kind::Fifo {
            different[TEXT].content.clear();
        }
        assert_ne!(digest(&tar("data", &different)).await, same, "change {number}");
    }
    let mut elsewhere = nodes.clone();
    elsewhere[1].link.push(b'2');
    assert_ne!(digest(&tar("data", &elsewhere)).await, same);
    assert_ne!(digest(&tar("data", &nodes[..nodes.len() - 1])).await, same);
    // And what the nodes of these tests all have alike, of the root, too.
    let with = |number: usize, change: &dyn Fn(&mut Attributes)| {
        let mut out = Vec::new();
        for (at, node) in nodes.iter().enumerate() {
            let length = node.content.len() as u64;
            let segments = if length == 0 { vec![] } else { vec![Segment { offset: 0, length }] };
            let mut content = node.content.as_slice();
            let mut entry = entry(node, segments, length, &mut content);
            if at == number {
                change(&mut entry.attributes);
            }
            entries::put(&mut entry, "data", &mut out, |_, _| {}).unwrap();
        }
        entries::finish(&mut out).unwrap();
        out
    };
    assert_eq!(digest(&with(0, &|_| {})).await, same);
    let changes: [&dyn Fn(&mut Attributes); 8] = [
        &|own| own.gid = 1,
        &|own| own.mode ^= 0o1000,
        &|own| own.mtime.seconds = -1,
        &|own| own.mtime.nanoseconds = 1,
        &|own| own.mtime.seconds = 1 << 34,
        &|own| own.xattrs = vec![(b"user.a".to_vec(), b"b\n".to_vec())],
        &|own| own.xattrs = vec![(b"user.a=b".to_vec(), Vec::new())],
        &|own| own.flags = 0x40,
    ];
    let mut digests = std::collections::HashSet::from([same]);
    for number in [0, TEXT] {
        for (which, change) in changes.iter().enumerate() {
            let other = digest(&with(number, change)).await;
            assert!(digests.insert(other), "entry {number}, change {which}");
        }
    }
    let device = nodes.iter().position(|node| node.kind.is_device()).unwrap();
    assert!(digests.insert(digest(&with(device, &|own| own.device.1 = 7)).await));
}

/// A hole is no other content than its zeros, and takes no room.
#[tokio::test]
async fn holes_are_zeros_that_take_no_room() {
    let stored = |node: &Node, segments: &[(u64, u64)], size: u64, content: &[u8]| {
        let mut out = tar("data", &tree()[..1]);
        out.truncate(out.len() - 1024);
        let segments = segments.iter().map(|&(offset, length)| Segment { offset, length }).collect();
        entries::put(&mut entry(node, segments, size, &mut &content[..]), "data", &mut out, |_, _| {}).unwrap();
        entries::finish(&mut out).unwrap();
        out
    };
    let node = file(b"sparse", b"");
    let zeros = [vec![0; 4096], vec![1; 3], vec![0; 8189]].concat();
    let dense = digest(&stored(&node, &[(0, 12_288)], 12_288, &zeros)).await;
    for (segments, content) in [
        (&[(4096, 3)][..], &zeros[4096..4099]),
        (&[(4096, 8192)], &zeros[4096..]),
        (&[(4000, 99), (10_000, 1)], &[&zeros[4000..4099], &[0]].concat()),
        (&[(4097, 2)], &[1, 1]),
    ] {
        let sparse = stored(&node, segments, 12_288, content);
        let same = digest(&sparse).await == dense;
        assert_eq!(same, segments[0].0 < 4097, "{segments:?}");
        let folder = Folder::new();
        let archive = folder.store(&sparse).await.unwrap();
        assert_eq!(folder.data(&archive).await.unwrap(), sparse, "holes stay where they were");
    }
    // A hole of any size costs nothing, neither here nor in the archive.
    let vast = stored(&node, &[(1 << 60, 1)], (1 << 60) + 1, b"x");
    let folder = Folder::new();
    let archive = folder.store(&vast).await.unwrap();
    assert!(archive.bytes < 2000, "{}", archive.bytes);
    assert_eq!(folder.data(&archive).await.unwrap(), vast);
    assert_ne!(digest(&stored(&node, &[(1 << 60, 1)], (1 << 60) + 2, b"x")).await, archive.digest);
}

/// What was written before this version, of a real app: read as it was then.
#[tokio::test]
async fn archives_of_the_first_format_are_read() {
    let folder = Folder::new();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transfer/first-format.tar.zst");
    let (header, archive) = folder.archives.import(&from, "first", Limits::NONE, |_| {}).await.unwrap();
    assert_eq!((header.format, archive.format, header.username.as_str()), (1, 1, "alice"));
    // As its row had it.
    let mut row = serde_json::to_value(&archive).unwrap();
    row.as_object_mut().unwrap().remove("format").unwrap();
    let archive: Archive = serde_json::from_value(row).unwrap();
    folder.archives.verify(&archive).await.unwrap();
    let data = folder.data(&archive).await.unwrap();
    let mut kinds = std::collections::HashMap::new();
    entries::each(&mut data.as_slice(), |entry| {
        kinds.insert(String::from_utf8_lossy(&entry.path).into_owned(), entry.kind);
        Ok(())
    })
    .unwrap();
    for (path, kind) in [
        ("data", Kind::Directory),
        ("data/deep/deeper/text", Kind::File),
        ("data/same", Kind::HardLink),
        ("data/link", Kind::Symlink),
    ] {
        assert_eq!(kinds.get(path), Some(&kind), "{path}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_tree_comes_out_as_it_went_in(
        files in proptest::collection::btree_map("[a-z\u{e4}]{1,130}", proptest::collection::vec(any::<u8>(), 0..2000), 0..8),
        mode in 0u32..0o10000,
        uid in any::<u32>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut nodes = vec![node(Kind::Directory, b"", b"", 0o755, b"")];
        nodes.extend(files.iter().map(|(path, content)| {
            Node { uid: uid.into(), ..node(Kind::File, path.as_bytes(), b"", mode, content) }
        }));
        runtime.block_on(async {
            let (folder, given) = (Folder::new(), tar("data", &nodes));
            let archive = folder.store(&given).await.unwrap();
            assert_eq!(folder.data(&archive).await.unwrap(), given);
            assert_eq!(digest(&tar(".", &nodes)).await, archive.digest);
        });
    }
}

#[tokio::test]
async fn a_stream_that_ends_early_leaves_nothing() {
    let folder = Folder::new();
    let mut nodes = tree();
    nodes[TEXT].content.truncate(700);
    let whole = tar("data", &nodes);
    for length in (0..whole.len()).step_by(97).chain([whole.len() - 512, whole.len() - 1]) {
        let error = folder.store(&whole[..length]).await.unwrap_err();
        assert!(matches!(error, ArchiveError::Truncated { .. }), "at {length}: {error}");
        assert_eq!(folder.names(), [""; 0], "at {length}");
    }
    let failing = pieces(&whole).take(3).chain(stream::iter([Err("the daemon went away".to_owned())]));
    let error = folder.archives.store("alice-notes", &header(), failing).await.unwrap_err();
    assert_eq!(error.to_string(), "reading the data: the daemon went away");
    assert_eq!(folder.names(), [""; 0]);
    folder.store(&whole).await.unwrap();
}

#[tokio::test]
async fn a_failed_attempt_leaves_the_archive_before_it() {
    let folder = Folder::new();
    let archive = folder.store(&tar("data", &tree())).await.unwrap();
    folder.store(&tar("data", &tree())[..5000]).await.unwrap_err();
    folder.archives.verify(&archive).await.unwrap();
    assert_eq!(folder.names(), [archive.file.as_str()]);
    let newer = folder.store(&tar("data", &tree()[..3])).await.unwrap();
    folder.archives.verify(&newer).await.unwrap();
    folder.archives.verify(&archive).await.unwrap_err();
}

#[tokio::test]
async fn a_caller_that_gives_up_leaves_nothing() {
    let folder = Folder::new();
    let whole = tar("data", &tree());
    let stalls = pieces(&whole).take(30).chain(stream::pending());
    let header = header();
    let store = folder.archives.store("alice-notes", &header, stalls);
    tokio::time::timeout(Duration::from_millis(100), store).await.unwrap_err();
    for _ in 0..100 {
        if folder.names().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("still there: {:?}", folder.names());
}

#[tokio::test]
async fn a_damaged_file_is_found_out() {
    let folder = Folder::new();
    let archive = folder.store(&tar("data", &tree())).await.unwrap();
    let path = folder.archives.dir().join(&archive.file);
    let good = fs::read(&path).unwrap();
    for place in (0..good.len()).step_by(good.len() / 40 + 1).chain([good.len() - 1]) {
        let mut bad = good.clone();
        bad[place] ^= 0x10;
        fs::write(&path, &bad).unwrap();
        let error = folder.archives.verify(&archive).await.unwrap_err();
        let clear = matches!(error, ArchiveError::Corrupt { .. } | ArchiveError::Truncated { .. });
        assert!(clear && error.to_string().starts_with("alice-notes.tar.zst is "), "at {place}: {error}");
        folder.data(&archive).await.unwrap_err();
    }
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    let error = folder.archives.verify(&archive).await.unwrap_err();
    assert!(matches!(error, ArchiveError::Truncated { .. }), "{error}");
    fs::remove_file(&path).unwrap();
    let error = folder.archives.verify(&archive).await.unwrap_err();
    assert!(matches!(error, ArchiveError::Io { .. }), "{error}");
}

#[tokio::test]
async fn files_travel() {
    let (here, there) = (Folder::new(), Folder::new());
    let archive = here.store(&tar("data", &tenants())).await.unwrap();
    let out = here.outside("alice.tar.zst");
    here.archives.export(&archive, &out, |_| {}).await.unwrap();
    let error = here.archives.export(&archive, &out, |_| {}).await.unwrap_err();
    assert!(matches!(error, ArchiveError::Exists(_)), "{error}");
    let error = Archives::export_stream(&out, &header(), pieces(&tar("data", &tenants()))).await.unwrap_err();
    assert!(matches!(error, ArchiveError::Exists(_)), "{error}");
    assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);

    let (tell, told) = std::sync::mpsc::channel();
    let (header, taken) =
        there.archives.import(&out, "imported", Limits::NONE, move |bytes| tell.send(bytes).unwrap()).await.unwrap();
    assert_eq!((header.username.as_str(), taken.file.as_str()), ("alice", "imported.tar.zst"));
    assert_eq!(taken, Archive { file: taken.file.clone(), ..archive.clone() });
    assert_eq!(told.iter().last(), Some(archive.bytes));
    there.archives.verify(&taken).await.unwrap();

    let direct = here.outside("direct.tar.zst");
    let made = Archives::export_stream(&direct, &header, pieces(&tar("data", &tenants()))).await.unwrap();
    assert_eq!((made.file.as_str(), made.digest), ("direct.tar.zst", archive.digest));
    there.archives.import(&direct, "direct", Limits::NONE, |_| {}).await.unwrap();
    // Nothing unfinished lies about.
    assert_eq!(fs::read_dir(here.outer.path()).unwrap().count(), 3);
}

#[tokio::test]
async fn what_a_crash_has_left_is_swept() {
    let folder = Folder::new();
    folder.archives.sweep(Duration::ZERO).await.unwrap();
    assert_eq!(folder.archives.list().await.unwrap(), []);
    let archive = folder.store(&tar("data", &tree())).await.unwrap();
    let left = folder.archives.dir().join(".haas-0.unfinished");
    fs::write(&left, "half").unwrap();
    fs::write(folder.archives.dir().join("README"), "the operator's").unwrap();
    folder.archives.sweep(Duration::from_secs(60)).await.unwrap();
    assert!(left.exists());
    assert_eq!(folder.archives.list().await.unwrap().len(), 1);
    folder.archives.sweep(Duration::ZERO).await.unwrap();
    assert!(!left.exists());
    folder.archives.verify(&archive).await.unwrap();
    assert_eq!(folder.names().len(), 2);
}

#[tokio::test]
async fn names_stay_in_the_folder() {
    let folder = Folder::new();
    for name in ["", ".", "..", ".hidden", "a/b", "/etc/passwd", "a\0b", &"n".repeat(300)] {
        let error = folder.archives.store(name, &header(), pieces(b"")).await.unwrap_err();
        assert!(matches!(error, ArchiveError::BadName(_)), "{name:?}: {error}");
        assert!(matches!(folder.archives.remove(name).await.unwrap_err(), ArchiveError::BadName(_)));
    }
}
