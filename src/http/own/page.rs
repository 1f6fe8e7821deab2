//! Pages below `/.haas/`: on the app's own origin, but none of its business. They load nothing,
//! nobody frames or keeps them, and where they lead learns nothing of where one came from.

use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use actix_web::{HttpResponse, ResponseError};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

use super::login::SessionId;
use crate::http::Problem;

/// The same for every link that is not good, whatever is wrong with it.
pub(super) const NOT_GOOD: (&str, &str) =
    ("This link does not sign you on", "It is good once, and for a minute. Ask for a new one where you got it.");
pub(super) const OPEN_IT: (&str, &str) = ("This link is to be opened in a browser", "It is still as it was.");

/// What is said where something else is in the way; most often the link is used up by then.
const NEW_LINK: &str = "Ask for a new link where you got it, in a moment.";

/// Keeps the session where Hoodie's dashboard looks for it, and goes there. The link's own page
/// is not left behind in the history.
pub(super) fn signed_on(session: &SessionId) -> HttpResponse {
    let script = format!(
        "localStorage.setItem('account_admin','{{\"username\":\"admin\",\"session\":{{\"id\":\"{}\"}}}}');\
         location.replace('/hoodie/admin/')",
        session.as_str()
    );
    let html = html(
        "Signing on",
        &format!("<script>{script}</script><noscript><p>This takes a browser with scripts.</p></noscript>"),
    );
    // The one script that it may run, by what it is (CSP level 3, section 6.7.3).
    let policy = format!("script-src 'sha256-{}'; ", BASE64_STANDARD.encode(Sha256::digest(&script)));
    strict(HttpResponse::build(StatusCode::OK).content_type("text/html; charset=utf-8").body(html), &policy)
}

/// A page with a title and a sentence, both our own.
pub(super) fn told(status: StatusCode, (title, sentence): (&str, &str)) -> HttpResponse {
    let html = html(title, &format!("<h1>{title}</h1><p>{sentence}</p>"));
    strict(HttpResponse::build(status).content_type("text/html; charset=utf-8").body(html), "")
}

/// Why a link that was good did not lead anywhere.
pub(super) fn problem(problem: &Problem) -> HttpResponse {
    let title = problem.to_string();
    let html = html(&title, &format!("<h1>{title}</h1><p>{NEW_LINK}</p>"));
    let mut answer = problem.error_response();
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    strict(answer.set_body(actix_web::body::BoxBody::new(html)), "")
}

/// For all other paths.
pub(super) fn not_found() -> HttpResponse {
    strict(HttpResponse::NotFound().content_type("text/plain; charset=utf-8").body("not found\n"), "")
}

fn html(title: &str, body: &str) -> String {
    format!("<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>{body}</html>\n")
}

fn strict(mut answer: HttpResponse, scripts: &str) -> HttpResponse {
    let policy = format!("default-src 'none'; {scripts}base-uri 'none'; form-action 'none'; frame-ancestors 'none'");
    let headers = answer.headers_mut();
    for (name, value) in [
        ("content-security-policy", policy.as_str()),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
    ] {
        // Base64 and our own words: there is nothing in it that a header can't hold.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    answer
}
