//! What a tenant's data takes of the disk where the file system has not allocated what it reads as, or where
//! it is files rather than bytes: kept small, and refused before it is unpacked. On the real engine,
//! database and proxy.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use support::eventually;
use support::hoodie::Hoodie;
use support::installation::{Installation, docker};

const LIMIT: Duration = Duration::from_mins(1);
const MIB: u64 = 1024 * 1024;

/// Makes a file in a volume that is the tenant's own.
fn tenants_file(path: &Path, write: impl FnOnce(&mut File)) {
    let mut file = File::create(path).unwrap();
    write(&mut file);
    chown(path, Some(1000), Some(1000)).unwrap();
}

/// Numbers that no compression makes smaller.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..bytes / 8).flat_map(next).collect()
}

async fn policy(haas: &Installation, user: &str, arguments: &[&str]) {
    let (code, _, errors) = haas.haas(&[&["policy", &haas.user(user), "notes"], arguments].concat()).await;
    assert_eq!(code, 0, "{errors}");
}

async fn archived(haas: &Installation, user: &str) {
    haas.order("archive", user, "notes").await;
    haas.comes_to_be(user, "notes", "archived").await;
}

async fn export(haas: &Installation, user: &str) -> PathBuf {
    let file = haas.dir.path().join(format!("{user}.tar.zst"));
    let (code, _, errors) = haas.haas(&["export", &haas.user(user), "notes", "--output", file.to_str().unwrap()]).await;
    assert_eq!(code, 0, "{errors}\n{}", haas.log());
    file
}

/// An import for another user; its exit code and what it says.
async fn import(haas: &Installation, file: &Path, user: &str, more: &[&str]) -> (i32, String) {
    let user = haas.user(user);
    let arguments = ["import", file.to_str().unwrap(), "--user", &user];
    let (code, _, errors) = haas.haas(&[&arguments, more].concat()).await;
    (code, errors)
}

async fn status(hoodie: &Hoodie) -> StatusCode {
    hoodie.get("/hoodie/").await.unwrap().status()
}

/// All volumes and archives of an installation.
async fn copies(haas: &Installation) -> (usize, usize) {
    let label = format!("label=haas.installation={}", haas.sql("SELECT id FROM installation").await);
    let volumes = docker(&["volume", "ls", "-q", "--filter", &label]).await.lines().count();
    (volumes, std::fs::read_dir(haas.layout.archive_dir()).map_or(0, Iterator::count))
}

#[tokio::test]
async fn a_hole_stays_a_hole_on_its_way_through_an_archive_and_an_import() {
    let haas = Installation::up_with("[tenant]\ndisk_mib = 20").await;
    let alice = haas.provision("alice", "notes").await;
    let folder = haas.data_folder("alice", "notes").await;
    tenants_file(&folder.join("hole"), |file| file.set_len(3 << 30).unwrap());
    archived(&haas, "alice").await;
    let file = export(&haas, "alice").await;
    assert_eq!(status(&alice).await, StatusCode::OK);
    assert_eq!(import(&haas, &file, "bob", &[]).await.0, 0);
    for user in ["alice", "bob"] {
        let container = haas.container(user, "notes");
        let folder = docker(&["inspect", "-f", "{{range .Mounts}}{{.Source}}{{end}}", &container]).await;
        let hole = std::fs::metadata(Path::new(&folder).join("hole")).unwrap();
        assert_eq!((hole.len(), hole.blocks()), (3 << 30, 0), "{user}");
    }
}

#[tokio::test]
async fn what_is_more_than_it_may_be_is_not_unpacked_and_a_raised_limit_frees_it() {
    let haas = Installation::up().await;
    let alice = haas.provision("alice", "notes").await;
    alice.sign_up("carol").await;
    let folder = haas.data_folder("alice", "notes").await;
    tenants_file(&folder.join("large"), |file| file.write_all(&noise(15 << 20)).unwrap());
    archived(&haas, "alice").await;
    assert_eq!(copies(&haas).await, (0, 1));
    policy(&haas, "alice", &["--disk-mib", "10"]).await;

    // It stays where it is, for a reason that is told, and no second visitor has it read again.
    for _ in 0..2 {
        assert_eq!(status(&alice).await, StatusCode::INSUFFICIENT_STORAGE, "{}", haas.log());
    }
    haas.comes_to_be("alice", "notes", "archived").await;
    let row = haas.instance("alice", "notes").await;
    let taken = row["storage_full"]["bytes"].as_u64().unwrap();
    assert!((15 * MIB..17 * MIB).contains(&taken) && row["storage_full"]["limit_mib"] == 10, "{row}");
    assert_eq!(copies(&haas).await, (0, 1));
    assert_eq!(haas.sql("SELECT count(*) FROM events WHERE kind = 'storage full'").await, "1");
    assert_eq!(haas.sql("SELECT count(*) FROM events WHERE outcome = 'failed'").await, "0");
    assert_eq!(haas.haas(&["wake", &haas.user("alice"), "notes"]).await.0, 5);
    let (code, doctor, _) = haas.haas(&["doctor"]).await;
    assert!(code == 0 && doctor.contains("is stopped: its data takes"), "{doctor}");
    let file = export(&haas, "alice").await;

    // An import of it would be as much.
    let (code, errors) = import(&haas, &file, "bob", &["--disk-mib", "10"]).await;
    assert!(code == 5 && errors.contains("its data takes") && errors.contains("may take 10"), "{code}: {errors}");
    assert_eq!((copies(&haas).await, haas.sql("SELECT count(*) FROM instances").await), ((0, 1), "1".to_owned()));
    let (code, errors) = import(&haas, &file, "bob", &["--files", "3"]).await;
    assert!(code == 5 && errors.contains("files and folders and may have 3"), "{code}: {errors}");
    assert_eq!(copies(&haas).await, (0, 1));

    policy(&haas, "alice", &["--disk-mib", "20"]).await;
    assert!(haas.instance("alice", "notes").await["storage_full"].is_null());
    assert!(alice.knows("carol").await);
    assert_eq!(import(&haas, &file, "bob", &["--disk-mib", "30"]).await.0, 0);
    assert!(haas.hoodie("bob", "notes").knows("carol").await);
    assert_eq!(haas.instance("bob", "notes").await["policy"], json!({ "disk_mib": 30 }));
}

