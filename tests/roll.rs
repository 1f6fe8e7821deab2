//! A new image on its way to the apps that are there: nobody's request fails, and one that does not
//! work reaches one app at most. On the real engine, database and proxy.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::hoodie::{Hoodie, OpenRequest};
use support::installation::{Installation, docker};
use support::{eventually, unique};

const LIMIT: Duration = Duration::from_mins(1);
const OLD: &str = "haas/hoodie:28.2.10";

/// An image of the tenants' own with one more line; removed when it is dropped.
struct Image(String);

impl Image {
    async fn with(line: &str) -> Self {
        let name = format!("{}-roll", unique());
        let context = tempfile::tempdir().unwrap();
        std::fs::write(context.path().join("Dockerfile"), format!("FROM {OLD}\n{line}\n")).unwrap();
        docker(&["build", "-q", "-t", &name, &context.path().display().to_string()]).await;
        Self(name)
    }

    async fn good() -> Self {
        Self::with("ENV NEW=1").await
    }

    /// One whose program only talks.
    async fn bad() -> Self {
        let program = "console.log('no reason to live'); setInterval(() => {}, 1000)";
        Self::with(&format!("ENTRYPOINT [\"node\", \"-e\", \"{program}\"]\nCMD []")).await
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        std::process::Command::new("docker").args(["rmi", "-f", &self.0]).output().ok();
    }
}

/// Asks an app all the time, and counts what went wrong.
struct Prober {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU32>,
    task: tokio::task::JoinHandle<(Vec<String>, Duration)>,
}

impl Prober {
    fn start(hoodie: Hoodie) -> Self {
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&asked));
        let task = tokio::spawn(async move {
            let (mut failures, mut longest) = (Vec::new(), Duration::ZERO);
            while !stopped.load(Ordering::SeqCst) {
                let began = Instant::now();
                match hoodie.get("/hoodie/").await {
                    Ok(answer) if answer.status() == 200 => {}
                    Ok(answer) => failures.push(answer.status().to_string()),
                    Err(error) => failures.push(format!("{error:?}")),
                }
                longest = longest.max(began.elapsed());
                count.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            (failures, longest)
        });
        Self { stop, asked, task }
    }

    /// Ends it; the longest that a request took.
    async fn none_failed(self) -> Duration {
        let before = self.asked.load(Ordering::SeqCst);
        eventually("some more requests", LIMIT, || async {
            (self.asked.load(Ordering::SeqCst) > before + 5).then_some(())
        })
        .await;
        self.stop.store(true, Ordering::SeqCst);
        let (failures, longest) = self.task.await.unwrap();
        assert!(failures.is_empty(), "{} requests failed: {failures:?}", failures.len());
        longest
    }
}

/// The container's id, and what it is made of.
async fn made_of(haas: &Installation, user: &str) -> (String, String) {
    let name = haas.container(user, "notes");
    let told = docker(&["inspect", "-f", "{{.Id}} {{.Config.Image}}", &name]).await;
    let (id, image) = told.split_once(' ').unwrap();
    (id.to_owned(), image.to_owned())
}

/// `haas roll`, while the test goes on.
fn roll(haas: &Installation, image: &str) -> tokio::task::JoinHandle<(Option<i32>, String, String)> {
    let mut command = haas.command(&["roll", "--image", image, "--wait", "60"]);
    tokio::task::spawn_blocking(move || {
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    })
}

