//! Heads of messages, from actix's types into hyper's and back: of two versions of one crate,
//! so by their bytes. What belongs to a connection, and not to the message, stays behind
//! (RFC 9110, section 7.6.1).

use std::io;

use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse};

/// Fields of the connection. `Expect` was answered by actix.
const HOP_BY_HOP: [&str; 8] =
    ["connection", "expect", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];

/// The request as the app gets it.
pub(super) fn request<B>(request: &HttpRequest, body: B) -> io::Result<hyper::Request<B>> {
    // A target in absolute form is for proxies; only CONNECT's has no path.
    let target = match request.uri().path_and_query() {
        Some(target) => target.as_str().to_owned(),
        None => request.uri().to_string(),
    };
    let headers = request.headers();
    let listed = Listed::new(headers.get_all(header::CONNECTION).map(header::HeaderValue::as_bytes));
    let mut passed_on = hyper::Request::builder().method(request.method().as_str()).uri(target);
    for (name, value) in headers.iter().filter(|(name, _)| listed.passes(name.as_str())) {
        passed_on = passed_on.header(name.as_str(), value.as_bytes());
    }
    if headers.contains_key(header::TRANSFER_ENCODING) {
        // Without it, hyper takes a GET's body for none.
        passed_on = passed_on.header(hyper::header::TRANSFER_ENCODING, "chunked");
    }
    passed_on.body(body).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// The answer as the client gets it, still without its body.
pub(super) fn answer(parts: &hyper::http::response::Parts) -> Result<HttpResponse, String> {
    if parts.status == hyper::StatusCode::SWITCHING_PROTOCOLS {
        return Err("it switched protocols unasked".to_owned());
    }
    let status = StatusCode::from_u16(parts.status.as_u16()).map_err(|error| error.to_string())?;
    let mut answer = HttpResponse::new(status);
    let of_connection = parts.headers.get_all(hyper::header::CONNECTION);
    let listed = Listed::new(of_connection.iter().map(hyper::header::HeaderValue::as_bytes));
    let chunked = parts.headers.contains_key(hyper::header::TRANSFER_ENCODING);
    for (name, value) in parts.headers.iter().filter(|(name, _)| listed.passes(name.as_str())) {
        let name = header::HeaderName::from_bytes(name.as_ref()).map_err(|error| error.to_string())?;
        let value = header::HeaderValue::from_bytes(value.as_ref()).map_err(|error| error.to_string())?;
        match name {
            // A length beside chunks is void (RFC 9112, section 6.3); one said twice is said once.
            header::CONTENT_LENGTH if chunked => {}
            header::CONTENT_LENGTH => {
                answer.headers_mut().insert(name, value);
            }
            _ => answer.headers_mut().append(name, value),
        }
    }
    Ok(answer)
}

/// The fields that `Connection` lists.
struct Listed(Vec<Vec<u8>>);

impl Listed {
    fn new<'a>(values: impl Iterator<Item = &'a [u8]>) -> Self {
        let names = values.flat_map(|value| value.split(|&byte| byte == b','));
        Self(names.map(|name| name.trim_ascii().to_ascii_lowercase()).collect())
    }

    /// Whether a field is passed on. A message's length and host are no connection's, nor is
    /// what HAProxy says of the client: none of them can be listed away.
    fn passes(&self, name: &str) -> bool {
        if name == "content-length" || name == "host" || name.starts_with("x-forwarded-") {
            return true;
        }
        !HOP_BY_HOP.contains(&name) && !self.0.iter().any(|listed| listed == name.as_bytes())
    }
}
