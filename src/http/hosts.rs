//! PUT /instances/{username}/{appname}/hosts: an instance's custom domains.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Deserialize;
use utoipa::ToSchema;

use super::Api;
use super::body::Fields;
use super::instances::named;
use super::problem::{Problem, ProblemDocument};
use super::view::InstanceView;
use crate::clients::Right;
use crate::failpoint::Boundary;
use crate::instance::hosts::{EXTRA_HOSTS_MAX, extra_host};

/// The body of PUT /instances/{username}/{appname}/hosts.
#[derive(Deserialize, ToSchema)]
#[allow(dead_code, reason = "the document's schema; the body is read field by field")]
pub(super) struct HostsRequest {
    /// All custom domains that the instance is to have: full host names, outside of the
    /// installation's own domain.
    #[schema(example = json!(["www.example.org"]), max_items = 16)]
    hosts: Vec<String>,
}

/// Gives an instance these custom domains, and takes all others from it.
#[utoipa::path(
    put, path = "/instances/{username}/{appname}/hosts",
    security(("secret" = [])),
    params(
        ("username" = String, Path, description = "Whose it is"),
        ("appname" = String, Path, description = "Which app it serves"),
    ),
    request_body(content((HostsRequest = "application/json"))),
    responses(
        (status = 200, description = "They are its own, and lead to it within a moment while it runs", body = InstanceView),
        (status = 400, description = "The body can't be read, or has an unknown field", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 401, description = "The secret is wrong or missing", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "There is no such instance", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "A host is another instance's", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 413, description = "The body is over 16 KiB", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 415, description = "Not JSON", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, description = "Every host that won't do", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "No database; try again later", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn put(
    request: HttpRequest,
    path: web::Path<(String, String)>,
    body: web::Payload,
    api: web::Data<Api>,
) -> Result<HttpResponse, Problem> {
    let (caller, mut fields) = Fields::read_json(&request, body, &api, Right::Provision).await?;
    let (username, appname) = named(&path)?;
    let hosts = fields.take_list("hosts", EXTRA_HOSTS_MAX, |text| extra_host(text, &api.settings.domain));
    fields.finish()?;
    let Some(hosts) = hosts else { return Err(Problem::Internal) };

    let act = caller.act(&api, "hosts", &username, &appname).await?;
    let written = act.noting(act.manifest.set_hosts(&username, &appname, &hosts).await).await?;
    let written = written.ok_or(Problem::NoSuchInstance)?;
    api.faults.hit(Boundary::IntentWritten).await;
    log::info!(instance:% = written.id; "{} has {} extra host(s)", written.container, written.extra_hosts.len());
    Ok(HttpResponse::Ok().json(InstanceView::new(&written, api.settings.public)))
}