#[tokio::test]
async fn a_small_file_that_becomes_a_large_one_is_refused_before_it_does() {
    let haas = Installation::up_with("[tenant]\ndisk_mib = 200").await;
    haas.provision("alice", "notes").await;
    let folder = haas.data_folder("alice", "notes").await;
    tenants_file(&folder.join("zeros"), |file| file.write_all(&vec![0; 100 << 20]).unwrap());
    let file = export(&haas, "alice").await;
    assert!(std::fs::metadata(&file).unwrap().len() < MIB);
    let before = copies(&haas).await;
    let (code, errors) = import(&haas, &file, "bob", &["--disk-mib", "50"]).await;
    assert!(code == 5 && errors.contains("may take 50"), "{code}: {errors}");
    assert_eq!(copies(&haas).await, before);
}

/// So long between two looks that only an early one sees anything.
const FEW_FILES: &str =
    "[tenant]\nfiles = 2000\ndisk_period = \"10m\"\nstop_timeout = \"20s\"\ndrain_timeout = \"20s\"";

async fn full(haas: &Installation, user: &str) -> Value {
    eventually(&format!("{user} is stopped"), LIMIT, || async {
        let row = haas.instance(user, "notes").await;
        (row["phase"] == "asleep" && row["storage_full"].is_object()).then_some(row)
    })
    .await
}

#[tokio::test]
async fn empty_files_are_bounded_too_and_looked_for_while_they_become_many() {
    let haas = Installation::up_with(FEW_FILES).await;
    let victim = haas.provision("victim", "notes").await;
    let filler = haas.provision("filler", "notes").await;
    filler.sign_up("dave").await;
    let container = haas.container("filler", "notes");
    let files = "
        process.on('SIGTERM', () => {});
        const fs = require('fs');
        let n = 0;
        const more = () => { for (let i = 0; i < 50; i++) fs.closeSync(fs.openSync('/app/data/f' + n++, 'w')); setTimeout(more, 10); };
        more();";
    docker(&["exec", "-d", &container, "node", "-e", files]).await;
    let row = full(&haas, "filler").await;
    let about = &row["storage_full"];
    assert!(about["files"].as_u64().unwrap() > 2000 && about["limit_files"] == 2000, "{row}");
    assert!(row["last_error"].as_str().unwrap().contains("files and folders and may have 2000"), "{row}");
    assert_eq!(status(&filler).await, StatusCode::INSUFFICIENT_STORAGE);
    assert!(victim.answers().await);
    let (_, show, _) = haas.haas(&["show", &haas.user("filler"), "notes"]).await;
    assert!(show.contains("files of 2000"), "{show}");
    policy(&haas, "filler", &["--files", "0"]).await;
    assert!(filler.knows("dave").await);
}

#[tokio::test]
async fn what_an_app_at_rest_holds_counts() {
    let mut haas = Installation::up_with(FEW_FILES).await;
    let filler = haas.provision("filler", "notes").await;
    haas.order("sleep", "filler", "notes").await;
    haas.comes_to_be("filler", "notes", "asleep").await;
    let folder = haas.data_folder("filler", "notes").await;
    // As if it had written them a moment before it was stopped, and the server with it.
    haas.kill();
    (0..5000).for_each(|n| tenants_file(&folder.join(format!("f{n}")), |_| {}));
    haas.start().await;
    let row = full(&haas, "filler").await;
    assert_eq!((&row["state"], &row["storage_full"]["limit_files"]), (&json!("asleep"), &json!(2000)));
    assert_eq!(status(&filler).await, StatusCode::INSUFFICIENT_STORAGE);
    policy(&haas, "filler", &["--files", "6000"]).await;
    assert_eq!(status(&filler).await, StatusCode::OK);
}
