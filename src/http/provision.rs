//! POST /provision and POST /deprovision: intent in, and a wait for what becomes of it.

use actix_web::http::header::LOCATION;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Deserialize;
use utoipa::ToSchema;

use super::body::Fields;
use super::problem::{Problem, ProblemDocument};
use super::view::InstanceView;
use super::{Api, wait};
use crate::failpoint::Boundary;
use crate::instance::name::{AppName, Email, Username};
use crate::instance::{Desired, Instance, Phase, State};
use crate::manifest::NewInstance;

/// The body of POST /provision, as JSON or as a form.
#[derive(Deserialize, ToSchema)]
#[allow(dead_code, reason = "the document's schema; the body is read field by field")]
pub(super) struct ProvisionRequest {
    /// The secret that was arranged with the caller.
    secret: String,
    /// Whose the app is: a DNS label.
    #[schema(example = "alice", max_length = 63)]
    username: String,
    /// Where the owner gets mail.
    #[schema(example = "alice@example.com", max_length = 254)]
    emailaddress: String,
    /// The app: a DNS label.
    #[schema(example = "notes", max_length = 63)]
    appname: String,
}

/// The body of POST /deprovision, as JSON or as a form.
#[derive(Deserialize, ToSchema)]
#[allow(dead_code, reason = "the document's schema; the body is read field by field")]
pub(super) struct DeprovisionRequest {
    /// The secret that was arranged with the caller.
    secret: String,
    /// Whose the app is.
    #[schema(example = "alice")]
    username: String,
    /// The app.
    #[schema(example = "notes")]
    appname: String,
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
        (status = 201, description = "It answers at its endpoint", body = InstanceView,
            headers(("Location" = String, description = "Where to ask for it"))),
        (status = 200, description = "It was there already, and answers at its endpoint", body = InstanceView),
        (status = 202, description = "It does not answer yet; ask at Location", body = InstanceView),
        (status = 400, description = "The body can't be read, or has an unknown field", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 401, description = "The secret is wrong or missing", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "A name is taken", body = ProblemDocument, content_type = "application/problem+json"),
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
    let mut fields = Fields::read(&request, body, &api.secrets).await?;
    let username = fields.take("username", Username::parse);
    let email = fields.take("emailaddress", Email::parse);
    let appname = fields.take("appname", AppName::parse);
    fields.finish()?;
    let (Some(username), Some(email), Some(appname)) = (username, email, appname) else {
        return Err(Problem::Internal);
    };

    let provisioned = api.manifest.provision(&NewInstance { username, appname, email }).await?;
    api.faults.hit(Boundary::IntentWritten).await;
    let written = provisioned.instance;
    log::info!(instance:% = written.id; "{} provisioned{}", written.container, if provisioned.new { "" } else { " again" });
    if written.state() == State::Running {
        return Ok(answer(HttpResponse::Ok(), &api, &written));
    }
    if respond_async(&request) {
        let mut accepted = HttpResponse::Accepted();
        accepted.insert_header(("Preference-Applied", "respond-async"));
        return Ok(answer(accepted, &api, &written));
    }
    let generation = written.generation;
    let over = |row: &Instance| row.state() == State::Running || row.desired == Desired::Deleted;
    let row = wait::until(&api, written, over).await;
    match row.state() {
        State::Running => Ok(answer(HttpResponse::Created(), &api, &row)),
        // Given up by the reconciler: the only thing it gives up over is a foreign container.
        State::Deleted if row.generation == generation => Err(Problem::NameTaken("of the container".to_owned())),
        State::Deleted | State::Deleting => Err(Problem::Superseded),
        State::Pending | State::Failed => Ok(answer(HttpResponse::Accepted(), &api, &row)),
    }
}

/// Takes a Hoodie away: unrouted, drained, stopped, removed. Its data stays.
#[utoipa::path(
    post, path = "/deprovision",
    request_body(content(
        (DeprovisionRequest = "application/json"),
        (DeprovisionRequest = "application/x-www-form-urlencoded"),
    )),
    params(("Prefer" = Option<String>, Header, description = "`respond-async` (RFC 7240) answers 202 at once")),
    responses(
        (status = 200, description = "Its container is gone", body = InstanceView),
        (status = 202, description = "It is on its way out; ask at Location", body = InstanceView),
        (status = 400, description = "The body can't be read, or has an unknown field", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 401, description = "The secret is wrong or missing", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "There never was such an instance", body = ProblemDocument, content_type = "application/problem+json"),
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
    let mut fields = Fields::read(&request, body, &api.secrets).await?;
    let username = fields.take("username", Username::parse);
    let appname = fields.take("appname", AppName::parse);
    fields.finish()?;
    let (Some(username), Some(appname)) = (username, appname) else {
        return Err(Problem::Internal);
    };

    let written = api.manifest.deprovision(&username, &appname).await?.ok_or(Problem::NoSuchInstance)?;
    api.faults.hit(Boundary::IntentWritten).await;
    log::info!(instance:% = written.id; "{} deprovisioned", written.container);
    let over = |row: &Instance| row.phase == Phase::Deleted || row.desired == Desired::Running;
    let row = if respond_async(&request) { written } else { wait::until(&api, written, over).await };
    match row.state() {
        State::Deleted => Ok(answer(HttpResponse::Ok(), &api, &row)),
        State::Deleting => Ok(answer(HttpResponse::Accepted(), &api, &row)),
        State::Pending | State::Running | State::Failed => Err(Problem::Superseded),
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

fn answer(mut builder: actix_web::HttpResponseBuilder, api: &Api, instance: &Instance) -> HttpResponse {
    builder
        .insert_header((LOCATION, format!("/instances/{}/{}", instance.username, instance.appname)))
        .json(InstanceView::new(instance, api.settings.public))
}
