//! HTTPS with all of the real parts: `haas up`, Hoodies, and clients that trust its CA alone.
#![allow(clippy::unwrap_used)]

#[path = "support/https.rs"]
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod https;
mod support;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use https::{Made, client_of, ends_in_days, given, shown};
use serde_json::Value;
use support::eventually;
use support::installation::Installation;

async fn up() -> (Installation, u16) {
    let mut haas = Installation::prepared("");
    let port = haas.ports.spare;
    haas.https = Some(port);
    haas.start().await;
    (haas, port)
}

fn tls(haas: &Installation) -> PathBuf {
    haas.layout.tls_dir()
}

#[tokio::test]
async fn an_app_answers_by_https_as_soon_as_it_is_provisioned() {
    let (haas, port) = up().await;
    let ca = haas.layout.ca_file();
    let client = client_of(&ca);
    for (user, app) in [("alice", "notes"), ("bob", "todo"), ("bob", "notes")] {
        let url = format!("https://haas.localhost:{port}/provision");
        let answer = client.post(url).json(&haas.request(user, app)).send().await.unwrap();
        assert_eq!(answer.status(), 201);
        let body: Value = answer.json().await.unwrap();
        let endpoint = body["endpoint"].as_str().unwrap();
        assert_eq!(endpoint, format!("https://{app}.{}.haas.localhost:{port}/hoodie/", haas.user(user)));
        assert_eq!(client.get(endpoint).send().await.unwrap().status(), 200);
        // A user's own tool: HTTP/2, and the CA by its path.
        let output = Command::new("curl")
            .args(["-sS", "-o", "/dev/null", "-w", "%{http_code} %{http_version}", "--resolve"])
            .arg(format!("*:{port}:127.0.0.1"))
            .arg("--cacert")
            .arg(&ca)
            .arg(endpoint)
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "200 2", "{}", String::from_utf8_lossy(&output.stderr));
    }
    let log = haas.log();
    let told = log.lines().filter(|line| line.contains("--cacert")).count();
    assert_eq!(told, 1, "how to trust the CA is told once: {log}");

    // In the clear: the way to HTTPS, and for this machine the control API.
    let app = haas.hoodie("alice", "notes");
    let plain = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let answer = plain.get(app.url("/hoodie/?a=b")).header("host", &app.host).send().await.unwrap();
    assert_eq!(answer.status(), 308);
    assert_eq!(answer.headers()["location"], format!("https://{}:{port}/hoodie/?a=b", app.host).as_str());
    for path in ["/healthz", "/readyz", "/instances"] {
        assert_eq!(haas.control(path).await.unwrap().status(), 200, "{path}");
    }
    assert_eq!(haas.post("/provision", &haas.request("alice", "notes")).await.unwrap().status(), 200);

    let (code, doctor, _) = haas.haas(&["doctor"]).await;
    assert_eq!(code, 0, "{doctor}");
    let (alice, bob) = (haas.user("alice"), haas.user("bob"));
    assert!(doctor.contains("local CA") && doctor.contains(": 364"), "{doctor}");
    assert!(doctor.contains("haas-0000.pem: haas.localhost: 39"), "{doctor}");
    let leaf = doctor.lines().find(|line| line.contains("haas-0001.pem")).unwrap();
    for user in [&alice, &bob] {
        assert!(leaf.contains(&format!("*.{user}.haas.localhost")), "{leaf}");
    }

    // The same CA after a restart, and with HAProxy killed in between the same certificates.
    let (before, shown_before) = (std::fs::read(&ca).unwrap(), shown(port, &app.host).await);
    let (_, routes, _) = haas.haas(&["routes"]).await;
    assert!(routes.contains(&app.host), "{routes}");
    let mut haas = haas;
    haas.stop().await;
    haas.start().await;
    assert_eq!(std::fs::read(&ca).unwrap(), before);
    eventually("it answers again", Duration::from_secs(10), || async {
        (shown(port, &app.host).await == shown_before).then_some(())
    })
    .await;
    // A user who is gone is told so by HTTPS.
    assert_eq!(haas.deprovision("alice", "notes").await.0, 200);
    let gone = client.get(format!("https://{}:{port}/hoodie/", app.host)).send().await.unwrap();
    assert_eq!(gone.status(), 404);
}

#[tokio::test]
async fn what_the_operator_puts_into_the_folder_is_in_force_within_seconds() {
    let (haas, port) = up().await;
    let tls = tls(&haas);
    let name = "www.example.org";
    assert_eq!(shown(port, name).await, None);
    let in_force = async |made: &Made| {
        eventually("it is in force", Duration::from_secs(5), || async {
            (shown(port, name).await.as_ref() == Some(&made.fingerprint)).then_some(())
        })
        .await;
    };
    let first = Made::new(&[name]);
    std::fs::write(given(&tls, "www.pem"), first.pem()).unwrap();
    in_force(&first).await;
    // Renewed as tools do it: the file is replaced.
    let second = Made::with(&[name], |params| ends_in_days(params, 10));
    std::fs::write(given(&tls, "www.new"), second.pem()).unwrap();
    std::fs::rename(given(&tls, "www.new"), given(&tls, "www.pem")).unwrap();
    in_force(&second).await;
    let (code, doctor, _) = haas.haas(&["doctor"]).await;
    assert_eq!(code, 0, "{doctor}");
    let line = doctor.lines().find(|line| line.contains("www.pem")).unwrap();
    assert!(line.starts_with("WARNING") && line.contains("www.example.org: 9 days left"), "{line}");

    std::fs::write(given(&tls, "www.pem"), format!("{}{}", second.certificate, first.key)).unwrap();
    eventually("the reason is logged", Duration::from_secs(5), || async {
        haas.log().contains("certificate www.pem is refused: its private key does not belong").then_some(())
    })
    .await;
    let (code, doctor, _) = haas.haas(&["doctor"]).await;
    assert_eq!(code, 3, "{doctor}");
    assert!(doctor.contains("www.pem is refused: its private key does not belong"), "{doctor}");
    assert!(doctor.contains("(the one before it serves on)"), "{doctor}");
    in_force(&second).await;
    assert_eq!(haas.control("/readyz").await.unwrap().status(), 200, "nobody is worse off than before");

    // HAProxy dies: the one that follows has it.
    let socket = haas.layout.master_socket();
    let workers = haas::haproxy::Haproxy::new(haas::haproxy::Settings {
        master_socket: socket,
        ..haas::haproxy::Settings::from_config(&haas::config::Config::load(None, [], [].into()).unwrap())
    });
    let worker = workers.workers().await.unwrap()[0].pid;
    let master = std::fs::read_to_string(format!("/proc/{worker}/stat")).unwrap();
    let master: i32 = master.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap();
    for pid in [master, worker] {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    eventually("it is started again", Duration::from_secs(20), || async {
        (shown(port, name).await.as_ref() == Some(&second.fingerprint)).then_some(())
    })
    .await;

    std::fs::remove_file(given(&tls, "www.pem")).unwrap();
    eventually("it is out of force", Duration::from_secs(15), || async {
        shown(port, name).await.is_none().then_some(())
    })
    .await;
}
