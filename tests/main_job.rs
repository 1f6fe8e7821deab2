//! One request, and a user has a working Hoodie at its own domain: the whole way, on the real
//! engine, database and proxy.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use serde_json::Value;
use support::hoodie::Hoodie;
use support::installation::{Installation, docker};

#[tokio::test]
async fn every_host_reaches_its_own_hoodie_and_no_other() {
    let haas = Installation::up().await;
    let pairs = [("alice", "notes"), ("alice", "todo"), ("bob", "notes"), ("bob", "todo")];
    let mut hoodies: Vec<(String, Hoodie)> = Vec::new();
    for (user, app) in pairs {
        let hoodie = haas.provision(user, app).await;
        hoodie.sign_up(&format!("{user}-{app}")).await;
        hoodies.push((format!("{user}-{app}"), hoodie));
    }
    for (name, hoodie) in &hoodies {
        let page = hoodie.get("/hoodie/").await.unwrap();
        assert_eq!(page.status(), 200);
        assert!(page.text().await.unwrap().contains("Hoodie"));
        for (other, _) in &hoodies {
            assert_eq!(hoodie.knows(other).await, name == other, "{name} and the account made in {other}");
        }
    }
    assert_eq!(haas.containers().await.len(), 4);
    // Host tricks reach the app itself, and never another.
    let (name, hoodie) = &hoodies[0];
    for host in [hoodie.host.to_uppercase(), format!("{}:{}", hoodie.host, hoodie.port), format!("{}.", hoodie.host)] {
        let same = Hoodie { host, ..hoodie.clone() };
        assert!(same.knows(name).await, "{}", same.host);
    }
    // What the administrator reads.
    let (code, list, _) = haas.haas(&["list"]).await;
    assert_eq!(code, 0);
    assert_eq!(list.matches(" running ").count(), 4, "{list}");
    let (code, routes, _) = haas.haas(&["routes"]).await;
    assert_eq!((code, routes.matches(" live ").count()), (0, 4), "{routes}");
    // Sections follow the routes within reload_min_interval.
    support::eventually("every app has its section", Duration::from_secs(30), || async {
        (haas.haas(&["config", "--diff"]).await.0 == 0).then_some(())
    })
    .await;
    let (_, config, _) = haas.haas(&["config"]).await;
    for (_, hoodie) in &hoodies {
        assert!(config.contains(&format!("backend {}:", hoodie.host)), "{config}");
    }
    let (code, doctor, _) = haas.haas(&["doctor"]).await;
    assert_eq!(code, 0, "{doctor}");
    let (code, dry_run, _) = haas.haas(&["reconcile", "--once", "--dry-run"]).await;
    assert_eq!((code, dry_run.trim()), (0, "every instance is settled"));
}

#[tokio::test]
async fn a_hundred_equal_requests_make_one_hoodie_and_get_equal_answers() {
    let haas = Installation::up().await;
    let request = haas.request("alice", "notes");
    let answers = futures_util::future::join_all((0..100).map(async |_| {
        let answer = haas.post("/provision", &request).await.unwrap();
        let location = answer.headers()["location"].to_str().unwrap().to_owned();
        (answer.status().as_u16(), location, answer.json::<Value>().await.unwrap())
    }))
    .await;
    assert_eq!(answers[0].0, 201, "{:?}", answers[0]);
    for answer in &answers {
        assert_eq!(answer, &answers[0]);
    }
    assert_eq!(haas.containers().await, [haas.container("alice", "notes")]);
    assert_eq!(haas.sql("SELECT count(*), count(DISTINCT port) FROM instances").await, "1|1");
    assert_eq!(haas.sql("SELECT count(*) FROM events WHERE kind = 'provisioned'").await, "1");
    // Asked again, it is there.
    let again = haas.post("/provision", &request).await.unwrap();
    assert_eq!(again.status(), 200);
    assert_eq!(again.json::<Value>().await.unwrap(), answers[0].2);
}

#[tokio::test]
async fn twenty_different_requests_at_once_all_work() {
    let haas = Installation::up_with("[http]\nwait = \"120s\"\n[tenant]\nready_timeout = \"90s\"").await;
    let hoodies = futures_util::future::join_all((0..20).map(async |n| {
        let hoodie = haas.provision(&format!("u{n}"), "app").await;
        hoodie.sign_up(&format!("owner-{n}")).await;
        hoodie
    }))
    .await;
    for (n, hoodie) in hoodies.iter().enumerate() {
        assert!(hoodie.knows(&format!("owner-{n}")).await, "{}", hoodie.host);
        assert!(!hoodie.knows(&format!("owner-{}", (n + 1) % 20)).await, "{}", hoodie.host);
    }
    assert_eq!(
        haas.sql("SELECT count(*), count(DISTINCT port), count(DISTINCT host) FROM instances").await,
        "20|20|20"
    );
}

