//! Talking to the cluster.

use std::time::Duration;

use diesel::sql_types::Bool;
use diesel::{QueryableByName, sql_query};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use tokio::time::timeout;

use super::error::EmbeddedError;
use super::layout::Layout;

const PATIENCE: Duration = Duration::from_secs(5);

#[derive(QueryableByName)]
struct Exists {
    #[diesel(sql_type = Bool)]
    exists: bool,
}

/// Whether the cluster lets us in; the reason if not.
pub(super) async fn connect(layout: &Layout) -> Result<AsyncPgConnection, String> {
    let url = layout.owner_url_of("postgres");
    match timeout(PATIENCE, AsyncPgConnection::establish(&url)).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer".to_owned()),
    }
}

/// Makes the database `haas`, unless it is there: a crash may have come between initdb and this.
pub(super) async fn make(connection: &mut AsyncPgConnection) -> Result<(), EmbeddedError> {
    let work = async {
        let query = sql_query("SELECT EXISTS (SELECT FROM pg_database WHERE datname = 'haas') AS exists");
        if !query.get_result::<Exists>(connection).await?.exists {
            connection.batch_execute("CREATE DATABASE haas").await?;
        }
        diesel::QueryResult::Ok(())
    };
    match timeout(Duration::from_mins(1), work).await {
        Ok(result) => result.map_err(|error| EmbeddedError::Database(error.to_string())),
        Err(_) => Err(EmbeddedError::Database("no answer".to_owned())),
    }
}
