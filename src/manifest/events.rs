//! The append-only record of what happened. Each entry is written in the transaction of the
//! change that it tells of, and says who brought it about.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, Jsonb, Nullable, Text, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde_json::Value;
use uuid::Uuid;

use super::budget::{Budget, Overspent};
use super::rows::Event;
use super::schema::events;
use super::{Manifest, ManifestError};
use crate::bounded::{WORD_MAX, bounded, bounded_detail};
use crate::instance::name::{AppName, Username};

/// Who brings a change about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Actor {
    /// Haas itself: the reconciler, or the clean-up policy.
    #[default]
    Haas,
    /// A client of the control API.
    Client {
        /// Its id.
        client: String,
        /// Which of its keys.
        key: String,
        /// Where the request came from; none from this machine's own sockets.
        source: Option<IpAddr>,
    },
    /// Somebody at the command line.
    Admin {
        /// The account of that person.
        login: String,
    },
    /// Whoever opened an app's host. People who use apps are not written down.
    Visitor,
}

/// Who brings a change about, and by which request.
#[derive(Debug, Clone, Default)]
pub struct Cause {
    /// Who.
    pub actor: Actor,
    /// The request's id, as HAProxy's log has it.
    pub request: Option<String>,
    /// How much it may write; none for no bound.
    pub budget: Option<Arc<dyn Budget>>,
}

impl Cause {
    /// One more event is to be written.
    fn spend(&self) -> Result<(), Overspent> {
        self.budget.as_ref().map_or(Ok(()), |budget| budget.spend())
    }
}

/// What came of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    Refused,
    Failed,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// The columns that say who.
#[derive(Insertable)]
#[diesel(table_name = events)]
struct Who<'a> {
    actor: &'static str,
    client_id: Option<&'a str>,
    key_id: Option<&'a str>,
    source: Option<String>,
    login: Option<String>,
    request_id: Option<String>,
}

impl<'a> From<&'a Cause> for Who<'a> {
    fn from(cause: &'a Cause) -> Self {
        let mut who = Who {
            actor: "haas",
            client_id: None,
            key_id: None,
            source: None,
            login: None,
            request_id: cause.request.as_deref().map(|id| bounded(id, WORD_MAX)),
        };
        match &cause.actor {
            Actor::Haas => {}
            Actor::Visitor => who.actor = "visitor",
            Actor::Admin { login } => (who.actor, who.login) = ("admin", Some(bounded(login, WORD_MAX))),
            Actor::Client { client, key, source } => {
                (who.actor, who.client_id, who.key_id) = ("client", Some(client.as_str()), Some(key.as_str()));
                who.source = source.map(|source| source.to_string());
            }
        }
        who
    }
}

/// Appends one entry about something that was done.
pub(super) async fn append(
    conn: &mut AsyncPgConnection,
    cause: &Cause,
    instance: Uuid,
    kind: &str,
    detail: Value,
) -> Result<(), ManifestError> {
    append_outcome(conn, cause, instance, kind, detail, Outcome::Done).await
}

/// Appends one entry.
pub(super) async fn append_outcome(
    conn: &mut AsyncPgConnection,
    cause: &Cause,
    instance: Uuid,
    kind: &str,
    detail: Value,
    outcome: Outcome,
) -> Result<(), ManifestError> {
    cause.spend()?;
    let who = Who::from(cause);
    let what = (
        events::instance_id.eq(instance),
        events::kind.eq(kind),
        events::detail.eq(bounded_detail(detail)),
        events::outcome.eq(outcome.as_str()),
    );
    diesel::insert_into(events::table).values((what, who)).execute(conn).await?;
    Ok(())
}

/// Appends an entry about each of these instances.
pub(super) async fn append_all(
    conn: &mut AsyncPgConnection,
    cause: &Cause,
    kind: &str,
    details: Vec<(Uuid, Value)>,
) -> Result<(), ManifestError> {
    for _ in &details {
        cause.spend()?;
    }
    let who = Who::from(cause);
    let (ids, details): (Vec<Uuid>, Vec<Value>) =
        details.into_iter().map(|(id, detail)| (id, bounded_detail(detail))).unzip();
    diesel::sql_query(
        "INSERT INTO events (instance_id, kind, detail, actor, client_id, key_id, source, login, request_id)
         SELECT id, $3, detail, $4, $5, $6, $7, $8, $9 FROM unnest($1, $2) AS changed (id, detail)",
    )
    .bind::<Array<SqlUuid>, _>(ids)
    .bind::<Array<Jsonb>, _>(details)
    .bind::<Text, _>(kind)
    .bind::<Text, _>(who.actor)
    .bind::<Nullable<Text>, _>(who.client_id)
    .bind::<Nullable<Text>, _>(who.key_id)
    .bind::<Nullable<Text>, _>(who.source)
    .bind::<Nullable<Text>, _>(who.login)
    .bind::<Nullable<Text>, _>(who.request_id)
    .execute(conn)
    .await?;
    Ok(())
}

