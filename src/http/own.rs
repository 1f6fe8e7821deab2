//! `/.haas/` of every app's host: Haas' own, and never the app's. HAProxy sends it here, also
//! while the app runs. So far there is the owner's sign-on; all else is not found.
//!
//! `GET /.haas/sso?token=…` takes the token, wakes the app, logs in to its Hoodie as admin, and
//! answers with a page on the app's own origin that keeps the session where the dashboard looks
//! for it. The password stays on this machine.

#[cfg(feature = "fuzzing")]
pub(super) mod fuzzing;
mod login;
mod page;

use actix_web::http::header::{ALLOW, HeaderMap, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse};

use super::hold::{comes_up, visitors};
use super::request_id::RequestId;
use super::{Api, Problem};
use crate::config::Public;
use crate::instance::name::Hostname;
use crate::instance::{Desired, Instance, Phase};
use crate::manifest::{SignOn, Token};

const SIGN_ON: &str = "/.haas/sso";
/// The first segment, as it stands in a path that is decoded and in lower case.
const FIRST: &str = ".haas";

/// The link for the owner's browser.
#[must_use]
pub fn sign_on_url(issued: &SignOn, public: Public) -> String {
    format!("{}{SIGN_ON}?token={}", public.origin(&issued.instance.host), issued.token.as_str())
}

/// Whether a path is ours, in any spelling in which some app's server may take it for that: with
/// escapes, with slashes too many or of the other kind, with dot segments, in capitals. HAProxy
/// sends here whatever has that segment anywhere (`templates/haproxy.cfg.tera`); what is not ours
/// after all is passed on to the app.
pub(super) fn is_own(path: &str) -> bool {
    let path = decode(path.as_bytes());
    // How many segments stand before, if dot segments are taken for what they mean; not every server does that.
    let mut depth = 0_usize;
    for segment in path.split(|byte| matches!(byte, b'/' | b'\\')) {
        // Parameters of a segment are none of its name (RFC 3986, section 3.3).
        let name = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        match name {
            b"" | b"." => {}
            b".." => depth = depth.saturating_sub(1),
            name if depth == 0 && name.eq_ignore_ascii_case(FIRST.as_bytes()) => return true,
            _ => depth += 1,
        }
    }
    false
}

/// The bytes that a path's escapes stand for; what is no escape stays as it is.
fn decode(mut path: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(path.len());
    while let Some((first, rest)) = path.split_first() {
        let mut byte = [0];
        if *first == b'%' && rest.get(..2).is_some_and(|digits| hex::decode_to_slice(digits, &mut byte).is_ok()) {
            decoded.push(byte[0]);
            path = &rest[2..];
        } else {
            decoded.push(*first);
            path = rest;
        }
    }
    decoded
}

/// Answers a request to a path of ours, at an app's host or anybody's.
pub(super) async fn answer(request: &HttpRequest, api: &Api, host: Option<&Hostname>) -> HttpResponse {
    if request.uri().path() != SIGN_ON {
        return page::not_found();
    }
    if request.method() != Method::GET {
        let mut answer = page::told(StatusCode::METHOD_NOT_ALLOWED, page::OPEN_IT);
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return answer;
    }
    // A browser that guesses what comes next must not use the token up.
    if is_guess(request.headers()) {
        return page::told(StatusCode::SERVICE_UNAVAILABLE, page::OPEN_IT);
    }
    match sign_on(request, api, host).await {
        Ok(session) => page::signed_on(&session),
        Err(Refusal::NotGood) => page::told(StatusCode::FORBIDDEN, page::NOT_GOOD),
        Err(Refusal::Problem(problem)) => page::problem(&problem),
    }
}

fn is_guess(headers: &HeaderMap) -> bool {
    ["sec-purpose", "purpose", "x-purpose", "x-moz"].iter().flat_map(|name| headers.get_all(*name)).any(|value| {
        let value = value.to_str().unwrap_or_default().to_ascii_lowercase();
        ["prefetch", "prerender", "preview"].iter().any(|word| value.contains(word))
    })
}

