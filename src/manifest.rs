//! The ship manifest: what should be, what was last seen, and which port is whose.
//!
//! [`Manifest`] is the only way to the database. Who writes what:
//!
//! | columns | written by | how |
//! |---|---|---|
//! | names, email, host, `extra_hosts`, `desired`, `generation`, `overrides` | handlers and commands | one transaction under the intent lock (`intents`, `hosts`, `rest`) |
//! | `desired`, one step down or back up | the policy, and whoever makes room | compare-and-set on (id, generation, desired, phase) (`rest`) |
//! | `next_spec`, `rolling` | `haas roll`, then the reconciler | (`roll`) |
//! | `generation`, and with it the admin's password | `haas rotate`, too | under the intent lock (`sign_on`) |
//! | `last_logs` | the reconciler: with `failed`; removed with an answer, and by a new life (`last_logs`) | in the same transaction as the phase |
//! | `sign_on_tokens` | `POST /sso` and `haas sso`; each is removed by whoever opens its link | one statement (`sign_on`) |
//! | `phase` and all that was observed; `archive` and `volume_serial`, which say where the data is | the reconciler | compare-and-set on (id, generation, phase) |
//! | `port` | both: taken with the intent, moved or given back by the reconciler | in the same transaction as its cause |
//!
//! Every change of a row notifies the channel `haas`, so that any process may write and the one
//! acting reconciler hears of it.

mod budget;
mod events;
mod hosts;
mod intents;
mod last_logs;
mod leader;
mod migrations;
mod nonces;
mod notices;
mod ports;
mod progress;
mod query;
mod rest;
mod roll;
mod rows;
mod schema;
mod sign_on;
mod storage;
mod unclaimed;

use std::sync::Arc;
use std::time::Duration;

use diesel_async::pooled_connection::deadpool::{Object, Pool};
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, ManagerConfig};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use futures_util::FutureExt;
use thiserror::Error;
use uuid::Uuid;

use crate::config::{Config, PortRange};
use crate::instance::hosts::EXTRA_HOSTS_MAX;
use crate::instance::name::{ContainerName, HostPattern, Hostname};
use crate::instance::policy::Policy;
use crate::instance::spec::Spec;
use crate::instance::storage::Limits;

pub use budget::{Budget, Overspent};
pub use events::{Actor, Cause, EventFilter};
pub use hosts::Rehosted;
pub use intents::{NewInstance, Provisioned};
pub use leader::{Leader, Nudge, watch};
pub use migrations::{migrate, role_of};
pub use notices::{Announced, Delivery, Notice, Told};
pub use ports::{PortUse, WithheldPort};
pub use query::{DataPlace, Filter, Page};
pub use rest::Restored;
pub use roll::RollStatus;
pub use rows::Event;
pub use sign_on::{SignOn, Token};
pub use storage::Watched;
pub use unclaimed::{Unclaimed, UnclaimedKind};

