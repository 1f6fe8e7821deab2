//! GET /openapi.json.

use actix_web::HttpResponse;
use utoipa::openapi::RefOr;
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
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
    modifiers(&KnownParties)
)]
struct Document;

struct KnownParties;

impl Modify for KnownParties {
    /// What holds for every operation that only known parties may ask for.
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let shown = "A client's key, or a token of a client's for one user (JWT)";
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(shown)).build();
        components.add_security_scheme("secret", SecurityScheme::Http(bearer));
        let signed = "HTTP Message Signatures (RFC 9421), hmac-sha256; Signature-Input and Content-Digest beside it";
        let signature = ApiKey::Header(ApiKeyValue::with_description("Signature", signed));
        components.add_security_scheme("signature", SecurityScheme::ApiKey(signature));
        for path in document.paths.paths.values_mut() {
            let operations = [(&mut path.get, false), (&mut path.put, true), (&mut path.post, true)];
            for (operation, changes) in operations {
                let Some(operation) = operation else { continue };
                let Some(refused) = operation.responses.responses.get("401").cloned() else { continue };
                let responses = &mut operation.responses.responses;
                let too_many = if changes {
                    "Too many wrong keys, or too many changes by this client, or of this app; try again after Retry-After"
                } else {
                    "Too many wrong keys; try again after Retry-After"
                };
                for (status, description) in
                    [("403", "The client lacks the right, or may not act for this user"), ("429", too_many)]
                {
                    let mut refused = refused.clone();
                    if let RefOr::T(response) = &mut refused {
                        description.clone_into(&mut response.description);
                    }
                    responses.insert(status.to_owned(), refused);
                }
                let mut ways =
                    vec![SecurityRequirement::new("secret", [""; 0]), SecurityRequirement::new("signature", [""; 0])];
                // Where the body holds the secret.
                if operation.security.is_none() {
                    ways.push(SecurityRequirement::default());
                }
                operation.security = Some(ways);
            }
        }
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
