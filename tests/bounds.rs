//! What one tenant may take: a fork bomb, a memory hog, a log flood and a disk filler, each for real
//! from inside a container; how many apps a user may have; and whose data is whose. On the real engine,
//! database and proxy.
#![allow(clippy::unwrap_used)]

mod support;
#[path = "support/webhook.rs"]
mod webhook;

use std::path::Path;
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use support::eventually;
use support::hostile::hostile_image;
use support::installation::{Installation, docker};
use webhook::Receiver;

const LIMIT: Duration = Duration::from_mins(1);

/// Runs a program in a container, as whoever breaks into it would.
async fn inside(container: &str, program: &str) -> std::process::Output {
    tokio::process::Command::new("docker").args(["exec", container, "node", "-e", program]).output().await.unwrap()
}

async fn inspect(container: &str, format: &str) -> String {
    docker(&["inspect", "-f", format, container]).await
}

/// The processes and threads in a container's cgroup, as the kernel counts them.
async fn tasks(container: &str) -> u32 {
    docker(&["stats", "--no-stream", "--format", "{{.PIDs}}", container]).await.parse().unwrap()
}

async fn event(haas: &Installation, kind: &str) -> String {
    haas.sql(&format!("SELECT count(*) FROM events WHERE kind = '{kind}'")).await
}

#[tokio::test]
async fn a_fork_bomb_ends_at_its_bound_and_the_others_go_on() {
    let haas = Installation::up().await;
    let victim = haas.provision("victim", "notes").await;
    let bomb = haas.provision("bomb", "notes").await;
    victim.sign_up("carol").await;
    bomb.sign_up("dave").await;
    let container = haas.container("bomb", "notes");
    let program = "
        const { spawn } = require('child_process');
        let children = 0;
        const more = () => {
            if (children > 200) { console.log('unbounded'); process.exit(); }
            const child = spawn(process.execPath, ['-e', 'setTimeout(() => {}, 6000)'], { stdio: 'ignore' });
            child.once('spawn', () => { children++; setImmediate(more); });
            child.once('error', error => { console.log(error.code); setTimeout(() => process.exit(), 3000); });
        };
        more();";
    let bombing = tokio::spawn({
        let container = container.clone();
        async move { inside(&container, program).await }
    });
    let mut most = 0;
    while !bombing.is_finished() {
        most = most.max(tasks(&container).await);
        assert!(victim.knows("carol").await);
    }
    let output = bombing.await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    // Where threads are what is missing first, Node gives up by itself.
    assert!(said.contains("EAGAIN") || said.contains("Resource temporarily unavailable"), "{said}");
    assert!(!said.contains("unbounded"), "{said}");
    assert!((30..=64).contains(&most), "{most} of 64");
    eventually("the bomb's own Hoodie answers", LIMIT, || async { bomb.answers().await.then_some(()) }).await;
    assert!(bomb.knows("dave").await && victim.knows("carol").await);
}

/// Containers that ran out of memory, from now on; the engine remembers a few hundred events of all kinds.
struct Ooms {
    file: tempfile::NamedTempFile,
    _watching: tokio::process::Child,
}

