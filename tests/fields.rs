//! What others write has a bound in bytes wherever it rests: a tenant's log, an engine's words about it, the
//! answer of a webhook. On a real Postgres, and one tenant that writes giant lines on the real engine.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use chrono::Utc;
use haas::instance::name::{AppName, Email, Username};
use haas::instance::policy::Descent;
use haas::instance::{Instance, Phase};
use haas::manifest::{Actor, Cause, Manifest, NewInstance, migrate};
use serde_json::Value;
use support::cluster::Cluster;
use support::eventually;
use support::image::Image;
use support::installation::{Installation, docker};

const LOG_MAX: usize = 16 * 1024;
const ERROR_MAX: usize = 2 * 1024;

async fn provisioned(manifest: &Manifest, username: &str) -> Instance {
    let new = NewInstance {
        username: Username::parse(username).unwrap(),
        appname: AppName::parse("notes").unwrap(),
        email: Email::parse("x@example.com").unwrap(),
    };
    manifest.provision(&new).await.unwrap().instance
}

/// Bytes of the longest of these.
async fn longest(cluster: &Cluster, what: &str, table: &str) -> usize {
    let query = format!("SELECT coalesce(max(octet_length({what}::text)), 0) FROM {table}");
    cluster.sql(&query).await.unwrap().parse().unwrap()
}

/// The engine gives 640 KiB of these lines, and a row had room for all of them once.
#[tokio::test]
async fn giant_lines_of_a_tenant_leave_their_end_beside_its_row() {
    let program = "
        // Nothing that Postgres could make small.
        const line = () => require('crypto').randomBytes(12 * 1024).toString('base64').slice(1) + '\\n';
        for (let n = 0; n < 50; n++) require('fs').writeSync(1, line());
        require('fs').writeSync(1, Object.values(process.env).join(' ') + ' the very end\\n');
        setInterval(() => {}, 1000);";
    let image = Image::that_runs("giant", program).await;
    let settings = format!(
        "[tenant]\nimage = \"{}\"\nready_timeout = \"3s\"\nstop_timeout = \"1s\"\n[reconcile]\nbackoff_base = \"5m\"\n\
         backoff_max = \"5m\"\n[http]\nwait = \"1s\"",
        image.0
    );
    let haas = Installation::up_with(&settings).await;
    let answer = haas.post("/provision", &haas.request("alice", "notes")).await.unwrap();
    assert_eq!(answer.status(), 202);
    let container = haas.container("alice", "notes");
    let environment = eventually("it has written all of it", Duration::from_mins(1), || async {
        let inspect = ["inspect", "-f", "{{join .Config.Env \"\\n\"}}", &container];
        let output = tokio::process::Command::new("docker").args(inspect).output().await.unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    })
    .await;
    haas.comes_to_be("alice", "notes", "failed").await;

    let kept: usize = haas.sql("SELECT octet_length(log) FROM last_logs").await.parse().unwrap();
    assert!((LOG_MAX - 4..=LOG_MAX).contains(&kept), "{kept}");
    let row: usize = haas.sql("SELECT pg_column_size(instances.*) FROM instances").await.parse().unwrap();
    assert!(row < 4 * 1024, "{row}");
    let events: usize = haas.sql("SELECT max(octet_length(detail::text)) FROM events").await.parse().unwrap();
    assert!(events < 4 * 1024, "{events}");
    let answer = haas.instance("alice", "notes").await.to_string();
    assert!(answer.len() < 4 * 1024 && !answer.contains("very end"), "{answer}");

    let user = haas.user("alice");
    let (code, shown, _) = haas.haas(&["show", &user, "notes"]).await;
    assert!(code == 0 && shown.trim_end().ends_with("the very end"), "{}", &shown[shown.len() - 200..]);
    let (_, json, _) = haas.haas(&["show", &user, "notes", "--json"]).await;
    let json: Value = serde_json::from_str(&json).unwrap();
    let log = json["last_log"].as_str().unwrap();
    assert!(log.len() == kept && log.ends_with("the very end\n"));
    let values = environment.lines().filter_map(|line| line.split_once('=')).map(|(_, value)| value);
    let secrets: Vec<&str> =
        values.filter(|value| value.len() >= 32 && value.chars().all(|c| c.is_ascii_hexdigit())).collect();
    assert_eq!(secrets.len(), 2, "a password and a salt");
    assert!(secrets.iter().all(|secret| !shown.contains(secret)) && log.contains("… "), "they are masked");

    // Purged, it leaves nothing of it.
    let body = serde_json::json!({ "secret": haas.secret(), "username": user, "appname": "notes", "purge": true });
    haas.post("/deprovision", &body).await.unwrap();
    eventually("it is gone", Duration::from_mins(1), || async {
        (haas.sql("SELECT (SELECT count(*) FROM instances) + (SELECT count(*) FROM last_logs)").await == "0")
            .then_some(())
    })
    .await;
    assert!(docker(&["ps", "-aq", "--filter", &format!("name={container}")]).await.is_empty());
}

