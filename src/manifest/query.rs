//! What everybody may read.

use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::sql_types::Bool;
use diesel_async::RunQueryDsl;
use futures_util::TryStreamExt;
use uuid::Uuid;

use super::rows::InstanceRow;
use super::schema::{hosts, instances};
use super::{Manifest, ManifestError};
use crate::archive::Archive;
use crate::clients::{UsernamePattern, Usernames};
use crate::instance::name::{AppName, Hostname, Username};
use crate::instance::{Desired, Instance, Phase, State, volume_name};

/// Which instances a listing shows.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// One user's only.
    pub username: Option<Username>,
    /// Those in one state only.
    pub state: Option<State>,
    /// Whose there may be.
    pub permitted: Usernames,
}

/// What has an instance's data.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DataPlace {
    /// The Docker volume of this name.
    Volume(String),
    /// The file of this name in the folder of archives.
    Archive(String),
    /// It is on its way, or the row can't be read: whatever carries its id may have it.
    Unknown(Uuid),
}

impl DataPlace {
    /// Where the row says that it is.
    #[must_use]
    pub fn of(instance: &Instance) -> Self {
        match &instance.archive {
            Some(archive) => Self::Archive(archive.file.clone()),
            None => Self::Volume(instance.volume()),
        }
    }
}

/// One page of a listing, in the order of (username, appname).
#[derive(Debug, Clone)]
pub struct Page {
    /// The rows.
    pub instances: Vec<Instance>,
    /// Where the next page begins: after this pair. None on the last page.
    pub next: Option<(Username, AppName)>,
}

