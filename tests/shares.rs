//! More than one's share: apps of one user that hang at their start, or are restored for ever, keep no
//! place from the apps of others. On the real engine, database and proxy.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use reqwest::StatusCode;
use support::eventually;
use support::hanging::hangs;
use support::hoodie::Hoodie;
use support::installation::{Installation, docker};

const LIMIT: Duration = Duration::from_mins(1);
const BAD: [&str; 6] = ["a1", "a2", "a3", "a4", "a5", "a6"];

/// Few places, and little patience; a Hoodie that hangs does so for longer than anybody waits.
const FEW_PLACES: &str = "[tenant]\nready_timeout = \"2m\"\nstop_timeout = \"1s\"\n[http]\nwait = \"12s\"\n\
                          [reconcile]\nconcurrency = 2\n[lifecycle]\nwake_timeout = \"12s\"\nwake_concurrency = 2\n";

/// Apps of one user that sleep, and hang when they are woken.
async fn hanging(haas: &Installation, apps: &[&str]) -> Vec<Hoodie> {
    let mut hoodies = Vec::new();
    for app in apps {
        hoodies.push(haas.provision("bad", app).await);
        hangs(haas, "bad", app).await;
    }
    hoodies
}

async fn sleeper(haas: &Installation, user: &str) -> Hoodie {
    let hoodie = haas.provision(user, "notes").await;
    haas.order("sleep", user, "notes").await;
    haas.comes_to_be(user, "notes", "asleep").await;
    hoodie
}

/// Visitors, each of which waits for an answer.
fn visit(hoodies: Vec<Hoodie>) -> Vec<tokio::task::JoinHandle<Option<StatusCode>>> {
    let visit = |hoodie: Hoodie| async move { hoodie.get("/hoodie/").await.ok().map(|answer| answer.status()) };
    hoodies.into_iter().map(|hoodie| tokio::spawn(visit(hoodie))).collect()
}

async fn how_many(haas: &Installation, user: &str, phase: &str) -> usize {
    let user = haas.user(user);
    let count = format!("SELECT count(*) FROM instances WHERE username = '{user}' AND phase = '{phase}'");
    haas.sql(&count).await.parse().unwrap()
}

async fn start_at_once(haas: &Installation, least: usize) {
    eventually("they are being started", LIMIT, || async {
        (how_many(haas, "bad", "starting").await >= least).then_some(())
    })
    .await;
}

#[tokio::test]
async fn apps_that_hang_at_their_start_keep_no_place_from_the_apps_of_others() {
    let haas = Installation::up_with(FEW_PLACES).await;
    let good = sleeper(&haas, "good").await;
    let visitors = visit(hanging(&haas, &BAD).await);
    start_at_once(&haas, 1).await;
    assert_eq!(good.get("/hoodie/").await.unwrap().status(), StatusCode::OK, "{}", haas.log());
    for visitor in visitors {
        assert_eq!(visitor.await.unwrap(), Some(StatusCode::SERVICE_UNAVAILABLE));
    }
    // They wait for nothing but their own answers.
    start_at_once(&haas, BAD.len()).await;

    // The same of those that are new: each comes back to life as if it were its first.
    for app in BAD {
        assert_eq!(haas.deprovision("bad", app).await.0, 200);
    }
    let again = BAD.map(|app| {
        let (client, body) = (haas.client.clone(), haas.request("bad", app));
        let url = format!("http://127.0.0.1:{}/provision", haas.ports.http);
        tokio::spawn(async move { client.post(url).header("host", "haas.localhost").json(&body).send().await })
    });
    start_at_once(&haas, 1).await;
    let answer = haas.post("/provision", &haas.request("new", "notes")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED, "{}", haas.log());
    for answer in again {
        assert_eq!(answer.await.unwrap().unwrap().status(), StatusCode::ACCEPTED);
    }
}

#[tokio::test]
async fn an_app_that_hung_before_gives_way_where_few_may_be_awake() {
    let haas = Installation::up_with(&format!("{FEW_PLACES}max_awake = 2\n")).await;
    let good = sleeper(&haas, "good").await;
    drop(visit(hanging(&haas, &BAD[..2]).await));
    start_at_once(&haas, 2).await;
    let bad = haas.user("bad");
    haas.sql(&format!("UPDATE instances SET attempts = 1 WHERE username = '{bad}'")).await;
    assert_eq!(good.get("/hoodie/").await.unwrap().status(), StatusCode::OK, "{}", haas.log());
    assert!(haas.log().contains(&format!("makes room for {}", haas.container("good", "notes"))));
}

#[tokio::test]
async fn archives_of_one_user_on_their_way_back_keep_no_place_from_others() {
    let haas = Installation::up_with(FEW_PLACES).await;
    let asleep = sleeper(&haas, "good").await;
    let archived = sleeper(&haas, "other").await;
    haas.order("archive", "other", "notes").await;
    haas.comes_to_be("other", "notes", "archived").await;
    let (mut bad, mut ids) = (Vec::new(), Vec::new());
    for app in &BAD[..4] {
        bad.push(haas.provision("bad", app).await);
        let folder = haas.data_folder("bad", app).await;
        // So that there is time to freeze what unpacks them.
        for n in 0..8_000 {
            let file = folder.join(format!("f{n}"));
            std::fs::File::create(&file).unwrap();
            std::os::unix::fs::chown(&file, Some(1000), Some(1000)).unwrap();
        }
        haas.order("archive", "bad", app).await;
        haas.comes_to_be("bad", app, "archived").await;
        ids.push(haas.instance("bad", app).await["id"].as_str().unwrap().to_owned());
    }
    // What would restore them never comes to an end.
    let held = Held::back(ids);
    let visitors = visit(bad);
    eventually("one of them is being restored", LIMIT, || async { (held.count() > 0).then_some(()) }).await;
    let (asleep, archived) = tokio::join!(asleep.get("/hoodie/"), archived.get("/hoodie/"));
    assert_eq!(
        (asleep.unwrap().status(), archived.unwrap().status()),
        (StatusCode::OK, StatusCode::OK),
        "{}",
        haas.log()
    );
    drop(held);
    for visitor in visitors {
        drop(visitor.await);
    }
    // And each of them comes back in its turn.
    for app in &BAD[..4] {
        haas.running_again("bad", app, LIMIT).await;
    }
}

/// Freezes the containers that read and fill volumes of these instances, until it is dropped.
struct Held {
    frozen: std::sync::Arc<std::sync::Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Held {
    fn back(instances: Vec<String>) -> Self {
        let frozen = std::sync::Arc::<std::sync::Mutex<Vec<String>>>::default();
        let found = std::sync::Arc::clone(&frozen);
        let task = tokio::spawn(async move {
            loop {
                for id in &instances {
                    let label = format!("label=haas.helper={id}");
                    let ps = ["ps", "-q", "--filter", "status=running", "--filter", label.as_str()];
                    for helper in docker(&ps).await.lines() {
                        // It may have come to its end.
                        let paused = tokio::process::Command::new("docker").args(["pause", helper]).output().await;
                        if paused.unwrap().status.success() {
                            found.lock().unwrap().push(helper.to_owned());
                        }
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Self { frozen, task }
    }

    fn count(&self) -> usize {
        self.frozen.lock().unwrap().len()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.task.abort();
        for helper in self.frozen.lock().unwrap().iter() {
            drop(std::process::Command::new("docker").args(["unpause", helper]).output());
        }
    }
}
