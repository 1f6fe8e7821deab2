//! The clean-up policy, the whole way down: by itself, by `haas gc`, with its notices, and where one
//! departs from it. On the real engine, database and proxy.
#![allow(clippy::unwrap_used)]

mod support;
#[path = "support/webhook.rs"]
mod webhook;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use support::eventually;
use support::hoodie::OpenRequest;
use support::installation::{Installation, docker};
use webhook::Receiver;

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
        "delete_after": "never", "purge_after": "90d" });
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

fn time(value: &Value) -> DateTime<Utc> {
    value.as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn owners_are_told_before_and_nothing_is_purged_unheard() {
    let receiver = Receiver::start().await;
    let settings = format!(
        "[tenant]\nstop_timeout = \"1s\"\n[reconcile]\nperiod = \"1s\"\n[lifecycle]\nidle_after = \"never\"\n\
         archive_after = \"8s\"\npurge_after = \"4s\"\nwebhook_url = \"{}\"",
        receiver.url
    );
    let haas = Installation::up_with(&settings).await;
    let key = std::fs::read_to_string(haas.layout.secrets_dir().join("webhook.key")).unwrap();
    let sleeper = haas.user("sleeper");
    let gone = haas.user("gone");
    receiver.refuse(&gone, 500);
    for user in ["sleeper", "gone"] {
        haas.provision(user, "notes").await;
    }
    let (sleeper_id, gone_id) = (id(&haas, "sleeper").await, id(&haas, "gone").await);
    haas.order("sleep", "sleeper", "notes").await;
    haas.order("deprovision", "gone", "notes").await;
    let restorable_until = time(&haas.instance("gone", "notes").await["restorable_until"]);

    // Before an archive: while it still sleeps.
    let first =
        eventually("the owner is told of the archive", LIMIT, || async { receiver.about(&sleeper).pop() }).await;
    assert!(first.is_signed_with(key.trim()) && !first.is_signed_with("YW5vdGhlciBrZXk="), "{first:?}");
    assert_eq!(first.request_line, "POST /notices?of=haas HTTP/1.1");
    assert_eq!(first.headers["content-type"], "application/json");
    let sent = DateTime::from_timestamp(first.headers["webhook-timestamp"].parse().unwrap(), 0).unwrap();
    assert!((first.at - sent).abs() < TimeDelta::seconds(5), "{first:?}");
    let message = first.json();
    assert_eq!(message["id"], first.headers["webhook-id"].as_str());
    assert_eq!(message["type"], "instance.archive");
    let data = &message["data"];
    assert_eq!((&data["id"], &data["username"]), (&sleeper_id.as_str().into(), &sleeper.as_str().into()));
    assert_eq!((&data["appname"], &data["state"]), (&"notes".into(), &"asleep".into()));
    assert_eq!(data["emailaddress"], "sleeper@example.com");
    let asleep_since =
        format!("SELECT to_json(at) #>> '{{}}' FROM events WHERE instance_id = '{sleeper_id}' AND kind = 'asleep'");
    let asleep_since: DateTime<Utc> = haas.sql(&asleep_since).await.parse().unwrap();
    let ahead = time(&data["due_at"]) - asleep_since;
    assert!((ahead - TimeDelta::seconds(8)).abs() < TimeDelta::seconds(1), "{ahead}");
    assert!(first.at < time(&data["due_at"]), "it is told before");

    // Before a purge: as long as nobody takes it, it is told again, and does not happen.
    let refused = eventually("it is told three times, and is due by now", LIMIT, || async {
        let all = receiver.about(&gone);
        let due = all.last().is_some_and(|last| last.at > restorable_until + TimeDelta::seconds(1));
        (all.len() >= 3 && due).then_some(all)
    })
    .await;
    assert_eq!(haas.instance("gone", "notes").await["state"], "deleted");
    assert_eq!(volumes(&format!("haas.instance={gone_id}")).await.len(), 1);
    let (code, table, _) = haas.haas(&["gc"]).await;
    assert_eq!(code, 0);
    assert!(table.contains("its owner was not told yet: the notice is not delivered"), "{table}");
    for again in &refused {
        assert_eq!(again.headers["webhook-id"], refused[0].headers["webhook-id"]);
        assert!(again.is_signed_with(key.trim()), "{again:?}");
        let message = again.json();
        assert_eq!((&message["id"], &message["type"]), (&refused[0].json()["id"], &"instance.purge".into()));
        assert_eq!((&message["data"]["id"], &message["data"]["state"]), (&gone_id.as_str().into(), &"deleted".into()));
        assert_eq!(message["data"]["emailaddress"], "gone@example.com");
        assert!((time(&message["data"]["due_at"]) - restorable_until).abs() < TimeDelta::milliseconds(5), "{message}");
    }
    assert!(refused[2].at - refused[1].at > refused[1].at - refused[0].at, "later and later");
    receiver.take(&gone);
    eventually("it is purged", LIMIT, || async {
        (haas.sql(&format!("SELECT count(*) FROM instances WHERE id = '{gone_id}'")).await == "0").then_some(())
    })
    .await;
    let taken = receiver.about(&gone).pop().unwrap();
    assert_eq!(taken.headers["webhook-id"], refused[0].headers["webhook-id"]);
    // Told late, its owner has as much time as there would have been.
    let message = taken.json();
    let time_left = time(&message["data"]["due_at"]) - time(&message["timestamp"]);
    let purged =
        format!("SELECT to_json(at) #>> '{{}}' FROM events WHERE instance_id = '{gone_id}' AND kind = 'purge'");
    let purged: DateTime<Utc> = haas.sql(&purged).await.parse().unwrap();
    assert!(time_left > TimeDelta::seconds(1) && purged - taken.at >= time_left, "{time_left}, {}", purged - taken.at);
    assert_eq!(volumes(&format!("haas.instance={gone_id}")).await, [""; 0]);

    haas.comes_to_be("sleeper", "notes", "archived").await;
    assert_eq!(receiver.about(&sleeper).len(), 1, "taken once, it is not told again");
}

#[tokio::test]
async fn whoever_comes_back_in_time_keeps_everything_and_its_notice_is_forgotten() {
    let receiver = Receiver::start().await;
    let settings = format!(
        "[tenant]\nstop_timeout = \"1s\"\n[reconcile]\nperiod = \"1s\"\n[lifecycle]\nidle_after = \"never\"\n\
         archive_after = \"8s\"\npurge_after = \"3s\"\nwebhook_url = \"{}\"",
        receiver.url
    );
    let haas = Installation::up_with(&settings).await;
    let users = ["woken", "restored"];
    for user in users {
        receiver.refuse(&haas.user(user), 500);
        haas.provision(user, "notes").await.sign_up("carol").await;
    }
    haas.order("sleep", "woken", "notes").await;
    haas.order("deprovision", "restored", "notes").await;
    for user in users {
        eventually("its owner was to be told", LIMIT, || async { receiver.about(&haas.user(user)).pop() }).await;
        assert_eq!(haas.sql(&undelivered(&id(&haas, user).await)).await, "1", "{user}");
    }
    // One by a request, the other by a command.
    assert!(haas.hoodie("woken", "notes").knows("carol").await);
    haas.order("restore", "restored", "notes").await;
    assert!(haas.hoodie("restored", "notes").knows("carol").await);
    for user in users {
        let id = id(&haas, user).await;
        eventually("its notice is forgotten", LIMIT, || async {
            (haas.sql(&undelivered(&id)).await == "0").then_some(())
        })
        .await;
    }
    let told: Vec<usize> = users.iter().map(|user| receiver.about(&haas.user(user)).len()).collect();
    // Past either time, and past the next attempts.
    tokio::time::sleep(Duration::from_secs(9)).await;
    for (user, told) in users.iter().zip(told) {
        assert_eq!(receiver.about(&haas.user(user)).len(), told, "{user}");
        assert_eq!(haas.instance(user, "notes").await["state"], "running", "{user}");
        assert!(haas.hoodie(user, "notes").knows("carol").await, "{user}");
    }
    assert_eq!(haas.sql("SELECT count(*) FROM events WHERE kind IN ('archive', 'purge')").await, "0");
}

fn undelivered(id: &str) -> String {
    format!("SELECT count(*) FROM notices WHERE instance_id = '{id}' AND delivered_at IS NULL")
}

#[tokio::test]
async fn without_anybody_to_tell_nothing_is_purged_by_time() {
    let haas = Installation::up_with("[reconcile]\nperiod = \"1s\"\n[lifecycle]\npurge_after = \"1s\"").await;
    haas.provision("alice", "notes").await.sign_up("carol").await;
    haas.order("deprovision", "alice", "notes").await;
    let id = id(&haas, "alice").await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    for arguments in [&["gc", "--dry-run", "--json"][..], &["gc", "--json"]] {
        let rows = told(&haas, arguments).await;
        let wanted = ("purge".to_owned(), haas.container("alice", "notes"), false, String::new());
        assert_eq!(doings(&rows), BTreeSet::from([wanted]), "{rows}");
        let why = rows[0]["why"].as_str().unwrap();
        assert!(why.starts_with("deleted since ") && why.contains("(purge_after 1s)"), "{why}");
        assert!(why.ends_with("but its owner can't be told: lifecycle.webhook_url is empty"), "{why}");
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(haas.instance("alice", "notes").await["state"], "deleted");
    assert_eq!(volumes(&format!("haas.instance={id}")).await.len(), 1);
    haas.order("restore", "alice", "notes").await;
    assert!(haas.hoodie("alice", "notes").knows("carol").await);
    // By hand it needs nobody.
    haas.order("purge", "alice", "notes").await;
    assert_eq!(volumes(&format!("haas.instance={id}")).await, [""; 0]);
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
