//! POST /provision and POST /deprovision: intent in, and a wait for what becomes of it.

use actix_web::http::header::LOCATION;
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::Fields;
use super::problem::{Problem, ProblemDocument};
use super::view::InstanceView;
use super::wait::{self, Waited};
use super::{Api, Settings};
use crate::clients::Right;
use crate::failpoint::Boundary;
use crate::instance::name::{AppName, Email, Username};
use crate::instance::{Desired, Instance, Phase, State};
use crate::manifest::NewInstance;

/// The body of POST /provision, as JSON or as a form.
#[derive(Deserialize, ToSchema)]
#[allow(dead_code, reason = "the document's schema; the body is read field by field")]
pub(super) struct ProvisionRequest {
    /// The secret that was arranged with the caller; left out of a request that is signed, or has
    /// `Authorization: Bearer`.
    secret: Option<String>,
    /// Whose the app is: a DNS label.
    #[schema(example = "alice", max_length = 63, pattern = "^[A-Za-z0-9]+(-[A-Za-z0-9]+)*$")]
    username: String,
    /// Where the owner gets mail.
    #[schema(example = "alice@example.com", max_length = 254, pattern = r"^[^@\s]+@[^@\s]+\.[^@\s]+$")]
    emailaddress: String,
    /// The app: a DNS label.
    #[schema(example = "notes", max_length = 63, pattern = "^[A-Za-z0-9]+(-[A-Za-z0-9]+)*$")]
    appname: String,
}

/// The body of POST /deprovision, as JSON or as a form.
#[derive(Deserialize, ToSchema)]
#[allow(dead_code, reason = "the document's schema; the body is read field by field")]
pub(super) struct DeprovisionRequest {
    /// The secret that was arranged with the caller; left out of a request that is signed, or has
    /// `Authorization: Bearer`.
    secret: Option<String>,
    /// Whose the app is.
    #[schema(example = "alice", max_length = 63, pattern = "^[A-Za-z0-9]+(-[A-Za-z0-9]+)*$")]
    username: String,
    /// The app.
    #[schema(example = "notes", max_length = 63, pattern = "^[A-Za-z0-9]+(-[A-Za-z0-9]+)*$")]
    appname: String,
    /// Whether its data goes at once, and for good.
    #[schema(default = false)]
    purge: Option<bool>,
}

/// The body of POST /restore, as JSON or as a form.
#[derive(Deserialize, ToSchema)]
#[allow(dead_code, reason = "the document's schema; the body is read field by field")]
pub(super) struct RestoreRequest {
    /// The secret that was arranged with the caller; left out of a request that is signed, or has
    /// `Authorization: Bearer`.
    secret: Option<String>,
    /// Whose the app is.
    #[schema(example = "alice", max_length = 63, pattern = "^[A-Za-z0-9]+(-[A-Za-z0-9]+)*$")]
    username: String,
    /// The app.
    #[schema(example = "notes", max_length = 63, pattern = "^[A-Za-z0-9]+(-[A-Za-z0-9]+)*$")]
    appname: String,
}

/// The answer to POST /provision.
#[derive(Serialize, ToSchema)]
pub(super) struct ProvisionedView {
    #[serde(flatten)]
    instance: InstanceView,
    /// Where the caller asks for a link that signs the owner on: the API's own POST /sso.
    #[schema(example = "http://haas.localhost:8080/sso")]
    sso_url: String,
}

