//! What owners are told before something happens to their data, and what waits for that.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;

use super::support::eventually;
use super::support::installation::Installation;
use super::webhook::Receiver;
use super::{LIMIT, doings, id, told, volumes};

fn time(value: &Value) -> DateTime<Utc> {
    value.as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn owners_are_told_before_and_nothing_is_purged_unheard() {
    let receiver = Receiver::start().await;
    let settings = format!(
        "[tenant]\nstop_timeout = \"1s\"\n[reconcile]\nperiod = \"1s\"\n[lifecycle]\nidle_after = \"never\"\n\
         archive_after = \"8s\"\npurge_after = \"4s\"\nnotice_before = \"3s\"\nwebhook_url = \"{}\"",
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
    assert!(ahead >= TimeDelta::seconds(8) && ahead < TimeDelta::seconds(10), "{ahead}");
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
        let due = time(&message["data"]["due_at"]);
        assert!(due - restorable_until > TimeDelta::milliseconds(-5), "{message}");
        assert!(due - again.at > TimeDelta::milliseconds(2500), "its whole time, whenever it is told: {message}");
    }
    assert!(refused[2].at - refused[1].at > refused[1].at - refused[0].at, "later and later");
    receiver.take(&gone);
    eventually("it is purged", LIMIT, || async {
        (haas.sql(&format!("SELECT count(*) FROM instances WHERE id = '{gone_id}'")).await == "0").then_some(())
    })
    .await;
    let taken = receiver.about(&gone).pop().unwrap();
    assert_eq!(taken.headers["webhook-id"], refused[0].headers["webhook-id"]);
    // Told late, its owner has the whole time all the same.
    let time_left = TimeDelta::seconds(3);
    let purged =
        format!("SELECT to_json(at) #>> '{{}}' FROM events WHERE instance_id = '{gone_id}' AND kind = 'purge'");
    let purged: DateTime<Utc> = haas.sql(&purged).await.parse().unwrap();
    assert!(purged - taken.at >= time_left, "{}", purged - taken.at);
    assert_eq!(volumes(&format!("haas.instance={gone_id}")).await, [""; 0]);

    haas.comes_to_be("sleeper", "notes", "archived").await;
    assert_eq!(receiver.about(&sleeper).len(), 1, "taken once, it is not told again");
}

/// Whatever brought the moment nearer, nothing happens before a notice was delivered and its time is over.
#[tokio::test]
async fn a_shortened_policy_and_a_server_that_was_away_leave_the_owner_its_whole_time() {
    let receiver = Receiver::start().await;
    let settings = format!(
        "[tenant]\nstop_timeout = \"1s\"\n[reconcile]\nperiod = \"1s\"\n[lifecycle]\nidle_after = \"never\"\n\
         notice_before = \"4s\"\nwebhook_url = \"{}\"",
        receiver.url
    );
    let mut haas = Installation::up_with(&settings).await;
    for user in ["shortened", "away", "purged", "unheard"] {
        haas.provision(user, "notes").await;
    }
    haas.order("sleep", "shortened", "notes").await;
    haas.order("sleep", "away", "notes").await;
    haas.order("sleep", "unheard", "notes").await;
    haas.order("deprovision", "purged", "notes").await;
    receiver.refuse(&haas.user("unheard"), 500);
    let purged_id = id(&haas, "purged").await;
    let shorten = async |haas: &Installation, user: &str, time: &str| {
        let (code, _, errors) = haas.haas(&["policy", &haas.user(user), "notes", time, "1s"]).await;
        assert_eq!(code, 0, "{errors}");
    };
    // Past the time that it is shortened to.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    shorten(&haas, "shortened", "--archive-after").await;
    shorten(&haas, "purged", "--purge-after").await;
    shorten(&haas, "unheard", "--archive-after").await;
    let whole_time = async |haas: &Installation, user: &str, kind: &str| {
        let name = haas.user(user);
        let event = format!("SELECT to_json(at) #>> '{{}}' FROM events WHERE username = '{name}' AND kind = '{kind}'");
        let at = eventually(&format!("{kind} of {user}"), LIMIT, || async {
            haas.sql(&event).await.parse::<DateTime<Utc>>().ok()
        })
        .await;
        let told = receiver.about(&name).into_iter().next_back().unwrap_or_else(|| panic!("{user} was not told"));
        assert!(at - told.at >= TimeDelta::seconds(4), "{kind} of {user}: {} after it was told", at - told.at);
        let due = time(&told.json()["data"]["due_at"]);
        assert!(due - told.at > TimeDelta::seconds(2) && at >= due, "{user} was told of {due}, and it was {at}");
    };
    whole_time(&haas, "shortened", "archive").await;
    whole_time(&haas, "purged", "purge").await;
    eventually("it is purged", LIMIT, || async {
        (haas.sql(&format!("SELECT count(*) FROM instances WHERE id = '{purged_id}'")).await == "0").then_some(())
    })
    .await;
    // Nobody took the notice of this one, and more than the time of one is over.
    assert!(!receiver.about(&haas.user("unheard")).is_empty());
    assert_eq!(haas.instance("unheard", "notes").await["state"], "asleep");
    let (_, table, _) = haas.haas(&["gc", "--dry-run"]).await;
    assert!(table.contains("its owner was not told yet: the notice is not delivered"), "{table}");
    receiver.take(&haas.user("unheard"));
    whole_time(&haas, "unheard", "archive").await;
    // What it was told of another policy does not count for the next.
    haas.order("wake", "shortened", "notes").await;
    haas.order("sleep", "shortened", "notes").await;
    let told = receiver.about(&haas.user("shortened")).len();
    eventually("it is told of its new stay", LIMIT, || async {
        (receiver.about(&haas.user("shortened")).len() > told).then_some(())
    })
    .await;
    let (code, _, errors) = haas.haas(&["policy", &haas.user("shortened"), "notes", "--archive-after", "30d"]).await;
    assert_eq!(code, 0, "{errors}");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(haas.instance("shortened", "notes").await["state"], "asleep");
    shorten(&haas, "shortened", "--archive-after").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(haas.instance("shortened", "notes").await["state"], "asleep", "it has its time anew");
    haas.comes_to_be("shortened", "notes", "archived").await;
    // The server is away when the notice should be told, and when it should happen.
    haas.kill();
    shorten(&haas, "away", "--archive-after").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    haas.start().await;
    whole_time(&haas, "away", "archive").await;
    haas.comes_to_be("away", "notes", "archived").await;
}

#[tokio::test]
async fn whoever_comes_back_in_time_keeps_everything_and_its_notice_is_forgotten() {
    let receiver = Receiver::start().await;
    let settings = format!(
        "[tenant]\nstop_timeout = \"1s\"\n[reconcile]\nperiod = \"1s\"\n[lifecycle]\nidle_after = \"never\"\n\
         archive_after = \"8s\"\npurge_after = \"3s\"\nnotice_before = \"3s\"\nwebhook_url = \"{}\"",
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
