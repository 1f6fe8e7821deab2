//! The reconciler is ended hundreds of times, at boundaries that a seeded walk chooses, on a
//! real Postgres and the fake world. Whatever happened, the world comes to agree with the manifest.
#![cfg(feature = "failpoints")]
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use haas::archive::Archives;
use haas::containers::fake::{FakeContainer, FakeWorld};
use haas::failpoint::{Boundary, Faults};
use haas::instance::name::{AppName, Email, Username};
use haas::instance::plan::Status;
use haas::instance::policy::Descent;
use haas::instance::spec::{Egress, Spec};
use haas::instance::storage::Taken;
use haas::instance::{Desired, Instance, Phase};
use haas::manifest::{DataPlace, Filter, Manifest, NewInstance, Watched};
use haas::reconcile::{Health, Nudges, Settings, Worker, World};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use support::cluster::Cluster;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

const USERS: [&str; 4] = ["alice", "bob", "a-b", "a"];
const APPS: [&str; 3] = ["notes", "b-c", "c"];

fn settings(cluster: &Cluster) -> Settings {
    Settings {
        backoff_base: Duration::from_millis(20),
        backoff_max: Duration::from_millis(100),
        orphan_grace: Duration::from_millis(200),
        ready_timeout: Duration::from_millis(300),
        drain_timeout: Duration::from_millis(100),
        period: Duration::from_millis(200),
        // Fewer than there may be: some make room for others.
        most_awake: Some(5),
        wake_timeout: Duration::from_secs(5),
        ..Settings::from_config(&cluster.config)
    }
}

/// A reconciler that freezes at the `nth` boundary that it passes; `frozen` tells.
fn start(cluster: &Cluster, fake: &FakeWorld, nth: u64, frozen: Arc<Notify>) -> JoinHandle<()> {
    let passed = Arc::new(AtomicU64::new(0));
    let faults = Faults::freezing(move |_: Boundary| {
        let stop = passed.fetch_add(1, Ordering::SeqCst) + 1 == nth;
        if stop {
            frozen.notify_one();
        }
        stop
    });
    let fake = fake.with_faults(faults.clone());
    let world = World::new(cluster.manifest(), fake.clone(), fake, settings(cluster), faults);
    let url = cluster.config.manifest.database_url.to_string();
    let worker = Worker::new(world, url, Health::default(), Nudges::default());
    tokio::spawn(async move { match worker.run().await {} })
}

/// Its data is seen to take too much.
async fn full(manifest: &Manifest, one: &Watched) {
    let taken = Taken { bytes: u64::from(one.limits.mib) * 1024 * 1024 + 1, files: 1 };
    manifest.stop_full(one.id, &DataPlace::Volume(one.volume()), taken).await.unwrap();
}

