//! Versioned migrations, embedded in the binary and run when it starts.

use std::collections::BTreeSet;

use diesel::migration::{Migration, MigrationSource};
use diesel::pg::Pg;
use diesel::{Connection, RunQueryDsl};
use diesel_async::AsyncPgConnection;
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::ManifestError;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

/// Serialises servers that start at the same time; released with the session.
const MIGRATION_LOCK: i64 = 0x6861_6173_0001;

/// Brings the schema up to this binary's version.
///
/// # Errors
/// [`ManifestError::NewerSchema`] when the database was migrated by a newer binary;
/// [`ManifestError::Unavailable`] when it can't be reached; [`ManifestError::Migration`] otherwise.
pub async fn migrate(database_url: &str) -> Result<(), ManifestError> {
    let url = database_url.to_owned();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    // diesel's harness is synchronous and blocks on a runtime of its own: it needs a thread
    // that belongs to none.
    std::thread::spawn(move || drop(sender.send(migrate_blocking(&url))));
    receiver.await.map_err(|_| ManifestError::Migration("the migration thread panicked".to_owned()))?
}

fn migrate_blocking(url: &str) -> Result<(), ManifestError> {
    let failed = |error: &dyn std::fmt::Display| ManifestError::Migration(error.to_string());
    let mut conn = AsyncConnectionWrapper::<AsyncPgConnection>::establish(url)
        .map_err(|error| ManifestError::Unavailable(error.to_string()))?;
    diesel::sql_query("SELECT pg_advisory_lock($1)")
        .bind::<diesel::sql_types::BigInt, _>(MIGRATION_LOCK)
        .execute(&mut conn)
        .map_err(|error| failed(&error))?;
    let known: BTreeSet<String> = MigrationSource::<Pg>::migrations(&MIGRATIONS)
        .map_err(|error| failed(&error))?
        .iter()
        .map(|migration| migration.name().version().to_string())
        .collect();
    let applied = conn.applied_migrations().map_err(|error| failed(&error))?;
    let unknown: Vec<String> =
        applied.iter().map(ToString::to_string).filter(|version| !known.contains(version)).collect();
    if !unknown.is_empty() {
        return Err(ManifestError::NewerSchema { versions: unknown.join(", ") });
    }
    conn.run_pending_migrations(MIGRATIONS).map_err(|error| failed(&error))?;
    Ok(())
}
