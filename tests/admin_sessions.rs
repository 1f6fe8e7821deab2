//! Sessions of an owner who is signed on: what they outlive, and what ends them. On the real engine,
//! database and proxy.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::eventually;
use support::hoodie::Hoodie;
use support::installation::{Installation, docker};
use support::sign_on::{is_admin, link, open, signed_on};

const LIMIT: Duration = Duration::from_mins(1);
const IMAGE: &str = "haas/hoodie:28.2.10";

#[tokio::test]
async fn an_owner_stays_signed_on_across_sleep_crash_and_a_new_container() {
    let haas = Installation::up_with("[lifecycle]\nidle_after = \"never\"\n[reconcile]\nperiod = \"1s\"").await;
    let hoodie = haas.provision("alice", "notes").await;
    let session = signed_on(&haas, "alice").await;
    let container = haas.container("alice", "notes");

    haas.order("sleep", "alice", "notes").await;
    assert!(is_admin(&hoodie, &session).await, "after sleep and wake");
    haas.order("archive", "alice", "notes").await;
    assert!(is_admin(&hoodie, &session).await, "after an archive");
    haas.comes_to_be("alice", "notes", "running").await;
    docker(&["restart", "-t", "1", &container]).await;
    haas.running_again("alice", "notes", LIMIT).await;
    assert!(is_admin(&hoodie, &session).await, "after a restart");
    docker(&["rm", "-f", &container]).await;
    haas.running_again("alice", "notes", LIMIT).await;
    assert!(is_admin(&hoodie, &session).await, "after its container was lost");
    // A session of its own, of an app of its own.
    let other = haas.provision("bob", "notes").await;
    assert!(!is_admin(&other, &session).await);
    // And of one life: what comes back has another password.
    haas.deprovision("alice", "notes").await;
    haas.provision("alice", "notes").await;
    assert!(!is_admin(&hoodie, &session).await);
}

#[tokio::test]
async fn a_session_ends_at_the_time_that_it_carries_and_without_a_salt_all_is_as_it_was() {
    let program = "
        require('/app/admin-sessions');
        const admins = (sessionTimeout) => require('/app/node_modules/pouchdb-admins').admins.call(null, { secret: 's', sessionTimeout });
        const goes = async (made, checked) => {
          for (const each of [made, checked]) await each.set('admin', 'pw');
          const id = await made.calculateSessionId('admin');
          return checked.validateSession(id).then(() => 'good', (error) => error.status);
        };
        (async () => {
          const long = admins(60), other = admins(60), over = admins(-60);
          console.log(await goes(long, long), await goes(long, other), await goes(over, over), process.env.HAAS_ADMIN_SESSION_SALT);
        })()";
    let run = async |salt: &str| {
        let salt = format!("HAAS_ADMIN_SESSION_SALT={salt}");
        docker(&["run", "--rm", "--network", "none", "-e", &salt, "--entrypoint", "node", IMAGE, "-e", program]).await
    };
    assert_eq!(run(&"5a".repeat(16)).await, "good good 401 undefined");
    assert_eq!(run("").await, "good 401 good undefined", "as Hoodie itself has it");
}

