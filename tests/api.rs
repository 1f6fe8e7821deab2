//! The control API's answers, above all to bad input: always clear, and nothing changes.
#![allow(clippy::unwrap_used)]

mod support;

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use support::installation::{Installation, docker};

async fn problem(answer: Response) -> (StatusCode, Value) {
    let status = answer.status();
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["status"], status.as_u16());
    (status, body)
}

fn kind(body: &Value) -> &str {
    body["type"].as_str().unwrap().strip_prefix("urn:haas:problem:").unwrap()
}

async fn post(haas: &Installation, content_type: Option<&str>, body: impl Into<reqwest::Body>) -> Response {
    let url = format!("http://127.0.0.1:{}/provision", haas.ports.http);
    let mut request = haas.client.post(url).header("host", "haas.localhost");
    if let Some(content_type) = content_type {
        request = request.header("content-type", content_type);
    }
    request.body(body).send().await.unwrap()
}

#[tokio::test]
async fn bad_input_gets_a_clear_answer_and_changes_nothing() {
    let haas = Installation::up().await;
    let good =
        json!({ "secret": haas.secret(), "username": "alice", "emailaddress": "a@example.com", "appname": "notes" });
    let json_type = Some("application/json");

    // Whoever lacks the secret learns nothing else.
    let mut refusals = Vec::new();
    for secret in [json!("wrong"), json!(""), json!(null), json!(7), json!(["x"])] {
        for username in ["alice", "-", ""] {
            let mut body = good.clone();
            (body["secret"], body["username"], body["extra"]) = (secret.clone(), json!(username), json!(1));
            let (status, body) = problem(haas.post("/provision", &body).await.unwrap()).await;
            assert_eq!((status.as_u16(), kind(&body)), (401, "invalid-secret"));
            refusals.push(body);
        }
    }
    refusals.dedup();
    assert_eq!(refusals.len(), 1);
    assert_eq!(haas.post("/provision", &json!({})).await.unwrap().status(), 401);
    assert_eq!(haas.post("/deprovision", &json!({ "username": "alice" })).await.unwrap().status(), 401);

    // Bodies.
    for (content_type, body, status, slug) in [
        (json_type, "{", 400, "malformed-body"),
        (json_type, "", 400, "malformed-body"),
        (json_type, "[1]", 400, "malformed-body"),
        (json_type, "{\"secret\":\"\u{0}\"}", 400, "malformed-body"),
        (Some("text/plain"), "x", 415, "unsupported-media-type"),
        (Some("application/jsonp"), "{}", 415, "unsupported-media-type"),
        (None, "{}", 415, "unsupported-media-type"),
    ] {
        let (got, body) = problem(post(&haas, content_type, body).await).await;
        assert_eq!((got.as_u16(), kind(&body)), (status, slug));
    }
    let large = format!("{{\"secret\":\"{}\"}}", "x".repeat(17 * 1024));
    assert_eq!(problem(post(&haas, json_type, large.clone()).await).await.0, 413);
    let chunks = futures_util::stream::iter([Ok::<_, std::io::Error>(large.clone()), Ok(large)]);
    assert_eq!(problem(post(&haas, json_type, reqwest::Body::wrap_stream(chunks)).await).await.0, 413);

    // Fields.
    let mut unknown = good.clone();
    unknown["usrname"] = json!("x");
    let (status, body) = problem(haas.post("/provision", &unknown).await.unwrap()).await;
    assert_eq!((status.as_u16(), kind(&body)), (400, "unknown-field"));
    assert_eq!(body["errors"][0]["field"], "usrname");
    let twice = format!("{}{}", good.to_string().trim_end_matches('}'), ",\"appname\":\"other\"}");
    assert_eq!(problem(post(&haas, json_type, twice).await).await.0, 400);

    let long = "a".repeat(64);
    for name in [
        "",
        "-a",
        "a-",
        "a--b",
        "é",
        "a.b",
        "a\n",
        "a\nbackend evil",
        "a\u{0}",
        "..",
        "/",
        "a b",
        "www",
        "ADMIN",
        &long,
    ] {
        for field in ["username", "appname"] {
            let mut body = good.clone();
            body[field] = json!(name);
            let (status, body) = problem(haas.post("/provision", &body).await.unwrap()).await;
            assert_eq!((status.as_u16(), kind(&body)), (422, "invalid-fields"), "{field} {name:?}");
            assert_eq!(body["errors"].as_array().unwrap().len(), 1);
            assert_eq!(body["errors"][0]["field"], field);
            assert!(name.len() < 3 || !body.to_string().contains(name), "the answer repeats the input: {body}");
        }
    }
    let many = "a".repeat(250);
    for email in ["", "alice", "a@b", "a@b@c.d", "a\r\n@example.com", "a@exa mple.com", &format!("{many}@example.com")]
    {
        let mut body = good.clone();
        body["emailaddress"] = json!(email);
        assert_eq!(problem(haas.post("/provision", &body).await.unwrap()).await.0, 422, "{email:?}");
    }
    let all = json!({ "secret": haas.secret(), "username": 5, "appname": "..", "emailaddress": null });
    let (_, body) = problem(haas.post("/provision", &all).await.unwrap()).await;
    assert_eq!(body["errors"].as_array().unwrap().len(), 3, "every wrong field at once: {body}");
    let (long_user, long_app) = ("u".repeat(63), "a".repeat(63));
    let mut body = good.clone();
    (body["username"], body["appname"]) = (json!(long_user), json!(long_app));
    // Legal each, and together: 63 + 63 + the domain fit into a host name.
    assert_ne!(
        haas.post("/provision", &{
            let mut b = body.clone();
            b["emailaddress"] = json!("x");
            b
        })
        .await
        .unwrap()
        .status(),
        201
    );

    assert_eq!(haas.sql("SELECT count(*) FROM instances").await, "0");
    assert_eq!(haas.sql("SELECT count(*) FROM events").await, "0");
    assert!(haas.containers().await.is_empty());
    assert!(!haas.log().contains(&haas.secret()));
}

