//! POST /sso: a link that signs an app's owner on to its admin dashboard.

use actix_web::{HttpRequest, HttpResponse, web};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Api;
use super::body::Fields;
use super::own::sign_on_url;
use super::problem::{Problem, ProblemDocument};
use crate::clients::Right;
use crate::instance::name::{AppName, Username};

/// The body of POST /sso, as JSON or as a form.
#[derive(Deserialize, ToSchema)]
#[allow(dead_code, reason = "the document's schema; the body is read field by field")]
pub(super) struct SsoRequest {
    /// The secret that was arranged with the caller; left out of a request that is signed, or has
    /// `Authorization: Bearer`.
    secret: Option<String>,
    /// Whose the app is.
    #[schema(example = "alice")]
    username: String,
    /// The app.
    #[schema(example = "notes")]
    appname: String,
}

/// A link for the owner's browser.
#[derive(Serialize, ToSchema)]
pub(super) struct SsoLink {
    /// Opened once, and in time, it ends on the app's admin dashboard, signed in. Whoever has it
    /// is the owner: it is for no log, and for nobody else.
    #[schema(example = "http://notes.alice.haas.localhost:8080/.haas/sso?token=9d0a…")]
    url: String,
    /// When it is void.
    expires_at: DateTime<Utc>,
}

/// Makes a link that signs the owner on to an app's admin dashboard: once, within a minute.
#[utoipa::path(
    post, path = "/sso",
    request_body(content(
        (SsoRequest = "application/json"),
        (SsoRequest = "application/x-www-form-urlencoded"),
    )),
    responses(
        (status = 201, description = "The link; an app that rests wakes up when it is opened", body = SsoLink),
        (status = 400, description = "The body can't be read, or has an unknown field", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 401, description = "Neither a secret nor a signature of a known party", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "There is no such instance, or it was taken away", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 413, description = "The body is over 16 KiB", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 415, description = "Neither JSON nor a form", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, description = "Every field that won't do", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "No database; try again later", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn sso(
    request: HttpRequest,
    body: web::Payload,
    api: web::Data<Api>,
) -> Result<HttpResponse, Problem> {
    let (caller, mut fields) = Fields::read(&request, body, &api, Right::Sso).await?;
    let username = fields.take("username", Username::parse);
    let appname = fields.take("appname", AppName::parse);
    fields.finish()?;
    let (Some(username), Some(appname)) = (username, appname) else { return Err(Problem::Internal) };

    let act = caller.act(&api, "sso", &username, &appname).await?;
    let issued = act.noting(act.manifest.issue_sign_on(&username, &appname).await).await?;
    let issued = issued.ok_or(Problem::NoSuchInstance)?;
    log::info!(instance:% = issued.instance.id; "{}: a link to sign on was made", issued.instance.container);
    let link = SsoLink { url: sign_on_url(&issued, api.settings.public), expires_at: issued.expires_at };
    // It is worth a password for a minute.
    Ok(HttpResponse::Created().insert_header(("Cache-Control", "no-store")).json(link))
}