/// Which events are asked for.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// About one instance, by its names; those of a purged one, too.
    pub names: Option<(Username, AppName)>,
    /// From this moment on.
    pub since: Option<DateTime<Utc>>,
    /// After this one.
    pub after: Option<i64>,
}

impl Manifest {
    /// An instance's latest entries, newest first.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn events(&self, instance: Uuid, limit: i64) -> Result<Vec<Event>, ManifestError> {
        self.run(async move |conn| {
            Ok(events::table
                .filter(events::instance_id.eq(instance))
                .order(events::id.desc())
                .limit(limit)
                .select(Event::as_select())
                .load(conn)
                .await?)
        })
        .await
    }

    /// So many entries, the oldest first.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn event_log(&self, filter: &EventFilter, limit: i64) -> Result<Vec<Event>, ManifestError> {
        self.run(async |conn| {
            let mut query = events::table.order(events::id).limit(limit).select(Event::as_select()).into_boxed();
            if let Some((username, appname)) = &filter.names {
                query = query
                    .filter(events::username.eq(username.as_str().to_owned()))
                    .filter(events::appname.eq(appname.as_str().to_owned()));
            }
            if let Some(since) = filter.since {
                query = query.filter(events::at.ge(since));
            }
            if let Some(after) = filter.after {
                query = query.filter(events::id.gt(after));
            }
            Ok(query.load(conn).await?)
        })
        .await
    }

    /// Writes down that somebody who is known wanted a change, and was refused.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn note_refusal(
        &self,
        names: Option<(&Username, &AppName)>,
        kind: &str,
        problem: &str,
    ) -> Result<(), ManifestError> {
        self.cause.spend()?;
        self.run(async |conn| {
            let what = (
                events::username.eq(names.map(|(username, _)| username.as_str())),
                events::appname.eq(names.map(|(_, appname)| appname.as_str())),
                events::kind.eq(kind),
                events::detail.eq(serde_json::json!({ "problem": problem })),
                events::outcome.eq(Outcome::Refused.as_str()),
            );
            diesel::insert_into(events::table).values((what, Who::from(&*self.cause))).execute(conn).await?;
            Ok(())
        })
        .await
    }

    /// Writes down a change that is about no instance.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn note_change(&self, kind: &str, detail: Value) -> Result<(), ManifestError> {
        self.cause.spend()?;
        self.run(async |conn| {
            let what = (events::kind.eq(kind), events::detail.eq(bounded_detail(detail)));
            diesel::insert_into(events::table).values((what, Who::from(&*self.cause))).execute(conn).await?;
            Ok(())
        })
        .await
    }

    /// Whether this database role could change events that are written, which a server's own must
    /// not be able to.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn may_change_events(&self) -> Result<bool, ManifestError> {
        #[derive(QueryableByName)]
        struct May {
            #[diesel(sql_type = diesel::sql_types::Bool)]
            may: bool,
        }
        self.run(async |conn| {
            // A superuser and the table's owner have every privilege.
            let query = diesel::sql_query("SELECT has_table_privilege('events', 'UPDATE, DELETE, TRUNCATE') AS may");
            Ok(query.get_result::<May>(conn).await?.may)
        })
        .await
    }
}

impl fmt::Display for Event {
    /// One line: when, what, of which instance, by whom, and what came of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = match (&self.username, &self.appname) {
            (Some(username), Some(appname)) => format!("{username}/{appname}"),
            _ => self.instance_id.map(|id| id.to_string()).unwrap_or_default(),
        };
        write!(f, "{}  {:<14} {of}  {}", self.at.format("%F %T%.3f"), self.kind, self.by())?;
        if self.outcome != "done" {
            write!(f, "  {}", self.outcome)?;
        }
        if self.detail.as_object().is_some_and(|detail| !detail.is_empty()) {
            write!(f, "  {}", self.detail)?;
        }
        match &self.request_id {
            Some(request) => write!(f, "  request {request}"),
            None => Ok(()),
        }
    }
}

impl Event {
    /// Who brought it about, in a few words.
    #[must_use]
    pub fn by(&self) -> String {
        let from = self.source.as_ref().map(|source| format!(" from {source}")).unwrap_or_default();
        match (&self.client_id, &self.key_id, &self.login) {
            (Some(client), Some(key), _) if client == key => format!("client {client}{from}"),
            (Some(client), Some(key), _) => format!("client {client} ({key}){from}"),
            (_, _, Some(login)) => format!("admin {login}"),
            _ => self.actor.clone(),
        }
    }
}
