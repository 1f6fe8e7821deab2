//! `kill -9` of the real server, between any two effects that outlive it: after the restart
//! there is one container, one row, one port, a working route, no orphan, and the data.
#![cfg(feature = "failpoints")]
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use haas::failpoint::Boundary;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use support::eventually;
use support::installation::{Installation, docker};

const LIMIT: Duration = Duration::from_mins(1);

/// Those on the way in; the others are on the way out.
fn on_the_way_in(boundary: Boundary) -> bool {
    !matches!(boundary, Boundary::Drained | Boundary::ContainerRemoved)
}

/// What leads past a boundary of the way down, or back up from an archive; none for the others.
fn order(boundary: Boundary) -> Option<&'static [&'static str]> {
    match boundary {
        Boundary::ContainerPaused => Some(&["policy", "--pause-after", "1s"]),
        Boundary::ContainerStopped => Some(&["sleep", "--no-wait"]),
        Boundary::ArchiveWritten | Boundary::ArchiveRecorded | Boundary::VolumesFreed => {
            Some(&["archive", "--no-wait"])
        }
        Boundary::DataRestored | Boundary::RestoreRecorded => Some(&["wake", "--no-wait"]),
        Boundary::DataPurged => Some(&["purge", "--no-wait"]),
        _ => None,
    }
}

/// On the way down, or back: its data is where it should be, and nowhere else.
async fn killed_at_rest(boundary: Boundary, order: &[&str]) {
    let settings = "[haproxy]\nreload_min_interval = \"500ms\"\n[reconcile]\norphan_grace = \"1s\"\nperiod = \"1s\"";
    let mut haas = Installation::up_with(settings).await;
    let kept = haas.provision("kept", "app").await;
    kept.sign_up("carol").await;
    let hoodie = haas.provision("alice", "notes").await;
    hoodie.sign_up("dave").await;
    if order[0] == "wake" {
        haas.order("archive", "alice", "notes").await;
    }
    haas.kill();
    haas.set_environment("HAAS_FAILPOINT", &format!("{boundary:?}"));
    haas.spawn();
    haas.reachable().await;
    let user = haas.user("alice");
    let (code, _, errors) = haas.haas(&[&[order[0], &user, "notes"], &order[1..]].concat()).await;
    assert_eq!(code, 0, "{errors}");
    haas.ended().await;
    assert!(haas.log().contains("ending this process"), "it died of the failpoint");
    assert!(kept.knows("carol").await, "what ran before answers while nobody is in control");

    haas.clear_environment();
    haas.start().await;
    let id = haas.sql("SELECT id FROM installation").await;
    let volumes = format!("label=haas.installation={id}");
    if boundary == Boundary::DataPurged {
        eventually("it is purged", LIMIT, || async {
            (haas.instance("alice", "notes").await["status"] == 404).then_some(())
        })
        .await;
        assert_whole(&haas, &[("kept", "app")]).await;
        assert_eq!(docker(&["volume", "ls", "-q", "--filter", &volumes]).await.lines().count(), 1);
    } else {
        let rests = match order[0] {
            "policy" => Some("paused"),
            "sleep" => Some("asleep"),
            "archive" => Some("archived"),
            _ => None,
        };
        if let Some(state) = rests {
            haas.comes_to_be("alice", "notes", state).await;
        }
        assert!(hoodie.knows("dave").await, "its data has outlived the accident");
        assert_whole(&haas, &[("kept", "app"), ("alice", "notes")]).await;
    }
    // A copy that the accident has left is told of, and removed in its time.
    let settings = haas.dir.path().join("haas.toml");
    let mut text = std::fs::read_to_string(&settings).unwrap();
    text.push_str("\n[lifecycle]\nunclaimed_grace = \"0s\"");
    std::fs::write(&settings, text).unwrap();
    let (code, _, errors) = haas.haas(&["gc"]).await;
    assert_eq!(code, 0, "{errors}");
    let apps = if boundary == Boundary::DataPurged { 1 } else { 2 };
    assert_eq!(docker(&["volume", "ls", "-q", "--filter", &volumes]).await.lines().count(), apps);
    let archives = std::fs::read_dir(haas.layout.archive_dir()).map_or(0, Iterator::count);
    assert_eq!(archives, 0, "its data is in its volume");
    assert!(kept.knows("carol").await && (apps == 1 || hoodie.knows("dave").await));
}