#[tokio::test]
async fn words_without_end_are_cut_where_they_are_written() {
    let cluster = Cluster::start(support::ports(), &[]).await;
    let login = "administrator".repeat(1000);
    let cause = Cause { actor: Actor::Admin { login }, request: Some("r".repeat(10_000)), budget: None };
    let manifest = cluster.manifest().caused_by(cause);
    // Control characters take six bytes each in JSON, and Postgres holds no NUL at all.
    for (user, words) in [("a", "é".repeat(60_000)), ("b", "\u{1}\0".repeat(60_000)), ("c", "\"\n".repeat(60_000))] {
        let row = provisioned(&manifest, user).await;
        manifest.note_error(&row, &words).await.unwrap();
        let row = manifest.postpone(&row, &words, Utc::now()).await.unwrap();
        let row = manifest.fail(&row, &words, Some(format!("{words}the end")), Utc::now()).await.unwrap();
        let error = row.last_error.as_deref().unwrap();
        assert!(error.len() > ERROR_MAX - 4 && error.len() <= ERROR_MAX && error.ends_with('…'));
        let log = manifest.last_log(row.id).await.unwrap().unwrap();
        assert!(log.len() > LOG_MAX - 4 && log.len() <= LOG_MAX && log.ends_with("the end"));
        manifest.announce(&row, Descent::Archive, Utc::now()).await.unwrap();
        for delivery in manifest.undelivered(Utc::now()).await.unwrap() {
            manifest.notice_failed(delivery.notice.id, &words, Utc::now()).await.unwrap();
        }
        manifest
            .note_change("a test", serde_json::json!({ "why": words, "all": vec![words.clone(); 20] }))
            .await
            .unwrap();
        let refused = provisioned(&manifest, &format!("{user}-refused")).await;
        manifest.refuse(&refused, &words).await.unwrap();
    }
    for (what, table, most) in [
        ("last_error", "instances", ERROR_MAX),
        ("last_error", "notices", ERROR_MAX),
        ("detail", "events", 2 * LOG_MAX),
        ("login", "events", 256),
        ("request_id", "events", 256),
    ] {
        let bytes = longest(&cluster, what, table).await;
        assert!(bytes > most / 8 && bytes <= most, "{what} of {table}: {bytes}");
    }
    // The database holds others to it, too.
    for statement in [
        "UPDATE instances SET last_error = repeat('x', 2049)",
        "UPDATE instances SET email = repeat('x', 255)",
        "UPDATE instances SET extra_hosts = array_fill(repeat('x', 253), ARRAY[17])",
        "UPDATE instances SET archive = jsonb_build_object('file', repeat('x', 5000))",
        "UPDATE notices SET last_error = repeat('x', 2049)",
        "UPDATE last_logs SET log = repeat('é', 8193)",
        "INSERT INTO events (kind, detail) VALUES ('x', to_jsonb(repeat('x', 33000)))",
        "INSERT INTO events (kind, request_id) VALUES ('x', repeat('x', 257))",
    ] {
        let refused = cluster.sql(statement).await.unwrap_err();
        assert!(refused.contains("check constraint"), "{statement}: {refused}");
    }
}

