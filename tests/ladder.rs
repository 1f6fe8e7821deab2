//! The way down and back in the ship manifest, on a real Postgres: who may write what, and that what
//! one has looked at is what one changes.
#![allow(clippy::unwrap_used)]

mod support;

use chrono::{Duration, Utc};
use haas::archive::Archive;
use haas::instance::name::{AppName, Email, Username};
use haas::instance::policy::{Descent, TimeLimit};
use haas::instance::spec::Spec;
use haas::instance::storage::{Limits, Taken};
use haas::instance::{Desired, Instance, Phase};
use haas::manifest::{DataPlace, Manifest, ManifestError, NewInstance, Watched, migrate};
use support::cluster::Cluster;

fn new(username: &str) -> NewInstance {
    NewInstance {
        username: Username::parse(username).unwrap(),
        appname: AppName::parse("notes").unwrap(),
        email: Email::parse("x@example.com").unwrap(),
    }
}

async fn provisioned(manifest: &Manifest, username: &str) -> Instance {
    manifest.provision(&new(username)).await.unwrap().instance
}

/// As the reconciler takes it.
async fn through(manifest: &Manifest, row: &Instance, phases: &[Phase]) -> Instance {
    let mut row = row.clone();
    for phase in phases {
        row = match phase {
            Phase::Ready => manifest.ready(&row, Phase::Ready).await.unwrap(),
            Phase::Running => manifest.running(&row).await.unwrap(),
            phase => manifest.advance(&row, *phase, 0).await.unwrap(),
        };
    }
    row
}

async fn running(manifest: &Manifest, username: &str) -> Instance {
    let row = provisioned(manifest, username).await;
    through(manifest, &row, &[Phase::Starting, Phase::Ready, Phase::Running]).await
}

async fn asleep(manifest: &Manifest, username: &str) -> Instance {
    let row = running(manifest, username).await;
    let row = manifest.descend(&row, Descent::Sleep, "a test").await.unwrap();
    through(manifest, &row, &[Phase::Draining, Phase::Stopping, Phase::Asleep]).await
}

fn archive(file: &str) -> Archive {
    let (sha256, digest) = ("0".repeat(64), "1".repeat(64));
    Archive { file: file.to_owned(), sha256, bytes: 7, digest, made_at: Utc::now(), format: haas::archive::FORMAT }
}

async fn count(cluster: &Cluster, kind: &str) -> String {
    cluster.sql(&format!("SELECT count(*) FROM events WHERE kind = '{kind}'")).await.unwrap()
}

#[tokio::test]
async fn a_step_down_is_taken_only_from_where_it_was_looked_at() {
    let cluster = Cluster::start(support::ports(), &[]).await;
    let manifest = cluster.manifest();
    let seen = running(&manifest, "alice").await;
    let stale = |outcome: Result<Instance, ManifestError>| matches!(outcome, Err(ManifestError::Stale));
    // It was made anew meanwhile, and is in the same phase again.
    let again = through(&manifest, &seen, &[Phase::Pending, Phase::Starting, Phase::Ready, Phase::Running]).await;
    assert!(stale(manifest.descend(&seen, Descent::Sleep, "too late").await));
    let rests = manifest.descend(&again, Descent::Sleep, "in time").await.unwrap();
    assert_eq!((rests.desired, rests.generation), (Desired::Asleep, 1), "the same container");
    assert!(stale(manifest.descend(&again, Descent::Sleep, "twice").await));
    // A tombstone whose time was changed by the one who reads this is not purged by the old time.
    let gone = manifest.deprovision(&seen.username, &seen.appname, false).await.unwrap().unwrap();
    let gone = through(&manifest, &gone, &[Phase::Draining, Phase::Removing, Phase::Deleted]).await;
    let kept = manifest
        .set_overrides(&seen.username, &seen.appname, |own| own.purge_after = Some(TimeLimit::Never))
        .await
        .unwrap()
        .unwrap();
    assert!(gone.restorable_until.is_some() && kept.restorable_until.is_none());
    assert!(stale(manifest.descend(&gone, Descent::Purge, "its time was over").await));
    assert_eq!(count(&cluster, "purge").await, "0");
}