#[tokio::test]
async fn a_form_does_what_json_does_and_names_are_lower_cased() {
    let haas = Installation::up().await;
    let user = haas.user("alice");
    let body = format!(
        "secret={}&username={}&emailaddress=alice%2Bapps%40example.com&appname=Notes",
        haas.secret(),
        user.to_uppercase()
    );
    let answer = post(&haas, Some("application/x-www-form-urlencoded; charset=utf-8"), body).await;
    assert_eq!(answer.status(), 201);
    assert_eq!(answer.headers()["location"], format!("/instances/{user}/notes").as_str());
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["emailaddress"], "alice+apps@example.com");
    assert_eq!(body["container"], format!("{user}-notes"));
    assert_eq!(body["endpoint"], format!("http://notes.{user}.haas.localhost:{}/hoodie/", haas.ports.http));
}

#[tokio::test]
async fn a_taken_name_is_refused_without_saying_whose_it_is() {
    let haas = Installation::up().await;
    haas.provision("a", "b-c").await;
    let colliding = json!({ "secret": haas.secret(), "username": haas.user("a-b"),
        "emailaddress": "x@example.com", "appname": "c" });
    let (status, body) = problem(haas.post("/provision", &colliding).await.unwrap()).await;
    assert_eq!((status.as_u16(), kind(&body)), (409, "name-taken"));
    assert!(body["detail"].as_str().unwrap().contains("container"));
    assert!(!body.to_string().contains("b-c"));
    assert_eq!(haas.sql("SELECT count(*) FROM instances").await, "1");

    // A container that is nobody's of ours: refused, and never touched.
    let foreign = haas.container("eve", "x");
    docker(&["create", "--name", &foreign, "haas/hoodie:28.2.10"]).await;
    let id = docker(&["inspect", "-f", "{{.Id}}", &foreign]).await;
    let answer = haas.post("/provision", &haas.request("eve", "x")).await.unwrap();
    let (status, body) = problem(answer).await;
    let still = docker(&["inspect", "-f", "{{.Id}} {{.State.Status}}", &foreign]).await;
    docker(&["rm", "-f", "-v", &foreign]).await;
    assert_eq!((status.as_u16(), kind(&body)), (409, "name-taken"));
    assert_eq!(still, format!("{id} created"));
    assert_eq!(haas.instance("eve", "x").await["state"], "deleted");
    // Given up, not lurking: the name becoming free changes nothing by itself, asking again does.
    let again = haas.post("/provision", &haas.request("eve", "x")).await.unwrap();
    assert_eq!(again.status(), 201);
}

