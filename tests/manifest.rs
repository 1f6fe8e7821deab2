//! The ship manifest on a real Postgres: what it promises is the database's own promise.
#![allow(clippy::unwrap_used)]

mod support;

use chrono::{Duration, Utc};
use haas::instance::name::{AppName, Email, Username};
use haas::instance::{Desired, Phase};
use haas::manifest::{Leader, ManifestError, NewInstance, Nudge, migrate, watch};
use support::cluster::Cluster;

fn new(username: &str, appname: &str) -> NewInstance {
    NewInstance {
        username: Username::parse(username).unwrap(),
        appname: AppName::parse(appname).unwrap(),
        email: Email::parse("x@example.com").unwrap(),
    }
}

#[tokio::test]
async fn a_stale_writer_is_told_and_changes_nothing() {
    let cluster = Cluster::start(support::ports(), &[]).await;
    let manifest = cluster.manifest();
    let row = manifest.provision(&new("alice", "notes")).await.unwrap().instance;
    let started = manifest.advance(&row, Phase::Starting, 0).await.unwrap();
    assert_eq!((started.phase, started.generation), (Phase::Starting, 1));
    assert!(matches!(manifest.advance(&row, Phase::Starting, 0).await, Err(ManifestError::Stale)));
    // The intent has changed since: what was seen of the old one does not count.
    manifest.deprovision(&row.username, &row.appname).await.unwrap();
    assert!(matches!(manifest.ready(&started, Phase::Ready).await, Err(ManifestError::Stale)));
    assert!(matches!(
        manifest.advance(&started, Phase::Deleted, 0).await,
        Err(ManifestError::IllegalTransition { .. })
    ));
    let now = manifest.get(row.id).await.unwrap().unwrap();
    assert_eq!((now.desired, now.phase, now.generation), (Desired::Deleted, Phase::Starting, 2));
}

#[tokio::test]
async fn the_database_itself_keeps_names_and_ports_unique_and_events_as_they_were() {
    let cluster = Cluster::start(support::ports(), &[]).await;
    let manifest = cluster.manifest();
    manifest.provision(&new("a", "b-c")).await.unwrap();
    assert!(matches!(manifest.provision(&new("a-b", "c")).await, Err(ManifestError::NameTaken(_))));
    let copy = |changes: &str| {
        format!(
            "INSERT INTO instances (id, username, appname, email, host, container_name, port, desired, phase)
             SELECT gen_random_uuid(), {changes}, desired, phase FROM instances"
        )
    };
    for same in [
        "username, appname, email, 'h', 'c', 1",
        "'u', appname, email, host, 'c', 1",
        "'u', appname, email, 'h', container_name, 1",
        "'u', appname, email, 'h', 'c', port",
        "'u', appname, email, 'h', 'c', NULL",
    ] {
        let refused = cluster.sql(&copy(same)).await.unwrap_err();
        assert!(refused.contains("violates"), "{refused}");
    }
    for statement in ["UPDATE events SET kind = 'x'", "DELETE FROM events", "TRUNCATE events"] {
        assert!(cluster.sql(statement).await.unwrap_err().contains("append-only"), "{statement}");
    }
}

#[tokio::test]
async fn a_port_given_back_waits_for_the_workers_that_may_still_route_to_it() {
    let ports = support::ports();
    let cluster = Cluster::start(ports, &[("tenant.ports", &format!("{}-{}", ports.first, ports.first + 1))]).await;
    let manifest = cluster.manifest();
    let row = manifest.provision(&new("alice", "notes")).await.unwrap().instance;
    assert_eq!(row.port, Some(ports.first));
    let row = manifest.deprovision(&row.username, &row.appname).await.unwrap().unwrap();
    let row = manifest.advance(&row, Phase::Draining, 0).await.unwrap();
    let row = manifest.advance(&row, Phase::Removing, 0).await.unwrap();
    let before = Utc::now() - Duration::seconds(1);
    let row = manifest.advance(&row, Phase::Deleted, 0).await.unwrap();
    assert_eq!(row.port, None);
    assert_eq!(manifest.provision(&new("bob", "notes")).await.unwrap().instance.port, Some(ports.first + 1));
    assert!(matches!(manifest.provision(&new("eve", "notes")).await, Err(ManifestError::NoFreePort)));
    // A worker from before still lives.
    assert_eq!(manifest.free_drained_ports(Some(before)).await.unwrap(), 0);
    assert!(matches!(manifest.provision(&new("eve", "notes")).await, Err(ManifestError::NoFreePort)));
    // It is gone.
    assert_eq!(manifest.free_drained_ports(Some(Utc::now() + Duration::seconds(1))).await.unwrap(), 1);
    assert_eq!(manifest.provision(&new("eve", "notes")).await.unwrap().instance.port, Some(ports.first));
    let usage = manifest.port_use().await.unwrap();
    assert_eq!((usage.total, usage.taken, usage.withheld.len()), (2, 2, 0));
}

