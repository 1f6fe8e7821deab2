//! The owner's sign-on: links that are good for one instance, a minute, and once. And the admin's
//! next password, which ends what the links have led to.

use std::fmt;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Double, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncConnection, RunQueryDsl};
use serde_json::json;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::intents::{latest, lock_intents};
use super::rows::InstanceRow;
use super::schema::{instances, sign_on_tokens};
use super::{Manifest, ManifestError, events};
use crate::instance::Instance;
use crate::instance::name::{AppName, Username};
use crate::instance::plan::rotate;

/// How long a link is good, in seconds.
const LIFETIME: f64 = 60.0;
/// Octets of a token: nobody guesses one.
const TOKEN_LENGTH: usize = 32;

/// What a link proves: 256 random bits, in hexadecimal. The manifest has its SHA-256 alone.
pub struct Token(String);

impl Token {
    fn random() -> std::io::Result<Self> {
        let mut bytes = [0; TOKEN_LENGTH];
        getrandom::fill(&mut bytes)?;
        Ok(Self(hex::encode(bytes)))
    }

    /// A token as it stands in a link; none if it can't be one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (text.len() == 2 * TOKEN_LENGTH && digits).then(|| Self(text.to_owned()))
    }

    /// For the link, and nothing else.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn hash(&self) -> Vec<u8> {
        Sha256::digest(&self.0).to_vec()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// A token that was made for an instance.
#[derive(Debug)]
pub struct SignOn {
    /// The row as it stands now.
    pub instance: Instance,
    /// It is told once, and never again.
    pub token: Token,
    /// When it is void.
    pub expires_at: DateTime<Utc>,
}

impl Manifest {
    /// Makes a token for an instance that is not gone, whatever it does right now; `None` if there
    /// is none, or it was taken away.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn issue_sign_on(&self, username: &Username, appname: &AppName) -> Result<Option<SignOn>, ManifestError> {
        #[derive(QueryableByName)]
        struct Issued {
            #[diesel(sql_type = Timestamptz)]
            expires_at: DateTime<Utc>,
        }
        let token = Token::random().map_err(|error| ManifestError::Randomness(error.to_string()))?;
        self.run(async move |conn| {
            conn.transaction::<_, ManifestError, _>(async move |conn| {
                let Some(row) = latest(conn, username, appname).await? else { return Ok(None) };
                let instance = Instance::try_from(row)?;
                if instance.desired.gone() {
                    return Ok(None);
                }
                // Nobody else removes those that were never opened.
                diesel::delete(sign_on_tokens::table.filter(sign_on_tokens::expires_at.le(diesel::dsl::now)))
                    .execute(conn)
                    .await?;
                let Issued { expires_at } = diesel::sql_query(
                    "INSERT INTO sign_on_tokens (hash, instance_id, generation, expires_at)
                     VALUES ($1, $2, $3, now() + make_interval(secs => $4)) RETURNING expires_at",
                )
                .bind::<Binary, _>(token.hash())
                .bind::<SqlUuid, _>(instance.id)
                .bind::<BigInt, _>(instance.generation)
                .bind::<Double, _>(LIFETIME)
                .get_result(conn)
                .await?;
                events::append(conn, &self.cause, instance.id, "sign-on issued", json!({ "expires_at": expires_at }))
                    .await?;
                Ok(Some(SignOn { instance, token, expires_at }))
            })
            .await
        })
        .await
    }

    /// Takes a token that was made for this instance, and returns the generation that it lets in
    /// to; `None` if it is not good, or no more. However many ask at once, one gets it.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked; then it may have been taken, or not.
    pub async fn redeem_sign_on(&self, instance: Uuid, token: &Token) -> Result<Option<i64>, ManifestError> {
        #[derive(QueryableByName)]
        struct Taken {
            #[diesel(sql_type = BigInt)]
            generation: i64,
        }
        self.run(async move |conn| {
            conn.transaction::<_, ManifestError, _>(async move |conn| {
                let good: Option<Taken> = diesel::sql_query(
                    "DELETE FROM sign_on_tokens USING instances
                     WHERE hash = $1 AND instance_id = $2 AND expires_at > now()
                       AND instances.id = instance_id AND instances.generation = sign_on_tokens.generation
                       AND instances.desired NOT IN ('deleted', 'purged')
                     RETURNING sign_on_tokens.generation",
                )
                .bind::<Binary, _>(token.hash())
                .bind::<SqlUuid, _>(instance)
                .get_result(conn)
                .await
                .optional()?;
                let Some(Taken { generation }) = good else { return Ok(None) };
                events::append(conn, &self.cause, instance, "sign-on redeemed", json!({ "generation": generation }))
                    .await?;
                Ok(Some(generation))
            })
            .await
        })
        .await
    }

    /// Writes that an instance's admin has another password from now on, and returns its row; `None`
    /// if there is none, or it was taken away. One that is awake is made anew, as a roll does it; one
    /// that rests will be, when it wakes.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn rotate(&self, username: &Username, appname: &AppName) -> Result<Option<Instance>, ManifestError> {
        self.run(async move |conn| {
            conn.transaction::<_, ManifestError, _>(async move |conn| {
                lock_intents(conn).await?;
                let Some(row) = latest(conn, username, appname).await? else { return Ok(None) };
                let mut instance = Instance::try_from(row)?;
                if instance.desired.gone() {
                    return Ok(None);
                }
                rotate(&mut instance, &self.spec);
                let row: InstanceRow = diesel::update(instances::table.find(instance.id))
                    .set((
                        instances::generation.eq(instance.generation),
                        instances::rolling.eq(instance.rolling),
                        instances::next_spec.eq(instance.next_spec.as_deref().map(|spec| json!(spec))),
                        instances::updated_at.eq(diesel::dsl::now),
                    ))
                    .returning(InstanceRow::as_returning())
                    .get_result(conn)
                    .await?;
                diesel::delete(sign_on_tokens::table.filter(sign_on_tokens::instance_id.eq(row.id)))
                    .execute(conn)
                    .await?;
                events::append(conn, &self.cause, row.id, "rotated", json!({ "generation": row.generation })).await?;
                row.try_into().map(Some)
            })
            .await
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_by_its_form_and_never_shown() {
        let token = Token::random().unwrap();
        assert_eq!(Token::parse(token.as_str()).unwrap().hash(), token.hash());
        assert_ne!(Token::random().unwrap().hash(), token.hash());
        assert_eq!(format!("{token:?}"), "Token(..)");
        let text = token.as_str();
        for bad in
            ["", "0", &text[1..], &format!("{text}0"), &format!("{}g", &text[1..]), &"A".repeat(64), &"é".repeat(32)]
        {
            assert!(Token::parse(bad).is_none(), "{bad}");
        }
    }
}