#[tokio::test]
async fn without_a_free_port_it_says_so_and_doctor_too() {
    let mut haas = Installation::prepared("");
    haas.ports.last = haas.ports.first;
    haas.start().await;
    haas.provision("alice", "notes").await;
    let answer = haas.post("/provision", &haas.request("bob", "notes")).await.unwrap();
    assert_eq!(answer.headers()["retry-after"], "60");
    let (status, body) = problem(answer).await;
    assert_eq!((status.as_u16(), kind(&body)), (503, "no-free-port"));
    let (code, doctor, _) = haas.haas(&["doctor"]).await;
    assert_eq!(code, 3);
    assert!(doctor.contains("BROKEN   ports      1 of 1 taken, 0 free"), "{doctor}");
    // The port comes back with the container gone, after its rest and the next look.
    assert_eq!(haas.deprovision("alice", "notes").await.0, 200);
    support::eventually("the port is free again", std::time::Duration::from_secs(60), || async {
        let answer = haas.post("/provision", &haas.request("bob", "notes")).await.unwrap();
        (answer.status() == 201).then_some(())
    })
    .await;
}

#[tokio::test]
async fn listings_are_paged_filtered_and_for_known_parties_only() {
    let haas = Installation::up().await;
    // Rows alone: what is listed does not depend on what runs.
    for n in 0..5 {
        let (user, port) = (format!("u{}", n / 2), haas.ports.last - n);
        haas.sql(&format!(
            "INSERT INTO instances (id, username, appname, email, host, container_name, port, desired, phase, next_attempt_at, attempts)
             VALUES (gen_random_uuid(), '{user}', 'app{n}', 'x@example.com', 'app{n}.{user}.haas.localhost', '{user}-app{n}',
                     {port}, 'running', 'failed', now() + interval '1 day', 1)"
        )).await;
    }
    let url = format!("http://127.0.0.1:{}/instances", haas.ports.http);
    let bare = haas.client.get(&url).header("host", "haas.localhost");
    let answer = bare.send().await.unwrap();
    assert_eq!(answer.headers()["www-authenticate"], "Bearer");
    assert_eq!(problem(answer).await.0, 401);
    let wrong = haas.client.get(format!("{url}/u0/app0")).header("host", "haas.localhost").bearer_auth("wrong");
    assert_eq!(problem(wrong.send().await.unwrap()).await.0, 401);

    let mut names = Vec::new();
    let mut next = Some("/instances?limit=2".to_owned());
    while let Some(path) = next {
        let page: Value = haas.control(&path).await.unwrap().json().await.unwrap();
        names.extend(
            page["instances"].as_array().unwrap().iter().map(|row| row["appname"].as_str().unwrap().to_owned()),
        );
        next = page["next"].as_str().map(str::to_owned);
    }
    assert_eq!(names, ["app0", "app1", "app2", "app3", "app4"]);
    let page: Value = haas.control("/instances?username=u1&state=failed").await.unwrap().json().await.unwrap();
    assert_eq!(page["instances"].as_array().unwrap().len(), 2);
    let page: Value = haas.control("/instances?state=running").await.unwrap().json().await.unwrap();
    assert_eq!(page["instances"].as_array().unwrap().len(), 0);
    for bad in ["limit=0", "limit=x", "state=zombie", "username=..", "after=x", "page=2"] {
        let (status, body) = problem(haas.control(&format!("/instances?{bad}")).await.unwrap()).await;
        assert_eq!((status.as_u16(), kind(&body)), (400, "invalid-query"), "{bad}");
    }
    for missing in ["/instances/u0/none", "/instances/u0/..%2f", "/instances/-/x"] {
        assert_eq!(problem(haas.control(missing).await.unwrap()).await.0, 404, "{missing}");
    }
    assert_eq!(problem(haas.control("/nowhere").await.unwrap()).await.0, 404);
    let answer = haas.control("/provision").await.unwrap();
    assert_eq!(answer.headers()["allow"], "POST");
    assert_eq!(problem(answer).await.0, 405);
}