impl Manifest {
    /// An instance by its names, tombstones included.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn find(&self, username: &Username, appname: &AppName) -> Result<Option<Instance>, ManifestError> {
        let pair = instances::username.eq(username.as_str()).and(instances::appname.eq(appname.as_str()));
        self.first(instances::table.filter(pair).order(instances::created_at.desc()).into_boxed()).await
    }

    /// An instance by its id, tombstones included.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn get(&self, id: Uuid) -> Result<Option<Instance>, ManifestError> {
        self.first(instances::table.find(id).into_boxed()).await
    }

    /// The live instance that a host belongs to, custom domains included.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn find_by_host(&self, host: &Hostname) -> Result<Option<Instance>, ManifestError> {
        let owner = hosts::table.filter(hosts::host.eq(host.as_str())).select(hosts::instance_id);
        self.first(instances::table.filter(instances::id.eq_any(owner)).into_boxed()).await
    }

    async fn first(&self, query: instances::BoxedQuery<'_, Pg>) -> Result<Option<Instance>, ManifestError> {
        self.run(async move |conn| {
            let row: Option<InstanceRow> = query.select(InstanceRow::as_select()).first(conn).await.optional()?;
            row.map(Instance::try_from).transpose()
        })
        .await
    }

    /// Every instance that is not a tombstone, and those that are being purged. A row that can't be read is left out, and its
    /// id returned beside: one bad row must not stop the others.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn live(&self) -> Result<(Vec<Instance>, Vec<ManifestError>), ManifestError> {
        self.run(async |conn| {
            let (mut live, mut corrupt) = (Vec::new(), Vec::new());
            // Row by row: ten thousand of them need not be here in both forms.
            let mut rows = instances::table
                .filter(
                    instances::phase.ne(Phase::Deleted.as_str()).or(instances::desired.eq(Desired::Purged.as_str())),
                )
                .order(instances::created_at)
                .select(InstanceRow::as_select())
                .load_stream::<InstanceRow>(conn)
                .await?;
            while let Some(row) = rows.try_next().await? {
                match Instance::try_from(row) {
                    Ok(instance) => live.push(instance),
                    Err(error) => corrupt.push(error),
                }
            }
            Ok((live, corrupt))
        })
        .await
    }

    /// Those whose containers may run, or stand frozen, and those that are about to come up.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn awake(&self) -> Result<Vec<Instance>, ManifestError> {
        let phases: Vec<&str> = [
            Phase::Starting,
            Phase::Ready,
            Phase::Running,
            Phase::Restarting,
            Phase::Draining,
            Phase::Stopping,
            Phase::Paused,
            Phase::Removing,
        ]
        .iter()
        .map(|phase| phase.as_str())
        .collect();
        self.run(async move |conn| {
            let rows: Vec<InstanceRow> = instances::table
                .filter(instances::phase.eq_any(phases).or(
                    instances::phase.eq(Phase::Pending.as_str()).and(instances::desired.eq(Desired::Running.as_str())),
                ))
                .select(InstanceRow::as_select())
                .load(conn)
                .await?;
            Ok(rows.into_iter().filter_map(|row| Instance::try_from(row).ok()).collect())
        })
        .await
    }

    /// What has the data of every row, tombstones included.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn data_places(&self) -> Result<Vec<DataPlace>, ManifestError> {
        self.run(async |conn| {
            type Row = (Uuid, i32, Option<serde_json::Value>, String);
            let rows: Vec<Row> = instances::table
                .select((instances::id, instances::volume_serial, instances::archive, instances::phase))
                .load(conn)
                .await?;
            // Where one has come to rest, the row tells. On the way, a copy may become the one that counts.
            let rests = |phase: &str| {
                [Phase::Running, Phase::Paused, Phase::Asleep, Phase::Archived, Phase::Deleted]
                    .iter()
                    .any(|rest| rest.as_str() == phase)
            };
            let place = |(id, serial, archive, phase): Row| match archive {
                _ if !rests(&phase) => DataPlace::Unknown(id),
                None => DataPlace::Volume(volume_name(id, serial)),
                Some(archive) => match serde_json::from_value::<Archive>(archive) {
                    Ok(archive) => DataPlace::Archive(archive.file),
                    Err(_) => DataPlace::Unknown(id),
                },
            };
            Ok(rows.into_iter().map(place).collect())
        })
        .await
    }

    /// One page of a listing.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn list(
        &self,
        filter: &Filter,
        after: Option<&(Username, AppName)>,
        limit: usize,
    ) -> Result<Page, ManifestError> {
        self.run(async |conn| {
            let mut query = instances::table
                .order((instances::username, instances::appname))
                .limit(i64::try_from(limit + 1).unwrap_or(i64::MAX))
                .select(InstanceRow::as_select())
                .into_boxed();
            if let Some(username) = &filter.username {
                query = query.filter(instances::username.eq(username.as_str().to_owned()));
            }
            if let Some(state) = filter.state {
                let shown = |desired: Desired| -> Vec<&'static str> {
                    let shown = Phase::ALL.iter().filter(|phase| State::of(desired, **phase) == state);
                    shown.map(|phase| phase.as_str()).collect()
                };
                // A pair of columns at a time: which phases show so differs with what is desired.
                let none: Box<dyn BoxableExpression<instances::table, Pg, SqlType = Bool>> =
                    Box::new(instances::phase.eq("none at all"));
                let any = Desired::ALL.iter().fold(none, |any, desired| {
                    let pair = instances::desired.eq(desired.as_str()).and(instances::phase.eq_any(shown(*desired)));
                    Box::new(any.or(pair))
                });
                query = query.filter(any);
            }
            if let Usernames::Only(patterns) = &filter.permitted {
                let none: Box<dyn BoxableExpression<instances::table, Pg, SqlType = Bool>> =
                    Box::new(instances::username.eq("none at all"));
                let any = patterns.iter().fold(none, |any, pattern| match pattern {
                    UsernamePattern::Exactly(name) => Box::new(any.or(instances::username.eq(name.as_str()))),
                    // Letters, digits and hyphens: nothing that means anything to LIKE.
                    UsernamePattern::Prefix(prefix) => Box::new(any.or(instances::username.like(format!("{prefix}%")))),
                });
                query = query.filter(any);
            }
            if let Some((username, appname)) = after {
                let (username, appname) = (username.as_str().to_owned(), appname.as_str().to_owned());
                query = query.filter(
                    instances::username
                        .gt(username.clone())
                        .or(instances::username.eq(username).and(instances::appname.gt(appname))),
                );
            }
            let mut rows: Vec<InstanceRow> = query.load(conn).await?;
            let more = rows.len() > limit;
            rows.truncate(limit);
            let mut found = Vec::with_capacity(rows.len());
            for row in rows {
                match Instance::try_from(row) {
                    Ok(instance) => found.push(instance),
                    // One bad row must not hide the others.
                    Err(error) => log::error!("left out of a listing: {error}"),
                }
            }
            let last = found.last().map(|last| (last.username.clone(), last.appname.clone()));
            Ok(Page { instances: found, next: last.filter(|_| more) })
        })
        .await
    }
}
