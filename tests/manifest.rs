//! The ship manifest on a real Postgres: what it promises is the database's own promise.
#![allow(clippy::unwrap_used)]

mod support;

use chrono::{Duration, Utc};
use haas::instance::name::{AppName, Email, Hostname, Username};
use haas::instance::{Desired, Instance, Phase};
use haas::manifest::{Leader, Manifest, ManifestError, NewInstance, Nudge, Rehosted, migrate, watch};
use support::cluster::Cluster;

fn new(username: &str, appname: &str) -> NewInstance {
    NewInstance {
        username: Username::parse(username).unwrap(),
        appname: AppName::parse(appname).unwrap(),
        email: Email::parse("x@example.com").unwrap(),
    }
}

fn host(text: &str) -> Hostname {
    Hostname::parse(text).unwrap()
}

/// To the end of its life, as the reconciler would take it.
async fn delete(manifest: &Manifest, row: &Instance) -> Instance {
    let mut row = manifest.deprovision(&row.username, &row.appname, false).await.unwrap().unwrap();
    for phase in [Phase::Draining, Phase::Removing, Phase::Deleted] {
        row = manifest.advance(&row, phase, 0).await.unwrap();
    }
    row
}

async fn kinds(manifest: &Manifest, row: &Instance) -> Vec<String> {
    manifest.events(row.id, 100).await.unwrap().into_iter().map(|event| event.kind).collect()
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
    manifest.deprovision(&row.username, &row.appname, false).await.unwrap();
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
    let row = manifest.deprovision(&row.username, &row.appname, false).await.unwrap().unwrap();
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
    // It is gone; but a request may still be retried at the port.
    assert_eq!(manifest.free_drained_ports(None).await.unwrap(), 0);
    cluster.sql("UPDATE withheld_ports SET since = since - interval '20 seconds'").await.unwrap();
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
    let url = cluster.config.manifest.database_url.to_string();
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
    // A host is intent, whichever it is; what changes nothing tells nobody.
    let extra = host("www.example.org");
    for _ in 0..2 {
        manifest.add_host(&row.username, &row.appname, &extra).await.unwrap();
    }
    assert_eq!(heard.recv().await, Some(Nudge::Intent(row.id)));
    cluster.sql("UPDATE instances SET host = 'x.y.haas.localhost'").await.unwrap();
    assert_eq!(heard.recv().await, Some(Nudge::Intent(row.id)));
    manifest.rehost(false).await.unwrap();
    assert_eq!(heard.recv().await, Some(Nudge::Intent(row.id)));
    assert!(heard.try_recv().is_err());
    listening.abort();
}

#[tokio::test]
async fn a_newer_schema_is_refused_with_a_clear_word() {
    let cluster = Cluster::start(support::ports(), &[]).await;
    let url = &cluster.layout.owner_url();
    migrate(url, None).await.unwrap();
    cluster.sql("INSERT INTO __diesel_schema_migrations (version) VALUES ('99990101000000')").await.unwrap();
    let refusal = migrate(url, None).await.unwrap_err();
    assert!(matches!(refusal, ManifestError::NewerSchema { .. }));
    assert!(refusal.to_string().contains("99990101000000") && refusal.to_string().contains("newer"), "{refusal}");
}