#[tokio::test]
async fn hosts_without_an_app_are_told_so_in_a_way_that_a_page_elsewhere_can_read() {
    let haas = Installation::up().await;
    let nobody = haas.hoodie("nobody", "nothing");
    let url = nobody.url("/hoodie/account/api/session");
    let answer = haas
        .client
        .get(&url)
        .header("host", &nobody.host)
        .header("origin", "http://page.example")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.headers()["access-control-allow-origin"], "http://page.example");
    let (status, body) = problem(answer).await;
    assert_eq!((status.as_u16(), kind(&body)), (404, "no-such-app"));
    let preflight = haas.client.request(reqwest::Method::OPTIONS, &url).header("host", &nobody.host);
    let preflight = preflight
        .header("origin", "http://page.example")
        .header("access-control-request-method", "PUT")
        .header("access-control-request-headers", "content-type")
        .send()
        .await
        .unwrap();
    assert_eq!(preflight.status(), 204);
    assert_eq!(preflight.headers()["access-control-allow-headers"], "content-type");
    let page = haas.client.get(&url).header("host", &nobody.host).header("accept", "text/html").send().await.unwrap();
    assert_eq!(
        (page.status().as_u16(), page.headers()["content-type"].to_str().unwrap()),
        (404, "text/html; charset=utf-8")
    );
    // The control API is not there for other hosts.
    for path in ["/provision", "/instances", "/readyz"] {
        assert_eq!(nobody.get(path).await.unwrap().status(), 404, "{path}");
    }
    // An app that is on its way.
    haas.sql(&format!(
        "INSERT INTO instances (id, username, appname, email, host, container_name, port, desired, phase, next_attempt_at, attempts)
         VALUES (gen_random_uuid(), 'x', 'y', 'x@example.com', '{}', 'x-y', {}, 'running', 'failed', now() + interval '1 day', 1)",
        nobody.host, haas.ports.last
    )).await;
    let answer = nobody.get("/hoodie/").await.unwrap();
    assert_eq!(answer.headers()["retry-after"], "2");
    let (status, body) = problem(answer).await;
    assert_eq!((status.as_u16(), kind(&body)), (503, "not-ready"));
}

#[tokio::test]
async fn a_secret_is_rotated_without_a_restart() {
    let haas = Installation::up().await;
    let old = haas.secret();
    let dir = haas.layout.secrets_dir();
    std::fs::write(dir.join("next.secret"), "the next one\n").unwrap();
    let try_with = async |secret: &str| {
        let body = json!({ "secret": secret, "username": "nobody", "appname": "nothing" });
        haas.post("/deprovision", &body).await.unwrap().status().as_u16()
    };
    support::eventually("the new secret counts", std::time::Duration::from_secs(10), || async {
        (try_with("the next one").await == 404).then_some(())
    })
    .await;
    assert_eq!(try_with(&old).await, 404, "both count while one is rotated");
    std::fs::remove_file(dir.join("provision.secret")).unwrap();
    support::eventually("the old secret counts no more", std::time::Duration::from_secs(10), || async {
        (try_with(&old).await == 401).then_some(())
    })
    .await;
    assert_eq!(try_with("the next one").await, 404);
}

#[tokio::test]
async fn the_openapi_document_shows_every_change_of_the_api() {
    let mut document = serde_json::to_value(haas::http::openapi_document()).unwrap();
    document["info"]["version"] = json!("any");
    insta::assert_json_snapshot!("openapi", document);
}