impl Ooms {
    async fn watch() -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        let arguments = ["events", "--filter", "event=oom", "--format", "{{.Actor.Attributes.name}}"];
        let mut command = tokio::process::Command::new("docker");
        command.args(arguments).stdout(file.reopen().unwrap()).kill_on_drop(true);
        let watching = command.spawn().unwrap();
        // It has asked by then: nothing says so.
        tokio::time::sleep(Duration::from_secs(1)).await;
        Self { file, _watching: watching }
    }

    fn seen(&self) -> Vec<String> {
        std::fs::read_to_string(self.file.path()).unwrap().lines().map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn a_memory_hog_dies_of_its_own_bound_and_comes_back() {
    let image = hostile_image().await;
    let haas = Installation::up_with(&format!("[tenant]\nimage = \"{}\"", image.0)).await;
    let victim = haas.provision("victim", "notes").await;
    let hog = haas.provision("hog", "notes").await;
    let (container, other) = (haas.container("hog", "notes"), haas.container("victim", "notes"));
    let began = inspect(&other, "{{.State.StartedAt}}").await;
    let ooms = Ooms::watch().await;
    // What it is killed in the middle of is no answer.
    assert!(hog.get("/x/hog").await.map_or(true, |answer| answer.status() == StatusCode::BAD_GATEWAY));
    eventually("it was killed, and started again", LIMIT, || async {
        assert!(victim.answers().await);
        (inspect(&container, "{{.RestartCount}}").await != "0").then_some(())
    })
    .await;
    haas.running_again("hog", "notes", LIMIT).await;
    eventually("by the kernel, for its memory", LIMIT, || async { ooms.seen().contains(&container).then_some(()) })
        .await;
    assert!(!ooms.seen().contains(&other), "and nobody else");
    assert_eq!(inspect(&other, "{{.State.StartedAt}}").await, began);
    // The kernel's choice, should the whole machine run out of memory.
    let pid = inspect(&container, "{{.State.Pid}}").await;
    assert_eq!(std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim(), "500");
}

#[tokio::test]
async fn a_log_flood_stays_within_its_two_files() {
    let image = hostile_image().await;
    let haas = Installation::up_with(&format!("[tenant]\nimage = \"{}\"", image.0)).await;
    let flood = haas.provision("flood", "notes").await;
    // 40 MB.
    assert_eq!(flood.get("/x/log").await.unwrap().text().await.unwrap(), "logged");
    let path = inspect(&haas.container("flood", "notes"), "{{.LogPath}}").await;
    let folder = Path::new(&path).parent().unwrap();
    let logs = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    let logs = logs.filter(|entry| entry.file_name().to_string_lossy().contains("-json.log"));
    let sizes: Vec<u64> = logs.map(|entry| entry.metadata().unwrap().len()).collect();
    assert!(sizes.len() <= 2 && sizes.iter().sum::<u64>() < 5 * 1024 * 1024 / 2, "{sizes:?}");
    assert!(sizes.iter().sum::<u64>() > 1024 * 1024, "it did write: {sizes:?}");
}

#[tokio::test]
async fn what_can_be_written_beside_the_volume_is_memory_and_files_are_few() {
    let haas = Installation::up().await;
    let hoodie = haas.provision("alice", "notes").await;
    let container = haas.container("alice", "notes");
    let program = "
        const fs = require('fs'), said = {};
        for (const path of ['/tmp/x', '/dev/shm/x', '/app/x', '/x', '/app/.cache/x', '/etc/x']) {
            let file, bytes = 0;
            try {
                file = fs.openSync(path, 'w');
                for (; bytes < 2 ** 30;) bytes += fs.writeSync(file, Buffer.alloc(2 ** 16, 1));
            } catch (error) { said[path] = [error.code, bytes]; }
            if (file) { fs.closeSync(file); fs.unlinkSync(path); }
        }
        const files = [];
        try { for (;;) files.push(fs.openSync('/app/start.js')); } catch (error) { said.files = [error.code, files.length]; }
        console.log(JSON.stringify(said));";
    let output = inside(&container, program).await;
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (path, code, most) in [("/tmp/x", "ENOSPC", 16 << 20), ("files", "EMFILE", 16_384)] {
        assert!(said[path][0] == code && said[path][1].as_u64().unwrap() <= most, "{path}: {said}");
    }
    for path in ["/app/x", "/x", "/app/.cache/x", "/etc/x"] {
        assert_eq!(said[path], json!(["EROFS", 0]), "{path}: {said}");
    }
    // Without memory that is shared with others there is no such folder.
    assert_eq!(said["/dev/shm/x"], json!(["ENOENT", 0]), "{said}");
    let limits =
        inspect(&container, "{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}} {{.HostConfig.NanoCpus}}").await;
    assert_eq!(limits, "201326592 201326592 1000000000", "no swap");
    assert!(hoodie.answers().await);
}

/// An installation whose tenants may have 10 MiB of the disk each.
async fn small_disks(receiver: &Receiver) -> Installation {
    let settings = format!(
        "[tenant]\ndisk_mib = 10\ndisk_period = \"1s\"\nstop_timeout = \"1s\"\n[reconcile]\nperiod = \"1s\"\n\
         [lifecycle]\nwebhook_url = \"{}\"",
        receiver.url
    );
    Installation::up_with(&settings).await
}

/// Writes into the volume until it is ended, or has written 2 GiB.
const FILL: &str = "
    const fs = require('fs'), file = fs.openSync('/app/data/filler', 'w'), block = Buffer.alloc(2 ** 18, 1);
    let n = 0;
    const more = () => { if (n++ < 2 ** 13) { fs.writeSync(file, block); setTimeout(more, 20); } };
    more();";

async fn is_stopped(haas: &Installation, user: &str) -> Value {
    eventually(&format!("{user} is stopped"), LIMIT, || async {
        let row = haas.instance(user, "notes").await;
        (row["phase"] == "asleep" && row["storage_full"].is_object()).then_some(row)
    })
    .await
}

#[tokio::test]
async fn a_disk_filler_is_stopped_told_and_let_go_by_a_raised_limit() {
    let receiver = Receiver::start().await;
    let mut haas = small_disks(&receiver).await;
    let victim = haas.provision("victim", "notes").await;
    let filler = haas.provision("filler", "notes").await;
    victim.sign_up("carol").await;
    filler.sign_up("dave").await;
    let (user, container) = (haas.user("filler"), haas.container("filler", "notes"));
    let volume = format!("haas-{}", haas.instance("filler", "notes").await["id"].as_str().unwrap().replace('-', ""));
    docker(&["exec", "-d", &container, "node", "-e", FILL]).await;
    let row = is_stopped(&haas, "filler").await;
    assert_eq!(inspect(&container, "{{.State.Status}}").await, "exited");
    let taken = row["storage_full"]["bytes"].as_u64().unwrap();
    assert!(taken > 10 << 20 && row["storage_full"]["limit_mib"] == 10 && row["state"] == "asleep", "{row}");
    assert!(victim.knows("carol").await);

    // Its owner is told, once.
    let told = eventually("the owner is told", LIMIT, || async { receiver.about(&user).pop() }).await;
    let key = std::fs::read_to_string(haas.layout.secrets_dir().join("webhook.key")).unwrap();
    assert!(told.is_signed_with(key.trim()));
    let message = told.json();
    assert_eq!(
        (&message["type"], &message["data"]["storage_full"]),
        (&"instance.storage-full".into(), &row["storage_full"])
    );
    assert_eq!(message["data"]["emailaddress"], "filler@example.com");
    assert_eq!((event(&haas, "storage full").await.as_str(), event(&haas, "wake").await.as_str()), ("1", "0"));

    // Nobody wakes it, and everybody hears why.
    let request = |accept: &str| {
        let request = filler.client.get(filler.url("/hoodie/")).header("host", &filler.host);
        request.header("origin", "http://elsewhere.example").header("accept", accept)
    };
    let answer = request("*/*").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
    assert_eq!(answer.headers()["access-control-allow-origin"], "http://elsewhere.example");
    assert!(!answer.headers().contains_key("retry-after"));
    assert_eq!(answer.json::<Value>().await.unwrap()["type"], "urn:haas:problem:storage-full");
    let page = request("text/html").send().await.unwrap();
    assert_eq!(page.status(), StatusCode::INSUFFICIENT_STORAGE);
    let page = page.text().await.unwrap();
    assert!(page.contains("its storage is full") && !page.contains("refresh"), "{page}");
    let again = haas.post("/provision", &haas.request("filler", "notes")).await.unwrap();
    assert_eq!(again.status(), 200);
    let again: Value = again.json().await.unwrap();
    assert_eq!((&again["state"], &again["storage_full"]), (&"asleep".into(), &row["storage_full"]));
    let (_, list, _) = haas.haas(&["list"]).await;
    assert!(
        list.lines().any(|line| line.contains(&user) && line.contains("asleep") && line.contains("its data takes"))
    );
    let (_, show, _) = haas.haas(&["show", &user, "notes"]).await;
    assert!(show.contains("full since") && show.contains("storage full"), "{show}");
    let (code, _, errors) = haas.haas(&["wake", &user, "notes"]).await;
    assert!(code == 5 && errors.contains("--disk-mib"), "{code}: {errors}");
    let (code, doctor, _) = haas.haas(&["doctor"]).await;
    assert!(code == 0 && doctor.contains(&format!("{container} is stopped: its data takes")), "{doctor}");
    assert!(doctor.contains("of the volumes' file system are free"), "{doctor}");

    // A restart changes nothing of that, nor does a look at what it takes.
    haas.kill();
    haas.start().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(request("*/*").send().await.unwrap().status(), StatusCode::INSUFFICIENT_STORAGE);
    assert_eq!(haas.instance("filler", "notes").await["storage_full"], row["storage_full"]);
    assert_eq!(receiver.about(&user).len(), 1);
    assert!(docker(&["volume", "inspect", &volume]).await.contains(&volume));

    // A limit of its own lets it go at once, with all its data.
    let (code, policy, errors) = haas.haas(&["policy", &user, "notes", "--disk-mib", "4096"]).await;
    assert!(code == 0 && policy.contains("disk_mib       4096     its own"), "{policy}{errors}");
    let freed = haas.instance("filler", "notes").await;
    assert!(freed["storage_full"].is_null() && freed["last_error"].is_null(), "{freed}");
    assert_eq!(freed["policy"], json!({ "disk_mib": 4096 }));
    assert!(filler.knows("dave").await);
    let size = inside(&container, "console.log(fs.statSync('/app/data/filler').size)").await;
    assert!(String::from_utf8_lossy(&size.stdout).trim().parse::<u64>().unwrap() >= 9 << 20);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(haas.instance("filler", "notes").await["state"], "running", "it stays");

    // Lowered again, it is stopped again; and packed away as others are, which lets nobody wake it.
    haas.haas(&["policy", &user, "notes", "--disk-mib", "default"]).await;
    is_stopped(&haas, "filler").await;
    eventually("the owner is told anew", LIMIT, || async { (receiver.about(&user).len() == 2).then_some(()) }).await;
    haas.order("archive", "filler", "notes").await;
    haas.comes_to_be("filler", "notes", "archived").await;
    assert_eq!(request("*/*").send().await.unwrap().status(), StatusCode::INSUFFICIENT_STORAGE);

    // So does a deletion and the way back from it.
    assert_eq!(haas.deprovision("filler", "notes").await.0, 200);
    let restored = haas.post("/provision", &haas.request("filler", "notes")).await.unwrap();
    assert_eq!(restored.status(), 200);
    let restored: Value = restored.json().await.unwrap();
    assert!(restored["storage_full"].is_object(), "{restored}");
    haas.comes_to_be("filler", "notes", "archived").await;
    assert_eq!(request("*/*").send().await.unwrap().status(), StatusCode::INSUFFICIENT_STORAGE);

    // The installation's own limit, raised: with the next look.
    haas.kill();
    haas.set_environment("HAAS_TENANT_DISK_MIB", "5000");
    haas.start().await;
    eventually("it may go", LIMIT, || async {
        haas.instance("filler", "notes").await["storage_full"].is_null().then_some(())
    })
    .await;
    assert!(filler.knows("dave").await && victim.knows("carol").await);
}

#[tokio::test]
async fn a_row_that_can_not_be_read_keeps_nobody_from_being_stopped() {
    let receiver = Receiver::start().await;
    let haas = small_disks(&receiver).await;
    haas.provision("corrupt", "notes").await;
    haas.provision("filler", "notes").await;
    // One that may go by its limit, if only it could be read.
    let full = json!({ "since": "2026-01-01T00:00:00Z", "bytes": 1, "limit_mib": 10 });
    let corrupt = haas.user("corrupt");
    haas.sql(&format!(
        "UPDATE instances SET storage_full = '{full}', desired = 'asleep', spec = '{{}}' WHERE username = '{corrupt}'"
    ))
    .await;
    eventually("the look at it says so", LIMIT, || async {
        haas.log().contains("nothing follows from what its data takes").then_some(())
    })
    .await;
    docker(&["exec", "-d", &haas.container("filler", "notes"), "node", "-e", FILL]).await;
    is_stopped(&haas, "filler").await;
}

#[tokio::test]
async fn what_was_deleted_and_is_still_open_counts_too() {
    let receiver = Receiver::start().await;
    let haas = small_disks(&receiver).await;
    let hider = haas.provision("hider", "notes").await;
    hider.sign_up("dave").await;
    let hidden = format!("{FILL} fs.unlinkSync('/app/data/filler'); setInterval(() => {{}}, 1000);");
    docker(&["exec", "-d", &haas.container("hider", "notes"), "node", "-e", &hidden]).await;
    is_stopped(&haas, "hider").await;
    // With its process the file is gone: there is room again, and a look finds that.
    eventually("it may go", LIMIT, || async {
        haas.instance("hider", "notes").await["storage_full"].is_null().then_some(())
    })
    .await;
    assert!(hider.knows("dave").await);
}

#[cfg(feature = "failpoints")]
#[tokio::test]
async fn killed_on_the_way_down_it_is_stopped_all_the_same() {
    for boundary in ["ManifestAdvanced", "Drained", "ContainerStopped"] {
        let receiver = Receiver::start().await;
        let mut haas = small_disks(&receiver).await;
        let filler = haas.provision("filler", "notes").await;
        filler.sign_up("dave").await;
        let container = haas.container("filler", "notes");
        haas.kill();
        haas.set_environment("HAAS_FAILPOINT", boundary);
        docker(&["exec", "-d", &container, "node", "-e", FILL]).await;
        haas.spawn();
        haas.ended().await;
        haas.clear_environment();
        haas.start().await;
        is_stopped(&haas, "filler").await;
        assert_eq!(event(&haas, "storage full").await, "1", "{boundary}");
        let user = haas.user("filler");
        eventually("the owner is told", LIMIT, || async { receiver.about(&user).pop() }).await;
        assert_eq!(filler.get("/hoodie/").await.unwrap().status(), StatusCode::INSUFFICIENT_STORAGE, "{boundary}");
        haas.haas(&["policy", &user, "notes", "--disk-mib", "0"]).await;
        assert!(filler.knows("dave").await, "{boundary}");
    }
}

#[tokio::test]
async fn a_user_has_so_many_apps_and_no_more() {
    let haas = Installation::up_with("[tenant]\napps_per_user = 2").await;
    let problem = async |path: &str, user: &str, app: &str| {
        let mut body = haas.request(user, app);
        if path == "/restore" {
            body.as_object_mut().unwrap().remove("emailaddress");
        }
        let answer = haas.post(path, &body).await.unwrap();
        let (status, body) = (answer.status(), answer.json::<Value>().await.unwrap());
        (status.as_u16(), body["type"].as_str().unwrap_or_default().to_owned(), body["detail"].clone())
    };
    let refused = (409, "urn:haas:problem:too-many-apps".to_owned(), Value::from("a user may have 2"));
    haas.provision("alice", "one").await;
    // Of many at once, one is let in.
    let asked = ["a", "b", "c", "d", "e"].map(async |app| {
        let answer = haas.post("/provision", &haas.request("alice", app)).await.unwrap();
        answer.status().as_u16()
    });
    let mut statuses = futures_util::future::join_all(asked).await;
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409, 409, 409, 409]);
    assert_eq!(haas.sql("SELECT count(*) FROM instances").await, "2", "nothing is left of those refused");
    assert_eq!(problem("/provision", "alice", "three").await, refused);
    let (code, _, errors) = haas.haas(&["provision", &haas.user("alice"), "three", "a@example.com"]).await;
    assert!(code == 5 && errors.contains("a user may have 2 apps"), "{code}: {errors}");
    // Asking again for one that is there is no new one; others are others.
    assert_eq!(problem("/provision", "alice", "one").await.0, 200);
    assert_eq!(problem("/provision", "bob", "one").await.0, 201);

    // A deleted one does not count, and does when it comes back.
    assert_eq!(haas.deprovision("alice", "one").await.0, 200);
    assert_eq!(problem("/provision", "alice", "three").await.0, 201);
    assert_eq!(problem("/restore", "alice", "one").await, refused);
    assert_eq!(problem("/provision", "alice", "one").await, refused);
    let (code, _, errors) = haas.haas(&["restore", &haas.user("alice"), "one"]).await;
    assert_eq!(code, 5, "{errors}");
    let file = haas.dir.path().join("bob.tar.zst");
    let file = file.to_str().unwrap();
    assert_eq!(haas.haas(&["export", &haas.user("bob"), "one", "-o", file]).await.0, 0);
    let (code, _, errors) = haas.haas(&["import", file, "--user", &haas.user("alice"), "--app", "four"]).await;
    assert!(code == 5 && errors.contains("a user may have 2 apps"), "{code}: {errors}");
    assert_eq!(haas.deprovision("alice", "three").await.0, 200);
    assert_eq!(problem("/restore", "alice", "one").await.0, 200);
}

