//! Requests to apps that HAProxy has no route for, because they rest or are on their way: held
//! until the app answers, then passed on. The first of them wakes it.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use chrono::Utc;
use tokio::time::Instant;

use super::forward::{ForwardError, forward};
use super::request_id::RequestId;
use super::wait::{self, Waited};
use super::{Api, Problem};
use crate::instance::{Desired, Instance, Phase};
use crate::manifest::{Actor, Cause, Manifest};

/// An app that is laid to rest again sooner than this was just on its way there; later, nobody
/// could make room for it.
const JUST_MISSED: Duration = Duration::from_secs(2);

/// Holds a request to an app, and passes it on.
pub(super) async fn hold(
    request: &HttpRequest,
    body: web::Payload,
    api: &Api,
    found: Instance,
) -> Result<HttpResponse, Problem> {
    // From here on it is in use.
    let Some(held) = api.held.enter(found.id, api.settings.app_maxconn) else { return Err(Problem::TooManyRequests) };
    let began = Instant::now();
    let row = comes_up(api, found, "a request", |row| app_port(row).is_some()).await?;
    let Some(port) = app_port(&row) else { return Err(Problem::NotReady) };
    let waited = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    log::debug!(instance:% = row.id, waited; "{}: a held request is passed on", row.container);
    match forward(request, body, port, api.settings.body_max, held.pass_on()).await {
        Ok(answer) => Ok(answer),
        Err(error) => {
            log::warn!(instance:% = row.id; "{}: a held request failed: {error}", row.container);
            Err(match error {
                ForwardError::Unreachable(_) => Problem::NotReady,
                ForwardError::BodyTooLong => Problem::ContentTooLarge,
                ForwardError::BadAnswer(_) => Problem::BadAnswer,
                ForwardError::ClientGone => Problem::MalformedBody("the body broke off".to_owned()),
            })
        }
    }
}

/// Waits until an app is `up`, and returns its row; one that rests is woken, for a reason. It has
/// to be held meanwhile, or nobody knows that it is in use.
pub(super) async fn comes_up(
    api: &Api,
    found: Instance,
    why: &str,
    up: impl Fn(&Instance) -> bool,
) -> Result<Instance, Problem> {
    let began = Instant::now();
    let (time, id) = (api.settings.wake_timeout, found.id);
    let manifest = visitors(api);
    let mut refused = None;
    let over = async |row: &Instance| {
        if row.desired.resting() {
            if api.manifest.is_full(row) {
                refused = Some(Problem::StorageFull);
            } else if began.elapsed() >= JUST_MISSED {
                refused = Some(Problem::AllBusy);
            } else if let Err(error) = manifest.wake(id, why).await {
                refused = Some(error.into());
            }
        } else if row.phase == Phase::Failed {
            let left = time.saturating_sub(began.elapsed());
            let left = chrono::Duration::from_std(left).unwrap_or_default();
            // It will not be tried again in time.
            if row.next_attempt_at.is_some_and(|at| at > Utc::now() + left) {
                refused = Some(Problem::NotReady);
            }
        }
        refused.is_some() || row.desired.gone() || up(row)
    };
    let Waited { row, purged } = wait::until(api, found, time, over).await;
    if purged || row.desired.gone() {
        return Err(Problem::NoSuchApp);
    }
    if up(&row) { Ok(row) } else { Err(refused.unwrap_or(Problem::NotReady)) }
}

/// The manifest, for whoever opens an app's host.
pub(super) fn visitors(api: &Api) -> Manifest {
    api.manifest.caused_by(Cause { actor: Actor::Visitor, request: RequestId::current(), budget: None })
}

/// Where an app answers, if it does.
fn app_port(row: &Instance) -> Option<u16> {
    let answers = matches!(row.phase, Phase::Ready | Phase::Running | Phase::Restarting);
    row.port.filter(|_| answers && row.desired == Desired::Running && row.ready_at.is_some())
}