#[tokio::test]
async fn a_log_is_that_of_the_last_failure_and_goes_with_an_answer_a_new_life_and_the_row() {
    let cluster = Cluster::start(support::ports(), &[]).await;
    let manifest = cluster.manifest();
    let fail = async |row: &Instance, log: Option<&str>| {
        manifest.fail(row, "it did not answer", log.map(str::to_owned), Utc::now()).await.unwrap()
    };
    let kept = async |row: &Instance| manifest.last_log(row.id).await.unwrap();
    let row = provisioned(&manifest, "alice").await;
    let row = manifest.advance(&row, Phase::Starting, 0).await.unwrap();
    let failed = fail(&row, Some("the first")).await;
    assert_eq!(kept(&failed).await.as_deref(), Some("the first"));
    // A stale writer changes nothing of it.
    assert!(manifest.fail(&row, "too late", Some("stale".to_owned()), Utc::now()).await.is_err());
    assert!(manifest.ready(&row, Phase::Ready).await.is_err());
    assert_eq!(kept(&failed).await.as_deref(), Some("the first"));
    let row = manifest.advance(&failed, Phase::Pending, 1).await.unwrap();
    assert_eq!(kept(&row).await.as_deref(), Some("the first"), "until it is known how this attempt ends");
    let failed = fail(&row, Some("the second")).await;
    assert_eq!(kept(&failed).await.as_deref(), Some("the second"));
    let row = manifest.advance(&failed, Phase::Pending, 2).await.unwrap();
    let failed = fail(&row, None).await;
    assert_eq!(kept(&failed).await, None, "there was none");

    let row = manifest.advance(&failed, Phase::Pending, 3).await.unwrap();
    let row = fail(&row, Some("the third")).await;
    let row = manifest.advance(&row, Phase::Pending, 4).await.unwrap();
    let row = manifest.advance(&row, Phase::Starting, 4).await.unwrap();
    let row = manifest.ready(&row, Phase::Ready).await.unwrap();
    assert_eq!(kept(&row).await, None, "it answers");

    let row = fail(&row, Some("the fourth")).await;
    let mut row = manifest.deprovision(&row.username, &row.appname, false).await.unwrap().unwrap();
    for phase in [Phase::Draining, Phase::Removing, Phase::Deleted] {
        row = manifest.advance(&row, phase, 0).await.unwrap();
    }
    assert_eq!(kept(&row).await.as_deref(), Some("the fourth"), "a tombstone tells how it ended");
    let row = manifest.restore(&row.username, &row.appname).await.unwrap().unwrap().instance;
    assert_eq!(kept(&row).await, None, "another life");

    let row = fail(&row, Some("the fifth")).await;
    let mut row = manifest.deprovision(&row.username, &row.appname, true).await.unwrap().unwrap();
    for phase in [Phase::Draining, Phase::Removing, Phase::Deleted] {
        row = manifest.advance(&row, phase, 0).await.unwrap();
    }
    manifest.purged(&row).await.unwrap();
    assert_eq!(cluster.sql("SELECT count(*) FROM last_logs").await.unwrap(), "0");
}