#[tokio::test]
async fn however_many_ask_it_is_woken_once() {
    let cluster = Cluster::start(support::ports(), &[("manifest.timeout", "10s")]).await;
    let manifest = cluster.manifest();
    let row = asleep(&manifest, "alice").await;
    let woken = futures_util::future::join_all((0..50).map(|_| manifest.wake(row.id, "a test"))).await;
    for row in woken {
        assert_eq!(row.unwrap().unwrap().desired, Desired::Running);
    }
    assert_eq!(count(&cluster, "wake").await, "1");
    manifest.deprovision(&row.username, &row.appname, false).await.unwrap();
    assert_eq!(manifest.wake(row.id, "a test").await.unwrap(), None, "a deleted one is not woken");
}

#[tokio::test]
async fn an_archive_gives_its_port_back_and_a_wake_that_comes_in_between_keeps_it() {
    let cluster = Cluster::start(support::ports(), &[]).await;
    let manifest = cluster.manifest();
    let row = asleep(&manifest, "alice").await;
    let row = manifest.descend(&row, Descent::Archive, "a test").await.unwrap();
    let row = through(&manifest, &row, &[Phase::Archiving]).await;
    assert_eq!(manifest.data_places().await.unwrap(), [DataPlace::Unknown(row.id)], "it is on its way");
    let written = manifest.archived(&row, &archive("a.tar.zst")).await.unwrap();
    // Whoever would give the port back has read what is not wanted any more.
    manifest.wake(row.id, "a test").await.unwrap();
    assert!(matches!(manifest.advance(&written, Phase::Archived, 0).await, Err(ManifestError::Stale)));
    let now = manifest.get(row.id).await.unwrap().unwrap();
    assert_eq!((now.desired, now.port, now.phase), (Desired::Running, row.port, Phase::Archiving));

    let now = manifest.descend(&now, Descent::Archive, "after all").await.unwrap();
    let archived = manifest.advance(&now, Phase::Archived, 0).await.unwrap();
    assert_eq!(archived.port, None);
    assert_eq!(manifest.data_places().await.unwrap(), [DataPlace::Archive("a.tar.zst".to_owned())]);
    let woken = manifest.wake(row.id, "a test").await.unwrap().unwrap();
    assert!(woken.port.is_some());
    let pending = manifest.advance(&woken, Phase::Pending, 0).await.unwrap();
    let restored = Instance { volume_serial: 3, ..pending.clone() };
    let back = manifest.unarchived(&pending, &restored).await.unwrap();
    assert_eq!((back.archive.is_none(), back.volume_serial, back.restored), (true, 3, true));
    assert!(back.volume().ends_with("-3"));
    // The database would not take a row that should run and has no port.
    let without = format!("UPDATE instances SET port = NULL WHERE id = '{}'", row.id);
    assert!(cluster.sql(&without).await.unwrap_err().contains("instances_port_where_needed"));
}

#[tokio::test]
async fn what_does_not_work_for_one_is_not_tried_with_the_others() {
    let cluster = Cluster::start(support::ports(), &[]).await;
    let manifest = cluster.manifest();
    let (one, two, three) =
        (running(&manifest, "one").await, running(&manifest, "two").await, asleep(&manifest, "three").await);
    let bad = Spec { image: "bad".to_owned(), ..one.spec.as_deref().unwrap().clone() };
    let status = manifest.start_roll(&bad).await.unwrap();
    assert_eq!((status.waiting, status.resting, status.done), (2, 1, 0));
    // One that is in trouble by itself says nothing about the image.
    let trouble = manifest.get(two.id).await.unwrap().unwrap();
    manifest.roll(&trouble).await.unwrap();
    let trouble = manifest.get(two.id).await.unwrap().unwrap();
    let trouble = through(&manifest, &trouble, &[Phase::Draining, Phase::Removing, Phase::Pending]).await;
    let failed = manifest.fail(&trouble, "the engine is out of space", None, Utc::now()).await.unwrap();
    assert_eq!((failed.next_spec, failed.rolling), (None, false));
    assert_eq!(manifest.roll_status(&bad).await.unwrap().waiting, 1);

    let row = manifest.get(one.id).await.unwrap().unwrap();
    manifest.roll(&row).await.unwrap();
    assert!(matches!(manifest.roll(&two).await, Err(ManifestError::Stale)));
    let row = manifest.get(one.id).await.unwrap().unwrap();
    let row = through(&manifest, &row, &[Phase::Draining, Phase::Removing, Phase::Pending, Phase::Starting]).await;
    assert_eq!(row.wanted_spec(), Some(&bad));
    let failed = manifest.fail(&row, "it did not answer", None, Utc::now() + Duration::hours(1)).await.unwrap();
    assert_eq!(failed.wanted_spec(), one.spec.as_deref());
    assert!(failed.next_attempt_at.unwrap() <= Utc::now(), "what worked before is tried at once");
    let status = manifest.roll_status(&bad).await.unwrap();
    assert_eq!((status.waiting, status.resting, status.left_out), (0, 0, 3));
    let told = manifest.roll_failures(one.created_at).await.unwrap();
    assert_eq!(told, [("one-notes".to_owned(), "it did not answer".to_owned())]);
    assert_eq!(manifest.get(three.id).await.unwrap().unwrap().next_spec, None);
}

