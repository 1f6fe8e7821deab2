//! Data on its way into an archive and back: whatever goes wrong, the newest good copy stays where
//! it is, and somebody says so.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use support::eventually;
use support::installation::{Installation, docker};

const LIMIT: Duration = Duration::from_mins(1);

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().path()).collect()
}

async fn volumes(haas: &Installation) -> Vec<String> {
    let filter = format!("label=haas.installation={}", haas.sql("SELECT id FROM installation").await);
    docker(&["volume", "ls", "-q", "--filter", &filter]).await.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn deprovisioned_restored_with_its_data_and_purged() {
    let haas = Installation::up_with("[lifecycle]\npurge_after = \"7d\"").await;
    let hoodie = haas.provision("alice", "notes").await;
    hoodie.sign_up("carol").await;
    let (status, gone) = haas.deprovision("alice", "notes").await;
    assert_eq!((status, &gone["state"]), (200, &"deleted".into()));
    let until: chrono::DateTime<chrono::Utc> = gone["restorable_until"].as_str().unwrap().parse().unwrap();
    let days = (until - chrono::Utc::now()).num_hours();
    assert!((7 * 24 - 1..=7 * 24).contains(&days), "{until}");
    assert_eq!(hoodie.get("/").await.unwrap().status(), 404, "a deleted one is not woken");

    let body = json!({ "secret": haas.secret(), "username": haas.user("alice"), "appname": "notes" });
    let answer = haas.post("/restore", &body).await.unwrap();
    assert_eq!(answer.status(), 200);
    let back: Value = answer.json().await.unwrap();
    assert_eq!(
        (&back["state"], &back["restored"], &back["restorable_until"]),
        (&"running".into(), &true.into(), &Value::Null)
    );
    assert!(hoodie.knows("carol").await);
    assert_eq!(haas.post("/restore", &body).await.unwrap().status(), 200, "asking again changes nothing");

    let mut purge = body.clone();
    purge["purge"] = json!("yes");
    assert_eq!(haas.post("/deprovision", &purge).await.unwrap().status(), 422);
    purge["purge"] = json!(true);
    let answer = haas.post("/deprovision", &purge).await.unwrap();
    assert_eq!(answer.status(), 200);
    let last: Value = answer.json().await.unwrap();
    assert_eq!((&last["state"], &last["purged"]), (&"deleted".into(), &true.into()));
    assert_eq!(haas.post("/restore", &body).await.unwrap().status(), 404);
    assert_eq!(haas.post("/deprovision", &purge).await.unwrap().status(), 404);
    assert!(volumes(&haas).await.is_empty() && haas.containers().await.is_empty());
    assert_eq!(haas.sql("SELECT count(*) FROM instances").await, "0");
    assert_eq!(haas.sql("SELECT count(*) FROM events WHERE kind = 'purged'").await, "1");
    // Whoever comes next begins anew.
    let hoodie = haas.provision("alice", "notes").await;
    assert!(!hoodie.knows("carol").await);
}

#[tokio::test]
async fn a_deleted_one_that_was_archived_comes_back_and_one_whose_name_is_taken_does_not() {
    let haas = Installation::up().await;
    let hoodie = haas.provision("a", "b-c").await;
    hoodie.sign_up("carol").await;
    haas.order("archive", "a", "b-c").await;
    assert_eq!(haas.deprovision("a", "b-c").await.0, 200);
    assert_eq!((volumes(&haas).await.len(), files(&haas.layout.archive_dir()).len()), (0, 1));
    // `a-b` with `c` is the same container name.
    haas.provision("a-b", "c").await;
    let body = json!({ "secret": haas.secret(), "username": haas.user("a"), "appname": "b-c" });
    assert_eq!(haas.post("/restore", &body).await.unwrap().status(), 409);
    assert_eq!(haas.haas(&["restore", &haas.user("a"), "b-c"]).await.0, 5);
    haas.order("purge", "a-b", "c").await;
    haas.order("restore", "a", "b-c").await;
    assert!(hoodie.knows("carol").await);
    // The file stays for its time of grace.
    assert_eq!((volumes(&haas).await.len(), files(&haas.layout.archive_dir()).len()), (1, 1));
    assert!(haas.haas(&["doctor"]).await.1.contains("a copy of what was restored"));
}

#[tokio::test]
async fn a_corrupt_archive_is_told_of_and_kept_and_a_good_one_put_back_works() {
    let haas = Installation::up_with(
        "[reconcile]\nbackoff_base = \"500ms\"\nbackoff_max = \"1s\"\n[lifecycle]\nwake_timeout = \"2s\"",
    )
    .await;
    let hoodie = haas.provision("alice", "notes").await;
    hoodie.sign_up("carol").await;
    haas.order("archive", "alice", "notes").await;
    let archive = files(&haas.layout.archive_dir()).pop().unwrap();
    let good = std::fs::read(&archive).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    std::fs::write(&archive, &bad).unwrap();
    assert_eq!(hoodie.get("/hoodie/").await.unwrap().status(), 503);
    haas.comes_to_be("alice", "notes", "failed").await;
    let (_, shown, _) = haas.haas(&["show", &haas.user("alice"), "notes"]).await;
    let name = archive.file_name().unwrap().to_str().unwrap();
    assert!(shown.contains(name) && shown.contains("error"), "{shown}");
    assert_eq!(haas.haas(&["doctor"]).await.0, 3);
    assert_eq!(std::fs::read(&archive).unwrap(), bad, "it is still there for whoever can mend it");
    std::fs::write(&archive, &good).unwrap();
    haas.running_again("alice", "notes", LIMIT).await;
    assert!(hoodie.knows("carol").await);
    assert_eq!(volumes(&haas).await.len(), 1);
}

#[tokio::test]
async fn what_waiting_does_not_mend_is_left_until_somebody_says_so() {
    let haas = Installation::up_with("[lifecycle]\nwake_timeout = \"2s\"\n[reconcile]\nbackoff_base = \"100ms\"").await;
    let hoodie = haas.provision("alice", "notes").await;
    hoodie.sign_up("carol").await;
    haas.order("archive", "alice", "notes").await;
    let archive = files(&haas.layout.archive_dir()).pop().unwrap();
    let good = std::fs::read(&archive).unwrap();
    std::fs::write(&archive, &good[..good.len() - 1]).unwrap();
    assert_eq!(hoodie.get("/hoodie/").await.unwrap().status(), 503);
    haas.comes_to_be("alice", "notes", "failed").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(haas.sql("SELECT count(*) FROM events WHERE kind = 'failed'").await, "1");
    assert_eq!(haas.sql("SELECT next_attempt_at > now() + interval '1 hour' FROM instances").await, "t");
    std::fs::write(&archive, &good).unwrap();
    haas.order("wake", "alice", "notes").await;
    assert!(hoodie.knows("carol").await);
    assert_eq!(haas.sql("SELECT count(*) FROM events WHERE kind = 'tried again'").await, "1");
}

/// So that a move takes a while.
async fn with_much_data(haas: &Installation) -> std::path::PathBuf {
    let volume = volumes(haas).await.remove(0);
    let root = docker(&["volume", "inspect", "-f", "{{.Mountpoint}}", &volume]).await;
    let mut noise = vec![0; 48 << 20];
    rand::fill(&mut noise[..]);
    let file = std::path::Path::new(&root).join("noise");
    std::fs::write(&file, noise).unwrap();
    std::os::unix::fs::chown(&file, Some(1000), Some(1000)).unwrap();
    file
}

async fn helpers(haas: &Installation) -> Vec<String> {
    let id = haas.instance("alice", "notes").await["id"].as_str().unwrap().to_owned();
    let found = docker(&["ps", "-q", "--filter", &format!("label=haas.helper={id}")]).await;
    found.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn attempts_to_restore_that_fail_leave_nothing_behind() {
    let haas = Installation::up_with("[reconcile]\nbackoff_base = \"200ms\"\nbackoff_max = \"500ms\"").await;
    let hoodie = haas.provision("alice", "notes").await;
    hoodie.sign_up("carol").await;
    haas.order("sleep", "alice", "notes").await;
    with_much_data(&haas).await;
    haas.order("archive", "alice", "notes").await;
    assert!(volumes(&haas).await.is_empty());
    haas.haas(&["wake", &haas.user("alice"), "notes", "--no-wait"]).await;
    let failed = "SELECT count(*) FROM events WHERE kind = 'failed'";
    eventually("four attempts have failed", LIMIT, || async {
        for helper in helpers(&haas).await {
            // It may be gone by itself.
            tokio::process::Command::new("docker").args(["kill", &helper]).output().await.unwrap();
        }
        (haas.sql(failed).await.parse::<u32>().unwrap() >= 4).then_some(())
    })
    .await;
    haas.running_again("alice", "notes", LIMIT).await;
    assert!(hoodie.knows("carol").await);
    assert_eq!(volumes(&haas).await.len(), 1, "of five attempts the one that it runs on");
}

#[tokio::test]
async fn a_server_that_is_killed_while_it_restores_leaves_no_half_volume_and_no_helper() {
    let mut haas = Installation::up().await;
    let hoodie = haas.provision("alice", "notes").await;
    hoodie.sign_up("carol").await;
    haas.order("sleep", "alice", "notes").await;
    with_much_data(&haas).await;
    haas.order("archive", "alice", "notes").await;
    haas.haas(&["wake", &haas.user("alice"), "notes", "--no-wait"]).await;
    let helper = eventually("it is restored", LIMIT, || async { helpers(&haas).await.pop() }).await;
    // What works as root has the volume, and nothing else.
    let profile = docker(&["inspect", "-f", "{{json .HostConfig.SecurityOpt}}", &helper]).await;
    assert!(profile.contains("no-new-privileges") && profile.contains("open_by_handle_at"), "{profile}");
    let format = "{{.HostConfig.NetworkMode}} {{.HostConfig.Privileged}} {{.HostConfig.ReadonlyRootfs}} \
                  {{.HostConfig.CapDrop}} {{.HostConfig.PidMode}}{{.HostConfig.Binds}} {{len .Mounts}} \
                  {{range .Mounts}}{{.Type}} {{.Destination}}{{end}} {{.HostConfig.Devices}}";
    let inspected = docker(&["inspect", "-f", format, &helper]).await;
    assert_eq!(inspected, "none false true [ALL] [] 1 volume /volume []");
    haas.kill();
    assert_eq!(volumes(&haas).await.len(), 1, "a part of it");
    haas.start().await;
    haas.running_again("alice", "notes", LIMIT).await;
    assert!(hoodie.knows("carol").await);
    assert_eq!(volumes(&haas).await.len(), 1);
    assert!(helpers(&haas).await.is_empty());
}

/// As after a restore of the manifest from a backup that is older than the last restore of the data.
#[tokio::test]
async fn a_newer_volume_that_the_manifest_has_forgotten_is_left_by_every_move() {
    let haas = Installation::up().await;
    let hoodie = haas.provision("alice", "notes").await;
    hoodie.sign_up("carol").await;
    haas.order("archive", "alice", "notes").await;
    let label = format!("haas.installation={}", haas.sql("SELECT id FROM installation").await);
    let id = haas.instance("alice", "notes").await["id"].as_str().unwrap().to_owned();
    let newer = format!("haas-{}-1", id.replace('-', ""));
    docker(&["volume", "create", "--label", &label, "--label", &format!("haas.instance={id}"), &newer]).await;
    let root = docker(&["volume", "inspect", "-f", "{{.Mountpoint}}", &newer]).await;
    std::fs::write(std::path::Path::new(&root).join("written since"), "not lost").unwrap();
    std::os::unix::fs::chown(&root, Some(1000), Some(1000)).unwrap();
    for _ in 0..2 {
        assert!(hoodie.knows("carol").await);
        haas.order("archive", "alice", "notes").await;
        assert_eq!(volumes(&haas).await, [newer.as_str()], "one that it was restored into is freed, this one is not");
    }
    let kept = std::fs::read_to_string(std::path::Path::new(&root).join("written since")).unwrap();
    assert_eq!(kept, "not lost");
}

/// What an earlier attempt has filled and not written down is used, and not filled once more.
#[tokio::test]
async fn a_volume_that_was_filled_and_not_written_down_is_used() {
    let mut haas = Installation::prepared("");
    haas.set_environment("HAAS_FAILPOINT", "DataRestored");
    haas.start().await;
    let hoodie = haas.provision("alice", "notes").await;
    hoodie.sign_up("carol").await;
    haas.order("archive", "alice", "notes").await;
    haas.haas(&["wake", &haas.user("alice"), "notes", "--no-wait"]).await;
    haas.ended().await;
    let filled = volumes(&haas).await;
    assert_eq!(filled.len(), 1);
    let made = docker(&["volume", "inspect", "-f", "{{.CreatedAt}}", &filled[0]]).await;
    haas.clear_environment();
    haas.start().await;
    haas.running_again("alice", "notes", LIMIT).await;
    assert!(hoodie.knows("carol").await);
    assert_eq!(volumes(&haas).await, filled);
    assert_eq!(docker(&["volume", "inspect", "-f", "{{.CreatedAt}}", &filled[0]]).await, made);
}

/// The helper's own words are what is told, also when it ends before it has taken all.
#[tokio::test]
async fn a_restore_that_the_disk_has_no_room_for_says_so_and_leaves_nothing() {
    let haas = Installation::up_with("[reconcile]\nbackoff_base = \"500ms\"\nbackoff_max = \"1s\"").await;
    let hoodie = haas.provision("alice", "notes").await;
    hoodie.sign_up("carol").await;
    haas.order("sleep", "alice", "notes").await;
    with_much_data(&haas).await;
    haas.order("archive", "alice", "notes").await;
    // Where the engine will make the next volume, there is a disk that is too small.
    let id = haas.instance("alice", "notes").await["id"].as_str().unwrap().to_owned();
    let root = PathBuf::from(docker(&["info", "-f", "{{.DockerRootDir}}"]).await);
    let root = root.join(format!("volumes/haas-{}-1/_data", id.replace('-', "")));
    let small = SmallDisk::mount_at(&root, 8 * 1024);
    haas.haas(&["wake", &haas.user("alice"), "notes", "--no-wait"]).await;
    let told = eventually("it says so", LIMIT, || async {
        haas.instance("alice", "notes").await["last_error"].as_str().map(str::to_owned)
    })
    .await;
    drop(small);
    assert!(told.contains("writing \"") && told.contains("No space left"), "{told}");
    haas.running_again("alice", "notes", LIMIT).await;
    assert!(hoodie.knows("carol").await);
    assert_eq!(volumes(&haas).await.len(), 1);
}

#[tokio::test]
async fn what_an_archive_can_not_hold_keeps_its_volume_and_is_told() {
    let haas = Installation::up().await;
    let hoodie = haas.provision("alice", "notes").await;
    hoodie.sign_up("carol").await;
    haas.order("sleep", "alice", "notes").await;
    let file = with_much_data(&haas).await;
    let immutable = |how: &str| std::process::Command::new("chattr").arg(how).arg(&file).status().unwrap().success();
    if !immutable("+i") {
        eprintln!("skipped, since chattr is refused");
        return;
    }
    let (code, _, _) = haas.haas(&["archive", &haas.user("alice"), "notes", "--no-wait"]).await;
    assert_eq!(code, 0);
    let told = eventually("it says so", LIMIT, || async {
        haas.instance("alice", "notes").await["last_error"].as_str().map(str::to_owned)
    })
    .await;
    assert!(immutable("-i"));
    assert!(told.contains("\"noise\"") && told.contains("is immutable"), "{told}");
    assert_eq!((volumes(&haas).await.len(), files(&haas.layout.archive_dir()).len()), (1, 0));
    assert!(hoodie.knows("carol").await, "and it goes on");
    // What was in the way is gone: asked for by hand, it is tried at once.
    haas.order("archive", "alice", "notes").await;
    assert!(hoodie.knows("carol").await);
}

/// Made by an earlier version, whose archives knew less.
#[tokio::test]
async fn an_export_of_the_first_format_is_imported() {
    let haas = Installation::up().await;
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transfer/first-format.tar.zst");
    let (code, _, errors) = haas.haas(&["import", file.to_str().unwrap(), "--user", &haas.user("alice")]).await;
    assert_eq!(code, 0, "{errors}\n{}", haas.log());
    assert!(haas.hoodie("alice", "notes").knows("carol").await);
    let root = docker(&["volume", "inspect", "-f", "{{.Mountpoint}}", &volumes(&haas).await[0]]).await;
    let root = std::path::Path::new(&root);
    assert!(std::fs::read_to_string(root.join("deep/deeper/text")).unwrap().starts_with("what alice wrote\n"));
    let hole = std::fs::metadata(root.join("hole")).unwrap();
    let (length, blocks) = (hole.len(), std::os::unix::fs::MetadataExt::blocks(&hole));
    assert_eq!((length, blocks), (3 << 20, 0), "its zeros take no room");
}

/// A folder with little room; unmounted when it is dropped.
struct SmallDisk(PathBuf, Option<tempfile::TempDir>);

impl SmallDisk {
    fn mount(kib: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut disk = Self::mount_at(folder.path(), kib);
        disk.1 = Some(folder);
        disk
    }

    fn mount_at(folder: &Path, kib: u32) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let size = format!("size={kib}k");
        let mounted =
            std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder).status();
        assert!(mounted.unwrap().success(), "the tests run as root");
        Self(folder.to_owned(), None)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        std::process::Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

#[tokio::test]
async fn a_disk_that_is_full_leaves_the_data_where_it_is_and_says_so() {
    let disk = SmallDisk::mount(8);
    let settings = format!(
        "[reconcile]\nbackoff_base = \"500ms\"\nbackoff_max = \"1s\"\n[lifecycle]\narchive_dir = {:?}",
        disk.0.as_path()
    );
    let haas = Installation::up_with(&settings).await;
    let hoodie = haas.provision("alice", "notes").await;
    hoodie.sign_up("carol").await;
    // Something that does not shrink: an archive of more than there is room for.
    for n in 0..40 {
        hoodie.sign_up(&format!("user-{n}-{}", uuid::Uuid::new_v4())).await;
    }
    let (code, _, _) = haas.haas(&["archive", &haas.user("alice"), "notes", "--no-wait"]).await;
    assert_eq!(code, 0);
    let row = eventually("it says so", LIMIT, || async {
        let row = haas.instance("alice", "notes").await;
        row["last_error"].as_str().is_some_and(|error| error.contains("space")).then_some(row)
    })
    .await;
    assert_eq!(row["state"], "asleep", "{row}");
    assert!(haas.haas(&["doctor"]).await.1.contains("is not archived"));
    assert_eq!(volumes(&haas).await.len(), 1);
    assert!(files(disk.0.as_path()).is_empty(), "no half file is left");
    assert!(hoodie.knows("carol").await, "it wakes all the same");
    // With room again, it works.
    let grown =
        std::process::Command::new("mount").args(["-o", "remount,size=8m"]).arg(disk.0.as_path()).status().unwrap();
    assert!(grown.success());
    haas.order("archive", "alice", "notes").await;
    assert!(hoodie.knows("carol").await);
}

#[tokio::test]
async fn a_volume_that_has_data_is_never_written_to() {
    let haas = Installation::up().await;
    let hoodie = haas.provision("alice", "notes").await;
    hoodie.sign_up("carol").await;
    haas.order("archive", "alice", "notes").await;
    // Somebody has put something under the name that comes next.
    let row = haas.instance("alice", "notes").await;
    let id = row["id"].as_str().unwrap().replace('-', "");
    let volume = format!("haas-{id}-1");
    docker(&["volume", "create", &volume]).await;
    let probe = format!("{}-probe", haas.word);
    let mount = format!("{volume}:/app/data");
    docker(&["create", "--name", &probe, "-v", &mount, "haas/hoodie:28.2.10"]).await;
    docker(&["cp", "README.md", &format!("{probe}:/app/data/precious")]).await;
    assert!(hoodie.knows("carol").await);
    assert_eq!(haas.sql("SELECT volume_serial FROM instances").await, "2");
    let precious = docker(&["cp", &format!("{probe}:/app/data/precious"), "-"]).await;
    assert!(precious.contains("Hoodie as a Service"));
    let listed = docker(&["diff", &probe]).await;
    assert!(!listed.contains("_users"), "{listed}");
    docker(&["rm", &probe]).await;
    docker(&["volume", "rm", &volume]).await;
}

#[tokio::test]
async fn a_volume_that_is_gone_is_not_archived_as_an_empty_one() {
    let haas = Installation::up_with("[reconcile]\nbackoff_base = \"500ms\"\nbackoff_max = \"1s\"").await;
    haas.provision("alice", "notes").await.sign_up("carol").await;
    haas.order("sleep", "alice", "notes").await;
    docker(&["rm", &haas.container("alice", "notes")]).await;
    docker(&["volume", "rm", &volumes(&haas).await[0]]).await;
    let (code, _, _) = haas.haas(&["archive", &haas.user("alice"), "notes", "--no-wait"]).await;
    assert_eq!(code, 0);
    eventually("it says so", LIMIT, || async {
        let row = haas.instance("alice", "notes").await;
        row["last_error"].as_str().is_some_and(|error| error.contains("is gone")).then_some(())
    })
    .await;
    assert!(files(&haas.layout.archive_dir()).is_empty() && volumes(&haas).await.is_empty());
}

#[tokio::test]
async fn a_volume_that_is_gone_is_not_replaced_by_an_empty_one() {
    let haas = Installation::up_with("[reconcile]\nbackoff_base = \"500ms\"\nbackoff_max = \"1s\"").await;
    haas.provision("alice", "notes").await.sign_up("carol").await;
    haas.order("sleep", "alice", "notes").await;
    docker(&["rm", &haas.container("alice", "notes")]).await;
    // As after a start of the engine without the disk that has its data.
    let volume = volumes(&haas).await.remove(0);
    docker(&["volume", "rm", &volume]).await;
    haas.haas(&["wake", &haas.user("alice"), "notes", "--no-wait"]).await;
    eventually("it says so", LIMIT, || async {
        let row = haas.instance("alice", "notes").await;
        row["last_error"].as_str().is_some_and(|error| error.contains("is gone")).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let tried: u32 = haas.sql("SELECT count(*) FROM events WHERE kind = 'failed'").await.parse().unwrap();
    assert!((2..=7).contains(&tried), "again and again, but not all the time: {tried}");
    assert!(haas.containers().await.is_empty() && volumes(&haas).await.is_empty());
    // Nobody has to live with that for ever.
    assert_eq!(haas.deprovision("alice", "notes").await.0, 200);
    let anew = haas.provision("alice", "notes").await;
    assert!(!anew.knows("carol").await);
    anew.sign_up("dave").await;
    assert_eq!(volumes(&haas).await, [volume]);
}

#[tokio::test]
async fn a_tombstone_leaves_the_container_alone_that_has_its_name_now() {
    let haas = Installation::up().await;
    haas.provision("a", "b-c").await.sign_up("bob").await;
    assert_eq!(haas.deprovision("a", "b-c").await.0, 200);
    let other = haas.provision("a-b", "c").await;
    other.sign_up("carol").await;
    let before = docker(&["inspect", "-f", "{{.Id}} {{.State.StartedAt}}", &haas.container("a-b", "c")]).await;
    // Its own data can be had, and never another's.
    let file = haas.dir.path().join("export.tar.zst");
    let (code, _, errors) = haas.haas(&["export", &haas.user("a"), "b-c", "-o", file.to_str().unwrap()]).await;
    assert_eq!(code, 0, "{errors}");
    let (code, _, errors) =
        haas.haas(&["import", file.to_str().unwrap(), "--user", &haas.user("copy"), "--app", "d"]).await;
    assert_eq!(code, 0, "{errors}");
    let copy = haas.hoodie("copy", "d");
    assert!(copy.knows("bob").await && !copy.knows("carol").await, "another's data is not exported");
    haas.order("purge", "a", "b-c").await;
    let after = docker(&["inspect", "-f", "{{.Id}} {{.State.StartedAt}}", &haas.container("a-b", "c")]).await;
    assert_eq!(after, before);
    assert!(other.knows("carol").await);
}