#[tokio::test]
async fn servers_that_start_at_the_same_time_migrate_once() {
    let cluster = Cluster::start_empty(support::ports(), &[]).await;
    let url = &cluster.layout.owner_url();
    let outcomes = futures_util::future::join_all((0..4).map(|_| migrate(url, None))).await;
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

#[tokio::test]
async fn a_host_is_one_instances_whichever_list_it_stands_in() {
    let cluster = Cluster::start(support::ports(), &[]).await;
    let manifest = cluster.manifest();
    let alice = manifest.provision(&new("alice", "notes")).await.unwrap().instance;
    let bob = manifest.provision(&new("bob", "notes")).await.unwrap().instance;
    let add = async |row: &Instance, extra: &str| manifest.add_host(&row.username, &row.appname, &host(extra)).await;
    let set = async |row: &Instance, extra: &[&str]| {
        let extra: Vec<Hostname> = extra.iter().map(|text| host(text)).collect();
        manifest.set_hosts(&row.username, &row.appname, &extra).await
    };
    for _ in 0..2 {
        let now = add(&alice, "www.example.org").await.unwrap().unwrap();
        assert_eq!(now.extra_hosts, [host("www.example.org")]);
        assert_eq!(now.generation, alice.generation, "its container stays");
    }
    assert_eq!(kinds(&manifest, &alice).await, ["host added", "provisioned"]);
    let found = manifest.find_by_host(&host("www.example.org")).await.unwrap().unwrap();
    assert_eq!(found.id, alice.id);

    // Taken is taken, by either list, and nothing of the wish is carried out.
    for taken in ["www.example.org", alice.host.as_str()] {
        let refused = set(&bob, &["blog.example.org", taken]).await;
        assert!(matches!(&refused, Err(ManifestError::NameTaken(which)) if which == "of the host"), "{refused:?}");
    }
    assert_eq!(manifest.get(bob.id).await.unwrap().unwrap().extra_hosts, []);
    cluster
        .sql("UPDATE instances SET extra_hosts = '{eve.example.org,notes.eve.haas.localhost}' WHERE username = 'alice'")
        .await
        .unwrap();
    assert!(matches!(manifest.provision(&new("eve", "notes")).await, Err(ManifestError::NameTaken(_))));
    for statement in [
        "UPDATE instances SET host = 'eve.example.org' WHERE username = 'bob'",
        "UPDATE instances SET extra_hosts = ARRAY[host] WHERE username = 'bob'",
        "UPDATE instances SET extra_hosts = '{x.example,x.example}' WHERE username = 'bob'",
        "UPDATE instances SET extra_hosts = '{NULL}' WHERE username = 'bob'",
    ] {
        let refused = cluster.sql(statement).await.unwrap_err();
        assert!(refused.contains("violates"), "{refused}");
    }
    let many: Vec<String> = (0..17).map(|number| format!("{number}.example.org")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(matches!(set(&bob, &many).await, Err(ManifestError::TooManyHosts)));
    assert_eq!(set(&bob, &many[1..]).await.unwrap().unwrap().extra_hosts.len(), 16);
    assert!(matches!(add(&bob, "one-more.example.org").await, Err(ManifestError::TooManyHosts)));

    // Given away by the one, it can be had by the other.
    set(&alice, &["www.example.org"]).await.unwrap();
    set(&alice, &[]).await.unwrap();
    assert_eq!(set(&bob, &["www.example.org"]).await.unwrap().unwrap().extra_hosts.len(), 1);
    let remove = async |extra| manifest.remove_host(&bob.username, &bob.appname, &host(extra)).await.unwrap().unwrap();
    assert_eq!(remove("never.example.org").await.extra_hosts.len(), 1);
    assert_eq!(remove("www.example.org").await.extra_hosts.len(), 0);
    assert_eq!(manifest.find_by_host(&host("www.example.org")).await.unwrap(), None);
    assert_eq!(cluster.sql("SELECT count(*) FROM hosts").await.unwrap(), "2");
    assert_eq!(add(&alice, "www.example.org").await.unwrap().unwrap().extra_hosts.len(), 1);
    let nobody = manifest.add_host(&Username::parse("nobody").unwrap(), &alice.appname, &host("x.example")).await;
    assert_eq!(nobody.unwrap(), None);
}

#[tokio::test]
async fn a_tombstone_holds_no_host_and_comes_back_with_those_that_are_free() {
    let cluster = Cluster::start(support::ports(), &[]).await;
    let manifest = cluster.manifest();
    let alice = manifest.provision(&new("alice", "notes")).await.unwrap().instance;
    let bob = manifest.provision(&new("bob", "notes")).await.unwrap().instance;
    let set = async |row: &Instance, extra: &[&str]| {
        let extra: Vec<Hostname> = extra.iter().map(|text| host(text)).collect();
        manifest.set_hosts(&row.username, &row.appname, &extra).await.unwrap().unwrap()
    };
    set(&alice, &["a.example.org", "b.example.org"]).await;
    let gone = delete(&manifest, &alice).await;
    assert_eq!(gone.extra_hosts.len(), 2, "they are remembered");
    assert_eq!(manifest.find_by_host(&host("a.example.org")).await.unwrap(), None);
    set(&bob, &["a.example.org"]).await;
    // Wishes for its next life are written down, and looked at then.
    set(&alice, &["a.example.org", "b.example.org", "c.example.org"]).await;
    let back = manifest.provision(&new("alice", "notes")).await.unwrap();
    assert!(back.new);
    assert_eq!(back.instance.extra_hosts, [host("b.example.org"), host("c.example.org")]);
    let events = manifest.events(alice.id, 2).await.unwrap();
    assert_eq!((events[0].kind.as_str(), events[1].kind.as_str()), ("provisioned", "host removed"));
    assert_eq!(events[1].detail, serde_json::json!({ "host": "a.example.org", "taken": true }));
    assert_eq!(manifest.find_by_host(&host("a.example.org")).await.unwrap().unwrap().id, bob.id);
    // Half way out they are still its own.
    let row = manifest.deprovision(&alice.username, &alice.appname, false).await.unwrap().unwrap();
    manifest.advance(&row, Phase::Draining, 0).await.unwrap();
    assert_eq!(manifest.find_by_host(&host("b.example.org")).await.unwrap().unwrap().id, alice.id);
    assert_eq!(manifest.provision(&new("alice", "notes")).await.unwrap().instance.extra_hosts.len(), 2);
}

#[tokio::test]
async fn all_hosts_are_rewritten_in_one_step_or_none() {
    let ports = support::ports();
    let cluster = Cluster::start(ports, &[]).await;
    let nested = cluster.manifest();
    let long = "u".repeat(60);
    let mut rows = Vec::new();
    for (user, app) in [("alice", "notes"), ("bob", "notes"), ("carol", "todo")] {
        rows.push(nested.provision(&new(user, app)).await.unwrap().instance);
    }
    nested.add_host(&rows[0].username, &rows[0].appname, &host("www.example.org")).await.unwrap();
    delete(&nested, &rows[2]).await;
    assert_eq!(nested.rehost(false).await.unwrap(), Rehosted::Moved(Vec::new()));

    let flat = |domain: &str| {
        let mut config = cluster.config.clone();
        config.installation.host_pattern = haas::instance::name::HostPattern::Flat;
        config.installation.domain = host(domain);
        Manifest::new(&config)
    };
    let hosts = async || cluster.sql("SELECT string_agg(host, ' ' ORDER BY host) FROM hosts").await.unwrap();
    let before = hosts().await;
    let Rehosted::Moved(moves) = flat("haas.localhost").rehost(true).await.unwrap() else { panic!("refused") };
    assert_eq!((moves.len(), hosts().await), (3, before.clone()), "a dry run changes nothing");
    // One that is in the way keeps all of them where they are.
    let last = nested.provision(&new(&long, "notes")).await.unwrap().instance;
    let before = hosts().await;
    for _ in 0..2 {
        let Rehosted::Refused(obstacles) = flat("example.org").rehost(false).await.unwrap() else { panic!("moved") };
        let words: Vec<String> = obstacles.iter().map(ToString::to_string).collect();
        assert_eq!(words.len(), 2, "{words:?}");
        assert!(words[0].contains("haas host remove alice notes www.example.org"), "{words:?}");
        assert!(words[1].contains("too long"), "{words:?}");
        assert_eq!(hosts().await, before);
    }
    delete(&nested, &last).await;
    let Rehosted::Moved(moves) = flat("haas.localhost").rehost(false).await.unwrap() else { panic!("refused") };
    assert_eq!(moves.len(), 3, "a tombstone is rewritten where it can be, and in nobody's way");
    assert_eq!(hosts().await, "notes--alice.haas.localhost notes--bob.haas.localhost www.example.org");
    assert_eq!(flat("haas.localhost").rehost(false).await.unwrap(), Rehosted::Moved(Vec::new()));
    let event = nested.events(rows[1].id, 1).await.unwrap().remove(0);
    let detail = serde_json::json!({ "from": "notes.bob.haas.localhost", "to": "notes--bob.haas.localhost" });
    assert_eq!((event.kind.as_str(), event.detail), ("rehosted", detail));
    let tombstone = nested.get(rows[2].id).await.unwrap().unwrap();
    assert_eq!((tombstone.host.as_str(), tombstone.phase), ("todo--carol.haas.localhost", Phase::Deleted));

    // Hosts that others hold until the same moment, and a custom domain that becomes the host.
    cluster
        .sql(
            "BEGIN; SET CONSTRAINTS hosts_pkey DEFERRED;
             UPDATE instances SET host = 'notes.bob.haas.localhost', extra_hosts = '{notes.alice.haas.localhost}' WHERE username = 'alice';
             UPDATE instances SET host = 'notes--alice.haas.localhost' WHERE username = 'bob'; COMMIT",
        )
        .await
        .unwrap();
    let Rehosted::Moved(moves) = nested.rehost(false).await.unwrap() else { panic!("refused") };
    assert_eq!(moves.len(), 3);
    assert_eq!(hosts().await, "notes.alice.haas.localhost notes.bob.haas.localhost");
    assert_eq!(nested.get(rows[0].id).await.unwrap().unwrap().extra_hosts, []);

    // A row that can't be read is left alone, and what it holds is taken.
    let plant = "UPDATE instances SET email = 'nobody', host = 'notes--alice.haas.localhost' WHERE username = 'bob'";
    cluster.sql(plant).await.unwrap();
    let refused = flat("haas.localhost").rehost(false).await;
    assert!(matches!(refused, Err(ManifestError::NameTaken(_))), "{refused:?}");
    assert_eq!(hosts().await, "notes--alice.haas.localhost notes.alice.haas.localhost");
}

#[tokio::test]
async fn a_manifest_from_before_extra_hosts_keeps_its_hosts() {
    let cluster = Cluster::start_empty(support::ports(), &[]).await;
    let first = include_str!("../migrations/2026-11-23-000001_ship_manifest/up.sql");
    let (up, down) = (
        include_str!("../migrations/2026-11-24-000001_hosts/up.sql"),
        include_str!("../migrations/2026-11-24-000001_hosts/down.sql"),
    );
    cluster.sql(first).await.unwrap();
    cluster
        .sql(
            "CREATE TABLE __diesel_schema_migrations (version varchar(50) PRIMARY KEY, run_on timestamp NOT NULL DEFAULT now());
             INSERT INTO __diesel_schema_migrations (version) VALUES ('20261123000001');
             INSERT INTO instances (id, username, appname, email, host, container_name, port, desired, phase)
             SELECT gen_random_uuid(), name, 'notes', 'x@example.com', host, name || '-notes', port, desired, phase
             FROM (VALUES ('alice', 'notes.alice.haas.localhost', 5521, 'running', 'running'),
                          ('bob', 'notes.bob.haas.localhost', NULL, 'deleted', 'deleted')) AS row (name, host, port, desired, phase)",
        )
        .await
        .unwrap();
    migrate(&cluster.layout.owner_url(), Some("haas_server")).await.unwrap();
    let hosts = async || cluster.sql("SELECT string_agg(host, ' ' ORDER BY host) FROM hosts").await.unwrap();
    assert_eq!(hosts().await, "notes.alice.haas.localhost");
    let manifest = cluster.manifest();
    assert!(!manifest.provision(&new("alice", "notes")).await.unwrap().new);
    assert!(manifest.provision(&new("bob", "notes")).await.unwrap().new);
    assert_eq!(hosts().await, "notes.alice.haas.localhost notes.bob.haas.localhost");
    // There and back.
    cluster.sql(down).await.unwrap();
    let twice = "UPDATE instances SET host = 'notes.alice.haas.localhost'";
    assert!(cluster.sql(twice).await.unwrap_err().contains("instances_host_live"));
    cluster.sql(up).await.unwrap();
    assert_eq!(hosts().await, "notes.alice.haas.localhost notes.bob.haas.localhost");
}
