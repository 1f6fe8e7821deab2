//! Nonces of signed requests: each is good once, whichever server takes the request.

use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_async::RunQueryDsl;

use super::schema::request_nonces;
use super::{Manifest, ManifestError};

impl Manifest {
    /// Takes a client's nonce, if nobody has. From then on it is taken for longer than the same request
    /// can be in time (ten minutes), by one clock, the database's: those of servers differ.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked; then it may be taken.
    pub async fn use_nonce(&self, client: &str, nonce: &str) -> Result<bool, ManifestError> {
        self.run(async |conn| {
            diesel::delete(request_nonces::table.filter(request_nonces::expires_at.lt(diesel::dsl::now)))
                .execute(conn)
                .await?;
            let taken = diesel::sql_query(
                "INSERT INTO request_nonces (client_id, nonce, expires_at)
                 VALUES ($1, $2, now() + interval '20 minutes') ON CONFLICT DO NOTHING",
            )
            .bind::<Text, _>(client)
            .bind::<Text, _>(nonce)
            .execute(conn)
            .await?;
            Ok(taken == 1)
        })
        .await
    }
}