/// What can go wrong with the manifest.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// Postgres can't be reached, or does not answer in time.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// The database was migrated by a newer binary.
    #[error(
        "the database has migrations that this version of haas does not know ({versions}); \
         start the version of haas that made them, or a newer one"
    )]
    NewerSchema {
        /// The unknown migrations.
        versions: String,
    },
    /// The schema is an older one, and this role may not change it.
    #[error("the database has to be migrated first, by the role that owns it: `haas migrate`")]
    NotMigrated,
    /// A migration failed.
    #[error("the database could not be migrated: {0}")]
    Migration(String),
    /// The container name, or the host, belongs to another live instance.
    #[error("the name {0} is taken")]
    NameTaken(String),
    /// The name parts are legal each, but make a host that is too long, or `xn--…`, which is another name's
    /// form.
    #[error("the host name would be too long, or be another name's ASCII form")]
    UnfitHost,
    /// More custom domains than one instance may have.
    #[error("an instance has at most {EXTRA_HOSTS_MAX} extra hosts")]
    TooManyHosts,
    /// Every port of the range is taken or withheld.
    #[error("no port is free")]
    NoFreePort,
    /// The system gave no random bytes.
    #[error("no random bytes: {0}")]
    Randomness(String),
    /// Its data is being removed; in a moment there is nothing left of it.
    #[error("it is being purged")]
    BeingPurged,
    /// The user has as many apps as one may have.
    #[error("a user may have {0} apps, and has them")]
    TooManyApps(u32),
    /// Its cause has written as much lately as it may.
    #[error(transparent)]
    TooManyChanges(#[from] Overspent),
    /// Its data takes more of the disk than it may.
    #[error("its storage is full: {0}")]
    StorageFull(String),
    /// There is an instance of this name already, or a tombstone of one.
    #[error("there is one already")]
    Exists,
    /// Somebody else has changed the row since it was read.
    #[error("the row has changed in the meantime")]
    Stale,
    /// The domain does not allow going from one phase to the other.
    #[error("an instance can't go from {from} to {to}")]
    IllegalTransition {
        /// The row's phase.
        from: crate::instance::Phase,
        /// The phase that was asked for.
        to: crate::instance::Phase,
    },
    /// A row holds what no version of haas has written.
    #[error("the row of instance {id} is corrupt: {why}")]
    Corrupt {
        /// The row.
        id: Uuid,
        /// What is wrong with it.
        why: String,
    },
    /// Any other answer of the database.
    #[error("the database refused a statement: {0}")]
    Statement(#[source] diesel::result::Error),
}

impl From<diesel::result::Error> for ManifestError {
    fn from(error: diesel::result::Error) -> Self {
        use diesel::result::{DatabaseErrorKind, Error};
        let lost = match &error {
            Error::DatabaseError(
                DatabaseErrorKind::ClosedConnection
                | DatabaseErrorKind::UnableToSendCommand
                | DatabaseErrorKind::ReadOnlyTransaction,
                _,
            )
            | Error::BrokenTransactionManager
            | Error::RollbackErrorOnCommit { .. } => true,
            // tokio-postgres reports a connection that breaks, or a server that shuts down or
            // starts up, without a kind that diesel knows.
            Error::DatabaseError(DatabaseErrorKind::Unknown, info) => {
                let message = info.message();
                let signs = [
                    "connection closed",
                    "terminating connection",
                    "starting up",
                    "shutting down",
                    "recovery mode",
                    "communicating with the server",
                    "canceling statement",
                ];
                signs.iter().any(|text| message.contains(text))
            }
            _ => false,
        };
        if lost { Self::Unavailable(error.to_string()) } else { Self::Statement(error) }
    }
}

/// A handle on the database; cheap to clone.
#[derive(Clone)]
pub struct Manifest {
    pool: Pool<AsyncPgConnection>,
    timeout: Duration,
    ports: PortRange,
    /// Ports of our own, which no tenant may get.
    own_ports: Vec<i32>,
    port_retry_after: Duration,
    domain: Hostname,
    host_pattern: HostPattern,
    policy: Policy,
    /// What new containers are made of.
    spec: Spec,
    /// Who brings about what is written through this handle.
    cause: Arc<Cause>,
    /// How many apps one user may have; 0 for no bound.
    apps_per_user: u32,
    /// How much of the disk an instance's data may take.
    limits: Limits,
}

impl Manifest {
    /// Prepares a pool. Connections are made when they are needed, and their drivers run on
    /// the runtime that this is called on, whichever thread asks.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let runtime = tokio::runtime::Handle::current();
        let limit = config.manifest.timeout;
        let mut setup = ManagerConfig::default();
        setup.custom_setup = Box::new(move |url| {
            let (url, runtime) = (url.to_owned(), runtime.clone());
            async move {
                let connecting = runtime.spawn(async move { tokio::time::timeout(limit, establish(&url)).await });
                match connecting.await {
                    Ok(Ok(connected)) => connected,
                    Ok(Err(late)) => Err(diesel::ConnectionError::BadConnection(late.to_string())),
                    Err(gone) => Err(diesel::ConnectionError::BadConnection(gone.to_string())),
                }
            }
            .boxed()
        });
        let url = config.manifest.database_url.as_str();
        let manager = AsyncDieselConnectionManager::new_with_config(url, setup);
        let pool = Pool::builder(manager)
            .max_size(config.manifest.pool_size)
            .build()
            .unwrap_or_else(|error| unreachable!("a pool without timeouts needs no runtime: {error}"));
        Self {
            pool,
            timeout: config.manifest.timeout,
            ports: config.tenant.ports,
            own_ports: config.own_ports().into_iter().map(i32::from).collect(),
            port_retry_after: config.reconcile.port_retry_after,
            domain: config.installation.domain.clone(),
            host_pattern: config.installation.host_pattern,
            policy: config.lifecycle.policy(),
            spec: config.tenant.spec(),
            cause: Arc::default(),
            apps_per_user: config.tenant.apps_per_user,
            limits: config.tenant.limits(),
        }
    }

    /// A handle on the same database for somebody else: each event that is written through it
    /// says who that is.
    #[must_use]
    pub fn caused_by(&self, cause: Cause) -> Self {
        Self { cause: Arc::new(cause), ..self.clone() }
    }

    /// Runs one piece of work on a connection, within the configured time.
    async fn run<T>(
        &self,
        work: impl AsyncFnOnce(&mut AsyncPgConnection) -> Result<T, ManifestError>,
    ) -> Result<T, ManifestError> {
        self.run_within(self.timeout, work).await
    }

    async fn run_within<T>(
        &self,
        limit: Duration,
        work: impl AsyncFnOnce(&mut AsyncPgConnection) -> Result<T, ManifestError>,
    ) -> Result<T, ManifestError> {
        let unavailable = |why: String| ManifestError::Unavailable(why);
        let within = async {
            let conn = self.pool.get().await.map_err(|error| unavailable(error.to_string()))?;
            let mut lent = Lent(Some(conn));
            let Some(conn) = lent.0.as_mut() else { return Err(unavailable("no connection".to_owned())) };
            let outcome = work(conn).await;
            if !matches!(outcome, Err(ManifestError::Unavailable(_))) {
                drop(lent.0.take());
            }
            outcome
        };
        tokio::time::timeout(limit, within)
            .await
            .unwrap_or_else(|_| Err(unavailable(format!("no answer within {limit:?}"))))
    }

    /// The installation's id, which containers carry as a label.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn installation(&self) -> Result<Uuid, ManifestError> {
        use diesel::QueryDsl;
        self.run(async |conn| Ok(schema::installation::table.select(schema::installation::id).first(conn).await?)).await
    }

    /// Whether Postgres answers.
    ///
    /// # Errors
    /// [`ManifestError`] says why it does not.
    pub async fn ping(&self) -> Result<(), ManifestError> {
        self.run(async |conn| {
            diesel::sql_query("SELECT 1").execute(conn).await?;
            Ok(())
        })
        .await
    }
}

/// A connection that goes back to the pool only when its work was done: one that broke, or
/// whose caller went away in the middle, may have a transaction open and a lock in its hands.
struct Lent(Option<Object<AsyncPgConnection>>);

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(conn) = self.0.take() {
            drop(Object::take(conn));
        }
    }
}

/// Connects, and has the server itself end what nobody waits for any more.
async fn establish(url: &str) -> diesel::ConnectionResult<AsyncPgConnection> {
    use diesel_async::SimpleAsyncConnection;
    let mut conn = AsyncPgConnection::establish(url).await?;
    let limits = "SET statement_timeout = '10s'; SET idle_in_transaction_session_timeout = '10s'";
    conn.batch_execute(limits).await.map_err(diesel::ConnectionError::CouldntSetupConfiguration)?;
    Ok(conn)
}

/// Names a pair would get: whether they are free is the database's to say.
fn names(manifest: &Manifest, new: &NewInstance) -> Result<(ContainerName, Hostname), ManifestError> {
    let host = manifest
        .host_pattern
        .host(&new.username, &new.appname, &manifest.domain)
        .map_err(|_| ManifestError::UnfitHost)?;
    Ok((ContainerName::of(&new.username, &new.appname), host))
}
