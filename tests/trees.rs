//! Whatever a file system holds comes back from every move: random trees, made and looked at by a program
//! that shares nothing with Haas (tests/trees/tree.py). On the real engine, database and proxy.
//!
//! `HAAS_TEST_TREES` says how many (100), `HAAS_TEST_TREES_SEED` from which seed on (1), `HAAS_TEST_TREES_IN_VOLUME` how many
//! share a volume (25): the full run of docs/benchmarks.md goes on from any seed.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};

use support::installation::{Installation, docker, node, run};

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}: no number")))
}

/// The seeds of all trees that this run is to make of a kind, which are a part of all, by their volumes.
fn batches(part: usize, parts: usize) -> Vec<(usize, usize)> {
    let (all, each) = (number("HAAS_TEST_TREES", 100) / parts, number("HAAS_TEST_TREES_IN_VOLUME", 25));
    let first = number("HAAS_TEST_TREES_SEED", 1) + part * all;
    (0..all.div_ceil(each)).map(|at| (first + at * each, each.min(all - at * each))).collect()
}

async fn tree(arguments: &[&str]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/trees/tree.py");
    let mut all = vec![script.to_str().unwrap()];
    all.extend(arguments);
    run("python3", &all).await
}

/// Where the one volume of an app is on the disk.
async fn volume(haas: &Installation, user: &str, app: &str) -> PathBuf {
    let id = haas.instance(user, app).await["id"].as_str().unwrap().to_owned();
    let names = docker(&["volume", "ls", "-q", "--filter", &format!("label=haas.instance={id}")]).await;
    assert_eq!(names.lines().count(), 1, "{user}/{app}: {names}");
    docker(&["volume", "inspect", "-f", "{{.Mountpoint}}", &names]).await.into()
}

/// Puts trees into the volume of an app that sleeps, in a folder that its Hoodie leaves alone.
async fn make(haas: &Installation, user: &str, (seed, count): (usize, usize), kind: &[&str]) -> Seen {
    let folder = volume(haas, user, "notes").await.join("trees");
    std::fs::create_dir(&folder).unwrap();
    let (folder, seed, count) = (folder.to_str().unwrap(), seed.to_string(), count.to_string());
    let mut arguments = vec!["make", folder, &seed, &count];
    arguments.extend(kind);
    tree(&arguments).await;
    run("chown", &["1000:1000", folder]).await;
    seen(haas, user).await
}

struct Seen {
    walked: String,
    blocks: u64,
    /// Owner and mode of the volume's own folder.
    root: String,
}

async fn seen(haas: &Installation, user: &str) -> Seen {
    let root = volume(haas, user, "notes").await;
    let folder = root.join("trees");
    let folder = folder.to_str().unwrap();
    Seen {
        walked: tree(&["walk", folder]).await,
        blocks: tree(&["blocks", folder]).await.trim().parse().unwrap(),
        root: run("stat", &["-c", "%u %g %a", root.to_str().unwrap()]).await,
    }
}

fn same(before: &Seen, after: &Seen, what: &str) {
    let different = before.walked.lines().zip(after.walked.lines()).find(|(before, after)| before != after);
    assert!(before.walked == after.walked, "{what}: {different:?}");
    assert_eq!(before.root, after.root, "{what}: the root");
    // Holes stay holes, and zeros may have become holes.
    assert!(after.blocks <= before.blocks + before.blocks / 50 + 64, "{what}: {} > {}", after.blocks, before.blocks);
}

/// Trees are deeper than an app's may be, and take what they like.
const SETTINGS: &str =
    "[tenant]\nstop_timeout = \"1s\"\ndisk_mib = 0\n[lifecycle]\nwake_timeout = \"2m\"\n[http]\nwait = \"5m\"";

#[tokio::test]
async fn random_trees_come_back_from_the_archive() {
    let haas = Installation::up_with(SETTINGS).await;
    for batch in batches(0, 2) {
        let user = format!("a{}", batch.0);
        let hoodie = haas.provision(&user, "notes").await;
        hoodie.sign_up("carol").await;
        haas.order("sleep", &user, "notes").await;
        // Not as the image gives it.
        run("chmod", &["1711", volume(&haas, &user, "notes").await.to_str().unwrap()]).await;
        let before = make(&haas, &user, batch, &[]).await;
        haas.order("archive", &user, "notes").await;
        let (_, volumes, _) = haas.haas(&["show", &haas.user(&user), "notes"]).await;
        assert!(volumes.contains("archived"), "{volumes}");
        assert!(hoodie.knows("carol").await, "the first visitor wakes it");
        same(&before, &seen(&haas, &user).await, &format!("{} trees from seed {}", batch.1, batch.0));
        haas.order("purge", &user, "notes").await;
    }
}

#[tokio::test]
async fn random_trees_of_a_tenant_come_back_from_an_export() {
    let haas = Installation::up_with(SETTINGS).await;
    for batch in batches(1, 2) {
        let (user, copy) = (format!("e{}", batch.0), format!("i{}", batch.0));
        haas.provision(&user, "notes").await.sign_up("carol").await;
        haas.order("sleep", &user, "notes").await;
        let before = make(&haas, &user, batch, &["--tenant"]).await;
        let file = haas.dir.path().join("export.tar.zst");
        let file = file.to_str().unwrap();
        let (code, _, errors) = haas.haas(&["export", &haas.user(&user), "notes", "-o", file]).await;
        assert_eq!(code, 0, "{errors}");
        let (code, _, errors) = haas.haas(&["import", file, "--user", &haas.user(&copy)]).await;
        assert_eq!(code, 0, "{errors}\n{}", haas.log());
        assert!(haas.hoodie(&copy, "notes").knows("carol").await);
        same(&before, &seen(&haas, &copy).await, &format!("{} trees from seed {}", batch.1, batch.0));
        for user in [&user, &copy] {
            haas.order("purge", user, "notes").await;
        }
        std::fs::remove_file(file).unwrap();
    }
}

