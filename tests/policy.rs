//! The clean-up policy, the whole way down: by itself, by `haas gc`, with its notices, and where one
//! departs from it. On the real engine, database and proxy.
#![allow(clippy::unwrap_used)]

#[path = "policy/notices.rs"]
mod notices;
mod support;
#[path = "support/webhook.rs"]
mod webhook;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use serde_json::{Value, json};
use support::eventually;
use support::hoodie::OpenRequest;
use support::installation::{Installation, docker};

const LIMIT: Duration = Duration::from_mins(1);

/// The volumes that were made for an instance, or for all with this label.
async fn volumes(label: &str) -> Vec<String> {
    let names = docker(&["volume", "ls", "-q", "--filter", &format!("label={label}")]).await;
    names.lines().map(str::to_owned).collect()
}

/// The files in the folder of archives, unfinished ones included.
fn archives(haas: &Installation) -> BTreeSet<String> {
    let entries = std::fs::read_dir(haas.layout.archive_dir()).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

async fn id(haas: &Installation, user: &str) -> String {
    haas.instance(user, "notes").await["id"].as_str().unwrap().to_owned()
}

/// A command's JSON; it has to work.
async fn told(haas: &Installation, arguments: &[&str]) -> Value {
    let (code, out, errors) = haas.haas(arguments).await;
    assert_eq!((code, errors.as_str()), (0, ""), "haas {arguments:?}: {out}");
    serde_json::from_str(&out).unwrap()
}

#[tokio::test]
async fn an_app_that_nobody_uses_goes_the_whole_way_down_by_itself() {
    let settings = "[tenant]\nstop_timeout = \"1s\"\n[reconcile]\nperiod = \"1s\"\n\
                    [lifecycle]\npause_after = \"1s\"\nidle_after = \"2s\"\narchive_after = \"2s\"\n\
                    delete_after = \"2s\"\npurge_after = \"2s\"\npurge_needs_notice = false";
    let haas = Installation::up_with(settings).await;
    haas.provision("alice", "notes").await;
    let id = id(&haas, "alice").await;
    let mut seen: Vec<String> = Vec::new();
    let label = format!("haas.instance={id}");
    let (mut containers, mut volume, mut files) = (false, false, false);
    let deadline = Instant::now() + LIMIT;
    loop {
        let answer = haas.control(&format!("/instances/{}/notes", haas.user("alice"))).await.unwrap();
        if answer.status() == 404 {
            break;
        }
        let state = answer.json::<Value>().await.unwrap()["state"].as_str().unwrap().to_owned();
        assert!(Instant::now() < deadline, "it stays {state} after {seen:?}");
        if !seen.contains(&state) {
            seen.push(state);
        }
        containers |= haas.containers().await == [haas.container("alice", "notes")];
        volume |= volumes(&label).await.len() == 1;
        files |= archives(&haas).len() == 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Both ways of being on the way may be seen, or missed.
    seen.retain(|state| state != "pending" && state != "deleting");
    assert_eq!(seen, ["running", "paused", "asleep", "archived", "deleted"]);
    assert!(containers && volume && files, "each was there to begin with: {containers} {volume} {files}");

    let steps = [
        "pause",
        "paused",
        "sleep",
        "asleep",
        "archive",
        "data archived",
        "archived",
        "delete",
        "deleted",
        "purge",
        "purged",
    ];
    let steps = steps.map(|step| format!("'{step}'")).join(",");
    let kinds = format!(
        "SELECT string_agg(kind, ',' ORDER BY id) FROM events WHERE instance_id = '{id}' AND kind IN ({steps})"
    );
    assert_eq!(haas.sql(&kinds).await, steps.replace('\'', ""), "each once, in this order");
    assert_eq!(haas.sql("SELECT count(*) FROM instances").await, "0");
    assert_eq!(haas.sql("SELECT count(*) FROM events WHERE detail::text LIKE '%@%'").await, "0");
    assert!(haas.containers().await.is_empty());
    assert_eq!(volumes(&label).await, [""; 0]);
    assert_eq!(archives(&haas), BTreeSet::new());
    // The name is free: somebody else's data begins anew.
    let again = haas.post("/provision", &haas.request("alice", "notes")).await.unwrap();
    assert_eq!(again.status(), 201);
    let again: Value = again.json().await.unwrap();
    assert!(again["id"] != id.as_str() && again["restored"] == false, "{again}");
}

#[tokio::test]
async fn one_app_departs_from_the_policy_and_goes_back_to_it() {
    let haas = Installation::up_with("[reconcile]\nperiod = \"1s\"\n[lifecycle]\nidle_after = \"2s\"").await;
    let user = haas.user("alice");
    let (code, out, _) = haas.haas(&["policy", &user, "notes"]).await;
    assert_eq!((code, out.as_str()), (4, ""), "there is none yet");
    let kept = haas.provision("alice", "notes").await;
    let (code, out, errors) = haas.haas(&["policy", &user, "notes", "--idle-after", "never"]).await;
    assert_eq!(code, 0, "{errors}");
    let lines: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(lines.contains(&vec!["idle_after", "never", "its", "own"]), "{out}");
    assert!(lines.contains(&vec!["archive_after", "30d", "the", "installation's"]), "{out}");
    haas.provision("alice", "todo").await;
    // It may have been put to sleep before.
    assert!(kept.answers().await);
    haas.comes_to_be("alice", "todo", "asleep").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(haas.instance("alice", "notes").await["state"], "running");

    let listed: Value = haas.control("/instances").await.unwrap().json().await.unwrap();
    let policy = |app: &str| {
        let rows = listed["instances"].as_array().unwrap();
        rows.iter().find(|row| row["appname"] == app).unwrap()["policy"].clone()
    };
    assert_eq!((policy("notes"), policy("todo")), (json!({ "idle_after": "never" }), Value::Null));
    let both = told(&haas, &["policy", &user, "notes", "--purge-after", "90d", "--json"]).await;
    let all = json!({ "idle_after": "never", "pause_after": "never", "archive_after": "30d",
        "delete_after": "never", "purge_after": "90d", "disk_mib": 1024, "files": 100_000 });
    assert_eq!(both, json!({ "policy": all, "overrides": { "idle_after": "never", "purge_after": "90d" } }));

    for bad in ["soon", "5", "-1s", "1.5h", ""] {
        let (code, _, errors) = haas.haas(&["policy", &user, "notes", &format!("--idle-after={bad}")]).await;
        assert_eq!(code, 2, "{bad}: {errors}");
        assert!(errors.contains("must be a time such as") || bad.is_empty(), "{bad}: {errors}");
    }
    assert_eq!(told(&haas, &["policy", &user, "notes", "--json"]).await, both, "nothing was changed");

    let both = told(&haas, &["policy", &user, "notes", "--idle-after", "default", "--json"]).await;
    assert_eq!((&both["policy"]["idle_after"], &both["overrides"]), (&"2s".into(), &json!({ "purge_after": "90d" })));
    haas.comes_to_be("alice", "notes", "asleep").await;
}

/// What there is, as far as gc could change it.
async fn everything(haas: &Installation) -> (String, String, String, BTreeSet<String>) {
    let label = format!("label=haas.installation={}", haas.sql("SELECT id FROM installation").await);
    (
        haas.sql("SELECT string_agg(instances::text, ' ' ORDER BY id), (SELECT count(*) FROM events), (SELECT count(*) FROM notices) FROM instances").await,
        docker(&["ps", "-a", "--filter", &label, "--format", "{{.ID}} {{.State}} {{.Names}}"]).await,
        docker(&["volume", "ls", "--filter", &label]).await,
        archives(haas),
    )
}

/// Each row of `haas gc --json`, without why: what to whom, and what became of it.
fn doings(rows: &Value) -> BTreeSet<(String, String, bool, String)> {
    let text = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
    let rows = rows.as_array().unwrap().iter();
    rows.map(|row| (text(row, "what"), text(row, "whom"), row["due"] == true, text(row, "outcome"))).collect()
}

#[tokio::test]
async fn gc_says_what_it_would_do_and_then_does_that_and_no_more() {
    let settings = "[reconcile]\nperiod = \"1s\"\n[lifecycle]\npurge_needs_notice = false";
    let mut haas = Installation::up_with(settings).await;
    for user in ["idle", "used", "old", "kept", "young", "gone"] {
        haas.provision(user, "notes").await;
    }
    haas.hoodie("old", "notes").sign_up("carol").await;
    for user in ["old", "kept", "young"] {
        haas.order("sleep", user, "notes").await;
    }
    haas.order("deprovision", "gone", "notes").await;
    let gone = id(&haas, "gone").await;
    let (code, _, errors) = haas.haas(&["policy", &haas.user("kept"), "notes", "--archive-after", "never"]).await;
    assert_eq!(code, 0, "{errors}");
    assert_eq!(haas.haas(&["gc"]).await.1.trim(), "nothing is due");

    // Nobody does it before gc is asked. What is due is so by the rows alone, and HAProxy's word.
    haas.kill();
    let open = OpenRequest::start(&haas.hoodie("used", "notes"));
    let users =
        |names: &[&str]| names.iter().map(|name| format!("'{}'", haas.user(name))).collect::<Vec<_>>().join(",");
    let (slept, awake, deleted) = (users(&["old", "kept"]), users(&["idle", "used"]), users(&["gone"]));
    haas.sql(&format!("UPDATE instances SET phase_since = now() - interval '40 days' WHERE username IN ({slept})"))
        .await;
    haas.sql(&format!("UPDATE instances SET overrides = '{{\"idle_after\": \"2s\"}}' WHERE username IN ({awake})"))
        .await;
    haas.sql(&format!("UPDATE instances SET restorable_until = now() - interval '1 s' WHERE username = {deleted}"))
        .await;
    tokio::time::sleep(Duration::from_secs(3)).await;

    let before = everything(&haas).await;
    let wanted = |outcome: &str| -> BTreeSet<_> {
        [("sleep", "idle"), ("archive", "old"), ("purge", "gone")]
            .into_iter()
            .map(|(what, user)| (what.to_owned(), haas.container(user, "notes"), true, outcome.to_owned()))
            .collect()
    };
    let dry = told(&haas, &["gc", "--dry-run", "--json"]).await;
    assert_eq!(doings(&dry), wanted(""), "{dry}");
    let why = |rows: &Value, what: &str| {
        let row = rows.as_array().unwrap().iter().find(|row| row["what"] == what).unwrap().clone();
        row["why"].as_str().unwrap().to_owned()
    };
    let forty_days_ago = (Utc::now() - TimeDelta::days(40)).format("%F");
    assert!(
        why(&dry, "sleep").starts_with("not used since ") && why(&dry, "sleep").ends_with("(idle_after 2s)"),
        "{dry}"
    );
    assert!(why(&dry, "archive").starts_with(&format!("asleep since {forty_days_ago} ")), "{dry}");
    assert!(
        why(&dry, "archive").ends_with("(archive_after 30d)") && why(&dry, "purge").ends_with("(purge_after 30d)"),
        "{dry}"
    );
    // The same for people.
    let (code, table, _) = haas.haas(&["gc", "--dry-run"]).await;
    assert_eq!((code, table.lines().count()), (0, 4), "{table}");
    let line = table.lines().find(|line| line.starts_with("archive")).unwrap();
    let line: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(line[..3], ["archive", &haas.container("old", "notes"), "happen"], "{table}");
    assert_eq!(everything(&haas).await, before, "a dry run changes nothing");

    let done = told(&haas, &["gc", "--json"]).await;
    assert_eq!(doings(&done), wanted("written: the server carries it out"), "{done}");
    assert_eq!((why(&done, "archive"), why(&done, "purge")), (why(&dry, "archive"), why(&dry, "purge")));
    let desired =
        "SELECT string_agg(split_part(username, '-', 2) || ' ' || desired, ',' ORDER BY username) FROM instances";
    assert_eq!(
        haas.sql(desired).await,
        "gone purged,idle asleep,kept asleep,old archived,used running,young asleep",
        "the intent is written"
    );
    let after = everything(&haas).await;
    assert_eq!((&after.1, &after.2, &after.3), (&before.1, &before.2, &before.3), "the server carries it out");
    assert_eq!(haas.haas(&["gc"]).await.1.trim(), "nothing is due", "it was decided already");

    haas.start().await;
    haas.comes_to_be("idle", "notes", "asleep").await;
    haas.comes_to_be("old", "notes", "archived").await;
    eventually("the deleted one is purged", LIMIT, || async {
        (haas.sql(&format!("SELECT count(*) FROM instances WHERE id = '{gone}'")).await == "0").then_some(())
    })
    .await;
    assert_eq!(volumes(&format!("haas.instance={gone}")).await, [""; 0]);
    for (user, state) in [("used", "running"), ("kept", "asleep"), ("young", "asleep")] {
        assert_eq!(haas.instance(user, "notes").await["state"], state, "{user}");
    }
    let steps = "SELECT string_agg(kind, ',' ORDER BY kind) FROM events
                 WHERE kind IN ('pause', 'sleep', 'archive', 'delete', 'purge') AND detail->>'why' <> 'asked for by a command'";
    assert_eq!(haas.sql(steps).await, "archive,purge,sleep", "and no more than that");
    let answered = open.answered().await;
    assert!(answered < 500, "Hoodie itself has answered: {answered}");
    assert!(haas.hoodie("old", "notes").knows("carol").await, "unpacked by the first request");
}

/// A volume of somebody else's; removed when it is dropped.
struct Stranger(String);

impl Drop for Stranger {
    fn drop(&mut self) {
        std::process::Command::new("docker").args(["volume", "rm", "-f", &self.0]).output().ok();
    }
}

/// Makes a volume with these labels and a file of 5000 bytes.
async fn volume(name: &str, installation: &str, instance: &str) {
    let (installation, instance) = (format!("haas.installation={installation}"), format!("haas.instance={instance}"));
    docker(&["volume", "create", "--label", &installation, "--label", &instance, name]).await;
    let write = "require('fs').writeFileSync('/data/file', Buffer.alloc(5000))";
    let mount = format!("{name}:/data");
    docker(&["run", "--rm", "-u", "0", "-v", &mount, "--entrypoint", "node", "haas/hoodie:28.2.10", "-e", write]).await;
}

#[tokio::test]
async fn what_no_instance_claims_goes_after_its_time_of_grace_and_nothing_else() {
    let settings = "[reconcile]\nperiod = \"1s\"\n[lifecycle]\nunclaimed_grace = \"1h\"";
    let haas = Installation::up_with(settings).await;
    for user in ["live", "deleted", "archived", "both"] {
        haas.provision(user, "notes").await.sign_up("carol").await;
    }
    haas.order("archive", "archived", "notes").await;
    haas.order("archive", "both", "notes").await;
    haas.order("deprovision", "both", "notes").await;
    haas.order("deprovision", "deleted", "notes").await;
    let own = haas.sql("SELECT id FROM installation").await;
    let label = format!("haas.installation={own}");
    let (claimed, files) = (volumes(&label).await, archives(&haas));
    assert_eq!((claimed.len(), files.len()), (2, 2), "{claimed:?} {files:?}");

    let unknown = uuid::Uuid::new_v4().to_string();
    let (stray, stranger) = (format!("{}-stray", haas.word), Stranger(format!("{}-stranger", haas.word)));
    volume(&stray, &own, &unknown).await;
    volume(&stranger.0, &uuid::Uuid::new_v4().to_string(), &unknown).await;
    std::fs::write(haas.layout.archive_dir().join("stray.tar.zst"), [0; 2500]).unwrap();
    let (code, doctor, _) = haas.haas(&["doctor"]).await;
    assert_eq!(code, 0, "a warning is no harm: {doctor}");
    let unclaimed: Vec<&str> = doctor.lines().filter(|line| line.contains(" unclaimed ")).collect();
    assert_eq!(unclaimed.len(), 2, "{doctor}");
    for (what, size) in [(format!("volume {stray}"), "5 KiB"), ("archive stray.tar.zst".to_owned(), "3 KiB")] {
        let line = unclaimed.iter().find(|line| line.contains(&what)).unwrap();
        let told = line.split_once(&format!("{what}, ")).unwrap().1;
        let (age, told) = told.split_once(" old, ").unwrap();
        assert!(age.strip_suffix('s').is_some_and(|age| age.parse::<u32>().unwrap() < 60), "{line}");
        assert!(told.starts_with(&format!("{size}: claimed by no instance since ")), "{line}");
    }

    let all = || async { (volumes(&label).await, archives(&haas)) };
    let with_strays = all().await;
    assert_eq!((with_strays.0.len(), with_strays.1.len()), (3, 3));
    assert_eq!(haas.haas(&["gc"]).await.1.trim(), "nothing is due", "they have an hour");
    assert_eq!(all().await, with_strays);
    let impatient = haas.dir.path().join("impatient.toml");
    std::fs::write(&impatient, settings.replace("1h", "0s")).unwrap();
    let impatient = impatient.to_str().unwrap();
    let wanted = |outcome: &str| {
        [format!("volume {stray}"), "archive stray.tar.zst".to_owned()]
            .map(|whom| ("remove".to_owned(), whom, true, outcome.to_owned()))
            .into()
    };
    let dry = told(&haas, &["gc", "--dry-run", "--json", "--config", impatient]).await;
    assert_eq!(doings(&dry), wanted(""), "{dry}");
    assert_eq!(all().await, with_strays, "a dry run changes nothing");
    let (code, out, _) = haas.haas(&["gc", "--json", "--config", impatient]).await;
    let done: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, doings(&done)), (0, wanted("removed")), "{done}");
    assert_eq!(all().await, (claimed, files));
    assert_eq!(
        volumes(&format!("haas.instance={unknown}")).await,
        [stranger.0.as_str()],
        "another installation's stays"
    );
    assert!(!haas.haas(&["doctor"]).await.1.contains(" unclaimed "));
    assert_eq!(haas.sql("SELECT count(*) FROM unclaimed").await, "0");

    haas.order("restore", "deleted", "notes").await;
    haas.order("restore", "both", "notes").await;
    for user in ["live", "deleted", "archived", "both"] {
        assert!(haas.hoodie(user, "notes").knows("carol").await, "{user}");
    }
}
