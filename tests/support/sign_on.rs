//! An owner's way to the admin, as a browser goes it.

use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

use super::hoodie::Hoodie;
use super::installation::Installation;

pub fn asked_for(haas: &Installation, user: &str, app: &str) -> Value {
    json!({ "secret": haas.secret(), "username": haas.user(user), "appname": app })
}

/// A link by the API.
pub async fn link(haas: &Installation, user: &str, app: &str) -> String {
    let answer = haas.post("/sso", &asked_for(haas, user, app)).await.unwrap();
    assert_eq!(answer.status(), 201);
    let body: Value = answer.json().await.unwrap();
    body["url"].as_str().unwrap().to_owned()
}

/// What a browser sends when the link is opened at an app's host, whichever it was made for.
pub fn opening(hoodie: &Hoodie, method: Method, link: &str) -> RequestBuilder {
    let link = url::Url::parse(link).unwrap();
    let target = format!("{}?{}", link.path(), link.query().unwrap());
    hoodie.client.request(method, hoodie.url(&target)).header("host", &hoodie.host).header("accept", "text/html")
}

pub async fn open(hoodie: &Hoodie, link: &str) -> Response {
    opening(hoodie, Method::GET, link).send().await.unwrap()
}

pub fn assert_strict(answer: &Response) {
    let headers = answer.headers();
    let policy = headers["content-security-policy"].to_str().unwrap();
    let ends = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    assert!(policy.starts_with("default-src 'none'; ") && policy.ends_with(ends), "{policy}");
    let scripts = policy.strip_prefix("default-src 'none'; ").unwrap().strip_suffix(ends).unwrap();
    assert_eq!(!scripts.is_empty(), answer.status() == 200, "{policy}");
    assert!(scripts.is_empty() || scripts.starts_with("script-src 'sha256-"), "{policy}");
    assert_eq!(headers["referrer-policy"], "no-referrer");
    assert_eq!(headers["cache-control"], "no-store");
    assert_eq!(headers["x-content-type-options"], "nosniff");
    assert!(!headers.contains_key("access-control-allow-origin"), "no page of another origin reads it");
}

/// The session that the page keeps in the browser.
pub async fn session(answer: Response) -> String {
    assert_eq!(answer.status(), 200);
    assert_strict(&answer);
    assert_eq!(answer.headers()["content-type"], "text/html; charset=utf-8");
    let page = answer.text().await.unwrap();
    assert!(page.contains("location.replace('/hoodie/admin/')"), "{page}");
    let kept = page.split_once("localStorage.setItem('account_admin','").unwrap().1.split_once('\'').unwrap().0;
    let kept: Value = serde_json::from_str(kept).unwrap();
    assert_eq!(kept["username"], "admin");
    kept["session"]["id"].as_str().unwrap().to_owned()
}

/// Whether a session is the admin's: nobody else may list an app's accounts.
pub async fn is_admin(hoodie: &Hoodie, session: &str) -> bool {
    let request = hoodie.client.get(hoodie.url("/hoodie/account/api/accounts")).header("host", &hoodie.host);
    let answer = request.header("authorization", format!("Session {session}")).send().await.unwrap();
    let status = answer.status();
    assert!(status == StatusCode::OK || status == StatusCode::UNAUTHORIZED, "{status}");
    status == StatusCode::OK
}

pub async fn signed_on(haas: &Installation, user: &str) -> String {
    let hoodie = haas.hoodie(user, "notes");
    let session = session(open(&hoodie, &link(haas, user, "notes").await).await).await;
    assert!(is_admin(&hoodie, &session).await);
    session
}

/// A refusal, as it is seen: the same for all reasons.
pub async fn refusal(answer: Response) -> (StatusCode, Vec<String>, String) {
    assert_strict(&answer);
    // Each has its own.
    let own = ["date", "x-request-id"];
    let names = answer.headers().iter().filter(|(name, _)| !own.contains(&name.as_str()));
    let mut headers: Vec<String> = names.map(|(name, value)| format!("{name}: {value:?}")).collect();
    headers.sort();
    (answer.status(), headers, answer.text().await.unwrap())
}