enum Refusal {
    /// The token is used, expired, forged or another instance's: nobody is told which.
    NotGood,
    /// It was good, and something else is in the way.
    Problem(Problem),
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

/// Takes the token, and returns a session of the app's admin.
async fn sign_on(request: &HttpRequest, api: &Api, host: Option<&Hostname>) -> Result<login::SessionId, Refusal> {
    // What can't be a token asks the database nothing.
    let (token, host) = token(request.query_string()).zip(host).ok_or(Refusal::NotGood)?;
    let found = api.manifest.find_by_host(host).await.map_err(Problem::from)?.ok_or(Refusal::NotGood)?;
    let redeemed = visitors(api).redeem_sign_on(found.id, &token).await.map_err(Problem::from)?;
    let generation = redeemed.ok_or(Refusal::NotGood)?;
    // From here on the app is in use: not before, or whoever guesses would keep it awake.
    let held = api.held.enter(found.id, api.settings.app_maxconn).ok_or(Problem::TooManyRequests)?;
    let over = |row: &Instance| row.generation != generation || login_port(row).is_some();
    let row = comes_up(api, found, "its owner signs on", over).await.map_err(|problem| match problem {
        Problem::NoSuchApp => Refusal::NotGood,
        problem => Refusal::Problem(problem),
    })?;
    // It has got another password while this request waited.
    if row.generation != generation {
        return Err(Refusal::NotGood);
    }
    let port = login_port(&row).ok_or(Problem::NotReady)?;
    let _held = held.pass_on();
    let password = api.key.admin_password(row.id, generation);
    match login::log_in(port, host, &password).await {
        Ok(session) => {
            log::info!(instance:% = row.id, request = RequestId::current(); "{}: its owner has signed on", row.container);
            Ok(session)
        }
        Err(error) => {
            log::warn!(instance:% = row.id, request = RequestId::current(); "{}: its owner could not sign on: {error}", row.container);
            Err(Problem::BadAnswer.into())
        }
    }
}

/// The token of a link's query; there is one, or it is none of ours.
fn token(query: &str) -> Option<Token> {
    let mut tokens = url::form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "token");
    let token = Token::parse(&tokens.next()?.1);
    token.filter(|_| tokens.next().is_none())
}

/// Where an app answers that has the password of its row's generation, if it does.
fn login_port(row: &Instance) -> Option<u16> {
    let answers = matches!(row.phase, Phase::Ready | Phase::Running) && row.ready_at.is_some();
    let current = row.observed_generation == row.generation;
    row.port.filter(|_| answers && current && row.desired == Desired::Running)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_some_server_takes_for_our_path_is_ours() {
        for path in [
            "/.haas",
            "/.haas/",
            "/.haas/sso",
            "/.haas//x/../..",
            "/.haas/../hoodie/",
            "/%2ehaas/sso",
            "/%2E%68%61%61%73%2fsso",
            "//.haas/sso",
            "/./.haas/x",
            "/x/../.haas/x",
            "/x/%2e%2e/.haas/x",
            "/a/b/../../.haas",
            "/../.haas",
            "/\\.haas\\sso",
            "/.HaAs/sso",
            "/.haas;x=y/sso",
            "/.haas%5csso",
            "/.haas/%zz",
        ] {
            assert!(is_own(path), "{path}");
        }
        for path in ["/", "/hoodie/", "/.haasx", "/haas/", "/x/.haas/", "/%252ehaas/", "/..haas/", "/.haas.js", "/%"] {
            assert!(!is_own(path), "{path}");
        }
    }

    #[test]
    fn a_link_has_one_token() {
        let good = "0".repeat(64);
        assert!(token(&format!("token={good}")).is_some());
        assert!(token(&format!("a=b&token={good}")).is_some());
        for bad in ["", "token", "token=", "token=00", &format!("token={good}&token={good}"), &format!("Token={good}")]
        {
            assert!(token(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn only_one_that_has_the_password_is_logged_in_to() {
        let ready = Some(chrono::DateTime::UNIX_EPOCH);
        let row = Instance { phase: Phase::Running, ready_at: ready, observed_generation: 1, ..Instance::example() };
        assert_eq!(login_port(&row), Some(5521));
        // Its password was changed, and its container was not yet.
        assert_eq!(login_port(&Instance { generation: 2, ..row.clone() }), None);
        assert_eq!(login_port(&Instance { phase: Phase::Restarting, ..row.clone() }), None);
        assert_eq!(login_port(&Instance { desired: Desired::Asleep, ..row }), None);
    }
}