#[tokio::test]
async fn our_own_ports_are_never_given_to_tenants() {
    let ports = support::ports();
    let range = format!("{}-{}", ports.http, ports.http + 1);
    let cluster = Cluster::start(ports, &[("tenant.ports", &range)]).await;
    let row = cluster.manifest().provision(&new("alice", "notes")).await.unwrap().instance;
    assert_eq!(row.port, Some(ports.http + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_acts_and_every_process_hears_of_changes() {
    let cluster = Cluster::start(support::ports(), &[]).await;
    let manifest = cluster.manifest();
    let url = cluster.config.manifest.database_url.clone();
    assert!(!manifest.has_leader().await.unwrap());
    let leader = Leader::try_acquire(&url).await.unwrap().unwrap();
    assert!(manifest.has_leader().await.unwrap());
    assert!(Leader::try_acquire(&url).await.unwrap().is_none());
    drop(leader);
    support::eventually("the lock goes with its connection", std::time::Duration::from_secs(5), || async {
        Leader::try_acquire(&url).await.unwrap()
    })
    .await;

    let (sender, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let listening = tokio::spawn(async move {
        let on_nudge = move |nudge| sender.send(nudge).unwrap();
        watch(&url, || ready.send(()).unwrap(), on_nudge).await
    });
    is_ready.await.unwrap();
    let row = manifest.provision(&new("alice", "notes")).await.unwrap().instance;
    assert_eq!(heard.recv().await, Some(Nudge::Intent(row.id)));
    manifest.advance(&row, Phase::Starting, 0).await.unwrap();
    assert_eq!(heard.recv().await, Some(Nudge::Progress(row.id)));
    listening.abort();
}

#[tokio::test]
async fn a_newer_schema_is_refused_with_a_clear_word() {
    let cluster = Cluster::start(support::ports(), &[]).await;
    let url = &cluster.config.manifest.database_url;
    migrate(url).await.unwrap();
    cluster.sql("INSERT INTO __diesel_schema_migrations (version) VALUES ('99990101000000')").await.unwrap();
    let refusal = migrate(url).await.unwrap_err();
    assert!(matches!(refusal, ManifestError::NewerSchema { .. }));
    assert!(refusal.to_string().contains("99990101000000") && refusal.to_string().contains("newer"), "{refusal}");
}

#[tokio::test]
async fn servers_that_start_at_the_same_time_migrate_once() {
    let cluster = Cluster::start_empty(support::ports(), &[]).await;
    let url = &cluster.config.manifest.database_url;
    let outcomes = futures_util::future::join_all((0..4).map(|_| migrate(url))).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert_eq!(cluster.sql("SELECT count(*) FROM installation").await.unwrap(), "1");
}

#[tokio::test]
async fn a_row_that_no_version_has_written_harms_no_other() {
    let cluster = Cluster::start(support::ports(), &[]).await;
    let manifest = cluster.manifest();
    manifest.provision(&new("alice", "notes")).await.unwrap();
    cluster
        .sql(
            "INSERT INTO instances (id, username, appname, email, host, container_name, port, desired, phase)
             VALUES (gen_random_uuid(), E'x\\nbackend evil', 'y', 'e', E'h\\nx', 'c', 9, 'running', 'running')",
        )
        .await
        .unwrap();
    let (live, corrupt) = manifest.live().await.unwrap();
    assert_eq!((live.len(), corrupt.len()), (1, 1));
    let page = manifest.list(&haas::manifest::Filter::default(), None, 10).await.unwrap();
    assert_eq!(page.instances.len(), 1);
}