#[tokio::test]
async fn what_an_older_version_has_written_arrives_cut_and_goes_back() {
    let cluster = Cluster::start_empty(support::ports(), &[]).await;
    for before in [
        include_str!("../migrations/2026-11-23-000001_ship_manifest/up.sql"),
        include_str!("../migrations/2026-11-24-000001_hosts/up.sql"),
        include_str!("../migrations/2026-11-24-000002_lifecycle/up.sql"),
        include_str!("../migrations/2026-11-28-000001_accountability/up.sql"),
        include_str!("../migrations/2026-11-28-000002_sso/up.sql"),
        include_str!("../migrations/2026-11-28-000003_disk/up.sql"),
    ] {
        cluster.sql(before).await.unwrap();
    }
    let (up, down) = (
        include_str!("../migrations/2026-12-01-000001_last_logs/up.sql"),
        include_str!("../migrations/2026-12-01-000001_last_logs/down.sql"),
    );
    cluster
        .sql(
            "CREATE TABLE __diesel_schema_migrations (version varchar(50) PRIMARY KEY, run_on timestamp NOT NULL DEFAULT now());
             INSERT INTO __diesel_schema_migrations (version) VALUES ('20261123000001'), ('20261124000001'),
                 ('20261124000002'), ('20261128000001'), ('20261128000002'), ('20261128000003');
             INSERT INTO instances (id, username, appname, email, host, container_name, port, desired, phase, last_error, last_log)
             SELECT gen_random_uuid(), name, 'notes', 'x@example.com', 'notes.' || name || '.haas.localhost', name || '-notes',
                    5521 + row_number() OVER (), 'running', 'failed', repeat(piece, 10000), log
             FROM (VALUES ('none', NULL), ('empty', ''), ('short', 'é'), ('odd', 'ö'), ('line', 'x'), ('two', 'é'),
                          ('three', '€'), ('four', '🦀')) AS row (name, piece),
                  LATERAL (SELECT CASE name WHEN 'short' THEN piece WHEN 'odd' THEN repeat(piece, 8191) || 'ab'
                                  ELSE repeat(piece, 270336) || 'end' END AS log) AS written;
             INSERT INTO notices (instance_id, kind, stay, due_at, last_error)
             SELECT id, 'archive', now(), now(), repeat('🦀', 2000) FROM instances;
             INSERT INTO events (kind, detail) VALUES ('failed', jsonb_build_object('error', repeat('x', 528000)))",
        )
        .await
        .unwrap();
    let whole = cluster.sql("SELECT max(octet_length(last_log)) FROM instances").await.unwrap();
    assert!(whole.parse::<usize>().unwrap() > 1024 * 1024, "{whole}");
    migrate(&cluster.layout.owner_url(), Some("haas_server")).await.unwrap();
    let kept =
        "SELECT string_agg(format('%s:%s:%s', username, octet_length(log), right(log, 3)), ' ' ORDER BY username)
                FROM last_logs JOIN instances ON id = instance_id";
    let expected = "empty:3:end four:16383:end line:16384:end odd:16384:öab short:2:é three:16383:end two:16383:end";
    assert_eq!(cluster.sql(kept).await.unwrap(), expected);
    // Nothing is of a character that was cut.
    let pure = "SELECT bool_and(translate(log, 'xé€🦀öendab', '') = '') FROM last_logs";
    assert_eq!(cluster.sql(pure).await.unwrap(), "t");
    for table in ["instances", "notices"] {
        let bytes = longest(&cluster, "last_error", table).await;
        assert!(bytes > 1000 && bytes <= ERROR_MAX, "{table}: {bytes}");
    }
    let manifest = cluster.manifest();
    let (live, corrupt) = manifest.live().await.unwrap();
    assert!(live.len() == 8 && corrupt.is_empty(), "{corrupt:?}");
    let giant = live.iter().find(|row| row.username.as_str() == "line").unwrap();
    assert!(manifest.last_log(giant.id).await.unwrap().unwrap().ends_with("xend"), "the server's role reads it");
    // What was written before can still be read, and its row written.
    assert_eq!(manifest.events(giant.id, 10).await.unwrap(), []);
    manifest.advance(giant, Phase::Pending, 0).await.unwrap();

    // There and back.
    let before = cluster.sql(kept).await.unwrap();
    cluster.sql(&format!("BEGIN; {down}; COMMIT")).await.unwrap();
    let back = "SELECT string_agg(format('%s:%s:%s', username, octet_length(last_log), right(last_log, 3)), ' ' ORDER BY username)
                FROM instances WHERE last_log IS NOT NULL";
    assert_eq!(cluster.sql(back).await.unwrap(), before);
    assert_eq!(cluster.sql("SELECT to_regclass('last_logs')").await.unwrap(), "");
    cluster.sql(&format!("BEGIN; {up}; COMMIT")).await.unwrap();
    assert_eq!(cluster.sql(kept).await.unwrap(), before);
}