#[tokio::test]
async fn deprovisioned_and_provisioned_again_with_the_same_data() {
    let haas = Installation::up().await;
    let hoodie = haas.provision("alice", "notes").await;
    let other = haas.provision("bob", "notes").await;
    hoodie.sign_up("carol").await;

    let (status, body) = haas.deprovision("alice", "notes").await;
    assert_eq!((status, &body["state"], &body["port"]), (200, &Value::from("deleted"), &Value::Null), "{body}");
    assert_eq!(haas.containers().await, [haas.container("bob", "notes")]);
    assert_eq!(haas.hoodie("alice", "notes").get("/hoodie/").await.unwrap().status(), 404);
    assert!(other.answers().await);
    assert_eq!(haas.deprovision("alice", "notes").await.0, 200, "asking again changes nothing");
    assert_eq!(haas.deprovision("alice", "never").await.0, 404);
    assert_eq!(haas.instance("alice", "notes").await["state"], "deleted");

    let answer = haas.post("/provision", &haas.request("alice", "notes")).await.unwrap();
    assert_eq!(answer.status(), 201);
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["restored"], true, "{body}");
    assert!(haas.hoodie("alice", "notes").knows("carol").await);

    // Without its volume, it begins anew and says so.
    assert_eq!(haas.deprovision("alice", "notes").await.0, 200);
    let volume = format!("haas-{}", body["id"].as_str().unwrap().replace('-', ""));
    docker(&["volume", "rm", &volume]).await;
    let answer = haas.post("/provision", &haas.request("alice", "notes")).await.unwrap();
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["restored"], false, "{body}");
    assert!(!haas.hoodie("alice", "notes").knows("carol").await);
}

#[tokio::test]
async fn another_email_is_taken_and_noted_without_touching_the_hoodie() {
    let haas = Installation::up().await;
    haas.provision("alice", "notes").await;
    let before = docker(&["inspect", "-f", "{{.Id}}", &haas.container("alice", "notes")]).await;
    let mut request = haas.request("alice", "notes");
    request["emailaddress"] = Value::from("new@example.org");
    let answer = haas.post("/provision", &request).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.json::<Value>().await.unwrap()["emailaddress"], "new@example.org");
    assert_eq!(docker(&["inspect", "-f", "{{.Id}}", &haas.container("alice", "notes")]).await, before);
    assert_eq!(haas.sql("SELECT count(*) FROM events WHERE kind = 'email changed'").await, "1");
    assert_eq!(haas.sql("SELECT count(*) FROM events WHERE detail::text LIKE '%@%'").await, "0");
}

#[tokio::test]
async fn a_container_may_do_what_it_must_and_nothing_more() {
    let haas = Installation::up().await;
    haas.provision("alice", "notes").await;
    let inspected = docker(&["inspect", &haas.container("alice", "notes")]).await;
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    let host = &inspected[0]["HostConfig"];
    assert_eq!(host["CapDrop"], serde_json::json!(["ALL"]));
    assert_eq!(host["SecurityOpt"], serde_json::json!(["no-new-privileges"]));
    assert_eq!(host["ReadonlyRootfs"], true);
    assert_eq!(host["Privileged"], false);
    assert_eq!(host["Memory"], 192 * 1024 * 1024);
    assert_eq!(host["MemorySwap"], host["Memory"]);
    assert_eq!(host["NanoCpus"], 1_000_000_000);
    assert_eq!(host["PidsLimit"], 64);
    assert_eq!(host["Init"], true);
    assert_eq!(host["RestartPolicy"]["Name"], "unless-stopped");
    assert_eq!(host["LogConfig"]["Config"]["max-size"], "1m");
    assert_eq!(host["PortBindings"]["80/tcp"][0]["HostIp"], "127.0.0.1");
    let config = &inspected[0]["Config"];
    assert_eq!(config["User"], "1000:1000");
    assert_eq!(config["Healthcheck"], Value::Null);
    let labels = config["Labels"].to_string();
    assert!(!labels.to_lowercase().contains("password") && !labels.contains('@'), "{labels}");
    let network = host["NetworkMode"].as_str().unwrap();
    let options = docker(&["network", "inspect", "-f", "{{json .Options}}", network]).await;
    assert!(options.contains("\"com.docker.network.bridge.enable_icc\":\"false\""), "{options}");

    // The admin's password is the derived one.
    let environment = config["Env"].to_string();
    let password = environment.split("hoodie_adminPassword=").nth(1).unwrap().split('"').next().unwrap();
    let admin = haas.hoodie("alice", "notes").sign_in("admin", password).await;
    assert_eq!(admin, 201);
    assert_eq!(haas.hoodie("alice", "notes").sign_in("admin", "guess").await, 401);
}

#[tokio::test]
async fn the_client_script_is_ready_made_and_names_no_host() {
    let haas = Installation::up().await;
    let hoodie = haas.provision("alice", "notes").await;
    let script = hoodie.get("/hoodie/client.js").await.unwrap();
    assert_eq!(script.status(), 200);
    let text = script.text().await.unwrap();
    assert!(text.contains("document.currentScript"), "it finds its URL by itself");
    assert!(!text.contains(&hoodie.host) && text.len() > 100_000);
    let origin = hoodie.client.get(hoodie.url("/hoodie/account/api/session")).header("host", &hoodie.host);
    let answer = origin.header("origin", "http://elsewhere.example").send().await.unwrap();
    assert_eq!(answer.headers()["access-control-allow-origin"], "http://elsewhere.example");
}

#[tokio::test]
async fn asked_not_to_wait_it_says_where_to_look() {
    let haas = Installation::up().await;
    let url = format!("http://127.0.0.1:{}/provision", haas.ports.http);
    let request = haas.client.post(url).header("host", "haas.localhost").header("prefer", "respond-async");
    let answer = request.json(&haas.request("alice", "notes")).send().await.unwrap();
    assert_eq!(answer.status(), 202);
    assert_eq!(answer.headers()["preference-applied"], "respond-async");
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    assert_eq!(answer.json::<Value>().await.unwrap()["state"], "pending");
    support::eventually("it runs", Duration::from_secs(30), || async {
        let body: Value = haas.control(&location).await.unwrap().json().await.unwrap();
        (body["state"] == "running").then_some(())
    })
    .await;
    assert!(haas.hoodie("alice", "notes").answers().await);
}