async fn meddle(random: &mut StdRng, manifest: &Manifest, fake: &FakeWorld, ports: support::Ports) {
    let username = Username::parse(USERS[random.random_range(0..USERS.len())]).unwrap();
    let appname = AppName::parse(APPS[random.random_range(0..APPS.len())]).unwrap();
    match random.random_range(0..20) {
        0..5 => {
            let email = Email::parse(&format!("m{}@example.com", random.random_range(0..3))).unwrap();
            // A name that is taken, or no free port: refused, and nothing changed.
            manifest.provision(&NewInstance { username, appname, email }).await.ok();
        }
        5..7 => {
            manifest.deprovision(&username, &appname, false).await.unwrap();
        }
        7 => {
            let name = format!("{username}-{appname}");
            let mut state = fake.state();
            if state.containers.get(&name).is_some_and(|c| c.instance.is_some()) {
                state.containers.remove(&name);
            }
        }
        8 => {
            let status = [Status::Stopped, Status::Paused, Status::Restarting, Status::Dead][random.random_range(0..4)];
            if let Some(container) = fake.state().containers.get_mut(&format!("{username}-{appname}")) {
                container.status = status;
            }
        }
        9 => {
            let name = format!("{username}-{appname}");
            let mut state = fake.state();
            match state.containers.get(&name).map(|c| c.instance.is_some()) {
                None => {
                    let foreign = FakeContainer {
                        id: 0,
                        instance: None,
                        generation: 0,
                        port: None,
                        status: Status::Running,
                        spec: None,
                        volume: None,
                    };
                    state.containers.insert(name, foreign);
                }
                Some(false) => {
                    state.containers.remove(&name);
                }
                Some(true) => {}
            }
        }
        10 => {
            let port = random.random_range(ports.first..ports.last);
            let mut state = fake.state();
            if !state.occupied.remove(&port) && state.occupied.len() < 5 {
                state.occupied.insert(port);
            }
        }
        11..14 => {
            let step = [Descent::Pause, Descent::Sleep, Descent::Archive][random.random_range(0..3)];
            if let Some(row) = manifest.find(&username, &appname).await.unwrap()
                && row.desired < step.desired()
            {
                manifest.descend(&row, step, "the walk").await.ok();
            }
        }
        14..16 => {
            if let Some(row) = manifest.find(&username, &appname).await.unwrap() {
                // No free port: refused.
                manifest.wake(row.id, "the walk").await.ok();
            }
        }
        16 => {
            manifest.restore(&username, &appname).await.ok();
        }
        17 => {
            manifest.deprovision(&username, &appname, random.random_bool(0.5)).await.unwrap();
        }
        18 if random.random_bool(0.5) => {
            // Its data is seen to take too much; or what is too much is changed.
            let mut watched = manifest.watched().await.unwrap();
            // What is not there takes nothing.
            watched.retain(|one| fake.state().volumes.contains_key(&one.volume()));
            if !watched.is_empty() {
                let one = &watched[random.random_range(0..watched.len())];
                full(manifest, one).await;
            }
            let mib = [None, Some(1), Some(2000)][random.random_range(0..3)];
            manifest.set_overrides(&username, &appname, |own| own.disk_mib = mib).await.unwrap();
        }
        18 => {
            if let Some(row) = manifest.find(&username, &appname).await.unwrap() {
                let image = format!("image:{}", random.random_range(0..3));
                let spec = Spec { image, memory_mib: 192, millicpus: 1000, pids: 64, log_mib: 1, egress: Egress::None };
                manifest.start_roll(&spec).await.unwrap();
                manifest.roll(&row).await.ok();
            }
        }
        _ => {
            let mut state = fake.state();
            state.proxy_down = random.random_bool(0.3);
            state.rejecting = random.random_bool(0.2);
            state.engine_down = random.random_bool(0.2);
            state.no_lane = random.random_bool(0.3);
            state.unsure = random.random_bool(0.3);
        }
    }
}

fn calm(fake: &FakeWorld) {
    let mut state = fake.state();
    state.containers.retain(|_, container| container.instance.is_some());
    (state.proxy_down, state.rejecting, state.engine_down) = (false, false, false);
    (state.no_lane, state.unsure) = (false, false);
    state.mute.clear();
    state.occupied.clear();
    // Docker's restart policy brings back what crashed.
    for container in state.containers.values_mut() {
        if container.status == Status::Restarting {
            container.status = Status::Running;
        }
    }
}

