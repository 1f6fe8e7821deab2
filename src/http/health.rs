//! GET /healthz and GET /readyz: what the reconciler last saw; nothing is asked here.

use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use crate::reconcile::Report;

/// The parts, and whether all of them do what they should.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Readiness {
    /// Whether a request to provision can be carried out now.
    ready: bool,
    /// Each part, as it was last seen.
    #[serde(flatten)]
    parts: Report,
}

/// Whether this process lives.
#[utoipa::path(get, path = "/healthz", responses((status = 200, description = "It does", body = String, content_type = "text/plain")))]
pub(super) async fn healthz() -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain").body("ok\n")
}

/// Whether every part does what it should.
#[utoipa::path(
    get, path = "/readyz",
    responses(
        (status = 200, description = "Each does", body = Readiness),
        (status = 503, description = "One does not; its detail says why", body = Readiness),
    ),
)]
pub(super) async fn readyz(api: web::Data<Api>) -> HttpResponse {
    let parts = api.health.report();
    let ready = parts.ok();
    let mut answer = if ready { HttpResponse::Ok() } else { HttpResponse::ServiceUnavailable() };
    answer.json(Readiness { ready, parts })
}