#[tokio::test]
async fn a_name_that_passes_to_another_user_leads_to_none_of_the_data() {
    let haas = Installation::up().await;
    let volumes =
        async |id: &str| docker(&["volume", "ls", "-q", "--filter", &format!("label=haas.instance={id}")]).await;
    let id = async |user: &str, app: &str| haas.instance(user, app).await["id"].as_str().unwrap().to_owned();
    // Both are the container <word>-a-b-c.
    let first = haas.provision("a-b", "c").await;
    first.sign_up("carol").await;
    let container = haas.container("a-b", "c");
    assert_eq!(container, haas.container("a", "b-c"));
    let first_id = id("a-b", "c").await;
    let write = inside(&container, "fs.writeFileSync('/app/data/of-the-first', 'mine')").await;
    assert!(write.status.success());
    let collide = haas.post("/provision", &haas.request("a", "b-c")).await.unwrap();
    assert_eq!(collide.status(), 409);
    assert_eq!(haas.deprovision("a-b", "c").await.0, 200);

    let second = haas.provision("a", "b-c").await;
    let second_id = id("a", "b-c").await;
    let mounted = inspect(&container, "{{range .Mounts}}{{.Name}} {{end}}").await;
    assert_eq!(mounted, volumes(&second_id).await, "its own and no other");
    assert!(first_id != second_id && volumes(&first_id).await != mounted);
    let files = inside(&container, "console.log(fs.readdirSync('/app/data').join())").await;
    assert!(!String::from_utf8_lossy(&files.stdout).contains("of-the-first"), "{files:?}");
    assert!(!second.knows("carol").await, "nor does it know whom the first knew");
    second.sign_up("erin").await;

    // While the name is the second's, the first can't be had back, and nothing of either is harmed.
    let body = json!({ "secret": haas.secret(), "username": haas.user("a-b"), "appname": "c" });
    let restore = haas.post("/restore", &body).await.unwrap();
    assert_eq!(restore.status(), 409);
    assert_eq!(restore.json::<Value>().await.unwrap()["type"], "urn:haas:problem:name-taken");
    assert!(second.knows("erin").await);
    // Put to sleep, archived and woken, it is still its own.
    haas.order("archive", "a", "b-c").await;
    haas.comes_to_be("a", "b-c", "archived").await;
    assert!(second.knows("erin").await && !second.knows("carol").await);
    assert!(!volumes(&first_id).await.is_empty(), "the first's is there all the time");

    assert_eq!(haas.deprovision("a", "b-c").await.0, 200);
    let restore = haas.post("/restore", &body).await.unwrap();
    assert_eq!(restore.status(), 200);
    assert!(first.knows("carol").await && !first.knows("erin").await);
    let read = inside(&container, "console.log(fs.readFileSync('/app/data/of-the-first', 'utf8'))").await;
    assert_eq!(String::from_utf8_lossy(&read.stdout).trim(), "mine");
}