#[tokio::test]
async fn a_good_image_reaches_everyone_and_no_request_fails() {
    let image = Image::good().await;
    // Whoever is drained too early is cut off soon.
    let settings =
        "[tenant]\ndrain_timeout = \"1s\"\n[lifecycle]\nidle_after = \"never\"\n[reconcile]\nperiod = \"1s\"";
    let haas = Installation::up_with(settings).await;
    for user in ["awake", "asleep", "busy"] {
        haas.provision(user, "notes").await.sign_up(user).await;
    }
    haas.order("sleep", "asleep", "notes").await;
    let awake = made_of(&haas, "awake").await;
    let (asleep, busy) = (made_of(&haas, "asleep").await, made_of(&haas, "busy").await);
    assert_eq!(awake.1, OLD);
    let prober = Prober::start(haas.hoodie("awake", "notes"));
    let open = OpenRequest::start(&haas.hoodie("busy", "notes"));
    // Both have to be seen by HAProxy, or nothing waits for them.
    tokio::time::sleep(Duration::from_millis(500)).await;

    let rolled = roll(&haas, &image.0);
    let shown = format!("SELECT next_spec->>'image' FROM instances WHERE username = '{}'", haas.user("busy"));
    eventually("it is wanted", LIMIT, || async { (haas.sql(&shown).await == image.0).then_some(()) }).await;
    eventually("the one that is awake is made anew", LIMIT, || async {
        let done = format!("SELECT spec->>'image' FROM instances WHERE username = '{}'", haas.user("awake"));
        (haas.sql(&done).await == image.0).then_some(())
    })
    .await;
    let anew = made_of(&haas, "awake").await;
    assert!(anew.0 != awake.0 && anew.1 == image.0, "{anew:?}");
    // It looks for others every second.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(open.is_open() && !rolled.is_finished(), "somebody uses the other one");
    assert_eq!(made_of(&haas, "busy").await, busy);
    assert_eq!(haas.instance("busy", "notes").await["phase"], "running", "and new requests still reach it");
    let answered = open.answered().await;
    assert!(answered < 500, "Hoodie itself has answered: {answered}");
    let ended = Instant::now();
    let (code, out, errors) = rolled.await.unwrap();
    assert_eq!(code, Some(0), "{out}{errors}");
    assert!(ended.elapsed() < Duration::from_secs(15), "it was noticed late: {:?}", ended.elapsed());
    assert_eq!(
        out.trim(),
        format!(
            "2 made of {}, 0 under way, 0 in use and waiting, 1 at rest until their next wake, 0 left as they are",
            image.0
        )
    );
    let anew = made_of(&haas, "busy").await;
    assert!(anew.0 != busy.0 && anew.1 == image.0, "{anew:?}");
    prober.none_failed().await;

    assert_eq!(made_of(&haas, "asleep").await, asleep, "it sleeps on as it is");
    for user in ["awake", "asleep", "busy"] {
        let hoodie = haas.hoodie(user, "notes");
        assert!(hoodie.knows(user).await && !hoodie.knows("nobody").await, "{user}");
    }
    haas.comes_to_be("asleep", "notes", "running").await;
    assert_eq!(made_of(&haas, "asleep").await.1, image.0);
    assert_eq!(haas.containers().await.len(), 3);

    // Once more, and nothing is left to do.
    let everything =
        "SELECT string_agg(instances::text, ' ' ORDER BY id), (SELECT count(*) FROM events) FROM instances";
    let mut containers = Vec::new();
    for user in ["awake", "asleep", "busy"] {
        containers.push(made_of(&haas, user).await);
    }
    let rows = haas.sql(everything).await;
    let (code, out, errors) = roll(&haas, &image.0).await.unwrap();
    assert_eq!((code, out.starts_with("3 made of")), (Some(0), true), "{out}{errors}");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(haas.sql(everything).await, rows);
    for (user, before) in ["awake", "asleep", "busy"].iter().zip(&containers) {
        assert_eq!(made_of(&haas, user).await, *before, "{user}");
    }
}