#[tokio::test]
async fn a_manifest_from_before_keeps_its_rows_and_goes_back_unless_something_is_archived() {
    let cluster = Cluster::start_empty(support::ports(), &[]).await;
    let (first, second) = (
        include_str!("../migrations/2026-11-23-000001_ship_manifest/up.sql"),
        include_str!("../migrations/2026-11-24-000001_hosts/up.sql"),
    );
    let (up, down) = (
        include_str!("../migrations/2026-11-24-000002_lifecycle/up.sql"),
        include_str!("../migrations/2026-11-24-000002_lifecycle/down.sql"),
    );
    cluster.sql(first).await.unwrap();
    cluster.sql(second).await.unwrap();
    let row = "CREATE TABLE __diesel_schema_migrations (version varchar(50) PRIMARY KEY, run_on timestamp NOT NULL DEFAULT now());
        INSERT INTO __diesel_schema_migrations (version) VALUES ('20261123000001'), ('20261124000001');
        INSERT INTO instances (id, username, appname, email, host, container_name, port, desired, phase, ready_at)
        VALUES (gen_random_uuid(), 'alice', 'notes', 'x@example.com', 'notes.alice.haas.localhost', 'alice-notes', 5521,
                'running', 'running', now())";
    cluster.sql(row).await.unwrap();
    migrate(&cluster.layout.owner_url(), Some("haas_server")).await.unwrap();
    let manifest = cluster.manifest();
    let (live, corrupt) = manifest.live().await.unwrap();
    assert!(corrupt.is_empty() && live[0].phase == Phase::Running && live[0].spec.is_none(), "{corrupt:?}");
    // One that sleeps is awake for an older version; one that is in an archive would be empty.
    let rests = manifest.descend(&live[0], Descent::Sleep, "a test").await.unwrap();
    let rests = through(&manifest, &rests, &[Phase::Draining, Phase::Stopping, Phase::Asleep]).await;
    cluster.sql("UPDATE instances SET archive = '{}'").await.unwrap();
    assert!(cluster.sql(&format!("BEGIN; {down}; COMMIT")).await.unwrap_err().contains("archived"));
    cluster.sql("UPDATE instances SET archive = NULL").await.unwrap();
    cluster.sql(&format!("BEGIN; {down}; COMMIT")).await.unwrap();
    assert_eq!(cluster.sql("SELECT desired, phase FROM instances").await.unwrap(), "running|pending");
    cluster.sql(&format!("BEGIN; {up}; COMMIT")).await.unwrap();
    let back = manifest.get(rests.id).await.unwrap().unwrap();
    assert_eq!((back.desired, back.phase, back.port), (Desired::Running, Phase::Pending, Some(5521)));
}

async fn watched(manifest: &Manifest, row: &Instance) -> Option<Watched> {
    manifest.watched().await.unwrap().into_iter().find(|one| one.id == row.id)
}

