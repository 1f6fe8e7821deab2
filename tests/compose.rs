//! docker-compose.yml as it is, with a project, ports and a domain of its own; where no image can
//! be pulled, on stand-ins of the same names (scripts/build-compose-images).
#![allow(clippy::unwrap_used)]

#[path = "support/https.rs"]
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod https;
mod support;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use haas::config::Config;
use haas::containers::{ContainersError, Docker, DockerSettings};
use haas::credentials::InstanceKey;
use reqwest::{Client, Response};
use serde_json::{Value, json};
use support::hoodie::{Hoodie, client};
use support::installation::{docker, remove_all_of};
use support::{Ports, eventually, ports, unique};
use tempfile::TempDir;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(60);
const SERVICES: [&str; 3] = ["postgres", "haas", "haproxy"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What docker-compose.yml takes for an image unless told otherwise.
fn default_image(variable: &str) -> String {
    let file = std::fs::read_to_string(root().join("docker-compose.yml")).unwrap();
    let (_, rest) = file.split_once(&format!("image: ${{{variable}:-")).unwrap();
    rest.split_once('}').unwrap().0.to_owned()
}

/// The installation that docker-compose.yml makes.
struct Compose {
    dir: TempDir,
    project: String,
    ports: Ports,
    client: Client,
    installation: Option<String>,
    secret: String,
}

impl Compose {
    async fn up() -> Self {
        let mut script = tokio::process::Command::new(root().join("scripts/build-compose-images"));
        let built = script.arg(env!("CARGO_BIN_EXE_haas")).output().await.unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));

        let (project, ports) = (unique(), ports());
        let dir = tempfile::Builder::new().prefix("haas").tempdir().unwrap();
        let group = std::fs::metadata("/var/run/docker.sock").unwrap().gid();
        let settings = format!(
            "COMPOSE_PROJECT_NAME={project}\nDOCKER_GID={group}\nHAAS_DOMAIN={project}.localhost\nHAAS_ADDRESS=127.0.0.1\n\
             HAAS_HTTP_PORT={}\nHAAS_HTTPS_PORT={}\nHAAS_CONTROL_PORT={}\nHAAS_TENANT_PORTS={}-{}\n",
            ports.http,
            ports.spare,
            ports.last + 1,
            ports.first,
            ports.last
        );
        std::fs::write(dir.path().join(".env"), settings).unwrap();
        let mut compose = Self { dir, project, ports, client: client(), installation: None, secret: String::new() };
        compose.run(&["up", "-d"]).await;
        compose.healthy().await;
        let ca = compose.dir.path().join("ca.pem");
        std::fs::write(&ca, compose.exec("haas", &["cat", "/etc/haas/tls/ca.pem"]).await).unwrap();
        compose.client = https::client_of(&ca);
        compose.secret = compose.exec("haas", &["cat", "/etc/haas/secrets/provision.secret"]).await;
        let select = ["psql", "-U", "haas", "-d", "haas", "-Atc", "SELECT id FROM installation"];
        compose.installation = Some(compose.exec("postgres", &select).await);
        compose
    }

    /// docker-compose 1.29, or the plugin that came after it.
    fn command(&self, arguments: &[&str]) -> Command {
        let old = Command::new("docker-compose").arg("version").output().is_ok();
        let mut command = Command::new(if old { "docker-compose" } else { "docker" });
        if !old {
            command.arg("compose");
        }
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HAAS_") || name.starts_with("COMPOSE_"))
        {
            command.env_remove(name);
        }
        command.arg("--env-file").arg(self.dir.path().join(".env"));
        command.arg("-p").arg(&self.project).arg("-f").arg(root().join("docker-compose.yml")).args(arguments);
        command
    }

    async fn run(&self, arguments: &[&str]) -> String {
        let mut command = self.command(arguments);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "docker-compose {arguments:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    async fn container(&self, service: &str) -> String {
        self.run(&["ps", "-q", service]).await
    }

    async fn inspect(&self, service: &str, format: &str) -> String {
        docker(&["inspect", "-f", format, &self.container(service).await]).await
    }

    async fn exec(&self, service: &str, arguments: &[&str]) -> String {
        let container = self.container(service).await;
        docker(&[&["exec", &container], arguments].concat()).await
    }

    async fn healthy(&self) {
        for service in SERVICES {
            eventually(&format!("{service} is healthy"), LIMIT, || async {
                (self.inspect(service, "{{.State.Health.Status}}").await == "healthy").then_some(())
            })
            .await;
        }
    }

    async fn post(&self, path: &str, appname: &str) -> reqwest::Result<Response> {
        let mut body = json!({ "secret": self.secret, "username": self.project, "appname": appname });
        if path == "/provision" {
            body["emailaddress"] = Value::from("alice@example.com");
        }
        let url = format!("https://{}.localhost:{}{path}", self.project, self.ports.spare);
        self.client.post(url).json(&body).send().await
    }

    async fn provision(&self, appname: &str) -> Hoodie {
        let answer = self.post("/provision", appname).await.unwrap();
        let (status, body) = (answer.status(), answer.json::<Value>().await.unwrap());
        assert_eq!(status, 201, "{body}");
        let host = body["host"].as_str().unwrap().to_owned();
        assert_eq!(host, format!("{appname}.{0}.{0}.localhost", self.project));
        assert_eq!(body["endpoint"], format!("https://{host}:{}/hoodie/", self.ports.spare));
        Hoodie { client: self.client.clone(), host, port: self.ports.spare, https: true }
    }

    /// As the kernel's OOM killer does. What is killed through Docker, Docker takes for stopped by
    /// hand, and leaves it so.
    async fn kill(&self, service: &str) {
        let pid = self.inspect(service, "{{.State.Pid}}").await;
        let image = default_image("HAAS_HAPROXY_IMAGE");
        let run = ["run", "--rm", "--pid=host", "--network=none", "--user=0:0", "--entrypoint=bash", &image, "-c"];
        docker(&[&run[..], &[&format!("kill -9 {pid}")]].concat()).await;
        eventually(&format!("{service} is back"), LIMIT, || async {
            let now = self.inspect(service, "{{.State.Running}} {{.State.Pid}}").await;
            (now != format!("true {pid}") && now.starts_with("true ")).then_some(())
        })
        .await;
        assert_eq!(self.inspect(service, "{{.RestartCount}}").await, "1", "by its restart policy");
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Ok(logs) = self.command(&["logs", "--tail", "60"]).output()
        {
            eprintln!("{}", String::from_utf8_lossy(&logs.stdout));
        }
        // Haas first: it would make tenants anew.
        let down = self.command(&["down", "--volumes", "--timeout", "5"]).output();
        if let Ok(output) = &down
            && !output.status.success()
        {
            eprintln!("docker-compose down: {}", String::from_utf8_lossy(&output.stderr));
        }
        if let Some(id) = &self.installation {
            remove_all_of(id);
        }
    }
}