/// What only root could have put there is no tenant's data, and comes into no volume from outside.
#[tokio::test]
async fn an_import_brings_nothing_that_no_tenant_could_have_made() {
    let haas = Installation::up_with(SETTINGS).await;
    haas.provision("alice", "notes").await;
    haas.order("sleep", "alice", "notes").await;
    let root = volume(&haas, "alice", "notes").await;
    let thing = root.join("thing");
    let thing = thing.to_str().unwrap();
    let script = "import os, sys; os.setxattr(sys.argv[1], sys.argv[2], bytes.fromhex(sys.argv[3]))";
    let capability = "0100000200040000000000000000000000000000";
    let things: [(&str, &[&[&str]]); 6] = [
        ("a device", &[&["mknod", thing, "c", "1", "5"], &["chown", "1000:1000", thing]]),
        ("a device", &[&["mknod", thing, "b", "7", "0"], &["chown", "1000:1000", thing]]),
        ("belongs to 0:1000", &[&["touch", thing], &["chown", "0:1000", thing]]),
        ("belongs to 1000:0", &[&["mkdir", thing], &["chown", "1000:0", thing]]),
        (
            "trusted.x",
            &[&["touch", thing], &["chown", "1000:1000", thing], &["python3", "-c", script, thing, "trusted.x", "00"]],
        ),
        (
            "security.capability",
            &[
                &["touch", thing],
                &["chown", "1000:1000", thing],
                &["python3", "-c", script, thing, "security.capability", capability],
            ],
        ),
    ];
    let copy = haas.user("copy");
    for (words, commands) in things {
        for command in commands {
            run(command[0], &command[1..]).await;
        }
        let file = haas.dir.path().join("export.tar.zst");
        let path = file.to_str().unwrap();
        let (code, _, errors) = haas.haas(&["export", &haas.user("alice"), "notes", "-o", path]).await;
        assert_eq!(code, 0, "{errors}");
        let (code, out, errors) = haas.haas(&["import", path, "--user", &copy]).await;
        assert_eq!((code, out.as_str()), (5, ""), "{errors}");
        assert!(errors.contains(words) && errors.contains("no tenant could have made"), "{errors}");
        run("rm", &["-rf", thing, path]).await;
    }
    assert_eq!(haas.sql("SELECT count(*) FROM instances").await, "1");
    assert_eq!(std::fs::read_dir(haas.layout.archive_dir()).into_iter().flatten().count(), 0, "nothing is left");
    // Without any of it, it is taken.
    let file = haas.dir.path().join("export.tar.zst");
    let path = file.to_str().unwrap();
    assert_eq!(haas.haas(&["export", &haas.user("alice"), "notes", "-o", path]).await.0, 0);
    assert_eq!(haas.haas(&["import", path, "--user", &copy]).await.0, 0);
}

/// A tenant's own process, and nothing but what it may.
#[tokio::test]
async fn what_a_tenant_makes_of_its_volume_comes_back() {
    let haas = Installation::up_with(SETTINGS).await;
    let hoodie = haas.provision("alice", "notes").await;
    hoodie.sign_up("carol").await;
    let script = "const fs = require('fs'), cp = require('child_process')
        process.chdir('/app/data')
        fs.symlinkSync('../../x', 'zzz')
        fs.symlinkSync('/app', 'away')
        fs.symlinkSync('nowhere', 'dangling')
        fs.linkSync('away', 'away-too')
        fs.writeFileSync(Buffer.from([0x6e, 0xff, 0x0a, 0x1b]), 'no text')
        require('net').createServer().listen('socket', () => {
          fs.mkdirSync('deep')
          process.chdir('deep')
          for (let n = 0; n < 20; n++) { fs.mkdirSync('n'.repeat(250)); process.chdir('n'.repeat(250)) }
          fs.writeFileSync('at the end', 'not lost')
          process.kill(process.pid, 'SIGKILL')
        })";
    let container = haas.container("alice", "notes");
    let ended = tokio::process::Command::new("docker").args(["exec", &container, "node", "-e", script]).output().await;
    assert_eq!(ended.unwrap().status.code(), Some(137));
    let made = node(&container, "console.log(require('fs').readdirSync('/app/data').length)", "").await;
    haas.order("sleep", "alice", "notes").await;
    let root = volume(&haas, "alice", "notes").await;
    let before = tree(&["walk", root.to_str().unwrap()]).await;
    let last = before.lines().find(|line| line.contains("deep") && line.contains("\"size\": 8,"));
    assert!(made.parse::<usize>().unwrap() > 6 && last.is_some(), "{before}");
    haas.order("archive", "alice", "notes").await;
    assert!(!root.exists());
    assert!(hoodie.knows("carol").await);
    let after = tree(&["walk", volume(&haas, "alice", "notes").await.to_str().unwrap()]).await;
    // Hoodie's own files may have changed since.
    let theirs = |walked: &str| {
        let own = ["zzz", "away", "dangling", "socket", "deep", "xff"];
        walked.lines().filter(|line| own.iter().any(|name| line.contains(name))).map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(theirs(&before).len() > 25);
    assert_eq!(theirs(&before), theirs(&after));
}