async fn intend(haas: &Installation, path: &str, user: &str, app: &str) {
    let mut body = haas.request(user, app);
    if path == "/deprovision" {
        body.as_object_mut().unwrap().remove("emailaddress");
    }
    // The server dies while it answers, or HAProxy says that it is gone.
    haas.post(path, &body).await.ok();
}

/// One container, one row, one port and a working route for each of these, and nothing else.
async fn assert_whole(haas: &Installation, apps: &[(&str, &str)]) {
    for (user, app) in apps {
        haas.running_again(user, app, LIMIT).await;
    }
    let mut expected: Vec<String> = apps.iter().map(|(user, app)| haas.container(user, app)).collect();
    expected.sort();
    eventually("no container too many", LIMIT, || async { (haas.containers().await == expected).then_some(()) }).await;
    let count = apps.len();
    let rows = "SELECT count(*), count(DISTINCT port), count(DISTINCT host) FROM instances WHERE phase <> 'deleted'";
    assert_eq!(haas.sql(rows).await, format!("{count}|{count}|{count}"));
    let map = std::fs::read_to_string(haas.layout.haproxy_dir().join("routes.map")).unwrap();
    let routes: Vec<&str> = map.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    assert_eq!(routes.len(), count, "{map}");
    // Sections follow the routes within moments.
    eventually("haproxy.cfg is as it should be", LIMIT, || async {
        (haas.haas(&["config", "--diff"]).await.0 == 0).then_some(())
    })
    .await;
    let (code, doctor, _) = haas.haas(&["doctor"]).await;
    assert_eq!(code, 0, "{doctor}");
}

async fn killed_at(boundary: Boundary, live_routes: bool) {
    if let Some(order) = order(boundary) {
        return killed_at_rest(boundary, order).await;
    }
    let haproxy = format!("[haproxy]\nlive_routes = {live_routes}\nreload_min_interval = \"500ms\"");
    let settings = format!("{haproxy}\n[reconcile]\norphan_grace = \"1s\"\nperiod = \"1s\"");
    let mut haas = Installation::up_with(&settings).await;
    let kept = haas.provision("kept", "app").await;
    kept.sign_up("carol").await;
    if !on_the_way_in(boundary) {
        haas.provision("alice", "notes").await.sign_up("dave").await;
    }
    // A server that kills itself there takes over.
    haas.kill();
    haas.set_environment("HAAS_FAILPOINT", &format!("{boundary:?}"));
    haas.spawn();
    haas.reachable().await;
    let path = if on_the_way_in(boundary) { "/provision" } else { "/deprovision" };
    intend(&haas, path, "alice", "notes").await;
    haas.ended().await;
    assert!(haas.log().contains("ending this process"), "it died of the failpoint");
    assert!(kept.knows("carol").await, "what ran before answers while nobody is in control");

    haas.clear_environment();
    haas.start().await;
    if on_the_way_in(boundary) {
        assert_whole(&haas, &[("kept", "app"), ("alice", "notes")]).await;
        haas.hoodie("alice", "notes").sign_up("dave").await;
    } else {
        eventually("it is gone", LIMIT, || async {
            (haas.instance("alice", "notes").await["state"] == "deleted").then_some(())
        })
        .await;
        assert_whole(&haas, &[("kept", "app")]).await;
        assert_eq!(haas.sql("SELECT count(*) FROM instances WHERE phase = 'deleted' AND port IS NULL").await, "1");
        // Its data has outlived the accident.
        haas.provision("alice", "notes").await;
        assert!(haas.hoodie("alice", "notes").knows("dave").await);
    }
    assert!(kept.knows("carol").await);
}

macro_rules! one_test_for_each {
    ($($test:ident: $boundary:ident),+ $(,)?) => {
        $(#[tokio::test]
        async fn $test() {
            killed_at(Boundary::$boundary, true).await;
        })+

        #[test]
        fn no_boundary_is_left_out() {
            assert_eq!(Boundary::ALL, [$(Boundary::$boundary),+]);
        }
    };
}