#[tokio::test]
async fn rotate_ends_every_session_of_the_admin_and_nothing_else() {
    let haas = Installation::up_with("[lifecycle]\nidle_after = \"never\"").await;
    let hoodie = haas.provision("alice", "notes").await;
    hoodie.sign_up("carol").await;
    let carol = user_session(&hoodie, "carol").await;
    let (first, outstanding) = (signed_on(&haas, "alice").await, link(&haas, "alice", "notes").await);
    let container = haas.container("alice", "notes");
    let id = docker(&["inspect", "-f", "{{.Id}}", &container]).await;
    let image = "SELECT spec->>'image', next_spec IS NULL, rolling FROM instances";
    assert_eq!(haas.sql(image).await, format!("{IMAGE}|t|f"));

    // Whoever asks meanwhile waits, and is answered.
    let mut command = haas.command(&["rotate", &haas.user("alice"), "notes"]);
    let rotated = tokio::task::spawn_blocking(move || command.output().unwrap());
    let (mut asked, mut longest) = (0, Duration::ZERO);
    while !rotated.is_finished() {
        let began = Instant::now();
        assert!(hoodie.answers().await, "no request fails");
        (asked, longest) = (asked + 1, longest.max(began.elapsed()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("{asked} requests during a rotation, the longest took {longest:?}");
    let output = rotated.await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("answers at"));
    assert_ne!(docker(&["inspect", "-f", "{{.Id}}", &container]).await, id);
    assert_eq!(haas.sql(image).await, format!("{IMAGE}|t|f"), "of the same as before");

    assert!(!is_admin(&hoodie, &first).await);
    assert_eq!(open(&hoodie, &outstanding).await.status(), 403);
    assert!(is_signed_in(&hoodie, &carol).await && hoodie.knows("carol").await, "its users feel nothing");
    let shown = haas.instance("alice", "notes").await;
    assert_eq!((&shown["restored"], &shown["state"]), (&false.into(), &"running".into()), "it is no second life");
    let second = signed_on(&haas, "alice").await;

    // One that sleeps sleeps on. Not even its old container lets anybody in with the old one.
    haas.order("sleep", "alice", "notes").await;
    let outstanding = link(&haas, "alice", "notes").await;
    let (code, out, errors) = haas.haas(&["rotate", &haas.user("alice"), "notes"]).await;
    assert_eq!(code, 0, "{errors}");
    assert!(out.contains("is asleep"), "{out}");
    assert_eq!(haas.instance("alice", "notes").await["state"], "asleep");
    assert_eq!(open(&hoodie, &outstanding).await.status(), 403);
    assert!(!is_admin(&hoodie, &second).await, "this has woken it");
    assert!(is_signed_in(&hoodie, &carol).await);
    signed_on(&haas, "alice").await;
    // Asked for many times, and by links while it is made anew: it ends well.
    haas.order("rotate", "alice", "notes").await;
    for _ in 0..3 {
        let user = haas.user("alice");
        let (code, _, errors) = haas.haas(&["rotate", &user, "notes", "--no-wait"]).await;
        assert_eq!(code, 0, "{errors}");
    }
    signed_on(&haas, "alice").await;
    assert_eq!(haas.sql("SELECT count(*) FROM events WHERE kind = 'rotated'").await, "6");
    assert_eq!(haas.haas(&["doctor"]).await.0, 0);
}

/// A session of one of the app's users.
async fn user_session(hoodie: &Hoodie, name: &str) -> String {
    let body = json!({ "data": { "type": "session",
        "attributes": { "username": name, "password": format!("password of {name}") } } });
    let request = hoodie.client.put(hoodie.url("/hoodie/account/api/session")).header("host", &hoodie.host);
    let answer =
        request.header("content-type", "application/vnd.api+json").body(body.to_string()).send().await.unwrap();
    let text = answer.text().await.unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["data"]["id"].as_str().unwrap().to_owned()
}

async fn is_signed_in(hoodie: &Hoodie, session: &str) -> bool {
    let request = hoodie.client.get(hoodie.url("/hoodie/account/api/session")).header("host", &hoodie.host);
    request.header("authorization", format!("Session {session}")).send().await.unwrap().status() == 200
}

#[cfg(feature = "failpoints")]
#[tokio::test]
async fn a_rotation_that_is_cut_off_is_finished_by_whoever_comes_next() {
    use haas::failpoint::Boundary;
    let settings = "[reconcile]\norphan_grace = \"1s\"\nperiod = \"1s\"\n[lifecycle]\nidle_after = \"never\"";
    for boundary in
        [Boundary::Drained, Boundary::ContainerRemoved, Boundary::ContainerCreated, Boundary::RouteConfirmed]
    {
        let mut haas = Installation::up_with(settings).await;
        let hoodie = haas.provision("alice", "notes").await;
        hoodie.sign_up("carol").await;
        let before = signed_on(&haas, "alice").await;
        haas.kill();
        haas.set_environment("HAAS_FAILPOINT", &format!("{boundary:?}"));
        haas.spawn();
        haas.reachable().await;
        let (code, _, errors) = haas.haas(&["rotate", &haas.user("alice"), "notes", "--no-wait"]).await;
        assert_eq!(code, 0, "{errors}");
        haas.ended().await;
        assert!(haas.log().contains("ending this process"), "it died of the failpoint");
        haas.clear_environment();
        haas.start().await;
        haas.running_again("alice", "notes", LIMIT).await;
        eventually("all of it is carried out", LIMIT, || async {
            let done = "SELECT generation = 2 AND observed_generation = 2 AND NOT rolling FROM instances";
            (haas.sql(done).await == "t").then_some(())
        })
        .await;
        assert!(!is_admin(&hoodie, &before).await, "{boundary:?}");
        signed_on(&haas, "alice").await;
        assert!(hoodie.knows("carol").await, "{boundary:?}");
        assert_eq!(haas.containers().await, [haas.container("alice", "notes")]);
    }
}
