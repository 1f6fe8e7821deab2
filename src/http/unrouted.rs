//! Hosts that HAProxy has no route for: no such app, or one that rests, or is not ready; its
//! requests are held and passed on. Of those that are refused, most callers are pages of another origin, so every answer can be read across origins (Fetch, section 3.2).

use actix_web::http::Method;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, ResponseError, web};

use super::hold::hold;
use super::{Api, Problem, host, own};
use crate::instance::name::Hostname;

pub(super) async fn unrouted(request: HttpRequest, body: web::Payload, api: web::Data<Api>) -> HttpResponse {
    let host = host(request.head()).and_then(|host| Hostname::parse(&host).ok());
    // Never the app's, whether it rests or not.
    if own::is_own(request.uri().path()) {
        return own::answer(&request, &api, host.as_ref()).await;
    }
    let found = match &host {
        Some(host) => api.manifest.find_by_host(host).await,
        None => Ok(None),
    };
    let problem = match found {
        Ok(Some(instance)) if !instance.desired.gone() => match hold(&request, body, &api, instance).await {
            // The app's own answer, just as it is.
            Ok(answer) => return answer,
            Err(problem) => problem,
        },
        Ok(_) => Problem::NoSuchApp,
        Err(error) => error.into(),
    };
    // A preflight that is refused would hide the refusal from the page that asks.
    if request.method() == Method::OPTIONS && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD) {
        return with_cors(&request, HttpResponse::NoContent().finish());
    }
    let answer = if wants_html(&request) { page(&problem, host.as_ref()) } else { problem.error_response() };
    with_cors(&request, answer)
}

fn wants_html(request: &HttpRequest) -> bool {
    let accept = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/html"))
}

/// The same answer for people. The host is a checked name: it needs no escaping.
fn page(problem: &Problem, host: Option<&Hostname>) -> HttpResponse {
    let mut answer = problem.error_response();
    let host = host.map(ToString::to_string).unwrap_or_default();
    let refresh = match problem {
        Problem::NotReady | Problem::AllBusy => "<meta http-equiv=\"refresh\" content=\"2\">",
        _ => "",
    };
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">{refresh}<title>{problem}</title>\
         <style>body{{font:1.1em/1.5 system-ui,sans-serif;max-width:34em;margin:20vh auto;padding:0 1em}}\
         code{{color:#666}}</style><h1>{problem}</h1><p><code>{host}</code></p></html>\n"
    );
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    answer.set_body(actix_web::body::BoxBody::new(html))
}

fn with_cors(request: &HttpRequest, mut answer: HttpResponse) -> HttpResponse {
    let headers = answer.headers_mut();
    let origin = request.headers().get(header::ORIGIN).cloned().unwrap_or(HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("Retry-After"));
    headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if request.method() == Method::OPTIONS {
        let methods = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        if let Some(wanted) = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
        }
        // The app may answer for itself a moment later.
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("0"));
    }
    answer
}