one_test_for_each! {
    after_the_intent_is_written: IntentWritten,
    after_the_container_is_created: ContainerCreated,
    after_the_container_is_started: ContainerStarted,
    after_the_hoodie_has_answered: HoodieAnswered,
    after_the_route_is_confirmed: RouteConfirmed,
    after_the_last_request: Drained,
    after_the_container_is_removed: ContainerRemoved,
    after_the_container_is_paused: ContainerPaused,
    after_the_container_is_stopped: ContainerStopped,
    after_the_archive_is_written: ArchiveWritten,
    after_the_archive_is_recorded: ArchiveRecorded,
    after_the_volumes_are_freed: VolumesFreed,
    after_the_data_is_restored: DataRestored,
    after_the_restore_is_recorded: RestoreRecorded,
    after_the_data_is_purged: DataPurged,
    after_a_step_in_the_manifest: ManifestAdvanced,
    after_the_candidate_is_checked: CandidateChecked,
    after_the_map_is_written: MapSwapped,
    after_the_running_map_is_changed: RunningMapChanged,
    before_haproxy_is_told: ConfigSwapped,
    after_haproxy_is_told: HaproxySignalled,
    after_haproxy_has_confirmed: HaproxyConfirmed,
}

/// Without the live lane every change is a reload, the map's rename the first half of it.
macro_rules! once_more_without_the_lane {
    ($($test:ident: $boundary:ident),+ $(,)?) => {
        $(#[tokio::test]
        async fn $test() {
            killed_at(Boundary::$boundary, false).await;
        })+
    };
}

once_more_without_the_lane! {
    without_the_lane_after_the_candidate_is_checked: CandidateChecked,
    without_the_lane_between_the_two_files: MapSwapped,
    without_the_lane_before_haproxy_is_told: ConfigSwapped,
    without_the_lane_after_haproxy_is_told: HaproxySignalled,
    without_the_lane_after_haproxy_has_confirmed: HaproxyConfirmed,
}

#[tokio::test]
async fn twenty_kills_at_any_moment_of_a_seeded_walk() {
    let mut haas = Installation::prepared("[reconcile]\norphan_grace = \"1s\"\nperiod = \"1s\"");
    let seed = std::env::var("HAAS_WALK_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_123);
    let mut random = StdRng::seed_from_u64(seed);
    let apps = [("alice", "notes"), ("alice", "todo"), ("bob", "notes")];
    haas.start().await;
    let kept = haas.provision("kept", "app").await;
    kept.sign_up("carol").await;
    haas.kill();
    let mut wanted = [false; 3];
    for kill in 0..20 {
        haas.spawn();
        haas.reachable().await;
        for _ in 0..random.random_range(1..3) {
            let at = random.random_range(0..apps.len());
            let (user, app) = apps[at];
            let path = if wanted[at] { "/deprovision" } else { "/provision" };
            let url = format!("http://127.0.0.1:{}{path}", haas.ports.http);
            let mut body = haas.request(user, app);
            if wanted[at] {
                body.as_object_mut().unwrap().remove("emailaddress");
            }
            let request = haas.client.post(url).header("host", "haas.localhost").header("prefer", "respond-async");
            let answer = request.json(&body).send().await.unwrap();
            assert!(answer.status().is_success(), "{}", answer.status());
            wanted[at] = !wanted[at];
        }
        // Those that are wanted may be laid to rest, too: a request wakes them.
        let at = random.random_range(0..apps.len());
        let order = ["sleep", "archive"][random.random_range(0..2)];
        let (user, app) = apps[at];
        let (code, _, errors) = haas.haas(&[order, &haas.user(user), app, "--no-wait"]).await;
        assert!([0, 4, 5].contains(&code), "{errors}");
        tokio::time::sleep(Duration::from_millis(random.random_range(0..2500))).await;
        haas.kill();
        assert!(kept.knows("carol").await, "seed {seed}, kill {kill}");
    }
    haas.start().await;
    let mut running = vec![("kept", "app")];
    for (at, (user, app)) in apps.iter().enumerate() {
        if wanted[at] {
            running.push((user, app));
        } else {
            eventually(&format!("seed {seed}: {user}/{app} is gone"), LIMIT, || async {
                let state: Value = haas.instance(user, app).await;
                (state["state"] == "deleted" || state["status"] == 404).then_some(())
            })
            .await;
        }
    }
    assert_whole(&haas, &running).await;
    assert!(kept.knows("carol").await);
}
