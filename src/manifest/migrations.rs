//! Versioned migrations, embedded in the binary and run when it starts.

use std::collections::BTreeSet;

use diesel::connection::SimpleConnection;
use diesel::migration::{Migration, MigrationSource};
use diesel::pg::Pg;
use diesel::sql_types::{Bool, Text};
use diesel::{Connection, QueryableByName, RunQueryDsl};
use diesel_async::AsyncPgConnection;
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::ManifestError;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

/// Serialises servers that start at the same time; released with the session.
const MIGRATION_LOCK: i64 = 0x6861_6173_0001;

/// Brings the schema up to this binary's version, as the role that owns it. Another role is then
/// given what a server's own needs: everything but to change the schema, and events that are written. It is
/// made if there is none.
///
/// # Errors
/// [`ManifestError::NewerSchema`] when the database was migrated by a newer binary;
/// [`ManifestError::NotMigrated`] when it has to be migrated, and this role may not do that;
/// [`ManifestError::Unavailable`] when it can't be reached; [`ManifestError::Migration`] otherwise.
pub async fn migrate(owner_url: &str, server_role: Option<&str>) -> Result<(), ManifestError> {
    let (url, role) = (owner_url.to_owned(), server_role.map(str::to_owned));
    let (sender, receiver) = tokio::sync::oneshot::channel();
    // diesel's harness is synchronous and blocks on a runtime of its own: it needs a thread
    // that belongs to none.
    std::thread::spawn(move || drop(sender.send(migrate_blocking(&url, role.as_deref()))));
    receiver.await.map_err(|_| ManifestError::Migration("the migration thread panicked".to_owned()))?
}

/// The role that a connection string names.
///
/// # Errors
/// [`ManifestError::Unavailable`] when it is no connection string.
pub fn role_of(url: &str) -> Result<Option<String>, ManifestError> {
    let parsed: tokio_postgres::Config = url
        .parse()
        // Its own words may repeat a password.
        .map_err(|_| ManifestError::Unavailable("manifest.database_url is no connection string".to_owned()))?;
    Ok(parsed.get_user().map(str::to_owned))
}

type Connected = AsyncConnectionWrapper<AsyncPgConnection>;

fn failed(error: impl std::fmt::Display) -> ManifestError {
    ManifestError::Migration(error.to_string())
}

fn migrate_blocking(url: &str, server_role: Option<&str>) -> Result<(), ManifestError> {
    let mut conn = Connected::establish(url).map_err(|error| ManifestError::Unavailable(error.to_string()))?;
    diesel::sql_query("SELECT pg_advisory_lock($1)")
        .bind::<diesel::sql_types::BigInt, _>(MIGRATION_LOCK)
        .execute(&mut conn)
        .map_err(failed)?;
    let known: BTreeSet<String> = MigrationSource::<Pg>::migrations(&MIGRATIONS)
        .map_err(failed)?
        .iter()
        .map(|migration| migration.name().version().to_string())
        .collect();
    let applied = applied(&mut conn)?;
    let unknown: Vec<&str> = applied.difference(&known).map(String::as_str).collect();
    if !unknown.is_empty() {
        return Err(ManifestError::NewerSchema { versions: unknown.join(", ") });
    }
    if applied != known {
        if !is_owner(&mut conn)? {
            return Err(ManifestError::NotMigrated);
        }
        conn.run_pending_migrations(MIGRATIONS).map_err(failed)?;
    }
    match server_role {
        Some(role) => grant(&mut conn, role),
        None => Ok(()),
    }
}

#[derive(QueryableByName)]
struct Answer {
    #[diesel(sql_type = Bool)]
    yes: bool,
}

/// A question with the answer yes or no; `$1` is the role.
fn ask(conn: &mut Connected, question: &str, role: &str) -> Result<bool, ManifestError> {
    let query = diesel::sql_query(format!("SELECT {question} AS yes")).bind::<Text, _>(role);
    Ok(query.get_result::<Answer>(conn).map_err(failed)?.yes)
}

/// The migrations that were made. diesel's own way to ask makes its table first, which only an
/// owner may.
fn applied(conn: &mut Connected) -> Result<BTreeSet<String>, ManifestError> {
    #[derive(QueryableByName)]
    struct Applied {
        #[diesel(sql_type = Text)]
        version: String,
    }
    if !ask(conn, "to_regclass($1) IS NOT NULL", "__diesel_schema_migrations")? {
        return Ok(BTreeSet::new());
    }
    let query = diesel::sql_query("SELECT version FROM __diesel_schema_migrations");
    let rows: Vec<Applied> = query.load(conn).map_err(failed)?;
    Ok(rows.into_iter().map(|row| row.version).collect())
}

/// Whether this role may change the schema: it owns what is there, or nothing is there and it may
/// make it.
fn is_owner(conn: &mut Connected) -> Result<bool, ManifestError> {
    let question = "CASE WHEN to_regclass($1) IS NULL THEN has_schema_privilege(current_schema(), 'CREATE')
        ELSE (SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = to_regclass($1)) END";
    ask(conn, question, "installation")
}

fn grant(conn: &mut Connected, role: &str) -> Result<(), ManifestError> {
    if ask(conn, "current_user = $1", role)? {
        return Err(ManifestError::Migration(format!(
            "the role {role} is the owner's own; a server's has to be another"
        )));
    }
    let name = format!("\"{}\"", role.replace('"', "\"\""));
    if !ask(conn, "EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", role)? {
        conn.batch_execute(&format!("CREATE ROLE {name} LOGIN"))
            .map_err(|error| failed(format!("there is no role {role}, and it can't be made: {error}")))?;
    }
    // All or nothing, and what an earlier version gave is taken back.
    conn.batch_execute(&format!(
        "BEGIN;
         REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {name};
         REVOKE INSERT (id, at) ON events FROM {name};
         GRANT USAGE ON SCHEMA public TO {name};
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {name};
         REVOKE INSERT, UPDATE, DELETE ON events FROM {name};
         GRANT INSERT (instance_id, kind, detail, username, appname, actor, client_id, key_id, source, login,
                       request_id, outcome) ON events TO {name};
         REVOKE INSERT, UPDATE, DELETE ON __diesel_schema_migrations FROM {name};
         COMMIT"
    ))
    .map_err(failed)
}
