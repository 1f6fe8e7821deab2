//! Nonces of signed requests: each is good once, whichever server takes the request.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::schema::request_nonces;
use super::{Manifest, ManifestError};

impl Manifest {
    /// Takes a client's nonce, if nobody has: from then on until `expires_at` it is taken.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked; then it may be taken.
    pub async fn use_nonce(&self, client: &str, nonce: &str, expires_at: DateTime<Utc>) -> Result<bool, ManifestError> {
        self.run(async |conn| {
            diesel::delete(request_nonces::table.filter(request_nonces::expires_at.lt(Utc::now())))
                .execute(conn)
                .await?;
            let taken = diesel::insert_into(request_nonces::table)
                .values((
                    request_nonces::client_id.eq(client),
                    request_nonces::nonce.eq(nonce),
                    request_nonces::expires_at.eq(expires_at),
                ))
                .on_conflict_do_nothing()
                .execute(conn)
                .await?;
            Ok(taken == 1)
        })
        .await
    }
}