/// Gives a user a Hoodie for an app. Asking again changes nothing but the email.
#[utoipa::path(
    post, path = "/provision",
    request_body(content(
        (ProvisionRequest = "application/json"),
        (ProvisionRequest = "application/x-www-form-urlencoded"),
    )),
    params(("Prefer" = Option<String>, Header, description = "`respond-async` (RFC 7240) answers 202 at once")),
    responses(
        (status = 201, description = "It answers at its endpoint", body = ProvisionedView,
            headers(("Location" = String, description = "Where to ask for it"))),
        (status = 200, description = "It was there already, and answers at its endpoint; one that rests wakes up for that", body = ProvisionedView),
        (status = 202, description = "It does not answer yet; ask at Location", body = ProvisionedView),
        (status = 400, description = "The body can't be read, or has an unknown field", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 401, description = "Neither a secret nor a signature of a known party", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "A name is taken, or the user has as many apps as one may have", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 413, description = "The body is over 16 KiB", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 415, description = "Neither JSON nor a form", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, description = "Every field that won't do", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "No free port, or no database; try again later", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn provision(
    request: HttpRequest,
    body: web::Payload,
    api: web::Data<Api>,
) -> Result<HttpResponse, Problem> {
    let (caller, mut fields) = Fields::read(&request, body, &api, Right::Provision).await?;
    let username = fields.take("username", Username::parse);
    let email = fields.take("emailaddress", Email::parse);
    let appname = fields.take("appname", AppName::parse);
    fields.finish()?;
    let (Some(username), Some(email), Some(appname)) = (username, email, appname) else {
        return Err(Problem::Internal);
    };

    let new = NewInstance { username, appname, email };
    let act = caller.act(&api, "provision", &new.username, &new.appname).await?;
    let provisioned = act.noting(act.manifest.provision(&new).await).await?;
    api.faults.hit(Boundary::IntentWritten).await;
    let written = provisioned.instance;
    log::info!(instance:% = written.id; "{} provisioned{}", written.container, if provisioned.new { "" } else { " again" });
    if written.state() == State::Running || written.desired.resting() {
        return Ok(provisioned_answer(HttpResponse::Ok(), &api, &written));
    }
    if respond_async(&request) {
        let mut accepted = HttpResponse::Accepted();
        accepted.insert_header(("Preference-Applied", "respond-async"));
        return Ok(provisioned_answer(accepted, &api, &written));
    }
    let generation = written.generation;
    let over = async |row: &Instance| row.state() == State::Running || row.desired != Desired::Running;
    let Waited { row, .. } = wait::until(&api, written, api.settings.wait, over).await;
    match row.state() {
        State::Running => Ok(provisioned_answer(HttpResponse::Created(), &api, &row)),
        // Given up by the reconciler: the only thing it gives up over is a foreign container.
        State::Deleted if row.generation == generation => Err(Problem::NameTaken("of the container".to_owned())),
        State::Deleted | State::Deleting => Err(Problem::Superseded),
        // Laid to rest as soon as it was there: the first request wakes it.
        State::Paused | State::Asleep | State::Archived => Ok(provisioned_answer(HttpResponse::Ok(), &api, &row)),
        State::Pending | State::Failed => Ok(provisioned_answer(HttpResponse::Accepted(), &api, &row)),
    }
}

/// Takes a Hoodie away: unrouted, drained, stopped, removed. Its data stays until
/// `restorable_until` for sure, unless it is to be purged at once.
#[utoipa::path(
    post, path = "/deprovision",
    request_body(content(
        (DeprovisionRequest = "application/json"),
        (DeprovisionRequest = "application/x-www-form-urlencoded"),
    )),
    params(("Prefer" = Option<String>, Header, description = "`respond-async` (RFC 7240) answers 202 at once")),
    responses(
        (status = 200, description = "Its container is gone; with `purge`, its data too", body = InstanceView),
        (status = 202, description = "It is on its way out; ask at Location", body = InstanceView),
        (status = 400, description = "The body can't be read, or has an unknown field", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 401, description = "Neither a secret nor a signature of a known party", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "There is no such instance", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "It was provisioned again in the meantime", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 413, description = "The body is over 16 KiB", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 415, description = "Neither JSON nor a form", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, description = "Every field that won't do", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "No database; try again later", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn deprovision(
    request: HttpRequest,
    body: web::Payload,
    api: web::Data<Api>,
) -> Result<HttpResponse, Problem> {
    let (caller, mut fields) = Fields::read(&request, body, &api, Right::Deprovision).await?;
    let username = fields.take("username", Username::parse);
    let appname = fields.take("appname", AppName::parse);
    let purge = fields.take_flag("purge");
    fields.finish()?;
    let (Some(username), Some(appname), Some(purge)) = (username, appname, purge) else {
        return Err(Problem::Internal);
    };

    let act = caller.act(&api, "deprovision", &username, &appname).await?;
    let written = act.noting(act.manifest.deprovision(&username, &appname, purge).await).await?;
    let written = written.ok_or(Problem::NoSuchInstance)?;
    api.faults.hit(Boundary::IntentWritten).await;
    log::info!(instance:% = written.id; "{} deprovisioned{}", written.container, if purge { ", to be purged" } else { "" });
    let over = async |row: &Instance| !row.desired.gone() || (row.phase == Phase::Deleted && !purge);
    let Waited { row, purged } = if respond_async(&request) {
        Waited { row: written, purged: false }
    } else {
        wait::until(&api, written, api.settings.wait, over).await
    };
    match row.state() {
        _ if purged => Ok(HttpResponse::Ok().json(InstanceView::purged(&row, api.settings.public))),
        State::Deleted if !purge => Ok(answer(HttpResponse::Ok(), &api, &row)),
        State::Deleted | State::Deleting => Ok(answer(HttpResponse::Accepted(), &api, &row)),
        _ => Err(Problem::Superseded),
    }
}

/// Brings a deleted instance back, with its data.
#[utoipa::path(
    post, path = "/restore",
    request_body(content(
        (RestoreRequest = "application/json"),
        (RestoreRequest = "application/x-www-form-urlencoded"),
    )),
    params(("Prefer" = Option<String>, Header, description = "`respond-async` (RFC 7240) answers 202 at once")),
    responses(
        (status = 200, description = "It answers at its endpoint; one that rests wakes up for that", body = InstanceView),
        (status = 202, description = "It does not answer yet; ask at Location", body = InstanceView),
        (status = 400, description = "The body can't be read, or has an unknown field", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 401, description = "Neither a secret nor a signature of a known party", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "There is no such instance, not even a deleted one", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "A name is taken, it is being purged, or the user has as many apps as one may have", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 413, description = "The body is over 16 KiB", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 415, description = "Neither JSON nor a form", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, description = "Every field that won't do", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "No free port, or no database; try again later", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn restore(
    request: HttpRequest,
    body: web::Payload,
    api: web::Data<Api>,
) -> Result<HttpResponse, Problem> {
    let (caller, mut fields) = Fields::read(&request, body, &api, Right::Provision).await?;
    let username = fields.take("username", Username::parse);
    let appname = fields.take("appname", AppName::parse);
    fields.finish()?;
    let (Some(username), Some(appname)) = (username, appname) else { return Err(Problem::Internal) };

    let act = caller.act(&api, "restore", &username, &appname).await?;
    let restored = act.noting(act.manifest.restore(&username, &appname).await).await?;
    let restored = restored.ok_or(Problem::NoSuchInstance)?;
    api.faults.hit(Boundary::IntentWritten).await;
    let written = restored.instance;
    if restored.new {
        log::info!(instance:% = written.id; "{} restored", written.container);
    }
    let over = async |row: &Instance| row.state() == State::Running || row.desired != Desired::Running;
    let row =
        if respond_async(&request) { written } else { wait::until(&api, written, api.settings.wait, over).await.row };
    match row.state() {
        State::Running | State::Paused | State::Asleep | State::Archived => Ok(answer(HttpResponse::Ok(), &api, &row)),
        State::Deleted | State::Deleting => Err(Problem::Superseded),
        // Its data takes more of the disk than it may: it is there again, and rests.
        State::Pending if row.desired.resting() => Ok(answer(HttpResponse::Ok(), &api, &row)),
        State::Pending | State::Failed => Ok(answer(HttpResponse::Accepted(), &api, &row)),
    }
}

/// RFC 7240, section 4.1.
fn respond_async(request: &HttpRequest) -> bool {
    request.headers().get_all("Prefer").filter_map(|value| value.to_str().ok()).any(|value| {
        value.split(',').any(|preference| {
            preference.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("respond-async")
        })
    })
}

fn answer(builder: HttpResponseBuilder, api: &Api, instance: &Instance) -> HttpResponse {
    located(builder, instance).json(InstanceView::new(instance, api.settings.public))
}

fn provisioned_answer(builder: HttpResponseBuilder, api: &Api, instance: &Instance) -> HttpResponse {
    let Settings { domain, public, .. } = &api.settings;
    let sso_url = format!("{}/sso", public.origin(domain));
    located(builder, instance).json(ProvisionedView { instance: InstanceView::new(instance, *public), sso_url })
}

fn located(mut builder: HttpResponseBuilder, instance: &Instance) -> HttpResponseBuilder {
    builder.insert_header((LOCATION, format!("/instances/{}/{}", instance.username, instance.appname)));
    builder
}