#[tokio::test]
async fn one_that_takes_too_much_is_stopped_in_one_write_and_woken_by_nobody() {
    const MIB: u64 = 1024 * 1024;
    let cluster = Cluster::start(support::ports(), &[]).await;
    let manifest = cluster.manifest();
    let (row, other) = (running(&manifest, "alice").await, running(&manifest, "bob").await);
    let seen = watched(&manifest, &row).await.unwrap();
    assert_eq!((seen.limits, seen.stopped_with), (Limits { mib: 1024, files: 100_000 }, None));
    let data = DataPlace::Volume(row.volume());
    let just = Taken { bytes: 1024 * MIB, files: 100_000 };
    assert_eq!(manifest.stop_full(row.id, &data, just).await.unwrap(), None, "just as much as it may");
    let taken = Taken { bytes: 1024 * MIB + 1, ..just };
    let elsewhere = DataPlace::Archive("a.tar.zst".to_owned());
    assert_eq!(manifest.stop_full(row.id, &elsewhere, taken).await.unwrap(), None);
    let full = manifest.stop_full(row.id, &data, taken).await.unwrap().unwrap();
    assert_eq!((full.desired, full.phase), (Desired::Asleep, Phase::Running));
    let about = full.storage_full.as_deref().copied().unwrap();
    assert_eq!((about.taken(), about.limit_mib, about.limit_files), (taken, 1024, 100_000));
    assert_eq!(manifest.stop_full(row.id, &data, taken).await.unwrap(), None, "once");
    assert_eq!(count(&cluster, "storage full").await, "1");
    for _ in 0..2 {
        let refused = manifest.wake(row.id, "a request").await;
        assert!(matches!(refused, Err(ManifestError::StorageFull(_))), "{refused:?}");
    }

    // The notice is about this time of being full, whatever phase it goes to.
    let full = through(&manifest, &full, &[Phase::Draining, Phase::Stopping, Phase::Asleep]).await;
    let notices = manifest.undelivered(Utc::now()).await.unwrap();
    assert_eq!(notices.len(), 1);
    assert_eq!((notices[0].notice.kind.as_str(), notices[0].instance.id), ("storage-full", row.id));
    assert_eq!(manifest.announced().await.unwrap().of(row.id, Descent::Archive), None, "no step of the policy");
    let stopped = watched(&manifest, &row).await.unwrap();
    assert_eq!(stopped.stopped_with, Some(taken));

    // Down it goes as others do, and back only as far as it may.
    manifest.descend(&full, Descent::Archive, "a test").await.unwrap();
    let (username, appname) = (&row.username, &row.appname);
    manifest.deprovision(username, appname, false).await.unwrap().unwrap();
    let back = manifest.restore(username, appname).await.unwrap().unwrap();
    assert_eq!((back.new, back.instance.desired), (true, Desired::Asleep));
    assert_eq!(back.instance.storage_full.as_deref(), Some(&about));

    // Raised, but not enough; then enough, which forgets the notice.
    let raised = |mib| manifest.set_overrides(username, appname, move |own| own.disk_mib = mib);
    let still = raised(Some(1)).await.unwrap().unwrap();
    assert!(still.storage_full.is_some() && still.last_error.is_some());
    let freed = raised(Some(1025)).await.unwrap().unwrap();
    assert!(freed.storage_full.is_none() && freed.last_error.is_none() && freed.desired == Desired::Asleep);
    assert_eq!(count(&cluster, "storage freed").await, "1");
    assert!(manifest.undelivered(Utc::now()).await.unwrap().is_empty());
    assert_eq!(manifest.wake(row.id, "a request").await.unwrap().unwrap().desired, Desired::Running);
    // What was seen before counts no more.
    assert_eq!(manifest.stop_full(row.id, &data, taken).await.unwrap(), None);
    assert!(!manifest.free_full(row.id).await.unwrap() && !manifest.free_full(other.id).await.unwrap());

    // Without a bound nobody looks; and one that was taken away is stopped by nobody.
    manifest.deprovision(&other.username, &other.appname, false).await.unwrap();
    let data = DataPlace::Volume(other.volume());
    assert_eq!(manifest.stop_full(other.id, &data, taken).await.unwrap(), None);
    assert_eq!(watched(&manifest, &other).await, None);
    raised(Some(0)).await.unwrap();
    assert!(watched(&manifest, &row).await.is_some(), "its files are still bounded");
    manifest.set_overrides(username, appname, |own| own.files = Some(0)).await.unwrap();
    assert_eq!(watched(&manifest, &row).await, None);
}
