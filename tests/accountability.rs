//! Who did what: events that nobody can change, and who stands in them.
#![allow(clippy::unwrap_used)]

mod support;

use haas::manifest::{ManifestError, migrate};
use serde_json::{Value, json};
use support::cluster::Cluster;
use support::installation::Installation;

/// What the server's own role is answered.
async fn as_server(cluster: &Cluster, statement: &str) -> Result<String, String> {
    support::cluster::sql_as(&cluster.layout.database_url(), statement).await
}

#[tokio::test]
async fn the_servers_role_can_write_events_and_never_change_one() {
    let cluster = Cluster::start(support::ports(), &[]).await;
    assert_eq!(as_server(&cluster, "SELECT current_user").await.unwrap(), "haas_server");
    as_server(&cluster, "INSERT INTO events (kind, actor) VALUES ('x', 'admin')").await.unwrap();
    for refused in [
        "UPDATE events SET kind = 'y'",
        "DELETE FROM events",
        "TRUNCATE events",
        "ALTER TABLE events DISABLE TRIGGER events_append_only",
        "DROP TABLE events",
        "DROP TRIGGER events_append_only ON events",
        "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "SET session_replication_role = 'replica'",
        "SET ROLE haas",
        "INSERT INTO __diesel_schema_migrations (version) VALUES ('1')",
        "CREATE TABLE mine (x int)",
        "INSERT INTO events (kind, at) VALUES ('x', now() - interval '1 year')",
    ] {
        let answer = as_server(&cluster, refused).await.unwrap_err();
        assert!(answer.contains("permission denied") || answer.contains("must be owner"), "{refused}: {answer}");
    }
    assert!(!cluster.manifest().may_change_events().await.unwrap());
    // Not even its owner, without taking the guard away first.
    for refused in ["UPDATE events SET kind = 'y'", "DELETE FROM events", "TRUNCATE events"] {
        assert!(cluster.sql(refused).await.unwrap_err().contains("append-only"), "{refused}");
    }
    assert_eq!(cluster.sql("SELECT count(*) FROM events WHERE kind = 'x'").await.unwrap(), "1");
}

#[tokio::test]
async fn a_server_waits_for_the_owner_to_migrate() {
    let cluster = Cluster::start_empty(support::ports(), &[]).await;
    cluster.sql("CREATE ROLE haas_server LOGIN").await.unwrap();
    let refused = migrate(&cluster.layout.database_url(), None).await.unwrap_err();
    assert!(matches!(refused, ManifestError::NotMigrated), "{refused}");
    assert_eq!(cluster.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").await.unwrap(), "0");
    migrate(&cluster.layout.owner_url(), Some("haas_server")).await.unwrap();
    migrate(&cluster.layout.database_url(), None).await.unwrap();
    // What an operator gave away by mistake is taken back.
    cluster.sql("GRANT ALL ON ALL TABLES IN SCHEMA public TO haas_server").await.unwrap();
    assert!(cluster.manifest().may_change_events().await.unwrap());
    migrate(&cluster.layout.owner_url(), Some("haas_server")).await.unwrap();
    assert!(!cluster.manifest().may_change_events().await.unwrap());
    let own = migrate(&cluster.layout.owner_url(), Some("haas")).await.unwrap_err();
    assert!(own.to_string().contains("has to be another"), "{own}");
    // A role with an odd name is a name, and no statement.
    migrate(&cluster.layout.owner_url(), Some("odd\"; DROP TABLE events; --")).await.unwrap();
    assert_eq!(cluster.sql("SELECT count(*) FROM events").await.unwrap(), "0");
}

#[tokio::test]
async fn every_change_says_who_when_and_by_which_request_and_outlives_a_purge() {
    let haas = Installation::up().await;
    let user = haas.user("alice");
    haas.provision("alice", "notes").await;
    haas.order("sleep", "alice", "notes").await;
    assert!(haas.hoodie("alice", "notes").answers().await, "the request wakes it");
    haas.order("purge", "alice", "notes").await;
    let (code, text, errors) = haas.haas(&["events", &user, "notes", "--since", "1h", "--json"]).await;
    assert_eq!(code, 0, "{errors}");
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let one =
        |kind: &str| events.iter().find(|event| event["kind"] == kind).unwrap_or_else(|| panic!("{kind}: {text}"));
    let provisioned = one("provisioned");
    assert_eq!(provisioned["actor"], "client");
    assert_eq!(provisioned["client_id"], "provision");
    assert_eq!(provisioned["source"], "127.0.0.1");
    assert!(haas.log().contains(provisioned["request_id"].as_str().unwrap()));
    let login = nix::unistd::User::from_uid(nix::unistd::getuid()).unwrap().unwrap().name;
    for kind in ["sleep", "deprovisioned"] {
        let by_hand = one(kind);
        let expected = std::env::var("SUDO_USER").unwrap_or_else(|_| login.clone());
        assert_eq!((&by_hand["actor"], &by_hand["login"]), (&json!("admin"), &json!(expected)), "{kind}");
    }
    let wake = one("wake");
    assert_eq!(
        (&wake["actor"], wake.get("source")),
        (&json!("visitor"), None),
        "people who use apps are not written down"
    );
    assert!(wake["request_id"].is_string());
    for kind in ["running", "purged"] {
        assert_eq!(one(kind)["actor"], "haas");
    }
    assert!(events.iter().all(|event| event["outcome"] == "done" && event["username"] == json!(user)), "{text}");
    assert!(!text.contains("@example.com"), "{text}");
    // The person's address is nowhere in the database any more.
    let dump = haas.sql("SELECT count(*) FROM instances WHERE email LIKE 'alice@%'").await;
    assert_eq!(dump, "0");
    // For people, a line each; the time bounds it.
    let (_, lines, _) = haas.haas(&["events"]).await;
    assert!(lines.contains("client provision from 127.0.0.1") && lines.contains(&format!("{user}/notes")), "{lines}");
    let (_, none, _) = haas.haas(&["events", "--since", "1ms"]).await;
    assert_eq!(none, "");
    assert_eq!(haas.haas(&["events", &user]).await.0, 2, "both names, or none");
    assert_eq!(haas.haas(&["events", "--since", "soon"]).await.0, 2);
}