/// What is wrong with the world, by the manifest; nothing when they agree.
fn disagreement(rows: &[Instance], fake: &FakeWorld, archives: &BTreeSet<String>) -> Option<String> {
    let state = fake.state();
    if let Some(spoiled) = state.spoiled.first() {
        return Some(format!("data was lost: {spoiled}"));
    }
    let mut ports = BTreeSet::new();
    let mut running = 0;
    for row in rows {
        let name = row.container.as_str();
        let container = state.containers.get(name).filter(|container| container.instance == Some(row.id));
        let on_its_way =
            || Some(format!("{name} is {} on its way to {}: {:?}", row.phase, row.desired, row.last_error));
        let rests = !container.is_some_and(|c| matches!(c.status, Status::Running | Status::Restarting));
        if row.desired == Desired::Running && row.storage_full.is_some() {
            return Some(format!("{name} runs, and is full"));
        }
        match row.desired {
            Desired::Running => {
                running += 1;
                if row.phase != Phase::Running {
                    return on_its_way();
                }
                let Some(container) = container else { return Some(format!("{name} has no container")) };
                let wanted = (row.generation, Status::Running, row.port, Some(row.volume()));
                let found = (container.generation, container.status, container.port, container.volume.clone());
                if found != wanted || container.spec != row.spec.as_deref().map(Spec::digest) {
                    return Some(format!("{name}: {container:?} instead of {row:?}"));
                }
                if !row.port.is_some_and(|port| ports.insert(port) && state.routes.contains(&row.host, port)) {
                    return Some(format!("{name} has no port and route of its own"));
                }
            }
            Desired::Paused if matches!(row.phase, Phase::Paused | Phase::Asleep | Phase::Archived) && rests => {}
            Desired::Asleep if matches!(row.phase, Phase::Asleep | Phase::Archived) && rests => {}
            Desired::Archived if row.phase == Phase::Archived && row.port.is_none() => {}
            Desired::Deleted if row.phase == Phase::Deleted && container.is_none() => {}
            _ => return on_its_way(),
        }
        match &row.archive {
            Some(archive) if !archives.contains(&archive.file) => return Some(format!("{name} has lost its archive")),
            None if row.ready_at.is_some() && !state.volumes.contains_key(&row.volume()) => {
                return Some(format!("{name} has lost its data"));
            }
            _ => {}
        }
    }
    if state.routes.len() != running {
        return Some(format!("{} routes for {running} instances that run", state.routes.len()));
    }
    let ids: BTreeSet<_> = rows.iter().map(|row| row.id).collect();
    let orphan = state.containers.iter().find(|(_, container)| container.instance.is_some_and(|id| !ids.contains(&id)));
    orphan.map(|(name, _)| format!("{name} belongs to nobody"))
}

async fn assert_agreement(cluster: &Cluster, fake: &FakeWorld, history: &str) {
    let manifest = cluster.manifest();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let rows = manifest.list(&Filter::default(), None, 1000).await.unwrap().instances;
        let archives = Archives::new(cluster.config.lifecycle.archive_dir.clone()).list().await.unwrap();
        let archives = archives.into_iter().map(|stored| stored.file).collect();
        let Some(disagreement) = disagreement(&rows, fake, &archives) else { return };
        assert!(Instant::now() < deadline, "{history}: {disagreement}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ended_two_hundred_times_at_any_boundary() {
    let ports = support::ports();
    let cluster = Cluster::start(ports, &[]).await;
    let fake = FakeWorld::default();
    let manifest = cluster.manifest();
    let seed = std::env::var("HAAS_WALK_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_123);
    let kills = std::env::var("HAAS_WALK_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(200);
    let mut random = StdRng::seed_from_u64(seed);
    let mut killed = 0;
    let mut round = 0;
    while killed < kills {
        round += 1;
        let frozen = Arc::new(Notify::new());
        let worker = start(&cluster, &fake, random.random_range(1..12), Arc::clone(&frozen));
        for _ in 0..random.random_range(1..4) {
            meddle(&mut random, &manifest, &fake, ports).await;
        }
        // Where the walk has left it nothing to do, there is no boundary to be ended at.
        if tokio::time::timeout(Duration::from_millis(400), frozen.notified()).await.is_ok() {
            killed += 1;
        }
        worker.abort();
        worker.await.ok();
        if round % 20 == 0 {
            calm(&fake);
            let worker = start(&cluster, &fake, u64::MAX, Arc::default());
            assert_agreement(&cluster, &fake, &format!("seed {seed}, round {round}, {killed} kills")).await;
            worker.abort();
            worker.await.ok();
        }
    }
    calm(&fake);
    let worker = start(&cluster, &fake, u64::MAX, Arc::default());
    assert_agreement(&cluster, &fake, &format!("seed {seed}, the end after {killed} kills")).await;
    worker.abort();
}
