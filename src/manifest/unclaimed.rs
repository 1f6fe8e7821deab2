//! Volumes, networks and archives of ours that no row claims: since when, so that their time of
//! grace outlives a restart.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel_async::{AsyncConnection, RunQueryDsl};

use super::schema::unclaimed;
use super::{Manifest, ManifestError};

/// What kind of thing it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UnclaimedKind {
    /// A Docker volume.
    Volume,
    /// A Docker network.
    Network,
    /// A file in the folder of archives.
    Archive,
}

impl UnclaimedKind {
    /// The word that stands in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Volume => "volume",
            Self::Network => "network",
            Self::Archive => "archive",
        }
    }
}

/// A thing of ours that no row claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unclaimed {
    /// What it is.
    pub kind: UnclaimedKind,
    /// Its name.
    pub name: String,
    /// Since when it was seen so.
    pub since: DateTime<Utc>,
}

impl Manifest {
    /// Takes down which things nobody claims now, and none that are gone, or are claimed again.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn note_unclaimed(&self, seen: Vec<Unclaimed>) -> Result<(), ManifestError> {
        self.run(async move |conn| {
            conn.transaction::<_, ManifestError, _>(async move |conn| {
                let known: Vec<(String, String, DateTime<Utc>)> = unclaimed::table.load(conn).await?;
                for (kind, name, _) in &known {
                    if !seen.iter().any(|one| one.kind.as_str() == kind && one.name == *name) {
                        diesel::delete(unclaimed::table.find((kind, name))).execute(conn).await?;
                    }
                }
                for one in &seen {
                    diesel::insert_into(unclaimed::table)
                        .values((
                            unclaimed::kind.eq(one.kind.as_str()),
                            unclaimed::name.eq(&one.name),
                            unclaimed::since.eq(one.since),
                        ))
                        .on_conflict_do_nothing()
                        .execute(conn)
                        .await?;
                }
                Ok(())
            })
            .await
        })
        .await
    }

    /// What is known of things that nobody claims.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn unclaimed(&self) -> Result<Vec<Unclaimed>, ManifestError> {
        self.run(async |conn| {
            let rows: Vec<(String, String, DateTime<Utc>)> = unclaimed::table.load(conn).await?;
            let kinds = [UnclaimedKind::Volume, UnclaimedKind::Network, UnclaimedKind::Archive];
            let known = |(word, name, since): (String, String, DateTime<Utc>)| {
                let kind = kinds.into_iter().find(|kind| kind.as_str() == word)?;
                Some(Unclaimed { kind, name, since })
            };
            Ok(rows.into_iter().filter_map(known).collect())
        })
        .await
    }

    /// Forgets one that was removed.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn forget_unclaimed(&self, gone: &Unclaimed) -> Result<(), ManifestError> {
        self.run(async |conn| {
            diesel::delete(unclaimed::table.find((gone.kind.as_str(), &gone.name))).execute(conn).await?;
            Ok(())
        })
        .await
    }
}
