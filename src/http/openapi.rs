//! GET /openapi.json.

use actix_web::HttpResponse;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Haas",
        description = "Hoodie as a Service: gives a user's app a Hoodie backend at its own domain."
    ),
    paths(
        super::provision::provision,
        super::provision::deprovision,
        super::provision::restore,
        super::sso::sso,
        super::instances::list,
        super::instances::show,
        super::hosts::put,
        super::health::healthz,
        super::health::readyz,
    ),
    modifiers(&Bearer)
)]
struct Document;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("secret", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    }
}

/// The API's own description (OpenAPI 3.1).
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

pub(super) async fn openapi() -> HttpResponse {
    HttpResponse::Ok().json(document())
}