/// Asks for the app all the time.
struct Probe {
    stop: tokio::sync::watch::Sender<bool>,
    probing: tokio::task::JoinHandle<(usize, Vec<String>)>,
}

impl Probe {
    fn start(hoodie: &Hoodie) -> Self {
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let hoodie = hoodie.clone();
        let probing = tokio::spawn(async move {
            let (mut asked, mut failed) = (0, Vec::new());
            while !*stopped.borrow() {
                match hoodie.get("/hoodie/").await {
                    Ok(answer) if answer.status() == 200 => {}
                    other => failed.push(format!("{other:?}")),
                }
                asked += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            (asked, failed)
        });
        Self { stop, probing }
    }

    async fn missed_nothing(self, during: &str) {
        self.stop.send(true).unwrap();
        let (asked, failed) = self.probing.await.unwrap();
        assert!(asked > 20 && failed.is_empty(), "{during}: {} of {asked} failed: {failed:?}", failed.len());
    }
}

#[tokio::test]
async fn the_real_file_does_the_main_job_and_heals_and_is_upgraded() {
    let haas = Compose::up().await;
    let notes = haas.provision("notes").await;
    notes.sign_up("carol").await;
    haas_has_no_more_rights_than_it_needs(&haas).await;
    no_tenant_and_no_stranger_is_signalled(&haas).await;

    // Each of them dies. Only HAProxy is missed by who uses an app.
    for service in ["haas", "postgres"] {
        let probe = Probe::start(&notes);
        haas.kill(service).await;
        eventually("all parts are ready", LIMIT, || ready(&haas)).await;
        probe.missed_nothing(service).await;
    }
    haas.kill("haproxy").await;
    eventually("the app answers", LIMIT, || async { notes.answers().await.then_some(()) }).await;
    eventually("all parts are ready", LIMIT, || ready(&haas)).await;
    assert!(notes.knows("carol").await);

    // A reload of the HAProxy that came back, and the doctor inside.
    let todo = haas.provision("todo").await;
    assert!(todo.answers().await && !todo.knows("carol").await);
    let doctor = haas.exec("haas", &["haas", "doctor"]).await;
    assert!(!doctor.contains("BROKEN") && doctor.contains("ok       haproxy"), "{doctor}");
    assert!(doctor.contains("ok       events"), "its own role can change what is written down: {doctor}");

    // An upgrade is a new container, and touches no other.
    let before = [haas.container("postgres").await, haas.container("haas").await, haas.container("haproxy").await];
    let proxy = haas.inspect("haproxy", "{{.State.Pid}}").await;
    let probe = Probe::start(&notes);
    haas.run(&["up", "-d", "--force-recreate", "haas"]).await;
    haas.healthy().await;
    eventually("all parts are ready", LIMIT, || ready(&haas)).await;
    probe.missed_nothing("the upgrade").await;
    let after = [haas.container("postgres").await, haas.container("haas").await, haas.container("haproxy").await];
    assert!(before[0] == after[0] && before[1] != after[1] && before[2] == after[2], "{before:?} {after:?}");
    assert_eq!(haas.inspect("haproxy", "{{.State.Pid}}").await, proxy);
    assert!(notes.knows("carol").await);

    let answer = haas.post("/deprovision", "notes").await.unwrap();
    let (status, body) = (answer.status(), answer.json::<Value>().await.unwrap());
    assert_eq!((status.as_u16(), body["state"].as_str()), (200, Some("deleted")), "{body}");
    // On whichever connection, and whichever worker: all of them were told.
    assert_eq!(notes.get("/hoodie/").await.unwrap().status(), 404);
    assert!(todo.answers().await);
}

async fn ready(haas: &Compose) -> Option<()> {
    let url = format!("http://{}.localhost:{}/readyz", haas.project, haas.ports.http);
    let answer = haas.client.get(url).send().await.ok()?;
    (answer.status() == 200).then_some(())
}

async fn haas_has_no_more_rights_than_it_needs(haas: &Compose) {
    assert_eq!(haas.exec("haas", &["id", "-u"]).await, "5500");
    assert_eq!(
        haas.inspect("haas", "{{.HostConfig.Privileged}} {{.HostConfig.CapDrop}} {{.HostConfig.CapAdd}}").await,
        "false [ALL] []"
    );
    assert_eq!(haas.inspect("postgres", "{{.HostConfig.NetworkMode}}").await, "none");
    // HAProxy's own processes: the master is root's, with what it needs; the worker is not.
    let uids = "for p in /proc/[0-9]*; do while read -r k v _; do [ $k = Name: ] && n=$v; [ $k = Uid: ] && echo $n $v; done <$p/status; done; true";
    let uids = haas.exec("haproxy", &["bash", "-c", uids]).await;
    assert!(
        uids.lines().any(|line| line == "haproxy 0")
            && uids.lines().any(|line| line.starts_with("haproxy ") && line != "haproxy 0"),
        "{uids}"
    );
    // Its certificates and sockets are there, the secrets and the database are not.
    let mounts = haas.inspect("haproxy", "{{range .Mounts}}{{.Destination}} {{end}}").await;
    let mut mounts: Vec<&str> = mounts.split_whitespace().collect();
    mounts.sort_unstable();
    assert_eq!(mounts, ["/etc/haas/haproxy", "/etc/haas/tls", "/run/haas"]);
}

async fn no_tenant_and_no_stranger_is_signalled(haas: &Compose) {
    let tenant = Config::load(None, [], std::collections::BTreeMap::new()).unwrap().tenant;
    // As any installation, not even its own.
    let key = InstanceKey::new([0; 32]);
    let engine = Docker::new(DockerSettings { installation: Uuid::new_v4(), tenant, key });
    let name = format!("{}-notes", haas.project);
    let before = docker(&["inspect", "-f", "{{.State.Pid}}", &name]).await;
    let refused = engine.signal(&name, "SIGUSR2").await;
    assert!(matches!(refused, Err(ContainersError::IsTenant(_))), "{refused:?}");
    assert_eq!(docker(&["inspect", "-f", "{{.State.Pid}}", &name]).await, before);
    let refused = engine.signal(&haas.project, "SIGUSR2").await;
    assert!(matches!(refused, Err(ContainersError::NoSuchContainer(_))), "{refused:?}");

    let container = haas.container("haas").await;
    let mut doctor = tokio::process::Command::new("docker");
    doctor.args(["exec", "-e", "HAAS_HAPROXY_RELOAD_CONTAINER=gone", &container, "haas", "doctor"]);
    let output = doctor.output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("there is no container gone"), "{said}");
}

#[test]
fn the_files_agree_on_versions() {
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(default_image("HAAS_IMAGE"), format!("haas/haas:{version}"));
    let dockerfile = std::fs::read_to_string(root().join("Dockerfile")).unwrap();
    // What checks is what runs.
    assert!(dockerfile.contains(&format!("ARG HAPROXY_IMAGE={}\n", default_image("HAAS_HAPROXY_IMAGE"))));
    let cargo = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let rust = cargo.split_once("rust-version = \"").unwrap().1.split_once('"').unwrap().0;
    assert!(dockerfile.contains(&format!("ARG RUST_IMAGE=rust:{rust}-")), "{rust}");
}

#[test]
fn what_env_holds_is_no_setting() {
    // Somebody may have it in the environment of a command, too.
    let file = std::fs::read_to_string(root().join("docker-compose.yml")).unwrap();
    let names = file.split("${").skip(1).filter_map(|rest| rest.split_once(':')).map(|(name, _)| name.to_owned());
    let names: Vec<(String, String)> = names.map(|name| (name, "1-2".to_owned())).collect();
    assert!(names.len() > 10, "{names:?}");
    Config::load(None::<PathBuf>.as_deref(), names, std::collections::BTreeMap::new()).unwrap();
}