#[tokio::test]
async fn a_bad_image_costs_one_app_a_moment_and_the_others_nothing() {
    let image = Image::bad().await;
    let settings = "[tenant]\nready_timeout = \"3s\"\nstop_timeout = \"1s\"\n\
                    [lifecycle]\nidle_after = \"never\"\nroll_concurrency = 1\n[reconcile]\nperiod = \"1s\"";
    let haas = Installation::up_with(settings).await;
    let users = ["one", "two", "three"];
    let mut before = Vec::new();
    for user in users {
        haas.provision(user, "notes").await.sign_up(user).await;
        before.push(made_of(&haas, user).await);
    }
    let (code, out, errors) = roll(&haas, &image.0).await.unwrap();
    assert_eq!(code, Some(1), "{out}{errors}");
    assert!(errors.contains("went back to what it was made of: its Hoodie did not answer"), "{errors}");
    assert!(errors.contains("the roll is halted"), "{errors}");

    let tried = haas
        .sql("SELECT instances.username FROM instances JOIN events ON instance_id = instances.id WHERE kind = 'failed'")
        .await;
    let tried = *users.iter().find(|user| haas.user(user) == tried).unwrap();
    assert!(errors.contains(&haas.container(tried, "notes")), "{errors}");
    haas.running_again(tried, "notes", LIMIT).await;
    // Time enough for another one to be tried, if the roll were not halted.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for (user, before) in users.iter().zip(&before) {
        let now = made_of(&haas, user).await;
        if *user == tried {
            assert!(now.0 != before.0 && now.1 == OLD, "{user}: {now:?}");
        } else {
            assert_eq!(now, *before, "{user} was never touched");
        }
        let hoodie = haas.hoodie(user, "notes");
        assert!(hoodie.knows(user).await && !hoodie.knows("nobody").await, "{user}");
        let (code, shown, _) = haas.haas(&["show", &haas.user(user), "notes"]).await;
        assert_eq!(code, 0);
        assert!(shown.contains(&format!("image       {OLD}\n")) && !shown.contains("next image"), "{shown}");
        assert_eq!(shown.contains("rolled back from"), *user == tried, "{shown}");
        assert_eq!(shown.contains("did not answer"), *user == tried, "{shown}");
        assert_eq!(shown.contains("roll halted"), *user != tried, "{shown}");
    }
    assert_eq!(haas.sql("SELECT count(*) FROM events WHERE kind = 'failed'").await, "1");
    assert_eq!(haas.haas(&["doctor"]).await.0, 0, "all is as it was");
}

#[tokio::test]
async fn an_image_that_is_not_there_is_refused_before_anything_changes() {
    let haas = Installation::up().await;
    haas.provision("alice", "notes").await;
    let rows = "SELECT instances::text FROM instances";
    let before = haas.sql(rows).await;
    let missing = format!("{}-missing", unique());
    let (code, out, errors) = haas.haas(&["roll", "--image", &missing]).await;
    assert_eq!((code, out.as_str()), (5, ""), "{errors}");
    assert!(errors.contains(&missing), "{errors}");
    assert_eq!(haas.sql(rows).await, before);
    // Without an image it is the one of the settings, of which everyone is made already.
    let (code, out, errors) = haas.haas(&["roll", "--json"]).await;
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &told["done"], &told["waiting"]), (0, &1.into(), &0.into()), "{out}{errors}");
    assert_eq!(haas.sql(rows).await, before);
}

#[tokio::test]
async fn requests_that_come_while_an_app_is_made_anew_wait_for_its_start_alone() {
    let image = Image::good().await;
    let haas = Installation::up_with("[lifecycle]\nidle_after = \"never\"\n[reconcile]\nperiod = \"1s\"").await;
    haas.provision("alice", "notes").await;
    // Some come while it is drained of the others: those don't prolong that (tenant.drain_timeout, 10 s).
    let probers: Vec<Prober> = (0..4).map(|_| Prober::start(haas.hoodie("alice", "notes"))).collect();
    for image in [&image.0, OLD, &image.0, OLD] {
        let (code, out, errors) = roll(&haas, image).await.unwrap();
        assert_eq!(code, Some(0), "{out}{errors}");
        assert_eq!(made_of(&haas, "alice").await.1, *image);
    }
    for prober in probers {
        let longest = prober.none_failed().await;
        assert!(longest < Duration::from_secs(8), "{longest:?}");
    }
}
